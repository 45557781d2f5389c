"""A whole picture's features in one band."""

from collections.abc import Sequence

from torch import Tensor

from stylequeue_worker.engine.bands import Bands, Forward
from stylequeue_worker.engine.network import LossNetwork
from stylequeue_worker.engine.objective import named


def features(
    network: LossNetwork, picture: Tensor, layers: Sequence[str]
) -> dict[str, Tensor]:
    height = picture.shape[-2]
    bands = Bands(network.up_to(layers), height, height)
    return named(Forward(network, layers, "max", bands).band(picture, 0), layers)
