"""Argument checks shared by every room; each raises `InputError` with the value, the rule and the way out."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from .errors import InputError

T = TypeVar("T")

MOST_STEPS = 10**9
"""Updates of the longest run: the rates of one beyond it would take more than 8 GB."""


LARGEST = 1e100
"""Size of the largest number of an analytic setting: squares, and their product with a third one, are still finite."""


def suggest(name: object, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' for the nearest allowed name, or nothing where none is near."""
    near = difflib.get_close_matches(str(name).lower().replace("_", "-"), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, name: object, allowed: Iterable[str]) -> InputError:
    """The error for a `name` that is not among the `allowed` names of its `kind`."""
    names = list(allowed)
    return InputError(f"unknown {kind} {name!r}; choose one of: {', '.join(names)}.{suggest(name, names)}")


def pick(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """Look `name` up in a registry; an unknown name lists the allowed ones with the nearest match."""
    if not isinstance(name, str) or name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def check_options(owner: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse options that `owner` does not take, so that none is silently ignored."""
    names = list(allowed)
    for name in given:
        if name not in names:
            takes = ", ".join(names) if names else "no options"
            raise InputError(f"{owner} takes no option {name!r}; it takes: {takes}.{suggest(name, names)}")


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    what: str = "",
) -> float:
    """A finite real number in a range; returns it as float.

    Raises:
        InputError: not a number, not finite, or outside the range (which the message states).
    """
    rule = _range(low, high, open_low, open_high)
    described = f"{name} ({what})" if what else name
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{described} must be a number {rule}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # a whole number or fraction beyond the range of float
        number = math.inf
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if not math.isfinite(number) or below or above:
        raise InputError(f"{described} must be a finite number {rule}, got {value!r}")
    return number


def plain(value: Any) -> Any:
    """A number of another library (numpy, fractions) as int or float, which JSON can hold; else `value` itself.

    In tuples likewise.
    """
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    if type(value) in (bool, int, float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def make_plain(frozen: Any) -> None:
    """Make the numbers among the fields of a frozen dataclass `plain`, so that its `to_dict` is JSON-ready."""
    for f in fields(frozen):
        object.__setattr__(frozen, f.name, plain(getattr(frozen, f.name)))


def check_int(name: str, value: Any, *, low: int = 0, high: int | None = None, what: str = "") -> int:
    """A whole number in a range; returns it as int.

    Raises:
        InputError: not a whole number, or outside the range (which the message states).
    """
    rule = f"of at least {low}" if high is None else f"from {low} to {high}"
    described = f"{name} ({what})" if what else name
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{described} must be a whole number {rule}, got {value!r}")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise InputError(f"{described} must be a whole number {rule}, got {value!r}")
    return number


def check_steps(name: str, value: Any, *, low: int = 0, what: str = "updates") -> int:
    """A number of updates: whole, from `low` to `MOST_STEPS`; returns it as int.

    Raises:
        InputError: not a whole number, or outside the range (the message states the side that was left).
    """
    number = check_int(name, value, low=low, what=what)
    if number > MOST_STEPS:
        raise InputError(f"{name} ({what}) must be a whole number from {low} to {MOST_STEPS}, got {value!r}")
    return number


def _range(low: float, high: float, open_low: bool, open_high: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "(any finite value)"
    left, right = "(" if open_low or low == -math.inf else "[", ")" if open_high or high == math.inf else "]"
    return f"in {left}{low:g}, {high:g}{right}"
