import itertools
import json
import math
import pickle
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given as given_any
from hypothesis import settings as examples
from hypothesis import strategies as any_of

from stylequeue_shared import plans
from stylequeue_shared.errors import (
    BadState,
    NotFound,
    NumericalError,
    StyleQueueError,
)
from stylequeue_shared.plans import Plan
from stylequeue_worker.engine import state as states
from stylequeue_worker.engine import watch
from stylequeue_worker.engine.objective import Objective
from stylequeue_worker.engine.state import State
from stylequeue_worker.engine.transfer import Run, transfer
from tests.worker.engine.tiny import loaded, picture, saved, settings, tiny_network

CONTENT, STYLE = picture(40, 32, 1), picture(32, 48, 2)


@pytest.fixture(scope="module")
def network():
    return tiny_network()


def run(network, job, state=None):
    return transfer(network, CONTENT, [STYLE], job, state)


def state_after(network, job, number):
    *_, step = itertools.islice(run(network, job), number)
    return step.state()


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("number", [1, 2, 7, 29])
def test_a_run_goes_on_from_its_state_bit_for_bit(network, optimizer, number):
    job = settings(optimizer=optimizer, steps=30, init="noise")
    undisturbed = list(run(network, job))
    read = loaded(saved(state_after(network, job, number)))
    assert read.step == number
    resumed = list(run(network, job, read))
    assert [step.number for step in resumed] == list(range(number + 1, 31))
    for ours, theirs in zip(resumed, undisturbed[number:], strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert (ours.style_loss, ours.content_loss) == (
            theirs.style_loss,
            theirs.content_loss,
        )


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_taking_states_changes_nothing_and_none_changes_later(network, optimizer):
    job = settings(optimizer=optimizer, steps=12)
    undisturbed = list(run(network, job))
    taken, copies = [], []
    for step in run(network, job):
        taken.append(step.state())
        copies.append({k: one.clone() for k, one in taken[-1].tensors.items()})
    assert torch.equal(step.image, undisturbed[-1].image)
    for state, copy in zip(taken, copies, strict=True):
        assert state.tensors.keys() == copy.keys()
        assert all(torch.equal(copy[name], one) for name, one in state.tensors.items())


def test_a_run_may_go_on_more_than_once_and_from_a_run_that_went_on(network):
    job = settings(steps=20)
    last = list(run(network, job))[-1].image
    first = loaded(saved(state_after(network, job, 5)))
    *_, step = itertools.islice(run(network, job, first), 6)
    second = loaded(saved(step.state()))
    assert second.step == 11
    for state in (first, second, first):
        assert torch.equal(list(run(network, job, state))[-1].image, last)


def test_the_state_of_the_last_step_has_none_to_follow(network):
    job = settings(steps=5)
    assert list(run(network, job, state_after(network, job, 5))) == []


def test_in_later_states_of_a_run_pairs_of_the_same_name_are_the_same(network):
    job = settings(steps=20)
    earlier, later = (state_after(network, job, number).tensors for number in (8, 15))
    both = [name for name in earlier if name.endswith((".s", ".y")) and name in later]
    assert len(both) >= 8
    assert all(torch.equal(earlier[name], later[name]) for name in both)


def test_a_state_of_another_size_or_optimizer_is_refused(network):
    state = state_after(network, settings(steps=5), 3)
    with pytest.raises(BadState, match="no 'rate'"):
        next(run(network, settings(steps=5, optimizer="adam"), state))
    smaller = State(3, {**state.tensors, "picture": picture(20, 16, 1)}, state.plan)
    with pytest.raises(BadState, match="picture is"):
        next(run(network, settings(steps=5), smaller))


def _written(network):
    return saved(state_after(network, settings(steps=5), 3))


def test_what_is_no_state_is_refused(network):
    record, parts = _written(network)
    other = safetensors.torch.save({"picture": CONTENT})
    for data in (b"", b"abc", record[:-1], record[:20], pickle.dumps({}), other):
        with pytest.raises(BadState, match="not a saved state"):
            loaded((data, parts))
    for name, part in parts.items():
        for data in (b"", part[:-1], pickle.dumps({}), other):
            with pytest.raises(BadState, match="not a saved state"):
                loaded((record, {**parts, name: data}))


def test_a_state_without_all_its_parts_is_refused(network):
    record, parts = _written(network)
    for name in parts:
        with pytest.raises(NotFound):
            loaded((record, {one: parts[one] for one in parts if one != name}))


def test_parts_of_the_same_name_are_the_same_in_all_states_of_a_run(network):
    seen, again = {}, 0
    job = settings(steps=24, scales=3, precision="mixed")
    content = picture(260, 257, 3)
    for step in transfer(network, content, [STYLE], job, fast_low=True):
        _, parts = saved(step.state())
        for name, part in parts.items():
            again += name in seen
            assert seen.setdefault(name, part) == part
    assert again > 50


def test_a_later_state_has_few_new_parts(network):
    earlier, later = (
        saved(state_after(network, settings(steps=30), number))[1]
        for number in (24, 25)
    )
    assert len(later) > 40
    # A pair, and what changes with every step.
    assert len(later.keys() - earlier.keys()) <= 2 + 6


def test_the_newest_and_the_best_picture_are_one_part(network):
    state = state_after(network, settings(steps=5, optimizer="adam"), 1)
    same = replace(
        state, tensors={**state.tensors, "watch.best": state.tensors["picture"]}
    )
    assert len(saved(same)[1]) == len(saved(state)[1]) - 1
    assert torch.equal(
        loaded(saved(same)).tensors["watch.best"], state.tensors["picture"]
    )


@pytest.mark.parametrize("name", ["FORMAT", "ENGINE"])
def test_a_state_of_another_engine_is_refused(network, monkeypatch, name):
    monkeypatch.setattr(states, name, 0)
    written = _written(network)
    monkeypatch.undo()
    with pytest.raises(BadState, match="this engine reads"):
        loaded(written)


def test_a_state_is_hardly_larger_than_its_tensors(network):
    state = state_after(network, settings(steps=5), 3)
    size = sum(one.numel() * one.element_size() for one in state.tensors.values())
    record, parts = saved(state)
    assert len(record) < 4096
    assert len(record) + sum(map(len, parts.values())) < size + 8192
    length = int.from_bytes(record[:8], "little")
    assert "__metadata__" in json.loads(record[8 : 8 + length])


LARGE = picture(260, 257, 3)


@pytest.fixture
def step_at_hand(monkeypatch):
    """The number of the step that is evaluated, whichever run it is of."""
    evaluate, numbers = Run._evaluated, [0]

    def evaluated(one):
        numbers[0] = one._done + 1
        return evaluate(one)

    monkeypatch.setattr(Run, "_evaluated", evaluated)
    return lambda: numbers[0]


def changed(monkeypatch, change):
    evaluate = Objective.gradient
    monkeypatch.setattr(
        Objective, "gradient", lambda *given: change(given[0], *evaluate(*given))
    )


def check_all(network, given, numbers, content=CONTENT):
    """Go on from the state of each of the steps; return what was read, by step."""
    job = settings(**given)
    undisturbed, written = [], {}
    for step in transfer(network, content, [STYLE], job, fast_low=True):
        undisturbed.append(step)
        if step.number in numbers:
            written[step.number] = saved(step.state())
    read = {number: loaded(stored) for number, stored in written.items()}
    for number, state in read.items():
        resumed = list(transfer(network, content, [STYLE], job, state, fast_low=True))
        assert [step.number for step in resumed] == list(
            range(number + 1, job.steps + 1)
        )
        for ours, theirs in zip(resumed, undisturbed[number:], strict=True):
            assert torch.equal(ours.image, theirs.image), (number, ours.number)
            assert torch.equal(ours.best, theirs.best)
            assert (ours.loss, ours.plan, ours.left, ours.stop_reason) == (
                *(theirs.loss, theirs.plan, theirs.left, theirs.stop_reason),
            )
    return read


def test_a_run_through_sizes_goes_on_from_within_and_between_them(network):
    # 6 steps, 4 and 2.
    given = {"steps": 12, "scales": 3}
    read = check_all(network, given, [1, 5, 6, 7, 9, 10, 11, 12], LARGE)
    sides = {
        number: state.tensors["picture"].shape[-1] for number, state in read.items()
    }
    assert (sides[6], sides[7], sides[10], sides[11]) == (64, 128, 128, 257)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_run_in_mixed_precision_goes_on_from_either_side_of_the_change(
    network, optimizer
):
    given = {"steps": 20, "precision": "mixed", "optimizer": optimizer}
    check_all(network, given, [3, 15, 16, 17, 19])


def test_sizes_precisions_and_a_preconditioner_go_on_together(network):
    given = {"steps": 24, "scales": 3, "precision": "mixed", "tv_weight": 10.0}
    given["preconditioner"] = "frequency"
    check_all(network, given, [9, 10, 12, 13, 18, 20, 23], LARGE)


def test_a_preconditioned_run_goes_on(network):
    check_all(network, {"steps": 15, "preconditioner": "frequency"}, [1, 2, 8, 14])


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_run_that_was_healed_goes_on(network, monkeypatch, step_at_hand, optimizer):
    def change(_, losses, gradient):
        value = math.nan if step_at_hand() in (8, 9, 14) else 1
        return losses._replace(style=losses.style * value), gradient

    changed(monkeypatch, change)
    given = {"steps": 18, "optimizer": optimizer}
    check_all(network, given, [7, 8, 9, 10, 13, 14, 15])


def test_a_run_counts_on_what_was_not_finite(network, monkeypatch, step_at_hand):
    def change(_, losses, gradient):
        value = math.nan if step_at_hand() >= 8 else 1
        return losses._replace(style=losses.style * value), gradient

    changed(monkeypatch, change)
    job = settings(steps=20)
    state = state_after(network, job, 9)
    with pytest.raises(NumericalError, match="step 11: "):
        list(run(network, job, loaded(saved(state))))


def test_a_run_that_stalled_goes_on(network, monkeypatch, step_at_hand):
    def change(_, losses, gradient):
        value = 1e6 if 11 <= step_at_hand() <= 35 else 0
        return losses._replace(style=losses.style + value), gradient

    changed(monkeypatch, change)
    read = check_all(network, {"steps": 42}, [10, 11, 30, 34, 35, 36, 40])
    assert any(name.endswith(".rho") for name in read[34].tensors)
    assert not any(name.endswith(".rho") for name in read[35].tensors)


def test_a_flat_run_stops_at_the_same_step_after_going_on(network, monkeypatch):
    monkeypatch.setattr(watch, "FLAT_STEPS", 6)
    monkeypatch.setattr(watch, "FLAT_SHARE", 0.7)
    job = settings(steps=60, stop_when_flat=True)
    undisturbed = list(run(network, job))
    assert undisturbed[-1].stop_reason == "flat"
    last = undisturbed[-1].number
    for number in (2, last - 3, last - 1):
        state = loaded(saved(state_after(network, job, number)))
        assert list(run(network, job, state))[-1].number == last


def test_a_run_goes_on_with_the_plan_that_became_smaller(
    network, monkeypatch, step_at_hand
):
    monkeypatch.setattr(plans, "BAND_PIXELS", 512)

    def change(objective, losses, gradient):
        if step_at_hand() >= 12 and objective.plan.history > 6:
            raise MemoryError
        return losses, gradient

    changed(monkeypatch, change)
    read = check_all(network, {"steps": 18}, [10, 11, 12, 13, 17])
    assert read[11].plan == Plan(16, 3, False, plans.HISTORY_AT_MOST)
    assert read[12].plan == read[17].plan == Plan(16, 1, True, 6)


def test_the_next_size_has_a_plan_of_its_own(network, monkeypatch, step_at_hand):
    def change(objective, losses, gradient):
        if step_at_hand() == 3 and not objective.plan.half:
            raise MemoryError
        return losses, gradient

    changed(monkeypatch, change)
    read = check_all(network, {"steps": 12, "scales": 2}, [2, 3, 8, 9], LARGE)
    assert [read[number].plan.half for number in (2, 3, 8, 9)] == [
        *(False, True, True, False),
    ]


def with_header(stored, text):
    """Return a state with another text in place of its record's header."""
    data, parts = stored
    length = int.from_bytes(data[:8], "little")
    whole = json.loads(data[8 : 8 + length])
    whole["__metadata__"] = {states.HEADER: text}
    written = json.dumps(whole).encode()
    record = len(written).to_bytes(8, "little") + written + data[8 + length :]
    return record, parts


def header_of(stored):
    data = stored[0]
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][states.HEADER])


