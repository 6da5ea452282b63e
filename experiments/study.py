"""What a study of real runs is: a set of plans over seeds, each pair of them a cell that is trained once and kept.

A plan is a whole `RunConfig` but for its seed. Every study compares plans at equal seeds (the same initial weights and
the same batches), so that differences are paired. Nothing here imports torch; `study_run` trains the cells and
`study_data` turns them into one dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import xarray as xr

from .._checks import check_int, check_options
from .._typing import FloatArray
from ..errors import InputError
from .config import RunConfig

Configure = Callable[[str, Mapping[str, Any]], RunConfig]
"""(architecture, fields of `RunConfig`) -> a config by preset and options, not planned yet."""

Runs = Mapping[tuple[str, int], xr.Dataset]
"""Dataset of every cell that is done, by the name of its plan and its seed."""

LOSSES_ONLY: dict[str, Any] = {"snapshots": 0, "probes": ()}
"""Measurement settings of a cell of which only losses are asked: nothing is kept on disk, no probe is run."""

# Fields that say where the data lie or how a run is guarded, not what is measured on what: a cell is the same whatever
# they are. The device that was found stands among the facts; the number of threads changes the last bits only.
NOT_OF_A_CELL = ("data", "device", "threads", "checkpoint_every", "epochs", "facts")
# What is measured of snapshots: of no account where none are kept and no probe is run.
OF_SNAPSHOTS = (
    "keep", "sketch_width", "alphas", "line_examples", "hessian_examples", "hessian_points", "hessian_tol",
    "descent_points", "descent_examples", "direction_snapshots", "token_examples",
)  # fmt: skip
KEY_LENGTH = 16


@dataclass(frozen=True)
class Checkpoint:
    """One decayed state on the path of a plan: under which accounting, of which family, its number from 0."""

    accounting: str
    family: str
    number: int
    state: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One of the things compared, to be run at every seed.

    Attributes:
        name: unique in its study, as tables and pictures show it.
        config: planned, at the first seed.
        against: name of the plan that it is compared with, seed by seed; its own name where there is none.
        checkpoints: the states that are compared besides the last, for `study_budgets`.
    """

    name: str
    config: RunConfig
    against: str
    checkpoints: tuple[Checkpoint, ...] = ()

    def cell(self, seed: int, **changes: Any) -> Cell:
        """The plan at one seed; `changes` to other fields are for how it is run, e.g. its threads."""
        return Cell(plan=self, config=replace(self.config, seed=seed, **changes))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A plan at one seed."""

    plan: Plan
    config: RunConfig

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def label(self) -> str:
        return f"{self.plan.name}, seed {self.seed}"

    @cached_property
    def rates(self) -> FloatArray:
        """The learning rate of every update."""
        return self.config.plan.values()

    @cached_property
    def key(self) -> str:
        """What the cell's folder is called: a hash of its planned configuration.

        Where the data lie, the number of threads and how often a checkpoint is written are left out, and the settings
        of probes where there are none.
        """
        unused = () if self.config.snapshots or self.config.probes else OF_SNAPSHOTS
        told = {k: v for k, v in self.config.to_dict().items() if k not in (*NOT_OF_A_CELL, *unused)}
        told["device"] = self.config.facts.get("device")
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


class Bench:
    """Makes the plans of a study: base configs that are planned on the data, and changes to them.

    Args:
        arch: architecture that the study was asked for.
        configure: how a config is made of an architecture and fields.
        prepare: (config) -> the planned config, once the data are read; see `study_run.planned`.
    """

    def __init__(self, arch: str, configure: Configure, prepare: Callable[[RunConfig], RunConfig]) -> None:
        self.arch, self._configure, self._prepare = arch, configure, prepare
        self._bases: dict[str, RunConfig] = {}

    def base(self, arch: str | None = None, **changes: Any) -> RunConfig:
        """A planned config under WSD; the data are read once for each.

        Raises:
            InputError: as `config.resolve` and `run.prepare`.
        """
        key = json.dumps([arch or self.arch, changes], sort_keys=True)
        if key not in self._bases:
            found = self._prepare(self._configure(arch or self.arch, changes))
            if found.schedule["name"] != "wsd":
                raise InputError(f"studies make their own schedules from wsd, got {found.schedule['name']}; leave it")
            self._bases[key] = found
        return self._bases[key]


def plan_of(
    name: str, base: RunConfig, schedule: Mapping[str, Any], *, against: str | None = None, **changes: Any
) -> Plan:
    """A plan from a planned base: another schedule, and other fields.

    Args:
        name: of the plan.
        base: as `Bench.base` makes it.
        schedule: name and options; the warmup of the base unless it says otherwise.
        against: name of the reference; None: the plan itself.
        **changes: fields of `RunConfig` that leave data and model as they are, e.g. `steps`, `lr`.
    """
    described = {"warmup": base.schedule["warmup"], **schedule}
    known = {"data_sha256": base.data_sha256, "parameters": base.parameters, "facts": base.facts}
    config = replace(base, schedule=described, epochs=None, **changes).planned(steps_per_epoch=None, **known)
    return Plan(name=name, config=config, against=name if against is None else against)


def wsd(base: RunConfig, fraction: float, steps: int, **shape: Any) -> dict[str, Any]:
    """WSD options for a cooldown of `fraction` of the run, at most all that the warmup leaves.

    The decay shape is that of the base unless `shape` has another.
    """
    warmup = base.schedule["warmup"]
    return {"name": "wsd", "cooldown": min(fraction, 1.0 - warmup / steps), "shape": base.schedule["shape"], **shape}


def cosine(base: RunConfig) -> dict[str, Any]:
    """Cosine annealing to the floor of the base's decay."""
    return {"name": "cosine", "floor": base.schedule["shape"]["floor"]}


