from pathlib import Path

import pytest

from stylequeue_shared import artefacts
from stylequeue_shared.artefacts import (
    PREVIEW_SIZE,
    RENDITION_SIZES,
    clean_key,
    job_prefix,
    media_type,
    original_key,
    rendition_key,
    result_key,
    snapshot_key,
)
from stylequeue_shared.store import KEY, Store, open_store

JOB = "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
OTHER = JOB[:-1] + "c"
SHA = "ab" + "0" * 62
OF_JOB = [snapshot_key(JOB, 1, 50), result_key(JOB, 1), result_key(JOB, 1, ".tif")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def test_no_two_attempts_share_a_file() -> None:
    keys = [
        key
        for job_id in (JOB, OTHER)
        for attempt in (1, 2, 11)
        for key in (
            result_key(job_id, attempt),
            *(snapshot_key(job_id, attempt, step) for step in (1, 11, 50)),
        )
    ]
    assert len(set(keys)) == len(keys)


def test_all_keys_of_a_job_lie_under_its_prefix() -> None:
    assert all(key.startswith(job_prefix(JOB)) for key in OF_JOB)
    assert not any(key.startswith(job_prefix(OTHER)) for key in OF_JOB)
    # Else deleting one job would delete another whose id begins alike.
    assert job_prefix(JOB).endswith("/")


@pytest.mark.parametrize("key", [*OF_JOB, original_key(SHA)])
def test_the_store_takes_every_key(key: str) -> None:
    sizes = (rendition_key(key, size) for size in RENDITION_SIZES)
    for made in (key, clean_key(key), *sizes):
        assert KEY.fullmatch(made)
        assert len(made) <= 200  # the column of the table


@pytest.mark.parametrize("key", OF_JOB)
def test_what_is_made_of_a_job_s_picture_is_found_by_the_job_s_prefix(
    store: Store, key: str
) -> None:
    assert rendition_key(key, 128).startswith(f"renditions/{job_prefix(JOB)}")
    kept = rendition_key(key.replace(JOB, OTHER), 128)
    for made in (key, kept, rendition_key(key, 128), clean_key(key)):
        store.put(made, b"a picture")
    for prefix in (job_prefix(JOB), f"renditions/{job_prefix(JOB)}"):
        store.delete_prefix(prefix)
    assert list(store.keys()) == [kept]


def test_no_two_renditions_share_a_file() -> None:
    keys = [rendition_key(key, size) for key in OF_JOB for size in RENDITION_SIZES]
    keys += [clean_key(key) for key in OF_JOB]
    assert len({*keys, *OF_JOB}) == len(keys) + len(OF_JOB)


def test_snapshots_sort_by_their_step() -> None:
    keys = [snapshot_key(JOB, 1, step) for step in (1, 9, 10, 700, 5000, 100_000)]
    assert keys == sorted(keys)


def test_an_original_is_found_by_its_digest() -> None:
    assert original_key(SHA) == f"pictures/ab/{SHA}"
    assert not original_key(SHA).startswith("renditions/")


def test_a_key_tells_what_kind_of_picture_it_names() -> None:
    kinds = {
        snapshot_key(JOB, 1, 50): "image/png",
        result_key(JOB, 1): "image/png",
        result_key(JOB, 1, ".tif"): "image/tiff",
        rendition_key(result_key(JOB, 1, ".tif"), 512): "image/jpeg",
        clean_key(original_key(SHA)): "image/png",
    }
    assert {key: media_type(key) for key in kinds} == kinds


def test_the_preview_is_one_of_the_renditions() -> None:
    assert PREVIEW_SIZE in RENDITION_SIZES
    assert tuple(sorted(set(RENDITION_SIZES))) == artefacts.RENDITION_SIZES
