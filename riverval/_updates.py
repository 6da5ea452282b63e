"""What an optimizer really does, update by update, seen through its step hooks: rates, norms, cosines.

A skipped step of a gradient scaler is no update, and what a fused optimizer is given is read unscaled. Everything stays
a tensor on its device until `columns` is asked for, so that watching does not wait for an accelerator.
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ._typing import FloatArray
from .errors import InputError

Scalar: TypeAlias = "float | Tensor"


@dataclass
class Update:
    """One update: what is known of it. Squares and products are of the flat vectors; see `Updates.losses` for those."""

    rates: list[Scalar]
    losses: list[Scalar] = field(default_factory=list)
    earlier: list[Scalar] = field(default_factory=list)
    grad_norm: Scalar = math.nan
    given2: Scalar = math.nan
    update2: Scalar = math.nan
    param2: Scalar = math.nan
    product: Scalar = math.nan  # <before - after, gradient>
    scale: Scalar = 1.0
    skipped: Scalar = 0.0
    steady: bool = True  # momentum is what it was in all updates before
    sketch: Any = None


class Updates:
    """The updates of an optimizer, each with the losses that were reported for it.

    Args:
        optimizer: any `torch.optim.Optimizer`; `start` puts hooks on its `step`, `stop` takes them away.
        norms: whether to measure norms and the cosine; takes the memory of two copies of the parameters.
        sketch: makes a sketch of the parameters, called before each update; None for no sketches.
        width: length of these sketches.
        failed: called with the error where watching an update fails; the update itself is not affected.

    Attributes:
        count: updates that have been converted by `columns`; those after it are still to be numbered.
        reports: losses that were reported.
        seconds: time spent in the hooks.
        groups: parameter groups at the start.
        kept: see `keep_next`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        norms: bool,
        sketch: Callable[[], Any] | None,
        width: int,
        failed: Callable[[Exception], None],
    ) -> None:
        self._optimizer, self._norms, self._failed = optimizer, norms, failed
        self._sketch, self._no_sketch = sketch, np.full(width, np.nan)
        self.groups = len(optimizer.param_groups)
        self.count, self.reports, self.seconds = 0, 0, 0.0
        self._closed: list[Update] = []
        self._open: Update | None = None
        self._coming: Update | None = None
        self._losses: list[Scalar] = []  # reported since the last update was closed
        self._gap: list[Scalar] = []  # reported since the last update was made
        self._before_first, self._between, self._seen = 0, 0, 0
        self._store: _Store | None = None
        self._handles: list[Any] = []
        self._read: Callable[[], Tensor] | None = None
        self.kept: Tensor | None = None
        self._mean_after: list[float | None] = []  # of every converted update, see `losses`
        self._mean_before: list[float | None] = []
        self._reported_before = False
        # What a momentum buffer has gathered before the first update; 0 for a new optimizer.
        self._past = _LONG if any(_gathered(state) for state in optimizer.state.values()) else 0
        self._momentum: set[Any] = set()  # all that was used

    def start(self) -> None:
        """Put the hooks on the optimizer's step."""
        register = self._optimizer.register_step_pre_hook, self._optimizer.register_step_post_hook
        self._handles = [register[0](self._before), register[1](self._after)]

    def stop(self) -> None:
        """Take the hooks away; an update that waits for its loss is closed without one."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._reported_before = self._open is not None and 0 < self._before_first == self._between
        self._close_open()

    @property
    def held(self) -> int:
        """Updates that `columns` has not converted yet."""
        return len(self._closed)

    @property
    def reached(self) -> int:
        """The present state: exact after `columns`, else too high by what a fused scaler has skipped since."""
        return self.count + len(self._closed)

    def keep_next(self, read: Callable[[], Tensor]) -> None:
        """Put what `read` gives after the next update into `kept`."""
        self._read, self.kept = read, None

    def losses(self) -> list[float | None]:
        """The mean loss of every converted update, None where none was reported.

        Losses belong to the update before which they came, from the report after the update before on: an update is
        complete with the first report after it. After `stop`, where as many losses came before the first update as
        between the first two and none after the last, each report was made before its update, and belongs to it.
        """
        return self._mean_before if self._reported_before else self._mean_after

    @property
    def last_losses(self) -> list[float]:
        """Losses after which no update came."""
        return [float(loss) for loss in self._losses]

    def report(self, loss: Scalar, grad_norm: Scalar | None) -> bool:
        """Take a loss; True if it completes an update, False for a micro-batch on the way to one."""
        self.reports += 1
        self._losses.append(loss)
        self._gap.append(loss)
        if self._seen < 2:
            self._between += 1
        if self._open is None:
            return False
        if grad_norm is not None:
            self._open.grad_norm = grad_norm
        self._close_open()
        return True

    def columns(self) -> dict[str, Any]:
        """The updates that are complete and not yet converted, as columns of numbers; skipped ones are left out."""
        done = [u for u in self._closed if not float(u.skipped)]
        self._closed.clear()
        self._mean_after += [_mean(u.losses) if u.losses else None for u in done]
        self._mean_before += [_mean(u.earlier) if u.earlier else None for u in done]
        first, self.count = self.count, self.count + len(done)
        rates = np.array([[float(r) for r in u.rates] for u in done]).reshape(len(done), self.groups)
        out: dict[str, Any] = {
            "step": np.arange(first, self.count),
            "lr": rates[:, 0] if len(done) else np.zeros(0),
            "train_loss": np.array([_mean(u.losses) for u in done]),
            "grad_norm": _numbers(u.grad_norm for u in done),
        }
        if self.groups > 1:
            out["group_lr"] = rates
        if self._norms:
            scale = _numbers(u.scale for u in done)
            given2, update2, param2 = (_numbers(getattr(u, n) for u in done) for n in ("given2", "update2", "param2"))
            ages = np.arange(first, self.count) + self._past
            with np.errstate(divide="ignore", invalid="ignore"):
                cosine = _numbers(u.product for u in done) / np.sqrt(given2 * update2)
            out |= {
                "given_norm": np.sqrt(given2) / scale,
                "update_norm": np.sqrt(update2),
                "param_norm": np.sqrt(param2),
                "update_cosine": cosine,
                "update_cosine_null": np.where(
                    [u.steady for u in done], momentum_null(self._optimizer, ages), math.nan
                ),
            }
        if self._sketch is not None:
            out["param_sketch"] = [self._no_sketch if u.sketch is None else _array(u.sketch) for u in done]
        return out

    # --- hooks: whatever fails here must not reach the training ---------------------------------------------------
    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        with self._watching():
            self._close_open()
            self._coming = coming = Update(self._rates())
            self._momentum |= _momenta(optimizer)
            coming.steady = len(self._momentum) == 1
            coming.skipped, coming.scale = (_kept(getattr(optimizer, n, None), d) for n, d in _SCALER)
            if self._norms:
                self._store = _Store.of(self._parameters(), self._store)
                coming.param2 = self._store.keep_parameters()
                if not _closure(args, kwargs):
                    coming.given2 = self._store.keep_gradients()
            if self._sketch is not None:
                coming.sketch = self._sketch()

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        with self._watching():
            if self._coming is None:
                return
            self._open, self._coming = self._coming, None
            self._open.earlier, self._gap = self._gap, []
            self._seen += 1
            if self._seen == 1:
                self._before_first, self._between = self._between, 0
            if self._norms and self._store is not None:
                if _closure(args, kwargs):  # the gradient was not known before
                    self._open.given2 = self._store.keep_gradients()
                self._open.update2, self._open.product = self._store.compare()
            if self._read is not None and not float(self._open.skipped):
                read, self._read = self._read, None
                self.kept = read()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with torch.no_grad():
                yield
        except Exception as error:
            self._store = None
            self._failed(error)
        finally:
            self.seconds += time.perf_counter() - start

    def _close_open(self) -> None:
        if self._open is not None:
            self._open.losses = self._losses
            self._losses = []
            self._closed.append(self._open)
            self._open = None

    def _rates(self) -> list[Scalar]:
        rates = [_kept(group["lr"], math.nan) for group in self._optimizer.param_groups[: self.groups]]
        return rates + [math.nan] * (self.groups - len(rates))  # of groups that were taken away

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]


@dataclass
class _Part:
    """The parameters of one device, and flat copies of them and of their gradients with a view for each."""

    parameters: list[Tensor]
    old: Tensor
    gradient: Tensor
    old_views: list[Tensor]
    gradient_views: list[Tensor]


class _Store:
    """Copies of parameters and gradients by device, in float32 (float64 where a parameter is)."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self._parts = []
        for device in dict.fromkeys(p.device for p in parameters):
            here = [p for p in parameters if p.device == device]
            dtype = torch.float64 if any(p.dtype == torch.float64 for p in here) else torch.float32
            size = sum(p.numel() for p in here)
            old, gradient = (torch.zeros(size, device=device, dtype=dtype) for _ in range(2))
            self._parts.append(_Part(here, old, gradient, _views(old, here), _views(gradient, here)))

    @classmethod
    def of(cls, parameters: list[Tensor], known: _Store | None) -> _Store:
        """`known` if it is of these parameters, else a new one: the optimizer was given more."""
        if known is None or len(known.parameters) != len(parameters):
            return cls(parameters)
        same = all(a is b for a, b in zip(known.parameters, parameters, strict=True))
        return known if same else cls(parameters)

    def keep_parameters(self) -> Tensor:
        """Copy the parameters; their squared norm."""
        for part in self._parts:
            torch._foreach_copy_(part.old_views, [p.detach() for p in part.parameters])
        return _total([torch.dot(part.old, part.old) for part in self._parts])

    def keep_gradients(self) -> Tensor:
        """Copy the gradients, which some optimizers change (0 where there is none); their squared norm."""
        for part in self._parts:
            pairs = [(v, p.grad) for v, p in zip(part.gradient_views, part.parameters, strict=True)]
            given = [(v, g.detach().to_dense() if g.is_sparse else g.detach()) for v, g in pairs if g is not None]
            if given:
                torch._foreach_copy_([v for v, _ in given], [g for _, g in given])
            for view in (v for v, g in pairs if g is None):
                view.zero_()
        return _total([torch.dot(part.gradient, part.gradient) for part in self._parts])

    def compare(self) -> tuple[Tensor, Tensor]:
        """Squared norm of the update since `keep_parameters`, and <old - new parameters, gradient>."""
        for part in self._parts:
            new = [p.detach().to(v.dtype) for p, v in zip(part.parameters, part.old_views, strict=True)]
            torch._foreach_sub_(part.old_views, new)
        update2 = _total([torch.dot(part.old, part.old) for part in self._parts])
        return update2, _total([torch.dot(part.old, part.gradient) for part in self._parts])


