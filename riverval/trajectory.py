"""Shape of a training trajectory from the Gram matrix of its states, each measure beside its null. numpy only.

Every measure of the path takes K_ij = <x_i - o, x_j - o>, about any origin o, of the states x_0 .. x_{n-1}: exact from
`centred_gram` or `Components.gram`, or estimated from sketches as ``centred_gram([sketches])``. Its null is the same
function of a null path's Gram matrix, such as `nulls.walk_gram`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import check_values
from ._blocks import as_list, as_numpy, check_kind, size_of
from ._checks import check_number
from ._typing import ArrayLike, FloatArray, NDArray
from ._vectors import pieces
from .errors import InputError
from .nulls import random_walk_shares
from .pca import (
    Components,
    centred_gram,
    pca,
    pca_of_blocks,
    pca_of_gram,
    pca_shares,
    shares_of_gram,
    subspace_cosines,
)

__all__ = [
    "Components", "Path", "QuasiConvexity", "centred_gram", "cosine", "drift_share", "path", "pca", "pca_of_blocks",
    "pca_of_gram", "pca_shares", "quasi_convexity", "random_reference", "random_walk_shares", "shares_of_gram",
    "steps_gram", "subspace_cosines",
]  # fmt: skip


def steps_gram(gram: ArrayLike) -> FloatArray:
    """D_ij = <u_i, u_j> of the displacements u_i = x_{i+1} - x_i, from the Gram matrix of the n states.

    D_ij = K_{i+1,j+1} - K_{i+1,j} - K_{i,j+1} + K_ij. The rounding error is 1e-16 of the largest K, so use an origin
    near the path (a centred K): displacements down to 1e-6 of the path's extent keep three digits of their square.

    Args:
        gram: of n >= 2 states, shape (n, n), about any origin.

    Returns:
        shape (n - 1, n - 1).

    Raises:
        InputError: not a square matrix of finite numbers, or all states the same.
    """
    k = check_values("gram", gram)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or len(k) < 2:
        raise InputError(f"a path needs the square Gram matrix of at least 2 states, got shape {k.shape}")
    steps: FloatArray = np.diff(np.diff(k, axis=0), axis=1)
    if np.trace(steps) <= 1e-14 * np.trace(np.abs(k)):
        raise InputError(
            "a path needs states that differ, got the same one throughout (or a Gram matrix about an origin so far "
            "away that the motion is lost; centre it first)"
        )
    return steps


def drift_share(gram: ArrayLike) -> float:
    """Share of the steps that is common to all: ||mean step||^2 / mean ||step||^2, between 0 and 1.

    With n states, m = n - 1 steps and D of `steps_gram`: (1'D1 / m^2) / (Tr D / m). Source: derived.
    Null: `nulls.drift_share_null`, 1/m for independent steps of any sizes; from states, a straight line at constant
    speed gives 1.

    Args:
        gram: of the states, shape (n, n), about any origin.

    Raises:
        InputError: as in `steps_gram`.

    >>> drift_share(np.outer([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])), drift_share(np.minimum.outer(range(5), range(5)))
    (1.0, 0.25)
    """
    steps = steps_gram(gram)
    return float(max(steps.sum(), 0.0) / (len(steps) * np.trace(steps)))


@dataclass(frozen=True, eq=False)
class Path:
    """How a path bends, from its displacements u_i = x_{i+1} - x_i, i = 0 .. n - 2.

    Nulls: a random walk turns by cosines 0 +- 1/sqrt(d) and has tortuosity sum ||u|| / sqrt(sum ||u||^2), which is
    sqrt(n - 1) at a constant rate; a stationary Ornstein-Uhlenbeck process sampled at intervals of correlation r turns
    by -(1 - r)/2, an i.i.d. cloud by -1/2. All are ``path(K)`` of the null's Gram matrix (`nulls.walk_gram` with
    momentum, `nulls.ou_gram`).

    Attributes:
        norms: ||u_i||, shape (n - 1,).
        cosines: <u_i, u_{i+1}> / (||u_i|| ||u_{i+1}||), shape (n - 2,); nan beside a step of length 0.
        length: sum ||u_i||.
        distance: ||x_{n-1} - x_0||.
        tortuosity: length / distance, 1 for a straight path; inf for a closed one.
    """

    norms: FloatArray
    cosines: FloatArray
    length: float
    distance: float
    tortuosity: float

    @property
    def angles(self) -> FloatArray:
        """Turning angles in radians, 0 straight on and pi straight back, shape (n - 2,)."""
        angles: FloatArray = np.arccos(self.cosines)
        return angles


def path(gram: ArrayLike) -> Path:
    """Step norms, turning cosines and tortuosity of a path from the Gram matrix of its states; nulls: see `Path`.

    Formulas: those of `Path` with inner products from `steps_gram`. Source: discrete curvature of a curve; derived.

    Args:
        gram: shape (n, n), about any origin.

    Raises:
        InputError: as in `steps_gram`.

    >>> corner = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> found = path(corner @ corner.T)
    >>> found.norms.tolist(), found.cosines.tolist(), round(found.tortuosity, 4)
    ([1.0, 1.0], [0.0], 1.4142)
    """
    steps = steps_gram(gram)
    squares = np.clip(np.diag(steps), 0.0, None)
    norms = np.sqrt(squares)
    products = norms[:-1] * norms[1:]
    cosines = np.full(len(products), np.nan)
    np.divide(np.diag(steps, 1), products, out=cosines, where=products > 0)
    length, distance = float(norms.sum()), float(np.sqrt(max(steps.sum(), 0.0)))
    closed = distance <= 1e-7 * length  # below the rounding of the Gram matrix
    return Path(norms, np.clip(cosines, -1.0, 1.0), length, distance, np.inf if closed else length / distance)


def _inner(first: Any, second: Any) -> tuple[float, float, float]:
    """<a, b>, ||a||^2 and ||b||^2 in float64, piece by piece."""
    a, b = first.reshape(-1), second.reshape(-1)
    if a.shape != b.shape:
        raise InputError(f"vectors must have one size, got {len(a)} and {len(b)}")
    total = np.zeros(3)
    with np.errstate(over="ignore", invalid="ignore"):  # told below
        for p, q in pieces(a, b):
            total += p @ q, p @ p, q @ q
    if not np.isfinite(total).all():
        raise InputError("vectors must be finite, and so must be their squares; got nan or inf")
    return float(total[0]), float(total[1]), float(total[2])


def _sum_inner(first: Any, second: Any) -> FloatArray:
    """`_inner` of two vectors, or summed over two lists of arrays or tensors."""
    lists = [as_list(first), as_list(second)]
    if len(lists[0]) != len(lists[1]):
        raise InputError(f"both must have the same number of tensors, got {len(lists[0])} and {len(lists[1])}")
    if not sum(map(size_of, lists[0])):
        raise InputError("vectors must not be empty, got no numbers")
    summed: FloatArray = np.sum([_inner(a, b) for a, b in zip(*lists, strict=True)], axis=0)
    return summed


def cosine(first: Any, second: Any) -> float:
    """<a, b> / (||a|| ||b||) in float64: of update and minus gradient, of two updates, of two phases' displacements.

    Source: arXiv:2601.09000 (update against SGD). Nulls: `nulls.shuffled_cosine` for update and gradient,
    `nulls.RandomSubspace` for two directions. With the mini-batch that made the update, cos(update, -gradient) is
    positive even on pure noise: use another batch or the full gradient.

    Args:
        first, second: vectors of one size, or lists of arrays or torch tensors (one for each parameter).

    Returns:
        in [-1, 1]; nan where a vector is 0.

    Raises:
        InputError: different sizes, or numbers that are not finite.

    >>> cosine([3.0, 4.0], [4.0, 3.0])
    0.96
    """
    product, one, other = _sum_inner(first, second)
    scale = np.sqrt(one) * np.sqrt(other)
    return float(np.clip(product / scale, -1.0, 1.0)) if scale > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class QuasiConvexity:
    """Weak quasi-convexity at states x_i against a reference x*: tau_i = slopes_i / drops_i.

    Attributes:
        tau: shape (n,); nan where the reference is not lower than x_i (drop <= 0): nothing is defined there.
        slopes: <grad L(x_i), x_i - x*>, units of the loss.
        drops: L(x_i) - L(x*).
        distances: ||x_i - x*||.
        gradient_norms: ||grad L(x_i)||. With `distances` they give the null of the slopes, `nulls.random_slope`.
    """

    tau: FloatArray
    slopes: FloatArray
    drops: FloatArray
    distances: FloatArray
    gradient_norms: FloatArray


def quasi_convexity(
    states: Any, gradients: Any, losses: ArrayLike, reference: Any, reference_loss: float
) -> QuasiConvexity:
    """tau_i = <grad L(x_i), x_i - x*> / (L(x_i) - L(x*)), with numerator and denominator.

    L is tau-weakly-quasi-convex where tau_i >= tau > 0: convex gives tau >= 1, a quadratic with its own minimiser 2.
    Source: Hardt, Ma & Recht 2018 (arXiv:1609.05191), Definition 2.1; per point as in arXiv:2601.09000.

    Nulls: with the gradient of the training batch, `nulls.same_batch_slopes`, positive without any loss, so take the
    full gradient or an independent batch; against x* itself, a `random_reference` at its distance, whose slope is
    `nulls.random_slope`. Early points, far above x*, are easy: there almost any loss falls towards x*.

    Args:
        states: n vectors x_i of d numbers, or lists of tensors: an array (n, d) or a sequence; or their sketches
            (linear, so that inner products keep).
        gradients: n vectors, or their sketches of the same `Sketch`.
        losses: L(x_i), shape (n,), on the data of the gradients.
        reference: x*: the last iterate, an averaged iterate or `random_reference`; or its sketch.
        reference_loss: L(x*).

    Raises:
        InputError: different numbers or sizes, or numbers that are not finite.

    >>> x = np.array([[1.0, 2.0], [0.5, 0.0]])
    >>> quasi_convexity(x, x, 0.5 * np.sum(x**2, axis=1), np.zeros(2), 0.0).tau.tolist()
    [2.0, 2.0]
    """
    height = check_values("losses", losses)
    lowest = check_number("reference_loss", reference_loss)
    states, gradients = (list(given) if isinstance(given, Iterator) else given for given in (states, gradients))
    if height.ndim != 1 or not len(height) == len(states) == len(gradients):
        raise InputError(
            f"states, gradients and losses must be equally many, got {len(states)}, {len(gradients)}, {height.shape}"
        )
    away = _vector(reference).astype(np.float64)
    found = []
    for state, gradient in zip(states, gradients, strict=True):
        x = _vector(state)
        if x.size != away.size:
            raise InputError(f"states and reference must have one size, got {x.size} and {away.size}")
        found.append(_inner(_vector(gradient), x - away))
    slopes, gradient_squares, squares = np.transpose(found) if found else np.zeros((3, 0))
    drops = height - lowest
    tau = np.full(len(drops), np.nan)
    np.divide(slopes, drops, out=tau, where=drops > 0)
    return QuasiConvexity(tau, slopes, drops, np.sqrt(squares), np.sqrt(gradient_squares))


def _vector(values: Any) -> NDArray[Any]:
    """One flat array, of a vector or of a list of tensors one after the other."""
    parts = [check_kind(as_numpy(part)).reshape(-1) for part in as_list(values)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def random_reference(state: Any, reference: Any, *, rng: np.random.Generator) -> FloatArray:
    """x + ||x - x*|| v, v a random unit vector: a reference as far from x as x* that training knows nothing of.

    The loss there is the caller's to evaluate; the slope towards it has mean 0 (`nulls.random_slope`).

    Args:
        state, reference: x and x*, vectors of d numbers.
        rng: source of v.

    Returns:
        shape (d,), float64.

    Raises:
        InputError: different sizes, or numbers that are not finite.
    """
    x, other = (_vector(v).astype(np.float64) for v in (state, reference))
    if x.size != other.size:
        raise InputError(f"state and reference must have one size, got {x.size} and {other.size}")
    v = rng.standard_normal(x.size)
    distance = np.sqrt(_inner(x - other, v)[1])
    shifted: FloatArray = x + v * (distance / np.sqrt(v @ v))
    return shifted
