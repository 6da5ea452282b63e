"""Branches: which states are meant, and the schedules of new cooldowns."""

from __future__ import annotations

import numpy as np
import pytest

from riverval.errors import InputError
from riverval.experiments.branches import cooldown_branches, last_stable_state, state_of
from riverval.schedules import make_schedule

PLAN = make_schedule("wsd", peak_lr=0.1, steps=1000, warmup=20, cooldown=0.2)


@pytest.mark.parametrize(("text", "state"), [("600", 600), ("60%", 600), ("60.04%", 600), (" 5 ", 5), ("100%", 1000)])
def test_a_state_is_an_update_or_a_part_of_the_run(text, state):
    assert state_of(text, PLAN) == state


@pytest.mark.parametrize("text", ["", "x", "60 percent", "1.5", "nan%", "inf%", "0", "-5", "1001", "101%"])
def test_what_is_no_state_is_refused(text):
    with pytest.raises(InputError, match="--from"):
        state_of(text, PLAN)


def test_the_default_is_the_end_of_the_last_stable_phase():
    assert last_stable_state(PLAN) == 800
    cycles = make_schedule("wsd-s", peak_lr=0.1, steps=300, cycles=3, cooldown=0.2)
    assert last_stable_state(cycles) == cycles.windows("cooldown")[-1][0]
    with pytest.raises(InputError, match="no stable phase"):
        last_stable_state(make_schedule("cosine", peak_lr=0.1, steps=100))


@pytest.mark.parametrize("at", [100, 600, 800])
@pytest.mark.parametrize("cooldown", [0.05, 0.2, 0.5, 0.9])
def test_the_cooldown_is_a_fraction_of_the_whole_branched_run(at, cooldown):
    (branch,) = cooldown_branches(PLAN, at, [cooldown], ["linear"])
    (start, stop), total = branch.schedule.windows("cooldown")[-1], branch.schedule.total
    assert (start, stop) == (at, total)
    assert abs((stop - start) - cooldown * total) <= 0.5 / (1 - cooldown)
    rates = branch.schedule.values()
    np.testing.assert_array_equal(rates[:at], PLAN.values()[:at])
    assert rates[at] == PLAN.lr(at)
    assert np.all(np.diff(rates[at:]) < 0)


def test_a_branch_where_the_run_itself_cools_down_is_that_run():
    (branch,) = cooldown_branches(PLAN, 800, [0.2], ["linear"])
    np.testing.assert_array_equal(branch.schedule.values(), PLAN.values())


def test_every_shape_is_made_at_every_length():
    made = cooldown_branches(PLAN, 600, [0.1, 0.4], ["linear", "1-sqrt", "power"], floor=0.1, exponent=None)
    assert [b.label for b in made] == [f"{s}-{c}" for s in ("linear", "1-sqrt", "power") for c in ("0.1", "0.4")]
    assert len({b.schedule.values().tobytes() for b in made[:4]}) == 4
    u = np.arange(400) / 400
    np.testing.assert_allclose(made[3].schedule.values()[600:], 0.1 * (0.1 + 0.9 * (1 - np.sqrt(u))))


def test_a_run_that_ends_stable_may_go_on():
    constant = make_schedule("constant", peak_lr=0.1, steps=100, warmup=10)
    (branch,) = cooldown_branches(constant, 100, [0.2], ["linear"])
    np.testing.assert_array_equal(branch.schedule.values()[:100], constant.values())
    np.testing.assert_allclose(branch.schedule.values()[100:], 0.1 * (1 - np.arange(25) / 25))
    assert branch.schedule.phase(100) == "cooldown"
    with pytest.raises(InputError, match="own cooldown ends at state 1000"):
        cooldown_branches(PLAN, 1000, [0.2], ["linear"])


@pytest.mark.parametrize(
    ("cooldowns", "shapes", "message"),
    [
        ([0.0], ["linear"], "fraction of the whole branched run"),
        ([1.0], ["linear"], "fraction of the whole branched run"),
        ([float("nan")], ["linear"], "cooldown"),
        ([0.0001], ["linear"], "has 0 updates"),
        ([0.001], ["linear"], "has 1 update,"),
        ([0.1], ["lineer"], "Did you mean 'linear'"),
        ([0.1, 0.1], ["linear"], "linear-0.1 is asked for twice"),
        ([0.1], ["cosine", "cosine"], "cosine-0.1 is asked for twice"),
    ],
)
def test_what_cannot_be_branched_is_refused(cooldowns, shapes, message):
    with pytest.raises(InputError, match=message):
        cooldown_branches(PLAN, 600, cooldowns, shapes)
