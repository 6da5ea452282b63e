"""The last-iterate bound: published values, the formula sum by sum, closed forms, the best rates."""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize

from riverval.bounds import (
    Bound,
    bounds_after,
    constant_bound,
    fit_bound,
    last_iterate_bound,
    optimal_rates,
    wsd_bound,
    wsd_upper_bound,
)
from riverval.errors import InputError
from riverval.schedules import make_schedule

SHARED = Path(os.environ.get("RIVERVAL_SHARED", Path(__file__).parents[2] / "shared"))
RUNS = SHARED / "data" / "curves" / "llm_124m" / "runs.csv"


def wsd(steps, cooldown, **options):
    return make_schedule("wsd", peak_lr=1.0, steps=steps, cooldown=cooldown, **options)


def term_by_term(rates, norms, distance):
    """The formula of the docstring, sum by sum."""
    T = len(rates)
    S = sum(rates)
    prices = [(r * g) ** 2 for r, g in zip(rates, norms, strict=True)]
    last = sum(rates[k] / sum(rates[k + 1 :]) * sum(prices[k:]) / sum(rates[k:]) for k in range(T - 1))
    return distance**2 / (2 * S), sum(prices) / (2 * S), 0.5 * last


# --- published values ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("schedule", "scale", "best"),
    [
        (make_schedule("constant", peak_lr=1.0, steps=400), 0.01818, 0.13754),
        (make_schedule("cosine", peak_lr=1.0, steps=400), 0.04824, 0.10339),
        (wsd(400, 1.0), 0.04956, 0.10063),
        (wsd(400, 0.1), 0.02263, 0.11614),
        (wsd(400, 0.2), 0.02537, 0.10932),
        (wsd(400, 0.35), 0.02890, 0.10469),
        (wsd(400, 0.4), 0.03007, 0.10376),
        (wsd(400, 0.6), 0.03510, 0.10157),
        (wsd(400, 0.8), 0.04126, 0.10077),
        (wsd(6400, 0.2), 0.00642, 0.02703),
        (wsd(6400, 1.0), 0.01249, 0.02502),
    ],
    ids=lambda v: v.describe() if hasattr(v, "describe") else "",
)
def test_the_best_base_rate_and_bound_to_every_digit(schedule, scale, best):
    found = last_iterate_bound(schedule)
    assert (round(found.best_scale, 5), round(found.best, 5)) == (scale, best)


@pytest.mark.parametrize(
    ("shape", "best"),
    [("1-sqrt", 0.10729), ("linear", 0.10932), ("mirror-cosine", 0.11043), ("cosine", 0.11083), ("square", 0.11365)],
)
def test_the_shapes_of_a_cooldown_of_a_fifth(shape, best):
    assert round(last_iterate_bound(wsd(400, 0.2, shape=shape)).best, 5) == best


@pytest.mark.parametrize(("cooldown", "linear_wins"), [(0.2, False), (0.4, False), (0.6, True), (0.8, True)])
def test_long_linear_cooldowns_are_no_worse_than_1_sqrt(cooldown, linear_wins):
    linear, root = (last_iterate_bound(wsd(400, cooldown, shape=s)).best for s in ("linear", "1-sqrt"))
    assert (linear <= root) == linear_wins


def test_the_best_base_rate_grows_with_the_cooldown_as_published():
    scales = {c: last_iterate_bound(wsd(50_000, c)).best_scale for c in (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.994)}
    ratios = [round(scale / scales[0.2], 2) for scale in scales.values()]
    assert ratios == [0.90, 1.0, 1.18, 1.38, 1.62, 1.77, 1.93]


# --- the formula -----------------------------------------------------------------------------------------------------
rows = st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=12)


@given(rows, st.floats(0.1, 10.0), st.integers(0, 10**6))
def test_the_terms_are_the_sums_of_the_formula(rates, distance, seed):
    norms = np.random.default_rng(seed).uniform(0.0, 3.0, len(rates))
    found = last_iterate_bound(rates, grad_norm=norms, distance=distance)
    assert (found.distance, found.noise, found.last) == pytest.approx(term_by_term(rates, norms, distance), rel=1e-12)
    assert found.total == pytest.approx(found.distance + found.noise + found.last)
    left = [sum(rates[k:]) for k in range(len(rates))]
    prices = (np.array(rates) * norms) ** 2
    by_parts = 0.5 * (rates[-1] * norms[-1] ** 2 + sum(prices[k] / left[k + 1] for k in range(len(rates) - 1)))
    assert found.noise + found.last == pytest.approx(by_parts, rel=1e-12)


