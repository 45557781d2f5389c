"""What is read about jobs and workers; each function is one transaction."""

import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Row, Select, bindparam, exists, func, select, tuple_

from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import NotFound
from stylequeue_shared.models import (
    FORGOTTEN_OWNERS,
    PAUSED,
    Counter,
    Job,
    JobState,
    JobStyle,
    Owner,
    Picture,
    Snapshot,
    Switch,
    Worker,
)
from stylequeue_shared.queue_simulation import Queue, Waiting
from stylequeue_shared.skipped_rows import note_skipped
from stylequeue_shared.stored_values import (
    LONGEST_SECONDS,
    between,
    finite,
    json_number,
    seconds_of,
)
from stylequeue_shared.turns import MOST_TOTAL_SECONDS, use

# Workers beat every 5 s; one that was silent for longer than this is not shown.
SEEN_SECONDS = 60.0
# What a job is taken for that nobody could estimate.
UNKNOWN_SECONDS = 60.0
# Stands for the owners who are forgotten. No owner can be named so: see `OWNER`.
FORGOTTEN = "(forgotten)"

_job_table, _snapshot_table = Job.__table__, Snapshot.__table__
_jobs = select(_job_table)
_snapshots = select(_snapshot_table).order_by(Snapshot.job_id, Snapshot.step)
# Built once: what thousands poll should not compose its statement each time.
_this_job = _job_table.c.id == bindparam("job_id")
_version = select(_job_table.c.version, _job_table.c.state).where(_this_job)
_job = select(_job_table).where(_this_job)
_job_snapshots = (
    select(_snapshot_table)
    .where(_snapshot_table.c.job_id == bindparam("job_id"))
    .order_by(_snapshot_table.c.step)
)


def version(database: Database, job_id: str) -> tuple[int, str]:
    """Return a job's version, which grows with each change, and its state.

    Raises NotFound.
    """
    row = database.first(_version, job_id=job_id)
    if row is None:
        raise _no_job(job_id)
    number, state = row
    return number, state


def job(database: Database, job_id: str) -> tuple[Row[Any], Sequence[Row[Any]]]:
    """Return a job's row and its snapshots by step. Raises NotFound."""
    asked = {"job_id": job_id}
    with database.autocommit() as connection:
        # First the job: a snapshot newer than its row only makes the next poll differ.
        row = connection.execute(_job, asked).one_or_none()
        if row is None:
            raise _no_job(job_id)
        found = connection.execute(_job_snapshots, asked).all()
    return row, found


def page(
    database: Database,
    *,
    state: str | None,
    limit: int,
    before: tuple[float, str] | None,
) -> list[tuple[Row[Any], list[Row[Any]]]]:
    """Return at most `limit` jobs with their snapshots, newest first.

    `before` is the (created_at, id) of the last job of the page before.
    """
    wanted = _jobs.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)
    if state is not None:
        wanted = wanted.where(Job.state == state)
    if before is not None:
        wanted = wanted.where(tuple_(Job.created_at, Job.id) < before)
    with database.read() as connection:
        rows = connection.execute(wanted).all()
        ids = [row.id for row in rows]
        found = connection.execute(_snapshots.where(Snapshot.job_id.in_(ids))).all()
    by_job: dict[str, list[Row[Any]]] = {job_id: [] for job_id in ids}
    for snapshot in found:
        by_job[snapshot.job_id].append(snapshot)
    return [(row, by_job[row.id]) for row in rows]


def queue(database: Database) -> Queue:
    """Return the queue as it is now, to be asked who will be claimed when.

    A job whose row cannot be read is left out.
    """
    used = use()
    # Parts of the JSON alone: to read all of it takes three times as long.
    waits = (
        select(
            *(Job.id, Job.line, Job.turn, Job.least_bytes, Job.checkpoint_step),
            json_number(Job.estimate, "seconds").label("seconds"),
            json_number(Job.settings, "steps").label("steps"),
            func.coalesce(used.c.seconds, 0.0).label("used"),
        )
        .outerjoin(used, used.c.owner == Job.owner)
        .where(Job.state == JobState.QUEUED)
    )
    with database.read() as connection:
        found = connection.execute(waits).all()
    waiting, bad = [], []
    for row in found:
        try:
            waiting.append(_waiting(row))
        except (ValueError, TypeError) as error:
            bad.append((row.id, error))
    for job_id, reason in bad:
        note_skipped(database, "jobs", job_id, reason)
    return Queue(waiting, {row.line[1:]: row.used for row in found})


