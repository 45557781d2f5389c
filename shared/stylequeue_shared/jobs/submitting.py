"""Recording new jobs."""

from collections.abc import Sequence
from typing import Any

import uuid_utils
from sqlalchemy import Connection, func, insert, select

from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import Conflict, QueueFull, UnreadableRow
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.jobs.pictures import hold_pictures
from stylequeue_shared.jobs.rows import state_of, styles_of, touch_pictures
from stylequeue_shared.models import Job, JobState, JobStyle
from stylequeue_shared.once import Once
from stylequeue_shared.stored_values import estimate_of, object_of
from stylequeue_shared.turns import Priority, standing, turn_of

# PostgreSQL's lock under which waiting jobs are counted and added; any number does.
SUBMITTING = 7_211


def submit(
    database: Database,
    settings: JobSettings,
    content_sha: str,
    style_shas: Sequence[str],
    *,
    max_waiting: int,
    estimate: dict[str, Any] | None = None,
    least_bytes: int | None = None,
    priority: Priority = "normal",
    owner: str = "",
    repeats: tuple[Once, str] | None = None,
) -> str:
    """Record a job as queued and return its id, a UUIDv7.

    No worker that may take less than `least_bytes` of memory is to claim it. The jobs
    of an `owner` share the workers with those of others; many installations have one.
    `repeats`, a client's key with the digest of what it sent, stands for the job then.
    Raises QueueFull when `max_waiting` jobs wait already, InFlight, and
    PictureBeingDeleted.
    """
    values = {"estimate": estimate, "least_bytes": least_bytes}
    values |= {"turn": turn_of(now(), priority), **standing(priority, owner)}
    with database.write() as connection:
        refuse_when_full(connection, max_waiting)
        hold_pictures(connection, [content_sha, *style_shas])
        job_id = _insert(
            connection, settings.model_dump(), content_sha, style_shas, values
        )
        _note_key(connection, repeats, job_id)
        return job_id


def retry(
    database: Database,
    job_id: str,
    *,
    max_waiting: int,
    repeats: tuple[Once, str] | None = None,
) -> str:
    """Record a new job with the pictures, settings and estimate of an ended one.

    It has the same owner, but no priority: that is not for everybody to repeat.
    `repeats` is as for `submit`. Raises NotFound, Conflict while it is not terminal,
    QueueFull and InFlight.
    """
    with database.write() as connection:
        job = state_of(connection, job_id)
        if not JobState(job.state).is_terminal:
            raise Conflict(f"The job is {job.state}; only an ended job can be retried.")
        if object_of(job.settings) is None:
            raise UnreadableRow(f"The settings of job {job_id} cannot be read.")
        refuse_when_full(connection, max_waiting)
        shas = styles_of(connection, job_id)
        touch_pictures(connection, [job_id])
        values = {"estimate": estimate_of(job.estimate), "least_bytes": job.least_bytes}
        values |= {"turn": now(), **standing("normal", job.owner)}
        values["retry_of"] = job_id
        again = _insert(connection, job.settings, job.content_sha, shas, values)
        _note_key(connection, repeats, again)
        return again


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


def _note_key(
    connection: Connection, repeats: tuple[Once, str] | None, job_id: str
) -> None:
    if repeats is not None:
        key, digest = repeats
        key.record(connection, digest, job_id)


def _insert(
    connection: Connection,
    settings: dict[str, Any],
    content_sha: str,
    style_shas: Sequence[str],
    values: dict[str, Any],
) -> str:
    job_id = str(uuid_utils.uuid7())
    connection.execute(
        insert(Job).values(
            id=job_id,
            state=JobState.QUEUED,
            settings=settings,
            content_sha=content_sha,
            created_at=now(),
            **values,
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
