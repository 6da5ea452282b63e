r"""Plans from a fitted law: which cooldown, and which base rate, leaves the lowest loss after a number of updates.

Every candidate is a WSD schedule over the whole budget; the law gives each one's final loss. All losses come from the
same parameters, so their errors are shared: with V the covariance of the parameters and g_k the derivative of loss k by
them, the difference to the best has the variance (g_k - g_b)' V (g_k - g_b), often far below the sum of the two
variances (delta method; derived). These intervals know the errors of the parameters, not those of the law's form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._checks import check_int, check_number, check_steps
from ._typing import FloatArray
from .errors import InputError
from .laws import NORMAL, FittedLaw
from .schedules import WSD
from .shapes import make_shape

__all__ = ["FRACTIONS", "PLAN_SHAPES", "Candidate", "Plan", "beyond_fit", "fitted_warmup", "plan_cooldown"]

PLAN_SHAPES = ("linear", "1-sqrt", "cosine")
"""Shapes that are compared where none are named."""

FRACTIONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)
"""Cooldowns that are compared where none are named: fractions of the budget, or of what is left of it."""

_RATES = 7  # from the smallest to the largest fitted one, where none are named
_SAME = 1e-5  # relative difference of rates that logs round away


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A schedule and what the law says of it.

    Attributes:
        peak_lr: rate of the plateau.
        decay: shape of the cooldown, by name.
        fraction: length of the cooldown as a fraction of the budget.
        start: updates made before the cooldown.
        loss: after the last update.
        difference: `loss` minus that of the best candidate.
        half: half of the width of the 95 % interval of `difference`; nan where the law's errors are not known.
    """

    peak_lr: float
    decay: str
    fraction: float
    start: int
    loss: float
    difference: float
    half: float

    @property
    def alike(self) -> bool:
        """Whether 0 lies in the interval of the difference to the best."""
        return self.difference <= self.half or self.difference == 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Candidates for one budget.

    Attributes:
        law: name of the law.
        steps: the budget, updates of the whole run.
        warmup: updates of the warmup of every candidate.
        after: updates that every candidate makes before its cooldown.
        floor: final rate over the peak; None where each shape has its own.
        candidates: by increasing loss, so the first is the best.
        low: lower end of the 95 % interval of the best one's loss; it holds `missed`.
        high: upper end, likewise.
        missed: how far the law was off on curves that it was not fitted to, as a standard deviation of the loss.
        notes: what a reader must know.
    """

    law: str
    steps: int
    warmup: int
    after: int
    floor: float | None
    candidates: tuple[Candidate, ...]
    low: float
    high: float
    missed: float
    notes: tuple[str, ...]

    @property
    def best(self) -> Candidate:
        """The candidate with the lowest loss."""
        return self.candidates[0]

    @property
    def alike(self) -> tuple[Candidate, ...]:
        """The best and all that the fit cannot tell from it."""
        return tuple(c for c in self.candidates if c.alike)

    @property
    def best_of_each(self) -> tuple[Candidate, ...]:
        """The best candidate of every shape and rate, by increasing loss."""
        best: dict[tuple[float, str], Candidate] = {}
        for c in self.candidates:
            best.setdefault((c.peak_lr, c.decay), c)
        return tuple(best.values())


def plan_cooldown(
    law: FittedLaw,
    steps: int,
    *,
    shapes: Sequence[str] = PLAN_SHAPES,
    fractions: Sequence[float] | None = None,
    peak_lrs: Sequence[float] | None = None,
    warmup: int | None = None,
    after: int = 0,
    floor: float | None = None,
) -> Plan:
    """Compare WSD schedules over a budget by the final losses that a law gives them.

    Args:
        law: fitted, or known with given parameters, which have no intervals.
        steps: updates of the whole run.
        shapes: names of decay shapes.
        fractions: lengths of the cooldown as fractions of `steps`; None takes those of `FRACTIONS` that fit and the
            longest possible one.
        peak_lrs: base rates. None takes the rate of the fit or, where the law was fitted on several, seven from the
            smallest to the largest. Rates beyond those have to be named, and are noted as an extrapolation.
        warmup: updates; None takes the shortest warmup among the fitted curves.
        after: updates that are already made at the stable rate: no cooldown starts before.
        floor: final rate as a fraction of the peak; None takes each shape's own.

    Raises:
        InputError: values out of range, a cooldown that does not fit, several rates with `after`, or a law with given
            parameters where `peak_lrs` is left out.
    """
    check_steps("steps", steps, low=3, what="updates of the whole run")
    check_int("after", after, low=0, what="updates made already")
    if after > steps - 2:
        raise InputError(f"{after} of the {steps} updates are made, and a cooldown needs at least 2; use a longer run")
    warmup = fitted_warmup(law, steps) if warmup is None else warmup
    check_int("warmup", warmup, low=0, high=steps - 2, what=f"updates, of {steps} with at least 2 left")
    notes: list[str] = []
    rates = _rates(law, peak_lrs, after, notes)
    shares = _fractions(fractions, steps, max(after, warmup), after)
    kept = {} if floor is None else {"floor": floor}
    decays = {name: make_shape(name, **kept) for name in shapes}
    if not decays:
        raise InputError("a plan needs at least one shape, e.g. linear")
    schedules = [
        WSD(peak_lr=rate, steps=steps, warmup=warmup, cooldown=share, shape=shape)
        for rate in rates
        for shape in decays.values()
        for share in shares
    ]
    candidates = _candidates(law, schedules)
    best = next(s for s, c in zip(schedules, candidates, strict=True) if c.difference == 0.0)
    notes += _at_the_ends(best, rates, shares, fractions is None) + beyond_fit(law, rates, steps)
    notes += _without_errors(law)
    ends = law.predict(best, [steps])
    return Plan(
        law=law.name,
        steps=steps,
        warmup=warmup,
        after=after,
        floor=floor,
        candidates=tuple(sorted(candidates, key=lambda c: c.loss)),
        low=float(ends.low[0]),
        high=float(ends.high[0]),
        missed=law.discrepancy * float(ends.loss[0]),
        notes=tuple(notes),
    )


def _candidates(law: FittedLaw, schedules: Sequence[WSD]) -> list[Candidate]:
    """The candidate of each schedule, with its difference to the best."""
    found = [law.slopes(schedule, [schedule.total]) for schedule in schedules]
    loss = np.array([float(value[0]) for value, _ in found])
    slopes = np.array([slope[0] for _, slope in found])
    best = int(np.argmin(loss))
    half = _halves(law, slopes - slopes[best])
    return [
        Candidate(
            peak_lr=s.peak_lr,
            decay=s.shape.name,
            fraction=s.cooldown,
            start=s.total - round(s.cooldown * s.total),
            loss=float(loss[k]),
            difference=float(loss[k] - loss[best]),
            half=float(half[k]),
        )
        for k, s in enumerate(schedules)
    ]


def _halves(law: FittedLaw, apart: FloatArray) -> FloatArray:
    if math.isnan(law.scale):
        return np.full(len(apart), math.nan)
    variance = np.einsum("ki,ij,kj->k", apart, law.covariance, apart)
    return np.asarray(NORMAL * np.sqrt(np.maximum(variance, 0.0)))


def fitted_warmup(law: FittedLaw, steps: int) -> int:
    """The shortest warmup among the fitted curves, 0 for a law with given parameters.

    Raises:
        InputError: it does not leave 2 of the `steps` updates.
    """
    warmup = int(law.seen.get("warmup", 0))
    if warmup > steps - 2:
        raise InputError(
            f"the warmup of the fitted curves is {warmup} updates, which a run of {steps} has no room for; give its "
            f"warmup (0 for none), or use a longer run"
        )
    return warmup


# --- what is compared ------------------------------------------------------------------------------------------------
def _rates(law: FittedLaw, given: Sequence[float] | None, after: int, notes: list[str]) -> list[float]:
    fitted = [float(rate) for rate in law.seen.get("peak_lrs", ())]
    told = ", ".join(f"{rate:g}" for rate in fitted)
    if given is not None:
        rates = [check_number("the base rate", rate, low=0.0, open_low=True) for rate in dict.fromkeys(given)]
    elif not fitted:
        raise InputError(f"this law {law.name!r} was not fitted to curves, so a plan needs the base rate (--lr)")
    elif after and len(fitted) > 1:
        raise InputError(f"the law was fitted at the base rates {told}; say which one the run so far has had (--lr)")
    elif len(fitted) > 1:
        inner = np.geomspace(fitted[0], fitted[-1], _RATES)[1:-1]
        rates = sorted({fitted[0], *(float(f"{rate:.3g}") for rate in inner), fitted[-1]})
        notes.append(f"base rates are compared from {fitted[0]:g} to {fitted[-1]:g}, the fitted ones")
    else:
        rates = fitted
        if not after:
            notes.append(f"fitted at the one base rate {told}: the law cannot tell the best (--lr compares others)")
    if not rates:
        raise InputError("a plan needs at least one base rate, e.g. 0.001")
    if after and len(rates) > 1:
        raise InputError(f"a run that is under way has one base rate, got {len(rates)}; give the one it has had")
    return rates


def _fractions(given: Sequence[float] | None, steps: int, first: int, after: int) -> list[float]:
    """Fractions of the budget, those of the default that fit and the longest, or the given ones if they fit."""
    left = steps - first
    if given is None:
        of = left if after else steps
        lengths = {round(share * of) for share in FRACTIONS} | {left}
        return [n / steps for n in sorted(lengths) if 2 <= n <= left]
    if not given:
        raise InputError("a plan needs at least one fraction, e.g. 0.2")
    for share in given:
        n = round(check_number("a cooldown", share, low=0.0, high=1.0, open_low=True, what="a fraction") * steps)
        if not 2 <= n <= left:
            raise InputError(
                f"a cooldown of {share:g} of {steps} updates takes {n} of them, but it must have from 2 to {left}, "
                f"those after the {first} of the {'run so far' if first == after else 'warmup'}"
            )
    return sorted(set(given))


# --- notes -----------------------------------------------------------------------------------------------------------
def _at_the_ends(best: WSD, rates: Sequence[float], shares: Sequence[float], longest_is_all: bool) -> list[str]:
    notes = []
    if len(rates) > 1 and best.peak_lr in (min(rates), max(rates)):
        end = "smallest" if best.peak_lr == min(rates) else "largest"
        notes.append(f"the best base rate is the {end} one compared; one beyond may be better (--lr)")
    if len(shares) > 1 and best.cooldown == shares[0]:
        notes.append("the best cooldown is the shortest one compared; a shorter one may be better (--fractions)")
    elif len(shares) > 1 and best.cooldown == shares[-1]:
        tell = "starts at once: there is no longer one" if longest_is_all else "is the longest one compared"
        notes.append(f"the best cooldown {tell}")
    return notes


def beyond_fit(law: FittedLaw, peak_lrs: Sequence[float], steps: int) -> list[str]:
    """A sentence for each way in which runs of these peak rates and updates lie beyond the fitted ones."""
    notes = []
    fitted = law.seen.get("peak_lrs", ())
    factor = max(max(peak_lrs) / fitted[-1], fitted[0] / min(peak_lrs)) if fitted else 1.0
    if factor > 1.0 + _SAME:
        told = ", ".join(f"{rate:g}" for rate in fitted)
        notes.append(
            f"an extrapolation: the peak rate is up to {factor:.3g} times beyond the fitted {told}, and the intervals "
            f"do not know what that costs"
        )
    if fitted and steps > law.seen["updates"]:
        times = steps / law.seen["updates"]
        notes.append(f"an extrapolation: the run is {times:.3g} times as long as the longest fitted one")
    left_out = law.fit_options.get("skip", 0.0) * law.seen.get("updates", 0)
    if fitted and steps * max(peak_lrs) < left_out * fitted[-1]:
        notes.append("an extrapolation: the run ends in the part of the fitted runs that the fit left out")
    return notes


def _without_errors(law: FittedLaw) -> list[str]:
    if math.isnan(law.scale):
        return ["the parameters of the law were given, so there are no intervals"]
    unknown = [name for name, error in law.errors.items() if math.isnan(error)]
    return [f"the intervals take {', '.join(unknown)} as exact: the fit has no error there"] if unknown else []
