"""Pictures of any accepted kind become 8-bit sRGB; metadata stays behind.

Web and worker read every upload through `decode`, so both see the same pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.pictures import boxes, jpeg, png
from stylequeue_shared.pictures.checks import SizeLimit, damaged
from stylequeue_shared.pictures.color import (
    Decoded,
    as_rgb,
    cicp_profile,
    to_srgb,
)
from stylequeue_shared.pictures.eight import eight_bits
from stylequeue_shared.pictures.formats import (
    ACCEPTED_NAMES,
    NAMES,
    describe,
    identify,
)
from stylequeue_shared.pictures.orientation import of_exif, upright
from stylequeue_shared.sizes import fit

# Imported by name, since Pillow loads forty other formats to find these.
PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
# The files that are made of boxes, where the coding of colours may stand.
_BOXED = ("AVIF", "HEIF")
# A thread per core would need more address space than a child has on a large
# machine, and a child may not start any.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# The size is checked in `pictures`, against a limit that somebody chose.
Image.MAX_IMAGE_PIXELS = None

Source = bytes | BinaryIO | Path


def decode(
    source: Source, *, max_pixels: int | None = None, keep_alpha: bool = False
) -> Image.Image:
    """Return the picture as RGB, upright, in sRGB, over white, without metadata.

    With `keep_alpha` a picture with alpha becomes RGBA; its colours are those over
    white all the same.
    Raises InvalidPicture. A hostile file can crash the whole process or fill its
    memory: `decoding` is for those.
    """
    return read(source, max_pixels=max_pixels, keep_alpha=keep_alpha)[0]


def read(
    source: Source, *, max_pixels: int | None = None, keep_alpha: bool = False
) -> tuple[Image.Image, str]:
    """Return what `decode` does, and the media type of the file."""
    if isinstance(source, Path):
        with source.open("rb") as opened:
            return read(opened, max_pixels=max_pixels, keep_alpha=keep_alpha)
    data = source if isinstance(source, bytes) else source.read()
    format = identify(data[:300])
    if format is None:
        raise InvalidPicture(f"found {describe(data)}; allowed are {ACCEPTED_NAMES}")
    _load(format)
    try:
        found = _decoded(data, format, SizeLimit(max_pixels))
        image = _flattened(found, keep_alpha)
        return upright(image, found.orientation), f"image/{format.lower()}"
    except (InvalidPicture, MemoryError):
        raise
    except Exception as error:
        # On damaged files decoders raise nearly anything: OSError, SyntaxError,
        # struct.error, IndexError, zlib.error.
        raise damaged(NAMES[format]) from error


def _load(format: str) -> None:
    """Import what most uploads do not need; it takes memory and time."""
    if format == "TIFF":
        import stylequeue_shared.pictures.tiff
    elif format == "HEIF":
        import stylequeue_shared.pictures.heif  # noqa: F401


def _decoded(data: bytes, format: str, limit: SizeLimit) -> Decoded:
    if format == "PNG":
        return png.decode(data, limit)
    if format == "TIFF":
        from stylequeue_shared.pictures import tiff

        return tiff.decode(data, limit)
    if format == "JPEG":
        data = jpeg.prepare(data, limit)
    if format == "WEBP":
        # The decoder takes memory for the whole canvas as soon as it is opened.
        limit.check(*(_webp_size(data[:30]) or (1, 1)))
    if format in _BOXED:
        for width, height in boxes.sizes(data):
            limit.check(width, height)
    return _by_pillow(data, format, limit)


def _by_pillow(data: bytes, format: str, limit: SizeLimit) -> Decoded:
    try:
        image = Image.open(BytesIO(data), formats=[format])
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidPicture(
            f"found {describe(data)}; allowed are {ACCEPTED_NAMES}"
        ) from error
    with image:
        limit.check(*image.size)
        image.load()
        limit.check(*image.size)
        profile = image.info.get("icc_profile")
        color, alpha = eight_bits(image)
        found = Decoded(color, alpha, profile, of_exif(image))
    code = boxes.cicp(data) if format in _BOXED and not profile else None
    if code and (built := cicp_profile(code)):
        return replace(found, color=as_rgb(found.color), profile=built)
    return found


def from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return height x width x 3 bytes as a picture."""
    return Image.fromarray(np.ascontiguousarray(pixels))


def encode_png(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """Return a PNG that carries `text` in its text chunks, and no other metadata."""
    # Level 6 takes twice as long as 3, for files that are 3 % smaller.
    return _encode(image, "PNG", pnginfo=text_chunks(text or {}), compress_level=3)


def text_chunks(text: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    """Return the chunks in which a PNG carries `text`."""
    chunks = PngImagePlugin.PngInfo()
    for name, value in text.items():
        chunks.add_itxt(name, value)
    return chunks


def encode_jpeg(image: Image.Image, quality: int = 88) -> bytes:
    """Return a JPEG without any metadata; what is transparent is white in it."""
    if image.mode == "RGBA":
        image = _over_white(image.convert("RGB"), image.getchannel("A"))
    return _encode(image, "JPEG", quality=quality)


def shrink(image: Image.Image, longer: int) -> Image.Image:
    """Return the picture at most `longer` pixels long; never a larger one."""
    if max(image.size) <= longer:
        return image
    return image.resize(
        fit(image.size, longer), Image.Resampling.LANCZOS, reducing_gap=3
    )


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Return what a WEBP's header says; None of other files."""
    if not head.startswith(b"RIFF") or len(head) < 30:
        return None
    match head[8:16]:
        case b"WEBPVP8X":
            width, height = (
                int.from_bytes(head[i : i + 3], "little") for i in (24, 27)
            )
            return width + 1, height + 1
        case b"WEBPVP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"WEBPVP8 ":
            bits = int.from_bytes(head[26:30], "little")
            return bits & 0x3FFF, bits >> 16 & 0x3FFF
    return None


def _flattened(found: Decoded, keep_alpha: bool) -> Image.Image:
    """Return a new picture in sRGB over white, without the file's metadata."""
    rgb = to_srgb(found.color, found.profile)
    if found.alpha is not None:
        flat = _over_white(rgb, found.alpha)
        if keep_alpha:
            flat.putalpha(found.alpha)
        return flat
    if rgb is found.color:
        rgb = rgb.copy()
    rgb.info = {}
    return rgb


def _over_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _encode(image: Image.Image, format: str, **options: Any) -> bytes:
    # Pillow writes what it finds in `info`: profiles, comments, resolutions.
    image = image.convert("RGBA" if image.mode == "RGBA" else "RGB")
    image.info = {}
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
