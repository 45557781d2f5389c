import pytest

from stylequeue_shared import jobs, reading
from stylequeue_shared.database import Database
from stylequeue_shared.errors import QueueFull
from tests.shared.jobs.given import together
from tests.shared.submitting import claim, row, submit


def pause(database: Database, job_id: str) -> None:
    """Have a job run for a while, write a checkpoint and be paused."""
    held = claim(database)
    assert held.job_id == job_id
    jobs.save_checkpoint(database, held, "jobs/1/states/5", 5)
    jobs.request(database, job_id, "pause")
    jobs.hand_back(database, held)


def test_a_job_that_ran_waits_like_a_new_one_and_goes_on_from_its_checkpoint(
    database: Database,
) -> None:
    paused = submit(database)
    pause(database, paused)
    other = submit(database)
    jobs.resume(database, paused, max_waiting=2)
    later = submit(database)
    assert [one.id for one in reading.queue(database)] == [other, paused, later]
    held = [claim(database) for _ in range(3)]
    assert [one.job_id for one in held] == [other, paused, later]
    assert held[1].checkpoint == "jobs/1/states/5"


def test_a_resumed_job_waits_in_its_class(database: Database) -> None:
    low = submit(database, priority="low")
    pause(database, low)
    normal = submit(database)
    jobs.resume(database, low, max_waiting=10)
    assert [one.id for one in reading.queue(database)] == [normal, low]


def test_to_pause_a_job_that_was_put_in_front_takes_it_from_there(
    database: Database,
) -> None:
    first, second = submit(database), submit(database)
    jobs.put_in_front(database, second)
    jobs.request(database, second, "pause")
    jobs.resume(database, second, max_waiting=10)
    assert [one.id for one in reading.queue(database)] == [first, second]


def test_a_resumed_job_that_is_moved_to_another_class_is_not_before_all(
    database: Database,
) -> None:
    paused = submit(database)
    pause(database, paused)
    other = submit(database)
    jobs.resume(database, paused, max_waiting=10)
    jobs.prioritise(database, paused, "low")
    assert [one.id for one in reading.queue(database)] == [other, paused]


def test_a_handed_back_job_is_before_all_others(database: Database) -> None:
    first, _ = submit(database), submit(database)
    jobs.hand_back(database, claim(database))
    assert claim(database).job_id == first


@pytest.mark.parametrize("ran", [False, True])
def test_no_job_is_resumed_into_a_full_queue(database: Database, ran: bool) -> None:
    paused = submit(database)
    if ran:
        pause(database, paused)
    else:
        jobs.request(database, paused, "pause")
    submit(database)
    before = row(database, paused)
    with pytest.raises(QueueFull, match="1 jobs are waiting already"):
        jobs.resume(database, paused, max_waiting=1)
    assert row(database, paused) == before
    jobs.resume(database, paused, max_waiting=2)


def test_a_pause_is_taken_back_however_many_wait(database: Database) -> None:
    running = submit(database)
    claim(database)
    jobs.request(database, running, "pause")
    submit(database)
    jobs.resume(database, running, max_waiting=1)
    assert row(database, running).requested is None


def test_jobs_resumed_at_once_do_not_exceed_the_limit(database: Database) -> None:
    paused = [submit(database) for _ in range(6)]
    for job_id in paused:
        jobs.request(database, job_id, "pause")
    refused = together(
        *(lambda one=one: jobs.resume(database, one, max_waiting=2) for one in paused)
    )
    assert [type(error) for error in refused] == [QueueFull] * 4
    assert reading.counts(database) == {"queued": 2, "paused": 4}
