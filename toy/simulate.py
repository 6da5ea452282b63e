"""Any optimizer on any analytic loss with noise, many independent replicates at once, beside exact solutions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import xarray as xr

from .._checks import check_int, unknown
from .._typing import Progress
from ..errors import InputError
from ..schedules import Schedule
from ._engine import Ensemble
from ._loss import Loss
from ._record import Record, finished, seed_of
from .noise import Noise
from .optimizers import SGD, Average, Optimizer
from .setting import Setting

MOST_MEMORY = 8 * 2**30
"""Bytes that the arrays of one simulation may take."""

# Measured at the peak. A state: loss, river and hill as recorded and once more for the dataset. An update: rates, sums
# and the exact moments, of which the dataset keeps 17 bytes. A coordinate: state, gradient, noise and what is between.
_BYTES_OF_STATE, _BYTES_OF_UPDATE, _BYTES_OF_COORDINATE = 50, 60, 56

# Blocks of each thread between two looks at the progress, some milliseconds; one where blocks are single updates, which
# are that long, and whose copies are large.
_BLOCKS = 8

# Work beyond which compiled code is worth loading: seconds of NumPy at so many updates and coordinates a second.
_UPDATES_A_SECOND, _COORDINATES_A_SECOND, _SECONDS_WORTH_COMPILING = 25_000, 1e8, 2.0

# Compiling takes a second, and 0.1 s more for each coordinate, of which each has its own line of code.
MOST_COMPILED_COORDINATES = 24

Backend = Literal["auto", "numpy", "numba"]
BACKENDS = ("auto", "numpy", "numba")


class UnstableWarning(RuntimeWarning):
    """The peak rate is not below the optimizer's limit at the steepest curvature: it does not settle there."""


