"""What training needs of data, and image data: bytes on the device, normalised per channel, batched without state.

A batch is a pure function of (seed, step), so a run can be resumed, or another schedule branched off it, with exactly
the batches it would have had.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .._typing import NDArray
from ..errors import InputError, RivervalError, missing_extra
from .seeds import Stream, generator

try:
    import torch
    from torch import Tensor
except ImportError as _error:
    raise missing_extra("torch", "real", "training") from _error

from .augment import augmented

if TYPE_CHECKING:
    from .config import RunConfig

Batch = tuple[Tensor, Tensor]
SPLIT_SEED = 0  # of digits: the split is part of the data, not of the run
_KEYS = ("x_train", "y_train", "x_test", "y_test")


def cache_folder() -> Path:
    """Where downloads and tokenisers are kept: $RIVERVAL_CACHE, else ~/.cache/riverval."""
    return Path(os.environ.get("RIVERVAL_CACHE") or Path.home() / ".cache" / "riverval").expanduser()


class Data(ABC):
    """Training and validation examples on a device.

    Attributes:
        sha256: of the content.
        facts: sizes for the record: JSON-ready.
        steps_per_epoch: updates per pass over the training data, None where examples are drawn at random.
    """

    sha256: str
    facts: dict[str, Any]
    steps_per_epoch: int | None = None

    @abstractmethod
    def to(self, device: torch.device) -> Data:
        """The same data on a device."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The training batch of update `step`."""

    @abstractmethod
    def fixed(self, part: str, examples: int | None = None, per_batch: int = 512) -> Sequence[Batch]:
        """A fixed subset for evaluation: the same in every call and run. Each batch is made when it is asked for.

        Args:
            part: "train" or "val".
            examples: how many (all if None, or if there are fewer).
            per_batch: the most in one batch.
        """


class Batches(Sequence[Batch]):
    """Batches that are made anew each time they are asked for, so that not all of them need be in memory.

    Args:
        count: how many.
        make: ``make(k)``, the k-th of them.
    """

    def __init__(self, count: int, make: Callable[[int], Batch]) -> None:
        self._places, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self._make(k) for k in self._places[index]]
        return self._make(self._places[index])


