"""Code from formulas: sympy expressions as plain arithmetic on scalars or, line by line the same, on rows of an array.

Each line is one operation, or a few from left to right, on named intermediate results. Executed on rows by NumPy or in
a loop over columns compiled by numba, the operations and their order are the same, and so are the bits of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._typing import FloatArray
from ..errors import InputError
from . import _elementary

ELEMENTARY = ("sin", "cos", "exp", "log", "sqrt")
# What NumPy has besides. It may stand in a value or a Hessian, not in a gradient, which is also compiled.
_INVERSE = {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2}

Rows = Callable[[FloatArray, FloatArray, FloatArray], None]


def kernel_lines(
    expressions: Sequence[Any], states: Sequence[Any], numbers: Sequence[Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The two parts of a `Kernel`: lines computed once, and lines that set g0, g1, ... to the expressions.

    Raises:
        InputError: a function that cannot be written by sin, cos, exp, log and sqrt.
    """
    body = _Body(expressions, states, numbers, ELEMENTARY)
    return tuple(body.head), (*body.lines, *(f"g{i} = {name}" for i, name in enumerate(body.results)))


def rows_function(
    expressions: Sequence[Any], states: Sequence[Any], numbers: Sequence[Any], *, compiled_too: bool = False
) -> Rows:
    """The function ``rows(w, out, p)`` that writes expression i of every column of w (dim, N) to row i of `out`.

    With `compiled_too` only what `kernel_lines` can write is allowed, so that both are the same lines.
    """
    functions = ELEMENTARY if compiled_too else (*ELEMENTARY, *_INVERSE)
    body = _Body(expressions, states, numbers, functions)
    lines = ["def rows(w, out, p):"]
    lines += [f"    {line}" for line in body.head]
    lines += [f"    {name} = w[{i}]" for i, name in body.states]
    lines += [f"    {line}" for line in body.lines]
    lines += [f"    out[{i}] = {name}" for i, name in enumerate(body.results)]
    source = _elementary if compiled_too else np  # whose functions are quicker on rows
    namespace: dict[str, Any] = {name: getattr(source, name) for name in ELEMENTARY} | _INVERSE
    exec(compile("\n".join(lines), "<formula of a loss>", "exec"), namespace)  # our own text: names and numbers only
    rows: Rows = namespace["rows"]
    return rows


def elementary(expression: Any) -> Any:
    """`expression` with tan and hyperbolic functions written by exp, log, sqrt, sin, cos; right where exp is inf."""
    import sympy as sp

    exp, log, sqrt = sp.exp, sp.log, sp.sqrt
    rules: Mapping[Any, Callable[[Any], Any]] = {
        sp.tan: lambda a: sp.sin(a) / sp.cos(a),
        sp.sinh: lambda a: (exp(a) - exp(-a)) / 2,
        sp.cosh: lambda a: (exp(a) + exp(-a)) / 2,
        sp.tanh: lambda a: 1 - 2 / (exp(2 * a) + 1),
        sp.asinh: lambda a: log(a + sqrt(a**2 + 1)),
        sp.acosh: lambda a: log(a + sqrt(a - 1) * sqrt(a + 1)),
        sp.atanh: lambda a: (log(1 + a) - log(1 - a)) / 2,
    }
    for function, rule in rules.items():
        while expression.has(function):  # again where sympy turns the sign of an argument, and so makes a new function
            expression = expression.replace(function, rule)
    return expression


