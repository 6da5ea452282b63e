"""The fitting engine on laws whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from riverval.curves import Curve
from riverval.errors import InputError
from riverval.law_base import Theta
from riverval.law_errors import correlation_time
from riverval.law_fitting import HUBER, huber_cost, huber_weight, without_start
from riverval.laws import LAWS, fit_law

from .made_laws import PEAK, TRAINING, VALUES, known, made_curves, published_curves, rates


@pytest.mark.parametrize(
    ("theta", "value"),
    [
        (Theta("a", 0.1, 9.0, (1.0,)), 2.5),
        (Theta("a", 0.0, 1.0, (0.5,), "linear"), 0.3),
        (Theta("a", 0.5, 0.9999, (0.9,), "keep"), 0.99),
    ],
)
def test_search_coordinates(theta, value):
    z = theta.search(value)
    assert theta.value(z) == pytest.approx(value, rel=1e-12)
    assert theta.slope(z) == pytest.approx((theta.value(z + 1e-6) - theta.value(z - 1e-6)) / 2e-6, rel=1e-6)
    assert theta.bounds()[0] < z < theta.bounds()[1]


def test_hubers_cost_and_weight():
    r = np.array([0.0, 0.5 * HUBER, -HUBER, 3.0 * HUBER])
    assert huber_cost(r, np.array([1.0, 1.0, 2.0, 1.0])) == pytest.approx(HUBER**2 * (0.125 + 2 * 0.5 + 2.5))
    np.testing.assert_allclose(huber_weight(r), [1.0, 1.0, 1.0, 1.0 / 3.0])


def test_the_minimum_is_that_of_the_cost():
    """Another optimiser, started there, finds nothing lower."""
    curves = made_curves("noise-floor", noise=3e-3)
    fitted = fit_law("noise-floor", curves, skip=0.0)

    def cost(x):
        values = dict(zip(fitted.values, x * list(fitted.values.values()), strict=True))
        law = type(fitted.law)()
        r = np.concatenate([np.log(law.evaluate(c.lr, c.steps, values) / c.loss) for c in curves])
        return huber_cost(r, np.ones(r.size)) * 1e6

    found = minimize(cost, np.ones(4), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 2000})
    assert cost(np.ones(4)) <= found.fun * (1 + 1e-4)
    np.testing.assert_allclose(found.x, 1.0, atol=0.02)


@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_standard_errors_are_those_of_repeated_fits(kept):
    """Also with noise of which each point keeps most, where errors that took points as independent would be a third."""
    fits = [
        fit_law("noise-floor", made_curves("noise-floor", noise=5e-4, seed=k, kept=kept), interval="residuals")
        for k in range(40)
    ]
    for name in fits[0].values:
        spread = np.std([f.values[name] for f in fits], ddof=1)
        assert 0.6 < np.median([f.errors[name] for f in fits]) / spread < 1.6, name


def test_correlated_residuals_widen_the_errors():
    rng = np.random.default_rng(3)
    white = rng.standard_normal(4000)
    owner = np.repeat([0, 1], 2000)
    assert correlation_time(white, owner, np.ones(4000)) == pytest.approx(1.0, abs=0.15)
    ar = np.zeros(4000)
    for i in range(1, 4000):
        ar[i] = 0.8 * ar[i - 1] + white[i]
    assert correlation_time(ar, owner, np.ones(4000)) == pytest.approx(9.0, rel=0.3)  # (1 + rho) / (1 - rho)
    assert correlation_time(np.zeros(4), np.zeros(4, int), np.ones(4)) == 1.0


def test_an_outlier_hardly_counts():
    clean = made_curves("noise-floor", noise=2e-4)
    loss = clean[0].loss.copy()
    loss[20] *= 1.5
    spoilt = [Curve("spoilt", clean[0].lr, clean[0].steps, loss), *clean[1:]]
    a, b = fit_law("noise-floor", clean).values, fit_law("noise-floor", spoilt).values
    assert a == pytest.approx(b, rel=5e-3)


def test_curves_may_weigh_the_same():
    """Two runs of the same schedule that differ by a shift: the level is between them, by points or by halves."""
    lr = rates(4000)
    dense, sparse = np.arange(300, 4001, 10), np.arange(300, 4001, 100)

    def at(steps, shift):
        return Curve(f"{shift}", lr, steps, known("noise-floor").predict(lr, steps).loss * math.exp(shift))

    curves = [at(dense, 0.0), at(sparse, 1e-3)]
    kept = {k: v for k, v in VALUES["noise-floor"].items() if k != "L0"}
    level = {w: fit_law("noise-floor", curves, fixed=kept, weighting=w).values["L0"] for w in ("points", "curves")}
    shift = {w: (v - VALUES["noise-floor"]["L0"]) / 3.2 for w, v in level.items()}
    assert shift["points"] == pytest.approx(1e-3 / 11, rel=0.15)
    assert shift["curves"] == pytest.approx(5e-4, rel=0.15)


def test_what_the_curves_do_not_show_is_said():
    plain = [c for c in made_curves("annealing") if c.name == "constant"]
    fitted = fit_law("annealing", plain)
    assert fitted.values["C"] == 0.0
    assert math.isnan(fitted.errors["C"])
    assert any("C lies on its bound 0" in note for note in fitted.notes)
    assert any("lam is not determined" in note for note in fitted.notes)


def test_one_minimum_is_not_called_two():
    """Neither where a start stopped on its way, nor where the minima differ in what no point depends on."""
    for law, curves in (
        ("annealing", made_curves("annealing", noise=1e-3)[:1]),
        ("noise-floor", made_curves("noise-floor")),
    ):
        assert not any("another minimum" in note for note in fit_law(law, curves, interval="residuals").notes)


def test_a_parameter_at_its_end_does_not_hold_back_the_others():
    """The minimum on the edge of a range is that of the fit in which the parameter is given at that edge."""
    curves = published_curves("100M")
    training = [curves[name] for name in TRAINING]
    free = fit_law("multi-power", training, interval="residuals")
    assert free.values["gamma"] == 0.99
    given = fit_law("multi-power", training, interval="residuals", fixed={"gamma": 0.99})
    assert free.values == pytest.approx(given.values, rel=3e-3)


def test_a_range_that_ends_is_said():
    steep = Curve("steep", lr := rates(3000), n := np.arange(300, 3001, 50), 2.0 + 1e-3 * np.cumsum(lr)[n - 1] ** -5.0)
    fitted = fit_law("noise-floor", [steep], fixed={"N": 0.0})
    assert fitted.values["alpha"] == pytest.approx(3.0)
    assert any("alpha = 3 lies on its bound" in note for note in fitted.notes)
    assert math.isnan(fitted.errors["alpha"])


def test_the_discrepancy_is_what_refits_miss():
    """A law that cannot follow a late shift of the loss misses about it where the shifted part was left out."""
    curves = made_curves("noise-floor")
    shifted = [Curve(c.name, c.lr, c.steps, c.loss * math.exp(0.02 * (k == 3))) for k, c in enumerate(curves)]
    fitted = fit_law("noise-floor", shifted)
    assert 0.005 < fitted.discrepancy < 0.03
    alone = fit_law("noise-floor", shifted, interval="residuals")
    assert alone.discrepancy == alone.scale < fitted.discrepancy
    assert fit_law("noise-floor", curves[:1]).discrepancy < 1e-4  # the last third of one curve


def test_the_same_fit_twice_is_equal():
    curves = made_curves("annealing", noise=1e-3)
    assert fit_law("annealing", curves).to_dict() == fit_law("annealing", curves).to_dict()


def test_bad_input():
    lr = np.full(20, PEAK)
    short = [Curve("short", lr, [5, 10, 15, 20], [4.0, 3.8, 3.7, 3.6])]
    with pytest.raises(InputError, match="has 4 free parameters and needs at least 6 points, got 4"):
        fit_law("noise-floor", short)
    with pytest.raises(InputError, match="losses above 0"):
        fit_law("noise-floor", [Curve("low", lr, np.arange(1, 21), np.linspace(1.0, -1.0, 20))])
    with pytest.raises(InputError, match=r"all parameters .* are fixed"):
        fit_law("noise-floor", short, fixed=VALUES["noise-floor"])
    with pytest.raises(InputError, match="takes no option 'Q'"):
        fit_law("noise-floor", short, fixed={"Q": 1.0})


@pytest.mark.parametrize("law", sorted(LAWS))
def test_the_ends_of_a_range_are_met_without_rounding(law):
    for theta in LAWS[law].thetas:
        for end in (theta.low, theta.high):
            assert theta.value(theta.search(end)) == end


def test_a_curve_with_one_point_after_the_start_is_left_out_and_told_of():
    first, linear, *_ = made_curves("noise-floor")
    short = replace(first, steps=np.array([1000, 3900]), loss=first.loss[:2])
    kept, notes = without_start([short, linear], 0.6)
    assert [c.name for c in kept] == ["linear"]
    assert notes == ["curve 'constant' was left out: 1 point left after the first 60% of cumulative rate"]
    with pytest.raises(InputError, match=r"'constant' was left out: 1 point left .*; use a smaller skip, or longer"):
        without_start([short], 0.6)
    with pytest.raises(InputError, match="use a smaller skip"):
        fit_law("noise-floor", [short], skip=0.6)
