"""Readers of loss curves: two public collections, riverval's own datasets, and any CSV with step, lr and loss.

`read_curves` finds out what lies at a path. The forms, and what each leaves unsaid:

* multi-power law (github.com/thu-yao-01-luo/MultiPowerLaw, arXiv:2503.12811): folders ``csv_25``, ``csv_100``, ... by
  millions of parameters with one CSV per schedule. The linear warmup of 2160 updates is not in the files; `lr` is the
  rate of the update that follows the measured state.
* lr-scheduling (github.com/fabian-sp/lr-scheduling, arXiv:2501.18965): a JSON file per run, or the tables ``runs.csv``
  and ``curves.csv.gz`` made from them. Every rate is rebuilt from the run's settings and held against the logged ones.
  A cooldown's log starts where it was resumed, so its losses cover only that part. `loss` is the running validation
  loss; `final_loss` was measured after the run on more data.
* datasets of riverval, which store every rate.
* a CSV file with the columns step, lr, loss, or others that are named (see `riverval.curve_tables`, and
  `riverval.curves.rates_from_log` for what is filled in).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import store
from ._typing import FloatArray
from .curve_tables import TableOptions, header_of, looks_like_log, read_table, rows_of, text_of
from .curves import Curve, tidy_rows
from .errors import InputError, StoreError

__all__ = ["MULTI_POWER_WARMUP", "lr_scheduling_rates", "read_curves"]

MULTI_POWER_WARMUP = 2160
"""Updates of the warmup that the logs of the multi-power law leave out."""

_SIZE_FOLDER = re.compile(r"csv_(\d+)")
_SHAPE_OF = {"linear": "linear", "sqrt": "1-sqrt"}  # what that collection calls the shapes
_START = 0.01  # rate of the first update of its warmups, as a share of the peak
_FAR_FINAL = 0.1  # the two validation losses of one state differ by .03 to .04 there
_LOGGED = 2e-5  # relative rounding of its logged rates, which have five digits or more


def read_curves(
    path: str | Path,
    *,
    warmup: int | None = None,
    peak_lr: float | None = None,
    repair: bool = False,
    columns: Mapping[str, str] | None = None,
) -> list[Curve]:
    """Every loss curve in a file or below a folder.

    Args:
        path: a CSV, JSON or netCDF file, the folder of a run, or a folder with any of the forms below it.
        warmup: updates of the linear warmup that a plain CSV file leaves out.
        peak_lr: the rate that this warmup led to, where it is not that of the first row.
        repair: let `riverval.curves.tidy_rows` repair CSV files; what was done is in ``facts["notes"]``. (The logs of
            lr-scheduling are always repaired, as restarts have left duplicates in them.)
        columns: what plain CSV files call the columns step, lr and loss, e.g. ``{"loss": "val/loss"}``.

    Returns:
        Curves with distinct names: equal configurations are numbered.

    Raises:
        InputError: nothing is there, columns are missing, the curves do not say all that a law needs, or there is no
            plain CSV file for `warmup`, `peak_lr` or `columns`.
    """
    path = Path(path)
    options = TableOptions(warmup=warmup, peak_lr=peak_lr, repair=repair, columns=columns)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a file of curves or a folder of them")
    if path.is_file():
        reader = _reader_of(path, options)
        if reader is None:
            raise InputError(f"{path} is no file of curves; they are .csv, .csv.gz, .json or .nc")
        found = list(reader(path))
    else:
        found = list(_read_folder(path, options))
    if not found:
        raise InputError(
            f"no curves in {path}; it should hold CSV files with the columns {', '.join(options.names.values())}, logs "
            f"of the public collections (csv_25/, ... or data/*.json), or runs of riverval{_passed_over(path)}"
        )
    given = [name for name in ("warmup", "peak_lr", "columns") if getattr(options, name) is not None]
    if given and not any(curve.facts["format"] == "csv" for curve in found):
        raise InputError(f"{path} holds no plain CSV file, so {' and '.join(given)} would do nothing; leave it out")
    return _with_distinct_names(found)


def _passed_over(folder: Path) -> str:
    """Up to three CSV files that are no logs as they stand, with their columns: often only a name differs."""
    tables = sorted(path for path in folder.rglob("*") if path.is_file() and _is_table(path))[:3]
    told = "; ".join(f"{path.relative_to(folder)} has {', '.join(header_of(path)) or 'nothing'}" for path in tables)
    return f" ({told}: name the columns with --column-step, --column-lr and --column-loss)" if told else ""


def _is_table(path: Path) -> bool:
    return path.name.lower().endswith((".csv", ".csv.gz"))


Reader = Callable[[Path], Iterable[Curve]]


def _reader_of(path: Path, options: TableOptions) -> Reader | None:
    name = path.name.lower()
    if _is_table(path):
        in_collection = _SIZE_FOLDER.fullmatch(path.parent.name)
        return partial(_read_multi_power if in_collection else _read_plain, options=options)
    if name.endswith(".json"):
        return _read_json
    return _read_dataset if name.endswith(".nc") else None


def _read_folder(folder: Path, options: TableOptions) -> Iterator[Curve]:
    if store.holds_run(folder):
        yield from _read_dataset(store.resolve(folder))
        return
    tables = [folder / "runs.csv", *(folder / name for name in ("curves.csv.gz", "curves.csv"))]
    if tables[0].exists() and any(table.exists() for table in tables[1:]):
        yield from _read_tables(tables[0], next(table for table in tables[1:] if table.exists()))
        return
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.is_dir() and not path.name.startswith("."):
            yield from _read_folder(path, options)
        elif path.is_file() and _holds_curves(path, options):
            reader = _reader_of(path, options)
            if reader is not None:
                yield from reader(path)


def _holds_curves(path: Path, options: TableOptions) -> bool:
    """Whether a file met on the way belongs to the curves."""
    if _is_table(path):
        return looks_like_log(path, options.names)
    if path.name.lower().endswith(".json"):
        return _run_of(path) is not None
    return path.name.lower().endswith(".nc")


def _with_distinct_names(curves: list[Curve]) -> list[Curve]:
    """Repeated runs of one configuration become ``name``, ``name #2``, ..."""
    seen: Counter[str] = Counter()
    out = []
    for curve in curves:
        seen[curve.name] += 1
        number = seen[curve.name]
        out.append(curve if number == 1 else replace(curve, name=f"{curve.name} #{number}"))
    return out


