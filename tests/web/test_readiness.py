import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stylequeue_web import readiness
from stylequeue_web.readiness import Readiness


class Slow:
    """A check that hangs until it is let go, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.let_go = threading.Event()

    def __call__(self) -> None:
        self.begun += 1
        self.let_go.wait(60)


@pytest.fixture
def slow() -> Slow:
    return Slow()


def nothing() -> None:
    """A check that always succeeds."""


def test_many_who_ask_at_once_and_soon_after_cost_one_check(slow: Slow) -> None:
    asked = Readiness({"store": slow})
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(asked.found) for _ in range(8)]
        slow.let_go.set()
        assert [one.result() for one in answers] == [{"store": "ok"}] * 8
    asked.found()
    assert slow.begun == 1


def test_a_check_that_hangs_is_named_and_is_not_begun_a_second_time(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(readiness, "KEPT_SECONDS", 0.0)
    asked = Readiness({"store": slow, "database": nothing})
    for _ in range(3):
        assert asked.found() == {"store": "does not answer", "database": "ok"}
    assert slow.begun == 1
    slow.let_go.set()
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 60)
    assert asked.found() == {"store": "ok", "database": "ok"}
    assert slow.begun == 1
    assert asked.found() == {"store": "ok", "database": "ok"}
    assert slow.begun == 2


def test_while_one_waits_for_a_check_others_get_the_last_result_at_once(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 60)
    slow.let_go.set()
    asked = Readiness({"store": slow})
    assert asked.found() == {"store": "ok"}
    slow.let_go.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(asked.found)
        while slow.begun < 2:
            time.sleep(0.01)
        try:
            assert pool.submit(asked.found).result(timeout=20) == {"store": "ok"}
            assert not waiting.done()
        finally:
            slow.let_go.set()
    assert slow.begun == 2
