"""Measurements on the finished run, from its snapshots: the registry of probes, what they may look at, and their pass.

Each probe is a function of a `Context` that returns stored variables by name and raises `Skipped` where the run lacks
what it needs. A new probe is a new function with `register`, in a module ``probe_*.py`` of this room.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from .._checks import unknown
from .._registry import registrar
from ..allocator import steady_allocator
from ..errors import RivervalError
from ..hessian import HessianOperator, LossOnBatches
from ..schema import build
from .config import RunConfig
from .data import Data
from .seeds import Stream, generator
from .snapshots import Snapshots

Values = dict[str, Any]
PROBES: dict[str, Callable[[Context], Values]] = {}
IMAGES_AT_ONCE = 512  # in one pass of a probe, where `micro_batch` does not say


class Skipped(RivervalError):  # noqa: N818
    """The run lacks what the probe needs; the message says what."""


@dataclass(frozen=True)
class Context:
    """What a probe may look at.

    Attributes:
        config: of the run, planned.
        model: of the run's kind; its own parameters are never read.
        data: of the run.
        snapshots: of the run.
        tell: takes a line for the user.
        notes: takes what the summary should say.
        seconds: what each probe took, by name.
    """

    config: RunConfig
    model: nn.Module
    data: Data
    snapshots: Snapshots
    tell: Callable[[str], None]
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def states(self) -> dict[str, list[int]]:
        """What for -> states that are there (see `planned_states`); without any, the probe is skipped."""
        found = self.snapshots.states if self.config.snapshots else {}
        if not found:
            raise Skipped("no snapshots were kept")
        lacking = [
            f"{name} {len(found.get(name, ()))} of {len(planned)}"
            for name, planned in self.snapshots.plan.states.items()
            if len(found.get(name, ())) < len(planned)
        ]
        if lacking:
            self.notes.append(f"snapshots: not all are there: {', '.join(lacking)}")
        return found

    @cached_property
    def rates(self) -> list[float]:
        """Learning rate of every update."""
        rates: list[float] = self.config.plan.values().tolist()
        return rates

    @property
    def momentum(self) -> float:
        """What carries over from one update to the next in a random walk of the optimizer: beta1, or the momentum."""
        return self.config.momentum if self.config.optimizer == "sgd" else self.config.betas[0]

    def at(self, state: int) -> Tensor:
        """The parameters at a state as a flat vector on the model's device."""
        return self.snapshots.load(state, self.model)

    def train_loss(self, examples: int, *, parts: int = 1) -> LossOnBatches:
        """The training loss on a fixed subset, the same in every run, as a function of the parameters.

        Args:
            examples: of the subset.
            parts: the least number of batches it is cut into; an error over batches needs several.
        """
        config = self.config
        most = config.micro_batch or (IMAGES_AT_ONCE if config.architecture.data_kind == "images" else config.batch)
        batches = self.data.fixed("train", examples, min(most, max(1, examples // parts)))
        return LossOnBatches(self.model, config.architecture.loss, batches, weights=[len(x) for x, _ in batches])

    def hessian(self, loss: LossOnBatches, state: int) -> HessianOperator:
        """The Hessian of a loss at a state; its graph is kept unless passes are small for lack of memory."""
        return HessianOperator(loss, self.at(state), keep_graph=self.config.micro_batch is None)

    def rng(self, probe: str) -> np.random.Generator:
        """Random numbers of a probe, whatever other probes there are."""
        return generator(self.config.seed, Stream.PROBES, zlib.crc32(probe.encode()))

    def lacking(self, probe: str, windows: Mapping[str, Any]) -> None:
        """Note which windows the schedule does not have; skip the probe if it has none."""
        for name in ("stable", "cooldown"):
            if name not in windows:
                self.notes.append(f"{probe}: no {name} window to look at")
        if not windows:
            raise Skipped("no window with snapshots")


# A run makes them in this order.
register = registrar(PROBES)


def load_probes() -> dict[str, Callable[[Context], Values]]:
    """The probes by name, once every module ``probe_*.py`` of this room has been imported.

    In alphabetical order: that of their registration depends on what was imported before.
    """
    for module in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])):
        if module.startswith("probe_"):
            importlib.import_module(f"{__package__}.{module}")
    return dict(sorted(PROBES.items()))


def chosen_probes(names: Sequence[str] | None) -> dict[str, Callable[[Context], Values]]:
    """The probes of these names, in alphabetical order; all of them for None.

    Raises:
        InputError: no probe of that name.
    """
    known = load_probes()
    for name in names or ():
        if name not in known:
            raise unknown("probe", name, known)
    return {name: probe for name, probe in known.items() if names is None or name in names}


def measure(context: Context) -> Iterator[xr.Dataset]:
    """Every chosen probe's variables as a Dataset; take them in by `joined`.

    One that fails or is skipped leaves a note and does not stop the others.

    Raises:
        InputError: the config names an unknown probe.
    """
    for name, probe in chosen_probes(context.config.probes).items():
        context.tell(f"measuring {name}")
        began = time.perf_counter()
        try:
            with _heap():
                found = build(probe(context), {}, "real")
        except Skipped as reason:
            context.notes.append(f"{name}: skipped, {reason}")
            continue
        except Exception as error:  # whatever a probe dies of (memory, a solver), the training is not lost with it
            context.notes.append(f"{name}: failed, {type(error).__name__}: {error}")
            continue
        finally:
            context.seconds[name] = time.perf_counter() - began
        yield found


def _heap() -> AbstractContextManager[Any]:
    """Products are faster on a heap that keeps its pages; where the user tunes malloc, it is left alone."""
    tuned = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    return nullcontext() if tuned else steady_allocator()


def joined(ds: xr.Dataset, part: xr.Dataset) -> xr.Dataset:
    """`ds` with the variables of `part`, where both may have different states, windows or other places on an axis.

    An axis of both has then the places of both: numbers in order, words as they came. What was not measured at a place
    is nan, or 0 among whole numbers. Variables that `ds` has already are replaced.
    """
    for axis in part.dims:
        if axis in ds.indexes and axis in part.indexes and not ds.indexes[axis].equals(part.indexes[axis]):
            places = _places(ds[axis].to_numpy(), part[axis].to_numpy())
            ds, part = (_on_places(each, str(axis), places) for each in (ds, part))
    return ds.assign_coords(part.coords).assign(part.data_vars)


def _places(first: Any, second: Any) -> Any:
    if np.issubdtype(first.dtype, np.number):
        return np.union1d(first, second)
    return np.array(list(dict.fromkeys([*first.tolist(), *second.tolist()])))


def _on_places(ds: xr.Dataset, axis: str, places: Any) -> xr.Dataset:
    empty = {"f": np.nan, "i": 0, "O": "", "U": ""}
    fill = {str(name): empty[v.dtype.kind] for name, v in ds.variables.items() if axis in v.dims and name != axis}
    kept = dict(ds[axis].attrs)
    ds = ds.reindex({axis: places}, fill_value=fill)
    ds[axis].attrs.update(kept)
    return ds
