"""Readers of loss curves: files made here in each public form, and the published ones where they lie beside."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from riverval import schema, store
from riverval.curve_files import lr_scheduling_rates, read_collection, read_curves
from riverval.errors import InputError
from riverval.provenance import provenance

from . import made, made_real
from .test_curves import CASES

SHARED = Path(os.environ.get("RIVERVAL_SHARED", Path(__file__).parents[2] / "shared"))
PUBLISHED = SHARED / "data" / "curves"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published curves are not beside the checkout")


def write_csv(path, steps, lr, loss, header="step,lr,loss"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *(f"{s},{r!r},{v}" for s, r, v in zip(steps, map(float, lr), loss, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_log(path, *, drop=(), **changes):
    """A run as lr-scheduling logs it: a cooldown of 400 updates that was resumed at update 200."""
    config = {
        "lr": 1e-3, "scheduler": "wsd", "decay_type": "linear", "wsd_fract_decay": 0.5, "wsd_final_lr_scale": 0,
        "cos_final_lr": -1, "warmup_steps": 30, "iterations": 400, "dataset": "pajama", "wandb_run_prefix": "ann",
    } | changes  # fmt: skip
    steps = np.arange(200, 400, 20)
    lr = lr_scheduling_rates(config | {"parameters": 123_587_328})[0]
    for name in drop:
        del config[name]
    logged = np.append(lr[steps + 10], 0.0)  # one beyond the last update
    run = {
        "config": config, "summary": {"parameters": 123_587_328},
        "history": {
            "val": {"iter": steps.tolist(), "val_loss": (4 - steps / 400).tolist()},
            "train": {"iter": [*(steps + 10).tolist(), 400], "train_lr": logged.tolist()},
            "final-val": {"final_val_loss": [3.08]},
        },
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run))
    return path


# --- plain tables ----------------------------------------------------------------------------------------------------
def test_a_plain_csv_needs_its_start(tmp_path):
    file = write_csv(tmp_path / "mine.csv", [1000, 1010, 1020], [0.1, 0.1, 0.05], [3, 2, 1])
    with pytest.raises(InputError, match=r"mine\.csv starts at step 1000.*warmup"):
        read_curves(file)
    (curve,) = read_curves(file, warmup=500, peak_lr=0.2)
    assert curve.name == "mine"
    assert curve.total == 1020
    assert curve.lr[[0, 499, 999, 1000]].tolist() == [0.2 / 500, 0.2, 0.2, 0.1]
    assert curve.facts["warmup"] == 500


def test_a_row_of_step_0_gives_its_rate_only(tmp_path):
    file = write_csv(tmp_path / "mine.csv", [0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4], [9, 3, 2, 1])
    (curve,) = read_curves(file)
    assert curve.lr.tolist() == [0.1, 0.2, 0.3]
    assert (curve.steps.tolist(), curve.loss.tolist()) == ([1, 2, 3], [3, 2, 1])


def test_compressed_and_oddly_spaced_headers(tmp_path):
    file = tmp_path / "mine.csv.gz"
    file.write_bytes(gzip.compress(b"step, loss, lr\n1, 3, 0.1\n2, 2, 0.1\n"))
    assert read_curves(file)[0].loss.tolist() == [3, 2]
    assert read_curves(file)[0].name == "mine"


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ("step,loss\n1,2\n2,1\n", {}, "has no column lr.*found: step, loss"),
        ("", {}, "has no column step, lr, loss"),
        ("step,lr,loss\n1,.1,2\n1,.1,1\n", {}, "step 1 is there twice.*repair"),
        ("step,lr,loss\n1,.1,2\n2,.1,nan\n", {}, "loss is nan at step 2"),
        ("step,lr,loss\n1,.1,2\n2,.1,nan\n", {"repair": True}, "1 usable rows"),
        ("step,lr,loss\n1,,2\n2,.1,1\n", {}, r"bad\.csv \(rates\) has 1 usable rows"),
        ("step,lr,loss\n,.1,2\n2,.1,1\n", {}, "line 2: no step"),
        ("step,lr,loss\n1,.1\n2,.1,1\n", {}, "line 2: 2 cells for 3 columns"),
        ("step,lr,loss\n1,.1,2\n2,.1,1,7\n", {}, "line 3: 4 cells for 3 columns"),
        ("step,lr,loss\n1,.1,2\n2,.1,diverged\n", {}, "line 3: column loss must hold numbers.*'diverged'"),
        ('step,lr,loss\n"1,000",.1,2\n', {}, "line 2: column step must hold numbers such as 1000.*'1,000'"),
        ("step,lr,loss,loss\n1,.1,2,3\n", {}, "the column loss twice"),
        ("step,lr,loss\n.1,.1,2\n.2,.1,1\n", {}, "whole numbers of updates, got 0.1; turn a column of thousands"),
        ("step,lr,loss\n1,.1,2\n3000000000,.1,1\n", {}, r"up to step 3e\+09.*tokens or samples must be divided"),
        ("step,lr,loss\n1,0,2\n2,0,1\n", {}, "the rate 0 in every update"),
        ("step,lr,loss\n1,.1,3\n2,.1,2\n6,,1\n", {}, "rates up to step 2 and losses up to 6"),
        ("Step,lr,loss\n1,.1,2\n", {}, "no column step;.*--column-step"),
        ("step,lr,loss\n1,.1,2\n", {"columns": {"lr": "rate"}}, r"no column rate; .* columns step, rate, loss"),
        ("step,lr,loss\n1,.1,2\n", {"columns": {"lr": "step"}}, "need a column each, got step, step, loss"),
        ("step,lr,loss\n1,.1,2\n", {"columns": {"rate": "lr"}}, "unknown column 'rate'"),
    ],
)
def test_bad_tables_are_refused(tmp_path, rows, options, told):
    file = tmp_path / "bad.csv"
    file.write_text(rows)
    with pytest.raises(InputError, match=told):
        read_curves(file, **options)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_signs_and_line_ends_of_other_programs(tmp_path, sign, end):
    rows = ["step,lr,loss", "1,0.1,3", "2,0.1,2", ",,"]  # an empty row at the end, as spreadsheets leave it
    (tmp_path / "mine.csv").write_bytes((end.join(rows).replace(",", sign) + end).encode())
    (curve,) = read_curves(tmp_path / "mine.csv")
    assert (curve.steps.tolist(), curve.loss.tolist(), curve.notes) == ([1, 2], [3, 2], [])


def test_columns_of_other_names_with_rates_and_losses_in_rows_of_their_own(tmp_path):
    """What a logger exports: a row for every call, with the cells of the other calls empty."""
    t = np.arange(0, 100, 5)
    lr = np.where(t < 60, 1e-3, 1e-3 * (100 - t) / 40)
    rows = [f"{step},3,{rate!r}," for step, rate in zip(t.tolist(), lr.tolist(), strict=True)]
    rows += [f"{step},,,{4 - step / 100}" for step in range(20, 101, 20)]
    rows.sort(key=lambda row: int(row.split(",")[0]))
    (tmp_path / "export.csv").write_text("\n".join(["_step,train/loss,train/lr,val/loss", *rows]))
    names = {"step": "_step", "lr": "train/lr", "loss": "val/loss"}
    (curve,) = read_curves(tmp_path, columns=names)
    assert curve.steps.tolist() == [20, 40, 60, 80, 100]
    assert curve.loss.tolist() == [3.8, 3.6, 3.4, 3.2, 3.0]
    u = np.arange(100)
    np.testing.assert_allclose(curve.lr, np.where(u < 60, 1e-3, 1e-3 * (100 - u) / 40), rtol=0, atol=1e-18)
    assert curve.notes == [
        "rows with a rate and no loss: 20", "rows with a loss and no rate: 5",
        "the rates of the last 5 updates lie on the line of the last two in the log",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"no curves in .*export\.csv has _step, train/loss, train/lr, val/loss: name"):
        read_curves(tmp_path)


def test_a_warmup_that_the_log_may_have_left_out_is_noted(tmp_path):
    file = write_csv(tmp_path / "mine.csv", [10, 20, 30], [0.1] * 3, [3, 2, 1])
    (curve,) = read_curves(file)
    assert curve.lr.tolist() == [0.1] * 30
    assert [note[:52] for note in curve.notes] == ["the 10 updates before the first row are taken to hav"]
    (curve,) = read_curves(file, warmup=5)
    assert curve.notes == []
    (curve,) = read_curves(write_csv(tmp_path / "rising.csv", [10, 20, 30], [0.1, 0.2, 0.2], [3, 2, 1]))
    assert (curve.lr[0], curve.notes) == (0.0, [])  # the log has the warmup


def test_a_row_that_lost_its_loss_keeps_its_rate(tmp_path):
    file = write_csv(tmp_path / "mine.csv", [0, 10, 20, 30], [1.0, 1.0, 0.2, 0.1], [9, 3, "nan", 1])
    (curve,) = read_curves(file, repair=True)
    assert curve.lr[20] == 0.2
    assert curve.steps.tolist() == [10, 30]
    assert curve.notes == ["rows dropped for want of a finite loss: 1, the first at step 20"]


def test_a_log_in_a_folder_that_lacks_one_column_is_not_passed_over(tmp_path):
    write_csv(tmp_path / "a.csv", [1, 2], [1, 1], [2, 1])
    write_csv(tmp_path / "schedule.csv", [1, 2], [1, 1], [2, 1], header="step,lr,phase")
    assert [curve.name for curve in read_curves(tmp_path)] == ["a"]
    write_csv(tmp_path / "b.csv", [1, 2], [1, 1], [2, 1], header="step,lr,train_loss")
    with pytest.warns(RuntimeWarning, match=r"left out b: .*b\.csv has no column loss"):
        assert [curve.name for curve in read_curves(tmp_path)] == ["a"]


def test_what_only_plain_files_take_is_refused_elsewhere(tmp_path):
    write_log(tmp_path / "run.json")
    for options, told in (
        ({"warmup": 10, "peak_lr": 1.0}, "warmup and peak_lr"),
        ({"columns": {"lr": "x"}}, "columns"),
    ):
        with pytest.raises(InputError, match=f"no plain table, so {told} would do nothing"):
            read_curves(tmp_path, **options)


def test_repair_is_noted(tmp_path):
    file = write_csv(tmp_path / "mine.csv", [2, 1, 2, 3], [0.1] * 4, [9, 3, 2, 1])
    (curve,) = read_curves(file, repair=True)
    assert curve.loss.tolist() == [3, 2, 1]
    assert len(curve.notes) == 2


def test_what_is_no_curve(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_curves(tmp_path / "none")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "notes.txt").write_text("step,lr,loss")
    with pytest.raises(InputError, match="no curves in"):
        read_curves(tmp_path)
    with pytest.raises(InputError, match="no file of curves"):
        read_curves(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="no log of lr-scheduling"):
        read_curves(tmp_path / "other.json")
    write_csv(tmp_path / "losses.csv", [1, 2], [1, 2], [1, 2], header="step,val,loss")
    with pytest.raises(InputError, match=r"losses\.csv has no column lr"):  # met in a folder, it is not passed over
        read_curves(tmp_path)


# --- multi-power law -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("below", ["", "MultiPowerLaw/loss_curve_repo"])
def test_the_multi_power_collection_wherever_it_lies(tmp_path, monkeypatch, below):
    for case in ("cosine", "two-stage"):
        lr, steps, *_ = CASES[case]
        write_csv(tmp_path / below / "csv_25" / f"{case}.csv", steps, lr[steps], 3 + steps**-0.5)
    write_csv(tmp_path / below / "csv_100" / "cosine.csv", steps, lr[steps], 3 + steps**-0.5)
    curves = read_curves(tmp_path)
    assert [c.name for c in curves] == ["100M/cosine", "25M/cosine", "25M/two-stage"]
    cos = curves[1]
    assert cos.facts["size"] == "25M"
    assert cos.facts["schedule"] == "cosine"
    assert cos.facts["measured_from"] == 2160
    write_csv(tmp_path / below / "csv_25" / "two-stage.csv", [2200, 2300, 2300], [1e-4] * 3, [3, 2, 1])
    with pytest.warns(RuntimeWarning, match=r"left out 25M/two-stage: .*2300 is there twice"):
        assert [c.name for c in read_curves(tmp_path)] == ["100M/cosine", "25M/cosine"]
    assert read_curves(tmp_path, repair=True)[2].loss.tolist() == [3, 1]
    true = CASES["cosine"][0][: cos.total]
    assert np.abs(cos.lr - true).max() < 5e-5 * 3e-4  # the warmup among it, which is not in the files
    assert cos.steps[0] == 2160
    monkeypatch.chdir(tmp_path / below / "csv_25")  # and from within
    for here in (".", "cosine.csv"):
        inside = read_collection(here).curves[0]
        assert (inside.name, inside.facts) == (cos.name, cos.facts)


# --- lr-scheduling ---------------------------------------------------------------------------------------------------
def test_a_log_of_lr_scheduling(tmp_path):
    (curve,) = read_curves(write_log(tmp_path / "run.json"))
    assert curve.name == "124M/pajama/lr0.001/linear-0.5-400"
    assert curve.lr[0] == 1e-5  # a hundredth of the peak
    assert curve.lr[15] == pytest.approx(1e-3 * 0.505)
    assert curve.lr[[30, 200]].tolist() == [1e-3, 1e-3]
    assert curve.lr[399] == pytest.approx(1e-3 / 200)
    assert (curve.steps[0], curve.steps[-1], curve.final_loss) == (200, 380, 3.08)
    assert curve.facts["measured_from"] == 200
    assert curve.facts["cooldown"] == 0.5
    assert curve.facts["group"] == "ann"
    assert curve.notes == []


def test_missing_settings_take_the_defaults_of_that_code(tmp_path):
    (curve,) = read_curves(write_log(tmp_path / "a.json", drop=["decay_type", "cos_final_lr"]))
    assert curve.facts["shape"] == "linear"
    (cos,) = read_curves(write_log(tmp_path / "b.json", scheduler="cos"))
    assert cos.facts["shape"] == "cosine"
    assert cos.lr[-1] == pytest.approx(1e-4)
    assert cos.name.endswith("cosine-to-0.1-400")
    (sqrt,) = read_curves(write_log(tmp_path / "c.json", decay_type="sqrt"))
    assert sqrt.lr[250] == pytest.approx(1e-3 * (1 - np.sqrt(0.25)))
    assert sqrt.facts["shape"] == "1-sqrt"


def test_rates_that_contradict_the_log_are_refused(tmp_path):
    file = write_log(tmp_path / "run.json")
    run = json.loads(file.read_text())
    run["config"]["wsd_fract_decay"] = 0.4
    file.write_text(json.dumps(run))
    with pytest.raises(InputError, match=r"its settings give the rate 0\.001 for update 210, but the log has 0\.00095"):
        read_curves(file)
    run["config"]["scheduler"] = "warp"
    file.write_text(json.dumps(run))
    with pytest.raises(InputError, match="scheduler 'warp'"):
        read_curves(file)
    del run["config"]["warmup_steps"]
    file.write_text(json.dumps(run))
    with pytest.raises(InputError, match=r"lacks a setting.*warmup_steps"):
        read_curves(file)


def test_restarts_and_far_finals_are_noted(tmp_path):
    file = write_log(tmp_path / "run.json")
    run = json.loads(file.read_text())
    run["history"]["val"] = {"iter": [300, 320, 200, 220, 300], "val_loss": [3, 2.9, 3.5, 3.4, 2.99]}
    run["history"]["final-val"]["final_val_loss"] = [3.0]
    file.write_text(json.dumps(run))
    (curve,) = read_curves(file)
    assert curve.steps.tolist() == [200, 220, 300, 320]
    assert curve.loss.tolist() == [3.5, 3.4, 2.99, 2.9]
    assert curve.final_loss == 3.0
    assert len(curve.notes) == 3
    assert curve.notes[-1] == "the log ends after 320 of 400 updates"
    run["history"]["val"] = {"iter": [380, 400], "val_loss": [2.9, 2.88]}
    file.write_text(json.dumps(run))
    (curve,) = read_curves(file)
    assert curve.final_loss is None
    assert curve.notes == ["left out the final loss 3.0000: +0.120 from the last running loss, so of another state"]


def test_repeated_runs_have_distinct_names(tmp_path):
    for name in ("a", "b", "c"):
        write_log(tmp_path / "data" / f"{name}.json")
    names = [curve.name for curve in read_curves(tmp_path)]
    assert names == [names[0], f"{names[0]} #2", f"{names[0]} #3"]


# --- datasets of riverval --------------------------------------------------------------------------------------------
def test_a_run_of_riverval(tmp_path):
    (tmp_path / "mine").mkdir()
    ds = made.valley(made.WSD, slope=0.1, hill=0.2)
    store.save(ds, tmp_path / "mine" / "run.nc")
    (curve,) = read_curves(tmp_path)
    assert curve.name == "mine"
    assert np.array_equal(curve.lr, made.WSD.values())
    assert np.array_equal(curve.steps, ds["eval_step"][1:])  # no law has a loss before the first update
    assert np.array_equal(curve.loss, ds["loss"][1:])
    assert read_curves(tmp_path / "mine" / "run.nc")[0].name == "mine"


def test_replicates_that_did_not_diverge_are_averaged(tmp_path):
    lr, losses = np.full(3, 0.1), np.array([[4.0, 3, 2, 1], [4, 9, 9, 9], [4, 2, 1, 0]])
    values = {"step": np.arange(3), "lr": lr, "phase": np.ones(3), "eval_step": np.arange(4), "loss": losses,
              "replicate": np.arange(3), "diverged": np.array([0, 1, 0])}  # fmt: skip
    ds = schema.build(values, {}, "toy").assign_attrs(provenance("made", config={}, seed=0))
    store.save(ds, tmp_path / "some.nc")
    (curve,) = read_curves(tmp_path / "some.nc")
    assert curve.name == "some"
    assert curve.loss.tolist() == [2.5, 1.5, 0.5]
    assert curve.notes == ["mean over 2 of 3 replicates"]


def test_a_real_run_and_a_study(tmp_path):
    ds = made_real.trained(made_real.plan_of())
    store.save(ds, tmp_path / "real.nc")
    (curve,) = read_curves(tmp_path / "real.nc")
    assert np.array_equal(curve.loss, ds["val_loss"][1:])
    store.save(made_real.fractions(), tmp_path / "study.nc")
    with pytest.raises(InputError, match="no single loss curve"):
        read_curves(tmp_path / "study.nc")


# --- the published curves --------------------------------------------------------------------------------------------
@needs_published
@pytest.mark.parametrize("size", [25, 100])
def test_published_multi_power_schedules_match_their_closed_forms(size):
    found = {c.facts["schedule"]: c for c in read_curves(PUBLISHED / "multi_power_law" / f"csv_{size}")}
    assert len(found) == 9
    forms = {"cosine_24000": "cosine", "wsd_20000_24000": "exponential", "wsdld_20000_24000": "linear"}
    for name, case in forms.items():
        true, _, close, close_sum = CASES[case]
        lr = found[name].lr
        assert np.abs(lr - true[: lr.size]).max() < close * 3e-4
        assert abs(lr.sum() / true[: lr.size].sum() - 1) < close_sum
    for share in (3, 9, 18):
        lr = found[f"wsdcon_{share}"].lr
        assert np.allclose(lr[[2159, 7999]], 3e-4, rtol=1e-12)
        assert np.allclose(lr[8000:], share * 1e-5, rtol=1e-12)
    assert found["constant_72000"].total == 71936


@needs_published
def test_published_lr_scheduling_runs():
    curves = read_curves(PUBLISHED / "llm_124m")  # every rate is held against the log while reading
    assert len(curves) == 117
    assert len({c.name for c in curves}) == 117
    by_run = {c.facts["run"]: c for c in curves}
    assert by_run[147].name == f"{by_run[46].name} #2"
    assert by_run[50].facts["cooldown"] == 0.2
    assert by_run[50].steps[0] == 20000
    assert by_run[50].final_loss == pytest.approx(3.0377927)
    assert sum(c.final_loss is None for c in curves) == 9
