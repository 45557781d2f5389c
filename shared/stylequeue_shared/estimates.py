"""What a job will take on a given worker, before it starts: arithmetic without torch.

    seconds of a step = operations / rate * (1 + RE_READ * share of bands not held)
                      + bytes of the update / rate + STEP_SECONDS

summed over the phases of size and precision, each of which also reads content and
styles once. Memory is the largest peak of all phases. The rates are a worker's own,
measured at its start; `bench/estimates.py` tells how far off this is.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.layers import CHANNELS, LAYERS, stride
from stylequeue_shared.phases import Phase, phases
from stylequeue_shared.plans import PAIR, Plan, peak_bytes, plan, smallest
from stylequeue_shared.sizes import fit

# Of an evaluation: to compute all features a second time.
RE_READ = 0.42
# L-BFGS reads its history twice in every step.
HISTORY_BYTES = 2 * PAIR
# For each pixel, what an update reads and writes besides, at the history's pace.
UPDATE_BYTES = {"lbfgs": 250, "adam": 130}
PRECONDITIONER_BYTES = 600
# What a step takes however small the picture is: some hundred calls of torch.
STEP_SECONDS = 0.004

SIZES = range(32, 8192 + 1, 16)

# Workers of one kind have the same plan.
_plan = lru_cache(maxsize=256)(plan)


@dataclass(frozen=True)
class Speed:
    """What a worker measured at its start; None: not fast in bfloat16."""

    operations_per_second: float
    low_operations_per_second: float | None
    bytes_per_second: float


@dataclass(frozen=True)
class Estimate:
    """What a job will take: at most so much memory, about so long."""

    memory_bytes: int
    seconds: float

    def __str__(self) -> str:
        """Such as: about 25 s and 0.9 GB."""
        return f"about {about(self.seconds)} and {self.memory_bytes / 1e9:.1f} GB"


def estimate(
    settings: JobSettings,
    content: tuple[int, int],
    styles: Sequence[tuple[int, int]],
    budget: int | None,
    speed: Speed,
    *,
    gpu: bool = False,
) -> Estimate | None:
    """Return what a job takes on a worker of that budget and speed, or None: no room.

    Pictures are given as (width, height) of the originals. A job that stops when flat
    may be done sooner.
    """
    result = fit(content, settings.image_size)
    longer = settings.style_size or settings.image_size
    read = [fit(style, longer) for style in styles]
    fast_low = speed.low_operations_per_second is not None
    began: dict[int, int] = {}
    peaks, seconds = [], 0.0
    for phase in phases(settings, result, fast_low):
        size = _shrunk(result, phase.shrunk)
        found = _plan(settings, size, budget, gpu=gpu)
        if found is None:
            return None
        # A scale begins without history; a change of precision keeps it.
        first = began.setdefault(phase.shrunk, phase.first)
        steps = range(phase.first, phase.last + 1)
        pairs = [min(step - first, found.history) for step in steps]
        peaks.append(peak_bytes(settings, size, replace(found, history=pairs[-1])))
        shrunk = [_shrunk(style, phase.shrunk) for style in read]
        work = reading_operations(settings, size, shrunk)
        work += len(pairs) * operations(settings, size) * _with_reread(found, size)
        seconds += work / _rate(speed, phase) + len(pairs) * STEP_SECONDS
        moved = sum(_update_bytes(settings, size, count) for count in pairs)
        seconds += moved / speed.bytes_per_second
    return Estimate(max(peaks), seconds)


def least_bytes(
    settings: JobSettings, content: tuple[int, int], *, gpu: bool = False
) -> int:
    """Return the memory that a job takes at least: with the smallest plan."""
    size = fit(content, settings.image_size)
    return peak_bytes(settings, size, smallest(settings, size, gpu=gpu))


def planned_bytes(
    settings: JobSettings,
    content: tuple[int, int],
    budget: int | None,
    *,
    gpu: bool = False,
) -> int | None:
    """Return the memory that a job takes with the plans of that budget, if any fits."""
    result = fit(content, settings.image_size)
    peaks = []
    for shrunk in {phase.shrunk for phase in phases(settings, result, False)}:
        size = _shrunk(result, shrunk)
        found = _plan(settings, size, budget, gpu=gpu)
        if found is None:
            return None
        pairs = min(found.history, settings.steps)
        peaks.append(peak_bytes(settings, size, replace(found, history=pairs)))
    return max(peaks)


def fits(
    settings: JobSettings,
    content: tuple[int, int],
    budget: int | None,
    *,
    gpu: bool = False,
) -> bool:
    """Return whether a job can be worked on within `budget` bytes."""
    size = fit(content, settings.image_size)
    return _plan(settings, size, budget, gpu=gpu) is not None


def largest_size(
    settings: JobSettings,
    content: tuple[int, int],
    budget: int | None,
    *,
    gpu: bool = False,
) -> int:
    """Return the largest `image_size` of these settings that fits, 0 if none does."""

    def is_too_large(longer: int) -> bool:
        return plan(settings, fit(content, longer), budget, gpu=gpu) is None

    found = bisect_left(SIZES, True, key=is_too_large)
    return SIZES[found - 1] if found else 0


def operations(settings: JobSettings, size: tuple[int, int]) -> float:
    """Return the floating-point operations of one evaluation.

    Each convolution once forward and once back to the picture, and for each style
    layer one product for the Gram matrix and one for its gradient.
    """
    return 2 * _forward(settings.layers, size) + 2 * _grams(settings, size)


def reading_operations(
    settings: JobSettings,
    content: tuple[int, int],
    styles: Sequence[tuple[int, int]],
) -> float:
    """Return the floating-point operations of reading the targets: forward only."""
    return _forward(settings.content_layers, content) + sum(
        _forward(settings.style_layers, style) + _grams(settings, style)
        for style in styles
    )


def about(seconds: float) -> str:
    """Write an estimate for people, no more exact than it is."""
    # As JavaScript rounds, so that a page does not change when its script starts.
    if seconds < 10:
        return f"{max(1, int(seconds + 0.5))} s"
    if seconds < 100:
        return f"{5 * int(seconds / 5 + 0.5)} s"
    if seconds < 6000:
        return f"{int(seconds / 60 + 0.5)} min"
    return f"{int(seconds / 3600 + 0.5)} h"


def _forward(layers: Sequence[str], size: tuple[int, int]) -> float:
    """Return the operations of all convolutions down to the deepest of `layers`."""
    deepest = max(map(LAYERS.index, layers)) // 2
    total, incoming = 0.0, 3
    for number, outgoing in enumerate(CHANNELS[: deepest + 1]):
        total += 2 * 9 * incoming * outgoing * _places(LAYERS[2 * number], size)
        incoming = outgoing
    return total


def _grams(settings: JobSettings, size: tuple[int, int]) -> float:
    """Return the operations of one product for each style layer."""
    return sum(
        2 * CHANNELS[LAYERS.index(layer) // 2] ** 2 * _places(layer, size)
        for layer in settings.style_layers
    )


def _places(layer: str, size: tuple[int, int]) -> int:
    return (size[0] // stride(layer)) * (size[1] // stride(layer))


def _update_bytes(settings: JobSettings, size: tuple[int, int], pairs: int) -> int:
    """Return what the update of a step reads and writes, with so many pairs."""
    each = UPDATE_BYTES[settings.optimizer] + HISTORY_BYTES * pairs
    if settings.optimizer == "lbfgs" and settings.preconditioner != "none":
        each += PRECONDITIONER_BYTES
    return size[0] * size[1] * each


def _with_reread(found: Plan, size: tuple[int, int]) -> float:
    """Return how much of an evaluation is computed: 1 where all bands are held."""
    bands = -(-size[1] // found.rows)
    return 1 + RE_READ * max(0.0, 1 - found.held / bands)


def _rate(speed: Speed, phase: Phase) -> float:
    low = speed.low_operations_per_second
    return low if phase.low and low else speed.operations_per_second


def _shrunk(size: tuple[int, int], times: int) -> tuple[int, int]:
    return max(1, size[0] // times), max(1, size[1] // times)
