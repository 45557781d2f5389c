"""Where the bytes of pictures lie. Callers know keys, never paths or addresses."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from stylequeue_shared.errors import BadConfiguration

# No segment begins with a dot: neither '..' nor an unfinished file.
KEY = re.compile(r"[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*")


class Store(ABC):
    """Files by key, each whole or absent.

    A store that is out of reach or refuses us raises MachineError, and a folder that
    cannot be read what the system says of it: OSError.
    """

    @abstractmethod
    def put(self, key: str, data: bytes | Path) -> None:
        """Store the bytes, or a copy of the file. Raises DiskFull."""

    def get(self, key: str) -> bytes:
        """Return the bytes. Raises NotFound."""
        with self.open(key) as file:
            return file.read()

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """Open for reading from begin to end; it stays what it was if it is replaced.

        Raises NotFound.
        """

    @abstractmethod
    def local(self, key: str) -> AbstractContextManager[Path]:
        """Have the bytes in a local file, which must not be changed, for a while.

        Raises NotFound.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the number of bytes. Raises NotFound."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the file, if it is there."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Remove everything under the prefix, which ends with a slash."""

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """Iterate over the keys under a prefix that is empty or ends with a slash."""

    @abstractmethod
    def delete_unfinished(self, older_than: float) -> int:
        """Remove what killed writers left that many seconds ago; return how many."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return what is free; None where nobody can say."""

    @abstractmethod
    def used_bytes(self) -> int:
        """Return the size of all files together: an expensive walk over all of them."""

    @abstractmethod
    def check(self) -> None:
        """See that the store can be written to. Raises DiskFull."""


def open_store(address: str | Path) -> Store:
    """Open the store at that address; after a fork, never before.

    A bucket need not answer yet. Raises BadConfiguration.
    """
    # Late, since each of them builds on this module, and s3fs may not be there.
    if not str(address).startswith("s3://"):
        if "://" in str(address):
            # Not what was found: there may be a password in it.
            raise BadConfiguration(
                "STYLEQUEUE_STORE: found an address of another kind; allowed is a "
                "folder, or s3://bucket/prefix"
            )
        from stylequeue_shared.store_folder import open_folder

        return open_folder(address)
    try:
        from stylequeue_shared.store_s3 import open_bucket
    except ImportError as error:
        raise BadConfiguration(
            f"STYLEQUEUE_STORE: a store in a bucket needs {error.name or 's3fs'}, "
            "which is not installed; install stylequeue[s3]"
        ) from None
    return open_bucket(str(address))


def check_key(key: str) -> str:
    """Return the key. Raises ValueError if it is none."""
    if not KEY.fullmatch(key):
        raise ValueError(f"not a key of the store: {key!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return the prefix. Raises ValueError if it is none, or empty."""
    if not prefix.endswith("/"):
        raise ValueError(f"not a prefix that ends with a slash: {prefix!r}")
    check_key(prefix[:-1])
    return prefix
