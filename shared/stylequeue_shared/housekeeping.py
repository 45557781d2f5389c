"""What keeps the installation in order: a plain loop, without Celery or torch.

One housekeeper is active, by a row in `leases`; others wait to take over.
"""

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import structlog
from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update

from stylequeue_shared import foresight, jobs, logs, reading
from stylequeue_shared.artefacts import original_key, states_prefix
from stylequeue_shared.database import OUTAGE, Database, now, upsert
from stylequeue_shared.migrate import check
from stylequeue_shared.models import Job, JobState, JobStyle, Lease, Picture, Trash
from stylequeue_shared.models import Worker as WorkerRow
from stylequeue_shared.once import forget_keys
from stylequeue_shared.queue import Bell
from stylequeue_shared.registry import FORGOTTEN_SECONDS
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store, open_store

NAME = "housekeeper"
LONGEST_PAUSE = 3.0
UNUSED_SECONDS = 3600.0
# Between two looks for unfinished files.
UNFINISHED_SECONDS = 600.0

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
        self._store = store
        self._bell = bell
        self._settings = settings
        self._clock = clock
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._no_return_before = 0.0
        self._no_tidying_before = 0.0

    @property
    def pause(self) -> float:
        """Seconds between two rounds: a lost lease is seen soon after it ran out."""
        return min(LONGEST_PAUSE, self._settings.lease_seconds / 5)

    def round(self) -> bool:
        """Do every chore once, if this is the active housekeeper; return whether."""
        if not self._chore(self._take_lease):
            return False
        for chore in (
            self._return_lost,
            self._wake_workers,
            self._foretell,
            self._expire,
            self._delete_checkpoints,
            self._empty_trash,
            self._forget_keys,
            self._delete_unused_pictures,
            self._delete_unfinished,
            self._forget_workers,
        ):
            self._chore(chore)
        return True

    def spare_the_lost(self) -> None:
        """Return no lost job for one whole lease, which each holder has to come back.

        The database was away, and with it the workers' renewals.
        """
        self._no_return_before = self._clock() + self._settings.lease_seconds

    def leave(self) -> None:
        """Give the lease up, so that another need not wait for its end."""
        with self._database.write() as connection:
            ours = update(Lease).where(Lease.name == NAME)
            ours = ours.where(Lease.holder == self._holder)
            # Not deleted: the next one is to know since when nobody kept house.
            connection.execute(ours.values(until=now()))

    def _chore(self, chore: Callable[[], object]) -> bool:
        """Do one chore; one that fails does not keep the others from being done."""
        try:
            return chore() is not False
        except Exception as error:
            log.exception("chore_failed", chore=chore.__name__.strip("_"))
            if isinstance(error, OUTAGE):
                self.spare_the_lost()
            return False

    def _take_lease(self) -> bool:
        """Renew the lease, or take it if nobody holds it; return whether it is ours."""
        seconds = max(10.0, 3 * self.pause)
        with self._database.write() as connection:
            ago = select(now() - Lease.until).where(Lease.name == NAME)
            alone = connection.scalar(ago)
            row = upsert(connection, Lease).values(
                name=NAME, holder=self._holder, until=now() + seconds
            )
            taken = connection.execute(
                row.on_conflict_do_update(
                    index_elements=[Lease.name],
                    set_={"holder": self._holder, "until": now() + seconds},
                    where=or_(Lease.holder == self._holder, Lease.until < now()),
                ).returning(Lease.name)
            )
            is_ours = taken.one_or_none() is not None
        if is_ours and alone is not None and alone > self._settings.lease_seconds:
            # Whatever kept all housekeepers away kept the workers, too, maybe.
            self.spare_the_lost()
        return is_ours

    def _return_lost(self) -> None:
        if self._clock() < self._no_return_before:
            return
        for job_id in jobs.return_lost(self._database):
            log.warning("lease_ran_out", job=job_id)

    def _wake_workers(self) -> None:
        """Send the wake-ups that are missing: no more than idle workers could take."""
        if reading.is_paused(self._database):
            return
        with self._database.read() as connection:
            waiting = connection.scalars(
                select(Job.id).where(Job.state == JobState.QUEUED).limit(1000)
            ).all()
            busy = exists().where(
                Job.worker == WorkerRow.name, Job.state == JobState.RUNNING
            )
            idle = connection.scalar(
                select(func.count())
                .select_from(WorkerRow)
                .where(
                    WorkerRow.seen_at > now() - jobs.ALIVE_SECONDS,
                    WorkerRow.refuses.is_(None),
                    WorkerRow.drain.is_(None),
                    ~busy,
                )
            )
        wanted = min(len(waiting), idle or 0)
        if not wanted:
            return
        messages = self._bell.waiting()
        if messages is None:
            return
        for job_id in waiting[: max(0, wanted - messages)]:
            if not self._bell.ring(job_id):
                return  # each try may take seconds; the next round is soon
            log.info("woken_again", job=job_id)

    def _foretell(self) -> None:
        jobs.foretell(self._database, foresight.foretell(self._database))

    def _expire(self) -> None:
        days = self._settings.retention_days
        while number := jobs.expire(self._database, retention_days=days):
            log.info("jobs_expired", number=number)

    def _delete_checkpoints(self) -> None:
        """Delete the states of ended jobs, which are large."""
        for job_id in jobs.ended_with_checkpoint(self._database):
            self._store.delete_prefix(states_prefix(job_id))
            jobs.forget_checkpoint(self._database, job_id)

    def _empty_trash(self) -> None:
        with self._database.read() as connection:
            prefixes = connection.scalars(select(Trash.prefix).limit(100)).all()
        for prefix in prefixes:
            self._store.delete_prefix(prefix)
            self._store.delete_prefix(f"renditions/{prefix}")
            with self._database.write() as connection:
                connection.execute(delete(Trash).where(Trash.prefix == prefix))

    def _forget_keys(self) -> None:
        forget_keys(self._database)

    def _delete_unused_pictures(self) -> None:
        with self._database.read() as connection:
            unused = connection.scalars(
                select(Picture.sha256).where(*_unused()).limit(100)
            ).all()
        for sha256 in unused:
            # The file goes inside the transaction that deletes the row: a submission
            # of the same picture waits for it, and then stores the bytes again.
            with self._database.write() as connection:
                deleted = connection.execute(
                    delete(Picture).where(Picture.sha256 == sha256, *_unused())
                )
                if deleted.rowcount:
                    key = original_key(sha256)
                    self._store.delete_prefix(f"renditions/{key}/")
                    self._store.delete(key)
                    log.info("picture_deleted", picture=sha256)

    def _delete_unfinished(self) -> None:
        """Remove what writers that were killed left half written, now and then.

        To look for it walks through a folder, and is paid for in a bucket.
        """
        if self._clock() < self._no_tidying_before:
            return
        self._store.delete_unfinished(older_than=UNUSED_SECONDS)
        self._no_tidying_before = self._clock() + UNFINISHED_SECONDS

    def _forget_workers(self) -> None:
        """Remove workers that were killed long ago; the others remove themselves."""
        silent = WorkerRow.seen_at < now() - FORGOTTEN_SECONDS
        with self._database.write() as connection:
            connection.execute(delete(WorkerRow).where(silent))


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
        while not stop.is_set():
            housekeeper.round()
            stop.wait(housekeeper.pause)
        housekeeper._chore(housekeeper.leave)
    finally:
        bell.close()
        database.close()
    return 0


def _has_tables(database: Database) -> bool:
    """Whether the database answers. Raises BadConfiguration if its tables are old."""
    try:
        check(database)
    except OUTAGE as error:
        log.warning("database_away", error=str(error))
        return False
    return True


def _unused() -> tuple[ColumnElement[bool], ...]:
    """Pictures that no job refers to, an hour after the last one did."""
    return (
        Picture.used_at < now() - UNUSED_SECONDS,
        ~exists().where(Job.content_sha == Picture.sha256),
        ~exists().where(JobStyle.sha256 == Picture.sha256),
    )
