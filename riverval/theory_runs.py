r"""Whole runs in a straight river valley: crossing of two rates, length of the cooldown, schedules with checkpoints.

The valley is L = -c x + sum_i h_i y_i^2/2 under SGD with noise of standard deviation sigma in each coordinate. Then
E[x] = c S for every sequence of rates, with S the sum of the rates, so the river part of the loss is -c^2 S; the hill
part is `riverval.theory.final_variance`. All formulas are derived; the setting is that of arXiv:2410.05192.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import digamma

from ._arrays import check_curvature, check_rates, check_values
from ._checks import LARGEST, check_int, check_number, check_steps
from ._typing import ArrayLike, FloatArray
from .errors import InputError
from .schedules import WSD, Schedule
from .shapes import Shape
from .theory import final_variance, stationary_hill, stationary_variance


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A decayed model: what it cost and what it is expected to be worth.

    Attributes:
        updates: updates on the path that leads to it.
        area: S, the sum of the rates on that path.
        river: expected river loss -c^2 S.
        hill: expected hill loss.
    """

    updates: int
    area: float
    river: float
    hill: float

    @property
    def loss(self) -> float:
        """Expected loss, river + hill."""
        return self.river + self.hill


# --- any rates -------------------------------------------------------------------------------------------------------
def checkpoint_after(
    rates: ArrayLike, slope: float, curvatures: ArrayLike, sigma: ArrayLike, *, start: ArrayLike = 0.0
) -> Checkpoint:
    """The state after any rates, from x = 0 and hill coordinates whose mean square is `start`.

    Args:
        rates: rate of each update, shape (T,).
        slope: c >= 0.
        curvatures: h > 0, shape (m,).
        sigma: standard deviation of the gradient noise, a number or shape (m,).
        start: mean square of the hill coordinates before the first update, likewise.

    Raises:
        InputError: a value out of range.

    >>> round(checkpoint_after([0.1, 0.1], 0.5, [2.0], 0.0, start=1.0).loss, 9)
    0.3596
    """
    c = _check_slope(slope)
    eta = check_rates(rates)
    h = np.atleast_1d(check_curvature(curvatures))
    variance = final_variance(eta, h, sigma, start=start)
    area = float(eta.sum())
    return Checkpoint(updates=eta.size, area=area, river=-(c**2) * area, hill=float(0.5 * np.sum(h * variance)))


def checkpoints(
    schedule: Schedule, slope: float, curvatures: ArrayLike, sigma: ArrayLike, *, start: ArrayLike = 0.0
) -> list[Checkpoint]:
    """The checkpoints of one continuous run: the state at the end of each of its cooldowns.

    WSD-S and the cyclic cosine have one for each cycle, WSD and the cosine one. Arguments as `checkpoint_after`.

    Raises:
        InputError: a value out of range, or a schedule without a cooldown.

    >>> from riverval import make_schedule
    >>> budgets = (12_500, 25_000, 50_000)
    >>> plan = make_schedule("wsd-s", peak_lr=0.02, steps=50_000, budgets=budgets, cooldown_of="budget")
    >>> [round(point.loss, 3) for point in checkpoints(plan, 0.1, [1.0], 0.1)]
    [-2.314, -4.442, -8.698]
    """
    ends = [stop for _, stop in schedule.windows("cooldown")]
    if not ends:
        raise InputError(f"{schedule.describe()} has no cooldown, so it has no checkpoint; use one that decays")
    rates = schedule.values()
    return [checkpoint_after(rates[:stop], slope, curvatures, sigma, start=start) for stop in ends]


def wsd_family(peak_lr: float, budgets: Sequence[int], *, cooldown: float, shape: Shape) -> list[WSD]:
    """One WSD run for each budget, all of them branches of one trunk at the rate `peak_lr`.

    Together they cost the trunk of the longest and all cooldowns, see `family_updates`.

    Raises:
        InputError: as `riverval.schedules.WSD`.
    """
    return [WSD(peak_lr=peak_lr, steps=budget, cooldown=cooldown, shape=shape) for budget in budgets]


