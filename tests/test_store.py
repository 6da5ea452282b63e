"""Result files: round trips, all-or-nothing writes, and one clear line for everything that can be wrong with a file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import riverval
from riverval import provenance as provenance_module
from riverval import store
from riverval.errors import InputError, StoreError
from riverval.provenance import git_state, provenance
from riverval.schedules import Phase
from riverval.schema import build

ROOT = Path(__file__).parents[1]


def stamped(values, dims=None, source="toy"):
    return build(values, dims or {}, source).assign_attrs(provenance("a test", config={"steps": 4}, seed=1))


@pytest.fixture
def ds():
    steps = np.arange(4)
    values = {"step": steps, "lr": steps + 1.0, "phase": [0, 1, 1, 2], "train_loss": 1.0 / (steps + 1)}
    return stamped({**values, "eval_step": [0, 4], "loss": [[2.0, np.nan]], "replicate": [0], "diverged": [1]})


floats = hnp.from_dtype(np.dtype("f8"))  # with nan, infinities and subnormal numbers
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@st.composite
def datasets(draw):
    """A small dataset in the schema: series, replicates, text coordinates, scalars; any of them empty."""
    steps, evals, replicates, pairs = (draw(st.integers(0, 3)) for _ in range(4))
    array = lambda *shape: draw(hnp.arrays("f8", shape, elements=floats))  # noqa: E731
    values = {"step": np.arange(steps), "lr": array(steps), "train_loss": array(steps)}
    values["phase"] = draw(hnp.arrays("i1", steps, elements=st.sampled_from([int(p) for p in Phase])))
    values |= {"eval_step": np.arange(evals), "replicate": np.arange(replicates), "loss": array(replicates, evals)}
    values |= {"pair": draw(st.lists(texts, min_size=pairs, max_size=pairs, unique=True)), "alpha": [0.0, 1.0]}
    values |= {"interpolation_loss": array(pairs, 2), "final_train_loss": array()}
    values["pair"] = np.array(values["pair"], dtype=str)
    values["diverged_at"] = draw(hnp.arrays("i8", replicates))
    values["diverged"] = values["diverged_at"] >= 0
    out = stamped(values, source=draw(st.sampled_from(["theory", "toy", "real"])))
    out.attrs["title"] = draw(texts)
    return out


# --- round trip ------------------------------------------------------------------------------------------------------
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=25)
@given(ds=datasets())
def test_what_is_saved_is_loaded(tmp_path, ds):
    loaded = store.load(store.save(ds, tmp_path / "a.nc", overwrite=True))
    xr.testing.assert_identical(loaded, ds)
    again = store.load(store.save(loaded, tmp_path / "b.nc", overwrite=True))
    xr.testing.assert_identical(again, ds)


def test_xarray_alone_understands_a_file(tmp_path, ds):
    path = store.save(ds, tmp_path / "run.nc")
    with xr.open_dataset(path) as opened:
        assert set(opened.coords) == {"source", "step", "lr", "phase", "eval_step", "replicate"}
        assert set(opened.data_vars) == {"train_loss", "loss", "diverged"}
        for name, variable in opened.variables.items():
            assert variable.attrs["units"], name
            assert variable.attrs["long_name"], name
        assert opened["phase"].attrs["flag_meanings"].split() == ["warmup", "stable", "cooldown"]
        assert json.loads(opened.attrs["config"]) == {"steps": 4}
        assert opened["loss"].encoding.get("scale_factor") is None
        assert opened["source"].item() == "toy"


def test_long_variables_are_compressed_without_loss(tmp_path, rng):
    steps = np.arange(5000)
    ds = stamped({"step": steps, "lr": np.repeat(rng.normal(size=50), 100), "phase": np.ones(5000)})
    path = store.save(ds, tmp_path / "run.nc")
    xr.testing.assert_identical(store.load(path), ds)
    assert path.stat().st_size < ds.nbytes / 2


def test_a_file_is_as_readable_as_any_other(tmp_path, ds):
    path = store.save(ds, tmp_path / "run.nc")
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_csv_round_trip(tmp_path):
    path = store.write_csv(tmp_path / "a.csv", {"step": [0, 1], "lr": [0.1, 1e-300], "phase": ["stable", "a,b"]})
    assert path.read_text() == 'step,lr,phase\n0,0.1,stable\n1,1e-300,"a,b"\n'


# --- all or nothing --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("NetCDF: HDF error")], ids=repr)
def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, ds, monkeypatch, error):
    path = store.save(ds, tmp_path / "run.nc")
    before = path.read_bytes()

    def fail(self, part, **options):
        Path(part).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    with pytest.raises(StoreError, match=r"cannot write .*run\.nc: (No space left on device|NetCDF: HDF error)"):
        store.save(ds, path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_an_interrupt_leaves_no_debris(tmp_path):
    def interrupted(part):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_aside(tmp_path / "run.nc", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part):
        part.write_text("new, ha")
        assert path.read_text() == "old"
        part.write_text("new, whole")

    with path.open() as reader:
        assert store.write_aside(path, write) == path
        assert reader.read() == "old"  # replaced, not overwritten
    assert path.read_text() == "new, whole"


def test_an_invalid_dataset_is_not_written(tmp_path, ds):
    with pytest.raises(StoreError, match="'extra' is not in the schema"):
        store.save(ds.assign(extra=1.0), tmp_path / "run.nc")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_unless_overwriting_is_allowed(tmp_path, ds):
    path = store.save(ds, tmp_path / "run.nc")
    with pytest.raises(InputError, match=r"run\.nc exists"):
        store.save(ds.assign_attrs(title="second"), path)
    assert store.load(path).attrs["title"] == "a test"
    store.save(ds.assign_attrs(title="second"), path, overwrite=True)
    assert store.load(path).attrs["title"] == "second"


FULL_DISK = """
import resource, signal, sys
import numpy as np
from riverval import store
from riverval.cli import main
from riverval.errors import RivervalError
from riverval.provenance import provenance
from riverval.schema import build

