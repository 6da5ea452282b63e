"""The studies `crossing` and `sharpening`: where a larger constant rate is better, and a valley in which it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_int
from .._typing import FloatArray
from ..errors import InputError
from ..schedules import Constant
from ..theory import stationary_hill, stationary_variance
from ..theory_runs import crossing_time, fastest_rate, sharpening_speed
from .losses import StraightRiver
from .noise import Anisotropic
from .predict_decay import cooldown
from .prediction import ratio_and_error
from .setting import STATIONARY
from .study import Bench, Number, Study, StudySetting, mean_error, number_of, toy_dataset
from .valleys import SharpeningValley


# --- crossing --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class CrossingSetting(StudySetting):
    """Constant rates on a straight river, each from its own stationary state, and the same after a cooldown.

    Args:
        rates: constant rates, increasing.
        time: m sigma^2/(4 c^2), the crossing time to leading order; it sets the slope.
        modes, curvature, sigma: of the hills and the noise.
        totals: lengths of the runs that are cooled down over their second half, by the optimal decay.
    """

    replicates: int = 8000
    rates: tuple[float, ...] = (0.025, 0.05, 0.1)
    time: int = 1000
    modes: int = 4
    curvature: float = 1.0
    sigma: float = 1.0
    totals: tuple[int, ...] = (250, 500, 1000, 1500, 2000, 2500)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("time", self.time, low=1, what="updates until the curves cross")
        if len(self.rates) < 2 or list(self.rates) != sorted(set(self.rates)):
            raise InputError(f"rates must be at least two, increasing, got {self.rates!r}")

    @property
    def valley(self) -> StraightRiver:
        """The river with the slope that makes the curves cross at `time`."""
        slope = self.sigma * math.sqrt(self.modes / (4.0 * self.time))
        return StraightRiver.equal(slope, self.modes, self.curvature)


def measure_crossing(s: CrossingSetting, bench: Bench) -> xr.Dataset:
    """Curves of the constant rates, and the final losses of the cooled runs, on the same noise."""
    valley, longest = s.valley, max(s.totals)
    options: dict[str, Any] = {"sigma": s.sigma, "start": STATIONARY, "replicates": s.replicates}
    constant = [Constant(peak_lr=lr, steps=longest) for lr in s.rates]
    runs = bench.compare(valley, constant, every=max(longest // 100, 1), **options)
    mean, error = zip(*(mean_error(ds["loss"].values) for ds in runs), strict=True)
    plans = [cooldown(None, lr, s.curvature, n // 2, stable=n - n // 2) for lr in s.rates for n in s.totals]
    cooled = bench.compare(valley, plans, every=longest, **options)
    shape = (len(s.rates), len(s.totals))
    final = np.array([[*mean_error(ds["loss"].values[:, -1]), float(ds["exact_loss"][-1])] for ds in cooled])
    # From their own stationary states the losses differ by a straight line in time, whose zero is the crossing.
    gap = runs[-1]["loss"].values - runs[0]["loss"].values
    fall, level = np.polyfit(runs[0]["eval_step"].values, gap.T, 1)
    found, doubt = ratio_and_error(level, -fall)
    height = [s.modes * float(stationary_hill(lr, s.curvature, s.sigma)) for lr in (s.rates[0], s.rates[-1])]
    values = {
        "rate": list(s.rates),
        "eval_step": runs[0]["eval_step"].values,
        "mean_loss": np.array(mean),
        "mean_loss_error": np.array(error),
        "expected_loss": np.array([ds["exact_loss"].values for ds in runs]),
        "total": list(s.totals),
        "final_loss": final[:, 0].reshape(shape),
        "final_loss_error": final[:, 1].reshape(shape),
        "expected_final_loss": final[:, 2].reshape(shape),
        "crossing_time": crossing_time(valley.slope, s.sigma, modes=s.modes),
        "crossing_time_found": found,
        "crossing_time_error": doubt,
        "crossing_time_exact": (height[1] - height[0]) / (valley.slope**2 * (s.rates[-1] - s.rates[0])),
    }
    curves = ("mean_loss", "mean_loss_error", "expected_loss")
    ends = ("final_loss", "final_loss_error", "expected_final_loss")
    return toy_dataset(values, dict.fromkeys(curves, ("rate", "eval_step")) | dict.fromkeys(ends, ("rate", "total")))


def crossing_numbers(ds: xr.Dataset) -> list[Number]:
    """The crossing of the outer two rates, and the loss of the largest against the smallest rate after cooldowns."""
    found, error = float(ds["crossing_time_found"]), float(ds["crossing_time_error"])
    low, high = float(ds["rate"][0]), float(ds["rate"][-1])
    told = f"crossing of the rates {low:g} and {high:g}"
    out = [
        Number(f"{told}, exact", found, error, float(ds["crossing_time_exact"])),
        Number(f"{told}, leading order", found, error, float(ds["crossing_time"]), exact=False),
    ]
    for total in ds["total"].values[[0, -1]]:
        for rate in (low, high):
            at = ds.sel(rate=rate, total=total)
            told = f"loss after a cooldown, rate {rate:g}, T = {total}"
            out.append(number_of(at, told, "final_loss", "final_loss_error", "expected_final_loss"))
    return out


CROSSING = Study(
    name="crossing",
    summary="curves of constant rates cross at one time; after a long cooldown the larger rate is ahead before it, too",
    source="derived in the setting of arXiv:2410.05192",
    setting=CrossingSetting,
    parts=lambda s: 2,
    measure=measure_crossing,
    numbers=crossing_numbers,
    quick={"replicates": 1000, "time": 400, "totals": (100, 200, 400, 600, 800, 1000)},
)


# --- sharpening ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class SharpeningSetting(StudySetting):
    """A straight valley that narrows downstream, h = h0 exp(k x), at multiples of its fastest rate.

    There is no noise along the river: it would only blur the distance.

    Args:
        growth, curvature: k and h0.
        sigma: standard deviation of the gradient noise across the river.
        best: the fastest rate 2c/(k sigma^2), which sets the slope c.
        multiples: simulated rates in units of `best`.
        steps: updates of each run.
    """

    replicates: int = 4000
    growth: float = 0.2
    curvature: float = 0.25
    sigma: float = 1.0
    best: float = 0.1
    multiples: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
    steps: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("steps", self.steps, low=10)
        if list(self.multiples) != sorted(set(self.multiples)) or len(self.multiples) < 3:
            raise InputError(f"multiples must be at least three, increasing, got {self.multiples!r}")

    @property
    def slope(self) -> float:
        """c."""
        return 0.5 * self.best * self.growth * self.sigma**2


def measure_sharpening(s: SharpeningSetting, bench: Bench) -> xr.Dataset:
    """Distance and speed at every rate, each from hills at rest, beside the leading-order theory."""
    rates = [s.best * m for m in s.multiples]
    valley = SharpeningValley(s.slope, s.curvature, s.growth)
    distance, error, speed = [], [], []
    for lr in rates:  # the stationary state to start from is another one for each rate
        rest = math.sqrt(float(stationary_variance(lr, s.curvature, s.sigma)))
        (ds,) = bench.compare(
            valley, [Constant(peak_lr=lr, steps=s.steps)], noise=Anisotropic((0.0, s.sigma)), start=(0.0, rest),
            replicates=s.replicates, every=max(s.steps // 100, 1),
        )  # fmt: skip
        travelled = -ds["river"].values / s.slope
        mean, doubt = mean_error(travelled)
        distance.append(mean)
        error.append(doubt)
        speed.append([float(v) for v in mean_error(travelled[:, -1] / s.steps)])
    states = ds["eval_step"].values
    expected = np.array([expected_distance(s, lr) for lr in rates])[:, states]
    values = {
        "rate": rates,
        "eval_step": states,
        "mean_distance": distance,
        "mean_distance_error": error,
        "expected_distance": expected,
        "speed": [v for v, _ in speed],
        "speed_error": [e for _, e in speed],
        "expected_speed": expected[:, -1] / s.steps,
        "leading_speed": [sharpening_speed(lr, s.slope, s.sigma, s.growth) for lr in rates],
        "straight_speed": [s.slope * lr for lr in rates],
        "fastest_rate": fastest_rate(s.slope, s.sigma, s.growth),
    }
    return toy_dataset(values, {})


def expected_distance(s: SharpeningSetting, lr: float) -> FloatArray:
    """Place after 0..T updates where the hill loss H is at its balance everywhere: x <- x + lr (c - k H(h0 e^(kx))).

    `riverval.theory_runs.sharpening_speed` is its leading order in lr h, H = lr sigma^2/4.
    """
    x = np.zeros(s.steps + 1)
    for t in range(s.steps):
        hill = float(stationary_hill(lr, s.curvature * math.exp(s.growth * x[t]), s.sigma))
        x[t + 1] = x[t] + lr * (s.slope - s.growth * hill)
    return x


def sharpening_numbers(ds: xr.Dataset) -> list[Number]:
    """The fastest rate, and the speeds at the simulated rates."""
    fastest = float(ds["fastest_rate"])
    simulated = float(ds["rate"][int(np.argmax(ds["speed"].values))])
    out = [Number("fastest of the simulated rates", simulated, math.nan, fastest, exact=False)]
    for rate in ds["rate"].values:
        at = ds.sel(rate=rate)
        told = f"progress in one update at {rate / fastest:g} times the fastest rate"
        out.append(number_of(at, told, "speed", "speed_error", "expected_speed", exact=False))
    return out


SHARPENING = Study(
    name="sharpening",
    summary="in a valley that narrows downstream a larger rate is not faster: progress peaks, stalls and reverses",
    source="derived; the counter-example to 'a larger rate goes further'",
    setting=SharpeningSetting,
    parts=lambda s: len(s.multiples),
    measure=measure_sharpening,
    numbers=sharpening_numbers,
    quick={"replicates": 400, "steps": 600},
)
