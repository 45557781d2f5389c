import pytest
import torch

from stylequeue_shared.estimates import Speed, estimate
from stylequeue_shared.plans import MB
from stylequeue_shared.settings import Settings
from stylequeue_worker import studio as studio_module
from stylequeue_worker.pictures import to_tensor
from stylequeue_worker.studio import Studio
from tests.shared.pictures import colourful
from tests.worker.engine.tiny import settings


def same(tensor, image):
    return bool((tensor == to_tensor(image)).all())


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Return what the engine is given of a grey content and a colourful style."""
    given = []
    monkeypatch.setattr(
        studio_module, "transfer", lambda *read, **_: given.extend(read) or []
    )
    studio = Studio(Settings(home=tmp_path, device="cpu"))

    def paint(**changes):
        grey = colourful(64, 48).convert("L").convert("RGB")
        list(studio.paint(grey, [colourful(64, 40)], settings(**changes)))
        _, content, styles, *_ = given
        assert same(content, grey)
        return styles[0]

    return paint


def test_the_engine_reads_the_styles_as_they_are(read):
    assert same(read(image_size=64), colourful(64, 40))


def test_keeping_colours_by_histogram_gives_the_styles_those_of_the_content(read):
    found = read(image_size=64, preserve_colors="histogram")
    assert (found - found[:, :1]).abs().max() < 1e-6
    assert found.std() > 0.05


def test_painting_is_estimated_for_this_worker_s_budget_and_speed(
    tmp_path, monkeypatch
):
    measured = []
    speed = Speed(1e11, 2e11, 1e10)
    monkeypatch.setattr(
        studio_module, "measure", lambda *_, **__: measured.append(1) or speed
    )
    studio = Studio(Settings(home=tmp_path, device="cpu", memory_mb=2000))
    assert not studio.on_gpu
    content, style = colourful(640, 480), colourful(640, 400)
    job = settings(image_size=64)
    assert studio.estimate(content, [style], job) == estimate(
        job, (640, 480), [(640, 400)], 2000 * MB, speed
    )
    assert studio.estimate(content, [style], settings(image_size=8192)) is None
    assert len(measured) == 1


def test_a_worker_without_memory_for_the_measurement_starts_and_estimates_nothing(
    tmp_path, monkeypatch
):
    def fail(error):
        def measure(*_, **__):
            raise error

        monkeypatch.setattr(studio_module, "measure", measure)
        return Studio(Settings(home=tmp_path, device="cpu"))

    studio = fail(torch.OutOfMemoryError("CUDA out of memory"))
    assert studio.speed is None
    picture = colourful(64, 48)
    assert studio.estimate(picture, [picture], settings(image_size=64)) is None
    with pytest.raises(RuntimeError, match="a defect"):
        fail(RuntimeError("a defect")).speed  # noqa: B018
