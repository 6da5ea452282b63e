"""Optimizers as update rules for one coordinate, which work on numbers, for compilation, and on arrays alike.

A rule gets the coordinate, its gradient (with noise), the states of the optimizer, the numbers that change from update
to update, and the constants; it returns the new coordinate and states. g is the gradient, lr = lr[t].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from .._checks import check_number, check_options, check_steps, make_plain, pick
from .._moment_steps import check_constant
from .._registry import registrar
from .._typing import FloatArray
from ..errors import InputError

OPTIMIZERS: dict[str, type[Optimizer]] = {}

register_optimizer = registrar(OPTIMIZERS)


@dataclass(frozen=True)
class Optimizer:
    """What the simulation needs to know of an optimizer; its fields are its constants, in the order of the rule.

    ``rule(w, g, *states, *coefficients, *constants)`` returns w and its states, as many as `states` says.
    """

    name: ClassVar[str]
    rule: ClassVar[Callable[..., Any]]
    states: ClassVar[int] = 0
    begins_at_start: ClassVar[bool] = False
    """Whether the states begin where w does, and not at 0."""
    evaluated: ClassVar[int | None] = None
    """Number of the state at which losses are recorded; None: at w itself, where the gradient is taken."""

    def __post_init__(self) -> None:
        for f in fields(self):
            check_constant(self.name, f.name, getattr(self, f.name))
        make_plain(self)

    def constants(self) -> FloatArray:
        """The constants of the rule."""
        return np.array([getattr(self, f.name) for f in fields(self)], dtype=np.float64)

    def coefficients(self, lr: FloatArray) -> FloatArray:
        """What the rule takes for each update of a run with these rates; (T,) -> (T, count), lr first."""
        return lr[:, None]

    def counts(self) -> tuple[int, int]:
        """Number of the rule's coefficients and of its constants."""
        return self.coefficients(np.zeros(1)).shape[1], len(fields(self))

    def stability_limit(self, sigma: float) -> float:
        """lr h below which the optimizer settles at the curvature h; inf where it always does.

        Args:
            sigma: standard deviation of the gradient noise, which counts where the optimizer divides by it.
        """
        return 2.0

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, as ``make_optimizer(**d)`` takes them."""
        return {"name": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}


def make_optimizer(name: str, **options: float) -> Optimizer:
    """Build a registered optimizer.

    Raises:
        InputError: an unknown name, an option that the optimizer does not take, or a value out of range.

    >>> make_optimizer("heavy-ball", beta=0.9).stability_limit(1.0)
    3.8
    """
    cls = pick("optimizer", name, OPTIMIZERS)
    check_options(f"optimizer {name!r}", options, [f.name for f in fields(cls)])
    return cls(**options)


# --- rules -----------------------------------------------------------------------------------------------------------
def sgd_rule(w, g, lr):  # type: ignore[no-untyped-def]
    return w - lr * g


def heavy_ball_rule(w, g, m, lr, beta):  # type: ignore[no-untyped-def]
    m = beta * m + g
    return w - lr * m, m


def ema_momentum_rule(w, g, m, lr, beta):  # type: ignore[no-untyped-def]
    m = beta * m + (1.0 - beta) * g
    return w - lr * m, m


def nesterov_rule(w, g, m, lr, beta):  # type: ignore[no-untyped-def]
    m = beta * m + g
    return w - lr * (g + beta * m), m


def adam_rule(w, g, m, v, lr, grow1, grow2, beta1, beta2, eps):  # type: ignore[no-untyped-def]
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * (g * g)
    return w - (lr * grow1) * m / (np.sqrt(v * grow2) + eps), m, v


def adamw_rule(w, g, m, v, lr, grow1, grow2, beta1, beta2, eps, weight_decay):  # type: ignore[no-untyped-def]
    w = w - lr * weight_decay * w
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * (g * g)
    return w - (lr * grow1) * m / (np.sqrt(v * grow2) + eps), m, v


def rmsprop_rule(w, g, v, lr, beta, eps):  # type: ignore[no-untyped-def]
    v = beta * v + (1.0 - beta) * (g * g)
    return w - lr * g / (np.sqrt(v) + eps), v


def sign_rule(w, g, lr):  # type: ignore[no-untyped-def]
    return w - lr * np.sign(g)


def schedule_free_rule(w, g, z, x, lr, weight, beta):  # type: ignore[no-untyped-def]
    z = z - lr * g
    x = x + weight * (z - x)
    return (1.0 - beta) * z + beta * x, z, x


# --- optimizers ------------------------------------------------------------------------------------------------------
@register_optimizer("sgd")
@dataclass(frozen=True)
class SGD(Optimizer):
    """w <- w - lr g."""

    rule = staticmethod(sgd_rule)


@register_optimizer("heavy-ball")
@dataclass(frozen=True)
class HeavyBall(Optimizer):
    """m <- beta m + g, w <- w - lr m: the momentum of torch, whose speed is that of SGD at the rate lr/(1 - beta)."""

    rule = staticmethod(heavy_ball_rule)
    states = 1
    beta: float = 0.9

    def stability_limit(self, sigma: float) -> float:
        return 2.0 * (1.0 + self.beta)


@register_optimizer("ema-momentum")
@dataclass(frozen=True)
class EMAMomentum(Optimizer):
    """m <- beta m + (1 - beta) g, w <- w - lr m: momentum at the speed of SGD."""

    rule = staticmethod(ema_momentum_rule)
    states = 1
    beta: float = 0.9

    def stability_limit(self, sigma: float) -> float:
        return 2.0 * (1.0 + self.beta) / (1.0 - self.beta)


@register_optimizer("nesterov")
@dataclass(frozen=True)
class Nesterov(Optimizer):
    """m <- beta m + g, w <- w - lr (g + beta m): Nesterov's momentum as torch has it."""

    rule = staticmethod(nesterov_rule)
    states = 1
    beta: float = 0.9

    def stability_limit(self, sigma: float) -> float:
        return 2.0 * (1.0 + self.beta) / (1.0 + 2.0 * self.beta)


