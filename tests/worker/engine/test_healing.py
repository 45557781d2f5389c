"""A run goes on from what goes wrong on its way."""

import math

import pytest
import torch

from stylequeue_shared import plans
from stylequeue_shared.errors import NothingFits, NumericalError
from stylequeue_shared.plans import (
    HISTORY_AT_LEAST,
    HISTORY_AT_MOST,
    MB,
    Plan,
    peak_bytes,
)
from stylequeue_worker.engine import watch
from stylequeue_worker.engine.bands import Forward
from stylequeue_worker.engine.objective import Losses, Objective
from stylequeue_worker.engine.optimizers import (
    FIRST_RADIUS,
    LBFGS,
    SHRINKAGE,
    Adam,
)
from stylequeue_worker.engine.transfer import ran_out_of_memory, transfer
from tests.worker.engine.tiny import picture, settings, tiny_network

CONTENT, STYLE = picture(40, 32, 1), picture(32, 48, 2)
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def network():
    return tiny_network()


def run(network, given, content=CONTENT, style=STYLE, **more):
    return transfer(network, content, [style], settings(**given), **more)


def evaluations(monkeypatch, change, wanted=lambda number: True):
    """Have `change` replace what the evaluations of wanted numbers, from 1, return."""
    evaluate, numbers = Objective.gradient, []

    def changed(objective, image):
        numbers.append(len(numbers) + 1)
        found = evaluate(objective, image)
        return change(*found) if wanted(numbers[-1]) else found

    monkeypatch.setattr(Objective, "gradient", changed)
    return numbers


def style_of(value):
    return lambda losses, gradient: (
        losses._replace(style=torch.full_like(losses.style, value)),
        gradient,
    )


def gradient_of(value):
    def change(losses, gradient):
        gradient[0, 1, 5, 7] = value
        return losses, gradient

    return change


BAD = {
    "nan loss": style_of(NAN),
    "infinite loss": style_of(INF),
    "nan in the gradient": gradient_of(NAN),
    "infinity in the gradient": gradient_of(-INF),
}


def pairs(step):
    return [name for name in step.state().tensors if name.endswith(".rho")]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("times", [1, 3])
def test_what_is_not_finite_is_left_behind(network, monkeypatch, bad, times):
    evaluations(monkeypatch, BAD[bad], lambda number: 8 <= number < 8 + times)
    steps = list(run(network, {"steps": 20}))
    assert [step.number for step in steps] == list(range(1, 21))
    assert all(math.isfinite(step.loss) for step in steps)
    good = min(steps[:7], key=lambda step: step.loss)
    for step in steps[7 : 7 + times]:
        # The best picture, its losses, and nothing else that was learnt.
        assert torch.equal(step.image, step.best)
        assert (step.style_loss, step.content_loss) == (
            good.style_loss,
            good.content_loss,
        )
    again = steps[7 + times]
    assert again.loss == good.loss
    moved = (again.image - again.best).square().mean().sqrt()
    assert 0 < moved <= 1.001 * FIRST_RADIUS * SHRINKAGE**times
    assert steps[-1].loss < good.loss
    assert steps[-1].stop_reason == "completed"


def test_after_what_is_not_finite_the_history_is_empty(network, monkeypatch):
    evaluations(monkeypatch, BAD["nan loss"], lambda number: number == 8)
    kept = {step.number: pairs(step) for step in run(network, {"steps": 12})}
    assert len(kept[7]) > 3
    assert kept[8] == kept[9] == []
    assert len(kept[12]) == 3


@pytest.mark.parametrize("bad", BAD)
def test_what_stays_not_finite_is_an_error_after_the_third_healing(
    network, monkeypatch, bad
):
    evaluations(monkeypatch, BAD[bad], lambda number: number >= 6)
    seen = []
    with pytest.raises(NumericalError, match=r"step 9: .* not finite .* 4th time"):
        seen.extend(run(network, {"steps": 20}))
    assert len(seen) == 8
    assert seen[-1].best.isfinite().all()
    assert math.isfinite(seen[-1].loss)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_at_step_1_is_an_error_at_once(network, monkeypatch, bad):
    evaluations(monkeypatch, BAD[bad], lambda number: number == 1)
    with pytest.raises(NumericalError, match="step 1: "):
        next(run(network, {}))


