r"""What a cooldown of a given shape leaves of the hill loss: exact for any number of updates, and its limit.

A cooldown of T updates takes the rate from eta to eta s(1) by eta_t = eta s(t/T), starting from the stationary state of
eta between hills of curvature h. For small eta h the hill loss then depends on one number only, x = eta h T, the length
of the cooldown in relaxation times. With R(u) the hill loss at the progress u as a fraction of that of the plateau
(derived: the limit of the recursion of `riverval.theory.final_variance` at eta h -> 0 with x fixed),

.. math:: R' = 2x\,(s^2 - s R),\quad R(0) = 1,\qquad
          R(1) = e^{-2x\int_0^1 s} + 2x\int_0^1 s(u)^2\, e^{-2x\int_u^1 s}\,du .

Shapes are those of `riverval.shapes`. In the place of a shape, None stands for the optimal decay of
`riverval.theory.optimal_decay`, s(u) = 1/(2 + x u), which is not one shape but one for each x.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from ._arrays import check_values
from ._checks import check_number, check_steps
from ._typing import ArrayLike, FloatArray
from .errors import InputError
from .shapes import Inverse, Shape
from .theory import final_variance, optimal_decay, stationary_variance

LONGEST = 1e12
"""The largest x: beyond it the quadrature does not resolve the last updates."""

_NODES = 24
_HALVINGS = 60  # panels shrink by half towards both ends, down to 2^-60 of the cooldown


# --- the continuum limit ---------------------------------------------------------------------------------------------
def hill_ratio(shape: Shape | None, x: ArrayLike) -> FloatArray:
    """R(1) = H_T / H, the hill loss after a cooldown of the shape as a fraction of the plateau's; shape of `x`.

    Gauss-Legendre quadrature of the formula above, on panels that shrink towards both ends of the cooldown; good to
    about 10 digits.

    Args:
        shape: the decay shape with its floor, or None for the optimal decay.
        x: eta h T, the length of the cooldown in relaxation times of the hill, in [0, 1e12].

    Raises:
        InputError: x out of range.

    >>> from riverval.shapes import Inverse, Linear
    >>> hill_ratio(Inverse(floor=0.1), [1.0, 9.0]).round(4).tolist(), hill_ratio(Linear(), 30.0).round(4).item()
    ([0.7422, 0.19], 0.1618)
    """
    lengths = _check_length(x)
    if shape is None:
        return 1.0 / (1.0 + 0.5 * lengths)
    u, weights, integrate = _panels()
    rate = shape(u)
    inner = rate @ integrate.T  # from the left end of each panel to each node; the last column to its right end
    width = _edges()[1:, None] - _edges()[:-1, None]
    inner = inner * width
    whole = inner[:, -1]
    later = np.concatenate([np.cumsum(whole[::-1])[::-1][1:], [0.0]])  # of the panels to the right
    remaining = later[:, None] + whole[:, None] - inner[:, :-1]
    squares = weights * rate**2
    ratios = [
        math.exp(-2.0 * k * float(whole.sum())) + 2.0 * k * float(np.sum(squares * np.exp(-2.0 * k * remaining)))
        for k in lengths.flat
    ]
    return np.array(ratios).reshape(lengths.shape)


def shape_area(shape: Shape) -> float:
    """The mean of s(u) over the cooldown: the river distance travelled, as a fraction of that at the full rate.

    1/2 for linear and cosine, 1/3 for 1-sqrt, 2/3 for square (each to zero), r/(1-r) ln(1/r) for inverse to r.

    >>> from riverval.shapes import Inverse, OneMinusSqrt
    >>> round(shape_area(OneMinusSqrt()), 10), round(shape_area(Inverse(floor=0.1)), 4)
    (0.3333333333, 0.2558)
    """
    u, weights, _ = _panels()
    return float(np.sum(weights * shape(u)))


def optimal_area(x: ArrayLike) -> FloatArray:
    """ln(1 + x/2) / x, the mean of the optimal decay s(u) = 1/(2 + x u): its river distance, as in `shape_area`.

    Raises:
        InputError: x = eta h T not in (0, 1e12].

    >>> optimal_area(30.0).round(6).item()
    0.09242
    """
    lengths = _check_length(x, open_low=True)
    area: FloatArray = np.log1p(0.5 * lengths) / lengths
    return area


# --- with a given number of updates ----------------------------------------------------------------------------------
def cooldown_rates(shape: Shape | None, lr: float, steps: int, *, curvature: float) -> FloatArray:
    """eta s(t/T) for t = 0..T-1, or the optimal decay for the curvature h; shape (steps,).

    Raises:
        InputError: lr h >= 2 for the optimal decay, or a value out of range.
    """
    if shape is None:
        return optimal_decay(lr, curvature, steps)
    check_number("lr", lr, low=0.0, open_low=True)
    n = check_steps("steps", steps, low=1, what="of the cooldown")
    return lr * shape(np.arange(n) / n)


def exact_hill_ratio(shape: Shape | None, lr: float, curvature: float, steps: int) -> float:
    """H_T / H by the recursion itself, for a cooldown of T = `steps` updates from the stationary state of eta = `lr`.

    It tends to ``hill_ratio(shape, lr * curvature * steps)`` as lr h -> 0.

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> from riverval.shapes import Linear
    >>> round(0.0625 * exact_hill_ratio(Linear(), 0.1, 2.0, 40), 8)
    0.01812519
    """
    start = float(stationary_variance(lr, curvature, 1.0))
    rates = cooldown_rates(shape, lr, steps, curvature=curvature)
    return float(final_variance(rates, curvature, 1.0, start=start)) / start


# --- long cooldowns --------------------------------------------------------------------------------------------------
def asymptotic_ratio(x: ArrayLike, coefficient: float, exponent: float) -> FloatArray:
    r"""H_T / H of a long cooldown whose rate ends as s = a (1 - u)^p: a ((p+1)/(2 a x))^{p/(p+1)} Gamma(1 + p/(p+1)).

    The last updates alone decide, so all shapes with the same end fall alike, as x^{-p/(p+1)} (derived). With a =
    `coefficient` and p = `exponent`, the shapes to zero end as

    ==============  ==========  ===
    shape           a           p
    ==============  ==========  ===
    linear          1           1
    1-sqrt          1/2         1
    square          2           1
    mirror-cosine   2           1
    cosine          pi^2/4      2
    power p         1           p
    ==============  ==========  ===

    so linear leaves H sqrt(pi/(4x)), which is (sqrt(pi)/8) sigma^2 sqrt(eta/(h T)). Good to 1% for x >= 100 and p = 1.

    Raises:
        InputError: a value out of range.

    >>> asymptotic_ratio(100.0, 1.0, 1.0).round(5).item()
    0.08862
    """
    lengths = _check_length(x, open_low=True)
    a = check_number("coefficient", coefficient, low=0.0, open_low=True)
    p = check_number("exponent", exponent, low=0.0, open_low=True)
    share = p / (p + 1.0)
    ratio: FloatArray = a * ((p + 1.0) / (2.0 * a * lengths)) ** share * math.gamma(1.0 + share)
    return ratio


# --- comparisons -----------------------------------------------------------------------------------------------------
def crossing(first: Shape | None, second: Shape | None, *, low: float, high: float) -> float:
    """The x in [low, high] at which two shapes leave the same hill loss.

    Raises:
        InputError: a bound out of range, or no change of order between the bounds.

    >>> from riverval.shapes import Inverse, OneMinusSqrt
    >>> round(crossing(Inverse(floor=0.1), OneMinusSqrt(floor=0.1), low=1.0, high=10.0), 2)
    3.63
    """
    bounds = _check_length([low, high], open_low=True)

    def gap(log: float) -> float:
        return float(hill_ratio(first, math.exp(log)) - hill_ratio(second, math.exp(log)))

    left, right = (math.log(float(b)) for b in bounds)
    if not left < right or gap(left) * gap(right) > 0:
        raise InputError(
            f"the hill losses of the two shapes do not change order between x = {low:g} and x = {high:g}; "
            f"give bounds on two sides of their crossing"
        )
    return math.exp(brentq(gap, left, right, xtol=1e-12))


def best_floor(x: float) -> float:
    """The floor r of the inverse decay that leaves the least hill loss at x.

    It is 0.84/(1 + x) at x = 9, and tends to 1/(1 + x).
    The inverse decay to r is the optimal decay of a hill with h = (1/r - 1)/(eta T), but for its first update.

    Raises:
        InputError: x not in (0, 1e9].

    >>> round(best_floor(9.0), 3)
    0.084
    """
    check_number("x", x, low=0.0, high=1e9, open_low=True, what="eta h T")

    def left(log: float) -> float:
        return float(hill_ratio(Inverse(floor=math.exp(log)), x))

    found = minimize_scalar(left, bounds=(-math.log1p(100.0 * x), 0.0), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)


def preference(first: Shape | None, second: Shape | None, x: float) -> float:
    """The river drop c^2 eta T at the full rate, over H, at which two cooldowns end at the same total loss.

    (R_2 - R_1) / (A_2 - A_1), with R the `hill_ratio` and A the `shape_area`: a cooldown gains c^2 eta T A along the
    river and leaves H R between the hills. In a flatter river the shape with the smaller area ends lower, in a steeper
    one the other; a negative value means that one shape is better in every river (derived).

    Raises:
        InputError: x not in (0, 1e12], or two shapes of the same area.

    >>> from riverval.shapes import Inverse, Linear
    >>> round(preference(Inverse(floor=0.1), Linear(floor=0.1), 30.0), 3)
    0.242
    """
    lengths = _check_length(x, open_low=True)
    areas = [float(optimal_area(lengths)) if shape is None else shape_area(shape) for shape in (first, second)]
    if math.isclose(*areas, rel_tol=1e-9):
        raise InputError("both shapes travel the same distance: the one with the lower hill_ratio is better everywhere")
    ratios = [float(hill_ratio(shape, lengths)) for shape in (first, second)]
    return (ratios[1] - ratios[0]) / (areas[1] - areas[0])


# --- quadrature ------------------------------------------------------------------------------------------------------
def _check_length(x: ArrayLike, *, open_low: bool = False) -> FloatArray:
    return check_values("x", x, low=0.0, high=LONGEST, open_low=open_low, what="eta h T, the length of the cooldown")


@lru_cache(maxsize=1)
def _edges() -> FloatArray:
    """Panel edges in [0, 1], at 2^-k and 1 - 2^-k."""
    near_zero = 0.5 ** np.arange(_HALVINGS, 0, -1)
    near_one = 1.0 - 0.5 ** np.arange(2, 53)  # 1 - 2^-53 is the last number below 1
    return np.concatenate([[0.0], near_zero, near_one, [1.0]])


@lru_cache(maxsize=1)
def _panels() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Nodes and weights (panels, n), and the matrix that integrates values at n nodes of [0, 1] to each node and to 1.

    The last is (n + 1, n): exact for polynomials below degree n.
    """
    roots, weights = np.polynomial.legendre.leggauss(_NODES)
    edges = _edges()
    width = np.diff(edges)[:, None]
    u = edges[:-1, None] + width * (roots + 1.0) / 2.0
    # A Legendre series through the values, integrated term by term from -1: P_k -> (P_{k+1} - P_{k-1}) / (2k + 1).
    values = np.polynomial.legendre.legvander(roots, _NODES)
    degree = np.arange(_NODES)
    series = values[:, :-1].T * weights * (2.0 * degree[:, None] + 1.0) / 2.0
    integrals = (values[:, 2:] - values[:, :-2]) / (2.0 * degree[1:] + 1.0)
    integrals = np.concatenate([roots[:, None] + 1.0, integrals], axis=1)
    integrate = 0.5 * np.concatenate([integrals @ series, weights[None, :]])
    return u, width * weights / 2.0, integrate
