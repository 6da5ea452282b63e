"""What each context gained in the stable phase and in the cooldown, from a recorded run (`riverval.toy.bigram_run`).

The claim of arXiv:2410.05192 that this measures: the stable phase learns what is certain, the cooldown improves what is
uncertain. A context gains by the river in both phases; what a cooldown is good for shows against the same run without
it: `advantage` is the excess of the continued stable phase minus that after the cooldown, on the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from .._typing import ArrayLike, FloatArray
from ..segments import Phase, windows_of


@dataclass(frozen=True)
class Estimate:
    """Mean over replicates and its standard error; both nan where the run has nothing to say, the error for R = 1."""

    mean: float
    error: float


@dataclass(frozen=True)
class ContextGain:
    """One context; excess in nat per occurrence.

    `settled`: mean excess over the second half of the stable phase, where the hill has settled. `before`, `after`:
    excess at both ends of the last cooldown, `before_expected` and `after_expected` what theory expects there (nan
    without). `stable_gain`: fall over the second half of the stable phase; `cooldown_gain`: before - after;
    `advantage`: continued stable phase minus cooldown. Without a cooldown, before is the end of the run and what needs
    one is nan.
    """

    context: str
    frequency: float
    gini: float
    entropy: float
    settled: Estimate
    before: Estimate
    before_expected: float
    after: Estimate
    after_expected: float
    stable_gain: Estimate
    cooldown_gain: Estimate
    advantage: Estimate


def context_gains(ds: xr.Dataset) -> list[ContextGain]:
    """The gains of every context, from a dataset of `train` or `train_with_continuation`, whole or interrupted.

    Replicates that diverged are left out.
    """
    kept = ds.isel(replicate=np.flatnonzero(ds["diverged"].values == 0))
    state = ds["eval_step"].values
    stable, cooldown = _windows(ds)
    excess = kept["context_excess"].values  # (R, C, states)
    continued = kept["context_continued"].values if "context_continued" in ds else np.full_like(excess, np.nan)
    middle, end = (_at(state, s) for s in ((stable[0] + stable[1] + 1) // 2, stable[1]))
    last = _at(state, cooldown[1]) if cooldown else None
    expected = ds["context_expected"].values if "context_expected" in ds else np.full(excess.shape[1:], np.nan)
    nothing = np.full(excess.shape[:2], np.nan)
    settled = excess[..., middle : end + 1].mean(axis=-1) if stable[1] > stable[0] else nothing
    before = excess[..., end]
    after = nothing if last is None else excess[..., last]
    tables = {
        "settled": settled,
        "before": before,
        "after": after,
        "stable_gain": excess[..., middle] - before if stable[1] > stable[0] else nothing,
        "cooldown_gain": before - after,
        "advantage": nothing if last is None else continued[..., last] - after,
    }
    return [
        ContextGain(
            context=str(ds["context"].values[i]),
            frequency=float(ds["context_frequency"].values[i]),
            gini=float(ds["context_gini"].values[i]),
            entropy=float(ds["context_entropy"].values[i]),
            before_expected=float(expected[i, end]),
            after_expected=math.nan if last is None else float(expected[i, last]),
            **{name: _estimate(values[:, i]) for name, values in tables.items()},
        )
        for i in range(ds.sizes["context"])
    ]


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation (ties share their rank); nan for fewer than two values, a constant or a nan.

    >>> spearman([1.0, 2.0, 4.0], [0.1, 0.5, 0.9])
    1.0
    """
    x, y = (np.asarray(v, dtype=np.float64) for v in (a, b))
    if x.size < 2 or np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    rx, ry = _ranks(x), _ranks(y)
    size = math.sqrt(float(rx @ rx) * float(ry @ ry))  # of whole numbers: equal orders give 1 exactly
    return float(rx @ ry) / size if size else math.nan


def _ranks(values: FloatArray) -> FloatArray:
    """Twice the rank of each value less the mean rank: a whole number, also where ties share their rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((2 * np.cumsum(counts) - counts - values.size)[place], dtype=np.float64)


def stable_ranks(gains: list[ContextGain]) -> tuple[float, float]:
    """Spearman correlation of the settled excess with Gini impurity and with entropy, over the uncertain contexts."""
    hilly = [g for g in gains if g.gini > 0]
    settled = [g.settled.mean for g in hilly]
    return spearman(settled, [g.gini for g in hilly]), spearman(settled, [g.entropy for g in hilly])


def advantage_ranks(gains: list[ContextGain]) -> tuple[float, float]:
    """Spearman correlation of the advantage of the cooldown with Gini impurity and with entropy, over all contexts."""
    advantage = [g.advantage.mean for g in gains]
    return spearman(advantage, [g.gini for g in gains]), spearman(advantage, [g.entropy for g in gains])


def _windows(ds: xr.Dataset) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Updates of the stable stretch before the last cooldown (empty where there is none), and of that cooldown."""
    phases, made = ds["phase"].values, int(ds["eval_step"].values[-1])
    stable = [w for w in windows_of(phases, Phase.STABLE) if w[0] < made]
    cooldowns = [w for w in windows_of(phases, Phase.COOLDOWN) if w[0] < made]
    if not cooldowns:
        first, stop = stable[-1] if stable else (made, made)
        return (first, min(stop, made)), None
    first, stop = cooldowns[-1]
    before = [w for w in stable if w[1] == first]
    return (before[-1] if before else (first, first)), (first, min(stop, made))


def _at(states: np.ndarray, state: int) -> int:
    """Place of the last recorded state that is not after `state`."""
    return max(int(np.searchsorted(states, state, side="right")) - 1, 0)


def _estimate(values: FloatArray) -> Estimate:
    if not values.size:
        return Estimate(math.nan, math.nan)
    if values.size == 1:
        return Estimate(float(values[0]), math.nan)
    if np.all(values == values[0]):  # the start, say: a mean of equal numbers may round, and they do not spread
        return Estimate(float(values[0]), 0.0)
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    return Estimate(float(values.mean()), error)
