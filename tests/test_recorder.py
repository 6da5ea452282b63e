"""The recorder: its mirror is a whole dataset at any moment, whatever happens to the process."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from riverval import store
from riverval.errors import StoreError
from riverval.provenance import provenance
from riverval.recorder import Recorder
from riverval.schema import Variable, declare

ATTRS = provenance("a run", config={"steps": 9}, seed=1, status="running")


def step(t):
    return {"step": t, "lr": 0.5, "phase": 1, "train_loss": 1.0 / (t + 1)}


def state(t):
    return {"eval_step": t, "val_loss": 2.0 / (t + 1)}


def same(recorder, path):
    """The mirror holds what the recorder holds."""
    xr.testing.assert_identical(store.load(path).drop_attrs(deep=False), recorder.dataset())


def test_records_come_back_in_order(tmp_path):
    with Recorder(tmp_path / "run.nc", ATTRS, "real", interval=0) as recorder:
        for t in range(5):
            recorder.append("step", **step(t))
            if t % 2:
                recorder.append("eval_step", **state(t))
    loaded = store.load(tmp_path / "run.nc")
    assert loaded["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert loaded["eval_step"].values.tolist() == [1, 3]
    np.testing.assert_array_equal(loaded["train_loss"], 1 / (np.arange(5) + 1))
    assert loaded.attrs == ATTRS
    same(recorder, tmp_path / "run.nc")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    events=st.lists(st.sampled_from(["step", "eval_step", "flush"]), max_size=12), interval=st.sampled_from([0, 1e9])
)
def test_the_mirror_is_the_dataset_after_every_flush(tmp_path, events, interval):
    path = tmp_path / "run.nc"
    counts = {"step": 0, "eval_step": 0}
    with Recorder(path, ATTRS, "real", interval=interval) as recorder:
        for event in events:
            if event == "flush":
                recorder.flush()
                same(recorder, path)
            else:
                recorder.append(event, **(step if event == "step" else state)(counts[event]))
                counts[event] += 1
                if interval == 0:
                    same(recorder, path)
    same(recorder, path)


def test_a_new_mirror_is_a_valid_dataset_before_the_first_record(tmp_path):
    with Recorder(tmp_path / "run.nc", ATTRS, "toy") as recorder:
        same(recorder, tmp_path / "run.nc")


def test_a_mirror_of_states_alone_is_a_valid_dataset(tmp_path):
    with Recorder(tmp_path / "run.nc", ATTRS, "real", interval=0) as recorder:
        recorder.append("eval_step", **state(0))
        same(recorder, tmp_path / "run.nc")


def test_a_mirror_can_be_saved_as_a_run(tmp_path):
    with Recorder(tmp_path / "run.partial.nc", ATTRS, "real", interval=0) as recorder:
        for t in range(3):
            recorder.append("step", **step(t))
    saved = store.save(store.load(tmp_path).assign_attrs(status="interrupted"), tmp_path / "run.nc")
    assert store.load(saved).attrs["status"] == "interrupted"


def test_without_a_path_records_stay_in_memory(tmp_path):
    recorder = Recorder(None, {}, "toy")
    recorder.append("step", **step(0))
    recorder.flush()
    recorder.close()
    recorder.remove()
    assert recorder.dataset()["lr"].values.tolist() == [0.5]
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_kept(tmp_path):
    with Recorder(tmp_path / "run.nc", ATTRS, "real", interval=0) as recorder:
        for loss in (1.0, np.inf, np.nan, -np.inf):
            recorder.append("step", **{**step(len(recorder.records.get("step", []))), "train_loss": loss})
    np.testing.assert_array_equal(store.load(tmp_path / "run.nc")["train_loss"], [1.0, np.inf, np.nan, -np.inf])


def test_remove_deletes_the_mirror_and_keeps_the_records(tmp_path):
    recorder = Recorder(tmp_path / "run.nc", ATTRS, "real")
    recorder.append("step", **step(0))
    recorder.remove()
    recorder.close()
    assert list(tmp_path.iterdir()) == []
    assert recorder.dataset().sizes == {"step": 1}


def test_the_mirror_is_written_at_most_once_an_interval(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Recorder(tmp_path / "run.nc", ATTRS, "real", interval=5.0) as recorder:
        recorder.append("step", **step(0))
        for t in (1, 2):
            now[0] += 2.0
            recorder.append("step", **step(t))
        assert store.load(tmp_path / "run.nc").sizes["step"] == 1
        now[0] += 1.0
        recorder.append("step", **step(3))
        assert store.load(tmp_path / "run.nc").sizes["step"] == 4


BAD = {
    "unknown name": ({"step": 0, "train_los": 1.0}, "'train_los' is not in the schema with dimension 'step'"),
    "name of another axis": ({"step": 0, "val_loss": 1.0}, "'val_loss' is not in the schema with dimension 'step'"),
    "without its number": ({"train_loss": 1.0}, "must hold 'step' itself, got train_loss"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("mirrored", [True, False])
def test_a_record_outside_the_schema_is_refused_at_once(tmp_path, values, message, mirrored):
    with Recorder(tmp_path / "run.nc" if mirrored else None, ATTRS, "real", interval=0) as recorder:
        with pytest.raises(StoreError, match=message):
            recorder.append("step", **values)
        recorder.append("step", **step(0))
    assert recorder.dataset().sizes == {"step": 1}


@pytest.mark.parametrize(
    "other", [{"step": 1}, {**step(1), "grad_norm": 1.0}, state(1)], ids=["fewer", "more", "other"]
)
def test_records_of_one_axis_hold_the_same_names(other):
    recorder = Recorder(None, {}, "real")
    recorder.append("step", **step(0))
    with pytest.raises(StoreError, match="records of 'step' hold step, lr, phase, train_loss, got one with"):
        recorder.append("step", **other)
    assert recorder.dataset().sizes == {"step": 1}


@pytest.mark.parametrize("blocked", ["folder missing", "file in the way", "folder in the way"])
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, blocked):
    path = tmp_path / "place" / "run.nc"
    if blocked == "file in the way":
        path.parent.write_text("")
    elif blocked == "folder in the way":
        path.mkdir(parents=True)
    with pytest.raises(StoreError, match=r"cannot write .*run\.nc"):
        Recorder(path, ATTRS, "real")


# --- several records at once, arrays, own variables -------------------------------------------------------------------
COORDS = {"rank": [0, 1, 2], "diagnostic": ["sharpness", "trace"]}
OWN = {"spread": Variable("spread of the entries", "1", (("probe_step",),))}
OWN_ATTRS = {**ATTRS, "own_variables": declare(OWN)}


def probe(t):
    values = {"hessian_eigenvalue": np.array([3.0, 2.0, 1.0]) + t, "probe_seconds": [0.5, np.nan]}
    return {"probe_step": t, "probe_status": [1, 2], "hessian_top": 3.0 + t, "spread": 0.1 * t, **values}


def arrays(path, interval=1e9):
    return Recorder(path, OWN_ATTRS, "real", interval, coords=COORDS, own=OWN)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(events=st.lists(st.sampled_from(["one", "three", "none", "flush"]), max_size=10))
def test_arrays_and_columns_are_mirrored(tmp_path, events):
    path, t = tmp_path / "run.nc", 0
    with arrays(path) as recorder:
        for event in events:
            if event == "one":
                recorder.append("probe_step", **probe(t))
                t += 1
            elif event == "flush":
                recorder.flush()
                same(recorder, path)
            else:
                rows = [probe(t + k) for k in range(3 if event == "three" else 0)]
                recorder.extend("probe_step", **{name: [row[name] for row in rows] for name in probe(0)})
                t += len(rows)
    same(recorder, path)
    ds = recorder.dataset()
    assert ds.sizes.get("probe_step", 0) == t
    if t:
        assert ds["hessian_eigenvalue"].dims == ("probe_step", "rank")
        np.testing.assert_array_equal(ds["hessian_eigenvalue"][:, 1], 2.0 + np.arange(t))
        np.testing.assert_array_equal(ds["spread"], 0.1 * np.arange(t))
        assert ds["probe_status"].values[-1].tolist() == [1, 2]
        assert ds["diagnostic"].values.tolist() == COORDS["diagnostic"]


BAD_ARRAYS = {
    "other length": (
        {"hessian_eigenvalue": [1.0, 2.0]},
        r"'hessian_eigenvalue' must have shape \(3,\) \('rank',\), got \(2,\)",
    ),
    "number for an array": (
        {"probe_seconds": 1.0},
        r"'probe_seconds' must have shape \(2,\) \('diagnostic',\), got \(\)",
    ),
    "array for a number": ({"hessian_top": [1.0]}, r"'hessian_top' must have shape \(\) \(\), got \(1,\)"),
}


@pytest.mark.parametrize(("wrong", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
@pytest.mark.parametrize("first", [True, False])
def test_arrays_of_another_shape_are_refused(wrong, message, first):
    recorder = arrays(None)
    if not first:
        recorder.append("probe_step", **probe(0))
    with pytest.raises(StoreError, match=message):
        recorder.append("probe_step", **{**probe(1), **wrong})
    assert recorder.dataset().sizes.get("probe_step", 0) == (not first)


def test_an_array_needs_its_coordinate():
    with pytest.raises(StoreError, match="'hessian_eigenvalue' is not in the schema with dimension 'probe_step'"):
        Recorder(None, {}, "real").append("probe_step", probe_step=0, hessian_eigenvalue=[1.0])


def test_columns_have_one_length():
    with pytest.raises(StoreError, match=r"columns of one length, got \[1, 2\]"):
        Recorder(None, {}, "real").extend("eval_step", eval_step=[0, 1], val_loss=[1.0])


def test_coordinates_outside_the_schema_are_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(StoreError, match="'shelf' is not in the schema"):
        Recorder(tmp_path / "run.nc", ATTRS, "real", coords={"shelf": [1]})
    assert list(tmp_path.iterdir()) == []


def test_attributes_change_with_the_next_write(tmp_path):
    with Recorder(tmp_path / "run.nc", ATTRS, "real", interval=1e9) as recorder:
        recorder.describe(notes="one failed")
        assert "notes" not in store.load(tmp_path / "run.nc").attrs
        recorder.flush()
        assert store.load(tmp_path / "run.nc").attrs["notes"] == "one failed"


KILLED = """
import os, pathlib, random, signal, sys, time
from riverval.provenance import provenance
from riverval.recorder import Recorder

