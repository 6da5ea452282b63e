"""The instruments against their floor, one gradient of the same loss, and against other libraries on the same network.

``nox -s bench`` runs it and writes the table of docs/instruments-speed.md. The network is that of `cnn_task` after 300
updates, the loss that of 512 images. Each repetition is divided by the time of a gradient just before and after it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

torch = pytest.importorskip("torch")

from riverval.allocator import steady_allocator  # noqa: E402
from riverval.hessian import HessianOperator, LossOnBatches  # noqa: E402
from riverval.observer import observe  # noqa: E402
from riverval.pca import pca  # noqa: E402
from riverval.sketches import Sketch  # noqa: E402
from riverval.spectra import top_eigenvalues  # noqa: E402
from riverval.traces import spectral_density  # noqa: E402

from .cnn_task import Training, loss_of  # noqa: E402
from .peers import PEERS, PEERS_TOP_5, Solver  # noqa: E402

TABLE = Path(__file__).parents[2] / "docs" / "instruments-speed-table.md"
SEEDS = range(2)
AWAY = (5, 10, 20, 40)  # updates between two probes


@dataclass
class Row:
    """One line of a table: what was done, and what each repetition cost and missed."""

    table: str
    what: str
    target: str = ""
    products: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    said: str = ""


ROWS: list[Row] = []
EXPECTED = 1 + (3 + len(PEERS)) + (1 + len(PEERS_TOP_5)) + 6


@pytest.fixture(scope="module", autouse=True)
def tables():
    """Two threads; the tables are written when everything has been measured, not for a part of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)
    print("\n".join(map(str, ROWS)))  # seen with -s, and where writing the table fails
    if len(ROWS) == EXPECTED:
        TABLE.write_text(written(ROWS), encoding="utf-8")


