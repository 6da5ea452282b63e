"""One toy experiment as a value: what the simulation runs and the exact recursion solves.

SGD on a river valley with white gradient noise, by the step convention of `riverval.schedules`:

    w[t+1] = w[t] - lr[t] (gradient(w[t]) + sigma xi[t]),   xi[t] ~ N(0, I) independent,   t = 0, ..., T-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import check_number, check_steps
from .._typing import FloatArray, IntArray
from ..errors import InputError
from ..schedules import Schedule
from .losses import LARGEST, StraightRiver

STATIONARY = "stationary"
DEFAULT_STATES = 400


def check_sigma(sigma: float) -> None:
    """The standard deviation of the gradient noise, wherever it is given.

    Raises:
        InputError: not a number from 0 to 1e100.
    """
    check_number("sigma", sigma, low=0.0, high=LARGEST, what="standard deviation of the gradient noise")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A loss, a schedule, the noise, the start, and which states are recorded.

    Args:
        loss: the valley; the river coordinate starts at 0.
        schedule: gives lr[t] and the number of updates T.
        sigma: standard deviation of the gradient noise in each coordinate, >= 0.
        start: initial value y0 of every hill coordinate, or "stationary": each drawn from the law to which SGD at the
            schedule's *peak* rate settles, N(0, lr sigma^2 / (h (2 - lr h))).
        every: record every so many updates, besides the ends of the run and of each cooldown; None records about
            400 states.

    Raises:
        InputError: a value out of range, or a stationary start where none exists (peak_lr h >= 2).
    """

    loss: StraightRiver
    schedule: Schedule
    sigma: float
    start: float | str = 1.0
    every: int | None = None

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        if self.every is not None:
            check_steps("every", self.every, low=1, what="updates between recorded states")
        if self.start != STATIONARY:
            if isinstance(self.start, str):
                raise InputError(f"start must be a number or {STATIONARY!r}, got {self.start!r}")
            check_number(
                "start", self.start, low=-LARGEST, high=LARGEST, what=f"of the hill coordinates, or {STATIONARY!r}"
            )
        elif self.instability():
            raise InputError(f"there is no stationary start: {self.instability()}; give a number as start")

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
        """Mean and variance of each hill coordinate of state 0; both of shape (m,)."""
        h = np.array(self.loss.curvatures)
        if self.start == STATIONARY:
            lr = self.schedule.peak_lr
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a curvature next to nothing
                return np.zeros_like(h), lr * self.sigma**2 / (h * (2.0 - lr * h))
        return np.full_like(h, float(self.start)), np.zeros_like(h)

    def instability(self) -> str:
        """Why SGD does not settle between the hills at the peak rate, or '' where it does (lr h < 2 for every h)."""
        steepest = max(self.loss.curvatures)
        if self.schedule.peak_lr * steepest < 2.0:
            return ""
        return (
            f"the peak rate {self.schedule.peak_lr:g} does not settle at the curvature {steepest:g}, "
            f"whose limit is 2/h = {2.0 / steepest:g}"
        )

    def config(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "loss": self.loss.to_dict(),
            "schedule": self.schedule.to_dict(),
            "sigma": float(self.sigma),
            "start": self.start if isinstance(self.start, str) else float(self.start),
            "every": self.spacing,
        }
