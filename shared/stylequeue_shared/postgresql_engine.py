"""Connections to PostgreSQL, also behind PgBouncer and across a failover."""

import select
import time
from functools import partial
from typing import Any

from sqlalchemy import Dialect, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError

# How long PostgreSQL lets a client that was stopped, or whose host is gone, hold locks
# in the middle of a transaction, and how long others wait for one. The latter is less
# than what a client waits for an answer, so that none is left behind waiting.
IDLE_SECONDS = {"idle_in_transaction_session_timeout": 15, "lock_timeout": 8}
# SQLSTATEs after which a session of PostgreSQL is of no more use, though it may answer:
# the server is read-only since a failover, or ended the session for being idle. Codes
# that begin as in LOST_CLASSES say that the server shuts down or that the line broke.
LOST_CODES = frozenset({"25006", "25P03", "25P04"})
LOST_CLASSES = ("08", "57P")
# A connection that was used as lately as this is believed to work, unless its socket
# says otherwise. Asking the server each time doubles what a poll costs it.
FRESH_SECONDS = 1.0


def postgresql_engine(address: URL, pool: dict[str, Any], *, patient: bool) -> Engine:
    """Make an engine whose sessions need nothing of one another.

    `patient=True` waits however long an answer or a lock takes.
    """
    engine = create_engine(
        address,
        connect_args={
            "connect_timeout": 5,
            # The driver begins no transaction: Database does.
            "autocommit": True,
        },
        **pool,
    )
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", partial(_replace_dead, engine.dialect))
    event.listen(engine, "handle_error", _drop_lost)
    event.listen(engine, "connect", _prepare_only_in_own_session)
    if not patient:
        event.listen(engine, "do_connect", _connect_impatiently)
    return engine


def _connect_impatiently(
    dialect: object, record: object, given: Any, options: Any
) -> object:
    # Imported late: a driver is loaded only where its database is used.
    from stylequeue_shared.impatience import ImpatientConnection

    return ImpatientConnection.connect(*given, **options)


def _prepare_only_in_own_session(connection: Any, record: object) -> None:
    """Keep no prepared statements where each transaction may get another session.

    Behind PgBouncer in transaction mode a statement that was prepared is gone in the
    next transaction, or another client's statement has its name. A pooler shows itself
    by the number of the session that it made up. Without a pooler prepared statements
    halve the time of a poll.
    """
    with connection.cursor() as cursor:
        (session,) = cursor.execute("SELECT pg_backend_pid()").fetchone()
    if session != connection.info.backend_pid:
        connection.prepare_threshold = None


def _note_use(connection: object, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def _replace_dead(
    dialect: Dialect, connection: Any, record: Any, proxied: object
) -> None:
    """Have a connection opened anew that a restarted server left in the pool."""
    used_at = record.info.get("used_at")
    if used_at is None:
        return  # It was opened for this checkout.
    fresh = time.monotonic() - used_at < FRESH_SECONDS
    if fresh and not connection.closed and not _has_news(connection.fileno()):
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error:
        # SQLAlchemy replaces this connection and all that are older than this moment.
        raise InvalidatePoolError from None


def _has_news(socket: int) -> bool:
    """Whether the server sent something unasked, which it does as it ends a session."""
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


def begin_statement(*, patient: bool) -> str:
    """Return what begins a transaction, in one message with the limits that it has.

    PgBouncer would refuse them in the address, and would give a session on which they
    are set to other clients.
    """
    limits = {} if patient else IDLE_SECONDS
    set_local = [f"SET LOCAL {name} = '{n}s'" for name, n in limits.items()]
    return "; ".join(["BEGIN", *set_local])


def _drop_lost(context: ExceptionContext) -> None:
    """Have all connections opened anew when one of them proved to be of no more use.

    After a failover the old server may go on answering, and refuse to write: only new
    connections lead to the server that took over.
    """
    code = getattr(context.original_exception, "sqlstate", None) or ""
    if code in LOST_CODES or code.startswith(LOST_CLASSES):
        # SQLAlchemy then closes this connection, and others before they are used.
        context.is_disconnect = True
