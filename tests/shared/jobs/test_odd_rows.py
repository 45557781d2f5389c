"""No row, whatever it holds, stops claims, positions, ETAs and accounting."""

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as any_of
from sqlalchemy import delete, select, text, update

from stylequeue_shared import foresight, jobs, reading, registry
from stylequeue_shared.database import Database
from stylequeue_shared.models import (
    SKIPPED_ROWS,
    TERMINAL,
    Job,
    JobState,
    Owner,
    Worker,
)
from tests.shared.jobs.given import MADE, change, time
from tests.shared.submitting import HALF_WAY, claim, row, run_out, submit

ODD = [1e300, -1e300, 1.7e308, -1.7e308, math.inf, -math.inf, 0.0, -1.0, 5e-324]
# Of a clock that was wrong by days, years, and of no clock at all.
NUMBERS = any_of.one_of(
    any_of.sampled_from(ODD),
    any_of.floats(-1e8, 1e8).map(lambda seconds: 1.8e9 + seconds),
    any_of.floats(allow_nan=False),
)
OR_NULL = any_of.one_of(any_of.none(), NUMBERS)
WHOLE = any_of.integers(-(2**31), 2**31 - 1)
ANYTHING = any_of.recursive(
    any_of.none()
    | any_of.booleans()
    | any_of.integers()
    | any_of.text("a1", max_size=3),
    lambda inner: any_of.lists(inner, max_size=2),
    max_leaves=3,
)
ESTIMATES = any_of.one_of(
    ANYTHING,
    any_of.fixed_dictionaries({"seconds": ANYTHING | NUMBERS.filter(math.isfinite)}),
)
FEW = settings(
    max_examples=15,
    deadline=None,
    # Each example deletes what the one before left in the database.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WAITING = any_of.fixed_dictionaries(
    {
        "created_at": NUMBERS,
        "turn": NUMBERS,
        "eta_start": OR_NULL,
        "eta_finish": OR_NULL,
        "started_at": OR_NULL,
        "estimate": ESTIMATES,
        "checkpoint_step": any_of.none() | WHOLE,
        "version": WHOLE,
        "attempt": WHOLE,
        "least_bytes": any_of.none() | any_of.integers(-(2**63), 2**63 - 1),
    }
)
RUNNING = any_of.fixed_dictionaries(
    {
        "claimed_at": OR_NULL,
        "eta_finish": OR_NULL,
        "eta_seconds": OR_NULL,
        "estimate": ESTIMATES,
        "losses": WHOLE,
        "step": any_of.none() | WHOLE,
    }
)
OWNERS = any_of.fixed_dictionaries(
    {"used_seconds": NUMBERS, "used_at": NUMBERS, "total_seconds": NUMBERS}
)
WORKERS = any_of.fixed_dictionaries(
    {"pace": OR_NULL, "seen_at": NUMBERS, "budget_bytes": any_of.none() | WHOLE}
)


def clear(database: Database) -> None:
    with database.write() as connection:
        for table in (Job, Owner, Worker):
            connection.execute(delete(table))


def write_owner(database: Database, name: str, **values: float) -> None:
    given = {"used_seconds": 1.0, "used_at": 0.0, "total_seconds": 1.0, **values}
    with database.write() as connection:
        connection.execute(Owner.__table__.insert().values(name=name, **given))


def owner(database: Database, name: str) -> tuple[float, float]:
    with database.read() as connection:
        wanted = select(Owner.used_seconds, Owner.total_seconds)
        used, total = connection.execute(wanted.where(Owner.name == name)).one()
    return used, total


def claim_all(database: Database) -> list[str]:
    found = []
    while held := jobs.claim(database, "w2", lease_seconds=30):
        found.append(held.job_id)
    return found


def skipped(database: Database) -> float:
    return reading.counter(database, SKIPPED_ROWS)


