"""Dataset -> Figure, one function per picture; nothing is computed that is not stored. The only user of matplotlib.

Figures are built without pyplot, so no window system is touched and nothing has to be closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import compare
from ._checks import unknown
from ._typing import FloatArray, NDArray
from .schedules import Schedule
from .segments import Phase
from .store import write_aside

# Okabe & Ito's palette: distinct for colour-blind readers.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#666666",
)
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, GREY)
PHASE_COLOURS = {Phase.WARMUP: "#F3E3C3", Phase.COOLDOWN: "#DCEBF5"}
DPI = 130
LARGEST_DRAWN = 1e100
COMPONENTS_DRAWN = 8


def write(figure: Figure, path: str | Path) -> Path:
    """Write a figure, all or nothing; the ending of `path` chooses the format (png, svg, pdf).

    Raises:
        InputError: an ending that matplotlib cannot write.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    kind = picture_format(path)
    return write_aside(path, lambda part: figure.savefig(part, format=kind, dpi=DPI))


def picture_format(path: Path) -> str:
    """The format that the ending of `path` names.

    Raises:
        InputError: matplotlib cannot write it; the message lists what it can.
    """
    kind = path.suffix.lstrip(".").lower()
    kinds = FigureCanvasAgg.filetypes
    if kind not in kinds:
        raise unknown("picture format", path.suffix or path.name, sorted(kinds))
    return kind


def schedule(plan: Schedule) -> Figure:
    """Learning rate against the update, phases shaded."""
    figure, axes = _grid(1, 1, (7.5, 3.2))
    axis = axes[0][0]
    _shade(axis, plan.phases())
    axis.plot(np.arange(plan.total), plan.values(), color=BLUE, lw=1.6)
    axis.set(xlabel="update t", ylabel="learning rate", title=plan.describe(), ylim=(0, None), xlim=(0, plan.total))
    _phase_legend(axis)
    return figure


def toy_run(ds: xr.Dataset) -> Figure:
    """Loss with its river component, hill loss, and the rate: simulated beside the exact solution where it is known."""
    figure, axes = _grid(3, 1, (8.0, 8.0), sharex=True, height_ratios=(3, 2.2, 1.2))
    loss, hill, rate = (row[0] for row in axes)
    for axis in (loss, hill, rate):
        _shade(axis, ds["phase"].to_numpy())
    if "average_loss" in ds:  # first: until the average begins it is the iterate, which then covers it
        _valley_curve(loss, ds, "average_loss", PURPLE, "loss of the average")
        _valley_curve(hill, ds, "average_hill", PURPLE, "hill loss of the average")
    _valley_curve(loss, ds, "loss", BLUE, "loss")
    _valley_curve(loss, ds, "river", GREEN, "river component")
    _valley_curve(hill, ds, "hill", RED, "hill loss")
    _river_alone(loss, ds)
    _limit(loss, _centre(ds, "loss"))
    loss.set(ylabel="loss", title=ds.attrs.get("title", ""))
    if not np.any(_centre(ds, "hill") <= 0):
        hill.set_yscale("log")
    hill.set(ylabel="hill loss")
    for axis in (loss, hill):
        if axis.get_legend_handles_labels()[0]:  # none where all is nan
            axis.legend(frameon=False, fontsize=8)
    _rate(rate, ds)
    return figure


def comparison(runs: Sequence[tuple[str, xr.Dataset]]) -> Figure:
    """Runs on one axis: their last cooldowns laid over each other, each loss in units of its own cooldown gain.

    Runs without a cooldown, or without a stable phase before it, are left out.
    """
    figure, axes = _grid(2, 1, (8.6, 6.2), sharex=True, height_ratios=(3, 1))
    upper, lower = axes[0][0], axes[1][0]
    for (label, ds), colour in zip(runs, CYCLE * len(runs), strict=False):
        told, gain = compare.curve(ds), compare.cooldown_gain(ds)
        if told is None or gain is None or gain.gain == 0:
            continue
        place = compare.cooldown_axis(ds, told.state)
        lr_place = compare.cooldown_axis(ds, ds["step"].to_numpy())
        assert place is not None
        assert lr_place is not None
        source = str(ds["source"].item())
        scaled = (told.loss - gain.end) / gain.gain
        style = {"toy": "-", "theory": "--", "real": "-"}[source]
        upper.plot(place, scaled, style, color=colour, lw=1.5, label=f"{label} ({source})", marker=".", ms=3)
        lower.plot(lr_place, ds["lr"] / float(ds["lr"].max()), color=colour, lw=1.3)
    for axis in (upper, lower):
        axis.axvspan(0, 1, color=PHASE_COLOURS[Phase.COOLDOWN], zorder=0, lw=0)
    upper.axhline(1, color=GREY, lw=0.7, ls=":")
    upper.axhline(0, color=GREY, lw=0.7, ls=":")
    upper.set(
        xlim=(-2.5, 1.02),
        ylim=(-0.15, 3.2),
        ylabel="(loss - final loss) / gain of the cooldown",
        title="Last cooldowns laid over each other",
    )
    if upper.get_lines()[2:]:
        upper.legend(frameon=False, fontsize=8, loc="upper right")
    lower.set(xlabel="updates since the start of the cooldown, in lengths of the cooldown", ylabel="lr / peak")
    return figure


