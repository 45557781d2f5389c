"""Submissions that are sent again: the same key gives the same job, once.

A request holds its key while it is at work. Its job is recorded in the transaction that
says so, and from then on the key stands for that job for a day.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import structlog
from sqlalchemy import Connection, delete, select, update

from stylequeue_shared.database import OUTAGE, Database, now, upsert
from stylequeue_shared.errors import Conflict, InFlight
from stylequeue_shared.models import SubmissionKey

# A request that was killed holds its key no longer than this.
HELD_SECONDS = 120.0
KEPT_SECONDS = 86_400.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Once:
    """A key, held by one request, or standing for a job that it gave before."""

    key: str
    holder: str
    digest: str | None = None
    job_id: str | None = None

    def repeats(self, digest: str) -> str | None:
        """Return the job that the same pictures and settings gave, None if it is new.

        Raises Conflict when the key was used for others.
        """
        if self.job_id is not None and self.digest != digest:
            raise Conflict(
                "The Idempotency-Key was used for other pictures or settings in the "
                "last 24 hours; take a new one for each new job.",
                field="Idempotency-Key",
            )
        return self.job_id

    def record(self, connection: Connection, digest: str, job_id: str) -> None:
        """Have the key stand for the job, which is inserted in this transaction.

        Raises InFlight when another request took the key over.
        """
        ours = update(SubmissionKey).where(
            SubmissionKey.key == self.key, SubmissionKey.holder == self.holder
        )
        values = {"digest": digest, "job_id": job_id, "until": now() + KEPT_SECONDS}
        if not connection.execute(ours.values(**values)).rowcount:
            raise _in_flight()


@contextmanager
def once(database: Database, key: str) -> Iterator[Once]:
    """Hold the key meanwhile, and let go of it if no job comes of it.

    Raises InFlight while another request holds it.
    """
    mine = Once(key, str(uuid4()))
    found = _begin(database, mine)
    try:
        yield found
    finally:
        try:
            _let_go(database, mine)
        except OUTAGE as error:
            # What ended the request is worth more; the key is free before long.
            log.warning("key_not_let_go", error=str(error))


def _let_go(database: Database, mine: Once) -> None:
    """Free the key, unless a job came of it; that also when its answer was lost."""
    with database.write() as connection:
        connection.execute(
            delete(SubmissionKey).where(
                SubmissionKey.key == mine.key,
                SubmissionKey.holder == mine.holder,
                SubmissionKey.job_id.is_(None),
            )
        )


def _begin(database: Database, mine: Once) -> Once:
    this = SubmissionKey.key == mine.key
    with database.write() as connection:
        over = delete(SubmissionKey).where(this, SubmissionKey.until < now())
        connection.execute(over)
        row = upsert(connection, SubmissionKey).values(
            key=mine.key, holder=mine.holder, until=now() + HELD_SECONDS
        )
        new = row.on_conflict_do_nothing().returning(SubmissionKey.key)
        if connection.scalar(new) is not None:
            return mine
        wanted = select(SubmissionKey.digest, SubmissionKey.job_id).where(this)
        found = connection.execute(wanted).one_or_none()
    if found is None or found.job_id is None:
        raise _in_flight()
    return Once(mine.key, mine.holder, found.digest, found.job_id)


def forget_keys(database: Database) -> None:
    """Delete the keys whose day is over."""
    with database.write() as connection:
        connection.execute(delete(SubmissionKey).where(SubmissionKey.until < now()))


def _in_flight() -> InFlight:
    return InFlight(
        "A request with this Idempotency-Key is still at work; try again in a moment.",
        field="Idempotency-Key",
    )
