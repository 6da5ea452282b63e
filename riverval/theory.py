r"""What is known in closed form of an optimizer between quadratic hills: stability, stationary state, best decay.

One coordinate w has the gradient h w + sigma xi (a hill of curvature h) or -c + sigma xi (the river, of slope c), with
xi of mean 0 and variance 1, independent from update to update; eta is the learning rate. Every function takes plain
numbers or arrays, and nothing here knows of a loss, a schedule or a simulation. What optimizers are called and do, with
g the noisy gradient and b = `beta`:

==============  ======================================================================================
sgd             w -= eta g
heavy-ball      m = b m + g;  w -= eta m
ema-momentum    m = b m + (1 - b) g;  w -= eta m
nesterov        m = b m + g;  w -= eta (g + b m)
schedule-free   g taken at y = (1 - b) z + b x;  z -= eta g;  x the average of z with weights eta^2
sign            w -= eta sign(g)
rmsprop         v = b2 v + (1 - b2) g^2;  w -= eta g / (sqrt(v) + eps)
adam, adamw     m = b m + (1 - b) g;  v as above;  w -= eta m / (sqrt(v) + eps), both corrected for their start at 0
==============  ======================================================================================

Recursions for any sequence of rates are in `riverval.theory_moments`, which also witness what is stated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import erf

from ._arrays import check_curvature, check_noise, check_rates, check_values
from ._checks import LARGEST, check_number, check_steps, pick
from ._typing import ArrayLike, FloatArray
from .errors import InputError

_LIMITS: dict[str, Callable[[float], float]] = {
    "sgd": lambda b: 2.0,
    "heavy-ball": lambda b: 2.0 * (1.0 + b),
    "ema-momentum": lambda b: 2.0 * (1.0 + b) / (1.0 - b),
    "nesterov": lambda b: 2.0 * (1.0 + b) / (1.0 + 2.0 * b),
    "schedule-free": lambda b: 2.0 / (1.0 - b),
    "sign": lambda b: math.inf,
    "rmsprop": lambda b: 2.0,
    "adam": lambda b: 2.0 * (1.0 + b) / (1.0 - b),
    "adamw": lambda b: 2.0 * (1.0 + b) / (1.0 - b),
}
_WITHOUT_BETA = ("sgd", "sign", "rmsprop")
MOMENTA = ("heavy-ball", "ema-momentum", "nesterov")


# --- stability -------------------------------------------------------------------------------------------------------
def stability_limit(optimizer: str = "sgd", *, beta: float | None = None) -> float:
    r"""The largest eta h at which a constant rate settles in a hill of curvature h (beyond it, oscillations grow).

    ==============================  ==================================================================================
    sgd                             2
    heavy-ball                      2 (1 + b)
    ema-momentum                    2 (1 + b) / (1 - b)
    nesterov                        2 (1 + b) / (1 + 2 b)
    schedule-free                   2 / (1 - b), once its average is long
    sign                            infinite: it never diverges, but jumps to and fro by eta
    adam, adamw (b = beta1)         2 (1 + b) / (1 - b), of eta h / (sqrt(v) + eps)
    rmsprop                         2, of eta h / (sqrt(v) + eps)
    ==============================  ==================================================================================

    For the last two, v is the running mean of g^2, at least sigma^2 when it has settled. They cannot diverge either:
    beyond the limit v itself grows until eta h / sqrt(v) is back at it.

    Sources: the spectral radius of the linear update is 1 there (derived); schedule-free arXiv:2507.09846, adam
    arXiv:2207.14484. Weight decay is left out; adamw's adds eta times it to the contraction, which is much less than 1.

    Args:
        optimizer: a name of the table.
        beta: b in [0, 1), where the optimizer has one; None takes 0.9.

    Raises:
        InputError: an unknown optimizer, a beta outside [0, 1), or one for an optimizer that has none.

    >>> stability_limit(), round(stability_limit("ema-momentum", beta=0.9), 12), stability_limit("heavy-ball", beta=0.5)
    (2.0, 38.0, 3.0)
    """
    limit = pick("optimizer", optimizer, _LIMITS)
    if optimizer in _WITHOUT_BETA and beta is not None:
        raise InputError(f"the stability limit of {optimizer} takes no beta, got {beta!r}; leave it out")
    return limit(_check_beta(0.9 if beta is None else beta))


# --- SGD in a hill ---------------------------------------------------------------------------------------------------
def stationary_variance(lr: float, curvature: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """v* = eta sigma^2 / (h (2 - eta h)), the variance at which SGD settles at a constant rate; shape of `curvature`.

    eta = `lr`, h = `curvature`, sigma = standard deviation of the gradient noise, a number or one for each curvature:
    the fixed point of v -> (1 - eta h)^2 v + eta^2 sigma^2 (derived).

    Raises:
        InputError: a value out of range, or lr h >= 2, where there is none.

    >>> stationary_variance(0.1, 2.0, 1.5).item()
    0.0625
    """
    h, noise = _stable_curvature(lr, curvature), check_noise(sigma)
    variance: FloatArray = lr * noise**2 / (h * (2.0 - lr * h))
    return variance


def stationary_hill(lr: float, curvature: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """H = h v*/2 = eta sigma^2 / (2 (2 - eta h)), the expected hill loss of each direction; shape of `curvature`.

    The bound eta sigma^2/2 that is quoted for it holds for eta h <= 1 and fails above (derived).

    Raises:
        InputError: as `stationary_variance`.

    >>> stationary_hill(0.1, 2.0, 1.5).item()
    0.0625
    """
    variance = stationary_variance(lr, curvature, sigma)
    hill: FloatArray = 0.5 * np.asarray(curvature, dtype=np.float64) * variance
    return hill


def fisher_hill(lr: float, curvature: ArrayLike, batch: float) -> FloatArray:
    """eta h / (2 B (2 - eta h)): the hill loss of each direction where the noise has the covariance H/B.

    That is so for a well-specified model at its optimum, with B = `batch` samples in a gradient (derived).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> fisher_hill(0.1, [1.0, 2.0], 4).round(6).tolist()
    [0.006579, 0.013889]
    """
    size = check_number("batch", batch, low=0.0, open_low=True, what="samples in a gradient")
    return stationary_hill(lr, curvature, np.sqrt(check_curvature(curvature) / size))


def fisher_total(lr: float, trace: float, batch: float) -> float:
    """eta tr(H) / (4 B), the sum of `fisher_hill` over directions to leading order in eta h.

    It depends on the trace of the Hessian and not on the number of directions (derived).

    Raises:
        InputError: a value out of range.

    >>> round(fisher_total(0.1, 3.0, 4), 6)
    0.01875
    """
    check_number("lr", lr, low=0.0, high=LARGEST)
    size = check_number("batch", batch, low=0.0, open_low=True, what="samples in a gradient")
    return lr * check_number("trace", trace, low=0.0, high=LARGEST) / (4.0 * size)


def relaxed_variance(lr: float, curvature: ArrayLike, sigma: ArrayLike, steps: int, *, start: ArrayLike) -> FloatArray:
    """v_n = v* + (1 - eta h)^(2n) (v_0 - v*): n = `steps` updates of SGD from the variance v_0 = `start` (derived).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> relaxed_variance(0.1, 2.0, 1.5, 1, start=0.0).round(6).item()
    0.0225
    """
    limit = stationary_variance(lr, curvature, sigma)
    n = check_steps("steps", steps)
    first = check_values("start", start, low=0.0, what="variance at the start")
    return limit + (1.0 - lr * np.asarray(curvature)) ** (2 * n) * (first - limit)


def half_time(lr: float, curvature: ArrayLike) -> FloatArray:
    """-ln 2 / ln (1 - eta h)^2: updates in which SGD halves the distance of the variance from its limit.

    About ln 2 / (2 eta h) for small eta h, so that it is a time in the sum of the rates; 0 at eta h = 1 (derived).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> half_time(0.01, 2.0).round(3).item()
    17.155
    """
    h = _stable_curvature(lr, curvature)
    with np.errstate(divide="ignore"):
        time: FloatArray = math.log(2.0) / (-2.0 * np.log(np.abs(1.0 - lr * h)))
    return time


def final_variance(rates: ArrayLike, curvature: ArrayLike, sigma: ArrayLike, *, start: ArrayLike) -> FloatArray:
    """The variance of SGD after any rates: v -> (1 - eta_t h)^2 v + eta_t^2 sigma^2 for each, from v_0 = `start`.

    The recursion in its summed form, v_0 prod_t (1 - eta_t h)^2 + sigma^2 sum_t eta_t^2 prod_{s>t} (1 - eta_s h)^2, in
    which all terms are positive. It takes T m numbers of memory for m curvatures (derived).

    Args:
        rates: rate of each update, shape (T,).
        curvature: h > 0, a number or shape (m,).
        sigma: standard deviation of the gradient noise, likewise.
        start: variance before the first update, likewise.

    Raises:
        InputError: a value out of range.

    >>> final_variance([0.1, 0.05], 2.0, 1.5, start=0.0625).round(8).item()
    0.05625
    """
    eta, h, noise = check_rates(rates), check_curvature(curvature), check_noise(sigma)
    first = check_values("start", start, low=0.0, what="variance at the start")
    lr = eta.reshape(-1, *[1] * h.ndim)
    squares = (1.0 - lr * h) ** 2
    # after[t] = prod over s > t; after[-1] = 1, and the product over all is one more factor.
    after = np.cumprod(np.concatenate([np.ones((1, *h.shape)), squares[::-1]]), axis=0)[::-1]
    variance: FloatArray = after[0] * first + noise**2 * np.sum(lr**2 * after[1:], axis=0)
    return variance


# --- the best decay --------------------------------------------------------------------------------------------------
def optimal_decay(lr: float, curvature: float, steps: int) -> FloatArray:
    """The cooldown that leaves the least hill loss: eta_t = 1/(2/eta + h t), t = 0..steps-1; shape (steps,).

    Greedy and globally optimal for one hill direction h = `curvature` that starts from the stationary state of
    eta = `lr`; the first update halves the rate (derived; arXiv:2410.05192 shows the form).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> optimal_decay(0.1, 2.0, 3).round(6).tolist()
    [0.05, 0.045455, 0.041667]
    """
    h = float(_stable_curvature(lr, curvature))
    t = np.arange(check_steps("steps", steps, low=1, what="of the cooldown"), dtype=np.float64)
    return 1.0 / (2.0 / lr + h * t)


def optimal_final_hill(lr: float, curvature: float, sigma: float, steps: int) -> float:
    """H_n = (sigma^2/2) / (2/eta + h (n - 1)), the hill loss after the optimal cooldown of n = `steps` updates.

    It is the least that any n rates leave, and tends to sigma^2/(2 h n) whatever the plateau eta = `lr` was (derived).

    Raises:
        InputError: lr h >= 2, or a value out of range.

    >>> round(optimal_final_hill(0.1, 2.0, 1.5, 40), 8)
    0.01147959
    """
    noise = float(check_noise(sigma))
    h = float(_stable_curvature(lr, curvature))
    n = check_steps("steps", steps, low=1, what="of the cooldown")
    return 0.5 * noise**2 / (2.0 / lr + h * (n - 1))


# --- momentum --------------------------------------------------------------------------------------------------------
def momentum_variance(
    optimizer: str, lr: float, curvature: ArrayLike, sigma: ArrayLike, *, beta: float = 0.9
) -> FloatArray:
    r"""The variance at which a momentum method settles at a constant rate; shape of `curvature`.

    .. math::
        \text{heavy-ball:}\quad & \frac{\eta\sigma^2}{(1-b)\,h\,\bigl(2-\frac{\eta h}{1+b}\bigr)} \qquad
        \text{ema-momentum:}\quad \frac{\eta\sigma^2}{h\,\bigl(2-\eta h\frac{1-b}{1+b}\bigr)} \\
        \text{nesterov:}\quad & \frac{\eta\sigma^2\,(1+b+\eta h\,b(1+2b))}
            {h\,(1-b+\eta h\,b)\,(2(1+b)-\eta h(1+2b))}

    with eta = `lr`, h = `curvature`, b = `beta`: the solution of the discrete Lyapunov equation of (w, m) (derived). At
    b = 0 all are `stationary_variance`.

    Raises:
        InputError: an optimizer that is not one of the three, a rate at or beyond its `stability_limit`, or a value out
            of range.

    >>> momentum_variance("ema-momentum", 0.1, 2.0, 1.5, beta=0.9).round(7).item()
    0.0565476
    """
    pick("momentum method", optimizer, dict.fromkeys(MOMENTA))
    b, noise = _check_beta(beta), check_noise(sigma)
    h = _stable_curvature(lr, curvature, optimizer, beta=b)
    product = lr * h
    if optimizer == "heavy-ball":
        shape = 1.0 / ((1.0 - b) * (2.0 - product / (1.0 + b)))
    elif optimizer == "ema-momentum":
        shape = 1.0 / (2.0 - product * (1.0 - b) / (1.0 + b))
    else:
        top = 1.0 + b + product * b * (1.0 + 2.0 * b)
        shape = top / ((1.0 - b + product * b) * (2.0 * (1.0 + b) - product * (1.0 + 2.0 * b)))
    variance: FloatArray = lr * noise**2 / h * shape
    return variance


# --- sign and adaptive methods ---------------------------------------------------------------------------------------
def sign_speed(lr: float, slope: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """eta erf(c / (sigma sqrt 2)): mean progress of sign-SGD in one update along a river of slope c (derived).

    Exact for Gaussian noise; SGD's is eta c.

    Raises:
        InputError: a value out of range, or sigma = 0.

    >>> sign_speed(0.1, 0.5, 1.0).round(6).item()
    0.038292
    """
    check_number("lr", lr, low=0.0, high=LARGEST)
    noise = check_values("sigma", sigma, low=0.0, open_low=True, what="standard deviation of the gradient noise")
    speed: FloatArray = lr * erf(check_values("slope", slope) / (noise * math.sqrt(2.0)))
    return speed


def sign_variance(lr: float, curvature: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """The variance at which sign-SGD settles in a hill, for a Gaussian coordinate; shape of `curvature`.

    v = q (q + sqrt(q^2 + 4 sigma^2/h^2)) / 2 with q = eta sqrt(2 pi)/4, where the mean of g^2 is sigma^2 + h^2 v. To
    leading order v = q sigma/h and the hill loss is h v/2 = (eta sigma/4) sqrt(pi/2) = 0.313 eta sigma: linear in the
    noise, and the same for every curvature (derived). The coordinate is nearly Gaussian while eta h is well below
    sigma; without noise it jumps to and fro, and this is of the right order only.

    Raises:
        InputError: a value out of range.

    >>> sign_variance(0.01, 2.0, 1.0).round(8).item()
    0.00315298
    """
    check_number("lr", lr, low=0.0, high=LARGEST, open_low=True)
    h, noise = check_curvature(curvature), check_noise(sigma)
    q = lr * math.sqrt(2.0 * math.pi) / 4.0
    variance: FloatArray = 0.5 * q * (q + np.hypot(q, 2.0 * noise / h))
    return variance


def adaptive_speed(lr: float, slope: ArrayLike, sigma: ArrayLike, *, eps: float = 0.0) -> FloatArray:
    """eta c / (sqrt(c^2 + sigma^2) + eps): mean progress of Adam or RMSprop in one update along the river.

    For a settled v that hardly fluctuates, 1 - beta2 << 1: then v = E[g^2] = c^2 + sigma^2 (derived). Under strong
    noise it is eta c/sigma, which is sign-SGD's times sqrt(pi/2).

    Raises:
        InputError: a value out of range, or slope and sigma both zero.

    >>> adaptive_speed(0.1, 0.3, 0.4).round(6).item()
    0.06
    """
    check_number("lr", lr, low=0.0, high=LARGEST)
    c, noise = check_values("slope", slope), check_noise(sigma)
    size = np.hypot(c, noise) + check_number("eps", eps, low=0.0)
    if np.any(size == 0):
        raise InputError("slope, sigma and eps are all zero: the direction of the update is 0/0; give one of them")
    speed: FloatArray = lr * c / size
    return speed


def adaptive_variance(
    lr: float, curvature: ArrayLike, sigma: ArrayLike, *, beta1: float = 0.0, eps: float = 0.0
) -> FloatArray:
    """The variance at which Adam (b = `beta1`), or RMSprop (b = 0), settles in a hill; shape of `curvature`.

    With v = E[g^2] = sigma^2 + h^2 s in place of its running mean, the update is that of ema-momentum at the rate
    eta/(sqrt(v) + eps), so s solves 2 h s (sqrt(v) + eps) = eta (sigma^2 + h^2 s (1 - b)/(1 + b)); at b = eps = 0,
    s = (eta/8)(eta + sqrt(eta^2 + 16 sigma^2/h^2)), and eta sigma/(2 h) to leading order (derived). It needs
    1 - beta2 << 1, and eta h below sigma.

    Raises:
        InputError: a value out of range.

    >>> adaptive_variance(0.01, 2.0, 1.0).round(8).item()
    0.00251253
    """
    check_number("lr", lr, low=0.0, high=LARGEST, open_low=True)
    b, small = _check_beta(beta1), check_number("eps", eps, low=0.0)
    h, noise = np.broadcast_arrays(check_curvature(curvature), check_noise(sigma))
    share = (1.0 - b) / (1.0 + b)

    def excess(s: float, h: float, noise: float) -> float:
        square = noise**2 + h**2 * s
        return 2.0 * h * s * (math.sqrt(square) + small) - lr * (noise**2 + share * h**2 * s)

    # The left side over the right one grows with s, so there is one root; that of b = eps = 0 lies above it.
    highest = lr / 8.0 * (lr + np.hypot(lr, 4.0 * noise / h))
    pairs = zip(h.flat, noise.flat, highest.flat, strict=True)
    roots = [_root(excess, float(s), float(k), float(n)) for k, n, s in pairs]
    return np.array(roots).reshape(h.shape)


def _root(excess: Callable[[float, float, float], float], highest: float, h: float, noise: float) -> float:
    top = highest * (1.0 + 1e-9)
    # Without noise 0 is a root too, the one from which any disturbance leads away.
    bottom = 0.0 if noise else 1e-9 * highest
    if excess(bottom, h, noise) >= 0.0:
        return 0.0
    return float(brentq(excess, bottom, top, args=(h, noise), xtol=1e-300, rtol=1e-14))


# --- checks ----------------------------------------------------------------------------------------------------------
def _check_beta(beta: float) -> float:
    return check_number("beta", beta, low=0.0, high=1.0, open_high=True, what="momentum")


def _stable_curvature(
    lr: float, curvature: ArrayLike, optimizer: str = "sgd", *, beta: float | None = None
) -> FloatArray:
    check_number("lr", lr, low=0.0, open_low=True)
    h = check_curvature(curvature)
    limit = stability_limit(optimizer, beta=beta)
    if np.any(lr * h >= limit):
        steepest = float(h.max())
        name, rule = ("SGD", "2/h") if optimizer == "sgd" else (optimizer, f"{limit:g}/h")
        raise InputError(
            f"{name} with rate {lr:g} does not settle at curvature {steepest:g}; "
            f"use a rate below {rule} = {limit / steepest:g}"
        )
    return h
