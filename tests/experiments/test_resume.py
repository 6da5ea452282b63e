"""A run that was killed, interrupted, or started from a state of another one is the straight run, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402

from riverval import store  # noqa: E402
from riverval.errors import InputError, StoreError  # noqa: E402
from riverval.experiments.checkpoints import Checkpoints, FullState, write_state  # noqa: E402
from riverval.experiments.config import resolve  # noqa: E402
from riverval.experiments.locks import alone  # noqa: E402
from riverval.experiments.run import branch, prepare, read_config, reprobe, resume, run  # noqa: E402
from riverval.experiments.snapshots import Snapshots  # noqa: E402
from riverval.experiments.trunks import Trunks  # noqa: E402
from riverval.schedules import make_schedule  # noqa: E402
from riverval.shapes import make_shape  # noqa: E402

KILLS = int(os.environ.get("RIVERVAL_KILLS", "0"))  # of each kind of run; 20 for the real thing
SMALL = {
    "cnn": {"steps": 30, "widths": (2, 3, 4, 4, 8), "line_examples": 64, "eval_every": 4, "eval_examples": 64,
            "snapshots": 3, "alphas": 3, "lr": 3e-3, "checkpoint_every": 4, "probes": ("interpolation", "pca"),
            "descent_points": 4, "direction_snapshots": 3, "final_examples": 128, "threads": 1},
    "lm": {"steps": 16, "batch": 2, "seq": 16, "width_factor": 0.25, "line_examples": 4, "eval_examples": 4,
           "eval_every": 5, "snapshots": 2, "alphas": 3, "checkpoint_every": 2, "probes": ("interpolation",),
           "descent_points": 2, "direction_snapshots": 3, "final_examples": 8, "threads": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    """As in a terminal: a shell has its jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def small(arch="cnn", options=None, **given):
    return resolve(arch, {**SMALL[arch], **given}, options=options)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def weights(folder, state):
    return torch.load(folder / "checkpoints" / f"step_{state:07d}.pt", weights_only=True)


def assert_same_tensors(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same_tensors(first[name], second[name])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same_tensors(a, b)
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        assert torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
    else:
        assert first == second


def assert_same_datasets(first, second, without=()):
    assert set(first.variables) - {*without} == set(second.variables) - {*without}
    for name in set(first.variables) - {*without}:
        a, b = first[name], second[name]
        assert a.dims == b.dims, name
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a.to_numpy(), b.to_numpy(), err_msg=str(name))
    for attr in ("status", "config", "notes"):
        assert first.attrs[attr] == second.attrs[attr]


def assert_same_runs(first: Path, second: Path):
    """Same dataset, same snapshots, same last weights, moments and random states."""
    assert_same_datasets(store.load(first / "run.nc"), store.load(second / "run.nc"))
    names = [sorted(p.name for p in (folder / "snapshots").iterdir()) for folder in (first, second)]
    assert names[0] == names[1]
    for name in names[0]:
        assert_same_tensors(*(load_file(folder / "snapshots" / name) for folder in (first, second)))
    files = [sorted(p.name for p in (folder / "checkpoints").iterdir()) for folder in (first, second)]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith(".pt"):
            full = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (first, second)]
            for part in ("state", "model", "optimizer", "random", "records"):
                assert_same_tensors(full[0][part], full[1][part])


# --- killed ----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize(("arch", "kills"), [("cnn", KILLS or 3), ("lm", KILLS or 2)])
def test_a_run_killed_at_random_and_resumed_is_the_straight_run(tmp_path, arch, kills):
    given = {"arch": arch, "given": SMALL[arch]}
    if arch == "lm":
        pytest.importorskip("transformers")
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("".join(f"line {k}: the river runs through the valley\n" for k in range(200)))
        given["given"] = {**SMALL[arch], "data": str(corpus)}
    root = made(tmp_path / "runs")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    seed = os.environ.get("RIVERVAL_KILL_SEED", "1")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killing.py")), str(root), json.dumps(given), str(kills), seed],
        capture_output=True, text=True, timeout=600, env={**os.environ, **threads}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == kills
    for folder in found["folders"]:
        assert_same_runs(root / "straight", Path(folder))
        assert not list(Path(folder).rglob("*.part"))
        assert not (Path(folder) / "run.partial.nc").exists()


class Killed(BaseException):
    """As if by SIGKILL: nothing handles it."""


