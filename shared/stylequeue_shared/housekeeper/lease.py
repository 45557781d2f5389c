"""The lease by which one housekeeper at a time is active."""

import math
import os
import secrets
import socket
from dataclasses import dataclass

from sqlalchemy import or_, select, update

from stylequeue_shared.database import Database, now, upsert
from stylequeue_shared.models import Lease

NAME = "housekeeper"
LEASE_SECONDS = 10.0


@dataclass(frozen=True)
class Taken:
    """Whether the lease is ours, and for how long before that it was nobody's."""

    is_ours: bool
    unattended_seconds: float = 0.0


class HousekeeperLease:
    """One housekeeper's claim to the lease."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def take(self) -> Taken:
        """Renew the lease, or take it if nobody holds it."""
        # A lease that ends later than one can be set now is of a clock that was ahead.
        # Twice the time, so that a clock which is adjusted a little changes nothing.
        farthest = now() + 2 * LEASE_SECONDS
        with self._database.write(durable=False) as connection:
            since = select(now() - Lease.until).where(Lease.name == NAME)
            ran_out = connection.scalar(since)
            row = upsert(connection, Lease).values(
                name=NAME, holder=self._holder, until=now() + LEASE_SECONDS
            )
            taken = connection.execute(
                row.on_conflict_do_update(
                    index_elements=[Lease.name],
                    set_={"holder": self._holder, "until": now() + LEASE_SECONDS},
                    where=or_(
                        Lease.holder == self._holder,
                        Lease.until <= now(),
                        Lease.until > farthest,
                    ),
                ).returning(Lease.name)
            )
            if taken.one_or_none() is None:
                return Taken(is_ours=False)
        if ran_out is not None and ran_out < -2 * LEASE_SECONDS:
            # Nobody knows how long ago its holder was there.
            return Taken(is_ours=True, unattended_seconds=math.inf)
        return Taken(is_ours=True, unattended_seconds=max(0.0, ran_out or 0.0))

    def leave(self) -> None:
        """Give the lease up, so that another need not wait for its end."""
        with self._database.write() as connection:
            ours = update(Lease).where(Lease.name == NAME)
            ours = ours.where(Lease.holder == self._holder)
            # The row stays: the next one is to know since when nobody kept house.
            connection.execute(ours.values(until=now()))
