"""Diagnostics measured at a state of a training, so that the training cannot notice: neither in its numbers nor where
they fail."""

from __future__ import annotations

import random
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import isgenerator, isgeneratorfunction
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ._cadence import Cadence
from ._plan import Plan
from ._typing import NDArray
from ._watching import Diagnostic, Finished, Following, Probe, Unavailable
from .errors import RivervalError
from .model_loss import flat_vector
from .schema import PROBE_STATUSES, Variable, build, is_coordinate

Row = dict[str, Any]
_MOST_NOTES = 100


class Notes:
    """What went wrong without stopping the run: each message once, with how often and where first."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[int | None]] = {}

    def add(self, what: str, message: str, state: int | None = None, *, quiet: bool = False) -> None:
        """Note a message, and warn of it the first time (a warning that is made an error does not stop the run)."""
        if (what, message) not in self._found and len(self._found) >= _MOST_NOTES:  # they differ by a number, say
            what, message, quiet = "more", f"messages beyond {_MOST_NOTES} different ones are not kept", True
        states = self._found.setdefault((what, message), [])
        states.append(state)
        if len(states) == 1 and not quiet:
            with suppress(Warning):
                told = f"riverval.observe: {self._line(what, message, states)}"
                warnings.warn(told, RuntimeWarning, stacklevel=_outside())

    def text(self) -> str:
        """One line for each message."""
        return "\n".join(self._line(*key, states) for key, states in self._found.items())

    def _line(self, what: str, message: str, states: Sequence[int | None]) -> str:
        place = "" if states[0] is None else f" at state {states[0]}"
        more = f" and {len(states) - 1} more" if len(states) > 1 else ""
        return f"{what}{place}{more}: {message}"


def _outside() -> int:
    """The `stacklevel` of the first caller that is not part of riverval: the line in the training's own code."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "riverval":
        frame, level = frame.f_back, level + 1
    return level


@contextmanager
def unnoticed(model: nn.Module) -> Iterator[None]:
    """Whatever is drawn, switched or differentiated within the block leaves the training as it was.

    Random generators (Python's, numpy's, torch's on every device), modes of the modules, gradients and the autograd
    settings come back; gradients are out of reach meanwhile.
    """
    modules = [(m, m.training) for m in model.modules()]
    gradients = [(p, p.grad) for p in model.parameters()]
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        for p, _ in gradients:
            p.grad = None
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for p, grad in gradients:
            p.grad = grad
        for module, training in modules:
            module.training = training
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class _Guard:
    """Parameters and buffers as they were: to notice that they were changed in place, and to put them back.

    Args:
        model: whose; None guards nothing.
        batches: whose tensors are watched too, without copies: a change of theirs is told.
    """

    def __init__(self, model: nn.Module | None, batches: Sequence[Any] = ()) -> None:
        self.tensors: list[Tensor] = [] if model is None else [*model.parameters(), *model.buffers()]
        self._copies = [t.detach().clone() for t in self.tensors]
        leaves = tree_leaves(list(batches))
        self._data = [t for t in leaves if isinstance(t, Tensor) and not t.is_inference()]
        self._versions = [t._version for t in self._data]

    def put_back(self) -> str | None:
        """Undo what was changed; what there was, in words."""
        found = None
        versions = [t._version for t in self._data]
        if versions != self._versions:
            self._versions = versions
            found = "it changed a batch in place, so that probes cannot be compared; clone what is changed"
        # By value: versions do not tell what was changed through `.data`.
        changed = [(t, c) for t, c in zip(self.tensors, self._copies, strict=True) if not _equal(t, c)]
        if not changed:
            return found
        with torch.no_grad():
            for tensor, copy in changed:
                tensor.copy_(copy)
        return "it changed the model, which was put back"


def _equal(tensor: Tensor, copy: Tensor) -> bool:
    """Bit for bit, but for the kind of nan."""
    return torch.equal(tensor, copy) or (
        tensor.is_floating_point() and bool(torch.isclose(tensor, copy, rtol=0.0, atol=0.0, equal_nan=True).all())
    )


