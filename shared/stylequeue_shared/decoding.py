"""Uploads are decoded in a child process, which a crashing codec or a bomb may cost.

Pillow is not imported here: what others sent is never decoded in this process.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stylequeue_shared.errors import InvalidPicture, OurError

# -I: neither the environment nor the current folder decides what is imported.
COMMAND = [
    sys.executable,
    "-I",
    "-W",
    "ignore",
    "-m",
    "stylequeue_shared.decoding_child",
]
# Of what the parent has: a Python outside the usual places, and the mark by which
# `stylequeue up` finds what it started. No secrets.
KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "_STYLEQUEUE_UP")

# Measured at 50 megapixels over all formats: at most 1.33 GB (a WEBP with alpha) and
# 2.4 s (a PNG with alpha and a profile). The base holds the libraries.
BASE_BYTES = 512 * 1024**2
BYTES_PER_PIXEL = 28
BASE_SECONDS = 15.0
SECONDS_PER_PIXEL = 0.5e-6
# The clock on the wall also counts while other processes have the cores.
PATIENCE = 3.0

# A decoder may take a gigabyte, so no process has more than two at once.
_slots = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Inspected:
    """What was found about an upload; width and height are those of it upright."""

    sha256: str
    media_type: str
    width: int
    height: int
    bytes: int


@dataclass(frozen=True)
class Limits:
    """What the child may take: address space in bytes, seconds of a core, pixels."""

    bytes: int
    seconds: float
    pixels: int

    @classmethod
    def for_pixels(cls, pixels: int) -> "Limits":
        """Return limits that every honest picture of that many pixels fits into."""
        return cls(
            bytes=BASE_BYTES + BYTES_PER_PIXEL * pixels,
            seconds=BASE_SECONDS + SECONDS_PER_PIXEL * pixels,
            pixels=pixels,
        )


def inspect(path: Path, *, field: str, max_bytes: int, max_pixels: int) -> Inspected:
    """Decode the whole picture and say what it is.

    Raises InvalidPicture that names the field, what was found and what is allowed.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise InvalidPicture(
            f"{field}: found a file of {_megabytes(size)}; "
            f"allowed are at most {_megabytes(max_bytes)}",
            field=field,
        )
    try:
        found, _ = _call(path, Limits.for_pixels(max_pixels), action="inspect")
    except InvalidPicture as error:
        raise InvalidPicture(f"{field}: {error.message}", field=field) from error
    return Inspected(sha256=_digest(path), bytes=size, **found)


def render(
    source: Path,
    *,
    size: int | None,
    format: Literal["png", "jpeg"],
    max_pixels: int = 100_000_000,
) -> bytes:
    """Return the picture, upright and without metadata, at most `size` pixels long.

    The default of `max_pixels` is above the largest result and the usual limit of
    uploads; an installation that takes larger ones gives its own.
    Raises InvalidPicture.
    """
    limits = Limits.for_pixels(max_pixels)
    return _call(source, limits, action="render", size=size, format=format)[1]


def _call(path: Path, limits: Limits, **request: Any) -> tuple[dict[str, Any], bytes]:
    """Return the child's answer and the bytes behind it."""
    request |= {"path": str(path.absolute()), **vars(limits)}
    with _slots:
        returncode, output, complaint = _run(
            [*COMMAND, json.dumps(request)], limits.seconds * PATIENCE
        )
    # The first line says that the child has come as far as looking at the picture;
    # a child that has not says nothing about the picture.
    ready, _, output = output.partition(b"\n")
    if ready != b"ready" and returncode is not None:
        lines = complaint.decode(errors="replace").strip().splitlines()
        raise OurError(
            f"the picture decoder does not start (exit {returncode}): "
            f"{lines[-1] if lines else 'no reason given'}"
        )
    head, newline, body = output.partition(b"\n")
    if returncode != 0 or not newline:
        raise InvalidPicture(_cause_of_death(returncode, limits))
    answer = json.loads(head)
    if "invalid" in answer:
        raise InvalidPicture(answer["invalid"])
    return answer, body


def _run(command: list[str], seconds: float) -> tuple[int | None, bytes, bytes]:
    """Return exit status, output and complaints; None if it took too long."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            output, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None, b"", b""
        finally:
            # Its group too, in case a codec has started something.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, complaint


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    # One thread each: every further one takes address space.
    return {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", **kept}


def _cause_of_death(returncode: int | None, limits: Limits) -> str:
    if returncode in (None, -signal.SIGXCPU):
        return (
            "found a picture that takes too long to decode; "
            f"allowed are {limits.seconds:.0f} seconds"
        )
    if returncode == -signal.SIGKILL:  # by the system, which is out of memory
        return (
            "found a picture that needs too much memory; "
            f"allowed are {_megabytes(limits.bytes)}"
        )
    return "found a picture that crashes its decoder; allowed are undamaged pictures"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.3g} MB" if size < 1e9 else f"{size / 1e6:.0f} MB"
