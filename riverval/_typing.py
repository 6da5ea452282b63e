"""Names for the types that signatures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Progress = Callable[[int, Mapping[str, float]], None]
"""Called as ``progress(updates_done, {"loss": ..., "lr": ...})``; simulations and training take it as an argument."""

__all__ = ["ArrayLike", "FloatArray", "IntArray", "NDArray", "Progress"]
