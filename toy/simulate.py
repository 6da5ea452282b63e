"""SGD in a river valley, many independent replicates at once, recorded beside its exact solution."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_int
from .._typing import FloatArray, IntArray, Progress
from ..errors import InputError
from ..provenance import provenance
from ..schedules import Schedule
from ..schema import build
from .exact import setting_moments
from .losses import StraightRiver
from .setting import Setting

MOST_MEMORY = 8 * 2**30
"""Bytes that the arrays of one simulation may take."""

# Measured at the peak. A state: loss, river and hill as recorded and once more for the dataset. An update: rates, sums
# and the exact moments, of which the dataset keeps 17 bytes. A coordinate: state, gradient and noise.
_BYTES_OF_STATE, _BYTES_OF_UPDATE, _BYTES_OF_COORDINATE = 48, 50, 24

# Normals drawn at a time: few enough for the cache, many enough that the call costs nothing. Not seen in any result.
BLOCK = 32_768

# A loss that is not finite needs coordinates beyond this; below it dot products clear all replicates at once. Their
# pieces are short enough for BLAS not to start threads, which would wait for each other at every update.
_SAFE_SQUARE = 1e100
_PIECE = 8192


class UnstableWarning(RuntimeWarning):
    """The peak rate is not below the limit 2/h of the steepest hill: SGD does not settle, a long run diverges."""


def simulate(
    loss: StraightRiver,
    schedule: Schedule,
    *,
    sigma: float,
    replicates: int,
    rng: np.random.Generator,
    start: float | str = 1.0,
    every: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Run SGD with white gradient noise on an analytic valley (the model of arXiv:2410.05192, section on SGD).

        w[t+1] = w[t] - lr[t] (gradient(w[t]) + sigma xi[t]),    xi[t] ~ N(0, I),    t = 0, ..., T-1

    Gradient noise enters the updates only: recorded losses are those of the state itself. A replicate whose loss stops
    being finite keeps its values (inf or nan) and the others go on. Ctrl-C ends the run and returns what it recorded.
    Costs about 1.5 times the drawing of the normals: 0.17 s for 4000 updates of 256 replicates in 9 dimensions.

    Args:
        loss: gradient, river and hill of states w of shape (replicates, dim).
        schedule: lr[t] and T.
        sigma: standard deviation of the gradient noise in each coordinate.
        replicates: number R of independent repetitions.
        rng: the only source of randomness, used as if ``rng.standard_normal((replicates, dim))`` were called once per
            update (and once, without the river, before them for a stationary start). Its seed is recorded: pass a fresh
            ``np.random.default_rng(seed)``.
        start: initial value of every hill coordinate, or "stationary": drawn from the law to which the peak rate
            settles, N(0, lr sigma^2 / (h (2 - lr h))) with lr = schedule.peak_lr.
        every: record every so many updates, besides the ends of the run and of each cooldown; None: about 400 states.
        progress: called now and then as ``progress(updates_done, {"loss": mean over replicates, "lr": rate})``.

    Returns:
        A Dataset in the schema, source "toy": loss, river, hill (replicate, eval_step) with the exact_* expectations
        and standard deviations beside them (eval_step), lr and phase (step) of every update made, curvature (mode),
        diverged and diverged_at (replicate). attrs["status"] is complete, diverged (any replicate) or interrupted.

    Raises:
        InputError: a value out of range, or a run that needs more than `MOST_MEMORY`.

    Warns:
        UnstableWarning: peak_lr h >= 2 for some hill direction.
    """
    setting = Setting(loss=loss, schedule=schedule, sigma=sigma, start=start, every=every)
    check_size(setting, replicates)
    if setting.instability():
        warnings.warn(f"{setting.instability()}: a long run diverges", UnstableWarning, stacklevel=2)
    origin = {"bit_generator": type(rng.bit_generator).__name__, **_seed_of(rng)}
    record = _Record(setting.states(), replicates)
    interrupted = False
    try:
        with np.errstate(all="ignore"):  # a diverging replicate is recorded, not warned about
            _run(setting, _start(setting, replicates, rng), rng, record, progress)
    except KeyboardInterrupt:
        interrupted = True
    config = setting.config() | {"replicates": int(replicates), "rng": origin}
    diverged = bool(np.any(record.diverged_at >= 0))
    status = "interrupted" if interrupted else "diverged" if diverged else "complete"
    title = f"{loss.name} river, {schedule.describe()}"
    attrs = provenance(title, config=config, seed=origin["entropy"], status=status)
    return _dataset(setting, record).assign_attrs(attrs)


