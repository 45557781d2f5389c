import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from stylequeue_shared import jobs, processes
from stylequeue_shared.database import Database
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.job_settings import JobSettings
from stylequeue_shared.preflight import read_running, running_file
from stylequeue_shared.settings import embedded_redis_url, load_settings

STAND_IN = Path(__file__).with_name("stand_in.py")
PARTS = {"web", "worker", "housekeeper", "valkey"}
# Where only what the launcher does is tested, most parts are stand-ins, for speed.
LIGHT = ("web", "worker", "housekeeper")
WORKER = ("worker",)


class Up:
    """One `stylequeue up` in a process of its own, and what it has said so far."""

    started: ClassVar[list["Up"]] = []

    def __init__(
        self, home: Path, *, standing_in: tuple[str, ...] = LIGHT, **environment: str
    ) -> None:
        self.home = home
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        settings = {"STYLEQUEUE_HOME": str(home), "STYLEQUEUE_PORT": str(port)}
        settings |= environment
        self.address = f"http://127.0.0.1:{settings['STYLEQUEUE_PORT']}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("STYLEQUEUE_")}
        command = ["-P", "-m", "stylequeue_shared.cli", "up"]
        if standing_in:
            command = [str(STAND_IN), "up", *standing_in]
        self._log = home.parent / f"up-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=clean | settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home.parent,
            )
        self.started.append(self)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def ready(self) -> "Up":
        wait_for(lambda: "StyleQueue is ready" in self.said or self.ended, self)
        assert not self.ended, self.said
        assert self.address in self.said
        return self

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def parts(self) -> dict[str, psutil.Process]:
        """The parts that run, as the launcher wrote them down."""
        written: dict[str, Any] = read_running(self.home)["parts"]
        found = {}
        for name, part in written.items():
            # One may have been killed just now.
            if process := processes.find(part["pid"], part["started"]):
                found[name] = process
        return found

    def everything(self) -> set[psutil.Process]:
        """All its processes, found in every way there is."""
        found = processes.with_descendants(processes.marked(self.home))
        return found | processes.with_descendants([psutil.Process(self.process.pid)])


