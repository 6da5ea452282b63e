"""Comparison: gains, nulls and verdicts on datasets whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

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


def walks(rng: np.random.Generator, replicates: int, hill: float) -> xr.Dataset:
    """A straight river without (or with) a hill that the cooldown removes: its losses are random walks in S."""
    state = np.arange(0, WSD.total + 1, 5)
    rates = np.concatenate([WSD.values(), [0.0]])
    noise = np.cumsum(rates[:-1] * rng.standard_normal((replicates, WSD.total)), axis=1)
    noise = np.concatenate([np.zeros((replicates, 1)), noise], axis=1)
    times = np.concatenate([[0.0], np.cumsum(WSD.values())])
    values = {
        "step": np.arange(WSD.total),
        "lr": WSD.values(),
        "phase": WSD.phases(),
        "eval_step": state,
        "replicate": np.arange(replicates),
        "loss": (-0.3 * times + noise + hill * rates / WSD.peak_lr)[:, state],
        "diverged": np.zeros(replicates),
        "diverged_at": np.full(replicates, -1),
    }
    return schema.build(values, {}, "toy")


@pytest.mark.parametrize("replicates", [3, 16])
def test_a_valley_without_hills_stays_within_its_null(rng: np.random.Generator, replicates: int) -> None:
    """The verdict's own false alarms, where losses are correlated in time: z follows Student's t."""
    scores = [compare.scorecard(walks(rng, replicates, hill=0.0))[0] for _ in range(600)]
    assert {s.verdict for s in scores} == {"within the null"}  # 4 sigma: 0.04 alarms expected in 600
    z = np.array([s.z for s in scores])
    assert stats.kstest(z, stats.t(replicates - 1).cdf).pvalue > 1e-3


def test_stated_errors_are_the_spread_over_repeats(rng: np.random.Generator) -> None:
    """2000 repeats of 8 replicates know a spread to 1.6 %, and its estimates' root mean square to 0.6 %."""
    gains = [compare.cooldown_gain(walks(rng, 8, hill=0.0)) for _ in range(2000)]
    for name in ("gain", "river", "hill"):
        values, errors = (np.array([getattr(g, n) for g in gains]) for n in (name, f"{name}_error"))
        assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=4 * np.hypot(0.016, 0.006))


def test_a_hill_is_above_the_null_and_a_rise_below(rng: np.random.Generator) -> None:
    for hill, verdict in ((5.0, "above the null"), (-5.0, "below the null")):
        (score,) = compare.scorecard(walks(rng, 16, hill=hill))
        assert score.reference == "river alone"
        assert score.verdict == verdict


def test_a_single_run_has_no_error_bar_and_so_no_verdict(rng: np.random.Generator) -> None:
    for ds in (valley(WSD, slope=0.3, hill=2.0, noise=0.01), walks(rng, 1, hill=5.0)):
        (score,) = compare.scorecard(ds)
        assert np.isnan(score.error)
        assert np.isnan(score.against_error)
        assert score.verdict == "no error bar"


def test_a_run_with_a_diverged_replicate_is_not_scored(rng: np.random.Generator) -> None:
    ds = walks(rng, 8, hill=5.0)
    ds["diverged"][3] = 1
    assert compare.scorecard(ds) == []


def test_a_tiny_rate_does_not_make_the_fit_singular() -> None:
    tiny = make_schedule("wsd", peak_lr=1e-300, steps=400, cooldown=0.25)
    gain = compare.cooldown_gain(valley(tiny, slope=0.3e299, hill=2.0))
    assert gain is not None
    assert gain.hill == pytest.approx(2.0, rel=1e-6)


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
    ("kind", "value", "freedom", "verdict"),
    [
        ("theory", 1.3, np.inf, "agrees"),
        ("theory", 1.5, np.inf, "disagrees"),
        ("theory", 1.5, 3, "agrees"),  # t with 3 degrees of freedom: the limit is 22 and not 4
        ("null", 1.3, np.inf, "within the null"),
        ("null", 1.41, np.inf, "above the null"),
        ("null", 0.5, np.inf, "below the null"),
    ],
)
def test_verdicts_are_given_at_four_standard_errors(kind: str, value: float, freedom: float, verdict: str) -> None:
    score = compare.Score("d", value, 1.0, "r", kind, difference_error=0.1, freedom=freedom)  # type: ignore[arg-type]
    assert score.verdict == verdict
    assert score.limit == pytest.approx(stats.t(freedom).isf(stats.norm.sf(4)) if freedom < np.inf else 4.0)
    assert compare.Score("d", value, 1.0, "r", kind).verdict == "no error bar"  # type: ignore[arg-type]


def observed(**values: object) -> schema.xr.Dataset:
    """A watched run of 10 stable and 10 cooling updates, probed at four states."""
    series = {"step": np.arange(20), "lr": np.ones(20), "phase": np.repeat([1, 2], 10), "probe_step": [0, 10, 15, 20]}
    return schema.build(series | values, {}, "real")


def test_sharpness_is_compared_within_the_cooldown_and_where_it_was_measured() -> None:
    (score,) = compare.scorecard(observed(hessian_top=[9.0, 2.0, np.nan, 5.0]))
    assert score.value == pytest.approx(2.5)
    assert score.verdict == "no error bar"
    assert compare.scorecard(observed(hessian_top=[9.0, 2.0, np.nan, np.nan])) == []


def test_the_cosine_of_the_updates_has_the_error_of_shuffled_gradients() -> None:
    values = {
        "gradient_cosine": [0.5, 0.3, 0.1, np.nan],
        "gradient_cosine_null": [0.02, 0.0, 0.01, np.nan],
        "gradient_cosine_null_std": [0.03, 0.04, 0.12, np.nan],
    }
    (score,) = compare.scorecard(observed(**values))
    assert (score.value, score.against) == pytest.approx((0.3, 0.01))
    assert score.difference_error == pytest.approx(np.sqrt(0.03**2 + 0.04**2 + 0.12**2) / 3)
    assert score.verdict == "above the null"


def test_tau_and_drift_stand_beside_their_nulls() -> None:
    values = {"window": ["stable", "cooldown"], "drift_share": [0.2, 0.5], "drift_null": [0.1, 0.25],
              "phase_cosine": 0.05, "phase_cosine_null": 0.03,
              "quasi_convexity": [1.0, -0.5, 2.0, np.nan]}  # fmt: skip
    told = {s.diagnostic: (s.value, s.against, s.verdict) for s in compare.scorecard(observed(**values))}
    assert told == {
        "drift share, stable snapshots": (0.2, 0.1, "no error bar"),
        "drift share, cooldown snapshots": (0.5, 0.25, "no error bar"),
        "cosine of the phases' first components": (0.05, 0.03, "no error bar"),
        "share of states with tau > 0": (2 / 3, 0.5, "no error bar"),
    }
