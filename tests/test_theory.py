"""Closed forms of single hills against the recursions they solve, each written out here once more and naively."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from riverval import theory
from riverval.errors import InputError

shares = st.floats(0.01, 0.95)  # of a stability limit
betas = st.floats(0.0, 0.95)
curvatures = st.floats(0.01, 100.0)
sigmas = st.floats(0.01, 10.0)


def companion(optimizer, product, b, *, late=0.0):
    """The matrix by which (lr times) a hill of curvature `product` acts on (w, m), on w, or on (x, z)."""
    p = product
    return {
        "sgd": np.array([[1 - p]]),
        "rmsprop": np.array([[1 - p]]),  # at a given v, product being that with 1/sqrt(v)
        "heavy-ball": np.array([[1 - p, -b], [p, b]]),
        "ema-momentum": np.array([[1 - p * (1 - b), -b], [p * (1 - b), b]]),
        "adam": np.array([[1 - p * (1 - b), -b], [p * (1 - b), b]]),
        "nesterov": np.array([[1 - p * (1 + b), -b * b], [p, b]]),
        "schedule-free": np.array([[1 - late - late * p * b, late - late * p * (1 - b)], [-p * b, 1 - p * (1 - b)]]),
    }[optimizer]


def radius(matrix):
    return np.abs(np.linalg.eigvals(matrix)).max()


def naive_variance(optimizer, lr, h, sigma, b, updates):
    """Variance of w after many updates, from the covariance recursion of (w, m)."""
    A = companion(optimizer, lr * h, b)
    # m is counted in units of lr here, so that A is free of it.
    G = {"heavy-ball": [-1.0, 1.0], "ema-momentum": [b - 1.0, 1.0 - b], "nesterov": [-1.0 - b, 1.0]}[optimizer]
    Q = (lr * sigma) ** 2 * np.outer(G, G)
    C = np.zeros((2, 2))
    for _ in range(updates):
        C = A @ C @ A.T + Q
    return C[0, 0]


# --- stability -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "heavy-ball", "ema-momentum", "adam", "nesterov"])
@given(b=betas)
def test_spectral_radius_is_one_at_the_stability_limit(optimizer, b):
    limit = theory.stability_limit(optimizer, **({} if optimizer in ("sgd", "rmsprop") else {"beta": b}))
    assert radius(companion(optimizer, limit, b)) == pytest.approx(1.0, abs=1e-7)
    assert radius(companion(optimizer, 1.01 * limit, b)) > 1.0
    for share in (0.02, 0.5, 0.99):
        assert radius(companion(optimizer, share * limit, b)) < 1.0


@given(b=betas)
def test_schedule_free_settles_below_its_limit_once_its_average_is_long(b):
    limit = theory.stability_limit("schedule-free", beta=b)
    assert radius(companion("schedule-free", 0.999 * limit, b, late=1e-9)) <= 1.0
    assert radius(companion("schedule-free", 1.001 * limit, b, late=1e-9)) > 1.0


@pytest.mark.parametrize(("share", "grows"), [(0.98, False), (1.02, True)])
def test_schedule_free_diverges_just_beyond_its_limit(share, grows):
    b = 0.6
    lr = share * theory.stability_limit("schedule-free", beta=b)
    x = z = 1.0
    for t in range(4000):
        z -= lr * ((1 - b) * z + b * x)
        x += (z - x) / (t + 1)
    assert (abs(z) > 1e6) == grows


def test_limits_are_the_published_ones():
    assert theory.stability_limit() == 2.0
    assert theory.stability_limit("ema-momentum") == pytest.approx(38.0)
    assert theory.stability_limit("adam", beta=0.9) == pytest.approx(38.0)
    assert theory.stability_limit("sign") == math.inf


def test_adamw_has_the_limit_of_adam():
    assert theory.stability_limit("adamw", beta=0.8) == theory.stability_limit("adam", beta=0.8)


# --- stationary values -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", theory.MOMENTA)
@given(share=st.floats(0.1, 0.9), b=st.floats(0.0, 0.9), h=curvatures, sigma=sigmas)
def test_momentum_variance_is_the_limit_of_the_recursion(optimizer, share, b, h, sigma):
    lr = share * theory.stability_limit(optimizer, beta=b) / h
    slowest = -math.log(max(radius(companion(optimizer, lr * h, b)), 0.1))
    naive = naive_variance(optimizer, lr, h, sigma, b, math.ceil(25 / slowest))
    assert float(theory.momentum_variance(optimizer, lr, h, sigma, beta=b)) == pytest.approx(naive, rel=1e-8)


@pytest.mark.parametrize("optimizer", theory.MOMENTA)
def test_without_momentum_all_are_sgd(optimizer):
    h = [0.5, 2.0, 7.0]
    plain = theory.stationary_variance(0.2, h, 1.3)
    np.testing.assert_allclose(theory.momentum_variance(optimizer, 0.2, h, 1.3, beta=0.0), plain, rtol=1e-14)


@given(share=shares, b=betas, h=curvatures)
def test_heavy_ball_is_ema_momentum_at_a_higher_rate(share, b, h):
    lr = share * theory.stability_limit("ema-momentum", beta=b) / h
    ema = theory.momentum_variance("ema-momentum", lr, h, 1.0, beta=b)
    assert theory.momentum_variance("heavy-ball", lr * (1 - b), h, 1.0, beta=b) == pytest.approx(float(ema), rel=1e-11)


@pytest.mark.parametrize("product", [0.3, 1.8, 2.5])
def test_ema_momentum_settles_where_sgd_would_not(product):
    """Monte Carlo of w and m themselves, at eta h up to 2.5 (SGD: below 2)."""
    rng, b, R = np.random.default_rng(3), 0.9, 40_000
    w, m = np.zeros(R), np.zeros(R)
    for _ in range(150):
        m = b * m + (1 - b) * (w + rng.standard_normal(R))
        w = w - product * m
    expected = float(theory.momentum_variance("ema-momentum", product, 1.0, 1.0, beta=b))
    assert abs(np.mean(w**2) - expected) < 4 * expected * math.sqrt(2 / R)


@given(product=st.floats(0.001, 1.999), h=curvatures)
def test_noise_may_differ_between_coordinates(product, h):
    lr = product / h
    both = theory.stationary_variance(lr, [h, h], [1.0, 3.0])
    assert both[1] == pytest.approx(9.0 * both[0], rel=1e-14)
    assert both[0] == theory.stationary_variance(lr, h, 1.0)


@given(product=st.floats(0.01, 1.9), h=curvatures, batch=st.floats(0.5, 1e4))
def test_fisher_noise_is_noise_whose_variance_is_curvature_over_batch(product, h, batch):
    lr = product / h
    expected = lr * h / (2 * batch * (2 - lr * h))
    assert float(theory.fisher_hill(lr, h, batch)) == pytest.approx(expected, rel=1e-12)


def test_fisher_total_depends_on_the_trace_alone():
    one, many = theory.fisher_hill(1e-4, [6.0], 8), theory.fisher_hill(1e-4, [1.0, 2.0, 3.0], 8)
    assert many.sum() == pytest.approx(one.sum(), rel=5e-4)
    assert theory.fisher_total(1e-4, 6.0, 8) == pytest.approx(many.sum(), rel=5e-4)


@given(product=st.floats(0.001, 1.999), h=curvatures, steps=st.integers(0, 40), start=st.floats(0.0, 10.0))
def test_relaxed_variance_is_the_recursion(product, h, steps, start):
    lr, variance = product / h, start
    for _ in range(steps):
        variance = (1 - lr * h) ** 2 * variance + lr**2
    relaxed = float(theory.relaxed_variance(lr, h, 1.0, steps, start=start))
    assert relaxed == pytest.approx(variance, rel=1e-9, abs=1e-12)
    constant = theory.final_variance([lr] * steps, h, 1.0, start=start)
    assert float(constant) == pytest.approx(variance, rel=1e-9, abs=1e-300)


@given(product=st.floats(1e-4, 1.999).filter(lambda p: abs(p - 1) > 1e-6), h=curvatures)
def test_half_of_the_excess_is_gone_after_the_half_time(product, h):
    time = float(theory.half_time(product / h, h))
    assert abs(1 - product) ** (2 * time) == pytest.approx(0.5, rel=1e-9)
    if product < 0.01:
        assert time == pytest.approx(math.log(2) / (2 * product), rel=0.01)
    assert theory.half_time(1 / h, h) == pytest.approx(0.0, abs=0.03)  # 1/h times h may be just off 1


# --- any rates -------------------------------------------------------------------------------------------------------
@given(st.lists(st.floats(0.0, 0.9), max_size=30), st.floats(0.0, 3.0))
def test_final_variance_is_the_naive_loop(rates, start):
    h, sigma = [0.3, 2.0], [1.5, 0.5]
    expected = []
    for k, s in zip(h, sigma, strict=True):
        v = start
        for lr in rates:
            v = (1 - lr * k) ** 2 * v + lr**2 * s**2
        expected.append(v)
    np.testing.assert_allclose(theory.final_variance(rates, h, sigma, start=start), expected, rtol=1e-11, atol=1e-300)


def test_numerical_search_over_25_rates_finds_the_optimal_decay():
    """Minimise over log rates from a poor start; 1/(2/eta + h t) is what comes out."""
    start = float(theory.stationary_variance(0.1, 2.0, 1.5))

    def loss(log):
        return 1e3 * float(theory.final_variance(np.exp(log), 2.0, 1.5, start=start))

    found = minimize(loss, np.full(25, math.log(0.03)), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(np.exp(found.x), theory.optimal_decay(0.1, 2.0, 25), rtol=1e-4)


# --- sign and adaptive methods ---------------------------------------------------------------------------------------
def at_rest(step, w, updates, every):
    """Mean of w^2 and its standard error over replicates, each of them averaged over the second half of the run."""
    squares = []
    for t in range(updates):
        w = step(w, t)
        if 2 * t >= updates and t % every == 0:
            squares.append(w * w)
    each = np.mean(squares, axis=0)
    return each.mean(), each.std(ddof=1) / math.sqrt(w.size)


@pytest.mark.parametrize(("product", "off"), [(0.03, 0.01), (0.3, 0.01), (2.0, 0.05)])
def test_sign_variance_is_near_what_sign_sgd_does(product, off):
    rng, R = np.random.default_rng(11), 2000
    updates = math.ceil(20 / product) + 100
    expected = float(theory.sign_variance(product, 1.0, 1.0))
    start = math.sqrt(expected) * rng.standard_normal(R)  # each replicate stays on a lattice of its own
    measured, error = at_rest(lambda w, t: w - product * np.sign(w + rng.standard_normal(R)), start, updates, 5)
    assert abs(measured - expected) < 4 * error + off * expected


@given(st.floats(1e-6, 1e-3), curvatures, sigmas)
def test_sign_hill_is_linear_in_the_noise_and_free_of_the_curvature(share, h, sigma):
    lr = share * sigma / h
    hill = 0.5 * h * float(theory.sign_variance(lr, h, sigma))
    assert hill == pytest.approx(math.sqrt(math.pi / 2) / 4 * lr * sigma, rel=1e-3)


def test_sign_speed_is_what_sign_sgd_does():
    rng, R = np.random.default_rng(12), 400_000
    measured = 0.1 * np.sign(0.3 + 0.5 * rng.standard_normal(R))
    error = measured.std(ddof=1) / math.sqrt(R)
    assert abs(measured.mean() - float(theory.sign_speed(0.1, 0.3, 0.5))) < 4 * error


@given(st.floats(0.001, 0.1), curvatures, sigmas)
def test_rmsprop_variance_has_the_closed_form_without_momentum(share, h, sigma):
    lr = share * sigma / h
    expected = lr / 8 * (lr + math.sqrt(lr**2 + 16 * sigma**2 / h**2))
    assert float(theory.adaptive_variance(lr, h, sigma)) == pytest.approx(expected, rel=1e-12)


@given(st.floats(0.001, 3.0), curvatures, sigmas, betas, st.floats(0.0, 2.0))
def test_adaptive_variance_is_that_of_ema_momentum_at_its_own_rate(share, h, sigma, b, small):
    lr, eps = share * sigma / h, small * sigma
    variance = float(theory.adaptive_variance(lr, h, sigma, beta1=b, eps=eps))
    rate = lr / (math.sqrt(sigma**2 + h**2 * variance) + eps)
    inner = theory.momentum_variance("ema-momentum", rate, h, sigma, beta=b)
    assert variance == pytest.approx(float(inner), rel=1e-9)


def test_without_noise_an_adaptive_method_jumps_to_and_fro():
    """v follows w^2, so that the update is +-lr across the valley floor: w = +-lr/2."""
    assert float(theory.adaptive_variance(0.2, 3.0, 0.0)) == pytest.approx(0.01, rel=1e-9)
    assert theory.adaptive_variance(0.1, [1.0, 2.0], 0.0, eps=10.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("product", [0.1, 1.0])
@pytest.mark.parametrize("b", [0.0, 0.9])
def test_adaptive_variance_is_near_what_the_method_does(product, b):
    rng, R, b2 = np.random.default_rng(13), 1000, 0.99
    memory = {"m": np.zeros(R), "v": np.ones(R)}

    def step(w, t):
        g = w + rng.standard_normal(R)
        memory["m"] = b * memory["m"] + (1 - b) * g
        memory["v"] = b2 * memory["v"] + (1 - b2) * g * g
        return w - product * memory["m"] / np.sqrt(memory["v"])

    measured, error = at_rest(step, np.zeros(R), 2 * (math.ceil(12 / product) + 400), 5)
    expected = float(theory.adaptive_variance(product, 1.0, 1.0, beta1=b))
    assert abs(measured - expected) < 4 * error + 0.01 * expected


def test_adaptive_speed_is_near_what_the_method_does():
    rng, R, b2 = np.random.default_rng(14), 2000, 0.999
    v, speed = np.full(R, 0.25 + 0.09), []
    for _ in range(300):
        g = 0.3 + 0.5 * rng.standard_normal(R)
        v = b2 * v + (1 - b2) * g * g
        speed.append(0.1 * g / np.sqrt(v))
    each = np.mean(speed, axis=0)
    expected = float(theory.adaptive_speed(0.1, 0.3, 0.5))
    assert abs(each.mean() - expected) < 4 * each.std(ddof=1) / math.sqrt(R) + 1e-3 * expected


@given(st.floats(1e-5, 1e-3), sigmas)
def test_under_strong_noise_adam_is_faster_than_sign_by_a_constant(share, sigma):
    slope = share * sigma
    ratio = theory.adaptive_speed(1.0, slope, sigma) / theory.sign_speed(1.0, slope, sigma)
    assert float(ratio) == pytest.approx(math.sqrt(math.pi / 2), rel=1e-5)


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: theory.stability_limit("adan"), r"unknown optimizer 'adan'.*Did you mean 'adam'"),
        (lambda: theory.stability_limit("sgd", beta=0.9), r"sgd takes no beta, got 0.9"),
        (lambda: theory.stability_limit("adam", beta=1.0), r"beta .*in \[0, 1\), got 1.0"),
        (lambda: theory.momentum_variance("sgd", 0.1, 1.0, 1.0), r"unknown momentum method 'sgd'"),
        (lambda: theory.momentum_variance("heavy-ball", 2.0, 2.0, 1.0, beta=0.5), r"below 3/h = 1.5"),
        (lambda: theory.stationary_variance(0.1, [1.0, 30.0], 1.0), r"below 2/h = 0.0666667"),
        (lambda: theory.stationary_variance(0.1, 1.0, [1.0, -2.0]), r"sigma .* got -2.0"),
        (lambda: theory.stationary_variance(0.1, 1.0, ["a"]), r"sigma must be numbers, got \['a'\]"),
        (lambda: theory.final_variance([0.1, -0.1], 1.0, 1.0, start=0.0), r"at least 0, got -0.1 for update 1"),
        (lambda: theory.final_variance([0.1], 1.0, 1.0, start=-1.0), r"start .* got -1"),
        (lambda: theory.fisher_hill(0.1, 1.0, 0.0), r"batch .*in \(0, inf\), got 0"),
        (lambda: theory.sign_speed(0.1, 1.0, 0.0), r"sigma .* got 0"),
        (lambda: theory.adaptive_speed(0.1, 0.0, 0.0), r"slope, sigma and eps are all zero"),
        (lambda: theory.half_time(0.0, 1.0), r"lr .* got 0"),
        (lambda: theory.relaxed_variance(0.1, 1.0, 1.0, 1.5, start=0.0), r"steps .*whole number.* got 1.5"),
    ],
)
def test_bad_input_is_refused_with_the_rule(call, told):
    with pytest.raises(InputError, match=told):
        call()
