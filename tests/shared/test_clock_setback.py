"""With the clock hours ahead all was killed; then the clock was corrected."""

import pytest
from sqlalchemy import select, update

from stylequeue_shared import jobs, registry
from stylequeue_shared.clock_setback import correct_times
from stylequeue_shared.database import Database, now
from stylequeue_shared.models import Job, JobState, Owner, SubmissionKey, Worker
from stylequeue_shared.once import HELD_SECONDS, KEPT_SECONDS
from tests.shared.jobs.given import change, time
from tests.shared.submitting import claim, row, submit

HOURS = 3 * 3600.0
LEASE = 30.0


def ahead(database: Database, table: type, **names: float) -> None:
    """Set times of all rows to so many seconds from now."""
    with database.write() as connection:
        values = {name: now() + seconds for name, seconds in names.items()}
        connection.execute(update(table).values(**values))


def seconds_ahead(database: Database, column: object) -> float:
    with database.read() as connection:
        return connection.scalar(select(column - now())) or 0.0  # type: ignore[operator]


def let_time_pass(database: Database, seconds: float) -> None:
    with database.write() as connection:
        connection.execute(update(Job).values(lease_until=Job.lease_until - seconds))


def test_a_job_of_a_killed_worker_is_returned_within_one_lease(
    database: Database,
) -> None:
    job_id = submit(database)
    claim(database)
    change(database, job_id, lease_until=time(database) + HOURS + LEASE)
    correct_times(database, lease_seconds=LEASE)
    assert jobs.return_lost(database) == []
    let_time_pass(database, LEASE + 1)
    assert jobs.return_lost(database) == [job_id]
    assert row(database, job_id).state == JobState.QUEUED


def test_a_worker_that_lives_keeps_its_job(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    change(database, job_id, lease_until=time(database) + HOURS + LEASE)
    correct_times(database, lease_seconds=LEASE)
    jobs.renew(database, held, lease_seconds=LEASE)
    assert jobs.return_lost(database) == []
    assert row(database, job_id).worker == "w1"


def test_times_that_can_have_been_set_are_left_alone(database: Database) -> None:
    job_id = submit(database)
    claim(database, lease_seconds=LEASE)
    registry.beat(database, registry.Identity("w1", "here", "CPU", None))
    before = row(database, job_id)
    correct_times(database, lease_seconds=LEASE)
    assert row(database, job_id) == before


def test_a_worker_killed_while_the_clock_was_ahead_is_not_seen_for_hours(
    database: Database,
) -> None:
    registry.beat(database, registry.Identity("w1", "here", "CPU", None))
    ahead(database, Worker, seen_at=HOURS)
    correct_times(database, lease_seconds=LEASE)
    assert seconds_ahead(database, Worker.seen_at) == pytest.approx(0, abs=5)


def test_a_running_job_is_charged_from_now_when_its_claim_lies_ahead(
    database: Database,
) -> None:
    submit(database)
    claim(database)
    ahead(database, Job, claimed_at=HOURS)
    correct_times(database, lease_seconds=LEASE)
    assert seconds_ahead(database, Job.claimed_at) == pytest.approx(0, abs=5)


def test_what_an_owner_had_fades_from_now_on(database: Database) -> None:
    with database.write() as connection:
        insert = Owner.__table__.insert()
        values = {"used_seconds": 1.0, "total_seconds": 1.0, "used_at": now() + HOURS}
        connection.execute(insert.values(name="ann", **values))
    correct_times(database, lease_seconds=LEASE)
    assert seconds_ahead(database, Owner.used_at) == pytest.approx(0, abs=5)


@pytest.mark.parametrize(
    ("job_id", "at_most"), [(None, HELD_SECONDS), ("1", KEPT_SECONDS)]
)
def test_a_key_is_not_kept_for_longer_than_one_set_now(
    database: Database, job_id: str | None, at_most: float
) -> None:
    with database.write() as connection:
        insert = SubmissionKey.__table__.insert()
        values = {"key": "k", "holder": "h", "job_id": job_id}
        connection.execute(insert.values(until=now() + KEPT_SECONDS + HOURS, **values))
    correct_times(database, lease_seconds=LEASE)
    ahead_by = seconds_ahead(database, SubmissionKey.until)
    assert ahead_by == pytest.approx(at_most, abs=5)