# --- tables ----------------------------------------------------------------------------------------------------------
def _read_plain(path: Path, options: TableOptions) -> Iterator[Curve]:
    yield read_table(path, options)


def _read_multi_power(path: Path, options: TableOptions) -> Iterator[Curve]:
    curve = read_table(path, TableOptions(warmup=MULTI_POWER_WARMUP, repair=options.repair))
    size = f"{path.parent.name.removeprefix('csv_')}M"
    facts = {
        **curve.facts, "format": "multi-power-law", "group": path.parent.name, "size": size, "schedule": curve.name,
        "measured_from": int(curve.steps[0]),
    }  # fmt: skip
    yield replace(curve, name=f"{size}/{curve.name}", facts=facts)


# --- lr-scheduling ---------------------------------------------------------------------------------------------------
def _read_tables(runs: Path, curves: Path) -> Iterator[Curve]:
    """The runs of ``runs.csv`` with their rows of ``curves.csv``."""
    logged: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for row in rows_of(curves, ("run", "split", "iter", "lr", "loss")):
        numbers = (float(row["iter"]), float(row["lr"] or "nan"), float(row["loss"] or "nan"))
        logged.setdefault(row["run"], {}).setdefault(row["split"], []).append(numbers)
    for run in rows_of(runs, ("run", "parameters", "lr", "scheduler", "warmup_steps", "iterations", "final_val_loss")):
        splits = logged.get(run["run"], {})
        train, val = (np.array(splits.get(name, [])).reshape(-1, 3) for name in ("train", "val"))
        settings = {name: _value(text) for name, text in run.items()}
        yield _scheduled(f"run {run['run']} of {runs}", settings, val[:, 0], val[:, 2], train[:, 0], train[:, 1])


def _value(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text or None
    return int(number) if number.is_integer() and "." not in text else number


def _run_of(path: Path) -> dict[str, Any] | None:
    """A log of lr-scheduling; None where the file is some other JSON."""
    try:
        run = json.loads(text_of(path))
    except ValueError:  # InputError among it
        return None
    whole = isinstance(run, dict) and {"config", "history", "summary"} <= run.keys()
    return run if whole and "iterations" in run["config"] else None


def _read_json(path: Path) -> Iterator[Curve]:
    run = _run_of(path)
    if run is None:
        raise InputError(f"{path} is no log of lr-scheduling, which has config, history and summary")
    history = run["history"]
    try:
        val, train = history["val"], history["train"]
        final = history.get("final-val", {}).get("final_val_loss") or [None]
        settings = {
            **run["config"], "group": run["config"].get("wandb_run_prefix"),
            "parameters": run["summary"].get("parameters"), "final_val_loss": final[-1],
        }  # fmt: skip
        columns = [np.asarray(c, dtype=np.float64) for c in (val["iter"], val["val_loss"], train["iter"],
                                                             train["train_lr"])]  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} lacks what a log of lr-scheduling has: {error}") from error
    yield _scheduled(str(path), settings, *columns)


