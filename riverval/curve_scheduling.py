"""Reader of the runs of lr-scheduling (github.com/fabian-sp/lr-scheduling, arXiv:2501.18965).

A run is a JSON file, or a row of ``runs.csv`` with its rows of ``curves.csv``. Every rate is rebuilt from the run's
settings and held against the logged ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ._typing import FloatArray
from .curve_tables import column_of, fault_of, rows_of, text_of
from .curves import MOST, Curve, Source, tidy_rows
from .errors import InputError

__all__ = ["logged_run", "lr_scheduling_rates", "tabled_runs"]

_SHAPE_OF = {"linear": "linear", "sqrt": "1-sqrt"}  # what that collection calls the shapes
_START = 0.01  # rate of the first update of its warmups, as a share of the peak
_FAR_FINAL = 0.1  # the two validation losses of one state differ by .03 to .04 there
_LOGGED = 2e-5  # relative rounding of its logged rates, which have five digits or more

_FORMAT = {"format": "lr-scheduling"}
_PARTS = {"config", "history", "summary"}  # of the JSON file of a run

Columns = tuple[FloatArray, FloatArray, FloatArray, FloatArray]
"""Steps and values of the validation loss, steps and values of the logged rates."""


# --- tables ----------------------------------------------------------------------------------------------------------
def tabled_runs(runs: Path, curves: Path) -> Iterator[Source]:
    """The runs of ``runs.csv`` with their rows of ``curves.csv``.

    Raises:
        InputError: one of the files is no table, or lacks a column.
    """
    logged: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows_of(curves, ("run", "split", "iter", "lr", "loss")):
        if not row["run"]:
            raise InputError(fault_of(row) or f"{curves}, line {row['']}: no run; every row needs one")
        logged.setdefault(row["run"], {}).setdefault(row["split"], []).append(row)
    needed = ("run", "parameters", "lr", "scheduler", "warmup_steps", "iterations", "final_val_loss")
    listed = rows_of(runs, needed)
    if not listed and not logged:
        raise InputError(f"{runs} lists no run, and {curves} has no row; fetch them again")
    for row in listed:
        name, told = f"run {row['run']}", f"run {row['run']} of {runs}"
        splits = logged.pop(row["run"], {})
        if fault := fault_of(row):
            yield Source(name, told, partial(_refuse, fault), _FORMAT)
            continue
        settings = {key: _value(text) for key, text in row.items()}
        yield _source(name, told, settings, partial(_tabled_columns, curves, splits))
    for run in logged:
        reason = f"run {run} of {curves} is not in {runs}, which should have its settings"
        yield Source(f"run {run}", str(curves), partial(_refuse, reason), _FORMAT)


def _tabled_columns(curves: Path, splits: Mapping[str, list[dict[str, str]]]) -> Columns:
    for rows in (rows for split, rows in splits.items() if split not in ("train", "val")):
        if fault := next(filter(None, map(fault_of, rows)), ""):  # a torn row may have lost its split
            raise InputError(fault)
    val, train = splits.get("val", []), splits.get("train", [])
    columns = ((val, "iter"), (val, "loss"), (train, "iter"), (train, "lr"))
    steps, loss, logged_steps, logged = (column_of(curves, rows, name)[0] for rows, name in columns)
    return steps, loss, logged_steps, logged


def _refuse(reason: str) -> Curve:
    raise InputError(reason)


def _value(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text or None
    return int(number) if number.is_integer() and "." not in text else number


# --- files -----------------------------------------------------------------------------------------------------------
def logged_run(path: Path) -> Source | None:
    """The run of a JSON file; None where that is something else: a log has config, history and summary, or two of them.

    Raises:
        InputError: the file is not JSON.
    """
    try:
        run = json.loads(text_of(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        what = "name a table of one object to a line .jsonl" if lines else "a log that was cut short is fetched again"
        raise InputError(f"{path} is not JSON ({error}); {what}") from None
    if not isinstance(run, dict) or len(_PARTS & run.keys()) < 2:
        return None
    config = run.get("config")
    settings = dict(config) if isinstance(config, dict) else {}
    try:
        final = run["history"].get("final-val", {}).get("final_val_loss") or [None]
        settings |= {
            "group": settings.get("wandb_run_prefix"), "parameters": run["summary"].get("parameters"),
            "final_val_loss": final[-1],
        }  # fmt: skip
    except (AttributeError, KeyError, TypeError) as error:
        return Source(path.stem, str(path), partial(_refuse, _lacking(path, error)), _FORMAT)
    return _source(path.stem, str(path), settings, partial(_logged_columns, path, run["history"]))


def _logged_columns(path: Path, history: Any) -> Columns:
    try:
        val, train = history["val"], history["train"]
        steps, loss, logged_steps, logged = (
            np.asarray(column, dtype=np.float64)
            for column in (val["iter"], val["val_loss"], train["iter"], train["train_lr"])
        )
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise InputError(_lacking(path, error)) from error
    return steps, loss, logged_steps, logged


def _lacking(path: Path, error: Exception) -> str:
    return f"{path} lacks what a log of lr-scheduling has: {error}"


# --- a run -----------------------------------------------------------------------------------------------------------
def _source(name: str, told: str, settings: Mapping[str, Any], columns: Callable[[], Columns]) -> Source:
    """A run by the name that its settings give it, or by `name` where they are not all there."""
    facts: dict[str, Any] = _FORMAT
    try:
        _, facts = lr_scheduling_rates(settings, told)
        name = _name_of(facts)
    except InputError:
        pass  # reading it says so
    return Source(name, told, partial(_scheduled, told, settings, columns), facts)


def _name_of(facts: Mapping[str, Any]) -> str:
    kind = facts["shape"]
    if kind == "cosine":
        kind += f"-to-{facts['floor']:.2g}"
    elif kind != "constant":
        kind += f"-{facts['cooldown']:g}"
    parts = [facts["size"], facts.get("dataset"), f"lr{facts['peak_lr']:g}", f"{kind}-{facts['updates']}"]
    return "/".join(str(part) for part in parts if part)


def _scheduled(told: str, settings: Mapping[str, Any], columns: Callable[[], Columns]) -> Curve:
    """A curve of lr-scheduling from the settings and the log of its run."""
    lr, facts = lr_scheduling_rates(settings, told)
    steps, loss, logged_steps, logged = columns()
    _hold_against_log(told, lr, logged_steps, logged)
    rows, notes = tidy_rows(told, {"step": steps, "loss": loss}, repair=True)
    measured = (rows["step"] >= 1) & (rows["step"] <= lr.size)
    updates, loss = rows["step"][measured].astype(np.int64), rows["loss"][measured]
    if updates.size < 2:
        raise InputError(f"{told} has {updates.size} validation losses within its {lr.size} updates; leave it out")
    gap = lr.size - int(updates[-1])
    if gap > 2 * float(np.median(np.diff(updates))):
        notes.append(f"the log ends after {updates[-1]} of {lr.size} updates")
    final = _final_of(told, settings)
    if final is not None and gap <= 0.05 * lr.size and abs(final - loss[-1]) > _FAR_FINAL:
        notes.append(
            f"left out the final loss {final:.4f}: {final - loss[-1]:+.3f} from the last running loss, so of another "
            f"state"
        )
        final = None
    facts |= {"measured_from": int(updates[0]), "notes": notes}
    return Curve(_name_of(facts), lr, updates, loss, final_loss=final, facts=facts)


def _final_of(told: str, settings: Mapping[str, Any]) -> float | None:
    final = settings.get("final_val_loss")
    try:
        return None if final is None else float(final)
    except (ArithmeticError, TypeError, ValueError):
        raise InputError(f"{told} has the final loss {final!r}, which is no number; mend the log") from None


def _hold_against_log(told: str, lr: FloatArray, steps: FloatArray, logged: FloatArray) -> None:
    """The rate logged at iteration i is that of update i; beyond the last update there is none to compare."""
    if steps.ndim != 1 or steps.shape != logged.shape:
        raise InputError(f"{told} has logged rates of the shape {logged.shape} at steps of the shape {steps.shape}")
    known = np.isfinite(logged) & (steps >= 0) & (steps < lr.size)
    steps, logged = steps[known].astype(np.int64), logged[known]
    off = np.abs(lr[steps] - logged) > _LOGGED * lr.max()
    if off.any():
        k = int(np.argmax(off))
        raise InputError(
            f"{told}: its settings give the rate {lr[steps[k]]:g} for update {steps[k]}, but the log has "
            f"{logged[k]:g}; such a schedule is not known here, so pass the log as a CSV with step, lr and loss"
        )


def lr_scheduling_rates(settings: Mapping[str, Any], told: str = "the run") -> tuple[FloatArray, dict[str, Any]]:
    r"""Rate of every update of a run of lr-scheduling, and what its settings say.

    With T = `iterations`, w = `warmup_steps`, :math:`\hat\eta` = `lr` and n = floor(c T), c = `wsd_fract_decay`:

    * wsd: :math:`\hat\eta(.01 + .99 t/w)` for t < w; then the peak; and from T - n on
      :math:`\hat\eta(f + (1-f)s((t-T+n)/n))` with s(z) = 1 - z (linear) or 1 - sqrt(z) and f = `wsd_final_lr_scale`.
    * cos: both parts are half cosines, from .01 of the peak at 0 to the peak at w - 1, and from there to
      `cos_final_lr` at T - 1, or to a tenth of the peak where that is missing or negative.

    Found by comparison with the logged rates, which they match to their rounding.

    Args:
        settings: of the run, by those names; `parameters`, `dataset`, `group`, `run`, `decay_type` become facts.
        told: what messages call the run.

    Returns:
        Rates, shape (T,), and the facts: those settings, size, peak_lr, updates, warmup, shape (linear, 1-sqrt, cosine
        or constant), cooldown (its fraction, None for cosine and constant) and floor (last rate over peak).

    Raises:
        InputError: a setting is missing, or the schedule is none of these.
    """
    try:
        total, peak, warm = int(settings["iterations"]), float(settings["lr"]), int(settings["warmup_steps"])
        kind, parameters = settings["scheduler"], settings["parameters"]
        share = float(settings.get("wsd_fract_decay") or 0.0)
        floor, final = float(settings.get("wsd_final_lr_scale") or 0.0), float(settings.get("cos_final_lr") or -1.0)
        shape = _SHAPE_OF[settings.get("decay_type") or "linear"]
        end = floor if kind == "wsd" else final / peak if final > 0 else 0.1
        size = f"{float(parameters) / 1e6:.0f}M" if parameters else None
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{told} lacks a setting that its schedule needs, or has one unknown here: {error}") from error
    if not (1 <= total <= MOST and 0 <= warm <= total and 0 < peak < math.inf and 0 <= share <= 1):
        raise InputError(
            f"{told} has {total} updates, {warm} of them warmup, the rate {peak:g} and a cooldown of {share:g}: no run"
        )
    t = np.arange(total, dtype=np.float64)
    if kind == "wsd":
        n = int(share * total)
        z = np.clip((t - (total - n)) / max(n, 1), 0.0, 1.0)
        decay = end + (1.0 - end) * (1.0 - (np.sqrt(z) if shape == "1-sqrt" else z))
        factor = np.where(t < warm, _START + (1.0 - _START) * t / max(warm, 1), decay)
    elif kind == "cos":
        rise = _half_cosine(_START, 1.0, t / max(warm - 1, 1))
        factor = np.where(t <= warm - 1, rise, _half_cosine(1.0, end, (t - (warm - 1)) / max(total - warm, 1)))
    else:
        raise InputError(f"{told} has the scheduler {kind!r}; known are wsd and cos")
    facts = {
        **_FORMAT, "size": size, "parameters": parameters, "peak_lr": peak, "updates": total, "warmup": warm,
        "shape": "cosine" if kind == "cos" else shape if share else "constant",
        "cooldown": share if kind == "wsd" and share else None, "floor": end,
    }  # fmt: skip
    facts |= {
        name: settings[name] for name in ("dataset", "group", "run", "decay_type") if settings.get(name) is not None
    }
    return peak * factor, facts


def _half_cosine(start: float, end: float, share: FloatArray) -> FloatArray:
    return np.asarray(end + (start - end) * 0.5 * (1.0 + np.cos(math.pi * share)))
