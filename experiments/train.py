"""The training loop: AdamW under a schedule, one record per update, evaluations and snapshots at their states.

Update t = 0..T-1 uses lr[t] and takes state t to state t + 1 (the convention of `riverval.schedules`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._typing import Progress
from ..errors import InputError, RivervalError
from ..hessian import evaluating
from ..recorder import Recorder
from ..schedules import Schedule
from .config import RunConfig
from .data import Batch, Data
from .models import Architecture
from .snapshots import Snapshots, windows

MOST_THREADS = 8  # models that fit a CPU do not gain from more


@dataclass(frozen=True)
class Outcome:
    """How training ended: "complete", "interrupted" or "diverged"; the first state that is not finite, -1 if none."""

    status: str
    diverged_at: int = -1


def pick_device(name: str) -> torch.device:
    """The device meant by "auto", "cpu", "cuda" or "mps".

    Raises:
        InputError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(d for d, ok in there.items() if ok))
    if not there[name]:
        raise InputError(
            f"--device {name} is not available here; choose {', '.join(d for d, ok in there.items() if ok)}"
        )
    return torch.device(name)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def out_of_memory_told() -> Iterator[None]:
    """Turn torch's several ways to run out of memory into one error that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RivervalError) or not (isinstance(error, MemoryError) or _is_memory(str(error))):
            raise
        raise RivervalError("not enough memory; use a smaller --batch, --micro-batch or model") from error


def _is_memory(text: str) -> bool:
    return any(sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory", "overflowed"))


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """So many torch threads within the block (None: the cores this process may use, at most 8), then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or min(before, usable_cores(), MOST_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and filters only, not on norms and biases (all of them vectors)."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cuda", "cpu") for p in model.parameters())
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=fused)


def evaluate(architecture: Architecture, model: nn.Module, batches: list[Batch]) -> tuple[float, float | None]:
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


class Trainer:
    """One run over a schedule; holds what the loop needs so that its parts stay short.

    Args:
        config: a planned config.
        model: on its device; changed in place.
        data: on the same device.
        snapshots: offered every state.

    Raises:
        RivervalError: the model cannot be compiled.
    """

    def __init__(self, config: RunConfig, model: nn.Module, data: Data, snapshots: Snapshots) -> None:
        self.config, self.model, self.data, self.snapshots = config, model, data, snapshots
        self.architecture = config.architecture
        self.schedule = config.plan
        self.optimizer = make_optimizer(model, config)
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.previous = [p.detach().clone() for p in self.params]
        self.evaluated = evaluation_states(self.schedule, config.eval_every)
        self.validation = data.fixed("val", config.eval_examples)
        # bfloat16 where the hardware has it; losses and norms stay in float32.
        cuda = self.params[0].device.type == "cuda"
        self.autocast: Any = torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()
        self.forward = self._compiled() if config.compile else model

    def train(self, recorder: Recorder, progress: Progress) -> Outcome:
        """All updates. Ctrl-C and a loss that is not finite end the run early, with its records kept.

        Args:
            recorder: gets the axes `step` and `eval_step`.
            progress: called after each update.
        """
        try:
            return self._updates(recorder, progress)
        except KeyboardInterrupt:
            return Outcome("interrupted")

    def _updates(self, recorder: Recorder, progress: Progress) -> Outcome:
        rates, phases = self.schedule.values().tolist(), self.schedule.phases().tolist()
        self.model.train()
        for t, (lr, phase) in enumerate(zip(rates, phases, strict=True)):
            self._at_state(t, recorder)
            loss, grad_norm, update_norm, param_norm = self._update(t, lr)
            if not math.isfinite(loss):
                return Outcome("diverged", t)
            recorder.append(
                "step", step=t, lr=lr, phase=phase, train_loss=loss, grad_norm=grad_norm, update_norm=update_norm,
                param_norm=param_norm,
            )  # fmt: skip
            progress(t + 1, {"loss": loss, "lr": lr})
        return Outcome("complete") if self._at_state(len(rates), recorder) else Outcome("diverged", len(rates))

    def _at_state(self, t: int, recorder: Recorder) -> bool:
        """Snapshot and evaluation of state t; False if the evaluated loss is not finite."""
        self.snapshots.offer(t, self.model)
        if t not in self.evaluated:
            return True
        loss, accuracy = evaluate(self.architecture, self.model, self.validation)
        known = {} if accuracy is None else {"val_accuracy": accuracy}
        recorder.append("eval_step", eval_step=t, val_loss=loss, **known)
        return math.isfinite(loss)

    def _update(self, t: int, lr: float) -> list[float]:
        """One update; batch loss and gradient norm before it, its length, and the norm of the parameters before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self._backward(self.data.batch(t))
        grad_norm = nn.utils.clip_grad_norm_(self.params, self.config.clip or math.inf)
        param_norm = _norm(self.previous)
        self.optimizer.step()
        with torch.no_grad():
            update_norm = _norm(torch._foreach_sub(self.params, self.previous))
            torch._foreach_copy_(self.previous, self.params)
        self.optimizer.zero_grad(set_to_none=True)
        # One transfer for all four: on an accelerator each would wait for the device.
        found: list[float] = torch.stack([loss, grad_norm, update_norm, param_norm]).tolist()
        return found

    def _backward(self, batch: Batch) -> Tensor:
        """Mean loss of the batch, its gradient left in the parameters; in pieces where `micro_batch` says so."""
        x, y = batch
        size = self.config.micro_batch or len(x)
        total = torch.zeros((), device=x.device)
        for a in range(0, len(x), size):
            piece = (x[a : a + size], y[a : a + size])
            with self.autocast:
                loss = self.architecture.loss(self.forward, piece)
            share = len(piece[0]) / len(x)
            (loss if share == 1.0 else loss * share).backward()
            total += share * loss.detach().float()
        return total

    def _compiled(self) -> nn.Module:
        """The compiled model, after one trial: what the compiler lacks shows only when it is first used."""
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that no CUDA is there is no news
        x, y = self.data.batch(0)
        size = self.config.micro_batch or len(x)
        try:
            compiled: nn.Module = torch.compile(self.model)  # type: ignore[assignment]
            with self.autocast:
                loss = self.architecture.loss(compiled, (x[:size], y[:size]))
            loss.backward()
        except Exception as error:  # of the many layers of a compiler, each has its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise RivervalError(f"torch.compile does not work here ({reason[0]}); leave --compile out") from error
        self.model.zero_grad(set_to_none=True)
        return compiled


def evaluation_states(schedule: Schedule, every: int) -> frozenset[int]:
    """States 0, every, 2 every, ..., the ends of the watched windows, and T."""
    edges = {t for window in windows(schedule).values() for t in window}
    return frozenset({*range(0, schedule.total, every), schedule.total, *edges})


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
