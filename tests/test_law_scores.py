"""Protocols and scores, with curves whose law is known and laws whose errors are known."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from riverval import commands_law
from riverval.cli import main
from riverval.curve_files import lr_scheduling_rates, read_curves
from riverval.curves import Curve
from riverval.errors import InputError, RivervalError
from riverval.law_scores import score_laws, summaries
from riverval.law_tables import page, tables_of, write_scores
from riverval.law_trials import list_trials

from .test_curve_files import PUBLISHED as FOLDER
from .test_curve_files import needs_published, write_csv

OFFSET = 0.035


def true_loss(lr, steps, level=3.0):
    """The law of all curves made here: a river and a hill in proportion to the rate of the last update."""
    steps = np.asarray(steps)
    return level + 0.1 * np.cumsum(lr)[steps - 1] ** -0.5 + 50 * lr[steps - 1]


@dataclass(frozen=True)
class Known:
    """The true law, off by `error`; what it was shown is kept."""

    shown: tuple = ()
    level: float = 3.0
    error: float = 0.0
    notes: tuple = ("as made",)
    parameters: dict = field(default_factory=lambda: {"L0": (3.0, 0.1), "A": (0.1, 0.0)})

    def predict(self, schedule, steps=None):
        loss = true_loss(np.asarray(schedule), steps, self.level) + self.error
        return Band(loss, loss - 0.01, loss + 0.01)


@dataclass(frozen=True)
class Movable(Known):
    """One that can be transferred: its level follows the curves."""

    def transfer(self, curves):
        level = np.mean([np.mean(c.loss - true_loss(c.lr, c.steps, 0.0)) for c in curves])
        return replace(self, level=level, shown=(*self.shown, *[c.name for c in curves]))


@dataclass(frozen=True)
class Band:
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray


def fit(name, curves):
    if name == "broken":
        raise RivervalError("needs a decay")
    if name == "singular":
        raise np.linalg.LinAlgError("Singular matrix")
    if name == "wild":
        return Known(error=np.nan)
    made = {"known": Known, "movable": Movable}[name.removesuffix("-off")]
    return made(tuple(c.name for c in curves), error=0.02 if name.endswith("-off") else 0.0)


def multi_power(size, level=3.0):
    """Curves by the names of the collection; only the constants and rates matter here."""
    out = []
    for name in ("constant_24000", "cosine_24000", "wsdcon_9", "wsdld_20000_24000", "wsd_20000_24000"):
        lr = np.linspace(3e-4, 3e-4 if name.startswith("con") else 3e-5, 2000)
        steps = np.arange(100, 2001, 100)
        facts = {"format": "multi-power-law", "size": size, "schedule": name}
        out.append(Curve(f"{size}/{name}", lr, steps, true_loss(lr, steps, level), facts=facts))
    return out


def run(number, rate, kind="wsd", total=25_000, share=0.2, *, level=3.0, final=0.0, decay="linear"):
    settings = {"lr": rate, "scheduler": kind, "decay_type": decay, "wsd_fract_decay": share, "warmup_steps": 300,
                "iterations": total, "parameters": 123_587_328, "run": number}  # fmt: skip
    lr, facts = lr_scheduling_rates(settings)
    steps = np.arange(200, total, 200)
    end = None if final is None else float(true_loss(lr, [total], level)[0]) + OFFSET + final
    return Curve(f"run {number}", lr, steps, true_loss(lr, steps, level), final_loss=end, facts=facts)


def grid(rate, level=3.0, first=0, final=0.0):
    """A stable run of each family, cooldowns, a cosine, a run without a final loss, a repeat of the fitted cooldown."""
    kinds = [
        {"total": 50_000, "share": 0.0, "decay": "sqrt"}, {"total": 50_000, "share": 0.0}, {}, {},
        {"total": 50_000}, {"share": 0.4}, {"share": 0.8}, {"kind": "cos", "share": 0.0}, {"share": 0.6, "final": None},
    ]  # fmt: skip
    return [run(first + k, rate, **{"level": level, "final": final, **kind}) for k, kind in enumerate(kinds)]


# --- trials ----------------------------------------------------------------------------------------------------------
def test_what_is_fitted_and_what_is_predicted():
    trials = list_trials([*multi_power("100M"), *multi_power("25M"), *grid(1e-3), *grid(5e-4, first=20)])
    told = {(t.protocol, t.data): t for t in trials}
    assert len(told) == len(trials) == 2 + 2 + 2 + 2 + 2 + 4
    m = told["M", "25M"]
    assert [c.facts["schedule"] for c in m.train] == ["cosine_24000", "constant_24000", "wsdcon_9"]
    assert [c.facts["schedule"] for c in m.targets] == ["wsd_20000_24000", "wsdld_20000_24000"]
    assert not m.ends
    a, b = told["A", "124M 0.001"], told["B", "124M 0.001"]
    assert [c.name for c in a.train] == ["run 1", "run 2"]  # the stable run of the linear family, the first cooldown
    assert [c.name for c in a.targets] == ["run 4", "run 5", "run 6", "run 7"]  # neither the repeat nor a stable run
    assert a.ends
    assert b.targets == a.targets
    assert [c.name for c in b.train] == ["run 1"]
    c = told["C", "124M 0.001 to 0.0005, transferred"]
    assert [c.name for c in c.train] == ["run 1", "run 2"]
    assert [c.name for c in c.refit] == ["run 21"]
    assert c.targets == told["A", "124M 0.0005"].targets
    assert told["C", "124M 0.001 to 0.0005"].refit == ()
    assert [c.name for c in told["C", "25M to 100M, transferred"].refit] == ["100M/constant_24000"]


def test_no_trial_shows_its_targets_to_the_fit():
    for trial in list_trials([*multi_power("100M"), *multi_power("25M"), *grid(1e-3), *grid(5e-4, first=20)]):
        seen = {c.name for c in (*trial.train, *trial.refit)}
        assert not seen & {c.name for c in trial.targets}


def test_groups_that_lack_something_are_told():
    told = []
    curves = [*multi_power("25M")[1:], *grid(1e-3)[3:], *multi_power("100M")]
    assert {t.data for t in list_trials(curves, tell=told.append)} == {"100M"}
    assert told == [
        "25M is passed over: it lacks constant_24000",
        "124M 0.001 is passed over: it lacks the stable run or the linear cooldown to fit",
    ]
    with pytest.raises(InputError, match="allow no trial of protocol M"):
        list_trials(grid(1e-3), ["M"])
    with pytest.raises(InputError, match="unknown protocol 'm'"):
        list_trials(grid(1e-3), ["m"])


# --- scores ----------------------------------------------------------------------------------------------------------
def by(scores, **wanted):
    return [s for s in scores if all(getattr(s, k) == v for k, v in wanted.items())]


def test_scores_along_curves():
    scores = score_laws(multi_power("25M"), ["known", "known-off"], ["M"], fit=fit)
    (good,), (off,) = by(scores, law="known", group="all"), by(scores, law="known-off", group="all")
    assert good.mae < 1e-12
    assert good.r2 == pytest.approx(1)
    assert good.inside == 1
    assert good.count == 2
    assert (off.mae, off.worst, off.end, off.inside) == (pytest.approx(0.02),) * 3 + (0,)
    assert off.parameters == 2
    assert off.note == "as made"
    target = multi_power("25M")[3].loss
    (single,) = by(scores, law="known-off", target="25M/wsdld_20000_24000")
    assert single.r2 == pytest.approx(1 - 0.02**2 / target.var())
    assert single.count == 20


def test_final_losses_rest_on_the_offset_of_the_training_runs_only():
    curves = grid(1e-3)
    curves[2] = run(2, 1e-3, final=0.002)  # the fitted cooldown has another offset than the stable run
    curves[5] = run(5, 1e-3, share=0.4, final=0.01)
    scores = score_laws(curves, ["known", "known-off"], ["A", "B"], fit=fit)
    (a,), (b,) = by(scores, protocol="A", law="known", group="all"), by(scores, protocol="B", law="known", group="all")
    assert a.offset == pytest.approx(OFFSET + 0.001)
    assert a.offset_spread == pytest.approx(0.002)
    assert b.offset == pytest.approx(OFFSET)
    errors = [by(scores, protocol="A", law="known", target=f"run {k}")[0].end for k in (4, 5, 6, 7)]
    assert errors == pytest.approx([0.001, -0.009, 0.001, 0.001])
    assert a.mae == pytest.approx(0.003)
    assert a.worst == pytest.approx(0.009)
    assert a.end == pytest.approx(-0.0015)
    measured = np.array([curves[k].final_loss for k in (4, 5, 6, 7)])
    assert a.r2 == pytest.approx(1 - np.sum(np.square(errors)) / np.sum((measured - measured.mean()) ** 2))
    # An error of the level is an error of the prediction: the offset knows differences of the law only.
    assert by(scores, protocol="B", law="known-off", group="all")[0].end == pytest.approx(b.end + 0.02)


def test_the_spread_of_the_offset_widens_the_interval_of_final_losses():
    def inside(spread, error):
        curves = [*grid(1e-3)[:4], run(9, 1e-3, share=0.4, final=error)]
        curves[1] = run(1, 1e-3, total=50_000, share=0.0, final=spread)  # the fitted runs: the mean is spread / 2 off
        curves[2] = run(2, 1e-3, final=-spread)
        (score,) = by(score_laws(curves, ["known"], ["A"], fit=fit), group="curve")
        return score.inside

    # Known's interval is +-.01. Offsets of +-s differ by 2 s: a standard deviation of s sqrt(2), of a new run against
    # the mean of two s sqrt(3), and 95 % of it are within 1.96 sqrt(3) s.
    half = np.hypot(0.01, 1.959964 * np.sqrt(3) * 0.004)
    assert inside(0.004, 0.999 * half) == inside(0.004, -0.999 * half) == 1
    assert inside(0.004, 1.001 * half) == inside(0.004, -1.001 * half) == 0
    assert inside(0.0, 0.00999) == 1
    assert inside(0.0, 0.01001) == 0


def test_kinds_of_ends_are_counted_apart():
    scores = score_laws(grid(1e-3), ["known"], ["A"], fit=fit)
    assert [(s.group, s.count) for s in summaries(scores)] == [
        ("all", 4), ("cooldowns", 3), ("c<=0.4", 2), ("cosine", 1),
    ]  # fmt: skip


def test_transfer_to_another_rate_and_size():
    curves = [*multi_power("25M"), *multi_power("100M", level=2.5), *grid(1e-3), *grid(5e-4, 3.1, 20, final=0.004)]
    scores = score_laws(curves, ["known", "movable"], ["C"], fit=fit)
    size, rate = "25M to 100M, transferred", "124M 0.001 to 0.0005"
    assert by(scores, data=size, law="movable", group="all")[0].mae < 1e-9
    (still,) = by(scores, data=size, law="known", group="all")
    assert still.mae == pytest.approx(0.5)
    assert "offers no transfer" in still.note
    assert by(scores, data=rate, law="movable", group="all")[0].mae == pytest.approx(
        0.104
    )  # level and offset of the other rate
    (moved,) = by(scores, data=f"{rate}, transferred", law="movable", group="all")
    assert moved.mae < 1e-9
    assert moved.fitted_on == "run 1, run 2; transferred on run 21"


def test_a_law_that_fails_says_why():
    scores = score_laws(grid(1e-3), ["broken", "singular", "wild", "known"], ["A"], fit=fit)
    notes = {s.law: s.note for s in summaries(scores)}
    assert notes["broken"] == "not fitted: needs a decay"
    assert notes["singular"] == "not fitted: LinAlgError: Singular matrix"
    assert notes["wild"].startswith("no prediction: predicts a loss that is not finite")
    assert len(by(scores, law="wild")) == 1
    assert by(scores, law="known", group="all")[0].mae < 1e-9
    curves = grid(1e-3)
    curves[1] = replace(curves[1], final_loss=None)
    (score,) = score_laws(curves, ["known"], ["B"], fit=fit)
    assert "offset from the running loss is unknown" in score.note


def test_one_fit_serves_all_trials_on_the_same_curves():
    calls = []

    def counting(name, curves):
        calls.append(tuple(c.name for c in curves))
        return fit(name, curves)

    score_laws([*grid(1e-3), *grid(5e-4, first=20)], ["known"], ["A", "C"], fit=counting)
    assert sorted(calls) == [("run 1", "run 2"), ("run 21", "run 22")]


# --- tables ----------------------------------------------------------------------------------------------------------
def test_tables_of_a_terminal():
    scores = score_laws([*multi_power("25M"), *grid(1e-3)], ["known", "known-off", "broken"], ["M", "A"], fit=fit)
    (m, a), notes = tables_of(scores)
    assert (m.title, a.title) == ("M, 25M: 2 targets", "A, 124M 0.001: 4 targets")
    assert m.header == ("law", "fitted", "MAE", "worst", "R2", "end", "in 95 %", "note")
    assert m.rows[1][:4] == ("known-off", "2", "0.0200", "0.0200")
    assert m.rows[1][5:] == ("+0.0200", "0.00", "1")
    assert m.rows[2] == ("broken", "-", "-", "-", "-", "-", "-", "2")
    assert a.header[2:4] == ("MAE", "MAE c<=0.4")
    assert a.rows[2][3] == "-"
    assert notes == ["as made", "not fitted: needs a decay"]


def test_notes_are_told_in_short():
    long = "C = 2 lies on its bound and has no standard error; another minimum is as good within the noise, at C = 3"
    scores = [replace(s, note=long) for s in score_laws(multi_power("25M"), ["known"], ["M"], fit=fit)]
    short = "C = 2 lies on its bound, another minimum is as good within the noise"
    assert tables_of(scores)[1] == [short]
    assert f"* known: {short.replace(',', ' (M 25M);')} (M 25M)." in page(scores)


def test_the_page_marks_the_best_and_says_what_the_fits_said():
    curves = [*multi_power("25M"), *multi_power("100M", level=2.5), *grid(1e-3)]
    text = page(score_laws(curves, ["known", "known-off", "broken"], ["M", "A", "C"], fit=fit))
    lines = text.splitlines()
    assert lines[0].startswith("Made by riverval ")
    assert "| known-off | 2 fitted | as published |" in lines
    assert "| 25M, all (2) | **0.0000 (0.0000)** | 0.0200 (0.0200) | - |" in lines
    curve = next(line for line in lines if line.startswith("| 25M/wsd_20000_24000 |"))
    assert curve.endswith(" | 0.0200 (+0.0200) |")  # a law without a score has no column
    assert "| 124M 0.001, c<=0.4 (2) | **0.0000 (0.0000)** | 0.0200 (0.0200) | - |" in lines
    assert "| M, 25M | 1.00 | 0.00 | - |" in lines
    # What protocol C only repeats is not told again; it is where no other protocol has said it.
    assert "* broken: not fitted: needs a decay (M 25M, 100M; A 124M 0.001)." in lines
    transferred = "offers no transfer: predicts as fitted (C 25M to 100M, transferred, 100M to 25M, transferred)."
    assert f"* known: as made (M 25M, 100M; A 124M 0.001); {transferred}" in lines


def test_files(tmp_path):
    scores = score_laws([*multi_power("25M"), *grid(1e-3)], ["known-off", "broken"], ["M", "A"], fit=fit)
    with (write_scores(tmp_path / "s.csv", scores)).open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(scores)
    assert float(read[0]["mae"]) == scores[0].mae
    assert write_scores(tmp_path / "s.md", scores).read_text() == page(scores)
    with pytest.raises(InputError, match="exists"):
        write_scores(tmp_path / "s.md", scores)
    with pytest.raises(InputError, match=r"ends in \.csv or \.md"):
        write_scores(tmp_path / "s.txt", scores)


def test_the_command(tmp_path, monkeypatch, capsys):
    for curve in multi_power("25M"):
        stem = curve.facts["schedule"]
        lr = np.append(curve.lr, curve.lr[-1])
        steps = curve.steps + 2160
        write_csv(tmp_path / "csv_25" / f"{stem}.csv", steps, lr[curve.steps], curve.loss)
    monkeypatch.setattr(commands_law, "score_laws", lambda *given, **told: score_laws(*given, fit=fit, **told))
    out = tmp_path / "scores.csv"
    main_ok(
        ["law", "score", "--curves", str(tmp_path), "--laws", "known, broken", "--protocols", "M", "--out", str(out)]
    )
    shown = capsys.readouterr()
    assert "Protocol M" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    assert "1. as made" in shown.out
    assert "protocol M, 25M: broken: not fitted: needs a decay" in shown.err
    assert out.exists()
    with pytest.raises(SystemExit) as refused:
        main(["law", "score", "--curves", str(tmp_path), "--out", str(out)])
    assert refused.value.code == 2
    assert "exists" in capsys.readouterr().err


def main_ok(words):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert not done.value.code


def test_an_unknown_law_is_refused():
    with pytest.raises(InputError, match="unknown law 'multi'"):
        score_laws(grid(1e-3), ["multi"])


# --- the published curves --------------------------------------------------------------------------------------------
def fit_quickly(name, curves):
    return Known()


@needs_published
@pytest.mark.parametrize(("size", "mae"), [(25, 0.0038), (100, 0.0043)])
def test_the_published_multi_power_law_has_its_known_errors(size, mae):
    curves = read_curves(FOLDER / "multi_power_law" / f"csv_{size}")
    given = score_laws(curves, ["multi-power"], ["M"], fit=fit_quickly)
    scores = by(given, law="multi-power, published")
    (joint,) = summaries(scores)
    assert joint.mae == pytest.approx(mae, abs=1e-4)
    assert (joint.parameters, joint.given) == (0, 7)
    assert np.isnan(joint.inside)
    assert "| multi-power, published | 0 fitted, 7 published | as published |" in page(given)
    ends = {25: {"wsd_20": -0.010, "wsdld_": -0.010, "cosine": -0.002, "consta": 0.003},
            100: {"wsd_20": -0.015, "wsdld_": -0.017, "cosine": -0.002, "consta": -0.008}}  # fmt: skip
    found = {s.target.split("/")[1][:6]: s.end for s in scores if s.group == "curve"}
    for name, end in ends[size].items():
        assert found[name] == pytest.approx(end, abs=6e-4)


@needs_published
def test_the_ends_of_the_published_grid():
    trials = list_trials(read_curves(FOLDER / "llm_124m"), ["A"])
    known = {t.data.split()[-1]: (t.train[0].facts["run"], t.train[1].facts["run"], len(t.targets)) for t in trials}
    assert known == {"0.0001": (230, 39, 21), "0.0005": (231, 44, 34), "0.001": (232, 50, 36)}
