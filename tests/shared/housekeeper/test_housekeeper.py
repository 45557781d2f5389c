import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from stylequeue_shared import jobs
from stylequeue_shared.database import now
from stylequeue_shared.housekeeper import chores
from stylequeue_shared.housekeeper.chores import BUDGET_SECONDS
from stylequeue_shared.housekeeper.housekeeper import Housekeeper
from stylequeue_shared.housekeeper.lease import LEASE_SECONDS, NAME
from stylequeue_shared.jobs.pictures import UNUSED_SECONDS
from stylequeue_shared.models import Job, Lease, Picture, Trash
from stylequeue_shared.queue import Bell
from stylequeue_shared.store_folder import FolderStore
from tests.shared.housekeeper.house import LEASE, Blocked, Broken, House
from tests.shared.submitting import claim, row, run_out, submit


def let_lease_end(house: House, seconds: float) -> None:
    """Have the lease end that many seconds from now."""
    with house.database.write() as connection:
        here = update(Lease).where(Lease.name == NAME)
        connection.execute(here.values(until=now() + seconds))


def lease_left(house: House) -> float:
    left = select(Lease.until - now()).where(Lease.name == NAME)
    return float(house.all(left)[0])


# -- Who is active --------------------------------------------------------------------


def test_one_of_many_housekeepers_is_active(house: House) -> None:
    first, second = house.keeper(), house.keeper()
    assert first.round()
    assert not second.round()
    assert first.round()


def test_another_takes_over_when_the_lease_ran_out(house: House) -> None:
    first, second = house.keeper(), house.keeper()
    assert first.round()
    let_lease_end(house, -1)
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


def test_a_lease_further_ahead_than_one_can_be_set_is_taken_over_at_once(
    house: House,
) -> None:
    house.keeper().round()
    house.lose(job_id := submit(house.database))
    # The clock was three hours ahead, everything was killed, the clock corrected.
    let_lease_end(house, 3 * 3600)
    keeper = house.keeper()
    assert keeper.round()
    # Nobody knows how long all were away, so that holders may come back.
    assert row(house.database, job_id).state == "running"
    with house.database.read() as connection:
        assert (
            connection.scalar(select(Lease.until - now()).where(Lease.name == NAME))
            <= LEASE_SECONDS
        )
    house.time += LEASE + 1
    assert keeper.round()
    assert row(house.database, job_id).state == "queued"


def test_a_lease_that_ends_soon_is_believed(house: House) -> None:
    house.keeper().round()
    let_lease_end(house, LEASE_SECONDS + 1)
    assert not house.keeper().round()


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
    let_lease_end(house, -LEASE - 1)
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


def test_a_chore_that_meets_a_lock_each_time_keeps_no_lost_job_from_being_returned(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_in_vain(*_: object, **__: object) -> int:
        raise OperationalError("DELETE", {}, Exception("lock timeout"))

    monkeypatch.setattr(jobs, "expire", wait_in_vain)
    keeper = house.keeper()
    assert keeper.round()
    house.lose(job_id := submit(house.database))
    house.time += 3
    assert keeper.round()
    assert row(house.database, job_id).state == "queued"


# -- Lanes ----------------------------------------------------------------------------


@pytest.fixture
def blocked(house: House) -> Iterator[Blocked]:
    """A store in which a deletion takes for ever, until it is let through."""
    store = Blocked(house.settings.home / "blocked")
    house.store = store
    house.settings = house.settings.model_copy(update={"lease_seconds": 1.0})
    yield store
    store.let_through.set()


@contextmanager
def running(house: House) -> Iterator[Housekeeper]:
    """Have a housekeeper at work meanwhile."""
    keeper = Housekeeper(house.database, house.store, house.bell, house.settings)
    stop = threading.Event()
    thread = threading.Thread(target=keeper.run, args=(stop,))
    thread.start()
    try:
        yield keeper
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def wait_for(happens: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_lost_jobs_are_returned_and_etas_written_while_a_deletion_hangs(
    house: House, blocked: Blocked
) -> None:
    for _ in range(20):
        jobs.forget(house.database, house.ended())
    with running(house):
        assert blocked.is_blocked.wait(60)
        house.lose(job_id := submit(house.database, estimate={"seconds": 10.0}))
        wait_for(lambda: row(house.database, job_id).state == "queued")
        house.beat("w1")
        wait_for(lambda: row(house.database, job_id).eta_start is not None)
        wait_for(lambda: job_id in house.bell.rung)
        # And longer than its own lease, which is renewed all the while.
        let_lease_end(house, 1)
        house.lose(job_id)
        wait_for(lambda: row(house.database, job_id).state == "queued")
        assert not house.keeper().round()
        assert house.count(Trash) == 20
        blocked.let_through.set()
        left = select(Trash.prefix).where(Trash.emptied_at.is_(None))
        wait_for(lambda: not house.all(left))
    assert list(house.store.keys()) == []


def test_it_ends_soon_when_a_deletion_hangs(house: House, blocked: Blocked) -> None:
    jobs.forget(house.database, house.ended())
    with running(house):
        assert blocked.is_blocked.wait(60)
    # It is over, and so is its lease: another may begin.
    assert not blocked.let_through.is_set()
    with house.database.read() as connection:
        assert (
            connection.scalar(select(now() - Lease.until).where(Lease.name == NAME))
            >= 0
        )


def test_it_stops_between_two_deletions_when_another_took_over(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "BUDGET_SECONDS", 1000.0)

    class Late(FolderStore):
        def delete_prefix(self, prefix: str) -> None:
            house.time += LEASE_SECONDS  # as long as its lease
            super().delete_prefix(prefix)

    house.store = Late(house.settings.home / "late")
    for _ in range(3):
        jobs.forget(house.database, house.ended())
    keeper = house.keeper()
    assert keeper.round()
    emptied = select(Trash.prefix).where(Trash.emptied_at.is_not(None))
    assert len(house.all(emptied)) == 1


def test_a_chore_with_much_to_do_lets_the_others_have_their_turn(
    house: House,
) -> None:
    class Slow(FolderStore):
        def delete_prefix(self, prefix: str) -> None:
            house.time += BUDGET_SECONDS / 4
            super().delete_prefix(prefix)

    house.store = Slow(house.settings.home / "slow")
    for _ in range(5):
        jobs.forget(house.database, house.ended())
    house.keep("unused")
    house.grow_old(UNUSED_SECONDS + 60)
    keeper = house.keeper()
    keeper.round()
    assert house.count(Picture) == 0
    left = select(Trash.prefix).where(Trash.emptied_at.is_(None))
    assert len(house.all(left)) == 3
    for _ in range(2):
        keeper.round()
    assert house.all(left) == []


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


# -- The process ----------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "STYLEQUEUE_HOME": str(tmp_path),
        # The code under test, wherever it lies.
        "PYTHONPATH": os.pathsep.join(sys.path),
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
        assert (
            connection.scalar(select(now() - Lease.until).where(Lease.name == NAME))
            >= 0
        )


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
        "import sys, stylequeue_shared.housekeeper.housekeeper; "
        "print([name for name in ('torch', 'flask', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", loads], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_times_that_lie_ahead_are_corrected(house: House) -> None:
    job_id = submit(house.database)
    claim(house.database)
    with house.database.write() as connection:
        connection.execute(update(Job).values(lease_until=now() + 10_800))
    house.keeper().round()
    with house.database.read() as connection:
        ahead = connection.scalar(select(Job.lease_until - now())) or 0.0
    assert ahead < 120
    assert row(house.database, job_id).state == "running"
