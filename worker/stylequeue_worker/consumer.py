"""How Celery's main process comes back to a broker that was away, or refused it."""

import time
from functools import partial
from typing import Any

import redis
from celery.worker import consumer
from celery.worker.state import maybe_shutdown
from kombu import Connection

# Celery's own pauses grow to 30 s: so long would a fleet sleep on with jobs waiting.
LONGEST_PAUSE = 5
# A server that answers with errors is connected to at once: without a pause the worker
# would reconnect several times a second, each time with a traceback in its log.
REFUSED_PAUSE = 2.0
SLICE = 0.1


class Consumer(consumer.Consumer):
    """Celery's, but tries the broker every few seconds however long it is away.

    Celery reconnects only when the connection breaks, and ends the worker on any error
    reply. Redis gives such replies while it is a replica, loads its data, cannot write
    to its disk, is out of memory or has another password, and later serves again.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        known = self.connection_errors  # type: ignore[has-type]
        self.connection_errors = (*known, redis.RedisError)

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, and try again until it is done."""
        patiently = partial(conn.ensure_connection, interval_max=LONGEST_PAUSE)
        # Celery passes no pauses, and has no setting for them.
        conn.ensure_connection = patiently  # type: ignore[method-assign]
        return super().ensure_connected(conn)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Log the error of a broker that refused the first command, and pause."""
        super().on_connection_error_before_connected(exc)
        _pause()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close the connection, and pause if the broker answered with an error."""
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, redis.ResponseError):
            _pause()


def _pause() -> None:
    """Wait before the next try, unless the worker is told to stop."""
    deadline = time.monotonic() + REFUSED_PAUSE
    while time.monotonic() < deadline:
        maybe_shutdown()
        time.sleep(SLICE)
