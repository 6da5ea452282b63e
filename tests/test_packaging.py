"""What has to be written down twice says the same in both places."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import riverval

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (ROOT / "tests" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


def direct_dependencies() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    return PROJECT["project"]["dependencies"] + [line for extra in extras for line in extra]


def test_the_version_is_the_same_everywhere():
    cited = re.search(r"(?m)^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited is not None
    assert cited[1] == riverval.__version__
    assert riverval.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", direct_dependencies())
def test_every_direct_dependency_is_tested_at_a_version_it_allows(line):
    wanted = Requirement(line)
    assert pins()[canonicalize_name(wanted.name)] in wanted.specifier


def test_pre_commit_and_the_lint_session_use_the_same_ruff():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    found = re.search(r"ruff-pre-commit\s+rev: v(\S+)", hooks)
    assert found is not None
    assert found[1] == pins()["ruff"]


def test_coverage_watches_every_room():
    assert PROJECT["tool"]["coverage"]["run"]["source"] == list(PROJECT["tool"]["setuptools"]["package-dir"].values())


def test_every_file_beside_the_sources_is_packaged():
    setuptools = PROJECT["tool"]["setuptools"]
    for package, folder in setuptools["package-dir"].items():
        patterns = setuptools["package-data"].get(package, [])
        others = [f for f in (ROOT / folder).iterdir() if f.is_file() and f.suffix != ".py"]
        assert [f.name for f in others if not any(f.match(p) for p in patterns)] == []


def test_every_tested_python_is_declared():
    declared = {c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c}
    listed = re.search(r"python: \[(.+)\]", (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert listed is not None
    assert set(re.findall(r'"([\d.]+)"', listed[1])) == declared
