"""Errors whose message says what was given, what is allowed and what to do.

The command line turns each into one line on standard error: `InputError` ends with exit code 2 (usage), every other
`RivervalError` with 1 (failure).
"""

from __future__ import annotations


class RivervalError(Exception):
    """Base class: something that riverval can explain. Exit code 1."""

    exit_code = 1


class InputError(RivervalError, ValueError):
    """An argument is unknown or out of range. Exit code 2."""

    exit_code = 2


class StoreError(RivervalError, OSError):
    """A result file is missing, unreadable, not in the schema, or cannot be written. Exit code 1."""


class MissingExtraError(RivervalError, ImportError):
    """An optional dependency is not installed. Exit code 1."""


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for an optional `package` that `purpose` needs and `extra` would install."""
    return MissingExtraError(
        f"{purpose} needs {package}, which is not installed; install it with: python -m pip install 'riverval[{extra}]'"
    )
