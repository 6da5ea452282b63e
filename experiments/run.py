"""One run from its config to its dataset: prepare, train, measure, save."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from .. import store
from .._typing import Progress
from ..errors import InputError, RivervalError, StoreError, missing_extra
from ..provenance import provenance
from ..recorder import Recorder
from ..schema import build
from ..schema import validate as validate_dataset
from .config import RunConfig

try:
    import torch
    from torch import nn
except ImportError as _error:
    raise missing_extra("torch", "real", "training") from _error

from .data import Data, load_images
from .probes import Context, measure
from .seeds import Stream, torch_seed
from .snapshots import Snapshots, planned_states
from .text import load_text
from .train import Outcome, Trainer, evaluate, out_of_memory_told, pick_device, thread_count, usable_cores

LOADERS: dict[str, Callable[[RunConfig], Data]] = {"images": load_images, "text": load_text}
INTERRUPTED = "measurements: interrupted"  # the note that Ctrl-C leaves on a run that was trained to its end
FINAL_EXAMPLES = 4  # final training loss of text: on so many times the examples of a validation


@dataclass(frozen=True)
class Job:
    """A run that is ready to start: its planned config, data and model on their device."""

    config: RunConfig
    data: Data
    model: nn.Module

    @property
    def states(self) -> dict[str, list[int]]:
        """Window -> states of which snapshots will be kept."""
        return planned_states(self.config.plan, self.config.snapshots)

    @property
    def snapshot_bytes(self) -> int:
        """Disk space that the snapshots will take."""
        count = len({t for states in self.states.values() for t in states})
        return count * sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def tokens(self) -> int | None:
        """Tokens that the run will see, None for images."""
        c = self.config
        return None if c.seq is None or c.steps is None else c.seq * c.batch * c.steps


def prepare(config: RunConfig) -> Job:
    """Load the data, build the model, plan the schedule: all that can fail before training.

    Raises:
        InputError: an argument does not fit the data or the machine.
        RivervalError: data cannot be had.
        MissingExtraError: a package is missing.
    """
    device = pick_device(config.device)
    if (config.threads or 1) > usable_cores():
        raise InputError(f"threads must be at most the {usable_cores()} cores of this process, got {config.threads}")
    with out_of_memory_told():
        data = LOADERS[config.architecture.data_kind](config)
        with torch.random.fork_rng(devices=[]):  # initialised on the CPU: the same start on every device
            torch.manual_seed(torch_seed(config.seed, Stream.MODEL))
            model = config.architecture.build(config, data.facts)
        if config.architecture.data_kind == "images":
            model = model.to(memory_format=torch.channels_last)
        count = sum(p.numel() for p in model.parameters())
        known = {"data_sha256": data.sha256, "parameters": count, "facts": {**data.facts, "device": str(device)}}
        planned = config.planned(steps_per_epoch=data.steps_per_epoch, **known)
        return Job(planned, data.to(device), model.to(device))


def run(
    config: RunConfig | Job,
    folder: str | Path,
    progress: Progress | None = None,
    *,
    tell: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Train, measure, and leave ``run.nc`` and ``snapshots/`` in `folder`, which must exist.

    The records of every update stand in ``run.partial.nc`` while it trains. The dataset is saved once after training
    and again with the probes, so that no probe can lose it. Ctrl-C and a diverging loss end the run early: the dataset
    has what was recorded and says so in its attribute `status`.

    Args:
        config: from `config.resolve`, or a job from `prepare`.
        folder: of this run; files of the same names are replaced.
        progress: called as ``progress(updates_done, {"loss": ..., "lr": ...})``.
        tell: called with a line of text when a measurement starts.

    Returns:
        The saved dataset; attribute `notes` says which measurements were skipped or failed, and why.

    Raises:
        As `prepare`; StoreError if something cannot be written, RivervalError if memory runs out: what was recorded
        until then is saved as an interrupted run wherever there is room for it.
        KeyboardInterrupt: Ctrl-C before the first update.
    """
    folder = Path(folder)
    with thread_count(config.threads if isinstance(config, RunConfig) else config.config.threads):
        job = prepare(config) if isinstance(config, RunConfig) else config
        snapshots = Snapshots(folder / "snapshots", job.states)
        with out_of_memory_told():
            trainer = Trainer(job.config, job.model, job.data, snapshots)
        ds = _trained(job, trainer, folder, progress or _silent)
        if ds.attrs["status"] == "complete":
            ds = _probed(job, ds, snapshots, tell or _mute)
            store.save(ds, folder / store.RUN_FILE, overwrite=True)
    return ds


