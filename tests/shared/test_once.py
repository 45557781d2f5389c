from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import func, select, update

from stylequeue_shared import jobs
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import Conflict, InFlight
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.models import Job, SubmissionKey
from stylequeue_shared.once import Once, forget_keys, once
from tests.shared.outages import Flaky
from tests.shared.submitting import picture


def submit(database: Database, held: Once, digest: str = "a") -> str:
    """Submit as the front end does: the first job again, or a new one."""
    if (first := held.repeats(digest)) is not None:
        return first
    cat = picture("cat")
    jobs.keep_pictures(database, [cat])
    settings = complete_settings({}, styles=1)
    given = (settings, cat.sha256, [cat.sha256])
    return jobs.submit(database, *given, max_waiting=99, repeats=(held, digest))


def count(database: Database, table: type[Job] | type[SubmissionKey]) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def expire(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(SubmissionKey).values(until=now() - 1))


def test_a_key_gives_its_job_again_and_no_other(database: Database) -> None:
    with once(database, "key") as held:
        first = submit(database, held)
    with once(database, "key") as held:
        assert submit(database, held) == first
        with pytest.raises(Conflict, match="24 hours"):
            submit(database, held, "b")
    with once(database, "another") as held:
        assert submit(database, held) != first
    assert count(database, Job) == 2


def test_a_key_is_held_by_one_request_at_a_time(database: Database) -> None:
    with once(database, "key"), pytest.raises(InFlight), once(database, "key"):
        pass
    with once(database, "key"):
        pass


def test_a_request_that_failed_lets_go_of_its_key(database: Database) -> None:
    with pytest.raises(ValueError, match="bad"), once(database, "key"):
        raise ValueError("bad")
    assert count(database, SubmissionKey) == 0


def test_what_failed_is_told_even_if_the_key_cannot_be_let_go(
    database_url: str,
) -> None:
    database = Flaky(database_url)

    def fail() -> None:
        database.down = True
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"), once(database, "key"):
        fail()
    database.down = False
    with pytest.raises(InFlight), once(database, "key"):
        pass
    database.close()


def test_a_request_that_was_killed_holds_its_key_for_a_while_only(
    database: Database,
) -> None:
    killed = once(database, "key")
    held = killed.__enter__()
    expire(database)
    with once(database, "key") as other:
        # It was not dead after all: one of both makes the job.
        with pytest.raises(InFlight):
            submit(database, held)
        first = submit(database, other)
    killed.__exit__(None, None, None)
    with once(database, "key") as held:
        assert submit(database, held) == first
    assert count(database, Job) == 1


def test_the_job_and_its_key_are_recorded_together_or_not_at_all(
    database: Database,
) -> None:
    def crash(held: Once) -> None:
        with database.write() as connection:
            held.record(connection, "a", "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b")
            raise RuntimeError("a crash before the commit")

    with once(database, "key") as held, pytest.raises(RuntimeError):
        crash(held)
    assert count(database, SubmissionKey) == 0


def test_requests_at_the_same_time_make_one_job(database: Database) -> None:
    barrier = Barrier(8)

    def send(number: int) -> str | None:
        barrier.wait()
        try:
            with once(database, "key") as held:
                return submit(database, held)
        except InFlight:
            return None

    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(send, range(8))) - {None}
    assert len(found) == 1
    assert count(database, Job) == 1


def test_a_key_is_forgotten_after_its_day(database: Database) -> None:
    with once(database, "key") as held:
        first = submit(database, held)
    forget_keys(database)
    assert count(database, SubmissionKey) == 1
    expire(database)
    with once(database, "key") as held:
        assert submit(database, held) != first
    expire(database)
    forget_keys(database)
    assert count(database, SubmissionKey) == 0
