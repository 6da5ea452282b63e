"""Predictions as objects: a statement, where it holds, how it is measured, and a verdict whose rule was fixed before.

A measurement returns outcomes: in each, a number that the theory gives in closed form, and the same number found
without that closed form, by simulation (with its standard error) or by other numerics (with an allowance). The rules:

* "=": measured and theory differ by at most LIMIT errors + allowance. An allowance is there where the theory speaks of
  leading order or of a limit; it is the size of what was left out, said in `because`, and known beforehand.
* ">" and "<": beyond the theory by more than LIMIT errors; within them nothing is decided.
* ">=" and "<=": a bound; not crossed by more than LIMIT errors + allowance.

A prediction `must_fail` where it states what somebody might expect, outside the range in which it is true: it passes
only if the expectation is refuted, that is crossed by more than LIMIT errors.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_number
from .._typing import ArrayLike, FloatArray
from ..errors import InputError
from ..schedules import Schedule
from ..theory import stationary_variance
from ._loss import Loss
from .simulate import UnstableWarning, simulate_many

LIMIT = 4.0
"""Standard errors that are allowed: of 150 right predictions, one in a hundred runs loses one."""

RELATIONS = ("=", "<", ">", "<=", ">=")
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
FAILS_AS_PREDICTED, DOES_NOT_FAIL = "fails as predicted", "does not fail"

Parameters = Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """One number of the theory beside the same number measured.

    Args:
        quantity: what the number is.
        theory: the closed form's value, or the bound.
        measured: the value found.
        error: standard error of `measured`; 0 where nothing is random.
        allowance: deviation allowed besides, in the units of `measured`.
        because: what the allowance stands for.
        relation: how `measured` relates to `theory` if the prediction is true, one of `RELATIONS`.

    Raises:
        InputError: an unknown relation, a negative error or allowance, or an equality without either.
    """

    quantity: str
    theory: float
    measured: float
    error: float = 0.0
    allowance: float = 0.0
    because: str = ""
    relation: str = "="

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise InputError(f"relation must be one of {', '.join(RELATIONS)}, got {self.relation!r}")
        for name in ("error", "allowance"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} of {self.quantity!r} must be at least 0, got {getattr(self, name)!r}")
        if self.relation == "=" and not (self.error or self.allowance):
            raise InputError(f"{self.quantity!r} needs an error or an allowance to be compared for equality")
        if self.allowance and not self.because:
            raise InputError(f"the allowance of {self.quantity!r} needs a reason")

    @property
    def z(self) -> float:
        """Deviation in standard errors; nan where nothing is random."""
        return (self.measured - self.theory) / self.error if self.error > 0 else math.nan

    def verdict(self, limit: float = LIMIT) -> str:
        """`HOLDS`, `FAILS` or `UNDECIDED` by the rules of this module."""
        gap, doubt = self.measured - self.theory, limit * self.error
        if not math.isfinite(gap + doubt):
            return FAILS
        if self.relation == "=":
            return HOLDS if abs(gap) <= doubt + self.allowance else FAILS
        beyond = gap if self.relation[0] == ">" else -gap  # how far on the side that is predicted
        if self.relation in (">=", "<="):
            return HOLDS if beyond >= -doubt - self.allowance else FAILS
        return HOLDS if beyond > doubt else FAILS if beyond < -doubt else UNDECIDED


@dataclass(frozen=True)
class Span:
    """The values a parameter may take, for which the prediction is claimed; `default` is the one that is checked.

    Args:
        default, low, high: numbers, low <= default <= high.
        what: the parameter in words.
        whole: only whole numbers.
    """

    default: float
    low: float
    high: float
    what: str
    whole: bool = False

    def __post_init__(self) -> None:
        check_number("default", self.default, low=self.low, high=self.high, what=self.what)


@dataclass(frozen=True)
class Effort:
    """How much work a measurement may be: the numbers of samples are multiplied by `factor`."""

    name: str
    factor: float


QUICK, ALL = Effort("quick", 1.0), Effort("all", 10.0)


class Lab:
    """What a measurement works with: randomness, the effort, and the simulation.

    Args:
        seeds: of the measurement; each simulation gets a child of its own.
        effort: multiplies the numbers of samples.
    """

    def __init__(self, seeds: np.random.SeedSequence, effort: Effort = QUICK) -> None:
        self._seeds = seeds
        self._effort = effort

    @property
    def thorough(self) -> bool:
        """Whether there is time for settings that cost many updates."""
        return self._effort.factor >= ALL.factor

    def samples(self, number: int) -> int:
        """That many samples times the effort, at least 16."""
        return max(round(number * self._effort.factor), 16)

    def seed(self) -> np.random.SeedSequence:
        """A new seed; generators made from the same one see the same noise, for paired comparisons."""
        return self._seeds.spawn(1)[0]

    def simulate(self, loss: Loss, schedule: Schedule, **options: Any) -> xr.Dataset:
        """`riverval.toy.simulate`: see `compare`."""
        return self.compare(loss, [schedule], **options)[0]

    def compare(
        self, loss: Loss, schedules: Sequence[Schedule], *, seed: np.random.SeedSequence | None = None, **options: Any
    ) -> list[xr.Dataset]:
        """`riverval.toy.simulate_many` with a seed of its own, or the one given; rates may be unstable on purpose.

        Raises:
            KeyboardInterrupt: the run was interrupted, of which `simulate_many` itself would return a part.
        """
        seeds = self.seed() if seed is None else seed
        # A copy: a simulation spawns streams from its seed, and would spawn others from one that was used before.
        rng = np.random.default_rng(np.random.SeedSequence(seeds.entropy, spawn_key=seeds.spawn_key))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnstableWarning)
            found = simulate_many(loss, schedules, rng=rng, **options)
        if any(ds.attrs["status"] == "interrupted" for ds in found):
            raise KeyboardInterrupt
        return found

    def walk(self, loss: Loss, schedule: Schedule, start: FloatArray, *, sigma: float, every: int) -> FloatArray:
        """The iterates of SGD themselves, which `simulate` does not keep: a plain loop, for small runs.

        Args:
            start: (replicates, dim).
            sigma: standard deviation of isotropic gradient noise.
            every: keep the states 0, every, 2 every, ...

        Returns:
            The kept states, (states, replicates, dim).
        """
        rng = np.random.default_rng(self.seed())
        w, kept = np.array(start, dtype=np.float64), [np.array(start, dtype=np.float64)]
        for t, lr in enumerate(schedule.values().tolist(), start=1):
            w = w - lr * (loss.gradient(w) + sigma * rng.standard_normal(w.shape))
            if t % every == 0:
                kept.append(w)
        return np.stack(kept)

    def stationary(self, curvatures: ArrayLike, lr: float, sigma: float, replicates: int) -> FloatArray:
        """Starts at x = 0 between hills where SGD has settled, (replicates, 1 + m)."""
        spread = np.sqrt(stationary_variance(lr, curvatures, sigma))
        draws = np.random.default_rng(self.seed()).standard_normal((replicates, spread.size))
        return np.concatenate([np.zeros((replicates, 1)), spread * draws], axis=1)


Measure = Callable[[Parameters, Lab], Sequence[Outcome]]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One prediction of the theory.

    Args:
        name: as in the documentation, e.g. "P-HILL.1"; a letter behind it tells apart the parts of one prediction.
        statement: what is predicted, in a line.
        formula: the closed form.
        source: arXiv number of the paper it comes from, or "derived".
        validity: where it is claimed to hold, in words.
        spans: the same as ranges of the parameters.
        valid: what the parameters must satisfy besides.
        measure: from parameters and a `Lab` to outcomes, of which all must hold.
        must_fail: the statement is an expectation which the theory says is wrong here.
        slow: seconds rather than tenths of one.
    """

    name: str
    statement: str
    formula: str
    source: str
    validity: str
    measure: Measure = field(repr=False)
    spans: Mapping[str, Span] = field(default_factory=dict)
    valid: Callable[[Parameters], bool] = field(default=lambda parameters: True, repr=False)
    must_fail: bool = False
    slow: bool = False

    @property
    def defaults(self) -> dict[str, float]:
        """The parameters that are checked."""
        return {name: span.default for name, span in self.spans.items()}

    def check(self, parameters: Parameters | None = None, *, seed: int = 0, effort: Effort = QUICK) -> Finding:
        """Measure it. The seed is mixed with the name, so one prediction alone gives what it gives among all.

        Args:
            parameters: values of all or some `spans`; the rest take their defaults.

        Raises:
            InputError: an unknown parameter, or a value outside the range of validity.
        """
        values = self.defaults | dict(parameters or {})
        for name, value in values.items():
            if name not in self.spans:
                raise InputError(f"{self.name} has no parameter {name!r}; it has: {', '.join(self.spans) or 'none'}")
            check_number(name, value, low=self.spans[name].low, high=self.spans[name].high, what=self.spans[name].what)
        if not self.valid(values):
            raise InputError(f"{self.name} is claimed where {self.validity}, which {values} does not satisfy")
        seeds = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(self.name.encode()),))
        return Finding(self, values, tuple(self.measure(values, Lab(seeds, effort))))


