"""Names for the array types that signatures use."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

__all__ = ["ArrayLike", "FloatArray", "IntArray", "NDArray"]
