r"""Whether a loss is a river valley in the sense of arXiv:2410.05192, in numbers: gap, flatness, alignment, spinning.

At a state with Hessian eigenvalues lambda in ascending order, the first k along the river, gamma = lambda_{k+1} the
smallest across it, and the eigenvectors v,

- eigengap = gamma / (largest size of lambda_1 to lambda_k), at least 4;
- flatness = largest size of lambda_1 to lambda_k, at most a fourth of the smallest gamma of all states: eigengap with
  one bound for all;
- alignment = `|P_flat grad|^2 / |grad|^2`, the cos^2 of the angle between gradient and v_1 where k = 1: 1 on the river;
- spinning = `|d v_1 / d s| |grad| / gamma`, s the length along the river; for k > 1 the norm of the turning of the flat
  subspace as the state moves along the gradient's flat part. Small where the river is tracked.

The factor 4 is the paper's; the limits of alignment and spinning, of which it says near 1 and small, are chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._checks import LARGEST, check_number
from .._typing import FloatArray
from ..errors import InputError
from ._frames import Frame, frame_at, river_dim
from ._loss import Loss

NAMES = ("eigengap", "flatness", "alignment", "spinning")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What counts as holding.

    Args:
        eigengap: least ratio of the curvature across the river to that along it.
        alignment: least share of the squared gradient that is along the river, in [0, 1].
        spinning: largest turning of the flat directions, relative to gamma over the norm of the gradient.

    Raises:
        InputError: a number outside its range.
    """

    eigengap: float = 4.0
    alignment: float = 0.9
    spinning: float = 0.1

    def __post_init__(self) -> None:
        check_number("eigengap", self.eigengap, low=1.0, high=LARGEST, what="least ratio of curvatures")
        check_number("alignment", self.alignment, low=0.0, high=1.0, what="least share of the squared gradient")
        check_number("spinning", self.spinning, low=0.0, high=LARGEST, what="largest turning")


@dataclass(frozen=True)
class Assumptions:
    """The measured quantities at N states, see the top of the module; all of shape (N,) but `points`, (N, dim).

    Attributes:
        gamma: smallest curvature across the river.
        ok: for each of the four names, where it holds within `limits`.
    """

    coordinates: tuple[str, ...]
    points: FloatArray
    eigengap: FloatArray
    flatness: FloatArray
    alignment: FloatArray
    spinning: FloatArray
    gamma: FloatArray
    limits: Limits
    ok: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]

    @property
    def hold(self) -> bool:
        """Whether all of them hold at every state."""
        return all(bool(flags.all()) for flags in self.ok.values())

    def report(self) -> str:
        """One line for each assumption: whether it holds, its worst value and where that is."""
        return "\n".join(self._line(name) for name in NAMES)

    def _line(self, name: str) -> str:
        values, flags = getattr(self, name), self.ok[name]
        low, limit = self._limit(name)
        worst = int(np.argmin(values) if low else np.argmax(values))
        place = ", ".join(f"{n} = {x:.4g}" for n, x in zip(self.coordinates, self.points[worst].tolist(), strict=True))
        rule = f"{'at least' if low else 'at most'} {limit:.4g}"
        failing = int(np.sum(~flags))
        count = f"fails at {failing} of {flags.size} states" if failing else f"holds at {flags.size} states"
        return f"{name} ({rule}): {count}; worst {values[worst]:.4g} at {place}"

    def _limit(self, name: str) -> tuple[bool, float]:
        """Whether the limit is from below, and the limit."""
        if name == "flatness":
            return False, float(self.gamma.min()) / self.limits.eigengap
        return name != "spinning", float(getattr(self.limits, name))


def check_assumptions(
    loss: Loss, points: FloatArray, *, k: int | None = None, limits: Limits | None = None
) -> Assumptions:
    """Measure the assumptions at states, e.g. the points of `riverval.toy.river.trace_river`; (..., dim).

    Args:
        loss: any loss.
        points: states; where there is no eigengap the spinning is inf.
        k: number of river directions; None: as many as the loss says it has.
        limits: what counts as holding.

    Raises:
        InputError: no states, states of another dimension, or derivatives that are not finite.

    >>> from riverval.toy import StraightRiver
    >>> print(check_assumptions(StraightRiver(0.1, (2.0,)), np.array([[0.0, 0.0], [1.0, 0.5]])).report())
    eigengap (at least 4): holds at 2 states; worst inf at x = 0, y = 0
    flatness (at most 0.5): holds at 2 states; worst 0 at x = 0, y = 0
    alignment (at least 0.9): fails at 1 of 2 states; worst 0.009901 at x = 1, y = 0.5
    spinning (at most 0.1): holds at 2 states; worst 0 at x = 0, y = 0
    """
    k, limits = river_dim(loss, k), limits or Limits()
    states = np.asarray(points, dtype=np.float64)
    if states.shape[-1:] != (loss.dim,) or not states.size or not np.isfinite(states).all():
        raise InputError(f"points must be finite states of shape (..., {loss.dim}), at least one; got {points!r}")
    frame = frame_at(loss, states.reshape(-1, loss.dim), k)
    flatness = np.abs(frame.eigenvalues[:, :k]).max(axis=1)
    gamma = frame.eigenvalues[:, k]
    with np.errstate(divide="ignore", invalid="ignore"):
        eigengap = np.where(flatness > 0.0, gamma / flatness, np.sign(gamma) * np.inf)
        eigengap = np.where(np.isnan(eigengap), 0.0, eigengap)  # 0/0: no curvature at all
        alignment = _alignment(frame)
        spinning = _spinning(frame)
    return Assumptions(
        coordinates=loss.coordinates,
        points=frame.w,
        eigengap=eigengap,
        flatness=flatness,
        alignment=alignment,
        spinning=spinning,
        gamma=gamma,
        limits=limits,
        ok={
            "eigengap": eigengap >= limits.eigengap,
            "flatness": limits.eigengap * flatness <= gamma.min(),
            "alignment": alignment >= limits.alignment,
            "spinning": spinning <= limits.spinning,
        },
    )


def _alignment(frame: Frame) -> FloatArray:
    """Share of the squared gradient along the river; 1 at a stationary point, which has no other direction."""
    total = np.sum(frame.gradient**2, axis=1)
    along = np.sum(np.einsum("nij,ni->nj", frame.flat, frame.gradient) ** 2, axis=1)
    return np.where(total > 0.0, along / total, 1.0)


def _spinning(frame: Frame) -> FloatArray:
    along = np.einsum("nij,nj->ni", frame.flat, np.einsum("nij,ni->nj", frame.flat, frame.gradient))
    size = np.linalg.norm(along, axis=1, keepdims=True)
    direction = np.where(size > 0.0, along / size, frame.flat[:, :, 0])
    turning = np.nan_to_num(np.einsum("nijl,nl->nij", frame.turning, direction), nan=0.0, posinf=1e300, neginf=-1e300)
    norm = np.linalg.svd(turning, compute_uv=False)[:, 0] * np.linalg.norm(frame.gradient, axis=1)
    gamma = frame.eigenvalues[:, frame.k]
    return np.where(frame.has_gap() & (gamma > 0.0), norm / gamma, np.inf)