class Prober:
    """Measures what is due at a state and makes one record of it, once the update that follows is known.

    Args:
        plan: what to measure.
        cadence: when, and the account of its time.
        notes: takes the messages of what fails.
    """

    def __init__(self, plan: Plan, cadence: Cadence, notes: Notes) -> None:
        self._plan, self._model, self._cadence, self._notes = plan, plan.model, cadence, notes
        self._diagnostics = {d.name: d for d in plan.moment}
        self._place = {d.name: k for k, d in enumerate(plan.moment)}
        self._empty = _empty_values(plan.moment, plan.coords)
        self._kept: dict[str, dict[str, Any]] = {d.name: {} for d in plan.moment}
        self._waiting: dict[str, tuple[Any, float]] = {}
        self._at: Tensor | None = None
        self._guard = _Guard(None)
        self._row: Row | None = None

    @property
    def state(self) -> int | None:
        """The state of the record that is under way."""
        return None if self._row is None else self._row["probe_step"]

    @property
    def waiting(self) -> bool:
        """Whether some diagnostic waits for the update that follows."""
        return bool(self._waiting)

    def visit(self, state: int, *, last: bool = False) -> bool:
        """Measure what is due at `state`, the present one; all that needs no update if `last`; False if nothing."""
        due = self._cadence.take(state)
        if last:
            due = [n for n, d in self._diagnostics.items() if not isgeneratorfunction(d.measure) and not self._tried(n)]
        if not due:
            return False
        if self.state != state:
            self._row = self._new_row(state)
        shared: dict[str, Any] = {}
        with unnoticed(self._model), self._guarded():
            for name in due:
                if self._cadence.affordable(name, state):
                    self._begin(name, state, shared)
                else:
                    self._finish(name, 0.0, "over_budget")
            shared.pop("hessian", None)  # its graph: whoever waits would keep it through the training's next update
            self._at = flat_vector(self._plan.parameters()) if self._waiting else None
        return True

    def _new_row(self, state: int) -> Row:
        count = len(self._diagnostics)
        row: Row = {name: value.copy() for name, value in self._empty.items()}
        row |= {"probe_step": state, "probe_lr": np.nan}
        return row | {"probe_status": np.zeros(count, dtype=np.int8), "probe_seconds": np.zeros(count)}

    def _tried(self, name: str) -> bool:
        """Whether it is known already what became of a diagnostic at the state that is under way."""
        return self._row is not None and bool(self._row["probe_status"][self._place[name]])

    def follow(self, following: Following) -> Row | None:
        """The record of the last visited state, once the update after it is known; None where no state waits.

        Args:
            following: with the parameters after the update as its `change`, or None where there was no update.
        """
        if self._row is None:
            return None
        self._row["probe_lr"] = following.lr
        if self._waiting:
            after = following.change
            update = None if after is None or self._at is None else Following(after - self._at, following.lr)
            with unnoticed(self._model), self._guarded():
                for name, (measuring, seconds) in list(self._waiting.items()):
                    self._resume(name, measuring, update, seconds)
        row, self._row, self._at = self._row, None, None
        self._waiting.clear()
        return row

    def _begin(self, name: str, state: int, shared: dict[str, Any]) -> None:
        known = self._diagnostics[name]
        plan = self._plan
        probe = Probe(
            state, self._model, plan.parameters(), plan.optimizer, plan.sketch, self._kept[name],
            generator(plan.seed, name, state), plan.loss if known.needs_loss else None, shared,
        )  # fmt: skip

        def measure() -> Any:
            result = known.measure(probe, **plan.options[name])
            if isgenerator(result):
                next(result)
            return result

        result, seconds, error = self._timed(measure)
        if isgenerator(result) and error is None:
            self._waiting[name] = (result, seconds)
        else:
            self._take(name, result, seconds, error)

    def _resume(self, name: str, measuring: Any, update: Following | None, before: float) -> None:
        if update is None:
            measuring.close()
            self._finish(name, before, "unfinished")
            return

        def measure() -> Any:
            try:
                measuring.send(update)
            except StopIteration as stop:
                return stop.value
            raise RivervalError("a diagnostic may yield once only, for the update that follows")

        result, seconds, error = self._timed(measure)
        self._take(name, result, before + seconds, error)

    def _timed(self, measure: Callable[[], Any]) -> tuple[Any, float, Exception | None]:
        """What `measure` gives, its time, and its error; the model is put back if it was changed."""
        result, error = None, None
        _synchronise(self._guard.tensors)
        start = time.perf_counter()
        try:
            result = measure()
        except Exception as caught:
            error = caught
        _synchronise(self._guard.tensors)
        seconds = time.perf_counter() - start
        changed = self._guard.put_back()
        if changed:
            error = error or RivervalError(changed)
        return result, seconds, error

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A copy of the model's tensors for as long as diagnostics are at work."""
        loss = self._plan.loss
        self._guard = _Guard(self._model, () if loss is None else loss.batches)
        try:
            yield
        finally:
            self._guard.put_back()  # where a diagnostic was interrupted
            self._guard = _Guard(None)

    def _take(self, name: str, result: Any, seconds: float, error: Exception | None) -> None:
        """Put the values of a diagnostic into the record, or its failure into the notes."""
        assert self._row is not None
        if error is None:
            try:
                self._row |= self._checked(self._diagnostics[name], result)
            except (RivervalError, TypeError, ValueError, RuntimeError) as caught:
                error = caught
        if isinstance(error, Unavailable):
            self._finish(name, seconds, "unavailable")
            return
        if error is not None:
            self._notes.add(f"{name} failed", _reason(error), self._row["probe_step"])
        self._finish(name, seconds, "failed" if error else "measured")

    def _checked(self, known: Diagnostic, values: Any) -> Row:
        if not isinstance(values, Mapping):
            raise RivervalError(f"a diagnostic must return its values by name, got {type(values).__name__}")
        out = {}
        for name, value in values.items():
            if name not in self._empty or name not in known.variables:
                raise RivervalError(f"it returned {name!r}, which it does not declare")
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            if array.shape != self._empty[name].shape:
                raise RivervalError(f"its {name!r} must have shape {self._empty[name].shape}, got {array.shape}")
            out[name] = array.astype(self._empty[name].dtype)
            if array.dtype.kind == "f" and out[name].dtype.kind == "i" and not np.array_equal(out[name], array):
                raise RivervalError(f"its {name!r} must be a whole number, got {array}")
        return out

    def _finish(self, name: str, seconds: float, outcome: str) -> None:
        assert self._row is not None
        self._row["probe_status"][self._place[name]] = PROBE_STATUSES.index(outcome)
        self._row["probe_seconds"][self._place[name]] = seconds
        self._cadence.charge(name, seconds, outcome)


