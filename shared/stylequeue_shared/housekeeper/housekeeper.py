"""Keep the installation in order, in a process without Celery and torch.

One housekeeper is active, by a lease in the database; others wait to take over. Its
chores run in three lanes, each a thread of its own, so that a store which takes seconds
for a deletion delays neither lost jobs nor ETAs.
"""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import structlog

from stylequeue_shared import foresight, free_space, jobs, logs, registry
from stylequeue_shared.clock_setback import correct_times
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.housekeeper.chores import Budget, Chore
from stylequeue_shared.housekeeper.cleanup import Cleanup
from stylequeue_shared.housekeeper.lease import LEASE_SECONDS, HousekeeperLease
from stylequeue_shared.housekeeper.orphans import OrphanSweep
from stylequeue_shared.housekeeper.wake import wake_workers
from stylequeue_shared.migrate import check
from stylequeue_shared.once import forget_keys
from stylequeue_shared.owners import forget_owners
from stylequeue_shared.queue import Bell
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store, open_store

LONGEST_PAUSE = 3.0
# How often it looks for what is rare, or takes long to look for.
SELDOM_SECONDS = 600.0
# At the end it waits that long for its threads; a call to the store may take longer.
END_SECONDS = 3.0

log = structlog.get_logger()


class Housekeeper:
    """Does the chores, as long as it holds the lease.

    `clock` gives seconds that only grow; tests pass their own.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        bell: Bell,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._lease_seconds = settings.lease_seconds
        self._clock = clock
        self._lease = HousekeeperLease(database)
        self._active_until = 0.0
        self._stop = threading.Event()
        self._no_return_before = 0.0
        cleanup = Cleanup(database, store, settings.retention_days)
        orphans = OrphanSweep(database, store)
        # Each lane is a thread: nothing in the first may call the store, or take long.
        self._recovery = (
            Chore(
                "correct_times",
                lambda turn: correct_times(
                    database, lease_seconds=settings.lease_seconds
                ),
            ),
            Chore("return_lost", lambda turn: self._return_lost()),
            Chore("wake_workers", lambda turn: wake_workers(database, bell)),
        )
        self._planning = (
            Chore(
                "write_etas",
                lambda turn: jobs.foretell(database, foresight.foretell(database)),
            ),
        )
        self._cleaning = (
            Chore("expire_jobs", cleanup.expire_jobs),
            Chore("discard_checkpoints", cleanup.discard_checkpoints),
            Chore("forget_keys", lambda turn: forget_keys(database)),
            Chore("forget_workers", lambda turn: registry.forget_silent(database)),
            Chore("forget_owners", lambda turn: forget_owners(database)),
            Chore(
                "correct_used_at",
                lambda turn: jobs.correct_used_at(database),
                SELDOM_SECONDS,
            ),
            Chore("empty_trash", cleanup.empty_trash),
            Chore("delete_unused_pictures", cleanup.delete_unused_pictures),
            Chore("delete_unfinished", cleanup.delete_unfinished, SELDOM_SECONDS),
            Chore("sweep_orphans", orphans.sweep, SELDOM_SECONDS),
            Chore(
                "measure_store",
                lambda turn: free_space.measure(database, store, settings),
                free_space.MEASURE_SECONDS,
            ),
        )

    @property
    def pause(self) -> float:
        """Seconds between two looks: a lost lease is seen soon after it ran out."""
        return min(LONGEST_PAUSE, self._lease_seconds / 5)

    def run(self, stop: threading.Event) -> None:
        """Do the chores until told to stop; then give the lease up."""
        self._stop = stop
        threads = [
            threading.Thread(target=self._keep, args=(lane,), daemon=True)
            for lane in (self._planning, self._cleaning)
        ]
        for thread in threads:
            thread.start()
        while not stop.is_set():
            if self._take_lease():
                self._do_all(self._recovery)
            stop.wait(self.pause)
        ends_at = time.monotonic() + END_SECONDS
        for thread in threads:
            thread.join(max(0.0, ends_at - time.monotonic()))
        self._leave()

    def round(self) -> bool:
        """Do every chore once, if this is the active housekeeper; return whether."""
        if not self._take_lease():
            return False
        for lane in (self._recovery, self._planning, self._cleaning):
            self._do_all(lane)
        return True

    def spare_the_lost(self) -> None:
        """Return no lost job for one whole lease, which each holder has to come back.

        The database was away, and with it the workers' renewals.
        """
        self._no_return_before = self._clock() + self._lease_seconds

    def leave(self) -> None:
        """Give the lease up, so that another need not wait for its end."""
        self._active_until = 0.0
        self._lease.leave()

    def _keep(self, lane: Sequence[Chore]) -> None:
        """Do the chores of a lane until told to stop, while we hold the lease."""
        while not self._stop.is_set():
            has_more = self._is_active() and self._do_all(lane)
            self._stop.wait(0.0 if has_more else self.pause)

    def _is_active(self) -> bool:
        return self._clock() < self._active_until

    def _take_lease(self) -> bool:
        """Renew the lease, or take it if nobody holds it; return whether it is ours."""
        asked_at = self._clock()
        try:
            taken = self._lease.take()
        except Exception as error:
            _report("take_lease", error)
            if isinstance(error, OUTAGE):
                self.spare_the_lost()
            return False
        self._active_until = asked_at + LEASE_SECONDS if taken.is_ours else 0.0
        if taken.unattended_seconds > self._lease_seconds:
            # What kept all housekeepers away may have kept the workers away as well.
            # It was not our own work, since no chore delays the renewals.
            self.spare_the_lost()
        return taken.is_ours

    def _do_all(self, lane: Sequence[Chore]) -> bool:
        """Do each chore that is due; return whether one was not done with its work."""
        unfinished = [self._do(chore) for chore in lane]
        return any(unfinished)

    def _do(self, chore: Chore) -> bool:
        """Do a chore if it is due; return whether it was cut short.

        One that fails does not keep the others from being done, not even by an error
        that looks like an outage: a lock that one chore waits for in vain each time
        says nothing of the workers' renewals. A real outage is seen by `_take_lease`,
        which writes several times within a lease.
        """
        if self._clock() < chore.due_at:
            return False
        turn = Budget(self._clock, self._is_active, self._stop).turn()
        try:
            chore.do(turn)
        except Exception as error:
            _report(chore.name, error)
        if not turn.was_cut_short:
            chore.due_at = self._clock() + chore.every
        return turn.was_cut_short

    def _return_lost(self) -> None:
        if self._clock() < self._no_return_before:
            return
        for job_id in jobs.return_lost(self._database):
            log.warning("lease_ran_out", job=job_id)

    def _leave(self) -> None:
        try:
            self.leave()
        except OUTAGE as error:
            log.warning("lease_not_given_up", error=str(error))


def run_housekeeper(settings: Settings) -> int:
    """Do the chores until SIGTERM or SIGINT; return the exit status."""
    logs.configure()
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    database = Database(settings.database_url)
    bell = Bell(settings)
    housekeeper = Housekeeper(database, open_store(settings.store_url), bell, settings)
    try:
        while not stop.is_set() and not _has_tables(database):
            housekeeper.spare_the_lost()
            stop.wait(housekeeper.pause)
        log.info("housekeeper_started", lease_seconds=settings.lease_seconds)
        housekeeper.run(stop)
    finally:
        bell.close()
        database.close()
    return 0


def _report(chore: str, error: Exception) -> None:
    log.error("chore_failed", chore=chore, exc_info=error)


def _has_tables(database: Database) -> bool:
    """Whether the database answers. Raises BadConfiguration if its tables are old."""
    try:
        check(database)
    except OUTAGE as error:
        log.warning("database_away", error=str(error))
        return False
    return True
