"""The same job gives the same picture, bit for bit."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylequeue_shared import plans
from stylequeue_worker.engine.transfer import transfer
from tests.worker.engine.tiny import picture, settings, tiny_network

WAYS = {
    "float32": {"steps": 12},
    "mixed": {"steps": 12, "precision": "mixed"},
    "preconditioned": {"steps": 12, "preconditioner": "frequency"},
    "adam": {"steps": 12, "optimizer": "adam", "pooling": "average"},
    "scales": {"steps": 12, "scales": 2, "precision": "mixed", "tv_weight": 10.0},
}


def painted(way):
    """Return the picture and losses of a run as text of a fixed length."""
    job = settings(**WAYS[way])
    content, style = picture(130, 129, 1), picture(64, 90, 2)
    digest = hashlib.sha256()
    for step in transfer(tiny_network(), content, [style], job, fast_low=True):
        digest.update(step.image.numpy().tobytes())
        digest.update(repr((step.style_loss, step.content_loss, step.tv_loss)).encode())
    return digest.hexdigest()


@pytest.fixture(params=["one band", "many bands"])
def bands(request, monkeypatch):
    if request.param == "many bands":
        monkeypatch.setattr(plans, "BAND_PIXELS", 2048)


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_gives_the_same_picture_bit_for_bit(way):
    assert painted(way) == painted(way)


def test_a_fresh_process_gives_the_same_picture_bit_for_bit():
    code = (
        "import torch; torch.set_num_threads(int(__import__('sys').argv[1])); "
        "from tests.worker.engine.test_determinism import painted; "
        "print(painted('scales'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(torch.get_num_threads())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == painted("scales")
