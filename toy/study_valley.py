"""The study `valley`: one trajectory on the surface of a bent valley, and what it looks like in the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_int
from .._typing import FloatArray
from ..schedules import WSD
from ._engine import Ensemble
from .noise import Anisotropic
from .river import river_flow
from .setting import Setting
from .simulate import check_size
from .study import Bench, Number, Study, StudySetting, mean_error, number_of, toy_dataset
from .valleys import BentRiver

MARGIN = 0.9
"""How far the drawn surface goes beyond the ends of the river, along it, and the walls beyond the widest step."""


@dataclass(frozen=True, kw_only=True)
class ValleySetting(StudySetting):
    """A bent river, and WSD on it at a rate so high that the state jumps from wall to wall (1 < lr h < 2).

    Args:
        slope, curvature, amplitude, wavenumber: of `riverval.toy.BentRiver`.
        sigma: standard deviation of the gradient noise across the river.
        sigma_along: and along it: noise is small in flat directions, as that of sampling is.
        lr, steps, cooldown: of the schedule.
        height: where the run starts, above the river.
        grid: points of the surface in each direction.
    """

    replicates: int = 2000
    slope: float = 0.09
    curvature: float = 1.0
    amplitude: float = 0.9
    wavenumber: float = 0.45
    sigma: float = 0.33
    sigma_along: float = 0.03
    lr: float = 1.5
    steps: int = 140
    cooldown: float = 0.4
    height: float = 1.2
    grid: int = 121

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("grid", self.grid, low=3, what="points of the surface in each direction")

    @property
    def loss(self) -> BentRiver:
        """The valley."""
        return BentRiver(self.slope, self.curvature, self.amplitude, self.wavenumber)


def measure(s: ValleySetting, bench: Bench) -> xr.Dataset:
    """Every state of every replicate, the surface around the first of them, and the theory of their mean."""
    loss, plan = s.loss, WSD(peak_lr=s.lr, steps=s.steps, cooldown=s.cooldown)
    start = (0.0, s.height)
    setting = Setting(loss=loss, schedule=plan, noise=Anisotropic((s.sigma_along, s.sigma)), start=start, every=1)
    check_size([setting], s.replicates)
    rng, progress = bench.part(s.steps)
    ensemble = Ensemble([setting], s.replicates, rng, compiled=False)
    for block in range(ensemble.blocks):
        ensemble.advance(block)
        progress(ensemble.runs[0].made, {})
    states = np.concatenate(ensemble.runs[0].copies)[:, 0].transpose(2, 0, 1)  # (replicates, states, 2)
    value, river, hill = loss.split(states)
    values: dict[str, Any] = {
        "step": np.arange(plan.total),
        "lr": plan.values(),
        "phase": plan.phases(),
        "eval_step": setting.states(),
        "path_x": states[0, :, 0],
        "path_y": states[0, :, 1],
        "path_loss": value[0],
        "path_river": river[0],
        "path_hill": hill[0],
    }
    for name, curves in (("loss", value), ("river", river), ("hill", hill)):
        values[f"mean_{name}"], values[f"mean_{name}_error"] = mean_error(curves)
    expected = expected_losses(s, plan.values())
    values |= dict(zip(("expected_loss", "expected_river", "expected_hill"), expected, strict=True))
    values |= _surface(s, states[0])
    every = ("eval_step",)
    return toy_dataset(values, {name: every for name in values if name.startswith(("mean_", "expected_"))})


def expected_losses(s: ValleySetting, rates: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Loss, river and hill of every state by theory, to leading order in the bend; (steps + 1,) each.

    Along the river the mean follows gradient flow on the river at the time S = sum of the rates, from the projection of
    the start. Across it a state is in a hill of curvature h (1 + f'^2) with the noise of the normal direction, where
    f' is the gradient of the river there (arXiv:2410.05192 has the first for gradient descent; the second is derived).
    """
    times = np.concatenate([[0.0], np.cumsum(rates)])
    x = river_flow(s.loss, np.array([0.0, s.height]), times)[:, 0]
    gradient = s.amplitude * s.wavenumber * np.cos(s.wavenumber * x)
    stretch = 1.0 + gradient**2
    h = s.curvature * stretch
    noise = (s.sigma**2 + (gradient * s.sigma_along) ** 2) / stretch
    square = np.empty_like(x)  # of the distance from the river
    square[0] = s.height**2 / stretch[0]
    for t, lr in enumerate(rates):
        square[t + 1] = (1.0 - lr * h[t]) ** 2 * square[t] + lr**2 * noise[t]
    river, hill = -s.slope * x, 0.5 * h * square
    return river + hill, river, hill


def _surface(s: ValleySetting, path: FloatArray) -> dict[str, FloatArray]:
    """The valley around a path: a ribbon of equal width on both sides of the river."""
    height = path[:, 1] - s.amplitude * np.sin(s.wavenumber * path[:, 0])
    low, high = float(path[:, 0].min()) - MARGIN, float(path[:, 0].max()) + MARGIN
    half = 1.05 * float(np.abs(height).max())
    along, across = np.linspace(low, high, s.grid), np.linspace(-half, half, s.grid)
    x = np.repeat(along[:, None], s.grid, axis=1)
    y = s.amplitude * np.sin(s.wavenumber * x) + across
    loss = s.loss.value(np.stack([x, y], axis=-1))
    return {"along": along, "across": across, "surface_y": y, "surface_loss": loss}


def numbers(ds: xr.Dataset) -> list[Number]:
    """Losses at both ends of the cooldown, means of all replicates beside the theory."""
    out = []
    first = int(np.argmax(ds["phase"].values == 2))
    for when, state in (("before", first), ("after", -1)):
        for name in ("river", "hill"):
            at = ds.isel(eval_step=state)
            stored = (f"mean_{name}", f"mean_{name}_error", f"expected_{name}")
            out.append(number_of(at, f"{name} loss {when} the cooldown", *stored, exact=False))
    fall = float(ds["path_loss"][first] - ds["path_loss"][-1])
    out.append(Number("fall of the drawn run in the cooldown", fall, math.nan, math.nan))
    return out


VALLEY = Study(
    name="valley",
    summary="a run bounces between the hills and, in its cooldown, comes down to the river",
    source="the picture of arXiv:2410.05192",
    setting=ValleySetting,
    parts=lambda s: 1,
    measure=measure,
    numbers=numbers,
    quick={"replicates": 64},
)
