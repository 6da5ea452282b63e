"""Products of Hessian, Gauss-Newton and Fisher matrix against dense ones, and what they leave alone and refuse."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scipy.sparse.linalg import eigsh  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy, mse_loss  # noqa: E402

from riverval.errors import InputError, RivervalError  # noqa: E402
from riverval.hessian import (  # noqa: E402
    FisherOperator,
    GGNOperator,
    HessianOperator,
    LossOnBatches,
    PreconditionedOperator,
    SplitLoss,
    supervised,
)
from riverval.operators import TensorSpace  # noqa: E402
from riverval.spectra import top_eigenvalue  # noqa: E402

from .nets import ZOO, dense_fisher, dense_ggn, dense_hessian, make  # noqa: E402

KINDS = {"hessian": HessianOperator, "ggn": GGNOperator, "fisher": FisherOperator}
_known: dict[tuple[str, str], object] = {}


def dense(kind, name):
    """The dense matrix of a problem of the zoo, worked out once."""
    if (kind, name) not in _known:
        problem = make(name)
        problem.model.eval()
        loss = problem.on_batches()
        matrix = {
            "hessian": lambda: dense_hessian(loss),
            "ggn": lambda: dense_ggn(problem, loss),
            "fisher": lambda: dense_fisher(problem, loss),
        }[kind]()
        _known[kind, name] = matrix
    return _known[kind, name]


def vectors(loss, count=None, seed=3):
    shape = (loss.dim,) if count is None else (loss.dim, count)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found, expected, rtol=1e-9):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


# --- the products ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("kind", KINDS)
def test_products_equal_those_of_the_dense_matrix(kind, name):
    loss = make(name).on_batches()
    expected = dense(kind, name)
    for options in ({}, {"keep_graph": False}, {"accumulate": "float64"}):
        operator = KINDS[kind](loss, **options)
        v = vectors(loss, 3)
        close(operator @ v, expected @ v)
        close(operator @ v[:, 0], expected @ v[:, 0])
        assert operator.products == 4


@pytest.mark.parametrize("name", ZOO)
def test_gauss_newton_and_fisher_are_positive_and_the_hessian_symmetric(name):
    """Of what the operators give, not of the dense matrices."""
    loss = make(name).on_batches()
    found = {kind: cls(loss) @ torch.eye(loss.dim).double() for kind, cls in KINDS.items()}
    for matrix in found.values():
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    for kind in ("ggn", "fisher"):
        lowest, highest = torch.linalg.eigvalsh(found[kind])[[0, -1]]
        assert lowest > -1e-12 < highest
        assert torch.linalg.matrix_rank(found["fisher"]) <= sum(len(x) for x, _ in loss.batches)


def test_products_equal_differences_of_the_gradient():
    loss = make("mlp").on_batches()
    at, v = loss.point(), vectors(loss)
    ahead, behind = (loss.gradient(at + h * v)[1] for h in (1e-5, -1e-5))
    torch.testing.assert_close(HessianOperator(loss, at) @ v, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "shared"])
def test_the_gauss_newton_matrix_is_the_hessian_of_a_model_that_is_linear(name):
    problem = make(name)
    model = nn.Linear(problem.batches[0][0].shape[1], 3).double()
    loss = LossOnBatches(model, problem.loss, problem.batches)
    close(GGNOperator(loss) @ vectors(loss), HessianOperator(loss) @ vectors(loss))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["mlp", "tied", "shared"]),
    kind=st.sampled_from(list(KINDS)),
    seed=st.integers(0, 10**6),
    scale=st.floats(-3, 3),
)
def test_products_are_linear_and_symmetric(name, kind, seed, scale):
    loss = make(name, seed).on_batches()
    operator = KINDS[kind](loss)
    u, v = vectors(loss, 2, seed).T
    au, av = operator @ u, operator @ v
    size = float(au.norm() * v.norm() + av.norm() * u.norm()) + 1e-30
    assert abs(float(u @ av - v @ au)) < 1e-11 * size
    assert float((operator @ (u + scale * v) - au - scale * av).norm()) < 1e-11 * size


@pytest.mark.parametrize("kind", KINDS)
def test_batches_count_by_their_weights(kind):
    problem = make("mlp")
    parts = [LossOnBatches(problem.model, problem.loss, [b]) for b in problem.batches]
    v = vectors(parts[0])
    both = LossOnBatches(problem.model, problem.loss, problem.batches, weights=[3, 1])
    first, second = (KINDS[kind](part) @ v for part in parts)
    close(KINDS[kind](both) @ v, 0.75 * first + 0.25 * second)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_in_train_mode_uses_the_batch(kind):
    """The oracle: the model itself in train mode but for its dropout."""
    problem = make("cnn")
    loss = problem.on_batches(mode="train")
    problem.model.train()
    problem.model[5].eval()
    buffers = {n: b.clone() for n, b in problem.model.named_buffers()}

    def outputs(w, batch):
        values = {**loss.pieces(w), **{n: b.clone() for n, b in problem.model.named_buffers()}}
        return torch.func.functional_call(problem.model, values, (batch[0],))

    matrix, at = torch.zeros(loss.dim, loss.dim).double(), loss.point()
    for batch, weight in zip(loss.batches, loss.weights, strict=True):
        if kind == "hessian":
            part = torch.autograd.functional.hessian(lambda w, b=batch: problem.loss.loss(outputs(w, b), b), at)
        else:
            z = outputs(at, batch).detach()
            jacobian = torch.autograd.functional.jacobian(lambda w, b=batch: outputs(w, b), at).reshape(-1, loss.dim)
            if kind == "ggn":
                inner = torch.autograd.functional.hessian(lambda z, b=batch: problem.loss.loss(z, b), z)
                part = jacobian.T @ inner.reshape(len(jacobian), -1) @ jacobian
            else:
                slopes = torch.autograd.functional.jacobian(lambda z, b=batch: problem.loss.each(z, b), z)
                rows = slopes.reshape(len(z), -1) @ jacobian
                part = rows.T @ rows / len(z)
        matrix += weight * part
    v = vectors(loss)
    for keep in (True, False):
        close(KINDS[kind](loss, keep_graph=keep) @ v, matrix @ v)
    assert not np.allclose(matrix, dense(kind, "cnn"), rtol=1e-2)
    assert all(torch.equal(b, buffers[n]) for n, b in problem.model.named_buffers())


def test_sums_over_batches_in_float64():
    """In float32 the ten small batches after a large one are lost one by one; in float64 they add up."""
    model = nn.Linear(1, 1, bias=False)
    batches = [torch.tensor([[s]]) for s in [2.0**13, *[1.0] * 10]]
    loss = LossOnBatches(model, lambda m, x: 11 * m(x).square().sum() / 2, batches)
    v = torch.ones(1)
    low, high = (HessianOperator(loss, accumulate=a) for a in ("float32", "float64"))
    exact = 2.0**26 + 10
    assert (low @ v).dtype == torch.float32
    assert (high @ v).dtype == torch.float64
    assert abs(float(high.matvec(np.ones(1))[0]) - exact) < 1
    assert abs(float(low.matvec(np.ones(1))[0]) - exact) > 4


def test_half_precision_parameters_are_summed_in_float32():
    model = nn.Linear(2, 1).to(torch.bfloat16)
    loss = LossOnBatches(model, lambda m, x: m(x).square().mean(), [torch.ones(3, 2, dtype=torch.bfloat16)])
    product = HessianOperator(loss) @ torch.ones(3)
    assert product.dtype == torch.float32
    assert product.tolist() == [6.0, 6.0, 6.0]


# --- forms -----------------------------------------------------------------------------------------------------------
def test_scipy_sees_a_symmetric_operator_in_float64():
    loss = make("attention").on_batches()
    linear = HessianOperator(loss).as_linear_operator()
    matrix = dense("hessian", "attention").numpy()
    assert linear.dtype == np.float64
    x = np.random.default_rng(0).standard_normal((loss.dim, 2))
    np.testing.assert_allclose(linear @ x[:, 0], matrix @ x[:, 0], atol=1e-10)
    np.testing.assert_allclose(linear @ x, matrix @ x, atol=1e-10)
    np.testing.assert_allclose(linear.T @ x, matrix @ x, atol=1e-10)
    largest = eigsh(linear, k=1, which="LA", v0=x[:, 0])[0][0]
    assert largest == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied", "attention"])
def test_the_top_eigenvalue_is_that_of_the_dense_hessian(name):
    operator = HessianOperator(make(name).on_batches())
    exact = np.linalg.eigvalsh(dense("hessian", name).numpy())[-1]
    for form in (operator.as_linear_operator(), operator):
        before = operator.products
        found = top_eigenvalue(form, rng=np.random.default_rng(0), tol=1e-6)
        assert found.value == pytest.approx(exact, rel=1e-5)
        assert found.products == operator.products - before


def test_krylov_vectors_can_live_on_the_device_of_the_products(monkeypatch):
    """What an accelerator does, acted out on the CPU: tensors in and out, float64 around products in float32."""
    problem = make("mlp")
    problem.model.float()
    batches = [(x.float(), y) for x, y in problem.batches]
    operator = HessianOperator(LossOnBatches(problem.model, problem.loss, batches, weights=[7, 4]))
    assert operator.space is None
    on_host = top_eigenvalue(operator, rng=np.random.default_rng(0), tol=1e-4)
    space = TensorSpace(torch.device("cpu"))
    monkeypatch.setattr(type(operator), "space", space)
    found = top_eigenvalue(operator, rng=np.random.default_rng(0), tol=1e-4)
    assert space.array(np.ones(2)).dtype == torch.float64
    assert found.value == pytest.approx(on_host.value, rel=1e-6)
    assert found.value == pytest.approx(np.linalg.eigvalsh(dense("hessian", "mlp").numpy())[-1], rel=1e-4)


# --- subsets and blocks ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_of_parameters_is_a_diagonal_block(kind):
    problem = make("mlp")
    subset = problem.on_batches(parameters="2.*")
    v = vectors(subset)
    whole = dense(kind, "mlp")
    close(KINDS[kind](subset) @ v, whole[36:, 36:] @ v)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_the_dense_matrix(kind, name):
    loss = make(name).on_batches()
    whole, operator = dense(kind, name), KINDS[kind](loss)
    place = 0
    blocks = operator.blocks()
    assert tuple(blocks) == loss.names
    for name, size in zip(loss.names, loss.sizes, strict=True):
        rows = slice(place, place + size)
        v = vectors(loss)[rows]
        close(blocks[name] @ v, whole[rows, rows] @ v)
        assert blocks[name].shape == (size, size)
        assert blocks[name].products == 1
        place += size
    assert operator.products == 0


def test_parameters_can_be_grouped_to_blocks():
    loss = make("tied").on_batches()
    operator = HessianOperator(loss)
    blocks = operator.blocks(lambda name: "odd" if name in ("embed.weight", "mix.bias") else "rest")
    rows = torch.cat([torch.arange(20), torch.arange(36, 40)])
    v = vectors(loss)[rows]
    close(blocks["odd"] @ v, dense("hessian", "tied")[rows][:, rows] @ v)
    assert blocks["odd"].names == ("embed.weight", "mix.bias")
    assert blocks["odd"].blocks()["mix.bias"].shape == (4, 4)


def test_blocks_share_the_graphs_of_the_whole():
    problem = make("mlp")
    calls = []
    loss = LossOnBatches(problem.model, lambda m, b: calls.append(1) or problem.loss(m, b), problem.batches)
    operator = HessianOperator(loss)
    for block in operator.blocks().values():
        block @ torch.ones(block.shape[0])
    operator @ torch.ones(loss.dim)
    assert len(calls) == 2
    fresh = HessianOperator(loss, keep_graph=False)
    for _ in range(2):
        fresh @ torch.ones(loss.dim, 3)  # one graph serves all columns
    assert len(calls) == 6


# --- preconditioned --------------------------------------------------------------------------------------------------
def test_a_preconditioned_operator_is_p_to_the_minus_half_on_both_sides():
    loss = make("tied").on_batches()
    p = vectors(loss).square() + 0.1
    operator = PreconditionedOperator(HessianOperator(loss), p)
    scale = torch.diag(p.rsqrt())
    matrix = scale @ dense("hessian", "tied") @ scale
    v = vectors(loss, 2, seed=5)
    close(operator @ v, matrix @ v)
    np.testing.assert_allclose(operator.as_linear_operator() @ v[:, 0].numpy(), matrix @ v[:, 0], atol=1e-10)
    assert operator.products == 3
    similar = torch.linalg.eigvals(torch.diag(1 / p) @ dense("hessian", "tied")).real.max()
    assert eigsh(operator.as_linear_operator(), k=1, which="LA", v0=np.ones(loss.dim))[0][0] == pytest.approx(similar)
    block = operator.blocks()["mix.weight"]
    close(block @ v[20:36, 0], matrix[20:36, 20:36] @ v[20:36, 0])


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.ones(3), r"shape \(57,\), got a tensor of shape \(3,\)"),
        (np.ones(57), r"got a NumPy array of shape \(57,\)"),
        (torch.zeros(57), "57 of 57 entries are not above 0"),
        (torch.full((57,), torch.inf), "57 not finite"),
        ([1.0] * 57, "got a list"),
    ],
)
def test_a_preconditioner_that_does_not_fit_is_refused(p, message):
    with pytest.raises(InputError, match=message):
        PreconditionedOperator(HessianOperator(make("mlp").on_batches()), p)


# --- an operator stays where it was made -----------------------------------------------------------------------------
@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameters", [None, "0.*"])
def test_training_on_does_not_disturb_an_operator(kind, keep_graph, parameters):
    """Parameters, those left out and batch-norm statistics alike; a stale or a half new graph would show."""
    problem = make("cnn")
    loss = problem.on_batches(parameters=parameters)
    at = loss.point()
    early, late = (KINDS[kind](loss, keep_graph=keep_graph) for _ in range(2))
    given = KINDS[kind](loss, at, keep_graph=keep_graph)
    v = vectors(loss)
    first = early @ v
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    problem.model.train()
    for batch in problem.batches:
        problem.loss(problem.model, batch).backward()
        optimizer.step()
    at += 1.0  # the caller's own vector
    for operator in (early, late, given):
        torch.testing.assert_close(operator @ v, first, rtol=1e-12, atol=1e-14)
    moved = KINDS[kind](loss, keep_graph=keep_graph) @ v
    assert not torch.allclose(moved, first, rtol=1e-3)
    again = KINDS[kind](loss, loss.point(), keep_graph=False) @ v
    torch.testing.assert_close(moved, again, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("keep_graph", [True, False])
def test_a_change_of_what_is_not_copied_is_noticed(keep_graph):
    problem = make("shared")
    operator = HessianOperator(problem.on_batches(), keep_graph=keep_graph)
    operator @ torch.ones(operator.shape[0])
    with torch.no_grad():
        problem.model.frozen.weight.mul_(2)
    with pytest.raises(RivervalError, match=r"the frozen parameter frozen.weight was changed in place"):
        operator @ torch.ones(operator.shape[0])
    operator = HessianOperator(problem.on_batches(), keep_graph=keep_graph)
    problem.batches[1][0].add_(1)
    with pytest.raises(RivervalError, match="a tensor of batch 2 was changed in place"):
        operator.blocks()["out.bias"] @ torch.ones(3)
    named = UserDict(x=problem.batches[0][0], y=problem.batches[0][1])  # a batch of transformers' tokenizers is one
    operator = HessianOperator(
        LossOnBatches(problem.model, lambda m, b: cross_entropy(m(b["x"]), b["y"]), [named]), keep_graph=keep_graph
    )
    named["x"].add_(1)
    with pytest.raises(RivervalError, match="a tensor of batch 1 was changed in place"):
        operator @ torch.ones(operator.shape[0])
    operator = HessianOperator(problem.on_batches(), keep_graph=keep_graph)
    problem.model.frozen.weight.data = torch.zeros(4, 4).double()
    with pytest.raises(RivervalError, match="changed in place"):
        operator @ torch.ones(operator.shape[0])


# --- bad input -------------------------------------------------------------------------------------------------------
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * slope * ctx.saved_tensors[0]


def test_an_operation_without_second_derivative_is_named():
    """Autograd itself says nothing where the rest is linear, nor of J v: products would be zero without an error."""
    model = nn.Linear(2, 1)
    for loss in (lambda m, x: Once.apply(m(x)).mean(), lambda m, x: Once.apply(m(x)).square().mean()):
        with pytest.raises(InputError, match="goes through Once, whose backward is marked once_differentiable"):
            HessianOperator(LossOnBatches(model, loss, [torch.ones(3, 2)])) @ torch.ones(3)
    split = SplitLoss(lambda m, x: Once.apply(m(x)), lambda z, x: z.square().mean())
    with pytest.raises(InputError, match="goes through Once"):
        GGNOperator(LossOnBatches(model, split, [torch.ones(3, 2)])) @ torch.ones(3)


def test_an_operation_of_torch_without_second_derivative_is_named(monkeypatch):
    """Fused attention, were it not replaced."""
    from contextlib import nullcontext

    import riverval._untouched as untouched

    monkeypatch.setattr(untouched, "sdpa_kernel", lambda backend: nullcontext())
    with pytest.raises(InputError, match=r"no second derivative: derivative for aten::_scaled_dot_product\S+"):
        HessianOperator(make("attention").on_batches()) @ torch.ones(113)


@pytest.mark.parametrize("way", ["hook", "parametrization"])
def test_weight_norm_is_differentiated_in_plain_operations(way):
    """The second derivative of torch's fused kernel is wrong: the oracle is differences of the gradient."""
    problem = make("mlp")
    if way == "hook":
        with pytest.warns(FutureWarning, match="deprecated"):
            nn.utils.weight_norm(problem.model[0])
    else:
        nn.utils.parametrizations.weight_norm(problem.model[0], dim=1)
    loss = problem.on_batches()
    at, v = loss.point(), vectors(loss)
    own = [float(problem.loss(problem.model, b).detach()) for b in problem.batches]  # by torch's kernel
    assert loss(at) == pytest.approx(np.dot(loss.weights, own), rel=1e-12)
    ahead, behind = (loss.gradient(at + h * v)[1] for h in (1e-5, -1e-5))
    torch.testing.assert_close(HessianOperator(loss, at) @ v, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)
    split = supervised(cross_entropy)
    linear = LossOnBatches(problem.model, SplitLoss(split.outputs, lambda z, b: z.square().mean()), problem.batches)
    u, gauss_newton = vectors(loss, seed=4), GGNOperator(linear)
    assert float(u @ (gauss_newton @ v)) == pytest.approx(float(v @ (gauss_newton @ u)), rel=1e-9)


