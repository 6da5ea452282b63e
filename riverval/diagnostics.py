"""The measurements that come with riverval, for `riverval.observe`, and what is needed to add one: `diagnostic`.

Each docstring gives formula, source and null; the null is stored beside the value. Loss, gradient and Hessian are those
of the probe's batches, at the parameters of the probed state, in eval mode. `DIAGNOSTICS` lists all by name.

What `norms` records of every update x_t -> x_{t+1} made from the gradient g_t that the optimizer was given: the norms
of g_t, x_{t+1} - x_t and x_t (`given_norm`, `update_norm`, `param_norm`), which are the scales that others are read on
and have no null; and `update_cosine`, cos(x_{t+1} - x_t, -g_t), the two of one batch. Derived. Null: the same for
independent gradients of pure noise, `update_cosine_null`, 1 / sqrt(sum_{k=0}^t b^{2k}) for SGD with momentum b in high
dimension, with Nesterov's (1 + b) / sqrt((1 + b)^2 + sum_{k=1}^t b^{2(k+1)}); nan for other optimizers and once the
momentum has changed. What `sketch` records, S x_t (`riverval.sketches`), is no statement: `pca` is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np

from ._checks import check_int
from ._closing import pca as pca
from ._closing import quasi_convexity as quasi_convexity
from ._watching import DIAGNOSTICS, Diagnostic, Finished, Following, Probe, Unavailable, Values, diagnostic
from .critical import critical_sharpness as _critical
from .errors import InputError, missing_extra
from .hessian import HessianOperator, PreconditionedOperator
from .model_loss import LossOnBatches
from .nulls import shuffled_cosine
from .preconditioners import preconditioner, stability_threshold
from .spectra import over_batches, top_eigenvalues
from .traces import hutchinson

try:
    import torch
    from torch import Tensor
except ImportError as _error:
    raise missing_extra("torch", "real", "measuring a torch training") from _error

__all__ = [
    "DIAGNOSTICS",
    "Diagnostic",
    "Finished",
    "Following",
    "Probe",
    "Unavailable",
    "diagnostic",
]


@diagnostic("probe_loss", variables=("probe_loss", "probe_loss_error"))
def probe_loss(probe: Probe) -> Values:
    """Loss on the probe's batches: L = sum_b w_b L_b.

    Null: its own noise. `probe_loss_error` is the standard error over batches,
    sqrt(n/(n-1) sum_b w_b^2 (L_b - L)^2); nan for one batch. A change from state to state is on the same batches, so
    its error is smaller.
    """
    loss = probe.loss
    parts = np.zeros(len(loss.batches))
    for i, batch in enumerate(loss.batches):
        with loss.naming(i), torch.no_grad():
            parts[i] = float(loss.part(probe.flat, batch))
    weights = np.array(loss.weights)
    mean, n = float(weights @ parts), len(parts)
    error = math.sqrt(n / (n - 1) * float(np.sum(weights**2 * (parts - mean) ** 2))) if n > 1 else math.nan
    return {"probe_loss": mean, "probe_loss_error": error}


@diagnostic("alignment", variables=("gradient_cosine", "gradient_cosine_null", "gradient_cosine_null_std"))
def alignment(probe: Probe) -> Generator[None, Following, Values]:
    """cos(u_t, -grad L(x_t)): the update that follows the state against the probe's gradient there.

    Source: arXiv 2601.09000 (its Fig. 4). With the gradient of the update's own batch it is positive on pure noise for
    any positive preconditioner (derived); so the probe's batches should not be trained on.

    Null: the gradient's entries in random order within each tensor: mean and standard deviation by
    `riverval.nulls.shuffled_cosine`, exact.
    """
    loss, gradient = probe.loss, probe.gradient
    following = yield
    change = following.change
    scale = float(torch.linalg.vector_norm(change)) * float(torch.linalg.vector_norm(gradient))
    if not scale:
        raise Unavailable("the update or the gradient is zero")
    pieces = [list(loss.pieces(v).values()) for v in (change, -gradient)]
    null = shuffled_cosine(*pieces)
    return {
        "gradient_cosine": -float(torch.dot(change.double(), gradient.double())) / scale,
        "gradient_cosine_null": null.mean,
        "gradient_cosine_null_std": null.sd,
    }


_TOP = ("hessian_top", "hessian_top_residual", "hessian_top_bound", "hessian_products")


@diagnostic("sharpness", variables=(*_TOP, "hessian_mean", "hessian_mean_error", "hessian_threshold"))
def sharpness(probe: Probe, *, tol: float = 1e-3, max_products: int = 200, null_every: int = 5) -> Values:
    """lambda_max(H), the largest eigenvalue of the Hessian, by Lanczos from the last probe's eigenvectors.

    Args:
        tol: relative accuracy; see `riverval.spectra.top_eigenvalues`, which says what residual and bound mean.
        max_products: give up after so many.
        null_every: measurements from one of the null to the next; it is repeated between them.

    Source: sharpness and its threshold: Cohen et al. 2021, arXiv:2103.00065.

    Null: `hessian_mean`, the curvature of a random direction Tr(H)/d, as z'Hz/d for random signs z; its standard error
    is at most `hessian_mean_error` = sqrt(2) ||Hz|| / d in expectation of the square (||Hz||^2 is ||H||_F^2 on
    average).
    Threshold: `hessian_threshold`, beyond which the optimizer is unstable on a quadratic (2/lr without momentum) at the
    rate that it has when it is probed: that of the update before, where ``watch.step`` comes before
    ``scheduler.step()``. nan for an optimizer that preconditions, whose own is that of preconditioned_sharpness.
    """
    found = _lanczos(probe, probe.hessian, "hessian", tol, max_products, null_every)
    plain = type(probe.optimizer) is torch.optim.SGD and len({g["lr"] for g in probe.optimizer.param_groups}) == 1
    return {**found, "hessian_threshold": stability_threshold(probe.optimizer) if plain else math.nan}


_PRECONDITIONED = tuple(
    f"preconditioned_{name}"
    for name in ("top", "top_residual", "top_bound", "products", "mean", "mean_error", "threshold")
)


@diagnostic("preconditioned_sharpness", variables=_PRECONDITIONED)
def preconditioned_sharpness(
    probe: Probe, *, tol: float = 1e-3, max_products: int = 200, null_every: int = 5
) -> Values:
    """lambda_max(P^-1/2 H P^-1/2), P the optimizer's own preconditioner (`riverval.preconditioners.preconditioner`).

    Options as for sharpness. Source: arXiv:2207.14484. It is what decides over the stability of an adaptive optimizer;
    parameter groups of different rates are brought to the largest one. Of the parameters that the optimizer has moved:
    not of those that belong to another one, or never had a gradient. Not available before the first update.

    Null: the same of a random direction, as for sharpness: `preconditioned_mean`. Threshold:
    `preconditioned_threshold`, 2/lr for RMSprop without momentum, 38/lr for Adam with beta1 = 0.9
    (`riverval.preconditioners.threshold`).
    """
    if type(probe.optimizer) is not torch.optim.SGD and not probe.optimizer.state:
        raise Unavailable("the optimizer has no preconditioner before its first update")
    hessian, loss = _moved(probe)
    p = preconditioner(probe.optimizer, loss, with_rates=True)
    operator = PreconditionedOperator(hessian, p)
    found = _lanczos(probe, operator, "preconditioned", tol, max_products, null_every)
    return {**found, "preconditioned_threshold": stability_threshold(probe.optimizer)}


def _moved(probe: Probe) -> tuple[Any, LossOnBatches]:
    """The Hessian's block of the parameters that the optimizer holds and has a state of, and the loss as theirs."""
    loss, optimizer = probe.loss, probe.optimizer
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if type(optimizer) is not torch.optim.SGD:
        held &= {id(p) for p, state in optimizer.state.items() if state}
    names = [name for name, p in zip(loss.names, probe.parameters, strict=True) if id(p) in held]
    if len(names) == len(loss.names):
        return probe.hessian, loss
    block = probe.hessian.blocks(lambda name: "moved" if name in names else "others")["moved"]
    return block, LossOnBatches(loss.model, loss.loss, loss.batches, parameters=names)


