import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest
import trustme

from bench.seaweedfs import BUCKET, KEY, SECRET, SeaweedFS, set_variables, variables
from stylequeue_shared import store_s3
from stylequeue_shared.errors import (
    BadConfiguration,
    DiskFull,
    MachineError,
    NotFound,
    StyleQueueError,
)
from stylequeue_shared.store import Store, open_store

T = TypeVar("T")
LARGE = 3 * store_s3.PART_BYTES
CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("a", b"1"),
    "get": lambda store: store.get("a"),
    "open": lambda store: store.open("a"),
    "local": lambda store: store.local("a").__enter__(),
    "exists": lambda store: store.exists("a"),
    "size": lambda store: store.size("a"),
    "delete": lambda store: store.delete("a"),
    "delete_prefix": lambda store: store.delete_prefix("a/"),
    "keys": lambda store: list(store.keys()),
    "delete_unfinished": lambda store: store.delete_unfinished(older_than=0),
    "used_bytes": lambda store: store.used_bytes(),
    "check": lambda store: store.check(),
}


@pytest.fixture
def store(bucket: str) -> Store:
    return open_store(bucket)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedFS]:
    """A server for one test, which may end it."""
    server = SeaweedFS(tmp_path / "seaweedfs")
    try:
        server.start()
        set_variables(monkeypatch, server.environment)
        yield server
    finally:
        server.kill()


def unfinished(server: SeaweedFS) -> list[str]:
    answer = server.client().list_multipart_uploads(Bucket=BUCKET)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def error_of(call: Callable[[], object]) -> StyleQueueError:
    """The error of a call, which tells neither keys nor what botocore says."""
    with pytest.raises(StyleQueueError) as caught:
        call()
    told = "".join(traceback.format_exception(caught.value))
    for secret in (KEY, SECRET, "127.0.0.1", "botocore.exceptions"):
        assert secret not in told
    return caught.value


