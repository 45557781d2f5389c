"""Numbers that are counted for the whole installation, and never go back."""

from sqlalchemy import Connection

from stylequeue_shared.database import upsert
from stylequeue_shared.models import Counter


def count(connection: Connection, name: str, more: float) -> None:
    """Add to the counter of that name."""
    row = upsert(connection, Counter).values(name=name, value=more)
    connection.execute(
        row.on_conflict_do_update(
            index_elements=[Counter.name],
            set_={"value": Counter.value + row.excluded.value},
        )
    )