def _lanczos(
    probe: Probe, operator: Any, prefix: str, tol: float, max_products: int, null_every: int
) -> dict[str, Any]:
    """The largest eigenvalue with its bounds and its null, by the names that start with `prefix`."""
    check_int("null_every", null_every, low=1, what="measurements from one of the null to the next")
    kept = probe.kept
    found = top_eigenvalues(operator, rng=probe.rng, tol=tol, start=kept.get("warm"), max_products=max_products)
    kept["warm"] = found.warm
    products = found.products
    if kept.get("count", 0) % null_every == 0:
        kept["null"] = random_curvature(operator, probe.rng)
        products += 1
    kept["count"] = kept.get("count", 0) + 1
    mean, error = kept["null"]
    return {
        f"{prefix}_top": found.values[0],
        f"{prefix}_top_residual": found.residuals[0],
        f"{prefix}_top_bound": found.bounds[0],
        f"{prefix}_products": products,
        f"{prefix}_mean": mean,
        f"{prefix}_mean_error": error,
    }


def random_curvature(operator: Any, rng: np.random.Generator) -> tuple[float, float]:
    """z'Hz/d for random signs z, and sqrt(2) ||Hz|| / d."""
    dim = operator.shape[0]
    signs = 2.0 * rng.integers(0, 2, dim) - 1.0
    product = operator.matvec(signs)
    return float(signs @ product) / dim, math.sqrt(2.0) * float(np.linalg.norm(product)) / dim


