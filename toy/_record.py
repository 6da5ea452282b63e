"""What a simulation records, and the dataset it becomes, beside the exact moments where they are known."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from .._typing import FloatArray
from ..provenance import provenance
from ..schema import build
from ._engine import NumPyRun
from .exact import Moments, moments
from .losses import StraightRiver
from .noise import StudentT
from .optimizers import SGD, Average
from .recursions import AFFINE, valley_moments
from .setting import Setting

LONGEST_RECURSION = 20_000
"""Updates up to which the exact moments of other optimizers than SGD are worth their time, which is about a second."""

_COLLECTED, _NUMBERS_AT_ONCE = np.empty(0), 131_072


class Record:
    """What a run has recorded so far: all of it valid whenever the run is cut short."""

    def __init__(self, setting: Setting, replicates: int) -> None:
        self.setting = setting
        self.states = setting.states()
        self.lr = np.empty(0)
        self.made = 0  # updates
        self._collected = (0, 0)  # states, and arrays of copies that they came in; set at once
        names = ["loss", "river", "hill"]
        if setting.average is not None:
            names += [f"average_{name}" for name in names]
        self.values: dict[str, FloatArray] = {name: np.empty((self.states.size, replicates)) for name in names}
        if setting.quantiles is not None:
            self.values = {}
            for name in names:
                self.values |= {f"mean_{name}{end}": np.empty(self.states.size) for end in ("", "_error")}
                self.values[f"{name}_quantile"] = np.empty((self.states.size, len(setting.quantiles)))
        self.diverged_at = np.full(replicates, -1, dtype=np.int64)
        self._lost_at = self.diverged_at.copy()

    @property
    def kept(self) -> int:
        """Number of states."""
        return self._collected[0]

    @property
    def last_loss(self) -> float:
        """Mean loss of the last state."""
        name = "loss" if self.setting.quantiles is None else "mean_loss"
        return float(self.values[name][self.kept - 1].mean())

    def collect(self, run: NumPyRun) -> None:
        """Take in the copies that a run has made. Cut short by Ctrl-C, it can be called again."""
        while copies := self._waiting(run):
            points = np.concatenate(copies)
            kept, taken = self._collected
            rows = slice(kept, kept + len(points))
            states, evaluated, dim, width = points.shape
            columns = points.transpose(2, 0, 1, 3).reshape(dim, -1)
            split = self.setting.loss.split_rows(columns)
            for row, name in zip(split, ("loss", "river", "hill"), strict=True):
                values = row.reshape(states, evaluated, width)
                if name == "loss":
                    self._note_losses(rows, values[:, 0])
                if self.setting.quantiles is not None:
                    self._summarise(rows, name, values[:, 0], self.setting.quantiles)
                    continue
                self.values[name][rows] = values[:, 0]
                if self.setting.average is not None:
                    self.values[f"average_{name}"][rows] = values[:, 1]
            self._collected = (rows.stop, taken + len(copies))
            run.copies[taken : taken + len(copies)] = [_COLLECTED] * len(copies)
        self.made, self.lr = run.made, run.varying[:, 0]
        seen = np.stack([run.diverged_at, self._lost_at])
        self.diverged_at = np.where((seen >= 0).all(axis=0), seen.min(axis=0), seen.max(axis=0))

    def _waiting(self, run: NumPyRun) -> list[FloatArray]:
        """The arrays of copies to take in next, not too large together."""
        size, found = 0, []
        for copies in run.copies[self._collected[1] :]:  # to which another thread may be adding
            found.append(copies)
            size += copies.size
            if size >= _NUMBERS_AT_ONCE:
                break
        return found

    def _summarise(self, rows: slice, name: str, values: FloatArray, quantiles: Sequence[float]) -> None:
        """Mean, its standard error and quantiles over the replicates that live; values (states, replicates)."""
        alive = (self._lost_at < 0) | (self._lost_at > self.states[rows, None])
        values = np.where(alive, values, np.nan)
        count = alive.sum(axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of none, or of one, there is no mean or error: nan
            self.values[f"mean_{name}"][rows] = np.nanmean(values, axis=1)
            self.values[f"mean_{name}_error"][rows] = np.nanstd(values, axis=1, ddof=1) / np.sqrt(count)
            self.values[f"{name}_quantile"][rows] = np.nanquantile(values, quantiles, axis=1).T

    def _note_losses(self, rows: slice, losses: FloatArray) -> None:
        """Which replicates have a loss that is not finite at a recorded state: the run sees large coordinates only."""
        lost = ~np.isfinite(losses)
        first = np.where(lost.any(axis=0), self.states[rows][lost.argmax(axis=0)], -1)
        self._lost_at = np.where(self._lost_at < 0, first, self._lost_at)


def finished(
    setting: Setting, record: Record, origin: dict[str, Any], replicates: int, interrupted: bool
) -> xr.Dataset:
    """The dataset of what was recorded, with its provenance; `origin` is what makes the generator again."""
    config = setting.config() | {"replicates": int(replicates), "rng": origin}
    diverged = bool(np.any(record.diverged_at >= 0))
    whole = record.made == setting.total and record.kept == record.states.size
    status = "interrupted" if interrupted and not whole else "diverged" if diverged else "complete"
    title = f"{describe_loss(setting)}, {setting.schedule.describe()}"
    if not isinstance(setting.optimizer, SGD):
        title += f", {setting.optimizer.name}"
    try:
        ds = _dataset(setting, record, exact=True)
    except KeyboardInterrupt:  # the exact moments may take a second; the run itself is there
        ds, status = _dataset(setting, record, exact=False), "interrupted"
    return ds.assign_attrs(provenance(title, config=config, seed=origin["entropy"], status=status))


def describe_loss(setting: Setting) -> str:
    """'straight river', or the name of another loss."""
    return "straight river" if isinstance(setting.loss, StraightRiver) else f"loss {setting.loss.name}"


def _dataset(setting: Setting, record: Record, *, exact: bool) -> xr.Dataset:
    made, kept = record.made, record.kept
    values: dict[str, Any] = {
        "step": np.arange(made),
        "lr": record.lr[:made],
        "phase": setting.schedule.phases()[:made],
        "eval_step": record.states[:kept],
        "replicate": np.arange(record.diverged_at.size),
        "diverged": record.diverged_at >= 0,
        "diverged_at": record.diverged_at,
    }
    values |= {name: array[:kept].T for name, array in record.values.items()}
    if setting.quantiles is not None:
        values["quantile"] = np.array(setting.quantiles)
    if isinstance(setting.loss, StraightRiver):
        values |= {"mode": np.arange(len(setting.loss.curvatures)), "curvature": setting.loss.curvatures}
    gaussian = not isinstance(setting.model, StudentT)
    averages = [None] if setting.average is None else [None, setting.average]
    for average, prefix in zip(averages, ("exact", "exact_average"), strict=False):
        expected = _expected(setting, average) if exact else None
        for name in ("loss", "river", "hill") if expected is not None else ():
            values[f"{prefix}_{name}"] = getattr(expected, f"expected_{name}")[:kept]
            if gaussian:
                values[f"{prefix}_{name}_std"] = getattr(expected, f"{name}_std")[:kept]
    return build(values, {}, "toy")


def _expected(setting: Setting, average: Average | None) -> Moments | None:
    """The exact moments of the iterate, or of its average, at the recorded states where they are known."""
    loss, optimizer, scales = setting.loss, setting.optimizer, setting.model.scales(setting.loss)
    if not isinstance(loss, StraightRiver) or scales is None or optimizer.name not in AFFINE:
        return None
    lr, states = setting.schedule.values(), setting.states()
    mean, variance = setting.start_moments()
    if average is None and isinstance(optimizer, SGD) and mean[0] == 0 and np.all(scales == scales[0]):
        return moments(loss, lr, states, sigma=float(scales[0]), hill_mean=mean[1:], hill_variance=variance[1:])
    if setting.total > LONGEST_RECURSION:
        return None
    return valley_moments(loss, optimizer, lr, states, sigma=scales, mean=mean, variance=variance, average=average)


def seed_of(seeds: Any) -> dict[str, Any]:
    """Entropy, spawn key and number of children of a seed sequence: with its generator's class, what makes it again."""
    entropy = [int(e) for e in np.atleast_1d(np.asarray(seeds.entropy, dtype=object))]
    return {
        "entropy": entropy[0] if len(entropy) == 1 else entropy,
        "spawn_key": list(seeds.spawn_key),
        "children": seeds.n_children_spawned,
    }
