"""Presets, options and --set become one config in the stated order; what cannot be meant is refused where it stands."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from riverval.cli_options import OPTIONS
from riverval.errors import InputError
from riverval.experiments.architecture_base import QUICK
from riverval.experiments.architectures import ARCHITECTURES
from riverval.experiments.config import KEEP, OPTIMIZERS, RunConfig, resolve
from riverval.experiments.presets import PRESETS, SCHEDULE_KINDS, configure, read_preset, read_sets, settable

MEASURED = (*QUICK, "line_examples", "hessian_examples", "descent_examples", "token_examples")
NEEDED = {"paper": {"data": "corpus.txt"}}


@pytest.fixture
def preset(tmp_path):
    """Writes a preset of one's own; returns its path."""

    def write(text):
        path = tmp_path / "own.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_preset_fits_every_architecture(arch, name):
    config = configure(arch, NEEDED.get(name), preset=name).planned(steps_per_epoch=391)
    assert config.plan.total == config.steps
    assert config.plan.windows("stable")
    assert config.plan.windows("cooldown")


def test_the_paper_preset_has_the_papers_sizes():
    cnn = configure("cnn", preset="paper").planned(steps_per_epoch=391)
    assert (cnn.epochs, cnn.batch, cnn.steps, cnn.schedule["cooldown"]) == (50.0, 128, 19550, 0.35)
    lm = configure("lm", {"data": "corpus.txt"}, preset="paper").planned(steps_per_epoch=None)
    assert (lm.size, lm.seq, lm.batch, lm.steps, lm.tokenizer, lm.vocab) == ("160m", 2048, 256, 5722, "bpe", 50304)
    start, stop = lm.plan.windows("cooldown")[-1]
    assert (stop - start, lm.keep) == (1144, "sketch")
    with pytest.raises(InputError, match="preset paper needs --data"):
        configure("lm", preset="paper")


def test_later_sources_win(preset):
    path = preset(
        "batch = 3\nseed = 1\nlr = 0.1\neval_every = 7\n[images]\nbatch = 4\nseed = 2\nlr = 0.2\n"
        "[arch.cnn]\nbatch = 5\nseed = 3\n[arch.mlp]\nbatch = 6\n[text]\nbatch = 7\n"
    )
    assert resolve("cnn", {}).batch not in (3, 4, 5)
    assert configure("cnn", preset=path).batch == 5
    assert configure("mlp", preset=path).batch == 6
    assert configure("vit", preset=path).batch == 4
    assert configure("lm", preset=path).batch == 7
    config = configure("cnn", {"batch": 8, "lr": None}, preset=path, sets=["seed=9"])
    assert (config.batch, config.seed, config.lr, config.eval_every) == (8, 9, 0.2, 7)
    assert configure("cnn", {"batch": 8}, preset=path, sets=["batch=9"]).batch == 9


def test_options_of_the_schedule_come_from_every_source(preset):
    path = preset("[schedule]\nshape = '1-sqrt'\ncooldown = 0.5\n[arch.cnn]\nschedule.cooldown = 0.4\n")
    assert configure("mlp", preset=path).schedule == {"name": "wsd", "shape": "1-sqrt", "cooldown": 0.5}
    assert configure("cnn", preset=path).schedule["cooldown"] == 0.4
    assert configure("cnn", options={"cooldown": 0.3}, preset=path).schedule["cooldown"] == 0.3
    last = configure("cnn", options={"cooldown": 0.3}, preset=path, sets=["schedule.cooldown=0.2"])
    assert last.schedule == {"name": "wsd", "shape": "1-sqrt", "cooldown": 0.2}


def test_another_schedule_leaves_the_presets_options_behind(preset):
    path = preset("[schedule]\nname = 'wsd-s'\ncycles = 2\ncooldown = 0.2\n")
    assert configure("cnn", preset=path).schedule == {"name": "wsd-s", "cycles": 2, "cooldown": 0.2}
    assert configure("cnn", decay="cosine", preset=path).schedule == {"name": "cosine"}
    assert configure("cnn", preset=path, sets=["schedule.name=cosine"]).schedule == {"name": "cosine"}
    assert configure("cnn", preset=path, decay="wsd").schedule == {"name": "wsd", "cooldown": 0.35}
    assert configure("cnn", preset="cpu", decay="cosine").schedule == {"name": "cosine"}


