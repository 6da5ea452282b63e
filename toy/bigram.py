"""A bigram language: a first token (a city) decides the distribution of the token after it (a name).

How uncertain that next token is sets the curvature of the loss around the optimum: certain continuations make flat
directions, the river, ambiguous ones steep hills (arXiv:2410.05192, section on the uncertainty of the data). Here both
are exact: `riverval.toy.bigram_model` has the loss of two models of such a language, `riverval.toy.bigram_theory` what
SGD does to it, `riverval.toy.bigram_run` trains.

Symbols: C contexts i with frequency pi_i, K tokens with probabilities p_i in each, sum_i pi_i = sum_k p_ik = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import check_int, check_number, pick
from .._typing import ArrayLike, FloatArray, IntArray
from ..errors import InputError

MOST_CELLS = 10**6
"""Pairs of context and token of the largest language: its table is dense."""

_SUM = 1e-9  # how far from 1 a sum of given probabilities may be


@dataclass(frozen=True)
class BigramLanguage:
    """Contexts with their frequencies and next-token distributions.

    Args:
        contexts: a name for each of the C contexts, all different.
        frequencies: pi_i > 0, sum 1; C numbers.
        probabilities: p_ik >= 0, each row with sum 1; C rows of K >= 2 numbers.

    Raises:
        InputError: lengths that do not fit, a number out of range, or a sum that is not 1.

    >>> two = BigramLanguage(("Rome", "York"), (0.5, 0.5), ((1.0, 0.0), (0.5, 0.5)))
    >>> two.gini.tolist(), two.floor.round(6).item()
    ([0.0, 0.5], 0.346574)
    """

    contexts: tuple[str, ...]
    frequencies: tuple[float, ...]
    probabilities: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.contexts)
        if not names or len(set(names)) < len(names):
            raise InputError(f"contexts must be at least one name, all different, got {self.contexts!r}")
        if len(self.frequencies) != len(names) or len(self.probabilities) != len(names):
            raise InputError(
                f"{len(names)} contexts need as many frequencies and rows of probabilities, got "
                f"{len(self.frequencies)} and {len(self.probabilities)}"
            )
        frequencies = _distribution("frequencies", self.frequencies, open_low=True)
        lengths = {len(row) for row in self.probabilities}
        if len(lengths) > 1 or min(lengths) < 2:
            raise InputError(f"every context needs the same number of tokens, at least 2, got {sorted(lengths)}")
        if len(names) * min(lengths) > MOST_CELLS:
            raise InputError(
                f"a language has at most {MOST_CELLS} pairs of context and token, got {len(names)} x {min(lengths)}"
            )
        rows = tuple(
            _distribution(f"probabilities of {name!r}", row)
            for name, row in zip(names, self.probabilities, strict=True)
        )
        # Plain numbers, so that `to_dict` is JSON; arrays once, which are not fields: equality ignores them.
        for field, value in (("contexts", names), ("frequencies", frequencies), ("probabilities", rows)):
            object.__setattr__(self, field, value)
        object.__setattr__(self, "_pi", _frozen(np.array(frequencies)))
        object.__setattr__(self, "_p", _frozen(np.array(rows)))

    @property
    def pi(self) -> FloatArray:
        """Frequencies pi; (C,), read-only."""
        pi: FloatArray = self._pi  # type: ignore[attr-defined]
        return pi

    @property
    def p(self) -> FloatArray:
        """Probabilities p of the next token; (C, K), read-only."""
        p: FloatArray = self._p  # type: ignore[attr-defined]
        return p

    @property
    def joint(self) -> FloatArray:
        """Probability pi_i p_ik of each pair; (C, K)."""
        return self.pi[:, None] * self.p

    @property
    def size(self) -> int:
        """Number of contexts C."""
        return len(self.contexts)

    @property
    def tokens(self) -> int:
        """Number of tokens K."""
        return len(self.probabilities[0])

    @property
    def gini(self) -> FloatArray:
        """Gini impurity 1 - sum_k p_ik^2 of each context: the trace of its Hessian per occurrence; (C,)."""
        return np.sum(self.p * (1.0 - self.p), axis=1)

    @property
    def entropy(self) -> FloatArray:
        """Shannon entropy -sum_k p_ik ln p_ik of each context, in nat: the least loss there; (C,)."""
        return np.abs(np.sum(self.p * _log(self.p), axis=1))  # abs: no minus before a zero

    @property
    def renyi2(self) -> FloatArray:
        """Renyi entropy of order 2, -ln sum_k p_ik^2, in nat: Gini impurity is 1 - exp(-renyi2); (C,)."""
        return -np.log(np.sum(self.p**2, axis=1))

    @property
    def support(self) -> IntArray:
        """How many tokens can follow each context; (C,)."""
        return np.count_nonzero(self.p, axis=1).astype(np.int64)

    @property
    def floor(self) -> np.float64:
        """Entropy of the language, sum_i pi_i entropy_i, in nat: no model has less expected loss."""
        return np.float64(self.pi @ self.entropy)

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-ready; ``BigramLanguage(**d)`` makes the equal language."""
        return {
            "contexts": list(self.contexts),
            "frequencies": list(self.frequencies),
            "probabilities": [list(row) for row in self.probabilities],
        }


