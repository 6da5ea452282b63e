"""Sketches: short linear images of parameter vectors that keep inner products to a stated error, at O(d) a step.

With them every step of a run can be kept (4096 numbers instead of millions), and everything that a Gram matrix tells is
had afterwards: ``centred_gram([sketches])``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ._blocks import as_list, as_numpy, check_kind, size_of
from ._checks import check_int, check_number
from ._typing import FloatArray, NDArray
from .errors import InputError

_POOL = 32  # signs in store, in widths
_ROWS = 16  # rows that share one place in the store of signs
_DEVICE_CHUNK = 1 << 22  # coordinates handled at once on a device


class Sketch:
    """A random linear map S from `dim` to `width` numbers with E <Sx, Sy> = <x, y>: a shifted-fold count-sketch.

    The vector is cut into rows of length m = width; row r is multiplied by random signs, rolled by a random shift s_r,
    and all rows are added up: coordinate (r, c) falls into bucket (c + s_r) mod m. A count-sketch (Charikar, Chen &
    Farach-Colton 2002) throws every coordinate into a bucket of its own choice; here neighbours stay neighbours, so
    memory is read and written in order.

    The error is that of a count-sketch. Write z_i for the sign of coordinate i and [i ~ j] for "i and j share a
    bucket"; <Sx, Sy> - <x, y> = sum_{i != j} [i ~ j] z_i z_j x_i y_j. Coordinates of one row never collide; those of
    two rows do with probability 1/m, as s_r - s_r' is uniform. With independent signs only the terms {i, j} = {k, l} of
    the square survive, so the mean is 0 and

        Var = 1/2 sum_{i != j} P(i ~ j) (x_i y_j + x_j y_i)^2 <= (||x||^2 ||y||^2 + <x, y>^2 - 2 sum_i x_i^2 y_i^2) / m.

    The signs come from a store of P = 32 m independent ones, read in a circle: each group of 16 rows reads a stretch
    that starts at a uniform place, and each row has one more sign of its own. Then the square also keeps collisions of
    the same two rows (the rows' own signs rule out others) whose four signs cancel: coordinates c of row r and c' of
    row r' that read the same sign, all those of one c' - c at once. A shift allows two values of c' - c, each met with
    probability 1/P and worth at most (||x_r|| ||y_r'|| + ||y_r|| ||x_r'||)^2, in all 2 ||x||^2 ||y||^2 / P; and, for m
    even, coordinates half a row apart, which add at most 1/P of the first term. `error` counts both.

    Args:
        dim: numbers of the vector, all tensors together, >= 1.
        width: m. The relative standard error of an inner product is about 1/sqrt(m) for orthogonal vectors and
            sqrt(2/m) for a squared norm: 2.2 % at 4096, 4.5 % at 1024. Below 512 rows are too short to be cheap.
        seed: a whole number; the same seed gives the same S on every device, for every dtype.

    Raises:
        InputError: numbers out of range.
    """

    def __init__(self, dim: int, *, width: int = 4096, seed: int = 0) -> None:
        self.dim = check_int("dim", dim, low=1, what="numbers of the vector")
        self.width = check_int("width", width, low=1, what="numbers of a sketch")
        self.seed = check_int("seed", seed)
        bits = np.random.PCG64(self.seed)  # its raw stream is the same in every version of numpy
        rows = -(-self.dim // self.width)
        groups = -(-rows // _ROWS)
        period, stretch = _POOL * self.width, _ROWS * self.width
        signs = np.unpackbits(bits.random_raw(-(-period // 64)).view(np.uint8))[:period] * 2.0 - 1.0
        self._signs = np.concatenate([signs, signs[: stretch + 1]])
        self._starts = (bits.random_raw(groups) >> np.uint64(16)).astype(np.int64) % period
        raw = bits.random_raw(rows)
        self._shifts = (raw >> np.uint64(16)).astype(np.int64) % self.width
        self._row_signs = np.where(raw & np.uint64(1), 1.0, -1.0)
        self._on: dict[Any, tuple[Any, ...]] = {}  # the same, on the devices that asked for them

    def __repr__(self) -> str:
        return f"Sketch({self.dim}, width={self.width}, seed={self.seed})"

    def error(self, cosine: float = 1.0) -> float:
        """Standard error of <Sx, Sy> over ||x|| ||y||, at most; `cosine` is that of x and y (1 for a squared norm).

        sqrt((1 + cos^2) (1 + 1/P) / m + 2/P), P = 32 m; 0 where one row holds all (dim <= width). See the class for the
        derivation. A cosine estimated by sketches of random directions thus scatters by about 1/sqrt(m): that, and not
        1/sqrt(d), is its null.

        >>> round(Sketch(10**6, width=4096).error(), 4), round(Sketch(10**6, width=4096).error(0.0), 4)
        (0.0224, 0.0161)
        """
        c = check_number("cosine", cosine, low=-1.0, high=1.0)
        period = _POOL * self.width
        if self.dim <= self.width:
            return 0.0
        return float(np.sqrt((1 + c**2) * (1 + 1 / period) / self.width + 2 / period))

    def of(self, vector: Any) -> FloatArray:
        """The sketch of a vector, or of tensors one after the other, in float64.

        Sums are made in float64, so S(x - y) = Sx - Sy to 1e-16 of ||Sx||: sketches of states may be subtracted.
        Tensors on the CPU are read where they are; those that are all on one CUDA device are sketched there; others are
        copied to the CPU first, one after the other.

        Args:
            vector: an array or torch tensor, or a list (or iterator) of them, `dim` numbers in all.

        Returns:
            shape (width,).

        Raises:
            InputError: another size, numbers that are not real or not finite.

        >>> sketch = Sketch(3, width=8)
        >>> bool(np.isclose(np.sum(sketch.of(np.array([1.0, 2.0, 2.0])) ** 2), 9.0))
        True
        """
        parts = as_list(vector)
        if all(getattr(part, "is_cuda", False) for part in parts) and len({part.device for part in parts}) == 1:
            return self._finite(as_numpy(self.on_device(parts)))
        self._check_size(parts)
        return self._finite(self._fold(check_kind(as_numpy(part)).reshape(-1) for part in parts))

    def _fold(self, parts: Iterable[NDArray[Any]]) -> FloatArray:
        """Fill groups of rows from the parts, and fold each group that is full."""
        total, group = np.zeros(2 * self.width), np.empty(_ROWS * self.width)
        filled = number = 0
        for part in parts:
            first = 0
            while first < part.size:
                take = min(group.size - filled, part.size - first)
                group[filled : filled + take] = part[first : first + take]
                filled, first = filled + take, first + take
                if filled == group.size:
                    self._fold_group(total, group, number)
                    filled, number = 0, number + 1
        if filled:
            self._fold_group(total, group[:filled], number)
        return total[: self.width] + total[self.width :]  # what was rolled beyond the end comes back at the start

    def _fold_group(self, total: FloatArray, group: FloatArray, number: int) -> None:
        m, start = self.width, self._starts[number]
        group *= self._signs[start : start + group.size]
        for place in range(0, group.size, m):
            r = number * _ROWS + place // m
            row = group[place : place + m]
            bucket = total[self._shifts[r] : self._shifts[r] + row.size]
            if self._row_signs[r] > 0:
                bucket += row
            else:
                bucket -= row

    def on_device(self, tensors: Any) -> Any:
        """The sketch of torch tensors as a float64 tensor on their device: no waiting for it, no copy to the host.

        The same numbers as `of`, to the rounding of sums, in a fixed order (no atomic additions). Whether they are
        finite is not looked at, as that would wait. About ten kernels for each four million coordinates.

        Args:
            tensors: one torch tensor or a list of them, on one device that has float64.

        Returns:
            tensor of shape (width,).

        Raises:
            InputError: another size.
        """
        import torch

        parts = as_list(tensors)
        self._check_size(parts)
        with torch.no_grad():
            device = parts[0].device
            signs, starts, shifts, row_signs = self._constants(device)
            m, groups = self.width, max(1, _DEVICE_CHUNK // (_ROWS * self.width))
            along, columns = torch.arange(_ROWS * m, device=device), torch.arange(m, device=device)
            total = torch.zeros(m, dtype=torch.float64, device=device)
            for number, chunk in enumerate(_chunks(parts, groups * _ROWS * m)):
                first = number * groups * _ROWS
                rows = torch.nn.functional.pad(chunk, (0, -chunk.numel() % m)).view(-1, m)
                count = len(rows)
                begin = starts[number * groups : (number + 1) * groups]
                taken = signs[(begin[:, None] + along).view(-1)[: count * m]].view(count, m)
                taken = taken * row_signs[first : first + count, None]
                places = (columns - shifts[first : first + count, None]) % m
                total += (rows * taken.to(rows.dtype)).gather(1, places).sum(0, dtype=torch.float64)
            return total

    def _constants(self, device: Any) -> tuple[Any, ...]:
        import torch

        if device not in self._on:
            small = [torch.from_numpy(a.astype(np.int8)).to(device) for a in (self._signs, self._row_signs)]
            whole = [torch.from_numpy(a).to(device) for a in (self._starts, self._shifts)]
            self._on[device] = (small[0], *whole, small[1])
        return self._on[device]

    def _check_size(self, parts: list[Any]) -> None:
        size = sum(map(size_of, parts))
        if size != self.dim:
            raise InputError(f"{self!r} takes {self.dim} numbers, got {size} in {len(parts)} tensors")

    def _finite(self, sketch: FloatArray) -> FloatArray:
        if not np.isfinite(sketch).all():
            raise InputError("a vector must be finite to be sketched, got nan or inf")
        return sketch


def _chunks(parts: list[Any], size: int) -> Iterator[Any]:
    """The tensors one after the other as flat tensors of `size` numbers, the last one shorter; float32 at least."""
    import torch

    wide = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    pieces: list[Any] = []
    filled = 0
    for part in parts:
        flat = part.detach().reshape(-1)
        while flat.numel():
            pieces.append(flat[: size - filled].to(wide))
            filled += pieces[-1].numel()
            flat = flat[pieces[-1].numel() :]
            if filled == size:
                yield torch.cat(pieces)
                pieces, filled = [], 0
    if pieces:
        yield torch.cat(pieces)
