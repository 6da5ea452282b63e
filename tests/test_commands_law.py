"""law fit, predict and plan as a user types them: what they print and write, and one clear line for each bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from riverval import cli, store
from riverval._format import with_error
from riverval.law_plan import plan_cooldown
from riverval.laws import DEFAULT_LAW, fit_law, load_law, save_law
from riverval.schedules import WSD

from .made_laws import known, made_curves

Capture = pytest.CaptureFixture[str]


def run(words: str) -> int:
    """Run the command line in this process; the exit code."""
    try:
        cli.main(words.split())
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_log(path: Path, steps, lr, loss) -> None:
    path.parent.mkdir(exist_ok=True)
    store.write_csv(path, {"step": steps, "lr": lr, "loss": loss})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs/ of two runs, and the fitted law.json."""
    folder = tmp_path_factory.mktemp("laws")
    rng = np.random.default_rng(0)
    for name, cooldown in (("short", 0.1), ("long", 0.5)):
        plan = WSD(peak_lr=3e-4, steps=2000, warmup=100, cooldown=cooldown)
        steps = np.arange(50, 2000, 50)
        loss = known("noise-floor").predict(plan, steps).loss * np.exp(1e-3 * rng.standard_normal(steps.size))
        write_log(folder / "logs" / f"{name}.csv", steps, plan.lr(steps), loss)
    save_law(fit_law("noise-floor", made_curves("noise-floor", noise=1e-3), interval="residuals"), folder / "law.json")
    return folder


@pytest.fixture(autouse=True)
def _beside_the_logs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("logs", "law.json"):
        (tmp_path / file).symlink_to(made / file)
    monkeypatch.chdir(tmp_path)


# --- fit -------------------------------------------------------------------------------------------------------------
def test_the_default_law_is_the_river_valley_where_there_is_one() -> None:
    assert DEFAULT_LAW == "river-valley"


def test_fit_tells_parameters_with_errors_and_units_and_writes_law_and_picture(capsys: Capture) -> None:
    assert run("law fit logs --law noise-floor --out mine.json") == 0
    shown = capsys.readouterr().out
    law = load_law("mine.json")
    assert law.parameters["L0"][0] == pytest.approx(2.5, abs=0.02)
    told = ["noise-floor: L = L0 + A S^-alpha + N eta", "loss rate^alpha", "loss / rate"]
    told += [
        with_error(*law.parameters["N"]),
        "short",
        "long",
        "37",
        "residuals: 0.",
        "wrote mine.json",
        "wrote mine.png",
    ]
    assert [words for words in told if words not in shown] == []
    assert Path("mine.png").stat().st_size > 10_000


def test_fit_of_named_curves_takes_these_alone(capsys: Capture) -> None:
    assert run("law fit logs --law noise-floor --curves-named sh*,short --weighting curves --out one.json") == 0
    law = load_law("one.json")
    assert law.fitted_on == (("short", 37),)  # of 39: two lie in the first twentieth
    assert law.fit_options["weighting"] == "curves"


def test_fit_passes_options_to_the_law_and_keeps_early_points_if_asked() -> None:
    words = "law fit logs --law annealing --option warmup=constant --skip 0 --out kept.json"
    assert run(words) == 0
    law = load_law("kept.json")
    assert law.law.options() == {"warmup": "constant"}
    assert law.fitted_on == (("long", 39), ("short", 39))


def test_fit_says_what_a_repair_did(capsys: Capture) -> None:
    plan = WSD(peak_lr=3e-4, steps=1000, warmup=100, cooldown=0.3)
    steps = np.arange(50, 1000, 50)
    loss = known("noise-floor").predict(plan, steps).loss
    loss[3] = np.nan
    write_log(Path("torn.csv"), steps, plan.lr(steps), loss)
    assert run("law fit torn.csv --law equal-tau") == 2
    assert "loss is nan at step 200" in capsys.readouterr().err
    assert run("law fit torn.csv --law equal-tau --repair") == 0
    assert "torn: rows dropped for want of a finite loss: 1" in capsys.readouterr().err


