"""Eigenvalues of symmetric operators that are known by their products only; no deep-learning framework needed.

Any `scipy.sparse.linalg.LinearOperator` (or dense matrix) will do: a Hessian from `riverval.hessian`, a toy's matrix,
your own. An operator whose vectors live on an accelerator says so by its attribute `space` (`riverval._lanczos.Space`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ._arrays import check_generator
from ._checks import check_int, check_number, pick
from ._lanczos import Products
from ._search import ORDERS, RISK, Search
from ._typing import FloatArray
from .critical import CriticalSharpness, critical_sharpness
from .errors import InputError, RivervalError

__all__ = [
    "CriticalSharpness",
    "EigenPair",
    "Eigenpairs",
    "OverBatches",
    "critical_sharpness",
    "over_batches",
    "top_eigenvalue",
    "top_eigenvalues",
]


@dataclass(frozen=True)
class EigenPair:
    """An eigenvalue, its vector and how far to trust them: `Eigenpairs` of one.

    Attributes:
        value: the eigenvalue lambda, in the operator's units.
        vector: unit vector v, float64 of shape (n,).
        residual: ||H v - lambda v||: for symmetric H some exact eigenvalue lies within this distance of `value`.
        products: operator-vector products spent.
        bound: of the error of `value`, at most `residual`; see `Eigenpairs.bounds`.
    """

    value: float
    vector: FloatArray = field(repr=False)
    residual: float
    products: int
    bound: float


@dataclass(frozen=True)
class Eigenpairs:
    """Extreme eigenvalues with their vectors, and how far to trust each.

    Attributes:
        values: (k,) in the operator's units: descending for "largest", ascending for "smallest", by descending
            magnitude for "magnitude"; for "both" (2k,), the k largest descending and then the k smallest ascending.
            Fewer if the products ran out before there were so many, which needs ``strict=False``.
        vectors: (n, k), orthonormal columns in the order of `values`, float64 on the host.
        residuals: (k,) of ||H v_i - lambda_i v_i||, rounding of the products included as far as it shows in their
            departure from symmetry. Some eigenvalue of H lies within `residuals[i]` of `values[i]`; that is a theorem.
        bounds: (k,) of the error of each value: min(r, r^2 / gap + noise), r the residual and gap the distance to the
            nearest other Ritz value less that one's residual (Kato 1949, Temple 1928). Sharper, and no theorem: it
            takes it that no eigenvalue hides in the gap. Of two eigenvalues closer than about sqrt(tol) relative, one
            that is sought alone may be anything between them, with a bound that says nothing of it: ask for two.
            Neither one proves that there is no larger eigenvalue than the largest found; no Krylov method does.
            `checked` says whether a second random start looked for one.
        products: operator-vector products spent. The residuals took none.
        converged: whether every bound meets the tolerance.
        checked: whether a missed eigenvalue was excluded by a second random start, or by exhausting all n dimensions.
        warm: (n, j), `vectors` and the next best directions after them: the `start` of the next probe.
        mean_curvature: v' H v of the random unit vector v that a cold search starts from: **the null of an
            eigenvalue**, what a random direction shows. Its mean is Tr(H) / n and its variance
            2 (Tr(H^2) / n - (Tr(H) / n)^2) / (n + 2). nan after a warm start, which has no such vector.
    """

    values: FloatArray
    vectors: FloatArray = field(repr=False)
    residuals: FloatArray
    bounds: FloatArray
    products: int
    converged: bool
    checked: bool
    warm: FloatArray = field(repr=False)
    mean_curvature: float


def top_eigenvalue(
    operator: Any,
    *,
    rng: np.random.Generator,
    tol: float = 1e-3,
    which: str = "largest",
    start: Any = None,
    max_products: int = 1000,
) -> EigenPair:
    """The algebraically largest (or smallest) eigenvalue of a symmetric operator: `top_eigenvalues` for k = 1.

    Args:
        operator: symmetric, shape (n, n): a LinearOperator, a sparse or a dense matrix.
        rng: draws the starting vector; the same state gives the same answer.
        tol: relative accuracy asked of the eigenvalue, in (0, 1).
        which: "largest", "smallest" or "magnitude".
        start: vectors of a previous probe, (n,) or (n, j).
        max_products: give up after this many products.

    Raises:
        InputError: not a square operator, or an argument out of range.
        RivervalError: a product is not finite, or the tolerance was not met within `max_products`.

    The null of an eigenvalue is the curvature of a random direction: `Eigenpairs.mean_curvature`.

    >>> pair = top_eigenvalue(np.diag(np.arange(30.0)), rng=np.random.default_rng(0))
    >>> round(pair.value, 1)
    29.0
    """
    if which == "both":
        raise InputError("top_eigenvalue gives one eigenvalue, got which='both'; use top_eigenvalues")
    found = top_eigenvalues(operator, rng=rng, tol=tol, which=which, start=start, max_products=max_products)
    return EigenPair(
        float(found.values[0]), found.vectors[:, 0], float(found.residuals[0]), found.products, float(found.bounds[0])
    )


def top_eigenvalues(
    operator: Any,
    k: int = 1,
    *,
    rng: np.random.Generator,
    which: str = "largest",
    tol: float = 1e-3,
    start: Any = None,
    risk: float | None = None,
    max_products: int = 1000,
    max_basis: int | None = None,
    strict: bool = True,
) -> Eigenpairs:
    """The k eigenvalues at an end of a symmetric operator's spectrum, by Lanczos with full reorthogonalisation.

    The basis is float64 whatever the products' precision. Each step costs one product and nothing else does: the
    residual ||H v - theta v|| of a Ritz pair is known from the recurrence (Parlett, The Symmetric Eigenvalue Problem,
    ch. 13). The search stops at the first step after which every bound of `Eigenpairs.bounds` is at most tol times the
    value's magnitude; a value below tol times the largest magnitude seen is asked for to tol^2 times that, and none to
    less than 1e-12 times the largest product. Where the gap is wider than the value, as beside an eigenvalue of much
    larger magnitude at the other end, the bound alone would pass for any vector: there the residual must be within
    sqrt(tol) times the value too, or within that tol^2 (derived). It restarts with the best Ritz vectors where
    `max_basis` is reached, and goes on from a random vector where the space is invariant.

    Args:
        operator: symmetric, shape (n, n): a LinearOperator, a sparse or a dense matrix, or one with a `space`.
        k: how many, 1 to n; for "both" at each end, so up to n / 2.
        rng: draws every random vector; the same state gives the same answer.
        which: "largest" or "smallest" by value, "both", or "magnitude".
        tol: relative accuracy asked of each eigenvalue, in (0, 1).
        start: vectors of a previous probe, (n,) or (n, j), the wanted ones first: `vectors`, or better `warm`, of its
            result. The search starts from the sum of the first k, 0.3 of the next, 0.1 of the others and 0.1 of a
            random vector, so that it leaves an eigenvector that is no longer the first. Two eigenvalues that crossed
            and are closer than about sqrt(tol) relative can still be taken for each other; `risk` is the remedy.
        risk: after convergence, go on from a fresh random vector outside the space until its products exclude an
            eigenvalue beyond those found but for this risk: the measure of a random vector has at most the mass
            1 / sum_j p_j(x)^2 beyond x, p_j the orthonormal polynomials of the recurrence coefficients (Chebyshev,
            Markov, Stieltjes), and it seldom has less on an eigenvector. This finds eigenvalues that are multiple, or
            that the start hardly met. Costs 4 to 6 products on a CNN of 334 thousand parameters. Default: 1, no check,
            for k = 1 and 0.05 for k > 1. For k > 1 a space that turns out to be invariant is checked in any
            case.
        max_products: give up after this many products.
        max_basis: the most vectors to hold, 8 n bytes each, taken as needed; default 2 k + 80.
        strict: raise if the tolerance was not met; False returns what was found with `converged` False.

    Raises:
        InputError: not a square operator, k out of range, a start of another length, an argument out of range.
        RivervalError: a product is not finite; the tolerance was not met within `max_products`, or is finer than the
            rounding of the products (both only if `strict`).

    The null of an eigenvalue is the curvature of a random direction: `Eigenpairs.mean_curvature`.

    >>> top = top_eigenvalues(np.diag(np.arange(30.0)), 3, rng=np.random.default_rng(0))
    >>> top.values.round(1).tolist(), top.converged
    ([29.0, 28.0, 27.0], True)
    """
    check_number("tol", tol, low=0.0, high=1.0, open_low=True, open_high=True)
    check_int("max_products", max_products, low=1)
    check_generator(rng)
    order = pick("end of the spectrum", which, ORDERS)
    products = Products(operator)
    check_int("k", k, low=1, high=products.dim)
    total = 2 * k if which == "both" else k
    if total > products.dim:
        raise InputError(f"{k} eigenvalues at both ends are {total}, but the operator has {products.dim} only")
    rows = 2 * total + 80 if max_basis is None else check_int("max_basis", max_basis, low=total + 8)
    usual = 1.0 if k == 1 else RISK
    accepted = usual if risk is None else check_number("risk", risk, low=0.0, high=1.0, open_low=True)
    search = Search(products, which, order, total, tol, rng, max_products, rows)
    search.begin(start)
    search.run(accepted)
    if strict and not search.converged:
        raise RivervalError(search.complaint())
    return _result(search)


def _result(search: Search) -> Eigenpairs:
    """What a search found, with the Ritz vectors next in order for a later start."""
    ritz, chosen, krylov = search.ritz, search.chosen, search.krylov
    following = [i for i in search.order(ritz.values) if i not in chosen][:2]
    warm = krylov.vectors(ritz.small[:, [*chosen, *following]])
    return Eigenpairs(
        values=ritz.values[chosen],
        vectors=warm[:, : len(chosen)],
        residuals=ritz.residuals[chosen],
        bounds=search.bounds[chosen],
        products=krylov.products.count,
        converged=search.converged,
        checked=search.checked,
        warm=warm,
        mean_curvature=krylov.first if search.cold else math.nan,
    )


@dataclass(frozen=True)
class OverBatches:
    """The same eigenvalues on several disjoint batches.

    Attributes:
        values: (batches, k), each row in the order of `Eigenpairs.values`.
        mean: (k,).
        spread: (k,), standard deviation between batches (n - 1 in the denominator).
        standard_error: (k,), spread / sqrt(batches).
        low, high: (k,), the mean -+ t standard errors, t the 97.5% quantile of Student's distribution with
            batches - 1 degrees of freedom: a 95% interval of the mean over such batches if their values are normal.
            With 2 batches t is 12.7, with 3 it is 4.3, with 10 it is 2.3.
        pooled: (k,), the eigenvalues of all batches together; nan where they were not asked for.
        products: operator-vector products of all batches, those for `pooled` counted once for each batch.
    """

    values: FloatArray
    mean: FloatArray
    spread: FloatArray
    standard_error: FloatArray
    low: FloatArray
    high: FloatArray
    pooled: FloatArray
    products: int

    @property
    def bias(self) -> FloatArray:
        """mean - pooled, (k,)."""
        return self.mean - self.pooled


def over_batches(operators: Iterable[Any], k: int = 1, *, pooled: bool = True, **options: Any) -> OverBatches:
    """Extreme eigenvalues with an error bar: on one operator for each of several disjoint batches.

    The interval is of the mean over batches of that size. That is **not** the eigenvalue of all data: the largest
    eigenvalue is a convex function of the matrix, so by Jensen E lambda_max(H_batch) >= lambda_max(E H_batch), the more
    the smaller the batch; the smallest eigenvalue is biased downwards likewise. `pooled` computes the eigenvalues of
    the mean of the operators, on all batches together, so that the bias is seen beside the error bar. It is itself
    biased against still more data.

    Args:
        operators: at least two, of one shape: Hessians of the mean loss of disjoint batches of equal size.
        k: see `top_eigenvalues`.
        pooled: compute also the eigenvalues of the mean operator; a product of it is one of each batch.
        options: of `top_eigenvalues`; `rng` is needed. Each batch starts from the last one's vectors.

    Raises:
        InputError: fewer than two operators, of different shapes, or an argument of `top_eigenvalues` out of range.
        RivervalError: as `top_eigenvalues`.

    The null of an eigenvalue is the curvature of a random direction: `Eigenpairs.mean_curvature`.

    >>> matrices = [np.diag([1.0, 2.0, top]) for top in (8.0, 10.0, 12.0)]
    >>> bar = over_batches(matrices, rng=np.random.default_rng(0), tol=1e-9)
    >>> bar.mean.round(6).tolist(), bar.standard_error.round(4).tolist(), bar.pooled.round(6).tolist()
    ([10.0], [1.1547], [10.0])
    """
    operators = list(operators)
    shapes = {tuple(getattr(operator, "shape", ())) for operator in operators}
    if len(operators) < 2 or len(shapes) > 1:
        raise InputError(f"an error bar needs two operators of one shape, got {len(operators)} of {sorted(shapes)}")
    start, found = options.pop("start", None), []
    for operator in operators:
        found.append(top_eigenvalues(operator, k, start=start, **options))
        start = found[-1].warm
    values = np.stack([pairs.values for pairs in found])
    products, together = sum(pairs.products for pairs in found), np.full(values.shape[1], np.nan)
    if pooled:
        whole = top_eigenvalues(_Mean(operators), k, start=start, **options)
        products, together = products + len(operators) * whole.products, whole.values
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    error = spread / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.975)) * error
    return OverBatches(values, mean, spread, error, mean - half, mean + half, together, products)


class _Mean:
    """The mean of operators, in the space of the first."""

    def __init__(self, operators: Sequence[Any]) -> None:
        self._parts = [Products(operator) for operator in operators]
        self.shape, self.space = tuple(operators[0].shape), self._parts[0].space

    def __matmul__(self, vector: Any) -> Any:
        total = self._parts[0](vector)
        for part in self._parts[1:]:
            total = total + part(vector)
        return total * (1.0 / len(self._parts))
