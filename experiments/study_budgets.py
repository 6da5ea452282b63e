"""The study `wsd-s`: decayed checkpoints at several budgets by WSD, WSD-S, cyclic cosine and one cosine for each.

WSD-S and the cyclic cosine make them on one path, WSD on branches of one trunk, so that not both the length of the path
to each checkpoint and the total cost of all can be equal; which family ends lower depends on which of the two is
(arXiv:2410.05192 has the comparison). Both are done:

* path length: checkpoint k comes after `budgets[k]` updates on its own path, in every family;
* total compute: all checkpoints of a family cost together what the WSD branches cost. WSD-S has then the stable updates
  of WSD, its earlier cooldowns on top; the cosines are shorter by a common factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_number
from .._typing import NDArray
from ..errors import InputError
from ..schedules import WSDS
from .config import RunConfig
from .study import LOSSES_ONLY, Bench, Checkpoint, Finding, Plan, Runs, Setting, Study, cosine, length, plan_of, wsd
from .study_data import over_seeds

FAMILIES = ("WSD", "WSD-S", "cyclic cosine", "cosine")
ACCOUNTINGS = {"path length": "budget", "total compute": "trunk"}
"""What is made equal, and the accounting of `riverval.schedules.WSDS` that does it."""
EVALUATIONS = 40  # in the longest budget, at least
MOST_EVALUATIONS = 400


@dataclass(frozen=True)
class BudgetsSetting(Setting):
    """Budgets as fractions of the base's length, and the cooldown as a fraction of each budget."""

    budgets: tuple[float, ...] = (0.25, 0.5, 1.0)
    cooldown: float = 0.1

    def __post_init__(self) -> None:
        for budget in self.budgets:
            check_number("budgets", budget, low=0.0, open_low=True, what="in lengths of the base run")
        check_number("cooldown", self.cooldown, low=0.0, high=1.0, open_low=True, open_high=True, what="a fraction")
        if len(self.budgets) < 2 or list(self.budgets) != sorted(set(self.budgets)):
            raise InputError(f"budgets must be at least two, increasing, got {self.budgets}")


def budget_plans(bench: Bench, s: BudgetsSetting) -> list[Plan]:
    """All runs of all families, evaluated at every checkpoint.

    Raises:
        InputError: budgets that are too close, or without a common divisor to evaluate at.
    """
    base = bench.base()
    budgets = whole_budgets(length(base), s.budgets)
    total = branch_updates(budgets, s.cooldown)
    made = []
    for k, budget in enumerate(budgets):
        schedule = wsd(base, s.cooldown, budget)
        made.append(_plan(base, f"WSD to {budget}", schedule, budget, k, "WSD", tuple(ACCOUNTINGS)))
    for accounting, scale in zip(ACCOUNTINGS, (1.0, total / sum(budgets)), strict=True):
        for k, budget in enumerate(budgets):
            steps = max(2, round(scale * budget))
            made.append(_plan(base, f"cosine to {steps}", cosine(base), steps, k, "cosine", (accounting,)))
    for accounting, of in ACCOUNTINGS.items():
        made += _one_path(base, budgets, s.cooldown, accounting, of)
    every = _spacing(made)
    return [replace(p, against=made[len(budgets) - 1].name, config=replace(p.config, eval_every=every)) for p in made]


