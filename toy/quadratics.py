"""The registry's quadratic losses beside the straight river: rotated axes, and rivers of several dimensions."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from .._checks import LARGEST, check_int, check_number, make_plain
from .._typing import FloatArray
from ..errors import InputError
from ._loss import Kernel, Loss
from .losses import register_loss


class Quadratic(Loss):
    r"""L(w) = sum_i [-c_i z_i + h_i z_i^2 / 2] in z = Q^T w, with orthogonal Q and the river's directions first.

    The floor point below a state has the same z along the river, and z = 0 across it.
    """

    @abstractmethod
    def slopes(self) -> FloatArray:
        """Fall c of the loss along each direction, 0 across the river; (dim,)."""

    @abstractmethod
    def spectrum(self) -> FloatArray:
        """Curvature h along each direction; (dim,)."""

    @cached_property
    def axes(self) -> FloatArray:
        """The matrix Q whose column i is direction i; (dim, dim)."""
        return np.eye(self.dim)

    @cached_property
    def _matrix(self) -> FloatArray:
        half = self.axes * np.sqrt(self.spectrum())
        return np.sum(half[:, None, :] * half[None, :, :], axis=-1)

    @cached_property
    def _linear(self) -> FloatArray:
        return -np.sum(self.axes * self.slopes(), axis=-1)

    def _along(self, w: FloatArray) -> FloatArray:
        """z = Q^T w; (..., dim) -> (..., dim)."""
        return _combine(np.asarray(w), self.axes)

    def _terms(self, w: FloatArray) -> FloatArray:
        z = self._along(w)
        return (0.5 * self.spectrum() * z - self.slopes()) * z

    def value(self, w: FloatArray) -> FloatArray:
        """L(w); (..., dim) -> (...)."""
        return self.river(w) + self.hill(w)

    def river(self, w: FloatArray) -> FloatArray:
        """River component: the terms of the river's directions; (..., dim) -> (...)."""
        river: FloatArray = np.sum(self._terms(w)[..., : self.river_dim], axis=-1)
        return river

    def hill(self, w: FloatArray) -> FloatArray:
        """Hill component: the terms of the directions across; (..., dim) -> (...)."""
        hill: FloatArray = np.sum(self._terms(w)[..., self.river_dim :], axis=-1)
        return hill

    def floor(self, w: FloatArray) -> FloatArray:
        """The projection on the span of the river's directions; (..., dim) -> (..., dim)."""
        k = self.river_dim
        return _combine(self._along(w)[..., :k], self.axes[:, :k].T)

    def gradient_rows(self, w: FloatArray, out: FloatArray) -> None:
        """b + A w of each column of `w`, written to `out`; both (dim, replicates)."""
        for i in range(self.dim):
            out[i] = self._linear[i]
            for j in range(self.dim):
                out[i] += self._matrix[i, j] * w[j]

    def kernel(self) -> Kernel:
        """The gradient as code for compilation; p = (b, A row by row), sums from left to right."""
        places = range(self.dim)
        head = tuple(f"p{i} = p[{i}]" for i in range(self.dim * (self.dim + 1)))
        sums = (" + ".join([f"p{i}", *(f"p{self.dim * (i + 1) + j}*w{j}" for j in places)]) for i in places)
        lines = tuple(f"g{i} = {text}" for i, text in enumerate(sums))
        return Kernel(head, lines, np.concatenate([self._linear, self._matrix.ravel()]), self.dim)

    def constant_diagonal(self) -> FloatArray | None:
        """The diagonal of A where all else of it is zero, (dim,); else None."""
        diagonal = np.diag(self._matrix)
        return diagonal.copy() if np.array_equal(self._matrix, np.diag(diagonal)) else None

    def hessian(self, w: FloatArray) -> FloatArray:
        """A everywhere; (..., dim) -> (..., dim, dim)."""
        return np.broadcast_to(self._matrix, (*np.shape(w)[:-1], self.dim, self.dim)).copy()

    def start(self) -> FloatArray:
        """0 along the river and 1 along each direction across it."""
        return np.sum(self.axes[:, self.river_dim :], axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, JSON-ready, as ``make_loss(**d)`` takes them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {"name": self.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


@register_loss("plane")
@dataclass(frozen=True)
class PlaneRiver(Quadratic):
    r"""A river of k dimensions: k flat directions, along each of which the loss falls (derived).

    .. math:: L(x, y) = -\sum_{i=1}^k c_i\, x_i + \tfrac12 \sum_{j=1}^m h_j\, y_j^2

    with c = `river_slopes`, h = `curvatures` and the state w = (x_1, ..., x_k, y_1, ..., y_m). Floor: y = 0.

    Raises:
        InputError: no slope or curvature, a slope below 0, a curvature <= 0, or a number above 1e100.
    """

    river_slopes: tuple[float, ...] = (0.1, 0.05)
    curvatures: tuple[float, ...] = (2.0, 4.0)

    def __post_init__(self) -> None:
        _check_many(self, "river_slopes", "fall of the loss along a river direction", open_low=False)
        _check_many(self, "curvatures", "of the hill directions", open_low=True)
        make_plain(self)

    @property
    def coordinates(self) -> tuple[str, ...]:
        """x1, ..., xk along the river, y1, ..., ym across it."""
        k, m = len(self.river_slopes), len(self.curvatures)
        return (*(f"x{i}" for i in range(1, k + 1)), *(f"y{j}" for j in range(1, m + 1)))

    @property
    def river_dim(self) -> int:
        """k, the number of slopes."""
        return len(self.river_slopes)

    def slopes(self) -> FloatArray:
        """c_1, ..., c_k, then zeros."""
        return np.array([*self.river_slopes, *(0.0 for _ in self.curvatures)])

    def spectrum(self) -> FloatArray:
        """k zeros, then h_1, ..., h_m."""
        return np.array([*(0.0 for _ in self.river_slopes), *self.curvatures])


@register_loss("rotated")
@dataclass(frozen=True)
class RotatedQuadratic(Quadratic):
    r"""A straight valley whose directions are not those of the coordinates: a quadratic with any symmetric matrix.

    .. math:: L(w) = -c\,z_0 + \tfrac{\mu}{2} z_0^2 + \tfrac12 \sum_{i=1}^m h_i\, z_i^2, \qquad z = Q^\top w

    with c = `slope`, mu = `flat`, h = `curvatures`. Q turns the plane of the first two coordinates by `angle`, or is a
    random orthogonal matrix where a `seed` is given (Gram-Schmidt on normal draws). SGD with isotropic noise does not
    notice the rotation; methods that treat each coordinate by itself, as Adam and sign-SGD, do. (Derived.)

    Args:
        slope: fall of the loss along the river, c >= 0.
        flat: curvature along the river, mu >= 0.
        curvatures: h_i > 0, at least one.
        angle: radians; 30 degrees where neither angle nor seed is given.
        seed: whole number of at least 0.

    Raises:
        InputError: a number outside its range, both an angle and a seed, or a curvature that is not above `flat`: that
            direction is no hill.
    """

    slope: float = 0.1
    flat: float = 0.0
    curvatures: tuple[float, ...] = (2.0,)
    angle: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("slope", self.slope, low=0.0, high=LARGEST, what="fall of the loss along the river")
        check_number("flat", self.flat, low=0.0, high=LARGEST, what="curvature along the river")
        _check_many(self, "curvatures", "of the hill directions", open_low=True)
        if min(self.curvatures) <= self.flat:
            raise InputError(f"curvatures must be above flat = {self.flat:g}, got {self.curvatures!r}")
        if self.seed is not None:
            check_int("seed", self.seed, low=0, what="of the rotation")
        if self.angle is not None:
            check_number("angle", self.angle, low=-LARGEST, high=LARGEST, what="of the rotation, in radians")
            if self.seed is not None:
                raise InputError(
                    f"the axes are turned by an angle or from a seed, got both: {self.angle!r}, {self.seed!r}"
                )
        make_plain(self)

    @property
    def coordinates(self) -> tuple[str, ...]:
        """w0, ..., wm: none of them is along the river by itself."""
        return tuple(f"w{i}" for i in range(len(self.curvatures) + 1))

    def slopes(self) -> FloatArray:
        """c, then zeros."""
        return np.array([self.slope, *(0.0 for _ in self.curvatures)])

    def spectrum(self) -> FloatArray:
        """mu, then h_1, ..., h_m."""
        return np.array([self.flat, *self.curvatures])

    @cached_property
    def axes(self) -> FloatArray:
        """The matrix Q whose column 0 is along the river; (dim, dim)."""
        if self.seed is not None:
            return _orthogonal(np.random.default_rng(self.seed).standard_normal((self.dim, self.dim)))
        axes = np.eye(self.dim)
        angle = math.pi / 6 if self.angle is None else self.angle
        c, s = math.cos(angle), math.sin(angle)
        axes[:2, :2] = [[c, -s], [s, c]]
        return axes


def _combine(w: FloatArray, rows: FloatArray) -> FloatArray:
    """sum_i w_i rows[i], term by term, which takes no array of all of them; (..., n), (n, m) -> (..., m)."""
    total = np.zeros((*np.shape(w)[:-1], rows.shape[1]))
    for i, row in enumerate(rows):
        total += w[..., i, None] * row
    return total


def _orthogonal(draws: FloatArray) -> FloatArray:
    """Gram-Schmidt on the columns, twice for accuracy, by plain sums: the same bits with any linear-algebra library."""
    axes = draws.copy()
    for i in range(axes.shape[1]):
        for _ in range(2):
            for j in range(i):
                axes[:, i] -= np.sum(axes[:, i] * axes[:, j]) * axes[:, j]
        axes[:, i] /= np.sqrt(np.sum(axes[:, i] ** 2))
    return axes


def _check_many(frozen: Any, name: str, what: str, *, open_low: bool) -> None:
    """A tuple field of at least one number above (or from) zero.

    Raises:
        InputError: not such a tuple.
    """
    values = getattr(frozen, name)
    if not isinstance(values, tuple) or not values:
        raise InputError(f"{name} must be a tuple of at least one number, got {values!r}")
    for value in values:
        check_number(name, value, low=0.0, high=LARGEST, open_low=open_low, what=what)