@pytest.fixture(scope="module")
def written():
    return _written(tiny_network())


WRONG = [None, -1, 0.5, "3", "", [], [1], {}, {"a": 1}, math.inf, math.nan]


def refused(written, header):
    with pytest.raises(BadState):
        loaded(with_header(written, json.dumps(header)))


def test_a_header_that_is_written_again_is_read(written):
    again = with_header(written, json.dumps(header_of(written)))
    assert loaded(again).step == loaded(written).step == 3


@pytest.mark.parametrize("key", ["format", "engine", "step", "plan"])
def test_a_damaged_header_is_refused(written, key):
    header = header_of(written)
    for value in WRONG:
        refused(written, {**header, key: value})
    del header[key]
    refused(written, header)


@pytest.mark.parametrize("parts", [*WRONG, {"picture": "../../secret"}])
def test_damaged_names_of_parts_are_refused(network, written, parts):
    header = {**header_of(written), "parts": parts}
    changed = with_header(written, json.dumps(header))
    with pytest.raises((BadState, NotFound)):
        list(run(network, settings(steps=5), loaded(changed)))


@pytest.mark.parametrize("key", ["rows", "held", "half", "history"])
def test_a_damaged_plan_is_refused(written, key):
    header = header_of(written)
    given = header["plan"]
    for value in [*WRONG, 1 if key == "half" else True]:
        refused(written, {**header, "plan": {**given, key: value}})
    refused(written, {**header, "plan": {**given, f"{key}_too": given[key]}})
    del given[key]
    refused(written, header)


