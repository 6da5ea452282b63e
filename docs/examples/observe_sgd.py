"""Somebody's own training with the observer in it: SGD with momentum, each update from four micro-batches."""

import torch
from torch import nn

import riverval

torch.manual_seed(0)
x = torch.randn(2400, 20)
y = ((x[:, :2] > 0).sum(1) + (torch.rand(2400) < 0.1)).clamp(max=2)  # three classes, some labels wrong
train_x, train_y, probe_x, probe_y = x[:2000], y[:2000], x[2000:], y[2000:]

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
plan = riverval.make_schedule("wsd", peak_lr=0.2, steps=400, warmup=20)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: float(plan(min(t, 399))) / 0.2)


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


probe = (loss_of, [(probe_x, probe_y)])
with riverval.observe(model, optimizer, probe, every=50, budget=0.5, out="run.nc") as watch:
    for _ in range(400):
        for chosen in torch.randint(2000, (4, 16)):
            loss = loss_of(model, (train_x[chosen], train_y[chosen]))
            (loss / 4).backward()
            watch.step(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

print(watch.summary())
