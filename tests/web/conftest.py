import json
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import event, func, select
from sqlalchemy.pool import Pool

from stylequeue_shared import jobs, registry
from stylequeue_shared.artefacts import result_key, snapshot_key
from stylequeue_shared.database import Database
from stylequeue_shared.images import encode_png
from stylequeue_shared.jobs import Claim, Progress, Result
from stylequeue_shared.migrate import migrate
from stylequeue_shared.models import Job, JobStyle, Picture
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store, open_store
from stylequeue_web.app import Application, create_app
from stylequeue_web.services import NAME
from tests.shared.pictures import colourful, saved

JOBS = "/api/v1/jobs"
CONTENT = saved(colourful(96, 64), "PNG")
STYLE = saved(colourful(64, 80), "JPEG")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with its tables, made once and copied by each test."""
    home = tmp_path_factory.mktemp("migrated")
    migrate(Settings(home=home).database_url)
    return home


@pytest.fixture
def installation(tmp_path: Path, migrated_home: Path) -> Settings:
    settings = Settings(home=tmp_path / "home", max_waiting=5, max_file_mb=2)
    shutil.copytree(migrated_home, settings.home)
    return settings


def close(app: Application) -> None:
    opened = app.extensions[NAME]
    opened.bell.close()
    opened.database.close()


@pytest.fixture
def app(installation: Settings) -> Iterator[Application]:
    app = create_app(installation)
    yield app
    close(app)


@pytest.fixture
def client(app: Application) -> FlaskClient:
    app.test_client_class = Client
    return app.test_client()


@pytest.fixture
def database(installation: Settings) -> Iterator[Database]:
    opened = Database(installation.database_url)
    yield opened
    opened.close()


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """All statements that any connection of this process is given from now on."""
    statements: list[str] = []

    def note(connection: Any, *others: object) -> None:
        connection.set_trace_callback(statements.append)

    event.listen(Pool, "checkout", note)
    yield statements
    event.remove(Pool, "checkout", note)


@pytest.fixture
def store(installation: Settings) -> Store:
    return open_store(installation.store_url)


class Client(FlaskClient):
    """Reads each answer to its end, as a browser does, so that its file is closed."""

    def open(self, *args: Any, **options: Any) -> Any:
        return super().open(*args, **{"buffered": True, **options})


class Clock:
    """Goes on only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kept:
    """What an installation keeps of what was sent to it."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store

    def rows(self) -> int:
        with self._database.read() as connection:
            return sum(
                connection.scalar(select(func.count()).select_from(table)) or 0
                for table in (Job, JobStyle, Picture)
            )

    def files(self) -> list[str]:
        return sorted(self._store.keys())

    def is_nothing(self) -> bool:
        return self.rows() == 0 and self.files() == []


@pytest.fixture
def kept(database: Database, store: Store) -> Kept:
    return Kept(database, store)


def form(
    content: Any = CONTENT, style: Any = STYLE, settings: Any = None, **more: Any
) -> dict[str, Any]:
    """Return the fields of a submission; None leaves one out, bytes are a file."""

    def field(value: Any) -> Any:
        if isinstance(value, list):
            return [field(one) for one in value]
        if isinstance(value, bytes):
            return BytesIO(value), "picture"
        return json.dumps(value) if isinstance(value, dict) else value

    given = {"content": content, "style": style, "settings": settings, **more}
    return {name: field(value) for name, value in given.items() if value is not None}


@pytest.fixture
def submit(client: FlaskClient) -> Callable[..., dict[str, Any]]:
    """Submit through the API and return the job."""

    def send(**fields: Any) -> dict[str, Any]:
        answer = client.post(JOBS, data=form(**fields))
        assert answer.status_code == 201, answer.text
        body: dict[str, Any] = answer.get_json()
        return body

    return send


class Worker:
    """A worker without its engine: it writes what a worker would."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store

    def claim(self) -> Claim:
        claim = jobs.claim(self._database, "gpu-1", lease_seconds=30)
        assert claim
        return claim

    def snapshot(self, claim: Claim, step: int) -> None:
        key = snapshot_key(claim.job_id, claim.attempt, step)
        self._store.put(key, encode_png(colourful(600, 400)))
        jobs.add_snapshot(self._database, claim, key, self.progress(step), (64, 48))

    def succeed(self, claim: Claim) -> None:
        key = result_key(claim.job_id, claim.attempt, claim.settings.result_suffix)
        self._store.put(key, encode_png(colourful(600, 400)))
        made = Result(key, 600, 400)
        jobs.succeed(self._database, claim, self.progress(700), made)

    @staticmethod
    def progress(step: int) -> Progress:
        return Progress(step, 0.07, 0.43, 8.1, 71.6)


@pytest.fixture
def beat(database: Database) -> Callable[..., None]:
    """Let a worker be seen now: a fast one unless told otherwise."""

    def send(name: str = "gpu-1", **given: Any) -> None:
        fast = {
            "budget_bytes": 10**10,
            "gpu": False,
            "operations_per_second": 1e12,
            "low_operations_per_second": None,
            "bytes_per_second": 1e11,
        }
        registry.beat(
            database, registry.Identity(name, "castle", "H100", None, **fast | given)
        )

    return send


@pytest.fixture
def worker(database: Database, store: Store) -> Worker:
    return Worker(database, store)
