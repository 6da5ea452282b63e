"""P-ASSUMP: the numbers that say whether a loss is a river valley, measured by `riverval.toy.assumptions`."""

from __future__ import annotations

import math

import numpy as np

from .. import theory
from ..schedules import Constant
from .assumptions import check_assumptions
from .losses import StraightRiver
from .predict_decay import CURVATURE, SIGMA
from .prediction import Lab, Outcome, Parameters, Prediction, Span, mean_and_error, registrar_of
from .river import trace_river
from .valleys import BentRiver, CircleRiver

ASSUMPTIONS: dict[str, Prediction] = {}
predicts = registrar_of(ASSUMPTIONS)

SLOPE = Span(0.2, 0.05, 1.0, "slope c of the river")


@predicts(
    "P-ASSUMP",
    statement="share of the squared gradient along the river: 1 on it, far below 1 on the wall",
    formula="cos^2 = c^2 / (c^2 + h^2 y^2); E[h^2 y^2] = h eta sigma^2 / (2 - eta h)",
    source="alignment: 2410.05192; numbers derived",
    validity="straight river",
    spans={
        "product": Span(0.3, 0.05, 1.9, "eta h"),
        "slope": SLOPE,
        "curvature": CURVATURE,
        "sigma": SIGMA,
    },
)
def alignment_in_a_straight_river(p: Parameters, lab: Lab) -> list[Outcome]:
    c, h, sigma = p["slope"], p["curvature"], p["sigma"]
    lr, valley = p["product"] / h, StraightRiver(c, (h, 2.0 * h))
    spread = math.sqrt(float(theory.stationary_variance(lr, h, sigma)))
    points = np.array([[0.0, 0.0, 0.0], [0.0, spread, 0.0], [0.0, 10.0 * c / h, 0.0]])
    found = check_assumptions(valley, points).alignment
    out = [
        Outcome(f"cos^2 at {place}", c**2 / (c**2 + (h * y) ** 2), float(cos), 0.0, 1e-9, "rounding")
        for place, y, cos in zip(("y = 0", "one spread", "h y = 10 c"), points[:, 1], found, strict=True)
    ]
    # The hill force of SGD at rest, from the gradient itself.
    settled = math.ceil(6.0 / -math.log(max(abs(1.0 - p["product"]), 1e-3)))
    start, narrow = np.zeros((lab.samples(40_000), 2)), StraightRiver(c, (h,))
    last = lab.walk(narrow, Constant(peak_lr=lr, steps=settled), start, sigma=sigma, every=settled)[-1]
    force = mean_and_error(narrow.gradient(last)[:, 1] ** 2)
    return [*out, Outcome("mean square of the hill force", h * lr * sigma**2 / (2.0 - lr * h), *force)]


@predicts(
    "P-ASSUMP.b",
    statement="a bent valley with slow bends is a river valley: a gap of 4, gradient along the river, slow turning",
    formula="spinning = kappa c / h on a circle; eigengap >= 4, cos^2 = 1 on the river",
    source="2410.05192 (the factor 4); spinning on a circle derived",
    validity="c kappa / h <= 0.02",
    spans={
        "slope": Span(0.2, 0.05, 0.2, "slope c of the river"),
        "curvature": Span(5.0, 4.0, 20.0, "curvature h of the hills"),
        "radius": Span(4.0, 3.0, 10.0, "radius 1/kappa of the circle"),
    },
)
def numbers_on_a_bent_river(p: Parameters, lab: Lab) -> list[Outcome]:
    c, h, radius = p["slope"], p["curvature"], p["radius"]
    on_the_circle = CircleRiver(c, h, radius)
    small = c / (radius * h)
    found = check_assumptions(
        on_the_circle, trace_river(on_the_circle, on_the_circle.start(), length=2.0, step=0.2).points
    )
    sine = BentRiver(c, h, 1.0, 0.5)
    on_the_sine = check_assumptions(sine, trace_river(sine, np.array([0.0, 0.0]), length=6.0, step=0.2).points)
    because = "next order in c kappa / h"
    return [
        Outcome("spinning on the circle", small, float(found.spinning.mean()), 0.0, 5.0 * small**2, because),
        Outcome(
            "least alignment on both rivers",
            1.0,
            float(min(found.alignment.min(), on_the_sine.alignment.min())),
            0.0,
            1e-6,
            "rounding and the tracer's tolerance",
        ),
        Outcome("least eigengap on the sine", 4.0, float(on_the_sine.eigengap.min()), relation=">="),
        Outcome("largest spinning on the sine", 0.1, float(on_the_sine.spinning.max()), relation="<="),
    ]


@predicts(
    "P-ASSUMP.c",
    statement="the assumptions hold wherever the valley is, on the walls too",
    formula="alignment >= 0.9 at the height to which SGD settles",
    source="derived",
    validity="noise that outweighs the slope, h eta sigma^2 / (2 - eta h) >= 4 c^2, where it is wrong",
    spans={"ratio": Span(10.0, 4.0, 100.0, "h eta sigma^2 / (2 - eta h) over c^2"), "slope": SLOPE},
    must_fail=True,
)
def alignment_on_the_wall(p: Parameters, lab: Lab) -> list[Outcome]:
    c, h, lr = p["slope"], 2.0, 0.1
    sigma = c * math.sqrt(p["ratio"] * (2.0 - lr * h) / (h * lr))
    start, valley = np.zeros((lab.samples(4000), 2)), StraightRiver(c, (h,))
    last = lab.walk(valley, Constant(peak_lr=lr, steps=100), start, sigma=sigma, every=100)[-1]
    return [Outcome("mean alignment", 0.9, *mean_and_error(check_assumptions(valley, last).alignment), relation=">=")]
