"""Independent random streams from one seed: what is drawn is a pure function of (seed, purpose, numbers)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What randomness is for; a new purpose gets a new number, and old ones never change."""

    MODEL = 0
    BATCHES = 1
    PROBES = 2
    AUGMENT = 3
    TRAINING = 4  # what a model draws by itself, e.g. for dropout


def generator(seed: int, stream: Stream, *numbers: int) -> np.random.Generator:
    """The generator of a purpose, e.g. ``generator(seed, Stream.BATCHES, epoch)``."""
    return np.random.default_rng([seed, int(stream), *numbers])


def torch_seed(seed: int, stream: Stream) -> int:
    """The same for torch: a 63-bit seed."""
    return int(generator(seed, stream).integers(2**63 - 1))
