import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.settings import (
    Settings,
    load_settings,
)

SECRET = "hunter2-and-more"
SECRETS = {
    "STYLEQUEUE_DATABASE": f"postgresql://me:{SECRET}@host/name",
    "STYLEQUEUE_REDIS": f"redis://:{SECRET}@host:6379/0",
    "STYLEQUEUE_SECRET_KEY": SECRET,
    "STYLEQUEUE_OPERATOR_TOKEN": SECRET,
}
READ_NOTHING_AT_IMPORT = """
import os

class Unread(dict):
    def _read(self, name):
        assert not str(name).startswith("STYLEQUEUE_"), name
        return name
    def __getitem__(self, name): return super().__getitem__(self._read(name))
    def __contains__(self, name): return super().__contains__(self._read(name))
    def get(self, name, default=None): return super().get(self._read(name), default)
    def items(self): raise AssertionError("the whole environment was read")

os.environ = Unread(os.environ)
import stylequeue_shared.settings
print("imported")
"""


def load(**variables: str) -> Settings:
    return load_settings({f"STYLEQUEUE_{k.upper()}": v for k, v in variables.items()})


def refused(**variables: str) -> str:
    """Return what is said about an environment that must be refused."""
    with pytest.raises(BadConfiguration) as caught:
        load(**variables)
    return caught.value.message


# -- Defaults and refusals ------------------------------------------------------------


def test_without_any_variable_everything_lies_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = load_settings({})
    home = tmp_path / ".stylequeue"
    assert found.home == home
    assert found.database_url == f"sqlite:///{home}/stylequeue.db"
    assert found.store_url == f"{home}/store"
    assert found.redis_url == f"redis+socket://{home}/redis/redis.sock"
    assert not home.exists()


def test_the_defaults_are_those_of_a_machine_of_one_s_own() -> None:
    found = load_settings({})
    assert (found.host, found.port, found.is_loopback) == ("127.0.0.1", 8000, True)
    assert (found.open, found.secret_key, found.operator_token) == (False, None, None)
    assert (found.weights, found.device, found.workers) == ("bundled", "auto", None)
    assert (found.lease_seconds, found.retention_days) == (30, 30)
    assert (found.max_file_bytes, found.max_pixels) == (20_000_000, 50_000_000)
    assert (found.max_image_size, found.max_steps) == (4096, 5000)
    assert (found.max_waiting, found.trusted_hosts) == (1000, ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "0"),
        ("port", "65536"),
        ("port", "eighty"),
        ("device", "gpu"),
        ("device", "cuda:"),
        ("device", "cpu\n"),
        ("workers", "0"),
        ("workers", "65"),
        ("threads", "1.5"),
        ("memory_mb", "255"),
        ("open", "perhaps"),
        ("lease_seconds", "0.5"),
        ("lease_seconds", "nan"),
        ("lease_seconds", "inf"),
        ("retention_days", "0"),
        ("retention_days", "36501"),
        ("max_file_mb", "0"),
        ("max_file_mb", "1025"),
        ("max_megapixels", "-1"),
        ("max_image_size", "31"),
        ("max_image_size", "8193"),
        ("max_steps", "0"),
        ("max_steps", "100001"),
        ("max_steps", " "),
        ("max_waiting", "0"),
        ("max_waiting", "1e3"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(name: str, value: str) -> None:
    message = refused(**{name: value})
    assert message.startswith(f"STYLEQUEUE_{name.upper()}: found {value!r}; ")
    assert len(message) < 300


@pytest.mark.parametrize("name", ["STYLEQUEUE_PROT", "STYLEQUEUE_", "STYLEQUEUE_port"])
def test_a_misspelt_variable_is_refused_and_the_known_ones_are_told(name: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        load_settings({name: "8000"})
    assert caught.value.message.startswith(f"{name}: no such setting; ")
    for known in Settings.model_fields:
        assert f"STYLEQUEUE_{known}".upper() in caught.value.message


def test_a_misspelt_variable_is_refused_though_it_is_empty() -> None:
    assert "no such setting" in refused(prot="")


def test_an_empty_variable_counts_as_left_out() -> None:
    assert load(**dict.fromkeys(Settings.model_fields, "")) == load_settings({})


def test_variables_of_others_are_none_of_our_business() -> None:
    assert load_settings({"PORT": "x", "STYLE": "x", "stylequeue_port": "x"}).port


def test_trusted_hosts_are_separated_by_commas() -> None:
    found = load(trusted_hosts=" paint.example, ,b.example ,")
    assert found.trusted_hosts == ("paint.example", "b.example")


def test_trusted_proxies_are_addresses_or_networks() -> None:
    found = load(trusted_proxies="10.0.0.7, fd00::/8,127.0.0.1")
    assert found.trusted_proxies == ("10.0.0.7", "fd00::/8", "127.0.0.1")


@pytest.mark.parametrize(
    "wrong", ["proxy.example", "10.0.0.5/8", "10.0.0.300", "10.0.0.1:80", "*"]
)
def test_a_malformed_proxy_is_refused_by_name(wrong: str) -> None:
    said = refused(trusted_proxies=f"127.0.0.1, {wrong}")
    assert said.startswith("STYLEQUEUE_TRUSTED_PROXIES: found")
    assert wrong in said
    assert "10.0.0.0/8" in said


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("https://styles.example", "https://styles.example"),
        ("HTTPS://Styles.example/", "https://styles.example"),
        ("http://styles.example:8080/a/b/", "http://styles.example:8080/a/b"),
        ("https://[2001:db8::1]/q.1_~-", "https://[2001:db8::1]/q.1_~-"),
    ],
)
def test_the_public_url_is_kept_without_its_last_slash(given: str, found: str) -> None:
    assert load(public_url=given).public_url == found


