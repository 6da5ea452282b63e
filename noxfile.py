"""The developer's loop: `nox -l` lists the sessions, `nox -s tests -- -k schedules` passes what follows `--` on."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "build"]

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
PACKAGE_DIR = nox.project.load_toml(ROOT / "pyproject.toml")["tool"]["setuptools"]["package-dir"]
ROOMS = {folder: package.replace(".", "/") for package, folder in PACKAGE_DIR.items()}  # folder -> installed as
BIN = "Scripts" if os.name == "nt" else "bin"
MINIMUM_COVERAGE = 90  # percent, lines and branches


# --- the three sessions that run riverval share one environment: torch takes 5.5 GB -----------------------------------
@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests, with coverage of the three rooms. Arguments go to pytest."""
    # Part of the tests cannot cover everything, so the bar stands for the whole suite only.
    whole = [] if session.posargs else [f"--cov-fail-under={MINIMUM_COVERAGE}"]
    bin_dir, env = _full_environment(session)
    # Plain `pytest`: `python -m pytest` would put this folder first on the path.
    session.run(bin_dir / "pytest", "--cov", *whole, *session.posargs, env={"HYPOTHESIS_PROFILE": "ci"} | env)


@nox.session(venv_backend="none", default=False)
def demo(session: nox.Session) -> None:
    """Run `riverval demo` into demo_output/, anew each time. Arguments go to the command."""
    bin_dir, env = _full_environment(session)
    session.run(bin_dir / "riverval", "demo", "--out", "demo_output", "--overwrite", *session.posargs, env=env)


@nox.session(venv_backend="none", default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks only, other libraries beside riverval. Arguments go to pytest, e.g. `-- -k top_five`."""
    bin_dir, env = _full_environment(session, "real,test,bench")
    session.run(bin_dir / "pytest", "--benchmark-only", "tests/benchmarks", *session.posargs, env=env)


def _full_environment(session: nox.Session, extras: str = "real,test") -> tuple[Path, dict[str, str]]:
    """Make or update the shared environment; its folder of programs, and the variables to run them with."""
    home = ROOT / ".nox" / f"full-{sys.version_info.major}.{sys.version_info.minor}"
    bin_dir = home / BIN
    session.run_install(sys.executable, "-m", "venv", home)
    # Editable, so that coverage sees the files of this folder and not installed copies of them.
    install = ("-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[{extras}]", "--constraint", CONSTRAINTS)
    session.run_install(bin_dir / "python", *install)
    env = {
        "PATH": os.pathsep.join([str(bin_dir), os.environ.get("PATH", "")]),
        "VIRTUAL_ENV": str(home),
        "OMP_WAIT_POLICY": "passive",  # threads that wait do not spin, which matters on few shared cores
        "MPLBACKEND": "agg",
    }
    return bin_dir, env


# --- checks that need no torch ----------------------------------------------------------------------------------------
@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting (`ruff check --fix` and `ruff format` mend most of it)."""
    session.install("ruff", "--constraint", CONSTRAINTS)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy: strict for the core, somewhat looser for the two other rooms."""
    # mypy cannot follow an editable install into toy/ and experiments/, and in this folder it would find riverval/
    # without them: both pass in silence on the core alone. So install a copy, go elsewhere, and count the files.
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # files removed since the last build would be installed from here
    session.install(".", "mypy", "--constraint", CONSTRAINTS)
    options = ("--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache")
    with tempfile.TemporaryDirectory() as elsewhere, session.chdir(elsewhere):
        said = session.run("mypy", *options, "-p", "riverval", *session.posargs, silent=True, success_codes=[0, 1])
    session.log("mypy:\n" + _in_this_folder(str(said)))
    expected = len(_sources())
    checked = re.search(r"(\d+) source files?", str(said))
    if checked is None or int(checked[1]) != expected:
        session.error(f"mypy should have checked the {expected} files of {', '.join(ROOMS)}; see its last line")
    if "Success:" not in str(said):
        session.error("mypy found errors")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build/. Arguments go to sphinx-build."""
    session.install("--editable", ".[docs]", "--constraint", CONSTRAINTS)
    # -E: parts of pages are made from the code, so a page can change while its file does not.
    session.run("sphinx-build", "-E", "-W", "--keep-going", "-b", "html", "docs", "docs/_build", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel and the sdist, and try the wheel in a clean environment away from this folder."""
    session.install("build", "--constraint", CONSTRAINTS)
    with tempfile.TemporaryDirectory() as elsewhere:
        out = Path(elsewhere) / "dist"
        session.run("python", "-m", "build", "--outdir", out)
        wheel, sdist = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
        _check_contents(session, wheel, sdist)
        with session.chdir(elsewhere):
            _try_out(session, wheel, Path(elsewhere) / "clean")
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        shutil.copytree(out, ROOT / "dist")
    session.log(f"dist/{wheel.name} and dist/{sdist.name} are good")


def _check_contents(session: nox.Session, wheel: Path, sdist: Path) -> None:
    """Every source file and preset is in both, the marker of typing in the wheel, what packagers need in the sdist."""
    sources = [*_sources(), *(ROOT / "experiments").glob("*.toml")]
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = {f"{ROOMS[f.parent.name]}/{f.name}" for f in sources} | {"riverval/py.typed"}
    if missing := sorted(wanted - packed):
        session.error(f"{wheel.name} lacks {', '.join(missing)}")
    with tarfile.open(sdist) as archive:
        unpacked = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f.relative_to(ROOT).as_posix() for f in sources}
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "noxfile.py", "tests/constraints.txt"}
    if missing := sorted(wanted - unpacked):
        session.error(f"{sdist.name} lacks {', '.join(missing)}")


def _try_out(session: nox.Session, wheel: Path, home: Path) -> None:
    """Install the wheel without extras and run its commands."""
    session.run("python", "-m", "venv", home)
    session.run(
        home / BIN / "python", "-m", "pip", "install", "--quiet", wheel, "--constraint", CONSTRAINTS, external=True
    )

    def riverval(*args: str, exit_code: int = 0) -> str:
        return str(session.run(home / BIN / "riverval", *args, external=True, silent=True, success_codes=[exit_code]))

    session.log(riverval("--version").strip())
    riverval("--help")
    riverval("toy", "simulate", "--replicates", "16", "--steps", "300")
    riverval("toy", "check", "--only", "P-HILL.1")
    riverval("toy", "study")
    riverval("schedule", "show", "--decay", "wsd-s", "--steps", "100")
    advice = "pip install 'riverval[real]'"
    said = riverval("real", "run", "--arch", "cnn", exit_code=1)  # torch comes with the extra
    if advice not in said:
        session.error(f"without the extra, `riverval real run` should advise {advice}, but says:\n{said}")


# --- helpers ----------------------------------------------------------------------------------------------------------
def _sources() -> list[Path]:
    return sorted(file for room in ROOMS for file in (ROOT / room).glob("*.py"))


def _in_this_folder(text: str) -> str:
    """Turn the paths of installed files into those of this folder, so that a click on them opens the right file."""
    text = re.sub(r"(?m)^\S*site-packages[/\\]riverval[/\\](?=toy[/\\]|experiments[/\\])", "", text)
    return re.sub(r"(?m)^\S*site-packages[/\\](?=riverval[/\\])", "", text)
