"""Pictures of the studies, one function each, as `riverval.plots`: what is drawn is stored.

Lines are theory where points stand on them; error bars and bands are two standard errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LightSource, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from . import plots_bigram
from ._checks import pick
from ._typing import FloatArray
from .plots import BLUE, CYCLE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, _figure, _grid, _rate, _shade
from .segments import Phase

STONE = LinearSegmentedColormap.from_list("stone", ["#BFE0DA", "#E3EBDD", "#EFE6D0", "#DCC9A6", "#BFA67C"])
PAPER_PLATEAU = (0.08, 0.12)
"""Where arXiv:2410.05192 finds a flat optimum of the fraction."""

FAMILIES = {"WSD": BLUE, "WSD-S": RED, "cyclic cosine": ORANGE, "cosine": GREY}
DECAYS = {
    "optimal": ("black", "-", "none"), "linear": (BLUE, "-", "o"), "inverse": (RED, "-", "s"),
    "1-sqrt": (GREEN, "-", "^"), "cosine": (ORANGE, "-", "D"), "mirror-cosine": (ORANGE, ":", "*"),
    "square": (PURPLE, "-", "v"), "exponential": (SKY, "-", "P"), "power": (GREY, "--", "X"),
}  # fmt: skip
"""Colour, line and marker of each decay."""

CALLOUT: dict[str, Any] = {
    "arrowprops": {"arrowstyle": "-", "color": "#444444", "lw": 0.7},
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
}

POINTS_AND_LINES = "points: simulated ± 2 s.e., lines: theory"
TITLE_LEFT: dict[str, Any] = {"title_fontsize": 8, "alignment": "left"}

ENDINGS = {"neither": GREY, "linear decay": BLUE, "optimal decay": "black", "tail average": RED}


def study(ds: xr.Dataset) -> Figure:
    """The picture of the study that a dataset says it is.

    Raises:
        InputError: not the dataset of a study.
    """
    name = json.loads(ds.attrs["config"]).get("study", "")
    return pick("study", name, PICTURES)(ds)


# --- valley ----------------------------------------------------------------------------------------------------------
def valley(ds: xr.Dataset) -> Figure:
    """The valley in perspective with one run in it, and beside it that run's loss, split, and the mean of all runs."""
    figure = _figure((13.0, 6.2))
    grid = figure.add_gridspec(3, 2, width_ratios=(1.4, 1.0), height_ratios=(2.4, 1.5, 0.8))
    _landscape(figure, grid[:, 0], ds)
    loss, hill, rate = (figure.add_subplot(grid[row, 1]) for row in range(3))
    for axis in (loss, hill, rate):
        _shade(axis, ds["phase"].to_numpy())
    state = ds["eval_step"].to_numpy()
    for axis, name, colour in ((loss, "loss", BLUE), (loss, "river", GREEN), (hill, "hill", RED)):
        axis.plot(state, ds[f"path_{name}"], color=colour, lw=0.8, alpha=0.4, label=f"{name}, the run on the left")
        axis.plot(state, ds[f"mean_{name}"], color=colour, lw=1.8, label=f"{name}, mean of all runs")
        label = "theory" if name != "loss" else None  # once in each panel
        axis.plot(state, ds[f"expected_{name}"], color="black", lw=1.0, ls="--", label=label)
    loss.set(ylabel="loss", title="In the cooldown the loss comes down to the river")
    hill.set(ylabel="hill loss")
    for axis in (loss, hill):
        axis.legend(frameon=False, fontsize=8, loc="upper right")
        axis.tick_params(labelbottom=False)
    _rate(rate, ds)
    return figure


