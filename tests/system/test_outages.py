"""Servers that vanish under real workers: cut off, silent, killed, full."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.seaweedfs import SeaweedFS, set_variables
from bench.services import spawn
from stylequeue_shared import jobs
from stylequeue_shared.settings import Settings
from tests.proxy import Line, database_target, redis_target, through
from tests.system.conftest import running_valkey
from tests.system.running import Site
from tests.worker.submitting import ENDLESS, submit

# How soon the first waiting job is to start after an outage of a minute; and after a
# line went silent, which is found out only by waiting for what does not come.
PROMISED_SECONDS, SILENCE_SECONDS = 15.0, 40.0


@dataclass
class Network:
    """Servers, and the lines through which the product reaches them."""

    redis: Line
    database: Line
    # With the addresses of the servers themselves.
    direct: Settings
    # With those of the lines.
    settings: Settings


@pytest.fixture
def network(tmp_path: Path, postgresql_url: str) -> Iterator[Network]:
    home = tmp_path / "home"
    home.mkdir()
    with running_valkey(home) as url:
        direct = Settings(
            **{"home": home, "device": "cpu", "threads": 1, "lease_seconds": 3},
            **{"redis": url, "database": postgresql_url},
        )
        with (
            Line(redis_target(direct)) as redis,
            Line(database_target(direct)) as database,
        ):
            near = direct.model_copy(update=through(direct, redis, database))
            yield Network(redis, database, direct, near)


@pytest.fixture
def housekeeper(network: Network) -> Iterator[Path]:
    """A housekeeper that shares the workers' lines; gives its log."""
    log = network.settings.home / "housekeeper.log"
    process = spawn("housekeeper", network.settings, log)
    yield log
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture
def workers(network: Network) -> Iterator[Callable[..., Site]]:
    """Start a worker behind the lines, seen by tests without them."""
    with ExitStack() as stack:

        def start(name: str = "worker", **update: Any) -> Site:
            given, seen_by = (
                one.model_copy(update=update)
                for one in (network.settings, network.direct)
            )
            site = Site(given, seen_by, name)
            stack.callback(site.close)
            site.wait_for(lambda: "worker_ready" in site.log.read_text())
            return site

        yield start


# -- Redis ----------------------------------------------------------------------------


@contextmanager
def away_for_a_minute(line: Line) -> Iterator[None]:
    line.cut()
    yield
    time.sleep(60)
    line.heal()


@contextmanager
def silent_for_a_while(line: Line) -> Iterator[None]:
    line.silence()
    yield
    time.sleep(20)
    line.heal()


@contextmanager
def half_open(line: Line) -> Iterator[None]:
    line.strand()
    yield


@pytest.mark.timeout(600)
def test_workers_come_back_to_redis_by_themselves(
    network: Network, housekeeper: Path, workers: Callable[..., Site]
) -> None:
    site, other = workers("one"), workers("another")
    come_back(site, network.redis, away_for_a_minute, PROMISED_SECONDS)
    come_back(site, network.redis, silent_for_a_while, SILENCE_SECONDS)
    come_back(site, network.redis, half_open, SILENCE_SECONDS)
    events = {line["event"] for line in site.events() + other.events()}
    assert "job_lost" not in events


def come_back(
    site: Site,
    line: Line,
    disturb: Callable[[Line], AbstractContextManager[None]],
    promised: float,
) -> None:
    """Disturb two workers, one of them busy; both take jobs again, as promised."""
    long = site.submit(**ENDLESS)
    site.painting(long)
    step = site.row(long).step

    # Nobody rings: who is cut off could not, and none is to wait for it.
    with disturb(line):
        dropped, second, third = (
            submit(site.database, site.store, **ENDLESS) for _ in range(3)
        )
        jobs.request(site.database, dropped, "cancel")
        assert site.row(dropped).state == "cancelled"
        site.wait_for(lambda: site.row(long).step > step)
    healed = time.monotonic()
    site.wait_for(lambda: second_of(site, second, third) is not None)
    assert time.monotonic() - healed < promised, disturb.__name__

    # The one that was busy all the time has heard nothing yet: it is as good as new.
    running = second_of(site, second, third)
    waiting = second if running == third else third
    jobs.request(site.database, long, "cancel")
    site.wait_for(lambda: site.row(waiting).state == "running")
    rows = [site.row(job) for job in (long, second, third)]
    assert [row.attempt for row in rows] == [1, 1, 1]
    assert rows[1].worker != rows[2].worker
    for job in (second, third):
        jobs.request(site.database, job, "cancel")
        site.ended(job)


