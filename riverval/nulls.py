"""What a diagnostic reads where nothing is there: the null beside each measure of a trajectory.

Every measure of a path is a function of the Gram matrix of its states, so its null is the same function of the Gram
matrix of a null path: of a random walk (`walk_gram`) or an Ornstein-Uhlenbeck process (`ou_gram`). In high dimension
increments become orthogonal and the Gram matrix is its expectation; in few dimensions `simulate` draws it and gives the
standard error. Directions and gradients have nulls of their own (`riverval.null_directions`, all named here too), most
of them in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._arrays import check_rates, check_states, check_values
from ._checks import LARGEST, check_int, check_number
from ._typing import ArrayLike, FloatArray
from .errors import InputError
from .null_directions import (
    RandomDirectionCurvature,
    RandomSubspace,
    Simulated,
    Spread,
    _half_wishart,
    _summary,
    effective_dimension,
    random_cosines,
    random_slope,
    same_batch_slopes,
    shuffled_cosine,
    simulate_shuffled,
)
from .pca import shares_of_gram

__all__ = [
    "RandomDirectionCurvature", "RandomSubspace", "Simulated", "Spread", "cloud_shares", "drift_share_null",
    "effective_dimension", "ou_gram", "ou_shares", "random_cosines", "random_slope", "random_walk_shares",
    "same_batch_slopes", "shuffled_cosine", "simulate", "simulate_shuffled", "walk_gram", "walk_shares",
]  # fmt: skip


# --- paths: expected Gram matrices and their shares ------------------------------------------------------------------
def walk_gram(lr: ArrayLike, states: ArrayLike, *, momentum: float = 0.0) -> FloatArray:
    """Expected Gram matrix of a random walk with the run's own rates: pure noise, no loss, about the first state.

    Update t adds -lr[t] v_t with v_t = momentum v_{t-1} + xi_t and independent isotropic xi_t of size 1:
    K_ij = sum_t c_i(t) c_j(t), c_i(t) = sum_{s = t}^{i-1} lr[s] momentum^(s-t). Without momentum K_ij is
    sum_{t < min(i, j)} lr[t]^2. Source: derived (experiments with heavy-ball SGD as in torch.optim.SGD).

    Args:
        lr: rate of each update, shape (T,).
        states: increasing states, each in 0..T (state t is the one after t updates); shape (n,), n >= 2.
        momentum: of the heavy ball, in [0, 1). The moments start at 0 with update 0.

    Returns:
        shape (n, n).

    Raises:
        InputError: states out of range or not increasing, fewer than two, or rates that are not finite.
    """
    rates, beta1 = check_rates(lr), check_number("momentum", momentum, low=0.0, high=1 - 1e-9)
    t = check_states(states, len(rates))
    if len(t) < 2:
        raise InputError(f"a path needs at least two states, got {t.tolist()}")
    if beta1 == 0.0:
        clock = np.concatenate([[0.0], np.cumsum(rates**2)])[t]
        clock -= clock[0]
        walk: FloatArray = np.minimum.outer(clock, clock)
        return walk
    gram, reach = np.zeros((len(t), len(t))), np.zeros(len(t))
    rows: list[FloatArray] = []
    for s in range(int(t[-1]) - 1, -1, -1):
        reach = beta1 * reach + rates[s] * (s < t)
        rows.append(reach - reach[0])  # about the first state
        if len(rows) == 512 or s == 0:
            gram += np.transpose(rows) @ np.asarray(rows)
            rows = []
    return gram


def random_walk_shares(lr: ArrayLike, states: ArrayLike, *, momentum: float = 0.0) -> FloatArray:
    """The null of `pca_shares`: a random walk in high dimension with the run's own rates, seen at the same states.

    Update t adds lr[t] xi_t with independent isotropic xi_t. In high dimension the Gram matrix is its expectation up to
    a factor, `walk_gram` (distinct increments become orthogonal), whose centred eigenvalues give the shares. For a
    constant rate and many samples the first tends to 6/pi^2, the k-th to 6/(pi k)^2.

    Args:
        lr, states, momentum: as in `walk_gram`.

    Returns:
        n - 1 shares, largest first.

    Raises:
        InputError: as in `walk_gram`, or no rate between the states.

    >>> random_walk_shares(np.ones(1000), np.arange(1001))[:2].round(3).tolist()
    [0.608, 0.152]
    """
    return shares_of_gram(walk_gram(lr, states, momentum=momentum))


def walk_shares(count: int) -> FloatArray:
    """Shares of n evenly spaced states of a random walk at a constant rate, in high dimension, in closed form.

    The centred Gram matrix is the pseudoinverse of the Laplacian of a path of n points, so
    lambda_k = 1 / (4 sin^2(pi k / 2n)), and share_k = 3 / (2 (n^2 - 1) sin^2(pi k / 2n)) -> 6 / (pi k)^2.
    Source: derived; the limit is known for PCA of random walks (arXiv:1806.08805).

    Args:
        count: n >= 2.

    Returns:
        n - 1 shares, largest first.

    >>> walk_shares(3).round(6).tolist()
    [0.75, 0.25]
    """
    n = check_int("count", count, low=2, what="states")
    shares: FloatArray = 1.5 / ((n**2 - 1) * np.sin(np.pi * np.arange(1, n) / (2 * n)) ** 2)
    return shares


def ou_gram(times: ArrayLike, rate: float, *, stationary: bool = True) -> FloatArray:
    """Expected Gram matrix of an Ornstein-Uhlenbeck process, K_ij = exp(-rate abs(t_i - t_j)) where it is stationary.

    A run that rattles in a valley without going anywhere; rate is lr x curvature per update. Started at the centre at
    time 0 instead, K_ij = exp(-rate abs(t_i - t_j)) - exp(-rate (t_i + t_j)). Source: Uhlenbeck & Ornstein 1930.

    Args:
        times: of the samples, shape (n,), increasing; in updates if rate is per update.
        rate: of return to the centre, > 0.
        stationary: whether the process has run for long, or starts at the centre at time 0.

    Raises:
        InputError: times that do not increase (or are below 0 after a start at 0), or a rate that is not above 0.
    """
    t = check_values("times", times, low=-LARGEST if stationary else 0.0, what="of the samples")
    if t.ndim != 1 or len(t) < 2 or np.any(np.diff(t) <= 0):
        raise InputError(f"times must be at least two increasing numbers, got {times!r}")
    theta = check_number("rate", rate, low=0.0, open_low=True, what="return to the centre per unit of time")
    gram: FloatArray = np.exp(-theta * np.abs(np.subtract.outer(t, t)))
    return gram if stationary else gram - np.exp(-theta * np.add.outer(t, t))


def ou_shares(times: ArrayLike, rate: float, *, stationary: bool = True) -> FloatArray:
    """Shares of the principal components of an Ornstein-Uhlenbeck process in high dimension: arguments of `ou_gram`.

    >>> [ou_shares(np.arange(n), 0.05)[0].round(2).item() for n in (10, 20, 50, 200)]
    [0.58, 0.53, 0.42, 0.19]
    >>> [ou_shares(np.arange(1, n + 1), 0.05, stationary=False)[0].round(2).item() for n in (10, 20, 50, 200)]
    [0.54, 0.47, 0.38, 0.19]
    """
    return shares_of_gram(ou_gram(times, rate, stationary=stationary))


def cloud_shares(count: int) -> FloatArray:
    """Shares of n independent isotropic snapshots in high dimension: 1/(n - 1) each (orthogonal, of one length)."""
    n = check_int("count", count, low=2, what="snapshots")
    return np.full(n - 1, 1.0 / (n - 1))


def simulate(
    measure: Callable[[FloatArray], Any], gram: ArrayLike, dim: int, *, rng: np.random.Generator, draws: int = 200
) -> Simulated:
    """A measure of a null path in `dim` dimensions, where the Gram matrix is not yet its expectation.

    The path is Gaussian, isotropic, of the expected Gram matrix K = A A': its Gram matrix is A W A' / dim with W of the
    Wishart distribution, drawn by Bartlett's decomposition at a cost that does not depend on dim. Noise of unequal
    variances acts like `effective_dimension` of them. Source: Bartlett 1933.

    Args:
        measure: of a Gram matrix, such as `shares_of_gram` or ``lambda g: path(g).tortuosity``; numbers of one shape.
        gram: expected, shape (n, n), symmetric, not negative (`walk_gram`, `ou_gram`).
        dim: dimensions, >= 1; an effective one, rounded.
        rng: source of the draws.
        draws: number of paths, >= 2.

    Returns:
        mean over the draws, its standard error (sd / sqrt(draws)) and the standard deviation, each of the measure's
        shape.

    Raises:
        InputError: a matrix that is no Gram matrix, or numbers out of range.
    """
    k = check_values("gram", gram)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or not np.allclose(k, k.T):
        raise InputError(f"gram must be a symmetric matrix, got the shape {k.shape}")
    d, draws = check_int("dim", dim, low=1), check_int("draws", draws, low=2)
    values, vectors = np.linalg.eigh(k)
    if values[0] < -1e-9 * max(values[-1], 0.0):
        raise InputError(f"gram must have no negative eigenvalue, got {values[0]:.3g}")
    root = vectors * np.sqrt(np.clip(values, 0.0, None) / d)
    found = []
    for _ in range(draws):
        half = root @ _half_wishart(len(k), d, rng)
        found.append(np.asarray(measure(half @ half.T), dtype=np.float64))
    return _summary(found)


def drift_share_null(count: int, *, momentum: float = 0.0) -> float:
    """The null of `drift_share`: expected ||mean step||^2 over expected mean ||step||^2, of n steps of pure noise.

    Independent steps of mean 0 give 1/n whatever their sizes (so whatever the rates): E ||sum u||^2 = sum E ||u||^2.
    Under heavy-ball momentum b at a constant rate, stationary, consecutive updates correlate as b^k:
    (1/n) (1 + 2 sum_{k < n} (1 - k/n) b^k), about (1 + b) / ((1 - b) n): 19/n for b = 0.9. Source: derived.

    Args:
        count: n >= 1 steps; for steps of many updates each, use momentum 0.
        momentum: of the heavy ball, in [0, 1).

    >>> drift_share_null(100), round(drift_share_null(1000, momentum=0.9), 4)
    (0.01, 0.0188)
    """
    n = check_int("count", count, low=1, what="steps")
    b = check_number("momentum", momentum, low=0.0, high=1 - 1e-9)
    lags = np.arange(1, n)
    return float((1.0 + 2.0 * np.sum((1.0 - lags / n) * b**lags)) / n)