class _Body:
    """The lines that compute some expressions: `head` without the state, once; `lines` with it, for every column."""

    def __init__(
        self, expressions: Sequence[Any], states: Sequence[Any], numbers: Sequence[Any], functions: Sequence[str]
    ) -> None:
        import sympy as sp

        self.functions = functions
        self.lines: list[str] = []
        self.names: dict[Any, str] = {s: s.name for s in (*states, *numbers)}
        expressions = [elementary(sp.sympify(e)) for e in expressions]
        used = set().union(*(e.free_symbols for e in expressions))
        self.head = [f"{s.name} = p[{i}]" for i, s in enumerate(numbers) if s in used]
        self.states = [(i, s.name) for i, s in enumerate(states) if s in used]
        self.moving = {name for _, name in self.states}
        self.count = 0
        shared, results = sp.cse(expressions, symbols=sp.numbered_symbols("s"), list=True)
        for symbol, expression in shared:
            self.names[symbol] = self.name_of(expression)
        self.results = [self.name_of(e) for e in results]

    def name_of(self, e: Any) -> str:
        """The name, or the number, that stands for an expression; its lines are written when it is first met."""
        if e in self.names:
            return self.names[e]
        if e.is_number:
            return _literal(e)
        self.names[e] = self.write(*self.parts(e))
        return self.names[e]

    def write(self, text: str, *operands: str) -> str:
        """A new line, among those computed once if no operand changes from column to column."""
        name = f"t{self.count}"
        self.count += 1
        if self.moving.intersection(operands):
            self.moving.add(name)
            self.lines.append(f"{name} = {text}")
        else:
            self.head.append(f"{name} = {text}")
        return name

    def parts(self, e: Any) -> tuple[str, ...]:
        """The operation of an expression as text, and the names of its operands."""
        if e.is_Add:
            return self.sum(e)
        if e.is_Mul:
            return self.product(e)
        if e.is_Pow:
            return self.power(e.base, e.exp)
        name = type(e).__name__
        if name not in self.functions:
            raise InputError(
                f"{name} stays in the gradient, which must consist of {', '.join(ELEMENTARY)} to be compiled; "
                f"use {name} only as a term by itself, or write the loss without it"
            )
        operands = [self.name_of(a) for a in e.args]
        return (f"{name}({', '.join(operands)})", *operands)

    def sum(self, e: Any) -> tuple[str, ...]:
        text, operands = "", []
        for term in e.as_ordered_terms():
            negative = (term.args[0] if term.is_Mul else term).is_negative
            operands.append(self.name_of(-term if negative else term))
            sign = ("-" if negative else "") if not text else (" - " if negative else " + ")
            text += sign + operands[-1]
        return (text, *operands)

    def product(self, e: Any) -> tuple[str, ...]:
        above: list[Any] = []
        below: list[Any] = []
        for factor in e.as_ordered_factors():
            divides = factor.is_Pow and factor.exp.is_Rational and factor.exp.is_negative
            (below if divides else above).append(1 / factor if divides else factor)
        negative = bool(above) and above[0] == -1
        names = self.factors(above[1:] if negative else above)
        text = "*".join(names) or "1.0"
        if below:
            divisor = below[0] if len(below) == 1 else type(e)(*below)
            names.append(self.name_of(divisor))
            text += f"/{names[-1]}"
        return (f"-({text})" if negative else text, *names)

    def factors(self, found: list[Any]) -> list[str]:
        """Names of the factors, the product of those that are the same for every column as one of them."""
        names = [self.name_of(factor) for factor in found]
        still = [name for name in names if name not in self.moving]
        if len(still) < 2 or len(still) == len(names):
            return names
        return [self.write("*".join(still), *still), *(name for name in names if name in self.moving)]

    def power(self, base: Any, exponent: Any) -> tuple[str, ...]:
        import sympy as sp

        if exponent.is_Rational and exponent.is_negative:
            name = self.name_of(sp.Pow(base, -exponent))
            return (f"1.0/{name}", name)
        if exponent.is_Integer:
            half = self.name_of(sp.Pow(base, exponent // 2))
            if exponent % 2 == 0:
                return (f"{half}*{half}", half)
            name = self.name_of(base)
            return (f"{half}*{half}*{name}", half, name)
        if exponent.is_Rational and exponent.q == 2:
            name = self.name_of(base)
            if exponent == sp.Rational(1, 2):
                return (f"sqrt({name})", name)
            whole, root = self.name_of(sp.Pow(base, exponent.p // 2)), self.name_of(sp.sqrt(base))
            return (f"{whole}*{root}", whole, root)
        name = self.name_of(exponent * sp.log(base))
        return (f"exp({name})", name)


def _literal(e: Any) -> str:
    """A constant as the nearest double, in brackets where it has a sign."""
    try:
        value = e.p / e.q if e.is_Rational else float(e.evalf(30))
    except OverflowError:
        value = math.inf
    except TypeError as error:
        raise InputError(f"the number {e}, in the expression or what follows from it, is not real") from error
    if not math.isfinite(value):
        raise InputError(f"the number {e}, in the expression or what follows from it, is beyond what a computer holds")
    return repr(value) if value >= 0 else f"({value!r})"
