"""SGD on a bigram language under any schedule, many replicates at once; several schedules on the same batches.

    w[t+1] = w[t] - lr[t] g[t],   g[t] = gradient of the loss on batch t,   t = 0, ..., T-1

Every noise is a law of the *shares* n[t]/B of each pair of context and token in the batch, from which the gradient
follows exactly; its expectation is that of the true gradient, and its covariance that of a multinomial batch:

- ``sampled``: B pairs drawn independently, (pi_i p_ik);
- ``gaussian``: normal shares with the same mean and covariance (diag(pi p) - (pi p)(pi p)')/B, so that the gradient has
  Fisher noise (H/B at the optimum) at every state;
- ``none``: the shares are the probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_int, check_steps, pick
from .._typing import ArrayLike, FloatArray, IntArray, Progress
from ..errors import InputError
from ..provenance import provenance
from ..schedules import Joined, Schedule
from ..schema import attrs_of, build
from ..segments import Stable
from .bigram_model import BigramModel, LogitTable, context_spectrum
from .bigram_theory import expected_excess
from .setting import DEFAULT_STATES
from .simulate import MOST_MEMORY

LARGEST_BATCH = 10**6

# Shares drawn at a time. Not seen in any result: each law draws the same numbers in pieces of any length.
_BLOCK_CELLS = 2**19
_SAFE_SQUARE = 1e100  # below this squared norm every loss is finite, see `riverval.toy.simulate`

Draw = Callable[[np.random.Generator, int, int, FloatArray, int], FloatArray]
"""(rng, updates n, replicates R, probabilities of the pairs (cells,), batch) -> shares (n, cells, R)."""


def _sampled(rng: np.random.Generator, updates: int, replicates: int, joint: FloatArray, batch: int) -> FloatArray:
    cells = joint.size
    if batch > cells:  # one draw for each pair is cheaper than one for each member of the batch
        counts = rng.multinomial(batch, joint / joint.sum(), size=(updates, replicates))
        return np.ascontiguousarray(counts.transpose(0, 2, 1)) / float(batch)
    edges = np.cumsum(joint)
    drawn = np.searchsorted(edges / edges[-1], rng.random((updates, replicates, batch)), side="right")
    # One flat count: the place of (update, pair, replicate) in the result.
    place = (np.arange(updates)[:, None, None] * cells + drawn) * replicates + np.arange(replicates)[:, None]
    counts = np.bincount(place.ravel(), minlength=updates * cells * replicates)
    return counts.reshape(updates, cells, replicates) / float(batch)


def _gaussian(rng: np.random.Generator, updates: int, replicates: int, joint: FloatArray, batch: int) -> FloatArray:
    # With z white, sqrt(a) z - a (sqrt(a) . z) has the covariance diag(a) - a a' of one draw, a = joint, sum(a) = 1.
    root = np.sqrt(joint)
    z = rng.standard_normal((updates, joint.size, replicates))
    total = np.einsum("k,nkr->nr", root, z)
    z *= root[:, None]
    z -= joint[:, None] * total[:, None, :]
    z /= math.sqrt(batch)
    z += joint[:, None]
    return z


def _without(rng: np.random.Generator, updates: int, replicates: int, joint: FloatArray, batch: int) -> FloatArray:
    return np.broadcast_to(joint[:, None], (updates, joint.size, replicates))


NOISES: dict[str, Draw] = {"sampled": _sampled, "gaussian": _gaussian, "none": _without}
"""Laws of the shares by name."""


def train(
    model: BigramModel,
    schedule: Schedule,
    *,
    noise: str = "sampled",
    batch: int = 1,
    replicates: int,
    rng: np.random.Generator,
    start: ArrayLike | None = None,
    every: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Train a bigram model with SGD and record the loss of each context.

    Args:
        model: of the language; see `riverval.toy.bigram_model`.
        schedule: lr[t] and T.
        noise: of `NOISES`.
        batch: B, pairs in each batch.
        replicates: number R of independent repetitions.
        rng: the only source of randomness: the start where the model draws it, then the batches. Its seed is recorded.
        start: parameters at the start, (dim,) for all or (R, dim); None: the model's own.
        every: record every so many updates, besides the ends of the run and of each cooldown; None: about 400 states.
        progress: called now and then as ``progress(updates_done, {"loss": mean over replicates, "lr": rate})``.

    Returns:
        A Dataset in the schema, source "toy": loss (replicate, eval_step), context_excess (replicate, context,
        eval_step), of the logit table also context_expected (context, eval_step), see
        `riverval.toy.bigram_theory.expected_excess`; what is known of each context; lr and phase (step). Ctrl-C ends
        the run and returns what it recorded, with attrs["status"] interrupted.

    Raises:
        InputError: a value out of range, a start of another shape, or a run that needs more memory than is allowed.
    """
    return train_many(
        model, [schedule], noise=noise, batch=batch, replicates=replicates, rng=rng, start=start, every=every,
        progress=progress,
    )[0]  # fmt: skip


