"""sin, cos, exp and log in plain arithmetic: against 40 digits, and the same bits from compiled code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from riverval.toy import _elementary as elementary

NAMES = ("sin", "cos", "exp", "log")
RANGES = {
    "sin": [(-1.0, 1.0), (-50.0, 50.0), (-1e6, 1e6)],
    "cos": [(-1.0, 1.0), (-50.0, 50.0), (-1e6, 1e6)],
    "exp": [(-1.0, 1.0), (-700.0, 709.0)],
    "log": [(0.5, 2.0), (1e-300, 1e-290), (1e10, 1e300)],
}
MOST_ULPS = 2.0


@pytest.mark.parametrize(("name", "low", "high"), [(n, a, b) for n, found in RANGES.items() for a, b in found])
def test_values_are_right_to_two_units_in_the_last_place(name, low, high, rng):
    x = rng.uniform(low, high, 400)
    found = getattr(elementary, name)(x)
    with mp.workdps(40):
        for argument, value in zip(x.tolist(), found.tolist(), strict=True):
            true = getattr(mp, name)(mpf(argument))
            assert abs(mpf(value) - true) <= MOST_ULPS * math.ulp(float(true))


@pytest.mark.parametrize("name", ["sin", "cos"])
@given(st.floats(1e6, 1e14))
def test_far_out_the_error_is_that_of_the_last_place_of_the_argument(name, x):
    """The slope is at most 1, so a change of the argument by so much changes the value by no more."""
    with mp.workdps(40):
        true = float(getattr(mp, name)(mpf(x)))
    assert abs(float(getattr(elementary, name)(np.float64(x))) - true) <= 2 * math.ulp(x) + 2e-16


@given(st.floats(-700, 700), st.floats(-5, 5))
def test_identities(x, y):
    x, y = np.float64(x), np.float64(y)
    assert abs(elementary.sin(x) ** 2 + elementary.cos(x) ** 2 - 1) < 1e-15
    assert elementary.sin(-x) == -elementary.sin(x)
    assert elementary.cos(-x) == elementary.cos(x)
    assert elementary.log(elementary.exp(y)) == pytest.approx(y, abs=1e-15)


def test_the_ends_of_the_range():
    inf, nan = math.inf, math.nan
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(elementary.exp(np.array([inf, -inf, nan, 710.0, -800.0])), [inf, 0, nan, inf, 0])
        assert elementary.exp(np.float64(709.7)) == pytest.approx(math.exp(709.7), rel=1e-15)
        np.testing.assert_array_equal(elementary.log(np.array([0.0, -1.0, inf, nan, 1.0])), [-inf, nan, inf, nan, 0.0])
        assert elementary.log(np.float64(5e-324)) == pytest.approx(math.log(5e-324), rel=1e-15)
        for f in (elementary.sin, elementary.cos):
            assert np.isnan(f(np.array([inf, -inf, nan]))).all()
    assert (elementary.sin(np.float64(0.0)), elementary.cos(np.float64(0.0)), elementary.exp(np.float64(0.0))) == (
        0,
        1,
        1,
    )


@pytest.mark.parametrize("name", [*NAMES, "sqrt"])
def test_compiled_scalars_and_arrays_give_the_same_bits(name, rng):
    numba = pytest.importorskip("numba")
    from riverval.toy import _jit

    compiled = getattr(_jit, name)

    @numba.njit(error_model="numpy")
    def on_each(x, out):
        for i in range(x.size):
            out[i] = compiled(x[i])

    edges = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e308, -1e308, 710.0, -745.2, 1e15, 0.7071067811865476]
    x = np.concatenate(
        [edges, rng.standard_normal(2000), 1e3 * rng.standard_normal(2000), 10 ** rng.uniform(-300, 300, 500)]
    )
    out = np.empty_like(x)
    with np.errstate(all="ignore"):
        on_each(x, out)
        np.testing.assert_array_equal(out, getattr(elementary, name)(x))
