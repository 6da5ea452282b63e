"""What every command of this room that makes a run does with it: the dataset and its picture into the run's folder."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from .. import store
from ..console import say


def keep(ds: xr.Dataset, folder: Path, picture: str, *, overwrite: bool) -> None:
    """Write and say so; the dataset first, as it cannot be made again as the picture can."""
    say(f"wrote {store.save(ds, folder / store.RUN_FILE, overwrite=overwrite)}")
    if ds.sizes["eval_step"] < 2:  # interrupted at once: nothing to draw, nor may an older picture stand beside it
        (folder / picture).unlink(missing_ok=True)
        return
    from .. import plots
    from ..report import run_figures

    (figure,) = run_figures(ds)
    say(f"wrote {plots.write(figure, folder / picture)}")
