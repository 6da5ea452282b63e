"""The rows of a run: which there are, and what stands in them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riverval.schedules import make_schedule
from riverval.toy import summarise

from .runs import VALLEY, Interrupting, blow_up_replicate_2, run


def test_summary_has_both_ends_of_each_cooldown_and_the_end():
    schedule = make_schedule("wsd-s", peak_lr=0.1, steps=300, cycles=2)
    ds = run(schedule, replicates=50)
    rows = summarise(ds)
    found = [(r.quantity, r.state) for r in rows]
    wanted = [
        (f"{name} loss {word} cooldown {k}", state)
        for k, window in enumerate(schedule.windows("cooldown"), start=1)
        for name in ("hill", "river")
        for word, state in zip(("before", "after"), window, strict=True)
    ]
    assert found == [*wanted, ("final loss", 300)]
    row = rows[1]
    values = ds["hill"].sel(eval_step=row.state).values
    assert row.mean == values.mean()
    assert row.error == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert row.exact_error == pytest.approx(float(ds["exact_hill_std"].sel(eval_step=row.state)) / math.sqrt(50))
    assert row.z == pytest.approx((row.mean - row.exact) / row.exact_error)
    assert abs(row.z) < 5


def test_summary_without_a_cooldown_or_without_chance():
    ds = run(make_schedule("constant", peak_lr=0.1, steps=30), sigma=0.0, replicates=1)
    rows = summarise(ds)
    assert [r.quantity for r in rows] == ["final hill loss", "final river loss", "final loss"]
    assert all(math.isnan(r.z) and math.isnan(r.error) and r.exact_error == 0 for r in rows)
    assert [r.mean for r in rows] == pytest.approx([r.exact for r in rows])


def test_summary_of_a_run_that_diverged_gives_means_and_no_z(monkeypatch):
    blow_up_replicate_2(monkeypatch)
    ds = run(make_schedule("wsd", peak_lr=0.1, steps=60), replicates=4)
    rows = summarise(ds)
    assert all(math.isnan(r.z) for r in rows)
    rivers = [r for r in rows if r.quantity.startswith("river")]
    assert [r.mean for r in rivers] == [float(ds["river"].sel(eval_step=r.state).mean()) for r in rivers]
    assert np.isinf([r.mean for r in rows if r.quantity.startswith("hill")]).all()


def test_summary_of_an_interrupted_run_tells_what_there_is():
    schedule = make_schedule("wsd-s", peak_lr=0.1, steps=300, cycles=2)
    ds = run(schedule, loss=Interrupting(0.2, VALLEY.curvatures, at=145))
    assert [r.quantity for r in summarise(ds)][:2] == ["hill loss before cooldown 1", "hill loss after cooldown 1"]
