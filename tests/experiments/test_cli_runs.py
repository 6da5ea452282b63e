"""The commands on runs: what they make, print and refuse, on a net of a few weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from riverval import plots_real, store
from riverval.cli import main
from riverval.experiments import run as run_module
from riverval.experiments.cli_runs import timing_lines
from riverval.experiments.locks import alone

TINY = "--preset smoke --arch cnn --widths 2,2,2,2,4 --steps 30 --set eval_every=10 --set checkpoint_every=10"


def call(text):
    """Exit code of a command."""
    try:
        main(text.split())
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one run, made once; tests take copies."""
    out = tmp_path_factory.mktemp("made") / "runs"
    assert call(f"real run {TINY} --set probes=pca,interpolation --seed 3 --name a --out {out}") == 0
    return out


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    """A copy of that folder, `runs` in the current one; runs of the test are not drawn, which would take seconds."""
    monkeypatch.setattr(plots_real, "write_run", lambda ds, folder: [])
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def config_of(folder):
    return json.loads(store.load(folder).attrs["config"])


def test_a_run_is_drawn(made):
    assert (made / "a" / "real.png").stat().st_size > 10_000


def test_the_resolved_configuration_is_in_the_dataset(runs):
    found = config_of(runs / "a")
    wanted = {"steps": 30, "widths": [2, 2, 2, 2, 4], "batch": 32, "eval_every": 10, "seed": 3, "alphas": 5,
              "optimizer": "adamw", "probes": ["pca", "interpolation"], "epochs": None}  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert found["schedule"]["cooldown"] == 0.35
    assert found == json.loads((runs / "a" / "config.json").read_text())


def test_the_end_tells_where_the_time_went(runs, capsys):
    assert call("real run --preset smoke --arch cnn --widths 2,2,2,2,4 --steps 12 --set probes=pca") == 0
    shown = capsys.readouterr().out
    assert "time: training" in shown
    assert "% of the run)" in shown
    assert "probes: pca" in shown
    assert "writing to runs/cnn-wsd\n" in shown


def test_one_command_makes_a_fan_of_branches(runs, capsys):
    assert call("real branch runs/a --from 50% --cooldown 0.25,0.5 --shape linear,1-sqrt") == 0
    shown = capsys.readouterr().out
    names = [f"a-from-15-{shape}-{c}" for shape in ("linear", "1-sqrt") for c in (0.25, 0.5)]
    trunk = store.load(runs / "a")
    for name in names:
        ds = store.load(runs / name)
        assert ds.attrs["status"] == "complete"
        assert ds.sizes["step"] == (20 if name.endswith("0.25") else 30)
        np.testing.assert_array_equal(ds["train_loss"][:15], trunk["train_loss"][:15])
        assert name in shown
    assert (runs / "a-from-15.png").exists()
    assert f"riverval compare runs/{names[0]} runs/{names[1]}" in shown
    # State 15 was not kept: the first branch repeats what comes before it, for all of them.
    assert shown.count("branching off at state 15, from the full state 15") == 3
    assert not store.load(runs / names[3]).attrs["notes"]


def test_a_branch_takes_the_end_of_the_stable_phase_and_the_architectures_cooldown(runs):
    assert call("real branch runs/a --name b --out elsewhere --decay-shape cosine") == 0
    ds, trunk = store.load("elsewhere/b"), store.load(runs / "a")
    assert ds.sizes["step"] == 31  # 20 stable updates are 65% of it
    assert config_of("elsewhere/b")["schedule"]["parts"][-1]["shape"]["name"] == "cosine"
    np.testing.assert_array_equal(ds["train_loss"][:20], trunk["train_loss"][:20])
    assert not (runs / "a-from-20.png").exists()
    assert call("real branch runs/a --name b --out elsewhere") == 2
    assert call("real branch runs/a --name b --out elsewhere --overwrite") == 0


def test_an_interruption_ends_all_branches(runs, monkeypatch, capsys):
    seen = []

    def interrupted(folder, at, schedule, into, progress, *, tell, beside, keep_for):
        seen.append(into)
        return store.load(folder).assign_attrs(status="interrupted")

    monkeypatch.setattr(run_module, "branch", interrupted)
    assert call("real branch runs/a --cooldown 0.2,0.4") == 130
    assert len(seen) == 1
    assert "go on with: riverval real resume runs/a-from-20-linear-0.2" in capsys.readouterr().err


def test_probe_measures_again_and_nothing_else(runs, capsys):
    before = store.load(runs / "a")
    assert call("real probe runs/a --set alphas=7 --set probes=interpolation --name fine") == 0
    fine = store.load(runs / "fine")
    assert fine.sizes["alpha"] == 7
    assert before.identical(store.load(runs / "a"))
    np.testing.assert_array_equal(fine["train_loss"], before["train_loss"])
    assert call("real probe runs/a --set alphas=7") == 0
    assert store.load(runs / "a").sizes["alpha"] == 7


