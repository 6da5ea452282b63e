r"""What every law of loss curves is: nonlinear parameters, coefficients, and columns that connect them.

A law predicts the loss after n updates from the rates lr[0..n-1] alone,

    L(n) = sum_j c_j X_j(n; theta),        c_j >= 0,

with a few nonlinear parameters theta and coefficients c that enter linearly. A subclass says what these are and how the
columns X follow from the schedule; `riverval.law_fitting` does the rest. S_n = sum_{t<n} lr[t] is intrinsic time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ._arrays import check_rates, check_states
from ._checks import check_number, check_options, make_plain
from ._registry import registrar
from ._typing import ArrayLike, FloatArray, IntArray, NDArray
from .errors import InputError

LAWS: dict[str, type[Law]] = {}
"""Name -> class of every law; `riverval.laws` fills it."""

register = registrar(LAWS)


@dataclass(frozen=True)
class Theta:
    """A nonlinear parameter: its range, where fits start, and the coordinate in which they search.

    Attributes:
        name: its name among the law's parameters.
        low: smallest value; a fit that ends there says so.
        high: largest value, likewise.
        starts: values that the fit combines with those of the other parameters.
        scale: log searches in log(theta), linear in theta, keep in log(1 - theta), for shares kept from update to
            update.
        prior: what is known before: a value, and a standard deviation in the search coordinate. None: nothing.
    """

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    scale: str = "log"
    prior: tuple[float, float] | None = None

    def search(self, value: float) -> float:
        """The coordinate of a value; increasing or decreasing, finite in the range."""
        if self.scale == "linear":
            return value
        return float(np.log(value if self.scale == "log" else 1.0 - value))

    def value(self, search: float) -> float:
        """The value at a coordinate; at the coordinate of an end of the range, that end without rounding."""
        value = float(search)
        if self.scale != "linear":
            value = float(np.exp(search) if self.scale == "log" else -np.expm1(search))
        return next((end for end in (self.low, self.high) if math.isclose(value, end, rel_tol=1e-12)), value)

    def slope(self, search: float) -> float:
        """d value / d search."""
        if self.scale == "linear":
            return 1.0
        return float(np.exp(search) * (1.0 if self.scale == "log" else -1.0))

    def bounds(self) -> tuple[float, float]:
        """The range in search coordinates."""
        ends = self.search(self.low), self.search(self.high)
        return min(ends), max(ends)


@dataclass(frozen=True, eq=False)
class Track:
    """A schedule up to the last asked state.

    Attributes:
        lr: rates of the updates, shape (T,), where T is the last asked state: what comes later cannot matter.
        steps: asked states, increasing, shape (n,).
        S: intrinsic time at these states, shape (n,).
    """

    lr: FloatArray
    steps: IntArray
    S: FloatArray

    @classmethod
    def of(cls, lr: ArrayLike, steps: ArrayLike) -> Track:
        """Check a schedule and the asked states.

        Raises:
            InputError: bad rates, or states that are not increasing numbers in 1..T.
        """
        rates = check_rates(lr)
        states = check_states(steps, rates.size)
        if states[0] < 1:
            raise InputError("a law gives the loss after 1 update at the earliest, got the state 0; leave it out")
        used = rates[: states[-1]]
        return cls(used, states, np.cumsum(used)[states - 1])

    @property
    def now(self) -> FloatArray:
        """Rate of the last update before each state, shape (n,)."""
        return self.lr[self.steps - 1]


@dataclass(frozen=True, eq=False)
class Prediction:
    """A predicted curve.

    Attributes:
        steps: updates done, shape (n,).
        loss: the law's value, shape (n,).
        low: lower end of the 95 % interval of one measurement, shape (n,); nan where the law's errors are not known or
            its value is not above 0.
        high: upper end, likewise.
    """

    steps: IntArray
    loss: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, kw_only=True)
class Law:
    """Base of the laws; the fields of a subclass are its options.

    Attributes:
        name: name in `LAWS`.
        formula: one line for people.
        thetas: the nonlinear parameters.
        coefficients: names of the linear ones, all >= 0, in the order of the columns; L0 and A, the river's level and
            amplitude, are what a transfer to another run refits.
        known: what is known of coefficients before: a value and a standard deviation, by name.
        units: of the parameters that have any, in words, in terms of loss and rate.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    thetas: ClassVar[tuple[Theta, ...]]
    coefficients: ClassVar[tuple[str, ...]]
    known: ClassVar[Mapping[str, tuple[float, float]]] = {}
    units: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        self._check()
        make_plain(self)

    def _check(self) -> None:
        """Validate the options."""

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """Names of all parameters: coefficients, then nonlinear ones."""
        return (*cls.coefficients, *(t.name for t in cls.thetas))

    def options(self) -> dict[str, Any]:
        """The options, JSON-ready."""
        return asdict(self)

    def prepare(self, track: Track) -> Any:
        """Whatever follows from a schedule alone and is worth computing once."""
        return track

    def columns(self, prepared: Any, theta: Sequence[float]) -> FloatArray:
        """X, shape (n, coefficients), from what `prepare` returned."""
        raise NotImplementedError

    def evaluate(self, lr: ArrayLike, steps: ArrayLike, values: Mapping[str, float]) -> FloatArray:
        """The loss after each of `steps` updates, shape (n,).

        Args:
            lr: rate of every update, shape (T,).
            steps: updates done, increasing, in 1..T.
            values: every parameter by name.

        Raises:
            InputError: a bad schedule, a parameter that is missing, unknown or out of range, or a state at which the
                law has no value.
        """
        c, theta = self.split(values)
        X = self.columns(self.prepare(Track.of(lr, steps)), theta)
        loss: FloatArray = X @ c
        return loss

    def split(self, values: Mapping[str, float]) -> tuple[FloatArray, list[float]]:
        """Coefficients and nonlinear parameters from values by name, checked."""
        self.check_values(values)
        missing = [name for name in self.parameters() if name not in values]
        if missing:
            raise InputError(f"the law {self.name!r} also needs a value of {', '.join(missing)}")
        return np.array([values[c] for c in self.coefficients]), [float(values[t.name]) for t in self.thetas]

    def check_values(self, values: Mapping[str, float]) -> None:
        """Refuse values of unknown parameters, and those out of range."""
        check_options(f"the law {self.name!r}", values, self.parameters())
        ranges = {t.name: (t.low, t.high) for t in self.thetas}
        for name, value in values.items():
            low, high = ranges.get(name, (0.0, np.inf))
            check_number(name, value, low=low, high=high, what=f"of the law {self.name!r}")


