"""What `riverval.observe` was asked for, checked: every mistake that can be seen beforehand is told before the
training.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._checks import check_int, check_number
from ._untouched import bare_model
from ._updates import check_optimizer
from ._watching import SERIES, Diagnostic, chosen, resolved_options, trainable
from .errors import InputError
from .model_loss import LossOnBatches
from .schedules import Schedule
from .schema import Variable, declare
from .sketches import Sketch

DEFAULT = ("norms", "probe_loss", "alignment", "sharpness")
ADAPTIVE = ("preconditioned_sharpness",)  # recorded as well where the optimizer preconditions
_PRECONDITIONING = (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad)


@dataclass(frozen=True)
class Plan:
    """The arguments of `riverval.observe` in the form that they are used in."""

    model: nn.Module
    names: tuple[str, ...]  # of the parameters that are measured
    optimizer: torch.optim.Optimizer
    loss: LossOnBatches | None
    record: tuple[str, ...]
    moment: tuple[Diagnostic, ...]  # measured at states
    closing: tuple[Diagnostic, ...]  # measured on the finished run
    options: dict[str, dict[str, Any]]
    every: dict[str, int]
    budget: float | None
    schedule: Schedule | None
    sketch: Sketch
    seed: int
    title: str
    out: Path | None
    overwrite: bool
    interval: float

    @property
    def dim(self) -> int:
        """Number of trainable parameters at the start."""
        return self.sketch.dim

    def parameters(self) -> list[Tensor]:
        """The parameters that required gradients at the start, whatever was frozen or freed since."""
        named = dict(self.model.named_parameters())
        return [named[name] for name in self.names]

    @property
    def mirror(self) -> Path | None:
        """Where the records stand while the run is under way."""
        return None if self.out is None else mirror_of(self.out)

    @property
    def own(self) -> dict[str, Variable]:
        """Stored variables that are not in the schema."""
        return {name: spec for d in (*self.moment, *self.closing) for name, spec in d.own.items()}

    @property
    def coords(self) -> dict[str, list[Any]]:
        """Values of the coordinates beside the step axes."""
        out: dict[str, list[Any]] = {}
        if self.moment:
            out["diagnostic"] = [d.name for d in self.moment]
        if len(self.optimizer.param_groups) > 1:
            out["group"] = list(range(len(self.optimizer.param_groups)))
        if "sketch" in self.record or any("sketch" in axes for d in self.moment for axes in _axes(d)):
            out["sketch"] = list(range(self.sketch.width))
        for d in self.moment:
            if d.coords is not None:
                out |= {name: np.asarray(values).tolist() for name, values in d.coords(self.options[d.name]).items()}
        return out

    @property
    def config(self) -> dict[str, Any]:
        """What was recorded how, for the dataset's provenance."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        told: dict[str, Any] = {
            "model": type(self.model).__name__, "parameters": self.dim, "optimizer": type(self.optimizer).__name__,
            "groups": _plain(groups), "record": list(self.record), "every": self.every, "options": _plain(self.options),
            "budget": self.budget, "probe_batches": 0 if self.loss is None else len(self.loss.batches),
            "sketch": {"width": self.sketch.width, "seed": self.seed},
        }  # fmt: skip
        return told if self.schedule is None else told | {"schedule": self.schedule.to_dict()}


def make_plan(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    probe: Any,
    *,
    every: int,
    out: str | Path | None,
    record: Sequence[str] | None,
    cadence: Mapping[str, int] | None,
    options: Mapping[str, Mapping[str, Any]] | None,
    budget: float | None,
    schedule: Schedule | None,
    sketch: int,
    seed: int,
    title: str | None,
    overwrite: bool,
    interval: float,
) -> Plan:
    """The plan of the arguments of `riverval.observe`.

    Raises:
        InputError: as told there.
    """
    bare = _checked_model(model, check_optimizer(optimizer))
    loss = None if probe is None else _loss_of(bare, probe)
    check_int("every", every, low=1, what="updates between two probes")
    check_int("seed", seed)
    check_number("interval", interval, low=0.0, what="seconds between two writes")
    if budget is not None:
        what = "share of the run's time for probes; None for no limit"
        check_number("budget", budget, low=0.0, high=1.0, open_low=True, what=what)
    if schedule is not None and not isinstance(schedule, Schedule):
        raise InputError(f"schedule must be a riverval schedule, e.g. make_schedule('wsd', ...), got {schedule!r}")
    names = _recorded(record, optimizer, loss)
    example = "options={'sharpness': {'tol': 1e-2}}"
    options = _by_name("options", options, example)
    options = {name: _by_name(f"options of {name!r}", of_one, example) for name, of_one in options.items()}
    asked = chosen(names)
    moment = tuple(d for d in asked if not d.at_close)
    needy = [d.name for d in asked if d.needs_loss and not d.at_close and loss is None]
    if needy:
        raise InputError(f"{needy[0]!r} is measured on fixed batches; give observe(probe=(loss, batches))")
    series = {name for name in names if name in SERIES} | {r for d in asked for r in d.requires if r in SERIES}
    plan = Plan(
        bare, tuple(name for name, p in bare.named_parameters() if p.requires_grad), optimizer, loss,
        (*(s for s in SERIES if s in series), *(d.name for d in asked)), moment,
        tuple(d for d in asked if d.at_close), resolved_options(asked, options),
        _cadences(moment, every, _by_name("cadences", cadence, "cadence={'trace': 5000}")), budget, schedule,
        Sketch(sum(p.numel() for p in trainable(bare)), width=check_int("sketch", sketch, low=1), seed=seed), seed,
        title or f"{type(bare).__name__} trained with {type(optimizer).__name__}, observed",
        _checked_out(out, overwrite), overwrite, float(interval),
    )  # fmt: skip
    declare(plan.own)
    return plan