@pytest.mark.parametrize("after", ["checkpoint", "snapshot"])
def test_a_kill_between_two_writes_of_a_state_leaves_nothing_out(tmp_path, monkeypatch, after):
    """An update that is kept for the probes is known to the process that made it only."""
    config = small(checkpoint_every=1, probes=("interpolation",))
    run(config, made(tmp_path / "whole"))
    at = sorted(prepare(config).snapshot_plan.updates)[1] + 1
    kind, name = (Checkpoints, "save") if after == "checkpoint" else (Snapshots, "offer")
    real = getattr(kind, name)

    def cut(self, state, *rest, **options):
        real(self, state, *rest, **options)
        if at == getattr(state, "state", state):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, cut)
        with pytest.raises(Killed):
            run(config, made(tmp_path / "cut"))
    resume(tmp_path / "cut")
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


# --- stopped ---------------------------------------------------------------------------------------------------------
PLAIN = {"snapshots": 0, "probes": (), "steps": 20}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of `PLAIN` without a break; the folder."""
    folder = tmp_path_factory.mktemp("straight")
    run(small(**PLAIN), folder)
    return folder


def stop_by_error(done, values):
    if done == 11:
        raise KeyboardInterrupt


def stop_by_signal(done, values):
    if done == 11:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("stop", "kept"), [(stop_by_error, [4, 8]), (stop_by_signal, [8, 11])])
def test_ctrl_c_then_resume_is_the_straight_run(tmp_path, straight, stop, kept):
    ds = run(small(**PLAIN), tmp_path, stop)
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] == 11
    assert states(tmp_path) == kept
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    told = []
    resume(tmp_path, tell=told.append)
    assert told == [f"going on from state {kept[-1]} of 20"]
    assert_same_runs_without_snapshots(straight, tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "sgd", "momentum": 0.8, "lr": 0.05, "clip": 0.1, "deterministic": True, "augment": True},
        {"optimizer": "adam", "precision": "bfloat16", "micro_batch": 5, "width_factor": 2.0},
    ],
)
def test_any_way_of_training_is_gone_on_with_exactly(tmp_path, given):
    config = small(**{**PLAIN, "steps": 14, **given})
    run(config, made(tmp_path / "whole"))
    run(config, made(tmp_path / "cut"), stop_by_error)
    resume(tmp_path / "cut")
    assert_same_runs_without_snapshots(tmp_path / "whole", tmp_path / "cut")


def states(folder):
    return sorted(int(p.stem[5:]) for p in (folder / "checkpoints").glob("*.pt"))


def assert_same_runs_without_snapshots(first, second):
    assert_same_datasets(store.load(first / "run.nc"), store.load(second / "run.nc"))
    last = int(store.load(first)["eval_step"][-1])
    for part in ("model", "optimizer", "random", "records"):
        assert_same_tensors(weights(first, last)[part], weights(second, last)[part])


def test_a_second_ctrl_c_does_not_wait_for_the_update(tmp_path):
    def stop(done, values):
        if done == 9:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    assert run(small(**PLAIN), tmp_path, stop).attrs["status"] == "interrupted"
    assert states(tmp_path) == [4, 8]


def test_a_run_in_another_thread_leaves_the_signals_alone(tmp_path, straight):
    thread = threading.Thread(target=run, args=(small(**PLAIN), tmp_path))
    thread.start()
    thread.join()
    assert_same_runs_without_snapshots(straight, tmp_path)


def test_a_run_stopped_before_its_first_checkpoint_starts_anew(tmp_path, straight):
    def stop(done, values):
        if done == 2:
            raise KeyboardInterrupt

    run(small(**PLAIN), tmp_path, stop)
    told = []
    resume(tmp_path, tell=told.append)
    assert told[0] == "no checkpoint that can be used: training anew"
    assert_same_runs_without_snapshots(straight, tmp_path)


def test_an_interrupted_measurement_is_repeated(tmp_path):
    def stop(line):
        if "pca" in line:
            raise KeyboardInterrupt

    config = small(steps=20)
    whole = run(config, made(tmp_path / "whole"))
    cut = run(config, made(tmp_path / "cut"), tell=stop)
    assert cut.attrs["notes"] == "measurements: interrupted"
    assert "pca_share" not in cut
    assert_same_datasets(resume(tmp_path / "cut"), whole)


def test_a_full_disk_costs_nothing_once_there_is_room(tmp_path, straight, monkeypatch):
    def full(self, state, pinned=False):
        raise StoreError("cannot write: no space")

    with monkeypatch.context() as patch:
        config = small(**PLAIN)
        run_until_8 = lambda done, values: patch.setattr(Checkpoints, "save", full) if done == 8 else None  # noqa: E731
        with pytest.raises(StoreError, match=r"no space; what was recorded is kept in .*; go on with: riverval real"):
            run(config, tmp_path, run_until_8)
    assert store.load(tmp_path / "run.nc").sizes["step"] == 8
    resume(tmp_path)
    assert_same_runs_without_snapshots(straight, tmp_path)


def test_a_finished_run_is_returned_as_it_is(straight):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    told = []
    ds = resume(straight, tell=told.append)
    assert "is finished (complete)" in told[0]
    assert ds.equals(store.load(straight))
    assert {p: p.stat().st_mtime_ns for p in straight.rglob("*")} == before


def test_the_dataset_of_an_earlier_run_does_not_make_a_run_finished(tmp_path):
    run(small(**PLAIN), tmp_path)
    run(small(**PLAIN, seed=1), tmp_path, stop_by_error)
    (tmp_path / "run.nc").unlink()
    run(small(**PLAIN, seed=1), made(tmp_path / "other"))
    # Killed, that is: the first run's dataset is still there.
    store.save(run(small(**PLAIN), made(tmp_path / "first")), tmp_path / "run.nc")
    resume(tmp_path)
    assert_same_runs_without_snapshots(tmp_path / "other", tmp_path)


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path):
    run(small(**PLAIN), tmp_path, stop_by_error)
    (tmp_path / "snapshots").mkdir()
    left = [
        tmp_path / ".run.nc.x.part",
        tmp_path / "snapshots" / ".tmpXYZ",
        tmp_path / "checkpoints" / ".step.x.part",
        tmp_path / "checkpoints" / "step_0000012.pt",
    ]
    for path in left:
        path.write_bytes(b"half")
    resume(tmp_path)
    assert not any(path.exists() for path in left)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"config\.json: No such file.*give the folder of a real run"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StoreError, match="is not the configuration of a run"):
        resume(tmp_path)


def test_the_time_of_a_run_goes_on_and_that_of_a_branch_is_its_own(tmp_path):
    run(small(**PLAIN), made(tmp_path / "cut"), stop_by_signal)
    path = tmp_path / "cut" / "checkpoints" / "step_0000011.pt"
    full = dataclasses.replace(FullState(**torch.load(path, weights_only=True)), seconds={"training": 1e6})
    write_state(path, full, read_config(tmp_path / "cut"))
    schedule = read_config(tmp_path / "cut").plan.branch(11, 4)
    found = branch(tmp_path / "cut", 11, schedule, made(tmp_path / "branch"))
    assert 0 < json.loads(found.attrs["timing"])["training_seconds"] < 1e6
    assert json.loads(resume(tmp_path / "cut").attrs["timing"])["training_seconds"] > 1e6


# --- spoilt and foreign checkpoints ----------------------------------------------------------------------------------
def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def half_manifest(path):
    path.with_suffix(".json").write_text(path.with_suffix(".json").read_text()[:100])


SPOILS = {
    "cut short": (truncate, "step_0000011.pt is cut short"),
    "changed": (flip, "step_0000011.pt was changed"),
    "missing": (Path.unlink, "step_0000011.pt cannot be read: No such file"),
    "manifest cut short": (half_manifest, "step_0000011.json cannot be read"),
    "manifest missing": (lambda path: path.with_suffix(".json").unlink(), ""),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILS.values(), ids=SPOILS)
def test_a_spoilt_checkpoint_is_told_and_the_one_before_is_used(tmp_path, straight, spoil, message):
    run(small(**PLAIN), tmp_path, stop_by_signal)
    spoil(tmp_path / "checkpoints" / "step_0000011.pt")
    told = []
    resume(tmp_path, tell=told.append)
    assert not message or [line for line in told if message in line and "the one before it is used" in line]
    assert "going on from state 8 of 20" in told
    assert_same_runs_without_snapshots(straight, tmp_path)
    assert states(tmp_path) == [13, 20]


def test_what_cannot_be_used_does_not_count_among_the_newest(tmp_path):
    run(small(**PLAIN), tmp_path, stop_by_signal)
    truncate(tmp_path / "checkpoints" / "step_0000011.pt")
    resume(tmp_path, stop_by_error)
    assert states(tmp_path) == [8]


FOREIGN = {
    "seed": ({"seed": 3}, "seed 0 instead of 3"),
    "batch": ({"batch": 8}, "batch 16 instead of 8"),
    "rates": ({"lr": 2e-3}, "other learning rates than those of config.json"),
}


@pytest.mark.parametrize(("changes", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    run(small(**PLAIN), tmp_path, stop_by_signal)
    other = prepare(small(**{**PLAIN, **changes})).config
    (tmp_path / "config.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(InputError, match=rf"step_0000011\.pt belongs to another run: .*{message}"):
        resume(tmp_path)
    assert states(tmp_path) == [8, 11]


def test_data_that_changed_since_are_refused(tmp_path):
    draw = np.random.default_rng(0)
    path = tmp_path / "images.npz"

    def write():
        arrays = {f"x_{part}": draw.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8) for part in ("train", "test")}
        np.savez(path, **arrays, **{f"y_{part}": np.arange(40) % 4 for part in ("train", "test")})

    write()
    run(small(**PLAIN, data=str(path), batch=16), made(tmp_path / "r"), stop_by_error)
    write()
    with pytest.raises(InputError, match="is not what the run was planned with: its content has changed"):
        resume(tmp_path / "r")


# --- shared trunks ---------------------------------------------------------------------------------------------------
def test_a_run_from_a_trunk_is_the_straight_run(tmp_path):
    trunks = Trunks(tmp_path / "pool")
    short, long = (small(options={"cooldown": c}, **PLAIN) for c in (0.5, 0.25))
    # The first update of a cooldown has the full rate, so the two part at state 11, whose phase and evaluations differ.
    run(short, made(tmp_path / "short"), trunks=trunks, share_at=(5, 11))
    told = []
    run(long, made(tmp_path / "long"), tell=told.append, trunks=trunks)
    assert told[0] == "starting from state 11, which another run has reached"
    run(long, made(tmp_path / "straight"))
    assert_same_runs_without_snapshots(tmp_path / "straight", tmp_path / "long")
    assert 10 in store.load(tmp_path / "short")["eval_step"]
    assert 10 not in store.load(tmp_path / "long")["eval_step"]


def test_a_killed_run_from_a_trunk_goes_on_from_it(tmp_path):
    trunks = Trunks(tmp_path / "pool")
    config = small(**PLAIN)
    run(config, made(tmp_path / "first"), trunks=trunks, share_at=(9,))

    def stop(done, values):
        raise KeyboardInterrupt

    run(config, made(tmp_path / "second"), stop, trunks=trunks)
    told = []
    resume(tmp_path / "second", tell=told.append, trunks=trunks)
    assert told[1] == "starting from state 9, which another run has reached"
    assert_same_runs_without_snapshots(tmp_path / "first", tmp_path / "second")


def starting_state(tmp_path, trunks, **given):
    """Where a run starts from."""
    told = []

    def stop(done, values):
        told.append(done - 1)
        raise KeyboardInterrupt

    run(small(**{**PLAIN, **given}), tmp_path, stop, trunks=trunks)
    return told[0]


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({}, 9),
        ({"seed": 1}, 0),
        ({"weight_decay": 0.3}, 0),
        ({"lr": 1e-3}, 0),
        ({"eval_examples": 32}, 0),  # the records would not be its own
        ({"eval_every": 5}, 3),  # that of state 5 would be missing
        ({"snapshots": 2}, 0),  # that of an early state would be missing
        ({"steps": 8}, 3),
        ({"eval_every": 8, "hessian_examples": 3}, 9),
    ],
)
def test_a_run_starts_from_the_deepest_state_that_leaves_nothing_out(tmp_path, given, start):
    trunks = Trunks(tmp_path / "pool")
    run(small(**PLAIN), made(tmp_path / "first"), trunks=trunks, share_at=(3, 9))
    assert starting_state(made(tmp_path / "second"), trunks, **given) == start


def test_a_spoilt_state_of_the_pool_is_passed_over_and_others_can_be_deleted(tmp_path):
    trunks = Trunks(tmp_path / "pool")
    config = small(**PLAIN)
    run(config, made(tmp_path / "first"), trunks=trunks, share_at=(3, 6, 9))
    (deepest,) = (tmp_path / "pool").rglob("step_0000009*.pt")
    truncate(deepest)
    assert starting_state(made(tmp_path / "second"), trunks) == 6
    trunks.keep_only([(prepare(config).config, 3)])
    assert [p.name[:12] for p in (tmp_path / "pool").rglob("*.pt")] == ["step_0000003"]
    assert len([*(tmp_path / "pool").rglob("*.json")]) == 1
    assert starting_state(made(tmp_path / "third"), trunks) == 3


def test_a_state_of_another_torch_is_not_shared(tmp_path):
    trunks = Trunks(tmp_path / "pool")
    run(small(**PLAIN), made(tmp_path / "first"), trunks=trunks, share_at=(9,))
    (manifest,) = (tmp_path / "pool").rglob("*.json")
    manifest.write_text(manifest.read_text().replace(torch.__version__, "1.0.0"))
    assert starting_state(made(tmp_path / "second"), trunks) == 0


def test_states_to_share_are_checked(tmp_path):
    with pytest.raises(InputError, match=r"share_at must be states 1\.\.20 of the run, got 21"):
        run(small(**PLAIN), tmp_path, trunks=Trunks(tmp_path / "pool"), share_at=(3, 21))
    with pytest.raises(InputError, match="share_at needs a pool"):
        run(small(**PLAIN), tmp_path, share_at=(3,))


# --- branches --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A finished run that keeps snapshots, its last stable state 13 and state 8; the folder."""
    folder = tmp_path_factory.mktemp("trunk")
    run(small(steps=20, branch_points=(8,)), folder)
    return folder


