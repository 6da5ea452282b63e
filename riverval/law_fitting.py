r"""Fitting a law to curves: separable least squares on logarithms, with errors that know of correlated residuals.

The residual of a point is r = log L - log loss, its cost Huber's, quadratic up to `HUBER` and linear beyond. For given
nonlinear parameters the coefficients solve a small non-negative least-squares problem (the weights of Huber's cost by
iteration), so only the nonlinear ones are searched for, from several starts; the best two are refined and polished in
all parameters at once, and the better end is taken.

Where a law says what is known of a parameter before any curve (`Theta.prior`, `Law.known`: a value m and a spread d),
the cost also has (`HUBER`^2 `PRIOR_WEIGHT` / 2) ((z - m) / d)^2: the points count as if `PRIOR_WEIGHT` neighbours were
worth one independent measurement with an error of `HUBER`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import least_squares, nnls

from ._checks import pick
from ._format import counted
from ._typing import FloatArray, IntArray
from .curves import FEWEST, Curve
from .errors import InputError
from .law_base import Law, Track

HUBER = 1e-3
"""Residuals beyond it count linearly; in units of log loss, so a tenth of a percent."""

PRIOR_WEIGHT = 8.0
"""Points that share one independent error, when they are weighed against what is known before."""

WEIGHTING = {
    "points": "every point counts the same, so that a densely logged curve counts more",
    "curves": "every curve counts the same: its points share the weight",
}

_POLISHING = 120  # steps at most
_RANDOM = 8  # starts beside those that a law asks for
_REFINED = 2  # starts that are followed to their minimum
UNFELT = 1e-9  # a slope of log L by a search coordinate below it: no point depends on the parameter
_DISTINCT = 0.05  # minima this far apart in a search coordinate are different ones
_WITHIN = 0.01  # costs that differ by less than this share are equal within noise
_DIFFERENCE = 1e-5  # of search coordinates, for slopes
_TOUCHED = 1e-6  # a share of the loss; a coefficient that adds less lies on its bound 0


def without_start(curves: Sequence[Curve], skip: float) -> tuple[list[Curve], list[str]]:
    """The curves without their points before `skip` of the largest cumulative rate; notes on those that lie before.

    Raises:
        InputError: no curve has points enough after it.
    """
    times = [np.cumsum(c.lr)[c.steps - 1] for c in curves]
    first = skip * max((S[-1] for S in times), default=0.0)
    kept, notes = [], []
    for curve, S in zip(curves, times, strict=True):
        late = first <= S
        if late.sum() >= FEWEST:
            kept.append(replace(curve, steps=curve.steps[late], loss=curve.loss[late]))
        else:
            why = f"{counted(int(late.sum()), 'point')} left" if late.any() else "it ends"
            told = "after" if late.any() else "within"
            notes.append(f"curve {curve.name!r} was left out: {why} {told} the first {skip:.0%} of cumulative rate")
    if notes and not kept:
        raise InputError(f"{'; '.join(notes[:3])}; use a smaller skip, or longer logs")
    return kept, notes


@dataclass(frozen=True, eq=False)
class Problem:
    """A law, the points of some curves, and what is held fixed.

    Attributes:
        law: the law.
        prepared: what the law computed for each curve's schedule.
        loss: measured losses of all curves, one after the other, shape (N,).
        owner: which curve each point belongs to, shape (N,).
        weight: weight of each point, of mean 1, shape (N,).
        fixed: parameters that are not fitted.
    """

    law: Law
    prepared: Sequence[Any]
    loss: FloatArray
    owner: IntArray
    weight: FloatArray
    fixed: Mapping[str, float]

    @classmethod
    def of(cls, law: Law, curves: Sequence[Curve], *, fixed: Mapping[str, float], weighting: str) -> Problem:
        """Collect the points of the curves.

        Raises:
            InputError: no curves, two of one name, a loss that is not positive, parameters that cannot be fixed so, or
                fewer points than free parameters and two more.
        """
        if not curves:
            raise InputError("a law is fitted to at least one curve, got none")
        names = [c.name for c in curves]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"two curves have the name {twice!r}; a fit needs one name for each")
        pick("weighting", weighting, WEIGHTING)
        law.check_values(fixed)
        free = len(law.parameters()) - len(fixed)
        counts = np.array([len(c.loss) for c in curves])
        if not free:
            raise InputError(f"all parameters of the law {law.name!r} are fixed; leave one out, or use known_law")
        if counts.sum() < free + 2:
            raise InputError(
                f"the law {law.name!r} has {free} free parameters and needs at least {free + 2} points, got "
                f"{counts.sum()}; give longer or more curves, or fix parameters"
            )
        for curve in curves:
            if not np.all(curve.loss > 0):
                raise InputError(f"curve {curve.name!r} has the loss {np.min(curve.loss):g}; laws need losses above 0")
        each = 1.0 / counts if weighting == "curves" else np.ones(counts.size)
        weight = np.repeat(each, counts)
        return cls(
            law,
            [law.prepare(Track.of(c.lr, c.steps)) for c in curves],
            np.concatenate([c.loss for c in curves]),
            np.repeat(np.arange(counts.size), counts),
            weight / weight.mean(),
            dict(fixed),
        )

    def part(self, mask: FloatArray) -> Problem:
        """The same problem with the weights times `mask`: a fit leaves out the points where it is 0."""
        return Problem(self.law, self.prepared, self.loss, self.owner, self.weight * mask, self.fixed)

    @cached_property
    def searched(self) -> list[int]:
        """Indices of the nonlinear parameters that are free."""
        return [i for i, t in enumerate(self.law.thetas) if t.name not in self.fixed]

    @cached_property
    def solved(self) -> list[int]:
        """Indices of the coefficients that are free."""
        return [j for j, name in enumerate(self.law.coefficients) if name not in self.fixed]

    def theta(self, z: Sequence[float] | FloatArray) -> list[float]:
        """All nonlinear parameters from the search coordinates of the free ones."""
        values = {i: self.law.thetas[i].value(float(x)) for i, x in zip(self.searched, z, strict=True)}
        return [values[i] if i in values else self.fixed[t.name] for i, t in enumerate(self.law.thetas)]

    def columns(self, z: Sequence[float] | FloatArray) -> tuple[FloatArray, FloatArray]:
        """Columns of the free coefficients, and the loss that the fixed ones make; both divided by the loss."""
        theta = self.theta(z)
        X = np.concatenate([self.law.columns(p, theta) for p in self.prepared]) / self.loss[:, None]
        held = [j for j in range(X.shape[1]) if j not in self.solved]
        given = X[:, held] @ np.array([self.fixed[self.law.coefficients[j]] for j in held])
        return X[:, self.solved], given

    @cached_property
    def prior(self) -> tuple[FloatArray, FloatArray]:
        """Rows P and values q of what is known of (free coefficients, search coordinates): residuals P x - q."""
        free = len(self.solved) + len(self.searched)
        told = [(j, *self.law.known[self.law.coefficients[i]]) for j, i in enumerate(self.solved) if self._known(i)]
        for k, i in enumerate(self.searched):
            theta = self.law.thetas[i]
            if theta.prior is not None:
                told.append((len(self.solved) + k, theta.search(theta.prior[0]), theta.prior[1]))
        P, q = np.zeros((len(told), free)), np.zeros(len(told))
        for row, (place, mean, spread) in enumerate(told):
            P[row, place] = HUBER * math.sqrt(PRIOR_WEIGHT) / spread
            q[row] = P[row, place] * mean
        return P, q

    def _known(self, i: int) -> bool:
        return self.law.coefficients[i] in self.law.known

    def cost(self, residual: FloatArray, c: FloatArray, z: FloatArray) -> float:
        """Huber's cost of the points, and that of moving from what is known."""
        P, q = self.prior
        return huber_cost(residual, self.weight) + 0.5 * float(np.sum((P @ np.concatenate([c, z]) - q) ** 2))

    def solve(self, X: FloatArray, given: FloatArray, weight: FloatArray, z: FloatArray) -> FloatArray:
        """Coefficients >= 0 of the weighted least squares at fixed z."""
        P, q = self.prior
        split = len(self.solved)
        root = np.sqrt(weight)
        return _non_negative(
            np.concatenate([X * root[:, None], P[:, :split]]),
            np.concatenate([(1.0 - given) * root, q - P[:, split:] @ z]),
        )


