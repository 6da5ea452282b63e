"""The torch adapter: follows the schedule exactly, survives a restart, and refuses an optimizer it does not fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings

from riverval.errors import InputError, MissingExtraError
from riverval.schedules import SCHEDULES, make_schedule, torch_scheduler

from .strategies import schedules

torch = pytest.importorskip("torch")

RUN = make_schedule("wsd-s", peak_lr=0.3, steps=60, warmup=5, rewarmup=2)


def optimizer_of(*rates, last_epoch=None):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    if last_epoch is not None:  # as torch wants it of an optimizer that goes on
        for group in groups:
            group["initial_lr"] = group["lr"]
    return torch.optim.SGD(groups, lr=1.0)


def follow(optimizer, scheduler, updates):
    """The rates that the next updates use; one row for each parameter group."""
    rates = []
    for _ in range(updates):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return np.array(rates).T


@settings(max_examples=20)
@given(schedule=schedules())
def test_follows_the_schedule_bit_by_bit(schedule):
    optimizer = optimizer_of(schedule.peak_lr)
    rates = follow(optimizer, torch_scheduler(schedule, optimizer), schedule.total)
    np.testing.assert_array_equal(rates[0], schedule.values())


@pytest.mark.parametrize("name", SCHEDULES)
def test_follows_every_registered_schedule(name):
    schedule = make_schedule(name, peak_lr=0.3, steps=60, warmup=5)
    optimizer = optimizer_of(0.3)
    np.testing.assert_array_equal(follow(optimizer, torch_scheduler(schedule, optimizer), 60)[0], schedule.values())


@pytest.mark.parametrize("at", [1, 4, 5, 18, 19, 20, 21, 59])
def test_goes_on_from_a_saved_state(at):
    optimizer = optimizer_of(0.3)
    scheduler = torch_scheduler(RUN, optimizer)
    follow(optimizer, scheduler, at)
    saved = scheduler.state_dict(), optimizer.state_dict()
    fresh = optimizer_of(0.3)
    resumed = torch_scheduler(RUN, fresh)
    resumed.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    np.testing.assert_array_equal(follow(fresh, resumed, 60 - at)[0], RUN.values()[at:])


@pytest.mark.parametrize("at", [1, 4, 5, 18, 19, 20, 21, 59])
def test_goes_on_when_rebuilt_at_an_update(at):
    optimizer = optimizer_of(0.3, last_epoch=at)
    # torch takes the number of the last update made, and itself goes one further.
    scheduler = torch_scheduler(RUN, optimizer, last_epoch=at - 1)
    np.testing.assert_array_equal(follow(optimizer, scheduler, 60 - at)[0], RUN.values()[at:])


def test_each_group_keeps_its_own_peak():
    optimizer = optimizer_of(0.3, 0.03, 3.0)
    rates = follow(optimizer, torch_scheduler(RUN, optimizer), 60)
    np.testing.assert_array_equal(rates[0], RUN.values())
    np.testing.assert_allclose(rates[1:], np.outer([0.1, 10.0], RUN.values()), rtol=1e-14)


def test_holds_the_last_rate_after_the_end():
    optimizer = optimizer_of(0.3)
    rates = follow(optimizer, torch_scheduler(RUN, optimizer), 65)[0]
    np.testing.assert_array_equal(rates[59:], np.full(6, RUN.values()[-1]))


def test_joined_schedules_may_rise_above_the_first_peak():
    schedule = RUN.join(make_schedule("constant", peak_lr=0.9, steps=5))
    optimizer = optimizer_of(0.3)
    np.testing.assert_array_equal(follow(optimizer, torch_scheduler(schedule, optimizer), 65)[0], schedule.values())


def test_refuses_an_optimizer_of_another_peak():
    with pytest.raises(InputError, match=r"peak_lr is 0.3 but the optimizer's groups have \[0.1, 0.2\].*with lr=0.3"):
        torch_scheduler(RUN, optimizer_of(0.1, 0.2))


@pytest.mark.parametrize(("rate", "fits"), [(0.1 * 3, True), (0.3 * (1 + 5e-10), True), (0.3 * (1 + 1e-8), False)])
def test_peaks_may_differ_by_rounding(rate, fits):
    optimizer = optimizer_of(rate)
    assert rate != RUN.peak_lr
    if fits:
        assert torch_scheduler(RUN, optimizer).base_lrs == [rate]
    else:
        with pytest.raises(InputError, match=r"peak_lr is 0.3 but"):
            torch_scheduler(RUN, optimizer)


def test_a_scheduled_optimizer_is_known_by_its_peak_not_by_its_present_rate():
    optimizer = optimizer_of(0.3)
    follow(optimizer, torch_scheduler(RUN, optimizer), 60)
    assert optimizer.param_groups[0]["lr"] != 0.3
    np.testing.assert_array_equal(follow(optimizer, torch_scheduler(RUN, optimizer), 60)[0], RUN.values())


def test_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.optim.lr_scheduler", None)
    with pytest.raises(MissingExtraError, match=r"needs torch.*pip install 'riverval\[real\]'"):
        torch_scheduler(RUN, optimizer_of(0.3))
