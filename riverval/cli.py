"""The command `riverval`: parses, calls, prints. Commands are loaded when they are used, so that --help stays quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__
from .errors import RivervalError

# Command -> (module, attribute, one line of help). The line stands here so that the list of commands needs no import.
COMMANDS = {
    "toy": ("riverval.toy.cli", "app", "Simulate analytic river valleys beside their exact solution."),
    "real": ("riverval.experiments.cli", "app", "Train a real CNN or language model and measure its trajectory."),
    "schedule": ("riverval.commands", "schedule_app", "Print, plot and export learning-rate schedules."),
    "show": ("riverval.commands", "show_app", "Summarise a dataset file or a run folder."),
    "compare": ("riverval.commands", "compare_app", "Put runs side by side on one HTML page."),
    "demo": ("riverval.commands", "demo_app", "Run a toy, a CNN and a language model, and compare them."),
}


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and imports one only when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, line = COMMANDS[cmd_name]
        if _only_listing(ctx):
            return typer.main.get_command(_placeholder(line))
        command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        command.name = cmd_name
        return command


def _only_listing(ctx: Any) -> bool:
    """True while the top-level help is being written, which needs each command's line but nothing else."""
    return not ctx.protected_args and not ctx.args and not ctx.resilient_parsing and ctx.invoked_subcommand is None


def _placeholder(line: str) -> typer.Typer:
    app = typer.Typer(help=line, add_completion=False)

    @app.command(help=line)
    def nothing() -> None:
        raise AssertionError("the placeholder of a command list is never run")

    return app


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit code 0: done; 1: failed; 2: wrong usage; 130: interrupted."""
    try:
        app(args=list(sys.argv[1:] if argv is None else argv), prog_name="riverval")
    except RivervalError as error:
        from .console import complain

        complain(str(error))
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
