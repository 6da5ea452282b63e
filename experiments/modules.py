"""Networks that are more than a sequence of layers: a vision transformer, an MLP-Mixer, an LSTM language model.

Plain torch, twice differentiable: attention goes through ``scaled_dot_product_attention``, whose math kernel the
instruments choose where they need second derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import missing_extra

try:
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import scaled_dot_product_attention
except ImportError as _error:
    raise missing_extra("torch", "real", "building a model") from _error

SLOWEST = 10_000.0  # longest wavelength of the positions over 2 pi, in patches (arXiv:1706.03762)


def perceptron(width: int, hidden: int) -> nn.Sequential:
    """Linear, GELU, linear, on the last dimension."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Patches(nn.Module):
    """Images (batch, channels, height, width) to one vector per patch, shape (batch, patches, width)."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.embed(images)
        return found.flatten(2).transpose(1, 2)


class AttentionBlock(nn.Module):
    """x + attention(norm x), then x + perceptron(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = perceptron(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        batch, patches, width = x.shape
        # (3, batch, heads, patches, width of a head)
        q, k, v = self.qkv(self.norm1(x)).view(batch, patches, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, patches, width))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches with their positions through `depth` attention blocks; the mean over patches is classified.

    Args:
        shape: height, width, channels of an image; the first two multiples of `patch`.
        classes: number of logits.
        patch: side of a patch in pixels.
        width: of a patch's vector; a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: of the attention.
    """

    positions: Tensor

    def __init__(self, shape: Sequence[int], classes: int, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = Patches(shape[2], patch, width)
        self.register_buffer("positions", positions(shape[0] // patch, shape[1] // patch, width), persistent=False)
        self.blocks = nn.Sequential(*(AttentionBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.patches(images) + self.positions)).mean(1))
        return logits


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Sine and cosine of row and column at width / 4 wavelengths, shape (rows columns, width), row by row.

    Entry j < width/4 of patch (r, c) is sin(c w_j) with w_j = 10000^(-j / (width/4 - 1)); cosines and the row follow.
    As in arXiv:2205.01580, appendix A.
    """
    quarter = width // 4
    frequencies = SLOWEST ** -(torch.arange(quarter) / max(quarter - 1, 1))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


class MixerBlock(nn.Module):
    """x + perceptron over patches (norm x), then x + perceptron over channels (norm x)."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = perceptron(patches, width // 2)
        self.channels = perceptron(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class MLPMixer(nn.Module):
    """Patches through `depth` mixer blocks; the mean over patches is classified. Arguments as `VisionTransformer`."""

    def __init__(self, shape: Sequence[int], classes: int, *, patch: int, width: int, depth: int) -> None:
        super().__init__()
        count = (shape[0] // patch) * (shape[1] // patch)
        self.patches = Patches(shape[2], patch, width)
        self.blocks = nn.Sequential(*(MixerBlock(count, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.patches(images))).mean(1))
        return logits


class LSTMLanguageModel(nn.Module):
    """Embedding, `layers` LSTM layers from a zero state, one logit per token of the vocabulary.

    Initialised as in PyTorch's word_language_model example: embedding and output uniform in +-0.1, output biases 0.
    cuDNN's LSTM has no second derivative; the instruments switch cuDNN off for models with an ``nn.RNNBase``.
    """

    def __init__(self, vocab: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, vocab)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, seq) to logits (batch, seq, vocab)."""
        logits: Tensor = self.head(self.lstm(self.embed(tokens))[0])
        return logits
