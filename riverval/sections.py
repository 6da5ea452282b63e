"""Cross-sections of a valley: the loss along single directions through a point, beside the quadratic that fits there.

Along the eigenvectors of the largest eigenvalues a section shows the walls, along the displacement between iterates the
river. Works with any operator's eigenvectors and any loss that `riverval.landscape.batch_losses` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import check_int, check_number
from ._typing import ArrayLike, FloatArray
from ._vectors import check_vectors, dot, like, norm
from .errors import InputError
from .landscape import batch_losses, mean_and_error


@dataclass(frozen=True, eq=False)
class CrossSection:
    """Losses along m directions, each at n places.

    Attributes:
        names: of the directions.
        offset: places from -1 to 1, as shares of `reach`, shape (n,), with 0 in the middle.
        reach: distance at offset 1 along each direction, in parameter units, shape (m,).
        curvature: lambda of each direction, shape (m,); nan where not given.
        slope: <g, v> of each direction, shape (m,); nan where no gradient was given.
        batch_losses: shape (B, m, n).
        weights: shares of the batches, shape (B,).
    """

    names: list[str]
    offset: FloatArray
    reach: FloatArray
    curvature: FloatArray
    slope: FloatArray
    batch_losses: FloatArray
    weights: FloatArray

    @property
    def distance(self) -> FloatArray:
        """s at each place, in parameter units, shape (m, n)."""
        return self.reach[:, None] * self.offset

    @property
    def loss(self) -> FloatArray:
        """L(w + s v), shape (m, n)."""
        return mean_and_error(self.batch_losses, self.weights)[0]

    @property
    def rise(self) -> tuple[FloatArray, FloatArray]:
        """L(w + s v) - L(w) and its standard error over batches, paired; shapes (m, n)."""
        middle = len(self.offset) // 2
        with np.errstate(invalid="ignore"):
            return mean_and_error(self.batch_losses - self.batch_losses[:, :, middle, None], self.weights)

    @property
    def predicted(self) -> FloatArray:
        """L(w) + <g, v> s + lambda s^2 / 2, shape (m, n); nan where slope or curvature is not known."""
        s = self.distance
        at_point = self.loss[:, len(self.offset) // 2]
        return at_point[:, None] + self.slope[:, None] * s + self.curvature[:, None] * s**2 / 2

    @property
    def departure(self) -> FloatArray:
        """Loss minus the quadratic, shape (m, n): 0 in a quadratic valley, up to the rounding of the loss."""
        with np.errstate(invalid="ignore"):
            return self.loss - self.predicted

    @property
    def not_finite(self) -> FloatArray:
        """(number of the direction, offset) where the loss of some batch is inf or nan, shape (k, 2)."""
        i, j = np.nonzero(~np.isfinite(self.batch_losses).all(axis=0))
        return np.stack([i.astype(np.float64), self.offset[j]], axis=1)


def cross_section(
    loss: Any,
    point: Any,
    directions: ArrayLike | Iterable[Any],
    *,
    curvatures: ArrayLike | None = None,
    gradient: Any = None,
    rise: float | None = None,
    reach: ArrayLike | None = None,
    places: int = 21,
    names: Sequence[str] | None = None,
) -> CrossSection:
    """The loss along directions through a point, with the quadratic L + <g, v> s + lambda s^2 / 2 beside it.

    Each direction is made a unit vector v, so that s is a distance in parameter units. How far it goes is given by
    `reach`, or by `rise`: s = sqrt(2 rise / lambda), the distance at which the quadratic without its slope has risen by
    `rise`, which puts steep and gentle directions on one scale.

    Null: in a quadratic the departure from the prediction is 0. Over random unit directions lambda has mean
    Tr(H) / dim: a direction is steep, or flat, against that number. Along a displacement between noisy iterates, see
    `riverval.valley`.

    Args:
        loss: any form that `batch_losses` takes.
        point: the vector w, shape (dim,).
        directions: columns of a matrix (dim, m), as the eigenvectors of `riverval.spectra`, or a list of vectors; of
            any length but 0, numpy arrays for a torch point too.
        curvatures: lambda = v'Hv of each unit direction (for an eigenvector its eigenvalue), shape (m,); nan where not
            known. None: none is known.
        gradient: g at the point, shape (dim,), on the same batches; None where not known.
        rise: in units of the loss, > 0; needs positive curvatures.
        reach: in parameter units, > 0: one number, or one for each direction. Either `rise` or `reach`.
        places: odd number of places from -1 to 1.
        names: of the directions; "v1", "v2", ... if None.

    Raises:
        InputError: vectors, curvatures or names that do not fit; both or neither of rise and reach; a rise where a
            curvature is not positive.

    >>> h = np.diag([4.0, 1.0])
    >>> found = cross_section(lambda w: w @ h @ w / 2, np.zeros(2), np.eye(2), curvatures=[4, 1], rise=2.0, places=3)
    >>> found.reach.tolist(), found.loss.tolist()
    ([1.0, 2.0], [[2.0, 0.0, 2.0], [2.0, 0.0, 2.0]])
    """
    check_vectors("the point of a cross-section", [point])
    units = [_unit(point, d, k) for k, d in enumerate(_listed(directions))]
    known = _for_each("curvatures", np.nan if curvatures is None else curvatures, len(units))
    lengths = _reach(known, rise, reach)
    count = check_int("places", places, low=3, what="number of places")
    if count % 2 == 0:
        raise InputError(f"places must be odd, so that the point itself is one of them, got {places}")
    told = [f"v{k + 1}" for k in range(len(units))] if names is None else [str(name) for name in names]
    if len(set(told)) != len(units):
        raise InputError(f"names must be {len(units)} different names, one a direction, got {told}")
    slopes = np.full(len(units), np.nan)
    if gradient is not None:
        check_vectors("the point and the gradient", [point, gradient])
        slopes = np.array([dot(gradient, v) for v in units])
    of, offset = batch_losses(loss), np.linspace(-1.0, 1.0, count)
    at_point = of(point)
    values = np.empty((len(at_point), len(units), count))
    for i, v in enumerate(units):
        for j, share in enumerate(offset):
            values[:, i, j] = at_point if share == 0 else of(point + float(share * lengths[i]) * v)
    return CrossSection(told, offset, lengths, known, slopes, values, of.weights)


def _listed(directions: Any) -> list[Any]:
    axes = getattr(directions, "ndim", 0)
    if axes == 1:
        raise InputError("directions are the columns of a matrix or a list of vectors; put a single vector into a list")
    columns = directions.T if axes == 2 else directions
    listed = list(columns)
    if not listed:
        raise InputError("a cross-section needs at least one direction, got none")
    return listed


def _unit(point: Any, direction: Any, number: int) -> Any:
    if isinstance(direction, np.ndarray) and direction.shape == tuple(point.shape):
        direction = like(point, direction)
    check_vectors(f"the point and direction {number}", [point, direction])
    length = norm(direction)
    if length == 0:
        raise InputError(f"direction {number} is zero; a cross-section needs one that points somewhere")
    return direction / length


def _for_each(name: str, values: ArrayLike, count: int) -> FloatArray:
    given = np.asarray(values, dtype=np.float64)
    if given.shape not in ((), (count,)) or np.isinf(given).any():
        raise InputError(f"{name} must be one number, or {count}, one a direction; got {values!r}")
    return np.broadcast_to(given, (count,)).copy()


def _reach(curvatures: FloatArray, rise: float | None, reach: ArrayLike | None) -> FloatArray:
    if (rise is None) == (reach is None):
        raise InputError("say how far the section goes: either reach (parameter units) or rise (units of the loss)")
    if rise is None:
        lengths = _for_each("reach", reach, len(curvatures))  # type: ignore[arg-type]
        if not np.all(lengths > 0):
            raise InputError(f"reach must be above 0, got {reach!r}")
        return lengths
    height = check_number("rise", rise, low=0.0, open_low=True)
    if not np.all(curvatures > 0):
        raise InputError(
            f"a rise of {height:g} needs positive curvatures, got {curvatures.tolist()}; give reach instead, which may "
            f"be one number a direction"
        )
    lengths = np.sqrt(2 * height / curvatures)
    return np.asarray(lengths, dtype=np.float64)
