"""The river against closed forms, a naive flow, and a definition of it that knows no eigenvectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from riverval.errors import InputError
from riverval.toy import (
    BentBowl,
    BentRiver,
    CircleRiver,
    HyperbolaRiver,
    PlaneRiver,
    PowerLawRiver,
    QuarticWalls,
    RotatedQuadratic,
    StraightRiver,
    SymbolicLoss,
)
from riverval.toy.assumptions import Limits, check_assumptions
from riverval.toy.river import flat_count, gradient_flow, project, river_flow, split, trace_river

BENT = BentRiver(slope=0.1, curvature=10.0, amplitude=1.0, wavenumber=0.5)
# Two river coordinates over a floor that bends both ways.
SADDLE_FLOOR = SymbolicLoss(
    "-a*x - b*u + h/2*(y - sin(x)/2 - cos(u)/3)**2", coordinates=("x", "u", "y"), river_dim=2,
    parameters={"a": 0.02, "b": 0.03, "h": 4.0}, floor={"y": "sin(x)/2 + cos(u)/3"},
)  # fmt: skip


def floor_shape(loss, x):
    """f, f' and f'' of a sine floor."""
    a, k = loss.amplitude, loss.wavenumber
    return a * np.sin(k * x), a * k * np.cos(k * x), -a * k**2 * np.sin(k * x)


def displaced(loss, x):
    """y of the river to first order in c kappa / h: f + d*, d* = -c f' / (h (1 + f'^2))."""
    f, slope, _ = floor_shape(loss, x)
    return f - loss.slope * slope / (loss.curvature * (1 + slope**2))


def not_parallel(loss, w):
    """The cross product of grad and H grad in two dimensions: zero where grad is an eigenvector of H."""
    g, hg = loss.gradient(w), loss.hvp(w, loss.gradient(w))
    return g[..., 0] * hg[..., 1] - g[..., 1] * hg[..., 0]


def time_to(x):
    """c t at which the flow on y = sin(x/2) has come from 0 to x: the integral of 1 + f'^2."""
    return 1.125 * x + 0.125 * math.sin(x)


# --- the projection --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", [StraightRiver(0.3, (2.0,)), StraightRiver(1.0, (0.5, 3.0, 20.0)), PlaneRiver()])
def test_on_a_straight_river_the_projection_drops_the_hill_coordinates(loss, rng):
    w = rng.standard_normal((2, 1, loss.dim))
    landed = project(loss, w)
    np.testing.assert_allclose(landed, loss.floor(w), atol=1e-12)
    np.testing.assert_array_equal(landed[..., : loss.river_dim], w[..., : loss.river_dim])
    river, hill = split(loss, w)
    np.testing.assert_allclose(river, loss.river(w), atol=1e-12)
    np.testing.assert_allclose(hill, loss.hill(w), atol=1e-12)


