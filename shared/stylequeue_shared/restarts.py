"""Starting a process again when it ends, with growing pauses, until it is given up."""

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

# Seconds before the first restart; each further failure in a row doubles the pause.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# A process that ran this many seconds worked: what came before is forgotten.
RAN_WELL_SECONDS = 60.0
# A process that failed this often in a row, always sooner than that, is given up.
MAX_FAILURES = 8
# Exit statuses after which starting again cannot help: a setting is wrong, or the
# process supervises others and has given all of them up.
BAD_CONFIGURATION, GAVE_UP = 2, 3


@dataclass(frozen=True)
class Ending:
    """How a process ended, and what happens next."""

    how: str
    # None: the process could not be started at all.
    status: int | None
    # Seconds until it is started again; None: it is given up.
    pause: float | None
    # Failures in a row, this one included.
    failures: int


class RestartedProcess:
    """One process that is started again when it ends; the caller asks regularly."""

    def __init__(
        self,
        start: Callable[[], "subprocess.Popen[bytes]"],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.given_up = False
        self._start = start
        self._clock = clock
        self._failures = 0
        self._started = 0.0
        self._due: float | None = None
        self._error: OSError | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process runs, as far as is known without asking the system."""
        return self.process is not None and self.process.returncode is None

    @property
    def is_due(self) -> bool:
        """Whether the pause after the last failure is over."""
        return self._due is not None and self._clock() >= self._due

    def start(self) -> None:
        """Start the process; an error of the system counts as a failure of it."""
        self._due = None
        self._started = self._clock()
        self._error = None
        try:
            self.process = self._start()
        except OSError as error:
            self.process = None
            self._error = error

    def find_ending(self) -> Ending | None:
        """Return how the process ended, once for each time; None if it did not."""
        if self.given_up or self._due is not None:
            return None
        status = self.process.poll() if self.process else None
        if status is None and self._error is None:
            return None
        return self._note_ending(status)

    def _note_ending(self, status: int | None) -> Ending:
        ran_well = self._clock() - self._started >= RAN_WELL_SECONDS
        self._failures = 1 if ran_well else self._failures + 1
        final = status in (BAD_CONFIGURATION, GAVE_UP) and not ran_well
        self.given_up = final or self._failures >= MAX_FAILURES
        pause = None
        if not self.given_up:
            pause = min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE)
            self._due = self._clock() + pause
        return Ending(self._describe(status), status, pause, self._failures)

    def _describe(self, status: int | None) -> str:
        if status is None:
            return f"cannot be started ({self._error})"
        if -status in set(signal.Signals):
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"
