"""Readers of loss curves: two public collections, riverval's own datasets, and any table with step, lr and loss.

`read_curves` finds out what lies at a path. The forms, and what each leaves unsaid:

* multi-power law (github.com/thu-yao-01-luo/MultiPowerLaw, arXiv:2503.12811): folders ``csv_25``, ``csv_100``, ... by
  millions of parameters with one CSV per schedule. The linear warmup of 2160 updates is not in the files; `lr` is the
  rate of the update that follows the measured state.
* lr-scheduling (github.com/fabian-sp/lr-scheduling, arXiv:2501.18965): a JSON file per run, or the tables ``runs.csv``
  and ``curves.csv.gz`` made from them. Every rate is rebuilt from the run's settings and held against the logged ones
  (see `riverval.curve_scheduling`). A cooldown's log starts where it was resumed, so its losses cover only that part.
  `loss` is the running validation loss; `final_loss` was measured after the run on more data.
* datasets of riverval, which store every rate.
* a CSV, TSV or JSONL file with the columns step, lr, loss, or others that are named (see `riverval.curve_tables`, and
  `riverval.curves.rates_from_log` for what is filled in).

A file that is no curve is refused. A folder is a collection: what cannot be read there is left out, with the reason.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from . import store
from .curve_scheduling import logged_run, lr_scheduling_rates, tabled_runs
from .curve_tables import ENDINGS, TableOptions, header_of, kind_of, looks_like_log, read_table, stem_of, unreadable
from .curves import Curve, LeftOut, Source
from .errors import InputError, StoreError

__all__ = ["MULTI_POWER_WARMUP", "Collection", "lr_scheduling_rates", "read_collection", "read_curves"]

MULTI_POWER_WARMUP = 2160
"""Updates of the warmup that the logs of the multi-power law leave out."""

_SIZE_FOLDER = re.compile(r"csv_(\d+)")
_TOLD = 3  # reasons in one message
_KINDS = tuple(ending[1:] for ending in ENDINGS)


@dataclass(frozen=True)
class Collection:
    """What lies at a path.

    Attributes:
        curves: with distinct names: equal configurations are numbered, those that were left out among them.
        left_out: runs that could not be read, each with its reason.
    """

    curves: Sequence[Curve]
    left_out: Sequence[LeftOut] = ()


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
        path: a CSV, TSV, JSONL, JSON or netCDF file, the folder of a run, or a folder with any of the forms below it.
        warmup: updates of the linear warmup that a plain table leaves out.
        peak_lr: the rate that this warmup led to, where it is not that of the first row.
        repair: let `riverval.curves.tidy_rows` repair tables; what was done is in ``facts["notes"]``. (The logs of
            lr-scheduling are always repaired, as restarts have left duplicates in them.)
        columns: what plain tables call the columns step, lr and loss, e.g. ``{"loss": "val/loss"}``.

    Returns:
        Curves with distinct names: equal configurations are numbered.

    Warns:
        RuntimeWarning: a run in a folder cannot be read and is left out; `read_collection` returns these instead.

    Raises:
        InputError: nothing is there, the file or every run in the folder cannot be read (columns are missing, the curve
            does not say all that a law needs), or there is no plain table for `warmup`, `peak_lr` or `columns`.
    """
    found = read_collection(path, warmup=warmup, peak_lr=peak_lr, repair=repair, columns=columns)
    for run in found.left_out:
        warnings.warn(str(run), RuntimeWarning, stacklevel=2)
    return list(found.curves)


