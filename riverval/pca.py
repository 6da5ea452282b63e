"""Principal components of snapshots by their Gram matrix: exact, streamed, O(n^2) memory beside one block.

n snapshots of d parameters with n << d: the nonzero eigenvalues of the d x d covariance are those of the n x n matrix
of inner products, so d enters only through one pass over the data. A share of variance means little by itself: print
`nulls.random_walk_shares` beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._arrays import check_values
from ._blocks import MEMORY, blocks_of, check_kind
from ._checks import check_int
from ._typing import ArrayLike, FloatArray, IntArray, NDArray
from .errors import InputError, RivervalError

_CHUNK = 1 << 20  # numbers converted to float64 at a time: 8 MB, near the processor

Blocks = Callable[[], Iterable[ArrayLike]]


def _centred(array: NDArray[Any]) -> Iterator[FloatArray]:
    """Chunks of coordinates in float64, their mean over the snapshots taken off; a chunk lasts until the next."""
    n, dim = array.shape
    width = max(1, min(dim, _CHUNK // max(1, n)))
    space = np.empty(n * width)
    for first in range(0, dim, width):
        part = space[: n * min(width, dim - first)].reshape(n, -1)
        part[...] = array[:, first : first + width]
        part -= part.mean(axis=0)
        yield part


def _checked(blocks: Iterable[ArrayLike]) -> Iterator[NDArray[Any]]:
    count = None
    for block in blocks:
        array = check_kind(np.asarray(block))
        if array.ndim != 2 or (count is not None and len(array) != count):
            wanted = "(n, size)" if count is None else f"({count}, size)"
            raise InputError(f"a block of snapshots must have shape {wanted}, got {array.shape}")
        count = len(array)
        yield array


def centred_gram(blocks: Iterable[ArrayLike]) -> FloatArray:
    """K_ij = <x_i - mean, x_j - mean> of n snapshots whose coordinates come in blocks.

    Blocks keep memory low: a block is all snapshots of one weight tensor, shape (n, size); K sums over them. Centring
    comes before the products, in float64, so that a small motion of a large vector is not lost to rounding. The error
    of an eigenvalue is about 1e-15 of the largest one. (Products in float32 would save a quarter of the time and leave
    1e-9, which hides the components below.)

    Args:
        blocks: arrays of shape (n, size) with the same n; `pca` takes other forms.

    Returns:
        K, shape (n, n), units of the parameters squared.

    Raises:
        InputError: no block, blocks of different n, or numbers that are not finite (the first such snapshot is named).
    """
    gram: FloatArray | None = None
    with np.errstate(invalid="ignore", over="ignore"):  # told below, with the snapshot's number
        for array in _checked(blocks):
            gram = np.zeros((len(array), len(array))) if gram is None else gram
            _add_products(gram, array)
            if not np.isfinite(gram).all():
                raise _not_finite(array)
    if gram is None:
        raise InputError("the Gram matrix needs at least one block of snapshots, got none")
    return gram


def _add_products(gram: FloatArray, array: NDArray[Any]) -> None:
    for part in _centred(array):
        gram += part @ part.T


def _not_finite(array: NDArray[Any]) -> InputError:
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if not len(bad):
        return InputError("snapshots must be of a size whose squares are finite; scale them down")
    others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return InputError(f"principal components need finite snapshots; snapshot {bad[0]}{others} has nan or inf")


def _eigen_of_gram(gram: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The centred Gram matrix, its n - 1 eigenvalues (largest first, not negative) and eigenvectors (in columns)."""
    k = np.asarray(gram, dtype=np.float64)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or len(k) < 2:
        raise InputError(f"principal components need a square Gram matrix of at least 2 snapshots, got shape {k.shape}")
    if not np.all(np.isfinite(k)):
        raise InputError("principal components need finite snapshots, got values that are not finite")
    centred = k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()
    values, vectors = np.linalg.eigh(centred)
    values = np.clip(values[::-1][:-1], 0.0, None)
    if values.sum() <= 1e-14 * np.trace(np.abs(k)):
        raise InputError("principal components need snapshots that differ, got the same one throughout")
    return centred, values, vectors[:, ::-1][:, :-1]


