import io

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from stylequeue_shared.errors import InvalidPicture
from stylequeue_worker.pictures import (
    content_tensor,
    encode_result,
    finish,
    style_tensor,
    to_tensor,
    with_colours_of,
    with_histogram_of,
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


def colours(image):
    """Return mean and covariance of the colours of a picture (1, 3, H, W)."""
    found = image.double().flatten(2)[0]
    return found.mean(1), torch.cov(found, correction=0)


def flat(*colour):
    return to_tensor(Image.new("RGB", (24, 16), colour))


def grey(seed):
    return to_tensor(photo(40, 30, seed).convert("L").convert("RGB"))


def test_a_matched_style_has_the_mean_and_covariance_of_the_content():
    # Far from black and white, where colours are clamped.
    content = to_tensor(photo(40, 30, 1)) / 5 + 0.4
    content = content.mul(255).round().div(255)
    found = with_histogram_of(content, to_tensor(photo(50, 20, 2)))
    assert (found.shape, found.dtype) == ((1, 3, 20, 50), torch.float32)
    for own, wanted in zip(colours(found), colours(content), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-6)


def test_a_style_matched_to_itself_stays_as_it_was():
    style = to_tensor(photo(40, 30, 3))
    torch.testing.assert_close(with_histogram_of(style, style), style)


def test_matched_colours_are_those_a_picture_can_have():
    dark_and_light = to_tensor(photo(40, 30, 4)).round()
    found = with_histogram_of(dark_and_light, to_tensor(photo(40, 30, 5)))
    assert (found.min(), found.max()) == (0, 1)


def test_a_grey_content_makes_a_style_grey_and_leaves_its_drawing():
    content, style = grey(6), to_tensor(photo(40, 30, 7))
    found = with_histogram_of(content, style)
    assert (found - found[:, :1]).abs().max() < 1e-6
    assert found.std() == pytest.approx(content.std().item(), rel=0.1)


def test_a_grey_style_gets_the_content_s_mean_colour_and_no_noise():
    content, style = to_tensor(photo(40, 30, 8)), grey(9)
    noise = np.random.default_rng(0).normal(0, 0.4, (1, 3, 30, 40)) / 255
    grainy = (style + torch.from_numpy(noise).float()).mul(255).round().div(255)
    found = with_histogram_of(content, grainy)
    torch.testing.assert_close(
        found.mean((2, 3)), content.mean((2, 3)), rtol=0, atol=0.02
    )
    # What was rounding in the style must not come out as coloured specks.
    assert (found - with_histogram_of(content, style)).abs().max() < 0.03


@pytest.mark.parametrize("level", [0, 77, 255])
def test_pictures_of_a_single_colour_are_matched_too(level):
    content = to_tensor(photo(40, 30, 10))
    plain = flat(level, level, level)
    found = with_histogram_of(content, plain)
    wanted = content.mean((2, 3), keepdim=True).expand_as(found)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(with_histogram_of(plain, content)[..., :16, :24], plain)
    torch.testing.assert_close(with_histogram_of(plain, flat(9, 80, 200)), plain)


def test_matching_does_not_depend_on_the_order_in_which_pixels_are_summed():
    """Which is another one for each number of threads."""
    content, style = to_tensor(photo(300, 200, 11)), to_tensor(photo(200, 300, 12))
    turned = content.transpose(2, 3).contiguous()
    found = with_histogram_of(content, style)
    assert torch.equal(found, with_histogram_of(turned, style))
    turned_style = style.transpose(2, 3).contiguous()
    assert torch.equal(found, with_histogram_of(content, turned_style).transpose(2, 3))


def clear(width, height):
    """Return a picture that is clear on the left and opaque on the right."""
    image = photo(width, height)
    image.putalpha(Image.linear_gradient("L").rotate(90).resize((width, height)))
    return image


def test_the_engine_sees_the_colours_of_a_picture_with_alpha_as_they_are():
    image = clear(64, 48)
    found = content_tensor(image, settings(image_size=64))
    assert torch.equal(found, to_tensor(image.convert("RGB")))


@pytest.mark.parametrize("colours", ["none", "luminance"])
def test_alpha_is_kept_at_the_result_s_size(colours):
    content, job = clear(64, 48), settings(preserve_colors=colours)
    found = finish(to_tensor(photo(128, 96, 2)), content, job)
    assert (found.mode, found.size) == ("RGBA", (128, 96))
    opaque = finish(to_tensor(photo(128, 96, 2)), content.convert("RGB"), job)
    assert found.convert("RGB").tobytes() == opaque.tobytes()
    alpha = np.array(found.getchannel("A")).astype(int)
    assert abs(alpha[48] - np.linspace(0, 255, 128)).max() < 4


TEXT = {"Software": "StyleQueue 1.2", "seed": "3"}


def ramp(width, height):
    """Return a painting of finer shades than eight bits have, in no colour twice."""
    shades = torch.linspace(0.2, 0.8, width * height).view(1, 1, height, width)
    return torch.cat([shades, shades.flip(2), shades.flip(3)], 1)


def read(data, job):
    if job.result_format == "tiff16":
        return tifffile.imread(io.BytesIO(data))
    return imagecodecs.png_decode(data)


@pytest.mark.parametrize("name", ["png16", "tiff16"])
def test_a_result_of_sixteen_bits_is_quantised_straight_from_the_painting(name):
    job, painted = settings(result_format=name), ramp(96, 64)
    found = read(encode_result(painted, photo(64, 48), job, TEXT), job)
    assert found.shape == (64, 96, 3)
    exact = painted[0].permute(1, 2, 0).double().numpy() * 65535
    assert abs(found - exact).max() <= 0.51
    assert len(np.unique(found[..., 0])) == 96 * 64


@pytest.mark.parametrize("name", ["png16", "tiff16"])
def test_kept_brightness_has_all_sixteen_bits(name):
    job = settings(result_format=name, preserve_colors="luminance")
    content = Image.new("RGB", (96, 64), (140, 120, 110))
    found = read(encode_result(ramp(96, 64), content, job, TEXT), job)
    assert len(np.unique(found[..., 0])) > 5000


@pytest.mark.parametrize("name", ["png", "png16", "tiff16"])
def test_a_result_is_what_is_shown_of_it(name):
    job, content = settings(result_format=name), clear(64, 48)
    data = encode_result(ramp(96, 64), content, job, TEXT)
    found = read(data, job).astype(float)
    shown = np.asarray(finish(ramp(96, 64), content, job))
    assert found.shape == shown.shape == (64, 96, 4)
    white = 255 if name == "png" else 65535
    assert abs(found / white * 255 - shown).max() <= 0.51
    assert data.startswith(b"II" if name == "tiff16" else b"\x89PNG")
    assert b"StyleQueue 1.2" in data


def test_what_lies_outside_of_black_and_white_is_cut_off():
    painted = torch.tensor([-0.5, 1.5]).view(1, 1, 1, 2).expand(1, 3, 40, 2)
    job = settings(result_format="png16")
    found = read(encode_result(painted, photo(8, 8), job, TEXT), job)
    assert found[0].tolist() == [[0] * 3, [65535] * 3]
