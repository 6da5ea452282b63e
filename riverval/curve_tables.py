"""Loss curves from tables: any CSV file with columns for the step, the rate and the loss.

Loggers differ in what they call the columns, in the sign between them, and in whether every row has every number. What
is certain is read: an empty cell is a number that was not logged, so a row may give a rate, a loss, or both, as rows of
step 0 always gave a rate alone. What is not certain is refused with the line where it stands.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._checks import unknown
from ._typing import FloatArray, NDArray
from .curves import Curve, rates_from_log, tidy_rows
from .errors import InputError

__all__ = ["COLUMNS", "TableOptions", "header_of", "looks_like_log", "read_table", "rows_of", "text_of"]

COLUMNS = ("step", "lr", "loss")
"""What a log must hold, and the names of the columns where no others are given."""

_SEPARATORS = ",;\t"
_REST = "\n"  # key of the cells beyond the header; no name of a column has a line end


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


def text_of(path: Path) -> str:
    """The text of a file, unpacked if its name ends in .gz.

    Raises:
        InputError: it cannot be read as UTF-8.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text in UTF-8 ({error}); save it as such") from error


def header_of(path: Path) -> list[str]:
    """Names of the columns of a CSV file, empty where the file is."""
    lines = text_of(path).splitlines()
    return [name.strip() for name in next(csv.reader(lines[:1], delimiter=_separator(lines[0])), [])] if lines else []


def looks_like_log(path: Path, names: Mapping[str, str]) -> bool:
    """Whether a CSV file that was met in a folder is a log: two of its columns, and one that has to do with a loss.

    So a log that lacks one column is refused rather than passed over.
    """
    header = header_of(path)
    with_loss = names["loss"] in header or any("loss" in name.lower() for name in header)
    return with_loss and sum(name in header for name in names.values()) >= 2


def rows_of(path: Path, needed: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV file by column; rows without any number are left out.

    Raises:
        InputError: a needed column is missing or there twice, a row has more or fewer cells than the header, or the
            file is no CSV.
    """
    text = text_of(path)
    first = text.splitlines()[0] if text else ""
    lines = io.StringIO(text, newline=None)
    reader = csv.DictReader(lines, skipinitialspace=True, delimiter=_separator(first), restkey=_REST)
    rows = []
    try:
        header = [str(name).strip() for name in reader.fieldnames or ()]
        _check_header(path, header, needed)
        reader.fieldnames = header
        for row in reader:
            cells: list[Any] = [row[name] for name in header]
            extra = [cell for cell in row.get(_REST) or () if cell.strip()]
            if None in cells or extra:
                found = sum(cell is not None for cell in cells) + len(extra)
                raise InputError(
                    f"{path}, line {reader.line_num}: {found} cells for {len(header)} columns; mend the row"
                )
            if any(cell.strip() for cell in cells):
                rows.append({**row, "": str(reader.line_num)})
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file ({error})") from error
    return rows


def _separator(first: str) -> str:
    return max(_SEPARATORS, key=first.count)


def _check_header(path: Path, header: list[str], needed: Iterable[str]) -> None:
    needed = list(needed)
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; a curve needs the columns {', '.join(needed)}, with the rate "
            f"that of the update which follows the logged step (found: {', '.join(header) or 'nothing'}). Columns of "
            f"other names are given with --column-step, --column-lr and --column-loss (in Python: columns)"
        )
    twice = [name for name in needed if header.count(name) > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]} twice; drop or rename one")


def _column(path: Path, rows: list[dict[str, str]], name: str) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The numbers of a column, and where there are any."""
    there = np.array([bool(row[name].strip()) for row in rows], dtype=bool)
    numbers = np.full(there.size, np.nan)
    for k in np.flatnonzero(there):
        try:
            numbers[k] = float(rows[k][name])
        except ValueError:
            raise InputError(
                f"{path}, line {rows[k]['']}: column {name} must hold numbers such as 1000 or 0.001, got "
                f"{rows[k][name]!r}"
            ) from None
    return numbers, there


def read_table(path: Path, options: TableOptions) -> Curve:
    """The curve of a log; see `riverval.curves.rates_from_log` for the rates between and before its rows.

    Raises:
        InputError: what the text, the rows or the rates lack.
    """
    told, names = str(path), options.names
    rows = rows_of(path, names.values())
    step, has_step = _column(path, rows, names["step"])
    if not has_step.all():
        k = int(np.argmin(has_step))
        raise InputError(f"{path}, line {rows[k]['']}: no {names['step']}; every row needs one")
    lr, has_lr = _column(path, rows, names["lr"])
    loss, has_loss = _column(path, rows, names["loss"])
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
        "format": "csv", "peak_lr": float(rates.max()), "updates": rates.size, "notes": list(dict.fromkeys(said)),
    }  # fmt: skip
    if options.warmup is not None:
        facts["warmup"] = options.warmup
    after = measured["step"] >= 1
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    return Curve(stem, rates, measured["step"][after].astype(np.int64), measured["loss"][after], facts=facts)


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
