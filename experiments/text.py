"""Text for the language model: where it comes from, how it is split and tokenised, and its random sequences."""

from __future__ import annotations

import contextlib
import hashlib
import sysconfig
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._typing import NDArray
from ..errors import InputError, RivervalError, missing_extra
from ..store import write_aside
from .data import Batch, Batches, Data, cache_folder, spread
from .seeds import Stream, generator

if TYPE_CHECKING:
    from .config import RunConfig

SEPARATOR = "<|endoftext|>"  # between documents in one file, and the separator token's name
# `encodings` is mostly generated tables, each a near copy of another: held-out ones would not be unseen.
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings"}
_HELD_OUT = 20  # every 20th document is for validation, or the last 20th of one document


class Text(Data):
    """A stream of tokens; the batch of an update is sequences at random places, drawn from (seed, step).

    Args:
        train, val: token streams, one-dimensional.
        seq: tokens a sequence predicts; it spans seq + 1.
        batch: sequences per update.
        seed: of the places.
        vocab: number of tokens the model knows.
        sha256: of the text.
    """

    def __init__(
        self,
        train: NDArray[np.int32],
        val: NDArray[np.int32],
        *,
        seq: int,
        batch: int,
        seed: int,
        vocab: int,
        sha256: str,
    ) -> None:
        for part, tokens in (("training", train), ("validation", val)):
            if len(tokens) < seq + 1:
                raise InputError(
                    f"the {part} text has {len(tokens)} tokens, too few for one sequence of {seq} and the token after "
                    f"it; give more text or a smaller --seq"
                )
        self.sha256 = sha256
        self._seq, self._size, self._seed = seq, batch, seed
        self._parts = {"train": torch.from_numpy(train), "val": torch.from_numpy(val)}
        self.facts = {"train": len(train), "val": len(val), "vocab": vocab}

    def to(self, device: torch.device) -> Text:
        self._parts = {part: tokens.to(device) for part, tokens in self._parts.items()}
        return self

    def batch(self, step: int) -> Batch:
        last = self.facts["train"] - self._seq
        starts = generator(self._seed, Stream.BATCHES, step).integers(0, last, size=self._size)
        return self._sequences("train", starts)

    def fixed(self, part: str, examples: int | None = None, per_batch: int = 16) -> Batches:
        # Whole sequences side by side, evenly spread over the stream.
        starts = spread((self.facts[part] - 1) // self._seq, examples) * self._seq
        count = -(-len(starts) // per_batch)
        return Batches(count, lambda k: self._sequences(part, starts[k * per_batch : (k + 1) * per_batch]))

    def tokens(self, part: str, most: int | None = None) -> NDArray[np.int32]:
        """The first `most` tokens of a part (all if None), in order, on the CPU."""
        return np.asarray(self._parts[part][:most].cpu().numpy())

    def _sequences(self, part: str, starts: NDArray[np.int64]) -> Batch:
        tokens = self._parts[part]
        index = torch.from_numpy(starts).to(tokens.device)[:, None] + torch.arange(self._seq + 1, device=tokens.device)
        found = tokens[index].long()
        return found[:, :-1], found[:, 1:]


def load_text(config: RunConfig) -> Text:
    """Text data by name or path, tokenised.

    Raises:
        InputError: nothing there, not text, or too little of it.
        MissingExtraError: a package is missing.
    """
    documents = TEXT_SOURCES[config.data]() if config.data in TEXT_SOURCES else _from_path(config.data)
    train, val = split(documents)
    sha256 = hashlib.sha256(b"\0".join(documents)).hexdigest()
    if config.tokenizer == "bpe":
        assert config.vocab is not None
        vocab, (train_ids, val_ids) = config.vocab, bpe_tokens(train, val, vocab=config.vocab)
    else:
        vocab, train_ids, val_ids = 257, byte_tokens(train), byte_tokens(val)
    assert config.seq is not None
    return Text(
        train_ids, val_ids, seq=config.seq, batch=config.batch, seed=config.seed, vocab=vocab, sha256=sha256
    )  # fmt: skip


def split(documents: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Training and validation documents: every 20th is held out; of fewer than 20, the last 5 percent of the text."""
    if len(documents) >= _HELD_OUT:
        val = list(documents[_HELD_OUT - 1 :: _HELD_OUT])
        return [d for k, d in enumerate(documents) if k % _HELD_OUT != _HELD_OUT - 1], val
    total = sum(map(len, documents))
    train: list[bytes] = []
    left = total - total // _HELD_OUT
    for k, document in enumerate(documents):
        if len(document) >= left:
            return [*train, document[:left]], [d for d in (document[left:], *documents[k + 1 :]) if d]
        train.append(document)
        left -= len(document)
    return train, []


# --- sources ---------------------------------------------------------------------------------------------------------
def _stdlib() -> list[bytes]:
    """The sources of the running Python's standard library, without tests: some 10 MB that every machine has."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if not _SKIPPED & set(p.relative_to(root).parts[:-1]))
    documents = list(dict.fromkeys(found for p in files if (found := p.read_bytes())))  # no copy on both sides
    if not documents:
        raise RivervalError(
            f"this Python has no library sources in {root}; give --data a text file or a folder of them"
        )
    return documents


TEXT_SOURCES: dict[str, Callable[[], list[bytes]]] = {"stdlib": _stdlib}


def _from_path(name: str) -> list[bytes]:
    path = Path(name).expanduser()
    if name and path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
    elif path.is_file():
        files = [path]
    else:
        raise InputError(
            f"unknown text data {name!r}: no such file or folder; choose {', '.join(TEXT_SOURCES)} or a path"
        )
    documents = [part for file in files for part in _read(file)]
    if not documents:
        raise InputError(f"{path} holds no text")
    return documents


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
        content.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it or take it out of the folder"
        ) from error
    return [part for part in content.split(SEPARATOR.encode()) if part.strip()]


# --- tokenisers ------------------------------------------------------------------------------------------------------
def byte_tokens(documents: Sequence[bytes]) -> NDArray[np.int32]:
    """Bytes as tokens 0..255, with 256 after each document."""
    parts: list[NDArray[Any]] = []
    for document in documents:
        parts += [np.frombuffer(document, dtype=np.uint8).astype(np.int32), np.array([256], dtype=np.int32)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def bpe_tokens(
    train: Sequence[bytes], val: Sequence[bytes], *, vocab: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Both parts under a byte-level BPE trained on the first; tokeniser and tokens are cached by content.

    The separator is token 0. Text too small for that many merges gives fewer tokens; the model keeps `vocab` rows.
    """
    key = hashlib.sha256(b"\0".join([*train, b"", *val])).hexdigest()[:24]
    folder = cache_folder() / "bpe"
    ids = folder / f"{key}-{vocab}.npz"
    tokenizer = bpe_tokenizer(train, vocab=vocab)
    if (cached := _cached(ids)) is not None:
        return cached
    separator = np.array([tokenizer.token_to_id(SEPARATOR)], dtype=np.int32)

    def encode(documents: Sequence[bytes]) -> NDArray[np.int32]:
        parts: list[NDArray[Any]] = []
        for first in range(0, len(documents), 256):  # the encodings of everything at once take gigabytes
            texts = [d.decode("utf-8", "replace") for d in documents[first : first + 256]]
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                parts += [np.array(encoding.ids, dtype=np.int32), separator]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)

    tokens = (encode(train), encode(val))

    def write(part: Path) -> None:
        with part.open("wb") as file:  # a path would get ".npz" appended
            np.savez(file, train=tokens[0], val=tokens[1])

    write_aside(ids, write)
    return tokens


def _cached(ids: Path) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """The tokens in a file of the cache; None if it is absent or spoilt, so that it is made anew."""
    try:
        with ids.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return file["train"], file["val"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


def bpe_tokenizer(train: Sequence[bytes], *, vocab: int) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` of `vocab` tokens trained on `train`, from the cache if it is there.

    Raises:
        MissingExtraError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise missing_extra("tokenizers", "real", "the bpe tokenizer") from error
    key = hashlib.sha256(b"\0".join(train)).hexdigest()[:24]
    path = cache_folder() / "bpe" / f"{key}-{vocab}.json"
    if path.exists():
        with contextlib.suppress(Exception):  # the only class it has for a spoilt file, which is made anew
            return Tokenizer.from_file(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # first: training takes minutes on a large text
    except OSError as error:
        raise RivervalError(
            f"cannot make the cache folder {path.parent}: {error.strerror}; set RIVERVAL_CACHE to a writable one"
        ) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.decode("utf-8", "replace") for d in train), trainer)
    write_aside(path, lambda part: tokenizer.save(str(part)))
    return tokenizer
