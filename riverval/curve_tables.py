"""Loss curves from tables: any CSV, TSV or JSONL file with columns for the step, the rate and the loss.

In JSONL every line is an object and its fields are cells; null, like a field that is not there, is an empty one.

Loggers differ in what they call the columns, in the sign between them, and in whether every row has every number. What
is certain is read: an empty cell is a number that was not logged, so a row may give a rate, a loss, or both, as rows of
step 0 always gave a rate alone. What is not certain is refused with the line where it stands.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._checks import unknown
from ._typing import FloatArray, NDArray
from .curves import Curve, rates_from_log, tidy_rows
from .errors import InputError

__all__ = [
    "COLUMNS", "ENDINGS", "TableOptions", "column_of", "fault_of", "header_of", "kind_of", "looks_like_log",
    "read_table", "rows_of", "stem_of", "text_of", "unreadable",
]  # fmt: skip

COLUMNS = ("step", "lr", "loss")
"""What a log must hold, and the names of the columns where no others are given."""

ENDINGS = (".csv", ".tsv", ".jsonl")
"""What names of tables end in; each may be followed by .gz."""

_SEPARATORS = ",;\t"
_REST = "\n"  # key of the cells beyond the header; no name of a column has a line end
_FAULT = "\n\n"  # key of what is wrong with a row
_GZIP = b"\x1f\x8b"  # first bytes of what gzip packs
_SHOWN = 60  # letters of a bad text in a message
_EXAMPLE = '{"step": 100, "lr": 0.001, "loss": 3.2}'

Rows = Iterator[tuple[int, dict[str, Any], str]]
"""Number of the line, cells, and what is wrong with them or an empty text."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What a plain log does not say itself.

    Attributes:
        warmup: updates of the linear warmup that the log leaves out.
        peak_lr: the rate that this warmup led to, where it is not that of the first row.
        repair: let `riverval.curves.tidy_rows` repair the rows.
        columns: names of the columns in the file, by `COLUMNS`; those not given have their own name.

    Raises:
        InputError: `columns` has another key, or gives two of them one name.
    """

    warmup: int | None = None
    peak_lr: float | None = None
    repair: bool = False
    columns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for key in self.columns or {}:
            if key not in COLUMNS:
                raise unknown("column", key, COLUMNS)
        if len(set(self.names.values())) < len(COLUMNS):
            raise InputError(f"step, lr and loss need a column each, got {', '.join(self.names.values())}")

    @property
    def names(self) -> dict[str, str]:
        """Name in the file of each of `COLUMNS`."""
        return {**{name: name for name in COLUMNS}, **(self.columns or {})}


def kind_of(path: Path) -> str | None:
    """csv, tsv or jsonl by the ending of the name; None for another one."""
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    return ending[1:] if ending in ENDINGS else None


def stem_of(path: Path) -> str:
    """The name of a table without its endings."""
    whole = path.name[: -len(".gz")] if path.name.lower().endswith(".gz") else path.name
    return Path(whole).stem if kind_of(path) else whole


def text_of(path: Path) -> str:
    """The text of a file, unpacked if its name ends in .gz.

    Raises:
        InputError: it may not be read, is no UTF-8, or is packed where its name says that it is not, or the reverse.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    named, packed = path.name.lower().endswith(".gz"), raw.startswith(_GZIP)
    if raw and named != packed:
        raise InputError(
            f"{path} is not packed with gzip; fetch it again, or take .gz off its name"
            if named
            else f"{path} is packed with gzip; unpack it, or let its name end in .gz"
        )
    try:
        return (gzip.decompress(raw) if named else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as text in UTF-8 ({error}); fetch it again, or save it as such"
        ) from error


def unreadable(path: Path, error: OSError) -> str:
    """What keeps a file or folder from being read at all."""
    return f"{path} cannot be read ({error.strerror or error}); allow it, or take it away"


def header_of(path: Path) -> list[str]:
    """Names of the columns of a table, empty where the file is.

    Raises:
        InputError: the file is no text, or its first line not what its ending says.
    """
    return _parts(path)[0]