def whole_budgets(steps: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """Fractions of `steps` updates in multiples of a fortieth of it, so that few evaluations hit all checkpoints."""
    unit = max(2, round(steps / EVALUATIONS))
    return tuple(max(1, round(f * steps / unit)) * unit for f in fractions)


def branch_updates(budgets: Sequence[int], cooldown: float) -> int:
    """Updates of WSD branches of one trunk: the longest trunk once, and every cooldown.

    >>> branch_updates((12_500, 25_000, 50_000), 0.1)
    53750
    """
    cooldowns = [round(cooldown * b) for b in budgets]
    return max(b - n for b, n in zip(budgets, cooldowns, strict=True)) + sum(cooldowns)


def _plan(
    base: RunConfig, name: str, schedule: dict[str, Any], steps: int, k: int, family: str, accountings: Sequence[str]
) -> Plan:
    """A run for one checkpoint, its last state."""
    plan = plan_of(name, base, schedule, steps=steps, **LOSSES_ONLY)
    return replace(plan, checkpoints=tuple(Checkpoint(a, family, k, steps) for a in accountings))


def _one_path(base: RunConfig, budgets: tuple[int, ...], cooldown: float, accounting: str, of: str) -> list[Plan]:
    """WSD-S, and the cyclic cosine whose cycles end where its cooldowns do."""
    shape = base.schedule["shape"]
    wsds = {"name": "wsd-s", "budgets": budgets, "cooldown": cooldown, "cooldown_of": of, "shape": shape}
    steps = WSDS.total_of(budgets, cooldown, of)
    first = plan_of(f"WSD-S, equal {accounting}", base, wsds, steps=steps, **LOSSES_ONLY)
    ends = tuple(stop for _, stop in first.config.plan.windows("cooldown"))
    cyclic = {"name": "cyclic-cosine", "budgets": ends, "floor": shape["floor"]}
    second = plan_of(f"cyclic cosine, equal {accounting}", base, cyclic, steps=steps, **LOSSES_ONLY)
    return [
        replace(p, checkpoints=tuple(Checkpoint(accounting, family, k, end) for k, end in enumerate(ends)))
        for p, family in ((first, "WSD-S"), (second, "cyclic cosine"))
    ]


def _spacing(plans: Sequence[Plan]) -> int:
    """Updates between evaluations: the largest divisor of all checkpoints in the midst of a run that is fine enough."""
    states = [c.state for p in plans for c in p.checkpoints[:-1]]
    longest = max(c.state for p in plans for c in p.checkpoints)
    common = math.gcd(*states)
    every = max(d for d in range(1, common + 1) if common % d == 0 and (d == 1 or longest // d >= EVALUATIONS))
    if longest // every > MOST_EVALUATIONS:
        raise InputError(
            f"the checkpoints {sorted({*states})} have no common divisor, so that there would be {longest // every} "
            f"evaluations; use a run of another length, or budgets that are multiples of each other"
        )
    return every


def checkpoints(ds: xr.Dataset, s: BudgetsSetting, plans: Sequence[Plan], runs: Runs) -> dict[str, Any]:
    """Loss and cost of every checkpoint, and its gap to that of WSD, seed by seed."""
    shape = (len(ACCOUNTINGS), len(FAMILIES), len(s.budgets))
    losses = np.full((*shape, ds.sizes["seed"]), np.nan)
    updates = np.zeros(shape, dtype=np.int64)
    for plan in plans:
        for c in plan.checkpoints:
            at = list(ACCOUNTINGS).index(c.accounting), FAMILIES.index(c.family), c.number
            updates[at] = c.state
            if "val_loss" in ds and c.state in ds["eval_step"]:
                losses[at] = ds["val_loss"].sel(plan=plan.name, eval_step=c.state).values
    mean, error, *_ = over_seeds(np.moveaxis(losses, -1, 0))
    gap, gap_error, *_ = over_seeds(np.moveaxis(losses - losses[:, :1], -1, 0))
    own = np.arange(len(FAMILIES))[:, None] == 0
    return {
        "accounting": list(ACCOUNTINGS), "family": list(FAMILIES), "checkpoint": np.arange(shape[2]) + 1,
        "checkpoint_updates": updates, "checkpoint_seed_loss": losses,
        "checkpoint_loss": mean, "checkpoint_loss_error": error,
        "gap": np.where(own, 0.0, gap), "gap_error": np.where(own, 0.0, gap_error),
        "family_updates": family_updates(updates, s.cooldown),
    }  # fmt: skip


def family_updates(updates: NDArray[np.int64], cooldown: float) -> NDArray[np.int64]:
    """Updates that the checkpoints of each family cost together, shape (accountings, families).

    WSD: the trunk of the longest budget and every cooldown. WSD-S and the cyclic cosine: one run, to the last
    checkpoint. Cosine: a run for each.

    Args:
        updates: on the path to each checkpoint, (accountings, families, checkpoints).
        cooldown: of WSD, as a fraction of each budget.

    >>> family_updates(np.array([[[100, 200], [100, 200], [100, 200], [100, 200]]]), 0.1).tolist()
    [[210, 200, 200, 300]]
    """
    return np.array([
        [branch_updates(rows[0].tolist(), cooldown), int(rows[1, -1]), int(rows[2, -1]), int(rows[3].sum())]
        for rows in updates
    ])  # fmt: skip


def checkpoint_numbers(ds: xr.Dataset) -> list[Finding]:
    """The loss of every checkpoint of WSD, and the gap of all others to it."""
    rows = []
    for accounting in ds["accounting"].values:
        for family in ds["family"].values:
            one = ds.sel(accounting=accounting, family=family)
            for k in ds["checkpoint"].values:
                at = one.sel(checkpoint=k)
                of = "checkpoint" if family == FAMILIES[0] else "gap"
                value = float(at["checkpoint_loss" if of == "checkpoint" else "gap"])
                error = float(at["checkpoint_loss_error" if of == "checkpoint" else "gap_error"])
                minus = "" if of == "checkpoint" else f" minus {FAMILIES[0]}"
                told = f"after {int(at['checkpoint_updates'])} updates, {int(one['family_updates'])} for all"
                rows.append(Finding(f"equal {accounting}: {family}{minus}, checkpoint {k}", value, error, told))
    return rows


WSD_S = Study(
    name="wsd-s",
    question="which makes the best checkpoints at three budgets: WSD branches, WSD-S, cyclic cosine, one cosine each?",
    setting=BudgetsSetting,
    plans=budget_plans,
    derive=checkpoints,
    numbers=checkpoint_numbers,
)
