import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import tifffile
import torch
from PIL import Image
from sqlalchemy import delete, select, update

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import (
    PREVIEW_SIZE,
    original_key,
    rendition_key,
    states_prefix,
)
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import DiskFull, MachineError, NumericalError
from stylequeue_shared.estimates import planned_bytes
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.models import Base, Job, Snapshot
from stylequeue_shared.plans import Plan
from stylequeue_shared.settings import Settings
from stylequeue_shared.store_folder import FolderStore
from stylequeue_worker import attempt, checkpoints, watchdog
from stylequeue_worker import runner as runner_module
from stylequeue_worker.draining import Draining
from stylequeue_worker.engine.state import State
from stylequeue_worker.engine.transfer import Step
from stylequeue_worker.faults import Faults
from stylequeue_worker.runner import Runner
from tests.shared.outages import Flaky
from tests.shared.pictures import saved
from tests.worker.submitting import submit, submit_bytes

LEASE = 2.0


class Stood:
    """Where the fake engine stands: a picture, and a number to each step."""

    def __init__(self, number: int, picture: torch.Tensor) -> None:
        tensors = {f"pair-{one}": torch.tensor(one) for one in range(number)}
        self._state = State(number, {"picture": picture, **tensors}, PLAN)

    def state(self) -> State:
        return self._state


PLAN = Plan(64, 1, half=False, history=5)


class Fake:
    """An engine that paints grey, and does as it is told at chosen steps."""

    made_with: Mapping[str, Any] = {"stylequeue": "1.2", "weights": "abc", "threads": 2}
    budget: int | None = 10**9
    on_gpu = False

    def __init__(self) -> None:
        self.at: dict[int, Callable[[], object]] = {}
        self.step_seconds = 0.0
        self.painted: list[int] = []
        self.recovered = 0

    def paint(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        settings: JobSettings,
        budget: int | None = None,
        state: State | None = None,
        at_border: Callable[[], None] = lambda: None,
    ) -> Iterator[Step]:
        for number in range(state.step + 1 if state else 1, settings.steps + 1):
            self.at.get(number, lambda: None)()
            until = time.monotonic() + self.step_seconds
            at_border()
            while time.monotonic() < until:
                time.sleep(min(0.01, self.step_seconds))
                at_border()
            self.painted.append(number)
            picture = torch.full((1, 3, 48, 64), 0.5)
            yield Step(
                *(number, 10.0 / number, 1.0 / number, picture),
                stop_reason="completed" if number == settings.steps else None,
                run=Stood(number, picture),
            )

    def recover(self) -> None:
        self.recovered += 1


