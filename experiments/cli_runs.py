"""What is done with runs that exist, ``riverval real resume | branch | probe | list``, and how every run closes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

from .. import store
from .._format import number
from ..cli_options import parse_numbers
from ..console import complain, progress, say, show_table
from ..errors import InputError, StoreError
from ..shapes import SHAPES
from .branches import cooldown_branches, last_stable_state, state_of
from .config import CONFIG_FILE, RunConfig, read_config
from .presets import read_sets

__all__ = ["branch", "close", "list_runs", "probe", "progress", "resume", "training"]

_RUN = typer.Argument(help="The folder of a run.", show_default=False)


def _option(text: str, *flags: str) -> Any:
    return typer.Option(*flags, help=text, show_default=False)


def resume(run: Annotated[Path, _RUN]) -> None:
    """Go on with a run that was interrupted or killed, from its newest whole checkpoint: the same bits as in one go.

    A run that was trained to its end only repeats the measurements that are missing.

    riverval real resume runs/cnn-wsd
    """
    config = read_config(run)
    with training() as began:
        from .run import resume as go_on

        with progress(config.plan.total, "update") as watch:
            ds = go_on(run, watch, tell=say)
    close({run: ds}, began)


def branch(
    run: Annotated[Path, _RUN],
    at: Annotated[
        str | None,
        _option("State to leave the run at: an update, or a part of it like 60%; its last stable.", "--from"),
    ] = None,
    cooldown: Annotated[
        str | None, _option("Cooldown as a fraction of the whole branched run; several make several branches.")
    ] = None,
    shape: Annotated[
        str, _option(f"Decay shape, or several: {', '.join(SHAPES)}; linear if not given.", "--shape", "--decay-shape")
    ] = "linear",
    floor: Annotated[float | None, _option("Rate at the end of the decay, as a fraction of that at its start.")] = None,
    exponent: Annotated[float | None, _option("Exponent of the shape power.")] = None,
    name: Annotated[
        str | None, _option("Name of the new run's folder, or the start of several; run, state and cooldown.")
    ] = None,
    out: Annotated[Path | None, _option("Folder of the new runs; beside the old one if not given.")] = None,
    overwrite: Annotated[bool, _option("Replace runs of the same name.", "--overwrite")] = False,
) -> None:
    """Cool down anew from a state of a run: its prefix is not trained again, its records are the new run's too.

    Where the state itself was not kept, the run is repeated from the nearest one before it. Examples:

    riverval real branch runs/cnn-wsd --from 60% --cooldown 0.2

    riverval real branch runs/cnn-wsd --cooldown 0.1,0.2,0.4 --shape linear,1-sqrt
    """
    config = read_config(run)
    state = last_stable_state(config.plan) if at is None else state_of(at, config.plan)
    lengths = (config.architecture.cooldown,) if cooldown is None else parse_numbers("--cooldown", cooldown)
    shapes = [part.strip() for part in shape.split(",")]
    planned = cooldown_branches(config.plan, state, lengths, shapes, floor=floor, exponent=exponent)
    folder = run if run.name else run.resolve()  # "." has neither name nor parent
    start = name or f"{folder.name}-from-{state}"
    names = [start if name and len(planned) == 1 else f"{start}-{b.label}" for b in planned]
    with training() as began:
        from .run import branch as go_off

        done: dict[Path, xr.Dataset] = {}
        for k, (one, called) in enumerate(zip(planned, names, strict=True), 1):
            into = store.new_run(out or folder.parent, called, default="", source="real", overwrite=overwrite)
            say(f"branch {k} of {len(planned)}: from state {state}, {one.schedule.describe()}, writing to {into}")
            try:
                with progress(one.schedule.total, "update") as watch:
                    # Where the run did not keep the state, the first branch makes it and what the others look at.
                    to_come = [later.schedule for later in planned[k:]]
                    done[into] = go_off(
                        run, state, one.schedule, into, watch, tell=say, beside=[*done], keep_for=to_come
                    )
            finally:
                store.discard_if_empty(into)
            if done[into].attrs["status"] == "interrupted":
                break  # Ctrl-C is meant for all of them
    if len(done) > 1:
        _draw_fan(done, (out or folder.parent) / f"{start}.png")
    close(done, began)


def _draw_fan(runs: Mapping[Path, xr.Dataset], path: Path) -> None:
    """One picture of all branches, where they leave a stable phase."""
    from ..plots import write
    from ..plots_branches import fan

    try:
        say(f"wrote {write(fan([(folder.name, ds) for folder, ds in runs.items()]), path)}")
    except InputError as error:
        say(f"no picture of the fan: {error}")


def probe(
    run: Annotated[Path, _RUN],
    settings: Annotated[
        list[str] | None, _option("Measurement setting as KEY=VALUE, e.g. hessian_examples=2048; repeatable.", "--set")
    ] = None,
    name: Annotated[
        str | None, _option("Name of a new folder for the result; the run's own dataset if not given.")
    ] = None,
    overwrite: Annotated[bool, _option("Replace a folder of the same name.", "--overwrite")] = False,
) -> None:
    """Measure a run again from its snapshots, with other settings and without training.

    riverval real probe runs/cnn-wsd --set hessian_points=9 --name cnn-wsd-fine
    """
    given = read_sets(settings)
    if given.schedule:
        raise InputError("the schedule of a trained run is past changing; branch off it with: riverval real branch")
    read_config(run)
    into = None
    if name is not None:
        parent = run.parent if run.name else run.resolve().parent  # "." has neither name nor parent
        into = store.new_run(parent, name, default="", source="real", overwrite=overwrite)
    with training() as began:
        from .run import reprobe

        try:
            ds = reprobe(run, given.values, into, tell=say)
        finally:
            if into is not None:
                store.discard_if_empty(into)
    close({into or run: ds}, began)


def list_runs(out: Annotated[Path, _option("Folder of all runs; runs if not given.")] = Path("runs")) -> None:
    """List the real runs in a folder: how each ended and its last losses."""
    folders = sorted(f for f in out.iterdir() if f.is_dir()) if out.is_dir() else []
    rows = [row for row in map(_row, folders) if row]
    if not rows:
        say(f"no real runs in {out}; start one with: riverval real run --arch cnn --out {out}")
        return
    header = ("run", "status", "what", "data", "seed", "updates", "schedule", "training loss", "held-out loss")
    show_table(str(out), header, rows)


def _row(folder: Path) -> tuple[str, ...] | None:
    """What is known of a run; None where the folder holds no real run."""
    try:
        if not store.holds_run(folder):
            return _unrecorded_row(folder)
        ds = store.load(folder)
        if ds["source"].item() != "real" or "train_loss" not in ds:
            return None
        c = RunConfig.from_dict(json.loads(ds.attrs["config"]))
        return _described(folder, ds.attrs["status"], f"{ds.sizes.get('step', 0)} of ", c, _losses(ds))
    except (StoreError, InputError, KeyError, ValueError) as error:
        return (folder.name, "cannot be read", str(error), "", "", "", "", "", "")


def _unrecorded_row(folder: Path) -> tuple[str, ...] | None:
    """A run that was killed before its records were first written: its config, and perhaps checkpoints, are there."""
    if not (folder / CONFIG_FILE).exists():
        return None
    return _described(folder, "no records", "", read_config(folder), ("", ""))


def _described(folder: Path, status: str, done: str, c: RunConfig, losses: tuple[str, str]) -> tuple[str, ...]:
    what = " ".join(filter(None, (c.arch, c.size)))
    updates = f"{done}{c.plan.total}"
    return (folder.name, status, what, Path(c.data).name, str(c.seed), updates, c.plan.describe(), *losses)


def _losses(ds: xr.Dataset) -> tuple[str, str]:
    """The last training and held-out loss; empty where there is none."""

    def last(name: str) -> str:
        return number(float(ds[name].to_numpy().ravel()[-1]), 4) if name in ds and ds[name].size else ""

    return last("final_train_loss"), last("val_loss")


# --- around training -------------------------------------------------------------------------------------------------
@contextmanager
def training() -> Iterator[float]:
    """Around everything that needs torch; gives the time at which it began. Ctrl-C that leaves nothing is told."""
    # Threads that spin while they wait cost a factor of ten where a core is shared. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield time.monotonic()
    except KeyboardInterrupt:
        complain("interrupted before the first update; nothing was recorded")
        raise typer.Exit(130) from None


def close(runs: Mapping[Path, xr.Dataset], began: float) -> None:
    """Print the results of runs that were just made and draw them; exit with 1 or 130 if one ended early."""
    from ..plots_real import write_run
    from .summary import summary_rows

    if len(runs) > 1:
        rows = [
            (folder.name, ds.attrs["status"], str(ds.sizes.get("step", 0)), *_losses(ds)) for folder, ds in runs.items()
        ]
        show_table("", ("run", "status", "updates", "training loss", "held-out loss"), rows)
    for folder, ds in runs.items():
        if len(runs) == 1:
            show_table(ds.attrs["title"], ("quantity", "measured", "null or theory"), summary_rows(ds))
        for note in filter(None, ds.attrs.get("notes", "").splitlines()):
            say(f"note: {folder.name + ': ' if len(runs) > 1 else ''}{note}")
        say(f"wrote {folder / store.RUN_FILE}")
        if ds.sizes.get("step"):
            for picture in write_run(ds, folder):
                say(f"wrote {picture}")
        for line in timing_lines(json.loads(ds.attrs.get("timing", "{}"))):
            say(line)
    if len(runs) > 1:
        say(f"compare them with: riverval compare {' '.join(map(str, runs))}")
    say(f"took {time.monotonic() - began:.0f} s")
    for folder, ds in runs.items():
        _exit_code(folder, ds)


def timing_lines(timing: Mapping[str, Any]) -> list[str]:
    """Where the time of a run went, as its attribute `timing` has it; the probes also as a share of it all."""
    spent = {k.removesuffix("_seconds"): v for k, v in timing.items() if isinstance(v, float)}
    probes: Mapping[str, float] = timing.get("probe_seconds", {})
    spent |= {"probes": sum(probes.values())} if probes else {}
    if not spent:
        return []
    whole = sum(spent.values())
    line = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
    if not probes:
        return [f"time: {line}"]
    slowest = sorted(probes.items(), key=lambda item: -item[1])
    share = f" ({100 * spent['probes'] / whole:.0f}% of the run)" if whole else ""
    return [f"time: {line}{share}", "probes: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest)]


def _exit_code(folder: Path, ds: xr.Dataset) -> None:
    """Exit with 1 or 130 after a run that ended early."""
    from .run import INTERRUPTED

    if ds.attrs["status"] == "diverged":
        at = int(ds["diverged_at"])
        complain(f"the loss stopped being finite at state {at}; use a smaller --lr or a longer --warmup")
        raise typer.Exit(1)
    if ds.attrs["status"] == "interrupted" or INTERRUPTED in ds.attrs.get("notes", ""):
        complain(f"interrupted; what was recorded is kept, go on with: riverval real resume {folder}")
        raise typer.Exit(130)
