"""The studies `shapes` and `fraction`: what a cooldown leaves of the hill loss, and what it costs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .._checks import check_int, check_number
from .._typing import FloatArray
from ..errors import InputError
from ..schedules import Schedule
from ..shapes import SHAPES, Linear, Shape, make_shape
from ..theory import stationary_hill
from ..theory_decay import crossing, exact_hill_ratio, hill_ratio
from ..theory_runs import checkpoint_after, cooldown_length, power_river_length
from ._loss import Loss
from .losses import StraightRiver
from .noise import Anisotropic
from .predict_decay import cooldown
from .setting import STATIONARY
from .study import Bench, Number, Study, StudySetting, mean_error, number_of, toy_dataset
from .valleys import PowerLawRiver, QuarticWalls

OPTIMAL = "optimal"


# --- shapes ----------------------------------------------------------------------------------------------------------
CROSSINGS = (
    (0.0, "cosine", "linear", 10.0, 100.0),
    (0.0, "cosine", "1-sqrt", 100.0, 1000.0),
    (0.1, "inverse", "linear", 1.0, 3.0),
    (0.1, "inverse", "1-sqrt", 1.0, 10.0),
    (0.1, "cosine", "inverse", 100.0, 1000.0),
)
"""Floor, the shape that is lower beyond the crossing, the other one, and bounds on the place."""


@dataclass(frozen=True, kw_only=True)
class ShapesSetting(StudySetting):
    """Every registered shape to zero and to a tenth, in hills without a river.

    Args:
        product: lr h of the plateau, but smaller in short cooldowns, so that each has `fewest` updates.
        modes: hill directions, all of the same curvature; more samples for the same noise.
        probes: simulated lengths in relaxation times.
        points: of the curves, from 1 to 1000 relaxation times.
        fewest: updates of the shortest simulated cooldown.
    """

    replicates: int = 1000
    product: float = 0.05
    modes: int = 4
    probes: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    points: int = 121
    fewest: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("product", self.product, low=0.0, high=1.0, open_low=True, what="lr h of the plateau")
        check_int("points", self.points, low=2)
        check_int("fewest", self.fewest, low=2)

    def plateau(self, x: float) -> tuple[float, int]:
        """(lr h, updates) of a cooldown of x relaxation times."""
        steps = max(round(x / self.product), self.fewest)
        return x / steps, steps


def shape_of(name: str, floor: float) -> Shape | None:
    """The shape to that floor, or None for the optimal decay."""
    return None if name == OPTIMAL else make_shape(name, floor=floor)


def shapes_to(floor: float) -> list[str]:
    """The optimal decay and the registered shapes that reach the floor."""
    return [OPTIMAL, *(name for name, cls in SHAPES.items() if floor > 0 or cls.lowest_floor_is_zero)]


def measure_shapes(s: ShapesSetting, bench: Bench) -> xr.Dataset:
    """Curves of the small-rate limit, and simulated cooldowns beside the exact recursion of the same length."""
    decays, floors = [OPTIMAL, *SHAPES], (0.0, 0.1)
    relaxations = np.geomspace(1.0, 1000.0, s.points)
    limits = np.full((len(floors), len(decays), s.points), np.nan)
    for i, floor in enumerate(floors):
        for name in shapes_to(floor):
            limits[i, decays.index(name)] = hill_ratio(shape_of(name, floor), relaxations)
    found = np.full((3, len(floors), len(decays), len(s.probes)), np.nan)  # mean, error, exact
    for k, x in enumerate(s.probes):
        asked = [(floor, name) for floor in floors for name in shapes_to(floor)]
        for (floor, name), told in zip(asked, _final_ratios(s, x, asked, bench), strict=True):
            found[:, floors.index(floor), decays.index(name), k] = told
    values: dict[str, Any] = {
        "floor": list(floors),
        "decay": decays,
        "relaxations": relaxations,
        "probe_relaxations": list(s.probes),
        "expected_hill_ratio": limits,
    }
    values |= dict(zip(("hill_ratio", "hill_ratio_error", "exact_hill_ratio"), found, strict=True))
    places = [
        crossing(make_shape(a, floor=f), make_shape(b, floor=f), low=lo, high=hi) for f, a, b, lo, hi in CROSSINGS
    ]
    values |= {
        "crossing": [f"{first} below {second}" for _, first, second, _, _ in CROSSINGS],
        "crossing_floor": [floor for floor, *_ in CROSSINGS],
        "crossing_at": places,
        "crossing_ratio": [
            float(hill_ratio(make_shape(name, floor=floor), x))
            for (floor, name, *_), x in zip(CROSSINGS, places, strict=True)
        ],
    }
    return toy_dataset(values, {})


def _final_ratios(s: ShapesSetting, x: float, asked: list[tuple[float, str]], bench: Bench) -> list[FloatArray]:
    """Mean, standard error and exact value of the hill loss after each cooldown over that of the plateau."""
    lr, steps = s.plateau(x)
    shapes = [shape_of(name, floor) for floor, name in asked]
    plans = [cooldown(shape, lr, 1.0, steps) for shape in shapes]
    runs = bench.compare(
        StraightRiver(0.0, (1.0,) * s.modes), plans,
        sigma=1.0, start=STATIONARY, replicates=s.replicates, every=steps + 1,
    )  # fmt: skip
    unit = s.modes * float(stationary_hill(lr, 1.0, 1.0))
    out = []
    for shape, ds in zip(shapes, runs, strict=True):
        mean, error = mean_error(ds["hill"].values[:, -1] / unit)
        out.append(np.array([mean, error, exact_hill_ratio(shape, lr, 1.0, steps)]))
    return out


def shapes_numbers(ds: xr.Dataset) -> list[Number]:
    """The crossings by theory, and every shape at about thirty relaxation times."""
    out = []
    for name, place, floor in zip(*(ds[n].values for n in ("crossing", "crossing_at", "crossing_floor")), strict=True):
        out.append(Number(f"x from which on {name}, floor {floor:g}", math.nan, math.nan, float(place), exact=False))
    k = int(np.argmin(np.abs(np.log(ds["probe_relaxations"].values / 30.0))))
    at = ds.isel(probe_relaxations=k)
    x = float(at["probe_relaxations"])
    for floor in ds["floor"].values:
        for name in shapes_to(float(floor)):
            one = at.sel(floor=floor, decay=name)
            told = f"H_T / H at x = {x:g}, {name} to {floor:g}"
            out.append(number_of(one, told, "hill_ratio", "hill_ratio_error", "exact_hill_ratio"))
    return out


SHAPES_STUDY = Study(
    name="shapes",
    summary="which decay shape leaves the least hill loss depends on the length of the cooldown, x = lr h T",
    source="derived; the shapes are those of arXiv:2404.06395, 2405.18392 and 2410.05192",
    setting=ShapesSetting,
    parts=lambda s: len(s.probes),
    measure=measure_shapes,
    numbers=shapes_numbers,
    quick={"replicates": 100, "product": 0.1, "fewest": 100, "probes": (1.0, 3.0, 10.0, 30.0, 100.0), "points": 61},
)


# --- fraction --------------------------------------------------------------------------------------------------------
RIVERS = ("straight river", "power-law river")
TOLD = (0.04, 0.1, 0.14)
"""The fractions whose numbers are told: ends and middle of the range that the sweep is about."""

DECAYS: dict[str, Shape | None] = {OPTIMAL: None, "linear": Linear()}


@dataclass(frozen=True, kw_only=True)
class FractionSetting(StudySetting):
    """Runs of three lengths down a straight river and one whose loss is A S^-a, cooled down over a part of them.

    The slope of the straight river is that of the power law at the end of the middle run.

    Args:
        lr, curvature, sigma: of the plateau and the hill; there is no noise along the river.
        exponent: a; the scale A is 1.
        totals: updates of the runs.
        probes: simulated fractions.
        points: of the curves.
    """

    replicates: int = 1000
    lr: float = 0.1
    curvature: float = 1.0
    sigma: float = 1.5
    exponent: float = 0.5
    totals: tuple[int, ...] = (1000, 4000, 16000)
    probes: tuple[float, ...] = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.2, 0.3, 0.5)
    points: int = 49

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.totals) < 2:
            raise InputError(f"totals must be at least two lengths of run, to compare them; got {self.totals!r}")

    @property
    def slope(self) -> float:
        """c of the straight river, from c^2 = a S^(-a-1)."""
        area = self.lr * self.totals[len(self.totals) // 2]
        return math.sqrt(self.exponent * area ** (-self.exponent - 1.0))

    def loss(self, river: str) -> Loss:
        """The valley of that kind."""
        if river == RIVERS[0]:
            # As a formula: the noise is not the same in all directions, and the exact moments of a StraightRiver would
            # then be solved update by update, at many times the cost of the simulation.
            return QuarticWalls(self.slope, self.curvature, quartic=0.0)
        return PowerLawRiver(1.0, self.exponent, self.curvature)

    def best(self, river: str, total: int) -> float:
        """The best fraction for the optimal decay by theory."""
        lr, h, sigma = self.lr, self.curvature, self.sigma
        if river == RIVERS[0]:
            return cooldown_length(self.slope, lr, h, sigma) / total
        return power_river_length(total, scale=1.0, exponent=self.exponent, lr=lr, curvature=h, sigma=sigma) / total

    def rates(self, decay: str, fraction: float, total: int) -> Schedule:
        """The schedule that cools down over that fraction of the run."""
        n = max(round(fraction * total), 2)
        return cooldown(DECAYS[decay], self.lr, self.curvature, n, stable=total - n)

    def expected(self, river: str, lr: FloatArray) -> float:
        """Expected final loss: exact in the straight river; in the other, gradient flow for the river."""
        start = 2.0 * float(stationary_hill(self.lr, self.curvature, self.sigma)) / self.curvature
        end = checkpoint_after(lr, self.slope, [self.curvature], self.sigma, start=start)
        return end.loss if river == RIVERS[0] else (1.0 + end.area) ** -self.exponent + end.hill


def measure_fraction(s: FractionSetting, bench: Bench) -> xr.Dataset:
    """Loss above that of the best cooldown by theory, as a part of what that gains over none: found and expected."""
    cases = list(itertools.product(RIVERS, s.totals))
    fractions = np.union1d(np.geomspace(0.005, 0.9, s.points), s.probes)
    best = [s.best(*case) for case in cases]
    expected = np.empty((len(cases), len(DECAYS), fractions.size))
    found = np.empty((2, len(cases), len(s.probes)))
    for i, (river, total) in enumerate(cases):
        least = s.expected(river, s.rates(OPTIMAL, best[i], total).values())
        gain = s.expected(river, np.full(total, s.lr)) - least
        for j, decay in enumerate(DECAYS):
            expected[i, j] = [(_between(s, river, decay, f * total, total) - least) / gain for f in fractions.tolist()]
        rest = math.sqrt(2.0 * float(stationary_hill(s.lr, s.curvature, s.sigma)) / s.curvature)
        runs = bench.compare(
            s.loss(river), [s.rates(OPTIMAL, f, total) for f in s.probes], noise=Anisotropic((0.0, s.sigma)),
            start=(0.0, rest), replicates=s.replicates, every=total,
        )  # fmt: skip
        for k, ds in enumerate(runs):
            found[:, i, k] = mean_error((ds["loss"].values[:, -1] - least) / gain)
    values = {
        "valley": [f"{river}, T = {total}" for river, total in cases],
        "decay": list(DECAYS),
        "fraction": fractions,
        "probe_fraction": list(s.probes),
        "excess": found[0],
        "excess_error": found[1],
        "expected_excess": expected,
        "best_fraction": best,
    }
    return toy_dataset(values, {})


def _between(s: FractionSetting, river: str, decay: str, updates: float, total: int) -> float:
    """Expected final loss at a length that need not be whole, on the line between its neighbours."""
    low = max(math.floor(updates), 2)
    ends = [s.expected(river, s.rates(decay, n / total, total).values()) for n in (low, low + 1)]
    return float(np.interp(updates, (low, low + 1), ends))


def fraction_numbers(ds: xr.Dataset) -> list[Number]:
    """The best fractions by theory, and how flat the optimum is."""
    out = []
    for valley in ds["valley"].values:
        at = ds.sel(valley=valley)
        out.append(Number(f"best fraction, {valley}", math.nan, math.nan, float(at["best_fraction"]), exact=False))
        for f in ds["probe_fraction"].values:
            if f in TOLD:
                one = at.sel(probe_fraction=f, fraction=f, decay=OPTIMAL)
                told, exact = f"part of the gain lost at {f:.0%}, {valley}", RIVERS[0] in str(valley)
                out.append(number_of(one, told, "excess", "excess_error", "expected_excess", exact=exact))
    return out


FRACTION = Study(
    name="fraction",
    summary="the best part of a run to cool down is a flat optimum, which moves slowly with the length of the run",
    source="derived; arXiv:2410.05192 finds a plateau at 8 to 12 %",
    setting=FractionSetting,
    parts=lambda s: len(RIVERS) * len(s.totals),
    measure=measure_fraction,
    numbers=fraction_numbers,
    quick={"replicates": 200, "totals": (500, 2000), "probes": (0.02, 0.04, 0.1, 0.14, 0.3), "points": 25},
)
