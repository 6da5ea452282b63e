"""The rules of verdicts, the registry, and what is refused."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.schedules import Constant
from riverval.schema import validate
from riverval.store import load, save
from riverval.toy import StraightRiver
from riverval.toy.prediction import (
    DOES_NOT_FAIL,
    FAILS,
    FAILS_AS_PREDICTED,
    HOLDS,
    LIMIT,
    RELATIONS,
    UNDECIDED,
    Lab,
    Outcome,
    Prediction,
    Span,
    mean_and_error,
    ratio_and_error,
    registrar_of,
    variance_and_error,
)
from riverval.toy.predictions import ALL, FAMILIES, PREDICTIONS, QUICK, check_all, dataset_of, select

# relation -> verdicts of measured - theory in standard errors
RULES = {
    "=": {-4.1: FAILS, -3.9: HOLDS, 0.0: HOLDS, 3.9: HOLDS, 4.1: FAILS},
    ">": {-4.1: FAILS, -3.9: UNDECIDED, 0.0: UNDECIDED, 3.9: UNDECIDED, 4.1: HOLDS},
    "<": {-4.1: HOLDS, -3.9: UNDECIDED, 0.0: UNDECIDED, 3.9: UNDECIDED, 4.1: FAILS},
    ">=": {-4.1: FAILS, -3.9: HOLDS, 0.0: HOLDS, 100.0: HOLDS},
    "<=": {-100.0: HOLDS, 0.0: HOLDS, 3.9: HOLDS, 4.1: FAILS},
}


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("error", [1.0, 1e-3])
def test_the_rules(relation, error):
    for deviation, verdict in RULES[relation].items():
        outcome = Outcome("x", 10.0, 10.0 + deviation * error, error, relation=relation)
        assert outcome.verdict() == verdict, deviation
        assert outcome.z == pytest.approx(deviation)


def test_an_allowance_widens_equalities_and_bounds_only():
    def verdict(relation, measured):
        return Outcome("x", 0.0, measured, 1.0, 2.0, "leading order", relation).verdict()

    assert verdict("=", 5.9) == verdict("=", -5.9) == HOLDS
    assert verdict("=", 6.1) == verdict("=", -6.1) == FAILS
    assert verdict("<=", 5.9) == HOLDS
    assert verdict("<=", 6.1) == FAILS
    assert verdict(">", 4.1) == HOLDS
    assert verdict(">", -4.1) == FAILS


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fails(relation, bad):
    assert Outcome("x", 1.0, bad, 0.1, relation=relation).verdict() == FAILS
    assert Outcome("x", bad, 1.0, 0.1, relation=relation).verdict() == FAILS
    assert Outcome("x", 1.0, 1.0, abs(bad), relation=relation).verdict() == FAILS


def test_a_number_without_chance_is_told_apart_exactly():
    assert Outcome("x", 1.0, 1.0 + 1e-12, relation=">").verdict() == HOLDS
    assert Outcome("x", 1.0, 1.0, relation=">").verdict() == UNDECIDED
    assert math.isnan(Outcome("x", 1.0, 2.0, relation=">").z)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"relation": "=="}, "relation must be one of =, <, >, <=, >=, got '=='"),
        ({"error": -1.0}, "error of 'x' must be at least 0, got -1.0"),
        ({"allowance": -1.0}, "allowance of 'x' must be at least 0"),
        ({}, "'x' needs an error or an allowance"),
        ({"allowance": 1.0}, "the allowance of 'x' needs a reason"),
    ],
)
def test_an_outcome_without_a_rule_is_refused(options, told):
    with pytest.raises(InputError, match=told):
        Outcome("x", 1.0, 1.0, **options)


# --- predictions and findings ----------------------------------------------------------------------------------------
def made(outcomes, **options):
    described = {"statement": "s", "formula": "f", "source": "derived", "validity": "x > y"}
    return Prediction(name="P-X", measure=lambda p, lab: outcomes, **described, **options)


def of(deviation, relation=">"):
    return Outcome("x", 0.0, deviation, 1.0, relation=relation)


@pytest.mark.parametrize(
    ("must_fail", "deviations", "verdicts", "expected"),
    [
        (False, (9, 9), [HOLDS, HOLDS], True),
        (False, (9, -9), [HOLDS, FAILS], False),
        (False, (9, 1), [HOLDS, UNDECIDED], False),
        (True, (-9, -9), [FAILS_AS_PREDICTED, FAILS_AS_PREDICTED], True),
        (True, (-9, 9), [FAILS_AS_PREDICTED, DOES_NOT_FAIL], False),
        (True, (-9, -1), [FAILS_AS_PREDICTED, UNDECIDED], False),
    ],
)
def test_a_finding_is_as_expected_if_all_its_outcomes_are(must_fail, deviations, verdicts, expected):
    found = made([of(d) for d in deviations], must_fail=must_fail).check()
    assert found.verdicts() == verdicts
    assert found.as_expected() is expected


def test_the_limit_can_be_another():
    found = made([of(5.0, "=")]).check()
    assert found.verdicts() == [FAILS]
    assert found.verdicts(6.0) == [HOLDS]
    assert LIMIT == 4.0


def test_parameters_outside_the_range_are_refused():
    spans = {"x": Span(2.0, 1.0, 3.0, "the x"), "y": Span(1.0, 0.0, 3.0, "the y")}
    prediction = made([], spans=spans, valid=lambda p: p["x"] > p["y"])
    assert prediction.check({"x": 3.0}).parameters == {"x": 3.0, "y": 1.0}
    with pytest.raises(InputError, match=r"x \(the x\) must be a finite number in \[1, 3\], got 4.0"):
        prediction.check({"x": 4.0})
    with pytest.raises(InputError, match="P-X has no parameter 'z'; it has: x, y"):
        prediction.check({"z": 4.0})
    with pytest.raises(InputError, match="P-X is claimed where x > y"):
        prediction.check({"y": 2.5})
    with pytest.raises(InputError, match="the x"):
        Span(5.0, 1.0, 3.0, "the x")


def test_the_registrar_refuses_a_name_twice():
    registry: dict[str, Prediction] = {}
    predicts = registrar_of(registry)
    words = {"statement": "s", "formula": "f", "source": "derived", "validity": "v"}

    @predicts("P-X.1", **words)
    def measure(p, lab):
        return []

    assert registry["P-X.1"].measure is measure
    with pytest.raises(InputError, match=r"a prediction 'P-X\.1' already"):
        predicts("P-X.1", **words)(measure)


def test_a_prediction_gives_the_same_alone_and_among_all_and_other_seeds_others():
    alone = PREDICTIONS["P-HILL.2b"].check(seed=3).outcomes
    among = [f for f in check_all(select(["P-HILL.2"]).values(), seed=3) if f.prediction.name == "P-HILL.2b"]
    assert among[0].outcomes == alone
    assert PREDICTIONS["P-HILL.2b"].check(seed=4).outcomes != alone


# --- the laboratory --------------------------------------------------------------------------------------------------
def test_runs_of_one_seed_see_the_same_noise():
    lab, plan = Lab(np.random.SeedSequence(0)), Constant(peak_lr=0.1, steps=5)
    options = {"replicates": 20, "sigma": 1.0, "start": 0.0}
    seed, valley = lab.seed(), StraightRiver(0.1, (1.0,))
    one, same = (lab.simulate(valley, plan, seed=seed, **options) for _ in range(2))
    np.testing.assert_array_equal(one["loss"], same["loss"])
    assert np.any(lab.simulate(valley, plan, **options)["loss"].values != one["loss"].values)


def test_ctrl_c_inside_a_simulation_ends_the_measurement(monkeypatch):
    module = sys.modules["riverval.toy.prediction"]
    inner = module.simulate_many

    def interrupted(*args, **options):
        return [ds.assign_attrs(status="interrupted") for ds in inner(*args, **options)]

    monkeypatch.setattr(module, "simulate_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PREDICTIONS["P-HILL.2b"].check()


@given(st.integers(2, 200), st.integers(0, 1000))
def test_errors_of_means_ratios_and_variances(n, seed):
    a, b = np.random.default_rng(seed).normal(3.0, 1.0, (2, n))
    mean, error = mean_and_error(a)
    assert mean == pytest.approx(sum(a) / n)
    assert error == pytest.approx(math.sqrt(sum((a - mean) ** 2) / (n - 1) / n))
    assert variance_and_error(a)[0] == pytest.approx(np.var(a, ddof=1))
    ratio, error = ratio_and_error(2.0 * b, b)
    assert ratio == pytest.approx(2.0)
    assert error == pytest.approx(0.0, abs=1e-12)


def test_the_errors_of_ratio_and_variance_are_those_of_repetitions():
    rng = np.random.default_rng(1)
    samples = rng.normal(0.0, 1.0, (2000, 2, 400)) + np.array([[2.0], [4.0]])
    ratios = np.array([ratio_and_error(a, b) for a, b in samples])
    assert ratios[:, 0].std() == pytest.approx(ratios[:, 1].mean(), rel=0.08)
    variances = np.array([variance_and_error(a) for a, _ in samples])
    assert variances[:, 0].std() == pytest.approx(variances[:, 1].mean(), rel=0.08)


# --- the registry ----------------------------------------------------------------------------------------------------
def test_all_are_in_order_of_the_theory():
    assert [*dict.fromkeys(name.split(".")[0] for name in PREDICTIONS)] == list(FAMILIES)
    assert all(p.name == name for name, p in PREDICTIONS.items())


def test_selection():
    assert select([]) == PREDICTIONS
    assert list(select(["P-LEN"])) == ["P-LEN", "P-LEN.b", "P-LEN.c"]
    assert list(select(["P-HILL.2c"])) == ["P-HILL.2c"]
    assert set(select(["P-DECAY"])) == {n for n in PREDICTIONS if n.startswith("P-DECAY")}
    with pytest.raises(InputError, match="unknown prediction 'P-HIL'; choose one of: P-HILL, P-RIVER"):
        select(["P-LEN", "P-HIL"])


def test_the_dataset_holds_every_number_and_can_be_stored(tmp_path):
    findings = list(check_all(select(["P-HILL.2b", "P-HILL.2d", "P-HILL.5"]).values(), seed=2))
    ds = load(save(validate(dataset_of(findings, seed=2, effort=QUICK)), tmp_path / "v.nc"))
    outcomes = [o for f in findings for o in f.outcomes]
    assert ds["prediction"].values.tolist() == ["P-HILL.2b", "P-HILL.2d", "P-HILL.5", "P-HILL.5"]
    for name in ("theory", "measured", "error", "allowance", "z"):
        np.testing.assert_array_equal(ds[f"prediction_{name}"], [getattr(o, name) for o in outcomes])
    assert ds["prediction_verdict"].values.tolist() == [HOLDS, FAILS_AS_PREDICTED, HOLDS, HOLDS]
    assert ds["prediction_must_fail"].values.tolist() == [0, 1, 0, 0]
    assert ds["prediction_quantity"].values.tolist() == [o.quantity for o in outcomes]
    assert ds["prediction_relation"].values.tolist() == ["=", "<=", "=", ">"]
    assert ds.attrs["seed"] == "2"
    assert '"curvature": 2.0' in ds.attrs["config"]
    assert ALL.factor > QUICK.factor
