"""Principal components against the singular value decomposition, measures of paths against paths that are known."""

from __future__ import annotations

import doctest
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from riverval import _blocks, pca, trajectory
from riverval.errors import InputError, RivervalError
from riverval.sketches import Sketch
from riverval.trajectory import (
    centred_gram,
    cosine,
    drift_share,
    pca_of_blocks,
    pca_of_gram,
    pca_shares,
    quasi_convexity,
    random_reference,
    steps_gram,
    subspace_cosines,
)

find = trajectory.pca
path = trajectory.path


@pytest.mark.parametrize("module", [pca, trajectory, _blocks])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


# --- components against the singular value decomposition -------------------------------------------------------------
def svd_of(x):
    """Shares, scores and components by numpy.linalg.svd in float64, each sign as `Components` has it."""
    x = np.asarray(x, dtype=np.float64)
    n = len(x)
    u, s, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    sign = np.where(u[-1] < 0, -1.0, 1.0)
    values = np.zeros(n - 1)
    values[: min(n - 1, len(s))] = s[: n - 1] ** 2
    return values, u * s * sign, vt.T * sign


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 12),
    st.integers(1, 60),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([0.0, 1.0, 1e4]),
    st.integers(0, 2**32 - 1),
)
def test_components_are_those_of_the_singular_value_decomposition(n, dim, dtype, offset, seed):
    rng = np.random.default_rng(seed)
    x = (offset * (1 + rng.random(dim)) + rng.standard_normal((n, dim)) * np.logspace(0, -1, dim)).astype(dtype)
    if np.ptp(x.astype(float), axis=0).max() == 0:
        return  # rounded to one point
    found = find(x)
    values, scores, vectors = svd_of(x)
    np.testing.assert_allclose(found.shares, values / values.sum(), atol=1e-13)
    np.testing.assert_allclose(found.variances, values / (n - 1), rtol=1e-9, atol=1e-12 * values[0])
    np.testing.assert_allclose(found.mean(), x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert np.allclose(found.scores.T @ found.scores, np.diag(values), atol=1e-11 * values[0])
    clear = [k for k in range(found.rank) if is_apart(values, k)]
    for k in clear:
        sign = np.sign(found.scores[:, k] @ scores[:, k])  # of a component whose last score is next to 0
        np.testing.assert_allclose(sign * found.scores[:, k], scores[:, k], atol=1e-6 * np.sqrt(values[0]))
        np.testing.assert_allclose(sign * found.component(k), vectors[:, k], atol=1e-6)
    assert np.all(found.scores[-1] >= 0)


def is_apart(values, k):
    """An eigenvalue whose eigenvector is defined to some digits."""
    others = np.abs(np.delete(values, k) - values[k])
    return values[k] > 1e-6 * values[0] and (not len(others) or others.min() > 1e-5 * values[0])


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e7])
def test_a_small_motion_of_a_large_vector_is_not_lost(offset):
    """Float64 about the mean; products of the snapshots themselves would leave nothing of it at 1e7."""
    rng = np.random.default_rng(0)
    motion = rng.integers(-4, 5, (8, 500)).astype(np.float64)
    x = (motion + offset).astype(np.float32)  # exact in float32
    assert np.array_equal(x.astype(np.float64) - offset, motion)
    np.testing.assert_allclose(pca_shares(x), pca_shares(motion), rtol=1e-12)


def test_components_are_orthonormal_and_rebuild_the_snapshots():
    x = np.random.default_rng(3).standard_normal((7, 40)) + 5
    found = find(x)
    vectors = np.concatenate(list(found.component_blocks(6)), axis=1)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(found.mean() + found.scores @ vectors, x, atol=1e-12)
    np.testing.assert_allclose(found.coefficients.sum(axis=0), 0.0, atol=1e-14)
    np.testing.assert_allclose(found.coefficients.T @ (x - x.mean(axis=0)), vectors, atol=1e-12)
    assert found.variances.sum() == pytest.approx(np.var(x, axis=0, ddof=1).sum())


