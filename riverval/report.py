"""Datasets and figures -> one self-contained HTML page: pictures inside, no script, no network."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template

import xarray as xr
from matplotlib.figure import Figure

from . import (
    __version__,
    plots,
    plots_bigram,
    plots_branches,
    plots_instruments,
    plots_observer,
    plots_real,
    plots_real_studies,
    plots_toy,
)
from ._format import with_error
from .compare import Runs, Score, fans, scorecard
from .errors import InputError
from .schedules import schedule_from_dict
from .store import write_aside


def write_report(runs: Runs, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the comparison of labelled datasets to `path`, all or nothing.

    Raises:
        InputError: no runs, or the file exists and `overwrite` is False.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    if not runs:
        raise InputError("a report needs at least one dataset, got none")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another --out, or replace it with --overwrite")
    page = render(runs)
    return write_aside(path, lambda part: part.write_text(page, encoding="utf-8"))


def render(runs: Runs) -> str:
    """The page as text."""
    sections = "\n".join(_section(label, ds) for label, ds in runs)
    return _PAGE.substitute(
        title=html.escape(" · ".join(label for label, _ in runs)),
        comparison=_image(plots.comparison(runs), "loss of every run against the progress of its last cooldown"),
        overview=_overview(runs),
        training=_training(runs),
        scorecard=_scorecard(runs),
        sections=sections,
        version=__version__,
    )


def _training(runs: Runs) -> str:
    """Training runs over each other: the branches of each trunk, and the curves of all where there are others."""
    pictures = []
    found = fans(runs)
    for state, branches in found:
        names = ", ".join(label for label, _ in branches)
        told = (
            f"<p>These runs share a trunk, which the first of them leaves at state {state}: {html.escape(names)}.</p>"
        )
        pictures.append(told + _image(plots_branches.fan(branches), f"branches {names}"))
    trained = [run for run in runs if "train_loss" in run[1] and run[1].sizes["step"]]
    if len(trained) > max((len(branches) for _, branches in found), default=1):
        told = "<p>Several seeds of one run are thin lines, and their mean a thick one.</p>"
        pictures.append(told + _image(plots_branches.training_curves(trained), "losses of the training runs"))
    return f"<h2>Training</h2>{''.join(pictures)}" if pictures else ""


def _overview(runs: Runs) -> str:
    rows = []
    for label, ds in runs:
        plan = _schedule_text(ds)
        cells = (label, str(ds["source"].item()), ds.attrs["title"], plan, ds.attrs["status"], ds.attrs["seed"])
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>")
    return _table(("run", "source", "what", "schedule", "status", "seed"), rows)


def _schedule_text(ds: xr.Dataset) -> str:
    described = json.loads(ds.attrs["config"]).get("schedule")
    if not described:
        return "-"
    try:
        return schedule_from_dict(described).describe()
    except InputError:  # of another version of riverval: its own words are better than no page
        return f"{described.get('name')} (unknown here)"


def _scorecard(runs: Runs) -> str:
    rows = []
    for label, ds in runs:
        rows += [_score_row(label, score) for score in scorecard(ds)]
    if not rows:
        return "<p>None of these datasets has a diagnostic that can be held against a theory or a null.</p>"
    header = ("run", "diagnostic", "measured", "held against", "its value", "z", "verdict")
    return _table(header, rows)


def _score_row(label: str, score: Score) -> str:
    kind = {"agrees": "good", "above the null": "good", "disagrees": "bad"}.get(score.verdict, "open")
    cells = (
        f"<td>{html.escape(label)}</td><td>{html.escape(score.diagnostic)}</td>"
        f"<td class=n>{with_error(score.value, score.error)}</td>"
        f"<td>{score.kind}: {html.escape(score.reference)}</td>"
        f"<td class=n>{with_error(score.against, score.against_error)}</td>"
        f"<td class=n>{'-' if math.isnan(score.z) else f'{score.z:.1f}'}</td>"
        f"<td class={kind}>{score.verdict}</td>"
    )
    return f"<tr>{cells}</tr>"


def _section(label: str, ds: xr.Dataset) -> str:
    source = str(ds["source"].item())
    figures = run_figures(ds)
    picture = "".join(_image(figure, f"picture {k + 1} of {label}") for k, figure in enumerate(figures))
    attrs = {k: v for k, v in ds.attrs.items() if k not in ("title", "config", "versions")}
    facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v)) or '-'}</dd>" for k, v in attrs.items())
    blocks = "".join(
        f"<dt>{k}</dt><dd><pre>{html.escape(json.dumps(json.loads(ds.attrs[k]), indent=1))}</pre></dd>"
        for k in ("config", "versions")
    )
    return (
        f"<section><h2>{html.escape(label)} <small>{source}</small></h2>"
        f"<p>{html.escape(ds.attrs['title'])}</p>{picture}"
        f"<details><summary>Where it comes from</summary><dl>{facts}{blocks}</dl></details></section>"
    )


def run_figures(ds: xr.Dataset) -> list[Figure]:
    """The pictures of one dataset, by what it holds; none where there is no picture for it."""
    for name, draw in _INSTRUMENTS.items():
        if name in ds:
            return [draw(ds)]
    if "train_loss" in ds:
        further = plots_real.real_appendix(ds)
        return [plots_real.real_run(ds), *([] if further is None else [further])]
    if "study" in json.loads(ds.attrs.get("config", "{}")):
        return [plots_real_studies.study(ds) if "outcome" in ds else plots_toy.study(ds)]
    if "context_excess" in ds:
        return [plots_bigram.bigram_run(ds)]
    return [plots.toy_run(ds)] if "hill" in ds or "hill_quantile" in ds else []


# A variable that only one kind of dataset has -> its picture.
_INSTRUMENTS: dict[str, Callable[[xr.Dataset], Figure]] = {
    "run_seconds": plots_observer.observed,
    "line_loss": plots_instruments.line,
    "plane_loss": plots_instruments.plane,
    "section_loss": plots_instruments.section,
    "density": plots_instruments.density,
}


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=plots.DPI)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in header)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


_PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>riverval: $title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff }
body { max-width: 66rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }
small { color: #666; font-weight: normal }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .9rem; width: 100% }
th { text-align: left; border-bottom: 2px solid #999 }
td, th { padding: .3rem .6rem; vertical-align: top }
tr + tr td { border-top: 1px solid #e5e5e5 }
.n { font-variant-numeric: tabular-nums; white-space: nowrap }
.wide { overflow-x: auto }
.good { color: #00694d; font-weight: 600 }
.bad { color: #b3400a; font-weight: 600 }
.open { color: #666 }
pre { font-size: .8rem; overflow-x: auto; background: #f6f6f6; padding: .5rem }
dt { color: #666 }
dd { margin: 0 0 .4rem }
footer { color: #666; font-size: .85rem; margin-top: 3rem }
</style></head><body>
<h1>Theory, toy and real, side by side</h1>
$overview
<h2>One axis</h2>
<p>Each run is laid over the others at its last cooldown (shaded), its loss in units of that cooldown's gain: 1 is the
loss where the cooldown starts, 0 the loss where it ends.</p>
$comparison
$training
<h2>Scorecard</h2>
<p>Every diagnostic beside its theory or its null, with one standard error where one is known. A verdict needs 4
standard errors, fixed beforehand. <em>River alone</em> is what the cooldown would gain if the loss went on to fall, per
unit of summed learning rate, as in the second half of the stable phase. A single run has no error bar, so no verdict is
given on it.</p>
$scorecard
$sections
<footer>Made by riverval $version.</footer>
</body></html>
"""
)
