import pytest

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.errors import QueueFull
from stylequeue_shared.models import Job, JobStyle, Picture
from tests.shared.jobs.given import ages, count, grow_old, time, together
from tests.shared.submitting import claim, picture, row, submit


def test_a_submitted_job_waits_with_all_its_settings(database: Database) -> None:
    job_id = submit(database, styles=("waves", "night"), steps=3, seed=5)
    found = row(database, job_id)
    assert (found.state, found.version, found.attempt) == ("queued", 1, 0)
    assert found.settings["steps"] == 3
    assert found.settings["seed"] == 5
    assert found.settings["image_size"] == 256
    assert found.step is None
    assert found.started_at is None
    assert found.created_at == pytest.approx(time(database), abs=10)


def test_ids_are_uuid7_and_grow_with_time(database: Database) -> None:
    ids = [submit(database) for _ in range(5)]
    assert ids == sorted(ids)
    assert all(job_id[14] == "7" and len(job_id) == 36 for job_id in ids)


def test_a_picture_is_recorded_once_however_often_it_is_used(
    database: Database,
) -> None:
    submit(database, content="cat", styles=("cat", "cat"))
    submit(database, content="cat", styles=("waves",))
    assert count(database, Picture) == 2
    assert count(database, JobStyle) == 3


def test_using_a_picture_again_starts_its_hour_anew(database: Database) -> None:
    jobs.keep_pictures(database, [picture("cat"), picture("waves")])
    grow_old(database, days=1)
    jobs.keep_pictures(database, [picture("cat")])
    found = ages(database)
    assert found[picture("cat").sha256] < 60
    assert found[picture("waves").sha256] > 80_000


def test_pictures_that_are_kept_in_opposite_orders_do_not_lock_each_other_out(
    database: Database,
) -> None:
    names = [f"picture {number}" for number in range(8)]
    there, back = ([picture(name) for name in order] for order in (names, names[::-1]))

    def keep(order: list[Inspected]) -> None:
        for _ in range(15):
            jobs.keep_pictures(database, order)

    assert together(*[lambda: keep(there), lambda: keep(back)] * 2) == []


def test_jobs_with_the_same_pictures_are_deleted_and_retried_at_once(
    database: Database,
) -> None:
    there = tuple(f"picture {number}" for number in range(8))
    ended = []
    for number in range(24):
        order = there if number % 2 else there[::-1]
        ended.append(submit(database, content="cat", styles=order))
    for job_id in ended:
        jobs.request(database, job_id, "cancel")
    keep = [picture(name) for name in there[::-1]]

    def forget(some: list[str]) -> None:
        for job_id in some:
            jobs.retry(database, job_id, max_waiting=1000)
            jobs.forget(database, job_id)
            jobs.keep_pictures(database, keep)

    assert together(*[lambda n=n: forget(ended[n::4]) for n in range(4)]) == []


def test_a_full_queue_takes_no_more(database: Database) -> None:
    for _ in range(2):
        submit(database, max_waiting=2)
    with pytest.raises(QueueFull, match="STYLEQUEUE_MAX_WAITING") as refused:
        submit(database, max_waiting=2)
    assert "2 jobs are waiting" in refused.value.message
    assert count(database, Job) == 2
    # A job that runs does not wait.
    claim(database)
    submit(database, max_waiting=2)


def test_a_queue_of_one_takes_one_of_many_submissions_at_once(
    database: Database,
) -> None:
    refused = together(*[lambda: submit(database, max_waiting=1)] * 8)
    assert [type(error) for error in refused] == [QueueFull] * 7
    assert count(database, Job) == 1
