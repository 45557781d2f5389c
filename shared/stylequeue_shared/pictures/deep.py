"""Bring samples of any number format to 16 bits, and split off the alpha."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stylequeue_shared.pictures.color import ROWS, Deep, Space, to_eight


def sixteen(values: NDArray[Any], white: float) -> NDArray[np.uint16]:
    """Return values from 0 to `white` as 0 to 65535; what is no number is black."""
    if values.dtype == np.uint16 and white == 65535:
        return values
    scaled = np.empty(values.shape, np.uint16)
    for top in range(0, len(values), ROWS):
        rows = np.nan_to_num(values[top : top + ROWS].astype(np.float64))
        scaled[top : top + ROWS] = np.clip(rows * (65535 / white), 0, 65535) + 0.5
    return scaled


def usual_white(values: NDArray[Any]) -> float:
    """Return the least of the usual values of white that is above all values.

    Nothing in a file of 32 bits a sample says what white is.
    """
    finite = np.isfinite(values)
    top = float(np.max(values, where=finite, initial=0))
    is_float = np.issubdtype(values.dtype, np.floating)
    whites = (1, 255, 65535) if is_float else (255, 65535, 2**32 - 1)
    return float(next((white for white in whites if top <= white), top))


def alpha_of(samples: NDArray[Any]) -> Image.Image:
    """Return the alpha channel as a picture, from 16 bits or from a mask."""
    if samples.dtype == np.bool_:
        return Image.fromarray(samples.astype(np.uint8) * np.uint8(255))
    return Image.fromarray(to_eight(samples))


def split(
    samples: NDArray[np.uint16], space: Space, *, is_premultiplied: bool = False
) -> tuple[Deep, Image.Image]:
    """Return the colours and the alpha, which is the last channel."""
    alpha, color = samples[..., -1], np.ascontiguousarray(samples[..., :-1])
    if is_premultiplied:
        color = _divided(color, alpha)
    if color.shape[2] == 1:
        color = color[..., 0]
    return Deep(color, space), alpha_of(np.ascontiguousarray(alpha))


def _divided(
    color: NDArray[np.uint16], alpha: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    for top in range(0, len(color), ROWS):
        rows = slice(top, top + ROWS)
        part = np.maximum(alpha[rows, :, None].astype(np.uint64), 1)
        full = (color[rows].astype(np.uint64) * 65535 + part // 2) // part
        color[rows] = np.minimum(full, 65535)
    return color
