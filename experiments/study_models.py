"""Studies of what is trained: `paper`, `architectures`, `width`, `to-convergence` and `noise`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_number, pick
from .._format import counted
from .._typing import FloatArray
from ..errors import InputError
from .acceptance import NAMES, RATIOS, Test, acceptance, left_out_told, over_seeds
from .architectures import ARCHITECTURES
from .config import RunConfig
from .study import LOSSES_ONLY, Bench, Finding, Plan, Runs, Setting, Study, cosine, length, plan_of, wsd
from .study_data import over_seeds as mean_over_seeds

_TESTED = ("value", "error", "low", "high", "null", "bound", "verdict", "held")  # of `Test`, stored as criterion_...


def _factors(name: str, values: Sequence[float]) -> None:
    for value in values:
        check_number(name, value, low=0.0, open_low=True, what="a factor")
    if len(set(values)) != len(values) or not values:
        raise InputError(f"{name} must be different numbers, at least one, got {tuple(values)}")


# --- paper and architectures -----------------------------------------------------------------------------------------
def _pair(base: RunConfig, told: str = "") -> list[Plan]:
    """WSD with all probes, and the cosine run of the same length that its final loss is held against."""
    reference = f"{told}cosine"
    fraction = base.schedule["cooldown"]
    measured = plan_of(f"{told}wsd {fraction:g}", base, wsd(base, fraction, length(base)), against=reference)
    return [measured, plan_of(reference, base, cosine(base), **LOSSES_ONLY)]


def paper_plans(bench: Bench, s: Setting) -> list[Plan]:
    """The comparison of arXiv:2601.09000."""
    return _pair(bench.base())


@dataclass(frozen=True)
class ArchitecturesSetting(Setting):
    """Names of architectures; none: all of the same kind of data as the one asked for."""

    archs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for arch in self.archs:
            pick("architecture", arch, ARCHITECTURES)


def architecture_plans(bench: Bench, s: ArchitecturesSetting) -> list[Plan]:
    """The same comparison for several architectures, each at its own defaults or those of the preset."""
    kind = ARCHITECTURES[bench.arch].data_kind
    for arch in s.archs:
        if ARCHITECTURES[arch].data_kind != kind:
            raise InputError(
                f"{arch} takes {ARCHITECTURES[arch].data_kind}, the study is of {kind}; use another --arch"
            )
    archs = s.archs or tuple(name for name, a in ARCHITECTURES.items() if a.data_kind == kind)
    return [plan for arch in archs for plan in _pair(bench.base(arch), f"{arch} ")]


def criteria(ds: xr.Dataset, s: Setting, plans: Sequence[Plan], runs: Runs) -> dict[str, Any]:
    """The acceptance tests of every plan that was measured, over its seeds; see `acceptance`."""
    rows: dict[str, list[Any]] = {f"criterion_{name}": [] for name in _TESTED}
    values = []
    missing = {"verdict": "not measured", "held": 0}
    for plan in plans:
        by_seed = {seed: _tests(plan, int(seed), runs) for seed in ds["seed"].values}
        known = [tests for tests in by_seed.values() if tests]
        found = over_seeds(known) if known else []
        for name in _TESTED:
            one = [getattr(t, name) for t in found] or [missing.get(name, math.nan)] * len(NAMES)
            rows[f"criterion_{name}"].append(one)
        values.append([[t.value for t in tests] or [math.nan] * len(NAMES) for tests in by_seed.values()])
    return {"criterion": list(NAMES), **rows, "criterion_seed_value": np.swapaxes(values, 0, 1)}


def _tests(plan: Plan, seed: int, runs: Runs) -> list[Test]:
    """The tests of one cell; none where it is not done, diverged or was not probed."""
    ds = runs.get((plan.name, seed))
    if ds is None or ds.attrs["status"] != "complete" or not plan.config.snapshots:
        return []
    reference = runs.get((plan.against, seed))
    whole = reference is not None and reference.attrs["status"] == "complete"
    return acceptance(ds, reference if whole else None)


def criterion_numbers(ds: xr.Dataset) -> list[Finding]:
    """The table of the acceptance tests."""
    rows = []
    for plan, against in zip(ds["plan"].values, ds["plan_against"].values, strict=True):
        if plan == against:
            continue
        for criterion in ds["criterion"].values:
            at = ds.sel(plan=plan, criterion=criterion)
            low, high, null = (float(at[f"criterion_{name}"]) for name in ("low", "high", "null"))
            told = f"{at['criterion_verdict'].item()}, 95 % in [{low:.3g}, {high:.3g}], null {null:.3g}"
            if criterion != NAMES[0]:  # one pair of runs has no interval, so it holds by itself in no seed
                told += f"; {int(at['criterion_held'])} of {counted(ds.sizes['seed'], 'seed')} by themselves"
            if criterion in RATIOS and (left_out := int((at["criterion_seed_value"] <= 0).sum())):
                told += f"; {left_out_told(left_out)}"
            rows.append(
                Finding(f"{plan}: {criterion}", float(at["criterion_value"]), float(at["criterion_error"]), told)
            )
    return rows


# --- width -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class WidthSetting(Setting):
    """Factors of all hidden widths."""

    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        _factors("factors", self.factors)


def width_plans(bench: Bench, s: WidthSetting) -> list[Plan]:
    """WSD against cosine at every width, the same rate at all."""
    made = []
    for factor in s.factors:
        base = bench.base(width_factor=factor)
        reference = f"cosine, width {factor:g}"
        schedule = wsd(base, base.schedule["cooldown"], length(base))
        made.append(plan_of(f"wsd, width {factor:g}", base, schedule, against=reference, **LOSSES_ONLY))
        made.append(plan_of(reference, base, cosine(base), **LOSSES_ONLY))
    return made


# --- to-convergence --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LengthsSetting(Setting):
    """Lengths of the runs in those of the base."""

    lengths: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)

    def __post_init__(self) -> None:
        _factors("lengths", self.lengths)


def length_plans(bench: Bench, s: LengthsSetting) -> list[Plan]:
    """WSD branches of one trunk against one cosine for each length, until the training set is fitted."""
    base = bench.base()
    made = []
    for factor in s.lengths:
        steps = max(2, round(factor * length(base)))
        reference = f"cosine to {steps}"
        schedule = wsd(base, base.schedule["cooldown"], steps)
        made.append(plan_of(f"wsd to {steps}", base, schedule, against=reference, steps=steps, **LOSSES_ONLY))
        made.append(plan_of(reference, base, cosine(base), steps=steps, **LOSSES_ONLY))
    return made


# --- noise -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NoiseSetting(Setting):
    """Factors of the base's batch and of its peak rate."""

    batches: tuple[float, ...] = (0.25, 1.0, 4.0)
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        _factors("batches", self.batches)
        _factors("rates", self.rates)


