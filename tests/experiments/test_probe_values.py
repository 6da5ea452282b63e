"""What the probes measure on a quadratic, against dense matrices, closed forms and naive loops."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from riverval.experiments import probe_descent  # noqa: E402
from riverval.experiments.probe_descent import descent  # noqa: E402
from riverval.experiments.probe_directions import Products, directions, products_of  # noqa: E402
from riverval.experiments.probe_interpolation import interpolation, largest_rise  # noqa: E402
from riverval.experiments.probe_pca import Joint, pca  # noqa: E402
from riverval.experiments.probe_sharpness import sharpness  # noqa: E402
from riverval.experiments.probes import Context  # noqa: E402
from riverval.landscape import PathLosses  # noqa: E402
from riverval.nulls import random_walk_shares, shuffled_cosine  # noqa: E402

from .probing import DIM, STEPS, Run, config, first_component  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"), config())


# --- interpolation ---------------------------------------------------------------------------------------------------
def test_a_segment_through_a_quadratic_is_its_parabola_and_its_own_null(run):
    found = interpolation(run.context)
    examples, plan = run.config.line_examples, run.snapshots.plan.states
    h = run.data.hessian(examples)
    ends = {"stable": (plan["late stable"][0], plan["late stable"][-1]),
            "cooldown": (plan["cooldown"][0], plan["cooldown"][-1])}  # fmt: skip
    assert found["pair"] == list(ends)
    assert {0.0, 0.5, 1.0} <= set(found["alpha"])
    for k, (first, last) in enumerate(ends.values()):
        a, b = run.weights[first], run.weights[last]
        assert (found["interpolation_start"][k], found["interpolation_stop"][k]) == (first, last)
        line = [run.data.loss(a + s * (b - a), examples) for s in found["alpha"]]
        np.testing.assert_allclose(found["interpolation_loss"][k], line, rtol=1e-12)
        np.testing.assert_allclose(found["interpolation_null"][k], line, rtol=1e-9)
        assert found["interpolation_dip"][k] == pytest.approx((b - a) @ h @ (b - a) / 8, rel=1e-9)
        rises = [y - x for x, y in itertools.combinations(line, 2)]
        assert found["interpolation_rise"][k] == pytest.approx(max(0.0, *rises), abs=1e-12)


def test_errors_of_a_segment_are_those_of_its_batches_paired(run):
    found = interpolation(run.context)
    assert found["interpolation_batches"] == 8
    size = run.config.line_examples // 8
    states = run.snapshots.plan.states["cooldown"]
    a, b = run.weights[states[0]], run.weights[states[-1]]
    x, y = (part.numpy() for part in (run.data.x, run.data.y))

    def each(w):
        return np.array([0.5 * np.mean((x[i : i + size] @ w - y[i : i + size]) ** 2) for i in range(0, 8 * size, size)])

    ends, middle = (each(a) + each(b)) / 2, each((a + b) / 2)
    assert found["interpolation_dip_error"][1] == pytest.approx((ends - middle).std(ddof=1) / np.sqrt(8), rel=1e-6)
    assert found["interpolation_loss_error"][1][0] == pytest.approx(each(a).std(ddof=1) / np.sqrt(8), rel=1e-6)


def test_the_largest_rise_is_that_of_any_two_places():
    alpha = np.linspace(0, 1, 5)
    line = np.array([3.0, 1.0, 1.5, 2.5, 0.5])
    batches = np.stack([line + np.eye(5)[3], line - np.eye(5)[3]])
    path = PathLosses(alpha, alpha, batches, np.array([0.5, 0.5]), alpha[[0, -1]])
    assert largest_rise(path) == (1.5, 1.0)  # from the second place to the fourth
    falling = PathLosses(alpha, alpha, np.sort(batches)[:, ::-1], np.array([0.5, 0.5]), alpha[[0, -1]])
    assert largest_rise(falling)[0] == 0.0


# --- sharpness -------------------------------------------------------------------------------------------------------
def test_sharpness_is_the_top_of_the_dense_hessian_raw_and_preconditioned(run):
    found = sharpness(run.context)
    states = run.snapshots.plan.states["sharpness"]
    assert found["probe_step"] == states
    h = run.data.hessian(run.config.hessian_examples)
    rates = run.config.plan.values()
    for k, state in enumerate(states):
        p = run.moments[state] ** -0.5
        assert found["hessian_top"][k] == pytest.approx(np.linalg.eigvalsh(h)[-1], rel=1e-8)
        assert found["preconditioned_top"][k] == pytest.approx(np.linalg.eigvalsh(p[:, None] * h * p)[-1], rel=1e-6)
        rate = rates[min(state, STEPS - 1)]
        assert found["hessian_threshold"][k] == pytest.approx(2 / rate)
        assert found["preconditioned_threshold"][k] == pytest.approx(38 / rate)
    assert states[-1] == STEPS
    np.testing.assert_array_equal(found["probe_lr"], [*rates[states[:-1]], np.nan])
    # The null, at both ends only: the curvature of a random direction.
    for k in (0, -1):
        assert abs(found["hessian_mean"][k] - np.trace(h) / DIM) <= 3 * found["hessian_mean_error"][k]
    assert np.isnan(found["hessian_mean"][1])


def test_sgd_is_held_against_its_own_threshold(tmp_path):
    run = Run(tmp_path, config(optimizer="sgd", momentum=0.5))
    found = sharpness(run.context)
    rates = run.config.plan.values()[run.snapshots.plan.states["sharpness"][:-1]]
    np.testing.assert_allclose(found["hessian_threshold"][:-1], 2 * 1.5 / rates)
    assert "preconditioned_top" not in found
    assert run.context.momentum == 0.5
    assert run.context.notes == []


def test_a_state_without_preconditioner_is_noted_and_the_others_stay(tmp_path):
    run = Run(tmp_path, config())
    state = run.snapshots.plan.states["sharpness"][1]
    run.snapshots.path(state, "moments").unlink()
    found = sharpness(run.context)
    assert np.isfinite(found["preconditioned_top"]).tolist() == [True, False, True]
    assert found["preconditioned_products"][1] == 0
    assert run.context.notes == [f"sharpness: no preconditioner at state {state}"]


# --- directions ------------------------------------------------------------------------------------------------------
def test_shares_angles_and_drift_are_those_of_the_snapshots(run):
    found = pca(run.context)
    momentum = run.config.betas[0]
    for k, name in enumerate(found["window"]):
        x = run.window(name)
        values = np.linalg.svd(x - x.mean(0), compute_uv=False)[: len(x) - 1] ** 2
        np.testing.assert_allclose(found["pca_share"][k][: len(values)], values / values.sum(), atol=1e-10)
        states = run.snapshots.plan.states[name]
        null = random_walk_shares(run.config.plan.values(), states, momentum=momentum)
        np.testing.assert_allclose(found["pca_null"][k][: len(null)], null)
        steps = np.diff(x, axis=0)
        drift = np.sum(steps.mean(0) ** 2) / np.mean(np.sum(steps**2, axis=1))
        assert found["drift_share"][k] == pytest.approx(drift)
        assert found["pca_snapshots"][k] == len(states)
    one, other = (first_component(run.window(name)) for name in ("stable", "cooldown"))
    assert found["phase_cosine"] == pytest.approx(abs(one @ other), abs=1e-9)
    for pair, cosine in zip(found["window_pair"], found["window_cosine"], strict=True):
        one, other = (first_component(run.window(name)) for name in pair.split(" and "))
        assert cosine == pytest.approx(abs(one @ other), abs=1e-9)
    # Two random directions in 12 dimensions.
    z = np.random.default_rng(0).standard_normal((20_000, 2, DIM))
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    assert found["phase_cosine_null"] == pytest.approx(np.abs(np.sum(z[:, 0] * z[:, 1], axis=1)).mean(), rel=0.02)


def test_the_drift_null_is_that_of_a_walk_with_the_runs_rates_and_momentum(run):
    found, b = pca(run.context), run.config.betas[0]
    rates, states = run.config.plan.values(), run.snapshots.plan.states["stable"]
    rng, squares = np.random.default_rng(0), np.zeros(2)
    x = v = np.zeros(4000)
    path = [x]
    for rate in rates:
        v = b * v + rng.standard_normal(4000)
        path.append(path[-1] - rate * v)
    steps = np.diff(np.array(path)[states], axis=0)
    squares = np.sum(steps.mean(0) ** 2), np.mean(np.sum(steps**2, axis=1))
    assert found["drift_null"][0] == pytest.approx(squares[0] / squares[1], rel=0.05)


def test_windows_that_share_a_state_are_compared_too(run):
    states = run.snapshots.plan.states
    assert set(states["late stable"]) & set(states["early cooldown"])
    one, other = (first_component(run.window(name)) for name in ("late stable", "early cooldown"))
    joint = Joint.of(run.context, sorted({*states["late stable"], *states["early cooldown"]}))
    found = joint.cosine(states["late stable"], states["early cooldown"])
    assert found == pytest.approx(abs(one @ other), abs=1e-9)


def test_the_norm_of_hv_is_that_of_the_dense_hessian_and_component(run):
    found = directions(run.context)
    h = run.data.hessian(run.config.hessian_examples)
    norms = {}
    for name, norm, along in zip(found["window"], found["direction_norm"], found["direction_curvature"], strict=True):
        if name not in ("late stable", "early cooldown", "matched stable"):
            assert np.isnan(norm)
            continue
        v = first_component(run.window(name))
        norms[name] = np.linalg.norm(h @ v)
        assert norm == pytest.approx(norms[name], rel=1e-8)
        assert along == pytest.approx(v @ h @ v, rel=1e-8)
    assert found["direction_ratio"] == pytest.approx(norms["early cooldown"] / norms["late stable"])
    assert found["direction_ratio_matched"] == pytest.approx(norms["early cooldown"] / norms["matched stable"])
    for name in ("direction_ratio", "direction_ratio_matched"):
        assert 0 < found[f"{name}_low"] < found[f"{name}_high"]
    # The nulls, for random signs: 4 of them.
    assert found["direction_null"] == pytest.approx(np.sqrt(np.trace(h @ h) / DIM), rel=1.0)
    assert abs(found["direction_curvature_null"] - np.trace(h) / DIM) < np.trace(h) / DIM


def test_a_resample_needs_no_further_products(run):
    context = run.context
    operator = context.hessian(
        context.train_loss(run.config.hessian_examples), run.snapshots.plan.states["cooldown"][0]
    )
    states = run.snapshots.plan.states["early cooldown"]
    products = products_of(context, operator, states)
    assert operator.products == len(states) - 1
    h, x = run.data.hessian(run.config.hessian_examples), run.window("early cooldown")
    for seed in range(5):
        chosen = np.random.default_rng(seed).integers(0, len(states), len(states))
        v = first_component(x[chosen])
        norm, along = products.resampled(chosen).first()
        assert norm == pytest.approx(np.linalg.norm(h @ v), rel=1e-7)
        assert along == pytest.approx(v @ h @ v, rel=1e-7)
    assert operator.products == len(states) - 1


def test_the_bootstrap_interval_is_that_of_naive_resampling(run):
    found = directions(run.context)
    h, x = run.data.hessian(run.config.hessian_examples), run.window("late stable")
    rng, draws = np.random.default_rng(5), []
    for _ in range(2000):
        chosen = rng.integers(0, len(x), len(x))
        if len(set(chosen)) > 1:
            draws.append(np.linalg.norm(h @ first_component(x[chosen])))
    low, high = (found[f"direction_norm_{end}"][found["window"].index("late stable")] for end in ("low", "high"))
    assert np.mean(np.array(draws) < low) == pytest.approx(0.025, abs=0.025)
    assert np.mean(np.array(draws) > high) == pytest.approx(0.025, abs=0.025)


def test_one_snapshot_drawn_throughout_has_no_component():
    eye = np.eye(3)
    with pytest.raises(ValueError, match="differ"):
        Products(eye, eye, eye).resampled(np.zeros(3, dtype=int)).first()


def test_each_hessian_is_that_of_its_own_state(run, monkeypatch):
    # The Hessian of a quadratic is the same everywhere, so the numbers above cannot tell.
    seen, made = [], Context.hessian

    def spy(context, loss, state):
        operator = made(context, loss, state)
        seen.append((state, operator._point.leaves[0].detach().numpy()[0]))
        return operator

    monkeypatch.setattr(Context, "hessian", spy)
    states = run.snapshots.plan.states
    sharpness(run.context)
    directions(run.context)
    assert [state for state, _ in seen] == [*states["sharpness"], states["cooldown"][0]]
    for state, leaf in seen:
        np.testing.assert_array_equal(leaf, run.weights[state])


# --- descent ---------------------------------------------------------------------------------------------------------
def test_tau_is_that_of_the_gradient_of_the_fixed_subset(run):
    found, n = descent(run.context), run.config.descent_examples
    states = run.snapshots.plan.states
    assert found["probe_step"] == [*states["descent"], STEPS]
    references = {
        "quasi_convexity": run.weights[STEPS],
        "quasi_convexity_average": run.window("cooldown").mean(0),
        "quasi_convexity_stable_average": run.window("late stable").mean(0),
    }
    assert found["cooldown_average_loss"] == pytest.approx(run.data.loss(references["quasi_convexity_average"], n))
    assert found["stable_average_loss"] == pytest.approx(run.data.loss(references["quasi_convexity_stable_average"], n))
    checked = 0
    for k, state in enumerate(states["descent"]):
        w = run.weights[state]
        g, value = run.data.gradient(w, n), run.data.loss(w, n)
        assert found["probe_loss"][k] == pytest.approx(value)
        assert found["probe_gradient_norm"][k] == pytest.approx(np.linalg.norm(g))
        for name, point in references.items():
            drop, slope = value - run.data.loss(point, n), g @ (w - point)
            if drop <= 0:
                assert np.isnan(found[name][k])
                continue
            checked += 1
            assert found[name][k] == pytest.approx(slope / drop, rel=1e-6)
            spread = np.linalg.norm(g) * np.linalg.norm(w - point) / np.sqrt(DIM) / drop
            assert found[f"{name}_null_std"][k] == pytest.approx(spread, rel=1e-6)
            if name == "quasi_convexity":
                assert found["quasi_convexity_numerator"][k] == pytest.approx(slope, rel=1e-6)
                assert found["quasi_convexity_denominator"][k] == pytest.approx(drop, rel=1e-6)
    assert checked > 10
    assert found["probe_loss"][-1] == pytest.approx(run.data.loss(run.weights[STEPS], n))


def test_the_cosine_is_that_of_the_update_and_minus_the_subsets_gradient(run):
    found, n = descent(run.context), run.config.descent_examples
    for k, state in enumerate(run.snapshots.plan.states["descent"]):
        u, g = run.weights[state + 1] - run.weights[state], run.data.gradient(run.weights[state], n)
        cosine = -u @ g / np.linalg.norm(u) / np.linalg.norm(g)
        assert found["gradient_cosine"][k] == pytest.approx(cosine, rel=1e-6)
        null = shuffled_cosine(u, -g)
        assert found["gradient_cosine_null"][k] == pytest.approx(null.mean, rel=1e-6)
        assert found["gradient_cosine_null_std"][k] == pytest.approx(null.sd, rel=1e-6)
    assert np.isnan(found["gradient_cosine"][-1])


def test_a_state_without_its_update_has_no_cosine(tmp_path):
    run = Run(tmp_path, config())
    run.snapshots.path(run.snapshots.plan.states["descent"][1], "update").unlink()
    found = descent(run.context)
    assert np.isfinite(found["gradient_cosine"]).tolist()[:3] == [True, False, True]
    assert np.isfinite(found["quasi_convexity"][1])


@pytest.mark.parametrize("keep", ["bfloat16", "sketch"])
def test_short_forms_give_the_same_within_their_error(run, tmp_path, keep):
    short = Run(tmp_path, config(keep=keep))
    for probe, names in ((descent, ("quasi_convexity",)), (pca, ("pca_share", "window_cosine")),
                         (directions, ("direction_norm",)), (sharpness, ("preconditioned_top",))):  # fmt: skip
        exact, found = probe(run.context), probe(short.context)
        for name in names:
            # The update before the last state is within its rounding: there tau is lost.
            last = -2 if name == "quasi_convexity" else None
            np.testing.assert_allclose(found[name][:last], exact[name][:last], rtol=0.1, atol=0.02, err_msg=name)
    # Differences of states that were rounded on their own would be off by more than the updates themselves are.
    cosines = [descent(each.context)["gradient_cosine"] for each in (short, run)]
    np.testing.assert_allclose(*cosines, rtol=0.05, atol=0.005)


def test_states_without_tau_are_told(tmp_path, monkeypatch):
    run = Run(tmp_path, config())
    plain = probe_descent._references
    monkeypatch.setattr(
        probe_descent, "_references",
        lambda *a: [replace(r, loss=1e6) if r.name == "quasi_convexity" else r for r in plain(*a)],
    )  # fmt: skip
    found = descent(run.context)
    states = run.snapshots.plan.states["descent"]
    assert np.isnan(found["quasi_convexity"]).all()
    assert run.context.notes == [
        f"descent: {len(states)} of {len(states)} states lie no higher than the last one, so that they have no tau: "
        + ", ".join(map(str, states))
    ]
