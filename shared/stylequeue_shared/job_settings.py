"""The settings of one job: their meaning, unit, bounds and defaults, in one place.

The form, the API, its OpenAPI text and the engine all read this model.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from stylequeue_shared.errors import InvalidPicture, InvalidSetting
from stylequeue_shared.layers import LAYERS, stride
from stylequeue_shared.sizes import fit

MAX_STYLES = 8
MAX_SNAPSHOTS = 100

type_layers = Literal[LAYERS]  # type: ignore[valid-type]
Layers = Annotated[tuple[type_layers, ...], Field(min_length=1, max_length=len(LAYERS))]

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "classic": {},
        # The same objective, by the fastest road to it that we know.
        "quick": {
            "init": "content",
            "steps": 150,
            "snapshot_every": 15,
            "preconditioner": "frequency",
            "precision": "mixed",
        },
        # Gatys et al. (2016), section 2.3 and figure 1.
        "gatys": {
            "content_layers": ("relu4_2",),
            "style_layers": ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
        },
        # Coarse to fine: strokes are laid at the small sizes, and keep their width.
        "print": {
            "image_size": 1024,
            "scales": 3,
            "init": "content",
            "steps": 300,
            "snapshot_every": 20,
            "preconditioner": "frequency",
            "precision": "mixed",
        },
    }
)

PRESET_MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "classic": "The textbook's way, step by step.",
        "quick": "The same aim by the fastest road: coarse structure first, "
        "and the first steps at half the precision.",
        "gatys": "Reads the layers of Gatys et al. (2016): deeper, so that the style "
        "may bend shapes.",
        "print": "For large pictures: coarse to fine, so that strokes stay wide.",
    }
)


class JobSettings(BaseModel):
    """All settings of one job, complete and immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: Literal["classic", "quick", "gatys", "print"] = Field(
        "classic",
        title="Preset",
        description="A named set of the values below; any of them may be overridden.",
    )
    image_size: int = Field(
        256,
        ge=32,
        le=8192,
        title="Size",
        description="Longer side of the result in pixels; the aspect ratio is kept.",
        json_schema_extra={"unit": "pixels"},
    )
    steps: int = Field(
        700,
        ge=1,
        le=100_000,
        title="Steps",
        description="Evaluations of loss and gradient, each followed by one update "
        "of the picture. More steps take longer and come closer to the style.",
    )
    content_layers: Layers = Field(
        ("conv2_2",),
        title="Content layers",
        description="VGG-19 layers whose features keep the content.",
        json_schema_extra={"advanced": True},
    )
    style_layers: Layers = Field(
        ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"),
        title="Style layers",
        description="VGG-19 layers whose Gram matrices carry the style.",
        json_schema_extra={"advanced": True},
    )
    content_weight: float = Field(
        1.0,
        ge=0,
        le=1e12,
        title="Content weight",
        description="Factor on the content loss.",
        json_schema_extra={"advanced": True},
    )
    style_weight: float = Field(
        1e6,
        ge=0,
        le=1e12,
        title="Style weight",
        description="Factor on the style loss.",
        json_schema_extra={"advanced": True},
    )
    style_blend: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] | None = Field(
        None,
        min_length=1,
        max_length=MAX_STYLES,
        title="Style blend",
        description="One weight per style picture, normalised to sum 1. "
        "Left out: all alike.",
        json_schema_extra={"advanced": True},
    )
    style_size: int | None = Field(
        None,
        ge=32,
        le=8192,
        title="Style size",
        description="Longer side in pixels at which a style is read. "
        "Left out: as the result.",
        json_schema_extra={"advanced": True, "unit": "pixels"},
    )
    tv_weight: float = Field(
        0.0,
        ge=0,
        le=1e12,
        title="Smoothness",
        description="Factor on the total variation; a little of it removes grain.",
        json_schema_extra={"advanced": True},
    )
    init: Literal["noise", "content", "style"] = Field(
        "noise",
        title="Start from",
        description="The picture that step 1 starts from.",
        json_schema_extra={"advanced": True},
    )
    optimizer: Literal["lbfgs", "adam"] = Field(
        "lbfgs",
        title="Optimiser",
        description="L-BFGS needs fewer steps, Adam less memory.",
        json_schema_extra={"advanced": True},
    )
    preconditioner: Literal["none", "frequency"] = Field(
        "none",
        title="Preconditioner",
        description="frequency: L-BFGS takes larger steps in coarse structure than in "
        "fine, and needs fewer of them.",
        json_schema_extra={"advanced": True},
    )
    precision: Literal["float32", "mixed"] = Field(
        "float32",
        title="Precision",
        description="mixed: the first steps are computed in bfloat16, where the "
        "device is fast in it, and the others in float32.",
        json_schema_extra={"advanced": True},
    )
    scales: int = Field(
        1,
        ge=1,
        le=6,
        title="Scales",
        description="Coarse to fine: so many sizes, each twice the one before; the "
        "last is image_size. The first take most of the steps.",
        json_schema_extra={"advanced": True},
    )
    stop_when_flat: bool = Field(
        False,
        title="Stop when flat",
        description="End before the last step when the loss hardly falls any more.",
        json_schema_extra={"advanced": True},
    )
    pooling: Literal["max", "average"] = Field(
        "max",
        title="Pooling",
        description="How the network shrinks its features; average is smoother.",
        json_schema_extra={"advanced": True},
    )
    preserve_colors: Literal["none", "luminance", "histogram"] = Field(
        "none",
        title="Keep colours",
        description="luminance: only the brightness is painted, the content's colours "
        "stay. histogram: the styles take on the content's colours beforehand.",
        json_schema_extra={"advanced": True},
    )
    keep_alpha: bool = Field(
        False,
        title="Keep transparency",
        description="The content's alpha channel is kept in the result; if not, "
        "what is transparent is painted as white.",
        json_schema_extra={"advanced": True},
    )
    result_format: Literal["png", "png16", "tiff16"] = Field(
        "png",
        title="Result format",
        description="png16 and tiff16 have 16 bits a channel, for printing and "
        "editing; png has 8, as snapshots always have.",
        json_schema_extra={"advanced": True},
    )
    snapshot_every: int = Field(
        50,
        ge=1,
        le=100_000,
        title="Snapshot every",
        description="Steps between saved pictures; at most "
        f"{MAX_SNAPSHOTS} pictures a job.",
        json_schema_extra={"advanced": True, "unit": "steps"},
    )
    seed: int = Field(
        ...,
        ge=0,
        lt=2**31,
        title="Seed",
        description="The same seed, settings, pictures and weights on the same kind "
        "of device give the same picture. Left out: drawn at random and recorded.",
        json_schema_extra={"advanced": True},
    )

    @field_validator("content_layers", "style_layers")
    @classmethod
    def _named_once(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(layers)) < len(layers):
            raise ValueError("a layer is named twice")
        return layers

    @model_validator(mode="after")
    def _hang_together(self) -> "JobSettings":
        # A style blend of zeros cannot be normalised to sum 1.
        if self.style_blend is not None and sum(self.style_blend) <= 0:
            raise ValueError("style_blend: all weights are 0, at least one must not be")
        if self.content_weight == 0 and self.style_weight == 0:
            raise ValueError("style_weight: content_weight and style_weight are both 0")
        if self.steps // self.snapshot_every > MAX_SNAPSHOTS:
            raise ValueError(
                f"snapshot_every: {self.steps} steps every {self.snapshot_every} are "
                f"more than {MAX_SNAPSHOTS} snapshots; take at least "
                f"{self.steps // (MAX_SNAPSHOTS + 1) + 1}"
            )
        return self

    @property
    def result_suffix(self) -> str:
        """The ending of the result's file name."""
        return ".tif" if self.result_format == "tiff16" else ".png"

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that the objective reads, in the network's order."""
        wanted = {*self.content_layers, *self.style_layers}
        return tuple(layer for layer in LAYERS if layer in wanted)

    @property
    def minimum_side(self) -> int:
        """The shortest side in pixels that still reaches the deepest layer."""
        return stride(self.layers[-1])

    def blend(self, styles: int) -> tuple[float, ...]:
        """Return one weight per style picture, of sum 1."""
        weights = self.style_blend or (1.0,) * styles
        return tuple(weight / sum(weights) for weight in weights)


