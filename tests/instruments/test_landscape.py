"""Lines, paths, planes, directions and sections on quadratics, where every number is known. torch only if there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from riverval import store
from riverval._vectors import distance, dot, like, norm
from riverval.directions import plane_along, plane_through, random_direction, scale_direction, shapes_of
from riverval.errors import InputError
from riverval.landscape import batch_losses, line_losses, mean_and_error, near_plane, path_losses, plane_losses
from riverval.landscape_data import path_dataset, plane_dataset, section_dataset
from riverval.sections import cross_section
from riverval.valley import TESTS, convexity, midpoint, quadratic_line


def quadratic(dim, batches=1, seed=0, smallest=0.1):
    """H, and batch losses (w - c_b)'H(w - c_b)/2 with centres c_b."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    h = q @ np.diag(np.linspace(smallest, 3.0, dim)) @ q.T
    centres = rng.standard_normal((batches, dim))
    return h, [lambda w, c=c: float((w - c) @ h @ (w - c) / 2) for c in centres]


def kinds():
    """Makers of vectors: numpy in two precisions, torch where it is installed."""
    out = [lambda x: np.asarray(x, dtype=np.float64), lambda x: np.asarray(x, dtype=np.float32)]
    try:
        import torch
    except ImportError:
        return out
    return [*out, *(lambda x, t=t: torch.tensor(np.asarray(x), dtype=t) for t in (torch.float64, torch.float32))]


KINDS = kinds()


def numpy_of(vector):
    """A float64 copy."""
    return np.asarray(vector).astype(np.float64)


seeds = st.integers(0, 2**31)
dims = st.integers(1, 8)


# --- losses over batches ---------------------------------------------------------------------------------------------
class WithBatches:
    """The protocol."""

    weights = (1.0, 3.0)

    def per_batch(self, flat):
        return [float(flat @ flat), 2.0]


@pytest.mark.parametrize("loss", [WithBatches(), batch_losses(WithBatches())])
def test_a_loss_may_give_its_values_by_batch(loss):
    found = batch_losses(loss)
    assert found(np.array([2.0])).tolist() == [4.0, 2.0]
    assert found.weights.tolist() == [0.25, 0.75]


@given(st.integers(2, 9), st.integers(1, 4), seeds)
def test_mean_and_error_against_their_definitions(count, places, seed):
    rng = np.random.default_rng(seed)
    x, sizes = rng.standard_normal((count, places)), rng.integers(1, 9, count)
    mean, error = mean_and_error(x, sizes / sizes.sum())
    np.testing.assert_allclose(mean, np.average(x, axis=0, weights=sizes))
    for column, m, e in zip(x.T, mean, error, strict=True):
        variance = sum(n * (v - m) ** 2 for n, v in zip(sizes, column, strict=True)) / (count - 1)
        assert e**2 == pytest.approx(variance / sizes.sum())
    np.testing.assert_allclose(mean_and_error(x, np.full(count, 1 / count))[1], x.std(axis=0, ddof=1) / np.sqrt(count))


def test_the_error_of_batches_of_different_sizes_is_unbiased():
    """Means of n normal examples: the variance of the weighted mean is 1 / N."""
    rng, sizes, runs = np.random.default_rng(3), np.array([1, 2, 5, 12]), 4000
    x = rng.standard_normal((4, runs)) / np.sqrt(sizes)[:, None]
    squares = mean_and_error(x, sizes / 20)[1] ** 2
    assert abs(squares.mean() - 1 / 20) < 4 * squares.std() / np.sqrt(runs)