def train_many(
    model: BigramModel,
    schedules: Sequence[Schedule],
    *,
    noise: str = "sampled",
    batch: int = 1,
    replicates: int,
    rng: np.random.Generator,
    start: ArrayLike | None = None,
    every: int | None = None,
    progress: Progress | None = None,
) -> list[xr.Dataset]:
    """Train under several schedules on the same batches from the same start: paired, replicate by replicate.

    Each dataset is, bit for bit, what `train` makes of its schedule with a generator of the same seed.
    Arguments and errors as `train`; at least one schedule.
    """
    if not schedules:
        raise InputError("there is nothing to train: give at least one schedule")
    setting = _Setting(model, noise, batch, replicates, every)
    plans = [(schedule, recorded_states(schedule, every)) for schedule in schedules]
    return _train(setting, plans, rng, start, progress)


def continuation(schedule: Schedule) -> Schedule:
    """The schedule whose last cooldown is replaced by as many updates at the rate before it.

    Raises:
        InputError: a schedule without a cooldown.

    >>> from riverval import make_schedule
    >>> continuation(make_schedule("wsd", peak_lr=0.5, steps=10)).values().tolist() == [0.5] * 10
    True
    """
    windows = schedule.windows("cooldown")
    if not windows:
        raise InputError(f"{schedule.describe()} has no cooldown, so there is nothing to continue instead; use wsd")
    first, stop = windows[-1]
    level = float(schedule.lr(max(first - 1, 0))) / schedule.peak_lr
    kept = schedule.truncate(first).segments if first else ()
    after = tuple(schedule.segments[k] for k in np.flatnonzero(schedule.edges[:-1] >= stop).tolist())
    return Joined(peak_lr=schedule.peak_lr, parts=(*kept, Stable(steps=stop - first, level=level), *after))


