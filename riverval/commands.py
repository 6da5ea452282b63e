"""The commands of the core: schedule, show, compare, demo. They parse, call and print; no logic lives here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

from . import cli_options, store
from ._format import number, with_error
from .compare import scorecard
from .console import say, show_table
from .errors import InputError
from .schedules import PHASES, make_schedule

PICTURES = (".png", ".svg", ".pdf", ".html")
"""What may lie among runs and is none."""
_CONTEXT = {"help_option_names": ["-h", "--help"]}

schedule_app = typer.Typer(
    no_args_is_help=True, context_settings=_CONTEXT, rich_markup_mode="rich", add_completion=False
)
show_app = typer.Typer(context_settings=_CONTEXT, rich_markup_mode="rich", add_completion=False)
compare_app = typer.Typer(context_settings=_CONTEXT, rich_markup_mode="rich", add_completion=False)
demo_app = typer.Typer(context_settings=_CONTEXT, rich_markup_mode="rich", add_completion=False)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


@schedule_app.callback()
def schedule() -> None:
    """Print, plot and export learning-rate schedules.

    Example: riverval schedule show --decay wsd-s --steps 1000
    """


@schedule_app.command("show", epilog="Example: riverval schedule show --decay wsd-s --steps 1000 --plot wsd-s.png")
@cli_options.takes_schedule("wsd")
def schedule_show(
    *,
    decay: str,
    options: dict[str, Any],
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Updates of the run; 1000 unless --budgets sets it.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write step, lr and phase of every update to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture to this file (png, svg, pdf).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show a schedule: its phases, rates and area, and optionally a CSV file or a picture."""
    if steps is None and "budgets" not in options:
        steps = 1000
    plan = make_schedule(decay, peak_lr=lr, steps=steps, **options)
    _check_outputs(csv, plot, overwrite)
    say(f"{plan.describe()}: {plan.total} updates, peak {lr:g}")
    rates = plan.values()
    rows = []
    for segment, start in zip(plan.segments, plan.edges, strict=False):
        stop = int(start) + segment.steps
        part = rates[int(start) : stop]
        told = (f"{start}..{stop - 1}", number(part[0]), number(part[-1]), number(part.sum()), number(part.mean() / lr))
        rows.append((segment.phase.name.lower(), *told))
    rows.append(("whole run", f"0..{plan.total - 1}", number(rates[0]), number(rates[-1]), number(rates.sum()),
                 number(rates.mean() / lr)))  # fmt: skip
    show_table("", ("phase", "updates", "first lr", "last lr", "area S", "mean lr / peak"), rows)
    if csv:
        store.write_csv(csv, {"step": range(plan.total), "lr": rates, "phase": [PHASES[p] for p in plan.phases()]})
        say(f"wrote {csv}")
    if plot:
        from . import plots

        say(f"wrote {plots.write(plots.schedule(plan), plot)}")


@show_app.command(epilog="Example: riverval show runs/toy-wsd-s")
def show(path: Annotated[Path, typer.Argument(help="A dataset file, or the folder of a run.")]) -> None:
    """Summarise a dataset: what it is, what it holds, and every diagnostic beside its theory or null."""
    ds = store.load(path)
    say(f"{store.resolve(path)}: {ds.attrs['title']}")
    a = ds.attrs
    say(f"source {ds['source'].item()}, status {a['status']}, seed {a['seed']}, made {_made_text(a)}")
    if "measured_by" in a:
        say(f"measured again {_made_text(json.loads(a['measured_by']))}")
    for note in a.get("notes", "").splitlines():
        say(f"note: {note}")
    rows = [(str(n), ", ".join(map(str, v.dims)) or "-", _range_text(v), v.attrs["units"], v.attrs["long_name"])
            for n, v in ds.variables.items()]  # fmt: skip
    show_table("", ("variable", "dimensions", "values", "units", "meaning"), rows)
    _show_scores(ds)


def _made_text(of: Mapping[str, str]) -> str:
    commit = f"git {of['git_commit'][:12]}" if of["git_commit"] else "not from a git checkout"
    changed = " with uncommitted changes" if of["git_commit"] and of["git_dirty"] == "true" else ""
    code = f"riverval {of['riverval_version']}, {commit}{changed}"
    return f"{of['created']} by\n  {of['command'] or 'Python code'}  ({code})"


def _range_text(v: xr.Variable) -> str:
    if v.dtype.kind in "UOST":
        return ", ".join(map(str, v.values.ravel()[:4]))
    if not v.size or bool(v.isnull().all()):
        return "none"
    low, high = float(v.min()), float(v.max())
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _show_scores(ds: xr.Dataset) -> None:
    rows = [
        (s.diagnostic, with_error(s.value, s.error), s.verdict, "-" if math.isnan(s.z) else f"{s.z:.1f}",
         f"{s.reference}: {with_error(s.against, s.against_error)}")
        for s in scorecard(ds)
    ]  # fmt: skip
    if rows:
        show_table("", ("diagnostic", "measured", "verdict", "z", "theory or null"), rows)


@compare_app.command(epilog="Example: riverval compare runs/toy-wsd runs/cnn-wsd --out report.html")
def compare(
    paths: Annotated[list[Path], typer.Argument(help="Dataset files or folders of runs.")],
    out: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("report.html"),
    overwrite: Overwrite = False,
) -> None:
    """Put datasets of any source side by side on one self-contained HTML page."""
    from .report import write_report

    _refuse_existing(out, overwrite)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out names the page to write, which ends in .html, got {out}")
    runs = labelled(paths)
    say(f"wrote {write_report(runs, out, overwrite=overwrite)}")


def labelled(paths: list[Path]) -> list[tuple[str, xr.Dataset]]:
    """Load datasets and name each by its run folder or file, numbered where two would be the same.

    Folders without a run, and pictures, are passed over, so that ``runs/*`` will do; but not all of them can be.
    """
    runs: list[tuple[str, xr.Dataset]] = []
    found = [path for path in paths if (store.holds_run(path) if path.is_dir() else path.suffix not in PICTURES)]
    for path in paths:
        if path not in found and found:
            say(f"passed over {path}, which holds no {store.RUN_FILE}")
    for path in found or paths:
        ds = store.load(path)
        file = store.resolve(path).resolve()
        name = file.parent.name if file.name in (store.RUN_FILE, store.PARTIAL_FILE) else file.stem
        taken = sum(label == name or label.startswith(f"{name} #") for label, _ in runs)
        runs.append((f"{name} #{taken + 1}" if taken else name, ds))
    return runs


@demo_app.command(epilog="Example: riverval demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the page.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of all three runs.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a river valley, train a small CNN and a small language model under WSD, and compare the three.

    Takes a few minutes on two cores. Without the extra [bold]real[/bold] only the toy is run, and the command says so.
    """
    from .demo import run_demo

    page = run_demo(out, seed=seed, overwrite=overwrite)
    say(f"open {page} in a browser")


def _check_outputs(csv: Path | None, plot: Path | None, overwrite: bool) -> None:
    for path in filter(None, (csv, plot)):
        _refuse_existing(path, overwrite)
    if csv and plot and csv.resolve() == plot.resolve():
        raise InputError(f"--csv and --plot both name {csv}; give them different files")
    if plot:
        from . import plots

        plots.picture_format(plot)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    """Before any work: an output that would be refused at the end should not cost the work first."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another path, or replace it with --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first")
