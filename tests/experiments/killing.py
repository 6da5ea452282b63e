"""A process that trains a small run without a break and then others that it kills with SIGKILL and has resumed.

``python killing.py FOLDER CONFIG KILLS SEED``: CONFIG is JSON, the keyword arguments of `resolve`. Every attempt is a
child forked off this process, which has imported everything and done nothing: a kill costs no second start of Python.
Prints the folders of the runs, JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import riverval.experiments.run as lab
from riverval.experiments.config import resolve
from riverval.experiments.probes import load_probes
from riverval.provenance import provenance

Attempt = Callable[[Path, Callable[[], None]], None]


def attempt(folder: Path, given: dict, begun: Callable[[], None]) -> None:
    """Start the run in a folder, or go on with it."""

    def said(*_: object) -> None:
        begun()

    if (folder / "config.json").exists():
        lab.resume(folder, said, tell=said)
    else:
        lab.run(resolve(**given), folder, said, tell=said)


def in_a_child(folder: Path, given: dict, delay: float | None) -> bool:
    """Whether the child was killed, `delay` seconds after it said that it had begun; None waits for its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            attempt(folder, given, lambda: os.write(writer, b".") and None)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    try:
        os.read(reader, 1)
        if delay is not None:
            deadline = time.monotonic() + delay
            while time.monotonic() < deadline:
                if os.waitpid(child, os.WNOHANG)[0]:
                    return False
                time.sleep(0.0005)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if delay is None and status:
            raise SystemExit(f"the attempt in {folder} failed")
        return os.WIFSIGNALED(status)
    finally:
        os.close(reader)


def warm() -> None:
    """What every attempt would otherwise import or look up anew."""
    for module in ("netCDF4", "sklearn.datasets", "transformers.models.gpt_neox.modeling_gpt_neox"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    load_probes()
    provenance("", config={}, seed=0)


def main() -> None:
    warm()
    root, given, kills, seed = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    draw = random.Random(seed)
    straight = root / "straight"
    straight.mkdir()
    began = time.monotonic()
    in_a_child(straight, given, None)
    whole = time.monotonic() - began
    folders, done = [], 0
    while done < kills or not folders:
        folder = root / f"killed-{len(folders)}"
        folder.mkdir()
        folders.append(str(folder))
        while done < kills and in_a_child(folder, given, draw.uniform(0.0, 0.5 * whole)):
            done += 1
        in_a_child(folder, given, None)
    print(json.dumps({"kills": done, "folders": folders}))


if __name__ == "__main__":
    main()
