"""Directions and planes in parameter space: random ones scaled to the weights, and the plane through three points.

A vector holds the weights of many tensors one after the other, in the order of ``model.named_parameters()``; where a
scale is per tensor or per filter, `shapes` says where each begins (`shapes_of` reads them off a loss). Works on numpy
arrays and on torch tensors; what is given is never written to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ._checks import pick
from ._typing import FloatArray
from ._vectors import check_vectors, distance, dot, like, norm, pieces
from .errors import InputError

Shapes = Sequence[Sequence[int]] | Mapping[str, Sequence[int]]

COLLINEAR = 1e-6
"""Sine of the angle below which three points are taken to lie on one line: float32 weights cannot tell it from 0."""


@dataclass(frozen=True, eq=False)
class Plane:
    """Points origin + x u + y v.

    Attributes:
        origin: shape (dim,).
        u, v: the two axes, shape (dim,); not necessarily orthonormal. One unit of x is ||u|| in parameter units.
        gram: their inner products, shape (2, 2).
    """

    origin: Any
    u: Any
    v: Any
    gram: FloatArray

    @property
    def units(self) -> tuple[float, float]:
        """Length in parameter units of one unit of x, and of y."""
        return float(np.sqrt(self.gram[0, 0])), float(np.sqrt(self.gram[1, 1]))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the axes, 0 where they are orthogonal."""
        return float(self.gram[0, 1] / (self.units[0] * self.units[1]))

    def at(self, x: float, y: float) -> Any:
        """The vector at coordinates (x, y)."""
        return self.origin + float(x) * self.u + float(y) * self.v

    def coordinates(self, point: Any) -> tuple[float, float, float]:
        """(x, y, off): the coordinates of the projection of `point` onto the plane, and its distance from the plane.

        (x, y) solve the normal equations gram (x, y) = (<p - o, u>, <p - o, v>); off = ||p - o - x u - y v||, summed
        over the difference itself, in float64: the root of a difference of squares would lose small distances.

        Null: a displacement in a random direction lies off a given plane with all but 2/dim of its squared length, so
        in high dimension `off` near the whole distance is what no relation at all gives.

        Raises:
            InputError: a point of another shape, or not finite.
        """
        check_vectors("the origin of a plane and the point", [self.origin, point])
        sides = np.zeros(2)
        for p, o, u, v in pieces(point, self.origin, self.u, self.v):
            sides += [(p - o) @ u, (p - o) @ v]
        x, y = (float(c) for c in np.linalg.solve(self.gram, sides))
        blocks = pieces(point, self.origin, self.u, self.v)
        off = np.linalg.norm([np.linalg.norm(p - o - x * u - y * v) for p, o, u, v in blocks])
        return x, y, float(off)


def plane_through(a: Any, b: Any, c: Any) -> Plane:
    """The plane through three points, with orthonormal axes: coordinates are in parameter units.

    u = (b - a) / ||b - a||,  v = w / ||w||,  w = (c - a) - <c - a, u> u  (Gram-Schmidt). So a lies at (0, 0), b at
    (||b - a||, 0), and c above the x axis.

    Raises:
        InputError: vectors of different shapes or not finite, points that coincide or lie on one line.

    >>> plane = plane_through(np.zeros(3), np.array([2.0, 0, 0]), np.array([1.0, 3, 0]))
    >>> plane.coordinates(np.array([1.0, 1.0, 5.0]))
    (1.0, 1.0, 5.0)
    """
    check_vectors("the three points of a plane", [a, b, c])
    sides = {"first and second": (a, b), "first and third": (a, c), "second and third": (b, c)}
    for told, (p, q) in sides.items():
        if distance(p, q) == 0:
            raise InputError(f"the {told} point of a plane coincide; three different points span one")
    u = (b - a) / distance(a, b)
    side = (c - a) / distance(a, c)
    rest = side - dot(side, u) * u
    rest = rest - dot(rest, u) * u  # once more: what rounding left along u
    if norm(rest) < COLLINEAR:
        raise InputError(
            f"the three points of a plane lie on one line (sine of the angle {norm(rest):.1e}, at least {COLLINEAR:g} "
            f"is needed); take a third point off that line, or look at the line itself with path_losses"
        )
    return plane_along(a, u, rest / norm(rest))


def plane_along(origin: Any, u: Any, v: Any) -> Plane:
    """The plane through `origin` along two chosen directions, taken as they are: their lengths are the units of x, y.

    Raises:
        InputError: vectors of different shapes or not finite, a direction of length 0, or parallel directions.
    """
    check_vectors("the origin and the directions of a plane", [origin, u, v])
    lengths = norm(u), norm(v)
    if min(lengths) == 0:
        raise InputError("the directions of a plane must not be zero")
    gram = np.array([[lengths[0] ** 2, dot(u, v)], [dot(u, v), lengths[1] ** 2]])
    cosine = gram[0, 1] / (lengths[0] * lengths[1])
    if distance(u / lengths[0], v * (np.sign(cosine) / lengths[1])) < COLLINEAR:
        raise InputError("the directions of a plane must not be parallel; draw another one, or use path_losses")
    return Plane(origin, u, v, gram)


