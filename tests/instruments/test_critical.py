"""Critical sharpness against quadratics, where it is a Rayleigh quotient, and against lines solved by hand."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import riverval.critical
from riverval.errors import InputError
from riverval.spectra import critical_sharpness, top_eigenvalue


def test_examples_in_docstrings():
    assert doctest.testmod(riverval.critical).failed == 0


def quadratic(seed, dim=20):
    """A convex quadratic loss, its matrix, a point and its gradient there."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    h = (q * np.exp(rng.uniform(-4, 3, dim))) @ q.T
    w = rng.standard_normal(dim)
    return (lambda x: float(0.5 * x @ h @ x)), h, w, h @ w


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(-8, 8), st.sampled_from([1.0, 0.1, 1e-3]), st.booleans())
def test_on_a_quadratic_it_is_exact_from_any_guess(seed, far, accuracy, along_gradient):
    loss, h, w, g = quadratic(seed)
    d = g if along_gradient else np.sign(g)
    found = critical_sharpness(loss, w, -d, guess=10.0**far, accuracy=accuracy)
    assert found.value == pytest.approx((d @ h @ d) / (g @ d), rel=1e-6)
    assert found.step == pytest.approx(2 / found.value)
    assert found.low <= found.step <= found.high <= found.low * (1 + accuracy) * (1 + 1e-12)
    assert loss(w - found.low * d) <= loss(w) < loss(w - found.high * d)
    if along_gradient:
        rayleigh = (g @ h @ g) / (g @ g)
        assert found.value == pytest.approx(rayleigh, rel=1e-6)
        top = top_eigenvalue(h, rng=np.random.default_rng(0), tol=1e-8).value
        assert found.value <= top * (1 + 1e-6)


@pytest.mark.parametrize("off", [0.55, 0.8, 0.95, 1.05, 1.3, 1.9])
def test_a_fair_guess_takes_five_or_six_evaluations(off):
    calls = 0

    def counted(x):
        nonlocal calls
        calls += 1
        return float(np.sum(np.cosh(x) + 0.1 * x**4))

    w = np.linspace(0.2, 1.5, 9)
    u = -(np.sinh(w) + 0.4 * w**3)
    exact = critical_sharpness(counted, w, u, guess=1.0, accuracy=1e-9).step
    calls = 0
    found = critical_sharpness(counted, w, u, guess=off * exact)
    assert calls == found.evaluations <= 6
    assert found.low <= exact <= found.high
    assert found.step == pytest.approx(exact, rel=0.02)
    # Interpolation: bisection alone would take 23.
    assert critical_sharpness(counted, w, u, guess=off * exact, accuracy=1e-6).evaluations <= 11


def test_a_line_that_is_no_parabola():
    # L(eta) = -eta + eta^4: raised beyond eta = 1.
    found = critical_sharpness(lambda x: -x + x**4, 0.0, 1.0, guess=1e-3, accuracy=1e-8)
    assert found.value == pytest.approx(2.0, rel=1e-8)
    assert found.evaluations < 40


def test_a_loss_that_blows_up_counts_as_raised():
    def loss(x):
        return -x if x < 3 else math.nan

    found = critical_sharpness(loss, 0.0, 1.0, guess=0.1, accuracy=0.01)
    assert found.low < 3 <= found.high
    assert found.value == pytest.approx(2 / 3, rel=0.02)
    assert critical_sharpness(lambda x: math.inf if x > 3 else -x, 0.0, 1.0, guess=50.0).step == pytest.approx(
        3, rel=0.1
    )


@pytest.mark.parametrize("slope", [-1.0, 0.0])
def test_a_loss_that_is_never_raised_ends_with_saying_so(slope):
    found = critical_sharpness(lambda x: slope * x, 0.0, 1.0, guess=1.0, reach=1e6)
    assert math.isnan(found.value)
    assert found.step == found.high == math.inf
    assert found.low >= 1e6
    assert found.evaluations < 12


def test_a_direction_that_does_not_descend_is_refused():
    loss, _, w, g = quadratic(1)
    with pytest.raises(InputError, match="descent direction"):
        critical_sharpness(loss, w, g, guess=0.1)
    with pytest.raises(InputError, match="descent direction"):
        critical_sharpness(lambda x: np.float32(1e4 + x), 0.0, 1.0, guess=1e4)  # below the resolution it is flat


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guess": 0.0}, "guess"),
        ({"guess": math.nan}, "guess"),
        ({"accuracy": 0.0}, "accuracy"),
        ({"reach": 1.0}, "reach"),
        ({"loss": lambda x: math.nan}, "the loss at the point is nan"),
    ],
)
def test_bad_arguments_say_what_is_allowed(change, message):
    options = {"loss": lambda x: (x - 1) ** 2, "guess": 1.0, **change}
    loss = options.pop("loss")
    with pytest.raises(InputError, match=message):
        critical_sharpness(loss, 0.0, 1.0, **options)


def test_a_direction_of_another_shape_is_refused():
    for direction in (np.ones(2), np.ones((3, 1)), 1.0):
        with pytest.raises(InputError, match=r"point's shape \(3,\), got \("):
            critical_sharpness(lambda w: float(w @ w), np.ones(3), direction, guess=1.0)


def test_the_point_is_not_changed():
    loss, _, w, g = quadratic(2)
    before = w.copy()
    critical_sharpness(loss, w, -g, guess=1.0)
    assert np.array_equal(w, before)
