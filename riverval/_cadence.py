"""When a diagnostic is measured: its cadence, and a budget of the run's time that stretches it. Pure Python."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .schema import PROBE_STATUSES


@dataclass
class Cost:
    """What a diagnostic has taken so far; `last` is the time of its latest measurement."""

    every: int
    next: int = 0  # the state from which on it is due
    seconds: float = 0.0
    last: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROBE_STATUSES, 0))

    @property
    def tried(self) -> int:
        """How often it was measured, or at least begun."""
        return sum(self.counts[outcome] for outcome in ("measured", "failed", "unfinished"))


class Cadence:
    """Decides which diagnostics are measured at a state, and keeps the account of their time.

    A diagnostic is due at the states 0, every, 2 every, ..., or where one of these is not offered at the first state
    after it. The budget is a share b of the time of the run. It is
    parted between the diagnostics by their demand, the share that each would take if it were measured whenever it is
    due: those that want less than an equal part get what they want, the others share the rest equally (so that none can
    starve another), and what nobody wants is added in equal parts. A diagnostic that is due is measured if its time so
    far and once more its last time stay within its part of the time since the start; if not, it is passed over and is
    due again at its next state. The first measurement of each is always made: its cost is not known before.

    Args:
        every: updates between two measurements, by diagnostic.
        budget: share of the run's time for all of them, in (0, 1]; None for no limit.
        clock: seconds, monotonic.
    """

    def __init__(
        self, every: Mapping[str, int], budget: float | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.costs = {name: Cost(n) for name, n in every.items()}
        self._budget, self._clock = budget, clock
        self._start, self._end = clock(), math.inf

    def start(self) -> None:
        """The run begins now."""
        self._start = self._clock()

    def stop(self) -> None:
        """The run ends now."""
        self._end = self._clock()

    @property
    def seconds(self) -> float:
        """Time of all diagnostics together."""
        return sum(cost.seconds for cost in self.costs.values())

    @property
    def elapsed(self) -> float:
        """Seconds since the start, or of the whole run after its end."""
        return min(self._clock(), self._end) - self._start

    def due(self, state: int) -> list[str]:
        """The diagnostics whose cadence has a measurement at `state`, or had one since they were last taken."""
        return [name for name, cost in self.costs.items() if state >= cost.next]

    def take(self, state: int) -> list[str]:
        """Those that are `due`; from here on they are due at their next state."""
        due = self.due(state)
        for cost in (self.costs[name] for name in due):
            cost.next = (state // cost.every + 1) * cost.every
        return due

    def affordable(self, name: str, state: int) -> bool:
        """Whether the budget allows `name` now, at `state`."""
        cost = self.costs[name]
        if self._budget is None or not cost.tried:
            return True
        elapsed = self.elapsed
        updates = max(state, 1)
        demands = {n: c.last * updates / (c.every * elapsed) for n, c in self.costs.items()}
        return cost.seconds + cost.last <= fair_parts(demands, self._budget)[name] * elapsed

    def charge(self, name: str, seconds: float, outcome: str) -> None:
        """Add a measurement of `name` to the account: its time, and what became of it (`schema.PROBE_STATUSES`)."""
        cost = self.costs[name]
        cost.seconds += seconds
        cost.counts[outcome] += 1
        if outcome not in ("over_budget", "unavailable"):
            cost.last = seconds

    def table(self, further: Sequence[tuple[str, Mapping[str, int], float]]) -> str:
        """The account as text, with `further` rows of (name, counts, seconds) that no budget covers."""
        elapsed = self.elapsed
        rows = [*((name, cost.counts, cost.seconds) for name, cost in self.costs.items()), *further]
        lines = [f"{'':26} measured  passed over  failed   seconds   share"]
        for name, counts, seconds in rows:
            numbers = (counts.get(outcome, 0) for outcome in ("measured", "over_budget", "failed"))
            told = "{:9} {:12} {:7}".format(*numbers)
            lines.append(f"{name:25} {told} {seconds:9.2f} {_share(seconds, elapsed):7.1%}")
        budget = "no budget" if self._budget is None else f"budget {self._budget:.0%}"
        return "\n".join([*lines, f"probes took {_share(self.seconds, elapsed):.1%} of {elapsed:.1f} s ({budget})"])


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def fair_parts(demands: Mapping[str, float], total: float) -> dict[str, float]:
    """Parts of `total`: small demands in full, the others equal parts; what is left over in equal parts to all.

    >>> fair_parts({"a": 0.125, "b": 0.5, "c": 0.9}, 0.625)
    {'a': 0.125, 'b': 0.25, 'c': 0.25}
    """
    left, parts = total, {}
    for k, name in enumerate(sorted(demands, key=lambda n: demands[n])):
        parts[name] = min(demands[name], left / (len(demands) - k))
        left -= parts[name]
    return {name: parts[name] + left / len(demands) for name in demands}
