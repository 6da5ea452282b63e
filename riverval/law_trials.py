"""Which published curves a loss-curve law is fitted to and which it has to predict: the protocols of the scores.

Four protocols, each a list of trials: a law is fitted to the training curves (a law that has hyperparameters chooses
them there too) and predicts the targets, of which it sees the schedule only.

* M: per model size of the multi-power collection, fit on a cosine, a constant and a two-stage schedule; predict the
  other curves at every logged step.
* A: per rate of the lr-scheduling collection, fit on the stable run and the linear cooldown of a fifth of 25000
  updates; predict the final loss of all other runs that decay.
* B: the same targets from the constant or stable run alone.
* C: the same targets from the fits of M and A at another size or rate: as they stand, and with
  ``law.transfer(curves)`` on the constant or stable run of the new size or rate, which refits the level and the
  amplitude of the river only. (Between sizes only the latter.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from ._checks import unknown
from .curves import Curve, LeftOut
from .errors import InputError

__all__ = ["PROTOCOLS", "Trial", "list_trials"]

PROTOCOLS = {
    "M": "fit on a cosine, a constant and a two-stage curve, predict the other curves of the size",
    "A": "fit on the stable run and one cooldown, predict the final loss of the other runs of the rate",
    "B": "fit without any decay, predict the same",
    "C": "fit at another size or rate, predict the same",
}
MULTI_POWER_FIT = ("cosine_24000", "constant_24000", "wsdcon_9")
COOLDOWN_FIT = (25_000, 0.2)  # updates of the run and share of the cooldown
SHORT = 0.4  # cooldowns up to this share are counted apart too: longer ones are hardly used

_TOLD = 3  # reasons in one message

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fit and what it has to predict.

    Attributes:
        protocol: key of `PROTOCOLS`.
        data: what is predicted, e.g. "25M" or "124M 0.0005 to 0.001".
        train: curves to fit.
        refit: curves to transfer the fitted law on.
        targets: curves to predict.
        ends: predict `final_loss` rather than the losses along the curve.
    """

    protocol: str
    data: str
    train: tuple[Curve, ...]
    targets: tuple[Curve, ...]
    refit: tuple[Curve, ...] = ()
    ends: bool = False


def list_trials(
    curves: Sequence[Curve],
    protocols: Sequence[str] | None = None,
    *,
    left_out: Sequence[LeftOut] = (),
    tell: Tell | None = None,
) -> list[Trial]:
    """The trials that the curves allow.

    Args:
        curves: as `riverval.curve_files.read_curves` returns them for the two public collections.
        protocols: keys of `PROTOCOLS`; all if None.
        left_out: runs that could not be read, see `riverval.curve_files.read_collection`.
        tell: called with a sentence for each group of curves that lacks what a protocol needs.

    Raises:
        InputError: an unknown protocol, curves that allow no trial at all, or a run to fit among those left out.
    """
    wanted = list(PROTOCOLS) if protocols is None else list(protocols)
    for name in wanted:
        if name not in PROTOCOLS:
            raise unknown("protocol", name, PROTOCOLS)
    tell = tell or (lambda text: None)
    trials = []
    for of, keys in ((_multi_power_trials, "MBC"), (_grid_trials, "ABC")):
        trials += of(curves, left_out if set(keys) & set(wanted) else (), tell)
    kept = [trial for name in wanted for trial in trials if trial.protocol == name]
    if not kept:
        raise InputError(
            f"these {len(curves)} curves allow no trial of protocol {', '.join(wanted)}: that needs the curves "
            f"{', '.join(MULTI_POWER_FIT)} and others of one size, or the stable run, the linear cooldown of a fifth "
            f"of 25000 updates and others of one rate, from the two public collections"
            + "".join(f"; {run}" for run in left_out[:_TOLD])
            + (f"; and {len(left_out) - _TOLD} more" if len(left_out) > _TOLD else "")
        )
    return kept


