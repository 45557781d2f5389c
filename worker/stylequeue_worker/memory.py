"""The memory of this process: how much there is, and what becomes of it when freed."""

import ctypes
import os
from pathlib import Path

# Where a container's limit stands: version 2 of control groups, then version 1.
LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

# mallopt's parameters, from glibc's malloc.h; the last is the largest it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST = -1, -3, 2**31 - 1
MMAP_BYTES = 2**25


def _glibc() -> ctypes.CDLL | None:
    found = ctypes.CDLL(None)
    has_both = hasattr(found, "mallopt") and hasattr(found, "malloc_trim")
    return found if has_both else None


_LIBC = _glibc()


def keep_freed_memory() -> None:
    """Have glibc keep freed memory of up to 32 MB a piece for the next tensor.

    It would give it back to the system, and every step would touch each page anew:
    measured to cost a third of a step's time. Pictures above that size, which alone
    could fragment the heap, are still given back. Elsewhere than with glibc: nothing.
    """
    if _LIBC is not None:
        # What reading the weights took, which is more than any job's bands.
        _LIBC.malloc_trim(0)
        _LIBC.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        _LIBC.mallopt(M_TRIM_THRESHOLD, LARGEST)


def give_back_freed_memory() -> None:
    """Give all that is freed back to the system; touching it anew takes time."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


def total_memory() -> int | None:
    """Return the bytes of memory of this machine, or of its container if fewer."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return min([found, *filter(None, map(_limit, LIMITS))])


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    # Without a limit, version 2 says "max".
    return int(text) if text.isdecimal() else None
