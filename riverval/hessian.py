"""Hessian, Gauss-Newton and Fisher matrix of a torch model's loss on fixed batches, by exact products.

Products are exact (two backward passes; no finite differences, which fail on ReLU and max-pooling) and keep the graph
between products, which makes each about half as expensive. On a convolutional network a product then costs about 1.8
gradients and the graph, once, about 1. Fused attention has no second derivative, so the math kernel is used throughout.

One point and one set of batches make one matrix; it is the curvature of the loss on these batches, not of the loss
behind them. Null: the largest eigenvalue is a convex function of the matrix, so that of a sample's Hessian is on
average at least the largest eigenvalue of the full one (Jensen), and the more above it the fewer the examples: compare
points on the same batches, and set an error bar by disjoint ones (`riverval.spectra.over_batches`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# `as`: part of this module's interface, each described where it is made.
from ._untouched import evaluating as evaluating
from .errors import InputError, missing_extra
from .model_loss import LossOnBatches as LossOnBatches
from .model_loss import SplitLoss as SplitLoss
from .model_loss import flat_parameters as flat_parameters
from .model_loss import supervised as supervised
from .operators import BatchOperator, Kernel, _Point, path_of
from .operators import PreconditionedOperator as PreconditionedOperator

try:
    import torch
    from torch import Tensor
    from torch.autograd.function import BackwardCFunction, once_differentiable
except ImportError as _error:
    raise missing_extra("torch", "real", "curvature of a torch model") from _error

_ONCE = once_differentiable(lambda context: context).__code__


class HessianOperator(BatchOperator):
    """Products H v with the Hessian of a `LossOnBatches` at one point, exact up to rounding.

    H v = d/dw <dL/dw, v>, summed over the batches (Pearlmutter 1994, Neural Computation 6:147). Arguments and errors
    are those of `BatchOperator`.

    >>> from torch import nn
    >>> line, x = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 1.0]])
    >>> loss = LossOnBatches(line, lambda model, batch: model(batch).square().mean(), [x])
    >>> HessianOperator(loss) @ torch.tensor([1.0, 0.0])
    tensor([18.,  6.])
    """

    @staticmethod
    def _make(point: _Point, index: int) -> tuple[Kernel, set[int]]:
        leaves = point.leaves
        loss = point.loss.scalar(point.evaluate(point.loss.loss, index), index)
        _refuse_once_differentiable(loss)
        with _naming_operations(loss):
            gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        # A loss that is linear in a parameter has there a gradient without a graph: no second derivative.
        curved = {i: g for i, g in enumerate(gradients) if g is not None and g.requires_grad}

        def kernel(chosen: Any, vectors: Any, retain: bool) -> Any:
            pairs = [(curved[i], v) for i, v in zip(chosen, vectors, strict=True) if i in curved]
            if not pairs:
                return [None] * len(chosen)
            outputs, sides = zip(*pairs, strict=True)
            with _naming_operations(loss):
                return torch.autograd.grad(
                    outputs, [leaves[i] for i in chosen], sides, retain_graph=retain, allow_unused=True
                )

        return kernel, {i for i, g in enumerate(gradients) if g is not None}


class GGNOperator(BatchOperator):
    """Products G v with the generalised Gauss-Newton matrix G = J^T H_z J, exact up to rounding.

    J = dz/dw is the Jacobian of the model's outputs z, H_z the Hessian of the loss with respect to z. It is the part of
    the Hessian that the curvature of the model does not enter (Schraudolph 2002, Neural Computation 14:1723), and
    positive semidefinite where the loss is convex in z. J v is the derivative of J^T u by u, so no forward-mode
    derivatives are needed. Arguments and errors are those of `BatchOperator`; the loss must be a `SplitLoss` (see
    `supervised`), which says what the outputs are. A product costs about 1.6 gradients.

    Null: where the model fits the data perfectly, or is linear in w, G is the Hessian; far from there its largest
    eigenvalue is often close to the Hessian's, while its negative ones do not exist.
    """

    @staticmethod
    def _make(point: _Point, index: int) -> tuple[Kernel, set[int]]:
        split, batch = _split(point), point.loss.batches[index]
        z = _outputs(point, split.outputs, index)
        inner = z.detach().requires_grad_()
        value = split.loss(inner, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError("the loss of a SplitLoss must give one number per batch (the mean)")
        value = point.loss.scalar(value.reshape(()), index)
        _refuse_once_differentiable(value)
        (slope,) = torch.autograd.grad(value, inner, create_graph=True)

        def curvature(side: Tensor) -> Tensor | None:
            if not slope.requires_grad:  # a loss linear in the outputs
                return None
            with _naming_operations(value):
                (bent,) = torch.autograd.grad(slope, inner, side, retain_graph=True, allow_unused=True)
            return bent

        return _through_outputs(point, z, curvature)


class FisherOperator(BatchOperator):
    """Products F v with the empirical Fisher matrix F = (1/N) sum_n g_n g_n^T, exact up to rounding.

    g_n is the gradient of the loss of example n; over several batches F = sum_b weight_b F_b. With J the Jacobian of
    the N losses, F = J^T J / N, so no gradient is ever stored by example. Arguments and errors are those of
    `BatchOperator`; the loss must be a `SplitLoss` with `each` (see `supervised`). A product costs about 1.7 gradients.

    Null: F is the second moment of the gradients, not a curvature: it equals the Hessian in expectation only where
    labels are distributed as the model says (Kunstner et al. 2019, arXiv:1905.12558). Its rank is at most N, its trace
    the mean squared norm of the examples' gradients.
    """

    @staticmethod
    def _make(point: _Point, index: int) -> tuple[Kernel, set[int]]:
        split = _split(point)
        each = split.each
        if each is None:
            raise InputError(
                "the empirical Fisher matrix needs the losses of single examples: give SplitLoss(outputs, loss, "
                "each), or supervised() a loss of torch, which has a `reduction`"
            )
        mean: list[Tensor] = []

        def losses(model: Any, batch: Any) -> Tensor:
            z = split.outputs(model, batch)
            mean.append(split.loss(z.detach(), batch))
            return each(z, batch)

        z = _outputs(point, losses, index)
        if z.ndim != 1 or not len(z):
            raise InputError(f"`each` must give the losses of the N examples, shape (N,), got shape {tuple(z.shape)}")
        average, given = float(z.detach().mean()), float(mean[0])
        if abs(average - given) > 0.01 * float(z.detach().abs().mean()):
            raise InputError(
                f"the losses of the examples of batch {index + 1} have mean {average:.6g}, but the loss of the batch "
                f"is {given:.6g}; the Fisher matrix needs a loss that is the plain mean of `each`"
            )
        return _through_outputs(point, z, lambda side: side / len(side))


def _split(point: _Point) -> SplitLoss:
    if not isinstance(point.loss.loss, SplitLoss):
        raise InputError(
            "this matrix needs a loss that says what the outputs are: give LossOnBatches a SplitLoss(outputs, loss), "
            "or supervised(loss_func) for batches (x, y)"
        )
    return point.loss.loss


def _outputs(point: _Point, function: Callable[[Any, Any], Tensor], index: int) -> Tensor:
    """Outputs with a graph, checked."""
    z = point.evaluate(function, index)
    place = f"batch {index + 1} of {len(point.loss.batches)}"
    if not isinstance(z, Tensor):
        raise InputError(f"the outputs for {place} must be one tensor (the logits), got a {type(z).__name__}")
    if not z.requires_grad:
        raise InputError(f"the outputs for {place} have no graph: no differentiable path leads to the parameters")
    if not bool(torch.isfinite(z.detach()).all()):
        raise InputError(f"the outputs for {place} are not all finite at this point; curvature needs finite ones")
    return z


def _through_outputs(point: _Point, z: Tensor, curvature: Callable[[Tensor], Tensor | None]) -> tuple[Kernel, set[int]]:
    """The kernel of J^T curvature(J v), J the Jacobian of z."""
    leaves = point.leaves
    _refuse_once_differentiable(z)
    u = torch.zeros_like(z, requires_grad=True)
    with _naming_operations(z):
        pulled = torch.autograd.grad(z, leaves, u, create_graph=True, allow_unused=True)
    linked = {i: g for i, g in enumerate(pulled) if g is not None and g.requires_grad}

    def kernel(chosen: Any, vectors: Any, retain: bool) -> Any:
        pairs = [(linked[i], v) for i, v in zip(chosen, vectors, strict=True) if i in linked]
        if not pairs:
            return [None] * len(chosen)
        outputs, sides = zip(*pairs, strict=True)
        with _naming_operations(z):
            (pushed,) = torch.autograd.grad(outputs, u, sides, retain_graph=True, allow_unused=True)
            bent = None if pushed is None else curvature(pushed)
            if bent is None:
                return [None] * len(chosen)
            return torch.autograd.grad(z, [leaves[i] for i in chosen], bent, retain_graph=retain, allow_unused=True)

    return kernel, {i for i, g in enumerate(pulled) if g is not None}


def _own_functions(tensor: Tensor) -> dict[str, Any]:
    """The torch.autograd.Functions of the user on the path behind `tensor`, by name."""
    nodes = [node for node in path_of(tensor) if isinstance(node, BackwardCFunction)]
    return {type(node).__name__.removesuffix("Backward"): type(node)._forward_cls for node in nodes}


def _refuse_once_differentiable(value: Tensor) -> None:
    """Autograd does not always complain of such a function: its part of a product can be missing without an error."""
    once = [n for n, cls in _own_functions(value).items() if getattr(cls.backward, "__code__", None) is _ONCE]
    if once:
        raise InputError(
            f"the loss goes through {', '.join(once)}, whose backward is marked once_differentiable: it has no second "
            f"derivative; write its backward in differentiable operations"
        )


@contextmanager
def _naming_operations(path: Tensor) -> Iterator[None]:
    """Autograd's complaint about a missing derivative, with the functions of the user's that lie on the path."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(sign in text for sign in ("not implemented", "differentiate twice", "double backward")):
            raise
        own = ", ".join(_own_functions(path))
        raise InputError(
            f"an operation on the path has no second derivative: {text}"
            f"{f' (own functions on the path: {own})' if own else ''}; use one written in differentiable operations"
        ) from error
