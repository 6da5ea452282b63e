"""Schedules, parameters and curves that the tests of the laws share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

from riverval.curves import Curve
from riverval.laws import FittedLaw, known_law

SHARED = Path(os.environ.get("RIVERVAL_SHARED", Path(__file__).parents[2] / "shared"))

# Parameters of each law that give losses of about 3 at the rates below.
VALUES = {
    "annealing": {"L0": 2.5, "A": 0.6, "C": 4.0, "alpha": 0.45, "lam": 0.99},
    "forward-momentum": {"L0": 2.5, "A": 0.6, "C": 5e-5, "alpha": 0.45, "beta1": 0.99, "beta2": 0.999},
    "multi-power": {"L0": 2.5, "A": 0.6, "B": 400.0, "alpha": 0.45, "C": 2.0, "beta": 0.6, "gamma": 0.6},
    "functional-scaling": {"L0": 2.5, "A": 1.2, "N": 4e4, "s": 0.45, "c": 40.0, "q": 1.4},
    "noise-floor": {"L0": 2.5, "A": 0.6, "N": 400.0, "alpha": 0.45},
    "river-valley": {"L0": 2.5, "A": 0.5, "N": 0.3, "alpha": 0.45, "C": 600.0, "beta": 1.2, "p": 1.8},
    "equal-tau": {"L0": 2.5, "A": 0.6, "G": 0.1, "alpha": 0.45},
}
PEAK, WARMUP = 3e-4, 200


def known(name: str) -> FittedLaw:
    return known_law(name, VALUES[name])


def rates(total: int, shape: str = "constant", *, start: float = 0.8, floor: float = 0.1) -> np.ndarray:
    """A warmup, a plateau, and from the share `start` on a decay to `floor` of the peak: linear, cosine or step."""
    t = np.arange(total)
    z = np.clip((t - start * total) / ((1.0 - start) * total), 0.0, 1.0)
    falls = {"constant": 0.0 * z, "linear": z, "cosine": 0.5 - 0.5 * np.cos(np.pi * z), "step": (z > 0) * 1.0}
    return PEAK * np.minimum((t + 1.0) / WARMUP, 1.0) * (1.0 - (1.0 - floor) * falls[shape])


def made_curves(name: str, *, noise: float = 0.0, seed: int = 0, kept: float = 0.0) -> list[Curve]:
    """What the law itself says of four schedules, with noise on the logarithm (a share of it kept)."""
    rng = np.random.default_rng(seed)
    curves = []
    plans = (("constant", 0.8), ("linear", 0.6), ("cosine", 0.1), ("step", 0.5))
    for shape, start in plans:
        lr = rates(4000, shape, start=start)
        steps = np.arange(250, 4001, 50)
        noises = lfilter([np.sqrt(1 - kept**2)], [1.0, -kept], rng.standard_normal(steps.size))
        loss = known(name).predict(lr, steps).loss * np.exp(noise * noises)
        curves.append(Curve(shape, lr, steps, loss))
    return curves


def published_curves(size: str) -> dict[str, Curve]:
    """The curves of a size of the multi-power law's collection by schedule; skips the test without the data."""
    folder = SHARED / "data" / "curves" / "multi_power_law" / f"csv_{size.removesuffix('M')}"
    if not folder.is_dir():
        pytest.skip("the published curves are not here")
    curves = {}
    for path in sorted(folder.glob("*.csv")):
        step, lr, loss = np.loadtxt(path, delimiter=",", skiprows=1).T
        t = np.arange(int(step[-1]))
        # Rows hold the rate of the update that follows; jumps of wsdcon are one update wide.
        every = np.interp(t, step, lr)
        if path.stem.startswith("wsdcon"):
            every = lr[np.clip(np.searchsorted(step, t, side="right") - 1, 0, None)]
        warm = PEAK * np.minimum((t + 1.0) / 2160, 1.0)
        curves[path.stem] = Curve(path.stem, np.where(t < 2160, warm, every), step.astype(int), loss)
    return curves


TRAINING = ("cosine_24000", "constant_24000", "wsdcon_9")
