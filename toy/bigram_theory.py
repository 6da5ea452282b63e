r"""What SGD does to the logit table of a bigram language, in closed form (derived).

Symbols: eta = rate, B = batch, S = sum of eta over the updates; context i has frequency pi_i, k_i of the K tokens can
follow it, and mu runs over the eigenvalues of diag p_i - p_i p_i', its curvature *per occurrence*: that of the loss L
is lambda = pi_i mu. Excess is always per occurrence, the loss in the context over its entropy in nat; it enters L times
pi_i. The batch holds B pairs drawn independently.

**Hill.** At the optimum the covariance of a batch gradient is H/B (the model is well-specified), so a small
displacement has in each eigendirection the variance v with

.. math:: v_{t+1} = \left(1 - 2\eta\lambda + \eta^2\mu^2\left[\pi^2 + \tfrac{\pi(1-\pi)}{B}\right]\right) v_t
          + \frac{\eta^2\lambda}{B}

The last term in brackets is the noise in *how often* the context occurs. The excess is sum_mu mu v/2; at a constant
rate it settles at sum_mu eta mu / (2 B (2 - eta mu (pi + (1 - pi)/B))), about eta Gini / (4 B) whatever pi is.

**River.** Probability d on tokens that never follow has no minimum. The displaced mass falls as a power of S:
k^2 e^m + k (K - k) m = k^2 + pi K S for the margin m between the logits of both kinds (uniform start, gradient flow),
with excess ln(1 + (K - k)/(k e^m)), which tends to k (K - k)/(K pi S); deterministic contexts have k = 1.
"""

from __future__ import annotations

import numpy as np
from scipy.special import wrightomega

from .._checks import check_int, check_number, check_steps
from .._typing import ArrayLike, FloatArray, IntArray
from ..errors import InputError
from .bigram import BigramLanguage
from .bigram_model import BigramModel, LogitTable, context_spectrum, token_covariance


def small_rate_excess(language: BigramLanguage, lr: float, batch: int = 1) -> FloatArray:
    """eta/(4 B) (1 - ||p_i||^2), the excess at which a small constant rate settles in each context; (C,).

    It is proportional to the Gini impurity and does not depend on the frequency. Within 3 % of simulations where
    eta mu <= 0.05; contexts with tokens that never follow have their river on top.

    Raises:
        InputError: lr not above 0 or batch below 1.

    >>> from .bigram import make_language
    >>> small_rate_excess(make_language("ladder"), 0.1).round(5).tolist()
    [0.0, 0.00471, 0.01786, 0.02188]
    """
    _check(lr, batch)
    return lr / (4.0 * batch) * language.gini


def parameter_excess(model: BigramModel, w: FloatArray, lr: float, batch: int = 1) -> FloatArray:
    """eta/(4 B) tr(J_i' (diag p_i - p_i p_i') J_i): where SGD on the parameters of any model settles; (C,).

    J_i = dz_i/dw at w, a state near an optimum; summed with the weights pi_i it is eta/(4 B) tr H. Of the logit table
    it is `small_rate_excess`. Small eta; the curvature itself may drift along flat directions (embedding against
    unembedding), so w should be near the state in question.

    Raises:
        InputError: lr not above 0 or batch below 1.
    """
    _check(lr, batch)
    blocks, j = token_covariance(model.language.p), model.jacobian(w)
    return lr / (4.0 * batch) * np.einsum("ikn,ikl,iln->i", j, blocks, j, optimize=True)