def length(base: RunConfig) -> int:
    """Updates of a planned base."""
    return base.plan.total


@dataclass(frozen=True)
class Setting:
    """The numbers of a study besides those of its runs; a study without any has this one."""


@dataclass(frozen=True)
class Study:
    """A named study.

    Args:
        name: as on the command line.
        question: one line on what is asked.
        setting: class of its numbers.
        plans: (bench, setting) -> the plans.
        derive: (dataset so far, setting, plans, datasets of the cells) -> further values of the dataset.
        numbers: dataset -> what was derived, for a table.
        of_kind: whether the study covers all architectures of the same kind of data, not only the one asked for.
    """

    name: str
    question: str
    plans: Callable[[Bench, Any], list[Plan]]
    setting: type[Setting] = Setting
    derive: Callable[[xr.Dataset, Any, Sequence[Plan], Runs], dict[str, Any]] = field(default=lambda *_: {})
    numbers: Callable[[xr.Dataset], list[Finding]] = field(default=lambda ds: [])
    of_kind: bool = False

    def make(self, **changes: Any) -> Setting:
        """The setting with changes to single numbers.

        Raises:
            InputError: a number that the study does not have, or one out of range.
        """
        check_options(f"study {self.name!r}", changes, [f.name for f in fields(self.setting)])
        return replace(self.setting(), **changes)


@dataclass(frozen=True)
class Finding:
    """One derived number of a study: what it is, its value, its standard error over seeds (nan: none), and remarks."""

    quantity: str
    value: float
    error: float
    told: str = ""


def cells_of(plans: Sequence[Plan], seeds: Sequence[int], **changes: Any) -> list[Cell]:
    """Every plan at every seed, the seeds in turn, so that whole seeds are finished first.

    Raises:
        InputError: no seed, or plans that share a name or whose reference is missing.
    """
    check_int("seeds", len(seeds), low=1, what="number of seeds")
    names = [p.name for p in plans]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"the study has two plans named {twice!r}; leave the number that is there twice out")
    for p in plans:
        if p.against not in names:
            raise InputError(f"plan {p.name!r} is compared with {p.against!r}, which the study does not have")
    return [p.cell(seed, **changes) for seed in seeds for p in plans]
