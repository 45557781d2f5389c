from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile

from stylequeue_shared import images
from stylequeue_shared.errors import InvalidPicture
from tests.shared.pictures import colourful, swapped_profile, tiff
from tests.shared.reference import assert_is, deep_colours, of_lab, over_white

DEEP = deep_colours()
RGB = DEEP[..., :3]
EIGHT = (RGB / 257).round().astype(np.uint8)
EXPECTED = RGB / 257
CLEAR = over_white(EXPECTED, DEEP[..., 3] / 65535)


def written(array: np.ndarray, *, planes: bool = False, **options: Any) -> bytes:
    buffer = BytesIO()
    if planes:
        array = np.moveaxis(array, -1, 0)
        options["planarconfig"] = "separate"
    tifffile.imwrite(buffer, array, **({"photometric": "rgb"} | options))
    return buffer.getvalue()


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 5},
        {"tile": (16, 16)},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw", "tile": (16, 16)},
        {"compression": "zstd"},
        {"compression": "packbits"},
        {"compression": "lzma", "predictor": True},
    ],
)
def test_colours_of_sixteen_bits_are_read_however_they_are_laid_out(
    planes: bool, byteorder: str, options: dict[str, Any]
) -> None:
    data = written(RGB, planes=planes, byteorder=byteorder, **options)
    assert_is(data, EXPECTED, worst=0.51)


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("array", [DEEP, (DEEP / 257).round().astype(np.uint8)])
def test_alpha_is_heeded_at_any_depth(planes: bool, array: np.ndarray) -> None:
    data = written(array, planes=planes, extrasamples=["unassalpha"])
    assert_is(data, CLEAR, worst=1.5, mean=0.6)


@pytest.mark.parametrize("planes", [False, True])
def test_premultiplied_alpha_is_divided_out(planes: bool) -> None:
    alpha = DEEP[..., 3:].astype(float) / 65535
    color = (RGB * alpha).round().astype(np.uint16)
    data = written(
        np.dstack([color, DEEP[..., 3]]), planes=planes, extrasamples=["assocalpha"]
    )
    assert_is(data, CLEAR, worst=1.5, mean=0.6)


def test_samples_that_are_not_alpha_are_ignored() -> None:
    assert_is(written(DEEP, extrasamples=["unspecified"]), EXPECTED, worst=0.51)


@pytest.mark.parametrize("planes", [False, True])
def test_cmyk_of_sixteen_bits_is_read(planes: bool) -> None:
    ink = np.dstack([65535 - RGB, np.zeros(RGB.shape[:2], np.uint16)])
    data = written(ink, planes=planes, photometric="separated")
    assert_is(data, EXPECTED)


