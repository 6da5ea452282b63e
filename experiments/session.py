"""From a job to its dataset: training with its full states, the end of it whatever it is, and the probes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr

from .. import store
from .._typing import Progress
from ..errors import RivervalError, StoreError
from ..provenance import provenance
from ..recorder import Recorder
from ..schema import build
from ..schema import validate as validate_dataset
from .checkpoints import Checkpoints, FullState, Tell
from .config import CONFIG_FILE
from .job import Job
from .machine import out_of_memory_told, own_randomness
from .probes import Context, joined, measure
from .seeds import Stream, torch_seed
from .snapshot_plan import SnapshotPlan
from .snapshots import Snapshots
from .train import Keeping, Outcome, Trainer, evaluate, evaluation_states
from .trunks import Trunks

INTERRUPTED = "measurements: interrupted"  # the note that Ctrl-C leaves on a run that was trained to its end
SNAPSHOTS, CHECKPOINTS = "snapshots", "checkpoints"  # folders in that of a run
MIRROR_INTERVAL = 2.0  # seconds; the checkpoints are what a run goes on from, the mirror is only looked at


@dataclass
class Session:
    """One run in its folder, from its start, or from a full state, to its dataset.

    Args:
        job: what is run.
        folder: of the run; exists.
        progress: called after each update.
        tell: takes a line for the user.
        trunks: pool of full states shared with other runs; None without.
        share_at: states to put into it.
    """

    job: Job
    folder: Path
    progress: Progress
    tell: Tell
    trunks: Trunks | None = None
    share_at: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.snapshots = Snapshots(self.folder / SNAPSHOTS, self.job.snapshot_plan)
        self.checkpoints = Checkpoints(self.folder / CHECKPOINTS, self.job.config, tell=self.tell)
        self.pinned = self.job.pinned

    # --- before training ---------------------------------------------------------------------------------------------
    def fresh(self) -> None:
        """Clear away what an earlier run left in the folder, and write the config.

        Raises:
            StoreError: it cannot be written.
        """
        self.checkpoints.clear()
        self.snapshots.clear()
        write_config(self.job, self.folder)

    def shared_start(self) -> FullState | None:
        """The deepest state of the pool that leaves nothing out: no snapshot and no evaluation of this run."""
        if self.trunks is None:
            return None
        plan = self.job.config.plan
        latest = min(self.snapshots.plan.wanted, default=plan.total)
        found = self.trunks.find(self.job.config, latest, evaluation_states(plan, self.job.config.eval_every))
        if found is not None:
            self.tell(f"starting from state {found.state}, which another run has reached")
            found = replace(found, seconds={})
        return found

    def adopt(self, folders: Iterable[Path], start: FullState) -> FullState:
        """Take over a full state of another run, and the snapshots from before it in any of these folders."""
        start = replace(start, seconds={})
        for folder in folders:
            self.snapshots.adopt(folder, start.state)
        self.checkpoints.save(start, pinned=True)
        return start

    def keep_also(self, plans: Iterable[SnapshotPlan], until: int) -> None:
        """Keep what other plans want of the states 0..until too, and that full state, for runs that will adopt them."""
        self.snapshots = Snapshots(self.snapshots.folder, self.snapshots.plan.widened(plans, until))
        self.pinned |= {until}

    # --- training ----------------------------------------------------------------------------------------------------
    def complete(self, start: FullState | None) -> xr.Dataset:
        """Train from a full state (None: from scratch), measure, save; returns the saved dataset.

        Raises:
            StoreError: something cannot be written; RivervalError: memory ran out. The records are saved if possible.
            KeyboardInterrupt: Ctrl-C before the first update.
        """
        device = next(self.job.model.parameters()).device
        with own_randomness(device, torch_seed(self.job.config.seed, Stream.TRAINING)):
            try:
                with out_of_memory_told():
                    trainer = Trainer(self.job.config, self.job.model, self.job.data, self.snapshots)
            except RivervalError:
                self._leave_nothing()
                raise
            ds = self._trained(trainer, start)
        if ds.attrs["status"] == "complete":
            ds = self.measured(ds)
        if is_finished(ds):
            self.checkpoints.prune(0)  # the last state is among the pinned
        return ds

    def _trained(self, trainer: Trainer, start: FullState | None) -> xr.Dataset:
        """Train and save. Whatever ends it early, the records are kept; a run without any leaves no file."""
        recorder = Recorder(self.folder / store.PARTIAL_FILE, self._attrs("running"), "real", MIRROR_INTERVAL)
        try:
            with out_of_memory_told():
                if start is not None:
                    trainer.restore(start, recorder)
                outcome = trainer.train(recorder, self.progress, self._keeping())
                recorder.flush()
                ds = self._finished(recorder.dataset(), outcome, trainer)
            if outcome.status == "interrupted" and "step" not in ds.dims:
                recorder.remove()
                self._leave_nothing()
                raise KeyboardInterrupt
            store.save(ds, self.folder / store.RUN_FILE, overwrite=True)
            recorder.remove()
        except RivervalError as error:
            raise type(error)(f"{error}; {self._rescued(recorder, trainer)}") from error
        return ds

    def _keeping(self) -> Keeping:
        every, total = self.job.config.checkpoint_every, self.job.config.plan.total
        own = frozenset({*range(every, total, every), *self.pinned})

        def keep(full: FullState) -> None:
            if full.state in self.share_at and self.trunks is not None:
                self.trunks.put(self.job.config, full)
            if full.state in own or full.state not in self.share_at:  # the latter: Ctrl-C
                self.checkpoints.save(full, pinned=full.state in self.pinned)

        return Keeping(own | self.share_at, keep)

    def _finished(self, series: xr.Dataset, outcome: Outcome, trainer: Trainer) -> xr.Dataset:
        """The recorded series with how the run ended."""
        values: dict[str, Any] = {}
        status = outcome.status
        if status == "complete":
            try:
                with trainer.clocked("evaluation"):
                    values = self._final_losses()
            except KeyboardInterrupt:
                status = "interrupted"
        values |= {"diverged": int(status == "diverged"), "diverged_at": outcome.diverged_at}
        timing = {f"{what}_seconds": round(seconds, 3) for what, seconds in trainer.seconds.items()}
        return joined(series, build(values, {}, "real")).assign_attrs(self._attrs(status), timing=json.dumps(timing))

    def _final_losses(self) -> dict[str, Any]:
        config = self.job.config
        batches = self.job.data.fixed("train", config.final_examples)
        loss, accuracy = evaluate(config.architecture, self.job.model, batches)
        return {"final_train_loss": loss} | ({} if accuracy is None else {"final_train_accuracy": accuracy})

    def _rescued(self, recorder: Recorder, trainer: Trainer) -> str:
        """Save the records of a run that cannot go on; says what became of them."""
        mirror, target = self.folder / store.PARTIAL_FILE, self.folder / store.RUN_FILE
        if "step" not in recorder.records:
            mirror.unlink(missing_ok=True)
            self._leave_nothing()
            return "nothing was recorded"
        ds = self._finished(recorder.dataset(), Outcome("interrupted"), trainer)
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
                return f"what was recorded is kept in {target}; go on with: riverval real resume {self.folder}"
        return "what was recorded could not be kept"

    def _leave_nothing(self) -> None:
        """Of a run that has not begun, the config is no more than a file in the way."""
        if not store.holds_run(self.folder):
            (self.folder / CONFIG_FILE).unlink(missing_ok=True)

    # --- measuring ---------------------------------------------------------------------------------------------------
    def measured(self, ds: xr.Dataset) -> xr.Dataset:
        """The dataset with the values of every probe, saved."""
        context = Context(self.job.config, self.job.model, self.job.data, self.snapshots, self.tell)
        try:
            for part in measure(context):
                ds = joined(ds, part)
        except KeyboardInterrupt:
            context.notes.append(INTERRUPTED)
        timing = json.loads(ds.attrs["timing"])
        timing["probe_seconds"] = {name: round(seconds, 3) for name, seconds in context.seconds.items()}
        ds = ds.assign_attrs(notes="\n".join(context.notes), timing=json.dumps(timing))
        store.save(validate_dataset(ds), self.folder / store.RUN_FILE, overwrite=True)
        return ds

    def _attrs(self, status: str) -> dict[str, str]:
        c = self.job.config
        title = f"{c.arch} on {Path(c.data).name}, {c.plan.describe()}"
        return provenance(title, config=c.to_dict(), seed=c.seed, status=status)


def is_finished(ds: xr.Dataset) -> bool:
    """Whether nothing is left to do: the run diverged, or was trained to its end and measured."""
    if ds.attrs["status"] == "diverged":
        return True
    return ds.attrs["status"] == "complete" and INTERRUPTED not in ds.attrs.get("notes", INTERRUPTED)


def write_config(job: Job, folder: Path) -> None:
    """Write the planned config of a run to its folder.

    Raises:
        StoreError: it cannot be written.
    """
    text = json.dumps(job.config.to_dict(), indent=1, sort_keys=True) + "\n"
    store.write_aside(folder / CONFIG_FILE, lambda part: part.write_text(text, encoding="utf-8"))
