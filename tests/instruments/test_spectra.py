"""Extreme eigenvalues against dense solvers, and what is said of their errors."""

from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import diags_array
from scipy.sparse.linalg import LinearOperator, eigsh

import riverval.spectra
from riverval._lanczos import Chain, HostSpace, Krylov, Products
from riverval._search import ORDERS, Search, _bounds, _mixture
from riverval.errors import InputError, RivervalError
from riverval.spectra import over_batches, top_eigenvalue, top_eigenvalues

from .matrices import generator, rotated

KINDS = ("normal", "uniform", "decaying", "low rank", "outliers", "cluster", "multiple", "negative", "zero")
ENDS = ("largest", "smallest", "both", "magnitude")


def test_examples_in_docstrings():
    assert doctest.testmod(riverval.spectra).failed == 0


def wanted(values, which, k):
    """The oracle's answer in the documented order."""
    rising = np.sort(values)
    return {
        "largest": rising[::-1][:k],
        "smallest": rising[:k],
        "both": np.concatenate([rising[::-1][:k], rising[:k]]),
        "magnitude": values[np.argsort(-np.abs(values), kind="stable")][:k],
    }[which]


class Counting(LinearOperator):
    """A matrix whose products are counted and made in the precision asked."""

    def __init__(self, matrix, dtype=np.float64):
        self.matrix, self.calls = matrix.astype(dtype), 0
        super().__init__(np.dtype(np.float64), matrix.shape)

    def _matvec(self, x):
        self.calls += 1
        return (self.matrix @ x.astype(self.matrix.dtype)).astype(np.float64)


