"""Sketches keep inner products to the error they state, whatever the vectors, and every route gives the same one."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riverval import sketches
from riverval.errors import InputError
from riverval.sketches import Sketch
from riverval.trajectory import centred_gram, drift_share, path, shares_of_gram

WIDTH, DIM = 16, 16 * 40 + 5  # three groups of rows, the last one short


def test_examples_in_docstrings():
    assert doctest.testmod(sketches).failed == 0


def matrix_of(sketch):
    return np.array([sketch.of(e) for e in np.eye(sketch.dim)]).T


def test_the_map_is_a_count_sketch_each_coordinate_goes_to_one_bucket_with_one_sign():
    s = matrix_of(Sketch(DIM, width=WIDTH, seed=3))
    assert s.shape == (WIDTH, DIM)
    assert np.array_equal(np.sort(np.unique(s)), [-1.0, 0.0, 1.0])
    assert np.array_equal(np.abs(s).sum(axis=0), np.ones(DIM))
    bucket = np.abs(s).argmax(axis=0)
    for row in range(0, DIM, WIDTH):  # coordinates of one row never collide
        assert len(set(bucket[row : row + WIDTH])) == len(bucket[row : row + WIDTH])


def test_shifts_and_signs_are_spread_evenly_and_pairs_collide_as_often_as_stated():
    draws = [matrix_of(Sketch(8 * 40, width=8, seed=seed)) for seed in range(150)]
    buckets = np.array([np.abs(s).argmax(axis=0) for s in draws])
    signs = np.array([s.sum(axis=0) for s in draws])
    n = len(draws)
    together = [(buckets[:, i] == buckets[:, j]).mean() for i, j in [(0, 9), (3, 11), (5, 300), (130, 275), (1, 257)]]
    np.testing.assert_allclose(together, 1 / 8, atol=4 * np.sqrt(7 / 64 / n))
    assert np.abs(signs.mean(axis=0)).max() < 4.5 / np.sqrt(n)
    for i, j in [(0, 1), (0, 8), (0, 128), (7, 300)]:
        assert abs((signs[:, i] * signs[:, j]).mean()) < 4 / np.sqrt(n)


def hard_pairs():
    """Vectors chosen against the map: periodic in the width, constant, all energy in a column, in a row, one-hot."""
    rng = np.random.default_rng(0)
    flat = np.arange(DIM)
    periodic = np.cos(2 * np.pi * flat / WIDTH)
    column = (flat % WIDTH == 3).astype(float)
    one = (flat == 7).astype(float)
    noise, other = rng.standard_normal((2, DIM))
    return {
        "noise with itself": (noise, noise),
        "independent noise": (noise, other),
        "related": (noise, noise + 0.5 * other),
        "constant": (np.ones(DIM), np.ones(DIM)),
        "constant against alternating": (np.ones(DIM), (-1.0) ** flat),
        "period of the width": (periodic, periodic),
        "two phases of one period": (periodic, np.sin(2 * np.pi * flat / WIDTH)),
        "one column": (column, column),
        "one column against another": (column, np.roll(column, 1)),
        "half a row apart": (column + np.roll(column, WIDTH // 2), column - np.roll(column, WIDTH // 2)),
        "one-hot": (one, one),
        "one-hot against all": (one, np.ones(DIM)),
        "heavy tail": (rng.standard_cauchy(DIM),) * 2,
        "first and last row": (np.where(flat < WIDTH, 1.0, 0.0) + np.where(flat >= DIM - WIDTH, 1.0, 0.0),) * 2,
    }


@pytest.fixture(scope="module")
def maps():
    return np.array([matrix_of_fast(Sketch(DIM, width=WIDTH, seed=seed)).astype(np.float32) for seed in range(2000)])


def matrix_of_fast(sketch):
    """The matrix from one pass, reading the map's own shifts and signs."""
    folded = []

    class Recording(Sketch):
        def _fold_group(self, total, group, number):
            signs_of = self._signs[self._starts[number] : self._starts[number] + group.size]
            folded.append(signs_of * group)

    recording = Recording(sketch.dim, width=sketch.width, seed=sketch.seed)
    recording.of(np.ones(DIM))
    flat = np.arange(DIM)
    rows = flat // sketch.width
    signs = np.concatenate(folded) * sketch._row_signs[rows]
    buckets = (flat % sketch.width + sketch._shifts[rows]) % sketch.width
    matrix = np.zeros((sketch.width, DIM))
    matrix[buckets, flat] = signs
    return matrix


