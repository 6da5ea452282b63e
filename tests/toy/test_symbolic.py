"""Losses from an expression: against Python's own reading of it, finite differences, and loops over scalars."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.toy import SymbolicLoss, _elementary, make_loss
from riverval.toy.symbolic import derive

BENT = "-c*x + h/2*(y - A*sin(k*x))**2"
# Every function, powers of every kind, constants, parameters in functions.
VARIETY = {
    "bent": (BENT, {"c": 0.1, "h": 2.0, "A": 1.0, "k": 0.5}),
    "functions": ("exp(sin(x) + cos(y)) + log(3 + sin(x*y)) + sqrt(1 + x**2*y**2)", {}),
    "hyperbolic": ("sinh(x/3) + cosh(y/3) + tanh(x*y) + asinh(x) + acosh(2 + y**2) + atanh(sin(x)/2)", {}),
    "tan": ("tan(x/4)*y + y**2", {}),
    "inverse": ("atan(x) + asin(y/9) + acos(y/8) - x + y**2 + 3*atan2(x, 12 + y)", {}),
    "powers": ("x**2 + x**3 + x**5/7 + y**8/1e3 + 1/(1 + x**2) + (1 + y**2)**-3 + x**2/(2 + cos(y))", {}),
    "roots": ("(1 + x**2)**0.5 + (2 + y**2)**1.5 + (2 + y**2)**(-1/2) + (2 + x**2)**(1/3) + (3 + y**2)**-0.7", {}),
    "parameters": ("a**2*(x**2 + 2)**a + exp(-b)*y**2 + sqrt(b)*x*y + b**a*y - sin(a*b)", {"a": 0.4, "b": 1.7}),
    "constants": ("pi*x + 2**0.5*y**2 + exp(1) + 1e-3*x**4 + 0.1*y - sin(2)*x", {}),
    "logistic": ("log(1 + exp(-x)) + (x*y - 1)**2/2", {}),
}


@pytest.fixture(params=VARIETY)
def varied(request):
    """Loss, the text, its parameters, and states of shape (20, 2)."""
    text, parameters = VARIETY[request.param]
    loss = SymbolicLoss(text, parameters=parameters, floor={"y": "y"}, start=(0.3, 0.4))
    return loss, text, parameters, np.random.default_rng(3).uniform(-2.0, 2.0, (20, 2))


def read(text, parameters, x, y):
    """The expression by Python and NumPy, in any arithmetic that they have."""
    inverse = {f"a{f}": getattr(np, f"arc{f}") for f in ("sin", "cos", "tan", "sinh", "cosh", "tanh")}
    names = {f: getattr(np, f) for f in ("sin", "cos", "tan", "exp", "log", "sqrt", "sinh", "cosh", "tanh")}
    names |= inverse | {"atan2": lambda a, b: np.arctan(a / b), "pi": math.pi}
    return eval(text, {"__builtins__": {}}, names | parameters | {"x": x, "y": y})


def complex_step(text, parameters, w):
    """The gradient to rounding: the imaginary part of the value a tiny imaginary way off."""
    h = 1e-30
    x, y = w[..., 0], w[..., 1]
    ahead = read(text, parameters, x + 1j * h, y + 0j), read(text, parameters, x + 0j, y + 1j * h)
    return np.stack([a.imag / h for a in ahead], axis=-1)


# --- what is derived -------------------------------------------------------------------------------------------------
def test_the_value_is_what_python_reads(varied):
    loss, text, parameters, w = varied
    np.testing.assert_allclose(loss.value(w), read(text, parameters, w[:, 0], w[:, 1]), rtol=1e-13, atol=1e-13)


def test_the_gradient_is_the_complex_step(varied):
    loss, text, parameters, w = varied
    np.testing.assert_allclose(loss.gradient(w), complex_step(text, parameters, w), rtol=1e-12, atol=1e-13)


def test_hessian_and_products_are_differences_of_the_gradient(varied):
    loss, _, _, w = varied
    step = 1e-5
    ahead, behind = (loss.gradient(w[:, None, :] + s * step * np.eye(2)) for s in (1, -1))
    hessian = loss.hessian(w)
    np.testing.assert_allclose(hessian, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(hessian, np.swapaxes(hessian, 1, 2))
    v = np.random.default_rng(4).standard_normal(w.shape)
    np.testing.assert_allclose(loss.hvp(w, v), np.einsum("nij,nj->ni", hessian, v), rtol=1e-12, atol=1e-13)


@given(
    c=st.floats(0.0, 5.0), h=st.floats(1e-3, 50.0), A=st.floats(-3.0, 3.0), k=st.floats(-3.0, 3.0),
    x=st.floats(-20.0, 20.0), y=st.floats(-20.0, 20.0),
)  # fmt: skip
def test_the_bent_river_by_hand_for_any_numbers(c, h, A, k, x, y):
    loss = SymbolicLoss(BENT, parameters={"c": c, "h": h, "A": A, "k": k}, floor={"y": "A*sin(k*x)"})
    s, cos = math.sin(k * x), math.cos(k * x)
    off = y - A * s
    w, scale = np.array([x, y]), 1e-12 * (1 + h * (1 + abs(A * k)) ** 2 * (1 + abs(y) + abs(A)) ** 2 + abs(c * x))
    np.testing.assert_allclose(loss.gradient(w), [-c - h * off * A * k * cos, h * off], atol=scale)
    across = h * (A * k * cos) ** 2 + h * off * A * k**2 * s
    np.testing.assert_allclose(loss.hessian(w), [[across, -h * A * k * cos], [-h * A * k * cos, h]], atol=scale)
    np.testing.assert_allclose(loss.hill(w), h / 2 * off**2, atol=scale)
    np.testing.assert_allclose(loss.river(w), -c * x, atol=scale)
    np.testing.assert_allclose(loss.floor(w), [x, A * s], atol=scale)


@st.composite
def expressions(draw, depth=3):
    """Text of a smooth expression in x and y that stays of moderate size."""
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(["x", "y", "a", "0.3", "2", "1.7"]))
    below = expressions(depth=depth - 1)
    form = draw(st.sampled_from(
        ["({} + {})", "({} - {})", "({}*{})", "sin({} + {})", "cos({}*{})", "tanh({} - {})", "exp(-({})**2 - ({})**2)",
         "sqrt(1 + ({})**2 + ({})**2)", "{}/(2 + ({})**2)", "log(2 + ({})**2 + ({})**4)", "(-{} + ({})**3/9)"]
    ))  # fmt: skip
    return form.format(draw(below), draw(below))


@example(text="(x + tanh(2 - tanh(x - y)))", seed=0)  # whose inner argument changes sign when it is rewritten
@given(text=expressions(), seed=st.integers(0, 1000))
def test_any_expression_agrees_with_python_in_value_and_slope(text, seed):
    text = f"x*y + a*y**2 + {text}"
    parameters = {"a": 0.8}
    loss = SymbolicLoss(text, parameters=parameters, floor={"y": "y"})
    w = np.random.default_rng(seed).uniform(-1.5, 1.5, (7, 2))
    value = read(text, parameters, w[:, 0], w[:, 1])
    scale = 1e-11 * (1 + np.abs(value).max())
    np.testing.assert_allclose(loss.value(w), value, rtol=1e-11, atol=scale)
    slope = complex_step(text, parameters, w)
    np.testing.assert_allclose(loss.gradient(w), slope, rtol=1e-10, atol=1e-10 * (1 + np.abs(slope).max()))


# --- the code for compilation ----------------------------------------------------------------------------------------
def by_loop(kernel, w):
    """The kernel as plain Python, scalar by scalar."""
    namespace = {name: getattr(_elementary, name) for name in ("sin", "cos", "exp", "log", "sqrt")}
    exec(kernel.source, namespace)
    out = np.empty_like(w)
    namespace["gradient"](w, out, kernel.parameters)
    return out


def test_the_kernel_gives_the_bits_of_the_rows(varied):
    loss, _, _, w = varied
    columns = np.ascontiguousarray(w.T)
    out = np.empty_like(columns)
    loss.gradient_rows(columns, out)
    np.testing.assert_array_equal(by_loop(loss.kernel(), columns), out)
    np.testing.assert_array_equal(out.T, loss.gradient(w))


def test_the_compiled_kernel_gives_the_same_bits_too():
    numba = pytest.importorskip("numba")
    from riverval.toy import _jit

    losses = [SymbolicLoss(t, parameters=p, floor={"y": "y"}, start=(0.3, 0.4)) for t, p in VARIETY.values()]
    w = np.random.default_rng(5).uniform(-2.0, 2.0, (2, 300))
    for loss in losses:
        namespace = {name: getattr(_jit, name) for name in ("sin", "cos", "exp", "log", "sqrt")}
        exec(loss.kernel().source, namespace)
        compiled = numba.njit(error_model="numpy")(namespace["gradient"])
        out, rows = np.empty_like(w), np.empty_like(w)
        compiled(w, out, loss.kernel().parameters)
        loss.gradient_rows(w, rows)
        np.testing.assert_array_equal(out, rows, err_msg=repr(loss))


def test_tanh_is_right_where_exp_is_not_finite():
    loss = SymbolicLoss("tanh(x) + y**2", floor={"y": "0"})
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(loss.value(np.array([[-1e5, 0.0], [1e5, 0.0]])), [-1.0, 1.0])


def test_the_code_does_not_depend_on_the_hash_seed():
    script = (
        "from riverval.toy import SymbolicLoss\n"
        f"for text, p in {list(VARIETY.values())!r}:\n"
        "    print(SymbolicLoss(text, parameters=p, floor={'y': 'y'}, start=(0.3, 0.4)).kernel().source)\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "77")
    ]
    assert told[0] == told[1]
    assert told[0].count("def gradient") == len(VARIETY)


def test_other_numbers_need_no_other_derivation():
    def make(c):
        return SymbolicLoss("-c*x + 3*y**2 + c*sin(y)*0", parameters={"c": c})

    first = make(0.25)
    before = derive.cache_info()
    second = make(0.5)
    after = derive.cache_info()
    assert after.misses == before.misses
    assert first.kernel().source == second.kernel().source
    assert first.kernel().parameters.tolist() == [0.25]
    assert second.kernel().parameters.tolist() == [0.5]
    assert second.gradient(np.array([0.0, 1.0])).tolist() == [-0.5, 6.0]


def test_sympy_is_not_loaded_before_it_is_needed():
    script = "import sys, riverval.toy; print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- the floor -------------------------------------------------------------------------------------------------------
def test_the_floor_found_is_the_floor_known(rng):
    numbers = {"c": 0.1, "h": 2.0, "A": 1.0, "k": 0.5}
    known = SymbolicLoss(BENT, parameters=numbers, floor={"y": "A*sin(k*x)"})
    found = SymbolicLoss(BENT, parameters=numbers)
    w = rng.uniform(-5.0, 5.0, (3, 7, 2))
    np.testing.assert_allclose(found.floor(w), known.floor(w), atol=1e-12)
    np.testing.assert_allclose(found.hill(w), known.hill(w), atol=1e-12)


def test_the_floor_found_between_walls_that_are_not_quadratic(rng):
    loss = SymbolicLoss("-x + cosh(y - x) + z**4 + z**2*y**2", coordinates=("x", "y", "z"))
    w = rng.uniform(-3.0, 3.0, (40, 3))
    floor = loss.floor(w)
    np.testing.assert_array_equal(floor[:, 0], w[:, 0])
    assert np.all(loss.hill(w) >= -1e-12)
    assert np.all(loss.hill(floor) < 1e-7)
    assert np.abs(loss.gradient(floor)[:, 1:]).max() < 1e-6


def test_the_floor_is_nan_where_there_is_none():
    loss = SymbolicLoss("x**2 + x*y**2", start=(1.0, 1.0))  # a ridge where x < 0
    floor = loss.floor(np.array([[1.0, 2.0], [-1.0, 2.0]]))
    assert np.isfinite(floor[0]).all()
    assert np.isnan(floor[1]).all()


def test_the_hill_keeps_its_digits_far_down_the_river():
    loss = SymbolicLoss(BENT, parameters={"c": 1.0, "h": 2.0, "A": 1.0, "k": 0.0}, floor={"y": "A*sin(k*x)"})
    assert loss.hill(np.array([1e16, 1e-3])).item() == pytest.approx(1e-6, rel=1e-14)


# --- batches and descriptions ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,), (2, 0, 3)])
def test_batches_of_any_shape(shape, rng):
    loss = SymbolicLoss("-x*u + y**2*(1 + x**2) + 7", coordinates=("x", "u", "y"), river_dim=2)
    w = rng.standard_normal((*shape, 3))
    assert loss.value(w).shape == loss.river(w).shape == loss.hill(w).shape == shape
    assert loss.gradient(w).shape == loss.floor(w).shape == loss.hvp(w, w).shape == (*shape, 3)
    assert loss.hessian(w).shape == (*shape, 3, 3)
    flat = w.reshape(-1, 3)
    for i, row in enumerate(flat):
        np.testing.assert_array_equal(loss.gradient(row), loss.gradient(flat)[i])
        np.testing.assert_array_equal(loss.hessian(row), loss.hessian(flat)[i])


def test_description_is_json_and_rebuilds_the_loss():
    full = SymbolicLoss(
        "-c*x + y**2 + z**2", coordinates=("x", "y", "z"), parameters={"c": np.float64(0.5)},
        floor={"y": "0", "z": "0"}, start=(1, 2.5, 3),
    )  # fmt: skip
    for loss in (full, SymbolicLoss("-x + y**2")):
        described = json.loads(json.dumps(loss.to_dict()))
        again = make_loss(**described)
        assert again == loss
        assert hash(again) == hash(loss)
        assert repr(again) == repr(loss)
        w = loss.start()
        for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
            assert twin == loss
            np.testing.assert_array_equal(twin.gradient(w), loss.gradient(w))
    assert full.start().tolist() == [1.0, 2.5, 3.0]
    assert full != SymbolicLoss("-x + y**2")


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-x + ", r"position 5 .*does not parse"),
        ("-x + y^2", r"operator BitXor.*write powers as \*\*"),
        ("-x + (y**2", r"position 6 .*does not parse: '\(' was never closed"),
        ("", r"must be text such as"),
        (None, r"must be text such as"),
        ("-c*x + h*y**2", r"unbound symbols 'c', 'h'; bound are x, y"),
        ("-xx + y**2", r"position 2 .*unbound symbol 'xx'.*Did you mean 'x'"),
        ("-x + abs(y)", r"position 6 .*abs has no derivative everywhere"),
        ("-x + sen(y)", r"unknown function 'sen'.*Did you mean 'sin'"),
        ("-x + sin(y, x)", r"sin takes 1 argument"),
        ("-x + atan2(y)", r"atan2 takes 2 arguments"),
        ("-x + y.real", r"position 6 .*a name with a dot"),
        ("-x + (y > 0)", r"a comparison cannot be part of a loss"),
        ("-x + (1 if y else 2)", r"a condition"),
        ("__import__('os').system('true')", r"unknown function"),
        ("().__class__", r"a name with a dot"),
        ("[x, y]", r"List cannot be part"),
        ("-x + 2j*y", r"position 6 .*only real numbers"),
        ("-x + 'y'", r"only real numbers"),
        ("-x + True*y", r"only real numbers"),
        ("-x + y**2 + sqrt(-2)", r"not real: it holds the root or logarithm of a negative number"),
        ("-x + log(-1)*y", r"not real"),
        ("-lambda*x + y**2", r"position 2 .*'lambda' is a word of Python"),
        ("-x + y**2/0", r"divides by zero"),
        ("-x + y**2/(x-x)", r"divides by zero"),
        ("-x + log(0) + y", r"divides by zero, or holds the logarithm of zero"),
        ("x*9**9**9 + y**2", r"a power beyond 64"),
        ("x*(9**60)**60 + y**2", r"a number beyond 1e100"),
        ("x*1e200 + y**2", r"a number beyond 1e100"),
        ("x + y**2" + " + x" * 2000, r"characters, more than the 5000"),
        ("-" * 4000 + "x + y", r"nested too deeply|too complex"),
        ("-x + x*atan(y) + y**2", r"atan stays in the gradient"),
        ("-x + y**2 # - y", r"position 11 .*a comment"),
        ("-x + 1e-300*y", r"position 6 .*closer to 0 than 1e-100"),
        ("-x + y**2 + 1e-400*x", r"position 13 .*closer to 0 than 1e-100"),
        ("exp(1000)*x + y**2", r"number exp\(1000\), .* beyond what a computer holds"),
        ("exp(exp(exp(10)))*x + y**2", r"beyond what a computer holds"),
        ("asin(2)*x + y**2", r"number asin\(2\), .* is not real"),
        ("(-8)**(1/3)*x + y**2", r"is not real"),
        ("-x + 3", r"does not depend on the coordinate 'y'"),
        ("-x + (x - 2)**0.5 + y**2", r"value of the loss at its start \(x = 0, y = 1\) is not real: 1 \+ 1.414 i"),
        ("1/x + y**2", r"value of the loss at its start .* is not finite"),
        ("-x + y - y**2", r"no valley floor below its start .*no minimum over y"),
    ],
)  # fmt: skip
def test_expressions_that_cannot_be_losses_say_why_and_where(text, told):
    with pytest.raises(InputError, match=told):
        SymbolicLoss(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"coordinates": ()}, r"at least two names"),
        ({"coordinates": "xy"}, r"at least two names"),
        ({"coordinates": ("x", "x")}, r"'x' is listed twice"),
        ({"coordinates": ("x", "1y")}, r"letters, digits and underscores, got '1y'"),
        ({"coordinates": ("x", "lambda")}, r"'lambda' of a coordinate is a word of Python.*'lambda_'"),
        ({"coordinates": ("x", "exp")}, r"'exp' of a coordinate is reserved"),
        ({"parameters": {"pi": 3.0}}, r"'pi' of a parameter is reserved"),
        ({"parameters": {"x": 3.0}}, r"'x' is both a coordinate and a parameter"),
        ({"parameters": {"c": 3.0}}, r"does not depend on the parameter 'c'"),
        ({"parameters": {"c": math.nan}}, r"parameter 'c' must be a finite number"),
        ({"parameters": {"c": "1"}}, r"parameter 'c' must be a number"),
        ({"parameters": [1]}, r"parameters must map"),
        ({"river_dim": 0}, r"river_dim .*from 1 to 1, got 0"),
        ({"river_dim": 2}, r"river_dim .*from 1 to 1, got 2"),
        ({"floor": {"z": "0"}}, r"floor names 'z', which is not a coordinate"),
        ({"floor": "0"}, r"floor must map"),
        ({"floor": {"y": "q"}}, r"the floor of 'y' 'q', at position 1 .*unbound symbol 'q'"),
        ({"start": (1.0,)}, r"start must hold 2 numbers"),
        ({"start": (1.0, math.inf)}, r"start must be a finite number"),
    ],
)
def test_bad_options_are_refused_with_the_rule(options, told):
    with pytest.raises(InputError, match=told):
        SymbolicLoss("-x + y**2", **options)


def test_names_of_the_generated_code_are_free_to_use():
    loss = SymbolicLoss(
        "-p*w + t0*g**2 + r*g*w + s0*g", coordinates=("w", "g"), parameters=dict.fromkeys(("p", "t0", "r", "s0"), 1.0)
    )
    assert loss.gradient(np.array([2.0, 3.0])).tolist() == [-1 + 3, 6 + 2 + 1]
    assert by_loop(loss.kernel(), np.array([[2.0], [3.0]]))[:, 0].tolist() == [2.0, 9.0]
