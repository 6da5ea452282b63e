"""P-AVG and P-INTERP: averages of iterates, and the loss on the line between two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .. import theory, theory_decay, theory_paths
from .._typing import FloatArray
from ..schedules import Constant, Joined, Schedule
from ..segments import Cooldown
from ..shapes import Linear
from .losses import StraightRiver
from .optimizers import TailAverage
from .predict_decay import CURVATURE, MODES, SIGMA, SMALL, TO_RATIO, cooldown
from .prediction import Lab, Outcome, Parameters, Prediction, Span, mean_and_error, ratio_and_error, registrar_of
from .valleys import CircleRiver

PATHS: dict[str, Prediction] = {}
predicts = registrar_of(PATHS)

LENGTH = Span(15.0, 10.0, 40.0, "x = eta h W, the window in relaxation times")
RATE = Span(0.1, 0.05, 0.3, "eta h")


# --- P-AVG -----------------------------------------------------------------------------------------------------------
def averaged(
    lab: Lab, p: Parameters, slope: float, steps: int, plans: Sequence[Schedule]
) -> list[dict[str, FloatArray]]:
    """Last river and hill loss of each plan, and of the average of the last `steps` iterates; (replicates,) each.

    The replicates are enough for a percent; all plans see the same noise.
    """
    h = p["curvature"]
    runs = lab.compare(
        StraightRiver(slope, (h,) * MODES),
        plans,
        sigma=p["sigma"],
        start="stationary",
        replicates=lab.samples(1500),
        every=plans[0].total,
        average=TailAverage(updates=steps),
    )
    names = ("river", "hill", "average_river", "average_hill")
    return [{name: ds[name].values[:, -1] for name in names} for ds in runs]


@predicts(
    "P-AVG",
    statement="the average of W stationary iterates lies as low between the hills as an optimal decay over W updates",
    formula="(H/W)(1 + 2 sum_k (1 - k/W) rho^k), rho = 1 - eta h; -> sigma^2 / (2 h W)",
    source="derived",
    validity="straight river; leading term for x = eta h W >> 1",
    spans={"x": LENGTH, "product": RATE, "curvature": CURVATURE, "sigma": SIGMA},
)
def average_of_stationary_iterates(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma = p["curvature"], p["sigma"]
    lr, steps = p["product"] / h, round(p["x"] / p["product"])
    plans = [Constant(peak_lr=lr, steps=steps), cooldown(None, lr, h, steps)]
    stable, optimal = averaged(lab, p, 0.0, steps, plans)
    height = mean_and_error(stable["average_hill"] / MODES)
    exact = float(theory_paths.tail_average_hill(lr, h, sigma, steps))
    leading = sigma**2 / (2.0 * h * steps)
    ratio = ratio_and_error(stable["average_hill"], optimal["hill"])
    best = theory.optimal_final_hill(lr, h, sigma, steps)
    return [
        Outcome("hill loss of the average", exact, *height),
        Outcome("leading term", leading, *height, 2.0 * leading / p["x"], "next order, 1/x and eta h"),
        Outcome("over that of the optimal decay", exact / best, *ratio),
    ]


@predicts(
    "P-AVG.b",
    statement="numbers of the comparison with the optimal decay at eta h = 0.3",
    formula="W = 500: 0.000995 against 0.000989, 0.6% above; x = 15: 5% above",
    source="derived",
    validity="h = sigma = 1",
    spans={},
)
def average_against_the_optimal_decay(p: Parameters, lab: Lab) -> list[Outcome]:
    setting = {"product": 0.3, "curvature": 1.0, "sigma": 1.0}
    out = []
    for steps, stated in ((500, (0.000995, 0.000989)), (50, None)):
        plans = [Constant(peak_lr=0.3, steps=steps), cooldown(None, 0.3, 1.0, steps)]
        stable, optimal = averaged(lab, setting, 0.0, steps, plans)
        if stated:
            for name, value, found in zip(
                ("average", "optimal decay"), stated, (stable["average_hill"], optimal["hill"]), strict=True
            ):
                told = f"hill loss of the {name}, W = {steps}"
                out.append(Outcome(told, value, *mean_and_error(found / MODES), 1e-6, "stated to 1e-6"))
        else:
            exact = float(theory_paths.tail_average_hill(0.3, 1.0, 1.0, steps)) / theory.optimal_final_hill(
                0.3, 1.0, 1.0, steps
            )
            out.append(Outcome("exact ratio at x = 15", 1.05, exact, 0.0, 0.01, "stated as a percentage"))
    return out


@predicts(
    "P-AVG.c",
    statement="on a straight river the average also travels further, and lies below a linear decay to zero",
    formula="eta (W - 1)/2 > (1/h) ln(1 + eta h W/2); hill below linear for x > 5.1 at equal distance",
    source="derived",
    validity="straight river, x >= 10",
    spans={"x": LENGTH, "product": RATE, "curvature": CURVATURE, "sigma": SIGMA},
)
def average_on_a_straight_river(p: Parameters, lab: Lab) -> list[Outcome]:
    h, slope = p["curvature"], 0.5
    lr, steps = p["product"] / h, round(p["x"] / p["product"])
    plans = [Constant(peak_lr=lr, steps=steps), cooldown(None, lr, h, steps), cooldown(Linear(), lr, h, steps)]
    stable, optimal, linear = averaged(lab, p, slope, steps, plans)
    travelled = mean_and_error(-stable["average_river"] / slope**2)
    # Of W updates the average has all W states after them: half an update more than the W states before them.
    area = theory_paths.tail_average_area(lr, steps)
    further = -(slope**2) * (area - math.log1p(0.5 * p["x"]) / h)
    river = mean_and_error(stable["average_river"] - optimal["river"])
    because = "which ends of the updates are counted"
    return [
        Outcome("sum of the rates that the average is worth", area, *travelled, lr, because),
        Outcome("river loss of the average minus the optimal decay", further, *river, 2.0 * slope**2 * lr, because),
        Outcome("its sign", 0.0, *river, relation="<"),
        Outcome(
            "hill loss of the average minus linear decay",
            0.0,
            *mean_and_error(stable["average_hill"] - linear["hill"]),
            relation="<",
        ),
    ]


@predicts(
    "P-AVG.d",
    statement="the average of the iterates ends as low as an optimal decay over as many updates",
    formula="L(average) <= L(optimal decay)",
    source="derived, for straight rivers",
    validity="a bent river with c eta W long against its bends, where it is wrong: (h/2)(kappa l^2 / 24)^2 is added",
    spans={"radius": Span(4.0, 3.0, 6.0, "radius 1/kappa of the bend"), "slope": Span(0.5, 0.4, 0.6, "slope c")},
    must_fail=True,
)
def average_on_a_bend(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, h, steps = 0.1, 2.0, 80
    plans: list[Schedule] = [Constant(peak_lr=lr, steps=steps), cooldown(None, lr, h, steps)]
    stable, optimal = lab.compare(
        CircleRiver(p["slope"], h, p["radius"]),
        plans,
        sigma=0.1,
        start=(0.0, p["radius"]),
        replicates=lab.samples(2000),
        every=steps + 1,
        average=TailAverage(updates=steps),
    )
    hills = stable["average_hill"].values[:, -1] - optimal["hill"].values[:, -1]
    return [Outcome("hill loss of the average minus the optimal decay", 0.0, *mean_and_error(hills), relation="<=")]


# --- P-INTERP --------------------------------------------------------------------------------------------------------
ALPHA = (0.25, 0.5, 0.75)


def on_the_line(valley: StraightRiver, a: FloatArray, b: FloatArray, alpha: float) -> FloatArray:
    """Loss at (1 - alpha) a + alpha b, for each pair; (n, dim), (n, dim) -> (n,)."""
    return valley.value((1.0 - alpha) * a + alpha * b)


def ends(lab: Lab, p: Parameters, slope: float, plan: Schedule) -> tuple[StraightRiver, FloatArray, FloatArray]:
    """The valley, and the iterates at the two ends of the plan, begun at the stationary state of its peak rate."""
    valley = StraightRiver(slope, (p["curvature"],) * MODES)
    start = lab.stationary(valley.curvatures, plan.peak_lr, p["sigma"], lab.samples(4000))
    first, last = lab.walk(valley, plan, start, sigma=p["sigma"], every=plan.total)
    return valley, first, last


@predicts(
    "P-INTERP",
    statement="between two stable iterates the loss is convex, with a dip that deepens with their distance to H/2",
    formula="river + H (alpha^2 + (1 - alpha)^2 + 2 alpha (1 - alpha) rho^k), rho = 1 - eta h; curvature 4H(1 - rho^k)",
    source="derived; the picture in 2410.05192",
    validity="straight river, any distance k in updates",
    spans={"product": RATE, "curvature": CURVATURE, "sigma": SIGMA, "slope": Span(0.1, 0.0, 0.5, "slope c")},
)
def between_stable_iterates(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma, out = p["curvature"], p["sigma"], []
    lr = p["product"] / h
    height = MODES * float(theory.stationary_hill(lr, h, sigma))
    for k in (1, 5, 20, 100):
        valley, a, b = ends(lab, p, p["slope"], Constant(peak_lr=lr, steps=k))
        cross = MODES * float(theory_paths.stable_cross(lr, h, sigma, k))
        drop = p["slope"] ** 2 * lr * k
        for alpha in ALPHA:
            expected = float(theory_paths.interpolated_loss(alpha, drop, height, height, cross))
            told = f"loss at {alpha:g}, k = {k}"
            out.append(Outcome(told, expected, *mean_and_error(on_the_line(valley, a, b, alpha) - valley.river(a))))
        half = [on_the_line(valley, a, b, alpha) for alpha in (0.0, 0.5, 1.0)]
        curvature = mean_and_error(4.0 * (half[0] - 2.0 * half[1] + half[2]))
        out.append(Outcome(f"curvature along the line, k = {k}", 4.0 * (height - cross), *curvature))
    return out


@predicts(
    "P-INTERP.b",
    statement="between two stable iterates there is an interior minimum iff the river falls by little enough",
    formula="D = c (x_b - x_a) < 2H (1 - rho^k)",
    source="derived",
    validity="straight river; tested at 0.6 and 1.6 times the limit",
    spans={"gap": Span(20, 5, 50, "updates k", whole=True), "product": RATE, "curvature": CURVATURE, "sigma": SIGMA},
)
def interior_minimum_of_a_stable_pair(p: Parameters, lab: Lab) -> list[Outcome]:
    h, k, out = p["curvature"], int(p["gap"]), []
    lr = p["product"] / h
    height = MODES * float(theory.stationary_hill(lr, h, p["sigma"]))
    cross = MODES * float(theory_paths.stable_cross(lr, h, p["sigma"], k))
    for times, relation in ((0.6, "<"), (1.6, ">")):
        slope = math.sqrt(times * 2.0 * (height - cross) / (lr * k))
        valley, a, b = ends(lab, p, slope, Constant(peak_lr=lr, steps=k))
        inner = mean_and_error(on_the_line(valley, a, b, 0.9) - valley.value(b))
        out.append(Outcome(f"loss at 0.9 minus at the end, D = {times:g} of the limit", 0.0, *inner, relation=relation))
    return out


@predicts(
    "P-INTERP.c",
    statement="between the ends of a cooldown the loss falls all the way iff the river falls by enough",
    formula="monotone iff D >= 2 (H_T - C), C = H prod (1 - eta_t h); a shallow minimum near the decayed end otherwise",
    source="derived; a smooth fall in 2410.05192",
    validity="straight river, inverse decay to 0.1; tested at no slope and at 1.6 times the limit",
    spans={
        "x": Span(9.0, 7.0, 12.0, "eta h T_d"),
        "product": SMALL,
        "curvature": CURVATURE,
        "sigma": SIGMA,
    },
)
def between_the_ends_of_a_cooldown(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma, out = p["curvature"], p["sigma"], []
    lr, steps = p["product"] / h, round(p["x"] / p["product"])
    plan = Joined(peak_lr=lr, parts=(Cooldown(steps=steps, shape=TO_RATIO["inverse"]),))
    rates = plan.values()
    first = MODES * float(theory.stationary_hill(lr, h, sigma))
    last = first * theory_decay.exact_hill_ratio(TO_RATIO["inverse"], lr, h, steps)
    cross = float(theory_paths.decay_cross(rates, h, first))
    limit = 2.0 * (last - cross)
    for times, relation in ((0.0, "<"), (1.6, ">")):
        slope = math.sqrt(times * limit / float(rates.sum()))
        valley, a, b = ends(lab, p, slope, plan)
        drop = slope**2 * float(rates.sum())
        for alpha in ALPHA:
            expected = float(theory_paths.interpolated_loss(alpha, drop, first, last, cross))
            found = mean_and_error(on_the_line(valley, a, b, alpha) - valley.river(a))
            out.append(Outcome(f"loss at {alpha:g}, D = {times:g} of the limit", expected, *found))
        inner = mean_and_error(on_the_line(valley, a, b, 0.95) - valley.value(b))
        out.append(
            Outcome(f"loss at 0.95 minus at the end, D = {times:g} of the limit", 0.0, *inner, relation=relation)
        )
    return out


@predicts(
    "P-INTERP.d",
    statement="between two points on the river the loss is a straight line",
    formula="-D alpha",
    source="derived",
    validity="straight river, no hill loss",
    spans={"slope": Span(0.3, 0.05, 1.0, "slope c"), "curvature": CURVATURE},
)
def between_points_on_the_river(p: Parameters, lab: Lab) -> list[Outcome]:
    valley = StraightRiver(p["slope"], (p["curvature"],))
    plan = Constant(peak_lr=0.5 / p["curvature"], steps=50)
    first, last = lab.walk(valley, plan, np.zeros((1, 2)), sigma=0.0, every=plan.total)
    drop = p["slope"] ** 2 * plan.area()
    return [
        Outcome(
            f"loss at {alpha:g}",
            -drop * alpha,
            float(on_the_line(valley, first, last, alpha)[0]),
            0.0,
            1e-12 * drop,
            "rounding",
        )
        for alpha in ALPHA
    ]
