"""Plateaus as limits, the kernel form against quadrature and the exact recursion, the recursion against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import solve_discrete_lyapunov

from riverval.errors import InputError
from riverval.schedules import make_schedule
from riverval.theory import adaptive_variance, final_variance, momentum_variance, sign_variance, stationary_hill
from riverval.theory_moments import (
    adamw_plateau,
    cooldown_gain,
    gain_kernel,
    kernel_loss,
    noise_kernel,
    optimizer_moments,
    plateau_loss,
    preconditioned_plateau,
)

H, SIGMA = np.array([0.2, 1.0, 5.0]), np.array([2.0, 1.0, 0.5])
ADAM = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-12}
WSD = make_schedule("wsd", peak_lr=0.004, steps=2500, warmup=100, cooldown=0.3)


def hill(variance):
    return 0.5 * float(np.sum(H * variance))


# --- plateaus --------------------------------------------------------------------------------------------------------
AT_REST = {
    "sgd": lambda lr: float(np.sum(stationary_hill(lr, H, SIGMA))),
    "heavy-ball": lambda lr: hill(momentum_variance("heavy-ball", lr, H, SIGMA, beta=0.8)),
    "ema-momentum": lambda lr: hill(momentum_variance("ema-momentum", lr, H, SIGMA, beta=0.8)),
    "nesterov": lambda lr: hill(momentum_variance("nesterov", lr, H, SIGMA, beta=0.8)),
    "rmsprop": lambda lr: hill(adaptive_variance(lr, H, SIGMA)),
    "adam": lambda lr: hill(adaptive_variance(lr, H, SIGMA, beta1=0.9)),
    "sign": lambda lr: hill(sign_variance(lr, H, SIGMA)),
}


@pytest.mark.parametrize("optimizer", AT_REST)
def test_plateaus_are_the_limits_of_the_stationary_states(optimizer):
    beta = 0.8 if optimizer in ("heavy-ball", "nesterov") else None
    off = [AT_REST[optimizer](lr) / plateau_loss(optimizer, lr, SIGMA, beta=beta) - 1.0 for lr in (1e-3, 1e-4)]
    assert abs(off[0]) < 0.05
    assert abs(off[1]) < 0.11 * abs(off[0])  # first order in the rate


def test_heavy_ball_has_the_known_variance_at_any_rate():
    lr, b = 0.3, 0.9
    known = lr * SIGMA**2 * (1 + b) / (H * (1 - b) * (2 * (1 + b) - lr * H))
    assert momentum_variance("heavy-ball", lr, H, SIGMA, beta=b) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_adamw_settles_at_its_plateau(weight_decay):
    h, sigma, off = H[1:], SIGMA[[0, 2]], []
    for lr in (2e-2, 5e-3):
        found = optimizer_moments(
            "adamw", [lr] * round(16 / lr), [round(16 / lr)], curvature=h, sigma=sigma, **ADAM,
            weight_decay=weight_decay,
        )  # fmt: skip
        loss = 0.5 * float(np.sum(h * found.variance[0]))
        off.append(abs(loss / adamw_plateau(lr, h, sigma, weight_decay) - 1.0))
    assert off[1] < 0.03
    assert off[1] < 0.3 * off[0]


def test_without_weight_decay_adamw_is_adam():
    assert adamw_plateau(0.01, H, SIGMA, 0.0) == pytest.approx(plateau_loss("adam", 0.01, SIGMA), rel=1e-12)
    assert adamw_plateau(0.01, [0.0, 1.0], [0.0, 1.0], 0.0) == pytest.approx(0.0025)


def test_a_preconditioner_that_does_not_commute():
    """w -= lr P^-1 (H w + xi), its discrete Lyapunov equation solved."""
    rng = np.random.default_rng(0)
    hessian, noise, scale = (a @ a.T + np.eye(4) for a in rng.standard_normal((3, 4, 4)))
    off = []
    for lr in (1e-4, 1e-5):
        step = np.linalg.solve(scale, lr * hessian)
        kick = np.linalg.solve(scale, np.linalg.solve(scale, noise).T) * lr**2
        loss = 0.5 * np.trace(hessian @ solve_discrete_lyapunov(np.eye(4) - step, kick, method="bilinear"))
        off.append(abs(loss / preconditioned_plateau(lr, noise, scale) - 1.0))
    assert off[0] < 2e-3
    assert off[1] < 0.11 * off[0]


def test_diagonal_preconditioners_change_coordinates():
    p = SIGMA  # Adam's, under strong noise
    found = preconditioned_plateau(0.01, SIGMA**2, p)
    assert found == pytest.approx(plateau_loss("adam", 0.01, SIGMA), rel=1e-12)
    assert found == pytest.approx(plateau_loss("sgd", 0.01, SIGMA / np.sqrt(p)), rel=1e-12)


# --- intrinsic time --------------------------------------------------------------------------------------------------
def convolved(rates, n):
    """int_0^{S_n} eta(S) K(S_n - S) dS, update by update and mode by mode, in the order of the integral."""
    S = np.concatenate([[0.0], np.cumsum(rates)])
    total = 0.0
    for h, s in zip(H, SIGMA, strict=True):
        for k in range(n):
            total += rates[k] * 0.25 * s**2 * (math.exp(-2 * h * (S[n] - S[k + 1])) - math.exp(-2 * h * (S[n] - S[k])))
    return total


@pytest.mark.parametrize("seed", [0, 1])
def test_the_gain_by_parts_is_the_convolution_to_rounding(seed):
    rates = np.random.default_rng(seed).uniform(0.0, 0.3, 60) * (np.arange(60) % 7 > 0)
    states = [0, 1, 2, 30, 59, 60]
    found = kernel_loss(rates, states, curvature=H, sigma=SIGMA)
    assert found.noise == pytest.approx([convolved(rates, n) for n in states], rel=1e-12, abs=1e-15)
    gains = [
        sum((rates[k - 1] - rates[k]) * gain_kernel(rates[k:n].sum(), curvature=H, sigma=SIGMA) for k in range(1, n))
        for n in states
    ]
    assert cooldown_gain(rates, states, curvature=H, sigma=SIGMA) == pytest.approx(gains, rel=1e-12, abs=1e-15)


@given(st.lists(st.floats(1e-3, 0.5), min_size=1, max_size=6))
def test_the_noise_is_the_integral_over_the_kernel(rates):
    S = np.concatenate([[0.0], np.cumsum(rates)])
    parts = [
        quad(lambda s, r=r: r * float(noise_kernel(S[-1] - s, curvature=H, sigma=SIGMA)), a, b)[0]
        for r, a, b in zip(rates, S[:-1], S[1:], strict=True)
    ]
    found = kernel_loss(rates, [len(rates)], curvature=H, sigma=SIGMA)
    assert found.noise[0] == pytest.approx(sum(parts), rel=1e-9)


def test_the_gain_kernel_is_the_integral_of_the_noise_kernel():
    u = np.array([0.0, 0.3, 4.0])
    whole = [quad(lambda s: float(noise_kernel(s, curvature=H, sigma=SIGMA)), 0.0, b)[0] for b in u]
    assert gain_kernel(u, curvature=H, sigma=SIGMA) == pytest.approx(whole, rel=1e-9, abs=1e-15)
    assert gain_kernel(1e6, curvature=H, sigma=SIGMA) == pytest.approx(plateau_loss("sgd", 1.0, SIGMA), rel=1e-12)


def exact(schedule, states, start):
    found = optimizer_moments("sgd", schedule, states, curvature=H, sigma=SIGMA, mean=start)
    return 0.5 * found.mean**2 @ H, 0.5 * found.variance @ H


def test_the_exact_moments_lie_a_little_above():
    """By the fraction lr h/2 of each direction at rest, and below lr h everywhere; lr h is at most 0.02."""
    states = [100, 500, 1750, 2100, 2400, 2500]
    signal, noise = exact(WSD, states, 1.5)
    found = kernel_loss(WSD, states, curvature=H, sigma=SIGMA, start=1.5)
    ratio = noise / found.noise
    assert np.all((ratio > 1.0) & (ratio < 1.01))
    assert ratio.min() < 1.002
    assert signal == pytest.approx(found.signal, rel=0.02)
    fine = make_schedule("wsd", peak_lr=0.0004, steps=25_000, warmup=1000, cooldown=0.3)
    closer = final_variance(fine.values(), H, SIGMA, start=0.0)
    at_end = kernel_loss(fine, [25_000], curvature=H, sigma=SIGMA).noise[0]
    assert hill(closer) / at_end - 1.0 == pytest.approx(0.1 * (ratio[-1] - 1.0), rel=0.1)


def test_a_constant_rate_settles_at_the_plateau_and_a_cooldown_leaves_it():
    rates = np.concatenate([np.full(40_000, 0.004), np.zeros(1)])
    found = kernel_loss(rates, [40_000, 40_001], curvature=H, sigma=SIGMA, start=3.0)
    assert found.total == pytest.approx(np.full(2, plateau_loss("sgd", 0.004, SIGMA)), rel=1e-10)
    cut = np.concatenate([np.full(40_000, 0.004), np.full(10**6, 1e-4)])
    gain = cooldown_gain(cut, [cut.size], curvature=H, sigma=SIGMA)
    assert gain == pytest.approx([plateau_loss("sgd", 0.0039, SIGMA)], rel=1e-9)


def test_updates_at_rate_zero_change_nothing():
    rates = WSD.values()
    longer = np.concatenate([rates, np.zeros(50)])
    one, other = (kernel_loss(r, [r.size], curvature=H, sigma=SIGMA, start=1.0).total for r in (rates, longer))
    assert one == pytest.approx(other, rel=1e-12)


# --- update by update ------------------------------------------------------------------------------------------------
def closure(rates, h, sigma, *, beta1, beta2, eps, weight_decay, corrected):
    """The recursion of second moments about a minimum: v follows E[g^2], and divides an EMA momentum; E[w^2]."""
    M, v = np.zeros((2, 2)), 0.0
    for t, lr in enumerate(rates, 1):
        v = beta2 * v + (1 - beta2) * (sigma**2 + h**2 * M[0, 0])
        p = math.sqrt(v / (1 - beta2**t if corrected else 1.0)) + eps
        c = lr / (p * (1 - beta1**t))
        A = np.array([[1 - lr * weight_decay - c * (1 - beta1) * h, -c * beta1], [(1 - beta1) * h, beta1]])
        kick = np.array([-c * (1 - beta1), 1 - beta1])
        M = A @ M @ A.T + sigma**2 * np.outer(kick, kick)
    return M[0, 0]


@pytest.mark.parametrize(
    ("optimizer", "constants"),
    [
        ("adam", {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}),
        ("adamw", {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.3}),
        ("rmsprop", {"beta": 0.97, "eps": 1e-8}),
    ],
)
def test_the_closure_follows_any_schedule_in_several_directions(optimizer, constants):
    schedule = make_schedule("wsd", peak_lr=0.05, steps=300, warmup=20, cooldown=0.3)
    found = optimizer_moments(optimizer, schedule, [150, 300], curvature=H, sigma=SIGMA, **constants)
    full = {"beta1": 0.0, "weight_decay": 0.0, "beta2": constants.get("beta"), "corrected": optimizer != "rmsprop"}
    full |= {k: v for k, v in constants.items() if k != "beta"}
    for n, variance in zip((150, 300), found.variance, strict=True):
        known = [closure(schedule.values()[:n], h, s, **full) for h, s in zip(H, SIGMA, strict=True)]
        assert variance == pytest.approx(known, rel=1e-9)
    assert np.all(found.mean == 0.0)


def test_sgd_is_the_summed_recursion():
    found = optimizer_moments("sgd", WSD, [2500], curvature=H, sigma=SIGMA, variance=0.3)
    assert found.variance[0] == pytest.approx(final_variance(WSD.values(), H, SIGMA, start=0.3), rel=1e-12)


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plateau_loss("sgdd", 0.1, 1.0), "Did you mean 'sgd'"),
        (lambda: plateau_loss("sgd", 0.1, 1.0, beta=0.9), "takes no beta"),
        (lambda: plateau_loss("heavy-ball", 0.1, 1.0), "needs its beta"),
        (lambda: plateau_loss("nesterov", 0.1, 1.0, beta=1.0), "beta"),
        (lambda: plateau_loss("sgd", -0.1, 1.0), "lr"),
        (lambda: adamw_plateau(0.1, 1.0, 1.0, -1.0), "weight_decay"),
        (lambda: preconditioned_plateau(0.1, [1.0], [1.0, 2.0]), "one size, got 1 and 2"),
        (lambda: preconditioned_plateau(0.1, [1.0], [-1.0]), "positive definite"),
        (lambda: preconditioned_plateau(0.1, np.ones((2, 3)), np.eye(2)), "symmetric"),
        (lambda: noise_kernel(-1.0, curvature=H, sigma=SIGMA), "time"),
        (lambda: kernel_loss([0.1], [1], curvature=H, sigma=[1.0, 2.0]), "rows of one length"),
        (lambda: kernel_loss([0.1], [2], curvature=H, sigma=SIGMA), "states"),
        (lambda: optimizer_moments("adam", [0.1], [1], curvature=1.0, sigma=1.0, beta1=0.9), "beta2, eps"),
        (lambda: optimizer_moments("sgd", [0.1], [1], curvature=1.0, sigma=1.0, beta=0.9), "no option 'beta'"),
        (lambda: optimizer_moments("heavy-ball", [0.1], [1], curvature=1.0, sigma=1.0, beta=1.0), "of heavy-ball"),
        (lambda: optimizer_moments("sgd", [0.1], [1], curvature=1.0, sigma=1.0, average=[1, 1]), "one weight for each"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(InputError, match=message):
        call()
