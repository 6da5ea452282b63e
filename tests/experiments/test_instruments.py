"""Spectra, lines and principal components against closed forms, dense solvers and simulation. No torch."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.errors import InputError, RivervalError
from riverval.landscape import line_losses
from riverval.spectra import top_eigenvalue
from riverval.trajectory import centred_gram, pca_shares, random_walk_shares, shares_of_gram


@pytest.mark.parametrize("name", ["spectra", "trajectory", "landscape"])
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(f"riverval.{name}")).failed == 0


def rotated(values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return q @ np.diag(values) @ q.T


@pytest.mark.parametrize("dim", [1, 2, 5, 12, 40, 300])
@pytest.mark.parametrize(("which", "expected"), [("largest", 2.0), ("smallest", -7.0)])
def test_known_spectra_by_value_and_not_by_magnitude(dim, which, expected):
    values = np.linspace(-7.0, 2.0, dim) if dim > 1 else np.array([expected])
    found = top_eigenvalue(rotated(values), rng=np.random.default_rng(1), which=which, tol=1e-8)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert np.linalg.norm(found.vector) == pytest.approx(1.0)


def test_the_residual_bounds_the_error_and_products_are_counted():
    matrix = rotated(np.concatenate([np.linspace(0, 1, 199), [1.3]]))
    calls = 0

    class Counting:
        shape, dtype = matrix.shape, matrix.dtype

        def matvec(self, x):
            nonlocal calls
            calls += 1
            return matrix @ x

    from scipy.sparse.linalg import LinearOperator

    inner = Counting()
    operator = LinearOperator(matrix.shape, matvec=inner.matvec, dtype=np.float64)
    found = top_eigenvalue(operator, rng=np.random.default_rng(0), tol=1e-3)
    assert found.products == calls
    assert np.linalg.norm(matrix @ found.vector - found.value * found.vector) == pytest.approx(found.residual, rel=1e-6)
    assert abs(found.value - 1.3) <= found.residual + 1e-12
    assert found.value == pytest.approx(1.3, rel=1e-3)


def test_the_same_generator_gives_the_same_bits():
    matrix = rotated(np.arange(50.0))
    first, second = (top_eigenvalue(matrix, rng=np.random.default_rng(3)) for _ in range(2))
    assert first.value == second.value
    assert np.array_equal(first.vector, second.vector)


def test_an_eigenvalue_out_of_reach_is_an_error_that_says_so():
    matrix = np.diag(np.linspace(0.0, 1.0, 4000) ** 0.1)
    with pytest.raises(RivervalError, match="raise max_products"):
        top_eigenvalue(matrix, rng=np.random.default_rng(0), tol=1e-9, max_products=20)
    with pytest.raises(InputError, match="square"):
        top_eigenvalue(np.ones((2, 3)), rng=np.random.default_rng(0))
    with pytest.raises(InputError, match="tol"):
        top_eigenvalue(np.eye(3), rng=np.random.default_rng(0), tol=0.0)
    with pytest.raises(InputError, match="largest, smallest"):
        top_eigenvalue(np.eye(3), rng=np.random.default_rng(0), which="big")


def test_a_line_through_a_quadratic_is_its_parabola():
    h = rotated(np.array([1.0, 4.0, 9.0]))
    a, b = np.array([1.0, 0.0, -1.0]), np.array([0.5, 2.0, 0.0])
    alphas = np.linspace(-0.5, 1.5, 9)
    found = line_losses(lambda w: 0.5 * w @ h @ w, a, b, alphas)
    expected = [0.5 * (a + s * (b - a)) @ h @ (a + s * (b - a)) for s in alphas]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # Experiments' null: the middle of a segment lies below the mean of its ends by d'Hd/8.
    middle = line_losses(lambda w: 0.5 * w @ h @ w, a, b, [0.0, 0.5, 1.0])
    assert (middle[0] + middle[2]) / 2 - middle[1] == pytest.approx((b - a) @ h @ (b - a) / 8)


def test_the_ends_of_a_line_are_exact_and_untouched():
    a, b = np.array([0.1, 0.2], dtype=np.float32), np.array([0.7, 0.3], dtype=np.float32)
    kept = a.copy(), b.copy()
    seen = []
    line_losses(lambda w: seen.append(w.copy()) or 0.0, a, b, [0.0, 1.0])
    assert np.array_equal(seen[0], kept[0])
    assert np.array_equal(seen[1], kept[1])
    assert np.array_equal(a, kept[0])
    assert np.array_equal(b, kept[1])
    with pytest.raises(InputError, match="one shape"):
        line_losses(lambda w: 0.0, a, b[:1], [0.0])
    with pytest.raises(InputError, match="finite"):
        line_losses(lambda w: 0.0, a, b, [np.nan])


@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_shares_equal_those_of_the_singular_values(n, dim, seed):
    x = 100.0 + np.random.default_rng(seed).standard_normal((n, dim))
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)[: n - 1] ** 2
    expected = np.zeros(n - 1)
    expected[: len(singular)] = singular / singular.sum()
    np.testing.assert_allclose(pca_shares(x), expected, atol=1e-10)
    cut = dim // 2
    np.testing.assert_allclose(shares_of_gram(centred_gram([x[:, :cut], x[:, cut:]])), expected, atol=1e-10)


def test_the_first_shares_of_a_random_walk_tend_to_their_limits():
    found = random_walk_shares(np.ones(300), np.arange(301))
    np.testing.assert_allclose(found[:4], 6 / (np.pi * np.arange(1, 5)) ** 2, rtol=2e-3)


def test_the_null_is_what_a_walk_in_high_dimension_gives():
    rng = np.random.default_rng(0)
    lr = np.concatenate([np.full(200, 0.1), 0.1 * np.linspace(1, 0, 100, endpoint=False)])
    states = np.arange(180, 301, 10)
    walk = np.cumsum(lr[:, None] * rng.standard_normal((300, 20_000)), axis=0)[states - 1]
    np.testing.assert_allclose(pca_shares(walk)[:6], random_walk_shares(lr, states)[:6], rtol=0.03)


def test_the_null_does_not_depend_on_the_size_of_the_rates():
    lr = np.linspace(1, 0, 50, endpoint=False)
    np.testing.assert_allclose(random_walk_shares(lr, [0, 10, 30, 50]), random_walk_shares(1e-3 * lr, [0, 10, 30, 50]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pca_shares(np.ones((5, 3))), "differ"),
        (lambda: pca_shares(np.ones((1, 3))), "at least 2"),
        (lambda: pca_shares(np.full((3, 3), np.nan)), "finite"),
        (lambda: centred_gram([]), "at least one block"),
        (lambda: centred_gram([np.ones((2, 3)), np.ones((3, 3))]), r"\(2, size\)"),
        (lambda: random_walk_shares(np.ones(5), [0, 6]), r"0\.\.5"),
        (lambda: random_walk_shares(np.ones(5), [3, 2]), "increasing"),
        (lambda: random_walk_shares(np.zeros(5), [0, 2, 4]), "differ"),
    ],
)
def test_what_has_no_components_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
