"""Count the scans of a JPEG, each of which costs its decoder a pass over the picture.

A file of one megabyte may hold thousands of scans and keep a decoder busy for a
minute; honest progressive pictures have about ten.
"""

import mmap
import re
from pathlib import Path

MAX_SCANS = 100

START = b"\xff\xd8\xff"
# A marker, as opposed to a stuffed byte (FF 00), a restart marker inside a scan
# (FF D0 to FF D7) or the first of several fill bytes (FF FF).
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
END_OF_IMAGE = 0xD9
START_OF_SCAN = 0xDA
# Markers that no length follows.
ALONE = (0x01, 0xD8)


def count_scans(path: Path) -> int:
    """Return the number of scans of the first picture in the file; 0 if no JPEG."""
    with path.open("rb") as file:
        if file.read(len(START)) != START:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _count(data)


def _count(data: mmap.mmap) -> int:
    scans, position = 0, 2
    while found := MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            break
        if marker in ALONE:
            continue
        scans += marker == START_OF_SCAN
        # What a segment contains, such as a thumbnail, is skipped with it.
        position += int.from_bytes(data[position : position + 2], "big")
    return scans
