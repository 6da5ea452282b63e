"""The loss of a torch model on fixed batches as a function of one flat parameter vector, without touching the model.

The model is only ever read: its parameters are replaced for the length of a call (`torch.func.functional_call`) and
buffers are worked on as copies. Train/eval modes, gradients, the state of random generators, autocast and the choice of
attention kernels are afterwards what they were, also where the loss fails.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from types import BuiltinFunctionType
from typing import Any

from ._parameters import by_slot, chosen_parameters, described, few
from ._untouched import bare_model, drawing, evaluating, plain_arithmetic
from .errors import InputError, RivervalError, missing_extra

try:
    import torch
    from torch import Tensor, nn
    from torch.func import functional_call
except ImportError as _error:
    raise missing_extra("torch", "real", "curvature of a torch model") from _error

_MODES = ("eval", "train")


def flat_vector(tensors: Sequence[Tensor]) -> Tensor:
    """Detached copies joined to one vector, on the device of the first, in the dtype that holds them all."""
    return torch.cat([t.detach().reshape(-1).to(tensors[0].device) for t in tensors])


def zeros_like(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Zeros to sum into: of the tensors' shapes and on their devices, except that Apple's has no float64."""
    lacking = dtype == torch.float64
    with torch.inference_mode(False):
        return [
            torch.zeros(t.shape, dtype=dtype, device="cpu" if lacking and t.device.type == "mps" else t.device)
            for t in tensors
        ]


def flat_parameters(model: nn.Module) -> Tensor:
    """A copy of all parameters as one vector, shape (dim,), in the order of ``model.named_parameters()``.

    Frozen ones are among them, so with frozen parameters it is not a point of `LossOnBatches`; ``loss.point()`` is.
    """
    return flat_vector(list(bare_model(model).parameters()))


@dataclass(frozen=True)
class SplitLoss:
    """A loss in two steps, which Gauss-Newton and Fisher matrices need; it is also a plain ``loss(model, batch)``.

    Args:
        outputs: ``outputs(model, batch)``, a tensor z of any shape.
        loss: ``loss(z, batch)``, a scalar: the mean loss of the batch.
        each: ``each(z, batch)``, shape (N,): the losses of the N examples, whose mean is `loss`. None where there are
            none; only `FisherOperator` asks for them.
    """

    outputs: Callable[[Any, Any], Tensor]
    loss: Callable[[Tensor, Any], Tensor]
    each: Callable[[Tensor, Any], Tensor] | None = None

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """The loss of the batch."""
        return self.loss(self.outputs(model, batch), batch)


def supervised(loss_func: Callable[..., Tensor]) -> SplitLoss:
    """The `SplitLoss` of batches (x, y): ``loss_func(model(x), y)``.

    Args:
        loss_func: a loss of torch with reduction "mean", as a function (``torch.nn.functional.cross_entropy``) or a
            module (``nn.MSELoss()``); or any function of outputs and targets, which then has no losses of single
            examples. An example is an entry of the first dimension; over further ones its loss is the mean.

    Raises:
        InputError: not a function.

    >>> from torch.nn.functional import cross_entropy
    >>> loss = supervised(cross_entropy)
    >>> float(loss(lambda x: x, (torch.zeros(3, 2), torch.tensor([0, 1, 0]))))
    0.6931471824645996
    """
    if not callable(loss_func):
        raise InputError(f"supervised needs a function of outputs and targets, got {described(loss_func)}")
    single: Any = None
    if isinstance(loss_func, nn.Module):
        if hasattr(loss_func, "reduction"):
            single = copy.copy(loss_func)
            single.reduction = "none"
    elif not isinstance(loss_func, BuiltinFunctionType) and "reduction" in inspect.signature(loss_func).parameters:
        single = partial(loss_func, reduction="none")

    def each(outputs: Tensor, batch: Any) -> Tensor:
        losses = single(outputs, batch[1])
        return losses.reshape(len(losses), -1).mean(1)

    return SplitLoss(
        lambda model, batch: model(batch[0]),
        lambda outputs, batch: loss_func(outputs, batch[1]),
        each if single is not None else None,
    )


