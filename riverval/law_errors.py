r"""What a fit does not know: errors of its parameters, and what refits miss on points that were left out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ._typing import FloatArray, IntArray, NDArray
from .law_fitting import HUBER, PRIOR_WEIGHT, UNFELT, Problem, Solution, huber_weight, jacobian, refine

INTERVALS = {
    "folds": "from refits that leave out one curve each, or with fewer than three curves the last third of each",
    "residuals": "from the residuals of the fit alone, which is too narrow for schedules unlike the fitted ones",
}

FOLDED_CURVES = 3
"""With this many curves or more, refits leave out one curve each; with fewer, the last third of each."""

_UNMOVED = 0.7  # of the spread before: an error larger than this has learnt less from the curves than was known
_AT_BOUND = 1e-3  # a share of the range in search coordinates
_SINGULAR = 1e-12  # of the largest curvature: less is rounding


def errors_of(problem: Problem, best: Solution) -> tuple[dict[str, float], FloatArray, list[str]]:
    """Standard errors by name, the covariance of all parameters, and notes on those without an error.

    A coefficient at 0, a nonlinear parameter at the end of its range, one that no residual depends on, and one that was
    given have the error nan and zeros in the covariance; the errors of the others are for these as they are.
    """
    law, names = problem.law, problem.law.parameters()
    J, on = jacobian(problem, best)
    notes = [
        f"{law.coefficients[k]} lies on its bound 0: the curves do not show this part of the law"
        for j, k in enumerate(problem.solved)
        if j not in on
    ]
    places = [problem.solved[j] for j in on]  # of the columns of J among all parameters
    slopes = [1.0] * len(on)
    keep = list(range(len(on)))
    for k, i in enumerate(problem.searched):
        theta, z = law.thetas[i], float(best.z[k])
        places.append(len(law.coefficients) + i)
        slopes.append(theta.slope(z))
        low, high = theta.bounds()
        if np.abs(J[:, len(on) + k]).max() < UNFELT:
            notes.append(f"{theta.name} is not determined: no point depends on it")
        elif min(z - low, high - z) < _AT_BOUND * (high - low):
            notes.append(f"{theta.name} = {theta.value(z):.4g} lies on its bound and has no standard error")
        else:
            keep.append(len(on) + k)
    scale = np.array(slopes)[keep]
    C = _covariance(problem, best, J[:, keep], _told(problem, best, on, keep)) * np.outer(scale, scale)
    where = [places[k] for k in keep]
    covariance = np.zeros((len(names), len(names)))
    covariance[np.ix_(where, where)] = C
    errors = dict.fromkeys(names, math.nan)
    errors.update({names[p]: math.sqrt(C[k, k]) for k, p in enumerate(where)})
    values = {law.coefficients[k]: best.c[j] for j, k in enumerate(problem.solved)}
    values.update({t.name: v for t, v in zip(law.thetas, problem.theta(best.z), strict=True)})
    notes += _as_known(problem, errors)
    if loose := [name for name, error in errors.items() if error > abs(values.get(name, math.inf))]:
        notes.append(f"larger than the value is the error of {', '.join(loose)}: these curves do not fix it")
    return errors, covariance, notes


def _as_known(problem: Problem, errors: Mapping[str, float]) -> list[str]:
    """A note on the parameters about which the curves say less than was known before."""
    spreads = {name: spread for name, (_, spread) in problem.law.known.items()}
    for theta in problem.law.thetas:
        if theta.prior is not None:
            spreads[theta.name] = theta.prior[1] * abs(theta.slope(theta.search(theta.prior[0])))
    same = [name for name, spread in spreads.items() if name not in problem.fixed and errors[name] > _UNMOVED * spread]
    if not same:
        return []
    return [f"about {', '.join(same)} these curves say less than what the law takes from curves of other models"]


def _told(problem: Problem, best: Solution, on: list[int], keep: list[int]) -> FloatArray:
    """What the cost's part on what was known before adds to the curvature of each kept coordinate; 0 for the others."""
    P, _ = problem.prior
    places = [*on, *range(best.c.size, P.shape[1])]
    told: FloatArray = np.sum(P**2, axis=0)[places][keep]
    return told


