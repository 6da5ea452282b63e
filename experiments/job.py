"""A run that is ready to start: its planned config, its data and its model, made before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError
from .config import RunConfig
from .data import Data, load_images
from .machine import out_of_memory_told, pick_device, usable_cores
from .probes import chosen_probes
from .seeds import Stream, torch_seed
from .snapshots import SnapshotPlan
from .text import load_text

LOADERS: dict[str, Callable[[RunConfig], Data]] = {"images": load_images, "text": load_text}


@dataclass(frozen=True)
class Job:
    """A run that is ready to start: its planned config, data and model on their device."""

    config: RunConfig
    data: Data
    model: nn.Module

    @property
    def snapshot_plan(self) -> SnapshotPlan:
        """What will be kept for the probes."""
        return SnapshotPlan.of(self.config)

    @property
    def states(self) -> dict[str, list[int]]:
        """What for -> states of which snapshots will be kept."""
        return self.snapshot_plan.states

    @property
    def snapshot_bytes(self) -> int:
        """Disk space that the snapshots will take."""
        return self.snapshot_plan.nbytes(self.config.parameters)

    @property
    def pinned(self) -> frozenset[int]:
        """States whose full state is kept for good: those asked for, the end of the last stable phase, the last."""
        stable = self.config.plan.windows("stable")
        ends = [stable[-1][1]] if stable else []
        return frozenset({*self.config.branch_points, *ends, self.config.plan.total})

    @property
    def checkpoint_bytes(self) -> int:
        """Disk space that the full states will take at most: the pinned ones, and the two newest of the others."""
        numbers = {"adamw": 3, "adam": 3, "sgd": 2 if self.config.momentum else 1}[self.config.optimizer]
        return (len(self.pinned) + 2) * 4 * numbers * self.config.parameters

    @property
    def tokens(self) -> int | None:
        """Tokens that the run will see, None for images."""
        c = self.config
        return None if c.seq is None or c.steps is None else c.seq * c.batch * c.steps


def prepare(config: RunConfig) -> Job:
    """Load the data, build the model, plan the schedule: all that can fail before training.

    Args:
        config: from `config.resolve`; or planned, whose schedule then stands and whose data must not have changed.

    Raises:
        InputError: an argument does not fit the data or the machine, or the data are not those of a planned config.
        RivervalError: data cannot be had.
        MissingExtraError: a package is missing.
    """
    device = pick_device(config.device)
    if (config.threads or 1) > usable_cores():
        raise InputError(f"threads must be at most the {usable_cores()} cores of this process, got {config.threads}")
    chosen_probes(config.probes)
    with out_of_memory_told():
        data = LOADERS[config.architecture.data_kind](config)
        if config.data_sha256 not in ("", data.sha256):
            raise InputError(
                f"{config.data} is not what the run was planned with: its content has changed; put the "
                "old content back, or start a new run"
            )
        with torch.random.fork_rng(devices=[]):  # initialised on the CPU: the same start on every device
            torch.manual_seed(torch_seed(config.seed, Stream.MODEL))
            model = config.architecture.build(config, data.facts)
        if config.architecture.data_kind == "images":
            model = model.to(memory_format=torch.channels_last)
        planned = config
        if not config.data_sha256:
            count = sum(p.numel() for p in model.parameters())
            known = {"data_sha256": data.sha256, "parameters": count, "facts": {**data.facts, "device": str(device)}}
            planned = config.planned(steps_per_epoch=data.steps_per_epoch, **known)
        return Job(planned, data.to(device), model.to(device))
