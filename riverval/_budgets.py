"""Compute budgets of the schedules that come in cycles: their form, their checks, and where the cycles end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from ._checks import check_int, check_steps
from .errors import InputError

DEFAULT_CYCLES = 3
MOST_CYCLES = 100_000


def whole_budgets(budgets: Any) -> tuple[int, ...]:
    """Budgets given as any row of whole numbers, as a tuple.

    Raises:
        InputError: not a row, or not whole numbers in the range of steps.
    """
    if isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise InputError(f"budgets must be a row of whole numbers, e.g. (1000, 2000, 4000), got {budgets!r}")
    return tuple(check_steps("budgets", b, low=1) for b in budgets)


def check_budgets(budgets: tuple[int, ...], cycles: int | None, steps: int) -> None:
    """What budgets and cycles must satisfy, for every schedule that has them.

    Raises:
        InputError: cycles out of range or at odds with the budgets, or budgets that do not increase.
    """
    if cycles is not None:
        check_int("cycles", cycles, low=1, high=min(steps, MOST_CYCLES))
    if any(b <= a for a, b in pairwise(budgets)):
        raise InputError(f"budgets must increase, got {', '.join(map(str, budgets))}")
    if budgets and cycles not in (None, len(budgets)):
        raise InputError(f"{len(budgets)} budgets make {len(budgets)} cycles, got cycles={cycles}; leave cycles out")


def check_total(budgets: tuple[int, ...], total: int, steps: int) -> None:
    """The run that budgets make must be the run that was asked for.

    Raises:
        InputError: `total` is not `steps`.
    """
    if budgets and total != steps:
        raise InputError(
            f"budgets {', '.join(map(str, budgets))} make a run of {total} updates, got steps={steps}; "
            f"leave steps out or set it to {total}"
        )


def ends_of_cycles(budgets: tuple[int, ...], cycles: int | None, steps: int) -> tuple[int, ...]:
    """The budgets, or the ends of equal cycles (rounded so that the last ends with the run)."""
    n = cycles or DEFAULT_CYCLES
    return budgets or tuple(round(k * steps / n) for k in range(1, n + 1))
