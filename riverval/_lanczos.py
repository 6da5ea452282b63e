"""Krylov spaces of symmetric operators, on whatever device holds the vectors.

`Space` is what a device must offer; `HostSpace` is the one of NumPy. `Krylov` is the recurrence: it spends one product
a step and nothing else does, and its residuals need no further ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from scipy.sparse.linalg import aslinearoperator

from ._typing import FloatArray
from .errors import InputError, RivervalError

_COLUMNS = 1 << 16  # of a basis rotated at once: a block of them fits the cache
_TINY = 1e-13  # of the largest product: what orthogonalisation leaves of a vector that lies in the span


class Space(Protocol):
    """Where the vectors of an operator live, and the few things that differ between NumPy and an accelerator.

    An operator offers one as its attribute `space` and takes the space's vectors: ``operator @ vector``. Everything
    else is done with what NumPy arrays and torch tensors share: ``@``, slices, ``+``, ``-``, ``*`` by a float and
    assignment to rows. Arrays are float64 where the device has it. An operator without `space` gets `HostSpace`.
    """

    def empty(self, rows: int, dim: int) -> Any:
        """An uninitialised array of shape (rows, dim) on the device, one basis vector a row."""

    def array(self, values: Any) -> Any:
        """`values` (a NumPy array, or what ``operator @ vector`` gave) as an array of the space, in its dtype."""

    def numpy(self, array: Any) -> FloatArray:
        """An array of the space, of any shape, as float64 NumPy array on the host."""


class HostSpace:
    """NumPy arrays in float64."""

    def empty(self, rows: int, dim: int) -> FloatArray:
        """An uninitialised (rows, dim)."""
        return np.empty((rows, dim))

    def array(self, values: Any) -> FloatArray:
        """`values` in float64, not copied where they are."""
        return np.asarray(values, dtype=np.float64)

    def numpy(self, array: Any) -> FloatArray:
        """`array` itself."""
        return np.asarray(array, dtype=np.float64)


class Products:
    """A symmetric operator in the vectors of its space: it counts its products and refuses those that are not finite.

    Args:
        operator: has `shape` (n, n) and ``@``; vectors are of `operator.space` where it has one, else of NumPy. Sparse
            and dense matrices and scipy's LinearOperators will do.

    Attributes:
        dim: n.
        space: of its vectors.
        count: products so far.

    Raises:
        InputError: not a square real operator, or without elements.
    """

    def __init__(self, operator: Any) -> None:
        space: Space | None = getattr(operator, "space", None)
        if space is None:
            try:
                operator = aslinearoperator(operator)
            except TypeError:
                raise InputError(
                    f"an operator needs a shape and products (a matrix, a LinearOperator, or `space` and `@`), "
                    f"got {type(operator).__name__}"
                ) from None
        self.space: Space = HostSpace() if space is None else space
        if len(operator.shape) != 2 or operator.shape[0] != operator.shape[1] or not operator.shape[0]:
            raise InputError(f"an eigenvalue needs a square operator, got shape {tuple(operator.shape)}")
        if np.issubdtype(getattr(operator, "dtype", None) or np.float64, np.complexfloating):
            raise InputError("the operator is complex; only real symmetric ones are known here")
        self._operator, self.dim, self.count = operator, int(operator.shape[0]), 0

    def __call__(self, vector: Any) -> Any:
        """One product.

        Raises:
            RivervalError: it is not finite.
        """
        self.count += 1
        product = self.space.array(self._operator @ vector)
        if not math.isfinite(norm(product)):
            raise RivervalError("the operator gave a product that is not finite; check the loss at this point")
        return product

    def random(self, rng: np.random.Generator) -> Any:
        """A vector of independent standard normals; the same on every device."""
        return self.space.array(rng.standard_normal(self.dim))


@dataclass(frozen=True)
class Ritz:
    """What a Krylov space says of the operator: the eigenvalues of its projection, and how wrong they can be.

    Attributes:
        values: (m,), ascending.
        small: (m, m), column i is the Ritz vector of value i in coordinates of the basis.
        lead: (m,), the part of the residual that further products remove: ||C s_i||.
        noise: (m,), the part that they do not: the products' departure from symmetry, caused by their rounding.
    """

    values: FloatArray
    small: FloatArray
    lead: FloatArray
    noise: FloatArray

    @property
    def residuals(self) -> FloatArray:
        """||H v_i - theta_i v_i|| of the products as they came, shape (m,)."""
        return np.hypot(self.lead, self.noise)


class Krylov:
    """An orthonormal basis V grown by one product a step: H V = V T + Q C.

    The candidates Q are orthonormal directions outside V that the products led to or the caller offered; a step takes
    one of them, or a mixture, into V. From one vector this is Lanczos' recurrence with full reorthogonalisation; from
    several it is band Lanczos with free choice of the next direction. T is kept as it came out, so that the residual
    W - V T of the products W as they are is known: symmetric part, remainder and candidates account for all of it.

    Args:
        products: of the operator.
        rows: the most basis vectors and candidates to hold; memory 8 n rows bytes.

    Attributes:
        basis: array of the space; V in rows :m, Q in rows m:m + c.
        projection: T, shape (m, m).
        coupling: C, shape (c, m).
        scale: the largest ||H v|| / ||v|| seen.
        first: v' H v of the first vector v.
    """

    def __init__(self, products: Products, rows: int) -> None:
        self.products, self.rows = products, min(rows, products.dim)
        self.basis = products.space.empty(min(12, self.rows), products.dim)
        self.clear()

    def clear(self) -> None:
        """Begin again, in the same memory."""
        self.projection, self.coupling = np.zeros((0, 0)), np.zeros((0, 0))
        self.scale = self.first = 0.0

    @property
    def size(self) -> int:
        """m, the vectors of V."""
        return len(self.projection)

    @property
    def held(self) -> int:
        """m + c, the rows in use."""
        return self.size + len(self.coupling)

    def offer(self, vector: Any) -> bool:
        """Make the part of `vector` outside V and Q a candidate; False if there is none (or no room)."""
        length = norm(vector)
        if not length or self.held == self.rows:
            return False
        rest, _ = self._outside(vector * (1.0 / length))
        return self._append(rest, 1e-8, 1.0, np.zeros((1, self.size)))

    def step(self, weights: FloatArray | None = None) -> None:
        """One product, with the mixture of the candidates that `weights` (c,) names; with the first one if None.

        Raises:
            RivervalError: the product is not finite.
        """
        if weights is not None and len(self.coupling) > 1:
            self._turn(weights)
        m = self.size
        product = self.products(self.basis[m])
        length = norm(product)
        self.scale = max(self.scale, length)
        projection = np.empty((m + 1, m + 1))
        projection[:m, :m], projection[m, :m] = self.projection, self.coupling[0]
        rest, inside = self._outside(product)
        projection[:, m] = inside[: m + 1]
        self.projection = projection
        self.coupling = np.column_stack([self.coupling[1:], inside[m + 1 :]])
        self._append(rest, _TINY * self.scale, length, np.eye(m + 1)[m:] * norm(rest))
        if not m:
            self.first = float(projection[0, 0])

    def ritz(self) -> Ritz:
        """Eigenvalues and residuals of the projection; no product is spent."""
        values, small = np.linalg.eigh((self.projection + self.projection.T) / 2)
        skew = (self.projection - self.projection.T) / 2
        lead = np.linalg.norm(self.coupling @ small, axis=0) if len(self.coupling) else np.zeros(self.size)
        return Ritz(values, small, lead, np.linalg.norm(skew @ small, axis=0))

    def vectors(self, small: FloatArray) -> FloatArray:
        """V `small`, shape (n, j), on the host: Ritz vectors from their coordinates (m, j).

        Each column is contiguous, and made alone: no second copy of all of them.
        """
        space = self.products.space
        rows = np.empty((small.shape[1], self.products.dim))
        for row, column in zip(rows, small.T, strict=True):
            row[:] = space.numpy(space.array(column) @ self.basis[: self.size])
        return rows.T

    def shrink(self, small: FloatArray) -> None:
        """Keep of V only V `small`, columns (m, p) of Ritz vectors: a thick restart. T and C stay exact."""
        m, c, p = self.size, len(self.coupling), small.shape[1]
        turn = np.zeros((p + c, m + c))
        turn[:p, :m], turn[p:, m:] = small.T, np.eye(c)
        self._rotate(turn, 0, m + c)
        self.projection, self.coupling = small.T @ self.projection @ small, self.coupling @ small

    def _turn(self, weights: FloatArray) -> None:
        # A reflection that takes the first axis to the mixture: the candidates stay orthonormal.
        c = len(self.coupling)
        first = weights / np.linalg.norm(weights)
        mirror = first - np.eye(c)[0]
        size = float(mirror @ mirror)
        if size < 1e-30:
            return
        turn = np.eye(c) - (2 / size) * np.outer(mirror, mirror)
        self._rotate(turn, self.size, self.held)
        self.coupling = turn @ self.coupling

    def _rotate(self, turn: FloatArray, start: int, stop: int) -> None:
        device = self.products.space.array(turn)
        for a in range(0, self.products.dim, _COLUMNS):
            block = slice(a, min(a + _COLUMNS, self.products.dim))
            self.basis[start : start + len(turn), block] = device @ self.basis[start:stop, block]

    def _outside(self, vector: Any) -> tuple[Any, FloatArray]:
        """`vector` less its part in V and Q, and that part's coordinates; twice, which makes it exact to rounding."""
        held = self.basis[: self.held]
        first = held @ vector
        vector = vector - first @ held
        second = held @ vector
        return vector - second @ held, self.products.space.numpy(first + second)

    def _append(self, rest: Any, least: float, before: float, row: FloatArray) -> bool:
        length = norm(rest)
        if length <= least or self.held == self.products.dim:
            return False
        rest = rest * (1.0 / length)
        if length < 1e-4 * before:  # hardly anything is left, and most of it is rounding: its part in the basis too
            rest, _ = self._outside(rest)
            rest = rest * (1.0 / norm(rest))
        if self.held == len(self.basis):
            self._grow()
        self.basis[self.held] = rest
        self.coupling = np.vstack([self.coupling, row])
        return True

    def _grow(self) -> None:
        larger = self.products.space.empty(min(2 * len(self.basis), self.rows), self.products.dim)
        larger[: len(self.basis)] = self.basis
        self.basis = larger


