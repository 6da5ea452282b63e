"""How well loss-curve laws predict published runs that they were not fitted to; `riverval.law_trials` says which.

The final loss of the lr-scheduling runs is measured on more data than the running one and differs by an offset. It is
estimated from the curves that a trial was fitted to (or transferred on): the final loss minus the last running loss,
less the change that the law predicts between the two, and the mean over the curves. A law sees running losses only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ._checks import pick
from ._typing import ArrayLike, FloatArray
from .curves import Curve, LeftOut
from .errors import InputError, RivervalError
from .law_known import PUBLISHED
from .law_trials import SHORT, Tell, Trial, list_trials
from .laws import LAWS, NORMAL, fit_law, known_law

__all__ = ["SHORT_COOLDOWNS", "Score", "score_laws", "summaries"]

# What a fit may end with on data that a law is not made for.
_FAILURES = (RivervalError, ArithmeticError, ValueError, RuntimeError)
_MULTI_POWER = "multi-power"
SHORT_COOLDOWNS = f"c<={SHORT:g}"
"""Group of the cooldowns of at most that share of the run."""


class Predicted(Protocol):
    """What a law predicts: losses with the ends of their 95 % interval."""

    @property
    def loss(self) -> FloatArray: ...
    @property
    def low(self) -> FloatArray: ...
    @property
    def high(self) -> FloatArray: ...


class Fitted(Protocol):
    """A law with its parameters, as `riverval.laws.fit_law` returns it."""

    @property
    def parameters(self) -> Mapping[str, Any]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    def predict(self, schedule: Any, steps: Any = None) -> Predicted: ...


Fit = Callable[[str, Sequence[Curve]], Fitted]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a law did on one target, or on several (`group` is then "all", "cooldowns", "c<=0.4" or "cosine").

    Attributes:
        parameters: how many were fitted.
        given: how many were taken as published.
        group: what `target` is: "curve" for a single one.
        target: name of the curve; how many there are of several.
        count: measured losses, or targets where there are several.
        mae: mean absolute error; over several targets the mean of theirs.
        r2: share of the variance of the losses along a curve that is predicted, and its mean over several curves; for
            final losses over all of them; nan for a single one.
        worst: largest absolute error.
        end: predicted minus measured loss at the end; over several targets the mean of theirs.
        inside: share of the losses within the law's 95 % interval; nan where it has none.
        offset, offset_spread: from the running to the final loss, and the largest difference between its estimates.
        seconds: time of the fit.
        note: what the fit said, or why there is none.
    """

    protocol: str
    data: str
    law: str
    parameters: int = 0
    given: int = 0
    fitted_on: str = ""
    group: str = "all"
    target: str = ""
    count: int = 0
    mae: float = math.nan
    r2: float = math.nan
    worst: float = math.nan
    end: float = math.nan
    inside: float = math.nan
    offset: float = math.nan
    offset_spread: float = math.nan
    seconds: float = math.nan
    note: str = ""


# --- scores ----------------------------------------------------------------------------------------------------------
def score_laws(
    curves: Sequence[Curve],
    laws: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    *,
    fit: Fit | None = None,
    left_out: Sequence[LeftOut] = (),
    tell: Tell | None = None,
) -> list[Score]:
    """Fit laws and hold their predictions against the curves.

    Args:
        curves: the published curves.
        laws: names; all of `riverval.laws.LAWS` if None.
        protocols: keys of `PROTOCOLS`; all if None.
        fit: called with a name and the training curves; `riverval.laws.fit_law` if None.
        left_out: runs that could not be read: an error where one would be fitted.
        tell: called with a line of progress now and then.

    Returns:
        For each law and trial a score over all targets, over the kinds of them, and of each. A law that cannot be
        fitted has one, whose note says why. With the multi-power law comes, in protocol M, the same law with the
        published parameters of the size, under the name "multi-power, published".

    Raises:
        InputError: an unknown law or protocol, or as `riverval.law_trials.list_trials`.
    """
    if fit is None:
        fit = fit_law
        laws = list(LAWS) if laws is None else list(laws)
        for name in laws:
            pick("law", name, LAWS)
    trials = list_trials(curves, protocols, left_out=left_out, tell=tell)
    scores = []
    for law in laws or ():
        fits: dict[tuple[str, ...], _Attempt] = {}
        for trial in trials:
            key = tuple(curve.name for curve in trial.train)
            if key not in fits:
                fits[key] = _attempt(partial(fit, law, trial.train))
            told = list(_score(trial, law, fits[key]))
            scores += told
            if tell:
                tell(f"protocol {trial.protocol}, {trial.data}: {law}: {told[0].note or f'MAE {told[0].mae:.4f}'}")
        if law == _MULTI_POWER:
            scores += _published(trials)
    return scores


