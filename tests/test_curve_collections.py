"""Collections with damaged runs: the others are read, and what was left out is told by name and reason."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings

import numpy as np
import pytest

from riverval import cli, store
from riverval.curve_files import lr_scheduling_rates, read_collection, read_curves
from riverval.curves import Curve
from riverval.errors import InputError
from riverval.law_trials import list_trials

from . import made, made_real
from .test_curve_files import write_csv, write_log

SETTINGS = {
    "lr": 1e-3, "scheduler": "wsd", "decay_type": "linear", "wsd_fract_decay": 0.2, "warmup_steps": 30,
    "parameters": 123_587_328,
}  # fmt: skip
FIT = ("cosine_24000", "constant_24000", "wsdcon_9")


def names(runs):
    return [run.name for run in runs]


def write_sizes(folder, *schedules, size=25):
    """Logs as those of the multi-power collection, all of one constant rate."""
    steps = np.arange(2160, 4000, 100)
    for name in schedules:
        write_csv(folder / f"csv_{size}" / f"{name}.csv", steps, np.full(steps.size, 3e-4), 2 + steps**-0.3)


def write_grid(folder, *plans):
    """``runs.csv`` and ``curves.csv`` with a run for each (iterations, share of the cooldown, decay_type)."""
    header = ["run", "parameters", "lr", "scheduler", "decay_type", "wsd_fract_decay", "warmup_steps", "iterations"]
    runs, curves = [",".join([*header, "final_val_loss"])], ["run,split,iter,lr,loss"]
    for run, (total, share, kind) in enumerate(plans):
        settings = SETTINGS | {"run": run, "iterations": total, "wsd_fract_decay": share, "decay_type": kind}
        runs.append(",".join(str(settings[name]) for name in header) + ",3.0")
        lr, _ = lr_scheduling_rates(settings)
        for step in range(0, total, total // 20):
            curves.append(f"{run},train,{step},{lr[step]},3.5")
            curves.append(f"{run},val,{step},,{3.5 - 0.5 * step / total}")
    folder.mkdir(exist_ok=True)
    (folder / "runs.csv").write_text("\n".join(runs) + "\n")
    (folder / "curves.csv").write_text("\n".join(curves) + "\n")


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


# --- what is left out -------------------------------------------------------------------------------------------------
def test_a_run_that_contradicts_its_log_leaves_the_others(tmp_path):
    for name in ("a", "b", "c"):
        write_log(tmp_path / "data" / f"{name}.json")
    run = json.loads((tmp_path / "data" / "b.json").read_text())
    run["history"]["train"]["train_lr"][3] *= 1.01
    (tmp_path / "data" / "b.json").write_text(json.dumps(run))
    found = read_collection(tmp_path)
    name = found.curves[0].name
    assert names(found.curves) == [name, f"{name} #3"]  # the names are those that they would have with b
    (left,) = found.left_out
    assert left.name == f"{name} #2"
    assert "b.json: its settings give the rate" in left.reason
    assert (left.facts["shape"], left.facts["peak_lr"]) == ("linear", 1e-3)
    with pytest.warns(RuntimeWarning) as told:
        assert names(read_curves(tmp_path)) == names(found.curves)
    assert [str(w.message) for w in told] == [f"left out {left.name}: {left.reason}"]
    assert told[0].filename == __file__
    with pytest.raises(InputError, match=r"b\.json: its settings give the rate"):
        read_curves(tmp_path / "data" / "b.json")


def test_a_whole_collection_is_read_without_a_word(tmp_path):
    write_log(tmp_path / "a.json")
    (tmp_path / "other.json").write_text('{"config": 1}')  # some other JSON, and some other table
    (tmp_path / "other.jsonl").write_text('{"text": "loss"}\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_curves(tmp_path)) == 1
    assert read_collection(tmp_path).left_out == []


@pytest.mark.parametrize(
    ("file", "content", "name", "told"),
    [
        ("cut.json", b'{"config": {"lr": 1', "cut.json", r"cut\.json is not JSON"),
        ("deep.json", b"[" * 100_000, "deep.json", r"deep\.json is not JSON"),
        ("half.json", b'{"config": {}, "summary": {}}', "half", r"half\.json lacks what a log .*'history'"),
        ("odd.json", b'{"config": 1, "history": {}, "summary": {}}', "odd", r"odd\.json lacks a setting"),
        ("odd.json", b'{"config": {}, "history": [], "summary": {}}', "odd", r"odd\.json lacks what a log"),
        ("empty.csv", b"", "empty", r"empty\.csv has no column step, lr, loss"),
        ("torn.csv", b"step,lr,loss\n1,.1,3\n2,.1,2\n3,.", "torn", r"torn\.csv, line 4: 2 cells for 3 columns"),
        ("zero.tsv", b"step\tlr\tloss\n1\t0\t3\n2\t0\t2\n", "zero", r"zero\.tsv: curve 'zero' has the rate 0"),
        ("bytes.csv", b"step,lr,loss\n1,.1,\xff\n", "bytes", r"bytes\.csv cannot be read as text"),
        ("packed.csv", gzip.compress(b"step,lr,loss\n"), "packed", r"packed\.csv is packed with gzip; unpack it"),
        (
            "plain.csv.gz",
            b"step,lr,loss\n1,.1,3\n",
            "plain",
            r"plain\.csv\.gz is not packed with gzip; .* take \.gz off",
        ),
        (
            "rows.json",
            b'{"step": 1}\n{"step": 2}\n',
            "rows.json",
            r"is not JSON \(Extra data.*; name a table of .*\.jsonl",
        ),
        ("cut.csv.gz", gzip.compress(b"step,lr,loss\n" * 99)[:40], "cut", r"cut\.csv\.gz cannot be read as text"),
        ("bad.csv.gz", gzip.compress(b"step,lr,loss")[:10] + b"\xff" * 40, "bad", "fetch it again"),
        ("cut.jsonl", b'{"step": 1, "lr"', "cut", r"cut\.jsonl, line 1: not JSON"),
        ("csv_25/a.csv", b"st", "25M/a", r"csv_25/a\.csv has no column step, lr, loss"),
        ("csv_25/a.csv", b"\xff", "25M/a", r"csv_25/a\.csv cannot be read as text"),
        ("other.nc", b"CDF", "other", r"other\.nc"),
        ("mine/run.nc", b"CDF", "mine", r"run\.nc"),
        ("grid/runs.csv", b"run,lr\n1,2\n", "grid", r"runs\.csv has no column parameters"),
    ],
)
def test_damaged_runs_are_named_with_the_reason(tmp_path, file, content, name, told):
    write_csv(tmp_path / "good.csv", [1, 2], [1, 1], [2, 1])
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    if file.startswith("grid"):
        (tmp_path / "grid" / "curves.csv").write_text("run,split,iter,lr,loss\n")
    with pytest.warns(RuntimeWarning, match=f"left out {name}: .*{told}"):
        assert names(read_curves(tmp_path)) == ["good"]
    (tmp_path / "good.csv").unlink()
    with pytest.raises(InputError, match=f"no curve in .* can be read: {name}: .*{told}"):
        read_curves(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iterations": -5}, "-5 updates"),
        ({"iterations": 1e400}, "infinity"),
        ({"lr": float("nan")}, "the rate nan"),
        ({"wsd_fract_decay": 3}, "a cooldown of 3"),
    ],
)
def test_settings_of_no_run(tmp_path, changes, told):
    file = write_log(tmp_path / "a.json")
    run = json.loads(file.read_text())
    run["config"] |= changes
    file.write_text(json.dumps(run))
    with pytest.raises(InputError, match=told):
        read_curves(file)


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("train", {"iter": [200, 210], "train_lr": [1e-3]}, "logged rates of the shape"),
        ("train", {"iter": [[200]], "train_lr": [[1e-3]]}, "logged rates of the shape"),
        ("val", {"iter": [200, 220], "val_loss": [3.0]}, "columns must have one length"),
        ("val", {"iter": [200, 10**400], "val_loss": [3.0, 2.0]}, "lacks what a log"),
        ("final-val", {"final_val_loss": [10**400]}, "which is no number"),
        ("final-val", {"final_val_loss": ["far"]}, "the final loss 'far', which is no number"),
        ("final-val", 3, "lacks what a log"),
    ],
)
def test_logs_of_odd_forms(tmp_path, part, value, told):
    file = write_log(tmp_path / "a.json")
    run = json.loads(file.read_text())
    run["history"][part] = value
    file.write_text(json.dumps(run))
    with pytest.raises(InputError, match=told):
        read_curves(file)


def test_one_bad_row_of_the_tables_costs_its_run_alone(tmp_path):
    write_grid(tmp_path, *[(total, 0.2, "linear") for total in (1000, 2000, 3000, 4000)])
    name = "124M/lr0.001/linear-0.2-"
    change(tmp_path / "curves.csv", "0,val,50,,", "0,val,fifty,,")
    change(tmp_path / "curves.csv", "1,val,100,,3.475", "1,va")
    change(tmp_path / "runs.csv", "\n2,", "\n9,")
    found = read_collection(tmp_path)
    assert names(found.curves) == [f"{name}4000"]
    told = {run.name: run.reason for run in found.left_out}
    assert sorted(told) == [f"{name}1000", f"{name}2000", f"{name}3000", "run 2"]
    assert "curves.csv, line 5: column iter must hold numbers such as 1000 or 0.001, got 'fifty'" in told[f"{name}1000"]
    assert "curves.csv, line 45: 2 cells for 5 columns" in told[f"{name}2000"]
    assert "0 usable rows" in told[f"{name}3000"]  # the run 9 that it says it is has no log
    assert "run 2 of" in told["run 2"]
    assert "is not in" in told["run 2"]
    change(tmp_path / "runs.csv", "\n0,", "\n0,7,7,")
    (left, *_) = read_collection(tmp_path).left_out
    assert left.name == "run 0"
    assert "runs.csv, line 2: 11 cells for 9 columns" in left.reason


def test_tables_of_a_collection_without_any_run(tmp_path):
    write_grid(tmp_path)
    with pytest.raises(InputError, match=r"runs\.csv lists no run, and .*curves\.csv has no row; fetch them again"):
        read_curves(tmp_path)


def test_what_is_left_out_may_be_changed(tmp_path):
    (tmp_path / "odd.json").write_text('{"config": {}, "summary": {}}')
    write_csv(tmp_path / "good.csv", [1, 2], [1, 1], [2, 1])
    read_collection(tmp_path).left_out[0].facts["mine"] = 1
    assert read_collection(tmp_path).left_out[0].facts == {"format": "lr-scheduling"}


def test_a_study_among_runs_is_left_out(tmp_path):
    store.save(made.valley(made.WSD, slope=0.1, hill=0.2), tmp_path / "good.nc")
    store.save(made_real.fractions(), tmp_path / "study.nc")
    with pytest.warns(RuntimeWarning, match="left out study: .*no single loss curve"):
        assert names(read_curves(tmp_path)) == ["good"]


def test_options_of_plain_tables_that_could_not_be_read_are_no_mistake(tmp_path):
    write_log(tmp_path / "run.json")
    write_csv(tmp_path / "late.csv", [100, 200, 300], [1, 1, 1], [3, 2, 1])
    found = read_collection(tmp_path, warmup=150)
    assert (len(found.curves), names(found.left_out)) == (1, ["late"])


def test_of_many_reasons_three_are_told(tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.csv").write_text("step,lr,loss\n1,.1\n")
    with pytest.raises(InputError, match=r"can be read: a: .*; b: .*; c: [^;]*; mend the row; and 2 more$"):
        read_curves(tmp_path)


# --- what a protocol needs --------------------------------------------------------------------------------------------
def trials_of(folder, protocols=None, told=None):
    found = read_collection(folder)
    return list_trials(found.curves, protocols, left_out=found.left_out, tell=told)


def test_a_lost_target_is_not_predicted(tmp_path):
    write_sizes(tmp_path, *FIT, "wsd", "wsdld")
    change(tmp_path / "csv_25" / "wsd.csv", ",", ";")
    (trial,) = trials_of(tmp_path, ["M"])
    assert names(trial.targets) == ["25M/wsdld"]


@pytest.mark.parametrize("lost", FIT)
def test_a_lost_run_to_fit_is_an_error_with_its_reason(tmp_path, lost):
    write_sizes(tmp_path, *FIT, "wsd")
    write_sizes(tmp_path, *FIT, "wsd", size=100)
    change(tmp_path / "csv_25" / f"{lost}.csv", "0.0003", "x")
    with pytest.raises(InputError, match=rf"25M/{lost} is a run to fit and cannot be read: .*{lost}\.csv, line 2"):
        trials_of(tmp_path, ["M"])
    (tmp_path / "csv_25" / f"{lost}.csv").unlink()  # as the message says
    told = []
    assert [trial.data for trial in trials_of(tmp_path, ["M"], told.append)] == ["100M"]
    assert told == [f"25M is passed over: it lacks {lost}"]


def test_a_size_that_lacks_a_run_anyway_is_passed_over(tmp_path):
    write_sizes(tmp_path, *FIT, "wsd", size=100)
    write_sizes(tmp_path, FIT[1], FIT[2], "wsd")
    change(tmp_path / "csv_25" / f"{FIT[2]}.csv", "0.0003", "x")
    told = []
    assert [trial.data for trial in trials_of(tmp_path, ["M"], told.append)] == ["100M"]
    assert told == [f"25M is passed over: it lacks {FIT[0]}, {FIT[2]}"]


def test_a_protocol_is_not_concerned_with_the_runs_of_another(tmp_path):
    write_sizes(tmp_path, *FIT, "wsd")
    plans = [(50_000, 0.0, "linear"), (25_000, 0.2, "linear"), (25_000, 0.4, "linear")]
    write_grid(tmp_path / "grid", *plans)
    shutil.copytree(tmp_path, tmp_path.parent / "other", dirs_exist_ok=True)
    change(tmp_path / "csv_25" / "wsdcon_9.csv", "0.0003", "x")
    assert [trial.protocol for trial in trials_of(tmp_path, ["A"])] == ["A"]
    with pytest.raises(InputError, match="25M/wsdcon_9 is a run to fit"):
        trials_of(tmp_path, ["B"])
    change(tmp_path.parent / "other" / "grid" / "curves.csv", "0,val,2500,,", "0,val,2500.5,,")
    assert [trial.protocol for trial in trials_of(tmp_path.parent / "other", ["M"])] == ["M"]
    with pytest.raises(InputError, match="constant-50000 is a run to fit"):
        trials_of(tmp_path.parent / "other", ["A"])


def test_a_repeat_stands_in_for_a_lost_run_and_another_run_does_not(tmp_path):
    """The stable run of the linear family is the one to fit; the other family's is as long and would be taken."""
    plans = [(50_000, 0.0, "sqrt"), (50_000, 0.0, "linear"), (25_000, 0.2, "linear"), (25_000, 0.4, "linear")]
    write_grid(tmp_path, *plans)
    change(tmp_path / "curves.csv", "1,val,2500,,", "1,val,x,,")
    with pytest.raises(InputError, match=r"constant-50000 #2 is a run to fit and cannot be read: .*got 'x'"):
        trials_of(tmp_path, ["A"])
    write_grid(tmp_path, *plans, plans[1])
    change(tmp_path / "curves.csv", "1,val,2500,,", "1,val,x,,")
    with (tmp_path / "curves.csv").open("a") as file:
        file.write("4,val,2500,,3.475\n")  # a repair is noted, which the lost run has no notes of
    (trial,) = trials_of(tmp_path, ["A"])
    assert len(trial.train[0].notes) == 2
    assert names(trial.train) == ["124M/lr0.001/constant-50000 #3", "124M/lr0.001/linear-0.2-25000"]


