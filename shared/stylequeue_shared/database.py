"""The connection to the database: SQLite in WAL mode, or PostgreSQL."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Float, Select, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
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

from stylequeue_shared.errors import BadConfiguration

DRIVERS = ("sqlite", "postgresql+psycopg")
# A writer of SQLite waits for the others rather than fail: facts of WAL mode.
BUSY_MS = 20_000
# How long PostgreSQL lets a client that was stopped, or whose host is gone, hold locks
# in the middle of a transaction, and how long others wait for one. The latter is less
# than what a client waits for an answer, so that none is left behind waiting.
IDLE_SECONDS = {"idle_in_transaction_session_timeout": 15, "lock_timeout": 8}
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

    `pooled=False` opens a connection for each transaction, for a process that forks.
    `patient=True` waits for a server however long a statement takes it.
    Raises BadConfiguration when the address cannot be understood.
    """

    def __init__(self, url: str, *, pooled: bool = True, patient: bool = False) -> None:
        self.engine = _engine(url, pooled=pooled, patient=patient)
        # SQLite must take the write lock at BEGIN: a transaction that reads first
        # and then writes fails at once with "database is locked".
        self._writer = self.engine.execution_options(writes=True)
        self._alone = _engine(
            url,
            pooled=pooled,
            patient=patient,
            # Each statement stands alone: nothing is begun, nothing rolled back.
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
        )
        self._driver_error: type[Exception] = self._alone.dialect.loaded_dbapi.Error
        self._compiled: dict[Select[Any], SQLCompiler] = {}

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Open a connection for single statements, each a transaction by itself.

        Without the two round trips that begin and commit one.
        """
        with self._alone.connect() as connection:
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
            connection = self._alone.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute(compiled.string, given)
                row = cursor.fetchone()
                # Else SQLite would go on reading, and could not tidy its log.
                cursor.close()
                return row
            finally:
                connection.close()
        except self._driver_error as error:
            raise DBAPIError.instance(
                compiled.string, parameters, error, self._driver_error
            ) from error

    def _compile(self, statement: Select[Any]) -> SQLCompiler:
        compiled = statement.compile(dialect=self._alone.dialect)
        assert isinstance(compiled, SQLCompiler)
        self._compiled[statement] = compiled
        return compiled

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that writes; it commits at the end."""
        with self._writer.begin() as connection:
            yield connection

    def check(self) -> None:
        """Ask the database for an answer; raise what the driver raises."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        self._alone.dispose()


def _engine(url: str, *, pooled: bool, patient: bool, **more: Any) -> Engine:
    try:
        address = make_url(url)
    except ArgumentError:
        raise BadConfiguration(
            "STYLEQUEUE_DATABASE: not an address such as "
            "postgresql+psycopg://user:password@host/name or sqlite:////folder/file.db"
        ) from None
    if address.drivername in ("postgresql", "postgres"):
        address = address.set(drivername="postgresql+psycopg")
    if address.drivername not in DRIVERS:
        raise BadConfiguration(
            f"STYLEQUEUE_DATABASE: {address.drivername} is not supported; "
            f"use {' or '.join(DRIVERS)}"
        )
    options = more if pooled else {**more, "poolclass": NullPool}
    if address.get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": 5}
        if pooled:
            # A restarted server leaves dead connections in the pool.
            options |= {"pool_pre_ping": True, "pool_size": 10, "max_overflow": 20}
        engine = create_engine(address, **options)
        if not patient:
            event.listen(engine, "do_connect", _connect_impatiently)
            event.listen(engine, "connect", _set_up_postgresql)
        return engine
    if address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(address, **options)
    event.listen(engine, "connect", _set_up_sqlite)
    if "isolation_level" not in more:
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_impatiently(
    dialect: object, record: object, given: Any, options: Any
) -> object:
    # Late: a driver is loaded only where its database is used.
    from stylequeue_shared.impatience import ImpatientConnection

    return ImpatientConnection.connect(*given, **options)


def _set_up_postgresql(connection: Any, record: object) -> None:
    # Not in the address: what pools connections may refuse options there.
    with connection.cursor() as cursor:
        for name, seconds in IDLE_SECONDS.items():
            cursor.execute(f"SET {name} = '{seconds}s'")
    connection.commit()


def _set_up_sqlite(connection: Any, record: object) -> None:
    # Transactions are begun by _begin_sqlite, not by the driver.
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


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
