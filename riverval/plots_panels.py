"""What pictures of runs are made of: a page of panels, and the marks that all panels share.

Nulls are dotted grey, thresholds dashed black, error bars two standard errors unless the legend says otherwise. What
was not measured is nan in a dataset and has no point in the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure

from ._typing import FloatArray
from .plots import BLUE, CYCLE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, _figure, _shade
from .plots_instruments import BARS, LEGEND, NULL

Draw = Callable[[Axes, xr.Dataset], None]
Panels = Mapping[str, tuple[tuple[str, ...], Draw]]
"""Panel -> the variables of which it needs at least one, and how it is drawn."""

THRESHOLD: dict[str, Any] = {"color": "black", "ls": "--", "lw": 1.0}
WINDOW_COLOURS = {
    "stable": BLUE, "cooldown": RED, "late stable": SKY, "early cooldown": ORANGE, "matched stable": GREEN,
    "earlier stable": PURPLE,
}  # fmt: skip
FAR = 6.0
"""A threshold this many times above everything measured is named in the legend instead of drawn."""
BEHIND: dict[str, Any] = {"frameon": True, "edgecolor": "none", "framealpha": 0.75, "fancybox": False, "borderpad": 0.2}
"""What stands behind the words of a legend that lines may cross."""
SEQUENCE = "viridis"
"""Colours of what has an order, such as bins of predictability: dark is small."""
DARKEST, LIGHTEST = 0.0, 0.88
"""The part of that map that is told from white paper."""
LETTERS = 64
"""What fits into one line of a legend in a panel of half the width."""


def page(ds: xr.Dataset, panels: Panels) -> Figure | None:
    """All the panels whose numbers the dataset has: the first over the whole width, two in a row after it.

    Returns:
        The figure; None where it would be empty.
    """
    names = [name for name in panels if _measured(ds, panels[name][0])]
    if not names:
        return None
    wide, rest = names[:1], names[1:]
    rows = 1 + (len(rest) + 1) // 2
    figure = _figure((11.0, 3.3 + 2.75 * (rows - 1)))
    grid = figure.add_gridspec(rows, 2, height_ratios=[1.2] + [1.0] * (rows - 1))
    places = [grid[0, :], *(grid[1 + k // 2, k % 2] for k in range(len(rest)))]
    for place, name in zip(places, wide + rest, strict=True):
        _panel(figure.add_subplot(place), ds, name, panels[name][1], lines_of=3 if name in wide else 2)
    figure.suptitle(ds.attrs.get("title", ""))
    return figure


def _panel(axis: Axes, ds: xr.Dataset, name: str, draw: Draw, lines_of: int = 2) -> None:
    """One panel, with a legend above what it draws that has at most `lines_of` columns."""
    draw(axis, ds)
    axis.set_title(axis.get_title() or name.capitalize())
    axis.spines[["top", "right"]].set_visible(False)
    labels = axis.get_legend_handles_labels()[1]
    if labels:
        # A panel of the whole width holds twice the letters and more.
        columns = max(1, min(lines_of, (lines_of - 1) * LETTERS // max(map(len, labels))))
        _make_room(axis, 0.04 + 0.08 * -(-len(labels) // columns))
        style = {**LEGEND, **BEHIND, "fontsize": 7.5, "columnspacing": 1.2, "handlelength": 1.6}
        axis.legend(loc="upper left", ncols=columns, **style).set_in_layout(False)


def _make_room(axis: Axes, part: float) -> None:
    """Raise the top, so that this part of the panel is above what is drawn: the legend stands there."""
    low, high = axis.get_ylim()
    share = part / (1 - part)
    if axis.get_yscale() == "log":
        axis.set_ylim(low, high * (high / low) ** share)
    else:
        axis.set_ylim(low, high + share * (high - low))


def _measured(ds: xr.Dataset, variables: tuple[str, ...]) -> bool:
    return any(_has(ds, name) for name in variables)


def _states(axis: Axes, ds: xr.Dataset) -> None:
    """An axis of states with the phases behind it."""
    if "phase" in ds.coords:
        _shade(axis, ds["phase"].to_numpy())
    axis.set_xlabel("state")


def _has(ds: xr.Dataset, name: str) -> bool:
    return name in ds and bool(np.isfinite(ds[name].to_numpy()).any())


def _logarithmic(axis: Axes) -> None:
    """A logarithmic y axis where a line has anything to show on it."""
    if any(np.any(np.asarray(line.get_ydata(), dtype=float) > 0) for line in axis.lines):
        axis.set_yscale("log")


def _units(ds: xr.Dataset, name: str) -> str:
    """Units as they stand behind a label; nothing where there are none."""
    units = ds[name].attrs.get("units", "1") if name in ds else "1"
    return "" if units == "1" else f" ({units})"


def _colours(windows: Sequence[str]) -> dict[str, str]:
    """Colour by window or phase, the same in all panels: what is stable is bluish, what cools down reddish."""
    rest = iter(c for c in CYCLE * len(windows) if c not in WINDOW_COLOURS.values())
    return {name: WINDOW_COLOURS.get(name) or next(rest) for name in windows}


def _sequence(values: FloatArray) -> list[str]:
    """A colour for each of several ordered values."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    place = Normalize(low, high if high > low else low + 1.0)(np.nan_to_num(values, nan=low))
    return [to_hex(colormaps[SEQUENCE](DARKEST + (LIGHTEST - DARKEST) * float(p))) for p in place]


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


def _band(axis: Axes, ds: xr.Dataset, spread: str, label: str, colour: str = GREY) -> None:
    """A null whose mean is 0."""
    if _has(ds, spread):
        place, half = _kept(ds, spread)
        axis.fill_between(place, -2 * half, 2 * half, color=colour, alpha=0.25, lw=0, label=label)
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
