"""Tests of shape: exact on quadratics, right about errors, and false as often as they say, by seeded simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from riverval.errors import InputError
from riverval.landscape import PathLosses, path_losses
from riverval.valley import TESTS, barrier, convexity, midpoint, monotonicity, noise_loss, quadratic_line

ALPHA = np.linspace(0.0, 1.0, 9)


def line(mean, *, noise=0.0, batches=8, seed=0, alpha=ALPHA, common=1.0, weights=None):
    """Batch losses around `mean`: a large part that a batch has at every place, and a part of its own at each."""
    rng = np.random.default_rng(seed)
    shares = np.full(batches, 1 / batches) if weights is None else np.asarray(weights) / np.sum(weights)
    values = mean + common * rng.standard_normal((batches, 1)) + noise * rng.standard_normal((batches, len(alpha)))
    return PathLosses(np.asarray(alpha), np.asarray(alpha), values, shares, np.array([0.0, 1.0]))


SHAPES = {
    "bowl": 4 * (ALPHA - 0.4) ** 2,
    "falling bowl": (ALPHA - 2) ** 2,
    "hill": -((ALPHA - 0.5) ** 2),
    "rising": ALPHA,
    "bump": np.exp(-(((ALPHA - 0.5) / 0.1) ** 2)) - ALPHA,
}
VERDICTS = {
    "bowl": ("no barrier", "convex", "convex", "not monotone"),
    "falling bowl": ("no barrier", "convex", "convex", "decreasing"),
    "hill": ("barrier", "not convex", "not convex", "not monotone"),
    "rising": ("undecided", "undecided", "undecided", "increasing"),
    "bump": ("barrier", "not convex", "not convex", "not monotone"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_verdicts_on_lines_of_known_shape(shape, noise):
    found = [test(line(SHAPES[shape], noise=noise, seed=1)).verdict for test in TESTS.values()]
    assert list(TESTS) == ["barrier", "midpoint", "convexity", "monotonicity"]
    assert tuple(found) == VERDICTS[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_line_seen_from_its_other_end_gives_the_same_verdicts(shape):
    one = line(SHAPES[shape], noise=1e-3, seed=1)
    other = PathLosses(1 - one.alpha[::-1], one.distance, one.batch_losses[:, ::-1], one.weights, one.knots)
    for test in TESTS.values():
        a, b = test(one), test(other)
        swapped = {"increasing": "decreasing", "decreasing": "increasing"}
        assert b.verdict == swapped.get(a.verdict, a.verdict)
        assert b.p_value == pytest.approx(a.p_value, rel=1e-6)


@given(st.integers(1, 6), st.integers(0, 99), st.integers(2, 5))
def test_a_quadratic_has_its_closed_forms(dim, seed, batches):
    rng = np.random.default_rng(seed)
    h = np.diag(rng.uniform(0.1, 3, dim))
    a, b, *centres = rng.standard_normal((2 + batches, dim))
    path = path_losses([lambda w, c=c: (w - c) @ h @ (w - c) / 2 for c in centres], [a, b], ALPHA)
    bend = (b - a) @ h @ (b - a)
    assert midpoint(path).estimate == pytest.approx(-bend / 8)
    np.testing.assert_allclose(convexity(path).estimates, bend, rtol=1e-6)
    inner = ALPHA[1:-1]
    np.testing.assert_allclose(barrier(path).estimates, -inner * (1 - inner) * bend / 2, rtol=1e-7, atol=1e-12)
    assert barrier(path).verdict == midpoint(path).verdict.replace("convex", "no barrier") == "no barrier"
    assert convexity(path).verdict == "convex"
    assert monotonicity(path).estimates == pytest.approx(np.diff(path.loss))
    # The batches have one Hessian: every contrast of second order is the same in each, its error is rounding.
    assert convexity(path).errors.max() < 1e-9
    same = path_losses([lambda w: w @ h @ w / 2] * 2, [a, b], np.linspace(0, 1, 41))  # fine: it may turn
    fall = abs(same.loss[-1] - same.loss[0])
    if abs(bend - 2 * fall) > 0.2 * bend:
        assert (monotonicity(same).verdict in ("decreasing", "increasing")) is bool(bend < 2 * fall)


@pytest.mark.parametrize("bend", [-3.0, -1.0, 1.0, 3.0])
def test_a_quadratic_that_bends_down_is_monotone_by_the_same_rule(bend):
    fall = 1.0
    found = monotonicity(line(quadratic_line(ALPHA, fall, 0.0, bend), common=1.0))
    assert (found.verdict == "decreasing") is (abs(bend) <= 2 * fall)
    assert "|d'Hd| <= 2 |L(1) - L(0)|" in found.null


def test_second_differences_of_places_that_are_not_even():
    alpha = np.array([0.0, 0.1, 0.35, 0.4, 1.0])
    np.testing.assert_allclose(convexity(line(3 * alpha**2 - alpha, alpha=alpha)).estimates, 6.0)
    cubic = convexity(line(alpha**3, alpha=alpha)).estimates
    np.testing.assert_allclose(cubic, 2 * (alpha[:-2] + alpha[1:-1] + alpha[2:]))


def test_estimate_error_t_and_interval_by_hand():
    path = line(SHAPES["hill"], noise=0.05, batches=5, seed=3, weights=[1, 2, 3, 4, 5])
    found = midpoint(path, level=0.1)
    each = path.batch_losses[:, 4] - (path.batch_losses[:, 0] + path.batch_losses[:, 8]) / 2
    mean = path.weights @ each
    error = np.sqrt(path.weights @ (each - mean) ** 2 / 4)
    assert (found.estimate, found.error, found.t) == pytest.approx((mean, error, mean / error))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(mean / error), 4))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.9, 4, mean, error))
    by_scipy = stats.ttest_1samp(line(SHAPES["hill"], noise=0.05, batches=5, seed=3).batch_losses @ row(), 0.0)
    assert midpoint(line(SHAPES["hill"], noise=0.05, batches=5, seed=3)).p_value == pytest.approx(by_scipy.pvalue)


def row():
    out = np.zeros(9)
    out[[0, 4, 8]] = -0.5, 1.0, -0.5
    return out


def test_the_correction_is_for_all_places():
    path = line(SHAPES["bump"], noise=0.3, seed=5)
    found = barrier(path)
    one_by_one = stats.t.sf(found.estimates / found.errors, 7)
    assert found.p_value == pytest.approx(min(1.0, 7 * one_by_one.min()))
    quantile = stats.t.ppf(1 - 0.05 / 14, 7)
    assert found.low == pytest.approx((found.estimates - quantile * found.errors).max())
    assert found.high == pytest.approx((found.estimates + quantile * found.errors).max())
    assert found.estimate == found.estimates.max()
    assert found.alpha == found.places[found.estimates.argmax()]
    assert convexity(path).p_value == pytest.approx(
        min(1.0, 7 * stats.t.cdf(convexity(path).estimates / convexity(path).errors, 7).min())
    )


def test_what_a_batch_has_at_every_place_is_no_noise():
    small, large = (midpoint(line(SHAPES["bowl"], noise=0.01, common=c, seed=2)) for c in (0.0, 100.0))
    assert small.error == pytest.approx(large.error, rel=1e-6)
    assert line(SHAPES["bowl"], noise=0.01, common=100.0, seed=2).error.min() > 1000 * large.error


def test_a_barrier_below_the_tolerance_does_not_count():
    path = line(0.01 * SHAPES["hill"], noise=1e-5)
    assert barrier(path).verdict == "barrier"
    assert barrier(path, tolerance=0.01).verdict == "no barrier"
    flat = line(np.zeros(9), noise=1e-5)
    assert (barrier(flat).verdict, barrier(flat, tolerance=0.001).verdict) == ("undecided", "no barrier")


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
def test_rounding_is_not_found_significant(test):
    """A straight line in float64, the same in every batch: nothing but rounding is left of its contrasts."""
    for seed in range(20):
        slope, level, batches = np.random.default_rng(seed).standard_normal((3, 1))
        path = line(level * 1e3 + slope * ALPHA, common=float(batches[0]))
        verdict = "increasing" if slope > 0 else "decreasing"
        assert test(path).verdict == (verdict if test is monotonicity else "undecided")


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
def test_one_batch_gives_an_estimate_but_no_verdict(test):
    found = test(line(SHAPES["bump"], batches=1))
    assert found.verdict == "undecided"
    assert np.isnan([found.error, found.p_value]).all()
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert found.estimate == pytest.approx(test(line(SHAPES["bump"], batches=1, common=0.0)).estimate, abs=1e-12)
    assert "one batch gives no error" in str(found)


def test_two_batches_decide_with_one_degree_of_freedom():
    assert midpoint(line(SHAPES["bowl"], noise=0.1, batches=2)).verdict == "undecided"
    assert midpoint(line(SHAPES["bowl"], noise=1e-3, batches=2)).verdict == "convex"


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
def test_every_finding_says_its_null_and_itself(test):
    found = test(line(SHAPES["bowl"], noise=0.01))
    assert "quadratic" in found.null
    assert found.verdict in str(found)
    assert "8 batches" in str(found)
    assert f"of: {found.null.split(';')[0]}" in str(found)  # "no barrier" with p = 1 is read wrongly without it


# --- calibration -----------------------------------------------------------------------------------------------------
RUNS = 500
NULLS = {  # the edge of each null hypothesis, where a false finding is most likely
    "midpoint": (midpoint, np.zeros(9), {"convex", "not convex"}),
    "barrier": (barrier, ALPHA, {"barrier"}),
    "no barrier": (barrier, np.where(ALPHA == 0.5, 0.0, -10.0 * ALPHA * (1 - ALPHA)), {"no barrier"}),
    "not convex": (convexity, ALPHA, {"not convex"}),
    "convex": (convexity, np.where(ALPHA < 0.5, ALPHA, ALPHA + 50 * (ALPHA - 0.5) ** 2), {"convex"}),
    "not monotone": (monotonicity, np.where(ALPHA < 0.5, 0.0, -10 * (ALPHA - 0.5)), {"not monotone"}),
    "decreasing": (monotonicity, np.where(ALPHA < 0.2, 0.0, -10 * ALPHA), {"decreasing"}),
}


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("batches", [3, 8])
def test_false_findings_are_as_rare_as_stated(name, batches):
    test, mean, false = NULLS[name]
    level = 0.1
    found = sum(test(line(mean, noise=0.1, batches=batches, seed=s), level=level).verdict in false for s in range(RUNS))
    error = np.sqrt(level * (1 - level) / RUNS)
    assert found / RUNS < level + 3 * error
    if name == "midpoint":  # one contrast: nothing is corrected, so the level is exact
        assert found / RUNS > level - 3 * error


def test_the_level_is_exact_for_batches_of_different_sizes():
    """Means of n examples with shares n / N."""
    sizes, level, count = np.array([1, 2, 4, 9]), 0.1, 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((4, 9)) / np.sqrt(sizes)[:, None]
        count += (
            midpoint(PathLosses(ALPHA, ALPHA, values, sizes / 16, ALPHA[[0, -1]]), level=level).verdict != "undecided"
        )
    assert abs(count / RUNS - level) < 3 * np.sqrt(level * (1 - level) / RUNS)


@pytest.mark.parametrize("name", TESTS)
def test_intervals_hold_what_they_estimate(name):
    """The largest barrier, whichever place shows it; and the contrast at the place that was picked."""
    truth, level = SHAPES["hill"] * 0.1, 0.2
    exact = TESTS[name](line(truth, common=0.0))
    missed = 0
    for seed in range(400):
        found = TESTS[name](line(truth, noise=0.05, batches=5, seed=seed), level=level)
        at = exact.estimates.max() if name == "barrier" else exact.estimates[list(found.places).index(found.alpha)]
        missed += not found.low <= at <= found.high
    assert missed / 400 < level + 3 * np.sqrt(level * (1 - level) / 400)


def test_the_midpoint_gives_the_noise_loss_of_stationary_iterates():
    """2 (mean of the ends - L(mid)) over many pairs of correlated iterates, against Tr(HS) / 2."""
    rng, rho = np.random.default_rng(0), 0.4
    h, s = np.diag([3.0, 1.0, 0.5]), np.array([0.2, 0.1, 0.4])
    values = []
    for _ in range(1000):
        common, one, two = rng.standard_normal((3, 3)) * np.sqrt(s)
        a, b = (np.sqrt(rho) * common + np.sqrt(1 - rho) * x for x in (one, two))
        path = path_losses(lambda w: w @ h @ w / 2, [a, b], [0.0, 0.5, 1.0])
        values.append(noise_loss(path, correlation=rho).value)
    exact = np.trace(h @ np.diag(s)) / 2
    assert abs(np.mean(values) - exact) < 3 * np.std(values) / np.sqrt(len(values))
    modes = np.diag(h) * s
    relative = np.sqrt(2 * (modes**2).sum() / modes.sum() ** 2)
    assert np.std(values) / exact == pytest.approx(relative, rel=0.16)


def test_the_noise_loss_has_the_error_of_the_midpoint():
    path = line(SHAPES["bowl"], noise=0.1)
    found, middle = noise_loss(path, correlation=0.5, level=0.1), midpoint(path, level=0.1)
    assert (found.value, found.error) == pytest.approx((-4 * middle.estimate, 4 * middle.error))
    assert (found.low, found.high) == pytest.approx((-4 * middle.high, -4 * middle.low))


# --- bad input -------------------------------------------------------------------------------------------------------
def without(place):
    kept = np.flatnonzero(place != ALPHA)
    return line(ALPHA[kept], alpha=ALPHA[kept])


BAD = {
    "no middle": (lambda: midpoint(without(0.5)), "needs the loss at alpha = 0.5"),
    "no end": (lambda: barrier(without(1.0)), "needs the loss at alpha = 1"),
    "nothing between": (lambda: barrier(line(np.zeros(2), alpha=np.array([0.0, 1.0]))), "a place between the ends"),
    "two places": (lambda: convexity(line(np.zeros(2), alpha=np.array([0.0, 1.0]))), "at least 3 places, got 2"),
    "one place": (lambda: monotonicity(line(np.zeros(1), alpha=np.array([0.0]))), "at least 2 places, got 1"),
    "level": (lambda: midpoint(line(ALPHA), level=1.0), "level must be"),
    "tolerance": (lambda: barrier(line(ALPHA), tolerance=-1.0), "tolerance"),
    "correlation": (lambda: noise_loss(line(ALPHA), correlation=1.0), "correlation must be"),
    "curvature": (lambda: quadratic_line([0.0], 1.0, 1.0, np.nan), "curvature"),
    "alphas": (lambda: quadratic_line([np.inf], 1.0, 1.0, 1.0), "alphas must be finite"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_loss_that_is_not_finite_is_no_evidence(value):
    mean = SHAPES["bowl"].copy()
    mean[3] = value
    for name, test in TESTS.items():
        if name == "midpoint":  # which does not look there
            assert test(line(mean)).verdict == "convex"
            continue
        with pytest.raises(InputError, match=r"not finite at alpha = 0\.375"):
            test(line(mean))