@diagnostic(
    "spectrum",
    variables=(
        "rank",
        "hessian_eigenvalue",
        "hessian_eigenvalue_residual",
        "hessian_eigenvalue_null",
        "hessian_eigenvalue_null_error",
    ),
    coords=lambda options: {"rank": range(options["k"])},
    times=5,
)
def spectrum(probe: Probe, *, k: int = 5, tol: float = 1e-3, max_products: int = 500) -> Values:
    """The k largest eigenvalues of the Hessian with the norms of their residuals; start and tolerance as for sharpness.

    Null: the curvature of a random direction, `hessian_eigenvalue_null`, with the bound on its error, as for sharpness,
    by one more product; and a gap between neighbours that is not above their residuals means nothing.
    """
    found = top_eigenvalues(
        probe.hessian, k, rng=probe.rng, tol=tol, start=probe.kept.get("warm"), max_products=max_products
    )
    probe.kept["warm"] = found.warm
    mean, error = random_curvature(probe.hessian, probe.rng)
    return {
        "hessian_eigenvalue": found.values,
        "hessian_eigenvalue_residual": found.residuals,
        "hessian_eigenvalue_null": mean,
        "hessian_eigenvalue_null_error": error,
    }


@diagnostic("sharpness_error", variables=("hessian_batch_mean", "hessian_batch_error"), times=10)
def sharpness_error(probe: Probe, *, tol: float = 1e-2, max_products: int = 200) -> Values:
    """How much the sharpness depends on the batch: mean and standard error of lambda_max over the probe's batches.

    By `riverval.spectra.over_batches`: needs two batches of equal size, and is dear: one search for each.

    Null: the spread itself. A difference between two states within it may be the batches'. The mean is above lambda_max
    of all batches together (Jensen), the more the smaller they are.
    """
    loss = probe.loss
    if len(loss.batches) < 2:
        raise InputError("an error bar over batches needs at least two of them; give probe=(loss, [batch, batch, ...])")
    parts = [LossOnBatches(loss.model, loss.loss, [b], parameters=loss.names) for b in loss.batches]
    operators = [HessianOperator(part, probe.flat, unused="zero") for part in parts]
    bar = over_batches(
        operators, pooled=False, rng=probe.rng, tol=tol, start=probe.kept.get("warm"), max_products=max_products
    )
    return {"hessian_batch_mean": bar.mean[0], "hessian_batch_error": bar.standard_error[0]}


@diagnostic(
    "critical_sharpness", variables=("critical_sharpness", "critical_passes", "critical_null", "critical_threshold")
)
def critical_sharpness(probe: Probe, *, accuracy: float = 0.1) -> Generator[None, Following, Values]:
    """2/eta_c, eta_c the smallest rate at which the update that follows would raise the probe's loss; forward passes
    only.

    By `riverval.critical.critical_sharpness` along u = update / lr; source: arXiv 2601.16979. For models whose second
    derivatives are too dear. nan where the update is no direction of descent for the probe's loss, as with momentum it
    often is not, and where no step raises the loss.

    Args:
        accuracy: of eta_c, relative.

    Null: `critical_null`, the same if the curvature along the update were that of a random direction v of its length:
    v'Hv / s, v'Hv by the second difference of the loss at steps of eta_c, and s = -u'grad L = 4 (L(w) - L(w + eta_c
    u/2)) / eta_c, exact on a quadratic (derived). Threshold: `critical_threshold` = 2/lr; above it the update raised
    the loss.
    """
    loss, flat = probe.loss, probe.flat
    following = yield
    if not following.lr > 0:
        raise Unavailable("the update has no rate")
    direction = following.change / following.lr
    out: dict[str, Any] = {"critical_threshold": 2.0 / following.lr}
    try:
        found = _critical(loss, flat, direction, guess=probe.kept.get("step", following.lr), accuracy=accuracy)
    except InputError:
        base = loss(flat)
        if not math.isfinite(base):
            raise
        return out  # no direction of descent
    out |= {"critical_sharpness": found.value, "critical_passes": found.evaluations}
    if math.isfinite(found.step):
        probe.kept["step"] = found.step
        out["critical_null"] = _random_critical(loss, flat, direction, found.step, probe.rng)
    return out


