"""Which states are kept, in which form, and what comes back from the files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from riverval.errors import StoreError  # noqa: E402
from riverval.experiments.snapshots import SnapshotPlan, Snapshots, planned_states, windows  # noqa: E402
from riverval.schedules import make_schedule  # noqa: E402
from riverval.sketches import Sketch  # noqa: E402

from .probing import DIM, STEPS, Run, config  # noqa: E402


# --- the plan --------------------------------------------------------------------------------------------------------
def test_windows_are_those_of_the_paper_and_their_controls():
    plan = make_schedule("wsd", peak_lr=1.0, steps=1000, warmup=100, cooldown=0.35)
    assert windows(plan) == {
        "stable": (100, 650), "cooldown": (650, 1000), "late stable": (540, 650), "early cooldown": (650, 720),
        "matched stable": (580, 650), "earlier stable": (430, 540),
    }  # fmt: skip
    assert set(windows(make_schedule("cosine", peak_lr=1.0, steps=100, warmup=5))) == {"cooldown", "early cooldown"}
    constant = windows(make_schedule("constant", peak_lr=1.0, steps=100, warmup=10))
    assert constant == {"stable": (10, 100), "late stable": (82, 100), "earlier stable": (64, 82)}


def test_a_window_that_does_not_fit_into_the_stable_phase_is_left_out():
    short = make_schedule("wsd", peak_lr=1.0, steps=1000, warmup=100, cooldown=0.85)
    assert short.windows("stable") == [(100, 150)]
    assert "matched stable" not in windows(short)


def test_the_last_stretches_count_where_a_schedule_has_several():
    plan = make_schedule("wsd-s", peak_lr=1.0, budgets=(100, 200), cooldown=0.2)
    stable, cooldown = plan.windows("stable")[-1], plan.windows("cooldown")[-1]
    assert windows(plan)["stable"] == stable
    assert windows(plan)["cooldown"] == cooldown


@given(
    st.integers(2, 3000), st.floats(0.01, 0.99), st.integers(2, 40), st.integers(3, 20), st.integers(1, 9),
    st.integers(1, 30),
)  # fmt: skip
def test_planned_states_are_states_in_order_within_their_windows(steps, cooldown, count, direction, points, descent):
    assume(2 <= round(cooldown * steps) <= steps - steps // 10)
    plan = make_schedule("wsd", peak_lr=1.0, steps=steps, warmup=steps // 10, cooldown=cooldown)
    c = config(snapshots=count, direction_snapshots=direction, hessian_points=points, descent_points=descent)
    found, spans = planned_states(plan, c), windows(plan)
    for name, states in found.items():
        assert states == sorted(set(states))
        assert 0 <= states[0] <= states[-1] <= steps
        if name in spans:
            assert (states[0], states[-1]) == spans[name]
            assert len(states) <= (count if name in ("stable", "cooldown") else direction)
    assert set(spans) | {"descent", "end"} <= set(found)
    assert found["end"] == [steps]
    assert found["descent"][0] == min(steps // 10, steps - 1)
    assert found["descent"][-1] == steps - 1 or descent == 1
    if "sharpness" in found:
        assert set(found["sharpness"]) <= set(found["cooldown"])
        assert found["sharpness"][0] == found["cooldown"][0]
        assert points == 1 or found["sharpness"][-1] == steps
    # The controls have the spacing of what they are controls of.
    for control, model in (("matched stable", "early cooldown"), ("earlier stable", "late stable")):
        if control in found:
            gaps = np.diff(found[model])
            assert np.diff(found[control]).tolist() == (gaps[::-1] if control == "matched stable" else gaps).tolist()


def test_without_snapshots_nothing_is_kept():
    plan = SnapshotPlan.of(config(snapshots=0))
    assert (plan.states, plan.wanted, plan.nbytes(1000)) == ({}, frozenset(), 0)


# --- the files -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {k: Run(tmp_path_factory.mktemp(k) / "s", config(keep=k)) for k in ("float32", "bfloat16", "sketch")}


def test_float32_keeps_every_state_update_and_preconditioner_as_it_was(runs):
    run = runs["float32"]
    for state in sorted(run.snapshots.plan.full):
        assert np.array_equal(run.context.at(state).numpy(), run.weights[state])
    for state in run.snapshots.plan.states["descent"]:
        found = run.snapshots.load(state, run.model, "update").numpy()
        assert np.array_equal(found, run.weights[state + 1] - run.weights[state])
    for state in run.snapshots.plan.states["sharpness"]:
        np.testing.assert_allclose(run.snapshots.moments(state), run.moments[state], rtol=1e-6)


def test_bfloat16_is_off_by_its_stated_error_and_its_updates_are_no_worse(runs):
    run = runs["bfloat16"]
    for state in sorted(run.snapshots.plan.full):
        error = np.abs(run.context.at(state).numpy() - run.weights[state])
        assert np.all(error <= 2**-8 * np.abs(run.weights[state]))
    for state in run.snapshots.plan.states["descent"]:
        true = run.weights[state + 1] - run.weights[state]
        error = np.abs(run.snapshots.load(state, run.model, "update").numpy() - true)
        # Differences of rounded states would be off by far more than that.
        assert np.all(error <= 2**-8 * np.abs(true))


def test_sketches_stand_for_states_that_are_only_compared(runs, tmp_path):
    run = runs["sketch"]
    plan = run.snapshots.plan
    only = set(plan.states["stable"]) - plan.full
    assert only
    assert not any(run.snapshots.has(t) for t in only)
    assert all(run.snapshots.has(t, "sketch") for t in plan.states["stable"])
    states = plan.states["cooldown"]
    exact = runs["float32"].snapshots.gram(states, run.model)
    # 12 numbers fit into a sketch of 64, which then is an isometry.
    np.testing.assert_allclose(run.snapshots.gram(states, run.model), exact, rtol=1e-9, atol=1e-12)
    narrow = Run(tmp_path, config(keep="sketch", sketch_width=8))
    size = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    off = (narrow.snapshots.gram(states, run.model) - exact) / size
    assert 0 < np.abs(off).max() < 4 * Sketch(DIM, width=8).error()
    assert (narrow.snapshots.seen_dimension(DIM), run.snapshots.seen_dimension(DIM)) == (8, DIM)


@pytest.mark.parametrize("keep", ["float32", "bfloat16", "sketch"])
def test_the_announced_bytes_are_those_on_the_disk(tmp_path, keep):
    model = torch.nn.Linear(100, 50)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    snapshots = Snapshots(tmp_path, SnapshotPlan.of(config(keep=keep)))
    for state in range(STEPS + 1):
        snapshots.offer(state, model, optimizer)
        model(torch.ones(1, 100)).sum().backward()
        optimizer.step()
    files = [file.stat().st_size for file in tmp_path.iterdir()]
    # Up to a kilobyte of header in each file.
    assert sum(files) <= snapshots.plan.nbytes(5050) <= sum(files) + 1024 * len(files)
    assert len(snapshots) == len(snapshots.plan.full | snapshots.plan.sketched)


def test_sgd_has_no_preconditioner_to_keep(tmp_path):
    run = Run(tmp_path, config(optimizer="sgd"))
    assert not run.snapshots.plan.moments
    assert not any(run.snapshots.has(t, "moments") for t in range(STEPS + 1))


def test_a_state_that_is_offered_again_is_written_again_with_the_same_bits(tmp_path):
    run = Run(tmp_path, config(keep="bfloat16"))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    again = Snapshots(tmp_path, run.snapshots.plan)  # a resumed process, which starts between a state and its update
    state = run.snapshots.plan.states["descent"][3] + 1
    for t in range(state, STEPS + 1):
        with torch.no_grad():
            run.model.weight.copy_(torch.from_numpy(run.weights[t]))
        again.offer(t, run.model)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_branch_takes_over_what_it_shares_with_its_trunk(tmp_path):
    trunk = Run(tmp_path / "trunk", config())
    plan = SnapshotPlan.of(config(schedule={"cooldown": 0.5}))
    branched = Snapshots(tmp_path / "branch", plan)
    until = trunk.snapshots.plan.states["descent"][3]  # whose update leads beyond it
    count = branched.adopt(trunk.snapshots.folder, until)
    shared = {t for t in plan.full & trunk.snapshots.plan.full if t <= until}
    assert shared
    assert {t for t in range(STEPS + 1) if branched.has(t)} == shared
    updates = {t for t in plan.updates & trunk.snapshots.plan.updates if t + 1 <= until}
    assert {t for t in range(STEPS + 1) if branched.has(t, "update")} == updates
    assert count == len(shared) + len(updates) + sum(branched.has(t, "moments") for t in range(STEPS + 1))
    assert np.array_equal(branched.load(min(shared), trunk.model), trunk.weights[min(shared)])
    assert branched.states["stable"] == [t for t in plan.states["stable"] if t in shared]
    # Snapshots in another form stay where they are.
    other = Snapshots(tmp_path / "other", SnapshotPlan.of(config(keep="bfloat16")))
    assert other.adopt(trunk.snapshots.folder, STEPS) == 0


def test_a_new_run_clears_what_an_earlier_one_left(tmp_path):
    run = Run(tmp_path, config(keep="sketch"))
    (tmp_path / "mine.txt").write_text("kept")
    run.snapshots.clear()
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_or_spoilt_file_is_an_error_that_names_it(runs, tmp_path):
    run = runs["float32"]
    with pytest.raises(StoreError, match="step_0000007"):
        run.snapshots.load(7, run.model)
    spoilt = Snapshots(tmp_path, run.snapshots.plan)
    for kind in ("step", "sketch", "moments"):
        spoilt.path(0, kind).write_bytes(b"no")
    with pytest.raises(StoreError, match="step_0000000"):
        list(spoilt.blocks([0], run.model))
    with pytest.raises(StoreError, match="moments_0000000"):
        spoilt.moments(0)
    assert Snapshots(tmp_path / "new", run.snapshots.plan).adopt(tmp_path, STEPS) == 0
