"""Check JPEG files before Pillow decodes them, and mend a missing end marker."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from stylequeue_shared.pictures.checks import SizeLimit, damaged, unsupported

_END = b"\xff\xd9"
_SCAN = 0xDA
# In scan data, 0xff before 0 is a sample and before 0xd0 to 0xd7 a restart.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_BASELINE = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_FRAMES = (
    *range(0xC0, 0xC4),
    *range(0xC5, 0xC8),
    *range(0xC9, 0xCC),
    *range(0xCD, 0xD0),
)
_ALLOWED = "baseline and progressive JPEGs of 8 bits a sample"
_COEFFICIENTS = 64


@dataclass(frozen=True)
class _Segment:
    marker: int
    body: bytes


def prepare(data: bytes, limit: SizeLimit) -> bytes:
    """Return the file with an end marker; refuse kinds that are not read, by name."""
    segments = list(_segments(data))
    for segment in segments:
        _check_frame(segment, limit)
    if any(segment.marker == _END[1] for segment in segments):
        return data
    return _ended(_without_filling(data), segments)


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the markers of the first picture in the file."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == _END[1]:
            yield _Segment(marker, b"")
            return
        if marker in (0x01, 0xD8):  # they stand alone
            continue
        length = max(2, int.from_bytes(data[at : at + 2], "big"))
        yield _Segment(marker, data[at + 2 : at + length])
        at += length


def _check_frame(segment: _Segment, limit: SizeLimit) -> None:
    if segment.marker == 0xF7:
        raise unsupported("a JPEG-LS picture", _ALLOWED)
    if segment.marker not in _FRAMES or len(segment.body) < 6:
        return
    if segment.marker in (0xC3, 0xCB):
        raise unsupported("a lossless JPEG picture", _ALLOWED)
    if segment.marker not in _BASELINE:
        raise unsupported("a hierarchical JPEG picture", _ALLOWED)
    precision = segment.body[0]
    if precision != 8:
        raise unsupported(f"a JPEG picture of {precision} bits a sample", _ALLOWED)
    height, width = (int.from_bytes(segment.body[i : i + 2], "big") for i in (1, 3))
    if height:  # else it is told later
        limit.check(width, height)


def _without_filling(data: bytes) -> bytes:
    """Return the file without the zeros that a copy leaves that was broken off."""
    stripped = data.rstrip(b"\x00")
    zeros = len(data) - len(stripped)
    # The scan itself may end in a zero or two; 0xff is half of the missing marker.
    return stripped + bytes(min(zeros, 2)) if zeros else data.removesuffix(b"\xff")


def _ended(data: bytes, segments: list[_Segment]) -> bytes:
    """Return the file with an end marker, if nothing but that is missing.

    What stands behind the last sample makes no difference. Whatever stands in for
    missing samples does.
    """
    if not _has_all_scans(segments):
        raise damaged("JPEG")
    ended = data + _END
    pixels = _pixels(ended)
    for filler in (b"\x55\xaa\x33", b"\xaa\x55\xcc", b"\xfe\xef"):
        if _pixels(data + filler * 400 + _END) != pixels:
            raise damaged("JPEG")
    return ended


def _pixels(data: bytes) -> bytes:
    with Image.open(BytesIO(data), formats=["JPEG"]) as image:
        return image.tobytes()


def _has_all_scans(segments: list[_Segment]) -> bool:
    """Return whether the scans carry every coefficient of every component in full."""
    frame = next((one.body for one in segments if one.marker in _FRAMES), b"")
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        return False
    components = {frame[6 + 3 * i] for i in range(frame[5])}
    missing = {(one, k) for one in components for k in range(_COEFFICIENTS)}
    for segment in segments:
        if segment.marker == _SCAN:
            missing -= _carried(segment.body)
    return not missing


def _carried(body: bytes) -> set[tuple[int, int]]:
    """Return the coefficients that a scan brings to full precision."""
    count = body[0] if body else 0
    if len(body) < 4 + 2 * count:
        return set()
    first, last, precision = body[1 + 2 * count : 4 + 2 * count]
    if precision & 15:
        return set()
    return {(body[1 + 2 * i], k) for i in range(count) for k in range(first, last + 1)}
