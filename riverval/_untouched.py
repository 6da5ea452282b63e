"""What a measurement on the user's model must leave as it found it: modes, random generators, kernels, precision."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from .errors import missing_extra

try:
    import torch
    from torch import nn
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.utils.parametrizations import _WeightNorm
    from torch.nn.utils.weight_norm import WeightNorm
    from torch.overrides import TorchFunctionMode
except ImportError as _error:
    raise missing_extra("torch", "real", "curvature of a torch model") from _error

_SEED = 0  # of the draws that a loss makes: the same at every evaluation


def bare_model(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or torch.compile: these have no second derivatives."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


@contextmanager
def evaluating(model: nn.Module, mode: str = "eval") -> Iterator[None]:
    """Eval mode within the block (with normalisation layers in train mode for "train"); then every mode as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = mode == "train" and isinstance(module, nn.modules.batchnorm._NormBase)
        yield
    finally:
        for module, training in modes:
            module.training = training


def _generator(device: torch.device) -> Any:
    """The generator that draws on `device`."""
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[device.index or 0]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else torch.default_generator


@contextmanager
def drawing(devices: Sequence[torch.device]) -> Iterator[None]:
    """Every generator starts at one seed within the block; then each goes on as if nothing had been drawn."""
    generators = [_generator(device) for device in devices]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(_SEED)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class _ExactWeightNorm(TorchFunctionMode):
    """Weight norm, g v / ||v||, in plain operations: the second derivative of torch's fused kernel is wrong."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))

        def plain(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
            return v * (g / torch.norm_except_dim(v, 2, dim))

        return plain(*args, **(kwargs or {}))


def _has_weight_norm(model: nn.Module) -> bool:
    """By either of torch's two ways: a parametrization, or a hook before the forward pass."""
    return any(
        isinstance(module, _WeightNorm) or any(isinstance(h, WeightNorm) for h in module._forward_pre_hooks.values())
        for module in model.modules()
    )


@contextmanager
def plain_arithmetic(model: nn.Module, devices: Sequence[torch.device]) -> Iterator[None]:
    """No autocast, no inference mode, twice differentiable kernels; the caller's settings come back afterwards."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # which it had switched on
        if "torch._dynamo" in sys.modules and hasattr(
            torch.compiler, "set_stance"
        ):  # compiled submodules have no second derivative
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for kind in {device.type for device in devices}:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if _has_weight_norm(model):
            stack.enter_context(_ExactWeightNorm())
        if torch.backends.cudnn.enabled and any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # its RNNs have no second derivative
        yield
