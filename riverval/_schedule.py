"""What every schedule can do, the algebra of schedules, and the base of the registered ones.

The step convention stands at the top of `riverval.schedules`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

from ._arrays import check_rates
from ._checks import MOST_STEPS, check_int, check_number, check_steps, make_plain, unknown
from ._typing import ArrayLike, FloatArray, IntArray, NDArray
from .errors import InputError
from .segments import PHASES, Cooldown, Ramp, Segment, windows_of
from .shapes import Linear, Shape


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every schedule can do. Subclasses give `segments`.

    Args:
        peak_lr: learning rate of the plateau, > 0.
    """

    peak_lr: float

    def __post_init__(self) -> None:
        check_number("peak_lr", self.peak_lr, low=0.0, open_low=True, what="peak learning rate, --lr")
        self._check()
        make_plain(self)
        # Set once, here: the fields are frozen, so what follows from them is too. Not a field: equality ignores it.
        object.__setattr__(self, "_segments", tuple(s for s in self._build() if s.steps))
        object.__setattr__(self, "_edges", np.cumsum([0] + [s.steps for s in self.segments]))
        _check_total(self.total)

    def _check(self) -> None:
        """Validate the fields of the subclass."""

    def _build(self) -> tuple[Segment, ...]:
        raise NotImplementedError

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments in order, none empty."""
        segments: tuple[Segment, ...] = self._segments  # type: ignore[attr-defined]
        return segments

    @property
    def edges(self) -> IntArray:
        """First step of each segment, and the total at the end; int64, shape (segments + 1,)."""
        edges: IntArray = self._edges  # type: ignore[attr-defined]
        return edges

    @property
    def total(self) -> int:
        """Number of updates T."""
        return int(self.edges[-1])

    def __len__(self) -> int:
        return self.total

    def lr(self, step: ArrayLike) -> FloatArray:
        """Learning rate of update `step` (integers in 0..T-1, any shape); same shape.

        Raises:
            InputError: for a step outside the run: a schedule does not guess what comes after its end.
        """
        steps = self._check_steps(step)
        t = steps.ravel()
        if len(self.segments) == 1 or np.all(t[1:] >= t[:-1]):  # the usual case: already segment by segment
            factors = self._by_segment(t, np.searchsorted(t, self.edges))
        else:
            which = np.searchsorted(self.edges, t, side="right") - 1
            bounds = np.cumsum(np.bincount(which + 1, minlength=len(self.edges)))
            # A stable sort of numbers of up to 16 bits is a radix sort, many times cheaper than to sort the steps.
            order = np.argsort(which.astype(np.min_scalar_type(len(self.segments))), kind="stable")
            factors = np.empty(t.shape)
            factors[order] = self._by_segment(t[order], bounds)
        return self.peak_lr * factors.reshape(steps.shape)

    __call__ = lr

    def _by_segment(self, t: IntArray, bounds: IntArray) -> FloatArray:
        """Factors of steps of which t[bounds[k] : bounds[k + 1]] lie in segment k, in any order within it."""
        out = np.empty(t.shape)
        for k in np.flatnonzero(bounds[1:] > bounds[:-1]).tolist():
            span = slice(bounds[k], bounds[k + 1])
            out[span] = self.segments[k].factor((t[span] - self.edges[k]).astype(np.float64))
        return out

    def values(self) -> FloatArray:
        """The whole run: lr[0..T-1], shape (T,)."""
        return self.peak_lr * self.factors()

    def factors(self) -> FloatArray:
        """The whole run as fractions of the peak, shape (T,)."""
        parts = [segment.factor(np.arange(segment.steps, dtype=np.float64)) for segment in self.segments]
        return np.concatenate(parts)

    def phases(self) -> NDArray[np.int8]:
        """Phase code of every update, int8 of shape (T,): see `Phase`."""
        codes = np.array([s.phase for s in self.segments], dtype=np.int8)
        return np.repeat(codes, [s.steps for s in self.segments])

    def phase(self, step: int) -> str:
        """Name of the phase of update `step`: warmup, stable or cooldown."""
        t = int(self._check_steps(step))
        return PHASES[self.segments[int(np.searchsorted(self.edges, t, side="right")) - 1].phase]

    def area(self, start: int = 0, stop: int | None = None) -> float:
        """S = sum of lr[t] over start <= t < stop: the intrinsic time travelled."""
        stop = self.total if stop is None else check_int("stop", stop, low=0, high=self.total)
        start = check_int("start", start, low=0, high=stop)
        return float(self.values()[start:stop].sum())

    def windows(self, phase: str) -> list[tuple[int, int]]:
        """Half-open step ranges [start, stop) of each unbroken stretch of a phase, in order."""
        if phase not in PHASES:
            raise unknown("phase", phase, PHASES)
        found = windows_of([s.phase for s in self.segments], PHASES.index(phase))  # in segments: no array of updates
        return [(int(self.edges[a]), int(self.edges[b])) for a, b in found]

    # --- algebra -----------------------------------------------------------------------------------------------------
    def scale(self, factor: float) -> Joined:
        """The same schedule with every rate multiplied by `factor` > 0."""
        check_number("factor", factor, low=0.0, open_low=True)
        return Joined(peak_lr=self.peak_lr * factor, parts=self.segments)

    def join(self, other: Schedule) -> Joined:
        """This schedule, then `other` (which keeps its own rates)."""
        ratio = other.peak_lr / self.peak_lr
        return Joined(peak_lr=self.peak_lr, parts=self.segments + tuple(s.scaled(ratio) for s in other.segments))

    def repeat(self, times: int) -> Joined:
        """This schedule, `times` times over."""
        _check_total(self.total * check_int("times", times, low=1))  # before the parts are made
        return Joined(peak_lr=self.peak_lr, parts=self.segments * int(times))

    def truncate(self, steps: int) -> Joined:
        """The first `steps` updates, unchanged (phases keep the lengths they were planned with)."""
        left = check_int("steps", steps, low=1, high=self.total)
        parts = []
        for segment in self.segments:
            parts.append(replace(segment, steps=min(left, segment.steps)))
            left -= parts[-1].steps
        return Joined(peak_lr=self.peak_lr, parts=tuple(s for s in parts if s.steps))

    def branch(self, at: int, steps: int, shape: Shape | None = None) -> Joined:
        """Leave the schedule before update `at` and cool down over `steps` updates, from the rate `at` would have had.

        Args:
            at: first update of the cooldown, in 1..T-1.
            steps: its length, at least 2: the first update still has the full rate.
            shape: decay shape; linear to zero if None.
        """
        check_int("at", at, low=1, high=self.total - 1, what="the step at which the cooldown branches off")
        check_steps("steps", steps, low=2, what="of the cooldown, whose first update still has the full rate")
        level = float(self.lr(at)) / self.peak_lr
        tail = Cooldown(steps=steps, level=level, shape=shape or Linear())
        return Joined(peak_lr=self.peak_lr, parts=(*self.truncate(at).segments, tail))

    # --- records -----------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `schedule_from_dict` builds the equal schedule."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line for people."""
        return json.dumps(self.to_dict())

    def _check_steps(self, step: ArrayLike) -> IntArray:
        t = np.asarray(step)
        if t.dtype.kind not in "iu" and t.size:  # an empty list is an array of float
            raise InputError(f"step must be whole numbers in 0..{self.total - 1}, got {step!r}")
        if t.size and (t.min() < 0 or t.max() >= self.total):
            bad = t.min() if t.min() < 0 else t.max()
            raise InputError(f"step must lie in 0..{self.total - 1} for a run of {self.total} updates, got {bad}")
        return t.astype(np.int64)