def simulate(
    loss: Loss,
    schedule: Schedule,
    *,
    replicates: int,
    rng: np.random.Generator,
    sigma: float | None = None,
    noise: Noise | None = None,
    optimizer: Optimizer | None = None,
    average: Average | None = None,
    quantiles: Sequence[float] | None = None,
    start: float | str | tuple[float, ...] | None = None,
    every: int | None = None,
    backend: Backend = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Run an optimizer with gradient noise on an analytic loss (for SGD the model of arXiv:2410.05192).

        SGD: w[t+1] = w[t] - lr[t] (gradient(w[t]) + sigma xi[t]),    xi[t] ~ N(0, I),    t = 0, ..., T-1

    Noise enters the updates only: recorded losses are those of the state itself (for Schedule-Free of its average x).
    A replicate whose loss stops being finite keeps its values (inf or nan) and the others go on. Ctrl-C ends the run
    and returns what it recorded. Long runs are compiled; they cost little more than the drawing of the normals.

    Args:
        loss: any loss of `riverval.toy`; gradient, river and hill of states w of shape (..., dim).
        schedule: lr[t] and T.
        replicates: number R of independent repetitions.
        rng: the only source of randomness; its seed is recorded: pass a fresh ``np.random.default_rng(seed)``. With
            fewer than 16 replicates it is used as if ``rng.standard_normal((dim, R))`` were called once per update
            (and once, for the hill coordinates, before them for a stationary start); with more, it spawns 16 streams,
            which take turns in doing so for a block of updates of about 262,144 normals.
        sigma: standard deviation of isotropic gradient noise in each coordinate, or
        noise: any model of the noise (`riverval.toy.make_noise`), instead.
        optimizer: as `riverval.toy.make_optimizer` makes; SGD if not given.
        average: a running average of the iterates to evaluate beside them.
        quantiles: record mean, standard error and these quantiles over the replicates, not each replicate.
        start: state 0: one number for each coordinate, or a number for every hill coordinate, or "stationary", or None
            for the start of the loss; see `riverval.toy.Setting`.
        every: record every so many updates, besides the ends of the run and of each cooldown; None: about 400 states.
        backend: how the updates are made, with the same result: "numpy", "numba" (compiled; a new expression takes a
            second or two, later runs read it from the user's cache), or "auto", which compiles for long runs of few
            coordinates.
        threads: threads for compiled runs, of use from 16 replicates on, with the same result; None: one for each core.
        progress: called now and then as ``progress(updates_done, {"loss": mean over replicates, "lr": rate})``.

    Returns:
        A Dataset in the schema, source "toy": loss, river, hill (replicate, eval_step), and average_loss,
        average_river, average_hill where there is an average; with quantiles instead mean_loss and mean_loss_error
        (eval_step) and loss_quantile (quantile, eval_step), and so for river and hill. lr and phase (step) of every
        update made; diverged and diverged_at (replicate); for the straight river curvature (mode). Where they are known
        (straight river, noise that does not depend on the state; SGD from x = 0 with the same noise in every
        coordinate, or up to 20,000 updates of SGD, momentum or Schedule-Free, and of averages) the exact_* expectations
        and, for Gaussian noise, standard deviations (eval_step). attrs["status"] is complete, diverged (any replicate)
        or interrupted. A loss that is not finite is noticed after the update where a coordinate is beyond 1e50, and at
        recorded states.

    Raises:
        InputError: a value out of range, a noise or backend that does not fit, or a run that needs more than
            `MOST_MEMORY`.

    Warns:
        UnstableWarning: the peak rate times the steepest curvature is not below the optimizer's limit (2 for SGD).
    """
    return _simulate_many(
        loss, [schedule], replicates=replicates, rng=rng, sigma=sigma, noise=noise, optimizer=optimizer,
        average=average, quantiles=quantiles, start=start, every=every, backend=backend, threads=threads,
        progress=progress,
    )[0]  # fmt: skip


def simulate_many(
    loss: Loss,
    schedules: Sequence[Schedule],
    *,
    replicates: int,
    rng: np.random.Generator,
    sigma: float | None = None,
    noise: Noise | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    average: Average | None = None,
    quantiles: Sequence[float] | None = None,
    start: float | str | tuple[float, ...] | None = None,
    every: int | None = None,
    backend: Backend = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[xr.Dataset]:
    """Several schedules on the same loss with the same noise: update t of replicate r meets the same draws in each.

    So differences between schedules, peak rates or optimizers are paired, and the noise is drawn once for all.

    Args:
        schedules: one for each run; they may differ in length.
        optimizer: one for all, or one for each schedule.
        loss, replicates, rng, sigma, noise, average, quantiles, start, every, backend, threads, progress: as in
            `simulate`.

    Returns:
        One Dataset for each schedule, bit for bit what `simulate` returns with a generator of the same seed.

    Raises:
        InputError: as `simulate`; or no schedule, or another number of optimizers.

    Warns:
        UnstableWarning: as `simulate`.
    """
    if isinstance(schedules, Schedule):
        raise InputError("schedules must be a list of them; for a single one there is simulate")
    return _simulate_many(
        loss, schedules, replicates=replicates, rng=rng, optimizer=optimizer, backend=backend, threads=threads,
        progress=progress, sigma=sigma, noise=noise, average=average, quantiles=quantiles, start=start, every=every,
    )  # fmt: skip


def _simulate_many(
    loss: Loss,
    schedules: Sequence[Schedule],
    *,
    replicates: int,
    rng: np.random.Generator,
    optimizer: Optimizer | Sequence[Optimizer] | None,
    backend: Backend,
    threads: int | None,
    progress: Progress | None,
    quantiles: Sequence[float] | None,
    **common: Any,
) -> list[xr.Dataset]:
    """Warn of unstable settings, in the name of the public function that calls this, and run them."""
    common["quantiles"] = None if quantiles is None else tuple(quantiles)
    settings = [
        Setting(loss=loss, schedule=schedule, optimizer=o, **common)
        for schedule, o in zip(schedules, _one_each(optimizer, len(schedules)), strict=True)
    ]
    for setting in settings:
        if setting.instability():
            warnings.warn(f"{setting.instability()}: a long run diverges", UnstableWarning, stacklevel=3)
    return run_settings(settings, replicates, rng, backend=backend, threads=threads, progress=progress)


def run_settings(
    settings: Sequence[Setting],
    replicates: int,
    rng: np.random.Generator,
    *,
    backend: Backend = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[xr.Dataset]:
    """What `simulate_many` does, for settings that share loss, noise and kind of start; warns of nothing."""
    check_size(settings, replicates)
    if threads is not None:
        check_int("threads", threads, low=1)
    seeds = _seeds(rng)
    compiled = _compiled(backend, settings, replicates)
    origin = {"bit_generator": type(rng.bit_generator).__name__, **seed_of(seeds)}
    records = [Record(setting, replicates) for setting in settings]
    interrupted = False
    with np.errstate(all="ignore"):  # a diverging replicate is recorded, not warned about
        ensemble = Ensemble(settings, replicates, rng, compiled)
        try:
            _run(ensemble, records, (threads or _cores()) if compiled else 1, progress)
        except KeyboardInterrupt:
            interrupted = True
            _collect(ensemble, records)
    return [finished(s, r, origin, replicates, interrupted) for s, r in zip(settings, records, strict=True)]


def _seeds(rng: np.random.Generator) -> Any:
    """The seed sequence of a generator."""
    if not isinstance(rng, np.random.Generator):
        raise InputError(f"rng must be a generator such as np.random.default_rng(0), got {rng!r}")
    seeds: Any = rng.bit_generator.seed_seq
    if not isinstance(seeds, np.random.SeedSequence):
        raise InputError("rng must be made from a seed, as np.random.default_rng(0) is, so that it can be recorded")
    return seeds


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_size(settings: Sequence[Setting], replicates: int) -> None:
    """Refuse a number of replicates below one, or runs that would not fit; nothing is allocated to find out.

    Raises:
        InputError: saying the memory needed and how to need less.
    """
    check_int("replicates", replicates, low=1)
    need, states = 0, 0
    for setting in settings:
        count, extra = setting.count_states(), 0 if setting.average is None else 1
        states += count
        of_state = _BYTES_OF_STATE * (1 + extra) if setting.quantiles is None else 0
        need += 0 if setting.quantiles is None else _BYTES_OF_STATE * (2 + len(setting.quantiles)) * count
        of_coordinate = _BYTES_OF_COORDINATE + 24 * (setting.optimizer.states + extra)
        if setting.model.scales(setting.loss) is None:
            of_coordinate += 8 * setting.loss.dim * setting.model.squares
        of_update = _BYTES_OF_UPDATE + 8 * (setting.optimizer.counts()[0] - 1 + extra)
        need += replicates * (of_state * count + of_coordinate * setting.loss.dim) + of_update * setting.total
    if need > MOST_MEMORY:
        raise InputError(
            f"the run needs {need / 2**30:.1f} GiB, more than the {MOST_MEMORY / 2**30:g} GiB allowed, for "
            f"{max(s.total for s in settings)} updates and {states} recorded states of {replicates} replicates; use "
            f"fewer updates or replicates, or record fewer states (a larger every, now {settings[0].spacing})"
        )


def _run(ensemble: Ensemble, records: Sequence[Record], threads: int, progress: Progress | None) -> None:
    """Make all updates, some blocks at a time; nothing grows but what is recorded."""
    first, threads = records[0], min(threads, ensemble.most_threads)
    at_once = threads * (_BLOCKS if ensemble.block > 1 else 1)
    with _starter(threads) as start:
        for b in range(0, ensemble.blocks, at_once):
            wait = start(ensemble.advance, range(b, min(b + at_once, ensemble.blocks)))
            _collect(ensemble, records)  # while threads are at work
            wait()
            if progress is not None:
                done = max(run.made for run in ensemble.runs)
                lr = first.setting.schedule.lr(max(ensemble.runs[0].made, 1) - 1)
                progress(done, {"loss": first.last_loss, "lr": float(lr)})
    _collect(ensemble, records)


def _collect(ensemble: Ensemble, records: Sequence[Record]) -> None:
    for record, run in zip(records, ensemble.runs, strict=True):
        record.collect(run)


Wait = Callable[[], None]


@contextmanager
def _starter(threads: int) -> Iterator[Callable[[Callable[[int], None], Iterable[int]], Wait]]:
    """A function that calls another one with each number, in so many threads, and returns one that waits for them.

    The threads have ended when the context has. With a single one there is nothing to wait for.
    """
    if threads == 1:

        def one_by_one(call: Callable[[int], None], numbers: Iterable[int]) -> Wait:
            for number in numbers:
                call(number)
            return lambda: None

        yield one_by_one
        return

    with ThreadPoolExecutor(threads, initializer=lambda: np.seterr(all="ignore")) as pool:

        def start(call: Callable[[int], None], numbers: Iterable[int]) -> Wait:
            calls = [pool.submit(call, number) for number in numbers]

            def wait() -> None:
                for one in calls:
                    one.result()

            return wait

        yield start


def _one_each(optimizer: Any, runs: int) -> list[Optimizer]:
    if not runs:
        raise InputError("there is nothing to run: schedules is empty, give at least one")
    if optimizer is None or isinstance(optimizer, Optimizer):
        return [optimizer or SGD()] * runs
    if isinstance(optimizer, str):
        raise InputError(f"optimizer must be what make_optimizer makes, got {optimizer!r}")
    if len(optimizer) != runs:
        raise InputError(f"optimizer must be one for all or one for each of the {runs} schedules, got {len(optimizer)}")
    return list(optimizer)


def _compiled(backend: str, settings: Sequence[Setting], replicates: int) -> bool:
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    by_numpy = any(s.model.scales(s.loss) is None for s in settings)
    if backend == "numba" and by_numpy:
        raise InputError(
            f"the noise {settings[0].model.name!r} depends on the state, which only the backend numpy does"
        )
    if backend != "auto" or by_numpy or settings[0].loss.dim > MOST_COMPILED_COORDINATES:
        return backend == "numba"
    updates = sum(s.total for s in settings)
    seconds = updates / _UPDATES_A_SECOND + updates * replicates * settings[0].loss.dim / _COORDINATES_A_SECOND
    return seconds > _SECONDS_WORTH_COMPILING
