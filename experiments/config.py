"""The complete, JSON-ready description of a run; everything is checked here, before any training starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .._checks import check_int, check_number, check_options, pick
from ..errors import InputError
from ..schedules import Schedule, make_schedule, schedule_from_dict
from .models import ARCHITECTURES, Architecture

DEVICES = ("auto", "cpu", "cuda", "mps")
# Share of the updates that warm up where the schedule does not say.
WARMUP = 0.02


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run.

    `schedule` is what the command line gave (a name and options) until `planned` has seen the data; then it is the
    whole schedule and `steps` its length. Units: `batch` in images or sequences, `seq` in tokens, `eval_every` in
    updates.
    """

    arch: str
    data: str
    schedule: dict[str, Any]
    lr: float
    batch: int
    steps: int | None = None
    epochs: float | None = None
    micro_batch: int | None = None  # examples per forward pass; None: the whole batch
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None  # largest gradient norm; None: no clipping
    # Of one architecture only; None or empty elsewhere.
    widths: tuple[int, ...] = ()
    size: str | None = None
    seq: int | None = None
    tokenizer: str | None = None
    vocab: int | None = None
    # Measurements.
    eval_every: int = 50
    eval_examples: int = 2048
    snapshots: int = 20
    alphas: int = 21
    line_examples: int = 1024
    hessian_examples: int = 512
    hessian_points: int = 5
    hessian_tol: float = 1e-3
    # How it is run.
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    compile: bool = False
    # Filled in by `planned`.
    data_sha256: str = ""
    parameters: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # of the data: sizes of its parts

    def __post_init__(self) -> None:
        _check(self)

    @property
    def architecture(self) -> Architecture:
        return pick("architecture", self.arch, ARCHITECTURES)

    @property
    def plan(self) -> Schedule:
        """The schedule of a planned run."""
        return schedule_from_dict(self.schedule)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def planned(self, *, steps_per_epoch: int | None, **known: Any) -> RunConfig:
        """The config with its schedule worked out in updates, once the data is known.

        Args:
            steps_per_epoch: updates that see every training example once; None where there are no epochs.
            **known: `data_sha256`, `parameters` and `facts`.

        Raises:
            InputError: the schedule does not fit the run.
        """
        steps = self.steps
        if self.epochs is not None:
            if steps_per_epoch is None:
                raise InputError(f"--arch {self.arch} counts in updates, not epochs; give --steps")
            steps = max(1, round(self.epochs * steps_per_epoch))
        schedule = _schedule(self.schedule, self.lr, steps)
        return dataclasses.replace(self, schedule=schedule.to_dict(), steps=schedule.total, **known)


def resolve(
    arch: str, given: dict[str, Any], *, decay: str = "wsd", options: dict[str, Any] | None = None
) -> RunConfig:
    """Turn what the user gave into a complete config; the rest comes from the architecture's defaults.

    Args:
        arch: a key of `ARCHITECTURES`.
        given: fields of `RunConfig`; None means not given.
        decay: name of the schedule.
        options: its options.

    Raises:
        InputError: unknown architecture, an option that it does not take, or a value out of range.
    """
    architecture = pick("architecture", arch, ARCHITECTURES)
    chosen = {name: value for name, value in given.items() if value is not None}
    other = {name for a in ARCHITECTURES.values() for name in a.own} - set(architecture.own)
    for name in chosen:
        if name in other:
            owners = " and ".join(a.name for a in ARCHITECTURES.values() if name in a.own)
            raise InputError(f"--{name.replace('_', '-')} belongs to --arch {owners}, not to {arch}; leave it out")
    fields = [f.name for f in dataclasses.fields(RunConfig) if f.init]
    check_options(f"--arch {arch}", chosen, fields)
    options = dict(options or {})
    values: dict[str, Any] = {**architecture.defaults_for(chosen), **chosen}
    if decay == "wsd":
        options.setdefault("cooldown", architecture.cooldown)
    if "steps" in chosen and "epochs" in chosen:
        raise InputError("give --steps or --epochs, not both")
    if "steps" in chosen or options.get("budgets"):
        values.pop("epochs", None)
    if "epochs" in chosen:
        values.pop("steps", None)
    if options.get("budgets"):
        if "epochs" in chosen:
            raise InputError("--budgets sets the length of the run; leave --epochs out")
        if "steps" not in chosen:
            values.pop("steps", None)
    config = RunConfig(arch=arch, schedule={"name": decay, **options}, **values)
    # Updates per epoch are not known yet, but a wrong option should not wait for the data.
    _schedule(config.schedule, config.lr, config.steps or (None if options.get("budgets") else 1_000_000))
    return config


def _schedule(described: dict[str, Any], lr: float, steps: int | None) -> Schedule:
    options = dict(described)
    name = options.pop("name")
    if "warmup" not in options and steps is not None and not options.get("budgets"):
        try:
            return make_schedule(name, peak_lr=lr, steps=steps, warmup=round(WARMUP * steps), **options)
        except InputError:
            pass  # no room for a warmup, or something worse: the next line tells
    return make_schedule(name, peak_lr=lr, steps=steps, **options)


def _check(c: RunConfig) -> None:
    architecture = pick("architecture", c.arch, ARCHITECTURES)
    check_number("lr", c.lr, low=0.0, open_low=True, what="peak learning rate")
    check_number("weight_decay", c.weight_decay, low=0.0)
    if len(c.betas) != 2:
        raise InputError(f"betas must be two numbers, e.g. 0.9,0.95, got {c.betas}")
    for beta in c.betas:
        check_number("betas", beta, low=0.0, high=1.0, open_high=True)
    if c.clip is not None:
        check_number("clip", c.clip, low=0.0, open_low=True, what="largest gradient norm")
    check_int("batch", c.batch, low=1)
    if c.micro_batch is not None:
        check_int("micro_batch", c.micro_batch, low=1, high=c.batch)
    if c.steps is not None:
        check_int("steps", c.steps, low=1, what="updates of the run")
    if c.epochs is not None:
        check_number("epochs", c.epochs, low=0.0, open_low=True)
    for name in ("eval_every", "eval_examples", "line_examples", "hessian_examples", "hessian_points"):
        check_int(name, getattr(c, name), low=1)
    check_int("alphas", c.alphas, low=2)
    check_int("snapshots", c.snapshots, low=0)
    if c.snapshots == 1:
        raise InputError("snapshots must be 0 (keep none) or at least 2 (the ends of each window), got 1")
    check_number("hessian_tol", c.hessian_tol, low=0.0, high=1.0, open_low=True, open_high=True)
    check_int("seed", c.seed, low=0)
    if c.threads is not None:
        check_int("threads", c.threads, low=1)
    pick("device", c.device, dict.fromkeys(DEVICES))
    architecture.check(c)