def _random_critical(
    loss: LossOnBatches, flat: Tensor, direction: Tensor, step: float, rng: np.random.Generator
) -> float:
    """Curvature along a random direction of the length of `direction`, over the slope along `direction`."""
    drawn = torch.from_numpy(rng.standard_normal(len(flat))).to(flat.dtype).to(flat.device)
    drawn = drawn * (torch.linalg.vector_norm(direction) / torch.linalg.vector_norm(drawn))
    base = loss(flat)
    curvature = (loss(flat + step * drawn) + loss(flat - step * drawn) - 2.0 * base) / step**2
    slope = 4.0 * (base - loss(flat + 0.5 * step * direction)) / step
    return curvature / slope if slope > 0 else math.nan


@diagnostic("trace", variables=("hessian_trace", "hessian_trace_error", "hessian_trace_null_std"), times=5)
def trace(probe: Probe, *, probes: int = 10) -> Values:
    """Tr H with its standard error, by Hutchinson's estimator: the mean of z'Hz over random signs z, one product each.

    Args:
        probes: how many z, at least 2.

    Source: Hutchinson 1990 (`riverval.traces.hutchinson`).

    Null: a random symmetric matrix of the same Frobenius norm F (Gaussian orthogonal ensemble) has a trace of mean 0
    and standard deviation F sqrt(2/(d+1)) (derived); F^2 = E ||Hz||^2 is estimated from one more product.
    """
    found = hutchinson(probe.hessian, rng=probe.rng, probes=probes)
    dim = probe.hessian.shape[0]
    _, error = random_curvature(probe.hessian, probe.rng)
    frobenius = error * dim / math.sqrt(2.0)
    return {
        "hessian_trace": found.value,
        "hessian_trace_error": found.standard_error,
        "hessian_trace_null_std": frobenius * math.sqrt(2.0 / (dim + 1)),
    }


@diagnostic(
    "gradient", variables=("probe_gradient_norm", "probe_gradient_null", "probe_gradient_sketch", "probe_sketch")
)
def gradient(probe: Probe) -> Values:
    """Norm and sketch of the probe's gradient g = sum_b w_b g_b, and a sketch of the parameters at the same state.

    Inner products between sketches are those of the vectors up to the standard error that `riverval.sketches` states:
    the raw material of quasi_convexity. Derived.

    Null: `probe_gradient_null`, the norm that the noise between batches alone gives g, root mean square: sqrt(n/(n-1)
    sum_b w_b^2 |g_b - g|^2); nan for one batch. |g| near it may be a gradient of 0. Of an inner product of two sketches
    of orthogonal vectors: 0 with the sketch's standard error.
    """
    return {
        "probe_gradient_norm": float(torch.linalg.vector_norm(probe.gradient.double())),
        "probe_gradient_null": _gradient_noise(probe.loss, probe.flat, probe.gradient),
        "probe_gradient_sketch": probe.sketch.of(probe.gradient),
        "probe_sketch": probe.sketch.of(probe.flat),
    }


def _gradient_noise(loss: LossOnBatches, flat: Tensor, mean: Tensor) -> float:
    """Root mean square norm of the error of the mean gradient, from its scatter over batches."""
    n, total = len(loss.batches), 0.0
    if n < 2:
        return math.nan
    for i, (batch, weight) in enumerate(zip(loss.batches, loss.weights, strict=True)):
        with loss.naming(i):
            one = LossOnBatches(loss.model, loss.loss, [batch], parameters=loss.names).gradient(flat)[1]
        total += weight**2 * float(torch.linalg.vector_norm((one - mean).double())) ** 2
    return math.sqrt(n / (n - 1) * total)
