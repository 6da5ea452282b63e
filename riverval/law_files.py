"""What laws write: predicted curves as tables or datasets, plans as tables."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from . import store
from ._schedule import Schedule
from .errors import InputError
from .law_base import Prediction
from .law_plan import Candidate, Plan
from .laws import FittedLaw
from .provenance import provenance
from .schema import Variable, build, declare

__all__ = ["CURVE_FILES", "PLAN_FILES", "check_ending", "write_plan", "write_prediction"]

CURVE_FILES = (".csv", ".nc")
PLAN_FILES = (".csv",)

_ENDS = {
    "law_low": Variable("lower end of the law's 95 % interval of one measurement", "1", (("eval_step",),)),
    "law_high": Variable("upper end of the law's 95 % interval of one measurement", "1", (("eval_step",),)),
}


def check_ending(path: str | Path, endings: tuple[str, ...], what: str) -> None:
    """Refuse a file of another kind, before the work that it is for.

    Raises:
        InputError: another ending.
    """
    if Path(path).suffix.lower() not in endings:
        raise InputError(f"{what} is written to a file that ends in {' or '.join(endings)}, got {path}")


def write_prediction(
    path: str | Path, law: FittedLaw, schedule: Schedule, predicted: Prediction, *, overwrite: bool = False
) -> Path:
    """Write a predicted curve.

    Args:
        path: ends in .csv, a table of step, lr (of the update that follows, as in a log; at the end of the last one),
            loss, low and high; or in .nc, a dataset of source "theory" with the loss, its interval as law_low and
            law_high, and every rate.
        law: what predicted it.
        schedule: for which.
        predicted: ``law.predict(schedule)``.
        overwrite: replace a file that exists.

    Raises:
        InputError: another ending, or a file that exists where `overwrite` is False.
        StoreError: it cannot be written.
    """
    path = Path(path)
    check_ending(path, CURVE_FILES, "a predicted curve")
    rates = schedule.values()
    if path.suffix.lower() == ".csv":
        _refuse(path, overwrite)
        lr = rates[np.minimum(predicted.steps, rates.size - 1)]
        columns = {"step": predicted.steps, "lr": lr, "loss": predicted.loss}
        return store.write_csv(path, {**columns, "low": predicted.low, "high": predicted.high})
    values = {
        "step": np.arange(schedule.total), "lr": rates, "phase": schedule.phases(), "eval_step": predicted.steps,
        "loss": predicted.loss, "law_low": predicted.low, "law_high": predicted.high,
    }  # fmt: skip
    dims: dict[str, tuple[str, ...]] = {"loss": ("eval_step",)}
    config = {"law": law.to_dict(), "schedule": schedule.to_dict()}
    attrs = provenance(f"the law {law.name}: {schedule.describe()}", config=config, seed=0)
    ds = build(values, dims, "theory", _ENDS).assign_attrs({**attrs, "seed": "none"}, own_variables=declare(_ENDS))
    return store.save(ds, path, overwrite=overwrite)


def write_plan(path: str | Path, plan: Plan, *, overwrite: bool = False) -> Path:
    """Write the candidates of a plan as a CSV table, the best first.

    Raises:
        InputError: another ending, or a file that exists where `overwrite` is False.
        StoreError: it cannot be written.
    """
    path = Path(path)
    check_ending(path, PLAN_FILES, "a plan")
    _refuse(path, overwrite)
    rows = [{**asdict(c), "alike": int(c.alike)} for c in plan.candidates]
    names = [*(f.name for f in fields(Candidate)), "alike"]
    return store.write_csv(path, {name: [row[name] for row in rows] for name in names})


def _refuse(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another path, or allow overwriting")
