"""P-BEND: rivers that wind. Gradient flow is integrated numerically; SGD is simulated."""

from __future__ import annotations

import math

import numpy as np
from scipy.integrate import solve_ivp

from .. import theory_paths
from .._typing import FloatArray
from ..schedules import Constant
from .optimizers import TailAverage
from .prediction import Lab, Outcome, Parameters, Prediction, Span, mean_and_error, registrar_of
from .river import gradient_flow, project, river_flow
from .valleys import BentRiver, CircleRiver

BEND: dict[str, Prediction] = {}
predicts = registrar_of(BEND)

CURVATURE = Span(20.0, 5.0, 50.0, "curvature h of the hills")


def gradient_of_floor(loss: BentRiver, x: float) -> float:
    """f'(x) of the floor y = A sin(kx)."""
    return loss.amplitude * loss.wavenumber * math.cos(loss.wavenumber * x)


SINE = {
    "slope": Span(1.0, 0.3, 1.0, "slope c of the river"),
    "curvature": CURVATURE,
    "amplitude": Span(1.0, 0.5, 1.5, "amplitude A of the sine"),
    "wavenumber": Span(0.5, 0.3, 0.6, "wavenumber k of the sine"),
}


def _sine(p: Parameters) -> BentRiver:
    return BentRiver(p["slope"], p["curvature"], p["amplitude"], p["wavenumber"])


def spinning(loss: BentRiver) -> float:
    """c kappa / h with the largest bend kappa = A k^2 of a sine."""
    return loss.slope * loss.amplitude * loss.wavenumber**2 / loss.curvature


@predicts(
    "P-BEND.1",
    statement="gradient flow runs beside the floor of a bent valley, at a speed that its inclination sets",
    formula="y - f = -c f' / (h (1 + f'^2)), dx/dt = c / (1 + f'^2)",
    source="derived; tracking of a river: 2410.05192",
    validity="c kappa / h << 1; offsets to twice that part of c/h, as they vanish at a crest, and speeds to that part",
    spans=SINE,
    valid=lambda p: spinning(_sine(p)) <= 0.05,
)
def flow_beside_the_floor(p: Parameters, lab: Lab) -> list[Outcome]:
    loss, out = _sine(p), []
    small = spinning(loss)
    quarter = 0.5 * math.pi / loss.wavenumber  # along x from a place of steepest floor to the crest
    for part in (0.2, 0.6):
        # From well before the place, so that the flow is on its river when it comes there.
        aim, slow = part * quarter, 1.0 + (loss.amplitude * loss.wavenumber) ** 2
        start = aim - 20.0 * loss.slope / loss.curvature
        begin = np.array([start, loss.amplitude * math.sin(loss.wavenumber * start)])
        times = np.linspace(0.0, (aim - start) * slow / loss.slope, 401)
        path = gradient_flow(loss, begin, times)
        k = int(np.argmax(path[:, 0] >= aim))
        x, y = path[k]
        steepness = gradient_of_floor(loss, float(x))
        offset = float(theory_paths.bend_offset(loss.slope, loss.curvature, steepness))
        speed = float(theory_paths.bend_speed(loss.slope, steepness))
        measured = float(y) - loss.amplitude * math.sin(loss.wavenumber * float(x))
        out.append(
            Outcome(
                f"offset at {part:g} of a quarter wave",
                offset,
                measured,
                0.0,
                2.0 * small * loss.slope / loss.curvature,
                "2 c^2 kappa / h^2",
            )
        )
        rate = float(-loss.gradient(path[k])[0])
        out.append(Outcome(f"speed at {part:g} of a quarter wave", speed, rate, 0.0, small * speed, "c kappa / h"))
    return out


