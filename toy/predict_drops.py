"""P-DECAY.4 to 8: the floor of a decay, which shape ends lower in total loss, and what follows a change of the rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import theory, theory_decay
from .._typing import FloatArray
from ..schedules import Joined
from ..segments import Cooldown, Stable
from .losses import StraightRiver
from .predict_decay import (
    CURVATURE,
    LEADING,
    MODES,
    RATIO,
    SIGMA,
    SMALL,
    TO_RATIO,
    cooldown,
    final_hills,
)
from .prediction import Lab, Outcome, Parameters, Prediction, Span, mean_and_error, ratio_and_error, registrar_of

DROPS: dict[str, Prediction] = {}
predicts = registrar_of(DROPS)


def stages(lab: Lab, p: Parameters, slope: float, *parts: Stable | Cooldown, replicates: int = 1000) -> FloatArray:
    """Loss split of every state of a run through the parts, from the stationary state; (3, replicates, states).

    The rows are loss, river and hill.
    """
    plan = Joined(peak_lr=p["product"] / p["curvature"], parts=parts)
    ds = lab.simulate(
        StraightRiver(slope, (p["curvature"],) * MODES),
        plan,
        sigma=p["sigma"],
        replicates=lab.samples(replicates),
        start="stationary",
        every=1,
    )
    return np.stack([ds[name].values for name in ("loss", "river", "hill")])


@predicts(
    "P-DECAY.4",
    statement="no decay to r gets below the hill loss of the final rate",
    formula="H_T >= r eta_max sigma^2 / 4 for each relaxed direction",
    source="derived",
    validity="shapes that fall from the plateau to r = 0.1, x >= 3",
    spans={"x": Span(100, 3, 200, "eta h T_d"), "product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def floor_of_the_final_rate(p: Parameters, lab: Lab) -> list[Outcome]:
    lr = p["product"] / p["curvature"]
    floor = RATIO * lr * p["sigma"] ** 2 / 4.0
    unit = float(theory.stationary_hill(lr, p["curvature"], p["sigma"]))
    hills = final_hills(lab, TO_RATIO, p["x"], p, draws=4e6)
    return [
        Outcome(f"hill loss, {name}", floor, *mean_and_error(values * unit), relation=">=")
        for name, values in hills.items()
    ]


@predicts(
    "P-DECAY.5",
    statement="inverse ends lower in total loss than a slower-falling shape iff the river is flat enough",
    formula="x = 30, r = 0.1: c^2 eta T_d / H < 0.24 against linear, < 0.26 against 1-sqrt; x = 9: 0.38, 0.36",
    source="derived",
    validity="eta h <= 0.1",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def preference_by_the_slope(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma = p["curvature"], p["sigma"]
    lr, out = p["product"] / h, []
    shapes = ("inverse", "linear", "1-sqrt")
    stated = {30.0: (0.24, 0.26), 9.0: (0.38, 0.36)}
    height = MODES * float(theory.stationary_hill(lr, h, sigma))
    for x, limits in stated.items():
        steps = round(x / p["product"])
        plans = [cooldown(TO_RATIO[name], lr, h, steps) for name in shapes]
        areas = dict(zip(shapes, (plan.area(1) / (lr * steps) for plan in plans), strict=True))
        hills = final_hills(lab, {name: TO_RATIO[name] for name in shapes}, x, p)
        for name, limit in zip(shapes[1:], limits, strict=True):
            gained, error = mean_and_error(hills[name] - hills["inverse"])
            further = areas[name] - areas["inverse"]
            exact = theory_decay.preference(TO_RATIO["inverse"], TO_RATIO[name], x)
            even = (gained / further, error / further)
            allowance = exact * p["product"] + 0.01
            out.append(
                Outcome(
                    f"c^2 eta T_d / H where inverse and {name} are even, x = {x:g}",
                    limit,
                    *even,
                    allowance,
                    "stated to two digits; leading order in eta h",
                )
            )
        # Total loss itself, in a river twice as flat and twice as steep as the even one.
        for times, relation in ((0.5, "<"), (2.0, ">")):
            slope = math.sqrt(times * limits[0] * height / (lr * steps))
            valley = StraightRiver(slope, (h,) * MODES)
            options: dict[str, Any] = {"sigma": sigma, "start": "stationary", "every": steps + 1}
            first, second = lab.compare(valley, plans[:2], replicates=lab.samples(round(1e7 / (17 * steps))), **options)
            difference = mean_and_error((first["loss"].values - second["loss"].values)[:, -1] / height)
            quantity = f"loss of inverse minus linear, {times:g} times the even c^2, x = {x:g}"
            out.append(Outcome(quantity, 0.0, *difference, relation=relation))
    return out


@predicts(
    "P-DECAY.6",
    statement="at a drop of the rate the loss is continuous, then relaxes in cumulative-rate time: tau ~ 1/eta",
    formula="H(t) - H(eta') = (1 - eta' h)^(2t) (H(eta) - H(eta')), rate 2 eta' h per update",
    source="derived; 1/eta seen in public loss curves",
    validity="eta h <= 0.1 before the drop, to a half and to a quarter of the rate",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def relaxation_after_a_drop(p: Parameters, lab: Lab) -> list[Outcome]:
    h, out, times = p["curvature"], [], []
    lr = p["product"] / h
    before = MODES * float(theory.stationary_hill(lr, h, p["sigma"]))
    for share in (0.5, 0.25):
        after = MODES * float(theory.stationary_hill(lr * share, h, p["sigma"]))
        tau = 1.0 / (2.0 * share * p["product"])
        steps = math.ceil(tau)
        hill = stages(lab, p, 0.0, Stable(steps=1), Stable(steps=steps, level=share), replicates=8000)[2]
        step, step_error = mean_and_error(hill[:, 2] - hill[:, 1])
        # Of the first update at the new rate: what a jump would break.
        expected = -(before - after) * (1.0 - (1.0 - share * p["product"]) ** 2)
        out.append(Outcome(f"first change of the hill loss, to {share:g}", expected, step, step_error))
        level, error = mean_and_error(hill[:, -1])
        left = (1.0 - share * p["product"]) ** (2 * steps)
        out.append(Outcome(f"hill loss {steps} updates later", after + left * (before - after), level, error))
        excess, excess_error = (level - after) / (before - after), error / (before - after)
        times.append((-steps / math.log(excess), steps / math.log(excess) ** 2 * excess_error / excess))
    (short, short_error), (long, long_error) = times
    slope = -math.log2(long / short)
    error = math.hypot(short_error / short, long_error / long) / math.log(2.0)
    out.append(Outcome("slope of log tau against log rate", -1.0, slope, error, p["product"], LEADING))
    return out


@predicts(
    "P-DECAY.7",
    statement="the drop of the loss by a long decay is linear in the rate and independent of when it happens",
    formula="H(eta) - H_T ~ m sigma^2 (eta_max - eta_min) / 4",
    source="derived",
    validity="eta h <= 0.1, stationary before and relaxed after (inverse decay to 0.1, x = 100)",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def height_of_the_drop(p: Parameters, lab: Lab) -> list[Outcome]:
    h, sigma, out, drops = p["curvature"], p["sigma"], [], {}
    for share, wait in ((1.0, 1), (1.0, 4), (0.5, 1)):
        lr = share * p["product"] / h
        steps = round(100.0 / (lr * h))
        stable = wait * math.ceil(10.0 / p["product"])
        plan = cooldown(TO_RATIO["inverse"], lr, h, steps, stable=stable)
        ds = lab.simulate(
            StraightRiver(0.0, (h,) * MODES),
            plan,
            sigma=sigma,
            start="stationary",
            replicates=lab.samples(250),
            every=plan.total,
        )
        hill = ds["hill"].sel(eval_step=[stable, plan.total]).values
        drops[share, wait] = drop, error = mean_and_error(hill[:, 0] - hill[:, 1])
        expected = MODES * sigma**2 * lr * (1.0 - RATIO) / 4.0
        allowance = expected * (lr * h + 0.01)
        because = "leading order in eta h and 1/x"
        out.append(
            Outcome(f"drop after {stable} updates at {share:g} of the rate", expected, drop, error, allowance, because)
        )
    (early, d_early), (late, d_late) = drops[1.0, 1], drops[1.0, 4]
    out.append(Outcome("drop later minus earlier", 0.0, late - early, math.hypot(d_early, d_late)))
    return out


@predicts(
    "P-DECAY.8",
    statement="back at the peak rate the hill loss climbs back to its plateau, and the river keeps all progress",
    formula="H - H(t) halves in ln 2 / (2 eta h) updates; E[x] = c S throughout",
    source="derived; WSD-S: 2410.05192",
    validity="eta h <= 0.1",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA, "slope": Span(0.2, 0.05, 1.0, "slope c")},
)
def climb_after_a_decay(p: Parameters, lab: Lab) -> list[Outcome]:
    slope, steps = p["slope"], round(9.0 / p["product"])
    half = math.log(2.0) / (2.0 * p["product"])
    back = round(2.0 * half)
    parts = (Stable(steps=1), Cooldown(steps=steps, shape=TO_RATIO["inverse"]), Stable(steps=back))
    _, river, hill = stages(lab, p, slope, *parts, replicates=6000)
    plateau = MODES * float(theory.stationary_hill(p["product"] / p["curvature"], p["curvature"], p["sigma"]))
    decayed = plateau - hill[:, steps + 1]
    out = []
    for name, more in (("one half-time", round(half)), ("two", back)):
        left, error = ratio_and_error(plateau - hill[:, steps + 1 + more], decayed)
        expected = 0.5 ** (more / half)
        allowance = expected * more * p["product"] ** 2
        out.append(Outcome(f"share of the fall left after {name}", expected, left, error, allowance, LEADING))
    area = Joined(peak_lr=p["product"] / p["curvature"], parts=parts).area()
    out.append(Outcome("river loss", -(slope**2) * area, *mean_and_error(river[:, -1])))
    return out
