"""The pass of the probes: what a context gives, how results are put together, what a failing probe leaves."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from riverval.errors import InputError  # noqa: E402
from riverval.experiments import probes  # noqa: E402
from riverval.experiments.probes import Skipped, chosen_probes, joined, measure  # noqa: E402
from riverval.schema import VARIABLES, build  # noqa: E402

from .probing import STEPS, Run, config  # noqa: E402

OURS = ("interpolation", "sharpness", "pca", "directions", "descent")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"), config())


def test_every_probe_is_found_by_its_name():
    assert set(OURS) < set(chosen_probes(None))
    assert list(chosen_probes(None)) == sorted(chosen_probes(None))  # whatever was imported first
    assert list(chosen_probes(["pca", "descent"])) == [n for n in chosen_probes(None) if n in ("pca", "descent")]
    with pytest.raises(InputError, match=r"unknown probe 'sharpnes'.*sharpness"):
        chosen_probes(["sharpnes"])


def test_results_of_different_states_and_windows_are_put_on_one_axis():
    first = build({"probe_step": [3, 9], "hessian_top": [1.0, 2.0], "hessian_products": [5, 6],
                   "window": ["stable", "cooldown"], "drift_share": [0.1, 0.2]}, {}, "real")  # fmt: skip
    second = build({"probe_step": [1, 9, 11], "probe_loss": [4.0, 5.0, 6.0], "window": ["cooldown", "late stable"],
                    "direction_norm": [7.0, 8.0]}, {}, "real")  # fmt: skip
    ds = joined(joined(xr.Dataset(), first), second)
    assert ds["probe_step"].values.tolist() == [1, 3, 9, 11]
    np.testing.assert_array_equal(ds["hessian_top"], [np.nan, 1.0, 2.0, np.nan])
    np.testing.assert_array_equal(ds["probe_loss"], [4.0, np.nan, 5.0, 6.0])
    np.testing.assert_array_equal(ds["hessian_products"], [0, 5, 6, 0])
    assert ds["hessian_products"].dtype == np.int64
    assert ds["window"].values.tolist() == ["stable", "cooldown", "late stable"]
    np.testing.assert_array_equal(ds["direction_norm"], [np.nan, 7.0, 8.0])
    for name in (*ds.data_vars, "window", "probe_step"):
        assert ds[name].attrs["long_name"]
    # The same measured again replaces what was there.
    again = joined(ds, build({"probe_step": [9], "hessian_top": [7.0]}, {}, "real"))
    np.testing.assert_array_equal(again["hessian_top"], [np.nan, np.nan, 7.0, np.nan])


def test_all_probes_of_a_run_have_declared_variables_and_leave_no_note(run):
    run.context.notes.clear()
    run.config.probes = OURS
    ds = xr.Dataset()
    for part in measure(run.context):
        ds = joined(ds, part)
    assert run.context.notes == []
    assert set(run.context.seconds) == set(OURS)
    assert all(name in VARIABLES for name in ds.data_vars)
    windows = ["stable", "cooldown", "late stable", "early cooldown", "matched stable", "earlier stable"]
    assert ds["window"].values.tolist() == windows
    assert STEPS in ds["probe_step"]


def test_measuring_twice_gives_the_same_bits(run):
    for name in OURS:
        first, second = (chosen_probes(None)[name](run.context) for _ in range(2))
        assert set(first) == set(second)
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key])


def test_a_probe_that_fails_or_is_skipped_leaves_a_note_and_the_others_go_on(run, monkeypatch):
    def broken(context):
        raise ValueError("nothing works")

    def skipped(context):
        raise Skipped("there is no moon")

    monkeypatch.setitem(probes.PROBES, "interpolation", broken)
    monkeypatch.setitem(probes.PROBES, "sharpness", skipped)
    run.context.notes.clear()
    run.config.probes = OURS
    assert len(list(measure(run.context))) == 3
    assert run.context.notes == ["interpolation: failed, ValueError: nothing works",
                                 "sharpness: skipped, there is no moon"]  # fmt: skip


def test_ctrl_c_in_a_probe_is_not_swallowed(run, monkeypatch):
    def stopped(context):
        raise KeyboardInterrupt

    monkeypatch.setitem(probes.PROBES, "pca", stopped)
    run.config.probes = ("pca",)
    with pytest.raises(KeyboardInterrupt):
        list(measure(run.context))


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_a_schedule_without_a_window_gives_what_is_possible_and_notes_the_rest(decay, tmp_path):
    run = Run(tmp_path, config(decay, probes=OURS))
    ds = xr.Dataset()
    for part in measure(run.context):
        ds = joined(ds, part)
    lacking, there = ("stable", "cooldown") if decay == "cosine" else ("cooldown", "stable")
    assert f"interpolation: no {lacking} window to look at" in run.context.notes
    assert f"directions: no {lacking} window to look at" in run.context.notes
    assert not any("failed" in note for note in run.context.notes)
    assert ds["pair"].values.tolist() == [there]
    assert ("hessian_top" in ds) == (decay == "cosine")
    assert "phase_cosine" not in ds
    assert "direction_ratio" not in ds
    assert np.isfinite(ds["direction_norm"]).sum() == 1
    assert {"quasi_convexity", "gradient_cosine", "pca_share"} < set(ds)


def test_missing_snapshots_are_noted_and_the_others_are_used(tmp_path):
    run = Run(tmp_path, config())
    kept = run.snapshots.plan.states
    gone = kept["descent"][2]
    run.snapshots.path(gone).unlink()
    assert run.context.states["descent"] == [t for t in kept["descent"] if t != gone]
    assert "descent 6 of 7" in run.context.notes[0]


def test_nothing_kept_skips_every_probe(tmp_path):
    run = Run(tmp_path, config(snapshots=0, probes=OURS))
    assert list(measure(run.context)) == []
    assert [note.partition(":")[2] for note in run.context.notes] == [" skipped, no snapshots were kept"] * len(OURS)
