"""Schedules: every way to give their fields, and one clear message for each bad one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given

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
    make_schedule,
    schedule_from_dict,
)
from riverval.segments import Ramp
from riverval.shapes import Cosine, Inverse, Linear, Shape

from .strategies import by_name, shapes

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


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
    with pytest.raises(
        InputError, match=r"peak_lr \(peak learning rate, --lr\) must be a (finite )?number in \(0, inf\), got"
    ):
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
    "exponent that underflows": (
        wsds(steps=30_000, shape="power", exponent=500.0),
        "the decay power falls to exactly zero before the last of its 1000 updates",
    ),
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
    "cooldown of one update": (
        lambda: WSD(peak_lr=1.0, steps=10, cooldown=0.1),
        "a cooldown of 0.1 of 10 updates is 1 update, which would still have the full rate; use a larger fraction or",
    ),
    "cycles with cooldowns of one update": (wsds(steps=20), "0.1 of 7 updates is 1 update, .* still .* the full rate"),
    "cosine over one update": (
        lambda: CosineSchedule(peak_lr=1.0, steps=9, warmup=8),
        "cosine of steps=9 and warmup=8 would decay over 1 update, which would still have the full rate",
    ),
    "linear over one update": (lambda: LinearToFloor(peak_lr=1.0, steps=1), "decay over 1 update, .* the full rate"),
    "cosine cycle of one update": (
        lambda: CyclicCosine(peak_lr=1.0, steps=3),
        "cycle 1 of cyclic-cosine has 1 update, warmup 0 leaves 1 to decay, which would still have the full rate",
    ),
    "cosine cycle almost all warmup": (
        lambda: CyclicCosine(peak_lr=1.0, steps=60, rewarmup=19),
        "cycle 2 of cyclic-cosine has 20 updates, warmup 19 leaves 1 to decay",
    ),
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
    "options lists what the shape takes": (
        lambda: make_schedule("wsd", peak_lr=1.0, steps=9, cycles=2),
        "it takes: warmup, cooldown, shape, floor, exponent",
    ),
    "misspelt floor": (lambda: make_schedule("wsd", peak_lr=1.0, steps=9, flor=0.1), "Did you mean 'floor'"),
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


# --- limits: refused before anything of that size is made ------------------------------------------------------------
@every_schedule
@pytest.mark.parametrize("steps", [10**9 + 1, 10**20 - 1, np.uint64(2**63), 10**400], ids=["1e9+1", "1e20", "u64", "h"])
def test_runs_of_more_than_a_thousand_million_updates_are_refused(name, steps):
    with pytest.raises(
        InputError, match=r"steps \(updates of the run\) must be a whole number from 1 to 1000000000, got"
    ):
        by_name(name, steps=steps)


@every_schedule
def test_the_longest_run_can_be_made_and_asked_without_its_rates(name):
    run = by_name(name, steps=10**9, warmup=10**8)
    assert run.total == 10**9
    assert run.lr([0, 10**8, 10**9 - 1])[1] == 1.0
    assert sum(b - a for phase in ("warmup", "stable", "cooldown") for a, b in run.windows(phase)) == 10**9


HUGE = 10**20 - 1
LIMITS = {
    "budgets": (
        wsds(budgets=(10, HUGE)),
        r"budgets \(updates\) must be a whole number from 1 to 1000000000, got 9{20}",
    ),
    "budgets of cosines": (
        lambda: make_schedule("cyclic-cosine", peak_lr=1.0, budgets=(10, HUGE)),
        "budgets .* from 1 to 1000000000",
    ),
    "trunk of budgets": (wsds(budgets=(9 * 10**8, 10**9), cooldown_of="trunk"), "steps .*1000000000, got 1090000000"),
    "cycles": (wsds(steps=10**9, cycles=10**8), "cycles must be a whole number from 1 to 100000, got 100000000"),
    "warmup": (lambda: Constant(peak_lr=1.0, steps=9, warmup=HUGE), "warmup must be shorter than the run"),
    "rewarmup": (wsds(steps=60, rewarmup=HUGE), "fewer than its warmup"),
    "segment": (
        lambda: schedule_from_dict({"name": "joined", "peak_lr": 1.0, "parts": [{"name": "stable", "steps": HUGE}]}),
        "steps .* from 0 to 1000000000",
    ),
    "length of a segment": (lambda: Ramp(steps=5, length=HUGE), "length .* from 5 to 1000000000"),
    "repeat": (lambda: Constant(peak_lr=1.0, steps=10).repeat(HUGE), "at most 1000000000 updates, got 9{20}0"),
    "join": (lambda: Constant(peak_lr=1.0, steps=10**9).join(Constant(peak_lr=1.0, steps=1)), "got 1000000001"),
    "branch": (lambda: Constant(peak_lr=1.0, steps=9).branch(5, HUGE), "steps .* from 2 to 1000000000"),
}


@pytest.mark.parametrize(("make", "message"), LIMITS.values(), ids=LIMITS)
def test_limits(make, message):
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