def check_size(setting: Setting, replicates: int) -> None:
    """Refuse a number of replicates below one, or a run that would not fit; nothing is allocated to find out.

    Raises:
        InputError: saying the memory needed and how to need less.
    """
    check_int("replicates", replicates, low=1)
    states = setting.count_states()
    need = replicates * (_BYTES_OF_STATE * states + _BYTES_OF_COORDINATE * setting.loss.dim)
    need += _BYTES_OF_UPDATE * setting.total
    if need > MOST_MEMORY:
        raise InputError(
            f"the run needs {need / 2**30:.1f} GiB, more than the {MOST_MEMORY / 2**30:g} GiB allowed, for "
            f"{setting.total} updates and {states} recorded states of {replicates} replicates; use fewer updates or "
            f"replicates, or record fewer states (a larger every, now {setting.spacing})"
        )


class _Record:
    """What a run has recorded so far: all of it valid whenever the run is cut short."""

    def __init__(self, states: IntArray, replicates: int) -> None:
        self.states = states
        self.made = 0  # updates
        self.kept = 0  # states
        self.loss, self.river, self.hill = (np.empty((states.size, replicates)) for _ in range(3))
        self.diverged_at = np.full(replicates, -1, dtype=np.int64)

    def next_state(self) -> int:
        return int(self.states[self.kept]) if self.kept < self.states.size else -1

    def keep(self, loss: StraightRiver, w: FloatArray) -> None:
        self.river[self.kept] = loss.river(w)
        self.hill[self.kept] = loss.hill(w)
        np.add(self.river[self.kept], self.hill[self.kept], out=self.loss[self.kept])
        self.kept += 1

    def mark_diverged(self, values: FloatArray) -> None:
        self.diverged_at[~np.isfinite(values) & (self.diverged_at < 0)] = self.made


def _start(setting: Setting, replicates: int, rng: np.random.Generator) -> FloatArray:
    """State 0 of every replicate, shape (replicates, dim)."""
    mean, variance = setting.start_moments()
    w = np.zeros((replicates, setting.loss.dim))
    w[:, 1:] = mean
    if variance.any():
        w[:, 1:] += np.sqrt(variance) * rng.standard_normal((replicates, mean.size))
    return w


def _run(setting: Setting, w: FloatArray, rng: np.random.Generator, record: _Record, progress: Progress | None) -> None:
    """Make all updates, changing `w` and `record` in place; nothing is allocated between two recorded states."""
    loss, rates = setting.loss, setting.schedule.values()
    gradient, flat = np.empty_like(w), w.reshape(-1)
    pieces = [flat[k : k + _PIECE] for k in range(0, flat.size, _PIECE)]
    noise = np.empty((min(max(BLOCK // w.size, 1), rates.size), *w.shape))
    _inspect(loss, w, pieces, record)
    record.keep(loss, w)
    due = record.next_state()
    while record.made < rates.size:
        block = noise[: rates.size - record.made]
        rng.standard_normal(out=block)
        block *= setting.sigma
        for lr, xi in zip(rates[record.made : record.made + len(block)].tolist(), block, strict=True):
            loss.gradient(w, out=gradient)
            gradient += xi
            gradient *= lr
            w -= gradient
            record.made += 1
            _inspect(loss, w, pieces, record)
            if record.made == due:
                record.keep(loss, w)
                due = record.next_state()
        if progress is not None:
            progress(record.made, {"loss": float(record.loss[record.kept - 1].mean()), "lr": lr})


def _inspect(loss: StraightRiver, w: FloatArray, pieces: list[FloatArray], record: _Record) -> None:
    """Note the replicates whose loss has just stopped being finite; `pieces` are views that make up `w`."""
    for piece in pieces:
        if not piece.dot(piece) < _SAFE_SQUARE:  # also true of nan
            record.mark_diverged(loss.value(w))
            return


def _dataset(setting: Setting, record: _Record) -> xr.Dataset:
    made, kept = record.made, record.kept
    values: dict[str, Any] = {
        "step": np.arange(made),
        "lr": setting.schedule.values()[:made],
        "phase": setting.schedule.phases()[:made],
        "eval_step": record.states[:kept],
        "replicate": np.arange(record.diverged_at.size),
        "mode": np.arange(len(setting.loss.curvatures)),
        "curvature": setting.loss.curvatures,
        "diverged": record.diverged_at >= 0,
        "diverged_at": record.diverged_at,
    }
    expected = setting_moments(setting)
    for name in ("loss", "river", "hill"):
        values[name] = getattr(record, name)[:kept].T
        values[f"exact_{name}"] = getattr(expected, f"expected_{name}")[:kept]
        values[f"exact_{name}_std"] = getattr(expected, f"{name}_std")[:kept]
    return build(values, {}, "toy")


def _seed_of(rng: np.random.Generator) -> dict[str, Any]:
    """Entropy and spawn key of the generator's seed sequence: with its class, what makes it again."""
    seeds: Any = rng.bit_generator.seed_seq
    entropy = [int(e) for e in np.atleast_1d(np.asarray(seeds.entropy, dtype=object))]
    return {"entropy": entropy[0] if len(entropy) == 1 else entropy, "spawn_key": list(seeds.spawn_key)}
