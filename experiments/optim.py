"""The optimizers of a run, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import pick
from .config import RunConfig

Maker = Callable[..., torch.optim.Optimizer]


def _adamw(config: RunConfig) -> tuple[Maker, dict[str, Any]]:
    return torch.optim.AdamW, {"betas": config.betas, "eps": config.eps}


def _adam(config: RunConfig) -> tuple[Maker, dict[str, Any]]:
    return torch.optim.Adam, {"betas": config.betas, "eps": config.eps}


def _sgd(config: RunConfig) -> tuple[Maker, dict[str, Any]]:
    return torch.optim.SGD, {"momentum": config.momentum}


MAKERS: dict[str, Callable[[RunConfig], tuple[Maker, dict[str, Any]]]] = {"adamw": _adamw, "adam": _adam, "sgd": _sgd}


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of a config over the trainable parameters of a model.

    With w the weight decay, e the learning rate and g the gradient, AdamW takes x <- x - e w x beside its step
    (Loshchilov and Hutter, arXiv:1711.05101), Adam and SGD take g + w x for g. Only matrices, filters and embeddings
    decay: not what a norm layer holds, and no vector or scalar, which are the biases. Momentum is torch's: the buffer
    is b <- momentum b + g, from b = g at the first update, and x <- x - e b.

    The fused kernels are used where the device has them. Each number is computed from its own gradient and moments
    alone, so that they too give the same bits in every run of the same build of torch.

    Args:
        model: on its device; its parameters must not move afterwards.
        config: `optimizer`, `lr`, `weight_decay` and what the optimizer takes.
    """
    maker, options = pick("optimizer", config.optimizer, MAKERS)(config)
    decayed, plain = _by_decay(model)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    try:
        return maker(groups, lr=config.lr, fused=True, **options)
    except RuntimeError:  # the device has no fused kernel
        return maker(groups, lr=config.lr, **options)


def _by_decay(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The trainable parameters that decay, and the others."""
    of_norms = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for p in model.parameters():
        if p.requires_grad:
            (plain if p.ndim < 2 or id(p) in of_norms else decayed).append(p)
    return decayed, plain


def _is_norm(module: nn.Module) -> bool:
    """By name: torch has no common class of its norms, and models bring their own."""
    return "norm" in type(module).__name__.lower()


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class Norms:
    """The norms of one update: of the gradient before clipping, of the update, and of the parameters before it.

    Call `before` when the gradients are there and `after` when the update is made. The parameters must not change
    otherwise. Takes the memory of one copy of the parameters; all stays on the device.

    Args:
        params: the trainable parameters.
        clip: largest norm of the gradient, which `before` scales down to it; None: no clipping.
    """

    def __init__(self, params: list[nn.Parameter], clip: float | None) -> None:
        self._params, self._clip = params, clip
        self._previous = [p.detach().clone() for p in params]
        self._param_norm = _norm(self._previous)

    def reset(self) -> None:
        """Take the parameters as they are now: they were loaded."""
        with torch.no_grad():
            torch._foreach_copy_(self._previous, list(self._params))
        self._param_norm = _norm(self._previous)

    def before(self) -> tuple[Tensor, Tensor]:
        """Norms of the gradient and of the parameters; clips the gradient."""
        if self._clip is not None:
            return nn.utils.clip_grad_norm_(self._params, self._clip), self._param_norm
        return _norm([p.grad for p in self._params if p.grad is not None]), self._param_norm

    @torch.no_grad()
    def after(self) -> Tensor:
        """Norm of the update."""
        torch._foreach_sub_(self._previous, list(self._params))
        found = _norm(self._previous)
        torch._foreach_copy_(self._previous, list(self._params))
        self._param_norm = _norm(self._previous)
        return found


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
