"""The complete, JSON-ready description of a run; everything is checked here, before any training starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._checks import check_int, check_number, check_options, pick
from ..errors import InputError, StoreError
from ..schedules import Schedule, make_schedule, schedule_from_dict
from .architectures import ARCHITECTURES, Architecture

CONFIG_FILE = "config.json"
DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("adamw", "adam", "sgd")
PRECISIONS = ("auto", "float32", "bfloat16")
KEEP = ("float32", "bfloat16", "sketch")
# Share of the updates that warm up where the schedule does not say.
WARMUP = 0.02

TRAINING_FIELDS = (
    "arch", "batch", "micro_batch", "optimizer", "momentum", "weight_decay", "betas", "eps", "clip", "width_factor",
    "widths", "size", "seq", "tokenizer", "vocab", "augment", "precision", "deterministic", "compile", "seed", "device",
    "threads", "data_sha256",
)  # fmt: skip
"""What determines the trajectory, bit for bit, besides the rates (`lr`, `schedule`, `steps` and `epochs`)."""

# Fields that one kind of optimizer takes and the others do not.
_OF_OPTIMIZER = {"betas": ("adamw", "adam"), "eps": ("adamw", "adam"), "momentum": ("sgd",)}

# Where neither the user nor the architecture says: a sequence costs as much as some tens of images.
_OF_KIND: dict[str, dict[str, Any]] = {
    "images": {"final_examples": None, "descent_examples": 2048, "token_examples": 2048},
    "text": {"final_examples": 512, "descent_examples": 128, "token_examples": 128},
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run.

    `schedule` is what the command line gave (a name and options) until `planned` has seen the data; then it is the
    whole schedule and `steps` its length. Units: `batch` and every ``..._examples`` in images or sequences, `seq` in
    tokens, ``..._every`` in updates.
    """

    arch: str
    data: str
    schedule: dict[str, Any]
    lr: float
    batch: int
    steps: int | None = None
    epochs: float | None = None
    micro_batch: int | None = None  # examples per forward pass; None: the whole batch
    optimizer: str = "adamw"
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)  # of adam and adamw
    eps: float = 1e-8  # likewise
    clip: float | None = None  # largest gradient norm; None: no clipping
    width_factor: float = 1.0  # of all hidden widths
    # Of some architectures only; None or empty elsewhere.
    widths: tuple[int, ...] = ()
    size: str | None = None
    seq: int | None = None
    tokenizer: str | None = None
    vocab: int | None = None
    augment: bool = False
    # Measurements.
    eval_every: int = 50
    eval_examples: int = 2048
    final_examples: int | None = None  # training examples of the last loss and accuracy; None: all
    probes: tuple[str, ...] | None = None  # None: all that are registered
    snapshots: int = 20  # of each window; 0: none
    keep: str = "float32"  # form of the snapshots
    sketch_width: int = 4096  # numbers per sketch
    alphas: int = 21
    line_examples: int = 1024
    hessian_examples: int = 512
    hessian_points: int = 5
    hessian_tol: float = 1e-3
    descent_points: int = 20  # states of quasi-convexity and of the cosine
    descent_examples: int = 2048  # training examples of their gradient
    direction_snapshots: int = 10  # in each window of the phase directions
    token_examples: int = 2048  # examples of the loss per token or class
    # Safety.
    checkpoint_every: int = 200
    branch_points: tuple[int, ...] = ()  # states whose full state is kept for good
    # How it is run.
    precision: str = "auto"  # auto: bfloat16 on CUDA, float32 elsewhere
    deterministic: bool = False
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

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of the `TRAINING_FIELDS`, with the device that was found.

        Runs of one identity whose first t learning rates are equal have equal states 0..t.

        Raises:
            InputError: the config is not planned, so the data are not known.
        """
        if not self.data_sha256:
            raise InputError("only a planned config has an identity: its data are part of it; call prepare(config)")
        told = {name: getattr(self, name) for name in TRAINING_FIELDS}
        told["device"] = self.facts.get("device", self.device)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> RunConfig:
        """The config that `to_dict` described, through JSON or not.

        Raises:
            InputError: a field that this version does not know, one that is missing, or a value out of range.
        """
        names = {f.name: f for f in dataclasses.fields(cls)}
        check_options("a run's configuration", described, names)
        lacking = [n for n in ("arch", "data", "schedule", "lr", "batch") if n not in described]
        if lacking:
            raise InputError(f"a run's configuration lacks {', '.join(lacking)}; is it one of riverval real run?")
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in described.items()}
        return cls(**given)

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
        for state in self.branch_points:
            check_int("branch_points", state, low=0, high=schedule.total, what="states of the run")
        return dataclasses.replace(self, schedule=schedule.to_dict(), steps=schedule.total, **known)


def read_config(folder: str | Path) -> RunConfig:
    """The planned config of the run in a folder.

    Raises:
        StoreError: the folder is missing, or holds none that can be read.
        InputError: it is not one of a run.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.parent.is_dir():
        raise StoreError(f"there is no folder {path.parent}; give the folder of a real run (riverval real list)")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}; give the folder of a real run") from error
    except ValueError as error:
        raise StoreError(f"{path} is not the configuration of a run: {error}") from error
    if not isinstance(described, dict):
        raise StoreError(f"{path} is not the configuration of a run: it is no table of settings")
    return RunConfig.from_dict(described)