class Refusing(FolderStore):
    """A real store that refuses some writes, and may be away when it is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refuses: Callable[[str], bool] = lambda key: False
        self.is_away: Callable[[str], bool] = lambda key: False
        self.pause = 0.0

    def open(self, key: str) -> BinaryIO:
        if self.is_away(key):
            raise MachineError("the store does not answer")
        return super().open(key)

    def put(self, key: str, data: bytes | Path) -> None:
        time.sleep(self.pause)
        if self.refuses(key):
            raise DiskFull("there is no room left for pictures")
        super().put(key, data)


class Bench:
    """A runner on real SQLite and a real folder, with the fake engine."""

    def __init__(self, home: Path) -> None:
        self.database = Flaky(f"sqlite:///{home / 'test.db'}")
        Base.metadata.create_all(self.database.engine)
        self.store = Refusing(home / "store")
        self.engine = Fake()
        self.draining, self.faults = Draining(), Faults()
        self.home = home
        self.runner = self._start()

    def _start(self) -> Runner:
        return Runner(
            Settings(home=self.home, lease_seconds=LEASE),
            self.database,
            self.store,
            self.engine,
            "the-worker",
            self.draining,
            self.faults,
        )

    def submit(self, **settings: Any) -> str:
        return submit(self.database, self.store, **settings)

    def start_again(self) -> None:
        """Have a new child in the place of one that ended."""
        self.draining = Draining()
        self.engine.at.clear()
        self.runner = self._start()

    def run_until_it_fails(self, job_id: str) -> None:
        """Run a job as often as one may fail by the machine's fault."""
        for number in range(jobs.MAX_FAULTS):
            row = self.row(job_id)
            assert (row.state, row.attempt) == ("queued", number)
            assert self.runner.run_next()

    def states(self, job_id: str) -> Iterator[str]:
        return self.store.keys(states_prefix(job_id))

    def row(self, job_id: str) -> Any:
        with self.database.read() as connection:
            return connection.execute(
                select(Job.__table__).where(Job.id == job_id)
            ).one()

    def snapshots(self, job_id: str) -> list[Any]:
        with self.database.read() as connection:
            return list(
                connection.execute(
                    select(Snapshot.__table__)
                    .where(Snapshot.job_id == job_id)
                    .order_by(Snapshot.step)
                )
            )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.database.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "STORE_PAUSES", (0.05, 0.05))
    monkeypatch.setattr(attempt, "LAND_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(attempt, "LEAVE_SECONDS", 0.3)


def test_nothing_waiting_is_nothing_done(bench: Bench) -> None:
    assert not bench.runner.run_next()


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


def test_the_picture_says_how_it_was_made(bench: Bench) -> None:
    job = bench.submit(seed=11)
    bench.runner.run_next()
    png = Image.open(io.BytesIO(bench.store.get(bench.row(job).result_key)))
    text = {str(name): str(value) for name, value in png.info.items()}
    assert json.loads(text["settings"]) == bench.row(job).settings
    assert text["seed"] == "11"
    assert text["weights"] == "abc"
    assert text["Software"] == "StyleQueue 1.2"


def clear_picture() -> bytes:
    return saved(Image.new("RGBA", (64, 48), (0, 0, 0, 51)), "PNG")


def test_the_content_s_alpha_is_kept_on_request(bench: Bench) -> None:
    uploads = clear_picture(), clear_picture()
    seen = []
    paint = bench.engine.paint

    def look(
        content: Image.Image, styles: Sequence[Image.Image], *others: Any, **more: Any
    ) -> Iterator[Step]:
        seen.append((content, *styles))
        return paint(content, styles, *others, **more)

    bench.engine.paint = look  # type: ignore[method-assign]
    job = submit_bytes(bench.database, bench.store, *uploads, keep_alpha=True)
    bench.runner.run_next()
    assert [picture.mode for picture in seen[0]] == ["RGBA", "RGB"]
    for row in (bench.row(job).result_key, bench.snapshots(job)[0].key):
        with Image.open(io.BytesIO(bench.store.get(row))) as picture:
            assert picture.getpixel((5, 5)) == (128, 128, 128, 51)
        # A preview has none: grey at a fifth over white.
        with Image.open(io.BytesIO(bench.store.get(rendition_key(row, 512)))) as small:
            assert small.getpixel((5, 5)) == (230, 230, 230)
    plain = submit_bytes(bench.database, bench.store, *uploads)
    bench.runner.run_next()
    with Image.open(io.BytesIO(bench.store.get(bench.row(plain).result_key))) as flat:
        assert flat.mode == "RGB"


def test_the_last_snapshot_is_the_result_and_no_second_file(bench: Bench) -> None:
    job = bench.submit(steps=4, snapshot_every=2)
    bench.runner.run_next()
    assert [shot.step for shot in bench.snapshots(job)] == [2, 4]
    assert bench.snapshots(job)[-1].key == bench.row(job).result_key
    files = [key for key in bench.store.keys(f"jobs/{job}/") if key.endswith(".png")]
    assert len(files) == 2


@pytest.mark.parametrize(
    ("name", "suffix", "kind"), [("png16", ".png", "PNG"), ("tiff16", ".tif", "TIFF")]
)
def test_a_result_of_sixteen_bits_stands_beside_snapshots_and_preview_of_eight(
    bench: Bench, name: str, suffix: str, kind: str
) -> None:
    job = bench.submit(steps=4, snapshot_every=2, result_format=name)
    bench.runner.run_next()
    row, snapshots = bench.row(job), bench.snapshots(job)
    assert (row.state, row.result_width, row.result_height) == ("succeeded", 64, 48)
    assert row.result_key.endswith(f"result{suffix}")
    data = bench.store.get(row.result_key)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == kind
    if kind == "PNG":
        assert data[24] == 16  # the depth in its header
    else:
        assert tifffile.imread(io.BytesIO(data)).dtype == "uint16"
    assert bench.store.exists(rendition_key(row.result_key, PREVIEW_SIZE))
    # The result is no snapshot here: the last one has a file of its own.
    assert [shot.step for shot in snapshots] == [2, 4]
    for shot in snapshots:
        assert bench.store.get(shot.key)[24] == 8
        assert bench.store.exists(rendition_key(shot.key, PREVIEW_SIZE))


def test_what_is_left_of_a_job_that_fails_has_the_format_it_asked_for(
    bench: Bench,
) -> None:
    def explode() -> None:
        raise NumericalError("step 3: the style loss is not finite (nan)")

    job = bench.submit(steps=4, snapshot_every=4, result_format="tiff16")
    bench.engine.at[3] = explode
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.result_partial) == ("failed", True)
    with Image.open(io.BytesIO(bench.store.get(row.result_key))) as picture:
        assert picture.format == "TIFF"


