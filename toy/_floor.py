"""The valley floor where no formula gives it: the minimum over the hill coordinates, by Newton's method on a batch."""

from __future__ import annotations

import numpy as np

from .._typing import FloatArray
from ._loss import Loss

_NEWTON_STEPS, _STATES_AT_ONCE = 100, 8192


def minimise_hills(loss: Loss, w: FloatArray) -> FloatArray:
    """The minimum over the hill coordinates nearest to each state, river coordinates fixed; (..., dim) -> (..., dim).

    Newton's method with the Hessian made positive (absolute eigenvalues) and steps halved until the loss falls. Rows
    whose gradient across the river does not vanish are nan.
    """
    states = np.array(w, dtype=np.float64).reshape(-1, loss.dim)
    for first in range(0, len(states), _STATES_AT_ONCE):
        _minimise(loss, states[first : first + _STATES_AT_ONCE])
    return states.reshape(np.shape(w))


def _minimise(loss: Loss, states: FloatArray) -> None:
    """Move states (N, dim) to the minima."""
    k = loss.river_dim
    with np.errstate(all="ignore"):
        first = np.linalg.norm(loss.gradient(states)[:, k:], axis=1)
        active = np.isfinite(states).all(axis=1) & np.isfinite(first)
        for _ in range(_NEWTON_STEPS):
            if not active.any():
                break
            here = states[active]
            there = _newton_step(loss, here)
            states[active] = there
            active[active] = np.linalg.norm(there - here, axis=1) > 1e-15 * (1.0 + np.linalg.norm(here, axis=1))
        left = np.linalg.norm(loss.gradient(states)[:, k:], axis=1)
        scale = np.linalg.norm(loss.hessian(states)[:, k:, k:], axis=(1, 2)) * np.linalg.norm(states, axis=1)
        states[~(left <= 1e-8 * (first + scale))] = np.nan


def _newton_step(loss: Loss, w: FloatArray) -> FloatArray:
    k = loss.river_dim
    curvature, basis = np.linalg.eigh(np.nan_to_num(loss.hessian(w)[:, k:, k:]))
    across = np.einsum("nij,ni->nj", basis, loss.gradient(w)[:, k:])
    smallest = 1e-12 * np.abs(curvature).max(axis=1, keepdims=True) + 1e-300
    step = np.zeros_like(w)
    step[:, k:] = -np.einsum("nij,nj->ni", basis, across / np.maximum(np.abs(curvature), smallest))
    before, size = loss.value(w), np.ones((len(w), 1))
    for _ in range(40):
        worse = ~(loss.value(w + size * step) <= before)
        if not worse.any():
            break
        size[worse] *= 0.5
    size[worse] = 0.0
    return w + size * step
