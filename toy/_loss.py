"""What every analytic loss offers: value, derivatives, the valley floor, and the gradient as code for compilation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .._typing import FloatArray


@dataclass(frozen=True)
class Kernel:
    """The gradient at one state as lines of code on scalars, to be put into a loop over replicates and compiled.

    `lines` set g0, g1, ... from the coordinates w0, w1, ... and from what the lines in `head`, computed once, made of
    the vector p = `parameters`; so that other numbers need no other compilation. They may call sin, cos, exp, log and
    sqrt (of `riverval.toy._elementary`) and nothing else, and do the same operations in the same order as
    `Loss.gradient_rows`, so that both give the same bits.
    """

    head: tuple[str, ...]
    lines: tuple[str, ...]
    parameters: FloatArray
    dim: int

    @property
    def source(self) -> str:
        """A function ``gradient(w, g, p)`` that writes the gradient of every column of w (dim, replicates) into g."""
        body = ["def gradient(w, g, p):", *(f"    {line}" for line in self.head), "    for r in range(w.shape[1]):"]
        body += [f"        w{i} = w[{i}, r]" for i in range(self.dim)]
        body += [f"        {line}" for line in self.lines]
        body += [f"        g[{i}, r] = g{i}" for i in range(self.dim)]
        return "\n".join(body) + "\n"


class Loss(ABC):
    """An analytic loss L(w) of states ``w`` of shape (..., dim), their first `river_dim` coordinates along the river.

    It splits as value = river + hill, where `river` is the loss of the point of the valley floor below the state
    (arXiv:2410.05192): with hill coordinates that minimise the loss at the same river coordinates, unless the loss says
    that its floor point is the nearest one.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def coordinates(self) -> tuple[str, ...]:
        """Names of the coordinates, river coordinates first."""

    @property
    def dim(self) -> int:
        """Number of coordinates of a state."""
        return len(self.coordinates)

    @property
    def river_dim(self) -> int:
        """Number of river coordinates."""
        return 1

    @abstractmethod
    def value(self, w: FloatArray) -> FloatArray:
        """L(w); (..., dim) -> (...)."""

    @abstractmethod
    def floor(self, w: FloatArray) -> FloatArray:
        """The point of the valley floor below each state; (..., dim) -> (..., dim)."""

    @abstractmethod
    def hessian(self, w: FloatArray) -> FloatArray:
        """Second derivatives; (..., dim) -> (..., dim, dim)."""

    @abstractmethod
    def gradient_rows(self, w: FloatArray, out: FloatArray) -> None:
        """Gradient of each column of `w`, written to `out`; both (dim, replicates). The bits are those of `kernel`."""

    @abstractmethod
    def kernel(self) -> Kernel:
        """The gradient as code for compilation."""

    @abstractmethod
    def start(self) -> FloatArray:
        """Where a run begins that is given no start; (dim,)."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-ready, as ``make_loss(**d)`` takes them."""

    def river(self, w: FloatArray) -> FloatArray:
        """River component: the loss of the floor below; (..., dim) -> (...)."""
        return self.value(self.floor(w))

    def hill(self, w: FloatArray) -> FloatArray:
        """Hill component L(w) - river(w); (..., dim) -> (...)."""
        return self.value(w) - self.river(w)

    def split(self, w: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Value, river and hill, each computed once; (..., dim) -> (...) three times."""
        value, river = self.value(w), self.river(w)
        return value, river, value - river

    def split_rows(self, columns: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """`split` of each column of (dim, N), (N,) three times."""
        return self.split(columns.T)

    def gradient(self, w: FloatArray) -> FloatArray:
        """First derivatives; (..., dim) -> (..., dim)."""
        columns = np.ascontiguousarray(np.asarray(w, dtype=np.float64).reshape(-1, self.dim).T)
        out = np.empty_like(columns)
        self.gradient_rows(columns, out)
        return np.ascontiguousarray(out.T).reshape(np.shape(w))

    def constant_diagonal(self) -> FloatArray | None:
        """The second derivatives, (dim,), where they are the same everywhere and the mixed ones vanish; else None."""
        return None

    def hvp(self, w: FloatArray, v: FloatArray) -> FloatArray:
        """Hessian-vector product H(w) v; both (..., dim) -> (..., dim)."""
        product: FloatArray = np.einsum("...ij,...j->...i", self.hessian(w), v)
        return product
