"""What is done for jobs that nobody asks about: lost, foretold, expired."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.exc import DataError

from stylequeue_shared.artefacts import states_prefix
from stylequeue_shared.counting import count
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import MachineError, WorkerLost
from stylequeue_shared.jobs.rows import (
    AWAY,
    at_rest,
    charge,
    delete_jobs,
    ended,
    failed,
    heed,
    made,
    newest_picture,
    put_aside,
)
from stylequeue_shared.jobs.terms import MAX_FAULTS, MAX_LOSSES, Expected
from stylequeue_shared.jobs.trash import throw_away
from stylequeue_shared.models import LOST_LEASES, NEXT_VERSION, TERMINAL, Job, JobState
from stylequeue_shared.skipped_rows import note_skipped


def return_lost(database: Database) -> list[str]:
    """Return jobs whose lease ran out to the queue; give the ids of all touched.

    What was asked of one is done; one whose worker vanished MAX_LOSSES times without a
    newer checkpoint fails, since something about it ends workers, with its newest
    picture.
    """
    return _take_back(database, Job.lease_until < now())


def return_orphans(
    database: Database, worker: str, cause: MachineError | None
) -> list[str]:
    """Return what a worker's process ran when it vanished, as its successor knows.

    So it need not wait for its lease. With a cause that is the machine's fault it is
    sent away, and fails on the last of MAX_FAULTS workers.
    """
    return _take_back(database, Job.worker == worker, cause)


def _take_back(
    database: Database, whose: ColumnElement[bool], cause: MachineError | None = None
) -> list[str]:
    wanted = select(Job.id).where(Job.state == JobState.RUNNING, whose)
    with database.read() as connection:
        found = connection.scalars(wanted).all()
    # Each in a transaction of its own, so that one that fails stops no other.
    return [
        job_id for job_id in found if _take_one_back(database, job_id, whose, cause)
    ]


def _take_one_back(
    database: Database,
    job_id: str,
    whose: ColumnElement[bool],
    cause: MachineError | None,
) -> bool:
    """Return whether the job was still to be taken back."""
    this = select(Job.id).where(Job.id == job_id, Job.state == JobState.RUNNING, whose)
    try:
        with database.write() as connection:
            # A job that is held up in the middle of a transaction is not waited for.
            if connection.scalar(this.with_for_update(skip_locked=True)) is None:
                return False
            _return_to_queue(connection, job_id, cause)
    except DataError as error:
        put_aside(database, job_id, error)
    return True


def _return_to_queue(
    connection: Connection, job_id: str, cause: MachineError | None
) -> None:
    spent = {"losses": Job.losses + 1} if cause is None else AWAY
    job = connection.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(**at_rest(JobState.QUEUED), **spent)
        .returning(Job.requested, Job.losses, Job.faults)
    ).one()
    count(connection, LOST_LEASES, 1)
    charge(connection, job_id)
    error = cause if job.faults >= MAX_FAULTS else None
    if job.losses >= MAX_LOSSES:
        error = WorkerLost(
            f"The worker vanished {MAX_LOSSES} times while it ran this job."
        )
    if error is not None and job.requested != "cancel":
        _end_partial(connection, job_id, failed(error))
    else:
        heed(connection, job_id, job.requested)


def foretell(database: Database, expected: Sequence[Expected]) -> None:
    """Record when jobs are expected to start and to end, or that nobody can say."""
    new = update(Job).where(
        Job.id == bindparam("job_id"),
        # One that was claimed meanwhile has no start to wait for.
        Job.state == bindparam("in_state"),
    )
    new = new.values(
        eta_start=bindparam("start"),
        eta_finish=bindparam("finish"),
        version=NEXT_VERSION,
    )
    # In small transactions: no worker's report shall wait for long.
    for first in range(0, len(expected), 200):
        part = expected[first : first + 200]
        rows = [
            {
                **vars(one),
                "in_state": JobState.QUEUED if one.waits else JobState.RUNNING,
            }
            for one in part
        ]
        try:
            with database.write(durable=False) as connection:
                connection.execute(new, rows)
        except DataError:
            for row in rows:
                _foretell_one(database, new, row)


def _foretell_one(database: Database, new: Update, row: dict[str, Any]) -> None:
    try:
        with database.write(durable=False) as connection:
            connection.execute(new, [row])
    except DataError as error:
        note_skipped(database, "jobs", row["job_id"], error)


def discard_checkpoints(database: Database, limit: int = 100) -> int:
    """Put the checkpoints of ended jobs, which are large, into the trash."""
    with database.write() as connection:
        ended_jobs = connection.scalars(
            select(Job.id)
            .where(Job.checkpoint_key.is_not(None), Job.state.in_(TERMINAL))
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        throw_away(connection, [states_prefix(job_id) for job_id in ended_jobs])
        here = update(Job).where(Job.id.in_(ended_jobs))
        connection.execute(here.values(checkpoint_key=None, checkpoint_step=None))
        return len(ended_jobs)


def expire(database: Database, *, retention_days: float) -> int:
    """Delete jobs that ended longer ago than `retention_days`; return how many."""
    with database.write() as connection:
        old = connection.scalars(
            select(Job.id)
            .where(
                Job.state.in_(TERMINAL),
                Job.finished_at < now() - retention_days * 86400,
            )
            .limit(100)
            # One that somebody deletes or retries now is not waited for.
            .with_for_update(skip_locked=True)
        ).all()
        delete_jobs(connection, old)
        return len(old)


def expire_paused(database: Database, *, retention_days: float) -> list[str]:
    """Cancel jobs paused longer than `retention_days`; return their ids.

    Each keeps its newest picture as a partial result.
    """
    before = now() - retention_days * 86400
    with database.write() as connection:
        old = connection.scalars(
            select(Job.id)
            .where(
                Job.state == JobState.PAUSED,
                # An earlier release does not write paused_at, so that it may be
                # missing, or older than the newest attempt.
                func.coalesce(Job.paused_at, 0.0) < before,
                func.coalesce(Job.claimed_at, 0.0) < before,
                Job.created_at < before,
            )
            .limit(100)
            # A job that somebody resumes or cancels at this moment is left alone.
            .with_for_update(skip_locked=True)
        ).all()
        for job_id in old:
            _end_partial(connection, job_id, ended(JobState.CANCELLED))
        return list(old)


def _end_partial(connection: Connection, job_id: str, values: dict[str, Any]) -> None:
    """End a job with its newest picture, if it has one, as a partial result."""
    newest = newest_picture(connection, job_id)
    if newest is not None:
        values = values | made(replace(newest, partial=True))
    connection.execute(update(Job).where(Job.id == job_id).values(**values))