def family_updates(branches: Sequence[Schedule]) -> int:
    """Updates that a family of branches of one trunk costs: the longest trunk once, and every cooldown.

    Budgets 12500, 25000, 50000 with cooldowns of a tenth cost 53750, as WSD-S does when its cooldowns are of the same
    lengths and its stable updates those of the trunk; by the paths alone it is 50000 against 53750. Under the first
    accounting WSD-S ends lower, under the second WSD does.

    >>> from riverval.shapes import Inverse
    >>> family_updates(wsd_family(0.02, (12_500, 25_000, 50_000), cooldown=0.1, shape=Inverse()))
    53750
    """
    cooldowns = [sum(stop - start for start, stop in branch.windows("cooldown")) for branch in branches]
    return max(branch.total - n for branch, n in zip(branches, cooldowns, strict=True)) + sum(cooldowns)


def wsds_gain(earlier: int, slope: float, lr: float, area: float, *, same_trunk: bool) -> float:
    """How much lower than WSD's a checkpoint of WSD-S ends, to leading order: negative where it ends higher.

    Earlier cooldowns of n = `earlier` updates in all, of which each travels the share A = `area` of what the plateau
    would (`riverval.theory_decay.shape_area`), are part of the path of WSD-S only. If it has all stable updates of the
    WSD branch besides (`same_trunk`, equal total cost), it gains c^2 eta A n. If both paths have the same length, it
    loses c^2 eta (1 - A) n. The hill part is the same (derived).

    Raises:
        InputError: a value out of range.

    >>> [round(wsds_gain(3750, 0.1, 0.02, 0.2558, same_trunk=same), 3) for same in (True, False)]
    [0.192, -0.558]
    """
    n = check_steps("earlier", earlier, what="updates of the earlier cooldowns")
    check_number("lr", lr, low=0.0, high=LARGEST)
    share = check_number("area", area, low=0.0, high=1.0, what="mean rate of a cooldown as a fraction of the plateau's")
    return _check_slope(slope) ** 2 * lr * n * (share if same_trunk else share - 1.0)


# --- two constant rates ----------------------------------------------------------------------------------------------
def crossing_time(slope: float, sigma: float, *, modes: int = 1) -> float:
    """m sigma^2 / (4 c^2): updates after which the loss at any larger constant rate is below that at any smaller one.

    To leading order in eta h, and the same for every pair of rates; between m equal hills it is exactly
    m sigma^2 / (c^2 (2 - eta_1 h)(2 - eta_2 h)) once both have settled, which is later. See `crossing_step`.

    Raises:
        InputError: a value out of range, or no slope.

    >>> round(crossing_time(0.05, 1.0, modes=4), 9)
    400.0
    """
    c = _check_slope(slope, open_low=True)
    noise = check_number("sigma", sigma, low=0.0, high=LARGEST)
    return check_int("modes", modes, low=1, what="number of hills") * noise**2 / (4.0 * c**2)