def resolve(
    arch: str, given: dict[str, Any], *, decay: str = "wsd", options: dict[str, Any] | None = None
) -> RunConfig:
    """Turn what the user gave into a complete config; the rest comes from the architecture's defaults.

    Args:
        arch: a key of `ARCHITECTURES`.
        given: fields of `RunConfig`.
        decay: name of the schedule.
        options: its options.

    Raises:
        InputError: unknown architecture, an option that it does not take, or a value out of range.
    """
    architecture = pick("architecture", arch, ARCHITECTURES)
    chosen = {name: v for name, v in given.items() if v is not None or name not in ("steps", "epochs")}
    other = {name for a in ARCHITECTURES.values() for name in a.own} - set(architecture.own)
    for name in chosen:
        if name in other:
            owners = " and ".join(a.name for a in ARCHITECTURES.values() if name in a.own)
            raise InputError(f"--{name.replace('_', '-')} belongs to --arch {owners}, not to {arch}; leave it out")
    fields = [f.name for f in dataclasses.fields(RunConfig) if f.init]
    check_options(f"--arch {arch}", chosen, fields)
    options = dict(options or {})
    _refuse_other_optimizer(chosen)
    values = {**_OF_KIND[architecture.data_kind], **architecture.defaults_for(chosen), **chosen}
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


def _refuse_other_optimizer(chosen: Mapping[str, Any]) -> None:
    """Refuse options of another optimizer, and the default rate of Adam for one that it does not suit."""
    optimizer = chosen.get("optimizer", "adamw")
    for name, takers in _OF_OPTIMIZER.items():
        if name in chosen and optimizer not in takers:
            raise InputError(
                f"--{name} belongs to --optimizer {' and '.join(takers)}, not to {optimizer}; leave it out"
            )
    if optimizer == "sgd" and "lr" not in chosen:
        raise InputError("--optimizer sgd needs --lr: the default rates are those of AdamW; try 0.05")


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
    _check_optimizer(c)
    check_int("batch", c.batch, low=1)
    if c.micro_batch is not None:
        check_int("micro_batch", c.micro_batch, low=1, high=c.batch)
    if c.steps is not None:
        check_int("steps", c.steps, low=1, what="updates of the run")
    if c.epochs is not None:
        check_number("epochs", c.epochs, low=0.0, open_low=True)
    check_number("width_factor", c.width_factor, low=0.0, open_low=True, what="of all hidden widths")
    _check_measurements(c)
    check_int("checkpoint_every", c.checkpoint_every, low=1, what="updates")
    for state in c.branch_points:
        check_int("branch_points", state, low=0, what="states")
    check_int("seed", c.seed, low=0)
    if c.threads is not None:
        check_int("threads", c.threads, low=1)
    _check_flags(c)
    pick("device", c.device, dict.fromkeys(DEVICES))
    pick("precision", c.precision, dict.fromkeys(PRECISIONS))
    architecture.check(c)


def _check_optimizer(c: RunConfig) -> None:
    pick("optimizer", c.optimizer, dict.fromkeys(OPTIMIZERS))
    check_number("lr", c.lr, low=0.0, open_low=True, what="peak learning rate")
    check_number("momentum", c.momentum, low=0.0, high=1.0, open_high=True)
    check_number("weight_decay", c.weight_decay, low=0.0)
    check_number("eps", c.eps, low=0.0, open_low=True)
    if len(c.betas) != 2:
        raise InputError(f"betas must be two numbers, e.g. 0.9,0.95, got {c.betas}")
    for beta in c.betas:
        check_number("betas", beta, low=0.0, high=1.0, open_high=True)
    if c.clip is not None:
        check_number("clip", c.clip, low=0.0, open_low=True, what="largest gradient norm")


def _check_measurements(c: RunConfig) -> None:
    for name in (
        "eval_every", "eval_examples", "line_examples", "hessian_examples", "hessian_points", "descent_points",
        "descent_examples", "token_examples",
    ):  # fmt: skip
        check_int(name, getattr(c, name), low=1)
    if c.final_examples is not None:
        check_int("final_examples", c.final_examples, low=1)
    check_int("alphas", c.alphas, low=2)
    check_int("snapshots", c.snapshots, low=0)
    if c.snapshots == 1:
        raise InputError("snapshots must be 0 (keep none) or at least 2 (the ends of each window), got 1")
    check_int("direction_snapshots", c.direction_snapshots, low=3, what="of each window")
    check_int("sketch_width", c.sketch_width, low=1, what="numbers per sketch")
    pick("form of the snapshots", c.keep, dict.fromkeys(KEEP))
    check_number("hessian_tol", c.hessian_tol, low=0.0, high=1.0, open_low=True, open_high=True)


def _check_flags(c: RunConfig) -> None:
    for name in ("augment", "deterministic", "compile"):
        if not isinstance(getattr(c, name), bool):
            raise InputError(f"{name} must be true or false, got {getattr(c, name)!r}")
