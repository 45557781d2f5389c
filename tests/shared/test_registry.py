from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from stylequeue_shared import registry
from stylequeue_shared.database import Database, now
from stylequeue_shared.models import Base, Worker

HERE = registry.Identity("w1@here", "here", "CPU", 1024)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    Base.metadata.create_all(database.engine)
    yield database
    database.close()


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(Worker.name).order_by(Worker.name)))


def grow_old(database: Database, seconds: float) -> None:
    with database.write() as connection:
        connection.execute(update(Worker).values(seen_at=now() - seconds))


def test_a_beat_makes_a_worker_known_and_keeps_it_so(database: Database) -> None:
    registry.beat(database, HERE)
    grow_old(database, 100)
    registry.beat(database, HERE)
    with database.read() as connection:
        row = connection.execute(
            select(Worker.device, Worker.memory_bytes, now() - Worker.seen_at)
        ).one()
    assert row[:2] == ("CPU", 1024)
    assert abs(row[2]) < 10


def test_a_worker_that_was_started_anew_is_known_as_what_it_is_now(
    database: Database,
) -> None:
    registry.beat(database, HERE)
    anew = registry.Identity(
        *("w1@here", "there", "GPU", 4096),
        budget_bytes=2**40,
        gpu=True,
        operations_per_second=3e14,
        low_operations_per_second=6e14,
        bytes_per_second=2e12,
    )
    registry.beat(database, anew)
    with database.read() as connection:
        row = connection.execute(select(Worker.__table__)).one()._asdict()
    assert {name: row[name] for name in vars(anew)} == vars(anew)


def test_a_worker_that_leaves_is_forgotten_and_no_other(database: Database) -> None:
    registry.beat(database, HERE)
    registry.beat(database, registry.Identity("w2@here", "here", "CPU", None))
    registry.leave(database, "w1@here")
    assert names(database) == ["w2@here"]


def test_workers_that_were_killed_long_ago_are_forgotten(database: Database) -> None:
    registry.beat(database, HERE)
    grow_old(database, registry.FORGOTTEN_SECONDS + 60)
    registry.beat(database, registry.Identity("w2@here", "here", "CPU", None))
    registry.leave(database, "w3@here")
    assert names(database) == ["w2@here"]
