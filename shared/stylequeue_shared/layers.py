"""VGG-19's layers: names, channels, and how far each one shrinks the picture."""

# Convolutions in each of the five blocks; a pooling by 2 stands between blocks.
CONVOLUTIONS_PER_BLOCK = (2, 2, 4, 4, 4)

LAYERS: tuple[str, ...] = tuple(
    f"{kind}{block}_{index}"
    for block, count in enumerate(CONVOLUTIONS_PER_BLOCK, start=1)
    for index in range(1, count + 1)
    for kind in ("conv", "relu")
)

# What each convolution gives, in the network's order.
CHANNELS: tuple[int, ...] = tuple(
    min(64 << block, 512)
    for block, count in enumerate(CONVOLUTIONS_PER_BLOCK)
    for _ in range(count)
)


def stride(layer: str) -> int:
    """Return how many picture pixels one position of the layer advances."""
    return 1 << (block_of(layer) - 1)


def block_of(layer: str) -> int:
    """Return the block, 1 to 5, that a layer belongs to."""
    return int(layer.removeprefix("conv").removeprefix("relu").split("_")[0])
