"""A temporary folder that is full, and whatever else the machine lacks, is a 503."""

import errno
import os
import sys
import tempfile
from io import BufferedRandom
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from stylequeue_web import renditions, submissions, uploads
from tests.shared.pictures import colourful, saved
from tests.web.conftest import CONTENT, JOBS, Kept, form
from tests.web.test_pages import token
from tests.web.test_uploads import MULTIPART, whole

LARGE = saved(colourful(900, 700), "BMP")
FULL = "/dev/full"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has a device that is always full"
)


def full_file(*given: Any, **options: Any) -> BufferedRandom:
    """Open a file in which there is no room, in the place of a temporary one."""
    return Path(FULL).open("w+b")


class FullFolder:
    """A temporary folder in which there is room for names only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, **options: str) -> "FullFolder":
        return self

    def __enter__(self) -> str:
        for number in range(9):
            (self._folder / str(number)).symlink_to(FULL)
        return str(self._folder)

    def __exit__(self, *error: object) -> None:
        for number in range(9):
            (self._folder / str(number)).unlink()


def no_folder(*given: Any, **options: Any) -> None:
    """Fail as Python does when it can write to none of the temporary folders."""
    said = "No usable temporary directory found in ['/tmp', '/var/tmp']"
    raise FileNotFoundError(errno.ENOENT, said)


def fails(number: int) -> Any:
    def fail(*given: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def is_refused(
    client: FlaskClient, kept: Kept, code: str, *says: str, picture: bytes = LARGE
) -> None:
    """Submit through the API and the form; both must name the cause."""
    for path in (JOBS, "/"):
        given = {"data": whole(picture), "content_type": MULTIPART}
        if path == "/":
            given["headers"] = {"X-CSRFToken": token(client)}
        answer = client.post(path, **given)
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) > 0
        assert all(word in answer.text for word in says)
        assert path == "/" or answer.get_json()["code"] == code
        assert kept.is_nothing()


@pytest.mark.parametrize("picture", [CONTENT, LARGE], ids=["small", "large"])
def test_no_room_for_the_body_is_told_as_a_full_temporary_folder(
    client: FlaskClient, kept: Kept, monkeypatch: pytest.MonkeyPatch, picture: bytes
) -> None:
    # What a spooled file takes when it becomes too large for the memory. The small
    # picture stays in its buffer, so that closing the file fails as well.
    monkeypatch.setattr(tempfile, "TemporaryFile", full_file)
    monkeypatch.setattr(uploads, "IN_MEMORY_BYTES", 10)
    is_refused(client, kept, "disk_full", "folder is full", picture=picture)


def test_no_room_for_a_copy_is_told_as_a_full_temporary_folder(
    client: FlaskClient, kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(submissions, "TemporaryDirectory", FullFolder(tmp_path))
    answer = client.post(JOBS, data=form())
    assert (answer.status_code, answer.get_json()["code"]) == (503, "disk_full")
    assert kept.is_nothing()


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (no_folder, "cannot write to its temporary folder"),
        (fails(errno.EROFS), "cannot write to its temporary folder"),
        (fails(errno.EMFILE), "has no more file handles"),
        (fails(errno.EIO), "cannot read or write its disk"),
    ],
)
def test_a_temporary_folder_that_cannot_be_used_is_the_machines_fault(
    client: FlaskClient,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
    failure: Any,
    says: str,
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", failure)
    is_refused(client, kept, "machine", says, "try again later")


def test_too_little_memory_is_the_machines_fault(
    client: FlaskClient, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(uploads, "CappedFile", fail)
    answer = client.post(JOBS, data=form())
    assert (answer.status_code, answer.get_json()["code"]) == (503, "machine")
    assert "memory" in answer.get_json()["detail"]


def test_an_error_of_ours_that_looks_like_the_systems_stays_one_of_ours(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submissions, "inspect", fails(errno.ENOTDIR))
    answer = client.post(JOBS, data=form())
    assert (answer.status_code, answer.get_json()["code"]) == (500, "internal")


def test_no_room_for_a_rendition_is_told_as_a_full_temporary_folder(
    client: FlaskClient, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = client.post(JOBS, data=form()).get_json()["links"]["self"]
    files = kept.files()

    class Full:
        name = FULL

        def __init__(self, **options: str) -> None: ...

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(renditions, "NamedTemporaryFile", Full)
    for path in (f"{here}/content", f"{here}/content?size=128"):
        answer = client.get(path)
        assert (answer.status_code, answer.get_json()["code"]) == (503, "disk_full")
        assert "temporary folder" in answer.get_json()["detail"]
    assert kept.files() == files
