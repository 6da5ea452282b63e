"""Compilation of a loss and an optimizer into one loop over updates, with the noise drawn outside it by NumPy.

The code of a loop is written to a file in the user's cache folder, named by its content, because numba keeps compiled
code beside files only. So an expression is compiled once for a user, whatever the numbers in it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from . import _elementary
from ._loss import Kernel
from .optimizers import Optimizer

LARGE = 1e50
"""Size of a coordinate beyond which the loss is looked at after each update; nearer by it is at recorded states."""

_TEMPLATE = '''\
"""Written by riverval; may be deleted at any time."""

import numba
from riverval.toy._jit import cos, exp, log, sin, sqrt
from riverval.toy.{module} import {rule}

rule = numba.njit(nogil=True, error_model="numpy")({rule})


@numba.njit(nogil=True, error_model="numpy", cache=True)
def advance(w, states, average, weight, xi, begin, end, made, scale, alive, p, varying, constants, due, kept, copies):
    """Make the updates of xi[begin:end], copying the points at the states due[kept:], until a living replicate has
    grown large; returns how many, negative where one has."""
    {once}
    for t in range(begin, end):
        u = made + t - begin
        {each_update}
        large = False
        for r in range(w.shape[1]):
            {each_replicate}
        if kept < due.size and due[kept] == u + 1:
            for i in range(w.shape[0]):
                for r in range(w.shape[1]):
                    {copy}
            kept += 1
        if large:
            return begin - t - 1
    return end - begin
'''


def source_of(kernel: Kernel, optimizer: Optimizer, averaged: bool) -> str:
    """The module that makes the updates of this loss by this optimizer."""
    varying, constants = optimizer.counts()
    numbers = [*(f"v{k}" for k in range(varying)), *(f"c{k}" for k in range(constants))]
    once = [*kernel.head, *(f"c{k} = constants[{k}]" for k in range(constants))]
    once += [f"a{i} = scale[{i}]" for i in range(kernel.dim)]
    each_update = [f"v{k} = varying[u, {k}]" for k in range(varying)] + ["share = weight[u]"] * averaged
    each_replicate = [*(f"w{i} = w[{i}, r]" for i in range(kernel.dim)), *kernel.lines, "living = alive[r]"]
    for i in range(kernel.dim):
        states = [f"states[{k}, {i}, r]" for k in range(optimizer.states)]
        arguments = ", ".join([f"w{i}", f"g{i} + a{i} * xi[t, {i}, r]", *states, *numbers])
        each_replicate.append(f"{', '.join([f'w{i}', *states])} = rule({arguments})")
        each_replicate += [f"w[{i}, r] = w{i}", f"large |= living & (not (abs(w{i}) < {LARGE!r}))"]
        if averaged:
            point = f"w{i}" if optimizer.evaluated is None else states[optimizer.evaluated]
            each_replicate.append(f"average[{i}, r] += share * ({point} - average[{i}, r])")
    point = "w[i, r]" if optimizer.evaluated is None else f"states[{optimizer.evaluated}, i, r]"
    copy = [f"copies[kept, 0, i, r] = {point}"] + ["copies[kept, 1, i, r] = average[i, r]"] * averaged
    rule: Any = type(optimizer).rule
    return _TEMPLATE.format(
        module=rule.__module__.rpartition(".")[2],
        rule=rule.__name__,
        once="\n    ".join(once),
        each_update="\n        ".join(each_update),
        each_replicate="\n            ".join(each_replicate),
        copy="\n                    ".join(copy),
    )


@lru_cache(maxsize=64)
def load(source: str) -> Callable[..., int]:
    """The compiled loop of a module; compiled when it is first called, or read from the cache."""
    from . import _jit  # here, because numba takes a second to load

    # What the module imports is part of what is compiled.
    modules = (_elementary, _jit, sys.modules[Optimizer.__module__])
    inputs = [source, *(inspect.getsource(module) for module in modules)]
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:24]
    return _import(_written(f"kernel_{digest}", source)).advance


def _written(name: str, source: str) -> Path:
    """The file of that name and content in the first folder that can be written to."""
    for folder in _folders():
        path = folder / f"{name}.py"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text(encoding="utf-8") != source:
                with tempfile.NamedTemporaryFile(
                    "w", dir=folder, suffix=".part", delete=False, encoding="utf-8"
                ) as part:
                    part.write(source)
                os.replace(part.name, path)
            return path
        except OSError:
            continue
    raise OSError(f"no folder for compiled code can be written to: tried {', '.join(map(str, _folders()))}")


def _folders() -> list[Path]:
    chosen = os.environ.get("RIVERVAL_CACHE")
    if chosen:
        return [Path(chosen) / "kernels"]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [
        Path(home) / "riverval" / "kernels",
        Path(tempfile.gettempdir()) / f"riverval-{_user()}" / "kernels",
    ]


def _user() -> str:
    """What tells users of one machine apart; in a container they may have no name."""
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "")


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"riverval_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # numba imports by name what it has kept
    spec.loader.exec_module(module)
    return module
