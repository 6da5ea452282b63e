"""Loss curves with the rate of every update, and what it takes to make one from a log.

A law that predicts the loss from the schedule needs every rate from the very first update on; a log has the rate at
some steps, often leaves out the warmup, and may start where a run was resumed. `rates_from_log` fills the gaps by
stated rules and refuses where the log does not say enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._arrays import check_rates
from ._checks import check_int, check_number
from ._typing import ArrayLike, FloatArray, IntArray
from .errors import InputError

__all__ = ["Curve", "LeftOut", "Source", "rates_from_log", "tidy_rows"]

FEWEST = 2
"""Points of the shortest curve."""

MOST = 10**8
"""Updates of the longest curve: more are tokens or samples that were taken for updates."""

_JUMP = 4.0  # a change this many times as steep as both neighbours is no part of a smooth decay
_CORNER = 0.05  # slopes with at most this ratio meet in a corner, as those of a plateau and a decay do
_VISIBLE = 1e-3  # smallest jump, as a share of the largest rate; below it are rounding errors


@dataclass(frozen=True, eq=False)
class Curve:
    """A measured loss curve.

    Attributes:
        name: what messages and tables call it.
        lr: rate of each update from the very first, the warmup included, shape (T,).
        steps: updates made before each measurement, increasing, in 1..T, shape (n,).
        loss: the measured losses, finite, shape (n,).
        final_loss: a loss measured once after the last update, on more data, so possibly with an offset from `loss`.
        facts: what the reader knew: JSON-plain values such as size, peak_lr, shape, cooldown, and `notes`, a list of
            everything that was repaired or left out.

    Raises:
        InputError: shapes that do not fit, fewer than two points, unsorted or duplicated steps, steps outside 1..T, or
            numbers that are not finite.

    >>> Curve("two", lr=[0.1, 0.1, 0.05], steps=[1, 3], loss=[2.0, 1.5]).total
    3
    """

    name: str
    lr: FloatArray
    steps: IntArray
    loss: FloatArray
    final_loss: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        told = f"curve {self.name!r}"
        try:
            lr = check_rates(self.lr)
        except InputError as error:
            raise InputError(f"{told}: {error}") from None
        if not lr.size:
            raise InputError(f"{told} has no updates; give the rate of every one from the first on")
        if not lr.any():
            raise InputError(f"{told} has the rate 0 in every update, which trains nothing; give the rates it had")
        columns, _ = tidy_rows(told, {"step": self.steps, "loss": self.loss})
        steps = columns["step"].astype(np.int64)
        if steps[0] < 1 or steps[-1] > lr.size:
            out = steps[0] if steps[0] < 1 else steps[-1]
            raise InputError(
                f"{told} has a loss after {out} updates and the rates of {lr.size}; steps must lie in 1..{lr.size}"
            )
        if self.final_loss is not None:
            object.__setattr__(self, "final_loss", check_number(f"final_loss of {told}", self.final_loss))
        for name, value in (("lr", lr), ("steps", steps), ("loss", columns["loss"])):
            kept = value.copy()
            kept.flags.writeable = False
            object.__setattr__(self, name, kept)

    @property
    def total(self) -> int:
        """T, the updates of the whole run."""
        return int(self.lr.size)

    @property
    def notes(self) -> list[str]:
        """What was repaired or left out when the curve was read."""
        return list(self.facts.get("notes", []))


@dataclass(frozen=True)
class LeftOut:
    """A run of a collection that could not be read.

    Attributes:
        name: as the curve would have, or where its settings cannot be read the name in the collection.
        reason: the message of the error, with the file.
        facts: as `Curve.facts`, as far as they are known without reading the run.
    """

    name: str
    reason: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"left out {self.name}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """A run that was found and is not read yet.

    Attributes:
        name, facts: as those of `LeftOut`.
        told: the file, for messages.
        read: the curve, or an InputError.
    """

    name: str
    told: str
    read: Callable[[], Curve]
    facts: dict[str, Any] = field(default_factory=dict)

    def try_to_read(self) -> Curve | LeftOut:
        """The curve, or what keeps it from being one."""
        try:
            return self.read()
        except InputError as error:
            reason = str(error) if self.told in str(error) else f"{self.told}: {error}"
            return LeftOut(self.name, reason, dict(self.facts))


def tidy_rows(
    told: str, columns: dict[str, ArrayLike], *, repair: bool = False
) -> tuple[dict[str, FloatArray], list[str]]:
    """Check the rows of a log, or bring them into order.

    Args:
        told: what messages call the log.
        columns: `step`, `loss` and possibly `lr`, of equal length.
        repair: instead of an error, drop rows without a finite loss, sort by step, and keep the last of several rows
            of one step. (Rates are never repaired.)

    Returns:
        The columns as arrays, and a sentence for each thing that was done.

    Raises:
        InputError: not numbers, different lengths, fewer than two rows, steps that are not whole, or, without
            `repair`, steps that do not increase or losses that are not finite.
    """
    rows = {name: _numbers(told, name, column) for name, column in columns.items()}
    lengths = {name: column.size for name, column in rows.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{told}: columns must have one length, got {lengths}")
    notes = []
    bad = ~np.isfinite(rows["loss"])
    if bad.any():
        k = int(np.argmax(bad))
        if not repair:
            raise InputError(
                f"{told}: loss is {rows['loss'][k]:g} at step {rows['step'][k]:g} ({bad.sum()} such rows); cut the log "
                f"before a divergence, or let --repair drop the rows"
            )
        notes.append(f"rows dropped for want of a finite loss: {bad.sum()}, the first at step {rows['step'][k]:g}")
        rows = {name: column[~bad] for name, column in rows.items()}
    step = rows["step"]
    whole = np.isfinite(step) & (np.floor(step) == step)
    if not whole.all():
        raise InputError(
            f"{told}: steps must be whole numbers of updates, got {step[~whole][0]:g}; turn a column of thousands or "
            f"of epochs into updates"
        )
    if "lr" in rows:
        _check_logged_rates(told, step, rows["lr"])
    if np.any(np.diff(step) <= 0):
        rows, done = _in_order(told, rows, repair)
        notes += done
    if rows["step"].size < FEWEST:
        raise InputError(f"{told} has {rows['step'].size} usable rows; a curve needs at least {FEWEST}")
    return rows, notes


def _numbers(told: str, name: str, column: ArrayLike) -> FloatArray:
    try:
        numbers = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{told}: column {name!r} must hold numbers only") from None
    if numbers.ndim != 1:
        raise InputError(f"{told}: column {name!r} must be one row of numbers, got the shape {numbers.shape}")
    return numbers


def _check_logged_rates(told: str, step: FloatArray, lr: FloatArray) -> None:
    bad = ~(np.isfinite(lr) & (lr >= 0))
    if bad.any():
        k = int(np.argmax(bad))
        raise InputError(f"{told}: lr must be finite and at least 0, got {lr[k]:g} at step {step[k]:g}; mend the log")


def _in_order(told: str, rows: dict[str, FloatArray], repair: bool) -> tuple[dict[str, FloatArray], list[str]]:
    """Rows with increasing steps; of several rows with one step the last, as a restarted run overwrites."""
    step = rows["step"]
    k = int(np.argmax(np.diff(step) <= 0))
    if not repair:
        what = "is there twice" if step[k + 1] == step[k] else f"follows step {step[k]:g}"
        raise InputError(
            f"{told}: steps must increase, but step {step[k + 1]:g} {what}; sort the rows and drop duplicates, or let "
            f"--repair do it, which keeps the last row of each step"
        )
    order = np.argsort(step, kind="stable")
    last = np.append(np.diff(step[order]) > 0, True)
    notes = []
    if dropped := int((~last).sum()):
        notes.append(f"rows dropped because their step occurs again later in the log: {dropped}")
    if np.any(np.diff(step) < 0):
        notes.append("rows that went back in steps are sorted")
    kept = order[last]
    return {name: column[kept] for name, column in rows.items()}, notes


# --- the schedule ----------------------------------------------------------------------------------------------------
def rates_from_log(
    steps: ArrayLike,
    lr: ArrayLike,
    *,
    warmup: int | None = None,
    peak_lr: float | None = None,
    until: int | None = None,
    told: str = "the log",
) -> FloatArray:
    """The rate of every update up to the last logged step, from rates at some steps.

    ``lr[k]`` is taken as the rate of update ``steps[k]``, the one that follows the logged state. Between rows:

    * a change that is more than four times as steep as the changes before and after it is a jump: the old rate holds
      up to the row that has the new one;
    * where a plateau (or a change with less than a twentieth of the slope) meets a ramp, both lines are continued to
      their corner, within 0 and the largest rate;
    * else the rate is interpolated linearly.

    Before the first row:

    * with `warmup`, (t+1)/warmup of the peak for t < warmup and the peak from there to the first row;
    * without it, where the first row lies within two intervals of the start, the first row's rate, or where the rate
      rises at first the line through the first two rows, not below 0.

    After the last row, for at most two intervals: the line through the last two rows, within 0 and the largest rate.

    Args:
        steps: increasing steps of the rows, shape (n,), n >= 2.
        lr: their rates, shape (n,).
        warmup: updates of a linear warmup that ended before the first row; 0 for none.
        peak_lr: rate between that warmup and the first row; the first row's own if None.
        until: updates whose rates are wanted; those before the last row if None.
        told: what messages call the log.

    Returns:
        Rates of the updates 0..until-1.

    Raises:
        InputError: rows that `tidy_rows` refuses; a log that starts far into the run without `warmup`, or ends far
            before `until`; a warmup that the log has part of; `peak_lr` without `warmup`; more than 1e8 updates.

    >>> rates_from_log([2, 4, 6], [1.0, 1.0, 0.5], warmup=2).tolist()
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.75]
    """
    rows, _ = tidy_rows(told, {"step": steps, "lr": lr, "loss": np.zeros(np.shape(steps))})
    step, rate = rows["step"], rows["lr"]
    if step[0] < 0:
        raise InputError(f"{told}: steps must be at least 0, got {step[0]:g}")
    last = int(step[-1]) if until is None else until
    if max(last, step[-1]) > MOST:
        raise InputError(
            f"{told} goes up to step {max(last, step[-1]):g}, and curves of up to {MOST:g} updates are read; steps "
            f"that count tokens or samples must be divided by those of one update"
        )
    start = _rates_before(told, step, rate, warmup, peak_lr)
    x, y = _knots(step, rate)
    within = np.interp(np.arange(step[0], step[-1]), x, y)
    known = np.concatenate([start, within])
    return known[:last] if last <= known.size else np.append(known, _rates_after(told, step, rate, last))


def _rates_before(
    told: str, step: FloatArray, rate: FloatArray, warmup: int | None, peak_lr: float | None
) -> FloatArray:
    first = int(step[0])
    t = np.arange(first, dtype=np.float64)
    if warmup is not None:
        check_int("warmup", warmup, low=0, what="updates")
        if warmup > first:
            raise InputError(
                f"{told} starts at step {first}, within a warmup of {warmup} updates; leave the warmup out where its "
                f"rates are in the log"
            )
        peak = rate[0] if peak_lr is None else check_number("peak_lr", peak_lr, low=0.0, open_low=True)
        return np.asarray(peak * np.minimum((t + 1.0) / max(warmup, 1), 1.0))
    if peak_lr is not None:
        raise InputError("peak_lr is the rate between a warmup and the first row; give the warmup too (0 for none)")
    if first > 2.0 * float(np.median(np.diff(step))) and first > 1:
        raise InputError(
            f"{told} starts at step {first} and does not say what the rate was before, and a law needs every rate from "
            f"the first; give the updates of the linear warmup (0 for none), and the rate that it led to if that is "
            f"not the {rate[0]:g} of the first row; a run that was resumed needs the log of its first part too"
        )
    if rate[1] > rate[0]:
        slope = (rate[1] - rate[0]) / (step[1] - step[0])
        return np.asarray(np.maximum(rate[0] - slope * (first - t), 0.0))
    return np.full(first, rate[0])


def _rates_after(told: str, step: FloatArray, rate: FloatArray, last: int) -> FloatArray:
    if last - step[-1] > 2.0 * float(np.median(np.diff(step))):
        raise InputError(
            f"{told} has rates up to step {step[-1]:g} and losses up to {last}; log the rates to the end, or cut the "
            f"rows after them"
        )
    slope = (rate[-1] - rate[-2]) / (step[-1] - step[-2])
    return np.asarray(np.clip(rate[-1] + slope * (np.arange(step[-1], last) - step[-1]), 0.0, rate.max()))


def _knots(step: FloatArray, rate: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The rows with a point more in each interval that holds a jump or a corner."""
    slope = np.diff(rate) / np.diff(step)
    x, y = list(step), list(rate)
    for k in np.flatnonzero(slope != 0):
        before = slope[k - 1] if k else math.nan
        after = slope[k + 1] if k + 1 < slope.size else math.nan
        if _is_jump(slope[k], before, after) and abs(rate[k + 1] - rate[k]) > _VISIBLE * rate.max():
            x.append(step[k + 1] - 1.0)
            y.append(rate[k])
        elif (corner := _corner(step[k : k + 2], rate[k : k + 2], before, after)) is not None:
            x.append(corner[0])
            y.append(min(max(corner[1], 0.0), rate.max()))
    order = np.argsort(x, kind="stable")
    return np.asarray(x)[order], np.asarray(y)[order]


def _is_jump(slope: float, before: float, after: float) -> bool:
    known = [abs(s) for s in (before, after) if not math.isnan(s)]
    return len(known) == 2 and abs(slope) > _JUMP * max(known)


def _corner(step: FloatArray, rate: FloatArray, before: float, after: float) -> tuple[float, float] | None:
    """Where the lines through the rows before and after meet, if that is inside the interval and they differ much."""
    small, large = sorted((abs(before), abs(after)))
    if not small <= _CORNER * large or large == 0:  # also where one is nan
        return None
    x = (rate[1] - rate[0] + before * step[0] - after * step[1]) / (before - after)
    return (x, rate[0] + before * (x - step[0])) if step[0] < x < step[1] else None
