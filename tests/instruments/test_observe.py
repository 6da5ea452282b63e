"""The observer: what it records of a training, and that the training cannot tell that it is watched."""

from __future__ import annotations

import json
import math
import random
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import riverval
from riverval import store
from riverval._phases import guessed_phases
from riverval._prober import generator
from riverval.diagnostics import DIAGNOSTICS
from riverval.errors import InputError, StoreError
from riverval.hessian import HessianOperator, LossOnBatches, flat_parameters
from riverval.schema import PROBE_STATUSES, validate

from .watched import BATCHES, DATA, Run, loss_of, make_model, same

ALL = ["norms", "sketch", *DIAGNOSTICS]


def states(ds, status, name):
    """The states at which a diagnostic had this status."""
    found = ds["probe_status"].sel(diagnostic=name).values == PROBE_STATUSES.index(status)
    return ds["probe_step"].values[found].tolist()


# --- the training cannot tell ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_a_watched_run_is_bit_for_bit_the_unwatched_one(optimizer, tmp_path):
    """With dropout, batch norm and batches from torch's own generator; every diagnostic on."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    python = random.getstate()
    alone = Run(optimizer).train(14).everything()
    run = Run(optimizer)
    with run.observe(record=ALL, out=tmp_path / "run.nc") as watch:
        run.train(14, watch)
        inside = run.everything()
        assert run.model.training
    assert same(alone, inside)
    assert same(alone, run.everything())
    assert random.getstate() == python
    assert all(p.grad is not None for p in run.model.parameters())
    ds = watch.dataset()
    assert [d for d in ds["diagnostic"].values if not states(ds, "measured", d)] == []


def careless(model, batch):
    """Draws from every generator, switches the mode, and leaves gradients."""
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(1)
    model.train()
    torch.nn.functional.mse_loss(model(batch[0]), torch.zeros(len(batch[1]), 3)).backward()
    return loss_of(model, batch)


def test_a_careless_loss_is_cleaned_up_after():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    python = random.getstate()
    alone = Run().train(9).everything()
    np.random.seed(1)  # noqa: NPY002
    run = Run()
    watch = run.observe((careless, BATCHES), record=["probe_loss"]).start()
    run.train(8, watch)
    run.model.eval()
    run.model[1].train()
    modes = [m.training for m in run.model.modules()]
    held = [p.grad for p in run.model.parameters()]
    watch.close()
    assert [m.training for m in run.model.modules()] == modes
    assert all(p.grad is g for p, g in zip(run.model.parameters(), held, strict=True))
    run.model.train()
    assert same(alone, run.train(1).everything())
    assert random.getstate() == python


def test_the_comparison_can_fail():
    """Drawing one number, or one more update, is seen."""
    alone = Run().train(3).everything()
    other = Run()
    torch.rand(1)
    assert not same(alone, other.train(3).everything())
    assert not same(alone, Run().train(4).everything())


def test_gradients_that_are_kept_between_updates_survive_a_probe():
    """Accumulation without zero_grad: the gradient belongs to the training."""
    run = Run()
    with run.observe(record=["alignment", "sharpness"], every=1) as watch:
        loss_of(run.model, run.batch()).backward()
        before = [p.grad.clone() for p in run.model.parameters()]
        held = [p.grad for p in run.model.parameters()]
        run.optimizer.step()
        watch.step(1.0)
        for p, grad, values in zip(run.model.parameters(), held, before, strict=True):
            assert p.grad is grad
            assert torch.equal(p.grad, values)


def test_hooks_are_gone_after_the_close():
    run = Run()
    with run.observe() as watch:
        run.train(2, watch)
    run.train(3)
    assert watch.dataset().sizes["step"] == 2
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks


# --- every update ---------------------------------------------------------------------------------------------------
def test_norms_and_cosine_are_those_of_the_update():
    run, expected = Run(), []
    with run.observe(probe=None) as watch:
        for _ in range(5):
            run.optimizer.zero_grad()
            loss = loss_of(run.model, run.batch())
            loss.backward()
            gradient = torch.cat([p.grad.reshape(-1) for p in run.model.parameters()]).double().numpy()
            before = run.flat().astype(float)
            run.optimizer.step()
            update = run.flat() - before
            cosine = -update @ gradient / np.linalg.norm(update) / np.linalg.norm(gradient)
            norms = [np.linalg.norm(v) for v in (gradient, update, before)]
            expected.append([float(loss.detach()), *norms, cosine])
            watch.step(loss)
    ds = watch.dataset()
    names = ("train_loss", "given_norm", "update_norm", "param_norm", "update_cosine")
    np.testing.assert_allclose(np.stack([ds[n] for n in names], axis=1), expected, rtol=2e-5)


def test_the_rate_is_that_of_the_update_though_the_scheduler_has_moved_on():
    run = Run()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, gamma=0.5)
    with run.observe(every=2) as watch:
        for _ in range(4):
            loss = run.update()
            scheduler.step()
            watch.step(loss)
    ds = watch.dataset()
    np.testing.assert_allclose(ds["lr"], 0.1 * 0.5 ** np.arange(4))
    np.testing.assert_allclose(ds["probe_lr"], [0.1, 0.025, np.nan])
    assert ds["probe_step"].values.tolist() == [0, 2, 4]


def test_losses_of_micro_batches_are_averaged():
    run = Run()
    with run.observe(probe=None) as watch:
        for t in range(3):
            run.optimizer.zero_grad()
            for k in range(4):
                (loss_of(run.model, run.batch()) / 4).backward()
                if k == 3:
                    run.optimizer.step()
                watch.step(float(10 * t + k))
    ds = watch.dataset()
    assert ds["train_loss"].values.tolist() == [1.5, 11.5, 21.5]
    assert ds.attrs["notes"] == ""


def test_one_report_for_each_update_of_several_micro_batches():
    run = Run()
    with run.observe(probe=None) as watch:
        for t in range(3):
            for _ in range(2):
                loss_of(run.model, run.batch()).backward()
            run.optimizer.step()
            watch.step(float(t))
    assert watch.dataset()["train_loss"].values.tolist() == [0.0, 1.0, 2.0]


def test_updates_that_are_not_reported_have_no_loss():
    run = Run()
    with run.observe(probe=None) as watch:
        run.train(2)
        watch.step(3.0)
    np.testing.assert_array_equal(watch.dataset()["train_loss"], [np.nan, 3.0])


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_losses_that_are_reported_before_their_update_belong_to_it(micro):
    run = Run()
    with run.observe(probe=None) as watch:
        for t in range(5):
            for k in range(micro):
                loss_of(run.model, run.batch()).backward()
                watch.step(10.0 * t + k)
            run.optimizer.step()
    np.testing.assert_allclose(watch.dataset()["train_loss"], 10.0 * np.arange(5) + (micro - 1) / 2)


def test_a_step_that_was_skipped_first_does_not_turn_the_order_around():
    """As a gradient scaler does at its start: one loss without an update, then one after each."""
    run = Run()
    with run.observe(probe=None) as watch:
        watch.step(7.0)
        for t in range(4):
            run.update()
            watch.step(float(t))
    assert watch.dataset()["train_loss"].values.tolist() == [3.5, 1.0, 2.0, 3.0]


def test_clipping_is_seen_on_both_sides():
    run, found = Run(), []
    with run.observe(probe=None) as watch:
        for _ in range(3):
            run.optimizer.zero_grad()
            loss = loss_of(run.model, run.batch())
            loss.backward()
            norm = nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
            found.append(float(norm))
            run.optimizer.step()
            watch.step(loss, grad_norm=norm)
    ds = watch.dataset()
    np.testing.assert_allclose(ds["grad_norm"], found)
    np.testing.assert_allclose(ds["given_norm"], 0.1, rtol=1e-4)


def test_a_norm_that_nobody_reported_is_not_stored():
    run = Run()
    with run.observe(probe=None) as watch:
        run.train(2, watch)
    assert "grad_norm" not in watch.dataset()


def test_rates_of_every_parameter_group():
    model = make_model()
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "lr": 0.5}, {"params": parameters[2:], "lr": torch.tensor(0.25)}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    with riverval.observe(model, optimizer, (loss_of, BATCHES), budget=None) as watch:
        for _ in range(2):
            loss = loss_of(model, DATA)
            loss.backward()
            optimizer.step()
            optimizer.param_groups[1]["lr"].mul_(0.5)  # in place: what was used must have been kept
            watch.step(loss)
    ds = watch.dataset()
    assert ds["lr"].values.tolist() == [0.5, 0.5]
    assert ds["group_lr"].values.tolist() == [[0.5, 0.25], [0.5, 0.125]]


def test_a_closure_is_an_update_like_any_other():
    run = Run()
    batch = run.batch()

    def closure():
        run.optimizer.zero_grad()
        loss = loss_of(run.model, batch)
        loss.backward()
        return loss

    with run.observe(probe=None) as watch:
        for _ in range(2):
            watch.step(run.optimizer.step(closure))
    ds = watch.dataset()
    np.testing.assert_allclose(ds["update_norm"][0], 0.1 * ds["given_norm"][0], rtol=1e-5)
    np.testing.assert_allclose(ds["update_cosine"][0], 1.0, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_no_update(fused):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    norms = []
    with riverval.observe(
        model, optimizer, (loss_of, BATCHES), every=2, record=["norms", "alignment"], budget=None
    ) as watch:
        for t in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, DATA) * (math.inf if t in (0, 3) else 1.0)
            scaler.scale(loss).backward()
            scale = scaler.get_scale()
            if t not in (0, 3):
                norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters())) / scale)
            scaler.step(optimizer)
            scaler.update()
            watch.step(float(t))
    ds = watch.dataset()
    assert ds["step"].values.tolist() == [0, 1, 2, 3]
    assert ds["probe_step"].values.tolist() == [0, 2, 4]
    np.testing.assert_allclose(ds["given_norm"], norms, rtol=1e-5)
    # A fused optimizer is called for a skipped step, so its loss goes with it; else it is averaged into the next one.
    assert ds["train_loss"].values.tolist() == ([1, 2, 4, 5] if fused else [0.5, 2, 3.5, 5])
    assert states(ds, "measured", "alignment") == [0, 2]


def test_frozen_and_unused_parameters_and_sparse_gradients():
    model = nn.ModuleDict({"words": nn.Embedding(5, 3, sparse=True), "out": nn.Linear(3, 1), "unused": nn.Linear(2, 2)})
    model["out"].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with riverval.observe(model, optimizer) as watch:
        loss = model["out"](model["words"](torch.tensor([0, 0, 3]))).square().mean()
        loss.backward()
        optimizer.step()
        watch.step(loss)
    ds = watch.dataset()
    np.testing.assert_allclose(ds["update_norm"], 0.1 * ds["given_norm"], rtol=1e-4)
    assert ds.attrs["notes"] == ""


def test_a_group_that_is_added_later_is_watched():
    model = make_model()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters[:2], lr=0.1)
    with riverval.observe(model, optimizer) as watch:
        for t in range(2):
            optimizer.zero_grad()
            loss = loss_of(model, DATA)
            loss.backward()
            optimizer.step()
            watch.step(loss)
            if t == 0:
                optimizer.add_param_group({"params": parameters[2:]})
    ds = watch.dataset()
    np.testing.assert_allclose(ds["update_norm"], 0.1 * ds["given_norm"], rtol=1e-4)
    assert ds["param_norm"][1] > ds["param_norm"][0] + 0.5


def test_a_group_that_is_taken_away_has_no_rate():
    model = make_model()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=0.1)
    with riverval.observe(model, optimizer) as watch:
        for t in range(2):
            loss = loss_of(model, DATA)
            loss.backward()
            optimizer.step()
            watch.step(loss)
            if t == 0:
                del optimizer.param_groups[1]
    np.testing.assert_array_equal(watch.dataset()["group_lr"], [[0.1, 0.1], [0.1, np.nan]])


def test_a_loss_that_is_changed_in_place_later_was_kept():
    run, total = Run(), torch.zeros(())
    with run.observe(probe=None) as watch:
        for t in range(3):
            run.update()
            total.zero_()
            total += t
            watch.step(total)
    assert watch.dataset()["train_loss"].values.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("freed", [False, True])
def test_parameters_may_be_frozen_and_freed_on_the_way(freed):
    """What is measured are those of the start; others are told of."""
    run = Run()
    first = [*run.model[0].parameters()]
    for p in first:
        p.requires_grad_(not freed)
    alone = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with run.observe(record=["norms", "sketch", "alignment", "sharpness", "pca"]) as watch:
            run.train(4, watch)
            for p in first:
                p.requires_grad_(freed)
            run.train(6, watch)
    ds = watch.dataset()
    assert len(told) == freed
    assert ("require gradients that did not at the start" in ds.attrs["notes"]) == freed
    assert states(ds, "measured", "alignment") == [0, 4, 8]
    assert np.isfinite(ds["hessian_top"]).all()
    assert np.isfinite(ds["param_sketch"]).all()
    assert json.loads(ds.attrs["config"])["parameters"] == alone


MOMENTA = {"plain": {}, "heavy-ball": {"momentum": 0.9}, "nesterov": {"momentum": 0.8, "nesterov": True}}


@pytest.mark.parametrize("options", MOMENTA.values(), ids=MOMENTA)
def test_the_null_of_the_cosine_is_what_pure_noise_gives(options):
    draw = torch.Generator().manual_seed(0)
    model = nn.Linear(20_000, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, **options)
    with riverval.observe(model, optimizer) as watch:
        for _ in range(12):
            model.weight.grad = torch.randn(model.weight.shape, generator=draw)
            optimizer.step()
            watch.step(0.0)
    ds = watch.dataset()
    # The cosine of independent vectors of this length scatters by 20000^-1/2 = 0.007.
    np.testing.assert_allclose(ds["update_cosine"], ds["update_cosine_null"], atol=0.035)
    assert options or np.allclose(ds["update_cosine_null"], 1.0)


def test_the_null_of_a_resumed_optimizer_knows_of_its_past():
    run = Run()
    run.train(50)
    ds = run.watched(2, probe=None).dataset()
    np.testing.assert_allclose(ds["update_cosine_null"], math.sqrt(1 - 0.9**2))


def test_no_null_is_claimed_where_momentum_changes():
    run = Run()
    with run.observe(probe=None) as watch:
        run.train(2, watch)
        run.optimizer.param_groups[0]["momentum"] = 0.8
        run.train(2, watch)
    assert np.isfinite(watch.dataset()["update_cosine_null"].values).tolist() == [True, True, False, False]


def test_no_null_is_claimed_for_other_optimizers():
    run = Run("adamw")
    with run.observe(probe=None) as watch:
        run.train(2, watch)
    assert np.isnan(watch.dataset()["update_cosine_null"]).all()


# --- phases ---------------------------------------------------------------------------------------------------------
def follow(run, schedule, watch, updates=None):
    for lr in [schedule(t) for t in range(updates or schedule.total)]:
        run.optimizer.param_groups[0]["lr"] = float(lr)
        run.train(1, watch)


def test_phases_are_read_off_the_rates():
    schedule = riverval.make_schedule("wsd", peak_lr=0.1, steps=40, warmup=4)
    run = Run()
    with run.observe(probe=None) as watch:
        follow(run, schedule, watch)
    np.testing.assert_array_equal(watch.dataset()["phase"], schedule.phases())


@pytest.mark.parametrize("given", [False, True])
def test_phases_on_the_way_do_not_depend_on_when_they_are_asked_for(given):
    schedule = riverval.make_schedule("wsd", peak_lr=0.1, steps=40, warmup=4)
    run, early = Run(), []
    with run.observe(probe=None, schedule=schedule if given else None) as watch:
        for t in range(40):
            run.optimizer.param_groups[0]["lr"] = float(schedule(t))
            run.train(1, watch)
            if t in (0, 1, 3, 4, 20, 39):
                early.append(watch.dataset())
    for ds in early:
        expected = schedule.phases()[: ds.sizes["step"]] if given else guessed_phases(ds["lr"])
        np.testing.assert_array_equal(ds["phase"], expected)


def test_warnings_point_at_the_line_of_the_training():
    run = Run()
    with pytest.warns(RuntimeWarning, match="must give one number") as told:
        run.watched(5, probe=(vector, BATCHES), record=["probe_loss"])
    assert {Path(w.filename).name for w in told} == {"watched.py"}


def test_phases_come_from_the_schedule_that_is_given():
    schedule = riverval.make_schedule("inverse-sqrt", peak_lr=0.1, steps=20)
    run = Run()
    with run.observe(probe=None, schedule=schedule) as watch:
        follow(run, schedule, watch)
    ds = watch.dataset()
    np.testing.assert_array_equal(ds["phase"], schedule.phases())  # stable, though the rate falls
    assert json.loads(ds.attrs["config"])["schedule"] == schedule.to_dict()
    assert ds.attrs["notes"] == ""


def test_a_schedule_that_was_not_followed_is_noted():
    schedule = riverval.make_schedule("constant", peak_lr=0.2, steps=2)
    with pytest.warns(RuntimeWarning, match="update 0 used the rate 0.1, the schedule says 0.2"):
        ds = Run().watched(3, probe=None, schedule=schedule).dataset()
    assert ds["lr"].values.tolist() == [0.1] * 3
    assert "the run has 3 updates, the schedule 2" in ds.attrs["notes"]


# --- when probes are made -------------------------------------------------------------------------------------------
def test_probes_keep_to_their_cadence():
    run = Run()
    with run.observe(record=["probe_loss", "gradient", "alignment"], every=3, cadence={"gradient": 6}) as watch:
        run.train(10, watch)
    ds = watch.dataset()
    assert ds["probe_step"].values.tolist() == [0, 3, 6, 9, 10]
    assert states(ds, "measured", "probe_loss") == [0, 3, 6, 9, 10]
    assert states(ds, "measured", "gradient") == [0, 6, 10]
    assert states(ds, "measured", "alignment") == [0, 3, 6, 9]
    assert np.isnan(ds["probe_gradient_norm"].sel(probe_step=[3, 9])).all()
    assert ds["probe_seconds"].sel(diagnostic="gradient").values[[1, 3]].tolist() == [0.0, 0.0]


def test_probes_are_made_though_few_updates_are_reported():
    """Every third update, after the updates 1, 4, 7, ...: never at a multiple of 6."""
    run = Run()
    with run.observe(record=["probe_loss"], every=6) as watch:
        for t in range(18):
            loss = run.update()
            if t % 3 == 0:
                watch.step(loss)
    assert watch.dataset()["probe_step"].values.tolist() == [0, 7, 13, 18]


def test_the_end_is_probed_whole_also_where_a_probe_was_due_there():
    run = Run()
    with run.observe(record=["probe_loss", "gradient"], cadence={"gradient": 12}) as watch:
        run.train(8, watch)
    ds = watch.dataset()
    assert ds["probe_step"].values.tolist() == [0, 4, 8]
    assert states(ds, "measured", "probe_loss") == [0, 4, 8]
    assert states(ds, "measured", "gradient") == [0, 8]


def test_the_graph_of_a_probe_is_gone_when_training_goes_on(monkeypatch):
    """Also where a diagnostic waits for the update that follows: it would need room beside the training's own graph."""
    made, make = [], HessianOperator.__init__

    def noted(self, *args, **options):
        make(self, *args, **options)
        made.append(weakref.ref(self))

    monkeypatch.setattr(HessianOperator, "__init__", noted)
    run = Run()
    watch = run.observe(record=["alignment", "sharpness", "preconditioned_sharpness"]).start()
    assert len(made) == 1
    assert made[0]() is None
    watch.close()


