"""A housekeeper with its database, store and clock, for tests."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Select, func, select, update

from stylequeue_shared import jobs, registry
from stylequeue_shared.artefacts import (
    clean_key,
    original_key,
    rendition_key,
    result_key,
    snapshot_key,
)
from stylequeue_shared.housekeeper.housekeeper import Housekeeper
from stylequeue_shared.models import Job, Picture, Worker
from stylequeue_shared.queue import Bell
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store
from stylequeue_shared.store_folder import FolderStore
from tests.shared.outages import Flaky
from tests.shared.submitting import HALF_WAY, claim, picture, run_out, submit

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


class Blocked(FolderStore):
    """A real store whose deletions wait until they are let through."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_blocked, self.let_through = threading.Event(), threading.Event()

    def delete_prefix(self, prefix: str) -> None:
        self.is_blocked.set()
        self.let_through.wait()
        super().delete_prefix(prefix)


class Stubborn(FolderStore):
    """A real store that keeps everything whose key has a certain part."""

    def __init__(self, root: Path, part: str) -> None:
        super().__init__(root)
        self.part = part

    def delete_prefix(self, prefix: str) -> None:
        self._refuse(prefix)
        super().delete_prefix(prefix)

    def delete(self, key: str) -> None:
        self._refuse(key)
        super().delete(key)

    def _refuse(self, key: str) -> None:
        if self.part in key:
            raise PermissionError(1, "Operation not permitted")


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

    def all(self, wanted: Select[Any]) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.scalars(wanted))

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

    def long_ago(self, *columns: Any) -> None:
        """Let times that are set lie years back, such as the last try of a deletion."""
        with self.database.write() as connection:
            for column in columns:
                table = column.class_
                connection.execute(
                    update(table).where(column.is_not(None)).values({column.key: 1.0})
                )

    def ended(self) -> str:
        """End a job that has files."""
        job_id = submit(self.database)
        held = claim(self.database)
        assert held.job_id == job_id
        for key in (snapshot_key(job_id, 1, 50), result_key(job_id, 1)):
            self.store.put(key, b"picture")
            self.store.put(rendition_key(key, 512), b"rendition")
        result = jobs.Result(result_key(job_id, 1), 64, 48)
        jobs.succeed(self.database, held, HALF_WAY, result)
        return job_id
