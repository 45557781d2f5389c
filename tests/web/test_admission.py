import io
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import delete

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_shared.errors import Busy, MachineError
from stylequeue_shared.models import Picture
from stylequeue_shared.store import Store
from stylequeue_web import renditions, slots
from stylequeue_web.admission import MAX_OTHER_BYTES
from stylequeue_web.app import Application
from stylequeue_web.services import NAME
from stylequeue_web.slots import (
    RENDITIONS,
    UPLOADS,
    WAITING_RENDITIONS,
    Admission,
    SingleFlight,
    Slots,
)
from tests.shared.pictures import saved
from tests.web.conftest import CONTENT, JOBS, Client, Kept, Worker, form
from tests.web.test_uploads import WHOLE, Endless, chunked, part, whole

Submit = Callable[..., dict[str, Any]]


@pytest.fixture
def admission(app: Application) -> Admission:
    found: Admission = app.extensions[NAME].admission
    return found


@pytest.fixture
def no_uploads(admission: Admission) -> Iterator[None]:
    """As many submissions as may be are at work."""
    for _ in range(UPLOADS):
        admission.uploads.take()
    yield
    for _ in range(UPLOADS):
        admission.uploads.give_back()


class Held(io.RawIOBase):
    """A body whose sender stops in the middle until it is told to go on."""

    def __init__(self) -> None:
        self._body = io.BytesIO(WHOLE)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.begun.set()
        assert self.go_on.wait(60)
        return self._body.readinto(buffer)


def test_a_submission_beyond_the_slots_is_refused_and_its_body_not_read(
    app: Application, client: FlaskClient, kept: Kept
) -> None:
    bodies = [Held() for _ in range(UPLOADS)]
    with ThreadPoolExecutor(UPLOADS) as pool:
        others = [
            pool.submit(app.test_client().post, JOBS, buffered=True, **chunked(body))
            for body in bodies
        ]
        try:
            assert all(body.begun.wait(60) for body in bodies)
            late = Endless(b"")
            answer = client.post(JOBS, **chunked(late))
        finally:
            for body in bodies:
                body.go_on.set()
    assert answer.status_code == 503
    assert answer.get_json()["code"] == "busy"
    assert f"on {UPLOADS} submissions already" in answer.get_json()["detail"]
    assert 0 < int(answer.headers["Retry-After"]) < 30
    assert late.sent == 0
    # The bounded queue of this installation takes five.
    assert sorted(one.result().status_code for one in others)[:5] == [201] * 5
    assert client.get(JOBS).status_code == 200


@pytest.mark.usefixtures("no_uploads")
def test_quick_requests_are_answered_while_no_submission_is_taken(
    client: FlaskClient, database: Database
) -> None:
    assert client.post(JOBS, data=form()).status_code == 503
    for path in ("/healthz", "/readyz", "/metrics", "/", "/jobs", JOBS):
        assert client.get(path).status_code in (200, 503 if path == "/readyz" else 200)
    missing = f"{JOBS}/00000000-0000-0000-0000-000000000000"
    assert client.post(f"{missing}/cancel").status_code == 404


@pytest.mark.usefixtures("no_uploads")
def test_the_form_says_that_the_server_is_busy(client: FlaskClient) -> None:
    late = Endless(b"")
    page = client.post("/", **chunked(late))
    assert (page.status_code, page.mimetype) == (503, "text/html")
    assert "try again in a few seconds" in page.text
    assert page.headers["Retry-After"]
    assert late.sent == 0
    # What the script of the form shows beside the pictures, which stay chosen.
    script = client.post("/", data=form(), headers={"Accept": "application/json"})
    assert script.status_code == 503
    assert "try again in a few seconds" in script.get_json()["message"]


@pytest.mark.parametrize("path", [JOBS, "/"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (WHOLE.replace(CONTENT, b"no picture"), {}),
        (b"", {}),
        (b"--b\r\n" + b"a: b\r\n" * 200_000, {}),
        (WHOLE[:-30], {}),
        (part(b"", b"x"), {}),
        (WHOLE, {"Host": "elsewhere"}),
        (WHOLE, {"Origin": "http://elsewhere"}),
    ],
    ids=["refused", "empty", "too large", "broken off", "odd", "host", "origin"],
)
def test_a_slot_is_free_again_however_the_request_ended(
    client: FlaskClient,
    admission: Admission,
    path: str,
    body: bytes,
    headers: dict[str, str],
) -> None:
    given = {"content_type": "multipart/form-data; boundary=b", "headers": headers}
    for _ in range(2):
        answer = client.post(path, data=body, **given)
        assert 400 <= answer.status_code < 500
    for _ in range(UPLOADS):
        admission.uploads.take()
    with pytest.raises(Busy):
        admission.uploads.take()


@pytest.mark.parametrize("path", ["/jobs/{}/cancel", "/jobs/{}/delete", "/jobs/{}"])
@pytest.mark.parametrize(
    "content_type",
    ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b"],
)
def test_no_other_request_has_a_long_body_read(
    client: FlaskClient, path: str, content_type: str
) -> None:
    body = Endless(b"a=")
    path = path.format("00000000-0000-0000-0000-000000000000")
    given = chunked(body)
    given["environ_overrides"]["CONTENT_TYPE"] = content_type
    assert client.post(path, **given).status_code in (400, 405, 413)
    assert body.sent <= MAX_OTHER_BYTES + 100_000


