import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from stylequeue_shared import free_space, reading
from stylequeue_shared.database import Database
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store
from stylequeue_web import uploads
from stylequeue_web.app import Application
from stylequeue_web.services import NAME
from stylequeue_web.uploads import MAX_FILES
from tests.shared.pictures import colourful, png, saved
from tests.web.conftest import CONTENT, JOBS, STYLE, Kept, Worker, form
from tests.web.test_pages import send, token
from tests.web.test_uploads import part

BOMB = png((30_000, 30_000), 8, 2, bytes(10))
NESTED = "[" * 100_000 + "]" * 100_000


def refused(
    client: FlaskClient, kept: Kept, data: dict[str, Any], status: int = 422
) -> dict[str, Any]:
    """Submit what is not acceptable; nothing of it may be kept."""
    answer = client.post(JOBS, data=data)
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    assert kept.is_nothing()
    body: dict[str, Any] = answer.get_json()
    assert body["status"] == status
    assert {"type", "title", "detail", "code"} <= set(body)
    return body


@pytest.mark.parametrize("field", ["content", "style"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", ["an empty file", "JPEG"]),
        (b"Dear Sir or Madam", ["a text", "JPEG", "PNG"]),
        (b"%PDF-1.7 ...", ["a PDF document", "JPEG"]),
        (
            saved(colourful(300, 200), "JPEG")[:-900],
            ["JPEG", "damaged or cut short", "whole pictures"],
        ),
        (BOMB, ["30000 x 30000", "50 megapixels"]),
        (png((0, 5), 8, 2, b""), ["0 x 5 pixels", "1 x 1"]),
        (saved(colourful(400, 4), "PNG"), ["400 x 4 pixels", "32 times"]),
    ],
    ids=["empty", "text", "pdf", "truncated", "bomb", "zero-sized", "thin"],
)
def test_what_is_not_a_good_picture_is_refused_at_its_field(
    client: FlaskClient, kept: Kept, field: str, data: bytes, says: list[str]
) -> None:
    body = refused(client, kept, form(**{field: data}))
    assert (body["code"], body["field"]) == ("invalid_picture", field)
    assert body["detail"].startswith(f"{field}: found ")
    assert "allowed" in body["detail"]
    assert all(words in body["detail"] for words in says)


def test_one_bad_style_of_several_is_named_and_none_is_kept(
    client: FlaskClient, kept: Kept
) -> None:
    body = refused(client, kept, form(style=[STYLE, b"no picture", CONTENT]))
    assert body["field"] == "style[1]"


@pytest.mark.parametrize(
    ("fields", "field", "found", "allowed"),
    [
        ({"content": None}, "content", "found 0", "exactly one"),
        ({"content": [CONTENT, CONTENT]}, "content", "found 2", "exactly one"),
        ({"style": None}, "style", "found 0", "1 to 8"),
        ({"style": [STYLE] * 9}, "style", "found 9", "1 to 8"),
        ({"content": "cat.png"}, "content", "found text", "a file is needed"),
        ({"style": "cat.png"}, "style", "found text", "a file is needed"),
        (
            {"colour": "red"},
            "colour",
            "no such field",
            "content, owner, priority, settings, style",
        ),
        (
            {"mask": CONTENT},
            "mask",
            "no such field",
            "content, owner, priority, settings, style",
        ),
        ({"settings": b"{}"}, "settings", "found a file", "text is needed"),
        ({"settings": ["{}", "{}"]}, "settings", "found twice", "one JSON object"),
    ],
)
def test_fields_that_are_not_as_they_should_be_are_refused(
    client: FlaskClient,
    kept: Kept,
    fields: dict[str, Any],
    field: str,
    found: str,
    allowed: str,
) -> None:
    status = 400 if found == "no such field" else 422
    body = refused(client, kept, form(**fields), status)
    assert body["field"] == field
    assert found in body["detail"]
    assert allowed in body["detail"]


