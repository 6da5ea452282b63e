"""Principal components of the snapshots of each window, how far the steps agree, and the angles between windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._typing import FloatArray
from ..nulls import RandomSubspace, simulate, walk_gram
from ..trajectory import drift_share, shares_of_gram, subspace_cosines
from .probes import Context, Values, register
from .snapshot_plan import COMPARED

_DRAWS = 50  # simulated walks, where sketches make the dimension finite
# Pairs of windows whose first components are compared: the phases' own, and the control.
_PAIRS = (("late stable", "early cooldown"), ("matched stable", "early cooldown"), ("late stable", "earlier stable"))
_LEAST = 3  # snapshots of a window: two have one component, whatever they are


@dataclass(frozen=True)
class Joint:
    """The Gram matrix of all states at once: every file is read once, whatever windows it belongs to."""

    states: list[int]
    gram: FloatArray

    @classmethod
    def of(cls, context: Context, states: list[int]) -> Joint:
        """Of these states."""
        return cls(states, context.snapshots.gram(states, context.model))

    def window(self, states: Sequence[int]) -> FloatArray:
        """The part of some of them, about another origin than their mean."""
        places = self._places(states)
        return self.gram[np.ix_(places, places)]

    def cosine(self, first: Sequence[int], second: Sequence[int]) -> float:
        """Absolute cosine of the first principal components of two sets of states, which may share some."""
        return float(subspace_cosines(self.gram, self._places(first), self._places(second))[0])

    def _places(self, states: Sequence[int]) -> list[int]:
        return [self.states.index(t) for t in states]


@register("pca")
def pca(context: Context) -> Values:
    """Shares of the variance, drift share and first components of the windows' snapshots (arXiv:2601.09000).

    Shares by the Gram matrix of the centred snapshots. drift = ||mean step||^2 / mean ||step||^2 between neighbouring
    snapshots. Cosines are abs v'w of first components: of S and D (`phase_cosine`), and of the pairs of short windows
    at the turn (`window_cosine`), among them the control, S' against the stretch before it. Where sketches are kept,
    all of these are of sketches, and `pca_share_error` is the standard deviation that this causes, by simulation.

    Null of shares and drift: a random walk with the run's own rates and momentum (of Adam: beta1), seen at the same
    states: 61 % for the first component at a constant rate in high dimension. Null of cosines: the mean of two random
    directions in as many dimensions as are seen, about 0.8 / sqrt(dim): that directions are distinct is automatic.
    """
    windows = {name: kept for name, kept in context.states.items() if name in COMPARED and len(kept) >= _LEAST}
    context.lacking("pca", windows)
    joint = Joint.of(context, sorted({t for kept in windows.values() for t in kept}))
    seen = context.snapshots.seen_dimension(context.config.parameters)
    sketched = seen < context.config.parameters
    rng = context.rng("pca")
    rows: dict[str, list[FloatArray]] = {"pca_share": [], "pca_null": [], "pca_share_error": []}
    drifts, nulls = [], []
    for states in windows.values():
        gram = joint.window(states)
        walk = walk_gram(context.rates, states, momentum=context.momentum)
        rows["pca_share"].append(shares_of_gram(gram))
        if sketched:
            rows["pca_share_error"].append(simulate(shares_of_gram, gram, seen, rng=rng, draws=_DRAWS).sd)
            rows["pca_null"].append(simulate(shares_of_gram, walk, seen, rng=rng, draws=_DRAWS).value)
        else:
            rows["pca_null"].append(shares_of_gram(walk))
        drifts.append(drift_share(gram))
        nulls.append(drift_share(walk))
    most = max(map(len, rows["pca_share"]))
    return {
        "window": list(windows), "component": np.arange(most),
        **{name: np.stack([_padded(row, most) for row in each]) for name, each in rows.items() if each},
        "pca_snapshots": [len(states) for states in windows.values()],
        "drift_share": drifts, "drift_null": nulls,
        **_angles(joint, windows, RandomSubspace(seen).mean_abs),
    }  # fmt: skip


def _padded(row: FloatArray, size: int) -> FloatArray:
    return np.concatenate([row, np.full(size - len(row), np.nan)])


def _angles(joint: Joint, windows: dict[str, list[int]], null: float) -> Values:
    out: Values = {}
    if "stable" in windows and "cooldown" in windows:
        cosine = joint.cosine(windows["stable"], windows["cooldown"])
        out |= {"phase_cosine": cosine, "phase_cosine_null": null}
    pairs = [pair for pair in _PAIRS if all(name in windows for name in pair)]
    if pairs:
        cosines = [joint.cosine(*(windows[name] for name in pair)) for pair in pairs]
        out |= {
            "window_pair": [" and ".join(pair) for pair in pairs],
            "window_cosine": cosines, "window_cosine_null": [null] * len(pairs),
        }  # fmt: skip
    return out
