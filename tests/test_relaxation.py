"""Sums of exponentials in intrinsic time against the plain recursion."""

from __future__ import annotations

import numpy as np
import pytest

from riverval.errors import InputError
from riverval.relaxation import constant_runs, relaxed_sums, smooth_runs

RATES = np.array([0.0, 1e-4, 0.01, 1.0, 50.0])


def naive(lr, weights, rates, steps, share=None):
    held = np.zeros(len(rates))
    states = [held]
    for t in range(len(lr)):
        part = 1.0 if share is None else share(lr[t : t + 1])[:, 0]
        held = held * np.exp(-np.asarray(rates) * lr[t]) + weights[t] * part
        states.append(held)
    return np.array(states)[np.asarray(steps)]


def schedules(T, rng):
    yield rng.uniform(0.0, 1.0, T)
    yield np.full(T, 0.3)
    yield np.repeat(rng.uniform(0.0, 1.0, T // 7 + 1), 7)[:T]
    yield np.where(np.arange(T) % 5 == 0, 0.0, 0.4)


@pytest.mark.parametrize("T", [1, 2, 50, 17000])  # the last one takes more than one chunk
def test_relaxed_sums_are_the_recursion(T):
    rng = np.random.default_rng(0)
    for lr in schedules(T, rng):
        for weights in (rng.uniform(0.1, 1.0, T), lr**1.7, np.ones(T)):
            every = naive(lr, weights, RATES, np.arange(T + 1))
            for steps in ([0], [T], [0, T], np.arange(T + 1), np.unique(rng.integers(0, T + 1, 9))):
                np.testing.assert_allclose(relaxed_sums(lr, weights, RATES, steps), every[steps], rtol=1e-9, atol=1e-12)


def test_unequal_shares_of_the_modes():
    rng = np.random.default_rng(1)
    lr = np.repeat(rng.uniform(0.0, 1.0, 30), 3)
    weights = rng.standard_normal(90)
    share = lambda eta: np.exp(-np.outer(RATES, eta)) + 1.0  # noqa: E731
    steps = np.array([0, 4, 5, 44, 90])
    got = relaxed_sums(lr, weights, RATES, steps, share=share)
    np.testing.assert_allclose(got, naive(lr, weights, RATES, steps, share), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_smooth_stretches_may_be_taken_together(floor):
    t = np.arange(20000)
    cosine = 1e-3 * np.minimum((t + 1) / 500, 1.0) * (floor + (1 - floor) * (0.5 + 0.5 * np.cos(np.pi * t / t.size)))
    lr = np.where(t < 9000, 1e-3, cosine)  # a jump, too
    rates, steps = np.geomspace(1e-2, 1e4, 12), np.array([600, 8999, 9001, 9010, 15000, 20000])
    exact = relaxed_sums(lr, lr**1.7, rates, steps)
    coarse = relaxed_sums(lr, lr**1.7, rates, steps, tolerance=0.02)
    np.testing.assert_allclose(coarse, exact, rtol=2e-2)  # the fastest modes see the mean of the last stretch
    np.testing.assert_allclose(coarse[:, rates < 10], exact[:, rates < 10], rtol=2e-4)
    assert smooth_runs(lr, 0.02).size < lr.size / 10
    assert not np.array_equal(coarse, exact)


def test_rounding_does_not_end_a_plateau_and_a_corner_does():
    lr = np.concatenate([np.linspace(0.99, 1.0, 50), np.ones(100) * (1 + 1e-12 * np.arange(100) % 3)])
    assert 50 in smooth_runs(lr, 0.1)
    assert smooth_runs(lr, 0.1).size <= 4


def test_a_constant_rate_is_a_geometric_series():
    got = relaxed_sums(np.full(10**6, 1e-3), np.full(10**6, 2.0), [3.0, 0.0], [10**6])
    np.testing.assert_allclose(got, [[2.0 / (1.0 - np.exp(-3e-3)), 2e6]], rtol=1e-12)


def test_extreme_rates_stay_finite():
    lr = np.linspace(1.0, 0.0, 1000)
    got = relaxed_sums(lr, np.ones(1000), [0.0, 1e-320, 1e6], [999, 1000])
    np.testing.assert_allclose(got[:, :2], [[999.0, 999.0], [1000.0, 1000.0]])
    np.testing.assert_allclose(got[:, 2], [1.0, 2.0])  # the last update has the rate 0 and forgets nothing


def test_runs_of_equal_values():
    assert constant_runs(np.array([1.0, 1.0, 2.0, 2.0]), np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], [1.0], [1]), "one number for each of the 1 updates"),
        (([1.0], [1.0], [-1.0], [1]), "rates"),
        (([1.0], [1.0], [], [1]), "at least one relaxation rate"),
        (([-1.0], [1.0], [1.0], [1]), "lr must be"),
        (([1.0], [np.nan], [1.0], [1]), "weights"),
        (([1.0], [1.0], [1.0], [2]), "states"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        relaxed_sums(*arguments)
