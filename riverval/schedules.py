"""Learning-rate schedules: frozen values, pure vectorised functions of the step.

THE STEP CONVENTION, for the whole package. A run of T updates numbers them t = 0, ..., T-1; update t is
``w[t+1] = w[t] - lr[t] * direction(w[t])``, so `lr[t]` is the rate *used by* update t and w[t] the state *before* it.

* Warmup of n updates: (t+1)/n of the peak. The first update already moves, the last warmup update has the full rate.
* Cooldown of n updates starting at t0: shape((t - t0)/n). Its first update still has the full rate, so phases join
  without a jump; the floor is the limit reached at t0 + n, where the run ends. Hence no update is exactly zero unless
  a floor of 0 meets a shape that is 0 before the end, which no shape here is; and n is at least 2, as a cooldown of
  one update would change nothing.
* States are numbered 0..T: state t is the one after t updates.

A schedule is a row of segments, each with its phase: `warmup` and `stable` do not depend on where the run ends,
`cooldown` does (so a cosine over the whole run is all cooldown, and inverse-sqrt is stable). All fractions of the run
are turned into whole updates once, at construction, and always sum to the total.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ._budgets import check_budgets, check_total, ends_of_cycles, whole_budgets
from ._checks import check_int, check_number, check_options, pick
from ._registry import registrar
from ._schedule import Joined, NamedSchedule, Schedule
from .errors import InputError, missing_extra
from .segments import PHASES, Cooldown, InverseSqrt, Phase, Ramp, Segment, Stable, segment_from_dict
from .shapes import Cosine, Inverse, Linear, Shape, make_shape, shape_from_dict

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

__all__ = [
    "PHASES",
    "SCHEDULES",
    "WSD",
    "WSDS",
    "Constant",
    "CosineSchedule",
    "CyclicCosine",
    "InverseSqrtSchedule",
    "Joined",
    "LinearToFloor",
    "Phase",
    "Schedule",
    "make_schedule",
    "schedule_from_dict",
    "torch_scheduler",
]

SCHEDULES: dict[str, type[NamedSchedule]] = {}
COOLDOWN_OF = ("cycle", "budget", "trunk")
register_schedule = registrar(SCHEDULES)


@register_schedule("constant")
@dataclass(frozen=True, kw_only=True)
class Constant(NamedSchedule):
    """Warmup, then the peak rate to the end.

    >>> Constant(peak_lr=0.1, steps=4, warmup=2).values().tolist()
    [0.05, 0.1, 0.1, 0.1]
    """

    def _build(self) -> tuple[Segment, ...]:
        return (self._warm(), Stable(steps=self.steps - self.warmup))


@register_schedule("wsd")
@dataclass(frozen=True, kw_only=True)
class WSD(NamedSchedule):
    r"""Warmup, stable, decay (Hu et al. 2024, arXiv:2404.06395).

    .. math:: lr_t = \hat\eta \cdot \min\{(t+1)/w,\ 1\}\ (t < T-n), \qquad lr_t = \hat\eta\, s((t-T+n)/n)\ (t \ge T-n)

    with :math:`\hat\eta` = `peak_lr`, T = `steps`, w = `warmup`, n = round(`cooldown` T) and s = `shape`.

    Args:
        cooldown: length of the cooldown as a fraction of the whole run, in (0, 1].
        shape: decay shape (its floor included).

    Raises:
        InputError: warmup and cooldown together longer than the run, or a cooldown below two updates.

    >>> WSD(peak_lr=1.0, steps=8, warmup=2, cooldown=0.5).values().tolist()
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    cooldown: float = 0.2
    shape: Shape = field(default_factory=Linear)

    def _check(self) -> None:
        super()._check()
        n = self._cooldown_steps(self.cooldown, self.steps)
        if self.warmup + n > self.steps:
            raise InputError(
                f"warmup ({self.warmup}) and cooldown ({n}) together exceed the run of {self.steps} updates; "
                f"shorten one of them"
            )

    def _build(self) -> tuple[Segment, ...]:
        n = self._cooldown_steps(self.cooldown, self.steps)
        stable = Stable(steps=self.steps - self.warmup - n)
        return (self._warm(), stable, Cooldown(steps=n, shape=self.shape))


