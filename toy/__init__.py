"""Analytic river valleys: losses whose river and hills are known, SGD on them, and its exact solution.

`riverval.toy.minimal` is the whole idea on one page; start there.
"""

from .exact import (
    Moments,
    exact,
    moments,
    optimal_decay,
    optimal_final_hill,
    stationary_hill,
    stationary_variance,
)
from .losses import LOSSES, StraightRiver, make_loss
from .setting import Setting
from .simulate import UnstableWarning, simulate
from .summary import Row, summarise

__all__ = [
    "LOSSES",
    "Moments",
    "Row",
    "Setting",
    "StraightRiver",
    "UnstableWarning",
    "exact",
    "make_loss",
    "moments",
    "optimal_decay",
    "optimal_final_hill",
    "simulate",
    "stationary_hill",
    "stationary_variance",
    "summarise",
]
