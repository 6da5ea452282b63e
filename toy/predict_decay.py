"""P-DECAY.1 to 3: what each decay shape leaves of the hill loss, by its length x = eta h T_d in relaxation times."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .. import theory, theory_decay
from .._typing import FloatArray
from ..schedules import Joined
from ..segments import Cooldown, Stable
from ..shapes import Cosine, Exponential, Inverse, Linear, OneMinusSqrt, Shape, Square
from .losses import StraightRiver
from .prediction import Lab, Outcome, Parameters, Prediction, Span, mean_and_error, ratio_and_error, registrar_of

DECAY: dict[str, Prediction] = {}
predicts = registrar_of(DECAY)

MODES = 16  # equal hill directions are independent samples of one
DRAWS = 8e6  # normals of one simulation
RATIO = 0.1  # the floor r of the published runs

CURVATURE = Span(2.0, 0.2, 5.0, "curvature h of the hills")
SIGMA = Span(1.0, 0.1, 3.0, "standard deviation sigma of the gradient noise")
SMALL = Span(0.05, 0.02, 0.1, "eta h of the plateau")
LEADING = "leading order in eta h"

TO_ZERO: dict[str, Shape | None] = {
    "optimal": None,
    "cosine": Cosine(),
    "1-sqrt": OneMinusSqrt(),
    "linear": Linear(),
    "square": Square(),
}
TO_RATIO: dict[str, Shape] = {
    "linear": Linear(floor=RATIO),
    "cosine": Cosine(floor=RATIO),
    "1-sqrt": OneMinusSqrt(floor=RATIO),
    "exponential": Exponential(floor=RATIO),
    "inverse": Inverse(floor=RATIO),
    "square": Square(floor=RATIO),
}


def cooldown(shape: Shape | None, lr: float, curvature: float, steps: int, *, stable: int = 1) -> Joined:
    """`stable` >= 1 updates at `lr`, then a cooldown; None is the optimal decay, eta_t = 1/(2/eta + h t).

    That is the inverse-proportional shape from half the rate, with the floor which it reaches after `steps` updates.
    """
    if shape is None:
        floor = 1.0 / (1.0 + 0.5 * lr * curvature * steps)
        tail = Cooldown(steps=steps, level=0.5, shape=Inverse(floor=floor))
    else:
        tail = Cooldown(steps=steps, shape=shape)
    return Joined(peak_lr=lr, parts=(Stable(steps=stable), tail))


def final_hills(
    lab: Lab, shapes: Mapping[str, Shape | None], x: float, p: Parameters, *, draws: float = DRAWS
) -> dict[str, FloatArray]:
    """Hill loss of one direction after each cooldown, by replicate; all see the same noise.

    It stands in units of the exact plateau's, so the ratio H_T / H is measured.
    """
    h, lr = p["curvature"], p["product"] / p["curvature"]
    steps = round(x / p["product"])
    replicates = max(lab.samples(round(draws / (steps * (MODES + 1)))), 32)
    unit = MODES * float(theory.stationary_hill(lr, h, p["sigma"]))
    runs = lab.compare(
        StraightRiver(0.0, (h,) * MODES),
        [cooldown(shape, lr, h, steps) for shape in shapes.values()],
        sigma=p["sigma"],
        replicates=replicates,
        start="stationary",
        every=steps + 1,
    )
    return {name: ds["hill"].values[:, -1] / unit for name, ds in zip(shapes, runs, strict=True)}


def gap(name: str, less: FloatArray, more: FloatArray) -> Outcome:
    """One shape leaves less than another, by paired noise."""
    return Outcome(name, 0.0, *mean_and_error(less - more), relation="<")


def recursion_crossing(first: Shape, second: Shape, low: float, high: float) -> float:
    """The x at which two shapes leave the same, by bisection with the exact recursion of a fine cooldown."""
    product = low / 1000.0

    def lead(steps: int) -> float:
        ratios = [theory_decay.exact_hill_ratio(shape, product, 1.0, steps) for shape in (first, second)]
        return ratios[0] - ratios[1]

    left, right = round(low / product), round(high / product)
    start = lead(left)
    while right - left > 1:
        middle = (left + right) // 2
        left, right = (middle, right) if lead(middle) * start > 0 else (left, middle)
    return product * 0.5 * (left + right)


@predicts(
    "P-DECAY.1",
    statement="hill loss after a long decay to zero: optimal, linear and cosine, and 1-sqrt and square against linear",
    formula="sigma^2/(2 h T_d); (sqrt(pi)/8) sigma^2 sqrt(eta/(h T_d)); ~ x^(-2/3); linear/sqrt 2; linear sqrt 2",
    source="derived; optimality of 1/t on quadratics: 2410.05192",
    validity="eta h <= 0.1, x = eta h T_d >= 100",
    spans={"x": Span(200, 100, 400, "eta h T_d"), "product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def hill_after_a_decay_to_zero(p: Parameters, lab: Lab) -> list[Outcome]:
    x, h, sigma = p["x"], p["curvature"], p["sigma"]
    lr, steps = p["product"] / h, round(x / p["product"])
    unit = float(theory.stationary_hill(lr, h, sigma))
    hills = {name: values * unit for name, values in final_hills(lab, TO_ZERO, x, p).items()}
    optimal = sigma**2 / (2.0 * h * steps)
    linear = math.sqrt(math.pi) / 8.0 * sigma**2 * math.sqrt(lr / (h * steps))
    small = lr * sigma**2 / 4.0
    cosine = small * float(theory_decay.asymptotic_ratio(x, math.pi**2 / 4.0, 2.0))
    # Next terms: 2/x of the optimal decay, 1/x^(2/3) and 1/x^(1/2) of those whose end is not a pure power.
    out = [
        Outcome("optimal", optimal, *mean_and_error(hills["optimal"]), 2.0 / x * optimal, "next order, 2/x"),
        Outcome("linear", linear, *mean_and_error(hills["linear"]), 0.01 * linear, "next order in 1/x and eta h"),
        Outcome("cosine", cosine, *mean_and_error(hills["cosine"]), cosine * x ** (-2 / 3), "next order, x^(-2/3)"),
    ]
    for name, ratio in (("1-sqrt", 1.0 / math.sqrt(2.0)), ("square", math.sqrt(2.0))):
        measured, error = ratio_and_error(hills[name], hills["linear"])
        allowance = 0.5 * ratio / math.sqrt(x)
        out.append(Outcome(f"{name} / linear", ratio, measured, error, allowance, "next order, x^(-1/2)/2"))
    return out


@predicts(
    "P-DECAY.1b",
    statement="how fast the hill loss falls with the length of a decay to zero depends on its end only",
    formula="eta ~ s^p at the end: H_T ~ T_d^(-p/(p+1)); optimal T_d^(-1)",
    source="derived",
    validity="eta h <= 0.1, x from 100 to 400",
    spans={"product": Span(0.1, 0.05, 0.1, "eta h of the plateau"), "curvature": CURVATURE, "sigma": SIGMA},
    slow=True,
)
def exponents_of_the_length(p: Parameters, lab: Lab) -> list[Outcome]:
    ends = [final_hills(lab, TO_ZERO, x, p, draws=1.5 * DRAWS) for x in (100.0, 400.0)]
    exponents = {"optimal": -1.0, "cosine": -2 / 3, "1-sqrt": -0.5, "linear": -0.5, "square": -0.5}
    out = []
    for name, exponent in exponents.items():
        (short, short_error), (long, long_error) = (mean_and_error(end[name]) for end in ends)
        slope = math.log(long / short) / math.log(4.0)
        error = math.hypot(short_error / short, long_error / long) / math.log(4.0)
        out.append(Outcome(f"exponent of T_d, {name}", exponent, slope, error, 0.012, "next order at x = 100"))
    return out


@predicts(
    "P-DECAY.1c",
    statement="hill loss of decays to zero at x = 30, where the order is not yet that of the limit",
    formula="R(1) = exp(-2x int s) + 2x int s^2 exp(-2x int_u^1 s) du, times H",
    source="derived",
    validity="eta h <= 0.1",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def order_at_moderate_length(p: Parameters, lab: Lab) -> list[Outcome]:
    x = 30.0
    hills = final_hills(lab, TO_ZERO, x, p)
    out = []
    for name, shape in TO_ZERO.items():
        ratio = float(theory_decay.hill_ratio(shape, x))
        allowance = p["product"] * ratio
        out.append(Outcome(f"H_T / H, {name}", ratio, *mean_and_error(hills[name]), allowance, LEADING))
    # Cosine and linear are nearly the same here: they are told apart in P-DECAY.1d.
    pairs = (
        ("optimal", "1-sqrt"),
        ("1-sqrt", "cosine"),
        ("1-sqrt", "linear"),
        ("cosine", "square"),
        ("linear", "square"),
    )
    return out + [gap(f"{less} below {more}", hills[less], hills[more]) for less, more in pairs]


@predicts(
    "P-DECAY.1d",
    statement="cosine leaves less than linear only for x > 24, and less than 1-sqrt only for x > 229",
    formula="roots of R_cosine = R_linear and R_cosine = R_1-sqrt",
    source="derived",
    validity="eta h small",
    spans={"product": Span(0.1, 0.05, 0.1, "eta h of the plateau"), "curvature": CURVATURE, "sigma": SIGMA},
    slow=True,
)
def cosine_needs_length(p: Parameters, lab: Lab) -> list[Outcome]:
    cosine, linear, root = TO_ZERO["cosine"], TO_ZERO["linear"], TO_ZERO["1-sqrt"]
    out = []
    for other, name, at, low, high in ((linear, "linear", 24.0, 12.0, 48.0), (root, "1-sqrt", 229.0, 100.0, 600.0)):
        assert cosine is not None
        assert other is not None
        crossing = recursion_crossing(cosine, other, low, high)
        because = "stated in whole numbers; updates of finite size"
        out.append(Outcome(f"x of the crossing with {name}", at, crossing, allowance=0.01 * at, because=because))
        sides = ((low, ">"), (high, "<")) if lab.thorough or high < 100.0 else ((low, ">"),)
        for x, relation in sides:
            hills = final_hills(lab, {"cosine": cosine, name: other}, x, p)
            difference = mean_and_error(hills["cosine"] - hills[name])
            out.append(Outcome(f"cosine minus {name}, x = {x:g}", 0.0, *difference, relation=relation))
    return out


@predicts(
    "P-DECAY.1e",
    statement="the order of the limit (cosine below 1-sqrt) at a usual length",
    formula="H_cosine < H_1-sqrt",
    source="derived",
    validity="x = 30, where it is wrong: the limit needs x > 229",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
    must_fail=True,
)
def order_of_the_limit_too_early(p: Parameters, lab: Lab) -> list[Outcome]:
    hills = final_hills(lab, {name: TO_ZERO[name] for name in ("cosine", "1-sqrt")}, 30.0, p)
    return [gap("cosine minus 1-sqrt, x = 30", hills["cosine"], hills["1-sqrt"])]


@predicts(
    "P-DECAY.1f",
    statement="river distance of a decay to zero as a fraction of the plateau's",
    formula="optimal ln(1 + x/2)/x, 1-sqrt 1/3, cosine 1/2, linear 1/2, square 2/3",
    source="derived",
    validity="up to one update in T_d",
    spans={"x": Span(30, 1, 300, "eta h T_d"), "steps": Span(1000, 100, 3000, "updates T_d", whole=True)},
)
def distance_of_a_decay(p: Parameters, lab: Lab) -> list[Outcome]:
    x, steps = p["x"], int(p["steps"])
    areas = {"optimal": math.log1p(x / 2) / x, "1-sqrt": 1 / 3, "cosine": 1 / 2, "linear": 1 / 2, "square": 2 / 3}
    out = []
    for name, area in areas.items():
        plan = cooldown(TO_ZERO[name], 1.0, x / steps, steps)
        measured = plan.area(1) / steps
        because = "a sum of T_d updates for an integral"
        out.append(Outcome(f"sum of rates / (eta T_d), {name}", area, measured, 0.0, 1.0 / steps, because))
    return out


@predicts(
    "P-DECAY.2",
    statement="hill loss after a decay to a tenth of the rate, for six shapes and the unconstrained optimum",
    formula="R(1) of P-DECAY.1c with s from 1 to r = 0.1; optimum 1/(1 + x/2)",
    source="derived; inverse-proportional decay to 0.1: 2410.05192",
    validity="eta h <= 0.1 (ratios to a part in eta h)",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
    slow=True,
)
def hill_after_a_decay_to_a_tenth(p: Parameters, lab: Lab) -> list[Outcome]:
    lengths = (1.0, 3.0, 9.0, 30.0, 100.0, 1000.0) if lab.thorough else (3.0, 30.0)
    out = []
    for x in lengths:
        hills = final_hills(lab, {**TO_RATIO, "optimal": None}, x, p, draws=0.5 * DRAWS)
        for name, values in hills.items():
            shape = None if name == "optimal" else TO_RATIO[name]
            ratio = float(theory_decay.hill_ratio(shape, x))
            # The exact plateau is above its leading order by eta h/2, the decayed state by less than that.
            measured, allowance = mean_and_error(values), p["product"] * ratio
            out.append(Outcome(f"H_T / H, {name}, x = {x:g}", ratio, *measured, allowance, LEADING))
    return out


@predicts(
    "P-DECAY.2b",
    statement="at r = 0.1 inverse leaves least between x = 3.63 and 225; 1-sqrt below, cosine above; linear from 1.38",
    formula="roots of R_inverse = R_1-sqrt, R_cosine, R_linear",
    source="derived",
    validity="eta h small",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def where_inverse_is_best(p: Parameters, lab: Lab) -> list[Outcome]:
    inverse, out = TO_RATIO["inverse"], []
    for name, low, high in (("1-sqrt", 1.0, 10.0), ("cosine", 50.0, 1000.0), ("linear", 0.5, 5.0)):
        other = TO_RATIO[name]
        at = theory_decay.crossing(inverse, other, low=low, high=high)
        crossing = recursion_crossing(inverse, other, low, high)
        allowance, because = 0.02 * at, "updates of finite size"
        out.append(Outcome(f"x of the crossing with {name}", at, crossing, 0.0, allowance, because))
    for x, best in ((1.8, "1-sqrt"), (12.0, "inverse")):
        hills = final_hills(lab, TO_RATIO, x, p)
        out += [gap(f"{best} below {name}, x = {x:g}", hills[best], hills[name]) for name in TO_RATIO if name != best]
    return out


@predicts(
    "P-DECAY.3",
    statement="the inverse decay to r is tuned to one curvature: the best r for a given x is about 1/(1 + x)",
    formula="h_eff = (1/r - 1)/(eta T_d); best r: 0.084, 0.030, 0.0097 at x = 9, 30, 100",
    source="derived",
    validity="x >= 9; 1/(1 + x) to a sixth",
    spans={"product": Span(0.02, 0.01, 0.02, "eta h of the plateau")},
)
def best_floor_of_inverse(p: Parameters, lab: Lab) -> list[Outcome]:
    out = []
    for x, stated in ((9.0, 0.084), (30.0, 0.030), (100.0, 0.0097)):
        steps = round(x / p["product"])
        floors = np.exp(np.linspace(math.log(0.5), math.log(2.0), 61)) * stated
        left = [theory_decay.exact_hill_ratio(Inverse(floor=float(r)), p["product"], 1.0, steps) for r in floors]
        best = _vertex(np.log(floors), np.array(left))
        out.append(Outcome(f"best r, x = {x:g}", stated, best, 0.0, 0.03 * stated, "two digits stated; eta h"))
        rule = 1.0 / (1.0 + x)
        out.append(Outcome(f"1/(1 + x), x = {x:g}", rule, best, 0.0, rule / 6.0, "said to be about so"))
    return out


def _vertex(logs: FloatArray, values: FloatArray) -> float:
    """exp of the place of the least value, between the points by a parabola through three of them."""
    k = int(np.argmin(values))
    a, b, _ = np.polyfit(logs[k - 1 : k + 2], values[k - 1 : k + 2], 2)
    return math.exp(-b / (2.0 * a))


@predicts(
    "P-DECAY.3b",
    statement="at r = 0.1, slow directions (x < 9) are left above what an optimal decay leaves, fast ones at r H",
    formula="x = 3: H_T/H = 0.446 > 0.400; x = 100: 0.105, within 6% of r",
    source="derived",
    validity="eta h <= 0.1",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def slow_and_fast_directions(p: Parameters, lab: Lab) -> list[Outcome]:
    slow = final_hills(lab, {"inverse": TO_RATIO["inverse"], "optimal": None}, 3.0, p)
    fast = mean_and_error(final_hills(lab, {"inverse": TO_RATIO["inverse"]}, 100.0, p)["inverse"])
    allowance = (0.06 + p["product"]) * RATIO
    return [
        gap("optimal below inverse, x = 3", slow["optimal"], slow["inverse"]),
        Outcome("H_T / H of inverse, x = 100", RATIO, *fast, allowance, "next order in 1/x and in eta h"),
    ]