def test_adam_heals_in_smaller_steps_too(network, monkeypatch):
    evaluations(monkeypatch, BAD["nan loss"], lambda number: number == 8)
    steps = list(run(network, {"steps": 12, "optimizer": "adam"}))
    assert torch.equal(steps[7].image, steps[7].best)
    moved = [(step.image - step.best).abs().max() for step in (steps[0], steps[8])]
    assert moved[1] <= 1.001 * SHRINKAGE * moved[0]


def test_losses_stay_finite_where_a_precision_begins_with_nan(network, monkeypatch):
    evaluations(monkeypatch, BAD["nan loss"], lambda number: number == 17)
    given = {"steps": 20, "precision": "mixed"}
    steps = list(run(network, given, fast_low=True))
    assert all(math.isfinite(step.loss) for step in steps)
    assert steps[16].loss == min(step.loss for step in steps[:16])
    assert torch.equal(steps[16].image, steps[16].best)


def rising(losses, gradient):
    return losses._replace(style=losses.style + 1e6), gradient


def test_a_run_that_stalls_starts_again_from_the_best_picture(network, monkeypatch):
    evaluations(monkeypatch, rising, lambda number: 11 <= number <= 35)
    steps = list(run(network, {"steps": 45}))
    best = min(steps[:10], key=lambda step: step.loss)
    assert 10 + watch.STALLED_STEPS == 35
    assert torch.equal(steps[34].image, steps[34].best)
    assert steps[34].loss > best.loss
    # The first after it evaluates that very picture again.
    assert steps[35].loss == best.loss
    # However small the steps had become, they are such now that something happens.
    assert steps[-1].loss < 0.9 * best.loss


def test_after_a_stall_the_history_is_empty(network, monkeypatch):
    evaluations(monkeypatch, rising, lambda number: 11 <= number <= 35)
    kept = {step.number: pairs(step) for step in run(network, {"steps": 38})}
    assert len(kept[34]) > 10
    assert kept[35] == kept[36] == []
    assert len(kept[38]) == 2


def flat(losses, gradient):
    return Losses(*map(torch.ones_like, losses)), gradient


def test_a_flat_run_stops_where_that_is_asked_for(network, monkeypatch):
    evaluations(monkeypatch, flat)
    steps = list(run(network, {"steps": 90, "stop_when_flat": True}))
    assert len(steps) == watch.FLAT_STEPS + 1
    reasons = {step.stop_reason for step in steps[:-1]}
    assert (reasons, steps[-1].stop_reason) == ({None}, "flat")


def test_a_flat_run_goes_on_where_nothing_else_is_asked_for(network, monkeypatch):
    evaluations(monkeypatch, flat)
    steps = list(run(network, {"steps": 90}))
    assert len(steps) == 90
    reasons = {step.stop_reason for step in steps[:-1]}
    assert (reasons, steps[-1].stop_reason) == ({None}, "completed")


def test_a_run_that_still_falls_does_not_stop(network, monkeypatch):
    monkeypatch.setattr(watch, "FLAT_STEPS", 3)
    steps = list(run(network, {"steps": 15, "stop_when_flat": True}))
    assert steps[-1].stop_reason == "completed"


def test_only_at_the_last_scale_and_precision_a_run_is_flat(network, monkeypatch):
    monkeypatch.setattr(watch, "FLAT_STEPS", 2)
    evaluations(monkeypatch, flat)
    given = {"steps": 60, "scales": 2, "precision": "mixed", "stop_when_flat": True}
    steps = list(run(network, given, picture(130, 128, 1), fast_low=True))
    # 40 at half the size, of 20 at the full one 16 in bfloat16.
    assert len(steps) == 59
    assert steps[-1].stop_reason == "flat"


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    "python": MemoryError(),
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 67108864 bytes. Error code 12"
    ),
    "cublas": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "c++": RuntimeError("std::bad_alloc"),
}


@pytest.fixture
def small_bands(monkeypatch):
    """Have the pictures of this module cut into three bands."""
    monkeypatch.setattr(plans, "BAND_PIXELS", 512)


