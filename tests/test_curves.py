"""Curves and the rates between the rows of a log, against closed forms and naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.curves import Curve, rates_from_log, tidy_rows
from riverval.errors import InputError

PEAK, WARM, EVERY = 3e-4, 2160, 128


def ramp(t):
    return PEAK * np.minimum((t + 1) / WARM, 1.0)


def cosine(total):
    """A half cosine to a tenth of the peak after the warmup."""
    t = np.arange(total)
    z = np.clip((t - WARM) / (total - WARM), 0, 1)
    return np.where(t < WARM, ramp(t), PEAK * (0.1 + 0.45 * (1 + np.cos(np.pi * z))))


def decay(total, start, form):
    t = np.arange(total)
    z = np.clip((t - start) / (total - start), 0, 1)
    return ramp(t) * form(z)


def two_stage(total, start, share):
    t = np.arange(total)
    return np.where(t < start, ramp(t), share * PEAK)


# Schedule, steps of the log, largest error of a rate as a share of the peak, and of the sum of the rates as a share.
CASES = {
    "constant": (ramp(np.arange(24000)), np.arange(2176, 23937, EVERY), 1e-12, 1e-12),
    "cosine": (cosine(24000), np.arange(2160, 23921, EVERY), 5e-5, 1e-5),
    # The rows lie on either side of the start of the decay, the corner between them.
    "linear": (
        decay(24000, 20000, lambda z: 1 - 0.9 * z), np.r_[np.arange(2176, 19841, 128), np.arange(20064, 23905, 128)],
        1e-12, 1e-12,
    ),
    "exponential": (
        decay(24000, 20000, lambda z: 0.1**z), np.r_[np.arange(2176, 19841, 128), np.arange(20064, 23905, 128)],
        2e-3, 5e-5,
    ),
    "two-stage": (
        two_stage(16000, 8000, 0.3), np.r_[np.arange(2176, 7937, 128), np.arange(8000, 15937, 128)], 1e-12, 1e-12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rates_are_rebuilt_from_sparse_rows(case):
    true, steps, close, close_sum = CASES[case]
    found = rates_from_log(steps, true[steps], warmup=WARM)
    true = true[: steps[-1]]
    assert found.shape == true.shape
    assert np.abs(found - true).max() < close * PEAK
    assert abs(found.sum() / true.sum() - 1) < close_sum


def test_a_jump_holds_the_old_rate_up_to_the_row_with_the_new_one():
    found = rates_from_log([0, 10, 20, 24, 34, 44], [1.0, 1.0, 1.0, 0.1, 0.1, 0.1])
    assert found.tolist() == [1.0] * 24 + [0.1] * 20


def test_a_cycle_that_jumps_back_is_no_ramp():
    t = np.arange(431)
    lr = np.where(t % 200 < 100, 1.0, 1.0 - 0.9 * (t % 200 - 100) / 100)
    found = rates_from_log(t[::10], lr[::10])
    # The last interval of a cooldown holds its first rate, which is .09 above its last one.
    assert np.abs(found - lr[:430]).max() < 0.09
    assert found[199] < 0.2
    assert found[200] == 1.0


def test_no_corner_is_put_into_a_smooth_curve():
    t = np.arange(1001)
    lr = 0.5 * (1 + np.cos(np.pi * t / 1000))
    steps = t[::50]
    assert np.allclose(rates_from_log(steps, lr[steps]), np.interp(t[:1000], steps, lr[steps]), rtol=0, atol=1e-15)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=40))
def test_a_log_of_every_update_is_returned_as_it_is(rates):
    found = rates_from_log(np.arange(len(rates)), rates)
    assert found.tolist() == rates[:-1]


@given(
    st.integers(0, 9), st.lists(st.tuples(st.integers(1, 30), st.floats(0.0, 1.0)), min_size=2, max_size=20),
)  # fmt: skip
def test_rates_meet_the_rows_and_never_turn_negative_or_exceed_the_largest(first, gaps):
    steps = first + np.cumsum([0, *(gap for gap, _ in gaps[1:])])
    rates = np.array([rate for _, rate in gaps])
    found = rates_from_log(steps, rates, warmup=first)
    assert found.size == steps[-1]
    assert np.allclose(found[steps[:-1]], rates[:-1], rtol=0, atol=1e-12)
    assert found.min() >= 0
    assert found.max() <= rates.max()


def test_what_comes_after_the_last_row():
    assert rates_from_log([0, 2, 4], [1.0, 1.0, 0.5], until=3).tolist() == [1.0, 1.0, 1.0]  # cut; the corner is in it
    assert rates_from_log([0, 2, 4], [1.0, 0.75, 0.5], until=7).tolist() == [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25]
    assert rates_from_log([0, 1, 2], [1.0, 0.6, 0.1], until=4).tolist() == [1.0, 0.6, 0.1, 0.0]  # not below 0
    assert rates_from_log([0, 1, 2], [0.1, 0.1, 0.1], until=4).tolist() == [0.1] * 4
    with pytest.raises(InputError, match="rates up to step 2 and losses up to 5"):
        rates_from_log([0, 1, 2], [1.0, 1.0, 1.0], until=5)


def test_what_comes_before_the_first_row():
    assert rates_from_log([4, 6], [1.0, 1.0], warmup=2).tolist() == [0.5, 1, 1, 1, 1, 1]
    assert rates_from_log([4, 6], [0.5, 0.5], warmup=2, peak_lr=1.0).tolist() == [0.5, 1, 1, 1, 0.5, 0.5]
    assert rates_from_log([4, 6], [0.5, 0.5], warmup=0).tolist() == [0.5] * 6
    assert rates_from_log([2, 4], [0.5, 0.25]).tolist() == [0.5, 0.5, 0.5, 0.375]  # within two intervals: held
    assert rates_from_log([2, 4], [0.5, 1.0]).tolist() == [0.0, 0.25, 0.5, 0.75]  # or a warmup that is under way


@pytest.mark.parametrize(
    ("steps", "options", "told"),
    [
        ([20000, 20128], {}, "starts at step 20000 and does not say.*warmup"),
        ([20, 30], {"warmup": 21}, "within a warmup of 21"),
        ([1, 2], {"peak_lr": 1.0}, "give the warmup too"),
        ([2, 1], {}, "step 1 follows step 2"),
        ([-1, 1], {}, "at least 0"),
    ],
)
def test_logs_that_do_not_say_enough_are_refused(steps, options, told):
    with pytest.raises(InputError, match=told):
        rates_from_log(steps, [1.0, 1.0], **options)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": [2, 1]}, "step 1 follows step 2; sort"),
        ({"steps": [2, 2]}, "step 2 is there twice"),
        ({"steps": [0, 2]}, "after 0 updates and the rates of 3; steps must lie in 1..3"),
        ({"steps": [1, 4]}, "after 4 updates and the rates of 3"),
        ({"steps": [1, 1.5]}, "whole numbers"),
        ({"loss": [1.0, np.nan]}, "loss is nan at step 2"),
        ({"loss": [1.0]}, "one length"),
        ({"loss": ["a", "b"]}, "numbers only"),
        ({"steps": [1], "loss": [1.0]}, "at least 2"),
        ({"lr": [1.0, -1.0, 1.0]}, "curve 'c': lr must be finite rates of at least 0, got -1 for update 1"),
        ({"lr": []}, "no updates"),
        ({"final_loss": np.inf}, "final_loss"),
    ],
)
def test_bad_curves_are_refused(change, told):
    given = {"name": "c", "lr": [1.0, 1.0, 1.0], "steps": [1, 2], "loss": [2.0, 1.0], **change}
    with pytest.raises(InputError, match=told):
        Curve(**given)


def test_a_curve_is_frozen():
    lr = np.ones(3)
    curve = Curve("c", lr, [1, 3], [2, 1], facts={"notes": ["said"]})
    lr[0] = 5
    assert curve.lr[0] == 1
    assert curve.steps.dtype == np.int64
    assert curve.loss.dtype == np.float64
    assert (curve.total, curve.notes) == (3, ["said"])
    with pytest.raises(ValueError, match="read-only"):
        curve.loss[0] = 1


def test_repair_does_what_it_says():
    rows, notes = tidy_rows(
        "log", {"step": [5, 6, 1, 2, 5, 7], "loss": [1, 2, 3, np.nan, 4, 5], "lr": np.arange(6)}, repair=True
    )
    assert rows["step"].tolist() == [1, 5, 6, 7]
    assert rows["loss"].tolist() == [3, 4, 2, 5]  # of the two rows of step 5 the last
    assert rows["lr"].tolist() == [2, 4, 1, 5]
    assert len(notes) == 3
    assert "first at step 2" in notes[0]
    assert notes[1].endswith(": 1")
    assert tidy_rows("log", {"step": [1, 2], "loss": [1, 1]}, repair=True)[1] == []


def test_rates_are_never_repaired():
    with pytest.raises(InputError, match="lr must be finite"):
        tidy_rows("log", {"step": [1, 2], "loss": [1, 1], "lr": [1, np.nan]}, repair=True)