@given(waiting=WAITING, running=RUNNING, an_owner=OWNERS, worker=WORKERS)
@FEW
def test_whatever_rows_hold_other_jobs_are_foretold_and_claimed_and_charged(
    database: Database, waiting: Any, running: Any, an_owner: Any, worker: Any
) -> None:
    clear(database)
    first = submit(database, owner="odd")
    claim(database, "w1")
    odd, good = submit(database, owner="odd"), submit(database, owner="bob")
    registry.beat(database, registry.Identity("w1", "here", "CPU", None))
    registry.beat(database, registry.Identity("w2", "here", "CPU", None))
    write_owner(database, "odd", **an_owner)
    change(database, odd, **waiting)
    change(database, first, **running)
    with database.write() as connection:
        here = update(Worker).where(Worker.name == "w1")
        connection.execute(here.values(**worker))

    assert good in [one.id for one in reading.queue(database)]
    jobs.foretell(database, foresight.foretell(database))
    assert row(database, good).eta_finish < time(database) + 1e11
    assert good in claim_all(database)
    run_out(database, first)
    assert jobs.return_lost(database) == [first]
    returned = row(database, first)
    assert returned.state in (JobState.QUEUED, JobState.FAILED)
    # A job that cannot be computed is failed, and its owner not charged for it.
    if returned.error_code != "internal":
        used, total = owner(database, "odd")
        assert 0 <= used < 1e10
        assert 0 <= total < 1e16
    assert claim_all(database) in ([], [first])


@pytest.mark.parametrize("days", [32, 45, 4000, -44, -4000])
def test_an_owner_idle_for_any_time_stops_no_claim(
    database: Database, days: float
) -> None:
    write_owner(database, "ann", used_at=time(database) - days * 86_400)
    job_id = submit(database, owner="ann")
    assert [one.id for one in reading.queue(database)] == [job_id]
    held = claim(database)
    assert held.job_id == job_id
    jobs.succeed(database, held, HALF_WAY, MADE)


@pytest.mark.parametrize("used", [5e-324, 1e-300, 1e-7])
def test_an_owner_who_had_next_to_nothing_stops_no_claim(
    database: Database, used: float
) -> None:
    # Found by the test above: PostgreSQL raises when a product underflows.
    write_owner(database, "ann", used_seconds=used)
    job_id = submit(database, owner="ann")
    assert claim(database).job_id == job_id


def test_a_use_that_lies_ahead_counts_as_one_of_now(database: Database) -> None:
    write_owner(database, "ann", used_at=time(database) + 10_800, used_seconds=100.0)
    write_owner(database, "bob", used_at=time(database), used_seconds=200.0)
    submit(database, owner="bob")
    ann = submit(database, owner="ann")
    assert claim(database).job_id == ann


def test_a_use_of_long_ago_counts_for_nothing(database: Database) -> None:
    write_owner(database, "ann", used_at=1.0, used_seconds=1e8)
    write_owner(database, "bob", used_at=time(database), used_seconds=0.01)
    submit(database, owner="bob")
    ann = submit(database, owner="ann")
    assert claim(database).job_id == ann


def test_a_claim_that_lies_ahead_is_charged_as_nothing(database: Database) -> None:
    job_id = submit(database, owner="ann")
    held = claim(database)
    change(database, job_id, claimed_at=time(database) + 10_800)
    jobs.succeed(database, held, HALF_WAY, MADE)
    assert owner(database, "ann") == (0.0, 0.0)


def test_a_job_that_is_to_end_in_a_far_future_is_charged_for_115_days(
    database: Database,
) -> None:
    job_id = submit(database, owner="ann")
    claim(database)
    change(database, job_id, eta_finish=1e300)
    write_owner(database, "bob", used_at=time(database), used_seconds=1.1e7)
    submit(database, owner="bob")
    ann = submit(database, owner="ann")
    assert claim(database).job_id == ann


def test_a_version_that_cannot_grow_begins_again(database: Database) -> None:
    job_id = submit(database)
    for asked in ("pause", "resume", "cancel"):
        change(database, job_id, version=2**31 - 1)
        if asked == "resume":
            jobs.resume(database, job_id, max_waiting=10)
        else:
            jobs.request(database, job_id, asked)
        assert row(database, job_id).version == 1
    assert row(database, job_id).state == JobState.CANCELLED


