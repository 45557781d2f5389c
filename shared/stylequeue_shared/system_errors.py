"""Errors of the operating system that are the machine's fault, told as such."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from stylequeue_shared.errors import DiskFull, MachineError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What Python says, with ENOENT, when it can write to no temporary folder at all.
NO_FOLDER = "No usable temporary directory"
REASONS = {
    errno.EMFILE: "has no more file handles",
    errno.ENFILE: "has no more file handles",
    errno.ENOMEM: "has too little free memory",
    errno.EAGAIN: "can start no more processes",
    errno.EROFS: "cannot write to its temporary folder",
    errno.EIO: "cannot read or write its disk",
    errno.ESTALE: "has lost its disk on the network",
    errno.ETIMEDOUT: "has lost its disk on the network",
    errno.EACCES: "may not read or write its files",
}


def as_machine_error(error: OSError | MemoryError) -> MachineError | None:
    """Return what to tell a client, or None if the machine is not at fault."""
    if isinstance(error, MemoryError):
        return MachineError("The server has too little free memory; try again later.")
    if error.errno in NO_SPACE:
        return DiskFull("The server's temporary folder is full; try again later.")
    if error.errno == errno.ENOENT and NO_FOLDER in str(error.strerror):
        reason: str | None = REASONS[errno.EROFS]
    else:
        reason = REASONS.get(error.errno or 0)
    if reason is None:
        return None
    return MachineError(f"The server {reason}; try again later.")


@contextmanager
def machine_errors() -> Iterator[None]:
    """Raise DiskFull or MachineError for what the system says of this machine."""
    try:
        yield
    except OSError as error:
        if (ours := as_machine_error(error)) is None:
            raise
        raise ours from error
