"""The studies: datasets in the schema, the same bits for the same seed, simulation beside theory, and the command."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from riverval.cli import main
from riverval.errors import InputError
from riverval.schema import validate
from riverval.store import load
from riverval.toy.studies import STUDIES, run_study
from riverval.toy.study import Bench
from riverval.toy.study_cooldowns import ShapesSetting
from riverval.toy.study_schedules import ACCOUNTINGS, SchedulesSetting, ends_of
from riverval.toy.study_valley import ValleySetting

TINY = {
    "valley": {"replicates": 200, "steps": 40, "grid": 11},
    "schedules": {"replicates": 100, "budgets": (100, 200, 400)},
    "shapes": {"replicates": 60, "product": 0.2, "fewest": 50, "probes": (1.0, 10.0, 30.0), "points": 11},
    "fraction": {"replicates": 60, "totals": (200, 400), "probes": (0.04, 0.1, 0.3), "points": 9},
    "crossing": {"replicates": 300, "time": 100, "totals": (40, 100, 250)},
    "sharpening": {"replicates": 200, "steps": 100, "multiples": (0.5, 1.0, 2.5)},
    "averaging": {"replicates": 400, "lengths": (5, 40)},
    "bigram": {"replicates": 4, "steps": 60},
}


@pytest.fixture(scope="module")
def made():
    """Each study once, at a tiny size."""
    return {name: run_study(name, seed=1, **changes) for name, changes in TINY.items()}


def test_every_study_has_a_tiny_size_here():
    assert {*TINY} == {*STUDIES}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_a_dataset_in_the_schema_that_says_how_it_was_made(made, name):
    ds = validate(made[name])
    config = json.loads(ds.attrs["config"])
    assert config["study"] == name
    assert config["rng"]["entropy"] == 1
    assert ds.attrs["seed"] == "1"
    assert config["setting"] == json.loads(json.dumps(asdict(STUDIES[name].make(**TINY[name]))))
    assert STUDIES[name].summary in ds.attrs["title"]


@pytest.mark.parametrize("name", STUDIES)
def test_the_same_seed_gives_the_same_bits_and_another_one_others(made, name):
    again, other = (run_study(name, seed=seed, **TINY[name]) for seed in (1, 2))
    assert made[name].identical(again.assign_attrs(created=made[name].attrs["created"]))
    assert not made[name].equals(other)


@pytest.mark.parametrize("name", STUDIES)
def test_simulation_meets_the_exact_theory_within_four_standard_errors(made, name):
    told = STUDIES[name].numbers(made[name])
    assert told
    assert all(abs(n.z) < 4 for n in told if np.isfinite(n.z)), told
    if name in ("schedules", "shapes", "fraction", "crossing", "averaging"):
        assert sum(np.isfinite(n.z) for n in told) > 2


@pytest.mark.parametrize("name", STUDIES)
def test_quick_is_smaller_and_another_number_is_refused(name):
    full, quick = (STUDIES[name].make(quick=q) for q in (False, True))
    assert quick.replicates < full.replicates
    with pytest.raises(InputError, match=rf"study '{name}' takes no option 'replicate'.*Did you mean 'replicates'"):
        STUDIES[name].make(replicate=3)
    with pytest.raises(InputError, match="at least 2"):
        STUDIES[name].make(replicates=1)


# --- what each of them must show -------------------------------------------------------------------------------------
def test_valley_bounces_between_the_hills_and_comes_down(made):
    ds = run_study("valley", seed=0, replicates=2000)
    height = ds["path_y"] - 0.9 * np.sin(0.45 * ds["path_x"])
    first = int(np.argmax(ds["phase"].values == 2))
    jumps = np.sign(height.values[1:first]) != np.sign(height.values[: first - 1])
    assert jumps.mean() > 0.6  # an overdamped state changes sides most of the time
    np.testing.assert_allclose(ds["path_loss"], ds["path_river"] + ds["path_hill"])
    np.testing.assert_allclose(ds["path_river"], -0.09 * ds["path_x"])
    # Leading order in the bend: some percent of the whole descent, and of the hill.
    for name, share in (("river", 0.03), ("hill", 0.15)):
        found, theory = ds[f"mean_{name}"].values[20:], ds[f"expected_{name}"].values[20:]
        slack = share * np.abs(theory).max() + 4 * ds[f"mean_{name}_error"].values[20:]
        assert np.all(np.abs(found - theory) < slack)
    assert float(ds["mean_hill"][-1]) < 0.05 * float(ds["mean_hill"][first])


def test_the_surface_holds_the_path_and_the_river_lies_in_its_middle():
    s = ValleySetting(replicates=2, grid=51)
    ds = STUDIES["valley"].run(s, np.random.default_rng(0))
    assert float(ds["along"].min()) < float(ds["path_x"].min())
    assert float(ds["along"].max()) > float(ds["path_x"].max())
    middle = ds.isel(across=25)
    assert float(middle["across"]) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(middle["surface_loss"], -s.slope * ds["along"])
    assert np.all(ds["surface_loss"] >= middle["surface_loss"] - 1e-12)


def test_schedules_show_both_signs(made):
    gap = run_study("schedules", quick=True, seed=0).sel(family="WSD-S", checkpoint=3)
    total, path = (gap.sel(accounting=a) for a in ACCOUNTINGS)
    assert float(total["expected_gap"]) < 0 < float(path["expected_gap"])
    assert float(total["gap"] + 2 * total["gap_error"]) < 0 < float(path["gap"] - 4 * path["gap_error"])


def test_costs_are_those_of_the_accountings(made):
    ds = run_study("schedules", replicates=2, budgets=(1250, 2500, 5000))
    cost = ds["family_updates"].to_pandas()
    assert cost.loc["total compute"].to_dict() == {"WSD": 5375, "WSD-S": 5375, "cyclic cosine": 5375, "cosine": 8750}
    assert cost.loc["path length"].to_dict() == {"WSD": 5375, "WSD-S": 5000, "cyclic cosine": 5000, "cosine": 8750}
    ends = ds["checkpoint_updates"].sel(family="WSD-S")
    assert ends.values.tolist() == [[1250, 2625, 5375], [1250, 2500, 5000]]


def test_checkpoints_are_recorded_whatever_the_budgets():
    s = SchedulesSetting(budgets=(130, 270, 510))
    for accounting in ACCOUNTINGS:
        ends = [ends_of(p) for family in s.plans(accounting).values() for p in family]
        assert all(end % s.spacing == 0 for row in ends for end in row)
        assert [len(row) for row in ends] == [1, 1, 1, 3, 3, 1, 1, 1]


def test_shapes_change_their_order_where_the_paper_of_the_theory_says(made):
    ds = made["shapes"]
    found = dict(zip(ds["crossing"].values, ds["crossing_at"].values.round(1), strict=True))
    assert found["cosine below linear"] == 24.1
    assert found["cosine below 1-sqrt"] == 228.6
    assert found["inverse below 1-sqrt"] == 3.6
    assert np.all(ds["expected_hill_ratio"].min("decay") == ds["expected_hill_ratio"].sel(decay="optimal").min("floor"))
    never = ds["hill_ratio"].sel(floor=0.0, decay=["inverse", "exponential"])
    assert never.isnull().all()  # they cannot reach zero
    assert ds["hill_ratio"].sel(floor=0.1).notnull().all()


def test_a_short_cooldown_has_a_smaller_rate_and_not_fewer_updates():
    s = ShapesSetting(product=0.05, fewest=1000)
    assert s.plateau(1.0) == (0.001, 1000)
    assert s.plateau(1000.0) == (0.05, 20_000)


def test_the_best_fraction_is_flat_and_moves_slowly_down_a_power_law(made):
    ds = run_study("fraction", replicates=2, totals=(500, 4000), probes=(0.1,), points=61)
    straight, power = (ds["best_fraction"].values[k] for k in (slice(0, 2), slice(2, 4)))
    assert straight[0] / straight[1] == pytest.approx(8.0)  # the same number of updates
    assert 1.0 < power[0] / power[1] < 2.0
    optimal = ds["expected_excess"].sel(decay="optimal")
    assert float(optimal.min()) > -1e-4
    best = optimal["fraction"].values[optimal.values.argmin(axis=1)]
    np.testing.assert_allclose(best, np.minimum(ds["best_fraction"], 0.9), rtol=0.12)


def test_the_power_law_meets_gradient_flow(made):
    ds = made["fraction"].isel(valley=slice(2, None))
    theory = ds["expected_excess"].sel(decay="optimal", fraction=ds["probe_fraction"].values).values
    assert np.all(np.abs(ds["excess"].values - theory) < 4 * ds["excess_error"].values + 0.02)


def test_curves_cross_and_the_larger_rate_is_ahead_after_a_cooldown(made):
    ds = made["crossing"]
    assert float(ds["crossing_time"]) == pytest.approx(100.0)
    gap = ds["expected_loss"].isel(rate=-1) - ds["expected_loss"].isel(rate=0)
    crossed = float(ds["crossing_time_exact"])
    assert np.all((gap > 0) == (ds["eval_step"] < crossed))
    lead = np.diff(ds["expected_final_loss"].values, axis=0)
    assert np.all(lead[:, 1:] < 0)
    assert np.all(lead[:, 0] > 0)  # of 40 updates the cooldown is too short: 2 relaxation times of the largest rate


def test_sharpening_is_not_monotone_and_meets_its_theory(made):
    ds = run_study("sharpening", seed=0, quick=True)
    assert float(ds["rate"][int(np.argmax(ds["speed"].values))]) == pytest.approx(float(ds["fastest_rate"]), rel=0.3)
    assert float(ds["speed"][-1] + 4 * ds["speed_error"][-1]) < 0
    assert np.all(np.abs(ds["speed"] - ds["expected_speed"]) < 4 * ds["speed_error"] + 1e-6)
    np.testing.assert_allclose(ds["expected_speed"], ds["leading_speed"], atol=0.15 * float(ds["straight_speed"].max()))


def test_averaging_ties_on_the_straight_river_and_loses_on_the_bend(made):
    ds = run_study("averaging", seed=0, quick=True)
    hill, error = (ds[n].isel(length=-1) for n in ("final_hill", "final_hill_error"))
    average, optimal = (hill.sel(ending=e) for e in ("tail average", "optimal decay"))
    assert float(average[0] / optimal[0]) == pytest.approx(1.05, abs=0.15)
    assert float(average[1]) > 20 * float(optimal[1])
    bent = ds.sel(valley="bent river", ending="tail average")
    off = np.abs(bent["final_hill"] - bent["expected_final_hill"])
    assert np.all(off < 4 * error.sel(valley="bent river", ending="tail average") + 0.1 * bent["expected_final_hill"])


def test_a_setting_that_makes_no_study_is_refused():
    for name, changes, match in (
        ("schedules", {"budgets": (100,)}, "budgets must be at least two"),
        ("shapes", {"product": 2.0}, "product"),
        ("fraction", {"totals": (100,)}, "totals must be at least two"),
        ("crossing", {"rates": (0.2, 0.1)}, "rates must be at least two, increasing"),
        ("sharpening", {"multiples": (1.0,)}, "multiples must be at least three"),
        ("averaging", {"lengths": (1, 5)}, "lengths must be at least two numbers"),
        ("valley", {"grid": 2}, "grid"),
        ("valleys", {}, "unknown study 'valleys'.*Did you mean 'valley'"),
    ):
        with pytest.raises(InputError, match=match):
            run_study(name, **changes)


def test_progress_rises_to_the_whole():
    told = []
    run_study("averaging", replicates=4, lengths=(4, 8), progress=lambda done, _: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1000


# --- the command -----------------------------------------------------------------------------------------------------
def call(*words: str) -> int:
    """The exit code of ``riverval toy study ...``."""
    with pytest.raises(SystemExit) as stop:
        main(["toy", "study", *words])
    return stop.value.code


def test_without_a_name_the_studies_are_listed(capsys):
    assert call() == 0
    said = capsys.readouterr().out
    assert all(name in said for name in STUDIES)
    assert call("--quick") == 2
    assert "name a study to run" in capsys.readouterr().err


def test_a_run_leaves_a_dataset_a_picture_and_a_table(tmp_path, capsys):
    words = ("averaging", "--quick", "--replicates", "40", "--seed", "3", "--out", str(tmp_path))
    assert call(*words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    folder = tmp_path / "study-averaging"
    assert sorted(p.name for p in folder.iterdir()) == ["averaging.png", "run.nc"]
    wanted = run_study("averaging", seed=3, quick=True, replicates=40)
    np.testing.assert_array_equal(load(folder)["final_hill"], wanted["final_hill"])
    for told in (str(folder), "quick size, replicates 40, seed 3", "hill loss, tail average over 160, bent river"):
        assert told in said.out
    assert call(*words, "--name", "study-averaging") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call(*words, "--name", "study-averaging", "--overwrite") == 0


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["riverval.toy._engine"].NumPyRun, "_update", interrupted)
    assert call("averaging", "--quick", "--replicates", "4", "--out", str(tmp_path)) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        run_study("crossing", **TINY["crossing"])


def test_an_unknown_study_leaves_nothing(tmp_path, capsys):
    assert call("vallley", "--out", str(tmp_path)) == 2
    assert "Did you mean 'valley'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_parts_have_their_own_noise():
    bench = Bench(np.random.default_rng(0), 2, None)
    first, second = (bench.part(10)[0].standard_normal(3) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_stands_in_the_documentation_with_its_picture(name):
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "studies.md").read_text(encoding="utf-8")
    assert f"\nriverval toy study {name}\n" in page
    assert f"(images/study-{name}.png)" in page
    assert (docs / "images" / f"study-{name}.png").is_file()
