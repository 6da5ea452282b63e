"""Traces and spectral densities of symmetric operators from random vectors; no deep-learning framework needed.

Operators are those of `riverval.spectra`: matrices, scipy's LinearOperators, or anything with a `space`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._arrays import check_generator, check_values
from ._checks import check_int, check_number, pick
from ._lanczos import Krylov, Products, norm
from ._typing import ArrayLike, FloatArray


@dataclass(frozen=True)
class Estimate:
    """A number estimated from random vectors.

    Attributes:
        value: the estimate; its mean over random vectors is the number itself.
        standard_error: of `value`, from the spread of the samples; nan where there is one sample only.
        samples: the independent estimates whose mean (plus what is known exactly) `value` is, shape (probes,).
        products: operator-vector products spent.
    """

    value: float
    standard_error: float
    samples: FloatArray = field(repr=False)
    products: int


def _signs(rng: np.random.Generator, dim: int) -> FloatArray:
    return np.asarray(2 * rng.integers(0, 2, dim, dtype=np.int8) - 1, dtype=np.float64)


def _normals(rng: np.random.Generator, dim: int) -> FloatArray:
    return rng.standard_normal(dim)


_PROBES: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {"rademacher": _signs, "gaussian": _normals}


def hutchinson(
    operator: Any, *, rng: np.random.Generator, probes: int = 10, kind: str = "rademacher", power: int = 1
) -> Estimate:
    """Tr(H), or Tr(H^2), as the mean of z' H z, or ||H z||^2, over random z (Hutchinson 1990).

    One product a probe, for either power. The variance of one sample is 2 ||A||_F^2 for Gaussian z and
    2 (||A||_F^2 - sum_i A_ii^2) for Rademacher z, A = H or H^2 (Avron and Toledo 2011): Rademacher is never worse, and
    exact where A is diagonal.

    Args:
        operator: symmetric, shape (n, n).
        rng: draws the probes.
        probes: how many, at least 1; the standard error needs 2.
        kind: "rademacher" (signs) or "gaussian".
        power: 1 for Tr(H), 2 for Tr(H^2).

    Raises:
        InputError: not a square operator, or an argument out of range.
        RivervalError: a product is not finite.

    A trace needs no null beyond its standard error. It is one: Tr(H) / n is the mean curvature of a random direction,
    and Tr(H^2) / n the mean of ||H v||^2 over random unit vectors v.

    >>> hutchinson(np.diag([1.0, 2.0, 3.0]), rng=np.random.default_rng(0), power=2).value
    14.0
    """
    check_int("probes", probes, low=1)
    check_int("power", power, low=1, high=2)
    draw = pick("kind of probe", kind, _PROBES)
    check_generator(rng)
    products = Products(operator)
    samples = np.array([_sample(products, products.space.array(draw(rng, products.dim)), power) for _ in range(probes)])
    return Estimate(float(samples.mean()), _standard_error(samples), samples, products.count)


def _sample(products: Products, vector: Any, power: int) -> float:
    product = products(vector)
    return float(vector @ product) if power == 1 else float(product @ product)


def hutchpp(operator: Any, *, rng: np.random.Generator, products: int = 30) -> Estimate:
    """Tr(H) by Hutch++: exactly on a sketched dominant subspace, by Hutchinson on the rest (arXiv 2010.09649).

    Q is an orthonormal basis of H S, S of products / 3 Gaussian vectors; then
    Tr(H) = Tr(Q' H Q) + Tr((I - QQ') H (I - QQ')), the first exactly by products with Q, the second by Hutchinson with
    the rest of the products. Far better than `hutchinson` where few eigenvalues carry the trace, and exact to rounding
    where H has at most products / 3 eigenvalues other than zero; else it may gain nothing. The standard error is that
    of the second part, given the sketch.

    Args:
        operator: symmetric, shape (n, n).
        rng: draws the vectors.
        products: how many to spend, at least 3; fewer are spent where the sketch spans the whole space.

    Raises:
        InputError: not a square operator, or an argument out of range.
        RivervalError: a product is not finite.

    Of the null: see `hutchinson`.

    >>> round(hutchpp(np.ones((50, 50)), rng=np.random.default_rng(0), products=9).value, 6)
    50.0
    """
    check_int("products", products, low=3)
    check_generator(rng)
    applied = Products(operator)
    space, dim = applied.space, applied.dim
    basis = _Basis(applied, min(products // 3, dim))
    for _ in range(len(basis.rows)):
        basis.add(applied(applied.random(rng)))
    known = sum(float(row @ applied(row)) for row in basis.rows[: basis.size])
    samples = []
    for _ in range(max(products - applied.count, 1) if basis.size < dim else 0):
        vector = basis.rest(space.array(_signs(rng, dim)))
        samples.append(float(vector @ applied(vector)))
    values = known + np.array(samples or [0.0])
    error = _standard_error(values) if basis.size < dim else 0.0
    return Estimate(float(values.mean()), error, values, applied.count)


class _Basis:
    """Orthonormal rows that span what was added."""

    def __init__(self, products: Products, rows: int) -> None:
        self.rows, self.size = products.space.empty(rows, products.dim), 0

    def rest(self, vector: Any) -> Any:
        """`vector` less its part in the span."""
        held = self.rows[: self.size]
        vector = vector - (held @ vector) @ held
        return vector - (held @ vector) @ held

    def add(self, vector: Any) -> None:
        """Take in what of `vector` is new."""
        before, rest = norm(vector), self.rest(vector)
        if norm(rest) > 1e-10 * before:
            rest = self.rest(rest * (1.0 / norm(rest)))
            self.rows[self.size] = rest * (1.0 / norm(rest))
            self.size += 1


@dataclass(frozen=True)
class SpectralDensity:
    """The spectrum of an operator, each eigenvalue with the weight 1 / n, as `probes` quadratures.

    Attributes:
        nodes: (probes, steps), Ritz values, ascending in each row; nan after them where a probe's space closed early.
        weights: (probes, steps), the weight of each node; they sum to 1 in each row.
        dim: n.
        products: operator-vector products spent.
    """

    nodes: FloatArray
    weights: FloatArray
    dim: int
    products: int

    def average(self, function: Callable[[FloatArray], FloatArray]) -> tuple[float, float]:
        """Mean of `function` over the eigenvalues, Tr f(H) / n, and its standard error over probes.

        Of an array of eigenvalues it gives one of the same shape; where that is nan (the logarithm of a negative one),
        so is the mean.
        """
        values, known = np.zeros(self.nodes.shape), np.isfinite(self.nodes)
        values[known] = function(self.nodes[known])
        each = np.sum(self.weights * values, axis=1)
        return float(each.mean()), _standard_error(each)

    def moment(self, order: int) -> tuple[float, float]:
        """Tr(H^order) / n and its standard error over probes; the quadrature is exact up to order 2 steps - 1."""
        check_int("order", order, low=0)
        return self.average(lambda x: x**order)

    def density(self, grid: ArrayLike, width: float) -> tuple[FloatArray, FloatArray]:
        """Density on `grid`, smoothed by a Gaussian of standard deviation `width`; its standard error over probes.

        Args:
            grid: where, in the units of the eigenvalues, shape (points,).
            width: > 0. Features narrower than about the spectrum's width / steps are the quadrature's own.

        Returns:
            two arrays (points,), per unit of eigenvalue: over the whole line the density integrates to 1.
        """
        check_number("width", width, low=0.0, open_low=True)
        at = np.atleast_1d(check_values("grid", grid))
        shape = np.exp(-0.5 * ((at[:, None, None] - self.nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return _over_probes(np.nansum(self.weights * shape, axis=2))

    def mass(self, grid: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Share of the eigenvalues at or below each point of `grid`, and its standard error over probes."""
        at = np.atleast_1d(check_values("grid", grid))
        return _over_probes(np.sum(self.weights * (self.nodes <= at[:, None, None]), axis=2))


def spectral_density(operator: Any, *, rng: np.random.Generator, probes: int = 10, steps: int = 30) -> SpectralDensity:
    """The eigenvalue density by stochastic Lanczos quadrature (Golub and Meurant; Lin, Saad and Yang 2016).

    From each random unit vector v, `steps` of Lanczos with full reorthogonalisation: the Ritz values theta_j with the
    weights (s_j1)^2, s_j the unit eigenvectors of the projection, are the Gauss quadrature of the measure
    sum_i (v'u_i)^2 delta(lambda - lambda_i), whose mean over v is the density. Costs probes * steps products, fewer
    where the space closes.

    Args:
        operator: symmetric, shape (n, n).
        rng: draws the vectors.
        probes: how many vectors; the standard errors need 2.
        steps: of Lanczos, each.

    Raises:
        InputError: not a square operator, or an argument out of range.
        RivervalError: a product is not finite.

    No null is claimed: the spectrum of a random matrix (semicircle, Marchenko-Pastur) supposes independent entries,
    which no Hessian has. `riverval.landscape_data.density_dataset` puts the semicircle of the same trace and norm
    beside the density as a reference, for its width. The density's own noise is its standard error over probes.

    >>> found = spectral_density(np.diag([1.0, 1.0, 5.0, 5.0]), rng=np.random.default_rng(0), steps=10)
    >>> found.products, round(found.moment(0)[0], 6)
    (20, 1.0)
    """
    check_int("probes", probes, low=1)
    check_int("steps", steps, low=1)
    check_generator(rng)
    products = Products(operator)
    nodes = np.full((probes, min(steps, products.dim)), np.nan)
    weights = np.zeros(nodes.shape)
    krylov = Krylov(products, nodes.shape[1] + 1)
    for row in range(probes):
        krylov.clear()
        krylov.offer(products.random(rng))
        while krylov.size < nodes.shape[1] and len(krylov.coupling):
            krylov.step()
        ritz = krylov.ritz()
        nodes[row, : krylov.size], weights[row, : krylov.size] = ritz.values, ritz.small[0] ** 2
    return SpectralDensity(nodes, weights, products.dim, products.count)


def _over_probes(each: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard error over the last axis."""
    count = each.shape[-1]
    error: FloatArray = each.std(axis=-1, ddof=1) / math.sqrt(count) if count > 1 else np.full(each.shape[:-1], np.nan)
    return each.mean(axis=-1), error


def _standard_error(samples: FloatArray) -> float:
    return float(_over_probes(samples)[1])
