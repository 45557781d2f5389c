"""Many processes on one SQLite file: all wait for each other, and none is refused."""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import func, select

from stylequeue_shared import jobs, reading, registry
from stylequeue_shared.artefacts import result_key, snapshot_key, state_key
from stylequeue_shared.database import Database
from stylequeue_shared.errors import Conflict, NotFound
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.jobs import Progress, Result
from stylequeue_shared.migrate import migrate
from stylequeue_shared.models import Job
from stylequeue_shared.once import forget_keys, once
from tests.shared.submitting import picture

SECONDS = 6.0
# Longer than any process here may have to wait.
LEASE = 120.0
SPAWN = multiprocessing.get_context("spawn")

Role = Callable[[Database], Iterator[Any]]
_all_here: Barrier


def submit(database: Database) -> Iterator[str]:
    """As the web server does; give the ids of the jobs."""
    found = [picture(name) for name in ("cat", random.choice("abcdef"))]
    key = str(uuid4())
    with once(database, key) as held:
        jobs.keep_pictures(database, found)
        given = complete_settings({}, styles=1), found[0].sha256, [found[1].sha256]
        job_id = jobs.submit(
            database, *given, max_waiting=10**6, repeats=(held, "digest")
        )
    with once(database, key) as again:
        # None: somebody has deleted the job already.
        assert again.repeats("digest") in (job_id, None)
    yield job_id


def work(database: Database) -> Iterator[tuple[str, int]]:
    """As a worker does; give the jobs and attempts that it was given."""
    name = f"worker-{multiprocessing.current_process().pid}"
    registry.beat(database, registry.Identity(name, "here", "CPU", None))
    held = jobs.claim(database, name, lease_seconds=LEASE, budget=10**9)
    if held is None:
        return
    yield held.job_id, held.attempt
    jobs.describe(database, held, {"device": "none"}, 10**6)
    for step in (50, 100, 150):
        progress = Progress(step, 0.07, 0.43, 8.0, 1.0)
        jobs.report(database, held, progress, lease_seconds=LEASE)
        key = snapshot_key(held.job_id, held.attempt, step)
        jobs.add_snapshot(database, held, key, progress, (64, 48))
        state = state_key(held.job_id, held.attempt, f"record-{step}")
        jobs.save_checkpoint(database, held, state, step)
    made = Result(result_key(held.job_id, held.attempt, ".png"), 64, 48)
    jobs.succeed(database, held, progress, made)


def poll(database: Database) -> Iterator[None]:
    """As the web server does for those who watch."""
    for row, _ in reading.page(database, state=None, limit=20, before=None):
        with suppress(NotFound):
            reading.version(database, row.id)
            reading.job(database, row.id)
    reading.queue(database)
    reading.workers(database)
    yield None


def disturb(database: Database) -> Iterator[None]:
    """As people do: cancel, retry and delete, each over connections of its own."""
    alone = Database(
        database.engine.url.render_as_string(hide_password=False), pooled=False
    )
    with alone.read() as connection:
        some = select(Job.id).order_by(func.random()).limit(1)
        chosen = connection.scalar(some) or "none yet"
    for ask in (
        lambda: jobs.request(alone, chosen, "cancel"),
        lambda: jobs.retry(alone, chosen, max_waiting=10**6),
        lambda: jobs.forget(alone, chosen),
    ):
        with suppress(NotFound, Conflict):
            ask()
    alone.close()
    yield None


def keep_house(database: Database) -> Iterator[None]:
    """As the housekeeper does; none has lost a job."""
    assert jobs.return_lost(database) == []
    jobs.expire(database, retention_days=1 / 86_400)
    jobs.discard_checkpoints(database)
    forget_keys(database)
    yield None


def enter(all_here: Barrier) -> None:
    global _all_here
    _all_here = all_here


def play(role: Role, url: str) -> list[Any]:
    """Do that for some seconds, at the same time as the others."""
    database = Database(url)
    given = []
    _all_here.wait(120)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        given += role(database)
    database.close()
    return given


def test_many_processes_share_one_file_without_an_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'stylequeue.db'}"
    migrate(url)
    cast = [submit, submit, submit, work, work, work, poll, poll, disturb, keep_house]
    all_here = SPAWN.Barrier(len(cast))
    with ProcessPoolExecutor(len(cast), SPAWN, enter, (all_here,)) as pool:
        playing = [pool.submit(play, role, url) for role in cast]
        # Here comes out what any of them was refused: "database is locked", first.
        given = [one.result() for one in playing]

    submitted = [job_id for ids in given[:3] for job_id in ids]
    claims = [claim for list_ in given[3:6] for claim in list_]
    assert len(set(submitted)) == len(submitted)
    # Everybody had a turn.
    assert all(given)
    assert Counter(claims).most_common(1)[0][1] == 1
    assert {attempt for _, attempt in claims} == {1}
    database = Database(url)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        ran = connection.scalars(select(Job.id).where(Job.attempt > 0)).all()
    database.close()
    assert set(ran) <= {job_id for job_id, _ in claims}
