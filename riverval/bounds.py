r"""The convex last-iterate bound of a schedule: what subgradient descent with its rates cannot exceed.

f is convex, x_1 the start, x_* a minimiser, D >= ||x_1 - x_*||, and x_{t+1} = x_t - eta_t g_t with subgradients g_t of
(mean) norm at most G_t. After Defazio et al. (arXiv:2310.07831, theorem 10), in the form of arXiv:2501.18965,

.. math::
    f(x_T) - f_* \le \Omega = \underbrace{\frac{D^2}{2S_1}}_{t_1} + \underbrace{\frac{1}{2S_1}\sum_{t=1}^T
    \eta_t^2G_t^2}_{t_2} + \underbrace{\frac12\sum_{k=1}^{T-1}\frac{\eta_k}{S_{k+1}}\,\frac{\sum_{t\ge k}\eta_t^2
    G_t^2}{S_k}}_{t_3}, \qquad S_k = \sum_{t=k}^T \eta_t .

Here eta_t is lr[t - 1] and G_t = grad_norm[t - 1]. The bound is one of the point x_T at which the last of T gradients
is taken, after T - 1 updates: the last update itself is free. Their schedules have one more entry, a 0 at the end, and
are evaluated without it; those of riverval end before it, so that both give the same numbers.

Scaling all rates by a turns the terms into t1/a + a (t2 + t3). A summation by parts (derived) makes

.. math:: t_2 + t_3 = \frac12\Bigl[\eta_TG_T^2 + \sum_{k<T}\frac{\eta_k^2G_k^2}{S_{k+1}}\Bigr],

of which each term knows only the rates that follow: the best rates come from a backward recursion, `optimal_rates`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma

from ._arrays import check_states, check_values
from ._checks import LARGEST, check_int, check_number, check_steps
from ._schedule import Schedule, rates_of
from ._typing import ArrayLike, FloatArray
from .errors import InputError


@dataclass(frozen=True)
class Bound:
    """The three terms of the bound, for rates as they are; all in units of the loss.

    Attributes:
        distance: t1, what is left of the way to the minimum; falls as one over the rates.
        noise: t2, the price of the gradients for an average of the iterates; grows with the rates.
        last: t3, what the last iterate adds to that price; likewise.
    """

    distance: float
    noise: float
    last: float

    @property
    def total(self) -> float:
        """Omega, the bound of f(x_T) - f_*."""
        return self.distance + self.noise + self.last

    @property
    def average(self) -> float:
        """t1 + t2 = (D^2 + sum eta_t^2 G_t^2)/(2 S): the weaker bound, of the average weighted by the rates."""
        return self.distance + self.noise

    @property
    def best_scale(self) -> float:
        """sqrt(t1 / (t2 + t3)): the factor on all rates that makes `total` least; infinite where all G are 0.

        Of a schedule of peak 1 it is the best base rate gamma*.
        """
        price = self.noise + self.last
        return math.sqrt(self.distance / price) if price else math.inf

    @property
    def best(self) -> float:
        """Omega* = 2 sqrt(t1 (t2 + t3)), the bound at the best scale; it depends on the shape of the schedule alone."""
        return 2.0 * math.sqrt(self.distance * (self.noise + self.last))

    @property
    def best_average(self) -> float:
        """2 sqrt(t1 t2), the weaker bound at its own best scale."""
        return 2.0 * math.sqrt(self.distance * self.noise)


# --- any schedule ----------------------------------------------------------------------------------------------------
def last_iterate_bound(schedule: Schedule | ArrayLike, *, grad_norm: ArrayLike = 1.0, distance: float = 1.0) -> Bound:
    """The bound at the top of this module, in O(T) time and memory.

    Args:
        schedule: a schedule, or the rate of each update, shape (T,); the last rate must be above 0.
        grad_norm: G, the gradient norm of every update, a number or shape (T,), >= 0.
        distance: D > 0, from the start to the minimum.

    Raises:
        InputError: no updates, a last rate of 0, or a value out of range.

    >>> from riverval import make_schedule
    >>> found = last_iterate_bound(make_schedule("wsd", peak_lr=1.0, steps=400, cooldown=0.2))
    >>> round(found.best_scale, 5), round(found.best, 5)
    (0.02537, 0.10932)
    """
    rates = rates_of(schedule)
    return _bound(rates, _norms(grad_norm, rates.size), _distance(distance))


def bounds_after(
    schedule: Schedule | ArrayLike, updates: ArrayLike, *, grad_norm: ArrayLike = 1.0, distance: float = 1.0
) -> list[Bound]:
    """The bound of the run cut off after each of the given numbers of updates.

    Each takes O(T), so that all T of them would take O(T^2): ask for the states of interest.

    Args:
        schedule, grad_norm, distance: as `last_iterate_bound`.
        updates: n in 1..T, increasing; the bound uses the first n rates.

    Raises:
        InputError: as `last_iterate_bound`, or numbers outside 1..T or not increasing.

    >>> [round(b.total, 4) for b in bounds_after([0.1] * 100, [1, 10, 100])]
    [5.05, 0.6914, 0.3589]
    """
    rates = rates_of(schedule)
    norms, start = _norms(grad_norm, rates.size), _distance(distance)
    asked = check_states(updates, rates.size)
    return [_bound(rates[:n], norms[:n], start) for n in asked.tolist()]


def _bound(rates: FloatArray, norms: FloatArray, distance: float) -> Bound:
    if not rates.size:
        raise InputError("the bound needs at least one update, got none")
    if rates[-1] == 0.0:
        raise InputError(
            f"the rate of update {rates.size - 1}, the last one, is 0, and the bound infinite; leave out the updates "
            f"of rate 0 at the end, which move nothing"
        )
    left = np.cumsum(rates[::-1])[::-1]  # S_k; sums of positive numbers from the end, so that no digits cancel
    prices = (rates * norms) ** 2
    later = np.cumsum(prices[::-1])[::-1]
    last = np.sum(rates[:-1] / left[1:] * (later[:-1] / left[:-1]))
    whole = float(left[0])
    return Bound(distance**2 / (2.0 * whole), float(later[0]) / (2.0 * whole), 0.5 * float(last))


# --- closed forms ----------------------------------------------------------------------------------------------------
def constant_bound(steps: int, lr: float = 1.0, *, grad_norm: float = 1.0, distance: float = 1.0) -> Bound:
    """The bound of T = `steps` updates at one rate: D^2/(2 lr T), lr G^2/2 and lr G^2 H_{T-1}/2 (arXiv:2501.18965).

    H_n = 1 + 1/2 + ... + 1/n, which grows as ln n: a constant rate pays for its last iterate forever.

    Raises:
        InputError: a value out of range.

    >>> round(constant_bound(400).best_scale, 5), round(constant_bound(400).best, 5)
    (0.01818, 0.13754)
    """
    T = check_steps("steps", steps, low=1)
    rate = check_number("lr", lr, low=0.0, high=LARGEST, open_low=True)
    price = 0.5 * rate * _norm(grad_norm) ** 2
    return Bound(_distance(distance) ** 2 / (2.0 * rate * T), price, price * _harmonic(T - 1))


def wsd_bound(steps: int, cooldown: int, lr: float = 1.0, *, grad_norm: float = 1.0, distance: float = 1.0) -> Bound:
    r"""The bound of a plateau at `lr` with a linear cooldown to zero over the last n updates, in O(1) (derived).

    With P = T - n, s = P + (n + 1)/2 the sum of the rates, and the digamma function psi, at lr = G = D = 1

    .. math::
        t_1 = \frac{1}{2s}, \qquad t_2 = \frac{1}{2s}\Bigl[P + \frac{(n+1)(2n+1)}{6n}\Bigr], \qquad
        t_2 + t_3 = \frac12\Bigl[\psi(s) - \psi\bigl(\tfrac{n+1}{2}\bigr) + 2 + \frac{2H_{n-1} - 1}{n}\Bigr],

    by the summation by parts at the top of this module. n = 1 is the constant rate, n = T the linear decay. For a fixed
    fraction c = n/T of a long run t2 + t3 tends to 1 + ln(2/c - 1)/2: no logarithm of T is left.

    Args:
        steps: T.
        cooldown: n in 1..T; as in `riverval.schedules` its first update still has the full rate, its last one lr/n.
        lr, grad_norm, distance: gamma > 0, G >= 0 and D > 0.

    Raises:
        InputError: a value out of range.

    >>> round(wsd_bound(400, 80).best_scale, 5), round(wsd_bound(400, 80).best, 5)
    (0.02537, 0.10932)
    """
    T = check_steps("steps", steps, low=1)
    n = check_int("cooldown", cooldown, low=1, high=T, what="updates")
    rate = check_number("lr", lr, low=0.0, high=LARGEST, open_low=True)
    half, price = 0.5 * (n + 1), rate * _norm(grad_norm) ** 2
    whole = T - n + half
    both = 0.5 * (float(digamma(whole) - digamma(half)) + 2.0 + (2.0 * _harmonic(n - 1) - 1.0) / n)
    noise = (T - n + half * (2 * n + 1) / (3 * n)) / (2.0 * whole)
    return Bound(_distance(distance) ** 2 / (2.0 * rate * whole), price * noise, price * max(both - noise, 0.0))


def wsd_upper_bound(steps: int, cooldown: int, *, grad_norm: float = 1.0, distance: float = 1.0) -> float:
    r"""The closed form of arXiv:2501.18965, above ``wsd_bound(steps, cooldown).best``.

    .. math::
        DG\,\Bigl\{\frac{4}{T+T_0}\Bigl[\frac23 + \frac{T+2T_0}{3(T+T_0)} + H_{T+T_0-2} - H_{T-T_0+1} -
        \frac{(T-T_0)(T_0-1)}{3(T-T_0+2)(T+T_0)} + \frac{1}{(T-T_0)^2} + \frac{H_{T-T_0-1}}{T-T_0+1}\Bigr]
        \Bigr\}^{1/2}

    T = `steps`, G = `grad_norm`, D = `distance`, and T_0 = T - n + 1 with n = `cooldown`, the updates at the full rate.
    Its difference of harmonic numbers is twice the logarithm of the exact form, so that it lies above by a factor that
    grows as the cooldown gets shorter. Without a plateau, n = T, it lies below the exact one (measured).

    Raises:
        InputError: `cooldown` outside 2..T-1, or a value out of range.

    >>> round(wsd_upper_bound(400, 80), 5)
    0.13441
    """
    T = check_steps("steps", steps, low=3)
    T0 = T - check_int("cooldown", cooldown, low=2, high=T - 1, what="updates") + 1
    n, both = T - T0, T + T0
    logarithm = _harmonic(both - 2) - _harmonic(n + 1)
    fraction = (T + 2 * T0) / (3 * both) - n * (T0 - 1) / (3 * (n + 2) * both)
    rest = 1.0 / n**2 + _harmonic(n - 1) / (n + 1)
    return _distance(distance) * _norm(grad_norm) * math.sqrt(4.0 / both * (2.0 / 3.0 + fraction + logarithm + rest))


def _harmonic(n: int) -> float:
    return float(digamma(n + 1.0) + np.euler_gamma) if n else 0.0


# --- the best rates --------------------------------------------------------------------------------------------------
def optimal_rates(steps: int, *, grad_norm: ArrayLike = 1.0, distance: float = 1.0) -> FloatArray:
    r"""The rates of least bound among all sequences of T = `steps`, base rate included; shape (steps,).

    With A_T = G_T^2 the least price of what follows update k is proportional to the rates that are left, A_{k+1}
    S_{k+1}, and the best share of them to keep is S_{k+1}/S_k = G_k / sqrt(G_k^2 + A_{k+1}), which gives

    .. math:: A_k = 2 G_k \bigl(\sqrt{G_k^2 + A_{k+1}} - G_k\bigr), \qquad S_1 = D/\sqrt{A_1}, \qquad
              \Omega = D \sqrt{A_1}

    (derived). For a constant G, A_k tends to 4 G^2/(T - k) and the rates to a linear decay, the optimum of
    arXiv:2310.07831, and Omega to 2 D G/sqrt(T); only the last rate stands out, as its update is free. The norms count
    as given: that they would change with the rates is left out.

    Args:
        steps: T.
        grad_norm: G, the gradient norm of every update, a number or shape (T,), > 0.
        distance: D > 0.

    Raises:
        InputError: a value out of range, or a gradient norm of 0, which would ask for an infinite rate.

    >>> rates = optimal_rates(400)
    >>> round(last_iterate_bound(rates).total, 5), (rates[[0, 100, 200, 300]] / rates[0]).round(3).tolist()
    (0.10019, [1.0, 0.749, 0.499, 0.249])
    """
    T = check_steps("steps", steps, low=1)
    norms = _norms(grad_norm, T)
    if np.any(norms == 0.0):
        raise InputError(f"grad_norm must be above 0 for the best rates, got 0 for update {np.argmin(norms)}")
    kept = np.ones(T)  # S_{k+1}/S_k, of the last update unused
    values = norms.tolist()
    price = values[-1] ** 2
    for k in range(T - 2, -1, -1):
        root = math.sqrt(values[k] ** 2 + price)
        kept[k] = values[k] / root
        price = 2.0 * values[k] * price / (root + values[k])  # 2 G (root - G), without its cancellation
    left = _distance(distance) / math.sqrt(price) * np.concatenate([[1.0], np.cumprod(kept[:-1])])
    rates: FloatArray = left * np.append(1.0 - kept[:-1], 1.0)
    return rates


# --- against measured losses -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BoundFit:
    """loss = offset + M1 t1 + M2 (t2 + t3), with t1, t2, t3 the terms of each run at D = G = 1.

    Attributes:
        offset, distance2, norm2: C, M1 and M2; the last two stand for D^2 and G^2 if the bound were tight.
        errors: their standard errors, from the residuals; nan where there are as many runs as constants.
        mae, r2: mean absolute error and coefficient of determination on the runs of the fit.
    """

    offset: float
    distance2: float
    norm2: float
    errors: tuple[float, ...]
    mae: float
    r2: float

    def predict(self, bound: Bound) -> float:
        """The loss at the end of a run with this bound, taken at D = G = 1."""
        return self.offset + self.distance2 * bound.distance + self.norm2 * (bound.noise + bound.last)

    def best_scale(self, bound: Bound) -> float:
        """The factor on all rates of the run that makes the predicted loss least.

        Raises:
            InputError: a fit whose M1 or M2 is not above 0, so that it has no such factor.
        """
        if not (self.distance2 > 0.0 and self.norm2 > 0.0):
            raise InputError(
                f"the fit has no best rate: it needs M1 and M2 above 0, got {self.distance2:g} and {self.norm2:g}; "
                f"fit it to runs of more base rates"
            )
        return math.sqrt(self.distance2 / self.norm2) * bound.best_scale


def fit_bound(bounds: Sequence[Bound], losses: ArrayLike) -> BoundFit:
    """Fit loss(c, gamma) = C + M1 t1(c)/gamma + M2 gamma (t2 + t3)(c) to the losses at the end of runs; least squares.

    Bounds of the rates as they were contain gamma already. The form is that of arXiv:2501.18965, for all runs at once.

    Args:
        bounds: `last_iterate_bound` of each run at D = G = 1; at least three, of different schedules.
        losses: the loss at the end of each run, shape (runs,).

    Raises:
        InputError: other numbers of bounds and losses, fewer than three, or runs that do not tell the constants apart.

    >>> bounds = [last_iterate_bound([rate] * n) for rate in (0.01, 0.1) for n in (50, 100)]
    >>> fit = fit_bound(bounds, [2.0 + 0.1 * b.distance + 0.5 * (b.noise + b.last) for b in bounds])
    >>> round(fit.offset, 9), round(fit.distance2, 9), round(fit.norm2, 9)
    (2.0, 0.1, 0.5)
    """
    measured = check_values("losses", losses, what="at the end of each run")
    if measured.shape != (len(bounds),) or len(bounds) < 3:
        raise InputError(
            f"a fit of three constants needs one loss for each of at least 3 bounds, got {len(bounds)} bounds and "
            f"losses of the shape {measured.shape}"
        )
    terms = np.array([[1.0, b.distance, b.noise + b.last] for b in bounds])
    size = np.sqrt(np.mean(terms**2, axis=0))
    found, _, rank, _ = np.linalg.lstsq(terms / size, measured, rcond=1e-9)
    if rank < 3:
        raise InputError("the runs do not tell the three constants apart; add runs of another base rate or schedule")
    gap = measured - terms / size @ found
    degrees = len(bounds) - 3
    scale = float(gap @ gap) / degrees if degrees else math.nan
    errors = np.sqrt(scale * np.diag(np.linalg.inv((terms / size).T @ (terms / size)))) / size
    spread = float(np.sum((measured - measured.mean()) ** 2))
    r2 = 1.0 - float(gap @ gap) / spread if spread else math.nan
    C, M1, M2 = (found / size).tolist()
    return BoundFit(C, M1, M2, tuple(errors.tolist()), float(np.mean(np.abs(gap))), r2)


# --- checks ----------------------------------------------------------------------------------------------------------
def _norm(value: float) -> float:
    return check_number("grad_norm", value, low=0.0, high=LARGEST)


def _norms(value: ArrayLike, total: int) -> FloatArray:
    norms = check_values("grad_norm", value, low=0.0)
    if norms.shape not in ((), (total,)):
        raise InputError(f"grad_norm must be a number or one for each of {total} updates, got the shape {norms.shape}")
    return np.broadcast_to(norms, (total,))


def _distance(value: float) -> float:
    return check_number("distance", value, low=0.0, high=LARGEST, open_low=True, what="from the start to the minimum")
