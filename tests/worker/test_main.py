import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from stylequeue_shared import restarts
from stylequeue_shared.restarts import GAVE_UP
from stylequeue_shared.settings import Settings, load_settings
from stylequeue_worker import main
from stylequeue_worker.devices import Place
from stylequeue_worker.main import Supervisor, environment

# Stands for a Celery worker: fails at once on a broken GPU, else waits for SIGTERM.
STAND_IN = """
import os, signal, sys
if os.environ["CUDA_VISIBLE_DEVICES"] == "broken":
    sys.exit(int(os.environ["STATUS"]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open(os.path.join(os.environ["STYLEQUEUE_HOME"], "ready"), "w").close()
while True:
    signal.pause()
"""


@pytest.fixture
def settings(
    sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Settings of workers that are stand-ins, which twice may fail."""
    monkeypatch.setattr(restarts, "MAX_FAILURES", 2)
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(
        main, "worker_command", lambda name: [sys.executable, "-c", STAND_IN, name]
    )
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }
    path = tmp_path / "stylequeue.db"
    path.write_bytes(sqlite.read_bytes())
    yield Settings(home=tmp_path)
    for number, handler in before.items():
        signal.signal(number, handler)


def on_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: str, status: int = 1) -> None:
    places = [
        Place(
            {
                "CUDA_VISIBLE_DEVICES": gpu,
                "STYLEQUEUE_DEVICE": "cuda:0",
                "STATUS": str(status),
            }
        )
        for gpu in gpus
    ]
    monkeypatch.setattr(main, "places", lambda settings: places)


def run_until(settings: Settings, condition: Callable[[], bool]) -> int:
    """Run a supervisor, and stop it when the condition holds or after a minute."""
    supervisor = Supervisor(settings)

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        supervisor._stopping = True

    thread = threading.Thread(target=stop)
    thread.start()
    status = supervisor.run()
    thread.join()
    return status


def test_one_broken_gpu_is_given_up_alone_and_the_others_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpus(monkeypatch, "broken", "whole")
    with capture_logs() as lines:

        def given_up() -> bool:
            said = any(line["event"] == "worker_given_up" for line in lines)
            return said and (settings.home / "ready").exists()

        assert run_until(settings, given_up) == 0
    started = [line["gpu"] for line in lines if line["event"] == "worker_started"]
    assert sorted(started) == ["broken", "broken", "whole"]
    (given_up_line,) = (line for line in lines if line["event"] == "worker_given_up")
    assert given_up_line["log_level"] == "critical"
    assert given_up_line["gpu"] == "broken"
    assert given_up_line["how"] == "ended with status 1"
    died = [line["gpu"] for line in lines if line["event"] == "worker_died"]
    assert died == ["broken"]


@pytest.mark.parametrize(("status", "starts"), [(1, 4), (2, 2)])
def test_when_all_workers_are_given_up_the_supervisor_ends_with_its_own_status(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, status: int, starts: int
) -> None:
    on_gpus(monkeypatch, "broken", "broken", status=status)
    with capture_logs() as lines:
        assert Supervisor(settings).run() == GAVE_UP
    events = [line["event"] for line in lines]
    assert events.count("worker_started") == starts
    assert events[-1] == "all_workers_given_up"


def test_a_stop_while_a_worker_waits_to_be_started_again_is_a_success(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 3600.0)
    monkeypatch.setattr(restarts, "LONGEST_PAUSE", 3600.0)
    on_gpus(monkeypatch, "broken")
    with capture_logs() as lines:

        def died() -> bool:
            return any(line["event"] == "worker_died" for line in lines)

        assert run_until(settings, died) == 0


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
