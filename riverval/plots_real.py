"""The pictures of a real run: what arXiv:2601.09000 shows on one page, what stands in its appendix on another.

Each number stands beside its null. What a watched run stores under the same name is drawn by the panels of
`riverval.plots_observer`; here is what only a run of the real laboratory has. Nulls are dotted, thresholds dashed,
error bars and bands two standard errors unless the legend says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._format import number
from ._typing import FloatArray, NDArray
from .errors import InputError
from .plots import BLUE, GREY, ORANGE, RED, SKY, _smooth, write
from .plots_instruments import BARS, NULL
from .plots_observer import PANELS as OBSERVED
from .plots_panels import Draw, Panels, _colours, _has, _kept, _measure, _sequence, _states, _units, page
from .segments import Phase

PICTURE, APPENDIX = "real.png", "real-appendix.png"
GAINS = {
    "stable": (BLUE, "stable phase"), "settled": (SKY, "second half of the stable phase"),
    "cooldown": (RED, "cooldown"),
}  # fmt: skip
"""Stretch of which the gain is stored -> its colour and name."""
NAME_HEIGHT = 0.075
"""Height of a name in a panel, of the height of what is drawn there."""
WIDE = 20.0
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""


def real_run(ds: xr.Dataset) -> Figure:
    """What the figures of arXiv:2601.09000 show of a run: losses, rate, and whatever of `PAPER` was measured.

    Raises:
        InputError: the dataset has none of it.
    """
    figure = page(ds, PAPER)
    if figure is None:
        wanted = ", ".join(v for variables, _ in PAPER.values() for v in variables)
        raise InputError(f"nothing here can be drawn; a real run has some of: {wanted}")
    return figure


def real_appendix(ds: xr.Dataset) -> Figure | None:
    """Directions, drift, norms and predictability: whatever of `FURTHER` was measured; None without any."""
    return page(ds, FURTHER)


def write_run(ds: xr.Dataset, folder: str | Path) -> list[Path]:
    """Write ``real.png`` and, where there is anything for it, ``real-appendix.png`` into the folder of a run.

    Returns:
        The files written; an appendix of an earlier picture of the run is removed where there is none now.

    Raises:
        InputError: nothing can be drawn.
        StoreError: a file cannot be written.
    """
    written = [write(real_run(ds), Path(folder, PICTURE))]
    further = real_appendix(ds)
    if further is None:
        Path(folder, APPENDIX).unlink(missing_ok=True)
    else:
        written.append(write(further, Path(folder, APPENDIX)))
    return written


# --- parts -----------------------------------------------------------------------------------------------------------
def _near(draw: Draw, *names: str) -> Draw:
    """A panel over states whose axis covers what was measured, not all of the run."""

    def drawn(axis: Axes, ds: xr.Dataset) -> None:
        draw(axis, ds)
        places = np.concatenate([_kept(ds, name)[0] for name in names if _has(ds, name)])
        low, high = float(places.min()), float(places.max())
        if low < high:
            axis.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))

    return drawn


def _interval(ds: xr.Dataset, name: str) -> FloatArray | None:
    """Lengths of the bars from values down and up to the ends of their intervals; None where these were not stored."""
    if f"{name}_low" not in ds or f"{name}_high" not in ds:
        return None
    value, low, high = (np.atleast_1d(ds[name + end].to_numpy().astype(float)) for end in ("", "_low", "_high"))
    bars: FloatArray = np.maximum(np.nan_to_num(np.stack([value - low, high - value])), 0.0)
    return bars


def _named(names: NDArray[np.str_]) -> list[str]:
    """Names for the ticks of an axis, one word to a line."""
    return [str(name).replace(" ", "\n") for name in names]


# --- panels ----------------------------------------------------------------------------------------------------------
def _direction_norms(axis: Axes, ds: xr.Dataset) -> None:
    ds = ds.isel(window=np.isfinite(ds["direction_norm"].to_numpy()))
    place, names = np.arange(ds.sizes["window"]), ds["window"].to_numpy()
    value = ds["direction_norm"].to_numpy()
    bars = _interval(ds, "direction_norm")
    for k, colour in enumerate(_colours(names.tolist()).values()):
        label = r"$\|Hv\|$ with its bootstrap interval" if k == 0 else None
        bar = None if bars is None else bars[:, [k]]
        axis.errorbar(place[k], value[k], yerr=bar, color=colour, label=label, **BARS)
    if _has(ds, "direction_curvature"):
        label = r"$v^\top Hv$"
        axis.plot(place, ds["direction_curvature"], "D", ms=4, mfc="none", mec="black", lw=0, label=label)
    if _has(ds, "direction_null"):
        null = np.broadcast_to(ds["direction_null"].to_numpy(), place.shape)
        axis.hlines(null, place - 0.35, place + 0.35, label=r"null of $\|Hv\|$: random direction", **NULL)
    if _has(ds, "direction_curvature_null"):
        null = np.broadcast_to(ds["direction_curvature_null"].to_numpy(), place.shape)
        axis.hlines(null, place - 0.35, place + 0.35, color="black", ls=":", lw=0.9, label=r"null of $v^\top Hv$")
    axis.axhline(0, color=GREY, lw=0.8)
    axis.set_xticks(place, _named(names), fontsize=8)
    axis.set(xlim=(-0.6, len(place) - 0.4), ylabel="curvature", title="Curvature along each phase's direction")


def _direction_ratios(axis: Axes, ds: xr.Dataset) -> None:
    told = {"direction_ratio": "whole\nwindows", "direction_ratio_matched": "matched\nwindow"}
    told = {name: words for name, words in told.items() if _has(ds, name)}
    for k, (name, colour) in enumerate(zip(told, (RED, ORANGE), strict=False)):
        value = np.atleast_1d(ds[name].to_numpy().astype(float))
        label = "with its bootstrap interval" if k == 0 else None
        axis.errorbar([k], value, yerr=_interval(ds, name), color=colour, label=label, **BARS)
        axis.annotate(number(float(value[0]), 3), (k, value[0]), (7, -3), textcoords="offset points", fontsize=8)
    axis.axhline(1, label="null: no more than in the stable phase", **NULL)
    axis.set_xticks(range(len(told)), list(told.values()))
    axis.set(xlim=(-0.6, len(told) - 0.4), ylabel=r"$\|Hv_d\|\;/\;\|Hv_s\|$", title="Early cooldown over late stable")


def _update_over_rate(axis: Axes, ds: xr.Dataset) -> None:
    _states(axis, ds)
    rate, size = ds["lr"].to_numpy(), ds["update_norm"].to_numpy()
    moving = rate > 0
    step, ratio = ds["step"].to_numpy()[moving], size[moving] / rate[moving]
    axis.plot(step, ratio, color=ORANGE, lw=0.5, alpha=0.5)
    if len(ratio):
        smooth, centre = _smooth(ratio)
        axis.plot(np.interp(centre, np.arange(len(step)), step), smooth, color=ORANGE, lw=1.5, label="running mean")
    stable = ratio[ds["phase"].to_numpy()[moving] == Phase.STABLE]
    if np.isfinite(stable).any():
        axis.axhline(float(np.nanmedian(stable)), label="null: as the rate, median of stable", **NULL)
    axis.set(xlabel="update", ylabel=r"$\|u_t\|\;/\;\eta_t$", title="Size of the update over the rate")
    sizes = ratio[np.isfinite(ratio) & (ratio > 0)]
    if len(sizes) and sizes.max() > WIDE * sizes.min():
        axis.set_yscale("log")


def _angles(axis: Axes, ds: xr.Dataset) -> None:
    value, null, names = [], [], []
    if _has(ds, "window_cosine"):
        value, names = [*ds["window_cosine"].to_numpy()], [str(n) for n in ds["window_pair"].to_numpy()]
        null = [*(ds["window_cosine_null"].to_numpy() if "window_cosine_null" in ds else np.full(len(value), np.nan))]
    if _has(ds, "phase_cosine"):
        value, names = [float(ds["phase_cosine"]), *value], ["stable and cooldown", *names]
        null = [float(ds["phase_cosine_null"]) if "phase_cosine_null" in ds else np.nan, *null]
    place = np.arange(len(value))
    axis.barh(place, value, height=0.5, color=BLUE, alpha=0.75, label="|cos| of the first components")
    axis.vlines(null, place - 0.35, place + 0.35, label="null: directions drawn at random, mean", **NULL)
    for y, told, chance in zip(place, value, null, strict=True):
        if np.isfinite(told):
            words = f"{number(told, 2)} (null {number(chance, 2)})"
            axis.annotate(words, (told, y), (4, -3), textcoords="offset points", fontsize=8)
    axis.set_yticks(place, [name.replace(" and ", "\nand ") for name in names], fontsize=8)
    axis.set_ylim(len(value) - 0.4, -0.6)
    top = float(np.nanmax([*value, *null]))
    axis.set(xlim=(-0.02 * top, 1.4 * top), xlabel="|cos|", title="Angles between the windows' directions")


def _name_ends(axis: Axes, ends: Sequence[tuple[float, float, str]]) -> None:
    """Names at the ends of lines, from the lowest up; one that would stand on the name below is left out."""
    low, high = axis.get_ylim()
    below = -np.inf
    for value, place, told in sorted(ends):
        if value - below > NAME_HEIGHT * (high - low):
            axis.annotate(told, (place, value), (5, -3), textcoords="offset points", fontsize=7)
            below = value


class _Grouped(NamedTuple):
    """Names of what is stored of tokens or images in groups: the groups' axis, and the first words of their numbers."""

    of: str
    axis: str
    gains: str
    told: str

    def entropy(self, ds: xr.Dataset) -> FloatArray:
        """Reference entropy of each group, their number where it was not measured."""
        return ds[f"{self.of}_entropy" if _has(ds, f"{self.of}_entropy") else self.axis].to_numpy().astype(float)

    @property
    def losses(self) -> tuple[tuple[str, ...], Draw]:
        return (f"{self.of}_loss",), self._losses

    @property
    def gained(self) -> tuple[tuple[str, ...], Draw]:
        return tuple(f"{self.gains}{phase}_gain" for phase in GAINS), self._gained

    def _losses(self, axis: Axes, ds: xr.Dataset) -> None:
        """A line for each group, coloured by its entropy; dotted: the reference itself, where it has a loss."""
        _states(axis, ds)
        name, entropy = f"{self.of}_loss", self.entropy(ds)
        ends: list[tuple[float, float, str]] = []
        for k, colour in enumerate(_sequence(entropy)):
            one = ds.isel({self.axis: k})
            if not _has(one, name):
                continue
            _measure(axis, one, name, f"{name}_error", colour, "")
            place, value = _kept(one, name)
            told = str(ds[self.axis].to_numpy()[k]) if self.axis == "class" else number(entropy[k], 3)
            ends.append((float(value[-1]), float(place[-1]), told))
            if self.of == "bin" and _has(one, "bin_ngram_loss"):
                axis.axhline(float(one["bin_ngram_loss"]), color=colour, ls=":", lw=1.2)
        _name_ends(axis, ends)
        words = "number of the class" if self.axis == "class" else f"entropy of the {self.told}{_units(ds, name)}"
        axis.plot([], [], lw=0, label=f"figures: {words}")
        low, high = axis.get_xlim()
        axis.set_xlim(low, high + 0.06 * (high - low))
        if self.of == "bin" and _has(ds, "bin_ngram_loss"):
            axis.plot([], [], label="the n-gram reference", **NULL)
        axis.set(ylabel=f"held-out loss{_units(ds, name)}", title=f"Loss of each {self.told}")

    def _gained(self, axis: Axes, ds: xr.Dataset) -> None:
        """Gain of each group in either phase, over the null of members shuffled over groups."""
        entropy = self.entropy(ds)
        order = np.argsort(entropy, kind="stable")
        for phase, (colour, words) in GAINS.items():
            name = f"{self.gains}{phase}_gain"
            if not _has(ds, name):
                continue
            bars = 2 * np.nan_to_num(ds[f"{name}_error"].to_numpy()[order]) if f"{name}_error" in ds else None
            axis.errorbar(entropy[order], ds[name][order], yerr=bars, color=colour, label=words, **BARS)
            if _has(ds, f"{name}_null"):
                null = ds[f"{name}_null"].to_numpy()[order]
                axis.plot(entropy[order], null, color=colour, ls=":", lw=1.6)
                if f"{name}_null_std" in ds:
                    half = 2 * np.nan_to_num(ds[f"{name}_null_std"].to_numpy()[order])
                    axis.fill_between(entropy[order], null - half, null + half, color=colour, alpha=0.15, lw=0)
        if any(_has(ds, f"{self.gains}{phase}_gain_null") for phase in GAINS):
            axis.plot([], [], label=f"null of each: the same gain in every {self.told}", **NULL)
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set(xlabel=f"mean reference entropy of the {self.told}{_units(ds, f'{self.of}_entropy')}")
        axis.set(ylabel=f"fall of the loss{_units(ds, f'{self.of}_loss')}", title=f"Gain of each {self.told}")