def rates_of(schedule: Schedule | ArrayLike) -> FloatArray:
    """The rate of every update, shape (T,), of a schedule or of a row of rates.

    Raises:
        InputError: rates that are not a row, not finite, or below 0.
    """
    return schedule.values() if isinstance(schedule, Schedule) else check_rates(schedule)


def _check_total(total: int) -> None:
    if total > MOST_STEPS:
        raise InputError(f"a run has at most {MOST_STEPS} updates, got {total}; use fewer or shorter parts")


@dataclass(frozen=True, kw_only=True)
class Joined(Schedule):
    """A schedule given by its segments: what the algebra returns."""

    parts: tuple[Segment, ...]

    def _check(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not any(s.steps for s in self.parts):
            raise InputError("a schedule needs at least one update, got no segments")

    def _build(self) -> tuple[Segment, ...]:
        return self.parts

    def to_dict(self) -> dict[str, Any]:
        return {"name": "joined", "peak_lr": self.peak_lr, "parts": [s.to_dict() for s in self.parts]}

    def describe(self) -> str:
        return " + ".join(s.describe() for s in self.segments)


@dataclass(frozen=True, kw_only=True)
class NamedSchedule(Schedule):
    """A registered schedule over `steps` updates with a linear warmup of `warmup` of them."""

    name: ClassVar[str]

    steps: int
    warmup: int = 0

    def _check(self) -> None:
        check_steps("steps", self.steps, low=1, what="updates of the run")
        check_int("warmup", self.warmup, low=0, what="updates")
        if self.warmup >= self.steps:
            raise InputError(f"warmup must be shorter than the run of {self.steps} updates, got {self.warmup}")

    def _cooldown_steps(self, fraction: float, of: int) -> int:
        """Round a fraction of `of` updates to whole ones, at least two."""
        check_number("cooldown", fraction, low=0.0, high=1.0, open_low=True, what="a fraction")
        steps = round(fraction * of)
        if steps < 2:
            told = "is 1 update, which would still have the full rate" if steps else "is shorter than one update"
            raise InputError(
                f"a cooldown of {fraction:g} of {of} updates {told}; use a larger fraction or a longer run"
            )
        return steps

    def _decay(self, shape: Shape) -> Cooldown:
        """All of the run after the warmup as one decay, of at least two updates."""
        if self.steps - self.warmup < 2:
            raise InputError(
                f"{self.name} of steps={self.steps} and warmup={self.warmup} would decay over 1 update, which would "
                f"still have the full rate; use a longer run or a shorter warmup"
            )
        return Cooldown(steps=self.steps - self.warmup, shape=shape)

    def _warm(self) -> Ramp:
        return Ramp(steps=self.warmup, length=max(self.warmup, 1))

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name}
        for f in fields(self):
            value = getattr(self, f.name)
            out[f.name] = value.to_dict() if isinstance(value, Shape) else value
        return out

    def describe(self) -> str:
        choices = self._choices()
        shape = choices.pop("shape", None)
        told = [shape.describe()] if shape else []
        told += [f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in choices.items() if v]
        return f"{self.name} ({', '.join(told)})" if told else self.name

    def _choices(self) -> dict[str, Any]:
        """The fields that `describe` tells; a subclass that derives one puts the derived value here."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("peak_lr", "steps")}
