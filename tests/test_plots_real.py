"""Pictures of real runs and studies: what they claim to show is drawn as it is stored, what is missing is left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from riverval import compare, plots, plots_branches, plots_observer, plots_real, report, store
from riverval import plots_real_studies as studies
from riverval.commands import labelled
from riverval.errors import InputError, StoreError
from riverval.schedules import make_schedule

from .made_real import (
    WINDOWS,
    budgets,
    decays,
    fractions,
    measured,
    nets,
    noises,
    plan_of,
    probed,
    probed_nets,
    trained,
    widths,
)

STUDIES = {
    "wsd-vs-cosine": fractions, "shapes": decays, "width": widths, "architectures": probed_nets, "wsd-s": budgets,
    "paper": probed, "noise": noises,
}  # fmt: skip
SIDEWAYS = ("architectures", "paper")


def lines_of(figure):
    """x and y of every line."""
    lines = [line for axis in figure.axes for line in axis.lines]
    return [(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in lines]


def holds(figure, x, y):
    x, y = np.asarray(x, float), np.asarray(y, float)
    return any(a.shape == x.shape and np.allclose(a, x) and np.allclose(b, y) for a, b in lines_of(figure))


def titled(figure, title):
    return next(axis for axis in figure.axes if axis.get_title() == title)


def bars_of(axis):
    """Ends of every error bar as (low, high), in the order in which they were drawn."""
    segments = [c.get_segments() for c in axis.collections if isinstance(c, LineCollection)]
    return [(s[0][1], s[1][1]) for each in segments for s in each if s[0][0] == s[1][0]]


# --- one run ---------------------------------------------------------------------------------------------------------
def test_a_run_has_two_pages_with_every_panel(tmp_path):
    store.save(measured(), tmp_path / "run.nc")
    ds = store.load(tmp_path)
    written = plots_real.write_run(ds, tmp_path)
    assert [path.name for path in written] == ["real.png", "real-appendix.png"]
    assert all(path.stat().st_size > 100_000 for path in written)
    not_measured = {"critical sharpness", "costs"}
    first, second = plots_real.real_run(ds), plots_real.real_appendix(ds)
    assert len(first.axes) == len({*plots_real.PAPER} - not_measured)
    assert len(second.axes) == len({*plots_real.FURTHER} - not_measured)
    for axis in [*first.axes, *second.axes]:
        assert axis.get_title()
        assert axis.get_xlabel() or axis.get_xticklabels()


@pytest.fixture(scope="module")
def page():
    return plots_real.real_run(measured())


PAPER_SERIES = {
    "hessian_top": "probe_step", "hessian_mean": "probe_step", "preconditioned_top": "probe_step",
    "preconditioned_mean": "probe_step", "quasi_convexity": "probe_step", "quasi_convexity_average": "probe_step",
    "quasi_convexity_stable_average": "probe_step", "gradient_cosine": "probe_step",
    "gradient_cosine_null": "probe_step", "probe_loss": "probe_step", "val_loss": "eval_step", "lr": "step",
    "train_loss": "step",
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER_SERIES)
def test_series_are_drawn_where_they_were_measured(name, page):
    ds = measured()
    value, place = ds[name].to_numpy(), ds[PAPER_SERIES[name]].to_numpy()
    kept = np.isfinite(value)
    assert holds(page, place[kept], value[kept])


def test_thresholds_are_drawn_but_not_where_they_are_infinite(page):
    ds = measured()
    figure = page
    for name in ("hessian_threshold", "preconditioned_threshold"):
        kept = np.isfinite(ds[name].to_numpy())
        assert not kept.all()
        assert holds(figure, ds["probe_step"][kept], ds[name][kept]), name


@pytest.mark.parametrize("pair", ["stable", "cooldown"])
def test_segments_stand_beside_their_quadratic(pair, page):
    ds = measured()
    figure, one = page, ds.sel(pair=pair)
    assert holds(figure, ds["alpha"], one["interpolation_loss"])
    assert holds(figure, ds["alpha"], one["interpolation_null"])
    axis = titled(figure, "Loss on the segment")
    band = [path.vertices for c in axis.collections for path in c.get_paths()]
    half = 2 * 0.006
    assert any(np.isclose(v[:, 1], float(one["interpolation_loss"][0]) + half).any() for v in band)
    told = axis.get_legend_handles_labels()[1]
    assert any(label.startswith(f"{pair}: states ") and "dip " in label for label in told)
    assert "null of each: quadratic through its ends and middle" in told


def test_curvature_along_directions_has_intervals_and_nulls(page):
    ds = measured()
    axis = titled(page, "Curvature along each phase's direction")
    kept = [k for k, w in enumerate(WINDOWS) if np.isfinite(ds["direction_norm"][k])]
    assert [t.get_text().replace("\n", " ") for t in axis.get_xticklabels()] == [WINDOWS[k] for k in kept]
    single = [line for line in axis.lines if len(line.get_ydata()) == 1 and line.get_marker() == "o"]
    np.testing.assert_allclose([float(line.get_ydata()[0]) for line in single], ds["direction_norm"][kept])
    ends = zip(ds["direction_norm_low"].to_numpy()[kept], ds["direction_norm_high"].to_numpy()[kept], strict=True)
    np.testing.assert_allclose(sorted(bars_of(axis)), sorted(ends))
    levels = {round(float(s[0][1]), 6) for c in axis.collections for s in c.get_segments() if s[0][1] == s[1][1]}
    assert levels == {float(ds["direction_null"]), float(ds["direction_curvature_null"])}
    assert len({line.get_color() for line in single}) == len(kept)


def test_ratios_stand_over_one(page):
    ds = measured()
    axis = titled(page, "Early cooldown over late stable")
    both = ("direction_ratio", "direction_ratio_matched")
    expected = [(float(ds[f"{of}_low"]), float(ds[f"{of}_high"])) for of in both]
    np.testing.assert_allclose(bars_of(axis), expected)
    assert any(line.get_linestyle() == ":" and {*line.get_ydata()} == {1} for line in axis.lines)


def test_the_appendix_draws_what_it_says():
    ds = measured()
    figure = plots_real.real_appendix(ds)
    moving = ds["lr"].to_numpy() > 0
    ratio = (ds["update_norm"] / ds["lr"]).to_numpy()[moving]
    assert holds(figure, ds["step"][moving], ratio)
    for name in ("grad_norm", "param_norm", "update_norm"):
        assert holds(figure, ds["step"], ds[name])
    for k in range(len(WINDOWS)):
        for name in ("pca_share", "pca_null"):
            assert holds(figure, ds["component"][:8] + 1, ds[name][k, :8])
    angles = titled(figure, "Angles between the windows' directions")
    assert [p.get_width() for p in angles.patches] == [0.11, 0.3, 0.25]
    drift = titled(figure, "How far the steps agree")
    assert [p.get_height() for p in drift.patches] == ds["drift_share"].to_numpy().tolist()


GROUPS = {"bin": ("predictability_bin", ""), "model_bin": ("model_bin", "model_"), "class": ("class", "class_")}


@pytest.mark.parametrize("of", GROUPS)
def test_groups_are_drawn_with_their_gains_and_nulls(of):
    ds, (axis, gains) = measured(), GROUPS[of]
    figure = plots_real.real_appendix(ds)
    for k in range(ds.sizes[axis]):
        value = ds[f"{of}_loss"].isel({axis: k}).to_numpy()
        kept = np.isfinite(value)
        assert holds(figure, ds["probe_step"][kept], value[kept])
    for name in ("stable_gain", "settled_gain", "cooldown_gain"):
        for of_name in (name, f"{name}_null"):
            assert holds(figure, ds[f"{of}_entropy"], ds[gains + of_name]), of_name


def test_update_over_rate_has_a_null_from_the_stable_phase():
    ds = measured()
    axis = titled(plots_real.real_appendix(ds), "Size of the update over the rate")
    stable = ds["phase"].to_numpy() == 1
    level = np.median((ds["update_norm"] / ds["lr"]).to_numpy()[stable])
    assert any({*np.asarray(line.get_ydata())} == {level} for line in axis.lines)
    assert axis.get_yscale() == "linear"


BOTH = {**plots_real.PAPER, **plots_real.FURTHER}
MEASURED = measured()


def draw_panel(name, ds):
    axis = Figure().add_subplot()
    BOTH[name][1](axis, ds)
    return axis


@pytest.mark.parametrize("name", BOTH)
def test_a_panel_needs_no_more_than_one_of_its_variables(name):
    variables, _ = BOTH[name]
    for keep in variables:
        others = [other for other in variables if other != keep and other in MEASURED]
        if keep in MEASURED:
            for part in (MEASURED.drop_vars(others), MEASURED.assign({o: MEASURED[o] * np.nan for o in others})):
                axis = draw_panel(name, part)
                assert axis.lines or axis.collections or axis.patches


LACKING = {
    "errors": "hessian_top_bound hessian_mean_error preconditioned_top_bound interpolation_loss_error "
    "interpolation_dip_error pca_share_error bin_loss_error stable_gain_error probe_loss_error class_gain_error",
    "spreads of nulls": "gradient_cosine_null_std quasi_convexity_null_std stable_gain_null_std "
    "class_cooldown_gain_null_std",
    "nulls": "hessian_mean preconditioned_mean gradient_cosine_null interpolation_null pca_null drift_null "
    "stable_gain_null phase_cosine_null window_cosine_null direction_null direction_curvature_null bin_ngram_loss "
    "cooldown_gain_null",
    "intervals": "direction_norm_low direction_norm_high direction_ratio_low direction_ratio_matched_high",
    "thresholds and what explains": "hessian_threshold preconditioned_threshold interpolation_dip direction_curvature "
    "bin_entropy class_entropy model_bin_entropy phase_cosine val_loss",
}  # fmt: skip


@pytest.mark.parametrize("names", LACKING.values(), ids=LACKING)
def test_pictures_without_errors_or_nulls_are_drawn_too(names):
    lacking = [name for name in names.split() if name in MEASURED]
    for part in (MEASURED.drop_vars(lacking), MEASURED.assign({name: MEASURED[name] * np.nan for name in lacking})):
        drawn = [draw_panel(name, part) for name, (of, _) in BOTH.items() if any(v in MEASURED for v in of)]
        assert all(axis.lines or axis.collections or axis.patches for axis in drawn)


def test_what_was_never_measured_has_no_panel(page):
    some = {"hessian_top", "direction_norm"}
    for part in (MEASURED.drop_vars(some), MEASURED.assign({name: MEASURED[name] * np.nan for name in some})):
        without = plots_real.real_run(part)
        assert len(without.axes) == len(page.axes) - 2
        titles = {axis.get_title() for axis in without.axes}
        assert not titles & {"Sharpness of the loss", "Curvature along each phase's direction"}


def test_a_run_of_losses_alone_is_one_page_and_an_old_appendix_goes(tmp_path):
    (tmp_path / "real-appendix.png").touch()
    bare = trained(plan_of()).drop_vars(["update_norm", "grad_norm", "param_norm"])
    assert [path.name for path in plots_real.write_run(bare, tmp_path)] == ["real.png"]
    assert not (tmp_path / "real-appendix.png").exists()


def test_nothing_to_draw_is_said():
    with pytest.raises(InputError, match="nothing here can be drawn; a real run has some of: train_loss"):
        plots_real.real_run(trained(plan_of()).drop_dims("step"))


@pytest.mark.parametrize("name", ["norms", "update over rate", "shares"])
def test_logarithmic_axes_take_zeros_and_negative_values(name):
    nothing = MEASURED[["update_norm", "param_norm", "pca_share", "pca_null", "pca_share_error"]] * 0.0
    some = MEASURED.assign(nothing).assign(grad_norm=-MEASURED["grad_norm"])
    for part in (some, MEASURED.assign(update_norm=MEASURED["update_norm"].where(MEASURED["step"] > 390, 0.0))):
        draw_panel(name, part).figure.canvas.draw()


def test_updates_without_a_rate_have_no_ratio():
    rate = MEASURED["lr"].where(MEASURED["step"] != 200, 0.0)
    axis = draw_panel("update over rate", MEASURED.assign_coords(lr=rate))
    assert 200 not in np.asarray(axis.lines[0].get_xdata())
    assert np.isfinite(np.asarray(axis.lines[0].get_ydata())).all()


def test_a_wide_range_of_update_sizes_is_logarithmic():
    wide = MEASURED.assign(update_norm=MEASURED["update_norm"] * 10.0 ** (MEASURED["step"] / 100))
    assert draw_panel("update over rate", wide).get_yscale() == "log"
    assert draw_panel("update over rate", MEASURED).get_yscale() == "linear"


def test_sharpness_is_shown_where_it_was_measured_only(page):
    axis = titled(page, "Sharpness of the loss")
    assert 290 < axis.get_xlim()[0] < 300
    assert 400 < axis.get_xlim()[1] < 410


def test_the_observers_panels_are_shared_not_copied():
    for name in ("interpolation", "cosines", "quasi-convexity", "loss"):
        assert plots_real.PAPER[name] is plots_observer.PANELS[name]


# --- several runs ----------------------------------------------------------------------------------------------------
def branches():
    out = []
    for shape in ("linear", "1-sqrt", "square"):
        for n in (20, 40, 80, 160):
            plan = make_schedule("wsd", peak_lr=0.003, steps=300 + n, cooldown=n / (300 + n), warmup=20, shape=shape)
            out.append((f"{shape}-{n}", trained(plan)))
    return out


def test_a_trunk_is_where_rates_and_losses_are_the_same():
    runs = branches()
    ((state, found),) = compare.fans(runs)
    assert [label for label, _ in found] == [label for label, _ in runs]
    # The first update of a cooldown still has the peak rate under a linear decay: the shapes part one update later.
    assert state == min(int(np.argmax(ds["lr"].to_numpy()[20:] < 0.003)) + 20 for _, ds in runs)
    other = ("another seed", trained(plan_of(), seed=1))
    cosine = ("cosine", trained(make_schedule("cosine", peak_lr=0.003, steps=400, warmup=20)))
    ((_, again),) = compare.fans([cosine, other, *runs])
    assert [label for label, _ in again] == [label for label, _ in runs]
    assert compare.shared_updates(runs[0][1], cosine[1]) >= 20  # the same warmup, which is no trunk
    assert compare.fans([other, cosine]) == []
    assert compare.fans([runs[0], cosine]) == compare.fans([cosine, runs[0]]) == []


def test_the_fan_shows_every_branch_and_its_end():
    runs = branches()
    figure = plots_branches.fan(runs)
    held_out, training, rate, ends, legend = figure.axes
    for label, ds in runs:
        after = ds["lr"].to_numpy()[301:]
        assert any(np.array_equal(np.asarray(line.get_ydata())[-len(after) :], after) for line in rate.lines), label
        last = float(ds["val_loss"][-1])
        assert any(np.asarray(line.get_ydata())[-1] == last for line in held_out.lines)
        assert any(last in np.asarray(line.get_ydata()) for line in ends.lines)
        gain = compare.cooldown_gain(ds)
        assert any(gain.start - gain.river in np.asarray(line.get_ydata()) for line in ends.lines), "its null"
    told = [text.get_text() for text in legend.get_legend().get_texts()]
    assert told == [f"{label}: {label.rpartition('-')[0]}, {label.rpartition('-')[2]}" for label, _ in runs]
    colours = {line.get_color() for line in held_out.lines if line.get_label() != "trunk"}
    assert len(colours - {plots.GREY}) == 3  # one for each shape
    assert len(training.lines) == len(runs) + 2  # the trunk, and the place where it is left


@pytest.mark.parametrize("part", ["val_loss", "neither"])
def test_a_fan_of_training_losses_alone_is_drawn_too(part):
    runs = [(label, ds.drop_vars(part, errors="ignore")) for label, ds in branches()[:3]]
    held_out = plots_branches.fan(runs).axes[0]
    assert any(len(line.get_xdata()) > 2 for line in held_out.lines) == (part == "neither")


def test_what_is_no_fan_is_said():
    runs = [*branches()[:2], ("another seed", trained(plan_of(), seed=1))]
    with pytest.raises(InputError, match=r"share a trunk.*of the 3 given 2 do"):
        plots_branches.fan(runs)


def seeds_of_two(count=3):
    cosine = make_schedule("cosine", peak_lr=0.003, steps=400, warmup=20)
    return [(f"{name}-{s}", trained(plan, seed=s)) for name, plan in (("wsd", plan_of()), ("cosine", cosine))
            for s in range(count)]  # fmt: skip


def test_seeds_are_thin_and_their_mean_is_thick():
    runs = seeds_of_two()
    assert [[label for label, _ in group] for group in compare.repetitions(runs)] == [
        ["wsd-0", "wsd-1", "wsd-2"], ["cosine-0", "cosine-1", "cosine-2"],
    ]  # fmt: skip
    held_out = plots_branches.training_curves(runs).axes[0]
    assert held_out.get_legend_handles_labels()[1] == ["wsd-0 and 2 more, mean", "cosine-0 and 2 more, mean"]
    drawn = {line.get_linewidth(): [] for line in held_out.lines}
    for line in held_out.lines:
        drawn[line.get_linewidth()].append(np.asarray(line.get_ydata()))
    thin, thick = drawn[plots_branches.THIN["lw"]], drawn[plots_branches.THICK["lw"]]
    assert all(any(np.array_equal(y, ds["val_loss"]) for y in thin) for _, ds in runs)
    for of in (runs[:3], runs[3:]):
        mean = np.mean([ds["val_loss"] for _, ds in of], axis=0)
        assert any(np.allclose(y, mean) for y in thick)


def test_curves_need_training_runs():
    with pytest.raises(InputError, match="have train_loss; none of these"):
        plots_branches.training_curves([("x", fractions())])


@pytest.mark.parametrize(("make", "told"), [
    (lambda: branches()[:3], ["These runs share a trunk"]),
    (lambda: seeds_of_two(1), ["Several seeds of one run"]),
    (lambda: [*branches()[:2], *seeds_of_two(1)], ["These runs share a trunk", "Several seeds of one run"]),
    (lambda: branches()[:1], []),
    (lambda: [("study", fractions())], []),
], ids=["branches", "seeds", "both", "one run", "a study"])  # fmt: skip
def test_a_page_of_runs_has_their_fan_and_their_curves(make, told):
    section = report._training(make())
    assert [words for words in ("These runs share a trunk", "Several seeds of one run") if words in section] == told
    assert section.count("<img") == len(told)


def test_pictures_among_runs_are_passed_over(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    store.save(branches()[0][1], tmp_path / "a" / "run.nc")
    (tmp_path / "fan.png").touch()
    assert [label for label, _ in labelled(sorted(tmp_path.iterdir()))] == ["a"]
    assert "passed over" in capsys.readouterr().out
    with pytest.raises(StoreError):
        labelled([tmp_path / "fan.png"])


# --- studies ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_drawn_from_its_file_alone(name, tmp_path):
    store.save(STUDIES[name](), tmp_path / "study.nc")
    (figure,) = report.run_figures(store.load(tmp_path / "study.nc"))
    assert plots.write(figure, tmp_path / "study.png").stat().st_size > 30_000
    assert figure.legends or figure.get_supxlabel() == studies.CAPTION


@pytest.mark.parametrize("name", [n for n in STUDIES if n not in ("wsd-s", "paper")])
def test_gaps_show_seeds_means_errors_and_intervals(name):
    ds = STUDIES[name]()
    figure = studies.study(ds)
    upright = name not in SIDEWAYS
    for metric in ds["metric"].to_numpy():
        at = ds.sel(metric=metric)
        for plan in ds["plan"].to_numpy():
            one = at.sel(plan=plan)
            if one["plan_against"] == plan:
                continue
            seeds = (one["outcome"] - at["outcome"].sel(plan=one["plan_against"].item())).to_numpy()
            for seed in seeds:
                assert drawn_at(figure, seed, upright), (plan, "seed")
            assert drawn_at(figure, float(one["outcome_gap"]), upright), (plan, "mean")
            for low, high in (
                (one["outcome_gap"] - one["outcome_gap_error"], one["outcome_gap"] + one["outcome_gap_error"]),
                (one["outcome_gap_low"], one["outcome_gap_high"]),
            ):
                assert barred(figure, float(low), float(high), upright), (plan, "bar")


def test_bars_stand_at_their_own_means_in_any_order_of_the_plans():
    ds = fractions()
    figure = studies.study(ds.isel(plan=np.random.default_rng(0).permutation(ds.sizes["plan"])))
    for plan in ("wsd 0.05", "wsd 0.95"):
        one = ds.sel(plan=plan, metric="val_loss")
        assert barred(figure, float(one["outcome_gap_low"]), float(one["outcome_gap_high"]))


def drawn_at(figure, value, upright=True):
    return any(np.isclose(b if upright else a, value, atol=1e-12).any() for a, b in lines_of(figure))


def barred(figure, low, high, upright=True):
    axis = 1 if upright else 0
    bars = [c for a in figure.axes for c in a.collections if isinstance(c, LineCollection)]
    segments = [s for c in bars for s in c.get_segments()]
    return any(len(s) == 2 and np.allclose([s[0][axis], s[1][axis]], [low, high]) for s in segments)


@pytest.mark.parametrize("name", [n for n in STUDIES if n not in SIDEWAYS])
def test_the_null_of_every_gap_is_drawn(name):
    figure = studies.study(STUDIES[name]())
    dotted = [line for axis in figure.axes for line in axis.lines if line.get_linestyle() == ":"]
    assert dotted
    assert all((np.asarray(line.get_ydata()) == 0).all() for line in dotted)


@pytest.mark.parametrize("make", [probed, probed_nets])
def test_acceptance_stands_beside_null_bound_and_verdict(make):
    ds = make()
    figure = studies.study(ds)
    plans = ds["plan"].to_numpy()[(ds["plan"] != ds["plan_against"]).to_numpy()]
    for name in ds["criterion"].to_numpy():
        axis = next(a for a in figure.axes if a.get_title(loc="left") == name)
        words = [text.get_text() for text in axis.texts]
        levels = {float(line.get_xdata()[0]): line.get_linestyle() for line in axis.lines if len(line.get_xdata()) == 2}
        for plan in plans:
            one = ds.sel(plan=plan, criterion=name)
            if not np.isfinite(one["criterion_value"]):
                assert words == ["not measured"] * len(plans)
                continue
            for value in [*one["criterion_seed_value"].to_numpy(), float(one["criterion_value"])]:
                assert drawn_at(figure, value, False)
            assert barred(figure, float(one["criterion_low"]), float(one["criterion_high"]), False)
            assert words == ["holds (3 of 3)"] * len(plans)
            assert levels[float(one["criterion_null"])] == ":"
            if one["criterion_bound"] != one["criterion_null"]:
                assert levels[float(one["criterion_bound"])] == "--"


NOISE_OF_A_QUADRATIC = "noise of a quadratic: rate^1 batch^(-0.5)"


def test_powers_of_the_gain_stand_beside_the_theory():
    axes = studies.study(noises()).axes
    assert any(
        "rate^(0.90 ± 0.10) batch^(-0.450 ± 0.060)" in a.get_title() and "batch^(-0.5)" in a.get_title() for a in axes
    )
    titles = [a.get_title() for a in studies.study(noises(metric=["val_loss", "cooldown_hill"])).axes]
    assert [t for t in titles if t] == ["hill as rate^(0.980 ± 0.040) batch^(-0.510 ± 0.030);\n" + NOISE_OF_A_QUADRATIC]
    assert studies._series(noises(), "plan_batch").keys() == {"rate 0.0015", "rate 0.003", "rate 0.006"}


def test_the_fraction_that_matches_is_marked():
    figure = studies.study(fractions())
    told = [label for axis in figure.axes for label in axis.get_legend_handles_labels()[1]]
    assert "matches at 0.410 ± 0.060" in told
    assert "matched by none" in told


def test_curves_of_a_study_are_those_stored():
    ds = fractions()
    figure = studies.study(ds)
    for plan in ds["plan"].to_numpy():
        for seed in ds["seed"].to_numpy():
            assert holds(figure, ds["eval_step"], ds["val_loss"].sel(plan=plan, seed=seed))
        assert holds(figure, ds["eval_step"], ds["val_loss"].sel(plan=plan).mean("seed"))
        assert holds(figure, ds["eval_step"][:-1], ds["plan_lr"].sel(plan=plan)[:-1])


def test_rates_of_a_study_are_those_of_the_configured_schedules():
    ds, plan = fractions(), plan_of(0.35)
    told = {"study": "wsd-vs-cosine", "plans": {"wsd 0.35": {"schedule": plan.to_dict()}}}
    figure = studies.study(ds.assign_attrs(config=json.dumps(told)))
    assert holds(figure, np.arange(400), plan.values())
    assert not holds(figure, ds["eval_step"][:-1], ds["plan_lr"].sel(plan="wsd 0.35")[:-1])
    assert holds(figure, ds["eval_step"][:-1], ds["plan_lr"].sel(plan="cosine")[:-1])  # of which nothing is told


def test_checkpoints_are_drawn_under_both_accountings():
    ds = budgets()
    axes = studies.study(ds).axes
    for column, accounting in enumerate(ds["accounting"].to_numpy()):
        upper, lower = axes[column], axes[2 + column]
        for family in ds["family"].to_numpy():
            one = ds.sel(accounting=accounting, family=family)
            lines = [np.asarray(line.get_ydata()) for line in upper.lines]
            assert any(np.array_equal(y, one["checkpoint_loss"]) for y in lines)
            assert any(np.array_equal(line.get_ydata(), one["gap"]) for line in lower.lines)
            for seed in range(3):
                assert any(np.array_equal(y, one["checkpoint_seed_loss"][:, seed]) for y in lines)
                gap = one["checkpoint_seed_loss"] - ds["checkpoint_seed_loss"].sel(accounting=accounting, family="WSD")
                assert any(np.array_equal(line.get_ydata(), gap[:, seed]) for line in lower.lines)
        assert f"WSD-S, {int(ds['family_updates'][column, 1])} updates in all" in upper.get_legend_handles_labels()[1]


@pytest.mark.parametrize("name", STUDIES)
def test_one_seed_failed_cells_and_missing_parts_are_drawn_too(name):
    make = STUDIES[name]
    cases = [] if name == "wsd-s" else [make(seeds=1)]
    holed = make()
    holed["outcome"][0] = np.nan
    holed["val_loss"][0] = np.nan
    empty = make()
    for variable in empty.data_vars:
        if empty[variable].dtype.kind == "f" and not str(variable).startswith("plan_"):
            empty[variable] = empty[variable] * np.nan
    cases += [holed, empty, make().drop_vars(["plan_lr", "val_loss", "match_fraction"], errors="ignore")]
    cases.append(make().drop_vars(["criterion_seed_value", "checkpoint_seed_loss"], errors="ignore"))
    cases.append(make().isel(metric=[1]))
    for ds in cases:
        assert studies.study(ds).axes
    if name == "width":
        studies.study(empty).canvas.draw()


def test_values_over_decades_are_logarithmic_and_their_gaps_too():
    ds = widths()
    share = np.where(ds["plan_parameters"] > 20_000, 1e-4, 1.0)
    for variable in ("outcome", "outcome_mean", "outcome_gap"):
        ds[variable][{"metric": 1}] = ds[variable].isel(metric=1) * share
    axes = studies.study(ds).axes
    scales = {a.get_ylabel(): (a.get_yscale(), b.get_yscale()) for a, b in zip(axes[::2], axes[1::2], strict=True)}
    assert scales == {"held-out loss (nat)": ("linear", "linear"), "training loss (nat)": ("log", "symlog")}


def test_a_panel_of_gaps_without_any_says_so():
    ds = widths()
    assert not studies.study(ds).axes[1].texts
    ds["outcome_gap"][{"metric": 0}] = ds["outcome_gap"].isel(metric=0).where(ds["plan"] == ds["plan_against"])
    with_none, with_some = studies.study(ds).axes[1::2]
    assert [t.get_text() for t in with_none.texts] == ["the references have none"]
    assert not with_some.texts


def test_a_study_unknown_here_shows_all_its_gaps():
    ds = nets().assign_attrs(config='{"study": "brand new"}')
    assert len(studies.study(ds).axes) == ds.sizes["metric"]
    with pytest.raises(InputError, match="store their values as outcome"):
        studies.study(trained(plan_of()))