def at_close(known: Diagnostic, run: Finished, plan: Plan, notes: Notes) -> tuple[xr.Dataset, float]:
    """What a diagnostic finds in the finished run, and its time; nothing where it fails, which leaves a note."""
    start = time.perf_counter()
    found = xr.Dataset()
    try:
        values = dict(known.measure(run, **plan.options[known.name]))
        undeclared = [name for name in values if name not in known.variables]
        if undeclared:
            raise RivervalError(f"it returned {undeclared[0]!r}, which it does not declare")
        found = build(values, {}, "real", plan.own)
    except Exception as error:
        notes.add(f"{known.name} {'skipped' if isinstance(error, Unavailable) else 'failed'}", _reason(error))
    return found, time.perf_counter() - start


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, RivervalError) else f"{type(error).__name__}: {error}"


def generator(seed: int, name: str, state: int) -> np.random.Generator:
    """The random numbers of a diagnostic at a state, independent of what else is recorded."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), state])


def _empty_values(diagnostics: Sequence[Diagnostic], coords: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[Any]]:
    """What is recorded where a diagnostic was not measured: nan, or 0 for whole numbers."""
    out = {}
    for known in diagnostics:
        for name, spec in known.variables.items():
            if not is_coordinate(name, spec):
                shape = tuple(len(coords[axis]) for axis in _dims(spec)[1:])
                out[name] = np.full(shape, np.nan if spec.dtype.startswith("f") else 0, dtype=spec.dtype)
    return out


def _dims(spec: Variable) -> tuple[str, ...]:
    return next(d for d in spec.dims if d[:1] == ("probe_step",))


def _synchronise(tensors: Sequence[Tensor]) -> None:
    """Wait for accelerators, so that time is charged to what took it."""
    for device in {t.device for t in tensors if t.device.type == "cuda"}:
        torch.cuda.synchronize(device)
