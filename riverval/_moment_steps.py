"""One update of each optimizer as a map of the mean and covariance of its state, for `riverval.theory_moments`.

A coordinate has the gradient g = h w - c + sigma xi, and the optimizer a state s of k numbers for it, the one at which
losses are taken first: (w), (w, m), (x, z), (w, v) or (w, m, v). Where the update is affine in s and g its moments
follow exactly; where it is not (sign, RMSprop, Adam) a Gaussian closure stands in, which each class states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import erf

from ._arrays import check_noise, check_values
from ._checks import LARGEST, check_number, check_options, pick
from ._typing import ArrayLike, FloatArray
from .errors import InputError


def check_constant(optimizer: str, name: str, value: float) -> float:
    """A constant of an optimizer: a beta in [0, 1), an eps above 0, anything else at least 0.

    Raises:
        InputError: outside its range.
    """
    share = name.startswith("beta")
    return check_number(
        name, value, what=f"of {optimizer}",
        low=0.0, high=1.0 if share else LARGEST, open_low=name == "eps", open_high=share,
    )  # fmt: skip


@dataclass(frozen=True)
class Coordinates:
    """Independent coordinates with the gradients h w - c + sigma xi; every array has the shape (d,)."""

    curvature: FloatArray
    slope: FloatArray
    sigma: FloatArray


@dataclass(frozen=True)
class Step:
    """The moments of one update: E[s] <- centre, Cov(s) <- linear Cov(s) linear' + heat.

    Shapes: linear (d, k, k), centre (d, k), heat (d, k, k).
    """

    linear: FloatArray
    centre: FloatArray
    heat: FloatArray


class Update:
    """The updates of one run. `step` is called for t = 0, 1, ... in order, with the moments before the update.

    Args:
        constants: of the optimizer, by name.
        coordinates: d of them.
        rates: lr[t], shape (T,).
    """

    size: ClassVar[int] = 2

    def __init__(self, constants: Mapping[str, float], coordinates: Coordinates, rates: FloatArray) -> None:
        self.constants, self.at, self.rates = constants, coordinates, rates

    def begin(self, mean: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean (d, k) and covariance (d, k, k) of state 0: memories begin at 0."""
        first = np.eye(self.size)[0]
        return mean[:, None] * first, variance[:, None, None] * np.outer(first, first)

    def step(self, t: int, mean: FloatArray, covariance: FloatArray) -> Step:
        """Update t, from the mean (d, k) and covariance (d, k, k) of the state before it."""
        raise NotImplementedError


# --- affine updates --------------------------------------------------------------------------------------------------
class AffineUpdate(Update):
    """s <- M s + G g, with g taken at the point q s."""

    @property
    def point(self) -> FloatArray:
        """q, shape (k,)."""
        point: FloatArray = np.eye(self.size)[0]
        return point

    def matrices(self, t: int) -> tuple[FloatArray, FloatArray]:
        """M (k, k) and G (k,) of update t."""
        raise NotImplementedError

    def linear(self, t: int) -> FloatArray:
        """M + h G q', the matrix that acts on the state; (d, k, k)."""
        factor, gain = self.matrices(t)
        return factor + self.at.curvature[:, None, None] * np.outer(gain, self.point)

    def heat(self, t: int) -> FloatArray:
        """sigma^2 G G', the covariance that the noise adds; (d, k, k)."""
        gain = self.matrices(t)[1]
        return self.at.sigma[:, None, None] ** 2 * np.outer(gain, gain)

    def step(self, t: int, mean: FloatArray, covariance: FloatArray) -> Step:
        linear = self.linear(t)
        centre = np.einsum("dij,dj->di", linear, mean) - self.at.slope[:, None] * self.matrices(t)[1]
        return Step(linear, centre, self.heat(t))


class SGDUpdate(AffineUpdate):
    size = 1

    def matrices(self, t: int) -> tuple[FloatArray, FloatArray]:
        return np.eye(1), np.array([-self.rates[t]])


class HeavyBallUpdate(AffineUpdate):
    def matrices(self, t: int) -> tuple[FloatArray, FloatArray]:
        lr, b = self.rates[t], self.constants["beta"]
        return np.array([[1.0, -lr * b], [0.0, b]]), np.array([-lr, 1.0])


class EMAMomentumUpdate(HeavyBallUpdate):
    def matrices(self, t: int) -> tuple[FloatArray, FloatArray]:
        factor, gain = super().matrices(t)
        return factor, (1.0 - self.constants["beta"]) * gain


