"""What a fleet asks of its database: claims, progress, polls, submissions.

    python -m bench.fleet [--workers 200] [--waiting 10000] [--seconds 30]

A real PostgreSQL and a real Valkey; the product's own functions, called by simulated
workers whose engine only sleeps, by pollers and by submitters, while a real housekeeper
does its rounds. Then what a claim costs by the number of jobs and of owners that wait,
and how long a job waits for its start on an idle system with one real worker. All of it
shares the cores of one machine with the simulation itself.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from sqlalchemy import insert, select, text, update

from bench import machine
from bench.services import Services
from bench.sleepers import (
    PICTURE,
    STEP_SECONDS,
    STEPS,
    Times,
    submit_one,
    threads,
    work,
)
from stylequeue_shared import jobs, reading
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.database import Database
from stylequeue_shared.errors import MachineError
from stylequeue_shared.housekeeper.housekeeper import Housekeeper
from stylequeue_shared.images import encode_png
from stylequeue_shared.models import Job, JobState
from stylequeue_shared.queue import Bell
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import open_store
from stylequeue_shared.turns import standing

OWNERS = 50
POLLERS, POLL_SECONDS = 1000, 5.0
PROCESSES = 4


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    found = machine.describe()
    with tempfile.TemporaryDirectory() as folder, Services(Path(folder)) as services:
        settings = services.settings
        database = Database(settings.database_url)
        with database.read() as connection:
            found["postgresql"] = connection.scalar(text("SHOW server_version"))
        rows = _fleet(settings, database, options)
        rows += _claims(database)
        rows.append(_idle(settings, database))
        database.close()
    machine.report("fleet", rows, found)


# -- The fleet at work ----------------------------------------------------------------


def _fleet(
    settings: Settings, database: Database, options: argparse.Namespace
) -> list[dict[str, Any]]:
    _fill(database, options.waiting, OWNERS)
    context = multiprocessing.get_context("spawn")
    line: Any = context.Queue()
    stop = context.Event()
    share = options.workers // PROCESSES
    parts = [
        context.Process(target=work, args=(settings, number, share, stop, line))
        for number in range(PROCESSES)
    ]
    parts += [context.Process(target=_poll, args=(settings, stop, line))]
    parts += [context.Process(target=_submit, args=(settings, stop, line))]
    for part in parts:
        part.start()
    bell = Bell(settings)
    store = open_store(settings.store_url)
    keeper = Housekeeper(database, store, bell, settings)
    # Until all workers are at work: they begin within the time of a job, and
    # know their pace after another.
    time.sleep(2 * STEPS * STEP_SECONDS + 5)
    before, began = _load(database), time.monotonic()
    rounds: list[float] = []
    while time.monotonic() - began < options.seconds:
        at = time.perf_counter()
        keeper.round()
        rounds.append(time.perf_counter() - at)
        time.sleep(keeper.pause)
    after, took = _load(database), time.monotonic() - began
    stop.set()
    times: Times = defaultdict(list)
    for _ in parts:
        for name, seconds in line.get().items():
            times[name] += seconds
    for part in parts:
        part.join()
    bell.close()
    times["housekeeper's round"] = rounds
    goals = {"claim": 20.0}
    rows = [
        _row(name, one, options.waiting, goals.get(name), len(one) / took)
        for name, one in sorted(times.items())
    ]
    used = {name: (after[name] - before[name]) / took for name in before}
    rows.append(
        {
            "what": "the database, of one core",
            "waiting": options.waiting,
            "each second": used["cpu"],
            "per worker": used["cpu"] / options.workers,
        }
    )
    rows.append(
        {
            "what": "transactions",
            "waiting": options.waiting,
            "each second": used["transactions"],
            "per worker": used["transactions"] / options.workers,
        }
    )
    return rows


def _poll(settings: Settings, stop: Any, line: Any) -> None:
    """Poll as POLLERS clients do: most find nothing new, a tenth read the job."""
    database = Database(settings.database_url, connections=8)
    with database.read() as connection:
        ids = list(connection.scalars(select(Job.id).limit(POLLERS)))
    times: Times = defaultdict(list)
    count = 20

    def run() -> None:
        while not stop.is_set():
            at = time.perf_counter()
            job_id = random.choice(ids)
            if random.random() < 0.1:
                reading.job(database, job_id)
            else:
                reading.version(database, job_id)
            took = time.perf_counter() - at
            times["status"].append(took)
            time.sleep(max(0.0, POLL_SECONDS * count / POLLERS - took))

    threads([run] * count)
    line.put(dict(times))


def _submit(settings: Settings, stop: Any, line: Any) -> None:
    """Submit ten jobs a second."""
    database = Database(settings.database_url)
    times: Times = defaultdict(list)
    while not stop.is_set():
        at = time.perf_counter()
        submit_one(database, f"o{random.randrange(OWNERS)}")
        times["submit"].append(time.perf_counter() - at)
        time.sleep(0.1)
    line.put(dict(times))


def _load(database: Database) -> dict[str, float]:
    """Return the processor seconds of the server so far, and its transactions."""
    with database.read() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        wanted = "SELECT sum(xact_commit) FROM pg_stat_database"
        transactions = float(connection.scalar(text(wanted)) or 0)
        postmaster = psutil.Process(pid).parent()
    assert postmaster is not None
    cpu = 0.0
    for process in [postmaster, *postmaster.children()]:
        used = process.cpu_times()
        cpu += used.user + used.system
    return {"cpu": cpu, "transactions": transactions}


# -- What a claim costs ---------------------------------------------------------------


def _claims(database: Database) -> list[dict[str, Any]]:
    rows = []
    for waiting, owners in (
        *((count, OWNERS) for count in (100, 1000, 10_000, 100_000)),
        *((10_000, owners) for owners in (1, 10, 500)),
    ):
        _empty(database)
        _fill(database, waiting, owners)
        seconds = []
        for _ in range(min(100, waiting)):
            at = time.perf_counter()
            held = jobs.claim(database, "one", lease_seconds=30)
            seconds.append(time.perf_counter() - at)
            assert held is not None
            jobs.fail(database, held, MachineError("the bench is done with it"))
        rows.append(_row(f"claim alone, {owners} owners", seconds, waiting, 20.0))
    rows.append(_row("claim where nothing fits", _in_vain(database), 10_000))
    _empty(database)
    return rows


def _in_vain(database: Database) -> list[float]:
    """Return what it takes a small worker to see that only large jobs wait."""
    _empty(database)
    _fill(database, 10_000, OWNERS)
    with database.write() as connection:
        connection.execute(update(Job).values(least_bytes=10**12))
    seconds = []
    for _ in range(20):
        at = time.perf_counter()
        assert jobs.claim(database, "small", lease_seconds=30, budget=10**9) is None
        seconds.append(time.perf_counter() - at)
    return seconds


def _idle(settings: Settings, database: Database) -> dict[str, Any]:
    """Return how long jobs wait for a real worker that has nothing else to do."""
    names = {
        "STYLEQUEUE_HOME": settings.home,
        "STYLEQUEUE_DATABASE": settings.database,
        "STYLEQUEUE_REDIS": settings.redis,
        "STYLEQUEUE_DEVICE": "cpu",
    }
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "stylequeue_shared.cli", "worker"],
        env=os.environ | {name: str(value) for name, value in names.items()},
    )
    bell = Bell(settings)
    picture = encode_png(Image.linear_gradient("L").convert("RGB"))
    open_store(settings.store_url).put(original_key(PICTURE.sha256), picture)
    seconds = []
    try:
        deadline = time.monotonic() + 120
        while not reading.workers(database) and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(20):
            job_id = submit_one(database, "", steps=2, image_size=32)
            bell.ring(job_id)
            while (row := reading.job(database, job_id)[0]).started_at is None:
                time.sleep(0.01)
            seconds.append(row.started_at - row.created_at)
            while not JobState(reading.version(database, job_id)[1]).is_terminal:
                time.sleep(0.05)
            time.sleep(0.3)
    finally:
        worker.terminate()
        worker.wait(30)
        bell.close()
    return _row("submit to running, idle", seconds[2:], 0, 100.0)


# -- Jobs -----------------------------------------------------------------------------


def _fill(database: Database, count: int, owners: int) -> None:
    """Record waiting jobs, many at a time: one as it is submitted, and copies of it."""
    jobs.keep_pictures(database, [PICTURE])
    first = submit_one(database, "")
    with database.write() as connection:
        like = connection.execute(select(Job.__table__).where(Job.id == first)).one()
        values = dict(like._mapping)
        rows = [
            values
            | {"id": f"{number:032d}-cpy", **standing("normal", f"o{number % owners}")}
            for number in range(count - 1)
        ]
        for at in range(0, len(rows), 1000):
            connection.execute(insert(Job), rows[at : at + 1000])
        connection.execute(text("ANALYZE jobs"))


def _empty(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("TRUNCATE jobs, job_styles, snapshots, owners CASCADE"))


def _row(
    what: str,
    seconds: Sequence[float],
    waiting: int,
    goal: float | None = None,
    each_second: float | None = None,
) -> dict[str, Any]:
    cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [0.0] * 99
    return {
        "what": what,
        "waiting": waiting,
        "n": len(seconds),
        "p50": 1000 * cuts[49],
        "p99": 1000 * cuts[98],
        "goal": goal,
        "each second": each_second,
        "per worker": None,
    }


if __name__ == "__main__":
    main()
