"""Sphinx configuration. The schema and API pages are filled in from the code, so they cannot fall behind it."""

from __future__ import annotations

import importlib
import importlib.util
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import scipy.stats  # noqa: F401  (before the stand-ins: it would take the one for torch for torch itself)

import riverval
from riverval import schema
from riverval.toy.predictions import FAMILIES, select

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
ROOMS = {folder: package for package, folder in SETTINGS["package-dir"].items()}
COMMAND_LINE = (
    "__main__", "cli", "cli_bigram", "cli_check", "cli_keep", "cli_options", "cli_study", "commands", "commands_law",
    "console", "demo",
)  # fmt: skip
# Modules that are read, not imported: importing one runs it.
SCRIPTS = ("minimal",)

project = "riverval"
author = "The riverval developers"
version = release = riverval.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "speed-table.md", "instruments-speed-table.md", "laws-scores-table.md"]
default_role = "literal"  # a name between single backticks is code
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"riverval {release}"

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# What is not installed is replaced by stand-ins, so that the documentation needs no torch.
_OPTIONAL = ("safetensors", "sklearn", "tokenizers", "torch", "torchvision", "transformers")
autodoc_mock_imports = [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]


def _table(name: str) -> str:
    variables: Mapping[str, schema.Variable] = getattr(schema, name)
    lines = ["| name | dimensions | type | units | meaning |", "|---|---|---|---|---|"]
    for key, v in variables.items():
        dims = " or ".join(f"`({', '.join(d)})`" for d in v.dims)
        lines.append(f"| `{key}` | {dims} | {v.dtype} | {v.units} | {v.long_name} |")
    return "\n".join(lines)


def _list(name: str) -> str:
    as_json = ("config", "versions")
    return "\n".join(f"- `{key}`{' (JSON)' if key in as_json else ''}" for key in getattr(schema, name))


def _predictions(family: str) -> str:
    lines = ["| prediction | statement | formula | valid for | source |", "|---|---|---|---|---|"]
    for name, p in select([f"P-{family}"]).items():
        spans = "; ".join(f"{s.what} {s.low:g} to {s.high:g}" for s in p.spans.values())
        cells = (f"`{name}`", f"{'**must fail:** ' * p.must_fail}{p.statement}", f"`{p.formula}`",
                 f"{p.validity}{f' ({spans})' * bool(spans)}", p.source)  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return f"## {FAMILIES[f'P-{family}']}\n\n" + "\n".join(lines)


def _names(package: str) -> str:
    public = sorted(importlib.import_module(package).__all__)
    return ", ".join(f"`{name}`" for name in public) + "."


def _modules(room: str) -> str:
    files = sorted((ROOT / room).glob("[!_]*.py"))
    names = [file.stem for file in files if file.stem not in (*COMMAND_LINE, *SCRIPTS)]
    # Directives of autodoc speak reStructuredText, as the docstrings do.
    return "\n\n".join(f"### {n}\n\n```{{eval-rst}}\n.. automodule:: {ROOMS[room]}.{n}\n```" for n in names)


_FILLERS: dict[str, Callable[[str], str]] = {
    "table": _table,
    "list": _list,
    "names": _names,
    "modules": _modules,
    "predictions": _predictions,
}


def fill_in(app: Any, page: str, source: list[str]) -> None:
    """Replace each line `% <filler> of: <name>` of a page by what the filler makes of the code."""
    source[0] = re.sub(r"(?m)^% (\w+) of: (\w+)$", lambda m: _FILLERS[m[1]](m[2]), source[0])


def setup(app: Any) -> None:
    app.connect("source-read", fill_in)
