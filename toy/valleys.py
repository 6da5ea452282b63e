"""The registry's valleys that are one formula each: bent, narrowing, flattening and stress cases.

A class is a formula, whose parameters are the fields, with their ranges; everything else is derived from it. The fields
are the symbols of the docstrings' formulas; x is along the river and y across it where nothing else is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from .._checks import LARGEST, check_number, make_plain
from .._typing import FloatArray
from ..errors import InputError
from .losses import register_loss
from .symbolic import Formula, FormulaLoss


def number(
    default: float,
    what: str,
    *,
    low: float = -LARGEST,
    high: float = LARGEST,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """A field that is a number in a range, `what` its meaning."""
    rule = {"low": low, "high": high, "open_low": open_low, "open_high": open_high, "what": what}
    return field(default=default, metadata=rule)


def positive(default: float, what: str) -> Any:
    """A field that is a number above zero."""
    return number(default, what, low=0.0, open_low=True)


def not_negative(default: float, what: str) -> Any:
    """A field that is a number of at least zero."""
    return number(default, what, low=0.0)


class Valley(FormulaLoss):
    """A formula whose parameters are the fields of a frozen dataclass, each a number in the range it states."""

    FORMULA: ClassVar[Formula]

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            check_number(f.name, getattr(self, f.name), **f.metadata)
        make_plain(self)

    def formula(self) -> Formula:
        """The expression and its names."""
        return self.FORMULA

    def numbers(self) -> FloatArray:
        """The values of the fields."""
        return np.array([getattr(self, name) for name in self.FORMULA.parameters], dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, JSON-ready, as ``make_loss(**d)`` takes them."""
        return {"name": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


def _formula(expression: str, parameters: str, floor: dict[str, str], coordinates: str = "x y") -> Formula:
    return Formula(expression, tuple(coordinates.split()), tuple(parameters.split()), tuple(floor.items()))


@register_loss("bent")
@dataclass(frozen=True)
class BentRiver(Valley):
    r"""A river that winds like a sine (the test bed of the bent-river predictions; derived).

    .. math:: L(x, y) = -c\,x + \tfrac{h}{2}\,\bigl(y - A \sin(k x)\bigr)^2

    with c = `slope`, h = `curvature`, A = `amplitude`, k = `wavenumber`. Floor: y = A sin(kx). Its curvature is at most
    A k^2, and the river is tracked where c A k^2 / h is small.

    Raises:
        InputError: c < 0, h <= 0, or a number that is not finite.
    """

    slope: float = not_negative(0.1, "fall of the loss per unit of x")
    curvature: float = positive(2.0, "second derivative across the river")
    amplitude: float = number(1.0, "of the bends")
    wavenumber: float = number(0.5, "radians of bend per unit of x")

    FORMULA = _formula(
        "-slope*x + curvature/2*(y - amplitude*sin(wavenumber*x))**2",
        "slope curvature amplitude wavenumber",
        {"y": "amplitude*sin(wavenumber*x)"},
    )

    def start(self) -> FloatArray:
        """(0, 1), one above the river."""
        return np.array([0.0, 1.0])


@register_loss("bent-bowl")
@dataclass(frozen=True)
class BentBowl(Valley):
    r"""A winding river that ends in a minimum, the bent landscape of the public river-valley-momentum code.

    .. math:: L(x, y) = \tfrac{\mu}{2}\,(x - x^*)^2 + \tfrac{\lambda}{2}\,\bigl(y - a \sin(k x)\bigr)^2

    with mu = `flat`, lambda = `curvature`, x* = `target`, a = `amplitude`, k = `wavenumber`. Floor: y = a sin(kx).
    Amplitude 0 is that code's straight landscape.

    Raises:
        InputError: mu < 0, lambda <= 0, or a number that is not finite.
    """

    flat: float = not_negative(0.1, "curvature along the river")
    curvature: float = positive(10.0, "second derivative across the river")
    target: float = number(5.0, "place of the minimum")
    amplitude: float = number(1.0, "of the bends")
    wavenumber: float = number(0.5, "radians of bend per unit of x")

    FORMULA = _formula(
        "flat/2*(x - target)**2 + curvature/2*(y - amplitude*sin(wavenumber*x))**2",
        "flat curvature target amplitude wavenumber",
        {"y": "amplitude*sin(wavenumber*x)"},
    )

    def start(self) -> FloatArray:
        """(0, 1), one above the river."""
        return np.array([0.0, 1.0])


@register_loss("circle")
@dataclass(frozen=True)
class CircleRiver(Valley):
    r"""A river of constant curvature 1/R, along which the loss falls at a constant rate (derived).

    .. math:: L(x, y) = -c R \varphi + \tfrac{h}{2}\,(r - R)^2, \qquad r = \sqrt{x^2 + y^2},\ \varphi = \arctan(x / y)

    with c = `slope` per unit of arc, h = `curvature`, R = `radius`. The angle phi runs clockwise from the positive y
    axis, where the default start is, and jumps at the negative y axis: the value does, the gradient does not. The floor
    point is the nearest point of the circle, so it has another x than the state.

    Raises:
        InputError: c < 0, h <= 0, R <= 0, or a number that is not finite.
    """

    slope: float = not_negative(0.1, "fall of the loss per unit of arc")
    curvature: float = positive(2.0, "second derivative across the river")
    radius: float = positive(5.0, "of the circle")

    FORMULA = _formula(
        "-slope*radius*atan2(x, y) + curvature/2*(sqrt(x**2 + y**2) - radius)**2",
        "slope curvature radius",
        {"x": "x*radius/sqrt(x**2 + y**2)", "y": "y*radius/sqrt(x**2 + y**2)"},
    )

    def start(self) -> FloatArray:
        """(0, 1.2 R): above the top of the circle."""
        return np.array([0.0, 1.2 * self.radius])


@register_loss("hyperbola")
@dataclass(frozen=True)
class HyperbolaRiver(Valley):
    r"""The river w1 w2 = 1, along which the loss falls as w1 grows (after the description in arXiv:2507.09846).

    .. math:: L(w_1, w_2) = \tfrac{h}{2}\,(w_1 w_2 - 1)^2 + \log\bigl(1 + e^{-w_1}\bigr)

    with h = `curvature`. Floor: w2 = 1 / w1. That paper does not print its formula; this form has its river and its
    start (2, 2).

    Raises:
        InputError: h <= 0, or not finite.
    """

    curvature: float = positive(1.0, "scale of the hills")

    FORMULA = _formula(
        "curvature/2*(w1*w2 - 1)**2 + log(1 + exp(-w1))", "curvature", {"w2": "1/w1"}, coordinates="w1 w2"
    )

    def start(self) -> FloatArray:
        """(2, 2)."""
        return np.array([2.0, 2.0])


@register_loss("sharpening")
@dataclass(frozen=True)
class SharpeningValley(Valley):
    r"""A straight valley that narrows downstream, or widens where k < 0 (derived).

    .. math:: L(x, y) = -c\,x + \tfrac{h_0}{2}\,e^{k x}\,y^2

    with c = `slope`, h0 = `curvature` (at x = 0), k = `rate`. Noise between the hills pushes against the slope with the
    force k H, H the mean hill loss: at k > 0 a larger rate can be slower. Floor: y = 0.

    Raises:
        InputError: c < 0, h0 <= 0, or a number that is not finite.
    """

    slope: float = not_negative(0.1, "fall of the loss per unit of x")
    curvature: float = positive(2.0, "second derivative across the river at x = 0")
    rate: float = number(0.2, "growth of log h per unit of x; below 0 the valley widens")

    FORMULA = _formula("-slope*x + curvature/2*exp(rate*x)*y**2", "slope curvature rate", {"y": "0"})

    def start(self) -> FloatArray:
        """(0, 1)."""
        return np.array([0.0, 1.0])


@register_loss("power-law")
@dataclass(frozen=True)
class PowerLawRiver(Valley):
    r"""A straight valley whose river loss is a power of the summed learning rate S (derived).

    .. math:: L(x, y) = A\,\Bigl(1 + \frac{(1-a)\,x}{2\sqrt{a A}}\Bigr)^{-2a/(1-a)} + \tfrac{h}{2}\,y^2

    with A = `scale`, a = `exponent`, h = `curvature`. Gradient flow along y = 0 from x = 0 has
    x(S) = 2 sqrt(aA)/(1-a) [(1+S)^((1-a)/2) - 1], hence river loss A (1 + S)^-a after the time S. The river begins at
    x = -2 sqrt(aA)/(1-a), before which the loss is not a number.

    Raises:
        InputError: A <= 0, a outside (0, 1), h <= 0, or a number that is not finite.
    """

    scale: float = positive(1.0, "loss at x = 0")
    exponent: float = number(0.5, "of the power law", low=0.0, high=1.0, open_low=True, open_high=True)
    curvature: float = positive(2.0, "second derivative across the river")

    FORMULA = _formula(
        "scale*(1 + (1 - exponent)*x/(2*sqrt(exponent*scale)))**(-2*exponent/(1 - exponent)) + curvature/2*y**2",
        "scale exponent curvature",
        {"y": "0"},
    )

    def start(self) -> FloatArray:
        """(0, 1)."""
        return np.array([0.0, 1.0])

    def travelled(self, summed_lr: FloatArray) -> FloatArray:
        """Place x at which gradient flow along the river is after the time S = `summed_lr`, any shape."""
        half = (1.0 - self.exponent) / 2.0
        return math.sqrt(self.exponent * self.scale) / half * np.expm1(half * np.log1p(summed_lr))


@register_loss("quartic")
@dataclass(frozen=True)
class QuarticWalls(Valley):
    r"""A straight river between walls that are not quadratic (derived).

    .. math:: L(x, y) = -c\,x + \tfrac{h}{2}\,y^2 + \tfrac{q}{4}\,y^4

    with c = `slope`, h = `curvature`, q = `quartic`. Floor: y = 0. At h = 0 the walls are purely quartic: no curvature
    at the floor, and so no eigengap there.

    Raises:
        InputError: c, h or q below 0, h and q both 0, or a number that is not finite.
    """

    slope: float = not_negative(0.1, "fall of the loss per unit of x")
    curvature: float = not_negative(1.0, "second derivative at the floor")
    quartic: float = not_negative(1.0, "of the walls")

    FORMULA = _formula("-slope*x + curvature/2*y**2 + quartic/4*y**4", "slope curvature quartic", {"y": "0"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curvature == self.quartic == 0.0:
            raise InputError("curvature and quartic are both 0: there are no walls; give one of them a value above 0")

    def start(self) -> FloatArray:
        """(0, 1)."""
        return np.array([0.0, 1.0])


@register_loss("rosenbrock")
@dataclass(frozen=True)
class Rosenbrock(Valley):
    r"""The banana valley, a stress case: its river is bent as sharply as it is wide, and it ends in a minimum.

    .. math:: L(x, y) = (a - x)^2 + b\,(y - x^2)^2

    with a = `target`, b = `steepness` (H. H. Rosenbrock, The Computer Journal 3, 1960). Floor: y = x^2.

    Raises:
        InputError: b <= 0, or a number that is not finite.
    """

    target: float = number(1.0, "place of the minimum")
    steepness: float = positive(100.0, "of the walls")

    FORMULA = _formula("(target - x)**2 + steepness*(y - x**2)**2", "target steepness", {"y": "x**2"})

    def start(self) -> FloatArray:
        """(-1.2, 1)."""
        return np.array([-1.2, 1.0])
