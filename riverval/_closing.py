"""Diagnostics of the finished run, from what was recorded: numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from ._typing import FloatArray, IntArray
from ._watching import Finished, Unavailable, Values, diagnostic
from .nulls import RandomSubspace, simulate, walk_gram
from .pca import shares_of_gram, subspace_cosines
from .segments import PHASES, Phase, windows_of


def diverged_at(losses: Sequence[float | None], after: Sequence[float]) -> int:
    """The first update from which on no loss is finite, -1 if there is none.

    Args:
        losses: of every update, None where none was reported.
        after: reported after the last update: a loop may be left before the update that a loss would have led to.
    """
    known = [(t, math.isfinite(loss)) for t, loss in enumerate(losses) if loss is not None]
    good = max((t for t, finite in known if finite), default=-1)
    bad = [t for t, finite in known if not finite and t > good]
    return bad[0] if bad else len(losses) if not all(map(math.isfinite, after)) else -1


_QUASI = ("quasi_convexity", *(f"quasi_convexity_{part}" for part in ("numerator", "denominator", "error", "null_std")))


@diagnostic("quasi_convexity", variables=_QUASI, at_close=True, requires=("gradient", "probe_loss"))
def quasi_convexity(run: Finished) -> Values:
    """Weak quasi-convexity at every probed state: tau_i = <grad L(x_i), x_i - x*> / (L(x_i) - L(x*)).

    x* is the last probed state: the end of the run. Source: Hardt, Ma, Recht 2018 (Def. 2.1); arXiv 2601.09000. Convex
    functions have tau >= 1, a quadratic 2. The inner product is taken between sketches of width m:
    `quasi_convexity_error` is its standard error (`riverval.sketches.Sketch.error`) over the denominator.

    Null: a reference in a random direction at the same distance gives tau of mean 0 and standard deviation
    `quasi_convexity_null_std` = |g| |x - x*| / sqrt(d) / |L(x) - L(x*)|. Early states are easy: there tau is near the
    fall of the loss over the distance.
    """
    ds = run.ds
    if "probe_step" not in ds.dims:
        raise Unavailable("no state was probed")
    loss = ds["probe_loss"].to_numpy()
    points, gradients = (ds[n].to_numpy().astype(np.float64) for n in ("probe_sketch", "probe_gradient_sketch"))
    known = np.isfinite(loss) & np.isfinite(points).all(1) & np.isfinite(gradients).all(1)
    if known.sum() < 2:
        raise Unavailable("fewer than two states have loss and gradient")
    last = int(np.flatnonzero(known)[-1])
    way = points - points[last]
    numerator = np.einsum("ij,ij->i", gradients, way)
    denominator = loss - loss[last]
    numerator[~known], denominator[~known] = np.nan, np.nan
    size = ds["probe_gradient_norm"].to_numpy() * np.linalg.norm(way, axis=1)
    error = size * np.array([run.sketch.error(c) for c in _cosines(numerator, size)])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, scale = numerator / denominator, np.abs(denominator)
        values = (ratio, numerator, denominator, error / scale, size / np.sqrt(run.dim) / scale)
    for value in values:
        value[last] = np.nan
    return dict(zip(_QUASI, values, strict=True))


_PCA = ("pca_share", "pca_share_error", "pca_null", "pca_snapshots", "drift_share", "drift_null")


@diagnostic(
    "pca",
    variables=("window", "component", *_PCA, "phase_cosine", "phase_cosine_null"),
    at_close=True,
    requires=("sketch",),
)
def pca(run: Finished, *, snapshots: int = 60, components: int = 8) -> Values:
    """Principal components of the iterates of the last stable phase and the last cooldown, from sketches of every
    update.

    Shares of the variance by the Gram matrix of up to `snapshots` evenly spaced states (`riverval.pca`), in sketches of
    width m. `pca_share_error` is the standard deviation that sketching causes, by simulation. `drift_share` is
    ||mean step||^2 / mean ||step||^2 between these states; `phase_cosine` the |cosine| of the two first components.
    Source: arXiv 2601.09000 for the first component and the angle; controls derived.

    Args:
        snapshots: most states of a window, at least 3.
        components: how many are stored.

    Null: a random walk with the run's own rates and momentum seen in m dimensions, `pca_null` (mean over simulated
    walks): 61 % for the first component at a constant rate in high dimension. `drift_null`: the same for the drift,
    exact, 1 over the number of steps for independent ones. `phase_cosine_null`: the mean |cosine| of two random
    directions in m dimensions, about 0.8 / sqrt(m); below it an angle cannot be told from a right one.
    """
    ds = run.ds
    windows = {
        PHASES[phase]: found
        for phase in (Phase.STABLE, Phase.COOLDOWN)
        if len(found := _states(ds, phase, snapshots)) > 2
    }
    if not windows:
        raise Unavailable("neither a stable phase nor a cooldown of at least three updates")
    sketches = ds["param_sketch"].to_numpy().astype(np.float64)
    sketches -= sketches.mean(axis=0)
    width = min(sketches.shape[1], run.dim)
    rows = {name: np.full((len(windows), components), np.nan) for name in _PCA[:3]}
    drifts = np.full((2, len(windows)), np.nan)
    for k, states in enumerate(windows.values()):
        gram = sketches[states] @ sketches[states].T
        walk = walk_gram(ds["lr"].to_numpy(), states, momentum=run.momentum)
        seen = simulate(shares_of_gram, gram, width, rng=run.rng, draws=50).sd
        spread = seen if run.sketch.error() else np.zeros_like(seen)  # short vectors are kept as they are
        null = simulate(shares_of_gram, walk, width, rng=run.rng, draws=50).value
        for name, values in zip(rows, (shares_of_gram(gram), spread, null), strict=True):
            rows[name][k, : len(values)] = values[:components]
        drifts[:, k] = _drift(gram), _drift(walk)
    out = {
        "window": list(windows), "component": np.arange(components), **rows,
        "pca_snapshots": [len(states) for states in windows.values()],
        "drift_share": drifts[0], "drift_null": drifts[1],
    }  # fmt: skip
    return {**out, **(_angle(sketches, windows, width) if len(windows) == 2 else {})}


def _cosines(product: FloatArray, size: FloatArray) -> FloatArray:
    """Cosines from inner products of sketches, within [-1, 1]; 0 where unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.clip(product / size, -1.0, 1.0))


