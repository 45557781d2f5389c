import io
import threading
import time
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import (
    rendition_key,
    states_prefix,
)
from stylequeue_shared.errors import NumericalError
from stylequeue_worker import attempt, checkpoints
from stylequeue_worker import runner as runner_module
from tests.worker.submitting import submit_bytes
from tests.worker.workbench import LEASE, Bench, give_away


def test_a_job_runs_to_its_picture(bench: Bench) -> None:
    job = bench.submit(steps=5, snapshot_every=2)
    assert bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.stop_reason, row.step) == ("succeeded", "completed", 5)
    assert (row.style_loss, row.content_loss, row.eta_seconds) == (2.0, 0.2, 0.0)
    assert row.steps_per_second > 0
    assert (row.result_width, row.result_height) == (64, 48)
    assert row.made_with == {**bench.engine.made_with, "memory_bytes": 10**9}
    assert [shot.step for shot in bench.snapshots(job)] == [2, 4]
    for key in (row.result_key, *(shot.key for shot in bench.snapshots(job))):
        picture = Image.open(io.BytesIO(bench.store.get(key)))
        assert (picture.format, picture.size) == ("PNG", (64, 48))
        preview = Image.open(io.BytesIO(bench.store.get(rendition_key(key, 512))))
        assert preview.format == "JPEG"


def test_progress_is_written_while_it_runs(bench: Bench) -> None:
    job = bench.submit(steps=40, snapshot_every=40)
    bench.engine.step_seconds = 0.05
    seen = []
    bench.engine.at[30] = lambda: seen.append(bench.row(job))
    bench.runner.run_next()
    # Written a quarter of a second after step 24, at the latest.
    assert 15 <= seen[0].step <= 29
    assert seen[0].steps_per_second == pytest.approx(20, rel=0.5)
    assert seen[0].eta_seconds == pytest.approx(
        (40 - seen[0].step) / seen[0].steps_per_second
    )
    # The claim, the description, the end, and four times a second.
    assert bench.row(job).version <= 5 + 4 * 2.5


def test_pauses_for_saving_do_not_count_as_optimisation(bench: Bench) -> None:
    job = bench.submit(steps=6, snapshot_every=1)
    bench.engine.step_seconds = 0.02
    bench.store.pause = 0.1
    bench.runner.run_next()
    assert bench.row(job).steps_per_second == pytest.approx(50, rel=0.4)


def test_a_request_to_cancel_is_seen_within_a_second(bench: Bench) -> None:
    job = bench.submit(steps=1000, snapshot_every=1000)
    bench.engine.step_seconds = 0.02
    bench.engine.at[5] = lambda: jobs.request(bench.database, job, "cancel")
    begun = time.monotonic()
    bench.runner.run_next()
    assert bench.row(job).state == "cancelled"
    assert time.monotonic() - begun < 5
    assert len(bench.engine.painted) < 500


def test_a_request_is_heard_during_a_long_step(bench: Bench) -> None:
    job = bench.submit(steps=3, snapshot_every=3)
    bench.engine.at[1] = lambda: jobs.request(bench.database, job, "cancel")
    bench.engine.step_seconds = 30
    begun = time.monotonic()
    bench.runner.run_next()
    assert bench.row(job).state == "cancelled"
    assert bench.engine.painted == []
    assert time.monotonic() - begun < 10


def test_a_job_that_is_finished_early_has_its_newest_picture(bench: Bench) -> None:
    job = bench.submit(steps=1000, snapshot_every=10)
    bench.engine.step_seconds = 0.02
    bench.engine.at[5] = lambda: jobs.request(bench.database, job, "finish")
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.stop_reason) == ("succeeded", "finished_early")
    assert row.result_partial is False
    assert row.step == bench.engine.painted[-1] < 500
    assert bench.store.exists(row.result_key)


def test_a_job_to_be_finished_gets_one_picture_at_least(bench: Bench) -> None:
    job = bench.submit(steps=1000, snapshot_every=100)
    bench.engine.at[1] = lambda: jobs.request(bench.database, job, "finish")
    bench.engine.step_seconds = 1.5
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.stop_reason, row.step) == ("succeeded", "finished_early", 1)


def test_a_paused_job_goes_on_from_where_it_was(bench: Bench) -> None:
    job = bench.submit(steps=1000, snapshot_every=10)
    bench.engine.step_seconds = 0.02
    bench.engine.at[25] = lambda: jobs.request(bench.database, job, "pause")
    bench.runner.run_next()
    row = bench.row(job)
    stopped = bench.engine.painted[-1]
    assert (row.state, row.requested, row.worker) == ("paused", None, None)
    assert row.checkpoint_step == stopped
    assert not bench.runner.run_next()
    jobs.resume(bench.database, job, max_waiting=1000)
    bench.engine.step_seconds = 0
    bench.engine.at = {stopped + 1: lambda: seen.append(bench.row(job).step)}
    seen: list[int] = []
    assert bench.runner.run_next()
    assert seen == [stopped]
    assert bench.engine.painted == list(range(1, 1001))
    row = bench.row(job)
    assert (row.state, row.attempt, row.losses) == ("succeeded", 2, 0)
    assert [shot.step for shot in bench.snapshots(job)] == list(range(10, 1001, 10))


