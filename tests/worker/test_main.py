from pathlib import Path

from pydantic import SecretStr

from stylequeue_shared.settings import Settings, load_settings
from stylequeue_worker.main import environment


def test_settings_reach_the_workers_as_they_are(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        redis="redis://:pass@host/1",
        host="0.0.0.0",
        open=True,
        secret_key=SecretStr("key"),
        trusted_hosts=("a.example", "b.example"),
        lease_seconds=4.5,
        threads=3,
    )
    assert load_settings(environment(settings)) == settings


def test_what_was_not_set_is_left_to_its_default() -> None:
    assert environment(Settings(threads=2)) == {"STYLEQUEUE_THREADS": "2"}