def _trained(job: Job, trainer: Trainer, folder: Path, progress: Progress) -> xr.Dataset:
    """Train and save. Whatever ends it early, the records are kept; a run without any leaves no file."""
    recorder = Recorder(folder / store.PARTIAL_FILE, _attrs(job, "running"), "real")
    trainer.snapshots.clear()
    try:
        with out_of_memory_told():
            outcome = trainer.train(recorder, progress)
            recorder.flush()
            ds = _finished(job, recorder.dataset(), outcome)
        if outcome.status == "interrupted" and "step" not in ds.dims:
            recorder.remove()
            raise KeyboardInterrupt
        store.save(ds, folder / store.RUN_FILE, overwrite=True)
        recorder.remove()
    except RivervalError as error:
        raise type(error)(f"{error}; {_rescued(job, recorder, folder)}") from error
    return ds


def _rescued(job: Job, recorder: Recorder, folder: Path) -> str:
    """Save the records of a run that cannot go on; says what became of them."""
    mirror, target = folder / store.PARTIAL_FILE, folder / store.RUN_FILE
    if "step" not in recorder.records:
        mirror.unlink(missing_ok=True)
        return "nothing was recorded"
    ds = _finished(job, recorder.dataset(), Outcome("interrupted"))
    for _ in range(2):
        try:
            store.save(ds, target, overwrite=True)
        except StoreError:
            with contextlib.suppress(StoreError):
                store.load(mirror)
                return f"what was recorded is kept in {mirror}"
            mirror.unlink(missing_ok=True)  # spoilt by a write that failed, and in the way of the next attempt
        else:
            mirror.unlink(missing_ok=True)
            return f"what was recorded is kept in {target}"
    return "what was recorded could not be kept"


def _finished(job: Job, series: xr.Dataset, outcome: Outcome) -> xr.Dataset:
    """The recorded series with how the run ended."""
    values: dict[str, Any] = {}
    status = outcome.status
    if status == "complete":
        try:
            values = _final_losses(job)
        except KeyboardInterrupt:
            status = "interrupted"
    values |= {"diverged": int(status == "diverged"), "diverged_at": outcome.diverged_at}
    return _joined(series, build(values, {}, "real")).assign_attrs(_attrs(job, status))


def _final_losses(job: Job) -> dict[str, Any]:
    config = job.config
    examples = None if config.architecture.data_kind == "images" else FINAL_EXAMPLES * config.eval_examples
    loss, accuracy = evaluate(config.architecture, job.model, job.data.fixed("train", examples))
    return {"final_train_loss": loss} | ({} if accuracy is None else {"final_train_accuracy": accuracy})


def _probed(job: Job, ds: xr.Dataset, snapshots: Snapshots, tell: Callable[[str], None]) -> xr.Dataset:
    context = Context(job.config, job.model, job.data, snapshots, tell)
    try:
        for part in measure(context):
            ds = _joined(ds, part)
    except KeyboardInterrupt:
        context.notes.append(INTERRUPTED)
    return validate_dataset(ds.assign_attrs(notes="\n".join(context.notes)))


def _joined(ds: xr.Dataset, part: xr.Dataset) -> xr.Dataset:
    return ds.assign_coords(part.coords).assign(part.data_vars)


def _attrs(job: Job, status: str) -> dict[str, str]:
    c = job.config
    title = f"{c.arch} on {Path(c.data).name}, {c.plan.describe()}"
    return provenance(title, config=c.to_dict(), seed=c.seed, status=status)


def _silent(done: int, values: Mapping[str, float]) -> None:
    pass


def _mute(line: str) -> None:
    pass
