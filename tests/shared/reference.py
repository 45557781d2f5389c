"""What pictures must come out as, computed from known pixels and colour formulas."""

import numpy as np
from numpy.typing import NDArray

from stylequeue_shared import images

# Linear light of Display P3 and BT.2020 to that of sRGB, from the standards.
P3 = np.array(
    [[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09827]]
)
BT2020 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
)
# XYZ with the white of D50 to the linear light of sRGB.
D50 = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)


def linear(encoded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB values from 0 to 1 as linear light."""
    return np.where(
        encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4
    )


def encoded(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return linear light as sRGB values from 0 to 255."""
    light = np.clip(light, 0, 1)
    curve = np.where(
        light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055
    )
    return curve * 255


def of_lab(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return CIE L*a*b* with the white of D50 as sRGB values from 0 to 255."""
    y = (lab[..., 0] + 16) / 116
    roots = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    flat = 3 * (6 / 29) ** 2 * (roots - 4 / 29)
    xyz = np.where(roots > 6 / 29, roots**3, flat) * (0.9642, 1, 0.8249)
    return encoded(xyz @ D50.T)


def over_white(
    color: NDArray[np.float64], alpha: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return colours from 0 to 255 with alpha from 0 to 1 over white."""
    return color * alpha[..., None] + 255 * (1 - alpha[..., None])


def deep_colours(height: int = 24, width: int = 32) -> NDArray[np.uint16]:
    """Return RGB and alpha of 16 bits: smooth, and no two rows or channels alike."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x / (width - 1), y / (height - 1), (x + y) / (width + height - 2))
    alpha = 1 - 0.5 * x / (width - 1)
    stacked = np.stack([*channels, alpha], axis=-1)
    return (stacked * 65535).round().astype(np.uint16)


def assert_is(
    data: bytes,
    expected: NDArray[np.floating],
    *,
    mean: float = 0.3,
    worst: float = 1.0,
) -> None:
    """Compare mean and worst pixel, with and without kept alpha."""
    for keep_alpha in (False, True):
        image = images.decode(data, keep_alpha=keep_alpha, max_pixels=10**6)
        found = np.asarray(image.convert("RGB")).astype(float)
        if expected.ndim == 2:
            expected = np.repeat(expected[..., None], 3, axis=2)
        assert found.shape == expected.shape
        assert abs(found - expected).max() <= worst
        assert abs(found.mean((0, 1)) - expected.mean((0, 1))).max() <= mean
