from collections.abc import Iterator

import pytest
from sqlalchemy import select, update

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import (
    clean_key,
    original_key,
    rendition_key,
    snapshot_key,
    state_key,
)
from stylequeue_shared.database import now
from stylequeue_shared.errors import MachineError
from stylequeue_shared.housekeeper import orphans
from stylequeue_shared.housekeeper.housekeeper import SELDOM_SECONDS, Housekeeper
from stylequeue_shared.housekeeper.orphans import EVERY_SECONDS, OWNER_KEY
from stylequeue_shared.jobs.pictures import UNUSED_SECONDS
from stylequeue_shared.models import Lease, Picture, Trash
from stylequeue_shared.store_folder import FolderStore
from tests.shared.housekeeper.house import House
from tests.shared.submitting import picture, submit

GONE = "0197c9a0-0000-7000-8000-000000000000"


def left_behind(house: House) -> set[str]:
    """Store files that no row knows; return their keys."""
    snapshot = snapshot_key(GONE, 1, 50)
    original = original_key(picture("lost").sha256)
    other = original_key(picture("other").sha256)
    keys = {
        *(snapshot, rendition_key(snapshot, 512), state_key(GONE, 1, "record-9")),
        *(original, clean_key(original), rendition_key(other, 128)),
    }
    for key in keys:
        house.store.put(key, b"left behind")
    return keys


def a_day_later(house: House, keeper: Housekeeper) -> None:
    with house.database.write() as connection:
        here = update(Lease).where(Lease.name == orphans.NAME)
        connection.execute(here.values(until=now() - 1))
    house.time += SELDOM_SECONDS
    assert keeper.round()


def test_files_that_no_row_knows_are_deleted_and_all_others_stay(house: House) -> None:
    job_id = house.ended()
    house.keep("cat", "waves")
    known = set(house.store.keys())
    lost = left_behind(house)
    keeper = house.keeper()
    keeper.round()
    assert set(house.store.keys()) == known | lost  # there is a day for it
    a_day_later(house, keeper)
    keeper.round()
    # Uploads are unused from now on, and go as all of these do.
    assert house.count(Picture) == 4
    assert not any(GONE in key for key in house.store.keys())  # noqa: SIM118
    house.grow_old(UNUSED_SECONDS + 60)
    keeper.round()
    assert set(house.store.keys()) == known | {OWNER_KEY}
    assert jobs.request(house.database, job_id, "cancel") is None
    assert house.count(Picture) == 2


def test_a_walk_goes_on_where_its_turn_ended_and_is_not_repeated(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(FolderStore):
        walks = 0

        def keys(self, prefix: str = "") -> Iterator[str]:
            self.walks += 1
            for key in super().keys(prefix):
                house.time += 3.0
                yield key

    store = Counting(house.settings.home / "store")
    house.store = store
    left_behind(house)
    keeper = house.keeper()
    keeper.round()
    monkeypatch.setattr(orphans, "KEYS_AT_ONCE", 1)
    a_day_later(house, keeper)
    assert house.count(Trash) + house.count(Picture) < 3
    for _ in range(6):
        keeper.round()
    assert (house.count(Trash), house.count(Picture)) == (1, 2)
    house.time += 2 * SELDOM_SECONDS
    keeper.round()
    assert store.walks == 1


def test_a_walk_that_failed_is_begun_again(house: House) -> None:
    class Away(FolderStore):
        is_away = True

        def keys(self, prefix: str = "") -> Iterator[str]:
            for number, key in enumerate(super().keys(prefix)):
                if self.is_away and number:
                    raise MachineError("the store does not answer")
                yield key

    store = Away(house.settings.home / "store")
    house.store = store
    left_behind(house)
    keeper = house.keeper()
    keeper.round()
    a_day_later(house, keeper)
    assert house.count(Trash) == 0
    store.is_away = False
    house.time += SELDOM_SECONDS
    keeper.round()
    assert house.count(Trash) == 1


def test_nothing_is_swept_from_the_store_of_another_installation(house: House) -> None:
    lost = left_behind(house)
    house.store.put(OWNER_KEY, b"another")
    keeper = house.keeper()
    keeper.round()
    a_day_later(house, keeper)
    keeper.round()
    assert set(house.store.keys()) == lost | {OWNER_KEY}
    assert house.count(Trash) == house.count(Picture) == 0
    # It is looked at again in a day.
    with house.database.read() as connection:
        left = select(Lease.until - now()).where(Lease.name == orphans.NAME)
        assert connection.scalar(left) > EVERY_SECONDS - 60


def test_files_of_others_in_the_folder_are_left_alone(house: House) -> None:
    submit(house.database)
    others = {"notes.txt", "jobs/readme.txt", "jobs/mine/a.png", "pictures/ab/x"}
    for key in others:
        house.store.put(key, b"mine")
    keeper = house.keeper()
    keeper.round()
    a_day_later(house, keeper)
    keeper.round()
    assert set(house.store.keys()) == others | {OWNER_KEY}
