import re

import pytest

from stylequeue_shared.layers import CONVOLUTIONS_PER_BLOCK, LAYERS, block_of, stride


def test_there_are_vgg_19_s_sixteen_convolutions_each_with_its_relu() -> None:
    assert sum(CONVOLUTIONS_PER_BLOCK) == 16
    assert len(LAYERS) == len(set(LAYERS)) == 32
    for conv, relu in zip(LAYERS[::2], LAYERS[1::2], strict=True):
        assert re.fullmatch(r"conv[1-5]_[1-4]", conv)
        assert relu == conv.replace("conv", "relu")


def test_the_layers_stand_in_the_network_s_order() -> None:
    places = [tuple(map(int, layer[4:].split("_"))) for layer in LAYERS]
    assert places == sorted(places)
    assert LAYERS[:4] == ("conv1_1", "relu1_1", "conv1_2", "relu1_2")
    # The textbook's fourth convolution.
    assert LAYERS[::2][3] == "conv2_2"
    assert LAYERS[-1] == "relu5_4"


@pytest.mark.parametrize(("block", "count"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 4)])
def test_a_block_ends_where_the_network_pools(block: int, count: int) -> None:
    assert f"conv{block}_{count}" in LAYERS
    assert f"conv{block}_{count + 1}" not in LAYERS
    assert sum(block_of(layer) == block for layer in LAYERS) == 2 * count


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("conv1_1", 1),
        ("relu1_2", 1),
        ("conv2_1", 2),
        ("relu3_4", 4),
        ("conv4_2", 8),
        ("relu5_4", 16),
    ],
)
def test_each_pooling_doubles_the_stride(layer: str, expected: int) -> None:
    assert stride(layer) == expected