def second_of(site: Site, *waiting: str) -> str | None:
    return next((job for job in waiting if site.row(job).state == "running"), None)


# -- The database ---------------------------------------------------------------------


def test_a_job_goes_on_through_an_outage_of_the_database(
    network: Network, housekeeper: Path, workers: Callable[..., Site]
) -> None:
    # Ten leases long.
    site = workers()
    job = site.submit(**ENDLESS)
    site.painting(job)
    step, began = site.row(job).step, time.monotonic()
    network.database.cut()
    time.sleep(30)
    assert site.row(job).step - step < 200
    network.database.heal()
    # What was done meanwhile was not done in vain, nor is it done again.
    site.wait_for(lambda: site.row(job).step > step + 200)
    time.sleep(2 * network.settings.lease_seconds)
    row = site.row(job)
    assert (row.state, row.attempt, row.losses) == ("running", 1, 0)
    away = time.monotonic() - began
    assert row.steps_per_second * away == pytest.approx(row.step - step, rel=0.5)
    assert "progress_not_written" in site.log.read_text()
    assert "lease_ran_out" not in housekeeper.read_text()


def test_a_job_that_ends_while_the_database_is_away_has_ended_afterwards(
    network: Network, housekeeper: Path, workers: Callable[..., Site]
) -> None:
    site = workers()
    job = site.submit(steps=400, snapshot_every=400)
    site.painting(job)
    network.database.cut()
    site.wait_for(lambda: "end_not_written" in site.log.read_text())
    assert site.row(job).state == "running"
    time.sleep(2 * network.settings.lease_seconds)
    network.database.heal()
    row = site.ended(job)
    assert (row.state, row.attempt, row.step) == ("succeeded", 1, 400)
    Image.open(io.BytesIO(site.store.get(row.result_key))).load()


@pytest.mark.parametrize("silent", [False, True])
def test_a_database_that_falls_silent_holds_up_neither_worker_nor_job(
    network: Network, workers: Callable[..., Site], silent: bool
) -> None:
    site = workers(lease_seconds=30)
    job = site.submit(**ENDLESS)
    site.painting(job)
    if silent:
        network.database.silence()
        time.sleep(12)
        network.database.heal()
    else:
        network.database.strand()
    step = site.row(job).step
    site.wait_for(lambda: site.row(job).step > step)
    row = site.row(job)
    assert (row.state, row.attempt) == ("running", 1)
    jobs.request(site.database, job, "cancel")
    assert site.ended(job).state == "cancelled"


# -- The store ------------------------------------------------------------------------


def test_a_job_outlives_a_bucket_that_is_away(
    network: Network,
    workers: Callable[..., Site],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bucket").mkdir()
    server = SeaweedFS(tmp_path / "bucket")
    server.start()
    try:
        set_variables(monkeypatch, server.environment)
        site = workers(store="s3://pictures/outages")
        job = site.submit(steps=1500, snapshot_every=300)
        site.painting(job)
        server.kill()
        site.wait_for(lambda: "snapshot_dropped" in site.log.read_text())
        site.wait_for(lambda: "result_not_stored" in site.log.read_text())
        server.start()
        row = site.ended(job)
        assert (row.state, row.attempt, row.faults) == ("succeeded", 1, 0)
        Image.open(io.BytesIO(site.store.get(row.result_key))).load()
        # What could not be stored is not named.
        with_pictures = [one.key for one in snapshots(site, job)]
        assert with_pictures
        assert all(site.store.exists(key) for key in with_pictures)
    finally:
        server.kill()


def snapshots(site: Site, job: str) -> list[Any]:
    from sqlalchemy import select

    from stylequeue_shared.models import Snapshot

    with site.database.read() as connection:
        return list(
            connection.execute(select(Snapshot.__table__).where(Snapshot.job_id == job))
        )
