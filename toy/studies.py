"""The named studies: each the settings behind one picture of the papers or of ours.

>>> from riverval.toy.studies import run_study
>>> ds = run_study("crossing", seed=0, quick=True, replicates=50)
>>> round(float(ds["crossing_time"]), 6)
400.0
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_int, pick
from .._typing import Progress
from .study import Study
from .study_cooldowns import FRACTION, SHAPES_STUDY
from .study_paths import AVERAGING, BIGRAM
from .study_rates import CROSSING, SHARPENING
from .study_schedules import SCHEDULES
from .study_valley import VALLEY

STUDIES: dict[str, Study] = {
    s.name: s for s in (VALLEY, SCHEDULES, SHAPES_STUDY, FRACTION, CROSSING, BIGRAM, SHARPENING, AVERAGING)
}


def run_study(
    name: str, *, seed: int = 0, quick: bool = False, progress: Progress | None = None, **changes: Any
) -> xr.Dataset:
    """Run a study by its name; the same seed gives the same bits.

    Args:
        name: a key of `STUDIES`.
        seed: of all its randomness, >= 0.
        quick: the small size, of seconds.
        progress: called now and then as ``progress(thousandths_done, values)``.
        **changes: numbers of the study's setting that shall be others, e.g. ``replicates=100``.

    Returns:
        A dataset in the schema, for `riverval.plots_toy.study` to draw.

    Raises:
        InputError: an unknown study or number, or a value out of range.
        KeyboardInterrupt: Ctrl-C; half of a study says nothing.
    """
    study = pick("study", name, STUDIES)
    check_int("seed", seed, low=0)
    return study.run(study.make(quick=quick, **changes), np.random.default_rng(seed), progress)
