"""Every diagnostic against an independent computation, the registry, and files: kills, own variables, the example."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import riverval
from riverval import cli, report, store
from riverval.diagnostics import DIAGNOSTICS, Unavailable, diagnostic
from riverval.errors import InputError
from riverval.schema import PROBE_STATUSES, Variable

from .watched import BATCHES, Run, loss_of

ROOT = Path(__file__).parents[2]


def status(ds, name):
    return [PROBE_STATUSES[s] for s in ds["probe_status"].sel(diagnostic=name).values]


# --- a quadratic, on which everything is known ----------------------------------------------------------------------
SCALES = np.array([5.0, 3.0, 1.0, 0.5, 0.5, 0.1])
H = np.diag(SCALES)


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(1.0, 2.0, 6, dtype=torch.float64))

    def forward(self, noise):
        return 0.5 * (torch.from_numpy(SCALES) * self.w.square()).sum() + (noise * self.w).sum()


def value(model, batch):
    return model(batch)


def descend(updates=12, optimizer=None, probe=None, noise=0.0, **options):
    """Gradient descent on the quadratic, watched on the loss itself; the parameters at every state."""
    model = Quadratic()
    optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=0.1))
    made = optimizer(model.parameters())
    batches = probe or [torch.zeros(6, dtype=torch.float64)]
    draw = torch.Generator().manual_seed(0)
    path = [model.w.detach().numpy().copy()]
    with riverval.observe(model, made, (value, batches), **{"every": 3, "budget": None, **options}) as watch:
        for _ in range(updates):
            made.zero_grad()
            loss = model(noise * torch.randn(6, dtype=torch.float64, generator=draw))
            loss.backward()
            made.step()
            path.append(model.w.detach().numpy().copy())
            watch.step(loss)
    return watch.dataset(), np.array(path)


def losses(path):
    return 0.5 * (path**2 * SCALES).sum(axis=-1)


def test_loss_and_its_error_over_batches():
    shifts = np.random.default_rng(0).standard_normal((4, 6))
    ds, path = descend(record=["probe_loss"], probe=list(torch.from_numpy(shifts)))
    each = losses(path[::3])[:, None] + path[::3] @ shifts.T
    np.testing.assert_allclose(ds["probe_loss"], each.mean(axis=1))
    np.testing.assert_allclose(ds["probe_loss_error"], each.std(axis=1, ddof=1) / 2)


def test_one_batch_has_no_error_bar():
    ds, path = descend(record=["probe_loss"])
    np.testing.assert_allclose(ds["probe_loss"], losses(path[::3]))
    assert np.isnan(ds["probe_loss_error"]).all()


def test_alignment_is_with_the_update_that_follows():
    """Noise in the updates; the probe has none: the cosine of x_{t+1} - x_t and -H x_t, for t = 0, 3, ..."""
    ds, path = descend(record=["alignment"], noise=3.0)
    assert ds["probe_step"].values.tolist() == [0, 3, 6, 9, 12]
    assert status(ds, "alignment") == ["measured"] * 4 + ["unfinished"]  # no update follows the last
    assert np.isnan(ds["gradient_cosine"][-1])
    ds = ds.isel(probe_step=slice(0, -1))
    states = ds["probe_step"].values
    update, descent = path[states + 1] - path[states], -path[states] * SCALES
    norms = np.linalg.norm(update, axis=1) * np.linalg.norm(descent, axis=1)
    np.testing.assert_allclose(ds["gradient_cosine"], (update * descent).sum(axis=1) / norms)
    rng = np.random.default_rng(0)
    shuffled = np.array([[u @ rng.permutation(d) for _ in range(4000)] for u, d in zip(update, descent, strict=True)])
    shuffled /= norms[:, None]
    errors = shuffled.std(axis=1) / np.sqrt(4000)
    assert np.all(np.abs(shuffled.mean(axis=1) - ds["gradient_cosine_null"].values) < 4.5 * errors)
    np.testing.assert_allclose(shuffled.std(axis=1), ds["gradient_cosine_null_std"], rtol=0.06)


def test_full_gradient_descent_is_aligned():
    ds, _ = descend(13, record=["alignment"])
    assert status(ds, "alignment")[:5] == ["measured"] * 5
    np.testing.assert_allclose(ds["gradient_cosine"][:5], 1.0)


def test_sharpness_with_its_null_and_threshold():
    ds, _ = descend(record=["sharpness"], optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5))
    np.testing.assert_allclose(ds["hessian_top"], 5.0, rtol=1e-3)
    assert np.all(np.abs(ds["hessian_top"] - 5.0) <= ds["hessian_top_residual"] + 1e-9)
    np.testing.assert_allclose(ds["hessian_mean"], SCALES.mean())  # signs are exact on a diagonal
    np.testing.assert_allclose(ds["hessian_mean_error"], np.sqrt(2 * (SCALES**2).sum()) / 6)
    np.testing.assert_allclose(ds["hessian_threshold"], 2 * 1.5 / 0.1)


def test_a_warm_start_saves_products():
    run = Run()
    ds = run.watched(13, record=["sharpness"]).dataset()
    cold, *warm = ds["hessian_products"].values
    assert max(warm) < cold
    # ... and the null is only measured at the first of five.
    assert len(np.unique(ds["hessian_mean"])) == 1


def test_preconditioned_sharpness_is_that_of_the_optimizer():
    for make in (torch.optim.RMSprop, torch.optim.AdamW):
        ds, _ = descend(record=["preconditioned_sharpness"], optimizer=lambda p, make=make: make(p, lr=0.01))
        assert status(ds, "preconditioned_sharpness") == ["unavailable"] + ["measured"] * 4
        assert ds.attrs["notes"] == ""
        model, states = Quadratic(), ds["probe_step"].values
        optimizer = make(model.parameters(), lr=0.01)
        for t in range(1, 13):
            optimizer.zero_grad()
            model(torch.zeros(6, dtype=torch.float64)).backward()
            optimizer.step()
            if t in states:
                state, group = optimizer.state[model.w], optimizer.param_groups[0]
                if make is torch.optim.RMSprop:
                    p = state["square_avg"].sqrt().numpy() + group["eps"]
                else:
                    p = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt().numpy() + group["eps"]
                one, threshold = ds.sel(probe_step=t), 200 if make is torch.optim.RMSprop else 3800
                np.testing.assert_allclose(one["preconditioned_top"], (SCALES / p).max(), rtol=1e-3)
                np.testing.assert_allclose(one["preconditioned_threshold"], threshold)
        np.testing.assert_array_equal(np.isnan(ds["preconditioned_mean"]), [True] + [False] * 4)


def test_sharpness_claims_no_threshold_for_an_optimizer_that_preconditions():
    ds, _ = descend(record=["sharpness"], optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    assert np.isnan(ds["hessian_threshold"]).all()


def test_spectrum_is_in_order_and_as_long_as_asked():
    ds, _ = descend(record=["spectrum"], options={"spectrum": {"k": 3}}, cadence={"spectrum": 6})
    np.testing.assert_allclose(ds["hessian_eigenvalue"], [[5.0, 3.0, 1.0]] * 3, rtol=2e-3)
    assert ds["hessian_eigenvalue"].dims == ("probe_step", "rank")
    assert ds["rank"].values.tolist() == [0, 1, 2]
    assert json.loads(ds.attrs["config"])["options"]["spectrum"]["k"] == 3


def test_the_null_of_the_spectrum_stands_beside_it():
    ds, _ = descend(record=["spectrum"], options={"spectrum": {"k": 3}}, cadence={"spectrum": 6})
    np.testing.assert_allclose(ds["hessian_eigenvalue_null"], SCALES.mean())  # signs are exact on a diagonal
    np.testing.assert_allclose(ds["hessian_eigenvalue_null_error"], np.sqrt(2 * (SCALES**2).sum()) / 6)


def test_the_gradient_beside_the_noise_of_its_batches():
    shifts = np.random.default_rng(0).standard_normal((4, 6))
    ds, path = descend(record=["gradient"], probe=list(torch.from_numpy(shifts)))
    each = path[::3, None] * SCALES + shifts
    np.testing.assert_allclose(ds["probe_gradient_norm"], np.linalg.norm(each.mean(axis=1), axis=1))
    noise = np.sqrt((each.var(axis=1, ddof=1) / 4).sum(axis=1))  # standard errors of the entries
    np.testing.assert_allclose(ds["probe_gradient_null"], noise)
    ds, _ = descend(record=["gradient"])
    assert np.isnan(ds["probe_gradient_null"]).all()


def test_parameters_that_nobody_uses_are_no_obstacle():
    """A head that the loss does not go through: rows of zeros; an adaptive optimizer never gets a state for it."""
    found = []
    for extra in (0, 5):
        model = Quadratic()
        model.unused = nn.Parameter(torch.ones(extra, dtype=torch.float64)) if extra else None
        optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)
        record = ["sharpness", "preconditioned_sharpness", "sharpness_error"]
        batches = [torch.zeros(6, dtype=torch.float64)] * 2
        with riverval.observe(model, optimizer, (value, batches), record=record, every=1, budget=None) as watch:
            model(batches[0]).backward()
            optimizer.step()
            watch.step(0.0)
        ds = watch.dataset()
        assert ds.attrs["notes"] == ""
        found.append([ds["hessian_top"][1], ds["preconditioned_top"][1], ds["hessian_batch_mean"][0]])
    np.testing.assert_allclose(*found, rtol=2e-3)


def test_more_eigenvalues_than_dimensions_are_a_told_failure():
    with pytest.warns(RuntimeWarning, match="spectrum failed at state 0: k must be a whole number from 1 to 6, got 9"):
        ds, _ = descend(record=["spectrum"], options={"spectrum": {"k": 9}})
    assert np.isnan(ds["hessian_eigenvalue"]).all()


def test_sharpness_over_batches():
    run = Run()
    ds = run.watched(1, record=["sharpness_error"], every=1).dataset().isel(probe_step=0)
    fresh = Run()
    each = []
    for batch in BATCHES:
        part = riverval.observe(
            fresh.model, fresh.optimizer, (loss_of, [batch]), record=["sharpness"], options={"sharpness": {"tol": 1e-4}}
        )
        with part:
            pass
        each.append(float(part.dataset()["hessian_top"][0]))
    np.testing.assert_allclose(ds["hessian_batch_mean"], np.mean(each), rtol=1e-2)
    np.testing.assert_allclose(ds["hessian_batch_error"], np.std(each, ddof=1) / np.sqrt(3), rtol=0.15)


def test_an_error_bar_needs_two_batches():
    with pytest.warns(RuntimeWarning, match="needs at least two of them; give probe="):
        descend(record=["sharpness_error"])


def test_critical_sharpness_on_the_quadratic():
    """Along minus the gradient: d'Hd / g'd; the null has a random direction's curvature in place of d's."""
    options = {"critical_sharpness": {"accuracy": 1e-6}}
    ds, path = descend(60, record=["critical_sharpness"], options=options)
    ds = ds.isel(probe_step=slice(0, -1))
    states = ds["probe_step"].values
    gradient = path[states] * SCALES
    exact = (gradient**2 * SCALES).sum(axis=1) / (gradient**2).sum(axis=1)
    np.testing.assert_allclose(ds["critical_sharpness"], exact, rtol=1e-5)
    np.testing.assert_allclose(ds["critical_threshold"], 20.0)
    # Mean over random directions Tr H / d = 1.68, and as g'd = |d|^2 the slope divides out.
    null = ds["critical_null"].values
    assert abs(null.mean() - SCALES.mean()) < 4 * null.std(ddof=1) / np.sqrt(len(null))
    assert np.all((null > SCALES.min()) & (null < SCALES.max()))


def test_an_update_uphill_has_no_critical_sharpness():
    ds, _ = descend(11, record=["critical_sharpness"], optimizer=lambda p: torch.optim.SGD(p, lr=0.1, maximize=True))
    assert set(status(ds, "critical_sharpness")) == {"measured"}
    assert np.isnan(ds["critical_sharpness"]).all()
    np.testing.assert_allclose(ds["critical_threshold"], 20.0)


def test_trace_with_its_null():
    ds, _ = descend(record=["trace"], cadence={"trace": 3})
    np.testing.assert_allclose(ds["hessian_trace"], SCALES.sum())  # signs are exact on a diagonal
    np.testing.assert_allclose(ds["hessian_trace_error"], 0.0, atol=1e-12)
    null = ds["hessian_trace_null_std"].values[0]
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((20_000, 6, 6))
    drawn = drawn + drawn.transpose(0, 2, 1)
    drawn *= (np.linalg.norm(SCALES) / np.linalg.norm(drawn, axis=(1, 2)))[:, None, None]
    np.testing.assert_allclose(np.trace(drawn, axis1=1, axis2=2).std(), null, rtol=0.03)


@pytest.mark.parametrize("width", [6, 1024])
def test_quasi_convexity_of_a_quadratic(width):
    """With its own minimum as reference tau is 2; here the reference is the last state, near it. Sketches are exact."""
    ds, path = descend(600, every=50, record=["quasi_convexity"], sketch=width)
    states = ds["probe_step"].values[:-1]
    gradient, way, fall = path[states] * SCALES, path[states] - path[-1], losses(path[states]) - losses(path[-1])
    numerator = (gradient * way).sum(axis=1)
    np.testing.assert_allclose(ds["quasi_convexity_numerator"][:-1], numerator, rtol=1e-9)
    np.testing.assert_allclose(ds["quasi_convexity"][:-1], numerator / fall, rtol=1e-9)
    np.testing.assert_allclose(ds["quasi_convexity"][:4], 2.0, rtol=0.02)
    assert np.isnan(ds["quasi_convexity"][-1])
    size = np.linalg.norm(gradient, axis=1) * np.linalg.norm(way, axis=1)
    np.testing.assert_allclose(ds["quasi_convexity_null_std"][:-1], size / np.sqrt(6) / fall, rtol=1e-9)
    np.testing.assert_array_equal(ds["quasi_convexity_error"][:-1], 0.0)


def test_a_short_sketch_states_its_error():
    """The same from sketches of width 4 of a network: off, by what they state."""
    runs = {}
    for width in (16, 4096):
        run = Run()
        runs[width] = run.watched(24, record=["quasi_convexity"], sketch=width).dataset().isel(probe_step=slice(0, -1))
    off = (runs[16] - runs[4096])["quasi_convexity_numerator"].values
    error = (runs[16]["quasi_convexity_error"] * np.abs(runs[16]["quasi_convexity_denominator"])).values
    assert np.all(error > 0)
    assert np.abs(off / error).max() < 4
    assert np.abs(off / error).max() > 0.05


def cooled(width=1024, noise=0.3):
    schedule = riverval.make_schedule("wsd", peak_lr=0.05, steps=200)
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    draw, path = torch.Generator().manual_seed(0), [model.w.detach().numpy().copy()]
    with riverval.observe(model, optimizer, record=["pca"], sketch=width) as watch:
        for t in range(200):
            optimizer.param_groups[0]["lr"] = float(schedule(t))
            optimizer.zero_grad()
            loss = model(noise * torch.randn(6, dtype=torch.float64, generator=draw))
            loss.backward()
            optimizer.step()
            path.append(model.w.detach().numpy().copy())
            watch.step(loss)
    return watch.dataset(), np.array(path)


def test_components_of_the_iterates_by_phase():
    ds, path = cooled()
    assert ds["window"].values.tolist() == ["stable", "cooldown"]
    firsts = []
    for k, phase in enumerate((1, 2)):
        updates = np.flatnonzero(ds["phase"].values == phase)
        states = np.unique(np.linspace(updates[0], updates[-1], min(60, len(updates))).round().astype(int))
        snapshots = path[states] - path[states].mean(axis=0)
        _, sizes, directions = np.linalg.svd(snapshots)
        one = ds.isel(window=k)
        np.testing.assert_allclose(one["pca_share"][:6], sizes**2 / (sizes**2).sum(), rtol=1e-6)
        steps = np.diff(path[states], axis=0)
        drift = np.linalg.norm(steps.mean(axis=0)) ** 2 / (steps**2).sum(axis=1).mean()
        np.testing.assert_allclose(one["drift_share"], drift)
        np.testing.assert_allclose(one["drift_null"], 1 / len(steps))  # without momentum, whatever the rates
        firsts.append(directions[0])
        assert int(one["pca_snapshots"]) == len(states)
    np.testing.assert_allclose(ds["phase_cosine"], abs(firsts[0] @ firsts[1]), rtol=1e-5)
    np.testing.assert_array_equal(ds["pca_share_error"][:, :4], 0.0)


def test_the_null_of_the_components_is_a_random_walk():
    """In six dimensions, by walking: the mean first share of paths of pure noise."""
    ds, _ = cooled()
    rng = np.random.default_rng(0)
    updates = np.flatnonzero(ds["phase"].values == 1)
    states = np.unique(np.linspace(updates[0], updates[-1], 60).round().astype(int))
    shares = []
    for _ in range(200):
        walk = np.cumsum(ds["lr"].values[:, None] * rng.standard_normal((200, 6)), axis=0)[states]
        values = np.linalg.svd(walk - walk.mean(axis=0), compute_uv=False) ** 2
        shares.append(values[0] / values.sum())
    error = np.std(shares) * np.sqrt(1 / 200 + 1 / 50)
    assert abs(float(ds["pca_null"][0, 0]) - np.mean(shares)) < 4 * error


def test_a_run_without_phases_is_told_what_it_lacks():
    with pytest.warns(RuntimeWarning, match="pca skipped: neither a stable phase nor a cooldown"):
        ds, _ = descend(1, record=["pca"])
    assert "window" not in ds.dims


# --- the registry ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_every_diagnostic_tells_formula_source_and_null(name):
    told = DIAGNOSTICS[name].measure.__doc__
    assert "Null:" in told
    assert len(told) > 200
    nulls = [v for v in DIAGNOSTICS[name].variables if any(part in v for part in ("null", "mean", "error", "residual"))]
    assert nulls
    assert f"`{name}`" in (ROOT / "docs" / "observe.md").read_text("utf-8")


@pytest.fixture
def registry():
    """The registry as it was, after the test."""
    before = dict(DIAGNOSTICS)
    yield DIAGNOSTICS
    DIAGNOSTICS.clear()
    DIAGNOSTICS.update(before)


OWN = {
    "layer": Variable("layer of the network", "1", (("layer",),), "i8"),
    "layer_norm": Variable("norm of the layer's weights", "1", (("probe_step", "layer"),)),
    "layer_null": Variable("the same for weights of variance 1 / inputs, expected", "1", (("probe_step", "layer"),)),
    "layer_count": Variable("layers that were looked at", "1", (("probe_step",),), "i8"),
}


def register_layers():
    @diagnostic("layers", variables=OWN, coords=lambda options: {"layer": range(2)}, needs_loss=False)
    def layers(probe, *, power=1.0):
        if probe.state == 4:
            raise Unavailable("not today")
        weights = [probe.model[0].weight, probe.model[4].weight]
        return {
            "layer_norm": [float(w.detach().norm()) ** power for w in weights],
            "layer_null": [w.shape[0] ** 0.5 for w in weights],
            "layer_count": torch.tensor(2),
        }


def test_a_diagnostic_of_ones_own_is_one_function(registry, tmp_path):
    register_layers()
    run = Run()
    first = float(run.model[0].weight.detach().norm())
    with run.observe(
        probe=None, record=["layers"], out=tmp_path / "run.nc", options={"layers": {"power": 2.0}}
    ) as watch:
        run.train(9, watch)
    ds = watch.dataset()
    assert ds["layer_norm"].dims == ("probe_step", "layer")
    np.testing.assert_allclose(ds["layer_norm"][0, 0], first**2, rtol=1e-6)
    assert status(ds, "layers") == ["measured", "unavailable", "measured", "measured"]
    assert np.isnan(ds["layer_norm"][1]).all()
    assert ds["layer_count"].values.tolist() == [2, 0, 2, 2]
    # Where nobody knows the diagnostic, and without torch.
    read = (
        "import sys; from riverval import load; ds = load(sys.argv[1]); assert 'torch' not in sys.modules; "
        "print(ds['layer_norm'].attrs['long_name'])"
    )
    done = subprocess.run([sys.executable, "-c", read, tmp_path / "run.nc"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "norm of the layer's weights"


def test_a_cell_may_be_run_again_but_names_are_not_shared(registry):
    register_layers()
    register_layers()
    with pytest.raises(InputError, match="there is a diagnostic 'layers' already"):
        diagnostic("layers", variables=OWN)(lambda probe: {})
    with pytest.raises(InputError, match="diagnostic 'layers' stores 'layer_norm' already"):
        diagnostic("others", variables=OWN)(lambda probe: {})


BAD_DECLARATIONS = {
    "unknown name": ({"variables": ["probe_los"]}, "unknown stored variable 'probe_los'.*Did you mean 'probe_loss'"),
    "other meaning": ({"variables": {"lr": Variable("x", "1", (("probe_step",),))}}, "'lr' means something else"),
    "other axis": ({"variables": {"a": Variable("x", "1", (("step",),))}}, "dimensions that start with probe_step"),
    "text": ({"variables": {"a": Variable("x", "1", (("probe_step",),), "str")}}, "must be numbers, got type str"),
    "times": ({"variables": [], "times": 0}, "times"),
}


@pytest.mark.parametrize(("options", "message"), BAD_DECLARATIONS.values(), ids=BAD_DECLARATIONS)
def test_bad_declarations_are_refused(registry, options, message):
    with pytest.raises(InputError, match=message):
        diagnostic("mine", **options)(lambda probe: {})


def test_an_option_needs_a_default(registry):
    def mine(probe, *, k):
        return {}

    with pytest.raises(InputError, match="the option 'k' of diagnostic 'mine' needs a default"):
        diagnostic("mine", variables=[])(mine)


def waits_twice(probe):
    yield
    yield


BAD_VALUES = {
    "undeclared": (lambda probe: {"others": 1.0}, "it returned 'others', which it does not declare"),
    "shape": (lambda probe: {"mine": [1.0, 2.0]}, r"its 'mine' must have shape \(\), got \(2,\)"),
    "no mapping": (lambda probe: 1.0, "must return its values by name, got float"),
    "text": (lambda probe: {"mine": "high"}, "could not convert"),
    "half a count": (lambda probe: {"mine_count": 0.5}, "must be a whole number, got 0.5"),
    "no loss": (lambda probe: {"mine": probe.loss(probe.flat)}, "there is no loss to measure"),
    "two updates": (waits_twice, "a diagnostic may yield once only"),
    "training": (lambda probe: {"mine": train(probe)}, "it changed the model, which was put back"),
}


def train(probe):
    with torch.no_grad():
        for p in probe.model.parameters():
            p.add_(1.0)
    return 1.0


@pytest.mark.parametrize(("function", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_what_a_diagnostic_gets_wrong_is_told_and_harmless(registry, function, message):
    variables = {
        "mine": Variable("mine", "1", (("probe_step",),)),
        "mine_count": Variable("mine", "1", (("probe_step",),), "i8"),
    }
    diagnostic("mine", variables=variables, needs_loss=False)(function)
    alone, run = Run().train(6).flat(), Run()
    with pytest.warns(RuntimeWarning, match=f"mine failed at state 0.*{message}"):
        ds = run.watched(6, probe=None, record=["mine"]).dataset()
    np.testing.assert_array_equal(alone, run.flat())
    assert np.isnan(ds["mine"]).all()
    assert "failed" in status(ds, "mine")


def test_a_careless_diagnostic_is_cleaned_up_after(registry):
    def careless(probe):
        torch.rand(1)
        probe.model.eval()
        return {"mine": 1.0}

    diagnostic("mine", variables={"mine": Variable("mine", "1", (("probe_step",),))}, needs_loss=False)(careless)
    alone, run = Run().train(6).flat(), Run()
    with run.observe(probe=None, record=["mine"], every=1) as watch:
        run.train(6, watch)
        assert all(m.training for m in run.model.modules())
    np.testing.assert_array_equal(alone, run.flat())


def test_what_fails_at_the_close_is_told(registry):
    variables = {"mine": Variable("mine", "1", ((),))}
    diagnostic("mine", variables=variables, at_close=True)(lambda run: {"others": 1.0})
    diagnostic("good", variables={"good": Variable("good", "1", ((),))}, at_close=True)(lambda run: {"good": run.dim})
    with pytest.warns(RuntimeWarning, match="mine failed: it returned 'others'"):
        ds = Run().watched(2, probe=None, record=["mine", "good"]).dataset()
    assert float(ds["good"]) == 99
    assert "mine" not in ds


def test_what_a_diagnostic_requires_is_recorded_with_it():
    ds = Run().watched(5, record=["quasi_convexity", "pca"]).dataset()
    assert {"probe_loss", "gradient"} == {*ds["diagnostic"].values}
    assert {"param_sketch", "probe_gradient_sketch"} <= {*ds.data_vars}


# --- files ----------------------------------------------------------------------------------------------------------
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.instruments.watched import Run
run = Run()
watch = run.observe(out=sys.argv[1], record=["norms", "probe_loss", "sharpness"], interval=0).start()
for t in range(1000):
    run.train(1, watch)
    if t == 9:
        print("ready", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_kill_leaves_a_dataset(tmp_path):
    out = tmp_path / "run.nc"
    child = subprocess.Popen([sys.executable, "-c", KILLED, out, ROOT], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)
    child.kill()
    child.wait()
    child.stdout.close()
    assert [p.name for p in tmp_path.iterdir()] == ["run.partial.nc"]
    ds = store.load(tmp_path / "run.partial.nc")
    assert ds.attrs["status"] == "running"
    assert ds.sizes["step"] >= 10
    np.testing.assert_array_equal(ds["step"], np.arange(ds.sizes["step"]))
    assert np.isfinite(ds["update_norm"]).all()
    assert ds["probe_step"].values[:2].tolist() == [0, 4]
    assert np.isfinite(ds["hessian_top"]).all()


def test_the_example_writes_what_riverval_shows(tmp_path, monkeypatch, capsys):
    """The script of the documentation, as anyone would run it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    script = ROOT / "docs" / "examples" / "observe_sgd.py"
    assert len(script.read_text("utf-8").splitlines()) <= 35
    with torch.random.fork_rng():
        runpy.run_path(str(script), run_name="__main__")
    assert "probes took" in capsys.readouterr().out
    ds = store.load(tmp_path / "run.nc")
    assert ds.attrs["status"] == "complete"
    assert ds.attrs["notes"] == ""
    assert ds.sizes["step"] == 400
    np.testing.assert_array_equal(
        ds["phase"], riverval.make_schedule("wsd", peak_lr=0.2, steps=400, warmup=20).phases()
    )
    assert ds["train_loss"][-50:].mean() < 0.8 * ds["train_loss"][:10].mean()
    with pytest.raises(SystemExit) as stop:
        cli.main(["show", "run.nc"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    for name in ("hessian_top", "hessian_mean", "gradient_cosine", "gradient_cosine_null", "update_norm", "400"):
        assert name in shown


def test_a_watched_run_can_be_drawn(tmp_path):
    run = Run()
    with run.observe(record=["norms", "sharpness"], budget=1e-9, out=tmp_path / "run.nc") as watch:
        run.train(9, watch)
    page = report.write_report([("watched", watch.dataset())], tmp_path / "page.html")
    assert page.stat().st_size > 10_000
