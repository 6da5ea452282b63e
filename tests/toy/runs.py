"""Small runs of the simulation, for its tests and those of its summary."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from riverval.toy import StraightRiver, simulate

VALLEY = StraightRiver(0.2, (0.5, 2.0, 8.0))


def run(schedule, *, loss=VALLEY, sigma=1.0, replicates=8, seed=0, **options):
    return simulate(loss, schedule, sigma=sigma, replicates=replicates, rng=np.random.default_rng(seed), **options)


@dataclass(frozen=True)
class Interrupting(StraightRiver):
    """Ctrl-C at the n-th gradient."""

    at: int = 0

    def gradient_rows(self, w, out):
        left = self.__dict__.get("left", self.at)
        if left == 0:
            raise KeyboardInterrupt
        object.__setattr__(self, "left", left - 1)
        super().gradient_rows(w, out)


def blow_up_replicate_2(monkeypatch):
    """Start the replicate of that number so high on the hill that its loss is not finite."""
    module = sys.modules["riverval.toy._engine"]
    inner = module._start

    def one_blown_up(*args):
        w = inner(*args)
        w[1:, 2] = 1e200
        return w

    monkeypatch.setattr(module, "_start", one_blown_up)