def test_no_slot_is_waited_for_where_there_is_no_room_to_wait() -> None:
    two = Slots(2, "things")
    with two.held(), two.held(), pytest.raises(Busy, match="2 things"), two.held():
        pass
    with two.held():
        pass


def test_a_slot_is_waited_for_by_as_many_as_there_is_room_for() -> None:
    line = Slots(1, "things", waiting=2)
    with ThreadPoolExecutor(3) as pool:
        with line.held():
            asked = [pool.submit(line.take) for _ in range(3)]
            refused = next(as_completed(asked, timeout=60))
            with pytest.raises(Busy, match=r"1 things already.* and 2 more wait"):
                refused.result()
            assert sum(one.done() for one in asked) == 1
        waited = [one for one in asked if one is not refused]
        for one in as_completed(waited, timeout=60):
            one.result()
            line.give_back()
    with line.held():
        pass


def test_no_slot_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "WAITING_SECONDS", 0.05)
    one = Slots(1, "things", waiting=1)
    with one.held():
        for _ in range(3):  # whoever gave up leaves room for the next one
            with pytest.raises(Busy):
                one.take()
    with one.held():
        pass


def test_work_in_flight_is_done_once_for_all_who_want_it() -> None:
    flights, begun, go_on = SingleFlight(), threading.Event(), threading.Event()
    done = []

    def work() -> None:
        begun.set()
        assert go_on.wait(60)
        done.append(1)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(flights.do, "a", work)
        assert begun.wait(60)
        others = [pool.submit(flights.do, "a", work) for _ in range(3)]
        flights.do("b", lambda: None)  # another picture waits for nothing
        go_on.set()
        for one in (first, *others):
            one.result(60)
    assert done in ([1], [1, 1])  # one of them may have come after the first was done


def test_work_that_fails_fails_for_all_who_wait_and_is_tried_anew_after() -> None:
    flights, go_on = SingleFlight(), threading.Event()

    def fail() -> None:
        assert go_on.wait(60)
        raise MachineError("the disk is away")

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(flights.do, "a", fail) for _ in range(2)]
        go_on.set()
        for one in both:
            with pytest.raises(MachineError, match="away"):
                one.result(60)
    flights.do("a", lambda: None)


def test_nobody_waits_for_work_in_flight_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "RENDITION_SECONDS", 0.05)
    flights, begun, go_on = SingleFlight(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.do, "a", work)
        assert begun.wait(60)
        with pytest.raises(Busy, match="still making"):
            flights.do("a", work)
        go_on.set()
        first.result(60)


class Renderer:
    """Renders as it is done, when it is told to, and counts."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.count = 0

    def __call__(self, source: Path, target: Path, **options: Any) -> None:
        self.count += 1
        assert self.go_on.wait(60)
        target.write_bytes(b"a rendition")


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> Renderer:
    renderer = Renderer()
    monkeypatch.setattr(renditions, "render", renderer)
    return renderer


def test_a_rendition_that_many_want_is_made_once_for_as_many_as_may_wait(
    app: Application, client: FlaskClient, submit: Submit, renderer: Renderer
) -> None:
    app.test_client_class = Client
    path = f"{submit()['links']['self']}/content?size=128"
    places = RENDITIONS + WAITING_RENDITIONS
    number = places + 3
    with ThreadPoolExecutor(number) as pool:
        asked = [pool.submit(app.test_client().get, path) for _ in range(number)]
        ended = as_completed(asked, timeout=60)
        refused = [next(ended).result() for _ in range(3)]
        assert client.get("/healthz").status_code == 200
        renderer.go_on.set()
        made = [one.result() for one in ended]
    assert [one.status_code for one in refused] == [503] * 3
    assert all(int(one.headers["Retry-After"]) > 0 for one in refused)
    assert [(one.status_code, one.data) for one in made] == [
        (200, b"a rendition")
    ] * places
    assert renderer.count == 1
    # One that is there needs no slot.
    assert client.get(path).data == b"a rendition"


@pytest.mark.parametrize("name", ["result", "content"])
def test_a_rendition_in_flight_brings_nothing_of_a_deleted_job_back(
    client: FlaskClient,
    submit: Submit,
    worker: Worker,
    database: Database,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    job = submit()
    worker.succeed(worker.claim())
    here = job["links"]["self"]

    def delete_meanwhile(source: Path, target: Path, **options: Any) -> None:
        jobs.forget(database, job["id"])
        with database.write() as connection:
            # As the housekeeper does with uploads of no job.
            connection.execute(delete(Picture))
        store.delete_prefix("jobs/")
        store.delete_prefix("pictures/")
        target.write_bytes(b"too late")

    monkeypatch.setattr(renditions, "render", delete_meanwhile)
    assert client.get(f"{here}/{name}?size=128").status_code == 404
    assert list(store.keys()) == []


def test_a_rendition_passes_from_file_to_file(
    client: FlaskClient,
) -> None:
    noise = saved(Image.effect_noise((2000, 1500), 90), "JPEG", quality=50)
    body, content_type = whole(noise), "multipart/form-data; boundary=b"
    answer = client.post(JOBS, data=body, content_type=content_type)
    path = f"{answer.get_json()['links']['self']}/content"
    tracemalloc.start()
    try:
        answer = client.get(path, buffered=False)
        size = sum(len(piece) for piece in answer.iter_encoded())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        answer.close()
    assert size > 4_000_000
    assert peak < 3_000_000
