"""How a job is worked on within a memory budget: arithmetic that needs no torch.

A plan depends on the settings, the pictures' size and a budget, never on free memory
or the clock: what a job gives must not depend on what else the machine does.
"""

from dataclasses import dataclass, replace

from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.layers import CHANNELS, LAYERS, stride

MB = 1_000_000
# A band of so many pixels is worked on within a CPU's caches, and feeds all its cores;
# a GPU needs more to be busy (a guess: no GPU has run it).
BAND_PIXELS, GPU_BAND_PIXELS = 2**16, 2**20
# Twice as many pairs lower the loss by half a percent after 700 steps, and take a
# twentieth more time at 256 pixels.
HISTORY_AT_MOST, HISTORY_AT_LEAST = 50, 5

# In bytes for each pixel of the picture; a colour picture in float32 has 12.
PICTURE = 12
PAIR = 2 * PICTURE
# Fitted by bench/sizes.py: see docs/performance.md.
PROCESS = 720 * MB
# Pictures that an optimiser holds while the objective is evaluated, and at most.
HOLDS = {"lbfgs": 6 * PICTURE, "adam": 5 * PICTURE}
UPDATES = {"lbfgs": 9 * PICTURE, "adam": 10 * PICTURE}
PRECONDITIONER = 3 * PICTURE
# What comes and goes while a band is worked on, in layers of the first size.
WORK = 8
# Rows that a layer remembers from one band for the next, on average.
TAIL_ROWS = 2.5


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

    def holds_all(self, height: int) -> bool:
        """Whether all bands of a picture that high are held, and none is read again."""
        return self.held * self.rows >= height


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
    if budget is None:
        rows = band_rows(settings, size, GPU_BAND_PIXELS if gpu else BAND_PIXELS)
        longest = HISTORY_AT_MOST if settings.optimizer == "lbfgs" else 0
        return Plan(rows, -(-size[1] // rows), False, longest)
    least = smallest(settings, size, gpu=gpu)
    for found in (replace(least, half=False), least):
        if peak_bytes(settings, size, found) <= budget:
            return _grown(settings, size, found, budget)
    return None


def smallest(
    settings: JobSettings, size: tuple[int, int], *, gpu: bool = False
) -> Plan:
    """Return the plan that takes the least memory."""
    rows = band_rows(settings, size, GPU_BAND_PIXELS if gpu else BAND_PIXELS)
    held = fewest_held(settings, size, rows)
    history = HISTORY_AT_LEAST if settings.optimizer == "lbfgs" else 0
    return Plan(rows, held, True, history)


def smaller(settings: JobSettings, size: tuple[int, int], found: Plan) -> Plan | None:
    """Return the next smaller plan, or None: what to do when memory ran out after all.

    Fewer bands held first, then the content in half precision and a shorter history.
    """
    fewer = max(found.held // 2, fewest_held(settings, size, found.rows))
    if fewer < found.held:
        return replace(found, held=fewer)
    if found.history > HISTORY_AT_LEAST or not found.half:
        history = max(min(HISTORY_AT_LEAST, found.history), found.history // 2)
        return replace(found, half=True, history=history)
    return None


def band_rows(
    settings: JobSettings, size: tuple[int, int], pixels: int | None = None
) -> int:
    """Return the height of a band, a multiple of the deepest layer's stride."""
    step = 2 * stride(settings.layers[-1])
    return max(step, (pixels or BAND_PIXELS) // size[0] // step * step)


def peak_bytes(settings: JobSettings, size: tuple[int, int], plan: Plan) -> int:
    """Return the most memory that the process will need, as fitted.

    An evaluation needs its features, the update after it room for a few pictures more:
    the larger of the two counts.
    """
    width, height = size
    pixels = width * height
    evaluation = (
        pixels * HOLDS[settings.optimizer]
        + features_bytes(settings, size, plan.rows, plan.held)
        + WORK * 4 * CHANNELS[0] * width * min(plan.rows, height)
    )
    update = pixels * UPDATES[settings.optimizer]
    if settings.preconditioner != "none":
        update += pixels * PRECONDITIONER
    targets = content_bytes(settings) / (2 if plan.half else 1)
    kept = pixels * (PAIR * plan.history + targets)
    if settings.scales > 1 or settings.precision != "float32":
        # Content and style stay, to be read again in the next phase.
        kept += 2 * PICTURE * pixels
    return round(PROCESS + kept + max(evaluation, update))


def features_bytes(
    settings: JobSettings, size: tuple[int, int], rows: int, held: int
) -> float:
    """Return what the features of so many bands take, and where to read others again.

    For each `held` bands it is remembered what the layers still need of those above.
    """
    bands = -(-size[1] // rows)
    again = -(-bands // held) - 1
    return held * band_bytes(settings, size, rows) + again * tail_bytes(settings, size)


def tail_bytes(settings: JobSettings, size: tuple[int, int]) -> float:
    """Return what all layers remember from one band for the next."""
    total, incoming = 0.0, 3
    for layer, channels in zip(LAYERS[::2], CHANNELS, strict=True):
        if LAYERS.index(layer) > LAYERS.index(settings.layers[-1]):
            break
        total += 4 * incoming * TAIL_ROWS * size[0] / stride(layer)
        incoming = channels
    return total


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


def fewest_held(
    settings: JobSettings, size: tuple[int, int], rows: int | None = None
) -> int:
    """Return how many bands to hold so that features take the least memory."""
    rows = rows or band_rows(settings, size)
    bands = -(-size[1] // rows)
    return min(
        range(1, bands + 1), key=lambda held: features_bytes(settings, size, rows, held)
    )


def _grown(
    settings: JobSettings, size: tuple[int, int], base: Plan, budget: int
) -> Plan:
    """Spend what is left: up to half of it on features, then the rest on history."""
    bands = -(-size[1] // base.rows)
    longest = HISTORY_AT_MOST if settings.optimizer == "lbfgs" else 0
    least = peak_bytes(settings, size, base)
    everything = peak_bytes(settings, size, replace(base, held=bands)) - least
    share = min(everything, (budget - least) // 2)
    pairs = (budget - least - share) // (PAIR * size[0] * size[1])
    found = replace(base, history=min(longest, base.history + pairs))
    if found.history == longest:
        limit = budget
    else:
        limit = peak_bytes(settings, size, found) + share
    holding = (replace(found, held=n) for n in range(bands, base.held, -1))
    fitting = (p for p in holding if peak_bytes(settings, size, p) <= limit)
    return next(fitting, found)
