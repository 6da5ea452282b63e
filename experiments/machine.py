"""The machine under a run: device, threads, precision, determinism, random state, and memory that runs out."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ..errors import InputError, RivervalError, missing_extra

try:
    import torch
    from torch import Tensor
except ImportError as _error:
    raise missing_extra("torch", "real", "training") from _error

MOST_THREADS = 8  # models that fit a CPU do not gain from more


def pick_device(name: str) -> torch.device:
    """The device meant by "auto", "cpu", "cuda" or "mps".

    Raises:
        InputError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(d for d, ok in there.items() if ok))
    if not there[name]:
        raise InputError(
            f"--device {name} is not available here; choose {', '.join(d for d, ok in there.items() if ok)}"
        )
    return torch.device(name)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def out_of_memory_told() -> Iterator[None]:
    """Turn torch's several ways to run out of memory into one error that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RivervalError) or not (isinstance(error, MemoryError) or _is_memory(str(error))):
            raise
        raise RivervalError("not enough memory; use a smaller --batch, --micro-batch or model") from error


def _is_memory(text: str) -> bool:
    return any(sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory", "overflowed"))


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """So many torch threads within the block (None: the cores this process may use, at most 8), then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or min(before, usable_cores(), MOST_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of the forward passes of training: bfloat16 where asked for, by "auto" on CUDA only."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        found: contextlib.AbstractContextManager[Any] = torch.autocast(device.type, torch.bfloat16)
        return found
    return contextlib.nullcontext()


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms only within the block, if wanted: what has none is an error. Then as before."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, and reads it at its first use
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators that a model on `device` may draw from, e.g. for dropout."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo what was drawn since `random_states`; a generator that is not of this device is left alone."""
    torch.set_rng_state(states["cpu"])
    if device.type in states:
        if device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], device)
        elif device.type == "mps":
            torch.mps.set_rng_state(states["mps"])


@contextlib.contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """torch's generators seeded within the block, and as they were after it."""
    before = random_states(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(before, device)


@contextlib.contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C asks for a stop at the next good place, and the second one interrupts as ever.

    Gives a function that says whether it was asked. Only Python's own handler in the main thread is replaced.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
