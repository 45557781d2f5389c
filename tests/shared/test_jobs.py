import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, update

from stylequeue_shared import jobs, registry
from stylequeue_shared.artefacts import job_prefix, result_key, snapshot_key
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import (
    Conflict,
    LeaseLost,
    MachineError,
    NotFound,
    NumericalError,
    OutOfMemory,
    QueueFull,
)
from stylequeue_shared.jobs import MAX_FAULTS, MAX_LOSSES, Claim, Progress, Result
from stylequeue_shared.models import Job, JobState, JobStyle, Picture, Snapshot, Trash
from tests.shared.submitting import HALF_WAY, claim, picture, row, run_out, submit

MADE = Result(key="jobs/1/1/result.png", width=256, height=192)
ESTIMATE = {"seconds": 41.2, "memory_bytes": 940_000_000, "worker": "gpu-1"}
ENDED = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]

CLAIM_ALL = """
import sys
from stylequeue_shared import jobs
from stylequeue_shared.database import Database

database = Database(sys.argv[1])
while held := jobs.claim(database, sys.argv[2], lease_seconds=60):
    print(held.job_id, held.attempt)
database.close()
"""


def snapshots(database: Database, job_id: str) -> list[tuple[int, str]]:
    with database.read() as connection:
        found = connection.execute(
            select(Snapshot.step, Snapshot.key)
            .where(Snapshot.job_id == job_id)
            .order_by(Snapshot.step)
        )
        return [(step, key) for step, key in found]


def save_snapshots(database: Database, held: Claim, *steps: int) -> None:
    for step in steps:
        key = snapshot_key(held.job_id, held.attempt, step)
        progress = replace(HALF_WAY, step=step)
        jobs.add_snapshot(database, held, key, progress, (64, 48))


def count(database: Database, table: type) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def grow_old(database: Database, days: float) -> None:
    """Let that much time pass for all jobs and pictures."""
    seconds = days * 86_400
    with database.write() as connection:
        connection.execute(update(Job).values(finished_at=Job.finished_at - seconds))
        connection.execute(update(Picture).values(used_at=Picture.used_at - seconds))


def beat(database: Database, name: str, refuses: str | None = None) -> None:
    identity = registry.Identity(name, "here", "CPU", None, refuses=refuses)
    registry.beat(database, identity)


def time(database: Database) -> float:
    with database.read() as connection:
        return connection.scalar(select(now())) or 0.0


def ages(database: Database) -> dict[str, float]:
    with database.read() as connection:
        rows = connection.execute(select(Picture.sha256, now() - Picture.used_at))
        return {row[0]: row[1] for row in rows}


def change(database: Database, job_id: str, **values: object) -> None:
    with database.write() as connection:
        connection.execute(update(Job).where(Job.id == job_id).values(**values))


def end(database: Database, state: JobState, **given: Any) -> str:
    """Bring a new job to its end in that state and return its id."""
    job_id = submit(database, **given)
    held = claim(database)
    assert held.job_id == job_id
    if state == JobState.SUCCEEDED:
        jobs.succeed(database, held, HALF_WAY, MADE)
    elif state == JobState.FAILED:
        jobs.fail(database, held, NumericalError("the style loss is not finite"))
    else:
        jobs.request(database, job_id, "cancel")
        jobs.hand_back(database, held)
    assert row(database, job_id).state == state
    return job_id


def together(*calls: Callable[[], object]) -> list[Exception]:
    """Call all at once, each in a thread of its own; return what was raised."""
    raised: list[Exception] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        try:
            call()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


# -- Submitting -----------------------------------------------------------------------


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

    def keep(order: list[jobs.Inspected]) -> None:
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


# -- Claiming -------------------------------------------------------------------------


def test_a_claim_has_all_that_a_worker_needs(database: Database) -> None:
    job_id = submit(database, content="cat", styles=("waves", "night"), steps=3)
    held = claim(database, "w1")
    assert (held.job_id, held.attempt, held.settings.steps) == (job_id, 1, 3)
    assert held.content_sha == picture("cat").sha256
    assert held.style_shas == (picture("waves").sha256, picture("night").sha256)