def shares_of_gram(gram: ArrayLike) -> FloatArray:
    """Shares of the variance of each principal component, from a Gram matrix of n snapshots.

    The nonzero eigenvalues of the centred Gram matrix are those of the covariance (times n), so d never enters:
    share_k = lambda_k / sum_j lambda_j. Null: `nulls.random_walk_shares`.

    Args:
        gram: symmetric, shape (n, n), n >= 2; centred here, which changes nothing where it already is.

    Returns:
        n - 1 shares, largest first, summing to 1.

    Raises:
        InputError: fewer than two snapshots, values that are not finite, or snapshots that are all the same.
    """
    values = _eigen_of_gram(gram)[1]
    shares: FloatArray = values / values.sum()
    return shares


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of n snapshots x_0 .. x_{n-1}, largest first.

    With K = U diag(lambda) U' the centred Gram matrix, component k is the unit vector
    v_k = sum_i coefficients[i, k] (x_i - mean), coefficients = U / sqrt(lambda). Its sign makes the last snapshot's
    score positive.

    Attributes:
        gram: K, shape (n, n).
        variances: lambda_k / (n - 1), shape (n - 1,), units of the parameters squared.
        shares: lambda_k / sum lambda, shape (n - 1,). Null: `nulls.random_walk_shares`.
        scores: <x_i - mean, v_k> = U sqrt(lambda), shape (n, n - 1).
        coefficients: shape (n, n - 1); each column sums to 0; 0 beyond `rank`.
        rank: number of components that stand above rounding (lambda_k > 1e-12 lambda_1).
    """

    gram: FloatArray
    variances: FloatArray
    shares: FloatArray
    scores: FloatArray
    coefficients: FloatArray
    rank: int
    _blocks: Blocks | None = field(default=None, repr=False)

    def component_blocks(self, count: int = 1) -> Iterator[FloatArray]:
        """The first `count` components, block of coordinates by block: arrays of shape (count, size), float64.

        Raises:
            InputError: more components than `rank`.
            RivervalError: the snapshots cannot be read again.
        """
        count = check_int("count", count, low=1, high=self.rank, what="components above rounding")
        for array in _checked(self._again()):
            for part in _centred(array):
                yield self.coefficients[:, :count].T @ part

    def component(self, index: int = 0) -> FloatArray:
        """Component `index` as one vector of float64, shape (d,); where d is large, use `component_blocks`.

        Raises:
            InputError, RivervalError: as in `component_blocks`.
        """
        index = check_int("index", index, high=self.rank - 1, what="component above rounding")
        return np.concatenate([rows[index] for rows in self.component_blocks(index + 1)])

    def mean(self) -> FloatArray:
        """The mean of the snapshots, shape (d,).

        Raises:
            RivervalError: the snapshots cannot be read again.
        """
        return np.concatenate([array.mean(axis=0, dtype=np.float64) for array in _checked(self._again())])

    def _again(self) -> Iterable[ArrayLike]:
        if self._blocks is None:
            raise RivervalError(
                "the snapshots cannot be read a second time: give pca_of_blocks a function that returns the blocks, "
                "or a list, instead of a generator"
            )
        return self._blocks()


def pca_of_gram(gram: ArrayLike) -> Components:
    """Principal components from a Gram matrix alone (of snapshots or of their sketches): all but the vectors.

    Raises:
        InputError: as in `shares_of_gram`.
    """
    return _components(gram, None)


def _components(gram: ArrayLike, blocks: Blocks | None) -> Components:
    centred, values, vectors = _eigen_of_gram(gram)
    vectors = vectors * np.where(vectors[-1] < 0, -1.0, 1.0)
    size = np.sqrt(values)
    rank = int(np.sum(values > 1e-12 * values[0]))
    coefficients = np.zeros_like(vectors)
    coefficients[:, :rank] = vectors[:, :rank] / size[:rank]
    variances, shares = values / (len(vectors) - 1), values / values.sum()
    return Components(centred, variances, shares, vectors * size, coefficients, rank, blocks)


def pca_of_blocks(blocks: Iterable[ArrayLike] | Blocks) -> Components:
    """Principal components of snapshots whose coordinates come in blocks of shape (n, size), as in `centred_gram`.

    Args:
        blocks: a list, or a function that returns the blocks anew (for `Components.component`), or a generator, which
            can be read once: then only the numbers are had, not the vectors.

    Raises:
        InputError: as in `centred_gram` and `shares_of_gram`.
    """
    if callable(blocks):
        return _components(centred_gram(blocks()), blocks)
    again = None if iter(blocks) is blocks else lambda: blocks
    return _components(centred_gram(blocks), again)


def pca(snapshots: Any, *, memory: int = MEMORY) -> Components:
    """Principal components of n snapshots by their Gram matrix, streamed over coordinates in blocks.

    Formula: K_ij = <x_i - mean, x_j - mean>; share_k = lambda_k(K) / trace K. Source: the method of snapshots (Sirovich
    1987). Null: `nulls.random_walk_shares` with the run's rates; a first share of 0.61 is what a walk without any
    direction gives.

    Args:
        snapshots: an array of shape (n, d), which may be a memory map or anything that is cut like one; or a sequence
            of n snapshots, each an array, a mapping of names to arrays or torch tensors, the path of a ``.npy`` file,
            or a function without arguments that loads one of these. Functions are called once for each block, so let
            them map the file, or raise `memory`.
        memory: bytes of a block of coordinates of all snapshots.

    Raises:
        InputError: fewer than two snapshots, all of them the same, not finite, not real, or of different size, names or
            order of parameters (the first difference is named).

    >>> found = pca([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    >>> found.shares.round(6).tolist(), found.scores[:, 0].round(6).tolist(), found.component().round(6).tolist()
    ([1.0, 0.0], [-5.0, 0.0, 5.0], [0.6, 0.8])
    """
    check_int("memory", memory, low=1, what="bytes of a block")
    blocks = blocks_of(snapshots, memory)
    return _components(centred_gram(blocks()), blocks)


def pca_shares(snapshots: Any) -> FloatArray:
    """Shares of the variance of the principal components of `snapshots` (forms as in `pca`): n - 1, largest first.

    Null: `nulls.random_walk_shares`.

    Raises:
        InputError: as in `pca`.

    >>> pca_shares([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]).round(6).tolist()
    [1.0, 0.0]
    """
    return pca(snapshots).shares


def subspace_cosines(gram: ArrayLike, first: ArrayLike, second: ArrayLike, k: int = 1) -> FloatArray:
    """Cosines of the principal angles between the first k principal components of two windows of snapshots.

    Formula: the singular values of C_a' K_ab C_b, K the joint Gram matrix and C the windows' `coefficients` (Bjorck &
    Golub 1973); k = 1 is abs(<pc1, pc1'>). From a Gram matrix an angle below 1e-7 cannot be told from 0.
    Null: `nulls.RandomSubspace` (dim) for k = 1, `nulls.random_cosines` (dim, k) for more: "distinct directions" is
    automatic, abs(cos) about 0.8 / sqrt(d) between two windows of one random walk.

    Args:
        gram: of all snapshots together, shape (n, n), about any origin (`Components.gram`).
        first, second: the windows: whole numbers in 0..n-1, at least 2 different ones each.
        k: size of the subspaces.

    Returns:
        k cosines, largest first; `numpy.arccos` makes angles of them.

    Raises:
        InputError: a window without k components, places outside the matrix, twice the same one, or a mask of them.
    """
    joint = np.asarray(gram, dtype=np.float64)
    check_int("k", k, low=1, what="components")
    joint = _eigen_of_gram(joint)[0]  # centred: coefficients sum to 0, so the origin drops out, and its rounding too
    windows, weights = [], []
    for name, places in (("first", first), ("second", second)):
        window = _window(name, places, len(joint))
        found = pca_of_gram(joint[np.ix_(window, window)])
        if found.rank < k:
            raise InputError(f"the {name} window has {found.rank} components above rounding, k = {k} were asked for")
        windows.append(window)
        weights.append(found.coefficients[:, :k])
    cross = weights[0].T @ joint[np.ix_(*windows)] @ weights[1]
    cosines: FloatArray = np.clip(np.linalg.svd(cross, compute_uv=False), 0.0, 1.0)
    return cosines


def _window(name: str, places: ArrayLike, count: int) -> IntArray:
    given = np.asarray(places)
    if given.dtype.kind not in "iu" or given.ndim != 1 or len(np.unique(given)) < len(given):
        raise InputError(
            f"{name} must be the numbers of snapshots, whole and each once, got {places!r}; of a mask take "
            f"numpy.flatnonzero"
        )
    return check_values(name, given, low=0, high=count - 1).astype(np.int64)
