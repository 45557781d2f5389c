import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_web.positions import REFRESH_SECONDS, Positions
from tests.shared.submitting import claim, submit
from tests.web.conftest import Clock


class Queries:
    """Counts the queries of a database."""

    def __init__(self, database: Database) -> None:
        self._count = 0
        event.listen(database.engine, "before_cursor_execute", self._note)

    def _note(self, *arguments: Any) -> None:
        self._count += arguments[2].startswith("SELECT")

    def new(self) -> int:
        """Return how many there were since this was asked last."""
        count, self._count = self._count, 0
        return count


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def positions(database: Database, clock: Clock) -> Positions:
    return Positions(database, clock)


@pytest.fixture
def queries(database: Database) -> Queries:
    return Queries(database)


def test_jobs_stand_in_the_order_they_came(
    database: Database, positions: Positions
) -> None:
    ids = [submit(database) for _ in range(3)]
    assert [positions.of(job_id) for job_id in ids] == [1, 2, 3]


def test_those_behind_move_up_within_a_moment(
    database: Database, positions: Positions, clock: Clock
) -> None:
    ids = [submit(database) for _ in range(3)]
    assert positions.of(ids[2]) == 3
    assert claim(database).job_id == ids[0]
    jobs.request(database, ids[1], "cancel")
    clock.now += REFRESH_SECONDS + 0.01
    assert [positions.of(job_id) for job_id in ids] == [None, None, 1]


def test_many_polls_cost_one_query_a_moment(
    database: Database, positions: Positions, clock: Clock, queries: Queries
) -> None:
    ids = [submit(database) for _ in range(3)]
    positions.of(ids[2])
    queries.new()
    for _ in range(1000):
        clock.now += REFRESH_SECONDS / 1001
        for job_id in ids:
            positions.of(job_id)
    assert queries.new() == 0
    clock.now += REFRESH_SECONDS
    for job_id in ids * 1000:
        positions.of(job_id)
    assert queries.new() == 1


def test_a_new_job_is_worth_one_query_and_no_waiting(
    database: Database, positions: Positions, queries: Queries
) -> None:
    first = submit(database)
    assert positions.of(first) == 1
    second = submit(database)
    queries.new()
    assert [positions.of(second) for _ in range(1000)] == [2] * 1000
    assert queries.new() == 1


def test_a_job_that_does_not_wait_has_none(
    database: Database, positions: Positions
) -> None:
    job_id = submit(database)
    claim(database)
    assert positions.of(job_id) is None
    assert positions.of("none at all") is None


def test_threads_that_come_at_once_share_one_query(
    database: Database, queries: Queries
) -> None:
    job_id, threads = submit(database), 8
    all_asked = threading.Barrier(threads + 1)
    asked = threading.local()

    def clock() -> float:
        # Each thread has found that the time is over before any may read.
        if not hasattr(asked, "once"):
            asked.once = True
            all_asked.wait(timeout=30)
        return 1000.0

    positions = Positions(database, clock)
    queries.new()
    with ThreadPoolExecutor(threads) as pool:
        found = [pool.submit(positions.of, job_id) for _ in range(threads)]
        all_asked.wait(timeout=30)
    assert [one.result() for one in found] == [1] * threads
    assert queries.new() == 1


def test_while_one_thread_reads_the_others_answer_from_what_there_is(
    database: Database, positions: Positions, clock: Clock
) -> None:
    job_id = submit(database)
    positions.of(job_id)
    clock.now += REFRESH_SECONDS + 0.01
    reading, finish = threading.Event(), threading.Event()

    def hold(*arguments: Any) -> None:
        reading.set()
        assert finish.wait(timeout=30)

    event.listen(database.engine, "before_cursor_execute", hold)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(positions.of, job_id)
        assert reading.wait(timeout=30)
        assert positions.of(job_id) == 1
        assert not slow.done()
        finish.set()
        assert slow.result(timeout=30) == 1


def test_a_query_that_fails_holds_up_nobody_later(
    database: Database, positions: Positions
) -> None:
    job_id = submit(database)

    def fail(*arguments: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("away"))

    event.listen(database.engine, "before_cursor_execute", fail)
    with pytest.raises(OperationalError):
        positions.of(job_id)
    event.remove(database.engine, "before_cursor_execute", fail)
    assert positions.of(job_id) == 1
