import struct
import zlib
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from stylequeue_shared import images
from stylequeue_shared.errors import InvalidPicture
from tests.shared.pictures import colourful, exif, png, saved, swapped_profile
from tests.shared.reference import (
    BT2020,
    P3,
    assert_is,
    deep_colours,
    encoded,
    linear,
    over_white,
)

DEEP = deep_colours()
RGB = DEEP[..., :3]
EIGHT = (RGB / 257).round().astype(np.uint8)
SIZE = (RGB.shape[1], RGB.shape[0])
LIGHT = linear(EIGHT / 255.0)


def eight(*chunks: tuple[bytes, bytes]) -> bytes:
    return png(SIZE, 8, 2, EIGHT.tobytes(), *chunks)


def sixteen(*chunks: tuple[bytes, bytes]) -> bytes:
    return png(SIZE, 16, 2, RGB.astype(">u2").tobytes(), *chunks)


def with_wrong_checksum(data: bytes, name: bytes) -> bytes:
    place = data.index(name)
    end = place + 4 + int.from_bytes(data[place - 4 : place], "big")
    return data[:end] + bytes([data[end] ^ 255]) + data[end + 1 :]


FAULTY: list[tuple[bytes, bytes]] = [
    (b"tEXt", b"Title\0of a picture"),
    (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
    (b"gAMA", struct.pack(">I", 100_000)),
    (b"iCCP", b"a\0\0" + zlib.compress(swapped_profile())),
    (b"tRNS", struct.pack(">3H", *EIGHT[3, 3].tolist())),
    (b"eXIf", exif(6)[6:]),
]


@pytest.mark.parametrize("chunk", FAULTY)
def test_an_ancillary_chunk_whose_checksum_is_wrong_is_left_out(
    chunk: tuple[bytes, bytes],
) -> None:
    data = with_wrong_checksum(eight(chunk), chunk[0])
    assert_is(data, EIGHT.astype(float), worst=0)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"pHYs", b"\0\0\1"),  # of a wrong length
        (b"gAMA", b"\0"),
        (b"gAMA", bytes(4)),
        (b"cHRM", bytes(32)),
        (b"cHRM", b"\xff" * 32),
        (b"cICP", b"\1"),
        (b"cICP", b"\x0c\x0d\x01\x01"),  # a matrix, which only video has
        (b"tRNS", b"\1"),
        (b"zTXt", b"a\0\7" + zlib.compress(b"text")),  # of an unknown method
        (b"iCCP", b"a\0\7" + zlib.compress(swapped_profile())),
        (b"iCCP", b"a\0\0" + zlib.compress(bytes(20_000_000))),
        (b"iTXt", b"nonsense"),
        (b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))),
        (b"acTL", b"\0" * 3),
    ],
)
def test_an_ancillary_chunk_with_odd_contents_is_left_out(
    chunk: tuple[bytes, bytes],
) -> None:
    assert_is(eight(chunk), EIGHT.astype(float), worst=0)


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_a_critical_chunk_whose_checksum_is_wrong_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidPicture, match="damaged"):
        images.decode(with_wrong_checksum(eight(), name))


@pytest.mark.parametrize("data", [eight(), sixteen()])
def test_only_the_pixels_must_be_whole(data: bytes) -> None:
    whole = np.asarray(images.decode(data)).astype(float)
    for missing in (1, 12, 16):  # of the end, and of the pixels' checksum
        assert_is(data[:-missing], whole, worst=0)
    with pytest.raises(InvalidPicture, match="damaged"):
        images.decode(data[:-30])


def test_an_unknown_critical_chunk_and_the_pngs_of_iphones_are_refused() -> None:
    with pytest.raises(InvalidPicture, match="damaged"):
        images.decode(eight((b"ABCD", b"")))
    odd = eight()
    odd = odd[:8] + struct.pack(">I4s", 4, b"CgBI") + bytes(8) + odd[8:]
    with pytest.raises(InvalidPicture, match=r"found a PNG made for iPhone.*CgBI"):
        images.decode(odd)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_key_makes_its_samples_clear_at_any_depth(depth: int) -> None:
    top = 2**depth - 1
    samples = np.arange(16 * 16).reshape(16, 16) * 257 % (top + 1)
    key = int(samples[5, 3])
    if depth == 16:
        packed = samples.astype(">u2").tobytes()
    else:
        bits = samples.astype(np.uint8)[..., None] >> np.arange(depth - 1, -1, -1) & 1
        packed = np.packbits(bits.reshape(16, -1), axis=1).tobytes()
    data = png((16, 16), depth, 0, packed, (b"tRNS", struct.pack(">H", key)))
    clear = samples == key
    assert_is(data, np.where(clear, 255, samples / top * 255), worst=0.51)
    kept = np.asarray(images.decode(data, keep_alpha=True))
    assert ((kept[..., 3] == 0) == clear).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_key_is_compared_in_all_its_bits(depth: int) -> None:
    samples = np.zeros((16, 16, 3), np.uint16)
    samples[:8] = (100, 200, 50)
    samples[4:8, 4:] = (100, 200, 51)
    kind = ">u2" if depth == 16 else "u1"
    key = (b"tRNS", struct.pack(">3H", 100, 200, 50))
    expected = samples / (2**depth - 1) * 255.0
    expected[(samples == (100, 200, 50)).all(2)] = 255
    assert_is(png((16, 16), depth, 2, samples.astype(kind).tobytes(), key), expected)


