"""Check the addresses of the database and of Redis before anything connects."""

import inspect
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from stylequeue_shared.errors import BadConfiguration

DATABASE, REDIS = "STYLEQUEUE_DATABASE", "STYLEQUEUE_REDIS"
DRIVERS = ("sqlite", "postgresql+psycopg")
# PostgreSQL has many options; an error message lists these.
USUAL = ("host", "sslmode", "sslrootcert", "target_session_attrs", "application_name")
# Both redis-py and Celery understand these.
CERTIFICATE_CHECKS = ("none", "optional", "required")


def database_address(url: str) -> URL:
    """Read the address of the database. Raises BadConfiguration."""
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        raise BadConfiguration(
            f"{DATABASE}: not an address such as "
            "postgresql+psycopg://user:password@host/name or sqlite:////folder/file.db"
        ) from None
    if address.drivername in ("postgresql", "postgres"):
        address = address.set(drivername="postgresql+psycopg")
    if address.drivername not in DRIVERS:
        raise BadConfiguration(
            f"{DATABASE}: {address.drivername} is not supported; "
            f"use {' or '.join(DRIVERS)}"
        )
    _check_options(DATABASE, address.query, _database_options(address))
    return address


def check_redis_address(url: str) -> None:
    """Refuse options in the address of Redis that nobody knows.

    Raises BadConfiguration.
    """
    address = urlsplit(url)
    options = dict(parse_qsl(address.query, keep_blank_values=True))
    _check_options(REDIS, options, _redis_options(address.scheme))
    if options.get("ssl_cert_reqs", "required") not in CERTIFICATE_CHECKS:
        raise BadConfiguration(
            f"{REDIS}: ssl_cert_reqs in the address has another value than those "
            f"allowed, which are {', '.join(CERTIFICATE_CHECKS)}"
        )


def _check_options(setting: str, found: Iterable[str], allowed: set[str]) -> None:
    """Refuse the first option that is not allowed.

    The message has no value from the address, since it may be a password.
    """
    for name in found:
        if name not in allowed:
            # PostgreSQL has some fifty.
            usual = ", ".join(sorted(allowed & set(USUAL) or allowed))
            raise BadConfiguration(
                f"{setting}: found the unknown option {name[:40]!r} in the address; "
                + (f"usual ones are {usual}" if usual else "it may have none")
            )


def _database_options(address: URL) -> set[str]:
    if address.get_backend_name() == "sqlite":
        return set()
    # Imported late: a driver is loaded only where its database is used.
    from psycopg import pq

    return {option.keyword.decode() for option in pq.Conninfo.get_defaults()}


def _redis_options(scheme: str) -> set[str]:
    """Return the options that both redis-py and Celery take from an address.

    Celery takes none but those of TLS.
    """
    if scheme != "rediss":
        return set()
    # Imported late: most commands do without Redis.
    from redis.connection import SSLConnection

    names = inspect.signature(SSLConnection).parameters
    return {name for name in names if name.startswith("ssl_")}
