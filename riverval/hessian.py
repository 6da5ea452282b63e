"""Loss and Hessian of a torch model as functions of one flat parameter vector, on fixed batches.

The model is only ever read: its parameters are replaced for the length of a call (`torch.func.functional_call`),
buffers are worked on as copies, and the train/eval mode of every submodule comes back as it was. Everything is
evaluated in eval mode, so that dropout and batch statistics do not make the loss random.

Hessian-vector products are exact (two backward passes; no finite differences, which fail on ReLU and max-pooling) and
keep the graph of the gradient between products, which makes each about half as expensive. Fused attention has no second
derivative, so the math kernel is used throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from ._typing import FloatArray
from .errors import InputError, missing_extra

try:
    import torch
    from torch import Tensor, nn
    from torch.func import functional_call
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as _error:
    raise missing_extra("torch", "real", "a Hessian of a torch model") from _error


def flat_parameters(model: nn.Module) -> Tensor:
    """A copy of all parameters as one vector, shape (dim,), in the order of ``model.named_parameters()``."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; then every submodule's own mode as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Loss(nn.Module):
    """``loss(model, batch)`` as a module, so that functional_call can replace the model's parameters inside it."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


class LossOnBatches:
    """L(w) = sum_b weight_b loss(model with parameters w, batch_b) / sum_b weight_b, for flat parameter vectors w.

    Args:
        model: any module; read, never changed.
        loss: ``loss(model, batch)``, a scalar tensor: the mean loss of the batch.
        batches: the fixed data, a list of whatever `loss` takes.
        weights: share of each batch, e.g. its number of examples; None weighs them equally.

    Raises:
        InputError: no batch, no parameter, or weights that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Sequence[Any],
        *,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not len(batches):
            raise InputError("a loss on batches needs at least one batch, got none")
        given = [1.0] * len(batches) if weights is None else [float(w) for w in weights]
        if len(given) != len(batches) or min(given) <= 0:
            raise InputError(f"weights must be {len(batches)} positive numbers, one per batch, got {given}")
        self.model, self.batches = model, list(batches)
        self.weights = [w / sum(given) for w in given]
        named = list(model.named_parameters())
        if not named:
            raise InputError("the model has no parameters")
        self._names = [f"model.{name}" for name, _ in named]
        self._shapes = [p.shape for _, p in named]
        self._sizes = [p.numel() for _, p in named]
        self._wrapped = _Loss(model, loss)
        self.dim = sum(self._sizes)

    def __call__(self, flat: Tensor) -> float:
        """The loss at `flat`, shape (dim,)."""
        with torch.no_grad():
            return sum(float(self.part(flat, b)) * w for b, w in zip(self.batches, self.weights, strict=True))

    def part(self, flat: Tensor, batch: Any) -> Tensor:
        """The loss of one batch as a tensor, differentiable (twice) with respect to `flat`."""
        if flat.shape != (self.dim,):
            raise InputError(f"this model has {self.dim} parameters, got a vector of shape {tuple(flat.shape)}")
        pieces = [p.view(s) for p, s in zip(flat.split(self._sizes), self._shapes, strict=True)]
        values: dict[str, Tensor] = dict(zip(self._names, pieces, strict=True))
        values.update({f"model.{name}": buffer.clone() for name, buffer in self.model.named_buffers()})
        with evaluating(self._wrapped), sdpa_kernel(SDPBackend.MATH):
            loss: Tensor = functional_call(self._wrapped, values, (batch,))
        return loss


class HessianOperator:
    """Products H v with the Hessian of a `LossOnBatches` at one point, exact up to rounding.

    H v = d/dw <dL/dw, v>, summed over the batches.

    Args:
        loss: the loss and its data.
        at: the point, shape (dim,), copied; the model's own parameters if None.
        keep_graph: keep the gradient's graph of every batch between products: about twice as fast, at the memory of all
            batches at once. False rebuilds it batch by batch.

    Attributes:
        shape: (dim, dim).
        products: how many products were made.
    """

    def __init__(self, loss: LossOnBatches, at: Tensor | None = None, *, keep_graph: bool = True) -> None:
        point = flat_parameters(loss.model) if at is None else at.detach().clone()
        self._point = point.requires_grad_()
        self._loss, self._keep = loss, keep_graph
        self._kept: list[Tensor] | None = None
        self.shape = (loss.dim, loss.dim)
        self.products = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        """H v for a tensor of shape (dim,), in the dtype and on the device of the parameters."""
        if vector.shape != (self.shape[0],):
            raise InputError(f"the Hessian takes vectors of shape ({self.shape[0]},), got {tuple(vector.shape)}")
        total = torch.zeros_like(self._point, requires_grad=False)
        vector = vector.to(total)
        for gradient in self._gradients():
            # A loss that is linear in the parameters has a gradient without a graph: its Hessian is zero.
            if gradient.requires_grad:
                (product,) = torch.autograd.grad(
                    gradient, self._point, vector, retain_graph=self._keep, allow_unused=True, materialize_grads=True
                )
                total += product
        self.products += 1
        return total

    def as_linear_operator(self) -> LinearOperator:
        """The same operator for scipy: float64 vectors outside, products in the precision of the parameters."""

        def matvec(x: FloatArray) -> FloatArray:
            vector = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64).reshape(-1))
            # Converted on the CPU: some accelerators have no float64.
            product = self @ vector.to(self._point.dtype).to(self._point.device)
            values: FloatArray = product.cpu().double().numpy()
            return values

        return LinearOperator(self.shape, matvec=matvec, rmatvec=matvec, dtype=np.float64)

    def _gradients(self) -> Iterator[Tensor]:
        if self._kept is not None:
            yield from self._kept
            return
        made: list[Tensor] = []
        for batch, weight in zip(self._loss.batches, self._loss.weights, strict=True):
            with torch.enable_grad():
                part = weight * self._loss.part(self._point, batch)
                (gradient,) = torch.autograd.grad(part, self._point, create_graph=True)
            if self._keep:
                made.append(gradient)
            yield gradient
        if self._keep:
            self._kept = made
