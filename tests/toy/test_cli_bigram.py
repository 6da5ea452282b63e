"""`riverval toy bigram` as it is called from the shell: files, words, exit codes, picture."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from riverval import plots_bigram
from riverval.cli import main
from riverval.schedules import make_schedule
from riverval.store import load
from riverval.toy.bigram import make_language
from riverval.toy.bigram_model import LogitTable
from riverval.toy.bigram_run import train, train_with_continuation

SMALL = ("--steps", "120", "--replicates", "4")


def call(*words: str) -> int:
    """The exit code of ``riverval toy bigram ...``."""
    with pytest.raises(SystemExit) as stop:
        main(["toy", "bigram", *words])
    return stop.value.code


def test_a_run_leaves_a_valid_dataset_a_picture_and_two_tables(tmp_path, capsys):
    assert call("--out", str(tmp_path), "--seed", "3", *SMALL) == 0
    said = capsys.readouterr()
    assert said.err == ""
    folder = tmp_path / "bigram-wsd"
    assert sorted(p.name for p in folder.iterdir()) == ["bigram.png", "run.nc"]
    ds = load(folder)
    plan = make_schedule("wsd", peak_lr=0.1, steps=120)
    model = LogitTable(make_language("mixed"))
    wanted = train_with_continuation(model, plan, replicates=4, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(ds["context_continued"], wanted["context_continued"])
    for words in (
        str(folder), "language mixed, 7 contexts, 8 tokens", "excess loss per occurrence", "before cooldown",
        "cooldown against none", "two at 0.95", "with Gini impurity", "replicates 4, updates 120",
    ):  # fmt: skip
        assert words in said.out


def test_options_reach_the_run(tmp_path, capsys):
    words = ["--language", "ladder", "--tokens", "5", "--zipf", "1", "--model", "factorised", "--width", "3"]
    words += ["--noise", "gaussian", "--batch", "4", "--lr", "0.3", "--every", "40", "--name", "mine"]
    assert call(*words, "--decay", "wsd-s", "--cycles", "2", "--out", str(tmp_path), *SMALL) == 0
    ds = load(tmp_path / "mine")
    assert ds["context"].values.tolist() == ["certain", "one at 0.9", "one at 0.5", "uniform"]
    np.testing.assert_allclose(ds["context_frequency"][0] / ds["context_frequency"][1], 2)
    np.testing.assert_allclose(ds["context_gini"][-1], 0.8)
    assert "context_expected" not in ds  # known for the table only
    assert ds["eval_step"].values.tolist() == [0, 40, 54, 60, 80, 114, 120]
    assert '"width": 3' in ds.attrs["config"]
    assert float(ds["lr"].max()) == pytest.approx(0.3)
    assert "embedding times unembedding" in capsys.readouterr().out


def test_a_run_without_a_cooldown_has_no_gains(tmp_path, capsys):
    assert call("--decay", "constant", "--out", str(tmp_path), *SMALL) == 0
    said = capsys.readouterr().out
    assert "at the end" in said
    assert "cooldown against none" not in said
    assert "context_continued" not in load(tmp_path / "bigram-constant")


def test_a_cooldown_that_is_the_whole_run(tmp_path, capsys):
    assert call("--decay", "cosine", "--out", str(tmp_path), *SMALL) == 0
    assert "cooldown against none" in capsys.readouterr().out


def test_a_rate_beyond_the_limit_is_said(tmp_path, capsys):
    assert call("--language", "ladder", "--lr", "8", "--out", str(tmp_path), *SMALL) == 0
    assert "the peak rate 8 does not settle: hills of this language do so below 7" in capsys.readouterr().err


def test_a_single_replicate_has_no_errors_and_no_warnings(tmp_path, capsys):
    assert call("--out", str(tmp_path), "--steps", "60", "--replicates", "1") == 0
    assert capsys.readouterr().err == ""


BAD = {
    "language": (["--language", "mixt"], "unknown language 'mixt'"),
    "model": (["--model", "tables"], "unknown model 'tables'"),
    "noise": (["--noise", "white"], "unknown noise 'white'"),
    "tokens": (["--tokens", "3"], "'mixed' needs at least 5 tokens, got 3"),
    "zipf": (["--zipf", "-1"], "zipf (exponent of the frequencies)"),
    "width": (["--width", "3"], "the model 'table' has no --width; it is of --model factorised"),
    "batch": (["--batch", "0"], "batch must be a whole number of at least 1, got 0"),
    "replicates": (["--replicates", "0"], "replicates must be a whole number of at least 1"),
    "every": (["--every", "0"], "every (updates between recorded states)"),
    "memory": (["--replicates", "100000000"], "GiB, more than the 8 GiB allowed"),
    "rate": (["--lr", "0"], "peak_lr"),
    "cooldown": (["--cooldown", "2"], "cooldown"),
}


@pytest.mark.parametrize(("words", "told"), BAD.values(), ids=BAD)
def test_bad_input_ends_with_2_and_leaves_nothing(words, told, tmp_path, capsys):
    assert call("--out", str(tmp_path), *SMALL, *words) == 2
    said = capsys.readouterr()
    assert told in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert not any(tmp_path.iterdir())


def stopping(at):
    """Training that meets Ctrl-C once so many updates are made."""

    def how(model, schedule, *, progress, **settings):
        def stop(done, values):
            if done >= at:
                raise KeyboardInterrupt

        return train_with_continuation(model, schedule, progress=stop, **settings)

    return how


def test_ctrl_c_keeps_what_was_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["riverval.toy.cli_bigram"], "train_with_continuation", stopping(64))
    assert call("--out", str(tmp_path), *SMALL) == 130
    ds = load(tmp_path / "bigram-wsd")
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] == 64
    assert (tmp_path / "bigram-wsd" / "bigram.png").exists()
    said = capsys.readouterr()
    assert "interrupted after 64 of 120 updates; what was recorded is kept" in said.err
    assert "at the end" in said.out


def test_ctrl_c_at_once_keeps_the_start(tmp_path, monkeypatch):
    def at_once(*args, **settings):
        def stop(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(sys.modules["riverval.toy.bigram_run"]._Run, "advance", stop)
        return train_with_continuation(*args, **settings)

    monkeypatch.setattr(sys.modules["riverval.toy.cli_bigram"], "train_with_continuation", at_once)
    assert call("--out", str(tmp_path), *SMALL) == 130
    folder = tmp_path / "bigram-wsd"
    assert load(folder)["eval_step"].values.tolist() == [0]
    assert not (folder / "bigram.png").exists()


def test_a_run_is_not_replaced_unless_asked(tmp_path, capsys):
    words = ("--name", "mine", "--out", str(tmp_path), *SMALL)
    assert call(*words) == 0
    assert call(*words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call(*words, "--overwrite") == 0


def test_help_shows_examples_and_both_groups_of_options(capsys):
    assert call("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("riverval toy bigram --language ladder", "--zipf", "--cooldown", "--overwrite"):
        assert words in said


# --- the picture -----------------------------------------------------------------------------------------------------
def test_the_picture_shows_every_context_with_its_theory_and_its_continuation():
    model = LogitTable(make_language("ladder"))
    plan = make_schedule("wsd", peak_lr=0.1, steps=100)
    ds = train_with_continuation(model, plan, replicates=3, rng=np.random.default_rng(0))
    excess, rate, gains, settled = plots_bigram.bigram_run(ds).axes
    labels = [text.get_text() for text in excess.get_legend().get_texts()]
    assert labels == [
        "certain (Gini 0.00)", "one at 0.9 (Gini 0.19)", "one at 0.5 (Gini 0.71)", "uniform (Gini 0.88)", "expected",
        "without the cooldown",
    ]  # fmt: skip
    solid = [line for line in excess.get_lines() if line.get_linestyle() == "-"]
    np.testing.assert_allclose(solid[0].get_ydata(), ds["context_excess"].mean("replicate")[0])
    dotted = [line for line in excess.get_lines() if line.get_linestyle() == ":" and len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in dotted] == [81] * 4  # the first update of the decay still has the full rate
    assert len(gains.get_legend().get_texts()) == 3
    assert len(settled.get_legend().get_texts()) == 2
    assert rate.get_ylabel() == "learning rate"


def test_a_picture_without_a_cooldown_has_no_continuation():
    model = LogitTable(make_language("ladder"))
    ds = train(model, make_schedule("constant", peak_lr=0.1, steps=50), replicates=2, rng=np.random.default_rng(0))
    excess, _, gains, _ = plots_bigram.bigram_run(ds).axes
    assert "without the cooldown" not in [text.get_text() for text in excess.get_legend().get_texts()]
    assert [text.get_text() for text in gains.get_legend().get_texts()] == ["second half of the stable phase"]
