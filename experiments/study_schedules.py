"""The studies `wsd-vs-cosine` and `shapes`: how long to cool down, and how. The warmup is the same for all cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_number, pick
from .._typing import FloatArray
from ..errors import InputError
from ..shapes import SHAPES
from .study import LOSSES_ONLY, Bench, Finding, Plan, Runs, Setting, Study, cosine, length, plan_of, wsd
from .study_data import METRICS, higher_is_better, over_seeds

COSINE = "cosine"


# --- wsd-vs-cosine ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FractionsSetting(Setting):
    """Cooldowns as fractions of the run; one that leaves no room for the warmup is all that follows it."""

    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)

    def __post_init__(self) -> None:
        for fraction in self.fractions:
            check_number("fractions", fraction, low=0.0, high=1.0, open_low=True, what="of the run that cools down")
        if len(set(self.fractions)) < 2:
            raise InputError(f"fractions must be at least two different ones, got {self.fractions}")


def fraction_plans(bench: Bench, s: FractionsSetting) -> list[Plan]:
    """WSD at every fraction against one cosine of the same length."""
    base = bench.base()
    made = [plan_of(COSINE, base, cosine(base), **LOSSES_ONLY)]
    for fraction in sorted(set(s.fractions)):
        schedule = wsd(base, fraction, length(base))
        made.append(plan_of(f"wsd {fraction:g}", base, schedule, against=COSINE, **LOSSES_ONLY))
    return made


def crossing(fractions: FloatArray, gaps: FloatArray) -> float:
    """The smallest fraction at which the gap is not above 0, linear between neighbours; nan where there is none.

    Args:
        fractions: increasing.
        gaps: loss minus that of the reference at each; nan where unknown.

    >>> round(crossing(np.array([0.1, 0.2, 0.4]), np.array([0.03, 0.01, -0.01])), 9)
    0.3
    """
    below = np.flatnonzero(gaps <= 0.0)
    if not below.size:
        return math.nan
    k = int(below[0])
    if k == 0:
        return float(fractions[0])
    share = gaps[k - 1] / (gaps[k - 1] - gaps[k])
    return float(fractions[k - 1] + share * (fractions[k] - fractions[k - 1]))


def match(fractions: FloatArray, gaps: FloatArray) -> tuple[float, float, float, float]:
    """Where WSD matches cosine: the crossing c* of the mean gap g(c), its standard error, and its 95 % interval.

    The error of c* is that of the mean of g_s(c*) over seeds s, each interpolated, over the slope g'(c*) without sign
    between the two fractions around it (derived, delta method); likewise the t interval. Where the shortest cooldown
    matches, c* is its fraction, and without an error. NULL: gaps that are all noise around 0 cross anywhere, or at the
    shortest; look at the intervals of the gaps first.

    Args:
        fractions: increasing, (n,).
        gaps: by seed, (seeds, n).
    """
    mean, *_ = over_seeds(gaps)
    found = crossing(fractions, mean)
    if not found > fractions[0]:
        return found, math.nan, math.nan, math.nan
    k = int(np.searchsorted(fractions, found))
    slope = (mean[k - 1] - mean[k]) / (fractions[k] - fractions[k - 1])
    _, error, low, high, _ = over_seeds([np.interp(found, fractions, g) for g in gaps])
    reach = float(high - low) / 2.0 / slope
    return found, float(error) / slope, found - reach, found + reach


def matches(ds: xr.Dataset, s: FractionsSetting, plans: Sequence[Plan], runs: Runs) -> dict[str, Any]:
    """`match` for every metric, the same of every seed, and the plan of the best mean."""
    wsds = [p.name for p in plans if p.against != p.name]
    x = ds["plan_cooldown"].sel(plan=wsds).values
    rows: list[tuple[float, ...]] = []
    seeds, best = [], []
    for metric in ds["metric"].values:
        sign = -1.0 if higher_is_better(metric) else 1.0
        at = sign * ds["outcome"].sel(metric=metric)
        gaps = (at.sel(plan=wsds) - at.sel(plan=COSINE)).values
        rows.append(match(x, gaps))
        seeds.append([crossing(x, g) for g in gaps])
        means = sign * ds["outcome_mean"].sel(metric=metric).values
        best.append(str(ds["plan"].values[np.nanargmin(means)]) if np.isfinite(means).any() else "")
    names = [f"match_fraction{e}" for e in ("", "_error", "_low", "_high")]
    return {
        **dict(zip(names, np.transpose(rows), strict=True)),
        "match_fraction_seed": np.transpose(seeds),
        "best_plan": best,
    }


def match_numbers(ds: xr.Dataset) -> list[Finding]:
    """The crossings of both losses."""
    rows = []
    for metric in ("val_loss", "train_loss"):
        if metric in ds["metric"]:
            at = ds.sel(metric=metric)
            found = float(at["match_fraction"])
            error = float(at["match_fraction_error"])
            told = "not reached" if math.isnan(found) else f"best: {at['best_plan'].item()}"
            if math.isfinite(found) and not math.isfinite(error):
                told = f"at most: the shortest one matches already; {told}"
            rows.append(Finding(f"cooldown that matches cosine, {METRICS[metric]}", found, error, told))
    return rows


# --- shapes ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ShapesSetting(Setting):
    """Decay shapes, cooldowns as fractions of the run, and peak rates as factors of the base's."""

    shapes: tuple[str, ...] = ("linear", "1-sqrt", "cosine", "mirror-cosine", "square", "inverse", "exponential")
    fractions: tuple[float, ...] = (0.1, 0.4)
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        for shape in self.shapes:
            pick("decay shape", shape, SHAPES)
        if self.shapes[:1] != ("linear",):
            raise InputError(f"shapes must begin with linear, which the others are compared with, got {self.shapes}")
        for fraction in self.fractions:
            check_number("fractions", fraction, low=0.0, high=1.0, open_low=True, what="of the run that cools down")
        for rate in self.rates:
            check_number("rates", rate, low=0.0, open_low=True, what="factor of the peak rate")


def shape_plans(bench: Bench, s: ShapesSetting) -> list[Plan]:
    """Every shape at every length and rate, each against linear at the same length and rate."""
    base = bench.base()
    made = []
    for rate in s.rates:
        for fraction in s.fractions:
            told = f"{fraction:g} at {rate * base.lr:g}"
            for shape in s.shapes:
                options = wsd(base, fraction, length(base), shape=SHAPES[shape]().to_dict())
                changes = {"lr": rate * base.lr, **LOSSES_ONLY}
                made.append(plan_of(f"{shape} {told}", base, options, against=f"linear {told}", **changes))
    return made


WSD_VS_COSINE = Study(
    name="wsd-vs-cosine",
    question="how long must WSD cool down to end as low as cosine annealing of the same length?",
    setting=FractionsSetting,
    plans=fraction_plans,
    derive=matches,
    numbers=match_numbers,
)
SHAPES_STUDY = Study(
    name="shapes",
    question="which decay shape ends lowest, at short and long cooldowns and three peak rates?",
    setting=ShapesSetting,
    plans=shape_plans,
)