class Chain:
    """Lanczos coefficients of a random vector outside a space V, and what they exclude.

    Each step goes on with all of the last product's part outside V, the candidates' included: with the weights
    ``coupling[:, -1]``. So they are the coefficients of the operator projected on what is outside V.

    Args:
        dim: n of the space that the vector was drawn in.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.diagonal: list[float] = []
        self.beside: list[float] = []

    def add(self, krylov: Krylov) -> bool:
        """Take in the last step; whether it closed the chain, after which all that the vector meets is known."""
        self.diagonal.append(float(krylov.projection[-1, -1]))
        beside = float(np.linalg.norm(krylov.coupling[:, -1]))
        closed = beside <= _TINY * krylov.scale
        self.beside.append(beside)
        return closed

    def excludes(self, low: float, high: float, risk: float) -> bool:
        """Whether there is no eigenvalue below `low` or above `high`, but for a `risk` (infinite: no limit).

        The vector's spectral measure has at most the mass 1 / sum_j p_j(x)^2 at or beyond x outside the Ritz values,
        p_j the orthonormal polynomials of the coefficients (Chebyshev, Markov, Stieltjes). A random vector has less
        than t / n on an eigenvector with the probability sqrt(2 t / pi).
        """
        nodes = eigvalsh_tridiagonal(self.diagonal, self.beside[:-1])
        needed = self.dim / (math.pi / 2 * risk**2)
        inside = low < nodes[0] and nodes[-1] < high
        return inside and all(math.isinf(x) or self._weight(x) > needed for x in (low, high))

    def _weight(self, x: float) -> float:
        before, now, total = 0.0, 1.0, 1.0
        for j, (a, b) in enumerate(zip(self.diagonal, self.beside, strict=True)):
            back = self.beside[j - 1] * before if j else 0.0
            before, now = now, ((x - a) * now - back) / b
            total += now * now
        return total


def norm(vector: Any) -> float:
    """Its length; not finite where a component is not."""
    return math.sqrt(float(vector @ vector))


def unit(vector: Any) -> Any:
    """A vector over its length."""
    return vector * (1.0 / norm(vector))
