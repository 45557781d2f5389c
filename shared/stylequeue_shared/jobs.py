"""The life of a job: every change of its state, and nothing else writes it.

queued -> running -> succeeded | failed | cancelled
   ^---------+  lease lost, or handed back by a worker that shuts down

Each function is one transaction. What a worker writes is guarded by job id, attempt
and `state = 'running'`, so a worker that lost its job can change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uuid_utils
from pydantic import ValidationError
from sqlalchemy import Connection, case, delete, func, insert, null, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stylequeue_shared.artefacts import job_prefix
from stylequeue_shared.database import Database, now
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.errors import (
    Conflict,
    LeaseLost,
    NotFound,
    OurError,
    QueueFull,
    StyleQueueError,
)
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.models import (
    TERMINAL,
    Base,
    Job,
    JobState,
    JobStyle,
    Picture,
    Snapshot,
    Trash,
)

# Workers lost after which the job, not the machines, is to blame.
MAX_LOSSES = 5
# PostgreSQL's lock under which waiting jobs are counted and added; any number does.
SUBMITTING = 7_211


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one attempt of a job, and what it needs for it."""

    job_id: str
    attempt: int
    settings: JobSettings
    content_sha: str
    style_shas: tuple[str, ...]
    # What an earlier attempt noted of the job: its memory budget holds for all.
    made_with: dict[str, Any] | None = None


@dataclass(frozen=True)
class Progress:
    """How far an attempt is; losses are weighted, speed is optimisation time only."""

    step: int
    style_loss: float
    content_loss: float
    steps_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class Result:
    """The final picture in the store."""

    key: str
    width: int
    height: int
    partial: bool = False


# -- Submitting -----------------------------------------------------------------------


def keep_pictures(database: Database, pictures: Sequence[Inspected]) -> None:
    """Record pictures as used now; call it before their bytes are stored.

    From here on the housekeeper leaves them alone for an hour.
    """
    with database.write() as connection:
        # In order: two that lock the same pictures must not wait for each other.
        for picture in sorted(set(pictures), key=lambda picture: picture.sha256):
            row = _upsert(connection, Picture).values(
                sha256=picture.sha256,
                media_type=picture.media_type,
                width=picture.width,
                height=picture.height,
                bytes=picture.bytes,
                used_at=now(),
            )
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=[Picture.sha256], set_={"used_at": now()}
                )
            )


def submit(
    database: Database,
    settings: JobSettings,
    content_sha: str,
    style_shas: Sequence[str],
    *,
    max_waiting: int,
    estimate: dict[str, Any] | None = None,
) -> str:
    """Record a job as queued and return its id, a UUIDv7.

    Raises QueueFull when `max_waiting` jobs wait already.
    """
    with database.write() as connection:
        refuse_when_full(connection, max_waiting)
        return _insert(
            connection, settings.model_dump(), content_sha, style_shas, estimate
        )


def retry(database: Database, job_id: str, *, max_waiting: int) -> str:
    """Record a new job with the pictures, settings and estimate of an ended one.

    Raises NotFound, Conflict while it is not terminal, and QueueFull.
    """
    with database.write() as connection:
        job = _state_of(connection, job_id)
        if not JobState(job.state).is_terminal:
            raise Conflict(f"The job is {job.state}; only an ended job can be retried.")
        refuse_when_full(connection, max_waiting)
        shas = _styles_of(connection, job_id)
        _touch_pictures(connection, [job_id])
        return _insert(connection, job.settings, job.content_sha, shas, job.estimate)


def refuse_when_full(connection: Connection, max_waiting: int) -> None:
    """Raise QueueFull when `max_waiting` jobs wait already."""
    if connection.dialect.name == "postgresql":
        # Else two that count at once both find the last place free.
        connection.execute(select(func.pg_advisory_xact_lock(SUBMITTING)))
    waiting = connection.scalar(
        select(func.count()).where(Job.state == JobState.QUEUED)
    )
    if waiting is not None and waiting >= max_waiting:
        raise QueueFull(
            f"{waiting} jobs are waiting already, at most {max_waiting} may "
            "(STYLEQUEUE_MAX_WAITING); please try again later."
        )


def _insert(
    connection: Connection,
    settings: dict[str, Any],
    content_sha: str,
    style_shas: Sequence[str],
    estimate: dict[str, Any] | None,
) -> str:
    job_id = str(uuid_utils.uuid7())
    connection.execute(
        insert(Job).values(
            id=job_id,
            state=JobState.QUEUED,
            settings=settings,
            content_sha=content_sha,
            estimate=estimate,
            created_at=now(),
        )
    )
    connection.execute(
        insert(JobStyle),
        [
            {"job_id": job_id, "position": position, "sha256": sha}
            for position, sha in enumerate(style_shas)
        ],
    )
    return job_id


# -- Running: called by workers -------------------------------------------------------


