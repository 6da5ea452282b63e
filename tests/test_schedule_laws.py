"""Schedules: what holds for every registered one, and what does not depend on where a run ends."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.schedules import (
    SCHEDULES,
    WSD,
    Constant,
    CyclicCosine,
    InverseSqrtSchedule,
    Phase,
    make_schedule,
    schedule_from_dict,
)
from riverval.segments import Cooldown, windows_of

from .strategies import by_name, joined, peaks, schedules, shapes

R2 = math.sqrt(0.5)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


# --- what holds for every schedule -----------------------------------------------------------------------------------
@given(schedule=schedules())
def test_rates_lie_between_the_floor_and_the_peak(schedule):
    rates, peak = schedule.values(), schedule.peak_lr
    shape = getattr(schedule, "shape", None)
    floor = shape.floor if shape else getattr(schedule, "floor", 0.0)
    assert rates.dtype == np.float64
    assert np.all(rates > 0)
    assert np.all(rates <= peak)
    assert rates.max() == peak
    assert np.all(rates[schedule.phases() == Phase.COOLDOWN] >= peak * floor)


@given(schedule=schedules())
def test_segments_fill_the_run(schedule):
    assert len(schedule) == schedule.total == schedule.steps
    assert schedule.edges[0] == 0
    assert schedule.edges[-1] == schedule.steps
    assert [s.steps for s in schedule.segments] == np.diff(schedule.edges).tolist()
    assert all(s.steps > 0 for s in schedule.segments)
    assert len(schedule.values()) == len(schedule.phases()) == schedule.steps


@given(schedule=schedules())
def test_warmup_rises_and_cooldown_falls(schedule):
    rates, edges = schedule.values() / schedule.peak_lr, schedule.edges.tolist()
    for segment, start, stop in zip(schedule.segments, edges, edges[1:], strict=False):
        part = rates[start:stop]
        if segment.phase is Phase.WARMUP:
            assert np.all(np.diff(part) >= 0)
            assert part[-1] == 1.0
        else:
            assert part[0] == 1.0
            assert np.all(np.diff(part) <= 1e-15)


@given(schedule=schedules())
def test_joins_without_a_jump_except_at_restarts(schedule):
    """No border is crossed by more than one more update of a neighbouring segment would make."""
    rates, edges, segments = schedule.values() / schedule.peak_lr, schedule.edges.tolist(), schedule.segments
    for k in range(1, len(segments)):
        before, after, jump = segments[k - 1], segments[k], rates[edges[k]] - rates[edges[k] - 1]
        if before.phase is Phase.COOLDOWN and after.phase is not Phase.WARMUP:
            assert after.factor(np.zeros(1))[0] == 1.0  # straight back to the peak
            continue
        last = before.factor(np.array([before.steps - 1.0, before.steps]))
        slope = abs(last[1] - last[0]), (1 - getattr(after, "start", 1.0)) / after.steps
        assert abs(jump) <= max(slope) + 1e-12
        if before.phase is not Phase.COOLDOWN and not hasattr(before, "timescale"):
            assert jump == 0


@given(schedule=schedules())
def test_the_first_warmup_is_the_convention(schedule):
    w = schedule.warmup
    np.testing.assert_allclose(schedule.values()[:w], schedule.peak_lr * (np.arange(w) + 1) / max(w, 1), rtol=1e-14)


@given(schedule=st.one_of(schedules(), joined()), data=st.data())
def test_the_rate_is_a_pure_function_of_the_step(schedule, data):
    whole, steps = schedule.values(), np.arange(schedule.total)
    np.testing.assert_array_equal(schedule.lr(steps), whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, schedule.total), max_size=4)))
    np.testing.assert_array_equal(np.concatenate([schedule.lr(c) for c in np.split(steps, cuts)]), whole)
    some = np.array(data.draw(st.lists(st.integers(0, schedule.total - 1), min_size=1, max_size=12)))
    np.testing.assert_array_equal(schedule.lr(some), whole[some])
    np.testing.assert_array_equal(schedule.lr(some.reshape(1, -1, 1)), whole[some].reshape(1, -1, 1))
    np.testing.assert_array_equal([schedule.lr(t) for t in some.tolist()], whole[some])
    np.testing.assert_array_equal(schedule(some.tolist()), whole[some])


@pytest.mark.parametrize("cycles", [1, 300, 40_000])
@pytest.mark.parametrize("name", ["wsd-s", "cyclic-cosine"])
def test_many_cycles_in_any_order_give_the_same_bits(name, cycles, rng):
    """40 000 cycles are more segments than fit the 16 bits by which fewer are sorted."""
    run = make_schedule(name, peak_lr=0.3, steps=cycles * 20, cycles=cycles)
    order = rng.permutation(run.total)
    np.testing.assert_array_equal(run.lr(order), run.values()[order])
    some = rng.integers(0, run.total, 7)
    np.testing.assert_array_equal(run.lr(some), run.values()[some])


def test_rates_in_any_order_cost_one_look_at_each_segment_that_is_met(monkeypatch, rng):
    met = []
    inner = Cooldown.factor
    monkeypatch.setattr(Cooldown, "factor", lambda self, n: met.append(n.size) or inner(self, n))
    run = CyclicCosine(peak_lr=1.0, steps=5000, cycles=500)
    run.lr(rng.permutation(5000))
    assert met == [10] * 500
    met.clear()
    run.lr([4999, 7, 3])
    assert met == [2, 1]


@given(schedule=st.one_of(schedules(), joined()))
def test_phases_and_windows_tell_the_same(schedule):
    codes = schedule.phases()
    assert codes.dtype == np.int8
    assert [schedule.phase(t) for t in range(schedule.total)] == [Phase(c).name.lower() for c in codes]
    seen = np.full(schedule.total, -1)
    for code, name in enumerate(("warmup", "stable", "cooldown")):
        windows = schedule.windows(name)
        assert windows == windows_of(codes, code)
        assert all(a[1] < b[0] for a, b in pairwise(windows))
        for start, stop in windows:
            assert start < stop
            seen[start:stop] = code
    np.testing.assert_array_equal(seen, codes)


@given(schedule=st.one_of(schedules(), joined()), data=st.data())
def test_area_is_additive(schedule, data):
    middle = data.draw(st.integers(0, schedule.total))
    assert schedule.area() == pytest.approx(schedule.area(0, middle) + schedule.area(middle), rel=1e-12)
    assert schedule.area(middle, middle) == 0
    assert schedule.area() == pytest.approx(math.fsum(schedule.values()), rel=1e-12)


@given(schedule=st.one_of(schedules(), joined()))
def test_a_schedule_is_a_value(schedule):
    again = schedule_from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert type(again) is type(schedule)
    assert again == schedule
    assert hash(again) == hash(schedule)
    np.testing.assert_array_equal(again.values(), schedule.values())
    assert schedule.scale(2.0) != schedule
    assert replace(schedule, peak_lr=schedule.peak_lr * 2) != schedule
    assert schedule.describe()
    with pytest.raises(AttributeError):
        schedule.peak_lr = 1.0


@given(schedule=schedules(), peak=peaks())
def test_the_peak_scales_every_rate(schedule, peak):
    np.testing.assert_allclose(
        replace(schedule, peak_lr=peak).values() / peak, schedule.values() / schedule.peak_lr, rtol=1e-14
    )


@every_schedule
def test_the_description_names_the_schedule(name):
    assert by_name(name).describe().startswith(name)
    assert "warmup 7" in by_name(name, warmup=7).describe()


def test_description_tells_what_was_chosen():
    told = make_schedule("wsd-s", peak_lr=1.0, budgets=(50, 100), cooldown=0.2, floor=0.05).describe()
    assert told == "wsd-s (inverse to 0.05, budgets (50, 100), cooldown 0.2, cooldown_of cycle)"


def test_description_tells_every_field_of_the_shape():
    run = make_schedule("wsd", peak_lr=1.0, steps=60, shape="power", exponent=3.5, floor=0.1)
    assert run.describe() == "wsd (power to 0.1, exponent 3.5, cooldown 0.2)"
    assert run.repeat(1).describe() == "stable 48 + cooldown 12 (power to 0.1, exponent 3.5)"


@given(shape=shapes())
def test_description_tells_every_field_of_every_shape(shape):
    told = WSD(peak_lr=1.0, steps=60, shape=shape).describe()
    assert shape.name in told
    assert all(f"{getattr(shape, f.name):g}" in told for f in fields(shape))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "inverse-sqrt (timescale 10000)"),
        ({"warmup": 7}, "inverse-sqrt (warmup 7, timescale 7)"),
        ({"timescale": 2.5}, "inverse-sqrt (timescale 2.5)"),
    ],
)
def test_description_tells_the_timescale_that_holds(options, told):
    run = InverseSqrtSchedule(peak_lr=1.0, steps=60, **options)
    assert run.describe() == told
    assert f"timescale {run.segments[-1].timescale:g}" in run.truncate(40).describe()
    assert schedule_from_dict(run.to_dict()) == run


# --- horizons: what does not depend on where the run ends ------------------------------------------------------------
@given(run=schedules(names=("wsd",)), longer=st.integers(1, 200))
def test_wsd_leaves_the_constant_schedule_only_in_its_cooldown(run, longer):
    trunk = run.windows("cooldown")[0][0]
    constant = Constant(peak_lr=run.peak_lr, steps=run.steps + longer, warmup=run.warmup)
    np.testing.assert_array_equal(run.values()[: trunk + 1], constant.values()[: trunk + 1])


@given(run=schedules(names=("wsd",)), longer=st.integers(1, 200))
def test_a_longer_wsd_run_has_the_same_trunk(run, longer):
    n = run.steps - run.windows("cooldown")[0][0]
    other = replace(run, steps=run.steps + longer, cooldown=n / (run.steps + longer))
    trunk = run.steps - n
    np.testing.assert_array_equal(other.values()[:trunk], run.values()[:trunk])
    np.testing.assert_array_equal(other.values()[-n:], run.values()[-n:])


HORIZON_FREE = [name for name in SCHEDULES if not by_name(name).windows("cooldown")]


def test_which_schedules_have_no_horizon():
    assert HORIZON_FREE == ["constant", "inverse-sqrt"]


@given(run=schedules(names=tuple(HORIZON_FREE)), longer=st.integers(1, 200))
def test_schedules_without_cooldown_do_not_depend_on_their_length(run, longer):
    np.testing.assert_array_equal(replace(run, steps=run.steps + longer).values()[: run.steps], run.values())


@given(run=schedules(names=("wsd-s",)))
def test_each_cycle_of_wsd_s_ends_at_its_budget(run):
    if run.cooldown_of != "trunk" and run.budgets:
        stops = [int(e) for s, e in zip(run.segments, run.edges[1:], strict=True) if s.phase is Phase.COOLDOWN]
        assert tuple(stops) == run.budgets


@given(run=schedules(names=("wsd-s",)))
def test_cooldowns_of_wsd_s_are_the_fraction_of_what_it_says(run):
    lengths = [s.steps for s in run.segments if s.phase is Phase.COOLDOWN]
    n = len(run.budgets) or run.cycles or 3
    marks = np.array(run.budgets or [round(k * run.steps / n) for k in range(1, n + 1)])
    of = np.diff(marks, prepend=0) if run.cooldown_of == "cycle" else marks
    assert lengths == [round(run.cooldown * m) for m in of.tolist()]


def test_rewarmup_rises_from_the_floor_to_the_peak():
    run = make_schedule("wsd-s", peak_lr=1.0, budgets=(10, 20), cooldown=0.2, rewarmup=4, floor=0.2, shape="linear")
    np.testing.assert_allclose(run.values()[8:15], [1.0, 0.6, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert run.windows("warmup") == [(10, 14)]


def test_inverse_sqrt_takes_its_timescale_from_the_warmup():
    assert InverseSqrtSchedule(peak_lr=1.0, steps=31, warmup=10).lr(20) == pytest.approx(R2)
    assert InverseSqrtSchedule(peak_lr=1.0, steps=10_001).lr(10_000) == pytest.approx(R2)


@pytest.mark.parametrize(
    ("cooldown", "of", "updates"),
    [(0.15, 10, 2), (0.29, 100, 29), (1 / 3, 10, 3), (0.25, 10, 2), (0.35, 10, 4), (0.999, 10, 10), (0.16, 10, 2)],
)
def test_fractions_round_to_the_nearest_whole_update(cooldown, of, updates):
    assert WSD(peak_lr=1.0, steps=of, cooldown=cooldown).windows("cooldown") == [(of - updates, of)]


@pytest.mark.parametrize(
    ("steps", "cycles", "ends"), [(20, 3, [7, 13, 20]), (11, 3, [4, 7, 11]), (10, 4, [2, 5, 8, 10]), (6, 3, [2, 4, 6])]
)
def test_equal_cycles_end_at_the_nearest_whole_update(steps, cycles, ends):
    assert CyclicCosine(peak_lr=1.0, steps=steps, cycles=cycles).edges.tolist() == [0, *ends]
    assert CyclicCosine(peak_lr=1.0, steps=20).edges.tolist() == [0, 7, 13, 20]
