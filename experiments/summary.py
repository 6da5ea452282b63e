"""A run in words and numbers: what is about to be done, and each result beside its null model or theory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from .._format import number, with_error
from ..compare import cooldown_gain

if TYPE_CHECKING:
    from .run import Job

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
        out.append(f"keeping {count} snapshots, {job.snapshot_bytes / 1e6:,.1f} MB")
    return out


def summary_rows(ds: xr.Dataset) -> list[Row]:
    """Rows (quantity, measured, null or theory) of a real run, for those quantities that it has."""
    return [*_losses(ds), *_cooldown_gain(ds), *_segments(ds), *_sharpness(ds), *_components(ds)]


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


def _segments(ds: xr.Dataset) -> Iterator[Row]:
    if "interpolation_loss" not in ds:
        return
    for pair in ds["pair"].to_numpy():
        line = ds["interpolation_loss"].sel(pair=pair).to_numpy()
        middle = float(np.interp(0.5, ds["alpha"], line))
        dip = float(line[0] + line[-1]) / 2 - middle
        yield f"{pair} segment: ends minus middle", number(dip), "> 0 in any convex bowl"
        if pair == "cooldown":
            rise = float(max(np.diff(line).max(), 0.0))
            yield "cooldown segment: largest step up", number(rise), "0 if the descent is monotone"


def _sharpness(ds: xr.Dataset) -> Iterator[Row]:
    if "hessian_top" in ds:
        top = ds["hessian_top"].to_numpy()
        yield "top Hessian eigenvalue, cooldown start", number(top[0]), ""
        yield "top Hessian eigenvalue, end / start", number(top[-1] / top[0]), "1 if the cooldown does not sharpen"


def _components(ds: xr.Dataset) -> Iterator[Row]:
    if "pca_share" not in ds:
        return
    for window in ds["window"].to_numpy():
        share, null = (float(ds[n].sel(window=window)[0]) for n in ("pca_share", "pca_null"))
        count = int(ds["pca_snapshots"].sel(window=window))
        yield f"PC1 share, {window} ({count} snapshots)", number(share, 3), f"{number(null, 3)} for a random walk"
