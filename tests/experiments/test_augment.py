"""Augmentation: where each pixel goes, that every place is equally likely, that seed and step determine it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from riverval.errors import InputError  # noqa: E402
from riverval.experiments.augment import _draws, augmented, rim  # noqa: E402
from riverval.experiments.config import resolve  # noqa: E402
from riverval.experiments.data import Images, load_images  # noqa: E402


def pixels(n=6, height=32, width=32, channels=3):
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (n, height, width, channels), dtype=np.uint8))


def by_hand(image, top, left, flip, margin):
    """One image, pixel by pixel."""
    height, width, _ = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            r, c = row + top - margin, (width - 1 - column if flip else column) + left - margin
            if 0 <= r < height and 0 <= c < width:
                out[row, column] = image[r, c]
    return out


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (9, 14, 2)])
def test_each_image_is_cut_from_its_frame_and_flipped(shape):
    images, margin = pixels(5, *shape), rim(*shape[:2])
    found = augmented(images, seed=3, step=7)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    drawn = _draws(5, margin, 3, 7).T.tolist()
    assert len({flip for *_, flip in drawn}) == 2
    for image, got, (top, left, flip) in zip(images, found, drawn, strict=True):
        assert torch.equal(got, by_hand(image, top, left, flip, margin))


def test_the_rim_is_an_eighth_of_the_shorter_side():
    assert [rim(32, 32), rim(8, 8), rim(28, 64), rim(64, 28), rim(4, 4)] == [4, 1, 3, 3, 1]


def test_the_draws_depend_on_seed_and_step_only():
    images = pixels()
    first = augmented(images, seed=0, step=5)
    assert torch.equal(first, augmented(images, seed=0, step=5))
    assert not torch.equal(first, augmented(images, seed=0, step=6))
    assert not torch.equal(first, augmented(images, seed=1, step=5))


def test_every_place_and_both_sides_are_equally_likely_and_independent():
    drawn = np.concatenate([_draws(1000, 4, 0, step) for step in range(40)], axis=1)
    top, left, flip = drawn
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 8, 0, 8)
    places = np.bincount(9 * top + left, minlength=81)
    expected = drawn.shape[1] / 81
    chi = ((places - expected) ** 2 / expected).sum()
    assert chi < 80 + 4 * np.sqrt(160)  # four standard deviations of chi-squared with 80 degrees of freedom
    assert abs(flip.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(flip))
    for a, b in ((top, left), (top, flip), (left, flip)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(flip))


def data(**given):
    x = pixels(12, 8, 8, 1).numpy()
    return Images({"x_train": x, "y_train": np.arange(12) % 3, "x_test": x[:4], "y_test": np.arange(4) % 3}, batch=5,
                  seed=2, **given)  # fmt: skip


def test_only_training_batches_are_augmented_and_only_if_asked_for():
    plain, changed = data(), data(augment=True)
    assert torch.equal(plain.batch(4)[0], data(augment=False).batch(4)[0])
    for step in (0, 2, 4):
        (x, y), (other, labels) = plain.batch(step), changed.batch(step)
        assert torch.equal(y, labels)
        assert x.shape == other.shape
        assert not torch.equal(x, other)
        assert torch.equal(other, data(augment=True).batch(step)[0])
    for part in ("train", "val"):
        assert torch.equal(plain.fixed(part)[0][0], changed.fixed(part)[0][0])


def test_the_draws_of_the_data_are_those_of_its_seed_and_step():
    plain, changed = data(), data(augment=True)
    plain.batch(4)
    raw = plain._parts["train"][0][plain._order[1][5:10]]  # the second batch of five in the epoch of updates 3 to 5
    assert torch.equal(plain.batch(4)[0], plain._normalised(raw))
    assert torch.equal(changed.batch(4)[0], plain._normalised(augmented(raw, seed=2, step=4)))


def test_the_rim_is_black_before_normalisation():
    changed = data(augment=True)
    black = changed._normalised(torch.zeros(1, 8, 8, 1, dtype=torch.uint8))[0, 0, 0, 0]
    x = changed.batch(0)[0]
    assert float(x.min()) == float(black)  # no pixel of the images themselves is black
    assert bool((x == black).any(dim=(1, 2, 3)).any())


def test_augment_reaches_the_data_from_the_config_and_is_refused_for_text():
    pytest.importorskip("sklearn")
    plain, changed = (load_images(resolve("mlp", {"augment": flag})) for flag in (False, True))
    assert plain.sha256 == changed.sha256
    assert not torch.equal(plain.batch(0)[0], changed.batch(0)[0])
    with pytest.raises(InputError, match=r"--augment belongs to --arch cnn.* not to lm"):
        resolve("lm", {"augment": True})
