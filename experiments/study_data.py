"""From the datasets of the cells to that of the study: values by seed, means, paired differences, curves.

Let x[s, p] be a metric of plan p at seed s and r the plan that p is compared with. The gap of p is the mean over seeds
of d[s] = x[s, p] - x[s, r], its standard error std(d) / sqrt(n) with n - 1 in the variance, and its interval
mean +- t(n - 1; 97.5 %) standard errors (Student 1908). Equal seeds start from the same weights and see the same
batches, so d varies less than x. NULL: a plan that does as well as its reference has a gap of 0, and its interval
leaves 0 out in 5 of 100 studies; intervals are not corrected for the number of plans.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from .._format import counted
from .._typing import ArrayLike, FloatArray, NDArray
from ..compare import cooldown_gain
from ..provenance import provenance
from ..schedules import Schedule, schedule_from_dict
from ..schema import build, validate
from .study import Cell, Plan, Setting, Study
from .study_run import costs, result_of

METRICS = {
    "val_loss": "held-out loss",
    "train_loss": "training loss",
    "val_accuracy": "held-out accuracy",
    "train_accuracy": "training accuracy",
    "cooldown_gain": "fall of the held-out loss in the last cooldown",
    "cooldown_hill": "that fall beyond what the river alone would bring",
}
LEVEL = 0.05
CURVES = ("val_loss", "val_accuracy")


def dataset(
    study: Study, setting: Setting, cells: Sequence[Cell], folder: Path, failed: Mapping[str, str]
) -> xr.Dataset:
    """The dataset of a study, from the cells that are done.

    Args:
        study, setting: what was run.
        cells: every plan at every seed.
        folder: of the study.
        failed: reasons by label of those that are not done.
    """
    found = {c.key: ds for c in cells if (ds := result_of(c, folder)) is not None}
    plans = list({c.plan.name: c.plan for c in cells}.values())
    ds = build(_measured(cells, plans, found), dict.fromkeys(CURVES, ("seed", "plan", "eval_step")), "real")
    runs = {(c.plan.name, c.seed): found[c.key] for c in cells if c.key in found}
    more = study.derive(ds, setting, plans, runs)
    if more:
        part = build(more, {}, "real")
        ds = ds.assign_coords(part.coords).assign(part.data_vars)
    return validate(ds.assign_attrs(_attributes(study, setting, cells, found, failed)))


def _attributes(
    study: Study, setting: Setting, cells: Sequence[Cell], found: Mapping[str, xr.Dataset], failed: Mapping[str, str]
) -> dict[str, str]:
    config = {"study": study.name, "setting": asdict(setting), **described(cells)}
    whole = all(c.key in found for c in cells)
    title = f"study {study.name} of {', '.join(dict.fromkeys(c.config.arch for c in cells))}: {study.question}"
    attrs = provenance(title, config=config, seed=cells[0].seed, status="complete" if whole else "interrupted")
    diverged = [c.label for c in cells if c.key in found and found[c.key].attrs["status"] == "diverged"]
    notes = [f"{label}: the loss stopped being finite" for label in diverged]
    probed = [(c.label, found[c.key].attrs["notes"]) for c in cells if c.key in found and c.config.snapshots]
    notes += [f"{label}: {note}" for label, told in probed for note in told.splitlines()]
    notes += _different_code(list(found.values()))
    return attrs | {"notes": "\n".join([*notes, *(f"{label}: {why}" for label, why in failed.items())])}


def _different_code(runs: Sequence[xr.Dataset]) -> list[str]:
    """A note where kept cells are of another version than new ones: what a version mends differs between them."""
    made = Counter(_code(ds) for ds in runs)
    if len(made) < 2:
        return []
    told = ", ".join(f"{counted(n, 'cell')} by {code}" for code, n in made.most_common())
    return [f"not all cells were made by the same code: {told}; one whose folder is deleted is run again"]


def _code(ds: xr.Dataset) -> str:
    again = ds.attrs.get("measured_by")
    return _version(ds.attrs) + (f", measured by {_version(json.loads(again))}" if again else "")


def _version(of: Mapping[str, str]) -> str:
    torch = json.loads(of["versions"]).get("torch", "unknown")
    commit = f" at {of['git_commit'][:7]}" if of["git_commit"] else ""
    return f"riverval {of['riverval_version']}{commit} with torch {torch}"


def described(cells: Sequence[Cell]) -> dict[str, Any]:
    """The configurations of all plans but for the seed: what they have in common, and what is each one's own."""
    configs = {c.plan.name: json.loads(json.dumps(c.config.to_dict())) for c in cells}
    first = next(iter(configs.values()))
    common = {k: v for k, v in first.items() if all(c.get(k) == v for c in configs.values())}
    own = {name: {k: v for k, v in c.items() if k not in common} for name, c in configs.items()}
    for one in (common, *own.values()):
        one.pop("seed", None)
    return {"common": common, "plans": own}


