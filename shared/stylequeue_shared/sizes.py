"""The size of a picture that is made smaller or larger."""


def fit(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """Return (width, height) with that longer side and the same aspect, at least 1."""
    scale = longer / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height