def test_what_hangs_on_another_setting_goes_with_it(preset):
    path = preset("[images]\nepochs = 3\n[text]\ntokenizer = 'bpe'\nvocab = 500\n")
    assert configure("cnn", {"steps": 30}, preset=path).epochs is None
    assert configure("cnn", preset=path, sets=["steps=30"]).steps == 30
    assert configure("cnn", {"steps": 30}, preset=path, sets=["epochs=2"]).steps is None
    assert configure("lm", {"tokenizer": "bpe"}, preset=path).vocab == 500
    assert configure("lm", {"tokenizer": "bytes"}, preset=path).vocab is None
    with pytest.raises(InputError, match="sgd needs --lr"):
        configure("cnn", {"optimizer": "sgd"}, preset="cpu")
    assert configure("lm", {"optimizer": "sgd", "lr": 0.1}, preset="paper", sets=["data=x"]).lr == 0.1
    with pytest.raises(InputError, match="not both"):
        configure("cnn", preset=preset("[images]\nepochs = 3\nsteps = 4\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch = 0\n", "own.toml: batch must be a whole number of at least 1, got 0"),
        ("batch = 1.5\n", "own.toml: batch must be a whole number, got 1.5"),
        ("[images]\nbatch = true\n", "own.toml: images.batch must be a whole number, got True"),
        ("[arch.cnn]\nlr = '3e-3'\n", "own.toml: arch.cnn.lr must be a number, got '3e-3'"),
        ("bacth = 3\n", "own.toml: bacth: there is no setting 'bacth'.*Did you mean 'batch'"),
        ("[image]\nbatch = 3\n", "own.toml: image: there is no setting 'image'.*Did you mean 'images'"),
        ("[arch.cnnn]\nbatch = 3\n", "own.toml: unknown architecture 'cnnn'.*Did you mean 'cnn'"),
        ("[text]\nseqq = 3\n", "own.toml: text.seqq: there is no setting"),  # of the other kind, told all the same
        ("[schedule]\ncooldwn = 0.2\n", "own.toml: schedule.cooldwn: .*Did you mean 'schedule.cooldown'"),
        ("[schedule]\ncooldown = 2\n", "own.toml: cooldown .*must be a finite number"),
        ("schedule = 3\n", "own.toml: schedule must be a table"),
        ("images = 3\n", "own.toml: images must be a table"),
        ("arch = 3\n", "own.toml: arch must be tables"),
        ("arch.cnn = 3\n", "own.toml: arch.cnn must be a table"),
        ("needs = ['dta']\n", "own.toml: needs must be a list of settings"),
        ("betas = [0.9, 'x']\n", "own.toml: betas must be several of: a number"),
        ("size = '14m'\n", "own.toml: --size belongs to --arch lm"),
        ("probes = 'pca'\n", "own.toml: probes must be several of: a text"),
        ("data_sha256 = 'x'\n", "own.toml: data_sha256: there is no setting"),
        ("batch = = 3\n", "own.toml is not valid TOML"),
    ],
)
def test_a_preset_that_is_wrong_is_told_by_file_and_key(preset, text, message):
    with pytest.raises(InputError, match=message):
        configure("cnn", preset=preset(text))


def test_what_is_no_preset_is_told(tmp_path):
    with pytest.raises(
        InputError, match=r"unknown preset 'smok'; choose one of: smoke, cpu, paper.*Did you mean 'smoke'"
    ):
        read_preset("smok", "cnn")
    with pytest.raises(
        InputError, match=r"cannot read the preset .*none.toml: No such file.*; the built-in presets are smoke, cpu"
    ):
        read_preset(str(tmp_path / "none.toml"), "cnn")


