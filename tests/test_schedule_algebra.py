"""The algebra of schedules: join, repeat, scale, truncate, branch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.schedules import WSD, WSDS, Constant, InverseSqrtSchedule, Joined, make_schedule, schedule_from_dict
from riverval.segments import SEGMENTS, Cooldown, Ramp, Stable, segment_from_dict
from riverval.shapes import Inverse, Linear, OneMinusSqrt

from .strategies import joined, schedules, shapes

either = st.one_of(schedules(), joined())


@given(first=either, second=either)
def test_join_is_one_after_the_other(first, second):
    both = first.join(second)
    assert both.total == first.total + second.total
    np.testing.assert_array_equal(both.values()[: first.total], first.values())
    np.testing.assert_allclose(both.values()[first.total :], second.values(), rtol=1e-14)
    np.testing.assert_array_equal(both.phases(), np.concatenate([first.phases(), second.phases()]))
    assert both.area() == pytest.approx(first.area() + second.area(), rel=1e-12)


@given(first=schedules(), second=schedules(), third=schedules())
def test_join_is_associative(first, second, third):
    left, right = first.join(second).join(third), first.join(second.join(third))
    np.testing.assert_allclose(left.values(), right.values(), rtol=1e-14)
    np.testing.assert_array_equal(left.edges, right.edges)


@given(schedule=either, times=st.integers(1, 4))
def test_repeat_is_join_with_itself(schedule, times):
    np.testing.assert_array_equal(schedule.repeat(times).values(), np.tile(schedule.values(), times))
    np.testing.assert_array_equal(schedule.repeat(times).phases(), np.tile(schedule.phases(), times))
    again = schedule
    for _ in range(times - 1):
        again = again.join(schedule)
    np.testing.assert_allclose(again.values(), schedule.repeat(times).values(), rtol=1e-14)


@given(schedule=either, factor=st.floats(1e-3, 1e3))
def test_scale_multiplies_every_rate(schedule, factor):
    scaled = schedule.scale(factor)
    assert scaled.peak_lr == schedule.peak_lr * factor
    np.testing.assert_allclose(scaled.values(), factor * schedule.values(), rtol=1e-14)
    np.testing.assert_array_equal(scaled.phases(), schedule.phases())
    assert scaled.area() == pytest.approx(factor * schedule.area(), rel=1e-12)


@given(first=schedules(), second=schedules(), factor=st.floats(0.01, 100.0))
def test_scale_distributes_over_join(first, second, factor):
    np.testing.assert_allclose(
        first.join(second).scale(factor).values(), first.scale(factor).join(second.scale(factor)).values(), rtol=1e-13
    )


@given(schedule=either, data=st.data())
def test_truncate_leaves_the_prefix_as_it_was(schedule, data):
    steps = data.draw(st.integers(1, schedule.total))
    cut = schedule.truncate(steps)
    assert cut.total == steps
    np.testing.assert_array_equal(cut.values(), schedule.values()[:steps])
    np.testing.assert_array_equal(cut.phases(), schedule.phases()[:steps])
    assert cut.area() == pytest.approx(schedule.area(0, steps), rel=1e-12)
    shorter = data.draw(st.integers(1, steps))
    assert cut.truncate(shorter) == schedule.truncate(shorter)


@given(schedule=either.filter(lambda s: s.total > 1), steps=st.integers(2, 80), shape=shapes(), data=st.data())
def test_branch_goes_on_from_the_rate_it_leaves(schedule, steps, shape, data):
    at = data.draw(st.integers(1, schedule.total - 1))
    branch = schedule.branch(at, steps, shape)
    assert branch.total == at + steps
    np.testing.assert_array_equal(branch.values()[:at], schedule.values()[:at])
    np.testing.assert_array_equal(branch.phases()[:at], schedule.phases()[:at])
    tail = branch.values()[at:]
    assert tail[0] == pytest.approx(schedule.lr(at), rel=1e-14)
    np.testing.assert_allclose(tail, schedule.lr(at) * shape(np.arange(steps) / steps), rtol=1e-13)
    assert branch.phase(at) == branch.phase(at + steps - 1) == "cooldown"


@given(run=schedules(names=("wsd",)), more=st.integers(0, 50))
def test_a_branch_of_the_constant_schedule_is_wsd(run, more):
    start, stop = run.windows("cooldown")[0]
    if start:
        constant = Constant(peak_lr=run.peak_lr, steps=stop + more, warmup=run.warmup)
        branch = constant.branch(start, stop - start, run.shape)
        np.testing.assert_array_equal(branch.values(), run.values())
        np.testing.assert_array_equal(branch.phases(), run.phases())
        assert branch.segments == run.segments


def test_branches_of_one_trunk_are_the_runs_of_each_budget():
    trunk = Constant(peak_lr=1.0, steps=1000, warmup=20)
    for budget in (200, 400, 800):
        n = budget // 10
        run = WSD(peak_lr=1.0, steps=budget, warmup=20, cooldown=0.1, shape=Inverse())
        np.testing.assert_array_equal(trunk.branch(budget - n, n, Inverse()).values(), run.values())


def test_repeated_wsd_is_wsd_s():
    cycle = WSD(peak_lr=1.0, steps=50, cooldown=0.2, shape=Inverse())
    run = WSDS(peak_lr=1.0, steps=150, cycles=3, cooldown=0.2)
    np.testing.assert_array_equal(cycle.repeat(3).values(), run.values())
    assert cycle.repeat(3).segments == run.segments


def test_branch_in_the_warmup_leaves_from_the_rate_of_the_warmup():
    branch = Constant(peak_lr=1.0, steps=20, warmup=10).branch(4, 5)
    np.testing.assert_allclose(branch.values(), [0.1, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert branch.describe() == "warmup 4 + cooldown 5 (linear to 0)"


def test_branch_in_a_cooldown_takes_its_floor_from_where_it_leaves():
    run = WSD(peak_lr=2.0, steps=8, cooldown=1.0)
    np.testing.assert_allclose(run.branch(4, 2, Linear(floor=0.5)).values(), [2, 1.75, 1.5, 1.25, 1, 0.75])


def test_inverse_sqrt_with_a_final_cooldown():
    run = InverseSqrtSchedule(peak_lr=1.0, steps=100, timescale=10.0)
    branch = run.branch(80, 20)
    assert branch.values()[80] == pytest.approx(1 / 3)
    assert branch.values()[99] == pytest.approx(1 / 60)


def test_a_cut_cooldown_keeps_the_length_it_was_planned_with():
    cut = WSD(peak_lr=1.0, steps=10, cooldown=0.4).truncate(8)
    np.testing.assert_allclose(cut.values()[6:], [1.0, 0.75])
    assert schedule_from_dict(cut.to_dict()) == cut


def test_a_joined_schedule_is_not_the_named_one_it_equals_step_by_step():
    run = WSD(peak_lr=1.0, steps=10)
    whole = run.truncate(10)
    np.testing.assert_array_equal(whole.values(), run.values())
    assert whole != run
    assert whole == run.repeat(1) == run.scale(1.0) == Joined(peak_lr=1.0, parts=list(run.segments))
    assert hash(whole) == hash(Joined(peak_lr=1.0, parts=list(run.segments)))


def test_empty_parts_do_not_show():
    run = Joined(peak_lr=1.0, parts=(Stable(steps=0), Stable(steps=2), Cooldown(steps=0), Cooldown(steps=2)))
    np.testing.assert_array_equal(run.values(), [1.0, 1.0, 1.0, 0.5])
    assert len(run.segments) == 2


RUN = make_schedule("wsd", peak_lr=1.0, steps=10)
BAD = {
    "scale by zero": (lambda: RUN.scale(0.0), r"factor .*in \(0, inf\), got 0"),
    "scale by minus": (lambda: RUN.scale(-1.0), "factor .*got -1"),
    "scale by nan": (lambda: RUN.scale(math.nan), "factor .*got nan"),
    "scale beyond float": (lambda: RUN.scale(1e300).scale(1e300), "peak_lr .*got inf"),
    "repeat never": (lambda: RUN.repeat(0), "times .*of at least 1, got 0"),
    "repeat by a fraction": (lambda: RUN.repeat(1.5), "times .*got 1.5"),
    "truncate to nothing": (lambda: RUN.truncate(0), "steps .*from 1 to 10, got 0"),
    "truncate beyond the end": (lambda: RUN.truncate(11), "steps .*from 1 to 10, got 11"),
    "branch at the start": (lambda: RUN.branch(0, 5), "at .*from 1 to 9, got 0"),
    "branch at the end": (lambda: RUN.branch(10, 5), "at .*from 1 to 9, got 10"),
    "branch of nothing": (lambda: RUN.branch(5, 0), "steps .*of at least 2, got 0"),
    "branch of one update": (lambda: RUN.branch(5, 1), "first update still has the full rate.*of at least 2, got 1"),
    "branch with a name": (lambda: RUN.branch(5, 5, "linear"), "shape must be a decay shape"),
    "nothing joined": (lambda: Joined(peak_lr=1.0, parts=()), "needs at least one update"),
    "only empty parts": (lambda: Joined(peak_lr=1.0, parts=(Stable(steps=0),)), "needs at least one update"),
    "ramp beyond its length": (lambda: Ramp(steps=5, length=4), "length .*of at least 5, got 4"),
    "cooldown beyond its length": (lambda: Cooldown(steps=5, length=4), "length .*of at least 5, got 4"),
    "level zero": (lambda: Stable(steps=5, level=0.0), "level .*got 0"),
    "unknown segment": (lambda: segment_from_dict({"name": "stabel", "steps": 1}), "Did you mean 'stable'"),
    "segment without name": (lambda: segment_from_dict({"steps": 1}), "unknown segment None"),
    "segment without steps": (lambda: segment_from_dict({"name": "stable"}), "steps .*got None"),
    "segment with more": (lambda: segment_from_dict({"name": "stable", "steps": 1, "length": 1}), "no option 'length'"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("name", SEGMENTS)
def test_every_segment_survives_its_description(name):
    extra = {"ramp": {"length": 5, "start": 0.25}, "cooldown": {"length": 5, "shape": OneMinusSqrt(floor=0.1)}}
    segment = SEGMENTS[name](steps=3, level=0.5, **extra.get(name, {}))
    assert segment_from_dict(segment.to_dict()) == segment
