"""Reading a loss from text: a formula in named coordinates and parameters becomes a sympy expression, without `eval`.

Only numbers, names, + - * / **, brackets and the functions below are understood. Everything else is refused with the
place where it stands. sympy is imported where it is used: it takes longer to load than the rest of this room together.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._checks import suggest
from ..errors import InputError

FUNCTIONS = (
    "sin", "cos", "tan", "exp", "log", "sqrt", "sinh", "cosh", "tanh",
    "asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh",
)  # fmt: skip
CONSTANTS = ("pi",)

_NOT_ANALYTIC = ("abs", "sign", "min", "max", "floor", "ceil", "round", "relu", "heaviside")
_LONGEST = 5000
_LARGEST_POWER = 64
_LARGEST_NUMBER = 10**100


def check_name(kind: str, name: Any) -> str:
    """A name that the expression may use for a coordinate or parameter.

    Raises:
        InputError: not a word of letters, digits and underscores, a word of Python, or the name of a function.
    """
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise InputError(f"a {kind} must be named by letters, digits and underscores, got {name!r}")
    if keyword.iskeyword(name):
        raise InputError(f"the name {name!r} of a {kind} is a word of Python and cannot be read; use {name + '_'!r}")
    if name in FUNCTIONS or name in CONSTANTS:
        raise InputError(f"the name {name!r} of a {kind} is reserved for the function or constant; use another name")
    return name


def parse(text: Any, symbols: Mapping[str, Any], what: str = "the expression") -> Any:
    """The sympy expression that `text` writes; `symbols` maps each name it may use to its sympy symbol.

    Raises:
        InputError: text that does not parse, unbound names, a function that is not known, or a number that is not real
            or too large; with the place in the text.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{what} must be text such as '-c*x + h/2*y**2', got {text!r}")
    if len(text) > _LONGEST:
        raise InputError(f"{what} has {len(text)} characters, more than the {_LONGEST} that are read")
    reader = _Reader(text, symbols, what)
    if "#" in reader.text:
        raise reader.refusal("a comment cannot be part of a loss", column=reader.text.index("#"))
    try:
        tree = ast.parse(reader.text, mode="eval")
        reader.check_names(tree)
        found = reader.read(tree.body)
    except SyntaxError as error:
        raise reader.syntax(error) from error
    except (RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} is nested too deeply, or holds what cannot be read: {text[:60]!r}...") from error
    check_real(found, what)
    return found


def check_real(expression: Any, what: str) -> None:
    """Refuse an expression that holds the imaginary unit or an infinity.

    Raises:
        InputError: saying what was found.
    """
    import sympy as sp

    if expression.has(sp.I):
        raise InputError(f"{what} is not real: it holds the root or logarithm of a negative number")
    if expression.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise InputError(f"{what} divides by zero, or holds the logarithm of zero")