def test_an_error_tells_which_value_the_preset_gave():
    with pytest.raises(InputError, match=r"micro_batch .*got 16 \(the preset paper gives .*micro_batch = 16"):
        configure("lm", {"data": "x", "batch": 8}, preset="paper")
    with pytest.raises(InputError, match=r"batch must be .*got 0$"):  # the user's own
        configure("cnn", {"batch": 0}, preset="cpu")


def test_set_reads_each_kind_of_value():
    found = read_sets(
        ["lr=3e-3", "batch=4", "augment=true", "betas=0.8,0.9", "clip=none", "data=x=y.npz", "probes=", "eval-every=5",
         "schedule.budgets=10,20", "schedule.shape=1-sqrt"]
    )  # fmt: skip
    assert found.values == {
        "lr": 3e-3, "batch": 4, "augment": True, "betas": (0.8, 0.9), "clip": None, "data": "x=y.npz", "probes": (),
        "eval_every": 5,
    }  # fmt: skip
    assert found.schedule == {"budgets": (10, 20), "shape": "1-sqrt"}
    assert configure("lm", sets=["clip=none"]).clip is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "--set must be KEY=VALUE"),
        ("=3", "--set must be KEY=VALUE"),
        ("lr=fast", "--set lr must be a number, got 'fast'"),
        ("batch=1.5", "--set batch must be a whole number, got '1.5'"),
        ("augment=yes", "--set augment must be true or false, got 'yes'"),
        ("clip=x", "--set clip must be a number or none"),
        ("hessian_point=3", "there is no setting 'hessian_point'.*Did you mean 'hessian_points'"),
        ("schedule.cool=3", "there is no setting 'schedule.cool'"),
        ("arch=cnn", "there is no setting 'arch'"),
    ],
)
def test_a_wrong_set_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        read_sets([text])


def test_a_setting_given_twice_is_refused():
    with pytest.raises(InputError, match="'lr' twice"):
        read_sets(["lr=1", "lr=2"])


def test_every_name_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "real.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([\w.-]+)`", page))
    assert {*ARCHITECTURES, *PRESETS, *OPTIMIZERS, *KEEP, *settable(), *SCHEDULE_KINDS} <= told


def test_every_field_and_schedule_option_can_be_set():
    fields = {f.name for f in dataclasses.fields(RunConfig)}
    assert set(settable()) == fields - {"arch", "schedule", "data_sha256", "parameters", "facts"}
    assert set(SCHEDULE_KINDS) == {"name", *OPTIONS} - {"decay"}


# --- what is measured where nobody says ------------------------------------------------------------------------------
def examples_of_probes(c):
    """Examples that gradients are taken of: a product is two of them, a loss a third; searches of 7 products."""
    hessian = 2 * c.hessian_examples * (2 * 7 * c.hessian_points + 3 * (c.direction_snapshots - 1) + 4)
    return hessian + c.descent_points * c.descent_examples + 2 * c.alphas * c.line_examples / 3


@pytest.mark.parametrize(("arch", "trained"), [("cnn", 12 * 1438), ("mlp", 12 * 1438), ("lm", 600 * 8)])
def test_the_defaults_do_not_measure_longer_than_they_train(arch, trained):
    """An example costs about a fourth in the large batches of probes of what it does in training."""
    assert examples_of_probes(configure(arch)) <= 1.25 * trained


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("arch", "one", "other"),
    [
        ("cnn", {"data": "digits"}, {"data": "x.npz"}),
        ("lm", {"data": "x.txt", "size": "tiny"}, {"data": "x.txt", "size": "14m"}),
    ],
)
def test_a_preset_measures_the_same_on_small_data_and_large(preset, arch, one, other):
    """The defaults on small ones are for runs without a preset: cells of studies are known by their settings."""
    first, second = (configure(arch, given, preset=preset) for given in (one, other))
    for name in MEASURED:
        assert getattr(first, name) == getattr(second, name)


def test_runs_of_larger_data_or_models_are_measured_as_before():
    usual = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    for config in (configure("cnn", {"data": "x.npz"}), configure("lm", {"size": "14m"})):
        for name in QUICK:
            assert getattr(config, name) == usual[name]