@dataclass(frozen=True, eq=False)
class Solution:
    """A minimum: search coordinates z, free coefficients c, residuals r of all points, the cost, and how it ended."""

    z: FloatArray
    c: FloatArray
    residual: FloatArray
    cost: float
    converged: bool = True


def fit(problem: Problem, *, seed: int = 0) -> tuple[Solution, list[str]]:
    """The best parameters, and notes on the search."""
    starts = _starts(problem, seed)
    tried = sorted((_inner(problem, z)[1], k) for k, z in enumerate(starts))
    ends = [polish(problem, refine(problem, starts[k])) for _, k in tried[:_REFINED]]
    ends.sort(key=lambda end: end.cost)
    best = ends[0]
    notes = [] if best.converged else ["the fit did not converge; its parameters are where it stopped"]
    J, on = jacobian(problem, best)
    felt = np.abs(J[:, len(on) :]).max(axis=0) >= UNFELT
    for other in ends[1:]:
        if other.cost < (1.0 + _WITHIN) * best.cost and np.any(np.abs(other.z - best.z)[felt] > _DISTINCT):
            there = _named(problem, other.z)
            notes.append(f"another minimum is as good within the noise, at {there}")
    return best, notes


def _named(problem: Problem, z: FloatArray) -> str:
    theta = problem.theta(z)
    return ", ".join(f"{problem.law.thetas[i].name} = {theta[i]:.4g}" for i in problem.searched)


