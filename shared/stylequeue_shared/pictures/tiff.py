"""Read TIFF files: choose the page, and how its samples are read.

Pillow reads pages of up to 8 bits. It cuts deeper ones or takes their planes for
rows, so tifffile reads those.
"""

from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from itertools import chain
from typing import Any

import tifffile
from PIL import Image

from stylequeue_shared.pictures.checks import SizeLimit, damaged, unsupported
from stylequeue_shared.pictures.color import Decoded
from stylequeue_shared.pictures.eight import eight_bits
from stylequeue_shared.pictures.orientation import of_exif
from stylequeue_shared.pictures.tiff_samples import read_samples

# A page beyond these is not looked for.
_MAX_PAGES = 32
_MAX_SAMPLES = 8
_REDUCED, _MASK = 1, 4
_DNG_VERSION = 50706
# Colour filter array, and the linear form of one.
_RAW_PHOTOMETRICS = (32803, 34892)
_SIGNED, _COMPLEX = 2, (5, 6)
_NONE, _LZW, _JPEG, _PACKBITS = 1, 5, 7, 32773
_DEFLATE, _LZMA, _ZSTD, _WEBP = (8, 32946), 34925, 50000, 50001
_FOR_TIFFFILE = (_NONE, _LZW, _JPEG, _PACKBITS, *_DEFLATE, _LZMA, _ZSTD, _WEBP)
# Grey, RGB, palettes, CMYK and YCbCr. Pillow's way from Lab is not exact.
_PHOTOMETRICS_FOR_PILLOW = (0, 1, 2, 3, 5, 6)
# Beside those, the fax codes and the JPEG of old.
_FOR_PILLOW = (_NONE, 2, 3, 4, _LZW, 6, _JPEG, _PACKBITS, *_DEFLATE)


def decode(data: bytes, limit: SizeLimit) -> Decoded:
    """Decode the first page of full size; of a camera raw, none."""
    with tifffile.TiffFile(BytesIO(data)) as file:
        pages = list(_pages(file))
        parts = {id(page): list(_parts(page)) for page in pages}
        for page in chain(pages, *parts.values()):
            _refuse_raw(page)
        page = _full_size(pages, parts)
        # Pillow does not open a file whose first page it does not know.
        is_for_pillow = page is pages[0] and _suits_pillow(page)
        _check(page, limit, _FOR_PILLOW if is_for_pillow else _FOR_TIFFFILE)
        return (
            _by_pillow(data, limit) if is_for_pillow else read_samples(page, len(data))
        )


def _pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    for index in range(_MAX_PAGES):
        try:
            page = file.pages[index]
        except IndexError:
            return
        except tifffile.TiffFileError:
            if index == 0:
                raise
            return  # of the pages behind it, none is needed
        if isinstance(page, tifffile.TiffPage):
            yield page


def _parts(page: tifffile.TiffPage) -> Iterator[tifffile.TiffPage]:
    """Yield the pages within a page, where raws have their full size."""
    if not page.subifds:
        return
    with suppress(tifffile.TiffFileError, IndexError, ValueError, TypeError):
        for index in range(min(len(page.subifds), _MAX_PAGES)):
            part = page.pages[index] if page.pages else None
            if isinstance(part, tifffile.TiffPage):
                yield part


def _refuse_raw(page: tifffile.TiffPage) -> None:
    is_dng = _DNG_VERSION in page.tags
    if is_dng or page.photometric in _RAW_PHOTOMETRICS:
        kind = "a camera raw picture (DNG)" if is_dng else "a camera raw picture"
        raise unsupported(kind, "pictures that the camera or a program developed")


def _full_size(
    pages: list[tifffile.TiffPage], parts: dict[int, list[tifffile.TiffPage]]
) -> tifffile.TiffPage:
    if not pages:
        raise damaged("TIFF")
    within = chain(*parts.values())
    # A writer that calls its only page reduced has nothing else to show.
    return next((page for page in chain(pages, within) if _is_full(page)), pages[0])


def _is_full(page: tifffile.TiffPage) -> bool:
    return not int(page.subfiletype) & (_REDUCED | _MASK)


def _check(
    page: tifffile.TiffPage, limit: SizeLimit, compressions: tuple[int, ...]
) -> None:
    limit.check(page.imagewidth, page.imagelength)
    if page.imagedepth > 1:
        raise unsupported("a TIFF picture with depth", "flat pictures")
    if not 1 <= page.samplesperpixel <= _MAX_SAMPLES:
        raise unsupported(
            f"a TIFF picture of {page.samplesperpixel} samples a pixel",
            f"at most {_MAX_SAMPLES}",
        )
    if page.sampleformat == _SIGNED and page.photometric not in (8, 9, 10):
        raise unsupported("a TIFF picture of signed numbers", "unsigned numbers")
    if page.sampleformat in _COMPLEX:
        raise unsupported("a TIFF picture of complex numbers", "real numbers")
    if page.compression not in compressions:
        name = getattr(page.compression, "name", page.compression)
        raise unsupported(
            f"a TIFF picture with the compression {name}",
            "none, LZW, Deflate, PackBits, JPEG, ZSTD, WEBP and LZMA",
        )


def _suits_pillow(page: tifffile.TiffPage) -> bool:
    bits: Any = page.bitspersample
    deepest = max(bits) if isinstance(bits, tuple) else bits
    return (
        deepest <= 8
        and page.photometric in _PHOTOMETRICS_FOR_PILLOW
        and page.sampleformat in (1, 2, 4)
        and (page.planarconfig == 1 or page.samplesperpixel == 1)
        and page.compression not in (_LZMA, _ZSTD, _WEBP)
    )


def _by_pillow(data: bytes, limit: SizeLimit) -> Decoded:
    with Image.open(BytesIO(data), formats=["TIFF"]) as image:
        profile = image.info.get("icc_profile")
        image.load()
        limit.check(*image.size)
        color, alpha = eight_bits(image)
        return Decoded(color, alpha, profile, of_exif(image))