def _landscape(figure: Figure, place: Any, ds: xr.Dataset) -> None:
    axis: Any = figure.add_subplot(place, projection="3d", computed_zorder=False)
    y, z = ds["surface_y"].to_numpy(), ds["surface_loss"].to_numpy()
    x = np.broadcast_to(ds["along"].to_numpy()[:, None], y.shape)
    middle = ds.sizes["across"] // 2
    hill = z - z[:, middle][:, None]
    light = LightSource(azdeg=250, altdeg=55).hillshade(z, vert_exag=0.35, dx=0.1, dy=0.1)
    colours = STONE(hill / hill.max())
    colours[..., :3] *= (0.72 + 0.28 * light)[..., None]
    axis.plot_surface(x, y, z, facecolors=colours, rstride=1, cstride=1, lw=0, antialiased=False, shade=False, zorder=1)
    axis.plot(x[:, middle], y[:, middle], z[:, middle], color=GREEN, lw=3.0, zorder=2, label="river")
    first = int(np.argmax(ds["phase"].to_numpy() == int(Phase.COOLDOWN)))
    px, py, pz = (ds[f"path_{name}"].to_numpy() for name in ("x", "y", "loss"))
    for part, colour, label in ((slice(0, first + 1), BLUE, "stable phase"), (slice(first, None), RED, "cooldown")):
        axis.plot(px[part], py[part], pz[part], color=colour, lw=1.0, marker="o", ms=2.4, zorder=3, label=label)
    axis.set(xlabel="along the river", ylabel="across", zlabel="loss", xticks=[], yticks=[], zticks=[])
    for side in (axis.xaxis, axis.yaxis, axis.zaxis):
        side.pane.set(facecolor="#F7F7F5", edgecolor="#D8D8D4", alpha=1.0)
        side.line.set_color(GREY)
        side.labelpad = -10
    axis.view_init(elev=47, azim=-33)
    axis.set_box_aspect((2.4, 1.6, 0.95), zoom=1.12)
    axis.set_title("A river between hills")
    axis.legend(frameon=False, fontsize=9, loc="upper right")


# --- schedules -------------------------------------------------------------------------------------------------------
def schedules(ds: xr.Dataset) -> Figure:
    """Loss of every run with its checkpoints under each accounting, and what WSD-S gains or loses against WSD."""
    figure, axes = _grid(2, 2, (12.0, 7.4), height_ratios=(2.6, 1.0))
    for k, accounting in enumerate(ds["accounting"].to_numpy()):
        one = ds.sel(accounting=accounting)
        _families(axes[0][k], one, accounting)
        _gaps(axes[1][k], one.sel(family="WSD-S"))
    for row in axes:
        low, high = _extent(np.array([axis.get_ylim() for axis in row]))
        for axis in row:
            axis.set_ylim(low, high)
    return figure


def _families(axis: Axes, ds: xr.Dataset, accounting: str) -> None:
    state = ds["eval_step"].to_numpy()
    for name in reversed(ds["plan"].to_numpy().tolist()):
        family, _, of = name.partition(", equal ")
        family = family.partition(" to ")[0]
        if of not in ("", accounting):
            continue
        one = ds.sel(plan=name)
        mean = one["mean_loss"].to_numpy()
        kept = np.isfinite(mean)
        axis.plot(state[kept], mean[kept], color=FAMILIES[family], lw=1.2)
        axis.plot(state[kept], one["expected_loss"].to_numpy()[kept], color="black", lw=0.6, ls=":")
    for family, colour in FAMILIES.items():
        points = ds.sel(family=family)
        place, loss = points["checkpoint_updates"], points["checkpoint_loss"]
        label = f"{family}: {int(points['family_updates'])} updates in all"
        axis.plot(place, loss, "-o", lw=0, ms=7, color=colour, mec="white", mew=0.8, zorder=4, label=label)
    axis.plot([], [], color="black", lw=0.8, ls=":", label="exact recursion")
    axis.set(xlabel="updates on the path", ylabel="loss", title=f"Equal {accounting}")
    _bare(axis)
    axis.legend(frameon=False, fontsize=8, loc="lower left")


