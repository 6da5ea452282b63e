"""The command `riverval toy`: parses, calls, prints."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

from .. import store
from .._checks import check_int, pick
from .._format import with_error
from ..cli_options import parse_numbers, parse_pairs, takes_schedule
from ..console import complain, progress, say, show_table
from ..errors import InputError
from ..schedules import make_schedule
from ._loss import Loss
from .assumptions import check_assumptions
from .cli_bigram import EPILOG as BIGRAM_EPILOG
from .cli_bigram import bigram_command
from .cli_check import EPILOG as CHECK_EPILOG
from .cli_check import check_command
from .cli_keep import keep
from .cli_study import EPILOG as STUDY_EPILOG
from .cli_study import study_command
from .losses import LOSSES, StraightRiver, make_loss
from .noise import NOISES, Noise, StateDependent, make_noise
from .optimizers import OPTIMIZERS, Average, EMAAverage, TailAverage, make_optimizer
from .setting import STATIONARY, Setting
from .simulate import check_size, run_settings
from .summary import Row, summarise
from .symbolic import SymbolicLoss

DEFAULT_STEPS = 4000
DEFAULT_SLOPE, DEFAULT_HILLS = 0.04, "0.5,1,2,4,8"
PICTURE = "toy.png"

_CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(no_args_is_help=True, context_settings=_CONTEXT, rich_markup_mode="rich", add_completion=False)


def _option(panel: str, help_text: str) -> Any:
    return typer.Option(help=help_text, rich_help_panel=panel, show_default=False)


@app.callback()
def toy() -> None:
    """Simulate valleys and bigram languages, check the theory, draw its pictures.

    Example: riverval toy simulate --lr 0.1 --decay wsd-s
    """


# The shape of the valley and its noise are chosen so that by default, in the stable phase, the hill loss hides a
# progress along the river of about the same size, and each cooldown uncovers it.
@app.command(
    "simulate",
    epilog="Examples:  riverval toy simulate --lr 0.1 --decay wsd-s  |  riverval toy simulate --loss bent --optimizer "
    "adam --lr 0.02  |  riverval toy simulate --loss-expr '-c*x + h/2*(y - x**2)**2' --param c=0.1 --param h=2  |  "
    "bigger, some minutes: riverval toy simulate --replicates 8192 --steps 1000000",
)
@takes_schedule("wsd")
def simulate_command(
    *,
    decay: str,
    options: dict[str, Any],
    lr: Annotated[float, typer.Option(help="Peak learning rate; SGD is stable below 2/curvature.")] = 0.1,
    steps: Annotated[
        int | None, typer.Option(help=f"Updates of the run; {DEFAULT_STEPS} unless --budgets sets it.")
    ] = None,
    loss: Annotated[
        str, _option("Loss", f"A valley by name: {', '.join(n for n in LOSSES if n != SymbolicLoss.name)}.")
    ] = "straight",
    slope: Annotated[
        float | None, _option("Loss", "Straight river: fall of the loss per unit of river; 0.04 if not given.")
    ] = None,
    curvature: Annotated[
        str | None,
        _option(
            "Loss", f"Straight river: curvature of each hill direction, with commas; {DEFAULT_HILLS} if not given."
        ),
    ] = None,
    loss_expr: Annotated[
        str | None, _option("Loss", "One's own loss, e.g. '-c*x + h/2*y**2', instead of --loss.")
    ] = None,
    coordinates: Annotated[
        str | None, _option("Loss", "Coordinates of --loss-expr, river coordinates first; x,y if not given.")
    ] = None,
    river_dim: Annotated[
        int | None, _option("Loss", "Number of river coordinates of --loss-expr; 1 if not given.")
    ] = None,
    valley_floor: Annotated[
        list[str] | None, _option("Loss", "Valley floor of --loss-expr, e.g. 'y=sin(x)'; else found numerically.")
    ] = None,
    param: Annotated[
        list[str] | None, _option("Loss", "NAME=VALUE: a parameter of --loss or --loss-expr; may be repeated.")
    ] = None,
    start: Annotated[
        str | None,
        _option(
            "Loss",
            f"State 0: the value of all hill coordinates, or of every coordinate, with commas, or '{STATIONARY}'; "
            "0.25 for the straight river, else the loss's own.",
        ),
    ] = None,
    sigma: Annotated[float | None, _option("Noise", "Standard deviation per coordinate; 1 if not given.")] = None,
    noise: Annotated[str, _option("Noise", f"Model of the gradient noise: {', '.join(NOISES)}.")] = "isotropic",
    noise_param: Annotated[
        list[str] | None, _option("Noise", "NAME=VALUE of the noise, e.g. freedom=3; may be repeated.")
    ] = None,
    optimizer: Annotated[str, _option("Optimizer", f"Optimizer: {', '.join(OPTIMIZERS)}.")] = "sgd",
    optimizer_param: Annotated[
        list[str] | None, _option("Optimizer", "NAME=VALUE of the optimizer, e.g. beta=0.9; may be repeated.")
    ] = None,
    average: Annotated[
        str | None, _option("Optimizer", "Also average the iterates: tail:200 (the last 200 updates) or ema:0.99.")
    ] = None,
    replicates: Annotated[int, typer.Option(help="Independent repetitions; sets the standard errors.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same bits.", min=0)] = 0,
    every: Annotated[
        int | None, typer.Option(help="Record every so many updates; about 400 states if not given.")
    ] = None,
    quantiles: Annotated[
        str | None, typer.Option(help="Record mean and these quantiles, e.g. 0.05,0.5,0.95, not each replicate.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of long runs, with the same result; all cores if not given.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder; made up if not given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of a run of that name.")] = False,
) -> None:
    """Run an optimizer with gradient noise on an analytic valley, many times over, beside the exact solution if known.

    Writes a dataset and a picture into a new run folder, and prints simulated means with their standard errors, beside
    the exact values where there are any: before and after each cooldown, and at the end.
    """
    if steps is None and "budgets" not in options:
        steps = DEFAULT_STEPS
    state_0 = _start(start)
    own = {"--coordinates": coordinates, "--river-dim": river_dim, "--valley-floor": valley_floor}
    valley = _loss(loss, loss_expr, slope, curvature, parse_pairs("--param", param), own, state_0)
    if state_0 is None and isinstance(valley, StraightRiver):
        state_0 = 0.25
    setting = Setting(
        loss=valley,
        schedule=make_schedule(decay, peak_lr=lr, steps=steps, **options),
        noise=_noise(noise, sigma, parse_pairs("--noise-param", noise_param)),
        optimizer=make_optimizer(optimizer, **parse_pairs("--optimizer-param", optimizer_param)),
        average=_average(average),
        quantiles=None if quantiles is None else parse_numbers("--quantiles", quantiles),
        start=state_0,
        every=every,
    )
    check_size([setting], replicates)
    if threads is not None:
        check_int("threads", threads, low=1)
    folder = store.new_run(out, name, default=f"toy-{decay}", source="toy", overwrite=overwrite)
    runs = f"{_count(replicates, 'replicate')} of {_count(setting.total, 'update')}"
    try:
        say(f"{_described(setting)}; {runs}, seed {seed}; writing to {folder}")
        for warning in (_no_river(setting), setting.instability() and f"{setting.instability()}: a long run diverges"):
            if warning:
                complain(warning)
        ds = _simulate(setting, replicates, seed, threads)
        keep(ds, folder, PICTURE, overwrite=overwrite)
    finally:
        store.discard_if_empty(folder)  # of a run that failed before it wrote anything
    _report(ds)
    if ds.attrs["status"] == "interrupted":
        made = ds.sizes["step"]
        complain(f"interrupted after {made} of {_count(setting.total, 'update')}; what was recorded until then is kept")
        raise typer.Exit(130)
    if ds.attrs["status"] == "complete":
        say("smaller errors, a longer run: --replicates 8192 --steps 1000000 (some minutes)")


# --- from words to a setting -----------------------------------------------------------------------------------------
def _loss(
    name: str,
    expression: str | None,
    slope: float | None,
    curvature: str | None,
    parameters: dict[str, Any],
    own: dict[str, Any],
    start: float | str | tuple[float, ...] | None,
) -> Loss:
    """The valley that the options describe; options that it does not take are refused."""
    if expression is not None:
        if name != StraightRiver.name:
            raise InputError(f"give either --loss or --loss-expr, got --loss {name} and --loss-expr {expression!r}")
        _refuse({"--slope": slope, "--curvature": curvature}, "--loss-expr")
        floors = {k: str(v) for k, v in parse_pairs("--valley-floor", own["--valley-floor"]).items()}
        names = "x,y" if own["--coordinates"] is None else own["--coordinates"]
        return SymbolicLoss(
            expression,
            coordinates=[word.strip() for word in names.split(",")],
            parameters=parameters,
            river_dim=1 if own["--river-dim"] is None else own["--river-dim"],
            floor=floors or None,
            start=start if isinstance(start, tuple) else None,
        )
    for flag, value in own.items():
        if value is not None:
            raise InputError(f"{flag} has no effect beside --loss {name}; it belongs to --loss-expr")
    if name == StraightRiver.name and not parameters:
        hills = parse_numbers("--curvature", DEFAULT_HILLS if curvature is None else curvature)
        return StraightRiver(DEFAULT_SLOPE if slope is None else slope, hills)
    _refuse({"--slope": slope, "--curvature": curvature}, f"--loss {name} with --param")
    takes = inspect.signature(pick("loss", name, LOSSES)).parameters
    for option, value in parameters.items():  # one number, where there may be several
        if isinstance(value, int | float) and option in takes and takes[option].annotation.startswith("tuple"):
            parameters[option] = (value,)
    return make_loss(name, **parameters)


def _refuse(given: dict[str, Any], beside: str) -> None:
    for flag, value in given.items():
        if value is not None:
            raise InputError(f"{flag} has no effect beside {beside}; use --param NAME=VALUE for its numbers")


def _no_river(setting: Setting) -> str:
    """What is wrong with the valley at the floor below the start, or '' where there is a river."""
    loss, start = setting.loss, setting.start_moments()[0]
    if isinstance(loss, StraightRiver):
        return ""
    try:
        with np.errstate(all="ignore"):
            found = check_assumptions(loss, loss.floor(start)[None])
    except (InputError, np.linalg.LinAlgError):
        place = ", ".join(f"{n} = {x:.4g}" for n, x in zip(loss.coordinates, start.tolist(), strict=True))
        return f"no river below the start {place}: its floor point, or a derivative of the loss there, is not finite"
    if found.ok["eigengap"].all():
        return ""
    place = ", ".join(f"{n} = {x:.4g}" for n, x in zip(loss.coordinates, found.points[0].tolist(), strict=True))
    across, along = found.gamma[0], found.flatness[0]
    return (
        f"no river at {place}, the floor below the start: no eigengap, for the curvature across it ({across:.3g}) is "
        f"not {found.limits.eigengap:g} times that along it ({along:.3g}); river and hill components mean little"
    )


def _noise(name: str, sigma: float | None, options: dict[str, Any]) -> Noise:
    """The model of the noise; --sigma goes to a model that has one."""
    takes = {f.name for f in fields(pick("noise", name, NOISES))}
    if name == StateDependent.name:  # every other name is a parameter of the expression
        numbers = {k: v for k, v in options.items() if k != "expression"}
        options = {k: v for k, v in options.items() if k == "expression"} | {"parameters": tuple(numbers.items())}
        if "expression" not in options:
            raise InputError("the noise 'state-dependent' needs --noise-param 'expression=s*sqrt(1 + y**2)'")
        options["expression"] = str(options["expression"])  # which may be a number
    if "sigma" in takes:
        if sigma is not None and "sigma" in options:
            raise InputError("give either --sigma or --noise-param sigma=..., got both")
        options.setdefault("sigma", 1.0 if sigma is None else sigma)
    elif sigma is not None:
        raise InputError(f"the noise {name!r} takes no --sigma; it takes: {', '.join(sorted(takes)) or 'no options'}")
    if name == "anisotropic" and "sigmas" not in options:
        raise InputError("the noise 'anisotropic' needs --noise-param sigmas=..., one number for each coordinate")
    return make_noise(name, **options)


def _average(text: str | None) -> Average | None:
    if text is None:
        return None
    kind, _, size = text.partition(":")
    try:
        number: float = {"tail": int, "ema": float}[kind](size)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"--average must be tail:UPDATES or ema:BETA, e.g. tail:200 or ema:0.99, got {text!r}"
        ) from error
    return TailAverage(int(number)) if kind == "tail" else EMAAverage(number)


def _start(text: str | None) -> float | str | tuple[float, ...] | None:
    """A number, or several, where it is; the setting checks the rest."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def _described(setting: Setting) -> str:
    """One line that says what is run."""
    loss = setting.loss
    if isinstance(loss, StraightRiver):
        told = f"straight river, slope {loss.slope:g}, hills {','.join(f'{h:g}' for h in loss.curvatures)}"
    elif isinstance(loss, SymbolicLoss):
        told = f"loss {loss.formula().expression}"
    else:
        told = f"loss {loss.name}"
    noise = {k: v for k, v in setting.model.to_dict().items() if k != "name"}
    words = " ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in noise.items())
    plan = f"{setting.schedule.describe()}, peak rate {setting.schedule.peak_lr:g}"
    return f"{told}; {setting.model.name} noise{f' ({words})' if words else ''}; {setting.optimizer.name}; {plan}"


