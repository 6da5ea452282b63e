"""Mean and variance of any optimizer in a quadratic valley, for any sequence of rates, and of averages of its iterates.

Coordinates are independent, with the gradient h w - c + sigma xi, xi ~ N(0, 1): a hill has c = 0, the river of a
straight valley h = 0. For SGD, heavy-ball, EMA momentum, Nesterov and Schedule-Free the update is affine in the state s
(the coordinate and its memories) and the gradient, so that the recursions (derived)

    E[s] <- A E[s] - c G,        Cov(s) <- A Cov(s) A' + sigma^2 G G'

are exact. A running average of the iterates is one more coordinate of s, and as exact. Sign-SGD, RMSprop, Adam and
AdamW are closed: all is Gaussian, and the update of the last three is linear about the means of gradient and squared
gradient. How far off they are (Monte Carlo; `tests/toy/test_recursions.py` holds them to it):

============================================================================  ==================
what                                                                          off by at most
============================================================================  ==================
sign: mean and variance, in a hill while lr h <= 0.3 sigma, and on the river  1%
sign: variance at rest in a hill, lr h = 2 sigma                              5%
rmsprop, adam, adamw: variance at rest in a hill, lr h <= sigma               1 - beta2, and 1%
the same: mean along a river of slope sigma/2 after 250 updates               1 - beta2, and 1%
the same: its variance                                                        20%
the same: variance in the first ten updates, from a start far up a hill       a factor of 3
============================================================================  ==================
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from .. import theory_moments
from .._arrays import check_rates
from .._checks import check_number
from .._moment_steps import AffineUpdate, Coordinates, coordinates_of, update_of
from .._typing import ArrayLike, FloatArray
from ..errors import InputError
from ..theory_moments import OptimizerMoments
from .exact import Moments
from .losses import StraightRiver
from .optimizers import Average, Optimizer

AFFINE = ("sgd", "heavy-ball", "ema-momentum", "nesterov", "schedule-free")
"""Optimizers whose recursion is exact; the others are closed."""


def optimizer_moments(
    optimizer: Optimizer,
    lr: ArrayLike,
    states: ArrayLike,
    *,
    curvature: ArrayLike,
    sigma: ArrayLike,
    slope: ArrayLike = 0.0,
    mean: ArrayLike = 0.0,
    variance: ArrayLike = 0.0,
    average: Average | None = None,
) -> OptimizerMoments:
    """`riverval.theory_moments.optimizer_moments` of an optimizer of the toy; about 40 us for each update.

    Args:
        optimizer: any of `riverval.toy.optimizers`.
        lr: rate of each update, shape (T,).
        states: state numbers in 0..T, increasing, shape (n,).
        curvature: h >= 0 of each coordinate, a number or shape (d,).
        sigma: standard deviation of the gradient noise, likewise.
        slope: c, the constant pull in the direction of growing w, likewise.
        mean: mean of each coordinate of state 0, likewise; memories are as `simulate` begins them.
        variance: its variance, likewise.
        average: a running average of the iterates, from state 0.

    Raises:
        InputError: states outside 0..T or not increasing, or a value out of range.

    >>> from riverval.toy.optimizers import make_optimizer
    >>> still = optimizer_moments(make_optimizer("ema-momentum"), [0.1] * 500, [500], curvature=2.0, sigma=1.5)
    >>> still.variance.round(7).tolist()
    [[0.0565476]]
    """
    rates = check_rates(lr)
    return theory_moments.optimizer_moments(
        optimizer.name, rates, states, curvature=curvature, sigma=sigma, slope=slope, mean=mean, variance=variance,
        average=None if average is None else average.weights(rates.size), **_constants(optimizer),
    )  # fmt: skip


def valley_moments(
    loss: StraightRiver,
    optimizer: Optimizer,
    lr: ArrayLike,
    states: ArrayLike,
    *,
    sigma: ArrayLike,
    mean: ArrayLike = 0.0,
    variance: ArrayLike = 0.0,
    average: Average | None = None,
) -> Moments:
    """`optimizer_moments` of a straight valley as `riverval.toy.exact.Moments`, which gives the expected losses.

    Args:
        loss: the valley, with m hill directions.
        optimizer, lr, states: as `optimizer_moments`.
        sigma: standard deviation of the gradient noise, a number or shape (1 + m,), the river first.
        mean, variance: those of state 0, likewise.
        average: if given, the moments are those of this running average.

    Raises:
        InputError: as `optimizer_moments`.

    >>> from riverval.toy.optimizers import make_optimizer
    >>> found = valley_moments(StraightRiver(0.5, (2.0,)), make_optimizer("sgd"), [0.1] * 10, [10], sigma=0.0)
    >>> found.expected_river.round(6).tolist()
    [-0.25]
    """
    h = np.array([0.0, *loss.curvatures])
    c = np.zeros_like(h)
    c[0] = loss.slope
    found = optimizer_moments(
        optimizer, lr, states, curvature=h, slope=c, sigma=sigma, mean=mean, variance=variance, average=average
    )
    centre, spread = found.mean, found.variance
    if found.average_mean is not None and found.average_variance is not None:
        centre, spread = found.average_mean, found.average_variance
    return Moments(loss, found.states, centre[:, 0], spread[:, 0], centre[:, 1:], spread[:, 1:])


# --- constant rates --------------------------------------------------------------------------------------------------
def spectral_radius(optimizer: Optimizer, product: float) -> float:
    """Largest absolute eigenvalue of the update in a hill with lr h = `product`: below 1 the optimizer settles.

    For Schedule-Free that of z while its average stands still. `riverval.theory.stability_limit` is where it is 1.

    Raises:
        InputError: a product below 0, or an optimizer that is not `AFFINE`.

    >>> from riverval.toy.optimizers import make_optimizer
    >>> round(spectral_radius(make_optimizer("nesterov", beta=0.5), 1.5), 9)
    1.0
    """
    check_number("product", product, low=0.0)
    factor = _affine(optimizer, 1.0, Coordinates(np.array([product]), np.zeros(1), np.zeros(1))).linear(0)[0]
    if optimizer.name == "schedule-free":
        factor = factor[1:, 1:]
    return float(np.abs(np.linalg.eigvals(factor)).max())


def stationary_covariance(optimizer: Optimizer, lr: float, *, curvature: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """Covariance of the state at rest at a constant rate: C = A C A' + sigma^2 G G', shape (d, k, k).

    The coordinate first, its memory second. `riverval.theory.momentum_variance` has its first entry in closed form.

    Raises:
        InputError: a rate at or above the stability limit, or an optimizer that has no such state: Schedule-Free, whose
            average goes on forever, and those that are not `AFFINE`.

    >>> from riverval.toy.optimizers import make_optimizer
    >>> stationary_covariance(make_optimizer("sgd"), 0.1, curvature=2.0, sigma=1.5).round(6).tolist()
    [[[0.0625]]]
    """
    if optimizer.name == "schedule-free":
        raise InputError("schedule-free has no stationary covariance: its average goes on forever")
    rate = check_number("lr", lr, low=0.0, open_low=True)
    at, *_ = coordinates_of(curvature, sigma, 0.0, 0.0, 0.0)
    worst = max(spectral_radius(optimizer, rate * k) for k in at.curvature.tolist())
    if worst >= 1.0:
        raise InputError(
            f"{optimizer.name} with rate {rate:g} does not settle at curvature {at.curvature.max():g}; use a lower rate"
        )
    update = _affine(optimizer, rate, at)
    pairs = zip(update.linear(0), update.heat(0), strict=True)
    return np.stack([solve_discrete_lyapunov(A, Q) for A, Q in pairs])


def _affine(optimizer: Optimizer, lr: float, at: Coordinates) -> AffineUpdate:
    update = update_of(optimizer.name, _constants(optimizer), at, np.array([lr]))
    if not isinstance(update, AffineUpdate):
        raise InputError(f"the update of {optimizer.name} is not affine; this is known for {', '.join(AFFINE)}")
    return update


def _constants(optimizer: Optimizer) -> dict[str, float]:
    return {f.name: getattr(optimizer, f.name) for f in fields(optimizer)}
