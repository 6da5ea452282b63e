"""The loss along lines and paths and on planes, on fixed batches, with the errors that the batches give.

The loss is any function of a parameter vector, numpy or torch; `riverval.hessian.LossOnBatches` makes one of a torch
model without touching it, so nothing here can change a model, and every vector handed to a loss is a copy. Where the
loss is a mean over several batches (`batch_losses` says how), every place is evaluated on the same batches and
differences between places are paired: their errors are far smaller than those of the losses themselves.

A loss that is not finite at a place stands in the result as inf or nan, and `not_finite` names the place.

Batch norm: the running statistics stored in a model belong to its own weights, and are wrong for weights between two
models. `riverval.batch_statistics.loss_with_statistics` makes losses that use the evaluated batch's own or re-estimate
them at each place.

Read a line with care: in any convex quadratic the segment between two noisy stationary iterates is a convex valley
(see `riverval.valley`). What sets a river apart is progress along flat directions at unchanged noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ._checks import check_int
from ._typing import ArrayLike, FloatArray
from ._vectors import check_vectors, distance, fresh
from .batched_losses import BatchLosses, batch_losses, mean_and_error, one_number
from .directions import Plane
from .errors import InputError

__all__ = [
    "BatchLosses", "NearPlane", "PathLosses", "PlaneLosses", "batch_losses", "line_losses", "mean_and_error",
    "near_plane", "path_losses", "plane_losses",
]  # fmt: skip


# --- lines and paths -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class PathLosses:
    """Losses at places on a path.

    Attributes:
        alpha: places as shares of the path's length, shape (n,), increasing; 0 at the first point, 1 at the last.
        distance: the same in parameter units: arc length from the first point.
        batch_losses: shape (B, n).
        weights: shares of the batches, shape (B,).
        knots: places of the points that the path goes through, as shares.
    """

    alpha: FloatArray
    distance: FloatArray
    batch_losses: FloatArray
    weights: FloatArray
    knots: FloatArray

    @property
    def loss(self) -> FloatArray:
        """L at each place, shape (n,), in the units of the loss."""
        return mean_and_error(self.batch_losses, self.weights)[0]

    @property
    def error(self) -> FloatArray:
        """Standard error of each loss. Differences between places are known far better: see `riverval.valley`."""
        return mean_and_error(self.batch_losses, self.weights)[1]

    @property
    def not_finite(self) -> FloatArray:
        """The places (alpha) where the loss of some batch is inf or nan."""
        return self.alpha[~np.isfinite(self.batch_losses).all(axis=0)]


def line_losses(loss: Callable[[Any], float], start: Any, stop: Any, alphas: ArrayLike) -> FloatArray:
    """L((1 - alpha) start + alpha stop) for each alpha: the plain numbers, of any loss, without errors.

    Null: in any convex quadratic the segment between two noisy stationary iterates is a convex valley.

    Args:
        loss: takes one parameter vector, gives the loss.
        start, stop: vectors of one shape (dim,); never written to. At alpha 0 and 1 the ends themselves are evaluated,
            without rounding.
        alphas: places on the line, any shape; outside [0, 1] the line is extended.

    Returns:
        The losses, float64 in the shape of `alphas`, in the units of `loss`.

    Raises:
        InputError: the ends differ in shape or are not finite, an alpha is not finite, or a loss is not one number.

    >>> line_losses(lambda w: float(w @ w), np.array([-1.0]), np.array([1.0]), [0.0, 0.5, 1.0]).tolist()
    [1.0, 0.0, 1.0]
    """
    places = np.asarray(alphas, dtype=np.float64)
    check_vectors("the ends of a line", [start, stop])
    if not np.all(np.isfinite(places)):
        raise InputError("alphas must be finite")
    values = [one_number(loss(fresh(_between(start, stop, float(a))))) for a in places.flat]
    return np.array(values, dtype=np.float64).reshape(places.shape)


def path_losses(loss: Any, points: Iterable[Any], alphas: int | ArrayLike = 21) -> PathLosses:
    """Losses on the path of straight segments through `points`, by arc length; two points make a line.

    Null: see `riverval.valley`, whose tests take the result.

    Args:
        loss: any form that `batch_losses` takes.
        points: two or more vectors of one kind and shape (dim,); neighbours must differ. Never written to; at their
            places they themselves are evaluated, without rounding.
        alphas: shares of the whole length, increasing; below 0 and above 1 the first and the last segment are extended.
            A number n gives n even places from 0 to 1, and the points between them.

    Raises:
        InputError: points or alphas as above do not hold; a loss of no known form.

    >>> bowl = [lambda w: w @ w, lambda w: 2 * w @ w]
    >>> path = path_losses(bowl, [np.zeros(2), np.array([1.0, 0.0]), np.array([1.0, 3.0])], [0.0, 0.25, 1.0])
    >>> path.distance.tolist(), path.loss.tolist()
    ([0.0, 1.0, 4.0], [0.0, 1.5, 15.0])
    """
    points = list(points)
    if len(points) < 2:
        raise InputError(f"a path needs two or more points, got {len(points)}")
    check_vectors("the points of a path", points)
    lengths = np.array([distance(a, b) for a, b in pairwise(points)])
    if not np.all(lengths > 0):
        first = int(np.argmin(lengths > 0))
        raise InputError(f"points {first} and {first + 1} of the path are the same; leave one of them out")
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    knots = ends / ends[-1]
    places = _places(alphas, knots)
    of = batch_losses(loss)
    values = np.stack([of(_on_path(points, knots, float(a))) for a in places], axis=1)
    return PathLosses(places, places * ends[-1], values, of.weights, knots)


def _places(alphas: int | ArrayLike, knots: FloatArray) -> FloatArray:
    if isinstance(alphas, int | np.integer) and not isinstance(alphas, bool):
        count = check_int("alphas", alphas, low=2, what="number of places")
        return np.union1d(np.linspace(0.0, 1.0, count), knots)
    places = np.asarray(alphas, dtype=np.float64)
    if places.ndim != 1 or not places.size or not np.all(np.isfinite(places)) or np.any(np.diff(places) <= 0):
        raise InputError(f"alphas must be finite and increasing, or the number of places, got {alphas!r}")
    return places


def _on_path(points: Sequence[Any], knots: FloatArray, alpha: float) -> Any:
    k = int(np.clip(np.searchsorted(knots, alpha, side="right") - 1, 0, len(points) - 2))
    left, right = float(knots[k]), float(knots[k + 1])
    local = 1.0 if alpha == right else (alpha - left) / (right - left)
    return _between(points[k], points[k + 1], local)


def _between(start: Any, stop: Any, alpha: float) -> Any:
    if alpha in (0.0, 1.0):
        return stop if alpha else start
    return (1.0 - alpha) * start + alpha * stop


# --- planes ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class PlaneLosses:
    """Losses on a grid in a plane.

    Attributes:
        plane: the plane; ``plane.units`` are the lengths of one unit of x and of y in parameter units.
        x, y: coordinates, shapes (nx,) and (ny,).
        batch_losses: shape (B, nx, ny).
        weights: shares of the batches, shape (B,).
    """

    plane: Plane
    x: FloatArray
    y: FloatArray
    batch_losses: FloatArray
    weights: FloatArray

    @property
    def loss(self) -> FloatArray:
        """L on the grid, shape (nx, ny)."""
        return mean_and_error(self.batch_losses, self.weights)[0]

    @property
    def error(self) -> FloatArray:
        """Standard error of each loss, shape (nx, ny)."""
        return mean_and_error(self.batch_losses, self.weights)[1]

    @property
    def not_finite(self) -> FloatArray:
        """Coordinates (x, y) where the loss of some batch is inf or nan, shape (m, 2)."""
        i, j = np.nonzero(~np.isfinite(self.batch_losses).all(axis=0))
        return np.stack([self.x[i], self.y[j]], axis=1)


@dataclass(frozen=True, eq=False)
class NearPlane:
    """Points beside a plane, with the loss of each and of its projection: a contour shows the second only.

    Attributes:
        x, y: coordinates of the projections, shape (n,).
        off: distance of each point from the plane, in parameter units.
        batch_losses, projected_batch_losses: of the points themselves and of their projections, shape (B, n).
        weights: shares of the batches, shape (B,).
    """

    x: FloatArray
    y: FloatArray
    off: FloatArray
    batch_losses: FloatArray
    projected_batch_losses: FloatArray
    weights: FloatArray

    @property
    def loss(self) -> FloatArray:
        """True loss of each point."""
        return mean_and_error(self.batch_losses, self.weights)[0]

    @property
    def projected_loss(self) -> FloatArray:
        """Loss of each point's projection onto the plane: what the contour shows under it."""
        return mean_and_error(self.projected_batch_losses, self.weights)[0]

    @property
    def gap(self) -> tuple[FloatArray, FloatArray]:
        """True loss minus that of the projection, and the standard error of that paired difference."""
        with np.errstate(invalid="ignore"):  # inf - inf is nan, as it should be
            return mean_and_error(self.batch_losses - self.projected_batch_losses, self.weights)


