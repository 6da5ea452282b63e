"""Bigram languages and their two models: measures of uncertainty, loss, derivatives, null directions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.toy.bigram import (
    LANGUAGES,
    BigramLanguage,
    bigram_language,
    geometric,
    likely,
    make_language,
    zipf_frequencies,
)
from riverval.toy.bigram_model import (
    MODELS,
    Factorised,
    LogitTable,
    context_excess,
    context_spectrum,
    softmax,
    token_covariance,
    zero_sum_basis,
)
from riverval.toy.bigram_theory import deterministic_spectrum, river_dimensions

SMALL = bigram_language({"a": likely(4, 1, 0.7), "b": likely(4, 2, 0.8), "c": likely(4, 2)}, zipf=1.0)
OPEN = bigram_language({"a": likely(4, 1, 0.7), "b": likely(4, 2, 0.8), "u": likely(4, 4)}, zipf=1.0)
BOTH = pytest.mark.parametrize("make", [LogitTable, lambda language: Factorised(language, width=3)], ids=MODELS)


def quotient(function, w, step=1e-5):
    """Central differences of a vector-valued function; one row for each coordinate of w."""
    return np.stack([(function(w + step * e) - function(w - step * e)) / (2 * step) for e in np.eye(w.size)])


# --- languages -------------------------------------------------------------------------------------------------------
@given(tokens=st.integers(2, 40), data=st.data())
def test_families_are_distributions_between_deterministic_and_uniform(tokens, data):
    chosen = data.draw(st.integers(1, tokens))
    mass = 1.0 if chosen == tokens else data.draw(st.floats(0.01, 1.0))
    ratio = data.draw(st.floats(0.0, 1.0))
    for p in (likely(tokens, chosen, mass), geometric(tokens, ratio)):
        assert p.shape == (tokens,)
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert np.all(p >= 0)
    language = bigram_language({"p": likely(tokens, chosen, mass), "g": geometric(tokens, ratio)})
    assert np.all(language.gini >= 0)
    assert np.all(language.gini <= 1 - 1 / tokens + 1e-12)
    assert np.all(language.renyi2 <= language.entropy + 1e-12)  # Renyi entropies fall with their order
    np.testing.assert_allclose(language.gini, 1 - np.exp(-language.renyi2), atol=1e-12)


def test_the_measures_of_two_hand_made_contexts():
    language = bigram_language({"certain": [0, 1, 0], "two to one": [2 / 3, 1 / 3, 0]})
    assert language.gini.tolist() == pytest.approx([0, 4 / 9])
    assert language.entropy.tolist() == pytest.approx([0, math.log(3) - 2 / 3 * math.log(2)])
    assert language.renyi2.tolist() == pytest.approx([0, math.log(9 / 5)])
    assert language.support.tolist() == [1, 2]
    assert language.floor == pytest.approx(0.5 * language.entropy[1])
    assert not np.signbit(language.entropy).any()


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("tokens", [5, 8, 13])
def test_named_languages_go_from_certain_to_uniform(name, tokens):
    language = make_language(name, tokens=tokens)
    assert np.all(np.diff(language.gini) > 0)
    assert language.gini[0] == 0
    assert language.gini[-1] == pytest.approx(1 - 1 / tokens)


def test_entropy_orders_the_contexts_of_the_mixed_language_otherwise():
    assert np.sum(np.diff(make_language("mixed").entropy) < 0) == 2


@given(contexts=st.integers(1, 30), exponent=st.floats(0, 3))
def test_frequencies_follow_zipf(contexts, exponent):
    pi = zipf_frequencies(contexts, exponent)
    assert pi.sum() == pytest.approx(1)
    np.testing.assert_allclose(pi[0] / pi, np.arange(1, contexts + 1) ** exponent, rtol=1e-9)


def test_a_language_is_its_description():
    described = json.loads(json.dumps(SMALL.to_dict()))
    assert BigramLanguage(**{k: tuple(map(_tuple, v)) for k, v in described.items()}) == SMALL
    assert SMALL.joint.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="read-only"):
        SMALL.p[0, 0] = 1.0


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


ROW = (0.5, 0.5)
BAD_LANGUAGES = {
    "no context": (lambda: bigram_language({}), "at least one context, got none"),
    "twice": (lambda: BigramLanguage(("a", "a"), ROW, (ROW, ROW)), "all different"),
    "lengths": (lambda: BigramLanguage(("a",), ROW, (ROW,)), "as many frequencies"),
    "ragged": (lambda: BigramLanguage(("a", "b"), ROW, (ROW, (1.0,))), r"same number of tokens, .* got \[1, 2\]"),
    "one token": (lambda: bigram_language({"a": [1.0]}), "at least 2"),
    "sum": (lambda: bigram_language({"Rome": [0.5, 0.4]}), "probabilities of 'Rome' must have the sum 1, got 0.9"),
    "negative": (lambda: bigram_language({"Rome": [1.5, -0.5]}), "probabilities of 'Rome' must be a finite number"),
    "nan": (lambda: bigram_language({"Rome": [math.nan, 1.0]}), "probabilities of 'Rome' must be a finite number"),
    "never": (lambda: BigramLanguage(("a", "b"), (1.0, 0.0), (ROW, ROW)), "frequencies must be a finite number in"),
    "too big": (lambda: bigram_language({"a": np.full(10**6 + 1, 1.0)}), "at most 1000000 pairs"),
    "zipf": (lambda: make_language("ladder", zipf=-1), r"zipf \(exponent of the frequencies\) must be"),
    "likely": (lambda: likely(4, 5), "chosen .* from 1 to 4, got 5"),
    "mass": (lambda: likely(4, 1, 0.0), "mass .* got 0.0"),
    "rest for nobody": (lambda: likely(4, 4, 0.9), "where all 4 tokens are likely their mass is 1, got 0.9"),
    "ratio": (lambda: geometric(4, 1.1), "ratio .* got 1.1"),
    "unknown": (lambda: make_language("mixd"), "unknown language 'mixd'.* Did you mean 'mixed'"),
    "few tokens": (lambda: make_language("mixed", tokens=4), "'mixed' needs at least 5 tokens, got 4"),
    "tokens": (lambda: make_language("ladder", tokens=1), "tokens must be a whole number from 2"),
}


@pytest.mark.parametrize(("make", "told"), BAD_LANGUAGES.values(), ids=BAD_LANGUAGES)
def test_bad_languages_are_refused(make, told):
    with pytest.raises(InputError, match=told):
        make()


# --- loss and gradient -----------------------------------------------------------------------------------------------
@BOTH
def test_the_loss_is_the_cross_entropy(make, rng):
    model = make(SMALL)
    w = rng.standard_normal(model.dim)
    q = softmax(model.logits(w))
    naive = -sum(SMALL.pi[i] * SMALL.p[i, k] * math.log(q[i, k]) for i in range(3) for k in range(4))
    assert model.value(w) == pytest.approx(naive)
    assert np.all(model.excess(w) >= 0)
    many = rng.standard_normal((2, 5, model.dim))
    assert model.excess(many).shape == (2, 5, 3)
    np.testing.assert_allclose(model.value(many)[1, 3], model.value(many[1, 3]))


@BOTH
def test_the_gradient_is_the_difference_quotient(make, rng):
    model = make(SMALL)
    w = rng.standard_normal(model.dim)
    np.testing.assert_allclose(model.gradient(w), quotient(model.value, w), atol=1e-8)
    np.testing.assert_allclose(np.moveaxis(model.jacobian(w), -1, 0), quotient(model.logits, w), atol=1e-8)


@BOTH
def test_the_gradient_of_a_batch_is_the_mean_over_its_pairs(make, rng):
    model = make(SMALL)
    w = rng.standard_normal(model.dim)
    pairs = [(0, 1), (2, 3), (0, 1), (1, 0), (0, 0)]
    shares = np.zeros((3, 4))
    for i, k in pairs:
        shares[i, k] += 1 / len(pairs)

    def loss(w):
        log_q = np.log(softmax(model.logits(w)))
        return -sum(log_q[i, k] for i, k in pairs) / len(pairs)

    np.testing.assert_allclose(model.gradient(w, shares), quotient(loss, w), atol=1e-8)


@BOTH
def test_the_layout_in_memory_does_not_matter(make, rng):
    model = make(SMALL)
    w = rng.standard_normal((6, model.dim))
    columns = np.array(w.T, order="C").T
    assert columns.flags.f_contiguous
    np.testing.assert_allclose(model.gradient(columns), model.gradient(w), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(model.gradient(columns)[2], model.gradient(w[2]), rtol=1e-12, atol=1e-15)
    assert model.gradient(columns).flags.f_contiguous


def test_far_logits_overflow_nothing():
    z = np.array([[[800.0, -800.0, 0.0, 0.0]] * 3])
    excess = context_excess(SMALL, z)
    assert np.isfinite(excess).all()
    assert excess[0, 2] == pytest.approx(1600 * 0.5 - math.log(2))  # half of c's probability is on the second token
    assert softmax(z)[0, 0].tolist() == [1, 0, 0, 0]


# --- Hessian ---------------------------------------------------------------------------------------------------------
@BOTH
def test_the_hessian_is_the_difference_quotient_of_the_gradient(make, rng):
    model = make(SMALL)
    w = rng.standard_normal(model.dim)
    np.testing.assert_allclose(model.hessian(w), quotient(model.gradient, w), atol=1e-8)


def test_the_factorised_hessian_is_that_of_autograd(rng):
    torch = pytest.importorskip("torch")
    model = Factorised(SMALL, width=2)
    w = rng.standard_normal(model.dim)

    def loss(v):
        logits = v[:6].reshape(3, 2) @ v[6:].reshape(2, 4)
        return -(torch.tensor(SMALL.joint) * torch.log_softmax(logits, -1)).sum()

    hessian = torch.autograd.functional.hessian(loss, torch.tensor(w))
    np.testing.assert_allclose(model.hessian(w), hessian.numpy(), atol=1e-12)


@BOTH
def test_at_the_optimum_only_the_jacobian_bends_the_loss(make):
    """Gauss-Newton: where the gradient vanishes, H = sum_i pi_i J_i' (diag p_i - p_i p_i') J_i."""
    model = make(OPEN)
    w = model.optimum()
    assert model.excess(w).max() < 1e-12
    np.testing.assert_allclose(model.gradient(w), 0, atol=1e-12)
    j = model.jacobian(w)
    gauss_newton = sum(OPEN.pi[i] * j[i].T @ token_covariance(OPEN.p)[i] @ j[i] for i in range(3))
    np.testing.assert_allclose(model.hessian(w), gauss_newton, atol=1e-12)


def test_trace_of_the_hessian_at_the_optimum_is_the_gini_impurity():
    model = LogitTable(OPEN)
    blocks = model.hessian(model.optimum()).reshape(3, 4, 3, 4)
    np.testing.assert_allclose([np.trace(blocks[i, :, i, :]) for i in range(3)], OPEN.pi * OPEN.gini, atol=1e-14)


@given(tokens=st.integers(2, 12))
def test_the_basis_spans_the_logits_of_sum_zero(tokens):
    basis = zero_sum_basis(tokens)
    np.testing.assert_allclose(basis.T @ basis, np.eye(tokens - 1), atol=1e-12)
    np.testing.assert_allclose(basis.sum(axis=0), 0, atol=1e-12)


@BOTH
def test_shifts_of_softmax_are_null_and_projected_out(make, rng):
    model = make(SMALL)
    w = rng.standard_normal(model.dim)
    basis = model.zero_sum_basis()
    shifts = np.linalg.svd(basis.T)[2][basis.shape[1] :]
    assert len(shifts) == 3  # one for each context, or for each row of U
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    for shift in shifts:
        np.testing.assert_allclose(softmax(model.logits(w + 2 * shift)), softmax(model.logits(w)), atol=1e-12)
        np.testing.assert_allclose(model.hessian(w) @ shift, 0, atol=1e-12)


def test_the_reduced_spectrum_of_the_table_has_no_zero():
    model = LogitTable(OPEN)
    w = model.optimum()
    full, reduced = np.linalg.eigvalsh(model.hessian(w)), model.reduced_spectrum(w)
    assert np.sum(np.abs(full) < 1e-12) == 3
    assert reduced.min() > 1e-3
    by_context = np.sort((OPEN.pi[:, None] * context_spectrum(OPEN)).ravel())  # lambda = pi mu
    np.testing.assert_allclose(reduced, by_context, atol=1e-12)


def test_the_factorised_model_keeps_the_flat_directions_of_its_symmetry():
    model = Factorised(OPEN, width=2)  # of ln p, whose rank is 2
    reduced = model.reduced_spectrum(model.optimum())
    assert np.sum(np.abs(reduced) < 1e-10) == 2**2  # E A, A^-1 U
    assert np.sum(reduced > 1e-4) == 2 * (3 + 4) - 2 - 2**2


@given(data=st.data(), tokens=st.integers(2, 8))
def test_curvatures_of_a_context_sum_to_its_gini_impurity(data, tokens):
    weights = np.array(data.draw(st.lists(st.floats(0.0, 1.0), min_size=tokens, max_size=tokens))) + 1e-6
    language = bigram_language({"c": weights / weights.sum()})
    mu = context_spectrum(language)
    assert mu.shape == (1, tokens - 1)
    assert mu.sum() == pytest.approx(language.gini[0], abs=1e-12)


def test_the_largest_curvature_does_not_follow_the_entropy():
    language = bigram_language({"one at 0.5": likely(8, 1, 0.5), "uniform": likely(8, 8)})
    assert language.entropy[0] < language.entropy[1]
    assert language.gini[0] < language.gini[1]
    np.testing.assert_allclose(context_spectrum(language)[:, -1], [2 / 7, 1 / 8])
    for k in (2, 4, 8):
        assert context_spectrum(bigram_language({"u": likely(8, k)}))[0, -1] == pytest.approx(1 / k)


# --- the river -------------------------------------------------------------------------------------------------------
def deterministic_logits(tokens, missing):
    margin = math.log((1 - missing) * (tokens - 1) / missing)
    return np.concatenate([[margin], np.zeros(tokens - 1)])[None]


@given(tokens=st.integers(2, 9), share=st.floats(0.01, 1.0))
def test_the_spectrum_of_a_deterministic_context(tokens, share):
    missing = share * (1 - 1 / tokens)
    language = bigram_language({"certain": likely(tokens)})
    z = deterministic_logits(tokens, missing)
    np.testing.assert_allclose(deterministic_spectrum(tokens, missing), context_spectrum(language, z)[0], atol=1e-12)


@pytest.mark.parametrize(("tokens", "flattest"), [(2, True), (3, False), (8, False)])
def test_the_river_is_a_curve_only_for_two_tokens(tokens, flattest):
    """For K > 2 the gradient lies among the flat directions, and along the steepest of them."""
    language = bigram_language({"certain": likely(tokens)})
    model = LogitTable(language)
    w = deterministic_logits(tokens, 0.01).ravel()
    basis = zero_sum_basis(tokens)
    values, vectors = np.linalg.eigh(basis.T @ model.hessian(w) @ basis)
    gradient = basis.T @ model.gradient(w)
    shares = (vectors.T @ gradient) ** 2 / (gradient @ gradient)
    assert shares[-1] == pytest.approx(1)
    assert (values[-1] < 1.001 * values[0]) == flattest
    assert values[-1] < 0.02


def test_as_many_river_directions_as_tokens_that_never_follow():
    language = make_language("doubling")
    assert river_dimensions(language).tolist() == [7, 6, 4, 0]
    flat = np.sum(context_spectrum(language) < 1e-12, axis=1)
    np.testing.assert_array_equal(flat, [7, 6, 4, 0])


BAD_MODELS = {
    "width": (lambda: Factorised(SMALL, width=0), "width .* from 1 to 10000, got 0"),
    "scale": (lambda: Factorised(SMALL, scale=0.0), "scale .* got 0.0"),
    "infinite": (lambda: LogitTable(SMALL).optimum(), "optimum is at infinity: some token never follows 'c'"),
    "narrow": (lambda: Factorised(OPEN, width=1).optimum(), "the optimum needs width 2, got 1"),
    "missing": (lambda: deterministic_spectrum(4, 0.8), "missing .* got 0.8"),
}


@pytest.mark.parametrize(("make", "told"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_models_are_refused(make, told):
    with pytest.raises(InputError, match=told):
        make()


@pytest.mark.parametrize("name", MODELS)
def test_models_describe_themselves(name):
    model = MODELS[name](SMALL)
    described = json.loads(json.dumps(model.to_dict()))
    assert described["name"] == name
    options = {k: v for k, v in described.items() if k not in ("name", "language")}
    assert MODELS[name](SMALL, **options) == model
    assert model.start(np.random.default_rng(0), 5).shape == (5, model.dim)
