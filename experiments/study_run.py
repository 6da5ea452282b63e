"""Runs the cells of a study: each once, in its own folder, groups of them in worker processes, all of it resumable.

``FOLDER/cells/KEY/run.nc`` is the dataset of a cell; KEY is a hash of its configuration, so a study that is started
again, or with more seeds, finds what is done. ``FOLDER/trunks`` holds the full states that cells start from while
they are needed. A cell that fails or diverges is told of and the others go on.
"""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from .. import store
from .._format import counted
from ..errors import InputError, RivervalError, StoreError
from .config import RunConfig
from .locks import alone
from .study import Cell
from .study_sharing import Group, groups_of

if TYPE_CHECKING:
    from .job import Job
    from .trunks import Trunks

CELLS, TRUNKS = "cells", "trunks"
SECONDS_BETWEEN_LINES = 30.0
SECONDS_TO_FIRST_LINE = 10.0
SECONDS_TO_STOP = 30.0  # for a worker after Ctrl-C, to keep its state
SECONDS_BETWEEN_EVENTS = 0.5
Event = tuple[Any, ...]
Emit = Callable[[Event], None]


def planned(config: RunConfig) -> RunConfig:
    """The planned config, with the data read and the model built, so that all that can fail does so before training."""
    from .job import prepare

    return prepare(config).config


def folder_of(cell: Cell, folder: Path) -> Path:
    """Where a cell is kept."""
    return folder / CELLS / cell.key


def result_of(cell: Cell, folder: Path) -> xr.Dataset | None:
    """The dataset of a cell that is done, whether its loss stayed finite or not; None for all others."""
    try:
        ds = store.load(folder_of(cell, folder) / store.RUN_FILE)
    except StoreError:
        return None
    from .session import is_finished

    return ds if is_finished(ds) else None


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int = 1,
    share: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, str]:
    """Run the cells that are not done.

    Args:
        cells: of the study.
        folder: of the study; made if missing.
        jobs: worker processes; 1 runs everything in this one.
        share: let cells start from states of others; False runs each from its beginning, with the same result.
        tell: called with lines of progress.

    Returns:
        Why a cell failed, by the label of the cell.

    Raises:
        InputError: another process is at work in the folder.
        KeyboardInterrupt: Ctrl-C; what was done is kept.
    """
    (folder / CELLS).mkdir(parents=True, exist_ok=True)
    with alone(folder):
        left = [cell for cell in cells if result_of(cell, folder) is None]
        groups = groups_of(left, share=share)
        watch = Watch(cells, left, groups, tell)
        if jobs == 1:
            for group in groups:
                run_group(group, folder, watch)
        else:
            _in_processes(groups, folder, jobs, watch)
        shutil.rmtree(folder / TRUNKS, ignore_errors=True)
    return watch.failed


# --- one group, in whatever process ----------------------------------------------------------------------------------
def run_group(group: Group, folder: Path, emit: Emit) -> None:
    """Run the cells of a group one after the other; events go to `emit`.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    from .job import prepare
    from .trunks import Trunks

    pool = Trunks(folder / TRUNKS)
    first: Job | None = None
    for k, step in enumerate(group.steps):
        began = time.monotonic()
        try:
            first = first or prepare(step.cell.config)
            # One identity, so the same data and the same initial model: read and made once.
            job = replace(first, config=step.cell.config, model=copy.deepcopy(first.model))
            status = _run_cell(step.cell, job, folder, pool, step.share, emit)
        except (RivervalError, OSError) as error:
            emit(("failed", step.cell.key, str(error)))
        else:
            emit(("done", step.cell.key, status, time.monotonic() - began))
        _prune(pool.folder, group, k + 1)


def _run_cell(cell: Cell, job: Job, folder: Path, pool: Trunks, share: tuple[int, ...], emit: Emit) -> str:
    """Train one cell, or finish what a killed study left of it; returns its status."""
    from .run import read_config, resume, run

    into = folder_of(cell, folder)
    into.mkdir(parents=True, exist_ok=True)
    last = 0.0

    def progress(done: int, values: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_EVENTS:
            last = now
            emit(("update", cell.key, done))

    sharing: dict[str, Any] = {"trunks": pool, "share_at": share}
    try:
        begun = json.dumps(read_config(into).to_dict()) == json.dumps(cell.config.to_dict())
    except (StoreError, InputError):
        begun = False
    # What was begun with another number of threads starts anew.
    ds = resume(into, progress, **sharing) if begun else run(job, into, progress, **sharing)
    if ds.attrs["status"] == "interrupted":
        raise KeyboardInterrupt
    shutil.rmtree(into / "checkpoints", ignore_errors=True)  # nobody goes on with a cell that is done
    return str(ds.attrs["status"])


def _prune(pool: Path, group: Group, done: int) -> None:
    """Delete the full states of a group that none of its cells to come starts from."""
    from .checkpoints import rates_digest, read_manifest

    def names(states: Iterable[tuple[Cell, int]]) -> set[tuple[int, str]]:
        return {(state, rates_digest(cell.rates, state)) for cell, state in states}

    passed = names((step.cell, state) for step in group.steps[:done] for state in step.share)
    needless = passed - names(group.needed_after(done))
    for path in (pool / group.steps[0].cell.config.identity[:16]).glob("step_*.json"):
        found = read_manifest(path)
        if (found["state"], found["lr_sha256"]) in needless:
            path.unlink()  # the manifest first: a state without one is worth nothing
            path.with_suffix(".pt").unlink(missing_ok=True)


# --- several processes -----------------------------------------------------------------------------------------------
def _in_processes(groups: Sequence[Group], folder: Path, jobs: int, watch: Watch) -> None:
    """At most `jobs` groups at a time, each in a process of its own: one that is killed takes no other with it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the libraries of the new processes when they are loaded
    context = multiprocessing.get_context("spawn")
    waiting = list(groups)
    running: dict[Any, tuple[Any, Group]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                group = waiting.pop(0)
                mine, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_worker, args=(group, folder, theirs), daemon=True)
                process.start()
                theirs.close()
                running[mine] = (process, group)
            for ready in wait(list(running), timeout=SECONDS_BETWEEN_LINES):
                if not _receive(ready, watch):  # type: ignore[arg-type]
                    _close(*running.pop(ready), watch)
    except KeyboardInterrupt:  # the workers have got it too
        for process, _ in running.values():
            process.join(SECONDS_TO_STOP)
        raise
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _worker(group: Group, folder: Path, pipe: Connection) -> None:
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # the parent tells of them
        run_group(group, folder, pipe.send)


