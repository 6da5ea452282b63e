"""Losses as their values on fixed batches, and the error that the batches give; `riverval.landscape` names them too."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._blocks import as_numpy
from ._typing import ArrayLike, FloatArray
from ._vectors import fresh
from .errors import InputError


@dataclass(frozen=True, eq=False)
class BatchLosses:
    """A loss as its values on B fixed batches: L(w) = sum_b weights[b] L_b(w).

    Attributes:
        evaluate: takes a vector, gives the B values.
        weights: shares of the batches, shape (B,), positive, summing to 1.
    """

    evaluate: Callable[[Any], ArrayLike]
    weights: FloatArray

    def __call__(self, flat: Any) -> FloatArray:
        """The B values at a copy of `flat`, as they are: inf and nan included.

        Raises:
            InputError: the loss gives another number of values.
        """
        values = _numbers(self.evaluate(fresh(flat)))
        if values.shape != self.weights.shape:
            raise InputError(f"the loss must give {len(self.weights)} values, one a batch; got shape {values.shape}")
        return values


def batch_losses(loss: Any, weights: ArrayLike | None = None) -> BatchLosses:
    """The values of a loss on its batches, from whatever form it has.

    Args:
        loss: one of

            - an object with ``per_batch(flat)``, which gives B values, and ``weights``, their B shares;
            - a `LossOnBatches` (anything with ``batches``, ``weights`` and ``part(flat, batch)``);
            - a list of functions of a vector, one a batch;
            - one function of a vector: a single batch, from which no error can be had.
        weights: shares of the batches of a list, e.g. their numbers of examples; None weighs them equally.

    Raises:
        InputError: none of these, or weights that do not fit or are given where the loss has its own.

    >>> losses = batch_losses([lambda w: w @ w, lambda w: 3 * w @ w], weights=[1, 3])
    >>> losses(np.array([2.0])).tolist(), losses.weights.tolist()
    ([4.0, 12.0], [0.25, 0.75])
    """
    own = getattr(loss, "weights", None)
    if weights is not None and (own is not None or not isinstance(loss, Sequence)):
        raise InputError("weights belong to a list of functions; this loss has its own, or is a single function")
    if isinstance(loss, BatchLosses):
        return loss
    if callable(getattr(loss, "per_batch", None)):
        return BatchLosses(loss.per_batch, _shares(own, None))
    if callable(getattr(loss, "part", None)) and hasattr(loss, "batches"):
        return BatchLosses(_parts_of(loss), _shares(own, len(loss.batches)))
    if isinstance(loss, Sequence) and len(loss) and all(map(callable, loss)):
        functions = list(loss)
        return BatchLosses(
            lambda flat: [one_number(f(fresh(flat))) for f in functions], _shares(weights, len(functions))
        )
    if callable(loss):
        return BatchLosses(lambda flat: [one_number(loss(flat))], np.ones(1))
    raise InputError(
        f"a loss is a function of a vector, a non-empty list of them (one a batch), a LossOnBatches, or an object with "
        f"per_batch and weights; got {type(loss).__name__}"
    )


def _numbers(values: Any) -> FloatArray:
    """What a loss gave, a tensor or tensors of any device among it, as float64."""
    if isinstance(values, Sequence) and not isinstance(values, str):
        return np.array([one_number(value) for value in values], dtype=np.float64)
    array = as_numpy(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"a loss must be a real number, got {reprlib.repr(values)}")
    return array.astype(np.float64)


def one_number(value: Any) -> float:
    """What a loss gave at one place as a float: a number, or an array or tensor of one.

    Raises:
        InputError: anything else.
    """
    array = _numbers(value)
    if array.size != 1:
        raise InputError(f"a loss must be one number, such as the mean over the batch; got an array of {array.shape}")
    return float(array.reshape(()))


def _parts_of(loss: Any) -> Callable[[Any], list[float]]:
    # A LossOnBatches says which batch failed.
    naming = getattr(loss, "naming", lambda number: nullcontext())

    def one(flat: Any, number: int) -> float:
        with naming(number):
            return float(loss.part(flat, loss.batches[number]))

    def evaluate(flat: Any) -> list[float]:
        import torch

        with torch.no_grad():
            return [one(flat, number) for number in range(len(loss.batches))]

    return evaluate


def _shares(weights: ArrayLike | None, count: int | None) -> FloatArray:
    given = np.ones(count or 1) if weights is None else np.asarray(as_numpy(weights), dtype=np.float64)
    if given.ndim != 1 or len(given) != (count or len(given)) or not np.all((given > 0) & np.isfinite(given)):
        raise InputError(f"weights must be {count or 'some'} positive numbers, one a batch, got {weights!r}")
    shares: FloatArray = given / given.sum()
    return shares


def mean_and_error(values: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted mean over batches and its standard error.

    m = sum_b p_b x_b;  s.e.^2 = sum_b p_b (x_b - m)^2 / (B - 1), with shares p_b. For equal shares this is the usual
    s^2 / B; for shares proportional to the numbers of examples, of which x_b is the mean, it is unbiased too, and
    m / s.e. of normal values around 0 is exactly Student's t with B - 1 degrees of freedom (weighted least squares).
    The error is that of the batches as a sample of all data; it says nothing about other runs or other iterates.

    Args:
        values: shape (B, ...), batches first.
        weights: shares, shape (B,).

    Returns:
        Mean and error, shape (...); the error is nan for a single batch, and where a value is not finite.

    >>> mean_and_error(np.array([1.0, 3.0]), np.array([0.5, 0.5]))
    (np.float64(2.0), np.float64(1.0))
    """
    with np.errstate(invalid="ignore", over="ignore"):
        mean: FloatArray = np.tensordot(weights, values, axes=1)
        squares: FloatArray = np.tensordot(weights, (values - mean) ** 2, axes=1)
        if len(values) < 2:
            return mean[()], np.full_like(squares, np.nan)[()]
        return mean[()], np.sqrt(squares / (len(values) - 1))[()]