@given(rows)
def test_the_best_scale_makes_the_bound_least(rates):
    found = last_iterate_bound(rates)
    best, less, more = (
        last_iterate_bound([r * found.best_scale * k for r in rates]).total for k in (1.0, 0.999, 1.001)
    )
    assert best == pytest.approx(found.best, rel=1e-12)
    assert best < min(less, more)


@given(rows)
def test_the_average_has_the_weaker_bound_of_two_terms(rates):
    found = last_iterate_bound(rates, grad_norm=2.0, distance=3.0)
    assert found.average == pytest.approx((9.0 + 4.0 * sum(r * r for r in rates)) / (2.0 * sum(rates)), rel=1e-12)
    assert found.best_average == pytest.approx(3.0 * 2.0 * math.hypot(*rates) / sum(rates), rel=1e-12)
    assert found.best_average <= found.best


@pytest.mark.parametrize("rates", [[0.3] * 40, 0.8 * (1 - np.arange(40) / 40), wsd(40, 0.3).values()])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_subgradient_descent_stays_below_it(rates, seed):
    """f = max of |a_i w - b_i|-like pieces in 3 dimensions with a known minimum of 0; x_T is before the last update."""
    rng = np.random.default_rng(seed)
    lines, start = rng.standard_normal((8, 3)), rng.standard_normal(3)
    w, norms = start.copy(), []
    for rate in rates:
        gaps = lines @ w
        i = int(np.argmax(np.abs(gaps)))
        value, gradient = abs(gaps[i]), np.sign(gaps[i]) * lines[i]
        norms.append(float(np.linalg.norm(gradient)))
        w = w - rate * gradient
    bound = last_iterate_bound(rates, grad_norm=norms, distance=float(np.linalg.norm(start)))
    assert value <= bound.total


def test_cut_runs_are_runs_of_their_own():
    schedule, norms = wsd(50, 0.4), np.linspace(1.0, 2.0, 50)
    found = bounds_after(schedule, [1, 7, 50], grad_norm=norms, distance=2.0)
    alone = [last_iterate_bound(schedule.values()[:n], grad_norm=norms[:n], distance=2.0) for n in (1, 7, 50)]
    assert found == alone


# --- closed forms ----------------------------------------------------------------------------------------------------
@given(st.integers(1, 300), st.floats(1e-3, 10.0))
def test_a_constant_rate_has_harmonic_numbers(steps, lr):
    found = constant_bound(steps, lr, grad_norm=2.0, distance=3.0)
    harmonic = sum(1.0 / k for k in range(1, steps))
    assert (found.distance, found.noise) == pytest.approx((9.0 / (2 * lr * steps), 2.0 * lr), rel=1e-12)
    assert found.last == pytest.approx(2.0 * lr * harmonic, rel=1e-11)
    long = last_iterate_bound([lr] * steps, grad_norm=2.0, distance=3.0)
    assert (long.distance, long.noise, long.last) == pytest.approx((found.distance, found.noise, found.last), rel=1e-11)


@given(st.integers(2, 400), st.data())
def test_a_linear_cooldown_has_a_closed_form(steps, data):
    n = data.draw(st.integers(1, steps))
    rates = 0.3 * np.concatenate([np.ones(steps - n), 1.0 - np.arange(n) / n])
    slow = last_iterate_bound(rates, grad_norm=2.0, distance=3.0)
    fast = wsd_bound(steps, n, 0.3, grad_norm=2.0, distance=3.0)
    assert (fast.distance, fast.noise, fast.last) == pytest.approx((slow.distance, slow.noise, slow.last), rel=1e-11)
    if 1 < n < steps:
        assert fast.best <= wsd_upper_bound(steps, n, grad_norm=2.0, distance=3.0)


@pytest.mark.parametrize("cooldown", [0.05, 0.2, 1.0])
def test_a_cooldown_takes_away_the_logarithm(cooldown):
    limit = 1.0 + 0.5 * math.log(2.0 / cooldown - 1.0)
    off = []
    for T in (1000, 100_000):
        found = wsd_bound(T, round(cooldown * T))
        off.append(abs(found.noise + found.last - limit))
    assert off[0] < 0.1
    assert off[1] < 0.03 * off[0]
    growth = constant_bound(100_000).last - constant_bound(1000).last
    assert growth == pytest.approx(0.5 * math.log(100), rel=1e-3)


