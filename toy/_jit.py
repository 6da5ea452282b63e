"""The functions of `riverval.toy._elementary` for use in compiled loops. The only importer of numba beside those."""

from __future__ import annotations

import math

import numba
from numba.extending import overload, register_jitable

from . import _elementary
from ._elementary import LEAST_POWER, POWERS_OF_TWO

_jit = numba.njit(nogil=True, error_model="numpy")


# NumPy's ways to the bits of a number are not compiled well, or not at all.
@overload(_elementary.power_of_two, jit_options={"error_model": "numpy"})
def _power_of_two(k):  # type: ignore[no-untyped-def]
    return lambda k: POWERS_OF_TWO[int(k if k == k else 0.0) - LEAST_POWER]


@overload(_elementary.split, jit_options={"error_model": "numpy"})
def _split(x):  # type: ignore[no-untyped-def]
    def split(x):  # type: ignore[no-untyped-def]
        m, e = math.frexp(x if x > 0.0 and x < math.inf else 0.5)
        return m, float(e)

    return split


@overload(_elementary.edge, jit_options={"error_model": "numpy"})
def _edge(x):  # type: ignore[no-untyped-def]
    def edge(x):  # type: ignore[no-untyped-def]
        if x > 0.0:
            return 0.0 if x < math.inf else math.inf
        return -math.inf if x == 0.0 else math.nan

    return edge


@_jit
def sqrt(x):  # type: ignore[no-untyped-def]
    return math.sqrt(x)


register_jitable(error_model="numpy")(_elementary.sin_cos)
sin, cos, exp, log = (_jit(f) for f in (_elementary.sin, _elementary.cos, _elementary.exp, _elementary.log))