def test_the_last_snapshot_lies_on_the_positive_side():
    for sign in (1.0, -1.0):
        assert np.all(find(sign * np.random.default_rng(1).standard_normal((9, 30))).scores[-1] > 0)


# --- forms of snapshots ----------------------------------------------------------------------------------------------
def snapshots(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"a.weight": rng.standard_normal((5, 4)), "a.bias": rng.standard_normal(3), "b": rng.standard_normal((2, 2, 3))}
        for _ in range(n)
    ]


def flat(snapshot):
    return np.concatenate([v.ravel() for v in snapshot.values()])


def forms(kept, folder):
    rows = np.stack([flat(s) for s in kept]).astype(np.float32)
    paths = [folder / f"{k}.npy" for k in range(len(rows))]
    for at, row in zip(paths, rows, strict=True):
        np.save(at, row.reshape(5, 7))
    mapped = np.memmap(folder / "all.dat", np.float32, "w+", shape=rows.shape)
    mapped[:] = rows
    mapped.flush()
    tensors = [{k: torch.from_numpy(v.astype(np.float32)) for k, v in s.items()} for s in kept]
    return rows, {
        "array": rows,
        "fortran order": np.asfortranarray(rows),
        "memory map": mapped,
        "part of a memory map": np.memmap(folder / "more.dat", np.float32, "w+", shape=(8, 40))[1:7, 2:37],
        "private memory map": np.memmap(folder / "all.dat", np.float32, "c", shape=rows.shape),
        "rows of a memory map": list(mapped),
        "tensor": torch.from_numpy(rows),
        "rows": list(rows),
        "nested lists": rows.tolist(),
        "rows in two dimensions": [r.reshape(7, 5) for r in rows],
        "paths": paths,
        "paths as text": [str(p) for p in paths],
        "mapped files": [np.load(p, mmap_mode="r") for p in paths],
        "functions": [lambda p=p: np.load(p) for p in paths],
        "functions that name files": [lambda p=p: p for p in paths],
        "mappings": [{k: v.astype(np.float32) for k, v in s.items()} for s in kept],
        "mappings of tensors": tensors,
        "lists of arrays": [[v.astype(np.float32) for v in s.values()] for s in kept],
        "lists of tensors that train": [[torch.nn.Parameter(v) for v in s.values()] for s in tensors],
        "tensors that train": [{k: torch.nn.Parameter(v) for k, v in s.items()} for s in tensors],
    }


@pytest.mark.parametrize("memory", [1, 8 * 6 * 4, 1 << 20])
def test_every_form_and_block_size_gives_the_same(tmp_path, memory):
    rows, given_as = forms(snapshots(), tmp_path)
    given_as["part of a memory map"][:] = rows
    expected = find(rows)
    for name, form in given_as.items():
        found = find(form, memory=memory)
        np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-10, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(found.component(1), expected.component(1), atol=1e-9, err_msg=name)
        np.testing.assert_allclose(found.mean(), expected.mean(), atol=1e-9, err_msg=name)
    cuts = np.split(rows, [1, 7, 20], axis=1)
    for blocks in (cuts, lambda: iter(cuts)):
        np.testing.assert_allclose(pca_of_blocks(blocks).component(1), expected.component(1), atol=1e-9)


def test_half_precision_of_torch_is_read():
    rows = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    np.testing.assert_allclose(pca_shares(list(rows)), pca_shares(rows.double().numpy()), rtol=1e-12)


def test_what_can_be_read_once_gives_numbers_but_no_vectors():
    rows = np.random.default_rng(0).standard_normal((4, 10))
    found = pca_of_blocks(part for part in [rows[:, :3], rows[:, 3:]])
    np.testing.assert_allclose(found.shares, pca_shares(rows), rtol=1e-10)
    for call in (found.component, found.mean, pca_of_gram(found.gram).component):
        with pytest.raises(RivervalError, match="a function that returns the blocks"):
            call()


