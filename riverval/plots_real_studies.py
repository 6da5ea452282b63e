"""The pictures of the studies of real runs, one function each, drawn from the study's dataset alone.

A gap is the metric of a plan minus that of the plan it is compared with, at equal seeds; its null is 0, the dotted
line. Small points are single seeds, the large one their mean, thick bars one standard error, thin bars the 95 %
interval (t distribution). A single seed has no bars.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ._format import number, with_error
from ._typing import ArrayLike, FloatArray
from .errors import InputError
from .plots import CYCLE, GREY, _figure
from .plots_branches import family
from .plots_instruments import LEGEND, NULL
from .plots_panels import _has, _kept, _sequence
from .plots_toy import DECAYS, FAMILIES

METRICS = {
    "val_loss": "held-out loss (nat)", "train_loss": "training loss (nat)", "val_accuracy": "held-out accuracy",
    "train_accuracy": "training accuracy", "cooldown_gain": "gain of the cooldown (nat)",
}  # fmt: skip
"""Metric -> how an axis names it, in the order in which they are drawn."""
DRAWN = ("val_loss", "train_loss")
"""What the gaps of the studies of schedules are drawn of."""
CAPTION = "small points: seeds; large: their mean; thick bars: ± 1 s.e.; thin bars: 95 % interval (t); dotted: null"
REFERENCE = "black"
SPREAD = 0.7
"""Width of the places that stand beside each other at one tick, of the distance of two ticks."""


def study(ds: xr.Dataset) -> Figure:
    """The picture of the study of real runs that a dataset says it is; one of all gaps for a study unknown here.

    Raises:
        InputError: not the dataset of a study of real runs.
    """
    if "outcome" not in ds:
        raise InputError("studies of real runs store their values as outcome; this dataset has none")
    name = json.loads(ds.attrs.get("config", "{}")).get("study", "")
    figure = PICTURES.get(name, gaps)(ds)
    figure.suptitle(ds.attrs.get("title", ""), fontsize=11)
    if not figure.legends:
        figure.supxlabel(CAPTION, fontsize=8, color=GREY)
    return figure


# --- schedules -------------------------------------------------------------------------------------------------------
def wsd_vs_cosine(ds: xr.Dataset) -> Figure:
    """Curves of WSD at every cooldown and of cosine, and how far each is from cosine by the length of its cooldown."""
    metrics = _metrics(ds, DRAWN)
    figure = _figure((12.5, 3.4 + 2.4 * len(metrics)))
    halves = figure.subfigures(1, 2, width_ratios=(1.15, 1.0))
    loss, rate = halves[0].subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _curves(loss, rate, ds)
    axes = halves[1].subplots(len(metrics), 1, squeeze=False, sharex=True)[:, 0]
    for axis, metric, colour in zip(axes, metrics, CYCLE, strict=False):
        plans = _compared(ds)
        _gaps(axis, ds, plans, metric, ds["plan_cooldown"].sel(plan=plans).to_numpy(), colour, connect=True)
        _match(axis, ds, metric, colour)
        axis.set_ylabel(f"{METRICS.get(metric, metric)}\nminus that of cosine")
        _zero(axis, "null: as cosine")
    axes[-1].set(xlabel="cooldown, as a fraction of the run", xlim=(0, None))
    return figure


def _curves(loss: Axes, rate: Axes, ds: xr.Dataset) -> None:
    """Held-out loss of every plan, seeds thin and means thick, over the rates."""
    compared = _compared(ds)
    colours = dict(zip(compared, _sequence(ds["plan_cooldown"].sel(plan=compared).to_numpy()), strict=True))
    for plan in ds["plan"].to_numpy().tolist():
        one, colour = ds.sel(plan=plan), colours.get(plan, REFERENCE)
        if not _has(one, "val_loss"):
            continue
        seeds = [_kept(one.isel(seed=k), "val_loss", "eval_step") for k in range(ds.sizes["seed"])]
        family(loss, [line for line in seeds if len(line[0])], colour, plan, lw=1.4)
        if "plan_lr" in ds:
            rate.plot(*_kept(one, "plan_lr", "eval_step"), color=colour, lw=1.2)
    later = ds["val_loss"].where(ds["eval_step"] > 0.1 * ds["eval_step"].max()).to_numpy() if "val_loss" in ds else []
    _limits(loss, later)
    loss.set(ylabel="held-out loss (nat)", title="Mean over seeds, and each seed (thin)")
    rate.set(xlabel="update", ylabel="learning rate", ylim=(0, None))
    for axis in (loss, rate):
        _bare(axis)
    loss.legend(**LEGEND, ncols=2)


def _match(axis: Axes, ds: xr.Dataset, metric: str, colour: str) -> None:
    """The shortest cooldown that matches cosine."""
    if "match_fraction" not in ds:
        return
    found, error, low, high = (
        float(ds[f"match_fraction{e}"].sel(metric=metric)) for e in ("", "_error", "_low", "_high")
    )
    if np.isfinite(found):
        axis.axvline(found, color=colour, lw=1.0, ls="--", label=f"matches at {with_error(found, error)}")
        if np.isfinite(low) and np.isfinite(high):
            axis.axvspan(low, high, color=colour, alpha=0.1, lw=0)
    else:
        axis.plot([], [], lw=0, label="matched by none")


def wsd_s(ds: xr.Dataset) -> Figure:
    """Loss of every family's decayed checkpoints under both accountings, and how far each is from that of WSD."""
    columns = ds["accounting"].to_numpy().tolist()
    figure = _figure((12.0, 7.6))
    axes: Any = figure.subplots(2, len(columns), squeeze=False, sharey="row")
    for (upper, lower), accounting in zip(axes.T, columns, strict=True):
        at = ds.sel(accounting=accounting)
        names = at["family"].to_numpy().tolist()
        for place, (name, colour) in zip(_beside(len(names)), _family_colours(names), strict=True):
            one = at.sel(family=name)
            label = f"{name}, {int(one['family_updates'])} updates in all" if "family_updates" in ds else name
            error = one["checkpoint_loss_error"].to_numpy()
            _mean(upper, one["checkpoint_updates"], one["checkpoint_loss"], error, None, colour, label, connect=True)
            number_of = one["checkpoint"].to_numpy() + place
            _mean(lower, number_of, one["gap"], one["gap_error"].to_numpy(), None, colour, name)
            if "checkpoint_seed_loss" in ds:
                losses = one["checkpoint_seed_loss"].transpose("seed", "checkpoint").to_numpy()
                reference = at["checkpoint_seed_loss"].sel(family=names[0]).transpose("seed", "checkpoint").to_numpy()
                _seeds(upper, one["checkpoint_updates"].to_numpy(), losses, colour)
                _seeds(lower, number_of, losses - reference, colour)
        upper.set(title=f"Equal {accounting}", xlabel="updates on the path to the checkpoint")
        lower.set_xticks(at["checkpoint"].to_numpy())
        lower.set_xlabel("checkpoint")
        _bare(upper)
        upper.legend(**LEGEND)
        _zero(lower, f"null: as {names[0]}", legend=False)
    axes[0][0].set_ylabel("loss of the checkpoint (nat)")
    axes[1][0].set_ylabel(f"minus that of {ds['family'].to_numpy()[0]} (nat)")
    return figure


