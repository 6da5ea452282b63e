"""What the command line shows: lines, tables, progress. Nothing else in riverval prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from ._typing import Progress

SECONDS_BETWEEN_LINES = 10.0


def console(*, stderr: bool = False) -> Console:
    """A console on the current standard output (or error), without word highlighting.

    A pipe has no width of its own; 120 columns then keep tables whole.
    """
    out = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(stderr=stderr, highlight=False, width=120)


def say(text: str) -> None:
    """One line on standard output, as it is: paths are never folded and brackets are no markup."""
    console().print(text, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """One line on standard error, with the name of the program as is the custom."""
    console(stderr=True).print(f"riverval: {text}", markup=False, soft_wrap=True)


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; columns of numbers are right-aligned, columns of words left-aligned."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for k, name in enumerate(header):
        numeric = all(row[k][:1] in "0123456789-+" for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


@contextmanager
def progress(total: int, label: str) -> Iterator[Progress]:
    """A progress bar with remaining time on a terminal, else a plain line every few seconds."""
    if sys.stdout.isatty():
        yield from _bar(total, label)
    else:
        yield _lines(total, label)


def _bar(total: int, label: str) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("eta"),
        TimeRemainingColumn(), TextColumn("{task.fields[told]}"),
    )  # fmt: skip
    with Bar(*columns, console=console()) as bar:
        task = bar.add_task(label, total=total, told="")

        def update(done: int, values: Mapping[str, float]) -> None:
            bar.update(task, completed=done, told=_told(values))

        yield update


def _lines(total: int, label: str) -> Progress:
    start = last = time.monotonic()

    def update(done: int, values: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done > 0:
            last = now
            eta = (now - start) / done * (total - done)
            say(f"{label} {done}/{total} eta {eta:.0f} s {_told(values)}")

    return update


def _told(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
