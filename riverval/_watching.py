"""The registry of measurements on a training under way: what a diagnostic is, and what it may look at.

A diagnostic is one registered function. It is given a `Probe`, the state of the training at a moment, and returns
stored variables by name; what it stores is declared with it, so that the dataset validates anywhere:

>>> from riverval.schema import Variable
>>> @diagnostic(
...     "largest_weight",
...     variables={"largest_weight": Variable("largest absolute parameter", "1", (("probe_step",),))},
...     needs_loss=False,
... )
... def largest_weight(probe):
...     return {"largest_weight": probe.flat.abs().max()}
>>> del DIAGNOSTICS["largest_weight"]

One that needs the update that follows the state is a generator function: ``following = yield`` gives it a `Following`,
and it returns its values after that. One that cannot be measured at a state, and no mistake, raises `Unavailable`. One
that looks at the finished run (``at_close=True``) is given a `Finished` instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from ._checks import check_int, check_options, unknown
from .errors import InputError, RivervalError, missing_extra
from .schema import VARIABLES, Variable, declare, is_coordinate, spec_of
from .sketches import Sketch

try:
    import torch
    from torch import Tensor, nn
except ImportError as _error:
    raise missing_extra("torch", "real", "measuring a torch training") from _error

from .hessian import HessianOperator
from .model_loss import LossOnBatches, flat_vector

Values = Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True)
class Diagnostic:
    """A registered measurement; see `diagnostic`."""

    name: str
    measure: Callable[..., Any]
    variables: Mapping[str, Variable]
    coords: Callable[[Mapping[str, Any]], Mapping[str, Sequence[Any]]] | None
    times: int
    needs_loss: bool
    at_close: bool
    requires: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """Its options with their defaults: the keyword-only arguments of the function."""
        parameters = inspect.signature(self.measure).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def own(self) -> dict[str, Variable]:
        """Those of its variables that are not in the schema."""
        return {name: spec for name, spec in self.variables.items() if spec_of(name) is None}


DIAGNOSTICS: dict[str, Diagnostic] = {}
"""Every registered diagnostic by name, in the order of their registration."""


def diagnostic(
    name: str,
    *,
    variables: Mapping[str, Variable] | Sequence[str],
    coords: Callable[[Mapping[str, Any]], Mapping[str, Sequence[Any]]] | None = None,
    times: int = 1,
    needs_loss: bool = True,
    at_close: bool = False,
    requires: Sequence[str] = (),
) -> Callable[[F], F]:
    """A decorator that registers a function as the diagnostic `name`.

    Args:
        name: by which ``observe(record=[...])`` asks for it.
        variables: what it stores: `riverval.schema.Variable` by name, with dimensions that start with `probe_step`
            (unless `at_close`), or coordinates of further dimensions; or the names alone where the schema has them.
        coords: makes the values of further dimensions' coordinates from the options.
        times: it is measured at every so many-th probe, unless observe's `cadence` says otherwise.
        needs_loss: whether it uses the loss on the probe's batches.
        at_close: it looks at the finished run.
        requires: other diagnostics (or "sketch", of every update) whose variables it reads; they are recorded with it.

    The function takes a `Probe` (a `Finished` if `at_close`) and keyword-only options with defaults, and returns values
    by name: numbers, tensors or arrays. Names that it leaves out stay nan (0 for whole numbers).

    Raises:
        InputError: the name is taken by another function; variables that cannot be stored; options without a default.
    """
    check_int("times", times, low=1, what="probes from one measurement to the next")
    if isinstance(variables, Mapping):
        specs = dict(variables)
    else:
        missing = [v for v in variables if spec_of(v) is None]
        if missing:
            raise unknown("stored variable", missing[0], VARIABLES)
        specs = {v: spec for v in variables if (spec := spec_of(v)) is not None}
    declare({v: spec for v, spec in specs.items() if spec_of(v) != spec})
    for v, spec in specs.items():
        if not (at_close or is_coordinate(v, spec) or any(d[:1] == ("probe_step",) for d in spec.dims)):
            raise InputError(
                f"{v!r} of diagnostic {name!r} needs dimensions that start with probe_step, got {spec.dims}"
            )
        if not at_close and spec.dtype == "str" and not is_coordinate(v, spec):
            raise InputError(f"{v!r} of diagnostic {name!r} must be numbers, got type str")

    def add(function: F) -> F:
        made = Diagnostic(name, function, specs, coords, times, needs_loss, at_close, tuple(requires))
        lacking = [k for k, v in made.options.items() if v is inspect.Parameter.empty]
        if lacking:
            raise InputError(f"the option {lacking[0]!r} of diagnostic {name!r} needs a default")
        _refuse_taken(made)
        DIAGNOSTICS[name] = made
        return function

    return add


def _refuse_taken(new: Diagnostic) -> None:
    """A notebook cell may be run again; two functions may not share a name, or a variable."""
    for old in DIAGNOSTICS.values():
        again = old.name == new.name and _place(old) == _place(new)
        if old.name == new.name and not again:
            raise InputError(
                f"there is a diagnostic {new.name!r} already ({'.'.join(_place(old))}); choose another name"
            )
        shared = [v for v in new.variables if v in old.variables and (v,) not in new.variables[v].dims]
        if shared and not again:
            raise InputError(f"diagnostic {old.name!r} stores {shared[0]!r} already; choose another name for it")


def _place(known: Diagnostic) -> tuple[str, str]:
    return known.measure.__module__, known.measure.__qualname__


@dataclass(frozen=True)
class Probe:
    """A state of the training, as a diagnostic may look at it. What is dear is computed once for all that ask.

    Attributes:
        state: updates made before it.
        model: the model; to be read only.
        parameters: those that are measured, in the order of ``model.named_parameters()``; to be read only.
        optimizer: the optimizer; to be read only.
        sketch: makes sketches of flat parameter vectors or lists of tensors.
        kept: of this diagnostic, from one probe to the next: to put there what the next one can start from.
        rng: of this diagnostic at this state; the same seed gives the same numbers.
    """

    state: int
    model: nn.Module
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    sketch: Sketch
    kept: dict[str, Any]
    rng: np.random.Generator
    given_loss: LossOnBatches | None
    shared: dict[str, Any]

    @property
    def loss(self) -> LossOnBatches:
        """The loss on the probe's batches as a function of the flat parameters.

        Raises:
            InputError: the observer has no probe, or the diagnostic is not declared with ``needs_loss=True``.
        """
        if self.given_loss is None:
            raise InputError("there is no loss to measure: give observe(probe=(loss, batches))")
        return self.given_loss

    @property
    def flat(self) -> Tensor:
        """A copy of `parameters`, shape (dim,): all that required gradients when the observer was made."""
        return self.once("flat", lambda: flat_vector(self.parameters))

    @property
    def gradient(self) -> Tensor:
        """Gradient of `loss` at `flat`, shape (dim,)."""
        return self.loss_and_gradient[1]

    @property
    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """`loss` and its gradient at `flat`."""
        return self.once("gradient", lambda: self.loss.gradient(self.flat))

    @property
    def hessian(self) -> HessianOperator:
        """The Hessian of `loss` at `flat`, with rows of zeros for parameters that the loss does not use."""
        return self.once("hessian", lambda: HessianOperator(self.loss, self.flat, unused="zero"))

    def once(self, key: str, make: Callable[[], T]) -> T:
        """``make()``, computed for the first that asks for `key` at this state; it is charged with the time."""
        if key not in self.shared:
            self.shared[key] = make()
        found: T = self.shared[key]
        return found


@dataclass(frozen=True)
class Following:
    """The update that follows a probed state.

    Attributes:
        change: of the flat parameters, shape (dim,): what the optimizer's step added, on their device.
        lr: the rate that it used (of the first parameter group).
    """

    change: Any
    lr: float


class Unavailable(RivervalError):  # noqa: N818
    """The state has not what the diagnostic needs, and that is no mistake."""


@dataclass(frozen=True)
class Finished:
    """The finished run, for diagnostics at the close.

    Attributes:
        ds: what was recorded of every update and every probe, and by the diagnostics of the close before this one.
        dim: number of trainable parameters.
        sketch: what made the sketches.
        momentum: of the optimizer's first group: of heavy-ball SGD, or the first beta of Adam.
        rng: of this diagnostic.
    """

    ds: xr.Dataset
    dim: int
    sketch: Sketch
    momentum: float
    rng: np.random.Generator


def trainable(model: nn.Module) -> list[Tensor]:
    """The parameters that require gradients, in the order of ``model.named_parameters()``."""
    return [p for _, p in model.named_parameters() if p.requires_grad]


def chosen(names: Sequence[str]) -> list[Diagnostic]:
    """The diagnostics of these names with all that they require, in the order of the registry.

    Raises:
        InputError: an unknown name.
    """
    wanted: list[str] = []
    left = list(names)
    while left:
        name = left.pop(0)
        if name in SERIES or name in wanted:
            continue
        if name not in DIAGNOSTICS:
            raise unknown("diagnostic", name, [*SERIES, *DIAGNOSTICS])
        wanted.append(name)
        left += DIAGNOSTICS[name].requires
    return [d for name, d in DIAGNOSTICS.items() if name in wanted]


def resolved_options(chosen: Sequence[Diagnostic], given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every diagnostic's options, the given ones over the defaults.

    Raises:
        InputError: options of a diagnostic that is not recorded, or that it does not take.
    """
    by_name = {d.name: d for d in chosen}
    for name, options in given.items():
        if name not in by_name:
            raise InputError(f"options are given for {name!r}, which is not recorded; recorded: {', '.join(by_name)}")
        check_options(f"diagnostic {name!r}", options, by_name[name].options)
    return {d.name: d.options | dict(given.get(d.name, {})) for d in chosen}


SERIES = ("norms", "sketch")
"""What can be recorded at every update beside loss, rate and phase."""
