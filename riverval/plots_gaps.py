"""Values and gaps of the plans of a study: what its pictures are made of.

A gap is the metric of a plan minus that of the plan it is compared with, at equal seeds; its null is 0, the dotted
line. Small points are single seeds, the large one their mean, thick bars one standard error, thin bars the 95 %
interval (t distribution). A single seed has no bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._typing import ArrayLike, FloatArray
from .plots_instruments import LEGEND, NULL

METRICS = {
    "val_loss": "held-out loss (nat)", "train_loss": "training loss (nat)", "val_accuracy": "held-out accuracy",
    "train_accuracy": "training accuracy", "cooldown_gain": "gain of the cooldown (nat)",
    "cooldown_hill": "that gain beyond the river's (nat)",
}  # fmt: skip
"""Metric -> how an axis names it, in the order in which they are drawn."""
DRAWN = ("val_loss", "train_loss")
"""What the gaps of the studies of schedules are drawn of."""
CAPTION = "small points: seeds; large: their mean; thick bars: ± 1 s.e.; thin bars: 95 % interval (t); dotted: null"
SPREAD = 0.7
"""Width of the places that stand beside each other at one tick, of the distance of two ticks."""


def _metrics(ds: xr.Dataset, wanted: Sequence[str]) -> list[str]:
    """Those of the wanted metrics that were measured; all that there are where none of these was."""
    there = ds["metric"].to_numpy().tolist()
    return [m for m in wanted if m in there] or there


def _compared(ds: xr.Dataset) -> list[str]:
    """Plans that have a reference."""
    pairs = zip(ds["plan"].to_numpy().tolist(), ds["plan_against"].to_numpy().tolist(), strict=True)
    return [plan for plan, against in pairs if plan != against]


def _gaps(
    axis: Axes, ds: xr.Dataset, plans: Sequence[str], metric: str, places: FloatArray, colour: str,
    *, label: str = "", marker: str = "o", connect: bool = False, upright: bool = True,
) -> None:  # fmt: skip
    """Gaps of some plans: seeds, mean, standard error and interval, at places along the axis."""
    at = ds.sel(metric=metric, plan=list(plans))
    of = ds["outcome"].sel(metric=metric, plan=at["plan_against"].to_numpy()).transpose("seed", "plan").to_numpy()
    _seeds(axis, places, at["outcome"].transpose("seed", "plan").to_numpy() - of, colour, upright)
    ends = np.stack([at["outcome_gap_low"], at["outcome_gap_high"]])
    error = at["outcome_gap_error"].to_numpy()
    _mean(axis, places, at["outcome_gap"], error, ends, colour, label, marker, connect, upright)


def _seeds(axis: Axes, places: FloatArray, values: FloatArray, colour: str, upright: bool = True) -> None:
    """Values of each seed, shape (seeds, places)."""
    for one in values:
        axis.plot(*((places, one) if upright else (one, places)), ".", color=colour, ms=4, alpha=0.5)


def _mean(
    axis: Axes, places: ArrayLike, mean: ArrayLike, error: FloatArray, ends: FloatArray | None, colour: str, label: str,
    marker: str = "o", connect: bool = False, upright: bool = True,
) -> None:  # fmt: skip
    """Means with their standard errors as thick bars, and intervals as thin ones where there are any."""
    x, y = np.asarray(places, dtype=float), np.asarray(mean, dtype=float)
    order = np.argsort(x, kind="stable")
    x, y, error = x[order], y[order], np.nan_to_num(error[order])
    bars = "yerr" if upright else "xerr"
    pair = (x, y) if upright else (y, x)
    line: dict[str, Any] = {"color": colour, "ls": "-" if connect else "none", "lw": 1.1, "label": label or None}
    axis.errorbar(*pair, **{**line, bars: error}, marker=marker, ms=5.5, elinewidth=2.6, capsize=0)
    if ends is not None:
        reach = np.maximum(np.nan_to_num(np.stack([y - ends[0][order], ends[1][order] - y])), 0.0)
        thin: dict[str, Any] = {bars: reach, "ls": "none", "color": colour}
        axis.errorbar(*pair, **thin, elinewidth=0.9, capsize=2.5)


def _beside(count: int) -> FloatArray:
    """Offsets of `count` places around one tick."""
    return np.asarray((np.arange(count) - (count - 1) / 2) * SPREAD / count)


def _zero(axis: Axes, label: str, *, legend: bool = True) -> None:
    axis.axhline(0, label=label, **NULL)
    _bare(axis)
    if legend:
        axis.legend(**LEGEND)


def _bare(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend of what these axes show, each label once."""
    told: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            told.setdefault(label, handle)
    style: dict[str, Any] = {"loc": "outside lower center", "ncols": min(len(told), 6), "frameon": False, "fontsize": 9}
    style |= {"title": CAPTION, "title_fontsize": 8}
    figure.legend(list(told.values()), list(told), **style)
