"""The connection to the database: SQLite in WAL mode, or PostgreSQL."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, Float, Select, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    TimeoutError,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from stylequeue_shared.addresses import DATABASE, database_address
from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.postgresql_engine import begin_statement, postgresql_engine

# Most connections that a process has at a time, unless it says otherwise. The sum over
# all processes stands in docs/scaling.md.
CONNECTIONS = 3
# How long a thread waits for one of them, before it is an outage.
POOL_SECONDS = 5.0
# A writer of SQLite waits for the others rather than fail: facts of WAL mode.
BUSY_MS = 20_000
# What a database raises that is down, full, busy or in fail-over: worth another try.
OUTAGE = (OperationalError, InterfaceError, InternalError, TimeoutError)


class now(FunctionElement[float]):  # noqa: N801 - reads as SQL does
    """The database's own clock: seconds since 1970, at the moment of the statement."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def upsert(connection: Connection, table: type[Any]) -> Any:
    """Return an INSERT that may say what to do on a conflict."""
    postgres = connection.dialect.name == "postgresql"
    return (postgresql.insert if postgres else sqlite.insert)(table)


class Database:
    """Short transactions on one engine; make it after a fork, never before.

    It opens at most that many `connections` to a server, and only when they are needed.
    `pooled=False` opens a connection for each transaction, for a process that forks.
    `patient=True` waits for a server however long a statement takes it.
    Raises BadConfiguration when the address cannot be understood.
    """

    def __init__(
        self,
        url: str,
        *,
        pooled: bool = True,
        patient: bool = False,
        connections: int = CONNECTIONS,
    ) -> None:
        address = database_address(url)
        kind = address.get_backend_name()
        pool: dict[str, Any] = {"poolclass": NullPool}
        if pooled:
            pool = {
                "pool_size": connections,
                # A file has no limit of connections.
                "max_overflow": -1 if kind == "sqlite" else 0,
                "pool_timeout": POOL_SECONDS,
            }
        # Each transaction is ended by the methods below: a second rollback when its
        # connection returns to the pool has nothing to do.
        pool["pool_reset_on_return"] = None
        make = _sqlite_engine if kind == "sqlite" else postgresql_engine
        try:
            self.engine = make(address, pool, patient=patient)
        except ArgumentError:
            raise BadConfiguration(
                f"{DATABASE}: the address of {kind} cannot be understood"
            ) from None
        self._is_sqlite, self._patient = kind == "sqlite", patient
        self._driver_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        self._compiled: dict[Select[Any], SQLCompiler] = {}

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(self._begin(writes=False))
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Open a connection for single statements, each a transaction by itself.

        This saves the two round trips that begin and commit a transaction. On SQLite
        a power cut may undo the last of them.
        """
        with self.engine.connect() as connection:
            if self._is_sqlite:
                _set_synchronous(connection, durable=False)
            yield connection

    def first(self, statement: Select[Any], **parameters: str) -> Any:
        """Return the first row of a SELECT of numbers and texts, None without one.

        The driver's own tuple: what thousands poll costs a fifth this way on SQLite.
        """
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compile(statement)
        names = compiled.positiontup
        given = parameters if names is None else [parameters[name] for name in names]
        try:
            return self._first(compiled.string, given)
        except self._driver_error as error:
            raise DBAPIError.instance(
                compiled.string, parameters, error, self._driver_error
            ) from error

    def _first(self, statement: str, given: Any) -> Any:
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(statement, given)
            row = cursor.fetchone()
            # Without this SQLite would go on reading, and could not tidy its log.
            cursor.close()
        except BaseException as error:
            # Nobody should use this connection again: its state is unknown.
            connection.invalidate(error)
            raise
        connection.close()
        return row

    def _compile(self, statement: Select[Any]) -> SQLCompiler:
        compiled = statement.compile(dialect=self.engine.dialect)
        assert isinstance(compiled, SQLCompiler)
        self._compiled[statement] = compiled
        return compiled

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """Open a transaction that writes; it commits at the end.

        What was committed survives a power cut. On SQLite this takes a flush of the
        disk, which `durable=False` saves for what may as well be lost, such as a
        heartbeat.
        """
        with self.engine.begin() as connection:
            if self._is_sqlite:
                _set_synchronous(connection, durable=durable)
            connection.exec_driver_sql(self._begin(writes=True))
            yield connection

    def _begin(self, *, writes: bool) -> str:
        """Return the statement that begins a transaction; the drivers begin none."""
        if not self._is_sqlite:
            return begin_statement(patient=self._patient)
        # SQLite must take the write lock at BEGIN: a transaction that reads first
        # and then writes fails at once with "database is locked".
        return "BEGIN IMMEDIATE" if writes else "BEGIN"

    def check(self) -> None:
        """See that the tables can be written to; raise what the driver raises."""
        name = {"name": f"check-{uuid4()}"}
        with self.write(durable=False) as connection:
            connection.execute(
                text("INSERT INTO counters (name, value) VALUES (:name, 0)"), name
            )
            connection.execute(text("DELETE FROM counters WHERE name = :name"), name)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _sqlite_engine(address: URL, pool: dict[str, Any], *, patient: bool) -> Engine:
    if address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(address, **pool)
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    # Transactions are begun by Database, not by the driver.
    connection.isolation_level = None
    # Not every SQLite is built with it.
    connection.create_function("exp", 1, _exp, deterministic=True)
    cursor = connection.cursor()
    # First, since turning WAL on may itself have to wait for another process.
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _exp(power: float | None) -> float | None:
    return None if power is None else math.exp(power)


def _set_synchronous(connection: Connection, *, durable: bool) -> None:
    """Set it where it differs: that cannot be done inside a transaction."""
    if connection.info.get("durable", False) != durable:
        wanted = "FULL" if durable else "NORMAL"
        connection.exec_driver_sql(f"PRAGMA synchronous={wanted}")
        connection.info["durable"] = durable
