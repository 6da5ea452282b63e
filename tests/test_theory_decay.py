"""Final hill of each decay shape: tabulated numbers, the differential equation, the recursion, and asymptotes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from riverval import theory_decay
from riverval.errors import InputError
from riverval.shapes import SHAPES, Cosine, Exponential, Inverse, Linear, MirrorCosine, OneMinusSqrt, Power, Square
from riverval.theory import final_variance, stationary_variance
from riverval.theory_decay import (
    asymptotic_ratio,
    best_floor,
    crossing,
    exact_hill_ratio,
    hill_ratio,
    optimal_area,
    preference,
    shape_area,
)

FLOOR = 0.1
TO_FLOOR = {
    "linear": Linear(floor=FLOOR),
    "cosine": Cosine(floor=FLOOR),
    "1-sqrt": OneMinusSqrt(floor=FLOOR),
    "exponential": Exponential(floor=FLOOR),
    "inverse": Inverse(floor=FLOOR),
    "square": Square(floor=FLOOR),
}
TO_ZERO = {"linear": Linear(), "cosine": Cosine(), "1-sqrt": OneMinusSqrt(), "square": Square()}
ENDS = {
    "linear": (Linear(), 1.0, 1.0),
    "cosine": (Cosine(), math.pi**2 / 4, 2.0),
    "1-sqrt": (OneMinusSqrt(), 0.5, 1.0),
    "square": (Square(), 2.0, 1.0),
    "mirror-cosine": (MirrorCosine(), 2.0, 1.0),
    "power 1/2": (Power(exponent=0.5), 1.0, 0.5),
    "power 3": (Power(exponent=3.0), 1.0, 3.0),
}
lengths = st.floats(0.01, 300.0)
shapes = st.sampled_from([*TO_FLOOR.values(), *TO_ZERO.values(), Power(exponent=3.0), MirrorCosine(floor=0.02)])


def by_equation(shape, x):
    """R(1) by solving R' = 2x (s^2 - s R)."""

    def speed(u, R):
        s = float(shape(min(max(u, 0.0), 1.0)))
        return [2 * x * (s * s - s * R[0])]

    return solve_ivp(speed, (0.0, 1.0), [1.0], method="LSODA", rtol=1e-10, atol=1e-13).y[0, -1]


# --- the limit -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("x", [0.5, 9.0, 100.0])
def test_hill_ratio_solves_the_differential_equation(name, x):
    shape = SHAPES[name]()
    assert float(hill_ratio(shape, x)) == pytest.approx(by_equation(shape, x), rel=2e-8)


@pytest.mark.parametrize("name", TO_FLOOR)
@pytest.mark.parametrize("x", [1.0, 30.0])
def test_the_recursion_tends_to_it(name, x):
    shape = TO_FLOOR[name]
    errors = [abs(exact_hill_ratio(shape, x / n, 1.0, n) / float(hill_ratio(shape, x)) - 1) for n in (4000, 16_000)]
    assert errors[0] < 4e-3
    assert errors[1] < 0.27 * errors[0]  # first order in eta h


@given(st.floats(1e-3, 1e11))
def test_a_constant_rate_leaves_the_hill_as_it_is(x):
    assert float(hill_ratio(Linear(floor=1.0), x)) == pytest.approx(1.0, rel=1e-9)


@given(shapes, st.floats(1e-3, 1e6))
def test_nothing_goes_below_the_optimal_decay(shape, x):
    assert float(hill_ratio(None, x)) <= float(hill_ratio(shape, x)) * (1 + 1e-9)


@given(lengths)
def test_the_inverse_decay_to_its_own_floor_follows_the_optimal_one(x):
    """From the state the optimal decay leaves at once, half the rate and twice the slope: r = 1/(1 + x/2)."""
    floor = 1 / (1 + x / 2)
    left = float(hill_ratio(Inverse(floor=floor), x))
    assert 1 / (1 + x / 2) < left < 2 / (1 + x / 2)


@given(st.floats(0.05, 1.0), lengths)
def test_inverse_decay_has_a_closed_form(floor, x):
    """s = 1/(1 + k u): R = 1/(1+k)^q + q ((1+k)^(q-1) - 1) / ((q-1)(1+k)^q), q = 2x/k."""
    k = 1 / floor - 1
    if k < 1e-3:
        return
    q = 2 * x / k
    if abs(q - 1) < 1e-3:
        return
    start = math.exp(-q * math.log1p(k))
    expected = start + q / (q - 1) * (1 / (1 + k) - start)
    assert float(hill_ratio(Inverse(floor=floor), x)) == pytest.approx(expected, rel=1e-8)


