"""Augmentation of image batches: flips and shifts, all images of a batch at once, on their device.

What is drawn is a function of (seed, step) alone, so a resumed or branched run sees the images it would have seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from .seeds import Stream, generator


def augmented(pixels: Tensor, *, seed: int, step: int) -> Tensor:
    """Every image flipped left to right with probability 1/2 and cut at a random place from itself with a black rim.

    The rim is `rim` pixels wide (4 for CIFAR-10), so the places are (2 rim + 1)^2, all equally likely, and the cut is
    as large as the image. This is the usual augmentation of CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2).

    Args:
        pixels: raw values, black 0, shape (n, height, width, channels).
        seed: of the run.
        step: update that the batch is for; the same seed and step give the same draws.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    count, height, width, _ = pixels.shape
    margin = rim(height, width)
    drawn = _draws(count, margin, seed, step)
    top, left, flip = torch.from_numpy(drawn).to(pixels.device)  # one transfer for all three
    rows = top[:, None] + torch.arange(height, device=pixels.device)
    across = torch.arange(width, device=pixels.device)
    columns = left[:, None] + torch.where(flip[:, None] == 1, across.flip(0), across)
    image = torch.arange(count, device=pixels.device)
    framed = padded(pixels, (0, 0, margin, margin, margin, margin))
    return framed[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def rim(height: int, width: int) -> int:
    """Pixels by which an image can shift: an eighth of its shorter side, 4 of 32, at least 1."""
    return max(1, min(height, width) // 8)


def _draws(count: int, margin: int, seed: int, step: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Top row, left column and flip (0 or 1) of each image: shape (3, count)."""
    rng = generator(seed, Stream.AUGMENT, step)
    places = rng.integers(0, 2 * margin + 1, size=(2, count))
    return np.concatenate([places, rng.integers(0, 2, size=(1, count))])