def bigram_language(rows: Mapping[str, ArrayLike], *, zipf: float = 0.0) -> BigramLanguage:
    """A language from next-token distributions by the name of their context, most frequent first.

    Args:
        rows: probabilities of the K tokens by context.
        zipf: exponent of the frequencies, see `zipf_frequencies`; 0 makes all contexts equally frequent.

    Raises:
        InputError: as `BigramLanguage`, or no context.
    """
    if not rows:
        raise InputError("a bigram language needs at least one context, got none")
    probabilities = tuple(tuple(np.asarray(row, dtype=np.float64).ravel().tolist()) for row in rows.values())
    return BigramLanguage(tuple(rows), tuple(zipf_frequencies(len(rows), zipf).tolist()), probabilities)


def zipf_frequencies(contexts: int, exponent: float = 1.0) -> FloatArray:
    """pi_i proportional to (1 + i)^-exponent, i = 0..contexts-1, with sum 1; (contexts,).

    Raises:
        InputError: less than one context, or an exponent outside [0, 10].

    >>> zipf_frequencies(3, 1.0).round(4).tolist()
    [0.5455, 0.2727, 0.1818]
    """
    check_number("zipf", exponent, low=0.0, high=10.0, what="exponent of the frequencies")
    weights = (1.0 + np.arange(check_int("contexts", contexts, low=1))) ** -float(exponent)
    return weights / weights.sum()


def likely(tokens: int, chosen: int = 1, mass: float = 1.0) -> FloatArray:
    """`chosen` tokens share the probability `mass` equally, the others share the rest equally; (tokens,).

    chosen = mass = 1 is deterministic, chosen = tokens uniform, mass = 1 uniform over `chosen` of them.

    Raises:
        InputError: fewer than two tokens, `chosen` outside 1..tokens, `mass` outside (0, 1], or a rest for no token.

    >>> likely(4, 1, 0.7).round(3).tolist(), likely(4, 2).tolist()
    ([0.7, 0.1, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0])
    """
    check_int("tokens", tokens, low=2, high=MOST_CELLS)
    check_int("chosen", chosen, low=1, high=tokens, what="likely tokens")
    check_number("mass", mass, low=0.0, high=1.0, open_low=True, what="probability of the likely tokens together")
    if chosen == tokens:
        if mass != 1.0:
            raise InputError(f"where all {tokens} tokens are likely their mass is 1, got {mass!r}; choose fewer tokens")
        return np.full(tokens, 1.0 / tokens)
    p = np.full(tokens, (1.0 - mass) / (tokens - chosen))
    p[:chosen] = mass / chosen
    return p


