"""Whole runs in a straight valley: crossing of rates, length of the cooldown, checkpoints, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval import theory_runs
from riverval.errors import InputError
from riverval.schedules import make_schedule
from riverval.shapes import Inverse, Linear
from riverval.theory import optimal_decay, stationary_hill, stationary_variance
from riverval.theory_decay import shape_area
from riverval.theory_runs import (
    checkpoint_after,
    checkpoints,
    cooldown_gain,
    cooldown_length,
    crossing_step,
    crossing_time,
    family_updates,
    fastest_rate,
    power_river_length,
    sharpening_speed,
    wsd_family,
    wsds_gain,
)

BUDGETS = (12_500, 25_000, 50_000)
VALLEY = {"slope": 0.1, "curvatures": [1.0], "sigma": 0.1}  # with the rate 0.02, c^2 eta = 2e-4
LR = 0.02


def losses(lr, updates, slope, curvatures, sigma, start):
    """Expected loss of every state at a constant rate, by the recursion."""
    h, square, found = np.array(curvatures), np.full(len(curvatures), start), []
    for t in range(updates + 1):
        found.append(0.5 * float(h @ square) - slope**2 * lr * t)
        square = (1 - lr * h) ** 2 * square + (lr * sigma) ** 2
    return np.array(found)


# --- any rates -------------------------------------------------------------------------------------------------------
@given(st.lists(st.floats(0.0, 0.2), min_size=1, max_size=30), st.floats(0.0, 2.0))
def test_expected_loss_is_the_naive_recursion(rates, start):
    h, square, area = np.array([0.5, 4.0]), np.full(2, start), 0.0
    for lr in rates:
        square, area = (1 - lr * h) ** 2 * square + (lr * 0.7) ** 2, area + lr
    found = checkpoint_after(rates, 0.3, h, 0.7, start=start)
    assert found.loss == pytest.approx(0.5 * float(h @ square) - 0.09 * area, rel=1e-10, abs=1e-12)
    assert (found.updates, found.area) == (len(rates), pytest.approx(area))


# --- two constant rates ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pair", [(0.02, 0.05), (0.05, 0.1), (0.1, 0.4)])
@pytest.mark.parametrize("curvatures", [[1.0], [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("slope", [0.05, 0.12])  # in the steeper river, before the hills have settled
def test_crossing_is_where_the_recursions_cross(pair, curvatures, slope):
    at = crossing_step(*pair, slope, curvatures, 1.0, start=0.001)
    assert at > 0
    low, high = (losses(lr, math.ceil(at) + 50, slope, curvatures, 1.0, 0.001) for lr in pair)
    better = high < low
    assert not better[math.floor(at - 1e-6)]
    assert better[math.ceil(at + 1e-6) :].all()
    assert crossing_step(*pair[::-1], slope, curvatures, 1.0, start=0.001) == at


@given(st.floats(1e-4, 1e-3), st.floats(1.5, 4.0), st.integers(1, 5))
def test_every_pair_of_small_rates_crosses_at_the_same_time(lr, ratio, modes):
    # A river so flat that the hills have settled long before.
    slope, sigma = 1e-3, 1.0
    at = crossing_step(lr, ratio * lr, slope, [1.0] * modes, sigma)
    assert at == pytest.approx(crossing_time(slope, sigma, modes=modes), rel=5e-3)


@given(st.floats(0.05, 0.9), st.floats(1.05, 2.0))
def test_at_larger_rates_the_crossing_is_later(product, ratio):
    at = crossing_step(product, ratio * product, 0.01, [1.0, 1.0], 1.0)
    expected = 2.0 / (0.01**2 * (2 - product) * (2 - ratio * product))
    assert at == pytest.approx(expected, rel=1e-3)
    assert at > crossing_time(0.01, 1.0, modes=2)


def test_from_high_up_the_hill_the_larger_rate_is_better_at_once():
    assert crossing_step(0.1, 0.2, 1.0, [1.0], 0.1, start=50.0) == 0.0


def test_after_a_long_decay_the_larger_rate_is_better_before_the_crossing():
    """The crossing is about undecayed losses only."""
    early = int(0.7 * crossing_time(0.05, 1.0))
    for plateau in ([0.02, 0.05],):
        ends = []
        for lr in plateau:
            start = float(stationary_variance(lr, 1.0, 1.0))
            rates = np.concatenate([np.full(early, lr), optimal_decay(lr, 1.0, 2000)])
            undecayed = checkpoint_after(rates[:early], 0.05, [1.0], 1.0, start=start).loss
            ends.append((undecayed, checkpoint_after(rates, 0.05, [1.0], 1.0, start=start).loss))
        assert ends[0][0] < ends[1][0]
        assert ends[0][1] > ends[1][1]


# --- sharpening ------------------------------------------------------------------------------------------------------
def test_speed_in_a_sharpening_valley_is_what_sgd_does():
    """Monte Carlo in L = -c x + h0 exp(k x) y^2/2, started at rest, over a stretch in which h hardly changes."""
    rng, R, c, sigma, k, h0 = np.random.default_rng(5), 20_000, 0.02, 1.0, 0.1, 1.0
    for lr, expected_sign, T in ((0.1, 1, 60), (0.3, 1, 30), (1.2, -1, 6)):
        x = np.zeros(R)
        y = math.sqrt(float(stationary_variance(lr, h0, sigma))) * rng.standard_normal(R)
        for _ in range(T):
            h = h0 * np.exp(k * x)
            gx, gy = -c + 0.5 * k * h * y * y, h * y
            x, y = x - lr * gx, y - lr * (gy + sigma * rng.standard_normal(R))  # no noise along the river
        speed, error = x.mean() / T, x.std(ddof=1) / math.sqrt(R) / T
        # The finite-rate value of h v*/2 in the place of eta sigma^2/4.
        exact = lr * (c - k * float(stationary_hill(lr, h0, sigma)))
        assert abs(speed - exact) < 4 * error + 0.05 * abs(exact)
        if lr <= 0.1:
            assert sharpening_speed(lr, c, sigma, k) == pytest.approx(exact, rel=0.05)
        assert np.sign(speed) == expected_sign


@given(st.floats(0.01, 1.0), st.floats(0.1, 2.0), st.floats(0.01, 2.0), st.integers(1, 4))
def test_fastest_rate_is_fastest_and_twice_it_stalls(slope, sigma, growth, modes):
    best = fastest_rate(slope, sigma, growth, modes=modes)
    speeds = [sharpening_speed(f * best, slope, sigma, growth, modes=modes) for f in (0.9, 1.0, 1.1)]
    assert speeds[1] > max(speeds[0], speeds[2])
    assert best == pytest.approx(2 * slope / (modes * growth * sigma**2))
    assert sharpening_speed(2 * best, slope, sigma, growth, modes=modes) == pytest.approx(0.0, abs=1e-12 * slope * best)
    assert sharpening_speed(2.1 * best, slope, sigma, growth, modes=modes) < 0


def test_tabulated_speeds():
    assert sharpening_speed(0.05, 0.05, 1.0, 1.0) == pytest.approx(0.00188, abs=5e-6)
    assert sharpening_speed(0.2, 0.05, 1.0, 1.0) == pytest.approx(0.0, abs=1e-15)


def test_a_widening_valley_speeds_up():
    assert sharpening_speed(0.1, 0.1, 1.0, -0.5) > 0.1 * 0.1


# --- length of the cooldown ------------------------------------------------------------------------------------------
def test_best_length_of_the_tabulated_setting():
    """h = 2, sigma = 1.5, eta = 0.1, c = 0.03, one hill; by formula and by search over the continuous loss."""
    c, lr, h, sigma = 0.03, 0.1, 2.0, 1.5
    assert cooldown_length(c, lr, h, sigma) == pytest.approx(71.60, abs=0.005)
    n = np.linspace(0, 200, 200_001)
    loss = c**2 * (lr * n - np.log1p(lr * h * n / 2) / h) + 0.5 * sigma**2 / (2 / lr + h * n)
    assert n[loss.argmin()] == pytest.approx(71.60, abs=0.005)


@given(st.floats(0.01, 0.5), st.floats(0.2, 5.0), st.floats(0.2, 3.0), st.integers(1, 5), st.floats(0.02, 2.0))
def test_best_length_minimises_the_continuous_loss(product, h, sigma, modes, share):
    lr = product / h
    c = share * math.sqrt(modes * sigma**2 * h * lr / 4)
    best = cooldown_length(c, lr, h, sigma, modes=modes)

    def loss(n):
        return c**2 * (lr * n - math.log1p(lr * h * n / 2) / h) + 0.5 * modes * sigma**2 / (2 / lr + h * n)

    if abs(share - 1) > 1e-9:
        assert (best > 0) == (share < 1)  # iff m sigma^2 h eta > 4 c^2
    assert loss(best) <= min(loss(1.01 * best + 1e-3), loss(max(0.99 * best - 1e-3, 0.0))) + 1e-12


@given(st.floats(0.01, 0.1), st.integers(1, 3), st.floats(0.05, 0.5))
def test_best_whole_number_of_updates_is_about_one_longer(product, modes, share):
    c = share * math.sqrt(modes * product / 4)
    best = cooldown_length(c, product, 1.0, 1.0, modes=modes)
    gains = cooldown_gain(np.arange(int(2 * best) + 20), c, product, 1.0, 1.0, modes=modes)
    assert int(gains.argmax()) - best == pytest.approx(1.0, abs=1.5)


@given(st.floats(0.01, 1.5), st.integers(0, 50), st.integers(1, 3))
def test_cooldown_gain_is_the_difference_of_two_runs(lr, steps, modes):
    start = stationary_variance(lr, 1.0, 0.8)
    stable = checkpoint_after([lr] * steps, 0.2, [1.0] * modes, 0.8, start=start).loss
    rates = optimal_decay(lr, 1.0, steps) if steps else []
    decayed = checkpoint_after(rates, 0.2, [1.0] * modes, 0.8, start=start).loss
    assert float(cooldown_gain(steps, 0.2, lr, 1.0, 0.8, modes=modes)) == pytest.approx(stable - decayed, abs=1e-12)


def test_best_length_is_that_of_the_flat_river_in_the_limit():
    c, lr, h, sigma = 1e-6, 0.1, 2.0, 1.5
    assert cooldown_length(c, lr, h, sigma, modes=3) == pytest.approx(sigma / c * math.sqrt(3 / (2 * h * lr)), rel=1e-4)


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_fraction_of_the_cooldown_falls_slowly_with_the_run(exponent):
    options = {"scale": 2.0, "exponent": exponent, "lr": 0.1, "curvature": 1.0, "sigma": 0.5}
    totals = (10**7, 10**8)
    lengths = [power_river_length(n, **options) for n in totals]
    power = math.log10(lengths[1] / lengths[0])
    assert power == pytest.approx((1 + exponent) / 2, abs=0.03)
    for n, length in zip(totals, lengths, strict=True):
        slope = math.sqrt(exponent * 2.0 * (0.1 * n) ** (-exponent - 1))
        assert length == pytest.approx(cooldown_length(slope, 0.1, 1.0, 0.5), rel=0.2)


# --- checkpoints -----------------------------------------------------------------------------------------------------
def plan(cooldown_of, steps):
    options = {"budgets": BUDGETS, "cooldown": 0.1, "cooldown_of": cooldown_of, "shape": Inverse(floor=0.1)}
    return make_schedule("wsd-s", peak_lr=LR, steps=steps, **options)


BRANCHES = wsd_family(LR, BUDGETS, cooldown=0.1, shape=Inverse(floor=0.1))
SAME_COST, SAME_PATH = plan("trunk", 53_750), plan("budget", 50_000)


def test_losses_of_every_checkpoint_are_the_tabulated_ones():
    wsd = [checkpoints(branch, **VALLEY)[0] for branch in BRANCHES]
    assert [p.river for p in wsd] == pytest.approx([-2.314, -4.628, -9.256], abs=6e-4)
    assert [p.river for p in checkpoints(SAME_COST, **VALLEY)] == pytest.approx([-2.314, -4.692, -9.448], abs=6e-4)
    assert [p.river for p in checkpoints(SAME_PATH, **VALLEY)] == pytest.approx([-2.314, -4.442, -8.698], abs=6e-4)
    cyclic = make_schedule("cyclic-cosine", peak_lr=LR, steps=50_000, budgets=BUDGETS, floor=0.1)
    assert checkpoints(cyclic, **VALLEY)[-1].river == pytest.approx(-5.50, abs=1e-3)
    areas = [checkpoints(s, **VALLEY)[-1].area / checkpoints(s, **VALLEY)[-1].updates for s in (cyclic, SAME_COST)]
    assert areas[0] / areas[1] == pytest.approx(0.55 / 0.879, rel=1e-3)


def test_both_signs_of_wsd_s_against_wsd():
    wsd = [checkpoints(branch, **VALLEY)[0] for branch in BRANCHES]
    same_cost, same_path = checkpoints(SAME_COST, **VALLEY), checkpoints(SAME_PATH, **VALLEY)
    assert family_updates(BRANCHES) == same_cost[-1].updates == 53_750
    assert [p.updates for p in wsd] == [p.updates for p in same_path] == list(BUDGETS)
    assert same_cost[0].loss == pytest.approx(same_path[0].loss) == pytest.approx(wsd[0].loss)
    for k in (1, 2):
        assert same_cost[k].loss < wsd[k].loss < same_path[k].loss
        assert same_cost[k].hill == pytest.approx(wsd[k].hill, rel=5e-5)
    gains = [same_cost[k].area / wsd[k].area - 1 for k in (1, 2)]
    assert gains == pytest.approx([0.014, 0.021], abs=5e-4)


@pytest.mark.parametrize(("k", "earlier"), [(0, 0), (1, 1250), (2, 3750)])
def test_gain_of_wsd_s_is_the_earlier_cooldowns(k, earlier):
    wsd = checkpoints(BRANCHES[k], **VALLEY)[0]
    area = shape_area(Inverse(floor=0.1))
    for run, same in ((SAME_COST, True), (SAME_PATH, False)):
        gain = wsd.loss - checkpoints(run, **VALLEY)[k].loss
        # The sum over updates is half an update longer than the integral, for each cooldown.
        assert gain == pytest.approx(wsds_gain(earlier, 0.1, LR, area, same_trunk=same), abs=3e-4)


def test_a_rewarmup_costs_half_its_length_and_buys_nothing():
    ramp = 2000
    plans = [make_schedule("wsd-s", peak_lr=LR, steps=50_000, cycles=2, rewarmup=n) for n in (0, ramp)]
    ends = [checkpoints(run, **VALLEY)[-1] for run in plans]
    # It starts at the floor of a tenth, so 0.9 of the half.
    assert ends[1].river - ends[0].river == pytest.approx(0.9 * 0.1**2 * LR * ramp / 2, rel=1e-3)
    assert ends[1].hill == pytest.approx(ends[0].hill, rel=1e-6)


def test_linear_decay_travels_further_and_leaves_more():
    ends = [
        checkpoints(make_schedule("wsd", peak_lr=LR, steps=5000, cooldown=0.3, shape=s), 0.1, [1.0], 1.0)[0]
        for s in (Inverse(floor=0.1), Linear(floor=0.1))
    ]
    assert ends[1].area > ends[0].area
    assert ends[1].hill > ends[0].hill


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: crossing_time(0.0, 1.0), r"slope .*got 0"),
        (lambda: crossing_step(0.1, 0.1, 0.1, [1.0], 1.0), r"two different rates .* got 0.1 twice"),
        (lambda: crossing_step(0.1, 2.5, 0.1, [1.0], 1.0), r"does not settle"),
        (lambda: fastest_rate(0.1, 1.0, -1.0), r"growth -1.0 <= 0, the largest rate is the fastest"),
        (lambda: cooldown_length(0.1, 0.1, 1.0, 1.0, modes=0), r"modes .*at least 1, got 0"),
        (lambda: cooldown_gain(-1, 0.1, 0.1, 1.0, 1.0), r"steps .*got -1"),
        (lambda: power_river_length(1, scale=1, exponent=1, lr=0.1, curvature=1, sigma=1), r"total .*at least 2, got"),
        (lambda: checkpoints(make_schedule("constant", peak_lr=0.1, steps=10), 0.1, [1.0], 1.0), r"has no cooldown"),
        (lambda: checkpoint_after([0.1], -0.1, [1.0], 1.0), r"slope .*got -0.1"),
        (lambda: wsds_gain(10, 0.1, 0.1, 1.5, same_trunk=True), r"area .*got 1.5"),
    ],
)
def test_bad_input_is_refused_with_the_rule(call, told):
    with pytest.raises(InputError, match=told):
        call()


def test_the_module_names_what_a_checkpoint_is():
    point = theory_runs.Checkpoint(updates=3, area=0.3, river=-0.1, hill=0.25)
    assert point.loss == 0.15