n = 20_000
values = {"step": np.arange(n), "lr": np.random.default_rng(0).normal(size=n), "phase": np.ones(n)}
ds = build(values, {}, "toy")
ds.attrs = provenance("second", config={}, seed=0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    store.save(ds, sys.argv[1], overwrite=True)
except RivervalError as error:
    print(f"riverval: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, ds):
    path = store.save(ds, tmp_path / "run.nc")
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True)
    told = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert told[-1].startswith(f"riverval: cannot write {path}: ")
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


# --- everything that can be wrong with a file ------------------------------------------------------------------------
def broken(tmp_path, ds, how):
    """The path of a file or folder that is no dataset."""
    path = tmp_path / "run.nc"
    if how == "missing":
        return path
    if how == "folder without dataset":
        (tmp_path / "empty").mkdir()
        return tmp_path / "empty"
    if how == "text":
        path.write_text("step,lr\n0,0.1\n")
        return path
    if how == "empty":
        path.touch()
        return path
    if how == "foreign netcdf":
        xr.Dataset({"temperature": ("x", [1.0])}).to_netcdf(path)
        return path
    store.save(ds, path)
    content = path.read_bytes()
    if how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "cut at the end":
        path.write_bytes(content[:-1])
    elif how == "no header":
        path.write_bytes(b"\0" * 512 + content[512:])
    return path


BROKEN = {
    "missing": "does not exist; give a dataset file or the folder of a run",
    "folder without dataset": "holds no run.nc; give a dataset file or the folder of a run",
    "text": "cannot be read as netCDF; it may be cut short or not a dataset",
    "empty": "cannot be read as netCDF; it may be cut short or not a dataset",
    "cut short": "cannot be read as netCDF; it may be cut short or not a dataset",
    "cut at the end": "cannot be read as netCDF; it may be cut short or not a dataset",
    "no header": "cannot be read as netCDF; it may be cut short or not a dataset",
    "foreign netcdf": "is not a riverval dataset: attribute 'title' is missing.*'temperature' is not in the schema",
}


@pytest.mark.parametrize(("how", "message"), BROKEN.items(), ids=BROKEN)
def test_a_broken_file_is_one_clear_error(tmp_path, ds, how, message):
    path = broken(tmp_path, ds, how)
    with pytest.raises(StoreError, match=message) as caught:
        store.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_file_cut_anywhere_is_a_store_error(tmp_path, ds):
    content = store.save(ds, tmp_path / "run.nc").read_bytes()
    path = tmp_path / "cut.nc"
    for length in np.linspace(0, len(content) - 1, 40, dtype=int):
        path.write_bytes(content[:length])
        with pytest.raises(StoreError):
            store.load(path)


@pytest.mark.parametrize("blocked", ["folder missing", "file in the way", "folder in the way"])
def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path, ds, blocked):
    path = tmp_path / "place" / "run.nc"
    if blocked == "file in the way":
        path.parent.write_text("")
    elif blocked == "folder in the way":
        path.mkdir(parents=True)
    with pytest.raises(StoreError, match=r"cannot write .*run\.nc: "):
        store.save(ds, path, overwrite=True)
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".part"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_store_error(tmp_path, ds):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            store.save(ds, tmp_path / "run.nc")
        with pytest.raises(StoreError, match="Permission denied"):
            store.new_run(tmp_path, "a", default="b", source="toy")
    finally:
        tmp_path.chmod(0o700)


def test_a_run_folder_means_its_dataset(tmp_path, ds):
    store.save(ds.assign_attrs(status="running"), tmp_path / store.PARTIAL_FILE)
    assert store.load(tmp_path).attrs["status"] == "running"
    store.save(ds, tmp_path / store.RUN_FILE)
    assert store.load(tmp_path).attrs["status"] == "complete"
    assert store.resolve(tmp_path) == store.resolve(tmp_path / store.RUN_FILE) == tmp_path / store.RUN_FILE


