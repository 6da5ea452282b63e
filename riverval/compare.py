"""Datasets in, numbers out: align runs at their last cooldown and hold each diagnostic against its theory or its null.

Works on any dataset of the schema, whatever its source, so a toy and a real run meet on the same axes.

The null of the cooldown gain is the *river alone*: the loss going on to fall, per unit of intrinsic time S = sum of
lr, as it fell in the second half of the stable phase. In a valley without hills a cooldown gains just that; what it
gains beyond is hill."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from scipy.special import ndtr, stdtrit

from ._typing import FloatArray, IntArray
from .segments import Phase, windows_of

Runs = Sequence[tuple[str, xr.Dataset]]
"""Labelled datasets."""
NOT_THE_TRAINING = ("seed", "device", "threads", "facts")
"""Settings of a run that may differ between repetitions of it."""
Z_LIMIT = 4.0
"""Verdicts are given beyond this many standard errors, or where Student's t has the same tail; fixed beforehand."""


@dataclass(frozen=True)
class Score:
    """One diagnostic of one run beside what it is held against.

    `error` and `against_error` are one standard error of each side, `difference_error` that of value - against (the
    two are not independent where they come from the same replicates); nan where unknown. `freedom` is the number of
    degrees of freedom behind `difference_error`, infinite where it is known exactly.
    """

    diagnostic: str
    value: float
    against: float
    reference: str
    kind: Literal["theory", "null"]
    error: float = math.nan
    against_error: float = math.nan
    difference_error: float = math.nan
    freedom: float = math.inf

    @property
    def z(self) -> float:
        """(value - against) in standard errors; nan where their size is not known."""
        return (self.value - self.against) / self.difference_error if self.difference_error > 0 else math.nan

    @property
    def limit(self) -> float:
        """Size of z beyond which a verdict is given: Student's t at the tail that `Z_LIMIT` has in the normal law."""
        return float(stdtrit(self.freedom, ndtr(Z_LIMIT))) if math.isfinite(self.freedom) else Z_LIMIT

    @property
    def verdict(self) -> str:
        """Agreement with a theory, the side of a null, or 'no error bar' where nothing can be said; in words."""
        if not math.isfinite(self.z):
            return "no error bar"
        within = abs(self.z) <= self.limit
        if self.kind == "theory":
            return "agrees" if within else "disagrees"
        return "within the null" if within else "above the null" if self.z > 0 else "below the null"


@dataclass(frozen=True)
class StateLoss:
    """The loss of the states of a run; `error` is the standard error over replicates (zero for a single run)."""

    state: IntArray
    loss: FloatArray
    error: FloatArray


def curve(ds: xr.Dataset) -> StateLoss | None:
    """The loss on states: `loss` of theory and toy (mean over replicates) or `val_loss` of a real run; None without.

    Replicates that diverged are left out.
    """
    values = _losses(ds)
    if values is None:
        return None
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1])
    return StateLoss(ds["eval_step"].to_numpy(), values.mean(axis=0), error)


def _losses(ds: xr.Dataset) -> FloatArray | None:
    """Loss of every state in every repetition that did not diverge, shape (repetitions, states); None without any."""
    name = next((n for n in ("loss", "val_loss") if n in ds and "eval_step" in ds[n].dims), None)
    if name is None:
        return None
    values = np.atleast_2d(ds[name].transpose(..., "eval_step").to_numpy())
    if "replicate" in ds[name].dims and "diverged" in ds:
        values = values[ds["diverged"].to_numpy() == 0]
    return values if len(values) else None


def last_window(ds: xr.Dataset, phase: Phase) -> tuple[int, int] | None:
    """Updates [start, stop) of the last unbroken stretch of a phase, from the dataset's own `phase`; None without."""
    found = windows_of(ds["phase"].to_numpy(), phase) if "phase" in ds.coords else []
    return found[-1] if found else None


