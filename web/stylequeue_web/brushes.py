"""What the drawings are painted with: strokes, noise and palettes.

Plain numpy on whole canvases; coordinates run from 0 to 1, x to the right, y down.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Field = Callable[[Array, Array], Array]

SIZE = 512


def paint(height: Field, colour: Field, seed: int) -> NDArray[np.uint8]:
    """Paint strokes along the lines of equal height, the broad ones first."""
    random = np.random.default_rng(seed)
    x, y = grid()
    # What shows between the strokes need not be fine.
    ground = colour(x[::4, ::4], y[::4, ::4]) * np.float32(0.8)
    canvas, relief = ground.repeat(4, 0).repeat(4, 1), np.zeros_like(x)
    for spacing, length, width in ((16, 30, 9.5), (10, 20, 4.9), (7, 14, 3.0)):
        reach = math.ceil(length / spacing)
        strokes = _lay_out(height, colour, spacing, reach, random)
        layer, bump, covered = _brush(strokes, spacing, reach, length, width)
        if spacing == 7:  # the last ones only where there is something to see
            covered &= _detail(canvas) > 0.035
        canvas = np.where(covered[..., None], layer, canvas)
        relief = np.where(covered, bump, relief)
    # Light from the upper left on paint that stands off the canvas.
    slope = (relief - np.roll(relief, 1, 0)) + (relief - np.roll(relief, 1, 1))
    return as_bytes(canvas * (1 + 0.30 * np.clip(slope, -0.7, 0.7))[..., None])


@dataclass(frozen=True)
class _Strokes:
    """Strokes by cell, flattened: middle, direction, size, order, colour."""

    x: Array
    y: Array
    cosine: Array
    sine: Array
    scale: Array
    order: Array
    tint: Array


def _lay_out(
    height: Field, colour: Field, spacing: int, reach: int, random: np.random.Generator
) -> _Strokes:
    """Put one stroke into each cell of a loose grid that is larger than the canvas."""
    cells = _cells(spacing, reach)
    row, column = np.mgrid[0:cells, 0:cells]
    jitter = random.random((2, cells, cells))
    x = ((column - reach + jitter[0]) * spacing).astype(np.float32)
    y = ((row - reach + jitter[1]) * spacing).astype(np.float32)
    u, v, e = x / SIZE, y / SIZE, np.float32(1e-3)
    uphill = np.arctan2(
        height(u, v + e) - height(u, v - e), height(u + e, v) - height(u - e, v)
    )
    angle = uphill + np.pi / 2 + random.normal(0, 0.14, uphill.shape)
    tint = colour(u, v) * random.normal(1, 0.09, (cells, cells, 1))
    tint = tint + random.normal(0, 0.025, tint.shape)
    return _Strokes(
        x=x.ravel(),
        y=y.ravel(),
        cosine=np.cos(angle).astype(np.float32).ravel(),
        sine=np.sin(angle).astype(np.float32).ravel(),
        scale=random.uniform(0.7, 1.15, x.size).astype(np.float32),
        order=random.random(x.size).astype(np.float32),
        tint=tint.reshape(-1, 3).astype(np.float32),
    )


def _brush(
    strokes: _Strokes, spacing: int, reach: int, length: float, width: float
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return colour, thickness and place of the strokes.

    Each pixel looks at the cells around it and takes the stroke that lies on top.
    """
    py, px = np.mgrid[0:SIZE, 0:SIZE].astype(np.int32)
    cells = _cells(spacing, reach)
    base = (py // spacing + reach) * cells + px // spacing + reach
    best = np.full((SIZE, SIZE), -1, np.float32)
    owner = np.zeros((SIZE, SIZE), np.int32)
    along, across = np.zeros_like(best), np.zeros_like(best)
    for dy, dx in product(range(-reach, reach + 1), repeat=2):
        index = base + dy * cells + dx
        x, y = px - strokes.x[index], py - strokes.y[index]
        cosine, sine = strokes.cosine[index], strokes.sine[index]
        scale, order = strokes.scale[index], strokes.order[index]
        u = (x * cosine + y * sine) / (length * scale)
        v = (y * cosine - x * sine) / (width * scale)
        end = u + 0.10 * np.sin(v * 9 + order * 40)  # bristles end unevenly
        hit = (end * end * end * end + v * v < 1) & (order > best)
        best[hit], owner[hit], along[hit], across[hit] = (
            of[hit] for of in (order, index, u, v)
        )
    bristle = 0.5 * np.sin(across * 11 + best * 90) + 0.3 * np.sin(
        across * 23 + best * 50
    )
    layer = strokes.tint[owner] * (1 + 0.07 * bristle - 0.05 * along)[..., None]
    return layer, (1 - across**2) * 1.3 + 0.35 * bristle + best, best >= 0


def _cells(spacing: int, reach: int) -> int:
    return SIZE // spacing + 1 + 2 * reach


def _detail(rgb: Array) -> Array:
    grey = rgb.mean(axis=2)
    return np.asarray(
        np.abs(grey - np.roll(grey, 4, 0)) + np.abs(grey - np.roll(grey, 4, 1))
    )


def clouds(x: Array, y: Array, octaves: int) -> Array:
    """Return smooth noise around 0, of about the range -1 to 1."""
    total = np.zeros(np.shape(x), np.float32)
    for octave in range(octaves):
        total += (
            _noise(x * 4 * 2**octave + 17.3 * octave, y * 4 * 2**octave) / 2**octave
        )
    return total


def _noise(x: Array, y: Array) -> Array:
    table = np.random.default_rng(7).uniform(-1, 1, (64, 64)).astype(np.float32)
    i, j = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    u, v = (x - i).astype(np.float32), (y - j).astype(np.float32)
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    a, b = table[j % 64, i % 64], table[j % 64, (i + 1) % 64]
    c, d = table[(j + 1) % 64, i % 64], table[(j + 1) % 64, (i + 1) % 64]
    return np.asarray(a + (b - a) * u + (c - a) * v + (a - b - c + d) * u * v)


def palette(colours: str) -> Callable[[Array], Array]:
    """Return a function from 0..1 to the colours, blended."""
    stops = np.array(
        [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours.split()],
        np.float32,
    )

    def colour(shade: Array) -> Array:
        place = np.clip(shade, 0, 1) * (len(stops) - 1)
        low = np.minimum(place.astype(np.int32), len(stops) - 2)
        part = (place - low)[..., None]
        return np.asarray(stops[low] * (1 - part) + stops[low + 1] * part, np.float32)

    return colour


def grid() -> tuple[Array, Array]:
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    return x, y


def as_bytes(rgb: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