def noise_plans(bench: Bench, s: NoiseSetting) -> list[Plan]:
    """WSD at every batch and rate, all over the same number of examples and with the same share of warmup."""
    base = bench.base()
    made = []
    for factor in s.batches:
        batch = max(1, round(factor * base.batch))
        here = bench.base(batch=batch)
        share = base.batch / batch
        steps = max(2, round(share * length(base)))
        changes = {"steps": steps, "eval_every": max(1, round(share * base.eval_every)), **LOSSES_ONLY}
        for rate in s.rates:
            described = {
                "name": "wsd", "cooldown": base.schedule["cooldown"], "shape": base.schedule["shape"],
                "warmup": round(share * base.schedule["warmup"]),
            }  # fmt: skip
            told = f"batch {batch}, rate "
            of = s.rates[0] if 1.0 not in s.rates else 1.0
            against = f"{told}{of * base.lr:g}"
            name = f"{told}{rate * base.lr:g}"
            made.append(plan_of(name, here, described, against=against, lr=rate * base.lr, **changes))
    return made


_UNKNOWN = "needs 4 evaluations in the second half of the stable phase; --set eval_every to less"
GAINS = {"gain": "cooldown_gain", "hill": "cooldown_hill"}
"""Names of what the powers are of, and the metric behind each."""