@predicts(
    "P-BEND.2",
    statement="where gradient flow from beside the river lands is told by relaxing along the hill alone",
    formula="shift f' d_0 / (1 + f'^2) to leading order in the offset d_0",
    source="projection: 2410.05192; shift derived",
    validity="offsets small against 1/kappa; c kappa / h << 1",
    spans=SINE | {"offset": Span(0.1, 0.02, 0.1, "offset d_0 of the start")},
    valid=lambda p: spinning(_sine(p)) <= 0.05,
)
def landing_of_an_offset_start(p: Parameters, lab: Lab) -> list[Outcome]:
    loss, d, x0 = _sine(p), p["offset"], 0.5
    start = np.array([x0, loss.amplitude * math.sin(loss.wavenumber * x0) + d])
    below = start - np.array([0.0, d])
    # Both land beside the floor, on the river; the difference is due to the offset.
    landing = project(loss, np.stack([start, below]))
    shift = float(theory_paths.landing_shift(d, gradient_of_floor(loss, x0)))
    bend, late = loss.amplitude * loss.wavenumber**2, np.array([4.0 / loss.slope])
    ends = [float(gradient_flow(loss, begin, late)[-1, 0]) for begin in (start, landing[0], below)]
    small = 5.0 * spinning(loss) * shift + 2.0 * bend * d * d
    because = "c kappa / h and second order in the offset"
    return [
        Outcome("shift of the landing", shift, float(landing[0, 0] - landing[1, 0]), 0.0, small, because),
        Outcome("end of the flow minus that from the landing", 0.0, ends[0] - ends[1], 0.0, small, because),
        Outcome("end of the flow minus that from below the start", 0.0, ends[0] - ends[2], relation=">"),
    ]


@predicts(
    "P-BEND.2b",
    statement="numbers for the sine river L = -c x + h/2 (y - sin(x/2))^2 from (0, 1/2), to the time 1/c times 10",
    formula="flow ends at x = 9.0735, river flow from Phi(w0) at 9.0724, from x_0 at 8.826; relaxed hill at x = 0.1998",
    source="derived",
    validity="c / h = 0.01",
)
def end_of_the_flow_on_the_sine(p: Parameters, lab: Lab) -> list[Outcome]:
    loss, start = BentRiver(0.1, 10.0, 1.0, 0.5), np.array([0.0, 0.5])
    hill, times = BentRiver(0.0, 10.0, 1.0, 0.5), np.array([100.0])
    true = float(gradient_flow(loss, start, times)[-1, 0])
    landing = float(gradient_flow(hill, start, times)[-1, 0])
    along = float(river_flow(loss, start, times)[-1, 0])

    def end_of_speed(x: float) -> float:
        def speed(_: float, at: FloatArray) -> FloatArray:
            return theory_paths.bend_speed(0.1, 0.5 * np.cos(0.5 * at))

        return float(solve_ivp(speed, (0.0, 100.0), [x], rtol=1e-10, atol=1e-12).y[0, -1])

    digits = "stated to four digits"
    return [
        Outcome("end of the flow", 9.0735, true, 0.0, 5e-5, digits),
        Outcome("relaxed hill", 0.1998, landing, 0.0, 5e-5, digits),
        Outcome("end at the speed c/(1 + f'^2) from there", 9.0724, end_of_speed(landing), 0.0, 5e-5, digits),
        Outcome("and from x_0", 8.826, end_of_speed(0.0), 0.0, 5e-4, digits),
        Outcome("end of the river flow from Phi(w0)", true, along, 0.0, 0.002, "c kappa / h"),
    ]


