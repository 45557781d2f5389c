from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from stylequeue_shared import images
from stylequeue_shared.decoding_child import needs_a_thread
from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.pictures.formats import ACCEPTED, FORM_ACCEPT
from tests.shared.pictures import colourful, saved, swapped_profile
from tests.shared.reference import P3, assert_is, encoded, linear

PIXELS = np.asarray(colourful()).astype(float)
NOISE = Image.effect_noise((64, 48), 80).convert("RGB")


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read(
    mode: str, options: dict[str, Any]
) -> None:
    data = saved(NOISE.convert(mode), "JPEG", **options)
    whole = np.asarray(images.decode(data)).astype(float)
    assert data.endswith(b"\xff\xd9")
    for rest in (b"", bytes(1000), b"\xff"):
        assert_is(data[:-2] + rest, whole, worst=0)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("rest", [b"", bytes(3000)])
def test_a_jpeg_that_lacks_pixels_too_is_refused(
    progressive: bool, rest: bytes
) -> None:
    data = saved(NOISE, "JPEG", progressive=progressive)
    for missing in (12, 40, len(data) // 3):
        with pytest.raises(InvalidPicture, match="damaged or cut short"):
            images.decode(data[:-missing] + rest)


def test_a_progressive_jpeg_that_lacks_whole_scans_is_refused() -> None:
    data = saved(NOISE, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(InvalidPicture, match="damaged or cut short"):
        images.decode(data[:last])


@pytest.mark.parametrize(
    ("marker", "precision", "named"),
    [
        (0xC1, 12, "a JPEG picture of 12 bits a sample"),
        (0xC3, 8, "a lossless JPEG picture"),
        (0xC5, 8, "a hierarchical JPEG picture"),
        (0xF7, 8, "a JPEG-LS picture"),
    ],
)
def test_other_kinds_of_jpeg_are_named(marker: int, precision: int, named: str) -> None:
    data = bytearray(saved(NOISE, "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4] = marker, precision
    with pytest.raises(InvalidPicture, match=f"found {named}, which is not supported"):
        images.decode(bytes(data))


def test_a_lossless_jpeg_of_another_encoder_is_named() -> None:
    data = imagecodecs.ljpeg_encode(np.asarray(NOISE.convert("L")), bitspersample=8)
    with pytest.raises(InvalidPicture, match="found a lossless JPEG"):
        images.decode(bytes(data))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("alpha", [0, 128])
def test_a_bmp_that_is_clear_everywhere_is_opaque(mirrored: bool, alpha: int) -> None:
    image = colourful()
    image.putalpha(alpha)
    data = bytearray(saved(image, "BMP"))
    # Pillow writes the pixels from the lowest row up, behind a header without masks.
    pixels = bytes(data[int.from_bytes(data[10:14], "little") :])
    masks = b"".join(
        one.to_bytes(4, "little") for one in (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    )
    header = bytearray(data[14:54])
    header[0:4], header[16:20] = (56).to_bytes(4, "little"), (3).to_bytes(4, "little")
    if mirrored:  # the highest row comes first
        header[8:12] = (-32).to_bytes(4, "little", signed=True)
        rows = [pixels[at : at + 48 * 4] for at in range(0, len(pixels), 48 * 4)]
        pixels = b"".join(reversed(rows))
    start = (14 + 56).to_bytes(4, "little")
    bmp = bytes(data[:10]) + start + bytes(header) + masks + pixels
    expected = PIXELS if alpha == 0 else PIXELS * 128 / 255 + 127
    assert_is(bmp, expected, worst=1.1, mean=0.6)


def nclx(data: bytes, primaries: int, transfer: int) -> bytes:
    """Return the AVIF or HEIC with another coding of its colours."""
    place = data.index(b"nclx") + 4
    return data[:place] + bytes((0, primaries, 0, transfer)) + data[place + 4 :]


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_colours_given_by_numbers_in_boxes_are_converted(format: str) -> None:
    data = saved(colourful(), format, quality=100)
    plain = np.asarray(images.decode(nclx(data, 1, 13))).astype(float)
    assert abs(plain - PIXELS).mean() < 3
    expected = encoded(linear(plain / 255) @ P3.T)
    assert_is(nclx(data, 12, 13), expected, worst=1.6)
    for transfer, name in ((16, "PQ"), (18, "HLG")):
        with pytest.raises(InvalidPicture, match=name):
            images.decode(nclx(data, 9, transfer))


def test_an_avif_is_read_as_another_reader_reads_it() -> None:
    data = saved(colourful(), "AVIF", quality=90)
    assert_is(data, imagecodecs.avif_decode(data).astype(float), mean=0.6, worst=3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_heic_is_read(mode: str) -> None:
    image = colourful().convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    data = saved(image, "HEIF", quality=100, chroma=444)
    expected = np.asarray(image.convert("RGB")).astype(float)
    if mode == "RGBA":
        expected = expected * 128 / 255 + 127
    assert_is(data, expected, mean=2, worst=12)
    assert images.read(data)[1] == "image/heif"


@pytest.mark.parametrize("format", ["AVIF", "HEIF", "WEBP"])
def test_a_profile_stands_above_numbers(format: str) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    got = images.decode(saved(red, format, icc_profile=swapped_profile()))
    assert abs(np.asarray(got).astype(int) - (0, 0, 255)).max() <= 16


def test_a_heic_of_ten_bits_is_read() -> None:
    deep = np.asarray(colourful()).astype(np.uint16) * 257
    file = pillow_heif.from_bytes("RGB;16", (48, 32), deep.tobytes())
    buffer = BytesIO()
    file.save(buffer, quality=100, chroma=444)
    assert_is(buffer.getvalue(), PIXELS, mean=2, worst=12)


def test_the_decoder_of_heic_may_start_a_thread_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    assert not needs_a_thread(path)
    for format in ACCEPTED:
        path.write_bytes(saved(colourful(), format))
        assert needs_a_thread(path) == (format == "HEIF")


def box(name: bytes, *brands: bytes) -> bytes:
    content = name + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(content)).to_bytes(4, "big") + content


NAMED = {
    "a JPEG XL picture": [b"\xff\x0a" + bytes(9), b"\0\0\0\x0cJXL \r\n\x87\n"],
    "a JPEG 2000 picture": [b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51"],
    "a JPEG XR picture": [b"II\xbc\x01"],
    r"a camera raw picture \(CR2\)": [b"II*\0\x10\0\0\0CR\2\0"],
    r"a camera raw picture \(CR3\)": [box(b"ftyp", b"crx ", b"crx ", b"isom")],
    r"a camera raw picture \(RAF\)": [b"FUJIFILMCCD-RAW 0201"],
    r"a camera raw picture \(ORF\)": [b"IIRO\x08\0\0\0", b"MMOR", b"IIRS"],
    r"a camera raw picture \(RW2\)": [b"IIU\0\x18\0\0\0"],
    "a HEIC picture": [
        box(b"ftyp", b"heic"),
        box(b"ftyp", b"hevc", b"mif1", b"heic"),
        box(b"ftyp", b"mif1", b"heic"),
    ],
    "an AVIF picture": [box(b"ftyp", b"avif"), box(b"ftyp", b"mif1", b"avif")],
    "a video": [box(b"ftyp", b"isom", b"mp42"), b"\x1a\x45\xdf\xa3"],
    "a Photoshop file": [b"8BPS\0\1"],
    "an OpenEXR picture": [b"\x76\x2f\x31\x01\2"],
    "a Radiance HDR picture": [b"#?RADIANCE\n", b"#?RGBE\n"],
    r"an icon \(ICO\)": [b"\0\0\1\0\1\0"],
    "a TGA picture": [bytes(60) + b"TRUEVISION-XFILE.\0"],
    "a PNM picture": [b"P6 2 2 255\n"],
    "a QOI picture": [b"qoif\0\0"],
    "a DICOM picture": [bytes(128) + b"DICM"],
    "a PDF document": [b"%PDF-1.7"],
    "a GIMP file": [b"gimp xcf v011"],
}


@pytest.mark.parametrize("named", NAMED)
def test_formats_that_are_not_accepted_are_named(named: str) -> None:
    for data in NAMED[named]:
        with pytest.raises(InvalidPicture, match=rf"found {named}.*allowed are JPEG"):
            images.decode(data)


def test_the_form_offers_what_browsers_do_not_count_as_pictures() -> None:
    assert FORM_ACCEPT == "image/*,.tif,.tiff,.avif,.heic,.heif"
