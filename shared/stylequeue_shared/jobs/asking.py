"""What people and operators ask of jobs."""

from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from stylequeue_shared.database import Database, now, upsert
from stylequeue_shared.errors import Conflict
from stylequeue_shared.jobs.rows import delete_jobs, heed, state_of
from stylequeue_shared.jobs.submitting import refuse_when_full
from stylequeue_shared.jobs.terms import Request
from stylequeue_shared.models import NEXT_VERSION, PAUSED, Job, JobState, Switch
from stylequeue_shared.stored_values import between
from stylequeue_shared.turns import (
    AHEAD,
    AHEAD_SECONDS,
    Priority,
    ahead,
    in_front,
    standing,
    turn_of,
)


def request(database: Database, job_id: str, what: Request) -> None:
    """Ask a job to stop: a waiting one does at once, a running one within a step.

    `cancel` drops it, an ended one is left alone. `finish` makes its newest picture
    the result, `pause` keeps it for later. Raises NotFound, and Conflict where there
    is nothing to finish or to pause.
    """
    with database.write() as connection:
        job = state_of(connection, job_id)
        state = JobState(job.state)
        if state.is_terminal:
            if what != "cancel":
                raise Conflict(f"The job is {state}; it has come to its end.")
        elif state != JobState.RUNNING:
            if not heed(connection, job_id, what):
                raise Conflict("The job has no picture yet that could be its result.")
        elif job.requested != "cancel":
            # Who cancels wants no picture: nothing takes that back.
            here = update(Job).where(
                Job.id == job_id, Job.requested.is_distinct_from(what)
            )
            connection.execute(here.values(requested=what, version=NEXT_VERSION))


def resume(database: Database, job_id: str, *, max_waiting: int) -> None:
    """Have a paused job wait again, or take back that it be paused.

    It waits in its class, and goes on from its checkpoint. A job that never ran keeps
    its turn; one that ran waits like a new one, so pausing is no way to the front.
    Raises NotFound, Conflict unless it is paused or about to be, and QueueFull when
    `max_waiting` jobs wait already.
    """
    with database.write() as connection:
        job = state_of(connection, job_id)
        here = update(Job).where(Job.id == job_id)
        if job.state == JobState.PAUSED:
            refuse_when_full(connection, max_waiting)
            submitted = now() if job.attempt else Job.created_at
            values = standing(job.priority, job.owner)
            values |= {"turn": turn_of(submitted, job.priority)}
            values |= {"state": JobState.QUEUED, "version": NEXT_VERSION}
            connection.execute(here.values(**values))
        elif job.state == JobState.RUNNING and job.requested == "pause":
            connection.execute(here.values(requested=None, version=NEXT_VERSION))
        else:
            raise Conflict(f"The job is {job.state}; only a paused one can be resumed.")


def put_in_front(database: Database, job_id: str) -> None:
    """Make a waiting job the next one. Raises NotFound, and Conflict if none waits."""
    with database.write() as connection:
        waits = Job.state == JobState.QUEUED
        turn = between(Job.turn, -2 * AHEAD_SECONDS, 0.0)
        earliest = connection.scalar(select(func.min(turn)).where(waits))
        _change_waiting(connection, job_id, in_front(earliest or 0.0))


def prioritise(database: Database, job_id: str, priority: Priority) -> None:
    """Move a waiting job to another class. Raises NotFound, Conflict unless it waits.

    One that was put in front is there no longer; one that was lost or handed back
    stays ahead.
    """
    with database.write() as connection:
        job = state_of(connection, job_id)
        values = standing(priority, job.owner)
        values["turn"] = turn_of(Job.created_at, priority)
        if job.attempt and job.line.startswith(AHEAD):
            values |= ahead()
        _change_waiting(connection, job_id, values)


def _change_waiting(
    connection: Connection, job_id: str, values: dict[str, Any]
) -> None:
    state = state_of(connection, job_id).state
    if state != JobState.QUEUED:
        raise Conflict(f"The job is {state}; only a waiting one has a turn to change.")
    here = update(Job).where(Job.id == job_id)
    connection.execute(here.values(**values, version=NEXT_VERSION))


def pause_queue(database: Database, *, paused: bool) -> None:
    """Have no waiting job claimed until this is taken back; running ones go on."""
    with database.write() as connection:
        if paused:
            row = upsert(connection, Switch).values(name=PAUSED)
            connection.execute(row.on_conflict_do_nothing())
        else:
            connection.execute(delete(Switch).where(Switch.name == PAUSED))


def forget(database: Database, job_id: str) -> None:
    """Delete an ended job; the housekeeper deletes its files.

    Raises NotFound, and Conflict while the job is not terminal.
    """
    with database.write() as connection:
        state = state_of(connection, job_id).state
        if not JobState(state).is_terminal:
            raise Conflict(f"The job is {state}; cancel it before you delete it.")
        delete_jobs(connection, [job_id])
