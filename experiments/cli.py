"""``riverval real``: parses, calls, prints. Nothing here imports torch before a run starts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import store
from ..cli_options import parse_numbers, parse_whole_numbers, takes_schedule
from ..console import complain, progress, say, show_table
from .config import DEVICES, resolve
from .models import ARCHITECTURES, SIZES

_PAPER = "The settings of arXiv:2601.09000, the second for a GPU:\n\n" + "\n\n".join(
    f"riverval real run {architecture.paper}" for architecture in ARCHITECTURES.values()
)

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback(epilog="Start with: riverval real run --arch cnn")
def real() -> None:
    """Train a real CNN or language model under any schedule and measure its trajectory.

    Losses and norms of every update, losses on the segments between states, sharpness through the cooldown and
    principal components of the iterates, each beside its null model.
    """


def _option(text: str, *flags: str, panel: str = "Model and data") -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, show_default=False)


def _training(text: str, *flags: str) -> Any:
    return _option(text, *flags, panel="Training")


def _measuring(text: str, *flags: str) -> Any:
    return _option(text, *flags, panel="Measurements")


def _default(name: str) -> str:
    """What holds where the user gives none, per architecture: on its small data or size, and on others."""
    told = []
    for arch, small, other in (("cnn", "on digits", {"data": ""}), ("lm", "at tiny", {"size": ""})):
        first, second = (ARCHITECTURES[arch].defaults_for(chosen)[name] for chosen in ({}, other))
        told.append(f"{arch} {first:g}" + (f" {small}, else {second:g}" if second != first else ""))
    return "; ".join(told) + "."


def _output(text: str, *flags: str) -> Any:
    return _option(text, *flags, panel="How and where")


@app.command(epilog=_PAPER)
@takes_schedule("wsd")
def run(
    arch: Annotated[str, _option(f"What to train: {', '.join(ARCHITECTURES)}.", "--arch")],
    *,
    decay: str,
    options: dict[str, Any],
    data: Annotated[
        str | None,
        _option(
            "cnn: digits (default, comes with scikit-learn), cifar10 (downloads), or a .npz with x_train, y_train, "
            "x_test, y_test. lm: stdlib (default, this Python's own sources), a text file, or a folder of text files."
        ),
    ] = None,
    widths: Annotated[
        str | None, _option("cnn: widths of the four convolutions and the hidden layer; 16,32,64,64,256.")
    ] = None,
    size: Annotated[str | None, _option(f"lm: {', '.join(SIZES)}; tiny if not given.")] = None,
    seq: Annotated[int | None, _option("lm: tokens per sequence; 64 for tiny, else 2048.")] = None,
    tokenizer: Annotated[str | None, _option("lm: bytes (default), or bpe trained on the training text.")] = None,
    vocab: Annotated[int | None, _option("lm: tokens of bpe; 4096.")] = None,
    steps: Annotated[int | None, _training("Updates of the run; lm: 600, cnn: see --epochs.")] = None,
    epochs: Annotated[
        float | None, _training("cnn: passes over the training data, instead of --steps; 12 on digits, else 5.")
    ] = None,
    batch: Annotated[int | None, _training("Images or sequences per update: " + _default("batch"))] = None,
    micro_batch: Annotated[
        int | None, _training("The most of them in one forward pass, where memory is short; same update.")
    ] = None,
    lr: Annotated[float | None, _training("Peak learning rate: " + _default("lr"))] = None,
    weight_decay: Annotated[
        float | None, _training("AdamW's weight decay, not on norms and biases: " + _default("weight_decay"))
    ] = None,
    betas: Annotated[str | None, _training("AdamW's two decay rates, e.g. 0.9,0.95.")] = None,
    clip: Annotated[float | None, _training("Clip gradients to this norm; lm: 1, cnn: no clipping.")] = None,
    seed: Annotated[int, _training("Of the initial weights and the batches.")] = 0,
    eval_every: Annotated[
        int | None, _measuring("Updates between evaluations on held-out data: " + _default("eval_every"))
    ] = None,
    snapshots: Annotated[
        int | None, _measuring("States kept in the stable and in the cooldown window, each; 20. 0 keeps none.")
    ] = None,
    hessian_examples: Annotated[
        int | None,
        _measuring("Training images or sequences that define the sharpness: " + _default("hessian_examples")),
    ] = None,
    line_examples: Annotated[
        int | None, _measuring("Training images or sequences of the interpolations: " + _default("line_examples"))
    ] = None,
    device: Annotated[str | None, _output(f"{', '.join(DEVICES)}; auto takes the best.")] = None,
    threads: Annotated[int | None, _output("CPU threads; chosen by the size of the model if not given.")] = None,
    compile_model: Annotated[bool, _output("Compile the model for training (torch.compile).", "--compile")] = False,
    name: Annotated[str | None, _output("Name of the run's folder; arch and schedule if not given.")] = None,
    out: Annotated[Path, _output("Folder of all runs; runs if not given.")] = Path("runs"),
    overwrite: Annotated[bool, _output("Replace a run of the same --name.", "--overwrite")] = False,
) -> None:
    """Train one model under one schedule, measure it, write run.nc and real.png.

    Defaults run in minutes on two cores; the warmup is 2 percent of the updates if not given. Examples:

    riverval real run --arch lm --cooldown 0.2

    riverval real run --arch cnn --decay wsd-s --cycles 2 --seed 1

    riverval real run --arch cnn --data cifar10.npz --epochs 5
    """
    given = {
        "data": data, "size": size, "seq": seq, "tokenizer": tokenizer, "vocab": vocab, "steps": steps,
        "epochs": epochs,
        "widths": None if widths is None else parse_whole_numbers("--widths", widths),
        "batch": batch, "micro_batch": micro_batch, "lr": lr, "weight_decay": weight_decay, "clip": clip, "seed": seed,
        "betas": None if betas is None else parse_numbers("--betas", betas),
        "eval_every": eval_every, "snapshots": snapshots, "hessian_examples": hessian_examples,
        "line_examples": line_examples, "device": device, "threads": threads, "compile": compile_model,
    }  # fmt: skip
    config = resolve(arch, given, decay=decay, options=options)
    began = time.monotonic()
    # Threads that spin while they wait cost a factor of ten where a core is shared. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from .run import INTERRUPTED, prepare
    from .run import run as run_job
    from .summary import announcement, summary_rows

    job = prepare(config)
    folder = store.new_run(out, name, default=f"{arch}-{decay}", source="real", overwrite=overwrite)
    try:
        for line in announcement(job):
            say(line)
        say(f"writing to {folder}")
        with progress(job.config.plan.total, "update") as watch:
            ds = run_job(job, folder, watch, tell=say)
    except KeyboardInterrupt:
        complain("interrupted before the first update; nothing was recorded")
        raise typer.Exit(130) from None
    finally:
        store.discard_if_empty(folder)  # as it is where something fails before the first update

    from .. import plots

    show_table(ds.attrs["title"], ("quantity", "measured", "null or theory"), summary_rows(ds))
    for note in filter(None, ds.attrs.get("notes", "").splitlines()):
        say(f"note: {note}")
    say(f"wrote {folder / store.RUN_FILE}")
    if ds.sizes.get("step"):
        say(f"wrote {plots.write(plots.real_run(ds), folder / 'real.png')}")
    say(f"took {time.monotonic() - began:.0f} s")
    say(f"at the scale of arXiv:2601.09000: riverval real run {config.architecture.paper}")
    if ds.attrs["status"] == "diverged":
        complain(
            f"the loss stopped being finite at state {int(ds['diverged_at'])}; use a smaller --lr or a longer --warmup"
        )
        raise typer.Exit(1)
    if ds.attrs["status"] == "interrupted" or INTERRUPTED in ds.attrs.get("notes", ""):
        complain("interrupted; what was recorded is kept")
        raise typer.Exit(130)
