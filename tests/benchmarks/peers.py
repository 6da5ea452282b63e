"""Eigenvalues by other libraries, each with the products it spent, under one signature.

A solver takes the model, a batch, how many eigenvalues and a seed; it returns the eigenvalues, largest first, and the
number of Hessian-vector products. Settings are the library's own defaults unless the name says otherwise.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

Found = tuple[list[float], int]
Solver = Callable[[nn.Module, tuple[Any, Any], int, int], Found]


def quiet(solve: Solver) -> Solver:
    """The same without warnings: of deprecations inside the library, and of the graphs that it leaves in gradients."""

    @functools.wraps(solve)
    def quietly(*args: Any) -> Found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return solve(*args)

    return quietly


def pyhessian(tol: float = 1e-3) -> Solver:
    """Power iteration with deflation on one kept graph."""

    @quiet
    def solve(model: nn.Module, batch: tuple[Any, Any], k: int, seed: int) -> Found:
        library, products = importlib.import_module("pyhessian.hessian"), 0
        plain = library.hessian_vector_product

        def counted(*args: Any) -> Any:
            nonlocal products
            products += 1
            return plain(*args)

        torch.manual_seed(seed)
        library.hessian_vector_product = counted
        try:
            found = library.hessian(model, nn.CrossEntropyLoss(), data=batch, cuda=False)
            values, _ = found.eigenvalues(tol=tol, top_n=k)
        finally:
            library.hessian_vector_product = plain
        model.zero_grad()
        return sorted(values, reverse=True), products

    return solve


def eigenthings(max_iter: int | None = None) -> Solver:
    """Lanczos with a number of steps that is fixed beforehand, a fresh graph for each product."""

    @quiet
    def solve(model: nn.Module, batch: tuple[Any, Any], k: int, seed: int) -> Found:
        library = importlib.import_module("hessian_eigenthings")
        operator = library.HessianOperator(model, [batch], library.supervised_loss(nn.functional.cross_entropy))
        found = library.lanczos(operator, k=k, max_iter=max_iter, which="LA", seed=seed)
        return sorted(found.eigenvalues.tolist(), reverse=True), int(found.iterations)

    return solve


def curvlinops(**options: Any) -> Solver:
    """Its Hessian, forward over reverse, under the eigsh of SciPy, which its documentation shows."""

    @quiet
    def solve(model: nn.Module, batch: tuple[Any, Any], k: int, seed: int) -> Found:
        library = importlib.import_module("curvlinops")
        data = [batch]
        operator = library.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
        inner, products = operator.to_scipy(dtype=np.float32), 0

        def matvec(x: Any) -> Any:
            nonlocal products
            products += 1
            return inner @ x.astype(np.float32)

        start = np.random.default_rng(seed).standard_normal(inner.shape[0]).astype(np.float32)
        outer = LinearOperator(inner.shape, matvec=matvec, dtype=np.float32)
        values = eigsh(outer, k=k, which="LA", v0=start, tol=1e-3, return_eigenvectors=False, **options)
        return sorted(values.tolist(), reverse=True), products

    return solve


PEERS: dict[str, Solver] = {
    "PyHessian": pyhessian(),
    "PyHessian, tol=1e-4": pyhessian(tol=1e-4),
    "hessian-eigenthings": eigenthings(),
    "hessian-eigenthings, max_iter tuned": eigenthings(max_iter=8),
    "curvlinops + eigsh": curvlinops(),
    "curvlinops + eigsh, ncv=8": curvlinops(ncv=8),
}
"""For the top eigenvalue, with the tolerance 1e-3 wherever one can be given."""

PEERS_TOP_5: dict[str, Solver] = {
    "PyHessian": pyhessian(),
    "hessian-eigenthings": eigenthings(),
    "hessian-eigenthings, max_iter tuned": eigenthings(max_iter=20),
    "curvlinops + eigsh": curvlinops(),
}
