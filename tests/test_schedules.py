"""Schedules: known values, the published plans, and the convention beside public code.

The convention under test stands at the top of `riverval.schedules`: update t = 0..T-1 uses lr[t]; warmup is (t + 1)/w;
a cooldown starts at the full rate and reaches its floor where the run ends, so the last update is still above it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.schedules import (
    SCHEDULES,
    WSD,
    WSDS,
    Constant,
    CosineSchedule,
    CyclicCosine,
    LinearToFloor,
    make_schedule,
)
from riverval.shapes import Inverse, Linear, OneMinusSqrt

R2 = math.sqrt(0.5)

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


def test_every_registered_schedule_has_a_row_of_known_values():
    assert set(KNOWN) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
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
    n = data.draw(st.integers(2, steps))
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
