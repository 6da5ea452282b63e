"""What studies make of their cells: paired errors, crossings, costs under both accountings, against naive counts."""

from __future__ import annotations

import doctest
import importlib
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from riverval.errors import InputError
from riverval.experiments import study_models
from riverval.experiments.acceptance import NAMES, acceptance, over_seeds
from riverval.experiments.presets import configure
from riverval.experiments.study import Bench, cells_of
from riverval.experiments.study_budgets import branch_updates, family_updates, whole_budgets
from riverval.experiments.study_data import METRICS, _windows, dataset, described, higher_is_better, verdict
from riverval.experiments.study_data import over_seeds as over
from riverval.experiments.study_list import STUDIES
from riverval.experiments.study_models import fit_powers
from riverval.experiments.study_run import costs, folder_of
from riverval.experiments.study_schedules import crossing
from riverval.provenance import provenance
from riverval.schema import build
from riverval.store import load, save

T4 = 12.706204736  # Student's t of one degree of freedom at 97.5 %, from tables


def plan_without_data(config):
    facts = {"device": "cpu"}
    return config.planned(steps_per_epoch=None, data_sha256="0" * 64, parameters=7, facts=facts)


def bench(steps):
    given = [f"steps={steps}"]

    def configured(name, changes):
        return configure(name, {"data": "digits", **changes}, preset="smoke", sets=given)

    return Bench("mlp", configured, plan_without_data)


def study_cells(name, steps, seeds, **numbers):
    study = STUDIES[name]
    setting = study.make(**numbers)
    return study, setting, cells_of(study.plans(bench(steps), setting), seeds)


def write(cell, folder, loss, *, status="complete", own=None):
    """A made-up dataset of a finished cell; `loss` is a function of the state."""
    c = cell.config
    plan = c.plan
    cooldowns = [t for w in plan.windows("cooldown") for t in w]
    states = sorted({*range(0, plan.total, c.eval_every), plan.total, *cooldowns})
    values = {"step": range(plan.total), "lr": plan.values(), "phase": plan.phases(), "eval_step": states,
              "val_loss": [loss(t) for t in states], "final_train_loss": loss(plan.total) / 2}  # fmt: skip
    values |= own or {}
    ds = build(values, {}, "real").assign_attrs(provenance("made up", config=c.to_dict(), seed=c.seed, status=status))
    into = folder_of(cell, folder)
    into.mkdir(parents=True)
    save(ds.assign_attrs(notes=""), into / "run.nc")


# --- statistics ------------------------------------------------------------------------------------------------------
def test_paired_differences_have_the_naive_errors(tmp_path, rng):
    study, setting, cells = study_cells("wsd-vs-cosine", 40, (3, 4, 5), fractions=(0.2, 0.5))
    values = {cell.label: 1.0 + rng.normal() for cell in cells}
    for cell in cells:
        write(cell, tmp_path, lambda t, v=values[cell.label]: v)
    ds = dataset(study, setting, cells, tmp_path, {})
    assert ds.attrs["status"] == "complete"
    assert ds["seed"].values.tolist() == [3, 4, 5]
    for plan in ("wsd 0.2", "wsd 0.5"):
        d = [values[f"{plan}, seed {s}"] - values[f"cosine, seed {s}"] for s in (3, 4, 5)]
        mean = sum(d) / 3
        error = math.sqrt(sum((x - mean) ** 2 for x in d) / 2 / 3)
        at = ds.sel(plan=plan, metric="val_loss")
        assert float(at["outcome_gap"]) == pytest.approx(mean, rel=1e-12)
        assert float(at["outcome_gap_error"]) == pytest.approx(error, rel=1e-12)
        assert float(at["outcome_gap_low"]) == pytest.approx(mean - 4.302652730 * error, rel=1e-8)
        assert float(at["outcome_gap_high"]) == pytest.approx(mean + 4.302652730 * error, rel=1e-8)
        half = ds.sel(plan=plan, metric="train_loss")
        assert float(half["outcome_gap"]) == pytest.approx(mean / 2, rel=1e-12)
    own = ds.sel(plan="cosine", metric="val_loss")
    assert [float(own[f"outcome_gap{e}"]) for e in ("", "_error", "_low", "_high")] == [0.0] * 4
    mean = sum(values[f"cosine, seed {s}"] for s in (3, 4, 5)) / 3
    assert float(own["outcome_mean"]) == pytest.approx(mean, rel=1e-12)