# --- running and telling ---------------------------------------------------------------------------------------------
def _simulate(setting: Setting, replicates: int, seed: int, threads: int | None) -> xr.Dataset:
    with progress(setting.total, "toy") as update:
        return run_settings([setting], replicates, np.random.default_rng(seed), threads=threads, progress=update)[0]


def _count(number: int, noun: str) -> str:
    """'1 update', '2 updates'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _report(ds: xr.Dataset) -> None:
    """The table, and how many replicates diverged."""
    found = summarise(ds)
    header: tuple[str, ...] = ("quantity", "simulated mean ± s.e.", "z", "theory ± exact s.e.")
    rows: list[tuple[str, ...]] = [
        (f"{r.quantity}, state {r.state}", with_error(r.mean, r.error), _z(r), _exact(r)) for r in found
    ]
    if all(math.isnan(r.exact) for r in found):  # no theory for this setting
        header, rows = header[:2], [row[:2] for row in rows]
    show_table("", header, rows)
    lost = int(ds["diverged"].sum())
    if lost:
        at = ds["diverged_at"].values
        first = int(at[at >= 0].min())
        of = _count(ds.sizes["replicate"], "replicate")
        say(f"{lost} of {of} diverged, the first after {_count(first, 'update')}")


def _exact(row: Row) -> str:
    return "-" if math.isnan(row.exact) else with_error(row.exact, row.exact_error)


def _z(row: Row) -> str:
    if math.isnan(row.z):
        return "-"
    return f"{row.z:+.1f}" if abs(row.z) < 1e6 else f"{row.z:+.1e}"


app.command("bigram", epilog=BIGRAM_EPILOG)(bigram_command)
app.command("study", epilog=STUDY_EPILOG)(study_command)
app.command("check", epilog=CHECK_EPILOG)(check_command)
