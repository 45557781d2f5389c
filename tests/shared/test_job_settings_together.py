"""What two settings, or settings and pictures or limits, may not be together."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from stylequeue_shared.errors import InvalidPicture
from stylequeue_shared.job_settings import (
    MAX_SNAPSHOTS,
    MAX_STYLES,
    check_fits,
)
from tests.shared.choosing import complete, refused

# -- What has to hang together --------------------------------------------------------


@pytest.mark.parametrize("blend", ["[1]", "[1, 1, 1]", f"[{'1, ' * 7}1]"])
def test_a_style_blend_has_one_weight_per_picture(blend: str) -> None:
    error = refused(f'{{"style_blend": {blend}}}', styles=2)
    assert error.field == "style_blend"
    count = len(json.loads(blend))
    assert f"style_blend: {count} weights for 2 style pictures; one" in error.message


@pytest.mark.parametrize(
    ("blend", "said"),
    [
        ("[0, 0]", "all weights are 0"),
        ("[]", "at least 1 item"),
        ("[1, -0.5]", "found -0.5; "),
        ("[1, 1000001]", "found 1000001; input should be less than or equal to"),
        ('["1", 1]', 'found "1"; '),
        ("[true, 1]", "found true; "),
        ("[null, 1]", "found null; "),
        ("2", "found 2; "),
        (json.dumps([1] * (MAX_STYLES + 1)), f"at most {MAX_STYLES} items"),
    ],
)
def test_a_style_blend_that_cannot_be_normalised_is_refused(
    blend: str, said: str
) -> None:
    error = refused(f'{{"style_blend": {blend}}}', styles=2)
    assert error.field == "style_blend"
    assert error.message.startswith("style_blend: ")
    assert said in error.message


@pytest.mark.parametrize(
    ("blend", "expected"),
    [
        ("[3, 1]", (0.75, 0.25)),
        ("[0, 2]", (0.0, 1.0)),
        ("[1000000, 1e-300]", (1.0, 0.0)),
        ("[5e-324, 5e-324]", (0.5, 0.5)),
        ("null", (0.5, 0.5)),
    ],
)
def test_a_style_blend_is_brought_to_a_sum_of_one(
    blend: str, expected: tuple[float, float]
) -> None:
    found = complete(f'{{"style_blend": {blend}}}', styles=2).blend(2)
    assert found == pytest.approx(expected, abs=1e-12)
    assert sum(found) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("styles", range(1, MAX_STYLES + 1))
def test_styles_without_a_blend_count_alike(styles: int) -> None:
    assert complete("", styles).blend(styles) == (1 / styles,) * styles


def test_one_of_the_two_weights_must_be_more_than_zero() -> None:
    error = refused('{"content_weight": 0, "style_weight": 0, "tv_weight": 1}')
    assert error.field == "style_weight"
    assert "content_weight and style_weight are both 0" in error.message
    complete('{"content_weight": 0}')
    complete('{"style_weight": 0}')


@pytest.mark.parametrize(
    ("steps", "every"), [(5050, 50), (101, 1), (202, 2), (100_000, 50), (99_999, 1)]
)
def test_the_advice_against_too_many_snapshots_is_the_smallest_that_works(
    steps: int, every: int
) -> None:
    error = refused(json.dumps({"steps": steps, "snapshot_every": every}))
    assert error.field == "snapshot_every"
    assert f"more than {MAX_SNAPSHOTS} snapshots" in error.message
    advice = int(error.message.split("take at least ")[1])
    assert steps // advice <= MAX_SNAPSHOTS
    complete(json.dumps({"steps": steps, "snapshot_every": advice}))
    refused(json.dumps({"steps": steps, "snapshot_every": advice - 1}))


def test_a_hundred_snapshots_may_be_taken() -> None:
    complete('{"steps": 5049, "snapshot_every": 50}')


# -- The seed, the installation's limits, the pictures --------------------------------


@pytest.mark.parametrize("text", ["{}", '{"seed": null}', '{"preset": "gatys"}'])
def test_a_seed_is_drawn_and_recorded(text: str) -> None:
    drawn = {complete(text).seed for _ in range(20)}
    assert len(drawn) > 15
    assert all(0 <= seed < 2**31 for seed in drawn)
    assert all("seed" in complete(text).model_dump() for _ in range(2))


def test_a_seed_that_is_given_is_kept() -> None:
    assert [complete('{"seed": 0}').seed for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("field", "limit", "variable"),
    [
        ("image_size", "max_image_size", "STYLEQUEUE_MAX_IMAGE_SIZE"),
        ("style_size", "max_image_size", "STYLEQUEUE_MAX_IMAGE_SIZE"),
        ("steps", "max_steps", "STYLEQUEUE_MAX_STEPS"),
    ],
)
def test_what_the_installation_does_not_allow_names_its_variable(
    field: str, limit: str, variable: str
) -> None:
    maxima = {"max_image_size": 5000, "max_steps": 5000, limit: 512}
    given: dict[str, Any] = {"steps": 64, "image_size": 64}
    error = refused(json.dumps({**given, field: 513}), **maxima)
    assert error.field == field
    allowed = f"at most 512 is allowed here ({variable})"
    assert error.message == f"{field}: found 513; {allowed}"
    complete(json.dumps({**given, field: 512}), **maxima)


def test_what_the_installation_does_not_allow_is_refused_though_it_is_the_default() -> (
    None
):
    assert refused("", max_steps=699).field == "steps"
    assert refused("", max_image_size=255).field == "image_size"


def fits(content: tuple[int, int], *styles: tuple[int, int], **given: object) -> str:
    """Return what is refused about pictures of those sizes."""
    settings = complete(json.dumps(given), len(styles))
    with pytest.raises(InvalidPicture) as caught:
        check_fits(settings, content, styles)
    assert caught.value.message.startswith(f"{caught.value.field}: ")
    return caught.value.message


def test_a_picture_that_is_too_thin_is_refused_by_name() -> None:
    deep = {"image_size": 100, "style_layers": ["relu5_1"]}
    said = "becomes 15 pixels on its shorter side at size 100; relu5_1 needs at least"
    assert fits((150, 1000), (9, 9), **deep) == f"content: 150 x 1000 {said} 16"
    assert fits((9, 9), (1000, 150), **deep) == f"style: 1000 x 150 {said} 16"
    both = fits((9, 9), (9, 9), (1000, 150), **deep)
    assert both == f"style[1]: 1000 x 150 {said} 16"


def test_a_style_is_measured_at_the_size_it_is_read_at() -> None:
    deep = {"image_size": 200, "style_size": 100, "style_layers": ["relu5_1"]}
    assert fits((150, 1000), (150, 1000), **deep).startswith("style: 150 x 1000")


def test_a_picture_that_just_reaches_the_deepest_layer_fits() -> None:
    settings = complete('{"image_size": 100, "style_layers": ["relu5_1"]}')
    check_fits(settings, (160, 1000), [(1, 1)])


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        complete("").steps = 3  # type: ignore[misc]
