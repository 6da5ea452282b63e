"""The n-gram reference against a dictionary, closed forms and limits. No torch, no model."""

from __future__ import annotations

import doctest
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.experiments import ngrams
from riverval.experiments.ngrams import NGrams


def test_examples_in_docstrings():
    assert doctest.testmod(ngrams).failed == 0


def naive(train, context, word, order, vocab):
    """Witten-Bell by its definition, recursively, counting anew every time."""

    def p(h, w):
        after = [train[i] for i in range(len(h), len(train)) if tuple(train[i - len(h) : i]) == h]
        below = p(h[1:], w) if h else 1 / vocab
        counts = Counter(after)
        return (counts[w] + len(counts) * below) / (len(after) + len(counts)) if after else below

    return p(tuple(context[max(0, len(context) - order + 1) :]), word)


def distributions(model, shape, vocab):
    """p of every word at every place: shape (vocab, sequences, length)."""
    return np.exp(-np.stack([model.loss(np.full(shape, w)) for w in range(vocab)]))


def chain(length, table, seed=0):
    rng = np.random.default_rng(seed)
    steps, out = np.cumsum(table, axis=1), [0]
    for u in rng.random(length - 1):
        out.append(min(int(np.searchsorted(steps[out[-1]], u)), len(table) - 1))
    return np.array(out)


cases = st.tuples(
    st.integers(1, 6), st.integers(1, 5), st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**32 - 1)
)


@settings(max_examples=60)
@given(cases, st.sampled_from([1, 5, 1 << 21]), st.sampled_from([0, 1 << 24]))
def test_every_probability_is_the_dictionarys(case, piece, table):
    """In pieces of any length, and with searches as with tables; contexts never seen in training are among them."""
    vocab, order, length, seq, seed = case
    rng = np.random.default_rng(seed)
    train, rows = rng.integers(0, vocab, length), rng.integers(0, vocab, (2, seq))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "PIECE", piece)
        patch.setattr(ngrams, "TABLE", table)
        model = NGrams(train, rows, order=order, vocab=vocab)
        found = distributions(model, rows.shape, vocab)
    expected = [
        [[naive(train.tolist(), row[: j + 1].tolist(), w, order, vocab) for j in range(seq)] for row in rows]
        for w in range(vocab)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(model.entropy(), -(found * np.log(found)).sum(axis=0), atol=1e-12)


def test_a_context_that_was_never_seen_has_the_distribution_of_its_suffix():
    train = [0, 1, 2, 0, 1, 2, 0, 2]  # no 1 before a 1
    long, short = NGrams(train, [[1, 1]], order=3, vocab=3), NGrams(train, [[1, 1]], order=2, vocab=3)
    for word in range(3):
        np.testing.assert_array_equal(long.loss([[0, word]]), short.loss([[0, word]]))
    assert long.entropy()[0, 1] == short.entropy()[0, 1]
    # Seen at the very end only, where nothing follows: the same.
    last = NGrams([0, 0, 0, 1], [[1]], order=2, vocab=2)
    np.testing.assert_allclose(last.loss([[0]]), NGrams([0, 0, 0, 1], [[1]], order=1, vocab=2).loss([[0]]))


def test_no_context_is_the_unigram_and_all_words_unseen_are_uniform():
    model = NGrams([3, 3, 3, 5], [[0, 1]], order=1, vocab=8)
    np.testing.assert_allclose(np.exp(-model.loss([[3, 5]])), [[(3 + 2 / 8) / 6, (1 + 2 / 8) / 6]])
    np.testing.assert_allclose(np.exp(-model.loss([[0, 7]])), (2 / 6) / 8)


def test_a_chain_has_the_entropy_of_its_rows_and_more_text_comes_nearer():
    table = np.array([[0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.5, 0.5]])
    row = -(table * np.log(np.maximum(table, 1e-300))).sum(axis=1)
    stationary = np.linalg.matrix_power(table, 200)[0]
    train, held = chain(60_000, table, 1), chain(20_001, table, 2).reshape(1, -1)
    distances, losses = [], []
    for length in (60, 600, 60_000):
        model = NGrams(train[:length], held[:, :-1], order=2, vocab=3)
        distances.append(np.abs(model.entropy() - row[held[:, :-1]]).max())
        losses.append(model.loss(held[:, 1:]).mean())
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.01
    spread = model.loss(held[:, 1:]).std() / np.sqrt(20_000)
    assert abs(losses[2] - stationary @ row) < 4 * spread  # the chain's entropy rate
    assert losses[2] < NGrams(train, held[:, :-1], order=1, vocab=3).loss(held[:, 1:]).mean() - 10 * spread
    # A longer memory than the chain's gains nothing and costs little.
    assert NGrams(train, held[:, :-1], order=4, vocab=3).loss(held[:, 1:]).mean() == pytest.approx(losses[2], abs=0.01)


def test_certain_text_has_no_entropy_and_random_text_all_of_it():
    certain = NGrams(np.tile([0, 1, 2, 3], 5000), [[0, 1, 2, 3, 0]], order=3, vocab=4)
    assert certain.entropy()[0, 1:].max() < 5e-3
    assert certain.loss([[1, 2, 3, 0, 1]])[0, 1:].max() < 5e-4
    even = NGrams(np.random.default_rng(0).integers(0, 16, 200_000), [[3, 5]], order=2, vocab=16)
    assert even.entropy() == pytest.approx(np.log(16), abs=1e-3)


def test_a_large_vocabulary_needs_no_table():
    """Codes of pairs reach beyond any table; the counts are those of the naive model."""
    vocab, rng = 50_304, np.random.default_rng(0)
    known = rng.integers(0, vocab, 6)
    train, rows = known[rng.integers(0, 6, 300)], known[rng.integers(0, 6, (2, 3))]
    model = NGrams(train, rows, order=3, vocab=vocab)
    found = model.loss(np.full(rows.shape, known[2]))
    expected = [
        [-np.log(naive(train.tolist(), row[: j + 1].tolist(), known[2], 3, vocab)) for j in range(3)] for row in rows
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (model.entropy() <= np.log(vocab)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NGrams([], [[0]], order=2, vocab=2), "training tokens must be whole numbers in 1 dimension, at least"),
        (lambda: NGrams([0.5], [[0]], order=2, vocab=2), "float64"),
        (lambda: NGrams([0, 2], [[0]], order=2, vocab=2), r"0\.\.1, got 2; is vocab right"),
        (lambda: NGrams([0, -1], [[0]], order=2, vocab=2), "got -1"),
        (lambda: NGrams([0], [0], order=2, vocab=2), "contexts must be whole numbers in 2 dimensions"),
        (lambda: NGrams([0], [[0]], order=0, vocab=2), "order"),
        (lambda: NGrams([0], [[0]], order=1, vocab=0), "vocab"),
        (lambda: NGrams([0], [[0]], order=1, vocab=1).loss([[0, 0]]), r"contexts' shape \(1, 1\), got \(1, 2\)"),
    ],
)
def test_what_is_no_text_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