def _starts(problem: Problem, seed: int) -> list[FloatArray]:
    """Every combination of the law's own starts, and random points between the extreme ones."""
    thetas = [problem.law.thetas[i] for i in problem.searched]
    grid = [np.array(z) for z in itertools.product(*([t.search(s) for s in t.starts] for t in thetas))]
    if not thetas:
        return grid
    rng = np.random.default_rng(seed)
    return grid + list(rng.uniform(np.min(grid, axis=0), np.max(grid, axis=0), (_RANDOM, len(thetas))))


def huber_cost(residual: FloatArray, weight: FloatArray) -> float:
    """sum_i weight_i rho(r_i), rho(r) = r^2 / 2 up to `HUBER` and HUBER (abs r - HUBER / 2) beyond."""
    size = np.abs(residual)
    return float(weight @ np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)))


def huber_weight(residual: FloatArray) -> FloatArray:
    """rho'(r) / r: 1 up to `HUBER`, HUBER / abs r beyond."""
    return HUBER / np.maximum(np.abs(residual), HUBER)


def _logs(relative: FloatArray) -> FloatArray:
    """log(L / loss) from L / loss; a prediction below a thousandth of the loss counts as that."""
    logs: FloatArray = np.log(np.maximum(relative, 1e-3))
    return logs


def _inner(problem: Problem, z: FloatArray, rounds: int = 3) -> tuple[FloatArray, float]:
    """Coefficients >= 0 at given nonlinear parameters, by reweighted least squares, and their cost."""
    X, given = problem.columns(z)
    robust = np.ones(problem.loss.size)
    c = np.zeros(X.shape[1])
    for _ in range(rounds):
        c = problem.solve(X, given, problem.weight * robust, z)
        robust = huber_weight(_logs(X @ c + given))
    return c, problem.cost(_logs(X @ c + given), c, z)


