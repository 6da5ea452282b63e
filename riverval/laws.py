r"""Laws of loss curves: fit one to measured curves, predict the curve of any schedule, with an interval.

>>> law = known_law("noise-floor", {"L0": 2.0, "A": 1.0, "N": 40.0, "alpha": 0.5})
>>> law.predict([0.01] * 100 + [0.001] * 10, steps=[100, 110]).loss.round(3).tolist()
[3.4, 3.035]
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import law_known, law_valley  # noqa: F401  (they fill the registry)
from ._checks import check_int, check_number, check_options, pick
from ._schedule import Schedule, rates_of
from ._typing import ArrayLike, FloatArray
from .curves import Curve
from .errors import InputError, StoreError
from .law_base import LAWS, Law, Prediction, Track, even_steps
from .law_errors import INTERVALS, carried_over, errors_of, left_out
from .law_fitting import Problem, fit, without_start

__all__ = [
    "DEFAULT_LAW", "LAWS", "FittedLaw", "fit_law", "known_law", "load_law", "make_law", "save_law",
]  # fmt: skip

DEFAULT_LAW = "river-valley"
"""The law that commands fit where none is named."""

_FORMAT = "riverval law 1"
NORMAL = 1.959963984540054
"""Half of the width of a 95 % interval, in standard deviations."""

_ANYTHING = 500.0  # in log L: an interval of this half-width excludes nothing, and its ends are finite


@dataclass(frozen=True, eq=False)
class FittedLaw:
    r"""A law with its parameters.

    Attributes:
        law: the law with its options.
        values: every parameter by name.
        errors: standard errors; nan for a parameter that was given or that lies on a bound.
        covariance: of the parameters in the order of `values`, (p, p); zero for those without an error.
        scale: root mean square of the residuals log L - log loss of the fit; nan for known parameters.
        discrepancy: root mean square of log L - log loss on curves or parts of curves that were left out of refits (see
            `fit_law`): what a prediction misses beside the error of its parameters; nan for known parameters.
        fit_options: how it was fitted.
        notes: what a reader must know: bounds that were touched, more than one minimum, no convergence.
        fitted_on: name of each curve and its number of points.
        seen: of the fitted schedules, empty for known parameters: `peak_lrs`, their largest rates in increasing order;
            `updates` of the longest; `warmup`, the fewest updates before the largest rate.
    """

    law: Law
    values: dict[str, float]
    errors: dict[str, float]
    covariance: FloatArray
    scale: float = math.nan
    discrepancy: float = math.nan
    fit_options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fitted_on: tuple[tuple[str, int], ...] = ()
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the law."""
        return self.law.name

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """(value, standard error) by name."""
        return {name: (value, self.errors[name]) for name, value in self.values.items()}

    def predict(self, schedule: Schedule | ArrayLike, steps: ArrayLike | None = None) -> Prediction:
        """The loss after each of `steps` updates of a schedule, with a 95 % interval.

        log L has the variance g' V g + d^2: V the covariance of the parameters, g the derivative of log L by them, d
        the discrepancy. Unlike the parameters, a discrepancy is not known to shrink with more points.

        Args:
            schedule: a schedule, or the rate of every update from the first on.
            steps: updates done, increasing, in 1..T; None takes at most 1000 that are evenly spaced and end at T, but
                none before the first update that moves.

        Raises:
            InputError: a bad schedule or bad steps, or states at which the law has no value.
        """
        track = Track.of(rates := rates_of(schedule), even_steps(rates) if steps is None else steps)
        prepared = self.law.prepare(track)
        c, theta = self.law.split(self.values)
        X = self.law.columns(prepared, theta)
        loss = X @ c
        spread = np.minimum(NORMAL * np.sqrt(self._variance(prepared, X, loss) + self.discrepancy**2), _ANYTHING)
        return Prediction(track.steps, loss, loss * np.exp(-spread), loss * np.exp(spread))

    def slopes(self, schedule: Schedule | ArrayLike, steps: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """The loss, shape (n,), and its derivatives by the parameters, shape (n, p), in the order of `values`.

        For what depends on several predictions at once: with V = `covariance`, the difference of two losses with the
        derivatives g and h has the variance (g - h)' V (g - h). A nonlinear parameter without an error has the
        derivative 0.

        Args:
            schedule: a schedule, or the rate of every update from the first on.
            steps: updates done, increasing, in 1..T.

        Raises:
            InputError: as `predict`.
        """
        prepared = self.law.prepare(Track.of(rates_of(schedule), steps))
        c, theta = self.law.split(self.values)
        X = self.law.columns(prepared, theta)
        loss: FloatArray = X @ c
        return loss, self._slopes(prepared, X, loss)

    def _variance(self, prepared: Any, X: FloatArray, loss: FloatArray) -> FloatArray:
        """Of log L, from the errors of the parameters."""
        slopes = self._slopes(prepared, X, loss) / np.where(loss > 0, loss, np.nan)[:, None]
        variance: FloatArray = np.einsum("ni,ij,nj->n", slopes, self.covariance, slopes)
        return np.maximum(variance, 0.0)

    def _slopes(self, prepared: Any, X: FloatArray, loss: FloatArray) -> FloatArray:
        c, theta = self.law.split(self.values)
        slopes = np.zeros((loss.size, len(self.values)))
        slopes[:, : c.size] = X
        for k, t in enumerate(self.law.thetas):
            if math.isnan(self.errors[t.name]):
                continue
            z = t.search(theta[k])
            moved = [*theta[:k], t.value(z + 1e-5), *theta[k + 1 :]]
            slopes[:, c.size + k] = (self.law.columns(prepared, moved) @ c - loss) / (moved[k] - theta[k])
        return slopes

    def points_of(self, curves: Sequence[Curve]) -> list[Curve]:
        """Of the curves that were fitted, the points that were; `curves` holds the whole ones under the same names."""
        counts = dict(self.fitted_on)
        return [
            replace(c, steps=c.steps[-counts[c.name] :], loss=c.loss[-counts[c.name] :])
            for c in curves
            if c.name in counts
        ]

    def transfer(self, curves: Sequence[Curve], **options: Any) -> FittedLaw:
        """The same law on another run: the river's level L0 and amplitude A are fitted anew, the rest is kept.

        The errors of what is kept are carried over, with what they do to L0 and A. That the other run has the same
        values is taken for granted; the discrepancy is that on `curves`.

        Args:
            curves: curves of that run, such as a part of its stable phase.
            options: `weighting`, `interval`, `skip` and `seed` of `fit_law`. Where they are not given, `weighting` and
                `skip` are those with which this law was fitted; the others, and all of known parameters, are the
                defaults of `fit_law`.

        Raises:
            InputError: as `fit_law`.
        """
        options = {k: v for k, v in self.fit_options.items() if k in ("weighting", "skip")} | options
        kept = {name: value for name, value in self.values.items() if name not in ("L0", "A")}
        moved = _fit(self.law, curves, fixed=kept, **options)
        refitted = {name: error for name, error in moved.errors.items() if name not in kept}
        both = replace(moved, errors={**self.errors, **refitted})
        points = [both.slopes(c.lr, c.steps) for c in moved.points_of(curves)]
        slopes = np.concatenate([slope / loss[:, None] for loss, slope in points])
        fitted = np.array([not math.isnan(refitted.get(name, math.nan)) for name in moved.values])
        covariance = carried_over(self.covariance, moved.covariance, slopes, fitted)
        errors = dict(zip(both.errors, np.sqrt(np.diag(covariance)).tolist(), strict=True))
        known = {name: math.nan if math.isnan(old) else errors[name] for name, old in both.errors.items()}
        return replace(moved, covariance=covariance, errors=known)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` builds the equal law."""
        return {
            "format": _FORMAT,
            "law": self.name,
            "options": self.law.options(),
            "values": self.values,
            "errors": {name: _plain(error) for name, error in self.errors.items()},
            "covariance": self.covariance.tolist(),
            "scale": _plain(self.scale),
            "discrepancy": _plain(self.discrepancy),
            "fit_options": self.fit_options,
            "notes": list(self.notes),
            "fitted_on": [list(entry) for entry in self.fitted_on],
            "seen": self.seen,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FittedLaw:
        """The law of a `to_dict`.

        Raises:
            InputError: not such a record, or one whose parameters do not fit its law.
        """
        if not isinstance(record, Mapping) or record.get("format") != _FORMAT:
            raise InputError(f"not the record of a fitted law (format {_FORMAT!r}); make one with save_law")
        try:
            law = make_law(record["law"], **record["options"])
            values = {name: float(value) for name, value in record["values"].items()}
            law.split(values)
            fitted = cls(
                law=law,
                values={p: values[p] for p in law.parameters()},  # as the covariance, whatever the order in the file
                errors={name: _number(error) for name, error in record["errors"].items()},
                covariance=np.array(record["covariance"], dtype=np.float64),
                scale=_number(record["scale"]),
                discrepancy=_number(record["discrepancy"]),
                fit_options=dict(record["fit_options"]),
                notes=tuple(record["notes"]),
                fitted_on=tuple((name, int(points)) for name, points in record["fitted_on"]),
                seen=dict(record["seen"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the record of the law is damaged: {error!r}; fit the law again") from None
        p = len(fitted.values)
        if set(fitted.errors) != set(fitted.values) or fitted.covariance.shape != (p, p):
            raise InputError("the record of the law is damaged: its errors do not fit its parameters; fit it again")
        return fitted


# --- making laws -----------------------------------------------------------------------------------------------------
def make_law(name: str, **options: Any) -> Law:
    """The law of that name with its options.

    Raises:
        InputError: an unknown law or option, or an option out of range.
    """
    law = pick("law", name, LAWS)
    check_options(f"the law {name!r}", options, law.__dataclass_fields__)
    return law(**options)


def known_law(name: str, values: Mapping[str, float], **options: Any) -> FittedLaw:
    """A law with given parameters, such as published ones; without errors, so its intervals are nan.

    Raises:
        InputError: an unknown law or option, or parameters that are missing, unknown or out of range.
    """
    law = make_law(name, **options)
    law.split(values)
    ordered = {p: float(values[p]) for p in law.parameters()}
    return FittedLaw(law, ordered, dict.fromkeys(ordered, math.nan), np.zeros((len(ordered), len(ordered))))


def fit_law(
    name: str,
    curves: Sequence[Curve],
    *,
    fixed: Mapping[str, float] | None = None,
    weighting: str = "points",
    interval: str = "folds",
    skip: float = 0.05,
    seed: int = 0,
    **options: Any,
) -> FittedLaw:
    r"""Fit a law to curves, all with the same parameters.

    The cost is Huber's of log L - log loss (see `riverval.law_fitting`). The covariance of the parameters is
    s^2 tau (J' W J)^-1: J the derivative of the residuals, W the weights, s^2 = sum W r^2 / (N - p), and tau the
    correlation time of the residuals along a curve (`correlation_time`): N correlated points count as N / tau. What a
    law takes as known before narrows it, by no more than its true weight in the cost (`riverval.law_errors`).

    The discrepancy of predictions is the root mean square error of refits on what they left out: one curve each where
    there are three or more, else the last third of each curve. It is a mean over the kinds of curves at hand; a
    schedule unlike all of them can be missed by more.

    Args:
        name: a name in `LAWS`.
        curves: curves of one model, one or more.
        fixed: parameters that are not fitted, by name.
        weighting: points or curves, see `riverval.law_fitting.WEIGHTING`.
        interval: folds or residuals, see `INTERVALS`; residuals saves the refits.
        skip: points before this share of the largest cumulative rate of the curves are left out: no law here knows of
            the first moments of training.
        seed: of the random ones among the starts.
        options: of the law.

    Returns:
        The fitted law; `notes` says what was not regular.

    Raises:
        InputError: an unknown name or option, bad curves, or too few points.
    """
    check_int("seed", seed)
    law = make_law(name, **options)
    return _fit(law, curves, fixed=fixed or {}, weighting=weighting, interval=interval, skip=skip, seed=seed)


def _fit(
    law: Law,
    curves: Sequence[Curve],
    *,
    fixed: Mapping[str, float],
    weighting: str = "points",
    interval: str = "folds",
    skip: float = 0.05,
    seed: int = 0,
) -> FittedLaw:
    pick("interval", interval, INTERVALS)
    curves, early = without_start(curves, check_number("skip", skip, low=0.0, high=0.9))
    problem = Problem.of(law, curves, fixed=fixed, weighting=weighting)
    best, notes = fit(problem, seed=seed)
    values = dict(fixed)
    values.update({law.coefficients[j]: float(c) for j, c in zip(problem.solved, best.c, strict=True)})
    values.update({t.name: v for t, v in zip(law.thetas, problem.theta(best.z), strict=True)})
    errors, covariance, said = errors_of(problem, best)
    scale = _rms(best.residual)
    missed = _rms(left_out(problem, best)) if interval == "folds" else scale
    return FittedLaw(
        law=law,
        values={p: float(values[p]) for p in law.parameters()},
        errors=errors,
        covariance=covariance,
        scale=scale,
        discrepancy=max(missed, scale),
        fit_options={"fixed": dict(fixed), "weighting": weighting, "interval": interval, "skip": skip, "seed": seed},
        notes=tuple(early + notes + said),
        fitted_on=tuple((c.name, len(c.loss)) for c in curves),
        seen=_seen(curves),
    )


def _seen(curves: Sequence[Curve]) -> dict[str, Any]:
    """What a plan must know of the fitted schedules, with rates to the six digits that logs have."""
    peaks = [float(c.lr.max()) for c in curves]
    full = [int(np.argmax(c.lr >= (1.0 - 1e-6) * peak)) for c, peak in zip(curves, peaks, strict=True)]
    return {
        "peak_lrs": sorted({float(f"{peak:.6g}") for peak in peaks}),
        "updates": max(c.total for c in curves),
        "warmup": min(full) + 1 if min(full) else 0,
    }


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _plain(number: float) -> float | None:
    return None if math.isnan(number) else number


def _number(plain: float | None) -> float:
    return math.nan if plain is None else float(plain)


# --- files -----------------------------------------------------------------------------------------------------------
def save_law(law: FittedLaw, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a fitted law as JSON, all or nothing.

    Raises:
        InputError: the file exists and `overwrite` is False.
        StoreError: it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another name, or replace it with overwrite")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(law.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def load_law(path: str | Path) -> FittedLaw:
    """The law of a file that `save_law` wrote.

    Raises:
        StoreError: the file is missing or cannot be read.
        InputError: it does not hold a fitted law.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        raise InputError(f"{path} is not JSON; a fitted law is what save_law or riverval law fit wrote") from None
    try:
        return FittedLaw.from_dict(record)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
