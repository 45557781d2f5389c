import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylequeue_shared.artefacts import original_key, result_key, snapshot_key
from stylequeue_shared.errors import (
    BadConfiguration,
    DiskFull,
    MachineError,
    NotFound,
)
from stylequeue_shared.store import KEY, Store, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store; of each kind in turn."""
    opened = request.getfixturevalue(request.param)
    return opened if isinstance(opened, Store) else open_store(opened)


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_what_is_put_can_be_read(store: Store) -> None:
    store.put("jobs/a/1/result.png", b"bytes")
    assert store.get("jobs/a/1/result.png") == b"bytes"
    assert store.size("jobs/a/1/result.png") == 5
    assert store.exists("jobs/a/1/result.png")
    with store.open("jobs/a/1/result.png") as file:
        assert file.read(2) == b"by"
    with store.local("jobs/a/1/result.png") as path:
        assert path.read_bytes() == b"bytes"


def test_a_file_can_be_put(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_000_000))
    store.put("a", source)
    assert store.get("a") == source.read_bytes()


def test_putting_again_replaces_and_open_readers_keep_what_they_had(
    store: Store,
) -> None:
    store.put("a", b"old")
    with store.open("a") as file:
        store.put("a", b"new")
        assert file.read() == b"old"
    assert store.get("a") == b"new"


def test_files_and_folders_are_for_their_owner_only(
    folder: Store, tmp_path: Path
) -> None:
    old = os.umask(0)
    try:
        folder.put("pictures/ab/abc", b"private")
    finally:
        os.umask(old)
    root = tmp_path / "store"
    for path in (root, *everything(root)):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("key", ["jobs/b/1/x.png", "jobs", "jobs/a/1/x.png/y"])
def test_a_missing_file_is_not_found(store: Store, key: str) -> None:
    store.put("jobs/a/1/x.png", b"a")
    assert not store.exists(key)
    for read in (store.get, store.open, store.size):
        with pytest.raises(NotFound):
            read(key)
    with pytest.raises(NotFound), store.local(key):
        pass


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "..",
        "../a",
        "a/../../b",
        "a/./b",
        "a//b",
        "a/",
        ".hidden",
        "a/.unfinished-1",
        "A",
        "a b",
        "a\n",
        "a\x00",
        "ä",
        "c:\\a",
    ],
)
def test_what_is_no_key_is_refused(store: Store, key: str) -> None:
    for method in (store.get, store.open, store.exists, store.size, store.delete):
        with pytest.raises(ValueError, match="not a key"):
            method(key)
    with pytest.raises(ValueError, match="not a key"):
        store.put(key, b"")


@given(st.text(alphabet="ab./-_\\\0A", max_size=12))
def test_no_key_leads_out_of_the_folder(key: str) -> None:
    if KEY.fullmatch(key):
        root = Path("/folder/of/store")
        inside = Path(os.path.normpath(root / key))
        assert inside.is_relative_to(root)
        assert inside != root


def test_the_keys_that_are_used_are_keys() -> None:
    for key in (
        original_key("ab" * 32),
        result_key("0197-aa", 3),
        snapshot_key("0197-aa", 3, 50),
    ):
        assert KEY.fullmatch(key)


def test_deleting_removes_empty_folders_and_may_be_repeated(
    folder: Store, tmp_path: Path
) -> None:
    folder.put("a/b/c", b"1")
    folder.put("a/d", b"2")
    folder.delete("a/b/c")
    folder.delete("a/b/c")
    assert everything(tmp_path / "store") == [
        tmp_path / "store/a",
        tmp_path / "store/a/d",
    ]
    folder.delete("a/d")
    assert everything(tmp_path / "store") == []


def test_deleting_may_be_repeated(store: Store) -> None:
    store.put("a/b", b"1")
    store.put("a/c", b"2")
    for _ in range(2):
        store.delete("a/b")
        assert list(store.keys()) == ["a/c"]


def test_deleting_a_prefix_removes_all_below_it_and_nothing_else(store: Store) -> None:
    for key in ("jobs/a/1/x", "jobs/a/2/x", "jobs/ab/1/x"):
        store.put(key, b"1")
    store.delete_prefix("jobs/a/")
    store.delete_prefix("jobs/a/")
    assert list(store.keys()) == ["jobs/ab/1/x"]


@pytest.mark.parametrize("prefix", ["", "jobs", "/", "../", "jobs/../"])
def test_a_prefix_that_is_none_is_refused(store: Store, prefix: str) -> None:
    store.put("jobs/a", b"1")
    with pytest.raises(ValueError, match="not a "):
        store.delete_prefix(prefix)
    assert store.exists("jobs/a")


def test_unfinished_files_are_not_listed(folder: Store, tmp_path: Path) -> None:
    folder.put("b/1", b"1")
    (tmp_path / "store/b/.unfinished-x").touch()
    assert list(folder.keys()) == ["b/1"]


def test_keys_are_listed_in_order(store: Store) -> None:
    for key in ("b/2", "b/1", "a", "c/d/e"):
        store.put(key, b"1")
    assert list(store.keys()) == ["a", "b/1", "b/2", "c/d/e"]
    assert list(store.keys("b/")) == ["b/1", "b/2"]
    assert list(store.keys("nothing/")) == []


def refuse_with(code: int) -> Any:
    def refuse(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_no_half_written_one(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    folder.put("a/b", b"old")
    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(os, "fsync", refuse_with(code))
        elif step == "replace":
            patch.setattr(Path, "replace", refuse_with(code))
        else:
            patch.setattr("stylequeue_shared.store_folder._write", refuse_with(code))
        with pytest.raises(DiskFull):
            folder.put("a/b", b"new")
    assert folder.get("a/b") == b"old"
    assert [path.name for path in everything(tmp_path / "store")] == ["a", "b"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a file size limit")
def test_a_write_that_the_system_cuts_off_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from stylequeue_shared.errors import MachineError
from stylequeue_shared.store import open_store
try:
    open_store({str(tmp_path)!r}).put("a", bytes(5000))
except MachineError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "cannot write a (File too large)" in done.stdout
    assert everything(tmp_path) == []


def test_a_writer_that_is_killed_leaves_no_key(tmp_path: Path) -> None:
    code = f"""