def test_a_worker_that_is_told_to_stop_leaves_a_checkpoint(bench: Bench) -> None:
    job = bench.submit(steps=8, snapshot_every=3)
    bench.engine.at[5] = bench.draining.start
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.checkpoint_step, row.losses) == ("queued", 4, 0)
    assert [shot.step for shot in bench.snapshots(job)] == [3]


def test_a_checkpoint_that_takes_too_long_is_not_written_by_a_worker_that_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "CHECKPOINT_SECONDS", 0)
    job = bench.submit(steps=8)
    bench.engine.at[5] = bench.draining.start
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.checkpoint_step) == ("queued", None)


def test_checkpoints_are_written_on_the_way_and_only_what_is_new(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    job = bench.submit(steps=6, snapshot_every=6)
    seen = []
    bench.engine.at = {
        number: lambda: seen.append(
            (bench.row(job).checkpoint_step, len(list(bench.states(job))))
        )
        for number in range(2, 7)
    }
    bench.runner.run_next()
    # One record and one picture each; those before are gone.
    assert seen == [(number, 2) for number in range(1, 6)]


def test_a_checkpoint_that_cannot_be_stored_costs_only_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    bench.store.refuses = lambda key: "states" in key and len(bench.engine.painted) < 4
    job = bench.submit(steps=6, snapshot_every=6)
    seen = []
    bench.engine.at[6] = lambda: seen.append(bench.row(job).checkpoint_step)
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
    assert seen == [5]


@pytest.mark.parametrize("damage", ["cut", "gone", "nonsense"])
def test_a_job_whose_checkpoint_cannot_be_used_starts_again(
    bench: Bench, damage: str
) -> None:
    job = bench.submit(steps=6, snapshot_every=2)
    bench.engine.at[5] = bench.draining.start
    bench.runner.run_next()
    key = bench.row(job).checkpoint_key
    if damage == "gone":
        bench.store.delete_prefix(states_prefix(job))
    else:
        data = bench.store.get(key)
        bench.store.put(key, data[:40] if damage == "cut" else b"no state at all")
    bench.start_again()
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
    assert bench.engine.painted == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublas"),
    ],
)
def test_a_device_that_fails_is_the_machines_fault_and_needs_a_new_process(
    bench: Bench, error: Exception
) -> None:
    def fail() -> None:
        raise error

    def refuse() -> None:
        raise AssertionError("a broken device can do nothing more")

    job = bench.submit()
    bench.engine.at[2] = fail
    bench.engine.recover = refuse  # type: ignore[method-assign]
    assert bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.faults, row.avoids) == ("queued", 1, "the-worker")
    assert bench.runner.is_broken


def test_a_worker_that_shuts_down_hands_its_job_back(bench: Bench) -> None:
    job = bench.submit(steps=100, snapshot_every=100)
    bench.engine.at[3] = bench.draining.start
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.worker, row.attempt) == ("queued", None, 1)
    assert bench.engine.painted == [1, 2]
    assert not bench.runner.run_next()
    assert bench.row(job).state == "queued"


def test_a_job_is_handed_back_in_the_middle_of_a_step_that_takes_too_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "LET_GO_SECONDS", 0.5)
    monkeypatch.setattr(attempt, "LEAVE_SECONDS", 60)
    states = []

    def stall() -> None:
        bench.draining.start()
        deadline = time.monotonic() + 30
        while bench.row(job).state == "running" and time.monotonic() < deadline:
            time.sleep(0.02)
        states.append(bench.row(job).state)

    job = bench.submit(steps=6, snapshot_every=2)
    bench.engine.at[3] = stall
    assert bench.runner.run_next()
    row = bench.row(job)
    assert states == ["queued"]
    assert (row.state, row.attempt, row.losses) == ("queued", 1, 0)


def test_a_step_longer_than_the_lease_does_not_lose_it(bench: Bench) -> None:
    job = bench.submit(steps=2, snapshot_every=2)
    lost: list[str] = []

    def take_long() -> None:
        for _ in range(8):
            time.sleep(LEASE / 4)
            lost.extend(jobs.return_lost(bench.database))

    bench.engine.at[1] = take_long
    bench.runner.run_next()
    assert lost == []
    assert bench.row(job).state == "succeeded"


@pytest.mark.parametrize(
    ("steps", "every", "shots"),
    [
        pytest.param(100, 100, [], id="renewing"),
        pytest.param(100, 2, [2], id="saving a snapshot"),
        pytest.param(4, 4, [], id="ending the job"),
    ],
)
def test_a_worker_that_lost_its_lease_writes_nothing_more(
    bench: Bench, steps: int, every: int, shots: list[int]
) -> None:
    """However it comes to learn of it."""
    job = bench.submit(steps=steps, snapshot_every=every)
    before = []
    bench.engine.step_seconds = 0.05

    def lose() -> None:
        give_away(bench, job)
        before.append(bench.row(job))

    bench.engine.at[3] = lose
    assert bench.runner.run_next()
    assert bench.row(job) == before[0]
    assert bench.row(job).worker == "another"
    assert [shot.step for shot in bench.snapshots(job)] == shots
    assert len(bench.engine.painted) < 50


