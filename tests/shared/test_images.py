import re
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import BmpImagePlugin, Image, ImageCms, PngImagePlugin

from stylequeue_shared import images
from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.pictures.formats import ACCEPTED
from tests.shared.pictures import (
    cmyk_profile,
    colourful,
    exif,
    png,
    saved,
    swapped_profile,
    tiff,
)

# Nothing is lost by these, so every pixel must come back.
LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
}
LOSSY = {"JPEG": {"quality": 95}, "AVIF": {"quality": 90}, "WEBP": {"quality": 95}}


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def decoded(data: bytes) -> np.ndarray:
    return pixels(images.decode(data))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(abs(a - b).mean())


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_pictures_come_back_to_the_bit(format: str) -> None:
    data = saved(colourful(), format, **LOSSLESS[format])
    assert (decoded(data) == pixels(colourful())).all()


@pytest.mark.parametrize("format", LOSSY)
def test_lossy_pictures_come_back_nearly(format: str) -> None:
    data = saved(colourful(), format, **LOSSY[format])
    assert difference(decoded(data), pixels(colourful())) < 3


def test_bytes_files_and_paths_are_all_read(tmp_path: Path) -> None:
    data = saved(colourful(), "PNG")
    (tmp_path / "a").write_bytes(data)
    for source in (data, BytesIO(data), tmp_path / "a"):
        assert (pixels(images.decode(source)) == pixels(colourful())).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken(format: str) -> None:
    first, second = (Image.new("RGB", (16, 16), c) for c in ("red", "blue"))
    data = saved(first, format, save_all=True, append_images=[second])
    assert difference(decoded(data), pixels(first)) < 3


def test_a_jpeg_with_a_second_picture_behind_it_is_a_jpeg() -> None:
    data = saved(colourful(), "MPO", save_all=True, append_images=[colourful()])
    image, media_type = images.read(data)
    assert media_type == "image/jpeg"
    assert difference(pixels(image), pixels(colourful())) < 3


@pytest.mark.parametrize("format", ["PNG", "TIFF", "GIF", "BMP", "JPEG"])
def test_grey_becomes_rgb(format: str) -> None:
    grey = colourful().convert("L")
    expected = pixels(grey.convert("RGB"))
    assert difference(decoded(saved(grey, format)), expected) < 2


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_black_and_white_becomes_rgb(format: str) -> None:
    bits = colourful().convert("1")
    assert (decoded(saved(bits, format)) == pixels(bits.convert("RGB"))).all()


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_becomes_its_colours(format: str) -> None:
    few = colourful().quantize(32)
    assert (decoded(saved(few, format)) == pixels(few.convert("RGB"))).all()


def test_what_a_palette_makes_clear_is_white() -> None:
    few = Image.new("P", (8, 8), 1)
    few.putpalette([255, 0, 0, 0, 0, 255])
    few.putpixel((3, 2), 0)
    for format in ("PNG", "GIF"):
        got = decoded(saved(few, format, transparency=1))
        assert tuple(got[2, 3]) == (255, 0, 0)
        assert tuple(got[0, 0]) == (255, 255, 255)


