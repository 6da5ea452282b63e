"""Full states of a run on disk: model, optimizer, random state and the records so far, so that it goes on bit for bit.

A state is a file ``step_XXXXXXX.pt`` and its manifest of the same name ending in ``.json``, which holds the file's
SHA-256 and says what the state belongs to. The file is written aside and renamed, and only then its manifest, likewise:
whenever the process is killed, what a manifest vouches for is whole. A file without a manifest is worth nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import FloatArray
from ..errors import InputError, StoreError, missing_extra
from ..store import write_aside
from .config import TRAINING_FIELDS, RunConfig

try:
    import torch
    from torch import Tensor
except ImportError as _error:
    raise missing_extra("torch", "real", "training") from _error

Tell = Callable[[str], None]
Records = dict[str, dict[str, Tensor]]

_MANIFEST = ("state", "sha256", "bytes", "identity", "lr_sha256", "eval_examples", "training", "torch", "pinned")


@dataclass(frozen=True)
class FullState:
    """All that a run needs to go on from a state.

    Attributes:
        state: updates made.
        model: parameters and buffers by name.
        optimizer: its `state_dict`.
        random: of torch's generators, by kind of device.
        records: columns so far, by axis and name; float64 or int64.
        seconds: spent so far, by what for.
    """

    state: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    records: Records
    seconds: dict[str, float]


def rates_digest(rates: FloatArray, state: int) -> str:
    """SHA-256 (hex) of the learning rates of the first `state` updates, float64: what a state depends on of them."""
    return hashlib.sha256(np.ascontiguousarray(rates[:state], dtype="<f8").tobytes()).hexdigest()


def write_state(path: Path, full: FullState, config: RunConfig, *, pinned: bool = False) -> None:
    """Write a state and its manifest.

    Args:
        path: ends in .pt.
        full: the state.
        config: of its run, planned.
        pinned: whether it is kept for good.

    Raises:
        StoreError: the folder or a file cannot be written.
    """
    make_folder(path.parent)
    manifest = path.with_suffix(".json")
    manifest.unlink(missing_ok=True)  # it speaks of the file that is replaced
    found: dict[str, Any] = {}

    def write(part: Path) -> None:
        torch.save(vars(full), part)
        with part.open("rb") as file:
            found.update(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=part.stat().st_size)

    write_aside(path, write)
    found |= {
        "state": full.state, "identity": config.identity, "lr_sha256": rates_digest(config.plan.values(), full.state),
        "eval_examples": config.eval_examples, "training": training_fields(config), "torch": torch.__version__,
        "pinned": pinned,
    }  # fmt: skip
    text = json.dumps(found, indent=1, sort_keys=True)
    write_aside(manifest, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def read_state(path: Path, manifest: dict[str, Any]) -> FullState:
    """The state in a file, if it is the one that the manifest vouches for.

    Raises:
        StoreError: it is missing, cut short or changed.
    """
    try:
        size = path.stat().st_size
        if size != manifest["bytes"]:
            raise StoreError(f"{path.name} is cut short: {size} of {manifest['bytes']} bytes")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
                raise StoreError(f"{path.name} was changed: its SHA-256 is not that of its manifest")
            file.seek(0)
            return FullState(**torch.load(file, map_location="cpu", weights_only=True))
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror or error}") from error


def delete_state(path: Path) -> None:
    """Delete a state, the manifest first: what an interruption leaves is a file that nothing vouches for."""
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file.

    Raises:
        StoreError: it cannot be read or is not a manifest.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(found, dict) or not {*_MANIFEST} <= {*found}:
        raise StoreError(f"{path.name} is not the manifest of a state")
    return found


def training_fields(config: RunConfig) -> dict[str, Any]:
    """The fields that determine a trajectory, as JSON gives them back; the device is the one that was found."""
    told = config.to_dict()
    fields = {name: told[name] for name in TRAINING_FIELDS} | {"device": config.facts.get("device", config.device)}
    found: dict[str, Any] = json.loads(json.dumps(fields))
    return found


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror or error}") from error


class Checkpoints:
    """The full states of one run: the newest ones, and those that are pinned.

    Args:
        folder: made when the first is written.
        config: of the run, planned.
        keep: how many of those that are not pinned are left when another is saved.
        tell: called with a line about each one that cannot be used.
    """

    def __init__(self, folder: Path, config: RunConfig, keep: int = 2, *, tell: Tell) -> None:
        self.folder, self.config, self._keep, self._tell = folder, config, keep, tell

    def path(self, state: int) -> Path:
        """The file of a state."""
        return self.folder / f"step_{state:07d}.pt"

    def save(self, full: FullState, *, pinned: bool = False) -> None:
        """Write a state; then delete what is neither pinned nor among the newest.

        Raises:
            StoreError: it cannot be written; those before it are untouched.
        """
        write_state(self.path(full.state), full, self.config, pinned=pinned)
        self.prune(self._keep)

    def prune(self, keep: int) -> None:
        """Delete all but the pinned and the `keep` newest of the others, and what no manifest vouches for."""
        good = dict(self._manifests(lambda line: None))
        loose = [path for path, manifest in good.items() if not manifest["pinned"]]
        for path in {path.with_suffix(".pt") for path in self._files()} - {*good} | {*loose[keep:]}:
            delete_state(path)

    def clear(self) -> None:
        """Delete all of them, those of an earlier run in the same folder too."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def forget_after(self, state: int) -> None:
        """Delete those after a state that the run goes on from: they could not be used."""
        for path in self._files():
            if path.stem > self.path(state).stem:
                path.unlink(missing_ok=True)

    def newest(self) -> FullState | None:
        """The newest state that can be used; None without. Otherwise as `at_or_before`."""
        return self._last(lambda state: True)

    def at_or_before(self, state: int) -> FullState | None:
        """The last usable state that is not after `state`; None without. Says which ones cannot be used, and why.

        Raises:
            InputError: a state belongs to another run.
        """
        return self._last(lambda found: found <= state)

    def _last(self, wanted: Callable[[int], bool]) -> FullState | None:
        for path, manifest in self._manifests(self._tell):
            if not wanted(manifest["state"]):
                continue
            self._refuse_foreign(path, manifest)
            try:
                full = read_state(path, manifest)
            except StoreError as error:
                self._tell(f"checkpoint {error}; the one before it is used")
                continue
            if manifest["torch"] != torch.__version__:
                self._tell(
                    f"{path.name} was written with torch {manifest['torch']} and this is torch {torch.__version__}: "
                    "what follows may differ from a run in one go in its last bits"
                )
            return full
        return None

    def _files(self) -> list[Path]:
        return [*self.folder.glob("step_*.json"), *self.folder.glob("step_*.pt")]

    def _manifests(self, tell: Tell) -> Iterator[tuple[Path, dict[str, Any]]]:
        """File and manifest of every state that has one that can be read, the newest first."""
        for path in sorted(self.folder.glob("step_*.json"), reverse=True):
            try:
                yield path.with_suffix(".pt"), read_manifest(path)
            except StoreError as error:
                tell(f"checkpoint {error}; the one before it is used")

    def _refuse_foreign(self, path: Path, manifest: dict[str, Any]) -> None:
        if manifest["identity"] != self.config.identity:
            here, there = training_fields(self.config), manifest["training"]
            differ = [
                f"{name} {there.get(name)} instead of {here[name]}" for name in here if here[name] != there.get(name)
            ]
            raise InputError(
                f"{path} belongs to another run: {'; '.join(differ) or 'its configuration differs'}; put the run's own "
                f"config.json back, or train it anew"
            )
        if manifest["lr_sha256"] != rates_digest(self.config.plan.values(), manifest["state"]):
            raise InputError(
                f"{path} belongs to another run: it was trained with other learning rates than those of config.json"
            )