def geometric(tokens: int, ratio: float) -> FloatArray:
    """p_k proportional to ratio^k, k = 0..tokens-1; ratio 0 is deterministic, 1 uniform; (tokens,).

    Raises:
        InputError: fewer than two tokens, or a ratio outside [0, 1].

    >>> geometric(3, 0.5).round(4).tolist()
    [0.5714, 0.2857, 0.1429]
    """
    check_int("tokens", tokens, low=2, high=MOST_CELLS)
    check_number("ratio", ratio, low=0.0, high=1.0, what="of the probability of a token to that of the one before")
    weights = float(ratio) ** np.arange(tokens)
    return weights / weights.sum()


def _mixed(tokens: int) -> dict[str, FloatArray]:
    # Twice the order by entropy is not the order by Gini impurity, and only the latter is that of the curvature.
    if tokens < 5:
        raise InputError(f"the language 'mixed' needs at least 5 tokens, got {tokens}; use --language ladder")
    return {
        "certain": likely(tokens),
        "one at 0.9": likely(tokens, 1, 0.9),
        "one at 0.75": likely(tokens, 1, 0.75),
        "two at 0.95": likely(tokens, 2, 0.95),
        "one at 0.5": likely(tokens, 1, 0.5),
        "four at 0.95": likely(tokens, 4, 0.95),
        "uniform": likely(tokens, tokens),
    }


def _ladder(tokens: int) -> dict[str, FloatArray]:
    rows = {"certain": likely(tokens), "one at 0.9": likely(tokens, 1, 0.9), "one at 0.5": likely(tokens, 1, 0.5)}
    return rows | {"uniform": likely(tokens, tokens)}


def _doubling(tokens: int) -> dict[str, FloatArray]:
    counts = {2**n for n in range(tokens.bit_length()) if 2**n < tokens} | {tokens}
    return {f"uniform over {k}": likely(tokens, k) for k in sorted(counts)}


def _geometric(tokens: int) -> dict[str, FloatArray]:
    return {f"ratio {ratio:g}": geometric(tokens, ratio) for ratio in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}


LANGUAGES: dict[str, Callable[[int], dict[str, FloatArray]]] = {
    "mixed": _mixed,
    "ladder": _ladder,
    "doubling": _doubling,
    "geometric": _geometric,
}
"""Distributions by context, of a number of tokens, most certain context first."""


def make_language(name: str, *, tokens: int = 8, zipf: float = 0.0) -> BigramLanguage:
    """A named language: its contexts go from deterministic to uniform over `tokens` tokens.

    ``mixed``: one, two or four likely tokens, the rest equal; ``ladder``: one likely token of probability 1, 0.9, 0.5,
    and uniform; ``doubling``: uniform over 1, 2, 4, ... of the tokens; ``geometric``: ratios 0 to 1.

    Args:
        name: of `LANGUAGES`.
        tokens: number of tokens K, at least 2 (`mixed`: 5).
        zipf: exponent of the frequencies, the most certain context being the most frequent; 0: all equal.

    Raises:
        InputError: an unknown name, or a value out of range.

    >>> make_language("ladder").gini.round(4).tolist()
    [0.0, 0.1886, 0.7143, 0.875]
    """
    rows = pick("language", name, LANGUAGES)
    return bigram_language(rows(check_int("tokens", tokens, low=2, high=MOST_CELLS)), zipf=zipf)


def _distribution(name: str, values: tuple[float, ...], *, open_low: bool = False) -> tuple[float, ...]:
    """`values` as floats, if they are probabilities with sum 1."""
    numbers = tuple(check_number(name, value, low=0.0, high=1.0, open_low=open_low) for value in values)
    if abs(sum(numbers) - 1.0) > _SUM:
        raise InputError(f"{name} must have the sum 1, got {sum(numbers):.12g}; divide them by it")
    return numbers


def _frozen(array: FloatArray) -> FloatArray:
    array.flags.writeable = False
    return array


def _log(p: FloatArray) -> FloatArray:
    """ln p, and 0 where p is 0: there p ln p is 0."""
    return np.log(np.where(p > 0, p, 1.0))
