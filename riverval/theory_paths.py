r"""Points that no run visits: averages of iterates, points between two checkpoints, and what a bend does to them.

Hill parts of the loss are those of SGD in hills of curvature h, at the stationary state where not said otherwise; all
formulas are derived. A bent river is L = -c x + (h/2)(y - f(x))^2, or locally a circle of radius 1/kappa.
"""

from __future__ import annotations

import math

import numpy as np

from ._arrays import check_curvature, check_noise, check_rates, check_values
from ._checks import LARGEST, check_number, check_steps
from ._typing import ArrayLike, FloatArray
from .theory import stationary_hill


# --- averages --------------------------------------------------------------------------------------------------------
def tail_average_hill(lr: float, curvature: ArrayLike, sigma: ArrayLike, window: int) -> FloatArray:
    """Hill loss of the uniform average of W = `window` stationary iterates; shape of `curvature`.

    (H/W)(1 + 2 sum_{k<W} (1 - k/W) rho^k) with rho = 1 - eta h, in closed form
    (H/W)((1 + rho)/(1 - rho) - 2 rho (1 - rho^W)/(W (1 - rho)^2)). For W eta h >> 1 it is sigma^2/(2 h W), the same
    leading term as the optimal decay over W updates leaves.

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> tail_average_hill(0.3, 1.0, 1.0, 500).round(6).item()
    0.000995
    """
    hill = stationary_hill(lr, curvature, sigma)
    W = check_steps("window", window, low=1, what="iterates in the average")
    gap = lr * np.asarray(curvature, dtype=np.float64)  # 1 - rho
    rho = 1.0 - gap
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        closed = (1.0 + rho) / gap - 2.0 * rho * (1.0 - rho**W) / (W * gap**2)
    # Where W (1 - rho) is small the closed form cancels: a series in it, by sum_k (W - k) C(k, j) = C(W + 1, j + 2).
    series, term = np.full_like(gap, -1.0), np.full_like(gap, (W + 1.0) * W / 2.0)
    for j in range(8):
        series += 2.0 * term / W
        term = -term * gap * (W - 1.0 - j) / (j + 3.0)
    average: FloatArray = hill / W * np.where(W * gap < 0.02, series, closed)
    return average


def averaging_ratio(x: ArrayLike) -> FloatArray:
    """(2/x)(1 - (1 - e^-x)/x): the hill loss of the average over x relaxation times as a fraction of the plateau's.

    x = eta h W for small eta h, as in `riverval.theory_decay.hill_ratio`.

    Raises:
        InputError: x not above 0.

    >>> averaging_ratio(30.0).round(5).item()
    0.06444
    """
    lengths = check_values("x", x, low=0.0, open_low=True, what="eta h W, the length of the window")
    # Below 1e-3, the next term of the series is below rounding.
    series = 1.0 - lengths / 3.0 + lengths**2 / 12.0 - lengths**3 / 60.0
    ratio: FloatArray = np.where(lengths < 1e-3, series, 2.0 / lengths * (1.0 + np.expm1(-lengths) / lengths))
    return ratio


def tail_average_area(lr: float, window: int) -> float:
    """eta (W - 1)/2: how far the average of W iterates is ahead of the first of them, in the sum of the rates.

    The optimal decay over as many updates gets only (1/h) ln(1 + eta h W/2) further, linear decay to zero about as far.

    Raises:
        InputError: a value out of range.

    >>> round(tail_average_area(0.3, 500), 9)
    74.85
    """
    check_number("lr", lr, low=0.0, high=LARGEST)
    return 0.5 * lr * (check_steps("window", window, low=1, what="iterates in the average") - 1)


# --- between two checkpoints -----------------------------------------------------------------------------------------
def stable_cross(lr: float, curvature: ArrayLike, sigma: ArrayLike, gap: int) -> FloatArray:
    """(h/2) E[y_a y_b] = H (1 - eta h)^k for two stationary iterates k = `gap` updates apart; shape of `curvature`.

    Raises:
        InputError: lr h >= 2, or a value out of range.
    """
    k = check_steps("gap", gap, what="updates between the iterates")
    return stationary_hill(lr, curvature, sigma) * (1.0 - lr * np.asarray(curvature, dtype=np.float64)) ** k


