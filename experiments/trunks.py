"""Full states that runs share: what they have in common, up to the state where their rates part, is trained once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import StoreError
from .checkpoints import FullState, delete_state, rates_digest, read_manifest, read_state, write_state
from .config import RunConfig


class Trunks:
    """A pool of full states, shared by runs of one identity whose first rates are equal.

    State t depends on what `RunConfig.identity` covers and on lr[0..t-1] alone: batches are pure functions of the seed
    and t. So a run may start from the state of another one, with its records, and is bit for bit the run that would
    have started from scratch; on the same kind of machine, that is, and with the same torch. Processes may use one pool
    at the same time.

    Args:
        folder: of the pool, made when the first state is put into it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def put(self, config: RunConfig, full: FullState) -> None:
        """Add a state of the run of a planned config; nothing to do if it is there.

        Raises:
            StoreError: it cannot be written.
        """
        path = self._path(config, full.state)
        if not path.with_suffix(".json").exists():
            write_state(path, full, config, pinned=True)

    def find(self, config: RunConfig, latest: int, evaluated: Collection[int]) -> FullState | None:
        """The deepest state that a run can start from; None without.

        Args:
            config: of the run, planned.
            latest: the last state that will do, e.g. the first one of which the run keeps a snapshot.
            evaluated: states at which the run evaluates: all those before the start must be among the records.
        """
        rates = config.plan.values()
        for path in sorted(self._folder(config).glob("step_*.json"), reverse=True):
            try:
                manifest = read_manifest(path)
                if not _fits(manifest, config, latest, rates_digest(rates, manifest["state"])):
                    continue
                full = read_state(path.with_suffix(".pt"), manifest)
            except StoreError:  # spoilt, or being written: a shallower one will do
                continue
            known = {*full.records.get("eval_step", {"eval_step": []})["eval_step"].tolist()}
            if {t for t in evaluated if t < full.state} <= known:
                return full
        return None

    def keep_only(self, wanted: Iterable[tuple[RunConfig, int]]) -> None:
        """Delete every state but those wanted: (planned config, state)."""
        kept = {self._path(config, state) for config, state in wanted}
        for path in self.folder.glob("*/step_*.pt"):
            if path not in kept:
                delete_state(path)

    def _folder(self, config: RunConfig) -> Path:
        return self.folder / config.identity[:16]

    def _path(self, config: RunConfig, state: int) -> Path:
        """One name for one state: its number, its rates and the examples that its evaluations were made on."""
        digest = rates_digest(config.plan.values(), state)[:16]
        return self._folder(config) / f"step_{state:07d}-{digest}-{config.eval_examples}.pt"


def _fits(manifest: dict[str, Any], config: RunConfig, latest: int, digest: str) -> bool:
    return bool(
        manifest["state"] <= min(latest, config.plan.total)
        and manifest["identity"] == config.identity
        and manifest["eval_examples"] == config.eval_examples
        and manifest["lr_sha256"] == digest
        and manifest["torch"] == torch.__version__
    )
