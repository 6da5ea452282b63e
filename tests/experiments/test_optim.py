"""Optimizers against their formulas, what decays, the norms, and the state of the machine around a run."""

from __future__ import annotations

import math
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from riverval.errors import InputError  # noqa: E402
from riverval.experiments.config import resolve  # noqa: E402
from riverval.experiments.machine import (  # noqa: E402
    autocast,
    determinism,
    own_randomness,
    pick_device,
    random_states,
    set_random_states,
    stop_asked,
    thread_count,
)
from riverval.experiments.optim import MAKERS, Norms, make_optimizer, set_rate  # noqa: E402

RATES = (0.1, 0.05, 0.2, 0.01)


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    """As in a terminal: a shell has its jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def config(name, **given):
    return resolve("cnn", {"optimizer": name, "lr": 0.1, "weight_decay": 0.3, **given})


def loop(name, x, gradient, decays):
    """Four updates of one number by the formulas of the optimizer, in float64."""
    decay = 0.3 if decays else 0.0
    first = second = buffer = 0.0
    for t, lr in enumerate(RATES, 1):
        g = gradient(x)
        if name == "sgd":
            g += decay * x
            buffer = g if t == 1 else 0.9 * buffer + g
            x -= lr * buffer
            continue
        if name == "adam":
            g += decay * x
        else:
            x -= lr * decay * x
        first, second = 0.8 * first + 0.2 * g, 0.95 * second + 0.05 * g**2
        x -= lr * (first / (1 - 0.8**t)) / (math.sqrt(second / (1 - 0.95**t)) + 1e-3)
    return x


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_an_optimizer_is_its_formula(name):
    model = nn.Linear(1, 1)
    start = {"weight": 0.7, "bias": -0.4}
    with torch.no_grad():
        for p, value in zip(model.parameters(), start.values(), strict=True):
            p.fill_(value)
    own = {"momentum": 0.9} if name == "sgd" else {"betas": (0.8, 0.95), "eps": 1e-3}
    optimizer = make_optimizer(model, config(name, **own))
    for lr in RATES:
        set_rate(optimizer, lr)
        optimizer.zero_grad()
        # Separate losses: sin(x) of the weight, x^2 of the bias.
        (torch.sin(model.weight).sum() + (model.bias**2).sum()).backward()
        optimizer.step()
    assert float(model.weight.detach()) == pytest.approx(loop(name, 0.7, math.cos, True), rel=1e-5)
    assert float(model.bias.detach()) == pytest.approx(loop(name, -0.4, lambda x: 2 * x, False), rel=1e-5)


class RMSNorm(nn.Module):
    """A norm of another library, with a scale that is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 3))


def test_norms_and_biases_do_not_decay():
    model = nn.ModuleDict({
        "conv": nn.Conv2d(1, 2, 3), "batch_norm": nn.BatchNorm2d(2), "layer_norm": nn.LayerNorm((2, 3)),
        "own": RMSNorm(), "embedding": nn.Embedding(4, 2), "frozen": nn.Linear(2, 2), "lstm": nn.LSTM(2, 2),
    })  # fmt: skip
    model["frozen"].requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(model, config("adamw")).param_groups
    found = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    decayed = {name for name, decay in found.items() if decay}
    assert decayed == {"conv.weight", "embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"}
    assert {found[name] for name in decayed} == {0.3}
    assert {*names.values()} - {*found} == {"frozen.weight", "frozen.bias"}


def test_a_model_of_one_group_has_one():
    assert len(make_optimizer(nn.Linear(2, 2, bias=False), config("adamw")).param_groups) == 1


def test_where_there_is_no_fused_kernel_the_plain_one_is_used(monkeypatch):
    def without_kernels(params, *, fused=False, **options):
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")
        return torch.optim.SGD(params, **options)

    assert make_optimizer(nn.Linear(3, 2), config("sgd")).defaults["fused"]
    monkeypatch.setitem(MAKERS, "sgd", lambda config: (without_kernels, {}))
    assert not make_optimizer(nn.Linear(3, 2), config("sgd")).defaults["fused"]


@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_norms_are_those_of_the_flat_vectors(clip):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.3)
    norms = Norms(params, clip)
    flat = lambda tensors: torch.cat([t.detach().reshape(-1) for t in tensors])  # noqa: E731
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(5, 3)).square().sum().backward()
        before, gradient = flat(params).clone(), flat([p.grad for p in params]).clone()
        grad_norm, param_norm = norms.before()
        clipped = flat([p.grad for p in params])
        optimizer.step()
        update_norm = norms.after()
        assert float(grad_norm) == pytest.approx(float(gradient.norm()), rel=1e-6)
        assert float(param_norm) == pytest.approx(float(before.norm()), rel=1e-6)
        assert float(update_norm) == pytest.approx(float((flat(params) - before).norm()), rel=1e-5)
        short = min(1.0, (clip or math.inf) / float(gradient.norm()))
        torch.testing.assert_close(clipped, gradient * short, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        params[0].fill_(5.0)
    norms.reset()
    assert float(norms.before()[1]) == pytest.approx(float(flat(params).norm()), rel=1e-6)


# --- the machine -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("float32", torch.float32),
                                                  ("bfloat16", torch.bfloat16)])  # fmt: skip
def test_precision_is_that_of_the_forward_pass(precision, dtype):
    with autocast(precision, torch.device("cpu")):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_determinism_holds_within_its_block_only(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_own_randomness_neither_depends_on_the_callers_nor_changes_it():
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(1)
        torch.manual_seed(seed)
        with own_randomness(torch.device("cpu"), 7):
            drawn.append(float(torch.rand(1)))
        assert torch.rand(1) == expected
    assert drawn[0] == drawn[1]


def test_random_states_can_be_gone_back_to():
    device = torch.device("cpu")
    states = random_states(device)
    first = torch.rand(3)
    set_random_states(states, device)
    assert torch.equal(torch.rand(3), first)


def test_the_first_signal_asks_and_the_second_interrupts():
    with stop_asked() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_handler_of_the_caller_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with stop_asked() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
        assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_devices_and_threads():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="--device mps is not available here; choose"):
            pick_device("mps")
    before = torch.get_num_threads()
    with thread_count(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_formulas_are_not_trivial():
    ends = [loop(name, 0.7, math.cos, True) for name in ("adamw", "adam", "sgd")]
    assert np.ptp(ends) > 0.05
