"""The options that name a schedule, written once for every command that takes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .errors import InputError
from .schedules import COOLDOWN_OF, SCHEDULES
from .shapes import SHAPES

_PANEL = "Schedule"


def _option(help_text: str, *flags: str, names: tuple[str, ...] = ()) -> Any:
    def complete(incomplete: str) -> list[str]:
        return [n for n in names if n.startswith(incomplete)]

    return typer.Option(
        *flags, help=help_text, rich_help_panel=_PANEL, show_default=False, autocompletion=complete if names else None
    )


_NAMES = ", ".join(SCHEDULES)
_SHAPES = ", ".join(SHAPES)

# Option name -> annotation. None means "not given": the schedule's own default then holds.
OPTIONS: dict[str, Any] = {
    "decay": Annotated[str, _option(f"Schedule: {_NAMES}.", "--decay", names=tuple(SCHEDULES))],
    "shape": Annotated[
        str | None, _option(f"Decay shape of wsd and wsd-s: {_SHAPES}.", "--shape", names=tuple(SHAPES))
    ],
    "cooldown": Annotated[
        float | None, _option("Length of the cooldown as a fraction of the run (wsd) or cycle (wsd-s).")
    ],
    "floor": Annotated[float | None, _option("Rate at the end of the decay, as a fraction of the peak.")],
    "exponent": Annotated[float | None, _option("Exponent of the shape power.")],
    "warmup": Annotated[int | None, _option("Linear warmup, in updates.")],
    "cycles": Annotated[int | None, _option("Number of equal cycles (wsd-s, cyclic-cosine); 3 if not given.")],
    "budgets": Annotated[
        str | None,
        _option("Budgets in updates, e.g. 1000,2000,4000 (wsd-s, cyclic-cosine); sets the length of the run."),
    ],
    "cooldown_of": Annotated[
        str | None,
        _option(f"What the cooldown of wsd-s is a fraction of: {', '.join(COOLDOWN_OF)}.", names=COOLDOWN_OF),
    ],
    "rewarmup": Annotated[int | None, _option("Warmup after each jump back, in updates (wsd-s, cyclic-cosine).")],
    "timescale": Annotated[float | None, _option("Updates until inverse-sqrt has fallen to 0.71 of the peak.")],
}


def takes_schedule(default: str | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the schedule options; it receives `decay` and a dict `options` of those that were given.

    The command must have the keyword-only parameters ``decay`` and ``options: dict[str, Any]``. `default` is the
    schedule where none is given; with None, `decay` is then None and the command chooses.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True)
        kept = [p for n, p in own.parameters.items() if n not in ("decay", "options")]
        kind = inspect.Parameter.KEYWORD_ONLY
        added = [
            inspect.Parameter(n, kind, default=default if n == "decay" else None, annotation=annotation)
            for n, annotation in OPTIONS.items()
        ]

        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            values = {n: given.pop(n) for n in OPTIONS}
            decay = values.pop("decay")
            options = {n: v for n, v in values.items() if v is not None}
            if "budgets" in options:
                options["budgets"] = parse_whole_numbers("--budgets", options["budgets"])
            return command(decay=decay, options=options, **given)

        parameters = [p.replace(kind=kind) for p in kept] + added
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def parse_whole_numbers(flag: str, text: str) -> tuple[int, ...]:
    """'1000,2000' -> (1000, 2000)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} must be whole numbers separated by commas, e.g. 100,200,400, got {text!r}") from error


def parse_numbers(flag: str, text: str) -> tuple[float, ...]:
    """'0.5,2' -> (0.5, 2.0)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} must be numbers separated by commas, e.g. 0.5,1,4, got {text!r}") from error


def parse_pairs(flag: str, texts: list[str] | None) -> dict[str, Any]:
    """['a=0.5', 'b=1,2', 'c=word'] -> {'a': 0.5, 'b': (1.0, 2.0), 'c': 'word'}; whole numbers stay whole."""
    pairs: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise InputError(f"{flag} must be NAME=VALUE, e.g. {flag} beta=0.9, got {text!r}")
        if name in pairs:
            raise InputError(f"{flag} gives {name!r} twice; give it once")
        pairs[name] = _value(value)
    return pairs


def _value(text: str) -> Any:
    """A whole number, a number, several, or the text itself."""
    for read in (int, float, lambda t: tuple(float(part) for part in t.split(","))):
        try:
            return read(text)
        except ValueError:
            continue
    return text
