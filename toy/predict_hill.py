"""P-HILL: the stationary height of SGD between the hills, measured by simulation from the bottom of the valley."""

from __future__ import annotations

import math

import numpy as np

from .. import theory
from .._typing import FloatArray
from ..schedules import Constant
from .losses import StraightRiver
from .noise import make_noise
from .prediction import Lab, Outcome, Parameters, Prediction, Span, mean_and_error, registrar_of

HILL: dict[str, Prediction] = {}
predicts = registrar_of(HILL)

DERIVED = "derived; 2410.05192 has the order of magnitude"
MODES = 16  # equal hill directions are independent samples of one
REPLICATES = 256
STATES = 40

CURVATURE = Span(2.0, 0.1, 10.0, "curvature h of the hills")
SIGMA = Span(1.0, 0.1, 3.0, "standard deviation sigma of the gradient noise")


def settled(lab: Lab, lr: float, curvatures: tuple[float, ...], **noise: object) -> FloatArray:
    """Hill loss of each replicate, averaged over `STATES` states from the moment when the start is forgotten; (n,)."""
    products = lr * np.array(curvatures)
    slowest = float(np.max(np.abs(1.0 - products)))
    forgotten = math.ceil(math.log(1e-5) / (2.0 * math.log(max(slowest, 1e-3))))
    spacing = math.ceil(-1.0 / (2.0 * math.log(max(slowest, 1e-3))))
    plan = Constant(peak_lr=lr, steps=forgotten + STATES * spacing)
    replicates = lab.samples(REPLICATES)
    ds = lab.simulate(StraightRiver(0.0, curvatures), plan, replicates=replicates, start=0.0, every=spacing, **noise)
    late = ds["hill"].values[:, ds["eval_step"].values >= forgotten]
    return late.mean(axis=1)


def per_mode(lab: Lab, lr: float, curvature: float, sigma: float) -> tuple[float, float]:
    """Stationary hill loss of one direction and its standard error, from `MODES` equal ones."""
    return mean_and_error(settled(lab, lr, (curvature,) * MODES, sigma=sigma) / MODES)


def log_ratio(above: tuple[float, float], below: tuple[float, float]) -> tuple[float, float]:
    """Logarithm of the ratio of two independent (mean, error) pairs, and its error."""
    (a, da), (b, db) = above, below
    return math.log(a / b), math.hypot(da / a, db / b)


