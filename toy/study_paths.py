"""The studies `averaging` and `bigram`: averages of iterates against cooldowns, and who gains when in a language."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from .._checks import check_int
from ..errors import InputError
from ..schedules import WSD, Constant, Schedule
from ..shapes import Linear
from ..theory import final_variance, optimal_final_hill, stationary_hill, stationary_variance
from ..theory_paths import averaging_penalty, tail_average_hill
from ._loss import Loss
from .bigram import make_language
from .bigram_gains import advantage_ranks, context_gains
from .bigram_model import LogitTable
from .bigram_run import train_with_continuation
from .losses import StraightRiver
from .optimizers import TailAverage
from .predict_decay import cooldown
from .study import Bench, Number, Study, StudySetting, mean_error, number_of, toy_dataset
from .valleys import CircleRiver

# --- averaging -------------------------------------------------------------------------------------------------------
VALLEYS = ("straight river", "bent river")
ENDINGS = ("neither", "linear decay", "optimal decay", "tail average")


@dataclass(frozen=True, kw_only=True)
class AveragingSetting(StudySetting):
    """A straight river and a circle of the same slope and hill, from the hill loss of the plateau.

    Args:
        slope, curvature, sigma, radius: of the valleys and the noise.
        lr: rate of the plateau.
        lengths: updates of the cooldown, or iterates in the average: the last ones of the run.
        settle: updates at the plateau's rate before these.
    """

    replicates: int = 4000
    slope: float = 0.5
    curvature: float = 2.0
    sigma: float = 0.5
    radius: float = 10.0
    lr: float = 0.1
    lengths: tuple[int, ...] = (5, 10, 20, 40, 80, 160)
    settle: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("settle", self.settle, low=1, what="updates before the cooldown")
        if len(self.lengths) < 2 or min(self.lengths) < 2:
            raise InputError(f"lengths must be at least two numbers of at least 2 updates, got {self.lengths!r}")

    def loss(self, valley: str) -> Loss:
        """The valley of that name."""
        if valley == VALLEYS[0]:
            return StraightRiver(self.slope, (self.curvature,))
        return CircleRiver(self.slope, self.curvature, self.radius)

    def plans(self, length: int) -> list[Schedule]:
        """Constant, linear and optimal decay over so many updates."""
        decayed = [cooldown(shape, self.lr, self.curvature, length, stable=self.settle) for shape in (Linear(), None)]
        return [Constant(peak_lr=self.lr, steps=self.settle + length), *decayed]

    def expected(self, valley: str, length: int) -> list[float]:
        """Hill loss of each ending: exact on the straight river, to leading order in the bend on the other."""
        lr, h, sigma = self.lr, self.curvature, self.sigma
        start = float(stationary_variance(lr, h, sigma))
        linear = 0.5 * h * float(final_variance(self.plans(length)[1].values(), h, sigma, start=start))
        average = float(tail_average_hill(lr, h, sigma, length))
        if valley != VALLEYS[0]:
            arc = self.slope * lr * length
            average += float(averaging_penalty(h, 1.0 / self.radius, arc))
        return [float(stationary_hill(lr, h, sigma)), linear, optimal_final_hill(lr, h, sigma, length), average]


def measure_averaging(s: AveragingSetting, bench: Bench) -> xr.Dataset:
    """Hill loss in the end for each valley, ending and length; the endings see the same noise."""
    shape = (len(VALLEYS), len(ENDINGS), len(s.lengths))
    found, expected = np.empty((2, *shape)), np.empty(shape)
    rest = float(np.sqrt(stationary_variance(s.lr, s.curvature, s.sigma)))
    for i, valley in enumerate(VALLEYS):
        start = (0.0, rest) if valley == VALLEYS[0] else (0.0, s.radius + rest)
        for k, length in enumerate(s.lengths):
            runs = bench.compare(
                s.loss(valley), s.plans(length), sigma=s.sigma, start=start, replicates=s.replicates,
                average=TailAverage(updates=length), every=s.settle + length,
            )  # fmt: skip
            hills = [ds["hill"].values[:, -1] for ds in runs] + [runs[0]["average_hill"].values[:, -1]]
            found[:, i, :, k] = np.transpose([mean_error(hill) for hill in hills])
            expected[i, :, k] = s.expected(valley, length)
    values = {"valley": list(VALLEYS), "ending": list(ENDINGS), "length": list(s.lengths)}
    values |= {"final_hill": found[0], "final_hill_error": found[1], "expected_final_hill": expected}
    return toy_dataset(values, {})


def averaging_numbers(ds: xr.Dataset) -> list[Number]:
    """Hill loss of the optimal decay and of the average at the ends of the range."""
    out = []
    for valley in ds["valley"].values:
        for length in ds["length"].values[[0, -1]]:
            for ending in ENDINGS[1:]:
                at = ds.sel(valley=valley, ending=ending, length=length)
                told, exact = f"hill loss, {ending} over {length}, {valley}", valley == VALLEYS[0]
                out.append(number_of(at, told, "final_hill", "final_hill_error", "expected_final_hill", exact=exact))
    return out


AVERAGING = Study(
    name="averaging",
    summary="on a straight river an average is as good as an optimal decay; on a bend it cuts the corner and is not",
    source="derived",
    setting=AveragingSetting,
    parts=lambda s: len(VALLEYS) * len(s.lengths),
    measure=measure_averaging,
    numbers=averaging_numbers,
    quick={"replicates": 1000, "lengths": (5, 20, 80, 160)},
)


# --- bigram ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class BigramSetting(StudySetting):
    """The language `mixed`, learnt by a table of logits from batches of one pair, with a cooldown and without.

    Args:
        tokens: of the language.
        lr, steps, cooldown: of WSD with a linear decay.
    """

    replicates: int = 128
    tokens: int = 8
    lr: float = 0.1
    steps: int = 10_000
    cooldown: float = 0.2


def measure_bigram(s: BigramSetting, bench: Bench) -> xr.Dataset:
    """`riverval.toy.bigram_run.train_with_continuation`."""
    rng, progress = bench.part(s.steps)
    plan = WSD(peak_lr=s.lr, steps=s.steps, cooldown=s.cooldown)
    model = LogitTable(make_language("mixed", tokens=s.tokens))
    ds = train_with_continuation(model, plan, replicates=s.replicates, rng=rng, progress=progress)
    if ds.attrs["status"] == "interrupted":
        raise KeyboardInterrupt
    return ds


def bigram_numbers(ds: xr.Dataset) -> list[Number]:
    """For each context what the cooldown is worth, and the excess at its end beside the theory."""
    out, gains = [], context_gains(ds)
    for g in gains:
        told = f"{g.context} (Gini {g.gini:.2f})"
        out.append(
            Number(f"excess after the cooldown, {told}", g.after.mean, g.after.error, g.after_expected, exact=False)
        )
        out.append(Number(f"gain against no cooldown, {told}", g.advantage.mean, g.advantage.error, np.nan))
    rank = advantage_ranks(gains)[0]
    out.append(Number("rank correlation of that gain with Gini impurity", rank, np.nan, np.nan))
    return out


BIGRAM = Study(
    name="bigram",
    summary="the stable phase learns what is certain, the cooldown improves what is uncertain",
    source="the claim of arXiv:2410.05192 on the uncertainty of the data, in an exactly solvable language",
    setting=BigramSetting,
    parts=lambda s: 1,
    measure=measure_bigram,
    numbers=bigram_numbers,
    quick={"replicates": 32, "steps": 2000},
)
