"""A connection to PostgreSQL that does not wait for ever."""

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

# So long a server may be silent. Nothing that is asked of it takes a tenth of that.
ANSWER_SECONDS = 10.0

T = TypeVar("T")


class ImpatientConnection(psycopg.Connection[Any]):
    """Breaks off when the server does not answer.

    A server or a line that is gone without a word may keep a client waiting for hours:
    the system's own limits see only what was sent and not confirmed, and what lies
    between may confirm it all the same.
    """

    def wait(
        self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None
    ) -> T:
        """Wait for an answer. Raises psycopg.OperationalError, and is closed then."""
        limit = ANSWER_SECONDS if timeout is None else timeout
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError as error:
            # It waits still, that is, for an answer which may come yet: what it asked
            # for may be done, but was never committed.
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.close()
            raise psycopg.OperationalError(
                f"the database did not answer for {limit:.0f} s"
            ) from error
