"""The oracle of the simulation: exact moments of SGD in a straight river valley, and its best cooldown.

Every coordinate is Gaussian and independent of the others, so means and variances say everything. For a hill coordinate
with curvature h, with eta = lr[t] and noise sigma (derived; the squares are the moments of noisy SGD on a quadratic),

    mean[t+1] = (1 - eta h) mean[t],        variance[t+1] = (1 - eta h)^2 variance[t] + eta^2 sigma^2,

and along the river mean = c sum(eta), variance = sigma^2 sum(eta^2) for every schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import xarray as xr

from .._arrays import check_rates, check_states
from .._typing import ArrayLike, FloatArray, IntArray
from ..errors import InputError
from ..provenance import provenance
from ..schedules import Schedule
from ..schema import build
from ..theory import optimal_decay, optimal_final_hill, stationary_hill, stationary_variance
from .losses import StraightRiver
from .noise import check_sigma
from .setting import Setting

__all__ = [
    "Moments",
    "exact",
    "moments",
    "optimal_decay",
    "optimal_final_hill",
    "stationary_hill",
    "stationary_variance",
]

_LARGEST = np.finfo(np.float64).max

# An unstable setting ends at infinity, and infinity times nothing is nan: both are shown, and not warned of.
_beyond_range = partial(np.errstate, over="ignore", invalid="ignore")


@dataclass(frozen=True)
class Moments:
    """Mean and variance of every coordinate at the states asked for: river (n,), hill (n, m).

    Expected losses and their standard deviations over replicates are exact, of shape (n,): with y ~ N(mu, s),
    E[h y^2/2] = h (mu^2 + s)/2 and Var[h y^2/2] = h^2 (2 s^2 + 4 mu^2 s)/4; coordinates are independent.
    """

    loss: StraightRiver
    states: IntArray
    river_mean: FloatArray
    river_variance: FloatArray
    hill_mean: FloatArray
    hill_variance: FloatArray

    @property
    def expected_river(self) -> FloatArray:
        with _beyond_range():
            return -self.loss.slope * self.river_mean

    @property
    def expected_hill(self) -> FloatArray:
        with _beyond_range():
            return 0.5 * np.sum(self.loss.curvatures * (self.hill_mean**2 + self.hill_variance), axis=1)

    @property
    def expected_loss(self) -> FloatArray:
        with _beyond_range():
            return self.expected_river + self.expected_hill

    @property
    def river_std(self) -> FloatArray:
        with _beyond_range():
            return self.loss.slope * np.sqrt(self.river_variance)

    @property
    def hill_std(self) -> FloatArray:
        h2 = np.square(self.loss.curvatures)
        with _beyond_range():
            squared_mean = np.minimum(self.hill_mean**2, _LARGEST)  # finite, so that times a variance of 0 it is 0
            spread = np.minimum(self.hill_variance, _LARGEST)  # and likewise
            variance = 2.0 * self.hill_variance**2 + 4.0 * (squared_mean * spread)
            return np.sqrt(0.25 * np.sum(h2 * variance, axis=1))

    @property
    def loss_std(self) -> FloatArray:
        with _beyond_range():
            return np.hypot(self.river_std, self.hill_std)


def moments(
    loss: StraightRiver,
    lr: ArrayLike,
    states: ArrayLike,
    *,
    sigma: float,
    hill_mean: ArrayLike = 0.0,
    hill_variance: ArrayLike = 0.0,
) -> Moments:
    """The recursion at the top of this module, carried to the states asked for.

    The run is cut at those states and at every sqrt(T)-th one, and all pieces advance side by side: affine maps compose
    to an affine map, whose terms are non-negative for the variance, so nothing cancels. It costs a few T m
    multiplications and 2 sqrt(T) + n Python steps: about 0.15 s for T = 10^6, m = 8 and n = 400 states, and seconds
    for all 10^6 states.

    Args:
        loss: the valley, with m hill directions.
        lr: rate of each update, finite and >= 0, shape (T,).
        states: state numbers in 0..T, increasing, shape (n,).
        sigma: standard deviation of the gradient noise in each coordinate.
        hill_mean: mean of the hill coordinates of state 0, a number or shape (m,).
        hill_variance: their variance, likewise.

    Raises:
        InputError: states outside 0..T or not increasing, or a rate, mean, variance or sigma out of range.
    """
    rates = check_rates(lr)
    asked = check_states(states, rates.size)
    check_sigma(sigma)
    h = np.array(loss.curvatures)
    mean = np.broadcast_to(np.asarray(hill_mean, dtype=np.float64), h.shape)
    variance = np.broadcast_to(np.asarray(hill_variance, dtype=np.float64), h.shape)
    if not np.all(np.isfinite(mean)):
        raise InputError(f"hill_mean must be finite, got {hill_mean!r}")
    if not np.all((variance >= 0) & np.isfinite(variance)):
        raise InputError(f"hill_variance must be finite and not negative, got {hill_variance!r}")

    cuts = np.union1d(asked, np.arange(0, asked[-1] + 1, math.isqrt(rates.size) + 1))
    means, variances = np.empty((cuts.size, h.size)), np.empty((cuts.size, h.size))
    means[0], variances[0] = mean, variance
    with _beyond_range():
        factors, noises = _pieces(rates, cuts, h, sigma)
        # Unstable pieces overflow; held at the largest number, they still leave a mean or variance of zero at zero.
        factors = np.clip(factors, -_LARGEST, _LARGEST)
        squares = np.minimum(factors**2, _LARGEST)
        for k in range(cuts.size - 1):
            np.multiply(factors[k], means[k], out=means[k + 1])
            np.multiply(squares[k], variances[k], out=variances[k + 1])
            variances[k + 1] += noises[k]
        time = np.concatenate([[0.0], np.cumsum(rates)])[asked]
        heat = np.concatenate([[0.0], np.cumsum(rates**2)])[asked]
        river, spread = loss.slope * time, sigma**2 * heat
    at = np.searchsorted(cuts, asked)
    return Moments(loss, asked, river, spread, means[at], variances[at])


def exact(
    loss: StraightRiver, schedule: Schedule, *, sigma: float, start: float | str = 1.0, every: int | None = None
) -> xr.Dataset:
    """What infinitely many replicates of `riverval.toy.simulate` would average to, as a dataset of source "theory".

    Args:
        loss, schedule, sigma, start, every: as in `riverval.toy.setting.Setting`.

    Returns:
        A Dataset in the schema: expected loss, river and hill, and the standard deviation of each over replicates as
        exact_loss_std, exact_river_std and exact_hill_std, on `eval_step`; lr and phase on `step`; curvature on `mode`.

    Raises:
        InputError: a value out of range.
    """
    setting = Setting(loss=loss, schedule=schedule, sigma=sigma, start=start, every=every)
    mean, variance = setting.start_moments()
    found = moments(
        loss, schedule.values(), setting.states(), sigma=sigma, hill_mean=mean[1:], hill_variance=variance[1:]
    )
    ds = build(
        {
            "step": np.arange(setting.total),
            "lr": schedule.values(),
            "phase": schedule.phases(),
            "eval_step": found.states,
            "mode": np.arange(len(loss.curvatures)),
            "curvature": loss.curvatures,
            "loss": found.expected_loss,
            "river": found.expected_river,
            "hill": found.expected_hill,
            "exact_loss_std": found.loss_std,
            "exact_river_std": found.river_std,
            "exact_hill_std": found.hill_std,
        },
        {},
        "theory",
    )
    title = f"exact moments: {loss.name} river, {schedule.describe()}"
    # No seed: nothing is drawn.
    return ds.assign_attrs(provenance(title, config=setting.config(), seed=0) | {"seed": "none"})


def _pieces(rates: FloatArray, cuts: IntArray, h: FloatArray, sigma: float) -> tuple[FloatArray, FloatArray]:
    """Compose the updates between neighbouring cuts: mean -> factor mean, variance -> factor^2 variance + noise.

    Both results have the shape (pieces, m). Pieces are ordered by length, longest first, so that those still under way
    at their j-th update are the first n of the order.
    """
    lengths = np.diff(cuts)
    order = np.argsort(-lengths, kind="stable")
    starts = cuts[:-1][order]
    under_way = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left")
    factors, noises = np.ones((lengths.size, h.size)), np.zeros((lengths.size, h.size))
    for j, n in enumerate(under_way):
        lr = rates[starts[:n] + j, None]
        factor = 1.0 - lr * h
        factors[:n] *= factor
        noises[:n] *= factor * factor
        noises[:n] += (lr * sigma) ** 2
    back = np.argsort(order, kind="stable")
    return factors[back], noises[back]
