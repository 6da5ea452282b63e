"""Directions along and across the river at a state: eigenvectors of the Hessian, split at a gap of its eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._checks import check_int
from .._typing import FloatArray
from ..errors import InputError
from ._loss import Loss

NO_GAP = 1e-6
"""Part of the largest |eigenvalue| below which a difference of eigenvalues is no gap."""

_STEP = 1e-5  # of the difference quotient of the Hessian, relative: its error is about 1e-10


@dataclass(frozen=True)
class Frame:
    """Eigen-data of the Hessian at N states; the first `k` eigenvectors are along the river.

    Attributes:
        w: states, (N, dim).
        k: number of river directions.
        gradient: (N, dim).
        eigenvalues: of the Hessian, ascending, (N, dim).
        vectors: eigenvectors, (N, dim, dim), vectors[:, :, i] that of eigenvalue i.
    """

    loss: Loss
    w: FloatArray
    k: int
    gradient: FloatArray
    eigenvalues: FloatArray
    vectors: FloatArray

    @property
    def flat(self) -> FloatArray:
        """Directions along the river, (N, dim, k)."""
        return self.vectors[:, :, : self.k]

    @property
    def steep(self) -> FloatArray:
        """Directions across the river, (N, dim, dim - k)."""
        return self.vectors[:, :, self.k :]

    @property
    def across(self) -> FloatArray:
        """P_hill grad L: the part of the gradient across the river, (N, dim)."""
        return np.einsum("nij,nj->ni", self.steep, np.einsum("nij,ni->nj", self.steep, self.gradient))

    def has_gap(self, scale: float = 0.0) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Where flat and steep eigenvalues differ, beside the largest of them and the curvature `scale`, (N,)."""
        values = self.eigenvalues
        largest = np.maximum(np.abs(values).max(axis=1), scale)
        return values[:, self.k] - values[:, self.k - 1] > NO_GAP * largest

    @cached_property
    def third(self) -> FloatArray:
        """Third derivatives [n, i, j, l], the Hessian differentiated in direction l, (N, dim, dim, dim)."""
        n, dim = self.w.shape
        step = _STEP * (1.0 + np.linalg.norm(self.w, axis=1))
        moves = step[:, None, None] * np.eye(dim)
        ahead = self.loss.hessian(self.w[:, None, :] + moves)
        behind = self.loss.hessian(self.w[:, None, :] - moves)
        return np.moveaxis((ahead - behind) / (2.0 * step.reshape(n, 1, 1, 1)), 1, 3)

    @cached_property
    def turning(self) -> FloatArray:
        """How the flat directions turn into the steep ones as the state moves, (N, dim - k, k, dim).

        d v_j / d w_l = sum_i v_i turning[i, j, l] over steep directions i, from perturbation theory:
        turning[i, j, l] = v_i^T (dH / d w_l) v_j / (lambda_j - lambda_i).
        """
        mixed = np.einsum("nai,nabl,nbj->nijl", self.steep, self.third, self.flat, optimize=True)
        apart = self.eigenvalues[:, None, : self.k] - self.eigenvalues[:, self.k :, None]
        turning: FloatArray = mixed / apart[..., None]
        return turning

    @cached_property
    def bending(self) -> FloatArray:
        """Derivative of the gradient's steep components, (N, dim - k, dim): steep^T H, less what the turning takes.

        The turning of steep directions among themselves is left out: where the components vanish it changes nothing.
        """
        along = np.einsum("nij,ni->nj", self.flat, self.gradient)
        straight = self.eigenvalues[:, self.k :, None] * np.swapaxes(self.steep, 1, 2)
        bending: FloatArray = straight - np.einsum("nijl,nj->nil", self.turning, along)
        return bending

    @property
    def tangents(self) -> FloatArray:
        """Orthonormal directions of the river itself, (N, dim, k), at states on it.

        They are the flat eigenvectors up to the ratio of |grad| times turning to the curvature across.
        """
        return np.swapaxes(np.linalg.svd(self.bending)[2][:, -self.k :, :], 1, 2)


def frame_at(loss: Loss, w: FloatArray, k: int) -> Frame:
    """The frame at states `w` of shape (N, dim).

    Raises:
        InputError: a Hessian or gradient that is not finite.
    """
    with np.errstate(all="ignore"):
        gradient, hessian = loss.gradient(w), loss.hessian(w)
    finite = np.isfinite(gradient).all(axis=1) & np.isfinite(hessian).all(axis=(1, 2))
    if not finite.all():
        raise InputError(f"the loss has no finite derivatives at {told(loss, w[~finite][0])}; use states where it has")
    eigenvalues, vectors = np.linalg.eigh(hessian)
    return Frame(loss, w, k, gradient, eigenvalues, vectors)


def require_gap(frame: Frame, scale: float = 0.0, *, positive: bool = True) -> None:
    """Refuse states at which there is no river.

    Args:
        frame: at the states.
        scale: curvature beside which a gap must not vanish, besides the largest of the frame itself.
        positive: refuse steep directions of no positive curvature as well.

    Raises:
        InputError: saying where, and with which eigenvalues.
    """
    k, values = frame.k, frame.eigenvalues
    gap = frame.has_gap(scale)
    missing = np.flatnonzero(~(gap & (values[:, k] > 0.0)) if positive else ~gap)
    if missing.size:
        at = missing[0]
        why = "the steep one is not positive" if gap[at] else "there is no eigengap between them"
        raise InputError(
            f"no river here: at {told(frame.loss, frame.w[at])} the Hessian's eigenvalues number {k} and {k + 1} are "
            f"{values[at, k - 1]:.6g} and {values[at, k]:.6g}, {why}, so directions along and across a river of {k} "
            f"dimension{'s' * (k > 1)} cannot be told apart"
        )


def flat_count(eigenvalues: FloatArray) -> int:
    """Number of flat directions of a spectrum: those below its largest gap.

    The largest gap is where the ratio of an eigenvalue to the largest magnitude below it is largest; `eigenvalues` in
    any order, (dim,).

    Raises:
        InputError: fewer than two eigenvalues, or no eigenvalue above the magnitude of all smaller ones.

    >>> flat_count(np.array([-0.01, 0.02, 3.0, 5.0]))
    2
    """
    ordered = np.sort(np.asarray(eigenvalues, dtype=np.float64))
    if ordered.size < 2:
        raise InputError(f"a gap needs at least two eigenvalues, got {ordered.size}")
    floor = NO_GAP * np.abs(ordered).max()
    below = np.maximum(np.maximum.accumulate(np.abs(ordered[:-1])), floor)
    ratio = ordered[1:] / np.where(below > 0.0, below, 1.0)
    if not ratio.max() > 1.0:
        raise InputError(f"no eigengap: none of the eigenvalues {ordered.tolist()} stands above those before it")
    return int(np.argmax(ratio)) + 1


def river_dim(loss: Loss, k: int | None) -> int:
    """The number of river directions: `k`, or that of the loss.

    Raises:
        InputError: not from 1 to dim - 1.
    """
    return check_int("k", loss.river_dim if k is None else k, low=1, high=loss.dim - 1, what="river directions")


def told(loss: Loss, w: FloatArray) -> str:
    """A state in words."""
    return ", ".join(f"{name} = {x:.6g}" for name, x in zip(loss.coordinates, w.tolist(), strict=True))