def parse_settings(text: str | bytes | None) -> dict[str, Any]:
    """Read the `settings` field of a request: a JSON object without NaN.

    Raises InvalidSetting, naming the field, for anything else.
    """
    if text is None or not text.strip():
        return {}
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=_without_twins
        )
        # A lone surrogate, which only JSON can write, is no text.
        json.dumps(value, ensure_ascii=False).encode()
    except InvalidSetting:
        raise
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise InvalidSetting(
            f"settings: not a JSON object ({error})", field="settings"
        ) from None
    except ValueError:
        raise InvalidSetting(
            "settings: found a number of thousands of digits, or what is not UTF-8",
            field="settings",
        ) from None
    if not isinstance(value, dict):
        raise InvalidSetting(
            "settings: a JSON object is needed, found "
            f"{json.dumps(value, ensure_ascii=False)[:80]}",
            field="settings",
        )
    return value


def complete_settings(
    given: Mapping[str, Any],
    *,
    styles: int,
    max_image_size: int | None = None,
    max_steps: int | None = None,
) -> JobSettings:
    """Fill in preset, defaults and seed, and check the whole for `styles` pictures.

    The maxima are those of the installation. Raises InvalidSetting naming the field,
    what was found and what is allowed.
    """
    preset = given.get("preset", "classic")
    base = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    merged: dict[str, Any] = {"seed": secrets.randbelow(2**31), **base, **given}
    if merged["seed"] is None:
        merged["seed"] = secrets.randbelow(2**31)
    try:
        # Strictly, as JSON: true is no number, nor is "12".
        settings = JobSettings.model_validate_json(json.dumps(merged), strict=True)
    except RecursionError:
        raise _too_deep() from None
    except ValidationError as error:
        _refuse(error)
    _refuse_larger(settings, "steps", max_steps, "STYLEQUEUE_MAX_STEPS")
    for field in ("image_size", "style_size"):
        _refuse_larger(settings, field, max_image_size, "STYLEQUEUE_MAX_IMAGE_SIZE")
    if settings.style_blend is not None and len(settings.style_blend) != styles:
        raise InvalidSetting(
            f"style_blend: {len(settings.style_blend)} weights for "
            f"{styles} style pictures; one weight per picture is needed",
            field="style_blend",
        )
    return settings


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; a name given twice would hide one of them."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            # The name may be empty, or a lone surrogate, which no answer can carry.
            field = name[:40].encode(errors="replace").decode() or "settings"
            raise InvalidSetting(f"{field}: given twice", field=field)
        found[name] = value
    return found