@predicts(
    "P-BEND.3",
    statement="SGD in a bend runs outside the floor",
    formula="mean outward offset kappa eta (sigma^2 + c^2) / (2h)",
    source="derived",
    validity="circle of radius 1/kappa, hill spread small against it, eta h <= 0.2",
    spans={
        "spread": Span(0.1, 0.07, 0.12, "kappa sqrt(eta sigma^2 / (2h)), the spread over the radius"),
        "product": Span(0.1, 0.05, 0.2, "eta h"),
        "ratio": Span(0.3, 0.0, 0.5, "c / sigma"),
        "radius": Span(5.0, 2.0, 20.0, "radius 1/kappa"),
    },
)
def outward_in_a_bend(p: Parameters, lab: Lab) -> list[Outcome]:
    h, radius, lr = 1.0, p["radius"], p["product"]
    sigma = p["spread"] * radius * math.sqrt(2.0 * h / lr)
    settle = math.ceil(5.0 / p["product"])
    start = np.tile([0.0, radius], (lab.samples(4000), 1))
    plan = Constant(peak_lr=lr, steps=5 * settle)
    valley = CircleRiver(p["ratio"] * sigma, h, radius)
    points = lab.walk(valley, plan, start, sigma=sigma, every=math.ceil(settle / 10))
    late = np.linalg.norm(points[11:], axis=-1) - radius
    expected = float(theory_paths.outward_offset(lr, valley.slope, h, sigma, 1.0 / radius))
    allowance = 3.0 * p["spread"] ** 2 * expected
    because = "three times the square of the spread over the radius"
    return [Outcome("mean outward offset", expected, *mean_and_error(late.mean(axis=0)), allowance, because)]


@predicts(
    "P-BEND.4",
    statement="on a bent river points between two states lie up the hill, and averages a ninth as high",
    formula="chord (h/2)(kappa l^2/8)^2, average over the arc (h/2)(kappa l^2/24)^2",
    source="derived; asked for by reviews of 2410.05192",
    validity="kappa l <= 0.5, to a part in (kappa l)^2",
    spans={
        "angle": Span(0.3, 0.1, 0.5, "kappa l"),
        "radius": Span(5.0, 1.0, 20.0, "radius 1/kappa"),
        "curvature": CURVATURE,
    },
)
def chord_and_average(p: Parameters, lab: Lab) -> list[Outcome]:
    radius, h, out, heights = p["radius"], p["curvature"], [], []
    loss = CircleRiver(0.0, h, radius)
    for angle in (p["angle"], p["angle"] / 2.0):
        phi = np.linspace(0.0, angle, 2001)
        arc = radius * np.stack([np.sin(phi), np.cos(phi)], axis=-1)
        points = {"chord": (arc[0] + arc[-1]) / 2.0, "average": np.trapezoid(arc, dx=1.0 / 2000, axis=0)}
        heights.append({name: float(loss.hill(point)) for name, point in points.items()})
        for name, formula in (("chord", theory_paths.chord_penalty), ("average", theory_paths.averaging_penalty)):
            expected = float(formula(h, 1.0 / radius, radius * angle))
            told = f"{name} over kappa l = {angle:g}"
            out.append(Outcome(told, expected, heights[-1][name], 0.0, 0.1 * angle**2 * expected, "(kappa l)^2 / 10"))
    slope = math.log2(heights[0]["chord"] / heights[1]["chord"])
    out.append(Outcome("exponent of l", 4.0, slope, 0.0, 0.1 * p["angle"] ** 2, "(kappa l)^2 / 10"))
    ninth = heights[0]["chord"] / heights[0]["average"]
    return [*out, Outcome("chord over average", 9.0, ninth, 0.0, 9.0 * 0.1 * p["angle"] ** 2, "(kappa l)^2 / 10")]


