"""One web server and one worker that share nothing but servers: real processes."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bench.seaweedfs import free_ports
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import open_store
from tests.system.conftest import running_installation
from tests.system.running import Site, Web
from tests.worker.submitting import TINY, picture


@pytest.fixture
def settings(bucket: str, tmp_path: Path) -> Iterator[Settings]:
    with running_installation(tmp_path / "home") as installation:
        [port] = free_ports(1)
        yield installation.model_copy(update={"store": bucket, "port": port})


@pytest.fixture
def site(settings: Settings) -> Iterator[Site]:
    site = Site(settings)
    yield site
    site.close()


@pytest.fixture
def web(settings: Settings) -> Iterator[Web]:
    web = Web(settings)
    try:
        deadline = time.monotonic() + 60
        while not web.is_ready():
            assert time.monotonic() < deadline, web.log.read_text()
            time.sleep(0.1)
        yield web
    finally:
        web.process.terminate()
        web.process.wait(60)


def test_a_job_goes_through_a_bucket_from_its_upload_to_its_result(
    site: Site, web: Web, settings: Settings
) -> None:
    job_id = web.submit([picture(1), picture(2)], **TINY)
    row = site.ended(job_id)
    assert row.state == "succeeded", site.log.read_text()[-5000:]

    _, _, answer = web.ask(f"/api/v1/jobs/{job_id}")
    job = json.loads(answer)
    for url in (
        job["result"]["url"],
        job["result"]["preview_url"],
        job["snapshots"][0]["url"],
        f"{job['links']['self']}/content",
    ):
        status, headers, served = web.ask(url)
        assert status == 200
        assert int(headers["Content-Length"]) == len(served)
        Image.open(io.BytesIO(served)).load()
        unchanged = {"If-None-Match": headers["ETag"]}
        assert web.ask(url, headers=unchanged)[0] == 304
    status, _, served = web.ask(job["result"]["url"])
    store = open_store(settings.store_url)
    assert served == store.get(row.result_key)
    # Nothing of it lies in a folder of theirs.
    assert not (settings.home / "store").exists()


def test_a_store_that_refuses_its_key_is_not_ready_and_says_so_in_the_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-one")
    refused = Web(settings)
    try:
        deadline = time.monotonic() + 60
        while "AWS_SECRET_ACCESS_KEY" not in refused.log.read_text():
            assert not refused.is_ready()
            assert time.monotonic() < deadline, refused.log.read_text()
            time.sleep(0.1)
        status, _, answer = refused.ask("/readyz")
        found = json.loads(answer)
        assert (status, found["store"]) == (503, "cannot be written to")
        assert "a-wrong-one" not in refused.log.read_text()
    finally:
        refused.process.terminate()
        refused.process.wait(60)
