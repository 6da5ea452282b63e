r"""The river-valley law: a river that flows and a hill that forgets, both in the time in which the weights turn.

Three pieces of physics, and nothing fitted to make up for them:

- **The clock.** Adam moves every weight by about its rate, and where a normalisation layer follows, only the direction
  of the weights matters: an update of size eta turns weights of size W by eta / W. Updates lengthen the weights and
  decay shortens them,

      d W^2 = eta^2 - 2 lambda eta W^2,        W_0 = s,

  with lambda the weight decay and s the standard deviation of the initial weights: both known before training. (Adam's
  updates have the size eta when they add up like a random walk: the momentum shrinks a single one, but makes
  neighbours alike, and in a sum the two cancel.) The *effective rate* is e = eta s / W, the rate that would turn the
  initial weights as much, and S_n = sum_{t<n} e_t is the intrinsic time. At a constant rate, e settles at
  s sqrt(2 lambda eta): a rate that is ten times as large is then only three times as fast.
- **The river.** The expected loss of its floor falls as A S^-alpha.
- **The hill.** Gradient noise lifts the iterates up the walls, and each mode of curvature forgets its part at its own
  pace of intrinsic time. A power-law spectrum of curvatures makes K(u) = (1 + C u)^-beta of the exponentials.

Sources: the valley arXiv:2410.05192; rotation and equilibrium under weight decay arXiv:2305.17212; kernels of
power-law spectra arXiv:2509.19189, 2503.12811. Their combination is riverval's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._checks import check_number
from ._typing import FloatArray
from .law_base import Law, Theta, Track, power_of_time, register, slowest_mode
from .law_known import MODE_SPACING, mixture
from .relaxation import relaxed_sums

REFERENCE_RATE = 1e-3
"""Effective rate in whose terms the hill's coefficient N is stated."""

_NODE = 0.1  # distance of the exponents p at which the hill is computed; between them it is interpolated
_SMOOTH = 1e-3  # stretches of smooth change within it count as one step of a mode: an error of as much of the hill
_FASTEST = 1e2  # a mode this many times faster than the largest C has no weight


def effective_rates(lr: FloatArray, *, weight_decay: float, init_std: float | None) -> FloatArray:
    r"""e_t = eta_t s / W_t, the rate in terms of the initial weights; shape of `lr`, (T,).

    W_n^2 = s^2 exp(-2 lambda T_n) + sum_{t<n} eta_t^2 exp(-2 lambda (T_n - T_{t+1})),   T_n = sum_{t<n} eta_t,

    is the length of weights that move by eta_t in random directions and decay by lambda eta_t (derived). With
    lambda eta = constant it settles at W^2 = eta / (2 lambda).

    Args:
        lr: eta, rate of each update, shape (T,).
        weight_decay: lambda of AdamW.
        init_std: s, standard deviation of the initial weights; None: lengths stay as they are, e = eta.

    Raises:
        InputError: a negative weight decay, or an init_std that is not positive.

    >>> effective_rates(np.full(100_000, 0.01), weight_decay=0.1, init_std=0.02)[-1].round(6)
    np.float64(0.000894)
    """
    check_number("weight_decay", weight_decay, low=0.0)
    if init_std is None:
        return lr
    check_number("init_std", init_std, low=0.0, open_low=True)
    before = np.arange(lr.size)
    grown = relaxed_sums(lr, lr**2, [2.0 * weight_decay], before)[:, 0] / init_std**2
    passed = np.concatenate([[0.0], np.cumsum(lr)[:-1]])
    rates: FloatArray = lr / np.sqrt(np.exp(-2.0 * weight_decay * passed) + grown)
    return rates


@dataclass(eq=False)
class _Hill:
    """The hill's modes at the asked states, for any exponent of the noise; nodes are computed when first needed."""

    rates: FloatArray
    track: Track
    modes: FloatArray
    nodes: dict[int, FloatArray] = field(default_factory=dict)

    def held(self, p: float) -> FloatArray:
        """log of sum_t (e_t / r)^p exp(-mode (S_n - S_{t+1})), r the reference rate; shape (n, modes).

        Between the four nearest nodes, log held is a polynomial of p: the sum is a mean of exponentials of p log e, of
        which only those of a few e-foldings matter. The hill is right to 1e-6 so, and to 1e-4 where the rate jumps by
        decades.
        """
        k = math.floor(p / _NODE)
        x = p / _NODE - k
        shares = (-x * (x - 1) * (x - 2) / 6, (x + 1) * (x - 1) * (x - 2) / 2, -(x + 1) * x * (x - 2) / 2)
        weights = (*shares, (x + 1) * x * (x - 1) / 6)
        total = np.zeros((self.track.steps.size, self.modes.size))
        for j, weight in zip(range(k - 1, k + 3), weights, strict=True):
            if weight:
                total += weight * self._node(j)
        return total

    def _node(self, j: int) -> FloatArray:
        if j not in self.nodes:
            noise = (self.rates / REFERENCE_RATE) ** (j * _NODE)
            held = relaxed_sums(self.rates, noise, self.modes, self.track.steps, tolerance=_SMOOTH)
            self.nodes[j] = np.log(np.maximum(held, 1e-300))
        return self.nodes[j]


