"""Claims between whose two statements something else comes: PostgreSQL only.

SQLite lets nobody in between.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from stylequeue_shared import jobs, postgresql_engine
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.jobs import Request
from tests.shared.submitting import row, submit


@pytest.fixture
def database(postgresql_url: str) -> Iterator[Database]:
    opened = Database(postgresql_url)
    yield opened
    opened.close()


@pytest.fixture
def others(postgresql_url: str) -> Iterator[Database]:
    """The same database, as another process sees it."""
    opened = Database(postgresql_url)
    yield opened
    opened.close()


@contextmanager
def between(database: Database, call: Callable[[], object]) -> Iterator[None]:
    """Call that once a job is chosen, and before it is taken."""
    waiting = [call]

    def before(connection: Any, cursor: Any, statement: str, *more: object) -> None:
        if statement.startswith("UPDATE jobs") and waiting:
            waiting.pop()()

    event.listen(database.engine, "before_cursor_execute", before)
    yield
    event.remove(database.engine, "before_cursor_execute", before)
    assert not waiting


@pytest.mark.parametrize("what", ["cancel", "pause"])
def test_a_job_that_is_stopped_while_it_is_claimed_is_not_run(
    database: Database, others: Database, what: Request
) -> None:
    stopped, next_one = submit(database), submit(database)
    with between(database, lambda: jobs.request(others, stopped, what)):
        held = jobs.claim(database, "w", lease_seconds=30)
    assert held is not None
    assert held.job_id == next_one
    assert row(database, stopped).state == {"cancel": "cancelled"}.get(what, "paused")


def test_a_process_that_is_stopped_in_the_middle_of_a_claim_stops_no_other_for_long(
    postgresql_url: str, others: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"idle_in_transaction_session_timeout": 2, "lock_timeout": 1}
    monkeypatch.setattr(postgresql_engine, "IDLE_SECONDS", limits)
    stopped = Database(postgresql_url)
    job_id, next_one = submit(others), submit(others)

    def sleep() -> None:
        # It waits no longer for the lock than the server lets it.
        with pytest.raises(OUTAGE):
            jobs.claim(impatient, "another", lease_seconds=30)
        time.sleep(2)

    impatient = Database(postgresql_url)
    with pytest.raises(OUTAGE), between(stopped, sleep):
        jobs.claim(stopped, "stopped", lease_seconds=30)
    held = [jobs.claim(others, "another", lease_seconds=30) for _ in range(2)]
    assert [one and one.job_id for one in held] == [job_id, next_one]
    for one in (stopped, impatient):
        one.close()


def test_a_claim_waits_for_another_to_know_whose_turn_it_is(
    database: Database, others: Database
) -> None:
    first = [submit(database, owner="ann") for _ in range(3)]
    for _ in range(2):
        # Both have had something: who has had more changes with each claim.
        assert jobs.claim(database, "w", lease_seconds=30) is not None
    bobs = submit(database, owner="bob")
    taken: list[str] = []

    def take() -> None:
        held = jobs.claim(others, "another", lease_seconds=30)
        assert held is not None
        taken.append(held.job_id)

    second = threading.Thread(target=take)

    def meanwhile() -> None:
        second.start()
        second.join(1)
        assert second.is_alive()

    with between(database, meanwhile):
        held = jobs.claim(database, "w", lease_seconds=30)
    second.join()
    assert held is not None
    assert (held.job_id, taken) == (bobs, [first[2]])
