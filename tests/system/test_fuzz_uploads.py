"""The short form of `bench.fuzz_uploads`: some mutations of every format."""

from pathlib import Path

from bench.fuzz_uploads import drawn_samples, fuzz, rows

UPLOADS = 60


def test_no_mutated_picture_gets_a_5xx_or_ends_a_process(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, drawn_samples(), UPLOADS, seed=1)
    assert outcome.is_clean, (rows(outcome), outcome.failed)
    # Some mutations leave a picture that can be read; most do not.
    assert set(outcome.statuses) == {201, 422}
    assert set(outcome.renditions) == {200}
