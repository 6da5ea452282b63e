"""P against what torch's optimizers do with a known gradient, thresholds against simulated quadratics."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scipy.sparse.linalg import eigsh  # noqa: E402
from torch import nn, optim  # noqa: E402

from riverval.allocator import steady_allocator  # noqa: E402
from riverval.errors import InputError  # noqa: E402
from riverval.hessian import HessianOperator, LossOnBatches, PreconditionedOperator  # noqa: E402
from riverval.preconditioners import preconditioner, stability_threshold, threshold  # noqa: E402

from .nets import dense_hessian, make  # noqa: E402

LR = 0.01
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=LR),
    "momentum": lambda p: optim.SGD(p, lr=LR, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=LR, betas=(0.0, 0.95), eps=1e-3),
    "amsgrad": lambda p: optim.Adam(p, lr=LR, betas=(0.0, 0.9), amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=LR, betas=(0.0, 0.99), weight_decay=0.0),
    "rmsprop": lambda p: optim.RMSprop(p, lr=LR, eps=1e-2),
    "centered": lambda p: optim.RMSprop(p, lr=LR, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=LR, lr_decay=0.1, initial_accumulator_value=0.2),
}


def trained(name, steps=5):
    """A network after some updates without first-moment averaging, the update that came last, and its gradient."""
    problem = make("mlp")
    optimizer = OPTIMIZERS[name](problem.model.parameters())
    loss = problem.on_batches()
    for step in range(steps):
        before = loss.point()
        optimizer.zero_grad()
        problem.loss(problem.model, problem.batches[step % 2]).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in problem.model.parameters()])
        optimizer.step()
    return problem, optimizer, loss, loss.point() - before, gradient


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "momentum"])
def test_the_last_update_was_the_rate_times_the_gradient_over_p(name):
    """What P means, whatever the optimizer's formula: update = -lr P^-1 gradient, by torch's own arithmetic."""
    problem, optimizer, loss, update, gradient = trained(name)
    p = preconditioner(optimizer, loss)
    assert p.shape == (57,)
    torch.testing.assert_close(update, -LR * gradient / p, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(preconditioner(optimizer, problem.model), p, rtol=0, atol=0)


def test_p_comes_in_the_order_of_the_loss_and_across_groups():
    problem, _, loss, _, _ = trained("sgd")
    parameters = list(problem.model.parameters())
    groups = [{"params": parameters[:1:-1], "eps": 0.5}, {"params": parameters[:2], "eps": 0.25, "lr": LR / 4}]
    optimizer = optim.Adam(groups, lr=LR, betas=(0.9, 0.0))
    loss.parameters()[0].sum().backward()
    for p in parameters:
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    p = preconditioner(optimizer, loss)
    torch.testing.assert_close(p, torch.cat([torch.full((36,), 2.25), torch.full((21,), 2.5)]).double())
    part = problem.on_batches(parameters=["2.bias", "0.bias"])
    torch.testing.assert_close(preconditioner(optimizer, part), torch.cat([p[30:36], p[54:]]))
    # Rates in P: the quieter group weighs its curvature by a quarter.
    torch.testing.assert_close(
        preconditioner(optimizer, loss, with_rates=True), p * torch.tensor([4.0] * 36 + [1.0] * 21)
    )
    assert stability_threshold(optimizer) == pytest.approx(38 / LR)


def test_the_sharpness_that_adam_sees_is_that_of_p_inverse_h():
    _, optimizer, loss, _, _ = trained("adam")
    p = preconditioner(optimizer, loss)
    operator = PreconditionedOperator(HessianOperator(loss), p).as_linear_operator()
    exact = torch.linalg.eigvals(torch.diag(1 / p) @ dense_hessian(loss)).real.max()
    assert eigsh(operator, k=1, which="LA", v0=np.ones(57))[0][0] == pytest.approx(float(exact), rel=1e-9)


def test_optimizers_without_a_known_or_present_p_are_refused():
    problem = make("mlp")
    loss = problem.on_batches()
    for fresh in ("adam", "rmsprop"):
        with pytest.raises(InputError, match=r"for the parameter 0.weight yet: its preconditioner exists after"):
            preconditioner(OPTIMIZERS[fresh](problem.model.parameters()), loss)
    other = optim.Adamax(problem.model.parameters())
    for function in (lambda: preconditioner(other, loss), lambda: stability_threshold(other)):
        with pytest.raises(InputError, match=r"Adamax is not known here .*PreconditionedOperator\(operator, P\)"):
            function()

    class Mine(optim.Adam):
        pass

    with pytest.raises(InputError, match="of Mine is not known"):
        preconditioner(Mine(problem.model.parameters()), loss)
    with pytest.raises(InputError, match=r"does not hold the parameter 0\.bias"):
        preconditioner(optim.SGD([problem.model[0].weight], lr=LR), loss)
    with pytest.raises(InputError, match="learning rates above 0"):
        preconditioner(optim.SGD(problem.model.parameters(), lr=0.0), loss, with_rates=True)
    groups = [{"params": [problem.model[0].weight]}, {"params": [problem.model[0].bias], "momentum": 0.5}]
    with pytest.raises(InputError, match="differ in momentum"):
        stability_threshold(optim.SGD(groups, lr=LR))


# --- thresholds ------------------------------------------------------------------------------------------------------
def grows(optimizer_of, curvature, steps=600):
    """Whether the optimizer leaves (curvature/2) w^2 at a small w; for the adaptive ones with P held at 1."""
    w = nn.Parameter(torch.tensor([1e-12], dtype=torch.float64))
    optimizer = optimizer_of([w])
    peaks = []
    for step in range(steps):
        w.grad = curvature * w.detach()
        if isinstance(optimizer, optim.Adam | optim.RMSprop):
            _hold_p_at_one(optimizer, w)
        optimizer.step()
        if step >= steps - 50 or step in range(100, 150):
            peaks.append(abs(float(w.detach())))
    return max(peaks[50:]) > max(peaks[:50])


def _hold_p_at_one(optimizer, w):
    """Set the second moment so that P of the coming update is 1 (to 1e-8), and bias corrections to their limit."""
    state = optimizer.state[w]
    group = optimizer.param_groups[0]
    decay = group["betas"][1] if "betas" in group else group["alpha"]
    held = (1 - (1 - decay) * w.grad.square()) / decay
    if isinstance(optimizer, optim.Adam):
        state.setdefault("exp_avg", torch.zeros_like(w))
        state["step"] = torch.tensor(1e6)
        state["exp_avg_sq"] = held
    else:
        state.setdefault("momentum_buffer", torch.zeros_like(w))
        state.setdefault("step", torch.tensor(0.0))
        state["square_avg"] = held


RULES = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "heavy ball": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "dampened": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.1),
    "rmsprop with momentum": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5),
}


@pytest.mark.parametrize("make_optimizer", RULES.values(), ids=RULES)
def test_a_quadratic_diverges_above_the_threshold_and_not_below(make_optimizer):
    bound = stability_threshold(make_optimizer([nn.Parameter(torch.ones(1))]))
    assert not grows(make_optimizer, 0.9995 * bound)
    assert grows(make_optimizer, 1.0005 * bound)


def test_momentum_that_takes_in_no_gradient_has_no_threshold():
    assert stability_threshold(optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9, dampening=1.0)) == np.inf


def test_adagrad_has_the_threshold_of_plain_descent_with_its_slowed_rate_in_p():
    assert stability_threshold(optim.Adagrad([nn.Parameter(torch.ones(1))], lr=0.1, lr_decay=0.5)) == pytest.approx(20)


@given(lr=st.floats(1e-6, 10), beta=st.floats(0, 0.999), kind=st.sampled_from(["heavy-ball", "nesterov", "average"]))
def test_at_the_threshold_the_recursion_has_the_root_minus_one(lr, beta, kind):
    """The largest root of the update's 2x2 matrix, by its eigenvalues."""
    scaled = lr * threshold(lr, beta, kind=kind)
    share = 1 - beta if kind == "average" else 1.0
    # (w, b) -> b' = beta b + share lambda w; w' = w - lr b', with Nesterov w - lr (lambda w + beta b').
    b_row = np.array([share * scaled, beta])
    w_row = np.array([1.0, 0.0]) - (np.array([scaled, 0.0]) + beta * b_row if kind == "nesterov" else b_row)
    roots = np.linalg.eigvals(np.array([w_row, b_row]))
    assert np.min(np.abs(roots + 1)) < 1e-9
    assert np.max(np.abs(roots)) < 1 + 1e-9


