"""A run whose every measure is known: least squares, trained by AdamW or SGD, with the dense Hessian beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from riverval.experiments.probes import Context
from riverval.experiments.snapshots import SnapshotPlan, Snapshots
from riverval.schedules import make_schedule

DIM, EXAMPLES, STEPS = 12, 240, 120


def loss(model: Any, batch: Any) -> Any:
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()


class Rows:
    """Training data: the first rows, in order."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.x = torch.randn(EXAMPLES, DIM, generator=rng, dtype=torch.float64)
        self.x *= torch.logspace(0.3, -1.0, DIM, dtype=torch.float64)
        self.y = self.x.sum(1) + 0.5 * torch.randn(EXAMPLES, generator=rng, dtype=torch.float64)

    def fixed(self, part: str, examples: int, per_batch: int) -> list[tuple[Any, Any]]:
        assert part == "train"
        ends = range(0, examples, per_batch)
        return [(self.x[a : min(a + per_batch, examples)], self.y[a : min(a + per_batch, examples)]) for a in ends]

    def hessian(self, examples: int) -> Any:
        return (self.x[:examples].T @ self.x[:examples] / examples).numpy()

    def gradient(self, w: Any, examples: int) -> Any:
        x, y = self.x[:examples].numpy(), self.y[:examples].numpy()
        return x.T @ (x @ w - y) / examples

    def loss(self, w: Any, examples: int) -> float:
        x, y = self.x[:examples].numpy(), self.y[:examples].numpy()
        return float(0.5 * np.mean((x @ w - y) ** 2))


def config(decay: str = "wsd", *, schedule: dict[str, Any] | None = None, **changes: Any) -> Any:
    """What probes and snapshots read of a config."""
    options = {"warmup": 6, **({"cooldown": 0.3} if decay == "wsd" else {}), **(schedule or {})}
    plan = make_schedule(decay, peak_lr=0.05, steps=STEPS, **options)
    known = {
        "plan": plan, "architecture": SimpleNamespace(loss=loss, data_kind="images"), "seed": 0, "batch": 8,
        "micro_batch": None, "optimizer": "adamw", "betas": (0.9, 0.95), "eps": 1e-8, "momentum": 0.9,
        "parameters": DIM, "keep": "float32", "sketch_width": 64, "snapshots": 8, "direction_snapshots": 6,
        "hessian_points": 3, "descent_points": 7, "alphas": 8, "line_examples": 120, "hessian_examples": 100,
        "hessian_tol": 1e-9, "descent_examples": 160, "probes": None,
    }  # fmt: skip
    return SimpleNamespace(**{**known, **changes})


class Run:
    """A trained run: its states as arrays, its optimizer's preconditioner at each, and the context of its probes."""

    def __init__(self, folder: Any, c: Any) -> None:
        self.data, self.config = Rows(), c
        self.model = torch.nn.Linear(DIM, 1, bias=False).double()
        self.snapshots = Snapshots(folder, SnapshotPlan.of(c))
        self.weights: list[Any] = []
        self.moments: list[Any] = []
        with torch.no_grad():
            self.model.weight.copy_(torch.linspace(-2, 2, DIM))
        if c.optimizer == "sgd":
            self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=1.0, momentum=c.momentum)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1.0, betas=c.betas, weight_decay=0.0)
        rng = np.random.default_rng(1)
        for t in range(STEPS + 1):
            self._seen(t)
            if t < STEPS:
                rows = rng.choice(EXAMPLES, c.batch, replace=False)
                self.optimizer.param_groups[0]["lr"] = float(c.plan.lr(t))
                self.optimizer.zero_grad()
                loss(self.model, (self.data.x[rows], self.data.y[rows])).backward()
                self.optimizer.step()
        self.context = Context(c, self.model, self.data, self.snapshots, lambda line: None)  # type: ignore[arg-type]

    def _seen(self, t: int) -> None:
        self.snapshots.offer(t, self.model, self.optimizer)
        self.weights.append(self.model.weight.detach().clone().numpy()[0])
        state = self.optimizer.state.get(self.model.weight, {})
        if "exp_avg_sq" in state:
            corrected = state["exp_avg_sq"] / (1 - self.config.betas[1] ** t)
            self.moments.append((corrected.sqrt() + 1e-8).numpy()[0])
        else:
            self.moments.append(np.ones(DIM))

    def window(self, name: str) -> Any:
        """The states of a window, shape (n, DIM)."""
        return np.array([self.weights[t] for t in self.snapshots.plan.states[name]])


def first_component(x: Any) -> Any:
    """The first principal component of snapshots in rows."""
    return np.linalg.svd(x - x.mean(0), full_matrices=False)[2][0]
