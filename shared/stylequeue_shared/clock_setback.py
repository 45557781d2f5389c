"""Correct times that lie ahead, which a clock leaves behind that was set back.

No lease, sign of life or use can lie further ahead than it could have been set now. One
that does was set by a clock that was ahead. It counts as set just now: whoever still
holds it sets it again within seconds, and else it runs out as usual.
"""

from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import ColumnElement, select, update

from stylequeue_shared.database import Database, now
from stylequeue_shared.models import Job, JobState, Owner, SubmissionKey, Worker
from stylequeue_shared.once import HELD_SECONDS, KEPT_SECONDS

# Clocks are set by less than this all the time.
TOLERATED_SECONDS = 5.0

log = structlog.get_logger()


def correct_times(database: Database, *, lease_seconds: float) -> None:
    """Correct all times of the database that lie too far ahead.

    During a change of STYLEQUEUE_LEASE_SECONDS a worker may give longer leases than
    the housekeeper knows. They are shortened, which does no harm: each worker renews
    its lease every second, or more often.
    """
    is_held = SubmissionKey.job_id.is_(None)
    runs = Job.state == JobState.RUNNING
    for column, at_most, conditions in (
        (Job.lease_until, lease_seconds, [runs]),
        (Job.claimed_at, 0.0, [runs]),
        (Worker.seen_at, 0.0, []),
        (Owner.used_at, 0.0, []),
        (SubmissionKey.until, HELD_SECONDS, [is_held]),
        (SubmissionKey.until, KEPT_SECONDS, [~is_held]),
    ):
        _correct(database, column, at_most, conditions)


def _correct(
    database: Database,
    column: Any,
    at_most: float,
    conditions: Sequence[ColumnElement[bool]],
) -> None:
    """Set times that are more than `at_most` seconds ahead to that many."""
    table = column.class_
    too_late = (column > now() + at_most + TOLERATED_SECONDS, *conditions)
    # Usually there are none, and a search needs no lock.
    with database.read() as connection:
        if connection.scalar(select(column).where(*too_late).limit(1)) is None:
            return
    with database.write() as connection:
        wrong = update(table).where(*too_late)
        corrected = connection.execute(wrong.values({column: now() + at_most}))
    log.warning("times_corrected", column=str(column), number=corrected.rowcount)
