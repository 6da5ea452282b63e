"""What a study is: the settings behind one figure, the runs they ask for, and the few numbers that matter in the end.

A study turns a frozen setting and a generator into a dataset in the schema, with the theory beside the simulation and a
standard error wherever something is random. Its picture (`riverval.plots_toy`) draws what is stored and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_int, check_options
from .._typing import FloatArray, Progress
from ..provenance import provenance
from ..schedules import Schedule
from ..schema import build
from ._loss import Loss
from ._record import seed_of
from .simulate import simulate_many

SCALE = 1000
"""A study reports its progress in thousandths, whatever it is made of."""


@dataclass(frozen=True, kw_only=True)
class StudySetting:
    """What every study is given besides its own numbers.

    Args:
        replicates: independent repetitions of each run, >= 2; they set the standard errors.

    Raises:
        InputError: fewer than two replicates.
    """

    replicates: int = 1000

    def __post_init__(self) -> None:
        check_int("replicates", self.replicates, low=2, what="standard errors need at least two")


@dataclass(frozen=True)
class Number:
    """One number of a study.

    Args:
        quantity: what it is.
        found: its simulated value; nan for a number of the theory alone.
        error: standard error of `found`.
        expected: its value by theory; nan where there is none.
        exact: whether `expected` is exact for this run, so that (found - expected) / error is a test; else it is a
            leading order, a limit or a law of the theory that the found value should come near.
    """

    quantity: str
    found: float
    error: float
    expected: float
    exact: bool = True

    @property
    def z(self) -> float:
        """Deviation from an exact expectation in standard errors, else nan."""
        return (self.found - self.expected) / self.error if self.exact and self.error > 0 else math.nan


class Bench:
    """Runs the simulations of one study, each on its own child of the generator, and tells the progress of them all.

    Args:
        rng: the only source of randomness.
        parts: number of calls of `compare` or `part` to come.
        progress: called with thousandths of the whole.
    """

    def __init__(self, rng: np.random.Generator, parts: int, progress: Progress | None) -> None:
        self._rng, self._parts, self._progress = rng, parts, progress
        self._done = 0

    def part(self, total: int) -> tuple[np.random.Generator, Progress]:
        """A generator and a progress callback for one part of `total` updates."""
        (child,) = self._rng.spawn(1)
        before = self._done
        self._done += 1

        def update(done: int, values: Mapping[str, float]) -> None:
            if self._progress is not None:
                self._progress(round(SCALE * (before + done / total) / self._parts), values)

        return child, update

    def compare(self, loss: Loss, schedules: Sequence[Schedule], **options: Any) -> list[xr.Dataset]:
        """`simulate_many` on fresh noise.

        Raises:
            KeyboardInterrupt: Ctrl-C cut the runs short; half of a comparison says nothing.
        """
        rng, progress = self.part(max(s.total for s in schedules))
        runs = simulate_many(loss, schedules, rng=rng, progress=progress, **options)
        if any(ds.attrs["status"] == "interrupted" for ds in runs):
            raise KeyboardInterrupt
        return runs


@dataclass(frozen=True)
class Study:
    """A named study.

    Args:
        name: as on the command line.
        summary: one line on what is seen.
        source: where the picture or its theory comes from.
        setting: class of its numbers, whose defaults are the full size.
        quick: what is smaller in the quick size.
        parts: number of parts of its progress, by setting.
        measure: (setting, bench) -> dataset in the schema, without provenance.
        numbers: dataset -> the numbers that matter.
    """

    name: str
    summary: str
    source: str
    setting: type[StudySetting]
    parts: Callable[[Any], int]
    measure: Callable[[Any, Bench], xr.Dataset]
    numbers: Callable[[xr.Dataset], list[Number]]
    quick: Mapping[str, Any] = field(default_factory=dict)

    def make(self, *, quick: bool = False, **changes: Any) -> StudySetting:
        """The setting at full or quick size, with changes to single numbers.

        Raises:
            InputError: a number that the study does not have, or one out of range.
        """
        check_options(f"study {self.name!r}", changes, [f.name for f in fields(self.setting)])
        return replace(self.setting(**(self.quick if quick else {})), **changes)

    def run(self, setting: StudySetting, rng: np.random.Generator, progress: Progress | None = None) -> xr.Dataset:
        """The dataset of the study; the same seed gives the same bits.

        Args:
            setting: as `make` makes it.
            rng: the only source of randomness; pass a fresh ``np.random.default_rng(seed)``.
            progress: called now and then as ``progress(thousandths_done, {"loss": ...})``.

        Raises:
            InputError: numbers that make no study.
            KeyboardInterrupt: Ctrl-C; nothing is returned.
        """
        origin = {"bit_generator": type(rng.bit_generator).__name__, **seed_of(rng.bit_generator.seed_seq)}  # type: ignore[attr-defined]
        ds = self.measure(setting, Bench(rng, self.parts(setting), progress))
        config = {"study": self.name, "setting": asdict(setting), "rng": origin}
        return ds.assign_attrs(provenance(f"study {self.name}: {self.summary}", config=config, seed=origin["entropy"]))


def number_of(at: xr.Dataset, quantity: str, found: str, error: str, expected: str, *, exact: bool = True) -> Number:
    """A number from three stored ones, at a place where they are scalars."""
    return Number(quantity, float(at[found]), float(at[error]), float(at[expected]), exact)


def mean_error(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean over replicates and its standard error; (replicates, ...) -> (...) twice."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / math.sqrt(len(values))


def toy_dataset(values: Mapping[str, Any], dims: Mapping[str, tuple[str, ...]]) -> xr.Dataset:
    """`schema.build` of simulated numbers."""
    return build(values, dims, "toy")


def on_common_states(runs: Sequence[xr.Dataset], values: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Curves of runs with different recorded states on the union of these; nan where a run has no state.

    Args:
        runs: datasets with eval_step.
        values: one curve for each, (states,).

    Returns:
        The states (n,), and the curves (runs, n).
    """
    states = np.unique(np.concatenate([ds["eval_step"].values for ds in runs]))
    out = np.full((len(runs), states.size), np.nan)
    for row, ds, curve in zip(out, runs, values, strict=True):
        row[np.searchsorted(states, ds["eval_step"].values)] = curve
    return states, out
