import json
from typing import get_args

import pytest

from stylequeue_shared.job_settings import PRESETS, JobSettings
from stylequeue_shared.layers import LAYERS
from tests.shared.choosing import complete, refused

# The table in the design, row by row; the seed is drawn.
DEFAULTS = {
    "preset": "classic",
    "image_size": 256,
    "steps": 700,
    "content_layers": ["conv2_2"],
    "style_layers": ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"],
    "content_weight": 1.0,
    "style_weight": 1e6,
    "style_blend": None,
    "style_size": None,
    "tv_weight": 0.0,
    "init": "noise",
    "optimizer": "lbfgs",
    "preconditioner": "none",
    "precision": "float32",
    "scales": 1,
    "stop_when_flat": False,
    "pooling": "max",
    "preserve_colors": "none",
    "keep_alpha": False,
    "result_format": "png",
    "snapshot_every": 50,
}


@pytest.mark.parametrize("text", [None, "", "  \n", b"", "{}", '{"preset": "classic"}'])
def test_what_is_left_out_is_as_the_design_says(text: str | bytes | None) -> None:
    found = complete(text).model_dump(mode="json")
    assert 0 <= found.pop("seed") < 2**31
    assert found == DEFAULTS


def test_quick_is_the_same_objective_from_the_content() -> None:
    found = complete('{"preset": "quick", "seed": 1}').model_dump(mode="json")
    quick = {
        "preset": "quick",
        "init": "content",
        "steps": 150,
        "snapshot_every": 15,
        "preconditioner": "frequency",
        "precision": "mixed",
    }
    assert found == {**DEFAULTS, **quick, "seed": 1}


def test_gatys_reads_the_layers_of_the_paper() -> None:
    found = complete('{"preset": "gatys", "seed": 1}').model_dump(mode="json")
    layers = {
        "content_layers": ["relu4_2"],
        "style_layers": ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"],
    }
    assert found == {**DEFAULTS, **layers, "preset": "gatys", "seed": 1}


def test_a_preset_s_values_may_be_overridden_and_its_name_stays() -> None:
    found = complete('{"preset": "quick", "steps": 30, "init": "noise"}')
    assert (found.preset, found.steps, found.init) == ("quick", 30, "noise")
    assert found.snapshot_every == PRESETS["quick"]["snapshot_every"]


def test_every_preset_is_known_by_the_model() -> None:
    for name in PRESETS:
        assert complete(json.dumps({"preset": name})).preset == name
    assert get_args(JobSettings.model_fields["preset"].annotation) == tuple(PRESETS)


def test_print_goes_from_coarse_to_fine() -> None:
    found = complete('{"preset": "print"}')
    assert (found.scales, found.image_size) == (3, 1024)
    classic = complete(None)
    assert found.style_layers == classic.style_layers
    assert found.content_layers == classic.content_layers


@pytest.mark.parametrize("preset", ['"fast"', "null", "3", "[]", "{}", '["print"]'])
def test_a_preset_that_does_not_exist_is_refused(preset: str) -> None:
    error = refused(f'{{"preset": {preset}}}')
    assert error.field == "preset"
    assert f"found {preset}" in error.message
    assert all(f"'{name}'" in error.message for name in PRESETS)


@pytest.mark.parametrize(
    ("result_format", "suffix"),
    [("png", ".png"), ("png16", ".png"), ("tiff16", ".tif")],
)
def test_the_format_of_the_result_decides_how_its_file_is_called(
    result_format: str, suffix: str
) -> None:
    found = complete(json.dumps({"result_format": result_format}))
    assert found.result_suffix == suffix


@pytest.mark.parametrize("value", ['"jpeg"', '"PNG16"', '"tiff"', "16", "null"])
def test_a_format_that_is_not_written_is_refused_with_those_that_are(
    value: str,
) -> None:
    message = refused(f'{{"result_format": {value}}}').message
    assert f"found {value}; input should be 'png', 'png16' or 'tiff16'" in message


@pytest.mark.parametrize("value", ['"true"', "1", "null", "[]"])
def test_keeping_alpha_is_true_or_false(value: str) -> None:
    assert refused(f'{{"keep_alpha": {value}}}').field == "keep_alpha"


# -- Layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["content_layers", "style_layers"])
@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ('["conv1_1", "relu2_1", "conv1_1"]', "a layer is named twice"),
        ('["conv1_3"]', "found \"conv1_3\"; input should be 'conv1_1', "),
        ('["pool1"]', 'found "pool1"; '),
        ('["CONV1_1"]', 'found "CONV1_1"; '),
        ("[1]", "found 1; "),
        ("[]", "found []; tuple should have at least 1 item"),
        ('"conv1_1"', 'found "conv1_1"; '),
        ("null", "found null; "),
        (json.dumps([*LAYERS, "conv1_1"]), "at most 32 items"),
    ],
)
def test_layers_are_a_list_of_known_ones_each_named_once(
    field: str, layers: str, said: str
) -> None:
    error = refused(f'{{"{field}": {layers}}}')
    assert error.field == field
    assert error.message.startswith(f"{field}: ")
    assert said in error.message


def test_an_unknown_layer_is_answered_with_all_that_are_known() -> None:
    message = refused('{"style_layers": ["fc6"]}').message
    assert all(f"'{layer}'" in message for layer in LAYERS)


def test_all_layers_may_be_read_at_once() -> None:
    given = json.dumps({"content_layers": LAYERS, "style_layers": LAYERS})
    assert complete(given).layers == LAYERS


def test_the_layers_that_are_read_come_in_the_network_s_order_and_once() -> None:
    found = complete(
        '{"content_layers": ["relu4_2", "conv1_1"],'
        ' "style_layers": ["conv5_1", "relu1_1", "conv1_1"]}'
    )
    assert found.layers == ("conv1_1", "relu1_1", "relu4_2", "conv5_1")


@pytest.mark.parametrize(
    ("content", "style", "side"),
    [
        ("conv1_1", "relu1_2", 1),
        ("conv2_1", "conv1_1", 2),
        ("conv1_1", "conv3_4", 4),
        ("relu4_2", "conv1_1", 8),
        ("conv1_1", "relu5_4", 16),
    ],
)
def test_the_deepest_layer_decides_how_small_a_picture_may_be(
    content: str, style: str, side: int
) -> None:
    given = {"content_layers": [content], "style_layers": [style]}
    assert complete(json.dumps(given)).minimum_side == side