def test_linear_decay_has_a_closed_form():
    """exp(-x) + 2x int v^2 exp(-x v^2) dv = sqrt(pi/x) erf(sqrt x)/2."""
    x = np.array([0.1, 1.0, 9.0, 1e4, 1e9])
    expected = [0.5 * math.sqrt(math.pi / k) * math.erf(math.sqrt(k)) for k in x]
    np.testing.assert_allclose(hill_ratio(Linear(), x), expected, rtol=1e-10)


def test_exponential_decay_has_a_closed_form():
    """With s = e^{-k u}: int s^2 exp(2x s/k) du in s, up to the factor that is left at the end."""
    x, k = 20.0, math.log(10.0)
    a = 2 * x / k
    expected = math.exp(-a * 0.9) + 2 * x / k * quad(lambda s: s * math.exp(a * (0.1 - s)), 0.1, 1.0, epsabs=1e-13)[0]
    assert float(hill_ratio(Exponential(floor=0.1), x)) == pytest.approx(expected, rel=1e-9)


# --- areas -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (OneMinusSqrt(), 1 / 3), (Cosine(), 1 / 2), (Linear(), 1 / 2), (Square(), 2 / 3),
        (Power(exponent=0.5), 2 / 3), (Inverse(floor=0.1), math.log(10) / 9),
        (Exponential(floor=0.1), 0.9 / math.log(10)),
        (Linear(floor=0.1), 0.55), (Cosine(floor=0.1), 0.55), (OneMinusSqrt(floor=0.1), 0.4),
    ],
)  # fmt: skip
def test_river_areas_are_the_integrals(shape, area):
    assert shape_area(shape) == pytest.approx(area, rel=1e-12)


@given(st.floats(1e-3, 1e5))
def test_area_of_the_optimal_decay(x):
    expected = quad(lambda u: 1 / (2 + x * u), 0, 1, epsrel=1e-12, limit=200)[0]
    assert float(optimal_area(x)) == pytest.approx(expected, rel=1e-9)


def test_areas_of_whole_updates_tend_to_the_integrals():
    rates = theory_decay.cooldown_rates(None, 0.1, 4000, curvature=2.0)
    assert rates.mean() / 0.1 == pytest.approx(float(optimal_area(0.1 * 2.0 * 4000)), rel=0.02)
    rates = theory_decay.cooldown_rates(Linear(), 0.1, 4, curvature=2.0)
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05, 0.025], rtol=1e-14)


# --- tabulated -------------------------------------------------------------------------------------------------------
# Decay to a tenth: linear, cosine, 1-sqrt, exponential, inverse, square; over 2000 updates, in units of eta sigma^2/4.
TABLE = {
    1: (0.734, 0.769, 0.705, 0.725, 0.742, 0.791),
    3: (0.495, 0.524, 0.434, 0.447, 0.447, 0.584),
    9: (0.303, 0.288, 0.242, 0.228, 0.190, 0.384),
    30: (0.189, 0.151, 0.155, 0.139, 0.118, 0.238),
    100: (0.135, 0.109, 0.120, 0.112, 0.105, 0.160),
    1000: (0.107, 0.103, 0.105, 0.104, 0.103, 0.112),
}
# The same in the limit of small eta h, by the differential equation above.
LIMITS = {
    1: (0.7337, 0.7692, 0.7047, 0.7244, 0.7422, 0.7907),
    3: (0.4947, 0.5242, 0.4338, 0.4470, 0.4463, 0.5841),
    9: (0.3028, 0.2873, 0.2422, 0.2278, 0.1900, 0.3831),
    30: (0.1887, 0.1512, 0.1548, 0.1384, 0.1176, 0.2377),
    100: (0.1347, 0.1087, 0.1196, 0.1115, 0.1047, 0.1591),
    1000: (0.1043, 0.1001, 0.1022, 0.1012, 0.1005, 0.1083),
}
OPTIMAL = {1: 0.667, 3: 0.400, 9: 0.182, 30: 0.0625, 100: 0.0196, 1000: 0.0020}


