import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store
from stylequeue_shared import free_space
from tests.shared.pictures import colourful, png, saved
from tests.web.conftest import CONTENT, JOBS, STYLE, Kept, form

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
        (png((0, 5), 8, 2, b""), ["PNG"]),
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


def test_below_the_floor_of_free_disk_no_job_is_accepted(
    client: FlaskClient, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_space, "FREE_BYTES_FLOOR", 10**18)
    answer = client.post(JOBS, data=form())
    assert answer.status_code == 503
    assert answer.get_json()["code"] == "disk_full"
    assert int(answer.headers["Retry-After"]) > 0
    assert kept.is_nothing()