def test_a_model_of_transformers_with_its_own_batches():
    """Dictionaries as batches, a head tied to the embedding, dropout and attention of its own."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 7, "n_positions": 5, "n_embd": 4, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).double()
    model.train()
    tokens = torch.randint(7, (2, 5))
    batches = [transformers.BatchEncoding({"input_ids": tokens, "labels": tokens})]
    loss = LossOnBatches(model, lambda m, b: m(**b).loss, batches)
    assert "lm_head.weight" not in loss.names  # it is the embedding
    v = vectors(loss)
    found = HessianOperator(loss) @ v
    assert model.training
    # On the model itself. (Differences would not do: it computes its loss in float32.)
    model.eval()
    parameters = loss.parameters()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = torch.autograd.grad(model(**batches[0]).loss, parameters, create_graph=True)
    along = sum((g * piece).sum() for g, piece in zip(gradients, loss.pieces(v).values(), strict=True))
    expected = torch.cat([h.reshape(-1) for h in torch.autograd.grad(along, parameters)])
    close(found, expected, rtol=1e-6)


def test_a_compiled_model_is_taken_apart():
    problem = make("mlp")
    expected = HessianOperator(problem.on_batches()) @ torch.ones(57)
    for compiled in (torch.compile(problem.model, backend="aot_eager"), nn.DataParallel(problem.model)):
        loss = LossOnBatches(compiled, problem.loss, problem.batches, weights=[7, 4])
        assert loss.names == problem.on_batches().names
        close(HessianOperator(loss) @ torch.ones(57), expected)
    problem.model[2].compile(backend="aot_eager")  # a part of it, in place
    close(HessianOperator(problem.on_batches()) @ torch.ones(57), expected)


def test_a_parameter_without_a_path_to_the_loss_is_named():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after, self.idle = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 1)

        def forward(self, x):
            return self.after(self.before(x).argmax(1, keepdim=True) + x)

    batches = [(torch.ones(3, 2), torch.zeros(3, 1))]
    for cls in KINDS.values():
        loss = LossOnBatches(Cut(), supervised(mse_loss), batches)
        with pytest.raises(
            InputError, match=r"before\.weight, before\.bias, idle\.weight, idle\.bias: they are not used"
        ):
            cls(loss) @ torch.ones(loss.dim)
        product = cls(loss, unused="zero") @ torch.ones(loss.dim)
        assert product[6:9].abs().min() > 0
        assert product[:6].abs().max() == product[9:].abs().max() == 0
        named = LossOnBatches(Cut(), supervised(mse_loss), batches, parameters="after.*")
        assert (cls(named) @ torch.ones(3)).abs().min() > 0


def test_a_path_through_any_batch_will_do():
    """An expert that only the second batch uses."""
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    loss = LossOnBatches(model, lambda m, b: m[b[1]](b[0]).square().mean(), [(torch.ones(3, 2), k) for k in (0, 1)])
    for keep in (True, False):
        product = HessianOperator(loss, keep_graph=keep) @ torch.ones(6)
        assert product.tolist() == [3.0] * 6


def test_a_linear_loss_has_a_zero_hessian():
    model = nn.Linear(3, 1, bias=False)
    loss = LossOnBatches(model, SplitLoss(lambda m, x: m(x), lambda z, x: z.mean()), [torch.ones(2, 3)])
    assert torch.equal(HessianOperator(loss) @ torch.ones(3), torch.zeros(3))
    assert torch.equal(GGNOperator(loss) @ torch.ones(3), torch.zeros(3))


class Failing(nn.Module):
    """Fails on batches with a negative entry."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, x):
        if x.min() < 0:
            raise ValueError("no negative pixels")
        return self.line(x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_fails_in_the_middle_is_named(kind):
    model = Failing().train()
    batches = [(sign * torch.ones(3, 2), torch.tensor([0, 1, 1])) for sign in (1, 1, -1)]
    loss = LossOnBatches(model, supervised(cross_entropy), batches)
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    backends = torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(RivervalError, match=r"loss of batch 3 of 3 failed: ValueError: no negative pixels") as caught:
        KINDS[kind](loss) @ torch.ones(6)
    assert isinstance(caught.value.__cause__, ValueError)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cuda.flash_sdp_enabled() == backends


LOSSES = {
    "no graph": (lambda m, b: cross_entropy(m(b[0]).detach(), b[1]), "batch 1 of 2 has no graph: .*argmax"),
    "not scalar": (lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none"), r"one number.*tensor of shape \(7,\)"),
    "not a tensor": (lambda m, b: float(cross_entropy(m(b[0]).detach(), b[1])), "one number.*got the float"),
    "not finite": (lambda m, b: cross_entropy(m(b[0]), b[1]) * torch.inf, "batch 1 of 2 is inf at this point"),
}


@pytest.mark.parametrize(("function", "message"), LOSSES.values(), ids=LOSSES)
def test_a_loss_without_curvature_is_refused(function, message):
    problem = make("mlp")
    loss = LossOnBatches(problem.model, function, problem.batches)
    with pytest.raises(InputError, match=message):
        HessianOperator(loss) @ torch.ones(57)
    with pytest.raises(InputError, match=message):
        loss.gradient()


def test_outputs_and_examples_that_do_not_fit_are_refused():
    problem = make("mlp")
    v = torch.ones(57)

    def using(loss):
        return LossOnBatches(problem.model, loss, problem.batches)

    def logits(model, batch):
        return model(batch[0])

    plain = using(lambda m, b: cross_entropy(m(b[0]), b[1]))
    for cls in (GGNOperator, FisherOperator):
        with pytest.raises(InputError, match="SplitLoss"):
            cls(plain) @ v
    mean = SplitLoss(logits, lambda z, b: cross_entropy(z, b[1]))
    with pytest.raises(InputError, match="losses of single examples"):
        FisherOperator(using(mean)) @ v
    bad = {
        r"shape \(N,\), got shape \(7, 3\)": SplitLoss(mean.outputs, mean.loss, lambda z, b: z),
        "plain mean of `each`": SplitLoss(
            mean.outputs, mean.loss, lambda z, b: 2 * supervised(cross_entropy).each(z, b)
        ),
        "no graph": SplitLoss(lambda m, b: m(b[0]).detach(), mean.loss, lambda z, b: z[:, 0]),
        "must be one tensor": SplitLoss(lambda m, b: m(b[0]), mean.loss, lambda z, b: [z]),
        "not all finite": SplitLoss(logits, mean.loss, lambda z, b: z[:, 0] / 0),
    }
    for message, split in bad.items():
        with pytest.raises(InputError, match=message):
            FisherOperator(using(split)) @ v
    for message, split in {
        "one number": SplitLoss(logits, lambda z, b: z.mean(0)),
        "must be one tensor": SplitLoss(lambda m, b: (m(b[0]),), lambda z, b: z[0].mean()),
        "no graph": SplitLoss(logits, lambda z, b: z.detach().mean()),
    }.items():
        with pytest.raises(InputError, match=message):
            GGNOperator(using(split)) @ v


def test_vectors_and_options_that_do_not_fit_are_refused():
    loss = make("mlp").on_batches()
    operator = HessianOperator(loss)
    for vector in (torch.zeros(2), torch.zeros(57, 1, 1), torch.tensor(0.0), [0.0] * 57):
        with pytest.raises(InputError, match=r"shape \(57,\) or \(57, k\)"):
            operator @ vector
    with pytest.raises(InputError, match=r"got a NumPy array of shape \(57,\) \(torch.from_numpy"):
        operator @ np.zeros(57)
    with pytest.raises(InputError, match="57 parameters"):
        HessianOperator(loss, torch.zeros(3))
    with pytest.raises(InputError, match="unknown accumulate 'float16'"):
        HessianOperator(loss, accumulate="float16")
    with pytest.raises(InputError, match="unknown unused"):
        HessianOperator(loss, unused="ignore")
    at = torch.full((57,), torch.nan, dtype=torch.float64)
    with pytest.raises(InputError, match="batch 1 of 2 is nan at this point"):
        top_eigenvalue(HessianOperator(loss, at), rng=np.random.default_rng(0))


# --- curvlinops, the model of correctness ----------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit, which a dependency of it calls
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_products_equal_those_of_curvlinops(name, kind):
    curvlinops = pytest.importorskip("curvlinops")
    theirs = {
        "hessian": curvlinops.HessianLinearOperator,
        "ggn": curvlinops.GGNLinearOperator,
        "fisher": curvlinops.EFLinearOperator,
    }[kind]
    problem = make(name)
    problem.model.eval()
    loss = problem.on_batches()
    other = theirs(problem.model, nn.CrossEntropyLoss(), list(problem.model.parameters()), problem.batches)
    v = vectors(loss)
    close(KINDS[kind](loss) @ v, torch.as_tensor(other @ v))
