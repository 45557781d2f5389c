"""Delete what nobody needs any more: jobs, files in the store, pictures.

No transaction is open during a call to the store, which may take a minute. What cannot
be deleted is tried again later, after everything else.
"""

from uuid import uuid4

import structlog

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.housekeeper.chores import Turn
from stylequeue_shared.store import Store

# Files that a writer left half written are deleted when they are that old.
UNFINISHED_SECONDS = 3600.0

log = structlog.get_logger()


class Cleanup:
    """The chores that delete things; each is a method that takes its turn."""

    def __init__(self, database: Database, store: Store, retention_days: float) -> None:
        self._database = database
        self._store = store
        self._days = retention_days

    def expire_jobs(self, turn: Turn) -> None:
        """Delete jobs that ended long ago, and end those that are paused for long."""
        while turn.goes_on() and (
            paused := jobs.expire_paused(self._database, retention_days=self._days)
        ):
            log.info("paused_jobs_cancelled", jobs=paused)
        while turn.goes_on() and (
            number := jobs.expire(self._database, retention_days=self._days)
        ):
            log.info("jobs_expired", number=number)

    def discard_checkpoints(self, turn: Turn) -> None:
        """Put the checkpoints of ended jobs into the trash."""
        while turn.goes_on() and jobs.discard_checkpoints(self._database):
            pass

    def empty_trash(self, turn: Turn) -> None:
        """Delete the files of all prefixes in the trash that are due."""
        while turn.goes_on() and (due := jobs.trash_to_empty(self._database)):
            for emptying in turn.each(due):
                self._empty(emptying)

    def delete_unused_pictures(self, turn: Turn) -> None:
        """Delete pictures that no job uses; see `jobs.pictures` for the steps."""
        while turn.goes_on() and (unused := jobs.unused_pictures(self._database)):
            for sha256 in turn.each(unused):
                self._delete_picture(sha256)

    def delete_unfinished(self, turn: Turn) -> None:
        """Delete what writers that were killed left half written."""
        number = self._store.delete_unfinished(older_than=UNFINISHED_SECONDS)
        if number:
            log.info("unfinished_files_deleted", number=number)

    def _empty(self, emptying: jobs.Emptying) -> None:
        prefix = emptying.prefix
        try:
            self._store.delete_prefix(prefix)
            self._store.delete_prefix(f"renditions/{prefix}")
            jobs.record_emptied(self._database, emptying)
        except OUTAGE:
            raise
        except Exception:
            log.warning("files_not_deleted", prefix=prefix, exc_info=True)
            jobs.record_failure(self._database, prefix)

    def _delete_picture(self, sha256: str) -> None:
        this = uuid4().hex
        key = original_key(sha256)
        if not jobs.mark_for_deletion(self._database, sha256, this):
            return
        try:
            self._store.delete_prefix(f"renditions/{key}/")
            # Marked again, so that the mark outlasts the call that matters.
            if not jobs.mark_for_deletion(self._database, sha256, this):
                return
            self._store.delete(key)
            if jobs.finish_deletion(self._database, sha256, this):
                log.info("picture_deleted", picture=sha256)
        except OUTAGE:
            raise
        except Exception:
            # The mark runs out; until then the store may still do what failed here.
            log.warning("picture_not_deleted", picture=sha256, exc_info=True)