@predicts(
    "P-BEND.4b",
    statement="the average of the iterates of gradient descent around a bend lies up the hill",
    formula="(h/2)(kappa l^2/24)^2, l = c eta W",
    source="derived",
    validity="no noise, kappa l <= 1, c kappa / h << 1",
    spans={"angle": Span(0.6, 0.3, 0.8, "kappa l"), "radius": Span(5.0, 3.0, 10.0, "radius 1/kappa")},
)
def average_of_a_descent(p: Parameters, lab: Lab) -> list[Outcome]:
    h, slope, radius, lr = 5.0, 0.5, p["radius"], 0.1
    steps = round(p["angle"] * radius / (slope * lr))
    loss = CircleRiver(slope, h, radius)
    ds = lab.simulate(
        loss,
        Constant(peak_lr=lr, steps=steps),
        sigma=0.0,
        start=(0.0, radius),
        replicates=1,
        every=steps,
        average=TailAverage(updates=steps),
    )
    expected = float(theory_paths.averaging_penalty(h, 1.0 / radius, slope * lr * steps))
    # The descent itself runs outside the floor by kappa eta c^2/(2h), against kappa l^2/24.
    outside = 12.0 * lr * slope**2 / h / (p["angle"] * radius) ** 2
    allowance = expected * (0.1 * p["angle"] ** 2 + 2.0 * outside + 2.0 / steps)
    found = float(ds["average_hill"].values[0, -1])
    return [Outcome("hill loss of the average", expected, found, 0.0, allowance, "(kappa l)^2, eta c^2 / (h l^2), 1/W")]


@predicts(
    "P-BEND.4c",
    statement="two states on the river are connected by a straight line along which the loss does not rise",
    formula="max over the line of L <= max of its ends",
    source="the chord test, true of straight rivers",
    validity="a bent river of little slope: (h/2)(kappa l^2/8)^2 > c l, where it is wrong",
    spans={"radius": Span(4.0, 3.0, 5.0, "radius 1/kappa"), "slope": Span(0.1, 0.02, 0.1, "slope c")},
    must_fail=True,
)
def chord_test_on_a_bend(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, h, radius = 0.1, 5.0, p["radius"]
    arc = 0.9 * radius
    steps = round(arc / (p["slope"] * lr))
    loss = CircleRiver(p["slope"], h, radius)
    start = np.tile([0.0, radius], (lab.samples(64), 1))
    first, last = lab.walk(loss, Constant(peak_lr=lr, steps=steps), start, sigma=0.01, every=steps)
    higher_end = np.maximum(loss.value(first), loss.value(last))
    middle = loss.value(0.5 * (first + last))
    return [Outcome("loss halfway minus the higher end", 0.0, *mean_and_error(middle - higher_end), relation="<=")]


@predicts(
    "P-BEND.5",
    statement="gradient flow follows the displaced floor",
    formula="y - f = -c f' / (h (1 + f'^2)) to a tenth of its largest value",
    source="derived, for slow spinning",
    validity="fast spinning, c kappa / h >= 0.5, where it is wrong",
    spans={
        "spinning": Span(1.0, 0.5, 2.0, "c kappa / h with kappa = A k^2"),
        "amplitude": Span(1.0, 0.8, 1.5, "amplitude A of the sine"),
        "wavenumber": Span(1.0, 0.8, 1.5, "wavenumber k of the sine"),
    },
    must_fail=True,
)
def tracking_of_a_fast_bend(p: Parameters, lab: Lab) -> list[Outcome]:
    bend, h = p["amplitude"] * p["wavenumber"] ** 2, 1.0
    loss = BentRiver(p["spinning"] * h / bend, h, p["amplitude"], p["wavenumber"])
    wave = 2.0 * math.pi / p["wavenumber"]
    slow = 1.0 + (p["amplitude"] * p["wavenumber"]) ** 2
    path = gradient_flow(loss, np.zeros(2), np.linspace(0.0, 3.0 * wave * slow / loss.slope, 801))
    last = path[path[:, 0] > path[-1, 0] - wave]
    floor = loss.amplitude * np.sin(loss.wavenumber * last[:, 0])
    steepness = loss.amplitude * loss.wavenumber * np.cos(loss.wavenumber * last[:, 0])
    offset = theory_paths.bend_offset(loss.slope, h, steepness)
    miss = float(np.max(np.abs(last[:, 1] - floor - offset)) / np.max(np.abs(offset)))
    return [Outcome("largest miss over the largest offset", 0.1, miss, relation="<=")]
