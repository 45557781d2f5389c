from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from stylequeue_shared.database import Database


class Flaky(Database):
    """A real database that can be away."""

    down = False

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        self._answer()
        with super().write(durable=durable) as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        self._answer()
        with super().autocommit() as connection:
            yield connection

    def _answer(self) -> None:
        if self.down:
            raise OperationalError("UPDATE", {}, OSError("server closed"))
