"""``riverval real``: parses, calls, prints. Nothing here imports torch before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import store
from ..cli_options import parse_numbers, parse_whole_numbers, takes_schedule
from ..console import say
from . import cli_runs, cli_study
from .architectures import ARCHITECTURES, SIZES
from .config import DEVICES, KEEP, OPTIMIZERS, PRECISIONS
from .presets import PRESETS, configure

_PAPER = "The settings of arXiv:2601.09000, the second for a GPU:\n\n" + "\n\n".join(
    f"riverval real run --preset paper --arch {words}" for words in ("cnn", "lm --data CORPUS")
)

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback(epilog="Start with: riverval real run --arch cnn")
def real() -> None:
    """Train real networks under any schedule and measure their trajectories; resume, branch and measure again.

    Losses and norms of every update, losses on the segments between states, sharpness through the cooldown and
    principal components of the iterates, each beside its null model.
    """


def _option(text: str, *flags: str, panel: str = "Model and data") -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, show_default=False)


def _setting(text: str, *flags: str) -> Any:
    return _option(text, *flags, panel="Presets and settings")


def _training(text: str, *flags: str) -> Any:
    return _option(text, *flags, panel="Training")


def _measuring(text: str, *flags: str) -> Any:
    return _option(text, *flags, panel="Measurements")


def _output(text: str, *flags: str) -> Any:
    return _option(text, *flags, panel="How and where")


def _default(name: str) -> str:
    """What holds where the user gives none, per architecture: on its small data or size, and on others."""
    told = []
    for arch, small, other in (("cnn", "on digits", {"data": ""}), ("lm", "at tiny", {"size": ""})):
        first, second = (ARCHITECTURES[arch].defaults_for(chosen)[name] for chosen in ({}, other))
        told.append(f"{arch} {first:g}" + (f" {small}, else {second:g}" if second != first else ""))
    return "; ".join(told) + "."


@app.command(epilog=_PAPER)
@takes_schedule(None)
def run(
    arch: Annotated[str, _option(f"What to train: {', '.join(ARCHITECTURES)}.", "--arch")],
    *,
    decay: str | None,
    options: dict[str, Any],
    preset: Annotated[
        str | None,
        _setting(f"Settings of one kind of run: {', '.join(PRESETS)}, or a TOML file of your own like theirs."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        _setting("Any setting as KEY=VALUE, e.g. hessian_points=9 or schedule.floor=0.1; repeatable, wins.", "--set"),
    ] = None,
    data: Annotated[
        str | None,
        _option(
            "Images: digits (default, comes with scikit-learn), digits16 (enlarged), cifar10 (downloads), or a .npz "
            "with x_train, y_train, x_test, y_test. Text: stdlib (default, this Python's own sources), a text file, "
            "or a folder of them."
        ),
    ] = None,
    width_factor: Annotated[float | None, _option("Factor of all hidden widths; 1.")] = None,
    widths: Annotated[
        str | None, _option("cnn: widths of the four convolutions and the hidden layer; 16,32,64,64,256.")
    ] = None,
    size: Annotated[str | None, _option(f"lm: {', '.join(SIZES)}; tiny if not given.")] = None,
    seq: Annotated[int | None, _option("Text: tokens per sequence; 64 for tiny, else 2048.")] = None,
    tokenizer: Annotated[str | None, _option("Text: bytes (default), or bpe trained on the training text.")] = None,
    vocab: Annotated[int | None, _option("Text: tokens of bpe; 4096.")] = None,
    steps: Annotated[int | None, _training("Updates of the run; lm: 600, cnn: see --epochs.")] = None,
    epochs: Annotated[
        float | None, _training("Images: passes over the training data, instead of --steps; 12 on digits, else 5.")
    ] = None,
    batch: Annotated[int | None, _training("Images or sequences per update: " + _default("batch"))] = None,
    micro_batch: Annotated[
        int | None, _training("The most of them in one forward pass, where memory is short; same update.")
    ] = None,
    lr: Annotated[float | None, _training("Peak learning rate: " + _default("lr"))] = None,
    optimizer: Annotated[str | None, _training(f"{', '.join(OPTIMIZERS)}; adamw if not given.")] = None,
    weight_decay: Annotated[
        float | None, _training("Weight decay, not on norms and biases: " + _default("weight_decay"))
    ] = None,
    betas: Annotated[str | None, _training("Adam's two decay rates, e.g. 0.9,0.95.")] = None,
    momentum: Annotated[float | None, _training("Of sgd; 0.9.")] = None,
    clip: Annotated[float | None, _training("Clip gradients to this norm; lm: 1, cnn: no clipping.")] = None,
    augment: Annotated[bool | None, _training("Images: random flips and crops.", "--augment")] = None,
    seed: Annotated[int | None, _training("Of the initial weights and the batches; 0.")] = None,
    eval_every: Annotated[
        int | None, _measuring("Updates between evaluations on held-out data: " + _default("eval_every"))
    ] = None,
    snapshots: Annotated[
        int | None, _measuring("States kept in the stable and in the cooldown window, each; 20. 0 keeps none.")
    ] = None,
    keep: Annotated[str | None, _measuring(f"Form of the snapshots: {', '.join(KEEP)}; float32.")] = None,
    hessian_examples: Annotated[
        int | None,
        _measuring("Training images or sequences that define the sharpness: " + _default("hessian_examples")),
    ] = None,
    line_examples: Annotated[
        int | None, _measuring("Training images or sequences of the interpolations: " + _default("line_examples"))
    ] = None,
    device: Annotated[str | None, _output(f"{', '.join(DEVICES)}; auto takes the best.")] = None,
    precision: Annotated[str | None, _output(f"{', '.join(PRECISIONS)}; auto: bfloat16 on CUDA.")] = None,
    deterministic: Annotated[bool | None, _output("Deterministic algorithms only.", "--deterministic")] = None,
    threads: Annotated[int | None, _output("CPU threads; chosen by the size of the model if not given.")] = None,
    compile_model: Annotated[
        bool | None, _output("Compile the model for training (torch.compile).", "--compile")
    ] = None,
    name: Annotated[str | None, _output("Name of the run's folder; arch and schedule if not given.")] = None,
    out: Annotated[Path, _output("Folder of all runs; runs if not given.")] = Path("runs"),
    overwrite: Annotated[bool, _output("Replace a run of the same --name.", "--overwrite")] = False,
) -> None:
    """Train one model under one schedule (wsd if --decay is not given), measure it, write run.nc and real.png.

    Defaults run in minutes on two cores; the warmup is 2 percent of the updates if not given. Examples:

    riverval real run --arch lm --cooldown 0.2

    riverval real run --preset smoke --arch cnn --decay wsd-s --cycles 2 --seed 1

    riverval real run --preset cpu --arch cnn --data cifar10.npz --set hessian_points=9
    """
    given = {
        "data": data, "width_factor": width_factor, "size": size, "seq": seq, "tokenizer": tokenizer, "vocab": vocab,
        "widths": None if widths is None else parse_whole_numbers("--widths", widths),
        "steps": steps, "epochs": epochs, "batch": batch, "micro_batch": micro_batch, "lr": lr, "optimizer": optimizer,
        "weight_decay": weight_decay, "betas": None if betas is None else parse_numbers("--betas", betas),
        "momentum": momentum, "clip": clip, "augment": augment, "seed": seed, "eval_every": eval_every,
        "snapshots": snapshots, "keep": keep, "hessian_examples": hessian_examples, "line_examples": line_examples,
        "device": device, "precision": precision, "deterministic": deterministic, "threads": threads,
        "compile": compile_model,
    }  # fmt: skip
    config = configure(arch, given, decay=decay, options=options, preset=preset, sets=settings or ())

    with cli_runs.training() as began:
        from .run import prepare
        from .run import run as run_job
        from .summary import announcement

        job = prepare(config)
        default = f"{arch}-{job.config.schedule['name']}"
        folder = store.new_run(out, name, default=default, source="real", overwrite=overwrite)
        try:
            for line in announcement(job):
                say(line)
            say(f"writing to {folder}")
            with cli_runs.progress(job.config.plan.total, "update") as watch:
                ds = run_job(job, folder, watch, tell=say)
        finally:
            store.discard_if_empty(folder)  # as it is where something fails before the first update
    cli_runs.close({folder: ds}, began)


app.command("resume")(cli_runs.resume)
app.command("branch")(cli_runs.branch)
app.command("probe")(cli_runs.probe)
app.command("list")(cli_runs.list_runs)
app.command("study", epilog=cli_study.EPILOG)(cli_study.study_command)