def mirror_of(out: Path) -> Path:
    """run.nc -> run.partial.nc."""
    return out.with_name(f"{out.stem}.partial.nc")


def _checked_model(model: Any, optimizer: torch.optim.Optimizer) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    bare = bare_model(model)
    mine = {id(p) for p in bare.parameters()}
    if not trainable(bare):
        raise InputError("no parameter of the model requires gradients, so there is no training to watch")
    if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise InputError(
            "the optimizer has no parameter of this model; was the model copied or moved after it was made?"
        )
    return bare


def _loss_of(model: nn.Module, probe: Any) -> LossOnBatches:
    shape = "probe must be (loss, batches), with loss(model, batch) a scalar and batches a list"
    if not isinstance(probe, tuple | list) or len(probe) != 2:
        raise InputError(f"{shape}, got {_told(probe)}")
    loss, batches = probe
    if not callable(loss):
        raise InputError(f"{shape}; the loss cannot be called, it is {_told(loss)}")
    if isinstance(batches, tuple) and batches and all(isinstance(part, torch.Tensor) for part in batches):
        raise InputError(f"{shape}; got one tuple of tensors. If that is one batch (x, y), give [(x, y)]")
    if isinstance(batches, torch.Tensor):
        raise InputError(f"{shape}; got a tensor. If that is one batch, give [batch]")
    if not isinstance(batches, Sequence):
        raise InputError(f"{shape}, got {_told(batches)}; take some: list(itertools.islice(loader, 4))")
    return LossOnBatches(model, loss, batches)


def _recorded(record: Any, optimizer: torch.optim.Optimizer, loss: LossOnBatches | None) -> tuple[str, ...]:
    if record is None:
        if loss is None:
            return ("norms",)
        return (*DEFAULT, *(ADAPTIVE if isinstance(optimizer, _PRECONDITIONING) else ()))
    if isinstance(record, str) or not isinstance(record, Iterable):
        raise InputError(f"record takes a list of names, e.g. record=['norms', 'sharpness'], got {record!r}")
    names = list(record)
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"record takes a list of names, e.g. record=['norms', 'sharpness'], got {record!r}")
    return tuple(dict.fromkeys(names))


def _by_name(what: str, given: Any, example: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"{what} go by the names of diagnostics, e.g. {example}, got {given!r}")
    return given


def _cadences(moment: Sequence[Diagnostic], every: int, cadence: Mapping[str, int]) -> dict[str, int]:
    names = [d.name for d in moment]
    for name, updates in cadence.items():
        if name not in names:
            has = ", ".join(names) or "none"
            raise InputError(f"cadence names {name!r}, which is not among the probes that are recorded ({has})")
        check_int(f"cadence of {name!r}", updates, low=1, what="updates")
    return {d.name: cadence.get(d.name, every * d.times) for d in moment}


def _checked_out(out: str | Path | None, overwrite: bool) -> Path | None:
    if out is None:
        return None
    if not isinstance(out, str | os.PathLike):
        raise InputError(f"out must be the name of a file, e.g. 'run.nc', got {out!r}")
    path = Path(out)
    if path.is_dir() or not path.name:
        raise InputError(f"{path} is a folder; give the name of a file to write, e.g. {path / 'run.nc'}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another file, or allow overwrite=True")
    if mirror_of(path).exists() and not overwrite:
        raise InputError(
            f"{mirror_of(path)} exists: the records of a run that was killed, or is still under way; "
            f"move it (it is a whole dataset), or allow overwrite=True"
        )
    return path


def _axes(known: Diagnostic) -> list[tuple[str, ...]]:
    return [axes for spec in known.variables.values() for axes in spec.dims]


def _plain(value: Any) -> Any:
    """`value` with all that JSON cannot hold as text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _told(value: Any) -> str:
    return f"a {type(value).__name__}"
