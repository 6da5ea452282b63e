"""P-LEN and P-WSDS: how long to cool down, and what plans with several checkpoints gain or lose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import theory, theory_decay, theory_runs
from .._typing import FloatArray
from ..schedules import WSD, WSDS, Constant, CyclicCosine, Schedule
from ..segments import Phase
from ..shapes import Inverse, Linear
from .exact import moments
from .losses import StraightRiver
from .noise import make_noise
from .predict_decay import CURVATURE, LEADING, MODES, RATIO, SIGMA, SMALL, cooldown
from .prediction import Lab, Outcome, Parameters, Prediction, Span, mean_and_error, registrar_of
from .valleys import PowerLawRiver

PLAN: dict[str, Prediction] = {}
predicts = registrar_of(PLAN)

BUDGETS = (12_500, 25_000, 50_000)  # the plan of the published runs, in updates
DIGITS = "stated to three digits"


# --- P-LEN -----------------------------------------------------------------------------------------------------------
def lengths_and_losses(valley: StraightRiver, p: Parameters, total: int, longest: int) -> tuple[FloatArray, FloatArray]:
    """Expected final loss for optimal cooldowns of 2..longest updates in a run of `total`, by the exact recursion."""
    lr, lengths = p["product"] / p["curvature"], np.arange(2, longest)
    losses = []
    for n in lengths.tolist():
        rates = cooldown(None, lr, p["curvature"], n, stable=total - n).values()
        found = moments(valley, rates, [total], sigma=p["sigma"], hill_variance=0.0)
        losses.append(float(found.expected_loss[0]))
    return lengths.astype(np.float64), np.array(losses)


def vertex(x: FloatArray, y: FloatArray) -> float:
    """Place of the least value, between the points by a parabola through three of them."""
    k = int(np.clip(np.argmin(y), 1, len(y) - 2))
    a, b, _ = np.polyfit(x[k - 1 : k + 2] - x[k], y[k - 1 : k + 2], 2)
    return float(x[k] - b / (2.0 * a))


LENGTH = {
    "product": SMALL,
    "ratio": Span(10.0, 5.0, 30.0, "m sigma^2 h eta / (4 c^2), which sets the slope c"),
    "curvature": CURVATURE,
    "sigma": SIGMA,
}


def _valley(p: Parameters, ratio: float) -> StraightRiver:
    """The valley in which m sigma^2 h eta is `ratio` times 4 c^2."""
    slope = math.sqrt(MODES * p["sigma"] ** 2 * p["product"] / (4.0 * ratio))
    return StraightRiver(slope, (p["curvature"],) * MODES)


@predicts(
    "P-LEN",
    statement="the best length of an optimal cooldown does not depend on the length of the run",
    formula="T_d = (u - 2/eta)/h, u = [1 + sqrt(1 + 2 eta m sigma^2 h / c^2)] / (2 eta)",
    source="derived",
    validity="straight river, m equal directions, runs long enough to settle",
    spans=LENGTH,
)
def length_of_the_cooldown(p: Parameters, lab: Lab) -> list[Outcome]:
    valley, h, sigma = _valley(p, p["ratio"]), p["curvature"], p["sigma"]
    lr = p["product"] / h
    best = theory_runs.cooldown_length(valley.slope, lr, h, sigma, modes=MODES)
    short, out = round(5.0 * best + 10.0 / p["product"]), []
    for total in (short, 4 * short):
        found = vertex(*lengths_and_losses(valley, p, total, round(2.0 * best) + 8))
        because = "time is continuous in the closed form"
        out.append(Outcome(f"best length in {total} updates", best, found, 0.0, 1.5, because))
    lengths = [max(round(best * times), 2) for times in (1.0, 0.2, 5.0)]
    plans = [cooldown(None, lr, h, n, stable=6 * round(best) - n) for n in lengths]
    options: dict[str, Any] = {"sigma": sigma, "start": "stationary", "every": plans[0].total}
    runs = lab.compare(valley, plans, replicates=lab.samples(1000), **options)
    ends = [ds["loss"].values[:, -1] for ds in runs]
    for times, other in zip((0.2, 5.0), ends[1:], strict=True):
        told = f"loss at the best length minus at {times:g} times it"
        out.append(Outcome(told, 0.0, *mean_and_error(ends[0] - other), relation="<"))
    return out


@predicts(
    "P-LEN.b",
    statement="a cooldown pays only where the noise outweighs the slope",
    formula="T_d > 0 iff m sigma^2 h eta > 4 c^2",
    source="derived",
    validity="eta h <= 0.1; tested at 0.4 and 2.5 times the limit with a cooldown of 0.2 relaxation times",
    spans={name: span for name, span in LENGTH.items() if name != "ratio"},
)
def when_a_cooldown_pays(p: Parameters, lab: Lab) -> list[Outcome]:
    h, out = p["curvature"], []
    lr, n = p["product"] / h, round(0.2 / p["product"])
    for ratio, relation in ((2.5, "<"), (0.4, ">")):
        plans: list[Schedule] = [cooldown(None, lr, h, n), Constant(peak_lr=lr, steps=n + 1)]
        options: dict[str, Any] = {"sigma": p["sigma"], "start": "stationary", "every": n + 1}
        runs = lab.compare(_valley(p, ratio), plans, replicates=lab.samples(20_000), **options)
        cooled, stable = (ds["loss"].values[:, -1] for ds in runs)
        told = f"loss after a short cooldown minus stable, m sigma^2 h eta = {ratio:g} x 4c^2"
        out.append(Outcome(told, 0.0, *mean_and_error(cooled - stable), relation=relation))
    return out


@predicts(
    "P-LEN.c",
    statement="down a power-law river the best fraction to decay falls slowly with the length of the run",
    formula="L_river = A S^-a: T_d ~ T^((1+a)/2), fraction ~ T^((a-1)/2)",
    source="derived",
    validity="long runs: fraction below a tenth",
    spans={"exponent": Span(0.5, 0.3, 0.7, "a"), "product": Span(0.05, 0.05, 0.1, "eta h of the plateau")},
)
def fraction_in_a_power_law_river(p: Parameters, lab: Lab) -> list[Outcome]:
    a, lr, h, sigma = p["exponent"], p["product"], 1.0, 1.0
    options: dict[str, Any] = {"scale": 1.0, "exponent": a, "lr": lr, "curvature": h, "sigma": sigma}
    totals = (10**7, 10**8)
    lengths = [theory_runs.power_river_length(total, **options) for total in totals]
    slope = math.log10(lengths[1] / lengths[0])
    out = [Outcome("exponent of T in T_d", (1.0 + a) / 2.0, slope, 0.0, 0.02, "long, but finite runs")]
    # The same by simulation of a short run, without noise along the river, which would have to be averaged away.
    total = 2000
    best = theory_runs.power_river_length(total, **options)
    plans = [
        cooldown(None, lr, h, max(round(best * k), 2), stable=total - max(round(best * k), 2)) for k in (1, 0.2, 4)
    ]
    noise = make_noise("anisotropic", sigmas=(0.0, sigma))
    runs = lab.compare(
        PowerLawRiver(1.0, a, h), plans, noise=noise, start=(0.0, 0.0), replicates=lab.samples(500), every=total
    )
    ends = [ds["loss"].values[:, -1] for ds in runs]
    for times, other in zip((0.2, 4.0), ends[1:], strict=True):
        told = f"loss at the best length minus at {times:g} times it"
        out.append(Outcome(told, 0.0, *mean_and_error(ends[0] - other), relation="<"))
    return out


# --- P-WSDS ----------------------------------------------------------------------------------------------------------
def prefix_means(plan: Schedule) -> list[float]:
    """Mean rate over the peak of the run up to the end of each cooldown."""
    pairs = zip(plan.segments, plan.edges[1:].tolist(), strict=True)
    stops = [stop for segment, stop in pairs if segment.phase is Phase.COOLDOWN]
    return [plan.area(0, stop) / (stop * plan.peak_lr) for stop in stops]


def wsds(cooldown_of: str, scale: int = 1, lr: float = 1.0) -> WSDS:
    """The published plan, `scale` times shorter, under one of the two accountings."""
    budgets = tuple(b // scale for b in BUDGETS)
    total = WSDS.total_of(budgets, 0.1, cooldown_of)
    return WSDS(peak_lr=lr, steps=total, budgets=budgets, cooldown=0.1, cooldown_of=cooldown_of)


@predicts(
    "P-WSDS.1",
    statement="mean rate over the peak, up to each checkpoint of the published plan (a tenth decays to a tenth)",
    formula="1 - 0.1 (1 - r ln(1/r)/(1 - r)) for WSD; cosine (1 + r)/2",
    source="plans: public configurations of 2410.05192; numbers derived",
    validity="warmup ignored",
)
def mean_rates(p: Parameters, lab: Lab) -> list[Outcome]:
    linear = WSD(peak_lr=1.0, steps=BUDGETS[-1], cooldown=0.1, shape=Linear(floor=RATIO))
    inverse = WSD(peak_lr=1.0, steps=BUDGETS[-1], cooldown=0.1, shape=Inverse(floor=RATIO))
    cyclic = CyclicCosine(peak_lr=1.0, steps=BUDGETS[-1], budgets=BUDGETS, floor=RATIO)
    closed = 1.0 - 0.1 * (1.0 - theory_decay.shape_area(Inverse(floor=RATIO)))
    stated = {
        "WSD, inverse": (inverse, (0.926,)),
        "WSD, linear": (linear, (0.955,)),
        "WSD-S, strict budgets": (wsds("budget"), (0.926, 0.888, 0.870)),
        "WSD-S, stable updates of WSD": (wsds("trunk"), (0.926, 0.894, 0.879)),
        "cyclic cosine": (cyclic, (0.55, 0.55, 0.55)),
    }
    out = [Outcome("WSD, inverse, closed form", closed, prefix_means(inverse)[0], 0.0, 2e-5, "a sum for an integral")]
    for name, (plan, means) in stated.items():
        for k, (mean, found) in enumerate(zip(means, prefix_means(plan), strict=True), start=1):
            out.append(Outcome(f"{name}, checkpoint {k}", mean, found, 0.0, 5e-4, DIGITS))
    return out


@predicts(
    "P-WSDS.2",
    statement="WSD-S beats WSD at equal total compute and loses at equal path length, by the earlier cooldowns",
    formula="gain c^2 eta 0.2558 n, loss c^2 eta (1 - 0.2558) n, n = updates of earlier cooldowns; hill loss the same",
    source="derived; both plans in public configurations of 2410.05192",
    validity="straight river, plateaus long enough to settle; the published plan at a tenth of its length",
    spans={
        "product": Span(0.1, 0.05, 0.2, "eta h"),
        "slope": Span(1.0, 0.5, 2.0, "slope c"),
        "sigma": Span(1.0, 0.5, 1.0, "sigma"),
    },
    slow=True,
)
def wsds_against_wsd(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, scale, slope = p["product"], 10, p["slope"]
    budgets = [b // scale for b in BUDGETS]
    family = theory_runs.wsd_family(lr, budgets, cooldown=0.1, shape=Inverse(floor=RATIO))
    plans: list[Schedule] = [wsds("trunk", scale, lr), wsds("budget", scale, lr), *family]
    valley = StraightRiver(slope, (1.0,) * MODES)
    runs = lab.compare(
        valley, plans, sigma=p["sigma"], start="stationary", replicates=lab.samples(300), every=plans[0].total
    )
    area, out = theory_decay.shape_area(Inverse(floor=RATIO)), []
    for name, plan, run in (("total", plans[0], runs[0]), ("path", plans[1], runs[1])):
        ends = [stop for _, stop in plan.windows("cooldown")]
        for k in (0, 1, 2):
            mine, other = run.sel(eval_step=ends[k]), runs[2 + k].isel(eval_step=-1)
            earlier = 0.1 * sum(budgets[:k])
            expected = -theory_runs.wsds_gain(round(earlier), slope, lr, area, same_trunk=name == "total")
            river = mean_and_error(mine["river"].values - other["river"].values)
            hill = mean_and_error(mine["hill"].values - other["hill"].values)
            what = f"loss of WSD-S minus WSD at equal {name}, checkpoint {k + 1}"
            if k == 0:  # the same run up to here
                out.append(Outcome(what, 0.0, river[0] + hill[0], 0.0, 1e-9, "rounding"))
                continue
            out.append(Outcome(f"river {what}", expected, *river, 2e-3 * abs(expected), "sums for integrals"))
            out.append(Outcome(f"hill {what}", 0.0, *hill, 1e-9, "rounding"))
            out.append(Outcome(f"sign of the {what}", 0.0, *river, relation="<" if expected < 0 else ">"))
    return out


@predicts(
    "P-WSDS.2b",
    statement="losses of the published plan in full length, both signs",
    formula="-c^2 eta S at c^2 eta = 2e-4: WSD-S -4.692, -9.448 (total), -4.442, -8.698 (path); WSD -4.628, -9.256",
    source="derived",
    validity="relaxed hills, river part alone",
)
def losses_of_the_published_plan(p: Parameters, lab: Lab) -> list[Outcome]:
    out, fall = [], 2e-4
    for name, stated in {"trunk": (-2.314, -4.692, -9.448), "budget": (-2.314, -4.442, -8.698)}.items():
        plan = wsds(name)
        for k, ((_, stop), loss) in enumerate(zip(plan.windows("cooldown"), stated, strict=True), start=1):
            what = "total compute" if name == "trunk" else "path length"
            found = -fall * plan.area(0, stop)
            out.append(Outcome(f"WSD-S at equal {what}, checkpoint {k}", loss, found, 0.0, 5e-4, DIGITS))
    for budget, loss in zip(BUDGETS, (-2.314, -4.628, -9.256), strict=True):
        branch = WSD(peak_lr=1.0, steps=budget, cooldown=0.1, shape=Inverse(floor=RATIO))
        out.append(Outcome(f"WSD, {budget} updates", loss, -fall * branch.area(), 0.0, 5e-4, DIGITS))
    return out


@predicts(
    "P-WSDS.3",
    statement="a cyclic cosine at the same peak gets 0.63 as far and ends higher; a 1.6 times higher peak ties",
    formula="0.55 / 0.879 = 0.63",
    source="derived",
    validity="r = 0.1, the published plan, river steep enough to matter; the common peak below both limits",
    spans={"product": Span(0.1, 0.05, 0.2, "eta h"), "slope": Span(1.0, 0.5, 2.0, "slope c")},
)
def cyclic_cosine_is_slower(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, scale = p["product"], 25
    plan = wsds("trunk", scale, lr)
    cyclic = CyclicCosine(peak_lr=lr, steps=plan.total, cycles=3, floor=RATIO)
    ratio = cyclic.area() / plan.area()
    tied = cyclic.scale(1.6)
    runs = lab.compare(
        StraightRiver(p["slope"], (1.0,) * MODES),
        [plan, cyclic, tied],
        sigma=1.0,
        start=0.0,
        replicates=lab.samples(300),
        every=plan.total,
    )
    mine, other, higher = (ds.isel(eval_step=-1) for ds in runs)
    gain = mean_and_error(other["loss"].values - mine["loss"].values)
    travelled = [float(ds["river"].mean()) for ds in (other, mine, higher)]
    error = float((other["river"] - ratio * mine["river"]).std()) / math.sqrt(mine.sizes["replicate"])
    return [
        Outcome("ratio of the sums of rates", 0.63, ratio, 0.0, 0.005, "stated to two digits"),
        Outcome(
            "ratio of the river losses",
            0.63,
            travelled[0] / travelled[1],
            error / abs(travelled[1]),
            0.005,
            "stated to two digits",
        ),
        Outcome("loss of the cyclic cosine minus WSD-S", 0.0, *gain, relation=">"),
        Outcome(
            "river loss at 1.6 times the peak, over WSD-S",
            1.0,
            travelled[2] / travelled[1],
            error / abs(travelled[1]),
            0.01,
            "1.6 is stated to two digits",
        ),
    ]


@predicts(
    "P-WSDS.4",
    statement="a re-warmup of n updates costs river distance and buys nothing in SGD",
    formula="c^2 eta n / 2",
    source="derived",
    validity="ramp from a rate of zero, n well below the length of the cycle; to a part in n",
    spans={"warmup": Span(50, 20, 100, "updates n of the re-warmup", whole=True), "product": SMALL, "sigma": SIGMA},
)
def price_of_a_rewarmup(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, n, slope = p["product"], int(p["warmup"]), 0.5
    options: dict[str, Any] = {"peak_lr": lr, "steps": 1600, "cycles": 2, "cooldown": 0.3, "shape": Linear()}
    plans = [WSDS(rewarmup=k, **options) for k in (n, 0)]
    runs = lab.compare(
        StraightRiver(slope, (1.0,) * MODES),
        plans,
        sigma=p["sigma"],
        start="stationary",
        replicates=lab.samples(500),
        every=1600,
    )
    ramped, jumped = (ds.isel(eval_step=-1) for ds in runs)
    price = slope**2 * lr * n / 2.0
    river = mean_and_error(ramped["river"].values - jumped["river"].values)
    hill = mean_and_error(ramped["hill"].values - jumped["hill"].values)
    # The warm-up forgets nothing that the plateau would not: what is left after it is this part of the noise.
    unit = MODES * float(theory.stationary_hill(lr, 1.0, p["sigma"]))
    return [
        Outcome("river loss more", price, *river, price / n, "n - 1 updates below the peak, not n"),
        Outcome("hill loss more", 0.0, *hill, 1e-6 * unit, "(1 - eta h)^2000"),
    ]


@predicts(
    "P-WSDS.5",
    statement="at a fixed fraction to decay, fewer and longer cycles end with less hill loss, until x >> 1/r",
    formula="R(1) of the inverse decay at x = eta h T_d / cycles",
    source="derived; seen in public Marin runs when the cycles were doubled",
    validity="eta h <= 0.1, plateaus long enough to settle",
    spans={"product": SMALL, "curvature": CURVATURE, "sigma": SIGMA},
)
def fewer_longer_cycles(p: Parameters, lab: Lab) -> list[Outcome]:
    h = p["curvature"]
    lr, total = p["product"] / h, round(160.0 / p["product"])
    unit = MODES * float(theory.stationary_hill(lr, h, p["sigma"]))
    cycles = (8, 4, 2, 1)
    plans = [WSDS(peak_lr=lr, steps=total, cycles=k, cooldown=0.2) for k in cycles]
    runs = lab.compare(
        StraightRiver(0.0, (h,) * MODES),
        plans,
        sigma=p["sigma"],
        start="stationary",
        replicates=lab.samples(400),
        every=total,
    )
    ends = [ds["hill"].values[:, -1] / unit for ds in runs]
    out = []
    for k, values in zip(cycles, ends, strict=True):
        x = 160.0 * 0.2 / k
        ratio = float(theory_decay.hill_ratio(Inverse(floor=RATIO), x))
        mean = mean_and_error(values)
        out.append(Outcome(f"H_T / H, {k} cycles, x = {x:g}", ratio, *mean, ratio * p["product"], LEADING))
    for k, more, fewer in zip(cycles, ends, ends[1:], strict=False):
        told = f"gain of {k // 2} cycles over {k}"
        out.append(Outcome(told, 0.0, *mean_and_error(more - fewer), relation=">"))
    return out
