"""P-RIVER: how far the iterate gets along a straight river, and when a higher rate pays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from .. import theory, theory_runs
from .._typing import FloatArray
from ..schedules import WSD, WSDS, Constant, CosineSchedule, Schedule
from .losses import StraightRiver
from .optimizers import make_optimizer
from .predict_decay import cooldown
from .prediction import (
    Lab,
    Outcome,
    Parameters,
    Prediction,
    Span,
    mean_and_error,
    ratio_and_error,
    registrar_of,
    variance_and_error,
)
from .valleys import SharpeningValley

RIVER: dict[str, Prediction] = {}
predicts = registrar_of(RIVER)

SIGMA = Span(1.0, 0.1, 3.0, "standard deviation sigma of the gradient noise")
SLOPE = Span(0.2, 0.02, 1.0, "slope c of the river")
CURVATURE = Span(1.0, 0.2, 5.0, "curvature h of the hills")


def distance(ds: xr.Dataset, slope: float) -> FloatArray:
    """River coordinate of the last state, one for each replicate."""
    return -ds["river"].values[:, -1] / slope


@predicts(
    "P-RIVER.1",
    statement="the river coordinate of SGD depends on the sum of the rates, its spread on their squares",
    formula="E[x_T] = x_0 + c S, S = sum eta_t; Var[x_T] = sigma^2 sum eta_t^2",
    source="2410.05192 (progress of SGD as of gradient descent); variance derived",
    validity="straight river, any schedule",
    spans={
        "lr": Span(0.1, 0.01, 0.5, "peak rate"),
        "steps": Span(200, 20, 400, "updates T", whole=True),
        "slope": SLOPE,
        "sigma": SIGMA,
    },
)
def progress_is_the_sum_of_rates(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, steps, slope, sigma = p["lr"], int(p["steps"]), p["slope"], p["sigma"]
    wsd = WSD(peak_lr=lr, steps=steps, cooldown=0.3)
    plans: dict[str, Schedule] = {
        "wsd": wsd,
        "wsd-s": WSDS(peak_lr=lr, steps=steps, cycles=2, cooldown=0.4),
        "cosine": CosineSchedule(peak_lr=lr, steps=steps),
        "constant of the sum of wsd": Constant(peak_lr=wsd.area() / steps, steps=steps),
    }
    out, reached = [], {}
    for name, plan in plans.items():
        valley = StraightRiver(slope, (0.5 / lr,))
        ds = lab.simulate(valley, plan, sigma=sigma, replicates=lab.samples(20_000), start=0.0, every=steps)
        x = reached[name] = distance(ds, slope)
        out.append(Outcome(f"mean river coordinate, {name}", slope * plan.area(), *mean_and_error(x)))
        spread = sigma**2 * float(np.sum(plan.values() ** 2))
        out.append(Outcome(f"variance, {name}", spread, *variance_and_error(x)))
    (a, da), (b, db) = (mean_and_error(reached[name]) for name in ("wsd", "constant of the sum of wsd"))
    out.append(Outcome("difference of the two of equal sum", 0.0, a - b, math.hypot(da, db)))
    return out


def _start_of_crossing(p: Parameters) -> tuple[StraightRiver, int]:
    """A valley in which undecayed curves cross after `time` updates, to leading order."""
    modes = int(p["modes"])
    slope = p["sigma"] * math.sqrt(modes / (4.0 * p["time"]))
    return StraightRiver(slope, (p["curvature"],) * modes), 2 * int(p["time"])


CROSSING = {
    "time": Span(400, 200, 1500, "crossing time m sigma^2 / (4 c^2)", whole=True),
    "modes": Span(16, 2, 24, "number m of hill directions", whole=True),
    "product": Span(0.1, 0.05, 0.1, "eta h of the larger rate"),
    "curvature": CURVATURE,
    "sigma": SIGMA,
}


@predicts(
    "P-RIVER.2",
    statement="undecayed loss curves of any two rates cross once, at the same time; a higher rate leads only after it",
    formula="T_x = m sigma^2 / (4 c^2) to leading order; exactly m sigma^2 / (c^2 (2 - eta_1 h)(2 - eta_2 h))",
    source="derived",
    validity="both rates at their stationary state, eta h <= 0.1",
    spans=CROSSING,
)
def curves_cross_once(p: Parameters, lab: Lab) -> list[Outcome]:
    valley, steps = _start_of_crossing(p)
    lr, sigma = p["product"] / p["curvature"], p["sigma"]
    leading = theory_runs.crossing_time(valley.slope, sigma, modes=len(valley.curvatures))
    shares = (1.0, 0.5, 0.25)
    plans = [Constant(peak_lr=lr * share, steps=steps) for share in shares]
    runs = lab.compare(
        valley, plans, sigma=sigma, start="stationary", replicates=lab.samples(1000), every=math.ceil(steps / 40)
    )
    out = []
    for share, lower in zip(shares[1:], runs[1:], strict=True):
        gap = runs[0]["loss"].values - lower["loss"].values  # its mean is linear in time
        level, fall = _lines(lower["eval_step"].values, gap)
        crossing, error = ratio_and_error(level, -fall)
        exact = theory_runs.crossing_step(lr, lr * share, valley.slope, valley.curvatures, sigma)
        pair = f"rates 1:{share:g}"
        out.append(Outcome(f"crossing, {pair}", exact, crossing, error))
        allowance = leading * p["product"] * (1.0 + share)
        out.append(Outcome(f"leading order, {pair}", leading, crossing, error, allowance, "leading order in eta h"))
        early, late = (mean_and_error(level + fall * leading * times) for times in (0.3, 1.7))
        out.append(Outcome(f"behind before the crossing, {pair}", 0.0, *early, relation=">"))
        out.append(Outcome(f"ahead after it, {pair}", 0.0, *late, relation="<"))
    return out


def _lines(states: np.ndarray, curves: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Level at state 0 and slope of the straight line through each curve; curves (n, states) -> (n,), (n,)."""
    slope, level = np.polyfit(states, curves.T, 1)
    return level, slope


