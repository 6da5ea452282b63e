"""Symmetric matrices of a training that are known by their products: what Hessian, Gauss-Newton and Fisher share.

A product is a sum over the batches of a `LossOnBatches`. Each batch gives, at a fixed point, a `Kernel`: the graph that
its products need, which is kept between products or made again for each. Diagonal blocks share the graphs of the whole.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from ._checks import pick
from ._parameters import described
from ._typing import FloatArray
from ._untouched import plain_arithmetic
from .errors import InputError, RivervalError, missing_extra
from .model_loss import LossOnBatches, flat_vector, zeros_like

try:
    import torch
    from torch import Tensor
    from torch.utils._pytree import tree_leaves
except ImportError as _error:
    raise missing_extra("torch", "real", "curvature of a torch model") from _error

# kernel(chosen, vectors, retain): the part of A v in the chosen parameters, for a v that is zero in all others; None
# for zero. `retain` says whether the graph is needed again. (Quoted: a stand-in for torch knows no `|`.)
Kernel = Callable[[Sequence[int], Sequence[Tensor], bool], Sequence["Tensor | None"]]
_SUMS = {"float32": torch.float32, "float64": torch.float64}
_UNUSED = {"refuse": True, "zero": False}


class TensorSpace:
    """Krylov vectors as torch tensors on a device, in float64 where it has that: the `space` of `riverval.spectra`."""

    def __init__(self, device: torch.device) -> None:
        self._place: dict[str, Any] = {
            "device": device,
            "dtype": torch.float32 if device.type == "mps" else torch.float64,
        }

    def empty(self, rows: int, dim: int) -> Tensor:
        """An uninitialised (rows, dim)."""
        return torch.empty(rows, dim, **self._place)

    def array(self, values: Any) -> Tensor:
        """A NumPy array or a tensor as a tensor of this space."""
        return torch.as_tensor(values).to(self._place["dtype"]).to(self._place["device"])

    def numpy(self, array: Tensor) -> FloatArray:
        """A tensor of this space as float64 array on the host."""
        values: FloatArray = array.detach().cpu().double().numpy()
        return values


class Operator(ABC):
    """A symmetric matrix A, shape (dim, dim): ``A @ v`` on flat torch tensors, `matvec` on NumPy arrays.

    Attributes:
        shape: (dim, dim).
        dtype: float64, of `matvec`.
        products: how many vectors were multiplied so far.
        names, sizes: of the parameters that the rows stand for, in order.
        device: where products are made.
    """

    dtype = np.dtype(np.float64)

    def __init__(self, names: Sequence[str], sizes: Sequence[int], device: torch.device) -> None:
        self.names, self.sizes, self.device = tuple(names), tuple(sizes), device
        self.shape = (sum(sizes), sum(sizes))
        self.products = 0

    @abstractmethod
    def _multiply(self, matrix: Tensor) -> Tensor:
        """A M for M of shape (dim, k), in whatever precision; any device."""

    @abstractmethod
    def blocks(self, group: Callable[[str], str] | None = None) -> dict[str, Operator]:
        """The diagonal blocks of A, by name.

        Args:
            group: the block that a parameter belongs to, from its name; None makes every parameter a block. By layer:
                ``lambda name: name.rpartition(".")[0]``.

        Returns:
            Operators that count their own products and share the graphs of this one: a block costs no memory of its
            own, and its product less than one of the whole.
        """

    @property
    def space(self) -> TensorSpace | None:
        """Where Krylov vectors are kept: on the accelerator, or (None) as NumPy arrays beside products on the CPU."""
        return None if self.device.type == "cpu" else TensorSpace(self.device)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """A v for a tensor of shape (dim,), or A V for (dim, k), column by column; on this operator's device.

        Raises:
            InputError: another shape.
        """
        if not isinstance(vector, Tensor) or vector.ndim not in (1, 2) or len(vector) != self.shape[0]:
            raise InputError(
                f"this operator takes tensors of shape ({self.shape[0]},) or ({self.shape[0]}, k), "
                f"got {described(vector)}"
            )
        product = self._multiply(vector.detach().reshape(len(vector), -1)).reshape(vector.shape)
        if self.device.type == "mps":
            product = product.float()
        return product.to(self.device)

    def matvec(self, vector: FloatArray) -> FloatArray:
        """A v for an array of shape (dim,) or (dim, 1), in float64 outside and in the parameters' precision inside."""
        values = np.array(vector, dtype=np.float64)
        product: FloatArray = self._multiply(torch.from_numpy(values.reshape(len(values), -1))).cpu().double().numpy()
        return product.reshape(values.shape)

    def as_linear_operator(self) -> LinearOperator:
        """The same operator for scipy: symmetric, float64 vectors outside."""
        return LinearOperator(
            self.shape,
            matvec=self.matvec,
            rmatvec=self.matvec,
            matmat=self.matvec,
            rmatmat=self.matvec,
            dtype=self.dtype,
        )


