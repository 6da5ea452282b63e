"""Lines through the loss landscape. Works on any vectors that can be added and scaled: numpy arrays or torch tensors.

The loss is a function of a parameter vector (`riverval.hessian.LossOnBatches` makes one of a torch model without
touching it), so nothing here can change a model.

Read a line with care: in any convex quadratic the segment between two noisy stationary iterates is a convex valley.
What sets a river apart is progress along flat directions at unchanged noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._typing import ArrayLike, FloatArray
from .errors import InputError


def line_losses(loss: Callable[[Any], float], start: Any, stop: Any, alphas: ArrayLike) -> FloatArray:
    """L((1 - alpha) start + alpha stop) for each alpha.

    Args:
        loss: takes one parameter vector, gives the loss.
        start, stop: vectors of one shape (dim,); never written to. At alpha 0 and 1 the ends themselves are evaluated,
            without rounding.
        alphas: places on the line, any shape; outside [0, 1] the line is extended.

    Returns:
        The losses, float64 in the shape of `alphas`, in the units of `loss`.

    Raises:
        InputError: the ends differ in shape, or an alpha is not finite.

    >>> line_losses(lambda w: float(w @ w), np.array([-1.0]), np.array([1.0]), [0.0, 0.5, 1.0]).tolist()
    [1.0, 0.0, 1.0]
    """
    places = np.asarray(alphas, dtype=np.float64)
    if tuple(start.shape) != tuple(stop.shape):
        raise InputError(f"the ends of a line must have one shape, got {tuple(start.shape)} and {tuple(stop.shape)}")
    if not np.all(np.isfinite(places)):
        raise InputError("alphas must be finite")
    values = [float(loss(_between(start, stop, float(a)))) for a in places.flat]
    return np.array(values, dtype=np.float64).reshape(places.shape)


def _between(start: Any, stop: Any, alpha: float) -> Any:
    if alpha in (0.0, 1.0):
        return stop if alpha else start
    return (1.0 - alpha) * start + alpha * stop