def write(path, ready):
    attrs = provenance("killed", config={}, seed=0, status="running")
    recorder = Recorder(path, attrs, "real", interval=0)
    for t in range(100_000):
        recorder.append("step", step=t, lr=0.5, phase=1, train_loss=1.0 / (t + 1))
        if t % 7 == 0:
            recorder.append("eval_step", eval_step=t, val_loss=2.0 / (t + 1))
        if t == 0:
            os.write(ready, b"x")

moments = random.Random(1)
for path in sys.argv[1:]:
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        write(pathlib.Path(path), tell)
    os.read(ready, 1)
    time.sleep(moments.uniform(0.0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_mirror_is_readable_after_a_kill_at_any_moment(tmp_path):
    """Interval 0 writes without pause, so nearly every kill strikes a write."""
    paths = [tmp_path / f"{k}.nc" for k in range(8)]
    subprocess.run([sys.executable, "-c", KILLED, *paths], check=True)
    lengths = set()
    for path in paths:
        loaded = store.load(path)
        t = loaded["step"].values
        lengths.add(len(t))
        assert loaded.attrs["status"] == "running"
        np.testing.assert_array_equal(t, np.arange(len(t)))
        np.testing.assert_array_equal(loaded["train_loss"], 1 / (t + 1))
        np.testing.assert_array_equal(loaded["val_loss"], 2 / (loaded["eval_step"].values + 1))
    assert 0 not in lengths
    assert len(lengths) > 2


def test_the_mirror_can_be_read_by_others_while_the_run_goes_on(tmp_path):
    """HDF5 locks a file that is open for writing, so between writes it must not be."""
    path = tmp_path / "run.nc"
    with Recorder(path, ATTRS, "real", interval=0) as recorder:
        for t in range(2):
            recorder.append("step", **step(t))
            read = "import sys; from riverval.store import load; print(load(sys.argv[1]).sizes['step'])"
            done = subprocess.run([sys.executable, "-c", read, path], capture_output=True, text=True)
            assert done.stdout.strip() == str(t + 1), done.stderr


FULL_DISK = """
import pathlib, resource, signal, sys
from riverval.errors import StoreError
from riverval.provenance import provenance
from riverval.recorder import Recorder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
attrs = provenance("full", config={}, seed=0, status="running")
recorder = Recorder(pathlib.Path(sys.argv[1]), attrs, "real", interval=0.02)
try:
    for t in range(100_000):
        recorder.append("step", step=t, lr=0.5, phase=1, train_loss=1.0)
except StoreError as error:
    print(error, len(recorder.dataset()["step"]) == t + 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_full_disk_is_a_store_error_and_memory_keeps_the_records(tmp_path):
    path = tmp_path / "run.nc"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True)
    assert done.stdout.startswith(f"cannot write {path}: "), done.stdout + done.stderr
    assert done.stdout.strip().endswith("True")


NO_ROOM = """
import pathlib, resource, signal, sys
from riverval.errors import StoreError
from riverval.recorder import Recorder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    Recorder(pathlib.Path(sys.argv[1]), {}, "real")
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_mirror_that_cannot_be_started_leaves_nothing(tmp_path):
    path = tmp_path / "run.nc"
    done = subprocess.run([sys.executable, "-c", NO_ROOM, path], capture_output=True, text=True)
    assert done.stdout.startswith(f"cannot write {path}: "), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_records_of_an_earlier_process_are_taken_up_and_mirrored_at_once(tmp_path):
    first = Recorder(None, {}, "real")
    for t in range(5):
        first.append("step", **step(t))
    first.append("eval_step", **state(3))
    columns = {axis: dict(series.columns) for axis, series in first.records.items()}
    second = Recorder(tmp_path / "m.nc", ATTRS, "real", interval=1e9)
    second.restore(columns)
    assert second.dataset().identical(first.dataset())
    same(second, tmp_path / "m.nc")
    second.append("step", **step(5))
    assert second.dataset()["step"].values.tolist() == [*range(6)]
    assert len(first.records["step"]) == 5
    with pytest.raises(
        StoreError, match="only a recorder without records can be restored, this one has step, eval_step"
    ):
        second.restore(columns)
