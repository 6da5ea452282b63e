"""Every registered loss against its formula written out by hand; a new one needs a line in FORMULAS."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.toy import (
    LOSSES,
    CircleRiver,
    PlaneRiver,
    PowerLawRiver,
    QuarticWalls,
    RotatedQuadratic,
    StraightRiver,
    SymbolicLoss,
    _elementary,
    make_loss,
)
from riverval.toy.river import gradient_flow

EXAMPLE = "-c*x + h/2*(y - x**2/9)**2"


def _rotated(o, w):
    z = [sum(o.axes[i, j] * w[i] for i in range(o.dim)) for j in range(o.dim)]
    walls = sum(h / 2 * s**2 for h, s in zip(o.curvatures, z[1:], strict=True))
    return -o.slope * z[0] + o.flat / 2 * z[0] ** 2 + walls


# Name -> value from the loss and its coordinates, in real or complex numbers.
FORMULAS = {
    "straight": lambda o, w: -o.slope * w[0] + sum(h / 2 * y**2 for h, y in zip(o.curvatures, w[1:], strict=True)),
    "plane": lambda o, w: (
        sum(-c * x for c, x in zip(o.river_slopes, w, strict=False))
        + sum(h / 2 * y**2 for h, y in zip(o.curvatures, w[o.river_dim :], strict=True))
    ),
    "rotated": _rotated,
    "expression": lambda o, w: -0.3 * w[0] + 2.0 / 2 * (w[1] - w[0] ** 2 / 9) ** 2,
    "bent": lambda o, w: (
        -o.slope * w[0] + o.curvature / 2 * (w[1] - o.amplitude * np.sin(o.wavenumber * w[0])) ** 2
    ),
    "bent-bowl": lambda o, w: (
        o.flat / 2 * (w[0] - o.target) ** 2
        + o.curvature / 2 * (w[1] - o.amplitude * np.sin(o.wavenumber * w[0])) ** 2
    ),
    "circle": lambda o, w: (
        -o.slope * o.radius * np.arctan(w[0] / w[1])
        + o.curvature / 2 * (np.sqrt(w[0] ** 2 + w[1] ** 2) - o.radius) ** 2
    ),
    "hyperbola": lambda o, w: o.curvature / 2 * (w[0] * w[1] - 1) ** 2 + np.log(1 + np.exp(-w[0])),
    "sharpening": lambda o, w: -o.slope * w[0] + o.curvature / 2 * np.exp(o.rate * w[0]) * w[1] ** 2,
    "power-law": lambda o, w: (
        o.scale * np.exp(
            -2 * o.exponent / (1 - o.exponent)
            * np.log(1 + (1 - o.exponent) * w[0] / (2 * math.sqrt(o.exponent * o.scale)))
        ) + o.curvature / 2 * w[1] ** 2
    ),
    "quartic": lambda o, w: -o.slope * w[0] + o.curvature / 2 * w[1] ** 2 + o.quartic / 4 * w[1] ** 4,
    "rosenbrock": lambda o, w: (o.target - w[0]) ** 2 + o.steepness * (w[1] - w[0] ** 2) ** 2,
}  # fmt: skip


def across(loss, w):
    """Directions across the river at states (N, dim): (N, dim, m)."""
    if isinstance(loss, CircleRiver):
        return (w / np.linalg.norm(w, axis=1, keepdims=True))[:, :, None]
    axes = loss.axes if isinstance(loss, RotatedQuadratic) else np.eye(loss.dim)
    return np.broadcast_to(axes[:, loss.river_dim :], (len(w), loss.dim, loss.dim - loss.river_dim))


def one(name):
    """The loss of that name with its defaults, where it has any."""
    needed = {"straight": {"slope": 0.2, "curvatures": [1.0, 3.0, 0.5]}}
    needed["expression"] = {"expression": EXAMPLE, "parameters": {"c": 0.3, "h": 2.0}}
    return make_loss(name, **needed.get(name, {}))


@st.composite
def losses(draw, name):
    """The loss of that name with any numbers of moderate size."""
    tuples = st.lists(st.floats(0.1, 5.0), min_size=1, max_size=3).map(tuple)
    if name == "expression":
        return one(name)
    options = {}
    for f in fields(LOSSES[name]):
        rule = f.metadata
        if f.name in ("curvatures", "river_slopes"):
            options[f.name] = draw(tuples)
        elif f.name == "seed":
            options[f.name] = draw(st.none() | st.integers(0, 50))
        elif rule:
            low = max(rule["low"], -2.0) + (0.1 if rule["open_low"] else 0.0)
            options[f.name] = draw(st.floats(low, min(rule["high"], 3.0) - (0.1 if rule["open_high"] else 0.0)))
    if name == "quartic" and options["curvature"] == options["quartic"] == 0.0:
        options["quartic"] = 1.0
    return LOSSES[name](**{"slope": 0.3, **options} if name in ("straight", "rotated") else options)


def states(loss, seed):
    """Six states about the start, where the loss is defined and on the upper half of a circle."""
    reach = 0.3 * getattr(loss, "radius", 1.0)
    w = loss.start() + np.random.default_rng(seed).uniform(-reach, reach, (6, loss.dim))
    if isinstance(loss, PowerLawRiver):
        w[:, 0] = np.abs(w[:, 0])
    return w


def size(loss, w):
    """Of the terms of the loss near some states, for tolerances."""
    return 1.0 + np.abs(loss.hessian(w)).max() * (1.0 + np.abs(w).max()) ** 2 + np.abs(loss.gradient(w)).max()


def for_every_loss(test):
    """Run `test` for each registered loss, with many numbers and states of each."""
    drawn = settings(max_examples=10)(given(data=st.data(), seed=st.integers(0, 100))(test))
    return pytest.mark.parametrize("name", LOSSES)(drawn)


# --- against the formula ---------------------------------------------------------------------------------------------
@for_every_loss
def test_value_and_gradient_are_those_of_the_formula(name, data, seed):
    loss = data.draw(losses(name))
    w, formula = states(loss, seed), FORMULAS[loss.name]
    scale = size(loss, w)
    np.testing.assert_allclose(loss.value(w), formula(loss, w.T), atol=1e-13 * scale)
    step = 1e-30
    slopes = [formula(loss, (w + 1j * step * e).T).imag / step for e in np.eye(loss.dim)]
    np.testing.assert_allclose(loss.gradient(w), np.stack(slopes, axis=-1), atol=1e-12 * scale)


@for_every_loss
def test_hessian_and_products_are_differences_of_the_gradient(name, data, seed):
    loss = data.draw(losses(name))
    w = states(loss, seed)
    step, scale = 1e-5, size(loss, w)
    moves = step * np.eye(loss.dim)
    quotient = (loss.gradient(w[:, None, :] + moves) - loss.gradient(w[:, None, :] - moves)) / (2 * step)
    hessian = loss.hessian(w)
    np.testing.assert_allclose(hessian, quotient, atol=3e-8 * scale)
    np.testing.assert_array_equal(hessian, np.swapaxes(hessian, 1, 2))
    v = np.random.default_rng(seed).standard_normal(w.shape)
    np.testing.assert_allclose(loss.hvp(w, v), np.einsum("nij,nj->ni", hessian, v), atol=1e-12 * scale)


@for_every_loss
def test_the_kernel_gives_the_bits_of_the_gradient(name, data, seed):
    loss = data.draw(losses(name))
    w = np.ascontiguousarray(states(loss, seed).T)
    namespace = {name: getattr(_elementary, name) for name in ("sin", "cos", "exp", "log", "sqrt")}
    exec(loss.kernel().source, namespace)
    out = np.empty_like(w)
    namespace["gradient"](w, out, loss.kernel().parameters)
    np.testing.assert_array_equal(out.T, loss.gradient(w.T))


@for_every_loss
def test_the_floor_is_the_minimum_across_the_river(name, data, seed):
    loss = data.draw(losses(name))
    w = states(loss, seed)
    scale = size(loss, w)
    floor, hill = loss.floor(w), loss.hill(w)
    np.testing.assert_allclose(np.einsum("nij,ni->nj", across(loss, w), loss.gradient(floor)), 0.0, atol=1e-11 * scale)
    np.testing.assert_allclose(loss.floor(floor), floor, atol=1e-12 * scale)
    np.testing.assert_allclose(loss.hill(floor), 0.0, atol=1e-12 * scale)
    np.testing.assert_allclose(loss.river(w), loss.value(floor), atol=1e-12 * scale)
    np.testing.assert_allclose(loss.value(w), loss.river(w) + hill, atol=1e-12 * scale)
    for split in (loss.split(w), loss.split_rows(np.ascontiguousarray(w.T)), loss.split_rows(w.T)):
        for found, wanted in zip(split, (loss.value(w), loss.river(w), hill), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-12 * scale)
    assert np.all(hill >= -1e-13 * scale)
    if not isinstance(loss, CircleRiver | RotatedQuadratic):
        np.testing.assert_array_equal(floor[:, : loss.river_dim], w[:, : loss.river_dim])


@for_every_loss
def test_description_is_json_and_rebuilds_the_loss(name, data, seed):
    loss = data.draw(losses(name))
    again = make_loss(**json.loads(json.dumps(loss.to_dict())))
    assert again == loss
    assert hash(again) == hash(loss)
    w = loss.start()
    assert w.shape == (loss.dim,) == (len(loss.coordinates),)
    assert 1 <= loss.river_dim < loss.dim
    for twin in (again, pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        np.testing.assert_array_equal(twin.gradient(w), loss.gradient(w))


@pytest.mark.parametrize("name", LOSSES)
def test_batches_of_any_shape_and_a_start_above_the_floor(name):
    loss = one(name)
    w = np.broadcast_to(loss.start(), (2, 3, loss.dim))
    assert loss.value(w).shape == loss.river(w).shape == loss.hill(w).shape == (2, 3)
    assert loss.gradient(w).shape == loss.hvp(w, w).shape == loss.floor(w).shape == (2, 3, loss.dim)
    assert loss.hessian(w).shape == (2, 3, loss.dim, loss.dim)
    assert loss.value(loss.start()).shape == ()
    assert loss.hill(loss.start()) > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_formula_here_and_a_place_on_its_page(name):
    assert name in FORMULAS
    page = Path(__file__).parents[2] / "docs" / "losses.md"
    assert f"`{name}`" in page.read_text("utf-8")


# --- what single losses promise --------------------------------------------------------------------------------------
def test_spectra_of_the_straight_river():
    assert StraightRiver.equal(0.1, 4, 2.0) == StraightRiver(0.1, (2.0,) * 4)
    h = np.array(StraightRiver.power_law(0.1, 50, 8.0, 1.5).curvatures)
    assert h[0] == 8.0
    slope = np.polyfit(np.log(np.arange(1, 51)), np.log(h), 1)[0]
    assert slope == pytest.approx(-1.5, abs=1e-12)
    assert StraightRiver(0.1, (1.0,)).coordinates == ("x", "y")
    assert StraightRiver(0.1, (1.0, 2.0)).coordinates == ("x", "y1", "y2")


@pytest.mark.parametrize(("scale", "exponent"), [(1.0, 0.5), (3.0, 0.2), (0.4, 0.9)])
def test_gradient_flow_on_the_power_law_river_is_the_power_law(scale, exponent):
    loss = PowerLawRiver(scale=scale, exponent=exponent)
    summed = np.array([0.0, 0.5, 3.0, 40.0, 500.0])
    flow = gradient_flow(loss, np.array([0.0, 0.0]), summed)
    np.testing.assert_allclose(loss.value(flow), scale * (1 + summed) ** -exponent, rtol=1e-6)
    np.testing.assert_allclose(flow[:, 0], loss.travelled(summed), rtol=1e-6)
    np.testing.assert_allclose(np.diff(loss.value(flow)) < 0, True)


def test_gradient_descent_at_small_rates_follows_the_power_law_in_the_summed_rate():
    loss, lr, w = PowerLawRiver(scale=2.0, exponent=0.4), 0.01, np.array([0.0, 0.5])
    for _ in range(4000):
        w = w - lr * loss.gradient(w)
    assert loss.value(w) == pytest.approx(2.0 * (1 + 4000 * lr) ** -0.4, rel=2e-3)


@pytest.mark.parametrize("options", [{"angle": 0.3}, {"seed": 5}, {}])
def test_the_rotated_valley_is_the_straight_one_in_turned_axes(options, rng):
    turned = RotatedQuadratic(slope=0.3, curvatures=(1.0, 4.0, 2.0), **options)
    straight, axes = StraightRiver(0.3, (1.0, 4.0, 2.0)), turned.axes
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-15)
    assert np.abs(axes - np.eye(4)).max() > 0.1
    z = rng.standard_normal((5, 4))
    w = z @ axes.T
    np.testing.assert_allclose(turned.value(w), straight.value(z), atol=1e-13)
    np.testing.assert_allclose(turned.hill(w), straight.hill(z), atol=1e-13)
    np.testing.assert_allclose(turned.gradient(w), straight.gradient(z) @ axes.T, atol=1e-13)
    np.testing.assert_allclose(np.linalg.eigvalsh(turned.hessian(w)[0]), [0.0, 1.0, 2.0, 4.0], atol=1e-13)


def test_the_circle_loses_the_same_on_every_stretch_of_its_river():
    loss = CircleRiver(slope=0.2, radius=3.0)
    angle = np.linspace(-3.0, 3.0, 7)
    value = loss.value(3.0 * np.stack([np.sin(angle), np.cos(angle)], axis=-1))
    np.testing.assert_allclose(np.diff(value), -0.2 * 3.0 * np.diff(angle), rtol=1e-12)


def test_a_plane_river_names_its_coordinates_and_counts_them():
    loss = PlaneRiver(river_slopes=(0.1, 0.2, 0.3), curvatures=(1.0,))
    assert loss.coordinates == ("x1", "x2", "x3", "y1")
    assert (loss.river_dim, loss.dim) == (3, 4)
    assert loss.start().tolist() == [0.0, 0.0, 0.0, 1.0]


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: make_loss("bend"), r"unknown loss 'bend'.* mean 'bent'"),
        (lambda: make_loss("bent", slop=1), r"no option 'slop'.*mean 'slope'"),
        (lambda: make_loss("straight", slope=1.0), r"loss 'straight' needs a value for curvatures"),
        (lambda: make_loss("expression"), r"loss 'expression' needs a value for expression"),
        (lambda: make_loss("bent", slope=-0.1), r"slope \(fall .*\) must be a finite number in \[0, .*got -0.1"),
        (lambda: make_loss("bent", curvature=0), r"curvature .*in \(0, .*got 0"),
        (lambda: make_loss("bent", amplitude=math.inf), r"amplitude .*got inf"),
        (lambda: make_loss("circle", radius=-1.0), r"radius .*got -1.0"),
        (lambda: make_loss("hyperbola", curvature="1"), r"curvature .*must be a number"),
        (lambda: make_loss("power-law", exponent=1.0), r"exponent .*in \(0, 1\), got 1.0"),
        (lambda: make_loss("power-law", exponent=0), r"exponent .*in \(0, 1\), got 0"),
        (lambda: QuarticWalls(curvature=0.0, quartic=0.0), r"both 0: there are no walls"),
        (lambda: make_loss("plane", river_slopes=[]), r"river_slopes must be a tuple of at least one number"),
        (lambda: make_loss("plane", curvatures=[0.0]), r"curvatures .*got 0.0"),
        (lambda: make_loss("rotated", flat=2.0), r"curvatures must be above flat = 2"),
        (lambda: make_loss("rotated", angle=0.1, seed=1), r"by an angle or from a seed, got both"),
        (lambda: make_loss("rotated", seed=-1), r"seed .*at least 0"),
        (lambda: StraightRiver.equal(0.1, 0, 1.0), r"modes .*at least 1, got 0"),
        (lambda: StraightRiver.power_law(0.1, 2, 0.0, 1.0), r"h_max .*got 0.0"),
        (lambda: StraightRiver.power_law(0.1, 2, 1.0, -1.0), r"exponent .*got -1.0"),
    ],
)
def test_bad_losses_are_refused_with_the_rule(make, told):
    with pytest.raises(InputError, match=told):
        make()


def test_numbers_of_other_libraries_become_plain():
    loss = make_loss("bent", slope=np.float64(0.5), curvature=np.int64(3))
    assert type(loss.to_dict()["slope"]) is float
    assert type(loss.to_dict()["curvature"]) is int
    assert isinstance(make_loss(**one("expression").to_dict()), SymbolicLoss)
