"""The loop over updates: noise drawn in blocks, updates made by compiled code or, as its oracle, by NumPy.

Blocks of noise are drawn by several streams of random numbers in turn, so that threads can draw at the same time. Which
stream draws what depends on the size of the run alone, and the updates are made in order: neither the number of threads
nor the way the updates are made shows in any result.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Condition
from typing import Any

import numpy as np

from .._typing import FloatArray, IntArray
from ._kernels import LARGE, load, source_of
from .setting import STATIONARY, Setting

NORMALS_IN_BLOCK = 262_144
"""Normals drawn at a time: few enough for the cache, many enough that what is done for each block costs nothing."""

STREAMS, FEWEST_FOR_STREAMS = 16, 16
"""Streams of a run, and the number of replicates from which it has them; smaller ones have one."""


class Ensemble:
    """The replicates of some settings, which share their noise.

    Block b of the noise, the updates from b `block` to (b + 1) `block`, is drawn by the stream b modulo their number.
    """

    def __init__(self, settings: Sequence[Setting], replicates: int, rng: np.random.Generator, compiled: bool) -> None:
        self.total = max(setting.total for setting in settings)
        self._model, self._dim, self._width = settings[0].model, settings[0].loss.dim, replicates
        self.block = min(max(NORMALS_IN_BLOCK // (self._dim * replicates), 1), self.total)
        self._streams = rng.spawn(STREAMS) if replicates >= FEWEST_FOR_STREAMS else [rng]
        draws = None
        if settings[0].start == STATIONARY:
            # The river coordinate is not random, and none is drawn for it.
            draws = np.zeros((self._dim, replicates))
            draws[1:] = self._streams[0].standard_normal((self._dim - 1, replicates))
        self.runs = [(CompiledRun if compiled else NumPyRun)(setting, replicates, draws) for setting in settings]
        self._turn, self._next = Condition(), 0
        self._spare: list[FloatArray] = []

    @property
    def most_threads(self) -> int:
        """Threads that may advance it at the same time: a stream must have drawn one block before it draws the next."""
        return len(self._streams)

    @property
    def blocks(self) -> int:
        """Number of blocks of the longest run."""
        return -(-self.total // self.block)

    def advance(self, b: int) -> None:
        """Make the updates of block `b`. Threads may do blocks at the same time: they wait for those before them."""
        count = min(self.block, self.total - b * self.block)
        try:
            room = self._spare.pop()
        except IndexError:  # as many as there are threads
            room = np.empty((self.block, self._dim, self._width))
        xi = room[:count]
        try:
            try:
                self._model.draw(self._streams[b % len(self._streams)], xi)
            finally:  # those who wait for this block must not do so for ever, whatever becomes of it
                with self._turn:
                    self._turn.wait_for(lambda: self._next == b)
            for run in self.runs:
                run.pass_by(xi)
        finally:
            self._spare.append(room)
            with self._turn:
                self._next += 1
                self._turn.notify_all()


class NumPyRun:
    """Replicates of one setting, updated by NumPy: the oracle of the compiled code, and quicker for small runs.

    `made` counts the updates. `copies` gathers the points at the recorded states, (states, points, dim, width) each,
    with one point, or two where there is an average; another thread may collect them. It is only ever added to.
    """

    def __init__(self, setting: Setting, width: int, draws: FloatArray | None) -> None:
        self.loss, self.optimizer, self.model = setting.loss, setting.optimizer, setting.model
        self.total, self.made = setting.total, 0
        self.w = _start(setting, width, draws)
        self.states: Any = self._fresh_states()
        self.varying = np.ascontiguousarray(self.optimizer.coefficients(setting.schedule.values()))
        self.constants = self.optimizer.constants()
        self.average = self.point().copy() if setting.average is not None else None
        self.weights = setting.average.weights(self.total) if setting.average is not None else np.empty(0)
        self.scales = self.model.scales(self.loss)
        self.alive = np.ones(width, dtype=np.bool_)
        self.diverged_at = np.full(width, -1, dtype=np.int64)
        self._gradient = np.empty_like(self.w)
        self._due = setting.states()[1:]
        self.copies: list[FloatArray] = [self._room(1)]
        self._copy(self.copies[0], 0)
        self._note_divergence()

    def _fresh_states(self) -> Any:
        make = np.copy if self.optimizer.begins_at_start else np.zeros_like
        return [make(self.w) for _ in range(self.optimizer.states)]

    def point(self) -> FloatArray:
        """Where the losses are taken, (dim, width)."""
        k = self.optimizer.evaluated
        point: FloatArray = self.w if k is None else self.states[k]
        return point

    def pass_by(self, xi: FloatArray) -> None:
        """Make the updates that the noise `xi`, (updates, dim, width), is for and the run still has."""
        end = min(len(xi), self.total - self.made)
        due = self._due[: np.searchsorted(self._due, self.made + end, side="right")]
        room = self._room(due.size)
        done = kept = 0
        try:
            while done < end:
                made = self._update(xi, done, end, due, kept, room)
                done += abs(made)
                self.made += abs(made)
                kept = int(np.searchsorted(due, self.made, side="right"))
                if made < 0:
                    self._note_divergence()
        finally:  # Ctrl-C keeps what is there
            if kept:
                self.copies.append(room[:kept])
                self._due = self._due[kept:]

    def _room(self, states: int) -> FloatArray:
        """Uninitialised copies of so many states."""
        return np.empty((states, 1 if self.average is None else 2, *self.w.shape))

    def _copy(self, room: FloatArray, k: int) -> None:
        room[k, 0] = self.point()
        if self.average is not None:
            room[k, 1] = self.average

    def _update(self, xi: FloatArray, begin: int, end: int, due: IntArray, kept: int, room: FloatArray) -> int:
        """Make one update with the noise xi[begin]; returns 1, or -1 where a living replicate has grown large."""
        self.loss.gradient_rows(self.w, self._gradient)
        draws = xi[begin]
        if self.scales is None:
            shaped = self.model.shape_rows(self.loss, self.w, draws)
        else:
            shaped = self.scales[:, None] * draws
        varying, constants = self.varying[self.made].tolist(), self.constants.tolist()
        found = type(self.optimizer).rule(self.w, self._gradient + shaped, *self.states, *varying, *constants)
        self.w, *self.states = found if self.states else (found,)
        if self.average is not None:
            self.average += self.weights[self.made] * (self.point() - self.average)
        if kept < due.size and due[kept] == self.made + 1:
            self._copy(room, kept)
        return -1 if self._large().any() else 1

    def _large(self) -> Any:
        """Which living replicates have a coordinate so large that the loss may not be finite, (width,)."""
        return self.alive & ~np.all(np.abs(self.w) < LARGE, axis=0)

    def _note_divergence(self) -> None:
        """Of the replicates that have grown large, mark those whose loss is not finite."""
        suspects = np.flatnonzero(self._large())
        if suspects.size:
            lost = suspects[~np.isfinite(self.loss.value(self.w[:, suspects].T))]
            self.diverged_at[lost] = self.made
            self.alive[lost] = False


class CompiledRun(NumPyRun):
    """Replicates of one setting, updated by compiled code."""

    def __init__(self, setting: Setting, width: int, draws: FloatArray | None) -> None:
        super().__init__(setting, width, draws)
        kernel = self.loss.kernel()
        self._parameters = kernel.parameters
        self._advance = load(source_of(kernel, self.optimizer, averaged=self.average is not None))
        self._no_average = np.empty((1, 1))

    def _fresh_states(self) -> FloatArray:
        return np.stack(super()._fresh_states()) if self.optimizer.states else np.empty((0, 1, 1))

    def _update(self, xi: FloatArray, begin: int, end: int, due: IntArray, kept: int, room: FloatArray) -> int:
        """Make the updates with the noise xi[begin:end] until a living replicate has grown large."""
        average = self._no_average if self.average is None else self.average
        return self._advance(
            self.w, self.states, average, self.weights, xi, begin, end, self.made, self.scales, self.alive,
            self._parameters, self.varying, self.constants, due, kept, room,
        )  # fmt: skip


def _start(setting: Setting, width: int, draws: FloatArray | None) -> FloatArray:
    """State 0 of every replicate, (dim, width)."""
    mean, variance = setting.start_moments()
    w = np.repeat(mean[:, None], width, axis=1)
    if draws is not None:
        w += np.sqrt(variance)[:, None] * draws
    return w
