"""Find files in the store that no row knows, and hand them over for deletion.

A walk through the store takes long, and is paid for in a bucket, so there is one a day,
in parts. It deletes nothing by itself: files of jobs go into the trash, and uploads are
recorded as unused pictures.
"""

import re
from collections.abc import Iterator
from itertools import islice
from uuid import uuid4

import structlog
from sqlalchemy import select, update

from stylequeue_shared import jobs
from stylequeue_shared.database import Database, now, upsert
from stylequeue_shared.errors import NotFound
from stylequeue_shared.housekeeper.chores import Turn
from stylequeue_shared.models import Lease
from stylequeue_shared.store import Store

NAME = "orphan sweep"
EVERY_SECONDS = 86_400.0
KEYS_AT_ONCE = 1000
# The file that says which installation's store this is.
OWNER_KEY = "installation"

OF_JOB = re.compile(r"(?:renditions/)?jobs/([0-9a-f-]{36})/.+")
OF_PICTURE = re.compile(r"(?:renditions/)?pictures/[^/]+/([0-9a-f]{64})(?:/.+)?")

log = structlog.get_logger()


class OrphanSweep:
    """A walk through the store that goes on where its last turn ended."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._keys: Iterator[str] | None = None

    def sweep(self, turn: Turn) -> None:
        """Go on with the walk, or begin one if the last was a day ago."""
        if self._keys is None and not self._begin():
            return
        try:
            while turn.goes_on():
                if not self._take(KEYS_AT_ONCE):
                    self._keys = None
                    self._wait_a_day()
                    return
        except BaseException:
            # The iterator cannot go on after an error.
            self._keys = None
            raise

    def _begin(self) -> bool:
        """Begin a walk if one is due and the store is ours; return whether it did."""
        installation = self._installation_if_due()
        if installation is None:
            return False
        owner = self._owner(installation)
        if owner != installation:
            log.error(
                "store_of_another_installation",
                help="no orphans are looked for; if no other installation uses this "
                f"store, delete the file '{OWNER_KEY}' in it",
            )
            self._wait_a_day()
            return False
        self._keys = self._store.keys()
        return True

    def _take(self, number: int) -> bool:
        """Look at some more keys; return whether there were any."""
        assert self._keys is not None
        keys = list(islice(self._keys, number))
        job_ids = _found(OF_JOB, keys)
        if unknown := jobs.discard_unknown_jobs(self._database, job_ids):
            log.warning("orphans_found", jobs=unknown)
        if adopted := jobs.adopt_pictures(self._database, _found(OF_PICTURE, keys)):
            log.warning("orphans_found", pictures=adopted)
        return bool(keys)

    def _installation_if_due(self) -> str | None:
        """Return this installation's name, None if no walk is due."""
        this = Lease.name == NAME
        with self._database.write() as connection:
            row = upsert(connection, Lease).values(
                name=NAME, holder=uuid4().hex, until=now() + EVERY_SECONDS
            )
            connection.execute(row.on_conflict_do_nothing())
            due = this & ~Lease.until.between(now(), now() + 2 * EVERY_SECONDS)
            return connection.scalar(select(Lease.holder).where(due))

    def _owner(self, installation: str) -> str:
        """Return whose store it is; it is ours if nobody's so far."""
        try:
            return self._store.get(OWNER_KEY).decode(errors="replace").strip()
        except NotFound:
            self._store.put(OWNER_KEY, installation.encode())
            return installation

    def _wait_a_day(self) -> None:
        with self._database.write() as connection:
            this = update(Lease).where(Lease.name == NAME)
            connection.execute(this.values(until=now() + EVERY_SECONDS))


def _found(pattern: re.Pattern[str], keys: list[str]) -> set[str]:
    return {match[1] for key in keys if (match := pattern.fullmatch(key))}
