"""Architectures for text: decoders of the Pythia family, and an LSTM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .._checks import check_int, pick
from ..errors import InputError, missing_extra
from .architecture_base import QUICK, Architecture, scaled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .config import RunConfig

# Layers, width, heads of the Pythia family (arXiv:2304.01373); `tiny` is smaller still, for a laptop.
SIZES = {
    "tiny": (5, 128, 4),
    "14m": (6, 128, 4),
    "31m": (6, 256, 8),
    "70m": (6, 512, 8),
    "160m": (12, 768, 12),
}
ROTARY = 4  # one of so many numbers of a head is rotated, in pairs


class TextModel(Architecture):
    """What all architectures for text share."""

    data_kind = "text"
    own: ClassVar[tuple[str, ...]] = ("seq", "tokenizer", "vocab")
    cooldown = 0.2
    defaults = {
        "data": "stdlib",
        "steps": 600,
        "batch": 8,
        "weight_decay": 0.1,
        "betas": (0.9, 0.95),
        "clip": 1.0,
        "seq": 64,
        "tokenizer": "bytes",
        "eval_every": 30,
        "eval_examples": 128,
    }
    # Measurements, unless the user says otherwise: a quarter of the run at most.
    small: ClassVar[Mapping[str, Any]] = {
        **QUICK, "line_examples": 16, "hessian_examples": 4, "descent_examples": 16, "token_examples": 64,
    }  # fmt: skip

    def defaults_for(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        own = {**self.defaults, **self.small}
        if chosen.get("tokenizer") == "bpe":
            own["vocab"] = 4096
        return {k: v for k, v in own.items() if k not in chosen}

    def check(self, config: RunConfig) -> None:
        check_int("seq", config.seq, low=2, what="tokens of a sequence")
        pick("tokenizer", str(config.tokenizer), dict.fromkeys(("bytes", "bpe")))
        if config.tokenizer == "bpe":
            check_int("vocab", config.vocab, low=257, what="256 bytes, a separator and the merges of bpe")
        elif config.vocab is not None:
            raise InputError("the byte tokenizer has 257 tokens; --vocab needs --tokenizer bpe")


class LM(TextModel):
    """A Pythia-like decoder (GPT-NeoX): rotary on a quarter of each head, parallel residual, untied embeddings."""

    name = "lm"
    own = (*TextModel.own, "size")
    defaults = {**TextModel.defaults, "lr": 6e-3, "size": "tiny"}
    # Beyond `tiny`, unless the user says otherwise.
    large: ClassVar[Mapping[str, Any]] = {
        "seq": 2048, "lr": 1e-3, "eval_every": 100, "eval_examples": 64, "line_examples": 16, "hessian_examples": 2,
    }  # fmt: skip

    def defaults_for(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        own = super().defaults_for(chosen)
        if chosen.get("size", "tiny") != "tiny":
            own = {k: v for k, v in own.items() if k not in self.small}
            own |= {k: v for k, v in self.large.items() if k not in chosen}
        return own

    def check(self, config: RunConfig) -> None:
        super().check(config)
        pick("size", str(config.size), SIZES)
        neox_width(str(config.size), config.width_factor)

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        return neox(
            str(config.size), vocab=facts["vocab"], seq=int(config.seq or 0), width_factor=config.width_factor
        )  # fmt: skip

    def logits(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        found: Tensor = model(input_ids=batch[0], use_cache=False).logits
        return found


def neox_width(size: str, factor: float) -> int:
    """Width of a `SIZES` entry times `factor`; the number of heads stays.

    Raises:
        InputError: it does not divide by the heads, or a quarter of a head not into pairs.
    """
    _, width, heads = pick("size", size, SIZES)
    unit = 2 * ROTARY * heads
    why = f"multiples of {unit}, for {heads} heads of which a quarter is rotated in pairs"
    return scaled((width,), factor, unit=unit, why=why)[0]


def neox(size: str, *, vocab: int, seq: int, width_factor: float = 1.0) -> nn.Module:
    """A GPT-NeoX of a `SIZES` entry.

    Args:
        size: key of `SIZES`.
        vocab: number of tokens.
        seq: the longest sequence, in tokens.
        width_factor: times the width of a token's vector, and of the perceptrons, which are 4 times as wide.

    Raises:
        InputError: unknown size, or a width that does not divide.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    except ImportError as error:
        raise missing_extra("transformers", "real", "the language model") from error
    layers, _, heads = pick("size", size, SIZES)
    width = neox_width(size, width_factor)
    config = GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        rotary_pct=1 / ROTARY,
        max_position_embeddings=seq,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    model: nn.Module = GPTNeoXForCausalLM(config)
    return model


class LSTM(TextModel):
    """Two LSTM layers of width 256 between embedding and output: 1,184,513 parameters with the 257 tokens of bytes."""

    name = "lstm"
    defaults = {**TextModel.defaults, "lr": 3e-3}
    width: ClassVar[int] = 256
    layers: ClassVar[int] = 2

    def check(self, config: RunConfig) -> None:
        super().check(config)
        scaled((self.width,), config.width_factor)

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        from .modules import LSTMLanguageModel

        (width,) = scaled((self.width,), config.width_factor)
        return LSTMLanguageModel(facts["vocab"], width=width, layers=self.layers)
