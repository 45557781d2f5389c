from collections.abc import Callable
from dataclasses import replace

import pytest

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import result_key, snapshot_key
from stylequeue_shared.database import Database
from stylequeue_shared.errors import LeaseLost, MachineError, NumericalError
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.jobs import Claim, Progress
from stylequeue_shared.models import Job, JobState
from tests.shared.jobs.given import ENDED, MADE, count, end, snapshots, time
from tests.shared.submitting import HALF_WAY, claim, row, run_out, submit


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
    settings = JobSettings.model_validate(found.settings)
    return Claim(job_id, found.attempt, settings, found.content_sha, ())


@pytest.mark.parametrize("write", WRITES)
def test_a_deleted_job_is_a_lost_one(database: Database, write: str) -> None:
    job_id = end(database, JobState.SUCCEEDED)
    held = claim_of(database, job_id)
    jobs.forget(database, job_id)
    with pytest.raises(LeaseLost):
        WRITES[write](database, held)
    assert count(database, Job) == 0
