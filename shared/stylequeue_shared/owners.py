"""Forget the owners who use the workers no more."""

from sqlalchemy import delete

from stylequeue_shared.counting import count
from stylequeue_shared.database import Database, now
from stylequeue_shared.models import FORGOTTEN_OWNERS, Owner
from stylequeue_shared.stored_values import finite, time_of
from stylequeue_shared.turns import MOST_TOTAL_SECONDS

# What an owner had counts for nothing after two days. The row stays for a month, so
# that the owner's counter in /metrics does not start anew each weekend.
FORGOTTEN_SECONDS = 30 * 86_400.0


def forget_owners(database: Database) -> int:
    """Delete the rows of owners whose jobs last ran a month ago; return how many.

    What they had in all is added to a counter of its own, so that nothing is lost from
    the sum over all owners. An owner who comes back starts at 0.
    """
    idle = time_of(Owner.used_at) < now() - FORGOTTEN_SECONDS
    gone = delete(Owner).where(idle).returning(Owner.total_seconds)
    with database.write() as connection:
        totals = connection.scalars(gone).all()
        if totals:
            # Bounded here: SQLite 3.40 compares columns wrongly in RETURNING.
            bounded = [finite(one, 0.0, MOST_TOTAL_SECONDS) or 0.0 for one in totals]
            count(connection, FORGOTTEN_OWNERS, sum(bounded))
        return len(totals)
