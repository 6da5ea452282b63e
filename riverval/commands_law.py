"""The commands of loss-curve laws: fit, predict, plan, score. They parse, call and print; no logic lives here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from . import cli_options
from ._checks import check_options, check_steps
from ._format import number, with_error
from .console import console, say, show_table
from .curve_files import Collection, read_collection
from .curves import Curve, LeftOut
from .errors import InputError
from .law_files import CURVE_FILES, PLAN_FILES, check_ending, write_plan, write_prediction
from .law_fitting import WEIGHTING
from .law_plan import PLAN_SHAPES, Candidate, Plan, beyond_fit, fitted_warmup, plan_cooldown
from .law_scores import Score, score_laws, summaries
from .law_tables import check_out, tables_of, write_scores
from .law_trials import PROTOCOLS
from .laws import DEFAULT_LAW, LAWS, FittedLaw, fit_law, load_law, make_law, save_law
from .schedules import Schedule, make_schedule

_CONTEXT = {"help_option_names": ["-h", "--help"]}

law_app = typer.Typer(no_args_is_help=True, context_settings=_CONTEXT, rich_markup_mode="rich", add_completion=False)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
LawFile = Annotated[Path, typer.Option("--law", help="A fitted law, as riverval law fit --out writes it.")]
Plot = Annotated[Path | None, typer.Option(help="Write a picture to this file (png, svg, pdf).")]

_SHOWN = 12  # candidates of a plan, and about as many states of a prediction


@law_app.callback()
def law() -> None:
    """Loss-curve laws: fit one, predict the loss of a schedule, plan a cooldown, and score all of them.

    Example: riverval law fit run.csv --out law.json
    """


@law_app.command("fit", epilog="Example: riverval law fit logs/ --curves-named 'wsd*,constant' --out law.json")
def fit(
    curves: Annotated[Path, typer.Argument(help="A file (CSV, TSV, JSONL with step, lr, loss; .nc), or a folder.")],
    law: Annotated[str, typer.Option(help=f"One of {', '.join(LAWS)}.")] = DEFAULT_LAW,
    curves_named: Annotated[
        str | None, typer.Option(help="Fit only these, separated by commas; * and ? stand for any letters.")
    ] = None,
    weighting: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {told}" for name, told in WEIGHTING.items()) + ".")
    ] = "points",
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the law, NAME=VALUE (or NAME=none); may be given several times.")
    ] = None,
    skip: Annotated[
        float, typer.Option(help="Leave out the points before this share of the largest cumulative rate.")
    ] = 0.05,
    warmup: Annotated[int | None, typer.Option(help="Updates of a linear warmup that the tables leave out.")] = None,
    peak_lr: Annotated[float | None, typer.Option(help="The rate after that warmup, if not the first row's.")] = None,
    column_step: Annotated[str | None, typer.Option(help="Column of the updates made, if not step.")] = None,
    column_lr: Annotated[str | None, typer.Option(help="Column of the rate, if not lr.")] = None,
    column_loss: Annotated[str | None, typer.Option(help="Column of the loss to fit, if not loss.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Sort rows, drop duplicates and losses that are not finite, and say so.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the law here (.json), and a picture (.png) beside it.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit a law to the loss curves of one model: its parameters with their errors, and what it leaves over.

    A curve in a folder that cannot be read is left out, with a line that says why, unless --curves-named asks for it.
    """
    if out is not None:
        check_ending(out, (".json",), "a fitted law")
        _refuse_existing([out, out.with_suffix(".png")], overwrite)
    named = {"step": column_step, "lr": column_lr, "loss": column_loss}
    columns = {name: given for name, given in named.items() if given is not None}
    found = read_collection(curves, warmup=warmup, peak_lr=peak_lr, repair=repair, columns=columns or None)
    _tell_of_left_out(found.left_out)
    chosen = _named(found, curves_named)
    given = cli_options.parse_pairs("--option", option)
    options: dict[str, Any] = {name: None if value == "none" else value for name, value in given.items()}
    check_options(f"the law {law!r}", options, make_law(law).options())
    fitted = fit_law(law, chosen, weighting=weighting, skip=skip, **options)
    for curve in chosen:
        if curve.notes:
            _tell(f"{curve.name}: {'; '.join(curve.notes)}")
    _show_fit(fitted, chosen)
    if out is not None:
        from . import plots, plots_laws

        say(f"wrote {save_law(fitted, out, overwrite=overwrite)}")
        say(f"wrote {plots.write(plots_laws.fit(fitted, chosen), out.with_suffix('.png'))}")


