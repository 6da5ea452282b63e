"""Measurements on the finished run, from its snapshots: the loss between states, sharpness, principal components.

Each probe is a function of a `Context` that returns stored variables by name and raises `Skipped` where the run lacks
what it needs. A new probe is a new function with `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from .._registry import registrar
from ..errors import RivervalError
from ..hessian import HessianOperator, LossOnBatches
from ..landscape import line_losses
from ..schema import build
from ..spectra import top_eigenvalue
from ..trajectory import centred_gram, random_walk_shares, shares_of_gram
from .config import RunConfig
from .data import Data
from .seeds import Stream, generator
from .snapshots import Snapshots

Values = dict[str, Any]
PROBES: dict[str, Callable[[Context], Values]] = {}


class Skipped(RivervalError):  # noqa: N818
    """The run lacks what the probe needs; the message says what."""


@dataclass(frozen=True)
class Context:
    """What a probe may look at. `notes` takes what the summary should say."""

    config: RunConfig
    model: nn.Module
    data: Data
    snapshots: Snapshots
    tell: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    @property
    def states(self) -> dict[str, list[int]]:
        """Window -> states that were kept; without any, the probe is skipped."""
        if not self.config.snapshots:
            raise Skipped("no snapshots were kept")
        return self.snapshots.states

    def train_loss(self, examples: int) -> LossOnBatches:
        """The training loss on a fixed subset, as a function of the parameters."""
        batches = self.data.fixed("train", examples)
        return LossOnBatches(self.model, self.config.architecture.loss, batches, weights=[len(x) for x, _ in batches])

    def lacking(self, probe: str, windows: Mapping[str, Any]) -> None:
        """Note which windows the schedule does not have; skip the probe if it has none."""
        for name in ("stable", "cooldown"):
            if name not in windows:
                self.notes.append(f"{probe}: no {name} window to look at")
        if not windows:
            raise Skipped("no window with snapshots")


# A run makes them in this order.
register = registrar(PROBES)


def measure(context: Context) -> Iterator[xr.Dataset]:
    """Every probe's variables as a Dataset. One that fails or is skipped leaves a note and does not stop the others."""
    for name, probe in PROBES.items():
        context.tell(f"measuring {name}")
        try:
            yield build(probe(context), {}, "real")
        except Skipped as reason:
            context.notes.append(f"{name}: skipped, {reason}")
        except Exception as error:  # whatever a probe dies of (memory, a solver), the training is not lost with it
            context.notes.append(f"{name}: failed, {type(error).__name__}: {error}")


@register("interpolation")
def interpolation(context: Context) -> Values:
    """Training loss on the segments from 80% to 100% of the stable phase and from start to end of the cooldown."""
    pairs = {name: (states[0], states[-1]) for name, states in context.states.items()}
    context.lacking("interpolation", pairs)
    loss = context.train_loss(context.config.line_examples)
    alphas = np.linspace(0.0, 1.0, context.config.alphas)
    lines = []
    for pair in pairs.values():
        start, stop = (context.snapshots.load(state, context.model) for state in pair)
        lines.append(line_losses(loss, start, stop, alphas))
    starts, stops = zip(*pairs.values(), strict=True)
    return {
        "pair": list(pairs), "alpha": alphas, "interpolation_loss": np.stack(lines),
        "interpolation_start": starts, "interpolation_stop": stops,
    }  # fmt: skip


@register("sharpness")
def sharpness(context: Context) -> Values:
    """Largest Hessian eigenvalue of the training loss at evenly spaced snapshots of the cooldown, on a fixed subset."""
    kept = context.states.get("cooldown")
    if kept is None:
        raise Skipped("no cooldown window to look at")
    config = context.config
    places = np.unique(np.linspace(0, len(kept) - 1, config.hessian_points).round().astype(int))
    states = [kept[k] for k in places]
    loss = context.train_loss(config.hessian_examples)
    found = []
    for state in states:
        operator = HessianOperator(loss, context.snapshots.load(state, context.model))
        # The same start everywhere, so that differences are the points' and not the start's.
        rng = generator(config.seed, Stream.PROBES)
        found.append(top_eigenvalue(operator.as_linear_operator(), rng=rng, tol=config.hessian_tol))
        context.tell(f"measuring sharpness: {found[-1].value:.4g} at state {state}")
    rates = config.plan.values()
    return {
        "probe_step": states,
        "probe_lr": [rates[state] if state < len(rates) else 0.0 for state in states],
        "hessian_top": [pair.value for pair in found],
        "hessian_top_residual": [pair.residual for pair in found],
        "hessian_products": [pair.products for pair in found],
    }


@register("pca")
def pca(context: Context) -> Values:
    """Shares of the principal components of each window's snapshots, beside a random walk's with the same rates."""
    windows = {name: states for name, states in context.states.items() if len(states) >= 3}
    context.lacking("pca", windows)
    components = max(map(len, windows.values())) - 1
    shares, nulls = (np.full((len(windows), components), np.nan) for _ in range(2))
    for row, states in enumerate(windows.values()):
        n = len(states) - 1
        shares[row, :n] = shares_of_gram(centred_gram(context.snapshots.blocks(states, context.model)))
        nulls[row, :n] = random_walk_shares(context.config.plan.values(), states)
    return {
        "window": list(windows), "component": np.arange(components), "pca_share": shares, "pca_null": nulls,
        "pca_snapshots": [len(states) for states in windows.values()],
    }  # fmt: skip