def test_a_lost_cell_leaves_the_pairs_that_are_whole(tmp_path):
    study, setting, cells = study_cells("wsd-vs-cosine", 40, (0, 1, 2), fractions=(0.2, 0.5))
    by = {c.label: c for c in cells}
    for label, cell in by.items():
        if label == "cosine, seed 2":
            continue
        value = cell.seed * 10.0 + {"cosine": 0.0, "wsd 0.2": 1.0, "wsd 0.5": 2.0}[cell.plan.name]
        broken = label == "wsd 0.5, seed 1"
        write(cell, tmp_path, lambda t, v=value: v, status="diverged" if broken else "complete")
    ds = dataset(study, setting, cells, tmp_path, {"cosine, seed 2": "the disk is full"})
    at = ds.sel(metric="val_loss")
    assert at["outcome_seeds"].values.tolist() == [2, 3, 2]
    assert at["outcome_gap"].values.tolist() == [0.0, 1.0, 2.0]
    assert at["outcome_gap_error"].sel(plan="wsd 0.2") == 0.0
    assert math.isnan(at["outcome_gap_error"].sel(plan="wsd 0.5"))
    assert ds["cell_status"].values.tolist()[2] == ["failed", "complete", "complete"]
    assert ds["cell_status"].values.tolist()[1] == ["complete", "complete", "diverged"]
    assert ds.attrs["status"] == "interrupted"
    notes = ["wsd 0.5, seed 1: the loss stopped being finite", "cosine, seed 2: the disk is full"]
    assert ds.attrs["notes"].splitlines() == notes


def test_nothing_done_is_a_dataset_too(tmp_path):
    study, setting, cells = study_cells("wsd-s", 400, (0,))
    ds = dataset(study, setting, cells, tmp_path, {c.label: "no" for c in cells})
    assert np.isnan(ds["outcome_mean"]).all()
    save(ds, tmp_path / "study.nc")


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6), st.integers(0, 5))
def test_errors_over_seeds_leave_out_what_is_not_there(values, gaps):
    mean, error, low, high, n = over([*values, *[math.nan] * gaps])
    assert n == len(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)
    assert low <= mean + 1e-9 <= high + 2e-9


def test_the_interval_of_two_seeds_is_that_of_the_table():
    _, error, low, high, _ = over([0.0, 2.0])
    assert (float(error), float(high)) == pytest.approx((1.0, 1.0 + T4))
    assert float(low) == pytest.approx(1.0 - T4)


def test_verdicts_of_losses_and_of_accuracies_point_the_other_way():
    assert verdict(-2.0, -1.0) == verdict(1.0, 2.0, higher_is_better=True) == "better"
    assert verdict(1.0, 2.0) == verdict(-2.0, -1.0, higher_is_better=True) == "worse"
    higher = {"val_accuracy", "train_accuracy", "cooldown_gain", "cooldown_hill"}
    assert {metric for metric in METRICS if higher_is_better(metric)} == higher


# --- wsd-vs-cosine ---------------------------------------------------------------------------------------------------
@given(st.floats(0.06, 0.94))
def test_the_crossing_of_a_line_is_its_zero(zero):
    x = np.array([0.05, 0.2, 0.5, 0.95])
    assert crossing(x, zero - x) == pytest.approx(zero, abs=1e-12)
    assert crossing(x, x - zero) == x[0]
    assert math.isnan(crossing(x, np.ones(4)))
    assert math.isnan(crossing(x, np.full(4, np.nan)))


def test_the_matching_fraction_and_its_error_are_those_of_lines(tmp_path):
    """Gaps a (z_s - c) at seed s: the crossing of the mean is mean z, and its error that of the z_s."""
    study, setting, cells = study_cells("wsd-vs-cosine", 100, (0, 1, 2), fractions=(0.1, 0.2, 0.4))
    zero = {0: 0.24, 1: 0.30, 2: 0.33}
    for cell in cells:
        fraction = cell.config.schedule.get("cooldown")
        loss = 3.0 if fraction is None else 3.0 + 2.0 * (zero[cell.seed] - fraction)
        write(cell, tmp_path, lambda t, v=loss: v)
    at = dataset(study, setting, cells, tmp_path, {}).sel(metric="val_loss")
    assert float(at["match_fraction"]) == pytest.approx(0.29)
    error = np.std([0.24, 0.30, 0.33], ddof=1) / math.sqrt(3)
    assert float(at["match_fraction_error"]) == pytest.approx(error)
    assert float(at["match_fraction_high"]) == pytest.approx(0.29 + 4.302652730 * error)
    assert float(at["match_fraction_low"]) == pytest.approx(0.29 - 4.302652730 * error)
    np.testing.assert_allclose(at["match_fraction_seed"], [0.24, 0.30, 0.33])
    assert at["best_plan"].item() == "wsd 0.4"


