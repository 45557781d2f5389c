"""Backing up an installation at work, and restoring it."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import func, select

from stylequeue_shared import backup as backup_module
from stylequeue_shared import cli, jobs, preflight
from stylequeue_shared.artefacts import original_key, state_key
from stylequeue_shared.database import Database
from stylequeue_shared.migrate import check
from stylequeue_shared.models import Job, JobState
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store, open_store
from tests.shared.submitting import HALF_WAY, claim, picture, submit


class Installation:
    """A home with its database, its store and its key."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.key = self.settings.cookie_key
        self.database = Database(self.settings.database_url)
        self.store: Store = open_store(self.settings.store_url)

    def finish(self, name: str) -> str:
        """Submit a job, run it, and return its id."""
        for one in (name, "waves"):
            self.store.put(original_key(picture(one).sha256), one.encode())
        job_id = submit(self.database, content=name)
        held = claim(self.database)
        key = f"jobs/{job_id}/1/result.png"
        self.store.put(key, b"painted")
        jobs.succeed(self.database, held, HALF_WAY, jobs.Result(key, 8, 8))
        return job_id

    def checkpoint(self, held: jobs.Claim, step: int) -> None:
        """Save a state as a worker does: parts and record first, then the row."""
        for name in (f"part-{step}", f"record-{step}"):
            self.store.put(state_key(held.job_id, 1, name), b"state")
        key = state_key(held.job_id, 1, f"record-{step}")
        jobs.save_checkpoint(self.database, held, key, step)
        for name in (f"part-{step - 1}", f"record-{step - 1}"):
            self.store.delete(state_key(held.job_id, 1, name))

    def count(self) -> int:
        with self.database.read() as connection:
            return connection.scalar(select(func.count()).select_from(Job)) or 0

    def close(self) -> None:
        self.database.close()


@pytest.fixture
def site(sqlite: Path, tmp_path: Path) -> Iterator[Installation]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copy(sqlite, home / "stylequeue.db")
    made = Installation(home)
    yield made
    made.close()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy"


