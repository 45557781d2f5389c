"""Say in the log and in a metric that a row is skipped, since it cannot be read."""

import threading

import structlog
from sqlalchemy.exc import SQLAlchemyError

from stylequeue_shared.counting import count
from stylequeue_shared.database import Database
from stylequeue_shared.models import SKIPPED_ROWS

# A row is read many times a minute: each process tells of it once. What it remembers
# is bounded; beyond this it forgets all, and tells again.
MOST_REMEMBERED = 10_000

log = structlog.get_logger()
_told: set[tuple[str, str]] = set()
_telling = threading.Lock()


def note_skipped(database: Database, table: str, row: str, error: object) -> None:
    """Tell of a row that is skipped, unless this process did before.

    Call it outside transactions: it writes.
    """
    with _telling:
        if (table, row) in _told:
            return
        if len(_told) >= MOST_REMEMBERED:
            _told.clear()
        _told.add((table, row))
    log.error("row_skipped", table=table, row=row, error=str(error)[:500])
    try:
        with database.write(durable=False) as connection:
            count(connection, SKIPPED_ROWS, 1)
    except SQLAlchemyError as failure:
        # To read what can be read is worth more than the count.
        log.warning("skipped_row_not_counted", error=str(failure)[:500])
