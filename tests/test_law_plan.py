"""Plans: the best candidate is the law's own minimum, and intervals of differences share the parameters' errors."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from riverval.curve_files import read_curves
from riverval.curves import Curve
from riverval.errors import InputError
from riverval.law_files import write_plan, write_prediction
from riverval.law_plan import FRACTIONS, beyond_fit, fitted_warmup, plan_cooldown
from riverval.laws import DEFAULT_LAW, LAWS, FittedLaw, fit_law, load_law, save_law
from riverval.schedules import WSD
from riverval.shapes import make_shape

from .made_laws import SHARED, VALUES, known, made_curves


@pytest.fixture(scope="module")
def fitted() -> FittedLaw:
    """A law of four noisy curves at one rate, 3e-4."""
    return fit_law("noise-floor", made_curves("noise-floor", noise=1e-3), interval="residuals")


@pytest.fixture(scope="module")
def of_two_rates() -> FittedLaw:
    """Of curves at 3e-4 and 1e-3."""
    curves = made_curves("noise-floor", noise=1e-3)
    fast = []
    for curve in curves:
        lr = curve.lr * (1e-3 / 3e-4)
        fast.append(Curve(f"fast {curve.name}", lr, curve.steps, known("noise-floor").predict(lr, curve.steps).loss))
    return fit_law("noise-floor", curves + fast, interval="residuals")


# --- what the law says -----------------------------------------------------------------------------------------------
def test_the_best_is_the_minimum_of_predictions_made_one_by_one(fitted):
    plan = plan_cooldown(fitted, 3000, shapes=("linear", "cosine"), fractions=(0.1, 0.3, 0.8))
    told = {}
    for name in ("linear", "cosine"):
        for c in (0.1, 0.3, 0.8):
            schedule = WSD(peak_lr=3e-4, steps=3000, warmup=200, cooldown=c, shape=make_shape(name))
            told[name, c] = fitted.predict(schedule, [3000]).loss[0]
    assert {(c.decay, c.fraction): c.loss for c in plan.candidates} == pytest.approx(told, rel=1e-12)
    assert (plan.best.decay, plan.best.fraction) == min(told, key=lambda key: told[key])
    assert [c.loss for c in plan.candidates] == sorted(told.values())
    assert plan.best.difference == 0.0
    assert plan.candidates[-1].difference == pytest.approx(max(told.values()) - min(told.values()))


def test_half_widths_are_those_of_a_monte_carlo_over_the_parameters(fitted):
    """Delta method against 4000 draws from the normal distribution of the parameters."""
    plan = plan_cooldown(fitted, 3000, shapes=["linear"], fractions=(0.1, 0.5, 0.9))
    rng = np.random.default_rng(1)
    draws = rng.multivariate_normal(list(fitted.values.values()), fitted.covariance, size=4000)
    by = {c.fraction: c for c in plan.candidates}
    loss = {}
    for c in by:
        lr = WSD(peak_lr=3e-4, steps=3000, warmup=200, cooldown=c).values()
        L0, A, N, alpha = draws.T
        loss[c] = L0 + A * lr.sum() ** -alpha + N * lr[-1]
    for c, candidate in by.items():
        apart = loss[c] - loss[plan.best.fraction]
        assert candidate.half == pytest.approx(1.96 * apart.std(), rel=0.06, abs=1e-12)
        alone = 1.96 * loss[c].std()
        assert candidate.half < alone  # the shared level cancels


@pytest.mark.parametrize("name", VALUES)
def test_slopes_are_finite_differences_of_the_loss(name):
    law = fit_law(name, made_curves(name, noise=1e-3), interval="residuals")
    schedule = WSD(peak_lr=3e-4, steps=3000, warmup=200, cooldown=0.3)
    loss, slopes = law.slopes(schedule, [1000, 3000])
    lr = schedule.values()
    np.testing.assert_allclose(loss, law.predict(schedule, [1000, 3000]).loss)
    for k, (parameter, value) in enumerate(law.values.items()):
        if math.isnan(law.errors[parameter]):
            continue
        step = 1e-5 * abs(1.0 - value if parameter in ("lam", "beta1", "beta2") else value)
        ends = [law.law.evaluate(lr, [1000, 3000], {**law.values, parameter: value + s}) for s in (step, -step)]
        np.testing.assert_allclose(slopes[:, k], (ends[0] - ends[1]) / (2 * step), rtol=2e-3, atol=1e-8)


def test_a_law_with_given_parameters_has_no_intervals():
    plan = plan_cooldown(known("noise-floor"), 3000, peak_lrs=[3e-4], fractions=(0.1, 0.9))
    assert all(math.isnan(c.half) for c in plan.candidates)
    assert plan.alike == (plan.best,)
    assert math.isnan(plan.low)
    assert "there are no intervals" in plan.notes[-1]


def test_errors_of_no_parameter_tell_every_plan_apart(fitted):
    exact = FittedLaw(fitted.law, fitted.values, fitted.errors, 0 * fitted.covariance, 1e-3, 1e-3, seen=fitted.seen)
    plan = plan_cooldown(exact, 3000, shapes=["linear"])
    assert plan.alike == (plan.best,)
    # And a thousand times the errors tell none.
    loose = FittedLaw(fitted.law, fitted.values, fitted.errors, 1e6 * fitted.covariance, 1e-3, 1e-3, seen=fitted.seen)
    assert len(plan_cooldown(loose, 3000, shapes=["linear"], fractions=(0.3, 0.5, 0.9)).alike) == 3


# --- what is compared ------------------------------------------------------------------------------------------------
def test_one_fitted_rate_is_kept_and_said_to_tell_nothing(fitted):
    plan = plan_cooldown(fitted, 3000)
    assert {c.peak_lr for c in plan.candidates} == {3e-4}
    assert any("the one base rate 0.0003" in note for note in plan.notes)
    assert plan.warmup == 200
    assert {round(c.fraction, 6) for c in plan.candidates} == {*FRACTIONS, round(2800 / 3000, 6)}


def test_several_fitted_rates_span_what_is_compared(of_two_rates):
    plan = plan_cooldown(of_two_rates, 3000, shapes=["linear"], fractions=(0.2, 0.5))
    rates = sorted({c.peak_lr for c in plan.candidates})
    assert (rates[0], rates[-1], len(rates)) == (3e-4, 1e-3, 7)
    assert len(plan.best_of_each) == 7
    assert not any("peak rate" in note for note in plan.notes)
    assert any("largest one compared" in note for note in plan.notes)  # this law gains by every larger rate


def test_rates_beyond_the_fitted_are_taken_if_named_and_said_to_be_an_extrapolation(of_two_rates):
    plan = plan_cooldown(of_two_rates, 3000, peak_lrs=[1e-3, 4e-3], fractions=[0.3])
    assert any("4 times beyond the fitted 0.0003, 0.001" in note for note in plan.notes)
    assert beyond_fit(of_two_rates, [3e-4], 4000) == []
    assert "2 times as long" in beyond_fit(of_two_rates, [3e-4], 8000)[0]
    assert beyond_fit(of_two_rates, [1e-3], 200) == []  # a twentieth of 4000 updates at the largest rate
    assert "that the fit left out" in beyond_fit(of_two_rates, [1e-3], 199)[0]
    assert "that the fit left out" in beyond_fit(of_two_rates, [5e-4], 399)[0]
    assert "3 times beyond" in beyond_fit(of_two_rates, [1e-4], 4000)[0]


def test_a_run_under_way_does_not_cool_down_before_what_it_has_done(fitted):
    plan = plan_cooldown(fitted, 3000, after=2000, shapes=["linear"])
    starts = sorted(c.start for c in plan.candidates)
    assert starts[0] == 2000
    assert starts[-1] == 2980
    assert len(starts) == len(FRACTIONS) + 1
    for c in plan.candidates:
        lr = WSD(peak_lr=c.peak_lr, steps=3000, warmup=200, cooldown=c.fraction).values()
        assert lr[c.start] == c.peak_lr > lr[c.start + 1]


def test_a_floor_is_kept(fitted):
    best = plan_cooldown(fitted, 3000, shapes=["linear"], fractions=[0.3], floor=0.5).best
    schedule = WSD(peak_lr=3e-4, steps=3000, warmup=200, cooldown=0.3, shape=make_shape("linear", floor=0.5))
    assert best.loss == fitted.predict(schedule, [3000]).loss[0]


def test_what_the_intervals_do_not_know_is_noted(fitted):
    assert fitted_warmup(fitted, 3000) == 200
    stuck = FittedLaw(
        fitted.law, fitted.values, {**fitted.errors, "A": math.nan}, fitted.covariance, 1e-3, 1e-3, seen=fitted.seen
    )
    notes = plan_cooldown(stuck, 8000, fractions=(0.1, 0.2), shapes=["linear"]).notes
    assert any("take A as exact" in note for note in notes)
    assert any("2 times as long" in note for note in notes)
    assert any("shortest one compared" in note for note in notes)


BAD = {
    "no update": ({"steps": 0}, "whole number"),
    "a fraction beyond the run": ({"fractions": [1.5]}, r"in \(0, 1\], got 1.5"),
    "a cooldown of one update": ({"fractions": [0.0004]}, "takes 1 of them"),
    "a cooldown within the warmup": ({"fractions": [0.99]}, "those after the 200 of the warmup"),
    "a cooldown before the branch": ({"fractions": [0.5], "after": 2000}, "those after the 2000 of the run so far"),
    "nothing left": ({"after": 2999}, "2999 of the 3000 updates are made"),
    "no room for the fitted warmup": ({"steps": 100}, "the warmup of the fitted curves is 200"),
    "an unknown shape": ({"shapes": ["lin"]}, "unknown decay shape 'lin'"),
    "no shape": ({"shapes": []}, "at least one shape"),
    "no fraction": ({"fractions": []}, "at least one fraction"),
    "no rate": ({"peak_lrs": []}, "at least one base rate"),
    "a negative rate": ({"peak_lrs": [-1.0]}, "base rate must be"),
    "two rates of one run": ({"peak_lrs": [1e-3, 2e-3], "after": 100}, "has one base rate, got 2"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_plans_are_refused(options, message, fitted):
    with pytest.raises(InputError, match=message):
        plan_cooldown(fitted, **{"steps": 3000, **options})


def test_a_rate_that_nobody_knows_is_asked_for(of_two_rates):
    with pytest.raises(InputError, match="needs the base rate"):
        plan_cooldown(known("noise-floor"), 3000)
    with pytest.raises(InputError, match=r"at the base rates 0.0003, 0.001; say which"):
        plan_cooldown(of_two_rates, 3000, after=1000)


# --- files -----------------------------------------------------------------------------------------------------------
def test_a_saved_law_plans_the_same(fitted, tmp_path):
    read = load_law(save_law(fitted, tmp_path / "law.json"))
    assert read.seen == {"peak_lrs": [3e-4], "updates": 4000, "warmup": 200}
    assert plan_cooldown(read, 3000) == plan_cooldown(fitted, 3000)


def test_a_written_plan_has_every_candidate_the_best_first(fitted, tmp_path):
    plan = plan_cooldown(fitted, 3000)
    path = write_plan(tmp_path / "plan.csv", plan)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [c.loss for c in plan.candidates]
    assert sum(int(row["alike"]) for row in rows) == len(plan.alike)
    with pytest.raises(InputError, match="exists"):
        write_plan(path, plan)
    with pytest.raises(InputError, match=r"ends in \.csv"):
        write_plan(tmp_path / "plan.txt", plan)


def test_a_written_prediction_is_read_as_a_curve_of_that_schedule(fitted, tmp_path):
    schedule = WSD(peak_lr=3e-4, steps=2000, warmup=100, cooldown=0.25)
    predicted = fitted.predict(schedule)
    for name in ("p.csv", "p.nc"):
        (curve,) = read_curves(write_prediction(tmp_path / name, fitted, schedule, predicted))
        np.testing.assert_array_equal(curve.steps, predicted.steps)
        np.testing.assert_array_equal(curve.loss, predicted.loss)
        np.testing.assert_allclose(curve.lr[100:1998], schedule.values()[100:1998], rtol=0, atol=1e-4 * 3e-4)
        assert curve.total == 2000
        with pytest.raises(InputError, match="exists"):
            write_prediction(tmp_path / name, fitted, schedule, predicted)


def test_every_law_names_units_of_its_own_parameters_only():
    for law in LAWS.values():
        assert {*law.units} <= {*law.parameters()}
        assert {*law.coefficients} <= {*law.units}


# --- published runs --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rate", [1e-4, 5e-4, 1e-3])
@pytest.mark.parametrize("name", dict.fromkeys(["multi-power", DEFAULT_LAW]))
def test_a_plan_from_short_runs_is_within_3e_3_of_the_best_measured_long_run(name, rate):
    """Fitted on 25000 updates (and the stable run), planned for 50000, held against the final losses measured there."""
    folder = SHARED / "data" / "curves" / "llm_124m"
    if not folder.is_dir():
        pytest.skip("the published curves are not here")
    of = [c for c in read_curves(folder) if c.facts["size"] == "124M" and c.facts["peak_lr"] == rate]
    of = [c for c in of if "#" not in c.name]
    linear = [c for c in of if c.facts["shape"] == "linear"]
    measured = {c.facts["cooldown"]: c.final_loss for c in linear if c.total == 50_000}
    train = [c for c in of if c.facts["shape"] == "constant" and c.total == 50_000]
    train += [c for c in linear if c.total == 25_000 and c.facts["cooldown"] in (0.2, 0.6, 0.9)]
    assert (len(train), len(measured)) == (4, 7)
    law = fit_law(name, train, interval="residuals", weighting="curves")
    choices = [c for c in measured if c < 0.99]  # one is longer than what the warmup leaves
    plan = plan_cooldown(law, 50_000, shapes=["linear"], fractions=choices, warmup=300)
    assert measured[plan.best.fraction] - min(measured.values()) < 0.003