def run(monkeypatch: pytest.MonkeyPatch, home: Path, *arguments: object) -> Result:
    monkeypatch.setenv("STYLEQUEUE_HOME", str(home))
    monkeypatch.setattr("os.umask", lambda mask: mask)
    return CliRunner().invoke(cli.main, [str(one) for one in arguments])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_backed_up_is_there_in_another_home(
    site: Installation, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = site.finish("cat")
    running = submit(site.database, content="cat")
    site.checkpoint(claim(site.database), 350)
    done = run(monkeypatch, site.settings.home, "backup", copy)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert names(copy) == {"stylequeue.db", "store", "secret_key", "manifest.json"}
    done = run(monkeypatch, tmp_path / "b?%23 c", "restore", copy)
    assert done.exit_code == 0, done.output
    other = Installation(tmp_path / "b?%23 c")
    check(other.database)
    assert other.count() == 2
    assert sorted(other.store.keys()) == sorted(site.store.keys())
    assert other.store.get(f"jobs/{job_id}/1/result.png") == b"painted"
    assert other.key == site.key
    with other.database.read() as connection:
        wanted = select(Job.checkpoint_key).where(Job.id == running)
        key = connection.scalar(wanted)
    assert key
    assert other.store.get(key) == b"state"
    other.close()


def test_a_backup_is_for_its_owner_alone(
    site: Installation, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.finish("cat")
    arguments = [sys.executable, "-m", "stylequeue_shared.cli", "backup", str(copy)]
    monkeypatch.setenv("STYLEQUEUE_HOME", str(site.settings.home))
    subprocess.run(arguments, check=True)
    for path in (copy, *copy.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_a_backup_taken_while_jobs_are_written_is_whole(
    site: Installation, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs come and end, and a checkpoint is replaced all the time."""
    stop = threading.Event()
    submit(site.database, content="cat")
    site.store.put(original_key(picture("cat").sha256), b"cat")
    site.store.put(original_key(picture("waves").sha256), b"waves")
    held = claim(site.database)

    def work() -> None:
        step = 1
        while not stop.is_set():
            site.checkpoint(held, step)
            site.finish(f"cat-{step}")
            step += 1
            time.sleep(0.05)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while site.count() < 4:
            time.sleep(0.01)
        done = run(monkeypatch, site.settings.home, "backup", copy)
    finally:
        stop.set()
        worker.join()
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    done = run(monkeypatch, tmp_path / "other", "restore", copy)
    assert done.exit_code == 0, done.output
    other = Installation(tmp_path / "other")
    assert 4 <= other.count() <= site.count()
    with other.database.read() as connection:
        rows = connection.execute(select(Job.state, Job.result_key)).all()
        key = connection.scalar(select(Job.checkpoint_key).where(Job.id == held.job_id))
    for state, result in rows:
        assert state != JobState.SUCCEEDED or other.store.get(result) == b"painted"
    assert key
    assert other.store.get(key.replace("record", "part")) == b"state"
    other.close()


def test_a_checkpoint_that_is_replaced_meanwhile_is_copied_again(
    site: Installation, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.finish("cat")
    submit(site.database, content="cat")
    held = claim(site.database)
    site.checkpoint(held, 1)
    copy_store, steps = backup_module.copy_store, iter((2, 3))

    def copy_while_it_is_replaced(source: Path, target: Path) -> None:
        copy_store(source, target)
        if (step := next(steps, None)) is not None:
            # Only a part is missed: the record was copied before it was deleted.
            site.checkpoint(held, step)
            (target / state_key(held.job_id, 1, f"part-{step - 1}")).unlink()

    monkeypatch.setattr(backup_module, "copy_store", copy_while_it_is_replaced)
    done = run(monkeypatch, site.settings.home, "backup", copy)
    assert done.exit_code == 0, done.output
    folder = copy / "store" / state_key(held.job_id, 1, "x")
    assert {"record-3", "part-3"} <= names(folder.parent)


def test_a_picture_that_is_gone_though_a_job_names_it_is_told(
    site: Installation, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = site.finish("cat")
    site.store.delete(f"jobs/{job_id}/1/result.png")
    done = run(monkeypatch, site.settings.home, "backup", copy)
    assert done.exit_code == 0
    said = f"a job names jobs/{job_id}/1/result.png, which is not there\n"
    assert done.stderr == f"stylequeue: {said}"


def test_a_folder_that_is_not_empty_is_refused_and_kept(
    site: Installation, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.mkdir()
    (copy / "mine").write_text("kept")
    done = run(monkeypatch, site.settings.home, "backup", copy)
    assert done.exit_code == 2
    assert "is not an empty folder" in done.stderr
    assert names(copy) == {"mine"}
    (copy / "mine").unlink()
    assert run(monkeypatch, site.settings.home, "backup", copy).exit_code == 0


@pytest.mark.parametrize("name", ["STYLEQUEUE_DATABASE", "STYLEQUEUE_STORE"])
@pytest.mark.parametrize("command", ["backup", "restore"])
def test_servers_of_ones_own_are_referred_to_the_documented_steps(
    command: str,
    name: str,
    site: Installation,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "s3://a/b" if name.endswith("STORE") else "postgresql://u:secret@h/n"
    monkeypatch.setenv(name, url)
    done = run(monkeypatch, site.settings.home, command, copy)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{name}: ")
    assert "docs/operating.md, 'Backing up'" in done.stderr
    assert "secret" not in done.stderr
    assert not copy.exists()


SLOW = """
import sys, time
from stylequeue_shared import backup, cli
def describe(path):
    print("copied", flush=True)
    time.sleep(60)
backup.describe = describe
cli.main(["backup", sys.argv[1]])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_backup_that_is_interrupted_leaves_nothing(
    number: signal.Signals,
    site: Installation,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL leaves a folder that the next backup removes."""
    site.finish("cat")
    monkeypatch.setenv("STYLEQUEUE_HOME", str(site.settings.home))
    copy = copy.parent / "backups" / "copy"
    copy.parent.mkdir()
    arguments = [sys.executable, "-c", SLOW, str(copy)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"copied\n"
        process.send_signal(number)
    assert process.returncode != 0
    left = names(copy.parent)
    if number == signal.SIGKILL:
        assert len(left) == 1
        assert left.pop().startswith(".copy.unfinished-")
        assert run(monkeypatch, site.settings.home, "backup", copy).exit_code == 0
        assert names(copy.parent) == {"copy"}
    else:
        assert left == set()


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def lead_out(path: Path) -> None:
    """Have the manifest name a file outside of the backup."""
    outside = path.parent.parent / "outside"
    outside.write_text("a")
    manifest = json.loads(path.read_text())
    manifest["files"]["store/../../outside"] = backup_module.describe(outside)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("stylequeue.db", flip),
        ("stylequeue.db", Path.unlink),
        ("secret_key", flip),
        ("manifest.json", Path.unlink),
        ("manifest.json", flip),
        ("manifest.json", lead_out),
        ("store", shutil.rmtree),
    ],
)
def test_a_damaged_backup_is_refused_and_changes_nothing(
    name: str,
    damage: object,
    site: Installation,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.finish("cat")
    assert run(monkeypatch, site.settings.home, "backup", copy).exit_code == 0
    damage(copy / name)  # type: ignore[operator]
    done = run(monkeypatch, tmp_path / "other", "restore", copy)
    assert done.exit_code == 2
    assert "is damaged" in done.stderr or "is no backup" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert names(tmp_path / "other") == {"running.lock"}


def test_jobs_that_are_there_are_moved_aside_only_when_told_to(
    site: Installation, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = site.settings.home
    kept = site.finish("cat")
    assert run(monkeypatch, home, "backup", copy).exit_code == 0
    later = site.finish("dog")
    site.close()
    done = run(monkeypatch, home, "restore", copy)
    assert done.exit_code == 2
    assert "--replace" in done.stderr
    assert site.count() == 2
    site.close()
    done = run(monkeypatch, home, "restore", copy, "--replace")
    assert done.exit_code == 0, done.output
    assert site.count() == 1
    assert site.store.exists(f"jobs/{kept}/1/result.png")
    assert not site.store.exists(f"jobs/{later}/1/result.png")
    (aside,) = home.glob("replaced-*")
    assert str(aside) in done.output
    with sqlite3.connect(aside / "stylequeue.db") as old:
        assert old.execute("SELECT count(*) FROM jobs").fetchone() == (2,)
    assert (aside / "store/jobs" / later / "1/result.png").read_bytes() == b"painted"


def test_nothing_is_restored_while_the_installation_runs(
    site: Installation, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, site.settings.home, "backup", copy).exit_code == 0
    with preflight.only_one(site.settings.home):
        done = run(monkeypatch, site.settings.home, "restore", copy, "--replace")
    assert done.exit_code == 2
    assert "is in use by the StyleQueue at" in done.stderr


def test_a_backup_of_a_newer_version_is_refused(
    site: Installation, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, site.settings.home, "backup", copy).exit_code == 0
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"revision": "9999", "version": "99.0"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = run(monkeypatch, tmp_path / "other", "restore", copy)
    assert done.exit_code == 2
    assert "was made by version 99.0, which is newer" in done.stderr


def test_a_home_without_an_installation_has_nothing_to_back_up(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(monkeypatch, tmp_path / "none", "backup", copy)
    assert done.exit_code == 2
    assert done.stderr.startswith("STYLEQUEUE_HOME: there is no installation")
    assert not copy.exists()
