import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import trustme

from stylequeue_shared.embedded import EmbeddedRedis
from stylequeue_shared.errors import BadConfiguration, MachineError
from stylequeue_shared.queue import QUEUE, TASK, Bell, worker_celery
from stylequeue_shared.settings import Settings
from tests.tls import speaking_tls


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    valkey = EmbeddedRedis(tmp_path)
    process = valkey.start()
    yield valkey.url
    valkey.stop(process)


@pytest.fixture
def hung() -> Iterator[str]:
    """A server that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"redis://:secret@127.0.0.1:{listener.getsockname()[1]}/0"


@pytest.fixture
def refused() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"redis://:secret@127.0.0.1:{listener.getsockname()[1]}/0"


@pytest.fixture
def bells() -> Iterator[list[Bell]]:
    made: list[Bell] = []
    yield made
    for bell in made:
        bell.close()


def bell(bells: list[Bell], url: str) -> Bell:
    bells.append(Bell(Settings(redis=url)))
    return bells[-1]


def test_a_wake_up_is_a_task_name_and_a_job_id_in_json(
    server: str, bells: list[Bell]
) -> None:
    ringing = bell(bells, server)
    assert ringing.waiting() == 0
    assert ringing.ring("some-job")
    assert ringing.waiting() == 1
    raw = ringing._redis.lindex(QUEUE, 0)
    assert isinstance(raw, bytes)
    message = json.loads(raw)
    assert message["headers"]["task"] == TASK
    assert message["headers"]["ignore_result"] is True
    assert message["content-type"] == "application/json"
    ringing.check()


def test_the_address_of_a_socket_may_hold_any_character(
    tmp_path: Path, bells: list[Bell]
) -> None:
    home = tmp_path / "a b%c#d?é"
    home.mkdir()
    valkey = EmbeddedRedis(home)
    process = valkey.start()
    try:
        ringing = bell(bells, valkey.url)
        assert ringing.ring("some-job")
        assert ringing.waiting() == 1
    finally:
        valkey.stop(process)


def test_a_server_with_a_password_is_understood(
    tmp_path: Path, bells: list[Bell]
) -> None:
    # A path too long for a socket: a port and a password instead.
    home = tmp_path / ("x" * 100)
    home.mkdir()
    valkey = EmbeddedRedis(home)
    process = valkey.start()
    try:
        assert valkey.url.startswith("redis://:")
        ringing = bell(bells, valkey.url)
        assert ringing.ring("some-job")
        assert ringing.waiting() == 1
    finally:
        valkey.stop(process)


def test_a_refused_broker_costs_next_to_nothing(
    refused: str, bells: list[Bell]
) -> None:
    ringing = bell(bells, refused)
    begun = time.monotonic()
    assert not ringing.ring("some-job")
    assert ringing.waiting() is None
    with pytest.raises(MachineError, match="Redis does not answer"):
        ringing.check()
    assert time.monotonic() - begun < 3


def test_a_hung_broker_costs_seconds_and_no_more(hung: str, bells: list[Bell]) -> None:
    ringing = bell(bells, hung)
    begun = time.monotonic()
    assert not ringing.ring("some-job")
    assert time.monotonic() - begun < 15
    begun = time.monotonic()
    assert ringing.waiting() is None
    assert time.monotonic() - begun < 8


def test_a_broker_that_comes_back_is_used_again(
    tmp_path: Path, bells: list[Bell]
) -> None:
    valkey = EmbeddedRedis(tmp_path)
    process = valkey.start()
    ringing = bell(bells, valkey.url)
    assert ringing.ring("some-job")
    valkey.stop(process)
    assert not ringing.ring("some-job")
    assert ringing.waiting() is None
    process = valkey.start()
    try:
        assert ringing.ring("some-job")
        assert ringing.waiting() == 2
    finally:
        valkey.stop(process)


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return made


@pytest.fixture
def encrypted(tmp_path: Path, authority: trustme.CA) -> Iterator[str]:
    """The address of a server that speaks TLS and asks for a password."""
    valkey = EmbeddedRedis(tmp_path)
    process = valkey.start()
    socket_file = tmp_path / "redis/redis.sock"
    client = redis.Redis(unix_socket_path=str(socket_file))
    client.config_set("requirepass", "p:w/d@")
    client.close()
    with speaking_tls(authority, socket_file) as port:
        yield f"rediss://:{quote('p:w/d@', safe='')}@localhost:{port}/0"
    valkey.stop(process)


def test_tls_and_a_password_are_understood_from_the_address_alone(
    encrypted: str, bells: list[Bell], tmp_path: Path
) -> None:
    url = f"{encrypted}?ssl_ca_certs={tmp_path / 'ca.pem'}"
    ringing = bell(bells, url)
    ringing.check()
    assert ringing.ring("some-job")
    assert ringing.waiting() == 1
    with worker_celery(Settings(redis=url)).connection_for_read() as worker:
        assert worker.default_channel.client.llen(QUEUE) == 1


@pytest.mark.parametrize(
    ("host", "query"),
    [
        ("localhost", ""),
        ("localhost", "?ssl_check_hostname=true"),
        ("127.0.0.1", "?ssl_ca_certs={folder}/ca.pem"),
    ],
    ids=["unknown authority", "unknown authority, other options", "another name"],
)
def test_a_certificate_that_does_not_hold_is_refused_by_all_of_us(
    encrypted: str, bells: list[Bell], tmp_path: Path, host: str, query: str
) -> None:
    url = encrypted.replace("localhost", host) + query.format(folder=tmp_path)
    ringing = bell(bells, url)
    with pytest.raises(MachineError):
        ringing.check()
    assert not ringing.ring("some-job")
    worker = worker_celery(Settings(redis=url))
    with pytest.raises(worker.connection_for_read().connection_errors):
        worker.connection_for_read().connect()


def test_a_bad_address_is_refused_by_name() -> None:
    with pytest.raises(BadConfiguration, match="STYLEQUEUE_REDIS"):
        Bell(Settings(redis="http://example.org"))


def test_a_worker_is_configured_for_jobs_that_run_for_hours() -> None:
    conf = worker_celery(Settings(redis="redis://localhost/0")).conf
    assert conf.task_acks_late is False
    assert conf.worker_disable_prefetch is True
    assert conf.worker_proc_alive_timeout == 60
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
