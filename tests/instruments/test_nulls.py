"""Every null in closed form against simulation in standard errors; every simulated one against its limit."""

from __future__ import annotations

import doctest
import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riverval import null_directions, nulls
from riverval.errors import InputError
from riverval.nulls import (
    RandomDirectionCurvature,
    RandomSubspace,
    cloud_shares,
    drift_share_null,
    effective_dimension,
    ou_gram,
    ou_shares,
    random_cosines,
    random_slope,
    random_walk_shares,
    same_batch_slopes,
    shuffled_cosine,
    simulate,
    simulate_shuffled,
    walk_gram,
    walk_shares,
)
from riverval.trajectory import (
    centred_gram,
    cosine,
    drift_share,
    path,
    pca_shares,
    quasi_convexity,
    random_reference,
    shares_of_gram,
    subspace_cosines,
)

SIGMAS = 4.0


def within(sample, expected, sigmas=SIGMAS):
    """Whether the mean of the draws (first axis) is `expected`, in standard errors."""
    sample = np.asarray(sample, dtype=float)
    error = sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
    assert np.all(np.abs(sample.mean(axis=0) - expected) <= sigmas * error + 1e-12), (
        sample.mean(axis=0),
        expected,
        error,
    )


def heavy_ball(lr, momentum, dim, rng):
    """States 0..T of pure noise, and the noise: x_{t+1} = x_t - lr[t] v_t, v_t = momentum v_{t-1} + xi_t."""
    noise = rng.standard_normal((len(lr), dim)) / np.sqrt(dim)
    v, states = np.zeros(dim), [np.zeros(dim)]
    for rate, xi in zip(lr, noise, strict=True):
        v = momentum * v + xi
        states.append(states[-1] - rate * v)
    return np.array(states), noise


@pytest.mark.parametrize("module", [nulls, null_directions])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


# --- paths -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_gram_matrix_of_a_walk_is_the_mean_of_many(momentum):
    rng = np.random.default_rng(0)
    lr = np.concatenate([np.full(20, 0.3), 0.3 * np.linspace(1, 0, 10, endpoint=False)])
    states = [3, 8, 20, 21, 30]
    draws = []
    for _ in range(400):
        x = heavy_ball(lr, momentum, 20, rng)[0][states]
        draws.append((x - x[0]) @ (x - x[0]).T)
    within(draws, walk_gram(lr, states, momentum=momentum))


@given(st.integers(2, 40), st.floats(1e-3, 10.0), st.integers(1, 5))
def test_evenly_spaced_states_of_a_walk_have_shares_in_closed_form(n, rate, spacing):
    found = random_walk_shares(np.full((n - 1) * spacing, rate), np.arange(n) * spacing)
    np.testing.assert_allclose(found, walk_shares(n), atol=1e-10)
    assert walk_shares(n).sum() == pytest.approx(1.0)


def test_the_shares_of_a_long_walk_tend_to_their_limit():
    np.testing.assert_allclose(walk_shares(5000)[:5], 6 / (np.pi * np.arange(1, 6)) ** 2, rtol=1e-4)
    assert walk_shares(5000)[0] == pytest.approx(0.6079, abs=1e-4)


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=30).filter(lambda lr: sum(lr) > 0.1), st.floats(0.0, 0.95))
def test_a_walk_with_momentum_is_the_filtered_noise(lr, momentum):
    lr, steps = np.array(lr), len(lr)
    reach = np.array(
        [[sum(lr[s] * momentum ** (s - t) for s in range(t, i)) for t in range(steps)] for i in range(steps + 1)]
    )
    found = walk_gram(lr, np.arange(steps + 1), momentum=momentum)
    np.testing.assert_allclose(found, reach @ reach.T, rtol=1e-9, atol=1e-9)
    late = walk_gram(lr, [steps - 1, steps], momentum=momentum)
    assert late[0, 0] == 0.0
    assert late[1, 1] == pytest.approx(((reach[-1] - reach[-2]) ** 2).sum(), abs=1e-9)


def test_a_long_walk_with_momentum_is_a_walk_once_it_is_sampled_rarely():
    lr, states = np.full(3000, 0.1), np.arange(0, 3001, 300)
    plain, heavy = walk_gram(lr, states), walk_gram(lr, states, momentum=0.9)
    assert heavy[-1, -1] / plain[-1, -1] == pytest.approx(1 / (1 - 0.9) ** 2, rel=0.01)
    np.testing.assert_allclose(shares_of_gram(heavy), shares_of_gram(plain), atol=0.01)