@pytest.mark.parametrize(("gap", "found"), [(-0.5, 0.1), (0.5, math.nan)], ids=["shortest will do", "none will do"])
def test_a_crossing_outside_the_fractions_has_no_error(gap, found, tmp_path):
    study, setting, cells = study_cells("wsd-vs-cosine", 100, (0, 1), fractions=(0.1, 0.4))
    for cell in cells:
        loss = 3.0 + cell.seed + gap * (cell.plan.name != "cosine")
        write(cell, tmp_path, lambda t, v=loss: v)
    at = dataset(study, setting, cells, tmp_path, {}).sel(metric="val_loss")
    np.testing.assert_equal(float(at["match_fraction"]), found)
    assert math.isnan(at["match_fraction_error"])


# --- wsd-s -----------------------------------------------------------------------------------------------------------
def test_both_accountings_by_hand(tmp_path):
    """400 updates, budgets 100, 200, 400, cooldowns of a tenth: 10, 20, 40 updates.

    WSD: trunk 360, cooldowns 70. WSD-S by path length ends at 400; by total compute its checkpoints stand at
    100, 200 + 10, 400 + 30. Cosines: 700 by path length; 430/700 of each budget by total compute.
    """
    study, setting, cells = study_cells("wsd-s", 400, (0, 1))
    for cell in cells:
        write(cell, tmp_path, lambda t, c=cell: 100.0 - t / 10 + c.seed)
    ds = dataset(study, setting, cells, tmp_path, {})
    updates = {(a, f): ds["checkpoint_updates"].sel(accounting=a, family=f).values.tolist()
               for a in ds["accounting"].values for f in ds["family"].values}  # fmt: skip
    assert updates == {
        ("path length", "WSD"): [100, 200, 400], ("path length", "WSD-S"): [100, 200, 400],
        ("path length", "cyclic cosine"): [100, 200, 400], ("path length", "cosine"): [100, 200, 400],
        ("total compute", "WSD"): [100, 200, 400], ("total compute", "WSD-S"): [100, 210, 430],
        ("total compute", "cyclic cosine"): [100, 210, 430], ("total compute", "cosine"): [61, 123, 246],
    }  # fmt: skip
    assert ds["family_updates"].values.tolist() == [[430, 400, 400, 700], [430, 430, 430, 430]]
    losses = ds["checkpoint_seed_loss"].sel(accounting="total compute", family="WSD-S", seed=1)
    assert losses.values.tolist() == [91.0, 80.0, 58.0]
    gap = ds["gap"].sel(accounting="total compute", family="cosine").values
    np.testing.assert_allclose(gap, [3.9, 7.7, 15.4])
    assert np.all(ds["gap_error"] == 0)  # seeds differ by the same amount in all families


def test_the_whole_budgets_have_a_common_divisor():
    for steps in (60, 400, 1955, 19_550):
        budgets = whole_budgets(steps, (0.25, 0.5, 1.0))
        assert np.allclose(np.array(budgets) / steps, (0.25, 0.5, 1.0), rtol=0.1)
        assert math.gcd(*budgets) >= steps // 80


def test_costs_are_those_of_the_shared_cells():
    """The branches of WSD, counted by the tree of their rates, cost what the accounting says."""
    _, setting, cells = study_cells("wsd-s", 400, (0,))
    branches = [c for c in cells if c.plan.name.startswith("WSD to")]
    # A cooldown's first update has still the full rate, so it is that of the trunk: shared by two of three branches.
    assert costs(branches)[1] == branch_updates((100, 200, 400), setting.cooldown) - 2
    assert family_updates(np.full((1, 4, 3), 100), 0.1).tolist() == [[120, 100, 100, 300]]


def test_budgets_without_a_common_divisor_are_refused():
    with pytest.raises(InputError, match="no common divisor"):
        study_cells("wsd-s", 4000, (0,), cooldown=0.1234)


# --- the others ------------------------------------------------------------------------------------------------------
def test_cells_of_different_code_are_told_of(tmp_path):
    study, setting, cells = study_cells("wsd-vs-cosine", 40, (0, 1), fractions=(0.2, 0.5))
    for cell in cells:
        write(cell, tmp_path, lambda t: 1.0)
    assert "same code" not in dataset(study, setting, cells, tmp_path, {}).attrs["notes"]
    file = folder_of(cells[0], tmp_path) / "run.nc"
    other = load(file).assign_attrs(riverval_version="9.9", git_commit="", versions='{"torch": "1.0"}')
    save(other, file, overwrite=True)
    second = folder_of(cells[1], tmp_path) / "run.nc"
    again = {**load(second).attrs, "riverval_version": "8.8", "git_commit": ""}
    save(load(second).assign_attrs(measured_by=json.dumps(again)), second, overwrite=True)
    notes = dataset(study, setting, cells, tmp_path, {}).attrs["notes"]
    assert ", measured by riverval 8.8 with torch" in notes
    assert "not all cells were made by the same code: 4 cells by riverval" in notes
    assert "1 cell by riverval 9.9 with torch 1.0" in notes