@st.composite
def spectra(draw):
    n = draw(st.integers(1, 60))
    rng = generator(draw(st.integers(0, 10**6)))
    values = {
        "normal": rng.standard_normal(n),
        "uniform": rng.uniform(0.0, 1.0, n),
        "decaying": 0.7 ** np.arange(n),
        "low rank": np.where(np.arange(n) < 3, rng.uniform(1.0, 2.0, n), 0.0),
        "outliers": np.where(np.arange(n) < 4, 5.0 + rng.uniform(0, 3, n), 0.05 * rng.standard_normal(n)),
        "cluster": np.where(np.arange(n) < 2, 3.0 + 1e-6 * np.arange(n), rng.standard_normal(n)),
        "multiple": np.repeat(rng.standard_normal((n + 2) // 3), 3)[:n],
        "negative": -rng.uniform(1.0, 2.0, n),
        "zero": np.zeros(n),
    }[draw(st.sampled_from(KINDS))]
    return values * draw(st.sampled_from([1.0, 1e-12, 1e12])), rng.integers(10**6)


# derandomize: a search that checks for missed eigenvalues does so at a risk, which must not make the suite flicker.
@settings(max_examples=150, deadline=None, derandomize=True)
@given(spectra(), st.sampled_from(ENDS), st.integers(1, 5), st.sampled_from([1e-2, 1e-3, 1e-8]), st.booleans())
def test_any_spectrum_agrees_with_the_dense_solver(drawn, which, k, tol, single):
    values, seed = drawn
    k = min(k, len(values) if which != "both" else len(values) // 2)
    if not k:
        return
    tol = max(tol, 1e-3) if single else tol
    operator = Counting(rotated(values, seed), np.float32 if single else np.float64)
    found = top_eigenvalues(operator, k, which=which, tol=tol, rng=generator(seed), risk=1e-4)
    exact = wanted(np.linalg.eigvalsh(operator.matrix.astype(float)), which, k)
    noise = (1e-6 if single else 2e-12) * np.max(np.abs(values))
    asked = np.maximum(tol * np.abs(exact), tol**2 * np.max(np.abs(values)))
    if which == "magnitude":  # two of equal magnitude and unlike sign may come in either order
        found_values, exact = np.abs(found.values), np.abs(exact)
    else:
        found_values = found.values
    assert found.converged
    assert np.all(np.abs(found_values - exact) <= 1.01 * asked + noise)
    assert found.products == operator.calls
    # The residual is the true one, and some eigenvalue lies within it: whatever the search thinks of itself.
    matrix, vectors = operator.matrix.astype(float), found.vectors
    assert vectors.T @ vectors == pytest.approx(np.eye(vectors.shape[1]), abs=1e-10)
    residuals = np.linalg.norm(matrix @ vectors - vectors * found.values, axis=0)
    assert np.allclose(residuals, found.residuals, rtol=0.01, atol=3 * noise)
    nearest = np.min(np.abs(np.linalg.eigvalsh(matrix)[:, None] - found.values), axis=0)
    assert np.all(nearest <= found.residuals + noise)
    assert np.all(found.bounds <= found.residuals + noise)


@pytest.mark.parametrize(("which", "letters"), [("largest", "LA"), ("smallest", "SA"), ("magnitude", "LM")])
def test_arpack_agrees_on_a_sparse_matrix(which, letters):
    rng = generator(3)
    matrix = diags_array([rng.standard_normal(2000), *(2 * [rng.standard_normal(1999)])], offsets=[0, 1, -1]).tocsr()
    found = top_eigenvalues(matrix, 4, which=which, tol=1e-8, rng=rng)
    exact = eigsh(matrix, 4, which=letters, tol=1e-12, v0=np.ones(2000))[0]
    assert found.values == pytest.approx(exact[np.argsort(-np.abs(exact))] if letters == "LM" else
                                         np.sort(exact)[:: -1 if letters == "LA" else 1], rel=1e-7)  # fmt: skip


def test_values_come_in_the_documented_order():
    matrix = rotated([-6.0, -2.0, -1.0, 0.5, 3.0, 5.0])
    for which, expected in {
        "largest": [5, 3], "smallest": [-6, -2], "both": [5, 3, -6, -2], "magnitude": [-6, 5],
    }.items():  # fmt: skip
        found = top_eigenvalues(matrix, 2, which=which, rng=generator(), tol=1e-10)
        assert found.values == pytest.approx(expected)
        for value, vector in zip(found.values, found.vectors.T, strict=True):
            assert matrix @ vector == pytest.approx(value * vector, abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("copies", [2, 3])
def test_a_multiple_top_value_in_a_generic_spectrum_is_found_with_its_multiplicity(seed, copies):
    rng = generator(seed)
    values = np.concatenate([np.full(copies, 10.0), [6.0], 0.3 * rng.standard_normal(400)])
    matrix = rotated(values, seed)
    found = top_eigenvalues(matrix, copies, rng=rng)
    assert found.values == pytest.approx(np.full(copies, 10.0), rel=1e-3)
    assert found.checked
    # One Krylov space cannot see the copies: it is the check that finds them.
    alone = top_eigenvalues(matrix, 2, rng=rng, risk=1.0)
    assert alone.values[1] == pytest.approx(6.0, rel=1e-3)
    assert not alone.checked


def test_a_space_that_closes_on_itself_is_left_for_a_random_direction():
    assert top_eigenvalues(np.diag([5.0, 5, 1, 1, 1, 1]), 4, rng=generator()).values == pytest.approx([5, 5, 1, 1])
    # Whatever the risk, where the space closed; and again, where the check brought a copy to light.
    assert top_eigenvalues(np.diag([5.0, 5, 1, 1, 1, 1]), 2, rng=generator(), risk=1.0).values == pytest.approx([5, 5])
    for seed in range(5):
        matrix = rotated([3.0, 2.0, 1.0, 0.0, 0.0, 0.0], seed)
        lowest = top_eigenvalues(matrix, 3, which="smallest", rng=generator(seed))
        assert lowest.values == pytest.approx(np.zeros(3), abs=1e-12)
    for k in (1, 3, 6):
        zero = top_eigenvalues(np.zeros((6, 6)), k, rng=generator())
        assert zero.values.tolist() == [0.0] * k
        assert zero.products <= k + 1
    identity = top_eigenvalues(2 * np.eye(50), 7, rng=generator())
    assert identity.values == pytest.approx(np.full(7, 2.0))
    # The start is an eigenvector, and not the one that is sought.
    matrix = np.diag([1.0, 2.0, 3.0, 4.0])
    assert top_eigenvalue(matrix, start=np.eye(4)[0], rng=generator()).value == pytest.approx(4.0)


def drifted(angle, top=10.0, second=9.0, dim=300, seed=1):
    """Outliers over a bulk; the two first eigenvectors turned by `angle` in their plane."""
    rng = generator(seed)
    q = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    c, s = np.cos(angle), np.sin(angle)
    q[:, :2] = q[:, :2] @ np.array([[c, -s], [s, c]])
    values = np.concatenate([[top, second, 5.0, 4.0], 0.3 * rng.standard_normal(dim - 4)])
    return (q * values) @ q.T


def test_a_warm_start_saves_products():
    cold, warm = [], []
    for seed in range(8):
        before = top_eigenvalues(drifted(0.0, second=7.0), rng=generator(seed))
        after = drifted(0.2, second=7.0)
        cold.append(top_eigenvalues(after, rng=generator(seed)).products)
        found = top_eigenvalues(after, rng=generator(seed), start=before.warm)
        warm.append(found.products)
        assert found.values[0] == pytest.approx(10.0, rel=1e-3)
    assert np.mean(warm) < np.mean(cold) - 1


@pytest.mark.parametrize("second", [9.9, 9.5, 9.0, 8.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_warm_start_follows_when_the_two_first_eigenvalues_cross(second, seed):
    before = top_eigenvalues(drifted(0.0, 10.0, second), rng=generator(seed), tol=1e-8)
    swapped = drifted(0.0, second, 10.0)
    found = top_eigenvalues(swapped, rng=generator(seed), start=before.warm)
    # Closer than the tolerance's root they are taken for one another, and only a check tells.
    assert found.values[0] == pytest.approx(10.0, abs=0.11 if second == 9.9 else 0.02)
    # With the first vector only, which is now an exact eigenvector of the second value, the check finds the other.
    checked = top_eigenvalues(swapped, rng=generator(seed), start=before.vectors, risk=1e-3)
    assert checked.values[0] == pytest.approx(10.0, rel=2e-3)


def test_products_in_single_precision_give_an_honest_residual_and_no_endless_loop():
    matrix = rotated(np.concatenate([[7.0, 5.0], generator(2).uniform(-1, 1, 500)]))
    operator = Counting(matrix, np.float32)
    found = top_eigenvalues(operator, 2, tol=1e-4, rng=generator())
    true = np.linalg.norm(matrix @ found.vectors - found.vectors * found.values, axis=0)
    assert np.all(found.residuals >= true / 3)
    assert np.all(np.abs(found.values - [7.0, 5.0]) <= found.bounds + 7 * np.finfo(np.float32).eps)
    with pytest.raises(RivervalError, match=r"depart from symmetry by .*loosen"):
        top_eigenvalues(operator, 2, tol=1e-12, rng=generator())
    loose = top_eigenvalues(operator, 2, tol=1e-12, rng=generator(), strict=False)
    assert not loose.converged
    assert loose.products < 200
    assert np.all((loose.residuals > 1e-9) & (loose.residuals < 1e-4))
    assert np.all(loose.bounds >= 1e-9)
    assert loose.values == pytest.approx([7.0, 5.0], rel=1e-6)


def test_an_operator_that_is_not_symmetric_is_not_certified():
    with pytest.raises(RivervalError, match="depart from symmetry"):
        top_eigenvalues(np.triu(generator().standard_normal((40, 40))), 2, rng=generator())


@pytest.mark.parametrize("which", ENDS)
def test_a_small_basis_is_restarted_and_gives_the_same_answer(which):
    matrix = rotated(np.linspace(-1.0, 1.0, 200) ** 3)
    rows = {"both": 12}.get(which, 10)
    small = top_eigenvalues(matrix, 2, which=which, tol=1e-8, rng=generator(), max_basis=rows)
    large = top_eigenvalues(matrix, 2, which=which, tol=1e-8, rng=generator(), max_basis=200)
    assert np.sort(small.values) == pytest.approx(np.sort(large.values), rel=1e-7)
    residual = np.linalg.norm(matrix @ small.vectors - small.vectors * small.values, axis=0)
    assert residual == pytest.approx(small.residuals, rel=1e-3, abs=1e-13)
    assert large.products < small.products


def test_the_basis_stays_orthonormal_long_after_the_first_pair_converged():
    values = np.concatenate([[100.0, 90.0], generator().uniform(0, 1, 298)])
    matrix = rotated(values)
    krylov = Krylov(Products(matrix), 120)
    krylov.offer(generator(1).standard_normal(300))
    for _ in range(100):
        krylov.step()
    basis = krylov.basis[: krylov.held]
    assert np.max(np.abs(basis @ basis.T - np.eye(len(basis)))) < 1e-12
    # The identity on which every residual rests: H V = V T + Q C.
    v, q = krylov.basis[: krylov.size].T, krylov.basis[krylov.size : krylov.held].T
    assert matrix @ v == pytest.approx(v @ krylov.projection + q @ krylov.coupling, abs=1e-10)


def test_the_identity_of_the_recurrence_holds_for_blocks_mixtures_and_restarts():
    rng, matrix = generator(4), rotated(generator(5).standard_normal(80))
    krylov = Krylov(Products(matrix), 30)
    for _ in range(3):
        krylov.offer(rng.standard_normal(80))
    for k in range(40):
        if krylov.held == krylov.rows:
            krylov.shrink(krylov.ritz().small[:, -8:])
        krylov.step(rng.standard_normal(len(krylov.coupling)) if k % 2 else None)
        v, q = krylov.basis[: krylov.size].T, krylov.basis[krylov.size : krylov.held].T
        assert matrix @ v == pytest.approx(v @ krylov.projection + q @ krylov.coupling, abs=1e-11)
        ritz = krylov.ritz()
        vectors = krylov.vectors(ritz.small)
        assert np.linalg.norm(matrix @ vectors - vectors * ritz.values, axis=0) == pytest.approx(
            ritz.residuals, abs=1e-11
        )
    assert not krylov.offer(krylov.basis[0])  # nothing of it is new
    # Almost nothing is, and that is not to be rounding.
    krylov.shrink(krylov.ritz().small[:, -8:])
    assert krylov.offer(krylov.basis[:8].sum(axis=0) + 1e-7 * rng.standard_normal(80))
    last = krylov.basis[krylov.held - 1]
    assert np.max(np.abs(krylov.basis[: krylov.held - 1] @ last)) < 1e-14


def test_bounds_hold_and_are_sharper_than_the_residual_where_there_is_a_gap():
    sharper = 0
    for seed in range(40):
        values = np.concatenate([[12.0, 7.0, 5.5, 4.0, 3.0], 0.2 * generator(seed).standard_normal(300)])
        found = top_eigenvalues(rotated(values, seed), 2, rng=generator(seed), tol=1e-2, risk=1e-4)
        assert np.all(np.abs(found.values - [12.0, 7.0]) <= found.bounds)
        assert np.all(found.bounds <= 1e-2 * found.values)
        sharper += int(np.sum(found.bounds < 0.5 * found.residuals))
    assert sharper > 60


HUGE = {
    "one of the other sign": [-1e7, 900.0, 500.0],
    "many of the other sign": [*-np.geomspace(1e7, 1e2, 30), 900.0, 200.0],
    "not so huge": [-1e4, 900.0, 500.0],
}


@pytest.mark.parametrize("values", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_huge_eigenvalue_at_the_other_end_does_not_end_the_search(values, turned, seed):
    """Beside it every gap is wide, so that r^2 / gap is small for any vector."""
    rng, sign = generator(seed), -1.0 if turned else 1.0
    matrix = rotated(sign * np.concatenate([values, rng.random(300)]), seed)
    found = top_eigenvalue(matrix, rng=rng, tol=1e-3, which="smallest") if turned else top_eigenvalue(matrix, rng=rng)
    assert sign * found.value == pytest.approx(900.0, abs=1e-3 * max(900.0, 1e-3 * abs(values[0])))


def test_the_smallest_of_outliers_the_other_way_is_the_edge_of_the_bulk():
    for seed in range(6):
        values = np.concatenate([np.geomspace(50.0, 2.0, 10), 0.05 * generator(100 + seed).standard_normal(390)])
        found = top_eigenvalue(rotated(values, seed), rng=generator(seed), tol=1e-2, which="smallest")
        assert found.value == pytest.approx(values.min(), abs=2 * 1e-2 * 1e-2 * 50.0)


def test_that_costs_nothing_where_the_largest_magnitude_is_at_the_end_that_is_sought(monkeypatch):
    """And a smallest eigenvalue of 0, to which no residual is small, is still found."""

    def products():
        spent = []
        for seed in range(4):
            rng = generator(seed)
            for top in ([50.0, 20.0, 10.0, 5.0, -4.0, -2.0], [12.0, 10.0, 9.0, -8.0], [3.0]):
                matrix = rotated(np.concatenate([top, 0.1 * rng.standard_normal(200)]), seed)
                spent += [top_eigenvalues(matrix, k, rng=generator(seed)).products for k in (1, 3)]
        return spent

    now = products()
    singular = rotated(np.concatenate([np.zeros(60), generator(0).random(140)]), 0)
    least = top_eigenvalues(singular, which="smallest", rng=generator(0))
    assert abs(least.values[0]) < 2e-6
    monkeypatch.setattr(Search, "_unresolved", lambda self, largest: False)
    assert now == products()
    assert least.products < 2 * top_eigenvalues(singular, which="smallest", rng=generator(0)).products


def test_the_bound_is_temples():
    # A basis of two vectors of diag(4, 1, -3) in which all is known by hand.
    matrix, vector = np.diag([4.0, 1.0, -3.0]), np.array([1.0, 0.2, 0.1])
    krylov = Krylov(Products(matrix), 3)
    krylov.offer(vector)
    krylov.step()
    krylov.step()
    ritz = krylov.ritz()
    basis = krylov.basis[:2]
    values, small = np.linalg.eigh(basis @ matrix @ basis.T)
    vectors = basis.T @ small
    residuals = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    assert ritz.residuals == pytest.approx(residuals, rel=1e-9)
    gaps = values[1] - values[0] - residuals[::-1]
    assert _bounds(ritz, krylov.scale) == pytest.approx(np.minimum(residuals, residuals**2 / gaps), rel=1e-9)


def test_what_a_chain_excludes_is_bounded_by_christoffels_function():
    values = np.sort(generator(3).standard_normal(8))
    vector = generator(4).standard_normal(8)
    masses = vector**2 / (vector @ vector)
    krylov, chain = Krylov(Products(np.diag(values)), 8), Chain(8)
    krylov.offer(vector)
    for _ in range(7):
        krylov.step()
        assert not chain.add(krylov)
        bounds = np.array([1 / chain._weight(x) for x in values])
        assert np.all(bounds >= masses * (1 - 1e-9))
    # With all polynomials below the number of eigenvalues the bound is the mass itself.
    assert bounds == pytest.approx(masses, rel=1e-7)
    assert not chain.excludes(-np.inf, values[-1], 1e-3)
    assert chain.excludes(-np.inf, values[-1] + 100.0, 1e-3)
    krylov.step()
    assert chain.add(krylov)


def test_products_are_one_a_step_and_a_whole_space_needs_no_more_than_n():
    for n in (1, 2, 5, 12):
        operator = Counting(rotated(np.arange(n) + 1.0))
        found = top_eigenvalues(operator, n, rng=generator(), tol=1e-10)
        assert found.products == operator.calls == n
        assert found.checked
        assert found.values == pytest.approx(np.arange(n, 0, -1))
    assert top_eigenvalues(np.diag([3.0, 1.0, *np.zeros(500)]), rng=generator()).products <= 4


def test_the_null_is_the_curvature_of_a_random_direction():
    values = np.concatenate([[30.0], generator(6).uniform(-1, 2, 99)])
    matrix = rotated(values)
    drawn = [top_eigenvalues(matrix, rng=generator(seed)).mean_curvature for seed in range(300)]
    error = np.std(drawn, ddof=1) / np.sqrt(300)
    assert abs(np.mean(drawn) - values.mean()) < 3 * error
    n = len(values)
    exact = 2 * (np.mean(values**2) - values.mean() ** 2) / (n + 2)  # of v'Hv, v uniform on the sphere
    assert np.var(drawn) == pytest.approx(exact, rel=0.5)
    warm = top_eigenvalues(matrix, rng=generator(), start=np.ones(100))
    assert np.isnan(warm.mean_curvature)


def test_the_same_generator_gives_the_same_bits():
    matrix = rotated(generator(1).standard_normal(80))
    first, second = (top_eigenvalues(matrix, 3, rng=generator(7)) for _ in range(2))
    assert np.array_equal(first.vectors, second.vectors)
    assert first.products == second.products


class Single(HostSpace):
    """A space of its own precision, as an accelerator without float64 has it."""

    def empty(self, rows, dim):
        return np.empty((rows, dim), dtype=np.float32)

    def array(self, values):
        return np.asarray(values, dtype=np.float32)


def test_an_operator_brings_its_own_space():
    matrix = rotated(np.concatenate([[9.0, 6.0], generator().uniform(0, 1, 98)]))

    class Native:
        shape, space = matrix.shape, Single()

        def __matmul__(self, vector):
            assert vector.dtype == np.float32
            return matrix @ vector

    found = top_eigenvalues(Native(), 2, rng=generator())
    assert found.values == pytest.approx([9.0, 6.0], rel=1e-3)
    assert found.vectors.dtype == np.float64


def test_tensors_and_arrays_give_the_same_search():
    torch = pytest.importorskip("torch")
    from riverval.operators import TensorSpace

    matrix = rotated(np.concatenate([[9.0, 8.0, 6.0], generator().uniform(0, 1, 97)]))

    class OnDevice:
        shape, space = matrix.shape, TensorSpace(torch.device("cpu"))

        def __matmul__(self, vector):
            return torch.from_numpy(matrix) @ vector

    before = generator(1).standard_normal((100, 2))
    for start in (None, before):
        there, here = (
            top_eigenvalues(a, 3, rng=generator(), start=start, max_basis=14, tol=1e-8) for a in (OnDevice(), matrix)
        )
        assert there.products == here.products
        assert there.values == pytest.approx(here.values, rel=1e-10)
        assert there.residuals == pytest.approx(here.residuals, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be a whole number from 1 to 6"),
        ({"k": 7}, "k must be a whole number from 1 to 6"),
        ({"k": 4, "which": "both"}, "both ends are 8, but the operator has 6"),
        ({"which": "big"}, "largest, smallest, both, magnitude"),
        ({"tol": 0.0}, "tol"),
        ({"tol": float("nan")}, "tol"),
        ({"risk": 0.0}, "risk"),
        ({"max_products": 0}, "max_products"),
        ({"max_basis": 3}, "max_basis"),
        ({"start": np.ones(5)}, r"shape \(6,\) or \(6, j\), got \(5,\)"),
        ({"start": np.full(6, np.nan)}, "start must be finite"),
        ({"rng": 3}, r"rng must be a numpy.random.Generator, such as np.random.default_rng\(3\), got 3"),
    ],
)
def test_bad_arguments_say_what_is_allowed(change, message):
    with pytest.raises(InputError, match=message):
        top_eigenvalues(np.eye(6), **{"k": 1, "rng": generator(), **change})


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (np.ones((2, 3)), "square"),
        (np.ones((0, 0)), "square"),
        (1j * np.eye(3), "complex"),
        ("matrix", "needs a shape and products"),
    ],
)
def test_what_is_no_operator_is_refused(operator, message):
    with pytest.raises(InputError, match=message):
        top_eigenvalues(operator, rng=generator())


def test_a_start_can_be_a_tensor_and_have_columns_of_zeros():
    torch = pytest.importorskip("torch")
    matrix = rotated(np.concatenate([[9.0, 8.0, 6.0], generator().uniform(0, 1, 97)]))
    before = generator(1).standard_normal((100, 2))
    tensor = torch.from_numpy(before).requires_grad_()
    padded = np.stack([np.zeros(100), 7 * before[:, 0], np.zeros(100), before[:, 1]], axis=1)
    first, *others = (top_eigenvalues(matrix, rng=generator(), start=start) for start in (before, tensor, padded))
    for other in others:
        assert other.values == pytest.approx(first.values, rel=1e-12)
    assert not np.isnan(top_eigenvalues(matrix, rng=generator(), start=np.zeros(100)).mean_curvature)  # cold
    assert _mixture(5 * np.eye(5), 5, 2) == pytest.approx([1.0, 1.0, 0.3, 0.1, 0.1])


def test_vectors_are_made_column_by_column_without_a_second_copy():
    """At 160 million parameters each column is 1.3 GB."""
    dim, count = 200_000, 8
    matrix = diags_array(np.concatenate([np.arange(20.0, 0.0, -1), np.zeros(dim - 20)]))
    krylov = Krylov(Products(matrix), 12)
    krylov.offer(np.ones(dim))
    for _ in range(count):
        krylov.step()
    tracemalloc.start()
    vectors = krylov.vectors(krylov.ritz().small)
    peak = tracemalloc.get_traced_memory()[1]
    assert vectors.shape == (dim, count)
    assert vectors[:, 0].flags.c_contiguous
    assert peak < 1.5 * vectors.nbytes
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    Search(krylov.products, "largest", ORDERS["largest"], 1, 1e-3, generator(), 9, 12).begin(vectors)
    assert tracemalloc.get_traced_memory()[1] - before < (12 + 6) * 8 * dim  # its basis, and a few vectors
    tracemalloc.stop()


def test_a_search_that_fails_says_why():
    matrix = np.diag(np.linspace(0.0, 1.0, 2000) ** 0.1)
    with pytest.raises(RivervalError, match="after 20 products; raise max_products"):
        top_eigenvalues(matrix, rng=generator(), tol=1e-9, max_products=20)
    found = top_eigenvalues(matrix, rng=generator(), tol=1e-9, max_products=20, strict=False)
    assert not found.converged
    assert found.products == 20
    for bad in (np.nan, np.inf):
        with pytest.raises(RivervalError, match="not finite"):
            top_eigenvalues(np.diag([1.0, bad, 2.0]), rng=generator())
    with pytest.raises(InputError, match="use top_eigenvalues"):
        top_eigenvalue(np.eye(3), which="both", rng=generator())


def test_one_eigenvalue_is_the_first_of_several():
    matrix = rotated(np.concatenate([[8.0, 4.0, -9.0], generator().uniform(-1, 1, 60)]))
    for which in ("largest", "smallest", "magnitude"):
        pair, pairs = (f(matrix, rng=generator(), which=which) for f in (top_eigenvalue, top_eigenvalues))
        assert pair.value == pairs.values[0]
        assert (pair.residual, pair.bound, pair.products) == (pairs.residuals[0], pairs.bounds[0], pairs.products)
        assert np.array_equal(pair.vector, pairs.vectors[:, 0])


def test_the_error_bar_over_batches_is_students():
    matrices = [rotated([top, 2.0, 1.0, 0.5], 3) for top in (8.0, 10.0, 12.0, 11.0)]
    bar = over_batches(matrices, rng=generator(), tol=1e-10)
    tops = bar.values[:, 0]
    assert tops == pytest.approx([8, 10, 12, 11])
    assert bar.spread[0] == pytest.approx(np.std([8, 10, 12, 11], ddof=1))
    assert bar.standard_error[0] == pytest.approx(bar.spread[0] / 2)
    assert bar.high[0] - bar.mean[0] == pytest.approx(3.182446 * bar.standard_error[0])  # t of 3 degrees, 97.5%
    assert bar.mean[0] - bar.low[0] == pytest.approx(3.182446 * bar.standard_error[0])
    assert bar.pooled[0] == pytest.approx(10.25)
    assert np.isnan(over_batches(matrices, rng=generator(), pooled=False).pooled).all()


def test_the_largest_eigenvalue_of_a_batch_is_biased_upwards():
    draws = generator(8).standard_normal((6, 50, 40))
    bar = over_batches([x.T @ x / 50 for x in draws], 2, rng=generator(), which="both")
    whole = np.linalg.eigvalsh(np.concatenate(draws).T @ np.concatenate(draws) / 300)
    assert bar.pooled == pytest.approx([whole[-1], whole[-2], whole[0], whole[1]], rel=1e-3)
    assert np.all(bar.bias[:2] > 5 * bar.standard_error[:2])
    assert np.all(bar.bias[2:] < -5 * bar.standard_error[2:])


def test_an_error_bar_counts_the_products_of_every_batch():
    operators = [Counting(rotated([3.0, 1.0, *np.zeros(20)], seed)) for seed in range(3)]
    bar = over_batches(operators, rng=generator())
    assert bar.products == sum(operator.calls for operator in operators)
    assert over_batches(iter(operators), rng=generator()).values.shape == (3, 1)
    for wrong in ([np.eye(3)], [np.eye(3), np.eye(4)]):
        with pytest.raises(InputError, match="two operators of one shape"):
            over_batches(wrong, rng=generator())
