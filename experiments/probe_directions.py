"""Is the cooldown's direction sharper than the stable phase's? ||H v|| of the first components at the turn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .._typing import FloatArray, IntArray
from ..errors import InputError
from ..hessian import HessianOperator
from ..pca import pca_of_gram
from .probes import Context, Skipped, Values, register
from .snapshot_plan import COMPARED

_PHASES = {"late stable": "stable", "early cooldown": "cooldown", "matched stable": "stable"}
_LEAST = 3  # snapshots of a window
_NULL_VECTORS = 4
RESAMPLES = 400
_INTERVAL = (0.025, 0.975)
_CHUNK = 1 << 20  # parameters taken to float64 at a time


@dataclass(frozen=True)
class Products:
    """What H does to a window of n centred snapshots X, shape (n, dim): inner products, all of shape (n, n).

    Attributes:
        gram: X X'.
        curvature: X H X'.
        square: (H X')' (H X') = X H^2 X'.
    """

    gram: FloatArray
    curvature: FloatArray
    square: FloatArray

    def first(self) -> tuple[float, float]:
        """||H v|| and v'Hv for the first principal component v = X'c, c'(X X')c = 1."""
        c = pca_of_gram(self.gram).coefficients[:, 0]
        return math.sqrt(max(float(c @ self.square @ c), 0.0)), float(c @ self.curvature @ c)

    def resampled(self, chosen: IntArray) -> Products:
        """The same for snapshots drawn with replacement; no product is spent.

        They need not be centred anew: the weights c of a component add up to 0.
        """
        return Products(*(m[np.ix_(chosen, chosen)] for m in (self.gram, self.curvature, self.square)))


@register("directions")
def directions(context: Context) -> Values:
    """||H v|| at the start of the cooldown, v the first principal component of each window at the turn.

    S' = last fifth of the stable phase and D' = first fifth of the cooldown (arXiv:2601.09000, Fig. 3: larger for D'),
    and the matched window: the stretch of S' with D''s length and spacing. H is multiplied with every centred snapshot
    of a window once; any component is a combination of them, so intervals by the bootstrap over snapshots (drawn with
    replacement, 95 %) cost no further products. Snapshots of one path are not independent, so these intervals show how
    much single snapshots matter, not what another run would give.

    Null of the norms: sqrt(Tr H^2 / dim), of random directions (`direction_null`, by random signs); of v'Hv: Tr H /
    dim. Null of the ratio D' over S': 1, but a longer window averages more of the motion along sharp directions away:
    the ratio to the matched window is the one to read.
    """
    kept = context.states
    windows = {name: kept[name] for name in _PHASES if len(kept.get(name, ())) >= _LEAST}
    context.lacking("directions", {_PHASES[name]: None for name in windows})
    turn = kept["cooldown"][0] if "cooldown" in kept else kept["stable"][-1]
    if not context.snapshots.has(turn):
        raise Skipped(f"state {turn}, at the turn of the phases, was not kept")
    operator = context.hessian(context.train_loss(context.config.hessian_examples), turn)
    found = {name: products_of(context, operator, states) for name, states in windows.items()}
    rng = context.rng("directions")
    draws = {name: _bootstrap(each, rng) for name, each in found.items()}
    first = {name: each.first() for name, each in found.items()}
    squares, alongs = _random(operator, rng)
    null, spread = math.sqrt(squares.mean()), squares.std(ddof=1) / math.sqrt(len(squares))
    # The axis of all windows, so that it is the same whichever probe comes first.
    axis = [name for name in COMPARED if name in kept]
    rows = np.array([[*first[n], *_ends(draws[n])] if n in found else [math.nan] * 4 for n in axis])
    names = ("direction_norm", "direction_curvature", "direction_norm_low", "direction_norm_high")
    return {
        "window": axis, **dict(zip(names, rows.T, strict=True)),
        "direction_null": null, "direction_null_error": spread / (2 * null) if null else math.nan,
        "direction_curvature_null": alongs.mean(), **_ratios({n: first[n][0] for n in first}, draws),
    }  # fmt: skip


def _ratios(norms: dict[str, float], draws: dict[str, FloatArray]) -> Values:
    """||H v|| of the early cooldown over that of the two stable windows, with intervals."""
    values: Values = {}
    for name, below in (("direction_ratio", "late stable"), ("direction_ratio_matched", "matched stable")):
        if "early cooldown" in norms and below in norms:
            low, high = _ends(draws["early cooldown"] / draws[below])
            values |= {name: norms["early cooldown"] / norms[below], f"{name}_low": low, f"{name}_high": high}
    return values


def products_of(context: Context, operator: HessianOperator, states: list[int]) -> Products:
    """Multiply H with every centred snapshot: n - 1 products, as the last one is minus the sum of the others."""
    x = torch.stack([context.at(t) for t in states])
    x -= x[0].clone()  # first, so that the mean is one of small numbers
    x -= x.mean(0)
    y = torch.empty_like(x)
    for k in range(len(states) - 1):
        y[k] = operator @ x[k]
    y[-1] = -y[:-1].sum(0)
    return Products(_inner(x, x), _symmetric(_inner(x, y)), _inner(y, y))


def _inner(a: torch.Tensor, b: torch.Tensor) -> FloatArray:
    """A B' in float64, without a float64 copy of either."""
    total = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], _CHUNK):
        left, right = (m[:, start : start + _CHUNK].detach().cpu().double().numpy() for m in (a, b))
        total += left @ right.T
    return total


def _symmetric(matrix: FloatArray) -> FloatArray:
    half: FloatArray = (matrix + matrix.T) / 2
    return half


def _bootstrap(found: Products, rng: np.random.Generator) -> FloatArray:
    """||H v|| for `RESAMPLES` draws of the snapshots; draws of one single snapshot are drawn again."""
    n = len(found.gram)
    out: list[float] = []
    while len(out) < RESAMPLES:
        chosen = rng.integers(0, n, n)
        try:
            out.append(found.resampled(chosen).first()[0])
        except InputError:  # all the same: there is no component
            continue
    return np.array(out)


def _ends(draws: FloatArray) -> FloatArray:
    ends: FloatArray = np.quantile(draws, _INTERVAL)
    return ends


def _random(operator: HessianOperator, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """||Hz||^2 / dim and z'Hz / dim for random signs z: samples of Tr H^2 / dim and of Tr H / dim."""
    squares, alongs = np.empty(_NULL_VECTORS), np.empty(_NULL_VECTORS)
    dim = operator.shape[0]
    for k in range(_NULL_VECTORS):
        z = np.asarray(2 * rng.integers(0, 2, dim) - 1, dtype=np.float64)
        product = operator.matvec(z)
        squares[k], alongs[k] = product @ product / dim, z @ product / dim
    return squares, alongs