def power_of_time(S: FloatArray, exponent: float) -> FloatArray:
    """S^-exponent, the river of most laws.

    Raises:
        InputError: a state before which every rate is 0, where the power is infinite.
    """
    if not np.all(S > 0):
        raise InputError(
            "every rate before the first asked state is 0, where a power of the cumulative rate is infinite; ask for "
            "later states"
        )
    power: FloatArray = S**-exponent
    return power


REST = 1e-12
"""A rate below this share of the largest one before it counts as rest: the law takes it as 0."""


def moves(lr: FloatArray) -> NDArray[np.bool_]:
    """Which updates move: those whose rate is above 0 and not `REST`, shape (T,)."""
    moving: NDArray[np.bool_] = lr > REST * np.maximum.accumulate(lr)
    return moving


def exponential_rates(track: Track, spacing: float) -> FloatArray:
    """Relaxation rates 0 and exp(spacing k), k whole, that resolve a power-law kernel for every lag between two states.

    The slowest above 0 decays by less than 1e-4 over the whole run, the fastest is gone after the smallest rate that
    moves. They lie on one grid for all schedules, so that two runs with a common start get the same modes for it.

    Raises:
        InputError: every rate is 0.
    """
    first = slowest_mode(track.S[-1], spacing)
    last = np.ceil(np.log(30.0 / track.lr[moves(track.lr)].min()) / spacing)
    return np.append(0.0, np.exp(spacing * np.arange(first, last + 1)))


def slowest_mode(span: float, spacing: float) -> int:
    """k of the slowest mode exp(spacing k) above 0 of a run of intrinsic time `span`.

    It decays by less than 1e-4 over the run, and over one unit of time: a kernel of a small C is resolved in short
    runs, too, where all that is left of it is its value at 0.

    Raises:
        InputError: every rate is 0.
    """
    if not span > 0:
        raise InputError("every rate is 0; a law needs a schedule that moves")
    return math.floor(math.log(1e-4 / max(span, 1.0)) / spacing)


_POINTS = 1000  # states of a prediction for which none are asked


def even_steps(lr: FloatArray) -> IntArray:
    """At most `_POINTS` states that are evenly spaced, end at the last and follow a rate above 0, if there is any."""
    if not lr.size:
        raise InputError("a schedule needs at least one update, got none")
    count = min(lr.size, _POINTS)
    states = np.arange(1, count + 1) * lr.size // count
    return states[states > np.argmax(lr > 0)]
