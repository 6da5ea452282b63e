r"""The best rates of a cooldown between several hills and along a river, by numerical optimal control.

For one hill the best decay is known, `riverval.theory.optimal_decay`. With several curvatures, noises or starts, or
with river progress to weigh against the hills, the T rates are found together: minimise (derived)

.. math:: J(\eta) = -c^2\sum_t \eta_t + \tfrac12\sum_i h_i v_{i,T}, \qquad
          v_{i,t+1} = (1-\eta_t h_i)^2 v_{i,t} + \eta_t^2\sigma_i^2 .

With the adjoint :math:`p_{i,T} = h_i/2,\ p_{i,t} = (1-\eta_t h_i)^2 p_{i,t+1}` the gradient is
:math:`\partial J/\partial\eta_t = -c^2 + 2\sum_i p_{i,t+1}(\eta_t(h_i^2 v_{i,t} + \sigma_i^2) - h_i v_{i,t})`: one pass
forwards and one backwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_banded
from scipy.optimize import minimize

from .._arrays import check_curvature, check_noise, check_rates, check_values
from .._checks import LARGEST, check_int, check_number
from .._typing import ArrayLike, FloatArray
from ..errors import InputError

MOST_RATES = 20_000
"""Updates of the longest cooldown that is optimised: a sweep over one takes about 0.2 s."""


@dataclass(frozen=True)
class Control:
    """The best rates that were found, and how good they are.

    Attributes:
        lr: the rates, shape (T,).
        river: -c^2 sum(lr).
        hill: expected hill loss at the end.
        residual: how far any rate is from its own best value, the others being given, as a fraction of the largest:
            0 where the first-order (KKT) conditions hold.
        lower_bound: a value that no rates in the bounds can go below: each hill with its own optimal decay, and the
            highest rate along the whole river; minus infinity with a slope and no highest rate.
    """

    lr: FloatArray
    river: float
    hill: float
    residual: float
    lower_bound: float

    @property
    def loss(self) -> float:
        """J = river + hill."""
        return self.river + self.hill


@dataclass(frozen=True)
class Valley:
    """The problem: hills of curvatures h, noises sigma and variances at the start (all (m,)), and the slope c."""

    curvatures: FloatArray
    sigma: FloatArray
    start: FloatArray
    slope: float

    def value_and_gradient(self, lr: FloatArray) -> tuple[float, FloatArray]:
        """J and its gradient, by the adjoint recursion."""
        v, h, rates = self.variances(lr), self.curvatures, lr[:, None]
        # p of states 1..T: h/2 times the factors of the later updates.
        later = np.concatenate([np.ones((1, h.size)), (1.0 - rates[:0:-1] * h) ** 2])
        p = 0.5 * h * np.cumprod(later, axis=0)[::-1]
        gradient = 2.0 * np.sum(p * (rates * (h**2 * v[:-1] + self.sigma**2) - h * v[:-1]), axis=1) - self.slope**2
        return 0.5 * float(h @ v[-1]) - self.slope**2 * float(lr.sum()), gradient

    def variances(self, lr: FloatArray) -> FloatArray:
        """v of every state, (T + 1, m): the recursion as a bidiagonal system for each hill."""
        v = np.empty((lr.size + 1, self.start.size))
        band = np.ones((2, lr.size + 1))
        for i, (h, noise) in enumerate(zip(self.curvatures, self.sigma**2, strict=True)):
            band[1, :-1] = -((1.0 - lr * h) ** 2)
            added = np.concatenate([self.start[i : i + 1], lr**2 * noise])
            v[:, i] = solve_banded((1, 0), band, added, check_finite=False)
        return v

    def greedy(self, steps: int, low: float, high: float) -> FloatArray:
        """Rates that each minimise the loss after their own update; for one hill and no slope they are the best."""
        v, rates = self.start, np.empty(steps)
        for t in range(steps):
            rates[t] = self._best_rate(0.5 * self.curvatures, v, low, high)
            v = (1.0 - rates[t] * self.curvatures) ** 2 * v + rates[t] ** 2 * self.sigma**2
        return rates

    def sweep(self, lr: FloatArray, low: float, high: float) -> tuple[FloatArray, float]:
        """Minimise over each rate in turn, last to first, J being quadratic in each; and the largest relative change.

        J never rises, and where nothing changes the KKT conditions hold.
        """
        v, p, rates = self.variances(lr), 0.5 * self.curvatures, lr.copy()
        for t in range(lr.size - 1, -1, -1):
            rates[t] = self._best_rate(p, v[t], low, high)
            p = (1.0 - rates[t] * self.curvatures) ** 2 * p
        return rates, float(np.abs(rates - lr).max() / max(rates.max(), 1e-300))

    def residual(self, lr: FloatArray, low: float, high: float) -> float:
        """See `Control`."""
        v, p, worst = self.variances(lr), 0.5 * self.curvatures, 0.0
        for t in range(lr.size - 1, -1, -1):
            worst = max(worst, abs(self._best_rate(p, v[t], low, high) - lr[t]))
            p = (1.0 - lr[t] * self.curvatures) ** 2 * p
        return worst / max(float(lr.max()), 1e-300)

    def _best_rate(self, p: FloatArray, v: FloatArray, low: float, high: float) -> float:
        """The rate that minimises -c^2 eta + sum p ((1 - eta h)^2 v + eta^2 sigma^2) within the bounds."""
        bend = float(p @ (self.curvatures**2 * v + self.sigma**2))
        top = 0.5 * self.slope**2 + float(p @ (self.curvatures * v))
        return min(max(top / bend if bend > 0.0 else (high if top > 0.0 else low), low), high)


def optimal_rates(
    steps: int,
    *,
    curvatures: ArrayLike,
    sigma: ArrayLike,
    start: ArrayLike,
    slope: float = 0.0,
    highest: float | None = None,
    lowest: float = 0.0,
    guess: ArrayLike | None = None,
) -> Control:
    """The rates of T = `steps` updates that leave the least expected loss J (top of this module).

    From the greedy rates by L-BFGS-B, then by sweeps over single rates until none changes. J is quadratic in each rate
    but not convex in all, so what is found is a local minimum; its `residual` says how exactly.

    Args:
        steps: T, from 1 to 20000.
        curvatures: h_i > 0, shape (m,).
        sigma: standard deviation of the gradient noise, a number or (m,).
        start: variance (mean square) of each hill coordinate before the first update, likewise.
        slope: c of the river; 0 leaves only the hills.
        highest: upper bound of every rate; None: none. A plateau's rate makes this the best end of a run at that rate.
        lowest: lower bound of every rate.
        guess: rates to begin with instead of the greedy ones, shape (T,).

    Raises:
        InputError: a value out of range.

    >>> found = optimal_rates(3, curvatures=[2.0], sigma=1.5, start=0.0625)
    >>> found.lr.round(6).tolist(), found.residual < 1e-12
    ([0.05, 0.045455, 0.041667], True)
    """
    T = check_int("steps", steps, low=1, high=MOST_RATES, what="updates to optimise")
    c = check_number("slope", slope, low=0.0, high=LARGEST, what="of the river")
    low = check_number("lowest", lowest, low=0.0, high=LARGEST, what="bound of the rates")
    high = math.inf
    if highest is not None:
        high = check_number("highest", highest, low=low, high=LARGEST, what="bound of the rates, above the lowest")
    valley = _valley(curvatures, sigma, start, c)
    rates = valley.greedy(T, low, high) if guess is None else np.clip(check_rates(guess), low, high)
    if rates.size != T:
        raise InputError(f"guess must have {T} rates, one for each update, got {rates.size}")
    rates = _descend(valley, rates, low, high)
    for _ in range(_MOST_SWEEPS):
        rates, change = valley.sweep(rates, low, high)
        if change < _TOLERANCE:
            break
    v = valley.variances(rates)[-1]
    return Control(
        lr=rates,
        river=-(c**2) * float(rates.sum()),
        hill=0.5 * float(valley.curvatures @ v),
        residual=valley.residual(rates, low, high),
        lower_bound=_lower_bound(valley, T, high),
    )


_MOST_SWEEPS, _TOLERANCE = 100, 1e-12


def _descend(valley: Valley, rates: FloatArray, low: float, high: float) -> FloatArray:
    """L-BFGS-B over rates in units of their size, and the loss in units of its own."""
    unit = float(rates.max()) or 1.0
    scale = max(abs(valley.value_and_gradient(rates)[0]), 1e-300)

    def scaled(x: FloatArray) -> tuple[float, FloatArray]:
        loss, gradient = valley.value_and_gradient(unit * x)
        return loss / scale, gradient * (unit / scale)

    bounds = [(low / unit, None if math.isinf(high) else high / unit)] * rates.size
    options = {"maxiter": 500, "ftol": 1e-15, "gtol": 1e-12}
    with np.errstate(over="ignore", invalid="ignore"):  # a trial rate that is far too high
        found = minimize(scaled, rates / unit, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    better = np.clip(unit * found.x, low, high)
    return better if valley.value_and_gradient(better)[0] <= valley.value_and_gradient(rates)[0] else rates


def _lower_bound(valley: Valley, steps: int, high: float) -> float:
    """Each hill alone, by 1/v <- 1/v + h^2/sigma^2 in every update, and the river at the highest rate."""
    noise, h = valley.sigma**2, valley.curvatures
    alone = np.divide(valley.start * noise, noise + steps * h**2 * valley.start, out=np.zeros_like(h), where=noise > 0)
    river = valley.slope**2 * steps * high if valley.slope else 0.0
    return 0.5 * float(h @ alone) - river


def _valley(curvatures: ArrayLike, sigma: ArrayLike, start: ArrayLike, slope: float) -> Valley:
    values = (
        check_curvature(curvatures),
        check_noise(sigma),
        check_values("start", start, low=0.0, what="variances at the start"),
    )
    try:
        h, noise, first = (np.atleast_1d(v) for v in np.broadcast_arrays(*values))
    except ValueError:
        shapes = ", ".join(str(v.shape) for v in values)
        raise InputError(f"curvatures, sigma and start must be numbers or rows of one length, got {shapes}") from None
    if h.ndim != 1:
        raise InputError(f"curvatures, sigma and start must be numbers or rows, got the shape {h.shape}")
    return Valley(h, noise, first, slope)
