"""What holds for every law of the registry, and the objects around a law."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from riverval.errors import InputError, StoreError
from riverval.laws import LAWS, FittedLaw, fit_law, known_law, load_law, make_law, save_law
from riverval.schedules import WSD

from .made_laws import PEAK, VALUES, known, made_curves, rates

EVERY = pytest.mark.parametrize("name", [n for n in LAWS if n in VALUES])
STEPS = np.array([100, 1000, 2500, 3000])


# --- properties over the registry ------------------------------------------------------------------------------------
@EVERY
def test_the_loss_does_not_depend_on_what_comes_later(name):
    lr = rates(3000, "linear", start=0.4)
    other = np.concatenate([lr[:1000], np.random.default_rng(0).uniform(0.0, PEAK, 4000)])
    np.testing.assert_array_equal(
        known(name).predict(lr, [1, 999, 1000]).loss, known(name).predict(other, [1, 999, 1000]).loss
    )
    # Also where later states are asked for, which need more modes.
    np.testing.assert_allclose(
        known(name).predict(lr, [500, 1000, 3000]).loss[:2],
        known(name).predict(other, [500, 1000, 5000]).loss[:2],
        rtol=1e-6,
    )


@EVERY
def test_the_loss_is_continuous_in_the_schedule(name):
    lr = rates(3000, "cosine", start=0.3)
    wiggle = np.random.default_rng(1).uniform(-1.0, 1.0, lr.size)
    change = [
        np.abs(known(name).predict(lr * (1 + h * wiggle), STEPS).loss - known(name).predict(lr, STEPS).loss).max()
        for h in (1e-6, 1e-8)
    ]
    assert change[0] < 1e-2
    assert change[1] < 1e-4


@EVERY
def test_a_run_in_parts_is_the_same_run(name):
    """Equal updates in any notation: a schedule, its rates, and rates of two parts joined."""
    schedule = WSD(peak_lr=PEAK, steps=3000, warmup=200, cooldown=0.3)
    values = schedule.values()
    parts = np.concatenate([values[:1234], values[1234:]]).tolist()
    expected = known(name).predict(schedule, STEPS).loss
    np.testing.assert_array_equal(known(name).predict(values, STEPS).loss, expected)
    np.testing.assert_array_equal(known(name).predict(parts, STEPS).loss, expected)
    for n, loss in zip(STEPS, expected, strict=True):  # and each state asked for alone
        assert known(name).predict(values, [n]).loss[0] == pytest.approx(loss, rel=1e-6)


@EVERY
def test_a_long_constant_run_falls_to_its_plateau(name):
    """The river's power of time is all that still moves: differences of states shrink as it does."""
    lr = rates(64000)
    loss = known(name).predict(lr, [16000, 32000, 64000]).loss
    p = VALUES[name]
    exponent = p.get("alpha", p.get("s"))
    assert loss[0] > loss[1] > loss[2] > p["L0"]
    assert (loss[1] - loss[2]) / (loss[0] - loss[1]) == pytest.approx(2.0**-exponent, rel=0.12)


@EVERY
def test_a_cooldown_helps(name):
    stable, cooled = rates(3000), rates(3000, "linear")
    assert known(name).predict(cooled, [3000]).loss < known(name).predict(stable, [3000]).loss - 0.01


@EVERY
def test_tiny_rates_are_finite(name):
    lr = rates(1000, "linear", floor=0.0)
    for tail in (np.zeros(50), np.full(50, 1e-12 * PEAK), np.full(50, 1e-300)):
        assert np.isfinite(known(name).predict(np.concatenate([lr, tail])).loss).all()


@EVERY
def test_a_run_that_never_moves_has_no_loss(name):
    with pytest.raises(InputError, match="every rate"):
        known(name).predict(np.zeros(100))


# The laws in which a defect is known; every other law must be free of it.
REST_HELPS = {"annealing", "forward-momentum"}
LARGER_IS_BETTER = {"annealing", "forward-momentum", "equal-tau"}


