"""Pictures of loss-curve laws: a fit with its residuals, a predicted curve, a plan, and the scores of all laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from ._schedule import Schedule
from ._typing import FloatArray
from .errors import InputError
from .law_base import Prediction
from .law_plan import Candidate, Plan
from .law_scores import Score, summaries
from .laws import FittedLaw
from .plots import BLUE, CYCLE, GREY, _grid, _shade
from .plots_instruments import LEGEND, NULL
from .plots_panels import _sequence

if TYPE_CHECKING:
    from .curves import Curve

__all__ = ["fit", "plan", "prediction", "scores"]

NAMED = 8
"""At most this many curves have names in the legend."""

_LATE = 0.15  # losses before this part of a run do not set the range of the axis: their fall would hide the rest
_SHOWN = 0.6  # nor do the worst of the cooldowns, beyond this share of them
_STAR: dict[str, Any] = {"ms": 15, "color": "#F0E442", "mec": "black", "mew": 0.9, "zorder": 4}


# --- a fit -----------------------------------------------------------------------------------------------------------
def fit(law: FittedLaw, curves: Sequence[Curve]) -> Figure:
    """Measured and fitted losses of each curve, and below them what is left over, in parts per thousand.

    Raises:
        InputError: the law was fitted to none of the curves.
    """
    if not (curves := law.points_of(curves)):
        raise InputError("the law was fitted to none of these curves; give those of the fit")
    figure, axes = _grid(2, 1, (9.0, 6.4), sharex=True, height_ratios=(2.4, 1.3))
    upper, lower = axes[0][0], axes[1][0]
    seen = []
    for curve, colour in zip(curves, _curve_colours(len(curves)), strict=True):
        fitted = law.law.evaluate(curve.lr, curve.steps, law.values)
        label = curve.name if len(curves) <= NAMED else None
        upper.plot(curve.steps, curve.loss, "o", color=colour, ms=4, alpha=0.4, mew=0)
        upper.plot(curve.steps, fitted, color=colour, lw=1.0, label=label)
        lower.plot(curve.steps, 1000 * np.log(curve.loss / fitted), color=colour, lw=0.8, marker=".", ms=2.5)
        late = curve.steps >= _LATE * curve.total
        seen.append(curve.loss[late] if late.any() else curve.loss)
    _limit_to(upper, np.concatenate(seen))
    lower.axhline(0, **NULL)
    told = f"points: measured, lines: fitted, {len(law.fitted_on)} curves"
    upper.set(ylabel="loss", title=f"{law.name}: L = {law.law.formula}\n{told}")
    upper.title.set_fontsize(10)
    lower.set(ylabel="measured over fitted\n(parts per thousand)", xlabel="updates", xlim=(0, None))
    for axis in (upper, lower):
        _bare(axis)
    if len(curves) <= NAMED:
        upper.legend(**LEGEND)
    return figure


def _curve_colours(count: int) -> list[str]:
    return list(CYCLE[:count]) if count <= len(CYCLE) else _sequence(np.arange(count, dtype=float))


def _limit_to(axis: Axes, values: FloatArray) -> None:
    """The range of the later losses, with a margin: the fall at the start would take the room of everything else."""
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.01 * abs(high)
    axis.set_ylim(low - margin, high + margin)


# --- a prediction ----------------------------------------------------------------------------------------------------
def prediction(law: FittedLaw, schedule: Schedule, predicted: Prediction) -> Figure:
    """The predicted loss with its interval, and the rate below."""
    figure, axes = _grid(2, 1, (8.0, 5.2), sharex=True, height_ratios=(3, 1))
    upper, lower = axes[0][0], axes[1][0]
    _shade(lower, schedule.phases())
    _shade(upper, schedule.phases())
    upper.fill_between(
        predicted.steps, predicted.low, predicted.high, color=BLUE, alpha=0.35, lw=0, label="95 % of one measurement"
    )
    upper.plot(predicted.steps, predicted.loss, color=BLUE, lw=1.5, label="predicted loss")
    late = predicted.steps >= _LATE * schedule.total
    ends = np.concatenate([predicted.loss[late], predicted.low[late], predicted.high[late]])
    _limit_to(upper, ends[np.isfinite(ends)])
    upper.set(ylabel="loss", title=f"{law.name}: {schedule.describe()}")
    upper.legend(loc="upper right", **LEGEND)
    shown = np.unique(np.linspace(0, schedule.total - 1, 4001).astype(int))
    lower.plot(shown, schedule.values()[shown], color=GREY, lw=1.3)
    lower.set(xlabel="updates", ylabel="learning rate", ylim=(0, None))
    return figure


# --- a plan ----------------------------------------------------------------------------------------------------------
def plan(found: Plan) -> Figure:
    """Final loss against the length of the cooldown, one line for each shape; where there are several rates, also the
    best of each rate."""
    rates = sorted({c.peak_lr for c in found.candidates})
    panels = 2 if len(rates) > 1 else 1
    figure, axes = _grid(1, panels, (4.8 + 3.9 * panels, 4.3))
    left = axes[0][0]
    at_best = [c for c in found.candidates if c.peak_lr == found.best.peak_lr]
    _candidates(left, found, at_best, "fraction", f"base rate {found.best.peak_lr:g}")
    losses = np.array([c.loss for c in at_best])
    _limit_to(left, np.append(losses[losses <= np.quantile(losses, _SHOWN)], found.best.loss))
    left.set(xlabel="length of the cooldown as a fraction of the run", ylabel="final loss")
    if panels == 2:
        right = axes[0][1]
        _candidates(right, found, list(found.best_of_each), "peak_lr", "best cooldown of each rate")
        _limit_to(right, np.array([c.loss for c in found.best_of_each]))  # of few rates none may be out of sight
        right.set(xlabel="base rate", xscale="log")
        right.set_xticks(rates, [f"{rate:.3g}" for rate in rates], rotation=45)
        right.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", **LEGEND)
    figure.suptitle(f"{found.law}: {found.steps} updates" + (f", {found.after} made" * bool(found.after)))
    return figure


def _candidates(axis: Axes, found: Plan, shown: Sequence[Candidate], place: str, title: str) -> None:
    """Lines of one kind of candidates by shape, with the interval of the difference to the best around each."""
    shapes = list(dict.fromkeys(c.decay for c in sorted(found.candidates, key=lambda c: c.decay)))
    for shape, colour in zip(shapes, _curve_colours(len(shapes)), strict=True):
        line = sorted((c for c in shown if c.decay == shape), key=lambda c: float(getattr(c, place)))
        x, y, half, alike = (np.array([getattr(c, n) for c in line], dtype=float)
                             for n in (place, "loss", "half", "alike"))  # fmt: skip
        axis.fill_between(x, y - half, y + half, color=colour, alpha=0.18, lw=0)
        axis.plot(x, y, color=colour, lw=1.3, label=shape)
        for chosen, face in ((alike > 0, colour), (alike == 0, "white")):
            axis.plot(x[chosen], y[chosen], "o", ms=4.5, color=colour, mfc=face, mew=1.1, zorder=3)
    best = found.best
    axis.plot(getattr(best, place), best.loss, "*", label=_named(best), **_STAR)
    axis.axhline(best.loss, **NULL)
    if not math.isnan(best.half):
        axis.plot([], [], "o", ms=4.5, color=GREY, label="not told from the best")
        axis.plot([], [], "o", ms=4.5, color=GREY, mfc="white", label="worse")
        axis.fill_between([], [], [], color=GREY, alpha=0.3, lw=0, label="95 % of the difference to the best")
    axis.set_title(title, fontsize=10)
    _bare(axis)


def _named(best: Candidate) -> str:
    return f"best: {best.decay}, cooldown {best.fraction:.3g}"


# --- scores ----------------------------------------------------------------------------------------------------------
def scores(of: Sequence[Score]) -> Figure | None:
    """Mean absolute error on held-out curves, a row for each law, a panel for each protocol.

    Returns:
        The figure; None where no law was scored.
    """
    known = [s for s in summaries(of) if s.group == "all" and s.mae > 0]
    if not known:
        return None
    protocols = list(dict.fromkeys(s.protocol for s in known))
    means = {law: _mean_log(known, law) for law in dict.fromkeys(s.law for s in known)}
    laws = sorted(means, key=lambda law: -means[law])
    height = 1.7 + 0.34 * len(laws)
    figure, axes = _grid(1, len(protocols), (2.2 + 2.9 * len(protocols), height + 0.9))
    for axis, protocol in zip(axes[0], protocols, strict=True):
        _protocol(axis, [s for s in known if s.protocol == protocol], laws)
        axis.set_title(f"protocol {protocol}", fontsize=10)
        axis.set_yticks(range(len(laws)), laws if axis is axes[0][0] else [""] * len(laws))
    figure.supxlabel("mean absolute error on held-out curves (black: mean over the data sets)", fontsize=9)
    return figure


_ROUND = (1.0, 2.0, 5.0)


def _round_ends(values: Sequence[float]) -> tuple[float, float]:
    """The nearest of 1, 2 and 5 times a power of ten on both sides: a narrower axis would have a single such tick."""
    powers = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 2)
    places = [digit * 10.0**power for power in powers for digit in _ROUND]
    return max(p for p in places if p < min(values)), min(p for p in places if p > max(values))


def _mean_log(known: Sequence[Score], law: str) -> float:
    return float(np.mean([math.log(s.mae) for s in known if s.law == law]))


def _protocol(axis: Axes, known: Sequence[Score], laws: Sequence[str]) -> None:
    data = list(dict.fromkeys(s.data for s in known))
    few = len(data) <= len(CYCLE)
    for name, colour in zip(data, _curve_colours(len(data)) if few else [GREY] * len(data), strict=True):
        points = [(s.mae, laws.index(s.law)) for s in known if s.data == name]
        style: dict[str, Any] = {"color": colour, "ms": 6 if few else 3.5, "alpha": 0.85 if few else 0.4, "mew": 0}
        axis.plot(*zip(*points, strict=True), "o", label=name if few else None, **style)
    for row, law in enumerate(laws):
        errors = [s.mae for s in known if s.law == law]
        if errors:
            axis.plot(float(np.mean(errors)), row, "|", color="black", ms=15, mew=2)
    axis.set_xscale("log")
    axis.set_xlim(*_round_ends([s.mae for s in known]))
    axis.xaxis.set_major_locator(LogLocator(subs=_ROUND))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.minorticks_off()
    axis.set_ylim(-0.6, len(laws) - 0.4)
    axis.grid(axis="y", color=GREY, alpha=0.2, lw=0.7)
    _bare(axis)
    if few:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), **{**LEGEND, "fontsize": 7})
    else:
        axis.plot([], [], "o", color=GREY, ms=3.5, label=f"{len(data)} pairs of data")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), **{**LEGEND, "fontsize": 7})


def _bare(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