def decay_cross(rates: ArrayLike, curvature: ArrayLike, first: ArrayLike) -> FloatArray:
    """(h/2) E[y_a y_b] = H_a prod_t (1 - eta_t h) for the two ends of a cooldown; shape of `curvature`.

    Args:
        rates: rate of each update between a and b, shape (T,).
        curvature: h > 0, a number or shape (m,).
        first: H_a, the hill loss at a, likewise.

    Raises:
        InputError: a value out of range.
    """
    eta, h = check_rates(rates), check_curvature(curvature)
    cross: FloatArray = check_values("first", first, low=0.0, what="hill loss") * np.prod(
        1.0 - eta.reshape(-1, *[1] * h.ndim) * h, axis=0
    )
    return cross


def interpolated_loss(alpha: ArrayLike, drop: float, first: float, last: float, cross: float) -> FloatArray:
    """Expected loss at (1 - alpha) a + alpha b, less the river loss at a; shape of `alpha`.

    -D alpha + H_a (1 - alpha)^2 + H_b alpha^2 + 2 alpha (1 - alpha) C, which is convex. Between two stationary iterates
    k updates apart, H_a = H_b = H and C = H rho^k, its curvature is 4 H (1 - rho^k) and the hill part at the middle is
    H (1 + rho^k)/2.

    Args:
        alpha: 0 at a, 1 at b; may be outside.
        drop: D = river loss at a less that at b.
        first, last: H_a and H_b, the expected hill losses summed over directions.
        cross: C = sum (h/2) E[y_a y_b], from `stable_cross` or `decay_cross`.

    Raises:
        InputError: a value out of range.

    >>> interpolated_loss([0.0, 0.5, 1.0], 0.0, 1.0, 1.0, 0.2).round(12).tolist()
    [1.0, 0.6, 1.0]
    """
    s = check_values("alpha", alpha)
    D, a, b, C = _ends(drop, first, last, cross)
    loss: FloatArray = -D * s + a * (1.0 - s) ** 2 + b * s**2 + 2.0 * s * (1.0 - s) * C
    return loss


def interior_minimum(drop: float, first: float, last: float, cross: float) -> float | None:
    """Where between a and b the expected loss is least, or None where it is least at an end.

    alpha = (D/2 + H_a - C)/(H_a + H_b - 2 C) if that is inside (0, 1): for a stable pair iff D < 2 H (1 - rho^k), and
    a decay pair falls all the way iff D >= 2 (H_b - C). Arguments as `interpolated_loss`.

    Raises:
        InputError: a value out of range.

    >>> interior_minimum(0.4, 1.0, 1.0, 0.2), interior_minimum(2.0, 1.0, 1.0, 0.2)
    (0.625, None)
    """
    D, a, b, C = _ends(drop, first, last, cross)
    bend = a + b - 2.0 * C
    top = 0.5 * D + a - C
    return top / bend if 0.0 < top < bend else None


def _ends(drop: float, first: float, last: float, cross: float) -> tuple[float, float, float, float]:
    D = check_number("drop", drop, low=-LARGEST, high=LARGEST, what="of the river loss from a to b")
    a = check_number("first", first, low=0.0, high=LARGEST, what="hill loss at a")
    b = check_number("last", last, low=0.0, high=LARGEST, what="hill loss at b")
    most = math.sqrt(a * b) * (1.0 + 1e-9)  # Cauchy-Schwarz
    return D, a, b, check_number("cross", cross, low=-most, high=most, what="(h/2) E[y_a y_b]")


