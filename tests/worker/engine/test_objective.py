"""The objective against its independent restatement in textbook.py, and in bands."""

import copy
import weakref

import pytest
import torch
from hypothesis import given as given_any
from hypothesis import settings as examples
from hypothesis import strategies as any_of

from stylequeue_shared import plans
from stylequeue_shared.layers import LAYERS
from stylequeue_shared.plans import Plan
from stylequeue_worker.engine.bands import Forward
from stylequeue_worker.engine.network import build_network
from stylequeue_worker.engine.objective import Objective, total_variation
from stylequeue_worker.engine.sums import GramSums
from stylequeue_worker.weights import load_weights
from tests.worker.engine import textbook
from tests.worker.engine.tiny import CPU, picture, settings, tiny_weights

GATYS = {
    "content_layers": ["relu4_2"],
    "style_layers": ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"],
}
CASES = {
    "classic": {},
    "gatys": GATYS,
    "average": {**GATYS, "pooling": "average"},
    "smooth": {"tv_weight": 1e4},
    "every_layer": {"content_layers": list(LAYERS), "style_layers": list(LAYERS)},
    "conv_and_its_relu": {
        "content_layers": ["conv2_1", "relu2_1"],
        "style_layers": ["relu1_1", "conv1_1", "conv1_2"],
    },
    "content_only": {"style_weight": 0},
    "style_only": {"content_weight": 0},
}

WHOLE = Plan(rows=1024, held=1, half=False, history=0)


