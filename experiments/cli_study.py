"""The command `riverval real study`: parses, calls, prints."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

from .. import store
from .._checks import check_int, pick
from .._format import counted, number, with_error
from ..console import complain, say, show_table
from ..errors import InputError, StoreError
from .architectures import ARCHITECTURES
from .presets import PRESETS, configure
from .study import NOT_OF_A_CELL, Bench, Cell, Plan, Setting, Study, cells_of
from .study_data import LEVEL, METRICS, dataset, described, verdict
from .study_list import STUDIES
from .study_run import announcement, planned, run_cells

EPILOG = (
    "Examples:  riverval real study  |  riverval real study wsd-vs-cosine --arch cnn --preset cpu  |  "
    "riverval real study shapes --arch lm --data corpus.txt --preset cpu --seeds 2 --jobs 2 --set study.fractions=0.2"
)
_PREFIX = "study."
_OF_TABLE = ("val_loss", "train_loss")


def _complete(incomplete: str) -> list[str]:
    return [name for name in STUDIES if name.startswith(incomplete)]


def study_command(
    name: Annotated[
        str | None, typer.Argument(help="Name of the study; without one they are listed.", autocompletion=_complete)
    ] = None,
    *,
    arch: Annotated[str, typer.Option(help=f"What to train: {', '.join(ARCHITECTURES)}.")] = "cnn",
    data: Annotated[str | None, typer.Option(help="Data, as of riverval real run.", show_default=False)] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"{', '.join(PRESETS)}, or a file.toml.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds; standard errors need two.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them; the others follow.")] = 0,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE of every run, e.g. lr=3e-3, or of the study, e.g. study.fractions=0.1,0.35.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    jobs: Annotated[
        int, typer.Option(help="Processes that train side by side, one thread each; 1: in this one.")
    ] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the result of other settings; cells that fit are kept.")
    ] = False,
) -> None:  # fmt: skip
    """Train what a study compares, over several seeds, and write study.nc with means and paired differences.

    What is done is kept: start the same command again to go on after an interruption, or with more seeds.
    """
    if name is None:
        show_table("studies", ("name", "question"), [(s.name, s.question) for s in STUDIES.values()])
        say("run one: riverval real study wsd-vs-cosine --arch cnn --preset cpu")
        return
    study = pick("study", name, STUDIES)
    check_int("jobs", jobs, low=1, what="processes")
    check_int("seeds", seeds, low=1, what="number of seeds")
    check_int("first-seed", first_seed, low=0)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as riverval real run
    own, rest = _split(study, sets or [])
    _refuse_own(rest, jobs)
    setting = study.make(**own)

    def configured(of: str, changes: typing.Mapping[str, Any]) -> Any:
        return configure(of, {"data": data, "seed": first_seed, **changes}, preset=preset, sets=rest)

    plans = _plans(study, Bench(arch, configured, planned), setting)
    threads = {"threads": 1} if jobs > 1 else {}
    cells = cells_of(plans, range(first_seed, first_seed + seeds), **threads)
    folder = out / f"study-{study.name}-{ARCHITECTURES[arch].data_kind if study.of_kind else arch}"
    _refuse_other(folder / store.STUDY_FILE, cells, overwrite)
    say(f"study {study.name}: {study.question}")
    for line in announcement(cells, folder):
        say(line)
    say(f"writing to {folder}")
    _run(study, setting, cells, folder, jobs)


def _run(study: Study, setting: Setting, cells: Sequence[Cell], folder: Path, jobs: int) -> None:
    try:
        failed = run_cells(cells, folder, jobs=jobs, tell=say)
    except KeyboardInterrupt:
        complain("interrupted; what was done is kept, the same command goes on from there")
        raise typer.Exit(130) from None
    ds = dataset(study, setting, cells, folder, failed)
    file = store.save(ds, folder / store.STUDY_FILE, overwrite=True)
    _show(study, ds)
    say(f"wrote {file}")
    from .. import plots, plots_real_studies

    say(f"wrote {plots.write(plots_real_studies.study(ds), folder / f'{study.name}.png')}")
    if failed:
        complain(f"{len(failed)} of {counted(len(cells), 'cell')} failed; the same command tries them again")
        raise typer.Exit(1)


def _split(study: Study, sets: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The numbers of the study, and the rest of --set."""
    kinds = typing.get_type_hints(study.setting)
    names = [f.name for f in dataclasses.fields(study.setting)]
    own: dict[str, Any] = {}
    rest = []
    for text in sets:
        key, _, value = text.partition("=")
        if not key.startswith(_PREFIX):
            rest.append(text)
            continue
        key = pick(f"number of study {study.name}", key.removeprefix(_PREFIX), dict(zip(names, names, strict=True)))
        many = typing.get_origin(kinds[key]) is tuple
        kind = typing.get_args(kinds[key])[0] if many else kinds[key]
        try:
            parts = [kind(part.strip()) for part in value.split(",")] if many else [kind(value)]
        except ValueError as error:
            told = "numbers" if many else "a number"
            raise InputError(f"--set {_PREFIX}{key} must be {told}, got {value!r}") from error
        own[key] = tuple(parts) if many else parts[0]
    return own, rest


