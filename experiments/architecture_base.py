"""What a run needs of a kind of model: the class that every architecture derives from.

torch is imported where a model is built or a loss taken, so that reading the registry is light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from .._checks import check_number
from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .config import RunConfig


LEAST = -1e4  # a log-probability whose exp is 0 in every precision

# What is measured where training takes seconds or minutes, so that measuring takes less; else `RunConfig`'s own hold.
QUICK: Mapping[str, Any] = {
    "alphas": 9, "hessian_points": 3, "hessian_tol": 1e-2, "descent_points": 10, "direction_snapshots": 6,
}  # fmt: skip


class Architecture:
    """A kind of model, its defaults, and its loss: the cross-entropy of the logits, in nats.

    Attributes:
        name: on the command line.
        data_kind: "images" or "text".
        own: fields of `RunConfig` that only this architecture (or its like) takes.
        defaults: fields of `RunConfig` where the user gives none.
        cooldown: fraction of the run where the schedule is wsd and none is given.
        has_accuracy: whether the share of right answers is recorded.
    """

    name: ClassVar[str]
    data_kind: ClassVar[str]
    own: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Mapping[str, Any]]
    cooldown: ClassVar[float]
    has_accuracy: ClassVar[bool] = False

    def defaults_for(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults, given what the user chose."""
        return {k: v for k, v in self.defaults.items() if k not in chosen}

    def check(self, config: RunConfig) -> None:
        """Check the fields in `own`, and that `width_factor` gives whole widths.

        Raises:
            InputError: a value out of range.
        """
        raise NotImplementedError

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        """A freshly initialised model (from torch's current random state) for data with the given facts.

        Raises:
            InputError: the data do not fit the model.
            MissingExtraError: a package is missing.
        """
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Unnormalised log-probabilities: shape (batch, classes) of images, (batch, seq, vocab) of text."""
        found: Tensor = model(batch[0])
        return found

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of a batch, over images or over all tokens, in nats: a scalar tensor."""
        return self.loss_and_hits(model, batch)[0]

    def loss_and_hits(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Mean loss and, with `has_accuracy`, the number of right answers."""
        from torch.nn.functional import cross_entropy

        logits, targets = _wide(self.logits(model, batch)), batch[1]
        hits = (logits.argmax(-1) == targets).sum() if self.has_accuracy else None
        return cross_entropy(logits.flatten(0, -2), targets.flatten()), hits

    def elementwise(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of every prediction and the entropy of the model's distribution there, both in nats.

        The loss is -log p(target) and the entropy -sum_k p_k log p_k, where p is the softmax of the logits. The
        entropy is what the loss would be on average if targets were drawn from p: a model that is calibrated has equal
        means of both, which is the null of reading one as the other.

        Returns:
            Two tensors of the shape of the targets: (batch,) of images, (batch, seq) of text.
        """
        log_p = _wide(self.logits(model, batch)).log_softmax(-1)
        losses = -log_p.gather(-1, batch[1].unsqueeze(-1)).squeeze(-1)
        # A class of probability 0 adds nothing, but 0 * -inf is nan.
        return losses, -(log_p.exp() * log_p.clamp(min=LEAST)).sum(-1)


def _wide(logits: Tensor) -> Tensor:
    """At least float32: the softmax of a half-precision forward pass is not taken in half precision."""
    import torch

    return logits if logits.dtype == torch.float64 else logits.float()


def scaled(widths: Sequence[int], factor: float, *, unit: int = 1, why: str = "whole numbers") -> tuple[int, ...]:
    """Hidden widths times `factor`, exactly.

    Args:
        widths: at factor 1; multiples of `unit`.
        factor: above 0.
        unit: what each width must be a multiple of, e.g. the number of heads.
        why: says so in the error.

    Raises:
        InputError: a width that is not a positive multiple of `unit`; the message gives the factors that are allowed.

    >>> scaled((16, 64), 0.5)
    (8, 32)
    """
    check_number("width_factor", factor, low=0.0, open_low=True, what="times the hidden widths")
    found = [width * factor for width in widths]
    if any(abs(w / unit - round(w / unit)) > 1e-9 * w for w in found):
        # factor * width is a multiple of the unit for every width just where factor * gcd(widths) is.
        step = Fraction(unit, math.gcd(*widths))
        told = ", ".join(f"{w:g}" for w in found)
        raise InputError(
            f"width_factor {factor:g} makes the hidden widths {told}; they must be {why}: choose a multiple of {step}"
        )
    return tuple(round(w) for w in found)
