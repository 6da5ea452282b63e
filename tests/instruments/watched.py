"""A small training to watch: a network with batch norm and dropout, and batches drawn from torch's own state."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import riverval

INPUTS, CLASSES = 6, 3


def loss_of(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def make_data(count=256, seed=1):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=draw)
    return x, (x[:, 0] > 0).long() + (x[:, 1] + 0.3 * torch.randn(count, generator=draw) > 0).long()


DATA = make_data()
BATCHES = [tuple(part[k : k + 32] for part in make_data(96, seed=2)) for k in (0, 32, 64)]


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, CLASSES))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003),
}


class Run:
    """A training that may be watched. The same seed gives the same path, watched or not."""

    def __init__(self, optimizer="sgd", seed=0):
        self.model = make_model(seed)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())

    def observe(self, probe=(loss_of, BATCHES), **options):
        return riverval.observe(self.model, self.optimizer, probe, **{"every": 4, "budget": None, **options})

    def batch(self):
        chosen = torch.randint(len(DATA[1]), (16,))
        return DATA[0][chosen], DATA[1][chosen]

    def update(self):
        self.optimizer.zero_grad()
        loss = loss_of(self.model, self.batch())
        loss.backward()
        self.optimizer.step()
        return loss

    def train(self, updates, watch=None):
        for _ in range(updates):
            loss = self.update()
            if watch is not None:
                watch.step(loss)
        return self

    def watched(self, updates, **options):
        """The closed observer of so many updates."""
        with self.observe(**options) as watch:
            self.train(updates, watch)
        return watch

    def flat(self):
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).numpy().copy()

    def everything(self):
        """All tensors of the training and the state of every generator, for a comparison bit by bit."""
        state = [*self.model.state_dict().values()]
        for entry in self.optimizer.state.values():
            state += [v for v in entry.values() if isinstance(v, torch.Tensor)]
        state += [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))]  # noqa: NPY002
        return [t.clone() for t in state]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