def claim(database: Database, worker: str, *, lease_seconds: float) -> Claim | None:
    """Take the job whose turn it is, or None when no job waits.

    One atomic UPDATE decides; any number of workers may call it at once. A job whose
    stored settings this version refuses fails, and the next one is taken.
    """
    with database.write() as connection:
        while row := _take_turn(connection, worker, lease_seconds):
            try:
                settings = JobSettings.model_validate(row.settings)
            except ValidationError as error:
                # Else it would run, for everybody but a worker, until its lease ends.
                here = update(Job).where(Job.id == row.id)
                connection.execute(here.values(**_unreadable(error)))
                continue
            shas = _styles_of(connection, row.id)
            return Claim(
                row.id, row.attempt, settings, row.content_sha, shas, row.made_with
            )
    return None


def _take_turn(connection: Connection, worker: str, lease_seconds: float) -> Any:
    """Mark the job whose turn it is as running and return its row, if there is one."""
    turn = (
        select(Job.id)
        .where(Job.state == JobState.QUEUED)
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer
        .scalar_subquery()
    )
    row = connection.execute(
        update(Job)
        .where(Job.id == turn, Job.state == JobState.QUEUED)
        .values(
            state=JobState.RUNNING,
            version=Job.version + 1,
            worker=worker,
            attempt=Job.attempt + 1,
            lease_until=now() + lease_seconds,
            started_at=func.coalesce(Job.started_at, now()),
            # A job that ran before starts again; null stands for "never a step".
            step=case((Job.step.is_(None), null()), else_=0),
        )
        .returning(Job.id, Job.attempt, Job.settings, Job.content_sha, Job.made_with)
    ).one_or_none()
    if row is not None:
        # No row may name a file of an older attempt.
        connection.execute(delete(Snapshot).where(Snapshot.job_id == row.id))
    return row


def _unreadable(error: ValidationError) -> dict[str, Any]:
    first = error.errors(include_url=False, include_input=False)[0]
    field = first["loc"][0] if first["loc"] else "settings"
    message = f"The stored settings cannot be read: {field}: {first['msg']}"
    return _ended(JobState.FAILED) | _error(OurError.code, message, OurError.fault)


def renew(database: Database, held: Claim, *, lease_seconds: float) -> str | None:
    """Renew the lease and return what is requested of the job, such as `cancel`.

    A lease that ran out but was not given away is renewed all the same.
    Raises LeaseLost when the job belongs to another attempt.
    """
    return _guarded(database, held, {"lease_until": now() + lease_seconds})


def report(
    database: Database, held: Claim, progress: Progress, *, lease_seconds: float
) -> str | None:
    """Write progress, renew the lease and return what is requested of the job.

    Raises LeaseLost when the job belongs to another attempt.
    """
    values = {
        **vars(progress),
        "lease_until": now() + lease_seconds,
        "version": Job.version + 1,
    }
    return _guarded(database, held, values)


def describe(database: Database, held: Claim, made_with: dict[str, Any]) -> None:
    """Record what the picture depends on besides its settings: weights, device."""
    _guarded(database, held, {"made_with": made_with, "version": Job.version + 1})


def add_snapshot(database: Database, held: Claim, key: str, progress: Progress) -> None:
    """Record a snapshot whose file is in the store already, and the progress.

    Raises LeaseLost when the job belongs to another attempt.
    """
    values = {**vars(progress), "version": Job.version + 1}
    with database.write() as connection:
        _guard(connection, held, values)
        row = _upsert(connection, Snapshot).values(
            job_id=held.job_id,
            step=progress.step,
            key=key,
            style_loss=progress.style_loss,
            content_loss=progress.content_loss,
        )
        # It is there already when the answer to the commit was lost.
        connection.execute(row.on_conflict_do_nothing())


def succeed(
    database: Database,
    held: Claim,
    progress: Progress,
    result: Result,
    stop_reason: str = "completed",
) -> None:
    """End the job with its picture. Raises LeaseLost."""
    values = _ended(JobState.SUCCEEDED) | vars(progress) | _result(result)
    _guarded(database, held, {**values, "stop_reason": stop_reason, "eta_seconds": 0.0})


def fail(
    database: Database,
    held: Claim,
    error: StyleQueueError,
    partial: Result | None = None,
) -> None:
    """End the job with a reason, and its best picture if any. Raises LeaseLost."""
    values = _ended(JobState.FAILED) | _error(error.code, error.message, error.fault)
    _guarded(database, held, values | (_result(partial) if partial else {}))


def cancel_running(database: Database, held: Claim) -> None:
    """End the job as its cancellation was requested. Raises LeaseLost."""
    _guarded(database, held, _ended(JobState.CANCELLED))


def hand_back(database: Database, held: Claim) -> None:
    """Put the job back into the queue: this worker shuts down. Raises LeaseLost.

    One that was asked to be cancelled a moment ago is cancelled.
    """
    with database.write() as connection:
        if _guard(connection, held, _waiting_again()) == "cancel":
            here = update(Job).where(Job.id == held.job_id)
            connection.execute(here.values(**_ended(JobState.CANCELLED)))


# -- Asked for by people --------------------------------------------------------------