def test_the_fast_matrix_is_the_matrix():
    sketch = Sketch(DIM, width=WIDTH, seed=11)
    np.testing.assert_array_equal(matrix_of_fast(sketch), matrix_of(sketch))


@pytest.mark.parametrize("name", hard_pairs())
def test_inner_products_are_unbiased_and_within_the_stated_error(name, maps):
    x, y = hard_pairs()[name]
    truth, scale = x @ y, np.linalg.norm(x) * np.linalg.norm(y)
    found = np.einsum("sm,sm->s", *(maps @ v.astype(np.float32) for v in (x, y)), dtype=np.float64)
    n = len(maps)
    stated = Sketch(DIM, width=WIDTH).error(truth / scale)
    spread = found.std(ddof=1)
    assert abs(found.mean() - truth) <= 4 * spread / np.sqrt(n) + 1e-6 * scale
    # The variance's own standard error, from the fourth moment: the bound may be met, not passed.
    squares = (found - truth) ** 2
    assert squares.mean() <= (stated * scale) ** 2 + 4 * squares.std(ddof=1) / np.sqrt(n)


def test_the_stated_error_is_not_far_above_the_true_one(maps):
    x, y = hard_pairs()["independent noise"]
    for a, b in ((x, x), (x, y)):
        found = np.einsum("sm,sm->s", maps @ a, maps @ b)
        scale = np.linalg.norm(a) * np.linalg.norm(b)
        true = np.sqrt(np.mean((found - a @ b) ** 2)) / scale
        stated = Sketch(DIM, width=WIDTH).error(a @ b / scale)
        assert 0.85 * stated < true < 1.05 * stated


def test_what_fits_into_one_row_is_kept_exactly():
    x, y = np.random.default_rng(0).standard_normal((2, 100))
    sketch = Sketch(100, width=128, seed=5)
    assert sketch.error() == 0.0
    assert sketch.of(x) @ sketch.of(y) == pytest.approx(x @ y, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.sampled_from([1, 2, 7, 16, 64, 500]), st.integers(0, 2**63), st.data())
def test_sketches_are_linear_and_tensors_are_one_long_vector(dim, width, seed, data):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, dim))
    sketch = Sketch(dim, width=width, seed=seed)
    scale = np.abs(x).sum() + np.abs(y).sum()
    np.testing.assert_allclose(sketch.of(2 * x - y), 2 * sketch.of(x) - sketch.of(y), atol=1e-14 * scale)
    cuts = sorted(data.draw(st.lists(st.integers(0, dim), max_size=5)))
    parts = np.split(x, cuts)
    assert np.array_equal(sketch.of(parts), sketch.of(x))
    tensors = [torch.from_numpy(part.copy()) for part in parts]
    assert np.array_equal(sketch.of(tensors), sketch.of(x))
    np.testing.assert_allclose(sketch.on_device(tensors).numpy(), sketch.of(x), atol=1e-14 * scale)