class Images(Data):
    """Labelled images; training batches walk through a fresh permutation each epoch, the last one partial.

    The pixels stay bytes, a quarter of the memory of float32, and are normalised batch by batch: on one core that costs
    less than a hundredth of an update of the smallest network.

    Args:
        arrays: x_train (n, height, width, channels), y_train (n,), x_test, y_test; pixels uint8.
        batch: images per update.
        seed: of the permutations and the augmentation.
        augment: flip and shift the images of `batch`; those of `fixed` never.

    Raises:
        InputError: more images per update than there are.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], *, batch: int, seed: int, augment: bool = False) -> None:
        x, y = arrays["x_train"], arrays["y_train"]
        if batch > len(x):
            raise InputError(f"batch must be at most the {len(x)} training images, got {batch}")
        self.sha256 = _digest(arrays)
        self._size, self._seed, self._augment = batch, seed, augment
        self._order = (-1, np.zeros(0, dtype=np.int64))
        self.steps_per_epoch = -(-len(x) // batch)
        self.facts = {
            "train": len(x), "val": len(arrays["x_test"]), "shape": list(x.shape[1:]), "classes": int(y.max()) + 1,
        }  # fmt: skip
        # One number per pixel and channel: a row of an image is then one run of numbers to the processor.
        self._moments = [torch.from_numpy(np.tile(m.astype(np.float32), x[0, ..., 0].size)) for m in _moments(x)]
        self._parts: dict[str, Batch] = {
            part: (torch.from_numpy(np.ascontiguousarray(arrays[f"x_{name}"])), torch.from_numpy(arrays[f"y_{name}"]))
            for part, name in (("train", "train"), ("val", "test"))
        }

    def to(self, device: torch.device) -> Images:
        self._parts = {part: (x.to(device), y.to(device)) for part, (x, y) in self._parts.items()}
        self._moments = [m.to(device) for m in self._moments]
        return self

    def batch(self, step: int) -> Batch:
        assert self.steps_per_epoch is not None
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, generator(self._seed, Stream.BATCHES, epoch).permutation(self.facts["train"]))
        x, y = self._parts["train"]
        index = torch.from_numpy(self._order[1][place * self._size : (place + 1) * self._size]).to(x.device)
        pixels = x.index_select(0, index)
        if self._augment:
            pixels = augmented(pixels, seed=self._seed, step=step)
        return self._normalised(pixels), y[index]

    def fixed(self, part: str, examples: int | None = None, per_batch: int = 512) -> Batches:
        x, y = self._parts[part]
        # Evenly spaced, so that data sorted by class gives every class.
        index = torch.from_numpy(spread(len(x), examples)).to(x.device)

        def make(k: int) -> Batch:
            chosen = index[k * per_batch : (k + 1) * per_batch]
            return self._normalised(x.index_select(0, chosen)), y[chosen]

        return Batches(-(-len(index) // per_batch), make)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """float32 (n, channels, height, width), stored channels-last: convolutions are faster so, on CPU and GPU."""
        mean, std = self._moments
        values = pixels.flatten(1).float().sub_(mean).div_(std)
        return values.view(pixels.shape).permute(0, 3, 1, 2)


def spread(n: int, wanted: int | None) -> NDArray[np.int64]:
    """`wanted` evenly spaced indices below n; all of them if None or too many."""
    count = n if wanted is None else min(wanted, n)
    return (np.arange(count) * n) // max(count, 1)


def _moments(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation per channel, shape (channels,), in float64 without a float64 copy of all images."""
    count = x[..., 0].size
    total, square = np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
    for first in range(0, len(x), 4096):
        part = x[first : first + 4096].astype(np.float64)
        total += part.sum(axis=(0, 1, 2))
        square += (part**2).sum(axis=(0, 1, 2))
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
    return mean, np.where(std > 0, std, 1.0)


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for key in _KEYS:
        digest.update(f"{key} {arrays[key].shape} {arrays[key].dtype} ".encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()


# --- sources ---------------------------------------------------------------------------------------------------------
def load_images(config: RunConfig) -> Images:
    """Image data by name or path.

    Raises:
        InputError: unknown name, or a file that does not hold what it should.
        RivervalError: a download failed.
        MissingExtraError: a package is missing.
    """
    source = IMAGE_SOURCES.get(config.data)
    arrays = source() if source else _from_npz(config.data)
    return Images(arrays, batch=config.batch, seed=config.seed, augment=config.augment)


def _digits() -> dict[str, NDArray[Any]]:
    """1797 handwritten digits of 8x8 pixels that come with scikit-learn; a fifth is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "real", "the data set digits") from error
    found = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(found.target))
    x = found.images[order].astype(np.uint8)[..., None]
    y = found.target[order].astype(np.int64)
    cut = len(y) - len(y) // 5
    return {"x_train": x[:cut], "y_train": y[:cut], "x_test": x[cut:], "y_test": y[cut:]}


def _digits16() -> dict[str, NDArray[Any]]:
    """The same with every pixel doubled in both directions, 16x16: for nets that pool four times."""
    found = _digits()
    return {n: a.repeat(2, axis=1).repeat(2, axis=2) if n.startswith("x") else a for n, a in found.items()}


def _cifar10() -> dict[str, NDArray[Any]]:
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise missing_extra("torchvision", "real", "the data set cifar10") from error
    folder = cache_folder() / "cifar10"
    out: dict[str, NDArray[Any]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("train", "test"):
            found = CIFAR10(str(folder), train=part == "train", download=True)
            out[f"x_{part}"] = np.asarray(found.data)
            out[f"y_{part}"] = np.asarray(found.targets, dtype=np.int64)
    except (OSError, RuntimeError) as error:
        raise RivervalError(
            f"cannot download cifar10 to {folder}: {error}; on a machine without a connection give --data PATH.npz "
            f"with {', '.join(_KEYS)}, or use --data digits"
        ) from error
    return out


IMAGE_SOURCES: dict[str, Callable[[], dict[str, NDArray[Any]]]] = {
    "digits": _digits,
    "digits16": _digits16,
    "cifar10": _cifar10,
}


def _from_npz(name: str) -> dict[str, NDArray[Any]]:
    path = Path(name).expanduser()
    if path.suffix != ".npz":
        raise InputError(f"unknown image data {name!r}; choose {', '.join(IMAGE_SOURCES)} or the path of a .npz file")
    if not path.is_file():
        raise InputError(
            f"{path} does not exist or is not a file; --data takes {', '.join(IMAGE_SOURCES)} or a .npz file"
        )
    try:
        # Opened here: of a broken archive np.load would leave its own file open.
        with path.open("rb") as raw, zipfile.ZipFile(raw), np.load(raw, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}; it must hold {', '.join(_KEYS)}")
            arrays = {key: file[key] for key in _KEYS}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: a flipped bit reads as a password or as a compression that does not exist.
        raise InputError(f"{path} cannot be read as .npz; it may be cut short or damaged ({error})") from error
    return _checked(path, arrays)


def _checked(path: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype != np.uint8 or x.ndim not in (3, 4):
            raise InputError(
                f"x_{part} in {path} must be uint8 of shape (n, height, width) or (n, height, width, channels), "
                f"got {x.dtype} of shape {x.shape}"
            )
        x = x[..., None] if x.ndim == 3 else x
        if x.shape[1] <= 4 < x.shape[3]:
            raise InputError(
                f"x_{part} in {path} has shape {x.shape}, which looks like channels before pixels; channels come last: "
                f"save x_{part}.transpose(0, 2, 3, 1)"
            )
        y = y.reshape(-1) if y.shape == (len(x), 1) else y
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise InputError(
                f"y_{part} in {path} must be {len(x)} whole numbers, one per image, got {y.dtype} of shape {y.shape}"
            )
        if not x.size:
            raise InputError(f"x_{part} in {path} holds no images, its shape is {x.shape}")
        arrays[f"x_{part}"], arrays[f"y_{part}"] = x, y.astype(np.int64)
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise InputError(
            f"x_train and x_test in {path} differ in shape: "
            f"{arrays['x_train'].shape[1:]} and {arrays['x_test'].shape[1:]}"
        )
    known = set(np.unique(arrays["y_train"]).tolist())
    if len(known) == 1:
        raise InputError(f"the training images in {path} are all of one class, {known.pop()}; give two or more")
    # Large numbers that are no classes would make a layer that may not even fit in memory.
    wrong = [label for place, label in enumerate(sorted(known)) if label != place]
    wrong += sorted(set(np.unique(arrays["y_test"]).tolist()) - known)
    if wrong:
        raise InputError(
            f"the labels in {path} must be 0..classes-1 without gaps and the same in both parts, got {wrong[0]}; "
            "np.unique(labels, return_inverse=True)[1] renumbers them"
        )
    return arrays
