"""The search for the sharpness on spectra that mislead it, and what it says of parameters without gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from riverval.experiments import probe_sharpness  # noqa: E402
from riverval.experiments.probe_sharpness import _Searches, doubtful, faint  # noqa: E402
from riverval.operators import Operator  # noqa: E402

SIZE = 300


class Dense(Operator):
    """A symmetric matrix with given eigenvalues (the others within 0..1), in a random basis."""

    def __init__(self, values, seed=0):
        super().__init__(["w"], [SIZE], torch.device("cpu"))
        rng = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
        self.values = np.concatenate([values, rng.random(SIZE - len(values))])
        self.matrix = torch.from_numpy(basis * self.values @ basis.T)

    def _multiply(self, matrix):
        return self.matrix @ matrix.to(self.matrix)

    def blocks(self, group=None):
        raise NotImplementedError


def searches(tol):
    rng = lambda name: np.random.default_rng(len(name))  # noqa: E731
    return _Searches(SimpleNamespace(config=SimpleNamespace(hessian_tol=tol), rng=rng, notes=[]), "preconditioned")


ORDINARY = Dense([50.0, 30.0, 20.0])
# One parameter without gradients, and many: negative curvature over eps, and the training's own below it.
MISLEADING = [[-1e7, 900.0, 500.0], [-1e7, -8e6, -3e6, 900.0], [*-np.geomspace(1e7, 1e2, 30), 900.0, 200.0]]


@pytest.mark.parametrize("tol", [1e-2, 1e-3])
@pytest.mark.parametrize("values", MISLEADING)
@pytest.mark.parametrize("null", [False, True])
def test_a_huge_negative_eigenvalue_does_not_hide_the_largest(values, tol, null):
    search = searches(tol)
    search.add(ORDINARY, True)
    assert search.add(Dense(values, seed=1), null) == pytest.approx(900.0, rel=tol)
    assert search._context.notes == []
    assert search.rows["top_residual"][1] <= math.sqrt(tol) * 900.0


def test_an_ordinary_search_costs_what_it_did(monkeypatch):
    """Neither a first nor a warm search is repeated where the spectrum's largest magnitude is at its top."""
    tried = []
    plain = probe_sharpness.top_eigenvalues
    monkeypatch.setattr(
        probe_sharpness, "top_eigenvalues", lambda *a, **k: tried.append(k["start"] is None) or plain(*a, **k)
    )
    search = searches(1e-2)
    for values in ([50.0, 30.0, 20.0, -8.0], [55.0, 33.0, 20.0, -20.0], [40.0, 35.0, -39.0]):
        assert search.add(Dense(values), False) == pytest.approx(values[0], rel=1e-2)
    assert tried == [True, False, False]


def test_what_makes_a_search_doubtful():
    def found(value, residual):
        return SimpleNamespace(values=[value], residuals=[residual])

    nan = math.nan
    assert not doubtful(found(1.0, 0.05), 1e-2, nan, nan)
    assert doubtful(found(1.0, 0.2), 1e-2, nan, nan)
    assert doubtful(found(1.0, 0.0), 1e-2, 1.5, nan)
    assert not doubtful(found(1.0, 0.0), 1e-2, 1.001, nan)  # of a multiple of the identity, but for rounding
    assert doubtful(found(1.0, 0.0), 1e-2, nan, 20.0)
    assert not doubtful(found(1.0, 0.0), 1e-2, 0.1, 5.0)


def test_a_search_that_stays_doubtful_is_noted(monkeypatch):
    monkeypatch.setattr(probe_sharpness, "_MOST_PRODUCTS", 4)
    search = searches(1e-3)
    search.add(Dense(MISLEADING[2]), False)
    assert search._context.notes == ["sharpness: preconditioned eigenvalue not within the tolerance after 4 products"]


def test_an_eigenvector_on_parameters_without_gradients_is_noted():
    p = np.array([1e-8, 5e-7, 1e-3, 1e-2])
    assert list(faint(np.array([0.0, 0.1, 0.9, 0.4]), p, 1e-8, 7)) == []
    (note,) = faint(np.array([0.6, 0.6, 0.5, 0.14]), p, 1e-8, 7)
    assert "72% of the preconditioned eigenvector at state 7 is on 2 of 4 parameters" in note


def test_the_vectors_of_a_large_model_are_bounded(monkeypatch):
    """At 162 million parameters 82 vectors would be 106 GB."""
    asked = []
    plain = probe_sharpness.top_eigenvalues
    monkeypatch.setattr(
        probe_sharpness, "top_eigenvalues", lambda *a, **k: asked.append(k["max_basis"]) or plain(*a, **k)
    )
    search = searches(1e-3)
    search.add(ORDINARY, False)
    monkeypatch.setattr(probe_sharpness, "_BASIS_BYTES", 13 * 8 * SIZE)
    assert search.add(Dense(MISLEADING[1]), False) == pytest.approx(900.0, rel=1e-3)
    assert asked[0] == 82
    assert set(asked[1:]) == {13}
