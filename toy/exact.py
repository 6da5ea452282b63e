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

from .._checks import check_number, check_steps
from .._typing import ArrayLike, FloatArray, IntArray
from ..errors import InputError
from ..provenance import provenance
from ..schedules import Schedule
from ..schema import build
from .losses import LARGEST, StraightRiver
from .setting import Setting, check_sigma

_LARGEST = np.finfo(np.float64).max

# An unstable setting ends at infinity, and infinity times nothing is nan: both are shown, and not warned of.
_beyond_range = partial(np.errstate, over="ignore", invalid="ignore")


def stationary_variance(lr: float, curvature: ArrayLike, sigma: float) -> FloatArray:
    """v* = eta sigma^2 / (h (2 - eta h)), the variance at which a constant rate settles; shape of `curvature`.

    eta = `lr`, h = `curvature`, sigma = standard deviation of the gradient noise: the fixed point of the recursion at
    the top of this module (derived).

    Raises:
        InputError: a value out of range, or lr h >= 2, where there is none.

    >>> stationary_variance(0.1, 2.0, 1.5).item()
    0.0625
    """
    h = _stable_curvature(lr, curvature)
    check_sigma(sigma)
    return lr * sigma**2 / (h * (2.0 - lr * h))


def stationary_hill(lr: float, curvature: ArrayLike, sigma: float) -> FloatArray:
    """H = h v*/2 = eta sigma^2 / (2 (2 - eta h)), the expected hill loss of each direction; shape of `curvature`.

    Raises:
        InputError: as `stationary_variance`.

    >>> stationary_hill(0.1, 2.0, 1.5).item()
    0.0625
    """
    variance = stationary_variance(lr, curvature, sigma)
    hill: FloatArray = 0.5 * np.asarray(curvature, dtype=np.float64) * variance
    return hill


def optimal_decay(lr: float, curvature: float, steps: int) -> FloatArray:
    """The cooldown that leaves the least hill loss: eta_t = 1/(2/eta + h t), t = 0..steps-1; shape (steps,).

    Greedy and globally optimal for one hill direction h = `curvature` that starts from the stationary state of
    eta = `lr`; the first update halves the rate (derived; arXiv:2410.05192 shows the form).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> optimal_decay(0.1, 2.0, 3).round(6).tolist()
    [0.05, 0.045455, 0.041667]
    """
    h = float(_stable_curvature(lr, curvature))
    t = np.arange(check_steps("steps", steps, low=1, what="of the cooldown"), dtype=np.float64)
    return 1.0 / (2.0 / lr + h * t)


def optimal_final_hill(lr: float, curvature: float, sigma: float, steps: int) -> float:
    """H_n = (sigma^2/2) / (2/eta + h (n - 1)), the hill loss after the optimal cooldown of n = `steps` updates.

    It is the least that any n rates leave, and tends to sigma^2/(2 h n) whatever the plateau eta = `lr` was (derived).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> round(optimal_final_hill(0.1, 2.0, 1.5, 40), 8)
    0.01147959
    """
    check_sigma(sigma)
    return 0.5 * sigma**2 * float(optimal_decay(lr, curvature, steps)[-1])


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
    rates = _rates(lr)
    asked = np.asarray(states, dtype=np.int64)
    if asked.ndim != 1 or not asked.size or asked[0] < 0 or asked[-1] > rates.size or np.any(np.diff(asked) <= 0):
        raise InputError(f"states must be increasing numbers in 0..{rates.size}, got {states!r}")
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


def _rates(lr: ArrayLike) -> FloatArray:
    rates = np.asarray(lr, dtype=np.float64)
    if rates.ndim != 1:
        raise InputError(f"lr must be a row of rates, one for each update, got the shape {rates.shape}")
    bad = ~(np.isfinite(rates) & (rates >= 0))
    if bad.any():
        t = int(np.argmax(bad))
        raise InputError(f"lr must be finite rates of at least 0, got {rates[t]:g} for update {t}")
    return rates


def setting_moments(setting: Setting) -> Moments:
    """The moments of a whole setting at its recorded states."""
    mean, variance = setting.start_moments()
    lr, states = setting.schedule.values(), setting.states()
    return moments(setting.loss, lr, states, sigma=setting.sigma, hill_mean=mean, hill_variance=variance)


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
    found = setting_moments(setting)
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


def _stable_curvature(lr: float, curvature: ArrayLike) -> FloatArray:
    check_number("lr", lr, low=0.0, open_low=True)
    h = np.asarray(curvature, dtype=np.float64)
    if not np.all((h > 0) & (h <= LARGEST)):
        raise InputError(f"curvature must be > 0 and at most {LARGEST:g}, got {curvature!r}")
    if np.any(lr * h >= 2.0):
        steepest = float(h.max())
        raise InputError(
            f"SGD with rate {lr:g} does not settle at curvature {steepest:g}; use a rate below 2/h = {2.0 / steepest:g}"
        )
    return h