def test_memory_stays_near_one_block_and_each_snapshot_is_loaded_once_for_a_block():
    n, dim, memory = 20, 200_000, 20 * 8 * 25_000
    calls = []

    def load(k):
        calls.append(k)
        return np.random.default_rng(k).standard_normal(dim)

    tracemalloc.start()
    found = find([lambda k=k: load(k) for k in range(n)], memory=memory)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(calls) == n * 8 + 1  # eight blocks, and a look at the first for its size
    # The block, its centred copy, one snapshot that goes and one that comes; all snapshots would be 32 MB.
    assert peak < 2 * memory + 2 * 8 * dim + 5e5
    assert found.shares.sum() == pytest.approx(1.0)


# --- bad snapshots ---------------------------------------------------------------------------------------------------
def reordered():
    kept = snapshots(3)
    kept[2] = {name: kept[2][name] for name in ("a.weight", "b", "a.bias")}
    return kept


def resized():
    kept = snapshots(3)
    kept[1]["b"] = np.ones((2, 2))
    return kept


def with_nan(value=np.nan):
    rows = np.random.default_rng(0).standard_normal((4, 9))
    rows[2, 5] = value
    return rows


def state_dicts():
    """With the buffers of batch norm: the counter of its batches moves more than all parameters together."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    kept = []
    for _ in range(3):
        net(torch.randn(5, 3))
        kept.append({name: value.clone() for name, value in net.state_dict().items()})
    return kept


SIX = range(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find(state_dicts()), r"'1\.num_batches_tracked' of a snapshot holds whole numbers.*leave buffers out"),
        (lambda: find([{"a": np.arange(3)}, {"a": np.arange(3)}]), "'a' of a snapshot holds whole numbers"),
        (lambda: find([torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)]), "a model is no snapshot"),
        (lambda: find([[None], [None]]), "real numbers"),
        (lambda: subspace_cosines(np.eye(6), np.arange(6) < 3, SIX), "numpy.flatnonzero"),
        (lambda: subspace_cosines(np.eye(6), [False, True], SIX), "numpy.flatnonzero"),
        (lambda: subspace_cosines(np.eye(6), [0, 1, 2.5], SIX), "whole and each once"),
        (lambda: subspace_cosines(np.eye(6), [0, 1, 1], SIX), "whole and each once"),
        (lambda: cosine([np.ones(2), np.ones(2)], [np.ones(2), None]), "number 1 of the tensors.*got None"),
        (lambda: cosine({"a": np.ones(2)}, {"a": np.ones(2)}), "not by name"),
        (lambda: cosine(np.ones(2) * 1j, np.ones(2)), "real numbers, got the type complex128"),
        (lambda: cosine(torch.ones(2) * 1j, torch.ones(2)), "real numbers, got the type torch.complex64"),
        (lambda: cosine(["a"], ["b"]), "must be an array or tensor"),
        (lambda: find(reordered()), "number 1 of snapshot 2 is 'b', of snapshot 0 'a.bias'"),
        (lambda: find([*snapshots(2), {"a.weight": np.ones((5, 4))}]), "number 1 of snapshot 2 is 'nothing'"),
        (lambda: find(resized()), "snapshot 1 has 4 numbers in parameter 'b', snapshot 0 has 12"),
        (lambda: find([np.ones(3), np.ones(4)]), "snapshot 1 has 4 numbers, snapshot 0 has 3"),
        (lambda: find(with_nan()), "snapshot 2 has nan or inf"),
        (lambda: find(list(with_nan(-np.inf))), "snapshot 2 has nan or inf"),
        (lambda: find(np.full((3, 3), np.inf)), r"snapshot 0 \(and 2 more\)"),
        (lambda: find(np.diag([1e200, 1.0, 2.0])), "squares are finite"),
        (lambda: find(np.ones((5, 3))), "differ"),
        (lambda: find([np.full(4, 0.1)] * 3), "differ"),
        (lambda: find(np.ones((1, 3))), "at least 2"),
        (lambda: find([]), "at least 2 snapshots, got none"),
        (lambda: find(np.empty((0, 3))), "shape"),
        (lambda: find(np.ones(3)), r"shape \(n, d\)"),
        (lambda: find(np.ones((2, 0))), "at least one block"),
        (lambda: find(x for x in np.eye(3)), "pca_of_blocks"),
        (lambda: find({"a": np.ones(3)}), "sequence"),
        (lambda: find("snapshots.npy"), "sequence"),
        (lambda: find(["nowhere.npy", "nowhere.npy"]), "readable .npy file"),
        (lambda: find([[1.0, [2.0]], [1.0, 2.0]]), "numbers in one array"),
        (lambda: find([["a"], ["b"]]), "real numbers"),
        (lambda: find(np.eye(3) * 1j), "real numbers"),
        (lambda: find(np.eye(3), memory=0), "memory"),
        (lambda: centred_gram([np.ones((2, 3)), np.ones((3, 3))]), r"\(2, size\)"),
        (lambda: pca_of_blocks([]), "at least one block"),
        (lambda: pca_of_gram(np.full((3, 3), np.nan)), "finite snapshots"),
        (lambda: pca_of_gram(np.ones((3, 2))), "square"),
        (lambda: find(np.outer(np.arange(4.0), np.ones(3))).component(1), "component above rounding"),
        (lambda: list(find(np.eye(3)).component_blocks(3)), "from 1 to 2"),
        (lambda: steps_gram(np.ones((3, 3))), "states that differ"),
        (lambda: steps_gram(np.ones((3, 2))), "square"),
        (lambda: path([[1.0]]), "at least 2 states"),
        (lambda: drift_share([[np.nan, 0.0], [0.0, 1.0]]), "gram"),
        (lambda: subspace_cosines(np.eye(6), [0, 1, 2], [3, 4, 6]), "second"),
        (lambda: subspace_cosines(np.eye(6), [0, 1], [3, 4, 5], k=2), "first window has 1 components"),
        (lambda: cosine([1.0, 2.0], [1.0]), "one size"),
        (lambda: cosine([], []), "not be empty"),
        (lambda: cosine([np.ones(2)], [np.ones(1), np.ones(1)]), "same number of tensors"),
        (lambda: cosine([np.nan, 1.0], [1.0, 1.0]), "finite"),
        (lambda: quasi_convexity(np.eye(2), np.eye(2), [1.0], np.zeros(2), 0.0), "equally many"),
        (lambda: quasi_convexity(np.eye(2), np.eye(2), [1.0, np.nan], np.zeros(2), 0.0), "losses"),
        (lambda: quasi_convexity(np.eye(2), np.eye(2), [1.0, 1.0], np.zeros(3), 0.0), "one size"),
        (lambda: random_reference(np.ones(2), np.ones(3), rng=np.random.default_rng(0)), "one size, got 2 and 3"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_files_that_are_not_one_array_are_refused(tmp_path):
    text, fortran, many = tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "c.npz"
    text.write_text("no array")
    np.save(fortran, np.asfortranarray(np.ones((3, 2))))
    np.savez(many, np.ones(3))
    for file, message in ((text, "readable"), (fortran, "C order"), (many, "one array")):
        with pytest.raises(InputError, match=message):
            find([file, file])


# --- angles between windows ------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.floats(-100.0, 100.0), st.integers(0, 2**32 - 1))
def test_angles_between_windows_are_those_of_the_components(k, origin, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((11, 25)) * np.logspace(0, 1, 25) + origin
    first, second = np.arange(6), np.arange(5, 11)
    found = subspace_cosines(x @ x.T, first, second, k=k)
    one, two = (np.stack([find(x[w]).component(j) for j in range(k)], axis=1) for w in (first, second))
    np.testing.assert_allclose(np.sort(np.arccos(found)), np.sort(subspace_angles(one, two)), atol=1e-5)
    assert np.all(np.diff(found) <= 0)
    if k == 1:
        assert found[0] == pytest.approx(abs(one[:, 0] @ two[:, 0]), abs=1e-9)


def test_a_window_makes_no_angle_with_itself():
    x = np.random.default_rng(0).standard_normal((6, 9))
    np.testing.assert_allclose(subspace_cosines(x @ x.T, range(6), range(6), k=3), 1.0, atol=1e-12)


# --- measures of the path --------------------------------------------------------------------------------------------
@given(st.integers(2, 10), st.integers(1, 8), st.floats(-10.0, 10.0), st.integers(0, 2**32 - 1))
def test_measures_of_the_path_are_those_of_its_vectors(n, dim, origin, seed):
    x = np.random.default_rng(seed).standard_normal((n, dim)) + origin
    u = np.diff(x, axis=0)
    gram = x @ x.T
    np.testing.assert_allclose(steps_gram(gram), u @ u.T, atol=1e-11)
    mean = u.mean(axis=0)
    assert drift_share(gram) == pytest.approx(mean @ mean / np.mean(np.sum(u**2, axis=1)), abs=1e-9)
    found, norms = path(gram), np.linalg.norm(u, axis=1)
    if norms.min() < 1e-3 or np.linalg.norm(x[-1] - x[0]) < 1e-3:
        return
    np.testing.assert_allclose(found.norms, norms, rtol=1e-6)
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairwise(u)]
    np.testing.assert_allclose(found.cosines, expected, atol=1e-6)
    np.testing.assert_allclose(np.cos(found.angles), found.cosines, atol=1e-12)
    assert found.length == pytest.approx(norms.sum(), rel=1e-6)
    assert found.distance == pytest.approx(np.linalg.norm(x[-1] - x[0]), rel=1e-6)
    assert found.tortuosity == pytest.approx(found.length / found.distance)
    assert 0.0 <= drift_share(gram) <= 1 + 1e-9
    assert found.tortuosity >= 1 - 1e-9


def test_paths_that_are_known():
    line = np.outer(np.arange(5.0), [1.0, 2.0])
    assert drift_share(line @ line.T) == pytest.approx(1.0)
    assert path(line @ line.T).tortuosity == pytest.approx(1.0)
    np.testing.assert_allclose(path(line @ line.T).cosines, 1.0)
    angle = 2 * np.pi * np.arange(13) / 12
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = path(circle @ circle.T)
    np.testing.assert_allclose(found.angles, np.pi / 6, atol=1e-7)
    assert found.tortuosity == np.inf  # closed
    assert drift_share(circle @ circle.T) == pytest.approx(0.0, abs=1e-12)
    back = np.array([[0.0], [1.0], [1.0], [0.5]])
    cosines = path(back @ back.T).cosines
    assert np.isnan(cosines).all()  # a step of length 0 has no direction


# --- cosines and quasi-convexity -------------------------------------------------------------------------------------
@given(st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_a_cosine_is_that_of_the_whole_vectors(dim, seed):
    a, b = np.random.default_rng(seed).standard_normal((2, dim))
    expected = a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)
    assert cosine(a, b) == pytest.approx(expected, abs=1e-12)
    cut = dim // 2
    tensors = [[torch.from_numpy(part) for part in (v[:cut], v[cut:]) if len(part)] for v in (a, b)]
    assert cosine(*tensors) == pytest.approx(expected, abs=1e-12)
    assert cosine(a, -a) == pytest.approx(-1.0)


def test_parameters_are_read_from_a_model_as_its_methods_give_them():
    net = torch.nn.Linear(3, 2)
    assert cosine(net.parameters(), net.parameters()) == pytest.approx(1.0)
    whole = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    states = [[p.detach() + k for p in net.parameters()] for k in (1, 2)]
    found = quasi_convexity(iter(states), iter(states), [1.0, 2.0], net.parameters(), 0.0)
    np.testing.assert_allclose(found.distances, np.sqrt(8) * np.array([1, 2]), rtol=1e-6)
    np.testing.assert_allclose(found.gradient_norms, [float((whole + k).norm()) for k in (1, 2)], rtol=1e-6)
    place = random_reference(list(net.parameters()), whole + 1, rng=np.random.default_rng(0))
    assert np.linalg.norm(place - whole.numpy()) == pytest.approx(np.sqrt(8), rel=1e-6)


def test_a_cosine_with_nothing_is_nan():
    assert np.isnan(cosine(np.zeros(3), np.ones(3)))


def test_a_quadratic_has_tau_two_at_its_minimum_and_a_convex_loss_at_least_one():
    rng = np.random.default_rng(0)
    h = np.diag([1.0, 10.0, 100.0])
    lowest = np.array([1.0, -2.0, 0.5])
    x = lowest + rng.standard_normal((20, 3))
    loss = 0.5 * np.einsum("ni,ij,nj->n", x - lowest, h, x - lowest) + 7.0
    found = quasi_convexity(x, (x - lowest) @ h, loss, lowest, 7.0)
    np.testing.assert_allclose(found.tau, 2.0, rtol=1e-10)
    np.testing.assert_allclose(found.slopes, 2 * (loss - 7.0), rtol=1e-10)
    np.testing.assert_allclose(found.drops, loss - 7.0)
    np.testing.assert_allclose(found.distances, np.linalg.norm(x - lowest, axis=1))
    np.testing.assert_allclose(found.gradient_norms, np.linalg.norm((x - lowest) @ h, axis=1))
    quartic = quasi_convexity(x, 4 * x**3, np.sum(x**4, axis=1), np.zeros(3), 0.0)
    np.testing.assert_allclose(quartic.tau, 4.0, rtol=1e-10)
    away = quasi_convexity(x, np.sign(x), np.abs(x).sum(axis=1), 0.1 * np.ones(3), 0.3)
    assert np.all(away.tau[away.drops > 0] >= 1 - 1e-12)


def test_tau_is_undefined_where_the_reference_is_no_lower():
    x = np.array([[1.0], [2.0], [3.0]])
    found = quasi_convexity(x, x, [0.5, 2.0, 4.5], np.array([2.0]), 2.0)
    assert np.isnan(found.tau[:2]).all()
    assert found.tau[2] == pytest.approx(3.0 / 2.5)
    assert found.slopes[0] == -1.0  # kept all the same
    assert found.drops.tolist() == [-1.5, 0.0, 2.5]


def test_tau_from_sketches_is_tau_to_the_stated_error():
    rng = np.random.default_rng(0)
    lowest = rng.standard_normal(30_000)
    x = lowest + rng.standard_normal((10, 30_000)) * np.linspace(1, 2, 10)[:, None]
    loss = 0.5 * np.sum((x - lowest) ** 2, axis=1)
    sketch = Sketch(30_000, width=4096)
    seen = quasi_convexity([sketch.of(v) for v in x], [sketch.of(v - lowest) for v in x], loss, sketch.of(lowest), 0.0)
    np.testing.assert_allclose(seen.tau, 2.0, rtol=4 * sketch.error())
    assert not np.allclose(seen.tau, 2.0, rtol=0.1 * sketch.error())


def test_a_random_reference_is_as_far_away_in_a_direction_of_its_own():
    x, other = np.random.default_rng(0).standard_normal((2, 4000))
    places = [random_reference(x, other, rng=np.random.default_rng(7 + k)) for k in range(2)]
    for place in places:
        assert np.linalg.norm(x - place) == pytest.approx(np.linalg.norm(x - other))
        assert abs(cosine(place - x, other - x)) < 4 / np.sqrt(4000)
    assert not np.array_equal(*places)
    assert np.array_equal(places[0], random_reference(x, other, rng=np.random.default_rng(7)))
