"""In which order a job's steps go through sizes and precisions."""

from collections.abc import Iterator
from dataclasses import dataclass

from stylequeue_shared.job_settings import JobSettings

# Below this a picture has no structure to begin with.
SMALLEST_SIDE = 64
# In mixed precision: how much of the steps of a scale is taken in the lower one.
# bfloat16 finds the way as well as float32, until little is left to gain.
LOWER_SHARE = 0.8


@dataclass(frozen=True)
class Phase:
    """Steps `first` to `last`, of one size and one precision.

    `shrunk` is how many times smaller the picture is than the result.
    """

    first: int
    last: int
    shrunk: int
    low: bool


def phases(settings: JobSettings, size: tuple[int, int], fast_low: bool) -> list[Phase]:
    """Return the phases of a job, in order; none of them is empty.

    `fast_low` says whether the device is fast in the lower precision.
    """
    low = fast_low and settings.precision == "mixed"
    found = []
    for first, last, shrunk in _scales(settings, size):
        turn = first + round(LOWER_SHARE * (last + 1 - first)) if low else first
        found += [
            Phase(first, turn - 1, shrunk, True),
            Phase(turn, last, shrunk, False),
        ]
    return [phase for phase in found if phase.first <= phase.last]


def _scales(
    settings: JobSettings, size: tuple[int, int]
) -> Iterator[tuple[int, int, int]]:
    """Yield first step, last step and shrinkage of each scale, the coarsest first."""
    least = max(SMALLEST_SIDE, settings.minimum_side)
    scales = settings.scales
    while scales > 1 and min(size) >> (scales - 1) < least:
        scales -= 1
    # The last scale is the result's, and needs a step.
    scales = min(scales, settings.steps)
    # Of three scales the steps are shared 3 : 2 : 1, since the first are cheap.
    shares = [scales - number for number in range(scales)]
    done = 0
    for number in range(scales):
        last = round(settings.steps * sum(shares[: number + 1]) / sum(shares))
        last = min(last, settings.steps - (scales - 1 - number))
        yield done + 1, last, 1 << (scales - 1 - number)
        done = last