def test_fit_takes_a_warmup_that_the_log_leaves_out(capsys: Capture) -> None:
    steps = np.arange(1000, 3000, 100)
    loss = 2.5 + 0.6 * (3e-4 * steps) ** -0.45
    write_log(Path("late.csv"), steps, np.full(steps.size, 3e-4), loss)
    assert run("law fit late.csv --law equal-tau") == 2
    assert "give the updates of the linear warmup" in capsys.readouterr().err
    assert run("law fit late.csv --law equal-tau --warmup 200 --peak-lr 3e-4 --out late.json") == 0
    assert load_law("late.json").seen["warmup"] == 200


def test_fit_takes_columns_of_other_names(capsys: Capture) -> None:
    text = Path("logs/long.csv").read_text("utf-8")
    Path("own.csv").write_text(text.replace("step,lr,loss", "_step,train/lr,val/loss"), "utf-8")
    assert run("law fit own.csv --law equal-tau") == 2
    assert "--column-step" in capsys.readouterr().err
    assert run("law fit own.csv --law equal-tau --column-step _step --column-lr train/lr --column-loss val/loss") == 0
    assert run("law fit logs --law equal-tau --curves-named long") == 0
    own, same = capsys.readouterr().out.split("equal-tau:")[1:]
    assert own.replace("own ", "long") == same


def test_curves_of_several_models_are_noted(capsys: Capture) -> None:
    for size in (25, 100):
        steps = np.arange(3000, 5000, 100)
        write_log(Path(f"csv_{size}/a.csv"), steps, np.full(20, 3e-4), 2.5 + 0.1 * size + (3e-4 * steps) ** -0.45)
    Path("both").mkdir()
    for size in (25, 100):
        Path(f"csv_{size}").rename(f"both/csv_{size}")
    assert run("law fit both --law equal-tau") == 0
    assert "several models (100M, 25M)" in capsys.readouterr().out


# --- predict ---------------------------------------------------------------------------------------------------------
def test_predict_writes_what_the_law_says(capsys: Capture) -> None:
    assert run("law predict --law law.json --steps 3000 --cooldown 0.3 --out p.csv --plot p.png") == 0
    shown = capsys.readouterr().out
    law = load_law("law.json")
    plan = WSD(peak_lr=3e-4, steps=3000, warmup=200, cooldown=0.3)  # rate and warmup are those of the fit
    end = law.predict(plan, [3000])
    assert "3000 updates, peak 0.0003" in shown
    assert f"{end.loss[0]:.4f}" in shown
    assert f"{end.low[0]:.4f} to {end.high[0]:.4f}" in shown
    rows = rows_of("p.csv")
    assert float(rows[-1]["loss"]) == end.loss[0]
    assert Path("p.png").stat().st_size > 10_000
    assert run("law predict --law law.json --steps 3000 --decay cosine --floor 0.1 --warmup 50 --out p.nc") == 0
    assert "extrapolation" not in capsys.readouterr().out
    assert json.loads(store.load("p.nc").attrs["config"])["schedule"]["warmup"] == 50


def test_predict_says_what_lies_beyond_the_fit(capsys: Capture) -> None:
    assert run("law predict --law law.json --steps 9000 --lr 6e-4") == 0
    shown = capsys.readouterr().out
    assert "2 times beyond the fitted 0.0003" in shown
    assert "2.25 times as long" in shown


def test_predict_with_budgets_needs_no_steps(capsys: Capture) -> None:
    assert run("law predict --law law.json --decay wsd-s --budgets 1000,2000") == 0
    assert "2000 updates" in capsys.readouterr().out


# --- plan ------------------------------------------------------------------------------------------------------------
def test_plan_tells_the_best_and_what_is_not_told_from_it(capsys: Capture) -> None:
    assert run("law plan --law law.json --steps 3000 --shapes linear,cosine --out plan.csv --plot plan.png") == 0
    shown = capsys.readouterr().out
    plan = plan_cooldown(load_law("law.json"), 3000, shapes=("linear", "cosine"))
    assert (
        f"{plan.best.decay} cooldown of {plan.best.fraction:.3g} of the run, from update {plan.best.start} on" in shown
    )
    assert f"final loss {plan.best.loss:.4f}, 95 % {plan.low:.4f} to {plan.high:.4f}" in shown
    assert f"{len(plan.alike)} of {len(plan.candidates)}" in shown
    assert "the law cannot tell the best" in shown
    assert Path("plan.csv").read_text("utf-8").count("\n") == len(plan.candidates) + 1
    assert Path("plan.png").stat().st_size > 10_000