def _gaps(axis: Axes, ds: xr.Dataset) -> None:
    place = ds["checkpoint"].to_numpy()
    axis.axhline(0, color=GREY, lw=0.8)
    axis.bar(place, ds["gap"], width=0.45, color=RED, alpha=0.35)
    _points(axis, place, ds["gap"], ds["gap_error"], RED, "simulated ± 2 s.e.")
    axis.hlines(ds["expected_gap"], place - 0.3, place + 0.3, color="black", lw=1.4, label="exact recursion")
    axis.set(xlabel="checkpoint", ylabel="loss of WSD-S\nminus WSD", xticks=place)
    axis.set_title("Above 0: WSD is better. Below 0: WSD-S is better.", fontsize=9)
    _bare(axis)
    axis.legend(frameon=False, fontsize=8, loc="upper left")


# --- shapes ----------------------------------------------------------------------------------------------------------
def shapes(ds: xr.Dataset) -> Figure:
    """Final over stable hill loss against the length of the cooldown, for each shape, to zero and to a tenth."""
    figure, axes = _grid(1, 2, (12.5, 5.6))
    for axis, floor in zip(axes[0], ds["floor"].to_numpy(), strict=True):
        one = ds.sel(floor=floor)
        for name in ds["decay"].to_numpy().tolist():
            _one_shape(axis, one.sel(decay=name), name)
        at = ds["crossing_floor"].to_numpy() == floor
        places, ratios = ds["crossing_at"].to_numpy()[at], ds["crossing_ratio"].to_numpy()[at]
        axis.plot(places, ratios, "o", ms=11, mfc="none", mec="black", mew=1.1, zorder=5)
        for name, place, ratio in zip(ds["crossing"].to_numpy()[at], places, ratios, strict=True):
            label = f"{name}\nfrom x = {place:.3g}"
            axis.annotate(label, (place, ratio), (12, 22), textcoords="offset points", fontsize=8, **CALLOUT)
        told = "to zero" if floor == 0 else f"to {floor:g} of the peak"
        axis.set(xscale="log", yscale="log", title=f"Decay {told}", xlabel=r"length of the cooldown $x = \eta h T_d$")
        axis.set_ylim(*_spread(one["expected_hill_ratio"].isel(decay=slice(1, None)).to_numpy()))
        _bare(axis)
        axis.plot([], [], "o", ms=9, mfc="none", mec="black", label="change of order, at x")
        axis.legend(frameon=False, fontsize=8, loc="lower left")
    axes[0][0].set_ylabel("hill loss after over before the cooldown")
    return figure


def _one_shape(axis: Axes, ds: xr.Dataset, name: str) -> None:
    colour, line, marker = DECAYS[name]
    curve = ds["expected_hill_ratio"].to_numpy()
    if not np.isfinite(curve).any():
        return
    label = "optimal for each x" if name == "optimal" else name
    axis.plot(ds["relaxations"], curve, color=colour, ls=line, lw=2.0 if name == "optimal" else 1.3, label=label)
    _points(axis, ds["probe_relaxations"], ds["hill_ratio"], ds["hill_ratio_error"], colour, marker=marker)