def looks_like_log(path: Path, names: Mapping[str, str]) -> bool:
    """Whether a table that was met in a folder is a log: two of its columns, and one that has to do with a loss.

    So a log that lacks one column is refused rather than passed over, and an empty file too.
    """
    header = header_of(path)
    if not header:
        return True
    with_loss = names["loss"] in header or any("loss" in name.lower() for name in header)
    return with_loss and sum(name in header for name in names.values()) >= 2


def rows_of(path: Path, needed: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a table by column, the number of the line under ""; rows with none of the needed are left out.

    A row with more or fewer cells than the header is among them: see `fault_of`.

    Raises:
        InputError: a needed column is missing or there twice, or the file is not what its ending says.
    """
    needed = list(needed)
    header, found = _parts(path, needed)
    _check_header(path, header, needed, found)
    rows = []
    for line, cells, fault in found:
        if fault:
            rows.append({**cells, "": str(line), _FAULT: f"{path}, line {line}: {fault}"})
        elif any(cells[name].strip() for name in needed):
            rows.append({**cells, "": str(line)})
    return rows


def fault_of(row: Mapping[str, str]) -> str:
    """What is wrong with the cells of a row, with its file and line; empty where nothing is."""
    return row.get(_FAULT, "")


def _parts(path: Path, needed: Sequence[str] = ()) -> tuple[list[str], Rows]:
    return _json_parts(path, needed) if kind_of(path) == "jsonl" else _csv_parts(path)


def _csv_parts(path: Path) -> tuple[list[str], Rows]:
    text = text_of(path)
    first = text.splitlines()[0] if text else ""
    lines = io.StringIO(text, newline=None)
    reader = csv.DictReader(lines, skipinitialspace=True, delimiter=_separator(path, first), restkey=_REST)
    try:
        header = [str(name).strip() for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file ({error})") from error
    reader.fieldnames = header
    return header, _csv_rows(path, reader, header)


def _csv_rows(path: Path, reader: csv.DictReader[str], header: list[str]) -> Rows:
    try:
        for row in reader:
            cells: list[Any] = [row[name] for name in header]
            extra = [cell for cell in row.get(_REST) or () if cell.strip()]
            found = sum(cell is not None for cell in cells) + len(extra)
            wrong = None in cells or extra
            yield reader.line_num, row, f"{found} cells for {len(header)} columns; mend the row" if wrong else ""
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file ({error})") from error


def _separator(path: Path, first: str) -> str:
    """A tab where the ending promises one, else the most frequent sign of the first line."""
    if kind_of(path) == "tsv" and "\t" in first:
        return "\t"
    return max(_SEPARATORS, key=first.count)


def _json_parts(path: Path, needed: Sequence[str]) -> tuple[list[str], Rows]:
    """A field that an object lacks was not logged there: loggers write the training and the validation loss apart.

    The cells are those of the needed fields, or where one is not there those of all, of which loggers write hundreds.
    """
    found = list(_objects(path))
    header = list(dict.fromkeys(name for _, fields in found for name in fields))
    names = needed if set(needed) <= set(header) else header
    return header, ((line, {name: _cell(fields.get(name)) for name in names}, "") for line, fields in found)


def _cell(value: Any) -> str:
    """What a CSV file would have there."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with the numbers of their lines; empty lines count, but hold none."""
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line, object_pairs_hook=_distinct)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise InputError(
                f"{path}, line {number}: not JSON ({why}); every line must be an object such as {_EXAMPLE}"
            ) from None
        if not isinstance(found, dict):
            raise InputError(
                f"{path}, line {number}: {_shown(line.strip())} is no object; every line must be one such as {_EXAMPLE}"
            )
        yield number, found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for k, (name, _) in enumerate(pairs) if name in dict(pairs[:k]))
        raise InputError(f"the field {twice} is there twice; drop or rename one")
    return found


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_header(path: Path, header: list[str], needed: list[str], rows: Rows) -> None:
    missing = [name for name in needed if name not in header]
    if missing:
        nested = dict.fromkeys(name for _, cells, _ in rows for name in header if (cells[name] or "").startswith("{"))
        unpack = f" (the numbers inside {', '.join(nested)} need fields of their own)" if nested else ""
        raise InputError(
            f"{path} has no column {', '.join(missing)}; a curve needs the columns {', '.join(needed)}, with the rate "
            f"that of the update which follows the logged step (found: {', '.join(header) or 'nothing'}{unpack}). "
            f"Columns of other names are given with --column-step, --column-lr and --column-loss (in Python: columns)"
        )
    twice = [name for name in needed if header.count(name) > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]} twice; drop or rename one")


