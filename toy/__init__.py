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
from .noise import NOISES, Noise, make_noise
from .optimizers import OPTIMIZERS, EMAAverage, Optimizer, TailAverage, make_optimizer
from .quadratics import PlaneRiver, RotatedQuadratic
from .setting import Setting
from .simulate import UnstableWarning, simulate, simulate_many
from .summary import Row, summarise
from .symbolic import SymbolicLoss
from .valleys import (
    BentBowl,
    BentRiver,
    CircleRiver,
    HyperbolaRiver,
    PowerLawRiver,
    QuarticWalls,
    Rosenbrock,
    SharpeningValley,
)

__all__ = [
    "LOSSES",
    "NOISES",
    "OPTIMIZERS",
    "BentBowl",
    "BentRiver",
    "CircleRiver",
    "EMAAverage",
    "HyperbolaRiver",
    "Moments",
    "Noise",
    "Optimizer",
    "PlaneRiver",
    "PowerLawRiver",
    "QuarticWalls",
    "Rosenbrock",
    "RotatedQuadratic",
    "Row",
    "Setting",
    "SharpeningValley",
    "StraightRiver",
    "SymbolicLoss",
    "TailAverage",
    "UnstableWarning",
    "exact",
    "make_loss",
    "make_noise",
    "make_optimizer",
    "moments",
    "optimal_decay",
    "optimal_final_hill",
    "simulate",
    "simulate_many",
    "stationary_hill",
    "stationary_variance",
    "summarise",
]