@pytest.mark.parametrize("key", ["rows", "held"])
def test_a_plan_of_nothing_is_refused(written, key):
    header = header_of(written)
    header["plan"][key] = 0
    refused(written, header)


def test_a_step_past_the_end_is_refused(network, written):
    state = loaded(with_header(written, json.dumps({**header_of(written), "step": 6})))
    with pytest.raises(BadState, match="step 6, this job has 5"):
        next(run(network, settings(steps=5), state))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "NaN", "null", "[]", '"\\ud800"', "0" * 5000]
)
def test_a_header_that_is_no_json_object_is_refused(written, text):
    with pytest.raises(BadState):
        loaded(with_header(written, text))


def damaged(state, name, tensor):
    tensors = dict(state.tensors)
    del tensors[name]
    return replace(
        state, tensors=tensors if tensor is None else tensors | {name: tensor}
    )


@pytest.mark.parametrize(
    "given",
    [{}, {"optimizer": "adam"}, {"preconditioner": "frequency"}],
    ids=["lbfgs", "adam", "preconditioned"],
)
def test_damaged_tensors_are_refused(network, given):
    job = settings(steps=8, **given)
    state = state_after(network, job, 6)
    assert len(state.tensors) >= 7
    for name, one in state.tensors.items():
        others = [torch.zeros(3), torch.zeros(2, 2)]
        if not name.endswith((".rho", "best.loss")):
            # Without these there is one pair less, or no earlier loss to compare with.
            others.append(None)
        if one.numel() == CONTENT.numel():
            others += [one.double(), one.int(), one[..., :-1], one.unsqueeze(0)]
            others += [torch.tensor(1.0)]
        for other in others:
            with pytest.raises(BadState):
                next(run(network, job, damaged(state, name, other)))