BAD_LOSSES = [
    ({"loss": 3.0}, "a loss is a function of a vector"),
    ({"loss": []}, "non-empty list"),
    ({"loss": [abs, 1]}, "non-empty list"),
    ({"loss": abs, "weights": [1.0]}, "weights belong to a list"),
    ({"loss": WithBatches(), "weights": [1.0, 1.0]}, "weights belong to a list"),
    ({"loss": [abs, abs], "weights": [1.0]}, "must be 2 positive numbers"),
    ({"loss": [abs, abs], "weights": [1.0, 0.0]}, "must be 2 positive numbers"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_LOSSES)
def test_what_is_no_loss_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        batch_losses(**arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_may_be_an_array_of_one_number(kind):
    one = kind(np.ones(1))
    if hasattr(one, "requires_grad"):
        one.requires_grad_()  # a graph hangs on it: taken as it is, without a warning
    for loss, weights in (lambda w: one * 3, [1]), ([lambda w: (one * 3)[0]] * 2, [0.5, 0.5]):
        found = batch_losses(loss)
        assert found(kind(np.zeros(2))).tolist() == [3.0] * len(weights)
    assert line_losses(lambda w: one * w[0], kind(np.zeros(2)), kind(np.ones(2)), [0.0, 1.0]).tolist() == [0.0, 1.0]
    both = WithBatches()
    both.per_batch, both.weights = lambda flat: kind(np.array([1.0, 2.0])) * one, kind(np.array([1.0, 3.0]))
    assert batch_losses(both)(kind(np.zeros(2))).tolist() == [1.0, 2.0]
    assert batch_losses(both).weights.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("value", "message"), [(np.ones(2), r"one number.*\(2,\)"), (None, "real number"), ("a", "real")]
)
@pytest.mark.parametrize("form", [lambda f: f, lambda f: [f, f]])
def test_a_loss_that_is_no_number_is_refused(value, message, form):
    with pytest.raises(InputError, match=message):
        path_losses(form(lambda w: value), [np.zeros(2), np.ones(2)], 3)
    with pytest.raises(InputError, match=message):
        line_losses(lambda w: value, np.zeros(2), np.ones(2), [0.5])


def test_another_number_of_values_is_refused():
    loss = WithBatches()
    loss.per_batch = lambda flat: [1.0]
    with pytest.raises(InputError, match="must give 2 values"):
        batch_losses(loss)(np.zeros(1))


# --- lines and paths -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@given(dim=dims, seed=seeds, points=st.integers(2, 4))
def test_a_path_goes_through_its_points_by_arc_length(kind, dim, seed, points):
    rng = np.random.default_rng(seed)
    corners = rng.standard_normal((points, dim))
    seen = []

    def loss(w):
        seen.append(np.asarray(w, dtype=np.float64).copy())
        return 0.0

    path = path_losses(loss, [kind(c) for c in corners], 5)
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    tol = 1e-5 * (1 + np.abs(corners).max())
    np.testing.assert_allclose(path.knots * path.distance[-1], [0, *np.cumsum(lengths)], atol=tol)
    np.testing.assert_allclose(path.distance, path.alpha * lengths.sum(), atol=tol)
    assert {0.0, 1.0, *path.knots} <= {*path.alpha}
    naive = np.stack([np.interp(path.distance, [0, *np.cumsum(lengths)], x) for x in corners.T], axis=1)
    np.testing.assert_allclose(seen, naive, atol=tol)


@given(dim=dims, seed=seeds, curvature_seed=st.integers(0, 99))
def test_a_line_in_a_quadratic_is_its_null(dim, seed, curvature_seed):
    h, losses = quadratic(dim, 3, curvature_seed)
    a, b = np.random.default_rng(seed).standard_normal((2, dim))
    path = path_losses(losses, [a, b], np.linspace(-0.5, 1.5, 9))
    at = {float(x): y for x, y in zip(path.alpha, path.loss, strict=True)}
    null = quadratic_line(path.alpha, at[0.0], at[1.0], (b - a) @ h @ (b - a))
    np.testing.assert_allclose(path.loss, null, atol=1e-10)
    expected = [np.mean([f((1 - x) * a + x * b) for f in losses]) for x in path.alpha]
    np.testing.assert_allclose(path.loss, expected, atol=1e-12)
    assert path.error == pytest.approx(path.batch_losses.std(axis=0, ddof=1) / np.sqrt(3))


def test_ends_are_evaluated_without_rounding_and_beyond_them_the_segment_goes_on():
    a, b, c = np.array([0.1, 0.7]), np.array([1e8, 0.3]), np.array([1e8, 7.0])
    seen = []
    path = path_losses(lambda w: seen.append(w.copy()) or 0.0, [a, b, c], 3)
    for point, knot in zip((a, b, c), path.knots, strict=True):
        np.testing.assert_array_equal(seen[int(np.flatnonzero(path.alpha == knot)[0])], point)
    out = []
    corners = [np.zeros(2), np.array([1.0, 0.0]), np.array([1.0, 1.0])]
    path_losses(lambda w: out.append(w.copy()) or 0.0, corners, [-0.5, 1.5])
    np.testing.assert_allclose(out, [[-1.0, 0.0], [1.0, 2.0]])


def test_a_line_of_one_loss_is_the_same_by_both_functions():
    (loss,) = quadratic(4)[1]
    a, b = np.random.default_rng(1).standard_normal((2, 4))
    path = path_losses(loss, [a, b], 7)
    np.testing.assert_array_equal(path.loss, line_losses(loss, a, b, path.alpha))
    assert np.isnan(path.error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_writes_to_its_vector_changes_nothing_of_the_users(kind):
    def vandal(w):
        w *= 0
        w += 7
        return 1.0

    points = [kind(x) for x in ([1.0, 2.0], [3.0, 1.0], [0.0, 5.0])]
    copies = [numpy_of(p) for p in points]
    plane = plane_through(*points)
    axes = [numpy_of(plane.u), numpy_of(plane.v)]
    losses = [vandal, vandal]
    path_losses(losses, points, 3)
    line_losses(vandal, points[0], points[1], [0.0, 0.5, 1.0])
    plane_losses(losses, plane, [0.0, 1.0], [0.0])
    near_plane(losses, plane, points)
    cross_section(losses, points[0], [points[1]], reach=1.0, places=3)
    random_direction(points[0], rng=np.random.default_rng(0), scale="whole", flat="keep")
    for point, copy in zip([*points, plane.u, plane.v], [*copies, *axes], strict=True):
        np.testing.assert_array_equal(numpy_of(point), copy)


@pytest.mark.parametrize("value", [np.inf, np.nan, -np.inf])
def test_a_loss_that_is_not_finite_is_kept_and_said(value):
    def loss(w):
        return value if w[0] == 0.5 else float(w[0])

    path = path_losses([loss, lambda w: 1.0], [np.zeros(1), np.ones(1)], 3)
    np.testing.assert_array_equal(path.loss, [0.5, value, 1.0])
    assert np.isnan(path.error[1])
    assert path.not_finite.tolist() == [0.5]
    grid = plane_losses(lambda w: value if w[0] > 0 else 0.0, plane_along(np.zeros(2), *np.eye(2)), [0.0, 2.0], [1.0])
    np.testing.assert_array_equal(grid.loss, [[0.0], [value]])
    assert grid.not_finite.tolist() == [[2.0, 1.0]]
    known = {"curvatures": 0.0, "gradient": np.ones(1)}
    section = cross_section([loss, loss], np.zeros(1), np.eye(1), reach=1.0, places=5, **known)
    np.testing.assert_array_equal(section.loss[0], [-1.0, -0.5, 0.0, value, 1.0])
    assert section.not_finite.tolist() == [[0.0, 0.5]]
    np.testing.assert_array_equal(np.isfinite(section.departure[0]), np.arange(5) != 3)


def zero(w):
    return 0.0


ONE = np.ones(2)
BAD_LINES = {
    "one point": (lambda: path_losses(zero, [ONE]), "two or more points"),
    "the same point": (lambda: path_losses(zero, [ONE, 2 * ONE, 2 * ONE]), "points 1 and 2 of the path are the same"),
    "other shapes": (lambda: path_losses(zero, [ONE, np.ones(3)]), r"one shape, got \(2,\), \(3,\)"),
    "matrices": (lambda: path_losses(zero, [np.eye(2), np.ones((2, 2))]), r"number 0 is of shape \(2, 2\)"),
    "numbers": (lambda: path_losses(zero, [1.0, 2.0]), "number 0 is of float"),
    "not finite": (lambda: path_losses(zero, [ONE, ONE * np.nan]), "number 1 has entries that are not"),
    "alphas fall": (lambda: path_losses(zero, [ONE, 2 * ONE], [1.0, 0.0]), "finite and increasing"),
    "alphas nan": (lambda: path_losses(zero, [ONE, 2 * ONE], [0.0, np.nan]), "finite and increasing"),
    "no alphas": (lambda: path_losses(zero, [ONE, 2 * ONE], []), "finite and increasing"),
    "one place": (lambda: path_losses(zero, [ONE, 2 * ONE], 1), "at least 2"),
    "line shapes": (lambda: line_losses(zero, ONE, np.ones(3), [0.0]), "one shape"),
    "line alphas": (lambda: line_losses(zero, ONE, 2 * ONE, [np.inf]), "alphas must be finite"),
}


@pytest.mark.parametrize(("call", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- planes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@given(dim=st.integers(2, 8), seed=seeds)
def test_the_plane_through_three_points(kind, dim, seed):
    rng = np.random.default_rng(seed)
    a, b, c, p = (kind(x) for x in rng.standard_normal((4, dim)))
    side, other = numpy_of(b - a), numpy_of(c - a)
    assume(abs(side @ other) < 0.99 * np.linalg.norm(side) * np.linalg.norm(other))
    plane = plane_through(a, b, c)
    tol = 2e-5 if np.asarray(a).dtype == np.float32 else 1e-10
    np.testing.assert_allclose(plane.gram, np.eye(2), atol=tol)
    for point, expected in ((a, (0, 0)), (b, (np.linalg.norm(side), 0))):
        x, y, off = plane.coordinates(point)
        np.testing.assert_allclose((x, y, off), (*expected, 0), atol=tol * 10)
    x, y, off = plane.coordinates(c)
    assert y > 0
    assert np.hypot(x, y) == pytest.approx(np.linalg.norm(other), abs=tol * 10)
    # The projection is the nearest point of the plane: least squares.
    basis = np.stack([numpy_of(plane.u), numpy_of(plane.v)], axis=1)
    off_p = numpy_of(p) - numpy_of(a)
    solution, *_ = np.linalg.lstsq(basis, off_p, rcond=None)
    x, y, off = plane.coordinates(p)
    np.testing.assert_allclose((x, y), solution, atol=1e-9)
    assert off == pytest.approx(np.linalg.norm(off_p - basis @ solution), abs=1e-9)


@given(seed=seeds)
def test_directions_as_they_are_make_an_oblique_plane(seed):
    origin, u, v, p = np.random.default_rng(seed).standard_normal((4, 5))
    plane = plane_along(origin, 3 * u, v)
    x, y, off = plane.coordinates(origin + 2 * 3 * u - v)
    np.testing.assert_allclose((x, y, off), (2, -1, 0), atol=1e-8)
    assert plane.units == pytest.approx((3 * np.linalg.norm(u), np.linalg.norm(v)))
    assert plane.cosine == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    x, y, off = plane.coordinates(p)
    assert off == pytest.approx(np.linalg.norm(p - plane.at(x, y)))


@pytest.mark.parametrize("dim", [3, 6])
def test_losses_near_a_plane_are_told_from_those_in_it(dim):
    losses = quadratic(dim, 4)[1]
    rng = np.random.default_rng(2)
    a, b, c, *points = rng.standard_normal((6, dim))
    plane = plane_through(a, b, c)
    near = near_plane(losses, plane, points)
    for k, p in enumerate(points):
        shadow = plane.at(near.x[k], near.y[k])
        assert near.loss[k] == pytest.approx(np.mean([f(p) for f in losses]))
        assert near.projected_loss[k] == pytest.approx(np.mean([f(shadow) for f in losses]))
        assert near.off[k] == pytest.approx(np.linalg.norm(p - shadow))
        gaps = [f(p) - f(shadow) for f in losses]
        assert near.gap[0][k] == pytest.approx(np.mean(gaps))
        assert near.gap[1][k] == pytest.approx(np.std(gaps, ddof=1) / 2)
    assert np.abs(near.gap[0]).min() > 0.005  # the contour's loss is not theirs


def test_the_gap_off_a_plane_through_the_minimum():
    """r'Hr/2 for a displacement r off the plane of two eigenvectors through the minimum."""
    h = np.diag([1.0, 2.0, 5.0, 7.0])
    plane = plane_along(np.zeros(4), *np.eye(4)[:2])
    near = near_plane(lambda w: w @ h @ w / 2, plane, [np.array([0.3, -1.0, 0.5, 2.0])])
    assert near.gap[0][0] == pytest.approx((5 * 0.25 + 7 * 4) / 2)
    assert near.off[0] == pytest.approx(np.hypot(0.5, 2.0))


def test_a_grid_is_ordered_x_by_y():
    losses = quadratic(4, 2)[1]
    plane = plane_along(*np.random.default_rng(4).standard_normal((3, 4)))
    x, y = [0.0, 1.0, 3.0], [-1.0, 2.0]
    grid = plane_losses(losses, plane, x, y)
    expected = [[np.mean([f(plane.origin + a * plane.u + b * plane.v) for f in losses]) for b in y] for a in x]
    np.testing.assert_allclose(grid.loss, expected)
    assert grid.error.shape == (3, 2)


def test_a_small_distance_from_a_plane_is_not_lost():
    plane = plane_along(np.zeros(3), *np.eye(3)[:2])
    assert plane.coordinates(np.array([1e8, 1e8, 1e-3]))[2] == pytest.approx(1e-3)


E = np.eye(3)
BAD_PLANES = {
    "collinear": (lambda: plane_through(E[0], 2 * E[0], 5 * E[0]), "on one line"),
    "collinear in float32": (
        lambda: plane_through(*(np.float32(0.1) * np.arange(1, 4, dtype=np.float32) * k for k in (1, 2, 3))),
        "on one line",
    ),
    "coincide": (lambda: plane_through(E[0], E[1], E[0]), "first and third point of a plane coincide"),
    "coincide, last two": (lambda: plane_through(E[0], E[1], E[1]), "second and third point"),
    "shapes": (lambda: plane_through(E[0], E[1], np.ones(2)), "one shape"),
    "parallel": (lambda: plane_along(E[0], E[1], -2 * E[1]), "must not be parallel"),
    "zero": (lambda: plane_along(E[0], E[1], 0 * E[1]), "must not be zero"),
    "grid": (lambda: plane_losses(zero, plane_along(*E), [1.0, 1.0], [0.0]), "x must be finite, increasing"),
    "grid nan": (lambda: plane_losses(zero, plane_along(*E), [1.0], [np.nan]), "y must be finite, increasing"),
    "no points": (lambda: near_plane(zero, plane_along(*E), []), "at least one point"),
    "a point elsewhere": (lambda: near_plane(zero, plane_along(*E), [np.ones(2)]), "one shape"),
}


@pytest.mark.parametrize(("call", "message"), BAD_PLANES.values(), ids=BAD_PLANES)
def test_bad_planes_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- directions ------------------------------------------------------------------------------------------------------
shapes = st.lists(st.lists(st.integers(1, 4), max_size=4).map(tuple), min_size=1, max_size=4)


@given(shapes, seeds, st.sampled_from(["filter", "tensor", "whole", "none"]), st.sampled_from(["zero", "keep"]))
def test_each_part_of_a_direction_has_the_norm_of_its_weights(listed, seed, scale, flat):
    rng = np.random.default_rng(seed)
    sizes = [int(np.prod(s)) for s in listed]
    w, d = rng.standard_normal((2, sum(sizes)))
    assume(flat == "keep" or any(len(s) > 1 for s in listed))
    found = scale_direction(d, w, shapes={f"p{k}": s for k, s in enumerate(listed)}, scale=scale, flat=flat)
    cuts = np.cumsum(sizes)[:-1]
    for f, x, y, shape in zip(np.split(found, cuts), np.split(w, cuts), np.split(d, cuts), listed, strict=True):
        if len(shape) < 2 and flat == "zero":
            assert not f.any()
            continue
        filters = shape[0] if scale == "filter" and len(shape) > 1 else 1
        for fi, xi, yi in zip(*(np.split(z, filters) for z in (f, x, y)), strict=True):
            cosine = fi @ yi / np.linalg.norm(fi) / np.linalg.norm(yi)
            assert cosine == pytest.approx(1.0)  # scaled, not turned
            if scale in ("filter", "tensor"):
                assert np.linalg.norm(fi) == pytest.approx(np.linalg.norm(xi))
    if scale == "whole":
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(w))
    if scale == "none" and flat == "keep":
        np.testing.assert_array_equal(found, d)


def test_filter_scaling_against_a_loop_over_a_convolution():
    rng = np.random.default_rng(0)
    w, d = rng.standard_normal((2, 5, 3, 2, 2))
    expected = np.stack([d[i] * np.linalg.norm(w[i]) / np.linalg.norm(d[i]) for i in range(5)])
    np.testing.assert_allclose(scale_direction(d.ravel(), w.ravel(), shapes=[w.shape]), expected.ravel())


def test_scaling_is_blind_to_the_scale_freedom_of_relu_layers():
    """Weights of one layer times c, of the next over c: the scaled direction follows, so the slice looks the same."""
    rng = np.random.default_rng(0)
    w, d = rng.standard_normal((2, 12))
    factors = np.repeat([10.0, 0.1], 6)
    plain = scale_direction(d, w, shapes=[(2, 3), (3, 2)])
    np.testing.assert_allclose(scale_direction(d, w * factors, shapes=[(2, 3), (3, 2)]), plain * factors)


@pytest.mark.parametrize("kind", KINDS)
def test_random_directions_are_seeded_and_of_the_points_kind(kind):
    point = kind(np.linspace(1, 2, 12))
    first, again = (random_direction(point, rng=np.random.default_rng(5), shapes=[(3, 4)]) for _ in range(2))
    assert type(first) is type(point)
    assert first.dtype == point.dtype
    np.testing.assert_array_equal(numpy_of(first), numpy_of(again))
    assert norm(first) == pytest.approx(norm(point), rel=1e-6)


def test_the_curvature_along_random_directions_is_the_trace_over_the_dimension():
    h, _ = quadratic(8)
    rng, found = np.random.default_rng(1), []
    for _ in range(2000):
        u = random_direction(np.ones(8), rng=rng, scale="none", flat="keep")
        found.append(u @ h @ u / (u @ u))
    assert abs(np.mean(found) - np.trace(h) / 8) < 4 * np.std(found) / np.sqrt(len(found))


def test_the_curvature_along_scaled_directions_is_that_of_the_parts():
    h, w = quadratic(6)[0], np.array([3.0, 1.0, 0.2, 0.1, 2.0, 5.0])
    rng, found = np.random.default_rng(1), []
    for _ in range(2000):
        d = random_direction(w, rng=rng, shapes=[(2, 2), (2,)])
        found.append(d @ h @ d)
    expected = sum(w[s] @ w[s] * np.trace(h[s, s]) / 2 for s in (slice(0, 2), slice(2, 4)))  # the last is left out
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(len(found))


W = np.arange(1.0, 7.0)
BAD_DIRECTIONS = {
    "no shapes": (lambda: scale_direction(W, W), "needs the shapes"),
    "no shapes to zero": (lambda: scale_direction(W, W, scale="whole"), "needs the shapes"),
    "wrong shapes": (lambda: scale_direction(W, W, shapes=[(2, 2)]), "hold 4 numbers together, the vector 6"),
    "scale": (lambda: scale_direction(W, W, scale="filters"), "unknown scale 'filters'.*Did you mean 'filter'"),
    "flat": (lambda: scale_direction(W, W, flat="zeros", shapes=[(6, 1)]), "Did you mean 'zero'"),
    "nothing left": (lambda: scale_direction(W, W, shapes=[(6,)]), "nothing is left"),
    "zero weights": (lambda: scale_direction(W, 0 * W, shapes=[(2, 3)]), "nothing is left"),
    "shape": (lambda: scale_direction(W, W[1:], shapes=[(2, 3)]), "one shape"),
    "no model": (lambda: shapes_of(3), "got int"),
}


@pytest.mark.parametrize(("call", "message"), BAD_DIRECTIONS.values(), ids=BAD_DIRECTIONS)
def test_bad_directions_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_summed_in_float64_piece_by_piece(kind, monkeypatch):
    monkeypatch.setattr("riverval._vectors._PIECE", 7)
    x, y = np.random.default_rng(0).standard_normal((2, 40)).astype(np.float32).astype(np.float64)
    assert dot(kind(x), kind(y)) == pytest.approx(x @ y, rel=1e-12)
    assert distance(kind(x), kind(y)) == pytest.approx(np.linalg.norm(x - y), rel=1e-12)
    assert norm(kind(1e25 * x)) == pytest.approx(1e25 * np.linalg.norm(x), rel=1e-6)


def test_whole_numbers_do_not_round_what_is_made_like_them():
    assert like(np.array([1, 2]), [0.5, 1.5]).tolist() == [0.5, 1.5]


# --- cross-sections --------------------------------------------------------------------------------------------------
@given(dim=st.integers(2, 6), seed=st.integers(0, 99), rise=st.floats(0.01, 10))
def test_a_section_of_a_quadratic_is_its_prediction(dim, seed, rise):
    h, losses = quadratic(dim, 3, seed)
    values, vectors = np.linalg.eigh(h)
    w = np.random.default_rng(seed).standard_normal(dim)
    centre = np.mean([f(w) for f in losses])
    # Central differences, exact for a quadratic.
    gradient = np.array([np.mean([f(w + e) - f(w - e) for f in losses]) / 2 for e in np.eye(dim)])
    section = cross_section(losses, w, vectors, curvatures=values, gradient=gradient, rise=rise, places=5)
    np.testing.assert_allclose(section.departure, 0.0, atol=1e-9 * (1 + rise))
    np.testing.assert_allclose(section.slope, vectors.T @ gradient, atol=1e-12)
    np.testing.assert_allclose(values * section.reach**2 / 2, rise)
    np.testing.assert_allclose(section.loss[:, 2], centre)
    assert (section.rise[1][:, 2] == 0).all()
    k, j = dim - 1, 4
    at = w + section.distance[k, j] * vectors[:, k]
    rises = [f(at) - f(w) for f in losses]
    assert section.rise[0][k, j] == pytest.approx(np.mean(rises))
    assert section.rise[1][k, j] == pytest.approx(np.std(rises, ddof=1) / np.sqrt(3))


def test_a_quartic_wall_departs_by_its_own_term():
    known = {"curvatures": 2.0, "gradient": np.zeros(1)}
    section = cross_section(lambda w: w[0] ** 2 + w[0] ** 4, np.zeros(1), np.eye(1), reach=2.0, **known)
    np.testing.assert_allclose(section.departure[0], section.distance[0] ** 4, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_directions_of_any_length_and_kind_become_unit_vectors(kind):
    directions = [np.array([7.0, 0.0]), kind([0.0, 0.1])]
    section = cross_section(
        lambda w: float(2 * w[0] ** 2 + w[1] ** 2 / 2), kind([0.0, 0.0]), directions, reach=[1.0, 3.0], places=3
    )
    np.testing.assert_allclose(section.loss, [[2, 0, 2], [4.5, 0, 4.5]], rtol=1e-6)
    assert section.names == ["v1", "v2"]
    assert np.isnan(section.predicted).all()


BAD_SECTIONS = {
    "both": ({"rise": 1.0, "reach": 1.0}, "either reach"),
    "neither": ({}, "either reach"),
    "negative curvature": ({"rise": 1.0, "curvatures": [1.0, -1.0]}, "needs positive curvatures"),
    "unknown curvature": ({"rise": 1.0}, "needs positive curvatures"),
    "rise": ({"rise": 0.0, "curvatures": 1.0}, "rise must be"),
    "reach": ({"reach": [1.0, 0.0]}, "reach must be above 0"),
    "reaches": ({"reach": [1.0, 1.0, 1.0]}, "one number, or 2"),
    "even": ({"reach": 1.0, "places": 4}, "must be odd"),
    "names": ({"reach": 1.0, "names": ["a", "a"]}, "2 different names"),
    "gradient": ({"reach": 1.0, "gradient": np.ones(3)}, "one shape"),
    "one vector": ({"reach": 1.0, "directions": np.ones(2)}, "put a single vector into a list"),
    "no direction": ({"reach": 1.0, "directions": []}, "at least one direction"),
    "zero": ({"reach": 1.0, "directions": [np.zeros(2)]}, "direction 0 is zero"),
    "dimension": ({"reach": 1.0, "directions": np.eye(3)}, "one shape"),
}


@pytest.mark.parametrize(("options", "message"), BAD_SECTIONS.values(), ids=BAD_SECTIONS)
def test_bad_sections_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        cross_section(zero, np.zeros(2), **{"directions": np.eye(2), **options})


# --- datasets --------------------------------------------------------------------------------------------------------
def test_a_path_its_tests_and_its_null_are_stored(tmp_path):
    h, losses = quadratic(5, 4)
    a, b = np.random.default_rng(0).standard_normal((2, 5))
    path = path_losses(losses, [a, b], 5)
    curvature = (b - a) @ h @ (b - a)
    ds = path_dataset(path, tests=[test(path) for test in TESTS.values()], curvature=curvature, source="toy")
    back = store.load(store.save(ds, tmp_path / "run.nc"))
    np.testing.assert_array_equal(back["line_loss"], path.loss)
    np.testing.assert_allclose(back["line_null"], path.loss)
    assert back["test"].values.tolist() == list(TESTS)
    assert float(back["line_test_estimate"].sel(test="midpoint")) == pytest.approx(-curvature / 8)
    assert all(len(str(null)) > 20 for null in back["line_test_null"].values)


def test_a_plane_with_iterates_is_stored(tmp_path):
    _, losses = quadratic(5, 4)
    points = list(np.random.default_rng(0).standard_normal((6, 5)))
    plane = plane_through(*points[:3])
    grid = plane_losses(losses, plane, np.linspace(-1, 1, 4), np.linspace(-2, 2, 5))
    near = near_plane(losses, plane, points)
    back = store.load(store.save(plane_dataset(grid, near=near, states=[0, 5, 9, 10, 12, 20]), tmp_path / "run.nc"))
    np.testing.assert_array_equal(back["plane_loss"], grid.loss)
    np.testing.assert_allclose(back["plane_point_gap"], near.loss - near.projected_loss, atol=1e-12)
    np.testing.assert_allclose(back["plane_point_off"][:3], 0, atol=1e-12)
    assert back["plane_loss"].dims == ("plane_x", "plane_y")
    assert back["plane_point_state"].values.tolist() == [0, 5, 9, 10, 12, 20]


def test_a_section_is_stored(tmp_path):
    _, losses = quadratic(3, 2)
    known = {"names": ["a", "b", "c"], "curvatures": [1.0, 2.0, np.nan]}
    section = cross_section(losses, np.zeros(3), np.eye(3), reach=1.0, **known)
    back = store.load(store.save(section_dataset(section), tmp_path / "run.nc"))
    np.testing.assert_array_equal(back["section_loss"].sel(direction="b"), section.loss[1])
    assert np.isnan(back["section_curvature"]).values.tolist() == [False, False, True]


LINE = path_losses([zero, zero], [ONE, 2 * ONE], 3)
BENT = path_losses([zero, zero], [ONE, 2 * ONE, -ONE], 3)
GRID = plane_losses(zero, plane_along(*E), [0.0], [0.0])
NEAR = near_plane(zero, GRID.plane, [E[0]])
BAD_DATASETS = {
    "twice": (lambda: path_dataset(LINE, tests=[midpoint(LINE), midpoint(LINE)]), "different ones at one level"),
    "levels": (lambda: path_dataset(LINE, tests=[midpoint(LINE), convexity(LINE, level=0.1)]), "at one level"),
    "bent": (lambda: path_dataset(BENT, curvature=1.0), "straight line with both its ends"),
    "states": (lambda: plane_dataset(GRID, states=[1]), "one number for each point"),
    "too many states": (lambda: plane_dataset(GRID, near=NEAR, states=[1, 2]), "one number for each"),
}


@pytest.mark.parametrize(("call", "message"), BAD_DATASETS.values(), ids=BAD_DATASETS)
def test_what_does_not_fit_together_is_not_stored(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("name", ["landscape", "batched_losses", "directions", "sections", "valley"])
def test_examples_in_docstrings(name):
    import doctest
    import importlib

    assert doctest.testmod(importlib.import_module(f"riverval.{name}")).failed == 0
