"""What is done with runs: train one, go on with one, branch off one, measure one again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .. import store
from .._typing import Progress
from ..errors import InputError, StoreError
from ..provenance import made_by
from ..schedules import Schedule
from .checkpoints import Checkpoints, FullState, Tell
from .config import RunConfig

# `as`: part of this module's interface, described where they are made.
from .config import read_config as read_config
from .job import Job as Job
from .job import prepare as prepare
from .locks import alone
from .machine import determinism, thread_count
from .session import CHECKPOINTS, SNAPSHOTS, Session, is_finished, write_config
from .session import INTERRUPTED as INTERRUPTED
from .snapshot_plan import SnapshotPlan
from .trunks import Trunks

MEASURING = (
    "probes", "alphas", "line_examples", "hessian_examples", "hessian_points", "hessian_tol", "descent_examples",
    "token_examples",
)  # fmt: skip
"""Fields of `RunConfig` that `reprobe` may change: what is measured of the snapshots, not which there are."""

_KEEPING = ("snapshots", "keep", "sketch_width", "descent_points", "direction_snapshots")  # which there are


def run(
    config: RunConfig | Job,
    folder: str | Path,
    progress: Progress | None = None,
    *,
    tell: Tell | None = None,
    trunks: Trunks | None = None,
    share_at: Sequence[int] = (),
) -> xr.Dataset:
    """Train, measure, and leave ``config.json``, ``run.nc``, ``snapshots/`` and ``checkpoints/`` in `folder`.

    The records of every update stand in ``run.partial.nc`` while it trains. The dataset is saved once after training
    and again with the probes, so that no probe can lose it. Ctrl-C and a diverging loss end the run early: the dataset
    has what was recorded and says so in its attribute `status`. Whatever ends it, `resume` goes on. The attribute
    `timing` (JSON) holds the seconds spent on training, evaluations, snapshots, checkpoints and each probe.

    Args:
        config: from `config.resolve`, or a job from `prepare`.
        folder: of this run; exists; files of the same names are replaced.
        progress: called as ``progress(updates_done, {"loss": ..., "lr": ...})``.
        tell: called with a line of text when a measurement starts.
        trunks: pool of full states; the run starts from the deepest one that it can, and is the same bit for bit. Only
            checkpoints of earlier states are missing then, for `branch`.
        share_at: states to put into it.

    Returns:
        The saved dataset; attribute `notes` says which measurements were skipped or failed, and why.

    Raises:
        As `prepare`; InputError for `share_at` without a pool or outside the run, or where another process is at work
        in the folder; StoreError if something cannot be written, RivervalError if memory runs out: what was recorded
        until then is saved as an interrupted run wherever there is room for it.
        KeyboardInterrupt: Ctrl-C before the first update.
    """
    with alone(Path(folder)), _surroundings(config) as job:
        session = _session(job, Path(folder), progress, tell, trunks, share_at)
        session.fresh()
        return session.complete(session.shared_start())


def resume(
    folder: str | Path,
    progress: Progress | None = None,
    tell: Tell | None = None,
    *,
    trunks: Trunks | None = None,
    share_at: Sequence[int] = (),
) -> xr.Dataset:
    """Go on with a run that was interrupted or killed, from its newest whole checkpoint: the same bits as in one go.

    Without a usable checkpoint it starts anew. A finished or diverged run is returned as it is.

    Args:
        folder: of the run.
        progress, tell, trunks, share_at: as in `run`.

    Raises:
        As `run`; StoreError where the folder holds no config; InputError where a checkpoint is of another run or the
        data have changed.
    """
    folder, tell = Path(folder), tell or _mute
    config = read_config(folder)
    with alone(folder):
        done = _finished_dataset(folder, config)
        if done is not None:
            tell(f"{folder} is finished ({done.attrs['status']}), there is nothing to go on with")
            return done
        _tidy(folder)
        with _surroundings(config) as job:
            session = _session(job, folder, progress, tell, trunks, share_at)
            found = session.checkpoints.newest()
            if found is None:
                tell("no checkpoint that can be used: training anew")
                session.fresh()
                return session.complete(session.shared_start())
            tell(f"going on from state {found.state} of {config.plan.total}")
            session.checkpoints.forget_after(found.state)
            return session.complete(found)


def branch(
    folder: str | Path,
    at: int,
    schedule: Schedule,
    into: str | Path,
    progress: Progress | None = None,
    *,
    tell: Tell | None = None,
    beside: Sequence[str | Path] = (),
    keep_for: Sequence[Schedule] = (),
) -> xr.Dataset:
    """Another run that follows the one in `folder` up to state `at` and its own schedule from there.

    It starts from the last full state of that run at or before `at`; from there to `at` it is repeated. Its records are
    bit for bit those of a straight run with the same schedule. Snapshots before its start are taken over from the old
    run where that kept the same ones; the note in the dataset says how many are missing.

    Args:
        folder: of the run.
        at: a state of it, in 1..T.
        schedule: of the whole new run, e.g. ``plan.branch(at, steps, shape)``; its rates before `at` are the run's.
        into: folder of the new run; exists.
        progress, tell: as in `run`.
        beside: folders of other branches that left the run at `at`: their full states and snapshots serve as the run's.
        keep_for: schedules of branches at `at` that are still to be made with this one in their `beside`: what they
            want kept of the states before it is kept here too, so that the prefix is repeated once for all of them.

    Raises:
        As `resume`; InputError where the rates before `at` differ or `at` is no state of the run.
    """
    folder, into, tell = Path(folder), Path(into), tell or _mute
    old = read_config(folder)
    if not 1 <= at <= min(old.plan.total, schedule.total):
        raise InputError(f"a branch leaves at a state 1..{min(old.plan.total, schedule.total)} of the run, got {at}")
    if not np.array_equal(schedule.values()[:at], old.plan.values()[:at]):
        raise InputError(f"the schedule of a branch must have the rates of the run before state {at}")
    if into.resolve() == folder.resolve():
        raise InputError(f"a branch needs a folder of its own, got that of the run, {folder}")
    pins = tuple(t for t in old.branch_points if t <= schedule.total)
    config = dataclasses.replace(
        old, schedule=schedule.to_dict(), steps=schedule.total, epochs=None, branch_points=pins
    )
    sources = [folder, *map(Path, beside)]
    with alone(into), _surroundings(config) as job:
        session = _session(job, into, progress, tell)
        start = _nearest(sources, config, at, tell)
        session.fresh()
        if start is None:
            tell(f"{folder} has no full state at or before {at}: training from scratch")
        else:
            tell(f"branching off at state {at}, from the full state {start.state}")
            start = session.adopt([source / SNAPSHOTS for source in sources], start)
        others = [dataclasses.replace(config, schedule=s.to_dict(), steps=s.total, branch_points=()) for s in keep_for]
        if others:
            session.keep_also([SnapshotPlan.of(other) for other in others], at)
        return session.complete(start)


def reprobe(
    folder: str | Path, changes: Mapping[str, Any], into: str | Path | None = None, *, tell: Tell | None = None
) -> xr.Dataset:
    """Measure a run again from its snapshots, without training.

    The attribute `measured_by` (JSON) of the dataset then holds when, by which command and with which code; what the
    other attributes say of these is of the training.

    Args:
        folder: of a run that was trained to its end.
        changes: fields of `MEASURING`, with their new values.
        into: folder for the new dataset, which exists; None: that of the run, whose dataset is replaced.
        tell: as in `run`.

    Raises:
        As `resume`; InputError for a field that is not one of `MEASURING`, a run that has not ended, or one without
        snapshots: nothing would be measured, and what was measured replaced by that.
    """
    folder = Path(folder)
    for name in changes:
        if name not in MEASURING:
            why = ": it says which snapshots are kept in training" if name in _KEEPING else ""
            raise InputError(f"{name} is past changing once a run is trained{why}; choose from {', '.join(MEASURING)}")
    old = read_config(folder)
    ds = store.load(folder / store.RUN_FILE) if (folder / store.RUN_FILE).exists() else None
    if ds is None or ds.attrs["status"] != "complete":
        is_ = f"is {ds.attrs['status']}, not" if ds is not None else "was not"
        raise InputError(f"{folder} {is_} trained to its end; go on with: riverval real resume {folder}")
    if not any((folder / SNAPSHOTS).glob("*.safetensors")):
        told = "probe the run that was trained, with --snapshots above 0"
        raise InputError(f"{folder} has no snapshots to measure; {told}")
    config = dataclasses.replace(old, **changes)
    target = folder if into is None else Path(into)
    with alone(target), _surroundings(config) as job:
        session = _session(job, target, None, tell)
        session.snapshots.folder = folder / SNAPSHOTS
        write_config(job, target)
        attrs = {"config": json.dumps(config.to_dict(), sort_keys=True), "measured_by": json.dumps(made_by())}
        return session.measured(_series(ds).assign_attrs(attrs))


# --- parts -----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _surroundings(config: RunConfig | Job) -> Iterator[Job]:
    """The job, with the threads and the determinism that its config asks for."""
    given = config.config if isinstance(config, Job) else config
    with thread_count(given.threads), determinism(given.deterministic):
        yield config if isinstance(config, Job) else prepare(config)


def _session(
    job: Job,
    folder: Path,
    progress: Progress | None,
    tell: Tell | None,
    trunks: Trunks | None = None,
    share_at: Sequence[int] = (),
) -> Session:
    outside = [t for t in share_at if not 1 <= t <= job.config.plan.total]
    if outside:
        raise InputError(f"share_at must be states 1..{job.config.plan.total} of the run, got {outside[0]}")
    if share_at and trunks is None:
        raise InputError("share_at needs a pool to put the states into; give trunks")
    return Session(job, folder, progress or _silent, tell or _mute, trunks, frozenset(share_at))


def _nearest(folders: Sequence[Path], config: RunConfig, at: int, tell: Tell) -> FullState | None:
    """The last full state at or before `at` of runs that share `config`'s rates up to there; None without."""
    best: FullState | None = None
    for folder in folders:
        found = Checkpoints(folder / CHECKPOINTS, config, tell=tell).at_or_before(at)
        if found is not None and (best is None or found.state > best.state):
            best = found
        if best is not None and best.state == at:
            break
    return best


