"""Traces and densities against dense matrices, variance formulas and Monte Carlo."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator

import riverval.traces
from riverval.errors import InputError, RivervalError
from riverval.traces import hutchinson, hutchpp, spectral_density

from .matrices import generator, rotated


def test_examples_in_docstrings():
    assert doctest.testmod(riverval.traces, extraglobs={"np": np}).failed == 0


def within(estimate, exact, errors=4.0):
    return abs(estimate.value - exact) <= errors * estimate.standard_error


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("power", [1, 2])
def test_the_trace_is_met_within_its_standard_error(kind, power):
    matrix = rotated(generator(1).standard_normal(40))
    exact = float(np.trace(np.linalg.matrix_power(matrix, power)))
    estimate = hutchinson(matrix, rng=generator(2), probes=2000, kind=kind, power=power)
    assert within(estimate, exact)
    assert estimate.products == 2000
    assert estimate.value == pytest.approx(estimate.samples.mean())
    assert estimate.standard_error == pytest.approx(estimate.samples.std(ddof=1) / math.sqrt(2000))


@pytest.mark.parametrize("power", [1, 2])
def test_the_variance_of_a_sample_is_the_formulas(power):
    matrix = rotated(generator(1).standard_normal(12)) + np.diag(np.arange(12.0))
    square = np.linalg.matrix_power(matrix, power)
    expected = {
        "gaussian": 2 * np.sum(square**2),
        "rademacher": 2 * (np.sum(square**2) - np.sum(np.diag(square) ** 2)),
    }
    for kind, variance in expected.items():
        samples = hutchinson(matrix, rng=generator(3), probes=15_000, kind=kind, power=power).samples
        assert samples.var(ddof=1) == pytest.approx(variance, rel=0.08)
    assert expected["rademacher"] < 0.8 * expected["gaussian"]


def test_signs_are_exact_on_a_diagonal_matrix_and_normals_are_not():
    matrix = np.diag([1.0, -2.0, 3.5])
    assert hutchinson(matrix, rng=generator(), probes=3).value == pytest.approx(2.5, rel=1e-14)
    assert hutchinson(matrix, rng=generator(), probes=3).standard_error == pytest.approx(0, abs=1e-14)
    assert hutchinson(matrix, rng=generator(), probes=3, power=2).value == pytest.approx(17.25, rel=1e-14)
    assert hutchinson(matrix, rng=generator(), probes=3, kind="gaussian").standard_error > 0.1
    assert np.isnan(hutchinson(matrix, rng=generator(), probes=1).standard_error)


def test_hutchpp_is_exact_where_the_sketch_holds_all_there_is():
    low = rotated([5.0, -3.0, 2.0, *np.zeros(97)])
    found = hutchpp(low, rng=generator(), products=15)
    assert found.value == pytest.approx(4.0, rel=1e-10)
    assert found.products <= 15
    full = rotated(generator(4).standard_normal(6))
    every = hutchpp(full, rng=generator(), products=18)
    assert every.value == pytest.approx(np.trace(full), rel=1e-12)
    assert every.standard_error == 0.0
    assert hutchpp(np.zeros((5, 5)), rng=generator()).value == 0.0
    assert np.isnan(hutchpp(rotated(np.arange(9.0)), rng=generator(), products=3).standard_error)


def test_hutchpp_has_no_bias_states_its_error_and_beats_hutchinson_on_a_decaying_spectrum():
    values = 1.0 / np.arange(1, 101) ** 2
    matrix, exact = rotated(values), values.sum()
    errors, claimed, plain = [], [], []
    for seed in range(200):
        found = hutchpp(matrix, rng=generator(seed), products=30)
        assert found.products == 30
        errors.append(found.value - exact)
        claimed.append(found.standard_error)
        plain.append(hutchinson(matrix, rng=generator(seed), probes=30).value - exact)
    assert abs(np.mean(errors)) < 4 * np.std(errors, ddof=1) / math.sqrt(200)
    assert np.sqrt(np.mean(np.square(claimed))) == pytest.approx(np.std(errors), rel=0.25)
    assert np.std(errors) < np.std(plain) / 4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(0, 10**6), st.sampled_from([np.float32, np.float64]))
def test_the_quadrature_of_a_whole_space_is_the_spectrum_itself(n, seed, dtype):
    values = generator(seed).standard_normal(n)
    matrix = rotated(values, seed).astype(dtype)
    found = spectral_density(matrix, rng=generator(seed), probes=3, steps=n + 5)
    for nodes in found.nodes:
        assert nodes[np.isfinite(nodes)] == pytest.approx(np.sort(values), abs=1e-5)
    assert found.weights.sum(axis=1) == pytest.approx(np.ones(3))
    assert found.products <= 3 * n
    assert found.moment(0) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))


def test_moments_are_met_within_their_standard_errors_and_exactly_for_each_vector():
    values = np.concatenate([[8.0, 5.0], generator(3).standard_normal(198)])
    matrix = rotated(values)
    found = spectral_density(matrix, rng=generator(1), probes=200, steps=8)
    for order in range(5):
        mean, error = found.moment(order)
        assert abs(mean - np.mean(values**order)) <= 4 * error + 1e-12
    # Gauss quadrature: exact for each start up to order 2 steps - 1.
    start = generator(1).standard_normal(200)
    start /= np.linalg.norm(start)
    for order in (1, 5, 15):
        exact = start @ np.linalg.matrix_power(matrix, order) @ start
        assert np.sum(found.weights[0] * found.nodes[0] ** order) == pytest.approx(exact, rel=1e-9)
    beyond = start @ np.linalg.matrix_power(matrix, 60) @ start
    assert np.sum(found.weights[0] * found.nodes[0] ** 60) != pytest.approx(beyond, rel=1e-9)


def test_the_density_is_the_smoothed_spectrum_and_the_mass_its_share_below():
    values = np.concatenate([np.full(150, 0.5), np.full(50, 3.0)])
    found = spectral_density(rotated(values), rng=generator(5), probes=100, steps=6)
    grid, width = np.linspace(-2.0, 6.0, 400), 0.3
    exact = np.mean(np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2), axis=1) / (width * math.sqrt(2 * math.pi))
    density, error = found.density(grid, width)
    assert np.all(np.abs(density - exact) <= 4 * error + 1e-9)
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-6)
    mass, error = found.mass([0.0, 1.0, 4.0])
    assert np.all(np.abs(mass - [0.0, 0.75, 1.0]) <= 4 * error + 1e-12)
    assert error[1] > 0
    # Of one unit vector the weight on an eigenspace of dimension a is Beta(a/2, b/2): variance 2 a b / (n^2 (n + 2)).
    exact_error = math.sqrt(2 * 150 * 50 / (200**2 * 202)) / math.sqrt(100)
    assert error[1] == pytest.approx(exact_error, rel=0.25)
    one = spectral_density(rotated(values), rng=generator(5), probes=1, steps=6)
    assert np.isnan(one.density(grid, width)[1]).all()


def test_an_average_is_the_trace_of_a_function():
    values = generator(6).uniform(0.5, 4.0, 60)
    found = spectral_density(rotated(values), rng=generator(7), probes=60, steps=25)
    mean, error = found.average(np.log)
    assert abs(mean - np.mean(np.log(values))) <= 4 * error


def test_an_average_of_a_function_that_is_not_defined_there_is_nan():
    """Not the mean over the eigenvalues where it is; and a space that closed early is no such place."""
    found = spectral_density(np.diag([-1.0, 2.0, 2.0]), rng=generator(), probes=3, steps=3)
    assert np.isnan(found.nodes).any()
    with np.errstate(invalid="ignore"):
        assert np.isnan(found.average(np.log)[0])
    mean, error = found.average(np.square)
    assert abs(mean - 3.0) <= 4 * error


def test_hutchpp_spends_what_it_is_given_unless_the_sketch_spans_everything():
    assert hutchpp(np.ones((50, 50)), rng=generator(), products=12).products == 12
    assert hutchpp(np.diag(np.arange(1.0, 4.0)), rng=generator(), products=12).products == 6


def test_the_same_generator_gives_the_same_bits():
    matrix = rotated(generator(1).standard_normal(30))
    for estimate in (hutchinson, hutchpp):
        assert estimate(matrix, rng=generator(9)).value == estimate(matrix, rng=generator(9)).value
    first, second = (spectral_density(matrix, rng=generator(9), probes=2, steps=5) for _ in range(2))
    assert np.array_equal(first.nodes, second.nodes)


def test_every_product_is_counted():
    matrix, calls = rotated(np.arange(40.0)), 0

    def matvec(x):
        nonlocal calls
        calls += 1
        return matrix @ x

    operator = LinearOperator(matrix.shape, matvec=matvec, dtype=np.float64)
    spent = spectral_density(operator, rng=generator(), probes=2, steps=10).products
    assert calls == spent == 20
    spent += hutchinson(operator, rng=generator(), probes=7).products
    spent += hutchpp(operator, rng=generator(), products=11).products
    assert calls == spent == 38


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hutchinson(np.eye(3), rng=generator(), probes=0), "probes must be a whole number"),
        (lambda: hutchinson(np.eye(3), rng=generator(), power=3), "power"),
        (lambda: hutchinson(np.eye(3), rng=generator(), kind="normal"), "unknown kind of probe 'normal'"),
        (lambda: hutchinson(np.ones((2, 3)), rng=generator()), "square"),
        (lambda: hutchpp(np.eye(3), rng=generator(), products=2), "products"),
        (lambda: hutchinson(np.eye(3), rng=3), r"rng must be a numpy.random.Generator, .*default_rng\(3\)"),
        (lambda: hutchpp(np.eye(3), rng=None), "rng must be"),
        (lambda: spectral_density(np.eye(3), rng=np.random.RandomState(0)), "rng must be"),
        (lambda: spectral_density(np.eye(3), rng=generator(), steps=0), "steps"),
        (lambda: spectral_density(np.eye(3), rng=generator()).density([0.0], 0.0), "width"),
        (lambda: spectral_density(np.eye(3), rng=generator()).moment(-1), "order"),
    ],
)
def test_bad_arguments_say_what_is_allowed(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("estimate", [hutchinson, hutchpp, spectral_density])
def test_a_product_that_is_not_finite_is_refused(estimate):
    with pytest.raises(RivervalError, match="not finite"):
        estimate(np.diag([1.0, np.nan, 2.0]), rng=generator())