@pytest.mark.parametrize(("at", "start"), [(13, 13), (11, 8), (5, None)])
def test_a_branch_is_the_straight_run_with_its_schedule(tmp_path, trunk, at, start):
    old = read_config(trunk)
    schedule = old.plan.branch(at, 6, make_shape("1-sqrt"))
    told = []
    found = branch(trunk, at, schedule, made(tmp_path / "branch"), tell=told.append)
    assert told[0].endswith("from scratch" if start is None else f"from the full state {start}")
    config = dataclasses.replace(old, schedule=schedule.to_dict(), steps=at + 6, epochs=None)
    points = tuple(t for t in config.branch_points if t <= at + 6)
    job = prepare(dataclasses.replace(config, branch_points=points))
    straight = run(job, made(tmp_path / "straight"))
    assert found["lr"].to_numpy().tolist() == schedule.values().tolist()
    training = [
        n for n in straight.variables if {*straight[n].dims} <= {"step"} or {*straight[n].dims} <= {"eval_step"}
    ]
    names = [n for n in training if straight[n].dims] + ["final_train_loss", "final_train_accuracy", "diverged"]
    for name in names:
        np.testing.assert_array_equal(found[name].to_numpy(), straight[name].to_numpy(), err_msg=str(name))
    for part in ("model", "optimizer", "random", "records"):
        assert_same_tensors(weights(tmp_path / "branch", at + 6)[part], weights(tmp_path / "straight", at + 6)[part])
    for path in (tmp_path / "branch" / "snapshots").glob("step*"):
        assert_same_tensors(load_file(path), load_file(tmp_path / "straight" / "snapshots" / path.name))
    missing = len([*(tmp_path / "straight").rglob("step*.safet*")]) - len(
        [*(tmp_path / "branch").rglob("step*.safet*")]
    )
    assert bool(missing) == (at == 11)
    if missing:
        assert found.attrs["notes"] == "snapshots: not all are there: descent 3 of 4"
    else:
        assert_same_datasets(found, straight)


