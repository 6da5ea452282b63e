"""Losses from one expression: sympy derives gradient, Hessian and Hessian-vector product, compiled for batches.

What is derived depends on the expression and the names in it, not on the numbers: those are handed to the compiled
code, so that a loss with other numbers costs nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from .._checks import LARGEST, check_int, check_number
from .._typing import FloatArray
from ..errors import InputError
from ._codegen import Rows, kernel_lines, rows_function
from ._expressions import check_name, check_real, parse
from ._floor import minimise_hills
from ._loss import Kernel, Loss
from .losses import register_loss


@dataclass(frozen=True)
class Formula:
    """A loss as text: the expression, the names of its coordinates and parameters, and the floor where it is known.

    Args:
        expression: in the coordinates and parameters, e.g. "-c*x + h/2*y**2".
        coordinates: names of the coordinates, the `river_dim` river coordinates first.
        parameters: names of the parameters.
        floor: pairs (coordinate, expression) of the floor point below a state; other coordinates keep their value.
        river_dim: number of river coordinates, at least one less than there are coordinates.
    """

    expression: str
    coordinates: tuple[str, ...] = ("x", "y")
    parameters: tuple[str, ...] = ()
    floor: tuple[tuple[str, str], ...] = ()
    river_dim: int = 1


class FormulaLoss(Loss):
    """A loss that a `Formula` and the values of its parameters define."""

    @abstractmethod
    def formula(self) -> Formula:
        """The expression and its names."""

    @abstractmethod
    def numbers(self) -> FloatArray:
        """The values of the parameters, in the order of ``formula().parameters``."""

    @property
    def _derived(self) -> Derived:
        return derive(self.formula())  # kept there, not here: a loss can be copied and sent, compiled code cannot

    @cached_property
    def _p(self) -> FloatArray:
        return self.numbers()

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the coordinates, river coordinates first."""
        return self.formula().coordinates

    @property
    def river_dim(self) -> int:
        """Number of river coordinates."""
        return self.formula().river_dim

    def value(self, w: FloatArray) -> FloatArray:
        """L(w); (..., dim) -> (...)."""
        return self._evaluate(self._derived.value, w, ())

    def gradient_rows(self, w: FloatArray, out: FloatArray) -> None:
        """Gradient of each column of `w`, written to `out`; both (dim, replicates). The bits are those of `kernel`."""
        self._derived.gradient(w, out, self._p)

    def kernel(self) -> Kernel:
        """The gradient as code for compilation."""
        return Kernel(*self._derived.kernel_lines, self._p, self.dim)

    def hessian(self, w: FloatArray) -> FloatArray:
        """Second derivatives; (..., dim) -> (..., dim, dim)."""
        return self._evaluate(self._derived.hessian, w, (self.dim, self.dim))

    def hvp(self, w: FloatArray, v: FloatArray) -> FloatArray:
        """Hessian-vector product H(w) v without the Hessian; both (..., dim) -> (..., dim)."""
        both = np.concatenate(np.broadcast_arrays(w, v), axis=-1)
        return self._evaluate(self._derived.hvp, both, (self.dim,))

    def floor(self, w: FloatArray) -> FloatArray:
        """The point of the valley floor below each state; (..., dim) -> (..., dim).

        By the formula of the floor; where there is none, the minimum over the hill coordinates that a damped Newton
        iteration from the state finds, nan where it finds none.
        """
        if self.formula().floor:
            return self._evaluate(self._derived.floor, w, (self.dim,))
        return minimise_hills(self, w)

    def hill(self, w: FloatArray) -> FloatArray:
        """Hill component L(w) - river(w), the difference taken in the formula; (..., dim) -> (...)."""
        if self.formula().floor:
            return self._evaluate(self._derived.hill, w, ())
        return super().hill(w)

    def split(self, w: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Value, river and hill, what they have in common computed once; (..., dim) -> (...) three times."""
        if not self.formula().floor:
            return super().split(w)
        w = np.asarray(w, dtype=np.float64)
        value, river, hill = self.split_rows(np.ascontiguousarray(w.reshape(-1, self.dim).T))
        return value.reshape(w.shape[:-1]), river.reshape(w.shape[:-1]), hill.reshape(w.shape[:-1])

    def split_rows(self, columns: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """`split` of each column of (dim, N), (N,) three times, without moving any number."""
        if not self.formula().floor:
            return super().split_rows(columns)
        out = np.empty((3, columns.shape[1]))
        self._derived.split(columns, out, self._p)
        return out[0], out[1], out[2]

    def _evaluate(self, rows: Rows, w: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """Batched values of shape (..., *shape) of a function on rows, at states (..., n)."""
        w = np.asarray(w, dtype=np.float64)
        columns = np.ascontiguousarray(w.reshape(-1, w.shape[-1]).T)
        out = np.empty((int(np.prod(shape)), columns.shape[1]))
        rows(columns, out, self._p)
        return np.ascontiguousarray(out.T).reshape(w.shape[:-1] + shape)


@register_loss("expression")
class SymbolicLoss(FormulaLoss):
    """A loss that one expression defines.

    Args:
        expression: numbers, names, + - * / ** and the functions sin, cos, tan, exp, log, sqrt, sinh, cosh, tanh, asin,
            acos, atan, atan2, asinh, acosh, atanh; `pi` is known.
        coordinates: the names that are coordinates of the state, river coordinates first.
        parameters: value of every other name.
        river_dim: number of river coordinates.
        floor: expressions for coordinates of the floor point below a state, e.g. ``{"y": "A*sin(k*x)"}``; None: the
            minimum over the hill coordinates is found numerically.
        start: where a run begins that is given no start; None: river coordinates 0, hill coordinates 1.

    Raises:
        InputError: an expression that does not parse, is not real or not finite at the start, or is not smooth; symbols
            that are neither coordinates nor parameters, or coordinates or parameters that do not appear.

    >>> loss = SymbolicLoss("-c*x + h/2*(y - sin(x))**2", parameters={"c": 0.1, "h": 2.0}, floor={"y": "sin(x)"})
    >>> loss.gradient(np.array([0.0, 1.0])).tolist()
    [-2.1, 2.0]
    """

    def __init__(
        self,
        expression: str,
        *,
        coordinates: Sequence[str] = ("x", "y"),
        parameters: Mapping[str, float] | None = None,
        river_dim: int = 1,
        floor: Mapping[str, str] | None = None,
        start: Sequence[float] | None = None,
    ) -> None:
        values = _checked_values(parameters)
        names = _checked_coordinates(coordinates, tuple(values))
        check_int("river_dim", river_dim, low=1, high=len(names) - 1, what="river coordinates, with at least one hill")
        self._values = values
        self._formula = Formula(expression, names, tuple(values), _checked_floor(floor, names), int(river_dim))
        self._given_start = None if start is None else _checked_start(start, names)
        check_used(self._formula)
        self._check_at_start()

    def formula(self) -> Formula:
        """The expression and its names."""
        return self._formula

    def numbers(self) -> FloatArray:
        """The values of the parameters."""
        return np.array([*self._values.values()], dtype=np.float64)

    def start(self) -> FloatArray:
        """Where a run begins that is given no start; (dim,)."""
        if self._given_start is not None:
            return np.array(self._given_start)
        return np.array([0.0] * self.river_dim + [1.0] * (self.dim - self.river_dim))

    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-ready, as ``make_loss(**d)`` takes them."""
        formula = self._formula
        return {
            "name": self.name,
            "expression": formula.expression,
            "coordinates": list(formula.coordinates),
            "parameters": dict(self._values),
            "river_dim": formula.river_dim,
            "floor": dict(formula.floor) or None,
            "start": None if self._given_start is None else list(self._given_start),
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymbolicLoss) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self._formula, tuple(self._values.values()), self._given_start))

    def __repr__(self) -> str:
        options = {k: v for k, v in self.to_dict().items() if k not in ("name", "expression") and v is not None}
        return f"SymbolicLoss({self._formula.expression!r}, {', '.join(f'{k}={v!r}' for k, v in options.items())})"

    def _check_at_start(self) -> None:
        w = self.start()
        place = ", ".join(f"{name} = {x:g}" for name, x in zip(self.coordinates, w.tolist(), strict=True))
        with np.errstate(all="ignore"):
            value, gradient, floor = self.value(w), self.gradient(w), self.floor(w)
        for what, found in (("value", value), ("gradient", gradient)):
            if not np.all(np.isfinite(found)):
                why = self._derived.complaint(w, self._p)
                raise InputError(f"the {what} of the loss at its start ({place}) is {why}; give another start")
        if not np.all(np.isfinite(floor)):
            hills = ", ".join(self.coordinates[self.river_dim :])
            raise InputError(
                f"the loss has no valley floor below its start ({place}): no minimum over {hills} was found; change "
                "the expression, say which coordinates come first as the river's, or give a floor or another start"
            )