@predicts(
    "P-RIVER.2b",
    statement="after a long decay the higher rate is ahead at every time, also before the crossing",
    formula="L(eta_2) < L(eta_1) for eta_2 > eta_1, each after its optimal cooldown",
    source="derived",
    validity="optimal cooldown over the last half of the run, eta_1 h T_d >= 5, T >= T_x / 2",
    spans=CROSSING | {"time": Span(800, 800, 1500, "crossing time m sigma^2 / (4 c^2)", whole=True)},
)
def higher_rate_is_ahead_after_a_decay(p: Parameters, lab: Lab) -> list[Outcome]:
    valley, _ = _start_of_crossing(p)
    lr, out = p["product"] / p["curvature"], []
    for times in (0.5, 1.0, 2.0):
        steps = round(p["time"] * times)
        last = steps // 2
        plans = [cooldown(None, rate, p["curvature"], last, stable=steps - last) for rate in (lr, lr / 2)]
        options: dict[str, Any] = {"sigma": p["sigma"], "start": "stationary", "every": steps}
        high, low = (
            ds["loss"].values[:, -1] for ds in lab.compare(valley, plans, replicates=lab.samples(500), **options)
        )
        out.append(
            Outcome(
                f"loss of the higher rate minus the lower, T = {times:g} T_x",
                0.0,
                *mean_and_error(high - low),
                relation="<",
            )
        )
    return out


