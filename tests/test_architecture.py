"""Who may import whom. The imports are read from the source, so nothing has to be installed or importable."""

from __future__ import annotations

import ast
import importlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import riverval

ROOT = Path(__file__).parents[1]
PACKAGES = {"riverval": ROOT / "riverval", "riverval.toy": ROOT / "toy", "riverval.experiments": ROOT / "experiments"}

# A module imports from its own row and from lower ones.
LAYERS: dict[int, str] = {
    0: "riverval errors _typing _checks _arrays _format _registry _budgets _vectors",
    1: "shapes segments _schedule schedules _variables schema _lanczos _search critical spectra traces "
    "_blocks pca nulls null_directions trajectory sketches batched_losses landscape hessian "
    "directions valley sections batch_statistics _untouched _parameters model_loss operators preconditioners allocator "
    "relaxation",
    2: "provenance store recorder observer diagnostics landscape_data laws bounds "
    "_phases _cadence _updates _watching _plan _prober _closing theory theory_decay theory_runs theory_paths "
    "_moment_steps theory_moments "
    "law_base law_fitting law_errors law_known law_valley curves curve_tables curve_scheduling curve_files",
    3: "compare forecast law_trials law_scores law_tables law_plan law_files",
    4: "toy.* experiments.*",
    5: "console plots plots_bigram plots_toy report plots_instruments plots_observer plots_panels plots_real "
    "plots_real_studies plots_branches plots_gaps plots_laws",
    6: "__main__ cli cli_options commands commands_law demo experiments.cli experiments.cli_runs experiments.cli_study "
    "toy.cli toy.cli_bigram toy.cli_check toy.cli_keep toy.cli_study",
}

# Third-party package -> the modules that may import it at all, and those that may do so only inside a function.
CONFINED: dict[str, tuple[str, str]] = {
    "matplotlib": (
        "plots plots_bigram plots_toy plots_instruments plots_observer plots_panels plots_real plots_real_studies "
        "plots_branches plots_gaps plots_laws report",
        "",
    ),
    "sympy": ("toy.*", ""),
    "numba": ("toy._jit", ""),
    "torch": (
        "hessian operators model_loss preconditioners batch_statistics diagnostics observer experiments.* "
        "_untouched _parameters _updates _watching _plan _prober",
        "schedules batched_losses sketches",
    ),
    "transformers": ("experiments.*", ""),
    "rich": ("console", ""),
    "typer": (
        "cli cli_options commands commands_law toy.cli toy.cli_bigram toy.cli_check toy.cli_study experiments.cli "
        "experiments.cli_runs experiments.cli_study",
        "",
    ),
}

# The entry point stands above all; the demonstration runs the very commands that a reader would type.
IMPORTS_CLI = {"riverval.demo", "riverval.__main__"}


@dataclass(frozen=True)
class Import:
    """One imported module; `lazy` inside a function, `typing` only for the type checker."""

    target: str
    line: int
    lazy: bool = False
    typing: bool = False


def name_of(short: str) -> str:
    return short if short == "riverval" else f"riverval.{short}"


def fits(module: str, patterns: str) -> bool:
    """Whether `module` is one of the short names; ``toy.*`` means every module of that room and the room itself."""
    named = [name_of(p) for p in patterns.split()]
    return module in named or any(p.endswith(".*") and (module == p[:-2] or module.startswith(p[:-1])) for p in named)


def layer_of(module: str) -> int | None:
    """The highest row that names the module; None where none does."""
    return max((layer for layer, names in LAYERS.items() if fits(module, names)), default=None)


def imports_of(module: str, source: str, *, package: bool = False) -> list[Import]:
    """Every import in a module's source, relative ones resolved; ``from x import y`` gives x and x.y."""
    return list(_walk(ast.parse(source), module if package else module.rpartition(".")[0], Import("", 0)))


def _walk(node: ast.AST, package: str, where: Import) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        targets: list[str] = []
        if isinstance(child, ast.Import):
            targets = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                base = ".".join(filter(None, [*package.split(".")[: len(package.split(".")) - child.level + 1], base]))
            targets = [base, *(f"{base}.{alias.name}" for alias in child.names)]
        for target in targets:
            yield Import(target, child.lineno, where.lazy, where.typing)
        inside = where
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = Import("", 0, True, where.typing)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            inside = Import("", 0, where.lazy, True)
        yield from _walk(child, package, inside)