def stationary_excess(language: BigramLanguage, lr: float, batch: int = 1, *, context_noise: bool = True) -> FloatArray:
    """sum_mu eta mu / (2 B (2 - eta mu s)), s = pi + (1 - pi)/B: where the hill of each context settles; (C,).

    Exact for noise that is linear in the displacement. For B = 1, s = 1: a context moves only when it occurs, so its
    frequency sets the time this takes, and nothing else.

    Args:
        language: contexts.
        lr: eta.
        batch: B.
        context_noise: False leaves the noise in how often a context occurs out, s = pi: the noise is that of the
            optimum, cov = H/B, whatever the state (Fisher noise in a quadratic valley).

    Raises:
        InputError: a value out of range, or eta mu s >= 2 somewhere, where nothing settles.
    """
    _check(lr, batch)
    mu = context_spectrum(language)
    room = 2.0 - lr * mu * _share(language, batch, context_noise)
    if np.any(room <= 0):
        worst = language.contexts[int(np.argmin(room.min(axis=1)))]
        raise InputError(
            f"the rate {lr:g} does not settle in the context {worst!r}; use one below {stable_limit(language, batch):g}"
        )
    return np.sum(lr * mu / (2.0 * batch * room), axis=1)


def stable_limit(language: BigramLanguage, batch: int = 1) -> float:
    """The rate below which the hills of every context settle, 2 / max mu (pi + (1 - pi)/B); inf without hills.

    Raises:
        InputError: batch below 1.
    """
    steepest = float(np.max(context_spectrum(language)[:, -1:] * _share(language, batch, True)))
    return 2.0 / steepest if steepest > 1e-12 else np.inf


def hill_excess(
    language: BigramLanguage,
    rates: ArrayLike,
    states: IntArray | None = None,
    batch: int = 1,
    *,
    start_lr: float | None = None,
    context_noise: bool = True,
) -> FloatArray:
    """Expected excess of the hill of each context through a run, by the recursion at the top of this module.

    Args:
        language: contexts.
        rates: eta of each update; (T,).
        states: the states wanted, increasing, of 0..T; None: the last alone.
        batch: B.
        start_lr: v[0] is where this constant rate settles; None: v[0] = 0, the optimum.
        context_noise: as in `stationary_excess`.

    Returns:
        (states, C).

    Raises:
        InputError: a value out of range, or a start where nothing settles.
    """
    eta = np.asarray(rates, dtype=np.float64).ravel()
    wanted = np.array([eta.size]) if states is None else np.asarray(states)
    if wanted.size and (wanted[0] < 0 or wanted[-1] > eta.size or np.any(np.diff(wanted) < 0)):
        raise InputError(f"states must be increasing numbers in 0..{eta.size}, got {wanted!r}")
    mu = context_spectrum(language)
    lam = language.pi[:, None] * mu
    squared = lam * mu * _share(language, batch, context_noise)
    v = np.zeros_like(mu)
    if start_lr is not None:
        stationary_excess(language, start_lr, batch, context_noise=context_noise)  # refuses what does not settle
        # A direction without noise has no balance; it stays where it is, at zero.
        v = np.where(mu > 0, start_lr / (batch * (2.0 - start_lr * squared / np.where(mu > 0, lam, 1.0))), 0.0)
    out = np.empty((wanted.size, language.size))
    made = 0
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the stable limit the linear theory has no bound
        for n, state in enumerate(wanted.tolist()):
            for lr in eta[made:state].tolist():
                v = (1.0 - lr * (2.0 * lam - lr * squared)) * v + lr * lr * lam / batch
            made = state
            out[n] = 0.5 * np.sum(mu * v, axis=1)
    return out


def decay_factor(
    language: BigramLanguage, lr: float, rates: ArrayLike, batch: int = 1, *, context_noise: bool = True
) -> FloatArray:
    """Hill of each context after a cooldown over the hill before it, at which the rate `lr` had settled; (C,).

    Contexts without a hill (deterministic ones) give nan. Of one direction it depends on the shape of the decay and on
    x = eta lambda T_d = eta pi mu T_d alone, where eta mu is small.

    Args:
        language: contexts.
        lr: eta of the stable phase.
        rates: of the cooldown; (T_d,).
        batch: B; leaves the factor nearly alone.
        context_noise: as in `stationary_excess`.

    Raises:
        InputError: as `hill_excess`.
    """
    before = stationary_excess(language, lr, batch, context_noise=context_noise)
    after = hill_excess(language, rates, batch=batch, start_lr=lr, context_noise=context_noise)[-1]
    hilly = before > 1e-15 * lr
    return np.where(hilly, after / np.where(hilly, before, 1.0), np.nan)


