"""Where an optimisation stands: enough to go on from, bit for bit."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from stylequeue_shared.errors import BadState
from stylequeue_shared.plans import Plan

FORMAT = 1
# Grows with every change that makes the same state go on to another picture.
ENGINE = 2
HEADER = "stylequeue"
# What reading a damaged state may raise.
DAMAGE = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class State:
    """An optimisation after `step`: the picture, and what its optimiser remembers.

    The tensors are those of the run itself, which never writes to them again. Names
    of L-BFGS's pairs count on, so that of two states of one run a tensor of the same
    name is the same.
    """

    step: int
    tensors: Mapping[str, Tensor]
    plan: Plan


def encode(state: State) -> bytes:
    """Return the state as a safetensors file with its step, format and engine."""
    header = {
        "format": FORMAT,
        "engine": ENGINE,
        "step": state.step,
        "plan": asdict(state.plan),
    }
    # The file may not hold one piece of memory under two names.
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in state.tensors.items()
    }
    return safetensors.torch.save(tensors, {HEADER: json.dumps(header)})


def decode(data: bytes) -> State:
    """Read what `encode` wrote.

    Raises BadState for what is no state, or one of another format or engine.
    """
    try:
        header = _header(data)
        found = (header["format"], header["engine"])
        if found != (FORMAT, ENGINE):
            raise BadState(
                f"found a state of format and engine {found}; this engine reads "
                f"{(FORMAT, ENGINE)}"
            )
        tensors = safetensors.torch.load(data)
        return State(_whole(header["step"], 1), tensors, _plan(header["plan"]))
    except (*DAMAGE, SafetensorError, RecursionError) as error:
        raise BadState(f"not a saved state ({type(error).__name__})") from None


def _header(data: bytes) -> dict[str, Any]:
    # safetensors gives the metadata of a file on disk only: length, then JSON.
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    header: dict[str, Any] = json.loads(metadata[HEADER])
    return header


def _plan(found: dict[str, Any]) -> Plan:
    if not isinstance(found["half"], bool):
        raise TypeError("half is no truth value")
    for name, least in (("rows", 1), ("held", 1), ("history", 0)):
        _whole(found[name], least)
    return Plan(**found)


def _whole(found: object, least: int) -> int:
    if type(found) is not int or found < least:
        raise ValueError(f"{found!r} is no whole number from {least} on")
    return found
