"""The loss as a function of parameters: which ones it takes, what it gives, and that nothing of the user's changes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy, mse_loss  # noqa: E402

from riverval.errors import InputError, RivervalError  # noqa: E402
from riverval.hessian import (  # noqa: E402
    FisherOperator,
    GGNOperator,
    HessianOperator,
    LossOnBatches,
    evaluating,
    flat_parameters,
    supervised,
)
from riverval.landscape import line_losses  # noqa: E402

from .nets import ZOO, make, set_flat, value_of  # noqa: E402


# --- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ZOO)
def test_the_loss_elsewhere_is_that_of_a_model_with_these_parameters(name, mode):
    problem = make(name)
    loss = problem.on_batches(mode=mode)
    elsewhere = loss.point() + 0.1 * torch.randn(loss.dim, generator=torch.Generator().manual_seed(0)).double()
    found = loss(elsewhere)
    set_flat(problem.model, loss.names, elsewhere)
    for module in problem.model.modules():
        module.training = mode == "train" and isinstance(module, nn.BatchNorm2d)
    with torch.no_grad():
        own = sum(float(problem.loss(problem.model, b)) * w for b, w in zip(loss.batches, loss.weights, strict=True))
    assert found == pytest.approx(own, rel=1e-12)
    assert loss(loss.point()) == pytest.approx(own, rel=1e-12)


def test_the_two_modes_differ_where_there_is_batch_norm():
    for name, differ in (("cnn", True), ("mlp", False)):
        evaluated, trained = (make(name).on_batches(mode=m) for m in ("eval", "train"))
        assert (abs(evaluated(evaluated.point()) - trained(trained.point())) > 1e-3) == differ


@pytest.mark.parametrize("name", ZOO)
def test_the_gradient_is_that_of_autograd(name):
    loss = make(name).on_batches()
    at = loss.point() + 0.1
    w = at.clone().requires_grad_()
    value = value_of(loss)(w)
    value.backward()
    found, gradient = loss.gradient(at)
    assert found == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, w.grad, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(loss.gradient()[1], loss.gradient(loss.point())[1], rtol=0, atol=0)


def test_the_gradient_has_the_parameters_precision():
    model = nn.Linear(2, 1)
    loss = LossOnBatches(model, supervised(mse_loss), [(torch.ones(3, 2), torch.zeros(3, 1))])
    assert loss.gradient()[1].dtype == torch.float32


def test_a_loss_without_a_number_is_given_as_it_is_on_a_line():
    model = nn.Linear(1, 1, bias=False)
    loss = LossOnBatches(model, lambda m, x: m(x).log().mean(), [torch.ones(1, 1)])
    assert line_losses(loss, torch.tensor([0.0]), torch.tensor([1.0]), [0.0, 1.0]).tolist() == [-np.inf, 0.0]
    assert np.isnan(loss(torch.tensor([-1.0])))


def test_parameters_of_several_precisions_keep_theirs():
    model = nn.Sequential(nn.Linear(2, 3).double(), nn.Linear(3, 1).double())
    model[1].float()
    loss = LossOnBatches(model, lambda m, x: m[1](m[0](x).float()).square().mean(), [torch.ones(3, 2).double()])
    assert loss.dtype == torch.float64
    assert loss.point().dtype == torch.float64
    assert (HessianOperator(loss) @ torch.ones(loss.dim)).abs().max() > 0


# --- which parameters ------------------------------------------------------------------------------------------------
def test_frozen_parameters_are_left_out_and_shared_ones_count_once():
    problem = make("shared")
    loss = problem.on_batches()
    assert loss.names == ("inside.weight", "inside.bias", "out.weight", "out.bias")
    assert loss.dim == 16 + 4 + 12 + 3
    assert len(flat_parameters(problem.model)) == loss.dim + 20
    assert make("tied").on_batches().names == ("embed.weight", "mix.weight", "mix.bias")


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("out.*", ["out.weight", "out.bias"]),
        (["out.bias", "inside.bias"], ["inside.bias", "out.bias"]),  # the model's order, not the caller's
        (["*.bias", "out.bias"], ["inside.bias", "frozen.bias", "out.bias"]),
        ("again.weight", ["inside.weight"]),  # by its other name
        ("frozen.weight", ["frozen.weight"]),
    ],
)
def test_parameters_are_chosen_by_name_and_pattern(asked, names):
    loss = make("shared").on_batches(parameters=asked)
    assert list(loss.names) == names
    assert list(loss.pieces(loss.point())) == names


def test_parameters_are_chosen_as_tensors():
    problem = make("shared")
    loss = problem.on_batches(parameters=[problem.model.again.bias, "out.bias"])
    assert loss.names == ("inside.bias", "out.bias")
    expected = [problem.model.inside.bias, problem.model.out.bias]
    assert all(p is q for p, q in zip(loss.parameters(), expected, strict=True))
    torch.testing.assert_close(loss.point(), torch.cat([problem.model.inside.bias, problem.model.out.bias]).detach())


def test_parameters_of_a_part_of_the_model_can_be_given_as_torch_gives_them():
    problem = make("mlp")
    assert problem.on_batches(parameters=problem.model[2].parameters()).names == ("2.weight", "2.bias")
    assert problem.on_batches(parameters=problem.model[2].weight).names == ("2.weight",)


@given(
    st.sets(st.sampled_from(["inside.weight", "inside.bias", "frozen.weight", "out.weight", "out.bias"]), min_size=1)
)
def test_any_subset_gives_the_same_loss_and_its_part_of_the_gradient(names):
    problem = make("shared")
    problem.model.requires_grad_(True)
    whole, part = problem.on_batches(), problem.on_batches(parameters=sorted(names))
    value, gradient = whole.gradient()
    found, own = part.gradient()
    assert set(part.names) == names
    assert found == pytest.approx(value, rel=1e-12)
    expected = torch.cat([whole.pieces(gradient)[n].reshape(-1) for n in part.names])
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)


def test_parameters_that_do_not_exist_are_refused():
    problem = make("mlp")
    for asked, message in [
        ("0.wieght", r"no parameter is called '0.wieght'.*Did you mean '0.weight'"),
        ("3.*", r"no parameter is called '3\.\*'; there are: 0.weight, 0.bias"),
        ([torch.zeros(2)], "no parameter of the model"),
        ([3], "got the int 3"),
        (problem.model[2], r"part\.parameters\(\)\), got a Linear"),
        ([], "parameters is empty"),
        (iter([]), "parameters is empty"),
    ]:
        with pytest.raises(InputError, match=message):
            problem.on_batches(parameters=asked)
    problem.model.requires_grad_(False)
    with pytest.raises(InputError, match=r"none of the model's 4 parameters requires gradients"):
        problem.on_batches()


def test_models_and_batches_that_do_not_fit_are_refused():
    problem = make("mlp")
    model, loss, batches = problem.model, problem.loss, problem.batches
    for bad in ([], iter(batches), "batch"):
        with pytest.raises(InputError, match="at least one batch"):
            LossOnBatches(model, loss, bad)
    for bad, message in [
        ({"x": batches[0][0]}, r"got a dict; one batch alone is \[batch\]"),
        (batches[0], r"a tuple of tensors, which looks like one batch \(x, y\): give \[batch\]"),
        (torch.utils.data.DataLoader([1, 2]), r"got a DataLoader; list\(itertools.islice\(loader, 4\)\)"),
    ]:
        with pytest.raises(InputError, match=message):
            LossOnBatches(model, loss, bad)
    for wrong in (cross_entropy, nn.CrossEntropyLoss()):
        with pytest.raises(InputError, match=r"called as loss\(model, batch\).*give riverval\.hessian\.supervised\("):
            LossOnBatches(model, wrong, batches)
    with pytest.raises(InputError, match=r"must be a function .*got the str 'mse'"):
        LossOnBatches(model, "mse", batches)
    with pytest.raises(InputError, match=r"needs a model .*got a SGD"):
        LossOnBatches(torch.optim.SGD(model.parameters(), lr=1.0), loss, batches)
    for weights in ([1.0], [1.0, 0.0], [1.0, np.nan], [np.inf, 1.0], "ab", 3.0):
        with pytest.raises(InputError, match="2 positive numbers"):
            LossOnBatches(model, loss, batches, weights=weights)
    with pytest.raises(InputError, match="no parameters"):
        LossOnBatches(nn.ReLU(), loss, batches)
    with pytest.raises(InputError, match="mode must be 'eval' or 'train'"):
        LossOnBatches(model, loss, batches, mode="test")
    with pytest.raises(InputError, match="lazy modules"):
        LossOnBatches(nn.LazyLinear(2), loss, batches)
    with pytest.raises(InputError, match=r"dtype torch\.complex64"):
        LossOnBatches(nn.Linear(2, 2, dtype=torch.complex64), loss, batches)
    function = LossOnBatches(model, loss, batches)
    for flat in (torch.zeros(3), np.zeros(57)):
        with pytest.raises(InputError, match="57 parameters"):
            function(flat)
    with pytest.raises(RivervalError, match="batch 1 of 1 failed: RuntimeError"):
        LossOnBatches(model, loss, [(torch.zeros(2, 4).double(), torch.zeros(2).long())])(torch.zeros(57).double())


def test_a_loss_of_another_model_is_refused():
    """A copy that the loss closes over: the gradient would be zero without a word."""
    problem, other = make("mlp"), make("mlp").model
    with pytest.raises(InputError, match=r"uses none of the parameters .*call the model that it is given"):
        LossOnBatches(problem.model, lambda _, b: problem.loss(other, b), problem.batches).gradient()


# --- nothing of the user's changes -----------------------------------------------------------------------------------
class Noisy(nn.Module):
    """Draws in every forward pass, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.line, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.line(x)) + torch.randn(x.shape[0], 3)


