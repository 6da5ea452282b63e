"""Nulls of directions and gradients: what a cosine, a curvature or a slope reads where there is no relation.

All of them can be had from `riverval.nulls`, with the nulls of paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lgamma
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.stats import beta

from ._arrays import check_rates, check_values
from ._blocks import as_list, as_numpy, size_of
from ._checks import check_int, check_number
from ._typing import ArrayLike, FloatArray
from .errors import InputError


class Spread(NamedTuple):
    """Mean and standard deviation of a measure under its null; a value z deviations off is (value - mean) / sd."""

    mean: float
    sd: float


class Simulated(NamedTuple):
    """A null by simulation: its mean, the standard error of that mean, and the deviation of one draw."""

    value: FloatArray
    error: FloatArray
    sd: FloatArray


def _summary(draws: Sequence[ArrayLike]) -> Simulated:
    """Mean, its standard error and the deviation of independent draws of one shape, two or more."""
    sample = np.asarray(draws, dtype=np.float64)
    sd = np.asarray(sample.std(axis=0, ddof=1))
    return Simulated(np.asarray(sample.mean(axis=0)), sd / np.sqrt(len(sample)), sd)


def _half_wishart(n: int, dim: int, rng: np.random.Generator) -> FloatArray:
    """B with B B' distributed as G G', G normal of shape (n, dim)."""
    if dim < n:
        return rng.standard_normal((n, dim))
    half = np.tril(rng.standard_normal((n, n)), -1)
    half[np.diag_indices(n)] = np.sqrt(rng.chisquare(dim - np.arange(n)))
    return half


# --- directions ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RandomSubspace:
    """abs(cos) between a direction and a random k-dimensional subspace of `dim` dimensions: cos^2 ~ Beta(k/2, (d-k)/2).

    k = 1 is the null of a cosine of two directions, and exactly that of PC1s of two separate windows of an isotropic
    random walk, whose increments are independent. Of a chance alignment with a top-k eigenspace, cos^2 is k/d on
    average. Of two subspaces, see `random_cosines`. Unequal variances: put `effective_dimension` for dim. Source:
    Frankl & Maehara 1990 (the Beta law).

    >>> round(RandomSubspace(20_000).mean_abs, 4), RandomSubspace(1000, 5).mean_square
    (0.0056, 0.005)
    """

    dim: float
    k: int = 1

    def __post_init__(self) -> None:
        check_int("k", self.k, low=1, what="dimensions of the subspace")
        check_number("dim", self.dim, low=self.k, open_low=True, what="dimensions, more than k")

    @property
    def mean_square(self) -> float:
        """E cos^2 = k / d."""
        return self.k / self.dim

    @property
    def mean_abs(self) -> float:
        """E abs(cos) = Gamma((k+1)/2) Gamma(d/2) / (Gamma(k/2) Gamma((d+1)/2)), about sqrt(2 / (pi d)) for k = 1."""
        k, d = self.k, self.dim
        return float(np.exp(lgamma((k + 1) / 2) - lgamma(k / 2) + lgamma(d / 2) - lgamma((d + 1) / 2)))

    def quantile(self, p: float) -> float:
        """The abs(cos) below which a share p of random directions lies."""
        check_number("p", p, low=0.0, high=1.0, what="share of random directions")
        return float(np.sqrt(beta.ppf(p, self.k / 2, (self.dim - self.k) / 2)))


def random_cosines(dim: int, k: int, *, rng: np.random.Generator, draws: int = 200) -> Simulated:
    """The null of `subspace_cosines` for k > 1: cosines of the principal angles of two random k-dimensional subspaces.

    The largest of them is well above that of one direction and a subspace, `RandomSubspace`: about 2 sqrt(k / dim) for
    1 << k << dim. The mean of their squares is k / dim. Their squares are the eigenvalues of (W + V)^-1 W, W and V
    independent Wishart matrices of k and dim - k degrees of freedom, drawn at a cost that does not depend on dim.
    Source: Muirhead 1982, section 11.3 (canonical correlations of independent variables).

    Args:
        dim: dimensions, > k; an effective one, rounded.
        k: dimensions of each subspace.
        rng: source of the draws.
        draws: number of pairs, >= 2.

    Returns:
        k cosines, largest first: their means, standard errors and deviations.

    Raises:
        InputError: numbers out of range.

    >>> random_cosines(300, 4, rng=np.random.default_rng(0)).value.round(2).tolist()
    [0.18, 0.12, 0.07, 0.02]
    """
    k = check_int("k", k, low=1, what="dimensions of each subspace")
    d, draws = check_int("dim", dim, low=k + 1, what="dimensions, more than k"), check_int("draws", draws, low=2)
    found = []
    for _ in range(draws):
        one, other = rng.standard_normal((k, k)), _half_wishart(k, d - k, rng)
        inner = one @ one.T
        squares = eigh(inner, inner + other @ other.T, eigvals_only=True)
        found.append(np.sqrt(np.clip(squares[::-1], 0.0, 1.0)))
    return _summary(found)


def effective_dimension(variances: ArrayLike) -> float:
    """(sum w)^2 / sum w^2: the dimensions of isotropic noise in which two directions are as nearly orthogonal.

    For independent Gaussian a, b of covariance diag(w), E <a, b>^2 / (E ||a||^2 E ||b||^2) = sum w^2 / (sum w)^2. Also
    (Tr S)^2 / Tr S^2 of any covariance S from its eigenvalues. Source: derived; the participation ratio.

    >>> effective_dimension([1.0, 1.0, 1.0, 0.0])
    3.0
    """
    w = check_values("variances", variances, low=0.0).ravel()
    if not w.any():
        raise InputError("variances must not all be 0")
    w = w / w.max()
    return float(w.sum() ** 2 / np.sum(w**2))


@dataclass(frozen=True)
class RandomDirectionCurvature:
    """Curvature along a random unit vector v: the null of v'Hv and of ||Hv||^2.

    E v'Hv = Tr(H)/d, Var v'Hv = 2 (Tr(H^2)/d - (Tr(H)/d)^2) / (d + 2), E ||Hv||^2 = Tr(H^2)/d. Source: derived (moments
    of a uniform direction); traces by Hutchinson's estimator.

    Attributes:
        trace: Tr H.
        trace_of_square: Tr H^2 = ||H||_F^2.
        dim: d.
    """

    trace: float
    trace_of_square: float
    dim: int

    def __post_init__(self) -> None:
        check_int("dim", self.dim, low=1)
        check_number("trace", self.trace)
        least = self.trace**2 / self.dim * (1 - 1e-9)  # Cauchy-Schwarz
        check_number("trace_of_square", self.trace_of_square, low=least, what="at least trace^2 / dim")

    @property
    def along(self) -> Spread:
        """v'Hv."""
        mean = self.trace / self.dim
        return Spread(mean, max(2 * (self.trace_of_square / self.dim - mean**2) / (self.dim + 2), 0.0) ** 0.5)

    @property
    def norm_square(self) -> float:
        """E ||Hv||^2."""
        return self.trace_of_square / self.dim