@register_schedule("wsd-s")
@dataclass(frozen=True, kw_only=True)
class WSDS(NamedSchedule):
    """WSD-S: one continuous run that cools down at each budget and jumps straight back (Wen et al., arXiv:2410.05192).

    Args:
        steps: updates of the whole run.
        cycles: number of equal cycles where `budgets` is not given; None makes 3.
        budgets: increasing compute budgets in updates, one checkpoint each.
        cooldown: fraction in (0, 1), of what `cooldown_of` says.
        cooldown_of: three accountings that share their words in public code.
            "cycle": of each cycle's own length; checkpoint k stands at budget k (Levanter's current API, Marin).
            "budget": of the cumulative budget; checkpoint k stands at budget k.
            "trunk": of the cumulative nominal budget, while the stable updates up to checkpoint k are those that a WSD
            run of that budget would make, so checkpoints come later than nominal by the cooldowns before (the authors'
            own plan: budgets 12500, 25000, 50000 end at 53750). Needs `budgets`; `steps` must be the resulting total.
        rewarmup: updates of linear warmup after each jump back; 0 jumps at once.
        shape: decay shape; inverse-proportional to 0.1 as in the paper.

    >>> WSDS(peak_lr=1.0, steps=8, cycles=2, cooldown=0.5, shape=Linear()).values().tolist()
    [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.5]
    """

    cycles: int | None = None
    budgets: tuple[int, ...] = ()
    cooldown: float = 0.1
    cooldown_of: str = "cycle"
    rewarmup: int = 0
    shape: Shape = field(default_factory=Inverse)

    def _check(self) -> None:
        super()._check()
        object.__setattr__(self, "budgets", whole_budgets(self.budgets))
        pick("accounting cooldown_of", self.cooldown_of, dict.fromkeys(COOLDOWN_OF))
        check_number("cooldown", self.cooldown, low=0.0, high=1.0, open_low=True, open_high=True, what="a fraction")
        check_int("rewarmup", self.rewarmup, low=0, what="updates")
        check_budgets(self.budgets, self.cycles, self.steps)
        if self.budgets:
            check_total(self.budgets, self.total_of(self.budgets, self.cooldown, self.cooldown_of), self.steps)
        elif self.cooldown_of == "trunk":
            raise InputError("cooldown_of='trunk' needs the nominal budgets, e.g. budgets 12500,25000,50000")
        for k, (stable, n) in enumerate(self._plan()):
            ramp = self.rewarmup if k else self.warmup
            if stable < ramp:
                raise InputError(
                    f"cycle {k + 1} of wsd-s has {stable} updates before its cooldown of {n}, fewer than its warmup of "
                    f"{ramp}; shorten the warmup or the cooldown, or use fewer cycles"
                )

    @staticmethod
    def total_of(budgets: tuple[int, ...], cooldown: float, cooldown_of: str) -> int:
        """Updates of the whole run for given budgets: the last budget, or more under the trunk accounting."""
        if cooldown_of != "trunk":
            return budgets[-1]
        check_number("cooldown", cooldown, low=0.0, high=1.0, open_low=True, open_high=True, what="a fraction")
        return budgets[-1] + sum(round(cooldown * b) for b in budgets[:-1])

    def _plan(self) -> Iterator[tuple[int, int]]:
        """(updates before the cooldown, updates of the cooldown) of each cycle."""
        last = trunk = 0
        for mark in ends_of_cycles(self.budgets, self.cycles, self.steps):
            n = self._cooldown_steps(self.cooldown, mark - last if self.cooldown_of == "cycle" else mark)
            stable = mark - n - (trunk if self.cooldown_of == "trunk" else last)
            if stable < 0:
                raise InputError(
                    f"a cooldown of {n} updates does not fit between checkpoints {last} and {mark} of wsd-s; use a "
                    f"smaller fraction or cooldown_of='cycle'"
                )
            yield stable, n
            last, trunk = mark, trunk + stable

    def _build(self) -> tuple[Segment, ...]:
        parts: list[Segment] = []
        for k, (stable, n) in enumerate(self._plan()):
            ramp = self.rewarmup if k else self.warmup
            # A re-warmup starts where the decay ended; the very first warmup starts from zero.
            start = self.shape.floor if k else 0.0
            parts += [Ramp(steps=ramp, length=max(ramp, 1), start=start), Stable(steps=stable - ramp)]
            parts.append(Cooldown(steps=n, shape=self.shape))
        return tuple(parts)


