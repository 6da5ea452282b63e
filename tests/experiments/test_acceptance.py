"""The acceptance tests: their values from datasets, their rules, and seeds together. No torch."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from riverval.errors import InputError
from riverval.experiments.acceptance import NAMES, VERDICTS, acceptance, acceptance_rows, over_seeds
from riverval.schema import build

KNOWN = {
    "final_train_loss": 1.2,
    "pair": ["stable", "cooldown"], "interpolation_batches": 8,
    "interpolation_dip": [0.10, 0.02], "interpolation_dip_error": [0.01, 0.01],
    "interpolation_rise": [0.3, 0.004], "interpolation_rise_error": [0.1, 0.002],
    "probe_step": [50, 60, 70, 80, 90, 100],
    "hessian_top": [np.nan, 10.0, np.nan, 15.0, np.nan, 20.0],
    "hessian_top_bound": [np.nan, 0.1, np.nan, 0.1, np.nan, 0.2],
    "preconditioned_top": [np.nan, 40.0, np.nan, 30.0, np.nan, 20.0],
    "preconditioned_top_bound": [np.nan, 0.4, np.nan, 0.1, np.nan, 0.2],
    "direction_ratio": 1.8, "direction_ratio_low": 1.1, "direction_ratio_high": 2.6,
    "direction_ratio_matched": 1.2, "direction_ratio_matched_low": 0.7, "direction_ratio_matched_high": 1.9,
    "quasi_convexity": [0.5, 0.1, 1.0, np.nan, 2.0, np.nan],
    "gradient_cosine": [0.10, 0.14, 0.12, 0.16, np.nan, np.nan],
    "gradient_cosine_null": [0.01, 0.01, 0.01, 0.01, np.nan, np.nan],
}  # fmt: skip


def dataset(seed: int = 0, **changes) -> xr.Dataset:
    values = {name: value for name, value in {**KNOWN, **changes}.items() if value is not None}
    described = {"arch": "cnn", "data_sha256": "a", "seed": seed}
    return build(values, {}, "real").assign_attrs(config=json.dumps(described))


def found(**changes):
    return dict(zip(NAMES, acceptance(dataset(**changes)), strict=True))


def named(tests, start):
    (one,) = [test for test in tests if test.name.startswith(start)]
    return one


def test_all_values_are_those_of_the_dataset():
    tests = acceptance(dataset(), dataset(final_train_loss=1.25))
    assert [test.name for test in tests] == list(NAMES)
    assert [test.value for test in tests] == pytest.approx([-0.05, 0.10, 0.004, 2.0, 0.5, 1.8, 1.2, 1.0, 0.13])
    assert [test.null for test in tests] == pytest.approx([0, 0, 0, 1, 1, 1, 1, 0.5, 0.01])
    verdicts = ["undecided", "holds", "holds", "holds", "fails", "holds", "undecided", "holds", "holds"]
    assert [test.verdict for test in tests] == verdicts
    assert [test.control for test in tests] == ["control" in name for name in NAMES]
    assert [test.held for test in tests] == [int(v == "holds") for v in verdicts]


def test_intervals_are_those_that_are_described():
    tests = found()
    t = student.ppf(0.975, 7)
    assert (tests[NAMES[1]].low, tests[NAMES[1]].high) == pytest.approx((0.1 - 0.01 * t, 0.1 + 0.01 * t))
    assert (tests[NAMES[3]].low, tests[NAMES[3]].high) == pytest.approx((19.8 / 10.1, 20.2 / 9.9))
    assert (tests[NAMES[5]].low, tests[NAMES[5]].high) == (1.1, 2.6)
    cosines = np.array([0.10, 0.14, 0.12, 0.16])
    half = student.ppf(0.975, 3) * cosines.std(ddof=1) / 2
    assert (tests[NAMES[8]].low, tests[NAMES[8]].high) == pytest.approx((0.13 - half, 0.13 + half))


@pytest.mark.parametrize(
    ("changes", "test", "verdict"),
    [
        ({"interpolation_dip": [-0.1, 0.0]}, "2a", "fails"),
        ({"interpolation_dip": [0.01, 0.0]}, "2a", "undecided"),
        ({"interpolation_rise": [0.0, 0.1]}, "2b", "fails"),
        ({"interpolation_batches": 1}, "2a", "undecided"),
        ({"hessian_top": [np.nan, 10.0, np.nan, 15.0, np.nan, 10.05]}, "3 top", "undecided"),
        ({"hessian_top": [np.nan, 10.0, np.nan, 15.0, np.nan, 5.0]}, "3 top", "fails"),
        ({"hessian_top": [np.nan, -1.0, np.nan, 15.0, np.nan, 5.0]}, "3 top", "not measured"),
        ({"direction_ratio_low": 0.9}, "4 norm", "undecided"),
        ({"direction_ratio_high": 0.95, "direction_ratio_low": 0.5}, "4 norm", "fails"),
        ({"quasi_convexity": [0.5, -0.1, 1.0, np.nan, 2.0, np.nan]}, "5", "fails"),
        # 19 of 20 are 0.95, which is not above it.
        ({"gradient_cosine": [0.1, -0.1, 0.1, -0.08, np.nan, np.nan]}, "6", "undecided"),
        ({"gradient_cosine": [-0.1, -0.11, -0.1, -0.1, np.nan, np.nan]}, "6", "fails"),
        # Above 0, but not above what a shuffled gradient gives.
        ({"gradient_cosine_null": [0.2] * 4 + [np.nan] * 2}, "6", "fails"),
        ({"gradient_cosine_null": [-0.2] * 4 + [np.nan] * 2}, "6", "holds"),
    ],
)
def test_each_verdict_follows_its_rule(changes, test, verdict):
    assert named(acceptance(dataset(**changes)), test).verdict == verdict


def test_the_interval_of_the_largest_rise_is_that_of_all_pairs():
    """A rise of three of its own errors is nothing, where it is the largest of 210 that noise could have made."""
    alphas = np.linspace(0.0, 1.0, 21)
    line = {"alpha": alphas, "interpolation_loss": np.zeros((2, 21)), "interpolation_rise": [0.0, 0.006]}
    test = named(acceptance(dataset(**line)), "2b")
    half = 0.002 * student.ppf(1 - 0.025 / 210, 7)
    assert (test.low, test.high) == pytest.approx((0.006 - half, 0.006 + half))
    assert test.verdict == "holds"
    assert named(acceptance(dataset(**{**line, "interpolation_rise": [0.0, 0.1]})), "2b").verdict == "fails"
    assert named(acceptance(dataset(**line)), "2a").low == pytest.approx(0.1 - 0.01 * student.ppf(0.975, 7))


def test_the_simultaneous_interval_rarely_finds_a_rise_in_noise():
    """Batches of a flat line: at most 5 % of the largest rises lie above 0; by the chosen pair's own error many do."""
    rng, places = np.random.default_rng(0), 9
    above = np.zeros(2)
    for _ in range(200):
        losses = rng.standard_normal((8, places))
        a, b = np.triu_indices(places, 1)
        gaps = losses[:, b] - losses[:, a]
        k = int(np.argmax(gaps.mean(0)))
        value, error = gaps[:, k].mean(), gaps[:, k].std(ddof=1) / math.sqrt(8)
        own = {"alpha": np.arange(places) / (places - 1), "interpolation_loss": np.zeros((2, places)),
               "interpolation_rise": [0.0, value], "interpolation_rise_error": [0.0, error]}  # fmt: skip
        above += named(acceptance(dataset(**own)), "2b").low > 0, value - student.ppf(0.975, 7) * error > 0
    assert above[0] <= 0.05 * 200
    assert above[1] > 0.25 * 200


