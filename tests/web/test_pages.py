import re
from collections.abc import Iterator
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_shared.errors import MachineError
from stylequeue_shared.job_settings import PRESET_MEANINGS, PRESETS
from stylequeue_shared.jobs import Claim, Progress, Result
from stylequeue_shared.migrate import migrate
from stylequeue_shared.models import Job
from stylequeue_shared.settings import Settings
from stylequeue_web import forms, words
from stylequeue_web.app import create_app

JSON = {"Accept": "application/json"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def app(settings: Settings) -> Flask:
    migrate(settings.database_url)
    return create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def database(app: Flask, settings: Settings) -> Iterator[Database]:
    opened = Database(settings.database_url)
    yield opened
    opened.close()


def token(client: FlaskClient) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', client.get("/").text)
    assert found
    return found[1]


def send(client: FlaskClient, headers: Any = None, **changes: Any) -> TestResponse:
    """Submit the form as a browser without JavaScript does, with samples chosen."""
    values = {**forms.suggested(), **changes}
    filled = {
        "csrf_token": token(client),
        "content_sample": "cat",
        "style_sample": ["night"],
        # A box that is not ticked is not sent at all.
        **{
            name: value
            for name, value in values.items()
            if value is not None and value is not False
        },
    }
    return client.post(
        "/", data=filled, headers=headers, content_type="multipart/form-data"
    )


def submitted(client: FlaskClient, **changes: Any) -> str:
    answer = send(client, JSON, **changes)
    assert answer.status_code == 201, answer.text
    return str(answer.json["location"]).rsplit("/", 1)[1]  # type: ignore[index]


def act(client: FlaskClient, job_id: str, action: str) -> TestResponse:
    data = {"csrf_token": token(client)}
    return client.post(f"/jobs/{job_id}/{action}", data=data)


def detail_of(page: str) -> str:
    found = re.search(r'<span id="detail">([^<]*)</span>', page)
    assert found
    return found[1]


def claim(database: Database) -> Claim:
    held = jobs.claim(database, "a test", lease_seconds=60)
    assert held is not None
    return held


def progress(step: int) -> Progress:
    return Progress(step, 0.25, 0.5, steps_per_second=8, eta_seconds=71.6)


def test_the_form_offers_samples_presets_and_every_setting(
    client: FlaskClient,
) -> None:
    page = client.get("/").text
    for name in forms.SCHEMA:
        assert f'name="{name}"' in page
    assert "Chelsea the cat" in page
    assert re.search(r'<input checked[^>]*value="quick"', page)


def test_the_form_says_what_each_preset_does(client: FlaskClient) -> None:
    page = unescape(client.get("/").text)
    assert PRESET_MEANINGS.keys() == PRESETS.keys()
    for name, meaning in PRESET_MEANINGS.items():
        assert re.search(f'value="{name}"', page)
        assert meaning in page


def test_pictures_must_be_chosen(client: FlaskClient) -> None:
    answer = send(client, content_sample="", style_sample=[])
    assert answer.status_code == 422
    assert "Choose the picture to paint." in answer.text
    answer = send(client, JSON, style_sample=[])
    assert answer.json is not None
    assert answer.json["errors"] == {"style": "Choose at least one style picture."}


def test_a_submission_leads_to_the_page_of_its_job(client: FlaskClient) -> None:
    answer = send(client)
    assert answer.status_code == 303, answer.text
    page = client.get(answer.location)
    assert page.status_code == 200
    assert "Waiting its turn" in page.text
    assert "next in line" in page.text


def test_an_estimate_is_shown_until_the_first_step_tells_better(
    client: FlaskClient, database: Database
) -> None:
    job_id = submitted(client)
    here = f"/jobs/{job_id}"
    assert "about" not in detail_of(client.get(here).text)
    foreseen = {"seconds": 41.2, "memory_bytes": 10**9, "worker": "gpu-1"}
    with database.write() as connection:
        connection.execute(update(Job).values(estimate=foreseen))
    page = client.get(here).text
    assert detail_of(page) == "next in line, about 40 s once it starts"
    held = claim(database)
    assert detail_of(client.get(here).text) == "Getting ready, about 40 s in all"
    jobs.report(database, held, progress(20), lease_seconds=60)
    jobs.hand_back(database, held)
    assert detail_of(client.get(here).text) == "next in line"


def test_an_uploaded_file_goes_before_a_sample(client: FlaskClient) -> None:
    file = BytesIO()
    Image.new("RGB", (40, 30), "teal").save(file, "PNG")
    job_id = submitted(client, content=(BytesIO(file.getvalue()), "a.png"))
    with (
        client.get(f"/api/v1/jobs/{job_id}/content") as answer,
        Image.open(BytesIO(answer.data)) as shown,
    ):
        assert shown.size == (40, 30)


def test_what_is_no_picture_is_refused_at_its_field(client: FlaskClient) -> None:
    answer = send(client, JSON, content=(BytesIO(b"%PDF-1.7 ..."), "a.png"))
    assert answer.status_code == 422
    assert answer.json is not None
    assert list(answer.json["errors"]) == ["content"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", "0"), ("image_size", "99999"), ("snapshot_every", "1")],
)
def test_a_bad_setting_is_refused_at_its_field_and_kept(
    client: FlaskClient, field: str, value: str
) -> None:
    answer = send(client, JSON, **{field: value})
    assert answer.status_code == 422
    assert answer.json is not None
    assert list(answer.json["errors"]) == [field]
    page = send(client, **{field: value})
    assert re.search(rf'name="{field}"[^>]*value="{value}"', page.text)
    assert re.search(rf'data-error="{field}">[^<]+<', page.text)


def test_a_refusal_under_advanced_opens_it(client: FlaskClient) -> None:
    assert '<details class="advanced" open>' in send(client, snapshot_every="0").text


def test_without_the_token_nothing_is_submitted(client: FlaskClient) -> None:
    answer = send(client, csrf_token="made up")
    assert answer.status_code in (400, 403, 422)
    assert "Nothing painted yet" in client.get("/jobs").text


def test_the_settings_of_a_job_can_be_used_again(client: FlaskClient) -> None:
    job_id = submitted(client, steps="33", seed="5")
    page = client.get(f"/?from={job_id}").text
    assert re.search(r'name="steps"[^>]*value="33"', page)
    assert re.search(r'name="seed"[^>]*value="5"', page)
    assert client.get("/?from=no-such-job").status_code == 404


def test_a_running_job_shows_how_far_it_is(
    client: FlaskClient, database: Database
) -> None:
    job_id = submitted(client)
    held = claim(database)
    assert "Getting ready" in client.get(f"/jobs/{job_id}").text
    key = f"jobs/{job_id}/1/snapshot-000020.png"
    jobs.add_snapshot(database, held, key, progress(20), (64, 48))
    page = client.get(f"/jobs/{job_id}").text
    for text in ("20 of 150", "1 min 12 s", "After step 20", "Cancel"):
        assert text in page
    assert f"/api/v1/jobs/{job_id}/snapshots/20?size=512" in page


def test_a_failed_job_says_why_and_whose_fault_it_was(
    client: FlaskClient, database: Database
) -> None:
    job_id = submitted(client)
    jobs.fail(database, claim(database), MachineError("No <memory> left."))
    page = client.get(f"/jobs/{job_id}").text
    assert "No &lt;memory&gt; left." in page
    assert "<memory>" not in page
    assert words.FAULTS["machine"] in page


def test_a_finished_job_offers_its_picture(
    client: FlaskClient, database: Database
) -> None:
    job_id = submitted(client)
    held = claim(database)
    jobs.describe(database, held, {"torch": "2.14.1", "device": "a test's"})
    result = Result(f"jobs/{job_id}/1/result.png", 256, 170)
    jobs.succeed(database, held, progress(200), result)
    page = client.get(f"/jobs/{job_id}").text
    assert "a test&#39;s" in page
    assert "The finished picture, 256 × 170 pixels" in page
    assert f'href="/api/v1/jobs/{job_id}/result"' in page


@pytest.mark.parametrize(
    ("result_format", "suffix", "name"),
    [("png", ".png", "PNG"), ("png16", ".png", "PNG"), ("tiff16", ".tif", "TIFF")],
)
def test_a_picture_is_downloaded_as_what_it_is_and_shown_as_what_browsers_know(
    client: FlaskClient,
    database: Database,
    result_format: str,
    suffix: str,
    name: str,
) -> None:
    job_id = submitted(client, result_format=result_format)
    result = Result(f"jobs/{job_id}/1/result{suffix}", 256, 170)
    jobs.succeed(database, claim(database), progress(200), result)
    page = client.get(f"/jobs/{job_id}").text
    assert f'{suffix}">Download {name}</a>' in page
    shown = re.findall(r'<img[^>]*src="([^"]+)"', page)
    assert f"/api/v1/jobs/{job_id}/result?size=512" in shown
    assert f"/api/v1/jobs/{job_id}/result" not in shown


def test_a_job_of_an_earlier_release_is_shown_with_the_settings_it_has(
    client: FlaskClient, database: Database
) -> None:
    job_id = submitted(client, keep_alpha="y")
    line = "<dt>Keep transparency</dt><dd>yes</dd>"
    assert line in client.get(f"/jobs/{job_id}").text
    with database.write() as connection:
        settings = connection.scalar(select(Job.settings).where(Job.id == job_id))
        assert settings.pop("keep_alpha") is True
        connection.execute(
            update(Job).where(Job.id == job_id).values(settings=settings)
        )
    page = client.get(f"/jobs/{job_id}")
    assert page.status_code == 200
    assert "Keep transparency" not in page.text
    assert client.get(f"/?from={job_id}").status_code == 200


def test_a_job_is_paused_resumed_and_finished_by_forms(
    client: FlaskClient, database: Database
) -> None:
    job_id = submitted(client)

    def shown() -> set[str]:
        page = client.get(f"/jobs/{job_id}").text
        return set(re.findall(r'data-ask="(\w+)">', page))

    assert shown() == {"pause", "cancel"}
    assert act(client, job_id, "finish").status_code == 409
    assert act(client, job_id, "pause").status_code == 303
    assert shown() == {"resume", "cancel"}
    assert act(client, job_id, "resume").status_code == 303
    held = claim(database)
    snapshot = (f"jobs/{job_id}/1/snapshots/50.png", progress(50), (64, 48))
    jobs.add_snapshot(database, held, *snapshot)
    assert shown() == {"pause", "finish", "cancel"}
    assert act(client, job_id, "pause").status_code == 303
    assert shown() == {"resume", "finish", "cancel"}
    jobs.hand_back(database, held)
    assert "after step 50" in client.get(f"/jobs/{job_id}").text
    assert act(client, job_id, "finish").status_code == 303
    assert "The finished picture" in client.get(f"/jobs/{job_id}").text


def test_a_job_is_cancelled_retried_and_deleted_by_forms(client: FlaskClient) -> None:
    job_id = submitted(client, steps="44")
    # Not while it waits.
    assert act(client, job_id, "delete").status_code == 409
    assert act(client, job_id, "cancel").status_code == 303
    again = act(client, job_id, "retry")
    assert again.status_code == 303
    assert again.location != f"/jobs/{job_id}"
    assert "44" in client.get(again.location).text
    assert act(client, job_id, "delete").location == "/jobs"
    assert client.get(f"/jobs/{job_id}").status_code == 404
    assert client.post(f"{again.location}/cancel").status_code in (400, 403)


def test_the_gallery_has_pages_and_filters(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylequeue_web.pages.PER_PAGE", 2)
    assert "Nothing painted yet" in client.get("/jobs").text
    ids = [submitted(client) for _ in range(3)]
    first = client.get("/jobs").text
    assert ids[2] in first
    assert ids[0] not in first
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older
    second = client.get(older[1].replace("&amp;", "&")).text
    assert ids[0] in second
    assert "Newest" in second
    assert "No picture is failed" in client.get("/jobs?state=failed").text
    assert client.get("/jobs?state=odd").status_code == 404


def test_samples_come_whole_and_small(client: FlaskClient) -> None:
    whole, small = client.get("/samples/cat"), client.get("/samples/cat?size=256")
    with Image.open(BytesIO(small.data)) as picture:
        assert max(picture.size) == 256
    assert len(small.data) < len(whole.data)
    assert client.get("/samples/none").status_code == 404


@pytest.mark.parametrize("path", ["/nowhere", "/jobs/no-such-job", "/samples/none"])
def test_what_is_not_there_gets_a_friendly_page(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "There is nothing here" in answer.text
    assert 'href="/"' in answer.text


def test_no_page_has_scripts_or_styles_of_its_own_or_of_others(
    client: FlaskClient,
) -> None:
    job_id = submitted(client)
    for path in ("/", "/jobs", f"/jobs/{job_id}", "/nowhere"):
        page = client.get(path).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
        for script in re.findall(r"<script[^>]*>", page):
            assert ' src="/' in script or 'type="application/json"' in script
        assert not re.search(r'(src|href)="(https?:)?//', page)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.4, "0 s"),
        (59.5, "1 min 0 s"),
        (71.6, "1 min 12 s"),
        (7325, "2 h 2 min"),
    ],
)
def test_durations_are_written_for_people(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_what_a_job_was_made_with_is_written_for_people() -> None:
    assert words.fact("memory_bytes", 17_708_500_000) == ("memory", "17709 MB")
    assert words.fact("bfloat16", True) == ("bfloat16", "yes")
    plan = {"rows": 128, "held": 4, "half": False, "history": 50}
    text = "rows 128, held 4, half no, history 50"
    assert words.fact("plan", plan) == ("plan", text)