def _named(found: Collection, names: str | None) -> list[Curve]:
    patterns = _names(names)
    if patterns is None:
        return list(found.curves)
    for pattern in patterns:
        if any(fnmatchcase(c.name, pattern) for c in found.curves):
            continue
        for run in found.left_out:
            if fnmatchcase(run.name, pattern):
                raise InputError(f"{run.name} is asked for and cannot be read: {run.reason}")
        raise InputError(f"no curve is named {pattern!r}; there are: {', '.join(c.name for c in found.curves)}")
    return [c for c in found.curves if any(fnmatchcase(c.name, pattern) for pattern in patterns)]


def _show_fit(fitted: FittedLaw, curves: list[Curve]) -> None:
    say(f"{fitted.name}: L = {fitted.law.formula}")
    units = fitted.law.units
    rows = [(name, with_error(*fitted.parameters[name]), units.get(name, "1")) for name in fitted.values]
    show_table("", ("parameter", "value ± standard error", "units"), rows)
    left = [(c, fitted.law.evaluate(c.lr, c.steps, fitted.values) - c.loss) for c in fitted.points_of(curves)]
    show_table(
        "predicted minus measured loss",
        ("curve", "points", "mean size", "largest", "mean", "last"),
        [(c.name, str(e.size), f"{np.abs(e).mean():.4f}", f"{np.abs(e).max():.4f}", f"{e.mean():+.4f}", f"{e[-1]:+.4f}")
         for c, e in left],
    )  # fmt: skip
    say(f"residuals: {100 * fitted.scale:.3g} % of the loss (root mean square)")
    say(f"points that refits left out: missed by {100 * fitted.discrepancy:.3g} %")
    sizes = sorted({str(c.facts["size"]) for c in curves if c.facts.get("size")})
    mixed = [f"the curves are of several models ({', '.join(sizes)}); a law is that of one"] if len(sizes) > 1 else []
    _say_notes([*fitted.notes, *mixed])