@pytest.mark.parametrize(("cooldown", "factor"), [(80, 1.2295), (200, 1.1615), (399, 1.0010)])
def test_how_loose_the_published_closed_form_is(cooldown, factor):
    assert wsd_upper_bound(400, cooldown) / wsd_bound(400, cooldown).best == pytest.approx(factor, abs=5e-5)


# --- the best rates --------------------------------------------------------------------------------------------------
def objective(logs, norms):
    """ln of the squared best bound of the rates exp(logs), and its gradient."""
    rates = np.exp(logs)
    left = np.cumsum(rates[::-1])[::-1]
    prices = (rates * norms) ** 2
    price = 0.5 * (rates[-1] * norms[-1] ** 2 + np.sum(prices[:-1] / left[1:]))
    slope = np.append(rates[:-1] * norms[:-1] ** 2 / left[1:], 0.5 * norms[-1] ** 2)
    slope[1:] -= 0.5 * np.cumsum(prices[:-1] / left[1:] ** 2)
    return math.log(2.0 * price / left[0]), rates * (slope / price - 1.0 / left[0])


NORMS = {
    "constant": np.ones(40),
    "growing": np.linspace(1.0, 3.0, 40),
    "shrinking": np.linspace(3.0, 1.0, 40),
    "random": np.random.default_rng(0).uniform(0.5, 2.0, 40),
}


@pytest.mark.parametrize("norms", NORMS.values(), ids=NORMS)
def test_no_optimiser_finds_better_rates(norms):
    at = np.random.default_rng(1).standard_normal(40)
    assert check_grad(lambda z: objective(z, norms)[0], lambda z: objective(z, norms)[1], at) < 1e-6
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(objective, np.zeros(40), args=(norms,), jac=True, method="L-BFGS-B", options=options)
    rates = optimal_rates(40, grad_norm=norms)
    bound = last_iterate_bound(rates, grad_norm=norms)
    assert bound.best_scale == pytest.approx(1.0, rel=1e-12)
    assert bound.total == pytest.approx(math.exp(0.5 * found.fun), rel=1e-10)
    assert np.exp(found.x - found.x[0]) == pytest.approx(rates / rates[0], abs=1e-5)


@pytest.mark.parametrize("steps", [10, 400, 6400])
def test_linear_decay_is_nearly_the_best_for_equal_norms(steps):
    best, linear = last_iterate_bound(optimal_rates(steps, distance=2.0), distance=2.0).total, wsd_bound(steps, steps)
    assert best < 2.0 * linear.best
    assert 2.0 * linear.best / best - 1.0 < 2.0 / steps
    assert best * math.sqrt(steps) == pytest.approx(4.0, rel=6.0 / steps)
    rates = optimal_rates(steps)
    off = rates / rates[0] - (1.0 - np.arange(steps) / steps)
    assert np.abs(off[:-1]).max() < 3.0 / steps
    assert rates[-1] > 2.0 * rates[-2]  # the last update is free


@pytest.mark.parametrize("norms", [NORMS["growing"], NORMS["shrinking"], NORMS["random"]])
def test_they_beat_the_refined_linear_decay(norms):
    """The schedule of arXiv:2310.07831 for known norms, w_t times the sum of the later w with w = 1/G^2."""
    w = 1.0 / norms**2
    refined = last_iterate_bound(w * np.cumsum(w[::-1])[::-1], grad_norm=norms)
    linear = last_iterate_bound(1.0 - np.arange(40) / 40, grad_norm=norms)
    best = last_iterate_bound(optimal_rates(40, grad_norm=norms), grad_norm=norms)
    assert best.total < refined.best < linear.best
    assert refined.best < 1.1 * best.total


def test_one_update_and_small_norms():
    assert optimal_rates(1, grad_norm=4.0, distance=2.0).tolist() == [0.5]
    tiny = last_iterate_bound(optimal_rates(300, grad_norm=1e-50), grad_norm=1e-50)
    assert tiny.total == pytest.approx(1e-50 * last_iterate_bound(optimal_rates(300)).total, rel=1e-10)


