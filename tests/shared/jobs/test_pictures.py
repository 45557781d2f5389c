"""Submissions of a picture against its deletion, in each order of their steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.database import Database, now
from stylequeue_shared.errors import PictureBeingDeleted
from stylequeue_shared.housekeeper.chores import Turn
from stylequeue_shared.housekeeper.cleanup import Cleanup
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.jobs.pictures import MARK_SECONDS, UNUSED_SECONDS
from stylequeue_shared.models import Job, Picture
from stylequeue_shared.store_folder import FolderStore
from tests.shared.submitting import picture

CAT = picture("cat")
KEY = original_key(CAT.sha256)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def keep(database: Database, store: FolderStore) -> None:
    """Do the first half of a submission, as the web side does."""
    jobs.keep_pictures(database, [CAT], patience=0)
    if not store.exists(KEY):
        store.put(KEY, b"cat")


def record(database: Database) -> str:
    """Do the second half of a submission."""
    settings = complete_settings({}, styles=1)
    return jobs.submit(database, settings, CAT.sha256, [CAT.sha256], max_waiting=1000)


def age(database: Database, seconds: float = UNUSED_SECONDS + 1) -> None:
    with database.write() as connection:
        connection.execute(update(Picture).values(used_at=Picture.used_at - seconds))


def end_marks(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(Picture).values(deleting_until=now() - 1))


def clean_up(database: Database, store: FolderStore) -> None:
    Cleanup(database, store, 30).delete_unused_pictures(Turn(lambda: True))


def rows(database: Database) -> int:
    with database.read() as connection:
        return len(connection.scalars(select(Picture.sha256)).all())


def is_whole(database: Database, store: FolderStore) -> bool:
    """Whether every job has its picture, as row and as file."""
    with database.read() as connection:
        jobs_there = connection.scalars(select(Job.id)).all()
    return not jobs_there or (rows(database) == 1 and store.exists(KEY))


class Interrupted(FolderStore):
    """A store that lets something else happen right before or after each deletion."""

    def __init__(self, root: Path, at: int, happens: Callable[[], None]) -> None:
        super().__init__(root)
        self.at, self.happens, self.calls = at, happens, 0

    def delete_prefix(self, prefix: str) -> None:
        self.let_happen()
        super().delete_prefix(prefix)
        self.let_happen()

    def delete(self, key: str) -> None:
        self.let_happen()
        super().delete(key)
        self.let_happen()

    def let_happen(self) -> None:
        if self.calls == self.at:
            self.happens()
        self.calls += 1


@pytest.mark.parametrize("at", range(4))
def test_a_submission_at_any_step_of_a_deletion_has_its_picture_in_the_end(
    database: Database, store: FolderStore, tmp_path: Path, at: int
) -> None:
    keep(database, store)
    age(database)
    refused = []

    def submit() -> None:
        try:
            keep(database, store)
            record(database)
        except PictureBeingDeleted as error:
            refused.append(error)

    clean_up(database, Interrupted(tmp_path / "store", at, submit))
    assert is_whole(database, store)
    # Told to come again, which it does.
    assert len(refused) == 1
    assert refused[0].retry_after <= 5
    submit()
    assert len(refused) == 1
    assert is_whole(database, store)
    assert rows(database) == 1


@pytest.mark.parametrize("at", range(4))
def test_a_submission_that_stood_still_for_an_hour_is_told_to_come_again(
    database: Database, store: FolderStore, tmp_path: Path, at: int
) -> None:
    keep(database, store)
    age(database)  # as long as this request stands still

    def go_on() -> None:
        with pytest.raises(PictureBeingDeleted):
            record(database)

    clean_up(database, Interrupted(tmp_path / "store", at, go_on))
    go_on()
    assert rows(database) == 0
    keep(database, store)
    record(database)
    assert is_whole(database, store)


@pytest.mark.parametrize("at", range(4))
def test_after_a_housekeeper_died_at_any_step_the_picture_is_usable_again(
    database: Database, store: FolderStore, tmp_path: Path, at: int
) -> None:
    class PowerCut(BaseException):
        pass

    def die() -> None:
        raise PowerCut

    keep(database, store)
    age(database)
    with pytest.raises(PowerCut):
        clean_up(database, Interrupted(tmp_path / "store", at, die))
    with pytest.raises(PictureBeingDeleted):
        keep(database, store)
    # Nor does another housekeeper take over before the call must have ended.
    assert jobs.unused_pictures(database) == []
    assert not jobs.mark_for_deletion(database, CAT.sha256, "another")
    end_marks(database)
    keep(database, store)
    record(database)
    assert is_whole(database, store)


@pytest.mark.parametrize("at", range(4))
def test_after_a_housekeeper_died_at_any_step_another_finishes(
    database: Database, store: FolderStore, tmp_path: Path, at: int
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    keep(database, store)
    age(database)
    with pytest.raises(KeyboardInterrupt):
        clean_up(database, Interrupted(tmp_path / "store", at, die))
    end_marks(database)
    clean_up(database, store)
    assert rows(database) == 0
    assert not store.exists(KEY)


@pytest.mark.parametrize("at", range(4))
def test_a_housekeeper_that_stood_still_deletes_nothing_of_who_passed_its_mark(
    database: Database, store: FolderStore, tmp_path: Path, at: int
) -> None:
    keep(database, store)
    age(database)

    def submit() -> None:
        end_marks(database)
        keep(database, store)
        record(database)

    # The call to the store itself ends within the time of the mark: here it stands
    # still before the second mark, or after the call.
    if at != 2:
        clean_up(database, Interrupted(tmp_path / "store", at, submit))
        assert is_whole(database, store)
        assert rows(database) == 1


@pytest.mark.parametrize("at", range(4))
def test_of_two_housekeepers_the_one_that_was_late_finishes_nothing(
    database: Database, store: FolderStore, tmp_path: Path, at: int
) -> None:
    keep(database, store)
    age(database)

    def be_overtaken() -> None:
        end_marks(database)
        assert jobs.mark_for_deletion(database, CAT.sha256, "another")

    clean_up(database, Interrupted(tmp_path / "store", at, be_overtaken))
    # The row stays until the other one is done: nobody stores a file that it deletes.
    assert rows(database) == 1
    with pytest.raises(PictureBeingDeleted):
        keep(database, store)
    store.delete(KEY)
    assert jobs.finish_deletion(database, CAT.sha256, "another")
    keep(database, store)
    record(database)
    assert is_whole(database, store)


def test_a_web_server_of_the_release_before_stops_a_deletion_that_began(
    database: Database, store: FolderStore, tmp_path: Path
) -> None:
    keep(database, store)
    age(database)

    def keep_as_before() -> None:
        with database.write() as connection:
            connection.execute(update(Picture).values(used_at=now()))

    clean_up(database, Interrupted(tmp_path / "store", 1, keep_as_before))
    assert store.exists(KEY)
    assert rows(database) == 1


def test_a_submission_waits_for_a_deletion_that_ends_soon(
    database: Database, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(database, store)
    age(database)
    assert jobs.mark_for_deletion(database, CAT.sha256, "this")
    looked = []

    def end(seconds: float) -> None:
        looked.append(seconds)
        store.delete(KEY)
        assert jobs.finish_deletion(database, CAT.sha256, "this")

    monkeypatch.setattr("stylequeue_shared.jobs.pictures.time.sleep", end)
    jobs.keep_pictures(database, [CAT], patience=60)
    assert len(looked) == 1


def test_of_many_pictures_none_is_kept_while_one_is_being_deleted(
    database: Database, store: FolderStore
) -> None:
    keep(database, store)
    age(database)
    assert jobs.mark_for_deletion(database, CAT.sha256, "this")
    with pytest.raises(PictureBeingDeleted, match="try again"):
        jobs.keep_pictures(database, [picture("dog"), CAT], patience=0)
    assert rows(database) == 1


def test_marks_further_ahead_than_they_can_be_set_are_not_believed(
    database: Database, store: FolderStore
) -> None:
    keep(database, store)
    age(database)
    assert jobs.mark_for_deletion(database, CAT.sha256, "this")
    with database.write() as connection:
        ahead = now() + 3 * 3600 + MARK_SECONDS
        connection.execute(update(Picture).values(deleting_until=ahead))
    assert jobs.unused_pictures(database) == [CAT.sha256]
    keep(database, store)
    record(database)
    assert is_whole(database, store)


def test_pictures_used_in_the_future_are_used_now(
    database: Database, store: FolderStore
) -> None:
    keep(database, store)
    age(database, -365 * 86_400)
    jobs.correct_used_at(database)
    clean_up(database, store)
    assert rows(database) == 1
    age(database)
    clean_up(database, store)
    assert rows(database) == 0


def test_a_file_without_a_row_is_adopted_and_described_by_the_next_upload(
    database: Database, store: FolderStore
) -> None:
    assert jobs.adopt_pictures(database, [CAT.sha256]) == [CAT.sha256]
    assert jobs.adopt_pictures(database, [CAT.sha256]) == []
    keep(database, store)
    with database.read() as connection:
        found = connection.execute(text("SELECT * FROM pictures")).one()
    assert (found.media_type, found.width, found.height) == ("image/png", 64, 48)