import os, signal
from stylequeue_shared import store, store_folder
store_folder.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
store.open_store({str(tmp_path)!r}).put("a/b", bytes(5000))
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    store = open_store(tmp_path)
    assert list(store.keys()) == []
    assert len(list((tmp_path / "a").iterdir())) == 1
    assert store.delete_unfinished(older_than=60) == 0
    assert store.delete_unfinished(older_than=0) == 1
    assert list((tmp_path / "a").iterdir()) == []


def test_an_unfinished_file_that_cannot_be_deleted_stops_no_others(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [tmp_path / f"store/.unfinished-{number}" for number in range(3)]
    for path in left:
        path.touch()
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == left[0]:
            raise PermissionError(1, "Operation not permitted")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert folder.delete_unfinished(older_than=0) == 2
    assert [path.exists() for path in left] == [True, False, False]


def test_a_folder_that_vanishes_meanwhile_is_made_again(folder: Store) -> None:
    stop = threading.Event()

    def tidy() -> None:
        while not stop.is_set():
            folder.delete("jobs/a/other")

    thread = threading.Thread(target=tidy)
    thread.start()
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            folder.put("jobs/a/x", b"1")
            folder.delete("jobs/a/x")
    finally:
        stop.set()
        thread.join()


def test_readers_see_whole_files_while_writers_replace_them(store: Store) -> None:
    contents = [bytes([i]) * 50_000 for i in range(4)]
    store.put("a", contents[0])
    stop = threading.Event()

    def write(content: bytes) -> None:
        while not stop.is_set():
            store.put("a", content)

    threads = [threading.Thread(target=write, args=(c,)) for c in contents]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert store.get("a") in contents
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_free_space_is_told(folder: Store) -> None:
    free = folder.free_bytes()
    assert free is not None
    assert free > 0


def test_checking_leaves_nothing_and_refuses_when_it_cannot_write(
    folder: Store, tmp_path: Path
) -> None:
    folder.check()
    assert everything(tmp_path / "store") == []
    (tmp_path / "store").rmdir()
    with pytest.raises(MachineError, match="cannot write the store"):
        folder.check()


def test_a_store_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for address in (tmp_path / "file", tmp_path / "file/store", "gs://pictures"):
        with pytest.raises(BadConfiguration, match="STYLEQUEUE_STORE"):
            open_store(address)