# --- gradients -------------------------------------------------------------------------------------------------------
def _pairs(update: Any, gradient: Any) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Tensor by tensor, both as flat float64 arrays of one size: two tensors at a time are copied, not two models."""
    lists = [as_list(given) for given in (update, gradient)]
    sizes = [[size_of(part) for part in row] for row in lists]
    if sizes[0] != sizes[1] or not sum(sizes[0]):
        raise InputError(f"update and gradient must have the same sizes, not all 0, got {sizes[0]} and {sizes[1]}")
    for u, g in zip(*lists, strict=True):
        yield as_numpy(u).astype(np.float64).ravel(), as_numpy(g).astype(np.float64).ravel()


def _scale(squares: FloatArray) -> float:
    """||u|| ||g|| from their squares."""
    product = float(np.prod(np.sqrt(squares)))
    if not (np.isfinite(product) and product > 0):
        raise InputError("update and gradient must be finite and not 0")
    return product


def shuffled_cosine(update: Any, gradient: Any) -> Spread:
    """The null of cos(update, gradient): the gradient's coordinates in random order, within each tensor.

    mean = sum_p S_u S_g / d_p / (||u|| ||g||) and variance = sum_p Q_u Q_g / (d_p - 1) / (||u|| ||g||)^2, with S the
    sum over tensor p of d_p coordinates and Q its sum of squares about the mean. It keeps the tensors' means and sizes,
    which a random direction does not. Source: the permutation distribution of a correlation (Pitman 1937).

    Args:
        update, gradient: one array each (shuffled as a whole), or lists of arrays or torch tensors, one for each
            parameter. For cos(update, -gradient) turn the sign of the mean.

    Raises:
        InputError: different sizes, not finite, or 0.

    >>> shuffled_cosine([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]).mean
    0.25
    """
    squares, mean, variance = np.zeros(2), 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # told by _scale
        for u, g in _pairs(update, gradient):
            squares += u @ u, g @ g
            mean += float(u.sum() * g.sum()) / max(u.size, 1)
            if u.size > 1:
                variance += float(np.var(u) * np.var(g)) * u.size**2 / (u.size - 1)
    scale = _scale(squares)
    return Spread(mean / scale, variance**0.5 / scale)


def simulate_shuffled(update: Any, gradient: Any, *, rng: np.random.Generator, draws: int = 200) -> Simulated:
    """`shuffled_cosine` by shuffling: its witness, and its quantiles where they are wanted.

    Args:
        update, gradient: as in `shuffled_cosine`.
        rng: source of the orders.
        draws: number of shuffles, >= 2.

    Raises:
        InputError: as in `shuffled_cosine`.
    """
    pairs, draws = list(_pairs(update, gradient)), check_int("draws", draws, low=2)
    scale = _scale(np.array([sum(part @ part for part in row) for row in zip(*pairs, strict=True)]))
    return _summary([sum(float(u @ rng.permutation(g)) for u, g in pairs) / scale for _ in range(draws)])


def same_batch_slopes(lr: ArrayLike, power: float = 1.0, *, momentum: float = 0.0) -> FloatArray:
    """The null of the numerator of tau with the training batch's own gradient: positive on pure noise.

    Without any loss, x_{t+1} = x_t - lr[t] v_t, v_t = momentum v_{t-1} + xi_t, the gradient that made update t points
    back along it: E <xi_t, x_t - x_T> = power sum_{s >= t} lr[s] momentum^(s-t) > 0, power = E ||xi||^2. So tau > 0 at
    every point says nothing unless the gradient is of the full data or of an independent batch (null 0).
    Source: derived.

    Args:
        lr: rate of each update, shape (T,); the reference is the last iterate x_T.
        power: E ||xi||^2, the trace of the gradient noise's covariance.
        momentum: of the heavy ball, in [0, 1).

    Returns:
        shape (T,), for the states 0..T-1.

    >>> same_batch_slopes([0.1, 0.1], 2.0, momentum=0.5).round(6).tolist()
    [0.3, 0.2]
    """
    rates, b = check_rates(lr), check_number("momentum", momentum, low=0.0, high=1 - 1e-9)
    scale = check_number("power", power, low=0.0, what="mean square of the gradient noise")
    slopes, reach = np.empty(len(rates)), 0.0
    for t in range(len(rates) - 1, -1, -1):
        reach = rates[t] + b * reach
        slopes[t] = reach
    return scale * slopes


def random_slope(distance: float, gradient_norm: float, dim: float) -> Spread:
    """The null of the numerator of tau: <g, x - r> for a reference r at the same distance in a random direction.

    Mean 0, standard deviation distance ||g|| / sqrt(d). Source: derived (`RandomSubspace`).

    Args:
        distance: ||x - x*||.
        gradient_norm: ||g||.
        dim: d, or the effective dimension.
    """
    size = check_number("distance", distance, low=0.0) * check_number("gradient_norm", gradient_norm, low=0.0)
    return Spread(0.0, size / check_number("dim", dim, low=1.0) ** 0.5)
