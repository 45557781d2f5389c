"""How a step's cost grows with the picture, and the memory it takes, as foreseen.

    python -m bench.sizes [--cases 256 1024 2048:2500] [--settings JSON]

A case is the longer side of a square picture, with a memory budget in MB behind a
colon; without one nothing is spared. Each has a process of its own, as a worker is,
and takes enough steps for the history that the plan allows, or as many as are asked
for. `per_pixel` is in microseconds; `memory_error` is of the foreseen peak.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from PIL import Image

from bench import machine
from bench.classic import SHIPPED
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.plans import MB, peak_bytes
from stylequeue_shared.settings import Settings

CASES = ("256", "320", "512", "1024", "2048", "2048:2500", "4096:6000")
ENOUGH = sys.maxsize // MB


def main() -> None:
    """Run each case in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--settings", default="{}", help="of the jobs, as JSON")
    parser.add_argument("--one", help="run this case here and print its row")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.steps, json.loads(given.settings))))
        return
    found = machine.describe()
    rows = []
    for case in given.cases:
        command = [sys.executable, "-m", "bench.sizes", "--one", case]
        command += ["--steps", str(given.steps), "--settings", given.settings]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    machine.report("sizes", rows, found)


def measure(case: str, steps: int, given: dict[str, Any]) -> dict[str, Any]:
    """Take some steps of one job; return what they took."""
    # Here, since the process that starts the others is to stay small.
    from stylequeue_worker.studio import Studio

    side, _, budget = case.partition(":")
    size = int(side)
    job = complete_settings({"image_size": size, "seed": 1, **given}, styles=1)
    studio = Studio(Settings(device="cpu"))
    content, style = (square(name) for name in ("astronaut.png", "coffee.png"))
    seconds, began = [], time.perf_counter()
    for step in studio.paint(content, [style], job, int(budget or ENOUGH) * MB):
        seconds.append(time.perf_counter() - began)
        if step.number == steps:
            break
        began = time.perf_counter()
    plan = step.plan
    assert plan is not None
    taken = plan.__class__(**{**vars(plan), "history": min(plan.history, steps - 1)})
    peak = machine.peak_mb()
    foreseen = peak_bytes(job, (size, size), taken) / MB
    # The first step reads the styles.
    median = statistics.median(seconds[1:])
    return {
        "size": size,
        "budget_mb": int(budget) if budget else None,
        **vars(plan),
        "first_step": seconds[0],
        "step": median,
        "per_pixel": median / size**2 * 1e6,
        "peak_mb": peak,
        "foreseen_mb": round(foreseen),
        "memory_error": foreseen / peak - 1,
    }


def square(name: str) -> Image.Image:
    """Return the top left of a photograph that scikit-image ships."""
    with Image.open(SHIPPED / name) as image:
        side = min(image.size)
        return image.convert("RGB").crop((0, 0, side, side))


if __name__ == "__main__":
    main()
