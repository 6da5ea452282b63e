"""The picture of a watched run: one panel for each thing that its dataset has, each number beside its null.

Nulls are dotted grey, thresholds dashed black, error bars two standard errors unless the legend says otherwise. States
that were not measured, or where a measurement failed, are nan in the dataset and have no point in the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ._checks import pick
from ._typing import FloatArray
from .errors import InputError
from .plots import (
    BLUE,
    COMPONENTS_DRAWN,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    _figure,
    _interpolation,
    _limit,
    _rate,
    _shade,
    _smooth,
)
from .plots_instruments import BARS, LEGEND, NULL

THRESHOLD: dict[str, Any] = {"color": "black", "ls": "--", "lw": 1.0}
FAR = 6.0
"""A threshold this many times above everything measured is named in the legend instead of drawn."""
LETTERS = 64
"""What fits into one line of a legend in a panel of half the width."""


def observed(ds: xr.Dataset) -> Figure:
    """Everything that a watched run recorded and that there is a panel for (`PANELS`).

    Raises:
        InputError: there is a panel for nothing in this dataset.
    """
    names = [name for name in PANELS if _measured(ds, name)]
    if not names:
        raise InputError(f"nothing here can be drawn; a watched run has some of: {', '.join(_wanted())}")
    wide, rest = names[:1], names[1:]
    rows = 1 + (len(rest) + 1) // 2
    figure = _figure((11.0, 3.3 + 2.75 * (rows - 1)))
    grid = figure.add_gridspec(rows, 2, height_ratios=[1.2] + [1.0] * (rows - 1))
    places = [grid[0, :], *(grid[1 + k // 2, k % 2] for k in range(len(rest)))]
    for place, name in zip(places, wide + rest, strict=True):
        _panel(figure.add_subplot(place), ds, name)
    figure.suptitle(ds.attrs.get("title", ""))
    return figure


def panel(ds: xr.Dataset, name: str) -> Figure:
    """One of the panels of `observed` by itself.

    Raises:
        InputError: an unknown name, or the dataset lacks what it draws.
    """
    variables, _ = pick("panel", name, PANELS)
    if not _measured(ds, name):
        raise InputError(f"the panel {name!r} draws {' or '.join(variables)}, and this dataset has no such numbers")
    figure = _figure((7.5, 3.8))
    _panel(figure.add_subplot(), ds, name)
    return figure


def _panel(axis: Axes, ds: xr.Dataset, name: str) -> None:
    PANELS[name][1](axis, ds)
    axis.set_title(axis.get_title() or name.capitalize())
    axis.spines[["top", "right"]].set_visible(False)
    labels = axis.get_legend_handles_labels()[1]
    if labels:
        columns = 2 if 2 * max(map(len, labels)) <= LETTERS else 1
        _make_room(axis, 0.04 + 0.08 * -(-len(labels) // columns))
        style = {**LEGEND, "fontsize": 7.5, "columnspacing": 1.2, "handlelength": 1.6}
        axis.legend(loc="upper left", ncols=columns, **style).set_in_layout(False)


def _make_room(axis: Axes, part: float) -> None:
    """Raise the top, so that this part of the panel is above what is drawn: the legend stands there."""
    low, high = axis.get_ylim()
    share = part / (1 - part)
    if axis.get_yscale() == "log":
        axis.set_ylim(low, high * (high / low) ** share)
    else:
        axis.set_ylim(low, high + share * (high - low))


def _measured(ds: xr.Dataset, name: str) -> bool:
    return any(v in ds and bool(np.isfinite(ds[v].to_numpy()).any()) for v in PANELS[name][0])


def _wanted() -> list[str]:
    return [v for variables, _ in PANELS.values() for v in variables]


# --- the parts that panels share -------------------------------------------------------------------------------------
def _states(axis: Axes, ds: xr.Dataset) -> None:
    """An axis of states with the phases behind it."""
    if "phase" in ds.coords:
        _shade(axis, ds["phase"].to_numpy())
    axis.set_xlabel("state")


def _has(ds: xr.Dataset, name: str) -> bool:
    return name in ds and bool(np.isfinite(ds[name].to_numpy()).any())


def _kept(ds: xr.Dataset, name: str, axis_name: str = "probe_step") -> tuple[FloatArray, FloatArray]:
    """Where a series was measured, and what: a line that connects its points over the others."""
    values = ds[name].to_numpy().astype(float)
    kept = np.isfinite(values)
    return ds[axis_name].to_numpy()[kept], values[kept]


def _measure(axis: Axes, ds: xr.Dataset, name: str, error: str, colour: str, label: str, times: float = 2.0) -> None:
    place, value = _kept(ds, name)
    bars = None
    if error in ds:
        bars = times * np.nan_to_num(ds[error].to_numpy()[np.isfinite(ds[name].to_numpy())])
    axis.errorbar(place, value, yerr=bars, color=colour, label=label, **BARS)


def _null(axis: Axes, ds: xr.Dataset, name: str, label: str, spread: str = "") -> None:
    """A null as a dotted line, with a band of two of its standard deviations where it has any."""
    if not _has(ds, name):
        return
    place, value = _kept(ds, name)
    axis.plot(place, value, label=label, **NULL)
    if spread in ds:
        half = 2 * np.nan_to_num(ds[spread].to_numpy()[np.isfinite(ds[name].to_numpy())])
        axis.fill_between(place, value - half, value + half, color=GREY, alpha=0.2, lw=0)


def _band(axis: Axes, ds: xr.Dataset, spread: str, label: str) -> None:
    """A null whose mean is 0."""
    if _has(ds, spread):
        place, half = _kept(ds, spread)
        axis.fill_between(place, -2 * half, 2 * half, color=GREY, alpha=0.25, lw=0, label=label)
    axis.axhline(0, color=GREY, lw=0.8)


def _threshold(axis: Axes, ds: xr.Dataset, name: str, label: str) -> None:
    """A threshold, where it is near what was measured: in a cooldown it goes to infinity as the rate goes to 0."""
    if not _has(ds, name):
        return
    place, value = _kept(ds, name)
    lowest, typical = float(value.min()), float(np.median(value))
    low, high = axis.get_ylim()
    if lowest > high and typical > FAR * high:
        axis.plot([], [], label=f"{label}: typically {typical:.3g}, far above", **THRESHOLD)
        return
    axis.plot(place, value, label=label, **THRESHOLD)
    axis.set_ylim(low, max(high, 1.1 * min(typical, FAR * high)))


# --- panels ----------------------------------------------------------------------------------------------------------
def _losses(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    smooth = np.empty(0)
    if _has(ds, "train_loss"):
        train = ds["train_loss"].to_numpy()
        axis.plot(ds["step"], train, color=SKY, lw=0.5, alpha=0.5, label="training loss of each batch")
        smooth, centre = _smooth(train)
        axis.plot(centre, smooth, color=BLUE, lw=1.5, label="running mean")
    if _has(ds, "probe_loss"):
        _measure(axis, ds, "probe_loss", "probe_loss_error", RED, "loss on the probe's batches, ± 2 s.e.")
    if _has(ds, "val_loss"):
        place, value = _kept(ds, "val_loss", "eval_step")
        axis.plot(place, value, color=GREEN, marker=".", ms=4, lw=1.3, label="held-out loss")
    _limit(axis, smooth)
    axis.set(xlabel="update", ylabel="loss", title="Loss")


def _learning_rate(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    _rate(axis, ds)
    if _has(ds, "group_lr") and ds.sizes["group"] > 1:
        for group, colour in zip(ds["group"].to_numpy(), CYCLE * ds.sizes["group"], strict=False):
            axis.plot(ds["step"], ds["group_lr"].sel(group=group), color=colour, lw=1.0, label=f"group {group}")


def _norms(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    told = {
        "param_norm": (GREEN, "parameters"), "grad_norm": (PURPLE, "gradient"),
        "given_norm": (SKY, "gradient given"), "update_norm": (ORANGE, "update"),
    }  # fmt: skip
    for name, (colour, label) in told.items():
        if _has(ds, name):
            axis.plot(ds["step"], ds[name], color=colour, lw=0.8, label=label)
    axis.set(yscale="log", xlabel="update", ylabel="norm")


def _cosines(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    if _has(ds, "update_cosine"):
        value = ds["update_cosine"].to_numpy()
        axis.plot(ds["step"], value, color=SKY, lw=0.4, alpha=0.5)
        smooth, centre = _smooth(value)
        axis.plot(centre, smooth, color=BLUE, lw=1.4, label="update, and - its own batch gradient")
    if _has(ds, "update_cosine_null"):
        place, null = _kept(ds, "update_cosine_null", "step")
        axis.plot(place, null, label="null: gradients of pure noise", **NULL)
    if _has(ds, "gradient_cosine"):
        _measure(axis, ds, "gradient_cosine", "", RED, "update, and - the probe's gradient")
        _null(axis, ds, "gradient_cosine_null", "null: entries shuffled, ± 2 s.d.", "gradient_cosine_null_std")
    axis.axhline(0, color=GREY, lw=0.8)
    axis.set(ylabel="cosine", title="Does the update go downhill?")


def _sharpness(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    if _has(ds, "hessian_batch_mean"):
        label = "mean over disjoint batches, ± 2 s.e."
        _measure(axis, ds, "hessian_batch_mean", "hessian_batch_error", ORANGE, label)
    if _has(ds, "hessian_top"):
        _measure(axis, ds, "hessian_top", "hessian_top_bound", RED, "top eigenvalue ± its error bound", 1.0)
    _null(axis, ds, "hessian_mean", "null: random direction, Tr H / dim", "hessian_mean_error")
    _threshold(axis, ds, "hessian_threshold", "stable below")
    axis.set(ylabel="eigenvalue", title="Sharpness of the loss")


def _preconditioned(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    _measure(
        axis, ds, "preconditioned_top", "preconditioned_top_bound", PURPLE, "top eigenvalue ± its error bound", 1.0
    )
    _null(axis, ds, "preconditioned_mean", "null: random direction", "preconditioned_mean_error")
    _threshold(axis, ds, "preconditioned_threshold", "stable below")
    axis.set(ylabel="eigenvalue", title="Sharpness as the optimizer sees it")


def _critical(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    _measure(axis, ds, "critical_sharpness", "", GREEN, "2 / the rate at which the loss rises")
    _null(axis, ds, "critical_null", "null: curvature of a random direction")
    _threshold(axis, ds, "critical_threshold", "2 / the rate used")
    axis.set(ylabel="critical sharpness", title="Sharpness along the update")


def _eigenvalues(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    _null(axis, ds, "hessian_mean", "null: random direction, Tr H / dim")
    for k, colour in zip(range(ds.sizes["rank"]), CYCLE, strict=False):
        one = ds.isel(rank=k)
        _measure(axis, one, "hessian_eigenvalue", "hessian_eigenvalue_residual", colour, "", 1.0)
    axis.set(ylabel="eigenvalue", title=f"Largest {min(ds.sizes['rank'], len(CYCLE))} eigenvalues ± residual")


def _trace(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    _measure(axis, ds, "hessian_trace", "hessian_trace_error", BLUE, "trace ± 2 s.e.")
    _band(axis, ds, "hessian_trace_null_std", "null: random matrix of the same norm, ± 2 s.d.")
    axis.set(ylabel="trace of the Hessian", title="Trace")


def _tau(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    _measure(axis, ds, "quasi_convexity", "quasi_convexity_error", BLUE, r"$\tau$ ± 2 s.e.")
    _band(axis, ds, "quasi_convexity_null_std", "null: towards a random point, ± 2 s.d.")
    _, value = _kept(ds, "quasi_convexity")
    # Near the last state numerator and denominator vanish: what is left of their ratio may not set the scale.
    low, high = np.quantile(value, [0.05, 0.95])
    axis.set_ylim(
        min(0.0, low) - 0.35 * (high - min(0.0, low)) - 0.1, max(0.0, high) + 0.6 * (high - min(0.0, low)) + 0.1
    )
    for level, told in ((1.0, "convex: at least 1"), (2.0, "quadratic around its minimum: 2")):
        axis.axhline(level, color="black", lw=0.7, ls=":" if level == 1 else "-.", label=told)
    axis.set(ylabel=r"$\tau$", title="Weak quasi-convexity towards the last state")


def _shares(axis: Axes, ds: xr.Dataset) -> None:
    ds = ds.isel(component=slice(COMPONENTS_DRAWN))
    component = ds["component"].to_numpy() + 1
    for window, colour in zip(ds["window"].to_numpy(), CYCLE, strict=False):
        one = ds.sel(window=window)
        bars = 2 * np.nan_to_num(one["pca_share_error"].to_numpy()) if "pca_share_error" in ds else None
        axis.errorbar(component, one["pca_share"], yerr=bars, color=colour, label=f"{window}", **BARS)
        if "pca_null" in ds:
            axis.plot(component, one["pca_null"], color=colour, ls=":", lw=1.6, label=f"{window}, null: random walk")
    axis.set(xlabel="principal component", ylabel="share of variance", yscale="log", xticks=component)
    if _has(ds, "phase_cosine") and _has(ds, "phase_cosine_null"):
        cosine, null = (float(ds[f"phase_cosine{of}"]) for of in ("", "_null"))
        axis.plot([], [], lw=0, label=f"|cos| of the first ones {cosine:.2g}, null {null:.2g}")
    axis.set_title("Directions of the iterates")


def _drift(axis: Axes, ds: xr.Dataset) -> None:
    place = np.arange(ds.sizes["window"])
    axis.bar(place, ds["drift_share"], width=0.5, color=BLUE, alpha=0.75, label="drift share")
    if "drift_null" in ds:
        axis.hlines(ds["drift_null"], place - 0.35, place + 0.35, label="null: independent steps", **NULL)
    axis.set(ylabel="|mean step|² / mean |step|²", title="How far the steps agree")
    axis.set_xticks(place, [str(w) for w in ds["window"].to_numpy()])


def _costs(axis: Axes, ds: xr.Dataset) -> None:
    ds = ds.sortby("diagnostic_share")
    share, names = ds["diagnostic_share"].to_numpy(), ds["diagnostic"].to_numpy()
    place = np.arange(len(share))
    axis.barh(place, share, color=GREY, height=0.6)
    for y, value in zip(place, share, strict=True):
        axis.annotate(f"{100 * value:.2g} %", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(place, [str(name).replace("_", " ") for name in names], fontsize=7)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
    axis.set_xlim(0, 1.18 * max(float(np.nanmax(share)), 1e-9))
    axis.set(xlabel="of the run's time", title=f"What it cost: {100 * np.nansum(share):.2g} % of the run")


PANELS: dict[str, tuple[tuple[str, ...], Callable[[Axes, xr.Dataset], None]]] = {
    "loss": (("train_loss", "probe_loss"), _losses),
    "learning rate": (("lr",), _learning_rate),
    "norms": (("param_norm", "grad_norm", "update_norm"), _norms),
    "sharpness": (("hessian_top", "hessian_batch_mean"), _sharpness),
    "preconditioned sharpness": (("preconditioned_top",), _preconditioned),
    "critical sharpness": (("critical_sharpness",), _critical),
    "eigenvalues": (("hessian_eigenvalue",), _eigenvalues),
    "trace": (("hessian_trace",), _trace),
    "cosines": (("update_cosine", "gradient_cosine"), _cosines),
    "quasi-convexity": (("quasi_convexity",), _tau),
    "shares": (("pca_share",), _shares),
    "drift": (("drift_share",), _drift),
    "interpolation": (("interpolation_loss",), _interpolation),
    "costs": (("diagnostic_share",), _costs),
}
"""Panel -> the variables of which it needs at least one, and how it is drawn."""