@register_optimizer("adam")
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam with bias correction (arXiv:1412.6980), eps added to the root as in torch.

    m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2,
    w <- w - lr (m / (1 - beta1^(t+1))) / (sqrt(v / (1 - beta2^(t+1))) + eps).
    """

    rule: ClassVar[Callable[..., Any]] = staticmethod(adam_rule)
    states = 2
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def coefficients(self, lr: FloatArray) -> FloatArray:
        """lr, 1/(1 - beta1^(t+1)) and 1/(1 - beta2^(t+1))."""
        return np.column_stack([lr, _bias_correction(self.beta1, lr.size), _bias_correction(self.beta2, lr.size)])

    def stability_limit(self, sigma: float) -> float:
        """That of its momentum, with the steps divided by sqrt(v), which noise keeps at sigma and eps above 0."""
        return 2.0 * (1.0 + self.beta1) / (1.0 - self.beta1) * max(sigma, self.eps)


def _bias_correction(beta: float, total: int) -> FloatArray:
    """1/(1 - beta^(t+1)) for t = 0, ..., total-1."""
    factors = np.ones(total)
    if beta > 0.0:
        some = min(total, math.ceil(-40.0 / math.log(beta)))  # exp(-40) is lost in the difference from 1
        factors[:some] = 1.0 / (1.0 - beta ** np.arange(1, some + 1))
    return factors


@register_optimizer("adamw")
@dataclass(frozen=True)
class AdamW(Adam):
    """Adam after w <- w - lr weight_decay w (arXiv:1711.05101)."""

    rule = staticmethod(adamw_rule)
    weight_decay: float = 0.01


@register_optimizer("rmsprop")
@dataclass(frozen=True)
class RMSprop(Optimizer):
    """v <- beta v + (1 - beta) g^2, w <- w - lr g / (sqrt(v) + eps), as torch has it: without bias correction."""

    rule = staticmethod(rmsprop_rule)
    states = 1
    beta: float = 0.99
    eps: float = 1e-8

    def stability_limit(self, sigma: float) -> float:
        """That of SGD, with the steps divided by sqrt(v), which noise keeps at sigma and eps above 0."""
        return 2.0 * max(sigma, self.eps)


@register_optimizer("sign")
@dataclass(frozen=True)
class SignSGD(Optimizer):
    """w <- w - lr sign(g): every coordinate moves by lr (arXiv:1802.04434)."""

    rule = staticmethod(sign_rule)

    def stability_limit(self, sigma: float) -> float:
        return math.inf


@register_optimizer("schedule-free")
@dataclass(frozen=True)
class ScheduleFree(Optimizer):
    """Schedule-Free SGD (arXiv:2405.15682): gradients at y = w, steps on z, losses at the average x.

    z <- z - lr g(y), x <- x + c (z - x) with c = lr[t]^2 / sum_{s<=t} lr[s]^2, y <- (1 - beta) z + beta x.
    """

    rule = staticmethod(schedule_free_rule)
    states = 2
    evaluated = 1
    begins_at_start = True
    beta: float = 0.9

    def coefficients(self, lr: FloatArray) -> FloatArray:
        """lr and the weight of the newest z in the average."""
        total = np.cumsum(lr**2)
        return np.column_stack([lr, np.divide(lr**2, total, out=np.zeros_like(lr), where=total > 0)])

    def stability_limit(self, sigma: float) -> float:
        return 2.0 / (1.0 - self.beta)


# --- averages of the iterates ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Average:
    """A running average a <- a + weight[t] (w - a) of the iterates, beside them: no update depends on it."""

    def weights(self, total: int) -> FloatArray:
        """Weight of the iterate that each update has made; (total,)."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Name and fields."""
        return {"name": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class TailAverage(Average):
    """The mean of the last `updates` iterates of the run; before them, the iterate itself (to rounding).

    Raises:
        InputError: not a whole number of at least 1.
    """

    updates: int

    def __post_init__(self) -> None:
        check_steps("updates", self.updates, low=1, what="that the average takes in")
        make_plain(self)

    def weights(self, total: int) -> FloatArray:
        if self.updates > total:
            raise InputError(f"an average over the last {self.updates} updates needs as many, but the run has {total}")
        weights = np.ones(total)
        weights[total - self.updates :] = 1.0 / np.arange(1, self.updates + 1)
        return weights


@dataclass(frozen=True)
class EMAAverage(Average):
    """The exponential average a <- beta a + (1 - beta) w, from the start of the run.

    Raises:
        InputError: beta outside [0, 1).
    """

    beta: float

    def __post_init__(self) -> None:
        check_number("beta", self.beta, low=0.0, high=1.0, open_high=True, what="of the average")
        make_plain(self)

    def weights(self, total: int) -> FloatArray:
        return np.full(total, 1.0 - self.beta)
