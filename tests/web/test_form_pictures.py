"""The form without JavaScript: what it keeps, and that a second click does nothing."""

import re
import threading
from html import unescape
from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image, ImageColor
from sqlalchemy import select, update
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse

from stylequeue_shared.database import Database
from stylequeue_shared.errors import InFlight
from stylequeue_shared.models import SubmissionKey
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store
from stylequeue_web import form_pictures, pages, words
from tests.web.test_pages import JSON, act, send, submitted, token

KEYS = select(SubmissionKey.key, SubmissionKey.job_id)
NAMED = re.compile(r'(name|value|type)="([^"]*)"')
SELECT = re.compile(r'<select[^>]*name="(\w+)"[^>]*>(.*?)</select>')


@pytest.fixture
def installation(installation: Settings) -> Settings:
    return installation.model_copy(update={"max_waiting": 99})


def picture(color: str) -> tuple[BytesIO, str]:
    file = BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    return BytesIO(file.getvalue()), f"{color}.png"


def fields(page: str) -> dict[str, Any]:
    """Return what a browser without JavaScript would send of the form on a page."""
    form = page[page.index('<form id="new-job"') : page.index("</form>")]
    sent: dict[str, list[str]] = {}
    for tag in re.findall(r"<input[^>]*>", form):
        given = {name: unescape(value) for name, value in NAMED.findall(tag)}
        ticked = given.get("type") not in ("checkbox", "radio") or " checked" in tag
        if ticked and given.get("type") != "file":
            sent.setdefault(given["name"], []).append(given.get("value", ""))
    for name, options in re.findall(
        r'<select[^>]*name="(\w+)"[^>]*>(.*?)</select>', form
    ):
        sent[name] = re.findall(r'<option selected value="([^"]*)"', options)
    return sent


def lose_the_cookie(client: FlaskClient) -> None:
    client._cookies.clear()


def test_a_stale_form_is_given_back_as_it_was_filled_and_works_then(
    client: FlaskClient,
) -> None:
    page = client.get("/").text
    filled = {**fields(page), "steps": "77"}
    lose_the_cookie(client)
    pictures = {"content": picture("teal"), "style": [picture("red"), picture("blue")]}
    answer = client.post("/", data={**filled, **pictures})
    assert answer.status_code == 400
    assert words.STALE_FORM in answer.text
    for name in ("teal.png", "red.png", "blue.png"):
        assert f"{name}, from your last try" in answer.text
    # Not even a third time need they be chosen.
    wrong = {**fields(answer.text), "steps": "0"}
    answer = client.post("/", data=wrong)
    assert answer.status_code == 422
    again = client.post("/", data={**fields(answer.text), "steps": "77"})
    assert again.status_code == 303, again.text
    job_id = again.location.rsplit("/", 1)[1]
    job = client.get(f"/api/v1/jobs/{job_id}").get_json()
    assert job["settings"]["steps"] == 77
    shown = [f"/api/v1/jobs/{job_id}/{path}" for path in ("content", "styles/1")]
    for path, color in zip(shown, ("teal", "blue"), strict=True):
        with client.get(path) as sent, Image.open(BytesIO(sent.data)) as found:
            assert found.getpixel((5, 5)) == ImageColor.getrgb(color)


def test_a_stale_form_of_a_script_is_told_a_token_that_works(
    client: FlaskClient,
) -> None:
    filled = {**fields(client.get("/").text), "content_sample": "cat"}
    lose_the_cookie(client)
    answer = client.post("/", data={**filled, "style_sample": "night"}, headers=JSON)
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["errors"] == {}
    assert answer.json["message"] == words.STALE_FORM
    filled["csrf_token"] = answer.json["csrf_token"]
    again = client.post("/", data={**filled, "style_sample": "night"}, headers=JSON)
    assert again.status_code == 201
    refused = client.post("/", data=filled, headers=JSON)
    assert refused.json is not None
    assert "csrf_token" not in refused.json


def test_a_stale_form_keeps_what_can_be_kept_and_no_more(client: FlaskClient) -> None:
    filled = fields(client.get("/").text)
    lose_the_cookie(client)
    broken = (BytesIO(b"%PDF-1.7 ..."), "broken.png")
    files = {"content": broken, "style": [picture("red")]}
    page = client.post("/", data={**filled, **files}).text
    assert "red.png, from your last try" in page
    assert "broken.png, from your last try" not in page
    assert "broken.png could not be kept: choose it again." in page
    forged = {**fields(page), "kept_content": fields(page)["kept_style"][0][:-3]}
    answer = client.post("/", data=forged)
    assert answer.status_code == 422
    assert "choose it again" in answer.text


