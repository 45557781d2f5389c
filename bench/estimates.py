"""How far off estimates are: memory and seconds of jobs, foreseen and then measured.

    python -m bench.estimates [--sizes 200 400 640 900] [--budget MB] [--settings JSON]

None of the sizes was fitted to. Each job is square and has a process of its own, as a
worker is: it measures its speed, estimates the job, and then runs it. `steps` are the
whole job, so few of them leave the history short, here as in the estimate.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from bench import machine
from bench.sizes import ENOUGH, square
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.plans import MB
from stylequeue_shared.settings import Settings

GOALS = {"memory": 0.15, "time": 0.25}


def main() -> None:
    """Run each size in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 400, 640, 900])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--budget", type=int, default=ENOUGH, help="in MB")
    parser.add_argument("--settings", default="{}", help="of the jobs, as JSON")
    parser.add_argument("--one", type=int, help="run this size here, print its row")
    given = parser.parse_args()
    if given.one:
        job = {"steps": given.steps, **json.loads(given.settings)}
        print(json.dumps(measure(given.one, given.budget * MB, job)))
        return
    found = machine.describe()
    rows = []
    for size in given.sizes:
        command = [sys.executable, "-m", "bench.estimates", "--one", str(size)]
        command += ["--steps", str(given.steps), "--budget", str(given.budget)]
        command += ["--settings", given.settings]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    machine.report("estimates", rows, {**found, "goals": GOALS})


def measure(size: int, budget: int, given: dict[str, Any]) -> dict[str, Any]:
    """Estimate one job, run it, and return both."""
    # Here, since the process that starts the others is to stay small.
    from stylequeue_worker.studio import Studio

    job = complete_settings({"image_size": size, "seed": 1, **given}, styles=1)
    studio = Studio(Settings(device="cpu", memory_mb=budget // MB))
    content, style = (square(name) for name in ("astronaut.png", "coffee.png"))
    expected = studio.estimate(content, [style], job)
    assert expected is not None
    began = time.perf_counter()
    for _ in studio.paint(content, [style], job):
        pass
    seconds = time.perf_counter() - began
    peak, foreseen = machine.peak_mb(), expected.memory_bytes / MB
    return {
        "size": size,
        "steps": job.steps,
        "foreseen_mb": round(foreseen),
        "peak_mb": peak,
        "memory_error_%": 100 * (foreseen / peak - 1),
        "foreseen_seconds_a_step": expected.seconds / job.steps,
        "seconds_a_step": seconds / job.steps,
        "time_error_%": 100 * (expected.seconds / seconds - 1),
    }


if __name__ == "__main__":
    main()