class _Reader:
    """Walks the syntax tree of one text and builds the expression."""

    def __init__(self, text: str, symbols: Mapping[str, Any], what: str) -> None:
        self.text = text.strip().replace("\n", " ")
        self.symbols = symbols
        self.what = what

    def refusal(self, reason: str, *, column: int) -> InputError:
        rest = self.text[column : column + 20] or "the end"
        hint = "; write powers as **" if "^" in self.text else ""
        return InputError(f"{self.what} {self.text!r}, at position {column + 1} ({rest!r}): {reason}{hint}")

    def syntax(self, error: SyntaxError) -> InputError:
        """What to say of text that is no expression; Python gives no place if it ends too early or holds a keyword."""
        words = [m for m in re.finditer(r"[A-Za-z_]\w*", self.text) if keyword.iskeyword(m[0])]
        if words:
            return self.refusal(f"{words[0][0]!r} is a word of Python; use another name", column=words[0].start())
        column = error.offset - 1 if error.offset else len(self.text)
        return self.refusal(f"does not parse: {error.msg}", column=column)

    def check_names(self, tree: ast.AST) -> None:
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called]
        unbound = sorted({n.id for n in names} - set(self.symbols) - set(CONSTANTS))
        if unbound:
            bound = list(self.symbols)
            first = min((n.col_offset for n in names if n.id in unbound), default=0)
            raise self.refusal(
                f"unbound {_listed(unbound)}; bound are {', '.join(bound)}.{suggest(unbound[0], bound)} Give "
                "each other name a value as a parameter, or list it among the coordinates",
                column=first,
            )

    def read(self, node: ast.AST) -> Any:
        for kind, how in _NODES.items():
            if isinstance(node, kind):
                found = how(self, node)
                if found.is_Rational and max(abs(found.p), abs(found.q)) > _LARGEST_NUMBER:
                    reason = "a number beyond 1e100" if abs(found) > 1 else "a number closer to 0 than 1e-100"
                    raise self.refusal(reason, column=_column(node))
                return found
        what = _REFUSED.get(type(node), type(node).__name__)
        raise self.refusal(f"{what} cannot be part of a loss", column=_column(node))

    def number(self, node: ast.Constant) -> Any:
        import sympy as sp

        if type(node.value) is int:
            return sp.Integer(node.value)
        if node.value == 0.0 and re.match(r"[0._]*[1-9]", ast.get_source_segment(self.text, node) or ""):
            raise self.refusal("a number closer to 0 than 1e-100", column=_column(node))
        if type(node.value) is float and abs(node.value) <= float(_LARGEST_NUMBER):
            return sp.Rational(repr(node.value))  # 0.5 is a half, so that x**0.5 is the root
        reason = "a number beyond 1e100" if type(node.value) is float else "only real numbers can be part of a loss"
        raise self.refusal(reason, column=_column(node))

    def name(self, node: ast.Name) -> Any:
        import sympy as sp

        return sp.pi if node.id == "pi" else self.symbols[node.id]

    def unary(self, node: ast.UnaryOp) -> Any:
        if not isinstance(node.op, ast.UAdd | ast.USub):
            raise self.refusal("only + and - can stand before a term", column=_column(node))
        value = self.read(node.operand)
        return -value if isinstance(node.op, ast.USub) else value

    def binary(self, node: ast.BinOp) -> Any:
        how = _OPERATORS.get(type(node.op))
        if how is None:
            name = type(node.op).__name__
            raise self.refusal(f"the operator {name} cannot be part of a loss", column=_column(node))
        left, right = self.read(node.left), self.read(node.right)
        if isinstance(node.op, ast.Pow) and right.is_Number and abs(right) > _LARGEST_POWER:
            raise self.refusal(f"a power beyond {_LARGEST_POWER}", column=_column(node.right))
        if isinstance(node.op, ast.Div) and right.is_zero:
            raise self.refusal("divides by zero", column=_column(node.right))
        return how(left, right)

    def call(self, node: ast.Call) -> Any:
        import sympy as sp

        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name in _NOT_ANALYTIC:
            raise self.refusal(f"{name} has no derivative everywhere; a loss must be smooth", column=_column(node))
        if name not in FUNCTIONS:
            raise self.refusal(
                f"unknown function {name!r}; known are {', '.join(FUNCTIONS)}.{suggest(name, FUNCTIONS)}",
                column=_column(node),
            )
        wanted = 2 if name == "atan2" else 1
        if len(node.args) != wanted or node.keywords:
            raise self.refusal(f"{name} takes {wanted} argument{'s' * (wanted > 1)}", column=_column(node))
        return getattr(sp, name)(*[self.read(argument) for argument in node.args])


def _column(node: ast.AST) -> int:
    return int(getattr(node, "col_offset", 0))


def _listed(names: Iterable[str]) -> str:
    names = [repr(name) for name in names]
    return f"symbol{'s' * (len(names) > 1)} {', '.join(names)}"


_NODES: dict[type, Callable[[_Reader, Any], Any]] = {
    ast.Constant: _Reader.number,
    ast.Name: _Reader.name,
    ast.UnaryOp: _Reader.unary,
    ast.BinOp: _Reader.binary,
    ast.Call: _Reader.call,
}

_REFUSED: dict[type, str] = {
    ast.Compare: "a comparison",
    ast.IfExp: "a condition",
    ast.Attribute: "a name with a dot",
    ast.Tuple: "a comma",
    ast.Subscript: "an index",
}

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
