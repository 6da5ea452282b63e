"""The command `riverval`: parses, calls, prints. Commands are loaded when they are used, so that --help stays quick."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from . import __version__
from .errors import RivervalError

# Command -> (module, attribute, one line of help). The line stands here so that the list of commands needs no import.
COMMANDS = {
    "toy": (
        "riverval.toy.cli",
        "app",
        "Simulate valleys and bigram languages, check the theory, draw its pictures.",
    ),
    "real": ("riverval.experiments.cli", "app", "Train a real CNN or language model and measure its trajectory."),
    "schedule": ("riverval.commands", "schedule_app", "Print, plot and export learning-rate schedules."),
    "law": ("riverval.commands_law", "law_app", "Fit loss-curve laws, score them on published runs, plan with them."),
    "show": ("riverval.commands", "show_app", "Summarise a dataset file or a run folder."),
    "compare": ("riverval.commands", "compare_app", "Put runs side by side on one HTML page."),
    "demo": ("riverval.commands", "demo_app", "Run a toy, a CNN and a language model, and compare them."),
}


class LazyGroup(TyperGroup):
    """A group that lists its commands by name and imports one only when it is run or completed."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = {name: TyperCommand(name, help=line) for name, (_, _, line) in COMMANDS.items()}

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            module, attribute, line = COMMANDS[args[0]]
            command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
            command.name, command.short_help = args[0], line
            self.commands[args[0]] = command
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # loading rich would double the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learning-rate schedules in river-valley loss landscapes: theory, simulation and real training side by side.",
    epilog="Start with: riverval toy simulate --lr 0.1 --decay wsd-s",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"riverval {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit code 0: done; 1: failed; 2: wrong usage; 130: interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    before, sys.argv = sys.argv, ["riverval", *words]  # what a dataset records as the command that made it
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± shall not cost the table
    try:
        app(args=words, prog_name="riverval")
    except BrokenPipeError:
        raise  # typer's own business: the reader of a pipe has gone
    except (RivervalError, OSError, MemoryError) as error:
        _fail(error)
    finally:
        sys.argv = before


def _fail(error: Exception) -> None:
    """One line on standard error, then the exit code."""
    from .console import complain

    if isinstance(error, RivervalError):
        complain(str(error))
        raise SystemExit(error.exit_code) from None
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        complain(f"{place}{error.strerror or error}")
    else:
        complain(f"not enough memory: {error or 'use fewer steps or replicates'}")
    raise SystemExit(1) from None


if __name__ == "__main__":
    main()
