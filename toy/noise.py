"""Models of the gradient noise: what is added to the gradient of every replicate at every update."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from .._checks import LARGEST, check_int, check_number, check_options, make_plain, pick
from .._registry import registrar
from .._typing import FloatArray
from ..errors import InputError
from ._codegen import Rows, rows_function
from ._expressions import check_name, parse
from ._loss import Loss

NOISES: dict[str, type[Noise]] = {}

register_noise = registrar(NOISES)


def check_sigma(sigma: float) -> None:
    """The standard deviation of the gradient noise, wherever it is given.

    Raises:
        InputError: not a number from 0 to 1e100.
    """
    check_number("sigma", sigma, low=0.0, high=LARGEST, what="standard deviation of the gradient noise")


@dataclass(frozen=True)
class Noise(ABC):
    """White in time: what an update adds is independent of all before, given the state.

    A model either scales standard draws by fixed numbers per coordinate (`scales`), or shapes them by the state
    (`shape_rows`).
    """

    name: ClassVar[str]
    squares: ClassVar[int] = 0
    """Arrays of (dim, dim) for each replicate that `shape_rows` takes."""

    def draw(self, rng: np.random.Generator, out: FloatArray) -> None:
        """Fill `out` with independent draws of mean 0 and variance 1."""
        rng.standard_normal(out=out)

    @abstractmethod
    def scales(self, loss: Loss) -> FloatArray | None:
        """Factor of each coordinate, (dim,); None where they depend on the state.

        Raises:
            InputError: the model does not fit the loss.
        """

    def shape_rows(self, loss: Loss, w: FloatArray, xi: FloatArray) -> FloatArray:
        """The noise made of the draws `xi` at the states `w`; both (dim, replicates) -> the same."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, JSON-ready, as ``make_noise(**d)`` takes them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"name": self.name} | {k: _listed(v) for k, v in values.items()}


def make_noise(name: str, **options: Any) -> Noise:
    """Build a registered model of the noise from plain values.

    Raises:
        InputError: an unknown name, an option that the model does not take or lacks, or a value out of range.

    >>> make_noise("student-t", sigma=0.5, freedom=5.0)
    StudentT(sigma=0.5, freedom=5.0)
    """
    cls = pick("noise", name, NOISES)
    check_options(f"noise {name!r}", options, [f.name for f in fields(cls)])
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in options]
    if missing:
        raise InputError(f"noise {name!r} needs a value for {' and '.join(missing)}")
    return cls(**{k: _tupled(v) for k, v in options.items()})


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value


@register_noise("isotropic")
@dataclass(frozen=True)
class Isotropic(Noise):
    """Gaussian with standard deviation `sigma` in every coordinate."""

    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        make_plain(self)

    def scales(self, loss: Loss) -> FloatArray:
        return np.full(loss.dim, self.sigma)


@register_noise("none")
@dataclass(frozen=True)
class Silence(Noise):
    """No noise, and nothing drawn: gradient descent, and in the limit of small rates gradient flow."""

    def draw(self, rng: np.random.Generator, out: FloatArray) -> None:
        out.fill(0.0)

    def scales(self, loss: Loss) -> FloatArray:
        return np.zeros(loss.dim)


@register_noise("anisotropic")
@dataclass(frozen=True)
class Anisotropic(Noise):
    """Gaussian, independent, with its own standard deviation in every coordinate; `sigmas` of shape (dim,)."""

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.sigmas, tuple) or not self.sigmas:
            raise InputError(f"sigmas must be a tuple of numbers, one for each coordinate, got {self.sigmas!r}")
        for sigma in self.sigmas:
            check_sigma(sigma)
        make_plain(self)

    def scales(self, loss: Loss) -> FloatArray:
        if len(self.sigmas) != loss.dim:
            names = ", ".join(loss.coordinates)
            raise InputError(f"sigmas must be {loss.dim} numbers, for {names}; got {len(self.sigmas)}")
        return np.array(self.sigmas, dtype=np.float64)


