"""Where each waiting job stands in the queue: one query a moment, not one a poll."""

import threading
import time
from collections.abc import Callable

from stylequeue_shared import reading
from stylequeue_shared.database import Database

REFRESH_SECONDS = 1.5


class Positions:
    """The positions as they were at most REFRESH_SECONDS ago; 1 is next."""

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._clock = clock
        self._reading = threading.Lock()
        self._read_at = float("-inf")
        self._positions: dict[str, int] = {}

    def of(self, job_id: str) -> int | None:
        """Return the position of a waiting job, None when it does not wait."""
        stale = self._is_stale()
        # A job that was just submitted is worth a query of its own, once.
        new = job_id not in self._positions
        # One thread reads; others answer from what there is, if it will do.
        if (stale or new) and self._reading.acquire(blocking=new):
            try:
                # Meanwhile another thread may have read.
                if self._is_stale() or job_id not in self._positions:
                    self._positions = self._read()
                    self._read_at = self._clock()
            finally:
                self._reading.release()
        return self._positions.get(job_id)

    def _is_stale(self) -> bool:
        return self._clock() - self._read_at > REFRESH_SECONDS

    def _read(self) -> dict[str, int]:
        queue = reading.queue(self._database)
        return {one.id: position for position, one in enumerate(queue, start=1)}
