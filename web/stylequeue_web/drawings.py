"""Style pictures, painted by numbers: each call gives the same picture."""

import numpy as np
from numpy.typing import NDArray

from stylequeue_web.brushes import (
    SIZE,
    Array,
    as_bytes,
    clouds,
    grid,
    paint,
    palette,
)

TAU = np.float32(2 * np.pi)


def night() -> NDArray[np.uint8]:
    """Return long strokes that follow the whirls of a night sky with lamps in it."""
    lights = [
        (0.2, 0.2, 0.075),
        (0.54, 0.13, 0.05),
        (0.83, 0.24, 0.095),
        (0.42, 0.4, 0.06),
    ]
    colours = palette("#0b1a3a #16386f #2660a4 #4f93c4 #8fc1d3 #f2e3a0 #f6bd3b")

    def height(x: Array, y: Array) -> Array:
        whirls = sum(
            np.sin(np.hypot(x - a, y - b) * 34 / (1 + 6 * r))
            * np.exp(-np.hypot(x - a, y - b) / (r * 2.6))
            for a, b, r in lights
        )
        return np.asarray(
            y * 2.2 + 0.35 * np.sin(x * 5 + y * 3) + 0.7 * whirls, np.float32
        )

    def colour(x: Array, y: Array) -> Array:
        ripple = 0.5 + 0.5 * np.sin(height(x, y) * 7 + 2 * clouds(x, y, 3))
        shade = 0.06 + 0.5 * ripple * (0.45 + 0.55 * y)
        hills = y > 0.79 + 0.06 * np.sin(x * 7 + 1) + 0.03 * np.sin(x * 17)
        shade = np.where(hills, 0.12 * ripple, shade)
        for a, b, r in lights:
            away = np.hypot(x - a, y - b) / r
            shade = np.maximum(
                shade, np.exp(-0.5 * away**2) * 1.15 - 0.08 * np.sin(away * 9)
            )
        return colours(shade)

    return paint(height, colour, seed=1)


def garden() -> NDArray[np.uint8]:
    """Return short, thick strokes: poppies and wheat under an evening sky."""
    sky = palette("#f7d794 #f3a65a #d9695f #8b5a91 #41528f")
    field = palette("#20391f #3f6a2c #7f9a3a #c9b458 #ecd580")
    red = palette("#6d0f1a #b3202a #e2432f #f58549")
    random = np.random.default_rng(8)
    poppies = [
        (x, 0.5 + 0.5 * depth, 0.012 + 0.05 * depth)
        for x, depth in zip(
            random.random(46), np.sort(random.random(46) ** 1.3), strict=True
        )
    ]

    def height(x: Array, y: Array) -> Array:
        land = np.float32(1.0) * x * 2 + 0.4 * clouds(x, y, 3)
        air = y * 2 + 0.25 * np.sin(x * 6 + 2 * y) + 0.35 * clouds(x, y, 2)
        return np.where(y > 0.47, land, air).astype(np.float32)

    def colour(x: Array, y: Array) -> Array:
        evening = sky(0.95 - y * 1.9 + 0.28 * clouds(x * 0.6, y * 2, 3))
        sun = np.exp(-(((x - 0.68) ** 2 + (y - 0.35) ** 2) / 0.012))[..., None]
        evening = evening * (1 - sun) + np.array([1.0, 0.93, 0.7], np.float32) * sun
        wheat = field(0.45 + 0.4 * clouds(x * 2, y * 3, 4) - 0.5 * (y - 0.6))
        out = np.where((y > 0.47 + 0.02 * np.sin(x * 9))[..., None], wheat, evening)
        for a, b, r in poppies:
            away = np.hypot(x - a, (y - b) * 1.3) / r
            flower = red(0.9 - 0.55 * away + 0.4 * (b - y) / r)
            out = np.where((away < 1)[..., None], flower, out)
            out = np.where((away < 0.25)[..., None], np.float32(0.07), out)
        return np.asarray(out, np.float32)

    return paint(height, colour, seed=2)


def mosaic() -> NDArray[np.uint8]:
    """Return tiles of glass, set in rings around a sun."""
    colours = palette("#f9e27d #f4a63a #dd5a35 #a92c4b #4c2a6b #1f4b8f #178a94 #7cc6a0")
    x, y = grid()
    seeds, ring = _ring_seeds(0.5, 0.46)
    first, second, owner = _two_nearest(x, y, seeds)
    shade = ring[owner]
    random = np.random.default_rng(5)
    rgb = colours(shade + random.normal(0, 0.045, len(seeds)).astype(np.float32)[owner])
    rgb = (
        rgb
        * random.uniform(0.78, 1.12, len(seeds)).astype(np.float32)[owner][..., None]
    )
    # Each tile leans its own way and catches the light at one edge.
    lean = random.uniform(-1, 1, (2, len(seeds))).astype(np.float32)
    centre = seeds[owner]
    glint = (x - centre[..., 0]) * lean[0][owner] + (y - centre[..., 1]) * lean[1][
        owner
    ]
    rgb = rgb * (1 + 5 * glint + 0.07 * clouds(x * 5, y * 5, 3))[..., None]
    gap = second - first
    rgb = rgb + 0.22 * np.exp(-(((gap - 0.009) / 0.003) ** 2))[..., None]
    grout = np.clip((gap - 0.003) / 0.003, 0, 1)[..., None]
    return as_bytes(
        rgb * grout + np.array([0.10, 0.08, 0.10], np.float32) * (1 - grout)
    )


