r"""Sums of exponentials in intrinsic time: what a hill of many modes still holds of every past update.

Update t = 0..T-1 has the rate lr[t]; after n updates the intrinsic time is S_n = sum_{t<n} lr[t]. A mode of rate r that
receives w[t] with update t and forgets it as exp(-r S) holds, after n updates,

    R_n = sum_{t<n} w[t] exp(-r (S_n - S_{t+1})),        R_{n+1} = exp(-r lr[n]) R_n + w[n],        R_0 = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ._arrays import check_rates, check_states, check_values
from ._checks import check_number
from ._typing import ArrayLike, FloatArray, IntArray
from .errors import InputError

_CHUNK = 1 << 14  # pieces handled at once: (modes, pieces) arrays then stay in the cache of a core


def relaxed_sums(
    lr: ArrayLike,
    weights: ArrayLike,
    rates: ArrayLike,
    steps: ArrayLike,
    *,
    share: Callable[[FloatArray], FloatArray] | None = None,
    tolerance: float = 0.0,
) -> FloatArray:
    r"""R[i, j] = sum_{t < n_i} w[t] exp(-r_j (S_{n_i} - S_{t+1})), shape (n, m); exact up to rounding.

    Takes O(T m) time and O(n m) memory beside its arguments; stretches of equal rate and weight between two states cost
    as much as one update (a geometric series). No exponent is ever positive, so nothing overflows (derived).

    Args:
        lr: rate of each update, shape (T,), finite and >= 0.
        weights: w, what each update adds, shape (T,), finite, of any sign.
        rates: r, relaxation rates per unit of intrinsic time, shape (m,), >= 0; 0 forgets nothing.
        steps: n, updates done at the asked states, shape (n,), increasing in 0..T.
        share: where modes take unequal parts, the part of each as a function of the rate: given k rates it returns
            (m, k) factors, and mode j receives w[t] share(lr[t])[j]. None: every mode receives w[t].
        tolerance: a stretch of smooth change in which the rate stays within this share of itself is taken as constant,
            its rate and weight at their means (see `smooth_runs`), for many times less work. The error of modes that
            outlast a stretch is of second order, about tolerance^2 / 10; one that forgets within a stretch sees its
            mean, and so may be off by the tolerance itself. 0 is exact.

    Raises:
        InputError: a wrong shape, or a value out of range.

    >>> relaxed_sums([0.5, 0.5, 1.0], [1.0, 1.0, 2.0], [0.0, 2.0], [1, 3]).round(6).tolist()
    [[1.0, 1.0], [4.0, 2.185122]]
    """
    eta = check_rates(lr)
    states = check_states(steps, eta.size)
    w = check_values("weights", weights)
    if w.shape != eta.shape:
        raise InputError(f"weights must be one number for each of the {eta.size} updates, got the shape {w.shape}")
    r = np.atleast_1d(check_values("rates", rates, low=0.0))
    if r.ndim != 1 or not r.size:
        raise InputError(f"rates must be a row of at least one relaxation rate, got the shape {r.shape}")
    check_number("tolerance", tolerance, low=0.0, high=0.1)
    out = np.zeros((states.size, r.size))
    later = states[states > 0]
    if later.size:
        pieces = _Pieces.of(eta[: later[-1]], w[: later[-1]], later, tolerance)
        edges = _sorted_union(later, pieces.ends[_CHUNK - 1 :: _CHUNK])  # segments between edges fit in chunks
        held = _scan(*_segments(pieces, r, edges, share), edges.size)
        out[states > 0] = held[np.searchsorted(edges, later)]
    return out


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Stretches of constant rate and weight that no asked state divides, up to the last state; arrays of one length.

    `ends` is the state at which each ends.
    """

    rate: FloatArray
    weight: FloatArray
    length: IntArray
    ends: IntArray

    @classmethod
    def of(cls, eta: FloatArray, w: FloatArray, states: IntArray, tolerance: float) -> _Pieces:
        runs = smooth_runs(eta, tolerance) if tolerance else constant_runs(eta, w)
        starts = _sorted_union(states, runs)[:-1]  # the last state opens no piece
        ends = np.append(starts[1:], states[-1])
        if not tolerance:
            return cls(eta[starts], w[starts], ends - starts, ends)
        length = ends - starts
        return cls(np.add.reduceat(eta, starts) / length, np.add.reduceat(w, starts) / length, length, ends)


