"""The objective against its independent restatement in textbook.py."""

import pytest
import torch

from stylequeue_shared.layers import LAYERS
from stylequeue_shared.plans import Plan
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