def _published(trials: Sequence[Trial]) -> Iterator[Score]:
    """Of protocol M with the parameters that were published with its curves."""
    for trial in trials:
        if trial.protocol == "M" and trial.data in PUBLISHED:
            law = known_law(_MULTI_POWER, PUBLISHED[trial.data])
            told = _score(trial, f"{_MULTI_POWER}, published", _Attempt(law, "", math.nan))
            yield from (replace(s, parameters=0, given=s.parameters, fitted_on="as published") for s in told)


@dataclass(frozen=True)
class _Attempt:
    """What a call came to: its result, or why there is none."""

    result: Any
    why: str
    seconds: float


def _attempt(call: Callable[[], Any]) -> _Attempt:
    start = time.perf_counter()
    result, why = None, ""
    try:
        result = call()
    except _FAILURES as error:
        why = str(error) if isinstance(error, RivervalError) else f"{type(error).__name__}: {error}"
    return _Attempt(result, why, time.perf_counter() - start)


def _score(trial: Trial, law: str, fitted: _Attempt) -> Iterator[Score]:
    known: dict[str, Any] = {
        "protocol": trial.protocol, "data": trial.data, "law": law, "seconds": fitted.seconds,
        "fitted_on": ", ".join(curve.name for curve in trial.train),
    }  # fmt: skip
    if trial.refit:
        known["fitted_on"] += "; transferred on " + ", ".join(curve.name for curve in trial.refit)
    if fitted.why:
        yield Score(**known, note=f"not fitted: {fitted.why}")
        return
    model, notes = fitted.result, list(fitted.result.notes)
    known["parameters"] = len(model.parameters)
    if trial.refit and not hasattr(model, "transfer"):
        notes.append("offers no transfer: predicts as fitted")
    elif trial.refit:
        moved = _attempt(partial(model.transfer, trial.refit))
        if moved.why:
            yield Score(**known, note=f"not transferred: {moved.why}")
            return
        model = moved.result
    known["note"] = "; ".join(notes)
    done = _attempt(partial(_errors, trial, model))
    if done.why:
        yield Score(**{**known, "note": f"no prediction: {done.why}"})
        return
    yield from _tabulate(trial, known, done.result)


@dataclass(frozen=True)
class _Errors:
    """Predicted minus measured losses of one target, and what they are judged by."""

    target: Curve
    error: FloatArray
    measured: FloatArray
    inside: FloatArray
    offsets: list[float] = field(default_factory=list)


def _errors(trial: Trial, model: Fitted) -> list[_Errors]:
    offsets = _offsets(model, trial.refit or trial.train) if trial.ends else []
    if trial.ends and not offsets:
        raise InputError("no training run has a final loss, so the offset from the running loss is unknown")
    shift, unsure = _offset(offsets)
    out = []
    for target in trial.targets:
        steps: ArrayLike = [target.total] if trial.ends else target.steps
        measured = np.array([target.final_loss]) if trial.ends else target.loss
        p = model.predict(target.lr, steps)
        error = np.asarray(p.loss, dtype=np.float64) + shift - measured
        if not np.isfinite(error).all():
            raise InputError(f"predicts a loss that is not finite for {target.name}")
        out.append(_Errors(target, error, measured, _within(p, error, unsure), offsets))
    return out