class Task:
    """The trained network, its probe loss, and the `k` eigenvalues to be found, known to 1e-5."""

    def __init__(self, training: Training, k: int = 5, start: Any = None) -> None:
        self.model, self.batch = training.model, training.probe_batch()
        self.loss = LossOnBatches(self.model, loss_of, [self.batch])
        found = top_eigenvalues(HessianOperator(self.loss), k, rng=np.random.default_rng(99), tol=1e-5, start=start)
        self.known, self.warm = found.values, found.warm

    def gradient_seconds(self) -> float:
        start = time.perf_counter()
        torch.autograd.grad(loss_of(self.model, self.batch), list(self.model.parameters()))
        return time.perf_counter() - start

    def in_gradients(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Time of `run` over that of a gradient measured before and after it, and what it returned."""
        before = [self.gradient_seconds() for _ in range(2)]
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        return seconds / median([*before, self.gradient_seconds(), self.gradient_seconds()]), result


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(Training().steps(300))


def repeat(benchmark, task: Task, row: Row, solve: Solver, k: int, seeds=SEEDS) -> None:
    """One round for each seed."""
    numbers = iter(seeds)

    def one_round():
        cost, (values, products) = task.in_gradients(lambda: solve(task.model, task.batch, k, next(numbers)))
        row.gradients.append(cost)
        row.products.append(products)
        row.errors.append(float(np.max(np.abs(np.array(values[:k]) / task.known[:k] - 1))))

    benchmark.pedantic(one_round, rounds=len(seeds))
    ROWS.append(row)
    benchmark.extra_info.update({"gradients": round(median(row.gradients), 2), "products": row.products})


def own(**options: Any) -> Solver:
    def solve(model, batch, k, seed):
        operator = HessianOperator(LossOnBatches(model, loss_of, [batch]))
        found = top_eigenvalues(operator, k, rng=np.random.default_rng(seed), tol=1e-3, **options)
        return list(found.values), found.products

    return solve


def steady(solver: Solver) -> Solver:
    def solve(*args):
        with steady_allocator():
            return solver(*args)

    return solve


# --- eigenvalues -----------------------------------------------------------------------------------------------------
def test_a_product(benchmark, task):
    """One Hessian-vector product once the graph is there."""
    operator, v = HessianOperator(task.loss), torch.randn(task.loss.dim)
    operator @ v
    row = Row("product", "Hessian-vector product, graph kept")
    benchmark.pedantic(lambda: row.gradients.append(task.in_gradients(lambda: operator @ v)[0]), rounds=9)
    ROWS.append(row)


@pytest.mark.parametrize("name", ["riverval", "riverval, steady allocator", *PEERS])
def test_top_eigenvalue(benchmark, task, name):
    if name in PEERS:
        repeat(benchmark, task, Row("top", name), PEERS[name], 1)
    else:
        solver = own() if name == "riverval" else steady(own())
        repeat(benchmark, task, Row("top", name, target="14 gradients, 8 products"), solver, 1, range(5))


def test_top_eigenvalue_warm(benchmark):
    """Started from the eigenvectors found some updates before."""
    training = Training().steps(300)
    before, reached = Task(training, k=1), 0
    row = Row("top", f"riverval, warm start {', '.join(map(str, AWAY))} updates later", "8 gradients, 4 products")
    places = iter(AWAY)

    def one_round():
        nonlocal reached
        place = next(places)
        training.steps(place - reached)
        reached = place
        later = Task(training, k=1, start=before.warm)
        solve = own(start=before.warm)
        cost, (values, products) = later.in_gradients(lambda: solve(later.model, later.batch, 1, 0))
        row.gradients.append(cost)
        row.products.append(products)
        row.errors.append(abs(values[0] / later.known[0] - 1))

    benchmark.pedantic(one_round, rounds=len(AWAY))
    ROWS.append(row)


@pytest.mark.parametrize("name", ["riverval", *PEERS_TOP_5])
def test_top_five(benchmark, task, name):
    solver = PEERS_TOP_5[name] if name in PEERS_TOP_5 else own()
    target = "" if name in PEERS_TOP_5 else "38 gradients"
    repeat(benchmark, task, Row("five", name, target=target), solver, 5, range(1 if name in PEERS_TOP_5 else 3))


# --- the other instruments -------------------------------------------------------------------------------------------
def test_sharpness_along_training(benchmark):
    """The top eigenvalue every 250 updates, each from the last one's eigenvectors, as a share of the training."""
    training = Training().steps(50)
    loss = LossOnBatches(training.model, loss_of, [training.probe_batch()])
    last: dict[str, Any] = {}
    row = Row("other", "top eigenvalue every 250 updates, warm: share of training time", target="12 %")
    shares = []

    def probe():
        operator = HessianOperator(loss)
        found = top_eigenvalues(operator, 1, rng=np.random.default_rng(0), tol=1e-3, start=last.get("warm"))
        last["warm"] = found.warm
        row.products.append(found.products)

    def one_round():
        start = time.perf_counter()
        training.steps(250)
        trained = time.perf_counter() - start
        probe()
        shares.append((time.perf_counter() - start - trained) / trained)

    probe()
    benchmark.pedantic(one_round, rounds=2)
    row.said = f"{100 * median(shares):.1f} % ({spread([100 * s for s in shares])}), products {row.products[1:]}"
    ROWS.append(row)


def test_spectral_density(benchmark, task):
    """One of its probes of 30 steps; what is not spent in products is overhead, and the same for every probe."""
    operator = HessianOperator(task.loss)
    spent: list[float] = []

    def timed(x):
        start = time.perf_counter()
        product = operator.matvec(x)
        spent.append(time.perf_counter() - start)
        return product

    row = Row("other", "spectral density, 30 steps a probe: time beside its products", target="5 %")

    def one_round():
        start = time.perf_counter()
        counted = LinearOperator(operator.shape, matvec=timed, dtype=operator.dtype)
        spectral_density(counted, probes=1, steps=30, rng=np.random.default_rng(0))
        row.said = f"{100 * ((time.perf_counter() - start) / sum(spent) - 1):.1f} %"

    benchmark.pedantic(one_round, rounds=1)
    ROWS.append(row)


def test_pca(benchmark):
    """200 snapshots of 333,999 parameters."""
    snapshots = np.cumsum(np.random.default_rng(0).standard_normal((200, 333_999), dtype=np.float32), axis=0)
    benchmark.pedantic(lambda: pca(snapshots), rounds=5, warmup_rounds=1)
    row = Row("other", "principal components of 200 x 333,999 parameters", target="0.5 s")
    row.said = f"{benchmark.stats.stats.median:.2f} s" if benchmark.stats else ""
    ROWS.append(row)


def test_pca_of_a_large_model(benchmark):
    """50 snapshots of 162 million parameters, made on the fly: peak memory of the whole process."""
    row = Row("other", "principal components of 50 x 162,322,944 parameters, streamed: peak memory", target="6 GB")
    code = (
        "import resource, numpy as np\n"
        "from riverval.pca import pca_of_blocks\n"
        "sizes = [50304 * 768, 50304 * 768, *[7_087_872] * 12, 1536]\n"
        "walk = np.cumsum(np.random.default_rng(0).standard_normal((50, 2**20), dtype=np.float32), axis=0)\n"
        "parts = [min(2**20, size - first) for size in sizes for first in range(0, size, 2**20)]\n"
        "assert sum(parts) == 162_322_944\n"
        "pca_of_blocks(walk[:, :part] * np.float32(1 + k) for k, part in enumerate(parts))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)\n"
    )
    said: list[float] = []

    def one_round():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        said.append(float(done.stdout))

    benchmark.pedantic(one_round, rounds=1)
    row.said = f"{said[0]:.1f} GB"
    ROWS.append(row)


def test_sketch(benchmark):
    """A sketch of the parameters after each update, as a share of the update."""
    training = Training().steps(20)
    params = list(training.model.parameters())
    sketch = Sketch(sum(p.numel() for p in params), width=1024, seed=0)
    shares = []

    def one_round():
        start = time.perf_counter()
        training.step()
        middle = time.perf_counter()
        sketch.of(params)
        shares.append((time.perf_counter() - middle) / (middle - start))

    benchmark.pedantic(one_round, rounds=100)
    row = Row("other", "sketch of all parameters, share of an update", target="2 %")
    row.said = f"{100 * median(shares):.2f} %"
    ROWS.append(row)


def test_observer(benchmark, tmp_path):
    """Updates of a watched training and of an equal bare one in turn; everything cheap is recorded."""
    bare, watched = Training().steps(20), Training().steps(20)
    pairs = []
    with observe(watched.model, watched.optimizer, out=tmp_path / "run.nc") as watch:

        def one_round():
            start = time.perf_counter()
            bare.step()
            middle = time.perf_counter()
            watch.step(watched.step())
            pairs.append((middle - start, time.perf_counter() - middle))

        benchmark.pedantic(one_round, rounds=150)
    plain, seen = (median(times) for times in zip(*pairs, strict=True))
    row = Row("other", "Observer with everything cheap on: over the bare loop", target="3 %")
    row.said = f"{100 * (seen / plain - 1):.1f} %"
    ROWS.append(row)


# --- the tables ------------------------------------------------------------------------------------------------------
TITLES = {
    "top": "Top eigenvalue to a relative 1e-3",
    "five": "Top five eigenvalues to a relative 1e-3",
}


def spread(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def written(rows: list[Row]) -> str:
    """The tables in Markdown."""
    (product,) = (r for r in rows if r.table == "product")
    out = [
        f"Measured with Python {platform.python_version()}, PyTorch {torch.__version__.partition('+')[0]}, NumPy "
        f"{np.__version__}, {torch.get_num_threads()} threads ({platform.machine()}).",
        "",
        f"{product.what}: {median(product.gradients):.2f} gradients ({spread(product.gradients)}).",
    ]
    for table, title in TITLES.items():
        out += ["", f"**{title}**", "", "| | products | largest error | gradients, median (range) | target |",
                "|---|---:|---:|---:|---|"]  # fmt: skip
        for r in rows:
            if r.table == table:
                products = ", ".join(map(str, r.products))
                error = f"{max(r.errors):.1e}{' **missed**' if max(r.errors) > 1e-3 else ''}"
                cost = f"{median(r.gradients):.3g} ({spread(r.gradients)})"
                out.append(f"| {r.what} | {products} | {error} | {cost} | {r.target} |")
    out += ["", "**The other instruments**", "", "| | measured | target |", "|---|---:|---:|"]
    out += [f"| {r.what} | {r.said} | {r.target} |" for r in rows if r.table == "other"]
    return "\n".join([*out, ""])
