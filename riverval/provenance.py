"""Where a result comes from: versions, git state of the code, command, configuration, seed."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import __version__
from .schema import SCHEMA_VERSION

# Packages whose version can change a number.
_PACKAGES = (
    "numpy",
    "scipy",
    "xarray",
    "netcdf4",
    "numba",
    "sympy",
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "scikit-learn",
)


def provenance(title: str, *, config: dict[str, Any], seed: int, status: str = "complete") -> dict[str, str]:
    """The attributes of a dataset, all flat strings; `config` and `versions` are JSON."""
    return {
        "title": title,
        "schema_version": SCHEMA_VERSION,
        "status": status,
        **made_by(),
        "seed": str(seed),
        "config": json.dumps(config, sort_keys=True),
    }


def made_by() -> dict[str, str]:
    """Of a result the time, the command and the code, as flat strings; `versions` is JSON."""
    commit, dirty = git_state()
    return {
        "riverval_version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv and sys.argv[0] else "",
        "git_commit": commit,
        "git_dirty": dirty,
        "versions": json.dumps(_versions()),
    }


@functools.cache
def git_state() -> tuple[str, str]:
    """(commit, 'true' or 'false' for uncommitted changes) of the code in use; empty where it is not a git checkout."""
    folder = Path(__file__).parent
    # An environment inside somebody else's repository must not lend us its commit: our own file has to be tracked.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return "", ""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=normal")
    return (commit or ""), ("" if changes is None else "true" if changes else "false")


def _git(folder: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