def test_a_probe_waits_for_the_end_of_an_accumulated_update():
    run, calls = Run(), []

    def counted(model, batch):
        calls.append(1)
        return loss_of(model, batch)

    with run.observe((counted, BATCHES), record=["probe_loss"], every=2) as watch:
        for _ in range(4):
            for k in range(3):
                loss = loss_of(run.model, run.batch())
                loss.backward()
                if k == 2:
                    run.optimizer.step()
                watch.step(loss)
    assert watch.dataset()["probe_step"].values.tolist() == [0, 2, 4]
    assert len(calls) == 3 * len(BATCHES)  # the last state is not probed again at the close


def test_the_budget_stretches_the_cadence(monkeypatch):
    """A probe of 1 s in updates of 0.1 s, every 10 of them: half the time; with a budget of 10 % it is a ninth."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def slow(model, batch):
        now[0] += 1.0 / len(BATCHES)
        return loss_of(model, batch)

    run = Run()
    watch = run.observe((slow, BATCHES), record=["probe_loss"], every=10, budget=0.1)
    watch._cadence._clock = lambda: now[0]
    with watch:
        for _ in range(400):
            now[0] += 0.1
            run.train(1, watch)
    ds = watch.dataset()
    share = float(ds["diagnostic_share"].sel(diagnostic="probe_loss"))
    assert 0.05 < share <= 0.1 + 0.02  # and the first and the last
    over = states(ds, "over_budget", "probe_loss")
    assert 30 <= len(over) < 41
    assert np.isnan(ds["probe_loss"].sel(probe_step=over)).all()
    assert "budget 10%" in watch.summary()


def test_summary_names_the_cost_of_everything():
    run = Run()
    with run.observe(record=ALL) as watch:
        run.train(5, watch)
    told = watch.summary()
    for name in (*DIAGNOSTICS, "every update", "no budget"):
        assert name in told
    ds = watch.dataset()
    np.testing.assert_allclose(
        ds["diagnostic_share"] * ds["run_seconds"], ds["probe_seconds"].sum("probe_step"), rtol=1e-6
    )


# --- what fails does not stop the training --------------------------------------------------------------------------
def test_a_failing_probe_is_recorded_and_training_goes_on():
    calls = []

    def fails_second(model, batch):
        calls.append(1)
        if len(calls) == 4:
            raise ValueError("the disk with the data is gone")
        return loss_of(model, batch)

    alone = Run().train(10).everything()
    run = Run()
    with pytest.warns(RuntimeWarning, match="probe_loss failed at state 4: .*the disk with the data is gone"):
        ds = run.watched(10, probe=(fails_second, BATCHES), record=["probe_loss"]).dataset()
    assert same(alone, run.everything())
    assert states(ds, "failed", "probe_loss") == [4]
    assert states(ds, "measured", "probe_loss") == [0, 8, 10]
    assert np.isnan(ds["probe_loss"].sel(probe_step=4))
    assert "the disk with the data is gone" in ds.attrs["notes"]
    assert ds.attrs["status"] == "complete"


@pytest.mark.parametrize("place", ["riverval._prober._Guard.__init__", "riverval._prober.flat_vector"])
def test_no_room_for_a_probe_does_not_stop_the_training(monkeypatch, place):
    alone = Run().train(9).everything()
    run = Run()
    watch = run.observe(record=["norms", "alignment"]).start()
    run.train(2, watch)

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(place, full)
    with pytest.warns(RuntimeWarning, match="the observer failed: OutOfMemoryError: no room"):
        run.train(7, watch)
    monkeypatch.undo()
    watch.close()
    assert same(alone, run.everything())
    ds = watch.dataset()
    assert ds["step"].values.tolist() == list(range(9))
    assert ds["probe_step"].values[0] == 0


def test_a_batch_that_the_loss_changes_is_told():
    batches = [tuple(part.clone() for part in batch) for batch in BATCHES]

    def scales(model, batch):
        batch[0].mul_(2.0)
        return loss_of(model, batch)

    with pytest.warns(RuntimeWarning, match="probe_loss failed at state 0: it changed a batch in place"):
        ds = Run().watched(2, probe=(scales, batches), record=["probe_loss"]).dataset()
    assert states(ds, "failed", "probe_loss") == [0, 2]


def test_a_buffer_that_is_changed_behind_its_back_is_put_back():
    """Through `.data`, which leaves no trace but the values; and by a probe that is interrupted."""
    run = Run()
    statistics = run.model[1].running_mean
    before = statistics.clone()

    def shifts(model, batch):
        statistics.data.add_(1.0)
        if held:
            raise KeyboardInterrupt
        return loss_of(model, batch)

    held = []
    with pytest.warns(RuntimeWarning, match="it changed the model, which was put back"):
        run.observe((shifts, BATCHES), record=["probe_loss"]).start().close("interrupted")
    assert torch.equal(statistics, before)
    held.append(True)
    with pytest.raises(KeyboardInterrupt):
        run.observe((shifts, BATCHES), record=["probe_loss"]).start()
    assert torch.equal(statistics, before)


def test_ctrl_c_in_the_first_probe_leaves_nothing_behind(tmp_path):
    def stopped(model, batch):
        raise KeyboardInterrupt

    run = Run()
    watch = run.observe((stopped, BATCHES), out=tmp_path / "run.nc")
    with pytest.raises(KeyboardInterrupt):
        watch.start()
    assert not run.optimizer._optimizer_step_pre_hooks
    assert list(tmp_path.iterdir()) == []


def test_messages_that_differ_each_time_do_not_pile_up():
    def fails(model, batch):
        fails.calls = getattr(fails, "calls", 0) + 1
        raise ValueError(f"call {fails.calls}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = Run().watched(120, probe=(fails, BATCHES), record=["probe_loss"], every=1).dataset()
    lines = ds.attrs["notes"].splitlines()
    assert len(lines) == 101
    assert lines[-1] == "more at state 100 and 20 more: messages beyond 100 different ones are not kept"


def test_losses_without_updates_are_told():
    """The optimizer is another one than the loop's."""
    run = Run()
    other = torch.optim.SGD(run.model.parameters(), lr=0.1)
    told = "losses are reported, but the SGD that was given has never made a step"
    with pytest.warns(RuntimeWarning, match=told), riverval.observe(run.model, other) as watch:
        run.train(2, watch)
    watch = riverval.observe(run.model, other).start()
    with pytest.warns(RuntimeWarning, match=told):  # not only in the end
        run.train(1000, watch)