@dataclass(frozen=True)
class Finding:
    """What one measurement of a prediction found."""

    prediction: Prediction
    parameters: Parameters
    outcomes: tuple[Outcome, ...]

    def verdicts(self, limit: float = LIMIT) -> list[str]:
        """One verdict for each outcome, in the words of the prediction's kind."""
        found = [outcome.verdict(limit) for outcome in self.outcomes]
        if self.prediction.must_fail:
            return [FAILS_AS_PREDICTED if v == FAILS else DOES_NOT_FAIL if v == HOLDS else v for v in found]
        return found

    def as_expected(self, limit: float = LIMIT) -> bool:
        """Whether every outcome holds, or, where it must fail, fails."""
        wanted = FAILS_AS_PREDICTED if self.prediction.must_fail else HOLDS
        return all(v == wanted for v in self.verdicts(limit))


def registrar_of(registry: dict[str, Prediction]) -> Callable[..., Callable[[Measure], Measure]]:
    """A decorator ``@predicts("P-HILL.1", statement=..., ...)`` that makes a function the measurement of a prediction.

    Raises:
        InputError: the name is taken.
    """

    def predicts(name: str, **described: Any) -> Callable[[Measure], Measure]:
        def add(measure: Measure) -> Measure:
            if name in registry:
                raise InputError(f"there is a prediction {name!r} already")
            registry[name] = Prediction(name=name, measure=measure, **described)
            return measure

        return add

    return predicts


# --- what measurements share -----------------------------------------------------------------------------------------
def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Mean of independent samples and its standard error; values (n,), n >= 2."""
    samples = np.asarray(values, dtype=np.float64)
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(samples.size))


def ratio_and_error(above: ArrayLike, below: ArrayLike) -> tuple[float, float]:
    """Ratio of two means over the same samples and its standard error, to first order; both (n,)."""
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    ratio = float(a.mean() / b.mean())
    return ratio, mean_and_error(a - ratio * b)[1] / abs(float(b.mean()))


def variance_and_error(values: ArrayLike) -> tuple[float, float]:
    """Variance of independent samples and its standard error by the fourth moment; values (n,)."""
    samples = np.asarray(values, dtype=np.float64)
    squares = (samples - samples.mean()) ** 2
    scale = samples.size / (samples.size - 1)
    return float(squares.mean() * scale), mean_and_error(squares)[1]
