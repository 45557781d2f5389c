import subprocess
import sys
from typing import Any, cast

import pytest

from stylequeue_shared import restarts
from stylequeue_shared.restarts import BAD_CONFIGURATION, GAVE_UP, RestartedProcess


class FakeProcess:
    """A process that ends when the test sets its status."""

    def __init__(self) -> None:
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode


class Scene:
    """A process under a clock of the test's own."""

    def __init__(self) -> None:
        self.time = 100.0
        self.started = 0
        self.error: OSError | None = None
        self.watched = RestartedProcess(self._start, lambda: self.time)

    def _start(self) -> "subprocess.Popen[bytes]":
        if self.error:
            raise self.error
        self.started += 1
        return cast(Any, FakeProcess())

    def end(self, status: int = 1, after: float = 1.0) -> None:
        self.time += after
        cast(Any, self.watched.process).returncode = status

    def restart(self, pause: float) -> None:
        self.time += pause
        assert self.watched.is_due
        self.watched.start()


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.watched.start()
    return made


def test_a_process_that_runs_has_not_ended_and_is_not_due(scene: Scene) -> None:
    scene.time += 1e6
    assert scene.watched.is_running
    assert scene.watched.find_ending() is None
    assert not scene.watched.is_due


def test_an_ending_is_found_once_and_the_restart_waits_for_the_pause(
    scene: Scene,
) -> None:
    scene.end(-9)
    ending = scene.watched.find_ending()
    assert ending
    assert (ending.how, ending.status) == ("was ended by SIGKILL", -9)
    assert (ending.pause, ending.failures) == (0.5, 1)
    assert scene.watched.find_ending() is None
    assert not scene.watched.is_running
    assert not scene.watched.is_due
    scene.restart(0.5)
    assert scene.watched.is_running
    assert scene.started == 2


def test_the_pauses_double_up_to_the_longest_and_then_it_is_given_up(
    scene: Scene,
) -> None:
    pauses = []
    while not scene.watched.given_up:
        scene.end()
        ending = scene.watched.find_ending()
        assert ending
        pauses.append(ending.pause)
        if ending.pause is not None:
            scene.restart(ending.pause)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, None]
    assert scene.started == restarts.MAX_FAILURES
    scene.time += 1e6
    assert not scene.watched.is_due
    assert scene.watched.find_ending() is None


def test_a_process_that_ran_well_begins_with_the_first_pause_again(
    scene: Scene,
) -> None:
    # Otherwise a part that fails once a week would be given up after two months.
    for _ in range(3 * restarts.MAX_FAILURES):
        scene.end(after=restarts.RAN_WELL_SECONDS)
        ending = scene.watched.find_ending()
        assert ending
        assert ending.pause == 0.5
        scene.restart(ending.pause)


@pytest.mark.parametrize("status", [BAD_CONFIGURATION, GAVE_UP])
def test_a_status_that_a_restart_cannot_help_gives_up_at_once(
    scene: Scene, status: int
) -> None:
    scene.end(status)
    ending = scene.watched.find_ending()
    assert ending
    assert (ending.pause, ending.failures) == (None, 1)
    assert scene.watched.given_up


def test_the_same_status_after_a_long_run_is_tried_again_once(scene: Scene) -> None:
    scene.end(BAD_CONFIGURATION, after=3600)
    ending = scene.watched.find_ending()
    assert ending
    assert ending.pause == 0.5
    scene.restart(0.5)
    scene.end(BAD_CONFIGURATION)
    assert scene.watched.find_ending()
    assert scene.watched.given_up


def test_a_process_that_cannot_be_started_is_tried_again_like_one_that_ended(
    scene: Scene,
) -> None:
    scene.end()
    assert scene.watched.find_ending()
    scene.error = OSError(11, "Resource temporarily unavailable")
    scene.restart(0.5)
    assert not scene.watched.is_running
    ending = scene.watched.find_ending()
    assert ending
    assert "cannot be started" in ending.how
    assert "Resource temporarily unavailable" in ending.how
    assert (ending.status, ending.pause, ending.failures) == (None, 1, 2)
    scene.error = None
    scene.restart(1)
    assert scene.watched.is_running
    assert scene.watched.find_ending() is None


def test_a_real_process_is_watched() -> None:
    watched = RestartedProcess(
        lambda: subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    )
    watched.start()
    assert watched.process
    watched.process.wait(60)
    ending = watched.find_ending()
    assert ending
    assert ending.how == "ended with status 7"
