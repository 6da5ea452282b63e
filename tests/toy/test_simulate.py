"""The simulation against the exact recursion, closed forms and the one-page version; its bits, its endings."""

from __future__ import annotations

import json
import math
import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr

from riverval.errors import InputError
from riverval.schedules import WSD, make_schedule, schedule_from_dict
from riverval.store import load, save
from riverval.toy import (
    LOSSES,
    Setting,
    StraightRiver,
    SymbolicLoss,
    UnstableWarning,
    make_loss,
    make_noise,
    make_optimizer,
    simulate,
    simulate_many,
    stationary_hill,
)
from riverval.toy import minimal as one_page

from .runs import VALLEY, Interrupting, blow_up_replicate_2, run

MODULE = sys.modules["riverval.toy.simulate"]  # the package exports the function of the same name
ENGINE = sys.modules["riverval.toy._engine"]


def same_bits(a: xr.Dataset, b: xr.Dataset) -> bool:
    return all(np.array_equal(a[n].values, b[n].values, equal_nan=True) for n in ("loss", "river", "hill"))


# --- the loss --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slope", [0.0, 0.7])
def test_gradient_is_the_difference_quotient_of_the_value(slope, rng):
    loss = StraightRiver(slope, (0.5, 2.0, 8.0))
    w, step = rng.standard_normal((5, 2, 4)), 1e-5
    quotient = np.stack(
        [(loss.value(w + step * e) - loss.value(w - step * e)) / (2 * step) for e in np.eye(4)], axis=-1
    )  # exact for a quadratic but for rounding
    np.testing.assert_allclose(loss.gradient(w), quotient, atol=1e-8)


def test_river_is_the_loss_on_the_floor_below():
    w = np.array([[1.0, 2.0, 3.0, 4.0]])
    floor = w * [1, 0, 0, 0]
    assert VALLEY.river(w) == VALLEY.value(floor)
    assert VALLEY.hill(w) == pytest.approx(VALLEY.value(w) - VALLEY.value(floor))
    assert VALLEY.hill(w) == pytest.approx(0.5 * (0.5 * 4 + 2 * 9 + 8 * 16))


def test_losses_are_registered_and_rebuilt_from_their_description():
    assert LOSSES["straight"] is StraightRiver
    assert make_loss(**VALLEY.to_dict()) == VALLEY


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: StraightRiver(-0.1, (1.0,)), r"slope .* got -0.1"),
        (lambda: StraightRiver(math.inf, (1.0,)), r"slope .* got inf"),
        (lambda: StraightRiver(1e101, (1.0,)), r"slope .* in \[0, 1e\+100\], got 1e\+101"),
        (lambda: StraightRiver(0.1, (1.0, 1e200)), r"curvatures .* in \(0, 1e\+100\], got 1e\+200"),
        (lambda: StraightRiver(0.1, ()), r"at least one number > 0"),
        (lambda: StraightRiver(0.1, (1.0, 0.0)), r"curvatures .* got 0.0"),
        (lambda: make_loss("strait"), r"unknown loss 'strait'.* mean 'straight'"),
        (lambda: make_loss("straight", bend=1), r"no option 'bend'"),
    ],
)
def test_bad_losses_are_refused_with_the_rule(make, told):
    with pytest.raises(InputError, match=told):
        make()


