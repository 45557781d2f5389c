"""How much room the store has for further jobs, by its disk and by its quota."""

from sqlalchemy import Connection

from stylequeue_shared import reading
from stylequeue_shared.database import Database, upsert
from stylequeue_shared.errors import DiskFull
from stylequeue_shared.models import Counter
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store

# Below this much free space no job is accepted: its snapshots need room, too.
FREE_BYTES_FLOOR = 500_000_000
# Measuring walks over all files, which takes long in a folder and costs money in a
# bucket. Between two measurements the web servers add what they store.
MEASURE_SECONDS = 300.0
USED = "store_used_bytes"


def check(database: Database, store: Store, quota: int | None) -> None:
    """Raise DiskFull when the store has too little room for another job."""
    free = store.free_bytes()
    if free is not None and free < FREE_BYTES_FLOOR:
        raise DiskFull(
            f"The store has {free / 1e6:.0f} MB of free space; at least "
            f"{FREE_BYTES_FLOOR / 1e6:.0f} MB are needed to take a job."
        )
    if quota is None:
        return
    used = reading.counter(database, USED)
    if quota - used < FREE_BYTES_FLOOR:
        raise DiskFull(
            f"The store holds {used / 1e6:.0f} MB of the {quota / 1e6:.0f} MB that it "
            f"may (STYLEQUEUE_STORE_QUOTA_MB); at least {FREE_BYTES_FLOOR / 1e6:.0f} "
            "MB must be left to take a job."
        )


def measure(database: Database, store: Store, settings: Settings) -> None:
    """Record the size of all files in the store, if there is a quota."""
    if settings.store_quota_bytes is None:
        return
    used = store.used_bytes()
    with database.write(durable=False) as connection:
        _record(connection, used, used)


def add_used(database: Database, settings: Settings, number: int) -> None:
    """Record that a file of so many bytes was stored, if there is a quota."""
    if settings.store_quota_bytes is None:
        return
    with database.write(durable=False) as connection:
        _record(connection, number, Counter.value + number)


def _record(connection: Connection, first: int, later: object) -> None:
    row = upsert(connection, Counter).values(name=USED, value=first)
    connection.execute(
        row.on_conflict_do_update(index_elements=[Counter.name], set_={"value": later})
    )
