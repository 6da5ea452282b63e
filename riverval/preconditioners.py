"""The diagonal preconditioner P that an optimizer of torch holds, and the curvature at which its steps become unstable.

An adaptive optimizer steps along P^-1 times (an average of) the gradient, so what decides over its stability is the
largest eigenvalue of P^-1 H, or of the similar symmetric P^-1/2 H P^-1/2 (`riverval.operators.PreconditionedOperator`),
against `stability_threshold`. For a quadratic loss without noise and with P held fixed, the thresholds are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ._checks import check_number, pick
from ._untouched import bare_model
from .errors import InputError, missing_extra
from .model_loss import LossOnBatches, flat_vector

try:
    import torch
    from torch import Tensor, nn
except ImportError as _error:
    raise missing_extra("torch", "real", "the preconditioner of an optimizer of torch") from _error

State = Mapping[str, Any]
Group = Mapping[str, Any]


@dataclass(frozen=True)
class _Rule:
    """What is to know of an optimizer.

    Attributes:
        diagonal: P of one parameter from its state and group; None for plain ones.
        needs: entries of the state without which there is no P.
        kind: of momentum, a key of `_KINDS`, from a group.
        momentum: its coefficient, from a group.
    """

    diagonal: Callable[[State, Group], Tensor] | None
    needs: tuple[str, ...]
    kind: Callable[[Group], str]
    momentum: Callable[[Group], float]


def _adam(state: State, group: Group) -> Tensor:
    second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    corrected: Tensor = second / (1.0 - float(group["betas"][1]) ** float(state["step"]))
    return corrected.sqrt() + float(group["eps"])


def _rmsprop(state: State, group: Group) -> Tensor:
    second: Tensor = state["square_avg"]
    if group["centered"]:
        second = second - state["grad_avg"].square()
    return second.sqrt() + float(group["eps"])


def _adagrad(state: State, group: Group) -> Tensor:
    # The rate's own decay belongs to P: torch divides the rate by 1 + (step - 1) lr_decay.
    slowed = 1.0 + (float(state["step"]) - 1.0) * float(group["lr_decay"])
    total: Tensor = state["sum"]
    return slowed * (total.sqrt() + float(group["eps"]))


def _of_sgd(group: Group) -> str:
    return "nesterov" if group["nesterov"] else "heavy-ball"


_ADAM = _Rule(_adam, ("step", "exp_avg_sq"), lambda g: "average", lambda g: float(g["betas"][0]))
_RULES: dict[type, _Rule] = {
    torch.optim.SGD: _Rule(None, (), _of_sgd, lambda g: float(g["momentum"])),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.RMSprop: _Rule(_rmsprop, ("square_avg",), lambda g: "heavy-ball", lambda g: float(g["momentum"])),
    torch.optim.Adagrad: _Rule(_adagrad, ("step", "sum"), lambda g: "heavy-ball", lambda g: 0.0),
}

# Threshold times the learning rate, from the momentum b; see `threshold`.
_KINDS: dict[str, Callable[[float], float]] = {
    "heavy-ball": lambda b: 2.0 * (1.0 + b),
    "nesterov": lambda b: 2.0 * (1.0 + b) / (1.0 + 2.0 * b),
    "average": lambda b: 2.0 * (1.0 + b) / (1.0 - b),
}


def preconditioner(
    optimizer: torch.optim.Optimizer, of: LossOnBatches | nn.Module, *, with_rates: bool = False
) -> Tensor:
    """The diagonal of P, shape (dim,), in the units of a gradient (ones for SGD), from the optimizer's present state.

    =============  =====================================================================================
    Adam, AdamW    sqrt(v / (1 - beta2^t)) + eps, v the average of squared gradients (amsgrad: its maximum)
    RMSprop        sqrt(v) + eps; centered: sqrt(v - m^2) + eps
    Adagrad        (1 + (t - 1) lr_decay) (sqrt(sum of squared gradients) + eps)
    SGD            1
    =============  =====================================================================================

    as in torch's own updates (torch.optim). Adam's correction of the first moment, 1 - beta1^t, is left out: it is 1
    within 1 % after 44 updates at beta1 = 0.9. Weight decay is not part of P.

    Args:
        optimizer: one of these, exactly: a subclass may do something else.
        of: whose parameters, and in which order: a `LossOnBatches`, or a module (all that require gradients).
        with_rates: divide P by each group's learning rate and multiply it by the largest one. Parameter groups of
            different rates then have one threshold, that of the largest rate.

    Raises:
        InputError: another optimizer, a parameter that it does not hold, or one without state: no update was made yet.

    >>> line = nn.Linear(2, 1)
    >>> preconditioner(torch.optim.SGD(line.parameters(), lr=0.1), line)
    tensor([1., 1., 1.])
    """
    rule = _rule_of(optimizer)
    if isinstance(of, LossOnBatches):
        named = dict(zip(of.names, of.parameters(), strict=True))
    else:
        named = {name: p for name, p in bare_model(of).named_parameters() if p.requires_grad}
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if with_rates and min(rates) <= 0:
        raise InputError(f"with_rates needs learning rates above 0, got {rates}")
    pieces = []
    for name, p in named.items():
        if id(p) not in group_of:
            raise InputError(
                f"the optimizer does not hold the parameter {name}; leave it out, or build a P of your own"
            )
        group = group_of[id(p)]
        piece = _diagonal(rule, optimizer, name, p, group)
        pieces.append(piece * (max(rates) / float(group["lr"])) if with_rates else piece)
    return flat_vector(pieces)


def _diagonal(rule: _Rule, optimizer: torch.optim.Optimizer, name: str, p: Tensor, group: Group) -> Tensor:
    if rule.diagonal is None:
        return torch.ones_like(p, requires_grad=False)
    state = optimizer.state.get(p, {})
    missing = [key for key in rule.needs if key not in state]
    if missing:
        raise InputError(
            f"{type(optimizer).__name__} has no {' and no '.join(missing)} for the parameter {name} yet: its "
            f"preconditioner exists after the first update with a gradient for it"
        )
    return rule.diagonal(state, group)


def _rule_of(optimizer: Any) -> _Rule:
    rule = _RULES.get(type(optimizer))
    if rule is None:
        known = ", ".join(cls.__name__ for cls in _RULES)
        raise InputError(
            f"the preconditioner of {type(optimizer).__name__} is not known here (known: {known}); build its positive "
            f"diagonal P as a flat tensor and pass it to PreconditionedOperator(operator, P)"
        )
    return rule


def threshold(lr: float, momentum: float = 0.0, *, kind: str = "heavy-ball") -> float:
    """The curvature lambda above which a step of rate lr on (lambda/2) w^2 diverges.

    ============  ==============================================  ==================================
    heavy-ball    b <- beta b + g,  w <- w - lr b                 2 (1 + beta) / lr
    nesterov      the same b,  w <- w - lr (g + beta b)           2 (1 + beta) / ((1 + 2 beta) lr)
    average       b <- beta b + (1 - beta) g,  w <- w - lr b      2 (1 + beta) / ((1 - beta) lr)
    ============  ==============================================  ==================================

    2/lr each for beta = 0. Derived: at the threshold the recursion's characteristic polynomial has the root -1; the
    second also in Cohen et al. 2021 (arXiv:2103.00065), the third, 38/lr at beta = 0.9, in arXiv:2207.14484.

    Args:
        lr: learning rate, above 0.
        momentum: beta, in [0, 1).
        kind: "heavy-ball" (torch's SGD and RMSprop), "nesterov" or "average" (Adam).

    Raises:
        InputError: an argument out of range.

    >>> round(threshold(1.0, 0.9, kind="average"), 9)
    38.0
    """
    rate = check_number("lr", lr, low=0.0, open_low=True)
    beta = check_number("momentum", momentum, low=0.0, high=1.0, open_high=True)
    return pick("kind of momentum", kind, _KINDS)(beta) / rate


def stability_threshold(optimizer: torch.optim.Optimizer) -> float:
    """The largest eigenvalue of P^-1 H that the optimizer's present learning rate bears: see `threshold`.

    Of several parameter groups the largest rate counts; if rates differ, H must be preconditioned by
    ``preconditioner(..., with_rates=True)``. For SGD with dampening d it is the heavy-ball one over 1 - d. Weight decay
    is left out: with an L2 penalty, compare with the curvature of the loss plus the penalty's, `weight_decay`.

    Null: with the preconditioned sharpness of a run far below it, progress is not limited by curvature; hovering at it
    is the edge of stability (Cohen et al. 2021, arXiv:2103.00065), which the noise of mini-batches moves below it.

    Raises:
        InputError: an optimizer that is not known, or groups of different momentum.

    >>> line = nn.Linear(2, 1)
    >>> round(stability_threshold(torch.optim.Adam(line.parameters(), lr=0.001)))
    38000
    """
    rule, groups = _rule_of(optimizer), optimizer.param_groups
    kinds = {(rule.kind(g), rule.momentum(g), float(g.get("dampening", 0.0))) for g in groups}
    if len(kinds) > 1:
        raise InputError("the parameter groups differ in momentum, so no single threshold holds for them")
    ((kind, momentum, dampening),) = kinds
    followed = 1.0 - dampening * (momentum > 0)  # the share of each gradient that enters the momentum
    bound = threshold(max(float(g["lr"]) for g in groups), momentum, kind=kind)
    return bound / followed if followed else math.inf