def train_with_continuation(
    model: BigramModel,
    schedule: Schedule,
    *,
    noise: str = "sampled",
    batch: int = 1,
    replicates: int,
    rng: np.random.Generator,
    start: ArrayLike | None = None,
    every: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Train under a schedule and, on the same batches, without its last cooldown (`continuation`).

    Arguments as `train`. The dataset is that of `train`, and beside it context_continued (replicate, context,
    eval_step), the excess of the continuation: minus context_excess, it is what the cooldown was good for.

    Raises:
        InputError: as `train`, or a schedule without a cooldown.
    """
    setting = _Setting(model, noise, batch, replicates, every)
    states = recorded_states(schedule, every)
    decayed, continued = _train(setting, [(schedule, states), (continuation(schedule), states)], rng, start, progress)
    kept = min(decayed.sizes["eval_step"], continued.sizes["eval_step"])  # one may be ahead where Ctrl-C struck
    out = decayed.isel(eval_step=slice(kept))
    other = continued["context_excess"].values[..., :kept]
    lost = (out["diverged"].values | continued["diverged"].values).astype(np.int8)
    return out.assign(
        context_continued=(("replicate", "context", "eval_step"), other, attrs_of("context_continued")),
        diverged=out["diverged"].copy(data=lost),
    )


def recorded_states(schedule: Schedule, every: int | None = None) -> IntArray:
    """Numbers of the recorded states, increasing: 0, every, ..., T and both ends of each cooldown.

    Raises:
        InputError: `every` below 1.
    """
    if every is not None:
        check_steps("every", every, low=1, what="updates between recorded states")
    spacing = every or math.ceil(schedule.total / DEFAULT_STATES)
    ends = {schedule.total, *(state for window in schedule.windows("cooldown") for state in window)}
    return np.union1d(np.arange(0, schedule.total + 1, spacing), list(ends)).astype(np.int64)


# --- the loop --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Setting:
    """What all runs of one call share."""

    model: BigramModel
    noise: str
    batch: int
    replicates: int
    every: int | None

    def __post_init__(self) -> None:
        pick("noise", self.noise, NOISES)
        check_int("batch", self.batch, low=1, high=LARGEST_BATCH, what="pairs in each batch")
        check_int("replicates", self.replicates, low=1)

    def check_size(self, states: int, updates: int, runs: int) -> None:
        """Refuse what would not fit; nothing is allocated to find out."""
        cells = self.model.language.size * self.model.language.tokens
        updates_drawn = max(1, _BLOCK_CELLS // (cells * self.replicates))
        # Recorded and once more for the dataset; a state with its logits and gradient; shares, and what they come from.
        need = runs * self.replicates * (16 * states * (self.model.language.size + 1) + 48 * (self.model.dim + cells))
        need += 24 * updates_drawn * self.replicates * (cells + self.batch) + 50 * updates * runs
        if need > MOST_MEMORY:
            raise InputError(
                f"the run needs {need / 2**30:.1f} GiB, more than the {MOST_MEMORY / 2**30:g} GiB allowed, for "
                f"{updates} updates and {states} recorded states of {self.replicates} replicates; use fewer "
                f"replicates, or record fewer states (a larger every)"
            )

    def first(self, rng: np.random.Generator, start: ArrayLike | None) -> FloatArray:
        """State 0; (replicates, dim)."""
        shape = (self.replicates, self.model.dim)
        if start is None:
            return self.model.start(rng, self.replicates)
        given = np.asarray(start, dtype=np.float64)
        if given.shape not in (shape[1:], shape) or not np.all(np.isfinite(given)):
            raise InputError(f"start must be finite numbers of shape ({shape[1]},) or {shape}, got {given.shape}")
        return np.broadcast_to(given, shape)


class _Run:
    """One schedule under way, and what it has recorded: all of it valid whenever it is cut short."""

    def __init__(self, setting: _Setting, schedule: Schedule, states: IntArray, w: FloatArray) -> None:
        self.model, self.schedule, self.states = setting.model, schedule, states
        # Replicates side by side in memory: numpy then adds and compares whole rows of them at once.
        self.w = np.array(w.T, order="C").T
        self.flat = self.w.T.reshape(-1)
        self.rates = schedule.values()
        self.made = self.kept = 0
        self.excess = np.empty((states.size, setting.replicates, setting.model.language.size))
        self.diverged_at = np.full(setting.replicates, -1, dtype=np.int64)
        self._keep()

    @property
    def left(self) -> int:
        return int(self.rates.size - self.made)

    def advance(self, shares: FloatArray) -> None:
        """One update for each row of shares (n, cells, R), as long as there are rates."""
        language = self.model.language
        for pairs in shares[: self.left]:
            step = self.model.gradient(self.w, pairs.T.reshape(-1, language.size, language.tokens))
            step *= self.rates[self.made]
            self.w -= step
            self.made += 1
            if not self.flat.dot(self.flat) < _SAFE_SQUARE:  # also true of nan
                self._mark(self.model.excess(self.w))
            if self.kept < self.states.size and self.made == self.states[self.kept]:
                self._keep()

    def mean_loss(self) -> float:
        language = self.model.language
        return float(language.floor + (self.excess[self.kept - 1] @ language.pi).mean())

    def _keep(self) -> None:
        self.excess[self.kept] = self.model.excess(self.w)
        self.kept += 1

    def _mark(self, excess: FloatArray) -> None:
        self.diverged_at[~np.isfinite(excess).all(axis=1) & (self.diverged_at < 0)] = self.made


def _train(
    setting: _Setting,
    plans: Sequence[tuple[Schedule, IntArray]],
    rng: np.random.Generator,
    start: ArrayLike | None,
    progress: Progress | None,
) -> list[xr.Dataset]:
    longest = max(schedule.total for schedule, _ in plans)
    setting.check_size(max(states.size for _, states in plans), longest, len(plans))
    origin = _origin(rng)
    first = setting.first(rng, start)
    runs = [_Run(setting, schedule, states, first) for schedule, states in plans]
    interrupted = False
    try:
        with np.errstate(all="ignore"):  # a diverging replicate is recorded, not warned about
            _advance(setting, runs, longest, rng, progress)
    except KeyboardInterrupt:
        interrupted = True
    given = None if start is None else first[0]
    return [_dataset(setting, run, origin, given, interrupted) for run in runs]


def _advance(
    setting: _Setting, runs: Sequence[_Run], longest: int, rng: np.random.Generator, progress: Progress | None
) -> None:
    joint = setting.model.language.joint.ravel()
    at_once = max(1, min(64, _BLOCK_CELLS // (joint.size * setting.replicates)))
    for made in range(0, longest, at_once):
        updates = min(at_once, longest - made)
        shares = NOISES[setting.noise](rng, updates, setting.replicates, joint, setting.batch)
        for run in runs:
            run.advance(shares)
        if progress is not None:
            run = max(runs, key=lambda run: run.made)
            progress(made + updates, {"loss": run.mean_loss(), "lr": float(run.rates[run.made - 1])})


def _origin(rng: np.random.Generator) -> dict[str, Any]:
    """What makes the generator again: its class, and entropy and spawn key of its seed sequence."""
    seeds: Any = rng.bit_generator.seed_seq
    return {
        "bit_generator": type(rng.bit_generator).__name__,
        "entropy": seeds.entropy if isinstance(seeds.entropy, int) else [int(e) for e in seeds.entropy],
        "spawn_key": list(seeds.spawn_key),
    }


# --- the dataset -----------------------------------------------------------------------------------------------------
def _dataset(
    setting: _Setting, run: _Run, origin: dict[str, Any], start: FloatArray | None, interrupted: bool
) -> xr.Dataset:
    model, language = setting.model, setting.model.language
    states, excess = run.states[: run.kept], run.excess[: run.kept]
    values: dict[str, Any] = {
        "step": np.arange(run.made),
        "lr": run.rates[: run.made],
        "phase": run.schedule.phases()[: run.made],
        "eval_step": states,
        "replicate": np.arange(setting.replicates),
        "context": list(language.contexts),
        "loss": (language.floor + excess @ language.pi).T,
        "context_excess": excess.transpose(1, 2, 0),
        "context_frequency": language.pi,
        "context_gini": language.gini,
        "context_entropy": language.entropy,
        "context_sharpness": language.pi * context_spectrum(language)[:, -1],
        "diverged": run.diverged_at >= 0,
        "diverged_at": run.diverged_at,
    }
    if isinstance(model, LogitTable):
        noisy = setting.noise != "none"
        expected = expected_excess(language, run.rates, states, batch=setting.batch, start=start, noisy=noisy)
        values["context_expected"] = expected.T
    config = {
        "model": model.to_dict(),
        "schedule": run.schedule.to_dict(),
        "noise": setting.noise,
        "batch": int(setting.batch),
        "start": None if start is None else start.tolist(),
        "every": setting.every,
        "replicates": int(setting.replicates),
        "rng": origin,
    }
    diverged = bool(np.any(run.diverged_at >= 0))
    status = "interrupted" if interrupted else "diverged" if diverged else "complete"
    title = f"bigram language, {model.label}, {run.schedule.describe()}"
    attrs = provenance(title, config=config, seed=origin["entropy"], status=status)
    return build(values, {}, "toy").assign_attrs(attrs)
