"""Numbers of the decay theory as they are stated: a worked case, and the table of P-DECAY.2."""

from __future__ import annotations

from .. import theory_decay
from ..schedules import Joined
from ..segments import Cooldown, Segment, Stable
from ..shapes import Cosine, Inverse, Linear, OneMinusSqrt
from .losses import StraightRiver
from .predict_decay import RATIO, TO_RATIO, recursion_crossing
from .prediction import Lab, Outcome, Parameters, Prediction, mean_and_error, registrar_of

TABLES: dict[str, Prediction] = {}
predicts = registrar_of(TABLES)

COLUMNS = ("linear", "cosine", "1-sqrt", "exponential", "inverse", "square", "optimal")
TABLE = {
    1.0: (0.734, 0.769, 0.705, 0.725, 0.742, 0.791, 0.667),
    3.0: (0.495, 0.524, 0.434, 0.447, 0.447, 0.584, 0.400),
    9.0: (0.303, 0.288, 0.242, 0.228, 0.190, 0.384, 0.182),
    30.0: (0.189, 0.151, 0.155, 0.139, 0.118, 0.238, 0.0625),
    100.0: (0.135, 0.109, 0.120, 0.112, 0.105, 0.160, 0.0196),
}
FAR = (0.107, 0.103, 0.105, 0.104, 0.103, 0.112)  # stated for x = 1000, without the optimum

# The inverse decay as some code counts it, from the second value on: again of the inverse shape, from a lower level.
_SHIFTED = Inverse(floor=1.0 / (1.0 + 9.0 / 1.225))
CASE: dict[str, tuple[Segment, float, float]] = {
    "constant": (Stable(steps=40), 0.06250000, 4.00000),
    "linear": (Cooldown(steps=40, shape=Linear()), 0.01812519, 2.05000),
    "cosine": (Cooldown(steps=40, shape=Cosine()), 0.02029867, 2.05000),
    "1-sqrt": (Cooldown(steps=40, shape=OneMinusSqrt()), 0.01458866, 1.38652),
    "inverse to 0.1": (Cooldown(steps=40, shape=Inverse(floor=RATIO)), 0.01199321, 1.07022),
    "inverse, counted from 1": (Cooldown(steps=40, level=1.0 / 1.225, shape=_SHIFTED), 0.01174327, 0.98022),
    "optimal": (Cooldown(steps=40, level=0.5, shape=Inverse(floor=1.0 / 5.0)), 0.01147959, 0.82512),
}


def ratio_by_recursion(name: str, x: float) -> float:
    """H_T / H after a cooldown of at least 20 000 updates, with eta h <= 0.0005."""
    steps = max(20_000, round(2000.0 * x))
    shape = None if name == "optimal" else TO_RATIO[name]
    return theory_decay.exact_hill_ratio(shape, x / steps, 1.0, steps)


@predicts(
    "P-DECAY.1g",
    statement="a worked case: h = 2, sigma = 1.5, eta = 0.1, 40 updates from the stationary state",
    formula="final hill loss 0.0625 0.01812519 0.02029867 0.01458866 0.01199321 0.01174327 0.01147959",
    source="derived",
    validity="this case",
)
def worked_case(p: Parameters, lab: Lab) -> list[Outcome]:
    modes = 16
    plans = [Joined(peak_lr=0.1, parts=(part,)) for part, _, _ in CASE.values()]
    runs = lab.compare(
        StraightRiver(0.0, (2.0,) * modes), plans, sigma=1.5, start="stationary", replicates=lab.samples(5000), every=40
    )
    out = []
    for (name, (_, hill, area)), plan, ds in zip(CASE.items(), plans, runs, strict=True):
        out.append(Outcome(f"final hill loss, {name}", hill, *mean_and_error(ds["hill"].values[:, -1] / modes)))
        out.append(Outcome(f"sum of the rates, {name}", area, plan.area(), 0.0, 5e-6, "stated to five digits"))
    return out


@predicts(
    "P-DECAY.2c",
    statement="the table of hill losses after a decay to a tenth, x = 1 to 100, in three digits",
    formula="R(1), as stated",
    source="derived",
    validity="eta h -> 0; the last digit by one",
)
def table_as_stated(p: Parameters, lab: Lab) -> list[Outcome]:
    because = "three digits, the last by one"
    return [
        Outcome(f"H_T / H, {name}, x = {x:g}", value, ratio_by_recursion(name, x), 0.0, 0.0011, because)
        for x, row in TABLE.items()
        for name, value in zip(COLUMNS, row, strict=True)
    ]


@predicts(
    "P-DECAY.2d",
    statement="an earlier evaluation of that table at x = 1000, and of the crossing of inverse and cosine at x = 227",
    formula="0.107 0.103 0.105 0.104 0.103 0.112; 227",
    source="an earlier evaluation, superseded by the quadrature of P-DECAY.2",
    validity="never: the recursion gives 0.1043 0.1001 0.1022 0.1012 0.1005 0.1083 and 225",
    must_fail=True,
)
def superseded_numbers(p: Parameters, lab: Lab) -> list[Outcome]:
    because = "three digits, the last by one"
    out = [
        Outcome(f"H_T / H, {name}, x = 1000", value, ratio_by_recursion(name, 1000.0), 0.0, 0.0011, because)
        for name, value in zip(COLUMNS, FAR, strict=False)
    ]
    crossing = recursion_crossing(TO_RATIO["inverse"], TO_RATIO["cosine"], 50.0, 1000.0)
    return [*out, Outcome("x of the crossing of inverse and cosine", 227.0, crossing, 0.0, 0.5, "three digits")]
