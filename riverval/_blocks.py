"""Snapshots read in blocks of coordinates, so that n snapshots of d parameters never stand in memory together.

A snapshot is an array, a list of arrays (or torch tensors), a mapping from parameter names to them, the path of a
``.npy`` file, or a function without arguments that loads one of these.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from mmap import mmap
from os import PathLike, fspath
from typing import Any

import numpy as np

from ._typing import NDArray
from .errors import InputError

MEMORY = 1 << 28
"""Bytes of one block, by default."""

Pieces = dict[str, Any]  # name -> flat array, tensor or _File; a snapshot of one array has the one name ""


@dataclass(frozen=True)
class _File:
    """Numbers in a file, read and not mapped: mapped pages count as the process's memory until they are taken back."""

    path: str
    dtype: np.dtype[Any]
    offset: int
    size: int

    def __getitem__(self, part: slice) -> NDArray[Any]:
        first, last, _ = part.indices(self.size)
        return np.fromfile(self.path, self.dtype, last - first, offset=self.offset + first * self.dtype.itemsize)


def _open_file(path: str) -> _File:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"a snapshot's file must be a readable .npy file of numbers, got {path!r}: {error}") from None
    file = _behind(mapped)
    if file is None:
        raise InputError(f"a snapshot's file must hold one array in C order (numpy.save), got {path!r}")
    return file


def _behind(array: Any) -> _File | None:
    """The file of a memory map as it was opened; None for parts of one, private copies and everything else."""
    whole = isinstance(array, np.memmap) and isinstance(array.base, mmap)
    if not whole or array.mode == "c" or array.filename is None or not array.flags.c_contiguous:
        return None
    return _File(fspath(array.filename), array.dtype, array.offset, array.size)


def _flat(values: Any) -> Any:
    """A tensor or an array as one row, without a copy where its memory allows."""
    if hasattr(values, "reshape"):
        return values.reshape(-1)
    try:
        return np.asarray(values).reshape(-1)
    except (TypeError, ValueError):
        raise InputError(f"a snapshot must be numbers in one array, got {reprlib.repr(values)}") from None


def _open(snapshot: Any) -> Pieces:
    if callable(snapshot) and not hasattr(snapshot, "named_parameters"):
        snapshot = snapshot()
    if hasattr(snapshot, "named_parameters"):
        raise InputError(
            "a model is no snapshot; give a copy of its parameters: "
            "{name: p.detach().clone() for name, p in model.named_parameters()}"
        )
    if isinstance(snapshot, str | PathLike):
        return {"": _open_file(fspath(snapshot))}
    file = snapshot if isinstance(snapshot, _File) else _behind(snapshot)
    if file is not None:
        return {"": file}
    if isinstance(snapshot, Mapping):
        return {str(name): _parameter(name, values) for name, values in snapshot.items()}
    if _is_list(snapshot):
        return {str(number): _flat(values) for number, values in enumerate(snapshot)}
    return {"": _flat(snapshot)}


def _is_list(values: Any) -> bool:
    """Whether this is a list of arrays or tensors, rather than an array of numbers written as a list."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not len(values):
        return False
    return all(hasattr(part, "reshape") and not np.isscalar(part) for part in values)


def _parameter(name: Any, values: Any) -> Any:
    """A named part of a snapshot. A counter of batches would drown the motion of all parameters in its own."""
    flat = _flat(values)
    if hasattr(flat.dtype, "kind"):
        whole = flat.dtype.kind in "iub"
    else:  # of torch
        whole = not (flat.dtype.is_floating_point or flat.dtype.is_complex)
    if whole:
        raise InputError(
            f"{name!r} of a snapshot holds whole numbers, so it is a counter and no parameter; leave buffers out "
            "(those of batch norm are in every state_dict): "
            "{name: p.detach().clone() for name, p in model.named_parameters()}"
        )
    return flat


def as_numpy(values: Any) -> NDArray[Any]:
    """An array, or a torch tensor as an array; bfloat16, which numpy lacks, as float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return np.asarray(values.numpy())
    return np.asarray(values)


def as_list(values: Any) -> list[Any]:
    """A list of arrays or tensors; one of them, or a list of numbers, is a list of one array.

    Raises:
        InputError: parameters by name, whose order is not looked at here; or None, or what is no array, among them.
    """
    if isinstance(values, Mapping):
        raise InputError("give tensors as a list in one and the same order, not by name: list(model.parameters())")
    if isinstance(values, Iterator):
        values = list(values)
    if isinstance(values, Sequence) and not (len(values) and np.isscalar(values[0])):
        return [_array(part, number) for number, part in enumerate(values)]
    return [_array(values, 0)]


