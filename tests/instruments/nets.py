"""Small networks in float64 on which every curvature product has a dense matrix to be held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from riverval.hessian import LossOnBatches, SplitLoss, supervised

VOCABULARY = 5


@dataclass(frozen=True)
class Problem:
    """A model, its loss in two steps, its batches and the number of examples of each."""

    model: nn.Module
    loss: SplitLoss
    batches: list[tuple[Tensor, Tensor]]

    def on_batches(self, **options: Any) -> LossOnBatches:
        """Its loss, weighted by examples."""
        weights = [float(len(x)) for x, _ in self.batches]
        return LossOnBatches(self.model, self.loss, self.batches, weights=weights, **options)


def _images(*counts: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 1, 8, 8).double(), torch.randint(3, (n,))) for n in counts]


def _tokens(*counts: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randint(VOCABULARY, (n, 4)), torch.randint(VOCABULARY, (n, 4))) for n in counts]


def next_token_loss() -> SplitLoss:
    """Mean cross-entropy over all tokens; an example is a sequence."""

    def each(logits: Tensor, batch: Any) -> Tensor:
        return cross_entropy(logits.mT, batch[1], reduction="none").mean(1)

    return SplitLoss(
        lambda model, batch: model(batch[0]),
        lambda logits, batch: cross_entropy(logits.flatten(0, 1), batch[1].flatten()),
        each,
    )


def mlp() -> Problem:
    """A smooth one."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(n, 5).double(), torch.randint(3, (n,))) for n in (7, 4)]
    return Problem(model, supervised(cross_entropy), batches)


def cnn() -> Problem:
    """With pooling, batch norm and dropout."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(),
        nn.Linear(48, 3),
    ).double()  # fmt: skip
    model(torch.randn(64, 1, 8, 8).double())  # running statistics other than the initial ones
    return Problem(model, supervised(cross_entropy), _images(6, 5))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


def tied() -> Problem:
    """A language model whose embedding is its head."""
    return Problem(_Tied().double(), next_token_loss(), _tokens(3, 2))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.mix = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.mix(self.norm(x)).chunk(3, dim=-1))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + mixed.transpose(1, 2).flatten(2))


def attention() -> Problem:
    """Fused attention, which has no second derivative of its own."""
    return Problem(_Attention().double(), next_token_loss(), _tokens(3, 2))


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.again = self.inside
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.again(self.frozen(torch.tanh(self.inside(x))))))


def shared() -> Problem:
    """A layer used twice and a frozen one."""
    batches = [(torch.randn(n, 4).double(), torch.randint(3, (n,))) for n in (4, 4)]
    return Problem(_Shared().double(), supervised(cross_entropy), batches)


ZOO: dict[str, Callable[[], Problem]] = {f.__name__: f for f in (mlp, cnn, tied, attention, shared)}


def make(name: str, seed: int = 0) -> Problem:
    """One of the zoo; the same seed gives the same bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ZOO[name]()


def set_flat(model: nn.Module, names: tuple[str, ...], flat: Tensor) -> None:
    """Write a vector into the named parameters, by a way of its own."""
    place = 0
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            p = named[name]
            p.copy_(flat[place : place + p.numel()].view_as(p))
            place += p.numel()


def value_of(loss: LossOnBatches) -> Callable[[Tensor], Tensor]:
    """L(w) as a differentiable function, for dense derivatives."""

    def value(w: Tensor) -> Tensor:
        return sum(s * loss.part(w, b) for b, s in zip(loss.batches, loss.weights, strict=True))

    return value


def dense_hessian(loss: LossOnBatches, at: Tensor | None = None) -> Tensor:
    """The Hessian by autograd, row by row."""
    return torch.autograd.functional.hessian(value_of(loss), loss.point() if at is None else at)


def dense_ggn(problem: Problem, loss: LossOnBatches) -> Tensor:
    """J^T H_z J from dense Jacobians, with the model's own parameters replaced by functional_call alone."""
    total = torch.zeros(loss.dim, loss.dim).double()
    for batch, weight in zip(loss.batches, loss.weights, strict=True):

        def outputs(w: Tensor, batch: Any = batch) -> Tensor:
            return torch.func.functional_call(problem.model, loss.pieces(w), (batch[0],))

        z = outputs(loss.point()).detach()
        jacobian = torch.autograd.functional.jacobian(outputs, loss.point()).reshape(-1, loss.dim)
        curvature = torch.autograd.functional.hessian(lambda z, batch=batch: problem.loss.loss(z, batch), z)
        total += weight * jacobian.T @ curvature.reshape(len(jacobian), -1) @ jacobian
    return total


def dense_fisher(problem: Problem, loss: LossOnBatches) -> Tensor:
    """(1/N) sum of g g^T by a loop over examples, each alone in its batch."""
    parameters = dict(problem.model.named_parameters())
    total = torch.zeros(loss.dim, loss.dim).double()
    for (x, y), weight in zip(loss.batches, loss.weights, strict=True):
        for n in range(len(x)):
            value = problem.loss(problem.model, (x[n : n + 1], y[n : n + 1]))
            gradient = torch.autograd.grad(value, [parameters[name] for name in loss.names])
            g = torch.cat([part.reshape(-1) for part in gradient])
            total += weight / len(x) * torch.outer(g, g)
    return total