# --- bends -----------------------------------------------------------------------------------------------------------
def bend_speed(slope: ArrayLike, gradient: ArrayLike) -> FloatArray:
    """dx/dt = c / (1 + f'^2) of gradient flow in L = -c x + (h/2)(y - f(x))^2, to leading order in c kappa/h.

    Args:
        slope: c.
        gradient: f'(x) of the valley floor y = f(x).

    Raises:
        InputError: a value out of range.

    >>> bend_speed(1.0, 2.0).item()
    0.2
    """
    speed: FloatArray = check_values("slope", slope) / (1.0 + check_values("gradient", gradient) ** 2)
    return speed


def bend_offset(slope: ArrayLike, curvature: ArrayLike, gradient: ArrayLike) -> FloatArray:
    """d = y - f(x) = -c f' / (h (1 + f'^2)), at which gradient flow runs beside the valley floor.

    The curve y = f(x) + d is the river, where the gradient is parallel to the flattest direction of the Hessian; the
    floor y = f(x) itself is not. To leading order in c kappa/h.

    Raises:
        InputError: a value out of range.

    >>> bend_offset(1.0, 10.0, 2.0).round(6).item()
    -0.04
    """
    return -np.asarray(gradient, dtype=np.float64) * bend_speed(slope, gradient) / check_curvature(curvature)


def landing_shift(offset: ArrayLike, gradient: ArrayLike) -> FloatArray:
    """f' d / (1 + f'^2): how far along x a state at the offset d = y - f(x) lands when it relaxes to the river.

    To leading order in the offset.

    Raises:
        InputError: a value out of range.

    >>> landing_shift(0.5, 2.0).item()
    0.2
    """
    shift: FloatArray = (
        check_values("offset", offset) * np.asarray(gradient, dtype=np.float64) * bend_speed(1.0, gradient)
    )
    return shift


def outward_offset(lr: float, slope: float, curvature: ArrayLike, sigma: ArrayLike, bend: ArrayLike) -> FloatArray:
    """kappa eta (sigma^2 + c^2) / (2 h): mean offset of SGD from the valley floor, away from the centre of a bend.

    kappa = `bend` is one over the radius. Steps along the tangent, of mean square eta^2 (sigma^2 + c^2), leave the
    circle by kappa/2 times their square, and the hill takes eta h of the offset back in every update.

    Raises:
        InputError: a value out of range.

    >>> outward_offset(0.1, 0.0, 1.0, 2.0, 0.5).item()
    0.1
    """
    check_number("lr", lr, low=0.0, high=LARGEST)
    h, noise = check_curvature(curvature), check_noise(sigma)
    square = noise**2 + check_number("slope", slope, low=-LARGEST, high=LARGEST) ** 2
    offset: FloatArray = check_values("bend", bend) * lr * square / (2.0 * h)
    return offset


def chord_penalty(curvature: ArrayLike, bend: ArrayLike, length: ArrayLike) -> FloatArray:
    """(h/2)(kappa l^2/8)^2: hill loss at the middle of the straight line between two points of a bent river.

    For points an arc of length l apart, with kappa l << 1; kappa = `bend`.

    Raises:
        InputError: a value out of range.

    >>> chord_penalty(2.0, 0.1, 4.0).round(6).item()
    0.04
    """
    return _penalty(curvature, bend, length, 8.0)


def averaging_penalty(curvature: ArrayLike, bend: ArrayLike, length: ArrayLike) -> FloatArray:
    """(h/2)(kappa l^2/24)^2: hill loss of the uniform average over an arc of length l, a ninth of `chord_penalty`.

    Raises:
        InputError: a value out of range.

    >>> averaging_penalty(2.0, 0.1, 4.0).round(6).item()
    0.004444
    """
    return _penalty(curvature, bend, length, 24.0)


def _penalty(curvature: ArrayLike, bend: ArrayLike, length: ArrayLike, share: float) -> FloatArray:
    arc = check_values("length", length, low=0.0, what="of the arc")
    offset = check_values("bend", bend) * arc**2 / share
    penalty: FloatArray = 0.5 * check_curvature(curvature) * offset**2
    return penalty
