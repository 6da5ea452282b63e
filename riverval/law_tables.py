"""Scores of loss-curve laws as tables: for the terminal, as a page in Markdown, and all of them as CSV."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from . import store
from .errors import InputError
from .law_scores import SHORT_COOLDOWNS, Score, summaries
from .law_trials import PROTOCOLS
from .laws import LAWS
from .provenance import provenance

__all__ = ["Table", "check_out", "page", "tables_of", "write_scores"]

# Ends of notes that say what the beginning means; the docs do.
_REMARKS = re.compile(r", at .*|: (these|the) curves .*| and has no standard error.*")

_PAGE_GROUPS = ("all", SHORT_COOLDOWNS)


@dataclass(frozen=True)
class Table:
    """Words under a header."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """The table in Markdown, its title in bold above it; columns of numbers are right-aligned."""
        numeric = [all(row[k][:1] in "0123456789-+*" for row in self.rows) for k in range(len(self.header))]
        rule = tuple("---:" if right else "---" for right in numeric)
        lines = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in (self.header, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines])


def _plain(cell: str) -> str:
    return cell.replace("|", "/").replace("\n", " ")


def _told(value: float, form: str = ".4f") -> str:
    if math.isnan(value):
        return "-"
    return format(value, form) if abs(value) < 10 else f"{value:.3g}"


def _short(note: str) -> list[str]:
    return [_REMARKS.sub("", part) for part in note.split("; ") if part]


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


# --- the terminal ----------------------------------------------------------------------------------------------------
def tables_of(scores: Sequence[Score]) -> tuple[list[Table], list[str]]:
    """The summaries among the scores, a table for each set of data with a row for each law, and the notes they number.

    All columns are of all targets together, but for the mean absolute error of short cooldowns. Scores of one protocol
    fit 100 columns of a terminal.
    """
    shown = summaries(scores)
    notes = _unique([", ".join(_short(s.note)) for s in shown if s.note])
    tables = []
    for protocol, data in dict.fromkeys((s.protocol, s.data) for s in shown):
        of = [s for s in shown if (s.protocol, s.data) == (protocol, data)]
        short = {s.law: s for s in of if s.group == SHORT_COOLDOWNS}
        alls = [s for s in of if s.group == "all"]
        header = ["law", "fitted", "MAE", "worst", "R2", "end", "in 95 %", "note"]
        rows = [_row(s, notes) for s in alls]
        if short:
            header.insert(3, f"MAE {SHORT_COOLDOWNS}")
            for s, row in zip(alls, rows, strict=True):
                row.insert(3, _told(short[s.law].mae) if s.law in short else "-")
        count = max(s.count for s in alls)
        tables.append(Table(f"{protocol}, {data}: {count} targets", tuple(header), [tuple(row) for row in rows]))
    return tables, notes


def _row(s: Score, notes: list[str]) -> list[str]:
    note = str(notes.index(", ".join(_short(s.note))) + 1) if s.note else "-"
    fitted = "-" if math.isnan(s.mae) else str(s.parameters)
    numbers = [_told(s.mae), _told(s.worst), _told(s.r2), _told(s.end, "+.4f"), _told(s.inside, ".2f")]
    return [s.law, fitted, *numbers, note]


# --- a page ----------------------------------------------------------------------------------------------------------
def page(scores: Sequence[Score]) -> str:
    """The summaries in Markdown: laws side by side, the best in bold; what made them, what the fits had to say."""
    made = provenance("scores", config={}, seed=0)
    versions = json.loads(made["versions"])
    by = ", ".join(f"{label} {versions[key]}" for label, key in (("NumPy", "numpy"), ("SciPy", "scipy")))
    parts = [f"Made by riverval {made['riverval_version']} (Python {versions['python']}, {by}) with"]
    parts += [f"```console\n{made['command']}\n```", _laws(scores).markdown()]
    for protocol, meaning in PROTOCOLS.items():
        of = [s for s in scores if s.protocol == protocol]
        rows = [s for s in of if s.group in _PAGE_GROUPS]
        if not rows:
            continue
        parts.append(_matrix(f"{protocol}: {meaning}; mean MAE (largest error)", rows, _error, best=True).markdown())
        along = [s for s in of if s.group == "curve" and s.count > 1]
        if protocol == "M" and along:
            title = "M: MAE on each curve (error at its end, predicted minus measured)"
            parts.append(_matrix(title, along, _with_end, best=True).markdown())
    alls = [s for s in scores if s.group == "all"]
    parts.append(
        _matrix("R2, and mean error at the end", [s for s in alls if s.protocol in "MA"], _fit_and_end).markdown()
    )
    parts.append(_matrix("Share of the losses within the 95 % interval", alls, _inside).markdown())
    if notes := _notes(scores):
        parts.append("\n".join(["What the fits had to say:", "", *notes]))
    return "\n\n".join(parts) + "\n"


def _laws(scores: Sequence[Score]) -> Table:
    counts: dict[str, str] = {}
    for s in scores:
        if s.law not in counts or not math.isnan(s.mae):
            counts[s.law] = f"{s.parameters} fitted" if not s.given else f"{s.parameters} fitted, {s.given} published"
    rows = [(law, count, f"`{LAWS[law].formula}`" if law in LAWS else "as published") for law, count in counts.items()]
    return Table("Laws", ("law", "parameters", "form"), rows)


Cell = Callable[[Score], str]


def _error(s: Score) -> str:
    return f"{_told(s.mae)} ({_told(s.worst)})"


def _with_end(s: Score) -> str:
    return f"{_told(s.mae)} ({_told(s.end, '+.4f')})"


def _fit_and_end(s: Score) -> str:
    return f"{_told(s.r2)}, {_told(s.end, '+.4f')}"


def _inside(s: Score) -> str:
    return _told(s.inside, ".2f")


def _matrix(title: str, scores: Sequence[Score], cell: Cell, *, best: bool = False) -> Table:
    """A row for each set of data and group (or each curve), a column for each law; `best` marks the least MAE."""
    laws = _unique([s.law for s in scores])
    several = len({s.protocol for s in scores}) > 1
    rows: dict[tuple[str, ...], dict[str, Score]] = {}
    for s in scores:  # in the order of the first law, whose scores are complete or one that says why not
        rows.setdefault((s.protocol, s.data, s.group, s.target if s.group == "curve" else ""), {})[s.law] = s
    out = []
    for (protocol, data, group, target), of in rows.items():
        known = [_told(s.mae) for s in of.values() if not math.isnan(s.mae)]
        least = min(known, key=float, default="")
        count = max(s.count for s in of.values())
        name = target or f"{protocol}, {data}" * several or f"{data}, {group} ({count})"
        cells = [_cell(of.get(law), cell, least if best else "") for law in laws]
        out.append((name, *cells))
    return Table(title, ("data", *laws), out)


def _cell(score: Score | None, cell: Cell, least: str) -> str:
    if score is None or math.isnan(score.mae):
        return "-"
    return f"**{cell(score)}**" if _told(score.mae) == least else cell(score)


def _notes(scores: Sequence[Score]) -> list[str]:
    """A line for each law: its notes with the data they were said of; protocol C repeats what was said of its fits."""
    where: dict[tuple[str, str], dict[str, list[str]]] = {}
    for s in summaries(scores):
        for part in _short(s.note):
            data = where.setdefault((s.law, part), {}).setdefault(s.protocol, [])
            if s.data not in data:
                data.append(s.data)
    told: dict[str, list[str]] = {}
    for (law, part), of in where.items():
        places = "; ".join(f"{p} {', '.join(names)}" for p, names in of.items() if p != "C" or len(of) == 1)
        told.setdefault(law, []).append(f"{part} ({places})")
    return [f"* {law}: {'; '.join(parts)}." for law, parts in told.items()]


# --- files -----------------------------------------------------------------------------------------------------------
def check_out(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a file that `write_scores` would, which a caller wants to know before the fits are made.

    Raises:
        InputError: another kind of file, or a file that exists where `overwrite` is False.
    """
    if path.suffix not in (".csv", ".md"):
        raise InputError(f"scores are written to a file that ends in .csv or .md, got {path}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another path, or allow overwriting")


def write_scores(path: str | Path, scores: Sequence[Score], *, overwrite: bool = False) -> Path:
    """Write all scores as .csv, or the `page` of the summaries as .md.

    Raises:
        InputError: another kind of file, or a file that exists where `overwrite` is False.
        StoreError: it cannot be written.
    """
    path = Path(path)
    check_out(path, overwrite=overwrite)
    if path.suffix == ".csv":
        rows = [asdict(score) for score in scores]
        return store.write_csv(path, {f.name: [row[f.name] for row in rows] for f in fields(Score)})
    text = page(scores)
    return store.write_aside(path, lambda part: part.write_text(text, encoding="utf-8"))