def cooldown_axis(ds: xr.Dataset, state: IntArray) -> FloatArray | None:
    """Place of each state relative to the last cooldown: 0 at its start, 1 at its end, below 0 before; None without."""
    window = last_window(ds, Phase.COOLDOWN)
    if window is None:
        return None
    start, stop = window
    return np.asarray((state - start) / (stop - start), dtype=np.float64)


def intrinsic_time(ds: xr.Dataset) -> FloatArray:
    """S at states 0..T: the sum of lr over the updates before, shape (T + 1,)."""
    return np.concatenate([[0.0], np.cumsum(ds["lr"].to_numpy())])


@dataclass(frozen=True)
class CooldownGain:
    """Loss at the start of the last cooldown minus loss at its end, beside what the river alone would give.

    `hill` is gain - river. Errors are standard errors of the means over `replicates`, nan for a single run.
    """

    start: float
    end: float
    gain: float
    gain_error: float
    river: float
    river_error: float
    hill: float
    hill_error: float
    replicates: int


def cooldown_gain(ds: xr.Dataset) -> CooldownGain | None:
    """Gain of the last cooldown and its null; None without a stable phase before it that has at least 4 states.

    A line L = a + b S is fitted by least squares to the states of the second half of the last stable phase, with S = 0
    where the cooldown starts: a is the loss at the start and -b S(cooldown) the gain of the river alone. Each replicate
    is fitted by itself. A single run has no error bar: its losses are correlated over times that it cannot tell, and
    the residuals of its line understate the error several times over.
    """
    losses, cool, stable = _losses(ds), last_window(ds, Phase.COOLDOWN), last_window(ds, Phase.STABLE)
    if losses is None or cool is None or stable is None or stable[1] != cool[0]:
        return None
    state = ds["eval_step"].to_numpy()
    fit = (state >= (stable[0] + stable[1]) / 2) & (state <= cool[0])
    if fit.sum() < 4 or state[-1] != cool[1]:
        return None
    times = intrinsic_time(ds)
    # In units of the cooldown's own length, so that a tiny rate cannot make the fit singular.
    x = (times[state[fit]] - times[cool[0]]) / (times[cool[1]] - times[cool[0]])
    starts, slopes = _lines(x, losses[:, fit])
    rivers, gains = -slopes, starts - losses[:, -1]
    return CooldownGain(
        start=float(starts.mean()),
        end=float(losses[:, -1].mean()),
        gain=float(gains.mean()),
        gain_error=_error_of_mean(gains),
        river=float(rivers.mean()),
        river_error=_error_of_mean(rivers),
        hill=float((gains - rivers).mean()),
        hill_error=_error_of_mean(gains - rivers),
        replicates=len(losses),
    )


def _error_of_mean(values: FloatArray) -> float:
    if len(values) < 2:
        return math.nan
    with np.errstate(over="ignore"):  # of losses near the largest number the error is infinite, so z is zero
        return float(values.std(ddof=1)) / math.sqrt(len(values))


