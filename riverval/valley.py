"""Is it a valley? Tests of the loss on a line or path, each with its error and beside its null.

Every test is about linear contrasts of the losses at several places: the loss at the middle minus the mean of the ends,
second differences, first differences. The places are evaluated on the same B batches, so each batch gives a value of
each contrast; their mean over batches has a standard error (`riverval.landscape.mean_and_error`), and estimate / s.e.
is held against Student's t with B - 1 degrees of freedom, which is exact for normal batch values and wide for few
batches. Rounding of float64 counts as a further error, so that an exact zero is never found significant.

A test that looks at K places states its finding for all of them together: the p-value of the most extreme place is
multiplied by K (Bonferroni), which holds whatever the correlation between the places, and is conservative where
neighbours are alike. The other verdict ("convex", "no barrier", "decreasing") needs every place to show it by itself
at the level, an intersection-union test, which needs no correction. Where neither holds the verdict is "undecided".

What the errors are of: the batches as a sample of all data, for the given iterates. Other iterates of the same run, or
other runs, are not in them.

The null of all of them: in a convex quadratic L(alpha) on the segment from a to b, d = b - a, is

    L(alpha) = (1 - alpha) L(a) + alpha L(b) - alpha (1 - alpha) d'Hd / 2,

a convex valley (`quadratic_line`). Between two noisy stationary iterates of a run d'Hd is large: that the segment is
a convex valley is what any convex quadratic shows, river or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from ._checks import check_number
from ._typing import ArrayLike, FloatArray
from .errors import InputError
from .landscape import mean_and_error

Batches = Any
"""A `riverval.landscape.PathLosses`, or anything with its attributes `alpha`, `batch_losses` and `weights`."""


@dataclass(frozen=True, eq=False)
class ValleyTest:
    """What one test found.

    Attributes:
        name: barrier, midpoint, convexity or monotonicity.
        verdict: what the data show at the level, or "undecided".
        estimate, error: the contrast that the statement is about, and its standard error over batches (nan for one
            batch), in units of the loss (over alpha squared for second differences).
        alpha: its place on the line.
        t: (estimate - tolerance) / error there.
        p_value: of the hypothesis that `null` names, from the place that speaks most against it, corrected for all the
            places looked at; nan for one batch.
        low, high: simultaneous confidence interval at 1 - level of what `estimate` estimates.
        places, estimates, errors: every contrast looked at, shape (K,).
        batches, level: B, and the probability of a false finding.
        null: what the p-value is about, and what a positive result does not show.
    """

    name: str
    verdict: str
    estimate: float
    error: float
    alpha: float
    t: float
    p_value: float
    low: float
    high: float
    places: FloatArray
    estimates: FloatArray
    errors: FloatArray
    batches: int
    level: float
    null: str

    def __str__(self) -> str:
        told = f"{self.name}: {self.verdict}; {self.estimate:.3g} ± {self.error:.1g} at alpha = {self.alpha:g}"
        if self.batches < 2:
            return f"{told} (one batch gives no error)"
        looks = f" (corrected for {len(self.places)} places)" * (len(self.places) > 1)
        hypothesis = self.null.partition(";")[0]
        return f"{told} (s.e. over {self.batches} batches); p = {self.p_value:.2g} of: {hypothesis}{looks}"


# --- the tests -------------------------------------------------------------------------------------------------------
def midpoint(losses: Batches, *, level: float = 0.05) -> ValleyTest:
    """M = L(1/2) - (L(0) + L(1)) / 2: below zero in a convex valley.

    Null hypothesis: M = 0, two-sided. What M < 0 does not show: in a quadratic M = -d'Hd / 8 for the displacement d
    between the ends (`quadratic_line`), below zero wherever d'Hd > 0.

    Verdicts: "convex" (M < 0), "not convex" (M > 0), "undecided".

    Args:
        losses: with places at alpha 0, 1/2 and 1.
        level: probability of either verdict where M = 0.

    Raises:
        InputError: a place is missing, a loss there is not finite, or a level outside (0, 1).
    """
    at = [_place(losses, a) for a in (0.0, 0.5, 1.0)]
    contrast = np.zeros((1, len(losses.alpha)))
    contrast[0, at] = [-0.5, 1.0, -0.5]
    found = _Contrasts.of(losses, contrast, np.array([0.5]), level)
    p = float(2 * np.minimum(found.p_above(0.0), found.p_below(0.0))[0])
    verdict = "undecided" if not p <= level else "convex" if found.estimates[0] < 0 else "not convex"
    null = "L(1/2) = mean of the ends; a quadratic has -d'Hd/8, so 'convex' is no sign of a river"
    return found.result("midpoint", verdict, 0, 0.0, p, null)


def barrier(losses: Batches, *, level: float = 0.05, tolerance: float = 0.0) -> ValleyTest:
    """max over alpha of D(alpha) = L(alpha) - [(1 - alpha) L(0) + alpha L(1)], between the ends.

    The barrier of Entezari et al., arXiv:2110.06296; Frankle et al., arXiv:1912.05671, take off the mean of the ends
    instead, which is the same where the ends are equally high. The largest of several noisy values is too large on
    average; the interval [low, high] holds for the maximum itself: low = max_k (D_k - q s_k), high = max_k (D_k +
    q s_k) with q the t quantile at 1 - level / (2 K).

    Null hypothesis: D <= tolerance at every place looked at. Null of a flat line: D = 0; of a convex quadratic:
    D = -alpha (1 - alpha) d'Hd / 2 < 0, so that no barrier is what a quadratic shows.

    Verdicts: "barrier", "no barrier" (D < tolerance shown at every place), "undecided".

    Args:
        losses: with places at alpha 0 and 1 and between.
        level: probability of "barrier" where there is none, and of "no barrier" where there is one.
        tolerance: height that does not count as a barrier, in units of the loss.

    Raises:
        InputError: a place is missing, a loss is not finite, or a level or tolerance out of range.
    """
    limit = check_number("tolerance", tolerance, low=0.0, what="height that is no barrier")
    ends = _place(losses, 0.0), _place(losses, 1.0)
    alpha = np.asarray(losses.alpha)
    inner = np.flatnonzero((alpha > 0) & (alpha < 1))
    if not len(inner):
        raise InputError("a barrier needs a place between the ends, got none; give path_losses more alphas")
    contrast = np.eye(len(alpha))[inner]
    contrast[:, ends[0]] -= 1 - alpha[inner]
    contrast[:, ends[1]] -= alpha[inner]
    found = _Contrasts.of(losses, contrast, alpha[inner], level)
    p = _all(found.p_above(limit))
    verdict = "barrier" if p <= level else "no barrier" if found.every(found.p_below(limit)) else "undecided"
    null = "D <= tolerance at every place; a convex quadratic has none: D = -alpha (1 - alpha) d'Hd/2"
    return found.result("barrier", verdict, int(np.argmax(found.estimates)), limit, p, null, largest=True)


def convexity(losses: Batches, *, level: float = 0.05) -> ValleyTest:
    """Second divided differences C_k = 2 [(f2 - f1)/(a2 - a1) - (f1 - f0)/(a1 - a0)] / (a2 - a0) of each three places.

    C_k is a mean of L'' (with respect to alpha) around the middle place; the statement is about these places only, what
    lies between them is not seen.

    Null hypothesis: C_k >= 0 at every place. In a quadratic C_k = d'Hd everywhere, so "convex" is what any convex
    quadratic shows; "not convex" is what it cannot show.

    Verdicts: "convex" (C_k > 0 shown at every place), "not convex" (C_k < 0 shown at one), "undecided". The place
    reported is that of the smallest C_k / s.e.

    Args:
        losses: at three or more places, evenly spaced or not.
        level: probability of "not convex" on a convex line, and of "convex" on one that is not.

    Raises:
        InputError: fewer than three places, a loss that is not finite, or a level outside (0, 1).
    """
    a = np.asarray(losses.alpha)
    if len(a) < 3:
        raise InputError(f"second differences need at least 3 places, got {len(a)}")
    gaps = np.diff(a)
    contrast = np.zeros((len(a) - 2, len(a)))
    row = np.arange(len(a) - 2)
    contrast[row, row] = 2 / (gaps[:-1] * (gaps[:-1] + gaps[1:]))
    contrast[row, row + 1] = -2 / (gaps[:-1] * gaps[1:])
    contrast[row, row + 2] = 2 / (gaps[1:] * (gaps[:-1] + gaps[1:]))
    found = _Contrasts.of(losses, contrast, a[1:-1], level)
    p = _all(found.p_below(0.0))
    verdict = "not convex" if p <= level else "convex" if found.every(found.p_above(0.0)) else "undecided"
    null = "second differences >= 0 at every place; d'Hd everywhere in a quadratic, so 'convex' is no sign of a river"
    return found.result("convexity", verdict, found.lowest(), 0.0, p, null)


def monotonicity(losses: Batches, *, level: float = 0.05) -> ValleyTest:
    """First differences F_k = L(a_{k+1}) - L(a_k): does the loss fall (or rise) all the way?

    Null hypothesis: the line is monotone, falling or rising. The p-value is the larger of that of "it never rises" and
    that of "it never falls". In a quadratic the line is monotone if and only if ``|d'Hd| <= 2 |L(1) - L(0)|``.

    Verdicts: "decreasing" or "increasing" (shown for every step), "not monotone" (a rise and a fall are shown),
    "undecided". The step reported is the one that goes most, in standard errors, against the direction of the whole.

    Args:
        losses: at two or more places.
        level: probability of "not monotone" on a monotone line, and of "decreasing" on one that does not decrease.

    Raises:
        InputError: fewer than two places, a loss that is not finite, or a level outside (0, 1).
    """
    a = np.asarray(losses.alpha)
    if len(a) < 2:
        raise InputError(f"first differences need at least 2 places, got {len(a)}")
    contrast = np.diff(np.eye(len(a)), axis=0)
    found = _Contrasts.of(losses, contrast, (a[1:] + a[:-1]) / 2, level)
    rises, falls = found.p_above(0.0), found.p_below(0.0)
    p = float(np.maximum(_all(rises), _all(falls)))
    whole = float(found.estimates.sum())
    verdict = "undecided"
    if p <= level:
        verdict = "not monotone"
    elif found.every(falls):
        verdict = "decreasing"
    elif found.every(rises):
        verdict = "increasing"
    against = found.highest() if whole < 0 else found.lowest()
    null = "the line falls all the way, or rises all the way; a quadratic does so if |d'Hd| <= 2 |L(1) - L(0)|"
    return found.result("monotonicity", verdict, against, 0.0, p, null)


TESTS: dict[str, Callable[..., ValleyTest]] = {
    "barrier": barrier, "midpoint": midpoint, "convexity": convexity, "monotonicity": monotonicity,
}  # fmt: skip
"""Every test by its name."""


# --- the quadratic ---------------------------------------------------------------------------------------------------
def quadratic_line(alphas: ArrayLike, start_loss: float, stop_loss: float, curvature: float) -> FloatArray:
    """The null of a line: L(alpha) = (1 - alpha) L(0) + alpha L(1) - alpha (1 - alpha) d'Hd / 2 of a quadratic.

    Args:
        alphas: places.
        start_loss, stop_loss: L(0) and L(1).
        curvature: d'Hd for the displacement d from start to stop, in units of the loss; with an operator H of
            `riverval.hessian` it is ``float(d @ (H @ d))``.

    Raises:
        InputError: a value that is not finite.

    >>> quadratic_line([0.0, 0.5, 1.0], 1.0, 3.0, 8.0).tolist()
    [1.0, 1.0, 3.0]
    """
    a = np.asarray(alphas, dtype=np.float64)
    if not np.all(np.isfinite(a)):
        raise InputError("alphas must be finite")
    first, last = check_number("start_loss", start_loss), check_number("stop_loss", stop_loss)
    line: FloatArray = (1 - a) * first + a * last - a * (1 - a) * check_number("curvature", curvature, what="d'Hd") / 2
    return line


@dataclass(frozen=True)
class NoiseLoss:
    """Loss that the noise of stationary iterates adds. `error`, `low`, `high` (t interval at 1 - level): of batches."""

    value: float
    error: float
    low: float
    high: float
    level: float


def noise_loss(losses: Batches, *, correlation: float = 0.0, level: float = 0.05) -> NoiseLoss:
    """Excess loss of two stationary iterates over their mean position, from the midpoint of the line between them.

    In a quadratic with curvature H and stationary iterates of covariance S and correlation rho between the two,
    E d'Hd = 2 (1 - rho) Tr(HS) and M = -d'Hd / 8, so

        Tr(HS) / 2 = 2 / (1 - rho) * (mean of the ends - L(1/2)):

    what an average over many iterates, or a cooldown, would gain (derived; the mean of both factors only).

    The error is that of the batches. The draw of the two iterates adds a relative error of sqrt(2 / r), where
    r = Tr(HS)^2 / Tr((HS)^2) is the number of directions that share the noise: one for a single steep direction.

    Null: in a quadratic it is d'Hd / (4 (1 - rho)) whatever the noise is; that it is positive shows no river.

    Args:
        losses: with places at alpha 0, 1/2 and 1.
        correlation: rho of the two iterates, 0 where they are far apart in time; below 1.
        level: the interval holds the value with probability 1 - level.

    Raises:
        InputError: as in `midpoint`, or a correlation outside (-1, 1).
    """
    rho = check_number("correlation", correlation, low=-1.0, high=1.0, open_low=True, open_high=True)
    found, factor = midpoint(losses, level=level), 2 / (1 - rho)
    ends = -factor * found.high, -factor * found.low
    return NoiseLoss(-factor * found.estimate, factor * found.error, ends[0], ends[1], level)


# --- contrasts over batches ------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Contrasts:
    """Contrasts at K places: their estimates and errors, and what they show."""

    places: FloatArray
    estimates: FloatArray
    errors: FloatArray
    batches: int
    level: float

    @classmethod
    def of(cls, losses: Batches, contrast: FloatArray, places: FloatArray, level: float) -> _Contrasts:
        """Contrasts, shape (K, n), of the batch losses, shape (B, n)."""
        check_number("level", level, low=0.0, high=1.0, open_low=True, open_high=True)
        values = np.asarray(losses.batch_losses, dtype=np.float64)
        used = np.any(contrast != 0, axis=0)
        bad = used & ~np.isfinite(values).all(axis=0)
        if bad.any():
            told = ", ".join(f"{a:g}" for a in np.asarray(losses.alpha)[bad][:5])
            raise InputError(f"the loss is not finite at alpha = {told}; test a line without these places")
        contrast, values = contrast[:, used], values[:, used]
        mean, error = mean_and_error(values @ contrast.T, np.asarray(losses.weights))
        # Rounding of the losses themselves: without it the noise-free line 0, 1e-17, 0 would be a certain barrier.
        rounding = 4 * np.finfo(np.float64).eps * (np.abs(contrast) @ np.abs(values).max(axis=0))
        return cls(places, mean, np.hypot(error, rounding), len(values), level)

    def t(self, at: float) -> FloatArray:
        off = self.estimates - at
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((off == 0) & (self.errors == 0), 0.0, off / self.errors)

    def p_above(self, at: float) -> FloatArray:
        """One-sided p-value of "not above `at`", for each place by itself."""
        return self._tail(self.t(at))

    def p_below(self, at: float) -> FloatArray:
        """The same of "not below `at`"."""
        return self._tail(-self.t(at))

    def _tail(self, t: FloatArray) -> FloatArray:
        if self.batches < 2:
            return np.full_like(t, np.nan)
        tail: FloatArray = student.sf(t, self.batches - 1)
        return tail

    def every(self, p_values: FloatArray) -> bool:
        """Whether each place shows it by itself: an intersection-union test at the level."""
        return bool(np.all(p_values <= self.level))

    def lowest(self) -> int:
        """The place that is lowest in standard errors, or lowest where there are no errors."""
        return int(np.argmin(self.estimates if self.batches < 2 else self.t(0.0)))

    def highest(self) -> int:
        """The same, highest."""
        return int(np.argmax(self.estimates if self.batches < 2 else self.t(0.0)))

    def result(
        self, name: str, verdict: str, place: int, at: float, p: float, null: str, *, largest: bool = False
    ) -> ValleyTest:
        """The finding at one place; with `largest` the interval is that of the largest contrast of all."""
        quantile = np.inf
        if self.batches > 1:
            quantile = float(student.ppf(1 - self.level / (2 * len(self.places)), self.batches - 1))
        margin = np.where(np.isnan(self.errors), np.inf, quantile * self.errors)
        low, high = self.estimates - margin, self.estimates + margin
        ends = (float(low.max()), float(high.max())) if largest else (float(low[place]), float(high[place]))
        return ValleyTest(
            name, verdict, float(self.estimates[place]), float(self.errors[place]), float(self.places[place]),
            float(self.t(at)[place]), p, *ends, self.places, self.estimates, self.errors,
            self.batches, self.level, null,
        )  # fmt: skip


def _all(p_values: FloatArray) -> float:
    """p-value of "at none of the places": Bonferroni."""
    return float(np.minimum(1.0, len(p_values) * p_values.min()))


def _place(losses: Batches, alpha: float) -> int:
    found = np.flatnonzero(np.asarray(losses.alpha) == alpha)
    if not len(found):
        raise InputError(f"this test needs the loss at alpha = {alpha:g}; give path_losses places that hold it")
    return int(found[0])