def _finished_dataset(folder: Path, config: RunConfig) -> xr.Dataset | None:
    """The dataset of the run if nothing is left to do; one of an earlier run in the same folder does not count."""
    try:
        ds = store.load(folder / store.RUN_FILE)
    except StoreError:
        return None
    same = json.loads(ds.attrs["config"]) == json.loads(json.dumps(config.to_dict()))
    return ds if same and is_finished(ds) else None


def _series(ds: xr.Dataset) -> xr.Dataset:
    """What was recorded in training, without what the probes measured."""
    kept = [
        name for name, v in ds.data_vars.items()
        if {*v.dims} <= {"step"} or {*v.dims} <= {"eval_step"}
        if v.dims or name in ("final_train_loss", "final_train_accuracy", "diverged", "diverged_at")
    ]  # fmt: skip
    return ds[kept].drop_vars(
        [c for c in ds.coords if c not in ("source", "step", "lr", "phase", "eval_step")], errors="ignore"
    )


def _tidy(folder: Path) -> None:
    """Delete what a killed process left half written, here and in the folders below; .tmp are those of safetensors."""
    for pattern in (".*.part", "*/.*.part", "snapshots/.tmp*"):
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)


def _silent(done: int, values: Mapping[str, float]) -> None:
    pass


def _mute(line: str) -> None:
    pass
