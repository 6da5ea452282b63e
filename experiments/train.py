"""The training loop: one optimizer under a schedule, one record per update, evaluations and snapshots at their states.

Update t = 0..T-1 uses lr[t] and takes state t to state t + 1 (the convention of `riverval.schedules`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._typing import Progress
from ..errors import RivervalError
from ..hessian import evaluating
from ..recorder import Recorder
from ..schedules import Schedule
from .architecture_base import Architecture
from .checkpoints import FullState, Records
from .config import RunConfig
from .data import Batch, Data
from .machine import autocast, random_states, set_random_states, stop_asked
from .optim import Norms, make_optimizer, set_rate

LATE = 16  # updates whose records an accelerator may owe: to fetch each at once would make it wait
NORMS = ("train_loss", "grad_norm", "param_norm", "update_norm")


class Keeper(Protocol):
    """What is offered every state, e.g. `Snapshots`."""

    def offer(self, state: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Keep what is wanted of the state."""


@dataclass(frozen=True)
class Outcome:
    """How training ended: "complete", "interrupted" or "diverged"; the first state that is not finite, -1 if none."""

    status: str
    diverged_at: int = -1


@dataclass(frozen=True)
class Keeping:
    """Where full states are kept: `keep` gets those in `states`, before they are evaluated."""

    states: frozenset[int]
    keep: Callable[[FullState], None]


def evaluate(architecture: Architecture, model: nn.Module, batches: Sequence[Batch]) -> tuple[float, float | None]:
    """Mean loss and accuracy (None without) over fixed batches, in eval mode; the mode comes back."""
    losses, hits, examples = [], [], 0
    with evaluating(model), torch.no_grad():
        for batch in batches:
            loss, right = architecture.loss_and_hits(model, batch)
            size = len(batch[0])
            losses.append(loss.double() * size if loss.device.type != "mps" else loss * size)
            examples += size
            if right is not None:
                hits.append(right)
    loss = float(torch.stack(losses).sum()) / examples
    return loss, float(torch.stack(hits).sum()) / examples if hits else None


def evaluation_states(schedule: Schedule, every: int) -> frozenset[int]:
    """States 0, every, 2 every, ..., the ends of every cooldown, and T.

    Not those of other phases: two runs that part at the start of a cooldown evaluate the same states before it.
    """
    edges = {t for window in schedule.windows("cooldown") for t in window}
    return frozenset({*range(0, schedule.total, every), schedule.total, *edges})