def test_plan_of_named_rates_and_lengths(capsys: Capture) -> None:
    words = "law plan --law law.json --steps 3000 --shapes linear --fractions 0.2,0.4 --lr 0.0003,0.0012 --floor 0.1"
    assert run(f"{words} --warmup 100") == 0
    shown = capsys.readouterr().out
    assert "warmup 100; the best of 4 plans" in shown
    assert "4 times beyond" in shown


def test_plan_of_a_run_under_way(capsys: Capture) -> None:
    assert run("law plan --law law.json --steps 3000 --from 2000 --out plan.csv") == 0
    rows = rows_of("plan.csv")
    assert min(int(row["start"]) for row in rows) == 2000


# --- bad input -------------------------------------------------------------------------------------------------------
BAD = {
    "law fit nothere.csv": "nothere.csv does not exist",
    "law fit logs --law multipower": "Did you mean 'multi-power'?",
    "law fit unsorted.csv": "step 200 follows step 300",
    "law fit few.csv": "free parameters and needs at least",
    "law fit norate.csv": "has no column lr",
    "law fit logs --curves-named nix": "no curve is named 'nix'; there are: long, short",
    "law fit logs --weighting size": "unknown weighting 'size'",
    "law fit logs --law annealing --option warmup=real --option warmup=real": "gives 'warmup' twice",
    "law fit logs --law noise-floor --option warmup=real": "takes no option 'warmup'",
    "law fit logs --skip 2": "skip must be",
    "law fit logs --out law.txt": "a file that ends in .json, got law.txt",
    "law fit logs --out law.json": "law.json exists",
    "law fit logs --out no/law.json": "the folder no does not exist",
    "law predict --law law.json": "give --steps",
    "law predict --law law.json --steps 0": "whole number of at least 1, got 0",
    "law predict --law law.json --steps 1000 --cooldown 1.2": "got 1.2",
    "law predict --law law.json --steps 100": "the warmup of the fitted curves is 200 updates",
    "law predict --law known.json --steps 1000": "give the peak rate with --lr; the law knows none",
    "law predict --law two.json --steps 1000": "with --lr; the law was fitted at 0.0003, 0.001",
    "law predict --law nope.json --steps 100": "cannot read nope.json",
    "law predict --law cut.json --steps 100": "cut.json is not JSON",
    "law predict --law other.json --steps 100": "other.json: not the record of a fitted law",
    "law predict --law damaged.json --steps 100": "damaged.json: the record of the law is damaged",
    "law predict --law law.json --steps 1000 --out x.txt": "ends in .csv or .nc, got x.txt",
    "law predict --law law.json --steps 1000 --plot x.gifx": "unknown picture format '.gifx'",
    "law plan --law law.json --steps 0": "got 0",
    "law plan --law law.json --steps 3000 --fractions 1.5": "got 1.5",
    "law plan --law law.json --steps 3000 --fractions a": "--fractions must be numbers",
    "law plan --law law.json --steps 3000 --from 3000": "3000 of the 3000 updates are made",
    "law plan --law law.json --steps 3000 --shapes lin": "unknown decay shape 'lin'",
    "law plan --law law.json --steps 3000 --lr x": "--lr must be numbers",
    "law plan --law law.json --steps 3000 --out plan.nc": "ends in .csv, got plan.nc",
}


@pytest.mark.parametrize(("words", "message"), BAD.items(), ids=BAD)
def test_bad_input_is_one_line(words: str, message: str, capsys: Capture) -> None:
    write_log(Path("unsorted.csv"), [100, 300, 200], [3e-4] * 3, [4.0, 3.8, 3.7])
    write_log(Path("few.csv"), [100, 200, 300], [3e-4] * 3, [4.0, 3.8, 3.7])
    Path("norate.csv").write_text("step,loss\n100,4\n200,3.8\n", encoding="utf-8")
    record = json.loads(Path("law.json").read_text("utf-8"))
    Path("cut.json").write_text(json.dumps(record)[:200], encoding="utf-8")
    Path("other.json").write_text('{"a": 1}', encoding="utf-8")
    Path("damaged.json").write_text(json.dumps({k: v for k, v in record.items() if k != "seen"}), encoding="utf-8")
    Path("two.json").write_text(json.dumps({**record, "seen": {**record["seen"], "peak_lrs": [3e-4, 1e-3]}}), "utf-8")
    save_law(known("noise-floor"), "known.json")
    assert run(words) in (1, 2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("riverval: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
