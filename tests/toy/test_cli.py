"""`riverval toy simulate` as it is called from the shell: files, words, exit codes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from riverval.cli import main
from riverval.schedules import make_schedule
from riverval.store import load
from riverval.toy import StraightRiver, simulate

SMALL = ("--steps", "120", "--replicates", "16")


def call(*words: str) -> int:
    """The exit code of ``riverval toy simulate ...``."""
    with pytest.raises(SystemExit) as stop:
        main(["toy", "simulate", *words])
    return stop.value.code


def test_a_run_leaves_a_valid_dataset_a_picture_and_a_table(tmp_path, capsys):
    code = call("--lr", "0.1", "--decay", "wsd-s", "--out", str(tmp_path), "--seed", "3", *SMALL)
    said = capsys.readouterr()
    assert code == 0
    assert said.err == ""
    folder = tmp_path / "toy-wsd-s"
    assert sorted(p.name for p in folder.iterdir()) == ["run.nc", "toy.png"]
    ds = load(folder)
    plan = make_schedule("wsd-s", peak_lr=0.1, steps=120)
    valley = StraightRiver(0.04, (0.5, 1.0, 2.0, 4.0, 8.0))
    wanted = simulate(valley, plan, sigma=1.0, replicates=16, rng=np.random.default_rng(3), start=0.25)
    np.testing.assert_array_equal(ds["loss"], wanted["loss"])
    for words in (str(folder), "16 replicates of 120 updates", "hill loss before cooldown 3, state 116", "final loss"):
        assert words in said.out
    header = next(line for line in said.out.splitlines() if "quantity" in line)
    assert header.index("simulated") < header.index(" z ") < header.index("theory")


def test_options_reach_the_run(tmp_path):
    words = ["--decay", "wsd", "--shape", "1-sqrt", "--cooldown", "0.5", "--curvature", "1,3", "--slope", "0.5"]
    words += ["--sigma", "0.2", "--start", "stationary", "--every", "40", "--name", "mine", "--out", str(tmp_path)]
    assert call(*words, *SMALL) == 0
    ds = load(tmp_path / "mine")
    assert ds["curvature"].values.tolist() == [1.0, 3.0]
    assert ds["eval_step"].values.tolist() == [0, 40, 60, 80, 120]
    np.testing.assert_allclose(ds["exact_hill"][0], sum(0.1 * 0.04 / (2 * (2 - 0.1 * h)) for h in (1, 3)))
    assert float(ds["exact_river"][-1]) == pytest.approx(-(0.5**2) * float(ds["lr"].sum()))


def test_budgets_give_the_length(tmp_path):
    words = ("--decay", "wsd-s", "--budgets", "40,100", "--replicates", "2", "--out", str(tmp_path))
    assert call(*words) == 0
    assert load(tmp_path / "toy-wsd-s").sizes["step"] == 100


def test_a_named_run_is_replaced_only_when_asked(tmp_path, capsys):
    words = ("--name", "mine", "--out", str(tmp_path), *SMALL)
    assert call(*words, "--seed", "1") == 0
    first = load(tmp_path / "mine")["loss"].values
    assert call(*words, "--seed", "2") == 2
    assert "--overwrite" in capsys.readouterr().err
    np.testing.assert_array_equal(load(tmp_path / "mine")["loss"], first)
    assert call(*words, "--seed", "2", "--overwrite") == 0
    assert load(tmp_path / "mine").attrs["seed"] == "2"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--decay", "wsds"], "unknown schedule 'wsds'"),
        (["--decay", "cosine", "--cooldown", "0.2"], "takes no option 'cooldown'"),
        (["--lr", "-1"], "peak_lr (peak learning rate, --lr) must be a finite number in (0, inf), got -1.0"),
        (["--curvature", "1,x"], "--curvature must be numbers separated by commas"),
        (["--curvature", "1,-2"], "got -2.0"),
        (["--slope", "-1"], "slope"),
        (["--sigma", "-1"], "sigma"),
        (["--steps", "0"], "steps"),
        (["--replicates", "0"], "replicates must be a whole number of at least 1, got 0"),
        (["--every", "0"], "every"),
        (["--start", "here"], "start must be a number or 'stationary', got 'here'"),
        (["--start", "nan"], "start"),
        (["--start", "stationary", "--lr", "0.3"], "2/h = 0.25; give a number as start"),
        (
            ["--sigma", "1e200"],
            "sigma (standard deviation of the gradient noise) must be a finite number in [0, 1e+100]",
        ),
        (["--slope", "1e101"], "in [0, 1e+100], got 1e+101"),
        (["--start", "1e101"], "in [-1e+100, 1e+100], got 1e+101"),
        (["--steps", "99999999999999999999"], "from 1 to 1000000000, got 99999999999999999999"),
        (["--steps", "1000000000"], "needs 55.9 GiB, more than the 8 GiB allowed, for 1000000000 updates"),
        (["--steps", "1000000000", "--every", "1"], "more than the 8 GiB allowed"),
        (["--replicates", "99999999999999999999"], "more than the 8 GiB allowed"),
        (["--every", "99999999999999999999"], "from 1 to 1000000000"),
        (["--decay", "wsd-s", "--steps", "20"], "is 1 update, which would still have the full rate"),
        (["--replicates", "10000000"], "GiB, more than the 8 GiB allowed"),
        (["--name", "a/b"], "plain folder name"),
        (["--loss", "bendy"], "unknown loss 'bendy'; choose one of: straight"),
        (["--loss", "bent", "--param", "bend=2"], "loss 'bent' takes no option 'bend'"),
        (["--loss", "bent", "--param", "curvature=-2"], "curvature (second derivative across the river)"),
        (
            ["--loss", "bent", "--param", "curvature"],
            "--param must be NAME=VALUE, e.g. --param beta=0.9, got",
        ),
        (["--loss", "bent", "--slope", "1"], "--slope has no effect beside --loss bent"),
        (["--loss", "bent", "--start", "stationary"], "known for SGD on a straight river only"),
        (["--loss", "bent", "--start", "1,2,3"], "start must have 2 numbers, for x, y; got 3"),
        (["--loss-expr", "-c*x + h*y**2", "--param", "c=1"], "unbound symbol"),
        (["--loss-expr", "-x + y**2 +"], "the expression '-x + y**2 +'"),
        (["--loss-expr", "-x + sqrt(-1 - y**2)"], "not real"),
        (["--loss-expr", "-x + y**2", "--param", "k=1"], "does not depend on the parameter 'k'"),
        (["--loss-expr", "-x + y**2", "--loss", "bent"], "give either --loss or --loss-expr"),
        (["--loss-expr", "-x + y**2", "--curvature", "2"], "--curvature has no effect beside --loss-expr"),
        (["--loss-expr", "-x + y**2", "--river-dim", "2"], "river_dim (river coordinates, with at least one hill)"),
        (["--loss-expr", "-x + y**2", "--coordinates", "x"], "at least two names"),
        (["--loss-expr", "-x + y**2", "--valley-floor", "z=0"], "floor names 'z', which is not a coordinate"),
        (["--valley-floor", "y=0"], "--valley-floor has no effect beside --loss straight; it belongs to --loss-expr"),
        (["--coordinates", "x,y"], "--coordinates has no effect beside --loss straight"),
        (["--loss", "bent", "--river-dim", "1"], "--river-dim has no effect beside --loss bent"),
        (["--curvature", ""], "--curvature must be numbers separated by commas"),
        (["--loss", "bent", "--param", "slope=1,2"], "slope (fall of the loss per unit of x) must be a number"),
        (["--loss-expr", "1/x + y**2"], "value of the loss at its start (x = 0, y = 1) is not finite"),
        (["--sigma", "1", "--noise-param", "sigma=2"], "give either --sigma or --noise-param sigma=..., got both"),
        (["--optimizer", "adma"], "unknown optimizer 'adma'"),
        (["--optimizer-param", "beta=0.9"], "optimizer 'sgd' takes no option 'beta'"),
        (["--optimizer", "adam", "--optimizer-param", "beta1=1"], "beta1 (of adam) must be a finite number in [0, 1)"),
        (["--noise", "loud"], "unknown noise 'loud'"),
        (["--noise", "fisher", "--sigma", "1"], "the noise 'fisher' takes no --sigma; it takes: batch"),
        (["--noise", "student-t", "--noise-param", "freedom=2"], "freedom (degrees of freedom)"),
        (["--noise", "anisotropic"], "needs --noise-param sigmas=..."),
        (["--noise", "anisotropic", "--noise-param", "sigmas=1,2"], "sigmas must be 6 numbers"),
        (["--noise", "state-dependent"], "needs --noise-param 'expression="),
        (["--average", "tail"], "--average must be tail:UPDATES or ema:BETA"),
        (["--average", "tail:5000"], "needs as many, but the run has 4000"),
        (["--average", "ema:1"], "beta (of the average)"),
        (["--quantiles", "0.5,x"], "--quantiles must be numbers separated by commas"),
        (["--quantiles", "0.5,2"], "quantiles (over the replicates) must be a finite number in [0, 1], got 2.0"),
        (["--threads", "0"], "threads must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_leaves_nothing(words, told, tmp_path, capsys):
    out = tmp_path / "runs"
    assert call(*words, "--out", str(out)) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert len(said.err.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (["--loss", "bent", "--param", "amplitude=0.5"], {"loss": {"name": "bent", "amplitude": 0.5}}),
        (
            ["--loss-expr", "-c*x + (y - x**2)**2", "--param", "c=0.5", "--valley-floor", "y=x**2", "--start", "0.5,1"],
            {"loss": {"name": "expression", "parameters": {"c": 0.5}, "floor": {"y": "x**2"}}, "start": [0.5, 1.0]},
        ),
        (
            ["--optimizer", "adam", "--optimizer-param", "beta2=0.9", "--average", "ema:0.5"],
            {"optimizer": {"name": "adam", "beta2": 0.9}, "average": {"name": "EMAAverage", "beta": 0.5}},
        ),
        (["--loss", "plane", "--param", "curvatures=3"], {"loss": {"name": "plane", "curvatures": [3]}}),
        (["--loss-expr", "1/x + y**2", "--start", "1,2"], {"loss": {"start": [1.0, 2.0]}, "start": [1.0, 2.0]}),
        (["--noise", "state-dependent", "--noise-param", "expression=0.5"], {"noise": {"expression": "0.5"}}),
        (["--noise", "student-t", "--noise-param", "freedom=4"], {"noise": {"name": "student-t", "freedom": 4}}),
        (
            ["--noise", "anisotropic", "--noise-param", "sigmas=0,1,1,1,1,2"],
            {"noise": {"name": "anisotropic", "sigmas": [0.0, 1.0, 1.0, 1.0, 1.0, 2.0]}},
        ),
        (
            ["--noise", "state-dependent", "--noise-param", "expression=s*sqrt(1 + y1**2)", "--noise-param", "s=0.5"],
            {"noise": {"expression": "s*sqrt(1 + y1**2)", "parameters": [["s", 0.5]]}},
        ),
    ],
    ids=["loss", "expression", "optimizer", "one", "start", "constant", "student-t", "anisotropic", "state-dependent"],
)
def test_loss_noise_and_optimizer_reach_the_run(words, config, tmp_path, capsys):
    assert call("--out", str(tmp_path), "--steps", "60", "--replicates", "4", *words) == 0
    ds = load(tmp_path / "toy-wsd")
    found = json.loads(ds.attrs["config"])
    for part, wanted in config.items():
        assert found[part] == wanted if not isinstance(wanted, dict) else found[part] | wanted == found[part]
    assert ds.attrs["status"] == "complete"
    assert ("theory" in capsys.readouterr().out) == ("exact_loss" in ds)
    assert (tmp_path / "toy-wsd" / "toy.png").exists()


def test_quantiles_are_recorded_drawn_and_told(tmp_path, capsys):
    words = ("--quantiles", "0.05,0.5,0.95", "--steps", "60", "--replicates", "20", "--out", str(tmp_path))
    assert call(*words) == 0
    ds = load(tmp_path / "toy-wsd")
    assert "loss" not in ds
    assert ds["loss_quantile"].sizes == {"quantile": 3, "eval_step": 61}
    assert (tmp_path / "toy-wsd" / "toy.png").exists()
    assert "theory ± exact s.e." in capsys.readouterr().out


def test_a_loss_without_a_river_is_said_to_have_none(tmp_path, capsys):
    words = ("--loss-expr", "x**2 + y**2", "--steps", "60", "--replicates", "4", "--out", str(tmp_path))
    assert call(*words) == 0
    assert capsys.readouterr().err == (
        "riverval: no river at x = 0, y = 0, the floor below the start: no eigengap, for the curvature across it (2) "
        "is not 4 times that along it (2); river and hill components mean little\n"
    )


def test_the_river_is_looked_for_at_the_start_of_the_run(tmp_path, capsys):
    """x^2/2 + (1 + x^2) y^2 has no eigengap at x = 0 and one far out; a circle has no point nearest to its centre."""
    words = ("--steps", "60", "--replicates", "4", "--lr", "0.001", "--out", str(tmp_path))
    valley = ("--loss-expr", "x**2/2 + (1 + x**2)*y**2", "--valley-floor", "y=0")
    assert call(*valley, *words, "--start", "0,1") == 0
    assert "no river at x = 0, y = 0, the floor below the start" in capsys.readouterr().err
    assert call(*valley, *words, "--start", "5,1") == 0
    assert capsys.readouterr().err == ""
    assert call("--loss", "circle", *words, "--start", "0,0") == 0
    assert "no river below the start x = 0, y = 0: its floor point" in capsys.readouterr().err


def test_an_unstable_rate_is_said_first_and_the_divergence_recorded(tmp_path, capsys):
    words = ("--lr", "1", "--steps", "900", "--replicates", "3", "--out", str(tmp_path))
    assert call(*words) == 0
    said = capsys.readouterr()
    assert said.err == (
        "riverval: the peak rate 1 does not settle at the curvature 8, whose limit is 2/h = 0.25: a long run diverges\n"
    )
    assert "3 of 3 replicates diverged, the first after " in said.out
    assert "smaller errors" not in said.out
    rows = [line.split("│") for line in said.out.splitlines() if line.startswith("│")]
    assert [row[3].strip() for row in rows] == ["-"] * 5
    ds = load(tmp_path / "toy-wsd")
    assert ds.attrs["status"] == "diverged"
    assert (ds["diverged_at"] > 0).all()


def test_one_of_each_is_said_in_the_singular(tmp_path, capsys):
    assert call("--decay", "constant", "--steps", "1", "--replicates", "1", "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "1 replicate of 1 update, seed 0" in said
    assert "smaller errors" in said


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("a defect"), KeyboardInterrupt()])
def test_a_run_that_fails_before_it_writes_leaves_no_folder(error, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(sys.modules["riverval.toy.cli"], "run_settings", fail)
    with pytest.raises((SystemExit, RuntimeError)):
        main(["toy", "simulate", "--out", str(tmp_path), *SMALL])
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_what_an_earlier_run_wrote(tmp_path, monkeypatch):
    words = ("--name", "mine", "--out", str(tmp_path), "--overwrite", *SMALL)
    assert call(*words) == 0
    monkeypatch.setattr(sys.modules["riverval.toy.cli"], "run_settings", None)
    with pytest.raises(TypeError):
        main(["toy", "simulate", *words])
    assert load(tmp_path / "mine").attrs["status"] == "complete"


@dataclass(frozen=True)
class Interrupting(StraightRiver):
    """Ctrl-C at the 71st gradient."""

    def gradient_rows(self, w, out):
        made = self.__dict__.get("made", 0)
        if made == 70:
            raise KeyboardInterrupt
        object.__setattr__(self, "made", made + 1)
        super().gradient_rows(w, out)


def test_ctrl_c_keeps_what_was_recorded_and_exits_with_130(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["riverval.toy.cli"], "StraightRiver", Interrupting)
    assert call("--out", str(tmp_path), "--every", "20", *SMALL) == 130
    said = capsys.readouterr()
    assert "interrupted after 70 of 120 updates" in said.err
    ds = load(tmp_path / "toy-wsd")
    assert ds.attrs["status"] == "interrupted"
    assert ds["eval_step"].values.tolist() == [0, 20, 40, 60]
    assert ds.sizes["step"] == 70
    assert (tmp_path / "toy-wsd" / "toy.png").exists()


def test_ctrl_c_at_once_keeps_the_start(tmp_path, monkeypatch):
    at_once = type("AtOnce", (Interrupting,), {"made": 70})
    monkeypatch.setattr(at_once, "gradient_rows", _stop)
    monkeypatch.setattr(sys.modules["riverval.toy.cli"], "StraightRiver", at_once)
    assert call("--out", str(tmp_path), *SMALL) == 130
    assert load(tmp_path / "toy-wsd")["eval_step"].values.tolist() == [0]


def _stop(self, w, out):
    raise KeyboardInterrupt


def test_help_of_the_room_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["toy", "--help"])
    assert "Example: riverval toy simulate --lr 0.1 --decay wsd-s" in " ".join(capsys.readouterr().out.split())


def test_help_shows_examples_and_both_groups_of_options(capsys):
    assert call("--help") == 0
    said = capsys.readouterr().out
    for words in ("riverval toy simulate --lr 0.1 --decay wsd-s", "--curvature", "--cooldown", "--overwrite"):
        assert words in " ".join(said.split())