def test_a_file_is_there_before_a_row_names_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    add_snapshot = jobs.add_snapshot

    def look(db: Database, held: jobs.Claim, key: str, **more: Any) -> None:
        seen.append(bench.store.exists(key))
        seen.append(bench.store.exists(rendition_key(key, 512)))
        add_snapshot(db, held, key, **more)

    monkeypatch.setattr(jobs, "add_snapshot", look)
    bench.submit(steps=5, snapshot_every=2)
    bench.runner.run_next()
    assert seen == [True] * 4


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
    jobs.resume(bench.database, job)
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


def test_a_job_is_cancelled_while_the_store_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit(steps=3)

    def is_away(key: str) -> bool:
        jobs.request(bench.database, job, "cancel")
        return True

    monkeypatch.setattr(attempt, "STORE_PAUSES", (30.0,))
    bench.store.is_away = is_away
    begun = time.monotonic()
    bench.runner.run_next()
    assert bench.row(job).state == "cancelled"
    assert time.monotonic() - begun < 20


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


def give_away(bench: Bench, job: str) -> None:
    """Do as the housekeeper does after a lease ran out, and claim it elsewhere."""
    with bench.database.write() as connection:
        connection.execute(
            update(Job).where(Job.id == job).values(lease_until=now() - 1)
        )
        connection.execute(
            update(Job)
            .where(Job.id == job)
            .values(attempt=2, worker="another", lease_until=now() + 60)
        )


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


def test_an_error_of_ours_is_told_as_it_is(bench: Bench) -> None:
    def explode() -> None:
        raise NumericalError("step 2: the style loss is not finite (nan)")

    job = bench.submit()
    bench.engine.at[2] = explode
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.error_code, row.error_fault) == ("not_finite", "ours")
    assert row.error_message == "step 2: the style loss is not finite (nan)"


def test_a_job_that_fails_on_the_way_shows_its_newest_picture(bench: Bench) -> None:
    def explode() -> None:
        raise NumericalError("step 3: the style loss is not finite (nan)")

    job = bench.submit(steps=4, snapshot_every=4)
    bench.engine.at[3] = explode
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.result_partial) == ("failed", True)
    assert (row.result_width, row.result_height) == (64, 48)
    with Image.open(io.BytesIO(bench.store.get(row.result_key))) as picture:
        assert picture.size == (64, 48)
    assert bench.store.exists(rendition_key(row.result_key, PREVIEW_SIZE))


