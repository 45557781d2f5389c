"""Workers whose engine only sleeps: all else that they call is the product's own."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stylequeue_shared import jobs, registry
from stylequeue_shared.database import Database
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.settings import Settings
from stylequeue_worker.tally import Tally

STEP_SECONDS, STEPS = 0.5, 20
PICTURE = Inspected("a" * 64, "image/png", 256, 256, 10_000)

Times = dict[str, list[float]]


def work(
    settings: Settings,
    number: int,
    count: int,
    stop: Any,
    line: Any,
    spread: float = 0.0,
) -> None:
    """Run `count` workers in threads until told to stop; send how long calls took.

    Each is up to `spread` times faster or slower than jobs were estimated for.
    """
    # All simulated workers share this pool; a real worker has one of its own.
    database = Database(settings.database_url, connections=20)
    times: Times = defaultdict(list)

    def timed(name: str, call: Callable[..., Any], *given: Any, **more: Any) -> Any:
        at = time.perf_counter()
        result = call(*given, **more)
        times[name].append(time.perf_counter() - at)
        return result

    def run(name: str) -> None:
        identity, tally = registry.Identity(name, "bench", "asleep", None), Tally()
        chance = random.Random(name)
        step_seconds = STEP_SECONDS * (1 + spread) ** chance.uniform(-1, 1)
        # Not all at once: fleets are not started so.
        time.sleep(chance.uniform(0, STEPS * STEP_SECONDS))
        while not stop.is_set():
            registry.beat(database, replace(identity, pace=tally.pace))
            held = timed("claim", jobs.claim, database, name, lease_seconds=30)
            if held is None:
                time.sleep(1)
                continue
            began, steps = time.monotonic(), held.settings.steps
            for step in range(1, steps + 1):
                time.sleep(step_seconds)
                left = (steps - step) * step_seconds
                progress = jobs.Progress(step, 0.5, 0.1, 1 / step_seconds, left)
                given = (database, held, progress)
                timed("progress", jobs.report, *given, lease_seconds=30)
                if stop.is_set():
                    return
            result = jobs.Result("jobs/bench/1/result.png", 64, 48)
            timed("end", jobs.succeed, database, held, progress, result)
            tally.add_pace(time.monotonic() - began, steps * STEP_SECONDS)

    threads([partial(run, f"{number}-{n}@bench") for n in range(count)])
    line.put(dict(times))


def threads(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls at once, and return after the last."""
    started = [threading.Thread(target=call) for call in calls]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def submit_one(database: Database, owner: str, **chosen: int) -> str:
    """Submit a job for sleepers, of whose length the estimate says the truth."""
    settings = complete_settings({"steps": STEPS} | chosen, styles=1)
    seconds = settings.steps * STEP_SECONDS
    return jobs.submit(
        database,
        settings,
        PICTURE.sha256,
        [PICTURE.sha256],
        max_waiting=1_000_000,
        estimate={"seconds": seconds, "memory_bytes": 10**8, "worker": "bench"},
        owner=owner,
    )
