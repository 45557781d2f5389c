import errno
from collections.abc import Callable, Iterator
from tempfile import SpooledTemporaryFile
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, ParseException

from stylequeue_shared.errors import MachineError
from stylequeue_web.incoming_request import BodyBudget, IncomingRequest

HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"4\r\nabcd\r\n10;a=b\r\n0123456789\r\n2345\r\n0\r\nT: x\r\n\r\n"
NEXT = b"GET / HTTP/1.1\r\n"


Opener = Callable[..., IncomingRequest]


@pytest.fixture
def incoming() -> Iterator[Opener]:
    opened = []

    def opener(limit: int = 1000, budget: BodyBudget | None = None) -> IncomingRequest:
        request = IncomingRequest(
            Config(), ("127.0.0.1", 1), limit, budget or BodyBudget(10_000)
        )
        opened.append(request)
        return request

    yield opener
    for request in opened:
        request.close()


def with_length(length: int) -> bytes:
    return HEAD + f"Content-Length: {length}\r\n\r\n".encode()


def feed(request: IncomingRequest, data: bytes, step: int) -> bytes:
    rest = b""
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        rest += piece if request.is_whole else request.feed(piece)
    return rest


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (CHUNKED + CHUNKS, b"abcd0123456789\r\n2345"),
        (with_length(6) + b"\r\n\r\nab", b"\r\n\r\nab"),
        (HEAD + b"\r\n", b""),
    ],
    ids=["chunked", "length", "none"],
)
def test_a_request_is_whole_at_its_last_byte_however_it_comes(
    incoming: Opener, step: int, sent: bytes, body: bytes
) -> None:
    request = incoming()
    assert feed(request, sent[:-1], step) == b""
    assert not request.is_whole
    assert feed(request, sent[-1:] + NEXT, step) == NEXT
    assert request.is_whole
    assert request.request.body.read() == body


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-4\r\n",
        b"\r\n",
        b"a" * 5000,
        b"0x4\r\n",
        b"+4\r\n",
        b" 4\r\n",
        b"4 \r\n",
        b"0_4\r\n",
        b"4\n",
        b"4\r\r\n",
        b"4;\x01\r\n",
        b"4;a=b\rc\r\n",
        b"4\r\nabcdXY0\r\n",
        b"4\r\nabcd\n0\r\n\r\n",
        b"0\r\nHost: b\r\n\r\n",
        b"0\r\nnonsense\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 20_000,
        b"0\n\n",
    ],
)
def test_chunks_that_could_be_read_in_two_ways_are_refused(
    incoming: Opener, chunks: bytes, step: int
) -> None:
    with pytest.raises(ParseException):
        feed(incoming(10**6, BodyBudget(10**6)), CHUNKED + chunks, step)


def test_an_unknown_transfer_coding_is_the_clients_fault(incoming: Opener) -> None:
    with pytest.raises(InvalidHeader):
        incoming().feed(HEAD + b"Transfer-Encoding: xchunked\r\n\r\n")


def test_a_head_without_end_is_refused(incoming: Opener) -> None:
    request = incoming()
    line = b"A: " + b"b" * 1000 + b"\r\n"
    with pytest.raises(LimitRequestHeaders):
        feed(request, line * 100, len(line))


def test_a_body_too_long_by_its_length_is_not_waited_for(incoming: Opener) -> None:
    request = incoming(limit=10)
    request.feed(with_length(11))
    assert request.is_whole
    assert request.is_too_long


def test_a_body_too_long_in_chunks_is_not_kept(incoming: Opener) -> None:
    budget = BodyBudget(10_000)
    request = incoming(10, budget)
    request.feed(CHUNKED + CHUNKS)
    assert request.is_whole
    assert request.is_too_long
    assert budget.used == 0


def test_bodies_take_no_more_than_their_budget_and_give_it_back(
    incoming: Opener,
) -> None:
    budget = BodyBudget(100)
    first, second = incoming(1000, budget), incoming(1000, budget)
    first.feed(with_length(60) + b"a" * 60)
    second.feed(with_length(60) + b"b" * 60)
    assert second.is_whole
    assert second.is_unread
    with pytest.raises(MachineError, match="receiving too much"):
        second.request.body.read()
    assert first.request.body.read() == b"a" * 60
    assert budget.used == 60
    first.close()
    assert budget.used == 0


def test_a_full_temporary_folder_is_said(
    incoming: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(SpooledTemporaryFile, "write", fail)
    request = incoming()
    request.feed(with_length(60) + b"a" * 60)
    with pytest.raises(MachineError, match="temporary folder is full"):
        request.request.body.read()
