"""The child of `decoding`: limits itself, decodes one picture, answers, ends.

Standard output: `ready`, a line of JSON, and for `render` the picture's bytes.
"""

import json
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any, BinaryIO


def main(request: dict[str, Any], answer: BinaryIO) -> None:
    """Answer the one request."""
    limit(request["bytes"], request["seconds"])
    # Only now, so that the limits hold for the libraries too.
    from stylequeue_shared.errors import InvalidPicture

    _load_decoders()
    answer.write(b"ready\n")
    answer.flush()
    body = b""
    try:
        found, body = handle(request)
    except InvalidPicture as error:
        found = {"invalid": error.message}
    except MemoryError:
        found = {
            "invalid": "found a picture that needs too much memory; "
            f"allowed are {request['bytes'] / 1e6:.0f} MB"
        }
    answer.write(json.dumps(found).encode() + b"\n" + body)
    answer.flush()


def limit(memory: int, seconds: float) -> None:
    """Bound what this process may take, for good."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)  # it writes to pipes only
    _lower(resource.RLIMIT_NOFILE, 64)
    _lower(resource.RLIMIT_NPROC, 0)  # neither processes nor threads (root: in vain)
    # The soft limit kills with a signal that tells why, the hard one with SIGKILL.
    _lower(resource.RLIMIT_CPU, math.ceil(seconds), margin=1)
    if sys.platform != "darwin":
        # macOS accepts this limit and does not keep it; there the limits on pixels
        # and time must do.
        _lower(resource.RLIMIT_AS, memory)


def handle(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return the answer and the bytes to follow it."""
    from stylequeue_shared import images

    image, media_type = images.read(Path(request["path"]), max_pixels=request["pixels"])
    if request["action"] == "inspect":
        width, height = image.size
        return {"media_type": media_type, "width": width, "height": height}, b""
    if request["size"] is not None:
        image = images.shrink(image, request["size"])
    png = request["format"] == "png"
    return {}, images.encode_png(image) if png else images.encode_jpeg(image)


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