class _Point:
    """Where an operator stands: copies of everything that training may change, and the graphs made there.

    Operators of the same point (the blocks of one) share it.
    """

    def __init__(self, loss: LossOnBatches, at: Tensor | None, keep: bool, make: Callable[..., Any]) -> None:
        self.loss, self.keep, self._make = loss, keep, make
        self.leaves = loss.leaves(loss.point() if at is None else at)
        self.constants = loss.constants()
        frozen = {n: p for n, p in loss.model.named_parameters() if n not in {*loss.names, *self.constants}}
        watched = [(f"the frozen parameter {name}", p) for name, p in frozen.items()]
        for i, batch in enumerate(loss.batches):
            parts = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)  # torch knows few mappings
            watched += [(f"a tensor of batch {i + 1}", t) for t in parts if isinstance(t, Tensor)]
        # Inference tensors count no versions, and cannot be changed in place by a training either.
        self._watched = [(name, t, t._version, t.data_ptr()) for name, t in watched if not t.is_inference()]
        self._kernels: dict[int, Kernel] = {}
        self.reached: set[int] = set()

    def check(self) -> None:
        """Refuse to go on after a change of something that is not copied for its size."""
        for name, tensor, version, place in self._watched:
            if tensor._version != version or tensor.data_ptr() != place:
                raise RivervalError(
                    f"{name} was changed in place since this operator was made, so its products would belong to two "
                    f"different matrices; make a new operator (and copy the batches if a loader reuses their memory)"
                )

    def kernel(self, index: int) -> Kernel:
        if index in self._kernels:
            return self._kernels[index]
        with torch.enable_grad():
            kernel, reached = self._make(self, index)
        self.reached |= reached
        if self.keep:
            self._kernels[index] = kernel
        made: Kernel = kernel
        return made

    def evaluate(self, function: Callable[[Any, Any], Any], index: int) -> Any:
        """``function(model, batch)`` at this point."""
        return self.loss.evaluate(function, self.leaves, index, self.constants)


