"""Read the samples of a TIFF page with tifffile, as 16 bits."""

from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from stylequeue_shared.pictures.checks import damaged, unsupported
from stylequeue_shared.pictures.color import Decoded, Deep, Space
from stylequeue_shared.pictures.deep import sixteen, split, usual_white

_FLOAT = 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3
_CMYK, _YCBCR, _CIELAB = 5, 6, 8
_SPACES: dict[int, tuple[Space, int]] = {
    _WHITE_IS_ZERO: ("gray", 1),
    _BLACK_IS_ZERO: ("gray", 1),
    _RGB: ("rgb", 3),
    _PALETTE: ("rgb", 1),
    _CMYK: ("cmyk", 4),
    _YCBCR: ("rgb", 3),
    _CIELAB: ("lab", 3),
}
_INK_SET, _ORIENTATION, _EXTRA_SAMPLES = 332, 274, 338
_ASSOCIATED, _UNASSOCIATED = 1, 2
_JPEG = 7


def read_samples(page: tifffile.TiffPage, file_size: int) -> Decoded:
    """Decode a page of any depth. Raises InvalidPicture for what is not sure."""
    space, channels = _space(page)
    _check_numbers(page, channels)
    _check_whole(page, file_size)
    samples = _by_pixel(page)
    alpha_at, is_premultiplied = _alpha(page, channels)
    if page.photometric == _PALETTE:
        return _decoded(page, Deep(_looked_up(page, samples), space), None)
    wanted = [*range(channels), *([] if alpha_at is None else [alpha_at])]
    if len(wanted) < samples.shape[2]:
        samples = samples[..., wanted]
    if page.photometric == _CIELAB:
        samples = samples.view(f"u{samples.dtype.itemsize}")
    deep = sixteen(samples, _white(page, samples))
    if page.photometric == _WHITE_IS_ZERO:
        deep[..., 0] = 65535 - deep[..., 0]
    if page.photometric == _CIELAB:
        deep = _icc_lab(samples, deep)
    if alpha_at is None:
        return _decoded(
            page, Deep(deep[..., 0] if channels == 1 else deep, space), None
        )
    return _decoded(page, *split(deep, space, is_premultiplied=is_premultiplied))


def _decoded(page: tifffile.TiffPage, color: Deep, alpha: Any) -> Decoded:
    orientation: Any = page.tags.valueof(_ORIENTATION, 1)
    profile: Any = page.iccprofile
    return Decoded(
        color,
        alpha,
        bytes(profile) if profile else None,
        orientation if isinstance(orientation, int) else 1,
    )


def _space(page: tifffile.TiffPage) -> tuple[Space, int]:
    name = getattr(page.photometric, "name", page.photometric)
    is_read = page.photometric in _SPACES
    if page.photometric == _YCBCR:
        # tifffile converts only what is in JPEG, and that only pixel by pixel.
        is_read = page.compression == _JPEG and page.planarconfig == 1
    if page.photometric == _CMYK:
        is_read = page.tags.valueof(_INK_SET, 1) == 1
    if not is_read or page.samplesperpixel < _SPACES[page.photometric][1]:
        raise unsupported(
            f"a TIFF picture in {name} with {page.samplesperpixel} samples a pixel "
            f"of {page.bitspersample} bits",
            "grey, palette, RGB and CMYK",
        )
    return _SPACES[page.photometric]


def _check_numbers(page: tifffile.TiffPage, channels: int) -> None:
    bits: Any = page.bitspersample
    found = f"a TIFF picture of {bits} bits a sample"
    if not isinstance(bits, int) or page.dtype is None or bits > 64:
        raise unsupported(found, "the same number of bits for each sample, at most 64")
    is_float = page.sampleformat == _FLOAT
    if (is_float or bits > 16) and page.samplesperpixel > 1:
        # Nothing says what white is, nor whether colours are linear.
        kind = "floating point" if is_float else "integers"
        raise unsupported(
            f"a TIFF picture in colour of {bits} bits {kind} a sample",
            "at most 16 bits a sample",
        )
    if bits > 32 and not is_float:
        raise unsupported(found, "at most 32 bits")
    if page.photometric == _CIELAB and bits not in (8, 16):
        raise unsupported(f"{found} in Lab", "8 or 16 bits")
    if page.photometric == _PALETTE and (is_float or bits > 16):
        raise unsupported(f"{found} with a palette", "at most 16 bits")


def _check_whole(page: tifffile.TiffPage, file_size: int) -> None:
    """Refuse a page with parts missing, for which tifffile puts zeros."""
    places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    expected = int(np.prod(page.chunked))
    if len(places) < expected or not places:
        raise damaged("TIFF")
    for offset, count in places[:expected]:
        if offset <= 0 or count <= 0 or offset + count > file_size:
            raise damaged("TIFF")
    ends = page.dataoffsets[0] + page.nbytes
    if page.is_contiguous and page.bitspersample >= 8 and ends > file_size:
        raise damaged("TIFF")


def _by_pixel(page: tifffile.TiffPage) -> NDArray[Any]:
    """Return height x width x samples."""
    # One thread: the child that decodes may not start any.
    array = page.asarray(squeeze=False, maxworkers=1)
    planes = array[:, 0]  # the depth is 1
    if len(planes) > 1:
        return np.ascontiguousarray(planes[..., 0].transpose(1, 2, 0))
    return np.asarray(planes[0])


def _alpha(page: tifffile.TiffPage, channels: int) -> tuple[int | None, bool]:
    """Return where the alpha is among the samples, and whether it is premultiplied."""
    kinds = [int(kind) for kind in page.extrasamples]
    if _EXTRA_SAMPLES not in page.tags and page.samplesperpixel == channels + 1:
        # Some writers leave the tag out, and mean alpha in colour pictures.
        return (channels, False) if page.photometric == _RGB else (None, False)
    for place, kind in enumerate(kinds):
        at = channels + place
        if kind in (_ASSOCIATED, _UNASSOCIATED) and at < page.samplesperpixel:
            return at, kind == _ASSOCIATED
    return None, False


def _white(page: tifffile.TiffPage, samples: NDArray[Any]) -> float:
    if page.sampleformat == _FLOAT or page.bitspersample == 32:
        return usual_white(samples)
    return float(2**page.bitspersample - 1)


def _looked_up(page: tifffile.TiffPage, samples: NDArray[Any]) -> NDArray[np.uint16]:
    table = page.colormap
    if table is None or table.shape[0] != 3:
        raise damaged("TIFF")
    places = np.minimum(samples[..., 0], table.shape[1] - 1)
    return np.ascontiguousarray(table.T.astype(np.uint16)[places])


def _icc_lab(samples: NDArray[Any], deep: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return signed a and b as ICC counts them: from -128, in 65535 steps of 1/257."""
    if samples.dtype.itemsize == 1:
        signed = samples[..., 1:3].astype(np.uint8).view(np.int8).astype(np.int32)
        deep[..., 1:3] = (signed + 128) * 257
    else:
        signed = samples[..., 1:3].astype(np.uint16).view(np.int16).astype(np.int32)
        deep[..., 1:3] = np.clip(signed * 257 // 256 + 128 * 257, 0, 65535)
    return deep
