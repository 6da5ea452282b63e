"""A run in words and numbers: what is about to be done, and each result beside its null model or theory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from .._format import number, with_error
from ..compare import cooldown_gain, last_window
from ..segments import Phase

if TYPE_CHECKING:
    from .job import Job

Row = tuple[str, str, str]


def announcement(job: Job) -> list[str]:
    """What will be run, in a few lines."""
    c, facts = job.config, job.config.facts
    unit = "images" if c.architecture.data_kind == "images" else "tokens"
    what = f" ({c.size})" if c.size else ""
    out = [
        f"{c.arch}{what} with {c.parameters:,} parameters on {facts['device']}",
        f"data {c.data}: {facts['train']:,} {unit} to train on, {facts['val']:,} held out",
        f"{c.steps:,} updates of {c.batch} {'sequences' if job.tokens else 'images'}"
        + (f" = {job.tokens:,} tokens" if job.tokens else f" = {(c.steps or 0) * c.batch / facts['train']:.3g} epochs")
        + f", peak learning rate {c.lr:g}, {c.plan.describe()}",
    ]
    count = len({t for states in job.states.values() for t in states})
    if count:
        out.append(f"keeping {count} snapshots as {c.keep}, {job.snapshot_bytes / 1e6:,.1f} MB")
    out.append(f"checkpoints: at most {job.checkpoint_bytes / 1e6:,.1f} MB")
    return out


def summary_rows(ds: xr.Dataset) -> list[Row]:
    """Rows (quantity, measured, null or theory) of a real run, for those quantities that it has."""
    parts = (
        _losses, _cooldown_gain, _update_sizes, _segments, _sharpness, _components, _directions, _descent,
        _predictability,
    )  # fmt: skip
    return [row for part in parts for row in part(ds)]


def _losses(ds: xr.Dataset) -> Iterator[Row]:
    for name, label in (("final_train_loss", "training loss"), ("final_train_accuracy", "training accuracy")):
        if name in ds:
            yield f"final {label}", number(float(ds[name])), ""
    for name, label in (("val_loss", "held-out loss"), ("val_accuracy", "held-out accuracy")):
        if name in ds:
            yield f"last {label}", number(float(ds[name][-1])), ""


def _cooldown_gain(ds: xr.Dataset) -> Iterator[Row]:
    """Fall of the held-out loss in the last cooldown, beside that of the river alone."""
    gain = cooldown_gain(ds)
    if gain is not None:
        null = f"{with_error(gain.river, gain.river_error)} by the river alone"
        yield "fall of held-out loss in the cooldown", with_error(gain.gain, gain.gain_error), null


def _update_sizes(ds: xr.Dataset) -> Iterator[Row]:
    """Mean length of an update in the last cooldown over that in the last stable phase, beside that of the rates."""
    cooldown, stable = (last_window(ds, phase) for phase in (Phase.COOLDOWN, Phase.STABLE))
    if "update_norm" not in ds or cooldown is None or stable is None:
        return
    length, rate = (
        float(ds[name][slice(*cooldown)].mean() / ds[name][slice(*stable)].mean()) for name in ("update_norm", "lr")
    )
    yield "update size, cooldown / stable", number(length, 3), f"{number(rate, 3)} in proportion to the rate"


def _segments(ds: xr.Dataset) -> Iterator[Row]:
    if "interpolation_dip" not in ds:
        return
    for pair in ds["pair"].to_numpy():
        one = ds.sel(pair=pair)
        dip, rise = (_with_error(one, f"interpolation_{name}") for name in ("dip", "rise"))
        yield f"{pair} segment: ends minus middle", dip, "> 0 in any convex bowl"
        if pair == "cooldown":
            yield "cooldown segment: largest rise", rise, "0 if the descent is monotone"


def _sharpness(ds: xr.Dataset) -> Iterator[Row]:
    told = (
        ("hessian", "top Hessian eigenvalue", "gradient descent"),
        ("preconditioned", "preconditioned eigenvalue", "the optimizer"),
    )
    for of, label, whose in told:
        names = [f"{of}_{name}" for name in ("top", "threshold", "mean")]
        if any(name not in ds for name in names):
            continue
        one = ds[names].dropna("probe_step", subset=names[:1])
        top, limit, random = (one[name].to_numpy() for name in names)
        bears = f"{number(limit[0], 3)} borne by {whose}"
        yield f"{label}, cooldown start", number(top[0]), f"{number(random[0], 2)} of a random direction; {bears}"
        yield f"{label}, end / start", number(top[-1] / top[0]), "1 if the cooldown does not sharpen"


def _components(ds: xr.Dataset) -> Iterator[Row]:
    if "pca_share" not in ds:
        return
    for window in ds["window"].to_numpy():
        one = ds.sel(window=window)
        share, null = (float(one[name][0]) for name in ("pca_share", "pca_null"))
        if window not in ("stable", "cooldown") or not np.isfinite(share):
            continue
        count = int(one["pca_snapshots"])
        yield f"PC1 share, {window} ({count} snapshots)", number(share, 3), f"{number(null, 3)} for a random walk"
        drift, walk = (number(float(one[name]), 3) for name in ("drift_share", "drift_null"))
        yield f"drift share, {window}", drift, f"{walk} for a random walk"
    if "phase_cosine" in ds:
        cosine, null = (float(ds[f"phase_cosine{of}"]) for of in ("", "_null"))
        yield "|cos| of PC1s, stable and cooldown", number(cosine, 2), f"{number(null, 2)} for random directions"
    if "window_cosine" in ds:
        for pair in ds["window_pair"].to_numpy():
            cosine, null = (float(ds[f"window_cosine{of}"].sel(window_pair=pair)) for of in ("", "_null"))
            yield f"|cos| of PC1s, {pair}", number(cosine, 2), f"{number(null, 2)} for random directions"


def _directions(ds: xr.Dataset) -> Iterator[Row]:
    if "direction_norm" not in ds:
        return
    null = f"{with_error(float(ds['direction_null']), float(ds['direction_null_error']))} for random directions"
    for window in ds["window"].to_numpy():
        one = ds.sel(window=window)
        if np.isfinite(one["direction_norm"]):
            yield f"norm of Hv, {window}", _with_interval(one, "direction_norm"), null
    for name, below in (("direction_ratio", "late stable"), ("direction_ratio_matched", "matched stable")):
        if name in ds:
            yield f"norm of Hv, early cooldown / {below}", _with_interval(ds, name), "1 if equally sharp"


def _descent(ds: xr.Dataset) -> Iterator[Row]:
    for name, label in (
        ("quasi_convexity", "the last state"),
        ("quasi_convexity_average", "the cooldown's average"),
        ("quasi_convexity_stable_average", "the late stable average"),
    ):
        if name in ds and np.isfinite(ds[name]).any():
            tau, spread = (ds[n].to_numpy()[np.isfinite(ds[name].to_numpy())] for n in (name, f"{name}_null_std"))
            told = f"{np.mean(tau > 0):.0%} of {len(tau)}, median {number(float(np.median(tau)), 2)}"
            null = f"50%, {with_error(0.0, float(np.median(spread)))} towards a random point"
            yield f"tau above 0 towards {label}", told, null
    if "gradient_cosine" in ds:
        known = ds[["gradient_cosine", "gradient_cosine_null"]].dropna("probe_step")
        cosines = known["gradient_cosine"].to_numpy()
        error = float(cosines.std(ddof=1) / np.sqrt(len(cosines))) if len(cosines) > 1 else float("nan")
        null = f"{number(float(known['gradient_cosine_null'].mean()), 2)} for a shuffled gradient"
        yield "mean cosine of update, minus gradient", with_error(float(cosines.mean()), error), null


def _predictability(ds: xr.Dataset) -> Iterator[Row]:
    for phase in ("stable", "settled", "cooldown"):
        name = f"{phase}_gain_slope"
        if name in ds:
            null = with_error(float(ds[f"{name}_null"]), float(ds[f"{name}_null_std"]))
            yield f"{phase} gain: rise with entropy", _with_error(ds, name), f"{null} for shuffled bins"
    if "gain_contrast" in ds:
        yield "relative rise, cooldown minus settled stable", _with_error(ds, "gain_contrast"), "0 if alike"


def _with_error(ds: xr.Dataset, name: str) -> str:
    return with_error(float(ds[name]), float(ds[f"{name}_error"]))


def _with_interval(ds: xr.Dataset, name: str) -> str:
    value, low, high = (number(float(ds[f"{name}{end}"]), 3) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"
