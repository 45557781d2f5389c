"""What is sent as text: every JSON value is either settings or refused politely."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylequeue_shared.errors import InvalidSetting
from stylequeue_shared.job_settings import (
    PRESETS,
    JobSettings,
    read_options,
)
from stylequeue_shared.layers import LAYERS
from tests.shared.choosing import complete, refused

WORDS = [*PRESETS, "print", "histogram", "none", "adam", "conv1_1", "relu5_4"]
NAMES = st.sampled_from([*JobSettings.model_fields]) | st.text(max_size=50)
# Among them what has been trouble elsewhere, and what is accepted.
LEAVES = (
    st.sampled_from([None, True, 0, -1, 1, 32, 8192, 2**31, 2**64, 10**400, *WORDS])
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(codec=None), max_size=20)
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=9) | st.dictionaries(NAMES, inner, max_size=4)


VALUES = st.recursive(LEAVES, nested, max_leaves=12)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6)


LAYER_LISTS = st.lists(st.sampled_from(LAYERS), min_size=1, unique=True)
GOOD = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from([*PRESETS]),
        "image_size": st.integers(32, 8192),
        "steps": st.integers(1, 2000),
        "snapshot_every": st.integers(20, 100_000),
        "content_layers": LAYER_LISTS,
        "style_layers": LAYER_LISTS,
        "content_weight": st.floats(0, 1e12, exclude_min=True),
        "style_weight": st.floats(0, 1e12),
        "style_blend": st.none() | st.tuples(st.floats(0, 1e6, exclude_min=True)),
        "tv_weight": st.floats(0, 1e12),
        "style_size": st.none() | st.integers(32, 8192),
        "seed": st.none() | st.integers(0, 2**31 - 1),
    },
)


def outcome(text: str | bytes, styles: int = 1) -> JobSettings | InvalidSetting:
    """Return settings or the refusal; any other exception is a failure."""
    try:
        return complete(text, styles)
    except InvalidSetting as error:
        return error


def assert_comes_back(found: JobSettings) -> None:
    """As the record of a job is JSON, and read again by each worker that claims it."""
    for recorded in (found.model_dump(), json.loads(found.model_dump_json())):
        assert JobSettings.model_validate(recorded) == found


@settings(deadline=None)  # the machine may be busy
@given(VALUES | OBJECTS, st.integers(1, 8), st.booleans())
def test_any_json_is_settings_or_is_refused_by_name(
    value: Any, styles: int, escaped: bool
) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    found = outcome(text, styles)
    if isinstance(found, InvalidSetting):
        assert found.field
        assert len(found.message) < 1000
        # An answer can carry it.
        (found.field + found.message).encode()
    else:
        assert_comes_back(found)


@settings(deadline=None)
@given(st.binary(max_size=30) | st.text(st.characters(codec=None), max_size=30))
def test_any_text_is_settings_or_is_refused_by_name(text: bytes | str) -> None:
    found = outcome(text)
    if isinstance(found, InvalidSetting):
        assert found.field
        assert len(found.message) < 1000


@settings(deadline=None)
@given(GOOD)
def test_what_is_complete_comes_back_as_it_was_recorded(value: dict[str, Any]) -> None:
    found = complete(json.dumps(value))
    assert_comes_back(found)
    # Completing it again changes nothing, nor draws another seed.
    assert complete(found.model_dump_json()) == found


@pytest.mark.parametrize("value", ["null", "true", "1", '"a"', "[]", "[{}]"])
def test_what_is_no_object_is_refused_as_it_was_sent(value: str) -> None:
    error = refused(value)
    assert error.message == f"settings: a JSON object is needed, found {value}"


@pytest.mark.parametrize("text", ["{", "{}x", "{'steps': 1}", "steps=1", '{"steps":}'])
def test_what_is_no_json_is_refused_with_the_place(text: str) -> None:
    error = refused(text)
    assert error.field == "settings"
    assert error.message.startswith("settings: not a JSON object (")
    assert "column" in error.message


@pytest.mark.parametrize("wrong", [b'{"a": "\xff"}', b"\xff", '{"a": "\ud800"}'])
def test_what_is_no_text_is_refused(wrong: str | bytes) -> None:
    assert "not UTF-8" in refused(wrong).message


@pytest.mark.parametrize(
    "text", [r'{"\ud800": 1}', r'{"init": "\udfff"}', r'{"init": ["a\ud800"]}']
)
def test_a_lone_surrogate_is_no_text(text: str) -> None:
    assert "not UTF-8" in refused(text).message


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("steps", "steps"),
        ("", "settings"),
        (r"\ud800", "?"),
        ("x" * 500, "x" * 40),
    ],
)
def test_a_name_that_is_given_twice_is_refused(name: str, named: str) -> None:
    for text in (
        f'{{"{name}": 1, "{name}": 1}}',
        f'{{"init": [{{"{name}": 1, "{name}": 2}}]}}',
    ):
        error = refused(text)
        assert (error.field, error.message) == (named, f"{named}: given twice")


@pytest.mark.parametrize("depth", [250, 900, 5000, 100_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deeply_is_refused(
    left: str, right: str, depth: int
) -> None:
    error = refused('{"steps":' + left * depth + "1" + right * depth + "}")
    assert error.message == "settings: nested too deeply"


def test_what_is_nested_a_little_is_refused_by_its_field() -> None:
    assert refused('{"steps":' + "[" * 100 + "]" * 100 + "}").field == "steps"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("step", "step"),
        ("Steps", "Steps"),
        ("", "settings"),
        ("größe", "größe"),
        ("x" * 5000, "x" * 40),
        ("model_config", "model_config"),
    ],
)
def test_an_unknown_name_is_refused_and_the_known_ones_are_told(
    name: str, named: str
) -> None:
    error = refused(json.dumps({name: 1}))
    assert error.field == named
    assert error.message.startswith(f"{named}: no such setting; the settings are ")
    assert all(known in error.message for known in JobSettings.model_fields)


def test_a_long_value_is_shown_cut_short() -> None:
    error = refused(json.dumps({"init": "x" * 10_000}))
    assert "x" * 79 in error.message
    assert "x" * 80 not in error.message


def test_options_of_a_command_line_are_read_as_json_and_lists_by_their_commas() -> None:
    given = {
        **{"steps": "12", "preset": "quick", "tv_weight": "0.5", "seed": None},
        **{"style_blend": "1, 2", "content_layers": "conv1_1,conv2_2"},
        **{"style_layers": "relu1_1"},
    }
    assert read_options(given) == {
        **{"steps": 12, "preset": "quick", "tv_weight": 0.5, "style_blend": [1, 2]},
        **{"content_layers": ["conv1_1", "conv2_2"], "style_layers": ["relu1_1"]},
    }
