"""Several training runs on one figure: the loss curves of schedules over seeds, and the branches of one trunk.

As everywhere, what is drawn is stored; smoothing apart, nothing is computed but means over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from . import compare
from ._typing import ArrayLike, FloatArray
from .errors import InputError
from .plots import CYCLE, GREY, _around, _figure, _smooth
from .plots_instruments import LEGEND, NULL
from .plots_panels import _has, _kept, _units
from .segments import Phase

THIN: dict[str, Any] = {"lw": 0.6, "alpha": 0.45}
THICK: dict[str, Any] = {"lw": 1.9}
SHOWN_BEFORE = 0.6
"""Of a trunk as much as this times the longest branch is shown."""
APART = 5
"""Lengths of cooldowns that differ by more than this factor stand on a logarithmic axis."""
STYLES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":", (0, (8, 3)), (0, (1, 1)), (0, (6, 1, 1, 1)))


def training_curves(runs: compare.Runs) -> Figure:
    """Held-out loss, training loss and rate against the update; several seeds of one run thin, their mean thick.

    Raises:
        InputError: none of the runs is a training run.
    """
    groups = compare.repetitions(runs)
    if not groups:
        raise InputError("curves are drawn of training runs, which have train_loss; none of these datasets does")
    figure = _figure((10.0, 7.6))
    axes: Any = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 2.2, 1.0))
    held_out, training, rate = axes
    for group, colour in zip(groups, CYCLE * len(groups), strict=False):
        label, seeds = group[0][0], [ds for _, ds in group]
        if len(group) > 1:
            label += f" and {len(group) - 1} more, mean"
        family(training, [_smooth(ds["train_loss"].to_numpy())[::-1] for ds in seeds], colour, label)
        family(held_out, [_kept(ds, "val_loss", "eval_step") for ds in seeds if _has(ds, "val_loss")], colour, label)
        rate.plot(seeds[0]["step"], seeds[0]["lr"], color=colour, lw=1.3)
    for axis, words in ((held_out, "held-out loss"), (training, "training loss, running mean")):
        axis.set_ylabel(words + _units(groups[0][0][1], "train_loss"))
        _show_later(axis)
        _tidy(axis)
    rate.set(xlabel="update", ylabel="learning rate", ylim=(0, None), xlim=(0, None))
    _tidy(rate)
    return figure


def family(axis: Axes, lines: Sequence[tuple[ArrayLike, ArrayLike]], colour: str, label: str, **style: Any) -> None:
    """Curves of several seeds: each thin, and their mean thick where they have the same places; one alone is thick."""
    told = {**THICK, "color": colour, "label": label, **style}
    if len(lines) == 1:
        axis.plot(*lines[0], **told)
        return
    for x, y in lines:
        axis.plot(x, y, color=colour, **THIN)
    if lines and all(np.array_equal(x, lines[0][0]) for x, _ in lines):
        axis.plot(lines[0][0], np.mean([np.asarray(y, dtype=float) for _, y in lines], axis=0), **told)


def fan(runs: compare.Runs) -> Figure:
    """Branches of one trunk over each other: held-out and training loss, rate, and the end of each by its length.

    Raises:
        InputError: the runs do not all share a stable phase, as `riverval.compare.fans` finds it.
    """
    found = compare.fans(runs)
    if len(found) != 1 or len(found[0][1]) != len(runs):
        raise InputError(
            f"a fan is drawn of runs that share a trunk: equal rates and losses from the first update into a stable "
            f"phase; of the {len(runs)} given {len(found[0][1]) if found else 0} do"
        )
    leave, branches = found[0]
    named = dict(branches)
    figure = _figure((12.0, 7.2))
    grid = figure.add_gridspec(3, 2, width_ratios=(1.9, 1.0), height_ratios=(2.0, 2.0, 1.0))
    held_out, training, rate = (figure.add_subplot(grid[k, 0]) for k in range(3))
    styles = dict(zip(named, _styles(list(named.values())), strict=True))
    for label, ds in branches:
        style = {**styles[label], "lw": 1.3}
        if _has(ds, "val_loss"):
            _after(held_out, *_kept(ds, "val_loss", "eval_step"), leave, {**style, "marker": ".", "ms": 5})
        smooth, centre = _smooth(ds["train_loss"].to_numpy())
        _after(training, centre, smooth, leave, style)
        _after(rate, ds["step"].to_numpy(), ds["lr"].to_numpy(), leave - 1, style)  # the last update that all share
    # Branches may have been evaluated at more states of the trunk than the run that they leave.
    most = max(named.values(), key=lambda ds: int((ds["eval_step"] <= leave).sum()) if "eval_step" in ds else 0)
    _trunk(held_out, training, rate, most, leave)
    last = max(ds.sizes["step"] for ds in named.values())
    for axis, words in (
        (held_out, "held-out loss"),
        (training, "training loss,\nrunning mean"),
        (rate, "learning rate"),
    ):
        axis.axvline(leave, color=GREY, lw=0.8)
        axis.set_xlim(max(0.0, leave - SHOWN_BEFORE * (last - leave)), last + 0.01 * (last - leave))
        axis.set_ylabel(words)
        _tidy(axis, False)
    for axis in (held_out, training):
        _fit_to_view(axis)
        axis.tick_params(labelbottom=False)
    rate.set(xlabel="update", ylim=(0, None))
    held_out.set_title(f"{len(branches)} branches; the first rate that differs is that of update {leave}", fontsize=10)
    _ends(figure.add_subplot(grid[:2, 1]), branches, styles)
    _decays(figure.add_subplot(grid[2, 1]), branches, styles)
    return figure


def _after(axis: Axes, x: ArrayLike, y: ArrayLike, leave: int, style: Mapping[str, Any]) -> None:
    """A branch from where the first one leaves the trunk."""
    x, y = np.asarray(x), np.asarray(y)
    first = max(0, int(np.searchsorted(x, leave, side="right")) - 1)  # the last place on the trunk joins them
    axis.plot(x[first:], y[first:], **style)


def _trunk(held_out: Axes, training: Axes, rate: Axes, ds: xr.Dataset, leave: int) -> None:
    style: dict[str, Any] = {"color": GREY, "lw": 1.6, "label": "trunk"}
    smooth, centre = _smooth(ds["train_loss"].to_numpy())
    pairs = [(training, centre, smooth), (rate, ds["step"].to_numpy()[:leave], ds["lr"].to_numpy()[:leave])]
    if _has(ds, "val_loss"):
        pairs.append((held_out, *_kept(ds, "val_loss", "eval_step")))
    for axis, x, y in pairs:
        axis.plot(x[x <= leave], y[x <= leave], **style)


def _ends(axis: Axes, branches: compare.Runs, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Held-out loss at the end of each branch against the length of its cooldown, and what the river alone gives."""
    lengths: set[int] = set()
    of_one_start: dict[tuple[str, int], list[tuple[int, float, float]]] = {}
    for label, ds in branches:
        window = compare.last_window(ds, Phase.COOLDOWN)
        if window is not None and _has(ds, "val_loss"):
            gain, length = compare.cooldown_gain(ds), window[1] - window[0]
            river = np.nan if gain is None else gain.start - gain.river
            key = (styles[label]["color"], window[0])
            of_one_start.setdefault(key, []).append((length, float(ds["val_loss"][-1]), river))
            lengths.add(length)
    for (colour, _), points in of_one_start.items():
        length, end, river = np.array(sorted(points)).T
        axis.plot(length, end, color=colour, marker="o", ms=5, lw=1.0)
        axis.plot(length, river, color=colour, marker="_", ms=10, mew=1.6, ls=":", lw=1.2)
    if any(np.isfinite(river) for points in of_one_start.values() for _, _, river in points):
        axis.plot([], [], label="null: the river alone, from the same start", marker="_", ms=10, mew=1.6, **NULL)
    axis.set(xlabel="updates of the cooldown", ylabel="held-out loss at the end")
    axis.set_title("What each cooldown ends with", fontsize=10)
    if lengths and min(lengths) > 0 and max(lengths) > APART * min(lengths):
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(sorted(lengths), [str(length) for length in sorted(lengths)])
    _tidy(axis)


