"""Eigenvalues of symmetric operators that are known by their products only; no deep-learning framework needed.

Any `scipy.sparse.linalg.LinearOperator` (or dense matrix) will do: a Hessian from `riverval.hessian`, a toy's matrix,
your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, aslinearoperator, eigsh

from ._checks import check_int, check_number, pick
from ._typing import FloatArray
from .errors import InputError, RivervalError

_DENSE_BELOW = 12  # where the dense solver takes hardly more products
# What `which` means, in ARPACK's letters and as the position among ascending eigenvalues.
_ENDS = {"largest": ("LA", -1), "smallest": ("SA", 0)}


@dataclass(frozen=True)
class EigenPair:
    """An eigenvalue, its vector and how far to trust them.

    Attributes:
        value: the eigenvalue lambda, in the operator's units.
        vector: unit vector v, float64 of shape (n,).
        residual: ||H v - lambda v||: for symmetric H some exact eigenvalue lies within this distance of `value`.
        products: operator-vector products spent, the one for `residual` included.
    """

    value: float
    vector: FloatArray
    residual: float
    products: int


class _Counted(LinearOperator):
    """An operator in float64 that counts its products and refuses values that are not finite."""

    def __init__(self, operator: LinearOperator) -> None:
        self.inner, self.products = operator, 0
        super().__init__(np.dtype(np.float64), operator.shape)

    def _matvec(self, x: Any) -> FloatArray:
        self.products += 1
        product = np.asarray(self.inner.matvec(x), dtype=np.float64).reshape(-1)
        if not np.all(np.isfinite(product)):
            raise RivervalError("the operator gave a product that is not finite; check the loss at this point")
        return product


def top_eigenvalue(
    operator: Any,
    *,
    rng: np.random.Generator,
    tol: float = 1e-3,
    which: str = "largest",
    max_products: int = 1000,
) -> EigenPair:
    """The algebraically largest (or smallest) eigenvalue of a symmetric operator, by restarted Lanczos (ARPACK).

    Args:
        operator: symmetric, shape (n, n): a LinearOperator, a sparse or a dense matrix. Symmetry is not checked.
        rng: draws the starting vector; the same state gives the same answer.
        tol: relative accuracy asked of the eigenvalue, in (0, 1).
        which: "largest" or "smallest", by value and not by magnitude.
        max_products: give up after about this many products.

    Raises:
        InputError: not a square operator, or an argument out of range.
        RivervalError: a product is not finite, or the tolerance was not met within `max_products`.

    >>> pair = top_eigenvalue(np.diag(np.arange(30.0)), rng=np.random.default_rng(0))
    >>> round(pair.value, 3)
    29.0
    """
    check_number("tol", tol, low=0.0, high=1.0, open_low=True, open_high=True)
    check_int("max_products", max_products, low=20)
    letters, place = pick("end of the spectrum", which, _ENDS)
    linear = aslinearoperator(operator)
    if linear.shape[0] != linear.shape[1] or not linear.shape[0]:
        raise InputError(f"an eigenvalue needs a square operator, got shape {linear.shape}")
    counted = _Counted(linear)
    if linear.shape[0] < _DENSE_BELOW:
        vector = _dense(counted, place)
    else:
        vector = _arpack(counted, letters, rng.standard_normal(linear.shape[0]), tol, max_products)
    product = counted.matvec(vector)
    value = float(vector @ product)  # the Rayleigh quotient: its error is of second order in the vector's
    return EigenPair(value, vector, float(np.linalg.norm(product - value * vector)), counted.products)


def _dense(operator: _Counted, place: int) -> FloatArray:
    columns = np.stack([operator.matvec(e) for e in np.eye(operator.shape[0])], axis=1)
    vectors: FloatArray = np.linalg.eigh((columns + columns.T) / 2)[1]
    return vectors[:, place]


def _arpack(operator: _Counted, letters: str, start: FloatArray, tol: float, max_products: int) -> FloatArray:
    # Small: an outlier, the usual case, is found in the first sweep, and only after a sweep does ARPACK look.
    basis = min(10, operator.shape[0])
    restarts = max(1, max_products // basis)
    try:
        vectors = eigsh(operator, k=1, which=letters, v0=start, tol=tol, ncv=basis, maxiter=restarts)[1]
    except ArpackNoConvergence as error:
        raise RivervalError(
            f"no eigenvalue to a tolerance of {tol:g} after {operator.products} products; "
            f"raise max_products or loosen the tolerance"
        ) from error
    except ArpackError as error:
        raise RivervalError(f"the eigenvalue solver failed: {error}") from error
    vector: FloatArray = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
    return vector
