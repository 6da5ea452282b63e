"""Averages, interpolations and bends against sums written out, dense covariances, Monte Carlo and gradient flow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from riverval.errors import InputError
from riverval.shapes import Inverse, Linear
from riverval.theory import final_variance, optimal_decay, optimal_final_hill, stationary_hill, stationary_variance
from riverval.theory_decay import asymptotic_ratio, cooldown_rates, hill_ratio
from riverval.theory_paths import (
    averaging_penalty,
    averaging_ratio,
    bend_offset,
    bend_speed,
    chord_penalty,
    decay_cross,
    interior_minimum,
    interpolated_loss,
    landing_shift,
    outward_offset,
    stable_cross,
    tail_average_area,
    tail_average_hill,
)

products = st.floats(1e-6, 1.99)


# --- averages --------------------------------------------------------------------------------------------------------
@given(products, st.integers(1, 400))
def test_hill_of_an_average_is_the_sum_of_all_covariances(product, window):
    rho = 1 - product
    k = np.arange(window)
    covariance = rho ** np.abs(k[:, None] - k)
    expected = float(stationary_hill(product, 1.0, 1.0)) * covariance.mean()
    assert float(tail_average_hill(product, 1.0, 1.0, window)) == pytest.approx(expected, rel=1e-7)


def test_average_and_optimal_decay_over_500_updates():
    """h = sigma = 1, eta = 0.3."""
    average, decayed = float(tail_average_hill(0.3, 1.0, 1.0, 500)), optimal_final_hill(0.3, 1.0, 1.0, 500)
    assert (average, decayed) == (pytest.approx(0.000995, abs=5.1e-7), pytest.approx(0.000989, abs=5.1e-7))
    assert tail_average_area(0.3, 500) > math.log1p(0.3 * 500 / 2)


@pytest.mark.parametrize(("x", "above"), [(15.0, 0.05), (150.0, 0.006)])
def test_averaging_ties_the_optimal_decay_to_leading_order(x, above):
    window = round(x / 0.3)
    ratio = float(tail_average_hill(0.3, 1.0, 1.0, window)) / optimal_final_hill(0.3, 1.0, 1.0, window)
    assert ratio - 1 == pytest.approx(above, abs=0.008)
    assert float(averaging_ratio(x) / hill_ratio(None, x)) > 1.0


@given(st.floats(1e-4, 1e3))
def test_ratio_of_an_average_is_the_double_integral(x):
    expected = quad(lambda u: 2 * (1 - u) * math.exp(-x * u), 0, 1, epsabs=1e-13, epsrel=1e-11, limit=400)[0]
    assert float(averaging_ratio(x)) == pytest.approx(expected, rel=1e-7)


@given(st.floats(0.5, 100.0))
def test_average_tends_to_its_ratio_at_small_rates(x):
    n = 20_000
    exact = float(tail_average_hill(x / n, 1.0, 1.0, n) / stationary_hill(x / n, 1.0, 1.0))
    assert exact == pytest.approx(float(averaging_ratio(x)), rel=0.005)


def test_averaging_beats_linear_decay_at_equal_distance():
    """By the leading terms from x = 16/pi on; by the whole expressions at every length."""
    assert tail_average_area(0.1, 1001) == pytest.approx(0.1 * 1000 / 2)
    at = 16 / math.pi
    assert 2 / at == pytest.approx(float(asymptotic_ratio(at, 1.0, 1.0)), rel=1e-12)
    assert at == pytest.approx(5.1, abs=0.01)
    x = np.geomspace(0.01, 1e4, 400)
    assert np.all(averaging_ratio(x) < hill_ratio(Linear(), x))


# --- between two checkpoints -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("gap", [1, 5, 20, 100])
def test_hill_between_two_stationary_iterates(gap):
    rng, R, lr, h = np.random.default_rng(6), 40_000, 0.1, 1.0
    a = math.sqrt(float(stationary_variance(lr, h, 1.0))) * rng.standard_normal(R)
    b = a.copy()
    for _ in range(gap):
        b = b - lr * (h * b + rng.standard_normal(R))
    hill, cross = float(stationary_hill(lr, h, 1.0)), float(stable_cross(lr, h, 1.0, gap))
    for alpha in (0.25, 0.5):
        measured = 0.5 * h * ((1 - alpha) * a + alpha * b) ** 2
        expected = float(interpolated_loss(alpha, 0.0, hill, hill, cross))
        assert abs(measured.mean() - expected) < 4 * measured.std(ddof=1) / math.sqrt(R)
    assert float(interpolated_loss(0.5, 0.0, hill, hill, cross)) == pytest.approx(hill * (1 + 0.9**gap) / 2)


def test_hill_between_the_ends_of_a_cooldown():
    rng, R, h = np.random.default_rng(7), 40_000, 2.0
    rates = cooldown_rates(Inverse(floor=0.1), 0.1, 60, curvature=h)
    start = float(stationary_variance(0.1, h, 1.5))
    a = math.sqrt(start) * rng.standard_normal(R)
    b = a.copy()
    for lr in rates:
        b = b - lr * (h * b + 1.5 * rng.standard_normal(R))
    first, last = 0.5 * h * start, 0.5 * h * float(final_variance(rates, h, 1.5, start=start))
    cross = float(decay_cross(rates, h, first))
    for alpha in (0.3, 0.7, 1.0):
        measured = 0.5 * h * ((1 - alpha) * a + alpha * b) ** 2
        expected = float(interpolated_loss(alpha, 0.0, first, last, cross))
        assert abs(measured.mean() - expected) < 4 * measured.std(ddof=1) / math.sqrt(R)


pairs = st.tuples(st.floats(0.0, 3.0), st.floats(0.1, 2.0), st.floats(0.1, 2.0), st.floats(-0.9, 0.9))


@given(pairs)
def test_interpolated_loss_is_convex_and_has_its_minimum_where_it_is_said(pair):
    drop, first, last, share = pair
    cross = share * math.sqrt(first * last)
    alpha = np.linspace(0, 1, 2001)
    loss = interpolated_loss(alpha, drop, first, last, cross)
    bend = np.diff(loss, 2) / (alpha[1] - alpha[0]) ** 2
    np.testing.assert_allclose(bend, 2 * (first + last - 2 * cross), rtol=1e-3)
    at = interior_minimum(drop, first, last, cross)
    best = alpha[loss.argmin()]
    if at is None:
        assert best in (0.0, 1.0)
    else:
        assert best == pytest.approx(at, abs=1e-3)


@given(st.floats(0.01, 1.0), st.integers(1, 100), st.floats(0.0, 3.0))
def test_stable_pair_has_an_interior_minimum_iff_the_river_falls_little(product, gap, share):
    hill, cross = float(stationary_hill(product, 1.0, 1.0)), float(stable_cross(product, 1.0, 1.0, gap))
    limit = 2 * (hill - cross)
    if abs(share - 1) > 1e-6:
        assert (interior_minimum(share * limit, hill, hill, cross) is not None) == (share < 1)
    assert hill - float(interpolated_loss(0.5, 0.0, hill, hill, cross)) == pytest.approx((hill - cross) / 2)


def test_decay_pair_falls_all_the_way_iff_the_river_falls_enough():
    rates = cooldown_rates(Inverse(floor=0.1), 0.1, 60, curvature=2.0)
    first = float(stationary_hill(0.1, 2.0, 1.5))
    last = first * float(final_variance(rates, 2.0, 1.5, start=stationary_variance(0.1, 2.0, 1.5)) / 0.0625)
    cross = float(decay_cross(rates, 2.0, first))
    alpha, limit = np.linspace(0, 1, 1001), 2 * (last - cross)
    assert 0 < limit < 2 * last
    assert np.all(np.diff(interpolated_loss(alpha, 1.001 * limit, first, last, cross)) < 0)
    shallow = interior_minimum(0.2 * limit, first, last, cross)
    assert shallow is not None
    assert 0.85 < shallow < 1.0


def test_without_hills_the_line_falls_straight():
    np.testing.assert_allclose(interpolated_loss([0.0, 0.5, 2.0], 0.4, 0.0, 0.0, 0.0), [0.0, -0.2, -0.8])
    assert interior_minimum(0.4, 0.0, 0.0, 0.0) is None


def test_cross_term_of_the_optimal_decay():
    """prod (1 - eta_t h) telescopes: each factor is (2/eta + h(t-1)) / (2/eta + h t)."""
    cross = decay_cross(optimal_decay(0.1, 2.0, 40), 2.0, 1.0)
    assert float(cross) == pytest.approx((20 - 2) / (20 + 2 * 39), rel=1e-12)


# --- bends -----------------------------------------------------------------------------------------------------------
class Sine:
    """L = -c x + h/2 (y - a sin(k x))^2."""

    c, h, a, k = 1.0, 200.0, 1.0, 0.5

    def f(self, x):
        return self.a * np.sin(self.k * x)

    def slope(self, x):
        return self.a * self.k * np.cos(self.k * x)

    def flow(self, x, y, time):
        def velocity(_, w):
            d = w[1] - self.f(w[0])
            return [self.c + self.h * d * self.slope(w[0]), -self.h * d]

        return solve_ivp(velocity, (0, time), [x, y], method="LSODA", rtol=1e-10, atol=1e-12, dense_output=True).sol


@pytest.mark.parametrize("time", [1.0, 4.0, 6.0])
def test_gradient_flow_runs_at_the_predicted_speed_and_offset(time):
    sine = Sine()
    path = sine.flow(0.0, 0.0, 10.0)
    (x, y), dt = path(time), 1e-3
    speed = (path(time + dt)[0] - path(time - dt)[0]) / (2 * dt)
    gradient = sine.slope(x)
    kappa = sine.a * sine.k**2
    assert speed == pytest.approx(float(bend_speed(sine.c, gradient)), rel=3 * sine.c * kappa / sine.h)
    offset = float(bend_offset(sine.c, sine.h, gradient))
    assert y - sine.f(x) == pytest.approx(offset, abs=3 * kappa / sine.h * sine.c / sine.h)


@pytest.mark.parametrize("offset", [0.02, -0.05])
def test_a_state_beside_the_river_lands_where_it_is_said(offset):
    sine = Sine()
    sine.c = 0.0
    x = 1.0
    landed = sine.flow(x, sine.f(x) + offset, 1.0)(1.0)
    assert landed[1] == pytest.approx(sine.f(landed[0]), abs=1e-9)
    assert landed[0] - x == pytest.approx(float(landing_shift(offset, sine.slope(x))), rel=0.02)


def test_sgd_runs_outside_a_bend():
    """On a circle of radius 5: L = h/2 (r - R)^2 - c R theta, noise in both coordinates.

    A straight valley under the same radial noise has the mean 0 and is subtracted: most of the scatter goes with it.
    """
    rng, replicates, lr, h, c, sigma, R = np.random.default_rng(8), 4000, 0.1, 1.0, 0.4, 1.0, 5.0
    angle = rng.uniform(0, 2 * np.pi, replicates)
    w, straight, kept = R * np.array([np.cos(angle), np.sin(angle)]), np.zeros(replicates), []
    for t in range(400):
        r = np.hypot(*w)
        radial, noise = w / r, sigma * rng.standard_normal(w.shape)
        gradient = h * (r - R) * radial - c * R / r * np.array([-radial[1], radial[0]])
        straight = straight - lr * (h * straight + np.sum(noise * radial, axis=0))
        w = w - lr * (gradient + noise)
        if t >= 100 and t % 4 == 0:
            kept.append(np.hypot(*w) - R - straight)
    each = np.mean(kept, axis=0)
    expected = float(outward_offset(lr, c, h, sigma, 1 / R))
    assert each.std(ddof=1) / math.sqrt(replicates) < 0.005 * expected
    assert abs(each.mean() - expected) < 4 * each.std(ddof=1) / math.sqrt(replicates) + 0.05 * expected


@pytest.mark.parametrize("arc", [0.5, 1.0])
def test_chord_and_average_leave_a_circular_river(arc):
    """Points of a circle of radius 4 spread over an arc: their middle and their mean, seen from the circle."""
    radius, h = 4.0, 3.0
    ends = radius * np.exp(1j * np.array([-0.5, 0.5]) * arc / radius)
    all_points = radius * np.exp(1j * np.linspace(-0.5, 0.5, 20_001) * arc / radius)
    chord, mean = (0.5 * h * (abs(p) - radius) ** 2 for p in (ends.mean(), all_points.mean()))
    assert float(chord_penalty(h, 1 / radius, arc)) == pytest.approx(chord, rel=0.01)
    assert float(averaging_penalty(h, 1 / radius, arc)) == pytest.approx(mean, rel=0.01)


@given(st.floats(0.1, 10.0), st.floats(0.01, 1.0), st.floats(0.1, 5.0))
def test_penalties_grow_as_the_fourth_power_and_averaging_costs_a_ninth(h, bend, arc):
    chord = float(chord_penalty(h, bend, arc))
    assert chord / float(averaging_penalty(h, bend, arc)) == pytest.approx(9.0)
    assert float(chord_penalty(h, bend, 2 * arc)) / chord == pytest.approx(16.0)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: tail_average_hill(0.1, 1.0, 1.0, 0), r"window .*at least 1, got 0"),
        (lambda: averaging_ratio(0.0), r"x .*got 0"),
        (lambda: tail_average_area(-0.1, 5), r"lr .*got -0.1"),
        (lambda: stable_cross(0.1, 1.0, 1.0, -1), r"gap .*got -1"),
        (lambda: decay_cross([0.1], 1.0, -1.0), r"first .*got -1"),
        (lambda: interpolated_loss(0.5, 0.0, 1.0, 1.0, 1.5), r"cross .*got 1.5"),
        (lambda: interior_minimum(math.inf, 1.0, 1.0, 0.5), r"drop .*got inf"),
        (lambda: bend_offset(1.0, 0.0, 1.0), r"curvature must be > 0"),
        (lambda: bend_speed(1.0, math.nan), r"gradient .*got nan"),
        (lambda: chord_penalty(1.0, 0.1, -1.0), r"length .*got -1"),
        (lambda: outward_offset(0.1, 1.0, 1.0, -1.0, 0.1), r"sigma .*got -1"),
    ],
)
def test_bad_input_is_refused_with_the_rule(call, told):
    with pytest.raises(InputError, match=told):
        call()