def flow_excess(tokens: int, support: int, frequency: float, area: ArrayLike) -> FloatArray:
    """Excess of a context that is uniform over k of K tokens, by gradient flow from equal logits; shape of `area`.

    ln(1 + 1/w), w = omega((1 + pi K S/k^2)/a - ln a), a = (K - k)/k: omega is Wright's, omega + ln omega = argument.

    Args:
        tokens: K.
        support: k; 1 is a deterministic context.
        frequency: pi.
        area: S = sum of the rates, >= 0.

    Raises:
        InputError: a value out of range.

    >>> flow_excess(8, 1, 1.0, [0.0, 100.0]).round(5).tolist()  # ln 8 before training
    [2.07944, 0.00923]
    """
    s, k, a = _river_arguments(tokens, support, frequency, area)
    if a == 0:
        return np.zeros_like(s)
    return np.log1p(1.0 / wrightomega((1.0 + frequency * tokens * s / k**2) / a - np.log(a)))


def tail_excess(tokens: int, support: int, frequency: float, area: ArrayLike) -> FloatArray:
    """k (K - k)/(K pi S), to which `flow_excess` tends for large S: slope -1 in S, for any rates; shape of `area`.

    It also holds for a context that is not uniform over its k tokens: they settle among themselves first.

    Raises:
        InputError: as `flow_excess`.

    >>> tail_excess(8, 1, 1.0, 100.0).item()
    0.00875
    """
    s, k, a = _river_arguments(tokens, support, frequency, area)
    with np.errstate(divide="ignore"):
        return np.where(a == 0, 0.0, a * k**2 / (tokens * frequency * s))


def descent_excess(tokens: int, support: int, pulls: ArrayLike) -> FloatArray:
    """Excess of a context that is uniform over k of K tokens after each update, exact for discrete steps.

    The margin m between the logits of both kinds starts at 0 and m <- m + c K/(k (k e^m + K - k)) at each update.

    Args:
        tokens: K.
        support: k; 1 is a deterministic context.
        pulls: c = eta n/B of each update, n = occurrences of the context in the batch; (T, ...). Expected gradient:
            n = pi B. For k > 1 an occurrence stands for its mean over the k tokens.

    Returns:
        (T + 1, ...), before the first update and after each.

    Raises:
        InputError: a value out of range.
    """
    c = np.asarray(pulls, dtype=np.float64)
    _, k, a = _river_arguments(tokens, support, 1.0, 0.0)
    margin = np.zeros((c.shape[0] + 1, *c.shape[1:]))
    for t in range(c.shape[0]):
        margin[t + 1] = margin[t] + c[t] * tokens / (k**2 * (np.exp(margin[t]) + a))
    return np.log1p(a * np.exp(-margin))


def expected_excess(
    language: BigramLanguage,
    rates: ArrayLike,
    states: IntArray,
    *,
    batch: int = 1,
    start: FloatArray | None = None,
    noisy: bool = True,
) -> FloatArray:
    """River and hill of each context through a run of the logit table: descent without noise, plus `hill_excess`.

    Right to first order in eta once the table is near its optimum; on the way there the hill is that of the optimum.

    Args:
        language: contexts.
        rates: eta of each update; (T,).
        states: the states wanted, increasing, of 0..T.
        batch: B.
        start: logits at the start, (C K,); None: zeros.
        noisy: False: without the hill, exact.

    Returns:
        (states, C).

    Raises:
        InputError: as `hill_excess`.
    """
    eta = np.asarray(rates, dtype=np.float64).ravel()
    hill = hill_excess(language, eta, states, batch) if noisy else np.zeros((len(states), language.size))
    model = LogitTable(language)
    w = np.zeros(model.dim) if start is None else np.array(start, dtype=np.float64)
    made = 0
    for n, state in enumerate(np.asarray(states).tolist()):
        for lr in eta[made:state].tolist():
            w -= lr * model.gradient(w)
        made = state
        hill[n] += model.excess(w)
    return hill