def read_rooms() -> dict[str, str]:
    """Module name -> source of every module of the distribution."""
    sources = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.glob("*.py")):
            name = package if path.stem == "__init__" else f"{package}.{path.stem}"
            sources[name] = path.read_text(encoding="utf-8")
    return sources


def graph_of(sources: Mapping[str, str]) -> dict[str, list[Import]]:
    """Imports by module, the package's own list of lazy exports left out."""
    packages = {*PACKAGES} & {*sources}
    return {m: imports_of(m, s, package=m in packages) for m, s in sources.items() if m != "riverval"}


def problems(sources: Mapping[str, str]) -> list[str]:
    """Every breach of the layers."""
    found = []
    graph = graph_of(sources)
    for module, imported in graph.items():
        layer = layer_of(module)
        if layer is None:
            found.append(f"{module} has no layer: give it one in tests/test_architecture.py")
            continue
        for i in imported:
            if i.typing:
                continue
            at = f"{module}:{i.line} imports {i.target}"
            above = layer_of(i.target)
            if i.target.split(".")[0] == "riverval" and i.target in sources and above is not None and above > layer:
                found.append(f"{at}, layer {above} from layer {layer}")
            if {_room(module), _room(i.target)} == {"toy", "experiments"}:
                found.append(f"{at}: siblings")
            if i.target == "riverval.cli" and module not in IMPORTS_CLI:
                found.append(f"{at}: the entry point")
            freely, lazily = CONFINED.get(i.target.split(".")[0], ("", ""))
            if freely and not fits(module, freely) and not (i.lazy and fits(module, lazily)):
                found.append(f"{at}: allowed only in {freely}{' and inside functions of ' * bool(lazily)}{lazily}")
    return found


def _room(module: str) -> str:
    return next((room for room in ("toy", "experiments") if fits(module, f"{room}.*")), "")