def _scheduled(
    told: str,
    settings: Mapping[str, Any],
    steps: FloatArray,
    loss: FloatArray,
    logged_steps: FloatArray,
    logged: FloatArray,
) -> Curve:
    """A curve of lr-scheduling from the settings and the log of its run."""
    lr, facts = lr_scheduling_rates(settings, told)
    _hold_against_log(told, lr, logged_steps, logged)
    rows, notes = tidy_rows(told, {"step": steps, "loss": loss}, repair=True)
    measured = (rows["step"] >= 1) & (rows["step"] <= lr.size)
    updates, loss = rows["step"][measured].astype(np.int64), rows["loss"][measured]
    if updates.size < 2:
        raise InputError(f"{told} has {updates.size} validation losses within its {lr.size} updates; leave it out")
    gap = lr.size - int(updates[-1])
    if gap > 2 * float(np.median(np.diff(updates))):
        notes.append(f"the log ends after {updates[-1]} of {lr.size} updates")
    final = settings.get("final_val_loss")
    if final is not None and gap <= 0.05 * lr.size and abs(final - loss[-1]) > _FAR_FINAL:
        notes.append(
            f"left out the final loss {final:.4f}: {final - loss[-1]:+.3f} from the last running loss, so of another "
            f"state"
        )
        final = None
    facts |= {"measured_from": int(updates[0]), "notes": notes}
    size, peak, kind = facts["size"], facts["peak_lr"], facts["shape"]
    if kind == "cosine":
        kind += f"-to-{facts['floor']:.2g}"
    elif kind != "constant":
        kind += f"-{facts['cooldown']:g}"
    name = "/".join(filter(None, [size, facts.get("dataset"), f"lr{peak:g}", f"{kind}-{lr.size}"]))
    return Curve(name, lr, updates, loss, final_loss=final, facts=facts)


def _hold_against_log(told: str, lr: FloatArray, steps: FloatArray, logged: FloatArray) -> None:
    """The rate logged at iteration i is that of update i; beyond the last update there is none to compare."""
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
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{told} lacks a setting that its schedule needs, or has one unknown here: {error}") from error
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
        "format": "lr-scheduling", "size": f"{float(parameters) / 1e6:.0f}M" if parameters else None,
        "parameters": parameters, "peak_lr": peak, "updates": total, "warmup": warm,
        "shape": "cosine" if kind == "cos" else shape if share else "constant",
        "cooldown": share if kind == "wsd" and share else None, "floor": end,
    }  # fmt: skip
    facts |= {
        name: settings[name] for name in ("dataset", "group", "run", "decay_type") if settings.get(name) is not None
    }
    return peak * factor, facts


def _half_cosine(start: float, end: float, share: FloatArray) -> FloatArray:
    return np.asarray(end + (start - end) * 0.5 * (1.0 + np.cos(math.pi * share)))


# --- riverval's own --------------------------------------------------------------------------------------------------
def _read_dataset(path: Path) -> Iterator[Curve]:
    """The validation loss of a real run, or the loss of a toy run averaged over the replicates that did not diverge."""
    try:
        ds = store.load(path)
    except StoreError as error:
        raise InputError(str(error)) from error
    measured = next((ds[name] for name in ("val_loss", "loss") if name in ds), None)
    if measured is None or "lr" not in ds or not set(measured.dims) <= {"eval_step", "replicate"}:
        raise InputError(f"{path} holds no single loss curve; give the dataset of a run rather than of a study")
    notes = []
    if "replicate" in measured.dims:
        kept = ~ds["diverged"].values.astype(bool)
        if not kept.any():
            raise InputError(f"{path}: every replicate diverged, so there is no curve; use a smaller rate")
        notes.append(f"mean over {kept.sum()} of {kept.size} replicates")
        measured = measured.isel(replicate=np.flatnonzero(kept)).mean("replicate")
    steps = ds["eval_step"].values
    after = steps >= 1
    lr = ds["lr"].values.astype(np.float64)
    name = path.parent.name if path.name in (store.RUN_FILE, store.PARTIAL_FILE) else path.stem
    facts = {
        "format": "riverval", "group": str(ds["source"].item()), "peak_lr": float(lr.max()), "updates": int(lr.size),
        "title": str(ds.attrs["title"]), "status": str(ds.attrs["status"]), "notes": notes,
    }  # fmt: skip
    yield Curve(name, lr, steps[after].astype(np.int64), measured.values[after], facts=facts)