def test_a_kept_picture_that_is_gone_has_to_be_chosen_again(
    client: FlaskClient, store: Store
) -> None:
    filled = fields(client.get("/").text)
    lose_the_cookie(client)
    files = {"content": picture("teal"), "style_sample": "night"}
    page = client.post("/", data={**filled, **files}).text
    for key in list(store.keys()):
        store.delete(key)
    answer = client.post("/", data={**fields(page), "style_sample": "night"})
    assert answer.status_code == 422
    assert "choose it again" in answer.text


@pytest.mark.parametrize("action", ["retry", "delete", "cancel"])
def test_a_stale_button_says_to_reload_and_where(
    client: FlaskClient, action: str
) -> None:
    job_id = submitted(client)
    act(client, job_id, "cancel")
    stale = {"csrf_token": token(client)}
    lose_the_cookie(client)
    answer = client.post(f"/jobs/{job_id}/{action}", data=stale)
    assert answer.status_code == 400
    assert "This page was too old" in answer.text
    assert f'href="/jobs/{job_id}">Reload the page' in answer.text
    page = client.get(f"/jobs/{job_id}").text
    fresh = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert fresh
    again = client.post(f"/jobs/{job_id}/{action}", data={"csrf_token": fresh[1]})
    assert again.status_code == 303


def test_a_stale_button_of_the_workers_page_leads_back_there(
    client: FlaskClient,
) -> None:
    answer = client.post("/workers/sign-out", data={"csrf_token": "old"})
    assert answer.status_code == 400
    assert 'href="/workers">Reload the page' in answer.text


def test_a_double_click_gives_one_job(client: FlaskClient) -> None:
    filled = fields(client.get("/").text)
    chosen = {"style_sample": "night", "content_sample": "cat"}

    def click(**changes: Any) -> TestResponse:
        sent = {**filled, **chosen, **changes}
        sent.update(
            {"content": picture("teal")} if "content_sample" not in sent else {}
        )
        answer = client.post("/", data=sent)
        assert answer.status_code == 303, answer.text
        return answer

    first = click()
    assert click().location == first.location
    # Who comes back to the form and changes it wants another job.
    others = [
        click(steps="77"),
        click(style_sample="waves"),
        click(content=picture("red")),
        click(content=picture("blue")),
        click(idempotency_key="0" * 32),
    ]
    assert len({first.location, *(other.location for other in others)}) == 6
    assert click(content=picture("red")).location == others[2].location
    # Each time that the form is shown it is another.
    again = fields(client.get("/").text)["idempotency_key"]
    assert click(idempotency_key=again).location != first.location


def test_without_a_key_each_form_is_a_job(client: FlaskClient) -> None:
    found = {send(client, idempotency_key=key).location for key in ("", "x", "a b")}
    assert len(found) == 3


def test_the_second_click_waits_for_the_first(
    client: FlaskClient, database: Database
) -> None:
    filled = fields(client.get("/").text)
    sent = {**filled, "style_sample": "night", "content_sample": "cat"}
    first = client.post("/", data=sent).location
    with database.write() as connection:
        # As it was while the first was at work, and as it is when it is done.
        jobs_made = {row.key: row.job_id for row in connection.execute(KEYS)}
        connection.execute(update(SubmissionKey).values(job_id=None))

    def finish_first() -> None:
        with database.write() as connection:
            for key, job_id in jobs_made.items():
                this = update(SubmissionKey).where(SubmissionKey.key == key)
                connection.execute(this.values(job_id=job_id))

    timer = threading.Timer(0.5, finish_first)
    timer.start()
    assert client.post("/", data=sent).location == first
    timer.join()


def test_a_click_that_lost_its_key_when_its_pictures_were_read_says_so() -> None:
    file = FileStorage(BytesIO(b"read before"))
    file.close()
    with pytest.raises(InFlight):
        form_pictures.rewind([file])


def test_the_second_click_does_not_wait_for_ever(
    client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAUSES", (0.01, 0.01))
    filled = fields(client.get("/").text)
    sent = {**filled, "style_sample": "night", "content_sample": "cat"}
    client.post("/", data=sent)
    with database.write() as connection:
        connection.execute(update(SubmissionKey).values(job_id=None))
    for free in (True, False):
        if not free:
            monkeypatch.setattr(pages, "SECOND_CLICKS", threading.BoundedSemaphore(1))
            pages.SECOND_CLICKS.acquire()
        answer = client.post("/", data=sent)
        assert answer.status_code == 422
        assert words.IN_FLIGHT in answer.text


def test_a_double_click_on_retry_gives_one_job(client: FlaskClient) -> None:
    job_id = submitted(client)
    act(client, job_id, "cancel")

    def key() -> str:
        page = client.get(f"/jobs/{job_id}").text
        found = re.search(r'name="idempotency_key" value="([^"]+)"', page)
        assert found
        return found[1]

    def click(key: str) -> str:
        data = {"csrf_token": token(client), "idempotency_key": key}
        return str(client.post(f"/jobs/{job_id}/retry", data=data).location)

    shown = key()
    first = click(shown)
    assert click(shown) == first
    assert click(key()) != first
