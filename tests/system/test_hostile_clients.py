"""Hostile clients of every kind, before a real server and before nginx."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from bench.seaweedfs import free_ports
from bench.services import Client, spawn
from bench.slow_clients import finished_job_with_result, temporary_bytes
from stylequeue_shared.settings import Settings
from stylequeue_web.server import THREADS
from tests.nginx import documented, running_nginx
from tests.system import hostile
from tests.system.hostile import Crowd, get, last, send_last, statuses, with_length
from tests.system.well_behaved import WellBehaved, submit
from tests.web.conftest import JOBS
from tests.web.test_server import wait_for

TOKEN = "a-token-of-operators"
DOORS = ("direct", "nginx")
CROWD_SECONDS = 6.0
# For a process that has read its first uploads; a leak of the crowd's bodies shows.
GROWTH_BYTES = 100_000_000


class Server(NamedTuple):
    """A running web server, how to reach it, and what it was like before."""

    pid: int
    ports: dict[str, int]
    job: str
    temporary: Path
    log: Path
    family: dict[int, psutil.Process]

    def client(self, door: str, source: str) -> Client:
        return Client("127.0.0.1", self.ports[door], source)


def before_nginx(port: int, web_port: int) -> str:
    """Return the documented proxy, without TLS and without a path of its own."""
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{port}",
        "location /queue/": "location /",
        "Prefix /queue": 'Prefix ""',
        "http://127.0.0.1:8000": f"http://127.0.0.1:{web_port}",
    }
    return re.sub(r" *ssl_certificate.*\n", "", documented(changes))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    temporary = folder / "temporary"
    temporary.mkdir()
    direct, behind = free_ports(2)
    settings = Settings(
        home=folder / "home",
        port=direct,
        operator_token=TOKEN,
        trusted_proxies=("127.0.0.1",),
    )
    job = finished_job_with_result(settings)
    process = spawn("web", settings, folder / "log", more={"TMPDIR": str(temporary)})
    try:
        with running_nginx(folder, before_nginx(behind, direct)):
            ports = {"direct": direct, "nginx": behind}
            client = Client("127.0.0.1", behind)
            wait_for(client.is_up, 90)
            first = psutil.Process(process.pid)
            wait_for(lambda: len(first.children()) >= 2)
            # Each process reads its first pictures.
            for number in range(6):
                assert submit(Client("127.0.0.1", direct, f"127.0.1.{number + 1}"))
            family = {one.pid: one for one in (first, *first.children())}
            paths = temporary, folder / "log"
            yield Server(process.pid, ports, f"{JOBS}/{job}", *paths, family)
    finally:
        process.terminate()
        process.wait(60)


def is_allowed(status: int) -> bool:
    return status < 500 or status == 503


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", hostile.REFUSED)
def test_what_makes_no_sense_is_refused(server: Server, name: str, door: str) -> None:
    sent, allowed = hostile.REFUSED[name]
    received = send_last(server.ports[door], sent, "127.0.0.7")
    found = set(statuses(received))
    # nginx may reset a client that still sends what it does not read.
    assert found or door == "nginx"
    assert found <= allowed, received[:1000]
    assert server.client(door, "127.0.0.1").is_up()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", [*hostile.TWO_FRAMINGS, *hostile.MALFORMED])
def test_no_request_is_smuggled_in_the_body_of_another(
    server: Server, name: str, door: str
) -> None:
    sent = {**hostile.TWO_FRAMINGS, **hostile.MALFORMED}[name]
    received = send_last(server.ports[door], sent, "127.0.0.8")
    # nginx has a status of its own for codings that it does not know.
    allowed = {400} if door == "direct" else {400, 501}
    assert len(statuses(received)) == 1, received
    assert set(statuses(received)) <= allowed, received
    assert b"alive" not in received


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("count", [99, 100])
def test_too_many_styles_are_counted(server: Server, count: int, door: str) -> None:
    received = send_last(server.ports[door], hostile.styles(count), "127.0.0.9")
    assert statuses(received) == [422], received
    answer = json.loads(received.partition(b"\r\n\r\n")[2])
    assert answer["field"] == "style"
    assert str(count) in answer["detail"]


@pytest.mark.parametrize("door", DOORS)
def test_pipelined_requests_with_bodies_are_answered_in_turn(
    server: Server, door: str
) -> None:
    asked = get(b"/healthz").removesuffix(b"\r\n")
    sent = with_length(asked, b"GET /nowhere HTTP/1.1\r\n\r\n") * 20
    received = send_last(server.ports[door], sent + last(b"http://a/healthz"))
    assert statuses(received) == [200] * 21, received


@pytest.mark.parametrize("door", DOORS)
def test_wrong_tokens_do_not_lock_out_the_right_one(server: Server, door: str) -> None:
    client = server.client(door, f"127.0.2.{1 + DOORS.index(door)}")

    def resume(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return client.ask("/api/v1/queue/resume", "POST", headers=headers)[0]

    # Each process of the server counts for itself.
    assert {resume("wrong") for _ in range(100)} == {401, 429}
    assert resume(TOKEN) == 202


def let_come(crowd: Crowd, server: Server) -> None:
    """Let slow, silent and idle clients come, all at once."""
    direct, both = [server.ports["direct"]], list(server.ports.values())
    begun = hostile.picture(b"content", b"x" * 80_000)
    chunked = hostile.CHUNKED + b"\r\nfffff\r\nabc"
    expect = hostile.SUBMIT + b"Expect: 100-continue\r\n"
    crowd.add(200, both, with_length(hostile.SUBMIT, begun, 2_000_000), b"x")
    crowd.add(50, both, b"GET / HTTP/1.1\r\n", b"A: b\r\n")
    crowd.add(30, both, get(f"{server.job}/result".encode()), reads=False)
    crowd.add(50, both, with_length(hostile.NOWHERE, b"x", 1_000_000))
    crowd.add(50, both, with_length(hostile.SUBMIT, b"x" * 10_000, 10**10))
    crowd.add(50, both, with_length(expect, b"", 1_000_000))
    crowd.add(50, both, hostile.SUBMIT + chunked, b"x")
    crowd.add(50, both, get(b"/") * 20, reads=False)
    crowd.add(50, both, b"\x16\x03\x01\x00\xdc\x01\x00" + b"\x03" * 200)
    crowd.add(500, direct, get(b"/healthz"))


def send_costly(server: Server, number: int) -> int:
    """Submit a picture of thousands of scans; return the answer's status."""
    port = server.ports[DOORS[number % 2]]
    received = send_last(port, hostile.COSTLY, f"127.0.4.{number + 1}")
    (status,) = statuses(received)
    return status


