"""What the training loop costs over a bare PyTorch loop of the same model, batches and optimizer, in one process.

Segments of a few updates of both are interleaved: the bare loop runs whenever the laboratory's has made so many, in its
progress callback. Each segment is divided by the mean of the bare ones before and after it, so that what slows the
machine slows both; in processor time, which other processes hardly touch, and by the clock. Both read the loss of every
update; only the laboratory's loop records norms, writes its mirror and looks after snapshots and checkpoints. One of
those, which comes every 200 updates, is timed apart and added.

``nox -s bench -- -k overhead -s`` prints the figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from torch import nn  # noqa: E402

from riverval.experiments.config import RunConfig, resolve  # noqa: E402
from riverval.experiments.run import Job, prepare, run  # noqa: E402

TARGET = 1.05
SEGMENT, SEGMENTS, UNTIMED = 4, 26, 2  # updates; segments; of those, the first are not counted
CHECKPOINT_EVERY = RunConfig.checkpoint_every
QUIET: dict[str, Any] = {
    "steps": SEGMENT * SEGMENTS, "snapshots": 0, "probes": (), "eval_every": 10**6, "eval_examples": 1,
    "final_examples": 1, "checkpoint_every": 10**6, "threads": 1,
}  # fmt: skip


Times = np.ndarray[Any, np.dtype[np.float64]]


def now() -> Times:
    """Seconds of the processor and by the clock."""
    return np.array([time.process_time(), time.perf_counter()])


class Bare:
    """The loop that anybody would write: no records but the loss, which it reads at each update."""

    def __init__(self, job: Job) -> None:
        self.job, config = job, job.config
        matrices, others = ([p for p in job.model.parameters() if (p.ndim > 1) is m] for m in (True, False))
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.rates, self.done, self.losses = config.plan.values().tolist(), 0, []

    def segment(self) -> Times:
        """What the next few updates take."""
        model, loss_of, clip = self.job.model, self.job.config.architecture.loss, self.job.config.clip
        began = now()
        model.train()
        for t in range(self.done, self.done + SEGMENT):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rates[t]
            self.optimizer.zero_grad()
            loss = loss_of(model, self.job.data.batch(t))
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            self.optimizer.step()
            self.losses.append(loss.item())
        self.done += SEGMENT
        return now() - began


@dataclass
class Interleaved:
    """The progress callback that runs the bare loop, and what both took."""

    bare: Bare
    own_times: list[Times] = field(default_factory=list)
    bare_times: list[Times] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    since: Times = field(default_factory=now)

    def __call__(self, done: int, values: Mapping[str, float]) -> None:
        self.losses.append(values["loss"])
        if done % SEGMENT == 0:
            self.own_times.append(now() - self.since)
            self.bare_times.append(self.bare.segment())
            self.since = now()

    @property
    def ratios(self) -> Times:
        """Of each segment to the bare ones around it, shape (segments, 2)."""
        bare = np.array(self.bare_times)
        return (np.array(self.own_times)[1:] / ((bare[:-1] + bare[1:]) / 2))[UNTIMED:]


@pytest.fixture
def images(tmp_path):
    """As many bytes per image as CIFAR-10's."""
    draw = np.random.default_rng(0)
    x = {
        f"x_{part}": draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for part, n in (("train", 2048), ("test", 8))
    }
    np.savez(tmp_path / "images.npz", **x, y_train=np.arange(2048) % 8, y_test=np.arange(8))
    return str(tmp_path / "images.npz")


@pytest.mark.parametrize("arch", ["cnn", "lm"])
def test_loop_overhead(benchmark, tmp_path, images, arch):
    """The CNN at batch 128 on images of 32x32, the language model `tiny` at batch 16."""
    given = {"data": images, "batch": 128, "lr": 1e-3} if arch == "cnn" else {"batch": 16}
    config = resolve(arch, {**QUIET, **given})
    watch = Interleaved(Bare(prepare(config)))
    (tmp_path / "run").mkdir()
    job = prepare(config)
    ds = benchmark.pedantic(run, args=(job, tmp_path / "run", watch), rounds=1)
    (low, low_wall), (middle, middle_wall), (high, high_wall) = np.quantile(watch.ratios, [0.25, 0.5, 0.75], axis=0)
    update = float(np.median(np.array(watch.bare_times)[UNTIMED:, 0])) / SEGMENT
    kept = json.loads(ds.attrs["timing"])["checkpoints_seconds"] / len(job.pinned)
    total = middle + kept / CHECKPOINT_EVERY / update
    said = (
        f"{arch}: bare update {1e3 * update:.1f} ms; the loop takes {middle:.3f} of it ({low:.3f} to {high:.3f}), "
        f"by the clock {middle_wall:.3f} ({low_wall:.3f} to {high_wall:.3f}): medians and quartiles of "
        f"{len(watch.ratios)} segments of {SEGMENT} updates; a checkpoint {1e3 * kept:.0f} ms; together {total:.3f}"
    )
    print("\n" + said)
    benchmark.extra_info.update({"said": said})
    np.testing.assert_allclose(watch.losses, watch.bare.losses, rtol=1e-3)  # the same work was done
    assert total < TARGET + (high - low) / 2  # what a busy machine leaves of the figure
