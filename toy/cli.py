"""The command `riverval toy`: parses, calls, prints."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

from .. import store
from .._format import with_error
from ..cli_options import parse_numbers, takes_schedule
from ..console import complain, progress, say, show_table
from ..schedules import make_schedule
from .losses import StraightRiver
from .setting import STATIONARY, Setting
from .simulate import UnstableWarning, check_size, simulate
from .summary import Row, summarise

DEFAULT_STEPS = 4000
PICTURE = "toy.png"

_CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(no_args_is_help=True, context_settings=_CONTEXT, rich_markup_mode="rich", add_completion=False)


@app.callback()
def toy() -> None:
    """Simulate analytic river valleys beside their exact solution.

    Example: riverval toy simulate --lr 0.1 --decay wsd-s
    """


# The shape of the valley and its noise are chosen so that by default, in the stable phase, the hill loss hides a
# progress along the river of about the same size, and each cooldown uncovers it.
@app.command(
    "simulate",
    epilog="Examples:  riverval toy simulate --lr 0.1 --decay wsd-s  |  riverval toy simulate --decay cosine "
    "--sigma 2 --seed 7  |  bigger, a quarter of an hour: riverval toy simulate --replicates 8192 --steps 1000000",
)
@takes_schedule("wsd")
def simulate_command(
    *,
    decay: str,
    options: dict[str, Any],
    lr: Annotated[float, typer.Option(help="Peak learning rate; stable below 2/curvature.")] = 0.1,
    steps: Annotated[
        int | None, typer.Option(help=f"Updates of the run; {DEFAULT_STEPS} unless --budgets sets it.")
    ] = None,
    slope: Annotated[float, typer.Option(help="Fall of the loss per unit of river.")] = 0.04,
    curvature: Annotated[str, typer.Option(help="Curvature of each hill direction, with commas.")] = "0.5,1,2,4,8",
    sigma: Annotated[float, typer.Option(help="Standard deviation of the gradient noise per coordinate.")] = 1.0,
    replicates: Annotated[int, typer.Option(help="Independent repetitions; sets the standard errors.")] = 256,
    start: Annotated[
        str, typer.Option(help=f"Initial value of the hill coordinates, or '{STATIONARY}' for noise at its balance.")
    ] = "0.25",
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same bits.", min=0)] = 0,
    every: Annotated[
        int | None, typer.Option(help="Record every so many updates; about 400 states if not given.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder; made up if not given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of a run of that name.")] = False,
) -> None:
    """Run SGD with noise in a straight river valley, many times over, and hold it against the exact solution.

    Writes a dataset and a picture into a new run folder, and prints simulated means with their standard errors beside
    the exact values: before and after each cooldown, and at the end.
    """
    if steps is None and "budgets" not in options:
        steps = DEFAULT_STEPS
    schedule = make_schedule(decay, peak_lr=lr, steps=steps, **options)
    valley = StraightRiver(slope, parse_numbers("--curvature", curvature))
    setting = Setting(loss=valley, schedule=schedule, sigma=sigma, start=_start(start), every=every)
    check_size(setting, replicates)
    folder = store.new_run(out, name, default=f"toy-{decay}", source="toy", overwrite=overwrite)
    say(
        f"straight river, slope {slope:g}, hills {curvature}, noise {sigma:g}; {schedule.describe()}, "
        f"peak rate {lr:g}; {_count(replicates, 'replicate')} of {_count(schedule.total, 'update')}, seed {seed}; "
        f"writing to {folder}"
    )
    if setting.instability():
        complain(f"{setting.instability()}: a long run diverges")
    try:
        ds = _simulate(setting, replicates, seed)
        _keep(ds, folder, overwrite)
    finally:
        store.discard_if_empty(folder)  # of a run that failed before it wrote anything
    _report(ds)
    if ds.attrs["status"] == "interrupted":
        made = ds.sizes["step"]
        complain(
            f"interrupted after {made} of {_count(schedule.total, 'update')}; what was recorded until then is kept"
        )
        raise typer.Exit(130)
    if ds.attrs["status"] == "complete":
        say("smaller errors, a longer run: --replicates 8192 --steps 1000000 (a quarter of an hour)")


def _simulate(setting: Setting, replicates: int, seed: int) -> xr.Dataset:
    with warnings.catch_warnings(), progress(setting.total, "toy") as update:
        warnings.simplefilter("ignore", UnstableWarning)  # said already
        return simulate(
            setting.loss,
            setting.schedule,
            sigma=setting.sigma,
            replicates=replicates,
            rng=np.random.default_rng(seed),
            start=setting.start,
            every=setting.every,
            progress=update,
        )


def _count(number: int, noun: str) -> str:
    """'1 update', '2 updates'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _start(text: str) -> float | str:
    """A number where it is one; the setting checks the rest."""
    try:
        return float(text)
    except ValueError:
        return text


def _keep(ds: xr.Dataset, folder: Path, overwrite: bool) -> None:
    """Dataset first: it cannot be made again as the picture can."""
    say(f"wrote {store.save(ds, folder / store.RUN_FILE, overwrite=overwrite)}")
    if ds.sizes["eval_step"] < 2:  # interrupted at once: nothing to draw, nor may an older picture stand beside it
        (folder / PICTURE).unlink(missing_ok=True)
        return
    from .. import plots

    say(f"wrote {plots.write(plots.toy_run(ds), folder / PICTURE)}")


def _report(ds: xr.Dataset) -> None:
    """The table, and how many replicates diverged."""
    rows = [
        (f"{r.quantity}, state {r.state}", with_error(r.mean, r.error), _z(r), with_error(r.exact, r.exact_error))
        for r in summarise(ds)
    ]
    show_table("", ("quantity", "simulated mean ± s.e.", "z", "theory ± exact s.e."), rows)
    lost = int(ds["diverged"].sum())
    if lost:
        at = ds["diverged_at"].values
        first = int(at[at >= 0].min())
        of = _count(ds.sizes["replicate"], "replicate")
        say(f"{lost} of {of} diverged, the first after {_count(first, 'update')}")


def _z(row: Row) -> str:
    if math.isnan(row.z):
        return "-"
    return f"{row.z:+.1f}" if abs(row.z) < 1e6 else f"{row.z:+.1e}"
