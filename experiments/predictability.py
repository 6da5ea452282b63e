r"""What groups of tokens or images gained between states of a run, beside its null: numpy only.

Arrays are (sequences, length): the loss, or the reference entropy, of each token; images are sequences of length 1. The
sequence is the unit of every error and every null, as neighbouring tokens are not independent.

Errors are of the held-out subset, for the states as they were. The states are single ones of a noisy trajectory, and
that noise, common to all tokens, is not in them: it shows over seeds.

Regression to the mean. A gain is loss(a) - loss(b). Groups made by a quantity of state a, its entropy or its loss, hold
in their upper end those tokens that fluctuated upwards at a; at b they fall back, so the uncertain groups "gain" even
where nothing was learnt; groups made at b show the reverse. So the reference is either no function of the run at all
(an n-gram model of the training text, which sees the context and not the target), or the model's entropy at states that
end no gain, away from those that do (`stations`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .._typing import FloatArray, IntArray
from ..errors import InputError

MOST_BINS = 10
LEAST_MEMBERS = 20  # of a bin


@dataclass(frozen=True)
class Stations:
    """Which states are looked at.

    Attributes:
        gains: the states before and after of "stable" (the last stable phase), "settled" (its second half, without
            what everything learns in the beginning) and "cooldown" (the last), those that there are.
        reference: states whose mean entropy may make groups: they end no gain. Empty where none is left.
        states: all, increasing.
    """

    gains: dict[str, tuple[int, int]]
    reference: tuple[int, ...]
    states: tuple[int, ...]


def stations(kept: Mapping[str, Sequence[int]]) -> Stations:
    """The ends of the kept windows, the quarters of the stable one, and the middle of the cooldown.

    Args:
        kept: window -> increasing states that can be loaded; only "stable" and "cooldown" are looked at. Where the
            stable one is missing or short, the reference states lie in the cooldown.

    >>> stations({"stable": [10, 20, 30, 40, 50], "cooldown": [50, 60, 70]}).gains
    {'stable': (10, 50), 'settled': (30, 50), 'cooldown': (50, 70)}
    >>> stations({"stable": [10, 20, 30, 40, 50], "cooldown": [50, 60, 70]}).reference
    (20, 40)
    """
    windows = {name: list(kept[name]) for name in ("stable", "cooldown") if len(kept.get(name, ())) >= 2}
    gains: dict[str, tuple[int, int]] = {}
    for name, states in windows.items():
        gains[name] = (states[0], states[-1])
        middle = _at(states, 1 / 2)
        if name == "stable" and middle not in gains[name]:
            gains["settled"] = (middle, states[-1])
    ends = {state for pair in gains.values() for state in pair}
    # As far from the ends of gains as two states within the stable phase can be.
    found = [{_at(states, share) for share in (1 / 4, 3 / 4)} - ends for states in windows.values()]
    reference = next((states for states in found if states), set())
    more = {_at(windows["cooldown"], 1 / 2)} if "cooldown" in windows else set()
    return Stations(gains, tuple(sorted(reference)), tuple(sorted(ends | reference | more)))


def _at(states: Sequence[int], share: float) -> int:
    return states[round(share * (len(states) - 1))]


def quantile_bins(reference: FloatArray) -> IntArray:
    """Numbers 0, 1, ... of bins of about equal size by `reference`, of its shape.

    At most `MOST_BINS`, of `LEAST_MEMBERS` or more if nothing is equal; equal values share a bin.

    Raises:
        InputError: too few members for two bins, or all equal.
    """
    count = min(MOST_BINS, reference.size // LEAST_MEMBERS)
    if count < 2:
        raise InputError(f"two bins need at least {2 * LEAST_MEMBERS} tokens or images, got {reference.size}")
    edges = np.unique(np.quantile(reference, np.arange(1, count) / count))
    labels = np.unique(np.searchsorted(edges, reference, side="right"), return_inverse=True)[1].reshape(reference.shape)
    if labels.max() == 0:
        raise InputError(f"all {reference.size} tokens or images have the same reference entropy")
    return np.asarray(labels, dtype=np.int64)


# --- means and slopes with their errors ------------------------------------------------------------------------------
def group_means(labels: IntArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Mean of each group's values and its standard error, sequences being the independent units.

    .. math:: r = \sum_s y_s / \sum_s n_s, \qquad
        \mathrm{error}^2 = \frac{m}{m - 1} \sum_s (y_s - r n_s)^2 / \bigl(\sum_s n_s\bigr)^2

    y_s the sum and n_s the number of the group's values in sequence s, m the sequences that have any: the linearised
    ratio estimator of cluster sampling (Cochran 1977, ch. 6). For single images it is the usual error of a mean.

    Args:
        labels: (sequences, length), 0..groups-1, each of them somewhere.
        values: the same shape.

    Returns:
        Two arrays (groups,); the error is nan for a group within one sequence.
    """
    members, sums = (_by_sequence(labels, v) for v in (np.ones(labels.shape), values))
    total = members.sum(axis=0)
    mean = sums.sum(axis=0) / total
    clusters = (members > 0).sum(axis=0).astype(float)
    factor = np.divide(clusters, clusters - 1, out=np.full(len(total), np.nan), where=clusters > 1)
    spread = ((sums - mean * members) ** 2).sum(axis=0)
    return mean, np.sqrt(factor * spread) / total