class BatchOperator(Operator):
    """A sum over the batches of a `LossOnBatches` at one point; see `riverval.hessian` for the matrices.

    Args:
        loss: the loss and its data.
        at: the point, shape (dim,), copied; the model's own parameters if None. Training may go on: the operator stays
            where it was made.
        keep_graph: keep every batch's graph between products: about half the time, at the memory of the graphs of all
            batches at once. False makes it again for each product, batch by batch: with small batches, little memory.
        accumulate: "float32" or "float64", the least precision in which batches are added up; never below the
            parameters' own, and what ``operator @ vector`` gives.
        unused: parameters without a differentiable path to the loss of any batch: "refuse" them by name, or count their
            rows as "zero".

    Raises:
        InputError: an argument out of range; in a product: a loss without finite value or graph, an operation without
            second derivative, a parameter without path.
        RivervalError: in a product: the loss of a batch failed (the message says which), or frozen parameters or
            batches were changed in place since.
    """

    def __init__(
        self,
        loss: LossOnBatches,
        at: Tensor | None = None,
        *,
        keep_graph: bool = True,
        accumulate: str = "float32",
        unused: str = "refuse",
    ) -> None:
        super().__init__(loss.names, loss.sizes, loss.device)
        self._sum_dtype = torch.promote_types(loss.dtype, pick("accumulate", accumulate, _SUMS))
        self._refuse_unused = pick("unused", unused, _UNUSED)
        self._point = _Point(loss, at, keep_graph, self._make)
        self._chosen = tuple(range(len(loss.names)))

    @staticmethod
    @abstractmethod
    def _make(point: _Point, index: int) -> tuple[Kernel, set[int]]:
        """The kernel of one batch, and the parameters (by number) that have a path to its loss."""

    def blocks(self, group: Callable[[str], str] | None = None) -> dict[str, BatchOperator]:  # type: ignore[override]
        """The diagonal blocks by name: see `Operator.blocks`."""
        members: dict[str, list[int]] = {}
        for place, name in enumerate(self.names):
            members.setdefault(name if group is None else group(name), []).append(place)
        return {name: self._block(places) for name, places in members.items()}

    def _block(self, places: Sequence[int]) -> BatchOperator:
        block = copy.copy(self)
        Operator.__init__(block, [self.names[k] for k in places], [self.sizes[k] for k in places], self.device)
        block._chosen = tuple(self._chosen[k] for k in places)
        return block

    def _multiply(self, matrix: Tensor) -> Tensor:
        point, count = self._point, matrix.shape[1]
        point.check()
        leaves = [point.leaves[k] for k in self._chosen]
        columns = [self._cut(matrix[:, c], leaves) for c in range(count)]
        sums = [zeros_like(leaves, self._sum_dtype) for _ in range(count)]
        for index, weight in enumerate(point.loss.weights):
            with point.loss.naming(index), plain_arithmetic(point.loss.model, point.loss.devices):
                kernel = point.kernel(index)
                for c, vectors in enumerate(columns):
                    results = kernel(self._chosen, vectors, point.keep or c < count - 1)
                    for total, result in zip(sums[c], results, strict=True):
                        if result is not None:
                            total.add_(result.to(total), alpha=weight)
        self._check_paths()
        self.products += count
        return torch.stack([flat_vector(s) for s in sums], dim=1)

    def _cut(self, vector: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
        # Converted before it travels: some accelerators have no float64.
        pieces = zip(vector.split(self.sizes), leaves, strict=True)
        return [piece.to(leaf.dtype).to(leaf.device).view(leaf.shape) for piece, leaf in pieces]

    def _check_paths(self) -> None:
        point = self._point
        missing = [name for k, name in enumerate(point.loss.names) if k not in point.reached]
        if missing and self._refuse_unused:
            raise InputError(
                f"no differentiable path leads from the loss to the parameters {', '.join(missing)}: they are not "
                f"used, or an operation without derivative (argmax, rounding, detach) lies on the way; leave them out "
                f"with LossOnBatches(..., parameters=...), or say unused='zero' to count their rows as zero"
            )


class PreconditionedOperator(Operator):
    """P^-1/2 A P^-1/2 for a diagonal P > 0: similar to P^-1 A, with the same eigenvalues, but symmetric.

    With A the Hessian and P the optimizer's preconditioner (`riverval.preconditioners`), its largest eigenvalue is the
    sharpness that the optimizer sees: plain momentum becomes unstable where it exceeds `stability_threshold`
    (Cohen et al. 2022, arXiv:2207.14484, for Adam).

    Null: for P proportional to ones it is the raw sharpness up to that factor. A raw sharpness that rises while this
    one, times the learning rate, falls is the expected picture of a cooldown, no sign of instability.

    Args:
        operator: A.
        p: the diagonal of P, shape (dim,), in the order of `operator.names`; all above 0.

    Raises:
        InputError: another shape, or an entry that is not a finite number above 0.
    """

    def __init__(self, operator: Operator, p: Tensor) -> None:
        super().__init__(operator.names, operator.sizes, operator.device)
        if not isinstance(p, Tensor) or p.shape != self.shape[:1]:
            raise InputError(
                f"this operator needs a preconditioner, a tensor of shape ({self.shape[0]},), got {described(p)}"
            )
        p = p.detach().cpu().double()
        if not bool(((p > 0) & torch.isfinite(p)).all()):
            raise InputError(
                f"a preconditioner must be finite and above 0; {int((~(p > 0)).sum())} of {len(p)} entries are not "
                f"above 0 and {int((~torch.isfinite(p)).sum())} not finite (eps=0 and a parameter without gradient?)"
            )
        self._operator, self._p = operator, p
        self._scale = p.rsqrt() if self.device.type == "mps" else p.rsqrt().to(self.device)

    def _multiply(self, matrix: Tensor) -> Tensor:
        scale = self._scale[:, None]
        product = self._operator._multiply(scale * matrix.to(self._scale.dtype).to(scale.device))
        self.products += matrix.shape[1]
        return scale * product.to(scale)

    def blocks(self, group: Callable[[str], str] | None = None) -> dict[str, Operator]:
        """The diagonal blocks by name: see `Operator.blocks`."""
        parts = dict(zip(self.names, self._p.split(self.sizes), strict=True))
        inner = self._operator.blocks(group)
        return {
            key: PreconditionedOperator(block, torch.cat([parts[name] for name in block.names]))
            for key, block in inner.items()
        }


def path_of(tensor: Tensor) -> Iterator[Any]:
    """Every node of the graph behind `tensor`, each once."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            yield node
