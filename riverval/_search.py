"""The search for extreme eigenvalues in a Krylov space: where to go next, when to stop, what to look for again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ._lanczos import Chain, Krylov, Products, Ritz, unit
from ._typing import FloatArray, IntArray, NDArray
from .errors import InputError

RISK = 0.05  # of overlooking an eigenvalue, where the search checks unasked
_ROUNDING = 64 * np.finfo(np.float64).eps  # of an eigenvalue, relative to the largest one
_FINEST = 1e-12  # that is asked of any, relative to the largest one
# The mixture that a warm start is, by trial on a CNN 5 to 210 updates after the last probe: 3.9 products to the first
# eigenvalue, as from the wanted vector alone, against 4.4 from equal parts of the first two and 6.3 from a random
# start; and it sees that the two first eigenvalues crossed where they are 5% apart, which the vector alone does not.
_SECOND, _LATER, _FRESH = 0.3, 0.1, 0.1


# Positions among m ascending Ritz values, the most wanted first.
def _from_top(values: FloatArray) -> IntArray:
    return np.arange(len(values))[::-1]


def _from_bottom(values: FloatArray) -> IntArray:
    return np.arange(len(values))


def _from_both(values: FloatArray) -> IntArray:
    m = len(values)
    pairs = np.stack([np.arange(m)[::-1], np.arange(m)], axis=1).reshape(-1)
    return pairs[:m]


def _by_magnitude(values: FloatArray) -> IntArray:
    return np.argsort(-np.abs(values), kind="stable")


ORDERS: dict[str, Callable[[FloatArray], IntArray]] = {
    "largest": _from_top,
    "smallest": _from_bottom,
    "both": _from_both,
    "magnitude": _by_magnitude,
}


def _bounds(ritz: Ritz, scale: float) -> FloatArray:
    """Kato-Temple: of each Ritz value's error, by the gap to its neighbours where it is larger than the residual."""
    gaps = np.full(len(ritz.values), 0.0)
    if len(gaps) > 1:
        steps, residuals = np.diff(ritz.values), ritz.residuals
        below = np.concatenate([[np.inf], steps - residuals[:-1]])
        above = np.concatenate([steps - residuals[1:], [np.inf]])
        gaps = np.minimum(below, above)
    sharp = np.divide(ritz.lead**2, gaps, out=np.full(len(gaps), np.inf), where=gaps > 0) + ritz.noise
    bounds: FloatArray = np.minimum(ritz.residuals, sharp) + _ROUNDING * scale
    return bounds