def _offset(offsets: Sequence[float]) -> tuple[float, float]:
    """The offset of a run that was not seen, and half of its 95 % interval: runs vary, and so does the mean of a few.

    One estimate does not tell how runs vary, and adds nothing to the interval.
    """
    if len(offsets) < 2:
        return (offsets[0] if offsets else 0.0), 0.0
    return float(np.mean(offsets)), NORMAL * float(np.std(offsets, ddof=1)) * math.sqrt(1.0 + 1.0 / len(offsets))


def _within(p: Predicted, error: FloatArray, unsure: float) -> FloatArray:
    """1 for each loss within the interval widened by `unsure`, 0 outside, nan without an interval."""
    loss, low, high = (np.asarray(v, dtype=np.float64) for v in (p.loss, p.low, p.high))
    inside = (-np.hypot(high - loss, unsure) <= error) & (error <= np.hypot(loss - low, unsure))
    return np.where(np.isnan(low) | np.isnan(high), np.nan, inside.astype(np.float64))


def _offsets(model: Fitted, curves: Sequence[Curve]) -> list[float]:
    """Final minus last running loss, less the change that the law predicts in between, of each curve that has both."""
    out = []
    for curve in curves:
        if curve.final_loss is not None:
            last = int(curve.steps[-1])
            states = [last, curve.total] if last < curve.total else [curve.total]
            p = np.asarray(model.predict(curve.lr, states).loss, dtype=np.float64)
            out.append(float(curve.final_loss - curve.loss[-1] - (p[-1] - p[0])))
    return out


def _tabulate(trial: Trial, known: dict[str, Any], errors: list[_Errors]) -> Iterator[Score]:
    offsets = errors[0].offsets
    if offsets:
        known |= {"offset": float(np.mean(offsets)), "offset_spread": max(offsets) - min(offsets)}
    singles = [_single(known, e) for e in errors]
    for group, belongs in _GROUPS.items():
        if (belongs is None) or trial.ends:
            members = [k for k, e in enumerate(errors) if belongs is None or belongs(e.target)]
            if members:
                yield _joint(known, group, [singles[k] for k in members], [errors[k] for k in members], trial.ends)
    yield from singles


def _is_cooldown(curve: Curve) -> bool:
    return curve.facts.get("cooldown") is not None


# Kinds of runs whose final losses are also scored together.
_GROUPS: dict[str, Callable[[Curve], bool] | None] = {
    "all": None,
    "cooldowns": _is_cooldown,
    SHORT_COOLDOWNS: lambda curve: _is_cooldown(curve) and curve.facts["cooldown"] <= SHORT,
    "cosine": lambda curve: curve.facts["shape"] == "cosine",
}


def _single(known: dict[str, Any], e: _Errors) -> Score:
    size = np.abs(e.error)
    return Score(
        **known, group="curve", target=e.target.name, count=size.size, mae=float(size.mean()), worst=float(size.max()),
        r2=_r2(e.error, e.measured), end=float(e.error[-1]), inside=float(e.inside.mean()),
    )  # fmt: skip


def _joint(known: dict[str, Any], group: str, parts: list[Score], errors: list[_Errors], ends: bool) -> Score:
    ends_r2 = _r2(np.concatenate([e.error for e in errors]), np.concatenate([e.measured for e in errors]))
    return Score(
        **known, group=group, target=f"{len(parts)} curves", count=len(parts),
        mae=float(np.mean([s.mae for s in parts])), worst=max(s.worst for s in parts),
        r2=ends_r2 if ends else float(np.mean([s.r2 for s in parts])), end=float(np.mean([s.end for s in parts])),
        inside=float(np.mean([s.inside for s in parts])),
    )  # fmt: skip


def _r2(error: FloatArray, measured: FloatArray) -> float:
    spread = float(np.sum((measured - measured.mean()) ** 2))
    return 1.0 - float(np.sum(error**2)) / spread if spread > 0 else math.nan


def summaries(scores: Sequence[Score]) -> list[Score]:
    """The scores over several targets, and the notes of what failed."""
    return [score for score in scores if score.group != "curve"]