def _covariance(problem: Problem, best: Solution, J: FloatArray, told: FloatArray) -> FloatArray:
    r"""G^-1 (n H + k F) G^-1 in the coordinates of J, with H = J' W J, F = diag(`told`) and G = H + F.

    That is how far the minimum of the cost moves with what it is made of: n = s^2 tau, the variance of an independent
    point, and k = HUBER^2 PRIOR_WEIGHT, in whose units F is 1 / spread^2. The cost takes n for k, so where they differ
    this is wider than the inverse of the information (H / n + F / k)^-1. Without F it is n H^-1.
    """
    weight = problem.weight * huber_weight(best.residual)
    s2 = float(weight @ best.residual**2) / (best.residual.size - J.shape[1])
    # Curves that the law meets exactly leave no error but that of rounding.
    noise = max(s2 * correlation_time(best.residual, problem.owner, weight), 1e-30)
    G = J.T @ (J * weight[:, None]) + np.diag(told)
    scale = np.sqrt(np.diag(G))
    values, vectors = np.linalg.eigh(G / np.outer(scale, scale))
    # What nothing determines has a huge error, not none.
    inverse = (vectors / np.maximum(values, _SINGULAR * values[-1:])) @ vectors.T / np.outer(scale, scale)
    C: FloatArray = noise * inverse + (HUBER**2 * PRIOR_WEIGHT - noise) * inverse @ (told[:, None] * inverse)
    return C


def left_out(problem: Problem, best: Solution) -> FloatArray:
    """Residuals log L - log loss of refits at the points that each left out; shape (points left out at least once,).

    Every refit starts at the minimum of the whole fit, so it finds the one next to it. Folds that leave too few points
    are skipped; without any, the residuals of the fit itself come back.
    """
    missed = [np.zeros(0)]
    for out in _folds(problem.owner):
        if np.count_nonzero(~out) < best.c.size + best.z.size + 2:
            continue
        part = problem.part((~out).astype(np.float64))
        missed.append(refine(part, best.z).residual[out])
    together = np.concatenate(missed)
    return together if together.size else best.residual


def _folds(owner: IntArray) -> list[NDArray[np.bool_]]:
    """Masks of the points that each refit leaves out."""
    masks = [owner == i for i in np.unique(owner)]
    if len(masks) < FOLDED_CURVES:
        for mask in masks:
            mask[np.flatnonzero(mask)[: -(mask.sum() // 3) or None]] = False
    return [mask for mask in masks if mask.any()]


def correlation_time(residual: FloatArray, owner: IntArray, weight: FloatArray) -> float:
    """How many neighbouring residuals make one independent one: 1 + 2 sum_k rho_k, at least 1.

    rho_k is the correlation at distance k along a curve, of all curves together; the sum ends before the first k at
    which it is not positive (the initial positive sequence of Geyer 1992).
    """
    runs = [(weight[owner == i], residual[owner == i]) for i in np.unique(owner)]
    power = sum(float(w @ r**2) for w, r in runs)
    if not power > 0:
        return 1.0
    total = 1.0
    for k in range(1, max(r.size for _, r in runs)):
        rho = sum(float((w[k:] * r[k:]) @ r[:-k]) for w, r in runs if r.size > k) / power
        if rho <= 0:
            break
        total += 2.0 * rho
    return total


def carried_over(kept: FloatArray, refitted: FloatArray, slopes: FloatArray, fitted: NDArray[np.bool_]) -> FloatArray:
    r"""The covariance of all parameters when some were fitted anew and the others kept with their errors.

    With the slopes G of log L by the parameters at the points of the new fit, the fitted ones answer an error of the
    kept ones by D = -(G_f' G_f)^-1 G_f' G_k, so that V_kk = K, V_fk = D K, V_ff = R + D K D' (derived).

    Args:
        kept: K on the kept parameters, from the fit that found them, (p, p).
        refitted: R on the fitted ones, at exact kept ones, (p, p).
        slopes: G, shape (points, p).
        fitted: which parameters were fitted anew, shape (p,).
    """
    old = ~fitted
    answer = -np.linalg.lstsq(slopes[:, fitted], slopes[:, old], rcond=None)[0]
    K = kept[np.ix_(old, old)]
    V = np.zeros_like(kept)
    V[np.ix_(old, old)] = K
    V[np.ix_(fitted, old)] = answer @ K
    V[np.ix_(old, fitted)] = V[np.ix_(fitted, old)].T
    V[np.ix_(fitted, fitted)] = refitted[np.ix_(fitted, fitted)] + answer @ K @ answer.T
    return V