class Search:
    """A search in progress: the space, what it says now, and when to stop."""

    def __init__(
        self,
        products: Products,
        which: str,
        order: Callable[[FloatArray], IntArray],
        total: int,
        tol: float,
        rng: np.random.Generator,
        max_products: int,
        rows: int,
    ) -> None:
        self.products, self.which, self.order, self.total = products, which, order, total
        self.tol, self.rng, self.max_products = tol, rng, max_products
        self.krylov = Krylov(products, rows)
        self.converged = self.checked = self.stuck = False
        self.cold = True

    def begin(self, start: Any) -> None:
        """The first direction: random, or a mixture of `start`'s columns."""
        mixed = None if start is None else _mixture(start, self.products.dim, self.total)
        self.cold = mixed is None
        fresh = self.products.random(self.rng)
        if mixed is not None:
            fresh = self.products.space.array(mixed) + _FRESH * unit(fresh)
        self.krylov.offer(fresh)

    def run(self, risk: float) -> None:
        """Steps until every wanted value has converged and, if the risk asks for it, was checked."""
        weights: FloatArray | None = None
        while True:
            if not len(self.krylov.coupling):
                self.krylov.offer(self.products.random(self.rng))
                weights = None
            self._advance(weights)
            self._look()
            if not len(self.krylov.coupling) and self.total > 1:  # invariant: one start has no more to say of copies
                risk = min(risk, RISK)
            if self.converged and risk < 1:
                self.checked = self._check(risk)
            if self.converged or self.stuck or self.products.count >= self.max_products:
                break
            weights = self._towards()
        self.checked = self.checked or self.krylov.size == self.products.dim

    def _advance(self, weights: FloatArray | None) -> None:
        krylov = self.krylov
        if krylov.held == krylov.rows < self.products.dim:
            self._shrink()
        krylov.step(weights)

    def _shrink(self) -> None:
        values = self.krylov.ritz()
        kept = self.order(values.values)[: max(self.total + 1, (self.total + self.krylov.size) // 2)]
        self.krylov.shrink(values.small[:, kept[: self.krylov.size - 2]])
        self._look()

    def _look(self) -> None:
        """What the space says now; no product."""
        krylov = self.krylov
        self.ritz = krylov.ritz()
        chosen = self.order(self.ritz.values)[: self.total]
        self.chosen = np.concatenate([chosen[::2], chosen[1::2]]) if self.which == "both" else chosen
        self.bounds = _bounds(self.ritz, krylov.scale)
        largest = float(np.max(np.abs(self.ritz.values)))
        size = np.maximum(np.abs(self.ritz.values), self.tol * largest)
        self.allowed = np.maximum(self.tol * size, _FINEST * krylov.scale)
        open_ = (self.bounds[self.chosen] > self.allowed[self.chosen]) | self._unresolved(largest)
        self.open = self.chosen[open_]
        self.converged = len(chosen) == self.total and not len(self.open)
        # More products would not help where all that is left is the products' own rounding.
        blunt = (self.ritz.noise > self.allowed) & (self.ritz.lead <= self.ritz.noise)
        full = krylov.size == self.products.dim
        self.stuck = len(chosen) == self.total and bool(len(self.open)) and (full or bool(np.all(blunt[self.open])))

    def _unresolved(self, largest: float) -> NDArray[np.bool_]:
        """Of the wanted values: whether the gap says nothing of what may lie between, and the residual too little.

        Beside an eigenvalue of much larger magnitude, any vector without a part in it has a gap as wide as that one, so
        that r^2 / gap is small whatever the vector is. Where the gap is wider than |theta|, r must be within
        sqrt(tol) |theta|, as it is where the widest gap is that to 0; a theta near 0 needs the accuracy asked of it.
        """
        values, size = self.ritz.values, np.abs(self.ritz.values[self.chosen])
        steps = np.concatenate([[np.inf], np.diff(values), [np.inf]])
        gap = np.minimum(steps[:-1], steps[1:])[self.chosen]
        enough = np.maximum(math.sqrt(self.tol) * size, self.tol**2 * largest)
        found: NDArray[np.bool_] = np.isfinite(gap) & (gap > size) & (self.ritz.lead[self.chosen] > enough)
        return found

    def _towards(self) -> FloatArray | None:
        """The residual of the first wanted value that is not found yet, as a mixture of the candidates."""
        if not len(self.open) or not len(self.krylov.coupling):
            return None
        weights: FloatArray = self.krylov.coupling @ self.ritz.small[:, self.open[0]]
        return weights if np.linalg.norm(weights) > 0 else None

    def _limits(self) -> tuple[float, float]:
        """Beyond which values an eigenvalue would have been missed."""
        worst = self.chosen[-1] if self.which != "both" else self.chosen[self.total // 2 - 1]
        limit = float(self.ritz.values[worst])
        margin = float(self.allowed[worst])
        if self.which == "largest":
            return -math.inf, limit + margin
        if self.which == "smallest":
            return limit - margin, math.inf
        if self.which == "magnitude":
            return -abs(limit) - margin, abs(limit) + margin
        lowest = self.chosen[-1]
        return float(self.ritz.values[lowest] - self.allowed[lowest]), limit + margin

    def _check(self, risk: float) -> bool:
        """Whether fresh random vectors exclude a missed eigenvalue; they may unsettle `converged`."""
        while True:
            before = self.ritz.values[self.chosen]
            if not self._excluded(risk):
                return False
            if np.all(np.abs(self.ritz.values[self.chosen] - before) <= self.allowed[self.chosen]):
                return True
            # Another one came to light, converged at once: there may be more of it.

    def _excluded(self, risk: float) -> bool:
        """Whether one random vector outside the space, followed for some products, excludes a missed eigenvalue."""
        krylov, dim = self.krylov, self.products.dim
        if krylov.rows < dim and krylov.rows - krylov.held < min(20, krylov.rows // 2):
            self._shrink()
        outside = dim - krylov.size
        fresh = self.products.random(self.rng)
        # A random vector outside V: what of it lies in the candidates, and the rest as one more.
        weights = self.rng.standard_normal(len(krylov.coupling))
        if krylov.offer(fresh):
            weights = np.append(weights, math.sqrt(outside - len(weights)))
        if not len(weights):
            return krylov.size == dim
        chain, excluded = Chain(outside), False
        while self.products.count < self.max_products:
            krylov.step(weights)
            self._look()
            if not self.converged:
                return False
            excluded = excluded or chain.add(krylov) or chain.excludes(*self._limits(), risk)
            doubtful = self._doubtful()
            if excluded and doubtful is None:
                return True
            if krylov.held == krylov.rows < dim:
                return False
            weights = krylov.coupling[:, -1] if not excluded else krylov.coupling @ self.ritz.small[:, doubtful]
        return False

    def _doubtful(self) -> int | None:
        """A Ritz value that is not wanted, but whose error may hide one that is; the largest such error."""
        low, high = self._limits()
        beyond = (self.ritz.values + self.bounds > high) | (self.ritz.values - self.bounds < low)
        beyond[self.chosen] = False
        beyond &= self.ritz.lead > self.ritz.noise
        return int(np.argmax(np.where(beyond, self.bounds, -1.0))) if beyond.any() else None

    def complaint(self) -> str:
        """Why the search ended without the tolerance met."""
        if self.stuck:
            noise = float(np.max(self.ritz.noise[self.open]))
            return (
                f"the products of the operator depart from symmetry by {noise:.2g}, so that eigenvalues cannot be told "
                f"to a tolerance of {self.tol:g}; loosen it, or make the products in a higher precision"
            )
        return (
            f"no {self.total} eigenvalue{'s' * (self.total > 1)} to a tolerance of {self.tol:g} after "
            f"{self.products.count} products; raise max_products or loosen the tolerance"
        )


def _mixture(start: Any, dim: int, wanted: int) -> FloatArray | None:
    """The sum of `start`'s columns as unit vectors, each in its share; None where none but zeros are given."""
    if hasattr(start, "detach"):  # a tensor, on whatever device
        start = start.detach().cpu().double().numpy()
    columns = np.asarray(start, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or len(columns) != dim:
        raise InputError(f"start must be vectors of shape ({dim},) or ({dim}, j), got {np.shape(start)}")
    lengths = [float(np.linalg.norm(column)) for column in columns.T]
    if not np.all(np.isfinite(lengths)):
        raise InputError("start must be finite; leave it out to search from a random vector")
    kept = [(column, length) for column, length in zip(columns.T, lengths, strict=True) if length]
    total = np.zeros(dim)
    for place, (column, length) in enumerate(kept):
        share = 1.0 if place < wanted else _SECOND if place == wanted else _LATER
        total += column * (share / length)
    return total if kept else None
