"""Which schedules branch off a run: a new cooldown from one of its states, for several lengths and shapes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._checks import check_int, check_number
from ..errors import InputError
from ..schedules import Schedule
from ..segments import Cooldown
from ..shapes import make_shape


@dataclass(frozen=True)
class Branch:
    """A run that follows another's schedule up to a state and its own from there.

    Attributes:
        label: shape and length, e.g. "linear-0.2"; part of a folder's name.
        schedule: of the whole branched run, from update 0.
    """

    label: str
    schedule: Schedule


def state_of(text: str, plan: Schedule) -> int:
    """The state meant by an update number such as '1200' or a part of the run such as '60%'.

    Raises:
        InputError: neither of them, or not in 1..T.
    """
    number = text.strip()
    try:
        state = round(float(number[:-1]) / 100 * plan.total) if number.endswith("%") else int(number)
    except (ValueError, OverflowError) as error:
        raise InputError(f"--from must be an update number or a part of the run such as 60%, got {text!r}") from error
    return check_int("--from", state, low=1, high=plan.total, what=f"state, {text} of a run of {plan.total} updates")


def last_stable_state(plan: Schedule) -> int:
    """Where the last stable phase ends, the state that a cooldown starts from.

    Raises:
        InputError: the schedule has no stable phase.
    """
    windows = plan.windows("stable")
    if not windows:
        raise InputError(f"{plan.describe()} has no stable phase to branch off; say where with --from")
    return windows[-1][1]


def cooldown_branches(
    plan: Schedule,
    at: int,
    cooldowns: Sequence[float],
    shapes: Sequence[str],
    *,
    floor: float | None = None,
    exponent: float | None = None,
) -> list[Branch]:
    """Every shape at every length: `plan` up to state `at`, then a cooldown from the rate that update `at` would have.

    A fraction c of the whole branched run is n = at c / (1 - c) updates, rounded.

    Args:
        plan: schedule of the run to branch off.
        at: state in 1..T; T only where the run ends in a stable phase, which then goes on.
        cooldowns: c of each length, in (0, 1).
        shapes: names of decay shapes.
        floor: rate at the end, as a fraction of the rate at `at`; of every shape.
        exponent: of the shape power.

    Raises:
        InputError: an unknown shape, a value out of range, a cooldown of fewer than two updates, or one given twice.
    """
    options: dict[str, Any] = {k: v for k, v in (("floor", floor), ("exponent", exponent)) if v is not None}
    made = [
        Branch(f"{shape}-{cooldown:g}", _branched(plan, at, _steps(at, cooldown), make_shape(shape, **options)))
        for shape in shapes
        for cooldown in cooldowns
    ]
    labels = [branch.label for branch in made]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"{', '.join(twice)} is asked for twice; give each shape and length once")
    return made


def _steps(at: int, cooldown: float) -> int:
    told = "a fraction of the whole branched run"
    check_number("cooldown", cooldown, low=0.0, high=1.0, open_low=True, open_high=True, what=told)
    steps = round(at * cooldown / (1.0 - cooldown))
    if steps < 2:
        told = f"{steps} update{'s' * (steps != 1)}"
        raise InputError(
            f"a cooldown of {cooldown:g} of a run that branches off at state {at} has {told}, and the first still has "
            "the full rate; use a larger fraction or branch off later"
        )
    return steps


def _branched(plan: Schedule, at: int, steps: int, shape: Any) -> Schedule:
    if at < plan.total:
        return plan.branch(at, steps, shape)
    if plan.phase(plan.total - 1) != "stable":
        raise InputError(f"the run's own cooldown ends at state {at}; branch off before it, e.g. --from 60%")
    # The run stopped while it was stable: its last rate goes on.
    whole = plan.truncate(plan.total)
    level = float(plan.lr(plan.total - 1)) / plan.peak_lr
    tail = Cooldown(steps=steps, level=level, shape=shape)
    return type(whole)(peak_lr=whole.peak_lr, parts=(*whole.parts, tail))
