"""Where an optimisation stands: enough to go on from, bit for bit.

It is written as a record and parts, each a safetensors file. A part is one large
tensor, so that writing takes little memory beside the optimisation's own. Parts never
change: of two states of one run, parts of the same name are the same, and a later
state need write only the new ones.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from stylequeue_shared.errors import BadState
from stylequeue_shared.plans import Plan

FORMAT = 2
# Grows with every change that makes the same state go on to another picture.
ENGINE = 2
HEADER = "stylequeue"
# Tensors of more numbers than this are parts; the others stand in the record.
SMALL = 64
PART = "tensor"
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


@dataclass(frozen=True)
class Encoded:
    """A state's record, and its parts by name, which `encode_part` makes files of."""

    record: bytes
    parts: Mapping[str, Tensor]


def encode(state: State) -> Encoded:
    """Return the state as it is written, with its step, format and engine."""
    names, parts = _parts(state)
    header = {
        "format": FORMAT,
        "engine": ENGINE,
        "step": state.step,
        "plan": asdict(state.plan),
        "parts": names,
    }
    # The file may not hold one piece of memory under two names.
    small = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in state.tensors.items()
        if name not in names
    }
    return Encoded(safetensors.torch.save(small, {HEADER: json.dumps(header)}), parts)


def encode_part(tensor: Tensor) -> bytes:
    """Return a part as a safetensors file."""
    return safetensors.torch.save({PART: tensor.detach().cpu().contiguous()})


def decode(record: bytes, part: Callable[[str], bytes]) -> State:
    """Read what `encode` wrote; `part` returns the file of that name.

    Raises BadState for what is no state, or one of another format or engine, and what
    `part` raises.
    """
    try:
        header = _header(record)
        found = (header["format"], header["engine"])
        if found != (FORMAT, ENGINE):
            raise BadState(
                f"found a state of format and engine {found}; this engine reads "
                f"{(FORMAT, ENGINE)}"
            )
        step, plan = _whole(header["step"], 1), _plan(header["plan"])
        tensors = safetensors.torch.load(record)
        names = _names(header["parts"])
    except (*DAMAGE, SafetensorError, RecursionError) as error:
        raise _damaged(error) from None
    for name, of in names:
        try:
            tensors[name] = safetensors.torch.load(part(of))[PART]
        except (*DAMAGE, SafetensorError) as error:
            raise _damaged(error) from None
    return State(step, tensors, plan)


def _names(parts: Any) -> list[tuple[str, str]]:
    if not isinstance(parts, dict):
        raise TypeError(f"parts is {parts!r}")
    return [(str(name), str(of)) for name, of in parts.items()]


def _parts(state: State) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the part of each large tensor, and the parts.

    What is one piece of memory, as is often the newest and the best picture, is one
    part.
    """
    names: dict[str, str] = {}
    parts: dict[str, Tensor] = {}
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in sorted(state.tensors.items()):
        if tensor.numel() > SMALL:
            place = tensor.data_ptr(), tuple(tensor.shape)
            names[name] = seen.setdefault(place, _part_name(name, tensor, state.step))
            parts[names[name]] = tensor
    return names, parts


def _part_name(name: str, tensor: Tensor, step: int) -> str:
    """Name a tensor as no other of the run is named.

    A pair is known by its size and number, all others change with every step.
    """
    number, _, kind = name.removeprefix("optimizer.").rpartition(".")
    if number.isdecimal():
        return f"pair-{tensor.numel()}-{number}-{kind}"
    return f"{name}-{step}"


def _damaged(error: Exception) -> BadState:
    return BadState(f"not a saved state ({type(error).__name__})")


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
