"""Uploads, cut off while they stream: no more than allowed ever lies on the disk."""

from tempfile import SpooledTemporaryFile
from typing import IO, Any

from flask import Request, current_app
from werkzeug.datastructures import FileStorage

IN_MEMORY_BYTES = 500_000
LIMIT = "MAX_FILE_BYTES"


class CappedFile(SpooledTemporaryFile[bytes]):
    """A temporary file that drops what goes beyond its limit, and remembers that."""

    def __init__(self, limit: int) -> None:
        super().__init__(max_size=IN_MEMORY_BYTES, mode="w+b")
        self._limit = limit
        self.cut_off = False

    def write(self, data: Any) -> int:
        if self.cut_off or self.tell() + len(data) > self._limit:
            self.cut_off = True
            return len(data)
        return super().write(data)


class CappedRequest(Request):
    """A request whose files are each at most MAX_FILE_BYTES long."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._opened: list[CappedFile] = []

    def close(self) -> None:
        """Close all files, those of a body that could not be read to its end, too."""
        super().close()
        for file in self._opened:
            file.close()

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        file = CappedFile(current_app.config[LIMIT])
        self._opened.append(file)
        return file


def is_cut_off(file: FileStorage) -> bool:
    """Whether more was sent of this file than is allowed."""
    return getattr(file.stream, "cut_off", False)
