"""Read PNG files as browsers do: faulty and unneeded ancillary chunks are left out."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from stylequeue_shared.pictures.checks import SizeLimit, damaged, unsupported
from stylequeue_shared.pictures.color import (
    SRGB_PRIMARIES,
    Decoded,
    Deep,
    as_rgb,
    cicp_profile,
    matrix_profile,
)
from stylequeue_shared.pictures.eight import eight_bits
from stylequeue_shared.pictures.orientation import of_exif

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_XMP = b"XML:com.adobe.xmp\x00\x00"
# No honest profile comes near, and a bomb of zeros is stopped here.
_MAX_PROFILE = 16 * 1024**2
_MAX_XMP = 1024**2
_PALETTE = 3


@dataclass
class _Header:
    width: int
    height: int
    depth: int
    colour: int


@dataclass
class _File:
    """The chunks that matter: for the decoder, and what is applied afterwards."""

    header: _Header
    critical: list[tuple[bytes, bytes]]
    extra: dict[bytes, bytes] = field(default_factory=dict)

    def clean(self) -> bytes:
        """Return a file of the critical chunks and those that decoders do well."""
        first, *rest = self.critical
        kept: list[tuple[bytes, bytes]] = [
            (name, self.extra[name])
            for name in (b"eXIf", b"iTXt")
            if name in self.extra
        ]
        if self.header.colour == _PALETTE:
            kept += [chunk for chunk in rest if chunk[0] == b"PLTE"]
            kept += [(b"tRNS", self.extra[b"tRNS"])] if b"tRNS" in self.extra else []
        pixels = [chunk for chunk in rest if chunk[0] == b"IDAT"]
        chunks = [first, *kept, *pixels, (b"IEND", b"")]
        return _SIGNATURE + b"".join(_packed(*chunk) for chunk in chunks)


def decode(data: bytes, limit: SizeLimit) -> Decoded:
    """Decode the default picture of a PNG; of an animation, the still picture."""
    file = _parse(data)
    limit.check(file.header.width, file.header.height)
    profile, is_built = _profile(file.extra)
    clean = file.clean()
    with Image.open(BytesIO(clean), formats=["PNG"]) as image:
        orientation = of_exif(image)
        color: Image.Image | Deep
        if file.header.depth == 16:
            color, alpha = _deep(clean, file)
        else:
            image.load()
            color, alpha = _shallow(image, file)
    if is_built:
        color = as_rgb(color)
    return Decoded(color, alpha, profile, orientation)


def _parse(data: bytes) -> _File:
    file: _File | None = None
    for name, body, is_sound in _chunks(data):
        if name == b"CgBI":
            raise unsupported("a PNG made for iPhone programs (CgBI)", "ordinary PNGs")
        if name == b"IEND":
            break
        if file is None:
            file = _File(_header(name, body, is_sound), [(name, body)])
        elif not name[0] & 0x20:
            if name not in _CRITICAL or not is_sound:
                raise damaged("PNG")
            file.critical.append((name, body))
        elif is_sound and (name != b"iTXt" or _is_xmp(body)):
            file.extra.setdefault(name, body)
    if file is None:
        raise damaged("PNG")
    return file


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield each chunk's name and content, and whether its checksum holds."""
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        check = data[at + 8 + length : at + 12 + length]
        # The last chunk may be cut short: whether its pixels are whole is found
        # out when they are decoded.
        is_cut = name == b"IDAT" and len(check) < 4
        crc = zlib.crc32(body, zlib.crc32(name)).to_bytes(4, "big")
        yield name, body, is_cut or crc == check
        at += 12 + length


def _header(name: bytes, body: bytes, is_sound: bool) -> _Header:
    if name != b"IHDR" or len(body) != 13 or not is_sound:
        raise damaged("PNG")
    width, height, depth, colour = struct.unpack_from(">IIBB", body)
    if depth == 16 and colour not in (0, 2, 4, 6):
        raise damaged("PNG")
    return _Header(width, height, depth, colour)


def _is_xmp(body: bytes) -> bool:
    # Only what is not compressed: the orientation in it is all that is wanted.
    return body.startswith(_XMP) and len(body) <= _MAX_XMP


