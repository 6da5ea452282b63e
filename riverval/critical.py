"""Critical sharpness: the curvature along an update, by forward passes only; for models too large for H v."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._checks import check_number
from .errors import InputError


@dataclass(frozen=True)
class CriticalSharpness:
    """The step at which a move along a direction begins to raise the loss, as a curvature.

    Attributes:
        value: lambda_c = 2 / step; nan where no step within reach raises the loss (then lambda_c < 2 / low).
        step: eta_c; inf where no step within reach raises the loss.
        low, high: the bracket: the loss is not raised at `low`, and raised (or not finite) at `high`.
        evaluations: of the loss, the one at the point included.
    """

    value: float
    step: float
    low: float
    high: float
    evaluations: int


_REACH = 2.0**40  # from the first step tried, both ways


def critical_sharpness(
    loss: Callable[[Any], Any],
    point: Any,
    direction: Any,
    *,
    guess: float,
    accuracy: float = 0.1,
    reach: float = _REACH,
) -> CriticalSharpness:
    """lambda_c = 2 / eta_c by forward passes only, eta_c the step along an update that begins to raise the loss.

    eta_c > 0 is a root of L(w + eta u) = L(w), below which the loss is lower and beyond which it is higher: the
    smallest such root if the loss falls and then rises along the line, as it does in a valley (arXiv 2601.16979). On a
    quadratic with gradient g and Hessian H and u = -d: eta_c = 2 g'd / d'Hd and lambda_c = d'Hd / g'd, for d = g the
    Rayleigh quotient of the gradient, at most lambda_max (derived). The root is bracketed by steps that double (or
    halve) ever faster, then by interpolation of (L(w + eta u) - L(w)) / eta, a line on a quadratic, or by bisection of
    log eta where that does not shrink the bracket enough: 4 to 7 evaluations from a guess within a factor of 2.

    Args:
        loss: a function of the parameters, such as `LossOnBatches`, that gives a number.
        point: w, a NumPy array or a tensor; not changed.
        direction: u, the update for a learning rate of 1, of the same kind: a step goes to w + eta u. For SGD u = -g.
        guess: the first step tried: the last probe's `step`, or the learning rate.
        accuracy: the bracket's width asked for: high / low <= 1 + accuracy.
        reach: how far from the guess to look, as a factor, for a step that raises (or, inverted, lowers) the loss.

    A loss that is not finite counts as raised. Where no step up to guess * reach raises the loss the result says so.

    Raises:
        InputError: an argument out of range, a direction of another shape, a loss that is not finite at the point, or a
            direction along which the loss does not fall: no step down to guess / reach lowers it.

    Its null is the curvature of a random direction, Tr(H) / n (`riverval.traces.hutchinson`); the largest eigenvalue is
    its ceiling on a quadratic for u = -g.

    >>> import numpy as np
    >>> found = critical_sharpness(lambda w: float(2.0 * w @ w), np.ones(3), -4.0 * np.ones(3), guess=0.3)
    >>> round(found.value, 6), found.evaluations
    (4.0, 5)
    """
    check_number("guess", guess, low=0.0, open_low=True)
    check_number("accuracy", accuracy, low=1e-9)
    check_number("reach", reach, low=1.0, open_low=True)
    shapes = [tuple(getattr(vector, "shape", ())) for vector in (point, direction)]
    if shapes[0] != shapes[1]:
        raise InputError(f"the direction must have the point's shape {shapes[0]}, got {shapes[1]}")
    line = _Line(loss, point, direction)
    low, high = line.bracket(guess, reach)
    if math.isinf(high):
        return CriticalSharpness(math.nan, math.inf, low, high, line.evaluations)
    low, high = line.narrow(low, high, 1.0 + accuracy)
    step = line.root(low, high)
    return CriticalSharpness(2.0 / step, step, low, high, line.evaluations)


class _Line:
    """The rise of a loss along a direction; every step tried is remembered."""

    def __init__(self, loss: Callable[[Any], Any], point: Any, direction: Any) -> None:
        self._loss, self._point, self._direction = loss, point, direction
        self._rises: dict[float, float] = {}
        self._base = float(loss(point))
        self.evaluations = 1
        if not math.isfinite(self._base):
            raise InputError(f"the loss at the point is {self._base}; a sharpness needs a finite one")

    def rise(self, step: float) -> float:
        """L(w + step u) - L(w); inf where it is not finite."""
        if step not in self._rises:
            self.evaluations += 1
            value = float(self._loss(self._point + step * self._direction)) - self._base
            self._rises[step] = value if math.isfinite(value) else math.inf
        return self._rises[step]

    def bracket(self, guess: float, reach: float) -> tuple[float, float]:
        """A step that lowers the loss (or leaves it) and a larger one that raises it; inf if none within reach."""
        step, factor = guess, 2.0
        if self.rise(step) > 0:
            high = step
            while self.rise(step) >= 0:  # no change at all may be rounding of a step too small to be seen
                if step <= guess / reach:
                    raise InputError(
                        f"the loss does not fall along the direction (a step of {step:.3g} changes it by "
                        f"{self.rise(step):.3g}); a critical step needs a descent direction, such as minus the gradient"
                    )
                high = step if self.rise(step) > 0 else high
                step, factor = step / factor, factor * factor
            return step, high
        while self.rise(step) <= 0:
            low, step, factor = step, step * factor, factor * factor
            if low >= guess * reach:
                return low, math.inf
        return low, step

    def narrow(self, low: float, high: float, width: float) -> tuple[float, float]:
        """The bracket, shrunk to high / low <= width."""
        slow = 0
        while high / low > width:
            step = math.sqrt(low * high)
            guess = self.root(low, high)
            if slow < 2 and low < guess < high:
                # To the far side of the root: if the line is right the next step closes the bracket from there.
                beside = guess * width**0.45 if guess / low < high / guess else guess / width**0.45
                step = beside if low < beside < high else step
            before = high / low
            if self.rise(step) > 0:
                high = step
            else:
                low = step
            slow = 0 if high / low <= math.sqrt(before) or slow == 2 else slow + 1
        return low, high

    def root(self, low: float, high: float) -> float:
        """Where rise / step is zero between two steps: of the line or the parabola through it, or else the middle."""
        a, b = self.rise(low) / low, self.rise(high) / high
        if not (math.isfinite(b) and a < b):
            return math.sqrt(low * high)
        line = low - a * (high - low) / (b - a)
        known = [step for step, rise in self._rises.items() if math.isfinite(rise) and step not in (low, high)]
        if known:
            third = min(known, key=lambda step: abs(math.log(step / line)))
            # One step of Newton's method on the parabola, from the line's root.
            bend = ((self.rise(third) / third - b) / (third - high) - (b - a) / (high - low)) / (third - low)
            slope = (b - a) / (high - low) + bend * (2 * line - low - high)
            if slope > 0:
                line -= bend * (line - low) * (line - high) / slope
        return min(max(line, low), high)
