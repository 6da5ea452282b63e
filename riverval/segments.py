"""The pieces that schedules are made of: each a frozen, pure function of the update's number n within the piece.

Factors are relative to the schedule's peak. `length` is the length a piece was planned with and sets its form;
`steps` is how many of its updates are run, so that cutting a piece short does not change the rates that remain."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np

from ._checks import check_number, check_options, check_steps, make_plain, pick
from ._registry import registrar
from ._typing import ArrayLike, FloatArray
from .errors import InputError
from .shapes import Linear, Shape, shape_from_dict


class Phase(IntEnum):
    """Codes of `phase(step)` in every dataset."""

    WARMUP = 0
    STABLE = 1
    COOLDOWN = 2


PHASES = tuple(p.name.lower() for p in Phase)
SEGMENTS: dict[str, type[Segment]] = {}


_register = registrar(SEGMENTS)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """`steps` updates of one phase; `level` multiplies the form."""

    name: ClassVar[str]
    phase: ClassVar[Phase]

    steps: int
    level: float = 1.0

    def __post_init__(self) -> None:
        check_steps("steps", self.steps, what="updates of a segment")
        check_number("level", self.level, low=0.0, open_low=True, what="of a segment, as a fraction of the peak")
        make_plain(self)

    def form(self, n: FloatArray) -> FloatArray:
        raise NotImplementedError

    def factor(self, n: FloatArray) -> FloatArray:
        """Rate of update n = 0..steps-1 of this segment as a fraction of the schedule's peak."""
        return self.level * self.form(n)

    def scaled(self, factor: float) -> Segment:
        return replace(self, level=self.level * factor)

    def describe(self) -> str:
        """A few words for people."""
        return f"{PHASES[self.phase]} {self.steps}"

    def to_dict(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"name": self.name, **{k: v.to_dict() if isinstance(v, Shape) else v for k, v in values.items()}}


@_register("ramp")
@dataclass(frozen=True, kw_only=True)
class Ramp(Segment):
    """Linear warmup: start + (1 - start)(n + 1)/length, full at n = length - 1."""

    phase: ClassVar[Phase] = Phase.WARMUP

    length: int = 1
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("length", self.length, low=max(self.steps, 1), what="updates of the whole ramp")
        check_number("start", self.start, low=0.0, high=1.0, what="of a ramp, as a fraction of its end")

    def form(self, n: FloatArray) -> FloatArray:
        return self.start + (1.0 - self.start) * ((n + 1.0) / self.length)


@_register("stable")
@dataclass(frozen=True, kw_only=True)
class Stable(Segment):
    """The plateau."""

    phase: ClassVar[Phase] = Phase.STABLE

    def form(self, n: FloatArray) -> FloatArray:
        return np.ones_like(n)


@_register("inverse-sqrt")
@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Segment):
    """1/sqrt(1 + n/timescale)."""

    phase: ClassVar[Phase] = Phase.STABLE

    timescale: float = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("timescale", self.timescale, low=0.0, open_low=True, what="updates")

    def describe(self) -> str:
        return f"{super().describe()} ({self.name}, timescale {self.timescale:g})"

    def form(self, n: FloatArray) -> FloatArray:
        return 1.0 / np.sqrt(1.0 + n / self.timescale)


@_register("cooldown")
@dataclass(frozen=True, kw_only=True)
class Cooldown(Segment):
    """shape(n/length): full at n = 0, the floor is reached where the segment ends."""

    phase: ClassVar[Phase] = Phase.COOLDOWN

    length: int = 0  # 0: as long as `steps`
    shape: Shape = field(default_factory=Linear)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.length:
            object.__setattr__(self, "length", max(self.steps, 1))
        check_steps("length", self.length, low=max(self.steps, 1), what="updates of the whole cooldown")
        if not isinstance(self.shape, Shape):
            raise InputError(f"shape must be a decay shape, e.g. make_shape('linear'), got {self.shape!r}")
        # The step convention: no update is exactly zero. (1 - u)^500 would be, by underflow.
        if self.steps and not self.form(np.array(self.steps - 1.0)) > 0:
            raise InputError(
                f"the decay {self.shape.name} falls to exactly zero before the last of its {self.length} updates; "
                f"use a smaller exponent, a floor above 0 or a shorter cooldown"
            )

    def describe(self) -> str:
        return f"{super().describe()} ({self.shape.describe()})"

    def form(self, n: FloatArray) -> FloatArray:
        return self.shape(n / self.length)


def segment_from_dict(described: dict[str, Any]) -> Segment:
    """The inverse of `Segment.to_dict`."""
    options = dict(described)
    cls = pick("segment", options.pop("name", None), SEGMENTS)
    check_options(f"segment {cls.name!r}", options, [f.name for f in fields(cls)])
    if "shape" in options:
        options["shape"] = shape_from_dict(options["shape"])
    return cls(**{"steps": None, **options})


def windows_of(phases: ArrayLike, code: int) -> list[tuple[int, int]]:
    """Half-open step ranges [start, stop) of each unbroken stretch of a phase, in order.

    >>> windows_of([0, 1, 2, 2, 1, 2], Phase.COOLDOWN)
    [(2, 4), (5, 6)]
    """
    mask = np.concatenate([[False], np.asarray(phases) == code, [False]])
    edges = np.flatnonzero(mask[1:] != mask[:-1]).reshape(-1, 2)
    return [(int(a), int(b)) for a, b in edges]