# --- against theory --------------------------------------------------------------------------------------------------
SETTINGS = {
    "wsd linear": (StraightRiver(0.2, (0.5, 2.0, 8.0)), make_schedule("wsd", peak_lr=0.1, steps=400), 1.0, 1.0),
    "wsd-s inverse": (
        StraightRiver(0.05, (1.0, 3.0)), make_schedule("wsd-s", peak_lr=0.2, steps=600), 2.0, "stationary",
    ),
    "cosine from far": (
        StraightRiver(1.0, (0.3,)), make_schedule("cosine", peak_lr=0.5, steps=200, warmup=20), 0.5, -3.0,
    ),
    "near the edge": (
        StraightRiver(0.1, (1.0, 19.0)), make_schedule("constant", peak_lr=0.1, steps=300), 1.0, "stationary",
    ),
    "wsd 1-sqrt": (
        StraightRiver(0.4, (0.1, 1.0, 4.0, 10.0)),
        make_schedule("wsd", peak_lr=0.15, steps=350, shape="1-sqrt", floor=0.2, warmup=30, cooldown=0.5), 1.5, 0.2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_simulated_means_and_spreads_meet_the_exact_recursion(name):
    loss, schedule, sigma, start = SETTINGS[name]
    replicates = 2000
    ds = run(schedule, loss=loss, sigma=sigma, start=start, replicates=replicates, seed=11, every=50)
    for quantity in ("river", "hill", "loss"):
        values, std = ds[quantity].values, ds[f"exact_{quantity}_std"].values
        error = std / math.sqrt(replicates)
        # Rounding only where nothing is random (the start).
        assert np.all(np.abs(values.mean(axis=0) - ds[f"exact_{quantity}"]) <= 4 * error + 1e-12)
        # Standard error of a variance from the sample's own fourth moment.
        centred2 = (values - values.mean(axis=0)) ** 2
        spread = centred2.std(axis=0) / math.sqrt(replicates)
        assert np.all(np.abs(centred2.mean(axis=0) - std**2) <= 4 * spread + std**2 / replicates + 1e-12)


def test_a_wrong_theory_would_be_noticed():
    loss, schedule, sigma, _ = SETTINGS["wsd linear"]
    ds = run(schedule, loss=loss, sigma=1.05 * sigma, replicates=2000, seed=11, every=50)
    wrong = run(schedule, loss=loss, sigma=sigma, replicates=1, every=50)
    error = wrong["exact_hill_std"] / math.sqrt(2000)
    assert (np.abs(ds["hill"].mean("replicate") - wrong["exact_hill"]) > 4 * error).any()


def test_variance_along_the_river_is_the_sum_of_squared_rates():
    schedule, sigma, replicates = make_schedule("wsd", peak_lr=0.1, steps=300), 1.3, 4000
    ds = run(schedule, sigma=sigma, replicates=replicates, seed=5)
    x = -ds["river"].isel(eval_step=-1) / VALLEY.slope
    expected = sigma**2 * np.sum(schedule.values() ** 2)
    assert abs(float(x.var(ddof=1)) - expected) < 4 * expected * math.sqrt(2 / (replicates - 1))


def test_schedules_of_equal_area_travel_equally_far():
    early = make_schedule("linear", peak_lr=0.2, steps=200)
    late = make_schedule("constant", peak_lr=early.area() / 200, steps=200)
    assert late.area() == pytest.approx(early.area())
    a, b = (run(s, replicates=2000, seed=k).isel(eval_step=-1) for k, s in enumerate((early, late)))
    assert float(a["exact_river"]) == pytest.approx(float(b["exact_river"]), rel=1e-12)
    error = math.hypot(float(a["exact_river_std"]), float(b["exact_river_std"])) / math.sqrt(2000)
    assert abs(float(a["river"].mean() - b["river"].mean())) < 4 * error


def test_a_stationary_start_is_stationary():
    ds = run(make_schedule("constant", peak_lr=0.1, steps=40), start="stationary", replicates=2)
    wanted = float(np.sum(stationary_hill(0.1, np.array(VALLEY.curvatures), 1.0)))
    np.testing.assert_allclose(ds["exact_hill"], wanted, rtol=1e-12)


def test_without_noise_the_run_is_the_closed_form():
    schedule = make_schedule("wsd", peak_lr=0.2, steps=60)
    ds = run(schedule, sigma=0.0, start=2.0, replicates=2, every=1)
    lr, h = schedule.values(), np.array(VALLEY.curvatures)
    shrunk = np.cumprod(np.vstack([np.ones(3), 1 - lr[:, None] * h]), axis=0)
    np.testing.assert_allclose(ds["hill"][0], 0.5 * (h * (2.0 * shrunk) ** 2).sum(axis=1), rtol=1e-10)
    np.testing.assert_allclose(ds["river"][1], -(0.2**2) * np.append(0.0, np.cumsum(lr)), rtol=1e-12)
    np.testing.assert_allclose(ds["loss"][0], ds["exact_loss"], rtol=1e-10)


# --- bits ------------------------------------------------------------------------------------------------------------
def test_one_page_version_gives_the_same_bits():
    schedule = WSD(peak_lr=one_page.peak_lr, steps=one_page.steps, cooldown=one_page.cooldown / one_page.steps)
    np.testing.assert_array_equal(schedule.values(), one_page.lr)
    loss = StraightRiver(one_page.slope, tuple(one_page.h.tolist()))
    ds = run(schedule, loss=loss, sigma=one_page.sigma, start=one_page.start, replicates=6, seed=42, every=1)
    rivers, hills = one_page.run(seed=42, replicates=6)
    np.testing.assert_array_equal(ds["river"].values.T, rivers)
    np.testing.assert_array_equal(ds["hill"].values.T, hills)


def test_one_page_version_prints_its_story(capsys):
    one_page.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    before, after = (float(line.split()[2]) for line in lines[3:5])
    assert after < 0.3 * before


def test_same_seed_same_bits_and_another_seed_others():
    schedule = make_schedule("wsd", peak_lr=0.1, steps=50)
    assert same_bits(run(schedule, seed=3), run(schedule, seed=3))
    assert not same_bits(run(schedule, seed=3), run(schedule, seed=4))


@pytest.mark.parametrize("start", [1.0, "stationary"])
@pytest.mark.parametrize("block", [1, 70, 5000])
def test_blocks_of_noise_do_not_change_the_bits(block, start, monkeypatch):
    schedule = make_schedule("wsd-s", peak_lr=0.1, steps=130)
    whole = run(schedule, start=start, every=3)
    monkeypatch.setattr(ENGINE, "NORMALS_IN_BLOCK", block)
    assert same_bits(run(schedule, start=start, every=3), whole)


def test_recording_more_states_does_not_change_them():
    schedule = make_schedule("wsd", peak_lr=0.1, steps=90)
    dense, sparse = run(schedule, every=1), run(schedule, every=30)
    assert same_bits(dense.sel(eval_step=sparse["eval_step"]), sparse)


def test_one_draw_per_update_is_all_the_randomness_used():
    rng, twin = np.random.default_rng(9), np.random.default_rng(9)
    simulate(VALLEY, make_schedule("constant", peak_lr=0.1, steps=17), sigma=1.0, replicates=5, rng=rng)
    for _ in range(17):
        twin.standard_normal((5, 4))
    assert rng.bit_generator.state == twin.bit_generator.state


# --- the dataset -----------------------------------------------------------------------------------------------------
def test_dataset_is_in_the_schema_and_says_how_to_make_it_again(tmp_path):
    schedule = make_schedule("wsd-s", peak_lr=0.1, steps=200)
    ds = load(save(run(schedule, seed=7, sigma=0.5, start=0.5), tmp_path / "run.nc"))
    assert ds["source"].item() == "toy"
    assert ds.attrs["status"] == "complete"
    assert dict(ds.sizes) == {"step": 200, "eval_step": 201, "replicate": 8, "mode": 3}
    np.testing.assert_array_equal(ds["lr"], schedule.values())
    np.testing.assert_array_equal(ds["phase"], schedule.phases())
    assert ds["diverged_at"].values.tolist() == [-1] * 8
    config = json.loads(ds.attrs["config"])
    assert schedule_from_dict(config["schedule"]) == schedule
    again = run(
        schedule_from_dict(config["schedule"]), loss=make_loss(**config["loss"]), sigma=None,
        noise=make_noise(**config["noise"]), optimizer=make_optimizer(**config["optimizer"]),
        start=config["start"], every=config["every"], replicates=config["replicates"], seed=int(ds.attrs["seed"]),
    )  # fmt: skip
    assert same_bits(again, ds)


@pytest.mark.parametrize(
    ("seed", "recorded"), [(np.int64(3), "3"), ([1, 2], "[1, 2]"), (2**100, str(2**100))], ids=["numpy", "list", "long"]
)
def test_every_kind_of_seed_is_recorded(seed, recorded):
    ds = simulate(
        VALLEY, make_schedule("constant", peak_lr=0.1, steps=3), sigma=np.float32(0.5), replicates=np.int32(2),
        rng=np.random.default_rng(seed), start=np.float32(0.5),
    )  # fmt: skip
    assert ds.attrs["seed"] == recorded
    assert json.loads(ds.attrs["config"])["start"] == 0.5


def test_numbers_of_other_libraries_can_be_recorded():
    loss = StraightRiver(np.float32(0.5), tuple(np.array([1, 2])))
    ds = run(
        make_schedule("constant", peak_lr=0.1, steps=8), loss=loss, sigma=None, every=np.int64(4),
        noise=make_noise("anisotropic", sigmas=tuple(np.array([1, 2, 3], dtype=np.float32))),
        start=(np.float32(0.5), np.int64(1), 2),
    )  # fmt: skip
    config = json.loads(ds.attrs["config"])
    assert (config["start"], config["every"], config["noise"]["sigmas"]) == ([0.5, 1.0, 2.0], 4, [1.0, 2.0, 3.0])
    assert make_loss(**config["loss"]) == loss


@pytest.mark.parametrize(
    ("rng", "told"),
    [
        (0, r"rng must be a generator such as np.random.default_rng\(0\), got 0"),
        (np.random.RandomState(0), r"rng must be a generator"),
        (np.random.Generator(np.random.Philox(key=1)), r"made from a seed"),
    ],
    ids=["number", "old", "key"],
)
def test_a_generator_that_cannot_be_recorded_is_refused(rng, told):
    with pytest.raises(InputError, match=told):
        simulate(VALLEY, make_schedule("constant", peak_lr=0.1, steps=3), sigma=1.0, replicates=2, rng=rng)


def test_progress_hears_of_the_last_update():
    heard = []
    run(
        make_schedule("constant", peak_lr=0.1, steps=40),
        progress=lambda done, values: heard.append((done, dict(values))),
    )
    assert heard[-1][0] == 40
    assert set(heard[-1][1]) == {"loss", "lr"}


# --- endings ---------------------------------------------------------------------------------------------------------
def test_divergence_is_recorded_and_spares_the_others():
    """Without noise the steepest coordinate is doubled by every update, as 1 - lr h = -2."""
    with pytest.warns(UnstableWarning, match=r"2/h = 0\.25"):
        ds = run(make_schedule("constant", peak_lr=0.375, steps=1100), sigma=0.0, start=1.0, replicates=3, every=1)
    assert ds.attrs["status"] == "diverged"
    assert ds["diverged"].values.tolist() == [1, 1, 1]
    first = int(np.flatnonzero(~np.isfinite(ds["loss"].values[0]))[0])
    assert ds["diverged_at"].values.tolist() == [first] * 3
    assert first == 511  # 8 (2^t)^2 / 2 overflows at 2 + 2 t = 1024
    assert np.isfinite(ds["river"]).all()
    assert np.isinf(ds["exact_hill"][-1])


def test_a_replicate_that_survives_is_untouched_by_one_that_does_not(monkeypatch):
    schedule = make_schedule("constant", peak_lr=0.1, steps=60)
    healthy = run(schedule, replicates=4, every=1)
    blow_up_replicate_2(monkeypatch)
    ds = run(schedule, replicates=4, every=1)
    assert ds["diverged_at"].values.tolist() == [-1, -1, 0, -1]
    assert ds.attrs["status"] == "diverged"
    others = [0, 1, 3]
    assert same_bits(ds.isel(replicate=others), healthy.isel(replicate=others))


@pytest.mark.parametrize(("at", "kept"), [(0, 1), (29, 3), (30, 4), (85, 9), (99, 10)])
def test_ctrl_c_keeps_what_was_recorded(at, kept, tmp_path):
    schedule = make_schedule("constant", peak_lr=0.1, steps=100)
    whole = run(schedule, every=10)
    ds = run(schedule, loss=Interrupting(0.2, VALLEY.curvatures, at=at), every=10)
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] == at
    assert ds.sizes["eval_step"] == kept
    assert same_bits(ds, whole.isel(eval_step=slice(kept)))
    np.testing.assert_array_equal(ds["exact_hill"], whole["exact_hill"][:kept])
    xr.testing.assert_identical(load(save(ds, tmp_path / "run.nc")), ds)


def test_ctrl_c_while_the_exact_moments_are_computed_keeps_the_run(monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    schedule = make_schedule("constant", peak_lr=0.1, steps=100)
    whole = run(schedule)
    monkeypatch.setattr(sys.modules["riverval.toy._record"], "_expected", stop)
    ds = run(schedule)
    assert ds.attrs["status"] == "interrupted"
    assert "exact_loss" not in ds
    assert same_bits(ds, whole)


@pytest.mark.parametrize("how", [simulate, lambda loss, plan, **k: simulate_many(loss, [plan], **k)])
def test_the_warning_points_at_the_caller(how):
    plan = make_schedule("constant", peak_lr=1.0, steps=3)
    with pytest.warns(UnstableWarning) as found:
        how(VALLEY, plan, sigma=1.0, replicates=2, rng=np.random.default_rng(0))
    assert [w.filename for w in found] == [__file__]


def test_ctrl_c_in_the_progress_keeps_what_was_recorded(monkeypatch):
    def stop(done, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(ENGINE, "NORMALS_IN_BLOCK", 8 * 4 * 25)
    monkeypatch.setattr(MODULE, "_BLOCKS", 1)
    ds = run(make_schedule("constant", peak_lr=0.1, steps=100), every=10, progress=stop)
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] == 25
    assert ds["eval_step"].values.tolist() == [0, 10, 20]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sigma": -1.0}, r"sigma .* got -1"),
        ({"replicates": 0}, r"replicates must be .* got 0"),
        ({"every": 0}, r"every .* got 0"),
        ({"start": "somewhere"}, r"start must be a number or 'stationary', got 'somewhere'"),
        ({"start": math.nan}, r"start .* got nan"),
        ({"sigma": 1e200}, r"sigma .* in \[0, 1e\+100\], got 1e\+200"),
        ({"start": -1e101}, r"start .* in \[-1e\+100, 1e\+100\], got -1e\+101"),
        ({"every": 10**20}, r"every .* from 1 to 1000000000"),
        ({"replicates": 3_000_000, "every": 1}, r"needs 140\.5 GiB, more than the 8 GiB .* \(a larger every, now 1\)"),
        ({"replicates": 10**20}, r"GiB, more than the 8 GiB"),
    ],
)
def test_bad_input_is_refused_with_the_rule(options, told):
    with pytest.raises(InputError, match=told):
        run(make_schedule("constant", peak_lr=0.1, steps=1000), **options)


