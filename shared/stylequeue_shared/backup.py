"""Back up the embedded installation, running or not: `stylequeue backup FOLDER`."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import click
from sqlalchemy import CompoundSelect, Select, select, union
from sqlalchemy.exc import OperationalError

from stylequeue_shared.artefacts import original_key
from stylequeue_shared.database import BUSY_MS, Database
from stylequeue_shared.errors import BadConfiguration, MachineError
from stylequeue_shared.migrate import revision
from stylequeue_shared.models import Job, JobStyle, Snapshot
from stylequeue_shared.settings import Settings, sqlite_url
from stylequeue_shared.store_folder import FolderStore

DATABASE, STORE, SECRET_KEY = "stylequeue.db", "store", "secret_key"
MANIFEST = "manifest.json"
# A checkpoint may be replaced while the store is copied. The database is then copied
# again, with the few files that are new since.
TRIES = 5
CHECKPOINTS = select(Job.checkpoint_key).where(Job.checkpoint_key.is_not(None))
RESULTS = select(Job.result_key).where(Job.result_key.is_not(None))
NAMED: CompoundSelect[Any] = union(CHECKPOINTS, RESULTS, select(Snapshot.key))
PICTURES = union(select(Job.content_sha), select(JobStyle.sha256))


class File(NamedTuple):
    """A file's entry in the manifest."""

    bytes: int
    sha256: str


def backup(settings: Settings, folder: Path) -> None:
    """Copy database, pictures, checkpoints and the key that signs cookies to `folder`.

    Raises BadConfiguration when there is nothing to back up or the folder is in use.
    """
    os.umask(0o077)
    check_embedded(settings)
    home, folder = settings.home, folder.expanduser().absolute()
    if not (home / DATABASE).is_file():
        raise BadConfiguration(
            f"STYLEQUEUE_HOME: there is no installation in {home} to back up"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadConfiguration(
            f"stylequeue: {folder} exists and is not an empty folder; name a new one"
        )
    if folder.is_relative_to(home / STORE):
        raise BadConfiguration(
            f"stylequeue: {folder} lies among the pictures; name one outside of "
            f"{home / STORE}"
        )
    with machine_errors(folder), unfinished(folder) as copy:
        missing = _copy_all(home, copy)
        files = {name: describe(copy / name) for name in list_files(copy)}
        _write_manifest(copy, files)
        os.sync()
        copy.rename(folder)
    for key in missing:
        click.echo(f"stylequeue: a job names {key}, which is not there", err=True)
    total = sum(file.bytes for file in files.values())
    click.echo(f"Backed up {len(files)} files, {total / 1e6:.1f} MB, to {folder}")


def check_embedded(settings: Settings) -> None:
    """Refuse servers of the operator's own, which have backups of their own."""
    for name, value in (("DATABASE", settings.database), ("STORE", settings.store)):
        if value is not None:
            raise BadConfiguration(
                f"STYLEQUEUE_{name}: is set, and this command knows only what lies in "
                "STYLEQUEUE_HOME; docs/operating.md, 'Backing up', has the steps for "
                "a database and a store of your own"
            )


@contextmanager
def machine_errors(folder: Path) -> Iterator[None]:
    """Say in a sentence that the disk is full or refuses."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"cannot write to {folder}: {error.strerror}") from error


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Make a folder beside `folder` that is gone afterwards, unless it was renamed.

    SIGTERM and SIGINT are heeded; what a killed process left is deleted here.
    """
    prefix = f".{folder.name}.unfinished-"
    for left in folder.parent.glob(f"{prefix}*"):
        with _held(left) as is_ours:
            if is_ours:
                shutil.rmtree(left, ignore_errors=True)
    before = signal.signal(signal.SIGTERM, _exit)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        with _held(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock the folder; give whether nobody else had."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _copy_all(home: Path, copy: Path) -> list[str]:
    """Copy until all files that the copied rows name are there; return those missing.

    The database comes first: a file that no row names does no harm.
    """
    with suppress(FileNotFoundError):
        copy_file(home / SECRET_KEY, copy / SECRET_KEY)
    for _ in range(TRIES):
        _copy_database(home / DATABASE, copy / DATABASE)
        copy_store(home / STORE, copy / STORE)
        missing = _missing(copy)
        # What a checkpoint consists of is deleted once a row names another one.
        if not missing and _keys(copy, CHECKPOINTS) <= _keys(home, CHECKPOINTS):
            break
    return missing


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment, though others write to it."""
    target.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(source)) as live,
        closing(sqlite3.connect(target)) as copy,
    ):
        live.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        live.backup(copy)


def copy_store(source: Path, target: Path) -> None:
    """Copy the files that are not there yet; those deleted meanwhile are left out."""
    keys = FolderStore(source).keys()
    for key in keys:
        path = target / key
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                copy_file(source / key, path)


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes alone: the copy is readable by this user only."""
    shutil.copyfile(source, target)


def _missing(copy: Path) -> list[str]:
    """Return the keys that rows name and that the copied store does not have."""
    named = {original_key(sha) for sha in _keys(copy, PICTURES)} | _keys(copy, NAMED)
    return sorted(key for key in named if not (copy / STORE / key).is_file())


def _keys(folder: Path, wanted: Select[Any] | CompoundSelect[Any]) -> set[str]:
    """Return what the database in that folder names."""
    with _opened(folder) as database, database.read() as connection:
        return set(connection.execute(wanted).scalars())


@contextmanager
def _opened(folder: Path) -> Iterator[Database]:
    database = Database(sqlite_url(folder / DATABASE), pooled=False)
    try:
        yield database
    except OperationalError as error:
        raise MachineError(
            f"cannot read {folder / DATABASE} ({error.orig}); if an older version made "
            "it, run first: stylequeue migrate"
        ) from error
    finally:
        database.close()


def list_files(folder: Path) -> list[str]:
    """Return the names of all files of a backup, but for the manifest."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(
        name for name in found if (folder / name).is_file() and name != MANIFEST
    )


def describe(path: Path) -> File:
    """Read a file and return its size and digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(file.tell(), digest)


def _write_manifest(copy: Path, files: dict[str, File]) -> None:
    with _opened(copy) as database:
        found = revision(database)
    written = {
        "format": 1,
        "version": version("stylequeue"),
        "revision": found,
        "files": files,
    }
    (copy / MANIFEST).write_text(json.dumps(written, indent=1))
