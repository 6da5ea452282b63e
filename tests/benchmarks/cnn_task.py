"""The network on which the instruments are timed: four convolutions, 333,999 parameters, trained for a while.

Images are made, not loaded: each class has a smooth template, every image a random mixture of its class's template with
another one, shifted, under noise. They are hard enough that the network still learns when it is measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

CLASSES, SIDE = 10, 32
Batch = tuple[Tensor, Tensor]


def make_images(count: int, seed: int = 0) -> Batch:
    """`count` images, shape (count, 3, 32, 32), and their labels; the templates are the same for every seed."""
    coarse = torch.randn(CLASSES, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    templates = interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    others = torch.randint(CLASSES, (count,), generator=draw)
    share = 0.35 + 0.5 * torch.rand(count, 1, 1, 1, generator=draw)
    images = share * templates[labels] + (1 - share) * templates[others]
    shift = int(torch.randint(-4, 5, (1,), generator=draw))
    images = torch.roll(images, shift, dims=-1)
    return images + 0.7 * torch.randn(images.shape, generator=draw), labels


def make_cnn(*, smooth: bool = False) -> nn.Sequential:
    """Four 3x3 convolutions (32, 64, 128, 207 channels) and a linear layer; ReLU and max-pooling, or GELU and mean."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128), (128, 207)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GELU() if smooth else nn.ReLU()]
        layers.append(nn.AvgPool2d(2) if smooth else nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(207, CLASSES))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch."""
    return cross_entropy(model(batch[0]), batch[1])


class Training:
    """SGD with momentum on batches drawn from 8192 images; the same seed gives the same path.

    Attributes:
        model, optimizer: as they stand.
    """

    def __init__(self, *, seed: int = 0, batch: int = 128, smooth: bool = False) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = make_cnn(smooth=smooth)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self._images, self._labels = make_images(8192, seed=seed + 10)
        self._batches = self._drawn(batch, seed)

    def _drawn(self, size: int, seed: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(self._labels), (size,), generator=draw)
            yield self._images[chosen], self._labels[chosen]

    def step(self) -> Tensor:
        """One update; the loss of its batch."""
        self.optimizer.zero_grad()
        loss = loss_of(self.model, next(self._batches))
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def steps(self, count: int) -> Training:
        """`count` updates; itself."""
        for _ in range(count):
            self.step()
        return self

    def probe_batch(self, size: int = 512) -> Batch:
        """The first `size` training images: a fixed batch for curvature."""
        return self._images[:size], self._labels[:size]