@pytest.mark.parametrize("x", TABLE)
def test_table_of_decays_to_a_tenth(x):
    product, n = x / 2000, 2000
    unit = stationary_variance(product, 1.0, 1.0) / (product / 2)
    found = [exact_hill_ratio(shape, product, 1.0, n) * float(unit) for shape in TO_FLOOR.values()]
    np.testing.assert_allclose(found, TABLE[x], rtol=0, atol=5.01e-4)


@pytest.mark.parametrize("x", LIMITS)
def test_table_of_decays_to_a_tenth_in_the_limit(x):
    np.testing.assert_allclose([hill_ratio(s, x) for s in TO_FLOOR.values()], LIMITS[x], rtol=0, atol=5.01e-5)
    assert float(hill_ratio(None, x)) == pytest.approx(OPTIMAL[x], abs=5.01e-4 if x < 10 else 5.01e-5)


def test_table_of_decays_to_zero():
    found = [hill_ratio(None, 30), *(hill_ratio(TO_ZERO[k], 30) for k in ("cosine", "1-sqrt", "linear", "square"))]
    np.testing.assert_allclose(found, (0.0625, 0.1573, 0.1210, 0.1618, 0.2171), rtol=0, atol=5.01e-5)
    # With 4000 updates, in units of eta sigma^2/4.
    unit = 1 / (1 - 30 / 8000)
    names = ("cosine", "1-sqrt", "linear", "square")
    found = [unit * exact_hill_ratio(TO_ZERO[k], 30 / 4000, 1.0, 4000) for k in names]
    np.testing.assert_allclose(found, (0.1574, 0.1210, 0.1619, 0.2172), rtol=0, atol=6e-5)


@pytest.mark.parametrize(
    ("first", "second", "low", "high", "at", "to"),
    [
        (TO_FLOOR["inverse"], TO_FLOOR["1-sqrt"], 1, 20, 3.63, 0.005),
        (TO_FLOOR["inverse"], TO_FLOOR["cosine"], 30, 2000, 224.6, 0.05),
        (TO_FLOOR["inverse"], TO_FLOOR["linear"], 0.1, 20, 1.38, 0.005),
        (Cosine(), Linear(), 1, 200, 24.1, 0.05),
        (Cosine(), OneMinusSqrt(), 30, 2000, 228.6, 0.05),
    ],
)
def test_orders_change_at_these_lengths(first, second, low, high, at, to):
    x = crossing(first, second, low=low, high=high)
    assert x == pytest.approx(at, abs=to)
    gaps = [float(hill_ratio(first, k * x) - hill_ratio(second, k * x)) for k in (0.99, 1.01)]
    assert gaps[0] * gaps[1] < 0
    assert (gaps[0] > 0) == (at != 224.6)  # the first is the lower one from there on, but for this pair


def test_which_decay_to_a_tenth_is_lowest():
    x = np.geomspace(0.05, 1e4, 300)
    names = list(TO_FLOOR)
    best = np.array(names)[np.argmin([hill_ratio(s, x) for s in TO_FLOOR.values()], axis=0)]
    expected = np.where(x < 3.63, "1-sqrt", np.where(x < 224.6, "inverse", "cosine"))
    np.testing.assert_array_equal(best, expected)


@given(st.floats(0.01, 1e6))
def test_orders_that_hold_at_every_length(x):
    left = {name: float(hill_ratio(shape, x)) for name, shape in TO_ZERO.items()}
    assert left["1-sqrt"] < left["linear"] < left["square"]


def test_square_leaves_most_but_for_short_cooldowns():
    assert crossing(Cosine(), Square(), low=0.1, high=20) == pytest.approx(1.382, abs=1e-3)
    assert hill_ratio(Cosine(), 1.0) > hill_ratio(Square(), 1.0)
    assert hill_ratio(Cosine(), 1.5) < hill_ratio(Square(), 1.5)


@pytest.mark.parametrize(("x", "floor"), [(9.0, 0.084), (30.0, 0.030), (100.0, 0.0097)])
def test_best_floor_of_the_inverse_decay(x, floor):
    assert best_floor(x) == pytest.approx(floor, rel=0.012)
    for factor in (0.97, 1.03):
        assert hill_ratio(Inverse(floor=factor * best_floor(x)), x) > hill_ratio(Inverse(floor=best_floor(x)), x)


@given(st.floats(9.0, 1e4))
def test_best_floor_is_about_one_over_one_plus_length(x):
    assert best_floor(x) * (1 + x) == pytest.approx(1 - 1.9 / (x + 3), abs=0.02)


