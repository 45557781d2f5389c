"""The workers as they last described themselves."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, delete, update

from stylequeue_shared.database import Database, now, upsert
from stylequeue_shared.errors import NotFound
from stylequeue_shared.models import Worker

# Rows of workers that were killed go after this.
FORGOTTEN_SECONDS = 86_400
# What an operator may ask of a worker's running job.
Drain = Literal["finish", "hand_back"]


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
    # How long jobs took here lately, by their own estimates.
    pace: float | None = None
    # What it counted since its start.
    tally: dict[str, float] | None = None


def beat(database: Database, worker: Identity) -> str | None:
    """Record that the worker is alive now, and what it is; return if it is to drain.

    One that was started again under its name may have another budget.
    """
    described = {**vars(worker), "seen_at": now()}
    with database.write(durable=False) as connection:
        row = upsert(connection, Worker).values(**described, started_at=now())
        drain: str | None = connection.scalar(
            row.on_conflict_do_update(
                index_elements=[Worker.name], set_=described
            ).returning(Worker.drain)
        )
    return drain


def drain(database: Database, name: str, how: Drain) -> None:
    """Have a worker take no more jobs, and `finish` or `hand_back` the one it runs.

    It stays so until it is started anew. Raises NotFound.
    """
    with database.write() as connection:
        here = update(Worker).where(Worker.name == name.replace("\0", "?"))
        if not connection.execute(here.values(drain=how)).rowcount:
            raise NotFound(f"There is no worker {name[:200]!r}.")


def leave(database: Database, name: str) -> None:
    """Remove a worker that ended, and those that were killed long ago."""
    with database.write() as connection:
        connection.execute(delete(Worker).where((Worker.name == name) | _is_silent()))


def forget_silent(database: Database) -> None:
    """Remove workers that were killed long ago; the others remove themselves."""
    with database.write() as connection:
        connection.execute(delete(Worker).where(_is_silent()))


def _is_silent() -> ColumnElement[bool]:
    return Worker.seen_at < now() - FORGOTTEN_SECONDS