def everything(model):
    """All that a measurement must not change."""
    return {
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state().tolist(),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.is_grad_enabled()),
        "state": {k: (v.tolist(), v._version, v.data_ptr()) for k, v in model.state_dict(keep_vars=True).items()},
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "needs": [p.requires_grad for p in model.parameters()],
    }


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", [*ZOO, "noisy"])
def test_the_users_model_is_left_as_it_was(name, mode):
    if name == "noisy":
        model = Noisy().double()
        loss = LossOnBatches(model, supervised(cross_entropy), [(torch.ones(4, 3).double(), torch.arange(4) % 3)])
    else:
        problem = make(name)
        model, loss = problem.model, problem.on_batches(mode=mode)
    model.train()
    next(model.children()).eval()
    torch.rand(1)  # so that the generator stands nowhere in particular
    loss.parameters()[0].grad = torch.ones_like(loss.parameters()[0])
    torch.backends.cuda.enable_flash_sdp(False)
    before = everything(model)
    try:
        elsewhere = loss.point() + 0.1
        line_losses(loss, elsewhere, loss.point(), [0.0, 0.5])
        loss.gradient(elsewhere)
        for cls in (HessianOperator, GGNOperator, FisherOperator):
            cls(loss, elsewhere) @ torch.ones(loss.dim)
        assert everything(model) == before
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_what_a_loss_draws_is_the_same_every_time():
    loss = LossOnBatches(Noisy(), supervised(cross_entropy), [(torch.ones(4, 3), torch.arange(4) % 3)])
    at = loss.point()
    first = loss(at)
    torch.randn(3)
    assert loss(at) == first
    assert loss.gradient(at)[0] == first


