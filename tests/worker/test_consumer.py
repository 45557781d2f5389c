import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from kombu.utils import functional

from stylequeue_shared.queue import worker_celery
from stylequeue_shared.settings import Settings
from stylequeue_worker.consumer import Consumer


class BackAgain(Exception):
    """Raised when the outage has been long enough."""


def test_a_broker_that_is_away_for_an_hour_is_tried_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds
        if slept > 3600:
            raise BackAgain

    monkeypatch.setattr(functional, "sleep", sleep)
    with socket.socket() as closed:
        # Bound, and not listening: whoever connects is refused.
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        app = worker_celery(Settings(home=tmp_path, redis=url))
        plain = SimpleNamespace(use_eventloop=False)
        with pytest.raises(BackAgain):
            Consumer(print, app=app, controller=plain).connection_for_read()
    refused = [one for one in caplog.records if "Cannot connect" in one.getMessage()]
    assert len(refused) > 3600 / 10