def test_updates_without_losses_are_told():
    run = Run()
    with pytest.warns(RuntimeWarning, match=r"watch.step\(loss\) was never called"), run.observe():
        run.train(2)


def cut(model, batch):
    return loss_of(model, batch).detach()


def ints(model, batch):
    return model(batch[0]).argmax().float()


def vector(model, batch):
    return model(batch[0])[:, 0]


def infinite(model, batch):
    return loss_of(model, batch) * math.inf


FAILING = {
    "no graph": (cut, "sharpness", "has no graph"),
    "no derivative": (ints, "sharpness", "has no graph"),
    "not a scalar": (vector, "probe_loss", "must give one number"),
    "not finite": (infinite, "sharpness", "curvature needs a finite loss"),
    "gradient not finite": (infinite, "alignment", "finite"),
}


@pytest.mark.parametrize(("loss", "name", "message"), FAILING.values(), ids=FAILING)
def test_each_way_to_fail_is_told_once_and_harmless(loss, name, message):
    alone = Run().train(9).everything()
    run = Run()
    with pytest.warns(RuntimeWarning, match=message) as told:
        ds = run.watched(9, probe=(loss, BATCHES), record=[name]).dataset()
    assert same(alone, run.everything())
    assert len(told) == 1
    assert len(states(ds, "failed", name)) >= 3
    assert ds.attrs["notes"].count("\n") == 0
    assert "more:" in ds.attrs["notes"]
    validate(ds)