def test_thresholds_out_of_range_are_refused():
    for lr, momentum, kind in ((0.0, 0.0, "heavy-ball"), (0.1, 1.0, "average"), (0.1, 0.5, "polyak")):
        with pytest.raises(InputError, match=r"must be|unknown kind of momentum"):
            threshold(lr, momentum, kind=kind)
    assert threshold(0.1) == threshold(0.1, kind="nesterov") == threshold(0.1, kind="average") == 20.0


# --- the allocator ---------------------------------------------------------------------------------------------------
class Heap:
    """A C library that notes what is asked of it."""

    def __init__(self, obeys=1):
        self.settings, self.trimmed, self.obeys = {}, 0, obeys

    def mallopt(self, what, value):
        self.settings[what] = value
        return self.obeys

    def malloc_trim(self, pad):
        self.trimmed += 1

    def gnu_get_libc_version(self):
        raise AssertionError


def test_the_allocator_is_set_once_and_put_back(monkeypatch):
    heap = Heap()
    monkeypatch.setattr("ctypes.CDLL", lambda name: heap)
    with steady_allocator() as outer:
        assert outer.active
        assert heap.settings == {-4: 0, -1: 2**31 - 1, -2: 2**28}
        with steady_allocator() as inner:
            assert inner.active
        assert heap.settings[-4] == 0
        assert not heap.trimmed
    assert heap.settings == {-4: 65536, -3: 2**25, -1: 2**26, -2: 2**17}
    assert heap.trimmed == 1
    with pytest.raises(ValueError, match="inside"), steady_allocator():
        raise ValueError("inside")
    assert heap.settings[-4] == 65536


def test_other_allocators_are_left_alone(monkeypatch):
    other = Heap()
    other.mallctl = None  # jemalloc
    musl = object()
    for library, reason in ((other, "another allocator"), (musl, "not glibc")):
        monkeypatch.setattr("ctypes.CDLL", lambda name, library=library: library)
        with steady_allocator() as allocator:
            assert not allocator.active
            assert reason in allocator.reason
    assert not other.settings

    def windows(name):
        raise TypeError("no None here")

    monkeypatch.setattr("ctypes.CDLL", windows)
    with steady_allocator() as allocator:
        assert "no C library" in allocator.reason
    deaf = Heap(obeys=0)
    monkeypatch.setattr("ctypes.CDLL", lambda name: deaf)
    with steady_allocator() as allocator:
        assert "refused" in allocator.reason


def test_products_are_the_same_bits_with_a_steady_allocator():
    model = nn.Linear(300, 300)
    loss = LossOnBatches(model, lambda m, x: m(x).tanh().square().mean(), [torch.ones(64, 300)])
    v = torch.ones(loss.dim)
    usual = HessianOperator(loss) @ v
    with steady_allocator():
        assert torch.equal(HessianOperator(loss) @ v, usual)