@pytest.mark.parametrize("stationary", [True, False])
def test_an_ornstein_uhlenbeck_process_has_its_gram_matrix(stationary):
    rng, theta, dim = np.random.default_rng(0), 0.3, 15
    times = np.array([1, 2, 5, 9])
    r, draws = np.exp(-theta), []
    for _ in range(1500):
        x = [rng.standard_normal(dim) if stationary else np.zeros(dim)]
        for _ in range(9):
            x.append(r * x[-1] + np.sqrt(1 - r**2) * rng.standard_normal(dim))
        kept = np.array(x)[times]
        draws.append(kept @ kept.T / dim)
    within(draws, ou_gram(times, theta, stationary=stationary))


def test_ornstein_uhlenbeck_shares_lie_between_a_walk_and_a_cloud():
    t = np.arange(20)
    np.testing.assert_allclose(ou_shares(t, 1e-6), walk_shares(20), atol=1e-5)
    np.testing.assert_allclose(ou_shares(t, 50.0), cloud_shares(20), atol=1e-9)
    # A process started at its centre, theta = 0.05, one sample an update: the values measured for the controls.
    started = [ou_shares(np.arange(1, n + 1), 0.05, stationary=False)[0] for n in (10, 20, 50, 200)]
    np.testing.assert_allclose(started, [0.54, 0.47, 0.37, 0.19], atol=0.008)


def test_a_cloud_in_high_dimension_has_equal_shares():
    x = np.random.default_rng(0).standard_normal((8, 100_000))
    np.testing.assert_allclose(pca_shares(x), cloud_shares(8), rtol=0.03)
    assert cloud_shares(8).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("dim", [1, 3, 12, 40])
def test_simulated_shares_are_those_of_drawn_paths(dim):
    """Both sides of the Wishart draw: fewer dimensions than states, and more."""
    rng, n = np.random.default_rng(1), 8
    drawn = [pca_shares(np.cumsum(rng.standard_normal((n, dim)), axis=0)) for _ in range(600)]
    found = simulate(
        shares_of_gram, np.minimum.outer(np.arange(1, n + 1), np.arange(1, n + 1)), dim, rng=rng, draws=600
    )
    error = np.sqrt(np.var(drawn, axis=0, ddof=1) / 600 + found.error**2)
    assert np.all(np.abs(np.mean(drawn, axis=0) - found.value) <= SIGMAS * error + 1e-9)
    np.testing.assert_allclose(found.error, found.sd / np.sqrt(600))
    if dim == 1:
        assert found.value[0] == pytest.approx(1.0)


def test_simulation_tends_to_the_expected_gram_matrix():
    rng, gram = np.random.default_rng(0), ou_gram(np.arange(6), 0.2)
    mean = simulate(lambda k: k, gram, 9, rng=rng, draws=2000)
    assert np.all(np.abs(mean.value - gram) <= SIGMAS * mean.error)
    # Var K_ij = (K_ii K_jj + K_ij^2) / dim of the Wishart law.
    np.testing.assert_allclose(mean.sd, np.sqrt((1 + gram**2) / 9), rtol=0.08)
    large = simulate(shares_of_gram, walk_gram(np.ones(20), range(21)), 10**8, rng=rng, draws=5)
    np.testing.assert_allclose(large.value, walk_shares(21), atol=1e-3)
    first, second = (simulate(shares_of_gram, gram, 9, rng=np.random.default_rng(3), draws=4) for _ in range(2))
    assert np.array_equal(first.value, second.value)


# --- measures of the path --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lr", [np.ones(40), np.linspace(1, 0, 40, endpoint=False)])
def test_the_drift_share_of_independent_steps_is_one_over_their_number(lr):
    assert drift_share(walk_gram(lr, range(41))) == pytest.approx(drift_share_null(40))
    assert drift_share_null(40) == 1 / 40
    x = np.cumsum(lr[:, None] * np.random.default_rng(0).standard_normal((40, 50_000)), axis=0)
    x = np.vstack([np.zeros(50_000), x])
    assert drift_share(centred_gram([x])) == pytest.approx(1 / 40, rel=0.05)


