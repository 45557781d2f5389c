import json
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt

from stylequeue_shared.job_settings import (
    JobSettings,
)
from tests.shared.choosing import complete, refused


def numeric_fields() -> Iterator[tuple[str, type, dict[type, Any]]]:
    """Yield the name, type and bounds of each field that is a number."""
    for name, field in JobSettings.model_fields.items():
        types = {field.annotation, *get_args(field.annotation)}
        for kind in types & {int, float}:
            assert kind is not None
            yield name, kind, {type(bound): bound for bound in field.metadata}


def beside(kind: type, number: float, towards: float) -> float:
    """Return the next number of that kind."""
    if kind is int:
        return number + math.copysign(1, towards)
    return math.nextafter(number, towards)


def edges() -> Iterator[tuple[str, float, float, float]]:
    """Yield each bound: the field, what is accepted, refused and said to be allowed."""
    for name, kind, bounds in numeric_fields():
        low = bounds[Ge].ge
        yield name, low, kind(beside(kind, low, -math.inf)), low
        if Lt in bounds:
            high = bounds[Lt].lt
            yield name, kind(beside(kind, high, -math.inf)), high, high
        else:
            high = bounds[Le].le
            yield name, high, kind(beside(kind, high, math.inf)), high


NUMBERS = list(numeric_fields())
NAMES = [name for name, _, _ in NUMBERS]


def among_others(name: str, value: Any) -> str:
    """Return settings of which only the one named can be wrong."""
    harmless = {"steps": 1, "snapshot_every": 100_000}
    return json.dumps({**harmless, name: value})


def test_every_number_has_a_lower_and_an_upper_bound() -> None:
    assert len(NUMBERS) == 9
    for _, _, bounds in NUMBERS:
        assert len(bounds.keys() & {Ge, Gt}) == len(bounds.keys() & {Le, Lt}) == 1


@pytest.mark.parametrize(("name", "at", "beyond", "allowed"), list(edges()))
def test_every_number_is_accepted_up_to_its_bounds_and_no_further(
    name: str, at: float, beyond: float, allowed: float
) -> None:
    assert getattr(complete(among_others(name, at)), name) == at
    error = refused(among_others(name, beyond))
    assert error.field == name
    assert error.message.startswith(f"{name}: found {json.dumps(beyond)}; ")
    assert float(error.message.split()[-1]) == allowed


@pytest.mark.parametrize("wrong", ["true", '"12"', "[12]", "{}", '""'])
@pytest.mark.parametrize("name", NAMES)
def test_what_only_looks_like_a_number_is_none(name: str, wrong: str) -> None:
    error = refused(f'{{"{name}": {wrong}}}')
    assert error.field == name
    assert error.message.startswith(f"{name}: found {wrong}; ")


@pytest.mark.parametrize("name", [name for name, kind, _ in NUMBERS if kind is int])
def test_an_integer_has_no_fraction(name: str) -> None:
    assert refused(f'{{"{name}": 1.5}}').field == name


def test_a_weight_may_be_an_integer() -> None:
    assert complete('{"style_weight": 1000}').style_weight == 1000.0


@pytest.mark.parametrize("name", ["steps", "style_weight", "unknown"])
@pytest.mark.parametrize("wrong", ["NaN", "Infinity", "-Infinity"])
def test_what_json_does_not_know_as_a_number_is_refused(name: str, wrong: str) -> None:
    error = refused(f'{{"{name}": {wrong}}}')
    assert error.message == f"settings: {wrong} is not a number that JSON knows"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400, "9" * 4000])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_larger_than_any_is_refused_by_its_field(
    name: str, number: str
) -> None:
    error = refused(f'{{"{name}": {number}}}')
    assert error.field == name
    assert "deep" not in error.message


def test_an_infinite_weight_of_a_style_is_refused() -> None:
    assert refused('{"style_blend": [1e999]}').field == "style_blend"


def test_an_integer_of_thousands_of_digits_is_refused() -> None:
    error = refused(f'{{"seed": {"9" * 5000}}}')
    assert error.message.startswith("settings: found a number of thousands of digits")


def test_a_seed_fits_in_31_bits() -> None:
    assert complete('{"seed": 2147483647}').seed == 2**31 - 1
    assert refused('{"seed": 2147483648}').field == "seed"
