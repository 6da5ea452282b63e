"""What a toy run says in a few rows: simulated means against their exact values, before and after each cooldown."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ..segments import Phase, windows_of


@dataclass(frozen=True)
class Row:
    """One quantity at one state.

    `mean` and `error` (its standard error, nan for a single replicate) are of the simulated replicates; `exact` is the
    expectation and `exact_error` the exact standard error of a mean over as many replicates, nan where no theory is
    known. `z` = (mean - exact) / exact_error, nan where there is no theory or nothing is random, and in a run of which
    any replicate diverged: `mean` is still that of all.
    """

    quantity: str
    state: int
    mean: float
    error: float
    z: float
    exact: float
    exact_error: float


def summarise(ds: xr.Dataset) -> list[Row]:
    """Hill and river loss at both ends of each cooldown, and the losses of the last state, none twice.

    After those of the iterate, the last ones of an average, where there is one.

    Args:
        ds: what `riverval.toy.simulate` returned, whole or interrupted.
    """
    recorded = set(ds["eval_step"].values.tolist())
    last = max(recorded)
    rows, told = [], set()
    for k, ends in enumerate(windows_of(ds["phase"].values, Phase.COOLDOWN), start=1):
        for name in ("hill", "river"):
            for word, state in zip(("before", "after"), ends, strict=True):
                if state in recorded:
                    rows.append(row_of(ds, name, state, f"{name} loss {word} cooldown {k}"))
                    told.add((name, state))
    names = [name for name in ("hill", "river", "loss") if (name, last) not in told]
    rows += [row_of(ds, name, last, "final loss" if name == "loss" else f"final {name} loss") for name in names]
    if "average_loss" in ds:
        rows += [row_of(ds, f"average_{name}", last, f"final {name} loss of the average") for name in ("hill", "river")]
        rows.append(row_of(ds, "average_loss", last, "final loss of the average"))
    return rows


def row_of(ds: xr.Dataset, name: str, state: int, quantity: str) -> Row:
    """The row of one variable (loss, river or hill, or that of the average) at one recorded state."""
    at = ds.sel(eval_step=state)
    count = ds.sizes["replicate"]
    exact, std = (float(at[known]) if known in at else math.nan for known in (f"exact_{name}", f"exact_{name}_std"))
    root = math.sqrt(count)
    if name in at:
        values = at[name].values
        with np.errstate(invalid="ignore", over="ignore"):  # diverged replicates are shown as they are
            mean = float(values.mean())
            error = float(values.std(ddof=1)) / root if count > 1 else math.nan
    else:
        mean, error = float(at[f"mean_{name}"]), float(at[f"mean_{name}_error"])
    told = std > 0 and math.isfinite(exact) and not ds["diverged"].values.any()
    z = (mean - exact) / (std / root) if told else math.nan
    return Row(quantity, state, mean, error, z, exact, std / root)
