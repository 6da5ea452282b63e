"""Pictures of bigram runs: the loss of each context through training, and what it gained in which phase."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from riverval.toy.bigram_gains import ContextGain, context_gains

from .plots import BLUE, GREEN, GREY, RED, _figure, _rate, _shade

LEAST_DRAWN = 1e-6


def bigram_run(ds: xr.Dataset) -> Figure:
    """Excess of each context beside its theory, the rate, gains against Gini impurity, and the settled excess."""
    figure = _figure((10.0, 9.6))
    grid = figure.add_gridspec(3, 2, height_ratios=(3.2, 0.9, 2.8))
    excess = figure.add_subplot(grid[0, :])
    _excess(excess, ds)
    excess.set_title(ds.attrs.get("title", ""))
    rate = figure.add_subplot(grid[1, :], sharex=excess)
    _shade(rate, ds["phase"].to_numpy())
    _rate(rate, ds)
    gains = context_gains(ds)
    _gains(figure.add_subplot(grid[2, 0]), gains)
    _settled(figure.add_subplot(grid[2, 1]), gains)
    return figure


def _excess(axis: Axes, ds: xr.Dataset) -> None:
    _shade(axis, ds["phase"].to_numpy())
    state, kept = ds["eval_step"].to_numpy(), ds["diverged"].to_numpy() == 0
    gini = ds["context_gini"].to_numpy()
    order = np.argsort(gini, kind="stable")
    colours = colormaps["viridis"](np.linspace(0.0, 0.92, len(order)))
    branch = _first_difference(ds)
    for i, colour in zip(order, colours, strict=True):
        told = f"{ds['context'].to_numpy()[i]} (Gini {gini[i]:.2f})"
        axis.plot(state, _mean(ds, "context_excess", i, kept), color=colour, lw=1.5, label=told)
        if "context_expected" in ds:
            axis.plot(state, _positive(ds["context_expected"].to_numpy()[i]), color="black", lw=0.8, ls="--")
        if branch is not None:
            continued = _mean(ds, "context_continued", i, kept)
            axis.plot(state[branch:], continued[branch:], color=colour, lw=1.2, ls=":")
    style = {"--": "expected"} if "context_expected" in ds else {}
    style |= {":": "without the cooldown"} if branch is not None else {}
    for dashes, label in style.items():
        axis.plot([], [], color="black", lw=1.0, ls=dashes, label=label)
    axis.set(yscale="log", ylabel="excess per occurrence (nat)")
    axis.legend(frameon=False, fontsize=8, ncols=2)


def _gains(axis: Axes, gains: list[ContextGain]) -> None:
    gini = np.array([g.gini for g in gains])
    rows = (
        ("stable_gain", GREEN, "s", "second half of the stable phase"),
        ("cooldown_gain", BLUE, "o", "cooldown"),
        ("advantage", RED, "D", "cooldown against no cooldown"),
    )
    for name, colour, marker, label in rows:
        told = [getattr(g, name) for g in gains]
        mean, error = np.array([e.mean for e in told]), np.nan_to_num([2 * e.error for e in told])
        if np.isfinite(mean).any():
            axis.errorbar(gini, mean, yerr=error, color=colour, marker=marker, ms=5, lw=0, elinewidth=1.2, label=label)
    axis.axhline(0, color=GREY, lw=0.8)
    axis.set(xlabel="Gini impurity of the next token", ylabel="gain (nat) ± 2 s.e.", title="Who gains when")
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def _settled(axis: Axes, gains: list[ContextGain]) -> None:
    """Settled excess against both measures of uncertainty; only one of them orders it."""
    kept = [g for g in gains if np.isfinite(g.settled.mean)]
    mean = [g.settled.mean for g in kept]
    error = np.nan_to_num([2 * g.settled.error for g in kept])
    largest = max((g.entropy for g in kept), default=1.0) or 1.0
    for values, colour, marker, label in (
        ([g.gini for g in kept], BLUE, "o", "against Gini impurity"),
        ([g.entropy / largest for g in kept], GREY, "x", "against entropy, largest = 1"),
    ):
        axis.errorbar(values, mean, yerr=error, color=colour, marker=marker, ms=5, lw=0, elinewidth=1.0, label=label)
    axis.set(xlabel="uncertainty of the next token", ylabel="excess (nat)", title="Second half of the stable phase")
    axis.set_ylim(0, None)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)


def _first_difference(ds: xr.Dataset) -> int | None:
    """Place of the state where the last cooldown leaves the continuation; None where it never does."""
    if "context_continued" not in ds:
        return None
    apart = (ds["context_continued"] != ds["context_excess"]).any(("replicate", "context")).to_numpy()
    return max(int(np.argmax(apart)) - 1, 0) if apart.any() else None


def _mean(ds: xr.Dataset, name: str, context: int, kept: np.ndarray) -> np.ndarray:
    values = ds[name].to_numpy()[kept, context]
    return _positive(values.mean(axis=0)) if len(values) else np.full(values.shape[1:], np.nan)


def _positive(values: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can hold: an excess of zero is at the optimum, before the first batch."""
    return np.where((values > LEAST_DRAWN) & (values < 1e100), values, np.nan)
