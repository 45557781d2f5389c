"""Faults of servers that answer but do not serve, for `bench.chaos` and tests."""

import os
from collections.abc import Mapping
from pathlib import Path

import redis
from sqlalchemy import text

from stylequeue_shared.database import Database

# How far ahead the clock was that is corrected.
CLOCK_AHEAD_SECONDS = 3 * 3600.0
# Every column that holds a moment at which something ends or was seen last.
MOMENTS = (
    *(("jobs", "lease_until"), ("jobs", "claimed_at"), ("workers", "seen_at")),
    *(("leases", "until"), ("owners", "used_at"), ("submission_keys", "until")),
)
# A store on a slow disk or network: how long each file takes to be written or deleted.
SLOW_SECONDS = 0.3
# Python imports a module of this name at its start, from any folder of PYTHONPATH.
SLOW_FILES = """
import os, time

FLAG = os.environ["SLOW_STORE_FLAG"]
STORE = os.environ["SLOW_STORE"]

def slowed(call):
    def slow(path, *others, **options):
        name = os.path.abspath(os.fsdecode(path))
        if name.startswith(STORE) and os.path.exists(FLAG):
            time.sleep(%r)
        return call(path, *others, **options)
    return slow

for name in ("replace", "rename", "unlink", "remove"):
    setattr(os, name, slowed(getattr(os, name)))
"""


class SlowStore:
    """A folder of pictures whose files take long, while it is told to be slow."""

    def __init__(self, folder: Path, store: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SLOW_FILES % SLOW_SECONDS)
        self._folder, self._store = folder, store
        self._flag = folder / "slow"

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables that slow down the store of a process."""
        paths = (str(self._folder), os.environ.get("PYTHONPATH"))
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "SLOW_STORE_FLAG": str(self._flag),
            "SLOW_STORE": str(self._store),
        }

    def slow_down(self) -> None:
        """Let each file take long from now on."""
        self._flag.touch()

    def speed_up(self) -> None:
        """Let files be as quick as they are."""
        self._flag.unlink(missing_ok=True)


def answer_with_errors(address: str) -> None:
    """Have Redis refuse writes with an error (READONLY), as a replica does."""
    with _client(address) as client:
        # Nothing listens there: its data stays what it is.
        client.execute_command("REPLICAOF", "127.0.0.1", "1")


def answer_again(address: str) -> None:
    """Have Redis take writes again."""
    with _client(address) as client:
        client.execute_command("REPLICAOF", "NO", "ONE")


def make_sessions_read_only(database: Database) -> None:
    """End all sessions, and have those that begin now refuse to write.

    A failover leaves such sessions behind. Raises OUTAGE.
    """
    with database.autocommit() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(
            text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        )
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = :name AND pid <> pg_backend_pid()"
            ),
            {"name": name},
        )


def let_new_sessions_write(database: Database) -> None:
    """Have sessions that begin now write again; those that are open still refuse."""
    with database.autocommit() as connection:
        # The session that says so may itself be one of those.
        connection.execute(text("SET default_transaction_read_only = off"))
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(
            text(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        )


def leave_times_of_a_clock_ahead(database: Database) -> None:
    """Write what the database's clock would have written when it was hours ahead.

    The clock itself is right: it was corrected. Raises OUTAGE.
    """
    with database.write() as connection:
        for table, column in MOMENTS:
            connection.execute(
                text(f"UPDATE {table} SET {column} = {column} + :ahead"),
                {"ahead": CLOCK_AHEAD_SECONDS},
            )


def _client(address: str) -> redis.Redis:
    return redis.Redis.from_url(address.replace("redis+socket:", "unix:"))
