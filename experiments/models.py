"""The architectures, by name. Adding one: subclass `Architecture` and decorate it with `register`.

torch and transformers are imported where a model is built, so that reading the registry is light.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .._checks import check_int, pick
from ..errors import InputError, missing_extra

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .config import RunConfig

ARCHITECTURES: dict[str, Architecture] = {}


def register(cls: type[Architecture]) -> type[Architecture]:
    """Put an architecture into `ARCHITECTURES` under its name."""
    ARCHITECTURES[cls.name] = cls()
    return cls


class Architecture:
    """What a run needs of a kind of model.

    Attributes:
        name: on the command line.
        data_kind: "images" or "text".
        own: fields of `RunConfig` that only this architecture (or its like) takes.
        defaults: fields of `RunConfig` where the user gives none.
        cooldown: fraction of the run where the schedule is wsd and none is given.
        paper: options of ``riverval real run`` for the settings of arXiv:2601.09000.
    """

    name: ClassVar[str]
    data_kind: ClassVar[str]
    own: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Mapping[str, Any]]
    cooldown: ClassVar[float]
    paper: ClassVar[str]
    has_accuracy: ClassVar[bool] = False

    def defaults_for(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults, given what the user chose."""
        return {k: v for k, v in self.defaults.items() if k not in chosen}

    def check(self, config: RunConfig) -> None:
        """Check the fields in `own`.

        Raises:
            InputError: a value out of range.
        """
        raise NotImplementedError

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        """A freshly initialised model (from torch's current random state) for data with the given facts."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of a batch in nats: a scalar tensor."""
        raise NotImplementedError

    def loss_and_hits(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Mean loss and, for classification, the number of right answers."""
        return self.loss(model, batch), None


@register
class CNN(Architecture):
    """Four convolutions (5x5, 5x5, 3x3, 3x3), ReLU, 2x2 max-pooling after the first three, one hidden layer.

    At the default widths 16-32-64-64-256 and 32x32x3 images of 10 classes: 334,442 parameters. This is derived from the
    "about 334K parameters, four convolutional layers" of arXiv:2601.09000, whose listing is not public; it is not the
    authors' net.
    """

    name = "cnn"
    data_kind = "images"
    own = ("widths", "epochs")
    cooldown = 0.35
    paper = "--arch cnn --data cifar10 --epochs 50 --batch 128 --cooldown 0.35"
    has_accuracy = True
    defaults = {
        "data": "digits",
        "epochs": 12.0,
        "batch": 16,
        "lr": 1e-2,
        "weight_decay": 0.01,
        "betas": (0.9, 0.999),
        "widths": (16, 32, 64, 64, 256),
        "eval_every": 30,
        "eval_examples": 10_000,
        "line_examples": 1024,
        "hessian_examples": 1024,
        "threads": 1,  # so small a net gains nothing from a second thread and loses much where a core is busy
    }
    # Where the images are larger than digits, unless the user says otherwise.
    large = {
        "batch": 128, "lr": 3e-3, "epochs": 5.0, "eval_every": 100, "line_examples": 2048, "hessian_examples": 512,
        "threads": None,
    }  # fmt: skip
    kernels = (5, 5, 3, 3)

    def defaults_for(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        own = self.defaults if chosen.get("data", "digits") == "digits" else {**self.defaults, **self.large}
        return {k: v for k, v in own.items() if k not in chosen}

    def check(self, config: RunConfig) -> None:
        if len(config.widths) != 5:
            raise InputError(
                f"widths must be four convolutions and the hidden layer, e.g. 16,32,64,64,256, got {config.widths}"
            )
        for width in config.widths:
            check_int("widths", width, low=1)

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        from torch import nn

        height, width, channels = facts["shape"]
        if min(height, width) < 8:
            raise InputError(
                f"images of {height}x{width} are too small for three 2x2 poolings; the cnn needs 8x8 or more"
            )
        layers: list[nn.Module] = []
        before = channels
        for k, (after, kernel) in enumerate(zip(config.widths[:4], self.kernels, strict=True)):
            layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU()]
            if k < 3:
                layers.append(nn.MaxPool2d(2))
            before = after
        hidden = config.widths[4]
        layers += [nn.Flatten(), nn.Linear(before * (height // 8) * (width // 8), hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden, facts["classes"]))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.loss_and_hits(model, batch)[0]

    def loss_and_hits(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import cross_entropy

        images, labels = batch
        logits = model(images).float()
        return cross_entropy(logits, labels), (logits.argmax(1) == labels).sum()


# Layers, width, heads of the Pythia family; `tiny` is smaller still, for a laptop.
SIZES = {
    "tiny": (5, 128, 4),
    "14m": (6, 128, 4),
    "31m": (6, 256, 8),
    "70m": (6, 512, 8),
    "160m": (12, 768, 12),
}


@register
class LM(Architecture):
    """A Pythia-like decoder (GPT-NeoX): rotary on a quarter of each head, parallel residual, untied embeddings."""

    name = "lm"
    data_kind = "text"
    own = ("size", "seq", "tokenizer", "vocab")
    cooldown = 0.2
    paper = (
        "--arch lm --data CORPUS --size 160m --seq 2048 --batch 256 --micro-batch 16 --steps 5722 --cooldown 0.2 "
        "--tokenizer bpe --vocab 50304"
    )
    defaults = {
        "data": "stdlib",
        "steps": 600,
        "batch": 8,
        "lr": 6e-3,
        "weight_decay": 0.1,
        "betas": (0.9, 0.95),
        "clip": 1.0,
        "size": "tiny",
        "seq": 64,
        "tokenizer": "bytes",
        "eval_every": 30,
        "eval_examples": 128,
        "line_examples": 64,
        "hessian_examples": 16,
    }

    def defaults_for(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        own = dict(self.defaults)
        if chosen.get("size", "tiny") != "tiny":
            own.update({"seq": 2048, "lr": 1e-3, "eval_every": 100, "eval_examples": 64, "line_examples": 16,
                        "hessian_examples": 2})  # fmt: skip
        if chosen.get("tokenizer") == "bpe":
            own["vocab"] = 4096
        return {k: v for k, v in own.items() if k not in chosen}

    def check(self, config: RunConfig) -> None:
        pick("size", str(config.size), SIZES)
        check_int("seq", config.seq, low=2, what="tokens of a sequence")
        pick("tokenizer", str(config.tokenizer), dict.fromkeys(("bytes", "bpe")))
        if config.tokenizer == "bpe":
            check_int("vocab", config.vocab, low=257, what="256 bytes, a separator and the merges of bpe")
        elif config.vocab is not None:
            raise InputError("the byte tokenizer has 257 tokens; --vocab needs --tokenizer bpe")

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        return neox(str(config.size), vocab=facts["vocab"], seq=int(config.seq or 0))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        from torch.nn.functional import cross_entropy

        tokens, targets = batch
        logits = model(input_ids=tokens, use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def neox(size: str, *, vocab: int, seq: int) -> nn.Module:
    """A GPT-NeoX of a `SIZES` entry.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    except ImportError as error:
        raise missing_extra("transformers", "real", "the language model") from error
    layers, width, heads = pick("size", size, SIZES)
    config = GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        rotary_pct=0.25,
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
