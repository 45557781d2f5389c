from typing import Any

import pytest
from sqlalchemy import update

from stylequeue_shared import foresight, jobs, registry
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import Conflict
from stylequeue_shared.foresight import Able, play
from stylequeue_shared.jobs import Expected, Progress
from stylequeue_shared.models import Job
from stylequeue_shared.queue_simulation import Queue, Waiting
from tests.shared.submitting import claim, row, submit


def queue(*seconds: float, owner: str = "", **more: Any) -> Queue:
    return Queue(
        [Waiting(f"{n}", f"2{owner}", n, one, **more) for n, one in enumerate(seconds)],
        {},
    )


def beat(database: Database, name: str, **more: Any) -> None:
    registry.beat(database, registry.Identity(name, "castle", "CPU", None, **more))


def foretell(database: Database) -> dict[str, tuple[float | None, float | None]]:
    """Foretell, record it, and return it in seconds from now."""
    expected = foresight.foretell(database)
    jobs.foretell(database, expected)
    with database.read() as connection:
        moment = connection.scalar(now().select()) or 0.0
    return {
        one.job_id: (
            one.start and one.start - moment,
            one.finish and one.finish - moment,
        )
        for one in expected
    }


def about(*seconds: float | None) -> Any:
    return tuple(None if one is None else pytest.approx(one, abs=3) for one in seconds)


def test_one_job_after_the_other_on_one_worker() -> None:
    assert play(queue(10, 20, 30), [Able("w1", 100.0, 1.0)]) == [
        Expected("0", 100.0, 110.0),
        Expected("1", 110.0, 130.0),
        Expected("2", 130.0, 160.0),
    ]


def test_whichever_worker_is_free_first_takes_the_next() -> None:
    able = [Able("slow", 0.0, 3.0), Able("busy", 25.0, 1.0)]
    assert play(queue(10, 10, 10), able) == [
        Expected("0", 0.0, 30.0),
        Expected("1", 25.0, 35.0),
        Expected("2", 30.0, 60.0),
    ]


def test_a_job_that_fits_one_worker_only_waits_for_that() -> None:
    able = [Able("small", 0.0, 1.0, budget=100), Able("large", 50.0, 1.0, budget=1000)]
    waiting = Queue(
        [
            Waiting("huge", "2", 1.0, 10.0, 5000),
            Waiting("large", "2", 2.0, 10.0, 500),
            Waiting("small", "2", 3.0, 10.0, 50),
            Waiting("unknown", "2", 4.0, 10.0, None),
        ],
        {},
    )
    assert play(waiting, able) == [
        Expected("small", 0.0, 10.0),
        Expected("unknown", 10.0, 20.0),
        Expected("large", 50.0, 60.0),
    ]


def test_jobs_passed_over_keep_their_places_among_all_owners() -> None:
    waiting = Queue(
        [
            Waiting("a1", "2ann", 1.0, 10.0, 500),
            Waiting("a2", "2ann", 2.0, 10.0, 50),
            Waiting("b1", "2bob", 3.0, 10.0, 50),
        ],
        {},
    )
    for expected in ("a2", "b1"):
        one = waiting.take(50)
        assert one is not None
        assert one.id == expected
    assert waiting.take(50) is None
    assert [one.id for one in waiting] == ["a1"]


def test_waiting_and_running_jobs_are_told_when_they_end(database: Database) -> None:
    beat(database, "w1")
    running = submit(database, estimate={"seconds": 100})
    claim(database, "w1")
    first, second = (submit(database, estimate={"seconds": 60}) for _ in range(2))
    assert foretell(database) == {first: about(100, 160), second: about(160, 220)}
    found = row(database, first)
    assert found.eta_finish - found.eta_start == pytest.approx(60)
    # Of the one that runs this was known when it was claimed.
    found = row(database, running)
    assert found.eta_start is None
    assert found.eta_finish - found.claimed_at == pytest.approx(100)


def test_a_running_job_tells_better_than_its_estimate(database: Database) -> None:
    beat(database, "w1")
    running = submit(database, estimate={"seconds": 100})
    held = claim(database, "w1")
    progress = Progress(10, 0.5, 0.1, 2.0, 400.0)
    jobs.report(database, held, progress, lease_seconds=30)
    waiting = submit(database, estimate={"seconds": 60})
    found = foretell(database)
    assert (found[running], found[waiting]) == (about(None, 400), about(400, 460))