@pytest.mark.parametrize(
    ("x", "other", "threshold"),
    [(30.0, "linear", 0.24), (30.0, "1-sqrt", 0.26), (9.0, "linear", 0.38), (9.0, "1-sqrt", 0.36)],
)
def test_steepness_of_the_river_decides_between_two_shapes(x, other, threshold):
    inverse, second = TO_FLOOR["inverse"], TO_FLOOR[other]
    at = preference(inverse, second, x)
    assert at == pytest.approx(threshold, abs=0.005)
    for factor, sign in ((0.9, 1), (1.1, -1)):
        drop = factor * at
        losses = [float(hill_ratio(s, x)) - drop * shape_area(s) for s in (inverse, second)]
        assert np.sign(losses[1] - losses[0]) == sign


def test_preference_of_the_optimal_decay():
    at = preference(None, Linear(), 30.0)
    expected = (float(hill_ratio(Linear(), 30.0)) - 0.0625) / (0.5 - math.log(16) / 30)
    assert at == pytest.approx(expected, rel=1e-12)


# --- asymptotes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ENDS)
def test_long_cooldowns_forget_all_but_the_end(name):
    shape, a, p = ENDS[name]
    errors = [abs(float(hill_ratio(shape, x) / asymptotic_ratio(x, a, p)) - 1) for x in (1e4, 1e8)]
    assert errors[0] < 0.02
    assert errors[1] < 1e-3
    slope = math.log(float(hill_ratio(shape, 1e9) / hill_ratio(shape, 1e8))) / math.log(10)
    assert slope == pytest.approx(-p / (p + 1), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "exponent"), [("cosine", -0.666), ("linear", -0.501), ("1-sqrt", -0.502), ("square", -0.500)]
)
def test_exponents_between_a_thousand_and_ten_thousand(name, exponent):
    ratio = hill_ratio(TO_ZERO[name], [1e3, 1e4])
    assert math.log10(float(ratio[1] / ratio[0])) == pytest.approx(exponent, abs=0.003)


def test_constants_of_the_asymptotes():
    """sqrt(pi)/8 for linear, in units of sigma^2 sqrt(eta/(h T)) with H = eta sigma^2/4; the others relative to it."""
    x = 1e6
    linear = float(hill_ratio(Linear(), x))
    assert linear * math.sqrt(x) / 4 == pytest.approx(math.sqrt(math.pi) / 8, rel=1e-9)
    assert linear / float(hill_ratio(OneMinusSqrt(), x)) == pytest.approx(math.sqrt(2), rel=1e-3)
    assert float(hill_ratio(Square(), x)) / linear == pytest.approx(math.sqrt(2), rel=1e-3)


@given(st.floats(0.01, 0.5))
def test_no_decay_goes_below_the_floor_it_ends_at(floor):
    for shape in (Linear(floor=floor), Cosine(floor=floor), Inverse(floor=floor)):
        assert float(hill_ratio(shape, 1e4)) >= floor * (1 - 1e-9)
    assert float(hill_ratio(Cosine(floor=floor), 1e7)) == pytest.approx(floor, rel=1e-3)


def test_a_cooldown_that_starts_lower_ends_lower():
    rates = theory_decay.cooldown_rates(Linear(), 0.1, 50, curvature=2.0)
    left = [float(final_variance(rates, 2.0, 1.0, start=v)) for v in (0.01, 0.02)]
    assert left[0] < left[1]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: hill_ratio(Linear(), -1.0), r"x .*eta h T.* got -1"),
        (lambda: hill_ratio(Linear(), math.nan), r"x .* got nan"),
        (lambda: hill_ratio(Linear(), 1e13), r"in \[0, 1e\+12\]"),
        (lambda: optimal_area(0.0), r"in \(0, 1e\+12\], got 0"),
        (lambda: crossing(Linear(), Square(), low=1, high=10), r"do not change order between x = 1 and x = 10"),
        (lambda: crossing(Linear(), Square(), low=10, high=1), r"do not change order"),
        (lambda: preference(Linear(), Cosine(), 30.0), r"travel the same distance"),
        (lambda: best_floor(0.0), r"x .*got 0"),
        (lambda: asymptotic_ratio(10.0, 0.0, 1.0), r"coefficient .*got 0"),
        (lambda: exact_hill_ratio(Linear(), 3.0, 1.0, 10), r"does not settle"),
    ],
)
def test_bad_input_is_refused_with_the_rule(call, told):
    with pytest.raises(InputError, match=told):
        call()
