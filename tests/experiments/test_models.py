"""The architectures: parameter counts, input sizes, what each refuses."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from riverval.errors import InputError  # noqa: E402
from riverval.experiments.config import resolve  # noqa: E402
from riverval.experiments.models import ARCHITECTURES, neox  # noqa: E402
from riverval.experiments.train import make_optimizer  # noqa: E402


def count(model):
    return sum(p.numel() for p in model.parameters())


def cnn(shape, classes=10, **given):
    config = resolve("cnn", given)
    return config, ARCHITECTURES["cnn"].build(config, {"shape": list(shape), "classes": classes})


def test_the_default_cnn_has_334442_parameters_on_colour_images():
    assert count(cnn((32, 32, 3))[1]) == 334_442


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 15, 2), (28, 28, 1)])
def test_the_cnn_fits_other_images(shape):
    _, model = cnn(shape, classes=3, widths=(2, 3, 4, 5, 6))
    assert model(torch.zeros(2, shape[2], shape[0], shape[1])).shape == (2, 3)


def test_images_too_small_for_the_pooling_are_refused():
    with pytest.raises(InputError, match="7x9 are too small"):
        cnn((7, 9, 1))


@pytest.mark.parametrize(
    ("size", "expected"), [("14m", 14_067_712), ("31m", 30_494_720), ("70m", 70_426_624), ("160m", 162_322_944)]
)
def test_the_language_models_have_the_pythia_parameter_counts(size, expected):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        assert count(neox(size, vocab=50304, seq=2048)) == expected


def test_the_tiny_language_model_is_causal_and_rotates_a_quarter_of_each_head():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = neox("tiny", vocab=257, seq=16).eval()
    assert 0.9e6 < count(model) < 1.2e6
    assert model.gpt_neox.rotary_emb.inv_freq.numel() * 2 == 128 // 4 // 4
    tokens = torch.randint(257, (1, 16))
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 257
    with torch.no_grad():
        first, second = (model(input_ids=t).logits[0, :-1] for t in (tokens, changed))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("arch", ["cnn", "lm"])
def test_weight_decay_spares_norms_and_biases(arch):
    if arch == "lm":
        pytest.importorskip("transformers")
    config = resolve(arch, {"weight_decay": 0.3})
    facts = {"shape": [8, 8, 1], "classes": 10, "vocab": 257}
    model = config.architecture.build(config, facts)
    decayed, plain = make_optimizer(model, config).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    spared = {id(p) for p in plain["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in spared) == (name.endswith("bias") or "norm" in name), name
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