@EVERY
def test_updates_at_rate_zero_change_nothing(name):
    lr = rates(3000, "linear", floor=0.1)
    rested = np.concatenate([lr, np.zeros(300)])
    loss = known(name).predict(rested, [3001, 3300]).loss
    assert (loss[1] < loss[0] - 1e-4) == (name in REST_HELPS)
    if name not in REST_HELPS:
        assert loss[1] == pytest.approx(loss[0], rel=1e-9)


@EVERY
def test_larger_rates_are_not_always_better(name):
    lr = rates(3000, "linear", floor=0.1)
    losses = [known(name).predict(lr * factor, [3000]).loss[0] for factor in 2.0 ** np.arange(0, 12)]
    assert bool(np.all(np.diff(losses) < 0)) == (name in LARGER_IS_BETTER)


@EVERY
def test_a_million_updates_take_less_than_a_second(name):
    t = np.arange(10**6)
    lr = PEAK * np.minimum((t + 1) / 2000, 1.0) * (0.55 + 0.45 * np.cos(np.pi * t / t.size))
    law = fit_law(name, made_curves(name, noise=1e-3), interval="residuals")
    start = time.process_time()
    assert law.predict(lr).loss.shape == (1000,)
    assert time.process_time() - start < 1.0


# --- fits -------------------------------------------------------------------------------------------------------------
@EVERY
def test_a_law_finds_itself(name):
    curves = made_curves(name)
    fitted = fit_law(name, curves)
    assert fitted.scale < 1e-4
    lr = rates(6000, "linear", start=0.7, floor=0.0)
    steps = [1000, 4000, 5000, 6000]
    np.testing.assert_allclose(fitted.predict(lr, steps).loss, known(name).predict(lr, steps).loss, rtol=2e-3)