@pytest.mark.parametrize("every", [None, 1])
def test_a_run_too_long_for_the_memory_is_refused_before_anything_is_made(every):
    tracemalloc.start()
    with pytest.raises(
        InputError, match=r"GiB, more than the 8 GiB allowed, for 1000000000 updates.*use fewer updates"
    ):
        run(make_schedule("wsd-s", peak_lr=0.1, steps=10**9), replicates=1, every=every)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1e6


@pytest.mark.parametrize(("steps", "replicates", "every"), [(100_000, 1, None), (50, 20_000, 1), (50, 200_000, 50)])
def test_the_memory_a_run_takes_is_what_is_counted(steps, replicates, every, monkeypatch):
    schedule = make_schedule("cosine", peak_lr=0.1, steps=steps)
    run(schedule, replicates=1)  # what is imported or kept once
    tracemalloc.start()
    run(schedule, replicates=replicates, every=every)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    setting = Setting(loss=VALLEY, schedule=schedule, sigma=1.0, every=every)
    monkeypatch.setattr(MODULE, "MOST_MEMORY", 1.5 * most)
    MODULE.check_size([setting], replicates)
    monkeypatch.setattr(MODULE, "MOST_MEMORY", most / 1.5)
    with pytest.raises(InputError, match="GiB allowed"):
        MODULE.check_size([setting], replicates)