@pytest.mark.parametrize(
    ("settings", "field", "found"),
    [
        ('{"stepps": 3}', "stepps", "stepps"),
        ('{"steps": 0}', "steps", "0"),
        ('{"steps": 5001}', "steps", "5001"),
        ('{"image_size": 4097}', "image_size", "4097"),
        ('{"image_size": 31}', "image_size", "31"),
        ('{"steps": true}', "steps", "true"),
        ('{"steps": "10"}', "steps", "10"),
        ('{"steps": 10.5}', "steps", "10.5"),
        ('{"steps": 1e400}', "steps", "Infinity"),
        ('{"style_weight": 1e400}', "style_weight", "Infinity"),
        ('{"style_weight": NaN}', "settings", "NaN"),
        ('{"style_weight": Infinity}', "settings", "Infinity"),
        ('{"style_weight": -Infinity}', "settings", "Infinity"),
        ('{"style_weight": -1}', "style_weight", "-1"),
        ('{"seed": -1}', "seed", "-1"),
        ('{"seed": 99999999999999999999999999}', "seed", "9999"),
        ('{"style_blend": [1, 2]}', "style_blend", "2"),
        ('{"style_layers": []}', "style_layers", "[]"),
        ('{"style_layers": ["conv9_9"]}', "style_layers", "conv9_9"),
        ('{"preset": "nice"}', "preset", "nice"),
        ('{"preset": null}', "preset", "null"),
        ('{"preset": ["classic"]}', "preset", "classic"),
        ('{"preset": {}}', "preset", "{}"),
        ("[]", "settings", "[]"),
        ("3", "settings", ""),
        ('"text"', "settings", ""),
        ("{", "settings", ""),
        ("\x00", "settings", ""),
        ('{"\\u0000": 1}', None, ""),
        ('{"\\ud800": 1}', None, ""),
        ('{"preset": "\\ud800"}', None, ""),
        (NESTED, "settings", ""),
        ('{"steps": ' + NESTED + "}", None, ""),
        ('{"steps": ' + "9" * 50_000 + "}", None, ""),
        ('{"note": "' + "x" * 150_000 + '"}', None, ""),
    ],
)
def test_what_is_not_a_good_setting_is_refused_at_its_field(
    client: FlaskClient, kept: Kept, settings: str, field: str | None, found: str
) -> None:
    body = refused(client, kept, form(settings=settings))
    assert body["code"] == "invalid_setting"
    assert found in body["detail"]
    assert len(body["detail"]) < 1000
    if field:
        assert body["field"].split("[")[0] == field


def raw(settings: bytes) -> bytes:
    """Return a body with these bytes as its settings; its boundary is b."""
    return (
        b"".join(
            b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part
            for part in [
                (b"content", b'; filename="a"', CONTENT),
                (b"style", b'; filename="b"', STYLE),
                (b"settings", b"", settings),
            ]
        )
        + b"--b--\r\n"
    )


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        (b'{"note": "' + b"x" * 600_000 + b'"}', 413),
        (b"\xff\xfe", 422),
        (b'{"preset": "\xff"}', 422),
    ],
    ids=["giant", "not UTF-8", "not UTF-8 in a text"],
)
def test_settings_that_are_no_text_or_giant_are_refused(
    client: FlaskClient, kept: Kept, settings: bytes, status: int
) -> None:
    answer = client.post(
        JOBS, data=raw(settings), content_type="multipart/form-data; boundary=b"
    )
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"
    assert kept.is_nothing()


@pytest.mark.parametrize("field", ["content", "style"])
def test_pictures_that_pool_to_nothing_are_refused(
    client: FlaskClient, kept: Kept, field: str
) -> None:
    settings = {"image_size": 64, "style_layers": ["relu5_1"]}
    thin = saved(colourful(300, 20), "PNG")
    body = refused(client, kept, form(settings=settings, **{field: thin}))
    assert body["field"] == field
    assert "300 x 20" in body["detail"]


def test_the_same_thin_picture_is_accepted_for_shallow_layers(
    submit: Callable[..., dict[str, Any]],
) -> None:
    submit(content=saved(colourful(300, 20), "PNG"), settings={"image_size": 512})


def test_a_good_submission_keeps_each_original_once_as_it_was(
    submit: Callable[..., dict[str, Any]], kept: Kept, store: Store
) -> None:
    submit(content=CONTENT, style=[CONTENT, STYLE])
    assert kept.rows() == 1 + 2 + 2
    assert {store.get(key) for key in kept.files()} == {CONTENT, STYLE}


def test_what_no_worker_could_hold_is_refused_with_the_largest_size_that_fits(
    client: FlaskClient,
    submit: Callable[..., dict[str, Any]],
    kept: Kept,
    beat: Callable[..., None],
) -> None:
    beat("small", budget_bytes=10**9)
    body = refused(client, kept, form(settings={"image_size": 1024}))
    assert (body["code"], body["field"]) == ("invalid_setting", "image_size")
    found = re.fullmatch(
        r"image_size: found 1024; with this picture and these settings at most (\d+) "
        "fits into the memory that the workers here may take",
        body["detail"],
    )
    assert found
    refused(client, kept, form(settings={"image_size": int(found[1]) + 16}))
    assert submit(settings={"image_size": int(found[1])})["state"] == "queued"


def test_a_full_queue_answers_503_and_keeps_nothing_more(
    client: FlaskClient,
    submit: Callable[..., dict[str, Any]],
    kept: Kept,
    installation: Settings,
) -> None:
    for _ in range(installation.max_waiting):
        submit()
    rows, files = kept.rows(), kept.files()
    answer = client.post(JOBS, data=form(content=saved(colourful(70, 70), "PNG")))
    assert answer.status_code == 503
    assert answer.mimetype == "application/problem+json"
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.get_json()["code"] == "queue_full"
    assert "5 jobs" in answer.get_json()["detail"]
    assert (kept.rows(), kept.files()) == (rows, files)


