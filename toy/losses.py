"""Analytic river valleys: a flat direction along which the loss falls, between hills that are steep across it.

The registry `LOSSES` holds every loss by name, and `make_loss` builds one from plain values. Here is the straight
river, the one that is solved exactly; the others are in `riverval.toy.valleys` and `riverval.toy.quadratics`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import LARGEST, check_int, check_number, check_options, make_plain, pick
from .._registry import registrar
from .._typing import FloatArray
from ..errors import InputError
from ._loss import Kernel, Loss

LOSSES: dict[str, type[Loss]] = {}

register_loss = registrar(LOSSES)


@register_loss("straight")
@dataclass(frozen=True)
class StraightRiver(Loss):
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

    slope: float
    curvatures: tuple[float, ...]

    def __post_init__(self) -> None:
        check_number("slope", self.slope, low=0.0, high=LARGEST, what="fall of the loss per unit of river")
        if not isinstance(self.curvatures, tuple) or not self.curvatures:
            raise InputError(f"curvatures must be a tuple of at least one number > 0, got {self.curvatures!r}")
        for h in self.curvatures:
            check_number("curvatures", h, low=0.0, high=LARGEST, open_low=True, what="of the hill directions")
        make_plain(self)
        # What the gradient needs, once; not fields, so equality and to_dict ignore them.
        object.__setattr__(self, "_diagonal", np.array([0.0, *self.curvatures], dtype=np.float64))

    @classmethod
    def equal(cls, slope: float, modes: int, curvature: float) -> StraightRiver:
        """`modes` hill directions of the same curvature.

        >>> StraightRiver.equal(0.1, 3, 2.0)
        StraightRiver(slope=0.1, curvatures=(2.0, 2.0, 2.0))
        """
        return cls(slope, (curvature,) * check_int("modes", modes, low=1, what="hill directions"))

    @classmethod
    def power_law(cls, slope: float, modes: int, h_max: float, exponent: float) -> StraightRiver:
        """Curvatures h_i = h_max i^-exponent for i = 1, ..., modes.

        >>> StraightRiver.power_law(0.1, 3, 8.0, 1.0)
        StraightRiver(slope=0.1, curvatures=(8.0, 4.0, 2.6666666666666665))
        """
        check_int("modes", modes, low=1, what="hill directions")
        check_number("h_max", h_max, low=0.0, high=LARGEST, open_low=True, what="largest curvature")
        check_number("exponent", exponent, low=0.0, high=100.0, what="of the spectrum")
        return cls(slope, tuple(h_max / i**exponent for i in range(1, modes + 1)))

    @property
    def coordinates(self) -> tuple[str, ...]:
        """x along the river; y, or y1, y2, ..., across it."""
        m = len(self.curvatures)
        return ("x", *(["y"] if m == 1 else [f"y{i}" for i in range(1, m + 1)]))

    def value(self, w: FloatArray) -> FloatArray:
        """L(w); (..., dim) -> (...)."""
        return self.river(w) + self.hill(w)

    def river(self, w: FloatArray) -> FloatArray:
        """River component -c x, the loss at the projection (x, 0); (..., dim) -> (...)."""
        return -self.slope * w[..., 0]

    def hill(self, w: FloatArray) -> FloatArray:
        """Hill component 1/2 sum_i h_i y_i^2; (..., dim) -> (...)."""
        # Summed mode by mode, so that the layout of `w` in memory does not show in the last bit.
        hill = sum(h * w[..., i] ** 2 for i, h in enumerate(self.curvatures, start=1))
        return np.asarray(0.5 * hill)

    def split(self, w: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Value, river and hill; (..., dim) -> (...) three times."""
        river, hill = self.river(w), self.hill(w)
        return river + hill, river, hill

    def gradient_rows(self, w: FloatArray, out: FloatArray) -> None:
        """(-c, h_1 y_1, ..., h_m y_m) of each column of `w`, written to `out`; both (dim, replicates)."""
        np.multiply(w, self._diagonal[:, None], out=out)  # type: ignore[attr-defined]
        out[0] = -self.slope

    def kernel(self) -> Kernel:
        """The gradient as code for compilation; p = (-c, h_1, ..., h_m)."""
        indices = range(1, self.dim)
        head = ("p0 = p[0]", *(f"p{i} = p[{i}]" for i in indices))
        lines = ("g0 = p0", *(f"g{i} = p{i} * w{i}" for i in indices))
        return Kernel(head, lines, np.array([-self.slope, *self.curvatures], dtype=np.float64), self.dim)

    def floor(self, w: FloatArray) -> FloatArray:
        """The point (x, 0, ..., 0) below each state; (..., dim) -> (..., dim)."""
        floor = np.zeros_like(w, dtype=np.float64)
        floor[..., 0] = w[..., 0]
        return floor

    def hessian(self, w: FloatArray) -> FloatArray:
        """diag(0, h_1, ..., h_m) everywhere; (..., dim) -> (..., dim, dim)."""
        hessian = np.diag(self._diagonal)  # type: ignore[attr-defined]
        return np.broadcast_to(hessian, (*np.shape(w)[:-1], self.dim, self.dim)).copy()

    def constant_diagonal(self) -> FloatArray:
        """(0, h_1, ..., h_m); (dim,)."""
        return self._diagonal.copy()  # type: ignore[attr-defined,no-any-return]

    def start(self) -> FloatArray:
        """(0, 1, ..., 1); (dim,)."""
        return np.array([0.0, *(1.0 for _ in self.curvatures)])

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, as ``make_loss(**d)`` takes them."""
        return {"name": self.name, "slope": self.slope, "curvatures": list(self.curvatures)}


def make_loss(name: str, **options: Any) -> Loss:
    """Build a registered loss from plain values, e.g. those of a stored configuration.

    Raises:
        InputError: an unknown name, an option that the loss does not take or lacks, or a value out of range.

    >>> make_loss("straight", slope=0.1, curvatures=[1, 2]).dim
    3
    """
    cls = pick("loss", name, LOSSES)
    takes = inspect.signature(cls).parameters
    check_options(f"loss {name!r}", options, takes)
    missing = [option for option, p in takes.items() if p.default is p.empty and option not in options]
    if missing:
        raise InputError(f"loss {name!r} needs a value for {' and '.join(missing)}")
    return cls(**{option: tuple(v) if isinstance(v, list) else v for option, v in options.items()})