def test_a_job_that_fails_before_its_first_step_shows_none(bench: Bench) -> None:
    def explode() -> None:
        raise NumericalError("step 1: the style loss is not finite (nan)")

    job = bench.submit()
    bench.engine.at[1] = explode
    bench.runner.run_next()
    assert bench.row(job).state == "failed"
    assert bench.row(job).result_key is None


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


def test_a_database_that_is_away_leaves_the_worker_alive(bench: Bench) -> None:
    bench.submit()
    bench.database.down = True
    assert not bench.runner.run_next()
    bench.database.down = False
    assert bench.runner.run_next()


def test_a_snapshot_that_cannot_be_stored_is_dropped(bench: Bench) -> None:
    job = bench.submit(steps=5, snapshot_every=2)
    bench.store.refuses = lambda key: "snapshot" in key
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
    assert bench.snapshots(job) == []


def test_on_a_gpu_steps_go_on_while_a_snapshot_is_stored(bench: Bench) -> None:
    stored = threading.Event()

    def hold_up(key: str) -> bool:
        if "snapshot" in key:
            assert stored.wait(10)
        return False

    bench.engine.on_gpu = True
    bench.store.refuses = hold_up
    # Before the second snapshot, which waits for the first.
    bench.engine.at[4] = stored.set
    job = bench.submit(steps=7, snapshot_every=2)
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
    assert [shot.step for shot in bench.snapshots(job)] == [2, 4, 6]


def test_on_a_gpu_a_snapshot_of_a_lost_job_ends_the_attempt(bench: Bench) -> None:
    def lose(key: str) -> bool:
        if "snapshot" in key:
            with bench.database.write() as connection:
                connection.execute(update(Job).values(attempt=99))
        return False

    bench.engine.on_gpu = True
    bench.store.refuses = lose
    bench.engine.step_seconds = 0.05
    job = bench.submit(steps=500, snapshot_every=5)
    bench.runner.run_next()
    assert bench.row(job).state == "running"
    assert bench.snapshots(job) == []
    assert len(bench.engine.painted) < 50


@pytest.mark.parametrize("of", ["pictures", "states"])
def test_a_store_that_is_away_for_a_moment_costs_a_job_nothing(
    bench: Bench, of: str
) -> None:
    job = bench.submit(steps=6, snapshot_every=6)
    bench.engine.at[3] = bench.draining.start
    bench.runner.run_next()
    assert bench.row(job).checkpoint_step == 2
    bench.start_again()
    away = iter([True, True])
    bench.store.is_away = lambda key: of in key and next(away, False)
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.faults) == ("succeeded", 0)
    assert next(away, "asked") == "asked"
    assert bench.engine.painted == [1, 2, 3, 4, 5, 6]


def test_a_worker_that_shuts_down_while_the_store_is_away_hands_its_job_back(
    bench: Bench,
) -> None:
    job = bench.submit()

    def is_away(key: str) -> bool:
        bench.draining.start()
        return True

    bench.store.is_away = is_away
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.worker, row.faults) == ("queued", None, 0)


def test_a_store_that_stays_away_is_the_machines_fault(bench: Bench) -> None:
    job = bench.submit()
    bench.store.is_away = lambda key: True
    bench.run_until_it_fails(job)
    row = bench.row(job)
    assert (row.state, row.error_fault) == ("failed", "machine")


def test_a_result_that_cannot_be_stored_fails_the_job(bench: Bench) -> None:
    job = bench.submit()
    bench.store.refuses = lambda key: "result" in key
    bench.run_until_it_fails(job)
    row = bench.row(job)
    assert (row.state, row.error_code, row.error_fault) == (
        "failed",
        "disk_full",
        "machine",
    )
    assert row.result_key is None


def test_a_result_is_stored_at_the_second_try(bench: Bench) -> None:
    job = bench.submit()
    refusals = iter([True])
    bench.store.refuses = lambda key: "result" in key and next(refusals, False)
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"


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
