"""Hessian products against a dense autograd Hessian, and that nothing of the user's model changes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from riverval.errors import InputError, RivervalError  # noqa: E402
from riverval.hessian import HessianOperator, LossOnBatches, flat_parameters  # noqa: E402
from riverval.landscape import line_losses  # noqa: E402
from riverval.spectra import top_eigenvalue  # noqa: E402


def classify(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def predict(model, batch):
    return cross_entropy(model(input_ids=batch[0], use_cache=False).logits.flatten(0, 1), batch[1].flatten())


def mlp():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(n, 5).double(), torch.randint(3, (n,))) for n in (7, 4)]
    return model, classify, batches


def cnn():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(),
        nn.Linear(48, 3),
    ).double()  # fmt: skip
    model(torch.randn(64, 1, 8, 8).double())  # running statistics other than the initial ones
    batches = [(torch.randn(n, 1, 8, 8).double(), torch.randint(3, (n,))) for n in (6, 5)]
    return model, classify, batches


def attention():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.GPTNeoXForCausalLM(config).double()
    return model, predict, [(torch.randint(5, (3, 4)), torch.randint(5, (3, 4))) for _ in range(2)]


def dense_hessian(loss, at):
    def value(w):
        return sum(loss.part(w, b) * s for b, s in zip(loss.batches, loss.weights, strict=True))

    return torch.autograd.functional.hessian(value, at)


@pytest.fixture(params=[mlp, cnn, attention], ids=lambda f: f.__name__)
def problem(request):
    torch.manual_seed(0)
    model, loss, batches = request.param()
    return model, LossOnBatches(model, loss, batches, weights=[len(b[0]) for b in batches])


@pytest.fixture(scope="module")
def known_hessians():
    return {}


@pytest.fixture
def dense(problem, known_hessians, request):
    """The Hessian of `problem`, worked out once: it is the slowest part of these tests."""
    model, loss = problem
    name = request.node.callspec.params["problem"]
    if name not in known_hessians:
        known_hessians[name] = dense_hessian(loss, flat_parameters(model))
    return known_hessians[name]


@pytest.mark.parametrize("keep_graph", [True, False])
def test_products_equal_those_of_the_dense_hessian(problem, dense, keep_graph):
    _, loss = problem
    operator = HessianOperator(loss, keep_graph=keep_graph)
    for _ in range(3):
        v = torch.randn(loss.dim, dtype=torch.float64)
        torch.testing.assert_close(operator @ v, dense @ v, rtol=1e-9, atol=1e-11)
    assert operator.products == 3


def test_products_equal_differences_of_the_gradient():
    torch.manual_seed(0)
    model, loss, batches = mlp()
    function = LossOnBatches(model, loss, batches)
    at, v = flat_parameters(model), torch.randn(sum(p.numel() for p in model.parameters())).double()

    def gradient(w):
        w = w.clone().requires_grad_()
        return torch.autograd.grad(sum(function.part(w, b) for b in batches) / 2, w)[0]

    numeric = (gradient(at + 1e-5 * v) - gradient(at - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(HessianOperator(function) @ v, numeric, rtol=1e-6, atol=1e-8)


def test_the_top_eigenvalue_is_that_of_the_dense_hessian(problem, dense):
    _, loss = problem
    exact = np.linalg.eigvalsh(dense.numpy())[-1]
    operator = HessianOperator(loss)
    found = top_eigenvalue(operator.as_linear_operator(), rng=np.random.default_rng(0), tol=1e-6)
    assert found.value == pytest.approx(exact, rel=1e-5)
    assert found.products == operator.products


def test_the_model_is_left_as_it_was(problem):
    model, loss = problem
    model.train()
    next(model.children()).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    elsewhere = flat_parameters(model) + 0.1
    line_losses(loss, elsewhere, flat_parameters(model), [0.0, 0.5])
    HessianOperator(loss, elsewhere) @ torch.ones(loss.dim)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_training_on_does_not_disturb_an_operator():
    torch.manual_seed(0)
    model, loss, batches = mlp()
    operator = HessianOperator(LossOnBatches(model, loss, batches))
    v = torch.randn(operator.shape[0]).double()
    first = operator @ v
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    torch.testing.assert_close(operator @ v, first, rtol=0, atol=0)


def test_the_loss_at_the_models_own_parameters_is_the_models_loss(problem):
    model, loss = problem
    model.eval()
    with torch.no_grad():
        own = sum(float(loss._wrapped.loss(model, b)) * w for b, w in zip(loss.batches, loss.weights, strict=True))
    assert loss(flat_parameters(model)) == pytest.approx(own, rel=1e-12)


def test_a_linear_loss_has_a_zero_hessian():
    model = nn.Linear(3, 1, bias=False)
    loss = LossOnBatches(model, lambda m, x: m(x).mean(), [torch.ones(2, 3)])
    assert torch.equal(HessianOperator(loss) @ torch.ones(3), torch.zeros(3))


def test_what_does_not_fit_is_refused():
    model, loss, batches = mlp()
    with pytest.raises(InputError, match="at least one batch"):
        LossOnBatches(model, loss, [])
    with pytest.raises(InputError, match="2 positive numbers"):
        LossOnBatches(model, loss, batches, weights=[1.0])
    with pytest.raises(InputError, match="no parameters"):
        LossOnBatches(nn.ReLU(), loss, batches)
    function = LossOnBatches(model, loss, batches)
    with pytest.raises(InputError, match="57 parameters"):
        function(torch.zeros(3))
    with pytest.raises(InputError, match=r"shape \(57,\)"):
        HessianOperator(function) @ torch.zeros(2)
    at = torch.full((57,), torch.nan, dtype=torch.float64)
    with pytest.raises(RivervalError, match="not finite"):
        top_eigenvalue(HessianOperator(function, at).as_linear_operator(), rng=np.random.default_rng(0))
