import io
from typing import Any

import pytest
from flask.testing import FlaskClient

from stylequeue_shared.settings import Settings
from stylequeue_web import uploads
from stylequeue_web.uploads import IN_MEMORY_BYTES, CappedFile
from tests.shared.pictures import colourful, saved
from tests.web.conftest import CONTENT, JOBS, STYLE, Kept

MULTIPART = "multipart/form-data; boundary=b"
TOO_LARGE = CONTENT + bytes(2_000_001 - len(CONTENT))


def part(disposition: bytes, data: bytes) -> bytes:
    head = b"--b\r\nContent-Disposition: form-data%s\r\n\r\n" % disposition
    return head + data + b"\r\n"


def whole(content: bytes = CONTENT, style: bytes = STYLE) -> bytes:
    """Return a body; that of the test client lies in a file, which it leaves open."""
    return (
        part(b'; name="content"; filename="a"', content)
        + part(b'; name="style"; filename="b"', style)
        + b"--b--\r\n"
    )


WHOLE = whole()


class Noted(CappedFile):
    """Remembers how large it was."""

    largest = 0

    def write(self, data: Any) -> int:
        written = super().write(data)
        self.largest = max(self.largest, self.tell())
        return written


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    """Every temporary file that requests open, in their order."""
    files: list[Noted] = []

    def note(limit: int) -> Noted:
        files.append(Noted(limit))
        return files[-1]

    monkeypatch.setattr(uploads, "CappedFile", note)
    return files


class Endless(io.RawIOBase):
    """A body that goes on for longer than anybody would wait."""

    def __init__(self, start: bytes) -> None:
        self._start = start
        self.sent = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start or bytes(min(len(buffer), 65536))
        data, self._start = data[: len(buffer)], data[len(buffer) :]
        assert self.sent < 10**9, "the body is read without end"
        buffer[: len(data)] = data
        self.sent += len(data)
        return len(data)


def sent(body: Any, **environment: Any) -> dict[str, Any]:
    environment |= {"wsgi.input": body, "CONTENT_TYPE": MULTIPART}
    return {"environ_overrides": environment}


def chunked(body: Any) -> dict[str, Any]:
    """Return a request as gunicorn hands on one with Transfer-Encoding: chunked."""
    terminated = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    return sent(body, **terminated)


def size(file: CappedFile) -> int:
    return file.seek(0, io.SEEK_END)


def refused(client: FlaskClient, kept: Kept, status: int, **request: Any) -> str:
    answer = client.post(JOBS, **{"content_type": MULTIPART, **request})
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    assert kept.is_nothing()
    return str(answer.get_json()["detail"])


@pytest.mark.parametrize("limit", [10_000, IN_MEMORY_BYTES + 10_000])
@pytest.mark.parametrize("chunk", [7, 4096, 10**7])
def test_a_file_never_grows_over_its_limit(limit: int, chunk: int) -> None:
    with CappedFile(limit) as file:
        assert file.write(bytes(limit)) == limit
        assert not file.cut_off
        # The parser counts what it hands over, so that none of it may seem missing.
        assert file.write(bytes(chunk)) == chunk
        assert file.cut_off
        assert size(file) == limit


def test_after_a_cut_nothing_more_is_kept() -> None:
    with CappedFile(100) as file:
        file.write(bytes(60))
        file.write(bytes(41))
        file.write(b"a")
        assert size(file) == 60


@pytest.mark.parametrize("field", ["content", "style"])
def test_a_file_over_the_limit_is_refused_and_was_never_whole(
    client: FlaskClient,
    kept: Kept,
    installation: Settings,
    opened: list[Noted],
    field: str,
) -> None:
    detail = refused(client, kept, 422, data=whole(**{field: TOO_LARGE}))
    assert detail.startswith(f"{field}: found a file of more than 2 MB")
    assert "allowed" in detail
    assert len(opened) == 2
    assert max(file.largest for file in opened) <= installation.max_file_bytes
    assert all(file.closed for file in opened)


def test_a_file_at_the_limit_is_taken(client: FlaskClient) -> None:
    body = whole(TOO_LARGE[:-1])
    answer = client.post(JOBS, data=body, content_type=MULTIPART)
    assert answer.status_code == 201


def test_a_body_that_says_it_is_too_long_is_not_read(
    client: FlaskClient, kept: Kept
) -> None:
    body = Endless(WHOLE)
    length = 9 * 2_000_000 + 1_000_001
    refused(client, kept, 413, **sent(body, CONTENT_LENGTH=str(length)))
    assert body.sent == 0


@pytest.mark.parametrize(
    "start",
    [b"", b"--b\r\n", part(b'; name="content"; filename="a"', CONTENT)[:-2]],
    ids=["no part", "a part's head", "a file"],
)
def test_a_body_that_never_ends_is_not_read_for_ever(
    client: FlaskClient, kept: Kept, opened: list[Noted], start: bytes
) -> None:
    body = Endless(start)
    refused(client, kept, 413, **chunked(body))
    assert body.sent < 20_000_000
    assert all(file.closed for file in opened)


def test_a_chunked_body_is_taken(client: FlaskClient) -> None:
    answer = client.post(JOBS, **chunked(io.BytesIO(WHOLE)))
    assert answer.status_code == 201


def parts(count: int) -> bytes:
    return part(b'; name="content"; filename="a"', b"") * count + b"--b--\r\n"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (parts(251), 413),
        (b"", 422),
        (b"no multipart at all", 422),
        (WHOLE.replace(b"--b", b"--c"), 422),
        (part(b"", b"x") + b"--b--\r\n", 400),
        (part(b'; filename="a"', CONTENT) + b"--b--\r\n", 400),
        (b"--b\r\n\r\nx\r\n--b--\r\n", 422),
        (b"--b\r\nContent-Disposition: \xff\xfe\r\n\r\nx\r\n--b--\r\n", 422),
        (b"--b\r\n" + b"a: b\r\n" * 200_000, 413),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_body_that_is_no_submission_is_refused(
    client: FlaskClient,
    kept: Kept,
    opened: list[Noted],
    body: bytes,
    status: int,
) -> None:
    refused(client, kept, status, data=body)
    assert all(file.closed for file in opened)


@pytest.mark.parametrize("missing", [1, 10, len(STYLE), len(STYLE) + 100])
def test_a_body_that_breaks_off_leaves_nothing(
    client: FlaskClient, kept: Kept, opened: list[Noted], missing: int
) -> None:
    large = saved(colourful(900, 900), "BMP")[: IN_MEMORY_BYTES * 2]
    body = part(b'; name="style"; filename="c"', large) + WHOLE
    request = sent(io.BytesIO(body[:-missing]), CONTENT_LENGTH=str(len(body)))
    answer = client.post(JOBS, **request)
    assert 400 <= answer.status_code < 500
    assert kept.is_nothing()
    assert opened
    assert all(file.closed for file in opened)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/mixed; boundary=b",
        "multipart/form-data",
        "ä/\xff",
        "a" * 999,
    ],
)
def test_a_body_of_another_type_is_refused(
    client: FlaskClient, kept: Kept, content_type: str | None
) -> None:
    answer = client.post(JOBS, data=WHOLE, content_type=content_type)
    assert answer.status_code in (400, 422)
    assert answer.mimetype == "application/problem+json"
    assert len(answer.data) < 1000
    assert kept.is_nothing()
