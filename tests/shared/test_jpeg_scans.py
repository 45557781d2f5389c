import time
from pathlib import Path

import pytest
from PIL import Image

from stylequeue_shared import decoding
from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.jpeg_scans import MAX_SCANS, count_scans
from tests.shared.pictures import colourful, exif, saved

PROGRESSIVE = saved(colourful(), "JPEG", progressive=True)
END = b"\xff\xd9"


def last_scan(data: bytes) -> bytes:
    """Return the last scan of a JPEG, which refines what the ones before have told."""
    return data[data.rindex(b"\xff\xda") : -len(END)]


def of_scans(count: int) -> bytes:
    """Return a JPEG of that many scans, the last of them over and over."""
    more = count - PROGRESSIVE.count(b"\xff\xda")
    return PROGRESSIVE[: -len(END)] + last_scan(PROGRESSIVE) * more + END


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    return tmp_path / "upload"


@pytest.mark.parametrize(
    ("data", "scans"),
    [
        (b"", 0),
        (saved(colourful(), "PNG"), 0),
        (saved(colourful(), "JPEG"), 1),
        (saved(Image.effect_noise((300, 200), 90), "JPEG", quality=95), 1),
        (saved(colourful(), "JPEG", restart_marker_blocks=1), 1),
        (PROGRESSIVE, 10),
        (saved(colourful(), "JPEG", progressive=True, exif=exif()), 10),
        (PROGRESSIVE[:-3], 10),
        (PROGRESSIVE + PROGRESSIVE, 10),
        (PROGRESSIVE[:2] + b"\xff\xff\xff" + PROGRESSIVE[2:], 10),
        (of_scans(3000), 3000),
    ],
)
def test_the_scans_of_the_first_picture_are_counted(
    upload: Path, data: bytes, scans: int
) -> None:
    upload.write_bytes(data)
    assert count_scans(upload) == scans


def test_a_scan_inside_a_segment_is_none(upload: Path) -> None:
    thumbnail = PROGRESSIVE[2:-2]
    length = (len(thumbnail) + 2).to_bytes(2, "big")
    data = PROGRESSIVE[:2] + b"\xff\xe5" + length + thumbnail + PROGRESSIVE[2:]
    upload.write_bytes(data)
    assert count_scans(upload) == 10


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\x00", b"\x00\xff\xff"])
def test_counting_takes_one_pass_over_any_file(upload: Path, filling: bytes) -> None:
    upload.write_bytes(PROGRESSIVE[:-2] + filling * (20_000_000 // len(filling)))
    start = time.monotonic()
    assert count_scans(upload) == 10
    assert time.monotonic() - start < 10  # backtracking would take hours


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(upload: Path) -> None:
    limits = {"max_bytes": 10**7, "max_pixels": 50_000_000}
    upload.write_bytes(of_scans(MAX_SCANS))
    assert decoding.inspect(upload, field="content", **limits).width == 48
    upload.write_bytes(of_scans(MAX_SCANS + 1))
    with pytest.raises(InvalidPicture) as refused:
        decoding.inspect(upload, field="content", **limits)
    assert refused.value.message == (
        "content: found a JPEG picture of 101 scans; allowed are at most 100"
    )