def check(weights, given, size, dtype, close, plan=WHOLE):
    height, width = size
    job = settings(styles=2, style_blend=[1, 3], **given)
    content = picture(height, width, 1, dtype)
    styles = [picture(40, 50, 2, dtype), picture(64, 33, 3, dtype)]
    start = picture(height, width, 4, dtype)
    network = build_network(weights, CPU, dtype)
    found, gradient = Objective(network, content, styles, job, plan).gradient(start)

    # The restatement is always in double precision.
    start = start.double().requires_grad_()
    content, styles = content.double(), [style.double() for style in styles]
    wanted = textbook.losses(weights, start, content, styles, job)
    (expected,) = torch.autograd.grad(sum(wanted), start)
    for loss, target in zip(found, wanted, strict=True):
        assert float(loss) == pytest.approx(target.item(), rel=close, abs=1e-30)
    return float((gradient - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", CASES)
def test_a_tiny_network_agrees_with_the_textbook_to_1e_9(case):
    weights = tiny_weights()
    assert check(weights, CASES[case], (37, 50), torch.float64, 1e-9) < 1e-9


@pytest.mark.parametrize("size", [(16, 16), (16, 75), (47, 31), (33, 64)])
def test_odd_and_smallest_sizes_agree_with_the_textbook(size):
    assert check(tiny_weights(), GATYS, size, torch.float64, 1e-9) < 1e-9


@pytest.mark.parametrize("case", ["classic", "gatys", "average"])
def test_the_bundled_weights_agree_with_the_textbook_to_1e_9(case):
    weights = load_weights("bundled")
    assert check(weights, CASES[case], (64, 64), torch.float64, 1e-9) < 1e-9


@pytest.mark.parametrize("case", ["classic", "gatys", "every_layer"])
def test_in_float32_the_losses_agree_to_1e_5(case):
    weights = load_weights("bundled")
    gradient_error = check(weights, CASES[case], (64, 64), torch.float32, 1e-5)
    # One ReLU or pool tie that falls the other way is seen in the whole gradient.
    assert gradient_error < 5e-3


@pytest.mark.parametrize("held", [1, 2, 100])
@pytest.mark.parametrize("case", CASES)
def test_bands_agree_with_the_textbook_to_1e_9(case, held):
    plan = Plan(rows=16, held=held, half=False, history=0)
    found = check(tiny_weights(), CASES[case], (83, 50), torch.float64, 1e-9, plan)
    assert found < 1e-9


def test_a_gram_matrix_is_divided_by_all_four_dimensions():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    expected = torch.tensor([[5.0, 11.0], [11.0, 25.0]]) / 4
    sums = GramSums(torch.float32)
    sums.add({"conv1_1": features})
    torch.testing.assert_close(sums.grams()["conv1_1"], expected)


def test_total_variation_is_the_mean_square_of_steps_down_and_across():
    ramp = torch.tensor([[0.0, 0.5], [0.2, 0.7]]).expand(1, 3, 2, 2)
    assert float(total_variation(ramp)) == pytest.approx(0.04 + 0.25)


def test_total_variation_of_a_picture_one_pixel_wide_is_finite():
    assert float(total_variation(torch.rand(1, 3, 1, 1))) == 0


def test_the_content_itself_has_no_content_loss():
    network = build_network(tiny_weights(), CPU)
    content = picture(32, 32, 1)
    objective = Objective(network, content, [picture(32, 32, 2)], settings(), WHOLE)
    losses, _ = objective.gradient(content)
    assert float(losses.content) == 0
    assert float(losses.style) > 0


def test_a_blend_is_the_blended_sum_of_each_styles_loss():
    network = build_network(tiny_weights(), CPU, torch.float64)
    content, start = picture(32, 32, 1), picture(32, 32, 4).double()
    styles = [picture(40, 40, 2).double(), picture(24, 24, 3).double()]
    alone = [
        float(
            Objective(network, content.double(), [style], settings(), WHOLE)
            .gradient(start)[0]
            .style
        )
        for style in styles
    ]
    blended = Objective(
        network, content.double(), styles, settings(styles=2, style_blend=[1, 3]), WHOLE
    )
    expected = 0.25 * alone[0] + 0.75 * alone[1]
    assert float(blended.gradient(start)[0].style) == pytest.approx(expected, rel=1e-12)
    even = Objective(network, content.double(), styles, settings(styles=2), WHOLE)
    assert float(even.gradient(start)[0].style) == pytest.approx(
        sum(alone) / 2, rel=1e-12
    )


def cut(whole, size, plan):
    """Return the same objective in bands, with the same stored targets."""
    objective = copy.copy(whole)
    objective.plan = plan
    bands = objective.bands(torch.empty(1, 3, *size), whole.settings.layers)
    objective.content_targets = [
        {
            layer: target[..., slice(*edges[number : number + 2]), :]
            for layer, target in whole.content_targets[0].items()
            for edges in [bands.after[LAYERS.index(layer) // 2]]
        }
        for number in range(bands.count)
    ]
    return objective


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


def build(network, size, given, plan=WHOLE):
    job = settings(styles=2, style_blend=[1, 3], tv_weight=1e3, **given)
    dtype = network.mean.dtype
    styles = [picture(90, 70, 2, dtype), picture(64, 83, 3, dtype)]
    return Objective(network, picture(*size, 1, dtype), styles, job, plan)


@pytest.fixture(scope="module")
def bundled():
    return build_network(load_weights("bundled"), CPU)


SIZE = (160, 131)


@pytest.fixture(scope="module", params=["classic", "gatys", "average"])
def evaluated(request, bundled):
    """An objective, a picture, and what the whole of it gives in float32."""
    whole = build(bundled, SIZE, CASES[request.param])
    start = picture(*SIZE, 4)
    return whole, start, whole.gradient(start)


@pytest.mark.parametrize(("rows", "held"), [(16, 1), (16, 2), (32, 100), (48, 2)])
def test_in_float32_bands_agree_with_the_whole(evaluated, rows, held):
    whole, start, (expected, steepest) = evaluated
    objective = cut(whole, SIZE, Plan(rows, held, False, 0))
    assert len(objective.content_targets) == -(-SIZE[0] // rows)
    losses, gradient = objective.gradient(start)
    for loss, target in zip(losses, expected, strict=True):
        assert float(loss) == pytest.approx(float(target), rel=1e-5)
    assert distance(gradient, steepest) < 2e-3


def test_content_in_half_precision_changes_the_content_loss_by_little(evaluated):
    whole, start, (expected, steepest) = evaluated
    objective = cut(whole, SIZE, Plan(1024, 1, True, 0))
    objective.content_targets = [
        {layer: one.half() for layer, one in objective.content_targets[0].items()}
    ]
    losses, gradient = objective.gradient(start)
    assert float(losses.content) == pytest.approx(float(expected.content), rel=1e-3)
    assert losses.content != expected.content
    assert (losses.style, losses.tv) == (expected.style, expected.tv)
    assert distance(gradient, steepest) < 1e-3


@pytest.mark.parametrize(
    ("half", "dtype", "kept"),
    [
        (True, torch.float32, torch.float16),
        (False, torch.float32, torch.float32),
        # Tests alone compute in double precision: to compare with.
        (True, torch.float64, torch.float64),
    ],
)
def test_a_plan_says_whether_the_content_is_kept_in_half_precision(half, dtype, kept):
    network = build_network(tiny_weights(), CPU, dtype)
    objective = build(network, (40, 40), {}, Plan(16, 1, half, 0))
    found = {one.dtype for band in objective.content_targets for one in band.values()}
    assert found == {kept}
    assert {one.dtype for one in objective.style_targets.values()} == {dtype}


def test_in_bfloat16_loss_and_gradient_are_close_to_those_in_float32(
    evaluated, bundled
):
    whole, start, (expected, steepest) = evaluated
    given = {"pooling": whole.settings.pooling}
    for kind in ("content_layers", "style_layers"):
        given[kind] = list(getattr(whole.settings, kind))
    low = build(bundled.lowered(), SIZE, given, Plan(48, 2, True, 0))
    losses, gradient = low.gradient(start)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert gradient.dtype == torch.float32
    assert float(losses.style) == pytest.approx(float(expected.style), rel=0.02)
    assert float(losses.content) == pytest.approx(float(expected.content), rel=0.02)
    assert losses.tv == expected.tv
    assert distance(gradient, steepest) < 0.1


@pytest.mark.parametrize("held", [1, 2])
def test_no_more_bands_are_held_than_the_plan_says(monkeypatch, held):
    objective = build(
        build_network(tiny_weights(), CPU), (96, 40), {}, Plan(16, held, False, 0)
    )
    read, bands, alive = Forward.band, [], []

    def watched(*given):
        alive.append(sum(one() is not None for one in bands))
        found = read(*given)
        bands.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(Forward, "band", watched)
    objective.gradient(picture(96, 40, 4))
    assert len(alive) == 6 + 6 - held
    assert max(alive) == held - 1


def test_a_style_wider_than_the_picture_is_read_in_smaller_bands(monkeypatch):
    monkeypatch.setattr(plans, "BAND_PIXELS", 512)
    read = []
    band = Forward.band

    def watched(forward, given, number):
        top, bottom = forward._bands.picture[number : number + 2]
        read.append((bottom - top) * given.shape[-1])
        return band(forward, given, number)

    monkeypatch.setattr(Forward, "band", watched)
    job, size = settings(), (16, 64)
    content, style = picture(64, 16, 1), picture(40, 64, 2)
    network = build_network(tiny_weights(), CPU)
    Objective(network, content, [style], job, plans.plan(job, size))
    assert read == [512] * 2 + [512] * 5


@examples(max_examples=40, deadline=None, derandomize=True)
@given_any(any_of.data())
def test_whatever_the_bands_they_agree_with_the_whole_to_1e_9(data):
    layer = any_of.sampled_from(LAYERS)
    layers = any_of.lists(layer, min_size=1, max_size=3, unique=True)
    given = {
        "content_layers": data.draw(layers, "content"),
        "style_layers": data.draw(layers, "style"),
        "pooling": data.draw(any_of.sampled_from(["max", "average"]), "pooling"),
    }
    side = any_of.integers(settings(**given).minimum_side, 75)
    size = (data.draw(side, "height"), data.draw(side, "width"))
    # Plans take multiples of twice the stride; any other height is as good.
    rows = data.draw(any_of.integers(1, 40), "rows")
    held = data.draw(any_of.integers(1, 8), "held")
    network = build_network(tiny_weights(), CPU, torch.float64)
    start = picture(*size, 4, torch.float64)
    expected, steepest = build(network, size, given).gradient(start)
    losses, gradient = build(network, size, given, Plan(rows, held, False, 0)).gradient(
        start
    )
    for loss, target in zip(losses, expected, strict=True):
        assert float(loss) == pytest.approx(float(target), rel=1e-9)
    assert distance(gradient, steepest) < 1e-9