def _multi_power_trials(curves: Sequence[Curve], left_out: Sequence[LeftOut], tell: Tell) -> list[Trial]:
    sizes: dict[str, dict[str, Curve]] = {}
    for curve in curves:
        if curve.facts.get("format") == "multi-power-law":
            sizes.setdefault(curve.facts["size"], {})[curve.facts["schedule"]] = curve
    lost: dict[str, dict[str, LeftOut]] = {}
    for run in left_out:
        if run.facts.get("format") == "multi-power-law":
            lost.setdefault(run.facts["size"], {})[run.facts["schedule"]] = run
            sizes.setdefault(run.facts["size"], {})
    parts = {}
    for size in sorted(sizes, key=lambda s: float(s.rstrip("M"))):
        of = sizes[size]
        missing = [name for name in MULTI_POWER_FIT if name not in of]
        if missing and all(name in lost.get(size, {}) for name in missing):
            _read(lost[size][missing[0]])
        if missing or len(of) == len(MULTI_POWER_FIT):
            tell(f"{size} is passed over: it lacks {', '.join(missing) or 'curves to predict'}")
            continue
        train = tuple(of[name] for name in MULTI_POWER_FIT)
        parts[size] = (train, (of["constant_24000"],), tuple(of[n] for n in sorted(of) if n not in MULTI_POWER_FIT))
    out = []
    for size, (train, constant, targets) in parts.items():
        out.append(Trial(protocol="M", data=size, train=train, targets=targets))
        out.append(Trial(protocol="B", data=size, train=constant, targets=targets))
    for a, b in permutations(parts, 2):
        out.append(
            Trial(
                protocol="C", data=f"{a} to {b}, transferred", train=parts[a][0], refit=parts[b][1], targets=parts[b][2]
            )
        )
    return out


def _grid_trials(curves: Sequence[Curve], left_out: Sequence[LeftOut], tell: Tell) -> list[Trial]:
    runs: list[Curve | LeftOut] = [*curves, *left_out]
    groups: dict[tuple[str, float], list[Curve | LeftOut]] = {}
    for run in runs:
        facts = run.facts
        if facts.get("format") == "lr-scheduling" and "peak_lr" in facts:
            groups.setdefault((_model(run, runs), facts["peak_lr"]), []).append(run)
    parts = {}
    for key in sorted(groups):
        chosen = _training_runs(groups[key])
        if chosen is None:
            tell(f"{key[0]} {key[1]:g} is passed over: it lacks the stable run or the linear cooldown to fit")
            continue
        read = [run for run in groups[key] if isinstance(run, Curve)]
        targets = tuple(curve for curve in read if _is_target(curve, chosen[1]))
        if targets:
            parts[key] = (chosen, targets)
    out = []
    for (model, rate), (chosen, targets) in parts.items():
        trial = Trial(protocol="A", data=f"{model} {rate:g}", train=chosen, targets=targets, ends=True)
        out += [trial, replace(trial, protocol="B", train=chosen[:1])]
    for a, b in permutations(parts, 2):
        if a[0] == b[0]:
            data = f"{a[0]} {a[1]:g} to {b[1]:g}"
            trial = Trial(protocol="C", data=data, train=parts[a][0], targets=parts[b][1], ends=True)
            out += [trial, replace(trial, data=f"{data}, transferred", refit=parts[b][0][:1])]
    return out


def _model(curve: Curve | LeftOut, curves: Sequence[Curve | LeftOut]) -> str:
    """Its size, and the data it was trained on where the size was trained on several."""
    size = curve.facts.get("size")
    several = len({str(c.facts.get("dataset")) for c in curves if c.facts.get("size") == size}) > 1
    return " ".join(str(part) for part in (size, curve.facts.get("dataset") if several else None) if part is not None)


def _training_runs(group: Sequence[Curve | LeftOut]) -> tuple[Curve, Curve] | None:
    """The stable run and the cooldown to fit: the longest stable run, and of equals those of the linear family.

    The collection has two stable runs of each rate; its linear cooldowns were resumed from the one marked linear. A
    repeat stands in for a run that cannot be read, another run does not.

    Raises:
        InputError: one of the two cannot be read.
    """
    stable = [run for run in group if run.facts["shape"] == "constant"]
    cooled = [
        run for run in group if run.facts["shape"] == "linear"
        and (run.facts["updates"], run.facts["cooldown"]) == COOLDOWN_FIT
    ]  # fmt: skip

    def fitness(run: Curve | LeftOut) -> tuple[int, bool, bool, int]:
        facts = run.facts
        linear = facts.get("decay_type") == "linear"
        return facts["updates"], linear, isinstance(run, Curve), -len(facts.get("notes", ()))

    if not stable or not cooled:
        return None
    return _read(max(stable, key=fitness)), _read(max(cooled, key=fitness))


def _read(run: Curve | LeftOut) -> Curve:
    if isinstance(run, Curve):
        return run
    raise InputError(
        f"{run.name} is a run to fit and cannot be read: {run.reason}. To go on without its group, choose other "
        f"protocols or take it out of the collection"
    )


def _is_target(curve: Curve, fitted: Curve) -> bool:
    """A run that decays and has a final loss, with another schedule than the fitted cooldown."""
    alike = all(curve.facts[k] == fitted.facts[k] for k in ("shape", "cooldown", "updates"))
    return curve.final_loss is not None and curve.facts["shape"] != "constant" and not alike
