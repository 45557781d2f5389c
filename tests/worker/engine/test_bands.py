"""Bands of a picture against the whole of it."""

import pytest
import torch

from stylequeue_shared.layers import LAYERS
from stylequeue_worker.engine.bands import Backward, Bands, Forward
from stylequeue_worker.engine.objective import named
from tests.worker.engine.tiny import picture, tiny_network
from tests.worker.engine.whole import features

DEEP = ["conv1_1", "relu2_2", "conv5_1", "relu5_4"]


def read(network, given, layers, rows, pooling="max"):
    """Return each layer's features, put together from those of bands."""
    bands = Bands(network.up_to(layers), given.shape[-2], rows)
    forward = Forward(network, layers, pooling, bands)
    parts = [
        named(forward.band(given, number), layers) for number in range(bands.count)
    ]
    return {layer: torch.cat([part[layer] for part in parts], -2) for layer in layers}


@pytest.mark.parametrize("height", [16, 17, 31, 64, 95, 130])
def test_features_of_bands_are_those_of_the_whole_picture(height):
    network = tiny_network(torch.float64)
    given = picture(height, 35, 1, torch.float64)
    whole = features(network, given, DEEP)
    for layer, found in read(network, given, DEEP, 16).items():
        torch.testing.assert_close(found, whole[layer], rtol=1e-12, atol=1e-12)


def test_every_row_belongs_to_one_band_at_every_layer():
    bands = Bands(tiny_network().up_to(["conv5_4"]), 203, 16)
    for edges, height in zip(bands.after, (203, 203, 101, 101, 50), strict=False):
        assert edges[0] == 0
        assert edges == sorted(edges)
        if edges is bands.after[0] or edges is bands.after[1]:
            assert edges[-1] == height


def test_a_convolution_is_read_before_its_relu():
    found = features(tiny_network(), picture(32, 32, 1), ["conv3_1", "relu3_1"])
    assert found["conv3_1"].min() < 0
    torch.testing.assert_close(found["conv3_1"].relu(), found["relu3_1"])


def test_the_picture_is_left_as_it_was():
    given = picture(32, 32, 1)
    before = given.clone()
    features(tiny_network(), given, ["relu5_4"])
    assert torch.equal(given, before)


def test_bands_remember_no_more_than_the_rows_they_still_need():
    network, layers = tiny_network(), list(LAYERS)
    bands = Bands(network.up_to(layers), 512, 64)
    forward = Forward(network, layers, "max", bands)
    for number in range(6):
        forward.band(picture(512, 16, 1), number)
        assert all(tail.shape[-2] <= 5 for tail in forward.tails)
        # A view would keep the whole band's memory.
        assert all(
            tail.untyped_storage().nbytes() == tail.nbytes for tail in forward.tails
        )


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_the_gradient_of_bands_is_that_of_the_whole_picture(pooling):
    network = tiny_network(torch.float64)
    given = picture(77, 33, 1, torch.float64)

    def gradient(rows):
        bands = Bands(network.up_to(DEEP), 77, rows)
        run = (network, DEEP, pooling, bands)
        forward, backward = Forward(*run), Backward(*run)
        found = [forward.band(given, number) for number in range(bands.count)]
        parts = [
            backward.band(
                found[number], number, lambda name, f: f.cos() if name in DEEP else None
            )
            for number in reversed(range(bands.count))
        ]
        return torch.cat(parts[::-1], -2)

    torch.testing.assert_close(gradient(16), gradient(77), rtol=1e-10, atol=1e-14)


def test_an_unknown_pooling_is_refused():
    network = tiny_network()
    bands = Bands(network.up_to(["conv1_1"]), 32, 32)
    with pytest.raises(KeyError):
        Forward(network, ["conv1_1"], "median", bands)
