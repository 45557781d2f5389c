"""Readiness: whether this process can write where jobs and pictures are kept."""

import errno
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial

import structlog

from stylequeue_shared import free_space
from stylequeue_shared.database import OUTAGE
from stylequeue_shared.errors import DiskFull
from stylequeue_web.services import Services

# A result is given again for this long, so that asking cannot load the store.
KEPT_SECONDS = 3.0
# A check that takes longer has failed. It goes on in its thread, and is not started
# again before it ends.
CHECK_SECONDS = 3.0
OK, DEGRADED = "ok", "degraded"

Check = Callable[[], object]

log = structlog.get_logger()


class Readiness:
    """Runs all checks at once, one time for all who ask meanwhile."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self._running: dict[str, Future[str]] = {}
        self._asking = threading.Lock()
        self._found: dict[str, str] = {}
        self._found_at = float("-inf")

    def found(self) -> dict[str, str]:
        """Return what each check found a moment ago, by its name: `ok`, or what not."""
        # Only the very first result is waited for by others than the one who asks.
        if self._asking.acquire(blocking=not self._found):
            try:
                if time.monotonic() - self._found_at >= KEPT_SECONDS:
                    self._found = self._ask()
                    self._found_at = time.monotonic()
            finally:
                self._asking.release()
        return self._found

    def _ask(self) -> dict[str, str]:
        for name, check in self._checks.items():
            if name not in self._running:
                self._running[name] = _start(name, check)
        done, _ = wait(self._running.values(), CHECK_SECONDS)
        found = {}
        for name in self._checks:
            if self._running[name] in done:
                found[name] = self._running.pop(name).result()
            else:
                log.warning("not_ready", part=name, error="no answer")
                found[name] = "does not answer"
        return found


def make_readiness(services: Services) -> Readiness:
    """Check everything that submitting a job writes to, and Redis."""
    return Readiness(
        {
            "database": services.database.check,
            "store": partial(_check_store, services),
            "temporary_folder": _check_temporary_folder,
            "redis": services.bell.check,
        }
    )


def _check_store(services: Services) -> None:
    """See that the store can be written to, and has the room that a job needs."""
    services.store.check()
    quota = services.settings.store_quota_bytes
    # The size of a bucket is in the database, which has a check of its own.
    with suppress(*OUTAGE):
        free_space.check(services.database, services.store, quota)


def _check_temporary_folder() -> None:
    with tempfile.TemporaryFile(prefix="stylequeue-") as file:
        file.write(b"a" * 10_000)
        file.flush()


def _start(name: str, check: Check) -> "Future[str]":
    future: Future[str] = Future()
    run = lambda: future.set_result(_result(name, check))  # noqa: E731
    # A daemon, since a check that hangs must not keep the process from ending.
    threading.Thread(target=run, name=f"check-{name}", daemon=True).start()
    return future


def _result(name: str, check: Check) -> str:
    """Run a check and return what it found; the reason is for the log alone."""
    try:
        check()
    except Exception as error:
        log.warning("not_ready", part=name, error=str(error))
        if name == "redis":
            return DEGRADED
        full = isinstance(error, DiskFull) or (
            isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        )
        return "full" if full else "cannot be written to"
    return OK
