"""A steadier heap for curvature on the CPU: memory of large tensors is kept instead of given back after each use."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
_MIB = 1 << 20
_STEADY = {_MMAP_MAX: 0, _TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 256 * _MIB}
# glibc's own, with the thresholds where they come to rest in a program that frees large blocks (malloc(3)).
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 64 * _MIB, _TOP_PAD: _MIB // 8}
_users = 0


@dataclass(frozen=True)
class Allocator:
    """What `steady_allocator` did.

    Attributes:
        active: whether anything was changed.
        reason: why not, else empty.
    """

    active: bool
    reason: str = ""


@contextmanager
def steady_allocator() -> Iterator[Allocator]:
    """Within the block, glibc serves large tensors from the heap and keeps what is freed, for speed on the CPU.

    By default glibc maps every large block afresh and returns it to the system, so that each product of a curvature
    operator pays for clearing the same pages again. Sets (mallopt(3)) M_MMAP_MAX = 0, M_TRIM_THRESHOLD = 2 GiB,
    M_TOP_PAD = 256 MiB, for the whole process. Numbers are in the documentation's page on curvature; accelerators gain
    nothing. Up to 2 GiB of freed memory stay with the process until the block ends; then it is given back.

    At the end the settings are glibc's usual ones, with the mmap threshold at its largest value (32 MiB): glibc cannot
    tell what it was set to, and setting any of them ends its own adjustment of the thresholds. A process whose
    environment tunes malloc itself (MALLOC_*_ in the environment) should not use this. Blocks may be nested.

    Yields:
        `Allocator`: inactive, with the reason, where the allocator is not glibc's.

    >>> with steady_allocator() as allocator:
    ...     print(allocator.active or allocator.reason)
    True
    """
    global _users
    heap = _glibc()
    if isinstance(heap, str):
        yield Allocator(False, heap)
        return
    _users += 1
    try:
        done = _users > 1 or _set(heap, _STEADY)
        yield Allocator(True) if done else Allocator(False, "mallopt refused the settings")
    finally:
        _users -= 1
        if not _users:
            _set(heap, _USUAL)
            heap.malloc_trim(0)


def _set(heap: Any, settings: dict[int, int]) -> bool:
    done = [heap.mallopt(what, value) for what, value in settings.items()]
    return all(done)


def _glibc() -> Any:
    """The C library of this process, or why it is not glibc's allocator."""
    try:
        heap = ctypes.CDLL(None)
    except (OSError, TypeError) as error:  # TypeError: Windows takes no None
        return f"no C library to speak to: {error}"
    if not all(hasattr(heap, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")):
        return "the C library is not glibc"
    if any(hasattr(heap, name) for name in ("mallctl", "mi_malloc", "tc_malloc")):
        return "another allocator than glibc's is loaded"
    return heap
