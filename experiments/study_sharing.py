"""Which cells share how much of their path, in what order they are run, and what that costs.

Two runs of one identity (`RunConfig.identity`: everything but the learning rates) are the same, bit for bit, up to the
first update whose rates differ. The paths of all cells so form a tree whose branches are run once. Cells are run in
the order of their rates, compared update by update: that walks the tree depth first, so that a full state is needed
only until the branches that leave it are done, and the deepest state that a cell can start from always lies on the
path of the cell before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._typing import FloatArray
from .study import Cell


def divergence(first: FloatArray, second: FloatArray) -> int:
    """The state at which two rate sequences part: the number of updates, from the first on, that are equal.

    >>> divergence(np.array([0.1, 0.1, 0.1, 0.05]), np.array([0.1, 0.1, 0.05]))
    2
    """
    n = min(len(first), len(second))
    differ = np.flatnonzero(first[:n] != second[:n])
    return int(differ[0]) if differ.size else n


@dataclass(frozen=True)
class Step:
    """One cell in the order of running.

    Attributes:
        cell: what is run.
        start: state that it can start from; 0 where nothing is shared.
        share: states at which later cells leave its path.
    """

    cell: Cell
    start: int
    share: tuple[int, ...]

    @property
    def updates(self) -> int:
        """Updates that it costs."""
        return len(self.cell.rates) - self.start


@dataclass(frozen=True)
class Group:
    """Cells of one identity that share some of their path, in the order of running; one process runs them all."""

    steps: tuple[Step, ...]

    @property
    def updates(self) -> int:
        return sum(step.updates for step in self.steps)

    def needed_after(self, done: int) -> list[tuple[Cell, int]]:
        """For each cell that is not among the first `done`, the deepest state on its path that these have passed."""
        return [(step.cell, self._deepest(step.cell, done)) for step in self.steps[done:]]

    def _deepest(self, cell: Cell, done: int) -> int:
        return max((divergence(s.cell.rates, cell.rates) for s in self.steps[:done]), default=0)


def groups_of(cells: Sequence[Cell], *, share: bool = True) -> list[Group]:
    """The groups of cells that can share, in the order of their seeds.

    Args:
        cells: those to run; keys that occur twice are run once.
        share: False makes a group of every cell.
    """
    by_identity: dict[str, list[Cell]] = {}
    for cell in {c.key: c for c in cells}.values():
        # A cell that keeps snapshots must pass all of its states itself.
        shares = share and not cell.config.snapshots
        by_identity.setdefault(cell.config.identity if shares else cell.key, []).append(cell)
    out: list[Group] = []
    for same in by_identity.values():
        same.sort(key=lambda c: c.rates.tolist())
        run: list[Cell] = []
        for cell in same:
            if run and not divergence(run[-1].rates, cell.rates):
                out.append(_group(run))
                run = []
            run.append(cell)
        out.append(_group(run))
    return out


def _group(cells: Sequence[Cell]) -> Group:
    steps = []
    for k, cell in enumerate(cells):
        start = divergence(cells[k - 1].rates, cell.rates) if k else 0
        ends = {divergence(cell.rates, other.rates) for other in cells[k + 1 :]}
        # A state before the start is in the pool already: the cell before has passed it.
        steps.append(Step(cell, start, tuple(sorted(t for t in ends if t > start))))
    return Group(tuple(steps))
