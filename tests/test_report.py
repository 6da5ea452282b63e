"""Pictures and pages: complete, self-contained, all or nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from riverval import plots, report, schema, toy
from riverval.errors import InputError, StoreError
from riverval.provenance import provenance
from riverval.schedules import SCHEDULES, make_schedule
from riverval.toy.studies import run_study

from .made import WSD, valley


@pytest.fixture
def real() -> xr.Dataset:
    """A made training run with every probe."""
    plan, rng = WSD, np.random.default_rng(0)
    steps = np.arange(plan.total)
    alpha = np.linspace(0, 1, 5)
    values = {
        "step": steps,
        "lr": plan.values(),
        "phase": plan.phases(),
        "train_loss": 2 - steps / 800 + 0.1 * rng.standard_normal(plan.total),
        "grad_norm": np.ones(plan.total),
        "update_norm": plan.values(),
        "param_norm": np.ones(plan.total),
        "eval_step": np.arange(0, 401, 20),
        "val_loss": 2 - np.arange(0, 401, 20) / 800,
        "pair": ["stable", "cooldown"],
        "alpha": alpha,
        "interpolation_loss": [1 + (alpha - 0.5) ** 2, 1 - alpha],
        "interpolation_start": [240, 300],
        "interpolation_stop": [300, 400],
        "probe_step": [300, 400],
        "hessian_top": [10.0, 20.0],
        "hessian_top_residual": [0.1, 0.1],
        "window": ["stable", "cooldown"],
        "component": [1, 2],
        "pca_share": [[0.5, 0.2], [0.6, 0.2]],
        "pca_null": [[0.61, 0.15], [0.65, 0.15]],
    }
    config = {"schedule": plan.to_dict()}
    return schema.build(values, {}, "real").assign_attrs(provenance("a <made> run", config=config, seed=0))


def test_page_is_self_contained_and_holds_every_run(real: xr.Dataset, tmp_path: Path) -> None:
    path = report.write_report([("net", real), ("valley", valley(WSD, slope=0.3, hill=2.0))], tmp_path / "page.html")
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 3  # the common axis and the real run's two pictures
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert "a &lt;made&gt; run" in page
    assert "<made>" not in page
    for text in (
        "net",
        "valley",
        "first component, stable snapshots",
        "river alone",
        "wsd (linear to 0",
        "random walk",
    ):
        assert text in page
    assert "$" not in page.replace("$ riverval", "")  # no placeholder is left


def test_existing_page_is_refused_and_untouched(real: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        report.write_report([("net", real)], path)
    assert path.read_text() == "mine"
    report.write_report([("net", real)], path, overwrite=True)
    assert "riverval" in path.read_text()


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        report.write_report([], tmp_path / "page.html")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_a_picture(name: str, tmp_path: Path) -> None:
    path = plots.write(plots.schedule(make_schedule(name, peak_lr=0.1, steps=100)), tmp_path / "plan.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_the_ending_chooses_the_format(ending: str, tmp_path: Path) -> None:
    head = plots.write(plots.schedule(WSD), tmp_path / f"plan.{ending}").read_bytes()[:5]
    assert head == {"svg": b"<?xml", "pdf": b"%PDF-"}[ending]


def test_unknown_picture_format_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown picture format '.pgn'.*Did you mean 'png'"):
        plots.write(plots.schedule(WSD), tmp_path / "plan.pgn")


def test_picture_into_a_missing_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        plots.write(plots.schedule(WSD), tmp_path / "nowhere" / "plan.png")


def test_comparison_draws_one_line_per_run_with_a_gain(real: xr.Dataset) -> None:
    flat = valley(make_schedule("constant", peak_lr=0.1, steps=400), slope=0.3, hill=2.0)
    figure = plots.comparison([("net", real), ("flat", flat)])
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["net (real)"]


def test_a_study_has_its_own_picture() -> None:
    (figure,) = report.run_figures(run_study("crossing", quick=True, seed=0, replicates=20))
    assert {axis.get_xlabel() for axis in figure.axes} == {"updates", "updates of the whole run"}


def test_theory_alone_has_a_picture_too() -> None:
    ds = toy.exact(toy.StraightRiver(0.1, (2.0,)), WSD, sigma=1.0)
    (figure,) = report.run_figures(ds)
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["hill loss, exact"]
    assert report.run_figures(valley(WSD, slope=0.3, hill=2.0)) == []  # a bare loss curve stands on the common axis
