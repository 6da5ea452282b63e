"""The files in which states of a run are kept: parameters, updates, preconditioners, sketches.

Each file is written aside and renamed, so that what has its name is whole. A state that is offered again (after a
resumption) is written again, with the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._typing import FloatArray, NDArray
from ..errors import StoreError, missing_extra
from ..pca import centred_gram
from ..preconditioners import preconditioner
from ..sketches import Sketch
from ..store import write_aside

# `as`: part of this module's interface, described where it is made.
from .snapshot_plan import SnapshotPlan as SnapshotPlan
from .snapshot_plan import planned_states as planned_states
from .snapshot_plan import windows as windows

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
except ImportError as _error:
    raise missing_extra("safetensors", "real", "keeping snapshots of a run") from _error

KINDS = ("step", "update", "moments", "sketch")
_SKETCH_SEED = 0  # the same map in every run, so that sketches of branches compare with those of their trunk


class Snapshots:
    """What a `SnapshotPlan` keeps of a run: files ``KIND_XXXXXXX.safetensors``, XXXXXXX the state.

    ========  ==============================================================================================
    step      parameters by name
    update    x_{t+1} - x_t by name, made before any rounding: a bfloat16 state holds no single update
    moments   the diagonal of the optimizer's preconditioner (`riverval.preconditioners`), one flat tensor
    sketch    the sketch of the parameters
    ========  ==============================================================================================

    Args:
        folder: made when the first file is written.
        plan: what to keep.
    """

    def __init__(self, folder: Path, plan: SnapshotPlan) -> None:
        self.folder, self.plan = folder, plan
        self._wanted = plan.wanted
        self._before: tuple[int, list[Tensor]] = (-1, [])
        self._sketch: Sketch | None = None

    def __len__(self) -> int:
        return len(self.plan.full | self.plan.sketched)

    def path(self, state: int, kind: str = "step") -> Path:
        return self.folder / f"{kind}_{state:07d}.safetensors"

    def has(self, state: int, kind: str = "step") -> bool:
        """Whether a file is there."""
        return self.path(state, kind).exists()

    @property
    def states(self) -> dict[str, list[int]]:
        """What for -> those of the planned states that are there: a branch may lack some of its trunk's."""
        out = {}
        for name, planned in self.plan.states.items():
            found = [t for t in planned if self.has(t) or self.has(t, "sketch")]
            if found:
                out[name] = found
        return out

    def clear(self) -> None:
        """Delete files of an earlier run in the same folder."""
        for kind in KINDS:
            for file in self.folder.glob(f"{kind}_*.safetensors"):
                file.unlink()

    def adopt(self, folder: Path, until: int) -> int:
        """Copy what this plan wants and another run's folder has of the states 0..until that both runs share.

        Returns:
            how many files were copied. Files of another form of keeping are left where they are.
        """
        planned = {"step": self.plan.full, "update": self.plan.updates, "moments": self.plan.moments,
                   "sketch": self.plan.sketched}  # fmt: skip
        count = 0
        for kind, states in planned.items():
            for state in sorted(states):
                source = folder / self.path(state, kind).name
                if state + (kind == "update") > until or self.has(state, kind) or not source.exists():
                    continue
                if _form_of(source) == self._form:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    write_aside(self.path(state, kind), partial(shutil.copyfile, source))
                    count += 1
        return count

    @property
    def _form(self) -> str:
        return f"{self.plan.keep} {self.plan.width}" if self.plan.keep == "sketch" else self.plan.keep

    # --- writing -----------------------------------------------------------------------------------------------------
    def offer(self, state: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Keep of a state what is planned; cheap where nothing is.

        Args:
            state: its number.
            model: with the parameters of that state.
            optimizer: as it was left by the update before; None: its preconditioner is not kept.

        Raises:
            StoreError: a file cannot be written.
        """
        if state not in self._wanted:
            return
        named = {name: p.detach() for name, p in model.named_parameters()}
        before, self._before = self._before, (-1, [])
        if state - 1 in self.plan.updates and before[0] == state - 1:
            changes = torch._foreach_sub(list(named.values()), before[1])
            self._save(state - 1, "update", dict(zip(named, changes, strict=True)))
        if state in self.plan.full:
            self._save(state, "step", named)
        if state in self.plan.sketched:
            found = self._sketcher(sum(p.numel() for p in named.values())).of(list(named.values()))
            self._save(state, "sketch", {"sketch": torch.from_numpy(found)}, exact=True)
        if state in self.plan.moments and optimizer is not None and optimizer.state:
            self._save(state, "moments", {"preconditioner": preconditioner(optimizer, model, with_rates=True)})
        if state in self.plan.updates:
            self._before = (state, [p.clone() for p in named.values()])

    def _save(self, state: int, kind: str, tensors: Mapping[str, Tensor], *, exact: bool = False) -> None:
        short = self.plan.keep != "float32" and not exact
        kept = {name: (t.to(torch.bfloat16) if short else t).cpu().contiguous() for name, t in tensors.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.folder}: {error.strerror or error}") from error

        def write(part: Path) -> None:
            try:
                save_file(kept, part, metadata={"form": self._form})  # one: more come in any order
            except SafetensorError as error:  # a full disk, for one; not an OSError
                raise OSError(str(error)) from error

        write_aside(self.path(state, kind), write)

    def _sketcher(self, dim: int) -> Sketch:
        if self._sketch is None:
            self._sketch = Sketch(dim, width=self.plan.width, seed=_SKETCH_SEED)
        return self._sketch

    # --- reading -----------------------------------------------------------------------------------------------------
    def load(self, state: int, model: nn.Module, kind: str = "step") -> Tensor:
        """The parameters at `state` (or the update that follows it) as a flat vector of the model's type and device.

        Args:
            state: its number.
            model: names the parameters and gives their order.
            kind: "step" or "update".

        Raises:
            StoreError: missing, unreadable, or of another model.
        """
        first = next(model.parameters())
        pieces = [self._read(state, kind, name).reshape(-1) for name, _ in model.named_parameters()]
        return torch.cat(pieces).to(dtype=first.dtype, device=first.device)

    def moments(self, state: int) -> Tensor:
        """The diagonal of the preconditioner at `state`, float32, in the order of the parameters.

        Raises:
            StoreError: missing or unreadable.
        """
        return self._read(state, "moments", "preconditioner").float()

    def blocks(self, states: Sequence[int], model: nn.Module) -> Iterator[NDArray[Any]]:
        """Arrays (states, size), one per parameter tensor: all snapshots need not fit in memory at once."""
        for name, p in model.named_parameters():
            kind = torch.promote_types(p.dtype, torch.float32)  # NumPy knows no bfloat16
            yield np.stack([self._read(t, "step", name).to(kind).reshape(-1).numpy() for t in states])

    def gram(self, states: Sequence[int], model: nn.Module) -> FloatArray:
        """Centred Gram matrix of states, shape (n, n): exact for the form kept, or of sketches.

        Raises:
            StoreError: a state is missing or unreadable.
        """
        if self.plan.keep == "sketch":
            return centred_gram([np.stack([self._read(t, "sketch", "sketch").numpy() for t in states])])
        return centred_gram(self.blocks(states, model))

    def seen_dimension(self, parameters: int) -> int:
        """Dimensions in which `gram` sees the states: the number of parameters, or the width of the sketches."""
        return min(parameters, self.plan.width) if self.plan.keep == "sketch" else parameters

    def _read(self, state: int, kind: str, name: str) -> Tensor:
        try:
            with safe_open(self.path(state, kind), framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot read the snapshot {self.path(state, kind)}: {error}") from error
        return tensor


def _form_of(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("form", ""))
    except (OSError, SafetensorError):
        return ""
