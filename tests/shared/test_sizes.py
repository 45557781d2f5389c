import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylequeue_shared.sizes import fit


@pytest.mark.parametrize(
    ("size", "longer", "expected"),
    [
        ((800, 600), 400, (400, 300)),
        ((600, 800), 400, (300, 400)),
        ((3, 2), 9, (9, 6)),
        ((1000, 1), 10, (10, 1)),
        ((7, 7), 1, (1, 1)),
    ],
)
def test_fit_keeps_the_aspect_and_at_least_a_pixel(
    size: tuple[int, int], longer: int, expected: tuple[int, int]
) -> None:
    assert fit(size, longer) == expected


@settings(deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 4000))
def test_fit_always_gives_the_longer_side(w: int, h: int, longer: int) -> None:
    fitted = fit((w, h), longer)
    assert max(fitted) == longer
    assert min(fitted) >= 1


@settings(deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_fit_at_its_own_size_changes_nothing(w: int, h: int) -> None:
    assert fit((w, h), max(w, h)) == (w, h)


@settings(deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 4000))
def test_a_picture_on_its_side_fits_on_its_side(w: int, h: int, longer: int) -> None:
    assert fit((h, w), longer) == fit((w, h), longer)[::-1]


@settings(deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 4000))
def test_the_shorter_side_is_off_by_half_a_pixel_at_most(
    w: int, h: int, longer: int
) -> None:
    exact = min(w, h) * longer / max(w, h)
    assert min(fit((w, h), longer)) == pytest.approx(max(1, exact), abs=0.500001)
