"""What whole-system tests run on: a real server, a real database, a real store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stylequeue_shared.embedded import EmbeddedRedis
from stylequeue_shared.migrate import migrate
from stylequeue_shared.settings import Settings


@contextmanager
def running_valkey(home: Path) -> Iterator[str]:
    server = EmbeddedRedis(home)
    process = server.start()
    try:
        yield server.url
    finally:
        server.stop(process)


@contextmanager
def running_installation(home: Path) -> Iterator[Settings]:
    home.mkdir(exist_ok=True)
    with running_valkey(home) as url:
        # Small pictures need no more threads, and several would wait for each other.
        more = {"device": "cpu", "threads": 1, "lease_seconds": 3}
        settings = Settings(home=home, redis=url, **more)
        migrate(settings.database_url)
        yield settings


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[str]:
    """The address of a real server of the Redis protocol."""
    with running_valkey(tmp_path) as url:
        yield url


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Settings]:
    """Settings with a migrated database and a running Valkey; no process of ours."""
    with running_installation(tmp_path / "home") as settings:
        yield settings
