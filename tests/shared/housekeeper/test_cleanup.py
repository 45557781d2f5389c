import os
import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text, update

from stylequeue_shared import jobs, registry
from stylequeue_shared.artefacts import (
    job_prefix,
    rendition_key,
    snapshot_key,
    state_key,
    states_prefix,
)
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import MachineError
from stylequeue_shared.housekeeper.cleanup import UNFINISHED_SECONDS
from stylequeue_shared.housekeeper.housekeeper import SELDOM_SECONDS
from stylequeue_shared.jobs.pictures import UNUSED_SECONDS
from stylequeue_shared.jobs.trash import throw_away
from stylequeue_shared.models import Job, Picture, Trash, Worker
from stylequeue_shared.store_folder import FolderStore
from tests.shared.housekeeper.house import Broken, House, Stubborn
from tests.shared.submitting import HALF_WAY, claim, picture, row, submit

CAT, WAVES = picture("cat").sha256, picture("waves").sha256


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


def test_the_files_of_a_deleted_job_are_deleted(house: House) -> None:
    job_id, other = house.ended(), house.ended()
    jobs.forget(house.database, job_id)
    house.keeper().round()
    left = list(house.store.keys())
    assert len(left) == 4
    assert all(job_prefix(other) in key for key in left)


def test_jobs_expire_with_their_files_and_in_an_hour_their_pictures(
    house: House,
) -> None:
    job_id = house.ended()
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


def test_files_that_come_back_are_deleted_an_hour_later(house: House) -> None:
    jobs.forget(house.database, job_id := house.ended())
    keeper = house.keeper()
    keeper.round()
    assert list(house.store.keys()) == []
    # A rendition that was being made, and an attempt that knew of nothing.
    key = snapshot_key(job_id, 1, 50)
    for late in (key, rendition_key(key, 512)):
        house.store.put(late, b"late")
    keeper.round()
    assert house.count(Trash) == 1
    house.long_ago(Trash.emptied_at)
    keeper.round()
    assert list(house.store.keys()) == []
    assert house.count(Trash) == 0


def test_a_job_that_an_earlier_release_deleted_is_emptied_twice_too(
    house: House,
) -> None:
    key = snapshot_key("00000000-0000-7000-8000-000000000000", 1, 50)
    prefix = job_prefix("00000000-0000-7000-8000-000000000000")
    with house.database.write() as connection:
        connection.execute(
            text("INSERT INTO trash (prefix) VALUES (:p)"), {"p": prefix}
        )
    keeper = house.keeper()
    for _ in range(2):
        house.store.put(key, b"picture")
        keeper.round()
        assert list(house.store.keys()) == []
        house.long_ago(Trash.emptied_at)
    assert house.count(Trash) == 0


def test_files_that_cannot_be_deleted_stop_no_others_and_are_tried_again(
    house: House,
) -> None:
    ids = sorted(house.ended() for _ in range(3))
    store = Stubborn(house.settings.home / "store", ids[0])
    house.store = store
    for job_id in ids:
        jobs.forget(house.database, job_id)
    keeper = house.keeper()
    keeper.round()
    assert {key.split(ids[0])[0] for key in list(store.keys())} == {
        "jobs/",
        "renditions/jobs/",
    }
    store.part = "no key"
    keeper.round()
    assert len(list(store.keys())) == 4  # not at once
    house.long_ago(Trash.tried_at)
    keeper.round()
    assert list(store.keys()) == []


def test_what_failed_is_tried_again_after_what_is_new(house: House) -> None:
    with house.database.write() as connection:
        throw_away(connection, ["jobs/1/", "jobs/2/", "jobs/3/"])
    for number in (2, 1):
        jobs.record_failure(house.database, f"jobs/{number}/")
        time.sleep(0.01)  # SQLite's clock counts milliseconds
    assert [one.prefix for one in jobs.trash_to_empty(house.database)] == ["jobs/3/"]
    with house.database.write() as connection:
        connection.execute(update(Trash).values(tried_at=Trash.tried_at - 3600))
    due = [one.prefix for one in jobs.trash_to_empty(house.database)]
    assert due == ["jobs/3/", "jobs/2/", "jobs/1/"]


def test_times_in_the_trash_that_lie_far_ahead_are_not_believed(house: House) -> None:
    with house.database.write() as connection:
        throw_away(connection, ["jobs/1/"])
        ahead = {"emptied_at": now() + 86_400, "tried_at": now() + 86_400}
        connection.execute(update(Trash).values(**ahead))
    house.keeper().round()
    assert house.count(Trash) == 0


def test_states_that_cannot_be_deleted_stop_no_others(house: House) -> None:
    ids = sorted(submit(house.database) for _ in range(2))
    for _ in ids:
        held = claim(house.database)
        key = state_key(held.job_id, 1, "record-9")
        house.store.put(key, b"a state")
        jobs.save_checkpoint(house.database, held, key, 9)
        jobs.fail(house.database, held, MachineError("no"))
    house.store = Stubborn(house.settings.home / "store", ids[0])
    house.keeper().round()
    assert list(house.store.keys()) == [state_key(ids[0], 1, "record-9")]


