r"""An n-gram model of the training tokens, as a reference of how predictable the tokens of held-out sequences are.

Interpolated Witten-Bell (Witten & Bell 1991, "The zero-frequency problem"; as in Chen & Goodman 1998, section 2.3):

.. math:: p(w \mid h) = \frac{c(h w) + t(h)\, p(w \mid h')}{c(h) + t(h)}

h the tokens before w (at most order - 1 of them), h' the same without the first, c how often it was seen in training,
t(h) the number of different tokens seen after h. What is beyond the empty h is the uniform distribution. It sums to 1
over w for every h; where h was never seen, it is that of h'.

How far to trust it: its mean entropy is its mean loss where it is calibrated. With few counts per context (a large
vocabulary) it is too sure of itself, and the entropy is smaller; the order of contexts by entropy suffers less.

Only the contexts that are asked for are counted, in one pass over the training tokens in pieces. They stand in a trie
whose levels are lengths: a node is its parent (h') and one token more, so no context is hashed and none is too long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import check_int
from .._typing import ArrayLike, FloatArray, IntArray, NDArray
from ..errors import InputError

PIECE = 1 << 21  # training tokens that are looked at together
# Up to so many codes a table is faster than a search; it takes 64 MB, or 128 MB of counts.
TABLE = 1 << 24


class NGrams:
    """Probabilities of the next token in given contexts.

    The prediction at column j of a sequence sees its columns 0..j, the last order - 1 of them: what a language model
    sees that starts at the sequence's beginning, or less.

    Args:
        train: the training tokens, one-dimensional, whole numbers 0..vocab-1.
        contexts: the sequences, shape (sequences, length).
        order: tokens of the longest n-gram, 1 or more: contexts of up to order - 1 tokens.
        vocab: number of different tokens there may be.

    Raises:
        InputError: a wrong shape, no token, or one out of range.

    >>> model = NGrams([0, 1, 0, 1, 0], [[0], [1]], order=2, vocab=2)
    >>> np.exp(-model.loss([[1], [0]])).round(3)  # after 0: (2 + 1 * 3/7) / (2 + 1), as p(1) = (2 + 2/2) / (5 + 2)
    array([[0.81 ],
           [0.857]])
    """

    def __init__(self, train: ArrayLike, contexts: ArrayLike, *, order: int, vocab: int) -> None:
        check_int("order", order, low=1, what="tokens of the longest n-gram")
        check_int("vocab", vocab, low=1, what="number of different tokens")
        self._vocab = vocab
        tokens = _tokens("training tokens", train, 1, vocab)
        rows = _tokens("contexts", contexts, 2, vocab).astype(np.int64)
        # nodes[k][:, j]: the node of the last k tokens at column j + max(k, 1) - 1, the first that has so many.
        self._nodes: list[IntArray] = [np.zeros(rows.shape, dtype=np.int64)]
        tallies = [_Tally(np.zeros(1, dtype=np.int64), 1, vocab)]
        for k in range(1, min(order - 1, rows.shape[1]) + 1):
            before = self._nodes[-1][:, 1:] if k > 1 else self._nodes[-1]
            codes, inverse = np.unique(before * vocab + rows[:, : rows.shape[1] - k + 1], return_inverse=True)
            self._nodes.append(inverse.reshape(before.shape).astype(np.int64))
            tallies.append(_Tally(codes, len(tallies[-1].nodes), vocab))
        for first in range(0, len(tokens), PIECE):
            _count(tallies, tokens, first, min(first + PIECE, len(tokens)), vocab)
        self._levels: list[_Level] = []
        for tally in tallies:
            self._levels.append(_level(tally, self._levels[-1] if self._levels else None, vocab))

    def entropy(self) -> FloatArray:
        """Entropy of the prediction at every place of the contexts, in nats: shape (sequences, length)."""
        return np.concatenate(
            [
                level.entropy[nodes[:, : self._own(k)]]
                for k, (level, nodes) in enumerate(self._paired())
                if self._own(k)
            ],
            axis=1,
        )

    def loss(self, targets: ArrayLike) -> FloatArray:
        """-log p of the token that follows each place, in nats.

        Args:
            targets: of the contexts' shape.

        Raises:
            InputError: another shape, or a token out of range.
        """
        words = _tokens("targets", targets, 2, self._vocab).astype(np.int64)
        if words.shape != self._nodes[0].shape:
            raise InputError(f"targets must have the contexts' shape {self._nodes[0].shape}, got {words.shape}")
        weight, found = np.ones(words.shape), np.zeros(words.shape, dtype=bool)
        for k, (level, nodes) in reversed(list(enumerate(self._paired()))):
            start = max(k, 1) - 1
            # Views: what is set in them is set in all of `weight` and `found`.
            w, done = weight[:, start:], found[:, start:]
            place, seen = _search(level.codes, nodes * self._vocab + words[:, start:])
            new = seen & ~done
            w[new] *= level.probability[place[new]]
            w[~seen & ~done] *= level.backoff[nodes[~seen & ~done]]
            done |= seen
        weight[~found] /= self._vocab
        return np.asarray(-np.log(weight))

    def _paired(self) -> list[tuple[_Level, IntArray]]:
        return list(zip(self._levels, self._nodes, strict=True))

    def _own(self, k: int) -> int:
        """How many columns have their longest context at level k: one each at the start, the last level the rest."""
        last = k == len(self._nodes) - 1
        return self._nodes[k].shape[1] if last else int(k > 0)


def _tokens(what: str, values: ArrayLike, ndim: int, vocab: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != ndim or not array.size or array.dtype.kind not in "iu":
        raise InputError(
            f"{what} must be whole numbers in {ndim} dimension{'s' * (ndim > 1)}, at least one, got {array.dtype} of "
            f"shape {array.shape}"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab:
        raise InputError(f"{what} must be 0..{vocab - 1}, got {low if low < 0 else high}; is vocab right?")
    return array


# --- counting --------------------------------------------------------------------------------------------------------
class _Tally:
    """Counts of the tokens that follow the nodes of one level.

    Args:
        nodes: codes of the nodes, parent * vocab + first token, in increasing order; a node's number is its place.
        parents: number of nodes of the level above.
        vocab: number of tokens.
    """

    def __init__(self, nodes: IntArray, parents: int, vocab: int) -> None:
        self.nodes = nodes
        self._table: NDArray[np.int32] | None = None
        if parents * vocab <= TABLE:
            self._table = np.full(parents * vocab, -1, dtype=np.int32)
            self._table[nodes] = np.arange(len(nodes))
        self._dense = np.zeros(len(nodes) * vocab, dtype=np.int64) if len(nodes) * vocab <= TABLE else None
        self._codes, self._counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def find(self, codes: IntArray) -> IntArray:
        """Numbers of the nodes with these codes, -1 where there is none."""
        if self._table is not None:
            return self._table[codes].astype(np.int64)
        place, seen = _search(self.nodes, codes)
        return np.where(seen, place, -1)

    def add(self, pairs: IntArray) -> None:
        """Count codes node * vocab + token."""
        if self._dense is not None:
            self._dense += np.bincount(pairs, minlength=len(self._dense))
            return
        codes, counts = np.unique(pairs, return_counts=True)
        self._codes, inverse = np.unique(np.concatenate([self._codes, codes]), return_inverse=True)
        self._counts = _sums(inverse, np.concatenate([self._counts, counts]), len(self._codes)).astype(np.int64)

    def result(self) -> tuple[IntArray, IntArray]:
        """Codes in increasing order and their counts, all at least 1."""
        if self._dense is None:
            return self._codes, self._counts
        codes = np.flatnonzero(self._dense)
        return codes, self._dense[codes]


def _count(tallies: list[_Tally], tokens: NDArray[Any], first: int, stop: int, vocab: int) -> None:
    """Count the tokens first..stop-1 after each of their contexts that is a node."""
    place = np.arange(first, stop)
    node = np.zeros(stop - first, dtype=np.int64)
    for k, tally in enumerate(tallies):
        if k:
            kept = place >= k  # the first tokens have no context of this length
            place, node = place[kept], node[kept]
            node = tally.find(node * vocab + tokens[place - k])
            place, node = place[node >= 0], node[node >= 0]
        tally.add(node * vocab + tokens[place])


# --- probabilities ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Level:
    """Contexts of one length: seen pairs (context, token) with p(token | context); of each context the share of
    probability that backs off, and its entropy."""

    codes: IntArray
    probability: FloatArray
    backoff: FloatArray
    entropy: FloatArray


def _level(tally: _Tally, lower: _Level | None, vocab: int) -> _Level:
    codes, counts = tally.result()
    node, size = codes // vocab, len(tally.nodes)
    total, types = _sums(node, counts, size), _sums(node, np.ones(len(codes)), size)
    backoff = np.divide(types, total + types, out=np.ones(size), where=total > 0)
    if lower is None:
        below, entropy_below = np.full(len(codes), 1.0 / vocab), np.full(size, np.log(vocab))
    else:
        parent = tally.nodes // vocab
        # Whatever follows a context follows its suffix too, so the pair is there.
        place, _ = _search(lower.codes, parent[node] * vocab + codes % vocab)
        below, entropy_below = lower.probability[place], lower.entropy[parent]
    probability = counts / (total + types)[node] + backoff[node] * below
    # sum p log p over seen tokens, and over the others, where p = backoff * below, from the same sum of the level below
    seen = _sums(node, probability * np.log(probability), size)
    rest = np.maximum(1.0 - _sums(node, below, size), 0.0)
    unseen = -entropy_below - _sums(node, below * np.log(below), size)
    entropy = -(seen + backoff * np.log(backoff) * rest + backoff * unseen)
    return _Level(codes, probability, backoff, np.maximum(entropy, 0.0))


def _search(values: IntArray, wanted: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Place of each wanted in the increasing values, and whether it is there (its place means nothing if not)."""
    if not len(values):
        return np.zeros(wanted.shape, dtype=np.int64), np.zeros(wanted.shape, dtype=bool)
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return place, values[place] == wanted


def _sums(group: IntArray, values: NDArray[Any], groups: int) -> FloatArray:
    return np.asarray(np.bincount(group, weights=values, minlength=groups), dtype=np.float64)
