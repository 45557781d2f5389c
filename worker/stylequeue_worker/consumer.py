"""How Celery's main process comes back to a broker that was away."""

from functools import partial

from celery.worker import consumer
from kombu import Connection

# Celery's own pauses grow to 30 s: so long would a fleet sleep on with jobs waiting.
LONGEST_PAUSE = 5


class Consumer(consumer.Consumer):
    """Celery's, but tries the broker every few seconds however long it is away."""

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, and try again until it is done."""
        patiently = partial(conn.ensure_connection, interval_max=LONGEST_PAUSE)
        # Celery passes no pauses, and has no setting for them.
        conn.ensure_connection = patiently  # type: ignore[method-assign]
        return super().ensure_connected(conn)
