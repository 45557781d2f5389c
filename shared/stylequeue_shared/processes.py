"""Finding and ending the processes of one installation, without touching any other."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

# Which installation a process belongs to: set by `stylequeue up` for its parts and
# inherited by all they start. (Not STYLEQUEUE_..., which would be a setting.)
MARK = "_STYLEQUEUE_UP"
# Start times are computed from the time of boot, which a corrected clock shifts.
START_TOLERANCE = 1.0
PR_SET_PDEATHSIG = 1


def find(pid: int, started: float) -> psutil.Process | None:
    """Return the process only if it is the one that started then: pids are reused."""
    with suppress(psutil.Error, ValueError):
        process = psutil.Process(pid)
        if abs(process.create_time() - started) <= START_TOLERANCE:
            return process
    return None


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie, which init may leave for ever, does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def mark(home: Path) -> str:
    """Return what the mark says: the folder, the same however it was written."""
    return str(home.resolve())


def marked(home: Path) -> set[psutil.Process]:
    """Find all processes that a `stylequeue up` of this folder started."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark(home):
                found.add(process)
    return found


def with_descendants(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Return the processes and all that they started and that still hang together."""
    family = set()
    for process in processes:
        family.add(process)
        with suppress(psutil.Error):
            family.update(process.children(recursive=True))
    return family


def ask(processes: Iterable[psutil.Process]) -> None:
    """Send SIGTERM to each."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()


def kill(processes: Iterable[psutil.Process], patience: float = 5.0) -> bool:
    """Send SIGKILL to each; return whether all of them are gone then."""
    processes = set(processes)
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    return wait_until(lambda: not any(map(is_alive, processes)), patience)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for the condition and return whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def die_with_parent() -> Callable[[], None] | None:
    """Have Linux end a part when we are killed; elsewhere the next start does it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask_for_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask_for_signal
