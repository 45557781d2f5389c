"""Prefixes of the store whose files nobody needs any more.

Each prefix is emptied twice: at once, and again an hour later. Between the two, an old
attempt or a rendition that was under way when the job was deleted may still write a
file there.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, or_, select, update

from stylequeue_shared.artefacts import job_prefix
from stylequeue_shared.database import Database, now, upsert
from stylequeue_shared.models import Job, Trash

KEPT_SECONDS = 3600.0
# A prefix that could not be emptied is tried again after this time.
RETRY_SECONDS = 300.0


@dataclass(frozen=True)
class Emptying:
    """A prefix to empty now, for the first or for the last time."""

    prefix: str
    is_last: bool


def throw_away(connection: Connection, prefixes: Sequence[str]) -> None:
    """Have everything under these prefixes deleted from the store."""
    if not prefixes:
        return
    row = upsert(connection, Trash)
    connection.execute(
        # Files may have come back under a prefix that was emptied already.
        row.on_conflict_do_update(
            index_elements=[Trash.prefix], set_={"emptied_at": None}
        ),
        [{"prefix": prefix} for prefix in prefixes],
    )


def discard_unknown_jobs(database: Database, job_ids: Collection[str]) -> list[str]:
    """Throw away the files of those ids that no job has; return these ids.

    A job's row exists before the first of its files, so files without a row are never
    those of a job to come.
    """
    with database.write() as connection:
        known = set(connection.scalars(select(Job.id).where(Job.id.in_(job_ids))))
        unknown = sorted(set(job_ids) - known)
        throw_away(connection, [job_prefix(job_id) for job_id in unknown])
        return unknown


def trash_to_empty(database: Database, limit: int = 100) -> list[Emptying]:
    """Return what is to be emptied now; what failed before comes last."""
    wanted = (
        select(Trash.prefix, Trash.emptied_at)
        .where(
            or_(Trash.emptied_at.is_(None), _is_past(Trash.emptied_at, KEPT_SECONDS)),
            or_(Trash.tried_at.is_(None), _is_past(Trash.tried_at, RETRY_SECONDS)),
        )
        .order_by(Trash.tried_at.is_not(None), Trash.tried_at, Trash.prefix)
        .limit(limit)
    )
    with database.read() as connection:
        rows = connection.execute(wanted).all()
    return [Emptying(row.prefix, row.emptied_at is not None) for row in rows]


def record_emptied(database: Database, emptied: Emptying) -> None:
    """Note that the files are deleted; the second time the prefix is forgotten."""
    here = Trash.prefix == emptied.prefix
    with database.write() as connection:
        if emptied.is_last:
            # It stays if it was thrown away again in the meantime.
            gone = delete(Trash).where(here, Trash.emptied_at.is_not(None))
            connection.execute(gone)
        else:
            once = update(Trash).where(here)
            connection.execute(once.values(emptied_at=now(), tried_at=None))


def record_failure(database: Database, prefix: str) -> None:
    """Note that the files could not be deleted, so that others come first."""
    with database.write() as connection:
        here = update(Trash).where(Trash.prefix == prefix)
        connection.execute(here.values(tried_at=now()))


def _is_past(column: Any, seconds: float) -> ColumnElement[bool]:
    """Whether it is longer ago than that, or ahead, since the clock was set back."""
    return or_(column < now() - seconds, column > now() + seconds)
