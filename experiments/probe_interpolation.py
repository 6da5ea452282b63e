"""The training loss on the segments between states: 80% and 100% of the stable phase, start and end of the cooldown."""

from __future__ import annotations

import numpy as np

from ..landscape import PathLosses, mean_and_error, path_losses
from ..valley import midpoint, quadratic_line
from .probes import Context, Values, register

PARTS = 8  # batches, at least, over which the errors are taken
_PAIRS = {"stable": "late stable", "cooldown": "cooldown"}


@register("interpolation")
def interpolation(context: Context) -> Values:
    """Loss of (1 - alpha) x_a + alpha x_b for both pairs of states (arXiv:2601.09000, Fig. 2).

    All places are evaluated on the same batches, so differences between places are paired and their errors are those
    of paired differences. dip = (L(0) + L(1)) / 2 - L(1/2); rise = the largest L(b) - L(a) over places a < b, 0 where
    the loss only falls. The rise is the largest of many noisy differences, so on average too large.

    Null of the line and of the dip: the quadratic with the same ends and middle, whose d'Hd is 8 dip; in any convex
    quadratic the segment between two noisy stationary iterates is a convex valley with dip d'Hd / 8 > 0 (derived).
    Null of the rise: 0.
    """
    kept = context.states
    pairs = {pair: (kept[w][0], kept[w][-1]) for pair, w in _PAIRS.items() if len(kept.get(w, ())) > 1}
    context.lacking("interpolation", pairs)
    loss = context.train_loss(context.config.line_examples, parts=PARTS)
    alphas = np.union1d(np.linspace(0.0, 1.0, context.config.alphas), [0.5])
    rows = [_line(path_losses(loss, [context.at(state) for state in pair], alphas)) for pair in pairs.values()]
    starts, stops = zip(*pairs.values(), strict=True)
    return {
        "pair": list(pairs), "alpha": alphas, "interpolation_start": starts, "interpolation_stop": stops,
        "interpolation_batches": len(loss.batches),
        **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
    }  # fmt: skip


def _line(path: PathLosses) -> Values:
    middle, loss = midpoint(path), path.loss
    rise, error = largest_rise(path)
    return {
        "interpolation_loss": loss,
        "interpolation_loss_error": path.error,
        "interpolation_null": quadratic_line(path.alpha, loss[0], loss[-1], -8.0 * middle.estimate),
        "interpolation_dip": -middle.estimate,
        "interpolation_dip_error": middle.error,
        "interpolation_rise": rise,
        "interpolation_rise_error": error,
    }


def largest_rise(path: PathLosses) -> tuple[float, float]:
    """The largest L(b) - L(a) over places a <= b, and the standard error over batches of that paired difference.

    A line that only falls gives 0, with the error of its smallest step: how well that is known.
    """
    loss = path.loss
    rises = np.where(np.tri(len(loss), k=-1).T > 0, loss[None, :] - loss[:, None], -np.inf)
    a, b = np.unravel_index(int(np.argmax(rises)), rises.shape)
    _, error = mean_and_error(path.batch_losses[:, b] - path.batch_losses[:, a], path.weights)
    return max(float(rises[a, b]), 0.0), float(error)
