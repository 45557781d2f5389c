import itertools

import pytest
import torch

from stylequeue_worker.engine.sums import PARTS, GramSums, SquareSums, products
from tests.worker.engine.tiny import picture


def features(channels, height, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(channels + height)
    # Heavy in the tail, as features are.
    found = torch.randn(1, channels, height, width, generator=generator) ** 3
    return found.relu().to(dtype).contiguous(memory_format=torch.channels_last)


def exact_products(found):
    flat = found.double().permute(0, 2, 3, 1).reshape(-1, found.shape[1])
    return flat.mT @ flat


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("dtype", "close"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-3)],
)
def test_products_are_summed_over_all_places(dtype, close):
    found = features(13, 63, 65, dtype)
    result = products(found)
    assert result.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert distance(result, exact_products(found)) < close


@pytest.mark.parametrize("places", [1, PARTS - 1, PARTS, PARTS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_few_places_are_those_of_all_of_them(dtype, places):
    found = features(5, 1, places, dtype)
    assert distance(products(found), exact_products(found)) < 6e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_products_do_not_depend_on_the_layout(dtype, layout):
    found = features(6, 20, 10, dtype)
    expected = exact_products(found)
    assert distance(products(found.contiguous(memory_format=layout)), expected) < 6e-3


def test_bfloat16_is_closer_in_parts_than_in_one_product():
    found = features(8, 128, 128, torch.bfloat16)
    flat = found.permute(0, 2, 3, 1).reshape(-1, 8)
    expected = exact_products(found)
    assert distance(products(found), expected) < distance(flat.mT @ flat, expected) / 3


@pytest.mark.parametrize("cuts", [[], [5], [0, 1, 7, 7, 19]])
def test_grams_of_bands_are_those_of_the_whole(cuts):
    found = features(4, 20, 9, torch.float64)
    sums = GramSums(torch.float64)
    edges = [0, *cuts, 20]
    for top, bottom in itertools.pairwise(edges):
        sums.add({"conv1_1": found[..., top:bottom, :]})
    assert sums.places == {"conv1_1": found.numel()}
    expected = exact_products(found) / found.numel()
    assert distance(sums.grams()["conv1_1"], expected) < 1e-14


@pytest.mark.parametrize("cuts", [[], [5], [0, 1, 7, 7, 19]])
def test_distances_of_bands_are_those_of_the_whole(cuts):
    found, target = features(4, 20, 9).double(), features(4, 20, 9).double().flip(2)
    sums = SquareSums(torch.float64)
    edges = [0, *cuts, 20]
    for top, bottom in itertools.pairwise(edges):
        rows = slice(top, bottom)
        sums.add({"conv1_1": found[..., rows, :]}, {"conv1_1": target[..., rows, :]})
    assert sums.places == {"conv1_1": found.numel()}
    expected = float((found - target).square().mean())
    assert float(sums.means()[0]) == pytest.approx(expected, rel=1e-14)


def test_each_layer_has_a_mean_of_its_own():
    sums = SquareSums(torch.float64)
    one, two = picture(4, 6, 1), picture(8, 3, 2)
    sums.add({"a": one, "b": two, "c": one}, {"a": 2 * one, "b": torch.zeros_like(two)})
    expected = torch.stack([one.square().mean(), two.square().mean()]).double()
    torch.testing.assert_close(sums.means(), expected, rtol=1e-6, atol=0)


def test_a_distance_of_millions_of_values_is_exact_to_single_precision():
    found = features(64, 128, 128)
    sums = SquareSums(torch.float32)
    sums.add({"conv1_1": found}, {"conv1_1": torch.zeros_like(found)})
    expected = float(found.double().square().mean())
    assert float(sums.means()[0]) == pytest.approx(expected, rel=1e-6)


def test_a_distance_in_bfloat16_is_summed_in_single_precision():
    found = features(64, 64, 64, torch.bfloat16)
    sums = SquareSums(torch.float32)
    sums.add({"conv1_1": found}, {"conv1_1": torch.zeros_like(found)})
    assert sums.means().dtype == torch.float32
    expected = float(found.double().square().mean())
    assert float(sums.means()[0]) == pytest.approx(expected, rel=1e-5)