@register("river-valley")
@dataclass(frozen=True, kw_only=True)
class RiverValley(Law):
    r"""L = L0 + A S^-alpha + N sum_{t<n} e_t^p K(S_n - S_{t+1}) / h,   K(u) = (1 + C u)^-beta,

    with e the `effective_rates` of the schedule, S their sum, and h = r^(p-1) int_0^1 K du the hill that the constant
    rate r = `REFERENCE_RATE` builds up in one unit of S. So A is the river's loss at S = 1 above L0, and N the hill's
    at S = 1 under the rate r. p = 2 is noise that does not know of the rate, as in a fixed quadratic valley; below 2
    the walls are steeper where the rate is lower (sharpness follows the rate). Without noise before a point, or at the
    rate 0, the loss stands still.

    A short list of curves leaves C, beta, p and N poorly determined together, so the fit holds them to what the curves
    of other models say (`prior` of each, a value and a spread; see the docs for where they come from).

    Attributes:
        weight_decay: lambda of AdamW.
        init_std: s, standard deviation of the initial weights; None for a net whose loss is not blind to the length of
            its weights, or an optimizer that does not move by its rate: the plain clock S = sum of eta.
    """

    weight_decay: float = 0.1
    init_std: float | None = 0.02

    formula = "L0 + A S^-alpha + N (noise e^p, forgotten as (1 + C S)^-beta), S and e in the clock of directions"
    thetas = (
        Theta("alpha", 0.05, 2.0, (0.35, 0.6)),
        Theta("C", 1.0, 1e6, (300.0, 1500.0), prior=(650.0, 1.6)),
        Theta("beta", 0.3, 5.0, (1.2,), prior=(1.2, 0.3)),
        Theta("p", 1.0, 3.0, (1.8,), "linear", prior=(1.81, 0.1)),
    )
    coefficients = ("L0", "A", "N")
    known = {"N": (0.63, 0.4)}
    units = {"L0": "loss", "A": "loss", "N": "loss", "C": "1 / rate"}

    def _check(self) -> None:
        check_number("weight_decay", self.weight_decay, low=0.0)
        if self.init_std is not None:
            check_number("init_std", self.init_std, low=0.0, open_low=True)

    def prepare(self, track: Track) -> Any:
        e = effective_rates(track.lr, weight_decay=self.weight_decay, init_std=self.init_std)
        turned = Track(e, track.steps, np.cumsum(e)[track.steps - 1])
        return _Hill(e, turned, _modes(turned.S))

    def columns(self, prepared: Any, theta: Sequence[float]) -> FloatArray:
        hill: _Hill = prepared
        alpha, C, beta, p = theta
        kernel = mixture(hill.modes, np.array([C]), beta)[:, 0]
        held = np.exp(hill.held(p)) @ kernel
        # (e / r)^p summed over updates is r^-p times the noise; h = r^(p - 1) times the area of K.
        return np.column_stack(
            [
                np.ones(held.size),
                power_of_time(hill.track.S, alpha),
                held * REFERENCE_RATE / kernel_area(C, beta),
            ]
        )


def kernel_area(C: float, beta: float) -> float:
    """int_0^1 (1 + C u)^-beta du.

    >>> round(kernel_area(3.0, 2.0), 12), round(kernel_area(3.0, 1.0), 6)
    (0.25, 0.462098)
    """
    log = math.log1p(C)
    x = (1.0 - beta) * log
    return log / C * (math.expm1(x) / x if abs(x) > 1e-12 else 1.0)


def _modes(S: FloatArray) -> FloatArray:
    """Relaxation rates 0 and exp(spacing k) that resolve the kernel, on one grid for all schedules."""
    first = slowest_mode(S[-1], MODE_SPACING)
    largest = next(t for t in RiverValley.thetas if t.name == "C").high
    last = math.ceil(math.log(_FASTEST * largest) / MODE_SPACING)
    return np.append(0.0, np.exp(MODE_SPACING * np.arange(first, last + 1)))