def random_direction(
    point: Any, *, rng: np.random.Generator, shapes: Shapes | None = None, scale: str = "filter", flat: str = "zero"
) -> Any:
    """A Gaussian direction, scaled to the weights at `point` by `scale_direction`.

    Null of what is seen along it: over random unit directions u the curvature u' H u has mean Tr(H) / dim, so a slice
    along a random direction of a large model looks flat whatever the top eigenvalues are. Over directions d scaled part
    by part, d' H d has mean sum_p ||w_p||^2 Tr(H_pp) / dim_p, H_pp the block of part p of dim_p weights (derived).

    Args:
        point: the weights, shape (dim,).
        rng: where the numbers come from.
        shapes, scale, flat: see `scale_direction`.

    Returns:
        A vector of the kind and type of `point`.

    Raises:
        InputError: as in `scale_direction`.
    """
    dim = check_vectors("the point of a direction", [point])
    drawn = like(point, rng.standard_normal(dim))
    return scale_direction(drawn, point, shapes=shapes, scale=scale, flat=flat)


def scale_direction(
    direction: Any, point: Any, *, shapes: Shapes | None = None, scale: str = "filter", flat: str = "zero"
) -> Any:
    """`direction` with the norm of each of its parts made that of the same part of the weights.

    d_p <- d_p ||w_p|| / ||d_p|| for each part p, where a part is

    ========  ======================================================================================
    filter    a slice w[i] of a tensor with two or more axes: a filter of a convolution, a row of a matrix
    tensor    a whole tensor
    whole     all weights together
    none      nothing is scaled
    ========  ======================================================================================

    Filter normalisation is Li et al., arXiv:1712.09913, section 4: it takes out the freedom of a ReLU network to scale
    one layer up and the next one down, by which any slice can be made to look flat or sharp.

    Args:
        direction, point: vectors of one kind, shape (dim,).
        shapes: of the tensors in their order, or by name; needed for the scales filter and tensor, and for zeroing.
        scale: filter, tensor, whole or none.
        flat: what becomes of tensors with fewer than two axes (biases, scales of normalisations): "zero" leaves them
            out, as Li et al. do; "keep" treats each as any other tensor, as one part under `filter` too.

    Returns:
        A new vector. A part whose weights are all zero becomes zero; one whose direction is zero stays so.

    Raises:
        InputError: vectors or shapes that do not fit, unknown names, shapes missing, or nothing left of the direction.

    >>> w, d = np.array([3.0, 4.0, 0.0, 2.0, 7.0]), np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    >>> scale_direction(d, w, shapes=[(2, 2), (1,)]).tolist()
    [5.0, 0.0, 0.0, 2.0, 0.0]
    """
    dim = check_vectors("a direction and its point", [direction, point])
    parts = pick("scale", scale, _PARTS)
    pick("treatment of flat tensors", flat, dict.fromkeys(("zero", "keep")))
    if shapes is None and (scale in ("filter", "tensor") or flat != "keep"):
        raise InputError(
            f"scale={scale!r} with flat={flat!r} needs the shapes of the tensors: give shapes=shapes_of(loss), or take "
            f"scale='whole' or 'none' with flat='keep'"
        )
    tensors = [(dim,)] if shapes is None else _checked(shapes, dim)
    values = np.concatenate([x for (x,) in pieces(direction)])
    weights = np.concatenate([x for (x,) in pieces(point)])
    start = 0
    for shape in tensors:
        place = slice(start, start + prod(shape))
        start += prod(shape)
        if len(shape) < 2 and flat == "zero":
            values[place] = 0.0
        else:
            values[place] = parts(values[place], weights[place], shape)
    if scale == "whole":  # last: of what is left after zeroing
        values *= np.linalg.norm(weights) / (np.linalg.norm(values) or 1.0)
    if not values.any():
        raise InputError("nothing is left of the direction: its tensors are all flat, or their weights all zero")
    return like(point, values)


def _by_filter(values: FloatArray, weights: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    rows = (shape[0] if len(shape) > 1 else 1, -1) if values.size else (1, 0)
    d, w = values.reshape(rows), weights.reshape(rows)
    size = np.linalg.norm(d, axis=1, keepdims=True)
    scaled: FloatArray = d * (np.linalg.norm(w, axis=1, keepdims=True) / np.where(size > 0, size, 1.0))
    return scaled.reshape(-1)


def _by_tensor(values: FloatArray, weights: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    return _by_filter(values, weights, (values.size,))


def _as_it_is(values: FloatArray, weights: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    return values


_PARTS: dict[str, Callable[[FloatArray, FloatArray, tuple[int, ...]], FloatArray]] = {
    "filter": _by_filter, "tensor": _by_tensor, "whole": _as_it_is, "none": _as_it_is,
}  # fmt: skip


def _checked(shapes: Shapes, dim: int) -> list[tuple[int, ...]]:
    listed = [tuple(int(n) for n in shape) for shape in (shapes.values() if isinstance(shapes, Mapping) else shapes)]
    total = sum(map(prod, listed))
    if total != dim:
        raise InputError(f"the shapes hold {total} numbers together, the vector {dim}; give those of all its tensors")
    return listed


def shapes_of(loss: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the tensors that a flat vector of a `LossOnBatches` (or of a torch module) consists of.

    Raises:
        InputError: neither a loss of a model nor a model.
    """
    model = getattr(loss, "model", loss)
    if not hasattr(model, "named_parameters"):
        raise InputError(f"shapes are those of a LossOnBatches or of a torch module, got {type(loss).__name__}")
    named = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return {name: named[name] for name in getattr(loss, "names", named)}