@predicts(
    "P-HILL.1",
    statement="stationary hill loss of a direction; it grows with the rate and with the curvature",
    formula="H = eta sigma^2 / (2 (2 - eta h))",
    source=DERIVED,
    validity="0 < eta h < 2",
    spans={
        "product": Span(0.3, 0.05, 1.9, "eta h"),
        "curvature": CURVATURE,
        "sigma": SIGMA,
    },
)
def stationary_height(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma = p["curvature"], p["sigma"]
    lr = p["product"] / h
    measured, error = per_mode(lab, lr, h, sigma)
    at = Outcome("hill loss", float(theory.stationary_hill(lr, h, sigma)), measured, error)
    # Both factors go halfway to the edge, so that the steps up can be seen for every product.
    factor = 0.5 * (1.0 + 2.0 / p["product"])
    faster, faster_error = per_mode(lab, lr * factor, h, sigma)
    steeper, steeper_error = per_mode(lab, lr, h * factor, sigma)
    return [
        at,
        Outcome("gain by a larger rate", 0.0, faster - measured, math.hypot(error, faster_error), relation=">"),
        Outcome("gain by a steeper hill", 0.0, steeper - measured, math.hypot(error, steeper_error), relation=">"),
    ]


@predicts(
    "P-HILL.1b",
    statement="at eta h = 2 there is no stationary state: the hill loss grows by the same amount at every update",
    formula="E[h y_t^2 / 2] = t eta^2 sigma^2 h / 2 = t eta sigma^2",
    source="derived",
    validity="eta h = 2",
    spans={"curvature": CURVATURE, "sigma": SIGMA},
)
def no_height_at_the_edge(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma = p["curvature"], p["sigma"]
    lr, out = 2.0 / h, []
    for steps in (100, 400):
        plan = Constant(peak_lr=lr, steps=steps)
        valley = StraightRiver(0.0, (h,) * MODES)
        ds = lab.simulate(valley, plan, sigma=sigma, replicates=lab.samples(2048), start=0.0, every=steps)
        height, error = mean_and_error(ds["hill"].values[:, -1] / MODES)
        out.append(Outcome(f"hill loss after {steps}", steps * lr * sigma**2, height, error))
    return out


@predicts(
    "P-HILL.2",
    statement="bounds on the hill loss of d-1 directions of different curvature, none beyond eta h = 1",
    formula="(d-1) eta sigma^2 / 4 < H <= (d-1) eta sigma^2 / 2",
    source="upper bound as quoted from 2410.05192, lower bound derived",
    validity="eta h_max <= 1",
    spans={"product": Span(1.0, 0.2, 1.0, "eta h_max"), "curvature": CURVATURE, "sigma": SIGMA},
)
def bounds_on_the_height(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, sigma = p["product"] / p["curvature"], p["sigma"]
    spectrum = tuple(np.linspace(0.2, 1.0, MODES) * p["curvature"])
    measured, error = mean_and_error(settled(lab, lr, spectrum, sigma=sigma))
    unit = MODES * lr * sigma**2
    return [
        Outcome("hill loss, lower bound", unit / 4, measured, error, relation=">"),
        Outcome("hill loss, upper bound", unit / 2, measured, error, relation="<="),
    ]


@predicts(
    "P-HILL.2b",
    statement="the upper bound is reached where eta h = 1",
    formula="H = eta sigma^2 / 2",
    source="derived",
    validity="eta h = 1",
    spans={"curvature": CURVATURE, "sigma": SIGMA},
)
def bound_is_reached(p: Parameters, lab: Lab) -> list[Outcome]:
    lr = 1.0 / p["curvature"]
    return [Outcome("hill loss", lr * p["sigma"] ** 2 / 2, *per_mode(lab, lr, p["curvature"], p["sigma"]))]


@predicts(
    "P-HILL.2c",
    statement="tighter bound in the range of rates of the paper's theorem",
    formula="(d-1) eta sigma^2 / 4 < H <= (d-1) eta sigma^2 / 3 for eta < gamma / (2 gamma_max^2)",
    source="range of rates: 2410.05192; bound derived",
    validity="curvatures in [gamma, gamma_max], gamma >= gamma_max / 2, and eta at least half the largest rate",
    spans={
        "share": Span(0.99, 0.5, 0.99, "rate over the largest that is allowed"),
        "spread": Span(0.8, 0.5, 1.0, "gamma / gamma_max"),
        "curvature": CURVATURE,
        "sigma": SIGMA,
    },
)
def bounds_in_the_range_of_the_theorem(p: Parameters, lab: Lab) -> list[Outcome]:
    largest, sigma = p["curvature"], p["sigma"]
    lr = p["share"] * p["spread"] / (2.0 * largest)
    spectrum = tuple(np.linspace(p["spread"], 1.0, MODES) * largest)
    measured, error = mean_and_error(settled(lab, lr, spectrum, sigma=sigma))
    unit = MODES * lr * sigma**2
    return [
        Outcome("hill loss, lower bound", unit / 4, measured, error, relation=">"),
        Outcome("hill loss, upper bound", unit / 3, measured, error, relation="<="),
    ]


@predicts(
    "P-HILL.2d",
    statement="the bound eta sigma^2 / 2 for each direction, beyond eta h = 1",
    formula="H <= eta sigma^2 / 2",
    source="derived",
    validity="1 < eta h < 2, where it is wrong",
    spans={"product": Span(1.5, 1.1, 1.9, "eta h"), "curvature": CURVATURE, "sigma": SIGMA},
    must_fail=True,
)
def bound_beyond_its_range(p: Parameters, lab: Lab) -> list[Outcome]:
    lr = p["product"] / p["curvature"]
    measured, error = per_mode(lab, lr, p["curvature"], p["sigma"])
    return [Outcome("hill loss", lr * p["sigma"] ** 2 / 2, measured, error, relation="<=")]


@predicts(
    "P-HILL.3",
    statement="from any start the variance relaxes to its stationary value, halfway in ln 2 / (2 eta h) updates",
    formula="v_t - v* = (1 - eta h)^(2t) (v_0 - v*)",
    source="derived",
    validity="0 < eta h < 2; the half-time where eta h <= 0.2",
    spans={
        "product": Span(0.05, 0.01, 0.2, "eta h"),
        "height": Span(20.0, 5.0, 50.0, "start: hill loss over its stationary value"),
        "curvature": CURVATURE,
        "sigma": SIGMA,
    },
)
def relaxation(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma = p["curvature"], p["sigma"]
    lr = p["product"] / h
    rest = float(theory.stationary_variance(lr, h, sigma))
    start = math.sqrt(p["height"] * rest)
    half = math.log(2.0) / (2.0 * p["product"])  # leading order, as it is stated
    steps = math.ceil(3.0 * half)
    ds = lab.simulate(
        StraightRiver(0.0, (h,) * MODES),
        Constant(peak_lr=lr, steps=steps),
        sigma=sigma,
        start=start,
        replicates=lab.samples(2 * REPLICATES),
        every=1,
    )
    heights = ds["hill"].values / MODES
    out = []
    for steps_made in (round(half), steps):
        expected = 0.5 * h * float(theory.relaxed_variance(lr, h, sigma, steps_made, start=start**2))
        out.append(Outcome(f"hill loss after {steps_made}", expected, *mean_and_error(heights[:, steps_made])))
    # The mean falls steadily, so the time at which it has fallen halfway is found between two states.
    aim = 0.5 * h * rest * (1.0 + 0.5 * (p["height"] - 1.0))
    mean = heights.mean(axis=0)
    after = int(np.argmax(mean < aim))
    slope = mean[after - 1] - mean[after]
    time = after - 1 + (mean[after - 1] - aim) / slope
    error = mean_and_error(heights[:, after])[1] / slope
    allowance = half * p["product"]
    out.append(Outcome("updates to fall halfway", half, time, error, allowance, "leading order in eta h"))
    return out


@predicts(
    "P-HILL.4",
    statement="hill loss is proportional to the rate, to the noise variance (so to 1/batch), and not to the curvature",
    formula="H ~ eta^1 sigma^2 h^0; eta / batch fixed keeps H fixed",
    source=DERIVED,
    validity="eta h <= 0.2 at the larger of the two rates",
    spans={"product": Span(0.1, 0.05, 0.2, "eta h of the larger rate"), "curvature": CURVATURE, "sigma": SIGMA},
)
def scaling(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma = p["curvature"], p["sigma"]
    lr = p["product"] / h
    full = per_mode(lab, lr, h, sigma)
    half = 0.4 * p["product"]  # of log((2 - eta h/2) / (2 - eta h)) / log 2, which leading order leaves out
    doublings = (
        ("eta", 1.0, (lr / 2, h, sigma), half),
        ("sigma", 2.0, (lr, h, sigma / 2), 0.0),
        ("batch", -1.0, (lr, h, sigma * math.sqrt(2.0)), 0.0),
        ("eta at fixed eta / batch", 0.0, (lr / 2, h, sigma * math.sqrt(2.0)), half),
        ("h", 0.0, (lr, h / 2, sigma), half),
    )
    out = []
    for of, slope, other, allowance in doublings:
        change, error = log_ratio(full, per_mode(lab, *other))
        told = (f"slope of log H against log {of}", slope, change / math.log(2.0), error / math.log(2.0))
        out.append(Outcome(*told, allowance, "leading order in eta h" if allowance else ""))
    return out


@predicts(
    "P-HILL.4b",
    statement="near the edge the hill loss grows faster than the rate",
    formula="d log H / d log eta = 1 + eta h / (2 - eta h) > 1",
    source="derived",
    validity="0.5 <= eta h <= 1.9",
    spans={"product": Span(1.8, 0.5, 1.9, "eta h of the larger rate"), "curvature": CURVATURE, "sigma": SIGMA},
)
def slope_at_the_edge(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma, apart = p["curvature"], p["sigma"], 1.1
    lr = p["product"] / h
    change, error = log_ratio(per_mode(lab, lr, h, sigma), per_mode(lab, lr / apart, h, sigma))
    ends = [2.0 - p["product"] / apart, 2.0 - p["product"]]
    slope = 1.0 + math.log(ends[0] / ends[1]) / math.log(apart)  # the derivative, averaged between the two rates
    value, error = change / math.log(apart), error / math.log(apart)
    return [
        Outcome("slope of log H against log eta", slope, value, error),
        Outcome("slope against that of small rates", 1.0, value, error, relation=">"),
    ]


@predicts(
    "P-HILL.5",
    statement="without noise the hill loss vanishes, and of all stable rates a larger one gets further down",
    formula="sigma = 0: H = 0, loss after T updates falls with eta for eta h < 2",
    source="2410.05192, theorem on gradient descent",
    validity="eta h <= 1.9, after 400 updates",
    spans={"curvature": CURVATURE, "slope": Span(0.1, 0.01, 1.0, "slope c of the river")},
)
def without_noise(p: Parameters, lab: Lab) -> list[Outcome]:
    losses, hills = [], []
    for product in (0.1, 0.5, 1.0, 1.5, 1.9):
        plan = Constant(peak_lr=product / p["curvature"], steps=400)
        ds = lab.simulate(StraightRiver(p["slope"], (p["curvature"],)), plan, sigma=0.0, replicates=1, start=0.25)
        losses.append(float(ds["loss"].values[0, -1]))
        hills.append(float(ds["hill"].values[0, -1]))
    least = float(np.min(-np.diff(losses)))
    return [
        Outcome(
            "largest final hill loss", 0.0, max(hills), allowance=1e-12, because="rounding, (1 - eta h)^800 = 1e-36"
        ),
        Outcome("least gain by the next larger rate", 0.0, least, relation=">"),
    ]


@predicts(
    "P-HILL.6",
    statement="with the noise of sampled labels (covariance H/B) the hill loss depends on the trace, not the dimension",
    formula="H_i = eta lam / (2B (2 - eta lam)), total (eta / 4B) tr H",
    source="derived",
    validity="eta lam_max <= 0.1 for the total",
    spans={
        "product": Span(0.05, 0.02, 0.1, "eta lam_max"),
        "curvature": CURVATURE,
        "batch": Span(4.0, 1.0, 64.0, "batch size B", whole=True),
    },
)
def sampling_noise(p: Parameters, lab: Lab) -> list[Outcome]:
    largest, batch = p["curvature"], p["batch"]
    lr = p["product"] / largest
    few = (largest,) * MODES
    many = (largest,) * (MODES // 2) + (largest / 4,) * (2 * MODES)  # the same trace in 2.5 times as many dimensions
    out = []
    for spectrum in (few, many):
        # In a quadratic the covariance H/B is the same everywhere, so it is given by its square roots.
        noise = make_noise("anisotropic", sigmas=(0.0, *np.sqrt(np.array(spectrum) / batch).tolist()))
        height = mean_and_error(settled(lab, lr, spectrum, noise=noise))
        d = len(spectrum)
        exact = float(np.sum(theory.fisher_hill(lr, np.array(spectrum), batch)))
        total = float(theory.fisher_total(lr, math.fsum(spectrum), batch))
        allowance = total * p["product"]
        out.append(Outcome(f"hill loss, sum of {d} directions", exact, *height))
        out.append(Outcome(f"(eta/4B) tr H, {d} directions", total, *height, allowance, "leading order in eta lam"))
    return out