def test_shapes_are_compared_at_the_same_length_and_rate():
    _, setting, cells = study_cells("shapes", 100, (0,))
    assert len(cells) == len(setting.shapes) * len(setting.fractions) * len(setting.rates)
    by = {c.plan.name: c.config for c in cells}
    for cell in cells:
        mine, reference = cell.config, by[cell.plan.against]
        assert reference.schedule["shape"]["name"] == "linear"
        assert (mine.lr, mine.schedule["cooldown"]) == (reference.lr, reference.schedule["cooldown"])


def test_noise_sees_the_same_examples_at_every_batch():
    _, _, cells = study_cells("noise", 80, (0,), batches=(0.5, 1.0, 2.0))
    seen = {c.config.batch * c.config.plan.total for c in cells}
    assert len(seen) == 1
    assert {c.config.batch * c.config.schedule["warmup"] for c in cells} == {2 * 32}


def test_the_powers_of_an_exact_law_are_found(tmp_path):
    study, setting, cells = study_cells("noise", 80, (0, 1), batches=(0.5, 1.0, 2.0))
    for cell in cells:
        c = cell.config
        gain = (1.0 + c.seed) * c.lr**0.7 * c.batch**-0.4
        start = _windows(c.plan)[-1][0]
        write(cell, tmp_path, lambda t, g=gain, s=start: 5.0 + g * (t <= s))
    ds = dataset(study, setting, cells, tmp_path, {})
    assert float(ds["gain_rate_exponent"]) == pytest.approx(0.7)
    assert float(ds["gain_batch_exponent"]) == pytest.approx(-0.4)
    assert float(ds["gain_batch_exponent_error"]) == pytest.approx(0.0, abs=1e-9)
    assert float(ds["gain_batch_exponent_expected"]) == -0.5  # Adam
    told = {f.quantity: f.told for f in study.numbers(ds)}
    assert told["power of the rate in the gain of the cooldown"] == "noise floor of a quadratic: 1"
    assert told["power of the batch in the gain of the cooldown"] == "noise floor of a quadratic: -0.5"
    lost = ds.copy(deep=True)
    lost["outcome"].loc[{"metric": "cooldown_gain", "seed": 0, "plan": ds["plan"][:2]}] = [0.0, -1.0]
    seldom = "needs 4 evaluations in the second half of the stable phase; --set eval_every to less"
    assert {t for quantity, t in told.items() if "beyond" in quantity} == {seldom}
    left_out = {finding.quantity: finding.told.partition("; ")[2] for finding in study.numbers(lost)}
    for by in ("rate", "batch"):
        assert left_out[f"power of the {by} in the gain of the cooldown"] == "2 of 18 gains left out, not above 0"
    assert math.isnan(fit_powers(np.ones(4), np.arange(1.0, 5.0), np.ones(4))[0])


def test_the_powers_of_the_hill_do_not_feel_the_river(tmp_path):
    """Held-out loss: a hill that drops with the rate, and a river that falls by 3 per unit of cumulative rate."""
    study, setting, cells = study_cells("noise", 200, (0, 1), batches=(0.5, 1.0, 2.0))
    for cell in cells:
        c = cell.config
        S = np.concatenate([[0.0], np.cumsum(c.plan.values())])
        hill = 0.1 * (1.0 + c.seed) * c.lr**0.7 * c.batch**-0.4
        start = _windows(c.plan)[-1][0]
        write(cell, tmp_path, lambda t, h=hill, s=start, S=S: 5.0 + h * (t <= s) - 3.0 * S[t])
    ds = dataset(study, setting, cells, tmp_path, {})
    assert {f.told for f in study.numbers(ds)} == {"noise floor of a quadratic: 1", "noise floor of a quadratic: -0.5"}
    assert float(ds["hill_rate_exponent"]) == pytest.approx(0.7)
    assert float(ds["hill_batch_exponent"]) == pytest.approx(-0.4)
    assert abs(float(ds["gain_batch_exponent"]) + 0.4) > 0.05
    found = ds["outcome"].sel(metric=["cooldown_gain", "cooldown_hill"])
    cooled = [
        c.plan.values()[_windows(c.plan)[-1][0] :].sum() for c in (cell.config for cell in cells if not cell.seed)
    ]
    river = found.sel(metric="cooldown_gain") - found.sel(metric="cooldown_hill")
    np.testing.assert_allclose(river.sel(seed=0), 3.0 * np.array(cooled), rtol=1e-6)


