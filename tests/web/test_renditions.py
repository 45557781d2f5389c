import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image, ImageCms

from bench.seaweedfs import free_ports
from stylequeue_shared.artefacts import RENDITION_SIZES, result_key
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store, open_store
from stylequeue_shared.store_s3 import S3Store
from stylequeue_web.app import Application
from stylequeue_web.services import NAME
from stylequeue_worker import deep
from tests.shared.pictures import colourful, exif, saved
from tests.web.conftest import Kept, Worker

Submit = Callable[..., dict[str, Any]]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TELLING = saved(
    colourful(300, 200),
    "JPEG",
    exif=exif(),
    comment=b"SECRET COMMENT",
    icc_profile=PROFILE,
    xmp=b"<x:xmpmeta>SECRET XMP</x:xmpmeta>",
)
# What the names of files and of fields in them begin with.
TRACES = (b"SECRET", b"Exif", b"eXIf", b"xmp", b"ICC_PROFILE", b"iCCP", b"tEXt")
NAMES = ["content", "styles/0"]
SIZES = ["", *(f"?size={size}" for size in RENDITION_SIZES)]


@pytest.fixture(params=["folder", "bucket"])
def installation(request: pytest.FixtureRequest, installation: Settings) -> Settings:
    """An installation with a store of each kind in turn."""
    if request.param == "folder":
        return installation
    address = request.getfixturevalue("bucket")
    return installation.model_copy(update={"store": address})


@pytest.fixture
def here(submit: Submit, worker: Worker) -> str:
    """The address of a finished job whose pictures tell too much."""
    address: str = submit(content=TELLING, style=TELLING)["links"]["self"]
    claim = worker.claim()
    worker.snapshot(claim, 50)
    worker.succeed(claim)
    return address


def test_the_original_does_tell() -> None:
    with Image.open(BytesIO(TELLING)) as image:
        assert image.getexif().get_ifd(0x8825)
        assert {"comment", "icc_profile", "xmp"} <= set(image.info)
    assert sum(trace in TELLING for trace in TRACES) == 4


@pytest.mark.parametrize("name", NAMES)
def test_what_is_served_of_an_upload_is_nothing_but_its_pixels(
    client: FlaskClient, here: str, name: str
) -> None:
    for size in SIZES:
        answer = client.get(f"{here}/{name}{size}")
        assert answer.status_code == 200
        assert not [trace for trace in TRACES if trace in answer.data]
        with Image.open(BytesIO(answer.data)) as image:
            assert dict(image.getexif()) == {}
            # What Pillow says of any JPEG.
            assert all(key.startswith("jfif") for key in image.info)


@pytest.mark.parametrize("name", [*NAMES, "result", "snapshots/50"])
def test_a_size_that_is_not_made_is_refused_with_those_that_are(
    client: FlaskClient, here: str, kept: Kept, name: str
) -> None:
    before = kept.files()
    for size in ("0", "-1", "513", "512.0", "0512", " 512", "", "9" * 5000, "٥١٢"):
        answer = client.get(f"{here}/{name}", query_string={"size": size})
        assert answer.status_code == 422
        body = answer.get_json()
        assert (body["code"], body["field"]) == ("invalid_setting", "size")
        assert "128, 256, 512, 1024, 2048" in body["detail"]
        assert len(body["detail"]) < 200
    assert kept.files() == before


@pytest.mark.parametrize("installation", ["folder"], indirect=True)
def test_a_rendition_is_made_once(
    client: FlaskClient, here: str, kept: Kept, installation: Settings
) -> None:
    store = Path(installation.store_url)

    def made() -> dict[str, tuple[int, int]]:
        stats = {key: (store / key).stat() for key in kept.files()}
        return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}

    paths = [f"{here}/{name}{size}" for name in NAMES for size in ("", "?size=128")]
    before = made()
    first = [client.get(path).data for path in paths]
    after = made()
    # Both uploads are the same file.
    assert len(after) == len(before) + 2
    assert [client.get(path).data for path in paths] == first
    assert made() == after


def test_a_preview_that_a_worker_made_is_sent_as_it_is(
    client: FlaskClient, here: str, store: Store, kept: Kept
) -> None:
    (key,) = (key for key in kept.files() if key.endswith("result.png"))
    preview = saved(colourful(40, 40), "JPEG")
    store.put(f"renditions/{key}/512.jpg", preview)
    assert client.get(f"{here}/result?size=512").data == preview


@pytest.mark.parametrize("name", [*NAMES, "result", "snapshots/50"])
def test_a_picture_is_sent_again_only_when_asked_without_its_etag(
    client: FlaskClient, here: str, name: str
) -> None:
    for path in (f"{here}/{name}", f"{here}/{name}?size=256"):
        answer = client.get(path)
        assert int(answer.headers["Content-Length"]) == len(answer.data)
        assert answer.headers["Cache-Control"] == "max-age=86400, private"
        etag = answer.headers["ETag"]
        again = client.get(path, headers={"If-None-Match": etag})
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["ETag"] == etag
        other = client.get(path, headers={"If-None-Match": '"other"'})
        assert (other.status_code, other.data) == (200, answer.data)
        head = client.head(path)
        assert (head.status_code, head.data) == (200, b"")
        assert int(head.headers["Content-Length"]) == len(answer.data)


