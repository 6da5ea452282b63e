"""What the user gives becomes a complete config, or an error before anything is trained."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from riverval.errors import InputError
from riverval.experiments.config import resolve
from riverval.experiments.models import ARCHITECTURES


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_defaults_are_complete_and_json_ready(arch):
    config = resolve(arch, {}).planned(steps_per_epoch=100, parameters=1)
    assert config.plan.total == config.steps
    assert config.plan.peak_lr == config.lr
    assert json.loads(json.dumps(config.to_dict()))["arch"] == arch
    assert config.schedule["cooldown"] == {"cnn": 0.35, "lm": 0.2}[arch]
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
        ("mlp", {}, {}, "choose one of: cnn, lm"),
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
        ("lm", {}, {"cooldown": 2.0}, "cooldown"),
        ("lm", {}, {"cycles": 2}, "takes no option 'cycles'"),
    ],
)
def test_what_cannot_be_run_is_refused(arch, given, options, message):
    with pytest.raises(InputError, match=message):
        resolve(arch, given, options=options)


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