def _packed(name: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(body, zlib.crc32(name))
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def _profile(extra: dict[bytes, bytes]) -> tuple[bytes | None, bool]:
    """Return the profile of the colours, and whether it is built from numbers.

    The order of precedence is that of the PNG specification.
    """
    code = extra.get(b"cICP", b"")
    if len(code) == 4 and code[2] == 0:
        if code[3] != 1:
            raise unsupported("a PNG of video range (cICP)", "PNGs of full range")
        profile = cicp_profile(code)
        return profile, profile is not None
    icc = _icc(extra.get(b"iCCP", b""))
    if icc or b"sRGB" in extra:
        return icc, False
    profile = _gamma_profile(extra)
    return profile, profile is not None


def _icc(body: bytes) -> bytes | None:
    name, _, rest = body.partition(b"\x00")
    if not 1 <= len(name) <= 79 or rest[:1] != b"\x00":
        return None
    with suppress(zlib.error):
        unpacker = zlib.decompressobj()
        profile = unpacker.decompress(rest[1:], _MAX_PROFILE)
        return profile if unpacker.eof else None
    return None


def _gamma_profile(extra: dict[bytes, bytes]) -> bytes | None:
    """Return the profile that gAMA and cHRM give; None for sRGB."""
    gamma: float | None = None
    primaries: tuple[float, ...] = SRGB_PRIMARIES
    if len(extra.get(b"gAMA", b"")) == 4:
        value = int.from_bytes(extra[b"gAMA"], "big") / 100_000
        # Many programs write 1/2.2 and mean sRGB.
        if 0.01 <= value <= 10 and abs(value * 2.2 - 1) > 0.01:
            gamma = 1 / value
    if len(extra.get(b"cHRM", b"")) == 32:
        found = [value / 100_000 for value in struct.unpack(">8I", extra[b"cHRM"])]
        white_last = (*found[2:], *found[:2])
        if any(abs(a - b) > 0.002 for a, b in zip(white_last, primaries, strict=True)):
            primaries = _sensible(white_last)
    return matrix_profile(primaries, gamma)


def _sensible(primaries: tuple[float, ...]) -> tuple[float, ...]:
    """Return the primaries, or those of sRGB if no colour could have them."""
    xs, ys = primaries[::2], primaries[1::2]
    if all(0 <= x <= 1 and 0 < y <= 1 for x, y in zip(xs, ys, strict=True)):
        (ax, bx, cx), (ay, by, cy) = xs[:3], ys[:3]
        if abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) > 1e-3:
            return primaries
    return SRGB_PRIMARIES


def _shallow(image: Image.Image, file: _File) -> tuple[Image.Image, Image.Image | None]:
    """Return colours and alpha of a picture of up to 8 bits."""
    color, alpha = eight_bits(image)
    key = _key(file)
    if key is None:
        return color, alpha
    # Pillow has scaled the samples to 8 bits.
    scale = 255 // (2**file.header.depth - 1)
    return color, _keyed(color, [sample * scale for sample in key])


def _key(file: _File) -> tuple[int, ...] | None:
    """Return the samples that mean clear."""
    channels = {0: 1, 2: 3}.get(file.header.colour)
    body = file.extra.get(b"tRNS", b"")
    if channels is None or len(body) != 2 * channels:
        return None
    mask = 2**file.header.depth - 1
    return tuple(sample & mask for sample in struct.unpack(f">{channels}H", body))


def _keyed(color: Image.Image, key: list[int]) -> Image.Image:
    clear = Image.new("L", color.size, 255)
    for channel, value in zip(color.split(), key, strict=True):
        same = channel.point([255 * (level == value) for level in range(256)])
        clear = ImageChops.multiply(clear, same)
    return ImageChops.invert(clear)


def _deep(clean: bytes, file: _File) -> tuple[Deep, Image.Image | None]:
    """Return colours and alpha of a picture of 16 bits."""
    import imagecodecs

    from stylequeue_shared.pictures.deep import alpha_of, split

    try:
        samples: NDArray[np.uint16] = imagecodecs.png_decode(clean)
    except imagecodecs.PngError as error:
        raise damaged("PNG") from error
    if file.header.colour in (4, 6):
        return split(samples, "gray" if file.header.colour == 4 else "rgb")
    key = _key(file)
    alpha = None
    if key is not None:
        clear = samples == np.array(key, np.uint16)
        alpha = alpha_of(~(clear if samples.ndim == 2 else clear.all(axis=2)))
    return Deep(samples, "gray" if samples.ndim == 2 else "rgb"), alpha