def test_a_crowd_of_hostile_clients_holds_up_nobody(server: Server) -> None:
    clients = [server.client(door, f"127.0.3.{n + 1}") for n, door in enumerate(DOORS)]
    jobs = [submit(client) for client in clients for _ in range(3)]
    connections = count_connections(server)
    memory = {pid: one.memory_info().rss for pid, one in server.family.items()}
    with (
        ThreadPoolExecutor(60) as pool,
        Crowd() as crowd,
        WellBehaved(pool, clients, server.job) as others,
    ):
        let_come(crowd, server)
        until = time.monotonic() + CROWD_SECONDS
        costly = [pool.submit(send_costly, server, number) for number in range(24)]
        for job in jobs:
            assert clients[0].ask(f"{JOBS}/{job}/cancel", "POST")[0] == 202
        crowd.drip_while(lambda: time.monotonic() < until)
        others.end()
        assert {one.result() for one in costly} <= {422, 503}
    assert all(map(is_allowed, statuses(crowd.received)))
    assert_as_before(server, connections, memory)
    for client in clients:
        submit(client)


def count_connections(server: Server) -> int:
    return sum(len(one.net_connections("tcp")) for one in server.family.values())


def assert_as_before(server: Server, connections: int, memory: dict[int, int]) -> None:
    """See that the server holds nothing more of clients that have left."""
    first = server.family[server.pid]
    assert {server.pid, *(one.pid for one in first.children())} == set(server.family)
    wait_for(lambda: count_connections(server) <= connections + 4, 60)
    wait_for(lambda: temporary_bytes(server.pid) == 0, 60)
    assert list(server.temporary.iterdir()) == []
    assert "Traceback" not in server.log.read_text()
    for pid, one in server.family.items():
        # Those that a pool keeps, and what else runs in the process.
        assert one.num_threads() <= THREADS + 8
        assert one.memory_info().rss - memory[pid] < GROWTH_BYTES