def test_a_killed_run_is_not_hidden_by_the_one_it_was_to_replace(tmp_path, ds):
    old = store.save(ds, tmp_path / store.RUN_FILE)
    os.utime(old, (1_000_000, 1_000_000))
    store.save(ds.assign_attrs(status="running"), tmp_path / store.PARTIAL_FILE)
    assert store.load(tmp_path).attrs["status"] == "running"


def test_a_run_of_another_kind_is_not_replaced(tmp_path, ds):
    folder = store.new_run(tmp_path, "mine", default="toy", source="toy")
    store.save(ds, folder / store.RUN_FILE)
    assert store.new_run(tmp_path, "mine", default="toy", source="toy", overwrite=True) == folder
    with pytest.raises(InputError, match="holds a toy run, which a real run does not replace"):
        store.new_run(tmp_path, "mine", default="cnn", source="real", overwrite=True)


def test_only_an_empty_folder_is_discarded(tmp_path):
    for name, kept in (("empty", False), ("full", True)):
        folder = store.new_run(tmp_path, name, default="toy", source="toy")
        if kept:
            (folder / "notes.txt").write_text("mine")
        store.discard_if_empty(folder)
        assert folder.exists() == kept
    store.discard_if_empty(tmp_path / "gone")


# --- run folders -----------------------------------------------------------------------------------------------------
def test_automatic_names_are_numbered(tmp_path):
    runs = [store.new_run(tmp_path / "runs", None, default="toy", source="toy") for _ in range(3)]
    assert [r.name for r in runs] == ["toy", "toy-2", "toy-3"]
    assert all(r.is_dir() for r in runs)


def test_a_named_run_is_refused_where_it_exists(tmp_path):
    folder = store.new_run(tmp_path, "mine", default="toy", source="toy")
    assert store.new_run(tmp_path, "mine", default="toy", source="toy") == folder  # still empty
    (folder / "run.nc").touch()
    with pytest.raises(InputError, match="exists; choose another --name, or replace it with --overwrite"):
        store.new_run(tmp_path, "mine", default="toy", source="toy")
    assert store.new_run(tmp_path, "mine", default="toy", source="toy", overwrite=True) == folder
    assert (folder / "run.nc").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/", "../a", "a\0b"], ids=repr)
def test_a_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="must be a plain folder name"):
        store.new_run(tmp_path, name, default="toy", source="toy")


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_root_that_is_a_file_is_a_store_error(tmp_path, name):
    (tmp_path / "runs").touch()
    with pytest.raises(StoreError, match="cannot make the run folder"):
        store.new_run(tmp_path / "runs", name, default="toy", source="toy")


def test_a_file_of_the_runs_name_is_a_store_error(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(StoreError, match="a file of that name is in the way"):
        store.new_run(tmp_path, "mine", default="toy", source="toy", overwrite=True)


# --- provenance ------------------------------------------------------------------------------------------------------
def test_provenance_is_text_and_its_json_parses(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/riverval", "toy", "a b"])
    attrs = provenance("t", config={"b": [1, None], "a": {"x": 0.5}}, seed=3)
    assert all(type(v) is str for v in attrs.values())
    assert json.loads(attrs["config"]) == {"a": {"x": 0.5}, "b": [1, None]}
    assert json.loads(attrs["versions"])["numpy"] == np.__version__
    assert attrs["riverval_version"] == riverval.__version__
    assert attrs["command"] == "riverval toy 'a b'"
    assert attrs["seed"] == "3"
    assert attrs["git_dirty"] in ("", "true", "false")
    assert attrs["created"].endswith("+00:00")


def test_git_state_is_empty_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance_module, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state.__wrapped__() == ("", "")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_state_is_that_of_the_tracked_code(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    code = tmp_path / "provenance.py"
    code.write_text("one\n")
    monkeypatch.setattr(provenance_module, "__file__", str(code))

    def git(*args):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *args], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-m", "somebody else's repository")
    assert git_state.__wrapped__() == ("", "")
    git("add", "provenance.py")
    git("commit", "-m", "ours")
    assert git_state.__wrapped__() == (git("rev-parse", "HEAD"), "false")
    code.write_text("two\n")
    assert git_state.__wrapped__() == (git("rev-parse", "HEAD"), "true")


def test_git_state_without_git_is_empty(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state.__wrapped__() == ("", "")


def test_the_folder_of_a_study_means_its_dataset(tmp_path: Path) -> None:
    (tmp_path / "study.nc").touch()
    assert store.resolve(tmp_path) == tmp_path / "study.nc"
    (tmp_path / "run.nc").touch()  # a run comes first
    assert store.resolve(tmp_path) == tmp_path / "run.nc"