@pytest.mark.parametrize("data", [[1, ["x"]], [7, 8], ["a", "b"]])
def test_data_sets_are_told_apart_whatever_they_are_called(data):
    runs, curves = ((50_000, 0.0), (25_000, 0.2), (25_000, 0.4)), []
    for name in data:
        for total, share in runs:
            settings = SETTINGS | {"dataset": name, "iterations": total, "wsd_fract_decay": share}
            lr, facts = lr_scheduling_rates(settings)
            curves.append(Curve(f"{name} {total} {share}", lr, [100, total], [3.0, 2.0], final_loss=2.0, facts=facts))
    assert [trial.data for trial in list_trials(curves, ["A"])] == sorted(f"124M {name} 0.001" for name in data)
    alone = list_trials(curves[:3], ["A"])
    assert [trial.data for trial in alone] == ["124M 0.001"]


def test_where_there_is_no_trial_the_reasons_are_repeated(tmp_path):
    write_sizes(tmp_path, "cosine_24000", "wsd")
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(InputError, match=r"allow no trial of protocol M.*; left out cut\.json: .* is not JSON"):
        trials_of(tmp_path, ["M"])


# --- the commands -----------------------------------------------------------------------------------------------------
def run(*words):
    with pytest.raises(SystemExit) as done:
        cli.main(list(words))
    return done.value.code or 0


