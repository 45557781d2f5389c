"""What tests of jobs begin with, and how they look at what came of it."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import func, select, update

from stylequeue_shared import jobs, registry
from stylequeue_shared.artefacts import snapshot_key
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import NumericalError
from stylequeue_shared.jobs import Claim, Result
from stylequeue_shared.models import Job, JobState, Picture, Snapshot
from tests.shared.submitting import HALF_WAY, claim, row, submit

MADE = Result(key="jobs/1/1/result.png", width=256, height=192)
ESTIMATE = {"seconds": 41.2, "memory_bytes": 940_000_000, "worker": "gpu-1"}
ENDED = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]

CLAIM_ALL = """
import sys
from stylequeue_shared import jobs
from stylequeue_shared.database import Database

database = Database(sys.argv[1])
while held := jobs.claim(database, sys.argv[2], lease_seconds=60):
    print(held.job_id, held.attempt)
database.close()
"""


def snapshots(database: Database, job_id: str) -> list[tuple[int, str]]:
    with database.read() as connection:
        found = connection.execute(
            select(Snapshot.step, Snapshot.key)
            .where(Snapshot.job_id == job_id)
            .order_by(Snapshot.step)
        )
        return [(step, key) for step, key in found]


def save_snapshots(database: Database, held: Claim, *steps: int) -> None:
    for step in steps:
        key = snapshot_key(held.job_id, held.attempt, step)
        progress = replace(HALF_WAY, step=step)
        jobs.add_snapshot(database, held, key, progress, (64, 48))


def count(database: Database, table: type) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def grow_old(database: Database, days: float) -> None:
    """Let that much time pass for all jobs and pictures."""
    seconds = days * 86_400
    with database.write() as connection:
        connection.execute(update(Job).values(finished_at=Job.finished_at - seconds))
        connection.execute(update(Picture).values(used_at=Picture.used_at - seconds))


def beat(database: Database, name: str, refuses: str | None = None) -> None:
    identity = registry.Identity(name, "here", "CPU", None, refuses=refuses)
    registry.beat(database, identity)


def time(database: Database) -> float:
    with database.read() as connection:
        return connection.scalar(select(now())) or 0.0


def ages(database: Database) -> dict[str, float]:
    with database.read() as connection:
        rows = connection.execute(select(Picture.sha256, now() - Picture.used_at))
        return {row[0]: row[1] for row in rows}


def change(database: Database, job_id: str, **values: object) -> None:
    with database.write() as connection:
        connection.execute(update(Job).where(Job.id == job_id).values(**values))


def end(database: Database, state: JobState, **given: Any) -> str:
    """Bring a new job to its end in that state and return its id."""
    job_id = submit(database, **given)
    held = claim(database)
    assert held.job_id == job_id
    if state == JobState.SUCCEEDED:
        jobs.succeed(database, held, HALF_WAY, MADE)
    elif state == JobState.FAILED:
        jobs.fail(database, held, NumericalError("the style loss is not finite"))
    else:
        jobs.request(database, job_id, "cancel")
        jobs.hand_back(database, held)
    assert row(database, job_id).state == state
    return job_id


def together(*calls: Callable[[], object]) -> list[Exception]:
    """Call all at once, each in a thread of its own; return what was raised."""
    raised: list[Exception] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        try:
            call()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised
