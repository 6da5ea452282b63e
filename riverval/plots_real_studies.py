"""The pictures of the studies of real runs, one function each, drawn from the study's dataset alone.

Marks and nulls are those of `riverval.plots_gaps`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullLocator

from ._format import number, with_error
from ._typing import FloatArray, NDArray
from .errors import InputError
from .plots import CYCLE, GREY, _around, _figure
from .plots_branches import family
from .plots_gaps import (
    CAPTION,
    DRAWN,
    METRICS,
    _bare,
    _beside,
    _compared,
    _gaps,
    _legend_below,
    _mean,
    _metrics,
    _seeds,
    _zero,
)
from .plots_instruments import LEGEND, NULL
from .plots_panels import _has, _kept, _sequence
from .plots_toy import DECAYS, FAMILIES
from .schedules import schedule_from_dict

REFERENCE = "black"
GAINS = {"gain": "cooldown_gain", "hill": "cooldown_hill"}
"""What the powers of the noise study are of, and the metric that each was fitted to."""
DECADES = 100.0
"""Positive values that differ by a larger factor are drawn on a logarithmic axis."""
FEW = 3
"""So many curves have colours that are easily told apart, more have those of an order."""


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
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1.0))
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
    ordered = _sequence(ds["plan_cooldown"].sel(plan=compared).to_numpy())
    colours = dict(zip(compared, ordered if len(compared) > FEW else CYCLE, strict=False))
    for plan in ds["plan"].to_numpy().tolist():
        one, colour = ds.sel(plan=plan), colours.get(plan, REFERENCE)
        if not _has(one, "val_loss"):
            continue
        seeds = [_kept(one.isel(seed=k), "val_loss", "eval_step") for k in range(ds.sizes["seed"])]
        family(loss, [line for line in seeds if len(line[0])], colour, plan, lw=1.4)
        rate.plot(*_rates(ds, plan), color=colour, lw=1.2)
    if "val_loss" in ds:
        _around(loss, ds["val_loss"].where(ds["eval_step"] > 0.1 * ds["eval_step"].max()).to_numpy())
    loss.set(ylabel="held-out loss (nat)", title="Mean over seeds, and each seed (thin)")
    rate.set(xlabel="update", ylabel="learning rate", ylim=(0, None))
    for axis in (loss, rate):
        _bare(axis)
    if loss.get_legend_handles_labels()[1]:
        loss.legend(**LEGEND, ncols=2)


def _rates(ds: xr.Dataset, plan: str) -> tuple[NDArray[Any], FloatArray]:
    """Updates and their rates by the configuration of the plan; those stored at the evaluations where it has none."""
    try:
        rates = schedule_from_dict(json.loads(ds.attrs["config"])["plans"][plan]["schedule"]).values()
    except (KeyError, InputError):  # another version of riverval may have had other schedules
        return _kept(ds.sel(plan=plan), "plan_lr", "eval_step") if "plan_lr" in ds else (np.empty(0), np.empty(0))
    return np.arange(len(rates)), rates


def _at_most(error: float) -> str:
    """Where even the shortest cooldown matches, its length has no error and is only a bound."""
    return "" if np.isfinite(error) else "most "


def _match(axis: Axes, ds: xr.Dataset, metric: str, colour: str) -> None:
    """The shortest cooldown that matches cosine."""
    if "match_fraction" not in ds:
        return
    found, error, low, high = (
        float(ds[f"match_fraction{e}"].sel(metric=metric)) for e in ("", "_error", "_low", "_high")
    )
    if np.isfinite(found):
        axis.axvline(
            found, color=colour, lw=1.0, ls="--", label=f"matches at {_at_most(error)}{with_error(found, error)}"
        )
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
    of = ds.sel(plan=plans)
    columns = (of["plan_shape"].to_numpy().tolist(), of["plan_cooldown"].round(4).to_numpy().tolist(), of["plan_peak"])
    told = dict(zip(plans, zip(*columns[:2], columns[2].to_numpy().tolist(), strict=True), strict=True))
    named = list(dict.fromkeys(columns[0]))
    lengths, rates = (sorted({row[k] for row in told.values()}) for k in (1, 2))
    figure = _figure((2.4 + 5.0 * len(lengths), 1.4 + 3.2 * len(metrics)))
    axes: Any = figure.subplots(len(metrics), len(lengths), squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        for axis, length in zip(row, lengths, strict=True):
            for aside, shape in zip(_beside(len(named)), named, strict=True):
                here = [p for p in plans if told[p][:2] == (shape, length)]
                places = np.array([rates.index(told[p][2]) for p in here]) + aside
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


# --- acceptance ------------------------------------------------------------------------------------------------------
def paper(ds: xr.Dataset) -> Figure:
    """Curves of WSD and cosine, every seed thin and the means thick, and the acceptance tests beside their nulls."""
    figure = _figure((14.5, 7.4))
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.25))
    loss, rate = halves[0].subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _curves(loss, rate, ds)
    _criteria(halves[1], ds)
    return figure


def architectures(ds: xr.Dataset) -> Figure:
    """How far WSD is from cosine for each architecture, and the acceptance tests of each."""
    plans, count = _compared(ds), ds.sizes.get("criterion", 0)
    figure = _figure((15.0, max(3.0, 1.2 + count * (0.3 + 0.2 * len(plans)))))
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.35))
    _gap_columns(halves[0], ds, _metrics(ds, DRAWN))
    _criteria(halves[1], ds)
    return figure


def _criteria(figure: SubFigure, ds: xr.Dataset) -> None:
    """A row for each acceptance test: value, interval and seeds of every plan, null and bound, and the verdicts."""
    if "criterion" not in ds.dims:
        return
    tested = [p for p in _compared(ds) if _has(ds.sel(plan=p), "criterion_value")]
    names = [str(c) for c in ds["criterion"].to_numpy()]
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        for k, (plan, colour) in enumerate(zip(tested, CYCLE * len(tested), strict=False)):
            one, place = ds.sel(plan=plan, criterion=name), np.array([float(k)])
            if "criterion_seed_value" in ds:
                _seeds(axis, place, one["criterion_seed_value"].to_numpy()[:, None], colour, False)
            error = one["criterion_error"].to_numpy().reshape(1)
            ends = np.stack([one["criterion_low"], one["criterion_high"]]).reshape(2, 1)
            _mean(axis, place, one["criterion_value"].to_numpy().reshape(1), error, ends, colour, plan, upright=False)
            axis.annotate(
                _verdict(one), (1.01, k), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour
            )
            axis.plot(_level(one["criterion_null"]), (k - 0.45, k + 0.45), **NULL)
            if one["criterion_bound"] != one["criterion_null"]:
                axis.plot(_level(one["criterion_bound"]), (k - 0.45, k + 0.45), color="black", ls="--", lw=1.0)
        if not _has(ds.sel(criterion=name), "criterion_value"):
            axis.set_xticks([])
        axis.set_title(name, fontsize=8.5, loc="left", pad=2)
        axis.set(yticks=[], ylim=(max(len(tested), 1) - 0.4, -0.6))
        axis.tick_params(labelsize=7.5)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].plot([], [], label="null", **NULL)
    axes[-1].plot([], [], color="black", ls="--", lw=1.0, label="bound, where not the null")
    handles, labels = axes[-1].get_legend_handles_labels()
    told = "verdict, and the seeds that hold by themselves"
    figure.legend(handles, labels, loc="outside lower center", ncols=5, title=told, title_fontsize=8, **LEGEND)


def _level(value: xr.DataArray) -> tuple[float, float]:
    return float(value), float(value)


def _verdict(one: xr.Dataset) -> str:
    """The verdict over seeds, and of how many seeds the statement holds by itself."""
    told = str(one["criterion_verdict"].item())
    if "criterion_seed_value" not in one or not _has(one, "criterion_seed_value"):
        return told
    return f"{told} ({int(one['criterion_held'])} of {int(np.isfinite(one['criterion_seed_value']).sum())})"


# --- anything against anything ---------------------------------------------------------------------------------------
def gaps(ds: xr.Dataset) -> Figure:
    """Every metric: the gap of each plan that is compared with another, one line of the picture for each plan."""
    metrics = _metrics(ds, tuple(METRICS))
    figure = _figure((1.8 + 3.6 * len(metrics), 1.6 + 0.34 * max(len(_compared(ds)), 2)))
    _gap_columns(figure, ds, metrics)
    return figure


def _gap_columns(figure: Figure | SubFigure, ds: xr.Dataset, metrics: Sequence[str]) -> None:
    plans = _compared(ds)
    axes: Any = figure.subplots(1, len(metrics), squeeze=False, sharey=True)
    place = np.arange(len(plans), dtype=np.float64)
    for axis, metric in zip(axes[0], metrics, strict=True):
        _gaps(axis, ds, plans, metric, place, CYCLE[0], upright=False)
        axis.axvline(0, **NULL)
        axis.set_xlabel(f"{METRICS.get(metric, metric)},\nminus the reference")
        _bare(axis)
    against = ds["plan_against"].sel(plan=plans).to_numpy().tolist()
    told = [f"{plan}\nminus {of}" for plan, of in zip(plans, against, strict=True)]
    axes[0][0].set_yticks(place, told, fontsize=8)
    axes[0][0].set_ylim(len(plans) - 0.5, -0.5)


def _over(variable: str, words: str, wanted: Sequence[str]) -> Callable[[xr.Dataset], Figure]:
    """A picture of a study that varies one number: metrics and gaps against it, coloured by what else varies."""

    def drawn(ds: xr.Dataset) -> Figure:
        metrics = _metrics(ds, wanted)
        figure = _figure((12.0, 1.4 + 2.9 * len(metrics)))
        axes: Any = figure.subplots(len(metrics), 2, squeeze=False, sharex=True)
        for (outcome, gap), metric in zip(axes, metrics, strict=True):
            _values_and_gaps(outcome, gap, ds, variable, metric)
        for axis in axes[-1]:
            axis.set_xlabel(words)
        if np.isfinite(ds["outcome_mean"].to_numpy()).any() and np.all(ds[variable].to_numpy() > 0):
            _logarithmic(axes[0][0], sorted({*ds[variable].to_numpy().tolist()}))
        _legend_below(figure, axes.ravel())
        return figure

    return drawn


def _values_and_gaps(outcome: Axes, gap: Axes, ds: xr.Dataset, variable: str, metric: str) -> None:
    series = _series(ds, variable)
    for (label, plans), colour in zip(series.items(), CYCLE * len(series), strict=False):
        at = ds.sel(plan=plans, metric=metric)
        x = at[variable].to_numpy().astype(float)
        _seeds(outcome, x, at["outcome"].transpose("seed", "plan").to_numpy(), colour)
        _mean(outcome, x, at["outcome_mean"], at["outcome_error"].to_numpy(), None, colour, label, connect=True)
        compared = [p for p in plans if p in _compared(ds)]
        places = ds[variable].sel(plan=compared).to_numpy().astype(float)
        _gaps(gap, ds, compared, metric, places, colour, label=label, connect=True)
    outcome.set_ylabel(METRICS.get(metric, metric))
    gap.set_ylabel("minus the reference's")
    _bare(outcome)
    _zero(gap, "null: as the reference", legend=False)
    means = _finite(ds["outcome_mean"].sel(metric=metric))
    differences = _finite(ds["outcome_gap"].sel(metric=metric, plan=_compared(ds)))
    if means.size and np.all(means > 0) and means.max() > DECADES * means.min():
        outcome.set_yscale("log")
        if np.any(differences):
            gap.set_yscale("symlog", linthresh=np.abs(differences[differences != 0]).min())
    if not differences.size:
        gap.text(0.5, 0.5, "the references have none", transform=gap.transAxes, ha="center", va="bottom", color=GREY)
        gap.set_yticks([])


def _finite(values: xr.DataArray) -> FloatArray:
    found: FloatArray = values.to_numpy()
    return found[np.isfinite(found)]


def _logarithmic(axis: Axes, places: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each place that was measured."""
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(places, [number(place, 3) for place in places])


def noise(ds: xr.Dataset) -> Figure:
    """Loss and gain of the cooldown against the batch, a line for each rate, and the powers that the gains follow."""
    figure = _over("plan_batch", "images or sequences per update", ("val_loss", *GAINS.values()))(ds)
    by_name = {axis.get_ylabel(): axis for axis in figure.axes}
    for of, metric in GAINS.items():
        if METRICS[metric] not in by_name or not _has(ds, f"{of}_rate_exponent"):
            continue
        rate, batch = (
            with_error(float(ds[f"{of}_{by}_exponent"]), float(ds[f"{of}_{by}_exponent_error"]))
            for by in ("rate", "batch")
        )
        null = number(float(ds["gain_batch_exponent_expected"]), 2)
        told = f"{of} as rate^({rate}) batch^({batch});\nnoise of a quadratic: rate^1 batch^({null})"
        by_name[METRICS[metric]].set_title(told, fontsize=8.5)
    return figure


def _series(ds: xr.Dataset, variable: str) -> dict[str, list[str]]:
    """Plans by what varies among them besides `variable`, in the order of that variable."""
    told = {"plan_arch": "", "plan_schedule": "", "plan_peak": "rate ", "plan_batch": "batch "}
    varied = [v for v in told if v != variable and len({*ds[v].to_numpy().tolist()}) > 1]
    out: dict[str, list[str]] = {}
    for k in np.argsort(ds[variable].to_numpy(), kind="stable"):
        one = ds.isel(plan=k)
        values = [(told[v], one[v].item()) for v in varied]
        label = ", ".join(f"{words}{number(v, 2) if isinstance(v, float) else v}" for words, v in values)
        out.setdefault(label or "all", []).append(str(one["plan"].item()))
    return out


PICTURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "wsd-vs-cosine": wsd_vs_cosine,
    "wsd-s": wsd_s,
    "shapes": shapes,
    "paper": paper,
    "architectures": architectures,
    "width": _over("plan_parameters", "trainable parameters", (*DRAWN, "cooldown_gain")),
    "to-convergence": _over("plan_updates", "updates of the run", (*DRAWN, "cooldown_gain")),
    "noise": noise,
}
"""Picture by study."""
