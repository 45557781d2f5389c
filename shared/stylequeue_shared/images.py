"""Pictures of any accepted kind become 8-bit sRGB; metadata stays behind.

Web and worker read every upload through `decode`, so both see the same pixels.
"""

from codecs import getincrementaldecoder
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.sizes import fit

# Imported by name above, since Pillow loads forty other formats to find these.
_PLUGINS = {
    "JPEG": JpegImagePlugin,
    "PNG": PngImagePlugin,
    "WEBP": WebPImagePlugin,
    "TIFF": TiffImagePlugin,
    "BMP": BmpImagePlugin,
    "GIF": GifImagePlugin,
}
if features.check_module("avif"):
    from PIL import AvifImagePlugin

    _PLUGINS["AVIF"] = AvifImagePlugin
    # A thread per core would need more address space than a child has on a large
    # machine, and a child may not start any.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Nothing else is ever tried on an upload.
ACCEPTED = tuple(_PLUGINS)
ACCEPTED_NAMES = ", ".join(ACCEPTED)
# Longer side to shorter: thinner ones leave nothing of themselves at a job's size.
MAX_ASPECT = 32

# What files hold, in small letters, that people take for pictures, and where.
SIGNATURES = (
    (0, b"%pdf", "a PDF document"),
    (0, b"pk\x03\x04", "a ZIP archive or office document"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<!doctype html", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"8bps", "a Photoshop file"),
    (4, b"ftyphei", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIC picture"),
    (4, b"jp  ", "a JPEG 2000 picture"),
    (4, b"ftypavif", "an AVIF picture that is damaged or not supported"),
    (0, b"\xff\xd8\xff", "a damaged JPEG picture"),
    (0, b"\x89png", "a damaged PNG picture"),
    (0, b"gif8", "a damaged GIF picture"),
    (8, b"webpvp8", "a damaged WEBP picture"),
    (0, b"ii*\x00", "a TIFF picture that is damaged or not supported"),
    (0, b"mm\x00*", "a TIFF picture that is damaged or not supported"),
    (0, b"bm", "a damaged BMP picture"),
)

# The size is checked by `_open`, against a limit that somebody chose.
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
    file: BinaryIO = BytesIO(source) if isinstance(source, bytes) else source
    # The decoder of WEBP takes memory for the whole canvas as soon as it is opened.
    _check_size(_webp_size(file.read(30)) or (1, 1), max_pixels)
    with _open(file) as image:
        media_type = Image.MIME[_name(image)]
        _check_size(image.size, max_pixels)
        try:
            image.load()
            # A TIFF's header may lie, and its real size is known only now.
            _check_size(image.size, max_pixels)
            found = _flattened(image, keep_alpha)
            return _upright(found, _orientation(image)), media_type
        except (InvalidPicture, MemoryError):
            raise
        except Exception as error:
            # On damaged files Pillow raises nearly anything: OSError, SyntaxError,
            # struct.error, IndexError, zlib.error.
            raise InvalidPicture(
                f"found a {_name(image)} picture that is damaged or cut short; "
                "allowed are whole pictures"
            ) from error


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


def _open(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=ACCEPTED)
    except MemoryError:
        raise
    except Exception as error:
        file.seek(0)
        raise InvalidPicture(
            f"found {_kind(file.read(1024))}; allowed are {ACCEPTED_NAMES}"
        ) from error


def _kind(head: bytes) -> str:
    if not head:
        return "an empty file"
    start = head.lower().removeprefix(b"\xef\xbb\xbf").lstrip()
    for place, signature, kind in SIGNATURES:
        if start.startswith(signature, place):
            return kind
    if start.startswith((b"<?xml", b"<!--")):
        return "an SVG drawing" if b"<svg" in start else "an XML document"
    with suppress(UnicodeDecodeError):
        # Incremental, since the last character may be cut in two.
        text = getincrementaldecoder("utf-8")().decode(head)
        if "\x00" not in text:
            return "a text"
    return "a file that is not a picture"


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


def _name(image: Image.Image) -> str:
    # MPO is a JPEG with a second picture behind it, as many telephones write.
    return "JPEG" if image.format == "MPO" else str(image.format)


def _check_size(size: tuple[int, int], max_pixels: int | None) -> None:
    width, height = size
    found = f"found a picture of {width} x {height} pixels"
    if width < 1 or height < 1:
        raise InvalidPicture(f"{found}; allowed is 1 x 1 or more")
    if max_pixels is not None and width * height > max_pixels:
        raise InvalidPicture(
            f"{found}; allowed are at most {max_pixels / 1e6:g} megapixels"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise InvalidPicture(
            f"{found}; allowed is one side at most {MAX_ASPECT} times the other"
        )


def _orientation(image: Image.Image) -> int:
    # Pillow has turned a TIFF itself and then taken the tag out.
    with suppress(Exception):  # a broken EXIF block is no reason to refuse
        return int(image.getexif().get(0x0112, 1))
    return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _flattened(image: Image.Image, keep_alpha: bool) -> Image.Image:
    """Return a new picture in sRGB over white, and without the old one's info."""
    profile = image.info.get("icc_profile")
    image, alpha = _eight_bits(image)
    rgb = _to_srgb(image, profile)
    if alpha is not None:
        flat = _over_white(rgb, alpha)
        if keep_alpha:
            flat.putalpha(alpha)
        return flat
    if rgb is image:
        rgb = rgb.copy()
    rgb.info = {}
    return rgb


def _over_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the picture in L, RGB, CMYK, YCbCr or LAB, and its alpha if it has one."""
    if image.mode.startswith(("I", "F")):
        return _from_deep(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode[:-1] + "A")
    elif image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode in ("1", "RGBX"):
        return image.convert("L" if image.mode == "1" else "RGB"), None
    return image, None


def _from_deep(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    # Pillow's own conversion cuts off all that is above 255.
    values = np.asarray(image)
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(339, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow reads 32 unsigned bits as signed
    grey = _scaled(values, _white(image, values, tags))
    if tags.get(262) == 0:  # WhiteIsZero, which Pillow heeds only up to 8 bits
        grey = 255 - grey
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(grey), None
    return Image.fromarray(grey), Image.fromarray((values != clear) * np.uint8(255))


def _white(image: Image.Image, values: NDArray[Any], tags: Mapping[int, Any]) -> float:
    """Return the value that means white."""
    if image.mode.startswith("I;16"):
        return float(2 ** int(tags.get(258, (16,))[0]) - 1)
    # Nothing says what white is: the least of the usual whites that holds all values.
    top = float(np.max(values, where=np.isfinite(values), initial=0))
    whites = (255, 65535, 2**32 - 1) if image.mode == "I" else (1, 255, 65535)
    return float(next((white for white in whites if top <= white), top))


def _scaled(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    grey = np.empty(values.shape, np.uint8)
    # By rows, to keep the floats of a large picture out of memory.
    for start in range(0, len(values), 256):
        rows = np.nan_to_num(values[start : start + 256].astype(np.float32))
        grey[start : start + 256] = np.clip(rows * (255 / white), 0, 255) + 0.5
    return grey


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode != "LAB":
        # What is wrong with a profile is ignored, as browsers do.
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            return _transformed(image, source)
    if image.mode == "LAB":
        return _transformed(image, ImageCms.createProfile("LAB"))
    return image.convert("RGB")


def _transformed(image: Image.Image, source: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None
    return converted


def _encode(image: Image.Image, format: str, **options: Any) -> bytes:
    # Pillow writes what it finds in `info`: profiles, comments, resolutions.
    image = image.convert("RGBA" if image.mode == "RGBA" else "RGB")
    image.info = {}
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