def _receive(pipe: Connection, watch: Watch) -> bool:
    """Handle one event; False where the process at the other end is gone."""
    try:
        watch(pipe.recv())
    except (EOFError, OSError):
        return False
    return True


def _close(process: BaseProcess, group: Group, watch: Watch) -> None:
    process.join()
    for step in group.steps:
        if step.cell.key in watch.open:
            watch(("failed", step.cell.key, f"its process ended with code {process.exitcode}"))


# --- progress --------------------------------------------------------------------------------------------------------
@dataclass
class Watch:
    """Counts what is done and tells it; called with the events of `run_group`.

    Attributes:
        cells: all cells of the study.
        left: those that are to be run.
        groups: what they share.
        failed: reasons by label.
    """

    cells: Sequence[Cell]
    left: Sequence[Cell]
    groups: Sequence[Group]
    tell: Callable[[str], None]
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._labels = {c.key: c.label for c in self.cells}
        self._totals = {c.key: len(c.rates) for c in self.left}
        self.open = {s.cell.key: s.updates for g in self.groups for s in g.steps}  # updates that are still to be made
        self._cost = sum(self.open.values())
        self._cells = len(self.open)
        self._each = {c.key: c.config.batch * c.config.parameters for c in self.left}
        self._first: tuple[float, int] | None = None  # time and work to do at the first update: loading is over
        self._told = 0.0

    @property
    def _done(self) -> int:
        return self._cost - sum(self.open.values())

    @property
    def _work(self) -> int:
        """Of the updates still to be made, examples times parameters: an update costs in proportion to both."""
        return sum(self._each[key] * updates for key, updates in self.open.items())

    def __call__(self, event: Event) -> None:
        kind, key, *rest = event
        if kind == "update":
            self.open[key] = min(self.open[key], self._totals[key] - rest[0])
            if self._first is None:
                self._first = time.monotonic(), self._work
                self._told = self._first[0] - SECONDS_BETWEEN_LINES + SECONDS_TO_FIRST_LINE
            elif time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
                self._line("")
            return
        self.open.pop(key)
        if kind == "failed":
            self.failed[self._labels[key]] = rest[0]
            self._line(f"{self._labels[key]} FAILED ({rest[0]})")
        else:
            told = "" if rest[0] == "complete" else f", {rest[0].upper()}"
            self._line(f"{self._labels[key]}: {rest[1]:.0f} s{told}")

    def _line(self, what: str) -> None:
        self._told = time.monotonic()
        counts = f"cells {self._cells - len(self.open)}/{self._cells}, updates {self._done:,}/{self._cost:,}"
        self.tell(f"{counts}{self._left()}{'; ' if what else ''}{what}")

    def _left(self) -> str:
        """The time left, by the work since the first update: evaluations, probes and loading are in it."""
        if self._first is None or not self.open or self._work == self._first[1]:
            return ""
        started, planned = self._first
        return f", {duration((time.monotonic() - started) * self._work / (planned - self._work))} left"


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(40), duration(400), duration(4e4)
    ('40 s', '7 min', '11.1 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def announcement(cells: Sequence[Cell], folder: Path, *, share: bool = True) -> Iterator[str]:
    """What will be run, before it is."""
    left = [cell for cell in cells if result_of(cell, folder) is None]
    plans, seeds = len({c.plan.name for c in cells}), len({c.seed for c in cells})
    whole, shared = costs(cells)
    told = f"{counted(len(cells), 'cell')}: {counted(plans, 'plan')} at {counted(seeds, 'seed')}"
    yield f"{told}; {whole:,} updates, {shared:,} with shared trunks"
    if len(left) < len(cells):
        cost = sum(g.updates for g in groups_of(left, share=share))
        done = len(cells) - len(left)
        yield f"{done} {'is' if done == 1 else 'are'} done already; {len(left)} left, {cost:,} updates"


def costs(cells: Sequence[Cell]) -> tuple[int, int]:
    """Updates of all cells, each from its beginning, and with the shared parts once."""
    groups = groups_of(cells)
    return sum(len(c.rates) for c in cells), sum(g.updates for g in groups)
