"""The command `riverval toy bigram`: parses, calls, prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

from .. import store
from .._checks import pick
from .._format import number, with_error
from ..cli_options import takes_schedule
from ..console import complain, progress, say, show_table
from ..errors import InputError
from ..schedules import Schedule, make_schedule
from .bigram import LANGUAGES, BigramLanguage, make_language
from .bigram_gains import ContextGain, Estimate, advantage_ranks, context_gains, stable_ranks
from .bigram_model import MODELS, BigramModel, Factorised, LogitTable
from .bigram_run import NOISES, train, train_with_continuation
from .bigram_theory import stable_limit
from .cli_keep import keep

DEFAULT_STEPS = 10_000
PICTURE = "bigram.png"
EPILOG = (
    "Examples:  riverval toy bigram  |  riverval toy bigram --language ladder --shape inverse --floor 0.1 "
    "--steps 5000  |  riverval toy bigram --zipf 1 --batch 4 --lr 0.4"
)


# Rate and length are chosen so that by default the hills have settled before the cooldown, and the cooldown is long
# enough for most of them to shrink.
@takes_schedule("wsd")
def bigram_command(
    *,
    decay: str,
    options: dict[str, Any],
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.1,
    steps: Annotated[
        int | None, typer.Option(help=f"Updates of the run; {DEFAULT_STEPS} unless --budgets sets it.")
    ] = None,
    language: Annotated[str, typer.Option(help=f"Contexts and their next tokens: {', '.join(LANGUAGES)}.")] = "mixed",
    tokens: Annotated[int, typer.Option(help="Number of tokens.")] = 8,
    zipf: Annotated[
        float, typer.Option(help="Exponent of the context frequencies, the most certain first; 0: all equal.")
    ] = 0.0,
    model: Annotated[str, typer.Option(help=f"Model: {', '.join(MODELS)}.")] = LogitTable.name,
    width: Annotated[int | None, typer.Option(help="Width of the embedding, of the model factorised alone.")] = None,
    noise: Annotated[str, typer.Option(help=f"Noise of the gradient: {', '.join(NOISES)}.")] = "sampled",
    batch: Annotated[int, typer.Option(help="Pairs of context and token in each batch.")] = 1,
    replicates: Annotated[int, typer.Option(help="Independent repetitions; sets the standard errors.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of the batches; the same seed gives the same bits.", min=0)] = 0,
    every: Annotated[
        int | None, typer.Option(help="Record every so many updates; about 400 states if not given.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder; made up if not given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of a run of that name.")] = False,
) -> None:
    """Train a bigram language whose contexts go from certain to uncertain, with a cooldown and without.

    Writes a dataset and a picture into a new run folder, and prints for each context its loss over the entropy beside
    the theory, what it gained in the stable phase and in the cooldown, and what the cooldown is worth against none.
    """
    if steps is None and "budgets" not in options:
        steps = DEFAULT_STEPS
    schedule = make_schedule(decay, peak_lr=lr, steps=steps, **options)
    learnt = make_language(language, tokens=tokens, zipf=zipf)
    trained = _model(model, learnt, width)
    settings: dict[str, Any] = {"noise": noise, "batch": batch, "replicates": replicates, "every": every}
    settings["rng"] = np.random.default_rng(seed)
    folder = store.new_run(out, name, default=f"bigram-{decay}", source="toy", overwrite=overwrite)
    try:
        limit = stable_limit(learnt, batch)
        say(
            f"language {language}, {learnt.size} contexts, {tokens} tokens; {trained.label}; {schedule.describe()}, "
            f"peak rate {lr:g}; batch {batch}, noise {noise}; replicates {replicates}, updates {schedule.total}, "
            f"seed {seed}; writing to {folder}"
        )
        if trained.name == LogitTable.name and lr >= limit:
            complain(f"the peak rate {lr:g} does not settle: hills of this language do so below {limit:g}")
        ds = _train(trained, schedule, settings)
        keep(ds, folder, PICTURE, overwrite=overwrite)
    finally:
        store.discard_if_empty(folder)  # of a run that failed before it wrote anything
    _report(ds)
    if ds.attrs["status"] == "interrupted":
        complain(f"interrupted after {ds.sizes['step']} of {schedule.total} updates; what was recorded is kept")
        raise typer.Exit(130)


def _model(name: str, language: BigramLanguage, width: int | None) -> BigramModel:
    cls = pick("model", name, MODELS)
    if cls is not Factorised:
        if width is not None:
            raise InputError(f"the model {name!r} has no --width; it is of --model {Factorised.name}")
        return cls(language)
    return Factorised(language) if width is None else Factorised(language, width=width)


def _train(model: BigramModel, schedule: Schedule, settings: dict[str, Any]) -> xr.Dataset:
    trained = train_with_continuation if schedule.windows("cooldown") else train
    with progress(schedule.total, "bigram") as update:
        return trained(model, schedule, progress=update, **settings)


def _report(ds: xr.Dataset) -> None:
    """Two tables, excess and gains by context, and the rank correlations."""
    gains = context_gains(ds)
    cooled = not math.isnan(gains[0].after.mean)
    show_table("excess loss per occurrence (nat), mean ± s.e., and as expected", *_excess_rows(gains, cooled))
    if cooled:
        show_table("gain per occurrence (nat), mean ± s.e.", *_gain_rows(gains))
    by_gini, by_entropy = stable_ranks(gains)
    if not math.isnan(by_gini):
        say(
            f"rank correlation of the excess in the second half of the stable phase, uncertain contexts: "
            f"{by_gini:.3f} with Gini impurity, {by_entropy:.3f} with entropy"
        )
    by_gini, by_entropy = advantage_ranks(gains)
    if not math.isnan(by_gini):
        say(
            f"rank correlation of the gain against no cooldown, all contexts: "
            f"{by_gini:.3f} with Gini impurity, {by_entropy:.3f} with entropy"
        )
    lost = int(ds["diverged"].sum())
    if lost:
        say(f"{lost} of {ds.sizes['replicate']} replicates diverged and are left out")


Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _excess_rows(gains: list[ContextGain], cooled: bool) -> Table:
    header: tuple[str, ...] = ("context", "frequency", "Gini", "entropy")
    header += ("before cooldown", "expected", "after", "expected") if cooled else ("at the end", "expected")
    rows: list[tuple[str, ...]] = []
    for g in gains:
        row: tuple[str, ...] = (g.context, number(g.frequency), f"{g.gini:.3f}", f"{g.entropy:.3f}")
        row += (_told(g.before), _or_dash(g.before_expected))
        rows.append((*row, _told(g.after), _or_dash(g.after_expected)) if cooled else row)
    return header, rows


def _gain_rows(gains: list[ContextGain]) -> Table:
    header = ("context", "Gini", "second half of stable", "cooldown", "cooldown against none")
    return header, [
        (g.context, f"{g.gini:.3f}", _told(g.stable_gain), _told(g.cooldown_gain), _told(g.advantage)) for g in gains
    ]


def _told(estimate: Estimate) -> str:
    return _or_dash(estimate.mean) if math.isnan(estimate.error) else with_error(estimate.mean, estimate.error)


def _or_dash(value: float) -> str:
    return "-" if math.isnan(value) else number(value, 3)