def test_a_large_file_goes_in_parts_and_leaves_none(
    store: Store, seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    data = os.urandom(LARGE)
    (tmp_path / "source").write_bytes(data)
    store.put("bytes", data)
    store.put("file", tmp_path / "source")
    for key in ("bytes", "file"):
        assert store.get(key) == data
        with store.local(key) as path:
            assert path.read_bytes() == data
        with store.open(key) as file:
            assert file.read(1000) == data[:1000]
    assert unfinished(seaweedfs) == []
    # The file that was lent is gone.
    assert not path.exists()


def test_more_files_than_one_page_holds_are_listed_and_deleted(store: Store) -> None:
    keys = [f"jobs/a/{number:04d}" for number in range(1003)]
    # Else it takes a quarter of a minute.
    slices = [keys[start::16] for start in range(16)]
    threads = [
        threading.Thread(
            target=lambda some=some: [store.put(key, b"1") for key in some]
        )
        for some in slices
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.put("jobs/b", b"1")
    assert list(store.keys()) == [*keys, "jobs/b"]
    store.delete_prefix("jobs/a/")
    assert list(store.keys()) == ["jobs/b"]


def test_two_stores_in_one_bucket_do_not_see_each_other(bucket: str) -> None:
    one, other = open_store(f"{bucket}/one"), open_store(f"{bucket}/one-more/")
    one.put("a", b"1")
    assert list(other.keys()) == []
    other.put("a", b"2")
    other.delete_prefix("b/")
    assert (one.get("a"), other.get("a")) == (b"1", b"2")
    assert set(open_store(bucket).keys()) == {"one-more/a", "one/a"}


def test_checking_leaves_nothing_and_free_space_is_not_known(
    store: Store, bucket: str, seaweedfs: SeaweedFS
) -> None:
    store.check()
    prefix = bucket.removeprefix(f"s3://{BUCKET}/")
    answer = seaweedfs.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    assert "Contents" not in answer
    assert store.free_bytes() is None


def test_what_is_no_key_is_not_listed_and_goes_with_its_prefix(
    store: Store, bucket: str, seaweedfs: SeaweedFS
) -> None:
    store.put("a/b", b"1")
    client, prefix = seaweedfs.client(), bucket.removeprefix(f"s3://{BUCKET}/")
    for name in (".check", "a/.hidden", "a/B"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=b"1")
    assert list(store.keys()) == ["a/b"]
    store.delete_prefix("a/")
    answer = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
    assert [one["Key"] for one in answer["Contents"]] == [f"{prefix}/.check"]


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key_is_refused_and_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "a-wrong-one")
    store = open_store(bucket)
    for call in CALLS.values():
        error = error_of(lambda call=call: call(store))
        assert isinstance(error, MachineError)
        assert "refuses us" in error.message
        assert "AWS_ACCESS_KEY_ID" in error.message
        assert "a-wrong-one" not in error.message


def test_without_a_key_it_says_which_variables_to_set(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    error = error_of(open_store(bucket).check)
    assert isinstance(error, MachineError)
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in error.message


def test_a_missing_bucket_is_noticed_and_not_made(
    bucket: str, seaweedfs: SeaweedFS
) -> None:
    error = error_of(open_store("s3://misspelt/prefix").check)
    assert isinstance(error, MachineError)
    assert "no such bucket: see STYLEQUEUE_STORE" in error.message
    buckets = seaweedfs.client().list_buckets()["Buckets"]
    assert [one["Name"] for one in buckets] == [BUCKET]


@pytest.mark.parametrize(
    "address",
    ["s3://", "s3:///a", "s3://a-key:s3cret@host/bucket", "s3://bucket/a b", "s3://B/"],
)
def test_an_address_that_is_none_is_refused_untold(address: str) -> None:
    with pytest.raises(BadConfiguration, match="STYLEQUEUE_STORE") as caught:
        open_store(address)
    assert "s3cret" not in caught.value.message


def test_an_endpoint_that_is_none_is_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    with pytest.raises(BadConfiguration, match="AWS_"):
        open_store(bucket)


def test_without_s3fs_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["s3fs"] = None
from stylequeue_shared.store import open_store
open_store("s3://bucket/prefix")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "BadConfiguration: STYLEQUEUE_STORE" in done.stderr
    assert "install stylequeue[s3]" in done.stderr


def test_it_works_in_threads_and_after_a_fork(store: Store, bucket: str) -> None:
    contents = {f"t/{number}": os.urandom(1000) for number in range(32)}
    threads = [
        threading.Thread(target=store.put, args=item) for item in contents.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key: store.get(key) for key in store.keys("t/")} == contents

    def child() -> None:
        open_store(bucket).put("child", b"1")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert store.get("child") == b"1"


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does `answer` to whoever connects, and waits; yield its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                thread = threading.Thread(target=answering, args=(connection,))
                thread.start()
                threads.append(thread)

    def answering(connection: socket.socket) -> None:
        with suppress(OSError):
            answer(connection)

    threads = [threading.Thread(target=serve)]
    threads[0].start()
    try:
        yield listener.getsockname()[1]
    finally:
        for one in (listener, *connections):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in threads:
            thread.join()


def say_nothing(connection: socket.socket) -> None:
    """Take the connection and leave it at that."""


def dribble(connection: socket.socket) -> None:
    """Send a byte of an endless header now and then: never silent for long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    stop = threading.Event()
    while not stop.wait(0.1):
        connection.sendall(b"a")


def begin_a_body(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin")


def dribble_a_body(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    stop = threading.Event()
    while not stop.wait(0.1):
        connection.sendall(b"a")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_s3, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(store_s3, "READ_SECONDS", 0.5)
    monkeypatch.setattr(store_s3, "CALL_SECONDS", 1.25)
    monkeypatch.setattr(store_s3, "CHECK_SECONDS", 1.25)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("behaviour", "name"),
    [
        *product([say_nothing], CALLS),
        *product([dribble], ["put", "size"]),
        # Only these read a body to its end.
        *product([begin_a_body, dribble_a_body], ["get", "local"]),
    ],
)
def test_a_server_that_hangs_is_given_up(
    behaviour: Callable[[socket.socket], None],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening(behaviour) as port:
        set_variables(monkeypatch, variables(port))
        store = open_store("s3://bucket/prefix")
        error = error_of(lambda: CALLS[name](store))
    assert isinstance(error, MachineError)
    assert "does not answer" in error.message


def test_a_server_that_hangs_is_given_up_with_the_real_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening(say_nothing) as port:
        set_variables(monkeypatch, variables(port))
        with pytest.raises(MachineError, match="does not answer"):
            open_store("s3://bucket/prefix").check()


@pytest.mark.usefixtures("impatient")
def test_a_body_that_stops_is_no_end_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening(begin_a_body) as port:
        set_variables(monkeypatch, variables(port))
        file = open_store("s3://bucket/prefix").open("a")
        assert file.read(5) == b"begin"
        error_of(lambda: file.read(1))
        file.close()


@pytest.mark.parametrize(
    ("status", "code"), [(507, "XMinioStorageFull"), (403, "QuotaExceeded")]
)
def test_a_server_without_room_means_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    def refuse(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(head + body)

    with listening(refuse) as port:
        set_variables(monkeypatch, variables(port))
        store = open_store("s3://bucket/prefix")
        assert isinstance(error_of(lambda: store.put("a", b"")), DiskFull)


def test_a_server_that_fills_up_keeps_what_it_has_and_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All it may use is a few volumes of a megabyte.
    small = {"volume.max": 1, "master.volumeSizeLimitMB": 1}
    server = SeaweedFS(tmp_path / "seaweedfs", **small)
    try:
        server.start()
        set_variables(monkeypatch, server.environment)
        store = open_store(f"s3://{BUCKET}")
        stored = {}
        error = None
        for number in range(200):
            data = os.urandom(1_000_000)
            try:
                store.put(f"a/{number}", data)
            except MachineError as refused:
                error = refused
                break
            stored[f"a/{number}"] = data
        assert error is not None
        assert {key: store.get(key) for key in store.keys("a/")} == stored
    finally:
        server.kill()


def test_a_writer_that_is_killed_leaves_no_key_and_its_parts_are_deleted(
    bucket: str, seaweedfs: SeaweedFS
) -> None:
    code = f"""
import os, signal
from s3fs import S3FileSystem
from stylequeue_shared.store import open_store
call = S3FileSystem._call_s3
async def until_the_end(self, method, *lists, **given):
    if method == "complete_multipart_upload":
        os.kill(os.getpid(), signal.SIGKILL)
    return await call(self, method, *lists, **given)
S3FileSystem._call_s3 = until_the_end
open_store({bucket!r}).put("a/b", bytes({LARGE}))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    store = open_store(bucket)
    assert list(store.keys()) == []
    assert len(unfinished(seaweedfs)) == 1
    # Not that of another store in the bucket.
    assert open_store(f"s3://{BUCKET}/other").delete_unfinished(older_than=0) == 0
    assert store.delete_unfinished(older_than=60) == 0
    assert store.delete_unfinished(older_than=0) == 1
    assert unfinished(seaweedfs) == []


def test_an_unfinished_upload_that_cannot_be_deleted_stops_no_others(
    bucket: str, seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = bucket.removeprefix(f"s3://{BUCKET}/")
    names = [f"{prefix}/{number}" for number in range(3)]
    for name in names:
        seaweedfs.client().create_multipart_upload(Bucket=BUCKET, Key=name)
    store = open_store(bucket)
    call = store_s3.S3Store._call

    def refuse(store: store_s3.S3Store, method: str, *key: str, **given: Any) -> Any:
        if method == "abort_multipart_upload" and given["Key"] == names[0]:
            raise MachineError("the store refuses us")
        return call(store, method, *key, **given)

    with monkeypatch.context() as patch:
        patch.setattr(store_s3.S3Store, "_call", refuse)
        assert store.delete_unfinished(older_than=0) == 2
    assert unfinished(seaweedfs) == names[:1]
    assert store.delete_unfinished(older_than=0) == 1


@pytest.mark.parametrize("size", [store_s3.PART_BYTES, LARGE])
def test_a_server_that_dies_in_the_middle_of_a_file_has_the_old_one(
    own: SeaweedFS, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    store = open_store(f"s3://{BUCKET}")
    store.put("a", b"old")
    with relay(own) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        error_of(lambda: open_store(f"s3://{BUCKET}").put("a", bytes(size)))
    own.start()
    assert in_time(lambda: store.get("a")) == b"old"
    assert in_time(lambda: list(store.keys())) == ["a"]
    in_time(lambda: store.put("a", bytes(size)))
    assert in_time(lambda: store.size("a")) == size


def in_time(call: Callable[[], T]) -> T:
    """Ask a server that has just come back, and may not be all there yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call()
        except MachineError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


@contextmanager
def relay(server: SeaweedFS) -> Iterator[int]:
    """Hand on the first megabyte, then kill the server; yield the port."""

    def hand_on(connection: socket.socket) -> None:
        with connection, socket.create_connection(("127.0.0.1", server.port)) as behind:
            back = threading.Thread(target=pump, args=(behind, connection))
            back.start()
            passed = 0
            while passed < 1_000_000 and (data := connection.recv(65536)):
                behind.sendall(data)
                passed += len(data)
            server.kill()
            back.join()

    with listening(hand_on) as port:
        yield port


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


def test_a_server_that_comes_back_is_used_again(own: SeaweedFS) -> None:
    store = open_store(f"s3://{BUCKET}")
    store.put("a", b"1")
    own.kill()
    assert isinstance(error_of(lambda: store.get("a")), MachineError)
    with pytest.raises(MachineError):
        store.exists("a")
    own.start()
    assert in_time(lambda: store.get("a")) == b"1"
    with pytest.raises(NotFound):
        store.get("b")


def test_tls_is_checked_against_the_authority_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    files: dict[str, Any] = {
        "s3.cert.file": tmp_path / "cert.pem",
        "s3.key.file": tmp_path / "key.pem",
    }
    server = SeaweedFS(tmp_path / "seaweedfs", **files)
    try:
        server.start()
        set_variables(monkeypatch, server.tls_environment)
        with pytest.raises(MachineError, match="SSLError"):
            open_store(f"s3://{BUCKET}").check()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        store = open_store(f"s3://{BUCKET}")
        store.check()
        store.put("a", b"1")
        assert store.get("a") == b"1"
    finally:
        server.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a device that is full")
def test_no_room_for_a_local_copy_is_a_full_temporary_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", bytes(100_000))

    def full(**options: str) -> IO[bytes]:
        return Path("/dev/full").open("w+b")

    monkeypatch.setattr(store_s3, "NamedTemporaryFile", full)
    with pytest.raises(DiskFull, match="temporary folder"), store.local("a"):
        pass