def column_of(path: Path, rows: list[dict[str, str]], name: str) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The numbers of a column, and where there are any.

    Raises:
        InputError: a cell that is no number, or a row with too many or too few cells.
    """
    if fault := next(filter(None, map(fault_of, rows)), ""):
        raise InputError(fault)
    there = np.array([bool(row[name].strip()) for row in rows], dtype=bool)
    numbers = np.full(there.size, np.nan)
    for k in np.flatnonzero(there):
        try:
            numbers[k] = float(rows[k][name])
        except ValueError:
            raise InputError(
                f"{path}, line {rows[k]['']}: column {name} must hold numbers such as 1000 or 0.001, got "
                f"{_shown(rows[k][name])!r}"
            ) from None
    return numbers, there


def read_table(path: Path, options: TableOptions) -> Curve:
    """The curve of a log; see `riverval.curves.rates_from_log` for the rates between and before its rows.

    Raises:
        InputError: what the text, the rows or the rates lack.
    """
    told, names = str(path), options.names
    rows = rows_of(path, names.values())
    step, has_step = column_of(path, rows, names["step"])
    if not has_step.all():
        k = int(np.argmin(has_step))
        raise InputError(f"{path}, line {rows[k]['']}: no {names['step']}; every row needs one")
    lr, has_lr = column_of(path, rows, names["lr"])
    loss, has_loss = column_of(path, rows, names["loss"])
    measured, repaired = tidy_rows(told, {"step": step[has_loss], "loss": loss[has_loss]}, repair=options.repair)
    # A rate counts even where the loss beside it does not, so the rates are tidied by themselves.
    rated, rated_repaired = tidy_rows(
        f"{told} (rates)",
        {"step": step[has_lr], "lr": lr[has_lr], "loss": np.zeros(int(has_lr.sum()))},
        repair=options.repair,
    )
    last = int(measured["step"][-1])
    rates = rates_from_log(
        rated["step"], rated["lr"], warmup=options.warmup, peak_lr=options.peak_lr, until=last, told=told
    )
    said = [*_incomplete(has_lr, has_loss), *_beyond_the_rows(rated, last, options), *repaired, *rated_repaired]
    facts: dict[str, Any] = {
        "format": kind_of(path), "peak_lr": float(rates.max()), "updates": rates.size,
        "notes": list(dict.fromkeys(said)),
    }  # fmt: skip
    if options.warmup is not None:
        facts["warmup"] = options.warmup
    after = measured["step"] >= 1
    return Curve(stem_of(path), rates, measured["step"][after].astype(np.int64), measured["loss"][after], facts=facts)


def _incomplete(has_lr: NDArray[np.bool_], has_loss: NDArray[np.bool_]) -> Iterator[str]:
    for one, other, where in (("rate", "loss", has_lr & ~has_loss), ("loss", "rate", has_loss & ~has_lr)):
        if where.any():
            yield f"rows with a {one} and no {other}: {where.sum()}"


def _beyond_the_rows(rated: dict[str, FloatArray], last: int, options: TableOptions) -> Iterator[str]:
    """What `rates_from_log` had to take for granted: a warmup that ended before the first row is not seen in it."""
    step, rate = rated["step"], rated["lr"]
    if options.warmup is None and step[0] > 1 and rate[1] <= rate[0]:
        yield (
            f"the {step[0]:g} updates before the first row are taken to have had its rate; a warmup that the log "
            f"leaves out is given with --warmup"
        )
    if last > step[-1]:
        yield f"the rates of the last {last - step[-1]:g} updates lie on the line of the last two in the log"