@pytest.mark.parametrize("decaying", [False, True])
def test_the_first_of_several_branches_repeats_the_prefix_for_all(tmp_path, trunk, decaying):
    """Also where the state is none that a branch keeps by itself, in a cooldown."""
    at = 16 if decaying else 5
    plan = read_config(trunk).plan
    schedules = [plan.branch(at, n) for n in (6, 9)]
    branch(trunk, at, schedules[0], made(tmp_path / "first"), keep_for=schedules[1:])
    told, updates = [], []
    beside = [tmp_path / "first"]
    found = branch(
        trunk, at, schedules[1], made(tmp_path / "second"), lambda done, values: updates.append(done),
        tell=told.append, beside=beside,
    )  # fmt: skip
    assert told[0] == f"branching off at state {at}, from the full state {at}"
    assert len(updates) == 9
    own = branch(trunk, at, schedules[1], made(tmp_path / "own"))
    assert_same_datasets(found, own)
    files = [sorted(p.name for p in (tmp_path / name / "snapshots").iterdir()) for name in ("second", "own")]
    assert files[0] == files[1]


def test_one_process_at_a_time_whichever_way_it_comes(tmp_path, trunk):
    plan = read_config(trunk).plan
    into = made(tmp_path / "held")
    with alone(into):
        for call in (
            lambda: run(small(**PLAIN), into),
            lambda: branch(trunk, 13, plan.branch(13, 6), into),
            lambda: reprobe(trunk, {}, into),
        ):
            with pytest.raises(InputError, match="another process is at work in"):
                call()
    assert not list(into.iterdir())
    run(small(**PLAIN), into, stop_by_error)
    with alone(into), pytest.raises(InputError, match="another process is at work in"):
        resume(into)
    with pytest.raises(StoreError, match="there is no folder"):
        run(small(**PLAIN), tmp_path / "nowhere")