def slope(reference: FloatArray, values: FloatArray) -> tuple[float, float]:
    r"""Least-squares slope b of values v on the reference h, and its jackknife error over sequences.

    .. math:: b = \frac{\sum (h - \bar h)(v - \bar v)}{\sum (h - \bar h)^2}, \qquad
        \mathrm{error}^2 = \frac{n - 1}{n} \sum_s (b_s - \bar b)^2

    n sequences, b_s the slope without sequence s (Efron 1982; the sandwich error is smaller, and with tens of sequences
    too small). Null: `shuffled_slope`. Both are nan where the reference is constant, the error for one sequence.
    """
    return _jackknife(lambda s: _slope(s[0], s[1], s[2], s[3], s[4]), _totals(reference - reference.mean(), values))


def contrast(reference: FloatArray, first: FloatArray, second: FloatArray) -> tuple[float, float]:
    r"""How much more the second gain leans to uncertain tokens than the first, and its jackknife error over sequences.

    .. math:: b_2 \bar h / \bar g_2 - b_1 \bar h / \bar g_1

    b the slope of a gain g on the reference entropy h, bars are means over tokens. Each term is 0 where every token
    gains the same and 1 where gains are proportional to the entropy. Null: 0, both phases serve the same tokens, each
    at its own rate. Where a mean gain is within a few errors of 0, the contrast says nothing, and its error is large.
    """
    centre = float(reference.mean())

    def lean(count: FloatArray, h: FloatArray, hh: FloatArray, g: FloatArray, hg: FloatArray) -> FloatArray:
        return _slope(count, h, hh, g, hg) * (centre + h / count) / (g / count)

    def difference(s: FloatArray) -> FloatArray:
        return lean(s[0], s[1], s[2], s[5], s[6]) - lean(s[0], s[1], s[2], s[3], s[4])

    return _jackknife(difference, _totals(reference - centre, first, second))


def _totals(h: FloatArray, *values: FloatArray) -> FloatArray:
    """Of each sequence: its length and the sums of h, h^2 and, for each v of the values, v and h v; (sums, sequences).

    With h around 0 the sums of squares lose no digits."""
    each = [product for v in values for product in (v, h * v)]
    return np.stack([product.sum(axis=1) for product in (np.ones(h.shape), h, h * h, *each)])


def _slope(count: FloatArray, h: FloatArray, hh: FloatArray, v: FloatArray, hv: FloatArray) -> FloatArray:
    return (hv - h * v / count) / (hh - h * h / count)


def _jackknife(statistic: Callable[[FloatArray], FloatArray], sums: FloatArray) -> tuple[float, float]:
    """The statistic of the total over sequences, and its error from leaving out each in turn."""
    n = sums.shape[1]
    whole = sums.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # nan where nothing varies
        value, without = float(statistic(whole)[0]), statistic(whole - sums)
        return value, float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())) if n > 1 else np.nan


# --- the null --------------------------------------------------------------------------------------------------------
def shuffled(weights: FloatArray, values: FloatArray) -> tuple[float, float]:
    r"""Exact mean and standard deviation of sum(weights * values) when the sequences of values are shuffled.

    The null of a group's gain (weights 1 / members within the group, else 0) and of a slope: the gains of a sequence
    stand against the references of another one, all orders equally likely. It keeps what tokens of a sequence have in
    common, and what depends on the place in it (the first tokens have less context, which makes their entropy larger
    whatever is learnt). For images it is drawing the group's members without replacement.

    .. math:: \mathrm{mean} = n \sum_t \bar w_t \bar v_t, \qquad
        \mathrm{variance} = \frac{1}{n - 1} \sum_{s, r} \Bigl( \sum_t (w_{st} - \bar w_t)(v_{rt} - \bar v_t) \Bigr)^2

    n sequences, bars are means over them (Hoeffding 1951, "A combinatorial central limit theorem", theorem 2). The
    standard deviation is nan for one sequence.
    """
    n, length = weights.shape
    w, v = weights - weights.mean(axis=0), values - values.mean(axis=0)
    mean = n * float(weights.mean(axis=0) @ values.mean(axis=0))
    if n < 2:
        return mean, np.nan
    # |W V'|^2 = sum((W'W) * (V'V)): whichever matrix is smaller
    square = ((w.T @ w) * (v.T @ v)).sum() if length <= n else ((w @ v.T) ** 2).sum()
    return mean, float(np.sqrt(max(float(square), 0.0) / (n - 1)))


def shuffled_groups(labels: IntArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`shuffled` for the mean of each group: two arrays (groups,)."""
    found = [shuffled(mask / mask.sum(), values) for mask in (labels == g for g in range(labels.max() + 1))]
    mean, std = zip(*found, strict=True)
    return np.array(mean), np.array(std)


def shuffled_slope(reference: FloatArray, values: FloatArray) -> tuple[float, float]:
    """`shuffled` for `slope`; nan where that is."""
    x = reference - reference.mean()
    square = float((x**2).sum())
    return shuffled(x / square, values) if square else (np.nan, np.nan)


def _by_sequence(labels: IntArray, values: FloatArray) -> FloatArray:
    """Sums of the values, shape (sequences, groups)."""
    n, groups = len(labels), int(labels.max()) + 1
    codes = np.arange(n)[:, None] * groups + labels
    sums = np.bincount(codes.ravel(), weights=values.ravel(), minlength=n * groups).reshape(n, groups)
    return np.asarray(sums, dtype=np.float64)