def test_the_drift_share_of_momentum_noise():
    lr, burn, n = np.ones(500), 300, 200
    found = drift_share(walk_gram(lr, range(burn, burn + n + 1), momentum=0.9))
    assert found == pytest.approx(drift_share_null(n, momentum=0.9), rel=1e-6)
    assert drift_share_null(10**5, momentum=0.9) == pytest.approx(19 / 10**5, rel=1e-3)
    rng, draws = np.random.default_rng(0), []
    for _ in range(200):
        u = np.diff(heavy_ball(np.ones(120), 0.8, 30, rng)[0], axis=0)[80:]
        draws.append([np.sum(u.mean(axis=0) ** 2), np.mean(np.sum(u**2, axis=1))])
    within(np.array(draws)[:, 0], drift_share_null(40, momentum=0.8) / (1 - 0.8**2))
    within(np.array(draws)[:, 1], 1 / (1 - 0.8**2))


def test_turns_and_tortuosity_of_the_nulls():
    walk = path(walk_gram(np.ones(100), range(101)))
    np.testing.assert_allclose(walk.cosines, 0.0, atol=1e-12)
    assert walk.tortuosity == pytest.approx(10.0)
    rates = np.linspace(1, 0, 100, endpoint=False)
    assert path(walk_gram(rates, range(101))).tortuosity == pytest.approx(rates.sum() / np.sqrt((rates**2).sum()))
    r = np.exp(-0.2)
    np.testing.assert_allclose(path(ou_gram(np.arange(9), 0.2)).cosines, -(1 - r) / 2)
    np.testing.assert_allclose(path(np.eye(9)).cosines, -0.5)
    turns = path(walk_gram(np.ones(400), range(300, 401), momentum=0.9)).cosines
    np.testing.assert_allclose(turns, 0.9, atol=1e-6)
    x = np.cumsum(np.random.default_rng(0).standard_normal((200, 1000)), axis=0)
    drawn = path(centred_gram([x])).cosines
    assert drawn.std() == pytest.approx(1 / np.sqrt(1000), rel=0.2)


def test_two_halves_of_a_walk_make_the_angle_of_random_directions():
    rng, dim, found = np.random.default_rng(0), 300, []
    for _ in range(300):
        x = np.cumsum(rng.standard_normal((20, dim)), axis=0)
        found.append(subspace_cosines(centred_gram([x]), range(10), range(10, 20))[0])
    null = RandomSubspace(dim)
    within(found, null.mean_abs)
    within(np.square(found), null.mean_square)
    for p in (0.5, 0.95):
        assert np.mean(np.array(found) < null.quantile(p)) == pytest.approx(p, abs=SIGMAS * np.sqrt(p * (1 - p) / 300))
    assert 0.002 < RandomSubspace(20_000).quantile(0.3) < RandomSubspace(20_000).mean_abs < 0.006


# --- directions ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("dim", "k"), [(2, 1), (3, 1), (5, 2), (40, 7)])
def test_a_random_direction_in_a_subspace(dim, k):
    v = np.random.default_rng(0).standard_normal((4000, dim))
    square = np.sum(v[:, :k] ** 2, axis=1) / np.sum(v**2, axis=1)
    null = RandomSubspace(dim, k)
    within(square, null.mean_square)
    within(np.sqrt(square), null.mean_abs)
    assert np.mean(np.sqrt(square) < null.quantile(0.9)) == pytest.approx(0.9, abs=SIGMAS * np.sqrt(0.09 / 4000))


