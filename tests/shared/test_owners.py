from sqlalchemy import select

from stylequeue_shared import reading
from stylequeue_shared.database import Database, now
from stylequeue_shared.models import Owner
from stylequeue_shared.owners import FORGOTTEN_SECONDS, forget_owners
from stylequeue_shared.reading import FORGOTTEN

NEVER = 1e300


def write(database: Database, name: str, idle: float, total: float) -> None:
    values = {"used_seconds": 1.0, "used_at": now() - idle, "total_seconds": total}
    with database.write() as connection:
        connection.execute(Owner.__table__.insert().values(name=name, **values))


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(Owner.name).order_by(Owner.name)))


def test_owners_idle_for_a_month_are_forgotten_and_others_are_not(
    database: Database,
) -> None:
    write(database, "ann", FORGOTTEN_SECONDS + 60, 5.0)
    write(database, "bob", FORGOTTEN_SECONDS - 60, 7.0)
    assert forget_owners(database) == 1
    assert names(database) == ["bob"]
    assert forget_owners(database) == 0


def test_the_sum_over_all_owners_never_goes_back(database: Database) -> None:
    for number, total in enumerate([5.0, 7.0, NEVER]):
        write(database, f"owner{number}", FORGOTTEN_SECONDS + 60, total)
    before = sum(reading.worker_seconds(database).values())
    assert forget_owners(database) == 3
    found = reading.worker_seconds(database)
    assert list(found) == [FORGOTTEN]
    assert sum(found.values()) == before


def test_an_owner_of_a_time_without_meaning_is_forgotten(database: Database) -> None:
    write(database, "ann", 1e300, 5.0)
    assert forget_owners(database) == 1