def _waiting(row: Any) -> Waiting:
    """Return a job for the queue. Raises ValueError when its row cannot be read."""
    job_id, line, turn, least_bytes, done, seconds, steps, _ = row
    if not line:
        raise ValueError("it stands in no line")
    if math.isnan(turn):
        raise ValueError("its turn is no number")
    seconds = finite(seconds, 0.0, LONGEST_SECONDS)
    if seconds is None:
        seconds = UNKNOWN_SECONDS
    if done:
        if finite(steps) is None or steps < 1:
            raise ValueError(f"it has {steps} steps")
        seconds *= max(0.0, min(1.0, 1 - done / steps))
    return Waiting(job_id, line, turn, seconds, least_bytes)


def style_count(database: Database, job_id: str) -> int:
    """Return how many style pictures a job has."""
    with database.read() as connection:
        count = connection.scalar(select(func.count()).where(JobStyle.job_id == job_id))
    return count or 0


def content_sha(database: Database, job_id: str) -> str:
    """Return the SHA-256 of a job's content picture. Raises NotFound."""
    wanted = select(Job.content_sha).where(Job.id == job_id)
    return _one(database, wanted, f"There is no job {job_id[:36]}.")


def style_sha(database: Database, job_id: str, number: int) -> str:
    """Return the SHA-256 of a job's style picture. Raises NotFound."""
    wanted = select(JobStyle.sha256).where(
        JobStyle.job_id == job_id, JobStyle.position == number
    )
    return _one(
        database, wanted, f"There is no style picture {number} of job {job_id[:36]}."
    )


def result_key(database: Database, job_id: str) -> str:
    """Return where the result of a job is stored. Raises NotFound."""
    wanted = select(Job.result_key).where(Job.id == job_id)
    return _one(
        database, wanted, f"Job {job_id[:36]} has no result, or there is no such job."
    )


def snapshot_key(database: Database, job_id: str, step: int) -> str:
    """Return where the snapshot after a step is stored. Raises NotFound."""
    wanted = select(Snapshot.key).where(
        Snapshot.job_id == job_id, Snapshot.step == step
    )
    return _one(
        database, wanted, f"There is no snapshot of step {step} of job {job_id[:36]}."
    )


def workers(database: Database) -> Sequence[Row[Any]]:
    """Return the workers seen lately, with the `job` each runs and its speed."""
    wanted = (
        select(Worker.__table__, Job.id.label("job"), Job.steps_per_second)
        .outerjoin(Job, (Job.worker == Worker.name) & (Job.state == JobState.RUNNING))
        .where(Worker.seen_at > now() - SEEN_SECONDS)
        .order_by(Worker.name)
    )
    with database.read() as connection:
        return connection.execute(wanted).all()


def counts(database: Database) -> dict[str, int]:
    """Return how many jobs are in each state that any job is in."""
    by_state = select(Job.state, func.count()).group_by(Job.state)
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(by_state)}


def counter(database: Database, name: str) -> float:
    """Return what was counted under that name."""
    with database.read() as connection:
        wanted = select(Counter.value).where(Counter.name == name)
        return connection.scalar(wanted) or 0.0


def is_named(database: Database, key: str) -> bool:
    """Whether there still is the job, or the upload, whose file lies under the key."""
    folder, *_, name = PurePosixPath(key).parts
    if folder == "pictures":
        wanted = select(Picture.sha256).where(
            Picture.sha256 == name, Picture.deleting_until.is_(None)
        )
    else:
        wanted = select(Job.id).where(Job.id == PurePosixPath(key).parts[1])
    with database.read() as connection:
        return connection.scalar(wanted) is not None


def worker_seconds(database: Database) -> dict[str, float]:
    """Return what each owner's ended attempts took of the workers.

    Under FORGOTTEN stands what owners had who are forgotten, so that the sum of all
    never goes back.
    """
    known = select(Owner.name, between(Owner.total_seconds, 0.0, MOST_TOTAL_SECONDS))
    forgotten = select(Counter.value).where(Counter.name == FORGOTTEN_OWNERS)
    with database.read() as connection:
        found = dict(connection.execute(known).all())
        if (others := connection.scalar(forgotten)) is not None:
            found[FORGOTTEN] = others
    return found


def is_paused(database: Database) -> bool:
    """Whether an operator has no waiting job start."""
    wanted = select(exists().where(Switch.name == PAUSED))
    with database.read() as connection:
        return bool(connection.scalar(wanted))


def oldest_waiting_seconds(database: Database) -> float:
    """Return the age of the oldest waiting job, 0 when none waits."""
    waits = Job.state == JobState.QUEUED
    age = select(seconds_of(now() - func.min(Job.created_at))).where(waits)
    with database.read() as connection:
        return connection.scalar(age) or 0.0


def _one(database: Database, wanted: Select[Any], missing: str) -> str:
    with database.read() as connection:
        found: str | None = connection.scalar(wanted)
    if found is None:
        raise NotFound(missing)
    return found


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id[:36]}.")
