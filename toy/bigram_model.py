"""Two models of a bigram language: a table of logits, and embedding times unembedding; loss, gradient, Hessian, exact.

A model maps parameters w of shape (..., dim) to logits z of shape (..., C, K), and q_i = softmax(z_i) predicts the
token after context i (symbols: see `riverval.toy.bigram`). The expected loss is the cross-entropy

    L(w) = sum_i pi_i (entropy_i + excess_i),      excess_i = sum_k p_ik ln(p_ik / q_ik) >= 0    (nat),

with dL/dz_i = pi_i (q_i - p_i) and d2L/dz_i2 = pi_i (diag q_i - q_i q_i'). Adding a constant to the logits of a context
changes nothing, so each Hessian has exact null directions; `zero_sum_basis` is what is left of a context without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from .._checks import check_int, check_number
from .._typing import FloatArray
from ..errors import InputError
from .bigram import BigramLanguage


def softmax(z: FloatArray) -> FloatArray:
    """exp(z_k) / sum_k exp(z_k) along the last axis; same shape, and the same layout in memory."""
    q = z - z.max(axis=-1, keepdims=True)
    np.exp(q, out=q)
    q /= q.sum(axis=-1, keepdims=True)
    return q


def context_excess(language: BigramLanguage, z: FloatArray) -> FloatArray:
    """excess_i of logits z, the loss in each context over its entropy, in nat; (..., C, K) -> (..., C)."""
    shifted = z - z.max(axis=-1, keepdims=True)
    log_q = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    p = language.p
    log_p = np.log(np.where(p > 0, p, 1.0))
    # A token that never follows adds nothing, however unlikely: 0 ln(0/q) = 0, also where ln q is -inf.
    return np.sum(np.where(p > 0, p * (log_p - log_q), 0.0), axis=-1)


@cache
def zero_sum_basis(tokens: int) -> FloatArray:
    """Orthonormal columns that span the logits of sum zero (Helmert's); (K, K - 1), read-only.

    >>> zero_sum_basis(2).round(4).tolist()
    [[0.7071], [-0.7071]]
    """
    check_int("tokens", tokens, low=2)
    basis = np.zeros((tokens, tokens - 1))
    for k in range(1, tokens):
        basis[:k, k - 1], basis[k, k - 1] = 1.0, -float(k)
        basis[:, k - 1] /= np.sqrt(k * (k + 1.0))
    basis.flags.writeable = False
    return basis


def token_covariance(q: FloatArray) -> FloatArray:
    """diag q - q q', the Hessian of a context per occurrence and the covariance of its token; (..., K, K)."""
    return q[..., :, None] * (np.eye(q.shape[-1]) - q[..., None, :])


def context_spectrum(language: BigramLanguage, z: FloatArray | None = None) -> FloatArray:
    """Eigenvalues mu of each context's Hessian *per occurrence*, softmax shift projected out, ascending.

    Those of L itself are lambda = pi_i mu: a context's loss enters L with its frequency.

    Args:
        language: gives the optimum q_i = p_i, at which the spectrum is taken
        z: unless logits of shape (..., C, K) are given here.

    Returns:
        (..., C, K - 1); at the optimum of a context of which k tokens can follow, K - k of them are zero: river.
    """
    basis = zero_sum_basis(language.tokens)
    blocks = basis.T @ token_covariance(language.p if z is None else softmax(z)) @ basis
    return np.maximum(np.linalg.eigvalsh(blocks), 0.0)  # rounding puts zeros on both sides


@dataclass(frozen=True)
class BigramModel(ABC):
    """What both models share; subclasses give logits, and what pulls a gradient back through them."""

    name: ClassVar[str]
    label: ClassVar[str]

    language: BigramLanguage

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of parameters."""

    @abstractmethod
    def logits(self, w: FloatArray) -> FloatArray:
        """z(w); (..., dim) -> (..., C, K)."""

    @abstractmethod
    def pull(self, w: FloatArray, g: FloatArray) -> FloatArray:
        """Gradient by w from the gradient g by the logits, J(w)' g; (..., dim), (..., C, K) -> (..., dim)."""

    @abstractmethod
    def jacobian(self, w: FloatArray) -> FloatArray:
        """dz/dw of one state; (dim,) -> (C, K, dim)."""

    @abstractmethod
    def hessian(self, w: FloatArray) -> FloatArray:
        """d2L/dw2 of one state; (dim,) -> (dim, dim)."""

    @abstractmethod
    def start(self, rng: np.random.Generator, replicates: int) -> FloatArray:
        """Where training begins unless told otherwise; (replicates, dim)."""

    @abstractmethod
    def optimum(self) -> FloatArray:
        """Parameters with q = p; (dim,).

        Raises:
            InputError: some token can never follow some context (the optimum is at infinity), or the width is too
                small.
        """

    @abstractmethod
    def zero_sum_basis(self) -> FloatArray:
        """Orthonormal columns that span the parameters without the shifts of softmax; (dim, dim - shifts)."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Name, language and options, JSON-ready."""

    def excess(self, w: FloatArray) -> FloatArray:
        """Loss in each context over its entropy, nat; (..., dim) -> (..., C)."""
        return context_excess(self.language, self.logits(w))

    def value(self, w: FloatArray) -> FloatArray:
        """Expected loss L, nat; (..., dim) -> (...)."""
        return self.language.floor + self.excess(w) @ self.language.pi

    def gradient(self, w: FloatArray, pairs: FloatArray | None = None) -> FloatArray:
        """dL/dw; (..., dim) -> (..., dim).

        Args:
            w: states.
            pairs: share of each pair of context and token in a batch, (..., C, K): the gradient of the loss on it.
                None: their probabilities, for the expected gradient.
        """
        pairs = self.language.joint if pairs is None else pairs
        g = softmax(self.logits(w))
        g *= pairs.sum(axis=-1)[..., None]
        g -= pairs
        return self.pull(w, g)

    def reduced_spectrum(self, w: FloatArray) -> FloatArray:
        """Eigenvalues of the Hessian without the shifts of softmax, ascending; (dim,) -> (dim - shifts,)."""
        basis = self.zero_sum_basis()
        return np.asarray(np.linalg.eigvalsh(basis.T @ self.hessian(w) @ basis), dtype=np.float64)

    def _finite_optimum(self) -> FloatArray:
        """Logits ln p with sum zero; (C, K)."""
        if np.any(self.language.p == 0):
            first = self.language.contexts[int(np.argmin(self.language.support))]
            raise InputError(f"the optimum is at infinity: some token never follows {first!r}; start elsewhere")
        z = np.log(self.language.p)
        return z - z.mean(axis=1, keepdims=True)

    def _logit_hessian(self, w: FloatArray) -> FloatArray:
        """pi_i (diag q_i - q_i q_i'); (dim,) -> (C, K, K)."""
        return self.language.pi[:, None, None] * token_covariance(softmax(self.logits(w)))


@dataclass(frozen=True)
class LogitTable(BigramModel):
    """The parameters are the logits: w is theta of shape (C, K), row by row. Training starts at zero, where q = 1/K."""

    name: ClassVar[str] = "table"
    label: ClassVar[str] = "logit table"

    @property
    def dim(self) -> int:
        """C K."""
        return self.language.size * self.language.tokens

    def logits(self, w: FloatArray) -> FloatArray:
        """z = theta; (..., dim) -> (..., C, K)."""
        return w.reshape(*w.shape[:-1], self.language.size, self.language.tokens)

    def pull(self, w: FloatArray, g: FloatArray) -> FloatArray:
        """g itself; (..., C, K) -> (..., dim)."""
        return g.reshape(*g.shape[:-2], self.dim)

    def jacobian(self, w: FloatArray) -> FloatArray:
        """The identity; (dim,) -> (C, K, dim)."""
        return np.eye(self.dim).reshape(self.language.size, self.language.tokens, self.dim)

    def hessian(self, w: FloatArray) -> FloatArray:
        """One block pi_i (diag q_i - q_i q_i') for each context; (dim,) -> (dim, dim)."""
        c, k = self.language.size, self.language.tokens
        out = np.zeros((c, k, c, k))
        out[np.arange(c), :, np.arange(c), :] = self._logit_hessian(w)
        return out.reshape(self.dim, self.dim)

    def start(self, rng: np.random.Generator, replicates: int) -> FloatArray:
        """Zeros, in every replicate."""
        return np.zeros((replicates, self.dim))

    def optimum(self) -> FloatArray:
        """ln p, each row with sum zero; (dim,)."""
        return self._finite_optimum().ravel()

    def zero_sum_basis(self) -> FloatArray:
        """One null direction for each context is left out; (dim, C (K - 1))."""
        basis = np.kron(np.eye(self.language.size), zero_sum_basis(self.language.tokens))
        return np.asarray(basis, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Name and language."""
        return {"name": self.name, "language": self.language.to_dict()}


@dataclass(frozen=True)
class Factorised(BigramModel):
    """Embedding times unembedding: z = E U with E of shape (C, D), U of shape (D, K); w holds E, then U, row by row.

    The loss is not convex in w. Besides the D shifts of softmax (a constant added to a row of U), E A and A^-1 U make
    the same logits for every invertible A, so D^2 more directions are flat wherever the gradient is zero.

    Args:
        language: what is learnt.
        width: D, at least 1; the optimum is within reach for D >= min(C, K - 1).
        scale: standard deviation of the entries of E and U where training starts, > 0 (zero is a saddle).

    Raises:
        InputError: a width or scale out of range.
    """

    name: ClassVar[str] = "factorised"
    label: ClassVar[str] = "embedding times unembedding"

    width: int = 8
    scale: float = 0.5

    def __post_init__(self) -> None:
        check_int("width", self.width, low=1, high=10_000, what="of the embedding")
        check_number("scale", self.scale, low=0.0, high=1e3, open_low=True, what="of the initial embeddings")

    @property
    def dim(self) -> int:
        """(C + K) D."""
        return (self.language.size + self.language.tokens) * self.width

    def factors(self, w: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Embedding E (..., C, D) and unembedding U (..., D, K) as views of w (..., dim)."""
        cut = self.language.size * self.width
        e = w[..., :cut].reshape(*w.shape[:-1], self.language.size, self.width)
        return e, w[..., cut:].reshape(*w.shape[:-1], self.width, self.language.tokens)

    def logits(self, w: FloatArray) -> FloatArray:
        """z = E U; (..., dim) -> (..., C, K)."""
        e, u = self.factors(w)
        z: FloatArray = np.einsum("...cd,...dk->...ck", e, u)
        return z

    def pull(self, w: FloatArray, g: FloatArray) -> FloatArray:
        """(g U', E' g); (..., dim), (..., C, K) -> (..., dim)."""
        e, u = self.factors(w)
        out = np.empty_like(w)  # of the same layout in memory, whose parts are views
        by_e, by_u = self.factors(out)
        np.einsum("...ck,...dk->...cd", g, u, out=by_e)
        np.einsum("...cd,...ck->...dk", e, g, out=by_u)
        return out

    def jacobian(self, w: FloatArray) -> FloatArray:
        """dz_ik/dE_jd = delta_ij U_dk and dz_ik/dU_dl = delta_kl E_id; (dim,) -> (C, K, dim)."""
        e, u = self.factors(w)
        c, d, k = self.language.size, self.width, self.language.tokens
        by_e = np.einsum("ij,dk->ikjd", np.eye(c), u).reshape(c, k, c * d)
        by_u = np.einsum("kl,id->ikdl", np.eye(k), e).reshape(c, k, d * k)
        return np.concatenate([by_e, by_u], axis=-1)

    def hessian(self, w: FloatArray) -> FloatArray:
        """J' (d2L/dz2) J, and beside the diagonal what the product itself bends: g_ik on (E_id, U_dk)."""
        e, u = self.factors(w)
        s = self._logit_hessian(w)
        g = self.language.pi[:, None] * (softmax(self.logits(w)) - self.language.p)
        c, d, k = self.language.size, self.width, self.language.tokens
        by_e = np.zeros((c, d, c, d))
        by_e[np.arange(c), :, np.arange(c), :] = u @ s @ u.T
        across = np.einsum("dk,ikl,ie->idel", u, s, e) + np.einsum("de,il->idel", np.eye(d), g)
        by_u = np.einsum("ikl,id,ie->dkel", s, e, e)
        across = across.reshape(c * d, d * k)
        return np.block([[by_e.reshape(c * d, c * d), across], [across.T, by_u.reshape(d * k, d * k)]])

    def start(self, rng: np.random.Generator, replicates: int) -> FloatArray:
        """Independent normals of standard deviation `scale`."""
        return self.scale * rng.standard_normal((replicates, self.dim))

    def optimum(self) -> FloatArray:
        """The balanced factors of ln p (singular values shared equally); (dim,)."""
        left, values, right = np.linalg.svd(self._finite_optimum(), full_matrices=False)
        rank = int(np.sum(values > 1e-12 * max(values.max(), 1.0)))
        if rank > self.width:
            raise InputError(f"the optimum needs width {rank}, got {self.width}; use a wider model")
        root = np.zeros(self.width)
        root[:rank] = np.sqrt(values[:rank])
        e, u = np.zeros((self.language.size, self.width)), np.zeros((self.width, self.language.tokens))
        e[:, :rank], u[:rank] = left[:, :rank], right[:rank]
        return np.concatenate([(e * root).ravel(), (root[:, None] * u).ravel()])

    def zero_sum_basis(self) -> FloatArray:
        """One null direction for each row of U is left out; (dim, dim - D)."""
        c, d, k = self.language.size, self.width, self.language.tokens
        out = np.zeros((self.dim, self.dim - d))
        out[: c * d, : c * d] = np.eye(c * d)
        out[c * d :, c * d :] = np.kron(np.eye(d), zero_sum_basis(k))
        return out

    def to_dict(self) -> dict[str, Any]:
        """Name, language and options."""
        return {"name": self.name, "language": self.language.to_dict(), "width": self.width, "scale": self.scale}


MODELS: dict[str, type[BigramModel]] = {"table": LogitTable, "factorised": Factorised}