def test_modes_come_back_after_a_failure():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].eval()
    seen = []

    def fail():
        with evaluating(model):
            seen.append([m.training for m in model.modules()])
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert seen == [[False, False, False]]
    assert [m.training for m in model.modules()] == [True, False, True]


def test_surrounding_modes_do_not_change_the_numbers():
    """Autocast would compute in bfloat16, inference mode and no_grad without graphs."""
    problem = make("mlp")
    problem.model.float()
    batches = [(x.float(), y) for x, y in problem.batches]
    loss = LossOnBatches(problem.model, problem.loss, batches)
    v = torch.ones(57)

    def measured():
        return loss(loss.point()), loss.gradient()[1], HessianOperator(loss) @ v, GGNOperator(loss) @ v

    value, *expected = measured()
    for surrounding in (torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.no_grad()):
        with surrounding:
            found, *others = measured()
            operator = HessianOperator(loss)
        assert found == value
        assert all(torch.equal(a, b) for a, b in zip(expected, others, strict=True))
        assert torch.equal(operator @ v, expected[1])
    kept = HessianOperator(loss)
    kept @ v
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kept @ v, expected[1])


def test_evaluating_the_loss_builds_no_graph():
    """Inside inference mode too, where leaving it switches gradients on."""
    built = []
    model = nn.Linear(1, 1)
    loss = LossOnBatches(model, lambda m, x: built.append(m(x).requires_grad) or m(x).mean(), [torch.ones(1, 1)])
    at = loss.point()
    loss(at)
    with torch.inference_mode():
        loss(at)
    assert built == [False, False]


# --- losses in two steps ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss_func", [cross_entropy, nn.CrossEntropyLoss()], ids=["function", "module"])
def test_losses_of_torch_give_those_of_single_examples(loss_func):
    split = supervised(loss_func)
    z, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(split(lambda x: x, (z, y)), cross_entropy(z, y))
    torch.testing.assert_close(split.each(z, (z, y)), cross_entropy(z, y, reduction="none"))
    assert getattr(loss_func, "reduction", "mean") == "mean"


def test_an_example_of_several_numbers_has_their_mean_as_loss():
    split = supervised(nn.MSELoss())
    z, y = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    torch.testing.assert_close(split.each(z, (z, y)), (z - y).square().mean((1, 2)))
    torch.testing.assert_close(split.each(z, (z, y)).mean(), split.loss(z, (z, y)))


def test_a_loss_of_your_own_has_none_of_single_examples():
    assert supervised(lambda z, y: (z - y).abs().mean()).each is None
    assert supervised(nn.Sequential()).each is None
    assert supervised(torch.dist).each is None  # a builtin, which has no signature
    with pytest.raises(InputError, match="needs a function of outputs and targets, got the str 'mse'"):
        supervised("mse")
