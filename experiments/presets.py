"""Where a run's settings come from: a preset in TOML, options of the command line, ``--set``. A later one wins.

A preset's top-level keys hold for every architecture, those of ``[images]`` or ``[text]`` for one kind of data, those
of ``[arch.NAME]`` for one architecture; a table ``schedule`` within any of them has options of the schedule, ``needs``
is a list of the settings that only the user can give. Below all of them stand the architecture's own defaults.
"""

from __future__ import annotations

import importlib.resources
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .._checks import pick, suggest, unknown
from ..errors import InputError
from .architectures import ARCHITECTURES
from .config import RunConfig, resolve

PRESETS = ("smoke", "cpu", "paper")
_PREFIX = "schedule."

# Options of the schedules; `name` chooses one.
SCHEDULE_KINDS: dict[str, Any] = {
    "name": str, "shape": str, "cooldown": float, "floor": float, "exponent": float, "warmup": int, "cycles": int,
    "budgets": tuple[int, ...], "cooldown_of": str, "rewarmup": int, "timescale": float,
}  # fmt: skip

# What a field means depends on another: where a later layer changes the key, the values of earlier ones go.
_HANG_ON = {"tokenizer": ("vocab",), "optimizer": ("lr", "betas", "eps", "momentum")}
_RIVALS = {"steps": "epochs", "epochs": "steps"}


@dataclass(frozen=True)
class Settings:
    """Fields of `RunConfig` and options of its schedule, as far as one source gives them."""

    values: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@cache
def settable() -> dict[str, Any]:
    """Field of `RunConfig` that a preset or ``--set`` may give -> its type."""
    kinds = typing.get_type_hints(RunConfig) | {"probes": tuple[str, ...]}  # no "none": that would mean all of them
    return {n: k for n, k in kinds.items() if n not in ("arch", "schedule", "data_sha256", "parameters", "facts")}


def configure(
    arch: str,
    given: Mapping[str, Any] | None = None,
    *,
    decay: str | None = None,
    options: Mapping[str, Any] | None = None,
    preset: str | None = None,
    sets: Sequence[str] = (),
) -> RunConfig:
    """The complete config of a run: architecture's defaults < preset < `given` and `options` < `sets`.

    Args:
        arch: a key of `ARCHITECTURES`.
        given: fields of `RunConfig` from the command line; None means not given.
        decay: name of the schedule; None: the preset's, else wsd.
        options: options of the schedule.
        preset: a name of `PRESETS` or the path of a TOML file.
        sets: texts KEY=VALUE; ``schedule.KEY`` for an option of the schedule, ``schedule.name`` for its name.

    Raises:
        InputError: an unknown name, a value of the wrong type or out of range (with the file and key where it stands
            in a preset), or a setting that the preset leaves to the user.
    """
    base = read_preset(preset, arch) if preset else Settings()
    typed = Settings({k: v for k, v in (given or {}).items() if v is not None}, dict(options or {}))
    last = read_sets(sets)
    values = _merged([base.values, typed.values, last.values])
    for name in base.needs:
        if name not in values:
            raise InputError(f"the preset {preset} needs --{name.replace('_', '-')}: it has no value of its own")
    planned = last.schedule.get("name") or decay or base.schedule.get("name", "wsd")
    own = base.schedule if planned == base.schedule.get("name", "wsd") else {}
    schedule = {k: v for k, v in {**own, **typed.schedule, **last.schedule}.items() if k != "name"}
    try:
        return resolve(arch, values, decay=planned, options=schedule)
    except InputError as error:
        inherited = {k: v for k, v in base.values.items() if values.get(k) == v} | dict(own)
        told = ", ".join(f"{k} = {v}" for k, v in inherited.items() if k in str(error))
        raise InputError(f"{error} (the preset {preset} gives {told})" if told else str(error)) from error


def read_preset(preset: str, arch: str) -> Settings:
    """What a preset says for one architecture.

    Args:
        preset: a name of `PRESETS` or the path of a TOML file.
        arch: a key of `ARCHITECTURES`.

    Raises:
        InputError: no such preset, no TOML, an unknown key, or a value that is not allowed; says the file and key.
    """
    architecture = pick("architecture", arch, ARCHITECTURES)
    source, text = _text(preset)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not valid TOML: {error}") from error
    by_arch = _tables(source, "arch", table.pop("arch", {}), ARCHITECTURES)
    by_kind = _tables(source, "", {k: table.pop(k) for k in ("images", "text") if k in table}, ("images", "text"))
    every = {"": _checked(source, "", table, ("images", "text", "arch"))}
    every |= {k: _checked(source, f"{k}.", t) for k, t in by_kind.items()}
    every |= {f"arch.{k}": _checked(source, f"arch.{k}.", t) for k, t in by_arch.items()}
    layers = [every[k] for k in ("", architecture.data_kind, f"arch.{arch}") if k in every]
    settings = Settings(
        _merged([layer.values for layer in layers]),
        _merged([layer.schedule for layer in layers]),
        tuple(n for layer in layers for n in layer.needs),
    )
    try:  # by itself, so that a value out of range is told as the preset's
        options = dict(settings.schedule)
        resolve(arch, dict(settings.values), decay=options.pop("name", "wsd"), options=options)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return settings


