"""The submission form, built from the model of the job settings.

Labels, bounds, help text, choices and defaults all come from the model, so there is
no second list of settings to keep.
"""

import math
from collections.abc import Mapping
from typing import Any

from flask_wtf import FlaskForm
from wtforms import (
    BooleanField,
    Field,
    FileField,
    FloatField,
    HiddenField,
    IntegerField,
    MultipleFileField,
    RadioField,
    SelectField,
    SelectMultipleField,
    StringField,
    ValidationError,
)
from wtforms.validators import InputRequired, NumberRange, Optional
from wtforms.widgets import NumberInput, TextInput

from stylequeue_shared.job_settings import (
    MAX_STYLES,
    PRESETS,
    JobSettings,
    complete_settings,
)
from stylequeue_shared.settings import Settings

# Saves a first-time visitor the wait for 700 steps; the API's default is `classic`.
SUGGESTED_PRESET = "quick"


class NumberField(FloatField):
    """A float shown without exponent or trailing zeros, and always finite."""

    widget = NumberInput(step="any")

    def _value(self) -> str:
        if self.raw_data:
            return str(self.raw_data[0])
        return "" if self.data is None else f"{self.data:.12g}"

    def process_formdata(self, valuelist: list[Any]) -> None:
        super().process_formdata(valuelist)
        if self.data is not None and not math.isfinite(self.data):
            self.data = None
            raise ValueError("Not a number.")


class NumbersField(Field):
    """Numbers separated by commas; nothing at all is None."""

    widget = TextInput()
    data: list[float] | None

    def _value(self) -> str:
        if self.raw_data:
            return str(self.raw_data[0])
        return ", ".join(f"{number:.12g}" for number in self.data or ())

    def process_formdata(self, valuelist: list[Any]) -> None:
        words = [word for word in " ".join(valuelist).replace(",", " ").split() if word]
        try:
            self.data = [float(word) for word in words] or None
        except ValueError:
            self.data = None
            raise ValueError(
                "Give numbers separated by commas, such as 2, 1."
            ) from None
        if self.data and not all(map(math.isfinite, self.data)):
            self.data = None
            raise ValueError("Give finite numbers.")


class PictureForm(FlaskForm):
    """The pictures of a submission; `job_form` adds the settings."""

    content = FileField("Content picture")
    style = MultipleFileField("Style pictures")
    # Samples for those who browse without JavaScript; with it they become files.
    content_sample = StringField()
    style_sample = SelectMultipleField(choices=[], validate_choice=False)
    # Pictures that an earlier try without JavaScript left on the server.
    kept_content = SelectMultipleField(choices=[], validate_choice=False)
    kept_style = SelectMultipleField(choices=[], validate_choice=False)
    # One for each time that the form is shown, so that a double click gives one job.
    idempotency_key = HiddenField()
    # The preset whose values were shown: what differs from them was changed by hand.
    shown_preset = HiddenField()

    def settings_fields(self, *, advanced: bool) -> list[Field]:
        """Return the fields of the settings in view, or of those under Advanced."""
        return [
            field
            for field in self
            if field.name in SCHEMA
            and field.name != "preset"
            and bool(SCHEMA[field.name].get("advanced")) == advanced
        ]

    @property
    def is_stale(self) -> bool:
        """Whether it was refused since it did not carry the token of this session."""
        return bool(self.csrf_token.errors)

    def given(self) -> dict[str, Any]:
        """Return the preset and every value that differs from what was shown for it.

        So a visitor without JavaScript who only picks another preset gets its values.
        """
        shown = preset_values(self.shown_preset.data)
        given = {"preset": self.data["preset"]}
        for name in SCHEMA:
            value = self.data[name]
            if name != "preset" and value is not None and value != shown[name]:
                given[name] = value
        return given


def job_form(limits: Settings) -> type[PictureForm]:
    """Make the form for an installation with these limits."""
    fields = {name: _field(name, schema, limits) for name, schema in SCHEMA.items()}
    return type("JobForm", (PictureForm,), fields)


def suggested(settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what the form starts with: a preset's values, or those of a job."""
    values = {**preset_values(SUGGESTED_PRESET), **(settings or {})}
    return {**values, "shown_preset": values["preset"]}


def preset_values(preset: str | None) -> dict[str, Any]:
    """Return all values of a preset as the form holds them; the seed is left open."""
    known = preset if preset in PRESETS else SUGGESTED_PRESET
    settings = complete_settings({"preset": known, "seed": 0}, styles=1)
    return {**settings.model_dump(mode="json"), "seed": None}


def _schema() -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = JobSettings.model_json_schema()[
        "properties"
    ]
    return {name: _without_null(one) for name, one in properties.items()}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Merge `X or null` into X marked optional."""
    kinds = schema.get("anyOf")
    if kinds is None:
        return schema
    (kind,) = (one for one in kinds if one["type"] != "null")
    return {**kind, **schema, "optional": True}


SCHEMA = _schema()


def _field(name: str, schema: dict[str, Any], limits: Settings) -> Any:
    labels: dict[str, Any] = {
        "label": schema["title"],
        "description": schema["description"],
    }
    if "enum" in schema:
        kind = RadioField if name == "preset" else SelectField
        return kind(choices=schema["enum"], **labels)
    if schema["type"] == "array":
        if "enum" in schema["items"]:
            layers = schema["items"]["enum"]
            return SelectMultipleField(
                choices=layers, validators=[_at_least_one], **labels
            )
        return NumbersField(validators=[_at_most_styles], **labels)
    if schema["type"] == "boolean":
        return BooleanField(**labels)
    checks = _number_validators(name, schema, limits)
    if schema["type"] == "integer":
        return IntegerField(validators=checks, **labels)
    return NumberField(validators=checks, **labels)


def _number_validators(
    name: str, schema: dict[str, Any], limits: Settings
) -> list[Any]:
    low = schema.get("minimum")
    high = schema.get("maximum", schema.get("exclusiveMaximum", 1) - 1)
    largest = {
        "image_size": limits.max_image_size,
        "style_size": limits.max_image_size,
        "steps": limits.max_steps,
        "snapshot_every": limits.max_steps,
    }
    high = min(high, largest.get(name, high))
    # A seed left out is drawn at random, although every job has one.
    optional = schema.get("optional") or "default" not in schema
    needed = Optional() if optional else InputRequired("A number is needed.")
    between = f"Give a number from {low:g} to {high:.12g}."
    return [needed, NumberRange(low, high, between)]


def _at_least_one(form: FlaskForm, field: Field) -> None:
    if not field.data:
        raise ValidationError("Choose at least one layer.")


def _at_most_styles(form: FlaskForm, field: Field) -> None:
    if field.data and len(field.data) > MAX_STYLES:
        raise ValidationError(f"At most {MAX_STYLES} weights.")
