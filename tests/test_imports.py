"""What starting costs: light imports, a quick help; and the examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

CORE = sorted(p.stem for p in (Path(__file__).parents[1] / "riverval").glob("*.py") if p.stem != "__init__")
HEAVY = ("torch", "transformers", "matplotlib", "sympy", "numpy", "scipy", "xarray", "netCDF4")

# Runs the code, then names the heavy packages that are loaded, on the last line.
PROBE = """
import sys
try:
    {code}
except SystemExit:
    pass
print(*[name for name in {heavy} if name in sys.modules])
"""


def loads(code: str) -> list[str]:
    """The heavy packages that a fresh process has loaded after `code`."""
    command = [sys.executable, "-c", PROBE.format(code=code, heavy=HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_importing_riverval_is_light():
    assert loads("import riverval") == []


def test_help_is_light():
    assert loads("from riverval.cli import main; main(['--help'])") == []


def test_the_version_is_light():
    assert loads("from riverval.cli import main; main(['--version'])") == []


def test_schedules_need_only_numpy():
    assert loads("from riverval import make_schedule") == ["numpy"]


@pytest.mark.parametrize("name", [n for n in HEAVY if n in ("numpy", "scipy", "xarray", "netCDF4")])
def test_the_probe_notices(name):
    assert name in loads(f"import riverval, {name}")


def test_help_works_as_a_module_too():
    done = subprocess.run([sys.executable, "-m", "riverval", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: riverval" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("name", CORE)
def test_examples_in_docstrings(name):
    try:
        module = importlib.import_module(f"riverval.{name}")
    except ImportError as error:
        if error.name is not None and error.name.startswith("riverval"):
            raise
        pytest.skip(f"needs {error.name}")
    failed, _ = doctest.testmod(module)
    assert failed == 0


@pytest.mark.parametrize("name", ["shapes", "schedules"])
def test_registered_classes_show_an_example(name):
    module = importlib.import_module(f"riverval.{name}")
    registry = module.SHAPES if name == "shapes" else module.SCHEDULES
    for cls in registry.values():
        assert ">>>" in (cls.__doc__ or ""), cls
