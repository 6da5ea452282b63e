"""Analytic river valleys: a flat direction along which the loss falls, between hills that are steep across it.

A loss acts on batches of states ``w`` of shape (..., dim), coordinate 0 along the river and the rest across it. It
splits as value = river + hill, where `river` is the loss of the state's projection onto the river (arXiv:2410.05192).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from .._checks import check_number, check_options, pick
from .._registry import registrar
from .._typing import FloatArray
from ..errors import InputError

LOSSES: dict[str, type[StraightRiver]] = {}

LARGEST = 1e100
"""Size of the largest number a setting may have: squares, and their product with a third number, are still finite."""


register_loss = registrar(LOSSES)


@register_loss("straight")
@dataclass(frozen=True)
class StraightRiver:
    r"""A straight river with quadratic hills, the setting of the SGD theorems of arXiv:2410.05192.

    .. math:: L(x, y) = -c\,x + \tfrac12 \sum_{i=1}^m h_i\, y_i^2

    with c = `slope`, h = `curvatures` and the state w = (x, y_1, ..., y_m) of shape (..., 1 + m). Units are arbitrary.

    Args:
        slope: fall of the loss per unit of distance along the river, c >= 0.
        curvatures: second derivative of each hill direction, h_i > 0; at least one. No number is above 1e100.

    Raises:
        InputError: a slope or curvature outside its range, or no curvature.

    >>> valley = StraightRiver(0.5, (2.0, 4.0))
    >>> valley.value(np.array([1.0, 1.0, 0.5])).item(), valley.gradient(np.array([1.0, 1.0, 0.5])).tolist()
    (1.0, [-0.5, 2.0, 2.0])
    """

    name: ClassVar[str]

    slope: float
    curvatures: tuple[float, ...]

    def __post_init__(self) -> None:
        check_number("slope", self.slope, low=0.0, high=LARGEST, what="fall of the loss per unit of river")
        if not isinstance(self.curvatures, tuple) or not self.curvatures:
            raise InputError(f"curvatures must be a tuple of at least one number > 0, got {self.curvatures!r}")
        for h in self.curvatures:
            check_number("curvatures", h, low=0.0, high=LARGEST, open_low=True, what="of the hill directions")
        # What the gradient needs, once; not fields, so equality and to_dict ignore them.
        object.__setattr__(self, "_h", np.array(self.curvatures, dtype=np.float64))
        object.__setattr__(self, "_diagonal", np.array([0.0, *self.curvatures], dtype=np.float64))

    @property
    def dim(self) -> int:
        """Number of coordinates of a state, 1 + m."""
        return 1 + len(self.curvatures)

    def value(self, w: FloatArray) -> FloatArray:
        """L(w); (..., dim) -> (...)."""
        return self.river(w) + self.hill(w)

    def river(self, w: FloatArray) -> FloatArray:
        """River component -c x, the loss at the projection (x, 0); (..., dim) -> (...)."""
        return -self.slope * w[..., 0]

    def hill(self, w: FloatArray) -> FloatArray:
        """Hill component 1/2 sum_i h_i y_i^2; (..., dim) -> (...)."""
        h: FloatArray = self._h  # type: ignore[attr-defined]
        return 0.5 * np.sum(h * w[..., 1:] ** 2, axis=-1)

    def gradient(self, w: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """(-c, h_1 y_1, ..., h_m y_m); (..., dim) -> (..., dim), written to `out` where it is given."""
        diagonal: FloatArray = self._diagonal  # type: ignore[attr-defined]
        gradient = np.multiply(w, diagonal, out=out)
        gradient[..., 0] = -self.slope
        return gradient

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, as ``make_loss(**d)`` takes them."""
        return {"name": self.name, "slope": self.slope, "curvatures": list(self.curvatures)}


def make_loss(name: str, **options: Any) -> StraightRiver:
    """Build a registered loss from plain values, e.g. those of a stored configuration.

    Raises:
        InputError: an unknown name, an option that the loss does not take, or a value out of range.

    >>> make_loss("straight", slope=0.1, curvatures=[1, 2]).dim
    3
    """
    cls = pick("loss", name, LOSSES)
    check_options(f"loss {name!r}", options, [f.name for f in fields(cls)])
    if isinstance(options.get("curvatures"), list):
        options["curvatures"] = tuple(options["curvatures"])
    return cls(**options)