def request_cancel(database: Database, job_id: str) -> None:
    """Cancel a waiting job at once, ask a running one to; leave an ended one alone.

    Raises NotFound.
    """
    with database.write() as connection:
        state = _state_of(connection, job_id).state
        here = update(Job).where(Job.id == job_id)
        if state in (JobState.QUEUED, JobState.PAUSED):
            connection.execute(here.values(**_ended(JobState.CANCELLED)))
        elif state == JobState.RUNNING:
            connection.execute(
                here.where(Job.requested.is_distinct_from("cancel")).values(
                    requested="cancel", version=Job.version + 1
                )
            )


def forget(database: Database, job_id: str) -> None:
    """Delete an ended job; the housekeeper deletes its files.

    Raises NotFound, and Conflict while the job is not terminal.
    """
    with database.write() as connection:
        state = _state_of(connection, job_id).state
        if not JobState(state).is_terminal:
            raise Conflict(f"The job is {state}; cancel it before you delete it.")
        _delete(connection, [job_id])


# -- Housekeeping ---------------------------------------------------------------------


def return_lost(database: Database) -> list[str]:
    """Return jobs whose lease ran out to the queue; give the ids of all touched.

    One that was asked to be cancelled is cancelled; one whose worker vanished
    MAX_LOSSES times fails, since something about it ends workers.
    """
    lost = (Job.state == JobState.RUNNING, Job.lease_until < now())
    given_up = _ended(JobState.FAILED) | _error(
        "worker_lost",
        f"The worker vanished {MAX_LOSSES} times while it ran this job.",
        "machine",
    )
    with database.write() as connection:
        touched: list[str] = []
        for condition, values in (
            (Job.requested == "cancel", _ended(JobState.CANCELLED)),
            (Job.losses + 1 >= MAX_LOSSES, given_up),
            (True, _waiting_again() | {"losses": Job.losses + 1}),
        ):
            touched += connection.scalars(
                update(Job).where(*lost, condition).values(**values).returning(Job.id)  # type: ignore[arg-type]
            )
        return touched


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
        _delete(connection, old)
        return len(old)


# -- Inside a transaction -------------------------------------------------------------


def _guarded(database: Database, held: Claim, values: dict[str, Any]) -> str | None:
    with database.write() as connection:
        return _guard(connection, held, values)


def _guard(connection: Connection, held: Claim, values: dict[str, Any]) -> str | None:
    """Update the job if this attempt still runs it, and return what is requested."""
    row = connection.execute(
        update(Job)
        .where(
            Job.id == held.job_id,
            Job.attempt == held.attempt,
            Job.state == JobState.RUNNING,
        )
        .values(**values)
        .returning(Job.requested)
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"job {held.job_id} is no longer run by attempt {held.attempt}")
    requested: str | None = row.requested
    return requested


def _ended(state: JobState) -> dict[str, Any]:
    return {
        "state": state,
        "version": Job.version + 1,
        "finished_at": now(),
        "lease_until": None,
        "worker": None,
        "requested": None,
    }


def _waiting_again() -> dict[str, Any]:
    return {
        "state": JobState.QUEUED,
        "version": Job.version + 1,
        "worker": None,
        "lease_until": None,
    }


def _error(code: str, message: str, fault: str) -> dict[str, Any]:
    return {
        "error_code": code,
        # PostgreSQL's text has no NUL.
        "error_message": message.replace("\0", "")[:2000],
        "error_fault": fault,
    }


def _result(result: Result) -> dict[str, Any]:
    return {f"result_{name}": value for name, value in vars(result).items()}


def _state_of(connection: Connection, job_id: str) -> Any:
    row = connection.execute(
        select(Job.state, Job.settings, Job.content_sha, Job.estimate)
        # PostgreSQL's text has no NUL, nor has any id.
        .where(Job.id == job_id.replace("\0", "?"))
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id[:36]}.")
    return row


def _styles_of(connection: Connection, job_id: str) -> tuple[str, ...]:
    return tuple(
        connection.scalars(
            select(JobStyle.sha256)
            .where(JobStyle.job_id == job_id)
            .order_by(JobStyle.position)
        )
    )


def _delete(connection: Connection, job_ids: Sequence[str]) -> None:
    if not job_ids:
        return
    _touch_pictures(connection, job_ids)
    connection.execute(delete(Snapshot).where(Snapshot.job_id.in_(job_ids)))
    connection.execute(delete(JobStyle).where(JobStyle.job_id.in_(job_ids)))
    connection.execute(delete(Job).where(Job.id.in_(job_ids)))
    trash = [{"prefix": job_prefix(job_id)} for job_id in job_ids]
    connection.execute(insert(Trash), trash)


def _touch_pictures(connection: Connection, job_ids: Sequence[str]) -> None:
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
        .with_for_update()
    ).all()
    here = update(Picture).where(Picture.sha256.in_(locked))
    connection.execute(here.values(used_at=now()))


def _upsert(connection: Connection, table: type[Base]) -> Any:
    """Return an INSERT that may say what to do on a conflict."""
    postgres = connection.dialect.name == "postgresql"
    return (postgresql.insert if postgres else sqlite.insert)(table)