def _family_colours(names: Sequence[str]) -> list[tuple[str, str]]:
    rest = iter(c for c in CYCLE * len(names) if c not in FAMILIES.values())
    return [(name, FAMILIES.get(name) or next(rest)) for name in names]


def shapes(ds: xr.Dataset) -> Figure:
    """How far each decay shape is from linear, at each length of the cooldown and each peak rate."""
    metrics, plans = _metrics(ds, DRAWN), _compared(ds)
    lengths = sorted({round(float(c), 4) for c in ds["plan_cooldown"].sel(plan=plans).to_numpy()})
    rates = sorted({float(r) for r in ds["plan_peak"].sel(plan=plans).to_numpy()})
    named = list(dict.fromkeys(ds["plan_shape"].sel(plan=plans).to_numpy().tolist()))
    figure = _figure((2.4 + 5.0 * len(lengths), 1.4 + 3.2 * len(metrics)))
    axes: Any = figure.subplots(len(metrics), len(lengths), squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        for axis, length in zip(row, lengths, strict=True):
            for aside, shape in zip(_beside(len(named)), named, strict=True):
                here = [
                    p for p in plans
                    if ds["plan_shape"].sel(plan=p) == shape and abs(ds["plan_cooldown"].sel(plan=p) - length) < 1e-4
                ]  # fmt: skip
                places = np.array([rates.index(float(ds["plan_peak"].sel(plan=p))) for p in here]) + aside
                colour, _, marker = DECAYS.get(shape, (GREY, "-", "o"))
                _gaps(axis, ds, here, metric, places, colour, label=shape, marker=marker)
            axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            axis.xaxis.set_minor_locator(NullLocator())
            _zero(axis, "null: as linear", legend=False)
        row[0].set_ylabel(f"{METRICS.get(metric, metric)}\nminus that of linear")
    for axis, length in zip(axes[0], lengths, strict=True):
        axis.set_title(f"Cooldown {100 * length:g} % of the run")
    for axis in axes[-1]:
        axis.set_xlabel("peak learning rate")
    _legend_below(figure, axes[0])
    return figure


# --- anything against anything ---------------------------------------------------------------------------------------
def gaps(ds: xr.Dataset) -> Figure:
    """Every metric: the gap of each plan that is compared with another, one line of the picture for each plan."""
    plans, metrics = _compared(ds), _metrics(ds, tuple(METRICS))
    figure = _figure((1.8 + 3.6 * len(metrics), 1.6 + 0.34 * max(len(plans), 2)))
    axes: Any = figure.subplots(1, len(metrics), squeeze=False, sharey=True)
    place = np.arange(len(plans))
    for axis, metric in zip(axes[0], metrics, strict=True):
        _gaps(axis, ds, plans, metric, place, CYCLE[0], upright=False)
        axis.axvline(0, **NULL)
        axis.set_xlabel(f"{METRICS.get(metric, metric)},\nminus the reference")
        _bare(axis)
    against = ds["plan_against"].sel(plan=plans).to_numpy().tolist()
    told = [f"{plan} - {of}" for plan, of in zip(plans, against, strict=True)]
    axes[0][0].set_yticks(place, told, fontsize=8)
    axes[0][0].set_ylim(len(plans) - 0.5, -0.5)
    return figure


def _over(variable: str, words: str, logarithmic: bool) -> Callable[[xr.Dataset], Figure]:
    """A picture of a study that varies one number: metrics and gaps against it, coloured by what else varies."""

    def drawn(ds: xr.Dataset) -> Figure:
        metrics = _metrics(ds, DRAWN)
        figure = _figure((12.0, 1.4 + 3.2 * len(metrics)))
        axes: Any = figure.subplots(len(metrics), 2, squeeze=False, sharex=True)
        series = _series(ds, variable)
        for (outcome, gap), metric in zip(axes, metrics, strict=True):
            for (label, plans), colour in zip(series.items(), CYCLE * len(series), strict=False):
                at = ds.sel(plan=plans, metric=metric)
                x = at[variable].to_numpy().astype(float)
                _seeds(outcome, x, at["outcome"].transpose("seed", "plan").to_numpy(), colour)
                error = at["outcome_error"].to_numpy()
                _mean(outcome, x, at["outcome_mean"], error, None, colour, label, connect=True)
                compared = [p for p in plans if p in _compared(ds)]
                places = ds[variable].sel(plan=compared).to_numpy().astype(float)
                _gaps(gap, ds, compared, metric, places, colour, label=label, connect=True)
            outcome.set_ylabel(METRICS.get(metric, metric))
            gap.set_ylabel("minus the reference's")
            _bare(outcome)
            _zero(gap, "null: as the reference", legend=False)
        for axis in axes[-1]:
            axis.set_xlabel(words)
        if logarithmic and np.all(ds[variable].to_numpy() > 0):
            axes[0][0].set_xscale("log")
        _legend_below(figure, axes[0])
        return figure

    return drawn


def _series(ds: xr.Dataset, variable: str) -> dict[str, list[str]]:
    """Plans by what varies among them besides `variable`, in the order of that variable."""
    told = {
        "plan_arch": "",
        "plan_schedule": "",
        "plan_cooldown": "cooldown ",
        "plan_peak": "rate ",
        "plan_batch": "batch ",
    }
    varied = [v for v in told if v != variable and len({*ds[v].to_numpy().tolist()}) > 1]
    out: dict[str, list[str]] = {}
    for k in np.argsort(ds[variable].to_numpy(), kind="stable"):
        one = ds.isel(plan=k)
        values = [(told[v], one[v].item()) for v in varied if v != "plan_cooldown" or one["plan_schedule"] != "cosine"]
        label = ", ".join(f"{words}{number(v, 3) if isinstance(v, float) else v}" for words, v in values)
        out.setdefault(label or "all", []).append(str(one["plan"].item()))
    return out


# --- parts -----------------------------------------------------------------------------------------------------------
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
    line = {"color": colour, "ls": "-" if connect else "none", "lw": 1.1}
    axis.errorbar(*pair, **{bars: error}, marker=marker, ms=5.5, elinewidth=2.6, capsize=0, label=label or None, **line)
    if ends is not None:
        reach = np.nan_to_num(np.stack([y - ends[0][order], ends[1][order] - y]))
        thin = {bars: np.maximum(reach, 0.0), "ls": "none", "color": colour}
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
    style = {"loc": "outside lower center", "ncols": min(len(told), 6), "frameon": False, "fontsize": 9}
    style |= {"title": CAPTION, "title_fontsize": 8}
    figure.legend(list(told.values()), list(told), **style)


def _limits(axis: Axes, values: ArrayLike) -> None:
    """Limits around finite values, where there are any that differ."""
    finite = np.asarray(values, dtype=float).ravel()
    finite = finite[np.isfinite(finite)]
    if len(finite) and np.ptp(finite) > 0:
        axis.set_ylim(finite.min() - 0.05 * np.ptp(finite), finite.max() + 0.15 * np.ptp(finite))


PICTURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "wsd-vs-cosine": wsd_vs_cosine,
    "wsd-s": wsd_s,
    "shapes": shapes,
    "width": _over("plan_parameters", "trainable parameters", True),
    "noise": _over("plan_batch", "images or sequences per update", True),
    "to-convergence": _over("plan_updates", "updates of the run", True),
    "architectures": gaps,
}
"""Picture by study."""