def _states(ds: xr.Dataset, phase: Phase, most: int) -> IntArray:
    """Up to `most` evenly spaced states of the last stretch of a phase, as places on the axis of updates."""
    found = windows_of(ds["phase"].to_numpy(), phase) if "step" in ds.dims else []
    if not found:
        return np.zeros(0, dtype=np.int64)
    start, stop = found[-1]
    return np.unique(np.linspace(start, stop - 1, min(most, stop - start)).round().astype(np.int64))


def _drift(gram: FloatArray) -> float:
    """||mean step||^2 / mean ||step||^2 of n steps: ||x_n - x_0||^2 / (n sum of squared steps)."""
    squares = np.diag(gram)
    steps = squares[1:] + squares[:-1] - 2 * np.diag(gram, 1)
    whole = squares[-1] + squares[0] - 2 * gram[0, -1]
    return float(whole / (len(steps) * steps.sum())) if steps.sum() > 0 else np.nan


def _angle(sketches: FloatArray, windows: dict[str, IntArray], width: int) -> Values:
    first, second = windows.values()
    joint = sketches[np.concatenate([first, second])]
    places = np.arange(len(joint))
    cosine = subspace_cosines(joint @ joint.T, places[: len(first)], places[len(first) :])[0]
    return {"phase_cosine": cosine, "phase_cosine_null": RandomSubspace(width).mean_abs}
