"""The laws of loss curves against their floor: evaluations of the law, and one pass over the rates of a schedule.

``nox -s bench`` runs it and writes the table of docs/laws.md. A fit cannot be quicker than the evaluations that its
search asks for, a prediction not quicker than one sum over the updates; each repetition is divided by its floor.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from riverval.curves import Curve
from riverval.law_base import LAWS, Track
from riverval.law_plan import plan_cooldown
from riverval.laws import fit_law, known_law
from riverval.schedules import make_schedule

from ..made_laws import VALUES, rates

TABLE = Path(__file__).parents[2] / "docs" / "laws-speed-table.md"
ROUNDS = 5
FITTED, PREDICTED = 24_000, 1_000_000  # updates
POINTS = 172  # of a curve, as in the published ones
NOISE = 1e-3  # of log loss


@dataclass(frozen=True)
class Row:
    """Medians over the rounds: seconds, time over that of the floor, evaluations of the law."""

    law: str
    fit: float
    evaluations: int
    over_evaluations: float
    prediction: float
    over_pass: float
    plan: float


ROWS: list[Row] = []


@pytest.fixture(scope="module", autouse=True)
def table():
    """Write the table when all laws are measured; not when the benchmarks are skipped, or only some of them are run."""
    yield
    if len(ROWS) == len(LAWS):
        TABLE.write_text(table_of(ROWS), encoding="utf-8")


@cache
def curves() -> list[Curve]:
    """Three curves of one law that all laws are fitted to: a plateau, a cosine, a step down."""
    rng, source = np.random.default_rng(0), known_law("multi-power", VALUES["multi-power"])
    made = []
    for shape, start in (("constant", 0.8), ("cosine", 0.1), ("step", 1 / 3)):
        lr = rates(FITTED, shape, start=start)
        steps = np.linspace(2200, FITTED, POINTS).astype(int)
        made.append(
            Curve(shape, lr, steps, source.predict(lr, steps).loss * np.exp(NOISE * rng.standard_normal(POINTS)))
        )
    return made


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def counted(name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a fit evaluates its law on all curves."""
    law = LAWS[name]
    columns, calls = law.columns, 0

    def counting(self, prepared, theta):
        nonlocal calls
        calls += 1
        return columns(self, prepared, theta)

    with monkeypatch.context() as patch:
        patch.setattr(law, "columns", counting)
        fit_law(name, curves())
    return calls // len(curves())


@pytest.mark.parametrize("name", LAWS)
def test_law(benchmark, monkeypatch, name):
    fitted = fit_law(name, curves())
    evaluations = counted(name, monkeypatch)
    law, theta = fitted.law, [fitted.values[t.name] for t in fitted.law.thetas]
    prepared = [law.prepare(Track.of(c.lr, c.steps)) for c in curves()]
    long = make_schedule("wsd", peak_lr=3e-4, steps=PREDICTED, warmup=2000).values()
    every = {"fit": [], "evaluation": [], "prediction": [], "pass": [], "plan": []}

    def one_round():
        every["evaluation"].append(seconds(lambda: [law.columns(p, theta) for p in prepared]))
        every["fit"].append(seconds(lambda: fit_law(name, curves())))
        every["pass"].append(seconds(lambda: np.cumsum(long)))
        every["prediction"].append(seconds(lambda: fitted.predict(long)))
        every["plan"].append(seconds(lambda: plan_cooldown(fitted, 50_000)))

    benchmark.pedantic(one_round, rounds=ROUNDS)
    found = {what: median(times) for what, times in every.items()}
    searched = [f / (evaluations * e) for f, e in zip(every["fit"], every["evaluation"], strict=True)]
    passes = [p / s for p, s in zip(every["prediction"], every["pass"], strict=True)]
    row = Row(name, found["fit"], evaluations, median(searched), found["prediction"], median(passes), found["plan"])
    ROWS.append(row)
    benchmark.extra_info.update({k: v for k, v in vars(row).items() if k != "law"})


def table_of(rows: list[Row]) -> str:
    """The table in Markdown."""
    out = [
        f"Measured with Python {platform.python_version()}, NumPy {np.__version__}, {os.cpu_count()} cores "
        f"({platform.machine()}); medians of {ROUNDS} rounds.",
        "",
        "| law | fit, s | evaluations | fit / evaluations | prediction, s | prediction / one sum | plan, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    out += [
        f"| `{r.law}` | {r.fit:.2f} | {r.evaluations} | {r.over_evaluations:.2f} | {r.prediction:.2f} | "
        f"{r.over_pass:.0f} | {r.plan:.2f} |"
        for r in rows
    ]
    return "\n".join([*out, ""])
