"""The word from Celery's main process to the child that runs jobs: stop."""

import mmap


class Draining:
    """A flag in memory shared across a fork; make it before the fork.

    Not a `multiprocessing.Event`: that has a lock, and a child that is killed while it
    holds it would block the main process for ever.
    """

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 2)

    def start(self) -> None:
        """Have the running job handed back, and no other taken."""
        self._bytes[0] = 1

    def start_broken(self) -> None:
        """Have the worker end with an error: it can run no job at all."""
        self._bytes[1] = 1
        self._bytes[0] = 1

    @property
    def started(self) -> bool:
        """Whether this worker is to end."""
        return bool(self._bytes[0])

    @property
    def broken(self) -> bool:
        """Whether it ends because it can run no job."""
        return bool(self._bytes[1])