def wait_for(condition: Callable[[], bool], up: Up, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, up.said
        time.sleep(0.05)


def left(family: set[psutil.Process], home: Path) -> list[psutil.Process]:
    found = processes.marked(home) | family
    return [process for process in found if processes.is_alive(process)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    # With a space, as a folder of a person's has.
    folder = tmp_path / "a home"
    yield folder
    for up in Up.started:
        up.process.kill()
        up.process.wait()
    Up.started.clear()
    processes.kill(processes.marked(folder))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything_and_is_a_success(home: Path, number: int) -> None:
    # Under nohup the tests, and what they start, would be deaf to SIGHUP.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        up = Up(home, standing_in=WORKER).ready()
    finally:
        signal.signal(number, before)
    # The launcher, its parts, gunicorn's processes and the worker's child; the last
    # of them are forked a moment after the first answers.
    deadline = time.monotonic() + 30
    while len(family := up.everything()) < 1 + len(PARTS) + 2 + 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert set(up.parts()) == PARTS
    assert up.end(number) == 0, up.said
    assert not left(family, home)
    assert not running_file(home).exists()
    assert not (home / "child-was-signalled").exists()


def test_no_part_shares_the_terminals_signals(home: Path) -> None:
    up = Up(home).ready()
    group = os.getpgid(up.process.pid)
    for process in up.everything() - {psutil.Process(up.process.pid)}:
        assert os.getpgid(process.pid) != group
    assert up.end() == 0


def test_a_part_that_will_not_end_is_killed_with_its_children(home: Path) -> None:
    up = Up(home, STAND_IN="stubborn").ready()
    family = up.everything()
    assert up.end() == 0
    assert not left(family, home)


def test_a_second_signal_hurries(home: Path) -> None:
    up = Up(home, STAND_IN="stubborn").ready()
    family = up.everything()
    up.process.send_signal(signal.SIGINT)
    started = time.monotonic()
    time.sleep(0.3)
    assert up.end(signal.SIGINT) == 0
    # Without it the grace of two seconds would have passed.
    assert time.monotonic() - started < 1.9
    assert not left(family, home)


def test_a_child_that_a_part_leaves_behind_is_ended(home: Path) -> None:
    up = Up(home, STAND_IN="orphan").ready()
    family = up.everything()
    assert up.end() == 0
    assert not left(family, home)


def test_a_signal_while_it_starts_ends_everything(home: Path) -> None:
    up = Up(home)
    wait_for(lambda: bool(processes.marked(home)) or up.ended, up)
    family = up.everything()
    assert up.end() == 0, up.said
    assert not left(family, home)


def killed_and_back(up: Up, name: str) -> None:
    """Kill a part, and wait until another has taken its place beside the others."""
    before = up.parts()
    said = up.said.count(f"the {name} part was ended by SIGKILL")
    before[name].kill()
    wait_for(lambda: up.ended or up.parts().get(name) not in (None, before[name]), up)
    assert not up.ended, up.said
    assert up.said.count(f"the {name} part was ended by SIGKILL") == said + 1
    after = up.parts()
    assert {**after, name: before[name]} == before
    assert all(processes.is_alive(process) for process in after.values())


def test_a_part_that_is_killed_is_started_again_and_the_others_go_on(
    home: Path,
) -> None:
    up = Up(home, STAND_IN="stubborn").ready()
    family = up.everything()
    survivors = {up.parts()["worker"].children()[0]}
    for name in sorted(PARTS):
        killed_and_back(up, name)
    # What the dead worker left, which would not end when asked, was gone before.
    assert not [process for process in survivors if processes.is_alive(process)]
    assert "; it is started again in 0.5 s" in up.said
    family |= up.everything()
    assert up.end() == 0, up.said
    assert not left(family, home)


def test_the_real_parts_serve_again_after_each_of_them_was_killed(home: Path) -> None:
    up = Up(home, standing_in=WORKER).ready()
    job = submit(home)
    for name in sorted(PARTS - {"worker"}):
        killed_and_back(up, name)
        wait_for(lambda: ready_again(up), up)
    assert answer(f"{up.address}/api/v1/jobs/{job}")["id"] == job
    family = up.everything()
    assert up.end() == 0, up.said
    assert not left(family, home)


def ready_again(up: Up) -> bool:
    try:
        with urlopen(f"{up.address}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("failing", "ended with status 1, 3 times in a row; stopping the others"),
        ("misconfigured", "ended with status 2, and starting it again cannot help"),
    ],
)
def test_a_part_that_is_given_up_ends_all_and_says_why(
    home: Path, how: str, said: str
) -> None:
    up = Up(home, STAND_IN=how)
    assert up.process.wait(timeout=60) == 1
    assert f"stylequeue: the housekeeper part {said}" in up.said
    assert not left(set(), home)


def test_a_signal_while_a_part_waits_to_be_started_again_ends_everything(
    home: Path,
) -> None:
    up = Up(home, STAND_IN="resting").ready()
    wait_for(lambda: "it is started again in 3600 s" in up.said, up)
    family = up.everything()
    assert up.end() == 0, up.said
    assert not left(family, home)


def test_the_start_after_a_killed_launcher_ends_what_it_left(home: Path) -> None:
    killed = Up(home, STAND_IN="stubborn").ready()
    family = killed.everything()
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    # The stubborn worker and its child, at the least.
    assert left(family, home)
    port = killed.address.rsplit(":", 1)[1]
    up = Up(home, STYLEQUEUE_PORT=port, STAND_IN="stubborn").ready()
    assert "ending what an earlier start left behind" in up.said
    assert not [process for process in family if processes.is_alive(process)]
    assert up.end() == 0


def test_leftovers_are_found_without_the_note_of_them(home: Path) -> None:
    killed = Up(home, STAND_IN="stubborn").ready()
    family = killed.everything()
    running_file(home).unlink()
    killed.end(signal.SIGKILL)
    up = Up(home).ready()
    assert not [process for process in family if processes.is_alive(process)]
    assert up.end() == 0


def test_a_process_that_has_the_number_of_a_dead_part_is_spared(home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as stranger:
        started = psutil.Process(stranger.pid).create_time() - 60
        home.mkdir()
        parts = {"worker": {"pid": stranger.pid, "started": started}}
        running_file(home).write_text(json.dumps({"pid": 1, "parts": parts}))
        up = Up(home).ready()
        assert up.end() == 0
        assert stranger.poll() is None
        stranger.kill()


def test_a_second_one_on_the_same_folder_is_refused(home: Path) -> None:
    first = Up(home).ready()
    second = Up(home, standing_in=())
    assert second.process.wait(timeout=60) == 2
    assert second.said.startswith("STYLEQUEUE_HOME: ")
    assert f"{first.address} (process {first.process.pid})" in second.said
    assert len(second.said.splitlines()) == 1
    assert set(first.parts()) == PARTS
    assert first.end() == 0


def test_a_taken_port_is_one_line_and_starts_nothing(home: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        up = Up(home, standing_in=(), STYLEQUEUE_PORT=port)
        assert up.process.wait(timeout=60) == 2
    assert up.said.startswith(f"STYLEQUEUE_PORT: {port} is taken")
    assert len(up.said.splitlines()) == 1
    assert not left(set(), home)


def test_a_file_in_place_of_the_folder_is_one_line(home: Path) -> None:
    home.write_text("in the way")
    up = Up(home, standing_in=())
    assert up.process.wait(timeout=60) == 2
    assert up.said.startswith("STYLEQUEUE_HOME: cannot write to")
    assert len(up.said.splitlines()) == 1


def test_a_long_path_is_no_obstacle(home: Path) -> None:
    long_home = home / ("long" * 30)
    long_home.parent.mkdir()
    up = Up(long_home).ready()
    assert embedded_redis_url(long_home).startswith("redis://:")
    family = up.everything()
    assert up.end() == 0
    assert not left(family, long_home)


def test_with_a_server_of_your_own_none_is_started(home: Path) -> None:
    up = Up(home, STYLEQUEUE_REDIS="redis://127.0.0.1:1/0").ready()
    assert set(up.parts()) == PARTS - {"valkey"}
    assert up.end() == 0


def test_what_it_makes_is_for_its_user_alone(home: Path) -> None:
    home.mkdir(mode=0o755)
    up = Up(home, standing_in=WORKER).ready()
    for path in home.rglob("*"):
        if not path.is_socket():
            assert path.stat().st_mode & 0o077 == 0, path
    assert up.end() == 0


def test_the_next_start_finds_the_jobs_of_the_last(home: Path) -> None:
    """All of it real, the worker with its network included."""
    up = Up(home, standing_in=()).ready()
    job = submit(home)
    assert answer(f"{up.address}/api/v1/jobs/{job}")["id"] == job
    family = up.everything()
    assert up.end(signal.SIGINT) == 0, up.said
    assert not left(family, home)
    up = Up(home, standing_in=()).ready()
    assert answer(f"{up.address}/api/v1/jobs/{job}")["id"] == job
    # The worker that this installation has joined says who it is.
    wait_for(lambda: bool(answer(f"{up.address}/api/v1/workers")["workers"]), up)
    assert up.end() == 0


def submit(home: Path) -> str:
    database = Database(load_settings({"STYLEQUEUE_HOME": str(home)}).database_url)
    picture = Inspected(
        sha256="0" * 64, media_type="image/png", width=64, height=64, bytes=100
    )
    jobs.keep_pictures(database, [picture])
    job = jobs.submit(
        database,
        JobSettings(seed=1),
        picture.sha256,
        [picture.sha256],
        max_waiting=10,
    )
    database.close()
    return job


def answer(url: str) -> dict[str, Any]:
    try:
        with urlopen(url, timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except URLError as error:
        raise AssertionError(f"{url}: {error}") from error
