"""Made datasets whose answers are known, for tests of comparison and pages."""

from __future__ import annotations

import numpy as np
import xarray as xr

from riverval import schema
from riverval.provenance import provenance
from riverval.schedules import Schedule, make_schedule

WSD = make_schedule("wsd", peak_lr=0.1, steps=400, cooldown=0.25)


def valley(
    plan: Schedule, *, slope: float, hill: float, every: int = 5, noise: float = 0.0, seed: int = 0
) -> xr.Dataset:
    """A theory dataset whose loss is -slope S + hill lr/peak: river and hill known exactly."""
    state = np.unique([*range(0, plan.total + 1, every), plan.total])
    times = np.concatenate([[0.0], np.cumsum(plan.values())])
    rates = np.concatenate([plan.values(), [0.0]]) / plan.peak_lr
    loss = -slope * times[state] + hill * rates[state] + noise * np.random.default_rng(seed).standard_normal(len(state))
    values = {
        "step": np.arange(plan.total),
        "lr": plan.values(),
        "phase": plan.phases(),
        "eval_step": state,
        "loss": loss,
    }
    ds = schema.build(values, {}, "theory")
    return ds.assign_attrs(provenance("a made valley", config={"schedule": plan.to_dict()}, seed=seed))
