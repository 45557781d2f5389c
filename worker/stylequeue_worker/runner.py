"""Claims jobs and runs them, one at a time, as long as this machine does well."""

import structlog

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_shared.errors import DeviceFailed, LeaseLost, OutOfMemory
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store
from stylequeue_worker.attempt import Attempt, Painter
from stylequeue_worker.draining import LET_GO_SECONDS, Draining
from stylequeue_worker.faults import Faults
from stylequeue_worker.lease import Lease, end_process
from stylequeue_worker.tally import Tally

# What says that something is wrong with this machine. That a store is away, or that a
# job needs more than there is, says nothing of it.
COUNTED = (DeviceFailed, OutOfMemory)

log = structlog.get_logger()


class Runner:
    """Runs the job whose turn it is, whenever it is told to."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        painter: Painter,
        name: str,
        draining: Draining,
        faults: Faults,
    ) -> None:
        self._lease_seconds = settings.lease_seconds
        self._database = database
        self._store = store
        self._painter = painter
        self._name = name
        self._draining = draining
        self._faults = faults
        # Why it takes no more jobs.
        self.refuses: str | None = None
        # Whether it needs a process of its own again: a GPU's context is broken.
        self.is_broken = False
        self.tally = Tally()
        # Of the children before this one.
        self._refuse_when_faulty()

    def run_next(self) -> bool:
        """Run the job whose turn it is; return whether one waited. Never raises."""
        if self._draining.started or self.refuses is not None:
            return False
        seconds = self._lease_seconds
        try:
            held = jobs.claim(
                self._database,
                self._name,
                lease_seconds=seconds,
                budget=self._painter.budget,
            )
        except Exception:
            # The message is lost with it; the housekeeper sends another.
            log.exception("job_not_claimed")
            return False
        if held is None:
            return False
        names = {"job": held.job_id, "attempt": held.attempt}
        with structlog.contextvars.bound_contextvars(**names):
            log.info("job_claimed", worker=self._name)
            if held.waited is not None:
                self.tally.starts += 1
                self.tally.start_seconds += held.waited
            self._faults.begin(held.job_id)
            self._run(held)
            self._refuse_when_faulty()
        return True

    def _run(self, held: jobs.Claim) -> None:
        attempt: Attempt | None = None
        failed: bool | None = None
        try:
            with Lease(
                *(self._database, held, self._lease_seconds),
                on_stuck=self._end_stuck,
                is_late=self._is_late,
            ) as lease:
                attempt = Attempt(
                    *(held, lease, self._store, self._painter),
                    *(self._draining, self.tally),
                )
                attempt.run()
            if attempt.fault is None:
                failed = False
        except LeaseLost:
            # Another attempt runs it by now, or somebody ended it: not our job.
            log.warning("job_lost")
        except Exception:
            log.exception("job_left_to_its_lease")
        if attempt is not None and isinstance(attempt.fault, COUNTED):
            # Whatever became of the job.
            failed = True
            self.is_broken = isinstance(attempt.fault, DeviceFailed)
        self._faults.end(failed=failed)

    def _is_late(self) -> bool:
        """Whether the job is to be handed back however long its step takes."""
        return self._draining.seconds > LET_GO_SECONDS

    def drain(self, *, hand_back: bool) -> None:
        """Take no more jobs, as an operator said; maybe hand the running one back."""
        if self.refuses is None:
            log.warning("worker_drained", hand_back=hand_back)
        self.refuses = self.refuses or "an operator drained it"
        if hand_back:
            self._draining.start(ends=False)

    def _refuse_when_faulty(self) -> None:
        """Take no more jobs when this machine failed with several in a row."""
        if self._faults.in_a_row >= jobs.MAX_FAULTS:
            self.refuses = f"{self._faults.in_a_row} jobs in a row failed here"
            log.critical("worker_takes_no_more_jobs", reason=self.refuses)

    def _end_stuck(self) -> None:
        self._faults.note_hanging()
        end_process()