@pytest.mark.parametrize(("dim", "k"), [(5, 1), (7, 3), (5, 4), (60, 3)])
def test_principal_cosines_of_random_subspaces(dim, k):
    """Against drawn frames, and with k = 1 against the Beta law."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(600):
        one, other = (np.linalg.qr(rng.standard_normal((dim, k)))[0] for _ in range(2))
        drawn.append(np.linalg.svd(one.T @ other, compute_uv=False))
    null = random_cosines(dim, k, rng=rng, draws=600)
    error = np.hypot(np.std(drawn, axis=0, ddof=1) / np.sqrt(600), null.error)
    assert np.all(np.abs(np.mean(drawn, axis=0) - null.value) <= SIGMAS * error + 1e-9)
    np.testing.assert_allclose(null.sd, np.std(drawn, axis=0), rtol=0.15, atol=1e-6)
    within(np.mean(np.square(drawn), axis=1), k / dim)
    if k == 1:
        assert abs(null.value[0] - RandomSubspace(dim).mean_abs) <= SIGMAS * null.error[0]


def test_windows_of_a_walk_have_the_principal_cosines_of_random_subspaces():
    rng, dim, found = np.random.default_rng(0), 200, []
    for _ in range(200):
        x = np.cumsum(rng.standard_normal((20, dim)), axis=0)
        found.append(subspace_cosines(centred_gram([x]), range(10), range(10, 20), k=3))
    null = random_cosines(dim, 3, rng=rng, draws=1000)
    error = np.hypot(np.std(found, axis=0, ddof=1) / np.sqrt(200), null.error)
    assert np.all(np.abs(np.mean(found, axis=0) - null.value) <= SIGMAS * error)
    assert null.value[0] > 1.25 * RandomSubspace(dim, 3).mean_abs  # which is that of one direction and a subspace


def test_moments_of_a_random_cosine_are_known_in_two_and_many_dimensions():
    assert RandomSubspace(2).mean_abs == pytest.approx(2 / np.pi)
    assert RandomSubspace(3).mean_abs == pytest.approx(0.5)
    assert RandomSubspace(10**8).mean_abs == pytest.approx(np.sqrt(2 / np.pi / 10**8), rel=1e-6)
    assert RandomSubspace(3).quantile(0.25) == pytest.approx(0.25)  # Archimedes: uniform on the sphere


def test_noise_of_unequal_variances_has_its_effective_dimension():
    w = np.logspace(0, -3, 200)
    assert effective_dimension(np.ones(17)) == pytest.approx(17)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4000, 200)) * np.sqrt(w)
    within(np.sum(a * b, axis=1) ** 2 / w.sum() ** 2, 1 / effective_dimension(w))
    assert effective_dimension(1e-30 * w) == pytest.approx(effective_dimension(w))


def test_curvature_along_a_random_direction():
    rng = np.random.default_rng(0)
    h = rng.standard_normal((12, 12))
    h = h + h.T
    null = RandomDirectionCurvature(np.trace(h), np.sum(h**2), 12)
    v = rng.standard_normal((6000, 12))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    along = np.einsum("ni,ij,nj->n", v, h, v)
    within(along, null.along.mean)
    within((along - null.along.mean) ** 2, null.along.sd**2)
    within(np.sum((v @ h) ** 2, axis=1), null.norm_square)
    assert RandomDirectionCurvature(6.0, 12.0, 3).along.sd == 0.0  # twice the identity


# --- gradients -------------------------------------------------------------------------------------------------------
def test_a_shuffled_gradient_has_the_permutation_distribution():
    rng = np.random.default_rng(0)
    u = [rng.standard_normal(30) + 0.7, 5 * rng.standard_normal((3, 4)) - 2, np.array([3.0])]
    g = [rng.standard_normal(30) ** 2, rng.standard_normal((3, 4)) - 1, np.array([0.5])]
    for update, gradient in ((u, g), (np.concatenate([p.ravel() for p in u]), np.concatenate([p.ravel() for p in g]))):
        null, found = shuffled_cosine(update, gradient), simulate_shuffled(update, gradient, rng=rng, draws=4000)
        assert abs(found.value - null.mean) <= SIGMAS * found.error
        assert found.sd == pytest.approx(null.sd, rel=0.06)
    tensors = [[torch.from_numpy(p) for p in row] for row in (u, g)]
    assert shuffled_cosine(*tensors) == pytest.approx(shuffled_cosine(u, g))


def test_a_shuffled_gradient_is_read_tensor_by_tensor():
    u, g = ([np.ones(50_000, np.float32) * (k + 1) for k in range(20)] for _ in range(2))
    tracemalloc.start()
    shuffled_cosine(u, g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 8 * 50_000  # both as a whole in float64 would be 40


def test_all_orders_of_a_small_gradient():
    u, g = np.array([1.0, -2.0, 4.0, 0.5]), np.array([0.3, 1.0, -1.0, 2.0])
    every = [cosine(u, g[list(order)]) for order in permutations(range(4))]
    null = shuffled_cosine(u, g)
    assert null.mean == pytest.approx(np.mean(every), abs=1e-12)
    assert null.sd == pytest.approx(np.std(every), abs=1e-12)


def test_with_means_of_zero_a_shuffled_gradient_is_a_random_direction():
    u, g = np.random.default_rng(0).standard_normal((2, 5000))
    u, g = u - u.mean(), g - g.mean()
    null = shuffled_cosine(u, g)
    assert null.mean == pytest.approx(0.0, abs=1e-12)
    assert null.sd == pytest.approx(np.sqrt(RandomSubspace(5000).mean_square), rel=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_training_batch_s_own_gradient_gives_positive_slopes_on_pure_noise(momentum):
    rng, lr = np.random.default_rng(0), np.concatenate([np.full(10, 0.2), np.linspace(0.2, 0, 10, endpoint=False)])
    own, other = [], []
    for _ in range(400):
        states, noise = heavy_ball(lr, momentum, 25, rng)
        last, flat = states[-1], np.arange(20.0, 0.0, -1.0)  # losses of no importance: only slopes are looked at
        own.append(quasi_convexity(states[:-1], noise, flat, last, 0.0).slopes)
        independent = rng.standard_normal(noise.shape)
        other.append(quasi_convexity(states[:-1], independent, flat, last, 0.0).slopes)
    within(own, same_batch_slopes(lr, 1.0, momentum=momentum))
    within(other, 0.0)
    assert np.all(same_batch_slopes(lr, 1.0, momentum=momentum) > 0)
    np.testing.assert_allclose(same_batch_slopes(lr, 3.0), 3 * lr)


def test_the_slope_towards_a_random_reference():
    rng = np.random.default_rng(0)
    x, lowest, gradient = rng.standard_normal((3, 200))
    null = random_slope(np.linalg.norm(x - lowest), np.linalg.norm(gradient), 200)
    slopes = [
        quasi_convexity([x], [gradient], [1.0], random_reference(x, lowest, rng=rng), 0.0).slopes[0]
        for _ in range(3000)
    ]
    within(slopes, null.mean)
    within(np.square(slopes), null.sd**2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: walk_gram(np.ones(5), [0, 6]), r"0\.\.5"),
        (lambda: walk_gram(np.ones(5), [3]), "at least two"),
        (lambda: walk_gram(np.ones(5), [3, 2]), "increasing"),
        (lambda: walk_gram(np.ones(5), [0.0, 2.5]), r"whole numbers, got 2\.5"),
        (lambda: walk_gram(np.ones(5), ["a", "b"]), "states must be numbers"),
        (lambda: walk_gram("constant", [0, 1]), "lr must be a row of rates"),
        (lambda: walk_gram([1.0, np.nan], [0, 1]), "finite rates"),
        (lambda: walk_gram(np.ones(5), [0, 1], momentum=1.0), "momentum"),
        (lambda: random_walk_shares(np.zeros(5), [0, 2, 4]), "differ"),
        (lambda: walk_shares(1), "count"),
        (lambda: cloud_shares(1), "count"),
        (lambda: ou_gram([0.0, 0.0], 1.0), "increasing"),
        (lambda: ou_gram([-1.0, 0.0], 1.0, stationary=False), "times"),
        (lambda: ou_gram([0.0, 1.0], 0.0), "rate"),
        (lambda: simulate(shares_of_gram, np.ones((2, 3)), 5, rng=np.random.default_rng(0)), "symmetric"),
        (lambda: simulate(shares_of_gram, np.diag([1.0, -1.0]), 5, rng=np.random.default_rng(0)), "negative"),
        (lambda: simulate(shares_of_gram, np.eye(2), 5, rng=np.random.default_rng(0), draws=1), "draws"),
        (lambda: drift_share_null(0), "count"),
        (lambda: RandomSubspace(3, 3), "dim"),
        (lambda: RandomSubspace(3).quantile(1.5), "share"),
        (lambda: random_cosines(3, 3, rng=np.random.default_rng(0)), "more than k"),
        (lambda: random_cosines(3, 1, rng=np.random.default_rng(0), draws=1), "draws"),
        (lambda: shuffled_cosine([np.ones(2), np.ones(1)], [np.ones(2), None]), "number 1 of the tensors.*None"),
        (lambda: effective_dimension([0.0]), "all be 0"),
        (lambda: effective_dimension([-1.0]), "variances"),
        (lambda: RandomDirectionCurvature(3.0, 1.0, 2), "trace_of_square"),
        (lambda: shuffled_cosine(np.ones(2), np.ones(3)), "same sizes"),
        (lambda: shuffled_cosine(np.zeros(2), np.ones(2)), "not 0"),
        (lambda: shuffled_cosine([np.nan, 1.0], np.ones(2)), "finite"),
        (lambda: same_batch_slopes([0.1], -1.0), "power"),
        (lambda: random_slope(-1.0, 1.0, 3), "distance"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
