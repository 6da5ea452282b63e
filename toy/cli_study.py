"""The command `riverval toy study`: parses, calls, prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import xarray as xr

from .. import store
from .._checks import pick
from .._format import number, with_error
from ..console import complain, progress, say, show_table
from ..errors import InputError
from .studies import STUDIES
from .study import SCALE, Number, Study, StudySetting

EPILOG = (
    "Examples:  riverval toy study  |  riverval toy study valley  |  riverval toy study shapes --quick  |  "
    "riverval toy study schedules --replicates 16000 --seed 7"
)


def _complete(incomplete: str) -> list[str]:
    return [name for name in STUDIES if name.startswith(incomplete)]


def study_command(
    study: Annotated[
        str | None, typer.Argument(help="Name of the study; without one they are listed.", autocompletion=_complete)
    ] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="The small size, of seconds.")] = False,
    replicates: Annotated[
        int | None, typer.Option(help="Independent repetitions of each run; the study's own number if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same bits.", min=0)] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder; made up if not given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of a run of that name.")] = False,
) -> None:
    """Make a picture of the theory, with its dataset: simulation beside closed forms and exact recursions.

    Writes both into a new run folder, and prints the numbers that matter with their standard errors.
    """
    if study is None:
        _refuse_without_name(quick=quick, replicates=replicates, name=name, overwrite=overwrite)
        rows = [(s.name, s.summary, s.source) for s in STUDIES.values()]
        show_table("studies", ("name", "what is seen", "source"), rows)
        say("run one: riverval toy study valley")
        return
    found = pick("study", study, STUDIES)
    setting = found.make(quick=quick, **({} if replicates is None else {"replicates": replicates}))
    folder = store.new_run(out, name, default=f"study-{study}", source="toy", overwrite=overwrite)
    size = "quick" if quick else "full"
    say(f"study {study}: {found.summary}")
    say(f"{size} size, replicates {setting.replicates}, seed {seed}; writing to {folder}")
    try:
        ds = _run(found, setting, seed)
        _keep(ds, found, folder, overwrite)
    finally:
        store.discard_if_empty(folder)
    show_table("", ("quantity", "simulated ± s.e.", "z", "theory"), [_row(n) for n in found.numbers(ds)])


def _run(study: Study, setting: StudySetting, seed: int) -> xr.Dataset:
    try:
        with progress(SCALE, f"study {study.name}") as update:
            return study.run(setting, np.random.default_rng(seed), update)
    except KeyboardInterrupt:
        complain("interrupted; half of a study says nothing, so nothing was written")
        raise typer.Exit(130) from None


def _refuse_without_name(**given: object) -> None:
    """Options of a run beside a list of studies would be ignored."""
    for option, value in given.items():
        if value:
            raise InputError(f"--{option} is for a run; name a study to run: {', '.join(STUDIES)}")


def _keep(ds: xr.Dataset, study: Study, folder: Path, overwrite: bool) -> None:
    """Dataset first: it cannot be made again as the picture can."""
    say(f"wrote {store.save(ds, folder / store.RUN_FILE, overwrite=overwrite)}")
    from .. import plots, plots_toy

    say(f"wrote {plots.write(plots_toy.study(ds), folder / f'{study.name}.png')}")


def _row(n: Number) -> tuple[str, str, str, str]:
    z = "-" if math.isnan(n.z) else f"{n.z:+.1f}"
    expected = "-" if math.isnan(n.expected) else number(n.expected)
    return n.quantity, "-" if math.isnan(n.found) else with_error(n.found, n.error), z, expected
