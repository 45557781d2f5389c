import subprocess
import sys

import numpy as np
import pytest

from stylequeue_shared import images
from stylequeue_shared.errors import NotFound
from stylequeue_web import drawings
from stylequeue_web.samples import sample_bytes, samples

NAMES = [sample.name for sample in samples()]


def test_there_are_pictures_and_styles_to_choose_from() -> None:
    kinds = [sample.kind for sample in samples()]
    assert kinds.count("content") >= 3
    assert kinds.count("style") >= 3
    assert len(set(NAMES)) == len(NAMES)
    assert all(sample.title and sample.credit for sample in samples())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_a_picture_of_a_good_size(name: str) -> None:
    data, media_type = sample_bytes(name)
    image, found = images.read(data)
    assert found == media_type
    assert 400 <= max(image.size) <= 1024
    assert len(data) < 1_000_000
    assert np.asarray(image).std() > 25  # not a plain area


def test_a_drawing_is_painted_once() -> None:
    assert sample_bytes("night") is sample_bytes("night")


@pytest.mark.parametrize("draw", [drawings.mosaic, drawings.waves])
def test_a_drawing_is_the_same_each_time(draw: object) -> None:
    assert callable(draw)
    assert (draw() == draw()).all()


@pytest.mark.parametrize("name", ["", "nothing", "../cat", "cat.png"])
def test_an_unknown_sample_is_not_found(name: str) -> None:
    with pytest.raises(NotFound):
        sample_bytes(name)


def test_the_photographs_are_found_without_importing_their_package() -> None:
    code = (
        "import sys; from stylequeue_web.samples import sample_bytes\n"
        "sample_bytes('cat')\n"
        "assert not {'skimage', 'scipy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