TURNED = make_loss("rotated", curvatures=[1.0] * 23)


@pytest.mark.parametrize(
    ("loss", "noise", "every"),
    [
        (TURNED, make_noise("isotropic"), 1),
        (TURNED, make_noise("fisher"), 10),
        (make_loss("bent"), make_noise("fisher"), 10),
        (make_loss("bent"), make_noise("state-dependent", expression="sqrt(1 + y**2)"), 10),
        (SymbolicLoss("-x + cosh(y - x)"), make_noise("isotropic"), 10),
    ],
    ids=["turned", "turned, fisher", "bent, fisher", "state-dependent", "floor found"],
)
def test_no_loss_or_noise_takes_much_more_memory_than_is_counted(loss, noise, every, monkeypatch):
    plan, replicates = make_schedule("constant", peak_lr=0.01, steps=10), 400_000 // loss.dim
    tracemalloc.start()
    run(plan, loss=loss, sigma=None, noise=noise, replicates=replicates, every=every)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    setting = Setting(loss=loss, schedule=plan, noise=noise, every=every)
    monkeypatch.setattr(MODULE, "MOST_MEMORY", most / 1.5)
    with pytest.raises(InputError, match="GiB allowed"):
        MODULE.check_size([setting], replicates)


def test_at_the_limit_itself_a_run_is_said_not_to_settle():
    """lr h = 2: the mean swings without end and the variance grows with t, which no short run shows."""
    with pytest.warns(UnstableWarning, match=r"^the peak rate 0.25 does not settle .*: a long run diverges$"):
        ds = run(make_schedule("constant", peak_lr=0.25, steps=100), replicates=4)
    assert ds.attrs["status"] == "complete"


def test_no_stationary_start_beyond_the_limit():
    with pytest.raises(InputError, match=r"no stationary start.* 2/h = 0\.25.* give a number"):
        run(make_schedule("constant", peak_lr=0.25, steps=10), start="stationary")