def test_a_claimed_job_runs_under_a_lease(database: Database) -> None:
    job_id = submit(database)
    claim(database, "w1", lease_seconds=30)
    found = row(database, job_id)
    assert (found.state, found.worker, found.attempt) == ("running", "w1", 1)
    assert found.version == 2
    assert found.lease_until == pytest.approx(time(database) + 30, abs=10)
    assert found.started_at is not None


def test_jobs_are_claimed_oldest_first_and_once(database: Database) -> None:
    ids = [submit(database) for _ in range(4)]
    assert [claim(database).job_id for _ in range(4)] == ids
    assert jobs.claim(database, "w1", lease_seconds=30) is None


@pytest.mark.parametrize("state", ENDED)
def test_an_ended_job_is_not_claimed(database: Database, state: JobState) -> None:
    end(database, state)
    assert jobs.claim(database, "w1", lease_seconds=30) is None


def test_stored_settings_that_are_no_longer_valid_fail_the_job_as_ours(
    database: Database,
) -> None:
    bad, worse, good = submit(database), submit(database), submit(database)
    change(database, bad, settings={**row(database, bad).settings, "steps": -1})
    change(database, worse, settings=["gone"])
    assert claim(database).job_id == good
    for job_id in (bad, worse):
        found = row(database, job_id)
        assert (found.state, found.error_fault) == ("failed", "ours")
        assert found.finished_at is not None
        assert (found.lease_until, found.worker) == (None, None)
    assert "steps" in row(database, bad).error_message


def test_many_processes_claim_each_job_once(database: Database) -> None:
    ids = [submit(database) for _ in range(60)]
    url = database.engine.url.render_as_string(hide_password=False)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CLAIM_ALL, url, f"w{number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [errors for _, errors in said] == [""] * 4
    claimed = [line.split() for out, _ in said for line in out.splitlines()]
    assert sorted(job_id for job_id, _ in claimed) == ids
    assert {attempt for _, attempt in claimed} == {"1"}


def test_many_threads_claim_each_job_once(database: Database) -> None:
    ids = [submit(database) for _ in range(80)]
    claimed: list[str] = []

    def claim_all(worker: str) -> None:
        while held := jobs.claim(database, worker, lease_seconds=60):
            claimed.append(held.job_id)

    assert together(*[lambda n=n: claim_all(f"w{n}") for n in range(8)]) == []
    assert sorted(claimed) == ids


# -- Running --------------------------------------------------------------------------


def test_progress_is_written_and_renews_the_lease(database: Database) -> None:
    job_id = submit(database)
    held = claim(database, lease_seconds=1)
    assert jobs.report(database, held, HALF_WAY, lease_seconds=100) is None
    found = row(database, job_id)
    assert (found.step, found.style_loss, found.content_loss) == (350, 0.07, 0.43)
    assert (found.steps_per_second, found.eta_seconds) == (8.0, 44.0)
    assert found.version == 3
    assert found.lease_until > time(database) + 50


def test_progress_of_a_huge_loss_is_kept(database: Database) -> None:
    job_id = submit(database)
    loss = 1.7976931348623157e308
    huge = Progress(1, loss, 5e-324, 1e-9, 1e12)
    jobs.report(database, claim(database), huge, lease_seconds=30)
    assert row(database, job_id).style_loss == loss


def test_renewing_a_lease_is_nothing_that_a_client_sees(database: Database) -> None:
    job_id = submit(database)
    held = claim(database, lease_seconds=1)
    before = row(database, job_id)
    assert jobs.renew(database, held, lease_seconds=100) is None
    after = row(database, job_id)
    assert after.lease_until > before.lease_until
    assert after.version == before.version


