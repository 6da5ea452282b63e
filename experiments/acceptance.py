"""The acceptance tests of a reproduction of arXiv:2601.09000: numbered statements about finished runs, from datasets.

Each is a number with an interval, beside what it would be if there were nothing to find (its null), and a verdict by a
rule that is fixed here. "Above a bound" holds where the whole interval lies above the bound, fails where all of it lies
at or below, and is undecided between. "At a bound or below" holds unless the whole interval lies above the bound: it
says that nothing else was shown, and how well it could have been is the interval's length.

What one run's interval is of differs: the batches of the probe (2), the error bounds of eigenvalues (3), the snapshots
(4), the probed states (6). None of them has another seed in it; `over_seeds` has. No torch is needed.

The largest rise (2b) is that of the pair of places which noise favoured, out of A (A - 1) / 2: its interval is the
simultaneous one of all pairs (Bonferroni), so that it holds for the chosen one too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from .._format import counted, number
from .._typing import FloatArray
from ..errors import InputError

VERDICTS = ("holds", "fails", "undecided", "not measured")
LEVEL = 0.05  # two-sided, of every interval
POSITIVE_SHARE = 0.95  # of tau_i that must be above 0
# Of two runs that differ by their schedule: all that determines the path but for the shape of the rates. How it is
# computed (device, threads, compile, the pieces of a batch) changes the last bits only.
_SAME = (
    "arch", "data_sha256", "seed", "steps", "lr", "batch", "optimizer", "momentum", "weight_decay", "betas", "eps",
    "clip", "width_factor", "widths", "size", "seq", "tokenizer", "vocab", "augment", "precision", "final_examples",
)  # fmt: skip


@dataclass(frozen=True)
class Test:
    """One statement about a run, or about several seeds of one.

    Attributes:
        name: number and quantity; the same in every run.
        value: measured; over seeds their mean, of ratios the geometric one. nan where it was not measured.
        low, high: interval at 95 %, nan where there is none.
        null: the value if there were nothing to find; nan where it was not measured.
        verdict: one of `VERDICTS`.
        bound: what the statement compares with.
        above: whether it says "above the bound"; else "at the bound or below".
        ratio: whether it is a ratio, whose logarithm is averaged.
        control: not one of the statements, but what they must be read beside.
        error: standard error of the mean over seeds; nan for one run.
        values: of the seeds, in their order; of one run, its value.
        held: seeds of which the statement holds by itself.
        left_out: seeds whose ratio is 0 or below, which has no logarithm.
    """

    __test__ = False  # not one of pytest's

    name: str
    value: float
    low: float
    high: float
    null: float
    verdict: str
    bound: float = 0.0
    above: bool = True
    ratio: bool = False
    control: bool = False
    error: float = math.nan
    values: tuple[float, ...] = ()
    held: int = 0
    left_out: int = 0


def acceptance(ds: xr.Dataset, cosine: xr.Dataset | None = None) -> list[Test]:
    """The six tests of one run in order, controls after their test; what the run lacks is "not measured".

    ==  ===========================================================  =================================
    1   final training loss minus that of cosine decay: 0 or below   null 0; no interval from one seed
    2a  stable segment, ends minus middle: above 0                   null 0; any convex bowl is above
    2b  cooldown segment, largest rise: 0                            null 0
    3   top Hessian eigenvalue, end over start of cooldown: above 1  null 1; control: preconditioned (see below)
    4   norm of Hv, early cooldown over late stable: above 1         null 1; control: matched window
    5   share of states with tau > 0 towards the last: above 0.95    null 0.5: a random reference
    6   mean cosine of update and minus gradient: above 0, its null  null: the gradient shuffled
    ==  ===========================================================  =================================

    The fifth is a count of the states that were looked at and lie above the last (tau is not defined for others), so
    its interval has no length. The control of the third leaves out the states of which the run notes that parameters
    without gradients carry the eigenvector, which tells of eps: it is of the first and last of those that are left.

    Args:
        ds: of a finished run with a stable phase and a cooldown.
        cosine: of the run of the same seed that differs by its schedule only; for the first test.

    Raises:
        InputError: `cosine` differs by more than its schedule: another seed, length, peak rate, optimizer or model.
    """
    found = {test.name: test for test in [*_final(ds, cosine), *_segments(ds), *_sharpness(ds), *_directions(ds),
                                          *_slopes(ds), *_cosines(ds)]}  # fmt: skip
    return [found.get(name, _missing(name)) for name in NAMES]


NAMES = (
    "1 final training loss, minus that of cosine decay",
    "2a stable segment, ends minus middle",
    "2b cooldown segment, largest rise",
    "3 top Hessian eigenvalue, end over start of the cooldown",
    "3 control: preconditioned eigenvalue, end over start",
    "4 norm of Hv, early cooldown over late stable",
    "4 control: over the matched stable window",
    "5 share of states with tau above 0",
    "6 mean cosine of update and minus gradient",
)
"""Every test and control, in order."""

RATIOS = NAMES[3:7]
"""Those that are ratios."""

_OF_EPS = re.compile(r"of the preconditioned eigenvector at state (\d+) is on")  # a note of the probe


def over_seeds(runs: Sequence[Sequence[Test]]) -> list[Test]:
    """The tests of several seeds of one run together: means with standard errors, Student intervals, verdicts.

    The error is the spread between seeds over sqrt(n), the interval mean -+ t error with t of n - 1 degrees of freedom
    (4.3 for three seeds). Of ratios all of that is of the logarithm; those of 0 or below are left out and counted. The
    largest rise is lifted by noise in every seed, so that its mean over seeds is no sign of one: its interval reaches
    down to the mean lower end of the seeds' own. Seeds that did not measure a test are left out of it; with fewer than
    two left it is as the one run has it.

    Args:
        runs: what `acceptance` gave for each seed.

    Raises:
        InputError: no runs.
    """
    if not runs:
        raise InputError("tests over seeds need at least one run, got none")
    return [_together([test for run in runs for test in run if test.name == name], name) for name in NAMES]


def acceptance_rows(tests: Sequence[Test]) -> list[tuple[str, str, str, str]]:
    """Rows (test, measured, null, verdict) for a table."""
    return [(test.name, _measured(test), _told(test.null), _verdict_told(test)) for test in tests]


def _measured(test: Test) -> str:
    if math.isnan(test.value):
        return ""
    interval = "" if math.isnan(test.low) else f" [{number(test.low, 3)}, {number(test.high, 3)}]"
    return f"{number(test.value, 3)}{interval}"


def _told(value: float) -> str:
    return "" if math.isnan(value) else number(value, 3)


def _verdict_told(test: Test) -> str:
    told = [f"{test.held} of {len(test.values)} seeds"] if len(test.values) > 1 else []
    told += [left_out_told(test.left_out)] if test.left_out else []
    return f"{test.verdict} ({'; '.join(told)})" if told else test.verdict


def left_out_told(count: int) -> str:
    """That so many seeds are not in a mean of ratios."""
    return f"{counted(count, 'seed')} left out, whose ratio is not above 0"


# --- one run ---------------------------------------------------------------------------------------------------------
def _final(ds: xr.Dataset, cosine: xr.Dataset | None) -> Iterator[Test]:
    if cosine is None or "final_train_loss" not in ds or "final_train_loss" not in cosine:
        return
    ours, theirs = (json.loads(each.attrs.get("config", "{}")) for each in (ds, cosine))
    for field in _SAME:
        if ours.get(field) != theirs.get(field):
            raise InputError(
                f"the run with cosine decay must differ by its schedule only, but its {field} is "
                f"{theirs.get(field)!r} and not {ours.get(field)!r}"
            )
    gap = float(ds["final_train_loss"]) - float(cosine["final_train_loss"])
    # One pair of runs has no error: whatever comes out, it may be the seed.
    yield _judged(NAMES[0], gap, math.nan, math.nan, 0.0, above=False)


def _segments(ds: xr.Dataset) -> Iterator[Test]:
    if "interpolation_dip" not in ds:
        return
    batches, places = int(ds["interpolation_batches"]), ds.sizes.get("alpha", 2)
    for name, pair, of, chosen_of in (
        (NAMES[1], "stable", "dip", 1), (NAMES[2], "cooldown", "rise", math.comb(places, 2)),
    ):  # fmt: skip
        if pair in ds["pair"]:
            t = float(stdtrit(batches - 1, 1 - LEVEL / 2 / chosen_of)) if batches > 1 else math.nan
            value, error = (float(ds[f"interpolation_{of}{e}"].sel(pair=pair)) for e in ("", "_error"))
            yield _judged(name, value, value - t * error, value + t * error, 0.0, above=of == "dip")


def _sharpness(ds: xr.Dataset) -> Iterator[Test]:
    for name, of in ((NAMES[3], "hessian"), (NAMES[4], "preconditioned")):
        if f"{of}_top" not in ds:
            continue
        one = ds[[f"{of}_top", f"{of}_top_bound"]].dropna("probe_step")
        if of != "hessian":
            noted = {int(state) for state in _OF_EPS.findall(ds.attrs.get("notes", ""))}
            one = one.sel(probe_step=[t for t in one["probe_step"].values if t not in noted])
        top, bound = one[f"{of}_top"].to_numpy(), one[f"{of}_top_bound"].to_numpy()
        if len(top) < 2 or top[0] - bound[0] <= 0:
            continue
        low, high = (top[-1] - bound[-1]) / (top[0] + bound[0]), (top[-1] + bound[-1]) / (top[0] - bound[0])
        yield _judged(name, top[-1] / top[0], low, high, 1.0, 1.0, ratio=True, control=of != "hessian")


def _directions(ds: xr.Dataset) -> Iterator[Test]:
    for name, of in ((NAMES[5], "direction_ratio"), (NAMES[6], "direction_ratio_matched")):
        if of in ds:
            value, low, high = (float(ds[f"{of}{end}"]) for end in ("", "_low", "_high"))
            yield _judged(name, value, low, high, 1.0, 1.0, ratio=True, control=of != "direction_ratio")


def _slopes(ds: xr.Dataset) -> Iterator[Test]:
    tau = _finite(ds, "quasi_convexity")
    if len(tau):
        share = float(np.mean(tau > 0))
        yield _judged(NAMES[7], share, share, share, 0.5, POSITIVE_SHARE)


def _cosines(ds: xr.Dataset) -> Iterator[Test]:
    cosines, nulls = _finite(ds, "gradient_cosine"), _finite(ds, "gradient_cosine_null")
    if len(cosines) > 1:
        mean, _, low, high = _interval(cosines)
        null = float(nulls.mean())
        yield _judged(NAMES[8], mean, low, high, null, max(0.0, null))


def _finite(ds: xr.Dataset, name: str) -> FloatArray:
    values = ds[name].to_numpy().astype(np.float64) if name in ds else np.zeros(0)
    found: FloatArray = values[np.isfinite(values)]
    return found


# --- verdicts --------------------------------------------------------------------------------------------------------
def _judged(
    name: str, value: float, low: float, high: float, null: float, bound: float = 0.0, *, above: bool = True,
    ratio: bool = False, control: bool = False,
) -> Test:  # fmt: skip
    """A test of one run."""
    verdict = _verdict(low, high, bound, above)
    held = int(verdict == "holds")
    value, low, high, null = (float(x) for x in (value, low, high, null))
    return Test(name, value, low, high, null, verdict, bound, above, ratio, control, values=(value,), held=held)


def _verdict(low: float, high: float, bound: float, above: bool) -> str:
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if low > bound:
        return "holds" if above else "fails"
    if high <= bound or not above:
        return "fails" if above else "holds"
    return "undecided"


def _missing(name: str) -> Test:
    return Test(name, math.nan, math.nan, math.nan, math.nan, "not measured", control="control" in name)


def _together(tests: list[Test], name: str) -> Test:
    known = [test for test in tests if math.isfinite(test.value) and not (test.ratio and test.value <= 0)]
    left_out = sum(test.ratio and test.value <= 0 for test in tests)
    if len(known) < 2:
        return replace(known[0] if known else _missing(name), left_out=left_out)
    one, values = known[0], np.array([test.value for test in known])
    bound, null = (float(np.mean([getattr(test, of) for test in known])) for of in ("bound", "null"))
    mean, error, low, high = _interval(np.log(values) if one.ratio else values)
    if one.ratio:
        mean, low, high = (math.exp(x) for x in (mean, low, high))
        error *= mean  # of the mean itself, to first order
    if name == NAMES[2]:
        low = min(low, float(np.mean([test.low for test in known])))
    verdict, held = _verdict(low, high, bound, one.above), sum(test.verdict == "holds" for test in known)
    return replace(
        one, value=mean, low=low, high=high, null=null, verdict=verdict, bound=bound, error=error,
        values=tuple(values.tolist()), held=held, left_out=left_out,
    )  # fmt: skip


def _interval(values: FloatArray) -> tuple[float, float, float, float]:
    """Mean, its standard error, and its interval by Student's t with n - 1 degrees of freedom."""
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    half = float(stdtrit(len(values) - 1, 1 - LEVEL / 2)) * error
    return mean, error, mean - half, mean + half