# --- narrowing and widening valleys ----------------------------------------------------------------------------------
def speed(lab: Lab, p: Parameters, lr: float, growth: float) -> tuple[float, float]:
    """Mean progress in one update in a valley whose curvature grows as exp(growth x), and its standard error.

    Noise along the river would hide it. A straight valley without hill noise has the same noise along the river and
    makes exactly c eta in the mean: the difference of the two has what the hills do.
    """
    steps, h, slope = 200, p["curvature"], _slope(p)
    plan = Constant(peak_lr=lr, steps=steps)
    options: dict[str, Any] = {"sigma": p["sigma"], "replicates": lab.samples(2500), "every": steps}
    seed, rest = lab.seed(), math.sqrt(float(theory.stationary_variance(lr, h, p["sigma"])))
    bent = lab.simulate(SharpeningValley(slope, h, growth), plan, seed=seed, start=(0.0, rest), **options)
    plain = lab.simulate(StraightRiver(slope, (h,)), plan, seed=seed, start=(0.0, rest), **options)
    slowed, error = mean_and_error((distance(bent, slope) - distance(plain, slope)) / steps)
    return lr * slope + slowed, error


SHARPENING = {
    "growth": Span(0.2, 0.1, 0.2, "growth k of log h per unit of x"),
    "best": Span(0.1, 0.05, 0.12, "rate 2c/(k sigma^2), which sets the slope c"),
    "curvature": Span(0.5, 0.3, 0.8, "curvature h_0 at x = 0"),
    "sigma": Span(1.0, 0.5, 1.0, "standard deviation sigma of the gradient noise"),
}


@predicts(
    "P-RIVER.3",
    statement="noise between hills that steepen along the river pushes back: speed is not monotone in the rate",
    formula="h = h_0 e^(kx): speed eta (c - eta sigma^2 k / 4), best eta = 2c/(k sigma^2), stall at twice that",
    source="derived",
    validity="adiabatic, k c eta << eta h and k^2 sigma^2 eta << h; eta h <= 0.2",
    spans=SHARPENING,
)
def noise_pushes_back(p: Parameters, lab: Lab) -> list[Outcome]:
    slope, out, speeds = _slope(p), [], {}
    best = theory_runs.fastest_rate(slope, p["sigma"], p["growth"])
    for times in (0.5, 1.0, 2.0):
        lr = best * times
        expected = theory_runs.sharpening_speed(lr, slope, p["sigma"], p["growth"])
        speeds[times] = measured, error = speed(lab, p, lr, p["growth"])
        small = lr * p["curvature"] + (p["growth"] * p["sigma"]) ** 2 * lr / p["curvature"]
        allowance = (lr * slope - expected) * small
        because = "leading order of the push back in eta h and k^2 sigma^2 eta/h"
        out.append(Outcome(f"speed at {times:g} times the best rate", expected, measured, error, allowance, because))
    (at_best, d_best), (at_half, d_half) = speeds[1.0], speeds[0.5]
    out.append(
        Outcome("gain from half the best rate", 0.0, at_best - at_half, math.hypot(d_best, d_half), relation=">")
    )
    widening, error = speed(lab, p, best, -p["growth"])
    return [*out, Outcome("gain by a widening valley", 0.0, widening - best * slope, error, relation=">")]


def _slope(p: Parameters) -> float:
    """The slope at which `best` is the rate of the fastest progress."""
    return 0.5 * p["best"] * p["growth"] * p["sigma"] ** 2


@predicts(
    "P-RIVER.3b",
    statement="a larger rate gets further along the river",
    formula="speed(2 eta) > speed(eta), speed > 0",
    source="2410.05192, for valleys of constant width",
    validity="a sharpening valley beyond eta = 2c/(k sigma^2), where it is wrong",
    spans=SHARPENING,
    must_fail=True,
)
def larger_rate_is_not_faster(p: Parameters, lab: Lab) -> list[Outcome]:
    (slow, d_slow), (fast, d_fast) = (speed(lab, p, p["best"] * times, p["growth"]) for times in (1.0, 3.0))
    return [
        Outcome("gain by three times the best rate", 0.0, fast - slow, math.hypot(d_slow, d_fast), relation=">"),
        Outcome("speed at three times the best rate", 0.0, fast, d_fast, relation=">"),
    ]


