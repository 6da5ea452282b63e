"""Each study's picture is drawn from its file, and shows what is in it."""

from __future__ import annotations

import numpy as np
import pytest

from riverval import plots, plots_toy, store
from riverval.errors import InputError
from riverval.shapes import SHAPES
from riverval.toy.studies import STUDIES, run_study

SMALL = {
    "valley": {"replicates": 4, "grid": 11},
    "schedules": {"replicates": 4, "budgets": (100, 200, 400)},
    "shapes": {"replicates": 4, "product": 0.2, "fewest": 20, "probes": (1.0, 30.0), "points": 11},
    "fraction": {"replicates": 4, "totals": (200, 400), "probes": (0.04, 0.3), "points": 5},
    "crossing": {"replicates": 10, "time": 100, "totals": (40, 100, 250)},
    "sharpening": {"replicates": 10, "steps": 50, "multiples": (0.5, 1.0, 2.5)},
    "averaging": {"replicates": 10, "lengths": (5, 40)},
    "bigram": {"replicates": 4, "steps": 60},
}


def test_every_study_has_a_picture():
    assert {*plots_toy.PICTURES} == {*STUDIES} == {*SMALL}
    assert {*plots_toy.DECAYS} == {*SHAPES, "optimal"}
    assert len({(colour, marker) for colour, _, marker in plots_toy.DECAYS.values()}) == len(plots_toy.DECAYS)


@pytest.mark.parametrize("name", STUDIES)
def test_a_picture_is_drawn_from_the_file_alone(name, tmp_path):
    store.save(run_study(name, **SMALL[name]), tmp_path / "run.nc")
    figure = plots_toy.study(store.load(tmp_path))
    assert plots.write(figure, tmp_path / "picture.png").stat().st_size > 10_000
    for axis in figure.axes:
        assert axis.get_ylabel() or axis.get_title()
        assert axis.lines or axis.collections
    assert any(axis.get_xlabel() for axis in figure.axes)


def test_another_dataset_has_no_picture_here():
    ds = run_study("averaging", **SMALL["averaging"])
    with pytest.raises(InputError, match="unknown study ''"):
        plots_toy.study(ds.assign_attrs(config="{}"))


def test_lines_are_the_stored_numbers():
    ds = run_study("averaging", **SMALL["averaging"])
    left = plots_toy.averaging(ds).axes[0]
    drawn = [line.get_ydata() for line in left.lines]
    for ending in ds["ending"].values:
        one = ds.sel(valley="straight river", ending=ending)
        assert any(np.array_equal(y, one["expected_final_hill"]) for y in drawn)
        assert any(np.array_equal(y, one["final_hill"]) for y in drawn)
