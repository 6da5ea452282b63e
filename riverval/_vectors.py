"""Arithmetic on parameter vectors of any kind: numpy arrays or torch tensors, told apart without importing torch.

Sums of products are made in float64 whatever the vectors hold, in pieces, so that no second copy of a large vector is
made: a float32 norm of some 1e5 entries is off in its fifth digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ._typing import ArrayLike, FloatArray
from .errors import InputError

_PIECE = 1 << 20  # entries converted to float64 at a time


def check_vectors(what: str, vectors: Sequence[Any]) -> int:
    """The dimension of vectors that are all of one kind, shape (dim,), and finite.

    Raises:
        InputError: anything else; `what` names the vectors in the message.
    """
    first = vectors[0]
    for k, vector in enumerate(vectors):
        shape = getattr(vector, "shape", None)
        if shape is None or len(shape) != 1:
            got = type(vector).__name__ if shape is None else f"shape {tuple(shape)}"
            raise InputError(f"{what} must be vectors of shape (dim,), numpy or torch; number {k} is of {got}")
        if isinstance(vector, np.ndarray) is not isinstance(first, np.ndarray):
            raise InputError(f"{what} must be all numpy arrays or all torch tensors, got some of each")
    shapes = [tuple(vector.shape) for vector in vectors]
    if len(set(shapes)) > 1:
        raise InputError(f"{what} must be of one shape, got {', '.join(map(str, dict.fromkeys(shapes)))}")
    for k, vector in enumerate(vectors):
        if not all(np.isfinite(piece).all() for (piece,) in pieces(vector)):
            raise InputError(f"{what} must be finite; number {k} has entries that are not")
    return int(shapes[0][0])


def pieces(*vectors: Any) -> Iterator[tuple[FloatArray, ...]]:
    """The vectors, piece by piece, as float64 arrays."""
    for start in range(0, max(1, int(vectors[0].shape[0])), _PIECE):
        yield tuple(_float64(vector[start : start + _PIECE]) for vector in vectors)


def _float64(piece: Any) -> FloatArray:
    kind = getattr(piece.dtype, "kind", "c" if getattr(piece.dtype, "is_complex", False) else "f")
    if kind not in "fiub":
        raise InputError(f"vectors must be of real numbers, got the type {piece.dtype}")
    if hasattr(piece, "detach"):  # a tensor: on the CPU first, as some accelerators have no float64
        piece = piece.detach().cpu().double().numpy()
    return np.asarray(piece, dtype=np.float64)


def dot(a: Any, b: Any) -> float:
    """<a, b>."""
    return float(sum(x @ y for x, y in pieces(a, b)))


def norm(a: Any) -> float:
    """||a||; exact for very large and very small entries too."""
    return float(np.linalg.norm([np.linalg.norm(x) for (x,) in pieces(a)]))


def distance(a: Any, b: Any) -> float:
    """||a - b||, the difference taken in float64."""
    return float(np.linalg.norm([np.linalg.norm(x - y) for x, y in pieces(a, b)]))


def like(vector: Any, values: ArrayLike) -> Any:
    """`values` as a vector of the kind, type and device of `vector`."""
    array = np.asarray(values, dtype=np.float64)
    if hasattr(vector, "new_tensor"):
        return vector.new_tensor(array)
    return array.astype(vector.dtype) if np.issubdtype(vector.dtype, np.floating) else array


def fresh(vector: Any) -> Any:
    """A copy that may be handed to anybody's function: writing to it changes nothing of the user's."""
    return vector.detach().clone() if hasattr(vector, "detach") else vector.copy()
