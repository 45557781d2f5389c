from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import job_prefix, snapshot_key
from stylequeue_shared.database import Database
from stylequeue_shared.errors import Conflict, NotFound, NumericalError, QueueFull
from stylequeue_shared.models import Job, JobState, JobStyle, Snapshot, Trash
from tests.shared.jobs.given import (
    ENDED,
    ESTIMATE,
    MADE,
    ages,
    count,
    end,
    grow_old,
    save_snapshots,
    together,
)
from tests.shared.submitting import HALF_WAY, claim, picture, row, run_out, submit


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PAUSED])
def test_cancelling_a_waiting_job_ends_it(database: Database, state: JobState) -> None:
    job_id = submit(database)
    with database.write() as connection:
        connection.execute(update(Job).values(state=state))
    jobs.request(database, job_id, "cancel")
    found = row(database, job_id)
    assert (found.state, found.requested) == ("cancelled", None)
    assert found.finished_at is not None
    assert found.version == 2
    assert jobs.claim(database, "w1", lease_seconds=30) is None


def test_cancelling_a_running_job_is_asked_of_its_worker(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    jobs.request(database, job_id, "cancel")
    found = row(database, job_id)
    assert (found.state, found.requested, found.version) == ("running", "cancel", 3)
    assert jobs.renew(database, held, lease_seconds=30) == "cancel"
    assert jobs.report(database, held, HALF_WAY, lease_seconds=30) == "cancel"
    jobs.hand_back(database, held)
    found = row(database, job_id)
    assert (found.state, found.requested, found.worker) == ("cancelled", None, None)


def test_asking_twice_changes_nothing_that_a_client_sees(database: Database) -> None:
    job_id = submit(database)
    claim(database)
    jobs.request(database, job_id, "cancel")
    before = row(database, job_id)
    jobs.request(database, job_id, "cancel")
    assert row(database, job_id) == before


def test_a_waiting_job_is_paused_at_once_and_waits_again_when_resumed(
    database: Database,
) -> None:
    job_id, other = submit(database), submit(database)
    jobs.request(database, job_id, "pause")
    found = row(database, job_id)
    assert (found.state, found.requested, found.version) == ("paused", None, 2)
    assert claim(database).job_id == other
    assert jobs.claim(database, "w1", lease_seconds=30) is None
    jobs.resume(database, job_id, max_waiting=1000)
    assert claim(database).job_id == job_id


def test_a_job_that_never_ran_is_resumed_in_its_old_place(database: Database) -> None:
    first, second, third = (submit(database) for _ in range(3))
    for job_id in (third, second):
        jobs.request(database, job_id, "pause")
        jobs.resume(database, job_id, max_waiting=1000)
    assert [claim(database).job_id for _ in range(3)] == [first, second, third]


def test_a_running_job_is_paused_when_its_worker_lets_go_of_it(
    database: Database,
) -> None:
    job_id = submit(database)
    held = claim(database)
    jobs.request(database, job_id, "pause")
    assert row(database, job_id).state == "running"
    assert jobs.renew(database, held, lease_seconds=30) == "pause"
    jobs.hand_back(database, held)
    found = row(database, job_id)
    assert (found.state, found.requested, found.worker) == ("paused", None, None)
    assert found.lease_until is None
    assert found.losses == 0


def test_a_paused_job_that_is_lost_meanwhile_is_paused(database: Database) -> None:
    job_id = submit(database)
    claim(database)
    jobs.request(database, job_id, "pause")
    run_out(database, job_id)
    jobs.return_lost(database)
    assert row(database, job_id).state == "paused"


def test_a_pause_that_is_taken_back_in_time_does_not_stop_the_job(
    database: Database,
) -> None:
    job_id = submit(database)
    held = claim(database)
    jobs.request(database, job_id, "pause")
    jobs.resume(database, job_id, max_waiting=1000)
    assert jobs.renew(database, held, lease_seconds=30) is None
    # Its worker may have heard of it all the same.
    jobs.hand_back(database, held)
    assert row(database, job_id).state == "queued"


def test_only_a_paused_job_is_resumed(database: Database) -> None:
    job_id = submit(database)
    with pytest.raises(Conflict, match="queued; only a paused"):
        jobs.resume(database, job_id, max_waiting=1000)
    claim(database)
    with pytest.raises(Conflict, match="running; only a paused"):
        jobs.resume(database, job_id, max_waiting=1000)


def test_a_job_that_waits_is_finished_with_its_newest_picture(
    database: Database,
) -> None:
    job_id = submit(database)
    held = claim(database)
    save_snapshots(database, held, 10, 20)
    jobs.hand_back(database, held)
    jobs.request(database, job_id, "finish")
    found = row(database, job_id)
    assert (found.state, found.stop_reason) == ("succeeded", "finished_early")
    assert found.result_key == snapshot_key(job_id, 1, 20)
    assert (found.result_partial, found.requested) == (False, None)


def test_a_job_without_a_picture_is_not_finished(database: Database) -> None:
    job_id = submit(database)
    with pytest.raises(Conflict, match="no picture yet"):
        jobs.request(database, job_id, "finish")
    assert row(database, job_id).version == 1
    # Running, it is with the first one that it gets, whichever worker runs it then.
    held = claim(database)
    jobs.request(database, job_id, "finish")
    jobs.hand_back(database, held)
    found = row(database, job_id)
    assert (found.state, found.requested) == ("queued", "finish")
    again = claim(database)
    assert jobs.renew(database, again, lease_seconds=30) == "finish"


def test_nothing_takes_a_cancellation_back(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    jobs.request(database, job_id, "pause")
    jobs.request(database, job_id, "cancel")
    jobs.request(database, job_id, "finish")
    assert jobs.renew(database, held, lease_seconds=30) == "cancel"
    with pytest.raises(Conflict):
        jobs.resume(database, job_id, max_waiting=1000)


@pytest.mark.parametrize("what", ["finish", "pause"])
@pytest.mark.parametrize("state", ENDED)
def test_an_ended_job_is_neither_finished_nor_paused(
    database: Database, state: JobState, what: jobs.Request
) -> None:
    job_id = end(database, state)
    before = row(database, job_id)
    with pytest.raises(Conflict, match="has come to its end"):
        jobs.request(database, job_id, what)
    assert row(database, job_id) == before


@pytest.mark.parametrize("state", ENDED)
def test_cancelling_an_ended_job_leaves_it_as_it_is(
    database: Database, state: JobState
) -> None:
    job_id = end(database, state)
    before = row(database, job_id)
    jobs.request(database, job_id, "cancel")
    assert row(database, job_id) == before


def test_a_job_that_was_asked_to_be_cancelled_is_not_handed_back(
    database: Database,
) -> None:
    job_id = submit(database)
    held = claim(database)
    jobs.request(database, job_id, "cancel")
    jobs.hand_back(database, held)
    found = row(database, job_id)
    assert (found.state, found.requested) == ("cancelled", None)


def test_a_job_that_succeeds_before_it_sees_its_cancellation_has_succeeded(
    database: Database,
) -> None:
    job_id = submit(database)
    held = claim(database)
    jobs.request(database, job_id, "cancel")
    jobs.succeed(database, held, HALF_WAY, MADE)
    found = row(database, job_id)
    assert (found.state, found.requested) == ("succeeded", None)


@pytest.mark.parametrize("state", ENDED)
def test_retrying_copies_pictures_settings_with_the_seed_and_estimate(
    database: Database, state: JobState
) -> None:
    job_id = end(database, state, estimate=ESTIMATE)
    grow_old(database, days=1)
    new_id = jobs.retry(database, job_id, max_waiting=5)
    old, new = row(database, job_id), row(database, new_id)
    assert new_id != job_id
    assert (new.state, new.version, new.attempt, new.step) == ("queued", 1, 0, None)
    assert new.settings == old.settings
    assert new.estimate == old.estimate == ESTIMATE
    assert claim(database).style_shas == (picture("waves").sha256,)
    # Their hour starts anew.
    assert max(ages(database).values()) < 60


def test_a_job_that_has_not_ended_cannot_be_retried(database: Database) -> None:
    job_id = submit(database)
    with pytest.raises(Conflict, match="queued"):
        jobs.retry(database, job_id, max_waiting=5)
    claim(database)
    with pytest.raises(Conflict, match="running"):
        jobs.retry(database, job_id, max_waiting=5)
    assert count(database, Job) == 1


def test_a_full_queue_takes_no_retries(database: Database) -> None:
    job_id = end(database, JobState.FAILED)
    submit(database)
    with pytest.raises(QueueFull):
        jobs.retry(database, job_id, max_waiting=1)


@pytest.mark.parametrize("state", ENDED)
def test_forgetting_deletes_the_rows_and_leaves_the_files_to_the_housekeeper(
    database: Database, state: JobState
) -> None:
    job_id, other = end(database, state), end(database, JobState.SUCCEEDED)
    grow_old(database, days=1)
    jobs.forget(database, job_id)
    assert count(database, Job) == 1
    assert row(database, other).state == "succeeded"
    with database.read() as connection:
        assert connection.scalars(select(Trash.prefix)).all() == [job_prefix(job_id)]
    # Their hour starts now.
    assert max(ages(database).values()) < 60


def test_forgetting_a_job_forgets_its_snapshots(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    jobs.add_snapshot(database, held, snapshot_key(job_id, 1, 50), HALF_WAY, (64, 48))
    jobs.fail(database, held, NumericalError("not finite"))
    jobs.forget(database, job_id)
    assert count(database, Snapshot) == count(database, JobStyle) == 0


def test_a_job_that_has_not_ended_is_not_forgotten(database: Database) -> None:
    job_id = submit(database)
    with pytest.raises(Conflict, match="queued"):
        jobs.forget(database, job_id)
    claim(database)
    with pytest.raises(Conflict, match="cancel it before"):
        jobs.forget(database, job_id)
    assert row(database, job_id).state == "running"


def test_forgetting_at_once_from_many_sides_forgets_once(database: Database) -> None:
    job_id = end(database, JobState.SUCCEEDED)
    raised = together(*[lambda: jobs.forget(database, job_id)] * 4)
    assert [type(error) for error in raised] == [NotFound] * 3
    assert count(database, Trash) == 1


@pytest.mark.parametrize("job_id", ["", "1", "x" * 5000, "' OR 1=1"])
def test_a_job_that_does_not_exist_is_not_found(
    database: Database, job_id: str
) -> None:
    asked: list[Callable[[], object]] = [
        lambda: jobs.request(database, job_id, "cancel"),
        lambda: jobs.resume(database, job_id, max_waiting=1000),
        lambda: jobs.forget(database, job_id),
    ]
    for ask in asked:
        with pytest.raises(NotFound) as refused:
            ask()
        assert len(refused.value.message) < 100
    with pytest.raises(NotFound):
        jobs.retry(database, job_id, max_waiting=1)
