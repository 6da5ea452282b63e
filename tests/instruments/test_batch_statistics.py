"""Where the statistics of batch norm come from: a barrier that is only the stored ones', and a model left alone."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from riverval.batch_statistics import STATISTICS, loss_with_statistics  # noqa: E402
from riverval.directions import plane_through, random_direction, shapes_of  # noqa: E402
from riverval.errors import InputError, RivervalError  # noqa: E402
from riverval.landscape import batch_losses, path_losses, plane_losses  # noqa: E402
from riverval.model_loss import LossOnBatches, supervised  # noqa: E402
from riverval.valley import barrier  # noqa: E402

loss_of = supervised(cross_entropy)


def make_batches(count, size=64, seed=0):
    """Two classes of 8x8 images, told apart by the sign of their mean."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count, size), generator=draw)
    images = torch.randn(count, size, 1, 8, 8, generator=draw) + 0.4 * (2.0 * labels - 1)[..., None, None, None]
    return list(zip(images, labels, strict=True))


def make_model(seed, dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 2),
        )  # fmt: skip


def trained(seed, steps=60):
    model = make_model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in make_batches(steps, seed=seed + 1):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def pair():
    """One model at two moments of its training: same basin, other activations; buffers of the second."""
    model = trained(0, 20)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    # The later weights are the earlier ones with each convolution four times as large: batch norm makes that no change.
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.mul_(4.0)
            layer.bias.mul_(4.0)
    for batch in make_batches(60, seed=5):
        model.train()(batch[0])
    return model, start, torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def state_of(model):
    modes = [(m.training, getattr(m, "momentum", None)) for m in model.modules()]
    return modes, [t.clone() for t in (*model.parameters(), *model.buffers())]


def on_the_line(model, start, stop):
    loss = LossOnBatches(model, loss_of, make_batches(6, seed=9))
    return {name: path_losses(loss_with_statistics(loss, name), [start, stop], 9) for name in STATISTICS}


def test_between_two_scales_of_one_network_nothing_happens_but_by_stored_statistics(pair):
    """Batch norm takes the scale out: every place on the line computes the same function."""
    model, start, stop = pair
    before = state_of(model)
    found = on_the_line(model, start, stop)
    assert np.ptp(found["reestimated"].loss) < 1e-3
    assert np.ptp(found["batch"].loss) < 1e-3
    assert np.ptp(found["stored"].loss) > 0.1
    assert found["stored"].loss[-1] == pytest.approx(found["reestimated"].loss[-1], abs=0.02)  # the end they belong to
    after = state_of(model)
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def test_the_barrier_between_two_networks_goes_when_statistics_are_reestimated():
    one, other = (trained(seed) for seed in (0, 1))
    ends = [torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (one, other)]
    verdicts = {name: barrier(path, tolerance=0.02).verdict for name, path in on_the_line(other, *ends).items()}
    assert verdicts == {"stored": "barrier", "batch": "no barrier", "reestimated": "no barrier"}


def test_reestimated_statistics_are_those_of_torchs_update_bn(pair):
    model, start, _ = pair
    over, batches = make_batches(5, seed=3), make_batches(3, seed=9)
    loss = LossOnBatches(model, loss_of, batches)
    values = loss_with_statistics(loss, "reestimated", over=over)(start)
    mine = make_model(0)
    torch.nn.utils.vector_to_parameters(start.clone(), mine.parameters())
    torch.optim.swa_utils.update_bn([x for x, _ in over], mine)
    with torch.no_grad():
        expected = [float(loss_of(mine.eval(), batch)) for batch in batches]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_layer_used_twice_counts_each_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.norm(3 * self.norm(x)))

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(32, 4) + 1
    batch = (x, torch.zeros(32, dtype=torch.long))
    loss = LossOnBatches(model, loss_of, [batch])
    found = loss_with_statistics(loss, "reestimated")(loss.point())
    torch.optim.swa_utils.update_bn([x], model)
    with torch.no_grad():
        assert float(found[0]) == pytest.approx(float(loss_of(model.eval(), batch)), rel=1e-5)


def test_stored_statistics_are_the_losses_themselves(pair):
    model, start, _ = pair
    loss = LossOnBatches(model, loss_of, make_batches(3), weights=[1, 2, 3])
    found = loss_with_statistics(loss, "stored")
    assert found.weights @ found(start) == pytest.approx(loss(start), rel=1e-12)
    np.testing.assert_allclose(loss_with_statistics(loss, "reestimated").weights, [1 / 6, 1 / 3, 1 / 2])


def test_dropout_stays_off_and_random_numbers_are_not_used():
    model = make_model(1, dropout=0.5)
    loss = LossOnBatches(model, loss_of, make_batches(2))
    before = torch.get_rng_state()
    for name in STATISTICS:
        one, two = (loss_with_statistics(loss, name)(loss.point()) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    assert torch.equal(before, torch.get_rng_state())
    assert all(m.training for m in model.modules())


def test_parameter_subsets_move_alone(pair):
    model, *_ = pair
    loss = LossOnBatches(model, loss_of, make_batches(2), parameters=["9.*"])
    whole = LossOnBatches(model, loss_of, make_batches(2))
    for name in STATISTICS:
        few, all_of_it = (loss_with_statistics(x, name)(x.point()) for x in (loss, whole))
        np.testing.assert_allclose(few, all_of_it, rtol=1e-6)


def test_bad_choices_are_refused(pair):
    model, start, _ = pair
    loss = LossOnBatches(model, loss_of, make_batches(2))
    linear = LossOnBatches(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), loss_of, make_batches(2))
    train = LossOnBatches(model, loss_of, make_batches(2), mode="train")
    bad = {
        "Did you mean 'stored'": lambda: loss_with_statistics(loss, "store"),
        "no batch-norm layer": lambda: loss_with_statistics(linear, "reestimated"),
        "takes no batches": lambda: loss_with_statistics(loss, "batch", over=make_batches(1)),
        "at least one batch": lambda: loss_with_statistics(loss, "reestimated", over=[]),
        "mode 'eval'": lambda: loss_with_statistics(train, "stored"),
        "parameters, got": lambda: loss_with_statistics(loss, "reestimated")(start[1:]),
    }
    for message, call in bad.items():
        with pytest.raises(InputError, match=message):
            call()


def test_a_batch_that_fails_is_named(pair):
    model, start, _ = pair
    good, other = make_batches(2)
    loss = LossOnBatches(model, loss_of, [good, (other[0][:, :, :2], other[1])])
    for losses in (batch_losses(loss), loss_with_statistics(loss, "reestimated", over=[good])):
        with pytest.raises(RivervalError, match="batch 2 of 2 failed"):
            losses(start)
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert momenta == [0.1, 0.1]


def test_planes_and_directions_of_a_model(pair):
    model, start, stop = pair
    loss = LossOnBatches(model, loss_of, make_batches(2))
    shapes = shapes_of(loss)
    assert shapes["3.weight"] == (8, 8, 3, 3)
    step = random_direction(stop, rng=np.random.default_rng(0), shapes=shapes)
    pieces, weights = loss.pieces(step), loss.pieces(stop)
    for name, piece in pieces.items():
        if piece.ndim < 2:
            assert not piece.any()
        else:
            np.testing.assert_allclose(piece.flatten(1).norm(dim=1), weights[name].flatten(1).norm(dim=1), rtol=1e-5)
    grid = plane_losses(loss, plane_through(start, stop, stop + step), [0.0, 1.0], [0.0])
    assert grid.loss[0, 0] == pytest.approx(loss(start), rel=1e-6)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes_of(model) == shapes