def test_a_lease_that_ran_out_but_was_not_taken_is_renewed(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    run_out(database, job_id)
    jobs.renew(database, held, lease_seconds=30)
    assert jobs.return_lost(database) == []
    jobs.succeed(database, held, HALF_WAY, MADE)


def test_a_snapshot_is_named_with_its_losses(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    for step in (50, 100):
        key = snapshot_key(job_id, 1, step)
        jobs.add_snapshot(database, held, key, replace(HALF_WAY, step=step), (64, 48))
    assert snapshots(database, job_id) == [
        (50, f"jobs/{job_id}/1/snapshot-000050.png"),
        (100, f"jobs/{job_id}/1/snapshot-000100.png"),
    ]
    assert row(database, job_id).step == 100


def test_a_snapshot_that_is_recorded_twice_is_one(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    for _ in range(2):
        jobs.add_snapshot(database, held, "here", HALF_WAY, (64, 48))
    assert snapshots(database, job_id) == [(HALF_WAY.step, "here")]


def test_what_a_picture_depends_on_is_recorded(database: Database) -> None:
    job_id = submit(database)
    jobs.describe(database, claim(database), {"weights": "abc", "threads": 2})
    found = row(database, job_id)
    assert found.made_with == {"weights": "abc", "threads": 2}
    assert found.version == 3


def test_a_job_succeeds_with_its_picture(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    last = replace(HALF_WAY, step=700, eta_seconds=3.0)
    jobs.succeed(database, held, last, MADE)
    found = row(database, job_id)
    assert (found.state, found.stop_reason) == ("succeeded", "completed")
    assert (found.result_key, found.result_width) == (MADE.key, 256)
    assert (found.result_height, found.result_partial) == (192, False)
    assert (found.step, found.eta_seconds) == (700, 0)
    assert (found.worker, found.lease_until) == (None, None)
    assert found.finished_at is not None
    assert found.error_code is None


def test_a_job_fails_with_a_reason_that_says_whose_fault_it_was(
    database: Database,
) -> None:
    job_id = submit(database)
    jobs.fail(database, claim(database), MachineError("x" * 3000))
    found = row(database, job_id)
    assert (found.state, found.error_code) == ("failed", "machine")
    assert found.error_fault == "machine"
    assert found.error_message == "x" * 2000
    assert (found.result_key, found.stop_reason) == (None, None)


def test_a_reason_may_hold_any_character_at_any_length(database: Database) -> None:
    job_id = submit(database)
    jobs.fail(database, claim(database), NumericalError("a\0b" + "!" * 5000))
    assert row(database, job_id).error_message.startswith("ab!")


def test_a_failed_job_may_show_its_best_picture(database: Database) -> None:
    job_id = submit(database)
    best = replace(MADE, partial=True)
    jobs.fail(database, claim(database), NumericalError("not finite"), best)
    found = row(database, job_id)
    assert (found.result_key, found.result_partial) == (MADE.key, True)


def test_a_job_handed_back_waits_in_its_old_place(database: Database) -> None:
    job_id, later = submit(database), submit(database)
    first = claim(database)
    jobs.report(database, first, HALF_WAY, lease_seconds=30)
    jobs.hand_back(database, first)
    found = row(database, job_id)
    assert (found.state, found.worker, found.losses) == ("queued", None, 0)
    again = claim(database)
    assert (again.job_id, again.attempt) == (job_id, 2)
    assert claim(database).job_id == later


def test_a_job_that_starts_again_names_no_file_of_an_older_attempt(
    database: Database,
) -> None:
    job_id = submit(database)
    first = claim(database)
    jobs.add_snapshot(database, first, snapshot_key(job_id, 1, 50), HALF_WAY, (64, 48))
    started = row(database, job_id).started_at
    jobs.hand_back(database, first)
    second = claim(database)
    assert snapshots(database, job_id) == []
    found = row(database, job_id)
    assert (found.step, found.started_at) == (0, started)
    jobs.add_snapshot(database, second, snapshot_key(job_id, 2, 50), HALF_WAY, (64, 48))
    assert len(snapshots(database, job_id)) == 1


def test_a_job_that_never_made_a_step_has_no_progress(database: Database) -> None:
    job_id = submit(database)
    jobs.hand_back(database, claim(database))
    claim(database)
    assert row(database, job_id).step is None


WRITES: dict[str, Callable[[Database, Claim], object]] = {
    "renew": lambda db, held: jobs.renew(db, held, lease_seconds=30),
    "report": lambda db, held: jobs.report(db, held, HALF_WAY, lease_seconds=30),
    "describe": lambda db, held: jobs.describe(db, held, {"threads": 2}),
    "add_snapshot": lambda db, held: jobs.add_snapshot(
        *(db, held, result_key(held.job_id, held.attempt), HALF_WAY, (64, 48))
    ),
    "save_checkpoint": lambda db, held: jobs.save_checkpoint(db, held, "state", 50),
    "succeed": lambda db, held: jobs.succeed(db, held, HALF_WAY, MADE),
    "fail": lambda db, held: jobs.fail(db, held, NumericalError("not finite")),
    "hand_back": jobs.hand_back,
    "send_away": jobs.send_away,
}


@pytest.mark.parametrize("write", WRITES)
def test_an_old_attempt_can_write_nothing(database: Database, write: str) -> None:
    job_id = submit(database)
    old = claim(database, "w1")
    run_out(database, job_id)

    # Returned to the queue: the attempt number is still the old one.
    assert jobs.return_lost(database) == [job_id]
    before = row(database, job_id)
    with pytest.raises(LeaseLost, match="attempt 1"):
        WRITES[write](database, old)
    assert row(database, job_id) == before

    # Run by another.
    claim(database, "w2")
    before = row(database, job_id)
    with pytest.raises(LeaseLost, match="attempt 1"):
        WRITES[write](database, old)
    assert row(database, job_id) == before
    assert snapshots(database, job_id) == []


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("state", ENDED)
def test_nobody_writes_to_an_ended_job(
    database: Database, write: str, state: JobState
) -> None:
    job_id = end(database, state)
    before = row(database, job_id)
    settings = claim_of(database, job_id)
    with pytest.raises(LeaseLost):
        WRITES[write](database, settings)
    assert row(database, job_id) == before


def claim_of(database: Database, job_id: str) -> Claim:
    """Return the claim of the attempt that ended a job."""
    found = row(database, job_id)
    settings = jobs.JobSettings.model_validate(found.settings)
    return Claim(job_id, found.attempt, settings, found.content_sha, ())


@pytest.mark.parametrize("write", WRITES)
def test_a_deleted_job_is_a_lost_one(database: Database, write: str) -> None:
    job_id = end(database, JobState.SUCCEEDED)
    held = claim_of(database, job_id)
    jobs.forget(database, job_id)
    with pytest.raises(LeaseLost):
        WRITES[write](database, held)
    assert count(database, Job) == 0


# -- Asked for by people --------------------------------------------------------------


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
    jobs.resume(database, job_id)
    assert claim(database).job_id == job_id


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
    jobs.resume(database, job_id)
    assert jobs.renew(database, held, lease_seconds=30) is None
    # Its worker may have heard of it all the same.
    jobs.hand_back(database, held)
    assert row(database, job_id).state == "queued"


def test_only_a_paused_job_is_resumed(database: Database) -> None:
    job_id = submit(database)
    with pytest.raises(Conflict, match="queued; only a paused"):
        jobs.resume(database, job_id)
    claim(database)
    with pytest.raises(Conflict, match="running; only a paused"):
        jobs.resume(database, job_id)


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
        jobs.resume(database, job_id)


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
        lambda: jobs.resume(database, job_id),
        lambda: jobs.forget(database, job_id),
    ]
    for ask in asked:
        with pytest.raises(NotFound) as refused:
            ask()
        assert len(refused.value.message) < 100
    with pytest.raises(NotFound):
        jobs.retry(database, job_id, max_waiting=1)


# -- Housekeeping ---------------------------------------------------------------------


def test_a_lost_job_waits_again_in_its_old_place(database: Database) -> None:
    job_id = submit(database)
    submit(database)
    first = claim(database)
    jobs.report(database, first, HALF_WAY, lease_seconds=30)
    run_out(database, job_id)
    assert jobs.return_lost(database) == [job_id]
    found = row(database, job_id)
    assert (found.state, found.losses, found.worker) == ("queued", 1, None)
    assert (found.lease_until, found.step) == (None, 350)
    assert claim(database).job_id == job_id


def test_only_jobs_whose_lease_ran_out_are_lost(database: Database) -> None:
    submit(database)
    claim(database, lease_seconds=30)
    submit(database)
    assert jobs.return_lost(database) == []


def test_a_lost_job_that_was_asked_to_be_cancelled_is_cancelled(
    database: Database,
) -> None:
    job_id = submit(database)
    claim(database)
    jobs.request(database, job_id, "cancel")
    run_out(database, job_id)
    assert jobs.return_lost(database) == [job_id]
    found = row(database, job_id)
    assert (found.state, found.requested) == ("cancelled", None)


def test_a_job_that_loses_its_worker_again_and_again_fails(database: Database) -> None:
    job_id = submit(database)
    for number in range(MAX_LOSSES):
        assert row(database, job_id).state == "queued"
        assert claim(database).attempt == number + 1
        run_out(database, job_id)
        jobs.return_lost(database)
    found = row(database, job_id)
    assert (found.state, found.error_code) == ("failed", "worker_lost")
    assert (found.error_fault, found.attempt) == ("machine", MAX_LOSSES)
    assert found.finished_at is not None
    assert found.result_key is None


def test_a_job_that_is_given_up_shows_its_newest_picture(database: Database) -> None:
    job_id = submit(database)
    for number in range(MAX_LOSSES):
        save_snapshots(database, claim(database), 10, 20 + number)
        run_out(database, job_id)
        jobs.return_lost(database)
    found = row(database, job_id)
    key = snapshot_key(job_id, MAX_LOSSES, 20 + MAX_LOSSES - 1)
    assert (found.result_key, found.result_partial) == (key, True)
    assert (found.result_width, found.result_height) == (64, 48)


def test_only_losses_without_a_newer_checkpoint_count(database: Database) -> None:
    job_id = submit(database)
    for number in range(3 * MAX_LOSSES):
        held = claim(database)
        if number % 4 == 3:
            jobs.save_checkpoint(database, held, f"state-{number}", number)
        run_out(database, job_id)
        jobs.return_lost(database)
    since = row(database, job_id).losses
    assert 0 < since < MAX_LOSSES
    for _ in range(MAX_LOSSES - since):
        assert row(database, job_id).state == "queued"
        claim(database)
        run_out(database, job_id)
        jobs.return_lost(database)
    assert row(database, job_id).state == "failed"


def test_what_a_vanished_process_ran_is_returned_before_its_lease_ends(
    database: Database,
) -> None:
    job_id, other, ended = submit(database), submit(database), submit(database)
    jobs.fail(database, held := claim(database, "w1"), NumericalError("not finite"))
    assert held.job_id == job_id
    claim(database, "w1")
    claim(database, "w2")
    assert jobs.return_orphans(database, "w1", None) == [other]
    found = row(database, other)
    assert (found.state, found.worker, found.losses, found.faults) == (
        *("queued", None),
        *(1, 0),
    )
    assert row(database, ended).state == "running"
    assert jobs.return_orphans(database, "w1", None) == []


def test_what_a_machine_ended_is_sent_away_and_fails_with_the_cause_on_the_last(
    database: Database,
) -> None:
    job_id = submit(database)
    cause = OutOfMemory.of_the_worker()
    for number in range(1, MAX_FAULTS + 1):
        assert row(database, job_id).state == "queued"
        save_snapshots(database, claim(database, f"w{number}"), 10 * number)
        assert jobs.return_orphans(database, f"w{number}", cause) == [job_id]
        found = row(database, job_id)
        assert (found.faults, found.avoids, found.losses) == (number, f"w{number}", 0)
    assert (found.state, found.error_code, found.error_fault) == (
        *("failed", "out_of_memory"),
        "machine",
    )
    assert found.error_message == cause.message
    assert found.result_partial


def test_what_was_asked_of_an_orphan_is_done(database: Database) -> None:
    job_id = submit(database)
    for number in range(MAX_FAULTS):
        claim(database, "w1")
        if number == MAX_FAULTS - 1:
            jobs.request(database, job_id, "cancel")
        jobs.return_orphans(database, "w1", OutOfMemory.of_the_worker())
    assert row(database, job_id).state == "cancelled"


def test_a_lost_job_is_next_before_jobs_that_never_ran(database: Database) -> None:
    first, second = submit(database), submit(database)
    third = submit(database)
    assert claim(database).job_id == first
    assert claim(database).job_id == second
    # In any order.
    for job_id in (second, first):
        run_out(database, job_id)
        jobs.return_lost(database)
    assert [claim(database).job_id for _ in range(3)] == [first, second, third]


def test_a_job_goes_on_from_its_checkpoint_with_the_pictures_until_then(
    database: Database,
) -> None:
    job_id = submit(database)
    held = claim(database)
    assert held.checkpoint is None
    jobs.report(database, held, HALF_WAY, lease_seconds=30)
    save_snapshots(database, held, 50, 100, 150)
    jobs.save_checkpoint(database, held, "state-120", 120)
    run_out(database, job_id)
    jobs.return_lost(database)
    again = claim(database)
    assert (again.job_id, again.checkpoint) == (job_id, "state-120")
    assert row(database, job_id).step == 120
    assert [step for step, _ in snapshots(database, job_id)] == [50, 100]
    # The next attempt has not saved one of its own yet.
    jobs.hand_back(database, again)
    assert claim(database).checkpoint == "state-120"


def test_the_checkpoint_of_an_ended_job_is_to_be_deleted(database: Database) -> None:
    job_id, running = submit(database), submit(database)
    for held in (claim(database), claim(database)):
        jobs.save_checkpoint(database, held, "state", 9)
        if held.job_id == job_id:
            jobs.succeed(database, held, HALF_WAY, MADE)
    end(database, JobState.SUCCEEDED)
    assert jobs.ended_with_checkpoint(database) == [job_id]
    for one in (job_id, running):
        jobs.forget_checkpoint(database, one)
    assert jobs.ended_with_checkpoint(database) == []
    assert row(database, job_id).checkpoint_key is None
    assert row(database, running).checkpoint_key == "state"


def test_a_job_that_a_machine_could_not_run_is_run_by_another(
    database: Database,
) -> None:
    job_id = submit(database)
    beat(database, "w1")
    jobs.send_away(database, claim(database, "w1"))
    found = row(database, job_id)
    assert (found.state, found.faults, found.losses) == ("queued", 1, 0)
    # Alone, it may try again.
    held = claim(database, "w1")
    assert held.faults == 1
    jobs.send_away(database, held)
    beat(database, "w2", refuses="broken")
    jobs.send_away(database, claim(database, "w1"))
    beat(database, "w2")
    assert jobs.claim(database, "w1", lease_seconds=30) is None
    assert claim(database, "w2").faults == 3


def test_a_job_that_is_sent_away_does_what_was_asked_of_it(database: Database) -> None:
    job_id = submit(database)
    held = claim(database)
    jobs.request(database, job_id, "pause")
    jobs.send_away(database, held)
    assert row(database, job_id).state == "paused"


def test_a_claim_passes_by_what_does_not_fit(database: Database) -> None:
    large, small = submit(database), submit(database)
    change(database, large, least_bytes=2_000)
    change(database, small, least_bytes=1_000)
    assert jobs.claim(database, "w1", lease_seconds=30, budget=999) is None
    held = jobs.claim(database, "w1", lease_seconds=30, budget=1_999)
    assert held is not None
    assert held.job_id == small
    # A worker that knows no budget may hold anything.
    assert claim(database).job_id == large


def test_a_job_may_be_handed_back_any_number_of_times(database: Database) -> None:
    job_id = submit(database)
    for _ in range(MAX_LOSSES + 2):
        jobs.hand_back(database, claim(database))
    assert row(database, job_id).state == "queued"


@pytest.mark.parametrize("state", ENDED)
def test_a_job_expires_some_days_after_its_end(
    database: Database, state: JobState
) -> None:
    job_id = end(database, state)
    grow_old(database, days=6.9)
    assert jobs.expire(database, retention_days=7) == 0
    grow_old(database, days=0.2)
    assert jobs.expire(database, retention_days=7) == 1
    assert count(database, Job) == 0
    with database.read() as connection:
        assert connection.scalar(select(Trash.prefix)) == job_prefix(job_id)


def test_a_job_that_has_not_ended_never_expires(database: Database) -> None:
    submit(database)
    submit(database)
    claim(database)
    with database.write() as connection:
        connection.execute(update(Job).values(created_at=0.0, started_at=0.0))
    assert jobs.expire(database, retention_days=0.001) == 0


def test_jobs_that_expire_while_people_delete_them_are_deleted_once(
    database: Database,
) -> None:
    ids = [submit(database) for _ in range(20)]
    for job_id in ids:
        jobs.request(database, job_id, "cancel")
    grow_old(database, days=10)

    def forget_all() -> None:
        for job_id in ids:
            try:
                jobs.forget(database, job_id)
            except NotFound:
                continue

    def expire_all() -> None:
        for _ in range(5):
            jobs.expire(database, retention_days=1)

    assert together(forget_all, expire_all, expire_all) == []
    assert (count(database, Job), count(database, Trash)) == (0, 20)