class Trainer:
    """One run over a schedule; holds what the loop needs so that its parts stay short.

    Args:
        config: a planned config.
        model: on its device; changed in place.
        data: on the same device.
        snapshots: offered every state.

    Attributes:
        seconds: spent so far by what for: training, evaluation, snapshots, checkpoints.
        start: state that training starts from.

    Raises:
        RivervalError: the model cannot be compiled.
    """

    def __init__(self, config: RunConfig, model: nn.Module, data: Data, snapshots: Keeper) -> None:
        self.config, self.model, self.data, self.snapshots = config, model, data, snapshots
        self.architecture = config.architecture
        self.schedule = config.plan
        self.optimizer = make_optimizer(model, config)
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.device = self.params[0].device
        self.norms = Norms(self.params, config.clip)
        self.evaluated = evaluation_states(self.schedule, config.eval_every)
        self.validation = data.fixed("val", config.eval_examples)
        self.start, self.seconds = 0, dict.fromkeys(("training", "evaluation", "snapshots", "checkpoints"), 0.0)
        self._late = 1 if self.device.type == "cpu" else LATE
        self._owed: list[tuple[int, Tensor]] = []
        self._rates, self._phases = self.schedule.values().tolist(), self.schedule.phases().tolist()
        self.forward = self._compiled() if config.compile else model

    @contextlib.contextmanager
    def clocked(self, what: str) -> Iterator[None]:
        """Count the time of the block as `what`, without that of the blocks within it."""
        began, within = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - began - (sum(self.seconds.values()) - within)

    # --- full states -------------------------------------------------------------------------------------------------
    def full_state(self, state: int, recorder: Recorder) -> FullState:
        """All that `restore` needs. Its tensors are the live ones: write them before the next update."""
        records = {
            axis: {name: torch.from_numpy(series.array(name)) for name in series.columns}
            for axis, series in recorder.records.items()
        }
        return FullState(
            state, self.model.state_dict(), self.optimizer.state_dict(), random_states(self.device), records,
            dict(self.seconds),
        )  # fmt: skip

    def restore(self, full: FullState, recorder: Recorder) -> None:
        """Go on from a full state of this run, or of one with the same identity and first rates."""
        self.model.load_state_dict(full.model)
        self.optimizer.load_state_dict(full.optimizer)
        self.norms.reset()
        set_random_states(full.random, self.device)
        recorder.restore(self._own(full.records))
        self.start = full.state
        self.seconds |= {what: self.seconds[what] + spent for what, spent in full.seconds.items()}

    def _own(self, records: Records) -> dict[str, dict[str, list[Any]]]:
        """Records of another run as this run's: its phases, and the states that it evaluates."""
        own = {axis: {name: column.tolist() for name, column in columns.items()} for axis, columns in records.items()}
        if "step" in own:
            own["step"]["phase"] = self._phases[: len(own["step"]["step"])]
        if "eval_step" in own:
            wanted = [t in self.evaluated for t in own["eval_step"]["eval_step"]]
            own["eval_step"] = {
                name: [value for value, keep in zip(column, wanted, strict=True) if keep]
                for name, column in own["eval_step"].items()
            }
        return own

    # --- the loop ----------------------------------------------------------------------------------------------------
    def train(self, recorder: Recorder, progress: Progress, keeping: Keeping) -> Outcome:
        """All updates that are left. Ctrl-C and a loss that is not finite end the run early, with its records kept.

        Args:
            recorder: gets the axes `step` and `eval_step`.
            progress: called after each update.
            keeping: of full states, after the one that it starts from; Ctrl-C keeps another.
        """
        with self.clocked("training"), stop_asked() as asked:
            try:
                return self._updates(recorder, progress, keeping, asked)
            except KeyboardInterrupt:
                bad = self._settle(recorder, _silent)
                return Outcome("interrupted") if bad is None else Outcome("diverged", bad)

    def _updates(self, recorder: Recorder, progress: Progress, keeping: Keeping, asked: Callable[[], bool]) -> Outcome:
        total = self.schedule.total
        self.model.train()
        for t in range(self.start, total + 1):
            due = t in self.evaluated or t in keeping.states
            bad = self._settle(recorder, progress) if due or asked() or len(self._owed) >= self._late else None
            if bad is not None:
                return Outcome("diverged", bad)
            stop = asked() and not self._owed
            # Before the full state is kept, which then vouches for all that is known of the states up to it.
            with self.clocked("snapshots"):
                self.snapshots.offer(t, self.model, self.optimizer)
            if (stop or t in keeping.states) and t > self.start:
                with self.clocked("checkpoints"):
                    keeping.keep(self.full_state(t, recorder))
            if stop:
                return Outcome("interrupted")
            if t in self.evaluated and not self._evaluate(t, recorder):
                return Outcome("diverged", t)
            if t < total:
                self._owed.append((t, self._update(t)))
        return Outcome("complete")

    def _evaluate(self, t: int, recorder: Recorder) -> bool:
        """Record the held-out loss of state t; False if it is not finite."""
        with self.clocked("evaluation"):
            loss, accuracy = evaluate(self.architecture, self.model, self.validation)
        known = {} if accuracy is None else {"val_accuracy": accuracy}
        recorder.append("eval_step", eval_step=t, val_loss=loss, **known)
        return math.isfinite(loss)

    def _settle(self, recorder: Recorder, progress: Progress) -> int | None:
        """Record the updates that are owed, up to the first whose loss is not finite: returns that one."""
        owed, self._owed = self._owed, []
        if not owed:
            return None
        rows = torch.stack([row for _, row in owed]).tolist()  # one transfer: on an accelerator each would wait for it
        bad = next((k for k, row in enumerate(rows) if not math.isfinite(row[0])), None)
        steps, rows = [t for t, _ in owed[:bad]], rows[:bad]
        rates = [self._rates[t] for t in steps]
        columns = dict(zip(NORMS, zip(*rows, strict=True), strict=True)) if rows else {}
        if rows:
            recorder.extend("step", step=steps, lr=rates, phase=[self._phases[t] for t in steps], **columns)
        for t, lr, row in zip(steps, rates, rows, strict=True):
            progress(t + 1, {"loss": row[0], "lr": lr})
        return None if bad is None else owed[bad][0]

    def _update(self, t: int) -> Tensor:
        """One update; the values of `NORMS`: loss and gradient norm before it, norm of the parameters, its length."""
        set_rate(self.optimizer, self._rates[t])
        loss = self._backward(self.data.batch(t))
        grad_norm, param_norm = self.norms.before()
        self.optimizer.step()
        update_norm = self.norms.after()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss, grad_norm, param_norm, update_norm])

    def _backward(self, batch: Batch) -> Tensor:
        """Mean loss of the batch, its gradient left in the parameters; in pieces where `micro_batch` says so."""
        x, y = batch
        size = self.config.micro_batch or len(x)
        total = torch.zeros((), device=x.device)
        for a in range(0, len(x), size):
            piece = (x[a : a + size], y[a : a + size])
            with self._precision():
                loss = self.architecture.loss(self.forward, piece)
            share = len(piece[0]) / len(x)
            (loss if share == 1.0 else loss * share).backward()
            total += share * loss.detach().float()
        return total

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Of the forward passes; losses and norms stay in float32."""
        return autocast(self.config.precision, self.device)

    def _compiled(self) -> nn.Module:
        """The compiled model, after one trial: what the compiler lacks shows only when it is first used."""
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that no CUDA is there is no news
        x, y = self.data.batch(0)
        size = self.config.micro_batch or len(x)
        try:
            compiled: nn.Module = torch.compile(self.model)  # type: ignore[assignment]
            with self._precision():
                loss = self.architecture.loss(compiled, (x[:size], y[:size]))
            loss.backward()
        except Exception as error:  # of the many layers of a compiler, each has its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise RivervalError(f"torch.compile does not work here ({reason[0]}); leave --compile out") from error
        self.model.zero_grad(set_to_none=True)
        return compiled


def _silent(done: int, values: Mapping[str, float]) -> None:
    pass