@pytest.fixture(params=["disk", "quota"])
def fill(
    request: pytest.FixtureRequest,
    app: Application,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], None]:
    """Let the store have too little room: by its disk and by its quota in turn."""

    def full() -> None:
        if request.param == "disk":
            monkeypatch.setattr(free_space, "FREE_BYTES_FLOOR", 10**18)
            return
        ours = app.extensions[NAME]
        limited = ours.settings.model_copy(update={"store_quota_mb": 1000})
        services = replace(ours, settings=limited)
        monkeypatch.setitem(app.extensions, NAME, services)
        free_space.add_used(database, limited, 500_000_001)

    return full


def is_told(answer: TestResponse) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "500 MB" in answer.text or "MB are needed to take a job" in answer.text


def test_without_room_in_the_store_no_job_is_accepted(
    client: FlaskClient, kept: Kept, fill: Callable[[], None]
) -> None:
    fill()
    answer = client.post(JOBS, data=form())
    is_told(answer)
    assert answer.get_json()["code"] == "disk_full"
    assert kept.is_nothing()


def test_without_room_in_the_store_no_job_is_retried(
    client: FlaskClient,
    submit: Callable[..., dict[str, Any]],
    worker: Worker,
    kept: Kept,
    fill: Callable[[], None],
) -> None:
    job = submit()
    worker.succeed(worker.claim())
    given, rows = {"X-CSRFToken": token(client)}, kept.rows()
    fill()
    is_told(client.post(job["links"]["retry"]))
    is_told(client.post(f"{job['links']['page']}/retry", headers=given))
    assert kept.rows() == rows


def test_what_is_stored_counts_against_the_quota_at_once(
    client: FlaskClient, app: Application, database: Database
) -> None:
    settings = app.extensions[NAME].settings
    limited = settings.model_copy(update={"store_quota_mb": 1000})
    app.extensions[NAME] = replace(app.extensions[NAME], settings=limited)
    for _ in range(2):  # the second time, nothing more is stored
        assert client.post(JOBS, data=form()).status_code == 201
        used = reading.counter(database, free_space.USED)
        assert used == len(CONTENT) + len(STYLE)


@pytest.mark.parametrize("count", [9, 99, 200])
def test_too_many_pictures_are_counted_whatever_their_number(
    client: FlaskClient, kept: Kept, count: int
) -> None:
    body = part(b'; name="content"; filename="a"', CONTENT)
    body += part(b'; name="style"; filename="b"', STYLE) * count + b"--b--\r\n"
    given = {"data": body, "content_type": "multipart/form-data; boundary=b"}
    answer = client.post(JOBS, **given)
    assert (answer.status_code, answer.get_json()["field"]) == (422, "style")
    said = f"style: found {count} pictures; allowed are 1 to 8"
    assert answer.get_json()["detail"] == said
    assert kept.is_nothing()


def test_pictures_beyond_all_need_are_not_kept_while_they_are_counted(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    class Noted(uploads.CappedFile):
        def close(self) -> None:
            if not self.closed:
                written.append(self.seek(0, 2))
            super().close()

    monkeypatch.setattr(uploads, "CappedFile", Noted)
    body = part(b'; name="style"; filename="b"', STYLE) * 99 + b"--b--\r\n"
    client.post(JOBS, data=body, content_type="multipart/form-data; boundary=b")
    assert sorted(written) == [0] * (99 - MAX_FILES) + [len(STYLE)] * MAX_FILES


def test_a_picture_that_came_after_too_many_others_is_not_called_too_large(
    client: FlaskClient, kept: Kept
) -> None:
    many = [(BytesIO(CONTENT), "a.png") for _ in range(MAX_FILES)]
    headers = {"Accept": "application/json"}
    answer = send(client, headers, content=many, style=(BytesIO(STYLE), "b.jpg"))
    assert answer.status_code == 422
    assert "more than 18 files" in answer.get_json()["errors"]["style"]
    assert kept.is_nothing()


def test_an_absurd_number_of_parts_is_refused_with_the_limits(
    client: FlaskClient, kept: Kept
) -> None:
    body = part(b'; name="style"; filename="b"', b"x") * 10_000 + b"--b--\r\n"
    given = {"data": body, "content_type": "multipart/form-data; boundary=b"}
    answer = client.post(JOBS, **given)
    assert answer.status_code == 413
    detail = answer.get_json()["detail"]
    assert "19 MB in all, 250 pictures and other fields, and 250 kB" in detail
    assert kept.is_nothing()
