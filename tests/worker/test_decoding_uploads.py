"""How a job's pictures are read: in a process of their own, as the web reads them."""

import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from stylequeue_shared import decoding, images
from stylequeue_shared.artefacts import original_key
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.settings import Settings
from stylequeue_worker import attempt, render
from tests.shared.pictures import colourful, saved
from tests.shared.test_jpeg_scans import of_scans
from tests.worker.submitting import picture, submit_bytes
from tests.worker.workbench import Bench

CLEAR = colourful(64, 48)
CLEAR.putalpha(Image.linear_gradient("L").resize(CLEAR.size))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> list[Image.Image]:
    """Have uploads decoded as they really are, and note what came of them."""
    seen: list[Image.Image] = []

    def note(*given: Path, **options: object) -> Image.Image:
        seen.append(decoding.decode(*given, **options))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(attempt, "decode", note)
    return seen


def refuse(*given: object, **options: object) -> None:
    raise AssertionError("an upload is decoded in the worker's own process")


def test_a_worker_decodes_uploads_in_another_process(
    bench: Bench, decoded: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = [saved(CLEAR, "PNG"), picture(2), picture(3)]
    right = [images.decode(upload) for upload in uploads]
    monkeypatch.setattr(images, "decode", refuse)
    monkeypatch.setattr(images, "read", refuse)
    job = submit_bytes(bench.database, bench.store, *uploads)
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
    assert [one.tobytes() for one in decoded] == [one.tobytes() for one in right]


def test_alpha_is_kept_of_the_content_only(
    bench: Bench, decoded: list[Image.Image]
) -> None:
    clear = saved(CLEAR, "PNG")
    submit_bytes(bench.database, bench.store, clear, clear, keep_alpha=True)
    bench.runner.run_next()
    assert [one.mode for one in decoded] == ["RGBA", "RGB"]


@pytest.mark.usefixtures("decoded")
def test_an_upload_that_the_decoder_refuses_fails_its_job_as_the_users_fault(
    bench: Bench,
) -> None:
    job = submit_bytes(
        *(bench.database, bench.store, picture(1), picture(2), of_scans(101))
    )
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.error_fault, row.error_code) == (
        *("failed", "user", "invalid_picture"),
    )
    assert row.error_message.startswith("style[1]: found a JPEG picture of 101 scans")


@pytest.mark.usefixtures("decoded")
def test_a_decoder_killed_from_outside_sends_the_job_to_another_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    monkeypatch.setattr(decoding, "COMMAND", [sys.executable, "-I", "-c", code])
    job = bench.submit()
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.faults, row.avoids) == ("queued", 1, "the-worker")


def test_an_upload_that_is_gone_is_the_machines_fault(bench: Bench) -> None:
    job = bench.submit()
    bench.store.delete(original_key(bench.row(job).content_sha))
    bench.runner.run_next()
    assert (bench.row(job).state, bench.row(job).faults) == ("queued", 1)


def test_render_decodes_in_another_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, style = tmp_path / "content", tmp_path / "style"
    content.write_bytes(saved(CLEAR, "PNG"))
    style.write_bytes(picture(2))
    right = images.decode(content, keep_alpha=True), images.decode(style)
    monkeypatch.setattr(images, "decode", refuse)
    monkeypatch.setattr(images, "read", refuse)
    job = complete_settings({"keep_alpha": True, "image_size": 64}, styles=1)
    got = render._read(Settings(home=tmp_path), job, content, [style])
    assert [one.tobytes() for one in got] == [one.tobytes() for one in right]
