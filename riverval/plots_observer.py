"""The picture of a watched run: one panel for each thing that its dataset has, each number beside its null.

Nulls are dotted grey, thresholds dashed black, error bars two standard errors unless the legend says otherwise. States
that were not measured, or where a measurement failed, are nan in the dataset and have no point in the picture.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ._checks import pick
from ._format import with_error
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
    _around,
    _figure,
    _rate,
    _river_alone,
    _smooth,
)
from .plots_instruments import BARS, NULL
from .plots_panels import (
    Panels,
    _band,
    _colours,
    _has,
    _kept,
    _logarithmic,
    _measure,
    _measured,
    _null,
    _panel,
    _states,
    _threshold,
    _units,
    page,
)  # fmt: skip

TOWARDS = (
    ("quasi_convexity", BLUE, "last state"), ("quasi_convexity_average", RED, "cooldown's average"),
    ("quasi_convexity_stable_average", SKY, "stable average"),
)  # fmt: skip


def observed(ds: xr.Dataset) -> Figure:
    """Everything that a watched run recorded and that there is a panel for (`PANELS`).

    Raises:
        InputError: there is a panel for nothing in this dataset.
    """
    drawn = page(ds, PANELS)
    if drawn is None:
        raise InputError(f"nothing here can be drawn; a watched run has some of: {', '.join(_wanted())}")
    return drawn


def panel(ds: xr.Dataset, name: str) -> Figure:
    """One of the panels of `observed` by itself.

    Raises:
        InputError: an unknown name, or the dataset lacks what it draws.
    """
    variables, draw = pick("panel", name, PANELS)
    if not _measured(ds, variables):
        raise InputError(f"the panel {name!r} draws {' or '.join(variables)}, and this dataset has no such numbers")
    figure = _figure((7.5, 3.8))
    _panel(figure.add_subplot(), ds, name, draw)
    return figure


def _wanted() -> list[str]:
    return [v for variables, _ in PANELS.values() for v in variables]


# --- panels ----------------------------------------------------------------------------------------------------------
def _losses(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    drawn = []
    if _has(ds, "train_loss"):
        train = ds["train_loss"].to_numpy()
        axis.plot(ds["step"], train, color=SKY, lw=0.5, alpha=0.5, label="training loss of each batch")
        smooth, centre = _smooth(train)
        axis.plot(centre, smooth, color=BLUE, lw=1.5, label="running mean")
        drawn.append((centre, smooth))
    if _has(ds, "probe_loss"):
        _measure(axis, ds, "probe_loss", "probe_loss_error", RED, "loss on the probe's batches, ± 2 s.e.")
        drawn.append(_kept(ds, "probe_loss"))
    if _has(ds, "val_loss"):
        drawn.append(_kept(ds, "val_loss", "eval_step"))
        axis.plot(*drawn[-1], color=GREEN, marker=".", ms=4, lw=1.3, label="held-out loss")
        if "phase" in ds.coords:
            _river_alone(axis, ds)
    # The first descent, a tenth of the run, would flatten everything after it.
    _around(axis, np.concatenate([value[place >= 0.1 * ds.sizes.get("step", 0)] for place, value in drawn]))
    axis.set(xlabel="update", ylabel=f"loss{_units(ds, 'train_loss')}", title="Loss")


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
    _logarithmic(axis)
    axis.set(xlabel="update", ylabel="norm")


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
    values = []
    for name, colour, told in TOWARDS:
        if _has(ds, name):
            label = f"towards the {told}" + (" ± 2 s.e." if f"{name}_error" in ds else "")
            _measure(axis, ds, name, f"{name}_error", colour, label)
            _band(axis, ds, f"{name}_null_std", "", colour)
            values.append(_kept(ds, name)[1])
    if any(_has(ds, f"{name}_null_std") for name, _, _ in TOWARDS):
        label = "null: random points, ± 2 s.d."
        axis.fill_between([], [], color=GREY, alpha=0.25, lw=0, label=label)
    # Near the last state numerator and denominator vanish: what is left of their ratio may not set the scale.
    low, high = np.quantile(np.concatenate(values), [0.05, 0.95])
    low, high = min(0.0, low), max(0.0, high)
    axis.set_ylim(low - 0.35 * (high - low) - 0.1, high + 0.6 * (high - low) + 0.1)
    for level, told in ((1.0, "convex: at least 1"), (2.0, "quadratic around its minimum: 2")):
        axis.axhline(level, color="black", lw=0.7, ls=":" if level == 1 else "-.", label=told)
    axis.set(ylabel=r"$\tau$", title="Weak quasi-convexity")


def _shares(axis: Axes, ds: xr.Dataset) -> None:
    ds = ds.isel(component=slice(COMPONENTS_DRAWN))
    component = ds["component"].to_numpy() + 1
    for window, colour in _colours(ds["window"].to_numpy().tolist()).items():
        one = ds.sel(window=window)
        if not _has(one, "pca_share"):
            continue
        bars = 2 * np.nan_to_num(one["pca_share_error"].to_numpy()) if "pca_share_error" in ds else None
        axis.errorbar(component, one["pca_share"], yerr=bars, color=colour, label=f"{window}", **BARS)
        if "pca_null" in ds:
            axis.plot(component, one["pca_null"], color=colour, ls=":", lw=1.6)
    if _has(ds, "pca_null"):
        axis.plot([], [], label="null of each: random walk", **NULL)
    _logarithmic(axis)
    axis.set(xlabel="principal component", ylabel="share of variance", xticks=component)
    if _has(ds, "phase_cosine") and _has(ds, "phase_cosine_null") and "window_pair" not in ds.dims:
        cosine, null = (float(ds[f"phase_cosine{of}"]) for of in ("", "_null"))
        axis.plot([], [], lw=0, label=f"|cos| of the first ones {cosine:.2g}, null {null:.2g}")
    axis.set_title("Directions of the iterates")


def _drift(axis: Axes, ds: xr.Dataset) -> None:
    place = np.arange(ds.sizes["window"])
    axis.bar(place, ds["drift_share"], width=0.5, color=BLUE, alpha=0.75, label="drift share")
    if "drift_null" in ds:
        axis.hlines(ds["drift_null"], place - 0.35, place + 0.35, label="null: random walk", **NULL)
    axis.set(ylabel="|mean step|² / mean |step|²", title="How far the steps agree")
    axis.set_xticks(place, [str(w).replace(" ", "\n") for w in ds["window"].to_numpy()])


def _interpolation(axis: Axes, ds: xr.Dataset) -> None:
    alpha, drawn = ds["alpha"].to_numpy(), []
    for pair, colour in _colours(ds["pair"].to_numpy().tolist()).items():
        one = ds.sel(pair=pair)
        if not _has(one, "interpolation_loss"):
            continue
        label = f"{pair}: states {int(one['interpolation_start'])} to {int(one['interpolation_stop'])}"
        if _has(one, "interpolation_dip"):
            error = float(one["interpolation_dip_error"]) if "interpolation_dip_error" in ds else np.nan
            label += f", dip {with_error(float(one['interpolation_dip']), error)}"
        loss = one["interpolation_loss"].to_numpy()
        drawn.append(loss)
        if _has(one, "interpolation_loss_error"):
            half = 2 * np.nan_to_num(one["interpolation_loss_error"].to_numpy())
            axis.fill_between(alpha, loss - half, loss + half, color=colour, alpha=0.2, lw=0)
            # The errors of the places are the same batches': where they are wide, the form still is told by the line.
            reach = np.minimum(half, np.ptp(loss[np.isfinite(loss)]))
            drawn += [loss - reach, loss + reach]
        axis.plot(alpha, loss, color=colour, marker=".", ms=4, label=label)
        if "interpolation_null" in ds:
            axis.plot(alpha, one["interpolation_null"], color=colour, ls=":", lw=1.6)
    if _has(ds, "interpolation_null"):
        axis.plot([], [], label="null of each: quadratic through its ends and middle", **NULL)
    if _has(ds, "interpolation_loss_error"):
        axis.fill_between([], [], color=GREY, alpha=0.3, lw=0, label="± 2 s.e. over batches")
    _around(axis, np.concatenate(drawn))
    axis.set(xlabel="place between the two states", ylabel=f"training loss{_units(ds, 'interpolation_loss')}")
    axis.set_title("Loss on the segment")


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


PANELS: Panels = {
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
