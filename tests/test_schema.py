"""The schema: what a dataset may hold, and that every problem is named."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import xarray as xr

from riverval import schema
from riverval.errors import InputError, StoreError
from riverval.provenance import provenance
from riverval.schema import (
    ATTRS,
    COMPANIONS,
    COORDS,
    SOURCES,
    STATUSES,
    VARIABLES,
    Variable,
    attrs_of,
    build,
    declare,
    declared,
    validate,
)


@pytest.fixture
def ds():
    """A small valid dataset."""
    steps = np.arange(4)
    values = {"step": steps, "lr": steps + 1.0, "phase": [0, 1, 1, 2], "train_loss": 1.0 / (steps + 1)}
    out = build({**values, "eval_step": [0, 4], "loss": [2.0, 1.0], "diverged": False}, {}, "toy")
    return out.assign_attrs(provenance("a test", config={"steps": 4}, seed=1))


def test_a_built_dataset_is_valid(ds):
    assert validate(ds) is ds


@pytest.mark.parametrize("name", [*COORDS, *VARIABLES])
def test_every_name_is_described(name):
    spec = COORDS.get(name) or VARIABLES[name]
    assert spec.long_name
    assert spec.long_name[-1] != "."
    assert spec.units
    assert spec.dims
    assert spec.dtype in schema.DTYPES
    assert all(axis in COORDS for axes in spec.dims for axis in axes)
    assert attrs_of(name)["long_name"] == spec.long_name


def test_names_are_either_coordinates_or_variables():
    assert not set(COORDS) & set(VARIABLES)


def test_phase_explains_its_codes():
    told = attrs_of("phase")
    assert told["flag_values"].tolist() == [0, 1, 2]
    assert told["flag_meanings"] == "warmup stable cooldown"


@pytest.mark.parametrize("name", [*COORDS, *VARIABLES])
def test_every_name_can_be_built_in_each_of_its_forms(name):
    spec = COORDS.get(name) or VARIABLES[name]
    for axes in spec.dims:
        text = np.full((2,) * len(axes), "toy")
        values = {axis: ["a", "b"] if COORDS[axis].dtype == "str" else [0, 1] for axis in axes}
        values.setdefault(name, text if spec.dtype == "str" else np.ones((2,) * len(axes), dtype=spec.dtype))
        for beside in (n for axis in axes for n in COMPANIONS.get(axis, ())):
            values.setdefault(beside, [0, 1])
        built = build(values, {name: axes}, "toy").assign_attrs(provenance("t", config={}, seed=0))
        validate(built)
        assert built[name].dims == axes
        assert built[name].attrs["units"] == spec.units


def test_dimensions_are_found_by_their_number_or_given():
    one = build({"eval_step": [0, 1], "loss": [1.0, 2.0]}, {}, "toy")
    two = build({"replicate": [0], "eval_step": [0, 1], "loss": [[1.0, 2.0]]}, {}, "toy")
    assert one["loss"].dims == ("eval_step",)
    assert two["loss"].dims == ("replicate", "eval_step")
    given = build({"eval_step": [0], "loss": [1.0]}, {"loss": ("eval_step",)}, "toy")
    assert given["loss"].dims == ("eval_step",)


BAD_VALUES = {
    "unknown name": ({"losss": [1.0]}, r"'losss' is not in the schema. Did you mean 'loss'\?"),
    "too many dimensions": ({"step": [[0]]}, r"'step' has 2 dimensions; the schema allows \(step\)"),
    "lengths differ": ({"step": [0, 1], "lr": [1.0]}, "conflicting sizes"),
    "text for a number": ({"step": [0], "lr": ["high"]}, "'lr' must be of type f8"),
    "ragged": ({"step": [0, 1], "lr": [[1.0], [1.0, 2.0]]}, "'lr' must be of type f8"),
    "fraction for a whole number": ({"step": [0.5]}, "'step' must be whole numbers"),
    "nan for a whole number": ({"step": [np.nan]}, "'step' must be whole numbers"),
    "too large for its type": ({"step": [0], "phase": [300]}, "'phase' must be"),
}


@pytest.mark.parametrize(("values", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values_are_refused(values, message):
    with pytest.raises(StoreError, match=message):
        build(values, {}, "toy")


def drop_attr(name):
    return lambda ds: (
        ds.assign_attrs({}).drop_attrs(deep=False).assign_attrs({k: v for k, v in ds.attrs.items() if k != name})
    )


PROBLEMS = {
    **{f"no {a}": (drop_attr(a), f"attribute '{a}' is missing") for a in ATTRS},
    "newer schema": (lambda ds: ds.assign_attrs(schema_version="2"), "schema version is 2, this riverval reads 1"),
    "unknown status": (lambda ds: ds.assign_attrs(status="done"), "status is 'done', allowed: running, complete"),
    "dict attribute": (lambda ds: ds.assign_attrs(config={}), "attribute 'config' must be text, got {}"),
    "bool attribute": (lambda ds: ds.assign_attrs(git_dirty=True), "attribute 'git_dirty' must be text, got True"),
    "none attribute": (lambda ds: ds.assign_attrs(extra=None), "attribute 'extra' must be text, got None"),
    "no source": (lambda ds: ds.drop_vars("source"), "coordinate 'source' is missing"),
    "unknown source": (lambda ds: ds.assign_coords(source="guess"), "source is 'guess', allowed: theory, toy, real"),
    "source by step": (
        lambda ds: ds.assign_coords(source=("step", ["toy"] * 4)),
        r"'source' has dimensions \('step',\)",
    ),
    "unknown variable": (lambda ds: ds.assign(extra=1.0), "'extra' is not in the schema"),
    "variable as coordinate": (lambda ds: ds.set_coords("train_loss"), "'train_loss' is not in the schema"),
    "other dimensions": (
        lambda ds: ds.assign(val_loss=ds["train_loss"]),
        r"'val_loss' has dimensions \('step',\), allowed: \(eval_step\)",
    ),
    "other type": (lambda ds: ds.assign(train_loss=ds["train_loss"].astype(str)), "'train_loss' is of type <U32"),
    "float for whole": (lambda ds: ds.assign_coords(phase=ds["phase"].astype(float)), "'phase' is of type float64"),
    "no units": (
        lambda ds: ds.assign(loss=("eval_step", [1.0, 2.0])),
        "'loss' lacks 'units'; 'loss' lacks 'long_name'",
    ),
    "dimension without coordinate": (lambda ds: ds.drop_vars("eval_step"), "dimension 'eval_step' has no coordinate"),
}


@pytest.mark.parametrize(("spoil", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_each_problem_is_named(ds, spoil, message):
    with pytest.raises(StoreError, match="^not a riverval dataset: .*" + message):
        validate(spoil(ds))


def test_every_problem_is_named_at_once(ds):
    spoilt = ds.drop_vars(["source", "eval_step"]).assign(extra=1.0)
    del spoilt.attrs["seed"]
    with pytest.raises(StoreError) as caught:
        validate(spoilt)
    for part in ("'seed' is missing", "'source' is missing", "'extra'", "'eval_step' has no coordinate"):
        assert part in str(caught.value)


def test_an_empty_dataset_has_all_the_problems():
    with pytest.raises(StoreError) as caught:
        validate(xr.Dataset())
    assert len(re.findall("is missing", str(caught.value))) == len(ATTRS) + 1


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("status", STATUSES)
def test_sources_and_statuses(ds, source, status):
    validate(ds.assign_coords(source=((), source, attrs_of("source"))).assign_attrs(status=status))


def test_version_is_text():
    assert isinstance(schema.SCHEMA_VERSION, str)


# --- variables that a dataset declares itself -------------------------------------------------------------------------
OWN = {
    "layer": Variable("layer of the network", "1", (("layer",),), "str"),
    "layer_norm": Variable("norm of the layer's gradient", "1", (("step", "layer"),)),
}


def with_own(ds, attribute=None):
    own = build(
        {**{n: ds[n].values for n in ("step", "lr", "phase")}, "layer": ["in", "out"], "layer_norm": np.ones((4, 2))},
        {}, "toy", OWN,
    )  # fmt: skip
    return own.assign_attrs(ds.attrs, own_variables=declare(OWN) if attribute is None else attribute)


def test_own_variables_are_valid_where_they_are_declared(ds):
    own = with_own(ds)
    assert validate(own) is own
    assert set(own.coords) >= {"layer"}
    assert own["layer_norm"].attrs["long_name"] == OWN["layer_norm"].long_name
    assert declared(own.attrs) == OWN


def test_own_variables_are_refused_where_they_are_not_declared(ds):
    own = with_own(ds)
    del own.attrs["own_variables"]
    with pytest.raises(StoreError, match="'layer_norm' is not in the schema"):
        validate(own)
    with pytest.raises(StoreError, match="'layer_norm' is not in the schema"):
        build({"layer_norm": 1.0}, {}, "toy")


def test_own_variables_keep_to_their_declaration(ds):
    own = with_own(ds)
    with pytest.raises(StoreError, match=r"'layer_norm' has dimensions \('step',\), allowed: \(step, layer\)"):
        validate(own.assign(layer_norm=own["lr"].drop_vars(["lr", "phase"]).assign_attrs(own["layer_norm"].attrs)))


BAD_OWN = {
    "meaning of the schema": ({"loss": Variable("something else", "1", (("step",),))}, "means something else"),
    "no plain name": ({"a b": Variable("x", "1", (("step",),))}, "not a plain name"),
    "no meaning": ({"a": Variable("", "1", (("step",),))}, "needs a long_name"),
    "no dimensions": ({"a": Variable("x", "1", ())}, "needs a long_name, units .* and dims"),
    "no type": ({"a": Variable("x", "1", (("step",),), "complex")}, "is of type 'complex'; choose one of: f8"),
    "no coordinate": ({"a": Variable("x", "1", (("shelf",),))}, "dimension 'shelf', which has no coordinate"),
}


@pytest.mark.parametrize(("own", "message"), BAD_OWN.values(), ids=BAD_OWN)
def test_declarations_are_checked_on_both_sides(ds, own, message):
    with pytest.raises(InputError, match=message):
        declare(own)
    described = json.dumps({name: dataclasses.asdict(spec) for name, spec in own.items()})
    with pytest.raises(StoreError, match="'own_variables': .*" + message):
        validate(ds.assign_attrs(own_variables=described))


@pytest.mark.parametrize("attribute", ["", "[]", "{", '{"a": 1}', '{"a": {"dims": 1}}'])
def test_a_declaration_that_cannot_be_read_is_named(ds, attribute):
    with pytest.raises(StoreError, match="'own_variables' does not describe variables"):
        validate(ds.assign_attrs(own_variables=attribute))


def test_what_the_schema_has_may_be_declared_again(ds):
    validate(ds.assign_attrs(own_variables=declare({"loss": VARIABLES["loss"]})))


def test_codes_explain_themselves():
    told = attrs_of("probe_status")
    assert told["flag_meanings"].split() == list(schema.PROBE_STATUSES)
    assert told["flag_values"].tolist() == list(range(len(schema.PROBE_STATUSES)))
