"""How a job is worked on within a memory budget: arithmetic that needs no torch.

A plan depends on the settings, the pictures' size and a budget, never on free memory
or the clock: what a job gives must not depend on what else the machine does.
"""

import sys
from dataclasses import dataclass

from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.layers import CHANNELS, LAYERS, stride

MB = 1_000_000
# A band of so many pixels is worked on within a CPU's caches, and feeds all its cores;
# a GPU needs more to be busy (a guess: no GPU has run it).
BAND_PIXELS, GPU_BAND_PIXELS = 2**16, 2**20
HISTORY_AT_MOST, HISTORY_AT_LEAST = 100, 5

# In bytes for each pixel of the picture; a colour picture in float32 has 12.
PICTURE = 12
PAIR = 2 * PICTURE
# Fitted by bench/memory.py: see docs/performance.md.
PROCESS = 890 * MB
PICTURES = {"lbfgs": 9 * PICTURE, "adam": 10 * PICTURE}
PRECONDITIONER = 3 * PICTURE
WORK = 8


@dataclass(frozen=True)
class Plan:
    """What a job's memory is spent on; the same for every step of one scale.

    rows     height of a band of the picture
    held     bands whose features are kept at a time; what is not kept is computed
             a second time in every step
    half     whether the content's features are kept in half precision
    history  pairs of L-BFGS; 0 for Adam
    """

    rows: int
    held: int
    half: bool
    history: int


def plan(
    settings: JobSettings,
    size: tuple[int, int],
    budget: int | None = None,
    *,
    gpu: bool = False,
) -> Plan | None:
    """Return how to work on a picture of (width, height) within `budget` bytes.

    None when not even the smallest plan fits. Without a budget nothing is spared.
    """
    rows = band_rows(settings, size, GPU_BAND_PIXELS if gpu else BAND_PIXELS)
    bands = -(-size[1] // rows)
    if budget is None:
        return _grown(settings, size, Plan(rows, 1, False, 0), bands, sys.maxsize)
    least = HISTORY_AT_LEAST if settings.optimizer == "lbfgs" else 0
    for half in (False, True):
        smallest = Plan(rows, 1, half, least)
        room = budget - peak_bytes(settings, size, smallest)
        if room >= 0:
            return _grown(settings, size, smallest, bands, room)
    return None


def smaller(found: Plan) -> Plan | None:
    """Return the next smaller plan, or None: what to do when memory ran out after all.

    Smaller blocks first, then a shorter history.
    """
    if found.held > 1:
        return Plan(found.rows, found.held // 2, found.half, found.history)
    if found.history > HISTORY_AT_LEAST:
        history = max(HISTORY_AT_LEAST, found.history // 2)
        return Plan(found.rows, found.held, True, history)
    return None


def band_rows(
    settings: JobSettings, size: tuple[int, int], pixels: int = BAND_PIXELS
) -> int:
    """Return the height of a band, a multiple of the deepest layer's stride."""
    step = 2 * stride(settings.layers[-1])
    return max(step, pixels // size[0] // step * step)


def peak_bytes(settings: JobSettings, size: tuple[int, int], plan: Plan) -> int:
    """Return the most memory that the process will need, as fitted."""
    width, height = size
    pixels = width * height
    of_pictures = PICTURES[settings.optimizer] + PAIR * plan.history
    if settings.preconditioner != "none":
        of_pictures += PRECONDITIONER
    of_targets = content_bytes(settings) / (2 if plan.half else 1)
    bands = band_bytes(settings, size, plan.rows)
    return round(
        PROCESS
        + pixels * (of_pictures + of_targets)
        + bands * plan.held
        + WORK * 4 * CHANNELS[0] * width * min(plan.rows, height)
    )


def band_bytes(settings: JobSettings, size: tuple[int, int], rows: int) -> float:
    """Return what the features of one band take, at every convolution."""
    deepest = LAYERS.index(settings.layers[-1]) // 2
    per_pixel = sum(
        4 * channels / stride(layer) ** 2
        for layer, channels in zip(LAYERS[::2], CHANNELS, strict=True)
        if LAYERS.index(layer) // 2 <= deepest
    )
    return per_pixel * size[0] * min(rows, size[1])


def content_bytes(settings: JobSettings) -> float:
    """Return what the content's features take for each pixel of the picture."""
    return sum(
        4 * CHANNELS[LAYERS.index(layer) // 2] / stride(layer) ** 2
        for layer in settings.content_layers
    )


def _grown(
    settings: JobSettings, size: tuple[int, int], smallest: Plan, bands: int, room: int
) -> Plan:
    """Spend the room: on features first, up to half of it, then on history."""
    band = band_bytes(settings, size, smallest.rows)
    pair = PAIR * size[0] * size[1]
    history = smallest.history
    longest = HISTORY_AT_MOST if settings.optimizer == "lbfgs" else 0
    everything = band * (bands - 1)
    for_features = everything if everything <= room / 2 else room / 2
    history += min(longest - history, int((room - for_features) // pair))
    left = room - (history - smallest.history) * pair
    held = 1 + min(bands - 1, int(left // band))
    return Plan(smallest.rows, held, smallest.half, history)