def cycle_of(sources: Mapping[str, str]) -> list[str]:
    """A circle of imports, or nothing."""
    graph = {
        module: {i.target for i in imported if not i.typing and i.target in sources and i.target not in PACKAGES}
        for module, imported in graph_of(sources).items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


# --- the rules -------------------------------------------------------------------------------------------------------
def test_modules_import_only_from_their_own_layer_and_below():
    assert problems(read_rooms()) == []


def test_no_module_imports_itself_by_a_detour():
    assert cycle_of(read_rooms()) == []


def test_the_reader_sees_the_imports():
    """The rules above pass for an empty list too: here is what they must have seen."""
    rooms = read_rooms()
    assert {"riverval.schedules", "riverval.store", "riverval.toy", "riverval.experiments"} <= set(rooms)
    seen = {i.target for i in imports_of("riverval.store", rooms["riverval.store"])}
    assert {"riverval.schema", "riverval.schema.validate", "xarray", "pathlib.Path"} <= seen


BREACHES = {
    "upwards": ({"schedules": "from .store import load"}, "layer 2 from layer 1"),
    "upwards by module": ({"schedules": "from . import store"}, "layer 2 from layer 1"),
    "upwards inside a function": ({"schedules": "def f():\n    from .store import load"}, "layer 2 from layer 1"),
    "upwards by full name": ({"schedules": "import riverval.store"}, "layer 2 from layer 1"),
    "upwards by a class body": ({"schedules": "class A:\n    from .store import load"}, "layer 2 from layer 1"),
    "a room to the console": ({"toy.simulate": "from ..console import say"}, "layer 5 from layer 4"),
    "core to a room": ({"compare": "from .toy import simulate"}, "layer 4 from layer 3"),
    "siblings": ({"toy.losses": "from ..experiments import train"}, "siblings"),
    "siblings of the command line": ({"experiments.cli": "from ..toy.losses import x"}, "siblings"),
    "the entry point": ({"commands": "from .cli import main"}, "the entry point"),
    "no layer": ({"brandnew": ""}, "has no layer"),
    "matplotlib": ({"store": "import matplotlib.pyplot as plt"}, "allowed only in plots"),
    "matplotlib inside a function": ({"store": "def f():\n    import matplotlib"}, "allowed only in plots"),
    "torch at the top": ({"schedules": "from torch import nn"}, "inside functions of schedules"),
    "torch inside a function": ({"store": "def f():\n    import torch"}, "allowed only in hessian"),
    "sympy": ({"compare": "import sympy"}, "allowed only in toy"),
}
ALLOWED = {
    "downwards": {"store": "from .schema import validate"},
    "console of a room's command line": {"toy.cli": "from ..console import say"},
    "for the type checker": {"toy.simulate": "if TYPE_CHECKING:\n    from ..console import Progress"},
    "lazy torch": {"schedules": "def f():\n    try:\n        import torch\n    except ImportError:\n        pass"},
    "types of torch": {"store": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"},
    "the version": {"provenance": "from . import __version__"},
}
EMPTY = dict.fromkeys(("store", "schema", "schedules", "console", "cli", "toy", "toy.losses", "experiments"), "")


def rooms_with(changed: Mapping[str, str]) -> dict[str, str]:
    return {name_of(short): source for short, source in {**EMPTY, **changed}.items()}


@pytest.mark.parametrize(("changed", "message"), BREACHES.values(), ids=BREACHES)
def test_each_rule_can_be_broken(changed, message):
    found = problems(rooms_with(changed))
    assert len(found) >= 1
    assert all(message in f for f in found)


@pytest.mark.parametrize("changed", ALLOWED.values(), ids=ALLOWED)
def test_what_is_allowed_is_no_breach(changed):
    assert problems(rooms_with(changed)) == []


def test_a_circle_is_found():
    assert cycle_of(rooms_with({"store": "from .schema import a", "schema": "def f():\n    from . import store"}))
    assert not cycle_of(rooms_with({"store": "from .schema import a"}))


# --- the package and its folders -------------------------------------------------------------------------------------
def python_files() -> list[Path]:
    """Every python file of the project, also in hidden folders, but nothing that is installed or built."""
    found = []
    for folder, below, files in os.walk(ROOT):
        below[:] = [name for name in below if name not in {".git", ".nox", ".venv", "build", "dist", "_build"}]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return found


def test_the_packages_are_the_folders_that_hold_python_files():
    """A folder that is missing in the list works in an editable install and is missing from the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert setuptools["packages"] == list(PACKAGES)
    assert setuptools["package-dir"] == {p: str(f.relative_to(ROOT)) for p, f in PACKAGES.items()}
    apart = {"tests", "docs", ".", ".ci", ".github"}
    folders = {p.parent.relative_to(ROOT) for p in python_files()}
    rooms = {str(f) for f in folders if (f.parts or (".",))[0] not in apart}
    assert rooms == set(setuptools["package-dir"].values())
    assert all((folder / "__init__.py").exists() for folder in PACKAGES.values())


def twice_imported(source: str) -> list[int]:
    """Lines that import a room by its folder's name, which makes a second copy of each module and its registries."""
    return sorted({i.line for i in imports_of("x", source) if i.target.split(".")[0] in ("toy", "experiments")})


def test_no_file_imports_a_room_by_its_folder():
    files = python_files()
    assert Path(__file__) in files
    assert {str(p.relative_to(ROOT)): lines for p in files if (lines := twice_imported(p.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    ["import toy", "import toy.losses", "from toy import losses", "from experiments.train import x", "import os, toy"],
)
def test_the_ban_can_be_broken(source):
    assert twice_imported(source) == [1]
    assert twice_imported(source.replace("toy", "riverval.toy").replace("experiments", "riverval.experiments")) == []


# --- the public names ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", riverval.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(riverval, name) is not None
    assert name in dir(riverval)


def test_the_type_checker_sees_the_same_public_names():
    tree = ast.parse((ROOT / "riverval" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {a.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert typed == riverval._EXPORTS
    assert {*riverval.__all__} == {*typed, "__version__"}


@pytest.mark.parametrize("name", riverval._EXPORTS)
def test_a_public_name_comes_from_the_module_that_is_said(name):
    module = importlib.import_module(f"riverval.{riverval._EXPORTS[name]}")
    assert getattr(riverval, name) is getattr(module, name)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'riverval' has no attribute 'shedules'"):
        riverval.shedules  # noqa: B018
