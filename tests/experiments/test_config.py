"""What the user gives becomes a complete config, or an error before anything is trained."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys

import pytest

from riverval.errors import InputError
from riverval.experiments.architectures import ARCHITECTURES
from riverval.experiments.config import TRAINING_FIELDS, RunConfig, resolve


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_defaults_are_complete_and_json_ready(arch):
    config = resolve(arch, {}).planned(steps_per_epoch=100, parameters=1)
    assert config.plan.total == config.steps
    assert config.plan.peak_lr == config.lr
    assert json.loads(json.dumps(config.to_dict()))["arch"] == arch
    assert config.schedule["cooldown"] == {"images": 0.35, "text": 0.2}[config.architecture.data_kind]
    assert config.schedule["warmup"] > 0


def test_epochs_become_updates_and_steps_overrule_them():
    assert resolve("cnn", {"epochs": 5.0}).planned(steps_per_epoch=391).steps == 1955
    assert resolve("cnn", {"steps": 7}).planned(steps_per_epoch=391).steps == 7


def test_a_warmup_that_does_not_fit_is_dropped_only_if_it_is_not_the_users():
    whole = resolve("cnn", {"steps": 100}, options={"cooldown": 1.0}).planned(steps_per_epoch=None)
    assert whole.schedule["warmup"] == 0
    with pytest.raises(InputError, match="together exceed"):
        resolve("cnn", {"steps": 100}, options={"cooldown": 1.0, "warmup": 10})


def test_budgets_set_the_length_of_the_run():
    config = resolve("lm", {}, decay="wsd-s", options={"budgets": (20, 50)}).planned(steps_per_epoch=None)
    assert config.steps == 50


@pytest.mark.parametrize(
    ("arch", "given", "options", "message"),
    [
        ("resnet", {}, {}, "choose one of: cnn, cnn-b"),
        ("cnn", {"size": "14m"}, {}, "--size belongs to --arch lm"),
        ("lm", {"epochs": 1.0}, {}, "--epochs belongs to --arch cnn"),
        ("lm", {"micro_batch": 99}, {}, "micro_batch must be a whole number from 1 to 8"),
        ("cnn", {"steps": 10, "epochs": 1.0}, {}, "not both"),
        ("cnn", {"lr": -1.0}, {}, "lr"),
        ("cnn", {"lr": float("nan")}, {}, "lr"),
        ("cnn", {"steps": 0}, {}, "steps"),
        ("cnn", {"epochs": 0.0}, {}, "epochs"),
        ("cnn", {"widths": (1, 2)}, {}, "four convolutions"),
        ("cnn", {"betas": (0.9,)}, {}, "two numbers"),
        ("cnn", {"betas": (0.9, 1.0)}, {}, "betas"),
        ("cnn", {"snapshots": 1}, {}, "at least 2"),
        ("cnn", {"device": "tpu"}, {}, "auto, cpu, cuda, mps"),
        ("cnn", {"threads": 0}, {}, "threads"),
        ("cnn", {"weight_decay": -0.1}, {}, "weight_decay"),
        ("cnn", {"seed": -1}, {}, "seed"),
        ("lm", {"size": "15m"}, {}, "choose one of: tiny, 14m"),
        ("lm", {"vocab": 300}, {}, "--tokenizer bpe"),
        ("lm", {"tokenizer": "bpe", "vocab": 100}, {}, "vocab"),
        ("lm", {"tokenizer": "words"}, {}, "bytes, bpe"),
        ("lm", {"seq": 1}, {}, "seq"),
        ("lm", {"clip": 0.0}, {}, "clip"),
        ("cnn", {"optimizer": "lion"}, {}, "adamw, adam, sgd"),
        ("cnn", {"optimizer": "sgd"}, {}, "sgd needs --lr"),
        ("cnn", {"optimizer": "sgd", "lr": 0.1, "betas": (0.9, 0.9)}, {}, "--betas belongs to --optimizer adamw and"),
        ("cnn", {"optimizer": "sgd", "lr": 0.1, "eps": 1e-8}, {}, "--eps belongs to"),
        ("cnn", {"momentum": 0.5}, {}, "--momentum belongs to --optimizer sgd, not to adamw"),
        ("cnn", {"optimizer": "sgd", "lr": 0.1, "momentum": 1.0}, {}, "momentum"),
        ("cnn", {"eps": 0.0}, {}, "eps"),
        ("cnn", {"width_factor": 0.3}, {}, "width_factor"),
        ("cnn", {"width_factor": 0.0}, {}, "width_factor"),
        ("cnn", {"precision": "float16"}, {}, "auto, float32, bfloat16"),
        ("cnn", {"keep": "int8"}, {}, "float32, bfloat16, sketch"),
        ("cnn", {"sketch_width": 0}, {}, "sketch_width"),
        ("cnn", {"augment": 1}, {}, "augment must be true or false"),
        ("lm", {"augment": True}, {}, "--augment belongs to"),
        ("cnn", {"checkpoint_every": 0}, {}, "checkpoint_every"),
        ("cnn", {"branch_points": (-1,)}, {}, "branch_points"),
        ("cnn", {"direction_snapshots": 2}, {}, "direction_snapshots"),
        ("cnn", {"final_examples": 0}, {}, "final_examples"),
        ("cnn", {"descent_points": 0}, {}, "descent_points"),
        ("lm", {}, {"cooldown": 2.0}, "cooldown"),
        ("lm", {}, {"cycles": 2}, "takes no option 'cycles'"),
    ],
)
def test_what_cannot_be_run_is_refused(arch, given, options, message):
    with pytest.raises(InputError, match=message):
        resolve(arch, given, options=options)


def planned(**given):
    return resolve("cnn", {"steps": 100, **given}).planned(steps_per_epoch=None, data_sha256="d" * 64, parameters=1)


def test_a_config_comes_back_from_json():
    config = planned(betas=(0.8, 0.9), branch_points=(3, 50), probes=("pca",))
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.plan == config.plan
    assert RunConfig.from_dict({k: v for k, v in config.to_dict().items() if k != "probes"}).probes is None
    with pytest.raises(InputError, match=r"takes no option 'bacth'.*Did you mean 'batch'"):
        RunConfig.from_dict({**config.to_dict(), "bacth": 1})
    with pytest.raises(InputError, match="lacks lr"):
        RunConfig.from_dict({k: v for k, v in config.to_dict().items() if k != "lr"})


# A value of each training field other than the default one.
OTHER = {
    "arch": "cnn-b", "batch": 17, "micro_batch": 2, "optimizer": "adam", "momentum": 0.5, "weight_decay": 0.5,
    "betas": (0.5, 0.5), "eps": 1e-3, "clip": 9.0, "width_factor": 2.0, "widths": (1, 1, 1, 1, 1), "size": "14m",
    "seq": 3, "tokenizer": "bpe", "vocab": 300, "augment": True, "precision": "bfloat16", "deterministic": True,
    "compile": True, "seed": 1, "device": "mps", "threads": 2, "data_sha256": "e" * 64,
}  # fmt: skip


def test_identity_is_of_what_determines_the_trajectory():
    assert {*OTHER} == {*TRAINING_FIELDS}
    config = planned()
    found = {config.identity}
    for name, value in OTHER.items():
        changed = copy.copy(config)
        object.__setattr__(changed, name, value)  # past the checks: some fields are of other architectures
        found.add(changed.identity)
    assert len(found) == 1 + len(OTHER)
    for free in ({"lr": 0.5}, {"steps": 50}, {"eval_every": 3}, {"snapshots": 0}, {"probes": ()}):
        assert planned(**free).identity == config.identity
    moved = dataclasses.replace(config, data="elsewhere", facts={"device": "auto"})
    assert moved.identity == config.identity
    assert dataclasses.replace(config, facts={"device": "cuda"}).identity != config.identity
    with pytest.raises(InputError, match="only a planned config"):
        resolve("cnn", {}).identity  # noqa: B018


def test_every_field_is_of_the_trajectory_or_named_here_as_not():
    rates = {"lr", "schedule", "steps", "epochs"}
    measured = {
        "eval_every", "eval_examples", "final_examples", "probes", "snapshots", "keep", "sketch_width", "alphas",
        "line_examples", "hessian_examples", "hessian_points", "hessian_tol", "descent_points", "descent_examples",
        "direction_snapshots", "token_examples",
    }  # fmt: skip
    kept = {"data", "checkpoint_every", "branch_points", "parameters", "facts"}
    assert {f.name for f in dataclasses.fields(RunConfig)} == {*TRAINING_FIELDS} | rates | measured | kept


def test_a_cooldown_of_less_than_two_updates_is_refused_once_the_updates_are_known():
    with pytest.raises(InputError, match="is 1 update"):
        resolve("cnn", {"epochs": 1.0}, options={"cooldown": 0.1}).planned(steps_per_epoch=10)
    with pytest.raises(InputError, match="branch_points"):
        resolve("cnn", {"steps": 10, "branch_points": (11,)}).planned(steps_per_epoch=None)


def test_help_needs_no_torch():
    code = (
        "import sys; from riverval.cli import main\n"
        "try: main(['real', 'run', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--micro-batch" in done.stdout
