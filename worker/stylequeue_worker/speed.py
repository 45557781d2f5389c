"""How fast this worker is, measured at its start: see `estimates`."""

import math
import time
from collections.abc import Callable

import torch

from stylequeue_shared.estimates import HISTORY_BYTES, Speed, operations
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.plans import BAND_PIXELS, GPU_BAND_PIXELS, plan
from stylequeue_worker.engine.network import LossNetwork
from stylequeue_worker.engine.objective import Objective

# Of as many runs as fit into this the fastest counts; the first only warms up, but is
# all there is where one takes longer.
PROBE_SECONDS = 0.3
# More than caches hold, or nearly.
HISTORY_AT_LEAST = 64 * 2**20


def measure(network: LossNetwork, *, fast_low: bool) -> Speed:
    """Measure evaluations of `classic`, and how fast memory is read.

    Of a picture that is one band: larger ones are worked on in such pieces.
    """
    on_gpu = network.device.type == "cuda"
    side = math.isqrt(GPU_BAND_PIXELS if on_gpu else BAND_PIXELS)
    return Speed(
        operations_per_second=_operations_rate(network, side),
        low_operations_per_second=(
            _operations_rate(network.lowered(), side) if fast_low else None
        ),
        bytes_per_second=_bytes_rate(network.device, side),
    )


def _operations_rate(network: LossNetwork, side: int) -> float:
    settings = complete_settings({"image_size": side, "seed": 0}, styles=1)
    size = (side, side)
    found = plan(settings, size, gpu=network.device.type == "cuda")
    assert found is not None
    generator = torch.Generator().manual_seed(settings.seed)
    picture, content, style = (
        torch.rand(1, 3, side, side, generator=generator).to(network.device)
        for _ in range(3)
    )
    objective = Objective(network, content, [style], settings, found)
    return operations(settings, size) / _fastest(
        lambda: objective.gradient(picture), network.device
    )


def _bytes_rate(device: torch.device, side: int) -> float:
    """Return the bytes a second at which L-BFGS goes through its history."""
    values = 3 * side**2
    count = max(8, -(-HISTORY_AT_LEAST // (2 * 4 * values)))
    pairs = torch.ones(count, 2, values, device=device)
    q = torch.ones(values, device=device)

    def both_loops() -> None:
        for s, y in [*pairs, *pairs]:
            q.addcmul_(y, s.dot(q), value=-1e-12)

    return HISTORY_BYTES * side**2 * count / _fastest(both_loops, device)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest run: others may be at work here, too."""
    found = [_seconds(run, device)]
    while sum(found) < PROBE_SECONDS:
        found.append(_seconds(run, device))
    return min(found)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    """Have a GPU finish what it was given; the CPU has when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
