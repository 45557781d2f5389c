import itertools
import json
import pickle

import pytest
import safetensors.torch
import torch

from stylequeue_shared.errors import BadState
from stylequeue_worker.engine import state as states
from stylequeue_worker.engine.state import State, decode, encode
from stylequeue_worker.engine.transfer import transfer
from tests.worker.engine.tiny import picture, settings, tiny_network

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
    read = decode(encode(state_after(network, job, number)))
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
    first = decode(encode(state_after(network, job, 5)))
    *_, step = itertools.islice(run(network, job, first), 6)
    second = decode(encode(step.state()))
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
    return encode(state_after(network, settings(steps=5), 3))


def test_what_is_no_state_is_refused(network):
    written = _written(network)
    other = safetensors.torch.save({"picture": CONTENT})
    for data in (b"", b"abc", written[:-1], written[:20], pickle.dumps({}), other):
        with pytest.raises(BadState, match="not a saved state"):
            decode(data)


@pytest.mark.parametrize("name", ["FORMAT", "ENGINE"])
def test_a_state_of_another_engine_is_refused(network, monkeypatch, name):
    monkeypatch.setattr(states, name, 0)
    written = _written(network)
    monkeypatch.undo()
    with pytest.raises(BadState, match="this engine reads"):
        decode(written)


def test_a_state_is_hardly_larger_than_its_tensors(network):
    state = state_after(network, settings(steps=5), 3)
    size = sum(one.numel() * one.element_size() for one in state.tensors.values())
    written = encode(state)
    assert len(written) < size + 4096
    length = int.from_bytes(written[:8], "little")
    assert "__metadata__" in json.loads(written[8 : 8 + length])