def crossing_step(
    first: float, second: float, slope: float, curvatures: ArrayLike, sigma: ArrayLike, *, start: ArrayLike = 0.0
) -> float:
    """The time, in updates, from which on the larger of two constant rates has the lower expected loss.

    The last zero of the exact difference of the two losses, as a real number (derived); 0 where the larger rate is
    better from the start.

    Args:
        first, second: two rates, in any order.
        slope, curvatures, sigma, start: as `checkpoint_after`, with c > 0.

    Raises:
        InputError: equal rates, lr h >= 2, or a value out of range.

    >>> round(crossing_step(0.025, 0.05, 0.05, [1.0] * 4, 1.0), 1)
    415.4
    """
    c = _check_slope(slope, open_low=True)
    low, high = sorted((first, second))
    h = np.atleast_1d(check_curvature(curvatures))
    square = np.broadcast_to(check_values("start", start, low=0.0, what="mean square at the start"), h.shape)
    limits = {lr: stationary_variance(lr, h, sigma) for lr in (low, high)}
    if len(limits) < 2:
        raise InputError(f"two different rates are needed to cross, got {first!r} twice")

    def gap(t: ArrayLike) -> FloatArray:
        time = np.asarray(t)[..., None]
        hills = [
            np.sum(0.5 * h * (limit + np.abs(1.0 - lr * h) ** (2.0 * time) * (square - limit)), axis=-1)
            for lr, limit in limits.items()
        ]
        difference: FloatArray = hills[1] - hills[0] - c**2 * (high - low) * np.asarray(t)
        return difference

    # Nothing crosses after the river has gained more than the hills can ever differ.
    last = float(np.sum(0.5 * h * np.maximum(square, limits[high]))) / (c**2 * (high - low)) + 1.0
    times = np.concatenate([[0.0], np.geomspace(1e-3, last, 4096)])
    above = np.flatnonzero(gap(times) > 0.0)
    if not above.size:
        return 0.0
    return float(brentq(gap, times[above[-1]], times[above[-1] + 1], xtol=1e-9))


# --- a river whose hills steepen -------------------------------------------------------------------------------------
def sharpening_speed(lr: float, slope: float, sigma: float, growth: float, *, modes: int = 1) -> float:
    """eta (c - m eta sigma^2 k / 4): mean progress in one update where all hills steepen as h = h0 exp(k x).

    The mean of -dL/dx is c - h' v*/2 for each hill, with v* = eta sigma^2/(2 h): the noise pushes towards the wide end.
    For small eta h, and while h changes little in one relaxation time, k c eta << eta h. A widening valley has k < 0.

    Raises:
        InputError: a value out of range.

    >>> round(sharpening_speed(0.05, 0.05, 1.0, 1.0), 6)
    0.001875
    """
    check_number("lr", lr, low=0.0, high=LARGEST)
    return lr * (_check_slope(slope) - lr * _entropic_force(sigma, growth, modes))


def fastest_rate(slope: float, sigma: float, growth: float, *, modes: int = 1) -> float:
    """2 c / (m k sigma^2), the rate of the fastest progress in a sharpening valley; at twice this rate it stalls.

    Raises:
        InputError: a value out of range, or a valley that does not sharpen (k > 0 and sigma > 0).

    >>> fastest_rate(0.05, 1.0, 1.0)
    0.1
    """
    force = _entropic_force(sigma, growth, modes)
    if force <= 0.0:
        raise InputError(f"without noise or in a valley with growth {growth!r} <= 0, the largest rate is the fastest")
    return _check_slope(slope) / (2.0 * force)


def _entropic_force(sigma: float, growth: float, modes: int) -> float:
    """m sigma^2 k / 4, the backward force of the noise for each unit of the rate."""
    noise = check_number("sigma", sigma, low=0.0, high=LARGEST)
    k = check_number("growth", growth, low=-LARGEST, high=LARGEST, what="of the curvature along the river")
    return check_int("modes", modes, low=1, what="number of hills") * noise**2 * k / 4.0


# --- how long to cool down -------------------------------------------------------------------------------------------
def cooldown_length(slope: float, lr: float, curvature: float, sigma: float, *, modes: int = 1) -> float:
    r"""The best length of an optimal cooldown, in updates, whatever the length of the run.

    .. math:: T_d = \frac{u - 2/\eta}{h}, \qquad u = \frac{1 + \sqrt{1 + 2\eta m\sigma^2 h/c^2}}{2\eta}
              \qquad\bigl(\approx \tfrac{\sigma}{c}\sqrt{m/(2h\eta)}\bigr)

    for m = `modes` hills of one curvature h, from the stationary state of eta = `lr` (derived). It is positive iff
    m sigma^2 h eta > 4 c^2, else no cooldown pays and it is 0. Time is taken as continuous: the best whole number of
    updates, where `cooldown_gain` is largest, is about one update longer.

    Raises:
        InputError: lr h >= 2, no slope, or a value out of range.

    >>> round(cooldown_length(0.03, 0.1, 2.0, 1.5), 2)
    71.6
    """
    c = _check_slope(slope, open_low=True)
    hills = _modes_hill(lr, curvature, sigma, modes)[1]
    u = (1.0 + math.sqrt(1.0 + 2.0 * lr * hills * curvature / c**2)) / (2.0 * lr)
    return max((u - 2.0 / lr) / curvature, 0.0)


