"""Moments of every optimizer against its own update rule: dense covariances, Monte Carlo, and the closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval import theory
from riverval.errors import InputError
from riverval.schedules import make_schedule
from riverval.shapes import Linear
from riverval.theory_paths import tail_average_hill
from riverval.toy import StraightRiver, moments, simulate
from riverval.toy.optimizers import EMAAverage, TailAverage, make_optimizer
from riverval.toy.recursions import (
    AFFINE,
    optimizer_moments,
    spectral_radius,
    stationary_covariance,
    valley_moments,
)

ADAPTIVE = ("adam", "adamw", "rmsprop")
SGD = make_optimizer("sgd")


def run(optimizer, rates, *, h, sigma, slope=0.0, mean=0.0, variance=0.0, replicates, rng, states, average=None):
    """The update rules of the toy, many replicates of one coordinate: values at the states, (n, replicates)."""
    w = mean + math.sqrt(variance) * rng.standard_normal(replicates)
    memory = [np.copy(w) if optimizer.begins_at_start else np.zeros(replicates) for _ in range(optimizer.states)]
    varying, constants = optimizer.coefficients(rates), optimizer.constants().tolist()
    weights = average.weights(rates.size) if average else None
    mixed, kept = w.copy(), []
    for t in range(rates.size):
        g = h * w - slope + sigma * rng.standard_normal(replicates)
        found = type(optimizer).rule(w, g, *memory, *varying[t].tolist(), *constants)
        w, *memory = found if memory else (found,)
        point = w if optimizer.evaluated is None else memory[optimizer.evaluated]
        if weights is not None:
            mixed = mixed + weights[t] * (point - mixed)
        if t + 1 in states:
            kept.append(mixed.copy() if average else point.copy())
    return np.array(kept)


def off(samples, mean, variance):
    """How far the sample mean and variance are from the theory: in standard errors, and as a ratio."""
    n = samples.shape[1]
    z = (samples.mean(axis=1) - mean) / np.sqrt(variance / n)
    ratio = samples.var(axis=1, ddof=1) / variance
    return z, ratio


# --- exact recursions ------------------------------------------------------------------------------------------------
RATES = make_schedule("wsd", peak_lr=0.3, steps=60, warmup=5, cooldown=0.4, shape=Linear()).values()


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize(("h", "slope"), [(1.5, 0.0), (0.0, 0.4)], ids=["hill", "river"])
def test_affine_optimizers_meet_monte_carlo_at_every_state(name, h, slope, rng):
    optimizer, states, R = make_optimizer(name), [1, 2, 7, 35, 60], 20_000
    options = {"sigma": 0.8, "slope": slope, "mean": 1.0, "variance": 0.5}
    samples = run(optimizer, RATES, h=h, replicates=R, rng=rng, states=states, **options)
    found = optimizer_moments(optimizer, RATES, states, curvature=h, **options)
    z, ratio = off(samples, found.mean[:, 0], found.variance[:, 0])
    assert np.abs(z).max() < 4
    assert np.abs(ratio - 1).max() < 4.5 * math.sqrt(2 / R)


def unrolled(optimizer, rates, h, slope, start):
    """The rule on a tape: each w_t as a vector of coefficients of (1, w_0, xi_0, ..., xi_{T-1}), which is exact."""
    size = rates.size + 2
    w = np.zeros(size)
    w[1] = 1.0
    memory = [w.copy() if optimizer.begins_at_start else np.zeros(size) for _ in range(optimizer.states)]
    varying, constants = optimizer.coefficients(rates), optimizer.constants().tolist()
    tape = [w.copy()]
    for t in range(rates.size):
        g = h * w
        g[0] -= slope
        g[2 + t] += start["sigma"]
        found = type(optimizer).rule(w, g, *memory, *varying[t].tolist(), *constants)
        w, *memory = found if memory else (found,)
        tape.append((w if optimizer.evaluated is None else memory[optimizer.evaluated]).copy())
    return np.array(tape)


@pytest.mark.parametrize("name", AFFINE)
@given(
    rates=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12),
    h=st.floats(0.0, 3.0),
    slope=st.floats(-1.0, 1.0),
    mean=st.floats(-2.0, 2.0),
    variance=st.floats(0.0, 2.0),
    b=st.floats(0.0, 0.95),
)
def test_affine_optimizers_are_exact(name, rates, h, slope, mean, variance, b):
    optimizer = make_optimizer(name, **({} if name == "sgd" else {"beta": b}))
    lr, states = np.array(rates), np.arange(len(rates) + 1)
    tape = unrolled(optimizer, lr, h, slope, {"sigma": 0.7})
    found = optimizer_moments(
        optimizer, lr, states, curvature=h, sigma=0.7, slope=slope, mean=mean, variance=variance
    )  # fmt: skip
    np.testing.assert_allclose(found.mean[:, 0], tape[:, 0] + mean * tape[:, 1], rtol=1e-9, atol=1e-9)
    exact = variance * tape[:, 1] ** 2 + np.sum(tape[:, 2:] ** 2, axis=1)
    np.testing.assert_allclose(found.variance[:, 0], exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("average", [TailAverage(updates=7), EMAAverage(beta=0.8)], ids=["tail", "ema"])
def test_averages_of_the_iterates_are_exact(name, average):
    optimizer, lr = make_optimizer(name), np.linspace(0.4, 0.1, 20)
    tape = unrolled(optimizer, lr, 1.2, 0.3, {"sigma": 0.7})
    mixed, rows = tape[0].copy(), [tape[0]]
    for weight, point in zip(average.weights(lr.size), tape[1:], strict=True):
        mixed = mixed + weight * (point - mixed)
        rows.append(mixed)
    rows = np.array(rows)
    found = optimizer_moments(
        optimizer, lr, np.arange(21), curvature=1.2, sigma=0.7, slope=0.3, mean=0.5, variance=0.4, average=average
    )
    np.testing.assert_allclose(found.average_mean[:, 0], rows[:, 0] + 0.5 * rows[:, 1], rtol=1e-10)
    exact = 0.4 * rows[:, 1] ** 2 + np.sum(rows[:, 2:] ** 2, axis=1)
    np.testing.assert_allclose(found.average_variance[:, 0], exact, rtol=1e-10)
    if isinstance(average, TailAverage):
        np.testing.assert_allclose(rows[-1], tape[-7:].mean(axis=0), rtol=1e-10, atol=1e-14)


def test_tail_average_at_rest_is_the_closed_form():
    lr, h, window = 0.3, 1.0, 50
    rest = {"curvature": h, "sigma": 1.0, "variance": float(theory.stationary_variance(lr, h, 1.0))}
    found = optimizer_moments(SGD, [lr] * 60, [60], average=TailAverage(updates=window), **rest)
    expected = float(tail_average_hill(lr, h, 1.0, window))
    assert 0.5 * h * found.average_variance[0, 0] == pytest.approx(expected, rel=1e-12)


def test_sgd_is_the_recursion_of_the_valley():
    valley = StraightRiver(0.3, (0.5, 2.0))
    start = {"mean": [0, 1, 1], "variance": [0, 0.1, 0.2]}
    found = valley_moments(valley, SGD, RATES, [0, 30, 60], sigma=0.9, **start)
    exact = moments(valley, RATES, [0, 30, 60], sigma=0.9, hill_mean=1.0, hill_variance=[0.1, 0.2])
    for name in ("expected_loss", "loss_std", "expected_hill", "hill_std", "expected_river", "river_std"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["heavy-ball", "nesterov", "schedule-free", "sign", "adam"])
def test_valley_moments_meet_the_simulation(name):
    """The whole way: `simulate` with the optimizer, against expected loss and standard deviation."""
    valley, plan = StraightRiver(0.1, (1.0, 3.0)), make_schedule("wsd", peak_lr=0.02, steps=300, cooldown=0.3)
    optimizer, R = make_optimizer(name), 4000
    ds = simulate(
        valley, plan, sigma=0.5, optimizer=optimizer, replicates=R, rng=np.random.default_rng(5), start=0.05, every=300
    )
    found = valley_moments(valley, optimizer, plan.values(), ds["eval_step"].values, sigma=0.5, mean=[0.0, 0.05, 0.05])
    slack = 0.0 if name in AFFINE else 0.01  # the closures
    for measured, expected, std in (
        (ds["hill"], found.expected_hill, found.hill_std), (ds["river"], found.expected_river, found.river_std)
    ):  # fmt: skip
        last = measured.isel(eval_step=-1).mean().item()
        assert abs(last - expected[-1]) < 4 * std[-1] / math.sqrt(R) + slack * abs(expected[-1])


def test_coordinates_may_have_their_own_noise_and_start():
    start = {"mean": [1.0, 0.0], "variance": [0.0, 1.0]}
    both = optimizer_moments(make_optimizer("nesterov"), RATES, [60], curvature=[1.0, 2.0], sigma=[0.3, 0.6], **start)
    for k, (h, s, m, v) in enumerate([(1.0, 0.3, 1.0, 0.0), (2.0, 0.6, 0.0, 1.0)]):
        one = optimizer_moments(make_optimizer("nesterov"), RATES, [60], curvature=h, sigma=s, mean=m, variance=v)
        assert one.mean[0, 0] == pytest.approx(both.mean[0, k], rel=1e-13)
        assert one.variance[0, 0] == pytest.approx(both.variance[0, k], rel=1e-13)


@given(st.sampled_from(AFFINE), st.permutations([0.05, 0.1, 0.2, 0.3]))
def test_variance_grows_with_that_of_the_start(name, rates):
    optimizer = make_optimizer(name)
    ends = [optimizer_moments(optimizer, rates, [4], curvature=0.5, sigma=1.0, variance=v) for v in (0.1, 1.0)]
    assert ends[0].variance[0, 0] < ends[1].variance[0, 0]


# --- at rest ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sgd", *theory.MOMENTA])
@given(share=st.floats(0.05, 0.95), h=st.floats(0.1, 10.0), b=st.floats(0.0, 0.9))
def test_stationary_covariance_is_the_closed_form(name, share, h, b):
    options = {} if name == "sgd" else {"beta": b}
    lr = share * theory.stability_limit(name, **options) / h
    found = stationary_covariance(make_optimizer(name, **options), lr, curvature=[h], sigma=1.3)[0, 0, 0]
    if name == "sgd":
        expected = theory.stationary_variance(lr, h, 1.3)
    else:
        expected = theory.momentum_variance(name, lr, h, 1.3, beta=b)
    assert found == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize("name", AFFINE)
@given(b=st.floats(0.0, 0.9))
def test_stability_limit_is_where_the_spectral_radius_is_one(name, b):
    options = {} if name == "sgd" else {"beta": b}
    optimizer, limit = make_optimizer(name, **options), theory.stability_limit(name, **options)
    assert spectral_radius(optimizer, limit) == pytest.approx(1.0, abs=1e-6)
    assert spectral_radius(optimizer, 0.98 * limit) < 1 < spectral_radius(optimizer, 1.02 * limit)
    assert optimizer.stability_limit(1.0) == pytest.approx(limit)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_optimizers_and_theory_agree_on_the_limit_of_adaptive_methods(name):
    options = {} if name == "rmsprop" else {"beta": 0.9}
    assert make_optimizer(name).stability_limit(2.0) == pytest.approx(2.0 * theory.stability_limit(name, **options))


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("product", [0.1, 1.0])
def test_closures_come_to_rest_at_the_closed_form(name, product):
    optimizer = make_optimizer(name, **({"weight_decay": 0.0} if name == "adamw" else {}))
    rest = optimizer_moments(optimizer, [product] * 4000, [4000], curvature=1.0, sigma=1.0).variance[0, 0]
    beta1 = 0.0 if name == "rmsprop" else 0.9
    assert rest == pytest.approx(float(theory.adaptive_variance(product, 1.0, 1.0, beta1=beta1, eps=1e-8)), rel=1e-2)


@pytest.mark.parametrize("product", [0.05, 0.5, 3.0])
def test_sign_comes_to_rest_at_the_closed_form(product):
    rest = optimizer_moments(make_optimizer("sign"), [product] * 2000, [2000], curvature=1.0, sigma=1.0)
    assert rest.variance[0, 0] == pytest.approx(float(theory.sign_variance(product, 1.0, 1.0)), rel=1e-9)


@pytest.mark.parametrize("name", ["sgd", "ema-momentum", "sign", "adam", "rmsprop"])
def test_speed_along_the_river(name):
    T = 4000
    ends = optimizer_moments(
        make_optimizer(name), [0.01] * T, [T - 1, T], curvature=0.0, sigma=1.0, slope=0.5
    )  # fmt: skip
    expected = {
        "sgd": 0.01 * 0.5,
        "ema-momentum": 0.01 * 0.5,
        "sign": float(theory.sign_speed(0.01, 0.5, 1.0)),
    }.get(name, float(theory.adaptive_speed(0.01, 0.5, 1.0)))
    assert ends.mean[1, 0] - ends.mean[0, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_an_adaptive_method_diffuses_more_slowly_along_a_steep_river(name):
    """A larger g makes a larger v: g/sqrt(v) moves by d (1 - c^2/v)/sqrt(v) - c (d^2 - sigma^2)/(2 v^1.5)."""
    c, sigma, lr, T = 0.5, 1.0, 0.01, 3000
    optimizer = make_optimizer(name, **({"beta": 0.99} if name == "rmsprop" else {"beta2": 0.99}))
    ends = optimizer_moments(optimizer, [lr] * T, [T - 1, T], curvature=0.0, sigma=sigma, slope=c)
    v = c**2 + sigma**2
    expected = lr**2 * (sigma**2 / v * (1 - c**2 / v) ** 2 + c**2 * 2 * sigma**4 / (4 * v**3))
    assert ends.variance[1, 0] - ends.variance[0, 0] == pytest.approx(expected, rel=1e-6)


# --- how far the closures are off ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("h", "slope", "mean"), [(1.0, 0.0, 1.0), (0.0, 0.5, 0.0)], ids=["hill", "river"])
def test_sign_is_within_a_hundredth(h, slope, mean, rng):
    rates, R, states = np.linspace(0.3, 0.03, 120), 40_000, [1, 5, 20, 120]
    options = {"sigma": 1.0, "slope": slope, "mean": mean}
    samples = run(make_optimizer("sign"), rates, h=h, replicates=R, rng=rng, states=states, **options)
    found = optimizer_moments(make_optimizer("sign"), rates, states, curvature=h, **options)
    z, ratio = off(samples, found.mean[:, 0], found.variance[:, 0])
    slack = 0.01 * np.abs(found.mean[:, 0]) / np.sqrt(found.variance[:, 0] / R)
    assert np.all(np.abs(z) < 4 + slack)
    assert np.abs(ratio - 1).max() < 0.01 + 4.5 * math.sqrt(2 / R)


@pytest.mark.parametrize(("name", "beta2"), [("adam", 0.95), ("adam", 0.999), ("adamw", 0.99), ("rmsprop", 0.99)])
def test_adaptive_closures_in_a_hill_and_along_the_river(name, beta2, rng):
    optimizer = make_optimizer(name, **({"beta": beta2} if name == "rmsprop" else {"beta2": beta2}))
    rates, R, states = np.linspace(0.1, 0.02, 250), 20_000, [2, 10, 250]
    noise = 4.5 * math.sqrt(2 / R)
    far_up = {"sigma": 1.0, "mean": 1.0}
    samples = run(optimizer, rates, h=1.0, replicates=R, rng=rng, states=states, **far_up)
    found = optimizer_moments(optimizer, rates, states, curvature=1.0, **far_up)
    ratio = off(samples, found.mean[:, 0], found.variance[:, 0])[1]
    assert 1 / 3 - noise < ratio[0] < 3 + noise
    assert abs(ratio[2] - 1) < 1 - beta2 + 0.01 + noise
    river = {"sigma": 1.0, "slope": 0.5}
    samples = run(optimizer, rates, h=0.0, replicates=R, rng=rng, states=states, **river)
    found = optimizer_moments(optimizer, rates, states, curvature=0.0, **river)
    last = samples[2].mean() / found.mean[2, 0] - 1
    assert abs(last) < 1 - beta2 + 0.012
    assert off(samples, found.mean[:, 0], found.variance[:, 0])[1][2] == pytest.approx(1.0, abs=0.2)


# --- input -----------------------------------------------------------------------------------------------------------
def test_without_noise_the_sign_is_that_of_the_gradient():
    found = optimizer_moments(make_optimizer("sign"), [0.1] * 4, [0, 3, 4], curvature=[1.0, 0.0], sigma=0.0, mean=0.25)
    np.testing.assert_allclose(found.mean[:, 0], [0.25, -0.05, 0.05], atol=1e-12)
    np.testing.assert_allclose(found.mean[:, 1], 0.25)
    assert not found.variance.any()


def test_without_any_gradient_adam_stays():
    found = optimizer_moments(make_optimizer("adam"), [0.1] * 5, [5], curvature=0.0, sigma=0.0, mean=1.0)
    assert found.mean[0, 0] == 1.0
    assert found.variance[0, 0] == 0.0


def test_an_unstable_setting_ends_at_infinity_without_a_warning():
    found = optimizer_moments(make_optimizer("sgd"), [5.0] * 2000, [2000], curvature=1.0, sigma=1.0)
    assert np.isinf(found.variance[0, 0])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: optimizer_moments(SGD, [0.1], [2], curvature=1, sigma=1),
            r"increasing numbers in 0..1",
        ),
        (lambda: optimizer_moments(SGD, [-0.1], [1], curvature=1, sigma=1), r"at least 0, got -0.1"),
        (lambda: optimizer_moments(SGD, [0.1], [1], curvature=-1, sigma=1), r"curvature .*got -1"),
        (
            lambda: optimizer_moments(SGD, [0.1], [1], curvature=[1, 2], sigma=[1, 2, 3]),
            r"rows of one length, got the shapes \(2,\), \(3,\)",
        ),
        (lambda: stationary_covariance(make_optimizer("adam"), 0.1, curvature=1, sigma=1), r"adam is not affine"),
        (lambda: stationary_covariance(make_optimizer("schedule-free"), 0.1, curvature=1, sigma=1), r"goes on forever"),
        (lambda: stationary_covariance(make_optimizer("sgd"), 2.0, curvature=1, sigma=1), r"does not settle"),
        (lambda: spectral_radius(make_optimizer("sign"), 1.0), r"sign is not affine"),
    ],
)
def test_bad_input_is_refused_with_the_rule(call, told):
    with pytest.raises(InputError, match=told):
        call()