def test_the_control_of_sharpness_leaves_out_states_that_tell_of_eps():
    """The first of the three is carried by parameters without gradients, as the probe says it."""
    pytest.importorskip("torch")
    faint = pytest.importorskip("riverval.experiments.probe_sharpness").faint
    (note,) = faint(np.ones(1), np.zeros(1), 1e-8, 60)
    noted = dict(zip(NAMES, acceptance(dataset().assign_attrs(notes=f"descent: 60\n{note}")), strict=True))
    assert noted[NAMES[3]].value == pytest.approx(2.0)
    assert noted[NAMES[4]].value == pytest.approx(20.0 / 30.0)
    several = "\n".join(note.replace("60", str(t)) for t in (60, 80))
    assert named(acceptance(dataset().assign_attrs(notes=several)), "3 control").verdict == "not measured"


def test_a_null_below_zero_does_not_make_a_negative_cosine_pass():
    values = {"gradient_cosine": [-0.1, -0.11, -0.1, -0.1, np.nan, np.nan],
              "gradient_cosine_null": [-0.3] * 4 + [np.nan] * 2}  # fmt: skip
    assert named(acceptance(dataset(**values)), "6").verdict == "fails"


def test_exactly_the_bound_is_not_above_it():
    tau = [1.0] * 19 + [-1.0]
    ds = build({"probe_step": range(20), "quasi_convexity": tau}, {}, "real")
    test = named(acceptance(ds), "5")
    assert (test.value, test.verdict) == (0.95, "fails")


def test_what_a_run_lacks_is_not_measured():
    tests = acceptance(build({"final_train_loss": 1.0}, {}, "real"))
    assert {test.verdict for test in tests} == {"not measured"}
    assert all(math.isnan(test.value) and not test.values for test in tests)
    cosine = acceptance(dataset(pair=["cooldown"], interpolation_dip=[0.1], interpolation_dip_error=[0.1],
                                interpolation_rise=[0.0], interpolation_rise_error=[0.1]))  # fmt: skip
    assert named(cosine, "2a").verdict == "not measured"
    assert named(cosine, "2b").verdict == "holds"


def test_cosine_must_differ_by_its_schedule_only():
    with pytest.raises(InputError, match="its seed is 1 and not 0"):
        acceptance(dataset(), dataset(seed=1))