def chrm(*points: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(one * 100_000) for one in points))


P3_CHRM = chrm(0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
SRGB_CHRM = chrm(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def gama(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def cicp(primaries: int, transfer: int) -> tuple[bytes, bytes]:
    return b"cICP", bytes((primaries, transfer, 0, 1))


ICC = (b"iCCP", b"a\0\0" + zlib.compress(swapped_profile()))
PLAIN = EIGHT.astype(float)
SPACES = {
    "gamma 1": ([gama(1)], encoded(EIGHT / 255.0)),
    "gamma 1.8": ([gama(1 / 1.8)], encoded((EIGHT / 255.0) ** 1.8)),
    "gamma 2.2, which stands for sRGB": ([gama(0.45455), SRGB_CHRM], PLAIN),
    "primaries": ([P3_CHRM], encoded(LIGHT @ P3.T)),
    "both": ([gama(1), P3_CHRM], encoded(EIGHT / 255.0 @ P3.T)),
    "P3": ([cicp(12, 13)], encoded(LIGHT @ P3.T)),
    "BT.2020": ([cicp(9, 13)], encoded(LIGHT @ BT2020.T)),
    "BT.2020, linear": ([cicp(9, 8)], encoded(EIGHT / 255.0 @ BT2020.T)),
    "sRGB": ([cicp(1, 13)], PLAIN),
    "CICP before a profile": ([cicp(12, 13), ICC], encoded(LIGHT @ P3.T)),
    "CICP before gamma": ([cicp(1, 13), gama(1)], PLAIN),
    "sRGB before gamma": ([(b"sRGB", b"\0"), gama(1), P3_CHRM], PLAIN),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("depth", [8, 16])
def test_colours_given_by_numbers_are_converted(space: str, depth: int) -> None:
    chunks, expected = SPACES[space]
    samples = EIGHT.astype(np.uint16) * 257
    deep = png(SIZE, 16, 2, samples.astype(">u2").tobytes(), *chunks)
    assert_is(eight(*chunks) if depth == 8 else deep, expected, worst=1.6)


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_and_palettes_have_a_gamma_too(depth: int) -> None:
    grey = np.tile(np.arange(256, dtype=np.uint16), (16, 1))
    packed = grey.astype("u1") if depth == 8 else (grey * 257).astype(">u2")
    expected = encoded(grey / 255.0)
    assert_is(png((256, 16), depth, 0, packed.tobytes(), gama(1)), expected)
    table = np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes()
    indexed = png(
        (256, 16), 8, 3, grey.astype("u1").tobytes(), gama(1), (b"PLTE", table)
    )
    assert_is(indexed, expected)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_pictures_of_high_range_are_refused_by_name(transfer: int, name: str) -> None:
    for primaries in (9, 12):
        with pytest.raises(InvalidPicture, match=rf"found an HDR picture \({name}\)"):
            images.decode(eight(cicp(primaries, transfer)))


def test_colours_that_are_not_known_are_refused_by_number() -> None:
    with pytest.raises(InvalidPicture, match="CICP 10/13"):
        images.decode(eight(cicp(10, 13)))
    with pytest.raises(InvalidPicture, match="video range"):
        images.decode(eight((b"cICP", bytes((12, 13, 0, 0)))))


def test_the_darks_of_sixteen_bits_are_not_banded_by_a_linear_profile() -> None:
    dark = np.tile(np.arange(0, 1280, 5, dtype=np.uint16), (16, 1))
    profile = imagecodecs.cms_profile("gray", gamma=1.0)
    icc = (b"iCCP", b"a\0\0" + zlib.compress(profile))
    data = png((256, 16), 16, 0, dark.astype(">u2").tobytes(), icc)
    assert_is(data, encoded(dark / 65535.0), worst=0.6)
    # No level is left out.
    assert np.unique(np.asarray(images.decode(data))).tolist() == list(range(39))


def test_sixteen_bits_are_rounded_not_cut() -> None:
    assert_is(sixteen(), RGB / 257, worst=0.5, mean=0.05)


def test_sixteen_bits_with_alpha_are_laid_over_white() -> None:
    expected = over_white(RGB / 257, DEEP[..., 3] / 65535)
    assert_is(png(SIZE, 16, 6, DEEP.astype(">u2").tobytes()), expected, worst=1.5)


def test_an_interlaced_picture_of_sixteen_bits_is_read() -> None:
    data = bytearray(png((1, 1), 16, 0, b"\x80\x00"))
    data[28] = 1  # one pixel is the same either way
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert np.asarray(images.decode(bytes(data))).tolist() == [[[128] * 3]]


@pytest.mark.parametrize("depth", [8, 16])
def test_deep_pictures_too_are_turned_by_exif_or_xmp(depth: int) -> None:
    data = {8: eight, 16: sixteen}[depth]
    packet = b'<rdf:Description tiff:Orientation="6"/>'
    xmp = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    expected = np.rot90(RGB / 257, -1)
    for chunk in ((b"eXIf", exif(6)[6:]), xmp):
        assert_is(data(chunk), expected, worst=0.51)


def test_of_an_animation_the_still_picture_is_read() -> None:
    frames = [colourful(), colourful().transpose(Image.Transpose.ROTATE_180)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert_is(data, np.asarray(colourful()).astype(float), worst=0)
    with Image.open(BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
