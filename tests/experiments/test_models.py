"""The architectures: parameter counts, what each refuses, and that what they compute is what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from riverval.errors import InputError  # noqa: E402
from riverval.experiments.architecture_base import scaled  # noqa: E402
from riverval.experiments.architectures import ARCHITECTURES, neox  # noqa: E402
from riverval.experiments.config import resolve  # noqa: E402
from riverval.experiments.modules import AttentionBlock, MixerBlock, positions  # noqa: E402
from riverval.hessian import HessianOperator, LossOnBatches  # noqa: E402

IMAGES = [name for name, a in ARCHITECTURES.items() if a.data_kind == "images"]
TEXT = [name for name, a in ARCHITECTURES.items() if a.data_kind == "text"]
CIFAR, DIGITS = (32, 32, 3), (8, 8, 1)
# The smallest of each: factor of its widths, and the shape of its images.
TINY = {
    "cnn": (1 / 16, DIGITS), "cnn-b": (1 / 32, (16, 16, 1)), "cnn-c": (1 / 16, DIGITS), "cnn-d": (1 / 16, (16, 16, 1)),
    "mlp": (1 / 64, DIGITS), "vit": (1 / 8, DIGITS), "mixer": (1 / 16, DIGITS), "lm": (1 / 4, ()), "lstm": (1 / 64, ()),
}  # fmt: skip
VOCAB, SEQ = 11, 6


def count(model):
    return sum(p.numel() for p in model.parameters())


def made(arch, shape=CIFAR, *, classes=10, vocab=257, seed=0, **given):
    """A config and its model."""
    if arch == "lm":
        pytest.importorskip("transformers")
    config = resolve(arch, given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config, config.architecture.build(config, {"shape": list(shape), "classes": classes, "vocab": vocab})


def tiny(arch, dtype=torch.float64, seed=0):
    """A tiny model and a batch of 3."""
    factor, shape = TINY[arch]
    config, model = made(arch, shape, classes=4, vocab=VOCAB, seed=seed, width_factor=factor)
    draw = torch.Generator().manual_seed(1)
    if arch in TEXT:
        tokens = torch.randint(VOCAB, (3, SEQ + 1), generator=draw)
        batch = (tokens[:, :-1], tokens[:, 1:])
    else:
        x = torch.randn((3, shape[2], *shape[:2]), generator=draw, dtype=torch.float64)
        batch = (x.to(dtype), torch.tensor([0, 3, 1]))
    return config.architecture, model.to(dtype), batch


# --- sizes -----------------------------------------------------------------------------------------------------------
COUNTS = {
    "cnn": (334_442, 87_882), "cnn-b": (333_898, None), "cnn-c": (334_346, 333_770), "cnn-d": (333_930, None),
    "mlp": (855_050, 85_002), "vit": (303_818, 301_002), "mixer": (304_202, 276_426),
}  # fmt: skip


@pytest.mark.parametrize("arch", IMAGES)
def test_the_parameters_of_the_image_nets_on_colour_images_and_on_digits(arch):
    colour, digits = COUNTS[arch]
    assert count(made(arch)[1]) == colour
    if digits is not None:
        _, model = made(arch, DIGITS)
        assert count(model) == digits
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        return
    with pytest.raises(InputError, match=r"8x8 are too small for 4 poolings .* needs 16x16 or more"):
        made(arch, DIGITS)


@pytest.mark.parametrize(
    ("arch", "layers"),
    [
        ("cnn", "16/5 pool 32/5 pool 64/3 pool 64/3 256 10"),
        ("cnn-b", "64/5 pool 64/5 pool 128/3 pool 128/3 pool 10"),
        ("cnn-c", "32/3 128/3 pool 128/3 128/3 pool mean 10"),
        ("cnn-d", "16/3 pool 32/3 pool 64/3 pool 64/3 pool 1024 10"),
    ],
)
def test_the_layers_of_the_convolutional_nets(arch, layers):
    """Convolutions as channels/side; the parameters are counted above, but a pooling can move without changing them."""
    nn, found, active = torch.nn, [], []
    for m in made(arch)[1]:
        if isinstance(m, nn.Conv2d):
            found.append(f"{m.out_channels}/{m.kernel_size[0]}")
        elif isinstance(m, nn.Linear):
            found.append(str(m.out_features))
        elif isinstance(m, nn.MaxPool2d | nn.AdaptiveAvgPool2d):
            found.append("pool" if isinstance(m, nn.MaxPool2d) else "mean")
        elif isinstance(m, nn.ReLU):
            active.append(found[-1])
    assert " ".join(found) == layers
    assert active == [layer for layer in found[:-1] if layer not in ("pool", "mean")]


@pytest.mark.parametrize(
    ("size", "expected"), [("14m", 14_067_712), ("31m", 30_494_720), ("70m", 70_426_624), ("160m", 162_322_944)]
)
def test_the_language_models_have_the_pythia_parameter_counts(size, expected):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        assert count(neox(size, vocab=50304, seq=2048)) == expected


def test_the_small_language_models_have_about_a_million_parameters():
    assert count(made("lm")[1]) == 1_057_408
    assert count(made("lstm")[1]) == 1_184_513


def test_the_tiny_language_model_rotates_a_quarter_of_each_head():
    model = made("lm")[1]
    assert model.gpt_neox.rotary_emb.inv_freq.numel() * 2 == 128 // 4 // 4


def test_attention_and_perceptron_of_the_language_model_see_the_same_input():
    """The parallel residual of the Pythia family: both add to what comes in."""
    _, model, (tokens, _) = tiny("lm")
    layer, seen = model.gpt_neox.layers[0], {}
    for name, module in {"layer": layer, "attention": layer.attention, "mlp": layer.mlp}.items():
        module.register_forward_hook(
            lambda module, given, kept, result, name=name: seen.update({name: (given, result)}), with_kwargs=True
        )
    with torch.no_grad():
        model(input_ids=tokens)
        (x, *_), out = seen["layer"]
        added = [r[0] if isinstance(r, tuple) else r for r in (seen["attention"][1], seen["mlp"][1])]
        torch.testing.assert_close(out[0] if isinstance(out, tuple) else out, x + added[0] + added[1])
        torch.testing.assert_close(seen["mlp"][0][0], layer.post_attention_layernorm(x))


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 15, 2), (28, 28, 1)])
def test_the_cnn_fits_other_images(shape):
    _, model = made("cnn", shape, classes=3, widths=(2, 3, 4, 5, 6))
    assert model(torch.zeros(2, shape[2], shape[0], shape[1])).shape == (2, 3)


def expected_at(arch, f):
    """The parameters at `width_factor` f, counted by hand for 32x32x3 images or 257 tokens."""
    if arch == "cnn":
        w = [3, *(round(f * k) for k in (16, 32, 64, 64, 256))]
        convs = sum(k * k * a * b + b for k, a, b in zip((5, 5, 3, 3), w, w[1:], strict=False))
        return convs + 16 * w[4] * w[5] + w[5] + 10 * w[5] + 10
    if arch == "mlp":
        w = round(256 * f)
        return 3072 * w + w + w * w + w + 10 * w + 10
    w = round({"vit": 64, "mixer": 64, "lm": 128, "lstm": 256}[arch] * f)
    patches, end = 48 * w + w, 2 * w + 10 * w + 10
    if arch == "vit":
        return patches + 6 * (4 * w * w + 4 * w + 8 * w * w + 5 * w + 4 * w) + end
    if arch == "mixer":
        tokens = 2 * 64 * (w // 2) + w // 2 + 64
        return patches + 8 * (tokens + 8 * w * w + 5 * w + 4 * w) + end
    if arch == "lm":
        return 2 * 257 * w + 5 * (12 * w * w + 9 * w + 4 * w) + 2 * w
    return 2 * 257 * w + 257 + 2 * (8 * w * w + 8 * w)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("arch", ["cnn", "mlp", "vit", "mixer", "lm", "lstm"])
def test_one_factor_scales_every_hidden_width(arch, factor):
    assert count(made(arch, width_factor=factor)[1]) == expected_at(arch, factor)


@pytest.mark.parametrize("arch", IMAGES)
def test_the_factor_leaves_what_is_no_hidden_width(arch):
    _, model = made(arch, width_factor=0.5)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_given_widths_are_scaled_too():
    assert [m.out_channels for m in made("cnn-c", widths=(2, 4, 6, 8), width_factor=1.5)[1] if hasattr(m, "kernel_size")
            and hasattr(m, "out_channels")] == [3, 6, 9, 12]  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "factor", "message"),
    [
        ("cnn", 0.3, r"4.8, 9.6, 19.2, 19.2, 76.8; they must be whole numbers: choose a multiple of 1/16$"),
        ("cnn-b", 0.01, "whole numbers: choose a multiple of 1/64"),
        ("mlp", 1e-9, "choose a multiple of 1/256"),
        ("vit", 1.01, "64.64; they must be multiples of 4 heads: choose a multiple of 1/16"),
        ("vit", 1 + 1 / 64, "hidden widths 65; they must be multiples of 4 heads"),
        ("mixer", 1 + 1 / 64, "must be even.*choose a multiple of 1/32"),
        ("lm", 0.125, "multiples of 32, for 4 heads of which a quarter is rotated in pairs: choose a multiple of 1/4"),
        ("lstm", 1.001, "choose a multiple of 1/256"),
        ("mlp", 0, "width_factor"),
        ("vit", -1.0, "width_factor"),
        ("lm", math.nan, "width_factor"),
    ],
)
def test_a_factor_that_does_not_divide_is_refused_before_anything_is_built(arch, factor, message):
    with pytest.raises(InputError, match=message):
        resolve(arch, {"width_factor": factor})


def test_a_factor_with_a_rounding_error_is_exact():
    assert scaled((48, 96), 1 / 3) == (16, 32)
    assert scaled((30,), 0.1 + 0.2) == (9,)


@pytest.mark.parametrize(("arch", "widths"), [("cnn", (1, 2, 3, 4)), ("cnn-b", (1, 2, 3, 4, 5)), ("cnn-d", (0,) * 5)])
def test_widths_that_do_not_fit_are_refused(arch, widths):
    with pytest.raises(InputError, match="widths"):
        resolve(arch, {"widths": widths})


@pytest.mark.parametrize("arch", ["vit", "mixer"])
@pytest.mark.parametrize(("shape", "patch"), [((30, 32, 3), 4), ((32, 30, 3), 4), ((9, 12, 1), 2)])
def test_images_that_do_not_divide_into_patches_are_refused(arch, shape, patch):
    with pytest.raises(InputError, match=rf"{shape[0]}x{shape[1]} do not divide into the patches of {patch}x{patch}"):
        made(arch, shape)


def test_images_too_small_for_the_pooling_are_refused():
    with pytest.raises(InputError, match="7x9 are too small"):
        made("cnn", (7, 9, 1))


# --- losses ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_and_entropies_are_those_of_the_softmax(arch):
    architecture, model, batch = tiny(arch)
    model.requires_grad_(False)
    losses, entropies = architecture.elementwise(model, batch)
    assert losses.shape == entropies.shape == batch[1].shape
    for place in np.ndindex(*batch[1].shape):
        z = architecture.logits(model, batch)[place].numpy()
        p = np.exp(z) / np.exp(z).sum()
        assert float(losses[place]) == pytest.approx(-np.log(p[batch[1][place]]))
        assert float(entropies[place]) == pytest.approx(-sum(p * np.log(p)))
    loss, hits = architecture.loss_and_hits(model, batch)
    assert float(loss) == pytest.approx(float(losses.mean()))
    assert float(architecture.loss(model, batch)) == float(loss)
    if architecture.has_accuracy:
        assert int(hits) == sum(architecture.logits(model, batch).argmax(1) == batch[1])
    else:
        assert hits is None


def test_the_entropy_of_a_certain_prediction_is_zero_and_of_none_that_of_the_uniform():
    architecture = ARCHITECTURES["mlp"]
    logits = torch.tensor([[0.0, -math.inf, -1e30], [5.0, 5.0, 5.0]], dtype=torch.bfloat16)
    losses, entropies = architecture.elementwise(lambda x: x, (logits, torch.tensor([0, 2])))
    assert losses.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(losses, torch.tensor([0.0, math.log(3.0)]))
    torch.testing.assert_close(entropies, torch.tensor([0.0, math.log(3.0)]))


@pytest.mark.parametrize("arch", TEXT)
def test_no_loss_depends_on_a_later_token_and_all_on_earlier_ones(arch):
    architecture, model, (tokens, targets) = tiny(arch)
    losses, entropies = architecture.elementwise(model, (tokens, targets))
    for place in range(SEQ):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCAB
        other, otherwise = architecture.elementwise(model, (changed, targets))
        for first, second in ((losses, other), (entropies, otherwise)):
            torch.testing.assert_close(first[:, :place], second[:, :place], rtol=0, atol=1e-12)
            assert bool((first[:, place:] != second[:, place:]).all())


# --- derivatives -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_gradient_reaches_every_parameter(arch):
    architecture, model, batch = tiny(arch)
    architecture.loss(model, batch).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_hessian_products_are_symmetric_and_the_differences_of_gradients(arch):
    architecture, model, batch = tiny(arch)
    loss = LossOnBatches(model, architecture.loss, [batch])
    operator, w = HessianOperator(loss), loss.point()
    draw = torch.Generator().manual_seed(2)
    u, v = (torch.randn(loss.dim, generator=draw, dtype=w.dtype) for _ in range(2))
    product = operator @ v
    assert float(u @ product) == pytest.approx(float(v @ (operator @ u)), rel=1e-9)
    eps = 1e-6
    difference = (loss.gradient(w + eps * v)[1] - loss.gradient(w - eps * v)[1]) / (2 * eps)
    assert float((difference - product).norm() / product.norm()) < 1e-5


@pytest.mark.parametrize("arch", ["vit", "lm", "lstm"])
def test_hessian_products_in_single_precision_use_kernels_with_a_second_derivative(arch):
    """Fused attention and some LSTM kernels, which only run in float32, have none."""
    found = []
    for dtype in (torch.float64, torch.float32):
        architecture, model, batch = tiny(arch, dtype)
        loss = LossOnBatches(model, architecture.loss, [batch])
        draw = torch.Generator().manual_seed(2)
        found.append(HessianOperator(loss) @ torch.randn(loss.dim, generator=draw, dtype=torch.float64).to(dtype))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-4


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_seed_gives_one_start_and_another_another(arch):
    first, again, other = ([p.detach() for p in tiny(arch, seed=s)[1].parameters()] for s in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_vectors_among_the_parameters_are_the_biases_and_norms(arch):
    """So weight decay on everything else spares just these."""
    for name, p in tiny(arch)[1].named_parameters():
        assert (p.ndim < 2) == ("bias" in name or "norm" in name), name


# --- blocks ----------------------------------------------------------------------------------------------------------
def test_attention_is_the_softmax_of_scaled_products():
    torch.manual_seed(0)
    block = AttentionBlock(8, 2).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    q, k, v = block.qkv(block.norm1(x))[0].split(8, dim=1)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(q[:, h] @ k[:, h].T / 2.0, dim=1)  # the root of 4, the width of a head
        heads.append(weights @ v[:, h])
    middle = x + block.out(torch.cat(heads, dim=1))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def test_only_its_positions_tell_the_transformer_the_order_of_patches():
    _, model = made("vit", DIGITS, classes=3)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = x.roll(2, dims=3)  # by one patch of 2 pixels
    with torch.no_grad():
        assert float((model(x) - model(turned)).abs().max()) > 1e-4
        model.positions.zero_()
        torch.testing.assert_close(model(x), model(turned))


def test_positions_are_sines_and_cosines_of_row_and_column():
    found = positions(2, 3, 8)
    assert found.shape == (6, 8)
    for r in range(2):
        for c in range(3):
            for j, w in enumerate((1.0, 1e-4)):
                expected = [math.sin(c * w), math.cos(c * w), math.sin(r * w), math.cos(r * w)]
                assert found[3 * r + c, j::2].tolist() == pytest.approx(expected)


def test_a_mixer_block_mixes_patches_then_channels():
    torch.manual_seed(0)
    block = MixerBlock(3, 4).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    normed, mixed = block.norm1(x), x.clone()
    for channel in range(4):
        mixed[0, :, channel] += block.tokens(normed[0, :, channel])
    for patch in range(3):
        mixed[0, patch] += block.channels(block.norm2(mixed)[0, patch])
    torch.testing.assert_close(block(x), mixed)


def test_the_lstm_is_the_recurrence_of_its_gates():
    """Hochreiter and Schmidhuber 1997 with forget gates, layer by layer, from a zero state."""
    _, model, (tokens, _) = tiny("lstm")
    x = model.embed(tokens[:1])[0]
    for layer in range(2):
        wi, wh, bi, bh = (
            getattr(model.lstm, f"{k}_l{layer}") for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = torch.zeros(wh.shape[1], dtype=x.dtype)
        rows = []
        for token in x:
            i, f, g, o = (wi @ token + bi + wh @ h + bh).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            rows.append(h)
        x = torch.stack(rows)
    torch.testing.assert_close(model(tokens[:1])[0], model.head(x))
