"""A store in a folder, on a disk or a share of the network."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from stylequeue_shared.errors import (
    BadConfiguration,
    DiskFull,
    MachineError,
    NotFound,
)
from stylequeue_shared.store import Store, check_key, check_prefix

UNFINISHED = ".unfinished-"

log = structlog.get_logger()


def open_folder(address: str | Path) -> "FolderStore":
    """Open the store in that folder, made if need be. Raises BadConfiguration."""
    root = Path(address).expanduser().absolute()
    try:
        _make_folder(root)
    except OSError as error:
        raise BadConfiguration(
            f"STYLEQUEUE_STORE: cannot make {root} ({error.strerror}); "
            "set it to a folder that can be written to"
        ) from None
    return FolderStore(root)


class FolderStore(Store):
    """A file for each key, readable by this user only."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, data: bytes | Path) -> None:
        """Store the bytes, or a copy of the file. Raises DiskFull, MachineError."""
        path = self._path(key)
        with _machine_errors(key):
            handle, name = self._start(path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    _write(file, data)
                    # Else a power cut may leave the name without the bytes.
                    os.fsync(handle)
                Path(name).replace(path)
            except BaseException:
                with suppress(FileNotFoundError):
                    Path(name).unlink()
                raise
            _sync_folder(path.parent)

    def open(self, key: str) -> BinaryIO:
        """Open for reading; a file that is replaced meanwhile stays what it was."""
        with _not_found(key):
            return self._path(key).open("rb")

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        """Have the bytes in a local file, which must not be changed, for a while."""
        path = self._path(key)
        if not path.is_file():
            raise _missing(key)
        yield path

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return self._path(key).is_file()

    def size(self, key: str) -> int:
        """Return the number of bytes. Raises NotFound."""
        with self.local(key) as path, _not_found(key):
            return path.stat().st_size

    def delete(self, key: str) -> None:
        """Remove the file, if it is there."""
        path = self._path(key)
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        self._remove_empty(path.parent)

    def delete_prefix(self, prefix: str) -> None:
        """Remove everything under the prefix, which ends with a slash."""
        folder = self._folder(prefix)
        with suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(folder)
        self._remove_empty(folder.parent)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Iterate over the keys under a prefix that is empty or ends with a slash."""
        folder = self._folder(prefix) if prefix else self._root
        for path in _files(folder):
            if not path.name.startswith("."):
                yield path.relative_to(self._root).as_posix()

    def delete_unfinished(self, older_than: float) -> int:
        """Remove what killed writers left that many seconds ago; return how many."""
        count = 0
        for path in _files(self._root):
            if not path.name.startswith(UNFINISHED):
                continue
            try:
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()
                    count += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                # The others can be deleted all the same; this one is tried again.
                log.warning("unfinished_file_not_deleted", error=error.strerror)
        return count

    def free_bytes(self) -> int | None:
        """Return what is free; None where nobody can say."""
        return shutil.disk_usage(self._root).free

    def used_bytes(self) -> int:
        """Return the size of all files together: an expensive walk over all of them."""
        used = 0
        for path in _files(self._root):
            with suppress(FileNotFoundError):
                used += path.stat().st_size
        return used

    def check(self) -> None:
        """See that the store can be written to. Raises DiskFull, MachineError."""
        with (
            _machine_errors("the store"),
            tempfile.NamedTemporaryFile(dir=self._root, prefix=UNFINISHED) as file,
        ):
            file.write(b"a")
            file.flush()

    def _start(self, folder: Path) -> tuple[int, str]:
        """Open an unfinished file in the folder."""
        for _ in range(1000):
            _make_folder(folder)
            # Another process may remove the folder, still empty, in between; one that
            # deletes all the time does so often.
            with suppress(FileNotFoundError):
                return tempfile.mkstemp(dir=folder, prefix=UNFINISHED)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _folder(self, prefix: str) -> Path:
        return self._root / check_prefix(prefix)

    def _remove_empty(self, folder: Path) -> None:
        with suppress(OSError):  # the first that is not empty
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent


def _write(file: BinaryIO, data: bytes | Path) -> None:
    if isinstance(data, Path):
        with data.open("rb") as source:
            shutil.copyfileobj(source, file, 1024**2)
    else:
        file.write(data)
    file.flush()


def _make_folder(folder: Path) -> None:
    # Parent by parent, since mkdir gives its mode to the last one only.
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        _make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync_folder(folder: Path) -> None:
    # The folder may be gone by now, with all that is in it.
    with suppress(FileNotFoundError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _files(folder: Path) -> Iterator[Path]:
    """Walk over all files, in the order of their names; what vanishes is passed by."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        else:
            yield Path(entry.path)


@contextmanager
def _machine_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                "there is no room left for pictures; try again later"
            ) from error
        raise MachineError(f"cannot write {what} ({error.strerror})") from error


@contextmanager
def _not_found(key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _missing(key) from None


def _missing(key: str) -> NotFound:
    return NotFound(f"no such file: {key}")