def _array(part: Any, number: int) -> Any:
    if hasattr(part, "reshape"):
        return part
    try:
        array = np.asarray(part)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind not in "fiubc":
        raise InputError(
            f"number {number} of the tensors must be an array or tensor, got {reprlib.repr(part)}; a parameter without "
            f"a gradient has None: leave it out of every list"
        )
    return array


def size_of(values: Any) -> int:
    return int(values.numel()) if hasattr(values, "numel") else int(values.size)


def _sizes(pieces: Pieces) -> dict[str, int]:
    return {name: size_of(values) for name, values in pieces.items()}


def _check_same(sizes: Mapping[str, int], expected: Mapping[str, int], index: int) -> None:
    """Refuse a snapshot whose parameters are not those of the first; the message names the first difference."""
    if list(sizes.items()) == list(expected.items()):
        return
    names, wanted = list(sizes), list(expected)
    for place in range(max(len(names), len(wanted))):
        name, want = (row[place] if place < len(row) else "nothing" for row in (names, wanted))
        if name != want:
            raise InputError(
                f"snapshots must have the same parameters in the same order; number {place} of snapshot {index} is "
                f"{name!r}, of snapshot 0 {want!r}"
            )
        if sizes[name] != expected[name]:
            of = f" in parameter {name!r}" if name else ""
            raise InputError(
                f"snapshots must have the same size; snapshot {index} has {sizes[name]} numbers{of}, "
                f"snapshot 0 has {expected[name]}"
            )


@dataclass(frozen=True)
class SnapshotBlocks:
    """n snapshots as blocks of shape (n, size), at most `memory` bytes each; iterating again reads again.

    A function that loads a snapshot is called once for each block, so that one whole snapshot is in memory at a time.
    """

    snapshots: Sequence[Any]
    memory: int = MEMORY
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.snapshots) == 0:
            raise InputError("principal components need at least 2 snapshots, got none")
        object.__setattr__(self, "sizes", _sizes(_open(self.snapshots[0])))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        dim = sum(self.sizes.values())
        width = max(1, self.memory // (8 * len(self.snapshots)))
        space = np.empty(len(self.snapshots) * min(width, dim))  # one for all blocks: each is done with before the next
        for first in range(0, dim, width):
            block = space[: len(self.snapshots) * min(width, dim - first)].reshape(len(self.snapshots), -1)
            for index, (row, snapshot) in enumerate(zip(block, self.snapshots, strict=True)):
                pieces = _open(snapshot)
                _check_same(_sizes(pieces), self.sizes, index)
                _read(pieces, first, row)
            yield block


def _read(pieces: Pieces, first: int, row: NDArray[np.float64]) -> None:
    """Fill `row` with the coordinates from `first` on."""
    start, last = 0, first + len(row)
    for values in pieces.values():
        stop = start + size_of(values)
        low, high = max(first, start), min(last, stop)
        if low < high:
            row[low - first : high - first] = check_kind(as_numpy(values[low - start : high - start]))
        start = stop


def check_kind(array: NDArray[Any]) -> NDArray[Any]:
    """Refuse what is not real numbers: complex ones would lose their imaginary part without a word."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"snapshots must be real numbers, got the type {array.dtype}")
    return array


def _rows(file: _File, count: int) -> list[_File]:
    """The rows of a matrix in a file, as files."""
    size = file.size // count
    return [replace(file, offset=file.offset + k * size * file.dtype.itemsize, size=size) for k in range(count)]


def _columns(array: Any, memory: int) -> Iterator[NDArray[Any]]:
    """An array, tensor or data set of shape (n, d) in blocks of columns; of an array, views."""
    width = max(1, memory // (8 * len(array)))
    for first in range(0, array.shape[1], width):
        yield as_numpy(array[:, first : first + width])


def blocks_of(snapshots: Any, memory: int = MEMORY) -> Callable[[], Iterator[NDArray[Any]]]:
    """Snapshots of any form as a function that starts reading their blocks.

    Raises:
        InputError: neither an array of shape (n, d) nor a sequence of snapshots.
    """
    if hasattr(snapshots, "ndim") and hasattr(snapshots, "shape"):
        if snapshots.ndim != 2 or not len(snapshots):
            raise InputError(f"an array of snapshots must have shape (n, d), n >= 2, got {tuple(snapshots.shape)}")
        file = _behind(snapshots)
        if file is None:
            return lambda: _columns(snapshots, memory)
        snapshots = _rows(file, len(snapshots))
    if isinstance(snapshots, str | Mapping) or not isinstance(snapshots, Sequence):
        raise InputError(
            f"snapshots must be an array of shape (n, d) or a sequence of arrays, mappings, .npy paths or loading "
            f"functions, got {type(snapshots).__name__}; for blocks of coordinates use pca_of_blocks"
        )
    source = SnapshotBlocks(snapshots, memory)
    return lambda: iter(source)
