"""The way updates are made does not show: compiled or not, threads, blocks, company; and what it does with memory."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from riverval.errors import InputError
from riverval.schedules import make_schedule
from riverval.toy import (
    LOSSES,
    OPTIMIZERS,
    Setting,
    StraightRiver,
    SymbolicLoss,
    TailAverage,
    UnstableWarning,
    make_loss,
    make_noise,
    make_optimizer,
    simulate,
    simulate_many,
    summarise,
)

from ..strategies import schedules
from .runs import VALLEY, blow_up_replicate_2

ENGINE = sys.modules["riverval.toy._engine"]
KERNELS = sys.modules["riverval.toy._kernels"]
BENT = make_loss("bent")
NAMED = {name: cls for name, cls in LOSSES.items() if name not in ("straight", "plane", "rotated", "expression")}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Compiled code of these tests goes elsewhere, and is compiled anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIVERVAL_CACHE", str(tmp_path_factory.mktemp("kernels")))
        KERNELS.load.cache_clear()
        yield


def run(loss, schedule, *, sigma=0.5, replicates=20, seed=1, **options):
    return simulate(loss, schedule, sigma=sigma, replicates=replicates, rng=np.random.default_rng(seed), **options)


def assert_same_bits(a, b):
    assert set(a.data_vars) == set(b.data_vars)
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)


# --- compiled code against its oracle --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("average", [None, TailAverage(40)], ids=["iterate", "average"])
def test_compiled_updates_have_the_bits_of_numpy_for_every_optimizer(name, average):
    schedule = make_schedule("wsd", peak_lr=0.05, steps=60, warmup=5)
    options = {"optimizer": make_optimizer(name), "average": average, "every": 7}
    assert_same_bits(run(BENT, schedule, backend="numba", **options), run(BENT, schedule, backend="numpy", **options))


@pytest.mark.parametrize("name", NAMED)
def test_compiled_updates_have_the_bits_of_numpy_for_every_loss(name):
    schedule = make_schedule("wsd", peak_lr=0.0005, steps=50)  # the steepest is 1500 where it starts
    loss = make_loss(name)
    assert_same_bits(run(loss, schedule, backend="numba"), run(loss, schedule, backend="numpy"))


@pytest.mark.parametrize(
    "loss", [VALLEY, make_loss("plane"), make_loss("rotated")], ids=["straight", "plane", "rotated"]
)
def test_compiled_updates_have_the_bits_of_numpy_for_quadratics(loss):
    schedule = make_schedule("wsd", peak_lr=0.05, steps=50)
    assert_same_bits(run(loss, schedule, backend="numba"), run(loss, schedule, backend="numpy"))


@settings(max_examples=15)
@given(
    schedule=schedules(), replicates=st.integers(1, 70), seed=st.integers(0, 10**6), every=st.integers(1, 50),
    slope=st.floats(0, 1), curvature=st.floats(0.1, 8), freedom=st.none() | st.floats(2.5, 10),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::riverval.toy.UnstableWarning")
def test_any_run_has_the_same_bits_from_both(schedule, replicates, seed, every, slope, curvature, freedom):
    """Unstable ones that diverge included."""
    loss = make_loss("bent", slope=slope, curvature=curvature)
    noise = make_noise("isotropic", sigma=1.0) if freedom is None else make_noise("student-t", freedom=freedom)
    a, b = (
        simulate(
            loss, schedule, noise=noise, replicates=replicates, rng=np.random.default_rng(seed), every=every,
            backend=backend, threads=2,
        )
        for backend in ("numba", "numpy")
    )  # fmt: skip
    assert_same_bits(a, b)
    assert a.attrs["status"] == b.attrs["status"]


def test_a_single_wrong_operation_would_be_noticed():
    """The oracle can fail: the same expression summed in another order has other bits."""
    schedule = make_schedule("constant", peak_lr=0.05, steps=60)
    a, b = (
        SymbolicLoss(text, parameters={"c": 0.1, "h": 2.0, "q": 0.3})
        for text in ("-c*x + h/2*y**2 + q/3*y**3", "-c*x + y**2*(h/2 + q*y/3)")
    )
    with pytest.raises(AssertionError):
        assert_same_bits(run(a, schedule, backend="numba"), run(b, schedule, backend="numpy"))


# --- threads, blocks, company ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("replicates", [3, 15, 16, 40])
def test_threads_do_not_change_the_bits(replicates, monkeypatch):
    monkeypatch.setattr(ENGINE, "NORMALS_IN_BLOCK", 400)  # many blocks
    schedule = make_schedule("wsd", peak_lr=0.1, steps=500)
    one, two, five = (
        run(BENT, schedule, replicates=replicates, backend="numba", threads=n, every=11) for n in (1, 2, 5)
    )
    assert_same_bits(one, two)
    assert_same_bits(one, five)


def test_the_streams_are_as_documented(monkeypatch):
    """Block b is drawn by spawned stream b modulo 16, as (updates, dim, replicates)."""
    monkeypatch.setattr(ENGINE, "NORMALS_IN_BLOCK", 3 * 4 * 16)  # blocks of 3 updates
    schedule, sigma = make_schedule("constant", peak_lr=0.1, steps=100), 0.7
    ds = run(VALLEY, schedule, sigma=sigma, replicates=16, every=1, seed=5, start=0.5)
    streams = np.random.default_rng(5).spawn(16)
    w = np.full((4, 16), 0.5)
    w[0] = 0.0
    h = np.array([0.0, *VALLEY.curvatures])[:, None]
    b = np.array([-VALLEY.slope, 0, 0, 0])[:, None]
    for t in range(100):
        if t % 3 == 0:
            block = streams[t // 3 % 16].standard_normal((min(3, 100 - t), 4, 16))
        w = w - 0.1 * (h * w + b + sigma * block[t % 3])
        np.testing.assert_allclose(ds["loss"][:, t + 1], VALLEY.value(w.T), rtol=1e-9, atol=1e-12)


def test_runs_in_company_have_the_bits_they_have_alone():
    plans = [
        make_schedule("wsd", peak_lr=0.1, steps=300),
        make_schedule("constant", peak_lr=0.2, steps=170),
        make_schedule("cosine", peak_lr=0.05, steps=301),
    ]
    makers = [make_optimizer("sgd"), make_optimizer("adam"), make_optimizer("heavy-ball", beta=0.5)]
    together = simulate_many(VALLEY, plans, sigma=1.0, optimizer=makers, replicates=18, rng=np.random.default_rng(4))
    for ds, plan, optimizer in zip(together, plans, makers, strict=True):
        assert_same_bits(ds, run(VALLEY, plan, sigma=1.0, optimizer=optimizer, replicates=18, seed=4))
    stationary = simulate_many(
        VALLEY, plans, sigma=1.0, replicates=18, rng=np.random.default_rng(4), start="stationary"
    )
    for ds, plan in zip(stationary, plans, strict=True):
        assert_same_bits(ds, run(VALLEY, plan, sigma=1.0, replicates=18, seed=4, start="stationary"))


def test_company_makes_differences_paired():
    plans = [make_schedule("constant", peak_lr=lr, steps=400) for lr in (0.10, 0.101)]
    a, b = simulate_many(VALLEY, plans, sigma=1.0, replicates=400, rng=np.random.default_rng(4))
    difference = (a["loss"] - b["loss"]).isel(eval_step=-1)
    assert float(difference.std()) < 0.1 * float(a["loss"].isel(eval_step=-1).std())


# --- endings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_divergence_is_recorded_the_same_and_spares_the_others(backend, monkeypatch):
    schedule = make_schedule("constant", peak_lr=0.1, steps=60)
    healthy = run(VALLEY, schedule, replicates=4, every=1)
    blow_up_replicate_2(monkeypatch)
    ds = run(VALLEY, schedule, replicates=4, every=1, backend=backend)
    assert ds["diverged_at"].values.tolist() == [-1, -1, 0, -1]
    for name in ("loss", "river", "hill"):
        np.testing.assert_array_equal(ds[name][[0, 1, 3]], healthy[name][[0, 1, 3]])


@pytest.mark.parametrize("name", ["sgd", "heavy-ball", "nesterov", "ema-momentum"])
def test_beyond_the_limit_a_run_is_warned_of_and_diverges(name):
    optimizer = make_optimizer(name)
    lr = 1.3 * optimizer.stability_limit(1.0) / max(VALLEY.curvatures)
    with pytest.warns(UnstableWarning, match=rf"whose limit is {optimizer.stability_limit(1.0):g}/h"):
        ds = run(VALLEY, make_schedule("constant", peak_lr=lr, steps=6000), optimizer=optimizer, replicates=2)
    assert ds.attrs["status"] == "diverged"
    assert (ds["diverged_at"] > 0).all()


def test_ctrl_c_in_a_threaded_run_keeps_whole_states(monkeypatch):
    def stop(done, values):
        if done >= 200:
            raise KeyboardInterrupt

    monkeypatch.setattr(ENGINE, "NORMALS_IN_BLOCK", 400)
    schedule = make_schedule("constant", peak_lr=0.1, steps=20_000)
    ds = run(BENT, schedule, backend="numba", threads=2, every=50, progress=stop)
    assert ds.attrs["status"] == "interrupted"
    assert 200 <= ds.sizes["step"] < 20_000
    whole = run(BENT, schedule, backend="numba", threads=1, every=50)
    xr.testing.assert_equal(ds["loss"], whole["loss"].isel(eval_step=slice(ds.sizes["eval_step"])))


@pytest.mark.parametrize(("backend", "threads"), [("numpy", 1), ("numba", 2)])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_ctrl_c_while_states_are_evaluated_loses_and_shifts_none(backend, threads, at, monkeypatch):
    monkeypatch.setattr(ENGINE, "NORMALS_IN_BLOCK", 400)
    schedule = make_schedule("constant", peak_lr=0.1, steps=4000)
    whole = run(BENT, schedule, every=7)
    calls = []

    def interrupted_once(self, w):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return type(BENT).__mro__[1].split_rows(self, w)

    monkeypatch.setattr(type(BENT), "split_rows", interrupted_once)
    ds = run(BENT, schedule, every=7, backend=backend, threads=threads)
    assert ds.attrs["status"] == "interrupted"
    assert len(calls) > at  # what it was about is done after all
    assert 1 <= ds.sizes["eval_step"] < whole.sizes["eval_step"]
    xr.testing.assert_equal(ds["loss"], whole["loss"].isel(eval_step=slice(ds.sizes["eval_step"])))


def test_an_error_while_noise_is_drawn_ends_a_threaded_run(monkeypatch):
    """And leaves no thread waiting for the block that never comes."""

    class Failing(type(make_noise("isotropic"))):
        def draw(self, rng, out):
            raise MemoryError("no room")

    monkeypatch.setattr(ENGINE, "NORMALS_IN_BLOCK", 400)
    with pytest.raises(MemoryError, match="no room"):
        run(
            BENT, make_schedule("constant", peak_lr=0.1, steps=4000), sigma=None, noise=Failing(), backend="numba",
            threads=2,
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_loss_that_is_not_finite_near_the_origin_is_a_divergence_too(backend):
    """log(y) is not real below y = 0, where its slope 1/y is; exp(y) is infinite from y = 710 on."""
    plan = make_schedule("constant", peak_lr=0.5, steps=40)
    below = run(
        SymbolicLoss("-x + y - log(y)", floor={"y": "1"}), plan, sigma=3.0, every=1, backend=backend
    )  # fmt: skip
    above = run(
        SymbolicLoss("-x + exp(y) + exp(-y)", floor={"y": "0"}), plan, sigma=1.0, every=1, backend=backend,
        start=(0.0, 800.0),
    )  # fmt: skip
    assert (above["diverged_at"] == 0).all()
    lost = ~np.isfinite(below["loss"].values)
    assert lost.any(axis=1).sum() > 5
    assert below.attrs["status"] == "diverged"
    np.testing.assert_array_equal(below["diverged_at"], np.where(lost.any(axis=1), lost.argmax(axis=1), -1))


# --- code ------------------------------------------------------------------------------------------------------------
def test_other_numbers_need_no_other_code():
    found = {
        KERNELS.source_of(make_loss("bent", slope=slope).kernel(), make_optimizer("adam", beta1=beta), False)
        for slope in (0.1, 0.2) for beta in (0.5, 0.9)
    }  # fmt: skip
    assert len(found) == 1


def test_code_is_kept_beside_a_file_named_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("RIVERVAL_CACHE", str(tmp_path))
    source = KERNELS.source_of(VALLEY.kernel(), make_optimizer("sgd"), False)
    KERNELS.load.__wrapped__(source)
    (path,) = (tmp_path / "kernels").glob("*.py")
    assert path.read_text() == source
    path.write_text("raise SystemExit  # somebody has been here")
    KERNELS.load.__wrapped__(source)
    assert path.read_text() == source


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "kernels").write_text("a file where the folder should be")
    monkeypatch.setenv("RIVERVAL_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="no folder for compiled code can be written to: tried"):
        KERNELS.load.__wrapped__("x = 1")


def test_what_the_code_imports_is_part_of_its_name(tmp_path, monkeypatch):
    from riverval.toy import _jit

    monkeypatch.setenv("RIVERVAL_CACHE", str(tmp_path))
    source, inner = KERNELS.source_of(VALLEY.kernel(), make_optimizer("sgd"), False), KERNELS.inspect.getsource
    for changed in (None, _jit, KERNELS._elementary, sys.modules["riverval.toy.optimizers"]):
        monkeypatch.setattr(KERNELS.inspect, "getsource", lambda m, c=changed: inner(m) + "# new" * (m is c))
        KERNELS.load.__wrapped__(source)
    assert len(list((tmp_path / "kernels").glob("*.py"))) == 4


def test_a_user_without_a_name_has_a_cache_too(monkeypatch):
    """As in a container that runs under a number."""

    def unknown():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("RIVERVAL_CACHE")
    monkeypatch.setattr("getpass.getuser", unknown)
    assert len({str(folder) for folder in KERNELS._folders()}) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backend": "torch"}, r"unknown backend 'torch'; choose one of: auto, numpy, numba"),
        ({"threads": 0}, r"threads must be .* got 0"),
        ({"start": (1.0, 2.0)}, r"start must have 4 numbers, for x, y1, y2, y3; got 2"),
        ({"start": "stationary", "optimizer": make_optimizer("adam")}, r"known for SGD on a straight river only"),
        ({"start": np.zeros(4)}, r"start .* must be a number"),
        ({"optimizer": "adam"}, r"optimizer must be what make_optimizer makes, got 'adam'"),
        ({"sigma": None, "noise": "none"}, r"noise must be what make_noise makes, got 'none'"),
        ({"average": "tail:5"}, r"average must be what TailAverage or EMAAverage makes, got 'tail:5'"),
        ({"average": TailAverage(2000)}, r"needs as many, but the run has 1000"),
        (
            {"sigma": None, "noise": make_noise("state-dependent", expression="1 + x**2"), "backend": "numba"},
            r"'state-dependent' depends on the state, which only the backend numpy does",
        ),
    ],
)
def test_bad_input_is_refused_with_the_rule(options, told):
    with pytest.raises(InputError, match=told):
        run(VALLEY, make_schedule("constant", peak_lr=0.1, steps=1000), **options)


def test_a_list_of_optimizers_must_fit():
    plans = [make_schedule("constant", peak_lr=0.1, steps=10)] * 2
    with pytest.raises(InputError, match="one for each of the 2 schedules, got 1"):
        simulate_many(
            VALLEY, plans, sigma=1.0, optimizer=[make_optimizer("sgd")], replicates=2, rng=np.random.default_rng()
        )
    with pytest.raises(InputError, match="schedules must be a list"):
        simulate_many(VALLEY, plans[0], sigma=1.0, replicates=2, rng=np.random.default_rng())
    with pytest.raises(InputError, match="schedules is empty"):
        simulate_many(VALLEY, [], sigma=1.0, replicates=2, rng=np.random.default_rng())


def test_memory_does_not_grow_with_the_updates_beyond_what_is_recorded():
    def peak(steps):
        run(BENT, make_schedule("constant", peak_lr=0.1, steps=10), backend="numba")
        tracemalloc.start()
        run(BENT, make_schedule("constant", peak_lr=0.1, steps=steps), backend="numba", every=steps, threads=1)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert (peak(40_000) - peak(20_000)) / 20_000 < 100  # bytes an update: rates and phases, no states


def test_a_river_of_many_modes_compiles():
    loss = StraightRiver.power_law(0.1, 20, 4.0, 1.0)
    schedule = make_schedule("constant", peak_lr=0.1, steps=30)
    assert_same_bits(run(loss, schedule, backend="numba"), run(loss, schedule, backend="numpy"))


# --- quantiles -------------------------------------------------------------------------------------------------------
def test_quantiles_are_those_of_the_replicates():
    schedule, levels = make_schedule("wsd", peak_lr=0.1, steps=300), (0.0, 0.25, 0.5, 1.0)
    each = run(VALLEY, schedule, replicates=50, every=10)
    few = run(VALLEY, schedule, replicates=50, every=10, quantiles=levels)
    for name in ("loss", "river", "hill"):
        np.testing.assert_allclose(few[f"{name}_quantile"], each[name].quantile(levels, "replicate"), rtol=1e-12)
        np.testing.assert_allclose(few[f"mean_{name}"], each[name].mean("replicate"), rtol=1e-12)
        error = each[name].std("replicate", ddof=1) / 50**0.5
        np.testing.assert_allclose(few[f"mean_{name}_error"], error, rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(few[f"exact_{name}"], each[f"exact_{name}"])
    assert [(r.quantity, r.mean, r.z) for r in summarise(few)] == [
        (r.quantity, pytest.approx(r.mean), pytest.approx(r.z)) for r in summarise(each)
    ]


def test_quantiles_leave_out_the_replicates_that_diverged(monkeypatch):
    schedule = make_schedule("constant", peak_lr=0.1, steps=60)
    healthy = run(VALLEY, schedule, replicates=4, every=1).isel(replicate=[0, 1, 3])
    blow_up_replicate_2(monkeypatch)
    ds = run(VALLEY, schedule, replicates=4, every=1, quantiles=(0.5,))
    assert ds.attrs["status"] == "diverged"
    np.testing.assert_allclose(ds["mean_loss"], healthy["loss"].mean("replicate"))
    np.testing.assert_allclose(ds["loss_quantile"][0], healthy["loss"].median("replicate"))


def test_quantiles_take_memory_that_does_not_grow_with_the_replicates():
    schedule = make_schedule("constant", peak_lr=0.1, steps=4000)
    many = 100_000
    with pytest.raises(InputError, match="GiB allowed"):
        check_size(schedule, many * 5, None)
    check_size(schedule, many * 5, (0.5,))


def check_size(schedule, replicates, quantiles):
    setting = Setting(loss=VALLEY, schedule=schedule, sigma=1.0, quantiles=quantiles)
    sys.modules["riverval.toy.simulate"].check_size([setting], replicates)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quantiles": ()}, r"increasing numbers such as .* got \(\)"),
        ({"quantiles": (0.5, 0.5)}, "increasing numbers"),
        ({"quantiles": (0.9, 0.1)}, "increasing numbers"),
        ({"quantiles": (-0.1, 0.5)}, r"quantiles \(over the replicates\) .* got -0.1"),
        ({"quantiles": (0.5,), "average": TailAverage(5)}, "leave out one of the two"),
    ],
)
def test_bad_quantiles_are_refused_with_the_rule(options, told):
    with pytest.raises(InputError, match=told):
        run(VALLEY, make_schedule("constant", peak_lr=0.1, steps=100), **options)
