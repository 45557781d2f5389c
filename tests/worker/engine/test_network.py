import subprocess
import sys

import pytest
import torch

from stylequeue_worker.engine.network import build_network
from tests.worker.engine.tiny import CPU, picture, tiny_network, tiny_weights
from tests.worker.engine.whole import features


def test_there_are_no_layers_past_the_deepest_that_is_read():
    layers = tiny_network().up_to(["conv2_2", "relu1_1"])
    assert [layer.name for layer in layers] == [
        *("conv1_1", "conv1_2", "conv2_1", "conv2_2"),
    ]


def test_a_pooling_stands_before_the_first_convolution_of_each_later_block():
    layers = tiny_network().up_to(["relu5_4"])
    assert [layer.name for layer in layers if layer.pooled] == [
        *("conv2_1", "conv3_1", "conv4_1", "conv5_1"),
    ]


def test_weights_are_frozen():
    for layer in tiny_network().up_to(["relu5_4"]):
        assert not layer.weight.requires_grad
        assert not layer.bias.requires_grad


def test_torchvision_is_not_imported_by_a_worker():
    code = (
        "import sys; import stylequeue_worker.studio; "
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_features_have_mean_activation_one_over_the_calibration_pictures():
    weights = tiny_weights()
    # tiny_weights measured on this picture.
    given = picture(32, 32, seed=1)
    found = features(build_network(weights, CPU), given, ["relu1_1", "relu4_2"])
    for of_layer in found.values():
        assert float(of_layer.mean()) == pytest.approx(1, rel=1e-3)


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="not in tuple"):
        tiny_network().up_to(["conv9_9"])


def test_a_turned_kernel_takes_a_gradient_back():
    layer = tiny_network(torch.float64).up_to(["conv2_1"])[-1]
    read = torch.rand(1, layer.weight.shape[1], 6, 7, dtype=torch.float64)
    read.requires_grad_()
    given = torch.nn.functional.conv2d(read, layer.weight, padding=1)
    (expected,) = torch.autograd.grad(given.sum(), read)
    found = torch.nn.functional.conv2d(torch.ones_like(given), layer.turned, padding=1)
    torch.testing.assert_close(found, expected)
