"""The summary of a run: each quantity beside its null, from the dataset alone. No torch."""

from __future__ import annotations

import numpy as np

from riverval.experiments.summary import summary_rows
from riverval.schedules import make_schedule
from riverval.schema import build

from .test_acceptance import KNOWN

PLAN = make_schedule("wsd", peak_lr=0.1, steps=100, warmup=10, cooldown=0.3)


def rows(**values):
    return {row[0]: row[1:] for row in summary_rows(build(values, {}, "real"))}


def test_the_size_of_updates_is_held_against_that_of_the_rates():
    series = {"step": np.arange(100), "lr": PLAN.values(), "phase": PLAN.phases()}
    rate = PLAN.values()[70:].mean() / 0.1
    found = rows(**series, update_norm=7.0 * PLAN.values())
    assert found == {"update size, cooldown / stable": (f"{rate:.3g}", f"{rate:.3g} in proportion to the rate")}
    # Updates that shrink faster than the rate.
    measured, null = rows(**series, update_norm=PLAN.values() ** 2)["update size, cooldown / stable"]
    assert float(measured) < float(null.split()[0])
    flat = make_schedule("constant", peak_lr=0.1, steps=100)
    assert not rows(step=np.arange(100), lr=flat.values(), phase=flat.phases(), update_norm=np.ones(100))


def test_measures_stand_beside_their_nulls():
    extra = {
        "hessian_threshold": [np.nan, 20.0, np.nan, 30.0, np.nan, 900.0],
        "hessian_mean": [np.nan, 0.5, np.nan, np.nan, np.nan, 0.4],
        "quasi_convexity_null_std": [0.1, 0.2, 0.3, np.nan, 0.4, np.nan],
        "window": ["stable", "late stable", "early cooldown"], "direction_null": 0.2, "direction_null_error": 0.01,
        "direction_norm": [np.nan, 1.0, 1.8], "direction_norm_low": [np.nan, 0.5, 1.1],
        "direction_norm_high": [np.nan, 1.5, 2.6],
    }  # fmt: skip
    found = rows(**KNOWN, **extra)
    assert found["stable segment: ends minus middle"] == ("0.100 ± 0.010", "> 0 in any convex bowl")
    assert found["cooldown segment: largest rise"] == ("0.0040 ± 0.0020", "0 if the descent is monotone")
    assert found["top Hessian eigenvalue, cooldown start"] == (
        "10", "0.5 of a random direction; 20 borne by gradient descent"
    )  # fmt: skip
    assert found["top Hessian eigenvalue, end / start"][0] == "2"
    assert found["norm of Hv, late stable"] == ("1 [0.5, 1.5]", "0.200 ± 0.010 for random directions")
    assert "norm of Hv, stable" not in found
    assert found["norm of Hv, early cooldown / matched stable"] == ("1.2 [0.7, 1.9]", "1 if equally sharp")
    tau = found["tau above 0 towards the last state"]
    assert tau == ("100% of 4, median 0.75", "50%, 0.00 ± 0.25 towards a random point")
    assert found["mean cosine of update, minus gradient"] == ("0.130 ± 0.013", "0.01 for a shuffled gradient")