def test_resume_of_a_finished_run_says_so(runs, capsys):
    before = store.load(runs / "a")
    assert call("real resume runs/a") == 0
    assert "runs/a is finished" in capsys.readouterr().out
    assert before.identical(store.load(runs / "a"))


def test_list_tells_of_every_real_run(runs, capsys):
    (runs / "empty").mkdir()
    (runs / "broken").mkdir()
    (runs / "broken" / "run.nc").write_text("no dataset")
    assert call("toy simulate --steps 20 --replicates 2 --name toy") == 0
    capsys.readouterr()
    assert call("real list") == 0
    shown = capsys.readouterr().out
    (row,) = (line for line in shown.splitlines() if line.startswith("│ a "))
    assert [cell.strip() for cell in row.split("│")][2:6] == ["complete", "cnn", "digits", "3"]
    assert "30 of 30" in shown
    assert "cannot be read" in shown
    assert "empty" not in shown
    assert "toy" not in shown
    assert call("real list --out nowhere") == 0
    assert "no real runs in nowhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("resume nowhere", "there is no folder nowhere; give the folder of a real run"),
        ("branch runs/a --from 101%", "--from"),
        ("branch runs/a --from 15 --cooldown x", "--cooldown must be numbers"),
        ("branch runs/a --from 15 --cooldown 0.01", "has 0 updates"),
        ("branch runs/a --from 15 --shape lineer", "Did you mean 'linear'"),
        ("branch runs/a --name ../x", "plain folder name"),
        ("probe runs/a --set batch=4", "batch"),
        ("probe runs/a --set schedule.cooldown=0.4", "riverval real branch"),
        ("probe runs/a --set probes=pcaa --name x", "Did you mean 'pca'"),
        ("probe nowhere --set alphas=3", "give the folder of a real run"),
        ("run --arch cnn --preset smok", "Did you mean 'smoke'"),
        ("run --arch cnn --set lr=x", "--set lr must be a number"),
        ("run --arch cnn --preset smoke --set probes=pcaa", "Did you mean 'pca'"),
        ("run --arch cnn --preset smoke --width-factor 0.3", "width_factor 0.3 makes the hidden widths"),
        ("run --arch cnn --preset smoke --steps 30 --cooldown 0.03", "is 1 update"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_made(runs, command, message, capsys):
    before = sorted(runs.rglob("*"))
    assert call(f"real {command}") in (1, 2)
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert sorted(runs.rglob("*")) == before


def test_a_file_that_is_no_configuration_is_told(runs, capsys):
    for text in ("{", "[1]", '{"arch": "cnn"}'):
        (runs / "a" / "config.json").write_text(text)
        assert call("real resume runs/a") in (1, 2)
        assert "configuration" in capsys.readouterr().err


def test_a_run_that_was_killed_at_its_start_is_listed_and_told_how_to_go_on(runs, capsys):
    for path in [runs / "a" / "run.nc", *(runs / "a" / "checkpoints").glob("*")]:
        path.unlink()
    assert call("real list") == 0
    assert "no records" in capsys.readouterr().out
    assert call("real probe runs/a") == 2
    assert "not trained to its end; go on with: riverval real resume runs/a" in capsys.readouterr().err


def test_what_was_measured_is_not_replaced_by_nothing(runs, capsys):
    shutil.rmtree(runs / "a" / "snapshots")
    before = store.load(runs / "a")
    assert call("real probe runs/a") == 2
    assert "runs/a has no snapshots to measure" in capsys.readouterr().err
    assert before.identical(store.load(runs / "a"))


@pytest.mark.parametrize("words", ["resume runs/a", "probe runs/a", f"run {TINY} --name a --overwrite"])
def test_a_run_that_another_process_trains_is_left_alone(words, runs, capsys):
    before = (runs / "a" / "run.nc").stat().st_mtime_ns
    with alone(runs / "a"):
        assert call(f"real {words}") == 2
    assert "another process is at work in runs/a" in capsys.readouterr().err
    assert (runs / "a" / "run.nc").stat().st_mtime_ns == before
    assert not (runs / "a" / ".lock").exists()


def test_timing_is_told_with_the_share_of_the_probes():
    timing = {"training_seconds": 60.0, "evaluation_seconds": 15.0, "start": 0, "probe_seconds": {"a": 5.0, "b": 20.0}}
    assert timing_lines(timing) == [
        "time: training 60.0 s, evaluation 15.0 s, probes 25.0 s (25% of the run)", "probes: b 20.0 s, a 5.0 s",
    ]  # fmt: skip
    assert timing_lines({"training_seconds": 60.0}) == ["time: training 60.0 s"]
    assert timing_lines({}) == []