def test_a_pair_of_no_number_is_refused(network):
    state = state_after(network, settings(steps=8), 6)
    tensors = {**state.tensors, "optimizer.x.rho": torch.tensor(1.0)}
    with pytest.raises(BadState, match="damaged"):
        next(run(network, settings(steps=8), replace(state, tensors=tensors)))


@examples(max_examples=150, deadline=None, derandomize=True)
@given_any(
    any_of.data(), any_of.integers(0, 255), any_of.sampled_from(["cut", "flip", "drop"])
)
def test_whatever_is_done_to_a_states_bytes_no_other_error_comes_of_it(
    written, data, byte, way
):
    record, parts = written
    length = 8 + int.from_bytes(record[:8], "little")
    # Most of it where the structure is.
    end = length if data.draw(any_of.integers(0, 3)) else len(record)
    place = data.draw(any_of.integers(0, end - 1))
    rest = record[place + 1 :]
    changed = {
        "cut": record[:place],
        "flip": record[:place] + bytes([byte]) + rest,
        "drop": record[:place] + rest,
    }[way]
    try:
        steps = list(run(NETWORK, settings(steps=5), loaded((changed, parts))))
    except StyleQueueError:
        return
    # A number that is another one: nothing can tell.
    assert all(math.isfinite(step.loss) for step in steps)


NETWORK = tiny_network()