@pytest.mark.parametrize(
    "wrong",
    [
        "styles.example",
        "//styles.example",
        "ftp://styles.example",
        "https://",
        "https:///queue",
        "https://me:secret@styles.example",
        "https://styles.example?a=b",
        "https://styles.example#a",
        "https://styles.example//evil",
        "https://styles.example/../a",
        "https://styles.example/a b",
        "https://styles.example:99999",
        "https://[::1",
    ],
)
def test_what_is_no_public_url_is_refused_by_name(wrong: str) -> None:
    assert refused(public_url=wrong).startswith("STYLEQUEUE_PUBLIC_URL: found")


def test_settings_do_not_change() -> None:
    found = load_settings({})
    with pytest.raises(ValidationError, match="frozen"):
        found.port = 1  # type: ignore[misc]


def test_the_environment_is_the_process_s_own_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STYLEQUEUE_PORT", "8123")
    assert load_settings().port == 8123


def test_nothing_is_read_from_the_environment_at_import() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ_NOTHING_AT_IMPORT],
        env={**os.environ, "STYLEQUEUE_PORT": "wrong"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("imported\n", "")


# -- Who can reach it -----------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "localhost"]
)
def test_what_only_this_machine_reaches_needs_no_key(host: str) -> None:
    found = load(host=host)
    assert found.is_loopback
    assert found.secret_key is None


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.7", "paint.example", "localhost.example"]
)
def test_what_others_reach_must_be_open_and_have_a_key(host: str) -> None:
    for variables in ({}, {"secret_key": SECRET}, {"open": "0"}, {"open": "false"}):
        message = refused(host=host, **variables)
        assert message.startswith("STYLEQUEUE_OPEN: must be 1 to listen on " + host)
    message = refused(host=host, open="1")
    assert message == f"STYLEQUEUE_SECRET_KEY: must be set to listen on {host}"
    assert not load(host=host, open="1", secret_key=SECRET).is_loopback


# -- Secrets --------------------------------------------------------------------------


def test_settings_that_are_shown_keep_their_secrets() -> None:
    found = load_settings(SECRETS)
    for shown in (repr(found), str(found), f"{found!r}", repr([found])):
        assert SECRET not in shown
    assert found.database_url == SECRETS["STYLEQUEUE_DATABASE"]
    assert found.redis_url == SECRETS["STYLEQUEUE_REDIS"]
    assert found.cookie_key == SECRET
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", "x"), ("home", "\0"), ("host", "0.0.0.0"), ("prot", "1"), ("open", "?")],
)
def test_a_refusal_keeps_the_secrets(name: str, value: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        load_settings({**SECRETS, f"STYLEQUEUE_{name.upper()}": value})
    assert SECRET not in repr(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