def test_a_palette_with_degrees_of_clearness_is_mixed_with_white() -> None:
    few = Image.new("P", (8, 8), 0)
    few.putpalette([255, 0, 0])
    got = decoded(saved(few, "PNG", transparency=bytes([128])))
    assert abs(got[0, 0] - (255, 127, 127)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_alpha_is_laid_over_white(format: str) -> None:
    image = Image.new("RGBA", (16, 16), (200, 0, 100, 64))
    options = {"lossless": True} if format == "WEBP" else {}
    got = decoded(saved(image, format, **options))
    expected = np.array((200, 0, 100)) * 64 / 255 + 255 * (1 - 64 / 255)
    assert abs(got - expected).max() <= 3


def test_grey_with_alpha_is_laid_over_white() -> None:
    got = decoded(saved(Image.new("LA", (8, 8), (0, 51)), "PNG"))
    assert abs(got - 204).max() <= 1


def test_one_colour_declared_clear_is_white() -> None:
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    got = decoded(saved(image, "PNG", transparency=(1, 2, 3)))
    assert tuple(got[0, 0]) == (9, 9, 9)
    assert tuple(got[1, 1]) == (255, 255, 255)


RAMP = np.linspace(0, 65535, 64 * 16).round().astype(np.uint16).reshape(16, 64)


def assert_is_ramp(got: np.ndarray) -> None:
    expected = RAMP.astype(float) * 255 / 65535
    assert abs(got[..., 0] - expected).max() <= 1
    assert (got[..., 0] == got[..., 2]).all()
    assert got.min() == 0
    assert got.max() == 255


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_cut_off(format: str) -> None:
    assert_is_ramp(decoded(saved(Image.fromarray(RAMP), format)))


def test_sixteen_bit_grey_in_the_other_byte_order_is_scaled() -> None:
    image = Image.frombytes("I;16B", (64, 16), RAMP.astype(">u2").tobytes())
    assert_is_ramp(decoded(saved(image, "TIFF")))


def test_sixteen_bit_grey_may_have_a_clear_value() -> None:
    grey = np.array([[0, 1000], [65535, 1001]], ">u2")
    data = png((2, 2), 16, 0, grey.tobytes(), (b"tRNS", struct.pack(">H", 1000)))
    assert decoded(data)[..., 0].tolist() == [[0, 255], [255, 4]]


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_sixteen_bit_colours_and_alpha_of_a_png_are_scaled(colour: int) -> None:
    channels = {2: 3, 4: 2, 6: 4}[colour]
    deep = np.repeat(RAMP[..., None], channels, axis=2)
    if colour != 2:
        deep[..., -1] = 65535
    assert_is_ramp(decoded(png((64, 16), 16, colour, deep.astype(">u2").tobytes())))


def test_sixteen_bit_colours_of_a_tiff_are_scaled() -> None:
    deep = np.repeat(RAMP[..., None], 3, axis=2).astype("<u2")
    data = tiff((64, 16), (16, 16, 16), deep.tobytes(), photometric=2)
    assert_is_ramp(decoded(data))


def test_sixteen_bits_whose_zero_is_white_are_inverted() -> None:
    data = tiff((64, 16), (16,), (65535 - RAMP).astype("<u2").tobytes(), photometric=0)
    assert_is_ramp(decoded(data))


def test_twelve_bits_reach_white() -> None:
    # Two values in three bytes: 0x000 and 0xfff.
    data = tiff((2, 2), (12,), bytes((0x00, 0x0F, 0xFF)) * 2)
    assert decoded(data)[..., 0].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize(
    ("top", "kind"), [(255, "<u4"), (65535, "<u4"), (2**32 - 1, "<u4")]
)
def test_thirty_two_bit_integers_are_scaled_to_the_white_that_fits(
    top: int, kind: str
) -> None:
    values = np.array([[0, top // 2], [top, top // 5]], kind)
    got = decoded(tiff((2, 2), (32,), values.tobytes()))
    assert abs(got[..., 0] - [[0, 127], [255, 51]]).max() <= 1


@pytest.mark.parametrize("white", [1, 255, 65535, 1e9])
def test_floats_are_scaled_and_what_is_no_number_is_black(white: float) -> None:
    values = np.array([[0, white], [white / 2, np.nan]], np.float32)
    got = decoded(saved(Image.fromarray(values), "TIFF"))
    assert abs(got[..., 0] - [[0, 255], [128, 0]]).max() <= 1


def test_a_black_float_picture_is_black() -> None:
    got = decoded(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    assert got.max() == 0


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert abs(decoded(saved(cmyk, format)) - (0, 255, 255)).max() <= 3


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(format: str) -> None:
    # L* 53, a* 80, b* 67 is sRGB's red; a and b lie around 128.
    profile = cmyk_profile((round(53.2 * 2.55), 128 + 80, 128 + 67))
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    got = decoded(saved(cyan, format, icc_profile=profile))
    assert abs(got - (255, 0, 0)).max() < 25
    paper = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert decoded(saved(paper, format, icc_profile=profile)).min() >= 250


def test_lab_becomes_rgb() -> None:
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (8, 8), (180, 40, 90)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    assert abs(decoded(saved(lab, "TIFF")) - (180, 40, 90)).max() <= 4


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_colours_are_converted_by_their_profile(format: str) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    got = decoded(saved(red, format, icc_profile=swapped_profile()))
    assert abs(got - (0, 0, 255)).max() <= 12


def test_a_palette_is_converted_by_its_profile() -> None:
    few = Image.new("RGB", (16, 16), (255, 0, 0)).quantize(2)
    got = decoded(saved(few, "PNG", icc_profile=swapped_profile()))
    assert abs(got - (0, 0, 255)).max() <= 3


def test_alpha_stays_as_it_is_when_colours_are_converted() -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    got = decoded(saved(image, "PNG", icc_profile=swapped_profile()))
    assert abs(got - (127, 127, 255)).max() <= 3


@pytest.mark.parametrize("profile", [b"nonsense", swapped_profile()[:200]])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    data = saved(colourful(), "PNG", icc_profile=profile)
    assert (decoded(data) == pixels(colourful())).all()


def test_a_profile_for_other_channels_is_ignored() -> None:
    grey = colourful().convert("L")
    data = saved(grey, "PNG", icc_profile=swapped_profile())
    assert (decoded(data) == pixels(grey.convert("RGB"))).all()


# The turn that undoes each orientation.
UNDONE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", UNDONE)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_upright(format: str, orientation: int) -> None:
    turn = UNDONE[orientation]
    lying = colourful() if turn is None else colourful().transpose(turn)
    got = decoded(saved(lying, format, exif=exif(orientation)))
    assert difference(got, pixels(colourful())) < 8


@pytest.mark.parametrize("block", [b"Exif\x00\x00nonsense", b"Exif\x00\x00II*\x00\xff"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_exif_block_is_ignored(block: bytes) -> None:
    assert decoded(saved(colourful(), "JPEG", exif=block)).shape == (32, 48, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_nothing_but_pixels_is_kept(format: str) -> None:
    options = {"exif": exif(), "icc_profile": swapped_profile(), "dpi": (300, 300)}
    image = images.decode(saved(colourful(), format, **options))
    assert not image.info
    assert not image.getexif()


def test_written_files_carry_no_metadata_of_the_picture() -> None:
    image = colourful()
    image.info = {
        "icc_profile": swapped_profile(),
        "comment": b"SECRET",
        "dpi": (72, 72),
        "exif": exif(),
    }
    with Image.open(BytesIO(images.encode_png(image))) as got:
        assert not got.info
    jpeg = images.encode_jpeg(image)
    assert b"SECRET" not in jpeg
    with Image.open(BytesIO(jpeg)) as got:
        assert {name for name in got.info if not name.startswith("jfif")} <= {"dpi"}
    assert "icc_profile" in image.info  # the caller's picture is left alone


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_alpha_is_kept_on_request_beside_the_colours_over_white(format: str) -> None:
    clear = colourful()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(clear, format, **options)
    got = images.decode(data, keep_alpha=True)
    assert got.mode == "RGBA"
    assert difference(*(np.asarray(one)[..., 3] * 1.0 for one in (got, clear))) < 2
    assert (pixels(got.convert("RGB")) == decoded(data)).all()


def test_kept_alpha_is_turned_upright_with_its_picture(tmp_path: Path) -> None:
    clear = colourful()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    lying = clear.transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "lying.png").write_bytes(saved(lying, "PNG", exif=exif(6)))
    got = images.decode(tmp_path / "lying.png", keep_alpha=True)
    assert got.getchannel("A").tobytes() == clear.getchannel("A").tobytes()


def test_a_picture_without_alpha_gets_none_on_request_either() -> None:
    assert images.decode(saved(colourful(), "PNG"), keep_alpha=True).mode == "RGB"


def test_alpha_is_written_to_a_png_and_laid_over_white_in_a_jpeg() -> None:
    clear = Image.new("RGBA", (16, 16), (200, 0, 100, 0))
    with Image.open(BytesIO(images.encode_png(clear))) as got:
        assert (got.mode, got.getpixel((3, 3))) == ("RGBA", (200, 0, 100, 0))
    assert decoded(images.encode_jpeg(clear)).min() >= 254


def test_a_png_carries_the_text_it_is_given() -> None:
    data = images.encode_png(colourful(), {"seed": "12", "title": "Ünï ×"})
    with Image.open(BytesIO(data)) as got:
        assert isinstance(got, PngImagePlugin.PngImageFile)
        assert got.text == {"seed": "12", "title": "Ünï ×"}
        assert (pixels(got.convert("RGB")) == pixels(colourful())).all()


def test_the_quality_of_a_jpeg_is_the_callers_choice() -> None:
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    assert len(images.encode_jpeg(image, 95)) > 2 * len(images.encode_jpeg(image, 40))


def test_an_array_becomes_a_picture() -> None:
    array = np.asarray(colourful())
    assert (pixels(images.from_array(array)) == array).all()


def test_shrinking_never_enlarges() -> None:
    assert images.shrink(colourful(), 24).size == (24, 16)
    assert images.shrink(colourful(), 480).size == (48, 32)


NOISE = Image.effect_noise((96, 64), 80).convert("RGB")


@pytest.mark.parametrize("eighth", range(1, 8))
@pytest.mark.parametrize("format", ACCEPTED)
def test_a_file_that_is_cut_short_is_refused(format: str, eighth: int) -> None:
    data = saved(NOISE, format)
    with pytest.raises(InvalidPicture, match=r"found .*; allowed are"):
        images.decode(data[: len(data) * eighth // 8])


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"just a letter, d\xc3\xa9j\xc3\xa0 vu", "a text"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<svg/>', "an SVG drawing"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>", "a web page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"PK\x03\x04" + bytes(40), "a ZIP archive"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), "a HEIC picture"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "a JPEG picture that is damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG picture that is damaged"),
        (b"GIF89a", "a damaged GIF picture"),
        (bytes(100), "a file that is not a picture"),
    ],
)
def test_what_is_not_a_picture_is_named(data: bytes, found: str) -> None:
    with pytest.raises(InvalidPicture, match=f"found {found}") as refused:
        images.decode(data)
    assert re.search("; allowed are (JPEG, PNG, WEBP|whole)", refused.value.message)


@pytest.mark.parametrize(
    "format", ["PPM", "ICO", "TGA", "PCX", "JPEG2000", "PDF", "EPS"]
)
def test_formats_that_pillow_knows_but_we_do_not_accept_are_refused(
    format: str,
) -> None:
    with pytest.raises(InvalidPicture, match="allowed are JPEG"):
        images.decode(saved(colourful(), format))


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(InvalidPicture, match=r"60000 x 50000.*at most 50 megapixels"):
        images.decode(png((60000, 50000), 8, 2, b""), max_pixels=50_000_000)
    assert images.decode(saved(colourful(), "PNG"), max_pixels=48 * 32)
    with pytest.raises(InvalidPicture, match="48 x 32"):
        images.decode(saved(colourful(), "PNG"), max_pixels=48 * 32 - 1)


@pytest.mark.parametrize(
    ("options", "place", "size"),
    [
        ({"lossless": True}, 21, struct.pack("<I", 0x3FFF | 0x3FFF << 14)),
        ({"exif": exif()}, 24, b"\xff\x3f\x00\xff\x3f\x00"),
        ({}, 26, b"\xff\x3f\xff\x3f"),
    ],
)
def test_a_huge_webp_of_any_kind_is_refused_before_it_takes_memory(
    options: dict[str, bytes], place: int, size: bytes
) -> None:
    data = saved(colourful(), "WEBP", **options)
    bomb = data[:place] + size + data[place + len(size) :]
    with pytest.raises(InvalidPicture, match=r"1638[34] x 1638[34].*at most 50 mega"):
        images.decode(bomb, max_pixels=50_000_000)
    assert images.decode(data, max_pixels=48 * 32).size == (48, 32)


def test_thin_pictures_are_refused() -> None:
    assert images.decode(saved(Image.new("RGB", (320, 10)), "PNG")).size == (320, 10)
    for size in ((321, 10), (10, 321)):
        with pytest.raises(InvalidPicture, match="at most 32 times the other"):
            images.decode(saved(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("method", ["load", "_open"])
@pytest.mark.parametrize("error", [SyntaxError, IndexError, struct.error, zlib.error])
def test_whatever_a_decoder_raises_means_a_damaged_picture(
    monkeypatch: pytest.MonkeyPatch, method: str, error: type[Exception]
) -> None:
    def fail(self: object) -> None:
        raise error("chunk is odd")

    monkeypatch.setattr(BmpImagePlugin.BmpImageFile, method, fail)
    with pytest.raises(InvalidPicture, match="damaged"):
        images.decode(saved(colourful(), "BMP"))


def test_running_out_of_memory_is_not_the_pictures_fault_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr(BmpImagePlugin.BmpImageFile, "load", fail)
    with pytest.raises(MemoryError):
        images.decode(saved(colourful(), "BMP"))


def examples() -> list[bytes]:
    small = colourful(24, 16)
    files = [saved(small, format, exif=exif(6)) for format in ACCEPTED]
    files.append(
        saved(small.convert("CMYK"), "JPEG", icc_profile=cmyk_profile((9, 9, 9)))
    )
    files.append(saved(small.quantize(9), "PNG", icc_profile=swapped_profile()))
    files.append(saved(Image.fromarray(RAMP[:, :16]), "TIFF", compression="tiff_lzw"))
    files.append(saved(small, "TIFF", compression="jpeg"))
    files.append(saved(small, "JPEG", progressive=True))
    return files


EXAMPLES = examples()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.sampled_from(EXAMPLES),
    changes=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1),
    cut=st.integers(0, 2000),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_and_nothing_else(
    data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    read_or_refuse(bytes(damaged[: max(1, len(damaged) - max(0, cut - 1000))]))


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from([b"", *(data[:12] for data in EXAMPLES)]),
    rest=st.binary(max_size=300),
)
@pytest.mark.filterwarnings("ignore")
def test_random_bytes_are_refused_and_nothing_else(start: bytes, rest: bytes) -> None:
    read_or_refuse(start + rest)


def read_or_refuse(data: bytes) -> None:
    with suppress(InvalidPicture):
        image = images.decode(data, max_pixels=1_000_000)
        assert image.mode == "RGB"
        assert not image.info
