"""Restore the embedded installation from a backup: `stylequeue restore FOLDER`."""

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import click
from pydantic import AfterValidator, BaseModel, ValidationError

from stylequeue_shared import preflight
from stylequeue_shared.backup import (
    DATABASE,
    MANIFEST,
    SECRET_KEY,
    STORE,
    File,
    check_embedded,
    copy_file,
    describe,
    machine_errors,
    unfinished,
)
from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.launcher import GRACE_SECONDS, end_leftovers
from stylequeue_shared.migrate import is_known, migrate
from stylequeue_shared.settings import Settings, sqlite_url
from stylequeue_shared.store import check_key


def _check_name(name: str) -> str:
    """Refuse a name that leads out of the backup."""
    if name not in (DATABASE, SECRET_KEY):
        folder, _, key = name.partition("/")
        if folder != STORE:
            raise ValueError("not a file of a backup")
        check_key(key)
    return name


class Manifest(BaseModel):
    """What a backup says of itself."""

    format: Literal[1]
    version: str
    revision: str
    files: dict[Annotated[str, AfterValidator(_check_name)], File]


def restore(settings: Settings, folder: Path, *, replace: bool) -> None:
    """Put a backup in the place of what is in HOME, which is moved aside.

    Raises BadConfiguration while the installation runs, when it has jobs and `replace`
    is not given, and for a backup that is damaged or of a newer version.
    """
    os.umask(0o077)
    check_embedded(settings)
    home, folder = settings.home, folder.expanduser().absolute()
    preflight.make_home(home)
    with preflight.only_one(home), machine_errors(home):
        end_leftovers(settings, GRACE_SECONDS)
        if not replace and _has_jobs(home / DATABASE):
            raise BadConfiguration(
                f"STYLEQUEUE_HOME: {home} has jobs already; with --replace they are "
                "moved aside"
            )
        manifest = _read_manifest(folder)
        with unfinished(home / "restored") as copy:
            _copy_verified(folder, copy, manifest)
            migrate(sqlite_url(copy / DATABASE))
            os.sync()
            aside = _move_aside(home, copy)
            _move_in(home, copy)
    click.echo(f"Restored {len(manifest.files)} files to {home}")
    if aside is not None:
        click.echo(f"What was there before is in {aside}")


def _has_jobs(path: Path) -> bool:
    """Whether there is a database that has jobs, or that cannot be read."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT 1 FROM jobs").fetchone() is not None
    except sqlite3.Error as error:
        return "no such table" not in str(error)


def _read_manifest(folder: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate(json.loads((folder / MANIFEST).read_text()))
    except FileNotFoundError:
        raise BadConfiguration(
            f"stylequeue: {folder} is no backup: it has no {MANIFEST}"
        ) from None
    except (ValueError, ValidationError):
        raise _damaged(folder, MANIFEST, "cannot be read by this version") from None
    if not is_known(manifest.revision):
        raise BadConfiguration(
            f"stylequeue: the backup was made by version {manifest.version}, which is "
            "newer than this program; install that version to restore it"
        )
    return manifest


def _copy_verified(folder: Path, copy: Path, manifest: Manifest) -> None:
    """Copy all files of the backup, and see that each is what it was."""
    if DATABASE not in manifest.files:
        raise _damaged(folder, DATABASE, "is missing")
    for name, expected in manifest.files.items():
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy_file(folder / name, path)
        except FileNotFoundError:
            raise _damaged(folder, name, "is missing") from None
        if describe(path) != expected:
            raise _damaged(folder, name, "is not what was backed up")


def _damaged(folder: Path, name: str, what: str) -> BadConfiguration:
    return BadConfiguration(
        f"stylequeue: the backup in {folder} is damaged: {name} {what}"
    )


def _move_aside(home: Path, copy: Path) -> Path | None:
    """Move what the backup replaces into a folder; return it, if there was any."""
    replaced = [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", STORE]
    if (copy / SECRET_KEY).exists():
        replaced.append(SECRET_KEY)
    found = [home / name for name in replaced if (home / name).exists()]
    if not found:
        return None
    aside = home / time.strftime("replaced-%Y%m%d-%H%M%S")
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    return aside


def _move_in(home: Path, copy: Path) -> None:
    # The database comes last: without it the other files are no installation.
    for name in (SECRET_KEY, STORE, DATABASE):
        if (copy / name).exists():
            (copy / name).rename(home / name)