def waves() -> NDArray[np.uint8]:
    """Return a sea of printed waves, crest behind crest, in ink on paper."""
    ink = palette("#f4ead2 #c9dcd6 #7fb0bd #3f7fa3 #1f4f82 #12305c")
    x, y = grid()
    grain = clouds(x * 9, y * 9, 4)
    rgb = ink(0.02 + 0.1 * np.clip(0.5 - y, 0, 1) + 0.03 * grain)
    sun = np.hypot(x - 0.71, y - 0.2) - 0.115
    disc = np.clip(-sun * 260, 0, 1)[..., None] * (0.9 + 0.12 * grain)[..., None]
    rgb = rgb * (1 - disc) + np.array([0.80, 0.25, 0.17], np.float32) * disc
    rough, frayed, swell = (
        clouds(x * 14, y * 14, 3),
        clouds(x * 22, y * 22, 2),
        clouds(x * 2, y, 2),
    )
    random = np.random.default_rng(3)
    for row in range(11):
        depth = row / 10
        period = 0.16 + 0.3 * depth
        phase = ((x / period + random.random() + 0.05 * swell) % 1).astype(np.float32)
        # Leaning crests: the rise is long, the fall is steep and curls over.
        rise = np.where(
            phase < 0.72, (phase / 0.72) ** 2.2, ((1 - phase) / 0.28) ** 1.2
        )
        line = 0.30 + 0.62 * depth**1.15 - (0.05 + 0.12 * depth) * rise
        below = y - line - 0.004 * rough
        bands = 0.5 + 0.5 * np.sin(
            TAU * (np.maximum(below, 0) / (0.016 + 0.022 * depth)) ** 0.85
        )
        shade = (
            0.34
            + 0.42 * depth * np.clip(below * 6, 0.3, 1)
            + 0.24 * (bands > 0.52)
            - 0.06 * grain
        )
        body = ink(np.asarray(shade, np.float32))
        foam = below < (
            0.006 + 0.02 * rise * (0.4 + depth) * (0.6 + 0.8 * np.abs(frayed))
        )
        body = np.where(
            foam[..., None], ink(np.asarray(0.01 + 0.05 * grain, np.float32)), body
        )
        edge = np.clip(1 - np.abs(below) * 420, 0, 1)[..., None]
        body = body * (1 - edge) + ink(np.ones_like(x)) * edge
        rgb = np.where((below > -0.0024)[..., None], body, rgb)
    return as_bytes(rgb * (0.97 + 0.05 * clouds(x * 40, y * 40, 2))[..., None])


def _ring_seeds(x: float, y: float) -> tuple[Array, Array]:
    """Return the centres of tiles in rings, and how far out each is, 0 to 1."""
    random = np.random.default_rng(4)
    points, shades = [], []
    for ring in range(27):
        radius = 0.012 + ring * 0.031
        count = max(1, round(TAU * radius / 0.034))
        turn = np.arange(count) * TAU / count + random.random()
        wobble = radius * (1 + 0.05 * np.sin(turn * 8) * min(1.0, ring / 8))
        points.append(
            np.stack([x + wobble * np.cos(turn), y + wobble * np.sin(turn)], 1)
        )
        petals = 0.085 * np.sin(turn * 12 + ring * 0.45) * min(1.0, ring / 6)
        shades.append(np.clip(radius * 1.25 + petals, 0, 1))
    seeds = np.concatenate(points) + random.normal(
        0, 0.0022, (sum(map(len, points)), 2)
    )
    return seeds.astype(np.float32), np.concatenate(shades).astype(np.float32)


def _two_nearest(
    x: Array, y: Array, seeds: Array
) -> tuple[Array, Array, NDArray[np.intp]]:
    """Return the distances to the nearest two seeds, and which one is nearest."""
    first = np.empty_like(x)
    second = np.empty_like(x)
    owner = np.empty(x.shape, np.intp)
    block = 32
    for top in range(0, SIZE, block):
        for left in range(0, SIZE, block):
            here = np.s_[top : top + block, left : left + block]
            near = np.flatnonzero(
                np.abs(seeds - [x[here].mean(), y[here].mean()]).max(axis=1) < 0.1
            )
            away = np.hypot(
                x[here][..., None] - seeds[near, 0], y[here][..., None] - seeds[near, 1]
            )
            two = np.argpartition(away, 1, axis=2)[..., :2]
            distances = np.take_along_axis(away, two, 2)
            swap = distances[..., 0] > distances[..., 1]
            first[here], second[here] = distances.min(2), distances.max(2)
            owner[here] = near[np.where(swap, two[..., 1], two[..., 0])]
    return first, second, owner
