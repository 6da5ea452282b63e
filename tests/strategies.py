"""Hypothesis strategies for shapes and schedules. A newly registered class is drawn by being registered.

Everything drawn is valid by construction. Fields are drawn by their name, so a new schedule with the usual fields
(`warmup`, `floor`, `shape`, ...) needs nothing here; fields of unknown names keep their default.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from hypothesis import strategies as st

from riverval.schedules import COOLDOWN_OF, SCHEDULES, WSD, WSDS, CyclicCosine, NamedSchedule, Schedule, make_schedule
from riverval.segments import Phase
from riverval.shapes import SHAPES, Shape

MOST_STEPS = 300


def by_name(name: str, **options: Any) -> Schedule:
    """A small schedule of that name; options that it does not take are left out."""
    takes = {f.name for f in fields(SCHEDULES[name])} | ({"floor"} if name in ("wsd", "wsd-s") else set())
    given: dict[str, Any] = {"peak_lr": 1.0, "steps": 60, **options}
    return make_schedule(name, **{k: v for k, v in given.items() if k in takes})


def peaks() -> st.SearchStrategy[float]:
    return st.floats(1e-6, 10.0)


@st.composite
def shapes(draw: st.DrawFn, *, names: tuple[str, ...] = ()) -> Shape:
    """Any registered shape with any floor, and any exponent where it has one."""
    cls = SHAPES[draw(st.sampled_from(names or tuple(SHAPES)))]
    lowest = st.just(0.0) if cls.lowest_floor_is_zero else st.just(1e-9)
    options: dict[str, Any] = {"floor": draw(lowest | st.floats(1e-9, 1.0) | st.just(1.0))}
    if "exponent" in {f.name for f in fields(cls)}:
        options["exponent"] = draw(st.floats(0.05, 8.0))
    return cls(**options)


@st.composite
def schedules(draw: st.DrawFn, *, names: tuple[str, ...] = ()) -> NamedSchedule:
    """Any registered schedule with any options."""
    cls = SCHEDULES[draw(st.sampled_from(names or tuple(SCHEDULES)))]
    known = {f.name for f in fields(cls)}
    options: dict[str, Any] = {"peak_lr": draw(peaks())}
    if "shape" in known:
        options["shape"] = draw(shapes())
    if "floor" in known:
        options["floor"] = draw(st.just(0.0) | st.floats(1e-9, 1.0))
    if "timescale" in known:
        options["timescale"] = draw(st.none() | st.floats(0.1, 1e5))
    return draw(_PLANS.get(cls, _plain)(cls, options))


@st.composite
def joined(draw: st.DrawFn) -> Schedule:
    """What one or two operations of the algebra make of a registered schedule."""
    schedule: Schedule = draw(schedules())
    for operation in draw(st.lists(st.sampled_from(["join", "repeat", "scale", "truncate", "branch"]), max_size=2)):
        if operation == "join":
            schedule = schedule.join(draw(schedules()))
        elif operation == "repeat":
            schedule = schedule.repeat(draw(st.integers(1, 3)))
        elif operation == "scale":
            schedule = schedule.scale(draw(st.floats(0.01, 100.0)))
        elif operation == "truncate":
            schedule = schedule.truncate(draw(st.integers(1, schedule.total)))
        elif schedule.total > 1:
            at, steps = draw(st.integers(1, schedule.total - 1)), draw(st.integers(2, 50))
            schedule = schedule.branch(at, steps, draw(st.none() | shapes()))
    return schedule


# --- one plan for each way of dividing a run -------------------------------------------------------------------------
@st.composite
def _plain(draw: st.DrawFn, cls: type[NamedSchedule], options: dict[str, Any]) -> NamedSchedule:
    """Warmup, then the rest: of at least two updates where it decays to a floor."""
    least = 2 if "floor" in options else 1
    steps = draw(st.integers(least, MOST_STEPS))
    return cls(steps=steps, warmup=draw(st.integers(0, steps - least)), **options)


@st.composite
def _one_cooldown(draw: st.DrawFn, cls: type[NamedSchedule], options: dict[str, Any]) -> NamedSchedule:
    """Any warmup and any cooldown that fit; the fraction is off the whole numbers by any rounding."""
    steps = draw(st.integers(2, MOST_STEPS))
    cooldown = draw(st.integers(2, steps))
    fraction = min((cooldown + draw(st.floats(-0.49, 0.49))) / steps, 1.0)
    return cls(steps=steps, warmup=draw(st.integers(0, min(steps - cooldown, steps - 1))), cooldown=fraction, **options)


@st.composite
def _cycles(draw: st.DrawFn, cls: type[NamedSchedule], options: dict[str, Any]) -> NamedSchedule:
    """Any cycles or budgets, of any accounting where the schedule has one."""
    accounts = cls is WSDS
    of = draw(st.sampled_from(COOLDOWN_OF)) if accounts else "cycle"
    fraction = draw(st.floats(0.03, 0.6)) if accounts else 0.5
    # The cooldown of the shortest cycle rounds to at least two updates and leaves one before it.
    shortest = math.ceil(1.5 / fraction) + 1 if accounts else 2
    if accounts:
        options |= {"cooldown": fraction, "cooldown_of": of}
    if of != "trunk" and draw(st.booleans()):
        cycles = draw(st.integers(1, 4) | st.none())
        # "budget" lets cooldowns grow with the run; equal cycles hold them only where all of them fit into the last.
        if of == "budget":
            cycles = 1
        steps = (cycles or 3) * (shortest + 1 + draw(st.integers(0, 60))) + draw(st.integers(0, 3))
        options |= {"cycles": cycles, "steps": steps}
    else:
        budgets: list[int] = []
        for gap in draw(st.lists(st.integers(0, 40), min_size=1, max_size=4)):
            last = budgets[-1] if budgets else 0
            least = math.ceil((last + 1) / (1 - fraction)) if of == "budget" else last
            budgets.append(max(least, last + shortest) + gap)
        total = WSDS.total_of(tuple(budgets), fraction, of)
        options |= {"budgets": tuple(budgets), "steps": total}
    bare = cls(**options)
    # Warmups may fill what stands before each cooldown, or all but two updates where the cooldown is the whole cycle.
    room, before = [], 0
    for segment in bare.segments:
        if segment.phase is Phase.COOLDOWN:
            room.append(before if accounts else segment.steps - 2)
            before = 0
        else:
            before = segment.steps
    warmup = draw(st.integers(0, room[0]))
    return replace(bare, warmup=warmup, rewarmup=draw(st.integers(0, min(room[1:], default=3))))


_PLANS = {WSD: _one_cooldown, WSDS: _cycles, CyclicCosine: _cycles}
