"""The phase of each update, read off its learning rates."""

from __future__ import annotations

import numpy as np

from ._typing import ArrayLike, FloatArray, NDArray
from .schedules import Schedule
from .segments import Phase

SAME = 1e-6  # rates that differ by less than this part are the same one
LEVEL = 0.02  # a level that is shorter than this part of the run is a stair of the way up or down


def phases_of(lr: ArrayLike) -> NDArray[np.int8]:
    """Phase codes (`riverval.segments.Phase`) of updates 0..T-1 from their rates: rising, level or falling.

    A level is a stretch of rates that differ by less than a part of 1e-6 from its first, and that is at least two
    updates and 2 % of the run long: stable. Shorter ones are stairs, as a scheduler that acts once an epoch makes them,
    and count to the move that they are part of. An update that is higher than the one before is warmup, one that a
    lower rate follows is cooldown; so the update that reaches the level counts as warmup and the last one at the level
    as cooldown, as in `riverval.schedules`. A rate that falls all the time (cosine, inverse square root) is cooldown
    throughout: where that is not what is meant, give the schedule.

    Args:
        lr: rate of each update, shape (T,), finite.

    Returns:
        int8, shape (T,).

    >>> phases_of([0.5, 1.0, 1.0, 1.0, 1.0, 0.5]).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    rates = np.asarray(lr, dtype=np.float64)
    if len(rates) < 2:
        return np.full(len(rates), Phase.STABLE, dtype=np.int8)
    change = _changes(rates)
    before, after = _last(np.concatenate([[0], change])), _last(np.concatenate([change, [0]])[::-1])[::-1]
    rises = np.concatenate([[change[0] > 0], change > 0])
    out = np.full(len(rates), Phase.STABLE, dtype=np.int8)
    out[(after < 0) | (before < 0)] = Phase.COOLDOWN
    out[rises | ((after > 0) & (before > 0)) | ((after > 0) & (before == 0))] = Phase.WARMUP
    for start, stop in _levels(rates, max(2, int(np.ceil(LEVEL * len(rates))))):
        out[start:stop] = Phase.STABLE
        out[start] = Phase.WARMUP if rises[start] else Phase.STABLE
        out[stop - 1] = Phase.COOLDOWN if after[stop - 1] < 0 else Phase.STABLE
    return out


def guessed_phases(lr: ArrayLike) -> NDArray[np.int8]:
    """The same while the run goes on: warmup, stable, cooldown where the rate is above, as, below the one before."""
    rates = np.asarray(lr, dtype=np.float64)
    change = np.sign(np.diff(rates, prepend=rates[:1]))
    return np.where(change > 0, Phase.WARMUP, np.where(change < 0, Phase.COOLDOWN, Phase.STABLE)).astype(np.int8)


def compare_rates(schedule: Schedule, rates: ArrayLike) -> str:
    """Where the updates did not keep to the schedule that was given, in words; empty if they did."""
    used, planned = np.asarray(rates, dtype=np.float64), np.asarray(schedule.values())
    both = min(len(used), len(planned))
    off = np.flatnonzero(~np.isclose(used[:both], planned[:both], rtol=1e-5, atol=0.0))
    told = [f"the run has {len(used)} updates, the schedule {len(planned)}"] if len(used) > len(planned) else []
    if len(off):
        t = int(off[0])
        said = f"update {t} used the rate {used[t]:g}, the schedule says {planned[t]:g}; recorded is what was used"
        told.insert(0, said)
    return "; ".join(told)


def _changes(rates: FloatArray) -> NDArray[np.int8]:
    """Sign of the change from each update to the next, 0 where they are the same up to rounding."""
    step = np.diff(rates)
    real = np.abs(step) > 1e-9 * np.maximum(np.abs(rates[1:]), np.abs(rates[:-1]))
    return np.where(real, np.sign(step), 0).astype(np.int8)


def _last(signs: NDArray[np.int8]) -> NDArray[np.int8]:
    """The last sign that is not 0 up to each place, 0 where there is none."""
    place = np.maximum.accumulate(np.where(signs != 0, np.arange(len(signs)), -1))
    return np.where(place >= 0, signs[place], 0).astype(np.int8)


def _levels(rates: FloatArray, shortest: int) -> list[tuple[int, int]]:
    """Half-open ranges of at least `shortest` updates whose rates are within `SAME` of the first of them."""
    found, start = [], 0
    for edge in [*(np.flatnonzero(rates[1:] != rates[:-1]) + 1).tolist(), len(rates)]:
        # Between edges rates are equal; at one, see whether it leaves the level that began at `start`.
        if edge < len(rates) and abs(rates[edge] - rates[start]) <= SAME * abs(rates[start]):
            continue
        if edge - start >= shortest:
            found.append((start, edge))
        start = edge
    return found