@EVERY
def test_a_fitted_law_survives_a_file(name, tmp_path):
    fitted = fit_law(name, made_curves(name, noise=1e-3), interval="residuals")
    read = load_law(save_law(fitted, tmp_path / "law.json"))
    assert json.dumps(read.to_dict()) == json.dumps(fitted.to_dict())
    for a, b in zip(
        read.predict(rates(500)).__dict__.values(), fitted.predict(rates(500)).__dict__.values(), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@EVERY
def test_a_transfer_moves_the_river_only(name):
    before = known(name)
    moved = known_law(name, {**before.values, "L0": 2.2, "A": before.values["A"] * 1.3})
    curves = made_curves(name)
    other = [type(c)(c.name, c.lr, c.steps, moved.predict(c.lr, c.steps).loss) for c in curves]
    transferred = before.transfer(other[:1])
    assert transferred.values == pytest.approx(moved.values, rel=1e-5)
    assert math.isnan(transferred.errors[next(n for n in before.values if n not in ("L0", "A"))])


def test_a_transfer_is_fitted_as_the_law_was(tmp_path):
    curves = made_curves("noise-floor", noise=2e-3)
    short = replace(curves[1], steps=curves[1].steps[::9], loss=curves[1].loss[::9])
    before = fit_law("noise-floor", curves, weighting="curves", skip=0.3, interval="residuals")
    explicit = before.transfer([curves[0], short], weighting="curves", skip=0.3)
    for law in (before, load_law(save_law(before, tmp_path / "law.json"))):
        after = law.transfer([curves[0], short])
        assert (after.fit_options["weighting"], after.fit_options["skip"]) == ("curves", 0.3)
        assert after.fit_options["interval"] == "folds"  # of the transfer alone
        assert after.values == explicit.values
        assert after.fitted_on == explicit.fitted_on
    for given in ({"skip": 0.0}, {"weighting": "points"}):
        other = before.transfer([curves[0], short], **given)
        assert other.fit_options == {**explicit.fit_options, **given}
        assert other.values != explicit.values
    plain = known("noise-floor").transfer(curves[:1])
    assert (plain.fit_options["weighting"], plain.fit_options["skip"]) == ("points", 0.05)


# --- one law, in detail -----------------------------------------------------------------------------------------------
def test_intervals_contain_new_measurements():
    law = fit_law("noise-floor", made_curves("noise-floor", noise=2e-3))
    lr = rates(4000, "linear", start=0.4)
    told = law.predict(lr, np.arange(300, 4001, 10))
    measured = known("noise-floor").predict(lr, told.steps).loss
    measured = measured * np.exp(2e-3 * np.random.default_rng(5).standard_normal(told.steps.size))
    inside = np.mean((told.low < measured) & (measured < told.high))
    assert 0.9 < inside < 0.99
    assert np.all(told.low < told.loss)


def test_intervals_grow_where_the_law_extrapolates():
    law = fit_law("noise-floor", made_curves("noise-floor", noise=2e-3))
    told = law.predict(rates(400000), [2000, 400000])
    width = np.log(told.high / told.low)
    assert width[1] > 1.1 * width[0]


def test_a_known_law_has_no_interval():
    told = known("noise-floor").predict(rates(100))
    assert np.isnan(told.low).all()
    assert np.isnan(told.high).all()


@EVERY
def test_a_warmup_from_zero_has_a_prediction(name):
    told = known(name).predict(np.concatenate([[0.0, 0.0], rates(50)]))
    assert told.steps.tolist() == list(range(3, 53))
    assert np.isfinite(told.loss).all()


def test_an_interval_is_in_order_or_not_there():
    """A parameter that the curves leave open makes it wide but finite; a loss below 0 has none."""
    known_zero = known_law("annealing", {**VALUES["annealing"], "L0": 0.0, "A": 0.0})
    law = replace(known_zero, covariance=np.eye(5), discrepancy=0.01)
    told = law.predict(rates(3000, "linear"), [3000])
    assert told.loss < 0
    assert np.isnan([told.low, told.high]).all()
    wide = replace(known("noise-floor"), covariance=1e9 * np.eye(4), discrepancy=0.01).predict(rates(300))
    assert np.isfinite(wide.high).all()
    assert np.all(wide.low < wide.loss)


def test_the_order_of_names_in_a_file_does_not_matter(tmp_path):
    fitted = fit_law("noise-floor", made_curves("noise-floor", noise=1e-3), interval="residuals")
    path = tmp_path / "law.json"
    path.write_text(json.dumps(fitted.to_dict(), sort_keys=True), encoding="utf-8")
    read = load_law(path)
    assert list(read.values) == list(fitted.values)  # the order of the covariance
    np.testing.assert_array_equal(read.predict(rates(500)).high, fitted.predict(rates(500)).high)


def test_options_and_what_was_seen_survive_a_file(tmp_path):
    fitted = fit_law("river-valley", made_curves("river-valley"), interval="residuals", init_std=None, weight_decay=0.2)
    read = load_law(save_law(fitted, tmp_path / "law.json"))
    assert read.law == fitted.law
    assert read.seen == fitted.seen == {"peak_lrs": [PEAK], "updates": 4000, "warmup": 200}


def test_states_of_a_prediction_end_with_the_run():
    assert known("noise-floor").predict(rates(7)).steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    steps = known("noise-floor").predict(rates(12345)).steps
    assert (steps.size, steps[-1]) == (1000, 12345)
    assert np.all(np.diff(steps) > 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_law("anealing"), "Did you mean 'annealing'"),
        (lambda: make_law("annealing", eps=1.0), "takes no option 'eps'"),
        (lambda: make_law("forward-momentum", eps=0.0), "eps must be"),
        (lambda: known_law("noise-floor", {"L0": 1.0}), "also needs a value of A, N, alpha"),
        (lambda: known_law("noise-floor", {**VALUES["noise-floor"], "B": 1.0}), "takes no option 'B'"),
        (lambda: known_law("noise-floor", {**VALUES["noise-floor"], "N": -1.0}), "N .* must be"),
        (lambda: known_law("noise-floor", {**VALUES["noise-floor"], "alpha": 9.0}), "alpha .* must be"),
        (lambda: known("noise-floor").predict([0.1, -0.1]), "rates of at least 0"),
        (lambda: known("noise-floor").predict([]), "at least one update"),
        (lambda: known("noise-floor").predict([0.1, 0.1], [0, 1]), "after 1 update at the earliest"),
        (lambda: known("noise-floor").predict([0.1, 0.1], [3]), "states must be"),
        (lambda: known("noise-floor").predict([0.0, 0.1], [1, 2]), "ask for later states"),
        (lambda: fit_law("noise-floor", []), "at least one curve"),
        (lambda: fit_law("noise-floor", made_curves("noise-floor") * 2), "two curves have the name 'constant'"),
        (lambda: fit_law("noise-floor", made_curves("noise-floor"), interval="wide"), "unknown interval 'wide'"),
        (lambda: fit_law("noise-floor", made_curves("noise-floor"), weighting="loss"), "unknown weighting 'loss'"),
        (lambda: fit_law("noise-floor", made_curves("noise-floor"), seed=-1), "seed must be"),
        (lambda: FittedLaw.from_dict({"law": "noise-floor"}), "not the record of a fitted law"),
        (lambda: FittedLaw.from_dict({**known("noise-floor").to_dict(), "covariance": None}), "damaged"),
        (lambda: FittedLaw.from_dict({**known("noise-floor").to_dict(), "values": {}}), "also needs"),
        (lambda: FittedLaw.from_dict({**known("noise-floor").to_dict(), "errors": {}}), "damaged"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_files_that_are_no_laws(tmp_path):
    path = tmp_path / "law.json"
    with pytest.raises(StoreError, match="cannot read"):
        load_law(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is not JSON"):
        load_law(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"law\.json: not the record"):
        load_law(path)
    with pytest.raises(InputError, match="exists"):
        save_law(known("annealing"), path)
    with pytest.raises(StoreError, match="cannot write"):
        save_law(known("annealing"), tmp_path / "none" / "law.json")
    assert load_law(save_law(known("annealing"), path, overwrite=True)).values == VALUES["annealing"]


@pytest.mark.parametrize("name", ["noise-floor", "river-valley"])
def test_a_transfer_carries_the_errors_of_what_it_keeps(name):
    """L0 and A answer a change of a kept parameter as a transfer with that change does."""
    before = fit_law(name, made_curves(name, noise=5e-4), interval="residuals")
    stable = made_curves(name, noise=1e-5, seed=1)[:1]
    after = before.transfer(stable, interval="residuals")
    names = list(before.values)
    for kept in set(names) - {"L0", "A"}:
        error = before.errors[kept]
        assert after.errors[kept] == error
        moved = replace(before, values={**before.values, kept: before.values[kept] + 0.01 * error})
        answer = moved.transfer(stable, interval="residuals")
        row = np.linalg.solve(
            _block(before.covariance, names), after.covariance[names.index("A"), _places(names)]
        )  # of A, by all kept ones
        found = (answer.values["A"] - after.values["A"]) / (0.01 * error)
        assert row[[n for n in names if n not in ("L0", "A")].index(kept)] == pytest.approx(found, rel=0.05, abs=1e-6)
    lr = rates(4000, "linear", start=0.9)
    exact = replace(after, covariance=np.zeros_like(after.covariance))
    assert np.ptp([after.predict(lr, [4000]).high, after.predict(lr, [4000]).low]) > np.ptp(
        [exact.predict(lr, [4000]).high, exact.predict(lr, [4000]).low]
    )


def _places(names):
    return [i for i, n in enumerate(names) if n not in ("L0", "A")]


def _block(covariance, names):
    return covariance[np.ix_(_places(names), _places(names))]