@pytest.mark.parametrize("chunk", [1, 600, 5000])
def test_the_device_route_folds_chunk_by_chunk(monkeypatch, chunk):
    monkeypatch.setattr(sketches, "_DEVICE_CHUNK", chunk)
    x = np.random.default_rng(0).standard_normal(DIM * 3)
    sketch = Sketch(DIM * 3, width=WIDTH, seed=2)
    tensors = [torch.from_numpy(part) for part in np.split(x, [3, 700, 1300])]
    np.testing.assert_allclose(sketch.on_device(tensors).numpy(), sketch.of(x), atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_and_cpu_give_the_same_sketch():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    sketch = Sketch(10_000, width=256)
    np.testing.assert_allclose(sketch.of(x.cuda()), sketch.of(x), atol=1e-4)


def test_every_dtype_is_sketched_as_its_own_numbers():
    x = np.random.default_rng(1).standard_normal(DIM)
    sketch = Sketch(DIM, width=WIDTH)
    for dtype in (np.float16, np.float32, np.int8):
        assert np.array_equal(sketch.of(x.astype(dtype)), sketch.of(x.astype(dtype).astype(np.float64)))
    half = torch.from_numpy(x).to(torch.bfloat16)
    assert np.array_equal(sketch.of(half), sketch.of(half.to(torch.float64)))
    np.testing.assert_allclose(sketch.on_device([half]).numpy(), sketch.of(half), rtol=1e-5, atol=1e-5)
    assert np.array_equal(sketch.of([[float(v)] for v in x]), sketch.of(x))


def test_parameters_are_read_as_they_are_and_left_alone():
    layer = torch.nn.Linear(20, 10)
    kept = [p.detach().clone() for p in layer.parameters()]
    sketch = Sketch(210, width=32)
    found = sketch.of(list(layer.parameters()))
    assert np.array_equal(found, sketch.of(layer.parameters()))  # an iterator
    assert np.array_equal(found, sketch.of(torch.cat([p.detach().reshape(-1) for p in layer.parameters()])))
    assert all(torch.equal(p, k) and p.requires_grad for p, k in zip(layer.parameters(), kept, strict=True))
    weight = layer.weight.detach().t()  # not contiguous: row by row of the transpose
    assert np.array_equal(Sketch(200).of(weight), Sketch(200).of(weight.numpy().ravel()))
    assert not sketch.on_device(list(layer.parameters())).requires_grad


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a device of its own."""

    is_cuda = True
    device = property(lambda self: f"cuda:{self.shape[0]}")


def test_tensors_on_several_devices_are_gathered_on_the_cpu():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    parts = [part.as_subclass(Elsewhere) for part in x.split([20, 30])]
    assert np.array_equal(Sketch(50, width=8).of(parts), Sketch(50, width=8).of(x))


def test_a_seed_names_one_map_for_good():
    x = np.arange(DIM, dtype=float)
    assert np.array_equal(Sketch(DIM, width=WIDTH, seed=4).of(x), Sketch(DIM, width=WIDTH, seed=4).of(x))
    assert not np.array_equal(Sketch(DIM, width=WIDTH, seed=4).of(x), Sketch(DIM, width=WIDTH, seed=5).of(x))
    # The numbers of seed 0, so that sketches stored by one version can be compared with those of the next.
    assert Sketch(10, width=4, seed=0).of(np.arange(1.0, 11.0)).tolist() == FIRST


FIRST = [19.0, 22.0, 6.0, -4.0]


def test_what_a_gram_matrix_tells_is_had_from_sketches():
    rng = np.random.default_rng(0)
    walk = 50.0 + np.cumsum(rng.standard_normal((30, 40_000)) + 0.05, axis=0)
    sketch = Sketch(40_000, width=4096)
    exact, seen = centred_gram([walk]), centred_gram([np.stack([sketch.of(x) for x in walk])])
    error = sketch.error()
    assert shares_of_gram(seen)[0] == pytest.approx(shares_of_gram(exact)[0], abs=2 * error)
    assert drift_share(seen) == pytest.approx(drift_share(exact), rel=4 * error)
    np.testing.assert_allclose(path(seen).norms, path(exact).norms, rtol=3 * error)
    assert path(seen).tortuosity == pytest.approx(path(exact).tortuosity, rel=4 * error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sketch(0), "dim"),
        (lambda: Sketch(5, width=0), "width"),
        (lambda: Sketch(5, seed=-1), "seed"),
        (lambda: Sketch(5).of(np.ones(4)), "takes 5 numbers, got 4"),
        (lambda: Sketch(5).of([]), "takes 5 numbers, got 0"),
        (lambda: Sketch(5).of([np.ones(2), np.ones(4)]), "got 6 in 2 tensors"),
        (lambda: Sketch(5).on_device([torch.ones(4)]), "takes 5 numbers, got 4"),
        (lambda: Sketch(2).of([np.nan, 1.0]), "finite"),
        (lambda: Sketch(2).of(np.array([1.0, np.inf], dtype=np.float32)), "finite"),
        (lambda: Sketch(2).of(np.ones(2, dtype=complex)), "real"),
        (lambda: Sketch(2).of({"w": np.ones(2)}), "not by name"),
        (lambda: Sketch(5).error(2.0), "cosine"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
