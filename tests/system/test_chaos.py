"""The short form of `bench.chaos`: each kind of blow once, on two workers."""

from pathlib import Path

import pytest

from bench.chaos import disturb, rows

SHALLOW = {"content_layers": ["conv1_1"], "style_layers": ["conv1_1", "conv2_1"]}
KINDS = (
    {"image_size": 96, "steps": 300, "snapshot_every": 150, **SHALLOW},
    {"image_size": 96, "steps": 300, "init": "noise", "optimizer": "adam", **SHALLOW},
)
# By its order of blows nothing is done to workers for a while after one was stopped: it
# wakes up when another has taken its job. Without the guard of what workers write, jobs
# end twice then.
SEED = 256


@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_stuck_or_painted_otherwise_whatever_breaks(
    tmp_path: Path,
) -> None:
    outcome = disturb(
        *(tmp_path, 3, 2), seed=SEED, pause=4, kinds=KINDS, once=True, say=print
    )
    assert outcome.is_clean, rows(outcome)
    assert outcome.states == {"succeeded": outcome.jobs}
    # It was a test: attempts were ended, and taken up again.
    assert outcome.lost_steps
