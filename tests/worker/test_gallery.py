import io
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import tifffile
from PIL import Image
from sqlalchemy import update

from stylequeue_shared import jobs
from stylequeue_shared.artefacts import (
    PREVIEW_SIZE,
    rendition_key,
)
from stylequeue_shared.database import Database
from stylequeue_shared.errors import NumericalError
from stylequeue_shared.models import Job
from stylequeue_worker.engine.transfer import Step
from tests.shared.pictures import saved
from tests.worker.submitting import submit_bytes
from tests.worker.workbench import Bench


def test_the_picture_says_how_it_was_made(bench: Bench) -> None:
    job = bench.submit(seed=11)
    bench.runner.run_next()
    png = Image.open(io.BytesIO(bench.store.get(bench.row(job).result_key)))
    text = {str(name): str(value) for name, value in png.info.items()}
    assert json.loads(text["settings"]) == bench.row(job).settings
    assert text["seed"] == "11"
    assert text["weights"] == "abc"
    assert text["Software"] == "StyleQueue 1.2"


def clear_picture() -> bytes:
    return saved(Image.new("RGBA", (64, 48), (0, 0, 0, 51)), "PNG")


def test_the_content_s_alpha_is_kept_on_request(bench: Bench) -> None:
    uploads = clear_picture(), clear_picture()
    seen = []
    paint = bench.engine.paint

    def look(
        content: Image.Image, styles: Sequence[Image.Image], *others: Any, **more: Any
    ) -> Iterator[Step]:
        seen.append((content, *styles))
        return paint(content, styles, *others, **more)

    bench.engine.paint = look  # type: ignore[method-assign]
    job = submit_bytes(bench.database, bench.store, *uploads, keep_alpha=True)
    bench.runner.run_next()
    assert [picture.mode for picture in seen[0]] == ["RGBA", "RGB"]
    for row in (bench.row(job).result_key, bench.snapshots(job)[0].key):
        with Image.open(io.BytesIO(bench.store.get(row))) as picture:
            assert picture.getpixel((5, 5)) == (128, 128, 128, 51)
        # A preview has none: grey at a fifth over white.
        with Image.open(io.BytesIO(bench.store.get(rendition_key(row, 512)))) as small:
            assert small.getpixel((5, 5)) == (230, 230, 230)
    plain = submit_bytes(bench.database, bench.store, *uploads)
    bench.runner.run_next()
    with Image.open(io.BytesIO(bench.store.get(bench.row(plain).result_key))) as flat:
        assert flat.mode == "RGB"


def test_the_last_snapshot_is_the_result_and_no_second_file(bench: Bench) -> None:
    job = bench.submit(steps=4, snapshot_every=2)
    bench.runner.run_next()
    assert [shot.step for shot in bench.snapshots(job)] == [2, 4]
    assert bench.snapshots(job)[-1].key == bench.row(job).result_key
    files = [key for key in bench.store.keys(f"jobs/{job}/") if key.endswith(".png")]
    assert len(files) == 2


@pytest.mark.parametrize(
    ("name", "suffix", "kind"), [("png16", ".png", "PNG"), ("tiff16", ".tif", "TIFF")]
)
def test_a_result_of_sixteen_bits_stands_beside_snapshots_and_preview_of_eight(
    bench: Bench, name: str, suffix: str, kind: str
) -> None:
    job = bench.submit(steps=4, snapshot_every=2, result_format=name)
    bench.runner.run_next()
    row, snapshots = bench.row(job), bench.snapshots(job)
    assert (row.state, row.result_width, row.result_height) == ("succeeded", 64, 48)
    assert row.result_key.endswith(f"result{suffix}")
    data = bench.store.get(row.result_key)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == kind
    if kind == "PNG":
        assert data[24] == 16  # the depth in its header
    else:
        assert tifffile.imread(io.BytesIO(data)).dtype == "uint16"
    assert bench.store.exists(rendition_key(row.result_key, PREVIEW_SIZE))
    # The result is no snapshot here: the last one has a file of its own.
    assert [shot.step for shot in snapshots] == [2, 4]
    for shot in snapshots:
        assert bench.store.get(shot.key)[24] == 8
        assert bench.store.exists(rendition_key(shot.key, PREVIEW_SIZE))


