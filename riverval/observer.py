"""Watch any PyTorch training: a few lines in its loop, and a dataset of its geometry, each number beside its null."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr

from . import diagnostics as diagnostics  # registers those that come with riverval
from . import store
from ._cadence import Cadence
from ._closing import diverged_at
from ._phases import compare_rates, guessed_phases, phases_of
from ._typing import NDArray
from ._watching import Finished, Following
from .errors import InputError, StoreError, missing_extra
from .provenance import provenance
from .recorder import Recorder
from .schedules import Schedule
from .schema import build, declare, validate

try:
    import torch
    from torch import Tensor, nn
except ImportError as _error:
    raise missing_extra("torch", "real", "watching a torch training") from _error

from ._plan import Plan, make_plan
from ._prober import Notes, Prober, at_close, generator
from ._updates import Updates, momentum_of, scalar
from .model_loss import flat_vector

_MANY = 1000  # micro-batches without an update: nobody has so many
_MOST_HELD = 10_000  # updates that wait to be converted, each a few small tensors


def observe(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    probe: tuple[Callable[[Any, Any], Tensor], Sequence[Any]] | None = None,
    *,
    every: int = 200,
    out: str | Path | None = None,
    record: Sequence[str] | None = None,
    cadence: Mapping[str, int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    budget: float | None = 0.1,
    schedule: Schedule | None = None,
    sketch: int = 1024,
    seed: int = 0,
    title: str | None = None,
    overwrite: bool = False,
    interval: float = 5.0,
) -> Observer:
    """An observer of a training, to be used as a context around its loop.

    In the loop call ``watch.step(loss)`` once after every ``optimizer.step()``, or with every micro-batch. The training
    is not touched: its weights are bit for bit those of an unwatched run. The formula, source and null of each
    diagnostic are in the docstrings of `riverval.diagnostics`.

    Args:
        model: any module, only read. What DistributedDataParallel or torch.compile wrapped is unwrapped for probes.
        optimizer: any torch optimizer of the model's parameters. Its step hooks tell which updates are real (a gradient
            scaler skips some), their rates, and the gradients that they were made from (after clipping).
        probe: ``(loss, batches)``: ``loss(model, batch)`` gives the mean loss of a batch as a scalar tensor, `batches`
            is a list of fixed batches that every probe is measured on; `riverval.hessian.supervised` makes it for pairs
            (x, y). Do not train on them: against the gradient of its own batch even an update on pure noise looks
            aligned. None: nothing that needs a loss is measured.
        every: updates from one probe to the next; probes are made at the states 0, every, 2 every, ... (or the first
            one after it whose loss is reported) and at the end.
        out: the file to write, e.g. "run.nc"; while the run is under way its records stand in "run.partial.nc" beside
            it. None keeps them in memory, see `Observer.dataset`.
        record: what to record beside loss, rate and phase of every update: "norms" and "sketch" of every update, and
            names of `riverval.diagnostics.DIAGNOSTICS`. None takes norms, probe_loss, alignment, sharpness, and
            preconditioned_sharpness for an optimizer that preconditions; without a probe, norms only.
        cadence: updates between two measurements of single diagnostics, by name.
        options: options of single diagnostics, by name: ``{"sharpness": {"tol": 1e-2}}``.
        budget: share of the run's time that all probes may take together, in (0, 1]. They become rarer by themselves
            where they would take more; the first of each is always made. None for no limit.
        schedule: gives each update its phase; None infers it from the rates when the run is closed (until then it is a
            guess from the change of the rate).
        sketch: length of the sketches of parameter vectors.
        seed: of what diagnostics draw; the same seed gives the same numbers.
        title: of the dataset.
        overwrite: replace `out`, and what a killed run has left beside it.
        interval: seconds between two writes of the file; a kill loses at most so much, and the probe under way.

    Raises:
        InputError: an argument is out of range, unknown, or does not fit the others: an optimizer of another model, no
            parameter that requires gradients, batches that are no list, a file that exists.

    >>> line = nn.Linear(1, 1)
    >>> sgd = torch.optim.SGD(line.parameters(), lr=0.1)
    >>> with observe(line, sgd) as watch:
    ...     for t in range(3):
    ...         sgd.zero_grad()
    ...         loss = line(torch.ones(1, 1)).square().mean()
    ...         loss.backward()
    ...         sgd.step()
    ...         watch.step(loss)
    >>> watch.dataset()["lr"].values.tolist()
    [0.1, 0.1, 0.1]
    """
    return Observer(
        make_plan(
            model, optimizer, probe, every=every, out=out, record=record, cadence=cadence, options=options,
            budget=budget, schedule=schedule, sketch=sketch, seed=seed, title=title, overwrite=overwrite,
            interval=interval,
        )
    )  # fmt: skip


class Observer:
    """A training under observation, see `observe`: ``with observe(...) as watch``, or call `start` and `close`.

    Whatever fails inside is told by a warning once and in the dataset's attribute `notes`, and does not stop the run.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stage = "new"
        self._notes = Notes()
        self._cadence = Cadence(plan.every, plan.budget)
        self._updates = Updates(
            plan.optimizer,
            norms="norms" in plan.record,
            sketch=self._sketch if "sketch" in plan.record else None,
            width=plan.sketch.width,
            failed=lambda error: self._notes.add("an update could not be measured", f"{type(error).__name__}: {error}"),
        )
        self._prober = Prober(plan, self._cadence, self._notes)
        self._recorder = Recorder(None, {}, "real")
        self._rates: list[float] = []
        self._planned: NDArray[np.int8] | None = None if plan.schedule is None else plan.schedule.phases()
        self._probed = -1  # the last state that was visited
        self._converted = 0.0
        self._final: xr.Dataset | None = None
        self._closing_seconds: dict[str, float] = {}

    # --- life --------------------------------------------------------------------------------------------------------
    def start(self) -> Observer:
        """Put the hooks on the optimizer, open the file, and probe the first state.

        Raises:
            InputError: it was started before.
            StoreError: the file cannot be written.
        """
        if self._stage != "new":
            raise InputError("an observer watches one run; make a new one with riverval.observe(...)")
        plan = self._plan
        self._recorder = Recorder(
            plan.mirror, self._attrs("running"), "real", plan.interval, coords=plan.coords, own=plan.own
        )
        self._cadence.start()
        self._updates.start()
        self._stage = "running"
        self._converted = time.monotonic()
        try:
            with self._harmless():
                self._visit(0)
        except BaseException:  # Ctrl-C in the first probe: as if it had never been started
            self._updates.stop()
            self._recorder.remove()
            self._stage = "closed"
            raise
        return self

    def step(self, loss: Tensor | float, *, grad_norm: Tensor | float | None = None) -> None:
        """Report the loss of a batch: once after every ``optimizer.step()``, or with every micro-batch.

        Of several losses for one update their mean is recorded, those of steps that a gradient scaler skipped before it
        included. Reports that always come before their ``optimizer.step()`` are recognised at the close; until then the
        file has them one update too early.

        Args:
            loss: a scalar tensor (its graph is not kept) or a number.
            grad_norm: norm of the gradient before clipping, as `torch.nn.utils.clip_grad_norm_` returns it; with the
                report that follows ``optimizer.step()``.

        Raises:
            InputError: not a scalar, or the observer is not running.
        """
        if self._stage != "running":
            told = (
                "has not been started: use it as `with riverval.observe(...) as watch`"
                if self._stage == "new"
                else "is closed"
            )
            raise InputError(f"this observer {told}")
        complete = self._updates.report(
            scalar("loss", loss), None if grad_norm is None else scalar("grad_norm", grad_norm)
        )
        with self._harmless():
            if not complete:
                if self._updates.reports == _MANY:
                    self._tell_silence()
                return
            due = bool(self._cadence.due(self._updates.reached))
            late = time.monotonic() - self._converted >= self._plan.interval or self._updates.held >= _MOST_HELD
            if due or late or self._prober.state is not None:
                self._convert()
                self._visit(self._updates.reached)

    def close(self, status: str = "complete") -> None:
        """End the observation: probe the last state, take the hooks away, and write the dataset.

        Args:
            status: "complete", or "interrupted" for a run that ended early; a loss that is not finite in the end makes
                it "diverged".

        Raises:
            StoreError: the dataset cannot be written; the message says where the records are.
        """
        if self._stage != "running":
            return
        self._updates.stop()
        self._stage = "closed"
        with self._harmless():
            self._convert()
            if status == "complete":
                self._tell_silence()
                self._visit(self._updates.reached, last=True)
            self._complete(Following(None, math.nan))
        self._cadence.stop()
        self._final = self._finished(status)
        self._keep(self._final)

    def __enter__(self) -> Observer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            self._notes.add("the training stopped", f"{type(error).__name__}: {error}", quiet=True)
        try:
            self.close("complete" if error is None else "interrupted")
        except Exception as lost:  # not to hide the error that ended the training, nor to keep it from what comes after
            with contextlib.suppress(Warning):
                warnings.warn(f"riverval.observe: {lost}", RuntimeWarning, stacklevel=2)

    # --- results -----------------------------------------------------------------------------------------------------
    def dataset(self) -> xr.Dataset:
        """What was recorded so far, as `riverval.schema` describes it; after the close the whole dataset.

        Raises:
            InputError: the observer has not been started.
        """
        if self._stage == "new":
            raise InputError("this observer has not been started")
        if self._final is not None:
            return self._final
        self._convert()
        return self._recorder.dataset().assign_attrs(self._attrs("running"))

    def summary(self) -> str:
        """The cost of the observation: for each diagnostic its measurements, time, and share of the run's time."""
        rows = [("every update", {"measured": self._updates.reached}, self._updates.seconds)]
        rows += [(name, {"measured": 1}, seconds) for name, seconds in self._closing_seconds.items()]
        return self._cadence.table(rows)

    # --- the parts ---------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever fails within is noted and reaches nobody."""
        try:
            yield
        except Exception as error:
            self._notes.add("the observer failed", f"{type(error).__name__}: {error}")

    def _tell_silence(self) -> None:
        """Say that losses come without updates, or updates without losses."""
        made, reports = self._updates.reached, self._updates.reports
        if reports and not made:
            kind = type(self._plan.optimizer).__name__
            self._notes.add("no update", f"losses are reported, but the {kind} that was given has never made a step")
        elif made and not reports:
            self._notes.add("no loss", "watch.step(loss) was never called, so there were no probes on the way either")

    def _sketch(self) -> Any:
        """The sketch of the parameters; on an accelerator a tensor, so as not to wait for it."""
        tensors = self._plan.parameters()
        on_device = all(t.is_cuda for t in tensors) and len({t.device for t in tensors}) == 1
        return self._plan.sketch.on_device(tensors) if on_device else self._plan.sketch.of(tensors)

    def _visit(self, state: int, *, last: bool = False) -> None:
        """Probe a state, once; `last` makes everything due."""
        if state == self._probed and not (last and self._prober.state == state):
            return
        if {name for name, p in self._plan.model.named_parameters() if p.requires_grad} - {*self._plan.names}:
            self._notes.add("parameters", "some require gradients that did not at the start; they are not measured")
        if self._prober.visit(state, last=last):
            self._probed = state
            if self._prober.waiting:
                self._updates.keep_next(lambda: flat_vector(self._plan.parameters()))

    def _convert(self) -> None:
        """Make records of the updates since the last time, and complete the probe that waited for one of them."""
        columns = self._updates.columns()
        self._converted = time.monotonic()
        rates, first = columns["lr"].tolist(), len(self._rates)
        if rates:
            self._rates += rates
            columns["phase"] = self._phases(since=first)
            self._store("step", columns)
        state = self._prober.state
        if state is not None and state < len(self._rates):
            self._complete(Following(self._updates.kept, self._rates[state]))

    def _complete(self, following: Following) -> None:
        row = self._prober.follow(following)
        self._updates.kept = None
        if row is not None:
            self._store("probe_step", {name: [value] for name, value in row.items()})

    def _store(self, axis: str, columns: Mapping[str, Any]) -> None:
        """Add records. A file that cannot be written does not stop the run: they stay in memory."""
        self._recorder.describe(notes=self._notes.text())
        try:
            self._recorder.extend(axis, **columns)
        except StoreError as error:
            self._notes.add("file", str(error))

    def _phases(self, *, since: int | None = None) -> NDArray[np.int8]:
        """The phase of every update so far, by the schedule or from the rates; `since` one: a guess by the changes."""
        if self._planned is None:
            if since is None:
                return phases_of(self._rates)
            return guessed_phases(self._rates[max(since - 1, 0) :])[min(since, 1) :]
        updates = np.arange(since or 0, len(self._rates))
        return self._planned[np.minimum(updates, len(self._planned) - 1)]

    def _finished(self, status: str) -> xr.Dataset:
        """The whole dataset: the records, the phases read off all rates, what is measured at the close, the cost."""
        ds = self._recorder.dataset()
        if "grad_norm" in ds and bool(np.isnan(ds["grad_norm"]).all()):
            ds = ds.drop_vars("grad_norm")
        if self._rates:
            ds = ds.assign_coords(phase=("step", self._phases(), ds["phase"].attrs))
            losses = [math.nan if loss is None else loss for loss in self._updates.losses()]
            ds["train_loss"] = ds["train_loss"].copy(data=losses)
            if self._plan.schedule is not None and (off := compare_rates(self._plan.schedule, self._rates)):
                self._notes.add("schedule", off)
        values, status = self._ending(status)
        ds = _joined(ds, build(values, {}, "real"))
        plan = self._plan
        for known in plan.closing:
            rng = generator(plan.seed, known.name, len(self._rates))
            run = Finished(ds, plan.dim, plan.sketch, momentum_of(plan.optimizer), rng)
            found, self._closing_seconds[known.name] = at_close(known, run, plan, self._notes)
            ds = _joined(ds, found)
        ds = _joined(ds, build(self._cost(), {}, "real"))
        return validate(ds.assign_attrs(self._attrs(status)))

    def _ending(self, status: str) -> tuple[dict[str, Any], str]:
        """How the run ended: diverged if its last loss is not finite, from where on it was not."""
        losses = self._updates.losses()
        at = diverged_at(losses, self._updates.last_losses)
        bad = sum(loss is not None and not math.isfinite(loss) for loss in losses)
        if bad and at < 0:
            self._notes.add("losses", f"{bad} of {len(losses)} updates had none that is finite", quiet=True)
        return {"diverged": int(at >= 0), "diverged_at": at}, "diverged" if at >= 0 else status

    def _cost(self) -> dict[str, Any]:
        costs, elapsed = self._cadence.costs, self._cadence.elapsed
        told = {"run_seconds": elapsed, "record_seconds": self._updates.seconds}
        share = {"diagnostic": list(costs), "diagnostic_share": [c.seconds / elapsed for c in costs.values()]}
        return told | (share if costs else {})

    def _attrs(self, status: str) -> dict[str, str]:
        plan = self._plan
        told = provenance(plan.title, config=plan.config, seed=plan.seed, status=status)
        own = {"own_variables": declare(plan.own)} if plan.own else {}
        return told | own | {"notes": self._notes.text()}

    def _keep(self, ds: xr.Dataset) -> None:
        """Write the dataset; the mirror goes when it stands."""
        plan = self._plan
        if plan.out is None:
            return
        try:
            store.save(ds, plan.out, overwrite=True)
        except StoreError as error:
            raise StoreError(f"{error}; what was recorded is in {plan.mirror} and in Observer.dataset()") from error
        with contextlib.suppress(StoreError):  # the records stand in the finished file
            self._recorder.flush()
        self._recorder.remove()


def _joined(ds: xr.Dataset, more: xr.Dataset) -> xr.Dataset:
    return xr.merge([ds, more], join="outer", compat="no_conflicts", combine_attrs="drop_conflicts")