def test_a_picture_that_cannot_be_deleted_stops_no_others(house: House) -> None:
    first = min(CAT, WAVES)
    store = Stubborn(house.settings.home / "store", f"pictures/{first[:2]}/{first}")
    house.store = store
    house.keep("cat", "waves")
    house.grow_old(UNUSED_SECONDS + 60)
    keeper = house.keeper()
    keeper.round()
    assert house.all(select(Picture.sha256)) == [first]
    store.part = "no key"
    house.long_ago(Picture.deleting_until)
    keeper.round()
    assert house.count(Picture) == 0
    assert list(store.keys()) == []


def test_no_transaction_is_open_while_the_store_deletes(house: House) -> None:
    class Asking(FolderStore):
        deleted = 0

        def delete(self, key: str) -> None:
            self.write()
            super().delete(key)

        def delete_prefix(self, prefix: str) -> None:
            self.write()
            super().delete_prefix(prefix)

        def write(self) -> None:
            # In SQLite it would wait for an open transaction, and in PostgreSQL for
            # one that locked the picture; and no other thread could end it.
            other = Database(url)
            for sha256 in (CAT, WAVES):
                with other.write() as connection:
                    here = update(Picture).where(Picture.sha256 == sha256)
                    connection.execute(here.values(width=7))
            other.close()
            self.deleted += 1

    url = house.database.engine.url.render_as_string(hide_password=False)
    store = Asking(house.settings.home / "store")
    house.store = store
    house.keep("cat", "waves")
    job_id = submit(house.database, content="dog", styles=("dog",))
    jobs.request(house.database, job_id, "cancel")
    jobs.forget(house.database, job_id)
    house.grow_old(UNUSED_SECONDS + 60)
    house.keeper().round()
    assert store.deleted >= 6
    assert house.count(Picture) == 0


def test_a_paused_job_is_cancelled_at_last_and_keeps_its_newest_picture(
    house: House,
) -> None:
    job_id = submit(house.database)
    held = claim(house.database)
    for step in (50, 100):
        key, done = snapshot_key(job_id, 1, step), replace(HALF_WAY, step=step)
        jobs.add_snapshot(house.database, held, key, done, (64, 48))
    jobs.request(house.database, job_id, "pause")
    jobs.hand_back(house.database, held)
    keeper = house.keeper()
    keeper.round()
    days = house.settings.retention_days
    age(house, (days - 1) * 86_400)
    keeper.round()
    assert row(house.database, job_id).state == "paused"
    age(house, 2 * 86_400)
    keeper.round()
    found = row(house.database, job_id)
    assert (found.state, found.requested) == ("cancelled", None)
    assert (found.result_key, found.result_partial) == (key, True)
    assert (found.result_width, found.result_height) == (64, 48)
    assert found.finished_at > time.time() - 3600


def test_a_paused_job_without_a_picture_is_cancelled_without_one(house: House) -> None:
    job_id = submit(house.database)
    jobs.request(house.database, job_id, "pause")
    age(house, house.settings.retention_days * 86_400 + 60)
    house.keeper().round()
    found = row(house.database, job_id)
    assert (found.state, found.result_key) == ("cancelled", None)


def test_a_job_that_was_just_paused_stays_however_old_it_is(house: House) -> None:
    submit(house.database)
    held = claim(house.database)
    age(house, 365 * 86_400)
    jobs.request(house.database, held.job_id, "pause")
    jobs.hand_back(house.database, held)
    house.keeper().round()
    assert row(house.database, held.job_id).state == "paused"


@pytest.mark.parametrize("known", [Job.paused_at, Job.claimed_at, Job.created_at])
def test_the_newest_known_time_of_a_paused_job_counts(house: House, known: Any) -> None:
    submit(house.database)
    held = claim(house.database)
    jobs.request(house.database, held.job_id, "pause")
    jobs.hand_back(house.database, held)
    house.long_ago(Job.paused_at, Job.claimed_at, Job.created_at)
    with house.database.write() as connection:
        connection.execute(update(Job).values({known.key: now() - 3600}))
    house.keeper().round()
    assert row(house.database, held.job_id).state == "paused"


def age(house: House, seconds: float) -> None:
    """Let that much time pass for jobs that are paused."""
    with house.database.write() as connection:
        values = {
            column.key: column - seconds
            for column in (Job.paused_at, Job.claimed_at, Job.created_at)
        }
        connection.execute(update(Job).values(values))


def test_what_killed_writers_left_is_deleted_after_an_hour(house: House) -> None:
    folder = house.settings.home / "store" / "jobs"
    folder.mkdir(parents=True)
    handle, _ = house.store._start(folder)
    os.close(handle)
    left = next(folder.iterdir())
    keeper = house.keeper()
    keeper.round()
    assert left.exists()
    before = time.time() - UNFINISHED_SECONDS - 60
    os.utime(left, (before, before))
    house.time += SELDOM_SECONDS
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
    job_id = house.ended()
    jobs.forget(house.database, job_id)
    house.beat("w1")
    house.grow_old(registry.FORGOTTEN_SECONDS + 60)
    house.store = Broken(house.settings.home / "broken")
    assert house.keeper().round()
    assert house.count(Worker) == 0
    assert house.count(Trash) == 1


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
        house.time += SELDOM_SECONDS / 2
    assert looked == [1000, 1000 + SELDOM_SECONDS, 1000 + 2 * SELDOM_SECONDS]
