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
_CONTEXT_RUNS = (("replicate", "context", "eval_step"),)
_CURVES = (("eval_step",), ("plan", "eval_step"), ("rate", "eval_step"))
_CHECKPOINTS = (("accounting", "family", "checkpoint"),)
_FINAL = (("rate", "total"),)
_ENDINGS = (("valley", "ending", "length"),)
_SURFACE = (("along", "across"),)

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
    "context": Variable("context whose next token is predicted", "1", (("context",),), "str"),
    "quantile": Variable("quantile over the replicates", "1", (("quantile",),)),
    "prediction": Variable("prediction that the row measures, one of several rows", "1", (("prediction",),), "str"),
    # Studies, which hold several runs against each other.
    "along": Variable("place along the river, as a coordinate of the surface", "1", (("along",),)),
    "across": Variable("height above the valley floor, as a coordinate of the surface", "1", (("across",),)),
    "plan": Variable("schedule, among several", "1", (("plan",),), "str"),
    "family": Variable("kind of schedule that makes several decayed checkpoints", "1", (("family",),), "str"),
    "accounting": Variable("cost that is equal for the schedules compared", "1", (("accounting",),), "str"),
    "checkpoint": Variable("number of the decayed checkpoint, from 1", "1", (("checkpoint",),), "i8"),
    "rate": Variable("peak learning rate, among several", "1", (("rate",),)),
    "total": Variable("updates of the whole run, among several", "1", (("total",),), "i8"),
    "decay": Variable("decay shape, or optimal: the decay that leaves the least hill loss", "1", (("decay",),), "str"),
    "floor": Variable("rate at the end of the cooldown as a fraction of the peak", "1", (("floor",),)),
    "relaxations": Variable("length of the cooldown as lr times curvature times updates", "1", (("relaxations",),)),
    "probe_relaxations": Variable("length of a simulated cooldown in relaxation times", "1", (("probe_relaxations",),)),
    "crossing": Variable("two decay shapes whose order changes", "1", (("crossing",),), "str"),
    "valley": Variable("kind of valley", "1", (("valley",),), "str"),
    "fraction": Variable("updates of the cooldown as a fraction of the run", "1", (("fraction",),)),
    "probe_fraction": Variable("updates of a simulated cooldown as a fraction of the run", "1", (("probe_fraction",),)),
    "ending": Variable("what is done with the last updates", "1", (("ending",),), "str"),
    "length": Variable("updates of the cooldown or of the averaging window", "1", (("length",),), "i8"),
}

