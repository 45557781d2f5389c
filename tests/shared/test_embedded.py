import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from stylequeue_shared import embedded
from stylequeue_shared.embedded import EmbeddedRedis
from stylequeue_shared.errors import MachineError
from stylequeue_shared.settings import embedded_redis_file, embedded_redis_url


@contextmanager
def running(home: Path) -> Iterator["tuple[EmbeddedRedis, subprocess.Popen[bytes]]"]:
    server = EmbeddedRedis(home)
    process = server.start()
    try:
        yield server, process
    finally:
        server.stop(process)


@contextmanager
def client(url: str) -> Iterator["redis.Redis"]:
    connection = redis.Redis.from_url(url.replace("redis+socket://", "unix://"))
    try:
        yield connection
    finally:
        connection.close()


def listening(process: "subprocess.Popen[bytes]") -> list[int]:
    sockets = psutil.Process(process.pid).net_connections("tcp")
    return [one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN]


@pytest.fixture
def short() -> Iterator[Path]:
    """Not pytest's folder: in that the path of a socket may be too long for one."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def long_home(tmp_path: Path) -> Path:
    return tmp_path / ("long" * 30)


def test_it_keeps_messages_and_never_drops_one_for_room(tmp_path: Path) -> None:
    with running(tmp_path) as (server, _), client(server.url) as connection:
        assert connection.config_get("appendonly") == {"appendonly": "yes"}
        assert connection.config_get("maxmemory-policy")["maxmemory-policy"] == (
            "noeviction"
        )
        connection.rpush("queue", "job")
    with running(tmp_path) as (server, _), client(server.url) as connection:
        assert connection.lrange("queue", 0, -1) == [b"job"]


def test_it_listens_on_a_private_socket_and_no_port(short: Path) -> None:
    with running(short) as (_, process):
        assert listening(process) == []
        assert (short / "redis").stat().st_mode & 0o777 == 0o700
        assert (short / "redis/redis.sock").stat().st_mode & 0o077 == 0


def test_a_folder_with_spaces_and_signs_will_do(short: Path) -> None:
    home = short / 'my "home" #1, 100 %20?'
    with running(home):
        url = embedded_redis_url(home)
        assert url.startswith("redis+socket://")
        with client(url) as connection:
            assert connection.ping()


def test_a_long_path_gets_a_loopback_port_with_a_password(long_home: Path) -> None:
    with running(long_home) as (_, process):
        url = embedded_redis_url(long_home)
        assert url.startswith("redis://:")
        [port] = listening(process)
        assert f"@127.0.0.1:{port}/" in url
        with client(url) as connection:
            assert connection.ping()
        with (
            client(f"redis://127.0.0.1:{port}/0") as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
        password = url.split(":")[2].split("@")[0]
        assert password not in " ".join(psutil.Process(process.pid).cmdline())


def test_what_holds_the_password_is_private(long_home: Path) -> None:
    with running(long_home):
        for file in (embedded_redis_file(long_home), long_home / "redis/valkey.conf"):
            assert file.stat().st_mode & 0o777 == 0o600


def test_its_address_is_gone_after_the_stop(tmp_path: Path) -> None:
    with running(tmp_path):
        assert embedded_redis_file(tmp_path).exists()
    assert not embedded_redis_file(tmp_path).exists()


def test_a_socket_file_left_by_a_killed_server_is_no_obstacle(tmp_path: Path) -> None:
    killed = EmbeddedRedis(tmp_path).start()
    killed.kill()
    killed.wait()
    assert (tmp_path / "redis/redis.sock").exists()
    with running(tmp_path) as (server, _), client(server.url) as connection:
        assert connection.ping()


def test_a_server_that_is_started_again_has_the_port_and_password_that_clients_know(
    long_home: Path,
) -> None:
    with running(long_home) as (server, process):
        url = server.url
        with client(url) as connection:
            connection.rpush("queue", "job")
        process.kill()
        process.wait()
        again = server.start()
        try:
            assert embedded_redis_url(long_home) == server.url == url
            with client(url) as connection:
                assert connection.lrange("queue", 0, -1) == [b"job"]
        finally:
            server.stop(again)


def test_a_server_that_cannot_start_says_why_and_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_SECONDS", 5.0)
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis/appendonlydir").write_text("in the way")
    with pytest.raises(MachineError, match=r"appendonlydir.*STYLEQUEUE_REDIS"):
        EmbeddedRedis(tmp_path).start()
    children = psutil.Process().children()
    assert not [one for one in children if "valkey" in one.name()]
