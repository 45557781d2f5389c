"""What the transactions on jobs are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Connection, bindparam, delete, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from stylequeue_shared.artefacts import job_prefix
from stylequeue_shared.counting import count
from stylequeue_shared.database import Database, now, upsert
from stylequeue_shared.errors import LeaseLost, NotFound, OurError, StyleQueueError
from stylequeue_shared.jobs.terms import Claim, Result
from stylequeue_shared.jobs.trash import throw_away
from stylequeue_shared.models import (
    NEXT_VERSION,
    SKIPPED_ROWS,
    TERMINAL,
    Job,
    JobState,
    JobStyle,
    Owner,
    Picture,
    Snapshot,
    SubmissionKey,
)
from stylequeue_shared.stored_values import between
from stylequeue_shared.turns import (
    MOST_TOTAL_SECONDS,
    ahead,
    spent_seconds,
    used_seconds,
)

log = structlog.get_logger()

# The values of a job that failed by the fault of the machine it ran on.
AWAY = {"faults": Job.faults + 1, "avoids": Job.worker}


def guard(connection: Connection, held: Claim, values: dict[str, Any]) -> str | None:
    """Update the job if this attempt still runs it, and return what is requested."""
    return tell(connection, held, guarded(values))


def guarded(values: dict[str, Any]) -> ReturningUpdate[Any]:
    """Return the UPDATE of a job that does nothing unless an attempt still runs it."""
    return (
        update(Job)
        .where(
            Job.id == bindparam("held_job"),
            Job.attempt == bindparam("held_attempt"),
            Job.state == JobState.RUNNING,
        )
        .values(**values)
        .returning(Job.requested)
    )


def tell(
    connection: Connection,
    held: Claim,
    change: ReturningUpdate[Any],
    given: Mapping[str, Any] | None = None,
) -> str | None:
    """Make a guarded change, with what is given; return what is requested.

    Raises LeaseLost.
    """
    names = {"held_job": held.job_id, "held_attempt": held.attempt, **(given or {})}
    row = connection.execute(change, names).one_or_none()
    if row is None:
        raise LeaseLost(f"job {held.job_id} is no longer run by attempt {held.attempt}")
    requested: str | None = row.requested
    return requested


def let_go(connection: Connection, held: Claim, values: dict[str, Any]) -> str | None:
    """Update the job so that it no longer runs, and return what was requested."""
    requested = guard(connection, held, values)
    charge(connection, held.job_id)
    return requested


def charge(connection: Connection, job_id: str) -> None:
    """Count what its last attempt took of a worker as its owner's."""
    this = Job.id == job_id
    spent = select(spent_seconds(now())).where(this)
    row = upsert(connection, Owner).values(
        name=select(Job.owner).where(this).scalar_subquery(),
        used_seconds=spent.scalar_subquery(),
        used_at=now(),
        total_seconds=spent.scalar_subquery(),
    )
    total = between(Owner.total_seconds, 0.0, MOST_TOTAL_SECONDS)
    connection.execute(
        row.on_conflict_do_update(
            index_elements=[Owner.name],
            set_={
                "used_seconds": used_seconds() + row.excluded.used_seconds,
                "used_at": now(),
                "total_seconds": total + row.excluded.total_seconds,
            },
        )
    )


def ended(state: JobState) -> dict[str, Any]:
    return {
        "state": state,
        "version": NEXT_VERSION,
        "finished_at": now(),
        "eta_start": None,
        "eta_finish": None,
        "lease_until": None,
        "worker": None,
        "requested": None,
    }


def at_rest(state: JobState) -> dict[str, Any]:
    """Return the values of a job that goes on later, before those that never ran."""
    return {
        "state": state,
        "version": NEXT_VERSION,
        "worker": None,
        "lease_until": None,
        # What was said of the attempt that ended.
        "eta_finish": None,
        **ahead(),
    }


def heed(connection: Connection, job_id: str, requested: str | None) -> bool:
    """Do at once to a waiting or paused job what was asked of it, if it can be done.

    One without a picture cannot be finished; it will be with the first that it gets.
    """
    values: dict[str, Any] = {}
    if requested == "cancel":
        values = ended(JobState.CANCELLED)
    elif requested == "pause":
        values = {"state": JobState.PAUSED, "version": NEXT_VERSION}
        values["paused_at"] = now()
        values |= {"eta_start": None, "eta_finish": None}
    elif requested == "finish":
        newest = newest_picture(connection, job_id)
        if newest is None:
            return False
        values = ended(JobState.SUCCEEDED) | made(newest)
        values |= {"stop_reason": "finished_early", "eta_seconds": 0.0}
    if values:
        here = update(Job).where(Job.id == job_id)
        connection.execute(here.values(**values | {"requested": None}))
    return True