def _non_negative(X: FloatArray, y: FloatArray) -> FloatArray:
    """argmin_{c >= 0} |X c - y|^2."""
    if not X.shape[1]:
        return np.zeros(0)
    scale = np.linalg.norm(X, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    # The triangular factor has the same solution and as many rows as coefficients.
    Q, R = np.linalg.qr(X / scale)
    return np.asarray(nnls(R, Q.T @ y)[0] / scale)


def refine(problem: Problem, z: FloatArray) -> Solution:
    """Follow a start to its minimum in the nonlinear parameters, the coefficients solved for at each point.

    Huber's weights stay those of the start; `polish` ends at the minimum of the cost itself.
    """
    if z.size:
        bounds = np.array([problem.law.thetas[i].bounds() for i in problem.searched]).T
        c, _ = _inner(problem, z)
        X, given = problem.columns(z)
        weight = problem.weight * huber_weight(_logs(X @ c + given))

        def projected(z: FloatArray) -> FloatArray:
            X, given = problem.columns(z)
            c = problem.solve(X, given, weight, z)
            P, q = problem.prior
            return np.append(np.sqrt(weight) * (X @ c + given - 1.0), P @ np.concatenate([c, z]) - q)

        inside = np.clip(z, bounds[0] + 1e-9, bounds[1] - 1e-9)
        z = least_squares(projected, inside, bounds=bounds, xtol=1e-4, ftol=1e-4, max_nfev=20).x
    c, cost = _inner(problem, z, rounds=10)
    X, given = problem.columns(z)
    return Solution(z, c, _logs(X @ c + given), cost)


def polish(problem: Problem, start: Solution) -> Solution:
    """All free parameters at once on Huber's cost itself; coefficients that ended at 0 stay there.

    Reweighted Gauss-Newton steps with the damping of Levenberg and Marquardt, within the ranges of the parameters.
    """
    bounds = np.array([problem.law.thetas[i].bounds() for i in problem.searched]).reshape(-1, 2)
    P, q = problem.prior
    here, damping = start, 1e-3
    for _ in range(_POLISHING):
        J, on = jacobian(problem, here)
        J = np.concatenate([J, P[:, [*on, *range(here.c.size, P.shape[1])]]])
        weight = np.append(problem.weight * huber_weight(here.residual), np.ones(q.size))
        residual = np.append(here.residual, P @ np.concatenate([here.c, here.z]) - q)
        scale = np.sqrt(weight @ J**2)
        J = J / np.where(scale > 0, scale, 1.0)
        slope = J.T @ (weight * residual)
        J[:, _blocked(here, slope, len(on), bounds)] = 0.0  # else the other parameters would count on their moves
        curvature, slope = J.T @ (J * weight[:, None]), J.T @ (weight * residual)
        gain = 0.0
        while damping < 1e6:
            step = -np.linalg.solve(curvature + damping * np.eye(slope.size), slope) / np.where(scale > 0, scale, 1.0)
            there = _moved(problem, here, step, on, bounds)
            gain = here.cost - there.cost
            if gain >= 0:
                damping = max(damping / 10.0, 1e-9)
                break
            damping *= 10.0
        if gain < 0:  # no smaller step helps either: rounding is reached
            return here
        here = there
        if gain <= 1e-5 * here.cost:
            return here
    return Solution(here.z, here.c, here.residual, here.cost, converged=False)


def _blocked(here: Solution, slope: FloatArray, before: int, bounds: FloatArray) -> IntArray:
    """The columns, after `before` coefficients, of the parameters at an end of their range that would go beyond it."""
    down = slope[before:] > 0
    blocked = np.where(down, here.z <= bounds[:, 0], here.z >= bounds[:, 1])
    return before + np.flatnonzero(blocked)


def _moved(problem: Problem, here: Solution, step: FloatArray, on: list[int], bounds: FloatArray) -> Solution:
    c = here.c.copy()
    c[on] = np.maximum(c[on] + step[: len(on)], 0.0)
    z = np.clip(here.z + step[len(on) :], bounds[:, 0], bounds[:, 1])
    X, given = problem.columns(z)
    residual = _logs(X @ c + given)
    return Solution(z, c, residual, problem.cost(residual, c, z))


def jacobian(problem: Problem, at: Solution) -> tuple[FloatArray, list[int]]:
    """d residual / d (coefficients above 0, then search coordinates), shape (N, q), and which ones are above 0."""
    X, given = problem.columns(at.z)
    relative = X @ at.c + given
    on = [j for j in range(at.c.size) if at.c[j] * np.abs(X[:, j]).max(initial=0.0) > _TOUCHED]
    slopes = [X[:, on] / relative[:, None]]
    for k in range(at.z.size):
        z = at.z.copy()
        z[k] += _DIFFERENCE
        X_k, given_k = problem.columns(z)
        slopes.append(((X_k @ at.c + given_k - relative) / (_DIFFERENCE * relative))[:, None])
    return np.concatenate(slopes, axis=1), on