def _refuse_own(sets: Sequence[str], jobs: int) -> None:
    """What a study sets itself would be overruled without a word."""
    keys = {text.partition("=")[0].strip() for text in sets}
    if "seed" in keys:
        raise InputError("a study runs several seeds; choose them with --seeds and --first-seed, not with --set seed")
    if "threads" in keys and jobs > 1:
        raise InputError(f"--jobs {jobs} gives each process one thread; leave --set threads out, or --jobs")


def _plans(study: Study, bench: Bench, setting: Setting) -> Sequence[Plan]:
    """The plans; an error about a number of the study, which the user need not have given, says where it is from."""
    try:
        return study.plans(bench, setting)
    except InputError as error:
        words = str(error).replace(",", " ").replace(";", " ").split()
        for name, values in dataclasses.asdict(setting).items():
            parts = [f"{v:g}" if isinstance(v, float) else str(v) for v in np.atleast_1d(values).tolist()]
            if set(parts) & set(words):
                told = f"study.{name} is {','.join(parts)}; other: --set study.{name}=..."
                raise InputError(f"{error} ({told})") from error
        raise


def _refuse_other(file: Path, cells: Sequence[Cell], overwrite: bool) -> None:
    """A result of other settings is not replaced by chance; one of fewer seeds may be."""
    if overwrite or not file.exists():
        return
    try:
        found = json.loads(store.load(file).attrs["config"])
    except StoreError:
        return
    if _bare(found) != _bare(described(cells)):
        raise InputError(f"{file} is of other settings; choose another --out, or replace it with --overwrite")


def _bare(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configuration of each plan without what does not make another cell; the order in a file is another one."""
    common, plans = described.get("common", {}), described.get("plans", {})
    return {name: {k: v for k, v in {**common, **own}.items() if k not in NOT_OF_A_CELL} for name, own in plans.items()}


# --- tables ----------------------------------------------------------------------------------------------------------
def _show(study: Study, ds: xr.Dataset) -> None:
    shown = [m for m in _OF_TABLE if m in ds["metric"]]
    header = ["plan", "updates"]
    for metric in shown:
        header += [METRICS[metric], "minus reference", "verdict"]
    show_table(ds.attrs["title"], header, [_row(ds, plan, shown) for plan in ds["plan"].values])
    rows = [(n.quantity, with_error(n.value, n.error), n.told) for n in study.numbers(ds)]
    if rows:
        show_table("", ("quantity", "value", "remarks"), rows)
    for note in filter(None, ds.attrs["notes"].splitlines()):
        say(f"note: {note}")
    level = f"{100 * (1 - LEVEL):.0f} %"
    if (seeds := ds.sizes["seed"]) > 1:
        say(f"± one standard error over {seeds} seeds; verdicts by the {level} t interval of paired differences")


def _row(ds: xr.Dataset, plan: str, metrics: Sequence[str]) -> tuple[str, ...]:
    at = ds.sel(plan=plan)
    row = [plan, number(int(at["plan_updates"]))]
    for metric in metrics:
        one = at.sel(metric=metric)
        row.append(with_error(float(one["outcome_mean"]), float(one["outcome_error"])))
        if at["plan_against"].item() == plan:
            row += ["-", "reference"]
        else:
            gap, error = float(one["outcome_gap"]), float(one["outcome_gap_error"])
            row.append("-" if math.isnan(gap) else with_error(gap, error))
            row.append(verdict(float(one["outcome_gap_low"]), float(one["outcome_gap_high"])))
    return tuple(row)
