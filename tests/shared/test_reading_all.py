"""What is read about all jobs and workers at once."""

from typing import Any

import pytest
from sqlalchemy import update

from stylequeue_shared import jobs, reading, registry
from stylequeue_shared.artefacts import snapshot_key
from stylequeue_shared.database import Database, now
from stylequeue_shared.jobs import Claim, Progress, Result
from stylequeue_shared.models import Job, Worker
from tests.shared.submitting import HALF_WAY, claim, submit

MADE = Result(key="jobs/1/1/result.png", width=256, height=192)


def change(database: Database, **values: Any) -> None:
    """Change all jobs."""
    with database.write() as connection:
        connection.execute(update(Job).values(**values))


def keep_snapshot(database: Database, held: Claim, step: int) -> str:
    key = snapshot_key(held.job_id, held.attempt, step)
    jobs.add_snapshot(
        database, held, key, Progress(step, 0.5, 0.25, 8.0, 4.0), (64, 48)
    )
    return key


def pages(database: Database, limit: int, state: str | None = None) -> list[list[str]]:
    """Return the ids of all jobs, page by page, as a client would ask for them."""
    found: list[list[str]] = []
    before = None
    while page := reading.page(database, state=state, limit=limit, before=before):
        found.append([row.id for row, _ in page])
        before = (page[-1][0].created_at, page[-1][0].id)
    return found


def flat(pages: list[list[str]]) -> list[str]:
    return [job_id for page in pages for job_id in page]


# -- All jobs -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100])
def test_pages_lose_no_job_and_double_none(database: Database, limit: int) -> None:
    ids = [submit(database) for _ in range(7)]
    found = pages(database, limit)
    assert flat(found) == ids[::-1]
    assert all(len(page) == limit for page in found[:-1])


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("created_at", [1.0, 1_763_900_000.1234567, 0.1 + 0.2])
def test_pages_lose_no_job_of_the_very_same_moment(
    database: Database, created_at: float, limit: int
) -> None:
    ids = [submit(database) for _ in range(7)]
    change(database, created_at=created_at)
    assert flat(pages(database, limit)) == ids[::-1]


def test_a_job_that_comes_while_one_pages_moves_nothing(database: Database) -> None:
    ids = [submit(database) for _ in range(4)]
    first = reading.page(database, state=None, limit=2, before=None)
    submit(database)
    last = first[-1][0]
    before = (last.created_at, last.id)
    second = reading.page(database, state=None, limit=2, before=before)
    assert [row.id for row, _ in [*first, *second]] == ids[::-1]


def test_pages_of_one_state_hold_no_other(database: Database) -> None:
    ids = [submit(database) for _ in range(6)]
    running = [claim(database).job_id for _ in range(3)]
    jobs.request(database, ids[4], "cancel")
    assert flat(pages(database, 2, "running")) == running[::-1]
    assert flat(pages(database, 2, "queued")) == [ids[5], ids[3]]
    assert pages(database, 2, "cancelled") == [[ids[4]]]
    assert pages(database, 2, "failed") == []


def test_a_page_has_each_job_s_own_snapshots_by_step(database: Database) -> None:
    ids = [submit(database) for _ in range(3)]
    for held in (claim(database), claim(database)):
        for step in (100, 50) if held.job_id == ids[0] else (1000,):
            keep_snapshot(database, held, step)
    found = reading.page(database, state=None, limit=5, before=None)
    assert [[shot.step for shot in shots] for _, shots in found] == [
        [],
        [1000],
        [50, 100],
    ]


def test_without_jobs_there_is_an_empty_page(database: Database) -> None:
    assert pages(database, 5) == []


def test_the_first_that_waits_is_the_one_that_is_claimed(database: Database) -> None:
    ids = [submit(database) for _ in range(4)]
    with database.write() as connection:
        connection.execute(update(Job).where(Job.id == ids[3]).values(turn=1.0))
        later = Job.id.in_(ids[:3])
        connection.execute(update(Job).where(later).values(turn=2.0))
    turns = [ids[3], ids[0], ids[1], ids[2]]
    assert [one.id for one in reading.queue(database)] == turns
    for number, job_id in enumerate(turns, start=1):
        assert claim(database).job_id == job_id
        assert [one.id for one in reading.queue(database)] == turns[number:]


def test_jobs_are_counted_by_state(database: Database) -> None:
    assert reading.counts(database) == {}
    ids = [submit(database) for _ in range(4)]
    claim(database)
    jobs.request(database, ids[3], "cancel")
    assert reading.counts(database) == {"queued": 2, "running": 1, "cancelled": 1}


def test_the_age_of_the_oldest_that_waits(database: Database) -> None:
    assert reading.oldest_waiting_seconds(database) == 0
    submit(database)
    change(database, created_at=now() - 1000)
    claim(database)
    assert reading.oldest_waiting_seconds(database) == 0
    submit(database)
    change(database, created_at=now() - 50)
    submit(database)
    assert reading.oldest_waiting_seconds(database) == pytest.approx(50, abs=10)


def test_no_age_is_less_than_nothing(database: Database) -> None:
    submit(database)
    change(database, created_at=now() + 100)
    assert reading.oldest_waiting_seconds(database) == 0


# -- Workers --------------------------------------------------------------------------


def beat(database: Database, name: str, seconds_ago: float = 0) -> None:
    registry.beat(database, registry.Identity(name, "here", "CPU", 1024))
    with database.write() as connection:
        seen = update(Worker).where(Worker.name == name)
        connection.execute(seen.values(seen_at=now() - seconds_ago))


def test_only_workers_that_were_seen_lately_are_shown(database: Database) -> None:
    beat(database, "w3")
    beat(database, "w1", seconds_ago=reading.SEEN_SECONDS - 20)
    beat(database, "w2", seconds_ago=reading.SEEN_SECONDS + 1)
    assert [row.name for row in reading.workers(database)] == ["w1", "w3"]


def test_a_worker_comes_with_the_job_it_runs_and_its_speed(database: Database) -> None:
    beat(database, "w1")
    beat(database, "w2")
    job_id = submit(database)
    held = claim(database, "w1")
    jobs.report(database, held, HALF_WAY, lease_seconds=30)
    rows = reading.workers(database)
    assert [(row.name, row.job, row.steps_per_second) for row in rows] == [
        ("w1", job_id, 8.0),
        ("w2", None, None),
    ]
    assert (rows[0].device, rows[0].memory_bytes) == ("CPU", 1024)


def test_a_worker_whose_job_ended_runs_none(database: Database) -> None:
    beat(database, "w1")
    submit(database)
    jobs.succeed(database, claim(database, "w1"), HALF_WAY, MADE)
    change(database, worker="w1")  # as a record that still names it
    assert [(row.name, row.job) for row in reading.workers(database)] == [("w1", None)]
