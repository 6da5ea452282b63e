"""`riverval toy check` as it is called from the shell: table, files, exit codes."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from riverval.cli import main
from riverval.store import load
from riverval.toy import predictions


def call(*words: str) -> int:
    """The exit code of ``riverval toy check ...``."""
    with pytest.raises(SystemExit) as stop:
        main(["toy", "check", *words])
    return stop.value.code


def test_a_check_prints_a_table_and_writes_a_dataset(tmp_path, capsys):
    path = tmp_path / "verdicts.nc"
    assert call("--only", "P-HILL.2,P-WSDS.1", "--seed", "5", "--out", str(path)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for words in (
        "5 predictions, effort quick, seed 5",
        "fails as predicted",
        "P-WSDS.1",
        "hill loss, upper bound",
        "<= 4",
        f"wrote {path}",
        "4 predictions hold, 1 fail as predicted, 0 otherwise",
    ):
        assert words in said.out
    ds = load(path)
    assert ds.attrs["status"] == "complete"
    assert set(ds["prediction"].values) == {"P-HILL.2", "P-HILL.2b", "P-HILL.2c", "P-HILL.2d", "P-WSDS.1"}
    assert float(ds["prediction_theory"].sel(prediction="P-HILL.2b")) == 0.25


def test_the_same_seed_prints_the_same_and_all_takes_more_samples(capsys):
    said = []
    for words in (("--seed", "1"), ("--seed", "1", "--quick"), ("--seed", "2"), ("--seed", "1", "--all")):
        assert call("--only", "P-HILL.2b", *words) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert "effort all" in said[3]


def spoil(monkeypatch, name, **changes):
    """Make a prediction another one."""
    changed = {**predictions.PREDICTIONS, name: replace(predictions.PREDICTIONS[name], **changes)}
    monkeypatch.setattr(predictions, "PREDICTIONS", changed)


def test_another_verdict_than_the_theorys_is_told_and_exits_with_1(capsys, monkeypatch):
    spoil(monkeypatch, "P-HILL.2b", must_fail=True)
    assert call("--only", "P-HILL.2b") == 1
    said = capsys.readouterr().out
    assert "does not fail" in said
    assert "0 predictions hold, 0 fail as predicted, 1 otherwise (1 numbers)" in said
    assert "P-HILL.2b: does not fail: the upper bound is reached where eta h = 1 [H = eta sigma^2 / 2]" in said


def test_a_wrong_constant_exits_with_1(capsys, monkeypatch):
    theory = sys.modules["riverval.theory"]
    true = theory.stationary_hill
    monkeypatch.setattr(theory, "stationary_hill", lambda *args: 1.1 * true(*args))
    assert call("--only", "P-HILL.1") == 1
    assert "P-HILL.1: fails, holds: " in capsys.readouterr().out


def test_ctrl_c_shows_and_writes_what_is_done(tmp_path, capsys, monkeypatch):
    def interrupt(parameters, lab):
        raise KeyboardInterrupt

    spoil(monkeypatch, "P-HILL.2c", measure=interrupt)
    path = tmp_path / "part.nc"
    assert call("--only", "P-HILL.2", "--out", str(path)) == 130
    said = capsys.readouterr()
    assert "interrupted after 2 of 4 predictions; those are shown" in said.err
    assert "P-HILL.2b" in said.out
    assert "P-HILL.2c" not in said.out
    assert load(path).attrs["status"] == "interrupted"


def test_ctrl_c_at_once_writes_nothing(tmp_path, monkeypatch):
    def interrupt(parameters, lab):
        raise KeyboardInterrupt

    spoil(monkeypatch, "P-HILL.2b", measure=interrupt)
    assert call("--only", "P-HILL.2b", "--out", str(tmp_path / "v.nc")) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "P-HIL"], "unknown prediction 'P-HIL'; choose one of: P-HILL, P-RIVER"),
        (["--only", "P-HILL.1,"], "unknown prediction ''"),
        (["--out", "v.csv"], "--out names the dataset to write, which ends in .nc, got v.csv"),
        (["--out", "nowhere/v.nc"], "the folder nowhere does not exist; make it first"),
        (["--out", "there.nc"], "there.nc exists; choose another path, or replace it with --overwrite"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_before_any_work(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.nc").touch()
    monkeypatch.setattr(sys.modules["riverval.toy.cli_check"], "check_all", None)
    assert call(*words) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_a_file_is_replaced_on_demand(tmp_path):
    path = tmp_path / "v.nc"
    path.touch()
    assert call("--only", "P-HILL.2b", "--out", str(path), "--overwrite") == 0
    assert load(path).sizes["prediction"] == 1


def test_help_shows_examples(capsys):
    assert call("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("riverval toy check --only P-DECAY,P-WSDS.2", "--all", "--quick", "Exit code 1"):
        assert words in said