def check_used(formula: Formula) -> None:
    """Refuse a formula that leaves out one of its coordinates or parameters.

    Raises:
        InputError: naming those left out.
    """
    derived = derive(formula)
    names = {
        **dict(zip(formula.parameters, derived.p, strict=True)),
        **dict(zip(formula.coordinates, derived.w, strict=True)),
    }
    used = derived.expression.free_symbols.union(*(e.free_symbols for e in derived.floor_of.values()))
    unused = [name for name, symbol in names.items() if symbol not in used]
    if unused:
        kinds = ["coordinate" if n in formula.coordinates else "parameter" for n in unused]
        told = ", ".join(f"{kind} {name!r}" for kind, name in zip(kinds, unused, strict=True))
        raise InputError(
            f"the expression {formula.expression!r} does not depend on the {told}; leave out what is not used"
        )


@lru_cache(maxsize=256)
def derive(formula: Formula) -> Derived:
    """Derivatives of a formula and the code for them, made once and then kept.

    Raises:
        InputError: an expression that cannot be read, see `SymbolicLoss`.
    """
    return Derived(formula)


class Derived:
    """What follows from a formula, each part derived and compiled when it is first asked for."""

    def __init__(self, formula: Formula) -> None:
        import sympy as sp

        # Names of our own: the code made from them cannot clash with anything, whatever names the formula uses.
        self.w = [sp.Symbol(f"w{i}") for i in range(len(formula.coordinates))]
        self.p = [sp.Symbol(f"p{i}") for i in range(len(formula.parameters))]
        bound = dict(zip((*formula.coordinates, *formula.parameters), (*self.w, *self.p), strict=True))
        self.expression = parse(formula.expression, bound)
        self.floor_of = {bound[n]: parse(text, bound, f"the floor of {n!r}") for n, text in formula.floor}

    @cached_property
    def slopes(self) -> list[Any]:
        """The gradient as expressions."""
        import sympy as sp

        slopes = [sp.factor_terms(self.expression.diff(w)) for w in self.w]
        for slope in slopes:
            check_real(slope, "the gradient of the loss")
        return slopes

    @cached_property
    def kernel_lines(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The two parts of the `Kernel`."""
        return kernel_lines(self.slopes, self.w, self.p)

    @cached_property
    def gradient(self) -> Rows:
        """The gradient on rows, by the lines of the kernel."""
        return rows_function(self.slopes, self.w, self.p, compiled_too=True)

    @cached_property
    def value(self) -> Rows:
        """The loss on rows."""
        return rows_function([self.expression], self.w, self.p)

    @cached_property
    def hessian(self) -> Rows:
        """The Hessian on rows, entry by entry."""
        places = range(len(self.w))
        upper = {(i, j): self.slopes[i].diff(self.w[j]) for i in places for j in places[i:]}
        return rows_function([upper[min(i, j), max(i, j)] for i in places for j in places], self.w, self.p)

    @cached_property
    def hvp(self) -> Rows:
        """The Hessian-vector product on rows: first those of the state, then those of the vector."""
        import sympy as sp

        v = [sp.Symbol(f"v{i}") for i in range(len(self.w))]
        along = sum(slope * direction for slope, direction in zip(self.slopes, v, strict=True))
        return rows_function([along.diff(w) for w in self.w], [*self.w, *v], self.p)

    @cached_property
    def floor(self) -> Rows:
        """The floor point on rows."""
        return rows_function([self.floor_of.get(w, w) for w in self.w], self.w, self.p)

    @cached_property
    def hill(self) -> Rows:
        """The loss less that of the floor point on rows; what both have in common is gone before any rounding."""
        river = self.expression.subs(self.floor_of, simultaneous=True)
        return rows_function([self.expression - river], self.w, self.p)

    @cached_property
    def split(self) -> Rows:
        """The loss, that of the floor point, and the difference on rows."""
        river = self.expression.subs(self.floor_of, simultaneous=True)
        return rows_function([self.expression, river, self.expression - river], self.w, self.p)

    def complaint(self, w: FloatArray, p: FloatArray) -> str:
        """Why the loss is not finite at a state: what its value is in complex numbers."""
        import sympy as sp

        at = dict(zip((*self.w, *self.p), (*w.tolist(), *p.tolist()), strict=True))
        found = self.expression.subs(at).evalf()
        if found.is_number and found.is_finite and not found.is_real:
            real, imaginary = (float(part) for part in found.as_real_imag())
            return f"not real: {real:.4g} {'-' if imaginary < 0 else '+'} {abs(imaginary):.4g} i"
        return f"not finite{'' if found.is_finite else f': {sp.sstr(found)}'}"


def _checked_coordinates(coordinates: Sequence[str], parameters: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(coordinates, str) or not isinstance(coordinates, Sequence) or len(coordinates) < 2:
        raise InputError(
            f"coordinates must list at least two names, those of the river first, as ('x', 'y'); got {coordinates!r}"
        )
    names = tuple(check_name("coordinate", name) for name in coordinates)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"coordinate {name!r} is listed twice")
        if name in parameters:
            raise InputError(f"{name!r} is both a coordinate and a parameter; it can be one of them")
    return names


def _checked_values(parameters: Mapping[str, float] | None) -> dict[str, float]:
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InputError(f"parameters must map each name to its number, such as {{'c': 0.1}}; got {parameters!r}")
    values = dict(parameters or {})
    return {
        check_name("parameter", name): check_number(f"parameter {name!r}", value, low=-LARGEST, high=LARGEST)
        for name, value in values.items()
    }


def _checked_floor(floor: Mapping[str, str] | None, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    if floor is None:
        return ()
    if not isinstance(floor, Mapping) or not floor:
        raise InputError(f"floor must map coordinates to expressions, such as {{'y': 'sin(x)'}}; got {floor!r}")
    for name in floor:
        if name not in names:
            raise InputError(f"floor names {name!r}, which is not a coordinate; coordinates are {', '.join(names)}")
    return tuple(floor.items())


def _checked_start(start: Any, names: tuple[str, ...]) -> tuple[float, ...]:
    if isinstance(start, str) or not isinstance(start, Sequence | np.ndarray) or len(start) != len(names):
        raise InputError(f"start must hold {len(names)} numbers, one for each of {', '.join(names)}; got {start!r}")
    return tuple(check_number("start", x, low=-LARGEST, high=LARGEST) for x in start)
