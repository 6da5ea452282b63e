"""The simulation against its floor, the drawing of its normals, and against plain loops of NumPy and torch.

``nox -s bench`` runs it and writes the table of docs/speed.md. Everything is timed in turn, several times, and each
time is divided by that of the floor just before it, so that a machine that is now and then busy does not spoil them.
"""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from riverval.schedules import make_schedule
from riverval.toy import SymbolicLoss, make_loss, make_optimizer, simulate

TABLE = Path(__file__).parents[2] / "docs" / "speed-table.md"
ROUNDS = 7
SIZES = {"16 x 1,000,000": (16, 1_000_000), "1024 x 20,000": (1024, 20_000)}
BENT = make_loss("bent")
BLOCK = np.empty(65_536)


@dataclass(frozen=True)
class Row:
    what: str
    optimizer: str
    size: str
    rate: float
    ratio: float
    spread: tuple[float, float]
    target: float | None


ROWS: list[Row] = []


@pytest.fixture(scope="module", autouse=True)
def table(request):
    """Write the table when all is measured; not when the benchmarks are skipped, or only some of them are run."""
    yield
    if len(ROWS) == 2 * len(SIZES) * 2 + 2 * len(SIZES) + 1:
        TABLE.write_text(table_of(ROWS), encoding="utf-8")


def floor(replicates: int, steps: int) -> float:
    """Seconds to draw the normals of a two-dimensional run on one core."""
    rng, normals = np.random.default_rng(0), 2 * replicates * steps
    start = time.perf_counter()
    for _ in range(normals // BLOCK.size):
        rng.standard_normal(out=BLOCK)
    rng.standard_normal(normals % BLOCK.size)
    return time.perf_counter() - start


def record(benchmark, what, optimizer, size, run, share=1.0, target=None):
    """Time `run`, which does the `share` of a size, against the floor; remember the row."""
    replicates, steps = SIZES[size]
    run()  # compiled, warm
    ratios, seconds = [], []

    def one_round():
        least = floor(replicates, steps) * share
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
        ratios.append(seconds[-1] / least)

    benchmark.pedantic(one_round, rounds=ROUNDS)
    rate = replicates * steps * share / median(seconds)
    row = Row(what, optimizer, size, rate, median(ratios), (min(ratios), max(ratios)), target)
    ROWS.append(row)
    benchmark.extra_info.update({"ratio": round(row.ratio, 3), "replicate_updates_per_s": round(rate)})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("optimizer", "targets"), [("sgd", (1.2, 0.65)), ("adam", (1.5, None))])
@pytest.mark.parametrize("threads", [1, 2])
def test_simulation(benchmark, size, optimizer, targets, threads):
    replicates, steps = SIZES[size]
    plan, made = make_schedule("wsd", peak_lr=0.05, steps=steps), make_optimizer(optimizer)

    def run():
        simulate(
            BENT, plan, sigma=0.5, optimizer=made, replicates=replicates, rng=np.random.default_rng(0),
            backend="numba", threads=threads,
        )  # fmt: skip

    what = f"riverval, {threads} thread{'s' if threads > 1 else ''}"
    record(benchmark, what, optimizer, size, run, target=targets[threads - 1])


@pytest.mark.parametrize("size", SIZES)
def test_numpy_loop(benchmark, size):
    """What one writes first: vectorised over replicates."""
    replicates, steps = SIZES[size]
    part = steps // 20
    lr = make_schedule("wsd", peak_lr=0.05, steps=part).values()
    c, h, a, k = BENT.slope, BENT.curvature, BENT.amplitude, BENT.wavenumber

    def run():
        rng = np.random.default_rng(0)
        x, y = np.zeros(replicates), np.ones(replicates)
        for t in range(part):
            d = y - a * np.sin(k * x)
            gx, gy = -c - h * d * a * k * np.cos(k * x), h * d
            x -= lr[t] * (gx + 0.5 * rng.standard_normal(replicates))
            y -= lr[t] * (gy + 0.5 * rng.standard_normal(replicates))

    record(benchmark, "NumPy loop over updates", "sgd", size, run, share=part / steps)


@pytest.mark.parametrize("size", SIZES)
def test_torch_loop(benchmark, size):
    """The usual training loop: autograd, torch.optim and a learning-rate scheduler."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    replicates, steps = SIZES[size]
    part = max(steps // 2000, 100)
    plan = make_schedule("wsd", peak_lr=0.05, steps=part)
    c, h, a, k = BENT.slope, BENT.curvature, BENT.amplitude, BENT.wavenumber

    def run():
        torch.manual_seed(0)
        w = torch.stack([torch.zeros(replicates), torch.ones(replicates)]).double().requires_grad_()
        optimizer = torch.optim.SGD([w], lr=1.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: float(plan.lr(min(t, part - 1))))
        for _ in range(part):
            optimizer.zero_grad()
            loss = (-c * w[0] + h / 2 * (w[1] - a * torch.sin(k * w[0])) ** 2).sum()
            loss.backward()
            w.grad += 0.5 * torch.randn(2, replicates, dtype=torch.float64)
            optimizer.step()
            scheduler.step()

    record(benchmark, "torch loop over updates", "sgd", size, run, share=part / steps)


def test_first_call_on_a_new_expression(benchmark, tmp_path, monkeypatch):
    """Derivation, code and compilation, with nothing in any cache; numba and sympy are loaded."""
    monkeypatch.setenv("RIVERVAL_CACHE", str(tmp_path))
    plan, count = make_schedule("constant", peak_lr=0.01, steps=10), iter(range(1000))

    def run():
        power = 2 + 0.001 * next(count)  # never seen before
        loss = SymbolicLoss(f"-c*x + h/2*exp({power}*x/10)*(y - sin(x))**2", parameters={"c": 0.1, "h": 1.0})
        simulate(loss, plan, sigma=0.1, replicates=16, rng=np.random.default_rng(0), backend="numba")

    run()
    benchmark.pedantic(run, rounds=5)
    seconds = benchmark.stats.stats.median if benchmark.stats else math.nan
    ROWS.append(Row("first call on a new expression", "sgd", "", seconds, math.nan, (math.nan, math.nan), None))


def table_of(rows: list[Row]) -> str:
    """The table in Markdown."""
    order = ["riverval, 1 thread", "riverval, 2 threads", "NumPy loop over updates", "torch loop over updates"]
    out = [
        f"Measured with Python {platform.python_version()}, NumPy {np.__version__}, {os.cpu_count()} cores "
        f"({platform.machine()}); medians of {ROUNDS} rounds.",
        "",
        "| replicates x updates | optimizer | what | 10^6 replicate-updates/s | time / floor (range) | target |",
        "|---|---|---|---:|---:|---:|",
    ]
    timed = sorted((r for r in rows if r.size), key=lambda r: (r.size, r.optimizer == "adam", order.index(r.what)))
    for r in timed:
        target = f"{r.target:g}" if r.target else ""
        rate = f"{r.rate / 1e6:.3g}"
        spread = f"{r.ratio:.3g} ({r.spread[0]:.3g} to {r.spread[1]:.3g})"
        out.append(f"| {r.size} | {r.optimizer} | {r.what} | {rate} | {spread} | {target} |")
    (first,) = (r for r in rows if not r.size)
    return "\n".join([*out, "", f"First call on a new expression, nothing cached: {first.rate:.2f} s.", ""])
