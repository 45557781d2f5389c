"""Claims between whose two statements something else comes: PostgreSQL only.

SQLite lets nobody in between.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
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