def test_convergence_branches_share_one_trunk():
    _, _, cells = study_cells("to-convergence", 100, (0,))
    wsds = [c for c in cells if c.plan.name.startswith("wsd")]
    assert [c.config.plan.total for c in wsds] == [100, 200, 400, 800]
    cooldowns = [sum(b - a for a, b in c.config.plan.windows("cooldown")) for c in wsds]
    assert costs(wsds)[1] == 800 - cooldowns[-1] + sum(cooldowns) - 3
    for one, other in pairwise(cells):
        if one.plan.against == other.plan.name:
            assert one.config.plan.total == other.config.plan.total


def test_the_acceptance_tests_of_a_study_are_those_of_its_cells(tmp_path):
    study, setting, cells = study_cells("paper", 60, (0, 1))
    for cell in cells:
        own = {}
        if cell.config.snapshots:
            own = {"probe_step": [40, 60], "hessian_top": [1.0, 2.0 + cell.seed], "hessian_top_bound": [0.0, 0.0]}
        write(cell, tmp_path, lambda t, c=cell: 1.0 + c.seed + 0.1 * bool(c.config.snapshots), own=own)
    ds = dataset(study, setting, cells, tmp_path, {})
    found = [load(folder_of(c, tmp_path)) for c in cells]
    naive = over_seeds([acceptance(found[0], found[1]), acceptance(found[2], found[3])])
    at = ds.sel(plan=cells[0].plan.name)
    for test in naive:
        one = at.sel(criterion=test.name)
        told = [float(one[f"criterion_{n}"]) for n in ("value", "error", "low", "high", "null", "bound")]
        np.testing.assert_equal(told, [test.value, test.error, test.low, test.high, test.null, test.bound])
        assert (one["criterion_verdict"].item(), int(one["criterion_held"])) == (test.verdict, test.held)
    np.testing.assert_allclose(at["criterion_seed_value"].sel(criterion=NAMES[3]), [2.0, 3.0])
    assert ds["criterion_value"].sel(plan="cosine").isnull().all()
    rows = study_models.criterion_numbers(ds)
    assert [r.quantity for r in rows] == [f"{cells[0].plan.name}: {name}" for name in NAMES]


def test_curves_stand_on_common_states(tmp_path):
    study, setting, cells = study_cells("wsd-vs-cosine", 100, (0,), fractions=(0.15, 0.4))
    for cell in cells:
        write(cell, tmp_path, lambda t: float(t))
    ds = dataset(study, setting, cells, tmp_path, {})
    assert ds["val_loss"].dims == ("seed", "plan", "eval_step")
    states = ds["eval_step"].values
    assert set(states) == {*range(0, 101, 20), 2, 85, 60}
    for plan, own in (("cosine", 2), ("wsd 0.15", 85)):
        curve = ds["val_loss"].sel(seed=0, plan=plan).values
        known = np.isfinite(curve)
        assert set(states[known]) == {*range(0, 101, 20), own}
        np.testing.assert_array_equal(curve[known], states[known])
    rates = dict(zip([c.plan.name for c in cells], [c.rates for c in cells], strict=True))
    assert ds["plan_lr"].sel(plan="wsd 0.4", eval_step=60) == rates["wsd 0.4"][60]
    assert math.isnan(ds["plan_lr"].sel(plan="wsd 0.4", eval_step=100))


def test_the_stored_settings_are_whole_and_small(tmp_path):
    study, setting, cells = study_cells("shapes", 100, (0,), fractions=(0.1,))
    told = described(cells)
    for cell in cells:
        whole = {**told["common"], **told["plans"][cell.plan.name], "seed": cell.seed}
        assert whole == json.loads(json.dumps(cell.config.to_dict()))
    for cell in cells:
        write(cell, tmp_path, lambda t: 1.0)
    ds = dataset(study, setting, cells, tmp_path, {})
    assert save(ds, tmp_path / "study.nc").stat().st_size < 1e5


@pytest.mark.parametrize("name", ["study_sharing", "study_data", "study_schedules", "study_budgets", "study_models",
                                  "study_run"])  # fmt: skip
def test_the_examples_in_the_code_are_right(name):
    result = doctest.testmod(importlib.import_module(f"riverval.experiments.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