@register_schedule("cosine")
@dataclass(frozen=True, kw_only=True)
class CosineSchedule(NamedSchedule):
    """Warmup, then one half cosine from the peak to `floor` times the peak (Loshchilov & Hutter, arXiv:1608.03983).

    lr[t] = peak (f + (1 - f)(1 + cos(pi (t - w)/(T - w)))/2) with f = `floor`, w = `warmup`, T = `steps`.

    >>> CosineSchedule(peak_lr=1.0, steps=4).values().round(6).tolist()
    [1.0, 0.853553, 0.5, 0.146447]
    """

    floor: float = 0.0

    def _build(self) -> tuple[Segment, ...]:
        return (self._warm(), self._decay(Cosine(floor=self.floor)))


@register_schedule("cyclic-cosine")
@dataclass(frozen=True, kw_only=True)
class CyclicCosine(NamedSchedule):
    """Half cosines with restarts at the peak (SGDR, arXiv:1608.03983), one per cycle or budget.

    Args:
        cycles: number of equal cycles where `budgets` is not given; None makes 3.
        budgets: increasing ends of the cycles in updates; the last is `steps`.
        rewarmup: updates of linear warmup after each restart, from the floor to the peak.
        floor: rate at the end of each cycle as a fraction of the peak.

    >>> CyclicCosine(peak_lr=1.0, steps=4, cycles=2).values().round(6).tolist()
    [1.0, 0.5, 1.0, 0.5]
    """

    cycles: int | None = None
    budgets: tuple[int, ...] = ()
    rewarmup: int = 0
    floor: float = 0.0

    def _check(self) -> None:
        super()._check()
        object.__setattr__(self, "budgets", whole_budgets(self.budgets))
        check_int("rewarmup", self.rewarmup, low=0, what="updates")
        check_budgets(self.budgets, self.cycles, self.steps)
        check_total(self.budgets, max(self.budgets, default=0), self.steps)
        for k, (start, stop) in enumerate(self._spans()):
            ramp = self.rewarmup if k else self.warmup
            length = stop - start
            if length - ramp < 2:
                leaves = "1 to decay, which would still have the full rate" if length > ramp else "none"
                raise InputError(
                    f"cycle {k + 1} of cyclic-cosine has {length} update{'s' * (length != 1)}, warmup {ramp} leaves "
                    f"{leaves}; shorten the warmup or use fewer cycles"
                )

    def _spans(self) -> list[tuple[int, int]]:
        marks = ends_of_cycles(self.budgets, self.cycles, self.steps)
        return list(zip((0, *marks[:-1]), marks, strict=True))

    def _build(self) -> tuple[Segment, ...]:
        parts: list[Segment] = []
        for k, (start, stop) in enumerate(self._spans()):
            ramp = self.rewarmup if k else self.warmup
            parts.append(Ramp(steps=ramp, length=max(ramp, 1), start=self.floor if k else 0.0))
            parts.append(Cooldown(steps=stop - start - ramp, shape=Cosine(floor=self.floor)))
        return tuple(parts)


@register_schedule("linear")
@dataclass(frozen=True, kw_only=True)
class LinearToFloor(NamedSchedule):
    """Warmup, then linear over the whole rest of the run to `floor` times the peak (zero by default).

    Defazio et al. 2023 (arXiv:2310.07831): lr[t] = peak (f + (1 - f)(T - t)/(T - w)).

    >>> LinearToFloor(peak_lr=1.0, steps=4).values().tolist()
    [1.0, 0.75, 0.5, 0.25]
    """

    floor: float = 0.0

    def _build(self) -> tuple[Segment, ...]:
        return (self._warm(), self._decay(Linear(floor=self.floor)))


@register_schedule("inverse-sqrt")
@dataclass(frozen=True, kw_only=True)
class InverseSqrtSchedule(NamedSchedule):
    """Warmup, then 1/sqrt(1 + n/k) for the n-th update after it, k = `timescale` (Zhai et al. 2022, arXiv:2106.04560).

    Does not depend on the length of the run, so its phase is `stable`; a final linear cooldown can be added with
    ``.branch(...)``.

    Args:
        timescale: updates after which the rate has fallen to 1/sqrt(2); None takes the warmup, or 10000 without one.

    >>> InverseSqrtSchedule(peak_lr=1.0, steps=4, timescale=1.0).values().round(6).tolist()
    [1.0, 0.707107, 0.57735, 0.5]
    """

    timescale: float | None = None

    def _check(self) -> None:
        super()._check()
        if self.timescale is not None:
            check_number("timescale", self.timescale, low=0.0, open_low=True, what="updates")

    def _build(self) -> tuple[Segment, ...]:
        return (self._warm(), InverseSqrt(steps=self.steps - self.warmup, timescale=self._effective_timescale()))

    def _effective_timescale(self) -> float:
        return float(self.timescale or self.warmup or 10_000)

    def _choices(self) -> dict[str, Any]:
        return {**super()._choices(), "timescale": self._effective_timescale()}