class _Bound(nn.Module):
    """``function(model, batch)`` as a module, so that functional_call can replace the model's parameters inside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[Any, Any], Any], batch: Any) -> Any:
        return function(self.model, batch)


class LossOnBatches:
    """L(w) = sum_b weight_b loss(model with parameters w, batch_b) / sum_b weight_b, for flat parameter vectors w.

    Batch norm: in mode "eval" (the default) the running statistics are used as they are in the model *now*, whatever w
    is; at a w far from the model's own parameters (an old snapshot, the middle of a line) they belong to another
    network, so load the buffers with the snapshot. In mode "train" normalisation layers use the statistics of the
    batch, as the training loss does: the loss of an example then depends on its batch, the more so the smaller that is.
    In both modes dropout is off, buffers are never changed, and what the loss draws is the same at every evaluation.

    Args:
        model: any module; read, never changed. The module inside DistributedDataParallel or torch.compile is used.
        loss: ``loss(model, batch)``, a scalar tensor: the mean loss of the batch. See `supervised` for pairs (x, y).
        batches: the fixed data, a list of whatever `loss` takes.
        weights: share of each batch, e.g. its number of examples; None weighs them equally.
        parameters: those that w holds: names, patterns such as ``"layers.0.*"``, or the tensors themselves; the others
            stay as they are in the model. None takes all that require gradients. A shared parameter counts once and
            answers to each of its names. The order is always that of ``model.named_parameters()``.
        mode: "eval" or "train", of normalisation layers.

    Attributes:
        dim: length of w.
        names: of the parameters in w, in order.
        shapes, sizes: theirs.
        weights: of the batches, adding to 1.
        device, dtype: of vectors w: the first parameter's device, the dtype that holds all parameters.

    Raises:
        InputError: no module, no function of model and batch, no list of batches, no parameter (or none that requires
            gradients), a name that no parameter has, a tensor that is no parameter of the model, weights that do not
            fit, an unknown mode.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Sequence[Any],
        *,
        weights: Sequence[float] | None = None,
        parameters: Iterable[str | Tensor] | str | Tensor | None = None,
        mode: str = "eval",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"a loss on batches needs a model (a torch.nn.Module), got {described(model)}")
        _check_loss(loss)
        _check_batches(batches)
        if mode not in _MODES:
            raise InputError(f"mode must be 'eval' or 'train' (of normalisation layers), got {mode!r}")
        self.model, self.loss, self.batches, self.mode = bare_model(model), loss, list(batches), mode
        self.weights = _shares(weights, len(batches))
        chosen = chosen_parameters(self.model, parameters)
        self.names = tuple(chosen)
        self.shapes = tuple(p.shape for p in chosen.values())
        self.sizes = tuple(p.numel() for p in chosen.values())
        self._kinds = tuple((p.device, p.dtype) for p in chosen.values())
        self.device, self.dtype = self._kinds[0][0], reduce(torch.promote_types, [dtype for _, dtype in self._kinds])
        self.dim = sum(self.sizes)
        self._bound = _Bound(self.model)
        every = [*self.model.parameters(), *self.model.buffers()]
        self.devices = sorted({torch.device("cpu"), *(t.device for t in every)}, key=str)

    def parameters(self) -> list[Tensor]:
        """The model's own parameters that w holds, in order; not copies."""
        named = dict(self.model.named_parameters())
        return [named[name] for name in self.names]

    def point(self) -> Tensor:
        """A copy of the model's present parameters as a vector w, shape (dim,)."""
        return flat_vector(self.parameters())

    def pieces(self, flat: Tensor) -> dict[str, Tensor]:
        """`flat`, shape (dim,), cut into the parameters by name: views of it in the parameters' shapes.

        Raises:
            InputError: another shape.
        """
        if not isinstance(flat, Tensor) or flat.shape != (self.dim,):
            raise InputError(f"this model has {self.dim} parameters, got {described(flat)}")
        parts = flat.split(self.sizes)
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def __call__(self, flat: Tensor) -> float:
        """The loss at `flat`, shape (dim,); inf or nan where the loss is that.

        Raises:
            InputError: another shape, or a loss that is not a scalar.
            RivervalError: the loss of a batch failed; the message says which.
        """
        values = self._cast(flat)
        total = 0.0
        for i, weight in enumerate(self.weights):
            with self.naming(i), torch.no_grad():
                total += weight * float(self.evaluate(self.loss, values, i))
        return total

    def part(self, flat: Tensor, batch: Any) -> Tensor:
        """The loss of one batch as a tensor, differentiable (twice) with respect to `flat`."""
        return self._on(self.loss, self._cast(flat), batch)

    def gradient(self, flat: Tensor | None = None) -> tuple[float, Tensor]:
        """Loss and gradient dL/dw at `flat` (the model's own parameters if None): a float and a tensor of shape (dim,).

        Added up in float64 over the batches, and given in the parameters' precision. A parameter that the loss does not
        use has gradient 0.

        Raises:
            InputError: another shape, a loss that is not a scalar or not finite or has no graph, or uses none of them.
            RivervalError: the loss of a batch failed; the message says which.
        """
        leaves = self.leaves(self.point() if flat is None else flat)
        total, sums, used = 0.0, zeros_like(leaves, torch.float64), False
        for i, weight in enumerate(self.weights):
            with self.naming(i), plain_arithmetic(self.model, self.devices), torch.enable_grad():
                loss = self.scalar(self.evaluate(self.loss, leaves, i), i)
                gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            total += weight * float(loss.detach())
            for s, g in zip(sums, gradients, strict=True):
                if g is not None:
                    s.add_(g.to(s), alpha=weight)
                    used = True
        if not used:
            raise InputError(
                f"the loss uses none of the parameters ({few(self.names)}); does loss(model, batch) call the model "
                f"that it is given, and not another one?"
            )
        return total, flat_vector(sums).to(self.dtype).to(self.device)

    # What the operators use.
    def leaves(self, flat: Tensor) -> list[Tensor]:
        """Copies of the parameters at `flat` that require gradients, in the parameters' dtypes and on their devices."""
        with torch.inference_mode(False):
            return [v.detach().clone().requires_grad_() for v in self._cast(flat)]

    def constants(self) -> dict[str, Tensor]:
        """Copies of all that an evaluation reads of the model and training may change: buffers, parameters not in w.

        Frozen parameters are left out: they can be large, and nobody changes them.
        """
        named = [*self.model.named_buffers(), *self.model.named_parameters()]
        with torch.inference_mode(False):
            return {
                name: t.detach().clone()
                for name, t in named
                if name not in self.names and (t.requires_grad or not isinstance(t, nn.Parameter))
            }

    def evaluate(
        self,
        function: Callable[[Any, Any], Any],
        values: Sequence[Tensor],
        index: int,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """``function(model, batch number index)`` with `values` as the parameters in w and `constants` as the rest."""
        return self._on(function, values, self.batches[index], constants)

    @contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Whatever fails inside is an error that says at which batch."""
        try:
            yield
        except RivervalError:
            raise
        except Exception as error:
            place = f"batch {index + 1} of {len(self.batches)}"
            raise RivervalError(f"the loss of {place} failed: {type(error).__name__}: {error}") from error

    def scalar(self, loss: Tensor, index: int) -> Tensor:
        """`loss` itself, once it is a finite scalar with a graph.

        Raises:
            InputError: not finite, or nothing to differentiate.
        """
        place = f"the loss of batch {index + 1} of {len(self.batches)}"
        if not loss.requires_grad:
            raise InputError(
                f"{place} has no graph: no differentiable path leads from it to the parameters ({few(self.names)}); "
                f"an argmax, rounding to integers, .item(), .detach() or no_grad() on the way cuts it"
            )
        if not math.isfinite(float(loss.detach())):
            raise InputError(f"{place} is {float(loss.detach())} at this point; curvature needs a finite loss")
        return loss

    def _cast(self, flat: Tensor) -> list[Tensor]:
        pieces = self.pieces(flat).values()
        return [p.to(device=d, dtype=t) for p, (d, t) in zip(pieces, self._kinds, strict=True)]

    def _on(
        self,
        function: Callable[[Any, Any], Any],
        values: Sequence[Tensor],
        batch: Any,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        others = {**dict(self.model.named_buffers()), **(constants or {})}
        replaced = {name: t.detach() for name, t in others.items()}
        replaced.update(zip(self.names, values, strict=True))
        inputs = by_slot(self.model, replaced)
        with (
            plain_arithmetic(self.model, self.devices),
            drawing(self.devices),
            evaluating(self.model, self.mode),
        ):
            result = functional_call(self._bound, inputs, (function, batch), tie_weights=False)
        if function is self.loss and (not isinstance(result, Tensor) or result.numel() != 1):
            raise InputError(
                f"loss(model, batch) must give one number (the mean over the batch), got {described(result)}"
            )
        return result.reshape(()) if function is self.loss else result


def _check_loss(loss: Any) -> None:
    told = getattr(loss, "__name__", type(loss).__name__)
    # The modules (but not functions) of torch's losses, and its functions: all take (outputs, targets).
    if isinstance(loss, nn.modules.loss._Loss) or getattr(loss, "__module__", None) == "torch.nn.functional":
        raise InputError(
            f"loss is called as loss(model, batch), and {told} is not; "
            f"for batches (x, y) give riverval.hessian.supervised({told})"
        )
    if not callable(loss):
        raise InputError(f"loss must be a function loss(model, batch) that gives a scalar, got {described(loss)}")


def _check_batches(batches: Any) -> None:
    if not isinstance(batches, Sequence) or isinstance(batches, str) or not len(batches):
        some = "; list(itertools.islice(loader, 4)) takes four" if hasattr(batches, "__iter__") else ""
        single = "; one batch alone is [batch]" if isinstance(batches, Mapping | Tensor) else some
        raise InputError(f"a loss on batches needs a list of at least one batch, got {described(batches)}{single}")
    if isinstance(batches, tuple) and all(isinstance(part, Tensor) for part in batches):
        raise InputError(
            "batches is a tuple of tensors, which looks like one batch (x, y): give [batch], or a list of batches"
        )


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    try:
        given = [1.0] * count if weights is None else [float(w) for w in weights]
    except (TypeError, ValueError):
        raise InputError(f"weights must be {count} positive numbers, one per batch, got {weights!r}") from None
    if len(given) != count or not all(0 < w < math.inf for w in given):
        raise InputError(f"weights must be {count} positive numbers, one per batch, got {given}")
    return [w / sum(given) for w in given]