def river_dimensions(language: BigramLanguage) -> IntArray:
    """K - k_i directions of each context in which its loss falls for ever and curvature goes to zero; (C,) of int.

    Their sum is the dimension of the river: it is a curve only where one context lacks one token, e.g. K = 2 and one
    deterministic context.
    """
    return language.tokens - language.support


def deterministic_spectrum(tokens: int, missing: float) -> FloatArray:
    """Eigenvalues of a deterministic context per occurrence, while d = `missing` of its probability is misplaced.

    K - 2 times d/(K - 1), and (K/(K - 1)) d (1 - d) along the margin, where the gradient points; ascending for
    d <= 1 - 1/K, shape (K - 1,). So for K > 2 the gradient does *not* lie along the flattest direction.

    Raises:
        InputError: fewer than two tokens, or `missing` outside [0, 1 - 1/K].
    """
    check_int("tokens", tokens, low=2)
    d = check_number("missing", missing, low=0.0, high=1.0 - 1.0 / tokens, what="probability of the wrong tokens")
    return np.array([d / (tokens - 1.0)] * (tokens - 2) + [tokens / (tokens - 1.0) * d * (1.0 - d)])


def best_constant_rate(language: BigramLanguage, steps: int, batch: int = 1) -> float:
    """2 sqrt(A B/(G T)), the rate that ends lowest without a cooldown: scales as T^-1/2.

    It minimises A/(eta T) + eta G/(4 B), the river's tail plus the hill: A = sum_i k_i (K - k_i)/K (deterministic
    contexts: their number times (K - 1)/K), G = sum_i pi_i Gini_i, T = `steps`, B = `batch`.

    Raises:
        InputError: a language without a river or without hills (no rate is best), or a value out of range.
    """
    check_steps("steps", steps, low=1)
    _check(1.0, batch)
    river, hills = _river_and_hills(language)
    if river == 0 or hills == 0:
        raise InputError(
            "no constant rate is best where every token can follow every context, or all contexts are deterministic; "
            "choose a language with both kinds"
        )
    return float(2.0 * np.sqrt(river * batch / (hills * steps)))


def constant_rate_excess(language: BigramLanguage, lr: ArrayLike, steps: int, batch: int = 1) -> FloatArray:
    """A/(eta T) + eta G/(4 B), the loss over the entropy after `steps` updates at a constant rate; shape of `lr`.

    Symbols as in `best_constant_rate`; for large eta T and small eta.

    Raises:
        InputError: a value out of range.
    """
    check_steps("steps", steps, low=1)
    _check(1.0, batch)
    river, hills = _river_and_hills(language)
    eta = np.asarray(lr, dtype=np.float64)
    return river / (eta * steps) + eta * hills / (4.0 * batch)


def _river_and_hills(language: BigramLanguage) -> tuple[float, float]:
    """(A, G) of `best_constant_rate`."""
    river = float(np.sum(language.support * (language.tokens - language.support))) / language.tokens
    return river, float(language.pi @ language.gini)


def _share(language: BigramLanguage, batch: int, context_noise: bool) -> FloatArray:
    """s_i = pi_i + (1 - pi_i)/B, or pi_i; (C, 1)."""
    check_int("batch", batch, low=1)
    pi = language.pi[:, None]
    return pi + (1.0 - pi) / batch if context_noise else pi


def _check(lr: float, batch: int) -> None:
    check_number("lr", lr, low=0.0, open_low=True, what="learning rate")
    check_int("batch", batch, low=1)


def _river_arguments(tokens: int, support: int, frequency: float, area: ArrayLike) -> tuple[FloatArray, int, float]:
    """S as an array, k, and a = (K - k)/k."""
    check_int("tokens", tokens, low=2)
    check_int("support", support, low=1, high=tokens, what="tokens that can follow")
    check_number("frequency", frequency, low=0.0, high=1.0, open_low=True)
    s = np.asarray(area, dtype=np.float64)
    if np.any(~(s >= 0)):
        raise InputError(f"area (sum of the rates) must be at least 0, got {area!r}")
    return s, int(support), (tokens - support) / support
