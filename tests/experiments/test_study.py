"""Studies of real runs: what cells share, that sharing changes no bit, caching, a kill, several processes, failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from riverval import store  # noqa: E402
from riverval.cli import main  # noqa: E402
from riverval.errors import InputError, RivervalError  # noqa: E402
from riverval.experiments import run as run_module  # noqa: E402
from riverval.experiments import study_run  # noqa: E402
from riverval.experiments.locks import alone  # noqa: E402
from riverval.experiments.presets import configure  # noqa: E402
from riverval.experiments.study import Bench, Cell, Plan, cells_of, cosine, plan_of, wsd  # noqa: E402
from riverval.experiments.study_list import STUDIES  # noqa: E402
from riverval.experiments.study_run import announcement, costs, planned, result_of, run_cells  # noqa: E402
from riverval.experiments.study_sharing import divergence, groups_of  # noqa: E402
from riverval.experiments.train import Trainer  # noqa: E402
from riverval.experiments.trunks import Trunks  # noqa: E402

SETS = ["steps=30", "batch=8", "eval_every=10", "final_examples=32", "eval_examples=32", "checkpoint_every=7"]


def configured(arch, changes):
    return configure(arch, {"data": "digits", **changes}, preset="smoke", sets=SETS)


@pytest.fixture(scope="module")
def bench():
    return Bench("mlp", configured, planned)


@pytest.fixture(scope="module")
def cells(bench):
    """WSD at two lengths and cosine, two seeds: enough to share and to pair."""
    study = STUDIES["wsd-vs-cosine"]
    return cells_of(study.plans(bench, study.make(fractions=(0.2, 0.5))), (0, 1), threads=1)


def called(words):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code or 0


def numbers(ds):
    """What a cell has measured; attributes hold times."""
    return ds.drop_attrs()


# --- sharing ---------------------------------------------------------------------------------------------------------
def stub(rates, seed=0) -> Cell:
    """A cell whose rates are the given ones."""
    config = configure("mlp", {"data": "digits", "seed": seed}, preset="smoke", sets=["snapshots=0"])
    config = config.planned(steps_per_epoch=None, data_sha256="0" * 64, parameters=1, facts={})
    told = json.dumps(list(rates))
    cell = Plan(name=told, config=config, against=told).cell(seed)
    cell.__dict__["rates"] = np.array(rates)
    cell.__dict__["key"] = f"{seed}-{told}"
    return cell


ROWS = st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=6)


@given(st.lists(ROWS, min_size=1, max_size=7, unique_by=tuple), st.sampled_from([1, 2]))
def test_shared_cells_cost_every_distinct_prefix_once(rows, seeds):
    """The naive count: an update is one distinct (seed, rates up to and with it)."""
    made = [stub(row, seed) for seed in range(seeds) for row in rows]
    prefixes = {(c.seed, tuple(c.rates[: t + 1])) for c in made for t in range(len(c.rates))}
    assert costs(made) == (seeds * sum(map(len, rows)), len(prefixes))


@given(st.lists(ROWS, min_size=1, max_size=7, unique_by=tuple))
def test_the_state_that_a_cell_starts_from_was_put_and_is_still_there(rows):
    """A pool that is filled and emptied as planned, followed by hand."""
    for group in groups_of([stub(row) for row in rows]):
        pool = set()
        for k, step in enumerate(group.steps):
            assert step.start == 0 or tuple(step.cell.rates[: step.start]) in pool
            pool |= {tuple(step.cell.rates[:t]) for t in step.share}
            passed = {tuple(s.cell.rates[:t]) for s in group.steps[: k + 1] for t in s.share}
            needed = {tuple(cell.rates[:t]) for cell, t in group.needed_after(k + 1)}
            pool -= passed - needed
        assert not pool


def test_groups_do_not_mix_what_shares_nothing(cells):
    groups = groups_of(cells)
    assert len(groups) == 2
    for group in groups:
        assert len({s.cell.config.identity for s in group.steps}) == 1
        rates = [s.cell.rates for s in group.steps]
        assert [s.start for s in group.steps] == [0, *(divergence(a, b) for a, b in pairwise(rates))]
    assert [s.updates for s in groups[0].steps] == [30, 30 - 2, 30 - 16]
    assert len(groups_of(cells, share=False)) == 6


def test_a_cell_that_keeps_snapshots_passes_all_of_its_states(bench):
    made = [p.cell(0) for p in STUDIES["paper"].plans(bench, STUDIES["paper"].make())]
    assert [len(g.steps) for g in groups_of(made)] == [1, 1]


@pytest.fixture(scope="module")
def shared(cells, tmp_path_factory):
    """A folder in which all cells are done, with shared trunks."""
    folder = tmp_path_factory.mktemp("shared")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        made = updates_counted(patch)
        assert run_cells(cells, folder) == {}
    assert len(made) == costs(cells)[1] == 144
    return folder


def updates_counted(patch):
    """A list that grows by one entry with every update that is made."""
    made, update = [], Trainer._update

    def counted(self, t):
        made.append(t)
        return update(self, t)

    patch.setattr(Trainer, "_update", counted)
    return made


def test_sharing_changes_no_bit(cells, shared, tmp_path, monkeypatch):
    made = updates_counted(monkeypatch)
    assert run_cells(cells[:3], tmp_path, share=False) == {}
    assert len(made) == costs(cells[:3])[0] == 90
    for cell in cells[:3]:
        assert numbers(result_of(cell, shared)).identical(numbers(result_of(cell, tmp_path)))
    assert not (shared / "trunks").exists()
    assert not list(shared.glob("cells/*/checkpoints"))


def test_a_lost_pool_costs_time_only(cells, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(Trunks, "find", lambda *args: None)
    made = updates_counted(monkeypatch)
    assert run_cells(cells[:3], tmp_path) == {}
    assert len(made) == 90
    for cell in cells[:3]:
        assert numbers(result_of(cell, shared)).identical(numbers(result_of(cell, tmp_path)))


def long(config):
    return planned(replace(config, steps=200))


# --- keys ------------------------------------------------------------------------------------------------------------
def test_the_key_is_of_what_is_measured_on_what(cells):
    cell = cells[0]
    for same in ({"threads": 2}, {"checkpoint_every": 3}, {"data": "elsewhere"}):
        assert replace(cell, config=replace(cell.config, **same)).key == cell.key
    for other in ({"eval_every": 5}, {"seed": 7}, {"data_sha256": "1" * 64}, {"weight_decay": 0.5}):
        assert replace(cell, config=replace(cell.config, **other)).key != cell.key
    assert len({c.key for c in cells}) == len(cells)
    other = replace(cell, config=replace(cell.config, hessian_tol=0.5))
    assert cell.config.probes == ()
    assert other.key == cell.key  # nothing is measured by it
    probed = [replace(c, config=replace(c.config, probes=("sharpness",), snapshots=5)) for c in (cell, other)]
    assert probed[0].key != probed[1].key


def test_all_cells_have_the_same_warmup_and_a_reference():
    bench = Bench("mlp", configured, long)
    for name in ("wsd-vs-cosine", "wsd-s", "shapes", "to-convergence", "width"):
        plans = STUDIES[name].plans(bench, STUDIES[name].make())
        assert len({p.config.schedule["warmup"] for p in plans}) == 1
        assert {p.against for p in plans} <= {p.name for p in plans}


def test_a_cooldown_of_the_whole_run_is_all_that_the_warmup_leaves(bench):
    base = bench.base()
    plan = plan_of("all", base, wsd(base, 1.0, 30))
    assert plan.config.plan.windows("cooldown") == [(base.schedule["warmup"], 30)]
    assert plan.config.plan.total == plan_of("cosine", base, cosine(base)).config.plan.total == 30


def test_plans_of_one_name_or_without_their_reference_are_refused(bench):
    base = bench.base()
    one = plan_of("a", base, cosine(base))
    with pytest.raises(InputError, match="two plans named 'a'"):
        cells_of([one, one], (0,))
    with pytest.raises(InputError, match="compared with 'b', which the study does not have"):
        cells_of([replace(one, against="b")], (0,))


# --- what is done is kept --------------------------------------------------------------------------------------------
def test_a_cell_that_is_done_is_not_run_again(cells, shared, monkeypatch):
    def never(*args, **kwargs):
        raise RivervalError("was run again")

    monkeypatch.setattr(run_module, "run", never)
    assert run_cells(cells, shared) == {}
    more = [replace(c, config=replace(c.config, seed=2)) for c in cells[:1]]
    assert list(run_cells([*cells, *more], shared).values()) == ["was run again"]
    assert any("6 are done already; 1 left, 30 updates" in line for line in announcement([*cells, *more], shared))


def test_a_failed_cell_and_a_diverged_one_do_not_stop_the_rest(cells, tmp_path, monkeypatch):
    whole, told = run_module.run, []

    def broken(job, folder, *args, **kwargs):
        if Path(folder).name == cells[1].key:
            raise RivervalError("the disk is full")
        return whole(job, folder, *args, **kwargs)

    monkeypatch.setattr(run_module, "run", broken)
    first = cells[2]
    wild = replace(first, config=replace(first.config, lr=1e30, schedule={**first.config.schedule, "peak_lr": 1e30}))
    failed = run_cells([wild, *cells[:2]], tmp_path, tell=told.append)
    assert failed == {cells[1].label: "the disk is full"}
    assert result_of(wild, tmp_path).attrs["status"] == "diverged"
    assert result_of(cells[0], tmp_path).attrs["status"] == "complete"
    assert any("DIVERGED" in line for line in told)
    assert any("FAILED (the disk is full)" in line for line in told)
    monkeypatch.setattr(run_module, "run", whole)
    assert run_cells([wild, *cells[:2]], tmp_path) == {}


KILLED = "import sys; from riverval.cli import main; main(sys.argv[1:])"


def command(out, *more):
    sets = [word for text in [*SETS, "study.fractions=0.2,0.5"] for word in ("--set", text)]
    words = ["real", "study", "wsd-vs-cosine", "--arch", "mlp", "--data", "digits", "--preset", "smoke", "--seeds", "2"]
    return [*words, *sets, "--out", str(out), *more]


def test_a_killed_study_goes_on_to_the_same_bits(cells, shared, tmp_path):
    """SIGKILL once a cell is done, in the midst of the next one."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *command(tmp_path)], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = tmp_path / "study-wsd-vs-cosine-mlp"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(folder.glob("cells/*/run.nc"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    mine = [replace(cell, config=replace(cell.config, threads=None)) for cell in cells]
    done = [folder / "cells" / cell.key / "run.nc" for cell in mine if result_of(cell, folder) is not None]
    assert 1 <= len(done) < 6
    written = [path.stat().st_mtime_ns for path in done]
    assert called(command(tmp_path)) == 0
    assert [path.stat().st_mtime_ns for path in done] == written
    for one, other in zip(mine, cells, strict=True):
        assert numbers(result_of(one, folder)).identical(numbers(result_of(other, shared)))


# --- several processes -----------------------------------------------------------------------------------------------
def test_two_processes_give_the_same_bits(cells, shared, tmp_path):
    told = []
    few = [c for c in cells if c.plan.name != "cosine"]
    assert run_cells(few, tmp_path, jobs=2, tell=told.append) == {}
    for cell in few:
        assert numbers(result_of(cell, tmp_path)).identical(numbers(result_of(cell, shared)))
    assert told[-1].startswith("cells 4/4, updates ")


def test_a_process_that_dies_is_told_of(cells):
    told = []
    watch = study_run.Watch(cells, cells, groups_of(cells), told.append)

    class Dead:
        exitcode = -9

        def join(self):
            pass

    group = groups_of(cells)[0]
    watch(("done", group.steps[0].cell.key, "complete", 1.0))
    study_run._close(Dead(), group, watch)
    assert set(watch.failed.values()) == {"its process ended with code -9"}
    assert len(watch.failed) == 2
    assert told[-1].startswith("cells 3/6")


def test_the_time_left_is_by_the_updates_made(cells, monkeypatch):
    clock, told = [1000.0], []
    monkeypatch.setattr(study_run.time, "monotonic", lambda: clock[0])
    watch = study_run.Watch(cells, cells, groups_of(cells), told.append)
    first = groups_of(cells)[0].steps[0].cell
    watch(("update", first.key, 2))
    assert told == []
    clock[0] += 15.0
    watch(("update", first.key, 12))
    assert told == ["cells 0/6, updates 12/144, 3 min left"]  # 15 s for 10 of them, 132 to come
    clock[0] += 1.0
    watch(("update", first.key, 13))
    assert len(told) == 1


def test_the_time_left_counts_examples_and_parameters(cells, monkeypatch):
    """The first cell has a quarter of the batch and half of the parameters of the five others."""
    clock, told = [1000.0], []
    monkeypatch.setattr(study_run.time, "monotonic", lambda: clock[0])
    base = cells[0].config
    bigger = [replace(c, config=replace(c.config, batch=4 * base.batch, parameters=2 * base.parameters)) for c in cells]
    mixed = [cells[0], *bigger[1:]]
    groups = [groups_of([cell])[0] for cell in mixed]
    watch = study_run.Watch(mixed, mixed, groups, told.append)
    total = len(cells[0].rates)
    watch(("update", cells[0].key, 0))
    clock[0] += 20.0
    watch(("update", cells[0].key, total // 2))
    seconds = 20.0 * (1 + 5 * 16)  # as many for its other half, 16 times that for each of the others
    assert told == [f"cells 0/6, updates {total // 2}/{6 * total}, {study_run.duration(seconds)} left"]


def test_a_study_that_is_under_way_is_left_alone(cells, tmp_path):
    ended = []

    def tell(line):
        with pytest.raises(InputError, match="another process is at work"):
            run_cells(cells[:1], tmp_path)
        ended.append(line)

    assert run_cells(cells[:1], tmp_path, tell=tell) == {}
    assert len(ended) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"cells"}


def test_a_cell_that_a_worker_of_a_killed_study_still_runs_is_left_alone(cells, tmp_path):
    into = study_run.folder_of(cells[0], tmp_path)
    into.mkdir(parents=True)
    with alone(into):
        failed = run_cells(cells[:1], tmp_path)
    assert "another process is at work" in failed[cells[0].label]
    assert result_of(cells[0], tmp_path) is None


# --- the command -----------------------------------------------------------------------------------------------------
def test_a_result_is_known_again_whatever_the_order_of_its_plans(tmp_path, capsys):
    """Names in a file are sorted: batch 10 comes before batch 5 there."""
    command = ["real", "study", "noise", "--arch", "mlp", "--data", "digits", "--preset", "smoke", "--seeds", "1",
               "--set", "steps=20", "--set", "batch=10", "--set", "study.batches=0.5,1", "--set", "study.rates=1",
               "--out", str(tmp_path)]  # fmt: skip
    assert called(command) == 0
    before = store.load(tmp_path / "study-noise-mlp" / "study.nc")
    assert before["plan"].values.tolist()[0].startswith("batch 5,")
    assert called(command) == 0, capsys.readouterr().err
    assert numbers(store.load(tmp_path / "study-noise-mlp" / "study.nc")).identical(numbers(before))


def test_the_command_writes_the_result_and_refuses_another_in_its_place(tmp_path, capsys):
    few = ["real", "study", "wsd-vs-cosine", "--arch", "mlp", "--data", "digits", "--preset", "smoke",
           "--seeds", "1", "--set", "steps=20", "--out", str(tmp_path)]  # fmt: skip
    assert called([*few, "--set", "study.fractions=0.2,0.5"]) == 0
    folder = tmp_path / "study-wsd-vs-cosine-mlp"
    assert {"study.nc", "wsd-vs-cosine.png", "cells"} == {p.name for p in folder.iterdir()}
    shown = capsys.readouterr().out
    assert "3 cells: 3 plans at 1 seed; 60 updates" in shown
    assert "one seed" in shown
    assert "standard error over" not in shown
    ds = store.load(folder / "study.nc")
    assert ds.attrs["status"] == "complete"
    assert json.loads(ds.attrs["config"])["setting"] == {"fractions": [0.2, 0.5]}
    assert (folder / "study.nc").stat().st_size < 1e6
    assert called([*few, "--set", "study.fractions=0.2,0.6"]) == 2
    assert "is of other settings" in capsys.readouterr().err
    more = [*few[: few.index("--seeds")], "--seeds", "2", *few[few.index("--seeds") + 2 :]]
    assert called([*more, "--set", "study.fractions=0.2,0.5"]) == 0
    assert "3 are done already; 3 left" in capsys.readouterr().out
    assert store.load(folder / "study.nc").sizes["seed"] == 2


WRONG = {
    "unknown study": (["shape"], "unknown study 'shape'"),
    "number of another study": (["shapes", "--set", "study.budgets=1"], "unknown number of study shapes 'budgets'"),
    "no number": (["wsd-vs-cosine", "--set", "study.fractions=much"], "must be numbers, got 'much'"),
    "out of range": (["wsd-vs-cosine", "--set", "study.fractions=0.1,2"], "must be a finite number in"),
    "one fraction": (["wsd-vs-cosine", "--set", "study.fractions=0.1"], "at least two different ones"),
    "one budget": (["wsd-s", "--set", "study.budgets=1"], "budgets must be at least two"),
    "a shape first": (["shapes", "--set", "study.shapes=square"], "must begin with linear"),
    "another kind": (["architectures", "--set", "study.archs=lm", "--preset", "smoke"], "lm takes text"),
    "a schedule": (["shapes", "--preset", "smoke", "--set", "schedule.name=cosine"], "studies make their own"),
    "no seeds": (["shapes", "--seeds", "0"], "number of seeds"),
    "a negative seed": (["shapes", "--first-seed", "-1"], "first-seed must be a whole number of at least 0"),
    "its own seeds": (["shapes", "--set", "seed=3"], "choose them with --seeds and --first-seed"),
    "its own threads": (["shapes", "--set", "threads=2", "--jobs", "2"], "gives each process one thread"),
    "too short for its numbers": (
        ["wsd-vs-cosine", "--preset", "smoke", "--set", "steps=20"],
        "larger fraction or a longer run (study.fractions is 0.05,0.1,0.2,0.35,0.5,0.75,1; other: --set study.fract",
    ),
    "no jobs": (["shapes", "--jobs", "0"], "processes"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_told_before_anything_is_run(words, message, tmp_path, capsys):
    assert called(["real", "study", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_without_a_name_the_studies_are_listed(capsys):
    assert called(["real", "study"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in STUDIES)