VARIABLES: dict[str, Variable] = {
    # Analytic valleys: simulated, and exact beside it; see also below.
    "loss": Variable("loss of the state, without gradient noise", "1", _RUNS),
    "river": Variable("river component of the loss: loss of the state's projection onto the river", "1", _RUNS),
    "hill": Variable("hill component of the loss: loss minus river component", "1", _RUNS),
    "curvature": Variable("curvature of the hill direction", "1", (("mode",),)),
    # Bigram languages: excess is the loss in a context minus the entropy of its next token.
    "context_excess": Variable("excess loss per occurrence of the context", "nat", _CONTEXT_RUNS),
    "context_continued": Variable(
        "excess loss where the rate stays as before the last cooldown, on the same batches", "nat", _CONTEXT_RUNS
    ),
    "context_expected": Variable(
        "excess loss of training without noise plus the linear theory of its noise", "nat", (("context", "eval_step"),)
    ),
    "context_frequency": Variable("probability of the context", "1", (("context",),)),
    "context_gini": Variable("Gini impurity of the next token: trace of its Hessian", "1", (("context",),)),
    "context_entropy": Variable("entropy of the next token", "nat", (("context",),)),
    "context_sharpness": Variable("largest curvature of the loss in the context, at the optimum", "1", (("context",),)),
    # Predictions of the theory, one row for each number.
    "prediction_quantity": Variable("what is predicted and measured", "1", (("prediction",),), "str"),
    "prediction_statement": Variable("the prediction in words", "1", (("prediction",),), "str"),
    "prediction_source": Variable("where the prediction comes from", "1", (("prediction",),), "str"),
    "prediction_relation": Variable("how measured relates to theory if it holds", "1", (("prediction",),), "str"),
    "prediction_theory": Variable("value by the theory, or bound", "1", (("prediction",),)),
    "prediction_measured": Variable("measured value", "1", (("prediction",),)),
    "prediction_error": Variable("standard error of the measured value, 0 if not random", "1", (("prediction",),)),
    "prediction_allowance": Variable("deviation allowed besides, fixed beforehand", "1", (("prediction",),)),
    "prediction_z": Variable("deviation in standard errors, nan if not random", "1", (("prediction",),)),
    "prediction_verdict": Variable("verdict by the rule fixed beforehand", "1", (("prediction",),), "str"),
    "prediction_must_fail": Variable("1 where the theory says that the statement fails", "1", (("prediction",),), "i1"),
    # Studies: means over replicates with their standard errors, and the theory beside them.
    "path_x": Variable("river coordinate of one replicate", "1", (("eval_step",),)),
    "path_y": Variable("hill coordinate of one replicate", "1", (("eval_step",),)),
    "path_loss": Variable("loss of one replicate", "1", (("eval_step",),)),
    "path_river": Variable("river component of the loss of one replicate", "1", (("eval_step",),)),
    "path_hill": Variable("hill component of the loss of one replicate", "1", (("eval_step",),)),
    "surface_y": Variable("hill coordinate of the surface", "1", _SURFACE),
    "surface_loss": Variable("loss of the surface", "1", _SURFACE),
    "loss_quantile": Variable("quantile of the loss over replicates", "1", (("quantile", "eval_step"),)),
    "river_quantile": Variable("quantile of the river component over replicates", "1", (("quantile", "eval_step"),)),
    "hill_quantile": Variable("quantile of the hill component over replicates", "1", (("quantile", "eval_step"),)),
    "mean_loss": Variable("mean loss over replicates", "1", _CURVES),
    "mean_loss_error": Variable("standard error of the mean loss", "1", _CURVES),
    "mean_river": Variable("mean river component over replicates", "1", _CURVES),
    "mean_river_error": Variable("standard error of the mean river component", "1", _CURVES),
    "mean_hill": Variable("mean hill component over replicates", "1", _CURVES),
    "mean_hill_error": Variable("standard error of the mean hill component", "1", _CURVES),
    "expected_loss": Variable("expected loss by theory", "1", _CURVES),
    "expected_river": Variable("expected river component by theory", "1", _CURVES),
    "expected_hill": Variable("expected hill component by theory", "1", _CURVES),
    "mean_distance": Variable("mean distance travelled along the river", "1", (("rate", "eval_step"),)),
    "mean_distance_error": Variable("standard error of the mean distance", "1", (("rate", "eval_step"),)),
    "expected_distance": Variable("distance by theory", "1", (("rate", "eval_step"),)),
    "speed": Variable("mean progress along the river in one update", "1", (("rate",),)),
    "speed_error": Variable("standard error of the speed", "1", (("rate",),)),
    "expected_speed": Variable("speed by theory, hills at their balance at every place", "1", (("rate",),)),
    "leading_speed": Variable("speed by theory, to leading order in the rate", "1", (("rate",),)),
    "straight_speed": Variable("speed by theory in a valley of constant width", "1", (("rate",),)),
    "plan_lr": Variable("rate of the update that follows the state, nan after the last", "1", (("plan", "eval_step"),)),
    "family_updates": Variable(
        "updates that all checkpoints cost together, shared parts once", "1", (("accounting", "family"),), "i8"
    ),
    "checkpoint_updates": Variable("updates on the path to the checkpoint", "1", _CHECKPOINTS, "i8"),
    "checkpoint_loss": Variable("mean loss of the checkpoint", "1", _CHECKPOINTS),
    "checkpoint_loss_error": Variable("standard error of the checkpoint's loss", "1", _CHECKPOINTS),
    "checkpoint_expected": Variable("expected loss of the checkpoint by the exact recursion", "1", _CHECKPOINTS),
    "gap": Variable("loss of the checkpoint minus that of the reference", "1", _CHECKPOINTS),
    "gap_error": Variable("standard error of the gap, of paired runs", "1", _CHECKPOINTS),
    "expected_gap": Variable("expected gap by the exact recursion", "1", _CHECKPOINTS),
    "hill_ratio": Variable(
        "hill loss after the cooldown over that before it", "1", (("floor", "decay", "probe_relaxations"),)
    ),
    "hill_ratio_error": Variable(
        "standard error of the ratio of hill losses", "1", (("floor", "decay", "probe_relaxations"),)
    ),
    "expected_hill_ratio": Variable(
        "ratio of hill losses by theory, in the limit of small rates", "1", (("floor", "decay", "relaxations"),)
    ),
    "crossing_at": Variable("length in relaxation times at which two shapes change order", "1", (("crossing",),)),
    "crossing_floor": Variable("floor at which they do", "1", (("crossing",),)),
    "crossing_ratio": Variable("ratio of hill losses there", "1", (("crossing",),)),
    "exact_hill_ratio": Variable(
        "the same by the exact recursion at the simulated rate", "1", (("floor", "decay", "probe_relaxations"),)
    ),
    "final_loss": Variable("mean loss at the end of the run", "1", _FINAL),
    "final_loss_error": Variable("standard error of the final loss", "1", _FINAL),
    "expected_final_loss": Variable("expected final loss by the exact recursion", "1", _FINAL),
    "crossing_time": Variable("updates after which larger rates have lower losses, to leading order", "1", ((),)),
    "crossing_time_exact": Variable("the same for the smallest and the largest rate, exactly", "1", ((),)),
    "crossing_time_found": Variable("the same, simulated", "1", ((),)),
    "crossing_time_error": Variable("standard error of the simulated crossing", "1", ((),)),
    "fastest_rate": Variable("rate of the fastest progress by theory, to leading order", "1", ((),)),
    "excess": Variable(
        "loss above that of the best optimal cooldown, as a part of what that gains over none",
        "1",
        (("valley", "probe_fraction"),),
    ),
    "excess_error": Variable("standard error of the excess", "1", (("valley", "probe_fraction"),)),
    "expected_excess": Variable("excess by theory", "1", (("valley", "decay", "fraction"),)),
    "best_fraction": Variable("best fraction for the optimal decay, by theory", "1", (("valley",),)),
    "final_hill": Variable("mean hill loss in the end", "1", _ENDINGS),
    "final_hill_error": Variable("standard error of the final hill loss", "1", _ENDINGS),
    "expected_final_hill": Variable("expected final hill loss by theory", "1", _ENDINGS),
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

# The same of the average of the iterates, and the exact expectations and standard deviations of both.
_PARTS = {"loss": "loss", "river": "river component of the loss", "hill": "hill component of the loss"}
for _of, _whose in (("", ""), ("average_", " of the average of the iterates")):
    for _name, _part in _PARTS.items():
        _words = _part + _whose
        if _of:
            VARIABLES[_of + _name] = Variable(_words, "1", _RUNS)
        VARIABLES[f"exact_{_of}{_name}"] = Variable(f"expected {_words}, exact", "1", (("eval_step",),))
        VARIABLES[f"exact_{_of}{_name}_std"] = Variable(
            f"exact standard deviation of the {_words} over replicates", "1", (("eval_step",),)
        )


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
            cast = array.astype(spec.dtype, copy=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name!r} must be of type {spec.dtype}: {error}") from error
    if cast is not array and spec.dtype.startswith("i") and not np.array_equal(cast, array):
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
