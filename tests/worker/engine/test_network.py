import pytest
import torch
from torch import nn

from stylequeue_worker.engine.network import build_network
from tests.worker.engine.tiny import CPU, picture, tiny_network, tiny_weights


def test_nothing_is_computed_past_the_deepest_layer():
    network = tiny_network()
    ran = []
    for name, module in network.features.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    network(picture(32, 32, 1), ["conv2_2", "relu1_1"])
    assert ran == ["0", "2", "5", "7"]


def test_weights_are_frozen():
    assert not any(p.requires_grad for p in tiny_network().parameters())


def test_a_convolution_is_read_before_its_relu():
    found = tiny_network()(picture(32, 32, 1), ["conv3_1", "relu3_1", "conv3_2"])
    assert found["conv3_1"].min() < 0
    torch.testing.assert_close(found["conv3_1"].relu(), found["relu3_1"])


def test_the_picture_is_left_as_it_was():
    given = picture(32, 32, 1)
    before = given.clone()
    tiny_network()(given, ["relu5_4"])
    assert torch.equal(given, before)


def test_features_have_mean_activation_one_over_the_calibration_pictures():
    weights = tiny_weights()
    # tiny_weights measured on this picture.
    given = picture(32, 32, seed=1)
    features = build_network(weights, CPU)(given, ["relu1_1", "relu4_2"])
    for found in features.values():
        assert float(found.mean()) == pytest.approx(1, rel=1e-3)


def test_an_unknown_layer_or_pooling_is_refused():
    with pytest.raises(ValueError, match="not in tuple"):
        tiny_network()(picture(32, 32, 1), ["conv9_9"])
    with pytest.raises(KeyError):
        tiny_network()(picture(32, 32, 1), ["conv1_1"], "median")
