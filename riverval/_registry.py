"""Registries: name -> class, filled by a decorator; command line, property tests and docs read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C")


def registrar(registry: dict[str, Any]) -> Callable[[str], Callable[[C], C]]:
    """A decorator ``@register(name)`` that puts a class into `registry` and gives it its `name`.

    >>> shapes: dict[str, type] = {}
    >>> register = registrar(shapes)
    >>> @register("flat")
    ... class Flat: ...
    >>> shapes["flat"].name
    'flat'
    """

    def register(name: str) -> Callable[[C], C]:
        def add(cls: C) -> C:
            cls.name = name  # type: ignore[attr-defined]
            registry[name] = cls
            return cls

        return add

    return register
