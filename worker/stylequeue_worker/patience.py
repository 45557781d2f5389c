"""Waiting for a store that is away, as long as the job lets it."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import structlog

from stylequeue_shared.errors import MachineError
from stylequeue_worker.draining import Draining
from stylequeue_worker.lease import Lease

# Between attempts to store a result or to read what a job begins with: a minute in all,
# then the job fails here.
STORE_PAUSES = (0.5, 1, 2, 4, 8, 15, 30)

log = structlog.get_logger()

T = TypeVar("T")


class Interrupted(Exception):
    """Raised within a step: the job is to stop, as was asked of it or of its worker."""


class Patience:
    """Has one attempt wait for its store, unless there is something to stop for."""

    def __init__(self, lease: Lease, draining: Draining) -> None:
        self._lease = lease
        self._draining = draining

    def wait(self, seconds: float) -> bool:
        """Wait; return False at once if told to shut down.

        Raises LeaseLost, and Interrupted if the job was cancelled meanwhile.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._lease.check()
            if self._lease.requested == "cancel":
                raise Interrupted
            if self._draining.started:
                return False
            time.sleep(0.1)
        return True

    def read(self, read: Callable[[], T]) -> T:
        """Return what `read` reads from the store, which may be away for a minute.

        Raises Interrupted when told to shut down meanwhile.
        """
        for is_last in self.tries():
            try:
                return read()
            except (OSError, MachineError) as error:
                if is_last:
                    raise
                log.warning("store_not_read", error=str(error))
        raise Interrupted

    def tries(self) -> Iterator[bool]:
        """Have something tried again and again, with pauses between.

        Yields whether it is tried for the last time. Ends when told to shut down.
        """
        for pause in STORE_PAUSES:
            yield False
            if not self.wait(pause):
                return
        yield True
