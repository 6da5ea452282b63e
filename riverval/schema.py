"""The one Dataset form of theory, toy and real runs: every stored name with its dimensions, units and meaning.

Two step axes, by the convention of `riverval.schedules`: `step` numbers updates t = 0..T-1 and carries what belongs
to an update; `eval_step` and `probe_step` number states 0..T (state t is reached by t updates) and carry what belongs
to a state. Sparse measurements have their own axis rather than holes in a dense one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import xarray as xr

from ._checks import suggest
from .errors import StoreError
from .segments import PHASES, Phase

SCHEMA_VERSION = "1"
SOURCES = ("theory", "toy", "real")
STATUSES = ("running", "complete", "interrupted", "diverged")


@dataclass(frozen=True)
class Variable:
    """What a stored name means; `dims` lists every allowed tuple of dimensions."""

    long_name: str
    units: str
    dims: tuple[tuple[str, ...], ...]
    dtype: str = "f8"


_RUNS = (("eval_step",), ("replicate", "eval_step"))
_PER_RUN: tuple[tuple[str, ...], ...] = ((), ("replicate",))

COORDS: dict[str, Variable] = {
    "source": Variable("where the numbers come from: theory, toy or real", "1", ((),), "str"),
    "step": Variable("number of the update, 0-based", "1", (("step",),), "i8"),
    "lr": Variable("learning rate used by the update", "1", (("step",),)),
    "phase": Variable("phase of the schedule", "1", (("step",),), "i1"),
    "eval_step": Variable("updates made before the evaluated state", "1", (("eval_step",),), "i8"),
    "probe_step": Variable("updates made before the probed state", "1", (("probe_step",),), "i8"),
    "replicate": Variable("number of the independent repetition", "1", (("replicate",),), "i8"),
    "mode": Variable("number of the hill direction", "1", (("mode",),), "i8"),
    "alpha": Variable("place between the two ends, 0 at the first", "1", (("alpha",),)),
    "pair": Variable("pair of states that is interpolated", "1", (("pair",),), "str"),
    "window": Variable("phase that the snapshots come from", "1", (("window",),), "str"),
    "component": Variable("principal component, largest first", "1", (("component",),), "i8"),
}

VARIABLES: dict[str, Variable] = {
    # Analytic valleys: simulated, and exact beside it.
    "loss": Variable("loss of the state, without gradient noise", "1", _RUNS),
    "river": Variable("river component of the loss: loss of the state's projection onto the river", "1", _RUNS),
    "hill": Variable("hill component of the loss: loss minus river component", "1", _RUNS),
    "exact_loss": Variable("expected loss by the exact moment recursion", "1", (("eval_step",),)),
    "exact_river": Variable("expected river component by the exact moment recursion", "1", (("eval_step",),)),
    "exact_hill": Variable("expected hill component by the exact moment recursion", "1", (("eval_step",),)),
    "exact_loss_std": Variable("exact standard deviation of the loss over replicates", "1", (("eval_step",),)),
    "exact_river_std": Variable(
        "exact standard deviation of the river component over replicates", "1", (("eval_step",),)
    ),
    "exact_hill_std": Variable(
        "exact standard deviation of the hill component over replicates", "1", (("eval_step",),)
    ),
    "curvature": Variable("curvature of the hill direction", "1", (("mode",),)),
    # Training: what belongs to each update.
    "train_loss": Variable("training loss of the batch before the update", "nat", (("step",),)),
    "grad_norm": Variable("norm of the batch gradient before clipping", "1", (("step",),)),
    "update_norm": Variable("norm of the change of the parameters", "1", (("step",),)),
    "param_norm": Variable("norm of the parameters before the update", "1", (("step",),)),
    # Training: what belongs to a state.
    "val_loss": Variable("loss on held-out data", "nat", (("eval_step",),)),
    "val_accuracy": Variable("accuracy on held-out data", "1", (("eval_step",),)),
    "final_train_loss": Variable("loss of the last state on the training data", "nat", ((),)),
    "final_train_accuracy": Variable("accuracy of the last state on the training data", "1", ((),)),
    # Geometry of the trajectory.
    "hessian_top": Variable("largest eigenvalue of the Hessian of the training loss", "1", (("probe_step",),)),
    "hessian_top_residual": Variable("norm of H v - lambda v: some eigenvalue is this near", "1", (("probe_step",),)),
    "hessian_products": Variable("Hessian-vector products spent", "1", (("probe_step",),), "i8"),
    "probe_lr": Variable("learning rate of the update that follows the probed state", "1", (("probe_step",),)),
    "interpolation_loss": Variable("training loss on the segment between two states", "nat", (("pair", "alpha"),)),
    "interpolation_start": Variable("updates made before the first end of the segment", "1", (("pair",),), "i8"),
    "interpolation_stop": Variable("updates made before the second end of the segment", "1", (("pair",),), "i8"),
    "pca_share": Variable("share of the variance of the snapshots, centred", "1", (("window", "component"),)),
    "pca_null": Variable(
        "same share for a random walk in high dimension with the run's own rates", "1", (("window", "component"),)
    ),
    "pca_snapshots": Variable("number of snapshots in the window", "1", (("window",),), "i8"),
    # How the run ended.
    "diverged": Variable("1 where the loss stopped being finite", "1", _PER_RUN, "i1"),
    "diverged_at": Variable("updates made before the first state that is not finite, -1 if none", "1", _PER_RUN, "i8"),
}

# Attributes every dataset carries: flat strings, `config` and `versions` as JSON.
ATTRS = (
    "title", "schema_version", "status", "riverval_version", "created", "command", "git_commit", "git_dirty",
    "versions", "seed", "config",
)  # fmt: skip


JSON_ATTRS = ("versions", "config")

# What readers may rely on: where there is a dimension, there is this too.
COMPANIONS = {"step": ("lr", "phase"), "replicate": ("diverged",)}


def attrs_of(name: str) -> dict[str, Any]:
    """`long_name`, `units` and, for `phase`, the CF flags of a stored name."""
    spec = COORDS.get(name) or VARIABLES[name]
    out: dict[str, Any] = {"long_name": spec.long_name, "units": spec.units}
    if name == "phase":
        out["flag_values"] = np.array([int(p) for p in Phase], dtype=np.int8)
        out["flag_meanings"] = " ".join(PHASES)
    return out


def build(values: Mapping[str, Any], dims: Mapping[str, tuple[str, ...]], source: str) -> xr.Dataset:
    """A Dataset in the schema from plain arrays.

    Args:
        values: array (or scalar) by stored name; coordinates and variables alike.
        dims: dimensions by name, needed only where the schema allows several.
        source: theory, toy or real.

    Raises:
        StoreError: a name or shape that the schema does not know.
    """
    coords: dict[str, Any] = {"source": ((), source, attrs_of("source"))}
    data: dict[str, Any] = {}
    for name, value in values.items():
        spec = COORDS.get(name) or VARIABLES.get(name)
        if spec is None:
            raise StoreError(f"{name!r} is not in the schema.{suggest(name, [*COORDS, *VARIABLES])}")
        array = _cast(name, value, spec)
        axes = dims.get(name) or next((d for d in spec.dims if len(d) == array.ndim), None)
        if axes is None or len(axes) != array.ndim:
            raise StoreError(f"{name!r} has {array.ndim} dimensions; the schema allows {_told(spec.dims)}")
        (coords if name in COORDS else data)[name] = (axes, array, attrs_of(name))
    try:
        return xr.Dataset(data, coords=coords)
    except ValueError as error:  # lengths that do not fit together
        raise StoreError(f"not a riverval dataset: {error}") from error


def validate(ds: xr.Dataset) -> xr.Dataset:
    """Return `ds` if it is in the schema.

    Raises:
        StoreError: naming every problem found.
    """
    problems = [f"attribute {a!r} is missing" for a in ATTRS if a not in ds.attrs]
    problems += [f"attribute {a!r} must be text, got {v!r}" for a, v in ds.attrs.items() if not _storable(v)]
    version = str(ds.attrs.get("schema_version", SCHEMA_VERSION))
    if version != SCHEMA_VERSION:
        problems.append(f"schema version is {version}, this riverval reads {SCHEMA_VERSION}")
    if "source" not in ds.coords:
        problems.append("coordinate 'source' is missing")
    elif ds["source"].ndim == 0 and ds["source"].item() not in SOURCES:
        problems.append(f"source is {ds['source'].item()!r}, allowed: {', '.join(SOURCES)}")
    if ds.attrs.get("status", "complete") not in STATUSES:
        problems.append(f"status is {ds.attrs['status']!r}, allowed: {', '.join(STATUSES)}")
    for name, array in ds.variables.items():
        problems += _problems(str(name), array, COORDS if name in ds.coords else VARIABLES)
    problems += [f"dimension {d!r} has no coordinate" for d in ds.dims if d not in ds.coords]
    problems += [
        f"{name!r} is missing, which every dataset with {dim!r} has"
        for dim, names in COMPANIONS.items() if dim in ds.dims for name in names if name not in ds.variables
    ]  # fmt: skip
    problems += [f"attribute {a!r} is not JSON" for a in JSON_ATTRS if not _is_json(ds.attrs.get(a, "{}"))]
    if problems:
        raise StoreError("not a riverval dataset: " + "; ".join(problems))
    return ds


def _is_json(text: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (TypeError, ValueError):
        return False


def _storable(value: Any) -> bool:
    """Whether netCDF takes `value` as an attribute and gives it back as it was."""
    return isinstance(value, str | Number) and not isinstance(value, bool)


def _cast(name: str, value: Any, spec: Variable) -> np.ndarray[Any, np.dtype[Any]]:
    """`value` as an array of the schema's type; what that type cannot hold is refused, not rounded."""
    try:
        array = np.asarray(value)
        if spec.dtype == "str":
            return array
        with np.errstate(invalid="ignore"):
            cast = array.astype(spec.dtype)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name!r} must be of type {spec.dtype}: {error}") from error
    if spec.dtype.startswith("i") and not np.array_equal(cast, array):
        raise StoreError(f"{name!r} must be whole numbers of type {spec.dtype}, got {array!r}")
    return cast


def _problems(name: str, array: xr.Variable, known: Mapping[str, Variable]) -> list[str]:
    spec = known.get(name)
    if spec is None:
        return [f"{name!r} is not in the schema"]
    out = []
    if tuple(map(str, array.dims)) not in spec.dims:
        out.append(f"{name!r} has dimensions {array.dims}, allowed: {_told(spec.dims)}")
    kinds = "UOST" if spec.dtype == "str" else "iu" if spec.dtype.startswith("i") else "f"
    if array.dtype.kind not in kinds:
        out.append(f"{name!r} is of type {array.dtype}, the schema says {spec.dtype}")
    out += [f"{name!r} lacks {a!r}" for a in ("units", "long_name") if a not in array.attrs]
    return out


def _told(dims: tuple[tuple[str, ...], ...]) -> str:
    return " or ".join("(" + ", ".join(d) + ")" for d in dims)