@pytest.mark.parametrize("compression", [None, "lzw", "zstd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lab_is_read_at_any_depth(dtype: type, compression: str | None) -> None:
    lightness, a, b = RGB[..., 0] >> 8, RGB[..., 1] >> 10, RGB[..., 2] >> 10
    lab = np.dstack([lightness, a, b]).astype(np.int64) - (0, 32, 32)
    deep = lab * (257, 256, 256) if dtype is np.uint16 else lab
    data = written(deep.astype(dtype), photometric="cielab", compression=compression)
    assert_is(data, of_lab(lab / (2.55, 1, 1)), worst=1.5)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_grey_whose_zero_is_white_is_turned_round(
    dtype: type, compression: str | None
) -> None:
    grey = (RGB[..., 2] > 30000) if dtype is np.bool_ else RGB[..., 2] >> 8
    grey = (RGB[..., 2] if dtype is np.uint16 else grey).astype(dtype)
    white = {np.bool_: 1, np.uint8: 255, np.uint16: 65535}[dtype]
    data = written(grey, photometric="miniswhite", compression=compression)
    assert_is(data, 255 - grey / white * 255)


def test_a_palette_behind_a_compression_that_pillow_does_not_know_is_read() -> None:
    few = colourful().quantize(16)
    table = np.zeros((3, 256), np.uint16)
    palette = np.array(few.getpalette()).reshape(-1, 3)
    table[:, : len(palette)] = palette.T * 257
    data = written(
        np.asarray(few), photometric="palette", colormap=table, compression="zstd"
    )
    assert_is(data, np.asarray(few.convert("RGB")).astype(float))


@pytest.mark.parametrize("planes", [False, True])
def test_eight_bits_in_planes_and_webp_within_are_read(planes: bool) -> None:
    assert_is(written(EIGHT, planes=planes), EIGHT.astype(float), worst=0)
    if not planes:
        lossless = {"compression": "webp", "compressionargs": {"lossless": True}}
        assert_is(written(EIGHT, **lossless), EIGHT.astype(float), worst=0)


def test_half_floats_are_read_like_floats() -> None:
    grey = (RGB[..., 2] / 65535).astype(np.float16)
    assert_is(written(grey, photometric="minisblack"), grey.astype(float) * 255)


def test_sixteen_bits_are_converted_by_their_profile() -> None:
    expected = EXPECTED[..., ::-1]  # by which red means blue
    data = written(RGB, iccprofile=swapped_profile())
    assert_is(data, expected, mean=3, worst=12)


@pytest.mark.parametrize("orientation", [3, 6])
def test_deep_pictures_are_turned_upright(orientation: int) -> None:
    turns = {3: 2, 6: 1}[orientation]
    lying = np.ascontiguousarray(np.rot90(RGB, turns))
    data = written(lying, extratags=[(274, "H", 1, orientation, True)])
    assert_is(data, EXPECTED, worst=0.51)


REFUSED: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "signed numbers": ((RGB[..., 0] // 2).astype(np.int16), {}),
    "complex numbers": (RGB[..., 0].astype(np.complex64), {}),
    "in colour of 32 bits floating point": (RGB.astype(np.float32), {}),
    "in colour of 32 bits integers": (RGB.astype(np.uint32), {}),
    "samples a pixel": (np.zeros((20, 20, 12), np.uint16), {}),
    "in ICCLAB": (RGB, {"photometric": "icclab"}),
    "the compression JPEGXL": (EIGHT, {"compression": "jpegxl"}),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_sure_is_refused_by_name(named: str) -> None:
    array, options = REFUSED[named]
    if array.ndim == 2:
        options = {"photometric": "minisblack"}
    with pytest.raises(InvalidPicture, match=f"found a TIFF picture.*{named}"):
        images.decode(written(array, **options))


def pages(*parts: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    buffer = BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for array, options in parts:
            writer.write(array, **({"photometric": "rgb"} | options))
    return buffer.getvalue()


@pytest.mark.parametrize("full", [EIGHT, RGB])
def test_a_reduced_first_page_is_not_the_picture(full: np.ndarray) -> None:
    small = (np.ascontiguousarray(255 - EIGHT[::2, ::2]), {"subfiletype": 1})
    expected = full / (257 if full.dtype == np.uint16 else 1)
    assert_is(pages(small, (full, {})), expected, worst=0.51)
    within = pages((small[0], {"subfiletype": 1, "subifds": 1}), (full, {}))
    assert_is(within, expected, worst=0.51)


def test_a_mask_is_not_the_picture() -> None:
    mask = (EIGHT[..., 0] > 99, {"subfiletype": 4, "photometric": "minisblack"})
    assert_is(pages(mask, (EIGHT, {})), EIGHT.astype(float), worst=0)


def test_an_only_page_that_is_called_reduced_is_read() -> None:
    assert_is(pages((EIGHT, {"subfiletype": 1})), EIGHT.astype(float), worst=0)


@pytest.mark.parametrize("where", ["first page", "later page", "within"])
def test_camera_raws_are_refused_and_their_thumbnail_is_not_painted(where: str) -> None:
    thumbnail = (EIGHT[::2, ::2].copy(), {"subfiletype": 1})
    sensor = (RGB[..., 0], {"photometric": 32803})
    if where == "first page":
        version = [(50706, "B", 4, (1, 4, 0, 0), True)]
        data = pages((EIGHT, {"extratags": version}))
    elif where == "later page":
        data = pages(thumbnail, sensor)
    else:
        thumbnail[1]["subifds"] = 1
        data = pages(thumbnail, sensor)
    with pytest.raises(InvalidPicture, match="found a camera raw picture"):
        images.decode(data)


@pytest.mark.parametrize("compression", [None, "zlib", "zstd"])
@pytest.mark.parametrize("planes", [False, True])
def test_a_deep_tiff_that_is_cut_short_is_refused(
    compression: str | None, planes: bool
) -> None:
    data = written(RGB, planes=planes, compression=compression, rowsperstrip=4)
    start = data.index(b"\x00" * 4)
    for cut in (len(data) - 1, len(data) - 200, start + 100):
        with pytest.raises(InvalidPicture, match="damaged"):
            images.decode(data[:cut])


def test_a_part_that_is_missing_is_not_taken_for_black() -> None:
    data = bytearray(written(RGB, compression="zlib", rowsperstrip=4))
    with tifffile.TiffFile(BytesIO(bytes(data))) as file:
        counts = file.pages[0].tags[279]  # type: ignore[union-attr]
    size = {3: 2, 4: 4}[int(counts.dtype)]
    data[counts.valueoffset : counts.valueoffset + size] = bytes(size)
    with pytest.raises(InvalidPicture, match="damaged"):
        images.decode(bytes(data))


def test_the_size_of_a_deep_tiff_is_checked_before_it_is_decoded() -> None:
    bomb = tiff((60000, 50000), (16, 16, 16), bytes(100), photometric=2)
    with pytest.raises(InvalidPicture, match=r"60000 x 50000.*at most 50 megapixels"):
        images.decode(bomb, max_pixels=50_000_000)
