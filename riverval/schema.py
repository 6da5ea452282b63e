"""The one Dataset form of theory, toy and real runs: every stored name with its dimensions, units and meaning.

Two step axes, by the convention of `riverval.schedules`: `step` numbers updates t = 0..T-1 and carries what belongs
to an update; `eval_step` and `probe_step` number states 0..T (state t is reached by t updates) and carry what belongs
to a state. Sparse measurements have their own axis rather than holes in a dense one.

A dataset may hold variables of its own, which it then declares in the attribute `own_variables` (`Variable` as JSON by
name): a measurement that its user added validates anywhere, without the code that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Number
from typing import Any

import numpy as np
import xarray as xr

from ._checks import suggest
from ._variables import COORDS as COORDS
from ._variables import VARIABLES as VARIABLES
from ._variables import Variable as Variable
from .errors import InputError, StoreError
from .segments import PHASES

SCHEMA_VERSION = "1"
SOURCES = ("theory", "toy", "real")
STATUSES = ("running", "complete", "interrupted", "diverged")
# What became of a diagnostic at a probed state. Unfinished: the run ended before the update that it was waiting for;
# unavailable: the state had not what it needs, e.g. an optimizer before its first update no preconditioner.
PROBE_STATUSES = ("not_due", "measured", "over_budget", "failed", "unfinished", "unavailable")
DTYPES = ("f8", "i8", "i1", "str")


# Attributes every dataset carries: flat strings, `config` and `versions` as JSON.
ATTRS = (
    "title", "schema_version", "status", "riverval_version", "created", "command", "git_commit", "git_dirty",
    "versions", "seed", "config",
)  # fmt: skip


JSON_ATTRS = ("versions", "config", "measured_by")

# What readers may rely on: where there is a dimension, there is this too.
COMPANIONS = {"step": ("lr", "phase"), "replicate": ("diverged",)}

# Names of the codes 0, 1, ... of a variable.
FLAGS = {"phase": PHASES, "probe_status": PROBE_STATUSES}


def spec_of(name: str, own: Mapping[str, Variable] | None = None) -> Variable | None:
    """What a name means in the schema, or among `own`; None where in neither."""
    return COORDS.get(name) or VARIABLES.get(name) or (own or {}).get(name)


def attrs_of(name: str, own: Mapping[str, Variable] | None = None) -> dict[str, Any]:
    """`long_name`, `units` and, for codes such as those of `phase`, the CF flags of a stored name."""
    spec = spec_of(name, own)
    if spec is None:
        raise KeyError(name)
    out: dict[str, Any] = {"long_name": spec.long_name, "units": spec.units}
    if name in FLAGS:
        out["flag_values"] = np.arange(len(FLAGS[name]), dtype=np.int8)
        out["flag_meanings"] = " ".join(FLAGS[name])
    return out


def declare(own: Mapping[str, Variable]) -> str:
    """The attribute `own_variables` for a dataset that holds `own` beside the names of the schema.

    Raises:
        InputError: a name that is no identifier or that the schema has with another meaning, an empty description, an
            unknown type, or a dimension that is neither in the schema nor among `own`.

    >>> declare({"kurtosis": Variable("kurtosis of the gradient", "1", (("probe_step",),))})
    '{"kurtosis": {"long_name": "kurtosis of the gradient", "units": "1", "dims": [["probe_step"]], "dtype": "f8"}}'
    """
    for name, spec in own.items():
        problems = _declared_problems(name, spec, own)
        if problems:
            raise InputError(f"cannot store {name!r}: {'; '.join(problems)}")
    return json.dumps({name: asdict(spec) for name, spec in own.items()})


def declared(attrs: Mapping[str, Any]) -> dict[str, Variable]:
    """The variables that the attribute `own_variables` declares; none where it is missing.

    Raises:
        StoreError: it cannot be read, or declares what `declare` refuses.
    """
    try:
        found = {
            str(name): Variable(
                str(spec["long_name"]), str(spec["units"]), tuple(tuple(map(str, d)) for d in spec["dims"]),
                str(spec["dtype"]),
            )
            for name, spec in json.loads(attrs.get("own_variables", "{}")).items()
        }  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError("attribute 'own_variables' does not describe variables") from error
    problems = [p for name, spec in found.items() for p in _declared_problems(name, spec, found)]
    if problems:
        raise StoreError("attribute 'own_variables': " + "; ".join(problems))
    return found


def is_coordinate(name: str, spec: Variable) -> bool:
    """Whether an own variable is the coordinate of a dimension: the one that has its name."""
    return spec.dims == ((name,),)


def _declared_problems(name: str, spec: Variable, own: Mapping[str, Variable]) -> list[str]:
    problems = [] if name.isidentifier() else [f"{name!r} is not a plain name"]
    known = COORDS.get(name) or VARIABLES.get(name)
    if known is not None and known != spec:
        problems.append(f"{name!r} means something else in the schema ({known.long_name})")
    if not (spec.long_name and spec.units and spec.dims):
        problems.append(f"{name!r} needs a long_name, units (1 where it has none) and dims")
    if spec.dtype not in DTYPES:
        problems.append(f"{name!r} is of type {spec.dtype!r}; choose one of: {', '.join(DTYPES)}")
    axes = {axis for dims in spec.dims for axis in dims}
    unknown = sorted(a for a in axes if a not in COORDS and not (a in own and is_coordinate(a, own[a])))
    return problems + [f"{name!r} has the dimension {a!r}, which has no coordinate" for a in unknown]


def build(
    values: Mapping[str, Any],
    dims: Mapping[str, tuple[str, ...]],
    source: str,
    own: Mapping[str, Variable] | None = None,
) -> xr.Dataset:
    """A Dataset in the schema from plain arrays.

    Args:
        values: array (or scalar) by stored name; coordinates and variables alike.
        dims: dimensions by name, needed only where the schema allows several.
        source: theory, toy or real.
        own: meaning of names that are not in the schema; the dataset must declare them (see `declare`).

    Raises:
        StoreError: a name or shape that neither the schema nor `own` knows.
    """
    own = own or {}
    coords: dict[str, Any] = {"source": ((), source, attrs_of("source"))}
    data: dict[str, Any] = {}
    for name, value in values.items():
        spec = spec_of(name, own)
        if spec is None:
            raise StoreError(f"{name!r} is not in the schema.{suggest(name, [*COORDS, *VARIABLES, *own])}")
        array = _cast(name, value, spec)
        axes = dims.get(name) or next((d for d in spec.dims if len(d) == array.ndim), None)
        if axes is None or len(axes) != array.ndim:
            raise StoreError(f"{name!r} has {array.ndim} dimensions; the schema allows {_told(spec.dims)}")
        beside = coords if name in COORDS or is_coordinate(name, spec) else data
        beside[name] = (axes, array, attrs_of(name, own))
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
    try:
        own = declared(ds.attrs)
    except StoreError as error:
        own = {}
        problems.append(str(error))
    coords = COORDS | {name: spec for name, spec in own.items() if is_coordinate(name, spec)}
    data = VARIABLES | {name: spec for name, spec in own.items() if name not in coords}
    for name, array in ds.variables.items():
        problems += _problems(str(name), array, coords if name in ds.coords else data)
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