def exponents(ds: xr.Dataset, s: NoiseSetting, plans: Sequence[Plan], runs: Runs) -> dict[str, Any]:
    """Powers a, b of gain ~ rate^a batch^b by least squares of logarithms, seed by seed.

    Expected of the noise floor of a quadratic at small rates: a = 1 and b = -1 for SGD, whose floor is
    (rate/4) Tr Sigma with Sigma ~ 1/batch, b = -1/2 for Adam, (rate/4) sum of standard deviations (derived). The whole
    gain of the cooldown holds what the trunk would have gained besides, so that its powers come out nearer to 0; the
    part beyond the river (`riverval.compare.cooldown_gain`) has powers of its own. What is 0 or below has no
    logarithm and is left out, which biases the powers; the table counts it.
    """
    rates, batches = ds["plan_peak"].values, ds["plan_batch"].values.astype(float)
    found: dict[str, Any] = {}
    for of, metric in GAINS.items():
        powers = np.array([fit_powers(rates, batches, row) for row in _of_metric(ds, metric)])
        (rate, batch), (rate_error, batch_error), *_ = mean_over_seeds(powers)
        found |= {
            f"{of}_rate_exponent": rate, f"{of}_rate_exponent_error": rate_error,
            f"{of}_batch_exponent": batch, f"{of}_batch_exponent_error": batch_error,
        }  # fmt: skip
    return {**found, "gain_batch_exponent_expected": -1.0 if plans[0].config.optimizer == "sgd" else -0.5}


def _of_metric(ds: xr.Dataset, metric: str) -> FloatArray:
    """A metric by seed and plan; nan where no run has it."""
    if metric in ds["metric"]:
        return np.asarray(ds["outcome"].sel(metric=metric).transpose("seed", "plan").values, dtype=np.float64)
    return np.full((ds.sizes["seed"], ds.sizes["plan"]), np.nan)


def fit_powers(rates: FloatArray, batches: FloatArray, gains: FloatArray) -> tuple[float, float]:
    """Least-squares a, b of log gain = const + a log rate + b log batch over positive gains; nan if not determined.

    >>> r, b = np.array([1.0, 2.0, 1.0, 2.0]), np.array([1.0, 1.0, 4.0, 4.0])
    >>> [round(x, 6) for x in fit_powers(r, b, 3.0 * r / np.sqrt(b))]
    [1.0, -0.5]
    """
    use = np.isfinite(gains) & (gains > 0.0)
    design = np.column_stack([np.ones(int(use.sum())), np.log(rates[use]), np.log(batches[use])])
    if len(design) < 3 or np.linalg.matrix_rank(design) < 3:
        return math.nan, math.nan
    solution, *_ = np.linalg.lstsq(design, np.log(gains[use]), rcond=None)
    return float(solution[1]), float(solution[2])


def exponent_numbers(ds: xr.Dataset) -> list[Finding]:
    """The powers beside those of the theory, and how many gains have no logarithm."""
    expected = {"rate": 1.0, "batch": float(ds["gain_batch_exponent_expected"])}
    told = {"gain": "the gain of the cooldown", "hill": "its part beyond the river"}
    rows = []
    for of, metric in GAINS.items():
        gains = _of_metric(ds, metric)
        lost, known = int((gains <= 0).sum()), int(np.isfinite(gains).sum())
        without = f"; {lost} of {counted(known, 'gain')} left out, not above 0" if lost else ""
        for by, power in expected.items():
            value, error = (float(ds[f"{of}_{by}_exponent{e}"]) for e in ("", "_error"))
            words = f"noise floor of a quadratic: {power:g}{without}" if known else _UNKNOWN
            rows.append(Finding(f"power of the {by} in {told[of]}", value, error, words))
    return rows


PAPER = Study(
    name="paper",
    question="does WSD end as low as cosine, and what does its trajectory look like? All probes, acceptance tests",
    plans=paper_plans,
    derive=criteria,
    numbers=criterion_numbers,
)
ARCHITECTURES_STUDY = Study(
    name="architectures",
    question="is it the same for other architectures? All of the same kind of data, all probes, acceptance tests",
    setting=ArchitecturesSetting,
    plans=architecture_plans,
    derive=criteria,
    numbers=criterion_numbers,
    of_kind=True,
)
WIDTH = Study(
    name="width",
    question="does the gap to cosine close, and the gain of the cooldown shrink, as the network gets wider?",
    setting=WidthSetting,
    plans=width_plans,
)
TO_CONVERGENCE = Study(
    name="to-convergence",
    question="does the cooldown still gain, and WSD keep up with cosine, once the training set is fitted?",
    setting=LengthsSetting,
    plans=length_plans,
)
NOISE = Study(
    name="noise",
    question="how does the gain of the cooldown depend on batch and rate at the same number of examples?",
    setting=NoiseSetting,
    plans=noise_plans,
    derive=exponents,
    numbers=exponent_numbers,
)
