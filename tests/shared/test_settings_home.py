"""What lies in STYLEQUEUE_HOME, however it is called: database, key, address."""

import secrets
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from sqlalchemy import text

from stylequeue_shared.database import Database
from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.settings import Settings, embedded_redis_file, load_settings

# Each would mean something in an address.
FOLDERS = [
    "plain",
    "with a space",
    "who?",
    "who?mode=memory",
    "per%20cent",
    "100%",
    "nine#nine",
    "a&b=c+d",
    "me:you@there",
    "Bücher 本",
    "[1]",
    'it\'s "it"',
    "back\\slash",
    "two\nlines",
]
SAY_KEY = """
import sys
from stylequeue_shared.settings import load_settings

found = load_settings({"STYLEQUEUE_HOME": sys.argv[1]})
print("ready", flush=True)
sys.stdin.readline()
print(found.cookie_key)
"""


def at(home: Path | str) -> Settings:
    return load_settings({"STYLEQUEUE_HOME": str(home)})


# -- The folder -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_the_database_lies_in_that_very_folder(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    database = Database(at(home).database_url)
    with database.write() as connection:
        connection.execute(text("CREATE TABLE seen (number INTEGER)"))
    database.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in home.iterdir()] == ["stylequeue.db"]
    assert (home / "stylequeue.db").read_bytes().startswith(b"SQLite format 3")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_embedded_server_s_socket_lies_in_that_very_folder(name: str) -> None:
    address = at(f"/srv/{name}").redis_url
    assert unquote(address.removeprefix("redis+socket://")) == (
        f"/srv/{name}/redis/redis.sock"
    )


def test_the_embedded_server_s_address_is_the_one_that_was_written_down(
    tmp_path: Path,
) -> None:
    path = embedded_redis_file(tmp_path)
    path.parent.mkdir()
    path.write_text("redis://127.0.0.1:7777/0\n")
    assert at(tmp_path).redis_url == "redis://127.0.0.1:7777/0"


def test_a_relative_folder_counts_from_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = at("state")
    monkeypatch.chdir("/")
    assert found.home == tmp_path / "state"


def test_a_tilde_is_the_user_s_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at("~/state").home == tmp_path / "state"


@pytest.mark.parametrize(
    ("home", "said"),
    [
        ("~nobody-of-that-name", "no such user"),
        ("a\0b", "a folder's name holds no NUL"),
        # As the environment gives the byte 0xff.
        ("a\udcffb", "a folder's name must be UTF-8"),
    ],
)
def test_a_folder_that_cannot_be_is_refused_by_name(home: str, said: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        at(home)
    assert caught.value.message == f"STYLEQUEUE_HOME: found {home!r}; {said}"


def test_a_user_without_a_home_must_name_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(BadConfiguration, match="STYLEQUEUE_HOME: must be set"):
        load_settings({})
    assert at(tmp_path).home == tmp_path


# -- The key that signs cookies -------------------------------------------------------


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    first = at(tmp_path / "new" / "home")
    assert len(first.cookie_key) >= 32
    assert first.cookie_key == at(first.home).cookie_key
    assert first.cookie_key != at(tmp_path / "other").cookie_key


def test_nobody_else_can_read_the_key(tmp_path: Path) -> None:
    assert at(tmp_path).cookie_key
    assert stat.S_IMODE((tmp_path / "secret_key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


def test_a_key_that_is_given_is_not_kept(tmp_path: Path) -> None:
    found = load_settings(
        {"STYLEQUEUE_HOME": str(tmp_path), "STYLEQUEUE_SECRET_KEY": "given"}
    )
    assert found.cookie_key == "given"
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_somebody_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text("by hand\n")
    assert at(tmp_path).cookie_key == "by hand"


@pytest.mark.parametrize("content", ["", "\n", "  "])
def test_an_emptied_key_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secret_key"
    path.write_text(content)
    with pytest.raises(BadConfiguration, match="STYLEQUEUE_SECRET_KEY") as caught:
        _ = at(tmp_path).cookie_key
    assert f"{path} is empty; delete it or set the variable" in caught.value.message
    assert path.read_text() == content


def test_many_processes_at_once_have_the_same_key(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SAY_KEY, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in started]
    assert [errors for _, errors in said] == [""] * 6
    assert {out for out, _ in said} == {f"{at(tmp_path).cookie_key}\n"}


def test_the_key_of_whoever_was_first_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(size: int) -> str:
        (tmp_path / "secret_key").write_text("of the first")
        return "of the second"

    monkeypatch.setattr(secrets, "token_urlsafe", overtaken)
    assert at(tmp_path).cookie_key == "of the first"
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]
