"""The river-valley law: its clock against simulated weights, its hill against the plain sum, its scores on runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverval.curve_files import read_curves
from riverval.curves import Curve
from riverval.errors import InputError
from riverval.law_base import Track
from riverval.law_scores import score_laws, summaries
from riverval.law_valley import REFERENCE_RATE, RiverValley, effective_rates, kernel_area
from riverval.laws import fit_law, known_law

from .made_laws import SHARED, TRAINING, VALUES, made_curves, published_curves, rates

TRUE = VALUES["river-valley"]


# --- the clock -------------------------------------------------------------------------------------------------------
def plain_clock(lr, weight_decay, init_std):
    """The same by a loop over the updates."""
    squared, out = init_std**2, []
    for eta in lr:
        out.append(eta * init_std / np.sqrt(squared))
        squared = squared * np.exp(-2.0 * weight_decay * eta) + eta**2
    return np.array(out)


@given(st.floats(0.0, 1.0), st.floats(1e-3, 0.1), st.integers(0, 10))
def test_effective_rates_follow_the_length_of_the_weights(weight_decay, init_std, seed):
    rng = np.random.default_rng(seed)
    lr = 1e-3 * rng.random(300) * (rng.random(300) > 0.1)
    found = effective_rates(lr, weight_decay=weight_decay, init_std=init_std)
    np.testing.assert_allclose(found, plain_clock(lr, weight_decay, init_std), rtol=1e-9)


def test_limits_of_the_clock():
    lr = np.full(400_000, 1e-3)
    settled = effective_rates(lr, weight_decay=0.1, init_std=0.02)[-1]
    assert settled == pytest.approx(0.02 * np.sqrt(2 * 0.1 * 1e-3), rel=1e-3)
    free = effective_rates(lr, weight_decay=0.0, init_std=0.02)[100_000]
    assert free == pytest.approx(1e-3 / np.sqrt(1 + 100_000 * (1e-3 / 0.02) ** 2), rel=1e-12)
    np.testing.assert_array_equal(effective_rates(lr, weight_decay=0.1, init_std=None), lr)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_in_pure_noise_lengthens_the_weights_so(beta1):
    """AdamW with momentum or without: the mean square of 3000 weights, within four standard errors and 3 %."""
    rng = np.random.default_rng(5)
    lr, weight_decay, init_std, beta2 = 2e-3 * rates(2500, "cosine") / 3e-4, 0.1, 0.02, 0.999
    w, m, v = init_std * rng.standard_normal(3000), np.zeros(3000), np.zeros(3000)
    for t, eta in enumerate(lr):
        g = rng.standard_normal(3000)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        step = m / (1 - beta1 ** (t + 1)) / np.sqrt(v / (1 - beta2 ** (t + 1)))
        w = (1 - eta * weight_decay) * w - eta * step
    last = effective_rates(np.append(lr, 1.0), weight_decay=weight_decay, init_std=init_std)[-1]
    expected = (init_std / last) ** 2
    error = expected * np.sqrt(2 / 3000)
    assert abs(np.mean(w**2) - expected) < 4 * error + 0.03 * expected
    assert expected > 5 * init_std**2  # the growth is what is tested, not the start


# --- the hill --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("p", [1.0, 1.63, 1.8, 2.0])
@pytest.mark.parametrize("shape", ["constant", "linear", "step"])
def test_the_law_is_its_formula(p, shape):
    lr = rates(1500, shape)
    steps = np.array([1, 300, 1201, 1500])
    values = {**TRUE, "p": p}
    e = plain_clock(lr, 0.1, 0.02)
    S = np.concatenate([[0.0], np.cumsum(e)])
    u = np.arange(20_000) / 20_000 + 0.5 / 20_000
    area = REFERENCE_RATE ** (p - 1.0) * np.mean((1 + TRUE["C"] * u) ** -TRUE["beta"])
    for n, loss in zip(steps, RiverValley().evaluate(lr, steps, values), strict=True):
        kernel = (1 + TRUE["C"] * (S[n] - S[1 : n + 1])) ** -TRUE["beta"]
        hill = TRUE["N"] * np.sum(e[:n] ** p * kernel) / area
        assert loss == pytest.approx(TRUE["L0"] + TRUE["A"] * S[n] ** -TRUE["alpha"] + hill, abs=3e-4 * TRUE["N"])


def test_the_hill_is_interpolated_between_exponents():
    law, track = RiverValley(), Track.of(rates(3000, "linear"), np.arange(100, 3001, 100))
    prepared = law.prepare(track)
    between = law.columns(prepared, [0.45, 600.0, 1.2, 1.8437])[:, 2]
    direct = law.prepare(track)
    direct.held = lambda p: np.log(_exact_sums(direct, p))
    np.testing.assert_allclose(law.columns(direct, [0.45, 600.0, 1.2, 1.8437])[:, 2], between, rtol=3e-4)


def _exact_sums(hill, p):
    held = np.zeros((hill.track.steps.size, hill.modes.size))
    sums, S = np.zeros(hill.modes.size), 0.0
    at = {int(n): i for i, n in enumerate(hill.track.steps)}
    for t, e in enumerate(hill.rates):
        sums = sums * np.exp(-hill.modes * e) + (e / REFERENCE_RATE) ** p
        if t + 1 in at:
            held[at[t + 1]] = sums
        S += e
    return np.maximum(held, 1e-300)


def test_the_reference_of_the_hill():
    """Under the reference rate and the plain clock, the hill after one unit of intrinsic time is N."""
    lr = np.full(1000, REFERENCE_RATE)
    law = known_law("river-valley", {**TRUE, "A": 0.0, "L0": 0.0, "C": 5.0}, init_std=None)
    assert law.predict(lr, [1000]).loss[0] == pytest.approx(TRUE["N"], rel=5e-3)  # sum against integral
    assert kernel_area(5.0, 1.2) == pytest.approx((1 - 6.0**-0.2) / (5.0 * 0.2), rel=1e-12)


@pytest.mark.parametrize("lr", [1e-5, 1e-9, 1e-30])
@pytest.mark.parametrize("C", [1.0, 600.0])
def test_a_run_that_hardly_moves_forgets_nothing(lr, C):
    law = known_law("river-valley", {**TRUE, "A": 0.0, "L0": 0.0, "C": C, "p": 2.0}, init_std=None)
    kernel = (1 + C * lr * np.arange(50)) ** -TRUE["beta"]
    expected = TRUE["N"] * np.sum(kernel) * lr**2 / REFERENCE_RATE / kernel_area(C, TRUE["beta"])
    assert law.predict(np.full(50, lr), [50]).loss[0] == pytest.approx(expected, rel=1e-4)


def test_rates_of_zero_change_nothing():
    law = known_law("river-valley", TRUE)
    lr = rates(2000, "linear")
    longer = np.append(lr, np.zeros(500))
    assert law.predict(longer, [2000, 2500]).loss[1] == pytest.approx(law.predict(lr, [2000]).loss[0], rel=1e-6)


# --- fits ------------------------------------------------------------------------------------------------------------
def test_a_fit_finds_the_parameters_that_made_the_curves():
    """Within four standard errors, though what is known before pulls some of them."""
    fitted = fit_law("river-valley", made_curves("river-valley", noise=2e-4))
    for name, (value, error) in fitted.parameters.items():
        assert abs(value - TRUE[name]) < 4 * error, name


def test_errors_are_those_of_models_drawn_from_what_is_known_before():
    """Curves with less noise than the cost takes: what is known weighs too much, and the errors must say so."""
    rng = np.random.default_rng(0)
    misses = []
    for _ in range(16):
        z = rng.standard_normal(4)
        drawn = {"N": 0.63 + 0.3 * abs(z[0]), "C": 650 * np.exp(1.6 * z[1]), "beta": 1.2 * np.exp(0.3 * z[2])}
        law = known_law("river-valley", {"L0": 2.6, "A": 0.55, "alpha": 0.5, "p": 1.81 + 0.1 * z[3], **drawn})
        curves = []
        for shape, start, total in (("cosine", 0.1, 6000), ("constant", 0.8, 6000), ("step", 0.5, 4000)):
            lr, steps = rates(total, shape, start=start), np.arange(100, total + 1, 100)
            loss = law.predict(lr, steps).loss * np.exp(3e-4 * rng.standard_normal(steps.size))
            curves.append(Curve(shape, lr, steps, loss))
        fitted = fit_law("river-valley", curves, interval="residuals")
        misses.append([(fitted.values[name] - law.values[name]) / fitted.errors[name] for name in ("alpha", "p", "N")])
    rms = np.sqrt(np.mean(np.square(misses), axis=0))
    assert np.all((rms > 0.5) & (rms < 1.7)), rms


def test_without_a_cooldown_the_hill_is_what_is_known_before():
    stable = made_curves("river-valley", noise=1e-3)[0]
    lr = rates(4000, "constant")
    fitted = fit_law("river-valley", [Curve("stable", lr, stable.steps[::8], stable.loss[::8])], interval="residuals")
    assert any("say less than what the law takes" in note and "N" in note for note in fitted.notes)
    value, error = fitted.parameters["N"]
    assert abs(value - RiverValley.known["N"][0]) < RiverValley.known["N"][1]
    assert 0.2 < error / RiverValley.known["N"][1] < 1.0 + 1e-9


@pytest.mark.parametrize(
    "options", [{"weight_decay": -0.1}, {"init_std": 0.0}, {"init_std": -1.0}, {"weight_decay": float("nan")}]
)
def test_bad_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        known_law("river-valley", TRUE, **options)


# --- published curves ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "published"), [("25M", 0.0038), ("100M", 0.0043)])
def test_held_out_curves_are_met_a_quarter_better_than_by_the_multi_power_law(size, published):
    """The mean error of the six curves that were not fitted, against that of the multi-power law as published."""
    curves = published_curves(size)
    fitted = fit_law("river-valley", [curves[name] for name in TRAINING], interval="residuals")
    held_out = [curve for name, curve in curves.items() if name not in TRAINING]
    errors = [np.mean(np.abs(fitted.predict(c.lr, c.steps).loss - c.loss)) for c in held_out]
    assert np.mean(errors) < 0.75 * published


def test_final_losses_of_other_cooldowns_are_met_better_than_by_the_multi_power_law():
    folder = SHARED / "data" / "curves" / "llm_124m"
    if not folder.is_dir():
        pytest.skip("the published curves are not here")
    scores = score_laws(read_curves(folder), ["river-valley", "multi-power"], ["A"], fit=_quick)
    mae = {(s.data, s.law): s.mae for s in summaries(scores) if s.group == "all"}
    rates_met = {data for data, _ in mae}
    assert len(rates_met) == 3
    for data in rates_met:
        assert mae[data, "river-valley"] < 0.75 * mae[data, "multi-power"], data


def _quick(name, curves, **options):
    return fit_law(name, curves, interval="residuals", **options)
