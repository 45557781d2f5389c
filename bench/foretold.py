"""How far off the foretold starts and ends of jobs are, by how far ahead they lie.

    python -m bench.foretold [--workers 20] [--jobs 400] [--real 14]

First on workers whose engine only sleeps, up to a third faster or slower than jobs were
estimated for; then on a real worker, with real jobs and their real estimates. A real
housekeeper foretells, and every two seconds it is noted what a client would be told of
each job that waits. What lies less than five seconds ahead is left out.
"""

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sqlalchemy import select, text

from bench import machine
from bench.services import Part, Services
from bench.sizes import square
from bench.sleepers import PICTURE, submit_one, work
from stylequeue_shared import jobs, reading
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.database import Database, now
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.images import encode_png
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.models import Job, JobState
from stylequeue_shared.queue import Bell
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import open_store
from stylequeue_web.forecasts import forecast

LOOK_SECONDS = 2.0
NEAR_SECONDS = 5.0
FAR = float("inf")
# From and to how many seconds ahead; the first span is all of them.
SPANS = ((NEAR_SECONDS, FAR), (NEAR_SECONDS, 30.0), (30.0, 120.0), (120.0, FAR))
SPREAD = 1 / 3
GOAL = 15.0
PATIENCE = 900.0


class Word(NamedTuple):
    """What was said of a waiting job, and when; seconds since 1970."""

    job: str
    said_at: float
    start: float
    finish: float


def main() -> None:
    """Have jobs painted, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--real", type=int, default=14, help="jobs of a real worker")
    options = parser.parse_args()
    found = machine.describe()
    with tempfile.TemporaryDirectory() as folder, Services(Path(folder)) as services:
        settings = services.settings
        database = Database(settings.database_url)
        log = Path(folder) / "log"
        keeper = Part("housekeeper", settings, log)
        try:
            rows = _asleep(settings, database, options.workers, options.jobs)
            rows += _real(settings, database, options.real, log)
        finally:
            keeper.end()
            database.close()
    machine.report("foretold", rows, found)


def _asleep(
    settings: Settings, database: Database, workers: int, count: int
) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    line: Any = context.Queue()
    stop = context.Event()
    part = context.Process(target=work, args=(settings, 0, workers, stop, line, SPREAD))
    chance = random.Random(1)
    jobs.keep_pictures(database, [PICTURE])
    part.start()
    made = [
        submit_one(database, f"o{chance.randrange(10)}", steps=chance.randint(10, 30))
        for _ in range(count)
    ]
    try:
        said = _listen(database, made)
    finally:
        stop.set()
        line.get()
        part.join()
    rows = _rows(database, said, f"{workers} sleeping workers, {count} jobs")
    with database.write() as connection:
        connection.execute(text("TRUNCATE jobs, job_styles, snapshots, owners CASCADE"))
        connection.execute(text("TRUNCATE workers"))
    return rows


def _real(
    settings: Settings, database: Database, count: int, log: Path
) -> list[dict[str, Any]]:
    store, bell = open_store(settings.store_url), Bell(settings)
    pictures = [
        encode_png(square(name).resize((320, 320)))
        for name in ("astronaut.png", "coffee.png")
    ]
    found = [
        Inspected(f"{number:064d}", "image/png", 320, 320, len(data))
        for number, data in enumerate(pictures)
    ]
    for one, data in zip(found, pictures, strict=True):
        store.put(original_key(one.sha256), data)
    jobs.keep_pictures(database, found)
    worker = Part("worker", settings, log)
    try:
        _until(lambda: bool(reading.workers(database)))
        chance, made = random.Random(2), []
        for number in range(count):
            job = complete_settings(
                {
                    "image_size": chance.choice((128, 192, 256)),
                    "steps": chance.randint(60, 160),
                    "preset": chance.choice(("classic", "quick")),
                },
                styles=1,
            )
            size = (found[0].width, found[0].height)
            made.append(
                jobs.submit(
                    *(database, job, found[0].sha256, [found[1].sha256]),
                    max_waiting=count,
                    estimate=forecast(database, job, size, [size]),
                    owner=f"o{number % 3}",
                )
            )
            bell.ring(made[-1])
        said = _listen(database, made)
    finally:
        worker.end()
        bell.close()
    return _rows(database, said, f"a real worker, {count} jobs")


def _listen(database: Database, made: Sequence[str]) -> list[Word]:
    """Note what is said of jobs that wait, until all have ended."""
    said: list[Word] = []
    waiting = select(Job.id, now().label("at"), Job.eta_start, Job.eta_finish)
    waiting = waiting.where(Job.state == JobState.QUEUED, Job.eta_start.is_not(None))

    def have_ended() -> bool:
        time.sleep(LOOK_SECONDS)
        with database.read() as connection:
            said.extend(Word._make(row) for row in connection.execute(waiting))
        counts = reading.counts(database)
        return counts.get(JobState.SUCCEEDED, 0) == len(made)

    _until(have_ended)
    return said


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {PATIENCE:.0f} s")
        time.sleep(0.1)


def _rows(database: Database, said: Sequence[Word], where: str) -> list[dict[str, Any]]:
    """Return by how much of the time ahead what was said was off, in percent."""
    with database.read() as connection:
        times = select(Job.id, Job.started_at, Job.finished_at)
        came = {row.id: row for row in connection.execute(times)}
    rows = []
    for name, column in (("start", "started_at"), ("finish", "finished_at")):
        found = []
        for one in said:
            truth = getattr(came[one.job], column)
            ahead = truth - one.said_at
            if ahead > NEAR_SECONDS:
                found.append((ahead, 100 * abs(getattr(one, name) - truth) / ahead))
        for least, most in SPANS:
            off = sorted(error for ahead, error in found if least < ahead <= most)
            if off:
                rows.append(
                    {
                        "where": where,
                        "foretold": name,
                        "seconds ahead": _span(least, most),
                        "n": len(off),
                        "off by %, median": median(off),
                        "p90": off[int(0.9 * len(off))],
                        "goal": GOAL if (least, most) == SPANS[0] else None,
                    }
                )
    return rows


def _span(least: float, most: float) -> str:
    return f"{least:.0f} to {most:.0f}" if most < FAR else f"over {least:.0f}"


if __name__ == "__main__":
    main()
