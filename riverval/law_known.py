r"""The laws of loss curves that have been published, as columns for one fitting engine.

Symbols of all formulas: eta_t = lr[t] the rate of update t, n updates done, S = S_n = sum_{t<n} eta_t the cumulative
rate with the warmup in it. Every law sees lr[0..n-1] and nothing later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import lfilter
from scipy.special import gammaln

from ._checks import check_number, pick
from ._typing import FloatArray
from .law_base import Law, Theta, Track, exponential_rates, moves, power_of_time, register
from .relaxation import relaxed_sums

PUBLISHED: dict[str, dict[str, float]] = {
    "25M": {"L0": 3.0405, "A": 0.5247, "B": 363.79, "alpha": 0.5079, "C": 2.0656, "beta": 0.5828, "gamma": 0.6414},
    "100M": {"L0": 2.6514, "A": 0.6012, "B": 437.95, "alpha": 0.4530, "C": 2.1325, "beta": 0.5979, "gamma": 0.6552},
    "400M": {"L0": 2.3747, "A": 0.6542, "B": 523.42, "alpha": 0.4288, "C": 2.0246, "beta": 0.5935, "gamma": 0.6347},
}
"""Parameters of the multi-power law by model size, as published with arXiv:2503.12811."""

_RIVER_UNITS = {"L0": "loss", "A": "loss rate^alpha"}
_RIVER = Theta("alpha", 0.02, 3.0, (0.3, 0.6))
MODE_SPACING = 0.7  # of the modes in log(rate): a kernel (1 + u)^-2 is then right to 1e-4 of its value at 0
_SMOOTH = 0.02  # stretches of smooth change within it count as one step: an error of about 1e-5 of the gain


_WARMUPS = {"real": "its own rates", "constant": "as many updates at the rate that it has led to"}


def _cooled(track: Track) -> FloatArray:
    """eta_{t-1} - eta_t of every update, the initial climb left out: it counts as no change."""
    drop = -np.diff(track.lr, prepend=track.lr[:1])
    falls = np.flatnonzero(drop > 0)
    drop[: falls[0] if falls.size else drop.size] = 0.0
    return drop


# --- laws in step time -----------------------------------------------------------------------------------------------
@register("annealing")
@dataclass(frozen=True, kw_only=True)
class Annealing(Law):
    r"""L = L0 + A S1^-alpha - C S2,  S2 = sum_{i<n} m_i,  m_i = lam m_{i-1} + (eta_{i-1} - eta_i).

    Source: arXiv:2408.11029. The share lam of the momentum that is kept is fitted with the rest. The climb before the
    first fall of the rate is no (negative) decrement. Two defects: appended updates at rate 0 lower the predicted loss,
    and so does every common factor > 1 on the rates.

    Args:
        warmup: what it adds to S1: real, its own rates, or constant, as many updates at the rate that it has led to.
    """

    formula = "L0 + A S1^-alpha - C S2(lam)"
    thetas = (_RIVER, Theta("lam", 0.9, 0.99999, (0.99, 0.998), "keep"))
    coefficients = ("L0", "A", "C")
    units = {**_RIVER_UNITS, "C": "loss / rate"}

    warmup: str = "real"

    def _check(self) -> None:
        pick("warmup", self.warmup, _WARMUPS)

    def prepare(self, track: Track) -> Any:
        time, drop = track.S, _cooled(track)
        if self.warmup == "constant":
            fallen = np.flatnonzero(drop > 0)
            climbed = np.minimum(track.steps, fallen[0] if fallen.size else track.lr.size)
            time = time + climbed * track.lr[climbed - 1] - np.cumsum(track.lr)[climbed - 1]
        return track.steps, time, drop

    def columns(self, prepared: Any, theta: Sequence[float]) -> FloatArray:
        steps, time, drop = prepared
        alpha, lam = theta
        gained = np.cumsum(lfilter([1.0], [1.0, -lam], drop))[steps - 1]
        return np.column_stack([np.ones(steps.size), power_of_time(time, alpha), -gained])


@register("forward-momentum")
@dataclass(frozen=True, kw_only=True)
class ForwardMomentum(Law):
    r"""L = L0 + A S^-alpha - C M,  M = sum_{i<n} m_i / (sqrt(v_i) + eps),  d_i = eta_{i-1} - eta_i,
    m_i = b1 m_{i-1} + (1 - b1) d_i,  v_i = b2 v_{i-1} + (1 - b2) d_i^2.

    Source: arXiv:2512.13705 at one model size (its term in the size is part of L0); b1 = `beta1`, b2 = `beta2`. The
    initial climb of the rate is left out, as in the annealing law.

    Args:
        eps: keeps the quotient finite; in units of a rate.
    """

    formula = "L0 + A S^-alpha - C M(beta1, beta2)"
    thetas = (
        _RIVER,
        Theta("beta1", 0.5, 0.99999, (0.9, 0.999), "keep"),
        Theta("beta2", 0.9, 0.999999, (0.999, 0.99999), "keep"),
    )
    coefficients = ("L0", "A", "C")
    units = {**_RIVER_UNITS, "C": "loss"}

    eps: float = 1e-8

    def _check(self) -> None:
        check_number("eps", self.eps, low=0.0, open_low=True)

    def prepare(self, track: Track) -> Any:
        return track, _cooled(track)

    def columns(self, prepared: Any, theta: Sequence[float]) -> FloatArray:
        track, drop = prepared
        alpha, b1, b2 = theta
        m = lfilter([1.0 - b1], [1.0, -b1], drop)
        v = lfilter([1.0 - b2], [1.0, -b2], drop**2)
        gained = np.cumsum(m / (np.sqrt(v) + self.eps))[track.steps - 1]
        return np.column_stack([np.ones(track.S.size), power_of_time(track.S, alpha), -gained])


# --- laws in intrinsic time ------------------------------------------------------------------------------------------
@register("multi-power")
@dataclass(frozen=True, kw_only=True)
class MultiPower(Law):
    r"""L = L0 + A S^-alpha - B sum_{k<n} (eta_{k-1} - eta_k) G(eta_k^-gamma sum_{t=k}^{n-1} eta_t),
    G(u) = 1 - (1 + C u)^-beta,  eta_{-1} = 0.

    Source: arXiv:2503.12811. The sum takes the warmup in, whose decrements are negative; a schedule without one starts
    with the jump from 0. At a rate of 0 (or `REST`), G is 0 while the rate stays there
    and 1 after, its limits for gamma < 1.

    (1 + C u)^-beta is a Gamma mixture of exponentials in intrinsic time, whatever eta_k is, so the sum over k is the
    recursion of `riverval.relaxation`: O(T modes) instead of O(n T) powers, right to about 1e-4 of the gain (derived).
    """

    formula = "L0 + A S^-alpha - B sum (decrements) G, G = 1 - (1 + C eta^-gamma S)^-beta"
    thetas = (
        _RIVER,
        Theta("C", 1e-2, 1e3, (0.5, 3.0)),
        Theta("beta", 0.05, 3.0, (0.2, 0.6)),
        Theta("gamma", 0.0, 0.99, (0.2, 0.6), "linear"),
    )
    coefficients = ("L0", "A", "B")
    units = {**_RIVER_UNITS, "B": "loss / rate", "C": "rate^(gamma - 1)"}

    def prepare(self, track: Track) -> Any:
        lr = track.lr
        moving = moves(lr)
        drop = np.where(moving, -np.diff(lr, prepend=0.0), 0.0)
        last = np.maximum.accumulate(np.where(moving, np.arange(lr.size), 0))  # the last update that moved
        return track, drop, lr[last[track.steps - 1]], exponential_rates(track, MODE_SPACING)

    def columns(self, prepared: Any, theta: Sequence[float]) -> FloatArray:
        track, drop, level, rates = prepared
        alpha, C, beta, gamma = theta

        def share(eta: FloatArray) -> FloatArray:
            """Part of each mode in (1 + C eta^-gamma u)^-beta, decayed over the update itself; 0 at rate 0, unused."""
            unit = C * np.where(eta > 0, eta, 1.0) ** -gamma
            parts = mixture(rates, unit, beta)
            parts *= np.exp(-np.outer(rates, eta))
            return parts

        left = relaxed_sums(track.lr, drop, rates, track.steps, share=share, tolerance=_SMOOTH)
        left = left.sum(axis=1)
        # The decrements up to n add up to -level, and G = 1 - what is left: the column is level + left.
        return np.column_stack([np.ones(track.S.size), power_of_time(track.S, alpha), level + left])


@register("functional-scaling")
@dataclass(frozen=True, kw_only=True)
class FunctionalScaling(Law):
    r"""L = L0 + A (1 + c S)^-s + N sum_{t<n} eta_t^2 K(S_n - S_{t+1}),  K(u) = (1 + c u)^-q.

    Source: arXiv:2509.19189, with c its unit of intrinsic time, s the source exponent, q = 2 - 1/beta for a spectrum of
    capacity beta. The noise of the gradients is constant here: what the falling excess loss would add to it is left
    out, which is little beside the entropy of text.
    """

    formula = "L0 + A (1 + c S)^-s + N sum eta^2 (1 + c S)^-q"
    thetas = (
        Theta("s", 0.02, 3.0, (0.2, 0.6)),
        Theta("c", 1e-2, 1e6, (10.0, 1e3)),
        Theta("q", 0.05, 2.0, (0.8, 1.4)),
    )
    coefficients = ("L0", "A", "N")
    units = {**_RIVER_UNITS, "A": "loss", "N": "loss / rate^2", "c": "1 / rate"}

    def prepare(self, track: Track) -> Any:
        rates = exponential_rates(track, MODE_SPACING)
        return track, rates, relaxed_sums(track.lr, track.lr**2, rates, track.steps)

    def columns(self, prepared: Any, theta: Sequence[float]) -> FloatArray:
        track, rates, held = prepared
        s, c, q = theta
        weights = mixture(rates, np.array([c]), q)[:, 0]
        return np.column_stack([np.ones(track.S.size), (1.0 + c * track.S) ** -s, held @ weights])


@register("noise-floor")
@dataclass(frozen=True, kw_only=True)
class NoiseFloor(Law):
    r"""L = L0 + A S^-alpha + N eta_{n-1}.

    Source: arXiv:2507.02119, L = L_const(S) + a (eta / eta_peak - 1) Tr Cov(P^-1/2 g): the noise is at once what the
    current rate keeps up. N = a Tr Cov / eta_peak can be measured at one checkpoint (theory a = 1/4) and given to the
    fit as ``fixed={"N": ...}``; else it is fitted.
    """

    formula = "L0 + A S^-alpha + N eta"
    thetas = (_RIVER,)
    coefficients = ("L0", "A", "N")
    units = {**_RIVER_UNITS, "N": "loss / rate"}

    def columns(self, prepared: Any, theta: Sequence[float]) -> FloatArray:
        track: Track = prepared
        return np.column_stack([np.ones(track.S.size), power_of_time(track.S, theta[0]), track.now])


@register("equal-tau")
@dataclass(frozen=True, kw_only=True)
class EqualTau(Law):
    r"""L = L0 + A S^-alpha + G eta_{n-1} / max_{t<n} eta_t.

    The stable loss at equal intrinsic time, less a gain of a full cooldown that is the same for every length, shape and
    rate: G of it at the plateau, none left at rate 0. The naive answer that every other law has to beat (derived).
    """

    formula = "L0 + A S^-alpha + G eta / peak"
    thetas = (_RIVER,)
    coefficients = ("L0", "A", "G")
    units = {**_RIVER_UNITS, "G": "loss"}

    def columns(self, prepared: Any, theta: Sequence[float]) -> FloatArray:
        track: Track = prepared
        river = power_of_time(track.S, theta[0])
        peak = np.maximum.accumulate(track.lr)[track.steps - 1]
        return np.column_stack([np.ones(track.S.size), river, track.now / peak])


# --- power-law kernels as mixtures -----------------------------------------------------------------------------------
def mixture(rates: FloatArray, unit: FloatArray, power: float) -> FloatArray:
    """Weights w with (1 + unit u)^-power = sum_j w_j exp(-rates_j u), shape (rates, units).

    The trapezoidal rule for int x^power exp(-x (1 + unit u)) / Gamma(power) dlog(x), at x = rates / unit for the rates
    of `exponential_rates`. What lies below the slowest has not moved by the end of the run and goes to the rate 0: two
    geometric series, for x^power and for the first order of exp(-x).
    """
    weights = np.empty((rates.size, unit.size))
    x = rates[1:, None] / unit
    rest = weights[1:]
    np.multiply(power, np.log(rates[1:])[:, None] - np.log(unit), out=rest)
    rest -= x
    rest += np.log(MODE_SPACING) - gammaln(power)
    np.exp(rest, out=rest)
    below = np.exp(power * np.log(x[0]) + np.log(MODE_SPACING) - gammaln(power))
    weights[0] = below / np.expm1(MODE_SPACING * power) - below * x[0] / np.expm1(MODE_SPACING * (power + 1.0))
    return weights
