"""The demo: the commands a new user would type, one after the other, and the page that compares what they made."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

from . import store
from ._checks import check_int
from .console import say
from .errors import InputError

PAGE = "index.html"
TOY = "toy simulate --lr 0.1 --decay wsd --cooldown 0.2"
REAL = ("real run --arch cnn --cooldown 0.35", "real run --arch lm --cooldown 0.2")


def run_demo(out: Path, *, seed: int = 0, overwrite: bool = False) -> Path:
    """Run the toy and, where torch is installed, a CNN and a language model; write the page and return its path.

    Raises:
        InputError: something stands in the way and `overwrite` is False.
        SystemExit: one of the commands failed; what the others wrote stays.
    """
    check_int("seed", seed, low=0)
    commands = {"toy": TOY}
    if has_torch():
        commands |= {"cnn": REAL[0], "lm": REAL[1]}
    taken = [p for p in (*(out / name for name in commands), out / PAGE) if p.exists()]
    if taken and not overwrite:
        raise InputError(f"{taken[0]} exists; choose another --out, or replace it with --overwrite")
    for name, command in commands.items():
        _run([*command.split(), "--seed", str(seed), "--name", name, "--out", str(out)], overwrite)
    page = out / PAGE
    _run(["compare", *(str(out / name / store.RUN_FILE) for name in commands), "--out", str(page)], overwrite)
    if len(commands) == 1:
        say("only the toy was run: training needs torch; install it with: python -m pip install 'riverval[real]'")
    return page


def has_torch() -> bool:
    """Whether the real runs can be made; torch itself is not imported."""
    return importlib.util.find_spec("torch") is not None


def _run(words: list[str], overwrite: bool) -> None:
    from .cli import main

    words = [*words, "--overwrite"] if overwrite else words
    say(f"\n$ riverval {shlex.join(words)}")
    try:
        main(words)
    except SystemExit as stop:
        if stop.code:
            raise