# --- other optimizers ------------------------------------------------------------------------------------------------
@predicts(
    "P-RIVER.4",
    statement="sign-SGD: speed by the odds of the sign; hill loss is linear, not quadratic, in the noise",
    formula="speed eta erf(c / (sigma sqrt 2)); H ~ (eta sigma / 4) sqrt(pi/2) = 0.313 eta sigma",
    source="derived",
    validity="the hill force within one step is small against sigma: eta h <= 0.05 sigma",
    spans={
        "product": Span(0.02, 0.01, 0.05, "eta h / sigma"),
        "ratio": Span(0.3, 0.05, 2.0, "c / sigma"),
        "curvature": CURVATURE,
        "sigma": SIGMA,
    },
)
def sign_descent(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma, slope = p["curvature"], p["sigma"], p["ratio"] * p["sigma"]
    lr = p["product"] * sigma / h
    steps = math.ceil(6.0 / p["product"])  # the hill relaxes at eta h sqrt(2/pi)/sigma in each update
    expected = math.sqrt(math.pi / 2.0) / 4.0 * lr * sigma
    heights = []
    for noise in (sigma, 2.0 * sigma):
        plan = Constant(peak_lr=lr, steps=2 * steps)
        ds = lab.simulate(
            StraightRiver(slope, (h,) * 16),
            plan,
            sigma=noise,
            optimizer=make_optimizer("sign"),
            start=0.0,
            replicates=lab.samples(256),
            every=math.ceil(steps / 20),
        )
        late = ds["hill"].values[:, ds["eval_step"].values >= steps].mean(axis=1) / 16
        heights.append(mean_and_error(late))
        if noise == sigma:
            progress = mean_and_error(distance(ds, slope) / (2 * steps))
    (height, error), (doubled, doubled_error) = heights
    slope_of_noise = math.log2(doubled / height)
    slope_error = math.hypot(error / height, doubled_error / doubled) / math.log(2.0)
    because = "leading order in eta h / sigma"
    return [
        Outcome("speed", float(theory.sign_speed(lr, slope, sigma)), *progress),
        Outcome("hill loss", expected, height, error, expected * p["product"], because),
        Outcome("slope of log H against log sigma", 1.0, slope_of_noise, slope_error, p["product"], because),
    ]


@predicts(
    "P-RIVER.5",
    statement="momentum of weight 1-b: same speed, less spread between the hills, stable for larger rates",
    formula="Var = eta sigma^2 / (h (2 - eta h (1-b)/(1+b))); speed c eta",
    source="derived; stability 2(1+b)/(1-b) as in public follow-up code",
    validity="eta h < 2(1+b)/(1-b); speed after many 1/(1-b)",
    spans={
        "product": Span(1.8, 0.1, 2.5, "eta h"),
        "beta": Span(0.9, 0.5, 0.95, "b"),
        "slope": SLOPE,
        "curvature": CURVATURE,
        "sigma": SIGMA,
    },
)
def momentum(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma, beta, slope = p["curvature"], p["sigma"], p["beta"], p["slope"]
    lr = p["product"] / h
    settle = math.ceil(10.0 / (1.0 - beta) + 6.0 / p["product"])
    plan = Constant(peak_lr=lr, steps=3 * settle)
    ds = lab.simulate(
        StraightRiver(slope, (h,) * 16),
        plan,
        sigma=sigma,
        optimizer=make_optimizer("ema-momentum", beta=beta),
        start=0.0,
        replicates=lab.samples(512),
        every=math.ceil(settle / 20),
    )
    late = ds["eval_step"].values >= settle
    states = ds["eval_step"].values[late]
    variance = 2.0 / h * ds["hill"].values[:, late].mean(axis=1) / 16
    x = -ds["river"].values[:, late] / slope
    progress = (x[:, -1] - x[:, 0]) / (states[-1] - states[0])
    expected = float(theory.momentum_variance("ema-momentum", lr, h, sigma, beta=beta))
    return [
        Outcome("variance between the hills", expected, *mean_and_error(variance)),
        Outcome("speed", lr * slope, *mean_and_error(progress)),
    ]