def test_a_cancelled_job_is_not_put_back_by_a_worker_that_shuts_down(
    bench: Bench,
) -> None:
    job = bench.submit(steps=100, snapshot_every=100)

    def both() -> None:
        jobs.request(bench.database, job, "cancel")
        bench.draining.start()

    bench.engine.at[3] = both
    bench.runner.run_next()
    assert bench.row(job).state == "cancelled"


def test_an_unforeseen_error_tells_nothing_of_the_inside(bench: Bench) -> None:
    def break_down() -> None:
        raise KeyError("/secret/folder redis://:hunter2@host")

    first, second = bench.submit(), bench.submit()
    bench.engine.at[2] = break_down
    assert bench.runner.run_next()
    row = bench.row(first)
    assert (row.state, row.error_code, row.error_fault) == (
        "failed",
        "internal",
        "ours",
    )
    assert "secret" not in row.error_message
    assert "hunter2" not in row.error_message
    assert bench.engine.recovered == 1
    # And the next job is served as if nothing had been.
    bench.engine.at.clear()
    assert bench.runner.run_next()
    assert bench.row(second).state == "succeeded"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_too_little_memory_is_the_machines_fault(
    bench: Bench, error: Exception
) -> None:
    def exhaust() -> None:
        raise error

    job = bench.submit()
    bench.engine.at[1] = exhaust
    bench.run_until_it_fails(job)
    row = bench.row(job)
    assert (row.state, row.error_fault) == ("failed", "machine")
    assert "ran out of memory; a smaller image_size" in row.error_message


def test_a_job_that_failed_by_the_machines_fault_goes_on_from_its_checkpoint(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)

    def fail_once() -> None:
        bench.engine.at.clear()
        raise torch.OutOfMemoryError("CUDA out of memory")

    job = bench.submit(steps=6)
    bench.engine.at[5] = fail_once
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.faults, row.error_code) == ("queued", 1, None)
    assert (row.avoids, row.losses, row.result_key) == ("the-worker", 0, None)
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.attempt) == ("succeeded", 2)
    assert bench.engine.painted == [1, 2, 3, 4, 5, 6]


def test_an_error_of_ours_is_told_as_it_is(bench: Bench) -> None:
    def explode() -> None:
        raise NumericalError("step 2: the style loss is not finite (nan)")

    job = bench.submit()
    bench.engine.at[2] = explode
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.error_code, row.error_fault) == ("not_finite", "ours")
    assert row.error_message == "step 2: the style loss is not finite (nan)"


def test_a_picture_that_is_none_is_the_users_fault(bench: Bench) -> None:
    job = submit_bytes(bench.database, bench.store, b"no picture", b"none either")
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.error_code, row.error_fault) == ("invalid_picture", "user")


def test_a_missing_picture_is_not_the_users_fault(bench: Bench) -> None:
    job = bench.submit()
    bench.store.delete_prefix("pictures/")
    bench.run_until_it_fails(job)
    row = bench.row(job)
    assert (row.state, row.error_fault) == ("failed", "machine")
    assert "pictures/" not in row.error_message


def test_an_outage_of_the_database_does_not_stop_the_optimisation(
    bench: Bench,
) -> None:
    job = bench.submit(steps=30, snapshot_every=10)
    bench.engine.step_seconds = 0.05

    def set_down(down: bool) -> Callable[[], None]:
        return lambda: setattr(bench.database, "down", down)

    bench.engine.at = {5: set_down(True), 15: set_down(False)}
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
    assert bench.engine.painted == list(range(1, 31))
    # The snapshot that fell into it was dropped.
    assert [shot.step for shot in bench.snapshots(job)] == [20, 30]


def test_the_end_of_a_job_is_written_however_long_it_takes(bench: Bench) -> None:
    job = bench.submit(steps=4, snapshot_every=4)

    def come_back() -> None:
        bench.database.down = False

    timer = threading.Timer(1.5, come_back)

    def go_away() -> None:
        bench.database.down = True
        timer.start()

    bench.engine.at[4] = go_away
    bench.runner.run_next()
    timer.join()
    assert bench.row(job).state == "succeeded"


def test_a_worker_shuts_down_though_the_database_is_away(bench: Bench) -> None:
    job = bench.submit(steps=100, snapshot_every=100)

    def end_of_the_world() -> None:
        bench.database.down = True
        bench.draining.start()

    bench.engine.at[3] = end_of_the_world
    begun = time.monotonic()
    assert bench.runner.run_next()
    assert time.monotonic() - begun < 5
    # Left to its lease: the housekeeper brings it back.
    assert bench.row(job).state == "running"
