"""One toy experiment as a value: what the simulation runs and the exact recursions solve.

An optimizer on an analytic loss with gradient noise, by the step convention of `riverval.schedules`: update t = 0..T-1
takes the gradient at w[t], adds the noise, and makes w[t+1] with the rate lr[t]. For SGD with isotropic noise,

    w[t+1] = w[t] - lr[t] (gradient(w[t]) + sigma xi[t]),   xi[t] ~ N(0, I) independent,   t = 0, ..., T-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._checks import LARGEST, check_number, check_steps
from .._typing import FloatArray, IntArray
from ..errors import InputError
from ..schedules import Schedule
from ._loss import Loss
from .losses import StraightRiver
from .noise import Isotropic, Noise
from .optimizers import SGD, Average, Optimizer

STATIONARY = "stationary"
DEFAULT_STATES = 400

_NEEDED = ("loss", "schedule", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A loss, a schedule, the noise, the optimizer, the start, and which states are recorded.

    Args:
        loss: any analytic loss.
        schedule: gives lr[t] and the number of updates T.
        sigma: standard deviation of isotropic gradient noise in each coordinate, >= 0; or
        noise: any model of the noise, instead.
        optimizer: makes the updates; SGD if not given.
        average: a running average of the iterates to evaluate beside them, if wanted.
        quantiles: record mean, standard error and these quantiles over the replicates in the place of each of them, so
            that what is recorded does not grow with their number; increasing, from 0 to 1.
        start: state 0, one number for each coordinate; or a number, the initial value of every hill coordinate, with
            the river coordinates as in ``loss.start()``; or "stationary" (straight river and SGD only): each hill
            coordinate drawn from the law to which SGD at the schedule's *peak* rate settles,
            N(0, lr sigma^2 / (h (2 - lr h))), whatever law the noise has. None: ``loss.start()``.
        every: record every so many updates, besides the ends of the run and of each cooldown; None records about
            400 states.

    Raises:
        InputError: a value out of range, noise that does not fit the loss, or a stationary start where none is known.
    """

    loss: Loss
    schedule: Schedule
    sigma: float | None = None
    noise: Noise | None = None
    optimizer: Optimizer = field(default_factory=SGD)
    average: Average | None = None
    quantiles: tuple[float, ...] | None = None
    start: float | str | tuple[float, ...] | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        if (self.sigma is None) == (self.noise is None):
            raise InputError("give either sigma, for isotropic noise, or noise, a model of it")
        for name, kind, maker in (
            ("loss", Loss, "make_loss"), ("schedule", Schedule, "make_schedule"), ("noise", Noise, "make_noise"),
            ("optimizer", Optimizer, "make_optimizer"), ("average", Average, "TailAverage or EMAAverage"),
        ):  # fmt: skip
            if not isinstance(given := getattr(self, name), kind) and (given is not None or name in _NEEDED):
                raise InputError(f"{name} must be what {maker} makes, got {given!r}")
        if self.every is not None:
            check_steps("every", self.every, low=1, what="updates between recorded states")
        self.model.scales(self.loss)  # refuses noise that does not fit
        if self.average is not None:
            self.average.weights(self.total)
        self._check_quantiles()
        self._check_start()

    def _check_quantiles(self) -> None:
        if self.quantiles is None:
            return
        for quantile in self.quantiles:
            check_number("quantiles", quantile, low=0.0, high=1.0, what="over the replicates")
        if not self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise InputError(f"quantiles must be increasing numbers such as (0.05, 0.5, 0.95), got {self.quantiles!r}")
        if self.average is not None:
            raise InputError("quantiles of an average of the iterates are not recorded; leave out one of the two")

    def _check_start(self) -> None:
        if self._stationary:
            if not (isinstance(self.loss, StraightRiver) and isinstance(self.optimizer, SGD)):
                raise InputError(
                    f"a {STATIONARY} start is known for SGD on a straight river only; give a number as start"
                )
            if self.instability():
                raise InputError(f"there is no stationary start: {self.instability()}; give a number as start")
        elif isinstance(self.start, str):
            raise InputError(f"start must be a number or {STATIONARY!r}, got {self.start!r}")
        elif isinstance(self.start, tuple):
            if len(self.start) != self.loss.dim:
                names = ", ".join(self.loss.coordinates)
                raise InputError(f"start must have {self.loss.dim} numbers, for {names}; got {len(self.start)}")
            for number in self.start:
                check_number("start", number, low=-LARGEST, high=LARGEST, what="of a coordinate")
        elif self.start is not None:
            check_number(
                "start", self.start, low=-LARGEST, high=LARGEST, what=f"of the hill coordinates, or {STATIONARY!r}"
            )

    @property
    def _stationary(self) -> bool:
        return isinstance(self.start, str) and self.start == STATIONARY  # an array would be compared one by one

    @property
    def model(self) -> Noise:
        """The model of the noise."""
        return self.noise if self.noise is not None else Isotropic(self.sigma)  # type: ignore[arg-type]

    @property
    def total(self) -> int:
        """Number of updates T."""
        return self.schedule.total

    @property
    def spacing(self) -> int:
        """Updates between recorded states."""
        return self.every or math.ceil(self.total / DEFAULT_STATES)

    def states(self) -> IntArray:
        """Numbers of the recorded states, increasing: 0, every, ..., T and both ends of each cooldown."""
        regular = np.arange(0, self.total + 1, self.spacing)
        return np.union1d(regular, list(self._ends())).astype(np.int64)

    def count_states(self) -> int:
        """Number of recorded states, without making them."""
        return self.total // self.spacing + 1 + sum(state % self.spacing > 0 for state in self._ends())

    def _ends(self) -> set[int]:
        """The states that are recorded whatever the spacing."""
        return {self.total, *(state for window in self.schedule.windows("cooldown") for state in window)}

    def start_moments(self) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of each coordinate of state 0; both of shape (dim,)."""
        mean = self.loss.start() if not isinstance(self.start, tuple) else np.array(self.start, dtype=np.float64)
        variance = np.zeros_like(mean)
        if self.start == STATIONARY:
            assert isinstance(self.loss, StraightRiver)
            h, lr = np.array(self.loss.curvatures), self.schedule.peak_lr
            scales = self.model.scales(self.loss)
            assert scales is not None
            mean = np.zeros_like(mean)
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a curvature next to nothing
                variance[1:] = lr * scales[1:] ** 2 / (h * (2.0 - lr * h))
        elif self.start is not None and not isinstance(self.start, tuple):
            mean[self.loss.river_dim :] = float(self.start)
        return mean, variance

    def instability(self) -> str:
        """Why the optimizer does not settle at the peak rate, or '' where it does: lr h below its limit for every h.

        The curvatures h are those of the start, where the loss is not quadratic.
        """
        scales = self.model.scales(self.loss)
        limit = self.optimizer.stability_limit(float(scales.max()) if scales is not None else math.inf)
        steepest = self._steepest()
        if not self.schedule.peak_lr * steepest >= limit:
            return ""
        return (
            f"the peak rate {self.schedule.peak_lr:g} does not settle at the curvature {steepest:g}, "
            f"whose limit is {limit:g}/h = {limit / steepest:g}"
        )

    def _steepest(self) -> float:
        """Largest second derivative at the start."""
        if isinstance(self.loss, StraightRiver):
            return max(self.loss.curvatures)
        mean = self.start_moments()[0]
        with np.errstate(all="ignore"):
            hessian = self.loss.hessian(mean)
        return float(np.linalg.eigvalsh(hessian)[-1]) if np.isfinite(hessian).all() else math.nan

    def config(self) -> dict[str, Any]:
        """A JSON-ready description."""
        start: Any = [float(x) for x in self.start] if isinstance(self.start, tuple) else self.start
        return {
            "loss": self.loss.to_dict(),
            "schedule": self.schedule.to_dict(),
            "noise": self.model.to_dict(),
            "optimizer": self.optimizer.to_dict(),
            "average": None if self.average is None else self.average.to_dict(),
            "quantiles": None if self.quantiles is None else [float(q) for q in self.quantiles],
            "start": float(start) if isinstance(start, int | float | np.number) else start,
            "every": int(self.spacing),
        }
