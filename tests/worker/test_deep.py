import io
import json

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from stylequeue_shared import images
from stylequeue_worker import deep

TEXT = {"Software": "StyleQueue 1.2", "settings": '{"steps": 3}', "device": "Ünï ×"}
READ = {
    deep.encode_png: imagecodecs.png_decode,
    deep.encode_tiff: lambda data: tifffile.imread(io.BytesIO(data)),
}


def pixels(channels):
    generator = np.random.default_rng(0)
    return generator.integers(0, 2**16, (40, 30, channels)).astype(np.uint16)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("encode", READ)
def test_all_sixteen_bits_come_back(encode, channels):
    found = READ[encode](encode(pixels(channels), TEXT))
    assert found.dtype == np.uint16
    assert np.array_equal(found, pixels(channels))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("encode", READ)
def test_the_web_side_reads_the_file_to_make_smaller_ones(encode, channels):
    deepest = pixels(channels)
    got = images.decode(encode(deepest, TEXT), keep_alpha=True)
    assert got.mode == {3: "RGB", 4: "RGBA"}[channels]
    if channels == 3:
        # 65,535 is 257 times 255; what lies between two steps is rounded.
        assert np.array_equal(np.asarray(got), np.round(deepest / 257))


def test_a_png_carries_the_text_it_is_given():
    with Image.open(io.BytesIO(deep.encode_png(pixels(3), TEXT))) as got:
        assert isinstance(got, PngImagePlugin.PngImageFile)
        got.load()
        assert got.text == TEXT


def test_a_tiff_says_the_same_in_its_description():
    with tifffile.TiffFile(io.BytesIO(deep.encode_tiff(pixels(4), TEXT))) as file:
        (page,) = file.pages
        assert json.loads(page.description) == TEXT
        assert page.software == TEXT["Software"]
        # Colours are as they were painted, not multiplied by alpha.
        assert page.extrasamples == (tifffile.EXTRASAMPLE.UNASSALPHA,)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE


def test_a_smooth_picture_takes_less_room_than_its_pixels():
    ramp = np.linspace(0, 65535, 128 * 128 * 3).astype(np.uint16).reshape(128, 128, 3)
    for encode in READ:
        assert len(encode(ramp, TEXT)) < ramp.nbytes / 3