# --- fraction --------------------------------------------------------------------------------------------------------
def fraction(ds: xr.Dataset) -> Figure:
    """Part of the gain that is lost by cooling down over another fraction than the best, in both rivers."""
    names = ds["valley"].to_numpy().tolist()
    rivers = list(dict.fromkeys(name.partition(",")[0] for name in names))
    figure, axes = _grid(1, len(rivers), (12.0, 5.0))
    for axis, river in zip(axes[0], rivers, strict=True):
        axis.axvspan(*PAPER_PLATEAU, color="#F3E3C3", lw=0, zorder=0, label="plateau in arXiv:2410.05192")
        for name, colour in zip([n for n in names if n.startswith(river)], CYCLE, strict=False):
            one, told = ds.sel(valley=name), name.partition(", ")[2]
            axis.plot(ds["fraction"], one["expected_excess"].sel(decay="optimal"), color=colour, lw=1.6, label=told)
            axis.plot(ds["fraction"], one["expected_excess"].sel(decay="linear"), color=colour, lw=1.1, ls=":")
            _points(axis, ds["probe_fraction"], one["excess"], one["excess_error"], colour)
            axis.plot(one["best_fraction"], -0.035, "^", ms=8, color=colour, clip_on=False, zorder=5)
        axis.plot([], [], color=GREY, lw=1.1, ls=":", label="linear decay to zero")
        axis.plot([], [], "^", color=GREY, label="best fraction by theory")
        axis.set(xscale="log", ylim=(-0.035, 0.5), title=river.capitalize())
        axis.set(xlabel="updates of the cooldown, of the whole run")
        axis.set_xticks([0.005, 0.01, 0.02, 0.04, 0.08, 0.14, 0.3, 0.6])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        _bare(axis)
    axes[0][0].set_ylabel("part of the best cooldown's gain that is lost")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


# --- crossing --------------------------------------------------------------------------------------------------------
def crossing(ds: xr.Dataset) -> Figure:
    """Loss at constant rates, which cross at one time, and the loss of the same rates after a cooldown."""
    figure, axes = _grid(1, 2, (12.0, 4.8))
    stable, cooled = axes[0]
    time = float(ds["crossing_time"])
    stable.axvline(time, color="black", lw=0.9, ls="-.", label=rf"$m\sigma^2/4c^2$ = {time:.0f}")
    state = ds["eval_step"].to_numpy()
    for rate, colour in zip(ds["rate"].to_numpy(), (SKY, BLUE, RED, ORANGE), strict=False):
        one = ds.sel(rate=rate)
        mean, error = one["mean_loss"].to_numpy(), 2 * one["mean_loss_error"].to_numpy()
        stable.fill_between(state, mean - error, mean + error, color=colour, alpha=0.3, lw=0)
        stable.plot(state, mean, color=colour, lw=1.4, label=f"rate {rate:g}")
        stable.plot(state, one["expected_loss"], color="black", lw=0.8, ls="--")
        cooled.plot(ds["total"], one["expected_final_loss"], color="black", lw=0.8, ls="--")
        _points(cooled, ds["total"], one["final_loss"], one["final_loss_error"], colour, f"rate {rate:g}")
    cooled.axvline(time, color="black", lw=0.9, ls="-.")
    stable.set(xlabel="updates", ylabel="loss", title="Constant rate: a small one looks better at first")
    cooled.set(xlabel="updates of the whole run", title="After a cooldown over the second half: a large one is ahead")
    for axis in (stable, cooled):
        axis.plot([], [], color="black", lw=0.8, ls="--", label="exact recursion")
        _bare(axis)
        axis.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