@law_app.command("predict", epilog="Example: riverval law predict --law law.json --steps 20000 --cooldown 0.3")
@cli_options.takes_schedule("wsd")
def predict(
    *,
    decay: str,
    options: dict[str, Any],
    law: LawFile,
    lr: Annotated[float | None, typer.Option(help="Peak rate; the fitted one, if there is only one.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates of the run; --budgets may set it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the predicted curve (.csv), or a dataset (.nc).")] = None,
    plot: Plot = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict the loss curve of a schedule, with its 95 % interval. Without --warmup, that of the fitted curves."""
    _check_outputs(out, CURVE_FILES, "a predicted curve", plot, overwrite)
    fitted = load_law(law)
    if steps is None and "budgets" not in options:
        raise InputError("how long is the run? give --steps (or --budgets)")
    if steps is not None:
        check_steps("steps", steps, low=1, what="updates of the run")
    if "warmup" not in options:
        options["warmup"] = fitted_warmup(fitted, max(options["budgets"]) if steps is None else steps)
    schedule = make_schedule(decay, peak_lr=_only_rate(fitted, lr), steps=steps, **options)
    predicted = fitted.predict(schedule)
    say(f"{fitted.name}, {schedule.describe()}: {schedule.total} updates, peak {schedule.peak_lr:g}")
    _show_prediction(fitted, schedule)
    _say_notes([*fitted.notes, *beyond_fit(fitted, [schedule.peak_lr], schedule.total)])
    if out is not None:
        say(f"wrote {write_prediction(out, fitted, schedule, predicted, overwrite=overwrite)}")
    if plot is not None:
        from . import plots, plots_laws

        say(f"wrote {plots.write(plots_laws.prediction(fitted, schedule, predicted), plot)}")


def _only_rate(fitted: FittedLaw, given: float | None) -> float:
    rates = fitted.seen.get("peak_lrs", ())
    if given is None and len(rates) != 1:
        told = f"the law was fitted at {', '.join(f'{rate:g}' for rate in rates)}" if rates else "the law knows none"
        raise InputError(f"give the peak rate with --lr; {told}")
    return rates[0] if given is None else given


def _show_prediction(fitted: FittedLaw, schedule: Schedule) -> None:
    total = schedule.total
    shown = {*(np.arange(1, _SHOWN + 1) * total // _SHOWN).tolist(), *map(int, schedule.edges)} - {0}
    p = fitted.predict(schedule, sorted(shown))
    rates = schedule.values()
    rows = [
        (str(n), number(rates[n - 1]), f"{loss:.4f}", _interval(low, high))
        for n, loss, low, high in zip(p.steps, p.loss, p.low, p.high, strict=True)
    ]
    show_table("", ("updates", "last lr", "loss", "95 % of one measurement"), rows)


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


@law_app.command("plan", epilog="Example: riverval law plan --law law.json --steps 20000 --plot plan.png")
def plan(
    *,
    law: LawFile,
    steps: Annotated[int, typer.Option(help="Updates of the whole run.")],
    shapes: Annotated[str, typer.Option(help="Decay shapes, separated by commas.")] = ",".join(PLAN_SHAPES),
    fractions: Annotated[
        str | None, typer.Option(help="Lengths of the cooldown as fractions of the run, e.g. 0.1,0.2,0.4.")
    ] = None,
    lr: Annotated[str | None, typer.Option(help="Base rates, e.g. 0.0005,0.001; else the fitted ones.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Updates; that of the fitted curves if not given.")] = None,
    floor: Annotated[
        float | None, typer.Option(help="Final rate as a fraction of the peak; else each shape's.")
    ] = None,
    after: Annotated[
        int, typer.Option("--from", help="Updates made so far at the stable rate: no cooldown starts before.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Write all candidates to this file (.csv).")] = None,
    plot: Plot = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the cooldown, and where the law can tell the base rate, with the lowest final loss for a budget."""
    _check_outputs(out, PLAN_FILES, "a plan", plot, overwrite)
    fitted = load_law(law)
    found = plan_cooldown(
        fitted,
        steps,
        shapes=_names(shapes) or (),
        fractions=None if fractions is None else cli_options.parse_numbers("--fractions", fractions),
        peak_lrs=None if lr is None else cli_options.parse_numbers("--lr", lr),
        warmup=warmup,
        after=after,
        floor=floor,
    )
    _show_plan(found)
    _say_notes([*fitted.notes, *found.notes])
    if out is not None:
        say(f"wrote {write_plan(out, found, overwrite=overwrite)}")
    if plot is not None:
        from . import plots, plots_laws

        say(f"wrote {plots.write(plots_laws.plan(found), plot)}")


def _show_plan(found: Plan) -> None:
    best, all_of_them = found.best, _plans(len(found.candidates))
    say(
        f"{found.law}: {found.steps} updates, warmup {found.warmup}; the best of {all_of_them} is base rate "
        f"{best.peak_lr:g}, {best.decay} cooldown of {best.fraction:.3g} of the run, from update {best.start} on"
    )
    say(f"final loss {best.loss:.4f}" + (f", 95 % {_interval(found.low, found.high)}" if found.low > 0 else ""))
    header = ("base lr", "shape", "cooldown", "from update", "final loss", "minus the best", "told apart")
    show_table("the best of each shape and rate", header, [_row(c) for c in found.best_of_each[:_SHOWN]])
    if math.isnan(best.half):
        return
    alike = found.alike
    say(f"not told from the best (0 in the 95 % interval of the difference): {len(alike)} of {len(found.candidates)}")
    for shape in dict.fromkeys(c.decay for c in alike):
        of = [c for c in alike if c.decay == shape]
        shares, rates = [c.fraction for c in of], [c.peak_lr for c in of]
        say(f"  {shape}: cooldown {_range(shares)}, base rate {_range(rates)}")
    near = sum(c.difference <= found.missed for c in found.candidates)
    say(
        f"the law missed what it was not fitted to by {found.missed:.4f}; within that of the best, where the order "
        f"rests on its form: {_plans(near)}"
    )


def _row(c: Candidate) -> tuple[str, ...]:
    apart = f"{c.difference:+.4f}" + ("" if math.isnan(c.half) else f" ± {c.half:.4f}")
    told = "best" if not c.difference else "-" if math.isnan(c.half) else "no" if c.alike else "yes"
    return f"{c.peak_lr:g}", c.decay, f"{c.fraction:.3g}", str(c.start), f"{c.loss:.4f}", apart, told


def _plans(count: int) -> str:
    return f"{count} plan{'s' * (count != 1)}"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _say_notes(notes: list[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def _check_outputs(out: Path | None, endings: tuple[str, ...], what: str, plot: Path | None, overwrite: bool) -> None:
    if out is not None:
        check_ending(out, endings, what)
    if plot is not None:
        from . import plots

        plots.picture_format(plot)
    _refuse_existing([path for path in (out, plot) if path is not None], overwrite)


def _refuse_existing(paths: list[Path], overwrite: bool) -> None:
    """Before any work: an output that would be refused at the end should not cost the work first."""
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; choose another path, or replace it with --overwrite")
        if not path.parent.is_dir():
            raise InputError(f"the folder {path.parent} does not exist; make it first")


@law_app.command("score", epilog="Example: riverval law score --curves MultiPowerLaw --protocols M --out scores.md")
def score(
    curves: Annotated[
        list[Path],
        typer.Option(help="Folder with a copy of MultiPowerLaw or lr-scheduling below it; may be given several times."),
    ],
    laws: Annotated[str | None, typer.Option(help="Names separated by commas; all if not given.")] = None,
    protocols: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(PROTOCOLS)}, separated by commas; all if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write every score (.csv) or the tables of the summaries (.md) to this file.")
    ] = None,
    plot: Plot = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit every law to some published runs and hold its predictions against the others.

    Protocols: M fits a cosine, a constant and a two-stage curve of one size; A the stable run and one cooldown of one
    rate; B no decay at all; C another rate or size. What a law chooses, it chooses on the curves of its fit. A run that
    cannot be read is left out, with a line that says why; it is an error if a protocol fits it.
    """
    if out is not None:
        check_out(out, overwrite=overwrite)
    if plot is not None:
        from . import plots, plots_laws

        plots.picture_format(plot)
        _refuse_existing([plot], overwrite)
    parts = [read_collection(folder) for folder in curves]
    found, left_out = [c for part in parts for c in part.curves], [run for part in parts for run in part.left_out]
    _tell_of(found)
    _tell_of_left_out(left_out)
    scores = score_laws(found, _names(laws), _names(protocols), left_out=left_out, tell=_tell)
    for protocol, meaning in PROTOCOLS.items():
        tables, notes = tables_of([s for s in scores if s.protocol == protocol])
        if tables:
            say(f"Protocol {protocol}: {meaning}")
        for table in tables:
            show_table(table.title, table.header, table.rows)
        for k, note in enumerate(notes, start=1):
            say(f"{k}. {note}")
    _say_offsets(scores)
    if out is not None:
        say(f"wrote {write_scores(out, scores, overwrite=overwrite)}")
    if plot is not None:
        figure = plots_laws.scores(scores)
        say(f"wrote {plots.write(figure, plot)}" if figure is not None else f"no law was scored, so there is no {plot}")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _tell(text: str) -> None:
    console(stderr=True).print(text, markup=False, soft_wrap=True)


def _tell_of(curves: list[Curve]) -> None:
    noted = [curve for curve in curves if curve.notes]
    _tell(f"read {len(curves)} curves, {len(noted)} of them with notes")
    for curve in noted:
        _tell(f"  {curve.name}: {'; '.join(curve.notes)}")


def _tell_of_left_out(runs: Sequence[LeftOut]) -> None:
    for run in runs:
        _tell(str(run))


def _say_offsets(scores: list[Score]) -> None:
    """How far the two training runs agree on the offset of the final loss, on which every predicted end rests."""
    spreads = [s.offset_spread for s in summaries(scores) if s.protocol == "A" and s.offset_spread >= 0]
    if spreads:
        say(
            f"final losses: the offset from the running loss differs between the two training runs by "
            f"{min(spreads):.4f} to {max(spreads):.4f}; the mean is used"
        )