def river_alone(ds: xr.Dataset) -> tuple[IntArray, FloatArray] | None:
    """The null as a curve: states from the middle of the last stable phase to the end, and the fitted line at them.

    L(t) = start - river (S_t - S_start) / (S_end - S_start) with the terms of `cooldown_gain`; None where that is None.
    """
    gain, cool, stable = cooldown_gain(ds), last_window(ds, Phase.COOLDOWN), last_window(ds, Phase.STABLE)
    if gain is None or cool is None or stable is None:
        return None
    times = intrinsic_time(ds)
    state = np.arange((stable[0] + stable[1] + 1) // 2, cool[1] + 1)
    share = (times[state] - times[cool[0]]) / (times[cool[1]] - times[cool[0]])
    return state, gain.start - gain.river * share


def _lines(x: FloatArray, y: FloatArray) -> FloatArray:
    """Least-squares a + b x for each row of y, as (a, b), shape (2, rows)."""
    design = np.stack([np.ones_like(x), x], axis=1)
    return np.asarray(np.linalg.lstsq(design, y.T, rcond=None)[0], dtype=np.float64)


def shared_updates(first: xr.Dataset, second: xr.Dataset) -> int:
    """Updates, from the first on, that two training runs have in common: equal rates and equal losses, bit for bit."""
    n = min(first.sizes["step"], second.sizes["step"])
    alike = np.all([first[v].to_numpy()[:n] == second[v].to_numpy()[:n] for v in ("lr", "train_loss")], axis=0)
    return n if alike.all() else int(np.argmin(alike))


def fans(runs: Runs) -> list[tuple[int, Runs]]:
    """Training runs that leave one trunk: for each trunk the state at which the first of them leaves, and the runs.

    Runs belong together where they share updates of a stable phase; a common warmup alone is no trunk. It does not
    matter whether they were branched off a checkpoint or trained from the beginning with the same seed.
    """
    found: list[list[tuple[str, xr.Dataset]]] = []
    for label, ds in runs:
        if "train_loss" not in ds or not ds.sizes["step"]:
            continue
        home = next((fan for fan in found if _trunk(fan[0][1], ds)), None)
        if home is None:
            found.append([(label, ds)])
        else:
            home.append((label, ds))
    return [(min(_trunk(fan[0][1], ds) for _, ds in fan[1:]), fan) for fan in found if len(fan) > 1]


def _trunk(first: xr.Dataset, second: xr.Dataset) -> int:
    """The state at which two runs part; 0 where they share no update of a stable phase."""
    shared = shared_updates(first, second)
    # In both: the first update of a cosine has the peak rate too.
    stable = [(ds["phase"].to_numpy()[:shared] == Phase.STABLE) for ds in (first, second)]
    return shared if np.logical_and(*stable).any() else 0


def repetitions(runs: Runs) -> list[list[tuple[str, xr.Dataset]]]:
    """Training runs in groups that differ by nothing but their seed, and by where they ran."""
    groups: dict[str, list[tuple[str, xr.Dataset]]] = {}
    for label, ds in runs:
        if "train_loss" in ds and ds.sizes["step"]:
            config = json.loads(ds.attrs.get("config", "{}"))
            told = {k: v for k, v in config.items() if k not in NOT_THE_TRAINING}
            groups.setdefault(json.dumps([told, ds.sizes["step"]], sort_keys=True), []).append((label, ds))
    return list(groups.values())


def scorecard(ds: xr.Dataset) -> list[Score]:
    """Every diagnostic that the dataset allows, each beside its theory or its null.

    None for a run of which a replicate diverged: the others are a selection, which neither theory nor null describes.
    """
    if "diverged" in ds and ds["diverged"].to_numpy().any():
        return []
    return [*_toy_scores(ds), *_gain_scores(ds), *_geometry_scores(ds)]


def _toy_scores(ds: xr.Dataset) -> list[Score]:
    out = []
    last = ds.isel(eval_step=-1) if "eval_step" in ds.dims else ds
    for name, label in (("hill", "final hill loss"), ("river", "final river loss"), ("loss", "final loss")):
        if name not in ds or f"exact_{name}_std" not in ds or "replicate" not in ds[name].dims:
            continue
        # The error of the mean is known exactly from the theory; it stands on the theory's side.
        error = float(last[f"exact_{name}_std"]) / math.sqrt(ds.sizes["replicate"])
        mean, exact = float(last[name].mean()), float(last[f"exact_{name}"])
        out.append(Score(label, mean, exact, "exact recursion", "theory", against_error=error, difference_error=error))
    return out


def _gain_scores(ds: xr.Dataset) -> list[Score]:
    told = cooldown_gain(ds)
    if told is None:
        return []
    scores = [
        Score(
            "gain of the last cooldown", told.gain, told.river, "river alone", "null",
            error=told.gain_error, against_error=told.river_error, difference_error=told.hill_error,
            freedom=told.replicates - 1,
        )
    ]  # fmt: skip
    dip = chord_dip(ds)
    if dip is not None:
        # Two decorrelated stationary states of a quadratic: their midpoint has half their hill loss. The chord is of
        # the training loss: where training has seen its data often, the two losses need not agree.
        label = "training hill loss by the stable chord"
        scores.append(Score(label, 2 * dip, told.hill, "held-out gain beyond the river", "theory"))
    return scores


def chord_dip(ds: xr.Dataset) -> float | None:
    """Mean loss of the ends of the stable segment minus the loss at its middle; None without that segment.

    Twice this is the excess noise loss of two decorrelated stationary states in a quadratic: L(middle) = mean - d'Hd/8.
    """
    if "interpolation_loss" not in ds or "stable" not in ds["pair"]:
        return None
    loss = ds["interpolation_loss"].sel(pair="stable")
    ends = 0.5 * (float(loss.isel(alpha=0)) + float(loss.isel(alpha=-1)))
    return ends - float(loss.interp(alpha=0.5))


def _geometry_scores(ds: xr.Dataset) -> list[Score]:
    out = []
    ratio = _sharpness_ratio(ds)
    if ratio is not None:
        # The residual bounds the solver's error only; how far the curvature batch moves the ratio is not known here.
        out.append(Score("sharpness, end over start of the cooldown", ratio, 1.0, "no change", "null"))
    if "pca_share" in ds:
        for window in ds["window"].to_numpy():
            first = ds.sel(window=window).isel(component=0)
            share, null = float(first["pca_share"]), float(first["pca_null"])
            out.append(Score(f"first component, {window} snapshots", share, null, "random walk", "null"))
    return [*out, *_drift_scores(ds), *_probe_scores(ds)]


def _sharpness_ratio(ds: xr.Dataset) -> float | None:
    """Largest eigenvalue at the last measured state of the last cooldown over that at the first one; None without."""
    cool = last_window(ds, Phase.COOLDOWN)
    if "hessian_top" not in ds or cool is None:
        return None
    state, values = ds["probe_step"].to_numpy(), ds["hessian_top"].to_numpy()
    inside = values[(state >= cool[0]) & (state <= cool[1]) & np.isfinite(values)]
    return float(inside[-1] / inside[0]) if len(inside) > 1 else None


def _drift_scores(ds: xr.Dataset) -> list[Score]:
    out = []
    if "drift_share" in ds:
        for window, share, null in zip(ds["window"].to_numpy(), ds["drift_share"], ds["drift_null"], strict=True):
            name = f"drift share, {window} snapshots"
            out.append(Score(name, float(share), float(null), "independent steps", "null"))
    if "phase_cosine" in ds:
        name, null = "cosine of the phases' first components", float(ds["phase_cosine_null"])
        out.append(Score(name, float(ds["phase_cosine"]), null, "random directions", "null"))
    return out


def _probe_scores(ds: xr.Dataset) -> list[Score]:
    """What an observer measured at several states, averaged over them."""
    out = []
    if "gradient_cosine" in ds:
        columns = (ds[f"gradient_cosine{part}"].to_numpy() for part in ("", "_null", "_null_std"))
        cosine, null, spread = np.array([*columns])[:, np.isfinite(ds["gradient_cosine"].to_numpy())]
        if len(cosine):
            # Under the null each state's gradient is shuffled by itself, so the means' variances add up.
            error = float(np.linalg.norm(spread)) / len(spread)
            label, mean = "mean cosine of update and -gradient", float(cosine.mean())
            out.append(
                Score(label, mean, float(null.mean()), "gradient's entries shuffled", "null",
                      against_error=error, difference_error=error)
            )  # fmt: skip
    if "quasi_convexity" in ds:
        tau = ds["quasi_convexity"].to_numpy()
        tau = tau[np.isfinite(tau)]
        if len(tau):
            # All look towards one last state, so they are not independent: no error bar.
            out.append(Score("share of states with tau > 0", float(np.mean(tau > 0)), 0.5, "random points", "null"))
    return out
