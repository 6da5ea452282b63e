"""Losses of models with batch norm, by where the statistics of its layers come from.

A batch-norm layer divides by the variance of its input, and in eval mode takes a running estimate that training left in
its buffers. That estimate belongs to the weights it was made with. Between two models, or on a plane, the activations
are others, the stored statistics are wrong, and the loss shows that mismatch, typically a barrier, instead of the
landscape (re-estimated for averaged weights by Izmailov et al., arXiv:1803.05407, for interpolated ones by Jordan et
al., arXiv:2211.08403). There are three ways, and none of them is "the" loss:

===========  ==========================================================================================================
stored       the buffers of the model as they are: right at the weights they were made with only
batch        mean and variance of the evaluated batch: the loss that training sees; depends on the size of the batch
reestimated  made anew at every point by forward passes over given batches, then used in eval mode: the loss that a
             model with these weights has in use; costs those passes
===========  ==========================================================================================================

Dropout is off in all three. The model is read, never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ._checks import pick
from .errors import InputError, missing_extra
from .landscape import BatchLosses, batch_losses
from .model_loss import LossOnBatches

try:
    import torch
    from torch import Tensor, nn
    from torch.nn.modules.batchnorm import _BatchNorm
except ImportError as _error:
    raise missing_extra("torch", "real", "batch statistics of a torch model") from _error

STATISTICS = ("stored", "batch", "reestimated")
"""Where the statistics of batch norm may come from."""


def loss_with_statistics(loss: LossOnBatches, statistics: str, *, over: Sequence[Any] | None = None) -> BatchLosses:
    """`loss` with the statistics of its batch-norm layers from elsewhere than the model's buffers.

    Null of a difference between the three: without batch norm they are one, and so they are at the model's own
    weights, for "reestimated" up to how far its running averages lag behind those weights.

    Args:
        loss: of a model in eval mode, on fixed batches.
        statistics: stored, batch or reestimated; see the module.
        over: the batches for "reestimated": training data, in batches as large as in training, enough of them for the
            statistics not to be noisy. The batches of `loss` if None. Mean and variance are averaged over them, each
            batch alike, as ``torch.optim.swa_utils.update_bn`` does.

    Returns:
        Losses that `path_losses`, `plane_losses` and the other functions of `riverval.landscape` take.

    Raises:
        InputError: an unknown name; a model without batch-norm layers that keep statistics; `over` where nothing is
            re-estimated, or empty.
    """
    pick("batch-norm statistics", statistics, dict.fromkeys(STATISTICS))
    if over is not None and statistics != "reestimated":
        raise InputError(f"statistics={statistics!r} takes no batches to re-estimate over; leave over out")
    if loss.mode != "eval":
        raise InputError(f"give a loss in mode 'eval', got {loss.mode!r}; the statistics are chosen here")
    if statistics == "stored":
        return batch_losses(loss)
    layers = _layers(loss.model)
    if not layers:
        raise InputError("the model has no batch-norm layer that keeps statistics; take statistics='stored'")
    if statistics == "batch":
        same: dict[str, Any] = {"weights": loss.weights, "parameters": loss.names}
        return batch_losses(LossOnBatches(loss.model, loss.loss, loss.batches, mode="train", **same))
    return _Reestimated(loss, layers, loss.batches if over is None else over).losses()


class _Reestimated:
    """A loss whose statistics are made anew at every point."""

    def __init__(self, loss: LossOnBatches, layers: dict[str, nn.Module], over: Sequence[Any]) -> None:
        self._loss, self._layers = loss, layers
        self._made: list[dict[str, Tensor]] = []
        self._passes = LossOnBatches(loss.model, self._pass, over, parameters=loss.names, mode="train")

    def losses(self) -> BatchLosses:
        return BatchLosses(self._evaluate, batch_losses(self._loss).weights)

    def _evaluate(self, flat: Tensor) -> list[float]:
        loss = self._loss
        with torch.no_grad():
            buffers = self._buffers(flat)
            values = [piece.to(p) for piece, p in zip(loss.pieces(flat).values(), loss.parameters(), strict=True)]
            return [self._one(values, i, buffers) for i in range(len(loss.batches))]

    def _one(self, values: list[Tensor], number: int, buffers: dict[str, Tensor]) -> float:
        with self._loss.naming(number):
            return float(self._loss.evaluate(self._loss.loss, values, number, buffers))

    def _buffers(self, flat: Tensor) -> dict[str, Tensor]:
        """Means over the batches of each layer's mean and unbiased variance, by the buffer's name."""
        self._made.clear()
        self._passes(flat)
        means = {
            name: torch.stack([made[name].cpu().double() for made in self._made]).mean(0) for name in self._made[0]
        }
        return {name: mean.to(self._made[0][name]) for name, mean in means.items()}

    def _pass(self, model: nn.Module, batch: Any) -> Tensor:
        # Here the layers' buffers are the copies that `LossOnBatches` puts in their places, and may be written to.
        with _plain_means(self._layers.values()):
            value: Tensor = self._loss.loss(model, batch)
            self._made.append({
                f"{name}.{kind}": getattr(layer, kind).clone()
                for name, layer in self._layers.items() for kind in ("running_mean", "running_var")
            })  # fmt: skip
        return value


@contextmanager
def _plain_means(layers: Iterable[Any]) -> Iterator[None]:
    """Running statistics that start anew and are plain means of what passes within the block."""
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        for layer, _ in momenta:
            layer.reset_running_stats()
            layer.momentum = None
        yield
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    found = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    return {name: m for name, m in found.items() if m.running_mean is not None}
