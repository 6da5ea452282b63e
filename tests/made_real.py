"""Made runs of the real laboratory, with every number that its pictures show."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from riverval.provenance import provenance
from riverval.schedules import Schedule, make_schedule
from riverval.schema import build

WINDOWS = ("stable", "cooldown", "late stable", "early cooldown", "matched stable", "earlier stable")


def plan_of(cooldown: float = 0.25, steps: int = 400, shape: str = "linear", lr: float = 0.003) -> Schedule:
    return make_schedule("wsd", peak_lr=lr, steps=steps, cooldown=cooldown, warmup=20, shape=shape)


def trained(plan: Schedule, *, seed: int = 0, every: int = 20, **more: Any) -> xr.Dataset:
    """Losses that fall with the sum of the rates and stand above it by the rate; noise of each update by the seed.

    Two runs of one seed have the same losses until their rates differ.
    """
    rng, rate = np.random.default_rng(seed), plan.values()
    times = np.concatenate([[0.0], np.cumsum(rate)]) / plan.peak_lr
    height = np.concatenate([rate, [0.0]]) / plan.peak_lr
    loss = 0.6 + 1.6 / (1 + times / 60) + 0.25 * height
    states = np.unique([*range(0, plan.total + 1, every), plan.total])
    noise = rng.standard_normal((2, 5000))
    values = {
        "step": np.arange(plan.total), "lr": rate, "phase": plan.phases(),
        "train_loss": loss[:-1] + 0.08 * noise[0, : plan.total],
        "grad_norm": 1 + 0.2 * np.abs(noise[1, : plan.total]), "param_norm": 10 + 0.01 * np.arange(plan.total),
        "update_norm": rate * (90 + 5 * noise[1, : plan.total]),
        "eval_step": states, "val_loss": loss[states] + 0.05 + 0.02 * noise[1, states],
    }  # fmt: skip
    ds = build({**values, **more}, {}, "real")
    config = {"arch": "cnn", "seed": seed, "lr": plan.peak_lr, "schedule": plan.to_dict(), "steps": plan.total}
    return ds.assign_attrs(provenance("cnn on made images, " + plan.describe(), config=config, seed=seed))


def measured(plan: Schedule | None = None, **more: Any) -> xr.Dataset:
    """A run with every measurement of the laboratory; some were made at some of the states only."""
    plan = plan or plan_of()
    rng = np.random.default_rng(7)
    states = np.array([20, 60, 100, 140, 180, 220, 260, 300, 320, 340, 360, 380, 400])
    n, cool = len(states), states >= 300
    late = np.where(cool, 1.0, np.nan)
    early = np.where((states < 400) & ~np.isin(states, (320, 360)), 1.0, np.nan)
    rate = np.concatenate([plan.values(), [0.0]])[states]
    with np.errstate(divide="ignore"):
        threshold = np.where(rate > 0, 2 / rate, np.inf)
    alpha = np.linspace(0, 1, 11)
    lines = np.stack([1.1 + 0.4 * (alpha - 0.5) ** 2, 1.2 - 0.3 * alpha + 0.05 * np.sin(6 * alpha)])
    middle = lines[:, [5]]
    chord = lines[:, [0]] + alpha * (lines[:, [-1]] - lines[:, [0]])
    dip = lines[:, [0, -1]].mean(1) - middle[:, 0]
    components = np.arange(9)
    shares = np.array([0.5, 0.65, 0.45, 0.6, 0.5, 0.4])[:, None] * 0.4**components
    values = {
        "probe_step": states, "probe_lr": rate,
        "hessian_top": late * (90 + 0.5 * (states - 300)), "hessian_top_residual": late * 2,
        "hessian_top_bound": late * 5,
        "hessian_mean": late * 0.4, "hessian_mean_error": late * 0.1, "hessian_threshold": threshold,
        "preconditioned_top": late * (8000 + 60 * (states - 300)), "preconditioned_top_bound": late * 300,
        "preconditioned_mean": late * 100, "preconditioned_mean_error": late * 20,
        "preconditioned_threshold": 19 * threshold,
        "gradient_cosine": early * (0.08 + 0.02 * rng.random(n)), "gradient_cosine_null": early * 0.0,
        "gradient_cosine_null_std": early * 0.002,
        "quasi_convexity": early * (0.8 + 0.3 * rng.random(n)), "quasi_convexity_null_std": early * 0.02,
        "quasi_convexity_average": early * (0.9 + 0.3 * rng.random(n)),
        "quasi_convexity_average_null_std": early * 0.02,
        "quasi_convexity_stable_average": early * (0.5 + 0.3 * rng.random(n)),
        "quasi_convexity_stable_average_null_std": early * 0.02,
        "probe_loss": early * (0.9 + 1.4 / (1 + states / 60)), "probe_loss_error": early * 0.03,
        "pair": ["stable", "cooldown"], "alpha": alpha, "interpolation_loss": lines,
        "interpolation_loss_error": np.full_like(lines, 0.006),
        "interpolation_null": chord - 4 * dip[:, None] * alpha * (1 - alpha),
        "interpolation_dip": dip, "interpolation_dip_error": [0.004, 0.005], "interpolation_rise": [0.1, -0.01],
        "interpolation_rise_error": [0.004, 0.002], "interpolation_start": [236, 300], "interpolation_stop": [300, 400],
        "window": list(WINDOWS), "component": components, "pca_share": shares, "pca_share_error": 0.05 * shares,
        "pca_null": np.tile(0.61 * 0.4**components, (6, 1)), "drift_share": [0.2, 0.5, 0.1, 0.4, 0.15, 0.12],
        "drift_null": np.full(6, 0.05), "phase_cosine": 0.11, "phase_cosine_null": 0.002,
        "window_pair": ["late stable, early cooldown", "late stable, earlier stable"], "window_cosine": [0.3, 0.25],
        "window_cosine_null": [0.002, 0.002],
        "direction_norm": [np.nan, np.nan, 3.0, 8.0, 3.6, 2.8],
        "direction_norm_low": [np.nan, np.nan, 2.5, 6.0, 3.0, 2.4],
        "direction_norm_high": [np.nan, np.nan, 3.9, 9.1, 4.5, 3.3], "direction_null": 1.1, "direction_null_error": 0.1,
        "direction_curvature": [np.nan, np.nan, 1.0, 5.0, 1.5, 0.9], "direction_curvature_null": 0.3,
        "direction_ratio": 2.67, "direction_ratio_low": 1.9, "direction_ratio_high": 3.3,
        "direction_ratio_matched": 2.2, "direction_ratio_matched_low": 0.9, "direction_ratio_matched_high": 2.9,
        **grouped("bin", "predictability_bin", "", 6, states, early), "bin_ngram_loss": np.linspace(0.6, 3.5, 6),
        "bin_reference": "3-gram",
        **grouped("model_bin", "model_bin", "model_", 5, states, early),
        **grouped("class", "class", "class_", 10, states, early),
    }  # fmt: skip
    return trained(plan, **{**values, **more})


def grouped(of: str, axis: str, gains: str, count: int, states: Any, at: Any) -> dict[str, Any]:
    """Losses of groups, of which the one of most entropy falls most in the cooldown."""
    entropy = np.linspace(0.4, 3.2, count)
    loss = at[:, None] * entropy * (1 + 0.5 / (1 + states[:, None] / 100))
    out = {
        axis: np.arange(count), f"{of}_entropy": entropy, f"{of}_share": np.full(count, 1 / count), f"{of}_loss": loss,
        f"{of}_loss_error": 0.02 * loss, f"{of}_model_entropy": 0.9 * loss,
    }  # fmt: skip
    for k, name in enumerate(("stable_gain", "settled_gain", "cooldown_gain")):
        gain = 0.1 + 0.05 * k * entropy
        out |= {f"{gains}{name}": gain, f"{gains}{name}_error": 0.1 * gain}
        out |= {f"{gains}{name}_null": np.full(count, gain.mean()), f"{gains}{name}_null_std": np.full(count, 0.01)}
    return out


# --- studies ---------------------------------------------------------------------------------------------------------
def studied(name: str, plans: list[dict[str, Any]], *, seeds: int = 3, **more: Any) -> xr.Dataset:
    """A study whose plans have losses `loss`, training losses a third lower, and noise by seed that they share."""
    rng = np.random.default_rng(3)
    shared, own = 0.03 * rng.standard_normal((seeds, 1)), 0.004 * rng.standard_normal((seeds, len(plans)))
    names = [plan["plan"] for plan in plans]
    loss = np.array([plan["loss"] for plan in plans]) + shared + own
    outcome = np.stack([loss, loss * 2 / 3 + own], axis=-1)
    against = outcome[:, [names.index(plan.get("against", plan["plan"])) for plan in plans]]
    states = np.arange(0, 401, 40)
    fall = 1.5 / (1 + states / 60)
    told = {"arch": "cnn", "schedule": "wsd", "shape": "linear", "updates": 400, "cooldown": 0.2, "peak": 0.003,
            "batch": 32, "width": 1.0, "parameters": 1000, "warmup": 20}  # fmt: skip
    of = {f"plan_{key}": [plan.get(key, default) for plan in plans] for key, default in told.items()}
    rates = np.stack([0.003 * np.clip((1 - states / 400) / max(c, 0.05), 0, 1) for c in of["plan_cooldown"]])
    gap = outcome - against
    error = gap.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.full(gap.shape[1:], np.nan)
    values = {
        "plan": names, "seed": np.arange(seeds), "metric": ["val_loss", "train_loss"], "outcome": outcome,
        "outcome_mean": outcome.mean(0), "outcome_error": np.full(outcome.shape[1:], 0.01),
        "outcome_seeds": np.full(outcome.shape[1:], seeds), "outcome_gap": gap.mean(0), "outcome_gap_error": error,
        "outcome_gap_low": gap.mean(0) - 4.3 * error, "outcome_gap_high": gap.mean(0) + 4.3 * error,
        "plan_against": [plan.get("against", plan["plan"]) for plan in plans], **of,
        "eval_step": states, "plan_lr": np.where(states == 400, np.nan, rates),
        "val_loss": loss[:, :, None] + fall + 0.02 * rng.standard_normal((seeds, len(plans), len(states))),
    }  # fmt: skip
    ds = build(
        {**values, **more}, {"val_loss": ("seed", "plan", "eval_step"), "plan_lr": ("plan", "eval_step")}, "real"
    )
    return ds.assign_attrs(provenance(f"study {name} of cnn", config={"study": name}, seed=0))


def fractions(**more: Any) -> xr.Dataset:
    plans = [{"plan": "cosine", "loss": 1.0, "schedule": "cosine", "cooldown": 0.95}]
    lengths = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 0.95)
    plans += [{"plan": f"wsd {c:g}", "loss": 1.02 - 0.04 * c, "cooldown": c, "against": "cosine"} for c in lengths]
    match = {
        "match_fraction": [0.41, np.nan], "match_fraction_error": [0.06, np.nan], "match_fraction_low": [0.2, np.nan],
        "match_fraction_high": [0.6, np.nan],
    }  # fmt: skip
    return studied("wsd-vs-cosine", plans, **{**match, **more})


def decays(**more: Any) -> xr.Dataset:
    plans = []
    for rate in (0.0015, 0.003, 0.006):
        for c in (0.1, 0.4):
            for k, shape in enumerate(("linear", "1-sqrt", "cosine", "square", "inverse")):
                plan = {"plan": f"{shape} {c} at {rate}", "against": f"linear {c} at {rate}", "loss": 1 + 0.01 * k * c}
                plans.append({**plan, "shape": shape, "cooldown": c, "peak": rate})
    return studied("shapes", plans, **more)


def widths(**more: Any) -> xr.Dataset:
    plans = []
    for w, count in ((0.5, 3000), (1.0, 10000), (2.0, 38000), (4.0, 150000)):
        of = {"width": w, "parameters": count}
        plans.append({"plan": f"cosine x{w:g}", "loss": 1 - 0.1 * w, "schedule": "cosine", "cooldown": 0.95, **of})
        plans.append({"plan": f"wsd x{w:g}", "loss": 1.02 - 0.1 * w, "against": f"cosine x{w:g}", **of})
    return studied("width", plans, **more)


def nets(**more: Any) -> xr.Dataset:
    plans = []
    for arch in ("cnn", "mlp", "vit", "mixer"):
        plans.append({"plan": f"cosine {arch}", "loss": 1.0, "schedule": "cosine", "arch": arch})
        plans.append({"plan": f"wsd {arch}", "loss": 1.01, "against": f"cosine {arch}", "arch": arch})
    return studied("architectures", plans, **more)


def budgets(**more: Any) -> xr.Dataset:
    updates = np.array([[[100, 200, 400]] * 4, [[100, 200, 400], [100, 210, 430], [100, 210, 430], [62, 125, 250]]])
    rng = np.random.default_rng(5)
    offset = np.array([0, 0.01, 0.03, -0.01])[None, :, None, None]
    losses = 2 - 0.3 * np.log10(updates)[..., None] + offset + 0.01 * rng.standard_normal((2, 4, 3, 3))
    gap = losses - losses[:, :1]
    values = {
        "accounting": ["path length", "total compute"], "family": ["WSD", "WSD-S", "cyclic cosine", "cosine"],
        "checkpoint": [1, 2, 3], "checkpoint_updates": updates, "checkpoint_seed_loss": losses,
        "checkpoint_loss": losses.mean(-1), "checkpoint_loss_error": losses.std(-1, ddof=1) / np.sqrt(3),
        "gap": gap.mean(-1), "gap_error": gap.std(-1, ddof=1) / np.sqrt(3), "family_updates": [[430, 400, 400, 700],
        [430, 430, 430, 437]],
    }  # fmt: skip
    return studied("wsd-s", [{"plan": "WSD to 400", "loss": 1.0}], **{**values, **more})


def criteria(ds: xr.Dataset) -> xr.Dataset:
    """A study with the acceptance tests of its plans that are compared with another; the last was not measured."""
    names = [
        "1 final training loss, minus that of cosine decay", "2a stable segment, ends minus middle",
        "3 top Hessian eigenvalue, end over start of the cooldown", "4 norm of Hv, early cooldown over late stable",
        "5 share of states with tau above 0", "6 mean cosine of update and minus gradient",
    ]  # fmt: skip
    rng, plans = np.random.default_rng(11), ds.sizes["plan"]
    null = np.array([0.0, 0.0, 1.0, 1.0, 0.5, 0.0])
    seeds = null + [0.0, 0.1, 0.4, 0.8, 0.49, 0.05] + 0.02 * rng.standard_normal((ds.sizes["seed"], plans, 6))
    seeds[:, (ds["plan"] == ds["plan_against"]).to_numpy()] = np.nan
    seeds[:, :, -1] = np.nan
    value = seeds.mean(0)
    values = {
        "criterion": names, "criterion_seed_value": seeds, "criterion_value": value,
        "criterion_error": 0.02 + 0 * value, "criterion_low": value - 0.086, "criterion_high": value + 0.086,
        "criterion_null": null + 0 * value, "criterion_bound": np.array([0, 0, 1, 1, 0.95, 0]) + 0 * value,
        "criterion_verdict": np.where(np.isfinite(value), "holds", "not measured"),
        "criterion_held": np.where(np.isfinite(value), 3, 0),
    }  # fmt: skip
    part = build(values, {}, "real")
    return ds.assign_coords(part.coords).assign(part.data_vars)


def probed(**more: Any) -> xr.Dataset:
    """The study `paper`."""
    plans = [
        {"plan": "wsd 0.2", "loss": 1.01, "against": "cosine"},
        {"plan": "cosine", "loss": 1.0, "schedule": "cosine"},
    ]
    return criteria(studied("paper", plans, **more))


def probed_nets(**more: Any) -> xr.Dataset:
    return criteria(nets(**more))


def noises(**more: Any) -> xr.Dataset:
    plans = []
    for batch in (8, 32, 128):
        for rate in (0.0015, 0.003, 0.006):
            of = {"batch": batch, "peak": rate, "updates": 12800 // batch, "cooldown": 0.2 + 0.01 / batch}
            loss = 1 + 0.1 * (rate / 0.003) / batch**0.5
            plans.append(
                {"plan": f"batch {batch}, rate {rate}", "against": f"batch {batch}, rate 0.003", "loss": loss, **of}
            )
    powers = {
        "gain_rate_exponent": 0.9, "gain_rate_exponent_error": 0.1, "gain_batch_exponent": -0.45,
        "gain_batch_exponent_error": 0.06, "gain_batch_exponent_expected": -0.5,
        "hill_rate_exponent": 0.98, "hill_rate_exponent_error": 0.04, "hill_batch_exponent": -0.51,
        "hill_batch_exponent_error": 0.03,
        "metric": ["val_loss", "cooldown_gain"],
    }  # fmt: skip
    return studied("noise", plans, **{**powers, **more})
