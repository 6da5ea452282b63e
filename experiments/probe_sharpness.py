"""The largest Hessian eigenvalue over the cooldown, raw and as the optimizer sees it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..diagnostics import _random_curvature
from ..operators import Operator, PreconditionedOperator
from ..preconditioners import threshold
from ..spectra import top_eigenvalues
from .probes import Context, Skipped, Values, register

_MOST_PRODUCTS = 300  # of one search


@register("sharpness")
def sharpness(context: Context) -> Values:
    """lambda_max(H) and lambda_max(P^-1/2 H P^-1/2) of the training loss on a fixed subset, P of the optimizer.

    At evenly spaced states of the cooldown, both ends included, by Lanczos with exact products; each search starts from
    the last state's vectors. Source: arXiv:2601.09000, Fig. 3 (the raw one), arXiv:2207.14484 (the preconditioned).

    Null: the curvature of a random direction, z'Hz / dim for random signs z, at both ends (`hessian_mean`); its
    standard error is at most sqrt(2) ||Hz|| / dim. The sharpness of a subset is on average above that of all data
    (Jensen): compare states, which are on one subset. A raw sharpness that rises while the preconditioned one over its
    threshold falls is the expected picture of a cooldown. A parameter whose gradients have been almost 0 for long has a
    P near eps and can carry the preconditioned sharpness by itself.
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
            told += f", preconditioned {scaled.add(_preconditioned(context, operator, state), ends):.4g}"
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


def _preconditioned(context: Context, operator: Operator, state: int) -> Operator:
    return PreconditionedOperator(operator, context.snapshots.moments(state))


def _threshold(rate: float, momentum: float, kind: str) -> float:
    return threshold(rate, momentum, kind=kind) if rate > 0 else math.nan


class _Searches:
    """Largest eigenvalues of one operator after another, by the names that start with `prefix`."""

    def __init__(self, context: Context, prefix: str) -> None:
        self._context, self._prefix = context, prefix
        self._warm: Any = None
        named = ("top", "top_residual", "top_bound", "products", "mean", "mean_error")
        self.rows: dict[str, list[float]] = {name: [] for name in named}

    def add(self, operator: Operator, null: bool) -> float:
        """Search, and measure the null where it is asked for; the eigenvalue."""
        # The same random part of every start, so that differences are the points' and not the start's.
        rng = self._context.rng("sharpness")
        found = top_eigenvalues(
            operator, rng=rng, tol=self._context.config.hessian_tol, start=self._warm, max_products=_MOST_PRODUCTS,
            strict=False,
        )  # fmt: skip
        if not found.converged:
            self._context.notes.append(
                f"sharpness: {self._prefix} eigenvalue not within the tolerance after {found.products} products"
            )
        self._warm = found.warm
        mean, error = _random_curvature(operator, rng) if null else (math.nan, math.nan)
        row = (found.values[0], found.residuals[0], found.bounds[0], found.products + null, mean, error)
        for column, value in zip(self.rows.values(), row, strict=True):
            column.append(float(value))
        return float(found.values[0])

    def skip(self) -> None:
        """Nothing at this state."""
        for name, column in self.rows.items():
            column.append(0.0 if name == "products" else math.nan)

    def values(self) -> Values:
        """The stored variables."""
        whole = {"products": np.array(self.rows["products"], dtype=np.int64)}
        return {f"{self._prefix}_{name}": whole.get(name, np.array(column)) for name, column in self.rows.items()}
