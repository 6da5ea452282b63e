"""Schedules: known values, the step convention, the published plans, and what holds for every registered one.

The convention under test stands at the top of `riverval.schedules`: update t = 0..T-1 uses lr[t]; warmup is (t + 1)/w;
a cooldown starts at the full rate and reaches its floor where the run ends, so the last update is still above it.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.schedules import (
    SCHEDULES,
    WSD,
    WSDS,
    Constant,
    CosineSchedule,
    CyclicCosine,
    InverseSqrtSchedule,
    LinearToFloor,
    Phase,
    make_schedule,
    schedule_from_dict,
)
from riverval.shapes import Cosine, Inverse, Linear, OneMinusSqrt, Shape

from .strategies import joined, peaks, schedules, shapes

R2 = math.sqrt(0.5)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)

# Schedule -> options (the peak is 2), expected rates, expected phases (w, s, c), all by hand.
KNOWN = {
    "constant": ({"steps": 5, "warmup": 2}, [1, 2, 2, 2, 2], "wwsss"),
    "wsd": (
        {"steps": 10, "warmup": 2, "cooldown": 0.4, "floor": 0.2},
        [1, 2, 2, 2, 2, 2, 2, 1.6, 1.2, 0.8],
        "wwsssscccc",
    ),
    "wsd-s": (
        {"budgets": (4, 10), "warmup": 1, "cooldown": 0.5, "rewarmup": 1, "floor": 0.5, "shape": "linear"},
        [2, 2, 2, 1.5, 2, 2, 2, 2, 5 / 3, 4 / 3],
        "wsccwssccc",
    ),
    "cosine": (
        {"steps": 6, "warmup": 2, "floor": 0.5},
        [1, 2, 2, 1.5 + 0.5 * R2, 1.5, 1.5 - 0.5 * R2],
        "wwcccc",
    ),
    "cyclic-cosine": (
        {"budgets": (3, 8), "warmup": 1, "rewarmup": 3, "floor": 0.25},
        [2, 2, 1.25, 1, 1.5, 2, 2, 1.25],
        "wccwwwcc",
    ),
    "linear": ({"steps": 6, "warmup": 2, "floor": 0.5}, [1, 2, 2, 1.75, 1.5, 1.25], "wwcccc"),
    "inverse-sqrt": ({"steps": 5, "warmup": 1}, [2, 2, 2 * R2, 2 / math.sqrt(3), 1], "wssss"),
}


def by_name(name, **options):
    """A small schedule of that name; options that it does not take are left out."""
    takes = {f.name for f in fields(SCHEDULES[name])} | ({"floor"} if name in ("wsd", "wsd-s") else set())
    given = {"peak_lr": 1.0, "steps": 60, **options}
    return make_schedule(name, **{k: v for k, v in given.items() if k in takes})


def test_every_registered_schedule_has_a_row_of_known_values():
    assert set(KNOWN) == set(SCHEDULES)


@every_schedule
def test_known_values(name):
    options, rates, phases = KNOWN[name]
    schedule = make_schedule(name, peak_lr=2.0, **options)
    np.testing.assert_allclose(schedule.values(), rates, rtol=1e-14)
    assert "".join(schedule.phase(t)[0] for t in range(schedule.total)) == phases


# --- the published plans ---------------------------------------------------------------------------------------------
BUDGETS = (12_500, 25_000, 50_000)
TRUNK = WSDS(peak_lr=4e-4, steps=53_750, budgets=BUDGETS, cooldown_of="trunk")
STRICT = WSDS(peak_lr=4e-4, steps=50_000, budgets=BUDGETS, cooldown_of="budget")
CYCLES = WSDS(peak_lr=4e-4, steps=50_000, budgets=BUDGETS, cooldown_of="cycle")
FALL = 0.1 / 0.9 * math.log(10)  # mean of the inverse decay to a tenth


def test_switch_points_of_the_authors_plan():
    assert TRUNK.edges.tolist() == [0, 11_250, 12_500, 23_750, 26_250, 48_750, 53_750]
    assert make_schedule("wsd-s", peak_lr=4e-4, budgets=BUDGETS, cooldown_of="trunk") == TRUNK


def test_switch_points_of_the_other_accountings():
    assert STRICT.edges.tolist() == [0, 11_250, 12_500, 22_500, 25_000, 45_000, 50_000]
    assert CYCLES.edges.tolist() == [0, 11_250, 12_500, 23_750, 25_000, 47_500, 50_000]


def test_trunk_accounting_makes_the_stable_updates_of_each_wsd_run():
    """All three checkpoints cost the same whether WSD branches off one trunk or WSD-S runs through."""
    branches = [WSD(peak_lr=4e-4, steps=b, cooldown=0.1, shape=Inverse()) for b in BUDGETS]
    cooldowns = [run.windows("cooldown")[0] for run in branches]
    assert [stop - start for start, stop in TRUNK.windows("cooldown")] == [stop - start for start, stop in cooldowns]
    stable = np.cumsum([stop - start for start, stop in TRUNK.windows("stable")])
    assert stable.tolist() == [start for start, _ in cooldowns]
    assert TRUNK.total == cooldowns[-1][0] + sum(stop - start for start, stop in cooldowns)


def mean_rates(schedule):
    """Mean rate over the peak, from the start to the end of each cooldown."""
    return [schedule.area(0, stop) / stop / schedule.peak_lr for _, stop in schedule.windows("cooldown")]


@pytest.mark.parametrize(
    ("schedule", "printed", "exact"),
    [
        (WSD(peak_lr=1e-3, steps=50_000, cooldown=0.1, shape=Inverse()), [0.926], [0.9 + 0.1 * FALL]),
        (WSD(peak_lr=1e-3, steps=50_000, cooldown=0.1, shape=Linear(floor=0.1)), [0.955], [0.955]),
        (CosineSchedule(peak_lr=1e-3, steps=50_000, floor=0.1), [0.55], [0.55]),
        (CyclicCosine(peak_lr=1e-3, steps=50_000, floor=0.1, budgets=BUDGETS), [0.55], [0.55]),
        (
            STRICT,
            [0.926, 0.888, 0.870],
            [
                (11_250 + 1_250 * FALL) / 12_500,
                (21_250 + 3_750 * FALL) / 25_000,
                (41_250 + 8_750 * FALL) / 50_000,
            ],
        ),
        (
            TRUNK,
            [0.926, 0.894, 0.879],
            [
                (11_250 + 1_250 * FALL) / 12_500,
                (22_500 + 3_750 * FALL) / 26_250,
                (45_000 + 8_750 * FALL) / 53_750,
            ],
        ),
    ],
    ids=["wsd inverse", "wsd linear", "cosine", "cyclic cosine", "wsd-s strict", "wsd-s authors"],
)
def test_mean_rates_of_the_published_plans(schedule, printed, exact):
    means = mean_rates(schedule)
    digits = 2 if printed == [0.55] else 3
    assert [round(m, digits) for m in means] == printed * (len(means) // len(printed))
    # A left sum exceeds the integral by at most one update of each cooldown.
    for mean, closed in zip(means, exact * (len(means) // len(exact)), strict=True):
        assert closed - 1e-12 <= mean <= closed + 3 / 12_500


def test_mean_rate_of_the_inverse_decay_converges_to_the_closed_form():
    assert pytest.approx(0.2558, abs=5e-5) == FALL
    lengths = np.array([100, 1_000, 10_000])
    runs = [WSD(peak_lr=1.0, steps=n, cooldown=1.0, shape=Inverse()) for n in lengths]
    # A left sum is off by (first - last)/2 of one update, to leading order.
    np.testing.assert_allclose([run.values().mean() - FALL for run in runs], 0.45 / lengths, rtol=0.05)


def test_levanters_cycles():
    """Its own test: cycles [300, 700] of 1000 updates, decay a tenth of each cycle."""
    schedule = make_schedule("wsd-s", peak_lr=1e-3, budgets=(300, 700, 1000), cooldown=0.1)
    rates = schedule.values()
    falls = np.flatnonzero((rates[:-1] == 1e-3) & (rates[1:] < 1e-3))
    assert falls.tolist() == [270, 660, 970]
    assert rates[299] < 2e-4
    assert rates[300] == rates[700] == 1e-3
    assert [start for start, _ in schedule.windows("cooldown")] == [270, 660, 970]
    two = make_schedule("wsd-s", peak_lr=1e-3, budgets=(300, 700), cooldown=0.1)
    np.testing.assert_array_equal(two.values(), rates[:700])


@pytest.mark.parametrize(
    ("schedule", "hill", "area"),
    [
        (Constant(peak_lr=0.1, steps=40), 0.06250000, 4.0),
        (LinearToFloor(peak_lr=0.1, steps=40), 0.01812519, 2.05),
        (CosineSchedule(peak_lr=0.1, steps=40), 0.02029867, 2.05),
        (WSD(peak_lr=0.1, steps=40, cooldown=1.0, shape=OneMinusSqrt()), 0.01458866, 1.38652),
        (WSD(peak_lr=0.1, steps=40, cooldown=1.0, shape=Inverse()), 0.01199321, 1.07022),
    ],
    ids=["constant", "linear", "cosine", "1-sqrt", "inverse"],
)
def test_hill_of_a_noisy_quadratic_under_each_decay(schedule, hill, area):
    """h = 2, noise 1.5, from the stationary hill of rate 0.1: values of an independent calculation."""
    variance = 0.0625
    for lr in schedule.values():
        variance = (1 - 2 * lr) ** 2 * variance + 1.5**2 * lr**2
    assert variance == pytest.approx(hill, abs=5e-9)
    assert schedule.area() == pytest.approx(area, abs=5e-6)


# --- the convention beside public code -------------------------------------------------------------------------------
def test_boundary_values_of_the_convention():
    """100 updates, 10 of warmup, 20 of cooldown: the row that public code fills in five different ways."""
    wsd = WSD(peak_lr=1.0, steps=100, warmup=10, cooldown=0.2)
    assert wsd.lr(0) == 1 / 10
    assert np.flatnonzero(wsd.values() == 1.0)[0] == 9
    assert wsd.lr(80) == 1.0
    assert wsd.lr(81) == pytest.approx(19 / 20)
    assert wsd.lr(99) == pytest.approx(1 / 20)
    cosine = CosineSchedule(peak_lr=1.0, steps=100, warmup=10)
    assert cosine.lr(0) == 1 / 10
    assert np.flatnonzero(cosine.values() == 1.0).tolist() == [9, 10]
    assert cosine.lr(99) == pytest.approx(0.0003, abs=5e-5)


@given(steps=st.integers(2, 200), data=st.data())
def test_wsd_is_the_naive_loop(steps, data):
    """nanochat's rule, the public one that ours agrees with, written as the loop it is."""
    n = data.draw(st.integers(1, steps))
    w = data.draw(st.integers(0, min(steps - n, steps - 1)))
    naive = []
    for t in range(steps):
        if t < w:
            naive.append((t + 1) / w)
        elif t < steps - n:
            naive.append(1.0)
        else:
            progress = (steps - t) / n
            naive.append(progress * 1.0 + (1 - progress) * 0.1)
    schedule = WSD(peak_lr=1.0, steps=steps, warmup=w, cooldown=n / steps, shape=Linear(floor=0.1))
    np.testing.assert_allclose(schedule.values(), naive, rtol=1e-13)


