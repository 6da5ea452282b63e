"""Decay shapes: known values, closed forms of their means, and what holds for every registered one."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from riverval.errors import InputError
from riverval.shapes import SHAPES, Cosine, Exponential, Inverse, Linear, Power, make_shape, shape_from_dict

from .strategies import shapes

ROOT = math.sqrt(0.5)

# Shape -> options, and its values at u = 0, 1/4, 1/2, 3/4, 1, by hand.
KNOWN = {
    "linear": ({"floor": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
    "inverse": ({"floor": 0.2}, [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]),
    "1-sqrt": ({"floor": 0.0}, [1, 0.5, 1 - ROOT, 1 - math.sqrt(0.75), 0]),
    "cosine": ({"floor": 0.2}, [1, 0.6 + 0.4 * ROOT, 0.6, 0.6 - 0.4 * ROOT, 0.2]),
    "mirror-cosine": ({"floor": 0.0}, [1, 1 - 0.5 * ROOT, 0.5, 0.5 * ROOT, 0]),
    "square": ({"floor": 0.2}, [1, 0.95, 0.8, 0.55, 0.2]),
    "exponential": ({"floor": 1 / 16}, [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]),
    "power": ({"exponent": 3.0, "floor": 0.36}, [1, 0.63, 0.44, 0.37, 0.36]),
}


def ln(x):
    """log(x), as exact near 1 as elsewhere."""
    return math.log1p(x - 1) if x > 0.5 else math.log(x)


# Shape -> mean over u in [0, 1] in closed form, for floor f and exponent p.
MEANS = {
    "linear": lambda f, p: (1 + f) / 2,
    "inverse": lambda f, p: -f / (1 - f) * ln(f),
    "1-sqrt": lambda f, p: f + (1 - f) / 3,
    "cosine": lambda f, p: (1 + f) / 2,
    "mirror-cosine": lambda f, p: (1 + f) / 2,
    "square": lambda f, p: f + (1 - f) * 2 / 3,
    "exponential": lambda f, p: -(1 - f) / ln(f),
    "power": lambda f, p: f + (1 - f) / (p + 1),
}

every_shape = pytest.mark.parametrize("name", SHAPES)


def example(name, floor, exponent=2.5):
    """The shape with this floor, and this exponent where it has one."""
    takes = {f.name for f in fields(SHAPES[name])}
    return make_shape(name, floor=floor, **({"exponent": exponent} if "exponent" in takes else {}))


def test_every_registered_shape_has_a_row_of_known_values():
    assert set(KNOWN) == set(SHAPES) == set(MEANS)


@every_shape
def test_known_values(name):
    options, expected = KNOWN[name]
    shape = make_shape(name, **options)
    np.testing.assert_allclose(shape([0, 0.25, 0.5, 0.75, 1]), expected, rtol=0, atol=1e-15)


@every_shape
@pytest.mark.parametrize("floor", [0.01, 0.1, 0.5])
def test_mean_is_the_closed_form(name, floor):
    shape = example(name, floor)
    integral, error = quad(lambda u: float(shape(u)), 0, 1, epsabs=1e-11)
    assert abs(integral - MEANS[name](floor, 2.5)) < max(error, 1e-10)


def test_mean_of_the_papers_decay():
    assert MEANS["inverse"](0.1, None) == pytest.approx(0.2558, abs=5e-5)
    assert MEANS["linear"](0.1, None) == MEANS["cosine"](0.1, None) == pytest.approx(0.55)
    assert MEANS["1-sqrt"](0.1, None) == pytest.approx(0.40)


def test_inverse_is_linear_in_one_over_the_rate_as_levanter_writes_it():
    u, high, low = np.linspace(0, 1, 101), 3e-4, 3e-5
    levanter = 1 / (u * (1 / low - 1 / high) + 1 / high)
    np.testing.assert_allclose(high * Inverse(floor=low / high)(u), levanter, rtol=1e-14)


@pytest.mark.parametrize("n", [10**3, 10**6, 10**9])
def test_the_end_of_a_long_cosine_has_all_its_digits(n):
    """1 + cos would be off by 2e-5 of itself at a million updates and exactly zero at a thousand million."""
    left = math.pi / (2 * n)
    assert Cosine()((n - 1) / n) == pytest.approx(left**2 * (1 - left**2 / 3), rel=1e-6 if n == 10**9 else 1e-9)


def test_power_one_is_linear():
    u = np.linspace(0, 1, 33)
    np.testing.assert_array_equal(Power(exponent=1.0, floor=0.3)(u), Linear(floor=0.3)(u))


# --- what holds for every shape --------------------------------------------------------------------------------------
@given(shape=shapes(), n=st.integers(1, 500))
def test_starts_full_holds_its_floor_and_never_rises(shape, n):
    values = shape(np.arange(n + 1) / n)
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(shape.floor, rel=1e-12, abs=1e-15)
    assert np.all(values >= shape.floor)
    assert np.all(values <= 1.0)
    assert np.all(np.diff(values) <= 1e-15)
    assert np.all(values[:-1] > 0)


@given(shape=shapes(), n=st.integers(1, 300))
def test_mean_of_a_cooldown_lies_within_one_update_of_the_integral(shape, n):
    """The left sum of a falling function lies between its integral and the integral plus (1 - f)/n."""
    f, p = shape.floor, getattr(shape, "exponent", None)
    integral = 1.0 if f == 1.0 else MEANS[shape.name](f, p)
    mean = shape(np.arange(n) / n).mean()
    assert integral - 1e-12 <= mean <= integral + (1 - f) / n + 1e-12


@given(shape=shapes(), n=st.integers(1, 60))
def test_pure_and_vectorised(shape, n):
    u = np.arange(n) / n
    whole = shape(u)
    np.testing.assert_array_equal(whole, [shape([x])[0] for x in u.tolist()])
    np.testing.assert_allclose(whole, [shape(x) for x in u.tolist()], rtol=1e-15)  # numpy has its own power of scalars
    np.testing.assert_array_equal(whole[::-1], shape(u[::-1].copy()))
    np.testing.assert_array_equal(shape(u.reshape(1, n, 1)), whole.reshape(1, n, 1))


@given(shape=shapes())
def test_a_shape_is_a_value(shape):
    again = shape_from_dict(json.loads(json.dumps(shape.to_dict())))
    assert again == shape
    assert hash(again) == hash(shape)
    assert type(again) is type(shape)


@every_shape
def test_shapes_differ_by_class_and_by_floor(name):
    shape = example(name, 0.5)
    assert shape != example(name, 0.25)
    assert all(shape != example(other, 0.5) for other in SHAPES if other != name)


@every_shape
def test_floor_of_one_is_constant(name):
    np.testing.assert_array_equal(example(name, 1.0)(np.linspace(0, 1, 9)), np.ones(9))


@every_shape
def test_smallest_floors_neither_overflow_nor_vanish(name):
    values = example(name, 1e-300)(np.linspace(0, 1, 9))
    assert np.all(values > 0)
    assert np.all(np.isfinite(values))


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), 1, np.int64(1)], ids=lambda x: type(x).__name__)
def test_numbers_of_any_kind_become_plain_ones(number):
    shape = Linear(floor=number)
    assert type(shape.floor) in (int, float)
    assert shape_from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


# --- bad input -------------------------------------------------------------------------------------------------------
@every_shape
@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan, math.inf, -math.inf, "0.1", None, True, [0.1], 10**400])
def test_bad_floors_are_refused_with_the_range(name, floor):
    with pytest.raises(InputError, match=rf"floor.*the final rate of the {name} decay.*number in [\[(]0, 1\]"):
        example(name, floor)


@pytest.mark.parametrize("cls", [Inverse, Exponential])
def test_shapes_that_cannot_reach_zero_refuse_a_floor_of_zero(cls):
    with pytest.raises(InputError, match=r"finite number in \(0, 1\], got 0"):
        cls(floor=0)


BAD = {
    "exponent zero": (lambda: Power(exponent=0.0), r"exponent .*in \(0, inf\), got 0.0"),
    "exponent negative": (lambda: Power(exponent=-1), r"exponent .*in \(0, inf\), got -1"),
    "exponent nan": (lambda: Power(exponent=math.nan), r"exponent .*got nan"),
    "exponent bool": (lambda: Power(exponent=True), r"exponent .*got True"),
    "misspelt name": (
        lambda: make_shape("mirror_cosin"),
        r"unknown decay shape 'mirror_cosin'.*Did you mean 'mirror-cosine'\?",
    ),
    "name lists all": (lambda: make_shape("zzz"), ", ".join(SHAPES)),
    "no name": (lambda: make_shape(None), "unknown decay shape None"),
    "number as name": (lambda: make_shape(1), "unknown decay shape 1"),
    "list as name": (lambda: make_shape(["linear"]), "unknown decay shape"),
    "foreign option": (
        lambda: make_shape("linear", exponent=2),
        "'linear' takes no option 'exponent'; it takes: floor",
    ),
    "misspelt option": (lambda: make_shape("power", exponant=2), "Did you mean 'exponent'"),
    "dict without name": (lambda: shape_from_dict({"floor": 0.1}), "unknown decay shape None"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()
