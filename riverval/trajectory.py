"""Shape of a training trajectory from its snapshots, each measure beside its null model. numpy only.

A principal component's share of the variance means little by itself: a random walk in high dimension, which prefers no
direction at all, gives its first component 6/pi^2 = 61 percent. `random_walk_shares` is the null to print beside
`pca_shares`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ._typing import ArrayLike, FloatArray
from .errors import InputError

_CHUNK = 1 << 20  # coordinates converted to float64 at a time


def centred_gram(blocks: Iterable[ArrayLike]) -> FloatArray:
    """K_ij = <x_i - mean, x_j - mean> of n snapshots whose coordinates come in blocks.

    Blocks keep memory low: a block is all snapshots of one weight tensor, shape (n, size); K sums over them. Centring
    comes before the products, in float64, so that a small motion of a large vector is not lost to rounding.

    Args:
        blocks: arrays of shape (n, size) with the same n.

    Returns:
        K, shape (n, n), units of the parameters squared.

    Raises:
        InputError: no block, or blocks of different n.
    """
    gram: FloatArray | None = None
    for block in blocks:
        array = np.asarray(block)
        if array.ndim != 2 or (gram is not None and len(array) != len(gram)):
            wanted = "(n, size)" if gram is None else f"({len(gram)}, size)"
            raise InputError(f"a block of snapshots must have shape {wanted}, got {array.shape}")
        gram = np.zeros((len(array), len(array))) if gram is None else gram
        for first in range(0, array.shape[1], _CHUNK):
            part = array[:, first : first + _CHUNK].astype(np.float64)
            part -= part.mean(axis=0)
            gram += part @ part.T
    if gram is None:
        raise InputError("the Gram matrix needs at least one block of snapshots, got none")
    return gram


def shares_of_gram(gram: ArrayLike) -> FloatArray:
    """Shares of the variance of each principal component, from a Gram matrix of n snapshots.

    The nonzero eigenvalues of the centred Gram matrix are those of the covariance (times n), so d never enters:
    share_k = lambda_k / sum_j lambda_j.

    Args:
        gram: symmetric, shape (n, n), n >= 2; centred here, which changes nothing where it already is.

    Returns:
        n - 1 shares, largest first, summing to 1.

    Raises:
        InputError: fewer than two snapshots, values that are not finite, or snapshots that are all the same.
    """
    k = np.asarray(gram, dtype=np.float64)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or len(k) < 2:
        raise InputError(f"principal components need a square Gram matrix of at least 2 snapshots, got shape {k.shape}")
    if not np.all(np.isfinite(k)):
        raise InputError("principal components need finite snapshots, got values that are not finite")
    centred = k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()
    values = np.clip(np.linalg.eigvalsh(centred)[::-1][:-1], 0.0, None)
    if values.sum() <= 1e-14 * np.trace(np.abs(k)):
        raise InputError("principal components need snapshots that differ, got the same one throughout")
    shares: FloatArray = values / values.sum()
    return shares


def pca_shares(snapshots: ArrayLike) -> FloatArray:
    """Shares of the variance of the principal components of `snapshots`, shape (n, dim): n - 1 values, largest first.

    Raises:
        InputError: as in `shares_of_gram`.

    >>> pca_shares([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]).round(6).tolist()
    [1.0, 0.0]
    """
    return shares_of_gram(centred_gram([snapshots]))


def random_walk_shares(lr: ArrayLike, states: ArrayLike) -> FloatArray:
    """The null of `pca_shares`: a random walk in high dimension with the run's own rates, seen at the same states.

    Update t adds lr[t] xi_t with independent isotropic xi_t. In high dimension the Gram matrix is its expectation up to
    a factor, K_ij = sum_{t < min(i, j)} lr[t]^2 (distinct increments become orthogonal), whose centred eigenvalues give
    the shares. For a constant rate and many samples the first tends to 6/pi^2, the k-th to 6/(pi k)^2.

    Args:
        lr: rate of each update, shape (T,).
        states: increasing states, each in 0..T (state t is the one after t updates); shape (n,), n >= 2.

    Returns:
        n - 1 shares, largest first.

    Raises:
        InputError: states out of range or not increasing, or no rate between them.

    >>> random_walk_shares(np.ones(1000), np.arange(1001))[:2].round(3).tolist()
    [0.608, 0.152]
    """
    rates = np.asarray(lr, dtype=np.float64)
    t = np.asarray(states)
    if t.ndim != 1 or len(t) < 2 or np.any(np.diff(t) <= 0) or t[0] < 0 or t[-1] > len(rates):
        raise InputError(f"states must be at least two increasing whole numbers in 0..{len(rates)}, got {t.tolist()}")
    clock = np.concatenate([[0.0], np.cumsum(rates**2)])[t]
    clock -= clock[0]
    return shares_of_gram(np.minimum.outer(clock, clock))
