"""Run the decoder's child process and judge how it ended.

A picture is refused for what it makes the decoder do: exceed the decoder's own limits
or crash. The machine is at fault when the decoder cannot start, is killed from outside
or finds a resource missing.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from stylequeue_shared.errors import Busy, InvalidPicture, MachineError, OurError
from stylequeue_shared.system_errors import machine_errors

# The variables that the child inherits: a Python outside the usual places, and the mark
# by which `stylequeue up` finds what it started. None of them is secret.
KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "_STYLEQUEUE_UP")
# Wall-clock seconds per allowed second of CPU time: other processes use the cores too.
PATIENCE = 4.0
# The longest wait for one of the slots below.
SLOT_SECONDS = 20.0
READY = b"ready\n"
# Signals that no codec raises against itself. The kernel sends SIGKILL when the
# machine, not the process, is out of memory.
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# A decoder may take a gigabyte of memory, so no process runs more than two at once.
_slots = threading.BoundedSemaphore(2)

log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """What the child may take: address space, CPU seconds, pixels, bytes written."""

    bytes: int
    seconds: float
    pixels: int
    written: int = 0


@dataclass(frozen=True)
class _Ended:
    """How the child ended; `status` is None when it ran too long by the wall clock."""

    status: int | None
    output: bytes
    complaint: bytes


def ask(
    command: Sequence[str],
    request: dict[str, Any],
    limits: Limits,
    output: int | None = None,
) -> dict[str, Any]:
    """Return the child's answer; it writes pixels or a file to the handle `output`.

    Raises InvalidPicture, Busy, DiskFull and MachineError.
    """
    given = json.dumps({**request, **vars(limits), "output": output})
    with _slot(), machine_errors():
        ended = _run(
            [*command, given],
            limits.seconds * PATIENCE,
            () if output is None else (output,),
        )
    return _answer(ended, limits)


@contextmanager
def _slot() -> Iterator[None]:
    if not _slots.acquire(timeout=SLOT_SECONDS):
        raise Busy("The server is decoding other pictures; try again in a few seconds.")
    try:
        yield
    finally:
        _slots.release()


def _run(command: list[str], seconds: float, handles: tuple[int, ...]) -> _Ended:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        cwd="/",
        pass_fds=handles,
        start_new_session=True,
    ) as process:
        try:
            output, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return _Ended(None, b"", b"")
        finally:
            # The whole group is killed, in case a codec has started something.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return _Ended(process.returncode, output, complaint)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    # One thread for each library: every further one takes address space.
    return {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", **kept}


def _answer(ended: _Ended, limits: Limits) -> dict[str, Any]:
    # The child says `ready` when it has come as far as looking at the picture. How one
    # ends that has not says nothing about the picture.
    is_ready = ended.output.startswith(READY)
    answered = ended.status == 0 and ended.output.removeprefix(READY).endswith(b"\n")
    if not answered and (error := _machine_fault(ended, is_ready=is_ready)):
        log.error("decoder_failed", status=ended.status, reason=error.message)
        raise error
    if not answered:
        log.warning("decoder_died", status=ended.status, reason=_last_line(ended))
        raise InvalidPicture(_cause_of_death(ended.status, limits))
    answer: dict[str, Any] = json.loads(ended.output.removeprefix(READY))
    if "invalid" in answer:
        raise InvalidPicture(answer["invalid"])
    if "errno" in answer:
        log.error("decoder_failed", errno=answer["errno"])
        with machine_errors():
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
    return answer


def _machine_fault(ended: _Ended, *, is_ready: bool) -> MachineError | OurError | None:
    """Return the error of a child that failed for no reason in the picture."""
    if ended.status is None:
        return Busy("The server is too busy to decode the picture; try again later.")
    if -ended.status in FROM_OUTSIDE:
        return MachineError(
            f"The picture's decoder was killed ({signal.Signals(-ended.status).name}), "
            "perhaps because the server's memory is full; try again later."
        )
    if not is_ready:
        return OurError(
            f"the picture decoder does not start (exit {ended.status}): "
            f"{_last_line(ended)}"
        )
    return None


def _cause_of_death(status: int | None, limits: Limits) -> str:
    if status == -signal.SIGXCPU:
        return (
            "found a picture that takes too long to decode; "
            f"allowed are {limits.seconds:.0f} seconds"
        )
    return "found a picture that crashes its decoder; allowed are undamaged pictures"


def _last_line(ended: _Ended) -> str:
    lines = ended.complaint.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"