def make_schedule(name: str, *, peak_lr: float, steps: int | None = None, **options: Any) -> Schedule:
    """Build a registered schedule from plain values, as the command line and stored configurations give them.

    Args:
        name: a key of `SCHEDULES`.
        peak_lr: rate of the plateau.
        steps: updates of the run; may be left out where `budgets` gives it.
        **options: fields of that schedule. `shape` may be a name, a `Shape` or a dict; `floor` and `exponent` go to the
            shape where the schedule has one.

    Raises:
        InputError: unknown name or option, or a value out of range.
    """
    cls = pick("schedule", name, SCHEDULES)
    names = [f.name for f in fields(cls)]
    if "shape" in names:
        options = _with_shape(cls, options)
        names += ["floor", "exponent"]  # taken through the shape
    check_options(f"schedule {name!r}", options, [n for n in names if n not in ("peak_lr", "steps")])
    if "budgets" in options:
        options["budgets"] = whole_budgets(options["budgets"])
    if options.get("budgets"):
        check_budgets(options["budgets"], options.get("cycles"), options["budgets"][-1])
        if steps is None:
            defaults = {f.name: f.default for f in fields(cls)}
            of = options.get("cooldown_of", defaults.get("cooldown_of", "cycle"))
            steps = WSDS.total_of(options["budgets"], options.get("cooldown", defaults.get("cooldown", 0.0)), of)
    if steps is None:
        raise InputError(f"schedule {name!r} needs steps, the number of updates of the run")
    return cls(peak_lr=peak_lr, steps=steps, **options)


def _with_shape(cls: type[NamedSchedule], options: dict[str, Any]) -> dict[str, Any]:
    """Gather shape, floor and exponent into one Shape; the schedule's own default where none is given."""
    options = dict(options)
    parts = {k: options.pop(k) for k in ("floor", "exponent") if k in options}
    shape = options.get("shape")
    if isinstance(shape, Shape | dict):
        if parts:
            raise InputError(f"give {', '.join(parts)} inside the shape {shape!r}, not beside it")
        options["shape"] = shape if isinstance(shape, Shape) else shape_from_dict(shape)
    elif shape is not None:
        options["shape"] = make_shape(shape, **parts)
    elif parts:
        factory = next(f.default_factory for f in fields(cls) if f.name == "shape")
        assert factory is not MISSING
        options["shape"] = make_shape(factory().name, **parts)
    return options


def schedule_from_dict(described: dict[str, Any]) -> Schedule:
    """The inverse of `Schedule.to_dict`, e.g. for a configuration read from a result file."""
    options = dict(described)
    name = options.pop("name", None)
    peak_lr = options.pop("peak_lr", None)
    if name == "joined":
        check_options("schedule 'joined'", options, ["parts"])
        return Joined(peak_lr=peak_lr, parts=tuple(segment_from_dict(p) for p in options.get("parts", ())))
    return make_schedule(name, peak_lr=peak_lr, **options)


def torch_scheduler(schedule: Schedule, optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """A `torch.optim.lr_scheduler.LambdaLR` that follows `schedule`: call ``.step()`` after each ``optimizer.step()``.

    Each parameter group keeps its own peak, the rate it was built with; at least one of them must be the schedule's
    `peak_lr`. The factor is a pure function of the step, so a scheduler restored by `load_state_dict`, or rebuilt with
    `last_epoch`, goes on with the right rate. After the last update the rate stays at that of update T - 1.

    Raises:
        InputError: no parameter group has the schedule's peak rate.
        MissingExtraError: torch is not installed.
    """
    try:
        from torch.optim.lr_scheduler import LambdaLR
    except ImportError as error:
        raise missing_extra("torch", "real", "a torch scheduler") from error
    peaks = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if not any(math.isclose(schedule.peak_lr, peak, rel_tol=1e-9) for peak in peaks):
        raise InputError(
            f"the schedule's peak_lr is {schedule.peak_lr:g} but the optimizer's groups have {peaks}; "
            f"build the optimizer with lr={schedule.peak_lr:g} in at least one group"
        )
    factors = schedule.factors()

    def factor(step: int) -> float:
        return float(factors[min(step, len(factors) - 1)])

    return LambdaLR(optimizer, factor, last_epoch=last_epoch)
