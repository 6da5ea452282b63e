"""The command `riverval toy check`: parses, calls, prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .. import store
from .._format import number, with_error
from ..console import complain, progress, say, show_table
from ..errors import InputError
from .prediction import ALL, QUICK, Finding, Outcome
from .predictions import check_all, dataset_of, select

EPILOG = (
    "Examples:  riverval toy check  |  riverval toy check --only P-DECAY,P-WSDS.2  |  "
    "riverval toy check --all --out verdicts.nc"
)


def check_command(
    everything: Annotated[
        bool,
        typer.Option(
            "--all/--quick", help="Ten times the samples and longer runs, in minutes; or all of them in seconds."
        ),
    ] = False,
    only: Annotated[
        str, typer.Option(help="Predictions or families, with commas: P-DECAY, P-HILL.2; all if not given.")
    ] = "",
    seed: Annotated[
        int, typer.Option(help="Seed of all measurements; the same seed gives the same numbers.", min=0)
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the verdicts to this dataset (.nc).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Hold every prediction of the theory against simulation.

    Prints each predicted number beside the measured one with its standard error, and a verdict whose rule was fixed
    beforehand (the page Predictions of the documentation has statements, ranges and rules). "Fails as predicted" is
    said of expectations that the theory itself refutes. Exit code 1 if any verdict is another than the theory's.
    """
    chosen = select([word.strip() for word in only.split(",")] if only else [])
    if out is not None:
        _check_free(out, overwrite)
    effort = ALL if everything else QUICK
    say(f"{len(chosen)} predictions, effort {effort.name}, seed {seed}")
    findings: list[Finding] = []
    interrupted = False
    try:
        with progress(len(chosen), "check") as update:
            for finding in check_all(chosen.values(), seed=seed, effort=effort):
                findings.append(finding)
                update(len(findings), {})
    except KeyboardInterrupt:
        interrupted = True
    if findings:
        show(findings)
        if out is not None:
            status = "interrupted" if interrupted else "complete"
            ds = dataset_of(findings, seed=seed, effort=effort, status=status)
            say(f"wrote {store.save(ds, out, overwrite=overwrite)}")
    if interrupted:
        complain(f"interrupted after {len(findings)} of {len(chosen)} predictions; those are shown")
        raise typer.Exit(130)
    if not all(finding.as_expected() for finding in findings):
        raise typer.Exit(1)


def show(findings: Sequence[Finding]) -> None:
    """The table, and how many went as the theory says; those that did not once more, with what they say."""
    rows = [
        (
            finding.prediction.name if k == 0 else "",
            outcome.quantity,
            _theory(outcome),
            _measured(outcome),
            number(outcome.allowance, 2) if outcome.allowance else "",
            _z(outcome),
            verdict,
        )
        for finding in findings
        for k, (outcome, verdict) in enumerate(zip(finding.outcomes, finding.verdicts(), strict=True))
    ]
    show_table("", ("prediction", "quantity", "theory", "measured ± s.e.", "allowed", "z", "verdict"), rows)
    other = [finding for finding in findings if not finding.as_expected()]
    refuted = sum(finding.prediction.must_fail for finding in findings if finding not in other)
    held = len(findings) - len(other) - refuted
    say(f"{held} predictions hold, {refuted} fail as predicted, {len(other)} otherwise ({len(rows)} numbers)")
    for finding in other:
        prediction = finding.prediction
        verdicts = ", ".join(sorted(set(finding.verdicts())))
        say(f"{prediction.name}: {verdicts}: {prediction.statement} [{prediction.formula}]")


def _check_free(out: Path, overwrite: bool) -> None:
    """Before any work: a file that would be refused at the end should not cost the work first."""
    if out.suffix != ".nc":
        raise InputError(f"--out names the dataset to write, which ends in .nc, got {out}")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; choose another path, or replace it with --overwrite")
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it first")


def _theory(outcome: Outcome) -> str:
    """The predicted number; with a sign where it is a bound."""
    return number(outcome.theory) if outcome.relation == "=" else f"{outcome.relation} {number(outcome.theory)}"


def _measured(outcome: Outcome) -> str:
    return with_error(outcome.measured, outcome.error) if outcome.error else number(outcome.measured)


def _z(outcome: Outcome) -> str:
    return "-" if math.isnan(outcome.z) else f"{outcome.z:+.1f}"