# --- tables ----------------------------------------------------------------------------------------------------------
def _measured(cells: Sequence[Cell], plans: Sequence[Plan], found: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    seeds = list(dict.fromkeys(c.seed for c in cells))
    grid = np.array([[_of(cells, s, p) for p in plans] for s in seeds], dtype=object)
    runs = [[found.get(c.key) for c in row] for row in grid]
    metrics = [m for m in METRICS if any(m in _metrics(ds) for ds in found.values())] or ["val_loss"]
    outcome = np.array([[[_metrics(ds).get(m, math.nan) for m in metrics] for ds in row] for row in runs])
    names = [p.name for p in plans]
    against = outcome[:, [names.index(p.against) for p in plans]]
    mean, error, _, _, count = over_seeds(outcome)
    gap, gap_error, low, high, _ = over_seeds(outcome - against)
    own = np.array([p.against == p.name for p in plans])[:, None]
    whole, shared = costs(cells)
    return {
        "plan": names, "seed": seeds, "metric": metrics, "outcome": outcome,
        "outcome_mean": mean, "outcome_error": error, "outcome_seeds": count,
        "outcome_gap": np.where(own, 0.0, gap), "outcome_gap_error": np.where(own, 0.0, gap_error),
        "outcome_gap_low": np.where(own, 0.0, low), "outcome_gap_high": np.where(own, 0.0, high),
        "cell_key": [[c.key for c in row] for row in grid],
        "cell_status": [["failed" if ds is None else ds.attrs["status"] for ds in row] for row in runs],
        "study_updates": whole, "study_shared_updates": shared,
    } | _plan_values(grid[0]) | _curves(grid[0], runs)  # fmt: skip


def _of(cells: Sequence[Cell], seed: int, plan: Plan) -> Cell:
    return next(c for c in cells if c.seed == seed and c.plan.name == plan.name)


def _metrics(ds: xr.Dataset | None) -> dict[str, float]:
    """The metrics of one finished run; those of a run that diverged are not numbers."""
    if ds is None or ds.attrs["status"] != "complete":
        return {}
    out = {"val_loss": float(ds["val_loss"][-1])}
    out |= {k: float(ds[f"final_{k}"]) for k in ("train_loss", "train_accuracy") if f"final_{k}" in ds}
    if "val_accuracy" in ds:
        out["val_accuracy"] = float(ds["val_accuracy"][-1])
    start = cooldown_of(json.loads(ds.attrs["config"])["schedule"])
    if start is not None:
        out["cooldown_gain"] = float(ds["val_loss"].sel(eval_step=start)) - out["val_loss"]
    told = cooldown_gain(ds)
    return out if told is None else {**out, "cooldown_hill": told.hill}


def cooldown_of(described: dict[str, Any]) -> int | None:
    """The state at which the last cooldown starts, None where no stable phase comes before it."""
    windows = _windows(schedule_from_dict(described))
    return windows[-1][0] if windows else None


def _windows(plan: Schedule) -> list[tuple[int, int]]:
    """Cooldowns that a stable phase comes before."""
    before = {stop for _, stop in plan.windows("stable")}
    return [w for w in plan.windows("cooldown") if w[0] in before]


def _plan_values(cells: Sequence[Cell]) -> dict[str, Any]:
    """What the plans are, one value of each for every plan."""
    planned = [c.config for c in cells]
    cooldowns = [(p.plan.windows("cooldown") or [(0, 0)])[-1] for p in planned]
    shapes = [p.schedule.get("shape") or {"name": p.schedule["name"]} for p in planned]
    return {
        "plan_against": [c.plan.against for c in cells],
        "plan_arch": [p.arch for p in planned],
        "plan_schedule": [p.schedule["name"] for p in planned],
        "plan_shape": [shape["name"] for shape in shapes],
        "plan_updates": [p.plan.total for p in planned],
        "plan_warmup": [p.schedule["warmup"] for p in planned],
        "plan_cooldown": [(b - a) / p.plan.total for (a, b), p in zip(cooldowns, planned, strict=True)],
        "plan_peak": [p.lr for p in planned],
        "plan_batch": [p.batch for p in planned],
        "plan_width": [p.width_factor for p in planned],
        "plan_parameters": [p.parameters for p in planned],
    }


def _curves(cells: Sequence[Cell], runs: Sequence[Sequence[xr.Dataset | None]]) -> dict[str, Any]:
    """Held-out loss and accuracy of every cell on the states of all of them; nan where a cell was not evaluated."""
    there = [ds for row in runs for ds in row if ds is not None and "eval_step" in ds]
    if not there:
        return {}
    states = np.unique(np.concatenate([ds["eval_step"].values for ds in there]))
    out: dict[str, Any] = {"eval_step": states}
    for name in CURVES:
        if any(name in ds for ds in there):
            out[name] = np.array([[_on(states, ds, name) for ds in row] for row in runs])
    rates = [np.append(c.rates, np.nan) for c in cells]
    out["plan_lr"] = np.array([r[np.minimum(states, len(r) - 1)] for r in rates])
    return out


def _on(states: NDArray[np.int64], ds: xr.Dataset | None, name: str) -> FloatArray:
    out = np.full(states.size, np.nan)
    if ds is not None and name in ds:
        out[np.searchsorted(states, ds["eval_step"].values)] = ds[name].values
    return out


# --- statistics ------------------------------------------------------------------------------------------------------
def over_seeds(values: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, NDArray[np.int64]]:
    """Mean over the first axis, its standard error, the ends of its 95 % t interval, and the number of values.

    nan are left out: a cell that failed takes no other with it. Errors of fewer than two values are nan.

    >>> [round(float(v), 3) for v in over_seeds([1.0, 2.0, 3.0])]
    [2.0, 0.577, -0.484, 4.484, 3.0]
    """
    x = np.asarray(values, dtype=np.float64)
    there = np.isfinite(x)
    n = there.sum(axis=0)
    total = np.where(there, x, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, total / n, np.nan)
        spread = np.where(there, x - mean, 0.0)
        error = np.where(n > 1, np.sqrt((spread**2).sum(axis=0) / (n - 1) / n), np.nan)
        reach = stdtrit(np.maximum(n - 1, 1), 1.0 - LEVEL / 2.0) * error
    return mean, error, mean - reach, mean + reach, n


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better: of accuracies and gains, not of losses."""
    return metric.endswith(("accuracy", "gain", "hill"))


def verdict(low: float, high: float, *, higher_is_better: bool = False) -> str:
    """What a gap's interval says: better, worse or undecided than the reference; unknown for a single seed.

    >>> verdict(-0.2, -0.1), verdict(-0.1, 0.1), verdict(math.nan, math.nan)
    ('better', 'undecided', 'one seed')
    """
    if not math.isfinite(low):
        return "one seed"
    if low <= 0.0 <= high:
        return "undecided"
    return "better" if (low > 0.0) == higher_is_better else "worse"