# --- parts -----------------------------------------------------------------------------------------------------------


def _figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    sharex: bool = False,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    figure = _figure(size)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, height_ratios=height_ratios)


def _shade(axis: Axes, phases: NDArray[Any]) -> None:
    """Colour the background of warmup and cooldown; the plateau stays white."""
    edges = np.flatnonzero(np.diff(phases)) + 1
    for start, stop in zip([0, *edges], [*edges, len(phases)], strict=True):
        colour = PHASE_COLOURS.get(Phase(int(phases[start]))) if len(phases) else None
        if colour:
            axis.axvspan(start, stop, color=colour, zorder=0, lw=0)
    axis.set_xlim(0, max(len(phases), 1))
    axis.spines[["top", "right"]].set_visible(False)


def _phase_legend(axis: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=c, edgecolor=GREY, lw=0.5, label=p.name.lower()) for p, c in PHASE_COLOURS.items()]
    axis.legend(handles=handles, frameon=False, fontsize=8, loc="lower center")


def _rate(axis: Axes, ds: xr.Dataset) -> None:
    axis.plot(ds["step"], ds["lr"], color=GREY, lw=1.3)
    axis.set(xlabel="update t", ylabel="learning rate", ylim=(0, None))


def _valley_curve(axis: Axes, ds: xr.Dataset, name: str, colour: str, label: str) -> None:
    """Mean over replicates with two standard errors on either side of it, and the exact expectation."""
    state = ds["eval_step"].to_numpy()
    if name not in ds:
        _quantile_curve(axis, ds, name, colour, label)
    elif "replicate" in ds[name].dims:
        values = _drawable(ds[name].to_numpy()[ds["diverged"].to_numpy() == 0])
        if len(values):
            mean = values.mean(axis=0)
            error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros_like(mean)
            axis.fill_between(state, mean - error, mean + error, color=colour, alpha=0.25, lw=0)
            axis.plot(state, mean, color=colour, lw=1.4, label=f"{label}, mean ± 2 s.e.")
    else:
        axis.plot(state, _centre(ds, name), color=colour, lw=1.4, ls="--", label=f"{label}, exact")
    if f"exact_{name}" in ds:
        exact = _drawable(ds[f"exact_{name}"].to_numpy())
        axis.plot(state, exact, color="black", lw=0.9, ls="--", label=f"{label}, exact")


def _quantile_curve(axis: Axes, ds: xr.Dataset, name: str, colour: str, label: str) -> None:
    """Mean over replicates, and the band between the outermost of the recorded quantiles."""
    state, band = ds["eval_step"].to_numpy(), ds[f"{name}_quantile"]
    low, high = (_drawable(band.isel(quantile=k).to_numpy()) for k in (0, -1))
    words = " to ".join(f"{float(q):g}" for q in ds["quantile"][[0, -1]])
    axis.fill_between(state, low, high, color=colour, alpha=0.2, lw=0)
    axis.plot(state, _drawable(ds[f"mean_{name}"].to_numpy()), color=colour, lw=1.4, label=f"{label}, mean; {words}")


def _centre(ds: xr.Dataset, name: str) -> FloatArray:
    """The exact expectation where it is known, else the mean over the replicates that did not diverge."""
    if f"exact_{name}" in ds:
        return _drawable(ds[f"exact_{name}"].to_numpy())
    if name not in ds or "replicate" not in ds[name].dims:
        return _drawable(ds[name if name in ds else f"mean_{name}"].to_numpy())
    values = _drawable(ds[name].to_numpy()[ds["diverged"].to_numpy() == 0])
    return values.mean(axis=0) if len(values) else np.full(ds.sizes["eval_step"], np.nan)


def _drawable(values: FloatArray) -> FloatArray:
    """Values as they are, but nan beyond what an axis can hold: a diverging recursion passes 1e300."""
    return np.where(np.abs(values) < LARGEST_DRAWN, values, np.nan)


def _limit(axis: Axes, values: FloatArray) -> None:
    """Leave out the first descent of the loss, a tenth of the run, which would flatten everything after it."""
    _around(axis, values[len(values) // 10 :])


def _around(axis: Axes, values: FloatArray) -> None:
    """Limits of an axis around finite values, where there are any that differ."""
    finite = values[np.isfinite(values)]
    if len(finite) and np.ptp(finite) > 0:
        low, high = float(finite.min()), float(finite.max())
        axis.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))


def _river_alone(axis: Axes, ds: xr.Dataset) -> None:
    """The null of the cooldown: what leaves this line downwards is hill."""
    line = compare.river_alone(ds)
    if line is not None:
        axis.plot(*line, color=GREY, lw=1.4, ls=":", label="river alone: as in the second half of stable")


def _smooth(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Running mean over 2 % of the run, and the centres of its windows."""
    width = max(1, len(values) // 50)
    mean: FloatArray = np.convolve(values, np.full(width, 1.0 / width), mode="valid")
    centre = np.arange(len(values) - width + 1, dtype=np.float64) + (width - 1) / 2
    return mean, centre
