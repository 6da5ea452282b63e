"""Pictures of the studies, one function each, as `riverval.plots`: what is drawn is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LightSource, LinearSegmentedColormap
from matplotlib.figure import Figure

from ._checks import pick
from ._typing import FloatArray
from .plots import BLUE, CYCLE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, _figure, _grid, _rate, _shade
from .segments import Phase

STONE = LinearSegmentedColormap.from_list("stone", ["#BFE0DA", "#E3EBDD", "#EFE6D0", "#DCC9A6", "#BFA67C"])


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
        axis.plot(state, ds[f"expected_{name}"], color="black", lw=1.0, ls="--", label="theory" if name != "loss" else None)
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
    axis.set_box_aspect((2.4, 1.6, 0.95), zoom=1.15)
    axis.set_title("A river between hills")
    axis.legend(frameon=False, fontsize=9, loc="upper right")
