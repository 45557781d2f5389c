"""Find sizes and colours in the boxes of an AVIF or HEIC file."""

from collections.abc import Iterator

# The boxes that lead to the descriptions of pictures, and the bytes of each one's
# header that stand before its first child.
_PARENTS = {b"meta": 4, b"iprp": 0, b"ipco": 0}
# No description that is read here is longer.
_LONGEST = 20


def cicp(data: bytes) -> bytes | None:
    """Return primaries, transfer, matrix and range, a byte each; None if not given."""
    for name, content in _descriptions(data, 0, len(data)):
        if name == b"colr" and content.startswith(b"nclx") and len(content) >= 11:
            # Two bytes each, then a bit for the full range.
            return bytes((content[5], content[7], content[9], content[10] >> 7))
    return None


def sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield width and height of each picture and tile that is described."""
    for name, content in _descriptions(data, 0, len(data)):
        if name == b"ispe" and len(content) >= 12:
            width, height = content[4:8], content[8:12]
            yield int.from_bytes(width, "big"), int.from_bytes(height, "big")


def _descriptions(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    while at + 8 <= end:
        size = int.from_bytes(data[at : at + 4], "big")
        name, start = data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        stop = end if size == 0 else min(at + size, end)
        if stop < start:
            return
        if name in _PARENTS:
            yield from _descriptions(data, start + _PARENTS[name], stop)
        else:
            yield name, data[start : min(stop, start + _LONGEST)]
        at = stop
