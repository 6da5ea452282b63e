"""Architectures for labelled images: convolutional nets, a multilayer perceptron, a vision transformer, an MLP-Mixer.

None has batch norm or dropout, so the loss is a function of the parameters alone, the same in training and evaluation.
Parameters are counted for 32x32x3 images of 10 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .._checks import check_int
from ..errors import InputError
from .architecture_base import QUICK, Architecture, scaled

if TYPE_CHECKING:
    from torch import nn

    from .config import RunConfig


SMALL = ("digits", "digits16")  # data for which the defaults are those of digits


class ImageModel(Architecture):
    """What all architectures for images share.

    Attributes:
        rates: default peak learning rate on digits, and on larger images.
        small: measurement defaults on digits, unless the user says otherwise: a quarter of the run at most.
        large: defaults where the images are larger than digits, likewise.
    """

    data_kind = "images"
    own: ClassVar[tuple[str, ...]] = ("epochs", "augment")
    cooldown = 0.35
    has_accuracy = True
    defaults = {
        "data": "digits",
        "epochs": 12.0,
        "batch": 16,
        "weight_decay": 0.01,
        "betas": (0.9, 0.999),
        "eval_every": 30,
        "eval_examples": 10_000,
        "threads": 1,  # so small a net gains nothing from a second thread and loses much where a core is busy
    }
    small: ClassVar[Mapping[str, Any]] = {
        **QUICK, "line_examples": 256, "hessian_examples": 128, "descent_examples": 256,
    }  # fmt: skip
    large: ClassVar[Mapping[str, Any]] = {
        "batch": 128, "epochs": 5.0, "eval_every": 100, "line_examples": 2048, "hessian_examples": 512,
        "threads": None,
    }  # fmt: skip
    rates: ClassVar[tuple[float, float]]

    def defaults_for(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        large = chosen.get("data", self.defaults["data"]) not in SMALL
        own = {**self.defaults, **(self.large if large else self.small), "lr": self.rates[large]}
        return {k: v for k, v in own.items() if k not in chosen}


# --- convolutions ----------------------------------------------------------------------------------------------------
class CNN(ImageModel):
    """Four convolutions (5x5, 5x5, 3x3, 3x3), ReLU, 2x2 max-pooling after the first three, one hidden layer.

    At the default widths 16-32-64-64-256: 334,442 parameters and about 6.5 million multiply-adds per image. This is
    derived from the "about 334K parameters, four convolutional layers" of arXiv:2601.09000, whose listing is not
    public; it is not the authors' net. Nor does the count identify one: `CNNB`, `CNNC` and `CNND` share it too.

    Attributes:
        kernels: side of each convolution; padded, so that the size stays.
        pools: after which convolutions a 2x2 max-pooling follows, counted from 1.
        averaged: mean over all places after the last one, instead of one input per place.
        hidden: whether a hidden layer follows; its width is the last of `widths`.
    """

    name = "cnn"
    own = (*ImageModel.own, "widths")
    rates = (1e-2, 3e-3)
    defaults = {**ImageModel.defaults, "widths": (16, 32, 64, 64, 256)}
    kernels: ClassVar[tuple[int, ...]] = (5, 5, 3, 3)
    pools: ClassVar[tuple[int, ...]] = (1, 2, 3)
    averaged: ClassVar[bool] = False
    hidden: ClassVar[bool] = True

    def check(self, config: RunConfig) -> None:
        usual = self.defaults["widths"]
        if len(config.widths) != len(usual):
            layers = "four convolutions and the hidden layer" if self.hidden else "four convolutions"
            raise InputError(
                f"widths of --arch {self.name} must be {layers}, e.g. {','.join(map(str, usual))}, got {config.widths}"
            )
        for width in config.widths:
            check_int("widths", width, low=1)
        scaled(config.widths, config.width_factor)

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        from torch import nn

        height, width, channels = facts["shape"]
        side = 2 ** len(self.pools)
        if min(height, width) < side:
            raise InputError(
                f"images of {height}x{width} are too small for {len(self.pools)} poolings by 2x2; --arch {self.name} "
                f"needs {side}x{side} or more"
            )
        widths = scaled(config.widths, config.width_factor)
        layers: list[nn.Module] = []
        before = channels
        for k, (after, kernel) in enumerate(zip(widths[: len(self.kernels)], self.kernels, strict=True), 1):
            layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU()]
            if k in self.pools:
                layers.append(nn.MaxPool2d(2))
            before = after
        layers += [nn.AdaptiveAvgPool2d(1)] * self.averaged + [nn.Flatten()]
        before *= 1 if self.averaged else (height // side) * (width // side)
        if self.hidden:
            layers += [nn.Linear(before, widths[-1]), nn.ReLU()]
            before = widths[-1]
        return nn.Sequential(*layers, nn.Linear(before, facts["classes"]))


class CNNB(CNN):
    """Convolutions 64-64 (5x5) and 128-128 (3x3), max-pooling after each, no hidden layer: 333,898 parameters.

    About 38 million multiply-adds per image. One of the nets that the 334K of arXiv:2601.09000 could be; see `CNN`.
    """

    name = "cnn-b"
    rates = (1e-3, 1e-3)
    defaults = {**CNN.defaults, "data": "digits16", "widths": (64, 64, 128, 128)}  # digits are too small for it
    pools = (1, 2, 3, 4)
    hidden = False


class CNNC(CNN):
    """Convolutions 32-128-128-128 (3x3), max-pooling after the second and fourth, then the mean over all places.

    334,346 parameters. One of the nets that the 334K of arXiv:2601.09000 could be; see `CNN`.
    """

    name = "cnn-c"
    rates = (3e-3, 3e-3)
    defaults = {**CNN.defaults, "widths": (32, 128, 128, 128)}
    kernels = (3, 3, 3, 3)
    pools = (2, 4)
    averaged = True
    hidden = False


class CNND(CNN):
    """Convolutions 16-32-64-64 (3x3), max-pooling after each, a hidden layer of 1024: 333,930 parameters.

    One of the nets that the 334K of arXiv:2601.09000 could be; see `CNN`.
    """

    name = "cnn-d"
    rates = (3e-3, 3e-3)
    defaults = {**CNN.defaults, "data": "digits16", "widths": (16, 32, 64, 64, 1024)}  # digits are too small for it
    kernels = (3, 3, 3, 3)
    pools = (1, 2, 3, 4)


# --- the others ------------------------------------------------------------------------------------------------------
class MLP(ImageModel):
    """All pixels into two hidden layers of 256 with ReLU: 855,050 parameters, most of them of the first layer."""

    name = "mlp"
    rates = (3e-3, 1e-3)
    widths: ClassVar[tuple[int, ...]] = (256, 256)

    def check(self, config: RunConfig) -> None:
        scaled(self.widths, config.width_factor)

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        from torch import nn

        height, width, channels = facts["shape"]
        layers: list[nn.Module] = [nn.Flatten()]
        before = height * width * channels
        for after in scaled(self.widths, config.width_factor):
            layers += [nn.Linear(before, after), nn.ReLU()]
            before = after
        return nn.Sequential(*layers, nn.Linear(before, facts["classes"]))


class ViT(ImageModel):
    """A plain vision transformer: 6 blocks of width 64, 4 heads, patches of 4x4: 303,818 parameters.

    The simple design of Beyer, Zhai, Kolesnikov 2022 (arXiv:2205.01580): fixed two-dimensional sine and cosine
    positions, layer norm before attention and before the perceptron (4 times as wide, GELU), and the mean over all
    patches instead of a class token. Patches are 2x2 where the shorter side of an image is below 16 pixels.
    """

    name = "vit"
    rates = (1e-3, 1e-3)
    width: ClassVar[int] = 64
    depth: ClassVar[int] = 6
    heads: ClassVar[int] = 4

    def check(self, config: RunConfig) -> None:
        self._width(config)

    def _width(self, config: RunConfig) -> int:
        # A quarter of the width each for sine and cosine of row and column: another reason for multiples of 4.
        (width,) = scaled((self.width,), config.width_factor, unit=self.heads, why=f"multiples of {self.heads} heads")
        return width

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        from .modules import VisionTransformer

        return VisionTransformer(
            facts["shape"], facts["classes"], patch=patch_size(facts["shape"], self.name), width=self._width(config),
            depth=self.depth, heads=self.heads,
        )  # fmt: skip


class Mixer(ImageModel):
    """An MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601): 8 blocks of width 64, 4x4 patches: 304,202 parameters.

    As in the paper's models, the perceptron over patches is half as wide as a patch's vector and the one over channels
    4 times; GELU, layer norm before each, the mean over all patches at the end. Patches are 2x2 where the shorter side
    of an image is below 16 pixels. The number of patches is no hidden width: `width_factor` leaves it.
    """

    name = "mixer"
    rates = (1e-3, 1e-3)
    width: ClassVar[int] = 64
    depth: ClassVar[int] = 8

    def check(self, config: RunConfig) -> None:
        self._width(config)

    def _width(self, config: RunConfig) -> int:
        (width,) = scaled((self.width,), config.width_factor, unit=2, why="even, as half of one is a width too")
        return width

    def build(self, config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        from .modules import MLPMixer

        return MLPMixer(
            facts["shape"], facts["classes"], patch=patch_size(facts["shape"], self.name), width=self._width(config),
            depth=self.depth,
        )  # fmt: skip


SMALL_SIDE = 16  # shorter sides than this are cut into patches of 2x2, others of 4x4


def patch_size(shape: tuple[int, ...], arch: str) -> int:
    """Side of the patches of images (height, width, channels).

    Raises:
        InputError: the sides are no multiples of it.
    """
    height, width = shape[:2]
    patch = 2 if min(height, width) < SMALL_SIDE else 4
    if height % patch or width % patch:
        raise InputError(
            f"images of {height}x{width} do not divide into the patches of {patch}x{patch} that --arch {arch} cuts; "
            f"crop or pad them to multiples of {patch}"
        )
    return patch