def _total(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack([v.to(values[0].device) for v in values]).sum()


_LONG = 1_000_000  # updates after which every momentum is settled
_SCALER = (("found_inf", 0.0), ("grad_scale", 1.0))  # what a gradient scaler lends to a fused optimizer


def momentum_null(optimizer: torch.optim.Optimizer, steps: Sequence[int] | Any) -> FloatArray:
    """Expected cosine of an update of SGD and its own gradient where all gradients are independent noise.

    With momentum b the update t is -lr sum_k b^k g_{t-k}, whose cosine with -g_t is 1 / sqrt(sum_{k=0}^t b^{2k}) in
    high dimension; with Nesterov's, (1 + b) / sqrt((1 + b)^2 + sum_{k=1}^t b^{2(k+1)}). Without momentum it is 1. nan
    for other optimizers, and where groups differ in momentum. Derived; without weight decay, at one momentum.
    """
    kinds = _momenta(optimizer)
    momentum, nesterov, dampening = next(iter(kinds))
    t = np.asarray(steps, dtype=np.float64)
    if type(optimizer) is not torch.optim.SGD or len(kinds) > 1 or dampening:
        return np.full(t.shape, np.nan)
    square = float(momentum) ** 2
    tail = square * (1 - square**t) / (1 - square) if square < 1 else t  # sum_{k=1}^t b^{2k}
    if nesterov:
        head = 1 + float(momentum)
        return np.asarray(head / np.sqrt(head**2 + square * tail))
    return np.asarray(1 / np.sqrt(1 + tail))


def _momenta(optimizer: torch.optim.Optimizer) -> set[Any]:
    return {(g.get("momentum"), g.get("nesterov"), g.get("dampening")) for g in optimizer.param_groups}


def _gathered(state: Any) -> bool:
    return isinstance(state, dict) and state.get("momentum_buffer") is not None


def momentum_of(optimizer: torch.optim.Optimizer) -> float:
    """Momentum of the first group, or the first beta of Adam and its like; 0 where it has neither."""
    group = optimizer.param_groups[0]
    return float(group.get("momentum") or (group.get("betas") or (0.0,))[0])


def check_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """`optimizer`, if it can be watched.

    Raises:
        InputError: not a torch optimizer, or one without a rate.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):  # accelerate's, for one
        raise InputError(f"{type(optimizer).__name__} wraps an optimizer and has no step hooks; give the one inside")
    if any("lr" not in group for group in optimizer.param_groups):
        raise InputError(
            f"the groups of {type(optimizer).__name__} have no rate 'lr', which every update is recorded with"
        )
    return optimizer


def scalar(name: str, value: Any) -> Scalar:
    """A number of the training, as it is now.

    Raises:
        InputError: not one number.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise InputError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}; take the mean")
        return value.detach().clone().reshape(())  # some loops add up their loss in place
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a scalar tensor or a number, got {type(value).__name__}")
    return float(value)


def _views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = flat.split([p.numel() for p in like])
    return [piece.view(p.shape) for piece, p in zip(pieces, like, strict=True)]


def _kept(value: Any, default: float) -> Scalar:
    """A number as it is now: a tensor may be changed in place later."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return default if value is None else float(value)


def _closure(args: Any, kwargs: Any) -> bool:
    return any(callable(a) for a in (*args[:2], kwargs.get("closure")))


def _mean(losses: Sequence[Scalar]) -> float:
    return sum(map(float, losses)) / len(losses) if losses else math.nan


def _numbers(values: Iterable[Scalar]) -> FloatArray:
    return np.array([float(v) for v in values], dtype=np.float64)


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
