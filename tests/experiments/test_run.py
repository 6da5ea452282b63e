"""Whole runs, small: dataset, same seed same bits, divergence, interruption, a kill, snapshots, the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from riverval import store  # noqa: E402
from riverval.cli import main  # noqa: E402
from riverval.errors import RivervalError, StoreError  # noqa: E402
from riverval.experiments import probes  # noqa: E402
from riverval.experiments.config import resolve  # noqa: E402
from riverval.experiments.machine import thread_count  # noqa: E402
from riverval.experiments.run import prepare, read_config, run  # noqa: E402
from riverval.experiments.session import Session  # noqa: E402
from riverval.experiments.snapshots import SnapshotPlan, Snapshots  # noqa: E402
from riverval.experiments.summary import summary_rows  # noqa: E402
from riverval.experiments.train import Trainer, evaluate, evaluation_states  # noqa: E402
from riverval.hessian import HessianOperator, LossOnBatches, flat_parameters  # noqa: E402
from riverval.schedules import make_schedule  # noqa: E402
from riverval.spectra import top_eigenvalue  # noqa: E402

SMALL = {
    "cnn": {"steps": 40, "widths": (2, 3, 4, 4, 8), "hessian_examples": 64, "line_examples": 64, "eval_every": 10,
            "snapshots": 5, "alphas": 5, "lr": 3e-3, "probes": ("interpolation", "pca", "sharpness"), "threads": 1},
    "lm": {"steps": 12, "batch": 2, "seq": 16, "hessian_examples": 2, "line_examples": 4, "eval_examples": 4,
           "eval_every": 5, "snapshots": 4, "alphas": 5, "hessian_points": 2, "threads": 1, "width_factor": 0.25,
           "final_examples": 8, "probes": ("interpolation", "pca", "sharpness")},
}  # fmt: skip
ENDS = ("interpolation_start", "interpolation_stop")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"line {k}: the river runs through the valley\n" for k in range(200)))
    return str(path)


def small(arch, corpus=None, decay="wsd", options=None, **given):
    own = {**SMALL[arch], **({"data": corpus} if arch == "lm" else {}), **given}
    return resolve(arch, own, decay=decay, options=options)


def snapshots_in(folder):
    return Snapshots(folder / "snapshots", SnapshotPlan.of(read_config(folder)))


@pytest.mark.parametrize("arch", ["cnn", "lm"])
def test_a_run_ends_in_a_complete_dataset(arch, tmp_path, corpus):
    if arch == "lm":
        pytest.importorskip("transformers")
    config = small(arch, corpus)
    told, done, began = [], [], time.monotonic()
    ds = run(config, tmp_path, lambda n, values: done.append((n, values["lr"])), tell=told.append)
    assert ds.identical(store.load(tmp_path / "run.nc")) or ds.equals(store.load(tmp_path / "run.nc"))
    assert ds.attrs["status"] == "complete"
    # In so few updates much has hardly had a gradient, which the sharpness must tell; nothing else is amiss.
    assert all("tells of eps" in note for note in ds.attrs["notes"].splitlines())
    assert ds["source"].item() == "real"
    plan = json.loads(ds.attrs["config"])
    schedule = make_schedule("wsd", **{k: v for k, v in plan["schedule"].items() if k not in ("name",)})
    np.testing.assert_array_equal(ds["lr"], schedule.values())
    np.testing.assert_array_equal(ds["phase"], schedule.phases())
    assert [n for n, _ in done] == list(range(1, plan["steps"] + 1))
    assert len(plan["data_sha256"]) == 64
    assert plan["parameters"] > 0
    assert ds["eval_step"][0] == 0
    assert ds["eval_step"][-1] == plan["steps"]
    assert np.isfinite(ds["val_loss"]).all()
    assert np.all(ds["update_norm"] > 0)
    assert list(ds["pair"].values) == list(ds["window"].values)[:2] == ["stable", "cooldown"]
    assert ds["interpolation_loss"].shape == (2, 5)
    assert np.isfinite(ds["hessian_top"]).all()
    assert json.loads(json.dumps(read_config(tmp_path).to_dict())) == plan
    timing = json.loads(ds.attrs["timing"])
    assert {*timing["probe_seconds"]} == {"interpolation", "pca", "sharpness"}
    spent = ("training", "evaluation", "snapshots", "checkpoints")
    assert all(timing[f"{what}_seconds"] > 0 for what in spent)
    assert sum(timing[f"{what}_seconds"] for what in spent) < time.monotonic() - began
    assert ds["probe_step"][-1] == plan["steps"]
    np.testing.assert_allclose(ds["pca_share"][:2].sum("component"), 1.0)
    assert ("val_accuracy" in ds) == ("final_train_accuracy" in ds) == (arch == "cnn")
    assert not (tmp_path / "run.partial.nc").exists()
    assert any("sharpness" in line for line in told)
    assert all(len(row) == 3 for row in summary_rows(ds))
    # The segments meet where the stable phase ends and the cooldown begins.
    line = ds["interpolation_loss"]
    assert float(line.sel(pair="stable")[-1]) == float(line.sel(pair="cooldown")[0])


def test_the_same_seed_gives_the_same_bits(tmp_path):
    found = []
    for k, seed in enumerate((0, 0, 1)):
        (tmp_path / str(k)).mkdir()
        torch.manual_seed(k)  # the caller's own random state must not matter, nor change
        before = torch.get_rng_state()
        found.append(run(small("cnn", seed=seed), tmp_path / str(k)))
        assert torch.equal(torch.get_rng_state(), before)
    names = ("train_loss", "grad_norm", "update_norm", "val_loss", "hessian_top", "pca_share", "interpolation_loss")
    for name in names:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert not np.array_equal(found[0]["train_loss"], found[2]["train_loss"])


def test_micro_batches_make_the_same_update(tmp_path):
    whole = run(small("cnn", snapshots=0, steps=5), tmp_path)
    pieces = run(small("cnn", snapshots=0, steps=5, micro_batch=3), tmp_path)
    np.testing.assert_allclose(pieces["train_loss"], whole["train_loss"], rtol=1e-3)
    np.testing.assert_allclose(pieces["grad_norm"], whole["grad_norm"], rtol=1e-2)


def test_a_run_is_plain_adamw_with_the_rates_of_the_schedule(tmp_path):
    config = small("cnn", steps=12, snapshots=2, clip=0.02, weight_decay=0.3)
    run(config, tmp_path)
    job = prepare(config)
    model, loss = job.model, job.config.architecture.loss
    groups = [{"params": [p], "weight_decay": 0.3 * (p.ndim > 1)} for p in model.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=99.0, betas=config.betas, foreach=False)
    model.train()
    for t, lr in enumerate(job.config.plan.values()):
        optimizer.zero_grad()
        loss(model, job.data.batch(t)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        optimizer.step()
    end = snapshots_in(tmp_path).load(12, model)
    torch.testing.assert_close(flat_parameters(model), end, rtol=1e-4, atol=1e-6)


def test_an_evaluation_weighs_examples_alike_and_in_eval_mode():
    architecture = resolve("cnn", {}).architecture
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(4, 3))
    batches = [(torch.randn(n, 4), torch.randint(3, (n,))) for n in (7, 2)]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loss, accuracy = evaluate(architecture, model, batches)
    logits = model[1](x)
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y).detach()), rel=1e-6)
    assert accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert model.training


def test_what_is_measured_is_measured_on_training_data_at_the_kept_states(tmp_path):
    config = small("cnn")
    ds = run(config, tmp_path)
    job = prepare(config)
    kept = snapshots_in(tmp_path)

    def loss(part, examples):
        batches = job.data.fixed(part, examples)
        return LossOnBatches(job.model, config.architecture.loss, batches, weights=[len(x) for x, _ in batches])

    for k in range(ds.sizes["pair"]):
        ends = [float(loss("train", 64)(kept.load(int(ds[n][k]), job.model))) for n in ENDS]
        np.testing.assert_allclose(ds["interpolation_loss"][k, [0, -1]], ends, rtol=1e-6)
    last = kept.load(40, job.model)
    assert float(ds["final_train_loss"]) == pytest.approx(loss("train", None)(last), rel=1e-5)
    assert float(ds["val_loss"][-1]) == pytest.approx(loss("val", None)(last), rel=1e-5)
    rates = [*job.config.plan.values(), np.nan]  # after the last state there is no update
    np.testing.assert_array_equal(ds["probe_lr"], [rates[t] for t in ds["probe_step"].values])
    operator = HessianOperator(loss("train", 64), last).as_linear_operator()
    top = top_eigenvalue(operator, rng=np.random.default_rng(5), tol=1e-4)
    assert float(ds["hessian_top"][-1]) == pytest.approx(top.value, rel=2e-3)


def test_norms_are_those_of_the_parameters(tmp_path):
    config = small("cnn", steps=6, snapshots=2, clip=1e-3)
    start = flat_parameters(prepare(config).model)
    ds = run(config, tmp_path, None)
    assert float(ds["param_norm"][0]) == pytest.approx(float(start.norm()), rel=1e-5)
    assert float(ds["grad_norm"][0]) > 1e-2  # recorded before clipping
    model = prepare(config).model
    kept = snapshots_in(tmp_path)
    states = sorted(int(p.stem[5:]) for p in (tmp_path / "snapshots").glob("step*"))
    assert {3, 4, 6} <= {*states}
    change = kept.load(4, model) - kept.load(3, model)
    assert float(ds["update_norm"][3]) == pytest.approx(float(change.norm()), rel=1e-5)


def test_states_that_are_evaluated_do_not_depend_on_where_the_next_cooldown_is():
    schedule = make_schedule("wsd", peak_lr=1.0, steps=110, warmup=10, cooldown=0.5)
    assert evaluation_states(schedule, 40) == {0, 40, 55, 80, 110}
    cycles = make_schedule("wsd-s", peak_lr=1.0, steps=200, cycles=2, cooldown=0.5)
    assert evaluation_states(cycles, 1000) == {0, 50, 100, 150, 200}


def test_a_second_run_leaves_no_snapshot_of_the_first(tmp_path):
    run(small("cnn"), tmp_path)
    run(small("cnn", steps=20), tmp_path)
    states = [int(p.stem[5:]) for p in (tmp_path / "snapshots").glob("step*")]
    assert max(states) == 20


@pytest.mark.parametrize(("decay", "missing"), [("constant", "cooldown"), ("cosine", "stable")])
def test_a_schedule_without_a_window_skips_what_needs_it_and_says_so(tmp_path, decay, missing):
    ds = run(small("cnn", decay=decay), tmp_path)
    assert ds.attrs["status"] == "complete"
    assert f"no {missing} window" in ds.attrs["notes"]
    assert ("hessian_top" in ds) == (missing == "stable")
    assert len(ds["pair"]) == 1


def test_without_snapshots_there_are_no_probes(tmp_path):
    config = small("cnn", snapshots=0)
    ds = run(config, tmp_path)
    assert "pca_share" not in ds
    assert ds.attrs["notes"].splitlines() == [
        f"{name}: skipped, no snapshots were kept" for name in sorted(probes.PROBES) if name in config.probes
    ]
    assert not (tmp_path / "snapshots").exists()


def test_a_failing_probe_does_not_lose_the_run(tmp_path, monkeypatch):
    def broken(context):
        assert store.load(tmp_path).attrs["status"] == "complete"  # saved before any probe
        raise MemoryError("too large")

    monkeypatch.setitem(probes.PROBES, "sharpness", broken)
    ds = run(small("cnn"), tmp_path)
    assert "sharpness: failed, MemoryError: too large" in ds.attrs["notes"]
    assert "pca_share" in ds
    assert "hessian_top" not in store.load(tmp_path)


def test_a_diverging_loss_stops_the_run_and_keeps_its_series(tmp_path):
    ds = run(small("cnn", lr=1e20), tmp_path)
    assert ds.attrs["status"] == "diverged"
    assert ds["diverged"] == 1
    assert 0 < int(ds["diverged_at"]) == ds.sizes["step"] < 40
    assert np.isfinite(ds["train_loss"]).all()
    assert store.load(tmp_path).attrs["status"] == "diverged"
    assert "final_train_loss" not in ds


def test_an_interruption_keeps_what_was_recorded(tmp_path):
    def stop(done, values):
        if done == 7:
            raise KeyboardInterrupt

    ds = run(small("cnn"), tmp_path, stop)
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] == 7
    assert store.load(tmp_path).equals(ds)


def test_an_interrupted_measurement_keeps_the_run(tmp_path):
    def stop(line):
        if "sharpness" in line:
            raise KeyboardInterrupt

    ds = run(small("cnn"), tmp_path, tell=stop)
    assert ds.attrs["status"] == "complete"
    assert "interpolation_loss" in ds
    assert ds.attrs["notes"] == "measurements: interrupted"


def test_an_interrupted_final_evaluation_keeps_the_run(tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_final_losses", stop)
    ds = run(small("cnn"), tmp_path)
    assert ds.attrs["status"] == store.load(tmp_path).attrs["status"] == "interrupted"
    assert ds.sizes["step"] == 40
    assert not (tmp_path / "run.partial.nc").exists()


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_disk_that_fills_up_does_not_cost_the_records(tmp_path, monkeypatch, spoilt):
    def full(self, state, model, optimizer):
        if state == 27:
            if spoilt:  # as a failed write leaves it
                (tmp_path / "run.partial.nc").write_bytes(b"half a file")
            raise StoreError("cannot write: no space")

    monkeypatch.setattr(Snapshots, "offer", full)
    with pytest.raises(StoreError, match=r"no space; what was recorded is kept in .*run\.nc"):
        run(small("cnn"), tmp_path)
    ds = store.load(tmp_path / "run.nc")
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] == 27
    assert not (tmp_path / "run.partial.nc").exists()


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_mirror_that_can_be_read_is_kept_where_nothing_more_can_be_written(tmp_path, monkeypatch, spoilt):
    mirror = tmp_path / "run.partial.nc"

    def full(ds, path, **options):
        if spoilt:
            mirror.write_bytes(b"half a file")
        raise StoreError("cannot write: no space")

    monkeypatch.setattr(store, "save", full)
    kept = "could not be kept" if spoilt else r"is kept in .*run\.partial\.nc"
    with pytest.raises(StoreError, match=kept):
        run(small("cnn", snapshots=0), tmp_path)
    assert mirror.exists() != spoilt
    if not spoilt:
        assert store.load(tmp_path).sizes["step"] == 40


def test_memory_that_runs_out_is_one_clear_message(tmp_path, monkeypatch):
    def too_large(self, *args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 GiB")

    monkeypatch.setattr(Trainer, "_backward", too_large)
    with pytest.raises(RivervalError, match=r"not enough memory.*nothing was recorded"):
        run(small("cnn", snapshots=0), tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(type(small("cnn").architecture), "build", too_large)
    with pytest.raises(RivervalError, match="not enough memory; use a smaller --batch"):
        prepare(small("cnn"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_leaves_a_readable_dataset(tmp_path):
    args = [
        "real",
        "run",
        "--arch",
        "cnn",
        "--steps",
        "100000",
        "--widths",
        "2,2,2,2,2",
        "--out",
        str(tmp_path),
        "--name",
        "k",
    ]
    code = f"from riverval.cli import main; main({args!r})"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=env) as process:
        deadline = time.monotonic() + 240
        partial = tmp_path / "k" / "run.partial.nc"
        while time.monotonic() < deadline and process.poll() is None:
            if partial.exists() and partial.stat().st_size > 60_000:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    ds = store.load(tmp_path / "k")
    assert ds.attrs["status"] == "running"
    assert ds.sizes["step"] > 10
    assert np.isfinite(ds["train_loss"]).all()


# --- the command line ------------------------------------------------------------------------------------------------
def call(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["real", "run", *map(str, args)])
    return ended.value.code or 0, capsys.readouterr()


def test_the_command_prints_a_table_and_writes_files(capsys, tmp_path):
    options = [
        "--steps",
        30,
        "--widths",
        "2,2,2,2,4",
        "--snapshots",
        3,
        "--hessian-examples",
        32,
        "--out",
        tmp_path,
        "--name",
        "r",
    ]
    code, printed = call(capsys, "--arch", "cnn", *options)
    assert code == 0, printed.err
    for text in (
        "parameters",
        "30 updates",
        "PC1 share, cooldown",
        "random walk",
        "top Hessian",
        " snapshots as float32,",
        "checkpoints: at most",
        "wrote",
    ):
        assert text in printed.out
    names = {p.name for p in (tmp_path / "r").iterdir()}
    assert {name for name in names if not name.endswith(".png")} == {
        "run.nc",
        "config.json",
        "snapshots",
        "checkpoints",
    }
    assert "real.png" in names
    code, printed = call(capsys, "--arch", "cnn", *options)
    assert code == 2
    assert "--overwrite" in printed.err


def test_ctrl_c_before_the_first_update_leaves_nothing(capsys, tmp_path, monkeypatch):
    def stop(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_backward", stop)
    code, printed = call(capsys, "--arch", "cnn", "--out", tmp_path)
    assert code == 130
    assert "nothing was recorded" in printed.err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_measurement_keeps_the_run_and_says_so(capsys, tmp_path, monkeypatch):
    def stop(context):
        raise KeyboardInterrupt

    monkeypatch.setitem(probes.PROBES, "sharpness", stop)
    options = ["--steps", 20, "--widths", "2,2,2,2,4", "--snapshots", 2, "--out", tmp_path, "--name", "r"]
    code, printed = call(capsys, "--arch", "cnn", *options)
    assert code == 130
    assert "interrupted" in printed.err
    assert store.load(tmp_path / "r").attrs["status"] == "complete"


def test_a_diverged_run_ends_with_an_error(capsys, tmp_path):
    code, printed = call(capsys, "--arch", "cnn", "--steps", 30, "--lr", 1e20, "--out", tmp_path)
    assert code == 1
    assert "smaller --lr" in printed.err
    assert (tmp_path / "cnn-wsd" / "run.nc").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--arch", "rnn"], "unknown architecture 'rnn'"),
        (["--arch", "cnn", "--lr", "0"], "lr (peak learning rate)"),
        (["--arch", "cnn", "--data", "nowhere.npz"], "nowhere.npz does not exist"),
        (["--arch", "cnn", "--data", "mnist"], "unknown image data 'mnist'"),
        (["--arch", "lm", "--data", "nowhere"], "no such file or folder"),
        (["--arch", "cnn", "--widths", "a,b"], "--widths must be whole numbers"),
        (["--arch", "cnn", "--device", "cuda"], "--device cuda is not available"),
        (["--arch", "cnn", "--steps", "10", "--warmup", "10"], "warmup"),
        (["--arch", "lm", "--size", "big"], "unknown size 'big'"),
        (["--arch", "cnn", "--name", "a/b"], "plain folder name"),
        (["--arch", "cnn", "--batch", "2000"], "at most the 1438 training images"),
        (["--arch", "cnn", "--threads", "100000"], "threads must be at most the"),
        (["--arch", "lm", "--data", ""], "no such file or folder"),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(capsys, tmp_path, args, message):
    if "cuda" in args and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, printed = call(capsys, *args, "--out", tmp_path / "runs")
    assert code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_says_how_to_install_it(capsys, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, printed = call(capsys, "--arch", "lm", "--steps", 20, "--out", tmp_path)
    assert code == 1
    assert "riverval[real]" in printed.err


def test_without_torch_the_command_says_how_to_install_it(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from riverval.cli import main; main(['real', 'run', '--arch', 'cnn', '--out', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("riverval: training needs torch")
    assert "riverval[real]" in done.stderr


def test_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    with thread_count(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_a_compiler_that_fails_is_one_clear_message(tmp_path, monkeypatch):
    def broken(model):
        def call(*args, **kwargs):
            raise RuntimeError("no compiler\nand a long trace")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RivervalError, match=r"does not work here \(no compiler\); leave --compile out"):
        run(small("cnn", compile=True), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_compiled_model_is_trained_and_tried_with_a_micro_batch(tmp_path, monkeypatch):
    sizes = []

    def compiled(model):
        def call(images):
            sizes.append(len(images))
            return model(images)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    run(small("cnn", compile=True, micro_batch=10, steps=6, snapshots=0), tmp_path)
    assert sizes == [10] + [10, 6] * 6
