"""Files of 16 bits a channel, which Pillow cannot write."""

import json
from collections.abc import Mapping
from io import BytesIO

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import PngImagePlugin

from stylequeue_shared.images import text_chunks

# Height x width x 3, or 4 with alpha.
Deep = NDArray[np.uint16]

# A PNG's signature and its first chunk, behind which text may stand.
PNG_HEAD = 8 + 25
# As for pictures of 8 bits.
LEVEL = 3


def encode_png(pixels: Deep, text: Mapping[str, str]) -> bytes:
    """Return a PNG that carries `text` in its text chunks."""
    file = imagecodecs.png_encode(pixels, level=LEVEL)
    chunks = BytesIO()
    for kind, data, *_ in text_chunks(text).chunks:
        PngImagePlugin.putchunk(chunks, kind, data)
    return b"".join((file[:PNG_HEAD], chunks.getvalue(), file[PNG_HEAD:]))


def encode_tiff(pixels: Deep, text: Mapping[str, str]) -> bytes:
    """Return a TIFF that carries `text` in its ImageDescription, as JSON."""
    file = BytesIO()
    tifffile.imwrite(
        file,
        pixels,
        photometric="rgb",
        extrasamples=["unassalpha"] if pixels.shape[2] == 4 else [],
        compression="zlib",
        compressionargs={"level": LEVEL},
        predictor=True,
        software=text["Software"],
        # ASCII, which is all that the tag may hold.
        description=json.dumps(dict(text)),
        # Else tifffile would add a description of its own.
        metadata=None,
    )
    return file.getvalue()
