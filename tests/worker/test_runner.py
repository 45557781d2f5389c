import threading
import time

import pytest
import torch
from sqlalchemy import delete, update

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.errors import MachineError
from stylequeue_shared.estimates import planned_bytes
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.models import Job
from stylequeue_shared.settings import Settings
from stylequeue_worker import runner as runner_module
from stylequeue_worker import watchdog
from stylequeue_worker.draining import Draining
from stylequeue_worker.faults import Faults
from stylequeue_worker.runner import Runner
from tests.worker.submitting import submit_bytes
from tests.worker.workbench import LEASE, Bench, Fake


def test_nothing_waiting_is_nothing_done(bench: Bench) -> None:
    assert not bench.runner.run_next()


def test_a_worker_whose_steps_have_stopped_lets_its_lease_run_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(watchdog, "LEAST_SECONDS", 0.5)
    monkeypatch.setattr(runner_module, "end_process", ended.set)
    job = bench.submit(steps=3)
    until: list[float] = []

    def hang() -> None:
        assert ended.wait(20)
        until.append(bench.row(job).lease_until)
        time.sleep(LEASE)
        until.append(bench.row(job).lease_until)

    bench.engine.at[2] = hang
    bench.runner.run_next()
    assert until[0] == until[1]


def test_a_child_that_hangs_tells_the_next_one_why_it_ended_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    told: list[MachineError | None] = []
    monkeypatch.setattr(watchdog, "LEAST_SECONDS", 0.5)
    monkeypatch.setattr(runner_module, "end_process", ended.set)
    bench.submit(steps=3)

    def hang() -> None:
        assert ended.wait(20)
        told.append(bench.faults.bury())

    bench.engine.at[2] = hang
    bench.runner.run_next()
    assert [one.code for one in told if one] == ["device_failed"]


def test_a_process_whose_device_failed_is_of_no_more_use_whoever_has_the_job(
    bench: Bench,
) -> None:
    def fail() -> None:
        with bench.database.write() as connection:
            connection.execute(update(Job).values(attempt=99))
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    bench.submit()
    bench.engine.at[1] = fail
    assert bench.runner.run_next()
    assert bench.runner.is_broken
    assert bench.faults.in_a_row == 1


def test_a_store_that_is_away_says_nothing_against_the_worker(bench: Bench) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    bench.submit()
    bench.engine.at[1] = fail
    bench.runner.run_next()
    for _ in range(jobs.MAX_FAULTS):
        broken = submit_bytes(bench.database, bench.store, b"a", b"b")
        bench.store.delete(original_key(bench.row(broken).content_sha))
        bench.runner.run_next()
    assert bench.faults.in_a_row == 1
    assert bench.runner.refuses is None


def test_failures_are_counted_over_all_children_of_a_worker(bench: Bench) -> None:
    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    bench.engine.at[1] = fail
    for _ in range(jobs.MAX_FAULTS):
        assert bench.runner.refuses is None
        with bench.database.write() as connection:
            connection.execute(delete(Job).where(Job.state == "queued"))
        bench.submit()
        assert bench.runner.run_next()
        bench.start_again()
        bench.engine.at[1] = fail
    assert bench.runner.refuses == "3 jobs in a row failed here"


def test_a_job_that_was_lost_counts_neither_as_failed_nor_as_gone_well(
    bench: Bench,
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def lose() -> None:
        with bench.database.write() as connection:
            connection.execute(update(Job).values(attempt=Job.attempt + 1))
        time.sleep(1.5)

    bench.submit()
    bench.engine.at[1] = fail
    bench.runner.run_next()
    bench.engine.at[1] = lose
    bench.runner.run_next()
    assert bench.faults.in_a_row == 1
    # Nor does a child that is killed while nothing runs leave a reason behind.
    bench.faults.note_hanging()
    assert bench.faults.bury() is None


def test_a_worker_that_fails_three_jobs_in_a_row_takes_no_more(bench: Bench) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for number in range(2 * jobs.MAX_FAULTS):
        # Each a job of its own: what failed here is kept from coming back.
        with bench.database.write() as connection:
            connection.execute(delete(Job).where(Job.state == "queued"))
        bench.submit(steps=2)
        # One that goes well in between starts the count anew.
        good = number == jobs.MAX_FAULTS - 1
        bench.engine.at = {} if good else {1: fail}
        assert bench.runner.refuses is None
        assert bench.runner.run_next()
    assert bench.runner.refuses == "3 jobs in a row failed here"
    bench.engine.at.clear()
    bench.submit()
    assert not bench.runner.run_next()


def test_a_drained_worker_finishes_its_job_and_takes_no_more(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    bench.engine.at[2] = lambda: bench.runner.drain(hand_back=False)
    assert bench.runner.run_next()
    assert not bench.runner.run_next()
    assert bench.row(first).state == "succeeded"
    assert bench.row(second).state == "queued"
    assert bench.runner.refuses == "an operator drained it"


def test_a_drained_worker_hands_its_job_back_if_told_so(bench: Bench) -> None:
    job = bench.submit(steps=6)
    bench.engine.at[3] = lambda: bench.runner.drain(hand_back=True)
    assert bench.runner.run_next()
    assert not bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.checkpoint_step, row.losses) == ("queued", 2, 0)


def test_a_job_that_needs_more_memory_than_there_is_is_left_to_others(
    bench: Bench,
) -> None:
    large, small = bench.submit(), bench.submit(seed=8)
    with bench.database.write() as connection:
        needed = bench.engine.budget
        assert needed is not None
        connection.execute(update(Job).values(least_bytes=needed))
        here = update(Job).where(Job.id == large)
        connection.execute(here.values(least_bytes=needed + 1))
    assert bench.runner.run_next()
    assert bench.row(small).state == "succeeded"
    assert not bench.runner.run_next()
    assert bench.row(large).state == "queued"


def test_a_job_that_has_run_takes_the_memory_of_its_plan(bench: Bench) -> None:
    job = bench.submit(steps=3)
    bench.runner.run_next()
    row = bench.row(job)
    settings = JobSettings.model_validate(row.settings)
    budget = bench.engine.budget
    assert row.least_bytes == planned_bytes(settings, (64, 48), budget)


def test_a_database_that_is_away_leaves_the_worker_alive(bench: Bench) -> None:
    bench.submit()
    bench.database.down = True
    assert not bench.runner.run_next()
    bench.database.down = False
    assert bench.runner.run_next()


def test_a_returned_job_goes_on_under_its_next_attempt(bench: Bench) -> None:
    job = bench.submit(steps=6, snapshot_every=2)
    bench.engine.at[3] = bench.draining.start
    bench.runner.run_next()
    bench.draining = Draining()
    other = Runner(
        Settings(lease_seconds=LEASE),
        bench.database,
        bench.store,
        Fake(),
        "another",
        bench.draining,
        Faults(),
    )
    assert other.run_next()
    row = bench.row(job)
    assert (row.state, row.attempt) == ("succeeded", 2)
    shots = [(shot.step, shot.key.split("/")[2]) for shot in bench.snapshots(job)]
    assert shots == [(2, "1"), (4, "2"), (6, "2")]