def test_the_pace_of_a_worker_corrects_the_estimates(database: Database) -> None:
    beat(database, "w1", pace=2.0)
    job_id = submit(database, estimate={"seconds": 60})
    assert foretell(database)[job_id] == about(0, 120)


def test_a_worker_without_a_pace_is_taken_for_what_the_others_are(
    database: Database,
) -> None:
    beat(database, "w1", pace=3.0)
    beat(database, "w2")
    job_ids = [submit(database, estimate={"seconds": 60}) for _ in range(2)]
    found = foretell(database)
    assert [found[one] for one in job_ids] == [about(0, 180)] * 2


def test_what_a_checkpoint_saves_is_not_counted_again(database: Database) -> None:
    beat(database, "w1")
    job_id = submit(database, estimate={"seconds": 100}, steps=200)
    held = claim(database, "w2")
    jobs.save_checkpoint(database, held, "jobs/1/states/1/record-150", 150)
    jobs.hand_back(database, held)
    assert foretell(database)[job_id] == about(0, 25)


def test_nothing_is_said_where_no_worker_takes_jobs(database: Database) -> None:
    submit(database, estimate={"seconds": 60})
    assert foretell(database) == {}
    beat(database, "w1", refuses="3 jobs in a row failed here")
    beat(database, "w2")
    registry.drain(database, "w2", "finish")
    assert foretell(database) == {}


def test_nothing_is_said_of_a_paused_queue(database: Database) -> None:
    beat(database, "w1")
    submit(database, estimate={"seconds": 60})
    jobs.pause_queue(database, paused=True)
    assert foretell(database) == {}


def test_what_can_no_longer_be_said_is_taken_back(database: Database) -> None:
    beat(database, "w1")
    job_id = submit(database, estimate={"seconds": 60})
    assert len(foretell(database)) == 1
    version = row(database, job_id).version
    jobs.pause_queue(database, paused=True)
    foretell(database)
    found = row(database, job_id)
    assert (found.eta_start, found.eta_finish) == (None, None)
    assert found.version == version + 1
    # Once.
    assert foretell(database) == {}
    jobs.pause_queue(database, paused=False)
    assert len(foretell(database)) == 1


def test_only_what_is_news_is_written(database: Database) -> None:
    beat(database, "w1")
    job_id = submit(database, estimate={"seconds": 600})
    submit(database, estimate={"seconds": 600})
    assert len(foretell(database)) == 2
    version = row(database, job_id).version
    assert foretell(database) == {}
    assert row(database, job_id).version == version
    jobs.request(database, job_id, "cancel")
    assert len(foretell(database)) == 1


def test_what_was_said_goes_with_the_state_it_was_said_of(database: Database) -> None:
    beat(database, "w1")
    job_id = submit(database, estimate={"seconds": 600})
    foretell(database)
    jobs.request(database, job_id, "pause")
    assert (row(database, job_id).eta_start, row(database, job_id).eta_finish) == (
        None,
        None,
    )
    jobs.resume(database, job_id, max_waiting=1000)
    foretell(database)
    held = claim(database, "w1")
    assert row(database, job_id).eta_start is None
    assert row(database, job_id).eta_finish is not None
    jobs.fail(database, held, Conflict("a failure"))
    assert row(database, job_id).eta_finish is None


def test_a_job_claimed_meanwhile_is_not_said_to_start(database: Database) -> None:
    beat(database, "w1")
    job_id = submit(database, estimate={"seconds": 600})
    expected = foresight.foretell(database)
    claim(database, "w1")
    jobs.foretell(database, expected)
    assert row(database, job_id).eta_start is None


def test_many_jobs_are_foretold_in_parts(database: Database) -> None:
    beat(database, "w1")
    for _ in range(450):
        submit(database, estimate={"seconds": 1})
    assert len(foretell(database)) == 450
    with database.write() as connection:
        connection.execute(update(Job).values(eta_start=None))
    assert len(foretell(database)) == 450
