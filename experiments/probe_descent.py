"""Does training go downhill? Weak quasi-convexity, and the cosine of update and gradient on data of no batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..hessian import LossOnBatches
from ..nulls import random_slope, shuffled_cosine
from ..trajectory import cosine, quasi_convexity
from .probes import Context, Skipped, Values, register

# Average over which window -> names of tau and of the loss there.
_AVERAGES = {
    "cooldown": ("quasi_convexity_average", "cooldown_average_loss"),
    "late stable": ("quasi_convexity_stable_average", "stable_average_loss"),
}


@dataclass(frozen=True)
class _Reference:
    """A point x* and the loss there."""

    name: str
    point: Tensor
    loss: float


@register("descent")
def descent(context: Context) -> Values:
    """Loss L and gradient g of a fixed training subset at states B; tau towards three points; the update's cosine.

    tau_i = <g(x_i), x_i - x*> / (L(x_i) - L(x*)) (Hardt, Ma, Recht 2018, Def. 2.1; arXiv:2601.09000, Fig. 4), nan where
    x* is not lower (a note names those states for the last one as x*). x* is the last state, the average of the
    cooldown's snapshots, and that of the late stable ones (of those that are kept with all their parameters).
    gradient_cosine = cos(x_{t+1} - x_t, -g(x_t)).
    The subset is fixed before training: which examples the update's batch holds is drawn independently of it, so that
    the batch's own noise is on average not in the cosine.

    Null of tau: a reference in a random direction at the same distance: mean 0, standard deviation
    norm(g) norm(x - x*) / sqrt(dim) / (L(x) - L(x*)) (`quasi_convexity_null_std`). Early states are easy: far above x*
    almost any loss falls towards it. Null of the cosine: the gradient's entries shuffled within each tensor, mean and
    standard deviation (`riverval.nulls.shuffled_cosine`).
    """
    kept = context.states
    states = kept.get("descent", [])
    if not states:
        raise Skipped("no state between warmup and end was kept")
    loss = context.train_loss(context.config.descent_examples)
    references = _references(context, loss)
    last = kept.get("end", [])
    rows = [_at(context, loss, state, references) for state in states]
    below = [t for t, row in zip(states, rows, strict=True) if row.get("quasi_convexity_denominator", math.inf) <= 0]
    if below:
        context.notes.append(
            f"descent: {len(below)} of {len(states)} states lie no higher than the last one, so that they have no tau: "
            + ", ".join(map(str, below))
        )
    if last and last[0] not in states:
        states = [*states, last[0]]
        rows.append({"probe_loss": next(r.loss for r in references if r.name == "quasi_convexity")})
    names = list(dict.fromkeys(name for row in rows for name in row))
    values: Values = {name: [row.get(name, math.nan) for row in rows] for name in names}
    named = dict(_AVERAGES.values())
    return {"probe_step": states, **values, **{named[r.name]: r.loss for r in references if r.name in named}}


def _references(context: Context, loss: LossOnBatches) -> list[_Reference]:
    points: dict[str, Tensor] = {}
    if "end" in context.states:
        points["quasi_convexity"] = context.at(context.states["end"][0])
    for window, (name, _) in _AVERAGES.items():
        whole = [t for t in context.states.get(window, ()) if context.snapshots.has(t)]
        if len(whole) > 1:
            points[name] = average(context, whole)
    return [_Reference(name, point, loss(point)) for name, point in points.items()]


def average(context: Context, states: list[int]) -> Tensor:
    """Mean of the parameters over states, added up as differences from the first: small numbers."""
    first = context.at(states[0])
    total = torch.zeros_like(first)
    for state in states[1:]:
        total += context.at(state) - first
    return first + total / len(states)


def _at(context: Context, loss: LossOnBatches, state: int, references: list[_Reference]) -> dict[str, float]:
    """All numbers of one state."""
    x = context.at(state)
    value, gradient = loss.gradient(x)
    row = {"probe_loss": value, "probe_gradient_norm": float(torch.linalg.vector_norm(gradient))}
    for reference in references:
        found = quasi_convexity([x], [gradient], [value], reference.point, reference.loss)
        slope, drop = float(found.slopes[0]), float(found.drops[0])
        if reference.name == "quasi_convexity":
            row |= {"quasi_convexity_numerator": slope, "quasi_convexity_denominator": drop}
        null = random_slope(float(found.distances[0]), float(found.gradient_norms[0]), loss.dim)
        row[reference.name] = float(found.tau[0])
        row[f"{reference.name}_null_std"] = null.sd / drop if drop > 0 else math.nan
    return row | _cosine(context, loss, state, gradient)


def _cosine(context: Context, loss: LossOnBatches, state: int, gradient: Tensor) -> dict[str, float]:
    if not context.snapshots.has(state, "update"):
        return {}
    update = context.snapshots.load(state, context.model, "update")
    pieces = [list(loss.pieces(vector).values()) for vector in (update, -gradient)]
    if not all(bool(torch.any(vector != 0)) for vector in (update, gradient)):
        return {}
    null = shuffled_cosine(*pieces)
    return {
        "gradient_cosine": cosine(*pieces),
        "gradient_cosine_null": null.mean,
        "gradient_cosine_null_std": null.sd,
    }
