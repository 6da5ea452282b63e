"""The pieces that schedules are made of: each a frozen, pure function of the update's number n within the piece.

Factors are relative to the schedule's peak. `length` is the length a piece was planned with and sets its form;
`steps` is how many of its updates are run, so that cutting a piece short does not change the rates that remain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np

from ._checks import check_int, check_number, check_options, make_plain, pick
from ._typing import FloatArray
from .errors import InputError
from .shapes import Linear, Shape, shape_from_dict


class Phase(IntEnum):
    """Codes of `phase(step)` in every dataset."""

    WARMUP = 0
    STABLE = 1
    COOLDOWN = 2


PHASES = tuple(p.name.lower() for p in Phase)
SEGMENTS: dict[str, type[Segment]] = {}


def _register(name: str) -> Callable[[type[Segment]], type[Segment]]:
    def add(cls: type[Segment]) -> type[Segment]:
        cls.name = name
        SEGMENTS[name] = cls
        return cls

    return add


@dataclass(frozen=True, kw_only=True)
class Segment:
    """`steps` updates of one phase; `level` multiplies the form."""

    name: ClassVar[str]
    phase: ClassVar[Phase]

    steps: int
    level: float = 1.0

    def __post_init__(self) -> None:
        check_int("steps", self.steps, low=0, what="updates of a segment")
        check_number("level", self.level, low=0.0, open_low=True, what="of a segment, as a fraction of the peak")
        make_plain(self)

    def form(self, n: FloatArray) -> FloatArray:
        raise NotImplementedError

    def factor(self, n: FloatArray) -> FloatArray:
        """Rate of update n = 0..steps-1 of this segment as a fraction of the schedule's peak."""
        return self.level * self.form(n)

    def scaled(self, factor: float) -> Segment:
        return replace(self, level=self.level * factor)

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
        check_int("length", self.length, low=max(self.steps, 1), what="updates of the whole ramp")
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
        check_int("length", self.length, low=max(self.steps, 1), what="updates of the whole cooldown")
        if not isinstance(self.shape, Shape):
            raise InputError(f"shape must be a decay shape, e.g. make_shape('linear'), got {self.shape!r}")

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
