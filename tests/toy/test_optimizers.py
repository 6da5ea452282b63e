"""Update rules against torch and against the formulas written out; averages; stability limits."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.toy import OPTIMIZERS, EMAAverage, TailAverage, make_optimizer

LR = np.array([0.1, 0.2, 0.15, 0.05, 0.3, 0.1, 0.02])


def path(optimizer, gradients, start, lr=LR):
    """Coordinates after each update of one optimizer that meets the given gradients, (T, n)."""
    w = np.array(start)
    states = [w.copy() if optimizer.begins_at_start else np.zeros_like(w) for _ in range(optimizer.states)]
    out = []
    for g, varying in zip(gradients, optimizer.coefficients(lr), strict=True):
        found = type(optimizer).rule(w, g, *states, *varying, *optimizer.constants())
        w, *states = found if optimizer.states else (found,)
        out.append(w if optimizer.evaluated is None else states[optimizer.evaluated])
    return np.array(out)


TORCH = {
    "sgd": ({}, "SGD", {}),
    "heavy-ball": ({"beta": 0.8}, "SGD", {"momentum": 0.8}),
    "ema-momentum": ({"beta": 0.8}, None, {}),
    "nesterov": ({"beta": 0.8}, "SGD", {"momentum": 0.8, "nesterov": True}),
    "adam": ({"beta1": 0.7, "beta2": 0.9, "eps": 1e-3}, "Adam", {"betas": (0.7, 0.9), "eps": 1e-3}),
    "adamw": (
        {"beta1": 0.7, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.2},
        "AdamW", {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.2},
    ),
    "rmsprop": ({"beta": 0.9, "eps": 1e-3}, "RMSprop", {"alpha": 0.9, "eps": 1e-3}),
    "sign": ({}, None, {}),
    "schedule-free": ({"beta": 0.8}, None, {}),
}  # fmt: skip


def test_every_optimizer_is_compared():
    assert set(TORCH) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", [n for n, (_, cls, _) in TORCH.items() if cls])
def test_updates_are_those_of_torch(name, rng):
    torch = pytest.importorskip("torch")
    options, cls, given_to_torch = TORCH[name]
    start, gradients = rng.standard_normal(5), rng.standard_normal((LR.size, 5))
    w = torch.tensor(start, requires_grad=True)
    optimizer = getattr(torch.optim, cls)([w], lr=1.0, **given_to_torch)
    wanted = []
    for lr, g in zip(LR, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.tensor(g)
        optimizer.step()
        wanted.append(w.detach().numpy().copy())
    np.testing.assert_allclose(path(make_optimizer(name, **options), gradients, start), wanted, rtol=1e-12, atol=1e-14)


def test_ema_momentum_is_heavy_ball_at_a_smaller_rate(rng):
    start, gradients = rng.standard_normal(3), rng.standard_normal((LR.size, 3))
    ema = path(make_optimizer("ema-momentum", beta=0.8), gradients, start)
    ball = path(make_optimizer("heavy-ball", beta=0.8), gradients, start, LR * 0.2)
    np.testing.assert_allclose(ema, ball, rtol=1e-13)


def test_sign_moves_every_coordinate_by_the_rate(rng):
    gradients = rng.standard_normal((LR.size, 3))
    steps = np.diff(path(make_optimizer("sign"), gradients, np.zeros(3)), axis=0)
    np.testing.assert_allclose(steps, -LR[1:, None] * np.sign(gradients[1:]))


def test_schedule_free_is_its_definition(rng):
    """arXiv:2405.15682, with the weights lr^2 of its code; x is the weighted mean of all z after the first."""
    beta, start, gradients = 0.8, rng.standard_normal(3), rng.standard_normal((LR.size, 3))
    z = start - np.cumsum(LR[:, None] * gradients, axis=0)
    weight = (LR**2)[:, None]
    x = np.cumsum(weight * z, axis=0) / np.cumsum(weight, axis=0)
    optimizer = make_optimizer("schedule-free", beta=beta)
    np.testing.assert_allclose(path(optimizer, gradients, start), x, rtol=1e-12)
    w, states = start, [start, start]
    for g, varying in zip(gradients, optimizer.coefficients(LR), strict=True):
        w, *states = type(optimizer).rule(w, g, *states, *varying, *optimizer.constants())
    np.testing.assert_allclose(w, (1 - beta) * z[-1] + beta * x[-1], rtol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "heavy-ball", "ema-momentum", "nesterov", "schedule-free"])
@pytest.mark.parametrize("beta", [0.3, 0.9])
@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_beyond_its_limit_an_optimizer_leaves_the_valley_and_below_it_settles(name, beta, factor):
    takes = {f.name for f in fields(OPTIMIZERS[name])}
    optimizer = make_optimizer(name, **({"beta": beta} if "beta" in takes else {}))
    steps, w = 3000, 1.0
    lr = np.full(steps, factor * optimizer.stability_limit(1.0))
    states = [1.0 if optimizer.begins_at_start else 0.0] * optimizer.states
    varying = optimizer.coefficients(lr)
    if name == "schedule-free":
        varying[:, 1] = 0.0  # the limit is that of z while the average stands still (it then adds nothing)
        states = [1.0, 0.0]
    for c in varying:
        found = type(optimizer).rule(w, w, *states, *c, *optimizer.constants())
        w, *states = found if optimizer.states else (found,)
        if abs(w) > 1e6:
            break
    assert (abs(w) > 10) == (factor > 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_rebuilt_from_its_description(name):
    optimizer = make_optimizer(name)
    assert make_optimizer(**optimizer.to_dict()) == optimizer
    varying, constants = optimizer.counts()
    assert optimizer.coefficients(LR).shape == (LR.size, varying)
    assert optimizer.constants().shape == (constants,)
    np.testing.assert_array_equal(optimizer.coefficients(LR)[:, 0], LR)


def test_adaptive_limits_scale_with_the_noise():
    assert make_optimizer("adam", beta1=0.9).stability_limit(0.5) == pytest.approx(19.0)
    assert make_optimizer("rmsprop").stability_limit(0.5) == 1.0
    assert make_optimizer("sign").stability_limit(0.5) == math.inf


@given(st.integers(1, 40), st.integers(0, 40))
def test_tail_average_is_the_mean_of_the_last_iterates(window, before):
    total = window + before
    iterates = np.random.default_rng(total).standard_normal(total)
    average = 0.0
    for w, weight in zip(iterates, TailAverage(window).weights(total), strict=True):
        average += weight * (w - average)
    assert average == pytest.approx(iterates[-window:].mean(), abs=1e-12)


@given(st.floats(0, 0.99), st.integers(1, 30))
def test_ema_is_the_weighted_sum(beta, total):
    iterates = np.random.default_rng(total).standard_normal(total)
    average = start = 2.0
    for w, weight in zip(iterates, EMAAverage(beta).weights(total), strict=True):
        average += weight * (w - average)
    powers = beta ** np.arange(total - 1, -1, -1)
    assert average == pytest.approx(beta**total * start + (1 - beta) * powers @ iterates, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: make_optimizer("adma"), r"unknown optimizer 'adma'.* mean 'adam'"),
        (lambda: make_optimizer("sgd", beta=0.9), r"no option 'beta'"),
        (lambda: make_optimizer("heavy-ball", beta=1.0), r"beta .* in \[0, 1\), got 1"),
        (lambda: make_optimizer("adam", eps=0.0), r"eps .* in \(0, .* got 0"),
        (lambda: make_optimizer("adamw", weight_decay=-1), r"weight_decay .* got -1"),
        (lambda: TailAverage(0), r"updates .* got 0"),
        (lambda: TailAverage(11).weights(10), r"over the last 11 updates needs as many, but the run has 10"),
        (lambda: EMAAverage(1.0), r"beta .* got 1"),
    ],
)
def test_bad_optimizers_are_refused_with_the_rule(make, told):
    with pytest.raises(InputError, match=told):
        make()
