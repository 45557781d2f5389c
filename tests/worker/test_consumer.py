import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu.utils import functional

from stylequeue_shared.embedded import EmbeddedRedis
from stylequeue_shared.queue import Bell, worker_celery
from stylequeue_shared.settings import Settings
from stylequeue_worker.consumer import Consumer


class BackAgain(Exception):
    """Raised when the outage has been long enough."""


def test_a_broker_that_is_away_for_an_hour_is_tried_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds
        if slept > 3600:
            raise BackAgain

    monkeypatch.setattr(functional, "sleep", sleep)
    with socket.socket() as closed:
        # Bound, and not listening: whoever connects is refused.
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        app = worker_celery(Settings(home=tmp_path, redis=url))
        plain = SimpleNamespace(use_eventloop=False)
        with pytest.raises(BackAgain):
            Consumer(print, app=app, controller=plain).connection_for_read()
    refused = [one for one in caplog.records if "Cannot connect" in one.getMessage()]
    assert len(refused) > 3600 / 10


@dataclass
class Broker:
    """A real Valkey that is made to refuse, and a worker that waits for messages."""

    folder: Path
    client: redis.Redis
    bell: Bell
    worker: "subprocess.Popen[bytes]"

    def takes(self, job: str) -> bool:
        """Whether the worker takes a wake-up within a generous time."""
        deadline = time.monotonic() + 60
        noted = self.folder / "noted"
        while job not in noted.read_text().split():
            if self.worker.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def said(self) -> int:
        """How often the worker's log says that the broker refused it."""
        log = (self.folder / "worker.log").read_text()
        return log.count("Trying to re") + log.count("Trying again")

    def break_connections(self) -> None:
        """Have the worker connect anew, as after a failover."""
        for kind in ("normal", "pubsub"):
            self.client.client_kill_filter(_type=kind, skipme=True)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("broker")
    valkey = EmbeddedRedis(folder)
    server = valkey.start()
    url = valkey.url.replace("redis+socket://", "unix://")
    (folder / "noted").touch()
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("noting_worker.py")),
                str(folder / "noted"),
            ],
            env={
                **os.environ,
                "STYLEQUEUE_HOME": str(folder),
                "STYLEQUEUE_REDIS": valkey.url,
            },
            stdout=log,
            stderr=log,
        )
    bell = Bell(Settings(home=folder, redis=valkey.url))
    with redis.Redis.from_url(url) as client:
        yield Broker(folder, client, bell, worker)
    worker.terminate()
    bell.close()
    status = worker.wait(60)
    valkey.stop(server)
    assert status == 0


def become_a_replica(broker: Broker) -> None:
    broker.client.replicaof("127.0.0.1", 1)


def become_a_replica_without_data(broker: Broker) -> None:
    broker.client.config_set("replica-serve-stale-data", "no")
    broker.client.replicaof("127.0.0.1", 1)


def run_out_of_memory(broker: Broker) -> None:
    broker.client.config_set("maxmemory", 1)
    broker.break_connections()


def ask_for_a_password(broker: Broker) -> None:
    broker.client.config_set("requirepass", "another")
    broker.break_connections()


def fail_to_write_to_disk(broker: Broker) -> None:
    # In the way of the snapshot that Valkey tries to write.
    (broker.folder / "redis/dump.rdb/full").mkdir(parents=True, exist_ok=True)
    broker.client.config_set("save", "900 1000000")
    broker.client.bgsave()
    deadline = time.monotonic() + 30
    while broker.client.info("persistence")["rdb_last_bgsave_status"] != "err":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def take_rights_away(broker: Broker) -> None:
    broker.client.execute_command("ACL", "SETUSER", "default", "-brpop", "-lpush")
    broker.break_connections()


def serve_again(broker: Broker) -> None:
    client: Any = broker.client
    client.replicaof("NO", "ONE")
    settings = {"replica-serve-stale-data": "yes", "maxmemory": 0, "save": ""}
    for name, value in {**settings, "requirepass": ""}.items():
        client.config_set(name, value)
    client.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize(
    "refuse",
    [
        become_a_replica,
        become_a_replica_without_data,
        run_out_of_memory,
        ask_for_a_password,
        fail_to_write_to_disk,
        take_rights_away,
    ],
)
def test_an_idle_worker_waits_out_a_broker_that_answers_with_errors(
    broker: Broker, refuse: Callable[[Broker], None]
) -> None:
    before, after = f"before-{refuse.__name__}", f"after-{refuse.__name__}"
    assert broker.bell.ring(before)
    assert broker.takes(before)
    said = broker.said()
    try:
        refuse(broker)
        # The web server does not wait, and the housekeeper sends it later.
        assert not broker.bell.ring("refused")
        deadline = time.monotonic() + 30
        while broker.said() <= said:
            assert broker.worker.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # It neither ends nor reconnects all the time.
        time.sleep(0.5)
        assert "Frequent restarts" not in (broker.folder / "worker.log").read_text()
    finally:
        serve_again(broker)
    assert broker.bell.ring(after)
    assert broker.takes(after)


def test_a_worker_that_waits_for_such_a_broker_still_ends_when_told_to(
    broker: Broker,
) -> None:
    """The last test of this worker."""
    said = broker.said()
    become_a_replica(broker)
    try:
        deadline = time.monotonic() + 30
        while broker.said() <= said:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        broker.worker.terminate()
        assert broker.worker.wait(30) == 0
    finally:
        serve_again(broker)
