r"""The noisy quadratic under any schedule: plateaus, moments of any optimizer, and losses in intrinsic time.

A coordinate w has the gradient h w - c + sigma xi; see `riverval.theory` for what each optimizer does with it. Hills
have c = 0 and the excess loss (1/2) sum h E[w^2]. Three descriptions, from the shortest to the most exact:

- `plateau_loss`: where a small constant rate settles.
- `kernel_loss`: any schedule of small rates, in the intrinsic time S_n = sum_{t<n} lr[t], with (derived)

  .. math:: \tfrac12\sum_i h_i x_i^2 e^{-2h_iS_n} + \int_0^{S_n} \eta(S)\,K(S_n - S)\,dS, \qquad
            K(u) = \tfrac12 \sum_i h_i\sigma_i^2 e^{-2h_iu},

  where integrating by parts turns the noise into what a constant rate would have, less what each drop of the rate
  gains: `cooldown_gain`. Laws of loss curves are this with another K.
- `optimizer_moments`: mean and variance update by update.

A preconditioner P is a change of coordinates: h and sigma^2 become those of P^{-1/2} H P^{-1/2} and P^{-1/2} Sigma
P^{-1/2}. For a diagonal P of entries p, as Adam's p = sigma under strong noise, give h/p as `curvature` and
sigma/sqrt(p) as `sigma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ._arrays import check_noise, check_states, check_values
from ._checks import LARGEST, check_number, pick
from ._moment_steps import Step, coordinates_of, update_of
from ._schedule import Schedule, rates_of
from ._typing import ArrayLike, FloatArray, IntArray
from .errors import InputError
from .relaxation import relaxed_sums

# Optimizer -> the power of sigma that counts, the factor of (lr/4) sum sigma^power, and whether 1 - beta divides it.
_PLATEAUS: dict[str, tuple[int, float, bool]] = {
    "sgd": (2, 1.0, False),
    "heavy-ball": (2, 1.0, True),
    "nesterov": (2, 1.0, True),
    "ema-momentum": (2, 1.0, False),
    "rmsprop": (1, 1.0, False),
    "adam": (1, 1.0, False),
    "sign": (1, math.sqrt(math.pi / 2.0), False),
}


# --- small constant rates --------------------------------------------------------------------------------------------
def plateau_loss(optimizer: str, lr: float, sigma: ArrayLike, *, beta: float | None = None) -> float:
    r"""The excess loss, summed over directions, at which a small constant rate settles, whatever the curvatures.

    ======================  ===============================================
    sgd, ema-momentum       (lr/4) sum sigma^2
    heavy-ball, nesterov    (lr/4) sum sigma^2 / (1 - beta)
    rmsprop, adam           (lr/4) sum sigma
    sign                    (lr/4) sqrt(pi/2) sum sigma
    ======================  ===============================================

    To leading order in lr h, and for the last two rows in lr h/sigma: noise is then all that the gradients show
    (derived). `riverval.theory` has the values at any rate; `adamw_plateau` counts the weight decay.

    Args:
        optimizer: a name of the table.
        lr: the rate, >= 0.
        sigma: standard deviation of the gradient noise in each direction, a number or any shape.
        beta: the momentum of heavy-ball and nesterov, in [0, 1); they need it and no other takes it.

    Raises:
        InputError: an unknown optimizer, a beta where there is none or none where there is one, a value out of range.

    >>> round(plateau_loss("heavy-ball", 0.01, [1.0, 2.0], beta=0.9), 9), plateau_loss("adam", 0.04, [1.0, 2.0])
    (0.125, 0.03)
    """
    power, factor, divided = pick("optimizer", optimizer, _PLATEAUS)
    if divided != (beta is not None):
        told = "needs its beta" if divided else f"takes no beta, got {beta!r}"
        raise InputError(f"the plateau of {optimizer} {told}")
    share = 1.0 - check_number("beta", beta, low=0.0, high=1.0, open_high=True) if divided else 1.0
    return 0.25 * _rate(lr) * factor / share * float(np.sum(check_noise(sigma) ** power))


def adamw_plateau(lr: float, curvature: ArrayLike, sigma: ArrayLike, weight_decay: float) -> float:
    """(lr/4) sum h sigma / (h + w sigma): the plateau of AdamW whose weights decay by lr w towards the minimum.

    To leading order in lr h/sigma and in lr w/(1 - beta1); w = `weight_decay` adds to the contraction lr h/sigma of
    each direction, so that flat directions settle lower (derived). At w = 0 it is Adam's (lr/4) sum sigma.

    Args:
        lr: the rate, >= 0.
        curvature: h >= 0 of each direction, a number or any shape.
        sigma: standard deviation of the gradient noise, likewise.
        weight_decay: w >= 0.

    Raises:
        InputError: a value out of range.

    >>> round(adamw_plateau(0.01, [1.0, 0.1], 1.0, 0.1), 9)
    0.003522727
    """
    h, noise = check_values("curvature", curvature, low=0.0), check_noise(sigma)
    weight = check_number("weight_decay", weight_decay, low=0.0, high=LARGEST)
    below = h + weight * noise
    share = np.divide(h * noise, below, out=np.zeros(below.shape), where=below > 0.0)
    return 0.25 * _rate(lr) * float(np.sum(share))


def preconditioned_plateau(lr: float, covariance: ArrayLike, preconditioner: ArrayLike) -> float:
    """(lr/4) tr(P^{-1/2} Sigma P^{-1/2}): the plateau of w -= lr P^{-1} g, for any Hessian that is not singular.

    To leading order in the rate (derived: the trace of the Lyapunov equation of P^{1/2} w).

    Args:
        lr: the rate, >= 0.
        covariance: Sigma of the gradient noise, symmetric (d, d), or its diagonal (d,).
        preconditioner: P, symmetric positive definite (d, d), or its diagonal (d,).

    Raises:
        InputError: other shapes, a value out of range, or a P that is not positive definite.

    >>> preconditioned_plateau(0.04, [1.0, 4.0], [1.0, 2.0]), preconditioned_plateau(0.04, [1.0, 4.0], np.diag([1, 2]))
    (0.03, 0.03)
    """
    noise, scale = _matrix("covariance", covariance), _matrix("preconditioner", preconditioner)
    if noise.shape != scale.shape:
        raise InputError(f"covariance and preconditioner must have one size, got {len(noise)} and {len(scale)}")
    if np.linalg.eigvalsh(scale)[0] <= 0.0:
        raise InputError("preconditioner must be positive definite; its least eigenvalue is not above 0")
    return 0.25 * _rate(lr) * float(np.trace(np.linalg.solve(scale, noise)))


def _matrix(name: str, value: ArrayLike) -> FloatArray:
    values = check_values(name, value)
    if values.ndim == 1 and values.size:
        values = np.diag(values)
    if values.ndim != 2 or not values.size or values.shape[0] != values.shape[1] or not np.allclose(values, values.T):
        raise InputError(f"{name} must be a symmetric matrix or its diagonal, got the shape {values.shape}")
    return values


# --- intrinsic time --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class KernelLoss:
    """The expected excess loss at the states asked for, in two parts; arrays (n,).

    Attributes:
        states: n, the updates done.
        signal: what is left of the start.
        noise: what the gradient noise holds up.
    """

    states: IntArray
    signal: FloatArray
    noise: FloatArray

    @property
    def total(self) -> FloatArray:
        """signal + noise."""
        return self.signal + self.noise


def noise_kernel(time: ArrayLike, *, curvature: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """K(u) = (1/2) sum h sigma^2 exp(-2 h u), the loss per unit of rate and intrinsic time, u after; shape of `time`.

    Args:
        time: u >= 0, a difference of intrinsic times.
        curvature: h >= 0 of each direction, a number or shape (m,).
        sigma: standard deviation of the gradient noise, likewise.

    Raises:
        InputError: a value out of range.

    >>> noise_kernel([0.0, 1.0], curvature=[0.5, 2.0], sigma=1.0).round(6).tolist()
    [1.25, 0.110285]
    """
    u = check_values("time", time, low=0.0)
    h, heat = _directions(curvature, sigma)
    kernel: FloatArray = 0.5 * np.exp(-2.0 * u[..., None] * h) @ (h * heat)
    return kernel


def gain_kernel(time: ArrayLike, *, curvature: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """Gk(u) = (1/4) sum sigma^2 (1 - exp(-2 h u)), the integral of K: the gain of a drop of the rate by 1, u after.

    It saturates at (1/4) sum sigma^2, the noise trace of the plateau. Arguments and errors as `noise_kernel`.

    >>> gain_kernel([0.0, 1.0, 1e9], curvature=[0.5, 2.0], sigma=1.0).round(6).tolist()
    [0.0, 0.403451, 0.5]
    """
    u = check_values("time", time, low=0.0)
    h, heat = _directions(curvature, sigma)
    kernel: FloatArray = -0.25 * np.expm1(-2.0 * u[..., None] * h) @ heat
    return kernel


def cooldown_gain(
    schedule: Schedule | ArrayLike, states: ArrayLike, *, curvature: ArrayLike, sigma: ArrayLike
) -> FloatArray:
    """sum_{1<=k<n} (lr[k-1] - lr[k]) Gk(S_n - S_k): by how much the changes of the rate lower the noise loss; (n,).

    That is against a run at the first rate to the same intrinsic time; a rise of the rate counts negative. O(T m) time
    by `riverval.relaxation`, exact up to rounding of the largest rate times (1/4) sum sigma^2 (derived).

    Args:
        schedule: a schedule, or the rate of each update, shape (T,).
        states: updates done, increasing in 0..T, shape (n,).
        curvature: h >= 0 of each direction, a number or shape (m,).
        sigma: standard deviation of the gradient noise, likewise.

    Raises:
        InputError: a value out of range.

    >>> cooldown_gain([0.1, 0.1, 0.05, 0.05], [2, 4], curvature=2.0, sigma=1.0).round(6).tolist()
    [0.0, 0.004121]
    """
    rates = rates_of(schedule)
    asked = check_states(states, rates.size)
    h, heat = _directions(curvature, sigma)
    after = np.append(rates, 0.0)  # what follows the run counts for nothing: its gain has had no time
    held = relaxed_sums(rates, after[:-1] - after[1:], 2.0 * h, asked)
    gain: FloatArray = 0.25 * (after[0] - after[asked][:, None] - held) @ heat
    return gain


def kernel_loss(
    schedule: Schedule | ArrayLike, states: ArrayLike, *, curvature: ArrayLike, sigma: ArrayLike, start: ArrayLike = 0.0
) -> KernelLoss:
    """The kernel form at the top of this module, for rates that are constant during each update.

    The noise is lr[0] Gk(S_n) - `cooldown_gain`. SGD's exact noise loss is 1 + lr h/2 times as large in each direction
    that has settled, and up to 1 + lr h times in the first updates, to leading order.

    Args:
        schedule, states, curvature, sigma: as `cooldown_gain`.
        start: x, the distance from the minimum at the start in each direction, a number or shape (m,).

    Raises:
        InputError: a value out of range, or rows of several lengths.

    >>> found = kernel_loss([0.01] * 1000, [0, 1000], curvature=[0.5, 2.0], sigma=1.0, start=1.0)
    >>> found.signal.round(6).tolist(), found.noise.round(6).tolist()
    ([1.25, 1.1e-05], [0.0, 0.005])
    """
    rates = rates_of(schedule)
    asked = check_states(states, rates.size)
    at, offset, _ = coordinates_of(curvature, sigma, 0.0, start, 0.0)
    h = at.curvature
    time = np.concatenate([[0.0], np.cumsum(rates)])[asked]
    signal = 0.5 * np.exp(-2.0 * time[:, None] * h) @ (h * offset**2)
    first = rates[0] if rates.size else 0.0
    still = first * gain_kernel(time, curvature=h, sigma=at.sigma)
    return KernelLoss(asked, signal, still - cooldown_gain(rates, asked, curvature=h, sigma=at.sigma))


def _directions(curvature: ArrayLike, sigma: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """h and sigma^2 of each direction, both (m,)."""
    at, *_ = coordinates_of(curvature, sigma, 0.0, 0.0, 0.0)
    return at.curvature, at.sigma**2


# --- update by update ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class OptimizerMoments:
    """Mean and variance of each coordinate at the states asked for, where the losses are taken; arrays (n, d).

    The same of the running average of the iterates, where there is one.
    """

    states: IntArray
    mean: FloatArray
    variance: FloatArray
    average_mean: FloatArray | None = None
    average_variance: FloatArray | None = None


def optimizer_moments(
    optimizer: str,
    schedule: Schedule | ArrayLike,
    states: ArrayLike,
    *,
    curvature: ArrayLike,
    sigma: ArrayLike,
    slope: ArrayLike = 0.0,
    mean: ArrayLike = 0.0,
    variance: ArrayLike = 0.0,
    average: ArrayLike | None = None,
    **constants: float,
) -> OptimizerMoments:
    """Mean and variance of each coordinate under any schedule; about 40 us for each update.

    Exact for sgd, heavy-ball, ema-momentum, nesterov and schedule-free: with s the coordinate and its memories, E[s] <-
    A E[s] - c G and Cov(s) <- A Cov(s) A' + sigma^2 G G'. A Gaussian closure for sign, rmsprop, adam and adamw: the
    update is replaced by its tangent at the means (for sign by the affine function of the same moments), which is a few
    per cent off once settled; `riverval.toy.recursions` tells how far (derived).

    Args:
        optimizer: sgd, heavy-ball, ema-momentum, nesterov, schedule-free, sign, rmsprop, adam or adamw.
        schedule: a schedule, or the rate of each update, shape (T,).
        states: state numbers in 0..T, increasing, shape (n,).
        curvature: h >= 0 of each coordinate, a number or shape (d,).
        sigma: standard deviation of the gradient noise, likewise.
        slope: c, the constant pull in the direction of growing w, likewise.
        mean: mean of each coordinate of state 0, likewise; memories begin at 0.
        variance: its variance, likewise.
        average: weight of the newest iterate in a running average a <- a + weight (w - a), for each update, (T,).
        constants: beta of the momenta, schedule-free and rmsprop, beta1 and beta2 of adam and adamw, eps of the last
            three, weight_decay of adamw; all that the optimizer has.

    Raises:
        InputError: states outside 0..T or not increasing, a constant that is missing or not the optimizer's, or a value
            out of range.

    >>> still = optimizer_moments("adam", [0.01] * 3000, [3000], curvature=[1.0, 2.0], sigma=1.0, beta1=0.9, beta2=0.99,
    ...                           eps=1e-8)
    >>> (0.5 * np.array([1.0, 2.0]) * still.variance).round(6).tolist()
    [[0.002494, 0.002489]]
    """
    rates = rates_of(schedule)
    asked = check_states(states, rates.size)
    at, centre, spread = coordinates_of(curvature, sigma, slope, mean, variance)
    update = update_of(optimizer, constants, at, rates)
    m, C = update.begin(centre, spread)
    weights = None
    if average is not None:
        weights = _weights(average, rates.size)
        m, C = _with_average(m, C)
    means, variances = np.empty((asked.size, *m.shape)), np.empty((asked.size, *m.shape))
    done = 0
    with np.errstate(over="ignore", invalid="ignore"):  # an unstable setting ends at infinity
        for n, state in enumerate(asked.tolist()):
            for t in range(done, state):
                step = update.step(t, m[:, : update.size], C[:, : update.size, : update.size])
                m, C = _advance(step if weights is None else _averaging(step, m[:, -1], float(weights[t])), C)
            done = state
            means[n], variances[n] = m, np.diagonal(C, axis1=1, axis2=2)
    if weights is None:
        return OptimizerMoments(asked, means[:, :, 0], variances[:, :, 0])
    return OptimizerMoments(asked, means[:, :, 0], variances[:, :, 0], means[:, :, -1], variances[:, :, -1])


def _advance(step: Step, covariance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and covariance of the state after a step."""
    return step.centre, step.linear @ covariance @ step.linear.transpose(0, 2, 1) + step.heat


