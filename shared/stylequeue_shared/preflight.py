"""What must hold before a start; each refusal names what to change."""

import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stylequeue_shared.errors import BadConfiguration, MachineError
from stylequeue_shared.settings import Settings

# Enough for the database's log, and for some jobs' pictures.
FREE_BYTES = 200 * 1024**2


def running_file(home: Path) -> Path:
    """Return the file in which a running launcher says what it started."""
    return home / "running.json"


def read_running(home: Path) -> dict[str, Any]:
    """Read what the last launcher wrote down; empty if that is lost."""
    with suppress(OSError, ValueError):
        written = json.loads(running_file(home).read_text())
        if isinstance(written, dict):
            return written
    return {}


def make_home(home: Path) -> None:
    """Make the folder for our eyes only, and see that it can be written to."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"a")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadConfiguration(_no_room(home)) from None
        raise BadConfiguration(
            f"STYLEQUEUE_HOME: cannot write to {home} ({_reason(error)}); "
            "set it to a folder of yours"
        ) from None


def check_room(folder: Path, floor: int = FREE_BYTES) -> None:
    """Refuse to start where the first pictures would fill the disk."""
    if shutil.disk_usage(folder).free < floor:
        raise BadConfiguration(_no_room(folder))


def _no_room(folder: Path) -> str:
    return (
        f"STYLEQUEUE_HOME: less than {FREE_BYTES // 1024**2} MB are free on the disk "
        f"of {folder}; make room, or set it to a folder on another disk"
    )


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the folder; the operating system lets go of it however we end."""
    path = home / "running.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        other = read_running(home)
        raise BadConfiguration(
            f"STYLEQUEUE_HOME: {home} is in use by the StyleQueue at "
            f"{other.get('address', 'an address not yet known')} "
            f"(process {other.get('pid', 'unknown')}); "
            "stop that one, or set it to another folder"
        ) from None
    except OSError as error:
        os.close(handle)
        raise BadConfiguration(
            f"STYLEQUEUE_HOME: cannot lock {path} ({_reason(error)}); "
            "set it to a folder on a local disk"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def check_address(settings: Settings) -> None:
    """See that the web server will be able to listen."""
    host, port = settings.host, settings.port
    try:
        _bind(host, port)
    except socket.gaierror as error:
        raise BadConfiguration(
            f"STYLEQUEUE_HOST: {host} is no address ({error.strerror})"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = (
                f"STYLEQUEUE_PORT: {port} is taken by another program; "
                f"set it to a free one, such as {_free_port(host, port)}"
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            message = f"STYLEQUEUE_HOST: {host} is not an address of this machine"
        elif error.errno in (errno.EACCES, errno.EPERM):
            message = (
                f"STYLEQUEUE_PORT: this user may not listen on {port}; "
                "set it to one above 1023"
            )
        else:
            message = (
                f"STYLEQUEUE_PORT: cannot listen on {host}, port {port} "
                f"({_reason(error)})"
            )
        raise BadConfiguration(message) from None


def check_redis(settings: Settings) -> None:
    """Refuse an address of Redis here, before each part of its own does."""
    # Imported late: a start that is refused above need not wait for it.
    from stylequeue_shared.addresses import check_redis_address

    check_redis_address(settings.redis or "")


def migrate_database(settings: Settings) -> None:
    """Bring the tables up to date; raise MachineError when the database is away."""
    # Late: a start that is refused above need not wait for SQLAlchemy's import.
    from stylequeue_shared.database import OUTAGE
    from stylequeue_shared.migrate import migrate

    check_redis(settings)
    try:
        migrate(settings.database_url)
    except OUTAGE as error:
        said = str(getattr(error, "orig", error)).strip().split("\n")[0]
        raise MachineError(
            f"STYLEQUEUE_DATABASE: the database does not answer ({said})"
        ) from None


def check_tables(settings: Settings) -> None:
    """Refuse tables of another version; a database that is away may come yet."""
    from stylequeue_shared.database import OUTAGE, Database
    from stylequeue_shared.migrate import check

    check_redis(settings)
    database = Database(settings.database_url, pooled=False)
    try:
        check(database)
    except OUTAGE:
        return
    finally:
        database.close()


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as listener:
        # As the web server does: else a port stays taken a minute after a stop.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)


def _free_port(host: str, taken: int) -> int:
    for port in range(max(taken, 1023) + 1, 65536):
        with suppress(OSError):
            _bind(host, port)
            return port
    return 8000