def test_the_projection_turns_with_the_axes(rng):
    straight, turned = StraightRiver(0.3, (1.0, 4.0)), RotatedQuadratic(slope=0.3, curvatures=(1.0, 4.0), seed=3)
    z = rng.standard_normal((4, 3))
    np.testing.assert_allclose(
        project(turned, z @ turned.axes.T), project(straight, z) @ turned.axes.T, rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("w", [(0.0, 1.0), (2.0, -0.5), (-4.0, 0.3)])
def test_the_projection_is_the_end_of_a_naive_hill_projected_flow(w):
    loss = BentRiver(slope=0.5, curvature=2.0)

    def velocity(w):
        steep = np.linalg.eigh(loss.hessian(w))[1][:, 1]
        return -steep * (steep @ loss.gradient(w))

    naive, dt = np.array(w), 0.02
    for _ in range(800):  # Runge-Kutta of fourth order
        a = velocity(naive)
        b = velocity(naive + dt / 2 * a)
        c = velocity(naive + dt / 2 * b)
        naive = naive + dt / 6 * (a + 2 * b + 2 * c + velocity(naive + dt * c))
    landed = project(loss, np.array(w))
    np.testing.assert_allclose(landed, naive, atol=1e-6)
    np.testing.assert_allclose(project(loss, landed), landed, atol=1e-12)
    assert abs(not_parallel(loss, landed)) < 1e-12


def test_river_flow_from_the_projection_ends_where_gradient_flow_does():
    """The numbers of the derivation: A = 1, k = 1/2, c/h = 0.01, from half a unit above the river, over c t = 10."""
    w, times = np.array([0.0, 0.5]), np.array([0.0, 100.0])
    true = gradient_flow(BENT, w, times)[-1, 0]
    ours = river_flow(BENT, w, times)[-1, 0]
    assert true == pytest.approx(9.0735, abs=5e-5)
    assert abs(ours - true) < 0.002
    # By the floor itself, from Phi to first order and from the raw x: the last is what the projection mends.
    first_order = brentq(lambda x: time_to(x) - time_to(0.1998) - 10.0, 8.0, 10.0)
    raw = brentq(lambda x: time_to(x) - 10.0, 8.0, 10.0)
    assert first_order == pytest.approx(9.0724, abs=5e-4)
    assert raw == pytest.approx(8.826, abs=5e-4)
    assert abs(raw - true) > 0.2
    assert project(BENT, w)[0] == pytest.approx(0.5 * 0.5 / 1.25, rel=0.01)


@settings(max_examples=5)
@given(
    ratio=st.floats(0.002, 0.01), k=st.floats(0.3, 0.6), amplitude=st.floats(-1.0, 1.0), above=st.floats(-0.5, 0.5),
    start=st.floats(-3.0, 3.0),
)  # fmt: skip
def test_river_flow_follows_gradient_flow_on_any_gentle_bend(ratio, k, amplitude, above, start):
    loss = BentRiver(slope=10.0 * ratio, curvature=10.0, amplitude=amplitude, wavenumber=k)
    w = np.array([start, floor_shape(loss, start)[0] + above])
    times = np.array([0.0, 2.0 / loss.slope, 6.0 / loss.slope])
    apart = river_flow(loss, w, times)[1:] - gradient_flow(loss, w, times)[1:]
    assert np.abs(apart).max() < 0.002


# --- flows -----------------------------------------------------------------------------------------------------------
def test_gradient_flow_between_quadratic_hills_is_exponential():
    times = np.array([0.0, 0.1, 1.0, 7.0])
    flow = gradient_flow(StraightRiver(0.3, (2.0, 5.0)), np.array([1.0, 2.0, -3.0]), times)
    decays = np.exp(-np.outer(times, [2.0, 5.0]))
    np.testing.assert_allclose(
        flow, np.column_stack([1.0 + 0.3 * times, 2.0 * decays[:, 0], -3.0 * decays[:, 1]]), atol=1e-8
    )


def test_on_the_circle_the_river_flow_turns_at_a_constant_rate():
    loss = CircleRiver(slope=0.4, curvature=2.0, radius=3.0)
    times = np.linspace(0.0, 12.0, 5)
    flow = river_flow(loss, loss.start(), times)
    radius = np.linalg.norm(flow, axis=1)
    r = brentq(lambda r: 4.0 * (r - 3.0) * r**3 - (0.4 * 3.0) ** 2, 3.0, 4.0)
    np.testing.assert_allclose(radius, r, atol=1e-8)
    angle = np.arctan2(flow[:, 0], flow[:, 1])
    np.testing.assert_allclose(angle - angle[0], 0.4 * 3.0 / r**2 * times, atol=1e-6)


def test_a_river_of_two_dimensions_is_displaced_and_followed():
    """To first order the river is f + d*, d* = -c.grad f / (h (1 + |grad f|^2)), now with vectors c and grad f."""
    w = np.array([0.5, -1.0, 0.6])
    landed = project(SADDLE_FLOOR, w)
    bend = np.array([math.cos(landed[0]) / 2, -math.sin(landed[1]) / 3])
    d = -(0.02 * bend[0] + 0.03 * bend[1]) / (4.0 * (1 + bend @ bend))
    off = landed[2] - math.sin(landed[0]) / 2 - math.cos(landed[1]) / 3
    assert off == pytest.approx(d, rel=0.02)
    np.testing.assert_allclose(
        river_flow(SADDLE_FLOOR, w, np.array([0.0, 40.0])),
        [landed, gradient_flow(SADDLE_FLOOR, w, np.array([40.0]))[0]],
        atol=0.005,
    )


# --- the curve -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slope", [0.1, 0.05, 0.01])
def test_the_curve_is_the_displaced_floor(slope):
    loss = BentRiver(slope=slope, curvature=2.0)
    curve = trace_river(loss, loss.start(), length=8.0, step=0.2)
    x, y = curve.points.T
    assert curve.ends == ("length reached", "length reached")
    assert np.abs(y - displaced(loss, x)).max() < 1e-4
    assert np.abs(y - floor_shape(loss, x)[0]).max() > 0.19 * slope  # and not the floor


def test_the_displacement_is_wrong_by_c_kappa_over_h():
    relative = []
    slopes = np.array([0.01, 0.02, 0.04])
    for slope in slopes:
        loss = BentRiver(slope=slope, curvature=2.0)
        x, y = trace_river(loss, loss.start(), length=6.0, step=0.2).points.T
        off, first = y - floor_shape(loss, x)[0], displaced(loss, x) - floor_shape(loss, x)[0]
        relative.append(np.abs(off - first).max() / np.abs(first).max())
    assert np.polyfit(np.log(slopes), np.log(relative), 1)[0] == pytest.approx(1.0, abs=0.05)
    kappa = 0.25  # at the crests
    assert np.all(np.array(relative) < slopes * kappa / 2.0)


@pytest.mark.parametrize(
    ("loss", "start", "length"),
    [
        (BentRiver(slope=0.5, curvature=2.0), (0.0, 1.0), 6.0),
        (HyperbolaRiver(), (2.0, 2.0), 1.0),
        (BENT, (3.0, 1.0), 4.0),
    ],
)
def test_on_the_curve_the_gradient_is_an_eigenvector(loss, start, length):
    curve = trace_river(loss, np.array(start), length=length, step=0.1)
    gradient = loss.gradient(curve.points)
    size = np.sum(gradient**2, axis=1) * np.abs(curve.eigenvalues).max()
    assert np.all(np.abs(not_parallel(loss, curve.points)) < 1e-9 * size)
    for at in curve.points[:: max(len(curve.points) // 6, 1)]:  # the same place by bisection across it
        y = brentq(lambda y, x=at[0]: not_parallel(loss, np.array([x, y])), at[1] - 0.05, at[1] + 0.05)
        assert y == pytest.approx(at[1], abs=1e-8)
    np.testing.assert_allclose(curve.loss, loss.value(curve.points))
    assert np.all(np.diff(curve.loss) < 0)
    assert np.all(np.diff(curve.arc) > 0)
    # Simpson's rule over pairs of steps would need equal ones; the trapezium suffices at this step.
    fall = 0.5 * (curve.slope[1:] + curve.slope[:-1]) * np.diff(curve.arc)
    np.testing.assert_allclose(-np.diff(curve.loss), fall, rtol=0.02)
    chord = np.diff(curve.points, axis=0) / np.diff(curve.arc)[:, None]
    np.testing.assert_allclose(0.5 * (curve.tangents[1:] + curve.tangents[:-1]), chord, atol=0.01)
    assert np.all(np.sum(curve.flat * curve.tangents, axis=1) > 0.9)


def test_the_curve_is_the_same_from_wherever_it_is_traced():
    loss = BentRiver(slope=0.3, curvature=2.0)
    curve = trace_river(loss, loss.start(), length=5.0, step=0.1, both=False)
    back = trace_river(loss, curve.points[-1], length=5.0, step=0.37)
    assert curve.arc[0] == 0.0
    assert np.linalg.norm(np.diff(curve.points, axis=0), axis=1).max() < 0.11
    assert np.min(np.linalg.norm(back.points - curve.points[0], axis=1)) < 0.4
    x, y = back.points.T
    inside = (x > curve.points[0, 0]) & (x < curve.points[-1, 0])
    np.testing.assert_allclose(y[inside], np.interp(x[inside], *curve.points.T), atol=2e-3)


def test_around_the_circle_the_river_keeps_its_distance():
    loss = CircleRiver(slope=0.4, curvature=2.0, radius=3.0)
    curve = trace_river(loss, loss.start(), length=5.0, step=0.1)
    # grad is an eigenvector where h^2 (r - R) r^3 = c^2 R^2, by the Hessian in polar coordinates.
    r = brentq(lambda r: 4.0 * (r - 3.0) * r**3 - (0.4 * 3.0) ** 2, 3.0, 4.0)
    np.testing.assert_allclose(np.linalg.norm(curve.points, axis=1), r, atol=1e-10)
    np.testing.assert_allclose(curve.slope, 0.4 * 3.0 / r, atol=1e-10)
    np.testing.assert_allclose(curve.eigenvalues[:, 0], 0.0, atol=1e-12)


def test_downstream_the_hyperbola_river_nears_its_floor():
    curve = trace_river(HyperbolaRiver(), np.array([2.0, 2.0]), length=4.0, step=0.1, both=False)
    off = np.abs(curve.points.prod(axis=1) - 1.0)
    assert off[-1] < 1e-3
    assert np.all(np.diff(off) < 0)


def test_the_river_ends_at_the_minimum():
    loss = BentBowl(target=5.0)
    curve = trace_river(loss, loss.start(), length=20.0, step=0.1)
    assert curve.ends == ("length reached", "stationary point")
    assert curve.points[-1] == pytest.approx([5.0, math.sin(2.5)], abs=0.1)
    assert curve.arc[0] == pytest.approx(-20.0, abs=1e-3)
    with pytest.raises(InputError, match=r"stationary point: no direction is downstream"):
        trace_river(loss, np.array([5.0, math.sin(2.5)]), length=1.0, step=0.1)


def test_the_river_ends_where_the_gap_closes():
    loss = SymbolicLoss("-x/10 + (1 - x)*y**2/2", floor={"y": "0"})  # the walls sink to nothing at x = 1
    curve = trace_river(loss, np.array([0.0, 0.1]), length=3.0, step=0.1, both=False)
    assert "no river here" in curve.ends[1]
    assert curve.points[-1, 0] == pytest.approx(1.0, abs=1e-3)


# --- the assumptions -------------------------------------------------------------------------------------------------
def test_alignment_on_the_wall_is_the_closed_form(rng):
    w = rng.standard_normal((50, 2))
    found = check_assumptions(StraightRiver(0.3, (2.0,)), w)
    np.testing.assert_allclose(found.alignment, 0.09 / (0.09 + 4.0 * w[:, 1] ** 2), rtol=1e-12)
    assert np.all(np.isinf(found.eigengap))
    assert np.all(found.flatness == 0.0)
    assert np.all(found.spinning == 0.0)
    assert found.ok["eigengap"].all()
    assert not found.hold


def test_numbers_along_a_gentle_bend_are_those_of_its_geometry():
    curve = trace_river(BENT, BENT.start(), length=6.0, step=0.2)
    found = check_assumptions(BENT, curve.points)
    _, slope, second = floor_shape(BENT, curve.points[:, 0])
    kappa = np.abs(second) / (1 + slope**2) ** 1.5
    gamma = BENT.curvature * (1 + slope**2)
    np.testing.assert_allclose(found.gamma, gamma, rtol=0.01)
    np.testing.assert_allclose(found.alignment, 1.0, atol=1e-12)
    np.testing.assert_allclose(found.spinning, kappa * BENT.slope / np.sqrt(1 + slope**2) / gamma, atol=2e-5)
    np.testing.assert_array_equal(found.flatness, np.abs(curve.eigenvalues[:, 0]))
    np.testing.assert_allclose(found.eigengap, curve.eigenvalues[:, 1] / found.flatness)
    assert found.hold


@pytest.mark.parametrize("loss", [BentRiver(slope=1.0), HyperbolaRiver(curvature=2.0), SADDLE_FLOOR])
def test_spinning_is_how_fast_the_flat_space_turns(loss, rng):
    k = loss.river_dim
    for w in loss.start() + rng.uniform(-0.3, 0.3, (5, loss.dim)):
        flat = np.linalg.eigh(loss.hessian(w))[1][:, :k]
        gradient = loss.gradient(w)
        along = flat @ (flat.T @ gradient)
        step = 1e-5 * along / np.linalg.norm(along)
        spaces = [np.linalg.eigh(loss.hessian(w + s * step))[1][:, :k] for s in (1, -1)]
        turned = np.linalg.norm(spaces[0] @ spaces[0].T - spaces[1] @ spaces[1].T, 2) / 2e-5
        found = check_assumptions(loss, w)
        assert found.spinning[0] == pytest.approx(turned * np.linalg.norm(gradient) / found.gamma[0], rel=1e-4)


def test_checks_do_not_depend_on_the_axes(rng):
    straight = StraightRiver(0.3, (1.0, 4.0))
    turned = RotatedQuadratic(slope=0.3, curvatures=(1.0, 4.0), seed=11)
    z = rng.standard_normal((6, 3))
    a, b = check_assumptions(straight, z), check_assumptions(turned, z @ turned.axes.T)
    np.testing.assert_allclose(a.alignment, b.alignment, rtol=1e-10)
    np.testing.assert_allclose(a.gamma, b.gamma, rtol=1e-12)
    np.testing.assert_allclose(b.spinning, 0.0, atol=1e-10)


def test_what_fails_is_told_with_its_number_and_place():
    loss = BentRiver(slope=2.0)  # c kappa / h up to 0.25
    found = check_assumptions(loss, trace_river(loss, loss.start(), length=1.5, step=0.05).points)
    assert found.ok["eigengap"].all()
    assert 0 < found.ok["spinning"].sum() < found.spinning.size
    worst = int(np.argmax(found.spinning))
    told = found.report()
    assert f"worst {found.spinning[worst]:.4g} at x = {found.points[worst, 0]:.4g}" in told
    assert "spinning (at most 0.1): fails at" in told
    assert "eigengap (at least 4): holds at" in told
    assert not found.hold
    lenient = check_assumptions(loss, found.points, limits=Limits(spinning=0.5))
    assert lenient.hold
    assert "fails" not in lenient.report()


def test_flatness_compares_the_flattest_with_the_least_steep_of_all_states():
    loss = SymbolicLoss("-x + x**2/2 + (1 + 20*x)*y**2", floor={"y": "0"})  # steep far down, flat curvature 1
    near, far = np.array([0.2, 0.0]), np.array([0.8, 0.0])
    assert check_assumptions(loss, far).ok["flatness"].all()
    assert check_assumptions(loss, np.stack([far, np.array([0.0, 0.0])])).ok["flatness"].tolist() == [False, False]
    assert check_assumptions(loss, np.stack([far, near])).ok["flatness"].all()
    for x, holds in ((0.051, True), (0.049, False)):  # 4 times the curvature 1 along is 2 (1 + 20 x) across at 0.05
        assert check_assumptions(loss, np.array([x, 0.0])).ok["flatness"].tolist() == [holds]


def test_no_walls_means_no_gap_in_numbers():
    found = check_assumptions(QuarticWalls(curvature=0.0), np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert found.eigengap.tolist() == [0.0, np.inf]
    assert found.spinning.tolist() == [np.inf, 0.0]
    assert found.ok["eigengap"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("spectrum", "count"),
    [
        ([0.0, 1.0], 1),
        ([5.0, -0.01, 3.0, 0.02], 2),
        ([0.1, 0.2, 0.3, 30.0], 3),
        ([1e-12, 1.0, 50.0], 1),
        ([-1.0, 8.0, 9.0], 1),
    ],
)
def test_flat_directions_lie_below_the_largest_gap(spectrum, count):
    assert flat_count(np.array(spectrum)) == count


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: project(SymbolicLoss("x**2 + y**2"), np.ones(2)),
            r"no river here: at x = 1, y = 1 .* 2 and 2, there is no",
        ),
        (lambda: project(QuarticWalls(curvature=0.0), np.ones(2)), r"no river here: .*there is no eigengap"),
        (lambda: project(SymbolicLoss("-x + cosh(y) - 3*x**2"), np.array([0.0, 0.5])), None),
        (lambda: project(BENT, np.ones(3)), r"states must be finite, of shape \(\.\.\., 2\)"),
        (lambda: project(BENT, np.array([0.0, np.nan])), r"states must be finite"),
        (lambda: project(BENT, np.ones(2), k=2), r"k \(river directions\) .*from 1 to 1"),
        (lambda: project(PowerLawRiver(), np.array([-9.0, 0.0])), r"no finite derivatives at x = -9"),
        (lambda: gradient_flow(BENT, np.ones((2, 2)), np.ones(1)), r"one state of shape \(2,\)"),
        (lambda: gradient_flow(BENT, np.ones(2), np.array([1.0, 0.5])), r"times must ascend"),
        (lambda: gradient_flow(BENT, np.ones(2), np.array([-1.0])), r"times must ascend"),
        (lambda: gradient_flow(BENT, np.ones(2), np.array([np.inf])), r"times must be a list of finite"),
        (lambda: gradient_flow(BENT, np.ones(2), np.array([])), r"times must be a list"),
        (lambda: trace_river(BENT, np.ones(2), length=0.0, step=0.1), r"length .*got 0.0"),
        (lambda: trace_river(BENT, np.ones(2), length=1.0, step=2.0), r"step .*got 2.0"),
        (lambda: trace_river(BENT, np.ones(2), length=1.0, step=1e-9), r"step .*got 1e-09"),
        (lambda: check_assumptions(BENT, np.ones(3)), r"points must be finite states"),
        (lambda: check_assumptions(BENT, np.ones((0, 2))), r"points must be finite states"),
        (lambda: Limits(eigengap=0.5), r"eigengap .*got 0.5"),
        (lambda: Limits(alignment=1.5), r"alignment .*got 1.5"),
        (lambda: Limits(spinning=-1.0), r"spinning .*got -1.0"),
        (lambda: flat_count(np.array([1.0])), r"at least two eigenvalues"),
        (lambda: flat_count(np.array([-3.0, 1.0])), r"no eigengap"),
        (lambda: flat_count(np.array([0.0, 0.0])), r"no eigengap"),
    ],
)
def test_where_there_is_no_river_it_is_said(call, told):
    if told is None:
        assert np.isfinite(call()).all()
        return
    with pytest.raises(InputError, match=told):
        call()


def test_a_flow_that_runs_away_is_told():
    loss = SymbolicLoss("-x**4 + y**2", floor={"y": "0"}, start=(1.0, 0.0))
    with pytest.raises(InputError, match=r"cannot be followed to time 1"):
        gradient_flow(loss, np.array([1.0, 0.0]), np.array([1.0]))