def failing(monkeypatch, owner, name, error, wanted):
    """Have calls of wanted numbers, from 1, raise."""
    call, numbers = getattr(owner, name), []

    def changed(*given):
        numbers.append(len(numbers) + 1)
        if wanted(numbers[-1]):
            raise error
        return call(*given)

    monkeypatch.setattr(owner, name, changed)


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize(
    ("owner", "name", "first"),
    [
        (Objective, "gradient", 1),
        (Objective, "gradient", 6),
        # While the targets are read, while the picture is.
        (Forward, "band", 1),
        (Forward, "band", 8),
        (Forward, "band", 20),
    ],
)
def test_where_memory_runs_out_a_run_goes_on_with_a_smaller_plan(
    network, monkeypatch, error, owner, name, first
):
    undisturbed = list(run(network, {"steps": 12}))
    assert undisturbed[-1].plan == Plan(16, 3, False, HISTORY_AT_MOST)
    failing(monkeypatch, owner, name, OUT_OF_MEMORY[error], lambda n: n == first)
    steps = list(run(network, {"steps": 12}))
    assert [step.number for step in steps] == list(range(1, 13))
    assert steps[-1].plan == Plan(16, 1, False, HISTORY_AT_MOST)
    torch.testing.assert_close(
        steps[-1].image, undisturbed[-1].image, rtol=0, atol=1e-3
    )


@pytest.mark.usefixtures("small_bands")
def test_the_history_is_shortened_while_it_is_in_use(network, monkeypatch):
    wanted = range(15, 20)
    failing(monkeypatch, Objective, "gradient", MemoryError(), lambda n: n in wanted)
    steps = [(step, len(pairs(step))) for step in run(network, {"steps": 20})]
    assert steps[13][0].plan == Plan(16, 3, False, HISTORY_AT_MOST)
    assert steps[14][0].plan == Plan(16, 1, True, HISTORY_AT_LEAST)
    assert steps[13][1] > 10
    assert [kept for _, kept in steps[14:]] == [HISTORY_AT_LEAST] * 6
    assert steps[-1][0].loss < steps[13][0].loss


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("optimizer", [LBFGS, Adam])
@pytest.mark.usefixtures("small_bands")
def test_memory_that_runs_out_in_an_update_costs_no_step(
    network, monkeypatch, error, optimizer
):
    update, numbers = optimizer.step, []

    def changed(self, *given):
        numbers.append(len(numbers) + 1)
        if numbers[-1] == 8:
            # Half of it is done: what it remembers is no longer of use.
            update(self, *given)
            raise OUT_OF_MEMORY[error]
        return update(self, *given)

    monkeypatch.setattr(optimizer, "step", changed)
    job = {"steps": 20, "optimizer": optimizer.__name__.lower()}
    steps = list(run(network, job))
    assert [step.number for step in steps] == list(range(1, 21))
    assert steps[6].plan.held == 3
    assert steps[7].plan.held == 1
    assert steps[-1].loss < steps[7].loss


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_nothing_smaller_is_left_the_error_comes_out(network, monkeypatch, error):
    failing(monkeypatch, Objective, "gradient", OUT_OF_MEMORY[error], lambda n: n >= 3)
    seen = []
    with pytest.raises(type(OUT_OF_MEMORY[error])):
        seen.extend(run(network, {"steps": 9}))
    assert len(seen) == 2


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("no")]
)
def test_other_errors_come_out_at_once(network, monkeypatch, error):
    asked = []
    failing(
        monkeypatch, Objective, "gradient", error, lambda n: asked.append(n) or n >= 2
    )
    with pytest.raises(type(error), match=str(error)):
        list(run(network, {}))
    assert asked == [1, 2]


def test_the_text_of_torch_says_that_memory_ran_out():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 52)
    assert ran_out_of_memory(caught.value)


def test_a_budget_that_is_too_small_is_an_error_that_says_so(network):
    with pytest.raises(NothingFits, match=r"image_size: 40 .*\(STYLEQUEUE_MEMORY_MB\)"):
        next(run(network, {}, budget=100 * MB))


@pytest.mark.usefixtures("small_bands")
def test_a_run_keeps_to_a_plan_within_its_budget(network):
    wanted = Plan(16, 2, False, 7)
    budget = peak_bytes(settings(), (32, 40), wanted)
    free, bounded = (
        list(run(network, {"steps": 20}, budget=one)) for one in (None, budget)
    )
    assert {step.plan for step in bounded} == {bounded[0].plan}
    assert peak_bytes(settings(), (32, 40), bounded[0].plan) <= budget
    assert len(pairs(bounded[-1])) <= bounded[0].plan.history < 20
    # The first steps need no more pairs than there is room for.
    torch.testing.assert_close(bounded[4].image, free[4].image, rtol=0, atol=1e-4)
