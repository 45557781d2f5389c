import numpy as np
import pytest
import torch
from PIL import Image

from stylequeue_shared.errors import InvalidPicture
from stylequeue_worker.pictures import (
    content_tensor,
    finish,
    style_tensor,
    to_tensor,
    with_colours_of,
)
from tests.worker.engine.tiny import settings

LUMA = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)


def photo(width, height, seed=0):
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small, "RGB").resize((width, height))


def test_the_content_gets_the_results_size_and_the_range_0_to_1():
    found = content_tensor(photo(300, 200), settings(image_size=96))
    assert found.shape == (1, 3, 64, 96)
    assert found.dtype == torch.float32
    assert 0 <= found.min() < 0.5 < found.max() <= 1


def test_a_small_content_is_enlarged():
    found = content_tensor(photo(20, 40), settings(image_size=128))
    assert found.shape == (1, 3, 128, 64)


def test_a_style_is_read_at_the_results_size_or_its_own():
    style = photo(100, 50)
    assert style_tensor(style, settings(), (64, 40)).shape == (1, 3, 32, 64)
    own = style_tensor(style, settings(style_size=200), (64, 40))
    assert own.shape == (1, 3, 100, 200)


def test_rows_and_colours_stay_where_they_are():
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (0, 16, 64, 32))
    found = content_tensor(image, settings(image_size=64))
    assert found[0, :, 0, 0].tolist() == [1, 0, 0]
    assert found[0, :, -1, -1].tolist() == [0, 0, 1]


def test_a_picture_comes_back_as_it_was():
    image = photo(64, 48)
    job = settings(image_size=64)
    assert finish(content_tensor(image, job), image, job).tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (3000, 7)])
def test_a_picture_too_thin_for_the_network_is_refused_by_name(size):
    deep = settings(image_size=64, style_layers=["relu5_1"])
    with pytest.raises(InvalidPicture, match="at least 16") as refused:
        content_tensor(photo(*size), deep)
    assert refused.value.field == "content"
    with pytest.raises(InvalidPicture, match="style"):
        style_tensor(photo(*size), deep, (64, 64))


def test_kept_colours_have_the_paintings_brightness():
    generator = torch.Generator().manual_seed(0)
    painted = torch.rand(3, 20, 20, generator=generator)
    content = torch.rand(3, 20, 20, generator=generator)
    found = with_colours_of(painted, content)
    assert -1e-6 <= found.min() <= found.max() <= 1 + 1e-6
    luma = (found * LUMA).sum(0)
    torch.testing.assert_close(luma, (painted * LUMA).sum(0), rtol=0, atol=1e-5)


def test_kept_colours_are_the_contents():
    content = Image.new("RGB", (32, 32), (200, 80, 60))
    job = settings(image_size=32, preserve_colors="luminance")
    blue = to_tensor(Image.new("RGB", (32, 32), (20, 120, 220)))
    red, green, blue_found = finish(blue, content, job).getpixel((5, 5))
    assert red > green > blue_found


@pytest.mark.parametrize("grey", [0, 77, 255])
def test_a_grey_content_stays_grey(grey):
    content = Image.new("RGB", (32, 32), (grey, grey, grey))
    job = settings(image_size=32, preserve_colors="luminance")
    found = np.array(finish(to_tensor(photo(32, 32)), content, job)).astype(int)
    assert abs(found - found[..., :1]).max() == 0
    assert found.std() > 5