def test_each_rendition_has_an_etag_of_its_own(client: FlaskClient, here: str) -> None:
    paths = [f"content{size}" for size in SIZES] + ["result", "result?size=128"]
    etags = {client.get(f"{here}/{path}").headers["ETag"] for path in paths}
    assert len(etags) == len(paths)


def test_a_download_is_named_after_what_it_is(client: FlaskClient, here: str) -> None:
    job_id = here.rsplit("/", 1)[1]
    for path, name in (
        ("content?", "content.png"),
        ("content?size=128&", "content-128.jpg"),
        ("styles/0?", "style-0.png"),
        ("result?", f"stylequeue-{job_id}.png"),
        ("result?size=256&", f"stylequeue-{job_id}-256.jpg"),
        ("snapshots/50?", f"stylequeue-{job_id}-50.png"),
    ):
        shown = client.get(f"{here}/{path}").headers["Content-Disposition"]
        assert shown == f"inline; filename={name}"
        taken = client.get(f"{here}/{path}download=1").headers["Content-Disposition"]
        assert taken == f"attachment; filename={name}"


@pytest.mark.parametrize(
    ("result_format", "encode", "suffix", "media_type"),
    [
        ("png16", deep.encode_png, ".png", "image/png"),
        ("tiff16", deep.encode_tiff, ".tif", "image/tiff"),
    ],
)
def test_a_result_of_sixteen_bits_is_sent_as_it_is_and_shown_as_a_jpeg(
    client: FlaskClient,
    submit: Submit,
    worker: Worker,
    store: Store,
    result_format: str,
    encode: Callable[..., bytes],
    suffix: str,
    media_type: str,
) -> None:
    job = submit(settings={"result_format": result_format})
    claim = worker.claim()
    worker.succeed(claim)
    clear = np.zeros((400, 600, 4), np.uint16)
    clear[:, :300] = 65535
    file = encode(clear, {"Software": "StyleQueue"})
    store.put(result_key(claim.job_id, claim.attempt, suffix), file)
    here = job["links"]["self"]
    result = client.get(here).get_json()["result"]
    assert result["media_type"] == media_type
    whole = client.get(result["url"])
    assert (whole.mimetype, whole.data) == (media_type, file)
    name = f"stylequeue-{claim.job_id}{suffix}"
    assert whole.headers["Content-Disposition"] == f"inline; filename={name}"
    for size in (128, 512):
        small = client.get(f"{here}/result?size={size}")
        assert small.mimetype == "image/jpeg"
        with Image.open(BytesIO(small.data)) as image:
            assert image.width == size
            # Over white, as uploads are.
            assert min(image.convert("L").getextrema()) >= 254


def test_asked_for_a_part_the_whole_picture_is_sent(
    client: FlaskClient, here: str
) -> None:
    whole = client.get(f"{here}/result")
    for part in ("bytes=0-99", "bytes=-5", "bytes=9999999-", "bytes=5-2", "x", ""):
        answer = client.get(f"{here}/result", headers={"Range": part})
        assert (answer.status_code, answer.data) == (200, whole.data)
        assert int(answer.headers["Content-Length"]) == len(whole.data)
        # Nor is anything else promised.
        assert answer.headers.get("Accept-Ranges", "none") == "none"


@pytest.mark.parametrize("installation", ["bucket"], indirect=True)
def test_a_large_picture_is_sent_piece_by_piece(
    client: FlaskClient, here: str, kept: Kept, store: Store
) -> None:
    (key,) = (key for key in kept.files() if key.endswith("result.png"))
    size = 40_000_000
    store.put(key, bytes(size))
    tracemalloc.start()
    try:
        answer = client.get(f"{here}/result", buffered=False)
        assert answer.content_length == size
        assert sum(len(piece) for piece in answer.iter_encoded()) == size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        answer.close()
    assert peak < size / 4


@pytest.mark.parametrize("installation", ["bucket"], indirect=True)
def test_what_nobody_reads_is_not_asked_of_the_store(
    client: FlaskClient, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = client.get(f"{here}/result").headers["ETag"]
    monkeypatch.delattr(S3Store, "open")
    assert client.head(f"{here}/result").status_code == 200
    again = client.get(f"{here}/result", headers={"If-None-Match": etag})
    assert again.status_code == 304


@pytest.mark.parametrize("installation", ["bucket"], indirect=True)
def test_a_store_that_is_away_is_said_without_its_address(
    client: FlaskClient, here: str, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    ours = app.extensions[NAME]
    away = open_store(ours.settings.store_url)
    monkeypatch.setitem(app.extensions, NAME, replace(ours, store=away))
    answer = client.get(f"{here}/result")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "machine")
    assert "Retry-After" in answer.headers
    assert "127.0.0.1" not in answer.text