@pytest.fixture
def logs(tmp_path):
    steps = np.arange(0, 4001, 100)
    loss = np.append(10.0, 2.5 + 0.6 * (3e-4 * steps[1:]) ** -0.45)
    for name in ("one", "two", "bad"):
        write_csv(tmp_path / f"{name}.csv", steps, np.full(steps.size, 3e-4), loss)
    change(tmp_path / "bad.csv", "0.0003", "x")
    return str(tmp_path)


def test_fit_leaves_out_and_says_so(logs, capsys):
    assert run("law", "fit", logs, "--law", "equal-tau") == 0
    shown = capsys.readouterr()
    assert (
        shown.err
        == f"left out bad: {logs}/bad.csv, line 2: column lr must hold numbers such as 1000 or 0.001, got 'x'\n"
    )
    assert "one" in shown.out
    assert "bad" not in shown.out


@pytest.mark.parametrize("asked", ["bad", "one,bad", "b*"])
def test_fit_of_the_very_run_is_an_error(logs, capsys, asked):
    assert run("law", "fit", logs, "--law", "equal-tau", "--curves-named", asked) == 2
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith(f"riverval: bad is asked for and cannot be read: {logs}/bad.csv, line 2: column lr")
    assert shown.out == ""


def test_fit_of_a_pattern_that_others_match_too_goes_on(logs, capsys):
    assert run("law", "fit", logs, "--law", "equal-tau", "--curves-named", "*") == 0
    assert "left out bad: " in capsys.readouterr().err


def test_score_leaves_out_and_says_so(tmp_path, capsys):
    write_sizes(tmp_path, *FIT, "wsd", "wsdld")
    change(tmp_path / "csv_25" / "wsd.csv", "0.0003", "x")
    words = ("law", "score", "--curves", str(tmp_path), "--laws", "equal-tau", "--protocols", "M")
    assert run(*words) == 0
    shown = capsys.readouterr()
    assert "read 4 curves" in shown.err
    assert "left out 25M/wsd: " in shown.err
    change(tmp_path / "csv_25" / "wsdcon_9.csv", "0.0003", "x")
    assert run(*words) == 2
    assert "riverval: 25M/wsdcon_9 is a run to fit and cannot be read: " in capsys.readouterr().err