def test_a_killed_branch_can_be_resumed(tmp_path, trunk):
    def stop(done, values):
        raise KeyboardInterrupt

    schedule = read_config(trunk).plan.branch(13, 6)
    whole = branch(trunk, 13, schedule, made(tmp_path / "whole"))
    branch(trunk, 13, schedule, made(tmp_path / "cut"), stop)
    assert states(tmp_path / "cut") == [13]
    assert_same_datasets(resume(tmp_path / "cut"), whole)


def test_a_branch_that_does_not_fit_is_refused(tmp_path, trunk):
    plan = read_config(trunk).plan
    with pytest.raises(InputError, match="the rates of the run before state 13"):
        branch(trunk, 13, make_schedule("wsd", peak_lr=1e-3, steps=20, cooldown=0.3), tmp_path)
    with pytest.raises(InputError, match=r"state 1\.\.20 of the run, got 21"):
        branch(trunk, 21, plan.join(plan), tmp_path)
    with pytest.raises(InputError, match="a folder of its own"):
        branch(trunk, 13, plan.branch(13, 6), trunk)
    assert not list(tmp_path.iterdir())


# --- measured again --------------------------------------------------------------------------------------------------
def test_a_second_measurement_is_that_of_a_run_with_its_settings(tmp_path, trunk):
    found = reprobe(trunk, {"alphas": 5, "probes": ("interpolation",)}, made(tmp_path / "again"))
    whole = run(small(steps=20, branch_points=(8,), alphas=5, probes=("interpolation",)), made(tmp_path / "whole"))
    assert_same_datasets(found, whole)
    assert found.equals(store.load(tmp_path / "again"))
    assert read_config(tmp_path / "again") == read_config(tmp_path / "whole")
    before = store.load(trunk)
    assert before.sizes["alpha"] == 3
    assert "measured_by" not in before.attrs
    again = reprobe(trunk, {})
    assert_same_datasets(again, before)
    told = json.loads(again.attrs["measured_by"])
    assert told["created"] >= again.attrs["created"] == before.attrs["created"]
    assert told["riverval_version"] == again.attrs["riverval_version"]


def test_a_second_measurement_is_refused_where_it_has_no_meaning(tmp_path, trunk):
    with pytest.raises(InputError, match="seed is past changing once a run is trained; choose from probes, alphas"):
        reprobe(trunk, {"seed": 4})
    for name in ("snapshots", "descent_points", "direction_snapshots"):
        with pytest.raises(
            InputError, match=f"{name} is past .*: it says which snapshots are kept in training; choose"
        ):
            reprobe(trunk, {name: 4})
    run(small(**PLAIN), tmp_path, stop_by_error)
    with pytest.raises(InputError, match="is interrupted, not trained to its end; go on with"):
        reprobe(tmp_path, {})


def test_a_measurement_is_not_replaced_by_nothing(tmp_path):
    """Of a run without snapshots; whose losses a second measurement would keep, and nothing else."""
    run(small(**PLAIN), tmp_path)
    before = store.load(tmp_path)
    with pytest.raises(InputError, match="has no snapshots to measure; probe the run that was trained"):
        reprobe(tmp_path, {})
    assert before.identical(store.load(tmp_path))
    (tmp_path / "run.nc").unlink()
    with pytest.raises(InputError, match="was not trained to its end; go on with"):
        reprobe(tmp_path, {})