def test_warnings_that_are_errors_do_not_stop_the_training_either():
    run = Run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with run.observe((vector, BATCHES), record=["probe_loss"]) as watch:
            run.train(3, watch)
    assert "must give one number" in watch.dataset().attrs["notes"]


def test_an_update_that_cannot_be_measured_is_still_made(monkeypatch):
    def broken(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr("riverval._updates._Store.keep_gradients", broken)
    alone = Run().train(3).everything()
    run = Run()
    with pytest.warns(RuntimeWarning, match="an update could not be measured: RuntimeError: no room"):
        ds = run.watched(3, probe=None).dataset()
    assert same(alone, run.everything())
    assert np.isnan(ds["given_norm"]).all()
    assert np.isfinite(ds["train_loss"]).all()


def test_two_optimizers_the_last_is_watched():
    """The update that follows is what both did; what preconditions is that of the one that is given."""
    model = make_model()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    last = torch.optim.RMSprop(model[4].parameters(), lr=0.01)
    record = ["alignment", "preconditioned_sharpness"]
    changes = []
    with riverval.observe(model, last, (loss_of, [DATA]), record=record, every=1, budget=None) as watch:
        for _ in range(3):
            model.zero_grad()
            before = flat_parameters(model)
            gradient = LossOnBatches(model, loss_of, [DATA]).gradient()[1]
            loss = loss_of(model, DATA)
            loss.backward()
            first.step()
            last.step()
            watch.step(loss)
            changes.append(-float(torch.cosine_similarity(flat_parameters(model) - before, gradient, dim=0)))
    ds = watch.dataset()
    assert ds.attrs["notes"] == ""
    np.testing.assert_allclose(ds["gradient_cosine"][:3], changes, rtol=1e-4)
    assert np.isfinite(ds["preconditioned_top"][1:]).all()


def test_an_optimizer_without_hooks_is_refused():
    class Wrapped(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.param_groups = inner, inner.param_groups

    run = Run()
    with pytest.raises(InputError, match="Wrapped wraps an optimizer and has no step hooks; give the one inside"):
        riverval.observe(run.model, Wrapped(run.optimizer))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_fused_attention_is_no_obstacle():
    torch.manual_seed(0)
    model = Attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = lambda m, x: m(x).square().mean()  # noqa: E731
    with riverval.observe(model, optimizer, (loss, [torch.randn(3, 5, 4)]), every=1, budget=None) as watch:
        for _ in range(2):
            value = loss(model, torch.randn(3, 5, 4))
            value.backward()
            optimizer.step()
            watch.step(value)
    ds = watch.dataset()
    assert ds.attrs["notes"] == ""
    assert np.isfinite(ds["hessian_top"]).all()


def test_a_probe_under_autocast_no_grad_and_inference_mode_is_the_same():
    found = []
    for context in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        run = Run()
        with context(), run.observe(record=["probe_loss", "sharpness"]) as watch:
            pass
        found.append([float(watch.dataset()[n][0]) for n in ("probe_loss", "hessian_top")])
    np.testing.assert_allclose(found, [found[0]] * 3)


# --- how a run ends -------------------------------------------------------------------------------------------------
def test_a_run_without_updates_is_a_dataset():
    with Run().observe() as watch:
        pass
    assert watch.dataset()["probe_step"].values.tolist() == [0]
    assert "step" not in watch.dataset().dims


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_what_was_recorded_outlives_the_error_that_ends_the_training(tmp_path, error):
    def train(run):
        with run.observe(out=tmp_path / "run.nc") as watch:
            run.train(6, watch)
            run.update()  # and not reported
            raise error("out of data")

    with pytest.raises(error):
        train(Run())
    ds = store.load(tmp_path / "run.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] == 7
    assert ds["probe_step"].values.tolist() == [0, 4]
    assert ("out of data" in ds.attrs["notes"]) == (error is not KeyboardInterrupt)


@pytest.mark.parametrize(("losses", "status", "at"), [
    ([1.0, 2.0, math.nan, math.inf], "diverged", 2),
    ([math.nan], "diverged", 0),
    ([1.0, math.nan, 2.0], "complete", -1),
])  # fmt: skip
def test_a_loss_that_is_not_finite_in_the_end_has_diverged(losses, status, at):
    run = Run()
    with run.observe(probe=None) as watch:
        for loss in losses:
            run.update()
            watch.step(loss)
    ds = watch.dataset()
    assert (ds.attrs["status"], int(ds["diverged_at"]), int(ds["diverged"])) == (status, at, int(at >= 0))


def test_a_loss_that_stopped_the_loop_before_its_update_counts():
    run = Run()
    with run.observe(probe=None) as watch:
        run.train(2, watch)
        watch.step(math.nan)
    ds = watch.dataset()
    assert (ds.attrs["status"], int(ds["diverged_at"]), ds.sizes["step"]) == ("diverged", 2, 2)


def test_the_dataset_can_be_looked_at_while_the_run_goes_on():
    run = Run()
    with run.observe() as watch:
        run.train(5, watch)
        early = validate(watch.dataset())
        run.train(5, watch)
    assert early.sizes["step"] == 5
    assert early.attrs["status"] == "running"
    assert watch.dataset().sizes["step"] == 10
    np.testing.assert_array_equal(early["train_loss"], watch.dataset()["train_loss"][:5])


def test_random_numbers_differ_by_seed_diagnostic_and_state():
    drawn = {
        generator(*key).random() for key in ((0, "trace", 4), (1, "trace", 4), (0, "spectrum", 4), (0, "trace", 8))
    }
    assert len(drawn) == 4


def test_the_same_seed_gives_the_same_numbers_whatever_else_is_recorded():
    def top(record, seed=0):
        run = Run()
        with run.observe(record=record, seed=seed) as watch:
            run.train(5, watch)
        values = watch.dataset()["hessian_trace"].values
        return values[np.isfinite(values)]

    np.testing.assert_array_equal(top(["trace"]), top(["trace", "sharpness", "alignment"]))
    assert not np.array_equal(top(["trace"]), top(["trace"], seed=1))


# --- input ----------------------------------------------------------------------------------------------------------
def frozen():
    model = make_model()
    model.requires_grad_(False)
    return model


BAD = {
    "model": (lambda run: {"model": 3}, "model must be a torch.nn.Module, got int"),
    "no parameter requires gradients": (
        lambda run: {"model": frozen()},
        "no parameter of the model requires gradients",
    ),
    "optimizer of another model": (lambda run: {"model": make_model()}, "the optimizer has no parameter of this model"),
    "no optimizer": (lambda run: {"optimizer": "sgd"}, "optimizer must be a torch.optim.Optimizer, got str"),
    "one batch": (lambda run: {"probe": (loss_of, BATCHES[0])}, r"If that is one batch \(x, y\), give \[\(x, y\)\]"),
    "a tensor": (lambda run: {"probe": (loss_of, DATA[0])}, r"If that is one batch, give \[batch\]"),
    "a cadence without probes": (
        lambda run: {"probe": None, "cadence": {"trace": 5}},
        r"'trace', which is .* \(none\)",
    ),
    "no batches": (lambda run: {"probe": (loss_of, [])}, "at least one batch"),
    "a generator": (lambda run: {"probe": (loss_of, iter(BATCHES))}, "islice"),
    "loss alone": (lambda run: {"probe": loss_of}, r"probe must be \(loss, batches\)"),
    "batches first": (lambda run: {"probe": (BATCHES, loss_of)}, "the loss cannot be called"),
    "every": (lambda run: {"every": 0}, "every .* of at least 1, got 0"),
    "budget": (lambda run: {"budget": 1.5}, r"budget .* in \(0, 1\], got 1.5"),
    "interval": (lambda run: {"interval": -1}, "interval"),
    "seed": (lambda run: {"seed": -1}, "seed"),
    "sketch": (lambda run: {"sketch": 0}, "sketch"),
    "schedule": (lambda run: {"schedule": "wsd"}, "schedule must be a riverval schedule"),
    "unknown name": (lambda run: {"record": ["sharpnes"]}, "unknown diagnostic 'sharpnes'.*Did you mean 'sharpness'"),
    "name alone": (lambda run: {"record": "sharpness"}, "record takes a list of names"),
    "needs a probe": (lambda run: {"probe": None, "record": ["sharpness"]}, "'sharpness' is measured on fixed batches"),
    "cadence of nothing": (
        lambda run: {"cadence": {"trace": 3}},
        r"'trace', which is not among the probes that are recorded \(probe_loss, alignment, sharpness\)",
    ),
    "cadence": (lambda run: {"cadence": {"sharpness": 0}}, "cadence of 'sharpness'"),
    "names of lists": (lambda run: {"record": [["norms"]]}, "record takes a list of names"),
    "out": (lambda run: {"out": 3}, "out must be the name of a file, e.g. 'run.nc', got 3"),
    "cadences": (lambda run: {"cadence": ["trace"]}, "cadences go by the names of diagnostics"),
    "options": (lambda run: {"options": ["trace"]}, "options go by the names of diagnostics"),
    "options of one": (lambda run: {"options": {"sharpness": 3}}, "options of 'sharpness' go by the names"),
    "option of nothing": (
        lambda run: {"options": {"trace": {}}},
        "options are given for 'trace', which is not recorded",
    ),
    "unknown option": (lambda run: {"options": {"sharpness": {"tl": 1}}}, "takes no option 'tl'.*Did you mean 'tol'"),
}


@pytest.mark.parametrize(("wrong", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_the_training(wrong, message):
    run = Run()
    given = {"model": run.model, "optimizer": run.optimizer, "probe": (loss_of, BATCHES), **wrong(run)}
    with pytest.raises(InputError, match=message):
        riverval.observe(**given)


@pytest.mark.parametrize(
    ("loss", "message"),
    [(torch.ones(2), r"one number, got a tensor of shape \(2,\); take the mean"), ("1", "scalar tensor or a number")],
)
def test_a_loss_that_is_no_number_is_refused(loss, message):
    run = Run()
    with run.observe(probe=None) as watch, pytest.raises(InputError, match=message):
        watch.step(loss)


def test_an_observer_is_used_once_and_inside_its_context():
    watch = Run().observe(probe=None)
    for ask in (watch.dataset, lambda: watch.step(1.0)):
        with pytest.raises(InputError, match="has not been started"):
            ask()
    with watch:
        pass
    with pytest.raises(InputError, match="is closed"):
        watch.step(1.0)
    with pytest.raises(InputError, match="watches one run"):
        watch.start()
    watch.close()


def test_files_in_the_way_are_not_overwritten(tmp_path):
    out = tmp_path / "run.nc"
    for name, message in {"run.nc": "exists; choose another file", "run.partial.nc": "a run that was killed"}.items():
        (tmp_path / name).write_text("precious")
        with pytest.raises(InputError, match=message):
            Run().observe(out=out)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
    out.write_text("not precious")
    run = Run()
    with run.observe(out=out, overwrite=True) as watch:
        assert out.read_text() == "not precious"  # until the new one is whole
        run.train(2, watch)
    assert store.load(out).sizes["step"] == 2


@pytest.mark.parametrize(("name", "message"), [("", "is a folder"), ("a/run.nc", "does not exist; make it first")])
def test_a_place_that_cannot_be_written_is_refused_before_the_training(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        Run().observe(out=tmp_path / name)


def test_a_file_that_cannot_be_written_later_does_not_stop_the_training(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    run = Run()
    watch = run.observe(out=folder / "run.nc", interval=0).start()
    run.train(2, watch)
    (folder / "run.partial.nc").unlink()
    folder.rmdir()
    with pytest.warns(RuntimeWarning, match="cannot write"):
        run.train(2, watch)
    with pytest.raises(StoreError, match=r"what was recorded is in .* Observer.dataset\(\)"):
        watch.close()
    assert watch.dataset().sizes["step"] == 4


def test_a_file_that_cannot_be_written_in_the_end_does_not_stop_what_comes_after(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    run = Run()
    watch = run.observe(out=folder / "run.nc")

    def train():
        with watch:
            run.train(2, watch)
            folder.rename(tmp_path / "moved")

    with pytest.warns(RuntimeWarning, match="what was recorded is in"):
        train()
    assert watch.dataset().sizes["step"] == 2
