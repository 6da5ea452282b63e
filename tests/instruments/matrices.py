"""Matrices of known spectrum."""

from __future__ import annotations

import numpy as np


def generator(seed=0):
    return np.random.default_rng(seed)


def rotated(values, seed=0):
    """A dense symmetric matrix with these eigenvalues."""
    q = np.linalg.qr(generator(seed).standard_normal((len(values), len(values))))[0]
    matrix = (q * np.asarray(values, dtype=float)) @ q.T
    return (matrix + matrix.T) / 2
