"""The child of `decoding`: limits itself, decodes one picture, answers, ends.

Standard output has `ready` and a line of JSON; pixels and files go to the handle that
the request names as `output`.
"""

import json
import math
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from PIL.Image import Image

# Web servers and workers go first where the cores are busy. Ten would leave a decoder
# a tenth of a core beside a worker, and let uploads of small pictures take seconds.
NICENESS = 5
# Rows of pixels that are written at a time, so that no second copy lies in memory.
ROWS = 256

# Enough to tell what a file is.
HEAD_BYTES = 300


def main(request: dict[str, Any], answer: BinaryIO) -> None:
    """Answer the one request."""
    with suppress(OSError):  # somebody runs us at the lowest priority already
        os.nice(NICENESS)
    threads = needs_a_thread(Path(request["path"]))
    limit(request["bytes"], request["seconds"], request["written"], threads=threads)
    # The limits come first, so that they hold for the libraries too.
    from stylequeue_shared.errors import InvalidPicture
    from stylequeue_shared.system_errors import as_machine_error

    try:
        _load_decoders()
        answer.write(b"ready\n")
        answer.flush()
        found = handle(request)
    except InvalidPicture as error:
        found = {"invalid": error.message}
    except MemoryError:
        found = {
            "invalid": "found a picture that needs too much memory; "
            f"allowed are {request['bytes'] / 1e6:.0f} MB"
        }
    except OSError as error:
        if as_machine_error(error) is None:
            raise
        # The machine may lack what the libraries need before the first line is out.
        found = {"errno": error.errno}
    answer.write(json.dumps(found).encode() + b"\n")
    answer.flush()


def needs_a_thread(path: Path) -> bool:
    """Return whether the decoder of the file cannot do without a second thread."""
    from stylequeue_shared.pictures.formats import identify

    # The decoder of HEIC always starts one, and has no setting for none.
    with suppress(OSError), path.open("rb") as file:
        return identify(file.read(HEAD_BYTES)) == "HEIF"
    return False


def limit(
    memory: int, seconds: float, written: int = 0, *, threads: bool = False
) -> None:
    """Bound what this process may take, for good."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, written)  # pipes do not count
    _lower(resource.RLIMIT_NOFILE, 64)
    if not threads:
        _lower(resource.RLIMIT_NPROC, 0)  # nor processes (root: in vain)
    # The soft limit kills with a signal that tells why, the hard one with SIGKILL.
    _lower(resource.RLIMIT_CPU, math.ceil(seconds), margin=5)
    if sys.platform != "darwin":
        # macOS accepts this limit and does not keep it; there the limits on pixels
        # and time must do.
        _lower(resource.RLIMIT_AS, memory)


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer, having written pixels or a file if they are asked for."""
    from stylequeue_shared import images

    path = Path(request["path"])
    _check_scans(path)
    image, media_type = images.read(
        path,
        max_pixels=request["pixels"],
        keep_alpha=request.get("keep_alpha", False),
    )
    size = {"width": image.width, "height": image.height}
    if request["action"] == "inspect":
        return {"media_type": media_type, **size}
    with os.fdopen(request["output"], "wb") as output:
        if request["action"] == "decode":
            _write_pixels(image, output)
            return {"mode": image.mode, **size}
        if request["size"] is not None:
            image = images.shrink(image, request["size"])
        png = request["format"] == "png"
        output.write(images.encode_png(image) if png else images.encode_jpeg(image))
    return {}


def _check_scans(path: Path) -> None:
    from stylequeue_shared.errors import InvalidPicture
    from stylequeue_shared.jpeg_scans import MAX_SCANS, count_scans

    if (scans := count_scans(path)) > MAX_SCANS:
        raise InvalidPicture(
            f"found a JPEG picture of {scans} scans; allowed are at most {MAX_SCANS}"
        )


def _write_pixels(image: "Image", output: BinaryIO) -> None:
    for top in range(0, image.height, ROWS):
        box = (0, top, image.width, min(top + ROWS, image.height))
        output.write(image.crop(box).tobytes())


def _load_decoders() -> None:
    import stylequeue_shared.images  # noqa: F401


def _lower(kind: int, value: int, margin: int = 0) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY:
        hard = value + margin
    resource.setrlimit(kind, (min(value, hard), min(value + margin, hard)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.stdout.buffer)
    # No clean-up of what a hostile picture may have left behind.
    os._exit(0)