def plane_losses(loss: Any, plane: Plane, x: ArrayLike, y: ArrayLike) -> PlaneLosses:
    """Losses at origin + x u + y v for every x and y.

    Null: of a plane along random directions, that it looks flat (see `riverval.directions.random_direction`); of a
    plane through iterates, that their own losses are not those of the contour under them (see `near_plane`).

    Args:
        loss: any form that `batch_losses` takes.
        plane: from `plane_through` or `plane_along` of `riverval.directions`.
        x, y: coordinates, increasing; shapes (nx,) and (ny,). The cost is nx ny evaluations.

    Raises:
        InputError: coordinates as above do not hold; a loss of no known form.
    """
    of = batch_losses(loss)
    grid = []
    for name, values in (("x", x), ("y", y)):
        places = np.asarray(values, dtype=np.float64)
        if places.ndim != 1 or not places.size or not np.all(np.isfinite(places)) or np.any(np.diff(places) <= 0):
            raise InputError(f"{name} must be finite, increasing coordinates, got {values!r}")
        grid.append(places)
    rows = [np.stack([of(plane.at(a, b)) for b in grid[1]], axis=-1) for a in grid[0]]
    return PlaneLosses(plane, grid[0], grid[1], np.stack(rows, axis=1), of.weights)


def near_plane(loss: Any, plane: Plane, points: Iterable[Any]) -> NearPlane:
    """The loss of each point and of its projection onto the plane, with its distance from the plane.

    A contour of the plane is read wrongly where iterates are drawn on it: they lie beside it, and their losses are
    others than the contour's. Both are given here.

    Null: in a quadratic, and for a displacement r off the plane at a stationary point of it, the gap is r' H r / 2.

    Args:
        loss: any form that `batch_losses` takes.
        plane: see `plane_losses`.
        points: vectors of the plane's kind and shape (dim,).

    Raises:
        InputError: no points, or such as do not fit the plane; a loss of no known form.
    """
    points = list(points)
    if not points:
        raise InputError("there must be at least one point beside the plane, got none")
    of = batch_losses(loss)
    places = np.array([plane.coordinates(point) for point in points])
    true = np.stack([of(point) for point in points], axis=1)
    projected = np.stack([of(plane.at(x, y)) for x, y, _ in places], axis=1)
    return NearPlane(places[:, 0], places[:, 1], places[:, 2], true, projected, of.weights)
