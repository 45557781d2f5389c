"""What survives a power cut on SQLite: which statements are flushed to the disk."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from stylequeue_shared import free_space, jobs, registry
from stylequeue_shared.database import Database
from stylequeue_shared.housekeeper.lease import HousekeeperLease
from stylequeue_shared.jobs import Claim, Progress, Result
from stylequeue_shared.settings import Settings
from tests.shared.submitting import claim, submit

NORMAL, FULL = 1, 2
PROGRESS = Progress(5, 0.1, 0.1, 1.0, 1.0)
IDENTITY = registry.Identity("w1", "castle", "cpu", None)

Act = Callable[[Database, str, Claim], object]

PROMISED: dict[str, Act] = {
    "submit": lambda database, *_: submit(database),
    "pause": lambda database, job, _: jobs.request(database, job, "pause"),
    "cancel": lambda database, job, _: jobs.request(database, job, "cancel"),
    "checkpoint": lambda database, _, held: jobs.save_checkpoint(
        database, held, "jobs/a", 5
    ),
    "end": lambda database, _, held: jobs.succeed(
        database, held, PROGRESS, Result("jobs/a.png", 8, 8)
    ),
    "hand back": lambda database, _, held: jobs.hand_back(database, held),
}
PROGRESSED: dict[str, Act] = {
    "report": lambda database, _, held: jobs.report(
        database, held, PROGRESS, lease_seconds=30
    ),
    "renew": lambda database, _, held: jobs.renew(database, held, lease_seconds=30),
    "heartbeat": lambda database, *_: registry.beat(database, IDENTITY),
    "check": lambda database, *_: database.check(),
    "housekeeper's lease": lambda database, *_: HousekeeperLease(database).take(),
    "ETAs": lambda database, _, held: jobs.foretell(
        database, [jobs.Expected(held.job_id, None, 1e9)]
    ),
    "store's size": lambda database, *_: free_space.add_used(
        database, Settings(store_quota_mb=1000), 1
    ),
}


@pytest.fixture
def on_sqlite(sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "stylequeue.db"
    shutil.copy(sqlite, path)
    database = Database(f"sqlite:///{path}", connections=1)
    yield database
    database.close()


def synchronous_of_writes(database: Database, act: Callable[[], object]) -> set[int]:
    """Return the values of PRAGMA synchronous with which rows were written."""
    found = set()

    def note(connection: Any, cursor: Any, statement: str, *others: object) -> None:
        if statement.split()[0] in ("INSERT", "UPDATE", "DELETE"):
            (value,) = cursor.connection.execute("PRAGMA synchronous").fetchone()
            found.add(value)

    event.listen(database.engine, "before_cursor_execute", note)
    act()
    event.remove(database.engine, "before_cursor_execute", note)
    return found


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        *((act, FULL) for act in PROMISED.values()),
        *((act, NORMAL) for act in PROGRESSED.values()),
    ],
    ids=[*PROMISED, *PROGRESSED],
)
@pytest.mark.parametrize("before", [FULL, NORMAL])
def test_what_was_promised_is_flushed_and_progress_is_not(
    on_sqlite: Database, act: Act, expected: int, before: int
) -> None:
    job = submit(on_sqlite)
    held = claim(on_sqlite)
    # Whatever the one connection was used for last.
    if before == NORMAL:
        registry.beat(on_sqlite, IDENTITY)
    found = synchronous_of_writes(on_sqlite, lambda: act(on_sqlite, job, held))
    assert found == {expected}
