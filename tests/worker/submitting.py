"""Jobs as the web side would submit them, without the web side."""

import hashlib
import random
from typing import Any

from PIL import Image

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.database import Database
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.images import encode_png
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.store import Store

# Shallow and small: a step takes some milliseconds.
TINY = {
    "image_size": 64,
    "steps": 4,
    "snapshot_every": 2,
    "content_layers": ["conv1_1"],
    "style_layers": ["conv1_1"],
    "seed": 7,
}
# Runs until somebody stops it.
ENDLESS = {**TINY, "steps": 100_000, "snapshot_every": 100_000}


def picture(seed: int) -> bytes:
    noise = random.Random(seed).randbytes(8 * 6 * 3)
    return encode_png(Image.frombytes("RGB", (8, 6), noise).resize((64, 48)))


def submit(database: Database, store: Store, **settings: Any) -> str:
    return submit_bytes(database, store, picture(1), picture(2), **settings)


def submit_bytes(
    database: Database, store: Store, *uploads: bytes, **settings: Any
) -> str:
    shas = [hashlib.sha256(upload).hexdigest() for upload in uploads]
    found = [Inspected(sha, "image/png", 64, 48, 1) for sha in shas]
    jobs.keep_pictures(database, found)
    for sha, upload in zip(shas, uploads, strict=True):
        store.put(original_key(sha), upload)
    complete = complete_settings({**TINY, **settings}, styles=len(shas) - 1)
    return jobs.submit(database, complete, shas[0], shas[1:], max_waiting=100)
