"""Where pictures lie in the store.

A job's files lie under its id and attempt, so that a worker that lost its lease can
never overwrite what a later attempt made.
"""

from pathlib import PurePosixPath

# The rendition that pages show and that workers make along with each picture.
PREVIEW_SIZE = 512
# Only these are made, so that no client can fill the store with renditions.
RENDITION_SIZES = (128, 256, 512, 1024, 2048)

MEDIA_TYPES = {".png": "image/png", ".tif": "image/tiff", ".jpg": "image/jpeg"}


def original_key(sha256: str) -> str:
    """Return the key of an upload's original bytes, which are never served."""
    return f"pictures/{sha256[:2]}/{sha256}"


def job_prefix(job_id: str) -> str:
    """Return the prefix of all files of a job."""
    return f"jobs/{job_id}/"


def snapshot_key(job_id: str, attempt: int, step: int) -> str:
    """Return the key of the picture after `step`."""
    return f"{job_prefix(job_id)}{attempt}/snapshot-{step:06d}.png"


def result_key(job_id: str, attempt: int, suffix: str = ".png") -> str:
    """Return the key of the final picture."""
    return f"{job_prefix(job_id)}{attempt}/result{suffix}"


def states_prefix(job_id: str) -> str:
    """Return the prefix of all that a job's checkpoints consist of."""
    return f"{job_prefix(job_id)}states/"


def state_key(job_id: str, attempt: int, name: str) -> str:
    """Return the key of a record or part of a state that an attempt saved."""
    return f"{states_prefix(job_id)}{attempt}/{name}"


def rendition_key(key: str, size: int) -> str:
    """Return the key of a smaller JPEG of the picture at `key`."""
    return f"renditions/{key}/{size}.jpg"


def clean_key(key: str) -> str:
    """Return the key of the full-size PNG of an upload, without its metadata."""
    return f"renditions/{key}/full.png"


def suffix(key: str) -> str:
    """Return the ending of a key, which says of what kind its picture is."""
    return PurePosixPath(key).suffix


def media_type(key: str) -> str:
    """Return the media type of the picture at `key`, by its ending."""
    return MEDIA_TYPES[suffix(key)]