@register_noise("student-t")
@dataclass(frozen=True)
class StudentT(Isotropic):
    """Student's t with `freedom` > 2 degrees of freedom, scaled to the standard deviation `sigma`: heavy tails."""

    freedom: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("freedom", self.freedom, low=2.0, high=LARGEST, open_low=True, what="degrees of freedom")

    def draw(self, rng: np.random.Generator, out: FloatArray) -> None:
        np.multiply(rng.standard_t(self.freedom, out.shape), math.sqrt((self.freedom - 2.0) / self.freedom), out=out)


@register_noise("fisher")
@dataclass(frozen=True)
class Fisher(Noise):
    """Gaussian with covariance H(w)/B, B = `batch`: that of a likelihood whose model is right (theory of the score).

    Where the Hessian has negative eigenvalues, which no covariance has, they count as 0.
    """

    squares = 3
    batch: int = 1

    def __post_init__(self) -> None:
        check_int("batch", self.batch, low=1, what="examples in a batch")
        make_plain(self)

    def scales(self, loss: Loss) -> FloatArray | None:
        diagonal = loss.constant_diagonal()
        return None if diagonal is None else np.sqrt(np.maximum(diagonal, 0.0) / self.batch)

    def shape_rows(self, loss: Loss, w: FloatArray, xi: FloatArray) -> FloatArray:
        finite = np.isfinite(w).all(axis=0)
        hessian = loss.hessian(w.T)
        finite &= np.isfinite(hessian).all(axis=(1, 2))
        hessian[~finite] = 0.0  # replicates that have diverged stay as they are
        values, vectors = np.linalg.eigh(hessian)
        root = np.sqrt(np.maximum(values, 0.0) / self.batch)
        return np.ascontiguousarray(np.einsum("rij,rj,jr->ir", vectors, root, xi))


@register_noise("state-dependent")
@dataclass(frozen=True)
class StateDependent(Noise):
    """Gaussian, independent, with the same standard deviation in every coordinate: an expression of the state.

    Args:
        expression: in the coordinates of the loss and the parameters, as for `riverval.toy.SymbolicLoss`; e.g.
            "s*sqrt(1 + y**2)", louder away from the floor y = 0.
        parameters: pairs (name, value) of every other name in it.

    Raises:
        InputError: an expression that cannot be read, or, when it meets a loss, names that are bound to nothing or
            parameters that do not appear.
    """

    expression: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        pairs = self.parameters if isinstance(self.parameters, tuple) else (None,)
        if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise InputError(f"parameters must be pairs such as (('s', 0.5),), got {self.parameters!r}")
        checked = tuple(
            (check_name("parameter", name), check_number(f"parameter {name!r}", value, low=-LARGEST, high=LARGEST))
            for name, value in self.parameters
        )
        names = [name for name, _ in checked]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"parameter {name!r} is given twice")
        object.__setattr__(self, "parameters", checked)

    def scales(self, loss: Loss) -> None:
        _amplitude(self.expression, loss.coordinates, tuple(name for name, _ in self.parameters))  # or an error

    def shape_rows(self, loss: Loss, w: FloatArray, xi: FloatArray) -> FloatArray:
        rows = _amplitude(self.expression, loss.coordinates, tuple(name for name, _ in self.parameters))
        out = np.empty((1, w.shape[1]))
        rows(w, out, np.array([value for _, value in self.parameters]))
        shaped: FloatArray = out * xi
        return shaped


@lru_cache(maxsize=64)
def _amplitude(expression: str, coordinates: tuple[str, ...], parameters: tuple[str, ...]) -> Rows:
    """The expression on rows."""
    import sympy as sp

    for name in parameters:
        if name in coordinates:
            raise InputError(f"{name!r} is both a coordinate of the loss and a parameter of the noise; rename it")
    states = [sp.Symbol(f"w{i}") for i in range(len(coordinates))]
    numbers = [sp.Symbol(f"p{i}") for i in range(len(parameters))]
    bound = dict(zip((*coordinates, *parameters), (*states, *numbers), strict=True))
    found = parse(expression, bound, "the noise")
    unused = [name for name, symbol in zip(parameters, numbers, strict=True) if symbol not in found.free_symbols]
    if unused:
        raise InputError(f"the noise {expression!r} does not depend on the parameter {unused[0]!r}; leave it out")
    return rows_function([found], states, numbers)
