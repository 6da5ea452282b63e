"""Nanoseconds per update of a million updates; run with ``pytest tests/benchmarks --benchmark-only``."""

from __future__ import annotations

import numpy as np
import pytest

from riverval.schedules import SCHEDULES, make_schedule
from riverval.shapes import SHAPES, make_shape

STEPS = 1_000_000


@pytest.mark.parametrize("name", SCHEDULES)
def test_values(benchmark, name):
    schedule = make_schedule(name, peak_lr=1e-3, steps=STEPS, warmup=2000)
    assert len(benchmark(schedule.values)) == STEPS
    report(benchmark)


@pytest.mark.parametrize("name", SCHEDULES)
def test_lr_of_all_steps_in_order(benchmark, name):
    schedule = make_schedule(name, peak_lr=1e-3, steps=STEPS, warmup=2000)
    assert len(benchmark(schedule.lr, np.arange(STEPS))) == STEPS
    report(benchmark)


@pytest.mark.parametrize("name", SCHEDULES)
def test_lr_of_all_steps_in_any_order(benchmark, rng, name):
    schedule = make_schedule(name, peak_lr=1e-3, steps=STEPS, warmup=2000)
    assert len(benchmark(schedule.lr, rng.permutation(STEPS))) == STEPS
    report(benchmark)


@pytest.mark.parametrize("cycles", [200, 2000, 20_000])
@pytest.mark.parametrize("name", ["wsd-s", "cyclic-cosine"])
def test_lr_of_all_steps_of_many_cycles_in_any_order(benchmark, rng, name, cycles):
    schedule = make_schedule(name, peak_lr=1e-3, steps=STEPS, cycles=cycles)
    assert len(benchmark(schedule.lr, rng.permutation(STEPS))) == STEPS
    report(benchmark)


@pytest.mark.parametrize("name", ["wsd-s", "cyclic-cosine"])
def test_lr_of_one_step_of_many_cycles(benchmark, name):
    schedule = make_schedule(name, peak_lr=1e-3, steps=STEPS, cycles=2000)
    assert benchmark(schedule.lr, STEPS // 2) > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_lr_of_one_step(benchmark, name):
    schedule = make_schedule(name, peak_lr=1e-3, steps=STEPS, warmup=2000)
    assert benchmark(schedule.lr, STEPS // 2) > 0


@pytest.mark.parametrize("name", SHAPES)
def test_shape(benchmark, name):
    assert len(benchmark(make_shape(name), np.arange(STEPS) / STEPS)) == STEPS
    report(benchmark)


def report(benchmark):
    if benchmark.stats:
        benchmark.extra_info["ns_per_step"] = round(benchmark.stats.stats.median / STEPS * 1e9, 2)
