"""The study `schedules`: WSD, WSD-S, cyclic cosine and one cosine for each budget, under two accountings of cost.

Three checkpoints are wanted. WSD-S makes them on one path, WSD on branches of one trunk, so the two cannot have both
the same total cost and the same length of path to each checkpoint; which of them ends lower depends on which of the two
is made equal (arXiv:2410.05192 has the comparison, its public reviews the dispute).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_number
from ..errors import InputError
from ..schedules import WSDS, CosineSchedule, CyclicCosine, Schedule
from ..segments import Phase
from ..shapes import Inverse
from ..theory_runs import family_updates, wsd_family
from .losses import StraightRiver
from .prediction import mean_and_error
from .setting import STATIONARY
from .study import Bench, Number, Study, StudySetting, mean_error, number_of, on_common_states, toy_dataset

FAMILIES = ("WSD", "WSD-S", "cyclic cosine", "cosine")
ACCOUNTINGS = {"total compute": "trunk", "path length": "budget"}
"""What is made equal, and the accounting of `riverval.schedules.WSDS` that does it."""

CHECKPOINT_VALUES = (
    "checkpoint_updates", "checkpoint_loss", "checkpoint_loss_error", "checkpoint_expected", "gap", "gap_error",
    "expected_gap",
)  # fmt: skip
FEWEST_STATES = 200


@dataclass(frozen=True, kw_only=True)
class SchedulesSetting(StudySetting):
    """A straight river and three budgets, those of the published plan at a tenth of their length.

    Args:
        slope, curvatures, sigma: of the valley and its noise.
        lr: peak rate of every schedule.
        budgets: updates of the WSD checkpoints; the cooldowns are `cooldown` of each.
        floor: where all decays end, as a fraction of the peak.
    """

    replicates: int = 4000
    slope: float = 0.04
    curvatures: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    sigma: float = 1.0
    lr: float = 0.1
    budgets: tuple[int, ...] = (1250, 2500, 5000)
    cooldown: float = 0.1
    floor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("floor", self.floor, low=0.0, high=1.0, open_low=True, what="of the inverse decay")
        if len(self.budgets) < 2:
            raise InputError(f"budgets must be at least two, so that one comes after another; got {self.budgets!r}")

    @property
    def spacing(self) -> int:
        """Updates between recorded states: a divisor of every checkpoint, which the cyclic cosine has in its midst."""
        ends = {end for a in ACCOUNTINGS for family in self.plans(a).values() for p in family for end in ends_of(p)}
        common = math.gcd(*ends)
        fine = [d for d in range(1, common + 1) if common % d == 0 and max(ends) // d >= FEWEST_STATES]
        return max(fine, default=1)

    def plans(self, accounting: str) -> dict[str, list[Schedule]]:
        """The runs of each family: one with all checkpoints, or one for each."""
        lr, shape = self.lr, Inverse(floor=self.floor)
        of = ACCOUNTINGS[accounting]
        total = WSDS.total_of(self.budgets, self.cooldown, of)
        part = self.cooldown
        wsds = WSDS(peak_lr=lr, steps=total, budgets=self.budgets, cooldown=part, cooldown_of=of, shape=shape)
        ends = tuple(ends_of(wsds))
        return {
            "WSD": list(wsd_family(lr, self.budgets, cooldown=part, shape=shape)),
            "WSD-S": [wsds],
            "cyclic cosine": [CyclicCosine(peak_lr=lr, steps=total, budgets=ends, floor=self.floor)],
            "cosine": [CosineSchedule(peak_lr=lr, steps=b, floor=self.floor) for b in self.budgets],
        }


def measure(s: SchedulesSetting, bench: Bench) -> xr.Dataset:
    """All runs on the same noise: curves, checkpoints, and each checkpoint minus that of WSD."""
    plans = {a: s.plans(a) for a in ACCOUNTINGS}
    names: dict[Schedule, str] = {}  # WSD and the cosines are the same under both accountings
    for accounting, families in plans.items():
        for family, runs_of in families.items():
            for p in runs_of:
                told = f"{family}, equal {accounting}" if len(runs_of) == 1 else f"{family} to {p.total}"
                names.setdefault(p, told)
    valley = StraightRiver(s.slope, s.curvatures)
    options = {"sigma": s.sigma, "start": STATIONARY, "replicates": s.replicates, "every": s.spacing}
    runs = dict(zip(names, bench.compare(valley, list(names), **options), strict=True))
    values = _checkpoints(plans, runs) | _curves(names, runs)
    values |= {"accounting": list(ACCOUNTINGS), "family": list(FAMILIES), "checkpoint": np.arange(len(s.budgets)) + 1}
    return toy_dataset(values, dict.fromkeys(("mean_loss", "mean_loss_error", "expected_loss"), ("plan", "eval_step")))


def ends_of(plan: Schedule) -> list[int]:
    """The states at the end of each cooldown, or of each cycle of a cyclic cosine."""
    return [int(end) for end, s in zip(plan.edges[1:], plan.segments, strict=True) if s.phase == Phase.COOLDOWN]


def _checkpoints(plans: dict[str, dict[str, list[Schedule]]], runs: dict[Schedule, xr.Dataset]) -> dict[str, Any]:
    """Loss of each checkpoint, cost, and gap to the checkpoint of WSD; (accounting, family, checkpoint)."""
    rows: dict[str, list[Any]] = {name: [] for name in CHECKPOINT_VALUES}
    costs = []
    for families in plans.values():
        ends = {f: [runs[p].sel(eval_step=end) for p in made for end in ends_of(p)] for f, made in families.items()}
        costs.append([family_updates(p) if f == "WSD" else sum(q.total for q in p) for f, p in families.items()])
        for points in ends.values():
            for mine, reference in zip(points, ends["WSD"], strict=True):
                loss = mean_and_error(mine["loss"].values)
                gap = mean_and_error(mine["loss"].values - reference["loss"].values)
                exact = float(mine["exact_loss"])
                row = (int(mine["eval_step"]), *loss, exact, *gap, exact - float(reference["exact_loss"]))
                for name, value in zip(rows, row, strict=True):
                    rows[name].append(value)
    shape = (len(plans), len(FAMILIES), -1)
    return {name: np.reshape(values, shape) for name, values in rows.items()} | {"family_updates": costs}


def _curves(names: dict[Schedule, str], runs: dict[Schedule, xr.Dataset]) -> dict[str, Any]:
    """Mean and expected loss of every run, on the states of all of them."""
    found = {p: mean_error(ds["loss"].values) for p, ds in runs.items()}
    curves = {
        "mean_loss": [mean for mean, _ in found.values()],
        "mean_loss_error": [error for _, error in found.values()],
        "expected_loss": [ds["exact_loss"].values for ds in runs.values()],
        "plan_lr": [np.append(p.values(), np.nan)[ds["eval_step"].values] for p, ds in runs.items()],
    }
    out: dict[str, Any] = {"plan": list(names.values())}
    for name, rows in curves.items():
        out["eval_step"], out[name] = on_common_states(list(runs.values()), rows)
    return out


def numbers(ds: xr.Dataset) -> list[Number]:
    """The gap of every checkpoint to that of WSD, but for WSD's own and for those that are the same run."""
    out = []
    for accounting in ds["accounting"].values:
        for family in ds["family"].values[1:]:
            for k in ds["checkpoint"].values:
                at = ds.sel(accounting=accounting, family=family, checkpoint=k)
                if float(at["gap_error"]) > 0:
                    told = f"{family} minus WSD, equal {accounting}, checkpoint {k}"
                    out.append(number_of(at, told, "gap", "gap_error", "expected_gap"))
    return out


SCHEDULES = Study(
    name="schedules",
    summary="WSD-S ends below WSD at equal total compute, and above it at equal length of path",
    source="arXiv:2410.05192, and the accounting that its reviews ask about",
    setting=SchedulesSetting,
    parts=lambda s: 1,
    measure=measure,
    numbers=numbers,
    quick={"replicates": 500, "budgets": (500, 1000, 2000)},
)