class NesterovUpdate(AffineUpdate):
    def matrices(self, t: int) -> tuple[FloatArray, FloatArray]:
        lr, b = self.rates[t], self.constants["beta"]
        return np.array([[1.0, -lr * b * b], [0.0, b]]), np.array([-lr * (1.0 + b), 1.0])


class ScheduleFreeUpdate(AffineUpdate):
    """s = (x, z): the average x, at which losses are taken, and z; the gradient at y = beta x + (1 - beta) z."""

    def __init__(self, constants: Mapping[str, float], coordinates: Coordinates, rates: FloatArray) -> None:
        super().__init__(constants, coordinates, rates)
        total = np.cumsum(rates**2)
        self.weights = np.divide(rates**2, total, out=np.zeros_like(rates), where=total > 0)

    @property
    def point(self) -> FloatArray:
        return np.array([self.constants["beta"], 1.0 - self.constants["beta"]])

    def begin(self, mean: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
        return mean[:, None] * np.ones(2), variance[:, None, None] * np.ones((2, 2))

    def matrices(self, t: int) -> tuple[FloatArray, FloatArray]:
        lr, weight = self.rates[t], self.weights[t]
        return np.array([[1.0 - weight, weight], [0.0, 1.0]]), np.array([-weight * lr, -lr])


# --- Gaussian closures -----------------------------------------------------------------------------------------------
class SignUpdate(Update):
    """Closure: w is Gaussian.

    Then so is g, with the mean h E[w] - c and the variance h^2 Var(w) + sigma^2, and E[sign g] = erf(a/sqrt 2) with
    a = E[g]/std(g), and Cov(w, sign g) = Var(w) sqrt(2/pi) exp(-a^2/2) h/std(g) by Stein's identity. sign g is replaced
    by the affine function of w with these moments and independent noise for the rest of its variance; mean and variance
    of the next w are then exactly those of a Gaussian w.
    """

    size = 1

    def step(self, t: int, mean: FloatArray, covariance: FloatArray) -> Step:
        lr, at, spread = self.rates[t], self.at, covariance[:, 0, 0]
        gradient = at.curvature * mean[:, 0] - at.slope
        # Without noise and spread, the sign itself: the quotient is then infinite, or 0 for a gradient of 0.
        std = np.maximum(np.sqrt(at.sigma**2 + at.curvature**2 * spread), _SMALLEST)
        a = gradient / std
        force = erf(a / math.sqrt(2.0))
        pull = math.sqrt(2.0 / math.pi) * np.exp(-0.5 * a * a) * at.curvature / std
        heat = np.maximum(1.0 - force**2 - pull**2 * spread, 0.0) * (std > _SMALLEST)
        linear = (1.0 - lr * pull * (std > _SMALLEST))[:, None, None]
        return Step(linear, mean - lr * force[:, None], lr**2 * heat[:, None, None])


class _Adaptive(Update):
    """Closure: w, m and v are jointly Gaussian, and the update is replaced by its tangent at their means.

    With g = E[g] + d, g^2 = E[g^2] + 2 E[g] d + (d^2 - E[d^2]), of which the last term is taken as independent noise.
    In a hill at rest E[g] = 0, and then v enters by its mean E[g^2] alone.
    """

    def _square(self, mean: FloatArray, covariance: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """E[g], E[g^2], and the variance of d^2."""
        gradient = self.at.curvature * mean[:, 0] - self.at.slope
        spread = self.at.curvature**2 * covariance[:, 0, 0] + self.at.sigma**2
        return gradient, gradient**2 + spread, 2.0 * spread**2

    def _tangent(self, scale: float, v: FloatArray, correction: float) -> tuple[FloatArray, FloatArray]:
        """scale/(sqrt(v/correction) + eps) and its derivative by v; (d,) each."""
        root = np.sqrt(v / correction)
        value = scale / (root + self.constants["eps"])
        # Without any gradient v is 0, and so is what the derivative is multiplied by.
        below = 2.0 * (root + self.constants["eps"]) * root * correction
        return value, np.divide(-value, below, out=np.zeros_like(v), where=root > 0)


class RMSpropUpdate(_Adaptive):
    """s = (w, v)."""

    def step(self, t: int, mean: FloatArray, covariance: FloatArray) -> Step:
        at, b2 = self.at, self.constants["beta"]
        gradient, square, other = self._square(mean, covariance)
        v = b2 * mean[:, 1] + (1.0 - b2) * square
        value, slope = self._tangent(self.rates[t], v, 1.0)
        # Derivatives of the new (w, v) by g and g^2, and by the old (w, v).
        zero, one = np.zeros_like(v), np.ones_like(v)
        by_square = (1.0 - b2) * np.stack([-slope * gradient, one], axis=1)
        by_gradient = np.stack([-value, zero], axis=1) + 2.0 * gradient[:, None] * by_square
        linear = np.zeros((v.size, 2, 2))
        linear[:, :, 0] = at.curvature[:, None] * by_gradient
        linear[:, 0, 0] += 1.0
        linear[:, :, 1] = b2 * np.stack([-slope * gradient, one], axis=1)
        centre = np.stack([mean[:, 0] - value * gradient, v], axis=1)
        return Step(linear, centre, _outer(by_gradient, at.sigma**2) + _outer(by_square, other))


class AdamUpdate(_Adaptive):
    """s = (w, m, v)."""

    size = 3

    def step(self, t: int, mean: FloatArray, covariance: FloatArray) -> Step:
        at, b, b2, lr = self.at, self.constants["beta1"], self.constants["beta2"], self.rates[t]
        gradient, square, other = self._square(mean, covariance)
        m = b * mean[:, 1] + (1.0 - b) * gradient
        v = b2 * mean[:, 2] + (1.0 - b2) * square
        value, slope = self._tangent(lr / (1.0 - b ** (t + 1)), v, 1.0 - b2 ** (t + 1))
        keep = 1.0 - lr * self.constants.get("weight_decay", 0.0)
        zero, one = np.zeros_like(v), np.ones_like(v)
        by_m, by_v = np.stack([-value, one, zero], axis=1), np.stack([-slope * m, zero, one], axis=1)
        by_square = (1.0 - b2) * by_v
        by_gradient = (1.0 - b) * by_m + 2.0 * gradient[:, None] * by_square
        linear = np.stack([at.curvature[:, None] * by_gradient, b * by_m, b2 * by_v], axis=2)
        linear[:, 0, 0] += keep
        centre = np.stack([keep * mean[:, 0] - value * m, m, v], axis=1)
        return Step(linear, centre, _outer(by_gradient, at.sigma**2) + _outer(by_square, other))


def _outer(vector: FloatArray, weight: FloatArray) -> FloatArray:
    """weight v v', (d, k) -> (d, k, k)."""
    return weight[:, None, None] * vector[:, :, None] * vector[:, None, :]


_ADAM = ("beta1", "beta2", "eps")
UPDATES: dict[str, tuple[type[Update], tuple[str, ...]]] = {
    "sgd": (SGDUpdate, ()),
    "heavy-ball": (HeavyBallUpdate, ("beta",)),
    "ema-momentum": (EMAMomentumUpdate, ("beta",)),
    "nesterov": (NesterovUpdate, ("beta",)),
    "schedule-free": (ScheduleFreeUpdate, ("beta",)),
    "sign": (SignUpdate, ()),
    "rmsprop": (RMSpropUpdate, ("beta", "eps")),
    "adam": (AdamUpdate, _ADAM),
    "adamw": (AdamUpdate, (*_ADAM, "weight_decay")),
}
"""The update of each optimizer, and the constants that it takes."""


_SMALLEST = 1e-300


def update_of(optimizer: str, constants: Mapping[str, float], coordinates: Coordinates, rates: FloatArray) -> Update:
    """The updates of a run of the optimizer.

    Raises:
        InputError: an unknown optimizer, or constants that are out of range or not the ones that it takes.
    """
    update, takes = pick("optimizer", optimizer, UPDATES)
    check_options(f"optimizer {optimizer!r}", constants, takes)
    missing = [name for name in takes if name not in constants]
    if missing:
        raise InputError(f"optimizer {optimizer!r} needs its constants {', '.join(missing)}; give them by name")
    return update({k: check_constant(optimizer, k, v) for k, v in constants.items()}, coordinates, rates)


def coordinates_of(
    curvature: ArrayLike, sigma: ArrayLike, slope: ArrayLike, mean: ArrayLike, variance: ArrayLike
) -> tuple[Coordinates, FloatArray, FloatArray]:
    """Coordinates, and the mean and variance of state 0, of one shape (d,); from numbers or rows.

    Raises:
        InputError: a value out of range, or rows of several lengths.
    """
    values = [
        check_values("curvature", curvature, low=0.0),
        check_noise(sigma),
        check_values("slope", slope),
        check_values("mean", mean, what="of the coordinates at the start"),
        check_values("variance", variance, low=0.0, what="of the coordinates at the start"),
    ]
    try:
        h, noise, c, centre, spread = (np.atleast_1d(v) for v in np.broadcast_arrays(*values))
    except ValueError:
        sizes = ", ".join(str(v.shape) for v in values)
        raise InputError(
            f"curvature, sigma, slope, mean and variance must be numbers or rows of one length, got the shapes {sizes}"
        ) from None
    return Coordinates(h, c, noise), centre, spread
