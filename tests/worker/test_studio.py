import pytest

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
        _, content, styles, _ = given
        assert same(content, grey)
        return styles[0]

    return paint


def test_the_engine_reads_the_styles_as_they_are(read):
    assert same(read(image_size=64), colourful(64, 40))


def test_keeping_colours_by_histogram_gives_the_styles_those_of_the_content(read):
    found = read(image_size=64, preserve_colors="histogram")
    assert (found - found[:, :1]).abs().max() < 1e-6
    assert found.std() > 0.05
