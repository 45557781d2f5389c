"""One request as it arrives, kept until it is whole; nothing here waits for it."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any

from gunicorn.http import RequestParser  # type: ignore[import-untyped]
from gunicorn.http.body import (  # type: ignore[import-untyped]
    CHUNK_EXT_RE,
    ChunkedReader,
)
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    ChunkMissingTerminator,
    InvalidChunkSize,
    InvalidHeader,
    LimitRequestHeaders,
    UnsupportedTransferCoding,
)

from stylequeue_shared.errors import MachineError

END_OF_HEAD = b"\r\n\r\n"
# Browsers send less than 4 KiB; gunicorn checks the single line and field.
MAX_HEAD_BYTES = 64 * 1024
IN_MEMORY_BYTES = 64 * 1024
MAX_CHUNK_LINE = 4096
SIZE_LINE = re.compile(b"([0-9A-Fa-f]+)" + CHUNK_EXT_RE.pattern)


@dataclass
class BodyBudget:
    """How many bytes of request bodies one process may hold at a time."""

    limit: int
    used: int = 0

    def take(self, count: int) -> bool:
        """Reserve so many bytes; return whether they were free."""
        if self.used + count > self.limit:
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """Free so many bytes."""
        self.used -= count


class ChunkScanner:
    """Finds where a chunked body ends; gunicorn decodes it afterwards.

    It refuses each body that could be read in two ways: a proxy, or gunicorn, might see
    its end elsewhere, and take for a request what is part of it.
    """

    def __init__(self) -> None:
        self.done = False
        # The fields that followed the last chunk.
        self.trailer = b""
        self._line = b""
        # Bytes of the current chunk that are still to come.
        self._left = 0
        self._end_line: Callable[[bytes], None] = self._end_size

    def feed(self, data: bytes) -> int:
        """Return how many of these bytes belong to the body. Raises ParseException."""
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            else:
                at = self._feed_line(data, at)
        return at

    def _feed_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        stop = end or len(data)
        self._line += data[at:stop]
        if len(self._line) > MAX_CHUNK_LINE:
            raise InvalidChunkSize(b"the line is too long")
        if end:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
                raise InvalidChunkSize(line)
            self._end_line(line[:-2])
        return stop

    def _end_size(self, line: bytes) -> None:
        found = SIZE_LINE.fullmatch(line)
        if found is None:
            raise InvalidChunkSize(line)
        self._left = int(found[1], 16)
        self._end_line = self._end_chunk if self._left else self._end_trailer

    def _end_chunk(self, line: bytes) -> None:
        if line:
            raise ChunkMissingTerminator(line)
        self._end_line = self._end_size

    def _end_trailer(self, line: bytes) -> None:
        self.done = not line
        if line:
            self.trailer += line + b"\r\n"
        if len(self.trailer) > MAX_HEAD_BYTES:
            raise LimitRequestHeaders("the trailer is too long")


class IncomingRequest:
    """Takes bytes from a socket and gives them to gunicorn's parser.

    The head is parsed when it is there. A body that is too long, or for which there is
    no room, is not read: the application answers without it.
    """

    def __init__(
        self, cfg: Any, client: Any, max_body_bytes: int, budget: BodyBudget
    ) -> None:
        self._cfg, self._client = cfg, client
        self._max_body_bytes, self._budget = max_body_bytes, budget
        self._head = bytearray()
        self._unparsed = b""
        self._body: SpooledTemporaryFile[bytes] | None = None
        self._stored = 0
        self._left = 0
        self._chunks: ChunkScanner | None = None
        # What gunicorn made of the head.
        self.request: Any = None
        self.is_whole = False
        self.is_too_long = False
        self._refusal: MachineError | None = None

    @property
    def is_unread(self) -> bool:
        """Whether the client may still be sending a body that is not read."""
        return self.is_too_long or self._refusal is not None

    def feed(self, data: bytes) -> bytes:
        """Take these bytes and return those that belong to the next request.

        Raises what gunicorn raises for a head or chunks that are malformed or too long.
        """
        if self.request is None:
            data = self._feed_head(data)
        if self.request is not None and not self.is_whole:
            data = self._feed_body(data)
        return data

    def recv(self, size: int) -> bytes:
        """Return the next bytes to gunicorn's parser, as its socket would.

        Raises MachineError where the body found no room.
        """
        if self._unparsed:
            head, self._unparsed = self._unparsed, b""
            return head
        if self._refusal is not None:
            raise self._refusal
        return self._body.read(size) if self._body else b""

    def close(self) -> None:
        """Give back what the body took."""
        if self._body is not None:
            # On a full disk, what is still buffered cannot be written.
            with suppress(OSError):
                self._body.close()
            self._body = None
        self._budget.give_back(self._stored)
        self._stored = 0

    def _feed_head(self, data: bytes) -> bytes:
        searched = max(0, len(self._head) - len(END_OF_HEAD))
        self._head += data
        end = self._head.find(END_OF_HEAD, searched)
        length = len(self._head) if end < 0 else end
        if length > MAX_HEAD_BYTES:
            raise LimitRequestHeaders("the head is too long")
        if end < 0:
            return b""
        end += len(END_OF_HEAD)
        self._unparsed = bytes(self._head[:end])
        rest = bytes(self._head[end:])
        self._head.clear()
        self._parse()
        return rest

    def _parse(self) -> None:
        try:
            self.request = next(RequestParser(self._cfg, self, self._client))
        except UnsupportedTransferCoding:
            # gunicorn would answer 501, though it is the client's fault.
            raise InvalidHeader("TRANSFER-ENCODING") from None
        reader = self.request.body.reader
        if isinstance(reader, ChunkedReader):
            self._chunks = ChunkScanner()
        else:
            self._left = reader.length
            self.is_whole = self._left == 0
            if self._left > self._max_body_bytes:
                self._refuse_length()

    def _feed_body(self, data: bytes) -> bytes:
        if self._chunks is not None:
            count = self._chunks.feed(data)
            ends = self._chunks.done
            if ends and self._chunks.trailer:
                self.request.parse_headers(self._chunks.trailer[:-2], from_trailer=True)
        else:
            count = min(self._left, len(data))
            self._left -= count
            ends = self._left == 0
        self._store(data[:count], ends)
        self.is_whole = self.is_whole or ends
        return data[count:]

    def _store(self, data: bytes, is_last: bool) -> None:
        if self._stored + len(data) > self._max_body_bytes:
            self._refuse_length()
        elif not self._budget.take(len(data)):
            self._refuse("The server is receiving too much at the moment; try again.")
        else:
            self._stored += len(data)
            try:
                self._write(data, is_last)
            except OSError:
                self._refuse("The server's temporary folder is full; try again later.")

    def _write(self, data: bytes, is_last: bool) -> None:
        if self._body is None:
            # Closed in close().
            self._body = SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115
        self._body.write(data)
        if is_last:
            # The parser reads it from its beginning; what was buffered is written.
            self._body.seek(0)

    def _refuse_length(self) -> None:
        self.is_whole = self.is_too_long = True
        self.close()

    def _refuse(self, why: str) -> None:
        self.is_whole = True
        self._refusal = MachineError(why)
        self.close()
