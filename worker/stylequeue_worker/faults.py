"""How a worker failed lately, in memory that outlives the child that runs its jobs."""

import mmap
import struct
from pathlib import Path

from stylequeue_shared.errors import DeviceFailed, MachineError, OutOfMemory

# Where Linux counts the processes that it killed for memory: of a container, else all.
KILLS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
# Failures in a row, whether a job runs, whether it hangs, kills before it began.
FIELDS = struct.Struct("I??Q")


class Faults:
    """Counts failures by the machine's fault; make it before the fork.

    Of a child that vanished in the middle of a job it tells the next one why.
    """

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, FIELDS.size)

    @property
    def in_a_row(self) -> int:
        """How many jobs failed here since one went well."""
        return self._read()[0]

    def begin(self) -> None:
        """Note that a job runs from now on."""
        self._write(self.in_a_row, True, False, _kills())

    def end(self, *, failed: bool | None) -> None:
        """Note that it ended, and whether by the machine's fault; None: it was lost."""
        in_a_row = 0 if failed is False else self.in_a_row + bool(failed)
        self._write(in_a_row, False, False, 0)

    def note_hanging(self) -> None:
        """Note that the work has stopped: this process is about to end itself."""
        in_a_row, runs, _, kills = self._read()
        self._write(in_a_row, runs, True, kills)

    def bury(self) -> MachineError | None:
        """Return why the last child vanished with its job, as far as it can be told.

        None: no job ran, or somebody killed it.
        """
        _, runs, hangs, kills = self._read()
        cause: MachineError | None = None
        if runs and hangs:
            cause = DeviceFailed("The worker's steps stopped coming.")
        elif runs and _kills() > kills:
            cause = OutOfMemory.of_the_worker()
        if runs:
            # One that was killed from outside has neither failed nor gone well.
            self.end(failed=None if cause is None else True)
        return cause

    def _read(self) -> tuple[int, bool, bool, int]:
        in_a_row, runs, hangs, kills = FIELDS.unpack_from(self._bytes)
        return in_a_row, runs, hangs, kills

    def _write(self, in_a_row: int, runs: bool, hangs: bool, kills: int) -> None:
        FIELDS.pack_into(self._bytes, 0, in_a_row, runs, hangs, kills)


def _kills() -> int:
    """Return how many processes were killed for memory so far; 0 where none tells."""
    for path in KILLS:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        counts = dict(line.split() for line in lines)
        if (count := counts.get("oom_kill")) is not None:
            return int(count)
    return 0
