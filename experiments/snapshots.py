"""Which states of a run are kept, and the files they are kept in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .._typing import NDArray
from ..errors import StoreError, missing_extra
from ..schedules import Schedule
from ..store import write_aside

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
except ImportError as _error:
    raise missing_extra("safetensors", "real", "keeping snapshots of a run") from _error

STABLE_SHARE = 0.2  # of the last stable window, at its end


def windows(schedule: Schedule) -> dict[str, tuple[int, int]]:
    """First and last state of the windows that are watched: "stable" and "cooldown", each where the schedule has one.

    Stable is the last fifth of the last stable stretch (states 80% and 100%), cooldown the last cooldown, all of it.
    """
    out = {}
    for phase in ("stable", "cooldown"):
        found = schedule.windows(phase)
        if found:
            start, stop = found[-1]
            out[phase] = (stop - round(STABLE_SHARE * (stop - start)), stop) if phase == "stable" else (start, stop)
    return {phase: (a, b) for phase, (a, b) in out.items() if a < b}


def planned_states(schedule: Schedule, count: int) -> dict[str, list[int]]:
    """`count` evenly spaced states of each window, both ends included (fewer where the window has fewer)."""
    if not count:
        return {}
    return {
        phase: np.unique(np.linspace(start, stop, count).round().astype(int)).tolist()
        for phase, (start, stop) in windows(schedule).items()
    }


class Snapshots:
    """The parameters at chosen states, one file ``step_XXXXXXX.safetensors`` each, written aside and renamed.

    Args:
        folder: made when the first file is written.
        states: window -> states to keep.
    """

    def __init__(self, folder: Path, states: dict[str, list[int]]) -> None:
        self.folder, self.states = folder, states
        self._wanted = {t for kept in states.values() for t in kept}

    def __len__(self) -> int:
        return len(self._wanted)

    def path(self, state: int) -> Path:
        return self.folder / f"step_{state:07d}.safetensors"

    def clear(self) -> None:
        """Delete files of an earlier run in the same folder."""
        for file in self.folder.glob("step_*.safetensors"):
            file.unlink()

    def offer(self, state: int, model: nn.Module) -> None:
        """Keep the model's parameters if `state` is one of the planned.

        Raises:
            StoreError: the file cannot be written.
        """
        if state not in self._wanted:
            return
        tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.folder}: {error.strerror or error}") from error

        def write(part: Path) -> None:
            try:
                save_file(tensors, part, metadata={"state": str(state)})
            except SafetensorError as error:  # a full disk, for one; not an OSError
                raise OSError(str(error)) from error

        write_aside(self.path(state), write)

    def load(self, state: int, model: nn.Module) -> Tensor:
        """The parameters at `state` as a flat vector on the model's device, in the order of its parameters.

        Raises:
            StoreError: missing, unreadable, or of another model.
        """
        device = next(model.parameters()).device
        try:
            with safe_open(self.path(state), framework="pt") as file:
                pieces = [file.get_tensor(name).reshape(-1) for name, _ in model.named_parameters()]
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot read the snapshot {self.path(state)}: {error}") from error
        return torch.cat(pieces).to(device)

    def blocks(self, states: Sequence[int], model: nn.Module) -> Iterator[NDArray[np.float32]]:
        """Arrays (states, size), one per parameter tensor: all snapshots need not fit in memory at once."""
        for name, p in model.named_parameters():
            block = np.empty((len(states), p.numel()), dtype=np.float32)
            for row, state in zip(block, states, strict=True):
                try:
                    with safe_open(self.path(state), framework="pt") as file:
                        row[:] = file.get_tensor(name).float().reshape(-1).numpy()
                except (OSError, SafetensorError) as error:
                    raise StoreError(f"cannot read the snapshot {self.path(state)}: {error}") from error
            yield block
