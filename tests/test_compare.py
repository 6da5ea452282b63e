"""Comparison: gains, nulls and verdicts on datasets whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from riverval import compare, schema
from riverval.schedules import make_schedule
from riverval.segments import Phase

from .made import WSD, valley


def test_gain_is_split_into_river_and_hill_exactly() -> None:
    gain = compare.cooldown_gain(valley(WSD, slope=0.3, hill=2.0))
    assert gain is not None
    travelled = WSD.area(300, 400)
    assert gain.river == pytest.approx(0.3 * travelled, rel=1e-9)
    assert gain.gain - gain.river == pytest.approx(2.0, rel=1e-9)


def test_the_null_as_a_curve_goes_on_where_the_stable_phase_led() -> None:
    flat, hilly = valley(WSD, slope=0.3, hill=0.0), valley(WSD, slope=0.3, hill=2.0)
    line = compare.river_alone(hilly)
    assert line is not None
    state, loss = line
    assert (state[0], state[-1]) == (150, 400)
    known = flat["loss"].interp(eval_step=state[state % 5 == 0]).to_numpy()
    assert loss[state % 5 == 0] == pytest.approx(known + 2.0, rel=1e-9)


def test_a_valley_without_hills_stays_within_its_null() -> None:
    """No hill: gain minus river is noise of the stated size, over 200 seeds."""
    z = []
    for seed in range(200):
        ds = valley(WSD, slope=0.3, hill=0.0, noise=0.1, seed=seed)
        gain = compare.cooldown_gain(ds)
        assert gain is not None
        # The last state is one noisy value; its own error (known here) belongs to the comparison.
        z.append((gain.gain - gain.river) / np.hypot(np.hypot(gain.gain_error, gain.river_error), 0.1))
    assert abs(np.mean(z)) < 4 / np.sqrt(200)
    assert 0.7 < np.std(z) < 1.3


def test_a_hill_is_beyond_the_null() -> None:
    (score,) = compare.scorecard(valley(WSD, slope=0.3, hill=2.0, noise=0.01))
    assert score.reference == "river alone"
    assert score.verdict == "beyond the null"
    assert score.z > 4


@pytest.mark.parametrize("name", ["constant", "cosine", "inverse-sqrt"])
def test_no_gain_without_a_cooldown_after_a_stable_phase(name: str) -> None:
    ds = valley(make_schedule(name, peak_lr=0.1, steps=400), slope=0.3, hill=2.0)
    assert compare.cooldown_gain(ds) is None
    assert compare.scorecard(ds) == []


def test_an_unfinished_cooldown_has_no_gain() -> None:
    ds = valley(WSD, slope=0.3, hill=2.0)
    cut = ds.isel(eval_step=slice(0, -3))
    assert compare.cooldown_gain(cut) is None


def test_windows_and_axis_of_wsd_s_are_those_of_its_last_cycle() -> None:
    plan = make_schedule("wsd-s", peak_lr=0.1, budgets=(100, 200, 400), cooldown=0.2)
    ds = valley(plan, slope=0.1, hill=1.0)
    assert compare.last_window(ds, Phase.COOLDOWN) == plan.windows("cooldown")[-1] == (360, 400)
    assert compare.last_window(ds, Phase.STABLE) == plan.windows("stable")[-1] == (200, 360)
    place = compare.cooldown_axis(ds, np.array([320, 360, 380, 400]))
    assert place is not None
    assert place.tolist() == [-1.0, 0.0, 0.5, 1.0]


def test_diverged_replicates_are_left_out_of_the_curve() -> None:
    values = {
        "eval_step": [0, 1],
        "replicate": [0, 1, 2],
        "loss": [[1.0, 2.0], [3.0, 4.0], [5.0, np.inf]],
        "diverged": [0, 0, 1],
    }
    told = compare.curve(schema.build(values, {}, "toy"))
    assert told is not None
    assert told.loss.tolist() == [2.0, 3.0]
    assert told.error == pytest.approx([1.0, 1.0])  # std of (1, 3) is sqrt 2, over sqrt 2 replicates


def test_chord_dip_of_a_parabola() -> None:
    alpha = np.linspace(0, 1, 11)
    values = {
        "pair": ["stable", "cooldown"],
        "alpha": alpha,
        "interpolation_loss": [4 * (alpha - 0.5) ** 2 + alpha, 1 - alpha],
    }
    assert compare.chord_dip(schema.build(values, {}, "real")) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "value", "error", "verdict"),
    [
        ("theory", 1.3, 0.1, "agrees"),
        ("theory", 1.5, 0.1, "disagrees"),
        ("null", 1.3, 0.1, "within the null"),
        ("null", 0.5, 0.1, "beyond the null"),
        ("null", 9.0, np.nan, "no error bar"),
    ],
)
def test_verdicts_are_given_at_four_standard_errors(kind: str, value: float, error: float, verdict: str) -> None:
    score = compare.Score("d", value, error, 1.0, np.nan, "r", kind)  # type: ignore[arg-type]
    assert score.verdict == verdict


def test_errors_of_replicates_are_those_of_their_mean() -> None:
    """Random-walking losses: the spread over 400 repeats of the experiment is the error that one of them states."""
    rng, plan = np.random.default_rng(5), WSD
    state = np.arange(0, plan.total + 1, 5)
    gains, told = [], []
    for _ in range(400):
        walk = np.cumsum(0.1 * rng.standard_normal((8, len(state))), axis=1)
        values = {
            "step": np.arange(plan.total),
            "lr": plan.values(),
            "phase": plan.phases(),
            "eval_step": state,
            "replicate": np.arange(8),
            "loss": walk,
        }
        gain = compare.cooldown_gain(schema.build(values, {}, "toy"))
        assert gain is not None
        gains.append(gain.gain - gain.river)
        told.append(np.hypot(gain.gain_error, gain.river_error))
    spread = np.std(gains, ddof=1)
    # Gain and river are correlated, so the sum in quadrature is near, not equal; 400 repeats know the spread to 3.5 %.
    assert 0.6 < np.sqrt(np.mean(np.square(told))) / spread < 1.6