def test_what_is_left_of_a_job_that_fails_has_the_format_it_asked_for(
    bench: Bench,
) -> None:
    def explode() -> None:
        raise NumericalError("step 3: the style loss is not finite (nan)")

    job = bench.submit(steps=4, snapshot_every=4, result_format="tiff16")
    bench.engine.at[3] = explode
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.result_partial) == ("failed", True)
    with Image.open(io.BytesIO(bench.store.get(row.result_key))) as picture:
        assert picture.format == "TIFF"


def test_a_file_is_there_before_a_row_names_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    add_snapshot = jobs.add_snapshot

    def look(db: Database, held: jobs.Claim, key: str, **more: Any) -> None:
        seen.append(bench.store.exists(key))
        seen.append(bench.store.exists(rendition_key(key, 512)))
        add_snapshot(db, held, key, **more)

    monkeypatch.setattr(jobs, "add_snapshot", look)
    bench.submit(steps=5, snapshot_every=2)
    bench.runner.run_next()
    assert seen == [True] * 4


def test_a_job_that_fails_on_the_way_shows_its_newest_picture(bench: Bench) -> None:
    def explode() -> None:
        raise NumericalError("step 3: the style loss is not finite (nan)")

    job = bench.submit(steps=4, snapshot_every=4)
    bench.engine.at[3] = explode
    bench.runner.run_next()
    row = bench.row(job)
    assert (row.state, row.result_partial) == ("failed", True)
    assert (row.result_width, row.result_height) == (64, 48)
    with Image.open(io.BytesIO(bench.store.get(row.result_key))) as picture:
        assert picture.size == (64, 48)
    assert bench.store.exists(rendition_key(row.result_key, PREVIEW_SIZE))


def test_a_job_that_fails_before_its_first_step_shows_none(bench: Bench) -> None:
    def explode() -> None:
        raise NumericalError("step 1: the style loss is not finite (nan)")

    job = bench.submit()
    bench.engine.at[1] = explode
    bench.runner.run_next()
    assert bench.row(job).state == "failed"
    assert bench.row(job).result_key is None


def test_a_snapshot_that_cannot_be_stored_is_dropped(bench: Bench) -> None:
    job = bench.submit(steps=5, snapshot_every=2)
    bench.store.refuses = lambda key: "snapshot" in key
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
    assert bench.snapshots(job) == []


def test_on_a_gpu_steps_go_on_while_a_snapshot_is_stored(bench: Bench) -> None:
    stored = threading.Event()

    def hold_up(key: str) -> bool:
        if "snapshot" in key:
            assert stored.wait(10)
        return False

    bench.engine.on_gpu = True
    bench.store.refuses = hold_up
    # Before the second snapshot, which waits for the first.
    bench.engine.at[4] = stored.set
    job = bench.submit(steps=7, snapshot_every=2)
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
    assert [shot.step for shot in bench.snapshots(job)] == [2, 4, 6]


def test_on_a_gpu_a_snapshot_of_a_lost_job_ends_the_attempt(bench: Bench) -> None:
    def lose(key: str) -> bool:
        if "snapshot" in key:
            with bench.database.write() as connection:
                connection.execute(update(Job).values(attempt=99))
        return False

    bench.engine.on_gpu = True
    bench.store.refuses = lose
    bench.engine.step_seconds = 0.05
    job = bench.submit(steps=500, snapshot_every=5)
    bench.runner.run_next()
    assert bench.row(job).state == "running"
    assert bench.snapshots(job) == []
    assert len(bench.engine.painted) < 50


def test_a_result_that_cannot_be_stored_fails_the_job(bench: Bench) -> None:
    job = bench.submit()
    bench.store.refuses = lambda key: "result" in key
    bench.run_until_it_fails(job)
    row = bench.row(job)
    assert (row.state, row.error_code, row.error_fault) == (
        "failed",
        "disk_full",
        "machine",
    )
    assert row.result_key is None


def test_a_result_is_stored_at_the_second_try(bench: Bench) -> None:
    job = bench.submit()
    refusals = iter([True])
    bench.store.refuses = lambda key: "result" in key and next(refusals, False)
    bench.runner.run_next()
    assert bench.row(job).state == "succeeded"
