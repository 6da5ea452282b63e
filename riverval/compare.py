"""Datasets in, numbers out: align runs at their last cooldown and hold each diagnostic against its theory or its null.

Works on any dataset of the schema, whatever its source, so a toy and a real run meet on the same axes.

The null of the cooldown gain is the *river alone*: the loss going on to fall, per unit of intrinsic time S = sum of
lr, as it fell in the second half of the stable phase. In a valley without hills a cooldown gains just that; what it
gains beyond is hill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from ._typing import FloatArray, IntArray
from .segments import Phase

Z_LIMIT = 4.0
"""Verdicts are given at this many standard errors, fixed beforehand."""


@dataclass(frozen=True)
class Score:
    """One diagnostic of one run beside what it is held against; errors are one standard error, nan where unknown."""

    diagnostic: str
    value: float
    error: float
    against: float
    against_error: float
    reference: str
    kind: Literal["theory", "null"]

    @property
    def z(self) -> float:
        """(value - against) in standard errors; nan where neither side has one."""
        errors = [e for e in (self.error, self.against_error) if np.isfinite(e)]
        spread = float(np.hypot.reduce(errors)) if errors else 0.0
        return (self.value - self.against) / spread if spread > 0 else float("nan")

    @property
    def verdict(self) -> str:
        """Agreement for a theory, standing out for a null, 'no error bar' where nothing can be said; in words."""
        if not np.isfinite(self.z):
            return "no error bar"
        if self.kind == "theory":
            return "agrees" if abs(self.z) <= Z_LIMIT else "disagrees"
        return "beyond the null" if abs(self.z) > Z_LIMIT else "within the null"


@dataclass(frozen=True)
class Curve:
    """The loss of the states of a run; `error` is the standard error over replicates (zero for a single run)."""

    state: IntArray
    loss: FloatArray
    error: FloatArray


def curve(ds: xr.Dataset) -> Curve | None:
    """The loss on states: `loss` of theory and toy (mean over replicates) or `val_loss` of a real run; None without.

    Replicates that diverged are left out.
    """
    values = _losses(ds)
    if values is None:
        return None
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1])
    return Curve(ds["eval_step"].to_numpy(), values.mean(axis=0), error)


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
    if "phase" not in ds.coords:
        return None
    mask = np.concatenate([[False], ds["phase"].to_numpy() == phase, [False]])
    edges = np.flatnonzero(mask[1:] != mask[:-1])
    return (int(edges[-2]), int(edges[-1])) if len(edges) else None


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
    """Loss at the start of the last cooldown minus loss at its end, beside what the river alone would give."""

    start: float
    end: float
    gain: float
    gain_error: float
    river: float
    river_error: float


def cooldown_gain(ds: xr.Dataset) -> CooldownGain | None:
    """Gain of the last cooldown and its null; None without a stable phase before it that has at least 4 states.

    A line L = a + b S is fitted by least squares to the states of the second half of the last stable phase, with S = 0
    where the cooldown starts: a is the loss at the start and -b S(cooldown) the gain of the river alone. With
    replicates, each is fitted by itself and errors are those of the mean over them. A single run has only the residuals
    of its line, taken as independent: where its losses are correlated in time, its errors come out too small.
    """
    losses, cool, stable = _losses(ds), last_window(ds, Phase.COOLDOWN), last_window(ds, Phase.STABLE)
    if losses is None or cool is None or stable is None or stable[1] != cool[0]:
        return None
    state = ds["eval_step"].to_numpy()
    fit = (state >= (stable[0] + stable[1]) / 2) & (state <= cool[0])
    if fit.sum() < 4 or state[-1] != cool[1]:
        return None
    times = intrinsic_time(ds)
    travelled = float(times[cool[1]] - times[cool[0]])
    lines, cov = _lines(times[state[fit]] - times[cool[0]], losses[:, fit])
    starts, rivers = lines[0], -lines[1] * travelled
    gains = starts - losses[:, -1]
    if len(losses) > 1:
        gain_error, river_error = (float(v.std(ddof=1) / np.sqrt(len(v))) for v in (gains, rivers))
    else:
        gain_error, river_error = float(np.sqrt(cov[0, 0])), float(np.sqrt(cov[1, 1])) * travelled
    return CooldownGain(
        start=float(starts.mean()),
        end=float(losses[:, -1].mean()),
        gain=float(gains.mean()),
        gain_error=gain_error,
        river=float(rivers.mean()),
        river_error=river_error,
    )


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


def _lines(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least-squares a + b x for each row of y, shape (2, rows), and the covariance of (a, b) for the first row."""
    design = np.stack([np.ones_like(x), x], axis=1)
    solution = np.asarray(np.linalg.lstsq(design, y.T, rcond=None)[0], dtype=np.float64)
    residual = y[0] - design @ solution[:, 0]
    variance = float(residual @ residual) / max(len(x) - 2, 1)
    return solution, variance * np.linalg.inv(design.T @ design)


def scorecard(ds: xr.Dataset) -> list[Score]:
    """Every diagnostic that the dataset allows, each beside its theory or its null."""
    return [*_toy_scores(ds), *_gain_scores(ds), *_geometry_scores(ds)]


def _toy_scores(ds: xr.Dataset) -> list[Score]:
    out = []
    for name in ("hill", "river", "loss"):
        if name not in ds or f"exact_{name}" not in ds or "replicate" not in ds[name].dims:
            continue
        final = ds[name].isel(eval_step=-1).to_numpy()
        if "diverged" in ds:
            final = final[ds["diverged"].to_numpy() == 0]
        if len(final) == 0:
            continue
        exact = ds.isel(eval_step=-1)
        # The error of the mean is known exactly from the theory; it stands on the theory's side.
        spread = float(exact[f"exact_{name}_std"]) / np.sqrt(len(final))
        label = {"hill": "final hill loss", "river": "final river loss", "loss": "final loss"}[name]
        against = float(exact[f"exact_{name}"])
        out.append(Score(label, float(final.mean()), np.nan, against, spread, "exact recursion", "theory"))
    return out


def _gain_scores(ds: xr.Dataset) -> list[Score]:
    told = cooldown_gain(ds)
    if told is None:
        return []
    label = "gain of the last cooldown"
    scores = [Score(label, told.gain, told.gain_error, told.river, told.river_error, "river alone", "null")]
    dip = chord_dip(ds)
    if dip is not None:
        # Two decorrelated stationary states of a quadratic: their midpoint has half their hill loss.
        # The chord is of the training loss: where training has seen its data often, the two losses need not agree.
        label = "training hill loss by the stable chord"
        beyond, error = told.gain - told.river, float(np.hypot(told.gain_error, told.river_error))
        scores.append(Score(label, 2 * dip, np.nan, beyond, error, "held-out gain beyond the river", "theory"))
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
    if "hessian_top" in ds and ds.sizes["probe_step"] > 1:
        # The residual bounds the solver's error only; how far the curvature batch moves the ratio is not known here.
        ratio = float(ds["hessian_top"][-1] / ds["hessian_top"][0])
        out.append(Score("sharpness, end over start of the cooldown", ratio, np.nan, 1.0, np.nan, "no change", "null"))
    if "pca_share" in ds:
        for window in ds["window"].to_numpy():
            first = ds.sel(window=window).isel(component=0)
            share, null = float(first["pca_share"]), float(first["pca_null"])
            out.append(
                Score(f"first component, {window} snapshots", share, np.nan, null, np.nan, "random walk", "null")
            )
    return out
