"""The word from Celery's main process to the child that runs jobs: stop."""

import mmap
import struct
import time

# A worker that was told to stop writes a checkpoint if that is done so soon; then it
# hands its job back as it is, in the middle of a step if need be; and at last leaves it
# to its lease. All of it ends within ten seconds.
CHECKPOINT_SECONDS, LET_GO_SECONDS, LEAVE_SECONDS = 7.0, 8.0, 9.0
# When the word was given, by the clock that all processes of a machine share.
SINCE = struct.Struct("d")


class Draining:
    """A flag in memory shared across a fork; make it before the fork.

    Not a `multiprocessing.Event`: that has a lock, and a child that is killed while it
    holds it would block the main process for ever.
    """

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 3 + SINCE.size)

    def start(self, *, ends: bool = True) -> None:
        """Have the running job handed back, and no other taken.

        `ends`: and the process, too, is to end.
        """
        if not self.started:
            SINCE.pack_into(self._bytes, 3, time.monotonic())
            self._bytes[0] = 1
        self._bytes[2] |= ends

    def start_broken(self, status: int) -> None:
        """Have the worker end with this exit status: it can run no job at all."""
        self._bytes[1] = status
        self.start()

    @property
    def started(self) -> bool:
        """Whether this worker is to let go of its job, and to take no other."""
        return bool(self._bytes[0])

    @property
    def ends(self) -> bool:
        """Whether its process is to end, too."""
        return bool(self._bytes[2])

    @property
    def seconds(self) -> float:
        """For how long it has been so."""
        since: float = SINCE.unpack_from(self._bytes, 3)[0]
        return time.monotonic() - since if self.started else 0.0

    @property
    def broken(self) -> int:
        """The exit status of a worker that can run no job; 0: it is not broken."""
        return self._bytes[1]