# --- sharpening ------------------------------------------------------------------------------------------------------
def sharpening(ds: xr.Dataset) -> Figure:
    """Speed against rate in a valley that narrows, and the distance in time for some of the rates."""
    figure, axes = _grid(1, 2, (12.0, 4.8))
    speed, distance = axes[0]
    rate, fastest = ds["rate"].to_numpy(), float(ds["fastest_rate"])
    speed.axhline(0, color=GREY, lw=0.8)
    speed.plot(rate, ds["straight_speed"], color=GREY, ls="--", lw=1.2, label="in a valley of constant width")
    speed.plot(rate, ds["leading_speed"], color="black", lw=1.0, ls=":", label="theory, leading order")
    speed.plot(rate, ds["expected_speed"], color="black", lw=1.2, label="theory, hills at balance")
    _points(speed, rate, ds["speed"], ds["speed_error"], RED, "simulated ± 2 s.e.")
    top = float(ds["leading_speed"].max())
    for place, told in ((fastest, "fastest"), (2 * fastest, "stall")):
        speed.axvline(place, color=GREY, lw=0.8, ls="-.")
        speed.annotate(told, (place, 1.75 * top), (4, 0), textcoords="offset points", fontsize=9, color=GREY)
    speed.set(
        xlabel=r"learning rate $\eta$", ylabel="progress along the river in one update", ylim=(-1.7 * top, 1.9 * top)
    )
    speed.set_title("A larger rate is not faster")
    speed.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    speed.legend(facecolor="white", edgecolor="none", framealpha=0.9, fontsize=8, loc="lower left")
    drawn = rate[1::2] if len(rate) > 5 else rate
    for value, colour in zip(drawn, (SKY, BLUE, GREEN, ORANGE, RED), strict=False):
        one = ds.sel(rate=value)
        mean, error = one["mean_distance"].to_numpy(), 2 * one["mean_distance_error"].to_numpy()
        distance.fill_between(ds["eval_step"], mean - error, mean + error, color=colour, alpha=0.3, lw=0)
        distance.plot(ds["eval_step"], mean, color=colour, lw=2.8, label=f"{value / fastest:g} times the fastest rate")
        distance.plot(ds["eval_step"], one["expected_distance"], color="black", lw=0.8, ls="--")
    distance.plot([], [], color="black", lw=0.8, ls="--", label="theory, hills at balance")
    distance.axhline(0, color=GREY, lw=0.8)
    distance.set(xlabel="updates", ylabel="distance along the river", title="Progress, stall and reversal")
    distance.legend(frameon=False, fontsize=8, loc="lower left")
    for axis in (speed, distance):
        _bare(axis)
    return figure


# --- averaging -------------------------------------------------------------------------------------------------------
def averaging(ds: xr.Dataset) -> Figure:
    """Hill loss in the end against the length of the cooldown or the window, in a straight and a bent river."""
    figure, axes = _grid(1, ds.sizes["valley"], (12.0, 4.8))
    for axis, valley in zip(axes[0], ds["valley"].to_numpy(), strict=True):
        for name in ds["ending"].to_numpy().tolist():
            one, colour = ds.sel(valley=valley, ending=name), ENDINGS[name]
            axis.plot(ds["length"], one["expected_final_hill"], color=colour, lw=1.4)
            label = "plateau" if name == "neither" else name
            _points(axis, ds["length"], one["final_hill"], one["final_hill_error"], colour, label)
        axis.set(xscale="log", yscale="log", title=str(valley).capitalize(), xticks=ds["length"])
        axis.set_xlabel("last updates that are cooled down or averaged over")
        axis.set_ylim(*_spread(ds["expected_final_hill"].to_numpy()))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        _bare(axis)
    axes[0][0].set_ylabel("hill loss in the end")
    axes[0][0].legend(frameon=False, fontsize=8, loc="lower left", title=POINTS_AND_LINES, **TITLE_LEFT)
    return figure


# --- parts -----------------------------------------------------------------------------------------------------------
def _points(
    axis: Axes, x: Any, mean: Any, error: Any, colour: str, label: str | None = None, *, marker: str = "o"
) -> None:
    """Points with bars of two standard errors."""
    axis.errorbar(
        x, mean, yerr=2 * error, color=colour, label=label, marker=marker, ms=4.5, lw=0, elinewidth=1.2, capsize=2.5
    )


def _bare(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _extent(values: FloatArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _spread(values: FloatArray) -> tuple[float, float]:
    """Limits of a logarithmic axis with some room on both sides."""
    low, high = _extent(values[np.isfinite(values)])
    return low / 1.6, high * 1.6


PICTURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "valley": valley, "schedules": schedules, "shapes": shapes, "fraction": fraction, "crossing": crossing,
    "sharpening": sharpening, "averaging": averaging, "bigram": plots_bigram.bigram_run,
}  # fmt: skip
"""Picture by study."""
