import pytest
from sqlalchemy import select, update

from stylequeue_shared import jobs, registry
from stylequeue_shared.artefacts import job_prefix, snapshot_key, states_prefix
from stylequeue_shared.database import Database
from stylequeue_shared.errors import NotFound, NumericalError, OutOfMemory
from stylequeue_shared.jobs import MAX_FAULTS, MAX_LOSSES
from stylequeue_shared.models import Job, JobState, Trash
from tests.shared.jobs.given import (
    ENDED,
    MADE,
    beat,
    change,
    count,
    end,
    grow_old,
    save_snapshots,
    snapshots,
    together,
)
from tests.shared.submitting import HALF_WAY, claim, row, run_out, submit


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


def test_what_was_foretold_of_an_attempt_ends_with_it(database: Database) -> None:
    job_id = submit(database, estimate={"seconds": 60})
    for let_go in (jobs.hand_back, jobs.send_away):
        held = claim(database)
        assert row(database, job_id).eta_finish is not None
        let_go(database, held)
        assert row(database, job_id).eta_finish is None
    claim(database)
    run_out(database, job_id)
    jobs.return_lost(database)
    assert row(database, job_id).eta_finish is None


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
    assert jobs.discard_checkpoints(database) == 1
    assert jobs.discard_checkpoints(database) == 0
    with database.read() as connection:
        prefixes = connection.scalars(select(Trash.prefix)).all()
    assert prefixes == [states_prefix(job_id)]
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


def test_a_job_comes_back_to_where_it_failed_when_no_other_could_hold_it(
    database: Database,
) -> None:
    submit(database)
    beat(database, "large")
    held = claim(database, "large")
    jobs.describe(database, held, {}, least_bytes=16)
    jobs.send_away(database, held)
    small = registry.Identity("small", "here", "CPU", None, budget_bytes=8)
    registry.beat(database, small)
    assert jobs.claim(database, "small", lease_seconds=30, budget=8) is None
    assert claim(database, "large").faults == 1


def test_a_worker_that_is_held_up_in_a_transaction_holds_up_no_other_job(
    postgresql_url: str,
) -> None:
    # On SQLite a writer waits for all others, whatever they write.
    database, stopped = Database(postgresql_url), Database(postgresql_url)
    first, second = submit(database), submit(database)
    for job_id in (first, second):
        claim(database)
        run_out(database, job_id)
    with stopped.write() as connection:
        connection.execute(select(Job.id).where(Job.id == first).with_for_update())
        assert jobs.return_lost(database) == [second]
    assert jobs.return_lost(database) == [first]
    for one in (database, stopped):
        one.close()


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
