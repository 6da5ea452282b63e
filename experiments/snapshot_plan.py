"""Which states of a run are kept, in which form, and how many bytes that takes; known before the run starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..schedules import Schedule
from .predictability import stations

if TYPE_CHECKING:
    from .config import RunConfig

LAST_SHARE = 0.2  # of the last stable stretch: its end, S'
FIRST_SHARE = 0.2  # of the last cooldown: its beginning, D'
BYTES = {"float32": 4, "bfloat16": 2, "sketch": 2}  # per parameter of a state that is kept as such
_HEADER = 1024  # bytes of a file beside its numbers, about

# Windows whose states are only ever compared by inner products, which sketches keep (but for ends of the first two).
_INNER = ("stable", "cooldown", "earlier stable")
# Every window of snapshots, in the order of the datasets.
COMPARED = ("stable", "cooldown", "late stable", "early cooldown", "matched stable", "earlier stable")


def windows(schedule: Schedule) -> dict[str, tuple[int, int]]:
    """First and last state of each window that is watched, where the schedule has it.

    ==============  =============================================================================
    stable          S, the last stable stretch
    cooldown        D, the last cooldown
    late stable     S', the last fifth of S (states 80% and 100%)
    early cooldown  D', the first fifth of D
    matched stable  as many updates as D', just before D: what a shorter window alone makes of S'
    earlier stable  as many updates as S', just before S': its control
    ==============  =============================================================================
    """
    found: dict[str, tuple[int, int]] = {}
    stable, cooldown = schedule.windows("stable"), schedule.windows("cooldown")
    if stable:
        start, stop = stable[-1]
        length = round(LAST_SHARE * (stop - start))
        found["stable"], found["late stable"] = (start, stop), (stop - length, stop)
        found["earlier stable"] = (stop - 2 * length, stop - length)
    if cooldown:
        first, last = cooldown[-1]
        early = round(FIRST_SHARE * (last - first))
        found["cooldown"], found["early cooldown"] = (first, last), (first, first + early)
        if stable and stable[-1][1] == first and early <= first - stable[-1][0]:
            found["matched stable"] = (first - early, first)
    return {name: found[name] for name in COMPARED if name in found and found[name][0] < found[name][1]}


def planned_states(schedule: Schedule, config: RunConfig) -> dict[str, list[int]]:
    """The states that are kept, by what they are kept for; none where ``config.snapshots`` is 0.

    The `windows`: evenly spaced states, both ends included, ``config.snapshots`` of stable and cooldown and
    ``config.direction_snapshots`` of the others (fewer where a window has fewer); the matched and the earlier stable
    window have the spacing of their models. Besides, "sharpness": ``config.hessian_points`` of those of the cooldown,
    both ends included; "predictability": the states of `stations`; "descent": ``config.descent_points`` from the end of
    the warmup to the last update, with the update that follows each; "end": the last state.
    """
    if not config.snapshots:
        return {}
    spans = windows(schedule)
    out = {}
    for name, (start, stop) in spans.items():
        whole = name in ("stable", "cooldown")
        out[name] = evenly(start, stop, config.snapshots if whole else config.direction_snapshots)
    if "matched stable" in out:
        turn = spans["cooldown"][0]
        out["matched stable"] = [2 * turn - t for t in reversed(out["early cooldown"])]
    if "earlier stable" in out:
        length = spans["late stable"][1] - spans["late stable"][0]
        out["earlier stable"] = [t - length for t in out["late stable"]]
    if "cooldown" in out:
        kept = out["cooldown"]
        out["sharpness"] = [kept[k] for k in evenly(0, len(kept) - 1, config.hessian_points)]
    predictability = stations(out).states
    if predictability:
        out["predictability"] = list(predictability)
    warmup = schedule.windows("warmup")
    begin = warmup[0][1] if warmup and warmup[0][0] == 0 else 0
    out["descent"] = evenly(min(begin, schedule.total - 1), schedule.total - 1, config.descent_points)
    out["end"] = [schedule.total]
    return out


def evenly(start: int, stop: int, count: int) -> list[int]:
    """`count` evenly spaced whole numbers from `start` to `stop`, both included, each once; one is the first."""
    return [int(t) for t in np.unique(np.linspace(start, stop, count).round().astype(int))]


@dataclass(frozen=True)
class SnapshotPlan:
    """What is written at which states.

    Attributes:
        states: what for -> states, from `planned_states`.
        keep: "float32"; "bfloat16", half the bytes and a relative error of at most 2^-8 in each parameter, so that
            states nearer than that (the last updates of a cooldown) are not told apart; or "sketch":
            bfloat16 where a loss or a product needs the parameters, and elsewhere sketches, which keep inner products
            to the error of `riverval.sketches.Sketch`.
        width: numbers per sketch.
        full: states whose parameters are kept.
        sketched: states whose sketch is kept.
        updates: states of which the update that follows is kept.
        moments: states at which the optimizer's preconditioner is kept.
    """

    states: dict[str, list[int]]
    keep: str
    width: int
    full: frozenset[int]
    sketched: frozenset[int]
    updates: frozenset[int]
    moments: frozenset[int]

    @classmethod
    def of(cls, config: RunConfig) -> SnapshotPlan:
        """The plan of a planned run."""
        states = planned_states(config.plan, config)
        every = _union(states.values())
        ends = [states[name][k] for name in ("stable", "cooldown") if name in states for k in (0, -1)]
        exact = _union([kept for name, kept in states.items() if name not in _INNER] + [ends])
        sketches = config.keep == "sketch"
        return cls(
            states=states,
            keep=config.keep,
            width=config.sketch_width,
            full=exact if sketches else every,
            sketched=_union(states[name] for name in COMPARED if sketches and name in states),
            updates=frozenset(states.get("descent", ())),
            moments=frozenset(states.get("sharpness", ()) if config.optimizer != "sgd" else ()),
        )

    def widened(self, others: Iterable[SnapshotPlan], until: int) -> SnapshotPlan:
        """This plan, with what others of its form want written of the states 0..until; its windows stay."""
        others = list(others)

        def union(of: str, last: int) -> frozenset[int]:
            theirs = _union(getattr(other, of) for other in others)
            own: frozenset[int] = getattr(self, of)
            return own | {t for t in theirs if t <= last}

        return replace(
            self, full=union("full", until), sketched=union("sketched", until), moments=union("moments", until),
            updates=union("updates", until - 1),
        )  # fmt: skip

    @property
    def wanted(self) -> frozenset[int]:
        """Every state at which there is something to do."""
        return self.full | self.sketched | self.moments | self.updates | {t + 1 for t in self.updates}

    def nbytes(self, parameters: int) -> int:
        """Disk space that all of it takes."""
        whole = len(self.full) + len(self.updates) + len(self.moments)
        numbers = whole * parameters * BYTES[self.keep] + len(self.sketched) * self.width * 8
        return numbers + (whole + len(self.sketched)) * _HEADER


def _union(groups: Iterable[Iterable[int]]) -> frozenset[int]:
    return frozenset(t for group in groups for t in group)
