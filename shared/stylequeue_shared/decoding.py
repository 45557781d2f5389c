"""Decode uploads in a child process, which a crashing codec or a bomb may cost.

Nothing that others sent is ever decoded in the process that calls these functions, be
it a web server or a worker; Pillow is only imported where its picture is returned.
"""

import hashlib
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Literal

from stylequeue_shared import decoder_process
from stylequeue_shared.decoder_process import Limits
from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.system_errors import machine_errors

if TYPE_CHECKING:
    from PIL import Image

# -I: neither the environment nor the current folder decides what is imported.
COMMAND = [
    sys.executable,
    "-I",
    "-W",
    "ignore",
    "-m",
    "stylequeue_shared.decoding_child",
]

# Measured at 50 megapixels over all formats: at most 1.33 GB (a WEBP with alpha). The
# base holds the libraries.
BASE_BYTES = 512 * 1024**2
BYTES_PER_PIXEL = 28
# Measured at 50 megapixels: at most 3.5 s to read one of 8 bits (a PNG with alpha and a
# profile), 12 s for 16 bits with a profile, and 6.5 s more to write a PNG. Allowed is
# twice the slowest, and four times the usual, for slower machines.
BASE_SECONDS = 4.0
SECONDS_PER_PIXEL = 0.4e-6
WRITING_SECONDS_PER_PIXEL = 0.5e-6
# The largest file that is made of a picture: all its pixels, and what is around them.
WRITTEN_BASE_BYTES = 1_000_000
WRITTEN_BYTES_PER_PIXEL = 5
# The largest picture that any installation may accept. A worker decodes uploads that a
# web server has checked against its own limit, which the worker need not be told.
LARGEST_UPLOAD = 500_000_000


@dataclass(frozen=True)
class Inspected:
    """What was found about an upload; width and height are those of it upright."""

    sha256: str
    media_type: str
    width: int
    height: int
    bytes: int


def inspect(path: Path, *, field: str, max_bytes: int, max_pixels: int) -> Inspected:
    """Decode the whole picture and say what it is.

    Raises InvalidPicture that names the field, what was found and what is allowed, and
    MachineError when this machine cannot decode it now.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise InvalidPicture(
            f"{field}: found a file of {_megabytes(size)}; "
            f"allowed are at most {_megabytes(max_bytes)}",
            field=field,
        )
    request = {"action": "inspect", "path": str(path.absolute())}
    with _naming(field):
        found = decoder_process.ask(COMMAND, request, limits(max_pixels))
    return Inspected(sha256=_digest(path), bytes=size, **found)


def decode(
    path: Path,
    *,
    field: str,
    keep_alpha: bool = False,
    max_pixels: int = LARGEST_UPLOAD,
) -> "Image.Image":
    """Return the picture as `images.decode` does, in RGB or RGBA.

    Raises InvalidPicture that names the field, and MachineError.
    """
    from PIL import Image

    request = {"action": "decode", "path": str(path.absolute())}
    allowed = limits(max_pixels, writes=True)
    with machine_errors(), TemporaryFile(prefix="stylequeue-") as file:
        with _naming(field):
            found = decoder_process.ask(
                COMMAND,
                {**request, "keep_alpha": keep_alpha},
                allowed,
                file.fileno(),
            )
        size = (found["width"], found["height"])
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as pixels,
        ):
            return Image.frombytes(found["mode"], size, pixels)


def render(
    source: Path,
    target: Path,
    *,
    size: int | None,
    format: Literal["png", "jpeg"],
    max_pixels: int = 100_000_000,
) -> None:
    """Write the picture to `target`, upright, without metadata, at most `size` long.

    The default of `max_pixels` is above the largest result and the usual limit of
    uploads; an installation that takes larger ones gives its own.
    Raises InvalidPicture and MachineError.
    """
    request = {"action": "render", "path": str(source.absolute())}
    with machine_errors(), target.open("wb") as file:
        decoder_process.ask(
            COMMAND,
            {**request, "size": size, "format": format},
            limits(max_pixels, writes=True),
            file.fileno(),
        )


def limits(pixels: int, *, writes: bool = False) -> Limits:
    """Return limits that every honest picture of that many pixels fits into."""
    seconds = SECONDS_PER_PIXEL + (WRITING_SECONDS_PER_PIXEL if writes else 0)
    written = WRITTEN_BASE_BYTES + WRITTEN_BYTES_PER_PIXEL * pixels if writes else 0
    return Limits(
        bytes=BASE_BYTES + BYTES_PER_PIXEL * pixels,
        seconds=BASE_SECONDS + seconds * pixels,
        pixels=pixels,
        written=written,
    )


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Name the field in the refusal of its picture."""
    try:
        yield
    except InvalidPicture as error:
        raise InvalidPicture(f"{field}: {error.message}", field=field) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.3g} MB" if size < 1e9 else f"{size / 1e6:.0f} MB"
