"""The examples in README and docs are run, and every name in a registry is on its page."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from riverval.schedules import SCHEDULES
from riverval.shapes import SHAPES
from riverval.toy import LOSSES, NOISES, OPTIMIZERS

ROOT = Path(__file__).parent.parent
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if ">>>" in p.read_text("utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a file
    failed, attempted = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert attempted > 0
    assert failed == 0


@pytest.mark.parametrize("name", [*SCHEDULES, *SHAPES])
def test_every_registered_name_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "schedules.md").read_text("utf-8")


@pytest.mark.parametrize(("page", "names"), [("toy", [*OPTIMIZERS, *NOISES]), ("losses", LOSSES)])
def test_every_registered_name_of_the_toy_is_documented(page: str, names: list[str]) -> None:
    told = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    assert [name for name in names if f"`{name}`" not in told] == []