def constant_runs(*arrays: FloatArray) -> IntArray:
    """First index of each stretch in which no array changes; arrays of the shape (T,), T >= 1.

    >>> constant_runs(np.array([1.0, 1.0, 2.0, 2.0])).tolist()
    [0, 2]
    """
    changes = np.zeros(arrays[0].size, dtype=bool)
    changes[0] = True
    for values in arrays:
        changes[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(changes)


def smooth_runs(lr: FloatArray, tolerance: float) -> IntArray:
    """First index of each stretch in which the rate stays within a factor 1 + tolerance and has no jump or corner.

    A change by more than a tenth of the tolerance at once is a jump and stands alone, and so does the first update, a
    jump from rest; a plateau, too, is a stretch of its own. Rates of shape (T,), T >= 1.

    >>> smooth_runs(np.array([1.0, 1.0, 1.0, 0.999, 0.998, 0.5, 0.5]), 0.1).tolist()
    [0, 1, 3, 5, 6]
    """
    logs = np.full(lr.size, -np.inf)
    np.log(lr, out=logs, where=lr > 0)
    opens = np.zeros(lr.size, dtype=bool)
    level = np.floor(logs / np.log1p(tolerance))
    step, least = np.abs(np.diff(lr)), np.minimum(lr[1:], lr[:-1])
    jump, flat = step > 0.1 * tolerance * least, step <= 1e-3 * tolerance * least  # a plateau may wiggle by rounding
    opens[1:] = (level[1:] != level[:-1]) | jump
    opens[2:] |= jump[:-1] | (flat[1:] != flat[:-1])
    opens[:2] = True
    return np.flatnonzero(opens)


def _sorted_union(a: IntArray, b: IntArray) -> IntArray:
    """Members of either, increasing; by marks, which is many times faster than to sort or hash 1e6 of them."""
    marks = np.zeros(int(a[-1]) + 1, dtype=bool)
    marks[a] = True
    marks[b] = True
    return np.flatnonzero(marks)


def _segments(
    pieces: _Pieces, r: FloatArray, edges: IntArray, share: Callable[[FloatArray], FloatArray] | None
) -> tuple[FloatArray, FloatArray]:
    """What each mode gains between two edges, and the share that it keeps; shapes (segments + padding, m).

    The padding of zeros makes a whole number of the blocks of `_scan`.
    """
    width = _width(edges.size)
    shape = (-(-edges.size // width) * width, r.size)
    gained, kept = np.zeros(shape), np.zeros(shape)
    done = 0
    for a in range(0, pieces.rate.size, _CHUNK):
        chunk = slice(a, a + _CHUNK)
        rate, weight = pieces.rate[chunk], pieces.weight[chunk]
        length, end = pieces.length[chunk], pieces.ends[chunk]
        stop = int(np.searchsorted(edges, end[-1])) + 1
        close = np.searchsorted(end, edges[done:stop])  # the piece that closes each segment
        opens = np.append(0, close[:-1] + 1)
        time = np.cumsum(rate * length)
        left = np.repeat(time[close], close - opens + 1) - time  # from the end of each piece to that of its segment
        sums = weight * np.exp(-r[:, None] * left)
        if share is not None:
            sums *= share(rate)
        runs = np.flatnonzero(length > 1)
        if runs.size:
            sums[:, runs] *= _geometric(r[:, None] * rate[runs], length[runs])
        gained[done:stop] = np.add.reduceat(sums, opens, axis=1).T
        kept[done:stop] = np.exp(-np.diff(time[close], prepend=0.0)[:, None] * r)
        done = stop
    return gained, kept


def _geometric(x: FloatArray, length: IntArray) -> FloatArray:
    """sum_{k < length} exp(-k x), also where x is 0 or too small to tell from it."""
    small = x < 1e-300
    safe = np.where(small, 1.0, x)
    total: FloatArray = np.where(small, length, np.expm1(-safe * length) / np.expm1(-safe))
    return total


def _width(n: int) -> int:
    return math.isqrt(max(n - 1, 0)) + 1


def _scan(gained: FloatArray, kept: FloatArray, n: int) -> FloatArray:
    """R_i = kept_i R_{i-1} + gained_i from R = 0, for i < n; by blocks, so that 1e6 states take 2e3 calls of NumPy."""
    shape = (-1, _width(n), gained.shape[1])
    local, share = gained.reshape(shape), kept.reshape(shape)
    for k in range(1, shape[1]):  # every block from an empty start
        local[:, k] += share[:, k] * local[:, k - 1]
        share[:, k] *= share[:, k - 1]
    for row in range(1, len(local)):  # then what the blocks before have left
        local[row] += share[row] * local[row - 1, -1]
    return gained[:n]
