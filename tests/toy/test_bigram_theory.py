"""Closed forms of SGD on a bigram language against limits, dense recursions, differential equations and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.schedules import make_schedule
from riverval.toy.bigram import bigram_language, geometric, likely, make_language
from riverval.toy.bigram_model import Factorised, LogitTable, context_spectrum, token_covariance
from riverval.toy.bigram_run import NOISES
from riverval.toy.bigram_theory import (
    best_constant_rate,
    constant_rate_excess,
    decay_factor,
    descent_excess,
    expected_excess,
    flow_excess,
    hill_excess,
    parameter_excess,
    small_rate_excess,
    stable_limit,
    stationary_excess,
    tail_excess,
)

LADDER = make_language("ladder")
UNEQUAL = bigram_language({"a": likely(3, 1, 0.8), "u": likely(3, 3), "g": geometric(3, 0.5)}, zipf=1.5)


# --- the hill --------------------------------------------------------------------------------------------------------
def test_the_small_rate_excess_of_the_ladder():
    np.testing.assert_allclose(small_rate_excess(LADDER, 0.1), [0, 0.00471, 0.01786, 0.02188], atol=5e-6)
    np.testing.assert_allclose(small_rate_excess(LADDER, 0.1, 5), small_rate_excess(LADDER, 0.02), rtol=1e-12)


@given(lr=st.floats(1e-3, 1.5), batch=st.integers(1, 50), noisy=st.booleans())
def test_the_stationary_excess_is_a_fixed_point_and_never_below_its_limit(lr, batch, noisy):
    settled = stationary_excess(UNEQUAL, lr, batch, context_noise=noisy)
    after = hill_excess(UNEQUAL, np.full(7, lr), batch=batch, start_lr=lr, context_noise=noisy)[-1]
    np.testing.assert_allclose(after, settled, rtol=1e-10)
    limit = small_rate_excess(UNEQUAL, lr, batch)
    assert np.all(settled >= limit * (1 - 1e-12))
    worst = lr * context_spectrum(UNEQUAL).max() / 2  # eta mu s/2 at most: 1/(1 - x) bounds the ratio
    assert np.all(settled <= limit / (1 - worst) * (1 + 1e-12))


def test_the_stationary_excess_without_context_noise_is_that_of_the_modes():
    """eta lambda/(2 B (2 - eta lambda)), which L counts for each direction of H; per occurrence it is divided by pi."""
    lr, batch = 0.7, 3
    model = LogitTable(UNEQUAL)
    lam = model.reduced_spectrum(model.optimum())
    total = np.sum(lr * lam / (2 * batch * (2 - lr * lam)))
    settled = stationary_excess(UNEQUAL, lr, batch, context_noise=False)
    assert UNEQUAL.pi @ settled == pytest.approx(total)
    assert UNEQUAL.pi @ small_rate_excess(UNEQUAL, lr, batch) == pytest.approx(lr / (4 * batch) * lam.sum())


@given(exponent=st.floats(0, 3))
def test_single_pairs_settle_at_a_level_free_of_the_frequency(exponent):
    rows = {str(n): likely(4, 1, 0.6) for n in range(3)}
    settled = stationary_excess(bigram_language(rows, zipf=exponent), 1.0)
    np.testing.assert_allclose(settled, settled[0], rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("noisy", [True, False])
def test_the_hill_recursion_is_that_of_the_covariance_matrix(batch, noisy):
    """V' = E[(I - eta A) V (I - eta A)'] + eta^2 C/B, with how often a context occurs drawn as well, or not."""
    rates = np.array([0.5, 2.0, 1.0, 0.25])
    expected = np.zeros((5, 3))
    for i, (pi, s) in enumerate(zip(UNEQUAL.pi, token_covariance(UNEQUAL.p), strict=True)):
        v = np.zeros((3, 3))
        for t, lr in enumerate(rates):
            spread = pi * (1 - pi) / batch if noisy else 0.0  # variance of the share of the context in the batch
            contraction = np.eye(3) - lr * pi * s
            v = contraction @ v @ contraction.T + lr**2 * (spread * s @ v @ s + pi * s / batch)
            expected[t + 1, i] = 0.5 * np.trace(s @ v)
    found = hill_excess(UNEQUAL, rates, np.arange(5), batch, context_noise=noisy)
    np.testing.assert_allclose(found, expected, atol=1e-15, rtol=1e-10)


@pytest.mark.parametrize("noise", ["sampled", "gaussian"])
def test_the_noise_of_the_frequency_is_seen_by_monte_carlo(noise):
    """Linear displacements at a large rate: with it the level is 2, 20 and 12 % higher, and the simulation shows it."""
    lr, replicates, rng = 1.5, 4000, np.random.default_rng(5)
    s, joint = token_covariance(UNEQUAL.p), UNEQUAL.joint.ravel()
    y = np.zeros((replicates, 3, 3))
    kept = []
    for t in range(160):
        shares = NOISES[noise](rng, 1, replicates, joint, 1)[0].T.reshape(replicates, 3, 3)
        often = shares.sum(axis=-1, keepdims=True)
        y -= lr * (often * (UNEQUAL.p + np.einsum("ikl,ril->rik", s, y)) - shares)
        if t >= 100:
            kept.append(0.5 * np.einsum("rik,ikl,ril->ri", y, s, y))
    excess = np.mean(kept, axis=0)
    error = excess.std(axis=0, ddof=1) / math.sqrt(replicates)
    exact = stationary_excess(UNEQUAL, lr)
    assert np.all(np.abs(excess.mean(axis=0) - exact) < 4 * error)
    without = stationary_excess(UNEQUAL, lr, context_noise=False)
    assert abs(excess[:, 1].mean() - without[1]) > 8 * error[1]


@pytest.mark.parametrize(
    ("shape", "factors"),
    [
        ({"shape": "inverse", "floor": 0.1}, {1: 0.742, 3: 0.447, 9: 0.190, 30: 0.118}),
        ({"shape": "linear", "floor": 0.1}, {1: 0.734, 3: 0.495, 9: 0.303, 30: 0.189}),
        ({"shape": "cosine", "floor": 0.1}, {3: 0.524, 30: 0.151}),
        ({"shape": "1-sqrt", "floor": 0.1}, {3: 0.434, 9: 0.242}),
        ({"shape": "linear"}, {30: 0.1619}),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if "shape" in v else "",
)
def test_a_uniform_context_decays_by_the_factor_of_one_mode(shape, factors):
    """A function of x = eta pi mu T_d: the constants of the decay shapes, to their digits."""
    steps, pi = 4000, 0.25
    language = bigram_language({str(n): likely(8, 8) for n in range(4)})
    for x, factor in factors.items():
        lr = x * 8 / (pi * steps)
        plan = make_schedule("wsd", peak_lr=lr, steps=steps, cooldown=1.0, **shape)
        found = decay_factor(language, lr, plan.values(), context_noise=False)
        np.testing.assert_allclose(found, factor, atol=8e-4)


def test_the_optimal_cooldown_leaves_the_same_in_every_mode():
    """eta_t = 1/(2/eta + lambda t): 1/v grows by lambda B an update, so the hill falls to 1/(1 + x/2) of itself."""
    language, lr, steps = bigram_language({"u": likely(8, 8)}), 0.01, 20_000
    rates = 1 / (2 / lr + np.arange(steps) / 8)
    x = lr * steps / 8
    assert decay_factor(language, lr, rates)[0] == pytest.approx(1 / (1 + x / 2), rel=2e-3)
    # 1/(2 B T) for each direction, less what the finite start still saves; here pi = 1.
    per_mode = hill_excess(language, rates, batch=2, start_lr=lr)[-1] / 7
    assert per_mode == pytest.approx(1 / (2 * 2 * (steps + 2 * 8 / lr)), rel=2e-3)


def test_contexts_without_a_hill_have_no_factor():
    assert np.isnan(decay_factor(LADDER, 0.1, [0.05])[0])
    assert not np.isnan(decay_factor(LADDER, 0.1, [0.05])[1:]).any()
    assert stable_limit(bigram_language({"c": likely(4)})) == math.inf


def test_the_stable_limit_is_where_the_stationary_excess_ends():
    limit = stable_limit(LADDER)
    assert limit == pytest.approx(7.0)  # 2/mu with mu = 2/7
    assert stable_limit(LADDER, 10**6) == pytest.approx(28.0, rel=1e-4)  # 2/(pi mu)
    assert np.isfinite(stationary_excess(LADDER, limit * 0.999)).all()
    with pytest.raises(InputError, match=r"the rate 7\.1 does not settle in the context 'one at 0.5'; use one below 7"):
        stationary_excess(LADDER, 7.1)
    assert np.isinf(hill_excess(LADDER, np.full(20_000, 9.0))[-1, 2])  # shown, not warned of


def test_the_excess_of_any_model_is_its_hessian_trace(rng):
    language = bigram_language({"a": likely(4, 1, 0.7), "u": likely(4, 4)}, zipf=1.0)
    for model in (LogitTable(language), Factorised(language, width=3)):
        w = model.optimum()
        total = language.pi @ parameter_excess(model, w, 0.1, 3)
        assert total == pytest.approx(0.1 / 12 * np.trace(model.hessian(w)))
    table = LogitTable(language)
    np.testing.assert_allclose(parameter_excess(table, table.optimum(), 0.1), small_rate_excess(language, 0.1))


# --- the river -------------------------------------------------------------------------------------------------------
def test_the_deterministic_context_of_theory_and_measurement():
    """(K - 1)/(K pi S) says .00875 and a simulation .00922: the flow explains the difference."""
    assert tail_excess(8, 1, 0.25, 400.0) == pytest.approx(0.00875)
    assert flow_excess(8, 1, 0.25, 400.0) == pytest.approx(0.00923, abs=5e-6)
    assert flow_excess(8, 1, 0.25, 425.6) == pytest.approx(0.00864, abs=2e-5)  # after a cooldown of a fifth
    assert flow_excess(8, 1, 0.25, 500.0) == pytest.approx(0.00731, abs=2e-5)  # without it


CONTEXTS = st.integers(2, 20).flatmap(lambda tokens: st.tuples(st.just(tokens), st.integers(1, tokens - 1)))


@given(context=CONTEXTS, pi=st.floats(0.01, 1.0), area=st.floats(0.0, 1e4))
def test_the_flow_solves_its_equation(context, pi, area):
    tokens, k = context
    excess = flow_excess(tokens, k, pi, area)
    margin = math.log((tokens - k) / k / math.expm1(excess))
    left = k**2 * math.exp(margin) + k * (tokens - k) * margin
    assert left == pytest.approx(k**2 + pi * tokens * area, rel=1e-8)


@given(context=CONTEXTS, pi=st.floats(0.05, 1.0), area=st.floats(0.1, 300.0))
def test_the_flow_follows_the_gradient(context, pi, area):
    """d excess/dS = -|gradient|^2 by the logits, on the manifold that the uniform start stays on."""
    tokens, k = context
    model = LogitTable(bigram_language({"c": likely(tokens, k)}))
    d = -math.expm1(-flow_excess(tokens, k, pi, area))
    w = np.where(np.arange(tokens) < k, math.log((1 - d) / k), math.log(d / (tokens - k)))
    slope = -pi * np.sum(model.gradient(w) ** 2)  # the context's own loss, whose gradient enters times pi
    h = 1e-4 * area
    found = np.diff(flow_excess(tokens, k, pi, [area - h, area + h]))[0] / (2 * h)
    assert found == pytest.approx(slope, rel=1e-5)


@given(context=CONTEXTS, pi=st.floats(0.05, 1.0))
def test_the_flow_starts_at_equal_logits_and_ends_on_the_tail(context, pi):
    tokens, k = context
    assert flow_excess(tokens, k, pi, 0.0) == pytest.approx(math.log(tokens / k))
    far = np.array([1e9, 1e10, 1e300]) / pi
    np.testing.assert_allclose(flow_excess(tokens, k, pi, far), tail_excess(tokens, k, pi, far), rtol=1e-4)
    assert flow_excess(tokens, tokens, pi, 5.0) == tail_excess(tokens, tokens, pi, 5.0) == 0


@pytest.mark.parametrize("k", [1, 2, 7])
def test_discrete_descent_approaches_the_flow_at_first_order(k):
    area, gaps = 40.0, []
    for steps in (100, 200, 400):
        found = descent_excess(8, k, np.full(steps, area / steps))
        assert found[0] == pytest.approx(math.log(8 / k))
        gaps.append(abs(found[-1] - flow_excess(8, k, 1.0, area)))
    slopes = np.diff(np.log2(gaps))
    np.testing.assert_allclose(slopes, -1, atol=0.1)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_discrete_descent_is_that_of_the_whole_table(k):
    language = bigram_language({"a": likely(8, k), "b": likely(8, 8)}, zipf=1.0)
    rates = np.linspace(3.0, 0.1, 60)
    whole = expected_excess(language, rates, np.arange(61), noisy=False)
    np.testing.assert_allclose(whole[:, 0], descent_excess(8, k, language.pi[0] * rates), rtol=1e-10)
    np.testing.assert_allclose(whole[:, 1], 0, atol=1e-15)


def test_the_tail_holds_for_a_context_that_is_not_uniform_on_its_tokens():
    language = bigram_language({"a": [0.7, 0.2, 0.1, 0, 0, 0]})
    excess = expected_excess(language, np.full(40_000, 1.0), np.array([40_000]), noisy=False)[0, 0]
    assert excess == pytest.approx(tail_excess(6, 3, 1.0, 40_000.0), rel=2e-3)


@given(zipf=st.floats(0.1, 2.0))
def test_rare_contexts_are_learnt_later_by_their_frequency(zipf):
    """The excess is a function of pi S, so a context is learnt at an S proportional to 1/pi."""
    language = bigram_language({str(n): likely(8) for n in range(3)}, zipf=zipf)
    times = 5.0 / language.pi
    found = [flow_excess(8, 1, pi, s) for pi, s in zip(language.pi, times, strict=True)]
    np.testing.assert_allclose(found, found[0], rtol=1e-12)


# --- both together ---------------------------------------------------------------------------------------------------
@given(steps=st.integers(10, 10**7), batch=st.integers(1, 100), lr=st.floats(1e-6, 10.0))
def test_the_best_constant_rate_is_best(steps, batch, lr):
    best = best_constant_rate(LADDER, steps, batch)
    least = constant_rate_excess(LADDER, best, steps, batch)
    assert constant_rate_excess(LADDER, lr, steps, batch) >= least * (1 - 1e-12)
    assert best_constant_rate(LADDER, 4 * steps, batch) == pytest.approx(best / 2)
    river, hills = 7 / 8, LADDER.gini.mean()
    assert best == pytest.approx(2 * math.sqrt(river * batch / (hills * steps)))


BAD = {
    "rate": (lambda: small_rate_excess(LADDER, 0.0), "lr .* got 0.0"),
    "batch": (lambda: stationary_excess(LADDER, 0.1, 0), "batch must be a whole number of at least 1, got 0"),
    "states": (lambda: hill_excess(LADDER, [0.1], np.array([2])), r"states must be increasing numbers in 0..1"),
    "order": (lambda: hill_excess(LADDER, [0.1], np.array([1, 0])), "states must be increasing"),
    "start": (lambda: hill_excess(LADDER, [0.1], start_lr=8.0), "the rate 8 does not settle"),
    "support": (lambda: flow_excess(8, 9, 1.0, 1.0), "support .* from 1 to 8, got 9"),
    "frequency": (lambda: flow_excess(8, 1, 0.0, 1.0), "frequency .* got 0.0"),
    "area": (lambda: tail_excess(8, 1, 1.0, -1.0), r"area \(sum of the rates\) must be at least 0, got -1.0"),
    "no river": (lambda: best_constant_rate(bigram_language({"u": [0.5, 0.5]}), 10), "no constant rate is best"),
    "no hill": (lambda: best_constant_rate(bigram_language({"c": [1.0, 0.0]}), 10), "no constant rate is best"),
    "steps": (lambda: constant_rate_excess(LADDER, 0.1, 0), "steps .* got 0"),
}


@pytest.mark.parametrize(("make", "told"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(make, told):
    with pytest.raises(InputError, match=told):
        make()
