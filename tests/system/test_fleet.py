"""The short form of `bench.hosts`: processes for hosts, with proxies between them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from bench.hosts import HOSTS, SERVERS, Network, run
from bench.seaweedfs import BUCKET, SeaweedFS, free_ports, set_variables, variables
from bench.services import Client
from stylequeue_shared.settings import Settings
from tests.proxy import Line, database_target, redis_target, through
from tests.system.conftest import running_valkey

LEASE_SECONDS = 4.0
SMALL = {"image_size": 96, "steps": 150, "snapshot_every": 75}


class Proxies(Network):
    """Each host reaches each server through a line of its own."""

    def __init__(self, direct: Settings, s3_port: int, stack: ExitStack) -> None:
        self.direct = direct
        self.web = Client("127.0.0.1", direct.port)
        targets = {
            "redis": redis_target(direct),
            "postgresql": database_target(direct),
            "s3": s3_port,
        }
        self._lines = {
            (host, server): stack.enter_context(Line(targets[server]))
            for host in HOSTS
            if host not in SERVERS
            for server in SERVERS
        }

    def settings(self, host: str) -> Settings:
        lines = (self._lines[host, server] for server in ("redis", "postgresql"))
        near = through(self.direct, *lines)
        return self.direct.model_copy(update={**near, "home": self.direct.home / host})

    def more(self, host: str) -> Mapping[str, str]:
        return variables(self._lines[host, "s3"].port)

    def cut(self, host: str) -> None:
        for ends, line in self._lines.items():
            if host in ends:
                line.cut()

    def heal(self, host: str) -> None:
        for ends, line in self._lines.items():
            if host in ends:
                line.heal()


@pytest.fixture
def network(
    tmp_path: Path,
    postgresql_url: str,
    seaweedfs: SeaweedFS,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Network]:
    home = tmp_path / "home"
    home.mkdir()
    set_variables(monkeypatch, seaweedfs.environment)
    [port] = free_ports(1)
    with ExitStack() as stack:
        redis = stack.enter_context(running_valkey(home))
        direct = Settings(
            **{"home": home, "redis": redis, "database": postgresql_url},
            **{"store": f"s3://{BUCKET}/{uuid4().hex}", "device": "cpu"},
            **{"threads": 1, "lease_seconds": LEASE_SECONDS, "port": port},
        )
        yield Proxies(direct, seaweedfs.port, stack)


@pytest.mark.timeout(900)
def test_a_fleet_loses_and_doubles_nothing_whoever_is_cut_off(
    network: Network, tmp_path: Path
) -> None:
    seconds = 2 * LEASE_SECONDS
    rows, broken = run(network, tmp_path / "logs", 4, seconds, print, **SMALL)
    assert broken == {"lost": 0, "ended twice": 0, "another picture": 0}
    ended = {row["cut off"]: row["attempts ended by it"] for row in rows}
    # Another worker took the job of the one that was cut off; no server took one.
    assert ended == {"worker-1": 1, "redis": 0, "postgresql": 0, "s3": 0}