def _decays(axis: Axes, branches: compare.Runs, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """The legend: what each branch is."""
    axis.set_axis_off()
    handles = [
        axis.plot([], [], **{**styles[label], "lw": 1.6, "label": _told(label, ds)})[0] for label, ds in branches
    ]
    columns = 1 if len(handles) <= 8 else 2
    axis.legend(handles=handles, loc="upper left", ncols=columns, **{**LEGEND, "fontsize": 7})


def _told(label: str, ds: xr.Dataset) -> str:
    window = compare.last_window(ds, Phase.COOLDOWN)
    return f"{label}: no cooldown" if window is None else f"{label}: {_decay(ds)}, {window[1] - window[0]}"


def _decay(ds: xr.Dataset) -> str:
    """Name of the last decay shape that the schedule of a run tells of; of the schedule where it tells of none."""
    described = json.loads(ds.attrs.get("config", "{}")).get("schedule") or {}
    shapes = [*_shapes(described)]
    return shapes[-1] if shapes else str(described.get("name", "cooldown"))


def _shapes(described: Any) -> Iterator[str]:
    inner = described.values() if isinstance(described, dict) else described if isinstance(described, list) else ()
    for part in inner:
        yield from _shapes(part)
    if isinstance(described, dict) and isinstance(described.get("shape"), dict):
        yield str(described["shape"].get("name"))


def _styles(branches: Sequence[xr.Dataset]) -> list[dict[str, Any]]:
    """A colour by decay shape, and a line by length among those of one shape."""
    shapes = list(dict.fromkeys(_decay(ds) for ds in branches))
    windows = [compare.last_window(ds, Phase.COOLDOWN) or (0, 0) for ds in branches]
    lengths = sorted({stop - start for start, stop in windows}, reverse=True)
    return [
        {
            "color": CYCLE[shapes.index(_decay(ds)) % len(CYCLE)],
            "ls": STYLES[lengths.index(stop - start) % len(STYLES)],
        }
        for ds, (start, stop) in zip(branches, windows, strict=True)
    ]


# --- parts -----------------------------------------------------------------------------------------------------------
def _tidy(axis: Axes, legend: bool = True) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    if legend and axis.get_legend_handles_labels()[1]:
        axis.legend(**LEGEND)


def _show_later(axis: Axes) -> None:
    """Leave out the first descent, a tenth of the run."""
    ends = [np.asarray(line.get_xdata(), dtype=float) for line in axis.lines]
    last = max((float(x.max()) for x in ends if len(x)), default=0.0)
    _limits(axis, 0.1 * last, last)


def _fit_to_view(axis: Axes) -> None:
    """Limits of the losses that are in view, from the first to the last update shown."""
    _limits(axis, *axis.get_xlim())


def _limits(axis: Axes, first: float, last: float) -> None:
    seen: list[FloatArray] = []
    for line in axis.lines:
        x, y = (np.asarray(v, dtype=float) for v in (line.get_xdata(), line.get_ydata()))
        if x.shape == y.shape and len(x) > 2:
            seen.append(y[(x >= first) & (x <= last) & np.isfinite(y)])
    if seen:
        _around(axis, np.concatenate(seen))
