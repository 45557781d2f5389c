"""Uploads, cut off while they stream: no more than allowed ever lies on the disk."""

from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from flask import Request, current_app
from werkzeug.datastructures import FileStorage

from stylequeue_shared.job_settings import MAX_STYLES

IN_MEMORY_BYTES = 500_000
LIMIT = "MAX_FILE_BYTES"
# A submission may hold more files than anybody needs: only this many are kept. The
# others are counted, so that the refusal can name the field and the number.
MAX_FILES = 2 * (MAX_STYLES + 1)
# The most parts of a form, files and others, and the longest text in one of them. The
# texts of all parts together lie in memory.
MAX_PARTS = 250
MAX_TEXT_BYTES = 250_000


class CappedFile(SpooledTemporaryFile[bytes]):
    """A temporary file that drops what goes beyond its limit, and remembers that."""

    def __init__(self, limit: int) -> None:
        super().__init__(max_size=IN_MEMORY_BYTES, mode="w+b")
        self._limit = limit
        self.cut_off = False
        # Whether nothing is kept, since there are too many files.
        self.dropped = limit == 0

    def write(self, data: Any) -> int:
        if self.cut_off or self.tell() + len(data) > self._limit:
            self.cut_off = True
            return len(data)
        return super().write(data)


class CappedRequest(Request):
    """A request whose files are each at most MAX_FILE_BYTES long, and not too many."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._opened: list[CappedFile] = []

    def close(self) -> None:
        """Close all files, those of a body that could not be read to its end, too."""
        super().close()
        for file in self._opened:
            # The rest of a file that found no room on the disk cannot be written.
            with suppress(OSError):
                file.close()

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        is_kept = len(self._opened) < MAX_FILES
        file = CappedFile(current_app.config[LIMIT] if is_kept else 0)
        self._opened.append(file)
        return file


def is_cut_off(file: FileStorage) -> bool:
    """Whether more was sent of this file than is allowed."""
    return getattr(file.stream, "cut_off", False)


def is_dropped(file: FileStorage) -> bool:
    """Whether nothing of this file was kept, since too many files came before it."""
    return getattr(file.stream, "dropped", False)
