"""The parameters of a torch model by name: which ones are asked for, and every place that holds them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ._checks import suggest
from .errors import InputError, missing_extra

try:
    from torch import Tensor, nn
except ImportError as _error:
    raise missing_extra("torch", "real", "curvature of a torch model") from _error


def by_slot(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`values` (by the first name of each tensor) for every place that holds the tensor, buffers as copies.

    Each place once: functional_call's own handling of shared tensors knows a module that is used under two names as two
    places, and then leaves the replacement in the user's model.
    """
    first = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    copies: dict[str, Tensor] = {}
    slots = {}
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            own = first.get(id(tensor))
            if own is None or own not in values:
                continue
            if name in module._buffers and own not in copies:
                copies[own] = values[own].clone()  # train mode writes to them
            slots[".".join(filter(None, ["model", path, name]))] = copies.get(own, values[own])
    return slots


def chosen_parameters(model: nn.Module, asked: Iterable[str | Tensor] | str | Tensor | None) -> dict[str, Tensor]:
    """The parameters asked for, by name, in the model's order and each once."""
    named = dict(model.named_parameters())
    if not named:
        raise InputError("the model has no parameters")
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in named.values()):
        raise InputError("the model has parameters without a shape (lazy modules); run a forward pass first")
    if asked is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise InputError(
                f"none of the model's {len(named)} parameters requires gradients; "
                f"call requires_grad_() on some, or name those to look at with parameters=[...]"
            )
    else:
        choices = [asked] if isinstance(asked, str | Tensor) or not isinstance(asked, Iterable) else list(asked)
        if not choices:
            raise InputError("parameters is empty; name at least one parameter, or pass None for all")
        wanted = {place for choice in choices for place in _matching(model, choice)}
        chosen = {name: p for name, p in named.items() if id(p) in wanted}
    for name, p in chosen.items():
        if not p.is_floating_point():
            raise InputError(f"parameter {name} has dtype {p.dtype}; curvature needs real floating-point parameters")
    return chosen


def _matching(model: nn.Module, choice: str | Tensor) -> set[int]:
    every = dict(model.named_parameters(remove_duplicate=False))  # with each name of a shared one
    if isinstance(choice, Tensor):
        if all(choice is not p for p in every.values()):
            raise InputError(f"a tensor of shape {tuple(choice.shape)} among `parameters` is no parameter of the model")
        return {id(choice)}
    if not isinstance(choice, str):
        raise InputError(
            f"parameters takes names, patterns or the model's own tensors (of a part of it: part.parameters()), "
            f"got {described(choice)}"
        )
    found = {id(p) for name, p in every.items() if fnmatch.fnmatchcase(name, choice)}
    if not found:
        raise InputError(f"no parameter is called {choice!r}; there are: {few(list(every))}.{suggest(choice, every)}")
    return found


def few(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many there are besides."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def described(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {value.shape} (torch.from_numpy makes it a tensor)"
    if isinstance(value, int | float | str):
        return f"the {type(value).__name__} {value!r}"
    if isinstance(value, Sequence) and not isinstance(value, str) and not len(value):
        return "none"
    return f"a {type(value).__name__}"
