from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from stylequeue_shared.database import Database


class Flaky(Database):
    """A real database that can be away."""

    down = False

    @contextmanager
    def write(self) -> Iterator[Connection]:
        if self.down:
            raise OperationalError("UPDATE", {}, OSError("server closed"))
        with super().write() as connection:
            yield connection
