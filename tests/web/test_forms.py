from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.datastructures import MultiDict

from stylequeue_shared.job_settings import (
    PRESETS,
    JobSettings,
    complete_settings,
)
from stylequeue_shared.settings import Settings
from stylequeue_web import forms


@pytest.fixture
def limits(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, max_image_size=1024, max_steps=900)


@pytest.fixture(autouse=True)
def context() -> Iterator[None]:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a test's", WTF_CSRF_ENABLED=False)
    with app.test_request_context():
        yield


def filled(limits: Settings, base: str = "quick", **changes: Any) -> Any:
    """Return the form as a browser sends it, some values changed by hand."""
    sent: MultiDict[str, str] = MultiDict({"shown_preset": base})
    for name, value in {**forms.preset_values(base), **changes}.items():
        values = value if isinstance(value, list) else [value]
        # A box that is not ticked is not sent at all.
        if value is not False:
            sent.setlist(name, ["" if one is None else str(one) for one in values])
    return forms.job_form(limits)(formdata=sent)


def shown(limits: Settings) -> Any:
    return forms.job_form(limits)(data=forms.suggested())


def test_every_setting_has_a_field_with_its_label_and_help(limits: Settings) -> None:
    form = shown(limits)
    for name, info in JobSettings.model_fields.items():
        assert form[name].label.text == info.title
        assert form[name].description == info.description


def test_every_setting_is_in_view_or_advanced(limits: Settings) -> None:
    form = shown(limits)
    in_view = [one.name for one in form.settings_fields(advanced=False)]
    advanced = [one.name for one in form.settings_fields(advanced=True)]
    assert in_view == ["image_size", "steps"]
    assert {"preset", *in_view, *advanced} == set(JobSettings.model_fields)


def test_the_form_suggests_quick_with_its_values(limits: Settings) -> None:
    form = shown(limits)
    assert form["preset"].data == "quick"
    assert form["steps"].data == PRESETS["quick"]["steps"]
    assert form["init"].data == "content"


def test_the_bounds_are_those_of_the_model_and_the_installation(
    limits: Settings,
) -> None:
    form = shown(limits)
    assert 'min="32"' in form["image_size"]()
    assert 'max="1024"' in form["image_size"]()
    assert 'max="900"' in form["steps"]()
    assert f'max="{2**31 - 1}"' in form["seed"]()


def test_large_numbers_are_shown_without_an_exponent(limits: Settings) -> None:
    assert 'value="1000000"' in shown(limits)["style_weight"]()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_left_as_it_is_sends_only_its_name(
    limits: Settings, preset: str
) -> None:
    form = filled(limits, preset)
    assert form.validate(), form.errors
    assert form.given() == {"preset": preset}


def test_what_was_changed_by_hand_is_sent(limits: Settings) -> None:
    form = filled(limits, steps=40, style_layers=["conv1_1"], seed=7)
    assert form.validate(), form.errors
    given = {"preset": "quick", "steps": 40, "style_layers": ["conv1_1"], "seed": 7}
    assert form.given() == given


def test_a_ticked_box_is_sent_as_true(limits: Settings) -> None:
    form = filled(limits, keep_alpha=True)
    assert form.validate(), form.errors
    assert form.given() == {"preset": "quick", "keep_alpha": True}
    assert "checked" in form["keep_alpha"]()
    assert "checked" not in shown(limits)["keep_alpha"]()


def test_another_preset_picked_without_javascript_brings_its_values(
    limits: Settings,
) -> None:
    form = filled(limits, "quick", preset="gatys", image_size=128)
    assert form.validate(), form.errors
    settings = complete_settings(form.given(), styles=1)
    assert settings.content_layers == ("relu4_2",)
    assert (settings.steps, settings.image_size) == (700, 128)


def test_the_settings_of_a_job_come_back_as_they_were(limits: Settings) -> None:
    given = {"preset": "gatys", "seed": 3, "steps": 60, "style_blend": [2.0, 1.0]}
    settings = complete_settings(given, styles=2)
    values = forms.suggested(settings.model_dump(mode="json"))
    form = filled(limits, "gatys", **{**values, "style_blend": "2, 1"})
    assert form.validate(), form.errors
    assert complete_settings(form.given(), styles=2) == settings


def test_the_weights_of_styles_are_read_with_commas(limits: Settings) -> None:
    form = filled(limits, style_blend="2, 0.5")
    assert form.validate(), form.errors
    assert form.given()["style_blend"] == [2, 0.5]
    assert 'value="2, 0.5"' in form["style_blend"]()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("image_size", "31", "from 32 to 1024"),
        ("image_size", "1025", "from 32 to 1024"),
        ("steps", "901", "from 1 to 900"),
        ("steps", "", "needed"),
        ("steps", "many", "Not a valid integer"),
        ("style_weight", "nan", "Not a number"),
        ("style_weight", "inf", "Not a number"),
        ("style_weight", "-1", "from 0 to"),
        ("style_blend", "a, b", "separated by commas"),
        ("style_blend", "1,inf", "finite"),
        ("style_blend", "1 1 1 1 1 1 1 1 1", "At most 8"),
        ("style_layers", [], "at least one layer"),
        ("style_layers", ["conv9_9"], "not a valid choice"),
        ("optimizer", "magic", "Not a valid choice"),
        ("preset", "nice", "Not a valid choice"),
        ("seed", "-1", "from 0 to"),
    ],
)
def test_a_bad_value_is_refused_at_its_field(
    limits: Settings, field: str, value: Any, says: str
) -> None:
    form = filled(limits, **{field: value})
    assert not form.validate()
    assert list(form.errors) == [field]
    assert says in " ".join(form.errors[field])
