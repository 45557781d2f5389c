"""The line between a running job and its row in the database."""

import os
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from types import TracebackType

import structlog

from stylequeue_shared import jobs
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.errors import LeaseLost
from stylequeue_worker.watchdog import Watchdog

REPORT_SECONDS = 0.25
# So often a request is looked for, however long a step takes.
RENEW_SECONDS = 1.0

log = structlog.get_logger()


def end_process() -> None:
    """End this process at once: its thread that runs jobs may never return."""
    os._exit(1)


class Lease:
    """Renews the lease, writes progress and hears requests, in a thread of its own.

    So neither a long step nor a slow database holds up the other. Progress that an
    outage of the database swallows is dropped: the next is worth more. When the work
    has stopped, so does the renewing, and `on_stuck` is called. When `is_late` says so,
    the job is handed back, in the middle of a step if need be.
    """

    def __init__(
        self,
        database: Database,
        held: jobs.Claim,
        seconds: float,
        on_stuck: Callable[[], None],
        is_late: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_late = is_late
        self.watchdog = Watchdog()
        self._on_stuck = on_stuck
        self.requested: str | None = None
        self.lost = False
        self._database = database
        self._held = held
        self._seconds = seconds
        self._progress: jobs.Progress | None = None
        # One writer at a time, so that no older progress lands after a newer one,
        # and no renewal after the job's end.
        self._writing = threading.Lock()
        self._ended = threading.Event()
        # In a copy of the context, so that its log lines name the job, too.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep,), daemon=True
        )

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, progress: jobs.Progress) -> None:
        """Have this written soon; only the newest is."""
        self._progress = progress

    def check(self) -> None:
        """Raise LeaseLost when the job is no longer ours."""
        if self.lost:
            raise LeaseLost(f"job {self._held.job_id} belongs to another attempt")

    def write(self, change: Callable[[Database, jobs.Claim], None]) -> None:
        """Make a change of our own. Raises LeaseLost, and what the database raises."""
        with self._writing:
            self.check()
            change(self._database, self._held)

    def end(self, change: Callable[[Database, jobs.Claim], None]) -> None:
        """Make the change that ends this attempt, and write nothing after it."""
        with self._writing:
            self.check()
            change(self._database, self._held)
            self._ended.set()

    def _keep(self) -> None:
        written: jobs.Progress | None = None
        renewed = float("-inf")
        pause = 0.0
        stopped = False
        while not self._ended.wait(pause):
            # Twice: one that was stopped itself, and woken, beats before the second.
            before, stopped = stopped, self.watchdog.has_stopped
            if before and stopped:
                log.critical("worker_stuck")
                self._on_stuck()
                return
            if self._is_late():
                self._let_go()
                return
            progress = self._progress
            news = progress is not written
            if news or time.monotonic() - renewed >= self._renew_seconds:
                renewed = time.monotonic()
                with self._writing:
                    if self._ended.is_set():
                        return
                    self._tell(progress if news else None)
                if self.lost:
                    return
                written = progress
            pause = min(REPORT_SECONDS, self._seconds / 6)

    def _let_go(self) -> None:
        """Hand the job back, as it is in its last checkpoint: there is no more time."""
        try:
            self.end(jobs.hand_back)
        except LeaseLost:
            pass
        except OUTAGE as error:
            log.warning("job_left_to_its_lease", error=str(error))
        else:
            log.warning("job_let_go")
        # Whatever the step brings: it is not ours any more.
        self.lost = True

    @property
    def _renew_seconds(self) -> float:
        return min(RENEW_SECONDS, self._seconds / 6)

    def _tell(self, progress: jobs.Progress | None) -> None:
        """Write progress, or only the lease, and hear what is requested."""
        database, held = self._database, self._held
        try:
            if progress:
                self.requested = jobs.report(
                    database, held, progress, lease_seconds=self._seconds
                )
            else:
                self.requested = jobs.renew(database, held, lease_seconds=self._seconds)
        except LeaseLost:
            self.lost = True
        except OUTAGE as error:
            log.warning("progress_not_written", error=str(error))
        except Exception:
            # A defect of ours, but no reason to stop renewing.
            log.exception("progress_not_written")
