"""Runs through several sizes and precisions."""

import math

import pytest
import torch

from stylequeue_shared.phases import phases
from stylequeue_worker.engine import transfer as transfers
from stylequeue_worker.engine.network import LossNetwork
from stylequeue_worker.engine.optimizers import FIRST_RADIUS
from stylequeue_worker.engine.transfer import transfer
from tests.worker.engine.tiny import picture, settings, tiny_network

DEEP = {"content_layers": ["relu4_2"], "style_layers": ["relu1_1", "relu5_1"]}


@pytest.fixture(scope="module")
def network():
    return tiny_network()


def run(network, given, size, style=(70, 90), fast_low=False):
    content = picture(*size, 1)
    return transfer(
        network, content, [picture(*style, 2)], settings(**given), fast_low=fast_low
    )


@pytest.mark.parametrize(
    ("scales", "size", "expected"),
    [
        (2, (129, 141), {(64, 70): 8, (129, 141): 4}),
        (3, (259, 263), {(64, 65): 6, (129, 131): 4, (259, 263): 2}),
        # Too small for a third, and for a second.
        (3, (131, 257), {(65, 128): 8, (131, 257): 4}),
        (2, (127, 150), {(127, 150): 12}),
    ],
)
def test_a_run_goes_from_coarse_to_fine(network, scales, size, expected):
    steps = list(run(network, {"steps": 12, "scales": scales, **DEEP}, size))
    assert [step.number for step in steps] == list(range(1, 13))
    sizes = [tuple(step.image.shape[-2:]) for step in steps]
    assert {one: sizes.count(one) for one in dict.fromkeys(sizes)} == expected
    assert all(step.best.shape == step.image.shape for step in steps)
    assert all(math.isfinite(step.loss) for step in steps)
    assert [step.stop_reason for step in steps] == [None] * 11 + ["completed"]


def test_a_scale_begins_with_the_picture_of_the_one_before(network):
    steps = list(run(network, {"steps": 12, "scales": 2}, (140, 128)))
    coarse, fine = steps[7].image, steps[8].image
    assert coarse.shape != fine.shape
    start = transfers.resized(coarse, fine.shape[-2:])
    assert (fine - start).square().mean().sqrt() <= 1.001 * FIRST_RADIUS


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_of_many_scales_still_end_at_the_full_size(network, steps):
    *_, last = run(network, {"steps": steps, "scales": 3}, (256, 260))
    assert last.image.shape[-2:] == (256, 260)
    assert (last.number, last.stop_reason) == (steps, "completed")


@pytest.mark.parametrize("style", [(16, 300), (300, 31), (16, 16)])
def test_a_style_that_is_thinner_than_the_content_is_shrunk_less(network, style):
    steps = list(run(network, {"steps": 6, "scales": 3, **DEEP}, (256, 256), style))
    assert all(math.isfinite(step.loss) for step in steps)


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 24, "scales": 1},
        {"steps": 24, "scales": 2, "precision": "mixed"},
        {"steps": 24, "scales": 2, "optimizer": "adam"},
    ],
)
def test_what_is_left_falls_to_nothing(network, given):
    steps = list(run(network, given, (130, 128), fast_low=True))
    left = [step.left for step in steps]
    assert left == sorted(set(left), reverse=True)
    assert left[-1] == 0


def test_what_is_left_is_counted_in_steps_of_the_size_at_hand(network):
    steps = list(run(network, {"steps": 12, "scales": 2}, (128, 128)))
    assert [step.left for step in steps] == [
        *(7 + 16, 6 + 16, 5 + 16, 4 + 16, 3 + 16, 2 + 16, 1 + 16, 0 + 16),
        *(3, 2, 1, 0),
    ]


SMALL = (40, 33)


def test_mixed_precision_is_float32_where_the_device_is_not_fast_in_the_lower(network):
    plain, mixed = (
        list(run(network, {"steps": 10, "precision": one}, SMALL))
        for one in ("float32", "mixed")
    )
    for ours, theirs in zip(mixed, plain, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert ours.loss == theirs.loss


def test_of_mixed_precision_the_first_steps_are_lower_and_the_last_are_not(
    network, monkeypatch
):
    used = []
    build = transfers.Objective
    monkeypatch.setattr(
        transfers,
        "Objective",
        lambda network, *given: used.append(network.dtype) or build(network, *given),
    )
    steps = run(network, {"steps": 10, "precision": "mixed"}, SMALL, fast_low=True)
    precisions = [(step.image.dtype, used[-1]) for step in steps]
    assert precisions == [
        *[(torch.float32, torch.bfloat16)] * 8,
        *[(torch.float32, torch.float32)] * 2,
    ]
    assert len(used) == 2


def test_mixed_precision_gets_about_as_far_as_float32(network):
    given = {"steps": 60, "init": "content", "content_weight": 1e4}
    plain, mixed = (
        list(run(network, {**given, "precision": one}, SMALL, fast_low=True))
        for one in ("float32", "mixed")
    )
    assert mixed[0].loss == pytest.approx(plain[0].loss, rel=0.02)
    assert mixed[0].loss != plain[0].loss
    assert mixed[-1].loss < 1.5 * plain[-1].loss < 0.5 * plain[0].loss


def test_losses_of_two_precisions_are_not_compared(network, monkeypatch):
    # As if bfloat16 had found losses that float32 can never reach.
    lowered = LossNetwork.lowered
    monkeypatch.setattr(
        LossNetwork, "lowered", lambda self: halved(lowered(self), self.mean)
    )
    given = {"steps": 20, "precision": "mixed"}
    steps = list(run(network, given, SMALL, fast_low=True))
    assert steps[15].loss < 0.5 * steps[16].loss
    assert torch.equal(steps[16].best, steps[15].image)
    lowest = min(steps[16:], key=lambda step: step.loss).number
    assert torch.equal(steps[-1].best, steps[lowest - 2].image)
    remembered = steps[-1].state().tensors["optimizer.best.loss"]
    assert float(remembered) == steps[lowest - 1].loss


def halved(network, mean):
    layers = network.up_to(["conv5_4"])
    return LossNetwork([(0.9 * one.weight, 0.9 * one.bias) for one in layers], mean)


@pytest.mark.parametrize("fast_low", [True, False])
def test_each_step_is_of_its_phases_size(network, fast_low):
    given = {"steps": 30, "scales": 2, "precision": "mixed"}
    steps = list(run(network, given, (130, 129), fast_low=fast_low))
    expected = phases(settings(**given), (129, 130), fast_low)
    sizes = [step.image.shape[-1] for step in steps]
    for phase in expected:
        assert set(sizes[phase.first - 1 : phase.last]) == {129 // phase.shrunk}