@pytest.mark.parametrize("decay", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize(("warmup", "floor"), [(0, 0.0), (7, 0.0), (0, 0.1)])
def test_agrees_with_transformers_wsd(decay, warmup, floor):
    """Their update t of the warmup has t/w of the peak, ours (t + 1)/w; from update w on they are the same."""
    transformers = pytest.importorskip("transformers")
    theirs = torch_rates(
        lambda optimizer: transformers.get_wsd_schedule(
            optimizer, warmup, 20, num_training_steps=60, decay_type=decay, min_lr_ratio=floor
        ),
        60,
    )
    ours = make_schedule("wsd", peak_lr=0.3, steps=60, warmup=warmup, cooldown=1 / 3, shape=decay, floor=floor).values()
    np.testing.assert_allclose(ours[warmup:], theirs[warmup:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours[: max(warmup - 1, 0)], theirs[1 : max(warmup, 1)], rtol=0, atol=1e-12)


def test_agrees_with_transformers_cosine():
    transformers = pytest.importorskip("transformers")
    theirs = torch_rates(lambda o: transformers.get_cosine_schedule_with_warmup(o, 7, 60), 60)
    ours = CosineSchedule(peak_lr=0.3, steps=60, warmup=7).values()
    np.testing.assert_allclose(ours[7:], theirs[7:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours[:6], theirs[1:7], rtol=0, atol=1e-12)


# torch's scheduler -> ours; torch's `total_iters`, `T_max` and `T_0` count updates as our cooldowns do.
TORCH = {
    "LinearLR as warmup": (
        lambda lrs, o: lrs.LinearLR(o, start_factor=1 / 8, end_factor=1.0, total_iters=7),
        Constant(peak_lr=0.3, steps=40, warmup=8),
    ),
    "LinearLR as decay": (
        lambda lrs, o: lrs.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=40),
        LinearToFloor(peak_lr=0.3, steps=40, floor=0.1),
    ),
    "CosineAnnealingLR": (
        lambda lrs, o: lrs.CosineAnnealingLR(o, T_max=40, eta_min=0.03),
        CosineSchedule(peak_lr=0.3, steps=40, floor=0.1),
    ),
    "CosineAnnealingWarmRestarts": (
        lambda lrs, o: lrs.CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2, eta_min=0.03),
        CyclicCosine(peak_lr=0.3, steps=35, budgets=(5, 15, 35), floor=0.1),
    ),
    "PolynomialLR": (
        lambda lrs, o: lrs.PolynomialLR(o, total_iters=40, power=3.0),
        make_schedule("wsd", peak_lr=0.3, steps=40, cooldown=1.0, shape="power", exponent=3.0),
    ),
    "ExponentialLR": (
        lambda lrs, o: lrs.ExponentialLR(o, gamma=0.01 ** (1 / 40)),
        make_schedule("wsd", peak_lr=0.3, steps=40, cooldown=1.0, shape="exponential", floor=0.01),
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), TORCH.values(), ids=TORCH)
def test_agrees_with_torch(theirs, ours):
    lr_scheduler = pytest.importorskip("torch.optim.lr_scheduler")
    rates = torch_rates(lambda optimizer: theirs(lr_scheduler, optimizer), ours.total)
    np.testing.assert_allclose(ours.values(), rates, rtol=0, atol=1e-12)


def torch_rates(make, steps):
    """The rates that a torch scheduler gives to an optimizer of peak 0.3."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


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


@given(schedule=st.one_of(schedules(), joined()))
def test_phases_and_windows_tell_the_same(schedule):
    codes = schedule.phases()
    assert codes.dtype == np.int8
    assert [schedule.phase(t) for t in range(schedule.total)] == [Phase(c).name.lower() for c in codes]
    seen = np.full(schedule.total, -1)
    for code, name in enumerate(("warmup", "stable", "cooldown")):
        windows = schedule.windows(name)
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
    [(0.1, 10, 1), (0.29, 100, 29), (1 / 3, 10, 3), (0.25, 10, 2), (0.35, 10, 4), (0.999, 10, 10), (0.06, 10, 1)],
)
def test_fractions_round_to_the_nearest_whole_update(cooldown, of, updates):
    assert WSD(peak_lr=1.0, steps=of, cooldown=cooldown).windows("cooldown") == [(of - updates, of)]


@pytest.mark.parametrize(
    ("steps", "cycles", "ends"), [(20, 3, [7, 13, 20]), (11, 3, [4, 7, 11]), (10, 4, [2, 5, 8, 10]), (3, 3, [1, 2, 3])]
)
def test_equal_cycles_end_at_the_nearest_whole_update(steps, cycles, ends):
    assert CyclicCosine(peak_lr=1.0, steps=steps, cycles=cycles).edges.tolist() == [0, *ends]
    assert CyclicCosine(peak_lr=1.0, steps=20).edges.tolist() == [0, 7, 13, 20]


# --- make_schedule ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, Inverse(floor=0.1)),
        ({"floor": 0.3}, Inverse(floor=0.3)),
        ({"shape": "cosine"}, Cosine()),
        ({"shape": "cosine", "floor": 0.3}, Cosine(floor=0.3)),
        ({"shape": Cosine(floor=0.3)}, Cosine(floor=0.3)),
        ({"shape": {"name": "cosine", "floor": 0.3}}, Cosine(floor=0.3)),
    ],
    ids=["default", "floor alone", "name", "name and floor", "value", "dict"],
)
def test_shape_can_be_given_in_every_way(options, shape):
    made = make_schedule("wsd-s", peak_lr=1.0, steps=60, **options)
    assert made.shape == shape
    assert isinstance(made.shape, Shape)


@pytest.mark.parametrize(
    "row", [(30, 60), [30, 60], np.array([30, 60]), iter((30, 60))], ids=lambda x: type(x).__name__
)
def test_budgets_can_be_any_row(row):
    made = make_schedule("wsd-s", peak_lr=1.0, budgets=row)
    assert made == WSDS(peak_lr=1.0, steps=60, budgets=(30, 60))
    assert hash(WSDS(peak_lr=1.0, steps=60, budgets=[30, 60])) == hash(made)


def test_numbers_of_any_kind_become_plain_ones():
    made = make_schedule(
        "wsd", peak_lr=np.float32(0.5), steps=np.int64(60), warmup=np.uint8(5), cooldown=np.float64(0.2)
    )
    assert json.loads(json.dumps(made.to_dict()))["steps"] == 60
    assert made == WSD(peak_lr=0.5, steps=60, warmup=5, cooldown=0.2)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64])
def test_steps_of_any_whole_type(kind):
    run = CosineSchedule(peak_lr=1.0, steps=100)
    assert run.lr(kind(99)) == run.values()[99]
    np.testing.assert_array_equal(run.lr(np.array([99, 0], dtype=kind)), run.values()[[99, 0]])


def test_no_steps_give_no_rates():
    assert Constant(peak_lr=1.0, steps=3).lr([]).shape == (0,)


# --- bad input -------------------------------------------------------------------------------------------------------
WHOLE = [-1, 1.5, math.nan, math.inf, "5", None, True, [5]]


@every_schedule
@pytest.mark.parametrize("peak", [0, -1.0, math.nan, math.inf, "0.1", None, True, [0.1], 10**400], ids=repr)
def test_bad_peaks_are_refused(name, peak):
    with pytest.raises(InputError, match=r"peak_lr must be a (finite )?number in \(0, inf\), got"):
        by_name(name, peak_lr=peak)


@every_schedule
@pytest.mark.parametrize("steps", [0, *(w for w in WHOLE if w is not None)], ids=repr)
def test_bad_lengths_are_refused(name, steps):
    with pytest.raises(InputError, match=r"steps \(updates of the run\) must be a whole number of at least 1, got"):
        by_name(name, steps=steps)


@every_schedule
@pytest.mark.parametrize("warmup", WHOLE, ids=repr)
def test_bad_warmups_are_refused(name, warmup):
    with pytest.raises(InputError, match=r"warmup \(updates\) must be a whole number of at least 0, got"):
        by_name(name, warmup=warmup)


@every_schedule
@pytest.mark.parametrize("warmup", [60, 61])
def test_a_warmup_as_long_as_the_run_is_refused(name, warmup):
    with pytest.raises(InputError, match="warmup must be shorter than the run of 60 updates"):
        by_name(name, warmup=warmup)


@every_schedule
@pytest.mark.parametrize("step", [-1, 60, [0, 60], [-1, 0], np.array([[3], [99]])], ids=str)
def test_a_step_outside_the_run_is_refused(name, step):
    with pytest.raises(InputError, match=r"step must lie in 0\.\.59 for a run of 60 updates, got (-1|60|99)"):
        by_name(name).lr(step)


@every_schedule
@pytest.mark.parametrize("step", [0.0, 1.5, True, None, "1", [0.0], [True]], ids=repr)
def test_a_step_that_is_not_a_whole_number_is_refused(name, step):
    with pytest.raises(InputError, match=r"step must be whole numbers in 0\.\.59"):
        by_name(name).lr(step)


def wsds(**options):
    return lambda: make_schedule("wsd-s", peak_lr=1.0, **options)


BAD = {
    "unknown name": (lambda: make_schedule("zzz", peak_lr=1.0, steps=9), "choose one of: " + ", ".join(SCHEDULES)),
    "misspelt name": (lambda: make_schedule("cyclic_cosin", peak_lr=1.0, steps=9), "Did you mean 'cyclic-cosine'"),
    "no name": (lambda: make_schedule(None, peak_lr=1.0, steps=9), "unknown schedule None"),
    "no length": (lambda: make_schedule("wsd", peak_lr=1.0), "'wsd' needs steps"),
    "misspelt option": (lambda: make_schedule("wsd", peak_lr=1.0, steps=9, cool_down=0.5), "Did you mean 'cooldown'"),
    "foreign option": (lambda: make_schedule("constant", peak_lr=1.0, steps=9, floor=0.1), "takes no option 'floor'"),
    "misspelt shape": (lambda: make_schedule("wsd", peak_lr=1.0, steps=9, shape="lineer"), "Did you mean 'linear'"),
    "shape of another kind": (lambda: WSD(peak_lr=1.0, steps=9, shape="linear"), "shape must be a decay shape"),
    "no shape": (lambda: make_schedule("wsd", peak_lr=1.0, steps=9, shape=None), "shape must be a decay shape"),
    "floor beside shape value": (wsds(steps=60, shape=Linear(), floor=0.1), "give floor inside the shape"),
    "floor beside shape dict": (wsds(steps=60, shape={"name": "linear"}, floor=0.1), "give floor inside the shape"),
    "exponent of a shape without": (wsds(steps=60, shape="linear", exponent=2), "takes no option 'exponent'"),
    "cooldown zero": (lambda: WSD(peak_lr=1.0, steps=9, cooldown=0.0), r"cooldown .*in \(0, 1\], got 0"),
    "cooldown above one": (lambda: WSD(peak_lr=1.0, steps=9, cooldown=1.1), r"cooldown .*in \(0, 1\], got 1.1"),
    "cooldown nan": (lambda: WSD(peak_lr=1.0, steps=9, cooldown=math.nan), "cooldown .*got nan"),
    "cooldown below an update": (lambda: WSD(peak_lr=1.0, steps=9, cooldown=0.05), "shorter than one update"),
    "no room": (lambda: WSD(peak_lr=1.0, steps=9, warmup=5, cooldown=0.6), r"warmup \(5\) and cooldown .* exceed"),
    "wsd-s whole cooldown": (wsds(steps=60, cooldown=1.0), r"cooldown .*in \(0, 1\), got 1"),
    "wsd-s text cooldown": (wsds(budgets=(9, 20), cooldown="x", cooldown_of="trunk"), "cooldown .*got 'x'"),
    "wsd-s nan cooldown": (wsds(budgets=(9, 20), cooldown=math.nan, cooldown_of="trunk"), "cooldown .*got nan"),
    "unknown accounting": (wsds(steps=60, cooldown_of="cycles"), "choose one of: cycle, budget, trunk.*mean 'cycle'"),
    "trunk without budgets": (wsds(steps=60, cooldown_of="trunk"), "needs the nominal budgets"),
    "budgets fall": (wsds(budgets=(20, 10)), "budgets must increase, got 20, 10"),
    "budgets repeat": (wsds(budgets=(20, 20)), "budgets must increase"),
    "budgets fraction": (wsds(budgets=(10.5, 20)), "budgets .*whole number .*got 10.5"),
    "budgets zero": (wsds(budgets=(0, 20)), "budgets .*of at least 1, got 0"),
    "budgets text": (wsds(budgets="10,20"), "budgets must be a row of whole numbers"),
    "budgets number": (wsds(budgets=20), "budgets must be a row of whole numbers"),
    "budgets of text": (wsds(budgets=("a",), cycles=2), "budgets .*got 'a'"),
    "budgets against cycles": (wsds(budgets=(20, 40), cycles=3), "2 budgets make 2 cycles, got cycles=3"),
    "budgets against steps": (wsds(budgets=(20, 40), steps=50), "make a run of 40 updates, got steps=50"),
    "trunk budgets against steps": (
        wsds(budgets=(20, 40), steps=40, cooldown_of="trunk"),
        "make a run of 42 updates, got steps=40",
    ),
    "no cycles": (wsds(steps=60, cycles=0), "cycles must be a whole number from 1 to 60, got 0"),
    "more cycles than steps": (wsds(steps=60, cycles=61), "from 1 to 60, got 61"),
    "cycle without cooldown": (wsds(steps=12, cycles=6), "shorter than one update"),
    "overlapping cooldowns": (wsds(budgets=(100, 110), cooldown=0.5, cooldown_of="budget"), "does not fit between"),
    "warmup longer than a cycle": (wsds(steps=60, warmup=19), "cycle 1 of wsd-s has 18 updates before its cooldown"),
    "rewarmup longer than a cycle": (wsds(steps=60, rewarmup=19), "cycle 2 of wsd-s has 18 updates before"),
    "cosine cycle all warmup": (
        lambda: make_schedule("cyclic-cosine", peak_lr=1.0, steps=60, warmup=20),
        "cycle 1 of cyclic-cosine has 20 updates, warmup 20 leaves none",
    ),
    "cosine budgets against steps": (
        lambda: make_schedule("cyclic-cosine", peak_lr=1.0, steps=60, budgets=(20, 50)),
        "make a run of 50 updates, got steps=60",
    ),
    "cosine floor": (lambda: CosineSchedule(peak_lr=1.0, steps=9, floor=1.5), "floor .*got 1.5"),
    "cyclic cosine floor": (lambda: CyclicCosine(peak_lr=1.0, steps=9, floor=-0.5), "floor .*got -0.5"),
    "linear floor": (lambda: LinearToFloor(peak_lr=1.0, steps=9, floor=math.nan), "floor .*got nan"),
    "timescale zero": (lambda: InverseSqrtSchedule(peak_lr=1.0, steps=9, timescale=0.0), r"timescale .*\(0, inf\)"),
    "unknown phase": (lambda: Constant(peak_lr=1.0, steps=9).windows("warm-up"), "unknown phase .*mean 'warmup'"),
    "area backwards": (lambda: Constant(peak_lr=1.0, steps=9).area(5, 3), "start must be a whole number from 0 to 3"),
    "area beyond the end": (lambda: Constant(peak_lr=1.0, steps=9).area(0, 10), "stop must be .* from 0 to 9, got 10"),
    "empty description": (lambda: schedule_from_dict({}), "unknown schedule None"),
    "description without peak": (lambda: schedule_from_dict({"name": "constant", "steps": 9}), "peak_lr .*got None"),
    "joined of nothing": (lambda: schedule_from_dict({"name": "joined", "peak_lr": 1.0}), "needs at least one update"),
    "joined with more": (
        lambda: schedule_from_dict({"name": "joined", "peak_lr": 1.0, "steps": 9}),
        "no option 'steps'",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("field", ["rewarmup", "cycles"])
@pytest.mark.parametrize("value", [w for w in WHOLE if w is not None], ids=repr)
@pytest.mark.parametrize("name", ["wsd-s", "cyclic-cosine"])
def test_bad_whole_numbers_of_cycles(name, field, value):
    with pytest.raises(InputError, match=f"{field}.* must be a whole number"):
        by_name(name, **{field: value})


@given(shape=shapes())
def test_a_bad_schedule_fails_at_construction_not_when_the_decay_starts(shape):
    """Misspelt decays in public code fail after nine tenths of the run; here the value cannot exist."""
    with pytest.raises(InputError):
        WSD(peak_lr=1.0, steps=100, shape=shape.name)
