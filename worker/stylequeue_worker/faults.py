"""How a worker failed lately, in memory that outlives the child that runs its jobs."""

import mmap
import struct
import zlib
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from stylequeue_shared.errors import DeviceFailed, MachineError, OutOfMemory

# Where Linux counts the processes that it killed for memory: of a container, else all.
KILLS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


@dataclass
class Notes:
    """What is known of a worker's failures."""

    # Jobs that failed in a row, and which was the last of them.
    in_a_row: int
    last: int
    # How many children were killed for memory.
    kills_for_memory: int
    # The job that runs, or none; whether it hangs; and whom the system had killed for
    # memory when it began.
    job: int
    hangs: bool
    kills: int


FIELDS = struct.Struct("IIII?Q")


class Faults:
    """Counts jobs that failed by the machine's fault; make it before the fork.

    Of a child that vanished in the middle of a job it tells the next one why.
    """

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, FIELDS.size)

    @property
    def in_a_row(self) -> int:
        """How many different jobs failed here since one went well."""
        return self._read().in_a_row

    @property
    def kills_for_memory(self) -> int:
        """How many children were killed for memory."""
        return self._read().kills_for_memory

    def begin(self, job_id: str) -> None:
        """Note that a job runs from now on."""
        job = zlib.crc32(job_id.encode()) or 1
        self._write(replace(self._read(), job=job, hangs=False, kills=_kills()))

    def end(self, *, failed: bool | None) -> None:
        """Note that it ended, and whether by the machine's fault; None: it was lost."""
        notes = self._read()
        if failed is False:
            notes.in_a_row = notes.last = 0
        elif failed and notes.job != notes.last:
            # One that is tried again here says no more than it did the first time.
            notes.in_a_row, notes.last = notes.in_a_row + 1, notes.job
        self._write(replace(notes, job=0, hangs=False))

    def note_hanging(self) -> None:
        """Note that the work has stopped: this process is about to end itself."""
        self._write(replace(self._read(), hangs=True))

    def bury(self) -> MachineError | None:
        """Return why the last child vanished with its job, as far as it can be told.

        None: no job ran, or somebody killed it.
        """
        notes = self._read()
        cause: MachineError | None = None
        if notes.job and notes.hangs:
            cause = DeviceFailed("The worker's steps stopped coming.")
        elif notes.job and _kills() > notes.kills:
            cause = OutOfMemory.of_the_worker()
            notes.kills_for_memory += 1
            self._write(notes)
        # One that was killed from outside has neither failed nor gone well.
        self.end(failed=None if cause is None else True)
        return cause

    def _read(self) -> Notes:
        return Notes(*FIELDS.unpack_from(self._bytes))

    def _write(self, notes: Notes) -> None:
        FIELDS.pack_into(self._bytes, 0, *astuple(notes))


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
