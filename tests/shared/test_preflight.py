import socket
from collections import namedtuple
from pathlib import Path

import pytest

from stylequeue_shared import preflight
from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.settings import Settings, load_settings


def settings(**changes: str) -> Settings:
    return load_settings({f"STYLEQUEUE_{k.upper()}": v for k, v in changes.items()})


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "a/b c"
    preflight.make_home(home)
    assert home.stat().st_mode & 0o777 == 0o700
    assert not list(home.iterdir())


@pytest.mark.parametrize("inside", ["", "/home"])
def test_a_file_in_the_way_of_the_folder_is_refused(
    tmp_path: Path, inside: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadConfiguration, match=r"^STYLEQUEUE_HOME: cannot write to"):
        preflight.make_home(Path(f"{tmp_path}/file{inside}"))


def test_a_folder_that_takes_no_file_is_refused() -> None:
    # Not even root can make a file there, on Linux or macOS.
    folder = Path("/proc" if Path("/proc").exists() else "/System")
    with pytest.raises(BadConfiguration, match=r"^STYLEQUEUE_HOME: cannot write to"):
        preflight.make_home(folder)


def test_a_full_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    preflight.check_room(tmp_path, floor=1)
    monkeypatch.setattr(
        preflight.shutil, "disk_usage", lambda folder: usage(10**12, 10**12, 1000)
    )
    with pytest.raises(BadConfiguration, match=r"^STYLEQUEUE_HOME: less than"):
        preflight.check_room(tmp_path)


def test_a_taken_port_is_refused_and_a_free_one_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(BadConfiguration, match=r"^STYLEQUEUE_PORT: ") as refused:
            preflight.check_address(settings(port=str(port)))
    assert f"{port} is taken" in refused.value.message
    free = int(refused.value.message.rsplit(" ", 1)[1])
    preflight.check_address(settings(port=str(free)))


def test_a_port_that_needs_rights_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(host: str, port: int) -> None:
        # What bind() raises for a user other than root.
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(preflight, "_bind", refuse)
    with pytest.raises(BadConfiguration, match=r"STYLEQUEUE_PORT.*above 1023"):
        preflight.check_address(settings(port="80"))


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(BadConfiguration, match=r"^STYLEQUEUE_HOST: "):
        preflight.check_address(settings(host=host, open="1", secret_key="k" * 32))


def test_only_one_holds_the_folder(tmp_path: Path) -> None:
    with preflight.only_one(tmp_path):
        preflight.running_file(tmp_path).write_text(
            '{"pid": 77, "address": "http://127.0.0.1:8000"}'
        )
        with (
            pytest.raises(
                BadConfiguration,
                match=r"^STYLEQUEUE_HOME.*http://127\.0\.0\.1:8000 \(process 77\)",
            ),
            preflight.only_one(tmp_path),
        ):
            raise AssertionError("both hold it")
    with preflight.only_one(tmp_path):
        pass


@pytest.mark.parametrize("written", ["", "{", "[1]", "\x00"])
def test_a_damaged_note_of_what_runs_counts_as_none(
    tmp_path: Path, written: str
) -> None:
    preflight.running_file(tmp_path).write_text(written)
    assert preflight.read_running(tmp_path) == {}
