"""Gains of groups: errors, nulls and the choice of states, against enumeration and simulation. No torch, no model."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.experiments import predictability as p

shapes = st.tuples(st.integers(2, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))


def test_examples_in_docstrings():
    assert doctest.testmod(p).failed == 0


# --- states ----------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 500), min_size=0, max_size=25, unique=True), st.integers(0, 25))
def test_no_state_of_a_gain_makes_groups(numbers, cut):
    states = sorted(numbers)
    plan = p.stations({"stable": states[: cut + 1], "cooldown": states[cut:], "descent": [1, 2, 3]})
    ends = {state for pair in plan.gains.values() for state in pair}
    assert not ends & set(plan.reference)
    assert {*ends, *plan.reference} <= set(plan.states) <= set(states)
    assert list(plan.states) == sorted(set(plan.states))
    assert len(plan.reference) <= 2
    again = p.stations({name: [t for t in kept if t in plan.states] for name, kept in
                        (("stable", states[: cut + 1]), ("cooldown", states[cut:]))})  # fmt: skip
    assert again == plan  # what a sketched run keeps in full is enough to find them again


def test_the_groups_are_made_within_the_stable_phase_if_there_is_one():
    stable, cooldown = list(range(0, 121, 10)), list(range(120, 201, 10))
    plan = p.stations({"stable": stable, "cooldown": cooldown})
    assert plan.gains == {"stable": (0, 120), "settled": (60, 120), "cooldown": (120, 200)}
    assert plan.reference == (30, 90)
    assert plan.states == (0, 30, 60, 90, 120, 160, 200)
    assert p.stations({"cooldown": cooldown}).reference == (140, 180)
    assert p.stations({"stable": stable}).gains == {"stable": (0, 120), "settled": (60, 120)}
    assert p.stations({"stable": [0, 1, 2], "cooldown": cooldown}).reference == (140, 180)
    assert p.stations({"stable": [0, 2]}) == p.Stations({"stable": (0, 2)}, (), (0, 2))
    assert p.stations({}) == p.Stations({}, (), ())


def test_groups_made_at_a_state_of_the_gain_regress_to_the_mean():
    """Every image learns the same, 0.2; its loss and entropy at a state fluctuate together."""
    rng = np.random.default_rng(0)
    own = rng.gamma(2.0, 0.5, (4000, 1))
    common = [own + 0.5 * rng.standard_normal(own.shape) for _ in range(4)]  # entropies at four states
    before, after = (entropy + 0.1 * rng.standard_normal(own.shape) for entropy in (common[0] + 0.2, common[1]))
    gain = before - after

    def leaning(reference):
        labels = p.quantile_bins(reference)
        mean, error = p.group_means(labels, gain)
        null, std = p.shuffled_groups(labels, gain)
        return np.abs((mean - null) / std), p.slope(reference, gain), mean, error

    biased, (tilt, tilt_error), mean, error = leaning(common[0])
    assert biased.max() > 15  # the uncertain seem to gain, the certain to lose
    assert tilt > 15 * tilt_error
    assert mean[0] < -10 * error[0]
    reverse, (tilt, tilt_error), *_ = leaning(common[1])
    assert reverse.max() > 15
    assert tilt < -15 * tilt_error
    fair, (tilt, tilt_error), mean, error = leaning((common[2] + common[3]) / 2)
    assert fair.max() < 4
    assert abs(tilt) < 3 * tilt_error
    assert np.all(np.abs(mean - 0.2) < 4 * error)


# --- bins ------------------------------------------------------------------------------------------------------------
def test_bins_are_equal_shares_in_the_order_of_the_reference():
    reference = np.random.default_rng(0).standard_normal((50, 10))
    labels = p.quantile_bins(reference)
    assert np.bincount(labels.ravel()).tolist() == [50] * 10
    assert all(reference[labels == k].max() < reference[labels == k + 1].min() for k in range(9))
    assert p.quantile_bins(reference[:5]).max() == 1  # 50 members make two bins of 20 or more


def test_equal_values_share_a_bin():
    reference = np.repeat([0.0, 0.0, 0.0, 1.0, 2.0], 20)[:, None]
    labels = p.quantile_bins(reference)
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert [np.unique(reference[labels == k]).tolist() for k in range(3)] == [[0.0], [1.0], [2.0]]
    with pytest.raises(InputError, match="the same reference entropy"):
        p.quantile_bins(np.zeros((100, 1)))
    with pytest.raises(InputError, match="at least 40"):
        p.quantile_bins(np.arange(39.0)[:, None])


# --- errors ----------------------------------------------------------------------------------------------------------
def test_of_single_images_the_error_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    labels, values = rng.integers(0, 3, (60, 1)), rng.standard_normal((60, 1))
    mean, error = p.group_means(labels, values)
    for k in range(3):
        own = values[labels == k]
        assert mean[k] == pytest.approx(own.mean())
        assert error[k] == pytest.approx(own.std(ddof=1) / np.sqrt(len(own)))


def clustered(rng, n=160, length=12, per_token=0.5, per_sequence=1.0):
    """Values whose sequences have each their own level, references that have too, and a true slope of 0.3."""
    reference = rng.gamma(2.0, 0.5, (n, length)) + rng.gamma(1.0, 0.5, (n, 1))
    noise = per_token * rng.standard_normal((n, length)) + per_sequence * rng.standard_normal((n, 1))
    return reference, 0.3 * reference + noise


def test_errors_are_those_that_repetition_shows():
    """In samples of sequences, the spread of the estimates is the error they say; that of single tokens is smaller."""
    found = []
    for seed in range(400):
        reference, values = clustered(np.random.default_rng(seed))
        labels = (reference > 1.5).astype(np.int64)
        mean, error = p.group_means(labels, values)
        other = 0.5 * reference + 0.3 * np.random.default_rng(seed + 1000).standard_normal(reference.shape) + 1.0
        found.append([mean[0], mean[1], *p.slope(reference, values), *error, *p.contrast(reference, other, values + 4)])
    low, high, slope, slope_error, low_error, high_error, contrast, contrast_error = np.array(found).T
    for estimates, errors in ((low, low_error), (high, high_error), (slope, slope_error), (contrast, contrast_error)):
        # 400 repetitions know a standard deviation to 3.5 %
        assert errors.mean() == pytest.approx(estimates.std(ddof=1), rel=0.12)
    assert abs(slope.mean() - 0.3) < 4 * slope.std() / 20
    naive = np.sqrt(1.25) / np.sqrt((labels == 0).sum())
    assert low_error.mean() > 1.5 * naive


def test_the_slope_is_the_least_squares_line():
    reference, values = clustered(np.random.default_rng(0))
    assert p.slope(reference, values)[0] == pytest.approx(np.polyfit(reference.ravel(), values.ravel(), 1)[0])
    assert p.slope(reference, 2.0 * reference) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-12))
    assert np.isnan(p.slope(np.ones((4, 2)), values[:4, :2])).all()


def test_the_contrast_tells_what_each_phase_serves():
    rng = np.random.default_rng(0)
    reference = rng.gamma(2.0, 0.5, (40, 6))
    even = np.full(reference.shape, 0.1)
    assert p.contrast(reference, even, reference) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))
    assert p.contrast(reference, reference, even)[0] == pytest.approx(-1.0)
    assert p.contrast(reference, reference, 7 * reference)[0] == pytest.approx(0.0)  # each at its own rate
    # The jackknife by its definition: leave out each sequence in turn.
    first, second = (reference + rng.standard_normal(reference.shape) for _ in range(2))
    value, error = p.contrast(reference, first, second)
    left = [p.contrast(*(np.delete(v, k, axis=0) for v in (reference, first, second)))[0] for k in range(40)]
    assert error == pytest.approx(np.sqrt(39 / 40 * ((left - np.mean(left)) ** 2).sum()))
    leans = [p.slope(reference, g)[0] * reference.mean() / g.mean() for g in (first, second)]
    assert value == pytest.approx(leans[1] - leans[0])
    left = [p.slope(*(np.delete(v, k, axis=0) for v in (reference, first)))[0] for k in range(40)]
    assert p.slope(reference, first)[1] == pytest.approx(np.sqrt(39 / 40 * ((left - np.mean(left)) ** 2).sum()))


# --- nulls -----------------------------------------------------------------------------------------------------------
@given(shapes)
def test_the_null_is_exact_over_all_orders(shape):
    n, length, seed = shape
    rng = np.random.default_rng(seed)
    weights, values = rng.standard_normal((2, n, length))
    every = [(weights * values[list(order)]).sum() for order in itertools.permutations(range(n))]
    mean, std = p.shuffled(weights, values)
    assert mean == pytest.approx(np.mean(every), abs=1e-10)
    assert std == pytest.approx(np.std(every), abs=1e-10)


def test_of_single_images_the_null_is_drawing_without_replacement():
    rng = np.random.default_rng(0)
    labels, values = rng.integers(0, 3, (50, 1)), rng.standard_normal((50, 1))
    mean, std = p.shuffled_groups(labels, values)
    assert mean == pytest.approx(values.mean())
    counts = np.bincount(labels.ravel())
    np.testing.assert_allclose(std, values.std() * np.sqrt((1 / counts) * (50 - counts) / 49))


def test_groups_that_the_gains_do_not_know_lie_within_the_null():
    """Gains and entropies both have levels of their own in each sequence, and both depend on the place in it."""
    place = np.linspace(0.0, 1.0, 12)
    scores, tilts = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        reference = rng.gamma(2.0, 0.5, (40, 12)) + rng.gamma(1.0, 0.5, (40, 1)) - place
        gain = 1.0 + 0.3 * rng.standard_normal((40, 12)) + 0.5 * rng.standard_normal((40, 1)) - place
        labels = p.quantile_bins(reference)
        null, std = p.shuffled_groups(labels, gain)
        scores.append((p.group_means(labels, gain)[0] - null) / std)
        null, std = p.shuffled_slope(reference, gain)
        tilts.append((p.slope(reference, gain)[0] - null) / std)
    for found in (np.array(scores), np.array(tilts)):
        assert np.all(np.abs(found.mean(axis=0)) < 4 / np.sqrt(200))
        np.testing.assert_allclose(found.std(axis=0), 1.0, rtol=0.2)


def test_both_forms_of_the_null_are_one():
    rng = np.random.default_rng(0)
    weights, values = rng.standard_normal((2, 6, 6))
    wide = p.shuffled(*(np.hstack([v, np.zeros((6, 9))]) for v in (weights, values)))  # zeros change nothing
    assert p.shuffled(weights, values) == pytest.approx(wide)


def test_one_sequence_has_no_error_and_no_null():
    labels, values = np.array([[0, 1, 1]]), np.array([[1.0, 2.0, 4.0]])
    mean, error = p.group_means(labels, values)
    assert mean.tolist() == [1.0, 3.0]
    assert np.isnan(error).all()
    assert np.isnan(p.shuffled(values, values)[1])
    assert np.isnan(p.slope(values, values)[1])
    assert np.isnan(p.contrast(values, values, values)[1])
