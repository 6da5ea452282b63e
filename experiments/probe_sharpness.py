"""The largest Hessian eigenvalue over the cooldown, raw and as the optimizer sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._typing import FloatArray, NDArray
from ..diagnostics import random_curvature
from ..operators import Operator, PreconditionedOperator
from ..preconditioners import threshold
from ..spectra import Eigenpairs, top_eigenvalues
from .probes import Context, Skipped, Values, register

_MOST_PRODUCTS = 300  # at one state
_BASIS_BYTES = 1 << 34  # of a search's vectors; growing takes up to twice that for a moment
_USUAL_ROWS, _LEAST_ROWS = 82, 10
_FINER, _FINEST = 0.01, 1e-12  # tolerance of each next search where one was not to be trusted, and of the last
_FALL = 0.1  # of the last state's value: below it a warm start is doubted
_FAINT = 100.0  # times eps: a P below it says that the parameter hardly had a gradient
_CARRIED = 0.1  # share of the eigenvector on such parameters from which on it is told


@register("sharpness")
def sharpness(context: Context) -> Values:
    """lambda_max(H) and lambda_max(P^-1/2 H P^-1/2) of the training loss on a fixed subset, P of the optimizer.

    At evenly spaced states of the cooldown, both ends included, by Lanczos with exact products; each search starts from
    the last state's vectors, and one that is not to be trusted (`doubtful`) is made again from a random vector, then
    to finer tolerances. Source: arXiv:2601.09000, Fig. 3 (the raw one), arXiv:2207.14484 (the preconditioned).

    Null: the curvature of a random direction, z'Hz / dim for random signs z, at both ends (`hessian_mean`); its
    standard error is at most sqrt(2) ||Hz|| / dim. The sharpness of a subset is on average above that of all data
    (Jensen): compare states, which are on one subset. A raw sharpness that rises while the preconditioned one over its
    threshold falls is the expected picture of a cooldown. A parameter whose gradients have been almost 0 for long has a
    P near eps and can carry the preconditioned sharpness by itself: a note tells where parameters of P < 100 eps have
    more than a tenth of the eigenvector. That number then tells of eps, not of the training.
    Thresholds (`riverval.preconditioners.threshold`): raw 2 / lr, what gradient descent bears (of SGD: with its
    momentum); preconditioned 2 (1 + beta1) / ((1 - beta1) lr), 38 / lr for beta1 = 0.9. At the last state no update
    follows: its thresholds are those of the last rate.
    """
    states = context.states.get("sharpness")
    if not states:
        raise Skipped("no cooldown window to look at")
    config = context.config
    loss = context.train_loss(config.hessian_examples)
    raw, scaled = _Searches(context, "hessian"), _Searches(context, "preconditioned")
    for state in states:
        ends = state in (states[0], states[-1])
        operator = context.hessian(loss, state)
        told = f"{raw.add(operator, ends):.4g}"
        if context.snapshots.has(state, "moments"):
            p = context.snapshots.moments(state)
            told += f", preconditioned {scaled.add(PreconditionedOperator(operator, p), ends):.4g}"
            context.notes.extend(faint(scaled.vector, p.numpy(), config.eps, state))
        elif config.optimizer != "sgd":
            context.notes.append(f"sharpness: no preconditioner at state {state}")
            scaled.skip()
        context.tell(f"measuring sharpness: {told} at state {state}")
    rates = [context.rates[min(state, len(context.rates) - 1)] for state in states]
    plain = config.momentum if config.optimizer == "sgd" else 0.0
    values: Values = {
        "probe_step": states,
        "probe_lr": [rate if t < len(context.rates) else math.nan for t, rate in zip(states, rates, strict=True)],
        **raw.values(),
        "hessian_threshold": [_threshold(rate, plain, "heavy-ball") for rate in rates],
    }
    if any(np.isfinite(scaled.rows["top"])):
        values |= scaled.values()
        values["preconditioned_threshold"] = [_threshold(rate, context.momentum, "average") for rate in rates]
    return values


def doubtful(found: Eigenpairs, tol: float, random: float, before: float) -> bool:
    """Whether a search may have stopped at something else than the largest eigenvalue.

    A value theta of residual r is taken for found where r^2 / gap <= tol theta; with a gap of at most theta, as in a
    spectrum whose largest magnitude is at the top, that is r <= sqrt(tol) theta. Beside a negative eigenvalue of much
    larger magnitude the gap is that one's, and any vector passes as soon as it is resolved, whatever lies between.

    Args:
        found: what the search gave.
        tol: asked of it.
        random: curvature of a random direction, which the largest eigenvalue cannot lie below; nan: not known.
        before: value at the last state; nan: there is none.
    """
    value, residual = float(found.values[0]), float(found.residuals[0])
    return residual > math.sqrt(tol) * abs(value) or value < random - tol * abs(random) or value < _FALL * before


def faint(vector: FloatArray, p: NDArray[Any], eps: float, state: int) -> Iterator[str]:
    """A note if parameters that hardly had gradients carry the preconditioned eigenvector.

    Args:
        vector: unit eigenvector of P^-1/2 H P^-1/2, (dim,).
        p: the diagonal of P, (dim,).
        eps: of the optimizer.
        state: that it is of.
    """
    small = p < _FAINT * eps
    share = float(np.square(vector[small]).sum())
    if share > _CARRIED:
        yield (
            f"sharpness: {share:.0%} of the preconditioned eigenvector at state {state} is on {int(small.sum()):,} of "
            f"{len(p):,} parameters whose P is below {_FAINT:g} eps: its eigenvalue tells of eps, not of the training"
        )


def _threshold(rate: float, momentum: float, kind: str) -> float:
    return threshold(rate, momentum, kind=kind) if rate > 0 else math.nan


class _Searches:
    """Largest eigenvalues of one operator after another, by the names that start with `prefix`."""

    def __init__(self, context: Context, prefix: str) -> None:
        self._context, self._prefix = context, prefix
        self._warm: FloatArray | None = None
        self.vector: FloatArray = np.zeros(0)
        named = ("top", "top_residual", "top_bound", "products", "mean", "mean_error")
        self.rows: dict[str, list[float]] = {name: [] for name in named}

    def add(self, operator: Operator, null: bool) -> float:
        """Search, and measure the null where it is asked for; the eigenvalue."""
        # The same random vectors at every state, so that differences are the points' and not the start's.
        mean, error = (math.nan, math.nan)
        if null:
            mean, error = random_curvature(operator, self._context.rng("sharpness null"))
        found, products = self._search(operator, mean)
        self._warm, self.vector = found.warm, found.vectors[:, 0]
        row = (found.values[0], found.residuals[0], found.bounds[0], products + null, mean, error)
        for column, value in zip(self.rows.values(), row, strict=True):
            column.append(float(value))
        return float(found.values[0])

    def _search(self, operator: Operator, random: float) -> tuple[Eigenpairs, int]:
        """The largest eigenvalue, and the products that were spent: warm first, and cold while it is doubtful."""
        context, asked, spent = self._context, self._context.config.hessian_tol, 0
        rng, start, tol = context.rng("sharpness"), self._warm, asked
        best: Eigenpairs | None = None
        before = self.rows["top"][-1] if self.rows["top"] else math.nan
        rows = min(_USUAL_ROWS, max(_LEAST_ROWS, _BASIS_BYTES // (8 * operator.shape[0])))
        while True:
            found = top_eigenvalues(
                operator, rng=rng, tol=tol, start=start, max_products=_MOST_PRODUCTS - spent, max_basis=rows,
                strict=False,
            )  # fmt: skip
            spent += found.products
            # A Ritz value is never above the largest eigenvalue: of two that differ, the larger is nearer.
            if best is None or found.values[0] >= best.values[0] - asked * abs(best.values[0]):
                best = found
            doubt = doubtful(best, asked, random, before if start is not None else math.nan)
            if not doubt or spent >= _MOST_PRODUCTS or tol <= _FINEST:
                break
            tol = tol if start is not None else max(tol * _FINER, _FINEST)
            start = None
        if doubt or not (best.converged or best.bounds[0] <= asked * abs(best.values[0])):
            context.notes.append(
                f"sharpness: {self._prefix} eigenvalue not within the tolerance after {spent} products"
            )
        return best, spent

    def skip(self) -> None:
        """Nothing at this state."""
        for name, column in self.rows.items():
            column.append(0.0 if name == "products" else math.nan)

    def values(self) -> Values:
        """The stored variables."""
        whole = {"products": np.array(self.rows["products"], dtype=np.int64)}
        return {f"{self._prefix}_{name}": whole.get(name, np.array(column)) for name, column in self.rows.items()}
