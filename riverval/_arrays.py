"""Checks of arrays of numbers, shared by the formulas of the core and by the toy room."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._checks import LARGEST, check_number
from ._typing import ArrayLike, FloatArray, IntArray
from .errors import InputError


def check_values(
    name: str, value: Any, *, low: float = -LARGEST, high: float = LARGEST, open_low: bool = False, what: str = ""
) -> FloatArray:
    """A number or an array of numbers in a range, as an array of the same shape.

    Raises:
        InputError: not numbers, not finite, or outside the range (which the message states with the first offender).
    """
    if np.ndim(value) == 0:
        number = value.item() if isinstance(value, np.ndarray) else value
        return np.asarray(check_number(name, number, low=low, high=high, open_low=open_low, what=what))
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers, got {value!r}") from None
    inside = (numbers > low if open_low else numbers >= low) & (numbers <= high)
    if not inside.all():
        check_number(name, float(numbers[~inside].flat[0]), low=low, high=high, open_low=open_low, what=what)
    return numbers


def check_generator(rng: Any) -> np.random.Generator:
    """The source of random numbers, as NumPy makes it.

    Raises:
        InputError: anything else, a seed or torch's generator among it.
    """
    if not isinstance(rng, np.random.Generator):
        made = f"np.random.default_rng({rng})" if isinstance(rng, int) else "np.random.default_rng(seed)"
        raise InputError(f"rng must be a numpy.random.Generator, such as {made}, got {rng!r}")
    return rng


def check_curvature(value: ArrayLike) -> FloatArray:
    """Curvatures of hill directions: numbers above 0, of any shape."""
    h = np.asarray(value, dtype=np.float64)
    if not np.all((h > 0) & (h <= LARGEST)):
        raise InputError(f"curvature must be > 0 and at most {LARGEST:g}, got {value!r}")
    return h


def check_noise(value: ArrayLike) -> FloatArray:
    """Standard deviation of the gradient noise: one number, or one for each coordinate."""
    return check_values("sigma", value, low=0.0, what="standard deviation of the gradient noise")


def check_rates(lr: ArrayLike) -> FloatArray:
    """The rate of each update, shape (T,): finite and at least 0."""
    try:
        rates = np.asarray(lr, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"lr must be a row of rates, one for each update, got {lr!r}") from None
    if rates.ndim != 1:
        raise InputError(f"lr must be a row of rates, one for each update, got the shape {rates.shape}")
    bad = ~(np.isfinite(rates) & (rates >= 0))
    if bad.any():
        t = int(np.argmax(bad))
        raise InputError(f"lr must be finite rates of at least 0, got {rates[t]:g} for update {t}")
    return rates


def check_states(states: ArrayLike, total: int) -> IntArray:
    """State numbers of a run of `total` updates: increasing, in 0..total.

    Raises:
        InputError: anything else.
    """
    asked = check_values("states", states)
    if asked.ndim != 1 or not asked.size or asked[0] < 0 or asked[-1] > total or np.any(np.diff(asked) <= 0):
        raise InputError(f"states must be increasing numbers in 0..{total}, got {states!r}")
    if np.any(asked % 1):
        raise InputError(f"states must be whole numbers, got {asked[asked % 1 > 0][0]:g} among them; round them")
    return asked.astype(np.int64)
