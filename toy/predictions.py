"""All predictions of the theory by name: what ``riverval toy check``, the tests and the documentation go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

from .._checks import unknown
from ..provenance import provenance
from ..schema import build
from .predict_assumptions import ASSUMPTIONS
from .predict_bend import BEND
from .predict_bigram import BIGRAM
from .predict_decay import DECAY
from .predict_drops import DROPS
from .predict_hill import HILL
from .predict_paths import PATHS
from .predict_plan import PLAN
from .predict_river import RIVER
from .predict_tables import TABLES
from .prediction import ALL, QUICK, Effort, Finding, Outcome, Prediction

__all__ = ["ALL", "FAMILIES", "PREDICTIONS", "QUICK", "Outcome", "Prediction", "check_all", "dataset_of", "select"]

FAMILIES: dict[str, str] = {
    "P-HILL": "The stationary height between the hills",
    "P-RIVER": "Progress along the river",
    "P-BEND": "Bent rivers",
    "P-DECAY": "What a cooldown leaves of the hill loss",
    "P-LEN": "How long to cool down",
    "P-AVG": "Averages of iterates",
    "P-INTERP": "The loss between two iterates",
    "P-BIGRAM": "Uncertainty of the next token",
    "P-WSDS": "Plans with several checkpoints",
    "P-ASSUMP": "The assumptions themselves",
}

_REGISTRIES = (HILL, RIVER, BEND, DECAY, TABLES, DROPS, PLAN, PATHS, BIGRAM, ASSUMPTIONS)


def _place(name: str) -> tuple[int, str]:
    return list(FAMILIES).index(name.split(".")[0]), name


PREDICTIONS: dict[str, Prediction] = {
    name: registry[name]
    for name, registry in sorted(((n, r) for r in _REGISTRIES for n in r), key=lambda x: _place(x[0]))
}


def select(words: Sequence[str]) -> dict[str, Prediction]:
    """The predictions that the words name: one, all parts of one ("P-HILL.2"), or a family ("P-HILL"); no word: all.

    Raises:
        InputError: a word that names none.

    >>> list(select(["P-HILL.1", "P-LEN"]))
    ['P-HILL.1', 'P-HILL.1b', 'P-LEN', 'P-LEN.b', 'P-LEN.c']
    """
    for word in words:
        if not any(_names(word, name) for name in PREDICTIONS):
            raise unknown("prediction", word, [*FAMILIES, *PREDICTIONS])
    return {n: p for n, p in PREDICTIONS.items() if not words or any(_names(word, n) for word in words)}


def _names(word: str, name: str) -> bool:
    """Whether `word` is the name, its family, or the name without a part's letter: P-X.1 has P-X.1b, not P-X.10."""
    return word in (name, name.split(".")[0], name.rstrip("abcdefgh"))


def check_all(predictions: Iterable[Prediction], *, seed: int = 0, effort: Effort = QUICK) -> Iterator[Finding]:
    """Measure each prediction with its default parameters, in order; the seed gives the same numbers for each of them.

    Args:
        predictions: e.g. ``select([]).values()``.
        seed: of all randomness.
        effort: `QUICK` or `ALL`.
    """
    for prediction in predictions:
        yield prediction.check(seed=seed, effort=effort)


def dataset_of(findings: Sequence[Finding], *, seed: int, effort: Effort, status: str = "complete") -> xr.Dataset:
    """The findings as a dataset of source "toy": one row on `prediction` for each outcome, named by its prediction.

    Args:
        findings: what `check_all` found.
        seed, effort: what it was given.
        status: complete, or interrupted where predictions are missing.
    """
    rows = [
        (finding.prediction, outcome, verdict)
        for finding in findings
        for outcome, verdict in zip(finding.outcomes, finding.verdicts(), strict=True)
    ]
    outcomes: Mapping[str, list[object]] = {
        name: [getattr(outcome, name) for _, outcome, _ in rows]
        for name in ("quantity", "relation", "theory", "measured", "error", "allowance", "z")
    }
    values = {f"prediction_{name}": column for name, column in outcomes.items()} | {
        "prediction": [p.name for p, _, _ in rows],
        "prediction_statement": [p.statement for p, _, _ in rows],
        "prediction_source": [p.source for p, _, _ in rows],
        "prediction_verdict": [verdict for _, _, verdict in rows],
        "prediction_must_fail": [p.must_fail for p, _, _ in rows],
    }
    text = {name: np.array(column, dtype=str) for name, column in values.items() if isinstance(column[0], str)}
    config = {
        "effort": effort.name,
        "parameters": {finding.prediction.name: dict(finding.parameters) for finding in findings},
    }
    attrs = provenance("predictions of the theory", config=config, seed=seed, status=status)
    return build(values | text, {}, "toy").assign_attrs(attrs)
