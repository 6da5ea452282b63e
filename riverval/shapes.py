"""Decay shapes: how the rate falls from 1 to its floor while the progress u of a cooldown runs from 0 to 1.

A shape is a frozen value and a pure, vectorised function of u in [0, 1]. Every shape starts at 1 (so a cooldown joins
its plateau without a jump) and reaches `floor`, a fraction of the starting rate, at u = 1. A cooldown of n updates
evaluates it at u = 0, 1/n, ..., (n-1)/n: see the step convention in `riverval.schedules`.

Most shapes fall to zero and are mixed with the floor f as f + (1 - f) s(u). `inverse` and `exponential` contain the
floor as their parameter and cannot reach zero; their default floor is 0.1."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from ._checks import check_number, check_options, make_plain, pick
from ._registry import registrar
from ._typing import ArrayLike, FloatArray

SHAPES: dict[str, type[Shape]] = {}


register_shape = registrar(SHAPES)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decay shape. Subclasses define `profile(u)`, which falls from 1 at u = 0 to 0 at u = 1.

    Args:
        floor: rate at the end of the decay as a fraction of the rate at its start, in [0, 1].

    Raises:
        InputError: at construction, for a floor outside its range.
    """

    name: ClassVar[str]
    lowest_floor_is_zero: ClassVar[bool] = True

    floor: float = 0.0

    def __post_init__(self) -> None:
        open_low = not self.lowest_floor_is_zero
        what = f"the final rate of the {self.name} decay as a fraction of its starting rate"
        check_number("floor", self.floor, low=0.0, high=1.0, open_low=open_low, what=what)
        make_plain(self)

    def profile(self, u: FloatArray) -> FloatArray:
        raise NotImplementedError

    def __call__(self, u: ArrayLike) -> FloatArray:
        """The factor at progress `u` (any shape, values in [0, 1]); same shape as `u`."""
        progress = np.asarray(u, dtype=np.float64)
        # Rounding may leave a floor of, say, 0.1 at 0.09999999999999998: the floor is a promise, so hold it.
        return np.maximum(self.floor + (1.0 - self.floor) * self.profile(progress), self.floor)

    def describe(self) -> str:
        """A few words for people, every field among them."""
        rest = "".join(f", {f.name} {getattr(self, f.name):g}" for f in fields(self) if f.name != "floor")
        return f"{self.name} to {self.floor:g}{rest}"

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, as `make_shape(**d)` takes them."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}


@register_shape("linear")
@dataclass(frozen=True, kw_only=True)
class Linear(Shape):
    """s(u) = 1 - u.

    >>> Linear()([0, 0.25, 1]).tolist()
    [1.0, 0.75, 0.0]
    """

    def profile(self, u: FloatArray) -> FloatArray:
        return 1.0 - u


@register_shape("inverse")
@dataclass(frozen=True, kw_only=True)
class Inverse(Shape):
    """Inverse-proportional, the decay of WSD-S: 1 / (1 - u + u / f) with f = `floor` > 0.

    Wen et al. 2024 (arXiv:2410.05192); `_inv_decay_schedule` of stanford-crfm/levanter. One over the rate grows
    linearly, as the optimal decay of a noisy quadratic does.

    >>> Inverse(floor=0.1)([0, 0.5, 1]).round(6).tolist()
    [1.0, 0.181818, 0.1]
    """

    lowest_floor_is_zero: ClassVar[bool] = False
    floor: float = 0.1

    def __call__(self, u: ArrayLike) -> FloatArray:
        progress = np.asarray(u, dtype=np.float64)
        # Numerator and denominator times f: 1/f would overflow for the smallest floors.
        return np.maximum(self.floor / (self.floor * (1.0 - progress) + progress), self.floor)


@register_shape("1-sqrt")
@dataclass(frozen=True, kw_only=True)
class OneMinusSqrt(Shape):
    """s(u) = 1 - sqrt(u) (Hägele et al. 2024, arXiv:2405.18392).

    >>> OneMinusSqrt()([0, 0.25, 1]).tolist()
    [1.0, 0.5, 0.0]
    """

    def profile(self, u: FloatArray) -> FloatArray:
        return 1.0 - np.sqrt(u)


@register_shape("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Shape):
    """s(u) = (1 + cos(pi u)) / 2 = sin(pi (1 - u) / 2)^2, of which the second form loses no digits near u = 1.

    >>> Cosine()([0, 0.5, 1]).round(12).tolist()
    [1.0, 0.5, 0.0]
    """

    def profile(self, u: FloatArray) -> FloatArray:
        return np.square(np.sin(0.5 * math.pi * (1.0 - u)))


@register_shape("mirror-cosine")
@dataclass(frozen=True, kw_only=True)
class MirrorCosine(Shape):
    """s(u) = 2 (1 - u) - (1 + cos(pi u)) / 2: the cosine mirrored at the line from 1 to 0 (Hägele et al. 2024).

    >>> MirrorCosine()([0, 0.25, 0.5, 1]).round(6).tolist()
    [1.0, 0.646447, 0.5, 0.0]
    """

    def profile(self, u: FloatArray) -> FloatArray:
        return 2.0 * (1.0 - u) - 0.5 * (1.0 + np.cos(math.pi * u))


@register_shape("square")
@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    """s(u) = 1 - u^2: stays high, falls at the end.

    >>> Square()([0, 0.5, 1]).tolist()
    [1.0, 0.75, 0.0]
    """

    def profile(self, u: FloatArray) -> FloatArray:
        return 1.0 - u * u


@register_shape("exponential")
@dataclass(frozen=True, kw_only=True)
class Exponential(Shape):
    """f^u with f = `floor` > 0 (Hu et al. 2024, arXiv:2404.06395).

    >>> Exponential(floor=0.01)([0, 0.5, 1]).round(12).tolist()
    [1.0, 0.1, 0.01]
    """

    lowest_floor_is_zero: ClassVar[bool] = False
    floor: float = 0.1

    def __call__(self, u: ArrayLike) -> FloatArray:
        return np.maximum(np.exp(np.asarray(u, dtype=np.float64) * math.log(self.floor)), self.floor)


@register_shape("power")
@dataclass(frozen=True, kw_only=True)
class Power(Shape):
    """s(u) = (1 - u)^p with p = `exponent` > 0; p = 1 is linear, p < 1 stays high, p > 1 falls early.

    >>> Power(exponent=2.0)([0, 0.5, 1]).tolist()
    [1.0, 0.25, 0.0]
    """

    exponent: float = 2.0

    def __post_init__(self) -> None:
        check_number("exponent", self.exponent, low=0.0, open_low=True, what="of a power decay")
        super().__post_init__()

    def profile(self, u: FloatArray) -> FloatArray:
        # 1 - u can round below zero only if u > 1, which no caller passes; the maximum keeps 0**p exact.
        return np.maximum(1.0 - u, 0.0) ** self.exponent


def make_shape(name: str, **options: Any) -> Shape:
    """Build a registered shape, e.g. ``make_shape("power", exponent=2.0, floor=0.1)``.

    Raises:
        InputError: for an unknown name, an option the shape does not take, or a value out of range.
    """
    cls = pick("decay shape", name, SHAPES)
    check_options(f"decay shape {name!r}", options, [f.name for f in fields(cls)])
    return cls(**options)


def shape_from_dict(described: dict[str, Any]) -> Shape:
    """The inverse of `Shape.to_dict`.

    Raises:
        InputError: as `make_shape`.
    """
    options = dict(described)
    return make_shape(options.pop("name", None), **options)
