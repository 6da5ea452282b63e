"""Covariance of every model of the noise, as the updates meet it; what does not fit is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riverval.errors import InputError
from riverval.schedules import make_schedule
from riverval.toy import NOISES, Setting, StraightRiver, make_loss, make_noise, simulate

VALLEY = StraightRiver(0.2, (0.5, 2.0))
BENT = make_loss("bent")
DRAWS = 40_000

MODELS = {
    "isotropic": {"sigma": 0.7},
    "none": {},
    "anisotropic": {"sigmas": (0.1, 0.5, 2.0)},
    "student-t": {"sigma": 0.7, "freedom": 5.0},
    "fisher": {"batch": 3},
    "state-dependent": {"expression": "s*sqrt(1 + y1**2)", "parameters": (("s", 0.5),)},
}


def covariance_at(loss, noise, w, rng):
    """Covariance of what the model adds at one state, and the standard error of each of its entries."""
    xi = np.empty((loss.dim, DRAWS))
    noise.draw(rng, xi)
    scales = noise.scales(loss)
    states = np.repeat(np.array(w)[:, None], DRAWS, axis=1)
    shaped = noise.shape_rows(loss, states, xi) if scales is None else scales[:, None] * xi
    assert np.all(np.abs(shaped.mean(axis=1)) <= 5 * shaped.std(axis=1) / math.sqrt(DRAWS))
    products = shaped[:, None, :] * shaped[None, :, :]
    return products.mean(axis=-1), products.std(axis=-1) / math.sqrt(DRAWS)


@pytest.mark.parametrize("name", NOISES)
def test_every_model_is_tested_and_rebuilt_from_its_description(name):
    noise = make_noise(name, **MODELS[name])
    assert make_noise(**noise.to_dict()) == noise


@pytest.mark.parametrize("name", [n for n in MODELS if n != "state-dependent"])
def test_covariance_is_the_stated_one(name, rng):
    wanted = {
        "isotropic": 0.49 * np.eye(3),
        "none": np.zeros((3, 3)),
        "anisotropic": np.diag([0.01, 0.25, 4.0]),
        "student-t": 0.49 * np.eye(3),
        "fisher": np.diag([0.0, 0.5, 2.0]) / 3,
    }[name]
    found, error = covariance_at(VALLEY, make_noise(name, **MODELS[name]), (0.3, -1.0, 2.0), rng)
    assert np.all(np.abs(found - wanted) <= 4.5 * error)


@pytest.mark.parametrize("w", [(0.4, 0.3), (2.0, -1.0)])
def test_fisher_noise_has_the_hessian_as_covariance_where_it_is_one(w, rng):
    values, vectors = np.linalg.eigh(BENT.hessian(np.array(w)))
    wanted = vectors @ np.diag(np.maximum(values, 0.0)) @ vectors.T / 2
    found, error = covariance_at(BENT, make_noise("fisher", batch=2), w, rng)
    assert np.all(np.abs(found - wanted) <= 4.5 * error)


def test_noise_that_depends_on_the_state_is_as_loud_as_the_expression_says(rng):
    noise = make_noise("state-dependent", **MODELS["state-dependent"])
    found, error = covariance_at(VALLEY, noise, (0.0, 2.0, 1.0), rng)
    assert np.all(np.abs(found - 0.25 * 5.0 * np.eye(3)) <= 4.5 * error)


def test_student_t_has_heavier_tails_at_the_same_variance(rng):
    xi = np.empty((1, DRAWS))
    make_noise("student-t", sigma=1.0, freedom=3.0).draw(rng, xi)
    assert np.mean(np.abs(xi) > 5) > 100 * math.erfc(5 / math.sqrt(2))


def test_no_noise_draws_nothing_and_is_gradient_descent():
    rng = np.random.default_rng(1)
    before = rng.bit_generator.state
    ds = simulate(
        VALLEY, make_schedule("constant", peak_lr=0.1, steps=20), noise=make_noise("none"), replicates=2, rng=rng
    )
    assert rng.bit_generator.state == before
    assert float(ds["hill"][0, -1]) == pytest.approx(0.5 * (0.5 * 0.95**40 + 2.0 * 0.8**40))
    assert float(ds["exact_hill"][-1]) == pytest.approx(float(ds["hill"][0, -1]))


def test_fisher_noise_settles_where_the_theory_says():
    """P-HILL.6: hill_i = lr h_i / (2 B (2 - lr h_i)), and nothing is drawn along the flat river."""
    ds = simulate(
        VALLEY, make_schedule("constant", peak_lr=0.2, steps=200), noise=make_noise("fisher", batch=4),
        replicates=3000, rng=np.random.default_rng(2), every=200,
    )  # fmt: skip
    h = np.array(VALLEY.curvatures)
    hill = ds["hill"][:, -1]
    error = float(hill.std()) / math.sqrt(3000)
    assert abs(float(hill.mean()) - np.sum(0.2 * h / (8 * (2 - 0.2 * h)))) < 4 * error
    assert abs(float(hill.mean()) - 1.1 * np.sum(0.2 * h / (8 * (2 - 0.2 * h)))) > 4 * error  # it can fail
    assert float(ds["river"][:, -1].std()) < 1e-12


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: make_noise("isotopic"), r"unknown noise 'isotopic'.* mean 'isotropic'"),
        (lambda: make_noise("isotropic", sigma=-1), r"sigma .* got -1"),
        (lambda: make_noise("student-t", freedom=2.0), r"freedom .* got 2"),
        (lambda: make_noise("fisher", batch=0), r"batch .* got 0"),
        (lambda: make_noise("anisotropic", sigmas=1.0), r"sigmas must be a tuple"),
        (lambda: make_noise("none", sigma=1.0), r"no option 'sigma'"),
        (lambda: make_noise("anisotropic", sigmas=[1, 2]).scales(VALLEY), r"3 numbers, for x, y1, y2; got 2"),
        (lambda: make_noise("state-dependent", expression="s*y1").scales(VALLEY), r"the noise 's\*y1'.* unbound .*'s'"),
        (lambda: make_noise("anisotropic"), r"needs a value for sigmas"),
        (lambda: make_noise("state-dependent", expression="1", parameters=(1, 2)), r"must be pairs"),
        (lambda: make_noise("state-dependent", expression="s", parameters=(("s", 1), ("s", 2))), r"'s' is given twice"),
        (
            lambda: make_noise("state-dependent", expression="y1", parameters=(("s", 1.0),)).scales(VALLEY),
            r"the noise 'y1' does not depend on the parameter 's'",
        ),
        (
            lambda: make_noise("state-dependent", expression="x", parameters=(("x", 1.0),)).scales(VALLEY),
            r"'x' is both a coordinate of the loss and a parameter",
        ),
        (
            lambda: Setting(loss=VALLEY, schedule=make_schedule("constant", peak_lr=0.1, steps=5)),
            r"either sigma, for isotropic noise, or noise",
        ),
    ],
)
def test_bad_noise_is_refused_with_the_rule(make, told):
    with pytest.raises(InputError, match=told):
        make()
