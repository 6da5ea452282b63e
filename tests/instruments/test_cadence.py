"""The cadence of diagnostics under a budget, and the phases that are read off the rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval import make_schedule
from riverval._cadence import Cadence, fair_parts
from riverval._phases import guessed_phases, phases_of

COSTS = st.lists(st.floats(1e-3, 50.0), min_size=1, max_size=5)


@given(demands=COSTS, total=st.floats(1e-3, 1.0))
def test_parts_are_fair(demands, total):
    named = {str(k): d for k, d in enumerate(demands)}
    parts = fair_parts(named, total)
    assert sum(parts.values()) == pytest.approx(total)
    for name, demand in named.items():
        # Who gets less than it wants gets as much as anyone.
        assert parts[name] >= demand - 1e-12 or parts[name] >= max(parts.values()) - 1e-12


def run(costs, budget, updates=600, every=10, update=0.1):
    """The account of a run whose diagnostics take `costs` seconds, in updates of 0.1 s."""
    now = [0.0]
    names = [str(k) for k in range(len(costs))]
    cadence = Cadence(dict.fromkeys(names, every), budget, clock=lambda: now[0])
    cadence.start()
    for state in range(updates + 1):
        for name in cadence.take(state):
            affordable = cadence.affordable(name, state)
            seconds = costs[int(name)] if affordable else 0.0
            now[0] += seconds
            cadence.charge(name, seconds, "measured" if affordable else "over_budget")
        now[0] += update
    return cadence


@given(costs=COSTS, budget=st.floats(0.02, 1.0))
def test_the_budget_holds_but_for_the_first_of_each(costs, budget):
    cadence = run(costs, budget)
    # The part of one diagnostic rests on the demands at that time, so the sum may be over by one measurement of each.
    assert cadence.seconds <= budget * cadence.elapsed + 2 * sum(costs)
    assert all(cost.tried >= 1 for cost in cadence.costs.values())


def test_the_share_comes_near_the_budget():
    cadence = run([1.0], 0.1, updates=5000)
    assert 0.09 < cadence.seconds / cadence.elapsed <= 0.1


def test_without_a_budget_everything_due_is_measured():
    assert run([5.0, 1.0], None).costs["0"].counts == {
        "not_due": 0, "measured": 61, "over_budget": 0, "failed": 0, "unfinished": 0, "unavailable": 0,
    }  # fmt: skip


def test_what_is_cheap_is_measured_though_others_are_dear():
    cadence = run([0.005, 20.0, 30.0], 0.1, updates=20_000)
    counts = [cost.counts["measured"] for cost in cadence.costs.values()]
    assert counts[0] > 1500
    assert min(counts[1:]) > 2  # and none starves


def test_what_is_unavailable_costs_nothing_of_its_first_time():
    cadence = run([1.0], 0.01, updates=0)
    cadence.costs["0"].counts.update(measured=0, unavailable=1)
    assert cadence.affordable("0", 10)


def test_a_state_that_is_not_offered_is_made_up_for_at_the_next():
    """As where the loop reports every tenth update only, after the updates 1, 11, 21, ..."""
    cadence = Cadence({"a": 20, "b": 25}, None)
    taken = {state: cadence.take(state) for state in [0, *range(1, 100, 10)]}
    assert [s for s, names in taken.items() if "a" in names] == [0, 21, 41, 61, 81]
    assert [s for s, names in taken.items() if "b" in names] == [0, 31, 51, 81]


def test_the_account_ends_with_the_run():
    now = [0.0]
    cadence = Cadence({"a": 1}, None, clock=lambda: now[0])
    cadence.charge("a", 1.0, "measured")
    now[0] = 2.0
    cadence.stop()
    now[0] = 200.0
    assert "probes took 50.0% of 2.0 s" in cadence.table([])


def test_the_table_adds_up():
    cadence = run([1.0, 0.5], None, updates=20)
    told = cadence.table([("every update", {"measured": 20}, 0.25)])
    assert "probes took 68.2% of 6.6 s (no budget)" in told
    assert len(told.splitlines()) == 5
    assert len({len(line) for line in told.splitlines()[:4]}) == 1


# --- phases ---------------------------------------------------------------------------------------------------------
SCHEDULES = {
    "constant": {}, "wsd": {}, "wsd with warmup": {"warmup": 20}, "cosine": {}, "cosine with warmup": {"warmup": 30},
    "wsd sqrt": {"shape": "1-sqrt"}, "wsd floor": {"floor": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("steps", [50, 1000, 20_000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_phases_are_those_of_the_schedule(name, steps):
    schedule = make_schedule(name.split()[0], peak_lr=0.3, steps=steps, **SCHEDULES[name])
    np.testing.assert_array_equal(phases_of(schedule.values()), schedule.phases())


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(0.0, 2e-7))
def test_rounding_of_the_rates_changes_nothing(seed, size):
    schedule = make_schedule("wsd", peak_lr=0.3, steps=500, warmup=10)
    noise = 1.0 + size * np.random.default_rng(seed).uniform(-1, 1, 500)
    np.testing.assert_array_equal(phases_of(schedule.values() * noise), schedule.phases())


@given(scale=st.floats(1e-8, 1e8))
def test_phases_do_not_depend_on_the_unit(scale):
    rates = make_schedule("wsd", peak_lr=1.0, steps=300, warmup=30).values()
    np.testing.assert_array_equal(phases_of(rates * scale), phases_of(rates))


def test_stairs_belong_to_the_way_down_and_landings_do_not():
    stairs = np.repeat(0.5 * (1 + np.cos(np.pi * np.arange(60) / 60)), 100)
    assert set(phases_of(stairs)) == {2}
    drops = np.repeat([1.0, 0.1, 0.01], 100)
    assert np.flatnonzero(phases_of(drops) != 1).tolist() == [99, 199]


@pytest.mark.parametrize(("rates", "phases"), [([], []), ([1.0], [1]), ([1.0, 2.0], [0, 0]), ([2.0, 1.0], [2, 2])])
def test_short_runs(rates, phases):
    assert phases_of(rates).tolist() == phases


def test_the_guess_is_by_the_last_change():
    assert guessed_phases([1.0, 2.0, 2.0, 1.0]).tolist() == [1, 0, 1, 2]
    assert guessed_phases([]).tolist() == []