def test_a_job_whose_attempt_cannot_grow_fails_and_the_next_is_taken(
    database: Database,
) -> None:
    odd, good = submit(database), submit(database)
    change(database, odd, attempt=2**31 - 1)
    if database.engine.dialect.name == "postgresql":
        assert claim(database).job_id == good
        found = row(database, odd)
        assert (found.state, found.error_code) == (JobState.FAILED, "internal")
        assert skipped(database) == 1
    else:
        # Its integers are larger.
        assert claim(database).job_id == odd


@pytest.mark.parametrize(
    ("column", "stored"),
    [
        ("settings", "[1]"),
        ("settings", '{"steps": "many"}'),
        ("made_with", "5"),
        ("made_with", '"text"'),
    ],
)
def test_a_job_with_json_of_another_kind_fails_and_the_next_is_taken(
    database: Database, column: str, stored: str
) -> None:
    odd, good = submit(database), submit(database)
    write_json(database, odd, column, stored)
    assert claim(database).job_id == good
    found = row(database, odd)
    assert (found.state, found.error_fault) == (JobState.FAILED, "ours")
    assert skipped(database) == 1


@pytest.mark.parametrize("column", ["settings", "made_with"])
def test_a_job_with_broken_json_fails_and_the_next_is_taken(
    database: Database, column: str
) -> None:
    odd, good = submit(database), submit(database)
    # PostgreSQL stores JSON only; nested so deep it cannot be read either.
    sqlite = database.engine.dialect.name == "sqlite"
    write_json(
        database, odd, column, '{"steps":' if sqlite else "[" * 3000 + "]" * 3000
    )
    assert [one.id for one in reading.queue(database)] == [odd, good]
    assert claim(database).job_id == good
    assert row(database, odd).state == JobState.FAILED


@pytest.mark.parametrize("stored", ["[1]", '{"seconds": "long"}', '{"seconds": 1e999}'])
def test_a_job_with_an_odd_estimate_is_run_as_one_without(
    database: Database, stored: str
) -> None:
    job_id = submit(database)
    write_json(database, job_id, "estimate", stored)
    held = claim(database)
    assert (held.job_id, held.estimate) == (job_id, None)


def test_a_lost_job_that_cannot_be_computed_stops_no_other(
    database: Database,
) -> None:
    odd, good = submit(database), submit(database)
    claim(database), claim(database)
    run_out(database, odd), run_out(database, good)
    change(database, odd, losses=2**31 - 1)
    assert sorted(jobs.return_lost(database)) == sorted([odd, good])
    assert row(database, odd).state in TERMINAL
    assert row(database, good).state == JobState.QUEUED


def test_a_job_that_cannot_be_read_stands_nowhere_and_is_told_of_once(
    database: Database,
) -> None:
    odd, good = submit(database), submit(database)
    change(database, odd, line="")
    for _ in range(3):
        assert [one.id for one in reading.queue(database)] == [good]
    assert skipped(database) == 1


def write_json(database: Database, job_id: str, column: str, stored: str) -> None:
    sqlite = database.engine.dialect.name == "sqlite"
    value = ":stored" if sqlite else "CAST(:stored AS json)"
    with database.write() as connection:
        connection.execute(
            text(f"UPDATE jobs SET {column} = {value} WHERE id = :id"),
            {"stored": stored, "id": job_id},
        )


def test_numbers_that_are_none_stop_no_claim(postgresql_url: str) -> None:
    # SQLite stores them as null, which these columns refuse.
    database = Database(postgresql_url)
    odd, good = submit(database, owner="ann"), submit(database, owner="bob")
    nan = math.nan
    write_owner(database, "ann", used_seconds=nan, used_at=nan, total_seconds=nan)
    change(database, odd, turn=nan, created_at=nan, eta_start=nan, eta_finish=nan)
    assert [one.id for one in reading.queue(database)] == [good]
    jobs.foretell(database, foresight.foretell(database))
    assert set(claim_all(database)) == {odd, good}
    run_out(database, odd)
    jobs.return_lost(database)
    assert math.isfinite(sum(owner(database, "ann")))
    database.close()