# --- against measured losses -----------------------------------------------------------------------------------------
def test_a_fit_finds_the_constants_and_their_errors():
    rng = np.random.default_rng(3)
    bounds = [last_iterate_bound(wsd(200, c).values() * g) for c in (0.1, 0.3, 0.9) for g in (0.01, 0.03, 0.1)]
    true = [2.0 + 0.5 * b.distance + 0.2 * (b.noise + b.last) for b in bounds]
    exact = fit_bound(bounds, true)
    assert (exact.offset, exact.distance2, exact.norm2, exact.r2) == pytest.approx((2.0, 0.5, 0.2, 1.0), rel=1e-10)
    assert exact.predict(bounds[4]) == pytest.approx(true[4], rel=1e-12)
    assert exact.best_scale(bounds[0]) == pytest.approx(math.sqrt(2.5) * bounds[0].best_scale, rel=1e-9)
    fits = [fit_bound(bounds, true + 0.01 * rng.standard_normal(9)) for _ in range(400)]
    found = np.array([[f.offset, f.distance2, f.norm2] for f in fits])
    told = np.sqrt(np.mean(np.square([f.errors for f in fits]), axis=0))
    assert found.mean(axis=0) == pytest.approx([2.0, 0.5, 0.2], abs=4 * max(told) / 20)
    assert found.std(axis=0) == pytest.approx(told, rel=0.12)


def end_losses():
    """Final loss of the linear cooldowns of the 124M runs of 50,000 updates, by fraction and rate; means of repeats."""
    found = defaultdict(list)
    with RUNS.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            linear = row["decay_type"] == "linear" and row["group"].startswith("ann124-")
            if linear and row["iterations"] == "50000" and row["final_val_loss"]:
                found[float(row["wsd_fract_decay"]), float(row["lr"])].append(float(row["final_val_loss"]))
    return {cell: float(np.mean(losses)) for cell, losses in found.items()}


@pytest.mark.skipif(not RUNS.exists(), reason="the published curves are not here")
def test_three_constants_describe_the_grid_of_cooldowns():
    cells = end_losses()
    assert len(cells) == 21
    schedules = [wsd(50_000, c, warmup=300).scale(lr) for c, lr in cells]
    fit = fit_bound([last_iterate_bound(s) for s in schedules], list(cells.values()))
    assert fit.mae == pytest.approx(0.0065, abs=1e-4)
    assert fit.r2 == pytest.approx(0.982, abs=1e-3)
    assert fit.distance2 > 20 * fit.errors[1]
    assert fit.norm2 > 2 * fit.errors[2]


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: last_iterate_bound([]), "at least one update"),
        (lambda: last_iterate_bound([1.0, 0.0]), "update 1, the last one, is 0"),
        (lambda: last_iterate_bound([1.0, -1.0]), "at least 0, got -1"),
        (lambda: last_iterate_bound([1.0], grad_norm=[1.0, 1.0]), "one for each of 1 updates"),
        (lambda: last_iterate_bound([1.0], grad_norm=math.nan), "grad_norm"),
        (lambda: last_iterate_bound([1.0], distance=0.0), "distance"),
        (lambda: bounds_after([1.0, 1.0], [0]), "at least one update"),
        (lambda: bounds_after([1.0, 1.0], [3]), "states must be increasing numbers in 0..2"),
        (lambda: constant_bound(0), "steps"),
        (lambda: wsd_bound(10, 11), "cooldown"),
        (lambda: wsd_upper_bound(10, 1), "cooldown"),
        (lambda: wsd_upper_bound(10, 10), "from 2 to 9"),
        (lambda: optimal_rates(3, grad_norm=[1.0, 0.0, 1.0]), "got 0 for update 1"),
        (lambda: fit_bound([Bound(1.0, 1.0, 1.0)], [1.0]), "at least 3 bounds"),
        (lambda: fit_bound([Bound(1.0, 1.0, 1.0)] * 4, [1.0] * 4), "do not tell the three constants apart"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_fit_without_a_best_rate_says_so():
    bounds = [last_iterate_bound([g] * n) for g in (0.01, 0.1) for n in (50, 100)]
    fit = fit_bound(bounds, [2.0 - 0.1 * b.distance + 0.5 * (b.noise + b.last) for b in bounds])
    with pytest.raises(InputError, match=r"M1 and M2 above 0, got -0\.1 and 0\.5"):
        fit.best_scale(bounds[0])


def test_without_gradients_no_rate_is_too_high():
    assert last_iterate_bound([1.0, 1.0], grad_norm=0.0).best_scale == math.inf
