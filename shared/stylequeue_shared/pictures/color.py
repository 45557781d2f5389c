"""Convert the colours of decoded pictures to 8-bit sRGB."""

from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from stylequeue_shared.pictures.checks import unsupported

Space = Literal["gray", "rgb", "cmyk", "lab"]
# Little CMS's flags: without its optimisations, which take 16-bit grey through a
# coarse table, and with black point compensation.
_CMS_FLAGS = 0x0100 | 0x2000
# An ICC profile's name of each space.
_ICC_SPACES = {"gray": b"GRAY", "rgb": b"RGB ", "cmyk": b"CMYK", "lab": b"Lab "}
# Rows that are converted at a time, to keep wide numbers out of memory.
ROWS = 256


@dataclass
class Deep:
    """Samples of 16 bits, height x width (x channels), and what they mean."""

    samples: NDArray[np.uint16]
    space: Space


@dataclass
class Decoded:
    """A decoded picture before its colours are converted.

    Without a profile colours are sRGB. `orientation` is EXIF's.
    """

    color: Image.Image | Deep
    alpha: Image.Image | None = None
    profile: bytes | None = None
    orientation: int = 1


# CICP: x and y of red, green, blue and white.
_D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65)
_BT601 = (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65)
_PRIMARIES = {
    1: SRGB_PRIMARIES,
    2: SRGB_PRIMARIES,  # not specified
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: _BT601,
    7: _BT601,
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *_D65),
}
# CICP: gamma, or None for the curve of sRGB. The curves of BT.601, BT.709 and BT.2020
# (1, 6, 14, 15) are those of cameras; screens show such pictures like sRGB.
_TRANSFERS = {
    **dict.fromkeys((1, 2, 6, 13, 14, 15)),
    4: 2.2,
    5: 2.8,
    8: 1.0,
}
_HDR = {16: "PQ", 18: "HLG"}


def cicp_profile(code: bytes) -> bytes | None:
    """Return the profile for a CICP code; None for sRGB.

    Raises InvalidPicture for colours that are not read.
    """
    primaries, transfer = code[0], code[1]
    if transfer in _HDR:
        raise unsupported(
            f"an HDR picture ({_HDR[transfer]})", "pictures of standard range"
        )
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        raise unsupported(
            f"a picture in the colour space CICP {primaries}/{transfer}",
            "sRGB, Display P3, BT.709 and BT.2020, and pictures with an ICC profile",
        )
    return matrix_profile(_PRIMARIES[primaries], _TRANSFERS[transfer])


def matrix_profile(primaries: tuple[float, ...], gamma: float | None) -> bytes | None:
    """Return a profile with these primaries and white; None for sRGB and nonsense."""
    if primaries == SRGB_PRIMARIES and gamma is None:
        return None
    import imagecodecs

    points = [primaries[i : i + 2] for i in range(0, 8, 2)]
    triples = [(x, y, 1.0) for x, y in points]
    curve: dict[str, Any] = {"gamma": gamma}
    if gamma is None:
        curve = {"transferfunction": _srgb_curve()}
    with suppress(imagecodecs.CmsError, ValueError):
        return bytes(
            imagecodecs.cms_profile(
                "rgb",
                whitepoint=triples[3],
                primaries=tuple(value for triple in triples[:3] for value in triple),
                **curve,
            )
        )
    return None


def _srgb_curve() -> NDArray[np.uint16]:
    x = np.linspace(0, 1, 4096)
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return (linear * 65535).round().astype(np.uint16)


def to_srgb(color: Image.Image | Deep, profile: bytes | None) -> Image.Image:
    """Return the colours as an RGB picture of 8 bits.

    What is wrong with a profile is ignored, as browsers do.
    """
    if isinstance(color, Deep):
        return _deep_to_srgb(color, profile)
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            return _transformed(color, ImageCms.ImageCmsProfile(BytesIO(profile)))
    return color.convert("RGB")


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


def as_rgb(color: Image.Image | Deep) -> Image.Image | Deep:
    """Return grey as red, green and blue, for a profile that is about those."""
    if isinstance(color, Image.Image):
        return color.convert("RGB")
    if color.space == "gray":
        return Deep(np.repeat(color.samples[..., None], 3, axis=2), "rgb")
    return color


def to_eight(samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return samples of 16 bits as 8 bits, rounded to the nearest."""
    eight = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), ROWS):
        rows = samples[top : top + ROWS].astype(np.uint32)
        eight[top : top + ROWS] = (rows * 255 + 32767) // 65535
    return eight


def _deep_to_srgb(color: Deep, profile: bytes | None) -> Image.Image:
    if color.space == "lab":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    if profile and profile[16:20] == _ICC_SPACES[color.space]:
        import imagecodecs

        with suppress(imagecodecs.CmsError, ValueError):
            return Image.fromarray(_deep_transformed(color, profile))
    return _plain(color).convert("RGB")


def _plain(color: Deep) -> Image.Image:
    eight = to_eight(color.samples)
    if color.space == "cmyk":
        height, width = eight.shape[:2]
        return Image.frombuffer("CMYK", (width, height), eight.tobytes())
    return Image.fromarray(eight)


def _deep_transformed(color: Deep, profile: bytes) -> NDArray[np.uint8]:
    import imagecodecs

    return np.asarray(
        imagecodecs.cms_transform(
            np.ascontiguousarray(color.samples),
            profile,
            imagecodecs.cms_profile("srgb"),
            colorspace=color.space,
            outcolorspace="rgb",
            outdtype="u1",
            intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
            flags=_CMS_FLAGS,
        )
    )