@pytest.mark.parametrize("field", ["steps", "lr", "batch", "weight_decay", "optimizer", "final_examples"])
def test_a_cosine_run_of_another_length_rate_or_optimizer_is_refused(field):
    def with_(value):
        ds = dataset()
        return ds.assign_attrs(config=json.dumps({**json.loads(ds.attrs["config"]), field: value}))

    assert len(acceptance(with_(1), with_(1))) == len(NAMES)
    with pytest.raises(InputError, match=f"its {field} is 2 and not 1"):
        acceptance(with_(1), with_(2))


# --- seeds -----------------------------------------------------------------------------------------------------------
def test_seeds_together_are_means_with_the_spread_between_them():
    gaps = [0.02, -0.01, 0.03]
    runs = [acceptance(dataset(k, final_train_loss=1.0 + g), dataset(k, final_train_loss=1.0)) for k, g in
            enumerate(gaps)]  # fmt: skip
    test = named(over_seeds(runs), "1")
    error = np.std(gaps, ddof=1) / np.sqrt(3)
    assert (test.value, test.error) == pytest.approx((np.mean(gaps), error))
    assert test.high - test.value == pytest.approx(student.ppf(0.975, 2) * error)
    assert test.verdict == "holds"  # zero is within the noise of seeds
    assert test.values == pytest.approx(gaps)
    worse = [acceptance(dataset(k, final_train_loss=1.1 + g), dataset(k, final_train_loss=1.0)) for k, g in
             enumerate(gaps)]  # fmt: skip
    assert named(over_seeds(worse), "1").verdict == "fails"


def test_of_ratios_the_logarithm_is_averaged():
    runs = [acceptance(dataset(direction_ratio=r)) for r in (1.5, 2.0, 3.0)]
    test = named(over_seeds(runs), "4 norm")
    logs = np.log([1.5, 2.0, 3.0])
    half = student.ppf(0.975, 2) * logs.std(ddof=1) / np.sqrt(3)
    assert test.value == pytest.approx(9.0 ** (1 / 3))
    assert (test.low, test.high) == pytest.approx(tuple(np.exp(logs.mean() + np.array([-half, half]))))
    assert (test.verdict, test.held) == ("undecided", 3)


def test_ratios_without_a_logarithm_are_counted():
    runs = [acceptance(dataset(direction_ratio=r)) for r in (1.5, 0.0, 2.0, -1.0)]
    test = named(over_seeds(runs), "4 norm")
    assert test.values == (1.5, 2.0)
    assert test.left_out == 2
    told = "2 seeds left out, whose ratio is not above 0"
    assert [row[3] for row in acceptance_rows(over_seeds(runs))][5] == f"undecided (2 of 2 seeds; {told})"
    assert named(over_seeds(runs[:2]), "4 norm").left_out == 1
    assert named(over_seeds(runs[1:2]), "4 norm").verdict == "not measured"
    assert not named(over_seeds(runs), "4 control").left_out


def test_a_largest_rise_in_every_seed_is_no_sign_of_one():
    """Noise alone lifts it above 0, in each seed by about as much."""
    runs = [acceptance(dataset(interpolation_rise=[0.3, rise])) for rise in (0.0030, 0.0031, 0.0029)]
    test = named(over_seeds(runs), "2b")
    half = 0.002 * student.ppf(0.975, 7)
    assert test.low == pytest.approx(0.003 - half)
    assert test.verdict == "holds"
    large = [acceptance(dataset(interpolation_rise=[0.3, rise])) for rise in (0.030, 0.031, 0.029)]
    assert named(over_seeds(large), "2b").verdict == "fails"


def test_seeds_that_did_not_measure_are_left_out():
    lacking = acceptance(build({"final_train_loss": 1.0}, {}, "real"))
    one = over_seeds([acceptance(dataset()), lacking])
    assert [test.name for test in one] == list(NAMES)
    assert named(one, "4 norm") == named(acceptance(dataset()), "4 norm")
    assert named(one, "1").verdict == "not measured"
    with pytest.raises(InputError, match="at least one run"):
        over_seeds([])


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6))
def test_the_interval_over_seeds_holds_the_mean_and_no_verdict_contradicts_it(ratios):
    test = named(over_seeds([acceptance(dataset(direction_ratio=r)) for r in ratios]), "4 norm")
    assert test.low <= test.value * (1 + 1e-12)
    assert test.value <= test.high * (1 + 1e-12)
    assert test.verdict in VERDICTS
    assert (test.verdict == "holds") == (test.low > 1)


def test_a_table_has_a_row_for_each_test():
    rows = acceptance_rows(over_seeds([acceptance(dataset()), acceptance(dataset(1))]))
    assert [row[0] for row in rows] == list(NAMES)
    assert rows[3][1:] == ("2 [2, 2]", "1", "holds (2 of 2 seeds)")
    assert rows[0][1:] == ("", "", "not measured")
