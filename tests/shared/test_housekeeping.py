import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from stylequeue_shared import jobs, registry
from stylequeue_shared.artefacts import (
    clean_key,
    job_prefix,
    original_key,
    rendition_key,
    result_key,
    snapshot_key,
    state_key,
    states_prefix,
)
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import MachineError
from stylequeue_shared.housekeeping import (
    UNFINISHED_SECONDS,
    UNUSED_SECONDS,
    Housekeeper,
)
from stylequeue_shared.jobs import ALIVE_SECONDS
from stylequeue_shared.models import Job, Lease, Picture, Trash, Worker
from stylequeue_shared.queue import Bell
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store
from stylequeue_shared.store_folder import FolderStore
from tests.shared.outages import Flaky
from tests.shared.submitting import HALF_WAY, claim, picture, row, run_out, submit

LEASE = 30.0
CAT, WAVES = picture("cat").sha256, picture("waves").sha256


class FakeBell(Bell):
    """Counts wake-ups instead of sending them."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.in_queue: int | None = 0
        self.refuses = False

    def ring(self, job_id: str) -> bool:
        self.rung.append(job_id)
        return not self.refuses

    def waiting(self) -> int | None:
        return self.in_queue


class Broken(FolderStore):
    """A real store that deletes nothing."""

    def delete_prefix(self, prefix: str) -> None:
        raise OSError(5, "Input/output error")


@dataclass
class House:
    """A housekeeper and all that it keeps."""

    database: Flaky
    store: Store
    settings: Settings
    bell: FakeBell = field(default_factory=FakeBell)
    time: float = 1000.0

    def keeper(self) -> Housekeeper:
        return Housekeeper(
            self.database, self.store, self.bell, self.settings, lambda: self.time
        )

    def count(self, table: type) -> int:
        with self.database.read() as connection:
            return connection.scalar(select(func.count()).select_from(table)) or 0

    def grow_old(self, seconds: float) -> None:
        """Let that much time pass for the ends of jobs, pictures and workers."""
        with self.database.write() as connection:
            for column in (Job.finished_at, Picture.used_at, Worker.seen_at):
                table = column.class_
                connection.execute(update(table).values({column.key: column - seconds}))

    def lose(self, job_id: str) -> None:
        """Let a worker claim the job and vanish."""
        assert claim(self.database).job_id == job_id
        run_out(self.database, job_id)

    def keep(self, *names: str) -> None:
        """Upload pictures, with renditions, that no job uses yet."""
        jobs.keep_pictures(self.database, [picture(name) for name in names])
        for name in names:
            key = original_key(picture(name).sha256)
            for part in (key, rendition_key(key, 512), clean_key(key)):
                self.store.put(part, name.encode())

    def beat(self, *workers: str) -> None:
        for name in workers:
            registry.beat(self.database, registry.Identity(name, "here", "CPU", None))


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    url = database.engine.url.render_as_string(hide_password=False)
    settings = Settings(home=tmp_path, database=url, lease_seconds=LEASE)
    flaky = Flaky(url)
    yield House(flaky, FolderStore(tmp_path / "store"), settings)
    flaky.close()


def test_states_of_ended_jobs_are_deleted_and_others_stay(house: House) -> None:
    ended, running = submit(house.database), submit(house.database)
    for held in (claim(house.database), claim(house.database)):
        key = state_key(held.job_id, held.attempt, "record-9")
        house.store.put(key, b"a state")
        house.store.put(snapshot_key(held.job_id, 1, 9), b"a picture")
        jobs.save_checkpoint(house.database, held, key, 9)
        if held.job_id == ended:
            jobs.fail(house.database, held, MachineError("no"))
    keeper = house.keeper()
    assert keeper.round()
    assert list(house.store.keys(states_prefix(ended))) == []
    assert len(list(house.store.keys(states_prefix(running)))) == 1
    assert house.store.exists(snapshot_key(ended, 1, 9))
    assert row(house.database, ended).checkpoint_key is None


# -- Who is active --------------------------------------------------------------------


def test_one_of_many_housekeepers_is_active(house: House) -> None:
    first, second = house.keeper(), house.keeper()
    assert first.round()
    assert not second.round()
    assert first.round()


def test_another_takes_over_when_the_lease_ran_out(house: House) -> None:
    first, second = house.keeper(), house.keeper()
    assert first.round()
    with house.database.write() as connection:
        connection.execute(update(Lease).values(until=now() - 1))
    assert second.round()
    assert not first.round()


def test_another_takes_over_at_once_when_the_first_leaves(house: House) -> None:
    first, second = house.keeper(), house.keeper()
    assert first.round()
    second.leave()  # which it does not hold
    assert not second.round()
    first.leave()
    assert second.round()


def test_of_many_that_start_at_once_one_is_active(house: House) -> None:
    active: list[bool] = []
    keepers = [house.keeper() for _ in range(6)]
    threads = [
        threading.Thread(target=lambda keeper=keeper: active.append(keeper.round()))
        for keeper in keepers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(active) == [False] * 5 + [True]


def test_one_that_is_not_active_does_nothing(house: House) -> None:
    house.keeper().round()
    job_id = submit(house.database)
    house.lose(job_id)
    assert not house.keeper().round()
    assert row(house.database, job_id).state == "running"


@pytest.mark.parametrize(("lease", "pause"), [(1, 0.2), (5, 1), (30, 3), (3600, 3)])
def test_it_looks_several_times_within_a_lease(
    house: House, lease: float, pause: float
) -> None:
    house.settings = house.settings.model_copy(update={"lease_seconds": lease})
    assert house.keeper().pause == pause


# -- Lost jobs ------------------------------------------------------------------------


def test_lost_jobs_are_returned(house: House) -> None:
    job_id = submit(house.database)
    house.lose(job_id)
    house.keeper().round()
    assert row(house.database, job_id).state == "queued"


def test_after_an_outage_holders_get_a_whole_lease_to_come_back(house: House) -> None:
    job_id = submit(house.database)
    house.lose(job_id)
    keeper = house.keeper()
    house.database.down = True
    assert not keeper.round()
    house.database.down = False
    house.time += LEASE - 1
    assert keeper.round()
    assert row(house.database, job_id).state == "running"
    house.time += 2
    keeper.round()
    assert row(house.database, job_id).state == "queued"


def test_where_nobody_kept_house_for_long_holders_get_a_whole_lease_too(
    house: House,
) -> None:
    house.keeper().round()
    house.lose(job_id := submit(house.database))
    with house.database.write() as connection:
        connection.execute(update(Lease).values(until=now() - LEASE - 1))
    # As when the machine of housekeeper and database was started again.
    late = house.keeper()
    assert late.round()
    assert row(house.database, job_id).state == "running"
    house.time += LEASE + 1
    assert late.round()
    assert row(house.database, job_id).state == "queued"


def test_a_housekeeper_that_follows_at_once_waits_for_nothing(house: House) -> None:
    first = house.keeper()
    first.round()
    first.leave()
    house.lose(job_id := submit(house.database))
    assert house.keeper().round()
    assert row(house.database, job_id).state == "queued"


def test_a_holder_that_came_back_in_time_keeps_its_job(house: House) -> None:
    submit(house.database)
    held = claim(house.database)
    run_out(house.database, held.job_id)
    keeper = house.keeper()
    house.database.down = True
    keeper.round()
    house.database.down = False
    keeper.round()
    jobs.renew(house.database, held, lease_seconds=LEASE)
    house.time += LEASE + 1
    keeper.round()
    assert row(house.database, held.job_id).state == "running"


def test_a_broken_store_does_not_keep_lost_jobs_from_being_returned(
    house: House,
) -> None:
    gone = submit(house.database)
    jobs.request(house.database, gone, "cancel")
    jobs.forget(house.database, gone)
    house.store = Broken(house.settings.home / "broken")
    keeper = house.keeper()
    keeper.round()
    job_id = submit(house.database)
    house.lose(job_id)
    house.time += 3
    keeper.round()
    assert row(house.database, job_id).state == "queued"
    assert house.count(Trash) == 1


# -- Wake-ups -------------------------------------------------------------------------


def test_each_idle_worker_is_woken_for_a_waiting_job(house: House) -> None:
    ids = [submit(house.database) for _ in range(3)]
    house.beat("w1", "w2")
    house.keeper().round()
    assert house.bell.rung == ids[:2]


def test_no_more_are_woken_than_jobs_wait(house: House) -> None:
    job_id = submit(house.database)
    house.beat("w1", "w2", "w3")
    house.keeper().round()
    assert house.bell.rung == [job_id]


def test_wake_ups_that_are_in_the_queue_already_are_not_sent_again(
    house: House,
) -> None:
    for _ in range(5):
        submit(house.database)
    house.beat("w1", "w2", "w3")
    keeper = house.keeper()
    house.bell.in_queue = 2
    keeper.round()
    assert len(house.bell.rung) == 1
    house.bell.in_queue = 3
    keeper.round()
    house.bell.in_queue = 900
    keeper.round()
    assert len(house.bell.rung) == 1


def test_a_busy_worker_is_not_woken(house: House) -> None:
    submit(house.database)
    submit(house.database)
    house.beat("w1")
    claim(house.database, "w1")
    house.keeper().round()
    assert house.bell.rung == []


def test_a_worker_that_fell_silent_is_not_woken(house: House) -> None:
    submit(house.database)
    house.beat("w1")
    house.grow_old(ALIVE_SECONDS + 1)
    house.keeper().round()
    assert house.bell.rung == []


def test_a_lost_job_wakes_a_worker_in_the_same_round(house: House) -> None:
    job_id = submit(house.database)
    house.lose(job_id)
    house.beat("w2")
    house.keeper().round()
    assert house.bell.rung == [job_id]


def test_nothing_is_sent_while_nobody_knows_how_many_are_in_the_queue(
    house: House,
) -> None:
    submit(house.database)
    house.beat("w1")
    house.bell.in_queue = None
    house.keeper().round()
    assert house.bell.rung == []


def test_a_wake_up_that_cannot_be_sent_is_not_followed_by_others(house: House) -> None:
    for _ in range(3):
        submit(house.database)
    house.beat("w1", "w2", "w3")
    house.bell.refuses = True
    house.keeper().round()
    assert len(house.bell.rung) == 1


def test_all_is_kept_in_order_while_redis_is_down(house: House) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    redis = {"redis": f"redis://127.0.0.1:{port}/0"}
    bell = Bell(house.settings.model_copy(update=redis))
    job_id = submit(house.database)
    house.lose(job_id)
    house.beat("w1")
    house.keep("unused")
    house.grow_old(UNUSED_SECONDS + 60)
    house.beat("w1")
    keeper = Housekeeper(house.database, house.store, bell, house.settings)
    assert keeper.round()
    bell.close()
    assert row(house.database, job_id).state == "queued"
    assert list(house.store.keys()) == []


# -- What has expired -----------------------------------------------------------------


def ended(house: House) -> str:
    """End a job that has files."""
    job_id = submit(house.database)
    held = claim(house.database)
    assert held.job_id == job_id
    for key in (snapshot_key(job_id, 1, 50), result_key(job_id, 1)):
        house.store.put(key, b"picture")
        house.store.put(rendition_key(key, 512), b"rendition")
    result = jobs.Result(result_key(job_id, 1), 64, 48)
    jobs.succeed(house.database, held, HALF_WAY, result)
    return job_id


def test_the_files_of_a_deleted_job_are_deleted(house: House) -> None:
    job_id, other = ended(house), ended(house)
    jobs.forget(house.database, job_id)
    house.keeper().round()
    assert house.count(Trash) == 0
    left = list(house.store.keys())
    assert len(left) == 4
    assert all(job_prefix(other) in key for key in left)


def test_jobs_expire_with_their_files_and_in_an_hour_their_pictures(
    house: House,
) -> None:
    job_id = ended(house)
    house.keep("cat", "waves")
    keeper = house.keeper()
    house.grow_old(house.settings.retention_days * 86_400 - 60)
    keeper.round()
    assert row(house.database, job_id).state == "succeeded"
    house.grow_old(120)
    keeper.round()
    assert house.count(Job) == 0
    keeper.round()
    assert house.count(Picture) == 2
    assert len(list(house.store.keys())) == 6
    house.grow_old(UNUSED_SECONDS + 60)
    keeper.round()
    assert house.count(Picture) == 0
    assert list(house.store.keys()) == []


def test_more_jobs_than_one_sweep_takes_expire_in_one_round(house: House) -> None:
    for _ in range(130):
        jobs.request(house.database, submit(house.database), "cancel")
    house.grow_old(house.settings.retention_days * 86_400 + 60)
    house.keeper().round()
    assert house.count(Job) == 0


def test_pictures_that_a_job_uses_stay(house: House) -> None:
    submit(house.database, content="cat", styles=("waves",))
    house.keep("cat", "waves", "unused")
    house.grow_old(UNUSED_SECONDS + 60)
    house.keeper().round()
    with house.database.read() as connection:
        left = set(connection.scalars(select(Picture.sha256)))
    assert left == {CAT, WAVES}
    assert len(list(house.store.keys())) == 6


def test_unused_pictures_stay_for_an_hour(house: House) -> None:
    house.keep("cat")
    house.grow_old(UNUSED_SECONDS - 60)
    house.keeper().round()
    assert house.count(Picture) == 1
    assert len(list(house.store.keys())) == 3


def test_a_picture_whose_file_cannot_be_deleted_stays_known(house: House) -> None:
    house.store = Broken(house.settings.home / "broken")
    house.keep("cat")
    house.grow_old(UNUSED_SECONDS + 60)
    house.keeper().round()
    assert house.count(Picture) == 1


def test_a_picture_submitted_while_it_is_deleted_is_there_in_the_end(
    house: House,
) -> None:
    deleting = threading.Event()

    class Slow(FolderStore):
        def delete(self, key: str) -> None:
            deleting.set()
            time.sleep(0.5)
            super().delete(key)

    def submit_again() -> None:
        deleting.wait(30)
        # As the web side does it.
        jobs.keep_pictures(house.database, [picture("cat")])
        if not house.store.exists(original_key(CAT)):
            house.store.put(original_key(CAT), b"cat")

    house.store = Slow(house.settings.home / "slow")
    house.keep("cat")
    house.grow_old(UNUSED_SECONDS + 60)
    thread = threading.Thread(target=submit_again)
    thread.start()
    house.keeper().round()
    thread.join()
    assert deleting.is_set()
    assert house.count(Picture) == 1
    assert house.store.get(original_key(CAT)) == b"cat"


def test_what_killed_writers_left_is_deleted_after_an_hour(house: House) -> None:
    folder = house.settings.home / "store" / "jobs"
    folder.mkdir(parents=True)
    handle, _ = house.store._start(folder)
    os.close(handle)
    left = next(folder.iterdir())
    keeper = house.keeper()
    keeper.round()
    assert left.exists()
    before = time.time() - UNUSED_SECONDS - 60
    os.utime(left, (before, before))
    house.time += UNFINISHED_SECONDS
    keeper.round()
    assert not left.exists()


def test_workers_that_were_not_seen_for_a_day_are_forgotten(house: House) -> None:
    house.beat("w1")
    house.grow_old(registry.FORGOTTEN_SECONDS + 60)
    house.beat("w2")
    house.keeper().round()
    with house.database.read() as connection:
        assert connection.scalars(select(Worker.name)).all() == ["w2"]


def test_a_chore_that_fails_keeps_no_other_from_being_done(house: House) -> None:
    job_id = ended(house)
    jobs.forget(house.database, job_id)
    house.beat("w1")
    house.grow_old(registry.FORGOTTEN_SECONDS + 60)
    house.store = Broken(house.settings.home / "broken")
    assert house.keeper().round()
    assert house.count(Worker) == 0
    assert house.count(Trash) == 1


# -- The process ----------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "STYLEQUEUE_HOME": str(tmp_path),
        # Nothing listens there.
        "STYLEQUEUE_REDIS": "redis://127.0.0.1:1/0",
        "STYLEQUEUE_LEASE_SECONDS": "1",
    }


def start(environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "stylequeue_shared.cli", "housekeeper"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_returns_lost_jobs_and_ends_promptly_when_told_to(
    house: House, environment: dict[str, str], number: signal.Signals
) -> None:
    job_id = submit(house.database)
    house.lose(job_id)
    environment["STYLEQUEUE_DATABASE"] = str(house.settings.database)
    process = start(environment)
    until = time.monotonic() + 60
    while row(house.database, job_id).state != "queued":
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    told = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - told < 20
    assert "Traceback" not in said
    # Another may start at once.
    with house.database.read() as connection:
        assert connection.scalar(select(now() - Lease.until)) >= 0


def test_the_process_refuses_to_start_without_tables(
    environment: dict[str, str],
) -> None:
    process = start(environment)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.strip().splitlines()[-1].endswith("run: stylequeue migrate")
    assert "Traceback" not in said


def test_the_process_waits_for_a_database_that_is_away(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["STYLEQUEUE_DATABASE"] = f"postgresql://root@/a?host={tmp_path}"
    process = start(environment)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert "database_away" in said
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_process_loads_neither_torch_nor_flask() -> None:
    loads = (
        "import sys, stylequeue_shared.housekeeping; "
        "print([name for name in ('torch', 'flask', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", loads], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_unfinished_files_are_looked_for_now_and_then(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []
    keeper = house.keeper()

    def look(older_than: float) -> int:
        looked.append(house.time)
        return 0

    monkeypatch.setattr(house.store, "delete_unfinished", look)
    for _ in range(5):
        keeper.round()
        house.time += UNFINISHED_SECONDS / 2
    assert looked == [1000, 1000 + UNFINISHED_SECONDS, 1000 + 2 * UNFINISHED_SECONDS]