def check_fits(
    settings: JobSettings,
    content: tuple[int, int],
    styles: Sequence[tuple[int, int]],
) -> None:
    """Refuse pictures, given as (width, height), too thin for the deepest layer.

    Raises InvalidPicture naming the field, what was found and what is allowed.
    """
    pictures = [("content", content, settings.image_size)]
    for field, style in zip(style_fields(len(styles)), styles, strict=True):
        pictures.append((field, style, settings.style_size or settings.image_size))
    for field, (width, height), size in pictures:
        shorter = min(fit((width, height), size))
        if shorter < settings.minimum_side:
            raise InvalidPicture(
                f"{field}: {width} x {height} becomes {shorter} pixels on its shorter "
                f"side at size {size}; {settings.layers[-1]} needs at least "
                f"{settings.minimum_side}",
                field=field,
            )


def style_fields(count: int) -> list[str]:
    """Return how errors call each of so many style pictures."""
    return ["style"] if count == 1 else [f"style[{number}]" for number in range(count)]


def read_options(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Return settings that were given as texts, lists with commas, as JSON values."""
    given: dict[str, Any] = {}
    for name, text in texts.items():
        if text is not None:
            is_list = "tuple" in str(JobSettings.model_fields[name].annotation)
            parts = [_as_json(part.strip()) for part in text.split(",")]
            given[name] = parts if is_list else _as_json(text)
    return given


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _too_deep() -> InvalidSetting:
    return InvalidSetting("settings: nested too deeply", field="settings")


def _refuse_larger(
    settings: JobSettings, field: str, limit: int | None, variable: str
) -> None:
    found = getattr(settings, field)
    if found is not None and limit is not None and found > limit:
        raise InvalidSetting(
            f"{field}: found {found}; at most {limit} is allowed here ({variable})",
            field=field,
        )


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidSetting(
        f"settings: {name} is not a number that JSON knows", field="settings"
    )


def _refuse(error: ValidationError) -> NoReturn:
    """Raise InvalidSetting for the first thing that pydantic found."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])[:40] if first["loc"] else "settings"
    if first["type"] == "value_error" and first["loc"]:
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidSetting(f"{field}: {message}", field=field) from None
    if first["type"] == "value_error":
        message = str(first["msg"]).removeprefix("Value error, ")
        # The model's own checks name the field themselves.
        raise InvalidSetting(message, field=message.split(":")[0]) from None
    if first["type"] == "extra_forbidden":
        known = ", ".join(JobSettings.model_fields)
        raise InvalidSetting(
            f"{field or 'settings'}: no such setting; the settings are {known}",
            field=field or "settings",
        ) from None
    if first["type"] == "json_invalid":
        # JSON that we wrote ourselves: its reader only has a lower limit of depth.
        raise _too_deep() from None
    # As it was sent: true and null, not True and None.
    found = json.dumps(first["input"], ensure_ascii=False)[:80]
    raise InvalidSetting(
        f"{field}: found {found}; {first['msg'][0].lower()}{first['msg'][1:]}",
        field=field,
    ) from None