def read_sets(texts: Iterable[str] | None) -> Settings:
    """['lr=3e-3', 'schedule.cooldown=0.2'] as settings; the text "none" is no value.

    Raises:
        InputError: not KEY=VALUE, an unknown key, a key given twice, or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    schedule: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InputError(f"--set must be KEY=VALUE, e.g. --set eval_every=100, got {text!r}")
        target, key = (schedule, name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else (values, name)
        kinds = SCHEDULE_KINDS if target is schedule else settable()
        if key not in kinds:
            raise _unknown_setting("--set", name)
        if key in target:
            raise InputError(f"--set gives {name!r} twice; give it once")
        target[key] = _typed(f"--set {name}", kinds[key], value.strip(), _from_text)
    return Settings(values, schedule)


def _text(preset: str) -> tuple[str, str]:
    """How errors call the preset, and its TOML."""
    if preset in PRESETS:
        file = importlib.resources.files(__package__).joinpath(f"preset_{preset}.toml")
        return f"preset {preset} ({file.name})", file.read_text(encoding="utf-8")
    path = Path(preset)
    if path.suffix != ".toml":
        near = suggest(preset, PRESETS)
        raise InputError(f"unknown preset {preset!r}; choose one of: {', '.join(PRESETS)}, or a file.toml.{near}")
    try:
        return f"preset {path}", path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the preset {path}: {getattr(error, 'strerror', None) or error}; the built-in presets are "
            f"{', '.join(PRESETS)}"
        ) from error


def _tables(source: str, name: str, found: Any, allowed: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Named tables of a preset, e.g. of architectures."""
    if not isinstance(found, dict):
        raise InputError(f"{source}: {name} must be tables, e.g. [arch.cnn], got {found!r}")
    for key, table in found.items():
        if key not in allowed:
            raise InputError(f"{source}: {unknown('architecture', key, allowed)}")
        if not isinstance(table, dict):
            raise InputError(f"{source}: {name}{'.' * bool(name)}{key} must be a table, got {table!r}")
    return found


def _checked(source: str, place: str, table: Mapping[str, Any], others: tuple[str, ...] = ()) -> Settings:
    """One table of a preset, its keys and types checked."""
    schedule = table.get("schedule", {})
    if not isinstance(schedule, dict):
        raise InputError(f"{source}: {place}schedule must be a table, e.g. schedule.cooldown = 0.2, got {schedule!r}")
    needs = table.get("needs", [])
    if not isinstance(needs, list) or any(n not in settable() for n in needs):
        raise InputError(f"{source}: {place}needs must be a list of settings, e.g. ['data'], got {needs!r}")
    values = {k: v for k, v in table.items() if k not in ("schedule", "needs")}
    for key in values:
        if key not in settable():
            raise _unknown_setting(f"{source}: {place}{key}", key, others)
    for key in schedule:
        if key not in SCHEDULE_KINDS:
            raise _unknown_setting(f"{source}: {place}schedule.{key}", f"{_PREFIX}{key}", others)
    return Settings(
        {k: _typed(f"{source}: {place}{k}", settable()[k], v, _from_toml) for k, v in values.items()},
        {k: _typed(f"{source}: {place}schedule.{k}", SCHEDULE_KINDS[k], v, _from_toml) for k, v in schedule.items()},
        tuple(needs),
    )


def _unknown_setting(where: str, name: str, others: tuple[str, ...] = ()) -> InputError:
    allowed = [*settable(), *(_PREFIX + k for k in SCHEDULE_KINDS), *others]
    near = suggest(name.replace("_", "-"), [n.replace("_", "-") for n in allowed]).replace("-", "_")
    return InputError(f"{where}: there is no setting {name!r}; choose one of: {', '.join(allowed)}.{near}")


def _merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Later layers win; a length in updates displaces one in epochs, another tokenizer or optimizer what hung on it."""
    out: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            out.pop(_RIVALS.get(name, ""), None)
            usual = RunConfig.optimizer if name == "optimizer" else value
            if out.get(name, usual) != value:
                for other in _HANG_ON.get(name, ()):
                    out.pop(other, None)
        out |= layer
    return out


def _typed(where: str, kind: Any, value: Any, read: Callable[[Any, Any], Any]) -> Any:
    """The value in the field's type; its optional ones take "none"."""
    optional = isinstance(kind, types.UnionType) and type(None) in kind.__args__
    if optional:
        kind = next(k for k in kind.__args__ if k is not type(None))
        if value == "none":
            return None
    try:
        if typing.get_origin(kind) is not tuple:
            return read(kind, value)
        parts = [part for part in value.split(",") if part] if read is _from_text else _from_toml(list, value)
        return tuple(read(kind.__args__[0], part) for part in parts)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} must be {_told(kind)}{' or none' * optional}, got {value!r}") from error


def _from_text(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _no(text)
    return kind(text)


def _from_toml(kind: Any, value: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else _no(value)


def _no(value: Any) -> Any:
    raise ValueError(value)


def _told(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"several of: {_told(kind.__args__[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