def _averaging(step: Step, average: FloatArray, weight: float) -> Step:
    """The same step of a state with one more coordinate a <- a + weight (s[0] - a), whose mean is `average`, (d,)."""
    d, k = step.centre.shape
    copy = np.concatenate([np.eye(k), weight * np.eye(k)[:1]])  # (k + 1, k): the new state, then its share in a
    linear = np.zeros((d, k + 1, k + 1))
    linear[:, :, :k] = copy @ step.linear
    linear[:, k, k] = 1.0 - weight
    centre = step.centre @ copy.T
    centre[:, k] += (1.0 - weight) * average
    return Step(linear, centre, copy @ step.heat @ copy.T)


def _with_average(mean: FloatArray, covariance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The state with a running average that begins at its first coordinate."""
    order = [*range(mean.shape[1]), 0]
    return mean[:, order], covariance[:, order][:, :, order]


# --- checks ----------------------------------------------------------------------------------------------------------
def _rate(lr: float) -> float:
    return check_number("lr", lr, low=0.0, high=LARGEST)


def _weights(average: ArrayLike, total: int) -> FloatArray:
    weights = check_values("average", average, low=0.0, high=1.0, what="weight of each iterate")
    if weights.shape != (total,):
        raise InputError(f"average must be one weight for each of the {total} updates, got the shape {weights.shape}")
    return weights
