"""The workers as they last described themselves."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite

from stylequeue_shared.database import Database, now
from stylequeue_shared.models import Worker

# Rows of workers that were killed go after this.
FORGOTTEN_SECONDS = 86_400


@dataclass(frozen=True)
class Identity:
    """One worker: its unique name and what it runs on."""

    name: str
    host: str
    device: str
    memory_bytes: int | None
    # What a job may take, and how fast it is: see `estimates`; None where unknown.
    budget_bytes: int | None = None
    gpu: bool | None = None
    operations_per_second: float | None = None
    low_operations_per_second: float | None = None
    bytes_per_second: float | None = None
    # Why it takes no more jobs.
    refuses: str | None = None


def beat(database: Database, worker: Identity) -> None:
    """Record that the worker is alive now, and what it is.

    One that was started again under its name may have another budget.
    """
    described = {**vars(worker), "seen_at": now()}
    with database.write() as connection:
        postgres = connection.dialect.name == "postgresql"
        dialect: Any = postgresql if postgres else sqlite
        row = dialect.insert(Worker).values(**described, started_at=now())
        connection.execute(
            row.on_conflict_do_update(index_elements=[Worker.name], set_=described)
        )


def leave(database: Database, name: str) -> None:
    """Remove a worker that ended, and those that were killed long ago."""
    with database.write() as connection:
        connection.execute(
            delete(Worker).where(
                (Worker.name == name) | (Worker.seen_at < now() - FORGOTTEN_SECONDS)
            )
        )
