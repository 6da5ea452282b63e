"""riverval: learning-rate schedules in river-valley loss landscapes.

Theory, simulation and real training of warmup-stable-decay in one place, each held against the others. The names below
are loaded when they are first used, so that ``import riverval`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .compare import scorecard as scorecard
    from .errors import InputError as InputError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import RivervalError as RivervalError
    from .errors import StoreError as StoreError
    from .observer import observe as observe
    from .schedules import SCHEDULES as SCHEDULES
    from .schedules import WSD as WSD
    from .schedules import WSDS as WSDS
    from .schedules import Schedule as Schedule
    from .schedules import make_schedule as make_schedule
    from .schedules import torch_scheduler as torch_scheduler
    from .shapes import SHAPES as SHAPES
    from .shapes import make_shape as make_shape
    from .store import load as load
    from .store import save as save

# Public name -> the module that defines it.
_EXPORTS = {
    "InputError": "errors",
    "MissingExtraError": "errors",
    "RivervalError": "errors",
    "StoreError": "errors",
    "SCHEDULES": "schedules",
    "WSD": "schedules",
    "WSDS": "schedules",
    "Schedule": "schedules",
    "make_schedule": "schedules",
    "torch_scheduler": "schedules",
    "SHAPES": "shapes",
    "make_shape": "shapes",
    "load": "store",
    "save": "store",
    "scorecard": "compare",
    "observe": "observer",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
