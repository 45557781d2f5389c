from pathlib import Path

import pytest

from stylequeue_shared import free_space, reading
from stylequeue_shared.database import Database
from stylequeue_shared.errors import DiskFull
from stylequeue_shared.housekeeper.housekeeper import Housekeeper
from stylequeue_shared.queue import Bell
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store, open_store

QUOTA = 2_000_000_000
LIMITED = Settings(home=Path("/nowhere"), store_quota_mb=QUOTA / 1e6)
UNLIMITED = Settings(home=Path("/nowhere"))


class SilentBell(Bell):
    """Sends no wake-ups."""

    def __init__(self) -> None: ...

    def waiting(self) -> int | None:
        return None


@pytest.fixture(params=["folder", "bucket"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """An empty store; of each kind in turn."""
    if request.param == "folder":
        return open_store(tmp_path_factory.mktemp("store"))
    return open_store(request.getfixturevalue("bucket"))


def used(database: Database) -> float:
    return reading.counter(database, free_space.USED)


def test_the_size_of_all_files_is_measured(database: Database, store: Store) -> None:
    free_space.measure(database, store, LIMITED)
    assert used(database) == 0
    for number in range(5):
        store.put(f"jobs/{number}/1/result.png", bytes(1000 + number))
    free_space.measure(database, store, LIMITED)
    assert used(database) == 5010
    store.delete_prefix("jobs/4/")
    free_space.measure(database, store, LIMITED)
    assert used(database) == 4006


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_store_may_hold_its_quota_less_the_floor(
    database: Database, store: Store
) -> None:
    assert LIMITED.store_quota_bytes == QUOTA
    free_space.add_used(database, LIMITED, QUOTA - free_space.FREE_BYTES_FLOOR)
    free_space.check(database, store, QUOTA)
    free_space.add_used(database, LIMITED, 1)
    free_space.check(database, store, None)
    with pytest.raises(DiskFull) as full:
        free_space.check(database, store, QUOTA)
    assert full.value.message == (
        "The store holds 1500 MB of the 2000 MB that it may (STYLEQUEUE_STORE_QUOTA_MB)"
        "; at least 500 MB must be left to take a job."
    )


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_without_a_quota_nothing_is_measured_or_counted(
    database: Database, store: Store
) -> None:
    store.put("a", b"bytes")
    free_space.add_used(database, UNLIMITED, 10)
    Housekeeper(database, store, SilentBell(), UNLIMITED).round()
    assert used(database) == 0


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_the_housekeeper_measures_every_few_minutes(
    database: Database, store: Store
) -> None:
    clock = [1000.0]
    bell = SilentBell()
    keeper = Housekeeper(database, store, bell, LIMITED, clock=lambda: clock[0])
    store.put("a", b"bytes")
    keeper.round()
    assert used(database) == 5
    store.put("b", b"more bytes")
    clock[0] += free_space.MEASURE_SECONDS - 1
    keeper.round()
    assert used(database) == 5
    clock[0] += 1
    keeper.round()
    assert used(database) == 15
