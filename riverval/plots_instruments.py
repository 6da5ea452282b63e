"""Pictures of landscapes and spectra, as `riverval.plots`: what is drawn is stored, each number beside its null.

Nulls are dotted, error bars and bands two standard errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ._typing import FloatArray
from .errors import InputError
from .plots import BLUE, CYCLE, GREY, ORANGE, RED, SKY, _figure, _grid

LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8}
NULL: dict[str, Any] = {"color": GREY, "ls": ":", "lw": 1.6}
BARS: dict[str, Any] = {"capsize": 2.5, "lw": 1.3, "elinewidth": 1.0, "marker": "o", "ms": 4}
LEVELS = 15
DRAWN = 6
"""At most this many directions of a cross-section."""


def _need(ds: xr.Dataset, names: tuple[str, ...], maker: str) -> None:
    missing = [name for name in names if name not in ds]
    if missing:
        has = ", ".join(map(str, ds.data_vars)) or "nothing"
        raise InputError(f"this picture needs {', '.join(missing)}, which {maker} stores; the dataset has {has}")


# --- landscapes ------------------------------------------------------------------------------------------------------
def line(ds: xr.Dataset) -> Figure:
    """The loss along a line or path with its null, the change from the straight chord with paired errors, the tests.

    Raises:
        InputError: not a dataset of `riverval.landscape_data.path_dataset`.
    """
    _need(ds, ("line_loss", "line_distance", "line_batch_loss", "line_knot"), "path_dataset")
    tests = "test" in ds.dims
    figure = _figure((8.4, 6.4 if tests else 5.2))
    rows = figure.add_gridspec(3 if tests else 2, 1, height_ratios=(2.6, 1.8, 0.9)[: 3 if tests else 2])
    loss = figure.add_subplot(rows[0])
    batches = figure.add_subplot(rows[1], sharex=loss)
    alpha = ds["alpha"].to_numpy()
    if "line_null" in ds:
        loss.plot(alpha, ds["line_null"], label="null: quadratic with the same ends and curvature", **NULL)
    error = 2 * ds["line_loss_error"].to_numpy()
    label = "loss ± 2 s.e. over batches" if np.isfinite(error).any() else "loss (one batch: no error)"
    loss.errorbar(alpha, ds["line_loss"], yerr=np.nan_to_num(error), color=BLUE, label=label, **BARS)
    _say_not_finite(loss, int((~np.isfinite(ds["line_loss"].to_numpy())).sum()))
    loss.set(ylabel="loss", title=ds.attrs.get("title", ""))
    loss.legend(**LEGEND)
    loss.tick_params(labelbottom=False)
    first = _first_finite(ds["line_batch_loss"].to_numpy())
    for one in ds["line_batch_loss"].to_numpy():
        batches.plot(alpha, one - one[first], color=SKY, lw=0.8, alpha=0.7)
    batches.plot([], [], color=SKY, lw=0.8, label="each batch: paired, without the part that a batch has everywhere")
    batches.plot(alpha, ds["line_loss"] - ds["line_loss"][first], color=BLUE, lw=1.8, label="all batches")
    length = float(ds["line_distance"][-1] - ds["line_distance"][0])
    told = f"place on the path (from one end to the other shown: {length:.3g} in parameter units)"
    batches.set(xlabel=told, ylabel="loss minus that of\nthe first finite place")
    batches.legend(**LEGEND)
    for axis in (loss, batches):
        for knot in ds["line_knot"].to_numpy():
            axis.axvline(knot, color=GREY, lw=0.6, alpha=0.6, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    if tests:
        _verdicts(figure.add_subplot(rows[2]), ds)
    return figure


def _first_finite(batch_losses: FloatArray) -> int:
    """The first place where the loss of every batch is finite; the first of all where there is none."""
    return int(np.argmax(np.isfinite(batch_losses).all(axis=0)))


def _verdicts(axis: Axes, ds: xr.Dataset) -> None:
    axis.set_axis_off()
    names = ("test", "verdict", "estimate", "s.e.", "at", "p, corrected")
    rows = []
    for name in ds["test"].to_numpy():
        one = ds.sel(test=name)
        number = {k: float(one[f"line_test_{k}"]) for k in ("estimate", "error", "alpha", "p")}
        rows.append([
            str(name), str(one["line_test_verdict"].item()), f"{number['estimate']:.3g}", f"{number['error']:.1g}",
            f"{number['alpha']:.3g}", f"{number['p']:.2g}",
        ])  # fmt: skip
    table = axis.table(rows, colLabels=names, loc="center", cellLoc="center", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(8.5)
    for cell in table.get_celld().values():
        cell.set(edgecolor="#C8C8C4", linewidth=0.6, height=0.2)


def plane(ds: xr.Dataset) -> Figure:
    """The loss in a plane, its iterates in the colour of their own loss, and beside it their loss against the plane's.

    Raises:
        InputError: not a dataset of `riverval.landscape_data.plane_dataset`.
    """
    _need(ds, ("plane_loss", "plane_unit_x", "plane_unit_y"), "plane_dataset")
    points = "plane_point_x" in ds
    figure = _figure((12.4, 5.6) if points else (7.0, 5.6))
    grid = figure.add_gridspec(2, 2 if points else 1, width_ratios=(1.25, 1.0) if points else None)
    contour = figure.add_subplot(grid[:, 0])
    values = ds["plane_loss"].to_numpy()
    if min(values.shape) < 2:
        shape = " x ".join(map(str, values.shape))
        raise InputError(f"a picture of a plane needs at least 2 x 2 places, got {shape}; for a line use path_losses")
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise InputError("no loss in this plane is finite; take a smaller part of it")
    low, high = float(finite.min()), float(finite.max())
    if points:
        own = ds["plane_point_loss"].to_numpy()
        low, high = (float(f(own, where=np.isfinite(own), initial=v)) for f, v in ((np.min, low), (np.max, high)))
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # rounding: no levels lie between
        high = low + max(1.0, 1e-6 * abs(low))
    norm = PowerNorm(0.5, low, high)  # more levels at the bottom of the valley
    levels = low + (high - low) * np.linspace(0, 1, LEVELS) ** 2
    x, y = ds["plane_x"].to_numpy(), ds["plane_y"].to_numpy()
    shown = np.ma.masked_invalid(values.T)
    filled = contour.contourf(x, y, shown, levels=levels, norm=norm, cmap="cividis")
    contour.contour(x, y, shown, levels=levels, colors="white", linewidths=0.4, alpha=0.5)
    contour.set_facecolor("#D8D8D4")
    _say_not_finite(contour, int((~np.isfinite(values)).sum()))
    figure.colorbar(filled, ax=contour, label="loss", format=FuncFormatter(lambda v, _: f"{v:.3g}"), shrink=0.9)
    contour.set(xlabel=_unit_label("first", ds["plane_unit_x"]), ylabel=_unit_label("second", ds["plane_unit_y"]))
    contour.set_title(ds.attrs.get("title", ""))
    if abs(float(ds["plane_unit_x"]) / float(ds["plane_unit_y"]) - 1) < 1e-3 and abs(float(ds["plane_cosine"])) < 1e-3:
        contour.set_aspect("equal", adjustable="box")
    if points:
        _on_contour(contour, ds, norm)
        _beside(figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1]), ds)
    return figure


def _unit_label(which: str, unit: xr.DataArray) -> str:
    length = float(unit)
    return f"{which} coordinate" + (" (parameter units)" if abs(length - 1) < 1e-3 else f" (unit: {length:.3g})")


def _on_contour(axis: Axes, ds: xr.Dataset, norm: PowerNorm) -> None:
    px, py = ds["plane_point_x"].to_numpy(), ds["plane_point_y"].to_numpy()
    axis.plot(px, py, color="white", lw=1.0, alpha=0.8)
    axis.scatter(px, py, c=ds["plane_point_loss"], cmap="cividis", norm=norm, s=58, ec="white", lw=1.3, zorder=4)
    label = "in the colour of its own loss:\nthe plane shows that of its projection"
    axis.plot([], [], "o", color=GREY, mec="white", mew=1.3, ms=8, lw=0, label=label)
    axis.legend(frameon=True, facecolor="white", framealpha=0.85, edgecolor="none", fontsize=8, loc="best")


def _beside(losses: Axes, off: Axes, ds: xr.Dataset) -> None:
    states = "plane_point_state" in ds
    place = ds["plane_point_state" if states else "point"].to_numpy()
    # The bar is that of the difference, which is what the two curves are looked at for.
    error = 2 * np.nan_to_num(ds["plane_point_gap_error"].to_numpy())
    losses.errorbar(place, ds["plane_point_loss"], yerr=error, color=RED, label="itself, ± 2 s.e. of the gap", **BARS)
    losses.plot(place, ds["plane_point_projected"], color=BLUE, marker="s", ms=4, lw=1.3, label="its projection")
    losses.set(ylabel="loss", title="Each point beside its projection")
    losses.legend(**LEGEND)
    losses.tick_params(labelbottom=False)
    off.bar(place, ds["plane_point_off"], width=0.6 * (np.diff(place).min() if len(place) > 1 else 1), color=ORANGE)
    off.set(xlabel="state" if states else "number of the point", ylabel="distance from the plane\n(parameter units)")
    off.xaxis.set_major_locator(MaxNLocator(integer=True))
    off.sharex(losses)
    for axis in (losses, off):
        axis.spines[["top", "right"]].set_visible(False)


def section(ds: xr.Dataset) -> Figure:
    """The loss along each direction beside the quadratic at its middle, and how it departs from it.

    Raises:
        InputError: not a dataset of `riverval.landscape_data.section_dataset`.
    """
    _need(ds, ("section_loss", "section_predicted", "section_distance"), "section_dataset")
    names = ds["direction"].to_numpy()[:DRAWN]
    columns = min(3, len(names))
    figure, axes = _grid(-(-len(names) // columns), columns, (4.1 * columns, 3.4 * -(-len(names) // columns)))
    middle = ds.sizes["offset"] // 2
    for k, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
        one, colour = ds.sel(direction=name), CYCLE[k % len(CYCLE)]
        s = one["section_distance"].to_numpy()
        base = float(one["section_loss"][middle])
        if np.isfinite(one["section_predicted"]).any():
            axis.plot(s, one["section_predicted"] - base, label="null: the quadratic at 0", **NULL)
        error = 2 * np.nan_to_num(one["section_rise_error"].to_numpy())
        axis.errorbar(s, one["section_loss"] - base, yerr=error, color=colour, label="loss, ± 2 s.e.", **BARS)
        _say_not_finite(axis, int((~np.isfinite(one["section_loss"].to_numpy())).sum()))
        curvature = float(one["section_curvature"])
        told = f"{name}" + (rf", $\lambda$ = {curvature:.3g}" if np.isfinite(curvature) else "")
        axis.set(title=told, xlabel="distance (parameter units)")
        axis.spines[["top", "right"]].set_visible(False)
    for row in axes:
        row[0].set_ylabel("loss minus that in the middle")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    axes.flat[0].legend(loc="upper center", **LEGEND)
    left_out = f", first {DRAWN} of {ds.sizes['direction']} directions" * (ds.sizes["direction"] > DRAWN)
    figure.suptitle(ds.attrs.get("title", "") + left_out)
    return figure


def density(ds: xr.Dataset) -> Figure:
    """The density of the eigenvalues with its error, beside that of a random matrix, on a logarithmic scale.

    Raises:
        InputError: not a dataset of `riverval.landscape_data.density_dataset`.
    """
    _need(ds, ("density", "density_null", "density_width"), "density_dataset")
    figure, axes = _grid(1, 1, (8.0, 4.0))
    axis = axes[0][0]
    x, value = ds["eigenvalue"].to_numpy(), ds["density"].to_numpy()
    error = 2 * np.nan_to_num(ds["density_error"].to_numpy())
    floor = 1e-5 * float(value.max())
    label = "reference: random matrix of the same trace and norm"
    axis.plot(x, np.maximum(ds["density_null"], floor), label=label, **NULL)
    axis.fill_between(
        x, np.maximum(value - error, floor), np.maximum(value + error, floor), color=BLUE, alpha=0.25, lw=0
    )
    width = float(ds["density_width"])
    axis.plot(x, np.maximum(value, floor), color=BLUE, lw=1.4, label=f"density ± 2 s.e., smoothed by {width:.2g}")
    axis.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue", ylabel="density", title=ds.attrs.get("title", ""))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(**LEGEND)
    return figure


def _say_not_finite(axis: Axes, count: int) -> None:
    if count:
        told = f"{count} place{'s' * (count > 1)} not drawn: the loss is inf or nan"
        axis.text(0.02, 0.02, told, transform=axis.transAxes, color=RED, fontsize=8, zorder=5)