def read_collection(
    path: str | Path,
    *,
    warmup: int | None = None,
    peak_lr: float | None = None,
    repair: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Collection:
    """As `read_curves`, with what was left out as values rather than as warnings.

    Raises:
        InputError: as `read_curves`.
    """
    path = Path(path)
    options = TableOptions(warmup=warmup, peak_lr=peak_lr, repair=repair, columns=columns)
    try:
        there = path.exists()
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    if not there:
        raise InputError(f"{path} does not exist; give a file of curves or a folder of them")
    found: list[Curve | LeftOut]
    if path.is_file():
        source = _source_of(path, options)
        if source is None:
            raise InputError(_no_curve(path))
        found = [source.read()]
    else:
        found = [source.try_to_read() for source in _below(path, options)]
    if not found:
        raise InputError(
            f"no curves in {path}; it should hold tables (CSV, TSV, JSONL) with the columns "
            f"{', '.join(options.names.values())}, logs of the public collections (csv_25/, ... or data/*.json), or "
            f"runs of riverval{_passed_over(path)}"
        )
    given = [name for name in ("warmup", "peak_lr", "columns") if getattr(options, name) is not None]
    if given and not any(run.facts.get("format") in _KINDS for run in found):
        raise InputError(f"{path} holds no plain table, so {' and '.join(given)} would do nothing; leave it out")
    found = _with_distinct_names(found)
    curves = [run for run in found if isinstance(run, Curve)]
    left_out = [run for run in found if isinstance(run, LeftOut)]
    if not curves:
        told = "; ".join(f"{run.name}: {run.reason}" for run in left_out[:_TOLD])
        more = f"; and {len(left_out) - _TOLD} more" if len(left_out) > _TOLD else ""
        raise InputError(f"no curve in {path} can be read: {told}{more}")
    return Collection(curves, left_out)


def _no_curve(path: Path) -> str:
    if path.name.lower().endswith(".json"):
        return (
            f"{path} is no log of lr-scheduling, which has config, history and summary; write rows of other logs, such "
            f"as a list of them inside, to a CSV or JSONL file with step, lr and loss"
        )
    return f"{path} is no file of curves; they are {', '.join(ENDINGS)} (or these with .gz), .json or .nc"


def _passed_over(folder: Path) -> str:
    """Up to three tables that are no logs as they stand, with their columns: often only a name differs."""
    tables = [path for path in sorted(folder.rglob("*")) if path.is_file() and kind_of(path)]
    seen = [t for t in tables if not any(above.name.startswith(".") for above in t.relative_to(folder).parents)]
    told = "; ".join(
        f"{path.relative_to(folder)} has {', '.join(header_of(path)) or 'nothing'}" for path in seen[:_TOLD]
    )
    return f" ({told}: name the columns with --column-step, --column-lr and --column-loss)" if told else ""


# --- what lies where -------------------------------------------------------------------------------------------------
def _source_of(path: Path, options: TableOptions) -> Source | None:
    """What a file holds; None where that is no curve.

    Raises:
        InputError: it is not what its ending says.
    """
    name = path.name.lower()
    if kind_of(path):
        return _multi_power(path, options) if _in_multi_power(path) else _plain(path, options)
    if name.endswith(".json"):
        return logged_run(path)
    return _dataset(path) if name.endswith(".nc") else None


def _below(folder: Path, options: TableOptions, above: frozenset[Path] = frozenset()) -> Iterator[Source]:
    """Every run in a folder; those that already fail to be found are among them, to say so when they are read.

    A link to one of the folders above would lead to the same runs once more, so it is not followed.
    """
    try:
        real = folder.resolve()
        if real in above:
            return
        if store.holds_run(folder):
            yield _dataset(store.resolve(folder))
            return
        tables = [folder / "runs.csv", *(folder / name for name in ("curves.csv.gz", "curves.csv"))]
        if tables[0].exists() and any(table.exists() for table in tables[1:]):
            yield from tabled_runs(tables[0], next(table for table in tables[1:] if table.exists()))
            return
        inside = sorted(folder.iterdir(), key=lambda p: p.name)
    except (InputError, StoreError, OSError) as error:
        yield _failing(folder, error)
        return
    for path in inside:
        found: Iterable[Source | None]
        try:
            if path.is_dir():
                found = () if path.name.startswith(".") else _below(path, options, above | {real})
            else:
                found = (_source_of(path, options) if _holds_curves(path, options) else None,)
        except (InputError, OSError) as error:
            found = (_failing(path, error),)
        yield from filter(None, found)


def _holds_curves(path: Path, options: TableOptions) -> bool:
    """Whether a file met on the way belongs to the curves; in the folders of a collection every table does."""
    if not path.is_file():
        return False
    return not kind_of(path) or _in_multi_power(path) or looks_like_log(path, options.names)


def _in_multi_power(path: Path) -> bool:
    return _SIZE_FOLDER.fullmatch(path.absolute().parent.name) is not None  # it may be the current folder


def _failing(path: Path, error: Exception) -> Source:
    def read() -> Curve:
        raise InputError(unreadable(path, error) if isinstance(error, OSError) else str(error)) from error

    kind = kind_of(path)
    return Source(stem_of(path), str(path), read, {"format": kind} if kind else {})


def _with_distinct_names(runs: Sequence[Curve | LeftOut]) -> list[Curve | LeftOut]:
    """Repeated runs of one configuration become ``name``, ``name #2``, ..."""
    seen: Counter[str] = Counter()
    out = []
    for run in runs:
        seen[run.name] += 1
        number = seen[run.name]
        out.append(run if number == 1 else replace(run, name=f"{run.name} #{number}"))
    return out


# --- tables ----------------------------------------------------------------------------------------------------------
def _plain(path: Path, options: TableOptions) -> Source:
    return Source(stem_of(path), str(path), partial(read_table, path, options), {"format": kind_of(path)})


def _multi_power(path: Path, options: TableOptions) -> Source:
    group, schedule = path.absolute().parent.name, stem_of(path)
    size = f"{group.removeprefix('csv_')}M"
    name = f"{size}/{schedule}"
    facts = {"format": "multi-power-law", "group": group, "size": size, "schedule": schedule}

    def read() -> Curve:
        curve = read_table(path, TableOptions(warmup=MULTI_POWER_WARMUP, repair=options.repair))
        return replace(curve, name=name, facts={**curve.facts, **facts, "measured_from": int(curve.steps[0])})

    return Source(name, str(path), read, facts)


# --- riverval's own --------------------------------------------------------------------------------------------------
def _dataset(path: Path) -> Source:
    name = path.parent.name if path.name in (store.RUN_FILE, store.PARTIAL_FILE) else path.stem
    return Source(name, str(path), partial(_read_dataset, path, name), {"format": "riverval"})


def _read_dataset(path: Path, name: str) -> Curve:
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
    facts = {
        "format": "riverval", "group": str(ds["source"].item()), "peak_lr": float(lr.max()), "updates": int(lr.size),
        "title": str(ds.attrs["title"]), "status": str(ds.attrs["status"]), "notes": notes,
    }  # fmt: skip
    return Curve(name, lr, steps[after].astype(np.int64), measured.values[after], facts=facts)
