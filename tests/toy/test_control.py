"""Numerical optimal control against the known optimum of one hill, finite differences, and random rivals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from riverval.errors import InputError
from riverval.theory import final_variance, optimal_decay, optimal_final_hill, stationary_hill, stationary_variance
from riverval.theory_runs import checkpoint_after, cooldown_gain, cooldown_length
from riverval.toy.control import Valley, optimal_rates

SPECTRUM = np.geomspace(0.2, 5.0, 5)
REST = stationary_variance(0.1, SPECTRUM, 1.0)


def loss_of(lr, *, curvatures, sigma, start, slope=0.0):
    """J by the closed recursion of the core, without the code under test."""
    return checkpoint_after(lr, slope, curvatures, sigma, start=start).loss


# --- one hill --------------------------------------------------------------------------------------------------------
@given(st.floats(0.01, 1.9), st.floats(0.05, 20.0), st.floats(0.1, 5.0), st.integers(1, 60))
def test_one_hill_gives_the_known_decay(product, h, sigma, steps):
    lr = product / h
    start = float(stationary_variance(lr, h, sigma))
    found = optimal_rates(steps, curvatures=[h], sigma=sigma, start=start)
    np.testing.assert_allclose(found.lr, optimal_decay(lr, h, steps), rtol=1e-8)
    assert found.hill == pytest.approx(optimal_final_hill(lr, h, sigma, steps), rel=1e-10)
    assert found.hill == pytest.approx(found.lower_bound, rel=1e-10)


@pytest.mark.parametrize("guess", [0.001, 0.03, 0.6])
def test_it_is_found_from_far_away(guess):
    found = optimal_rates(25, curvatures=[2.0], sigma=1.5, start=0.0625, guess=np.full(25, guess))
    np.testing.assert_allclose(found.lr, optimal_decay(0.1, 2.0, 25), rtol=1e-8)


# --- several hills ---------------------------------------------------------------------------------------------------
@given(st.lists(st.floats(0.0, 0.4), min_size=1, max_size=12), st.floats(0.0, 1.0))
def test_gradient_is_the_finite_difference(rates, slope):
    valley = Valley(SPECTRUM, np.array([1.0, 0.5, 2.0, 1.0, 0.3]), REST, slope)
    lr = np.array(rates)
    loss, gradient = valley.value_and_gradient(lr)
    own = {"curvatures": SPECTRUM, "sigma": valley.sigma, "start": REST, "slope": slope}
    assert loss == pytest.approx(loss_of(lr, **own), rel=1e-12, abs=1e-12)
    for t in range(lr.size):
        step = np.zeros_like(lr)
        step[t] = 1e-5
        # J is quadratic in each rate, so the central difference has no error of its own.
        numeric = (valley.value_and_gradient(lr + step)[0] - valley.value_and_gradient(lr - step)[0]) / 2e-5
        assert gradient[t] == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("slope", [0.0, 0.02])
def test_conditions_of_the_optimum_hold(slope):
    options = {"curvatures": SPECTRUM, "sigma": 1.0, "start": REST, "slope": slope}
    found = optimal_rates(60, highest=0.1, lowest=0.02, **options)
    _, gradient = Valley(SPECTRUM, np.ones(5), REST, slope).value_and_gradient(found.lr)
    scale = np.abs(gradient).max() + 1e-3
    inside = (found.lr > 0.02 * (1 + 1e-9)) & (found.lr < 0.1 * (1 - 1e-9))
    assert np.abs(gradient[inside]).max() < 1e-8 * scale
    assert np.all(gradient[found.lr >= 0.1 * (1 - 1e-9)] <= 1e-9)  # would rise further
    assert np.all(gradient[found.lr <= 0.02 * (1 + 1e-9)] >= -1e-9)  # would fall further
    assert found.residual < 1e-8
    assert found.loss == pytest.approx(loss_of(found.lr, **options), rel=1e-12)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_other_starts_of_the_search_end_at_the_same_rates(seed):
    options = {"curvatures": SPECTRUM, "sigma": 1.0, "start": REST}
    best = optimal_rates(20, **options)
    other = optimal_rates(20, guess=np.random.default_rng(seed).uniform(0.0, 0.35, 20), **options)
    np.testing.assert_allclose(other.lr, best.lr, rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1.0))
def test_no_rival_is_better(seed, size):
    options = {"curvatures": SPECTRUM, "sigma": 1.0, "start": REST}
    best = BEST_OF_20
    rival = best.lr * np.exp(size * np.random.default_rng(seed).standard_normal(20))
    assert loss_of(rival, **options) >= best.loss * (1 - 1e-12)
    assert best.lower_bound < best.loss


BEST_OF_20 = optimal_rates(20, curvatures=SPECTRUM, sigma=1.0, start=REST)


def test_one_decay_for_all_hills_beats_that_of_any_single_one():
    alone = [loss_of(optimal_decay(0.1, h, 20), curvatures=SPECTRUM, sigma=1.0, start=REST) for h in SPECTRUM.tolist()]
    assert min(alone) > BEST_OF_20.loss
    assert BEST_OF_20.lr[0] == pytest.approx(0.05, rel=1e-9)  # the first update halves the rate for every curvature
    assert np.all(np.diff(BEST_OF_20.lr) < 0)


def test_equal_hills_are_as_one():
    three = optimal_rates(15, curvatures=[2.0] * 3, sigma=1.5, start=0.0625)
    np.testing.assert_allclose(three.lr, optimal_decay(0.1, 2.0, 15), rtol=1e-9)
    assert three.hill == pytest.approx(3 * optimal_final_hill(0.1, 2.0, 1.5, 15), rel=1e-10)


def test_noise_may_differ_between_hills():
    """Without noise in the second hill, the rates serve the first one while the second relaxes."""
    found = optimal_rates(100, curvatures=[2.0, 3.0], sigma=[1.5, 0.0], start=[0.0625, 0.0625])
    alone = optimal_final_hill(0.1, 2.0, 1.5, 100)
    assert alone < found.hill == pytest.approx(alone, rel=0.01)


# --- with a river ----------------------------------------------------------------------------------------------------
def test_along_a_river_the_run_stays_high_and_then_decays():
    """From a plateau of 0.1 that is also the bound: stable, then a decay of about the length of the closed form."""
    c, T = 0.03, 250
    found = optimal_rates(T, curvatures=[2.0], sigma=1.5, start=0.0625, slope=c, highest=0.1)
    first = int(np.argmax(found.lr < 0.1 * (1 - 1e-9)))
    assert np.all(found.lr[:first] == 0.1)
    assert np.all(np.diff(found.lr[first:]) < 0)
    assert T - first == pytest.approx(cooldown_length(c, 0.1, 2.0, 1.5), abs=8)
    # Stable and then the optimal decay of the hill alone is near, but not at, the optimum.
    gains = cooldown_gain(np.arange(T), c, 0.1, 2.0, 1.5)
    switch = float(stationary_hill(0.1, 2.0, 1.5)) - c**2 * 0.1 * T - gains.max()
    assert found.loss < switch < found.loss + 0.02 * gains.max()
    assert found.loss > found.lower_bound


def test_one_update_along_a_river_is_the_minimum_of_a_parabola():
    c, h, sigma, v = 0.4, 2.0, 1.0, 0.3
    best = minimize_scalar(
        lambda lr: -(c**2) * lr + 0.5 * h * float(final_variance([lr], h, sigma, start=v)), bounds=(0, 2)
    )
    found = optimal_rates(1, curvatures=[h], sigma=sigma, start=v, slope=c)
    assert found.lr[0] == pytest.approx(best.x, rel=1e-5)
    assert found.lower_bound == -math.inf


def test_without_noise_and_bound_one_update_reaches_the_floor():
    found = optimal_rates(3, curvatures=[2.0], sigma=0.0, start=1.0)
    assert found.lr[0] == pytest.approx(0.5)
    assert found.hill == 0.0
    assert found.lower_bound == 0.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 0}, r"steps .*from 1 to 20000, got 0"),
        ({"start": -1.0}, r"start .*got -1"),
        ({"sigma": [1.0, 2.0, 3.0]}, r"rows of one length, got \(2,\), \(3,\), \(\)"),
        ({"curvatures": [1.0, 0.0]}, r"curvature must be > 0"),
        ({"curvatures": [[1.0]]}, r"got the shape \(1, 1\)"),
        ({"highest": 0.1, "lowest": 0.2}, r"highest .*in \[0.2, .*got 0.1"),
        ({"slope": -1.0}, r"slope .*got -1"),
        ({"guess": [0.1]}, r"guess must have 5 rates, one for each update, got 1"),
    ],
)
def test_bad_input_is_refused_with_the_rule(options, told):
    with pytest.raises(InputError, match=told):
        optimal_rates(**{"steps": 5, "curvatures": [1.0, 2.0], "sigma": 1.0, "start": 0.1} | options)
