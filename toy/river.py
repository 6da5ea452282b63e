r"""The river itself: where the gradient is along the flattest direction, how to get there, and the motion on it.

With the eigenvectors v_i of the Hessian in the order of its eigenvalues, the first k of them flat, and the projection
P_hill on the others (arXiv:2410.05192; in older literature a gradient extremal),

- the river is the set P_hill(w) grad L(w) = 0;
- the projection Phi(w) on it is the limit of d phi / d t = -P_hill(phi) grad L(phi) from phi(0) = w;
- the loss splits as L(w) = L(Phi(w)) + [L(w) - L(Phi(w))], river and hill;
- the river flow is gradient flow restricted to the river: d w / d t = -P_T grad L, T its tangent directions.

It is not the floor of the valley that `Loss.floor` gives: on a bend the river runs beside the floor, at the distance
c f' / (h (1 + f'^2)) on L = -c x + h (y - f(x))^2 / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from .._checks import check_number
from .._typing import FloatArray
from ..errors import InputError
from ._frames import Frame, flat_count, frame_at, require_gap, river_dim, told
from ._loss import Loss

__all__ = ["RiverCurve", "flat_count", "gradient_flow", "project", "river_flow", "split", "trace_river"]

# |P_hill grad| relative to |grad|: where the flow is left to Newton's method, whose landing then differs by the square;
# and what Newton's method must reach at least, and need not exceed.
_SETTLED, _GOOD, _EXACT = 1e-6, 1e-9, 1e-13
_LONGEST = 1e12  # time; a hill of curvature 1e-10 has long been descended
_MOST_CALLS = 50_000  # of the velocity in one integration
_SHARPEST_TURN = 0.2  # radians between tangents of neighbouring points
_SMALLEST_STEP = 1e-6  # part of the step asked for


def project(loss: Loss, w: FloatArray, *, k: int | None = None) -> FloatArray:
    """Phi(w), where the hill-projected flow from each state ends; (..., dim) -> (..., dim).

    Args:
        loss: any loss.
        w: states.
        k: number of river directions; None: as many as the loss says it has.

    Raises:
        InputError: no river here: no eigengap at a state, on its way or at its end, or the flow does not settle.
    """
    k = river_dim(loss, k)
    states = _states(loss, w)
    landed = np.array([_relax(loss, state, k) for state in states])
    return landed.reshape(np.shape(w))


def split(loss: Loss, w: FloatArray, *, k: int | None = None) -> tuple[FloatArray, FloatArray]:
    """River component L(Phi(w)) and hill component L(w) - L(Phi(w)); (..., dim) -> two of (...).

    Raises:
        InputError: see `project`.
    """
    river = loss.value(project(loss, w, k=k))
    return river, loss.value(np.asarray(w, dtype=np.float64)) - river


def gradient_flow(loss: Loss, w: FloatArray, times: FloatArray) -> FloatArray:
    """d w / d t = -grad L(w) from one state; (dim,), times (n,) from 0 upwards -> (n, dim).

    Time is the sum of learning rates in the limit of small ones.

    Raises:
        InputError: times that do not ascend from at least 0, or a flow that cannot be followed.
    """
    return _flow(_state(loss, w), times, lambda _, w: -loss.gradient(w), lambda _, w: -loss.hessian(w))


def river_flow(loss: Loss, w: FloatArray, times: FloatArray, *, k: int | None = None) -> FloatArray:
    """Gradient flow restricted to the river, from Phi(w); (dim,), times (n,) from 0 upwards -> (n, dim).

    Raises:
        InputError: see `project` and `gradient_flow`.
    """
    k = river_dim(loss, k)

    def velocity(_: float, at: FloatArray) -> FloatArray:
        frame = frame_at(loss, at[None], k)
        require_gap(frame)
        tangents = frame.tangents[0]
        # The second term is zero on the river, and undoes what rounding moves away from it.
        change: FloatArray = -tangents @ (tangents.T @ frame.gradient[0]) - frame.across[0]
        return change

    return _flow(project(loss, _state(loss, w), k=k), times, velocity, None)


@dataclass(frozen=True)
class RiverCurve:
    """A stretch of a river, from upstream to downstream; n points.

    Attributes:
        points: (n, dim).
        arc: arc length, 0 at the point where the tracing began, (n,).
        loss: (n,).
        slope: fall of the loss per unit of arc, (n,).
        tangents: unit vectors along the curve, downstream, (n, dim).
        flat: unit eigenvectors of the smallest Hessian eigenvalue, on the side of the tangent, (n, dim).
        eigenvalues: of the Hessian, ascending, (n, dim).
        ends: why the curve ends where it does, upstream and downstream.
    """

    points: FloatArray
    arc: FloatArray
    loss: FloatArray
    slope: FloatArray
    tangents: FloatArray
    flat: FloatArray
    eigenvalues: FloatArray
    ends: tuple[str, str]


def trace_river(loss: Loss, w: FloatArray, *, length: float, step: float, both: bool = True) -> RiverCurve:
    """The one-dimensional river through Phi(w), by prediction along the tangent and Newton's method across it.

    The curve ends after `length`, at a stationary point of the loss, or where it cannot be followed: an eigengap below
    a millionth of the largest curvature where it began, or a turn too sharp for a millionth of `step`.

    Args:
        loss: any loss.
        w: a state near the river, (dim,).
        length: arc length to trace, downstream and, with `both`, upstream as well.
        step: largest distance between points; smaller ones are taken where the river turns.
        both: trace upstream too.

    Raises:
        InputError: no river at Phi(w), see `project`; a stationary point there, which has no downstream; or a length or
            step that is not above 0 or makes more than a million points.
    """
    check_number("length", length, low=0.0, open_low=True, what="arc length")
    check_number("step", step, low=length * 1e-6, high=length, what="largest distance between points")
    frame = frame_at(loss, project(loss, _state(loss, w), k=1)[None], 1)
    tangent = frame.tangents[0, :, 0]
    fall = -tangent @ frame.gradient[0]
    if abs(fall) <= 1e-10 * np.abs(frame.eigenvalues).max():
        raise InputError(f"{told(loss, frame.w[0])} is a stationary point: no direction is downstream; begin elsewhere")
    downstream = tangent * np.sign(fall)
    below, end = _walk(frame, downstream, length, step)
    above, head = _walk(frame, -downstream, length, step) if both else ([], "not traced")
    frames = [*reversed(above), frame, *below]
    return _curve(frames, len(above), (head, end))


def _walk(frame: Frame, tangent: FloatArray, length: float, step: float) -> tuple[list[Frame], str]:
    """Frames after the given one in the direction of a tangent, and why they end."""
    found: list[Frame] = []
    size, left = step, length
    obstacle, ahead = "", 0.0  # the last place without a river that a step reached, and how far on it is
    sign, scale = np.sign(tangent @ frame.gradient[0]), float(np.abs(frame.eigenvalues).max())
    while left > 1e-9 * length:
        size = min(size, left)
        try:
            following = _advance(frame, tangent, size, scale)
        except InputError as error:
            following, obstacle, ahead = None, str(error), size
        if following is None:
            if size <= _SMALLEST_STEP * step:
                return found, obstacle or "the river turns too sharply to be followed"
            size *= 0.5
            continue
        after, turned = following
        if np.sign(turned @ after.gradient[0]) != sign:
            return found, "stationary point"
        moved = float(np.linalg.norm(after.w - frame.w))
        left, ahead = left - moved, ahead - moved
        obstacle = obstacle if ahead > 0.0 else ""
        found.append(after)
        frame, tangent, size = after, turned, min(2.0 * size, step)
    return found, "length reached"


def _advance(frame: Frame, tangent: FloatArray, size: float, scale: float) -> tuple[Frame, FloatArray] | None:
    """The frame on the river at about `size` along the tangent, with the tangent there; None where it turns away.

    Raises:
        InputError: there is no river.
    """
    w = frame.w[0] + size * tangent
    landed = _correct(frame.loss, w, 1, tangent, scale)
    if landed is None:
        return None
    turned = landed.tangents[0, :, 0]
    turned = turned * np.sign(turned @ tangent)
    if turned @ tangent < np.cos(_SHARPEST_TURN) or np.linalg.norm(landed.w[0] - w) > _SHARPEST_TURN * size:
        return None
    return landed, turned


def _correct(loss: Loss, w: FloatArray, k: int, fixed: FloatArray | None, scale: float) -> Frame | None:
    """The frame on the river near a state, by Newton's method; None where it does not converge.

    The place along the direction `fixed`, (dim,), is kept or, where that is None, the place along the flat directions.
    """
    before = np.inf
    for _ in range(50):
        frame = frame_at(loss, w[None], k)
        require_gap(frame, scale)
        left, size = float(np.linalg.norm(frame.across[0])), float(np.linalg.norm(frame.gradient[0]))
        if left <= _EXACT * size + _rounding(frame) or (left >= 0.5 * before and left <= _GOOD * size):
            return frame
        if not left < 2.0 * before:
            return None
        before = left
        kept = frame.flat[0].T if fixed is None else fixed[None]
        target = np.concatenate([-frame.steep[0].T @ frame.gradient[0], np.zeros(k)])
        w = w + np.linalg.lstsq(np.concatenate([frame.bending[0], kept]), target)[0]
    return None


def _rounding(frame: Frame) -> float:
    """Size of a gradient that may be nothing but rounding."""
    return 1e-15 * float(np.abs(frame.eigenvalues).max()) * (1.0 + float(np.linalg.norm(frame.w)))


def _relax(loss: Loss, w: FloatArray, k: int) -> FloatArray:
    """Phi of one state, (dim,) -> (dim,)."""
    first = frame_at(loss, w[None], k)
    scale = float(np.abs(first.eigenvalues).max())
    require_gap(first, positive=False)
    settled = _SETTLED * float(np.linalg.norm(first.gradient[0])) + _rounding(first)
    calls = _Counter(f"the hill-projected flow from {told(loss, w)} does not settle on a river", "begin nearer to one")

    def across(_: float, at: FloatArray) -> FloatArray:
        calls.count()
        return -frame_at(loss, at[None], k).across[0]

    def excess(t: float, at: FloatArray) -> float:
        return float(np.linalg.norm(frame_at(loss, at[None], k).across[0])) - settled

    excess.terminal = True  # type: ignore[attr-defined]
    if excess(0.0, w) > 0.0:
        found = solve_ivp(across, (0.0, _LONGEST / scale), w, method="LSODA", rtol=1e-9, atol=1e-12, events=excess)
        if found.status != 1:
            raise calls.refusal
        w = found.y[:, -1]
    landed = _correct(loss, w, k, None, scale)
    if landed is None:
        raise calls.refusal
    return landed.w[0]


class _Counter:
    """Ends an integration that would go on for ever."""

    def __init__(self, what: str, advice: str) -> None:
        self.refusal = InputError(f"{what}; {advice}")
        self.calls = 0

    def count(self, *, stop: bool = False) -> None:
        """One more evaluation.

        Raises:
            InputError: there have been too many, or `stop`.
        """
        self.calls += 1
        if stop or self.calls > _MOST_CALLS:
            raise self.refusal


def _flow(
    w: FloatArray,
    times: FloatArray,
    velocity: Callable[[float, FloatArray], FloatArray],
    jacobian: Callable[[float, FloatArray], FloatArray] | None,
) -> FloatArray:
    """States at `times` of a flow from one state; (dim,), (n,) -> (n, dim)."""
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or not times.size or not np.all(np.isfinite(times)):
        raise InputError(f"times must be a list of finite numbers, got {times!r}")
    if times[0] < 0.0 or np.any(np.diff(times) <= 0.0):
        raise InputError("times must ascend, from 0 or later")
    if times[-1] == 0.0:
        return w[None].copy()
    calls = _Counter(f"the flow cannot be followed to time {times[-1]:g}", "it may run away; give an earlier time")

    def counted(t: float, at: FloatArray) -> FloatArray:
        change = velocity(t, at)
        calls.count(stop=not np.isfinite(change).all())
        return change

    options: dict[str, Any] = {"t_eval": times, "rtol": 1e-10, "atol": 1e-12}
    if jacobian is not None:
        options["jac"] = jacobian
    with np.errstate(all="ignore"):  # a flow that runs away is told
        found = solve_ivp(counted, (0.0, times[-1]), w, method="LSODA", **options)
    if not found.success or found.y.shape[1] != times.size:
        raise calls.refusal
    return np.ascontiguousarray(found.y.T)


def _states(loss: Loss, w: FloatArray) -> FloatArray:
    """States as (N, dim).

    Raises:
        InputError: another number of coordinates, or one that is not finite.
    """
    states = np.asarray(w, dtype=np.float64)
    if states.shape[-1:] != (loss.dim,) or not np.isfinite(states).all():
        raise InputError(f"states must be finite, of shape (..., {loss.dim}), got {w!r}")
    return states.reshape(-1, loss.dim)


def _state(loss: Loss, w: FloatArray) -> FloatArray:
    """One state, (dim,)."""
    if np.shape(w) != (loss.dim,):
        raise InputError(f"give one state of shape ({loss.dim},), got the shape {np.shape(w)}")
    return _states(loss, w)[0]


def _curve(frames: list[Frame], begin: int, ends: tuple[str, str]) -> RiverCurve:
    points = np.concatenate([f.w for f in frames])
    gradient = np.concatenate([f.gradient for f in frames])
    tangents = np.concatenate([f.tangents[:, :, 0] for f in frames])
    flat = np.concatenate([f.flat[:, :, 0] for f in frames])
    tangents *= -np.sign(np.sum(tangents * gradient, axis=1, keepdims=True))
    flat = flat * np.sign(np.sum(tangents * flat, axis=1, keepdims=True))
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    return RiverCurve(
        points=points,
        arc=arc - arc[begin],
        loss=frames[0].loss.value(points),
        slope=-np.sum(tangents * gradient, axis=1),
        tangents=tangents,
        flat=flat,
        eigenvalues=np.concatenate([f.eigenvalues for f in frames]),
        ends=ends,
    )