def cooldown_gain(
    steps: ArrayLike, slope: float, lr: float, curvature: float, sigma: float, *, modes: int = 1
) -> FloatArray:
    """What an optimal cooldown of n = `steps` updates leaves below n more updates at the plateau; shape of `steps`.

    m (H - H_n) - c^2 (eta n - sum_t eta_t) with eta_t = 1/(2/eta + h t), t = 0..n-1; exact (derived).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> gain = cooldown_gain(range(200), 0.03, 0.1, 2.0, 1.5)
    >>> int(gain.argmax()), gain.max().round(5).item()
    (73, 0.05004)
    """
    c = _check_slope(slope)
    hill, square = _modes_hill(lr, curvature, sigma, modes)
    n = check_values("steps", steps if np.ndim(steps) == 0 else list(steps), low=0.0, high=1e9)  # type: ignore[arg-type]
    inverse = 2.0 / lr
    area = (digamma(inverse / curvature + n) - digamma(inverse / curvature)) / curvature
    final = np.where(n > 0, 0.5 * square / (inverse + curvature * (n - 1.0)), hill)
    gain: FloatArray = hill - final - c**2 * (lr * n - area)
    return gain


def _modes_hill(lr: float, curvature: float, sigma: float, modes: int) -> tuple[float, float]:
    """The stationary hill loss of m equal hills, and m sigma^2."""
    m = check_int("modes", modes, low=1, what="number of hills")
    return m * float(stationary_hill(lr, curvature, sigma)), m * float(sigma) ** 2


def power_river_length(
    total: int, *, scale: float, exponent: float, lr: float, curvature: float, sigma: float, modes: int = 1
) -> float:
    """The best length of an optimal cooldown in a run of T = `total` updates down a river of loss A S^-a.

    A = `scale`, a = `exponent`, S the sum of all rates. The slope of the river falls as the run goes on, c^2 = a A
    S^(-a-1) in `cooldown_length`, so the length grows as T^((1+a)/2) and its fraction of the run changes as T^((a-1)/2)
    while it is small. Found by search over the continuous length (derived).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> options = dict(scale=1.0, exponent=0.5, lr=0.1, curvature=1.0, sigma=0.3)
    >>> [round(power_river_length(n, **options) / n, 3) for n in (10_000, 100_000)]
    [0.015, 0.009]
    """
    T = check_steps("total", total, low=2, what="updates of the run")
    A = check_number("scale", scale, low=0.0, high=LARGEST, open_low=True)
    a = check_number("exponent", exponent, low=0.0, high=100.0, open_low=True)
    square = _modes_hill(lr, curvature, sigma, modes)[1]

    def loss(log: float) -> float:
        n = math.exp(log)
        area = lr * (T - n) + math.log1p(0.5 * lr * curvature * n) / curvature
        return A * math.pow(area, -a) + 0.5 * square / (2.0 / lr + curvature * n)

    # In logarithms: the best length is a small part of long runs.
    found = minimize_scalar(loss, bounds=(math.log(1e-3), math.log(T)), method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x)


def _check_slope(slope: float, *, open_low: bool = False) -> float:
    return check_number(
        "slope", slope, low=0.0, high=LARGEST, open_low=open_low, what="fall of the loss along the river"
    )
