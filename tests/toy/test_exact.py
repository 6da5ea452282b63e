"""The exact recursion against closed forms, tabulated values and a naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from riverval.errors import InputError
from riverval.schedules import SCHEDULES, make_schedule
from riverval.shapes import Cosine, Inverse, Linear, OneMinusSqrt
from riverval.store import load, save
from riverval.toy import (
    Setting,
    StraightRiver,
    exact,
    moments,
    optimal_decay,
    optimal_final_hill,
    stationary_hill,
    stationary_variance,
)

VALLEY = StraightRiver(0.3, (0.5, 2.0, 7.0))
ONE_HILL = StraightRiver(0.0, (2.0,))
PLATEAU, STEPS, SIGMA = 0.1, 40, 1.5

curvatures = st.floats(0.01, 100.0)
sigmas = st.floats(0.01, 10.0)


def naive(loss, lr, sigma, mean, variance):
    """The recursion as it is written, one coordinate and one update at a time: mean and variance of all states."""
    means, variances = [mean], [variance]
    for eta in lr:
        mean = [(1 - eta * h) * a for h, a in zip(loss.curvatures, mean, strict=True)]
        variance = [(1 - eta * h) ** 2 * s + eta**2 * sigma**2 for h, s in zip(loss.curvatures, variance, strict=True)]
        means.append(mean)
        variances.append(variance)
    return np.array(means), np.array(variances)


def final_hill(lr):
    """Hill loss after the rates `lr`, from the stationary state of PLATEAU."""
    start = stationary_variance(PLATEAU, 2.0, SIGMA)
    return moments(ONE_HILL, lr, [len(lr)], sigma=SIGMA, hill_variance=start).expected_hill[0]


# --- tabulated -------------------------------------------------------------------------------------------------------
U = np.arange(STEPS) / STEPS
INVERSE = Inverse(floor=0.1)


@pytest.mark.parametrize(
    ("lr", "hill", "area"),
    [
        (PLATEAU * np.ones(STEPS), 0.06250000, 4.00000),
        (PLATEAU * Linear()(U), 0.01812519, 2.05000),
        (PLATEAU * Cosine()(U), 0.02029867, 2.05000),
        (PLATEAU * OneMinusSqrt()(U), 0.01458866, 1.38652),
        (PLATEAU * INVERSE(U), 0.01199321, 1.07022),
        (PLATEAU * INVERSE(U + 1 / STEPS), 0.01174327, 0.98022),
        (optimal_decay(PLATEAU, 2.0, STEPS), 0.01147959, 0.82512),
    ],
    ids=["constant", "linear", "cosine", "1-sqrt", "inverse", "inverse-late", "optimal"],
)
def test_hill_and_area_of_each_decay_are_the_tabulated_ones(lr, hill, area):
    assert final_hill(lr) == pytest.approx(hill, abs=5.1e-9)
    assert lr.sum() == pytest.approx(area, abs=5.1e-6)


# --- the recursion ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["constant", "wsd", "wsd-s", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 97, 1000])
def test_composed_recursion_meets_the_naive_loop_at_every_subset_of_states(name, total, rng):
    lr = make_schedule(name, peak_lr=0.25, steps=max(total, 60)).values()[:total]  # lr h up to 1.75: overshooting
    mean, variance = [1.0, -2.0, 0.5], [0.0, 0.3, 1.0]
    means, variances = naive(VALLEY, lr, 0.7, mean, variance)
    some = np.flatnonzero(rng.random(total + 1) < 0.3)
    for states in (np.arange(total + 1), np.array([total]), np.array([0]), some if some.size else np.array([0])):
        found = moments(VALLEY, lr, states, sigma=0.7, hill_mean=mean, hill_variance=variance)
        np.testing.assert_allclose(found.hill_mean, means[states], rtol=1e-11, atol=1e-300)
        np.testing.assert_allclose(found.hill_variance, variances[states], rtol=1e-11)


def test_moments_meet_the_dense_covariance_of_the_whole_state():
    lr = np.array([0.1, 0.25, 0.02, 0.2, 0.0])
    mean, covariance = np.array([0.0, 1.0, 1.0, 1.0]), np.zeros((4, 4))
    H, pull = np.diag([0.0, *VALLEY.curvatures]), np.array([-VALLEY.slope, 0.0, 0.0, 0.0])
    for eta in lr:
        A = np.eye(4) - eta * H
        mean, covariance = A @ mean - eta * pull, A @ covariance @ A.T + eta**2 * 0.49 * np.eye(4)
    found = moments(VALLEY, lr, [len(lr)], sigma=0.7, hill_mean=1.0)
    np.testing.assert_allclose(np.append(found.river_mean, found.hill_mean), mean, rtol=1e-13)
    np.testing.assert_allclose(np.append(found.river_variance, found.hill_variance), np.diag(covariance), rtol=1e-13)
    # E[w'Hw/2] = (tr HC + mu'H mu)/2 and Var = tr(HCHC)/2 + mu'HCH mu for a Gaussian w.
    HC = H @ covariance
    assert found.expected_hill[0] == pytest.approx(0.5 * (np.trace(HC) + mean @ H @ mean), rel=1e-12)
    assert found.hill_std[0] ** 2 == pytest.approx(0.5 * np.trace(HC @ HC) + mean @ HC @ H @ mean, rel=1e-12)
    assert found.loss_std[0] ** 2 == pytest.approx(found.hill_std[0] ** 2 + found.river_std[0] ** 2, rel=1e-12)
    assert found.expected_loss[0] == pytest.approx(found.expected_river[0] + found.expected_hill[0], rel=1e-12)


def test_noise_free_descent_is_the_closed_form():
    found = moments(VALLEY, np.full(50, 0.2), [0, 50], sigma=0.0, hill_mean=2.0)
    np.testing.assert_allclose(found.hill_mean[1], 2.0 * (1 - 0.2 * np.array(VALLEY.curvatures)) ** 50, rtol=1e-12)
    assert found.expected_river[1] == pytest.approx(-(0.3**2) * 0.2 * 50)
    assert not found.hill_std.any()
    assert not found.river_std.any()


def test_relaxation_has_the_predicted_rate():
    limit = stationary_variance(0.1, 2.0, 1.0)
    found = moments(ONE_HILL, np.full(30, 0.1), np.arange(31), sigma=1.0, hill_variance=1.0)
    expected = limit + (1 - 0.1 * 2.0) ** (2 * np.arange(31)) * (1.0 - limit)
    np.testing.assert_allclose(found.hill_variance[:, 0], expected, rtol=1e-13)


@given(st.permutations(np.linspace(0.01, 0.2, 12).tolist()))
def test_river_depends_on_the_rates_only_through_their_sum(lr):
    found = moments(VALLEY, lr, [12], sigma=1.0)
    assert found.river_mean[0] == pytest.approx(VALLEY.slope * sum(lr), rel=1e-12)
    assert found.river_variance[0] == pytest.approx(sum(e * e for e in lr), rel=1e-12)


@pytest.mark.parametrize("lr", [1e-300, 0.1, 1e160, 1e308])
@pytest.mark.parametrize("number", [1e-300, 1e100])
def test_numbers_at_the_ends_of_their_range_give_no_warning(lr, number):
    schedule = make_schedule("wsd", peak_lr=lr, steps=20)
    ds = exact(StraightRiver(number, (number, 1.0)), schedule, sigma=number, start=-number)
    assert float(ds["loss"][0]) == pytest.approx(0.5 * (number + 1.0) * number**2)


def test_an_unstable_hill_goes_to_infinity_and_a_hill_without_start_or_noise_stays():
    lr = np.full(5000, 1.0)
    found = moments(VALLEY, lr, [0, 4000, 5000], sigma=1.0, hill_mean=1.0)
    assert np.isinf(found.expected_hill[1:]).all()
    assert np.isinf(found.hill_std[1:]).all()
    assert np.isfinite(found.expected_river).all()
    assert moments(VALLEY, lr, [5000], sigma=0.0).expected_hill[0] == 0.0


# --- stationary state ------------------------------------------------------------------------------------------------
@given(st.floats(0.001, 1.999), curvatures, sigmas)
def test_stationary_variance_is_the_fixed_point(product, h, sigma):
    lr = product / h
    variance = stationary_variance(lr, h, sigma)
    after = moments(StraightRiver(0.0, (h,)), [lr] * 3, [3], sigma=sigma, hill_variance=variance)
    assert after.hill_variance[0, 0] == pytest.approx(float(variance), rel=1e-12)
    assert after.expected_hill[0] == pytest.approx(float(stationary_hill(lr, h, sigma)), rel=1e-12)


@given(st.floats(1e-6, 1.0), curvatures, sigmas)
def test_stationary_hill_lies_between_its_bounds_below_the_critical_rate(product, h, sigma):
    lr = product / h
    scale = lr * sigma**2
    hill = float(stationary_hill(lr, h, sigma))
    assert scale / 4 < hill <= scale / 2 * (1 + 1e-15)
    if product <= 0.5:  # implied by lr < gamma / (2 gamma_max^2)
        assert hill <= scale / 3 * (1 + 1e-15)


@given(st.floats(1.001, 1.999), curvatures)
def test_the_quoted_bound_fails_for_one_hill_beyond_the_critical_rate(product, h):
    assert float(stationary_hill(product / h, h, 1.0)) > product / h / 2


def test_the_upper_bound_is_attained_at_the_critical_rate():
    assert stationary_hill(0.5, 2.0, 3.0) == pytest.approx(0.5 * 9.0 / 2, rel=1e-15)


@given(st.floats(0.01, 0.9), st.floats(1.01, 2.0), curvatures)
def test_stationary_hill_grows_with_rate_and_curvature(product, factor, h):
    lr = product / h
    assert stationary_hill(factor * lr, h, 1.0) > stationary_hill(lr, h, 1.0)
    assert stationary_hill(lr, factor * h, 1.0) > stationary_hill(lr, h, 1.0)


# --- optimal decay ---------------------------------------------------------------------------------------------------
@given(st.floats(0.01, 1.9), curvatures, sigmas, st.integers(1, 60))
def test_final_hill_of_the_optimal_decay_is_the_closed_form(product, h, sigma, steps):
    lr = product / h
    found = moments(
        StraightRiver(0.0, (h,)), optimal_decay(lr, h, steps), [steps], sigma=sigma,
        hill_variance=stationary_variance(lr, h, sigma),
    )  # fmt: skip
    assert found.expected_hill[0] == pytest.approx(optimal_final_hill(lr, h, sigma, steps), rel=1e-11)


@given(st.lists(st.floats(-0.9, 2.0), min_size=STEPS, max_size=STEPS))
def test_no_perturbation_beats_the_optimal_decay(changes):
    best = optimal_decay(PLATEAU, 2.0, STEPS)
    assert final_hill(best * (1 + np.array(changes))) >= final_hill(best) * (1 - 1e-12)


def test_numerical_search_over_all_rates_finds_the_optimal_decay():
    start = np.full(8, math.log(PLATEAU))  # in logarithms, so that no rate is tried that is not positive
    found = minimize(lambda log: 1e3 * final_hill(np.exp(log)), start, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(np.exp(found.x), optimal_decay(PLATEAU, 2.0, 8), rtol=1e-5)


def test_long_optimal_decay_forgets_the_plateau():
    assert optimal_final_hill(0.1, 2.0, 1.5, 10**6) == pytest.approx(1.5**2 / (2 * 2.0 * 10**6), rel=2e-5)


# --- whole settings --------------------------------------------------------------------------------------------------
def test_states_include_both_ends_of_each_cooldown():
    schedule = make_schedule("wsd-s", peak_lr=0.1, steps=1000, cycles=3)
    states = Setting(loss=VALLEY, schedule=schedule, sigma=1.0, every=7).states().tolist()
    wanted = {0, 1000, *range(0, 1001, 7)} | {s for window in schedule.windows("cooldown") for s in window}
    assert states == sorted(wanted)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("every", [None, 1, 7, 20, 400])
def test_states_are_counted_without_being_made(name, every):
    for steps in (60, 401, 1000):
        schedule = make_schedule(name, peak_lr=0.1, steps=steps)
        for plan in (schedule, schedule.repeat(2), schedule.truncate(steps - 1)):
            setting = Setting(loss=VALLEY, schedule=plan, sigma=1.0, every=every)
            assert setting.count_states() == len(setting.states())


def test_default_records_about_four_hundred_states():
    for total in (1, 10, 400, 401, 123_457):
        schedule = make_schedule("constant", peak_lr=0.1, steps=total)
        states = Setting(loss=VALLEY, schedule=schedule, sigma=1.0).states()
        assert min(total, 200) < len(states) <= 402


def test_exact_dataset_is_in_the_schema_and_meets_the_stationary_value(tmp_path):
    schedule = make_schedule("constant", peak_lr=0.1, steps=60)
    ds = load(save(exact(VALLEY, schedule, sigma=0.8, start="stationary", every=20), tmp_path / "exact.nc"))
    assert ds["source"].item() == "theory"
    assert ds["eval_step"].values.tolist() == [0, 20, 40, 60]
    np.testing.assert_allclose(ds["hill"], stationary_hill(0.1, VALLEY.curvatures, 0.8).sum(), rtol=1e-12)
    np.testing.assert_allclose(ds["river"], -(0.3**2) * 0.1 * ds["eval_step"], rtol=1e-12)
    np.testing.assert_array_equal(ds["loss"], ds["river"] + ds["hill"])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: stationary_variance(1.0, 2.0, 1.0), r"below 2/h = 1"),
        (lambda: stationary_hill(0.1, -2.0, 1.0), r"curvature must be > 0"),
        (lambda: stationary_variance(0.1, 2.0, -1.0), r"sigma .* got -1"),
        (lambda: optimal_decay(0.1, 2.0, 0), r"steps .* at least 1, got 0"),
        (lambda: moments(VALLEY, [0.1], [2], sigma=1.0), r"increasing numbers in 0..1"),
        (lambda: moments(VALLEY, [0.1], [1, 0], sigma=1.0), r"increasing"),
        (lambda: moments(VALLEY, [0.1], [1], sigma=1.0, hill_variance=-1.0), r"finite and not negative, got -1"),
        (lambda: moments(VALLEY, [0.1], [1], sigma=1.0, hill_variance=math.nan), r"hill_variance .* got nan"),
        (lambda: moments(VALLEY, [0.1], [1], sigma=1.0, hill_mean=math.inf), r"hill_mean must be finite, got inf"),
        (lambda: moments(VALLEY, [0.1, math.nan], [1], sigma=1.0), r"finite rates .*, got nan for update 1"),
        (lambda: moments(VALLEY, [math.inf], [1], sigma=1.0), r"finite rates .*, got inf for update 0"),
        (lambda: moments(VALLEY, [0.1, 0.2, -0.3], [1], sigma=1.0), r"of at least 0, got -0.3 for update 2"),
        (lambda: moments(VALLEY, 0.1, [1], sigma=1.0), r"lr must be a row of rates"),
        (lambda: moments(VALLEY, [0.1], [1], sigma=1e101), r"sigma .*in \[0, 1e\+100\], got 1e\+101"),
        (lambda: optimal_final_hill(0.1, 2.0, 1e200, 5), r"sigma .*in \[0, 1e\+100\], got 1e\+200"),
        (lambda: stationary_variance(1e-300, 1e200, 1.0), r"curvature must be > 0 and at most 1e\+100"),
        (lambda: optimal_decay(0.1, 2.0, 10**20), r"steps .* from 1 to 1000000000"),
        (lambda: moments(VALLEY, [0.1], [1], sigma=math.nan), r"sigma"),
    ],
)
def test_bad_input_is_refused_with_the_rule(call, told):
    with pytest.raises(InputError, match=told):
        call()