_BINS = _Grouped("bin", "predictability_bin", "", "bin")
_MODEL_BINS = _Grouped("model_bin", "model_bin", "model_", "bin by the model")
_CLASSES = _Grouped("class", "class", "class_", "class")

PAPER: Panels = {
    **{name: OBSERVED[name] for name in ("loss", "learning rate", "interpolation")},
    **{
        name: (OBSERVED[name][0], _near(OBSERVED[name][1], *OBSERVED[name][0]))
        for name in ("sharpness", "preconditioned sharpness", "critical sharpness")
    },
    "directions": (("direction_norm",), _direction_norms),
    "ratios": (("direction_ratio", "direction_ratio_matched"), _direction_ratios),
    **{name: OBSERVED[name] for name in ("quasi-convexity", "cosines")},
}
"""As in `riverval.plots_panels.Panels`: the panels of the first page."""

FURTHER: Panels = {
    "norms": OBSERVED["norms"],
    "update over rate": (("update_norm",), _update_over_rate),
    **{name: OBSERVED[name] for name in ("shares", "drift")},
    "angles": (("window_cosine", "phase_cosine"), _angles),
    "losses of bins": _BINS.losses,
    "gains of bins": _BINS.gained,
    "losses of bins by the model": _MODEL_BINS.losses,
    "gains of bins by the model": _MODEL_BINS.gained,
    "losses of classes": _CLASSES.losses,
    "gains of classes": _CLASSES.gained,
    "costs": OBSERVED["costs"],
}
"""The panels of the second page."""
