"""Hessian products of a language model of transformers against a dense autograd Hessian."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch.nn.functional import cross_entropy  # noqa: E402

from riverval.hessian import HessianOperator, LossOnBatches, flat_parameters  # noqa: E402
from riverval.spectra import top_eigenvalue  # noqa: E402


def predict(model, batch):
    return cross_entropy(model(input_ids=batch[0], use_cache=False).logits.flatten(0, 1), batch[1].flatten())


@pytest.fixture(scope="module")
def loss():
    """Of a GPT-NeoX with fused attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.GPTNeoXConfig(
            vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=8, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model = transformers.GPTNeoXForCausalLM(config).double()
        batches = [(torch.randint(5, (3, 4)), torch.randint(5, (3, 4))) for _ in range(2)]
    return LossOnBatches(model, predict, batches, weights=[3, 3])


@pytest.fixture(scope="module")
def dense(loss):
    def value(w):
        return sum(loss.part(w, b) * s for b, s in zip(loss.batches, loss.weights, strict=True))

    return torch.autograd.functional.hessian(value, flat_parameters(loss.model))


@pytest.mark.parametrize("keep_graph", [True, False])
def test_products_equal_those_of_the_dense_hessian(loss, dense, keep_graph):
    operator = HessianOperator(loss, keep_graph=keep_graph)
    v = torch.randn(loss.dim, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(operator @ v, dense @ v, rtol=1e-9, atol=1e-11)


def test_the_top_eigenvalue_is_that_of_the_dense_hessian(loss, dense):
    found = top_eigenvalue(HessianOperator(loss), rng=np.random.default_rng(0), tol=1e-6)
    assert found.value == pytest.approx(np.linalg.eigvalsh(dense.numpy())[-1], rel=1e-5)