def newest_picture(connection: Connection, job_id: str) -> Result | None:
    row = connection.execute(
        select(Snapshot.key, Snapshot.width, Snapshot.height)
        .where(Snapshot.job_id == job_id)
        .order_by(Snapshot.step.desc())
        .limit(1)
    ).one_or_none()
    # Snapshots of versions before this one did not say how large they are.
    if row is None or row.width is None:
        return None
    return Result(row.key, row.width, row.height)


def failed(error: StyleQueueError) -> dict[str, Any]:
    return ended(JobState.FAILED) | {
        "error_code": error.code,
        # PostgreSQL's text has no NUL.
        "error_message": error.message.replace("\0", "")[:2000],
        "error_fault": error.fault,
    }


def put_aside(database: Database, job_id: str, error: BaseException) -> None:
    """Fail a job for which the database cannot compute what a change needs.

    Call it outside transactions.
    """
    with database.write() as connection:
        here = select(Job.id).where(Job.id == job_id, Job.state.not_in(TERMINAL))
        if connection.scalar(here.with_for_update()) is not None:
            fail_unreadable(connection, job_id, error)


def fail_unreadable(connection: Connection, job_id: str, error: BaseException) -> None:
    """Fail a job whose row cannot be read, and say so in the log and a metric."""
    log.error("row_unreadable", table="jobs", row=job_id, error=str(error)[:500])
    here = update(Job).where(Job.id == job_id)
    connection.execute(here.values(**failed(_unreadable(error))))
    count(connection, SKIPPED_ROWS, 1)


def _unreadable(error: BaseException) -> OurError:
    if not isinstance(error, ValidationError):
        return OurError("The stored job cannot be read; the log tells why.")
    first = error.errors(include_url=False, include_input=False)[0]
    field = first["loc"][0] if first["loc"] else "settings"
    return OurError(f"The stored settings cannot be read: {field}: {first['msg']}")


def made(result: Result) -> dict[str, Any]:
    return {f"result_{name}": value for name, value in vars(result).items()}


def state_of(connection: Connection, job_id: str) -> Any:
    row = connection.execute(
        select(
            *(Job.state, Job.settings, Job.content_sha, Job.requested),
            *(Job.estimate, Job.least_bytes, Job.owner, Job.attempt),
            *(Job.priority, Job.line),
        )
        # PostgreSQL's text has no NUL, nor has any id.
        .where(Job.id == job_id.replace("\0", "?"))
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id[:36]}.")
    return row


def styles_of(connection: Connection, job_id: str) -> tuple[str, ...]:
    return tuple(
        connection.scalars(
            select(JobStyle.sha256)
            .where(JobStyle.job_id == job_id)
            .order_by(JobStyle.position)
        )
    )


def delete_jobs(connection: Connection, job_ids: Sequence[str]) -> None:
    if not job_ids:
        return
    touch_pictures(connection, job_ids)
    # What is sent again makes a new job.
    keys = SubmissionKey.job_id.in_(job_ids)
    connection.execute(delete(SubmissionKey).where(keys))
    connection.execute(delete(Snapshot).where(Snapshot.job_id.in_(job_ids)))
    connection.execute(delete(JobStyle).where(JobStyle.job_id.in_(job_ids)))
    connection.execute(delete(Job).where(Job.id.in_(job_ids)))
    throw_away(connection, [job_prefix(job_id) for job_id in job_ids])


def touch_pictures(connection: Connection, job_ids: Sequence[str]) -> None:
    """Start the hour after which unused pictures are deleted anew."""
    used = (
        select(Job.content_sha)
        .where(Job.id.in_(job_ids))
        .union(select(JobStyle.sha256).where(JobStyle.job_id.in_(job_ids)))
    )
    # Locked in order, as by keep_pictures, and by an UPDATE in any.
    locked = connection.scalars(
        select(Picture.sha256)
        .where(Picture.sha256.in_(used))
        .order_by(Picture.sha256)
        # FOR NO KEY UPDATE: a submission that inserts its job locks the pictures by
        # foreign key, in another order. It must not have to wait for these locks.
        .with_for_update(key_share=True)
    ).all()
    here = update(Picture).where(Picture.sha256.in_(locked))
    connection.execute(here.values(used_at=now()))
